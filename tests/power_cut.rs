//! Simulated power cuts on a real file system: ext4 in a loop-mounted image, shut down without flushing its journal.
//!
//! A cut at a random point of receiving and publishing, a remount, and then: every acknowledged chunk and every published
//! file must be right, a journal must not say more than the data hold, and the next attempt must be able to finish. The
//! same is run with each mistake of `disk::fault` planted, and must then find something.
//!
//! The part store is cut at every kind of its own points; whole programs are cut at random instants, over every transport.
//!
//! `CCAT_XFER_SEED` repeats a run. Needs root and a loop device.

#![expect(clippy::unwrap_used, reason = "a test; what fails outside the transfer itself ends it")]

mod harness;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ccat_xfer::{
    chunk::{ChunkSize, ChunkValue, Digest, RelPath, chunk_value},
    disk::{
        FileMeta, Root,
        fault::{self, Fault, Point},
    },
    journal::{
        GroupItem, JournalError, PartStore, Publish, PublishMode, PublishOutcome, SmallPart, Staged, StoreOptions,
    },
};
use harness::{
    Events, Far, Rng, Scene, Transport, TreeSpec, Xfer, assert_same_tree, build, check_digests, count, exit, far_pids,
    kill, seed,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;

/// What is sent.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One large file, in groups.
    Large,
    /// 2,000 small files, in batches.
    Packed,
}

/// What the far side was told before the cut.
#[derive(Default)]
struct Told {
    durable: BTreeMap<u64, ChunkValue>,
    /// Whole small files that were acknowledged before they were published.
    durable_small: Vec<String>,
    published: Vec<String>,
}

#[test]
fn acknowledged_bytes_survive_power_cuts() {
    let Some(disk) = Disk::new() else { return };
    let cuts = count("power cuts of the part store, of each kind", 100);
    let seed = seed("acknowledged_bytes_survive_power_cuts").next();
    for kind in [Kind::Large, Kind::Packed] {
        let points = disk.points(kind, None);
        let mut rng = StdRng::seed_from_u64(seed);
        for cut in 0..cuts {
            // Most points lie between two small files; half of the cuts are for the few around syncs and renames.
            let at = if rng.random_bool(0.5) { rng.random_range(0..points.all) } else { points.pick(&mut rng) };
            if let Err(violation) = disk.cut_and_check(kind, None, at) {
                panic!("{kind:?}, cut {cut} at point {at} of {}: {violation}", points.all);
            }
        }
        println!("{kind:?}: {cuts} cuts within {} points, 0 violations", points.all);
    }
}

/// The test above proves something only if it can fail.
#[test]
fn planted_mistakes_are_found_by_power_cuts() {
    let Some(disk) = Disk::new() else { return };
    let seed = seed("planted_mistakes_are_found_by_power_cuts").next();
    for (fault, kind) in [
        (Fault::SyncOrderSwapped, Kind::Large),
        (Fault::DirectorySyncDropped, Kind::Large),
        (Fault::DirectorySyncDropped, Kind::Packed),
        (Fault::AcknowledgedBeforeJournalSync, Kind::Large),
        (Fault::AcknowledgedBeforeJournalSync, Kind::Packed),
        (Fault::PublishedBeforeDataSync, Kind::Large),
        (Fault::PublishedBeforeDataSync, Kind::Packed),
    ] {
        let points = disk.points(kind, Some(fault));
        // Each point around a sync or a rename once, in random order.
        let mut order = points.around_syncs.clone();
        rand::seq::SliceRandom::shuffle(&mut order[..], &mut StdRng::seed_from_u64(seed));
        let found = order.iter().enumerate().find_map(|(n, &at)| {
            disk.cut_and_check(kind, Some(fault), at).err().map(|violation| (n + 1, at, violation))
        });
        match found {
            Some((n, at, violation)) => println!("{fault:?}, {kind:?}: found by cut {n} (point {at}): {violation}"),
            None => panic!("{fault:?} with {kind:?} was not found by a cut at any point"),
        }
    }
}

/// Stretches the runs of whole programs, so that an instant within one can be hit.
const PROGRAM_BYTES_PER_S: u64 = 60_000_000;
const PROGRAM_LARGE_BYTES: u64 = 96 << 20;

