//! Hints on their way to the broker. They are written with the state that caused them, published after it, and marked
//! as sent when the broker has confirmed; a crash in between publishes one twice, which is allowed.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Db, Store, StoreError,
    many::{any_of, with_ids},
    sql::{Row, Tx, args},
    work::Kind,
    workers::micros,
};
use crate::model::{Operation, QueueName, Timestamp, Work};

/// Of hints that their numbers name, those that were not sent; no index answers it (`many::off_index` says why).
const UNSENT: &str = "coalesce(sent_at, 0) = 0";

/// "This queue has something to do." The rest is for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Its row in the outbox, which is also the message's id.
    pub id: i64,
    /// Where it goes.
    pub queue: QueueName,
    /// What caused it; nothing for operations that are no claimed work.
    pub work: Option<Work>,
    /// The work's priority, from 0 to 9.
    pub priority: u8,
    /// When it was written.
    pub created_at: Timestamp,
    /// How often it could not be published.
    pub tries: u64,
}

/// Hints that one relay publishes. On PostgreSQL they are locked until the batch is settled or dropped, so that another
/// relay gets others: it must be settled within seconds. On SQLite nothing is held, and one relay is expected.
#[derive(Debug)]
pub struct OutboxBatch {
    store: Store,
    held: Option<Tx>,
    hints: Vec<Hint>,
    sent: Vec<i64>,
    failed: Vec<(i64, String)>,
}

impl OutboxBatch {
    /// The hints, those with the fewest failures first.
    pub fn hints(&self) -> &[Hint] {
        &self.hints
    }

    /// The broker has confirmed it.
    pub fn mark_sent(&mut self, id: i64) {
        self.sent.push(id);
    }

    /// It could not be published; it stays, behind those that failed less often.
    pub fn note_failure(&mut self, id: i64, error: impl Into<String>) {
        self.failed.push((id, error.into()));
    }

    /// Writes what was marked. Hints without a mark are unsent as before.
    ///
    /// # Errors
    /// The database cannot be written: the hints will be published again.
    pub async fn settle(self) -> Result<(), StoreError> {
        if self.sent.is_empty() && self.failed.is_empty() {
            return Ok(());
        }
        let mut tx = match self.held {
            Some(tx) => tx,
            None => self.store.write().await?,
        };
        if !self.sent.is_empty() {
            let text = format!(
                "UPDATE outbox SET sent_at = now_us(), last_error = NULL WHERE id IN ({}) AND {UNSENT}",
                any_of(1, self.sent.len())
            );
            tx.execute(text, &with_ids(&[], self.sent.iter().copied())).await?;
        }
        // One statement for all that failed alike: while a broker is away these are all hints, in every turn.
        let mut alike: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for (id, error) in &self.failed {
            alike.entry(error).or_default().push(*id);
        }
        for (error, ids) in alike {
            let text = format!(
                "UPDATE outbox SET tries = tries + 1, last_error = $1 WHERE id IN ({}) AND {UNSENT}",
                any_of(2, ids.len())
            );
            tx.execute(text, &with_ids(args![error], ids)).await?;
        }
        tx.commit().await
    }
}

impl Store {
    /// Up to `most` hints that were not sent yet.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn unsent(&self, most: u32) -> Result<OutboxBatch, StoreError> {
        let (mut tx, lock) = match self.db {
            Db::Sqlite(_) => (self.read().await?, ""),
            Db::Postgres(_) => (self.write().await?, " FOR NO KEY UPDATE OF x SKIP LOCKED"),
        };
        let text = format!(
            "SELECT x.id, l.queue_stem, x.operation, x.work_id, x.priority, x.created_at, x.tries FROM outbox x \
             JOIN data_location l ON l.id = x.location_id WHERE x.sent_at IS NULL ORDER BY x.tries, x.id LIMIT $1{lock}"
        );
        let rows = tx.rows(text, args![most]).await?;
        let hints = rows.iter().map(hint).collect::<Result<Vec<_>, _>>()?;
        let held = match tx {
            Tx::Sqlite(_) => None,
            // Nothing found, nothing held.
            Tx::Postgres(_) if hints.is_empty() => None,
            Tx::Postgres(_) => Some(tx),
        };
        Ok(OutboxBatch { store: self.clone(), held, hints, sent: Vec::new(), failed: Vec::new() })
    }

    /// Removes hints that were sent longer than `age` ago, at most `most`; returns how many.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn purge_outbox(&self, age: Duration, most: u32) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let gone = tx
            .execute(
                "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE sent_at IS NOT NULL \
                 AND sent_at < (SELECT now_us() - $1) ORDER BY sent_at LIMIT $2)",
                args![micros(age), most],
            )
            .await?;
        tx.commit().await?;
        Ok(gone)
    }
}

fn hint(row: &Row) -> Result<Hint, StoreError> {
    let operation: Operation = row.word("operation")?;
    let number = row.int("work_id")?;
    let priority = row.int("priority")?;
    Ok(Hint {
        id: row.int("id")?,
        queue: QueueName::new(row.text("queue_stem")?, operation),
        work: Kind::of_operation(operation).map(|kind| kind.work(number)),
        priority: u8::try_from(priority).map_err(|_| StoreError::Corrupt(format!("priority is {priority}")))?,
        created_at: row.time("created_at")?,
        tries: row.size("tries")?,
    })
}
