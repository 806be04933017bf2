//! What reading back costs: packages archived with it and without, by the daemons as `up` runs them (manager, worker and
//! SQLite in one process), into a disk and into an S3 server on this machine.
//!
//! ```text
//! cargo bench --bench archive --features faults    all of it; 3 pairs of runs of each row
//! CCAT_XFER_BENCH_PARTS=disk                       only these of: disk, s3, small
//! CCAT_XFER_BENCH_RUNS=5                           other number of pairs
//! CCAT_XFER_BENCH_DISK=256M                        size of the disk's packages (default 1G; M and G are 2^20 and 2^30)
//! CCAT_XFER_BENCH_S3=16M                           size of the packages of S3 (default 128M)
//! CCAT_XFER_BENCH_SMALL=100                        number of small packages (default 500)
//! CCAT_XFER_BENCH_SLOTS=2                          attempts at once (default 4, as the worker's)
//! CCAT_XFER_TEST_DIR=/data                         another disk
//! ```
//!
//! Read-back is turned off by a planted fault, so this needs the feature. A pair of runs follow each other on the same
//! machine, each the first one every other time; a ratio is the median of those of the pairs. Each run has a database and an
//! archive of its own, and the same packages, which the page cache holds before it begins. Its time is the database's: from
//! the first claim to the last outcome that was committed.
//!
//! Beside the rows of the disk stands what the medium does with as many bytes through `O_DIRECT`: written, read, and
//! both at once. The limit of 1.15 is for several packages on a medium that writes no slower while it reads.
//!
//! What it taught (two cores that compiled other things meanwhile, so the ratios say more than the rates):
//!
//! - Attempts that share a medium evenly begin together, ended their puts together, and then read back together while
//!   nobody wrote: 1.31 and 1.46 in two series for four packages on ext4 over a loop device in memory. One of the slots now
//!   puts nothing large, and of a large file one piece is read while the one before it is hashed: 1.22 and 1.24. That misses
//!   the limit, and is all CPU time (6.5 s against 5.4 s): such a medium is faster than the cores beside it.
//! - One package alone has nothing that its reading could be laid beside: it takes as long again as the medium takes to read
//!   it, and 1.3 to 1.9 in all was seen.
//! - A virtual disk whose reads and writes share one rate (it writes 0.22 GB/s alone, and 0.15 GB/s while it reads as much)
//!   takes 2.1 times as long, and no order of things hides that.
//! - S3, 64 MiB: 1.15 for one package, 1.06 for eight, whose readings lie beside the uploads of others.
//! - Small packages: 1.18 on a disk, 1.15 in S3. On a disk the archive alone calls fsync 28 times for each, mostly for
//!   folders, and once more to read it back.

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ccat_xfer::{
    archive::Disk,
    buf::Buffer,
    chunk::RelPath,
    disk::Root,
    engine::measure,
    model::{PackageKind, Policy, topology::Topology},
    store::{Apply, NewPackage, Store},
};
use rustix::fs::OFlags;
use sqlx::{Row as _, SqlitePool};
use tokio::runtime::Runtime;

use harness::{PROGRAM, Rng, Running, S3Server, Scene, make_identity, own_home, spawn, write_file};

/// Most that reading back may cost on a disk that reads while it writes.
const LIMIT: f64 = 1.15;
/// Bytes of a small package.
const SMALL_BYTES: u64 = 64 << 10;
/// Nothing may hang.
const HANG: Duration = Duration::from_secs(1800);

fn main() {
    let bench = Bench {
        runs: number("CCAT_XFER_BENCH_RUNS", 3).max(1),
        slots: number("CCAT_XFER_BENCH_SLOTS", 4),
        runtime: Runtime::new().expect("a runtime"),
    };
    let disk_bytes = size("CCAT_XFER_BENCH_DISK", 1 << 30);
    let s3_bytes = size("CCAT_XFER_BENCH_S3", 128 << 20);
    let small = number("CCAT_XFER_BENCH_SMALL", 500);
    let wanted = std::env::var("CCAT_XFER_BENCH_PARTS").unwrap_or_default();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.split(',').any(|one| one == part);
    let no_s3 = S3Server::missing();

    println!("{} pairs of runs each, {} slots", bench.runs, bench.slots);
    if is_wanted("disk") {
        bench.rows("disk", &[(1, disk_bytes), (4, disk_bytes)], true);
    }
    if is_wanted("s3") && no_s3.is_none() {
        bench.rows("s3", &[(1, s3_bytes), (8, s3_bytes)], false);
    }
    if is_wanted("small") {
        bench.rows("disk", &[(small, SMALL_BYTES)], false);
        if no_s3.is_none() {
            bench.rows("s3", &[(small, SMALL_BYTES)], false);
        }
    }
    if let Some(why) = no_s3 {
        println!("not run: s3 ({why})");
    }
}

