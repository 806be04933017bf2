use crate::chunk::PathError;

/// Who broke the conversation, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame or message at all.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// The frame, message or field.
        what: &'static str,
        /// What is wrong with it.
        why: Malformed,
    },
    /// Well-formed, but not allowed here or now.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(&'static str),
    /// No common ground.
    #[error("the peer cannot be talked to: {0}")]
    PeerIncompatible(String),
    /// A call that this program must not make in the present state.
    #[error("internal error: {0}")]
    Misuse(&'static str),
}

/// What is wrong with bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Ends too early.
    #[error("it ends too early")]
    Truncated,
    /// Has bytes behind its end.
    #[error("it has bytes behind its end")]
    Trailing,
    /// A length above its maximum.
    #[error("length {found} is above the limit of {limit}")]
    TooLong {
        /// What the bytes declare.
        found: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A value that has no meaning.
    #[error("value {0} has no meaning")]
    Unknown(u64),
    /// A path that could leave its root.
    #[error("{0}")]
    Path(#[from] PathError),
}

/// A wire code for an error, carried by `ABORT` and `REFUSE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The command makes no sense to the peer.
    Usage,
    /// Missing, unreadable or changed source.
    Source,
    /// Unwritable, full or different destination.
    Destination,
    /// Bytes that do not match their digest.
    Integrity,
    /// Unknown peer or missing right.
    Identity,
    /// Links lost, time-outs, protocol errors.
    Network,
    /// A newer fence holds the job.
    Overtaken,
    /// Ended on request.
    Cancelled,
    /// A defect of the program that says so.
    Bug,
}

impl Class {
    /// The code on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Usage => 1,
            Self::Source => 2,
            Self::Destination => 3,
            Self::Integrity => 4,
            Self::Identity => 5,
            Self::Network => 6,
            Self::Overtaken => 7,
            Self::Cancelled => 8,
            Self::Bug => 9,
        }
    }

    /// The class of a code; codes of a later version count as defects.
    pub fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Usage,
            2 => Self::Source,
            3 => Self::Destination,
            4 => Self::Integrity,
            5 => Self::Identity,
            6 => Self::Network,
            7 => Self::Overtaken,
            8 => Self::Cancelled,
            _ => Self::Bug,
        }
    }
}
