//! The archive on disk: the suite's bed, and what only it can be asked.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ccat_xfer::{
    archive::{Archive, Disk, Lies, MARKER, Package, Progress, ReadHow, Source, Stored, Turn},
    disk::Root,
    model::{ErrorClass, PackageKind, StorageType},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    bed::{Bed, at, file, large, put, put_as, read, register, rests_well, turn},
    harness::{count, is_root, say, skip},
};

pub(crate) struct DiskBed {
    dir: TempDir,
    origin: PathBuf,
    lies: Option<Arc<Lies>>,
}

impl DiskBed {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a folder");
        fs::create_dir(dir.path().join("archive")).expect("make a folder");
        fs::create_dir(dir.path().join("origin")).expect("make a folder");
        Disk::found(dir.path().join("archive")).expect("found an archive");
        Self { origin: dir.path().join("origin"), dir, lies: None }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    /// Everything below the folder of packages, as paths.
    fn resting(&self) -> Vec<PathBuf> {
        let (mut found, mut open) = (Vec::new(), vec![self.root().join("packages")]);
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("list").path();
                if path.symlink_metadata().expect("look").is_dir() {
                    open.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }

    /// The folder of a package: that in which its name lies, below its digest.
    fn home(&self, package: &Package) -> PathBuf {
        let digest = package.expected.hex();
        let path = ccat_xfer::chunk::Digest::of(package.relative_path.as_bytes()).to_string();
        let folder = format!("{}/{}/{digest}-{}", &digest[..2], &digest[2..4], &path[..16]);
        self.root().join("packages").join(folder)
    }

    fn package(&self, package: &Package) -> PathBuf {
        let (_, name) = package.relative_path.split_last().expect("a name");
        self.home(package).join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name))
    }
}

impl Drop for DiskBed {
    fn drop(&mut self) {
        // What rests is read-only, which keeps its owner from removing it.
        for path in self.resting() {
            if path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
            }
        }
    }
}

impl Bed for DiskBed {
    fn archive(&self) -> Arc<dyn Archive> {
        let disk = Disk::new(self.root());
        match &self.lies {
            Some(lies) => Arc::new(disk.lying(Arc::clone(lies))),
            None => Arc::new(disk),
        }
    }

    fn origin(&self) -> &Path {
        &self.origin
    }

    fn corrupt(&self, package: &Package) {
        let mut at = self.package(package);
        while at.is_dir() {
            at = fs::read_dir(&at).expect("list").next().expect("something in it").expect("list").path();
        }
        let mode = at.metadata().expect("look").mode();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).expect("give myself access");
        let mut bytes = fs::read(&at).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&at, bytes).expect("write");
        fs::set_permissions(&at, fs::Permissions::from_mode(mode)).expect("take it back");
    }

    fn resumes(&self) -> bool {
        true
    }

    fn left_over(&self, package: &Package) -> Vec<String> {
        let (_, own) = package.relative_path.split_last().expect("a name");
        let own = String::from_utf8_lossy(own).into_owned();
        let expected = [own.clone(), format!("{own}.ccat.modes"), format!("{own}.ccat.json")];
        let home = fs::read_dir(self.home(package)).into_iter().flatten();
        let incoming = fs::read_dir(self.root().join("incoming")).into_iter().flatten();
        home.chain(incoming)
            .map(|entry| entry.expect("list").file_name().to_string_lossy().into_owned())
            .filter(|name| !expected.contains(name))
            .collect()
    }
}

#[test]
fn a_folder_becomes_an_archive_only_when_it_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    Disk::found(dir.path()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join(MARKER)).unwrap(), "ccat-xfer archive 1\n");
    fs::write(dir.path().join("something"), b"").unwrap();
    Disk::found(dir.path()).expect("it is one already");
    fs::remove_file(dir.path().join(MARKER)).unwrap();
    for at in [dir.path().to_owned(), dir.path().join("none")] {
        let error = Disk::found(&at).unwrap_err();
        assert_eq!(error.class, ErrorClass::Configuration, "{error}");
    }
}

