//! Who is there to work: registration, heartbeats, and what each one runs.
//!
//! A name belongs to one process at a time. Who holds it is told by a nonce that the process drew when it started; a
//! process that was stopped until another one took its name over finds that out with its next statement.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Backend, LeaseClock, Store, StoreError,
    sql::{Row, Tx, Value, args},
    watch::Look,
};
use crate::model::{Fence, LocationId, Operation, QueueName, Timestamp, Work, WorkerId, WorkerState};

/// What a worker says of itself when it starts.
#[derive(Clone, Debug)]
pub struct WorkerProfile {
    /// Its name, unique among all workers.
    pub name: String,
    /// Drawn by the process when it starts.
    pub boot_nonce: String,
    /// The machine's name.
    pub host: String,
    /// The process there.
    pub process_id: u32,
    /// The program's version.
    pub version: String,
    /// How much it runs at once.
    pub slots: u32,
    /// For how long it asks to be believed alive without being heard of; 1 s to 1 h.
    pub lease: Duration,
    /// The queues that it serves, each with how much of it may run here at once.
    pub queues: Vec<(QueueName, Option<u32>)>,
}

/// A registered worker: what its later statements prove themselves with.
#[derive(Clone, Debug)]
pub struct WorkerSession {
    pub(super) id: WorkerId,
    pub(super) name: String,
    pub(super) boot_nonce: String,
    pub(super) lease: Duration,
    pub(super) queues: Vec<(QueueName, LocationId)>,
    running: Arc<Mutex<BTreeSet<Work>>>,
}

impl WorkerSession {
    /// The row of this worker.
    pub const fn id(&self) -> WorkerId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queues that it serves.
    pub fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.iter().map(|(name, _)| name)
    }

    /// This worker runs it, whatever the row says: it does not claim it until [`Self::release`]. A lease that was lost
    /// while the database was away comes back with a renewal; claimed anew, the work would be begun a second time.
    pub fn hold(&self, work: Work) {
        self.running().insert(work);
    }

    /// It has ended here.
    pub fn release(&self, work: Work) {
        self.running().remove(&work);
    }

    pub(super) fn holds(&self, work: Work) -> bool {
        self.running().contains(&work)
    }

    fn running(&self) -> MutexGuard<'_, BTreeSet<Work>> {
        // A set is whole between two statements.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replaced(&self) -> StoreError {
        StoreError::WorkerReplaced { name: self.name.clone() }
    }
}

/// What one slot of a worker does, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningSpan {
    /// The work.
    pub work: Work,
    /// By which claim.
    pub fence: Fence,
    /// What it does at the moment: `connect`, `transfer`, `verify`, ...
    pub phase: String,
    /// Since when.
    pub since: Timestamp,
    /// Verified bytes at the destination so far.
    #[serde(default)]
    pub bytes_done: u64,
}

/// A worker as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerView {
    /// Its row.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub process_id: i64,
    /// Its version.
    pub version: String,
    /// What it says of itself, or `stopped` because it was not heard of.
    pub state: WorkerState,
    /// Whether it was heard of lately.
    pub alive: bool,
    /// How much it runs at once.
    pub slots: u64,
    /// When it registered.
    pub started_at: Timestamp,
    /// When it was last heard of.
    pub heartbeat_at: Timestamp,
    /// What it ran then.
    pub running: Vec<RunningSpan>,
    /// Outcomes on its own disk that the database has not taken yet, as it last said.
    pub spooled: u64,
    /// The queues that it serves.
    #[serde(serialize_with = "queue_names")]
    pub queues: Vec<QueueName>,
}

