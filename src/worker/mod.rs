//! The daemon that moves data (`transfer_files_bbcp` and `send_data_to_long_term_archive` as they were called): claims work
//! of its locations' queues, runs the engine towards the other site's endpoint or puts packages into archives
//! ([`Archiving`]), compares what arrived with what was registered, and writes the outcome.
//!
//! **What a worker trusts.** The row says *what*, by names; what a name means here stands in this machine's settings
//! ([`Config::places`]). Whoever can write the database reaches no path outside those roots, runs no command, and makes the
//! worker talk to no key other than the one of the location's peer.
//!
//! **Names at the other end.** The endpoint's location is called like the stem of the location's queues,
//! `{site_short_name}_{data_location_name}`. A package keeps its path: what lies at `2026/run7` below the origin's root lies
//! at `2026/run7` below the destination's.
//!
//! **What is compared.** The receiver is told which digest a file must have, and publishes nothing else under its name. A
//! tree's digest is known once all of it is there: one whose origin changed since it was registered lies at the destination
//! under its name, is no verified copy, and its transfer fails as source_changed.
//!
//! **Bundles.** One package that is gone, was changed, or finds its name taken decides for the whole transfer, which fails
//! with its class. The others of the bundle are moved all the same: their copies and records are written with that outcome,
//! and the next attempt finds them equal. Any other failure (the link, a full disk, settings) ends the attempt where it is.
//!
//! **Order of things.** A hint (or the poll) and free slots -> one claim for as many -> the hint is acknowledged -> the
//! attempts run, their leases are renewed beside them -> an outcome is written to this machine's disk and then, with others
//! that end now, to the database, and stays on the disk while the database is away. Nothing new is claimed while such an
//! outcome waits.
//!
//! **Ends of an attempt.** Overtaken: nothing is written. Cancelled: the engine is stopped at once. Draining: it may finish
//! within a limit, then it is handed back. A panic is caught and recorded with its backtrace as class bug; the daemon
//! goes on. A lease that cannot be renewed stops no transfer: the receiver's fence says who may write. It stops a way into
//! an archive, which has no receiver, and that is handed back.
//!
//! **Heartbeat.** With each one the worker reports what its slots run, how many outcomes wait on its disk, and how many bytes
//! are free at its locations: by these the planner leaves a full buffer.

mod archiving;
mod collector;
mod duties;
mod failure;
mod fault;
mod figures;
mod finish;
mod gauge;
mod intake;
mod lasting;
mod lease;
mod origin;
mod runner;
mod scrub;
mod slots;
mod spool;
mod stop;
mod together;

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    broker::Broker,
    disk::Root,
    engine::Options,
    model::{Evidence, Operation, QueueName, Timestamp, Work, WorkerState},
    store::{Claim, LeaseClock, RunningSpan, Store, StoreError, WorkerProfile, WorkerSession},
    task::{Backoff, Delays, Gate},
    telemetry::{health::Health, metrics::Metrics},
};

#[cfg(feature = "faults")]
pub use self::fault::{Moment, Plan, Planted};
pub use self::{
    archiving::Archiving,
    collector::{Meter, Phase},
    duties::Duties,
    failure::Failure,
    runner::Transfers,
    scrub::{Scrubbed, scrub},
    spool::SpoolError,
};
use self::{
    figures::Figures,
    lasting::Lasting,
    slots::Slots,
    spool::Spool,
    stop::{Stop, Why},
    together::Together,
};

/// What a worker is and what it may do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, unique among all workers.
    pub name: String,
    /// The machine's name, for people.
    pub host: String,
    /// Attempts at once. Default 4.
    pub slots: u32,
    /// For how long a claim is believed without a renewal. Default 10 s; 120 s suits a worker behind a WAN.
    pub lease: Duration,
    /// Between renewals. Default 3 s.
    pub renew_every: Duration,
    /// Between looks for work that no hint told of. Default 2 s.
    pub poll: Duration,
    /// How long attempts may go on after SIGTERM before they are handed back. Default 60 s.
    pub drain_limit: Duration,
    /// Folder of outcomes that could not be written yet.
    pub spool: PathBuf,
    /// The locations that are served, by the stem of their queues.
    pub places: BTreeMap<String, Place>,
    /// The archives that are served, by the stem of their queues, each with its attempts at once, besides the limit of the
    /// whole worker.
    pub archives: BTreeMap<String, Option<u32>>,
    /// How the engine runs; job, fence and the route's terms are set for each attempt.
    pub options: Options,
}

