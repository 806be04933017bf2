//! The control plane by itself: managers, workers, stores and brokers as the daemons run them, with a runner that moves
//! nothing. In one process, on SQLite with the in-process broker and on PostgreSQL with RabbitMQ, fsync on.
//!
//! ```text
//! cargo bench --bench control                      all of it
//! CCAT_XFER_BENCH_TRANSFERS=500                    transfers of one run (default 5,000)
//! CCAT_XFER_BENCH_SECONDS=5                        how long 100 a second are offered (default 20)
//! CCAT_XFER_BENCH_ROWS=10000                       rows of the large table (default 1,000,000)
//! CCAT_XFER_BENCH_BACKENDS=sqlite                  only these of: sqlite, postgresql
//! CCAT_XFER_BENCH_PARTS=latency                    only these of: saturation, latency, rows
//! ```
//!
//! - *saturation*: all transfers wait when manager and worker begin. Dispatched: until the last was offered; completed:
//!   until the last outcome was committed. Each transfer costs what a real one costs the database: row and hint, claim,
//!   outcome with evidence, history and copy.
//! - *latency*: 100 packages a second are registered; the time runs from the return of that commit to the return of the
//!   claim's. Between them stand the plan's commit, the hint's way, and the claim's commit.
//! - *rows*: `claim_next` and a look of the planner with a thousand and with a million rows that wait.
//!
//! What it taught (two cores, fsync p50 0.15 ms):
//!
//! - Transfers of no length ran at 35 a second on PostgreSQL, 64 every 2 s: nobody told the planner that its offers were
//!   used up. Looking again 20 ms after an offer made 195 of it; claims and outcomes of several rows, and hints told once for
//!   each queue, 500. What stood idle then were the workers: sixteen slots that were free at once asked for four rows each
//!   time, and sixteen outcomes were written in five transactions. Waiting 1 and 2 ms for what comes together, asking one
//!   question before a claim (nine of ten looks find nothing), and offering in the planner's own transaction made 850 to
//!   1,140 of it, and 930 to 1,550 on SQLite: the smaller figure with fsync on a disk, the larger one in memory. Leaving a
//!   queue in which anything waits to the scheduler, so that what was just made overtakes nothing, costs some of it: 656 on
//!   a disk. PostgreSQL's target of 1,000 is met in memory only, and without that.
//! - A function in the language SQL with a search path of its own is planned anew for every row: in PL/pgSQL the proof of a
//!   copy costs 0.05 ms instead of 1 ms.
//! - PostgreSQL without statistics takes any index that holds all columns of a condition, and joins by hash over whole
//!   tables: one index on location and status was walked for each copy. Such indexes are gone, and so are those joins.
//!   A status beside the ids of rows had the same effect: an offer of 64 walked over all that waited.
//! - A bound that calls `now_us()` is computed anew for each row, and bounds no index: the time is asked for once.
//! - SQLite seeks a row of values by `>=`, and walks over what is equal. Compared column by column, a claim costs the same
//!   with a thousand rows and with a million.
//! - At 100 a second most of PostgreSQL's p50 was work for nothing: each offer woke both workers twice (notification and
//!   hint), each end of an attempt was a reason to look, and each registration had the archiver read the whole network. Without
//!   it, and with one transaction fewer on the way, 22 ms became 5.5 ms, and 8.5 ms since queues in which something waits are left
//!   alone; SQLite's is 2.8 ms.
//! - A partial index that leads with the column of its own condition cannot be sought in: PostgreSQL drops the condition, as
//!   the index implies it, and compares the next column of every entry. A tick cost 2.6 times as much with a hundred times the
//!   rows; now it costs the same.
//! - Where all columns of an index but the id are held equal, PostgreSQL sees no order but the id's, and takes the primary
//!   key: with a million rows a claim took 250 ms. A range over one value keeps the order of the index.
//! - On a machine with other work a woken task waits for the running one's slice, whatever their niceness: 3 ms for each of
//!   the 20 statements between two commits. Figures were taken with real-time priority (`chrt -r 10`).

