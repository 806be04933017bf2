//! The daemon that schedules (`transfer_transfer_packages` as it was called): decides what moves, and tells who may move it.
//!
//! | loop | does | how often, unless it is woken |
//! |---|---|---|
//! | intake | rows that other programs inserted become packages and requests | 2 s |
//! | planner | makes bundles and transfers, offers work to workers; after an offer it looks again soon | 2 s |
//! | archiver | makes archive work for packages that reached a site with archives, and repairs of copies that went bad | 2 s |
//! | settler | draws the consequences of what ended: states of packages, further archives, another buffer | 2 s |
//! | relay | publishes the outbox; a hint is marked sent once the broker has confirmed it, or another one of its queue in the same turn | 1 s |
//! | sweeper | offers again what lost its lease, hints again what nobody claimed, marks dead workers | 2 s |
//! | burial | keeps messages that nobody understood in a table | as they come |
//!
//! A manager plans transfers, archive work or both ([`Duties`]), the latter for one site alone where it is told so. Offers,
//! settling, sweeping and hints are the same for both kinds, and every manager does all of them.
//!
//! Any number of managers may run, on any machines; none of them leads. Every action is one transaction that the second
//! one's copy fails on, so all that two managers at once cost is a look.
//!
//! A loop that finds the database away waits with growing pauses and says so once; one that panics is started again. Each
//! has a heartbeat, so that `/health` names the one that stands still. SIGTERM ends each loop between two turns.

mod burial;
mod figures;
mod relay;
mod turns;

use std::{
    collections::BTreeSet,
    fmt, mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use self::{
    figures::{Figures, Task},
    turns::{Daemon, Turn},
};
use crate::{
    broker::Broker,
    model::{LocationId, PackageId, Work},
    store::{ArchiveLimits, PlanLimits, Planned, Scheduled, Store, SweepRules, Wakeup},
    task::Gate,
    telemetry::{health::Health, metrics::Metrics},
};

/// What a manager plans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duties {
    /// Bundles and transfers, also of what other programs inserted.
    pub transfers: bool,
    /// Archive work and repairs.
    pub archives: bool,
    /// Archive work at this site alone, by short name.
    pub site: Option<String>,
}

impl Default for Duties {
    fn default() -> Self {
        Self { transfers: true, archives: true, site: None }
    }
}

/// How a manager works. The defaults suit every size that was measured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name, for the history of what it does.
    pub name: String,
    /// Between looks for something to plan, unless woken. Default 2 s.
    pub plan_every: Duration,
    /// Between sweeps. Default 2 s.
    pub sweep_every: Duration,
    /// Between looks at the outbox, unless woken. Default 1 s.
    pub relay_every: Duration,
    /// How bundles are cut.
    pub limits: PlanLimits,
    /// What it plans. Default all.
    pub duties: Duties,
    /// How much one look for archive work does.
    pub archive_limits: ArchiveLimits,
    /// What a sweep does.
    pub rules: SweepRules,
    /// How long sent hints stay in the outbox. Default 1 h.
    pub keep_sent: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "manager".to_owned(),
            plan_every: Duration::from_secs(2),
            sweep_every: Duration::from_secs(2),
            relay_every: Duration::from_secs(1),
            limits: PlanLimits::default(),
            duties: Duties::default(),
            archive_limits: ArchiveLimits::default(),
            rules: SweepRules::default(),
            keep_sent: Duration::from_secs(3600),
        }
    }
}

/// What the loops share.
struct Shared {
    config: Config,
    store: Store,
    broker: Option<Arc<dyn Broker>>,
    /// Work that no sweep can offer again, and that was told of.
    unswept: Mutex<BTreeSet<Work>>,
    /// Bad copies without a source for their repair that were told of.
    unrepaired: Mutex<BTreeSet<(PackageId, LocationId)>>,
    /// When all queues were last looked at.
    scheduled: LastLook,
    figures: Figures,
}

/// When something was last done.
#[derive(Debug, Default)]
struct LastLook(Mutex<Option<Instant>>);