fn queue_names<S: serde::Serializer>(queues: &[QueueName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(queues.iter().map(ToString::to_string))
}

impl Store {
    /// Makes a worker known, with the queues that it serves from now on. The same process may do so again.
    ///
    /// # Errors
    /// [`StoreError::WorkerAlive`] while another process of this name is heard of; [`StoreError::NotFound`] for a queue
    /// of a location that does not exist.
    pub async fn register_worker(
        &self,
        profile: &WorkerProfile,
        clock: &LeaseClock,
    ) -> Result<WorkerSession, StoreError> {
        match self.try_register(profile, clock).await {
            // Somebody registered the name since it was looked for: now it is found.
            Err(StoreError::Duplicate(_)) => self.try_register(profile, clock).await,
            other => other,
        }
    }

    async fn try_register(&self, profile: &WorkerProfile, clock: &LeaseClock) -> Result<WorkerSession, StoreError> {
        let lease_us = micros(profile.lease);
        let asked = Instant::now();
        let mut tx = self.write().await?;
        let there = tx
            .row(
                with_lock(
                    &tx,
                    "SELECT id, boot_nonce, host, process_id, heartbeats, lease_us, \
                     (state <> 'stopped' AND heartbeat_boot = $2 AND (CAST($3 AS BIGINT) IS NULL \
                     OR heartbeat_until >= $3)) AS alive FROM worker WHERE name = $1",
                ),
                args![&profile.name, &clock.boot, clock.now_us],
            )
            .await?;
        let asked_us = micros(asked.elapsed());
        let id = match there {
            Some(row)
                if row.flag("alive")?
                    && row.text("boot_nonce")? != profile.boot_nonce
                    && !self.is_silent(&row, clock, asked_us)? =>
            {
                return Err(StoreError::WorkerAlive {
                    name: profile.name.clone(),
                    host: row.text("host")?,
                    process_id: row.int("process_id")?,
                });
            }
            Some(row) => {
                let id = row.int("id")?;
                tx.execute(
                    "UPDATE worker SET boot_nonce = $2, host = $3, process_id = $4, version = $5, state = 'active', \
                     slots = $6, lease_us = $7, running = '[]', started_at = now_us(), heartbeat_at = now_us(), \
                     heartbeat_boot = $8, heartbeat_until = coalesce($9, now_us()) + $7, \
                     heartbeats = heartbeats + 1 WHERE id = $1",
                    args![
                        id,
                        &profile.boot_nonce,
                        &profile.host,
                        profile.process_id,
                        &profile.version,
                        profile.slots,
                        lease_us,
                        &clock.boot,
                        clock.now_us
                    ],
                )
                .await?;
                tx.execute("DELETE FROM worker_queue WHERE worker_id = $1", args![id]).await?;
                id
            }
            None => tx
                .row(
                    "INSERT INTO worker (name, boot_nonce, host, process_id, version, state, slots, lease_us, \
                     heartbeat_at, heartbeat_boot, heartbeat_until) VALUES ($1, $2, $3, $4, $5, 'active', $6, $7, \
                     now_us(), $8, coalesce($9, now_us()) + $7) RETURNING id",
                    args![
                        &profile.name,
                        &profile.boot_nonce,
                        &profile.host,
                        profile.process_id,
                        &profile.version,
                        profile.slots,
                        lease_us,
                        &clock.boot,
                        clock.now_us
                    ],
                )
                .await?
                .ok_or_else(|| StoreError::Corrupt("an inserted worker has no id".into()))?
                .int("id")?,
        };
        let mut queues = Vec::with_capacity(profile.queues.len());
        for (queue, limit) in &profile.queues {
            let location = location_of(&mut tx, queue.stem()).await?;
            tx.execute(
                "INSERT INTO worker_queue (worker_id, location_id, operation, max_concurrent) VALUES ($1, $2, $3, $4)",
                args![id, location, queue.operation().as_str(), *limit],
            )
            .await?;
            queues.push((queue.clone(), location));
        }
        tx.commit().await?;
        Ok(WorkerSession {
            id: WorkerId::new(id),
            name: profile.name.clone(),
            boot_nonce: profile.boot_nonce.clone(),
            lease: profile.lease,
            queues,
            running: Arc::default(),
        })
    }

    /// Whether a worker that is not marked as stopped was not heard of for its lease. On SQLite its row says so; on
    /// PostgreSQL whoever asks often enough has seen it.
    fn is_silent(&self, row: &Row, clock: &LeaseClock, asked_us: i64) -> Result<bool, StoreError> {
        if self.backend() == Backend::Sqlite {
            return Ok(false);
        }
        let look = Look { began_us: clock.steady_us, ended_us: clock.steady_us.saturating_add(asked_us) };
        let mark = (row.text("boot_nonce")?, row.int("heartbeats")?);
        Ok(self.watches().names.is_lost(look, row.int("id")?, mark, row.int("lease_us")?))
    }

    /// Says that a worker lives, what it runs, and whether it still claims. One that was believed dead is back.
    ///
    /// # Errors
    /// [`StoreError::WorkerReplaced`] when another process has its name by now.
    pub async fn heartbeat(
        &self,
        session: &WorkerSession,
        clock: &LeaseClock,
        state: WorkerState,
        running: &[RunningSpan],
    ) -> Result<(), StoreError> {
        let spans = serde_json::to_string(running).map_err(|e| StoreError::Refused(e.to_string()))?;
        let mut tx = self.write().await?;
        let touched = tx
            .execute(
                "UPDATE worker SET state = $3, running = $4, heartbeat_at = now_us(), heartbeat_boot = $5, \
                 heartbeat_until = coalesce($6, now_us()) + $7, heartbeats = heartbeats + 1 \
                 WHERE id = $1 AND boot_nonce = $2",
                args![
                    session.id,
                    &session.boot_nonce,
                    state.as_str(),
                    spans,
                    &clock.boot,
                    clock.now_us,
                    micros(session.lease)
                ],
            )
            .await?;
        if touched == 0 {
            return Err(session.replaced());
        }
        tx.commit().await
    }

    /// Says what a worker's machine has: how many outcomes wait on its disk, and how many bytes are free at its
    /// locations, which the planner heeds. Locations that it does not serve are passed over.
    ///
    /// # Errors
    /// [`StoreError::WorkerReplaced`] when another process has its name by now.
    pub async fn report(
        &self,
        session: &WorkerSession,
        spooled: u64,
        free_bytes: &[(QueueName, u64)],
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let text = "UPDATE worker SET spooled = $3 WHERE id = $1 AND boot_nonce = $2";
        if tx.execute(text, &[session.id.into(), (&session.boot_nonce).into(), Value::size(spooled)?]).await? == 0 {
            return Err(session.replaced());
        }
        for (queue, free) in free_bytes {
            let Some((_, location)) = session.queues.iter().find(|(own, _)| own == queue) else { continue };
            let text = "UPDATE data_location SET free_bytes = $2, free_bytes_at = now_us() WHERE id = $1";
            tx.execute(text, &[(*location).into(), Value::size(*free)?]).await?;
        }
        tx.commit().await
    }

    /// A worker stops claiming and finishes what it has.
    ///
    /// # Errors
    /// [`StoreError::WorkerReplaced`] when another process has its name by now.
    pub async fn drain_worker(&self, session: &WorkerSession) -> Result<(), StoreError> {
        self.leave(session, "UPDATE worker SET state = 'draining' WHERE id = $1 AND boot_nonce = $2").await
    }

    /// A worker has gone in good order. Its name is free at once.
    ///
    /// # Errors
    /// [`StoreError::WorkerReplaced`] when another process has its name by now.
    pub async fn stop_worker(&self, session: &WorkerSession) -> Result<(), StoreError> {
        self.leave(
            session,
            "UPDATE worker SET state = 'stopped', running = '[]', heartbeat_at = now_us() \
             WHERE id = $1 AND boot_nonce = $2",
        )
        .await
    }

    async fn leave(&self, session: &WorkerSession, text: &'static str) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        if tx.execute(text, args![session.id, &session.boot_nonce]).await? == 0 {
            return Err(session.replaced());
        }
        tx.commit().await
    }

    /// All workers that ever registered, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn workers(&self, clock: &LeaseClock) -> Result<Vec<WorkerView>, StoreError> {
        let mut tx = self.read().await?;
        let rows = tx
            .rows(
                "SELECT id, name, host, process_id, version, state, slots, running, spooled, started_at, heartbeat_at, \
                 (state <> 'stopped' AND heartbeat_boot = $1 AND heartbeat_until >= coalesce($2, now_us())) AS alive \
                 FROM worker ORDER BY name",
                args![&clock.boot, clock.now_us],
            )
            .await?;
        let served = tx
            .rows(
                "SELECT q.worker_id, l.queue_stem, q.operation FROM worker_queue q \
                 JOIN data_location l ON l.id = q.location_id ORDER BY q.worker_id, l.queue_stem, q.operation",
                args![],
            )
            .await?;
        let mut views = rows.iter().map(view).collect::<Result<Vec<_>, _>>()?;
        for row in &served {
            let worker = WorkerId::new(row.int("worker_id")?);
            let queue = QueueName::new(row.text("queue_stem")?, row.word::<Operation>("operation")?);
            if let Some(view) = views.iter_mut().find(|v| v.id == worker) {
                view.queues.push(queue);
            }
        }
        Ok(views)
    }
}