#[tokio::test]
async fn without_its_marker_a_folder_is_no_archive() {
    let bed = DiskBed::new();
    let package = file(&bed, "one", b"one");
    put(&bed, &package).await;
    for (marker, says) in [
        (None, "not mounted"),
        (Some("ccat-xfer archive 2\n"), "update this program"),
        (Some("something\n"), "does not hold"),
        (Some(""), "does not hold"),
    ] {
        match marker {
            None => fs::remove_file(bed.root().join(MARKER)).unwrap(),
            Some(words) => fs::write(bed.root().join(MARKER), words).unwrap(),
        }
        let archive = bed.archive();
        let never = CancellationToken::new();
        let other = file(&bed, "other", b"other");
        let errors = [
            put_as(&bed, &other, turn(1, 1)).await.unwrap_err(),
            read(&bed, &package).await.unwrap_err(),
            archive.write_sidecar(&package, b"{}").await.unwrap_err(),
            archive.sidecars(None, 1).await.unwrap_err(),
            archive.free_bytes().await.unwrap_err(),
            archive.forget_replaced(&package).await.unwrap_err(),
            archive.fetch(&package, &Root::open(bed.origin()).unwrap(), &Silent, &never).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.class, ErrorClass::Configuration, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
    fs::write(bed.root().join(MARKER), "ccat-xfer archive 1\n").unwrap();
    assert!(rests_well(&bed, &package).await);
    let gone = Disk::new(bed.root().join("nowhere"));
    assert_eq!(gone.free_bytes().await.unwrap_err().class, ErrorClass::Configuration);
    assert_eq!(gone.medium(), StorageType::Disk);
}

#[derive(Debug)]
struct Silent;

impl Progress for Silent {
    fn advance(&self, _: u64) {}
}

#[tokio::test]
async fn what_rests_is_read_only_and_keeps_its_bits_in_mind() {
    let bed = DiskBed::new();
    fs::create_dir_all(bed.origin().join("tree/sub")).unwrap();
    file(&bed, "tree/sub/a", b"a");
    fs::set_permissions(bed.origin().join("tree/sub/a"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(bed.origin().join("tree/sub"), fs::Permissions::from_mode(0o2770)).unwrap();
    let package = register(&bed, "tree");
    put(&bed, &package).await;
    let rests = bed.package(&package);
    for path in [rests.clone(), rests.join("sub"), rests.join("sub/a")] {
        assert_eq!(path.metadata().unwrap().mode() & 0o222, 0, "{}", path.display());
    }
    assert!(rests_well(&bed, &package).await);
    let notes = bed.home(&package).join("tree.ccat.modes");
    fs::write(&notes, fs::read_to_string(&notes).unwrap().replace("4755", "755")).unwrap();
    assert!(!rests_well(&bed, &package).await, "wrong notes are found like wrong bytes");
    bed.archive().write_sidecar(&package, b"{}").await.unwrap();
    assert_eq!(bed.home(&package).join("tree.ccat.json").metadata().unwrap().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn a_reading_says_how_it_was_done() {
    let bed = DiskBed::new();
    let package = file(&bed, "one", &[1; 1 << 20]);
    put(&bed, &package).await;
    let how = read(&bed, &package).await.unwrap().how;
    say(&format!("this disk is read {how:?}"));
    assert!(matches!(how, ReadHow::Direct | ReadHow::Dropped | ReadHow::Cached));
    assert!(bed.archive().free_bytes().await.unwrap().is_some_and(|free| free > 0));
}

/// Every crash between two steps of a replacement leaves what the next attempt goes on from.
#[tokio::test]
async fn a_replacement_goes_on_after_a_crash() {
    for kind in [PackageKind::File, PackageKind::Tree] {
        let bed = DiskBed::new();
        let package = match kind {
            PackageKind::File => file(&bed, "one", b"one"),
            PackageKind::Tree => {
                file(&bed, "one/a", b"a");
                register(&bed, "one")
            }
        };
        put(&bed, &package).await;
        bed.corrupt(&package);
        let replace = |fence| Turn { replace: true, ..turn(9, fence) };
        // Set aside, and nothing in its place: the machine went down between the two renames.
        let job = "09".repeat(16);
        let aside = bed.home(&package).join(format!("one.ccat.corrupt-{job}-1"));
        fs::set_permissions(bed.package(&package), fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(bed.package(&package), &aside).unwrap();
        assert_eq!(read(&bed, &package).await.unwrap_err().class, ErrorClass::MissingSource);
        assert_eq!(bed.archive().forget_replaced(&package).await.unwrap_err().class, ErrorClass::MissingSource);
        assert!(aside.exists(), "nothing is forgotten before there is something in its place");
        put_as(&bed, &package, replace(2)).await.unwrap();
        assert!(rests_well(&bed, &package).await);
        // Replaced, and nobody was told.
        assert_eq!(put_as(&bed, &package, replace(3)).await.unwrap(), Stored::Found);
        assert_eq!(bed.left_over(&package).len(), 1);
        bed.archive().forget_replaced(&package).await.unwrap();
        assert_eq!(bed.left_over(&package), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_lower_fence_is_refused() {
    let bed = DiskBed::new();
    let package = file(&bed, "one", b"one");
    let gone = file(&bed, "gone", b"gone");
    fs::remove_file(bed.origin().join("gone")).unwrap();
    put_as(&bed, &gone, turn(1, 5)).await.unwrap_err();
    let error = put_as(&bed, &package, turn(1, 4)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration, "{error}");
    assert!(error.to_string().contains("fence 5"), "{error}");
    put_as(&bed, &package, turn(2, 4)).await.unwrap();
}

/// Does something once all bytes of a put are counted: behind the copy, and before the package has its name.
struct Behind<'a> {
    left: AtomicU64,
    work: Box<dyn Fn() + Send + Sync + 'a>,
}

impl std::fmt::Debug for Behind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.left)
    }
}

impl Progress for Behind<'_> {
    fn advance(&self, bytes: u64) {
        if self.left.fetch_sub(bytes, Ordering::SeqCst) == bytes {
            (self.work)();
        }
    }
}

/// Done by another thread while this one waits, as another process would.
fn elsewhere<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let run = || tokio::runtime::Runtime::new().unwrap().block_on(work);
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

async fn put_behind(
    bed: &DiskBed,
    package: &Package,
    turn: Turn,
    cancel: &CancellationToken,
    work: impl Fn() + Send + Sync,
) -> Result<Stored, ccat_xfer::archive::ArchiveError> {
    let root = Root::open(bed.origin()).unwrap();
    let source = Source { root: &root, path: &package.relative_path };
    let behind = Behind { left: AtomicU64::new(package.size_bytes), work: Box::new(work) };
    bed.archive().put(package, &source, &turn, &behind, cancel).await
}

/// Catches a good copy that is set aside by whoever comes late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_slept_past_its_lease_does_nothing() {
    for (job, fence) in [(2, 1), (1, 2)] {
        let mut tries = 0;
        while !is_overtaken_in_time(job, fence).await {
            tries += 1;
            assert!(tries < 10, "the copy was never over before it was overtaken");
        }
    }
}

/// False if all bytes were counted before the copy had let go of them.
async fn is_overtaken_in_time(job: u8, fence: u64) -> bool {
    let bed = DiskBed::new();
    let package = file(&bed, "one", b"one");
    put(&bed, &package).await;
    bed.corrupt(&package);
    let replace = |job, fence| Turn { replace: true, ..turn(job, fence) };
    let early = AtomicBool::new(false);
    let overtake = || match elsewhere(put_as(&bed, &package, replace(job, fence))) {
        Ok(stored) => assert!(matches!(stored, Stored::Written { .. })),
        Err(error) => {
            assert_eq!(error.class, ErrorClass::RemoteBusy, "{error}");
            early.store(true, Ordering::SeqCst);
        }
    };
    let ended = put_behind(&bed, &package, replace(1, 1), &CancellationToken::new(), overtake).await;
    if early.load(Ordering::SeqCst) {
        return false;
    }
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("another attempt"), "{error}");
    assert!(rests_well(&bed, &package).await, "what the other one put is where it was");
    assert_eq!(bed.left_over(&package).len(), 1, "the corrupt one alone is set aside");
    true
}

/// Catches a package that gets its name all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_stopped_before_the_package_has_its_name_gives_it_none() {
    let bed = DiskBed::new();
    let package = file(&bed, "one", b"one");
    let cancel = CancellationToken::new();
    let error = put_behind(&bed, &package, turn(1, 1), &cancel, || cancel.cancel()).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Cancelled, "{error}");
    assert_eq!(read(&bed, &package).await.unwrap_err().class, ErrorClass::MissingSource);
    assert!(matches!(put_as(&bed, &package, turn(1, 2)).await.unwrap(), Stored::Written { .. }));
    assert_eq!(bed.left_over(&package), Vec::<String>::new());
}

/// Catches parts that are removed under a writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_comes_back_for_is_swept_and_nothing_else() {
    let bed = DiskBed::new();
    let incoming = || fs::read_dir(bed.root().join("incoming")).into_iter().flatten().count();
    let disk = Disk::new(bed.root());
    assert_eq!(disk.sweep_older(Duration::ZERO).await.unwrap(), 0, "there is nothing yet");
    let package = large(&bed, "large", 384);
    // Looked at while it is written, and then cut off.
    let cancel = CancellationToken::new();
    let (swept, begun) = (AtomicU64::new(7), std::sync::Once::new());
    let root = Root::open(bed.origin()).unwrap();
    let source = Source { root: &root, path: &package.relative_path };
    let midway = Midway(Box::new(|| {
        begun.call_once(|| {
            swept.store(elsewhere(disk.sweep_older(Duration::ZERO)).unwrap(), Ordering::SeqCst);
            cancel.cancel();
        });
    }));
    disk.put(&package, &source, &turn(1, 1), &midway, &cancel).await.unwrap_err();
    assert_eq!(swept.load(Ordering::SeqCst), 0, "it is being written");
    fs::create_dir(bed.root().join("incoming/something else")).unwrap();
    assert_eq!((disk.sweep_older(Duration::from_secs(3600)).await.unwrap(), disk.sweep().await.unwrap()), (0, 0));
    assert!(incoming() >= 2);
    // A copy that was told to end may hold its locks for a while.
    let limit = Instant::now() + Duration::from_secs(60);
    while disk.sweep_older(Duration::ZERO).await.unwrap() == 0 {
        assert!(Instant::now() < limit, "it is never swept");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(incoming(), 1, "and what is not ours stays");
    put(&bed, &package).await;
    assert!(rests_well(&bed, &package).await);
    assert_eq!(disk.sweep_older(Duration::ZERO).await.unwrap(), 0, "what rests is not on its way");
    assert!(rests_well(&bed, &package).await);
}

struct Midway<'a>(Box<dyn Fn() + Send + Sync + 'a>);

