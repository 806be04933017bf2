//! What managers do about workers that are not heard of: their leases run out, and their work is offered again.
//!
//! Any number of managers may sweep at once. Each row is a transaction of its own, which finds the row as the look found
//! it or leaves it alone: a row that cannot be swept holds up no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    Backend, LeaseClock, Store, StoreError,
    sql::{Tx, args},
    wakeups::Wakeup,
    watch::Look,
    work::{Kind, WorkRow},
    workers::micros,
};
use crate::model::{ErrorClass, LocationId, Move, Status, Work};

/// How much a sweep does, and when it gives up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepRules {
    /// At most so many rows of each kind in one call.
    pub batch: u32,
    /// So many leases in a row may be lost; after one more the work fails.
    pub losses: u32,
    /// A queue in which something waits gets a new hint when its last one is older than this.
    pub hint_age: Duration,
}

impl Default for SweepRules {
    fn default() -> Self {
        Self { batch: 100, losses: ErrorClass::LostWorker.policy().retries, hint_age: Duration::from_secs(30) }
    }
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Offered again.
    pub offered: Vec<Work>,
    /// Failed, because too many leases were lost.
    pub failed: Vec<Work>,
    /// Failed, because somebody had cancelled them.
    pub cancelled: Vec<Work>,
    /// Queues that got a new hint.
    pub hinted: u32,
    /// Workers that were not heard of.
    pub dead_workers: Vec<String>,
    /// Work whose lease was lost and that could not be swept, with the reason.
    pub refused: Vec<(Work, String)>,
}

impl Store {
    /// Looks for leases that ran out, hints that were lost and workers that died. `manager` is who does it, for the
    /// history.
    ///
    /// # Errors
    /// The database cannot be written. What an earlier part of the sweep did is kept.
    pub async fn sweep(&self, manager: &str, clock: &LeaseClock, rules: &SweepRules) -> Result<Swept, StoreError> {
        let clock = &Clock { read: clock, at: Instant::now() };
        let mut swept = Swept::default();
        for kind in Kind::ALL {
            self.sweep_leases(kind, manager, clock, rules, &mut swept).await?;
        }
        self.sweep_workers(clock, rules, &mut swept).await?;
        self.sweep_hints(clock, rules, &mut swept).await?;
        if !swept.offered.is_empty() || swept.hinted > 0 {
            self.wake(Wakeup::Outbox);
        }
        Ok(swept)
    }

    async fn sweep_leases(
        &self,
        kind: Kind,
        manager: &str,
        clock: &Clock<'_>,
        rules: &SweepRules,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        for lost in self.lost_leases(kind, clock, rules.batch).await? {
            match self.sweep_lease(&lost, manager, rules).await {
                Ok(Some(Fate::Offered)) => swept.offered.push(lost.work),
                Ok(Some(Fate::Failed)) => swept.failed.push(lost.work),
                Ok(Some(Fate::Cancelled)) => swept.cancelled.push(lost.work),
                Ok(None) | Err(StoreError::Conflict(_)) => {}
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => swept.refused.push((lost.work, error.to_string())),
            }
        }
        Ok(())
    }

    /// Work whose lease is over, oldest first. No writer's turn is needed for that, and most sweeps find nothing.
    async fn lost_leases(&self, kind: Kind, clock: &Clock<'_>, most: u32) -> Result<Vec<Lost>, StoreError> {
        let began_us = clock.steady_us();
        let mut tx = self.read().await?;
        // What runs is as much as there are slots, so that a walk over it is short.
        let by_clock = match self.backend() {
            Backend::Sqlite => "AND (lease_boot <> $1 OR lease_until < $2)",
            Backend::Postgres => "",
        };
        let text = format!(
            "SELECT id, fence, renewals, lease_us FROM {} WHERE status = 'in_progress' {by_clock} \
             ORDER BY lease_until, id",
            kind.table()
        );
        let rows = match self.backend() {
            Backend::Sqlite => tx.rows(text, args![&clock.read.boot, clock.read.now_us]).await?,
            Backend::Postgres => tx.rows(text, args![]).await?,
        };
        drop(tx);
        let look = Look { began_us, ended_us: clock.steady_us() };
        let mut lost = Vec::new();
        let mut watches = self.watches();
        let watch = &mut watches.work[kind.index()];
        let mut seen = BTreeSet::new();
        for row in &rows {
            let (id, fence, renewals) = (row.int("id")?, row.int("fence")?, row.int("renewals")?);
            seen.insert(id);
            let is_lost =
                self.backend() == Backend::Sqlite || watch.is_lost(look, id, (fence, renewals), row.int("lease_us")?);
            if is_lost {
                lost.push(Lost { work: kind.work(id), fence, renewals });
            }
        }
        watch.keep_only(|id| seen.contains(id));
        drop(watches);
        lost.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(lost)
    }