fn view(row: &Row) -> Result<WorkerView, StoreError> {
    let running = row.text("running")?;
    Ok(WorkerView {
        id: WorkerId::new(row.int("id")?),
        name: row.text("name")?,
        host: row.text("host")?,
        process_id: row.int("process_id")?,
        version: row.text("version")?,
        state: row.word("state")?,
        alive: row.flag("alive")?,
        slots: row.size("slots")?,
        started_at: row.time("started_at")?,
        heartbeat_at: row.time("heartbeat_at")?,
        running: serde_json::from_str(&running).map_err(|e| StoreError::Corrupt(format!("running: {e}")))?,
        spooled: row.size("spooled")?,
        queues: Vec::new(),
    })
}

/// The location whose queues have this stem.
pub(super) async fn location_of(tx: &mut Tx, stem: &str) -> Result<LocationId, StoreError> {
    let row = tx.row("SELECT id FROM data_location WHERE queue_stem = $1", args![stem]).await?;
    let row = row.ok_or_else(|| StoreError::NotFound { what: "location with queues named", name: stem.to_owned() })?;
    Ok(LocationId::new(row.int("id")?))
}

/// The same SELECT with a lock on its row. SQLite has one writer, and no such words.
pub(super) fn with_lock(tx: &Tx, text: &'static str) -> std::borrow::Cow<'static, str> {
    match tx {
        Tx::Sqlite(_) => text.into(),
        Tx::Postgres(_) => format!("{text} FOR NO KEY UPDATE").into(),
    }
}

/// A length of time as the tables hold it.
pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
