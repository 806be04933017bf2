//! All SQL of the control plane, and the document of record of what its databases hold.
//!
//! # Goals
//!
//! - The row is the truth. Losing the broker, every worker and every manager at any moment loses time, no data and no
//!   status.
//! - No row says that data are somewhere unless a record says who read them there, how, and that size and digest were
//!   those registered. Code cannot lie about it: the database refuses.
//! - A process that was stopped and goes on later changes nothing that its successor owns.
//! - Every planning action may be done by several managers at once; the second one's copy fails on a unique key.
//! - SQLite and PostgreSQL keep the same rules; `tests/store_conformance.rs` holds both to them.
//!
//! # Non-goals
//!
//! - The bytes of packages, paths on a machine, commands and credentials. A row chooses by *name*; what a name means on
//!   a machine stands in that machine's settings. Whoever may write here cannot run a command there.
//! - Protection from the database's owner, or from whoever can write the SQLite file.
//! - The tables of the operations database: names and words are shared, the schema is not, and is never installed there.
//!
//! # What is persisted, and by whom
//!
//! | table | holds | written by |
//! |---|---|---|
//! | `site`, `peer`, `data_location`, `data_transfer_route` | the topology; also pause flags, free space, the breaker | `topology apply` (owner); flags by operators and managers; free space by the worker that has the location, with its heartbeat |
//! | `worker_login` | which PostgreSQL login reaches which locations | `topology apply` |
//! | `raw_data_package`, `package_digest`, `raw_data_package_metadata` | what exists, what it must be, and what is said of it | registration; state by managers and by what becomes of copies |
//! | `archive_requirement` | which archives a package's policy asks for, as chosen when its first archive work was planned | managers |
//! | `intake` | plain INSERTs of other programs, see [Intake](#intake) | submitters; decided by managers |
//! | `transfer_request` | the wish that a package be somewhere; later its bundle | registration, managers |
//! | `data_transfer_package` | a bundle: sums of what it holds, never changed | managers |
//! | `data_transfer`, `long_term_archive_transfer` | work: one hop of a bundle, one package's way into an archive | made by managers; claimed and ended by workers |
//! | `physical_copy` | what lies where, how far it is trusted, when it was last looked at in an archive, and when the archive planner looks at it next | registration, workers; the planner's time by managers |
//! | `verification_record` | what was read where, how, by whom, and what it should have been; view `proof`: those that prove it | workers |
//! | `attempt` | one row for each fence that ended: who, when, outcome, error chain, log (the operations database's `data_transfer_log`) | workers; managers for lost ones |
//! | `event` | who moved what from which state to which, when, why | triggers alone |
//! | `outbox`, `dead_letter` | hints to publish; messages that nobody understood | with the state that caused them; the relay; consumers |
//! | `worker`, `worker_queue` | who is there, with how many slots, for which queues | workers |
//! | `round_robin` | whose turn it is | managers |
//! | `rate_limit` | how much may start, and what is left of it | `topology apply`; claims |
//! | `schema_version` | applied migrations with their digests | `db migrate` |
//!
//! Not persisted: progress below a chunk (the receiver's journal has it), what the broker holds, metrics.
//!
//! # Time
//!
//! Columns `*_at` and `*_until` are microseconds since the Unix epoch, by `now_us()`: `clock_timestamp()` on PostgreSQL,
//! the machine's wall clock on SQLite. Somebody may set such a clock by an hour, so nothing that lives is judged by it:
//!
//! - **SQLite.** Leases and heartbeats go by `CLOCK_BOOTTIME` together with the boot id, both given by the process
//!   ([`LeaseClock`]): nobody can set that clock, and a lease of another boot is over.
//! - **PostgreSQL.** Each claim, renewal and heartbeat changes its row (`fence` and `renewals`, `boot_nonce` and
//!   `heartbeats`) and says how long it lasts (`lease_us`). A manager that saw a row unchanged for that long on its own
//!   `CLOCK_BOOTTIME` calls it lost, and so does a worker that wants the name of a silent one (`watch.rs`). A look that
//!   comes late, because the database was away, counts for half a lease at most. `lease_until` and `heartbeat_until` are
//!   for people there.
//! - **Waits.** Whatever waits for a time is also due when that time lies further ahead than any wait may be
//!   ([`RetryPolicy::LONGEST`](crate::model::RetryPolicy::LONGEST), the breaker's longest pause, the planner's next
//!   look): then the clock was set back. A clock that is set forward makes waits short, once.
//!
//! # Why each constraint holds
//!
//! - **Names of queues stay.** `queue_stem` is `{site_short_name}_{data_location_name}` and unique by itself: the sites
//!   `a` and `a_b` could else share a queue. Short names and location names never change, because messages and
//!   settings of machines speak them.
//! - **One way.** At most one active route has the same origin and destination (site and location). A location of a
//!   route belongs to the route's site (foreign key over both columns). A relay names a third site; its legs are routes.
//! - **A package is what it was registered as.** Its key is origin location, path and identity (the blake3 digest of a
//!   file, the tree digest of a tree); size, path and digests never change. Other bytes at the same path are another
//!   package. A request needs the identity in `package_digest`.
//! - **Groups and lanes.** `planning_group` and `lane` are computed by the database from what a request or a piece of work
//!   is: what may share a bundle, and what runs or is stopped together. The planner and the scheduler step from one to
//!   the next in an index, so that a look costs as much as there are groups and lanes, not rows.
//! - **Settled once.** `settled` says that a manager has drawn the consequences of an end, in the same transaction; only
//!   what is over can be settled, and a retry takes it back.
//! - **Planned once.** A request is unique for package and destination; it goes into a bundle once. A transfer needs a
//!   bundle whose count and sum are right, and from then on the bundle is closed. One live transfer exists for each
//!   bundle and hop (`data_transfer_live`); a failed one makes room for a failover.
//! - **Hops in order.** Hop n waits for hop n-1 of the same bundle, which ends where it begins. `ready` becomes true by
//!   the completion of that hop, by a trigger, and `scheduled` needs `ready`.
//! - **Legal changes.** Exactly the pairs that [`Status::on`](crate::model::Status::on) and
//!   [`PackageState::on`](crate::model::PackageState::on) know. Work starts pending and untried.
//! - **Fence.** A claim raises it by one, nothing else changes it, nothing lowers it. `attempt` rises only with it. A
//!   swept row may return to its last owner (a late renewal, a late outcome) while the fence is still his and has no
//!   `attempt` row: an attempt that ended does not come back, and one fence ends once. So a lost attempt is written when
//!   somebody claims anew, before the fence rises, not when the lease runs out.
//!   `claimed_by` names whose the fence is, also after the lease was lost; a renewal or an outcome of another name is
//!   refused, because a database that was restored gives a fence twice.
//! - **Losses.** A sweep counts a lost lease in `losses`, and the work fails when too many come in a row; an outcome, a
//!   renewal after all and a person's retry count anew. With that failure the lost attempt is written, and no late word of it counts.
//! - **Limits.** `max_concurrent` and `rate_limit` hold for all workers together. On PostgreSQL a claim counts anew under
//!   an advisory lock for each route and location that has a limit, over all rows (`running_on_route`,
//!   `running_at_location`), also those that its login does not see.
//! - **Owner and lease** are there exactly while the status is `in_progress`.
//! - **Fenced evidence.** A `verification_record` or `attempt` of work needs that work's present fence, and the work
//!   not over. On PostgreSQL the look locks the row until the commit.
//! - **Proof.** `completed` needs, for every package of the bundle, a present and verified copy at the destination and a
//!   `verification_record` of this very attempt (its work and fence) there, whose expected and found digest equal the
//!   registered one of that algorithm and whose sizes equal the package's: what an earlier attempt found may have changed
//!   since. `verified` needs an equal record of that place, whoever's.
//!   `registered` is a word for the copy at the origin. `archived` needs at least one required archive, and the proof in each.
//! - **Proof in an archive** is a reading of what rests there (`read_back`, `scrub`): what was only received, or was there
//!   before, proves nothing of the medium. One that a cache may have answered counts where the location says
//!   `cached_read_back_counts`; one for which the archive system vouches by its own checksum where `on_tape_readback` is
//!   `checksum` or `none`, and one that was not made at all, with its reason, where it is `none`. A later record of other
//!   bytes takes every earlier one with it. `completed` needs the `read_back` of this very attempt.
//! - **Archived no longer than true.** A required copy that is not present and verified any more takes its package out of
//!   `archived`, to `failed` with the reason, by a trigger and so in the same commit, whoever writes it; the last one
//!   that is good again brings it back. A worker's login needs no right on the package for that.
//! - **What was required stays.** `archive_requirement` is only inserted, and not for a package that is archived: a
//!   policy that asked for less afterwards would make `archived` cheaper, and one that asked for more would make it a lie.
//! - **Planned once for each archive.** One live archive transfer for package and archive
//!   (`long_term_archive_transfer_live`), and one that did not fail for each repair (`long_term_archive_transfer_once`; `repair` 0 is the first way in, n the nth
//!   time that what lies there is replaced), so that a second manager's copy fails also when the first one's is over.
//! - **Looked at when new.** `archive_due_at` is 0 when a copy is new, and becomes so by a trigger when it is called
//!   something else; the planner's index holds nothing more. `checked_at` is there for copies in archives alone, and gives the oldest evidence first.
//! - **Insert only.** `event`, `verification_record`, `attempt`, `package_digest` and `archive_requirement` are never
//!   updated, deleted, replaced or truncated; packages, work and copies are never deleted.
//! - **A reason for every end.** `failed` has a class and a text, `completed` has none; both have their time.
//! - **Every change has an event.** A trigger writes it from `changed_by` and `change_reason`, which an update of a state
//!   sets with it; no code can forget it. On PostgreSQL one trigger writes those of a whole statement
//!   for packages, work and copies.
//!
//! # Intake
//!
//! Another program hands packages over by one INSERT, with the login of role `ccat_xfer_submitter`:
//!
//! ```sql
//! INSERT INTO ccat_xfer.intake (origin_site, origin_location, destination_site, destination_location,
//!     relative_path, kind, size_bytes, file_count, digest, priority)
//! VALUES ('ccat', 'output_buffer', 'cologne', 'input_buffer', convert_to('2026/11/run7.tar', 'UTF8'), 'file',
//!     1048576, 1, '<64 hexadecimal digits of b3sum>', 4);
//! ```
//!
//! `policy` may be given: `transfer_only`, `site_archives` (the default: the archives of the sites where the package lies and
//! shall go), `one_archive` or `every_archive`; so may `metadata`, one JSON object. Sites are named by name or short
//! name. `destination_location` may be NULL: the best buffer of that site; it is never an archive. `digest` is BLAKE3
//! for a file, the tree digest for a tree; `sha256` may stand beside it. A manager registers the row like
//! `submit` and sets `state` to `accepted` with `package_id`, or to `refused` with `refusal`. The same package twice is
//! accepted twice and moved once.
//!
//! # Roles (PostgreSQL)
//!
//! `db migrate` makes five roles without login and states their rights anew each time (`migrations/postgres/roles.sql`).
//! An administrator grants one to each daemon's login: `GRANT ccat_xfer_worker TO cologne_worker`.
//!
//! | role | reaches |
//! |---|---|
//! | `ccat_xfer_owner` | everything; migrations and `topology apply` |
//! | `ccat_xfer_manager` | all rows; cannot raise a fence, give evidence or change the topology |
//! | `ccat_xfer_worker` | work in the queues of its login's locations (`worker_login`) and what belongs to it; of that the columns of claim, renewal and end |
//! | `ccat_xfer_submitter` | registers; sees its own rows of `intake` only |
//! | `ccat_xfer_reader` | reads everything |
//!
//! A pushing worker writes the copy and the evidence at the *destination*: it may, while it has claimed work to there.
//! A look through an archive ([`Store::record_check`]) is written with the login that works there;
//! [`Store::restore`] gives evidence without work, and needs the owner's.
//! Trigger functions run with the owner's rights, so that proofs are looked for in all rows.
//!
//! # Transactions
//!
//! SQLite writes begin IMMEDIATE on one connection, so that two of them never meet half-way; reads have connections of
//! their own. PostgreSQL writes are READ COMMITTED and rely on compare-and-set, unique keys and row locks; reads are
//! one snapshot. A connection lost during a commit leaves open what happened: whoever cares reads the row again.
//!
//! No statement is waited for longer than 12 s: a server that stands still, or a network that swallows, is
//! [`StoreError::Unavailable`] like one that refuses. Whoever leaves waits for less.
//!
//! Locks are taken in one order: work, then advisory locks (route, locations by number), then the route, then limits by
//! scope. Whoever waits for changes uses [`Store::wakeups`].

