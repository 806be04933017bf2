//! `manager`, `worker` and `up`: the daemons.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{Context, Daemon, FailureClass, JobError, args, args::Which, open_patiently, serve, store_error};
use crate::{
    archive,
    broker::{Broker, MemoryBroker, RabbitBroker},
    cli::{exit::Exit, need_identity},
    config::{Means, Settings},
    endpoint::{self, Endpoint, keyring::Keyring},
    engine::{Options, host_name},
    manager::{self, Duties},
    model::{QueueName, topology::Place},
    net::Identity,
    store::{Backend, PlanLimits, Store, StoreError},
    task::Gate,
    telemetry::{
        health::Health,
        http,
        metrics::{Kind, Metrics},
    },
    worker::{self, Archiving, Transfers, WorkerError},
};

pub(super) fn manager(args: &args::Manager, daemon: &Daemon, context: &Context<'_>) -> Result<Exit, JobError> {
    let duties = Duties {
        transfers: args.which != Which::Archive,
        archives: args.which != Which::Transfer,
        site: args.site.clone(),
    };
    if duties.site.is_some() && !duties.archives {
        return Err(JobError::new(FailureClass::Usage, "--site is for archives; transfers go between sites"));
    }
    let config = manager::Config { duties, ..manager_config(daemon) };
    serve(context, async |gate| {
        let watched = watched(daemon, &gate).await?;
        let Some(store) = open_patiently(daemon, &gate).await? else { return Ok(()) };
        let broker = broker(daemon, &store);
        show_figures(&watched.metrics, &store, broker.as_deref());
        manager::run(config, store.clone(), broker.clone(), &watched.health, &watched.metrics, &gate).await;
        leave(&store, broker).await;
        Ok(())
    })
}

pub(super) fn worker(args: &args::Worker, daemon: &Daemon, context: &Context<'_>) -> Result<Exit, JobError> {
    let identity = identity(context.settings)?;
    let config = worker_config(args.name.as_deref(), &args.locations, daemon, context.settings)?;
    let shelves = Shelves::of(daemon);
    serve(context, async |gate| {
        let watched = watched(daemon, &gate).await?;
        let Some(store) = open_patiently(daemon, &gate).await? else { return Ok(()) };
        let broker = broker(daemon, &store);
        show_figures(&watched.metrics, &store, broker.as_deref());
        let working = store.clone().with_retry_percent(daemon.worker.retry_percent);
        let runner = shelves.runner(&config, identity, &working);
        let ended =
            worker::run(config, runner, working, broker.clone(), &watched.health, &watched.metrics, &gate).await;
        leave(&store, broker).await;
        ended.map_err(|error| worker_error(&error))
    })
}