#[allow(dead_code, reason = "the tests of the schema use the rest of it")]
#[path = "../tests/store_conformance/bed.rs"]
mod bed;
#[path = "../tests/harness/mod.rs"]
mod harness;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use ccat_xfer::{
    broker::{Broker, Credentials, MemoryBroker, RabbitBroker, RabbitConfig, Times},
    chunk::RelPath,
    engine::Options,
    manager,
    model::{
        Algorithm, CheckMethod, Evidence, PackageId, PackageKind, Policy, QueueName, StorageType, topology::Topology,
    },
    secret::Secret,
    store::{Apply, Backend, Claim, Destination, NewPackage, PlanLimits, Store, WorkerProfile},
    task::Gate,
    telemetry::{health::Health, metrics::Metrics},
    worker::{self, Attempt, Meter, Runner},
};
use sqlx::AssertSqlSafe;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use bed::{Bed, Raw};
use harness::{Durability, Postgres, Rabbitmq, Scene};

const WORLD: &str = r#"
[[peer]]
name = "cologne"
address = "cologne.example:8422"
fingerprint = "sha256:000000000000000000000000000000000000000000000000000000000000000b"
[[site]]
name = "CCAT"
short_name = "ccat"
[[site]]
name = "Cologne"
short_name = "cologne"
[[location]]
site = "ccat"
name = "buffer"
type = "buffer"
[[location]]
site = "cologne"
name = "buffer"
type = "buffer"
peer = "cologne"
[[route]]
name = "there"
from = "ccat"
to = "cologne"
"#;
/// Workers, and attempts of each at once.
const WORKERS: usize = 2;
const SLOTS: u32 = 16;
/// Packages of one registration.
const BATCH: u64 = 500;

fn main() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number in the environment"))
    };
    let chosen = |name: &str, all: &'static [&'static str]| -> Vec<&'static str> {
        let wanted = std::env::var(name).unwrap_or_default();
        all.iter().copied().filter(|one| wanted.is_empty() || wanted.split(',').any(|w| w == *one)).collect()
    };
    let parts = chosen("CCAT_XFER_BENCH_PARTS", &["saturation", "latency", "rows"]);
    for backend in chosen("CCAT_XFER_BENCH_BACKENDS", &["sqlite", "postgresql"]) {
        let missing = if backend == "sqlite" { None } else { Postgres::missing().or_else(Rabbitmq::missing) };
        if let Some(why) = missing {
            println!("not run: {backend} ({why})");
            continue;
        }
        let runtime = Runtime::new().expect("a runtime");
        for part in &parts {
            let world = World::start(&runtime, backend);
            match *part {
                "saturation" => runtime.block_on(saturation(&world, number("CCAT_XFER_BENCH_TRANSFERS", 5000))),
                "latency" => runtime.block_on(latency(&world, number("CCAT_XFER_BENCH_SECONDS", 20))),
                _ => runtime.block_on(rows(&world, number("CCAT_XFER_BENCH_ROWS", 1_000_000))),
            }
            runtime.block_on(world.bed.close());
        }
    }
}

/// A database, a broker, and a topology of two sites.
struct World {
    backend: &'static str,
    bed: Bed,
    broker: Arc<dyn Broker>,
    fsync: Spread,
    _rabbit: Option<Rabbitmq>,
    _postgres: Option<Postgres>,
    scene: Scene,
}

impl World {
    fn start(runtime: &Runtime, backend: &'static str) -> Self {
        let scene = Scene::new("bench-control");
        let (postgres, rabbit) = match backend {
            "sqlite" => (None, None),
            _ => (Some(Postgres::start(&scene, Durability::Fsync)), Some(Rabbitmq::start("bench"))),
        };
        let bed = runtime.block_on(async {
            let bed = match &postgres {
                None => Bed::sqlite(&scene, "control").await,
                Some(server) => Bed::postgres(server, "control").await,
            };
            let topology = Topology::parse(WORLD).expect("a topology");
            bed.store.apply_topology(&topology, "bench", Apply::Now).await.expect("apply the topology");
            bed
        });
        let broker: Arc<dyn Broker> = match &rabbit {
            None => Arc::new(MemoryBroker::new()),
            Some(rabbit) => {
                let config = RabbitConfig {
                    address: format!("amqp://127.0.0.1:{}", rabbit.port()).parse().expect("an address"),
                    credentials: Credentials::new("guest", Secret::new("guest")),
                    ca_file: None,
                    times: Times::default(),
                };
                Arc::new(RabbitBroker::new(config))
            }
        };
        let fsync = fsync(scene.path());
        Self { backend, bed, broker, fsync, _rabbit: rabbit, _postgres: postgres, scene }
    }