mod archiving;
mod claim;
mod dead_letters;
mod error;
mod explain;
mod fault;
mod finish;
mod holdings;
mod lease;
mod limits;
mod list;
mod many;
mod names;
mod network;
mod operate;
mod outbox;
mod plan;
mod postgres;
mod registration;
mod restore;
mod schedule;
mod schema;
mod scrub;
mod settle;
mod show;
mod sql;
mod sqlite;
mod sweep;
mod topology;
mod wakeups;
mod watch;
mod work;
mod workers;

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use sqlx::PgPool;

use self::sql::{Row, Tx, Value, args, in_time};
use crate::model::Timestamp;

pub use archiving::{ArchiveLimits, ArchivesPlanned};
pub use claim::{ArchiveTerms, Claim, Found, Member, OpenQueue, PeerAddress, Place, RouteTerms};
pub use dead_letters::DeadLetter;
pub use error::StoreError;
pub use explain::{Explanation, LastError};
pub use finish::Recorded;
pub use holdings::{
    ArchiveFilter, ArchiveRow, ArchiveSettings, CopyRow, Dossier, LastRecord, PackageStanding, Sighting,
};
pub use lease::Renewal;
pub use list::{MOST_ROWS, PackageFilter, PackageRow, Page, WorkFilter, WorkRow};
pub use operate::{SwitchFilter, Switched, Touched, TouchedWork};
pub use outbox::{Hint, OutboxBatch};
pub use plan::{PlanLimits, Planned};
pub use registration::{Decided, Destination, MOST_METADATA, NewPackage, Registered, checked_metadata};
pub use restore::{Restored, RestoredCopy, RestoredPackage};
pub use schedule::{HINTS_PER_SLOT, Scheduled};
pub use schema::Migrated;
pub use scrub::{CheckCursor, CopyToCheck, Finding, Looked};
pub use settle::Settled;
pub use show::{AttemptRow, EventRow, PackageDetail, RecordRow, RequestRow, WorkDetail};
pub use sweep::{SweepRules, Swept};
pub use topology::{Apply, ApplyError};
pub use wakeups::{Wakeup, Wakeups};
pub use work::Kind as WorkKind;
pub use workers::{RunningSpan, WorkerProfile, WorkerSession, WorkerView};

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A file of this machine.
    Sqlite,
    /// A server.
    Postgres,
}

