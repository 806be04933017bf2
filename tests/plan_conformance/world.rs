//! A topology with every kind of way, and a worker that does its work without bytes.

use std::time::Duration;

use ccat_xfer::{
    chunk::RelPath,
    model::{
        AttemptOutcome, CheckMethod, Ending, ErrorClass, Evidence, PackageKind, Policy, ReadHow, StorageType,
        TransferId, Work, topology::Topology,
    },
    store::{Apply, Claim, Destination, NewPackage, PlanLimits, Registered, Store, WorkerProfile, WorkerSession},
};

use sqlx::Row as _;

use crate::bed::{Bed, Raw};

/// Far from `ccat`: `chile`, over `cologne`. `cologne` has two buffers. `cologne` and `us` have archives.
pub(crate) const WORLD: &str = r#"
[[peer]]
name = "ccat"
address = "xfer.ccat.example:8422"
fingerprint = "sha256:000000000000000000000000000000000000000000000000000000000000000a"
[[peer]]
name = "cologne"
address = "xfer.cologne.example:8422"
fingerprint = "sha256:000000000000000000000000000000000000000000000000000000000000000b"
[[peer]]
name = "us"
address = "xfer.us.example:8422"
fingerprint = "sha256:000000000000000000000000000000000000000000000000000000000000000c"
[[peer]]
name = "chile"
address = "xfer.chile.example:8422"
fingerprint = "sha256:000000000000000000000000000000000000000000000000000000000000000d"

[[site]]
name = "CCAT"
short_name = "ccat"
[[site]]
name = "Cologne"
short_name = "cologne"
[[site]]
name = "Ithaca"
short_name = "us"
[[site]]
name = "Santiago"
short_name = "chile"

[[location]]
site = "ccat"
name = "out"
type = "buffer"
peer = "ccat"
[[location]]
site = "ccat"
name = "special"
type = "source"
peer = "ccat"
[[location]]
site = "cologne"
name = "first"
type = "buffer"
peer = "cologne"
priority = 1
[[location]]
site = "cologne"
name = "second"
type = "buffer"
peer = "cologne"
priority = 2
[[location]]
site = "cologne"
name = "lab"
type = "processing"
peer = "cologne"
[[location]]
site = "cologne"
name = "lta"
type = "long_term_archive"
[[location]]
site = "us"
name = "buffer"
type = "buffer"
peer = "us"
[[location]]
site = "us"
name = "lta"
type = "long_term_archive"
[[location]]
site = "chile"
name = "buffer"
type = "buffer"
peer = "chile"

[[route]]
name = "ccat-cologne"
from = "ccat"
to = "cologne"
[[route]]
name = "ccat-us"
from = "ccat"
to = "us"
[[route]]
name = "special-lab"
type = "custom"
from = "ccat/special"
to = "cologne/lab"
[[route]]
name = "cologne-us"
from = "cologne"
to = "us"
dialer = "destination"
[[route]]
name = "us-cologne"
from = "us"
to = "cologne"
[[route]]
name = "cologne-chile"
from = "cologne"
to = "chile"
dialer = "destination"
[[route]]
name = "ccat-chile"
type = "relay"
from = "ccat"
to = "chile"
via = "cologne"
"#;

/// Every look plans what is there, each package alone.
pub(crate) fn at_once() -> PlanLimits {
    let mut limits = PlanLimits::default();
    limits.bundle.age = Duration::ZERO;
    limits.bundle.packages = 1;
    // Each step by itself.
    limits.offers = false;
    limits
}

pub(crate) async fn apply(bed: &Bed, topology: &str) {
    let topology = Topology::parse(topology).expect("a topology");
    bed.store.apply_topology(&topology, "test", Apply::Now).await.expect("apply");
}

/// Where a package shall go: `SITE/LOCATION`, `SITE`, or nothing.
fn destination(to: &str) -> Destination {
    match to.parse() {
        Ok(place) => Destination::Place(place),
        Err(_) if to.is_empty() => Destination::Any,
        Err(_) => Destination::Site(to.to_owned()),
    }
}

pub(crate) fn package(path: &str, from: &str, bytes: u64) -> NewPackage {
    NewPackage {
        name: path.to_owned(),
        kind: PackageKind::File,
        origin: from.parse().expect("a place"),
        path: RelPath::new(path.as_bytes()).expect("a path"),
        size_bytes: bytes,
        file_count: 1,
        identity: *blake3::hash(path.as_bytes()).as_bytes(),
        sha256: None,
        priority: 4,
        policy: Policy::TransferOnly,
        metadata: None,
    }
}

pub(crate) async fn submit(bed: &Bed, package: NewPackage, to: &str) -> Registered {
    bed.store.register(&[package], &[destination(to)], "test").await.expect("register")[0]
}

/// Registers and plans one package; returns its transfers.
pub(crate) async fn planned(bed: &Bed, path: &str, from: &str, to: &str) -> Vec<i64> {
    let registered = submit(bed, package(path, from, 1000), to).await;
    bed.store.plan(&at_once(), "manager").await.expect("plan");
    transfers(bed, registered.package.number()).await
}

