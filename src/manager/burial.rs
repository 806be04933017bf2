use async_trait::async_trait;

use crate::{
    broker::{DeadLetter, DeadLetterSink, SinkError},
    chunk::plain_text,
    store::{Store, StoreError},
};

/// Keeps dead letters in their table, where `list dead-letters` shows them.
#[derive(Debug)]
pub(super) struct Graveyard {
    store: Store,
}

impl Graveyard {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }
}

#[async_trait]
impl DeadLetterSink for Graveyard {
    async fn bury(&self, letter: &DeadLetter) -> Result<(), SinkError> {
        let headers = serde_json::json!({
            // A text of the database holds no NUL, and a person's terminal should be spared the rest.
            "message_id": letter.message_id.as_deref().map(|id| plain_text(id.as_bytes())),
            "body_bytes": letter.body_bytes,
            "died": letter.died.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map(|d| d.as_secs()),
        });
        let queue = plain_text(letter.queue.as_deref().unwrap_or("unknown").as_bytes());
        let reason = plain_text(letter.reason.to_string().as_bytes());
        let kept = match self.store.keep_dead_letter(&queue, &letter.body, &headers.to_string(), &reason).await {
            // Whoever sends letters must not be able to stop the burial: without what came from outside, if need be.
            Err(error @ (StoreError::Refused(_) | StoreError::Database(_))) => {
                tracing::warn!(%error, "the database refused a dead letter; it is kept without its headers");
                self.store.keep_dead_letter("unknown", &letter.body, "{}", "its headers were refused").await
            }
            other => other,
        };
        kept.map_err(|error| SinkError(Box::new(error)))?;
        tracing::warn!(queue, reason, "a message was not understood; `list dead-letters` shows it");
        Ok(())
    }
}