impl LastLook {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_fresh(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < FRESH)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Runs a manager until `gate` drains. Without a broker hints are not published: workers on the same database find work by
/// looking, every 2 s.
pub async fn run(
    config: Config,
    store: Store,
    broker: Option<Arc<dyn Broker>>,
    health: &Health,
    metrics: &Metrics,
    gate: &Gate,
) {
    let figures = Figures::default();
    figures.register(metrics);
    let shared = Arc::new(Shared {
        config,
        store,
        broker,
        unswept: Mutex::default(),
        unrepaired: Mutex::default(),
        scheduled: LastLook::default(),
        figures,
    });
    let config = &shared.config;
    tracing::info!(manager = config.name, broker = shared.broker.is_some(), "the manager begins");
    let mut loops = Vec::new();
    let daemon = |task: Task, every: Duration, kinds: &'static [Wakeup]| Daemon {
        task,
        name: format!("manager {}: {}", config.name, task.name()),
        figures: shared.figures.clone(),
        every,
        least: Duration::ZERO,
        kinds,
        store: shared.store.clone(),
        health: health.clone(),
        gate: gate.clone(),
    };
    if config.duties.transfers {
        loops.push(daemon(Task::Intake, config.plan_every, &[]).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let shared = Arc::clone(&shared);
                Box::pin(async move { intake(&shared).await })
            }
        }));
    }
    if config.duties.archives {
        let archiver = Daemon { least: GATHER, ..daemon(Task::Archiver, config.plan_every, &[Wakeup::Pending]) };
        loops.push(archiver.spawn({
            let shared = Arc::clone(&shared);
            move || {
                let shared = Arc::clone(&shared);
                Box::pin(async move { archive(&shared).await })
            }
        }));
    }
    loops.push(daemon(Task::Planner, config.plan_every, &[Wakeup::Pending]).spawn({
        let shared = Arc::clone(&shared);
        move || {
            let shared = Arc::clone(&shared);
            Box::pin(async move { plan(&shared).await })
        }
    }));
    // A turn of its own for many ends at a time: nothing waits for it but the states of packages and further archives.
    let settler = Daemon { least: GATHER, ..daemon(Task::Settler, config.plan_every, &[Wakeup::Pending]) };
    loops.push(settler.spawn({
        let shared = Arc::clone(&shared);
        move || {
            let shared = Arc::clone(&shared);
            Box::pin(async move { settle(&shared).await })
        }
    }));
    loops.push(daemon(Task::Sweeper, config.sweep_every, &[]).spawn({
        let shared = Arc::clone(&shared);
        move || {
            let shared = Arc::clone(&shared);
            Box::pin(async move { sweep(&shared).await })
        }
    }));
    if let Some(broker) = &shared.broker {
        let relay = Arc::new(relay::Relay::new(Arc::clone(broker)));
        let told = Daemon { least: HINTS_GATHER, ..daemon(Task::Relay, config.relay_every, &[Wakeup::Outbox]) };
        loops.push(told.spawn({
            let shared = Arc::clone(&shared);
            move || {
                let (shared, relay) = (Arc::clone(&shared), Arc::clone(&relay));
                Box::pin(async move { relay.turn(&shared.store, shared.config.keep_sent).await })
            }
        }));
        let (broker, sink, stop) =
            (Arc::clone(broker), burial::Graveyard::new(shared.store.clone()), gate.drain_token());
        loops.push(tokio::spawn(async move { broker.bury(Arc::new(sink), stop).await }));
    } else {
        loops.push(daemon(Task::Outbox, config.relay_every.max(Duration::from_secs(10)), &[]).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let shared = Arc::clone(&shared);
                Box::pin(async move { relay::drop_unread(&shared.store, shared.config.keep_sent).await })
            }
        }));
    }
    for task in loops {
        // Each ends by itself when the gate drains; a panic was caught further in.
        let _ = task.await;
    }
    tracing::info!(manager = shared.config.name, "the manager has stopped");
}

async fn intake(shared: &Shared) -> Result<Turn, crate::store::StoreError> {
    let decided = shared.store.take_intake(INTAKE_BATCH, &shared.config.name).await?;
    for one in &decided {
        shared.figures.count_intake(one.outcome.is_ok());
        match &one.outcome {
            Ok(registered) => tracing::info!(row = one.id, package = %registered.package, "intake: registered"),
            Err(refusal) => tracing::warn!(row = one.id, refusal, "intake: refused"),
        }
    }
    if !decided.is_empty() {
        shared.store.wake(Wakeup::Pending);
    }
    Ok(match decided.len() {
        0 => Turn::Idle,
        n if n >= usize::try_from(INTAKE_BATCH).unwrap_or(usize::MAX) => Turn::Unfinished,
        _ => Turn::Worked,
    })
}