struct Bench {
    runs: u64,
    slots: u64,
    runtime: Runtime,
}

impl Bench {
    /// Rows of one kind of archive: so many packages of so many bytes.
    fn rows(&self, kind: &'static str, rows: &[(u64, u64)], beside_the_medium: bool) {
        for &(packages, bytes) in rows {
            let scene = Scene::new("bench-archive");
            // The packages, one archive of them, and what the medium is measured with.
            if !fits(scene.path(), packages * bytes * 2 + bytes * 2) {
                println!(
                    "not run: {kind}, {packages} packages of {} (no room in {})",
                    Bytes(bytes),
                    scene.path().display()
                );
                continue;
            }
            let server = (kind == "s3").then(|| S3Server::start("bench-archive-s3"));
            let packages = make_packages(&scene.folder("buffer"), packages, bytes);
            let set = Set { bench: self, scene: &scene, server: server.as_ref(), packages: &packages };
            let (mut on, mut off, mut medium) = (Vec::new(), Vec::new(), Vec::new());
            for pair in 0..self.runs {
                if pair % 2 == 0 {
                    on.push(set.run(true));
                    off.push(set.run(false));
                } else {
                    off.push(set.run(false));
                    on.push(set.run(true));
                }
                if beside_the_medium {
                    medium.push(Medium::measure(&scene.folder("medium"), bytes));
                }
            }
            say(kind, packages.len(), bytes, &on, &off);
            if let Some(medium) = Medium::median(&medium) {
                println!("     {medium}");
            }
            if let Some(fsync) = fsync(scene.path()) {
                println!("     fsync p50 {fsync:.1?}");
            }
        }
    }
}

fn say(kind: &str, packages: usize, bytes: u64, on: &[Run], off: &[Run]) {
    let ratios = on.iter().zip(off).map(|(on, off)| on.seconds / off.seconds);
    let ratio = median(ratios.collect());
    let all = Bytes(bytes * packages as u64);
    let told = |runs: &[Run]| {
        let seconds = median(runs.iter().map(|run| run.seconds).collect());
        let cpu = median(runs.iter().map(|run| run.cpu_seconds).collect());
        let rate = match bytes {
            SMALL_BYTES => format!("{:.0} packages/s", packages as f64 / seconds),
            _ => format!("{:.3} GB/s", all.giga() / seconds),
        };
        format!("{seconds:.2} s ({rate}, CPU {cpu:.1} s)")
    };
    let of_limit = if kind == "disk" && bytes != SMALL_BYTES {
        format!(", {:.2} of the limit {LIMIT}", ratio / LIMIT)
    } else {
        String::new()
    };
    println!(
        "{kind:<4} {packages} x {:<7} read-back on {}, off {}; on/off {ratio:.2}{of_limit}",
        Bytes(bytes).to_string(),
        told(on),
        told(off)
    );
}

/// Packages of one size, and the archive that they go to.
struct Set<'a> {
    bench: &'a Bench,
    scene: &'a Scene,
    server: Option<&'a S3Server>,
    packages: &'a [NewPackage],
}

struct Run {
    seconds: f64,
    /// Of the daemon.
    cpu_seconds: f64,
}

