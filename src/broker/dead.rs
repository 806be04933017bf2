use std::{fmt, time::SystemTime};

use async_trait::async_trait;

use super::envelope::EnvelopeError;

/// How much of a dead body is kept.
pub(super) const MAX_KEPT_BYTES: usize = 64 << 10;

/// A message that will never be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The queue it was in, as the broker tells.
    pub queue: Option<String>,
    /// The sender's name for the message, if it gave one.
    pub message_id: Option<String>,
    /// Why it is dead.
    pub reason: DeadReason,
    /// When it died, to the second, as the broker tells. Stays the same when the letter is handed over again, so that queue,
    /// time, id and body together name a letter.
    pub died: Option<SystemTime>,
    /// Its body, the first 64 KiB of it.
    pub body: Vec<u8>,
    /// The whole body's length.
    pub body_bytes: usize,
}

impl DeadLetter {
    pub(super) fn new(queue: Option<String>, reason: DeadReason, mut body: Vec<u8>) -> Self {
        let body_bytes = body.len();
        body.truncate(MAX_KEPT_BYTES);
        Self { queue, message_id: None, reason, died: None, body, body_bytes }
    }
}

/// Why a message is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// Its body is no hint.
    Undecodable(EnvelopeError),
    /// It is a hint, and some consumer refused it.
    Rejected,
    /// The broker gave it up; its word for why, such as `delivery_limit`, `expired` or `maxlen`.
    GivenUp {
        /// The broker's word.
        word: String,
    },
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecodable(error) => error.fmt(f),
            Self::Rejected => f.write_str("a consumer refused it"),
            Self::GivenUp { word } => write!(f, "the broker gave it up: {word}"),
        }
    }
}

/// Keeps dead letters, in practice in a table.
#[async_trait]
pub trait DeadLetterSink: fmt::Debug + Send + Sync {
    /// Keeps one durably. The same letter may come twice.
    ///
    /// # Errors
    /// It is not kept; the letter stays in the broker and comes again.
    async fn bury(&self, letter: &DeadLetter) -> Result<(), SinkError>;
}

/// Why a dead letter could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("a dead letter could not be kept: {0}")]
pub struct SinkError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
