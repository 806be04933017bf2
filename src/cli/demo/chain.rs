//! The chain itself: what `up` runs, once for each of two sites, in one process on one database. The second site has an
//! archive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    relay::{Link, Relay},
    table::{Moving, Row},
};
use crate::{
    archive,
    broker::{Broker, MemoryBroker},
    chunk::escape_bytes,
    cli::control::{Crew, Shelves, Watched, store_error, together},
    config::Settings,
    endpoint::{Endpoint, Right, Settings as Served},
    engine::{FailureClass, JobError, Options, host_name},
    manager,
    model::{BundleLimits, PackageId, PackageState, Work, topology::Topology},
    net::{Identity, IdentityError, PeerName, Pinned},
    store::{Apply, Destination, NewPackage, PackageFilter, PlanLimits, RecordRow, Store, WorkFilter, WorkKind},
    task::Gate,
    worker,
};

pub(super) const ORIGIN: &str = "ccat";
pub(super) const DESTINATION: &str = "cologne";
pub(super) const ROUTE: &str = "ccat to cologne";

/// Two sites that work.
pub(super) struct Chain {
    store: Store,
    gate: Gate,
    end: CancellationToken,
    working: JoinHandle<Result<(), JobError>>,
    pub(super) relay: Option<Relay>,
    /// Ports of the endpoints, of the origin and of the destination.
    pub(super) ports: (u16, u16),
    packages: Vec<NewPackage>,
    rows: Vec<Row>,
    of_work: BTreeMap<Work, BTreeSet<PackageId>>,
    rates: BTreeMap<Work, Pace>,
}

/// How fast a transfer is.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// Seen in progress since then.
    Running(Instant),
    /// It is over, and had this rate.
    Over(Option<u64>),
}

/// What lies where, and over what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    /// The demo's own folder.
    pub(super) folder: &'a Path,
    /// Root of the origin's buffer. Only read.
    pub(super) origin: &'a Path,
    /// Root of the destination's buffer.
    pub(super) destination: &'a Path,
    /// Root of the archive there, which has its marker already.
    pub(super) archive: &'a Path,
    pub(super) link: Option<Link>,
}