impl Set<'_> {
    /// Archives all packages once.
    fn run(&self, read_back: bool) -> Run {
        let place = Scene::new("bench-archive-run");
        let buffer = self.scene.join("buffer");
        let archive = match self.server {
            None => {
                let root = place.folder("archive");
                Disk::found(&root).expect("found an archive");
                format!("archive = \"disk\"\nroot = \"{}\"", root.display())
            }
            Some(server) => s3_settings(server, &place),
        };
        let storage = if self.server.is_some() { "s3" } else { "disk" };
        let url = format!("sqlite:{}", place.join("control.db").display());
        let identity = place.join("identity");
        make_identity(&place, &identity, "bench");
        let settings = format!(
            "identity = \"{}\"\n[database]\nurl = \"{url}\"\n[worker]\nslots = {}\nlease = \"30s\"\n\
             [locations.\"cologne/buffer\"]\nroot = \"{}\"\n[locations.\"cologne/archive\"]\n{archive}\n",
            identity.display(),
            self.bench.slots,
            buffer.display()
        );
        fs::write(place.join("settings.toml"), settings).expect("write the settings");
        self.bench.runtime.block_on(self.register(&url, storage));
        warm(&buffer, self.packages);
        rustix::fs::sync();

        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(place.join("settings.toml")).arg("up").current_dir(place.path());
        own_home(&place, &mut command);
        if !read_back {
            command.env("CCAT_XFER_FAULT_READ_BACK", "off");
        }
        let daemon = spawn(&place, command);
        let seconds = self.bench.runtime.block_on(until_archived(&url, &daemon, self.packages.len()));
        Run { seconds, cpu_seconds: cpu_seconds(daemon.pid()) }
    }

    async fn register(&self, url: &str, storage: &str) {
        let topology = format!(
            "[[site]]\nname = \"Cologne\"\nshort_name = \"cologne\"\n\
             [[location]]\nsite = \"cologne\"\nname = \"buffer\"\ntype = \"buffer\"\n\
             [[location]]\nsite = \"cologne\"\nname = \"archive\"\ntype = \"long_term_archive\"\nstorage = \"{storage}\"\n\
             cached_read_back_counts = true\n"
        );
        let store = Store::open(url).await.expect("open a file");
        let topology = Topology::parse(&topology).expect("a topology");
        store.apply_topology(&topology, "bench", Apply::Now).await.expect("apply the topology");
        // What lies in a buffer beside an archive is wanted nowhere else.
        store.register(self.packages, &[], "bench").await.expect("register");
        store.close().await;
    }
}

/// Waits until so many packages are archived. Returns seconds from the first claim to the last outcome.
async fn until_archived(url: &str, daemon: &Running, packages: usize) -> f64 {
    let pool = SqlitePool::connect(url).await.expect("open the database");
    let wanted = i64::try_from(packages).expect("a small number");
    let text = "SELECT sum(t.status = 'completed') AS done, count(a.id) AS attempts, max(t.finished_at) - min(a.started_at) AS took
        FROM long_term_archive_transfer t LEFT JOIN attempt a ON a.long_term_archive_transfer_id = t.id";
    let end = Instant::now() + HANG;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let row = sqlx::query(text).fetch_one(&pool).await.expect("look at the database");
        let (done, attempts): (Option<i64>, i64) = (row.get("done"), row.get("attempts"));
        assert!(attempts <= wanted, "an attempt failed:\n{}", daemon.stderr_so_far());
        assert!(Instant::now() < end, "{done:?} of {wanted} archived:\n{}", daemon.stderr_so_far());
        if done == Some(wanted) {
            let took: i64 = row.get("took");
            pool.close().await;
            return took as f64 / 1e6;
        }
    }
}

fn s3_settings(server: &S3Server, place: &Scene) -> String {
    let credentials = place.join("credentials");
    fs::write(&credentials, format!("{}:{}", S3Server::ACCESS_KEY, S3Server::SECRET_KEY)).expect("write credentials");
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600)).expect("keep the credentials");
    // Nobody has put anything there before.
    let prefix = place.path().file_name().and_then(|name| name.to_str()).expect("a name");
    format!(
        "archive = \"s3\"\n[locations.\"cologne/archive\".s3]\nendpoint = \"{}\"\nbucket = \"{}\"\ncredentials_file = \"{}\"\n\
         prefix = \"{prefix}/\"",
        server.endpoint(),
        S3Server::BUCKET,
        credentials.display()
    )
}

/// Files that no other run of the bench has.
fn make_packages(buffer: &Path, packages: u64, bytes: u64) -> Vec<NewPackage> {
    let root = Root::open(buffer).expect("open the buffer");
    let mut rng = Rng(u64::from(std::process::id()));
    let make = |n| {
        let name = format!("package-{n:05}");
        write_file(&buffer.join(&name), bytes, &mut rng);
        let path = RelPath::new(name.as_bytes()).expect("a path");
        let measured = measure(&root, &path).expect("read a package");
        NewPackage {
            name,
            kind: PackageKind::File,
            origin: "cologne/buffer".parse().expect("a place"),
            path,
            size_bytes: measured.size_bytes,
            file_count: 1,
            identity: measured.digest.0,
            sha256: None,
            priority: 4,
            policy: Policy::SiteArchives,
            metadata: None,
        }
    };
    (0..packages).map(make).collect()
}

/// Has the page cache hold the packages.
fn warm(buffer: &Path, packages: &[NewPackage]) {
    for package in packages {
        let mut file = File::open(buffer.join(&package.name)).expect("open a package");
        std::io::copy(&mut file, &mut std::io::sink()).expect("read a package");
    }
}

