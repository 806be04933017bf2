//! Two sites on this machine, each with a buffer and an endpoint, and the daemons of the control plane between them as
//! processes of their own: on one SQLite file, where workers find work by looking, or on PostgreSQL with a login for each
//! kind of daemon and hints through RabbitMQ. Plain SQL beside it sees what the daemons left.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, Row as _, SqlitePool};
use tokio::runtime::Runtime;

use crate::harness::{
    Durability, Finished, PROGRAM, Postgres, Rabbitmq, Running, Scene, free_port, make_identity, own_home, skip, spawn,
    trust,
};

/// Nothing may hang; a machine that is busy with others is slow.
pub(crate) const HANG: Duration = Duration::from_secs(300);

/// What the daemons stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    /// PostgreSQL and RabbitMQ.
    Servers,
}

impl Backend {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Servers => "postgres+rabbitmq",
        }
    }

    /// Whether it can be had here; says so if not.
    pub(crate) fn is_missing(self, test: &str) -> bool {
        let missing = match self {
            Self::Sqlite => None,
            Self::Servers => Postgres::missing().or_else(Rabbitmq::missing),
        };
        if let Some(why) = missing {
            skip(test, why);
        }
        missing.is_some()
    }
}

/// What differs between worlds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// The route's.
    pub(crate) dialer: &'a str,
    /// The route's limit in bytes per second.
    pub(crate) rate: Option<&'a str>,
    /// Lines of the table `[worker]`.
    pub(crate) worker: &'a str,
    /// Lines of the table `[manager]`.
    pub(crate) manager: &'a str,
    /// Between looks for work that no hint told of; else 1 h where there is a broker, and 200 ms where there is none.
    pub(crate) poll: Option<&'a str>,
    /// Whether bytes are to be moved at all.
    pub(crate) endpoints: bool,
    /// Cologne's archives.
    pub(crate) archives: &'a [Shelf<'a>],
}

/// A long-term archive of cologne.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shelf<'a> {
    pub(crate) name: &'a str,
    /// `disk`, `s3` or `tape`.
    pub(crate) storage: &'a str,
    /// More lines of its table of the topology.
    pub(crate) topology: &'a str,
    /// Lines of its table of the worker's settings; `ROOT` stands for a folder of the scene with its name.
    pub(crate) settings: &'a str,
}

impl Default for Terms<'_> {
    fn default() -> Self {
        Self {
            dialer: "origin",
            rate: None,
            worker: "",
            manager: "bundle_packages = 1",
            poll: None,
            endpoints: true,
            archives: &[],
        }
    }
}

/// The two sites and what belongs to them.
pub(crate) struct World {
    /// Killed when they are dropped.
    endpoints: Vec<Running>,
    raw: Raw,
    pub(crate) runtime: Runtime,
    pub(crate) backend: Backend,
    // Behind those that talk to them.
    pub(crate) postgres: Option<Postgres>,
    pub(crate) rabbit: RefCell<Option<Rabbitmq>>,
    // Last: it ends by force what has not ended by then.
    pub(crate) scene: Scene,
}

enum Raw {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl World {
    pub(crate) fn new(name: &str, backend: Backend, terms: &Terms<'_>) -> Self {
        let scene = Scene::new(name);
        let servers = backend == Backend::Servers;
        let postgres = servers.then(|| Postgres::start(&scene, Durability::Speed));
        let rabbit = servers.then(|| Rabbitmq::start("hints"));
        let worker = scene.join("worker");
        make_identity(&scene, &worker, "worker");
        let (endpoints, mut topology) = sites(&scene, &worker, terms);
        let rate = terms.rate.map(|r| format!("rate_limit = \"{r}\"\n")).unwrap_or_default();
        topology.push_str(&format!(
            "[[route]]\nname = \"there\"\nfrom = \"ccat\"\nto = \"cologne\"\ndialer = \"{}\"\n{rate}",
            terms.dialer
        ));
        for shelf in terms.archives {
            topology.push_str(&format!(
                "[[location]]\nsite = \"cologne\"\nname = \"{}\"\ntype = \"long_term_archive\"\nstorage = \"{}\"\n\
                 logins = [\"the_worker\"]\n{}\n",
                shelf.name, shelf.storage, shelf.topology
            ));
        }
        fs::write(scene.join("topology.toml"), topology).expect("write the topology");
        write_settings(&scene, &worker, postgres.as_ref(), rabbit.as_ref(), terms);
        let runtime = Runtime::new().expect("a runtime");
        let url = database(&scene, postgres.as_ref(), Postgres::ADMIN);
        if servers {
            say(&scene, &["db", "migrate"]);
        }
        say(&scene, &["topology", "apply", "topology.toml"]);
        let raw = runtime.block_on(async {
            if servers {
                let pool = PgPool::connect(&format!("{url}&options=-c%20search_path%3Dccat_xfer")).await;
                let pool = pool.expect("reach the server");
                for text in [
                    "CREATE ROLE the_manager LOGIN IN ROLE ccat_xfer_manager",
                    "CREATE ROLE the_worker LOGIN IN ROLE ccat_xfer_worker",
                ] {
                    sqlx::raw_sql(text).execute(&pool).await.expect("make a login");
                }
                Raw::Postgres(pool)
            } else {
                let options = url.parse::<sqlx::sqlite::SqliteConnectOptions>().expect("an address");
                let options = options.foreign_keys(true).busy_timeout(Duration::from_secs(60));
                Raw::Sqlite(SqlitePool::connect_with(options).await.expect("open the file"))
            }
        });
        Self { endpoints, raw, runtime, backend, postgres, rabbit: RefCell::new(rabbit), scene }
    }