impl std::fmt::Debug for Midway<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Midway")
    }
}

impl Progress for Midway<'_> {
    fn advance(&self, _: u64) {
        (self.0)();
    }
}

#[tokio::test]
async fn planted_links_lead_nowhere() {
    let elsewhere = tempfile::tempdir().unwrap();
    for planted in ["packages", "incoming"] {
        let bed = DiskBed::new();
        let package = file(&bed, "one", b"one");
        symlink(elsewhere.path(), bed.root().join(planted)).unwrap();
        let error = put_as(&bed, &package, turn(1, 1)).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Configuration, "{planted}: {error}");
    }
    let bed = DiskBed::new();
    let package = file(&bed, "one", b"one");
    fs::write(elsewhere.path().join("bait"), b"one").unwrap();
    fs::create_dir_all(bed.home(&package)).unwrap();
    symlink(elsewhere.path().join("bait"), bed.package(&package)).unwrap();
    for error in [put_as(&bed, &package, turn(1, 1)).await.unwrap_err(), read(&bed, &package).await.unwrap_err()] {
        assert_eq!(error.class, ErrorClass::DestinationDiffers, "{error}");
    }
    symlink(elsewhere.path().join("out.json"), bed.home(&package).join("one.ccat.json")).unwrap();
    bed.archive().write_sidecar(&package, b"{}").await.unwrap();
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1, "nothing was written through a link");
}