impl Chain {
    /// Starts endpoints, manager and workers, and tells the database what there is.
    pub(super) async fn start(plan: &Plan<'_>, settings: &Settings) -> Result<Self, JobError> {
        let (gate, end) = (Gate::new(), CancellationToken::new());
        let (near, far) = (key()?, key()?);
        // Each endpoint knows the other site's key and no other. Nobody may write at the origin.
        let serves = [
            (ORIGIN, plan.origin, &near, (DESTINATION, &far), vec![Right::List, Right::Read]),
            (DESTINATION, plan.destination, &far, (ORIGIN, &near), vec![Right::List, Right::Read, Right::Create]),
        ];
        let mut endpoints = Vec::new();
        for (site, root, own, (peer, its), may) in serves {
            let served = Served::loopback(&stem(site), root.to_owned(), peer, may);
            let policy = Pinned::new([(its.fingerprint(), PeerName::new(peer))]);
            endpoints.push(Endpoint::bind(served, own.clone(), Arc::new(policy)).await?);
        }
        let ports = (endpoints[0].port(), endpoints[1].port());
        let relay = match plan.link {
            Some(link) => Some(Relay::start(link, ports.1, end.clone()).await.map_err(|error| {
                JobError::new(FailureClass::Network, format!("the relay cannot listen on loopback: {error}"))
            })?),
            None => None,
        };
        let reached = relay.as_ref().map_or(ports.1, Relay::port);
        let text = topology([(&near, ports.0), (&far, reached)], plan.link);
        let written = std::fs::write(plan.folder.join("topology.toml"), &text);
        written.map_err(|e| JobError::new(FailureClass::Destination, format!("cannot write the topology: {e}")))?;
        let topology = Topology::parse(&text)
            .map_err(|e| JobError::new(FailureClass::Bug, format!("the demo's topology is wrong: {e}")))?;
        let wrong = |e| store_error(&e);
        let url = format!("sqlite:{}", plan.folder.join("control.db").display());
        let store = Store::open(&url).await.map_err(wrong)?;
        store
            .apply_topology(&topology, ACTOR, Apply::Now)
            .await
            .map_err(|e| JobError::new(FailureClass::Bug, format!("the database refuses the demo's topology: {e}")))?;

        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new());
        let limits = PlanLimits { bundle: BUNDLE, ..PlanLimits::default() };
        let manager = manager::Config {
            name: format!("manager@{ORIGIN}"),
            limits,
            plan_every: LOOK,
            sweep_every: LOOK * 4,
            ..manager::Config::default()
        };
        let mut crews = Vec::new();
        let roots = [(ORIGIN, plan.origin, near, Some(manager)), (DESTINATION, plan.destination, far, None)];
        for ((site, root, identity, manager), endpoint) in roots.into_iter().zip(endpoints) {
            let place = worker::Place { root: root.to_owned(), slots: None };
            let mut shelves = Shelves { folders: [(stem(site), root.to_owned())].into(), ..Shelves::default() };
            if site == DESTINATION {
                shelves.archives.insert(archive_stem(), archive::Settings::Disk(plan.archive.to_owned()));
            }
            let worker = worker::Config {
                name: format!("worker@{site}"),
                host: host_name(),
                slots: SLOTS,
                lease: LEASE,
                renew_every: RENEW,
                poll: LOOK * 8,
                drain_limit: Duration::ZERO,
                spool: plan.folder.join("spool").join(site),
                places: [(stem(site), place)].into(),
                archives: shelves.archives.keys().map(|stem| (stem.clone(), None)).collect(),
                options: Options { reconnect_timeout: RECONNECT, ..settings.options() },
            };
            crews.push(Crew { manager, worker, shelves, identity, endpoint: Some(endpoint) });
        }
        let (here, closing) = (store.clone(), gate.clone());
        let working = tokio::spawn(async move {
            let watched = Watched::new();
            let running = crews.into_iter().map(|crew| together(crew, &here, &broker, &watched, &closing));
            let ended = futures_util::future::join_all(running).await;
            broker.close().await;
            ended.into_iter().collect::<Result<(), _>>()
        });
        Ok(Self {
            store,
            gate,
            end,
            working,
            relay,
            ports,
            packages: Vec::new(),
            rows: Vec::new(),
            of_work: BTreeMap::new(),
            rates: BTreeMap::new(),
        })
    }

    /// Makes packages known and says where they should be, as `submit` does.
    pub(super) async fn submit(&mut self, packages: Vec<NewPackage>) -> Result<(), JobError> {
        let to = [Destination::Site(DESTINATION.to_owned())];
        for some in packages.chunks(AT_ONCE) {
            let registered = self.store.register(some, &to, ACTOR).await.map_err(|e| store_error(&e))?;
            for (one, package) in registered.iter().zip(some) {
                let name = escape_bytes(package.path.as_bytes());
                self.rows.push(Row {
                    id: one.package,
                    name,
                    size_bytes: package.size_bytes,
                    stands: PackageState::Waiting,
                    transfer: None,
                    archiving: None,
                });
            }
        }
        self.packages = packages;
        Ok(())
    }

    /// The packages, as they are now.
    pub(super) async fn look(&mut self) -> Result<&[Row], JobError> {
        let mut transfers = self.moving(WorkKind::Transfer).await?;
        let mut archivings = self.moving(WorkKind::Archive).await?;
        let mut states = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.store.package_page(&PackageFilter::default(), after, PAGE).await;
            let page = page.map_err(|e| store_error(&e))?;
            states.extend(page.rows.iter().map(|row| (row.id, row.state)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        for row in &mut self.rows {
            row.transfer = transfers.remove(&row.id);
            row.archiving = archivings.remove(&row.id);
            row.stands = states.remove(&row.id).unwrap_or(row.stands);
        }
        Ok(&self.rows)
    }

    /// All work of a kind, by package; of several the one that was planned last.
    async fn moving(&mut self, kind: WorkKind) -> Result<BTreeMap<PackageId, Moving>, JobError> {
        let wrong = |e| store_error(&e);
        let filter = WorkFilter { kind, ..WorkFilter::default() };
        let (mut after, mut moving) = (None, BTreeMap::new());
        loop {
            let page = self.store.work_page(&filter, after, PAGE).await.map_err(wrong)?;
            for row in &page.rows {
                if !self.of_work.contains_key(&row.work) {
                    let detail = self.store.work_detail(row.work).await.map_err(wrong)?;
                    self.of_work.insert(row.work, detail.packages.iter().map(|p| p.id).collect());
                }
                let mut now = Moving {
                    id: row.work,
                    status: row.status,
                    attempt: row.attempt,
                    bytes_done: row.bytes_done,
                    bytes_total: row.bytes_total,
                    bytes_per_s: None,
                    route: row.route.clone().unwrap_or_else(|| row.destination.clone()),
                    error: row.error_class.map(|class| class.to_string()),
                };
                now.bytes_per_s = self.rate(&now).await?;
                for package in self.of_work.get(&row.work).into_iter().flatten() {
                    moving.insert(*package, now.clone());
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(moving);
            }
        }
    }

    /// Verified bytes per second; of what is over by its attempt's own times.
    async fn rate(&mut self, now: &Moving) -> Result<Option<u64>, JobError> {
        if let Some(Pace::Over(rate)) = self.rates.get(&now.id) {
            return Ok(*rate);
        }
        if now.is_over() {
            let detail = self.store.work_detail(now.id).await.map_err(|e| store_error(&e))?;
            let last = detail.attempts.first().filter(|a| a.outcome == "completed");
            let rate = last.and_then(|a| per_second(a.bytes_done, a.ended_at.since(a.started_at)));
            self.rates.insert(now.id, Pace::Over(rate));
            return Ok(rate);
        }
        if now.status != crate::model::Status::InProgress {
            self.rates.remove(&now.id);
            return Ok(None);
        }
        match self.rates.entry(now.id).or_insert_with(|| Pace::Running(Instant::now())) {
            Pace::Running(since) => Ok(per_second(now.bytes_done, since.elapsed())),
            Pace::Over(rate) => Ok(*rate),
        }
    }

    /// Whether a part of the chain has ended, which it does not by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.working.is_finished()
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn packages(&self) -> &[NewPackage] {
        &self.packages
    }

    /// What the archive was found to hold, by package; the last look at each.
    pub(super) async fn record(&self, package: PackageId) -> Result<Option<RecordRow>, JobError> {
        let detail = self.store.package_detail(package).await.map_err(|e| store_error(&e))?;
        let place = archive_place();
        Ok(detail.records.into_iter().find(|record| record.location == place))
    }

    /// Why some work failed.
    pub(super) async fn failure(&self, work: Work) -> Result<(Option<FailureClass>, String), JobError> {
        let detail = self.store.work_detail(work).await.map_err(|e| store_error(&e))?;
        let class = detail.row.error_class.map(class_of);
        Ok((class, detail.row.error_text.unwrap_or_default()))
    }

    /// Ends everything at once: what is under way is handed back.
    pub(super) async fn stop(self) -> Result<(), JobError> {
        self.gate.stop();
        let ended = tokio::time::timeout(STOP_LIMIT, self.working).await;
        self.end.cancel();
        self.store.close().await;
        match ended {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(JobError::new(FailureClass::Bug, "the demo's daemons ended badly")),
            Err(_) => {
                tracing::warn!("the demo's daemons took too long to end");
                Ok(())
            }
        }
    }
}

/// What an error of the control plane is on the command line.
fn class_of(class: crate::model::ErrorClass) -> FailureClass {
    use crate::model::ErrorClass as E;
    match class {
        E::Network | E::RemoteBusy | E::LostWorker => FailureClass::Network,
        E::Authentication => FailureClass::Identity,
        E::NoSpace | E::DestinationDiffers => FailureClass::Destination,
        E::MissingSource | E::SourceChanged => FailureClass::Source,
        E::CorruptInFlight | E::CorruptAtSource => FailureClass::Integrity,
        E::Configuration => FailureClass::Usage,
        E::Cancelled => FailureClass::Cancelled,
        E::Bug => FailureClass::Bug,
    }
}

fn per_second(bytes: u64, time: Duration) -> Option<u64> {
    let micros = u64::try_from(time.as_micros()).ok().filter(|&us| us > 0)?;
    (bytes > 0).then(|| u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(micros)).unwrap_or(u64::MAX))
}

fn key() -> Result<Identity, JobError> {
    Identity::throw_away().map_err(|e: IdentityError| JobError::new(FailureClass::Bug, e.to_string()))
}

/// What the queues of a site's buffer are called, and its location at the site's endpoint.
fn stem(site: &str) -> String {
    format!("{site}_{LOCATION}")
}

fn archive_stem() -> String {
    format!("{DESTINATION}_{ARCHIVE}")
}

/// The archive's name.
pub(super) fn archive_place() -> String {
    format!("{DESTINATION}/{ARCHIVE}")
}

fn topology(sites: [(&Identity, u16); 2], link: Option<Link>) -> String {
    let mut text = String::new();
    for (site, (identity, port)) in [ORIGIN, DESTINATION].into_iter().zip(sites) {
        text.push_str(&format!(
            "[[peer]]\nname = \"{site}\"\naddress = \"{}:{port}\"\nfingerprint = \"{}\"\n\
             [[site]]\nname = \"{site}\"\nshort_name = \"{site}\"\n\
             [[location]]\nsite = \"{site}\"\nname = \"{LOCATION}\"\ntype = \"buffer\"\npeer = \"{site}\"\n",
            Ipv4Addr::LOCALHOST,
            identity.fingerprint()
        ));
    }
    text.push_str(&format!(
        "[[location]]\nsite = \"{DESTINATION}\"\nname = \"{ARCHIVE}\"\ntype = \"long_term_archive\"\n\
         # Where temporary files lie in memory there is nothing but the cache to read; the record says so.\n\
         cached_read_back_counts = true\n"
    ));
    text.push_str(&format!("[[route]]\nname = \"{ROUTE}\"\nfrom = \"{ORIGIN}\"\nto = \"{DESTINATION}\"\n"));
    // Asked to choose by itself, it would measure TCP's way to the relay, which is short.
    if link.is_some_and(|link| link.round_trip >= LONG_PATH) {
        text.push_str("transport = \"quic\"\n");
    }
    text
}

const LOCATION: &str = "buffer";
const ARCHIVE: &str = "archive";
const ACTOR: &str = "demo";
/// Large packages go alone, small ones together, and none waits long: somebody is watching.
const BUNDLE: BundleLimits = BundleLimits { bytes: 8 << 20, packages: 100, age: Duration::from_millis(300) };
const LOOK: Duration = Duration::from_millis(250);
const SLOTS: u32 = 2;
const LEASE: Duration = Duration::from_secs(10);
/// Often, because the table shows what a renewal says.
const RENEW: Duration = Duration::from_millis(250);
const RECONNECT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Rows of one look.
const PAGE: u32 = 1000;
/// Packages of one statement.
const AT_ONCE: usize = 200;
/// From here on QUIC is what the engine would choose.
const LONG_PATH: Duration = Duration::from_millis(10);