/// The power goes while the program receives: pushed to and pulling, over every transport, at a random instant. What it said
/// was durable or published must be so after the remount, and the next run must finish without sending that again.
#[test]
fn whole_programs_survive_power_cuts() {
    let Some(disk) = Disk::new() else { return };
    let mut rng = seed("whole_programs_survive_power_cuts");
    let cuts = count("power cuts of whole programs, of each kind", 100);
    let scene = Scene::new("power");
    for (kind, spec) in
        [(Kind::Large, TreeSpec::plain(PROGRAM_LARGE_BYTES, 0)), (Kind::Packed, TreeSpec::plain(0, PACKED))]
    {
        let source = scene.join(&format!("{kind:?}"));
        build(&source, &spec, &mut rng);
        let bytes = spec.large + spec.small_files * spec.small_bytes;
        let (mut durable, mut published) = (0, 0);
        for _ in 0..cuts {
            let told = disk.cut_a_program(&scene, &source, bytes, &mut rng);
            durable += u64::from(told.durable() > 0);
            published += told.with_action("copied");
        }
        harness::say(&format!(
            "{kind:?}: {cuts} cuts of whole programs, {durable} after something was durable, {published} files were published"
        ));
        assert!(durable > 0, "no cut ever found anything to lose");
    }
}

/// An image that is formatted anew for every cut.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Option<Self> {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(disk.mount_point()).unwrap();
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: power cuts need root, to mount an image");
            return None;
        }
        disk.format();
        let mounted = disk.mount();
        if let Err(why) = mounted {
            println!("SKIP: power cuts need ext4 and a loop device: {why}");
            return None;
        }
        disk.unmount();
        Some(disk)
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn format(&self) {
        let image = self.dir.path().join("image");
        File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard"]).arg(&image)).unwrap();
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.dir.path().join("image")).arg(self.mount_point()))
    }

    fn unmount(&self) {
        // A process that another test is just starting holds copies of our handles until it has begun.
        let mut tries = 0;
        while let Err(why) = run(Command::new("umount").arg(self.mount_point())) {
            tries += 1;
            assert!(tries < 100 && why.contains("busy"), "{why}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many points a whole transfer passes.
    fn points(&self, kind: Kind, planted: Option<Fault>) -> Points {
        let (points, result) = self.attempt(kind, planted, u64::MAX, &mut Told::default());
        result.unwrap();
        self.unmount();
        points
    }

    /// Formats, mounts and transfers until the power goes at point `at`.
    fn attempt(&self, kind: Kind, planted: Option<Fault>, at: u64, told: &mut Told) -> (Points, Result<(), String>) {
        self.format();
        self.mount().unwrap();
        let power = Rc::new(Power::new(&self.mount_point(), at));
        fault::plant(planted);
        fault::at_points(Some(Box::new({
            let power = Rc::clone(&power);
            move |point| power.point(!matches!(point, Point::PartCreated | Point::Written))
        })));
        let told = RefCell::new(told);
        let result = match kind {
            Kind::Large => receive_large(&self.mount_point(), &power, &told),
            Kind::Packed => receive_packed(&self.mount_point(), &power, &told),
        };
        fault::at_points(None);
        fault::plant(None);
        (power.points.borrow().clone(), result.map_err(|e| e.to_string()))
    }

    /// One cut and its aftermath; what the program had said before it.
    fn cut_a_program(&self, scene: &Scene, source: &Path, bytes: u64, rng: &mut Rng) -> Events {
        self.format();
        self.mount().unwrap();
        let power = File::open(self.mount_point()).unwrap();
        let dest = self.mount_point().join("dest");
        let (transport, push) = (*rng.pick(&Transport::ALL), rng.coin());
        let length = Duration::from_millis(bytes * 1000 / PROGRAM_BYTES_PER_S + 400);
        let after = Duration::from_millis(rng.below(u64::try_from(length.as_millis()).unwrap()));
        let story = format!("push: {push}, {transport:?}, cut after {after:?}");
        let others = far_pids(scene).len();
        let xfer = || Xfer::new(scene, Far::Rsh, transport);
        let limit = PROGRAM_BYTES_PER_S.to_string();
        let mut run = xfer().arg("--rate-limit").arg(limit).spawn(push, source, &dest);
        run.wait_until(after, |_| false);
        shut_down(&power);
        drop(power);
        let far = far_pids(scene).split_off(others);
        let told = Events::parse(&run.kill_now().stdout);
        for pid in far {
            kill(pid, Signal::KILL);
        }
        scene.assert_no_engine_left(Duration::from_secs(45));
        self.unmount();
        self.mount().unwrap();
        if told.with_action("copied") > 0 {
            assert_eq!(check_digests(&told, &dest), told.with_action("copied"), "{story}");
        }
        let again = xfer().run(push, source, &dest).expect_code(exit::SUCCESS).events();
        assert_same_tree(source, &dest);
        let resumed = again.number("bytes_resumed");
        assert!(resumed >= told.durable(), "{} bytes were durable, {resumed} were found: {story}", told.durable());
        self.unmount();
        told
    }

    fn cut_and_check(&self, kind: Kind, planted: Option<Fault>, at: u64) -> Result<(), String> {
        let mut told = Told::default();
        // After the cut every operation fails, as it should.
        let _ = self.attempt(kind, planted, at, &mut told);
        self.unmount();
        self.mount()?;
        let checked = check(kind, &self.mount_point(), &told);
        self.unmount();
        checked
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.mount_point()).stderr(Stdio::null()).status();
    }
}

/// The points that a transfer passes.
#[derive(Clone, Default)]
struct Points {
    all: u64,
    /// Those that do not merely lie between two writes.
    around_syncs: Vec<u64>,
}

impl Points {
    fn pick(&self, rng: &mut StdRng) -> u64 {
        self.around_syncs[rng.random_range(0..self.around_syncs.len())]
    }
}

/// The power of the disk: goes once, at a point that was chosen before.
struct Power {
    disk: File,
    points: RefCell<Points>,
    at: u64,
}

impl Power {
    fn new(mount: &Path, at: u64) -> Self {
        Self { disk: File::open(mount).unwrap(), points: RefCell::default(), at }
    }

    fn point(&self, around_sync: bool) {
        let mut points = self.points.borrow_mut();
        if points.all == self.at {
            shut_down(&self.disk);
        }
        if around_sync {
            let this = points.all;
            points.around_syncs.push(this);
        }
        points.all += 1;
    }
}

#[expect(unsafe_code, reason = "the ioctl that simulates a power cut has no safe wrapper")]
fn shut_down(mount: &File) {
    // FS_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH (fs/ext4/ext4.h): nothing reaches the disk any more.
    const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the kernel reads one u32 behind the pointer, which `Setter` provides, and writes nothing.
    unsafe {
        let cut = rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH);
        rustix::ioctl::ioctl(mount, cut).unwrap();
    }
}