/// What ended: it may ask for another buffer, or go on to an archive.
async fn settle(shared: &Shared) -> Result<Turn, crate::store::StoreError> {
    let settled = shared.store.settle(SETTLE_BATCH, &shared.config.name).await?;
    shared.figures.count_settle(&settled);
    if settled.ends + settled.failovers == 0 {
        return Ok(Turn::Idle);
    }
    tracing::debug!(ended = settled.ends, packages = settled.packages, "settled");
    let more = settled.ends >= usize::try_from(SETTLE_BATCH).unwrap_or(usize::MAX);
    Ok(if more { Turn::Unfinished } else { Turn::Worked })
}

/// What lies at a site with archives, and what went bad in one.
async fn archive(shared: &Shared) -> Result<Turn, crate::store::StoreError> {
    let config = &shared.config;
    let planned =
        shared.store.plan_archives(&config.archive_limits, config.duties.site.as_deref(), &config.name).await?;
    shared.figures.count_archives(&planned);
    for (package, location) in &planned.unrepaired {
        let is_new = shared.unrepaired.lock().unwrap_or_else(PoisonError::into_inner).insert((*package, *location));
        if is_new {
            tracing::error!(%package, %location, "a copy is bad, and no verified one is at its site to repair it from");
        }
    }
    if planned.looked_at == 0 {
        return Ok(Turn::Idle);
    }
    tracing::debug!(transfers = planned.transfers, repairs = planned.repairs, "archive work planned");
    Ok(if planned.is_unfinished { Turn::Unfinished } else { Turn::Worked })
}

/// First new bundles, then offers.
async fn plan(shared: &Shared) -> Result<Turn, crate::store::StoreError> {
    let (store, name) = (&shared.store, &shared.config.name);
    let planned = if shared.config.duties.transfers {
        store.plan(&shared.config.limits, name).await?
    } else {
        Planned::default()
    };
    // Where nothing waits but what was just offered, there is nothing else to offer; what was stopped or cancelled meanwhile
    // is soon looked at.
    let scheduled = if planned.offered > 0 && !planned.leaves_some && shared.scheduled.is_fresh() {
        Scheduled::default()
    } else {
        let scheduled = store.schedule(name).await?;
        shared.scheduled.note();
        scheduled
    };
    shared.figures.count_plan(&planned, &scheduled);
    if planned.bundles + scheduled.offered + scheduled.taken_back + scheduled.cancelled == 0 {
        return Ok(Turn::Idle);
    }
    tracing::debug!(
        bundles = planned.bundles,
        transfers = planned.transfers,
        offered = planned.offered + scheduled.offered,
        taken_back = scheduled.taken_back,
        "planned"
    );
    Ok(match planned.offered + scheduled.offered {
        _ if planned.is_unfinished => Turn::Unfinished,
        0 => Turn::Worked,
        _ => Turn::Offered,
    })
}

async fn sweep(shared: &Shared) -> Result<Turn, crate::store::StoreError> {
    let clock = shared.store.lease_clock();
    let swept = shared.store.sweep(&shared.config.name, &clock, &shared.config.rules).await?;
    shared.figures.count_sweep(&swept);
    for work in &swept.offered {
        tracing::warn!(%work, "its worker was not heard of; it is offered again");
    }
    for work in &swept.failed {
        tracing::error!(%work, "too many workers were lost with it; it has failed");
    }
    let refused: BTreeSet<Work> = swept.refused.iter().map(|(work, _)| *work).collect();
    // A defect that comes with every sweep is told once.
    let told = mem::replace(&mut *shared.unswept.lock().unwrap_or_else(PoisonError::into_inner), refused);
    for (work, error) in &swept.refused {
        if told.contains(work) {
            tracing::debug!(%work, error, "it still cannot be offered again");
        } else {
            tracing::error!(%work, error, "its worker was not heard of, and it cannot be offered again");
        }
    }
    for worker in &swept.dead_workers {
        tracing::warn!(worker, "a worker was not heard of");
    }
    let nothing = swept.offered.is_empty() && swept.failed.is_empty() && swept.cancelled.is_empty();
    Ok(if nothing && swept.dead_workers.is_empty() { Turn::Idle } else { Turn::Worked })
}

/// Rows of `intake` in one turn.
const INTAKE_BATCH: u32 = 200;
/// Ends that are looked at in one turn.
const SETTLE_BATCH: u32 = 500;
/// For how long what waits in the queues is known well enough while new work goes by.
const FRESH: Duration = Duration::from_millis(50);
/// Between two turns of the relay: workers hear of most offers from the database before any hint comes.
const HINTS_GATHER: Duration = Duration::from_millis(50);
/// Between two turns of those whose work is better done in numbers.
const GATHER: Duration = Duration::from_millis(250);
