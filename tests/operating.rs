//! What operators see and say: filters of the lists and of bulk changes, what a worker's slots run, letters that nobody
//! understood, and the figures and the health of running daemons. One manager and one worker as processes of their own,
//! on SQLite; the other site's endpoint is real.

mod harness;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use harness::{
    Finished, PROGRAM, Running, Scene, exit, free_port, make_identity, own_home, seed, spawn, trust, write_file,
};

/// Nothing may hang; a machine that is busy with others is slow.
const HANG: Duration = Duration::from_secs(240);

struct World {
    endpoints: Vec<Running>,
    ports: [u16; 2],
    // Last: it ends by force what has not ended by then.
    scene: Scene,
}

impl World {
    /// `dialer` is the route's; `rate` its limit in bytes per second, where there is one.
    fn new(name: &str, dialer: &str, rate: Option<&str>) -> Self {
        let scene = Scene::new(name);
        let worker = scene.join("worker");
        make_identity(&scene, &worker, "worker");
        fs::write(scene.join("control.toml"), "").expect("write the settings");
        let mut world = Self { endpoints: Vec::new(), ports: [free_port(), free_port()], scene };
        let mut topology = String::new();
        for site in ["ccat", "cologne"] {
            let (key, port) = (world.scene.join(&format!("{site}-key")), free_port());
            make_identity(&world.scene, &key, site);
            trust(&world.scene, &key, &worker, "worker");
            let settings = format!(
                "identity = \"{}\"\n[serve]\nlisten = \"127.0.0.1\"\nport = {port}\nsandbox = false\n\
                 [[serve.location]]\nname = \"{site}_buffer\"\npath = \"{}\"\n\
                 [[serve.location.right]]\npeer = \"worker\"\nmay = [\"list\", \"read\", \"create\"]\n",
                key.display(),
                world.scene.folder(site).display()
            );
            fs::write(world.scene.join(&format!("{site}.toml")), settings).expect("write the settings");
            let endpoint = world.start(&format!("{site}.toml"), &["serve"], "serving QUIC and TCP");
            world.endpoints.push(endpoint);
            let print = world.run(&["--identity", &key.display().to_string(), "cert", "show"], 0).said();
            let print = print.split(|c: char| !c.is_ascii_hexdigit()).find(|w| w.len() == 64).expect("a fingerprint");
            topology.push_str(&format!(
                "[[peer]]\nname = \"{site}\"\naddress = \"127.0.0.1:{port}\"\nfingerprint = \"sha256:{print}\"\n\
                 [[site]]\nname = \"{site} site\"\nshort_name = \"{site}\"\n\
                 [[location]]\nsite = \"{site}\"\nname = \"buffer\"\ntype = \"buffer\"\npeer = \"{site}\"\n"
            ));
        }
        let rate = rate.map(|r| format!("rate_limit = \"{r}\"\n")).unwrap_or_default();
        topology.push_str(&format!(
            "[[route]]\nname = \"there\"\nfrom = \"ccat\"\nto = \"cologne\"\ndialer = \"{dialer}\"\n{rate}\
             [[route]]\nname = \"back\"\nfrom = \"cologne\"\nto = \"ccat\"\n"
        ));
        fs::write(world.scene.join("topology.toml"), topology).expect("write the topology");
        for (file, port) in [("control", None), ("manager", Some(world.ports[0])), ("worker", Some(world.ports[1]))] {
            let health = port.map(|p| format!("[health]\nlisten = \"127.0.0.1:{p}\"\n")).unwrap_or_default();
            let settings = format!(
                "identity = \"{}\"\nlog = \"info\"\n[database]\nurl = \"sqlite:{}\"\n{health}\
                 [worker]\nlease = \"6s\"\npoll = \"200ms\"\ndrain = \"0s\"\n\
                 [locations.\"ccat/buffer\"]\nroot = \"{}\"\n[locations.\"cologne/buffer\"]\nroot = \"{}\"\n",
                worker.display(),
                world.scene.join("control.db").display(),
                world.scene.join("ccat").display(),
                world.scene.join("cologne").display()
            );
            fs::write(world.scene.join(&format!("{file}.toml")), settings).expect("write the settings");
        }
        world.say(&["topology", "apply", "topology.toml"]);
        world
    }

