//! The whole chain on one machine: real endpoints on loopback, a manager and workers as processes of their own on one
//! SQLite file, or each with its own login on PostgreSQL and with RabbitMQ, and what operators type. Workers are killed, stopped and told to leave in the middle of a transfer; a
//! rate limit of the route holds the transfer there long enough.

mod harness;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use rustix::process::Signal;
use serde_json::Value;

use harness::{
    Durability, Finished, PROGRAM, Postgres, Rabbitmq, Running, Scene, assert_same_tree, free_port, make_identity,
    own_home, seed, skip, spawn, trust, write_file,
};

/// Nothing may hang; a machine that is busy with others is slow.
const HANG: Duration = Duration::from_secs(240);

/// Two sites, each with a buffer and an endpoint, a route between them, and one manager.
struct World {
    /// Killed when it is dropped.
    _endpoints: Vec<Running>,
    manager: Option<Running>,
    // Behind those that talk to them.
    servers: Option<Servers>,
    // Last: it ends by force what has not ended by then.
    scene: Scene,
}

/// What takes the place of the SQLite file and of looking for work.
struct Servers {
    postgres: Postgres,
    rabbit: Rabbitmq,
}

impl Servers {
    fn database(&self, login: &str) -> String {
        self.postgres.url(login, "postgres")
    }

    /// A number that the owner reads.
    fn int(&self, text: &'static str) -> i64 {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let pool = sqlx::PgPool::connect(&self.database(Postgres::ADMIN)).await.expect("reach the server");
            sqlx::query_scalar(text).fetch_one(&pool).await.expect("a number")
        })
    }

    /// A channel of the broker, without our code.
    async fn channel(&self) -> (lapin::Connection, lapin::Channel) {
        let address = format!("amqp://guest:guest@127.0.0.1:{}", self.rabbit.port());
        let connection = lapin::Connection::connect(&address, lapin::ConnectionProperties::default())
            .await
            .expect("RabbitMQ answers");
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    /// How many messages a queue holds.
    fn waiting(&self, queue: &str) -> u32 {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let (connection, channel) = self.channel().await;
            let passive = QueueDeclareOptions::durable().passive();
            let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.expect("the queue");
            let count = found.message_count();
            connection.close(200, "done".into()).await.expect("closed");
            count
        })
    }

    /// Puts a message among the dead letters that no broker of ours would have put there.
    fn forge_dead_letter(&self, message_id: &str, deaths: &str, body: &[u8]) {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
            let (connection, channel) = self.channel().await;
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
            let mut death = FieldTable::default();
            for field in ["queue", "reason"] {
                death.insert(field.into(), AMQPValue::LongString(deaths.into()));
            }
            let mut headers = FieldTable::default();
            let deaths = AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into());
            headers.insert("x-death".into(), deaths);
            let properties = BasicProperties::default().with_message_id(message_id.into()).with_headers(headers);
            let options = BasicPublishOptions::default();
            let sent = channel.basic_publish("".into(), "ccat_xfer.dead".into(), options, body, properties).await;
            assert!(sent.expect("sent").await.expect("confirmed").is_ack());
            connection.close(200, "done".into()).await.expect("closed");
        });
    }

    /// Logins of the roles that `db migrate` made.
    fn make_logins(&self) {
        let make = async {
            let pool = sqlx::PgPool::connect(&self.database(Postgres::ADMIN)).await.expect("reach the server");
            for text in [
                "CREATE ROLE the_manager LOGIN IN ROLE ccat_xfer_manager",
                "CREATE ROLE the_worker LOGIN IN ROLE ccat_xfer_worker",
            ] {
                sqlx::raw_sql(text).execute(&pool).await.expect("make a login");
            }
        };
        tokio::runtime::Runtime::new().expect("a runtime").block_on(make);
    }
}

impl World {
    /// `dialer` is the route's; `rate` its limit in bytes per second, where there is one.
    fn new(name: &str, dialer: &str, rate: Option<&str>) -> Self {
        Self::with(Scene::new(name), dialer, rate, None)
    }