#[tokio::test]
async fn a_torn_sidecar_is_none() {
    let bed = DiskBed::new();
    let package = file(&bed, "one", b"one");
    put(&bed, &package).await;
    fs::write(bed.home(&package).join("one.ccat.json.new"), b"{\"half\":").unwrap();
    fs::write(bed.root().join("packages/stray.ccat.json"), b"{}").unwrap();
    assert_eq!(bed.archive().sidecars(None, 10).await.unwrap(), Vec::<String>::new());
    bed.archive().write_sidecar(&package, b"{}").await.unwrap();
    assert_eq!(bed.archive().sidecars(None, 10).await.unwrap().len(), 1);
    assert_eq!(bed.left_over(&package), Vec::<String>::new());
    let name = &bed.archive().sidecars(None, 10).await.unwrap()[0];
    fs::File::create(bed.home(&package).join("one.ccat.json")).unwrap().set_len((16 << 20) + 1).unwrap();
    // One that is bad, and not the archive.
    assert_eq!(bed.archive().read_sidecar(name).await.unwrap_err().class, ErrorClass::CorruptInFlight);
}

/// What the disk keeps is not what it took, for every package.
#[tokio::test]
async fn a_lying_disk_is_found_out() {
    let mut bed = DiskBed::new();
    let (changed, dropped) = (Arc::new(Lies::new(100, 0)), Arc::new(Lies::new(0, 100)));
    let rounds = count("lies below the disk archive", 200);
    let mut found = 0;
    for n in 0..rounds {
        bed.lies = Some(Arc::clone(if n % 2 == 0 { &changed } else { &dropped }));
        let bytes: Vec<u8> = (0..20_000_u64).map(|i| u8::try_from((i * 31 + n) % 255 + 1).unwrap()).collect();
        let mut package = file(&bed, format!("{n}/a"), &bytes);
        if n % 4 < 2 {
            file(&bed, format!("{n}/b"), &bytes[..10_000]);
            package = register(&bed, format!("{n}"));
        }
        put(&bed, &package).await;
        found += u64::from(!rests_well(&bed, &package).await);
    }
    say(&format!("count: lies told {}, found {found}", changed.told() + dropped.told()));
    assert_eq!((changed.told() + dropped.told(), found), (rounds, rounds));
}