/// The transfers of a package, in the order in which they were made.
pub(crate) async fn transfers(bed: &Bed, package: i64) -> Vec<i64> {
    let detail = bed.store.package_detail(ccat_xfer::model::PackageId::new(package)).await.expect("show");
    detail.requests.iter().flat_map(|r| r.transfers.iter().map(|t| t.number())).collect()
}

pub(crate) fn work(transfer: i64) -> Work {
    Work::Transfer(TransferId::new(transfer))
}

/// `FROM -> TO over ROUTE, hop N` of a transfer.
pub(crate) async fn way(bed: &Bed, transfer: i64) -> String {
    let row = bed.store.work_detail(work(transfer)).await.expect("show").row;
    format!("{} -> {} over {}, hop {}", row.origin, row.destination, row.route.unwrap_or_default(), row.hop)
}

pub(crate) async fn status(bed: &Bed, transfer: i64) -> String {
    bed.store.work_detail(work(transfer)).await.expect("show").row.status.to_string()
}

pub(crate) async fn worker(store: &Store, name: &str, slots: u32, queues: &[&str]) -> WorkerSession {
    let profile = WorkerProfile {
        name: name.to_owned(),
        boot_nonce: "nonce".into(),
        host: "h".into(),
        process_id: 1,
        version: "0".into(),
        slots,
        lease: Duration::from_secs(600),
        queues: queues.iter().map(|q| (q.parse().expect("a queue"), None)).collect(),
    };
    store.register_worker(&profile, &store.lease_clock()).await.expect("register a worker")
}

pub(crate) async fn claim(store: &Store, worker: &WorkerSession) -> Option<Claim> {
    let queues: Vec<_> = worker.queues().cloned().collect();
    let clock = store.lease_clock();
    store.claim_next(worker, &queues, Duration::from_secs(600), &clock).await.expect("claim")
}

/// Ends a claim, with all packages if it is completed and with none otherwise.
pub(crate) async fn end(store: &Store, worker: &WorkerSession, claim: &Claim, ending: Ending) {
    let done = ending == Ending::Completed;
    end_with(store, worker, claim, ending, |_| done).await;
}

/// Ends a claim that brought these packages over.
pub(crate) async fn end_with(
    store: &Store,
    worker: &WorkerSession,
    claim: &Claim,
    ending: Ending,
    brought: impl Fn(&str) -> bool,
) {
    let now = store.now().await.expect("the time");
    let is_archive = matches!(claim.work, Work::Archive(_));
    let mut outcome = AttemptOutcome::new(claim.work, claim.fence, worker.name(), claim.claimed_at, now, ending);
    for member in claim.members.iter().filter(|member| brought(&member.name)) {
        outcome.bytes_done += member.size_bytes;
        outcome.evidence.push(Evidence {
            package: member.package,
            location: claim.destination.location,
            path: member.relative_path.clone(),
            algorithm: member.digests[0].algorithm,
            expected_digest: member.digests[0].value,
            found_digest: member.digests[0].value,
            expected_size_bytes: member.size_bytes,
            found_size_bytes: member.size_bytes,
            method: if is_archive { CheckMethod::ReadBack } else { CheckMethod::Received },
            medium: StorageType::Disk,
            cached: false,
            how: is_archive.then_some(ReadHow::Direct),
            unread_reason: None,
            host: "h".into(),
            version: "0".into(),
            receiver_key: None,
            started_at: now,
            ended_at: now,
        });
    }
    store.finish(&outcome, 7).await.expect("finish");
}

pub(crate) fn failure(class: ErrorClass) -> Ending {
    Ending::Failed { class, chain: vec![format!("a planted {class}"), "because".into()] }
}

/// Schedules, claims and ends what a worker finds first. Returns the transfer.
pub(crate) async fn run_one(bed: &Bed, worker: &WorkerSession, ending: Ending) -> i64 {
    bed.store.schedule("manager").await.expect("schedule");
    let claim = claim(&bed.store, worker).await.expect("work to claim");
    end(&bed.store, worker, &claim, ending).await;
    claim.work.number()
}

pub(crate) async fn state(bed: &Bed, package: i64) -> String {
    let detail = bed.store.package_detail(ccat_xfer::model::PackageId::new(package)).await.expect("show");
    detail.row.state.to_string()
}

/// Sets columns of a location, by its queue's stem.
pub(crate) async fn set_location(bed: &Bed, stem: &str, what: &str) {
    bed.done(&format!(
        "UPDATE data_location SET {what}, changed_by = 'test', change_reason = 'set' WHERE queue_stem = '{stem}'"
    ))
    .await;
}

/// A worker said just now how many bytes are free at a location.
pub(crate) async fn set_free(bed: &Bed, stem: &str, bytes: u64) {
    let now = bed.store.now().await.expect("the time").micros();
    set_location(bed, stem, &format!("free_bytes = {bytes}, free_bytes_at = {now}")).await;
}

/// How SQLite would run a statement; nothing on another database.
pub(crate) async fn plan_of(bed: &Bed, text: &str) -> Option<String> {
    let Raw::Sqlite(pool) = &bed.raw else { return None };
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")));
    let rows = rows.fetch_all(pool).await.expect("a plan");
    Some(rows.iter().map(|r| r.get::<String, _>("detail")).collect::<Vec<_>>().join("; "))
}