/// What a location's name means on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder that the paths of packages are relative to.
    pub root: PathBuf,
    /// Attempts of its queue at once, besides the limit of the whole worker.
    pub slots: Option<u32>,
}

/// What is done with claimed work. The worker around it claims, renews, records and drains, whatever the work is.
#[async_trait]
pub trait Runner: fmt::Debug + Send + Sync {
    /// Clears up what processes of this worker's name left. Called once it is theirs no more, before the first claim, and waits
    /// for nothing.
    async fn begin(&self) {}

    /// Bytes that the archive of this stem may still take, if it can tell.
    async fn free_bytes(&self, _archive: &str) -> Option<u64> {
        None
    }

    /// Does all that a claim asks for, and counts verified bytes in `meter`. Ends soon after `cancel`.
    async fn run(&self, claim: &Claim, meter: &Meter, cancel: &CancellationToken) -> Attempt;
}

/// How an attempt ended, as far as its runner can tell.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// Nothing, if every package is where it should be.
    pub failure: Option<Failure>,
    /// What was verified on the way.
    pub evidence: Vec<Evidence>,
    /// One line for each thing that happened, for the attempt's history.
    pub log: Vec<String>,
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The database refused the worker itself: its name, its queues or its login.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of outcomes cannot be used, so an outcome could be lost.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What all tasks of a worker share.
#[derive(Debug)]
struct Shared {
    config: Config,
    runner: Arc<dyn Runner>,
    store: Store,
    session: WorkerSession,
    spool: Spool,
    together: Together,
    slots: Slots,
    running: Mutex<Vec<Running>>,
    figures: Figures,
    gate: Gate,
}

/// One attempt, as others see it.
#[derive(Clone, Debug)]
struct Running {
    span: RunningSpan,
    meter: Meter,
    stop: Stop,
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        // A list is whole between two statements.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops every attempt.
    fn stop_all(&self, why: Why) {
        for running in self.running().iter() {
            running.stop.now(why);
        }
    }
}

/// Runs a worker until `gate` drains and its attempts have ended.
///
/// # Errors
/// The database refuses it, another live worker has its name, or its spool cannot be used.
pub async fn run(
    config: Config,
    runner: Arc<dyn Runner>,
    store: Store,
    broker: Option<Arc<dyn Broker>>,
    health: &Health,
    metrics: &Metrics,
    gate: &Gate,
) -> Result<(), WorkerError> {
    let spool = Spool::open(&config.spool)?;
    let Some(session) = register(&config, &store, gate).await? else { return Ok(()) };
    spool.adopt()?;
    tracing::info!(
        worker = config.name,
        slots = config.slots,
        queues = %queues(&config).iter().map(|(queue, _)| queue.to_string()).collect::<Vec<_>>().join(", "),
        "the worker is registered"
    );
    let slots = Slots::new(config.slots, queues(&config));
    let shared = Arc::new(Shared {
        config,
        runner,
        store,
        session,
        spool,
        together: Together::default(),
        slots,
        running: Mutex::default(),
        figures: Figures::default(),
        gate: gate.clone(),
    });
    Figures::register(&shared, metrics);
    shared.runner.begin().await;
    let name = |task: &str| format!("worker {}: {task}", shared.config.name);
    let limit = (shared.config.poll * 10).max(Duration::from_secs(60));
    let pause = shared.config.renew_every;
    let (here, pulse) = (Arc::clone(&shared), health.heartbeat(name("spool"), limit));
    let replay = Lasting::start(name("spool"), pause, move || spool::replay(Arc::clone(&here), pulse.clone()));
    let (here, pulse) = (Arc::clone(&shared), health.heartbeat(name("heartbeat"), limit));
    let hearts = Lasting::start(name("heartbeat"), pause, move || heartbeats(Arc::clone(&here), pulse.clone()));
    intake::run(&shared, broker, health.heartbeat(name("intake"), limit)).await;
    drain(&shared, hearts).await;
    replay.end().await;
    if shared.spool.waiting() > 0 {
        tracing::warn!(waiting = shared.spool.waiting(), "outcomes stay spooled; the next start writes them");
    }
    Ok(())
}

