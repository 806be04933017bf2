//! The archive on tape, on a stand-in for a tape system: the suite's bed, and what only it can be asked.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ccat_xfer::{
    archive::{
        Archive, Package, ReadHow, Stored, Tape, Turn,
        tape::{ChecksumAlgorithm, Readback, Settings},
    },
    model::{ErrorClass, StorageType},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::bed::{Bed, Count, file, put, put_as, read, register, rests_well, turn};

pub(crate) struct TapeBed {
    dir: TempDir,
    origin: PathBuf,
    readback: Readback,
    ask_limit: Duration,
    tape_limit: Duration,
}

impl TapeBed {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a folder");
        for folder in ["origin", "staging", "tape/objects", "tape/polls", "tape/faults"] {
            fs::create_dir_all(dir.path().join(folder)).expect("make a folder");
        }
        Self {
            origin: dir.path().join("origin"),
            dir,
            readback: Readback::Full,
            ask_limit: Duration::from_secs(60),
            tape_limit: Duration::from_secs(60),
        }
    }

    fn tape(&self) -> PathBuf {
        self.dir.path().join("tape")
    }

    fn settings(&self) -> Settings {
        let command = |words: &[&str]| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/archive_conformance/tape_system.sh");
            let root = self.tape().to_str().expect("UTF-8").to_owned();
            let front = ["/bin/sh".to_owned(), script.to_owned(), root];
            front.into_iter().chain(words.iter().map(|w| (*w).to_owned())).collect::<Vec<_>>()
        };
        Settings {
            staging: self.dir.path().join("staging"),
            put: command(&["put", "{source}", "{key}"]),
            get: command(&["get", "{key}", "{target}"]),
            stat: command(&["stat", "{key}"]),
            checksum: Some(command(&["checksum", "{key}"])),
            list: Some(command(&["list"])),
            copy_limit: Duration::from_secs(120),
            ask_limit: self.ask_limit,
            tape_limit: self.tape_limit,
            tape_poll: Duration::from_millis(10),
            readback: self.readback.clone(),
        }
    }

    fn plant(&self, command: &str, fault: &str) {
        fs::write(self.tape().join("faults").join(command), format!("{fault}\n")).expect("plant a fault");
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.tape().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Objects of a package, newest last, without sidecars and sums.
    fn objects(&self, package: &Package) -> Vec<PathBuf> {
        let digest = package.expected.hex();
        let path = ccat_xfer::chunk::Digest::of(package.relative_path.as_bytes()).to_string();
        let folder = format!("{}/{}/{digest}-{}", &digest[..2], &digest[2..4], &path[..16]);
        let mut found: Vec<PathBuf> = fs::read_dir(self.tape().join("objects").join(folder))
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("list").path())
            .filter(|at| !at.to_string_lossy().contains(".ccat."))
            .collect();
        found.sort();
        found
    }

    /// Removes the note that the put of the newest object ended well.
    fn forget_note(&self, package: &Package) {
        let mut at = self.objects(package).pop().expect("an object").into_os_string();
        at.push(".ccat.done");
        fs::remove_file(at).expect("there was a note");
    }

    /// Puts a package, and leaves half of it, as a put that was killed does.
    async fn half_of(&self, package: &Package) {
        put(self, package).await;
        self.forget_note(package);
        let at = self.objects(package).pop().expect("an object");
        let bytes = fs::read(&at).expect("read");
        fs::write(at, &bytes[..bytes.len() / 2]).expect("cut it off");
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.dir.path().join("staging")).expect("list").count()
    }

    /// Whether the processes that the stand-in left behind are gone.
    fn orphans_are_gone(&self) -> bool {
        let pids = fs::read_to_string(self.tape().join("pids")).expect("there were some");
        let alive = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie waits for whoever adopted it.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while pids.lines().any(alive) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Bed for TapeBed {
    fn archive(&self) -> Arc<dyn Archive> {
        Arc::new(Tape::new(self.settings()).expect("good settings"))
    }

    fn origin(&self) -> &Path {
        &self.origin
    }

    fn corrupt(&self, package: &Package) {
        let at = self.objects(package).pop().expect("an object");
        let mut bytes = fs::read(&at).expect("read");
        // Of a packed tree the bytes of its last file, which lie before the zeros at the end of the stream.
        let last = bytes.iter().rposition(|b| *b != 0).expect("bytes");
        bytes[last] ^= 1;
        fs::write(&at, bytes).expect("write");
    }

    fn resumes(&self) -> bool {
        false
    }

    fn left_over(&self, package: &Package) -> Vec<String> {
        let mut objects = self.objects(package);
        objects.pop();
        assert_eq!(self.staged(), 0, "nothing stays in the staging folder");
        objects.into_iter().map(|at| at.display().to_string()).collect()
    }

    fn keeps_bits_of_files(&self) -> bool {
        false
    }

    fn forgets(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_waits_until_it_is_on_tape() {
    let mut bed = TapeBed::new();
    let package = file(&bed, "one", b"one");
    put(&bed, &package).await;
    assert!(bed.log().iter().filter(|line| line.starts_with("stat")).count() >= 4, "{:?}", bed.log());
    assert_eq!(bed.archive().medium(), StorageType::Tape);
    assert_eq!(bed.archive().free_bytes().await.unwrap(), None);

    let slow = file(&bed, "slow", b"slow");
    fs::write(bed.tape().join("stuck"), b"").unwrap();
    bed.tape_limit = Duration::from_secs(1);
    let error = put_as(&bed, &slow, turn(2, 1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::RemoteBusy, "{error}");
    let puts = || bed.log().iter().filter(|line| line.starts_with("put")).count();
    let before = puts();
    fs::remove_file(bed.tape().join("stuck")).unwrap();
    assert_eq!(put_as(&bed, &slow, turn(2, 2)).await.unwrap(), Stored::Found, "it goes on waiting");
    assert_eq!(puts(), before, "and is not put again");
    assert!(rests_well(&bed, &slow).await);
}

/// Each way to fail, for each command: told apart, and gone the next time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_says_how() {
    let bed = TapeBed::new();
    let mut n = 0;
    for (fault, class, says) in [
        ("exit-75", ErrorClass::RemoteBusy, "exit code 75: the robot is stuck"),
        ("exit-77", ErrorClass::Authentication, "exit code 77"),
        ("exit-78", ErrorClass::Configuration, "exit code 78"),
        ("exit-1", ErrorClass::Network, "exit code 1"),
        ("killed", ErrorClass::RemoteBusy, "signal 9"),
    ] {
        for command in ["put", "stat", "get"] {
            n += 1;
            let package = file(&bed, format!("{n}"), format!("bytes {n}").as_bytes());
            if command == "get" {
                put(&bed, &package).await;
            }
            bed.plant(command, &format!("{fault} 1"));
            let error = match command {
                "get" => read(&bed, &package).await.unwrap_err(),
                _ => put_as(&bed, &package, turn(1, 1)).await.unwrap_err(),
            };
            assert_eq!(error.class, class, "{command} {fault}: {error}");
            assert!(error.to_string().contains(says), "{command} {fault}: {error}");
            put(&bed, &package).await;
            assert!(rests_well(&bed, &package).await, "{command} {fault}");
        }
    }
    let package = file(&bed, "garbage", b"garbage");
    bed.plant("stat", "garbage 1");
    let error = put_as(&bed, &package, turn(1, 1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Network, "{error}");
    assert!(error.to_string().contains("502 Bad Gateway"), "{error}");
    put(&bed, &package).await;
    bed.plant("get", "garbage 1");
    let error = read(&bed, &package).await.unwrap_err();
    assert!(error.to_string().contains("made no file"), "{error}");
    bed.plant("get", "loud 1");
    assert!(rests_well(&bed, &package).await, "a command that talks too much is heard to its end");
    assert_eq!(bed.staged(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_hangs_is_ended_with_all_it_started() {
    let mut bed = TapeBed::new();
    bed.ask_limit = Duration::from_secs(3);
    let package = file(&bed, "one", b"one");
    bed.plant("stat", "hang 1");
    let error = put_as(&bed, &package, turn(1, 1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Network, "{error}");
    assert!(error.to_string().contains("ran for 3 s"), "{error}");
    assert!(bed.orphans_are_gone());

    put(&bed, &package).await;
    bed.plant("get", "hang 1");
    let cancel = CancellationToken::new();
    let (archive, stop) = (bed.archive(), cancel.clone());
    let asked = package.clone();
    let reading = tokio::spawn(async move { archive.read_back(&asked, &Count::default(), &stop).await });
    let begun = Instant::now();
    while !bed.log().iter().any(|line| line.starts_with("get")) && begun.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cancel.cancel();
    assert_eq!(reading.await.unwrap().unwrap_err().class, ErrorClass::Cancelled);
    assert!(bed.orphans_are_gone());

    bed.plant("get", "orphan 1");
    let left = read(&bed, &package).await;
    assert!(bed.orphans_are_gone(), "what a command leaves behind is ended too");
    assert_eq!(left.unwrap().digest.0, package.expected.value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tape_that_keeps_other_bytes_is_found_out() {
    let bed = TapeBed::new();
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(&bed, "tree/a", b"some bytes");
    for package in [file(&bed, "one", b"some bytes"), register(&bed, "tree")] {
        bed.plant("put", "wrong 1");
        put(&bed, &package).await;
        assert!(!rests_well(&bed, &package).await);
        let replace = Turn { replace: true, ..turn(2, 1) };
        put_as(&bed, &package, replace).await.unwrap();
        bed.plant("get", "wrong 1");
        assert!(!rests_well(&bed, &package).await, "altered on its way back");
        assert!(rests_well(&bed, &package).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checksum_of_the_tape_system_may_vouch() {
    let mut bed = TapeBed::new();
    bed.readback = Readback::Checksum(ChecksumAlgorithm::Sha256);
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(&bed, "tree/a", b"a");
    for package in [file(&bed, "one", b"one"), register(&bed, "tree")] {
        put(&bed, &package).await;
        let reading = read(&bed, &package).await.unwrap();
        assert_eq!((reading.digest.0, reading.how), (package.expected.value, ReadHow::Vouched));
        assert!(reading.vouched_by.unwrap().contains("sha256"));
        bed.corrupt(&package);
        assert!(!rests_well(&bed, &package).await);
        bed.plant("checksum", "garbage 1");
        assert_eq!(read(&bed, &package).await.unwrap_err().class, ErrorClass::Network);
        put_as(&bed, &package, Turn { replace: true, ..turn(2, 1) }).await.unwrap();
        assert!(rests_well(&bed, &package).await);
    }
    assert!(!bed.log().iter().any(|line| line.starts_with("get") && !line.contains(".ccat.sum")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_says_why() {
    let mut bed = TapeBed::new();
    bed.readback = Readback::None { reason: "the library verifies at every write".to_owned() };
    let package = file(&bed, "one", b"one");
    put(&bed, &package).await;
    let reading = read(&bed, &package).await.unwrap();
    assert_eq!(reading.how, ReadHow::Vouched);
    assert_eq!(reading.vouched_by.unwrap(), "not read: the library verifies at every write");
    let never = file(&bed, "never", b"never");
    assert_eq!(read(&bed, &never).await.unwrap_err().class, ErrorClass::MissingSource, "but it must be there");
}

/// Catches a put that ends before the tape system knows of the note, without which nothing counts as read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_that_is_not_known_at_once_is_waited_for() {
    let mut bed = TapeBed::new();
    fs::write(bed.tape().join("blind"), "3\n").unwrap();
    for readback in [Readback::None { reason: "the library verifies at every write".to_owned() }, Readback::Full] {
        bed.readback = readback;
        let package = file(&bed, format!("{:?}", bed.readback), format!("{:?}", bed.readback).as_bytes());
        put(&bed, &package).await;
        assert_eq!(read(&bed, &package).await.unwrap().digest.0, package.expected.value);
        assert_eq!(put_as(&bed, &package, turn(1, 2)).await.unwrap(), Stored::Found);
        assert_eq!(bed.objects(&package).len(), 1);
    }
    // More looks than any tape system takes.
    fs::write(bed.tape().join("blind"), "9\n").unwrap();
    let lost = file(&bed, "lost", b"lost");
    assert_eq!(put_as(&bed, &lost, turn(3, 1)).await.unwrap_err().class, ErrorClass::CorruptInFlight);
}

/// Catches what lies there being taken for whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_put_left_half_written_is_put_anew() {
    let mut bed = TapeBed::new();
    let reason = "the library verifies at every write".to_owned();
    let ways = [Readback::None { reason }, Readback::Checksum(ChecksumAlgorithm::Sha256), Readback::Full];
    for (n, readback) in (1..).zip(ways) {
        bed.readback = readback;
        let name = format!("{n}");
        let package = file(&bed, &name, format!("some bytes of {n}").as_bytes());
        if matches!(bed.readback, Readback::Checksum(_)) {
            // There the sum is put first.
            bed.half_of(&package).await;
        } else {
            bed.plant("put", "half 1");
            put_as(&bed, &package, turn(n, 1)).await.unwrap_err();
        }
        let newest = |bed: &TapeBed| fs::read(bed.objects(&package).pop().unwrap()).unwrap();
        assert_ne!(newest(&bed), fs::read(bed.origin().join(&name)).unwrap());
        if matches!(bed.readback, Readback::None { .. }) {
            let error = read(&bed, &package).await.unwrap_err();
            assert_eq!(error.class, ErrorClass::MissingSource, "what was not put whole is not vouched for: {error}");
        }
        assert_eq!(put_as(&bed, &package, turn(n, 2)).await.unwrap(), Stored::Written { resumed_bytes: 0 });
        assert_eq!(newest(&bed), fs::read(bed.origin().join(&name)).unwrap());
        assert!(rests_well(&bed, &package).await);
        assert_eq!(put_as(&bed, &package, turn(n, 3)).await.unwrap(), Stored::Found);
    }
}

/// Catches another object for each attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_only_lacks_its_note_is_read_and_kept() {
    let mut bed = TapeBed::new();
    let reason = "the library verifies at every write".to_owned();
    let ways = [Readback::None { reason }, Readback::Checksum(ChecksumAlgorithm::Sha256), Readback::Full];
    for (n, readback) in (1..).zip(ways) {
        bed.readback = readback;
        let package = file(&bed, format!("{n}"), format!("some bytes of {n}").as_bytes());
        put(&bed, &package).await;
        bed.forget_note(&package);
        let again = put_as(&bed, &package, turn(n, 2)).await.unwrap();
        let is_read = !matches!(bed.readback, Readback::None { .. });
        assert_eq!((again == Stored::Found, bed.objects(&package).len() == 1), (is_read, is_read));
        assert!(rests_well(&bed, &package).await);
        // A repair that put its object and died, be it before the note or behind it.
        let replace = |fence| Turn { replace: true, ..turn(7, fence) };
        assert_eq!(put_as(&bed, &package, replace(1)).await.unwrap(), Stored::Written { resumed_bytes: 0 });
        let objects = bed.objects(&package).len();
        assert_eq!(put_as(&bed, &package, replace(2)).await.unwrap(), Stored::Found);
        if is_read {
            bed.forget_note(&package);
            assert_eq!(put_as(&bed, &package, replace(3)).await.unwrap(), Stored::Found);
        }
        assert_eq!(bed.objects(&package).len(), objects);
        assert!(rests_well(&bed, &package).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_list_command_sidecars_cannot_be_listed() {
    let bed = TapeBed::new();
    let archive = Tape::new(Settings { list: None, ..bed.settings() }).unwrap();
    let error = archive.sidecars(None, 10).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration);
    assert!(error.to_string().contains("list command"), "{error}");
    let broken =
        Tape::new(Settings { stat: vec!["/no/such/program".into(), "{key}".into()], ..bed.settings() }).unwrap();
    let package = file(&bed, "one", b"one");
    let error = broken.forget_replaced(&package).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_staged_is_removed() {
    let bed = TapeBed::new();
    let abandoned = bed.dir.path().join("staging/ccat-xfer-tape-00112233445566778899aabbccddeeff");
    fs::create_dir(&abandoned).unwrap();
    fs::write(abandoned.join("lock"), b"").unwrap();
    fs::write(abandoned.join("object"), b"half").unwrap();
    fs::create_dir(bed.dir.path().join("staging/somebody else's")).unwrap();
    let package = file(&bed, "one", b"one");
    put(&bed, &package).await;
    assert!(rests_well(&bed, &package).await);
    assert_eq!(bed.staged(), 1);
    assert!(!abandoned.exists());
}
