//! Who waits for changes is woken by the commit that made them, instead of asking again and again. A wake-up may be
//! lost (a connection breaks, another process writes the SQLite file): whoever waits also looks by himself at times.
//!
//! On PostgreSQL triggers notify with the commit, whoever wrote; one connection of each process listens. On SQLite the
//! methods that write tell the waiters of their own process.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{PgPool, postgres::PgListener};
use tokio::{sync::watch, task::JoinHandle};

use super::{Db, Store, watch::Watch};

/// The channel of `pg_notify` in the schema.
const CHANNEL: &str = "ccat_xfer";
/// Between two tries to get a listening connection back.
const AGAIN: Duration = Duration::from_secs(1);

/// What there may be to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// Something to plan or to schedule.
    Pending,
    /// A hint to publish.
    Outbox,
    /// A running piece of work was cancelled.
    Cancel,
}

/// How often each kind happened. Only differences mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    pending: u64,
    outbox: u64,
    cancel: u64,
}

impl Counts {
    const fn count(&mut self, what: Wakeup) {
        match what {
            Wakeup::Pending => self.pending += 1,
            Wakeup::Outbox => self.outbox += 1,
            Wakeup::Cancel => self.cancel += 1,
        }
    }

    const fn of(&self, what: Wakeup) -> u64 {
        match what {
            Wakeup::Pending => self.pending,
            Wakeup::Outbox => self.outbox,
            Wakeup::Cancel => self.cancel,
        }
    }

    /// Notifications may have been missed: everybody looks.
    const fn count_all(&mut self) {
        self.pending += 1;
        self.outbox += 1;
        self.cancel += 1;
    }
}

/// What all clones of a store share beside its connections.
#[derive(Debug)]
pub(super) struct Shared {
    counts: watch::Sender<Counts>,
    listener: Mutex<Option<JoinHandle<()>>>,
    stale: AtomicU64,
    pub(super) watches: Mutex<Watches>,
}

/// What this process saw of leases and workers on PostgreSQL.
#[derive(Debug, Default)]
pub(super) struct Watches {
    /// Transfers and archive transfers, by fence and renewals.
    pub(super) work: [Watch<i64, (i64, i64)>; 2],
    /// Workers, by nonce and heartbeats, for the sweep.
    pub(super) workers: Watch<i64, (String, i64)>,
    /// Workers whose name another one in this process wants.
    pub(super) names: Watch<i64, (String, i64)>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            counts: watch::Sender::new(Counts::default()),
            listener: Mutex::new(None),
            stale: AtomicU64::new(0),
            watches: Mutex::default(),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let listener = self.listener.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = listener.take() {
            task.abort();
        }
    }
}

/// Waits for changes of some kinds.
#[derive(Debug)]
pub struct Wakeups {
    counts: watch::Receiver<Counts>,
    seen: Counts,
}

impl Wakeups {
    /// Waits until one of these happened since the last call that told of it, and tells which. Does not return when
    /// the store is gone.
    pub async fn next(&mut self, kinds: &[Wakeup]) -> Wakeup {
        loop {
            let now = *self.counts.borrow_and_update();
            if let Some(&kind) = kinds.iter().find(|&&kind| now.of(kind) != self.seen.of(kind)) {
                match kind {
                    Wakeup::Pending => self.seen.pending = now.pending,
                    Wakeup::Outbox => self.seen.outbox = now.outbox,
                    Wakeup::Cancel => self.seen.cancel = now.cancel,
                }
                return kind;
            }
            if self.counts.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Store {
    /// Wake-ups from now on. On PostgreSQL the first call begins to listen, with one connection of its own; needs a
    /// runtime.
    pub fn wakeups(&self) -> Wakeups {
        if let Db::Postgres(pool) = &self.db {
            let mut listener = self.shared.listener.lock().unwrap_or_else(PoisonError::into_inner);
            if listener.as_ref().is_none_or(JoinHandle::is_finished) {
                *listener = Some(tokio::spawn(listen(pool.clone(), self.shared.counts.clone())));
            }
        }
        let counts = self.shared.counts.subscribe();
        let seen = *counts.borrow();
        Wakeups { counts, seen }
    }

    /// Tells this process's waiters after a commit. PostgreSQL tells them itself.
    pub(crate) fn wake(&self, what: Wakeup) {
        if let Db::Sqlite(_) = self.db {
            self.shared.counts.send_modify(|counts| counts.count(what));
        }
    }

    /// How many statements of overtaken owners were refused in this process.
    pub fn stale_refusals(&self) -> u64 {
        self.shared.stale.load(Ordering::Relaxed)
    }

    /// What this process saw of leases and workers.
    pub(super) fn watches(&self) -> MutexGuard<'_, Watches> {
        // A note is whole between two statements.
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count_stale(&self) {
        self.shared.stale.fetch_add(1, Ordering::Relaxed);
    }
}

async fn listen(pool: PgPool, counts: watch::Sender<Counts>) {
    let mut was_told = false;
    loop {
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        let mut listener = match listening.await {
            Ok(listener) => {
                if std::mem::take(&mut was_told) {
                    tracing::info!("listening to the database works again");
                }
                listener
            }
            Err(sqlx::Error::PoolClosed) => return,
            Err(error) => {
                // Once for each time that it is away.
                if std::mem::replace(&mut was_told, true) {
                    tracing::debug!(%error, "cannot listen to the database yet");
                } else {
                    tracing::warn!(%error, "cannot listen to the database; changes are found by looking");
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        counts.send_modify(Counts::count_all);
        loop {
            match listener.try_recv().await {
                Ok(Some(note)) => counts.send_modify(|counts| match note.payload() {
                    "pending" => counts.count(Wakeup::Pending),
                    "outbox" => counts.count(Wakeup::Outbox),
                    "cancel" => counts.count(Wakeup::Cancel),
                    // A newer schema's word.
                    _ => counts.count_all(),
                }),
                // The connection was lost and came back; what was said meanwhile is lost.
                Ok(None) => counts.send_modify(Counts::count_all),
                Err(error) => {
                    tracing::debug!(%error, "the listening connection broke");
                    break;
                }
            }
            if pool.is_closed() {
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
