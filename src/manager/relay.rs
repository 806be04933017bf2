//! The outbox on its way to the broker.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use uuid::Uuid;

use super::turns::Turn;
use crate::{
    broker::{self, Broker, PublishError},
    store::{Hint, Store, StoreError},
};

/// Publishes hints, many at once.
#[derive(Debug)]
pub(super) struct Relay {
    broker: Arc<dyn Broker>,
    /// Whether the last turn could publish; only changes are told.
    works: AtomicBool,
}

impl Relay {
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, works: AtomicBool::new(true) }
    }

    /// One batch: published, confirmed, marked. A crash between the last two publishes it again, which is allowed.
    pub(super) async fn turn(&self, store: &Store, keep_sent: Duration) -> Result<Turn, StoreError> {
        let mut batch = store.unsent(BATCH).await?;
        let hints = batch.hints().to_vec();
        if hints.is_empty() {
            store.purge_outbox(keep_sent, PURGE).await?;
            return Ok(Turn::Idle);
        }
        // The broker knows each queue once somebody named it; a name more costs nothing.
        let names: BTreeSet<_> =
            hints.iter().filter_map(|h| broker::QueueName::new(&h.queue.to_string()).ok()).collect();
        if let Err(error) = self.broker.declare(&names).await {
            tracing::debug!(%error, "queues could not be made yet");
        }
        let publishing: Vec<_> = hints.iter().map(|hint| self.publish(hint.clone())).collect();
        let published: Vec<_> = stream::iter(publishing).buffer_unordered(AT_ONCE).collect().await;
        let (mut sent, mut trouble) = (0u64, None);
        for (id, result) in published {
            match result {
                Ok(()) => {
                    batch.mark_sent(id);
                    sent += 1;
                }
                Err(error) => {
                    batch.note_failure(id, error.clone());
                    trouble = Some(error);
                }
            }
        }
        batch.settle().await?;
        let full = hints.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX);
        match trouble {
            None => {
                if !self.works.swap(true, Ordering::Relaxed) {
                    tracing::info!("the broker takes hints again");
                }
                Ok(if full { Turn::Unfinished } else { Turn::Worked })
            }
            Some(error) => {
                if self.works.swap(false, Ordering::Relaxed) {
                    tracing::warn!(error, "the broker takes no hints; they wait, and workers find work by looking");
                }
                // Not at once: the same broker would be asked again and again.
                Ok(if sent > 0 { Turn::Worked } else { Turn::Idle })
            }
        }
    }

    /// The hint's row, and what became of it.
    async fn publish(&self, hint: Hint) -> (i64, Result<(), String>) {
        let message = match broker::QueueName::new(&hint.queue.to_string()) {
            Ok(queue) => broker::Hint { id: u128::try_from(hint.id).map(Uuid::from_u128).unwrap_or_default(), queue },
            Err(error) => return (hint.id, Err(error.to_string())),
        };
        (hint.id, self.broker.publish(&message).await.map_err(|error: PublishError| error.to_string()))
    }
}

/// Where there is no broker, nobody reads hints: what is older than `age` is settled, so that the table does not grow.
pub(super) async fn drop_unread(store: &Store, age: Duration) -> Result<Turn, StoreError> {
    let mut batch = store.unsent(BATCH).await?;
    let ids: Vec<_> = batch.hints().iter().map(|hint| hint.id).collect();
    let full = ids.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX);
    for id in ids {
        batch.mark_sent(id);
    }
    batch.settle().await?;
    store.purge_outbox(age, PURGE).await?;
    Ok(if full { Turn::Unfinished } else { Turn::Idle })
}

/// Hints in one transaction.
const BATCH: u32 = 200;
/// Of these under way to the broker at once.
const AT_ONCE: usize = 64;
/// Old hints that go in one turn.
const PURGE: u32 = 5000;