    /// Nobody answers at either site from now on.
    pub(crate) fn end_endpoints(&mut self) {
        for endpoint in self.endpoints.drain(..) {
            endpoint.kill_now();
        }
    }

    /// Daemons have settings, and so a login, of their own.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        command(&self.scene, words)
    }

    /// Runs a command that has to succeed.
    pub(crate) fn say(&self, words: &[&str]) -> Finished {
        say(&self.scene, words)
    }

    /// Starts a daemon, with more of an environment.
    pub(crate) fn launch(&self, words: &[&str], environment: &[(&str, &str)]) -> Running {
        let mut command = self.command(words);
        command.envs(environment.iter().copied());
        spawn(&self.scene, command)
    }

    /// Starts a daemon and waits until it says that it works.
    pub(crate) fn start(&self, words: &[&str], environment: &[(&str, &str)]) -> Running {
        let when = if words[0] == "manager" { "the manager begins" } else { "the worker is registered" };
        let mut running = self.launch(words, environment);
        let begun = running.wait_until(HANG, |r| r.stderr_so_far().contains(when));
        assert!(begun, "{words:?} never said {when:?}:\n{}", running.stderr_so_far());
        running
    }

    pub(crate) fn manager(&self, name: &str) -> Running {
        self.start(&["manager", "transfer"], &[("CCAT_XFER_MANAGER_NAME", name)])
    }

    pub(crate) fn worker(&self, name: &str) -> Running {
        self.start(&worker_words(name), &[])
    }

    pub(crate) fn origin(&self) -> PathBuf {
        self.scene.join("ccat")
    }

    pub(crate) fn destination(&self) -> PathBuf {
        self.scene.join("cologne")
    }

    pub(crate) fn submit(&self, paths: &[&str]) {
        let mut words = vec!["submit", "--json", "--from", "ccat/buffer", "--to", "cologne/buffer"];
        words.extend_from_slice(paths);
        self.say(&words);
    }

    pub(crate) fn submit_with_priority(&self, path: &str, priority: u64) {
        let priority = priority.to_string();
        self.say(&["submit", "--priority", &priority, "--from", "ccat/buffer", "--to", "cologne/buffer", path]);
    }

    /// The database's address for a login.
    pub(crate) fn database(&self, login: &str) -> String {
        database(&self.scene, self.postgres.as_ref(), login)
    }

    /// Rows of these columns, as text; NULL is empty. `rest` is what follows SELECT and its columns.
    pub(crate) fn rows(&self, columns: &[&str], rest: &str) -> Vec<Vec<String>> {
        let text_of = |column: &str| match column.strip_prefix("DISTINCT ") {
            Some(column) => format!("DISTINCT coalesce(CAST({column} AS TEXT), '')"),
            None => format!("coalesce(CAST({column} AS TEXT), '')"),
        };
        let list: Vec<_> = columns.iter().map(|c| text_of(c)).collect();
        let text = format!("SELECT {} {rest}", list.join(", "));
        let read = async {
            let query = AssertSqlSafe(text.clone());
            match &self.raw {
                Raw::Sqlite(pool) => {
                    let rows = sqlx::query(query).fetch_all(pool).await?;
                    Ok(rows.iter().map(|r| (0..columns.len()).map(|n| r.get(n)).collect()).collect())
                }
                Raw::Postgres(pool) => {
                    let rows = sqlx::query(query).fetch_all(pool).await?;
                    Ok(rows.iter().map(|r| (0..columns.len()).map(|n| r.get(n)).collect()).collect())
                }
            }
        };
        self.runtime.block_on(read).unwrap_or_else(|e: sqlx::Error| panic!("{text}: {e}"))
    }