    /// Ends one lease, unless its row changed since it was looked at or another manager holds it.
    async fn sweep_lease(&self, lost: &Lost, manager: &str, rules: &SweepRules) -> Result<Option<Fate>, StoreError> {
        let mut tx = self.write().await?;
        let lock = match tx {
            Tx::Sqlite(_) => "",
            Tx::Postgres(_) => " FOR NO KEY UPDATE SKIP LOCKED",
        };
        let text = format!(
            "SELECT id FROM {} WHERE id = $1 AND status = 'in_progress' AND fence = $2 AND renewals = $3{lock}",
            lost.work.table()
        );
        if tx.row(text, args![lost.work.number(), lost.fence, lost.renewals]).await?.is_none() {
            return Ok(None);
        }
        let Some(row) = WorkRow::lock(&mut tx, lost.work).await? else { return Ok(None) };
        let worker = row.claimed_by.clone().unwrap_or_else(|| "unknown".into());
        let fate = if row.cancel_requested {
            let why = format!("cancelled; {worker}, who had it, was not heard of");
            fail(&mut tx, &row, manager, ErrorClass::Cancelled, &why).await?;
            Fate::Cancelled
        } else if row.losses >= rules.losses {
            let why = format!("{} workers in a row were lost with it, the last one was {worker}", row.losses + 1);
            fail(&mut tx, &row, manager, ErrorClass::LostWorker, &why).await?;
            Fate::Failed
        } else {
            offer(&mut tx, &row, manager, &worker).await?;
            Fate::Offered
        };
        tx.commit().await?;
        Ok(Some(fate))
    }

    async fn sweep_workers(&self, clock: &Clock<'_>, rules: &SweepRules, swept: &mut Swept) -> Result<(), StoreError> {
        let began_us = clock.steady_us();
        let mut tx = self.read().await?;
        let columns = "SELECT id, name, boot_nonce, heartbeats, lease_us FROM worker WHERE state <> 'stopped'";
        let rows = match self.backend() {
            Backend::Sqlite => {
                let text = format!("{columns} AND (heartbeat_boot <> $1 OR heartbeat_until < $2) ORDER BY id");
                tx.rows(text, args![&clock.read.boot, clock.read.now_us]).await?
            }
            Backend::Postgres => tx.rows(format!("{columns} ORDER BY id"), args![]).await?,
        };
        drop(tx);
        let look = Look { began_us, ended_us: clock.steady_us() };
        let mut dead = Vec::new();
        let mut seen = BTreeSet::new();
        {
            let mut watches = self.watches();
            for row in &rows {
                let (id, nonce, beats) = (row.int("id")?, row.text("boot_nonce")?, row.int("heartbeats")?);
                seen.insert(id);
                let mark = (nonce.clone(), beats);
                if self.backend() == Backend::Sqlite || watches.workers.is_lost(look, id, mark, row.int("lease_us")?) {
                    dead.push((id, row.text("name")?, nonce, beats));
                }
            }
            watches.workers.keep_only(|id| seen.contains(id));
        }
        dead.truncate(usize::try_from(rules.batch).unwrap_or(usize::MAX));
        for (id, name, nonce, beats) in dead {
            let mut tx = self.write().await?;
            let text = "UPDATE worker SET state = 'stopped' \
                WHERE id = $1 AND boot_nonce = $2 AND heartbeats = $3 AND state <> 'stopped'";
            if tx.execute(text, args![id, nonce, beats]).await? == 1 {
                tx.commit().await?;
                swept.dead_workers.push(name);
            }
        }
        Ok(())
    }

    /// A hint may be lost with the broker, or eaten by a worker that could not claim just then. Two managers may both
    /// write one: it is only a hint.
    async fn sweep_hints(&self, clock: &Clock<'_>, rules: &SweepRules, swept: &mut Swept) -> Result<(), StoreError> {
        for kind in Kind::ALL {
            let mut tx = self.read().await?;
            let text = hintless_text(kind, matches!(tx, Tx::Sqlite(_)));
            let args = args![
                kind.operation().as_str(),
                micros(rules.hint_age),
                &clock.read.boot,
                clock.read.now_us,
                rules.batch
            ];
            let heads = tx.rows(text, args).await?;
            drop(tx);
            if heads.is_empty() {
                continue;
            }
            let mut tx = self.write().await?;
            // One for each queue.
            let mut queues = BTreeMap::new();
            for row in &heads {
                let queue = LocationId::new(row.int("queue_location_id")?);
                queues.insert(queue, (row.int("id")?, row.int("priority")?));
            }
            for (queue, (id, priority)) in &queues {
                tx.execute(
                    "INSERT INTO outbox (location_id, operation, work_id, priority) VALUES ($1, $2, $3, $4)",
                    args![*queue, kind.operation().as_str(), *id, *priority],
                )
                .await?;
                swept.hinted += 1;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}

/// A lease that is over, and the row as the look found it.
#[derive(Clone, Copy, Debug)]
struct Lost {
    work: Work,
    fence: i64,
    renewals: i64,
}

/// What became of work whose lease was lost.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Offered,
    Failed,
    Cancelled,
}

/// A sweep's clock, which goes on while its parts take their time.
#[derive(Clone, Copy, Debug)]
struct Clock<'a> {
    read: &'a LeaseClock,
    /// When the sweep began, which is when `read` was true.
    at: Instant,
}

impl Clock<'_> {
    fn steady_us(&self) -> i64 {
        self.read.steady_us.saturating_add(micros(self.at.elapsed()))
    }
}