    fn with(scene: Scene, dialer: &str, rate: Option<&str>, servers: Option<Servers>) -> Self {
        let worker = scene.join("worker");
        make_identity(&scene, &worker, "worker");
        let mut topology = String::new();
        let mut endpoints = Vec::new();
        for site in ["ccat", "cologne"] {
            let (identity, port) = (scene.join(&format!("{site}-key")), free_port());
            make_identity(&scene, &identity, site);
            trust(&scene, &identity, &worker, "worker");
            let root = scene.folder(site);
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
            own_home(&scene, &mut command);
            let mut server = spawn(&scene, command);
            let listens = server.wait_until(HANG, |s| s.stderr_so_far().contains("serving QUIC and TCP"));
            assert!(listens, "{site} does not listen:\n{}", server.stderr_so_far());
            endpoints.push(server);
            topology.push_str(&format!(
                "[[peer]]\nname = \"{site}\"\naddress = \"127.0.0.1:{port}\"\nfingerprint = \"{}\"\n\
                 [[site]]\nname = \"{site} site\"\nshort_name = \"{site}\"\n\
                 [[location]]\nsite = \"{site}\"\nname = \"buffer\"\ntype = \"buffer\"\npeer = \"{site}\"\n\
                 logins = [\"the_worker\"]\n",
                fingerprint(&scene, &identity)
            ));
        }
        let rate = rate.map(|r| format!("rate_limit = \"{r}\"\n")).unwrap_or_default();
        topology.push_str(&format!(
            "[[route]]\nname = \"there\"\nfrom = \"ccat\"\nto = \"cologne\"\ndialer = \"{dialer}\"\n{rate}"
        ));
        fs::write(scene.join("topology.toml"), topology).expect("write the topology");
        let broker = servers.as_ref().map(|servers| {
            let credentials = scene.join("guest");
            fs::write(&credentials, "guest:guest").expect("write the credentials");
            fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("keep the credentials");
            let port = servers.rabbit.port();
            format!("[broker]\nurl = \"amqp://127.0.0.1:{port}\"\ncredentials_file = \"{}\"\n", credentials.display())
        });
        // With a broker nobody looks by the clock: a hint or the database's own notice has to come.
        let poll = if servers.is_some() { "1h" } else { "200ms" };
        for (file, login) in [("control", Postgres::ADMIN), ("manager", "the_manager"), ("worker", "the_worker")] {
            let database = match &servers {
                Some(servers) => servers.database(login),
                None => format!("sqlite:{}", scene.join("control.db").display()),
            };
            let settings = format!(
                "identity = \"{identity}\"\nlog = \"info\"\n[database]\nurl = \"{database}\"\n{broker}\
                 [worker]\nlease = \"6s\"\npoll = \"{poll}\"\ndrain = \"1s\"\nreconnect_timeout = \"20s\"\n\
                 [locations.\"ccat/buffer\"]\nroot = \"{ccat}\"\n[locations.\"cologne/buffer\"]\nroot = \"{cologne}\"\n",
                identity = worker.display(),
                broker = broker.as_deref().unwrap_or_default(),
                ccat = scene.join("ccat").display(),
                cologne = scene.join("cologne").display()
            );
            fs::write(scene.join(&format!("{file}.toml")), settings).expect("write the settings");
        }
        let mut world = Self { scene, _endpoints: endpoints, manager: None, servers };
        if let Some(servers) = &world.servers {
            world.say(["db", "migrate"]);
            servers.make_logins();
        }
        world.say(["topology", "apply", "topology.toml"]);
        world.manager = Some(world.start(&["manager", "transfer"], "the manager begins"));
        world
    }