/// Endpoint, manager and a worker for all locations of the settings, in one process.
pub(super) fn up(args: &args::Up, daemon: &Daemon, context: &Context<'_>) -> Result<Exit, JobError> {
    let identity = identity(context.settings)?;
    let locations = daemon
        .locations
        .keys()
        .map(|name| name.parse::<Place>().map_err(|e| JobError::new(FailureClass::Usage, e.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    if locations.is_empty() {
        return Err(JobError::new(
            FailureClass::Usage,
            "no location has a folder here; name one in the settings: [locations.\"SITE/NAME\"] root = \"/...\"",
        ));
    }
    let config = worker_config(None, &locations, daemon, context.settings)?;
    let endpoint = match &context.file {
        Some(file) if !args.no_serve && has_serve(file) => Some(unconfined(file)?),
        _ => None,
    };
    serve(context, async |gate| {
        let watched = watched(daemon, &gate).await?;
        let Some(store) = open_patiently(daemon, &gate).await? else { return Ok(()) };
        let broker: Arc<dyn Broker> = match &daemon.broker {
            Some(config) => Arc::new(RabbitBroker::new(config.clone())),
            None => Arc::new(MemoryBroker::new()),
        };
        let endpoint = match endpoint {
            Some(settings) => Some(bind(settings, context.settings.identity.clone()).await?),
            None => None,
        };
        show_figures(&watched.metrics, &store, Some(&*broker));
        let store = store.with_retry_percent(daemon.worker.retry_percent);
        let shelves = Shelves::of(daemon);
        let crew = Crew { manager: Some(manager_config(daemon)), worker: config, shelves, identity, endpoint };
        let ended = together(crew, &store, &broker, &watched, &gate).await;
        leave(&store, Some(broker)).await;
        ended
    })
}

/// What runs at one site in one process.
#[derive(Debug)]
pub(in crate::cli) struct Crew {
    /// Not every site has one.
    pub(in crate::cli) manager: Option<manager::Config>,
    pub(in crate::cli) worker: worker::Config,
    pub(in crate::cli) shelves: Shelves,
    /// Whom the worker is to other sites' endpoints.
    pub(in crate::cli) identity: Identity,
    pub(in crate::cli) endpoint: Option<Arc<Endpoint>>,
}

/// What a machine's settings know, by the stem of the location's queues: where packages are read from, and where they rest.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Shelves {
    pub(in crate::cli) folders: BTreeMap<String, PathBuf>,
    pub(in crate::cli) archives: BTreeMap<String, archive::Settings>,
}

impl Shelves {
    fn of(daemon: &Daemon) -> Self {
        let mut shelves = Self::default();
        for (name, location) in &daemon.locations {
            let Ok(place) = name.parse::<Place>() else { continue };
            let stem = QueueName::stem_of(&place.site, &place.location);
            match &location.means {
                Means::Folder(root) => drop(shelves.folders.insert(stem, root.clone())),
                Means::Archive(settings) => drop(shelves.archives.insert(stem, settings.clone())),
            }
        }
        shelves
    }

    /// What a worker does with both kinds of work.
    fn runner(self, config: &worker::Config, identity: Identity, store: &Store) -> Arc<worker::Duties> {
        let archiving = Archiving::new(config, self.folders, self.archives, store.clone());
        Arc::new(worker::Duties { transfers: Transfers::new(config, identity), archiving })
    }
}

/// What a process tells about itself.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Watched {
    health: Health,
    metrics: Metrics,
}

impl Watched {
    /// Nobody asks for it unless it is served.
    pub(in crate::cli) fn new() -> Self {
        Self::default()
    }
}

/// Runs a crew until the gate drains and all of it has ended.
///
/// # Errors
/// Why the worker could not go on.
pub(in crate::cli) async fn together(
    crew: Crew,
    store: &Store,
    broker: &Arc<dyn Broker>,
    watched: &Watched,
    gate: &Gate,
) -> Result<(), JobError> {
    let Watched { health, metrics } = watched;
    let serving = crew.endpoint.map(|endpoint| {
        tracing::info!(port = endpoint.port(), "serving QUIC and TCP");
        tokio::spawn(endpoint.serve(gate.drain_token()))
    });
    let hints = || Some(Arc::clone(broker));
    let managing = async {
        if let Some(config) = crew.manager {
            manager::run(config, store.clone(), hints(), health, metrics, gate).await;
        }
    };
    let working = async {
        let runner = crew.shelves.runner(&crew.worker, crew.identity, store);
        let ended = worker::run(crew.worker, runner, store.clone(), hints(), health, metrics, gate).await;
        // One process is one thing: when a part of it cannot go on, all of it ends and says so.
        gate.drain();
        ended
    };
    let ((), ended) = tokio::join!(managing, working);
    if let Some(serving) = serving {
        serving.await.map_err(|_| JobError::new(FailureClass::Bug, "the endpoint ended badly"))?;
    }
    ended.map_err(|error| worker_error(&error))
}

async fn bind(settings: endpoint::Settings, folder: PathBuf) -> Result<Arc<Endpoint>, JobError> {
    let keyring = Keyring::new(folder);
    let wrong = |e: endpoint::keyring::KeyringError| JobError::new(FailureClass::Identity, e.to_string());
    let (identity, policy) = (keyring.identity().map_err(wrong)?, keyring.policy().map_err(wrong)?);
    Endpoint::bind(settings, identity, policy).await
}

/// In one process with a worker the endpoint cannot be confined to its locations: the worker has others.
fn unconfined(file: &std::path::Path) -> Result<endpoint::Settings, JobError> {
    endpoint::Settings::load(file).map_err(|e| JobError::new(FailureClass::Usage, e.to_string()))
}

fn has_serve(file: &std::path::Path) -> bool {
    let table = std::fs::read_to_string(file).ok().and_then(|text| text.parse::<toml::Table>().ok());
    table.is_some_and(|table| table.contains_key("serve"))
}

fn identity(settings: &Settings) -> Result<Identity, JobError> {
    Keyring::new(need_identity(settings)?).identity().map_err(|e| JobError::new(FailureClass::Identity, e.to_string()))
}

fn manager_config(daemon: &Daemon) -> manager::Config {
    let name = daemon.manager.clone().unwrap_or_else(|| format!("manager@{}", host_name()));
    let limits = PlanLimits { bundle: daemon.bundles, ..PlanLimits::default() };
    manager::Config { name, limits, ..manager::Config::default() }
}

fn worker_config(
    name: Option<&str>,
    locations: &[Place],
    daemon: &Daemon,
    settings: &Settings,
) -> Result<worker::Config, JobError> {
    let usage = |text: String| JobError::new(FailureClass::Usage, text);
    let (mut places, mut archives) = (BTreeMap::new(), BTreeMap::new());
    for place in locations {
        let written = place.to_string();
        let found = daemon.locations.get(&written).ok_or_else(|| {
            usage(format!(
                "location {written} has no folder here; name it in the settings: [locations.\"{written}\"] root = \"/...\""
            ))
        })?;
        let stem = QueueName::stem_of(&place.site, &place.location);
        match &found.means {
            Means::Folder(root) => {
                places.insert(stem, worker::Place { root: root.clone(), slots: found.slots });
            }
            Means::Archive(_) => {
                archives.insert(stem, found.slots);
            }
        }
    }
    let own = &daemon.worker;
    let name = name.map(str::to_owned).or_else(|| own.name.clone()).unwrap_or_else(host_name);
    let spool = own
        .spool
        .clone()
        .ok_or_else(|| usage("no folder for outcomes is known, because HOME is not set; set worker.spool".into()))?;
    // A spool belongs to one worker: two of one machine that share settings do not share it.
    let spool = if own.name.as_deref() == Some(name.as_str()) { spool } else { spool.join(name.replace('/', "_")) };
    Ok(worker::Config {
        name,
        host: host_name(),
        slots: own.slots,
        lease: own.lease,
        renew_every: (own.lease / 3).min(RENEW_EVERY),
        poll: own.poll,
        drain_limit: own.drain,
        spool,
        places,
        archives,
        options: Options { reconnect_timeout: own.reconnect_timeout, ..settings.options() },
    })
}

/// Without a broker in the settings there is none: a broker within one process reaches no other.
fn broker(daemon: &Daemon, store: &Store) -> Option<Arc<dyn Broker>> {
    if let Some(config) = &daemon.broker {
        return Some(Arc::new(RabbitBroker::new(config.clone())));
    }
    if store.backend() == Backend::Sqlite {
        tracing::warn!(
            "separate daemons on one SQLite file find work by looking, every 2 s; `up` runs them in one process"
        );
    }
    None
}

/// Shows what the database's and the broker's clients count.
fn show_figures(metrics: &Metrics, store: &Store, broker: Option<&dyn Broker>) {
    let seen = store.clone();
    metrics.observe("store", "stale_refusals", "Statements of overtaken owners that were refused", Kind::Counter, {
        move || seen.stale_refusals()
    });
    if let Some(broker) = broker {
        broker.figures().register(metrics);
    }
}

/// Starts the health endpoint, if the settings want one.
async fn watched(daemon: &Daemon, gate: &Gate) -> Result<Watched, JobError> {
    let watched = Watched::new();
    if let Some(config) = &daemon.health {
        let server = http::Server::bind(config, watched.health.clone(), watched.metrics.clone())
            .await
            .map_err(|e| JobError::new(FailureClass::Usage, e.to_string()))?;
        tracing::info!(address = %server.address(), "health and metrics");
        tokio::spawn(server.serve(gate.stop_token()));
    }
    Ok(watched)
}

async fn leave(store: &Store, broker: Option<Arc<dyn Broker>>) {
    if let Some(broker) = broker {
        broker.close().await;
    }
    store.close().await;
}

fn worker_error(error: &WorkerError) -> JobError {
    match error {
        WorkerError::Store(error @ StoreError::WorkerAlive { .. }) => {
            JobError::new(FailureClass::Usage, error.to_string())
        }
        WorkerError::Store(error) => store_error(error),
        WorkerError::Spool(error) => JobError::new(FailureClass::Destination, error.to_string()),
    }
}

/// Renewals need not come oftener, however long the lease is.
const RENEW_EVERY: std::time::Duration = std::time::Duration::from_secs(3);