/// The queues that a worker serves, each with its attempts at once.
fn queues(config: &Config) -> Vec<(QueueName, Option<u32>)> {
    let places = config.places.iter().map(|(stem, place)| (queue(stem), place.slots));
    let archives = config.archives.iter().map(|(stem, slots)| (archive_queue(stem), *slots));
    places.chain(archives).collect()
}

/// The queue of a location that data is moved from or to.
fn queue(stem: &str) -> QueueName {
    QueueName::new(stem, Operation::DataTransfer)
}

/// The queue of an archive.
fn archive_queue(stem: &str) -> QueueName {
    QueueName::new(stem, Operation::LongTermArchiveTransfer)
}

/// The queue that a claim counts for.
fn queue_of(claim: &Claim) -> QueueName {
    let stem = QueueName::stem_of(&claim.own().site_short_name, &claim.own().name);
    match claim.work {
        Work::Transfer(_) => queue(&stem),
        Work::Archive(_) => archive_queue(&stem),
    }
}

/// Registers, waiting for a database that is away, and for the lease of a worker of the same name that was killed.
async fn register(config: &Config, store: &Store, gate: &Gate) -> Result<Option<WorkerSession>, StoreError> {
    let profile = WorkerProfile {
        name: config.name.clone(),
        boot_nonce: uuid::Uuid::now_v7().to_string(),
        host: config.host.clone(),
        process_id: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: config.slots,
        lease: config.lease,
        queues: queues(config),
    };
    // On PostgreSQL its silence is seen for a whole lease from now on.
    let patience = Instant::now() + config.lease * 2;
    let mut delays = AWAY.delays();
    while !gate.is_draining() {
        let error = match store.register_worker(&profile, &store.lease_clock()).await {
            Ok(session) => return Ok(Some(session)),
            Err(error @ StoreError::WorkerAlive { .. }) if Instant::now() < patience => error,
            Err(error) if is_away(&error) => error,
            Err(error) => return Err(error),
        };
        complain(&error, &mut delays, "the worker cannot register yet");
        // Often, where it is about a silent namesake: on PostgreSQL that one's silence has to be seen.
        wait(gate, delays.next_delay().min(config.renew_every)).await;
    }
    Ok(None)
}

/// Tells the database that the worker lives, and what it runs.
async fn heartbeats(shared: Arc<Shared>, pulse: crate::telemetry::health::Heartbeat) {
    let mut every = tokio::time::interval(shared.config.renew_every);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut delays, mut looking) = (AWAY.delays(), Looking::default());
    loop {
        every.tick().await;
        let state = if shared.gate.is_draining() { WorkerState::Draining } else { WorkerState::Active };
        let now = |r: &Running| RunningSpan {
            bytes_done: r.meter.bytes(),
            phase: r.meter.phase().word().to_owned(),
            ..r.span.clone()
        };
        let spans: Vec<_> = shared.running().iter().map(now).collect();
        match shared.store.heartbeat(&shared.session, &shared.store.lease_clock(), state, &spans).await {
            Ok(()) => {
                delays.reset();
                pulse.found_nothing();
                report(&shared, &mut looking).await;
            }
            Err(error @ StoreError::WorkerReplaced { .. }) => {
                tracing::error!(%error, "stopping: whatever runs here belongs to the other process now");
                shared.stop_all(Why::Overtaken);
                shared.gate.drain();
                return;
            }
            Err(error) => {
                complain(&error, &mut delays, "the worker's heartbeat was not written");
                // Not slower than usual: the name is lost when the lease is.
                delays.next_delay();
            }
        }
    }
}

/// What is free at the locations, each being looked at by a task of its own: a dead mount holds up one thread, however long it
/// is dead, and neither a heartbeat nor what is told of the others.
type Looking = BTreeMap<QueueName, JoinHandle<Option<u64>>>;

