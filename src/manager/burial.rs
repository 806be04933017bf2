use async_trait::async_trait;

use crate::{
    broker::{DeadLetter, DeadLetterSink, SinkError},
    store::Store,
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
            "message_id": letter.message_id,
            "body_bytes": letter.body_bytes,
            "died": letter.died.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).map(|d| d.as_secs()),
        });
        let queue = letter.queue.as_deref().unwrap_or("unknown");
        tracing::warn!(queue, reason = %letter.reason, "a message was not understood; `list dead-letters` shows it");
        self.store
            .keep_dead_letter(queue, &letter.body, &headers.to_string(), &letter.reason.to_string())
            .await
            .map_err(|error| SinkError(Box::new(error)))
    }
}