/// A small file system of its own; `None`, with the reason said, where none can be had.
struct Small {
    dir: TempDir,
}

impl Small {
    fn mount(test: &str, options: &str) -> Option<Self> {
        if !is_root() {
            skip(test, "mounting a small file system needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "ccat-xfer-test"]).arg(dir.path()).output();
        match mounted {
            Ok(out) if out.status.success() => Some(Self { dir }),
            Ok(out) => {
                skip(test, &format!("mount: {}", String::from_utf8_lossy(&out.stderr).trim()));
                None
            }
            Err(e) => {
                skip(test, &format!("mount: {e}"));
                None
            }
        }
    }

    fn remount_read_only(&self) {
        let done = Command::new("mount").args(["-o", "remount,ro"]).arg(self.dir.path()).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_takes_no_package_and_says_so() {
    let Some(small) = Small::mount("a_full_disk_takes_no_package_and_says_so", "size=6m") else { return };
    let archive = Disk::found(small.dir.path()).unwrap();
    let bed = DiskBed::new();
    let (big, little) = (large(&bed, "big", 20), file(&bed, "little", &[1; 100_000]));
    let root = Root::open(bed.origin()).unwrap();
    let never = CancellationToken::new();
    let big_path = at("big");
    let error =
        archive.put(&big, &Source { root: &root, path: &big_path }, &turn(1, 1), &Silent, &never).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::NoSpace, "{error}");
    assert_eq!(archive.read_back(&big, &Silent, &never).await.unwrap_err().class, ErrorClass::MissingSource);
    // Memory has no medium, and a reading from it says so.
    fs::remove_dir_all(small.dir.path().join("incoming")).unwrap();
    let little_path = at("little");
    archive.put(&little, &Source { root: &root, path: &little_path }, &turn(2, 1), &Silent, &never).await.unwrap();
    assert_eq!(archive.read_back(&little, &Silent, &never).await.unwrap().how, ReadHow::Cached);
}

#[tokio::test]
async fn a_read_only_disk_is_read_and_not_written() {
    let Some(small) = Small::mount("a_read_only_disk_is_read_and_not_written", "size=6m") else { return };
    let archive = Disk::found(small.dir.path()).unwrap();
    let bed = DiskBed::new();
    let (one, other) = (file(&bed, "one", b"one"), file(&bed, "other", b"other"));
    let root = Root::open(bed.origin()).unwrap();
    let never = CancellationToken::new();
    let (one_path, other_path) = (at("one"), at("other"));
    archive.put(&one, &Source { root: &root, path: &one_path }, &turn(1, 1), &Silent, &never).await.unwrap();
    archive.write_sidecar(&one, b"{}").await.unwrap();
    small.remount_read_only();
    let put = archive.put(&other, &Source { root: &root, path: &other_path }, &turn(2, 1), &Silent, &never).await;
    for error in [put.unwrap_err(), archive.write_sidecar(&one, b"{}").await.unwrap_err()] {
        assert_eq!(error.class, ErrorClass::Configuration, "{error}");
        assert!(error.to_string().contains("Read-only"), "{error}");
    }
    let reading = archive.read_back(&one, &Silent, &never).await.unwrap();
    assert_eq!(reading.digest.0, one.expected.value);
    assert_eq!(archive.sidecars(None, 10).await.unwrap().len(), 1);
}

const CHILD_PLACE: &str = "CCAT_XFER_TEST_KILLED_PUT";

/// Ends this process once so many bytes are safe.
#[derive(Debug)]
struct Die(AtomicU64);

impl Progress for Die {
    fn advance(&self, bytes: u64) {
        if self.0.fetch_add(bytes, Ordering::SeqCst) + bytes >= 64 << 20 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

/// Not a test: what `a_killed_put_goes_on` starts and has killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child of another test"]
async fn child_of_a_killed_put() {
    let Some(place) = std::env::var_os(CHILD_PLACE).map(PathBuf::from) else { return };
    let root = Root::open(&place.join("origin")).unwrap();
    let path = at("large");
    let measured = ccat_xfer::engine::measure(&root, &path).unwrap();
    let package = Package {
        kind: PackageKind::File,
        relative_path: path.clone(),
        size_bytes: measured.size_bytes,
        file_count: 1,
        expected: ccat_xfer::model::PackageDigest {
            algorithm: ccat_xfer::model::Algorithm::Blake3,
            value: measured.digest.0,
        },
    };
    let source = Source { root: &root, path: &path };
    let die = Die(AtomicU64::new(0));
    let archive = Disk::new(place.join("archive"));
    let _ = archive.put(&package, &source, &turn(1, 1), &die, &CancellationToken::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_put_goes_on() {
    let bed = DiskBed::new();
    let package = large(&bed, "large", 384);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disk::child_of_a_killed_put", "--ignored", "--nocapture"])
        .env(CHILD_PLACE, bed.dir.path())
        .output()
        .unwrap();
    let killed = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(killed, Some(9), "{}", String::from_utf8_lossy(&child.stdout));
    assert_eq!(read(&bed, &package).await.unwrap_err().class, ErrorClass::MissingSource, "whole or not at all");
    let Stored::Written { resumed_bytes } = put_as(&bed, &package, turn(1, 2)).await.unwrap() else {
        panic!("it was not there");
    };
    assert!(resumed_bytes >= 64 << 20, "only {resumed_bytes} bytes were kept");
    assert!(rests_well(&bed, &package).await);
    assert_eq!(bed.left_over(&package), Vec::<String>::new());
}