/// User and system time of a process.
fn cpu_seconds(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name, in parentheses, may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// What the medium does by itself, past the page cache, in bytes a second.
#[derive(Clone, Copy)]
struct Medium {
    writes: f64,
    reads: f64,
    writes_while_reading: f64,
    reads_while_writing: f64,
}

impl Medium {
    fn measure(folder: &Path, bytes: u64) -> Option<Self> {
        let (one, other) = (folder.join("one"), folder.join("other"));
        let measured = (|| {
            let writes = write_direct(&one, bytes)?;
            let reads = read_direct(&one, bytes)?;
            // As many bytes each way; whoever is through first leaves the rest to the other.
            let (writes_while_reading, reads_while_writing) = thread::scope(|scope| {
                let reading = scope.spawn(|| read_direct(&one, bytes));
                let writes = write_direct(&other, bytes);
                Some((writes?, reading.join().ok()??))
            })?;
            Some(Self { writes, reads, writes_while_reading, reads_while_writing })
        })();
        let _ = (fs::remove_file(&one), fs::remove_file(&other));
        measured
    }

    fn median(all: &[Option<Self>]) -> Option<Self> {
        let all: Vec<_> = all.iter().copied().collect::<Option<_>>()?;
        let of = |rate: fn(&Self) -> f64| median(all.iter().map(rate).collect());
        (!all.is_empty()).then(|| Self {
            writes: of(|m| m.writes),
            reads: of(|m| m.reads),
            writes_while_reading: of(|m| m.writes_while_reading),
            reads_while_writing: of(|m| m.reads_while_writing),
        })
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the medium through O_DIRECT: writes {:.3} GB/s, reads {:.3} GB/s; at once writes {:.3} GB/s and reads {:.3} GB/s; \
             so a read-back after the write takes {:.2} times as long as the write alone",
            self.writes / 1e9,
            self.reads / 1e9,
            self.writes_while_reading / 1e9,
            self.reads_while_writing / 1e9,
            1.0 + self.writes / self.reads
        )
    }
}

const PIECE: usize = 4 << 20;

fn write_direct(path: &Path, bytes: u64) -> Option<f64> {
    let file = open_direct(path, OpenOptions::new().write(true).create(true).truncate(true))?;
    let mut buffer = Buffer::detached(PIECE);
    buffer.set_len(PIECE);
    Rng(7).bytes(&mut buffer);
    let start = Instant::now();
    for at in (0..bytes).step_by(PIECE) {
        file.write_all_at(&buffer, at).ok()?;
    }
    file.sync_all().ok()?;
    Some(bytes as f64 / start.elapsed().as_secs_f64())
}

fn read_direct(path: &Path, bytes: u64) -> Option<f64> {
    let file = open_direct(path, OpenOptions::new().read(true))?;
    let mut buffer = Buffer::detached(PIECE);
    buffer.set_len(PIECE);
    let start = Instant::now();
    for at in (0..bytes).step_by(PIECE) {
        file.read_exact_at(&mut buffer, at).ok()?;
    }
    Some(bytes as f64 / start.elapsed().as_secs_f64())
}

/// `None` where the file system does not know it.
fn open_direct(path: &Path, options: &mut OpenOptions) -> Option<File> {
    options.custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).ok()
}

/// What it costs to make one page durable.
fn fsync(folder: &Path) -> Option<Duration> {
    let file = File::create(folder.join("fsync")).ok()?;
    let mut times = Vec::new();
    for n in 0..200 {
        let start = Instant::now();
        file.write_all_at(&[7; 8192], n * 8192).and_then(|()| file.sync_data()).ok()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    if all.len() % 2 == 1 { all[middle] } else { (all[middle - 1] + all[middle]) / 2.0 }
}

fn fits(folder: &Path, bytes: u64) -> bool {
    let room = rustix::fs::statvfs(folder).map_or(0, |s| s.f_bavail * s.f_frsize);
    room > bytes + (256 << 20)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number in the environment"))
}

fn size(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    let (digits, shift) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 20),
        None => (text.strip_suffix(['G', 'g']).unwrap_or(&text), 30),
    };
    digits.parse::<u64>().unwrap_or_else(|_| panic!("{name}: '{text}' is not a size such as 256M or 4G")) << shift
}

/// For people.
#[derive(Clone, Copy)]
struct Bytes(u64);

impl Bytes {
    fn giga(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 1 << 20 { write!(f, "{} MiB", self.0 >> 20) } else { write!(f, "{} KiB", self.0 >> 10) }
    }
}
