//! Rates of starts, for one queue or for all of them together. They are counted in the database, so that they hold for
//! all workers together.

use std::collections::BTreeMap;

use super::{
    Store, StoreError,
    sql::{Row, Tx, args},
};
use crate::model::{QueueName, StartRate, StartTokens, Timestamp, topology::ALL_QUEUES};

/// A rate and what is left of it.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    scope: String,
    rate: StartRate,
    left: StartTokens,
}

impl Limit {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let scope = row.text("scope")?;
        let rate = StartRate::new(row.int("starts")?, row.int("period_us")?)
            .ok_or_else(|| StoreError::Corrupt(format!("rate_limit {scope}")))?;
        let left = StartTokens { micro: row.int("tokens_micro")?, at: row.time("refilled_at")? };
        Ok(Self { scope, rate, left: rate.refill(left, row.time("now")?) })
    }

    fn allows(&self) -> bool {
        self.left.micro >= StartRate::COST
    }
}

const COLUMNS: &str = "SELECT scope, starts, period_us, tokens_micro, refilled_at, now_us() AS now FROM rate_limit";

/// The limits of starts, as they stand now.
#[derive(Debug)]
pub(super) struct Limits(Vec<Limit>);

impl Limits {
    /// Whether something may start in this queue.
    pub(super) fn allows(&self, queue: &QueueName) -> bool {
        let name = queue.to_string();
        !self.0.iter().any(|l| (l.scope == ALL_QUEUES || l.scope == name) && !l.allows())
    }

    /// Whether starts are counted at all.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// All limits: as many rows as somebody wrote, few.
pub(super) async fn read(tx: &mut Tx) -> Result<Limits, StoreError> {
    let rows = tx.rows(COLUMNS, args![]).await?;
    Ok(Limits(rows.iter().map(Limit::read).collect::<Result<_, _>>()?))
}

/// Takes one start from the queue's limit and from that of all, where there are such. `false`: somebody else took the
/// last one meanwhile, and the transaction must be rolled back.
pub(super) async fn take_start(tx: &mut Tx, queue: &QueueName) -> Result<bool, StoreError> {
    let lock = match tx {
        Tx::Sqlite(_) => "",
        // In the order of the scopes: two claims must not wait for each other.
        Tx::Postgres(_) => " FOR NO KEY UPDATE",
    };
    let text = format!("{COLUMNS} WHERE scope = $1 OR scope = $2 ORDER BY scope{lock}");
    let rows = tx.rows(text, args![ALL_QUEUES, queue.to_string()]).await?;
    for row in &rows {
        let limit = Limit::read(row)?;
        if !limit.allows() {
            return Ok(false);
        }
        tx.execute(
            "UPDATE rate_limit SET tokens_micro = $2, refilled_at = $3 WHERE scope = $1",
            args![limit.scope, limit.left.micro - StartRate::COST, limit.left.at],
        )
        .await?;
    }
    Ok(true)
}

/// The rates as they were set, by scope.
pub(super) async fn rates(tx: &mut Tx) -> Result<BTreeMap<String, StartRate>, StoreError> {
    Ok(read(tx).await?.0.into_iter().map(|limit| (limit.scope, limit.rate)).collect())
}

/// Sets the rate of a scope, with a full bucket, or lifts it.
pub(super) async fn write(tx: &mut Tx, scope: &str, rate: Option<StartRate>) -> Result<(), StoreError> {
    match rate {
        None => tx.execute("DELETE FROM rate_limit WHERE scope = $1", args![scope]).await?,
        Some(rate) => {
            let full = rate.full(Timestamp::from_micros(0)).micro;
            tx.execute(
                "INSERT INTO rate_limit (scope, starts, period_us, tokens_micro, refilled_at) \
                 VALUES ($1, $2, $3, $4, now_us()) ON CONFLICT (scope) DO UPDATE SET starts = excluded.starts, \
                 period_us = excluded.period_us, tokens_micro = excluded.tokens_micro, \
                 refilled_at = excluded.refilled_at",
                args![scope, rate.starts(), rate.period_us(), full],
            )
            .await?
        }
    };
    Ok(())
}

impl Store {
    /// Limits how much of a queue's work may start (of all queues together without a name), or lifts the limit.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn set_rate_limit(&self, queue: Option<&QueueName>, rate: Option<StartRate>) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let scope = queue.map_or_else(|| ALL_QUEUES.to_owned(), ToString::to_string);
        write(&mut tx, &scope, rate).await?;
        tx.commit().await
    }

    /// All limits of starts; no name is the limit of all queues together.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn rate_limits(&self) -> Result<Vec<(Option<String>, StartRate)>, StoreError> {
        let mut tx = self.read().await?;
        let rows = tx.rows(COLUMNS, args![]).await?;
        let mut limits = rows.iter().map(Limit::read).collect::<Result<Vec<_>, _>>()?;
        limits.sort_by(|a, b| a.scope.cmp(&b.scope));
        Ok(limits.into_iter().map(|l| ((l.scope != ALL_QUEUES).then_some(l.scope), l.rate)).collect())
    }
}
