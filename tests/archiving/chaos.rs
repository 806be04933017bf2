//! Packages are archived while workers are killed at random and the archive's disk keeps other bytes than it was given. In
//! the end all are archived, none with other bytes, and whatever was planted was found.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Backend, HANG, Rng, Running, Sidecar, TERMS, World, assert_archived, count, found as found_archive, harness,
    has_same_bytes, make_packages, manager, resting, say, seed, sidecars, submit,
};

const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
const LOG: &str = "planted";

/// What was planted, by the digest of the package.
fn planted(world: &World) -> BTreeMap<String, u64> {
    let mut planted = BTreeMap::new();
    for line in fs::read_to_string(world.scene.join(LOG)).unwrap_or_default().lines() {
        // `KIND ROOT/packages/ab/cd/DIGEST-PATH/...`
        let digest = line.split('/').find(|word| word.len() == 64 + 1 + 16 && word.as_bytes()[64] == b'-');
        let digest = digest.unwrap_or_else(|| panic!("no package: {line}"));
        *planted.entry(digest[..64].to_owned()).or_default() += 1;
    }
    planted
}

/// How often a package was found to be corrupt, by its digest.
fn found(world: &World) -> BTreeMap<String, u64> {
    let digest = world.hex("p.identity");
    let rows = world.rows(
        &[&digest, "a.outcome", "a.log"],
        "FROM attempt a JOIN long_term_archive_transfer t ON t.id = a.long_term_archive_transfer_id \
         JOIN raw_data_package p ON p.id = t.package_id",
    );
    let mut found = BTreeMap::new();
    for row in rows {
        let times = u64::from(row[1] == "corrupt_in_flight") + u64::from(row[2].contains("other bytes lie there"));
        *found.entry(row[0].clone()).or_default() += times;
    }
    found
}

/// Packages whose bytes in the archive are not those of the origin, read without the program.
fn corrupt(world: &World, root: &Path) -> Vec<String> {
    let differs =
        |(name, sidecar): &(String, Sidecar)| !has_same_bytes(&world.origin().join(name), &resting(root, sidecar));
    sidecars(root).into_iter().filter(differs).map(|(name, _)| name).collect()
}

/// Workers that are killed and started again.
struct Crew<'a> {
    world: &'a World,
    environment: Vec<(&'a str, &'a str)>,
    running: Vec<(&'static str, Option<Running>, Instant)>,
    rng: Rng,
    next: Instant,
    left: u64,
    killed: u64,
}

impl Crew<'_> {
    fn play(&mut self) {
        let now = Instant::now();
        for (name, running, again) in &mut self.running {
            let ended = running.as_mut().is_none_or(|r| !r.is_running());
            if ended && now >= *again {
                let words =
                    ["worker", "--name", *name, "--location", "ccat/buffer", "cologne/buffer", "cologne/archive"];
                *running = Some(self.world.launch(&words, &self.environment));
                *again = now + Duration::from_secs(2);
            }
        }
        let of = "FROM long_term_archive_transfer WHERE status = 'in_progress'";
        let owners = self.world.rows(&["DISTINCT claimed_by"], of);
        if self.left > 0 && now >= self.next && !owners.is_empty() {
            self.next = now + Duration::from_millis(100 + self.rng.below(900));
            let owner = &owners[self.rng.index(owners.len())][0];
            let victim = self.running.iter_mut().find(|(name, _, _)| name == owner);
            if let Some((_, running, again)) = victim
                && let Some(worker) = running.take()
            {
                worker.kill_now();
                *again = now + Duration::from_millis(self.rng.below(2000));
                self.left -= 1;
                self.killed += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// Archives packages through all of that. With `read_back` off nothing is found, and the first packages that are called
/// archived are looked at.
fn chaos(backend: Backend, read_back: &str) {
    let test = format!("archive chaos on {}, read-back {read_back}", backend.word());
    if backend.is_missing(&test) {
        return;
    }
    let mut rng = seed(&test);
    let packages = count("packages", 500);
    let world = World::new("archive-chaos", backend, &TERMS);
    let root = found_archive(&world);
    let names = make_packages(&world, packages, &mut rng);
    let log = world.scene.join(LOG).display().to_string();
    // Of a tenth of the packages 5 % would often be none.
    let fault = if harness::full() { "changed=3,dropped=2" } else { "changed=10,dropped=5" };
    let environment = vec![
        ("CCAT_XFER_ARCHIVE_FAULT", fault),
        ("CCAT_XFER_ARCHIVE_FAULT_LOG", log.as_str()),
        ("CCAT_XFER_FAULT_READ_BACK", read_back),
    ];
    let now = Instant::now();
    let running = WORKERS.into_iter().map(|name| (name, None, now)).collect();
    let mut crew = Crew { world: &world, environment, running, rng, next: now, left: packages / 5, killed: 0 };
    let _manager = manager(&world);
    submit(&world, &names);
    let end = Instant::now() + HANG * if harness::full() { 6 } else { 1 };
    loop {
        crew.play();
        let rows = world.rows(&["state", "count(*)"], "FROM raw_data_package GROUP BY state");
        if rows.iter().any(|row| row[0] == "archived" && row[1] == packages.to_string()) {
            break;
        }
        // A person's part: what was lost too often, or found no retry left, is tried again.
        let failed = world.rows(&["id"], "FROM long_term_archive_transfer WHERE status = 'failed'");
        for row in &failed {
            world.say(&["retry", &format!("a{}", row[0]), "--reason", "the test goes on"]);
        }
        assert!(Instant::now() < end, "still {rows:?}\n{}", world.story());
    }
    let (planted, found, corrupt) = (planted(&world), found(&world), corrupt(&world, &root));
    let (injected, seen): (u64, u64) = (planted.values().sum(), found.values().sum());
    say(&format!(
        "{test}: {packages} packages archived in {:.1} s, {} workers killed; {injected} corruptions injected, {seen} found, {} \
         packages differ in the end",
        now.elapsed().as_secs_f64(),
        crew.killed,
        corrupt.len()
    ));
    assert!(injected > 0, "nothing was planted");
    if read_back == "off" {
        assert!(!corrupt.is_empty(), "without reading back it should have gone unnoticed; who noticed?");
        return;
    }
    assert_eq!(corrupt, Vec::<String>::new(), "archived with other bytes\n{}", world.story());
    for (digest, times) in &planted {
        let seen = found.get(digest).copied().unwrap_or(0);
        assert!(seen >= *times, "{digest}: {times} times planted, {seen} times found\n{}", world.story());
    }
    assert_archived(&world, &root, &names);
}

#[test]
fn no_corruption_is_called_archived_on_sqlite() {
    chaos(Backend::Sqlite, "on");
}

#[test]
fn no_corruption_is_called_archived_on_postgresql_and_rabbitmq() {
    chaos(Backend::Servers, "on");
}

/// What finds it is the reading back, and the look above is not blind.
#[test]
fn without_reading_back_corruption_goes_unnoticed() {
    chaos(Backend::Sqlite, "off");
}