    /// Daemons have settings, and so a login, of their own.
    fn command(&self, words: &[&str]) -> Command {
        let settings = match words.first() {
            Some(&"manager") => "manager.toml",
            Some(&"worker") => "worker.toml",
            _ => "control.toml",
        };
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.scene.join(settings)).args(words).current_dir(self.scene.path());
        own_home(&self.scene, &mut command);
        command
    }

    /// Runs a command that has to succeed.
    fn say<const N: usize>(&self, words: [&str; N]) -> Finished {
        spawn(&self.scene, self.command(&words)).wait(HANG).expect_code(0)
    }

    fn start(&self, words: &[&str], when: &str) -> Running {
        let mut running = spawn(&self.scene, self.command(words));
        let begun = running.wait_until(HANG, |r| r.stderr_so_far().contains(when));
        assert!(begun, "{words:?} never said {when:?}:\n{}", running.stderr_so_far());
        running
    }

    fn worker(&self, name: &str) -> Running {
        let words = ["worker", "--name", name, "--location", "ccat/buffer", "cologne/buffer"];
        self.start(&words, "the worker is registered")
    }

    /// A worker in whose process a panic is planted at a package.
    fn clumsy_worker(&self, package: &str) -> Running {
        let mut command = self.command(&["worker", "--name", "clumsy", "--location", "ccat/buffer", "cologne/buffer"]);
        command.env("CCAT_XFER_PANIC", package);
        let mut running = spawn(&self.scene, command);
        let begun = running.wait_until(HANG, |r| r.stderr_so_far().contains("the worker is registered"));
        assert!(begun, "the worker does not begin:\n{}", running.stderr_so_far());
        running
    }

    fn origin(&self) -> PathBuf {
        self.scene.join("ccat")
    }

    fn destination(&self) -> PathBuf {
        self.scene.join("cologne")
    }

    fn submit(&self, path: &str) -> Vec<Value> {
        let words = ["submit", "--json", "--from", "ccat/buffer", "--to", "cologne/buffer", path];
        lines(&self.say(words).stdout)
    }

    fn transfers(&self) -> Vec<Value> {
        lines(&self.say(["list", "transfers", "--json"]).stdout)
    }

    /// Waits until the first transfer is as wanted.
    fn until(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let end = Instant::now() + HANG;
        loop {
            let transfers = self.transfers();
            if let Some(first) = transfers.first().filter(|t| wanted(t)) {
                return first.clone();
            }
            if Instant::now() > end {
                let manager = self.manager.as_ref().map(Running::stderr_so_far).unwrap_or_default();
                panic!("never {what}: {transfers:?}\n--- manager\n{manager}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn until_status(&mut self, status: &str) -> Value {
        self.until(status, |t| t["status"] == status)
    }

    /// Some bytes are verified at the destination, and the transfer runs.
    fn until_midway(&mut self) -> Value {
        self.until("midway", |t| t["status"] == "in_progress" && t["bytes_done"].as_u64() > Some(0))
    }

    fn history(&self, work: &str) -> Value {
        let shown = self.say(["show", work, "--json"]);
        lines(&shown.stdout).remove(0)
    }

    fn assert_arrived(&self, name: &str) {
        let (from, to) = (self.origin().join(name), self.destination().join(name));
        if from.is_dir() {
            return assert_same_tree(&from, &to);
        }
        let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(read(&from) == read(&to), "{name} differs");
    }
}

fn lines(stdout: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn fingerprint(scene: &Scene, identity: &Path) -> String {
    let mut command = Command::new(PROGRAM);
    command.arg("--identity").arg(identity).args(["cert", "show"]);
    own_home(scene, &mut command);
    let said = spawn(scene, command).wait(HANG).expect_code(0).said();
    let words = said.split(|c: char| !c.is_ascii_hexdigit());
    words.into_iter().find(|w| w.len() == 64).unwrap_or_else(|| panic!("no fingerprint: {said}")).to_owned()
}

/// A night: a folder with files of several sizes.
fn make_night(world: &World) {
    let night = world.origin().join("2026/night");
    fs::create_dir_all(night.join("sub/empty")).expect("make folders");
    let mut rng = seed("control_loop");
    for (n, size) in [0, 1, 70_000, 5 << 20].into_iter().enumerate() {
        write_file(&night.join(format!("sub/f{n}")), size, &mut rng);
    }
    std::os::unix::fs::symlink("f1", night.join("sub/link")).expect("make a link");
    write_file(&world.origin().join("2026/run.tar"), 9 << 20, &mut rng);
}

fn complete_chain(world: &World) {
    make_night(world);
    let first = world.submit("2026/night");
    assert_eq!(first[0]["is_new_package"], true);
    assert_eq!(world.submit("2026/night")[0]["is_new_request"], false, "the same again makes nothing new");
    let worker = world.worker("w1");
    let completed = |packages: u64| {
        let end = Instant::now() + HANG;
        loop {
            let transfers = world.transfers();
            let planned: u64 = transfers.iter().filter_map(|t| t["package_count"].as_u64()).sum();
            if planned == packages && transfers.iter().all(|t| t["status"] == "completed") {
                break;
            }
            assert!(Instant::now() < end, "not completed: {transfers:?}\n{}", worker.stderr_so_far());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    completed(1);
    // The worker is idle by now and has to hear of it.
    world.submit("2026/run.tar");
    completed(2);
    world.assert_arrived("2026/night");
    world.assert_arrived("2026/run.tar");
    let history = world.history("t1");
    let records = history["records"].as_array().expect("a list");
    assert!(!records.is_empty() && records.iter().all(|r| r["is_equal"] == true), "{history}");
    let explained = lines(&world.say(["explain", "t1", "--json"]).stdout);
    assert_eq!(explained[0]["status"], "completed");
    worker.signal(Signal::TERM);
    worker.wait(HANG).expect_code(0);
}

#[test]
fn packages_arrive_where_the_origin_pushes() {
    complete_chain(&World::new("push", "origin", None));
}

#[test]
fn packages_arrive_where_the_destination_pulls() {
    complete_chain(&World::new("pull", "destination", None));
}

#[test]
fn packages_arrive_with_postgresql_and_rabbitmq() {
    if let Some(why) = Postgres::missing().or_else(Rabbitmq::missing) {
        return skip("packages_arrive_with_postgresql_and_rabbitmq", why);
    }
    let scene = Scene::new("servers");
    let servers = Servers { postgres: Postgres::start(&scene, Durability::Fsync), rabbit: Rabbitmq::start("hints") };
    // Slow enough to be in the middle of something when the database goes away.
    let mut world = World::with(scene, "origin", Some("4M"), Some(servers));
    complete_chain(&world);
    every_hint_went_through_the_broker(&world);
    forged_letters_are_buried(&world);
    an_outcome_waits_for_its_database(&mut world);
}

/// The database's own notices wake workers too, so that the packages alone say nothing about the broker.
fn every_hint_went_through_the_broker(world: &World) {
    let servers = world.servers.as_ref().expect("servers");
    let end = Instant::now() + HANG;
    while servers.int("SELECT count(*) FROM ccat_xfer.outbox WHERE sent_at IS NULL") > 0 {
        assert!(Instant::now() < end, "hints are not confirmed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        servers.int("SELECT count(*) FROM ccat_xfer.outbox WHERE sent_at IS NOT NULL") >= 2,
        "one for each transfer"
    );
    // The worker has left: what it had not acknowledged would be back.
    assert_eq!(servers.waiting("ccat_buffer_data_transfer"), 0, "the worker took them from the broker");
}

/// Seen to stop the burial for ever without the cleaning of texts.
fn forged_letters_are_buried(world: &World) {
    let servers = world.servers.as_ref().expect("servers");
    servers.forge_dead_letter("a\0b", "the\0queue \u{1b}[2J", b"\0\xff{");
    servers.forge_dead_letter("plain", "rejected", b"not a hint");
    let end = Instant::now() + HANG;
    let letters = loop {
        let letters = lines(&world.say(["list", "dead-letters", "--json"]).stdout);
        if letters.len() >= 2 {
            break letters;
        }
        let manager = world.manager.as_ref().map(Running::stderr_so_far).unwrap_or_default();
        assert!(Instant::now() < end, "{letters:?}\n--- manager\n{manager}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(letters[0].to_string().contains("the?queue ?[2J"), "{letters:?}");
    assert_eq!(servers.waiting("ccat_xfer.dead"), 0);
}

/// The database stands still in the middle of a transfer and until after its end.
fn an_outcome_waits_for_its_database(world: &mut World) {
    write_file(&world.origin().join("late"), 24 << 20, &mut seed("control_loop"));
    world.submit("late");
    let mut worker = world.worker("w2");
    let is_late = |t: &&Value| t["bytes_total"].as_u64() == Some(24 << 20);
    let is_midway = |t: &Value| is_late(&t) && t["bytes_done"].as_u64() > Some(0);
    let end = Instant::now() + HANG;
    while !world.transfers().iter().any(is_midway) {
        assert!(Instant::now() < end, "{:?}\n{}", world.transfers(), worker.stderr_so_far());
        std::thread::sleep(Duration::from_millis(50));
    }
    let servers = world.servers.as_ref().expect("servers");
    servers.postgres.freeze(true);
    let kept = worker.wait_until(HANG, |w| w.stderr_so_far().contains("is kept on this machine"));
    servers.postgres.freeze(false);
    assert!(kept, "{}", worker.stderr_so_far());
    loop {
        let transfers = world.transfers();
        let late = transfers.iter().find(is_late).expect("the transfer");
        if late["status"] == "completed" {
            assert_eq!((&late["attempt"], &late["fence"]), (&Value::from(1), &Value::from(1)), "{late}");
            break;
        }
        assert!(Instant::now() < end + HANG, "{late}\n{}", worker.stderr_so_far());
        std::thread::sleep(Duration::from_millis(100));
    }
    world.assert_arrived("late");
    worker.signal(Signal::TERM);
    worker.wait(HANG).expect_code(0);
}

#[test]
fn a_panic_in_one_task_is_recorded_and_the_daemon_goes_on() {
    if !cfg!(feature = "faults") {
        let name = "a_panic_in_one_task_is_recorded_and_the_daemon_goes_on";
        return skip(name, "the program is built without the feature faults");
    }
    let mut world = World::new("panic", "origin", None);
    for name in ["bad", "good"] {
        write_file(&world.origin().join(name), 70_000, &mut seed("control_loop"));
    }
    world.submit("bad");
    let mut worker = world.clumsy_worker("bad");
    let row = world.until("a bug", |t| t["error_class"] == "bug");
    assert_eq!((&row["status"], &row["retry_count"]), (&Value::from("pending"), &Value::from(1)), "{row}");
    let history = world.history("t1");
    let attempt = &history["attempts"][0];
    assert_eq!(attempt["outcome"], "bug", "{history}");
    let chain = attempt["error_chain"].to_string();
    assert!(chain.contains("panicked at") && chain.contains("planted at bad"), "{attempt}");
    let log = attempt["log"].as_str().expect("a log");
    assert!(log.contains("package_begins"), "with its backtrace: {log}");
    worker.assert_running("after a panic");
    world.submit("good");
    let end = Instant::now() + HANG;
    while !world.transfers().iter().any(|t| t["status"] == "completed") {
        assert!(Instant::now() < end, "{:?}\n{}", world.transfers(), worker.stderr_so_far());
        std::thread::sleep(Duration::from_millis(50));
    }
    world.assert_arrived("good");
}

/// A route so slow that a file of this length is under way for some 24 s.
fn slow_world(name: &str) -> World {
    let world = World::new(name, "origin", Some("2M"));
    write_file(&world.origin().join("big"), 48 << 20, &mut seed("control_loop"));
    world.submit("big");
    world
}

#[test]
fn what_a_killed_worker_had_is_finished_by_another_one() {
    let mut world = slow_world("killed");
    let first = world.worker("w1");
    world.until_midway();
    first.kill_now();
    let second = world.worker("w2");
    let done = world.until_status("completed");
    assert!(done["attempt"].as_u64() >= Some(2), "{done}");
    assert_eq!(done["retry_count"], 0, "a lost lease is no failure: {done}");
    world.assert_arrived("big");
    let history = world.history("t1");
    let outcomes: Vec<_> = history["attempts"].as_array().expect("a list").iter().map(|a| &a["outcome"]).collect();
    // A machine that stands still for seconds may cost the second worker a lease as well.
    let (completed, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|o| *o == "completed");
    assert!(completed.len() == 1 && !lost.is_empty() && lost.iter().all(|o| *o == "lost_worker"), "{history}");
    drop(second);
}

#[test]
fn a_cancelled_transfer_stops() {
    let mut world = slow_world("cancel");
    let mut worker = world.worker("w1");
    world.until_midway();
    world.say(["cancel", "t1", "--reason", "no longer wanted"]);
    let failed = world.until_status("failed");
    assert_eq!(failed["error_class"], "cancelled", "{failed}");
    assert!(!world.destination().join("big").exists(), "nothing is published of what was cancelled");
    worker.assert_running("a cancelled transfer");
}

#[test]
fn a_worker_that_was_stopped_past_its_lease_changes_nothing() {
    let mut world = slow_world("stopped");
    let stopped = world.worker("w1");
    world.until_midway();
    stopped.signal(Signal::STOP);
    let other = world.worker("w2");
    let done = world.until_status("completed");
    world.assert_arrived("big");
    // The manager goes on to settle the package; what the attempts left is what counts.
    let facts = |transfer: &Value, history: &Value| {
        let of_row = ["status", "fence", "attempt", "bytes_done"].map(|key| transfer[key].clone());
        (of_row, history["attempts"].clone(), history["records"].clone())
    };
    let before = facts(&done, &world.history("t1"));
    stopped.signal(Signal::CONT);
    let mut stopped = stopped;
    // It finds out by its own renewal, its own job or its own name, whichever comes first.
    let knows = stopped.wait_until(HANG, |r| {
        let said = r.stderr_so_far();
        said.contains("overtaken") || said.contains("counts for nothing") || said.contains("belongs to the other")
    });
    assert!(knows, "it never noticed:\n{}", stopped.stderr_so_far());
    let transfer = world.transfers().remove(0);
    assert_eq!(facts(&transfer, &world.history("t1")), before);
    world.assert_arrived("big");
    drop(other);
}

#[test]
fn a_worker_that_is_told_to_leave_hands_back_what_it_has() {
    let mut world = slow_world("drain");
    let worker = world.worker("w1");
    world.until_midway();
    worker.signal(Signal::TERM);
    let ended = worker.wait(HANG).expect_code(0);
    assert!(ended.stderr.contains("handed back"), "{}", ended.stderr);
    let row = world.transfers().remove(0);
    assert_ne!(row["status"], "in_progress", "{row}");
    assert_eq!(row["retry_count"], 0, "{row}");
    let _next = world.worker("w1");
    world.until_status("completed");
    world.assert_arrived("big");
}

#[test]
fn a_package_that_is_gone_or_changed_says_so() {
    let mut world = World::new("gone", "origin", None);
    fs::write(world.origin().join("gone"), b"soon gone").expect("write a file");
    world.submit("gone");
    fs::remove_file(world.origin().join("gone")).expect("remove a file");
    let _worker = world.worker("w1");
    let row = world.until("missed", |t| t["error_class"] == "missing_source");
    assert_eq!(row["status"], "pending", "a mount may come late: {row}");
    fs::write(world.origin().join("changed"), b"before").expect("write a file");
    world.submit("changed");
    fs::write(world.origin().join("changed"), b"after it all").expect("write a file");
    let end = Instant::now() + HANG;
    loop {
        let rows = world.transfers();
        if let Some(row) = rows.iter().find(|t| t["error_class"] == "source_changed") {
            assert_eq!(row["status"], "failed", "no retry reads other bytes: {row}");
            break;
        }
        assert!(Instant::now() < end, "{rows:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!world.destination().join("changed").exists());
}

#[test]
fn one_bad_package_holds_up_no_other_of_its_bundle() {
    let mut world = World::new("bundle", "origin", None);
    let (names, bad) = (["a", "b", "c", "d"], ["a", "c"]);
    for name in names {
        fs::write(world.origin().join(name), name.repeat(1000)).expect("write a file");
    }
    let words = ["submit", "--from", "ccat/buffer", "--to", "cologne/buffer", "a", "b", "c", "d"];
    world.say(words);
    world.until("planned", |_| true);
    let shown = world.history("t1");
    assert_eq!(shown["packages"].as_array().map(Vec::len), Some(4), "one bundle: {shown}");
    for name in bad {
        fs::write(world.origin().join(name), b"another size").expect("write a file");
    }
    let _worker = world.worker("w1");
    let row = world.until_status("failed");
    assert_eq!(row["error_class"], "source_changed", "{row}");
    for name in names {
        assert_eq!(world.destination().join(name).exists(), !bad.contains(&name), "{name}");
    }
    world.assert_arrived("b");
    world.assert_arrived("d");
    let shown = world.history("t1").to_string();
    assert!(shown.contains("2 of 4 packages failed, the first"), "{shown}");
    assert!(shown.contains("a: ") || shown.contains("(a)"), "{shown}");
    // Those that arrived have not failed with it.
    let end = Instant::now() + HANG;
    loop {
        let listed = lines(&world.say(["list", "packages", "--json"]).stdout);
        let failed = |name: &str| listed.iter().any(|p| p["name"] == name && p["state"] == "failed");
        if bad.iter().all(|name| failed(name)) {
            assert!(!failed("b") && !failed("d"), "{listed:?}");
            break;
        }
        assert!(Instant::now() < end, "{listed:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_makes_no_sense_is_refused_on_the_command_line() {
    let world = World::new("refused", "origin", None);
    for (words, says) in [
        (vec!["submit", "--from", "ccat/nowhere", "--to", "cologne", "x"], "has no folder for ccat/nowhere"),
        (vec!["submit", "--from", "ccat/buffer", "--to", "cologne/buffer", "../x"], "no '..'"),
        (vec!["submit", "--from", "ccat/buffer", "--to", "cologne/buffer", "/etc/passwd"], "does not lie in"),
        (vec!["worker", "--location", "ccat/tape"], "has no folder here"),
        (vec!["cancel"], "say --all"),
        (vec!["pause"], "--location"),
        (vec!["explain", "t77"], "t77"),
        (vec!["pause", "--location", "ccat/nowhere"], "nowhere"),
    ] {
        let ended = spawn(&world.scene, world.command(&words)).wait(HANG).expect_code(harness::exit::USAGE);
        assert!(ended.stderr.contains(says), "{words:?}: {}", ended.stderr);
    }
}