    /// One number.
    pub(crate) fn number(&self, column: &str, rest: &str) -> i64 {
        let rows = self.rows(&[column], rest);
        rows[0][0].parse().unwrap_or_else(|e| panic!("{column} {rest}: {e}"))
    }

    /// Runs a statement.
    pub(crate) fn execute(&self, text: &str) {
        let run = async {
            match &self.raw {
                Raw::Sqlite(pool) => sqlx::raw_sql(AssertSqlSafe(text)).execute(pool).await.map(|_| ()),
                Raw::Postgres(pool) => sqlx::raw_sql(AssertSqlSafe(text)).execute(pool).await.map(|_| ()),
            }
        };
        self.runtime.block_on(run).unwrap_or_else(|e| panic!("{text}: {e}"));
    }

    /// A column of bytes as hexadecimal digits.
    pub(crate) fn hex(&self, column: &str) -> String {
        match self.backend {
            Backend::Sqlite => format!("lower(hex({column}))"),
            Backend::Servers => format!("encode({column}, 'hex')"),
        }
    }

    /// Keeps everybody else from writing to the SQLite file for this long.
    pub(crate) fn hold_the_file(&self, time: Duration) {
        let Raw::Sqlite(pool) = &self.raw else { panic!("there is no file") };
        self.runtime.block_on(async {
            let lock = pool.begin_with("BEGIN EXCLUSIVE").await.expect("the lock");
            tokio::time::sleep(time).await;
            lock.rollback().await.expect("give it back");
        });
    }

