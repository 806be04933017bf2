//! Packages are archived while workers are killed at random and the archive keeps other bytes than it was given. In the
//! end all are archived, none with other bytes, and whatever was planted was found.
//!
//! What is demanded of chance is waited for: until each kind of harm was done at least once, there are more packages.

mod disk;
mod s3;
mod volumes;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Backend, HANG, Rng, Running, S3Server, Shelf, TERMS, Terms, World, assert_proven, count, harness, make_packages,
    make_these, manager, say, seed, skip, submit,
};

const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
/// Packages that are added when something has not happened yet.
const MORE: u64 = 5;

/// A corruption that was planted.
struct Fault {
    kind: String,
    /// The package's, in hexadecimal digits.
    digest: String,
}

/// An archive, and what goes wrong below it.
trait Bed {
    fn shelf(&self) -> Shelf<'_>;

    /// The world is there, and nothing runs yet.
    fn begin(&mut self, world: &World);

    /// More for the workers' environment.
    fn environment(&self) -> Vec<(&'static str, String)>;

    /// Does harm that is due when so many packages of so many are archived.
    fn play(&mut self, archived: u64, of: u64);

    fn faults(&self) -> Vec<Fault>;

    /// Harm that was never done.
    fn lacks(&self) -> Option<String>;

    /// Packages whose bytes in the archive are not those of the origin, or are not to be had; read without the program.
    fn corrupt(&self, world: &World, names: &[String]) -> Vec<String>;

    /// What else is promised of an archive that is whole.
    fn assert_whole(&self, world: &World, names: &[String]);

    /// More that was done.
    fn said(&self) -> String;
}

/// What attempts tell of one package.
#[derive(Clone, Copy, Default)]
struct Told {
    /// How often other bytes were found.
    found: u64,
    /// Attempts that ended before they could tell.
    cut_off: u64,
}

/// What was found, by the package's digest.
fn told(world: &World) -> BTreeMap<String, Told> {
    let digest = world.hex("p.identity");
    let rows = world.rows(
        &[&digest, "a.outcome", "a.log"],
        "FROM attempt a JOIN long_term_archive_transfer t ON t.id = a.long_term_archive_transfer_id \
         JOIN raw_data_package p ON p.id = t.package_id",
    );
    let mut told: BTreeMap<String, Told> = BTreeMap::new();
    for row in rows {
        let of = told.entry(row[0].clone()).or_default();
        let replaced = ["other bytes lie there", "what lies there cannot be read"];
        of.found += u64::from(replaced.iter().any(|text| row[2].contains(text)));
        match row[1].as_str() {
            "corrupt_in_flight" => of.found += 1,
            "completed" => {}
            _ => of.cut_off += 1,
        }
    }
    told
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

    /// Attempts whose worker was killed in the middle.
    fn lost(&self) -> i64 {
        let of = "FROM attempt WHERE long_term_archive_transfer_id IS NOT NULL AND outcome = 'lost_worker'";
        self.world.number("count(*)", of)
    }
}

/// Archives packages through all of that. With `read_back` off nothing is found, and what is called archived then is
/// looked at.
fn chaos(test: &str, bed: &mut dyn Bed, backend: Backend, read_back: &str) {
    let test = format!("archive chaos on {test}, {}, read-back {read_back}", backend.word());
    let mut rng = seed(&test);
    let packages = count("packages", 500);
    let world = World::new("archive-chaos", backend, &Terms { archives: &[bed.shelf()], ..TERMS });
    bed.begin(&world);
    let mut names = make_packages(&world, packages, &mut rng);
    let environment = bed.environment();
    let mut environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    environment.push(("CCAT_XFER_FAULT_READ_BACK", read_back));
    let now = Instant::now();
    let running = WORKERS.into_iter().map(|name| (name, None, now)).collect();
    let crew_rng = Rng(rng.next());
    let mut crew =
        Crew { world: &world, environment, running, rng: crew_rng, next: now, left: packages / 5, killed: 0 };
    let _manager = manager(&world);
    submit(&world, &names);
    let end = Instant::now() + HANG * if harness::full() { 6 } else { 1 };
    loop {
        crew.play();
        let archived = world.number("count(*)", "FROM raw_data_package WHERE state = 'archived'");
        let (archived, of) = (u64::try_from(archived).expect("a count"), names.len() as u64);
        bed.play(archived, of);
        if archived == of {
            let lost = (crew.lost() == 0).then(|| "a worker that was killed at work".to_owned());
            let Some(lacking) = lost.or_else(|| bed.lacks()) else { break };
            say(&format!("{test}: there was no {lacking} yet; {MORE} more packages"));
            let more = make_these(&world, of..of + MORE, &mut rng);
            submit(&world, &more);
            names.extend(more);
            crew.left = crew.left.max(MORE);
        }
        // A person's part: what was lost too often, or found no retry left, is tried again.
        let failed = world.rows(&["id", "error_class"], "FROM long_term_archive_transfer WHERE status = 'failed'");
        for row in &failed {
            let wrong = ["configuration", "authentication", "destination_differs", "source_changed", "bug"];
            assert!(!wrong.contains(&row[1].as_str()), "{row:?}\n{}", world.story());
            world.say(&["retry", &format!("a{}", row[0]), "--reason", "the test goes on"]);
        }
        assert!(Instant::now() < end, "still {archived} of {of}; {}\n{}", bed.said(), world.story());
    }
    let took = now.elapsed();
    let (faults, told, corrupt) = (bed.faults(), told(&world), bed.corrupt(&world, &names));
    say(&format!(
        "{test}: {} packages archived in {:.1} s, {} workers killed, {} attempts lost with them; {}; {}; {} packages differ in \
         the end",
        names.len(),
        took.as_secs_f64(),
        crew.killed,
        crew.lost(),
        sums(&faults, &told),
        bed.said(),
        corrupt.len()
    ));
    if read_back == "off" {
        assert!(!corrupt.is_empty(), "without reading back it should have gone unnoticed; who noticed?");
        return;
    }
    assert_eq!(corrupt, Vec::<String>::new(), "archived with other bytes\n{}", world.story());
    for (digest, planted) in by_digest(&faults) {
        // Whoever found it may have been killed before it told; that it was found is then seen by the bytes alone.
        let Told { found, cut_off } = told.get(digest).copied().unwrap_or_default();
        let kinds: Vec<_> = planted.iter().map(|fault| fault.kind.as_str()).collect();
        assert!(
            found + cut_off >= planted.len() as u64,
            "{digest}: {kinds:?} planted, {found} times found, {cut_off} attempts cut off\n{}",
            world.story()
        );
    }
    bed.assert_whole(&world, &names);
    assert_proven(&world);
}

fn by_digest(faults: &[Fault]) -> BTreeMap<&str, Vec<&Fault>> {
    let mut by: BTreeMap<&str, Vec<&Fault>> = BTreeMap::new();
    for fault in faults {
        by.entry(&fault.digest).or_default().push(fault);
    }
    by
}

/// For each kind, how many were planted and how many of them found.
fn sums(faults: &[Fault], told: &BTreeMap<String, Told>) -> String {
    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (digest, planted) in by_digest(faults) {
        let mut found = told.get(digest).map_or(0, |told| told.found);
        for fault in planted {
            let (injected, seen) = kinds.entry(&fault.kind).or_default();
            *injected += 1;
            *seen += u64::from(found > 0);
            found = found.saturating_sub(1);
        }
    }
    let one = |(kind, (injected, found))| format!("{kind}: {injected} injected, {found} found");
    kinds.into_iter().map(one).collect::<Vec<_>>().join("; ")
}

fn on_disk(backend: Backend, read_back: &str) {
    if !backend.is_missing("archive chaos on disk") {
        chaos("disk", &mut disk::DiskBed::default(), backend, read_back);
    }
}

fn on_s3(backend: Backend, read_back: &str) {
    let test = "archive chaos on S3";
    if let Some(why) = S3Server::missing() {
        return skip(test, why);
    }
    if !backend.is_missing(test) {
        chaos("S3", &mut s3::S3Bed::new(read_back != "off"), backend, read_back);
    }
}

#[test]
fn no_corruption_is_called_archived_on_sqlite() {
    on_disk(Backend::Sqlite, "on");
}

#[test]
fn no_corruption_is_called_archived_on_postgresql_and_rabbitmq() {
    on_disk(Backend::Servers, "on");
}

/// What finds it is the reading back, and the look above is not blind.
#[test]
fn without_reading_back_corruption_goes_unnoticed() {
    on_disk(Backend::Sqlite, "off");
}

#[test]
fn no_corruption_in_s3_is_called_archived_on_postgresql_and_rabbitmq() {
    on_s3(Backend::Servers, "on");
}

#[test]
fn without_reading_back_corruption_in_s3_goes_unnoticed() {
    on_s3(Backend::Sqlite, "off");
}