/// The first row of each queue in which something waits, where a live worker serves the queue, and its last hint is
/// old and sent.
fn hintless_text(kind: Kind, sqlite: bool) -> String {
    let (table, index) = (kind.table(), kind.claim_index(sqlite));
    // The leap from queue to queue; see `claim`.
    let plus = if sqlite { " + 0" } else { "" };
    format!(
        "WITH RECURSIVE head(id) AS (\
         SELECT (SELECT t.id FROM {table} t {index} WHERE t.status = 'scheduled' ORDER BY t.queue_location_id LIMIT 1) \
         UNION ALL SELECT (SELECT n.id FROM {table} n {index} WHERE n.status = 'scheduled' \
         AND n.queue_location_id > t.queue_location_id{plus} ORDER BY n.queue_location_id LIMIT 1) \
         FROM head h CROSS JOIN {table} t WHERE t.id = h.id) \
         SELECT t.id, t.queue_location_id, t.priority FROM head h CROSS JOIN {table} t \
         WHERE t.id = h.id AND NOT EXISTS (SELECT 1 FROM (SELECT x.created_at, x.sent_at FROM outbox x \
             WHERE x.location_id = t.queue_location_id AND x.operation = $1 ORDER BY x.id DESC LIMIT 1) AS x \
             WHERE x.sent_at IS NULL OR x.created_at BETWEEN now_us() - $2 AND now_us()) \
         AND EXISTS (SELECT 1 FROM worker_queue q JOIN worker w ON w.id = q.worker_id \
             WHERE q.location_id = t.queue_location_id AND q.operation = $1 AND w.state = 'active' \
             AND w.heartbeat_boot = $3 AND (CAST($4 AS BIGINT) IS NULL OR w.heartbeat_until >= $4)) LIMIT $5"
    )
}

async fn offer(tx: &mut Tx, row: &WorkRow, manager: &str, worker: &str) -> Result<(), StoreError> {
    let status = next(row, Move::LoseLease)?;
    let text = format!(
        "UPDATE {} SET status = $3, owner = NULL, lease_until = NULL, lease_boot = NULL, losses = losses + 1, \
         scheduled_at = now_us(), updated_at = now_us(), changed_by = $4, change_reason = $5 \
         WHERE id = $1 AND fence = $2",
        Kind::of(row.work).table()
    );
    let why = format!("{worker} was not heard of for its lease");
    tx.execute(text, args![row.work.number(), row.fence, status.as_str(), manager, why]).await?;
    row.hint(tx).await
}

/// The attempt ends with the row, so that nothing of its owner counts any more.
async fn fail(tx: &mut Tx, row: &WorkRow, manager: &str, class: ErrorClass, why: &str) -> Result<(), StoreError> {
    let status = next(row, Move::Fail)?;
    row.end_lost(tx, class.as_str(), why).await?;
    let text = format!(
        "UPDATE {} SET status = $3, owner = NULL, lease_until = NULL, lease_boot = NULL, losses = losses + 1, \
         error_class = $4, error_text = $5, finished_at = now_us(), updated_at = now_us(), changed_by = $6, \
         change_reason = $5 WHERE id = $1 AND fence = $2",
        Kind::of(row.work).table()
    );
    tx.execute(text, args![row.work.number(), row.fence, status.as_str(), class.as_str(), why, manager]).await?;
    Ok(())
}

fn next(row: &WorkRow, change: Move) -> Result<Status, StoreError> {
    row.status.on(change).map_err(|change| StoreError::Illegal { what: row.work.to_string(), change })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail without the index named: the plan then sorts all rows that wait.
    #[tokio::test]
    async fn a_look_for_lost_hints_does_not_walk_over_rows_that_wait() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        let mut tx = store.read().await.unwrap();
        for kind in Kind::ALL {
            let text = format!("EXPLAIN QUERY PLAN {}", hintless_text(kind, true));
            let rows = tx.rows(text, args!["", 1i64, "", 1i64, 1i64]).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|r| r.text("detail").unwrap()).collect();
            let leap = format!("SEARCH n USING COVERING INDEX {}_claim (queue_location_id>?)", kind.table());
            assert!(plan.contains(&leap), "{plan:#?}");
            for line in &plan {
                let walked = line.strip_prefix("SCAN ").map(|rest| rest.split(' ').next().unwrap_or(rest));
                let known = walked.is_none_or(|w| ["h", "x", "CONSTANT"].contains(&w))
                    || *line == format!("SCAN t USING COVERING INDEX {}_claim", kind.table());
                assert!(known, "{plan:#?}");
            }
        }
    }
}