    fn command(&self, settings: &str, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.scene.join(settings)).args(words).current_dir(self.scene.path());
        own_home(&self.scene, &mut command);
        command
    }

    fn start(&self, settings: &str, words: &[&str], when: &str) -> Running {
        let mut command = self.command(settings, &["--log", "info"]);
        command.args(words);
        let mut running = spawn(&self.scene, command);
        let begun = running.wait_until(HANG, |r| r.stderr_so_far().contains(when));
        assert!(begun, "{words:?} never said {when:?}:\n{}", running.stderr_so_far());
        running
    }

    fn manager(&self) -> Running {
        self.start("manager.toml", &["manager", "transfer"], "the manager begins")
    }

    fn worker(&self) -> Running {
        let words = ["worker", "--name", "w1", "--location", "ccat/buffer", "cologne/buffer"];
        self.start("worker.toml", &words, "the worker is registered")
    }

    fn run(&self, words: &[&str], code: i32) -> Finished {
        spawn(&self.scene, self.command("control.toml", words)).wait(HANG).expect_code(code)
    }

    fn say(&self, words: &[&str]) -> Vec<Value> {
        let said = self.run(words, 0).stdout;
        let text = String::from_utf8_lossy(&said);
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn submit(&self, from: &str, to: &str, path: &str) {
        self.run(&["submit", "--from", &format!("{from}/buffer"), "--to", &format!("{to}/buffer"), path], 0);
    }

    /// Waits until a listed row is as wanted.
    fn until(&self, words: &[&str], what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + HANG;
        loop {
            let rows = self.say(words);
            if let Some(row) = rows.iter().find(|row| wanted(row)) {
                return row.clone();
            }
            assert!(Instant::now() < end, "never {what}: {rows:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What `list` and some filter words find, by a column.
    fn listed(&self, what: &str, filter: &[&str], column: &str) -> Vec<String> {
        let words = [&["list", what, "--json"], filter].concat();
        let rows = self.say(&words);
        rows.iter().map(|row| word(&row[column])).collect()
    }

    /// A number in the database.
    fn int(&self, text: &'static str) -> i64 {
        let url = format!("sqlite:{}", self.scene.join("control.db").display());
        let ask = async {
            let pool = sqlx::SqlitePool::connect(&url).await.expect("open the database");
            sqlx::query_scalar(text).fetch_one(&pool).await.expect("a number")
        };
        tokio::runtime::Runtime::new().expect("a runtime").block_on(ask)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.scene.join(path)
    }
}

/// A text, or a transfer as people call it.
fn word(value: &Value) -> String {
    match value["transfer"].as_i64() {
        Some(number) => format!("t{number}"),
        None => value.as_str().unwrap_or_default().to_owned(),
    }
}

/// The answer to a GET: status and body.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the health endpoint listens");
    stream.set_read_timeout(Some(HANG)).expect("set a limit");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// The value of a figure, with its labels as they are written.
fn figure(body: &str, name: &str) -> Option<f64> {
    body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn figures_move_and_health_proves_progress() {
    let world = World::new("figures", "origin", None);
    let (_manager, worker) = (world.manager(), world.worker());
    fs::write(world.path("ccat/a"), vec![7; 70_000]).expect("write a file");
    world.submit("ccat", "cologne", "a");
    fs::write(world.path("ccat/gone"), b"soon gone").expect("write a file");
    world.submit("ccat", "cologne", "gone");
    fs::remove_file(world.path("ccat/gone")).expect("remove a file");
    // Bundles wait for others for a while; the loops turn meanwhile.
    world.until(&["list", "transfers", "--json"], "tried", |t| t["attempt"].as_u64() > Some(0));
    let end = Instant::now() + HANG;
    let (of_manager, of_worker) = loop {
        let bodies = (get(world.ports[0], "/metrics"), get(world.ports[1], "/metrics"));
        assert_eq!((bodies.0.0, bodies.1.0), (200, 200));
        let bodies = (bodies.0.1, bodies.1.1);
        let packages = figure(&bodies.1, "ccat_xfer_worker_verified_packages_total");
        let missed = figure(&bodies.1, "ccat_xfer_worker_attempts_total{end=\"missing_source\"}");
        // Counted once the database has it, which is somewhat later.
        let written = bodies.1.contains("# TYPE ccat_xfer_worker_outcomes counter");
        if packages >= Some(1.0) && missed >= Some(1.0) && written {
            break bodies;
        }
        assert!(Instant::now() < end, "{}\n{}", bodies.0, bodies.1);
        std::thread::sleep(Duration::from_millis(100));
    };
    for (body, name, kind) in [
        (&of_manager, "manager_turns", "counter"),
        (&of_manager, "manager_bundles_planned", "counter"),
        (&of_manager, "manager_offers", "counter"),
        (&of_manager, "manager_leases_lost", "counter"),
        (&of_manager, "store_stale_refusals", "counter"),
        (&of_worker, "worker_attempts", "counter"),
        (&of_worker, "worker_outcomes", "counter"),
        (&of_worker, "worker_verified_bytes", "counter"),
        (&of_worker, "worker_slots", "gauge"),
        (&of_worker, "worker_slots_used", "gauge"),
        (&of_worker, "worker_spooled", "gauge"),
        (&of_worker, "store_stale_refusals", "counter"),
    ] {
        let line = format!("# TYPE ccat_xfer_{name} {kind}");
        assert!(body.lines().any(|l| l == line), "{line}:\n{body}");
    }
    for (body, name, least) in [
        (&of_manager, "manager_bundles_planned_total", 1.0),
        (&of_manager, "manager_packages_planned_total", 2.0),
        (&of_manager, "manager_offers_total", 1.0),
        (&of_manager, "manager_turns_total{task=\"Planner\",result=\"Worked\"}", 1.0),
        (&of_manager, "manager_turns_total{task=\"Sweeper\",result=\"Idle\"}", 1.0),
        (&of_worker, "worker_verified_bytes_total", 70_000.0),
        (&of_worker, "worker_slots", 4.0),
        (&of_worker, "worker_spooled", 0.0),
    ] {
        let found = figure(body, &format!("ccat_xfer_{name}"));
        assert!(found >= Some(least), "{name} is {found:?}:\n{body}");
    }
    for (port, loops) in [(world.ports[0], ["planner", "sweeper"]), (world.ports[1], ["intake", "heartbeat"])] {
        let (status, body) = get(port, "/health");
        assert_eq!(status, 200, "{body}");
        let report: Value = serde_json::from_str(&body).expect("JSON");
        let names: Vec<_> = report["loops"].as_array().expect("a list").iter().map(|l| l["name"].to_string()).collect();
        assert!(loops.iter().all(|wanted| names.iter().any(|name| name.contains(wanted))), "{names:?}");
    }
    let free = world.int("SELECT count(*) FROM data_location WHERE free_bytes > 0 AND free_bytes_at > 0");
    assert_eq!(free, 2, "the worker says what is free at each of its locations");
    worker.signal(Signal::TERM);
    worker.wait(HANG).expect_code(0);
}

#[test]
fn lists_and_bulk_changes_take_filters() {
    let world = World::new("filters", "origin", Some("1M"));
    let manager = world.manager();
    for (site, name) in [("ccat", "one"), ("ccat", "two"), ("cologne", "three")] {
        fs::write(world.path(&format!("{site}/{name}")), name).expect("write a file");
    }
    world.submit("ccat", "cologne", "one");
    world.until(&["list", "transfers", "--json"], "planned", |t| t["route"] == "there");
    world.submit("cologne", "ccat", "three");
    world.until(&["list", "transfers", "--json"], "planned", |t| t["route"] == "back");
    manager.signal(Signal::TERM);
    manager.wait(HANG).expect_code(0);
    // Not planned any more: a package that no transfer moves.
    world.submit("ccat", "cologne", "two");

    let works = |filter: &[&str]| world.listed("transfers", filter, "work");
    let names = |filter: &[&str]| world.listed("packages", filter, "name");
    assert_eq!(works(&[]), ["t1", "t2"]);
    assert_eq!(works(&["--route", "back"]), ["t2"]);
    assert_eq!(works(&["--location", "ccat/buffer", "--route", "there"]), ["t1"]);
    assert_eq!(works(&["--site", "cologne"]), ["t1", "t2"]);
    assert_eq!(works(&["--status", "completed"]), [""; 0]);
    assert_eq!(works(&["--class", "network"]), [""; 0]);
    assert_eq!(works(&["--older", "1h"]), [""; 0]);
    assert_eq!(works(&["--older", "0s"]), ["t1", "t2"]);
    assert_eq!(works(&["--package", "p1"]), ["t1"]);
    assert_eq!(names(&[]), ["one", "three", "two"]);
    assert_eq!(names(&["--route", "back"]), ["three"]);
    assert_eq!(names(&["--state", "waiting"]), ["two"]);
    assert_eq!(names(&["--location", "cologne/buffer"]), ["one", "three"]);
    assert_eq!(names(&["--site", "ccat", "--state", "transferring"]), ["one", "three"]);
    assert_eq!(names(&["--class", "cancelled"]), [""; 0]);
    assert_eq!(names(&["--older", "1h"]), [""; 0]);

    // A dry run says what would be, and the real one does no more than it said.
    let touched = |words: &[&str]| {
        let said = world.say(words).remove(0);
        let work = said["work"].as_array().expect("a list").iter();
        (said["is_dry_run"] == true, work.map(|w| word(&w["work"])).collect::<Vec<_>>())
    };
    let dry = ["cancel", "--route", "back", "--dry-run", "--json"];
    assert_eq!(touched(&dry), (true, vec!["t2".to_owned()]));
    assert_eq!(works(&["--status", "failed"]), [""; 0], "nothing was done");
    assert_eq!(touched(&["cancel", "--route", "back", "--json"]), (false, vec!["t2".to_owned()]));
    assert_eq!(works(&["--class", "cancelled"]), ["t2"]);
    assert_eq!(names(&["--class", "cancelled"]), ["three"]);
    assert_eq!(touched(&["retry", "--site", "ccat", "--status", "failed", "--dry-run", "--json"]).1, ["t2"]);
    assert_eq!(touched(&["retry", "--class", "cancelled", "--older", "0s", "--json"]).1, ["t2"]);
    assert_eq!(works(&["--status", "failed"]), [""; 0]);

    for (words, says) in [
        (vec!["list", "transfers", "--route", "nowhere"], "no route nowhere"),
        (vec!["list", "packages", "--location", "ccat/nowhere"], "no location ccat/nowhere"),
        (vec!["cancel", "--site", "nowhere"], "no site nowhere"),
        (vec!["list", "workers", "--route", "back"], "take no filter"),
        (vec!["list", "transfers", "--state", "waiting"], "for packages"),
        (vec!["list", "transfers", "--older", "soon"], "not a duration"),
        (vec!["retry"], "--older"),
    ] {
        let ended = world.run(&words, exit::USAGE);
        assert!(ended.stderr.contains(says), "{words:?}: {}", ended.stderr);
    }
}

#[test]
fn a_worker_shows_what_its_slots_run() {
    let world = World::new("slots", "origin", Some("1M"));
    let (_manager, worker) = (world.manager(), world.worker());
    write_file(&world.path("ccat/big"), 60 << 20, &mut seed("operating"));
    world.submit("ccat", "cologne", "big");
    let shown = world.until(&["list", "workers", "--json"], "running", |w| {
        w["running"].as_array().is_some_and(|r| r.iter().any(|s| s["bytes_done"].as_u64() > Some(0)))
    });
    let span = &shown["running"][0];
    let told = (word(&shown["name"]), word(&span["work"]), word(&span["phase"]));
    assert_eq!(told, ("w1".into(), "t1".into(), "transfer".into()));
    assert!(span["since"].as_i64().is_some_and(|us| us > 0), "{shown}");
    assert_eq!(shown["spooled"], 0, "{shown}");
    let text = world.run(&["list", "workers"], 0).said();
    assert!(text.contains("SPOOLED") && text.contains("t1 transfer"), "{text}");
    worker.signal(Signal::TERM);
    worker.wait(HANG).expect_code(0);
    assert!(!world.path("cologne/big").exists(), "what was handed back is not there yet");
    // An outcome that waits on the worker's disk is counted in its next heartbeat.
    assert_eq!(world.listed("dead-letters", &[], "id"), [""; 0]);
}

/// Other bytes of the same length, at either dialer. Seen to fail with `expected` not given to the engine: the file was
/// published and only then found to be another one.
#[test]
fn a_source_that_changed_is_not_published() {
    for dialer in ["origin", "destination"] {
        let world = World::new(&format!("changed-{dialer}"), dialer, None);
        let (_manager, worker) = (world.manager(), world.worker());
        // In chunks, with later times.
        write_file(&world.path("ccat/large"), 9 << 20, &mut seed("operating"));
        world.submit("ccat", "cologne", "large");
        flip(&world.path("ccat/large"), false);
        let row = world.until(&["list", "transfers", "--json"], "failed", |t| t["status"] == "failed");
        assert_eq!(row["error_class"], "source_changed", "{dialer}: {row}");
        let text = row["error_text"].as_str().unwrap_or_default();
        assert!(text.contains("nothing was published"), "{dialer}: {row}");
        assert!(!world.path("cologne/large").exists(), "{dialer}");
        // In a pack, and its times say that nobody wrote to it.
        fs::write(world.path("ccat/silent"), b"as registered").expect("write a file");
        world.submit("ccat", "cologne", "silent");
        flip(&world.path("ccat/silent"), true);
        let row = world.until(&["list", "transfers", "--class", "corrupt_at_source", "--json"], "found", |_| true);
        assert_eq!(row["status"], "failed", "{dialer}: no retry reads other bytes: {row}");
        assert!(!world.path("cologne/silent").exists(), "{dialer}");
        worker.signal(Signal::TERM);
        worker.wait(HANG).expect_code(0);
    }
}

/// Changes a byte, with the file's times as they were or as they come.
fn flip(file: &Path, keep_times: bool) {
    let before = fs::metadata(file).and_then(|m| m.modified()).expect("its time");
    let mut bytes = fs::read(file).expect("read it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // Not even a clock with whole seconds may take it for the old one.
    fs::write(file, bytes).expect("write it");
    let time = if keep_times { before } else { before + Duration::from_secs(5) };
    fs::File::options().write(true).open(file).and_then(|f| f.set_modified(time)).expect("set its time");
}