    /// Manager and worker, each with connections of its own, as processes of their own have them.
    async fn daemons(&self, runner: Arc<Nothing>) -> Daemons {
        let gate = Gate::new();
        let mut limits = PlanLimits::default();
        limits.bundle.packages = 1;
        limits.bundle.age = Duration::ZERO;
        let (store, broker, tasks_gate) = (self.connect().await, Arc::clone(&self.broker), gate.clone());
        let managing = tokio::spawn(async move {
            let config = manager::Config { limits, ..manager::Config::default() };
            manager::run(config, store.clone(), Some(broker), &Health::new(), &Metrics::new(), &tasks_gate).await;
            store.close().await;
        });
        let mut tasks = vec![managing];
        for n in 0..WORKERS {
            let place = worker::Place { root: self.scene.path().to_owned(), slots: None };
            let config = worker::Config {
                name: format!("bench{n}"),
                host: "bench".to_owned(),
                slots: SLOTS,
                lease: Duration::from_secs(10),
                renew_every: Duration::from_secs(3),
                poll: Duration::from_secs(2),
                drain_limit: Duration::from_secs(10),
                spool: self.scene.folder(&format!("spool{n}")),
                places: BTreeMap::from([("ccat_buffer".to_owned(), place)]),
                archives: BTreeMap::new(),
                options: Options::default(),
            };
            let (store, broker, runner) = (self.connect().await, Arc::clone(&self.broker), Arc::clone(&runner));
            let tasks_gate = gate.clone();
            tasks.push(tokio::spawn(async move {
                let (health, metrics) = (Health::new(), Metrics::new());
                let ended =
                    worker::run(config, runner, store.clone(), Some(broker), &health, &metrics, &tasks_gate).await;
                ended.expect("the worker ends well");
                store.close().await;
            }));
        }
        Daemons { gate, tasks }
    }

    /// On SQLite all tasks of a process share one store, as `up` has it.
    async fn connect(&self) -> Store {
        match self.backend {
            "sqlite" => self.bed.store.clone(),
            _ => Store::connect(&self.bed.url()).await.expect("reach the database"),
        }
    }

    async fn register(&self, first: u64, count: u64) -> Vec<PackageId> {
        let packages: Vec<_> = (first..first + count).map(package).collect();
        let registered = self.bed.store.register(&packages, &[destination()], "bench").await.expect("register");
        registered.iter().map(|r| r.package).collect()
    }

    fn say(&self, text: &str) {
        println!("{:<12} {text}", self.backend);
    }
}