const IMAGE_BYTES: u64 = 256 << 20;
const GROUPS: u64 = 6;
const GROUP_CHUNKS: u64 = 4;
const LARGE: &str = "new/dir/large";
const PACKED: u64 = 2000;
const BATCH: u64 = 250;

fn chunk_size() -> ChunkSize {
    ChunkSize::from_log2(16).unwrap()
}

fn large_bytes() -> Vec<u8> {
    let mut data = vec![0; usize::try_from(GROUPS * GROUP_CHUNKS * chunk_size().bytes() - 5).unwrap()];
    StdRng::seed_from_u64(42).fill_bytes(&mut data);
    data
}

fn chunk(data: &[u8], index: u64) -> (u64, &[u8], ChunkValue) {
    let size = u64::try_from(data.len()).unwrap();
    let range = chunk_size().range(index, size).unwrap();
    let bytes = &data[usize::try_from(range.start).unwrap()..usize::try_from(range.end()).unwrap()];
    (range.start, bytes, chunk_value(chunk_size(), index, size, bytes))
}

fn packed_name(n: u64) -> String {
    format!("packed/d{}/f{n}", n % 3)
}

fn packed_bytes(n: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(n);
    let mut data = vec![0; rng.random_range(0..3000)];
    rng.fill_bytes(&mut data);
    data
}

fn path(text: &str) -> RelPath {
    RelPath::new(text.as_bytes()).unwrap()
}

fn store(at: &Path) -> Result<PartStore, JournalError> {
    PartStore::open(Arc::new(Root::open(at)?), StoreOptions { lock_wait: Duration::ZERO, job: None })
}

fn publish(
    store: &PartStore,
    files: Vec<(String, Staged)>,
    power: &Power,
    told: &RefCell<&mut Told>,
) -> Result<(), JournalError> {
    let (names, files): (Vec<_>, Vec<_>) = files
        .into_iter()
        .map(|(name, staged)| (name, Publish { staged, meta: FileMeta::default(), mode: PublishMode::NoReplace }))
        .unzip();
    for (name, outcome) in names.into_iter().zip(store.publish(&files)?) {
        if matches!(outcome, PublishOutcome::Published(_)) {
            told.borrow_mut().published.push(name);
        }
    }
    power.point(true);
    Ok(())
}

fn receive_large(at: &Path, power: &Power, told: &RefCell<&mut Told>) -> Result<(), JournalError> {
    let data = large_bytes();
    let store = store(at)?;
    store.root().make_dirs(&path("new/dir"), 0o755)?;
    power.point(true);
    let size = u64::try_from(data.len()).unwrap();
    let part = Arc::new(store.begin(&path(LARGE), size, chunk_size(), false)?);
    let held: BTreeMap<u64, ChunkValue> = part.held_values().iter().copied().collect();
    for group in 0..GROUPS {
        let mut chunks = Vec::new();
        for index in group * GROUP_CHUNKS..(group + 1) * GROUP_CHUNKS {
            let (start, bytes, value) = chunk(&data, index);
            if held.get(&index) != Some(&value) {
                part.write_chunk(start, bytes, false)?;
                chunks.push((index, value));
            }
        }
        // The last group is left to the publication.
        if group + 1 < GROUPS {
            store.commit(&[GroupItem { part: Arc::clone(&part), chunks: chunks.clone() }], &[])?;
            told.borrow_mut().durable.extend(chunks);
            power.point(true);
        }
    }
    publish(&store, vec![(LARGE.into(), Staged::Part(part))], power, told)?;
    store.finish()?;
    power.point(true);
    Ok(())
}

