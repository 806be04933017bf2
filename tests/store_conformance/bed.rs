use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use ccat_xfer::{
    chunk::RelPath,
    model::{PackageId, PackageKind, Policy, topology::Topology},
    store::{Apply, Backend, Destination, NewPackage, Registered, Store},
};
use sqlx::{AssertSqlSafe, Executor as _, PgPool, Row as _, SqlitePool};

use crate::harness::{Postgres, Scene};

pub(crate) const TOPOLOGY: &str = r#"
[[peer]]
name = "cologne"
address = "xfer.cologne.example:8422"
fingerprint = "sha256:00000000000000000000000000000000000000000000000000000000000000aa"
[[peer]]
name = "us"
address = "xfer.us.example:8422"
fingerprint = "sha256:00000000000000000000000000000000000000000000000000000000000000bb"

[[site]]
name = "CCAT Observatory"
short_name = "ccat"
[[site]]
name = "Cologne"
short_name = "cologne"
[[site]]
name = "Ithaca"
short_name = "us"

[[location]]
site = "ccat"
name = "output_buffer"
type = "buffer"
logins = ["worker_ccat"]
[[location]]
site = "cologne"
name = "buffer"
type = "buffer"
peer = "cologne"
keep_free = "1T"
logins = ["worker_cologne"]
[[location]]
site = "cologne"
name = "lta"
type = "long_term_archive"
storage = "s3"
logins = ["worker_cologne"]
[[location]]
site = "us"
name = "buffer"
type = "buffer"
peer = "us"
max_concurrent = 3

[[route]]
name = "ccat-cologne"
from = "ccat"
to = "cologne"
rate_limit = "800Mbit"
[[route]]
name = "cologne-us"
from = "cologne"
to = "us"
dialer = "destination"
[[route]]
name = "ccat-us"
type = "relay"
from = "ccat"
to = "us"
via = "cologne"
"#;

/// One database: the store under test, and plain SQL beside it.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) store: Store,
    pub(crate) raw: Raw,
    address: Address,
    next: AtomicU64,
}

#[derive(Debug)]
enum Address {
    File(String),
    Server { folder: String, database: String },
}

#[derive(Debug)]
pub(crate) enum Raw {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// What a database said no with.
pub(crate) type Refused = String;

impl Bed {
    pub(crate) async fn sqlite(scene: &Scene, name: &str) -> Self {
        let url = format!("sqlite:{}", scene.join(&format!("{name}.db")).display());
        let store = Store::open(&url).await.expect("open a file");
        let options = url
            .parse::<sqlx::sqlite::SqliteConnectOptions>()
            .expect("an address")
            .foreign_keys(true)
            .busy_timeout(std::time::Duration::from_secs(20));
        let raw = SqlitePool::connect_with(options).await.expect("open it again");
        Self { store, raw: Raw::Sqlite(raw), address: Address::File(url), next: AtomicU64::new(0) }
    }

    pub(crate) async fn postgres(server: &Postgres, name: &str) -> Self {
        // An identifier has 63 bytes.
        let database: String = name.chars().take(60).collect();
        let admin = PgPool::connect(&server.url(Postgres::ADMIN, "postgres")).await.expect("reach the server");
        admin.execute(AssertSqlSafe(format!("CREATE DATABASE {database}"))).await.expect("make a database");
        admin.close().await;
        let url = server.url(Postgres::ADMIN, &database);
        let folder = url.split("?host=").nth(1).expect("a folder").to_owned();
        let store = Store::connect(&url).await.expect("connect");
        store.migrate().await.expect("migrate");
        let raw = PgPool::connect(&format!("{url}&options=-c%20search_path%3Dccat_xfer")).await.expect("connect");
        let address = Address::Server { folder, database };
        Self { store, raw: Raw::Postgres(raw), address, next: AtomicU64::new(0) }
    }

    pub(crate) fn url(&self) -> String {
        self.url_of(Postgres::ADMIN)
    }

    pub(crate) fn url_of(&self, login: &str) -> String {
        match &self.address {
            Address::File(url) => url.clone(),
            Address::Server { folder, database } => format!("postgres://{login}@localhost/{database}?host={folder}"),
        }
    }

    pub(crate) fn database(&self) -> String {
        match &self.address {
            Address::File(path) => path.clone(),
            Address::Server { database, .. } => database.clone(),
        }
    }

    /// The same database with another login; it exists afterwards and has that role.
    pub(crate) async fn login(&self, login: &str, role: &str) -> Raw {
        self.exec(&format!(
            "DO $$ BEGIN IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = '{login}') THEN \
             CREATE ROLE {login} LOGIN; END IF; END $$"
        ))
        .await
        .expect("make a login");
        self.exec(&format!("GRANT ccat_xfer_{role} TO {login}")).await.expect("grant a role");
        let url = format!("{}&options=-c%20search_path%3Dccat_xfer", self.url_of(login));
        Raw::Postgres(PgPool::connect(&url).await.expect("log in"))
    }

