//! Messages that nobody understood, kept with the reason until a person has looked at them.

use serde::Serialize;

use super::{
    Store, StoreError,
    sql::{Row, args},
};
use crate::model::Timestamp;

/// A message that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its row.
    pub id: i64,
    /// Where it was taken from.
    pub queue: String,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Its headers, as JSON.
    pub headers: String,
    /// Why it could not be used.
    pub reason: String,
    /// When it was kept.
    pub at: Timestamp,
    /// When and by whom it was dealt with.
    pub resolved: Option<(Timestamp, String)>,
}

impl Store {
    /// Keeps a message. `headers` is JSON.
    ///
    /// # Errors
    /// The database cannot be written: the message must not be acknowledged yet.
    pub async fn keep_dead_letter(
        &self,
        queue: &str,
        body: &[u8],
        headers: &str,
        reason: &str,
    ) -> Result<(), StoreError> {
        // Without RETURNING: whoever may keep letters need not be allowed to read them.
        let mut tx = self.write().await?;
        tx.execute(
            "INSERT INTO dead_letter (queue, body, headers, reason) VALUES ($1, $2, $3, $4)",
            args![queue, body, headers, reason],
        )
        .await?;
        tx.commit().await
    }

    /// Letters behind the row `after` (0 from the start), oldest first; with `all` also those that were dealt with.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn dead_letters(&self, after: i64, most: u32, all: bool) -> Result<Vec<DeadLetter>, StoreError> {
        let mut tx = self.read().await?;
        let open = if all { "" } else { " AND resolved_at IS NULL" };
        let text = format!(
            "SELECT id, queue, body, headers, reason, at, resolved_at, resolved_by FROM dead_letter \
             WHERE id > $1{open} ORDER BY id LIMIT $2"
        );
        let rows = tx.rows(text, args![after, most]).await?;
        rows.iter().map(letter).collect()
    }

    /// Says that somebody has dealt with letters; returns how many were open.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn resolve_dead_letters(&self, ids: &[i64], by: &str) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let mut resolved = 0;
        for &id in ids {
            resolved += tx
                .execute(
                    "UPDATE dead_letter SET resolved_at = now_us(), resolved_by = $2 \
                     WHERE id = $1 AND resolved_at IS NULL",
                    args![id, by],
                )
                .await?;
        }
        tx.commit().await?;
        Ok(resolved)
    }
}

fn letter(row: &Row) -> Result<DeadLetter, StoreError> {
    let resolved = match (row.opt_time("resolved_at")?, row.opt_text("resolved_by")?) {
        (Some(at), Some(by)) => Some((at, by)),
        _ => None,
    };
    Ok(DeadLetter {
        id: row.int("id")?,
        queue: row.text("queue")?,
        body: row.bytes("body")?,
        headers: row.text("headers")?,
        reason: row.text("reason")?,
        at: row.time("at")?,
        resolved,
    })
}