/// The control plane's database. Clones share its connections.
#[derive(Clone)]
pub struct Store {
    db: Db,
    shared: Arc<wakeups::Shared>,
    retry_percent: u32,
}

#[derive(Clone)]
enum Db {
    Sqlite(sqlite::Sqlite),
    Postgres(PgPool),
}

/// What leases are measured with; see the module doc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseClock {
    /// The boot id on SQLite, nothing on PostgreSQL.
    pub boot: String,
    /// Microseconds since that boot on SQLite; `None` on PostgreSQL, where no clock is compared with another one's.
    pub now_us: Option<i64>,
    /// Microseconds on this machine's own clock, which nobody can set: for how long rows were seen unchanged.
    pub steady_us: i64,
}

/// For connections to become idle and be closed.
const GOODBYE: Duration = Duration::from_secs(5);

impl Store {
    /// Connects to `sqlite:PATH` or `postgres://USER@HOST/DATABASE` and refuses a schema that is not this program's. An
    /// SQLite file is made, and brought to this version, if need be: the embedded default has no administrator.
    ///
    /// # Errors
    /// The address cannot be used, the database cannot be reached, or the schema is missing, older, newer or different.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let store = Self::connect(url).await?;
        if store.backend() == Backend::Sqlite {
            match store.check().await {
                Err(StoreError::SchemaMissing | StoreError::SchemaOlder { .. }) => {
                    store.migrate().await?;
                }
                other => other?,
            }
        }
        store.check().await?;
        Ok(store)
    }

    /// Connects without looking at the schema: what `db migrate` begins with.
    ///
    /// # Errors
    /// The address cannot be used, or the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let db = if url.starts_with("sqlite:") {
            Db::Sqlite(sqlite::open(&sqlite::path_of(url)?).await?)
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Db::Postgres(postgres::open(url).await?)
        } else {
            // Not shown: it may hold a password all the same.
            return Err(StoreError::Address(
                "the address of a database is sqlite:PATH or postgres://USER@HOST/DATABASE".into(),
            ));
        };
        Ok(Self { db, shared: Arc::new(wakeups::Shared::new()), retry_percent: 100 })
    }

    /// The same database, where a failed attempt is followed after so many percent of the wait that the table of
    /// [`RetryPolicy`](crate::model::RetryPolicy) says.
    #[must_use]
    pub fn with_retry_percent(self, retry_percent: u32) -> Self {
        Self { retry_percent, ..self }
    }

    /// Which database it is.
    pub const fn backend(&self) -> Backend {
        match self.db {
            Db::Sqlite(_) => Backend::Sqlite,
            Db::Postgres(_) => Backend::Postgres,
        }
    }

    /// The database's time.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        let mut tx = self.read().await?;
        let row = tx.row("SELECT now_us() AS now", args![]).await?;
        row.ok_or_else(|| StoreError::Corrupt("no time".into()))?.time("now")
    }

    /// What leases are measured with, read now. A worker counts its lease from before it asks for it.
    pub fn lease_clock(&self) -> LeaseClock {
        let steady_us = sqlite::boot_time_us();
        match &self.db {
            Db::Sqlite(db) => LeaseClock { boot: db.boot.clone(), now_us: Some(steady_us), steady_us },
            Db::Postgres(_) => LeaseClock { boot: String::new(), now_us: None, steady_us },
        }
    }

    /// Closes the connections once they are idle. A server that does not answer is left after 5 s.
    pub async fn close(&self) {
        let closing = async {
            match &self.db {
                Db::Sqlite(db) => {
                    db.reader.close().await;
                    db.writer.close().await;
                }
                Db::Postgres(pool) => pool.close().await,
            }
        };
        let _ = tokio::time::timeout(GOODBYE, closing).await;
    }

    /// A transaction that may write.
    pub(crate) async fn write(&self) -> Result<Tx, StoreError> {
        Ok(match &self.db {
            Db::Sqlite(db) => Tx::Sqlite(in_time(db.writer.begin_with("BEGIN IMMEDIATE")).await?),
            Db::Postgres(pool) => Tx::Postgres(in_time(pool.begin()).await?),
        })
    }

    /// One question by itself, without the round trips of a transaction.
    pub(crate) async fn ask(&self, text: impl Into<Cow<'static, str>>, args: &[Value]) -> Result<Vec<Row>, StoreError> {
        match &self.db {
            Db::Sqlite(db) => sql::ask_sqlite(&db.reader, text.into(), args).await,
            Db::Postgres(pool) => sql::ask_postgres(pool, text.into(), args).await,
        }
    }

    /// A transaction that reads one snapshot. It need not be committed.
    pub(crate) async fn read(&self) -> Result<Tx, StoreError> {
        Ok(match &self.db {
            Db::Sqlite(db) => Tx::Sqlite(in_time(db.reader.begin()).await?),
            Db::Postgres(pool) => {
                Tx::Postgres(in_time(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")).await?)
            }
        })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the address: it may hold a password.
        f.debug_struct("Store").field("backend", &self.backend()).finish_non_exhaustive()
    }
}
