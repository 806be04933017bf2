//! A lease says until when a worker is believed to work on something. It is short, and renewed with the progress.

use std::time::Duration;

use super::{
    LeaseClock, Store, StoreError, fault,
    sql::{Tx, args},
    work::{Kind, WorkRow},
    workers::{WorkerSession, micros},
};
use crate::model::{Fence, Move, Work};

/// What a renewal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The work is still this worker's.
    Held,
    /// The lease had been lost; nobody had claimed the work since, and it is this worker's again.
    Revived,
    /// The work is still this worker's, and somebody wants it stopped.
    CancelRequested,
    /// Somebody claimed it since, or it is over: this worker stops, and writes nothing more.
    Overtaken,
}

impl Store {
    /// Renews a lease, counted from `clock`, and reports verified bytes. Also brings a lost lease back while nobody
    /// overtook its fence.
    ///
    /// # Errors
    /// The database cannot be written. The attempt goes on as long as the receiver accepts its fence.
    pub async fn renew(
        &self,
        session: &WorkerSession,
        work: Work,
        fence: Fence,
        lease: Duration,
        clock: &LeaseClock,
        bytes_done: u64,
    ) -> Result<Renewal, StoreError> {
        let bytes = i64::try_from(bytes_done).unwrap_or(i64::MAX);
        let mut tx = self.write().await?;
        // Progress never goes back, and what a worker counts twice is not more than there is.
        let text = format!(
            "UPDATE {} SET lease_until = coalesce($3, now_us()) + $4, lease_boot = $5, lease_us = $4, \
             renewals = renewals + 1, updated_at = now_us(), \
             bytes_done = CASE WHEN $6 > bytes_total THEN bytes_total WHEN $6 > bytes_done THEN $6 ELSE bytes_done END \
             WHERE id = $1 AND fence = $2 AND claimed_by = $7 AND status = 'in_progress' RETURNING cancel_requested",
            work.table()
        );
        let args = args![work.number(), fence, clock.now_us, micros(lease), &clock.boot, bytes, &session.name];
        if let Some(row) = tx.row(text, args).await? {
            let cancel = row.flag("cancel_requested")?;
            tx.commit().await?;
            return Ok(if cancel { Renewal::CancelRequested } else { Renewal::Held });
        }
        if fault::fence_is_ignored() {
            return Ok(Renewal::Held);
        }
        let Some(row) = WorkRow::lock(&mut tx, work).await? else {
            return Err(StoreError::NotFound { what: "work", name: work.to_string() });
        };
        let is_his = row.claimed_by.as_ref() == Some(&session.name);
        let overtaken = row.fence != fence || !is_his || row.ended.is_some();
        if overtaken || row.status.on(Move::Revive).is_err() {
            self.count_stale();
            return Ok(Renewal::Overtaken);
        }
        revive(&mut tx, &row, session, micros(lease), clock).await?;
        tx.commit().await?;
        Ok(if row.cancel_requested { Renewal::CancelRequested } else { Renewal::Revived })
    }

    /// Whether somebody wants it stopped: a look for those whom no notification reaches, which writes nothing.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn is_cancel_requested(&self, work: Work) -> Result<bool, StoreError> {
        let mut tx = self.read().await?;
        let text = format!("SELECT cancel_requested FROM {} WHERE id = $1", work.table());
        tx.row(text, args![work.number()]).await?.map_or(Ok(false), |row| row.flag("cancel_requested"))
    }
}

async fn revive(
    tx: &mut Tx,
    row: &WorkRow,
    session: &WorkerSession,
    lease_us: i64,
    clock: &LeaseClock,
) -> Result<(), StoreError> {
    let text = format!(
        "UPDATE {} SET status = 'in_progress', owner = $3, lease_until = coalesce($4, now_us()) + $5, lease_boot = $6, \
         lease_us = $5, renewals = renewals + 1, losses = $7, updated_at = now_us(), changed_by = $8, change_reason = 'renewed late, unclaimed meanwhile' \
         WHERE id = $1 AND fence = $2 AND status IN ('pending', 'scheduled')",
        Kind::of(row.work).table()
    );
    // The loss that the sweeper counted was none.
    let losses = row.losses.saturating_sub(1);
    let args =
        args![row.work.number(), row.fence, session.id, clock.now_us, lease_us, &clock.boot, losses, &session.name];
    tx.execute(text, args).await?;
    Ok(())
}