/// Tells the planner what is free here, and operators what waits. Nothing depends on one report: the next one comes soon.
async fn report(shared: &Arc<Shared>, looking: &mut Looking) {
    look(shared, looking);
    let (mut room, limit) = (Vec::new(), tokio::time::Instant::now() + ROOM_LIMIT);
    for (queue, look) in looking.iter_mut() {
        if let Ok(looked) = tokio::time::timeout_at(limit, look).await {
            room.push((queue.clone(), looked.unwrap_or_default()));
        }
    }
    looking.retain(|queue, _| room.iter().all(|(looked, _)| looked != queue));
    let room: Vec<_> = room.into_iter().filter_map(|(queue, free)| Some((queue, free?))).collect();
    let spooled = u64::try_from(shared.spool.waiting()).unwrap_or(u64::MAX);
    if let Err(error) = shared.store.report(&shared.session, spooled, &room).await {
        tracing::debug!(%error, "free space was not reported");
    }
}

/// Begins to look where nobody looks yet. A location that is not there says nothing: whoever writes to it hears why.
fn look(shared: &Arc<Shared>, looking: &mut Looking) {
    for (stem, place) in &shared.config.places {
        let root = place.root.clone();
        let free = move || Root::open(&root).and_then(|root| root.free_bytes()).ok();
        looking.entry(queue(stem)).or_insert_with(|| tokio::task::spawn_blocking(free));
    }
    for stem in shared.config.archives.keys() {
        let (here, archive) = (Arc::clone(shared), stem.clone());
        let free = async move { here.runner.free_bytes(&archive).await };
        looking.entry(archive_queue(stem)).or_insert_with(|| tokio::spawn(free));
    }
}

/// After the gate has closed: lets attempts finish for a while, then hands back what is left.
async fn drain(shared: &Arc<Shared>, hearts: Lasting) {
    if !shared.running().is_empty() {
        say_goodbye(shared.store.drain_worker(&shared.session)).await;
    }
    let finished = tokio::select! {
        finished = tokio::time::timeout(shared.config.drain_limit, shared.slots.all_free()) => finished.is_ok(),
        () = shared.gate.stopped() => false,
    };
    if !finished {
        shared.stop_all(Why::Draining);
        // An engine that is stopped makes durable what it has; whoever takes longer is taken by its lease.
        let _ = tokio::time::timeout(HAND_BACK_LIMIT, shared.slots.all_free()).await;
    }
    // First: a heartbeat behind the goodbye would have the worker back.
    hearts.end().await;
    say_goodbye(shared.store.stop_worker(&shared.session)).await;
    tracing::info!(worker = shared.config.name, "the worker has stopped");
}

/// Tells the database that this worker leaves. It is told soon or never: whoever has to leave does not wait for a database
/// that is away, and the lease says the same later.
async fn say_goodbye(telling: impl Future<Output = Result<(), StoreError>>) {
    let error = match tokio::time::timeout(GOODBYE, telling).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    tracing::warn!(error, "the database does not know that this worker leaves");
}

/// Whether the database may be back later.
fn is_away(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::Conflict(_))
}

/// One line when trouble begins, and then only for whoever wants details: a database that is away for an hour must not
/// fill the disk with lines about it.
fn complain(error: &StoreError, delays: &mut Delays, what: &'static str) {
    if delays.failures() == 0 {
        tracing::warn!(%error, "{what}");
    } else {
        tracing::debug!(%error, failures = delays.failures(), "{what}");
    }
}

/// Sleeps, unless the gate drains first.
async fn wait(gate: &Gate, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = gate.draining() => {}
    }
}

/// This machine's wall clock, for records of the spool only; leases go by the database's clock.
fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// When a lease clock is read: before the request is sent, so that a lease never seems longer than it is.
fn clock(store: &Store) -> LeaseClock {
    store.lease_clock()
}

/// Between looks at a database that is away.
const AWAY: Backoff = Backoff { first: Duration::from_millis(200), limit: Duration::from_secs(5) };
/// For one word to the database when leaving.
const GOODBYE: Duration = Duration::from_secs(5);
/// For a look at what is free.
const ROOM_LIMIT: Duration = Duration::from_millis(500);
/// For an engine to stop and the row to be given back.
const HAND_BACK_LIMIT: Duration = Duration::from_secs(25);