fn receive_packed(at: &Path, power: &Power, told: &RefCell<&mut Told>) -> Result<(), JournalError> {
    let store = store(at)?;
    for d in 0..3 {
        store.root().make_dirs(&path(&format!("packed/d{d}")), 0o755)?;
    }
    for batch in 0..PACKED / BATCH {
        let mut files = Vec::new();
        for n in batch * BATCH..(batch + 1) * BATCH {
            let (name, data) = (packed_name(n), packed_bytes(n));
            if store.root().stat(&path(&name))?.is_none() {
                let adopted = store.adopt_small(&path(&name))?;
                let small = match adopted {
                    Some(small) if small.digest() == Digest::of(&data) => small,
                    _ => store.write_small(&path(&name), &data, Digest::of(&data), &FileMeta::default())?,
                };
                files.push((name, small));
            }
        }
        // Every other batch is acknowledged before it is published.
        if batch % 2 == 0 {
            let small: Vec<SmallPart> = files.iter().map(|(_, small)| small.clone()).collect();
            store.commit(&[], &small)?;
            told.borrow_mut().durable_small.extend(files.iter().map(|(name, _)| name.clone()));
            power.point(true);
        }
        let files = files.into_iter().map(|(name, small)| (name, Staged::Small(small))).collect();
        publish(&store, files, power, told)?;
    }
    store.finish()?;
    power.point(true);
    Ok(())
}

/// After the remount: is everything so that was promised, and can the next attempt finish?
fn check(kind: Kind, at: &Path, told: &Told) -> Result<(), String> {
    let expected: Vec<(String, Vec<u8>)> = match kind {
        Kind::Large => vec![(LARGE.into(), large_bytes())],
        Kind::Packed => (0..PACKED).map(|n| (packed_name(n), packed_bytes(n))).collect(),
    };
    for (name, bytes) in &expected {
        match fs::read(at.join(name)) {
            Ok(found) if found == *bytes => {}
            Ok(found) => return Err(format!("{name} has its final name and wrong bytes ({} of them)", found.len())),
            Err(e) if told.published.contains(name) => return Err(format!("{name} was said to be published: {e}")),
            Err(_) => {}
        }
    }
    let failed = |e: JournalError| e.to_string();
    if let Kind::Large = kind
        && !at.join(LARGE).exists()
    {
        let data = large_bytes();
        let store = store(at).map_err(failed)?;
        let size = u64::try_from(data.len()).unwrap();
        let part = store.begin(&path(LARGE), size, chunk_size(), false).map_err(failed)?;
        let held: BTreeMap<u64, ChunkValue> = part.held_values().iter().copied().collect();
        if let Some((index, _)) = told.durable.iter().find(|(index, value)| held.get(index) != Some(value)) {
            return Err(format!("chunk {index} was acknowledged and is not held"));
        }
        let mut buf = vec![0; chunk_size().buffer_bytes()];
        for (index, value) in &held {
            if part.hash_chunk(*index, &mut buf).map_err(failed)? != Some(*value) {
                return Err(format!("chunk {index} is said to be held and has other bytes"));
            }
        }
    }
    if let Kind::Packed = kind {
        let store = store(at).map_err(failed)?;
        for name in told.durable_small.iter().filter(|name| !at.join(name).exists()) {
            let adopted = store.adopt_small(&path(name)).map_err(failed)?;
            if adopted.is_none() {
                return Err(format!("{name} was acknowledged and is not held"));
            }
        }
    }
    let power = Power::new(at, u64::MAX);
    let mut rest = Told::default();
    let rest = RefCell::new(&mut rest);
    match kind {
        Kind::Large if at.join(LARGE).exists() => Ok(()),
        Kind::Large => receive_large(at, &power, &rest),
        Kind::Packed => receive_packed(at, &power, &rest),
    }
    .map_err(failed)?;
    for (name, bytes) in &expected {
        if fs::read(at.join(name)).map_err(|e| format!("{name}: {e}"))? != *bytes {
            return Err(format!("{name} is wrong after the next attempt"));
        }
    }
    if matches!(kind, Kind::Packed) && at.join(".ccat-xfer").exists() {
        return Err("the next attempt left parts behind".into());
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.stdout(Stdio::null()).stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(e) => Err(format!("{command:?}: {e}")),
    }
}