    /// Waits until the first row of a query is as wanted, and returns it.
    pub(crate) fn until(
        &self,
        what: &str,
        columns: &[&str],
        rest: &str,
        wanted: impl Fn(&[String]) -> bool,
    ) -> Vec<String> {
        let end = Instant::now() + HANG;
        loop {
            let mut rows = self.rows(columns, rest);
            if rows.first().is_some_and(|row| wanted(row)) {
                return rows.remove(0);
            }
            assert!(Instant::now() < end, "never {what}: {rows:?}\n{}", self.story());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until transfer `id` has this status.
    pub(crate) fn until_status(&self, id: i64, status: &str) {
        let of = format!("FROM data_transfer WHERE id = {id}");
        self.until(&format!("t{id} {status}"), &["status"], &of, |row| row[0] == status);
    }

    /// Waits until some bytes of it are verified, and it runs.
    pub(crate) fn until_midway(&self, id: i64) {
        let of = format!("FROM data_transfer WHERE id = {id}");
        self.until("midway", &["status", "bytes_done"], &of, |row| row[0] == "in_progress" && row[1] != "0");
    }

    /// Everything that happened to work, for a test that fails.
    pub(crate) fn story(&self) -> String {
        let columns = ["entity", "entity_id", "from_state", "to_state", "actor", "fence", "reason"];
        let of =
            "FROM event WHERE entity IN ('data_transfer', 'long_term_archive_transfer') ORDER BY entity, entity_id, id";
        let rows = self.rows(&columns, of);
        rows.iter().map(|row| row.join(" | ")).collect::<Vec<_>>().join("\n")
    }
}

pub(crate) fn worker_words(name: &str) -> [&str; 6] {
    ["worker", "--name", name, "--location", "ccat/buffer", "cologne/buffer"]
}

pub(crate) fn lines(stdout: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn database(scene: &Scene, postgres: Option<&Postgres>, login: &str) -> String {
    match postgres {
        Some(postgres) => postgres.url(login, "postgres"),
        None => format!("sqlite:{}", scene.join("control.db").display()),
    }
}

fn command(scene: &Scene, words: &[&str]) -> Command {
    let settings = match words.first() {
        Some(&"manager") => "manager.toml",
        Some(&"worker") => "worker.toml",
        _ => "control.toml",
    };
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(scene.join(settings)).args(words).current_dir(scene.path());
    own_home(scene, &mut command);
    command
}

fn say(scene: &Scene, words: &[&str]) -> Finished {
    spawn(scene, command(scene, words)).wait(HANG).expect_code(0)
}

/// Starts the endpoints, and begins the topology.
fn sites(scene: &Scene, worker: &Path, terms: &Terms<'_>) -> (Vec<Running>, String) {
    let (mut endpoints, mut topology) = (Vec::new(), String::new());
    for site in ["ccat", "cologne"] {
        let (identity, port) = (scene.join(&format!("{site}-key")), free_port());
        make_identity(scene, &identity, site);
        trust(scene, &identity, worker, "worker");
        let root = scene.folder(site);
        if terms.endpoints {
            let settings = format!(
                "identity = \"{identity}\"\n[serve]\nlisten = \"127.0.0.1\"\nport = {port}\nsandbox = false\n\
                 [[serve.location]]\nname = \"{site}_buffer\"\npath = \"{root}\"\n\
                 [[serve.location.right]]\npeer = \"worker\"\nmay = [\"list\", \"read\", \"create\"]\n",
                identity = identity.display(),
                root = root.display()
            );
            let file = scene.join(&format!("{site}.toml"));
            fs::write(&file, settings).expect("write the settings");
            let mut command = Command::new(PROGRAM);
            command.arg("--config").arg(&file).args(["--log", "info", "serve"]);
            own_home(scene, &mut command);
            let mut server = spawn(scene, command);
            let listens = server.wait_until(HANG, |s| s.stderr_so_far().contains("serving QUIC and TCP"));
            assert!(listens, "{site} does not listen:\n{}", server.stderr_so_far());
            endpoints.push(server);
        }
        topology.push_str(&format!(
            "[[peer]]\nname = \"{site}\"\naddress = \"127.0.0.1:{port}\"\nfingerprint = \"{}\"\n\
             [[site]]\nname = \"{site} site\"\nshort_name = \"{site}\"\n\
             [[location]]\nsite = \"{site}\"\nname = \"buffer\"\ntype = \"buffer\"\npeer = \"{site}\"\n\
             logins = [\"the_worker\"]\n",
            fingerprint(scene, &identity)
        ));
    }
    (endpoints, topology)
}

fn write_settings(
    scene: &Scene,
    worker: &Path,
    postgres: Option<&Postgres>,
    rabbit: Option<&Rabbitmq>,
    terms: &Terms<'_>,
) {
    let broker = rabbit.map(|rabbit| {
        let credentials = scene.join("guest");
        fs::write(&credentials, "guest:guest").expect("write the credentials");
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("keep the credentials");
        let port = rabbit.port();
        format!("[broker]\nurl = \"amqp://127.0.0.1:{port}\"\ncredentials_file = \"{}\"\n", credentials.display())
    });
    // With a broker nobody looks by the clock: a hint or the database's own notice has to come.
    let poll = terms.poll.unwrap_or_else(|| if rabbit.is_some() { "1h" } else { "200ms" });
    for (file, login) in [("control", Postgres::ADMIN), ("manager", "the_manager"), ("worker", "the_worker")] {
        let settings = format!(
            "identity = \"{identity}\"\nlog = \"info\"\n[database]\nurl = \"{database}\"\n{broker}\
             [manager]\n{manager}\n[worker]\npoll = \"{poll}\"\n{worker}\n\
             [locations.\"ccat/buffer\"]\nroot = \"{ccat}\"\n[locations.\"cologne/buffer\"]\nroot = \"{cologne}\"\n\
             {shelves}",
            identity = worker.display(),
            database = database(scene, postgres, login),
            broker = broker.as_deref().unwrap_or_default(),
            manager = terms.manager,
            worker = terms.worker,
            ccat = scene.join("ccat").display(),
            cologne = scene.join("cologne").display(),
            shelves = shelves(scene, terms.archives)
        );
        fs::write(scene.join(&format!("{file}.toml")), settings).expect("write the settings");
    }
}

fn shelves(scene: &Scene, archives: &[Shelf<'_>]) -> String {
    let table = |shelf: &Shelf<'_>| {
        let root = scene.join(shelf.name);
        let settings = shelf.settings.replace("ROOT", &root.display().to_string());
        format!("[locations.\"cologne/{}\"]\narchive = \"{}\"\n{settings}\n", shelf.name, shelf.storage)
    };
    archives.iter().map(table).collect()
}

fn fingerprint(scene: &Scene, identity: &Path) -> String {
    let mut command = Command::new(PROGRAM);
    command.arg("--identity").arg(identity).args(["cert", "show"]);
    own_home(scene, &mut command);
    let said = spawn(scene, command).wait(HANG).expect_code(0).said();
    let words = said.split(|c: char| !c.is_ascii_hexdigit());
    words.into_iter().find(|w| w.len() == 64).unwrap_or_else(|| panic!("no fingerprint: {said}")).to_owned()
}
