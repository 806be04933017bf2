//! What both kinds of work have in common for a statement: the same columns under two names of a table.

use std::collections::BTreeMap;

use super::{
    StoreError,
    many::{any_of, off_index, with_ids},
    sql::{Row, Tx, Value, args},
};
use crate::model::{ArchiveTransferId, Fence, LocationId, Operation, RouteId, Status, Timestamp, TransferId, Work};

/// The two kinds of work, each in a table of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Hops between sites.
    #[default]
    Transfer,
    /// Ways into archives.
    Archive,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Transfer, Self::Archive];

    pub(super) const fn of(work: Work) -> Self {
        match work {
            Work::Transfer(_) => Self::Transfer,
            Work::Archive(_) => Self::Archive,
        }
    }

    /// The kind of work in a queue; none for queues whose work is not this module's.
    pub(super) const fn of_operation(operation: Operation) -> Option<Self> {
        match operation {
            Operation::DataTransfer => Some(Self::Transfer),
            Operation::LongTermArchiveTransfer => Some(Self::Archive),
            _ => None,
        }
    }

    pub(super) const fn operation(self) -> Operation {
        match self {
            Self::Transfer => Operation::DataTransfer,
            Self::Archive => Operation::LongTermArchiveTransfer,
        }
    }

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Transfer => "data_transfer",
            Self::Archive => "long_term_archive_transfer",
        }
    }

    /// What follows the name of the table where rows that wait are looked for. SQLite keeps no statistics here, and
    /// would take the index on the status alone, which holds all of them; PostgreSQL finds the right one.
    pub(super) const fn claim_index(self, sqlite: bool) -> &'static str {
        match (self, sqlite) {
            (_, false) => "",
            (Self::Transfer, true) => "INDEXED BY data_transfer_claim",
            (Self::Archive, true) => "INDEXED BY long_term_archive_transfer_claim",
        }
    }

    /// Its place in [`Kind::ALL`].
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Transfer => 0,
            Self::Archive => 1,
        }
    }

    /// The column of `attempt` and `verification_record` that refers to it.
    pub(super) const fn reference(self) -> &'static str {
        match self {
            Self::Transfer => "data_transfer_id",
            Self::Archive => "long_term_archive_transfer_id",
        }
    }

    pub(super) const fn work(self, number: i64) -> Work {
        match self {
            Self::Transfer => Work::Transfer(TransferId::new(number)),
            Self::Archive => Work::Archive(ArchiveTransferId::new(number)),
        }
    }
}

/// A row of work as the operations on it need it.
#[derive(Clone, Debug)]
pub(super) struct WorkRow {
    pub(super) work: Work,
    pub(super) status: Status,
    pub(super) fence: Fence,
    pub(super) attempt: i64,
    pub(super) retry_count: u32,
    pub(super) losses: u32,
    pub(super) priority: i64,
    pub(super) bytes_done: i64,
    pub(super) bytes_total: i64,
    pub(super) claimed_at: Option<i64>,
    pub(super) claimed_by: Option<String>,
    pub(super) cancel_requested: bool,
    /// Which hop of its bundle it is; nothing for archive transfers.
    pub(super) hop: Option<i64>,
    /// Whether it replaces a copy in an archive that is known to be bad.
    pub(super) is_repair: bool,
    pub(super) route: Option<RouteId>,
    pub(super) origin: LocationId,
    pub(super) destination: LocationId,
    pub(super) queue: LocationId,
    /// How the present fence ended, if it has.
    pub(super) ended: Option<EndedFence>,
    /// The database's time when the row was read.
    pub(super) read_at: Timestamp,
}

/// What was written of a fence that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndedFence {
    /// As `attempt.outcome` has it.
    pub(super) outcome: String,
    pub(super) at: i64,
    pub(super) worker: String,
}

impl EndedFence {
    /// How a fence of this work ended, if it has.
    pub(super) async fn of(tx: &mut Tx, work: Work, fence: Fence) -> Result<Option<Self>, StoreError> {
        let text = format!(
            "SELECT outcome, ended_at, worker_name FROM attempt WHERE {} = $1 AND fence = $2",
            Kind::of(work).reference()
        );
        let row = tx.row(text, args![work.number(), fence]).await?;
        row.map(|row| {
            Ok(Self { outcome: row.text("outcome")?, at: row.int("ended_at")?, worker: row.text("worker_name")? })
        })
        .transpose()
    }

    /// How all fences of these pieces of work ended that have: few for each.
    pub(super) async fn of_all(
        tx: &mut Tx,
        kind: Kind,
        numbers: &[i64],
    ) -> Result<BTreeMap<(Work, Fence), Self>, StoreError> {
        let reference = kind.reference();
        let text = format!(
            "SELECT {reference} AS work, fence, outcome, ended_at, worker_name FROM attempt WHERE {reference} IN ({})",
            any_of(1, numbers.len())
        );
        let mut ended = BTreeMap::new();
        for row in tx.rows(text, &with_ids(&[], numbers.iter().copied())).await? {
            let of = (kind.work(row.int("work")?), Fence::new(row.int("fence")?));
            let outcome = row.text("outcome")?;
            ended.insert(of, Self { outcome, at: row.int("ended_at")?, worker: row.text("worker_name")? });
        }
        Ok(ended)
    }
}

impl WorkRow {
    /// The row, locked until the end of the transaction on PostgreSQL; SQLite has one writer anyway.
    pub(super) async fn lock(tx: &mut Tx, work: Work) -> Result<Option<Self>, StoreError> {
        let rows = Self::lock_some(tx, Kind::of(work), "WHERE t.id = $1", args![work.number()], "").await?;
        let Some(mut found) = rows.into_iter().next() else { return Ok(None) };
        if found.fence.number() == 0 {
            return Ok(Some(found));
        }
        // A statement of its own: one that waited for the lock would look at the time before it.
        found.ended = EndedFence::of(tx, work, found.fence).await?;
        Ok(Some(found))
    }