    pub(crate) async fn close(&self) {
        self.store.close().await;
        match &self.raw {
            Raw::Sqlite(pool) => pool.close().await,
            Raw::Postgres(pool) => pool.close().await,
        }
    }

    pub(crate) async fn exec(&self, text: &str) -> Result<u64, Refused> {
        self.raw.exec(text).await
    }

    pub(crate) async fn int(&self, text: &str) -> i64 {
        self.raw.int(text).await.unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// Fails unless the database refuses, and for this reason.
    pub(crate) async fn refused(&self, text: &str, why: &str) {
        self.raw.refused(text, why).await;
    }

    pub(crate) async fn done(&self, text: &str) {
        let rows = self.exec(text).await.unwrap_or_else(|e| panic!("{text}: {e}"));
        assert!(rows > 0, "no row was touched: {text}");
    }

    /// Bytes as a literal.
    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self.store.backend() {
            Backend::Sqlite => format!("X'{hex}'"),
            Backend::Postgres => format!("'\\x{hex}'::bytea"),
        }
    }

    pub(crate) async fn apply_topology(&self) {
        let topology = Topology::parse(TOPOLOGY).expect("a topology");
        self.store.apply_topology(&topology, "test", Apply::Now).await.expect("apply");
    }

    pub(crate) fn package(&self, path: &str) -> NewPackage {
        NewPackage {
            name: path.to_owned(),
            kind: PackageKind::File,
            origin: "ccat/output_buffer".parse().expect("a place"),
            path: RelPath::new(path.as_bytes()).expect("a path"),
            size_bytes: 1000,
            file_count: 1,
            identity: *blake3::hash(path.as_bytes()).as_bytes(),
            sha256: None,
            priority: 4,
            policy: Policy::OneArchive,
            metadata: None,
        }
    }

    pub(crate) async fn register(&self, path: &str, to: &str) -> Registered {
        let destination = Destination::Place(to.parse().expect("a place"));
        self.store.register(&[self.package(path)], &[destination], "test").await.expect("register")[0]
    }

    pub(crate) async fn location(&self, stem: &str) -> i64 {
        self.int(&format!("SELECT id FROM data_location WHERE queue_stem = '{stem}'")).await
    }

    /// A new package on its way to `cologne/buffer`, its transfer pending.
    pub(crate) async fn planned(&self) -> Planned {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let registered = self.register(&format!("run{n}"), "cologne/buffer").await;
        let bundle = self.bundle(&[registered]).await;
        let transfer = self.transfer(bundle, "ccat_output_buffer", "cologne_buffer", 1, None).await.expect("plan");
        Planned { package: registered.package.number(), bundle, transfer }
    }

    pub(crate) async fn bundle(&self, of: &[Registered]) -> i64 {
        let (count, size) = (of.len(), 1000 * of.len());
        let origin = self.location("ccat_output_buffer").await;
        let bundle = self
            .int(&format!(
                "INSERT INTO data_transfer_package (origin_location_id, size_bytes, package_count, created_by) \
                 VALUES ({origin}, {size}, {count}, 'test') RETURNING id"
            ))
            .await;
        for one in of {
            self.done(&format!(
                "UPDATE transfer_request SET data_transfer_package_id = {bundle}, planned_at = 1 WHERE id = {}",
                one.request.number()
            ))
            .await;
        }
        bundle
    }

    pub(crate) async fn transfer(
        &self,
        bundle: i64,
        from: &str,
        to: &str,
        hop: u32,
        waits_for: Option<i64>,
    ) -> Result<i64, Refused> {
        let (from, to) = (self.location(from).await, self.location(to).await);
        let waits = waits_for.map_or_else(|| "NULL".to_owned(), |id| id.to_string());
        self.raw
            .int(&format!(
                "INSERT INTO data_transfer (data_transfer_package_id, route_id, origin_location_id, \
                 destination_location_id, queue_location_id, hop, waits_for, ready, bytes_total, changed_by, \
                 change_reason) SELECT {bundle}, (SELECT min(id) FROM data_transfer_route), {from}, {to}, {from}, {hop}, \
                 {waits}, {}, size_bytes, 'test', 'planned' FROM data_transfer_package WHERE id = {bundle} RETURNING id",
                waits_for.is_none()
            ))
            .await
    }

    /// The worker that owns what is claimed here.
    pub(crate) async fn worker(&self) -> i64 {
        let there = self.int("SELECT count(*) FROM worker").await;
        if there == 0 {
            self.done(
                "INSERT INTO worker (name, boot_nonce, host, process_id, version, state, slots, lease_us, heartbeat_at, \
                 heartbeat_boot, heartbeat_until) VALUES ('w', 'n', 'h', 1, '0', 'active', 4, 10000000, 1, '', 2)",
            )
            .await;
        }
        self.int("SELECT min(id) FROM worker").await
    }