struct Daemons {
    gate: Gate,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Daemons {
    async fn end(self) {
        self.gate.drain();
        for task in self.tasks {
            task.await.expect("a daemon ends");
        }
    }
}

/// Finds everything in order at once.
#[derive(Debug, Default)]
struct Nothing {
    claimed: Mutex<HashMap<PackageId, Instant>>,
    runs: AtomicU64,
}

#[async_trait]
impl Runner for Nothing {
    async fn run(&self, claim: &Claim, meter: &Meter, _: &CancellationToken) -> Attempt {
        let now = Instant::now();
        let mut attempt = Attempt::default();
        for member in &claim.members {
            self.claimed.lock().expect("no panic before").insert(member.package, now);
            let digest = member.digests[0];
            meter.finish(member.size_bytes);
            attempt.evidence.push(Evidence {
                package: member.package,
                location: claim.destination.location,
                path: member.relative_path.clone(),
                algorithm: Algorithm::Blake3,
                expected_digest: digest.value,
                found_digest: digest.value,
                expected_size_bytes: member.size_bytes,
                found_size_bytes: member.size_bytes,
                method: CheckMethod::Received,
                medium: StorageType::Disk,
                cached: true,
                how: None,
                unread_reason: None,
                host: "bench".to_owned(),
                version: "bench".to_owned(),
                receiver_key: None,
                started_at: claim.claimed_at,
                ended_at: claim.claimed_at,
            });
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        attempt
    }
}

fn package(n: u64) -> NewPackage {
    let path = format!("night/{n:08}");
    NewPackage {
        name: path.clone(),
        kind: PackageKind::File,
        origin: "ccat/buffer".parse().expect("a place"),
        path: RelPath::new(path.as_bytes()).expect("a path"),
        size_bytes: 1000,
        file_count: 1,
        identity: *blake3::hash(path.as_bytes()).as_bytes(),
        sha256: None,
        priority: 4,
        policy: Policy::TransferOnly,
        metadata: None,
    }
}

fn destination() -> Destination {
    Destination::Place("cologne/buffer".parse().expect("a place"))
}

async fn saturation(world: &World, transfers: u64) {
    for first in (0..transfers).step_by(usize::try_from(BATCH).expect("a small number")) {
        world.register(first, BATCH.min(transfers - first)).await;
    }
    let runner = Arc::new(Nothing::default());
    let started = Instant::now();
    let daemons = world.daemons(Arc::clone(&runner)).await;
    let (mut dispatched, mut completed) = (None, None);
    while completed.is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            started.elapsed() < Duration::from_secs(600),
            "{} of {transfers} were done",
            runner.runs.load(Ordering::Relaxed)
        );
        if dispatched.is_none() && offered(world).await >= transfers {
            dispatched = Some(started.elapsed());
        }
        // The last outcomes are written after the last runs.
        if runner.runs.load(Ordering::Relaxed) >= transfers && done(world).await >= transfers {
            completed = Some(started.elapsed());
        }
    }
    daemons.end().await;
    let rate = |took: Option<Duration>| format!("{:.0}/s", transfers as f64 / took.unwrap_or_default().as_secs_f64());
    world.say(&format!(
        "saturation   {transfers} transfers: dispatched {}, completed {} (Celery with Redis: 1,000 to 1,700 no-ops/s); {} runs; fsync {}",
        rate(dispatched),
        rate(completed),
        runner.runs.load(Ordering::Relaxed),
        world.fsync
    ));
}

/// Transfers that were offered to workers.
async fn offered(world: &World) -> u64 {
    let text = "SELECT count(*) FROM data_transfer WHERE status <> 'pending'";
    world.bed.int(text).await.try_into().expect("a count")
}

async fn done(world: &World) -> u64 {
    let text = "SELECT count(*) FROM data_transfer WHERE status = 'completed'";
    world.bed.int(text).await.try_into().expect("a count")
}