    /// Rows `t` of a condition, locked, without how their fences ended. `skip` says what happens to rows that others
    /// hold.
    pub(super) async fn lock_some(
        tx: &mut Tx,
        kind: Kind,
        condition: &str,
        args: &[Value],
        skip: &str,
    ) -> Result<Vec<Self>, StoreError> {
        let lock = match tx {
            Tx::Sqlite(_) => String::new(),
            Tx::Postgres(_) => format!(" FOR NO KEY UPDATE OF t{skip}"),
        };
        let own = match kind {
            Kind::Transfer => "t.route_id, t.hop, FALSE AS is_repair",
            Kind::Archive => "CAST(NULL AS BIGINT) AS route_id, CAST(NULL AS BIGINT) AS hop, t.repair > 0 AS is_repair",
        };
        let text = format!(
            "SELECT t.id, t.status, t.fence, t.attempt, t.retry_count, t.losses, t.priority, t.bytes_done, \
             t.bytes_total, t.claimed_at, t.claimed_by, t.cancel_requested, {own}, t.origin_location_id, \
             t.destination_location_id, t.queue_location_id, now_us() AS read_at FROM {} t {condition}{lock}",
            kind.table()
        );
        tx.rows(text, args).await?.iter().map(|row| Self::read(kind, row)).collect()
    }

    fn read(kind: Kind, row: &Row) -> Result<Self, StoreError> {
        let count = |name: &str| -> Result<u32, StoreError> {
            let value = row.int(name)?;
            u32::try_from(value).map_err(|_| StoreError::Corrupt(format!("{name} is {value}")))
        };
        Ok(Self {
            work: kind.work(row.int("id")?),
            status: row.word("status")?,
            fence: Fence::new(row.int("fence")?),
            attempt: row.int("attempt")?,
            retry_count: count("retry_count")?,
            losses: count("losses")?,
            priority: row.int("priority")?,
            bytes_done: row.int("bytes_done")?,
            bytes_total: row.int("bytes_total")?,
            claimed_at: row.opt_int("claimed_at")?,
            claimed_by: row.opt_text("claimed_by")?,
            cancel_requested: row.flag("cancel_requested")?,
            hop: row.opt_int("hop")?,
            is_repair: row.flag("is_repair")?,
            route: row.opt_int("route_id")?.map(RouteId::new),
            origin: LocationId::new(row.int("origin_location_id")?),
            destination: LocationId::new(row.int("destination_location_id")?),
            queue: LocationId::new(row.int("queue_location_id")?),
            ended: None,
            read_at: row.time("read_at")?,
        })
    }

    /// Writes how the present fence ended when its owner was not heard of again. After that nothing of that owner
    /// counts any more.
    pub(super) async fn end_lost(&self, tx: &mut Tx, outcome: &str, why: &str) -> Result<(), StoreError> {
        let chain = serde_json::to_string(&[why]).map_err(|e| StoreError::Refused(e.to_string()))?;
        let text = format!(
            "INSERT INTO attempt ({}, fence, number, worker_id, worker_name, started_at, ended_at, outcome, \
             error_chain, bytes_done) VALUES ($1, $2, $3, (SELECT id FROM worker WHERE name = $4), $4, \
             coalesce($5, now_us()), now_us(), $6, $7, $8)",
            Kind::of(self.work).reference()
        );
        let name = self.claimed_by.as_deref().unwrap_or("unknown");
        let args =
            args![self.work.number(), self.fence, self.attempt, name, self.claimed_at, outcome, chain, self.bytes_done];
        tx.execute(text, args).await?;
        Ok(())
    }

    /// The same for many, before somebody ends work whose owner was lost: those of `ids` that are not over, and whose
    /// fence has not ended.
    pub(super) async fn end_all_lost(tx: &mut Tx, kind: Kind, ids: &[i64], why: &str) -> Result<(), StoreError> {
        let chain = serde_json::to_string(&[why]).map_err(|e| StoreError::Refused(e.to_string()))?;
        let text = format!(
            "INSERT INTO attempt ({reference}, fence, number, worker_id, worker_name, started_at, ended_at, outcome, \
             error_chain, bytes_done) \
             SELECT t.id, t.fence, t.attempt, (SELECT w.id FROM worker w WHERE w.name = t.claimed_by), \
                 coalesce(t.claimed_by, 'unknown'), coalesce(t.claimed_at, now_us()), now_us(), 'lost_worker', $1, \
                 t.bytes_done \
             FROM {table} t WHERE t.id IN ({names}) AND {status} IN ('pending', 'scheduled', 'in_progress') \
                 AND t.fence > 0 AND t.attempt > 0 \
                 AND NOT EXISTS (SELECT 1 FROM attempt a WHERE a.{reference} = t.id AND a.fence = t.fence)",
            reference = kind.reference(),
            table = kind.table(),
            names = any_of(2, ids.len()),
            status = off_index("t.status")
        );
        tx.execute(text, &with_ids(args![chain], ids.iter().copied())).await?;
        Ok(())
    }

    /// A hint that the queue of this work has something to do.
    pub(super) async fn hint(&self, tx: &mut Tx) -> Result<(), StoreError> {
        tx.execute(
            "INSERT INTO outbox (location_id, operation, work_id, priority) VALUES ($1, $2, $3, $4)",
            args![self.queue, Kind::of(self.work).operation().as_str(), self.work.number(), self.priority],
        )
        .await?;
        Ok(())
    }
}