    pub(crate) async fn claim(&self, transfer: i64) {
        // Nothing is to do where it is scheduled already.
        self.exec(&format!(
            "UPDATE data_transfer SET status = 'scheduled', changed_by = 'test', change_reason = 'due' \
             WHERE id = {transfer} AND status <> 'scheduled'"
        ))
        .await
        .expect("schedule");
        let text = set_status("in_progress", self.worker().await);
        self.done(&format!(
            "UPDATE data_transfer SET {text}, fence = fence + 1, attempt = attempt + 1 WHERE id = {transfer}"
        ))
        .await;
    }

    /// A verification record of a planned package, with the changes named.
    pub(crate) fn record(&self, planned: &Planned, location: i64, fence: i64, but: &[(&str, String)]) -> String {
        let digest = self.blob(&[0; 32]);
        let identity = format!("(SELECT identity FROM raw_data_package WHERE id = {})", planned.package);
        let mut columns: BTreeMap<&str, String> = BTreeMap::from([
            ("package_id", planned.package.to_string()),
            ("location_id", location.to_string()),
            ("data_transfer_id", planned.transfer.to_string()),
            ("fence", fence.to_string()),
            ("algorithm", "'blake3'".into()),
            ("expected_digest", identity.clone()),
            ("found_digest", identity),
            ("expected_size_bytes", "1000".into()),
            ("found_size_bytes", "1000".into()),
            ("method", "'received'".into()),
            ("medium", "'disk'".into()),
            ("cached", "TRUE".into()),
            ("host", "'h'".into()),
            ("version", "'0'".into()),
            ("started_at", "1".into()),
            ("ended_at", "2".into()),
        ]);
        for (column, value) in but {
            columns.insert(column, value.replace("ZEROS", &digest));
        }
        let names: Vec<&str> = columns.keys().copied().collect();
        let values: Vec<&str> = columns.values().map(String::as_str).collect();
        format!("INSERT INTO verification_record ({}) VALUES ({})", names.join(", "), values.join(", "))
    }

    pub(crate) fn copy(&self, package: i64, location: i64) -> String {
        format!(
            "INSERT INTO physical_copy (package_id, location_id, path, size_bytes, status, verification, changed_by, \
             change_reason) VALUES ({package}, {location}, {}, 1000, 'present', 'verified', 'test', 'arrived')",
            self.blob(b"x")
        )
    }

    /// All that `completed` asks for.
    pub(crate) async fn prove(&self, planned: &Planned, fence: i64) {
        let to = self.location("cologne_buffer").await;
        self.done(&self.record(planned, to, fence, &[])).await;
        self.done(&self.copy(planned.package, to)).await;
    }

    pub(crate) async fn move_to(&self, transfer: i64, status: &str) -> Result<u64, Refused> {
        let text = set_status(status, self.worker().await);
        self.exec(&format!("UPDATE data_transfer SET {text} WHERE id = {transfer}")).await
    }
}

/// The columns that go with a status.
pub(crate) fn set_status(status: &str, worker: i64) -> String {
    let (owner, lease, boot) =
        if status == "in_progress" { (worker.to_string(), "5", "''") } else { ("NULL".into(), "NULL", "NULL") };
    let finished = if matches!(status, "completed" | "failed") { "7" } else { "NULL" };
    let (class, text) = if status == "failed" { ("'network'", "'gone'") } else { ("NULL", "NULL") };
    format!(
        "status = '{status}', owner = {owner}, lease_until = {lease}, lease_boot = {boot}, claimed_at = 3, \
         finished_at = {finished}, error_class = {class}, error_text = {text}, changed_by = 'test', \
         change_reason = 'to {status}'"
    )
}

/// A package with its bundle and transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) package: i64,
    pub(crate) bundle: i64,
    pub(crate) transfer: i64,
}

impl Planned {
    pub(crate) fn id(&self) -> PackageId {
        PackageId::new(self.package)
    }
}

impl Raw {
    pub(crate) async fn exec(&self, text: &str) -> Result<u64, Refused> {
        let text = AssertSqlSafe(text.to_owned());
        match self {
            Self::Sqlite(pool) => pool.execute(text).await.map(|r| r.rows_affected()),
            Self::Postgres(pool) => pool.execute(text).await.map(|r| r.rows_affected()),
        }
        .map_err(|e| e.to_string())
    }

    /// The one number that a statement returns.
    pub(crate) async fn int(&self, text: &str) -> Result<i64, Refused> {
        let text = AssertSqlSafe(text.to_owned());
        match self {
            Self::Sqlite(pool) => sqlx::query(text).fetch_one(pool).await.and_then(|r| r.try_get(0)),
            Self::Postgres(pool) => sqlx::query(text).fetch_one(pool).await.and_then(|r| r.try_get(0)),
        }
        .map_err(|e| e.to_string())
    }

    pub(crate) async fn refused(&self, text: &str, why: &str) {
        match self.exec(text).await {
            Ok(rows) => panic!("it was done ({rows} rows), and should have been refused ({why}): {text}"),
            Err(said) => assert!(said.contains(why), "refused, but not for '{why}': {said}\n{text}"),
        }
    }
}