async fn latency(world: &World, seconds: u64) {
    const PER_SECOND: u64 = 100;
    let runner = Arc::new(Nothing::default());
    let daemons = world.daemons(Arc::clone(&runner)).await;
    // Connections are made, statements prepared, queues declared.
    world.register(1 << 40, 20).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(1000 / PER_SECOND));
    let mut ready = Vec::new();
    let mut offering = tokio::task::JoinSet::new();
    let offered = Arc::new(Mutex::new(HashMap::new()));
    for n in 0..seconds * PER_SECOND {
        ticks.tick().await;
        let (store, offered) = (world.bed.store.clone(), Arc::clone(&offered));
        offering.spawn(async move {
            let registered = store.register(&[package(n)], &[destination()], "bench").await.expect("register");
            offered.lock().expect("no panic before").insert(registered[0].package, Instant::now());
        });
    }
    while offering.join_next().await.is_some() {}
    let deadline = Instant::now() + Duration::from_secs(120);
    while (runner.claimed.lock().expect("no panic before").len() as u64) < seconds * PER_SECOND + 20 {
        assert!(Instant::now() < deadline, "packages were not claimed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemons.end().await;
    let claimed = runner.claimed.lock().expect("no panic before");
    for (package, since) in offered.lock().expect("no panic before").iter() {
        ready.push(claimed[package].saturating_duration_since(*since));
    }
    let spread = Spread::of(ready);
    let (p50, p99) = (spread.at(50), spread.at(99));
    let target = |fixed: u64, fsync: Duration| Duration::from_millis(fixed) + 4 * fsync;
    let (most50, most99) = (target(10, world.fsync.at(50)), target(100, world.fsync.at(99)));
    world.say(&format!(
        "latency      {PER_SECOND}/s offered: {spread}; of the limit {most50:.1?}: {:.2}, of {most99:.1?}: {:.2}; fsync {}",
        p50.as_secs_f64() / most50.as_secs_f64(),
        p99.as_secs_f64() / most99.as_secs_f64(),
        world.fsync
    ));
}

/// The same looks with few rows and with many.
async fn rows(world: &World, many: u64) {
    const FEW: u64 = 1000;
    const LOOKS: usize = 40;
    let store = &world.bed.store;
    let queue: QueueName = "ccat_buffer_data_transfer".parse().expect("a queue");
    let profile = WorkerProfile {
        name: "looks".to_owned(),
        boot_nonce: "1".to_owned(),
        host: "bench".to_owned(),
        process_id: 1,
        version: "1".to_owned(),
        slots: 128,
        lease: Duration::from_secs(3600),
        queues: vec![(queue.clone(), None)],
    };
    let session = store.register_worker(&profile, &store.lease_clock()).await.expect("register a worker");
    let mut limits = PlanLimits::default();
    limits.bundle.packages = 1;
    limits.bundle.age = Duration::ZERO;
    limits.bundles = 1;
    let mut seen = Vec::new();
    let mut there = 0;
    for wanted in [FEW, many] {
        grow(world, there, wanted).await;
        there = wanted;
        let (mut claims, mut ticks) = (Vec::new(), Vec::new());
        let before = resident_kib();
        for _ in 0..LOOKS {
            let start = Instant::now();
            store.settle(500, "bench").await.expect("settle");
            let planned = store.plan(&limits, "bench").await.expect("plan");
            store.schedule("bench").await.expect("schedule");
            ticks.push(start.elapsed());
            assert_eq!(planned.bundles, 1, "a look has work to do");
            let (start, lease) = (Instant::now(), Duration::from_secs(3600));
            let claim = store.claim_next(&session, std::slice::from_ref(&queue), lease, &store.lease_clock()).await;
            claims.push(start.elapsed());
            assert!(claim.expect("claim").is_some(), "there is work");
        }
        seen.push((wanted, Spread::of(claims), Spread::of(ticks), resident_kib().saturating_sub(before)));
    }
    let [(few, claims, ticks, grown), (many, more_claims, more_ticks, more_grown)] = &seen[..] else { return };
    let ratio = |one: &Spread, other: &Spread| other.at(50).as_secs_f64() / one.at(50).as_secs_f64();
    world.say(&format!(
        "rows         claim_next with {few} rows of each kind: {claims}; with {many}: {more_claims}; ratio {:.2} (at most 2)",
        ratio(claims, more_claims)
    ));
    world.say(&format!(
        "rows         a tick with {few} rows of each kind: {ticks}; with {many}: {more_ticks}; ratio {:.2} (at most 2); \
         memory grew by {grown} and {more_grown} KiB",
        ratio(ticks, more_ticks)
    ));
}

fn resident_kib() -> u64 {
    harness::status_kib(std::process::id().cast_signed(), "VmRSS:").expect("a status")
}

/// Makes the table hold `to` rows of each kind instead of `from`: requests without a bundle, transfers that wait to be
/// offered, that are offered, and that are over. By copying, without triggers: a million registrations would take an hour.
async fn grow(world: &World, from: u64, to: u64) {
    let (over, head, series, hash, boolean) = match world.bed.store.backend() {
        Backend::Sqlite => (
            "",
            format!("WITH RECURSIVE s(n) AS (VALUES({from}) UNION ALL SELECT n + 1 FROM s WHERE n < {to} - 1)"),
            "s".to_owned(),
            "CAST(printf('%032d', n) AS BLOB)",
            ["0", "1"],
        ),
        Backend::Postgres => (
            "OVERRIDING SYSTEM VALUE",
            String::new(),
            format!("generate_series({from}::bigint, {to}::bigint - 1) AS s(n)"),
            "convert_to(lpad(n::text, 32, '0'), 'UTF8')",
            ["FALSE", "TRUE"],
        ),
    };
    let [no, yes] = boolean;
    let (here, there) = (world.bed.location("ccat_buffer").await, world.bed.location("cologne_buffer").await);
    let site = world.bed.int("SELECT id FROM site WHERE short_name = 'cologne'").await;
    let route = world.bed.int("SELECT id FROM data_transfer_route").await;
    // Ids far from those that are given out, before and after: the databases go on behind the largest one.
    const BASE: u64 = 1 << 40;
    let base_of = |kind: u64| BASE * kind + (from << 12);
    let packages = base_of(1);
    let by = "'bench', 'bench'";
    let mut texts = vec![
        format!(
            "INSERT INTO raw_data_package (id, name, kind, origin_location_id, relative_path, size_bytes, file_count, \
             identity, changed_by, change_reason) {over} {head} SELECT {packages} + n, 'p', 'file', {here}, {hash}, 1000, 1, \
             {hash}, {by} FROM {series}"
        ),
        format!(
            "INSERT INTO package_digest (package_id, algorithm, digest) {over} {head} SELECT {packages} + n, 'blake3', {hash} FROM {series}"
        ),
        // Where somebody else decides which location it will be.
        format!(
            "INSERT INTO transfer_request (id, package_id, origin_location_id, destination_site_id, requested_by) \
             {over} {head} SELECT {packages} + n, {packages} + n, {here}, {site}, 'bench' FROM {series}"
        ),
    ];
    for (kind, status) in (1_u64..).zip(["pending", "scheduled", "completed"]) {
        let base = base_of(1 + kind);
        texts.push(format!(
            "INSERT INTO data_transfer_package (id, origin_location_id, size_bytes, package_count, created_by) \
             {over} {head} SELECT {base} + n, {here}, 1000, 1, 'bench' FROM {series}"
        ));
        let (settled, end) = if status == "completed" { (yes, "5") } else { (no, "NULL") };
        texts.push(format!(
            "INSERT INTO data_transfer (id, data_transfer_package_id, route_id, origin_location_id, \
             destination_location_id, queue_location_id, ready, status, bytes_total, settled, finished_at, changed_by, \
             change_reason) {over} {head} SELECT {base} + n, {base} + n, {route}, {here}, {there}, {here}, {yes}, '{status}', \
             1000, {settled}, {end}, {by} FROM {series}"
        ));
    }
    // What is offered has its package.
    let (offered, bundles) = (base_of(2), base_of(3));
    texts.push(format!(
        "INSERT INTO transfer_request (id, package_id, origin_location_id, destination_site_id, destination_location_id, \
         data_transfer_package_id, planned_at, requested_by) {over} {head} SELECT {offered} + n, {packages} + n, {here}, {site}, \
         {there}, {bundles} + n, 5, 'bench' FROM {series}"
    ));
    match &world.bed.raw {
        Raw::Sqlite(pool) => {
            let triggers: Vec<(String, String)> =
                sqlx::query_as("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
                    .fetch_all(pool)
                    .await
                    .expect("read the schema");
            let drop = triggers.iter().map(|(name, _)| format!("DROP TRIGGER {name}"));
            let make = triggers.iter().map(|(_, text)| text.clone());
            let all: Vec<_> = drop.chain(texts).chain(make).chain(["ANALYZE".to_owned()]).collect();
            let text = format!("BEGIN; {}; COMMIT", all.join(";\n"));
            sqlx::raw_sql(AssertSqlSafe(text)).execute(pool).await.expect("copy rows");
        }
        Raw::Postgres(pool) => {
            let text = format!("SET session_replication_role = replica; {}; ANALYZE", texts.join(";\n"));
            let mut connection = pool.acquire().await.expect("a connection").detach();
            sqlx::raw_sql(AssertSqlSafe(text)).execute(&mut connection).await.expect("copy rows");
        }
    }
}

/// Measured times, in order.
struct Spread(Vec<Duration>);

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * percent / 100).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.1?}, p99 {:.1?}", self.at(50), self.at(99))
    }
}

/// What it costs to make one page durable where the database lies.
fn fsync(folder: &Path) -> Spread {
    let file = File::create(folder.join("fsync")).expect("make a file");
    let page = [7; 8192];
    let times = (0..200).map(|n| {
        let start = Instant::now();
        file.write_all_at(&page, n * 8192).and_then(|()| file.sync_data()).expect("write a page");
        start.elapsed()
    });
    Spread::of(times.collect())
}
