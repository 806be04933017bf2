//! The archive in an S3 store, against a real server (SeaweedFS) with a proxy before it that does harm: what is promised
//! of resuming, of finding every corruption, and of the class of every failure.

#[path = "archive_s3_more/faults.rs"]
mod faults;
#[path = "archive_s3_more/gate.rs"]
mod gate;
mod harness;
#[path = "archive_s3_more/left.rs"]
mod left;
#[path = "archive_s3_more/trees.rs"]
mod trees;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use aws_sdk_s3::{Client, config as sdk};
use ccat_xfer::{
    archive::{
        Archive, Package, Progress, ReadHow, Source, Stored, Turn,
        s3::{Checksum, Credentials, Limits, Lock, LockMode, S3, Settings},
    },
    chunk::{Digest, RelPath},
    disk::Root,
    engine::measure,
    model::{Algorithm, ErrorClass, PackageDigest, PackageKind},
    secret::Secret,
    task::Backoff,
};
use harness::{Proxy, Rng, S3Server, Scene, TreeSpec, assert_same_tree, build, seed, size, skip, spawn, write_file};
use tokio_util::sync::CancellationToken;

const MIB: u64 = 1 << 20;
const PART: u64 = 8 * MIB;

/// A server, a proxy before it, and a folder with packages.
struct Bed {
    scene: Scene,
    proxy: Proxy,
    server: S3Server,
}

impl Bed {
    fn new(test: &str) -> Option<Self> {
        if let Some(why) = S3Server::missing() {
            skip(test, why);
            return None;
        }
        let server = S3Server::start(test);
        Some(Self { scene: Scene::new(test), proxy: Proxy::start(server.port()), server })
    }

    fn settings(&self) -> Settings {
        settings(&self.proxy.endpoint())
    }

    fn store(&self) -> S3 {
        S3::new(self.settings()).expect("settings that work")
    }

    /// Writes a file below the folder and says what it is as a package.
    fn file(&self, path: &str, bytes: u64, rng: &mut Rng) -> Package {
        let at = self.scene.path().join(path);
        fs::create_dir_all(at.parent().expect("a folder")).expect("make a folder");
        write_file(&at, bytes, rng);
        package(self.scene.path(), path)
    }

    async fn put(&self, store: &S3, package: &Package) -> Result<Stored, ccat_xfer::archive::ArchiveError> {
        self.put_as(store, package, false, &Seen::default()).await
    }

    async fn put_as(
        &self,
        store: &S3,
        package: &Package,
        replace: bool,
        seen: &Seen,
    ) -> Result<Stored, ccat_xfer::archive::ArchiveError> {
        let root = Root::open(self.scene.path()).expect("the folder");
        let source = Source { root: &root, path: &package.relative_path };
        store.put(package, &source, &turn(replace), seen, &CancellationToken::new()).await
    }

    /// A client of the test's own, past the proxy.
    fn raw(&self) -> Client {
        let config = sdk::Builder::new()
            .behavior_version(sdk::BehaviorVersion::latest())
            .endpoint_url(self.server.endpoint())
            .region(sdk::Region::new("us-east-1"))
            .force_path_style(true)
            .credentials_provider(sdk::Credentials::new(
                S3Server::ACCESS_KEY,
                S3Server::SECRET_KEY,
                None,
                None,
                "test",
            ));
        Client::from_conf(config.build())
    }

    async fn keys(&self) -> BTreeSet<String> {
        let (raw, mut found, mut after) = (self.raw(), BTreeSet::new(), None);
        loop {
            let page = raw.list_objects_v2().bucket(S3Server::BUCKET).set_continuation_token(after).send().await;
            let page = page.expect("a list");
            found.extend(page.contents().iter().filter_map(|object| object.key.clone()));
            after = page.next_continuation_token;
            if after.is_none() {
                return found;
            }
        }
    }

    async fn uploads(&self) -> usize {
        self.raw().list_multipart_uploads().bucket(S3Server::BUCKET).send().await.expect("a list").uploads().len()
    }

    async fn overwrite(&self, key: &str, bytes: Vec<u8>) {
        self.raw().put_object().bucket(S3Server::BUCKET).key(key).body(bytes.into()).send().await.expect("overwrite");
    }

    async fn delete(&self, key: &str) {
        self.raw().delete_object().bucket(S3Server::BUCKET).key(key).send().await.expect("delete");
    }
}

fn settings(endpoint: &str) -> Settings {
    let credentials = Credentials {
        access_key: S3Server::ACCESS_KEY.to_owned(),
        secret_key: Secret::new(S3Server::SECRET_KEY),
        session_token: None,
    };
    let backoff = Backoff { first: Duration::from_millis(20), limit: Duration::from_millis(200) };
    Settings {
        prefix: "raw/".to_owned(),
        part_bytes: PART,
        limits: Limits {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(60),
            stall: Duration::from_secs(20),
            tries: 5,
            backoff,
        },
        ..Settings::new(endpoint, S3Server::BUCKET, credentials)
    }
}

fn package(root: &Path, path: &str) -> Package {
    let root = Root::open(root).expect("the folder");
    let relative_path = RelPath::new(path).expect("a path");
    let measured = measure(&root, &relative_path).expect("it can be read");
    let (kind, algorithm) = match measured.is_tree {
        true => (PackageKind::Tree, Algorithm::Tree),
        false => (PackageKind::File, Algorithm::Blake3),
    };
    Package {
        kind,
        relative_path,
        size_bytes: measured.size_bytes,
        file_count: measured.file_count,
        expected: PackageDigest { algorithm, value: measured.digest.0 },
    }
}

fn turn(replace: bool) -> Turn {
    Turn { job: [7; 16], fence: 1, replace, seen_corrupt: false }
}

/// Counts, and calls back once so many bytes are done.
#[derive(Default)]
struct Seen {
    bytes: AtomicU64,
    at: u64,
    then: Option<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.bytes)
    }
}

impl Progress for Seen {
    fn advance(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, SeqCst);
        if let Some(then) = self.then.as_ref().filter(|_| before <= self.at && self.at < before + bytes) {
            then();
        }
    }
}

async fn assert_equal(store: &S3, package: &Package) {
    let seen = Seen::default();
    let reading = store.read_back(package, &seen, &CancellationToken::new()).await.expect("it can be read");
    assert_eq!(reading.digest, Digest(package.expected.value), "{}", package.relative_path);
    assert_eq!((reading.size_bytes, reading.file_count), (package.size_bytes, package.file_count));
    assert_eq!((reading.how, seen.bytes.load(SeqCst)), (ReadHow::RemoteGet, package.size_bytes));
    assert!(reading.started_at <= reading.ended_at);
}

/// Whether a read-back finds that something is wrong, by other bytes or by an error of the class that says so.
async fn finds_corruption(store: &S3, package: &Package) -> bool {
    match store.read_back(package, &Seen::default(), &CancellationToken::new()).await {
        Ok(reading) => reading.digest != Digest(package.expected.value),
        Err(error) => {
            println!("{error}");
            assert_eq!(error.class, ErrorClass::CorruptInFlight, "{error}");
            true
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_are_archived_once_and_read_back() {
    let Some(bed) = Bed::new("s3-sizes") else { return };
    let mut rng = seed("s3-sizes");
    for checksum in [Checksum::Crc64Nvme, Checksum::Sha256, Checksum::ContentMd5] {
        let store =
            S3::new(Settings { checksum, prefix: format!("{checksum:?}/"), ..bed.settings() }).expect("settings");
        for bytes in [0, 1, MIB, MIB + 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 4 * MIB + 5] {
            let package = bed.file(&format!("night one/{bytes}.fits"), bytes, &mut rng);
            let seen = Seen::default();
            let stored = bed.put_as(&store, &package, false, &seen).await.expect("it is put");
            assert_eq!(stored, Stored::Written { resumed_bytes: 0 });
            assert_eq!(seen.bytes.load(SeqCst), bytes);
            assert_equal(&store, &package).await;
            assert_eq!(bed.put(&store, &package).await.expect("it is there"), Stored::Found);
        }
    }
    assert_eq!(bed.uploads().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_at_the_same_path_lie_beside() {
    let Some(bed) = Bed::new("s3-beside") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-beside"));
    let first = bed.file("p.fits", 1000, &mut rng);
    bed.put(&store, &first).await.expect("it is put");
    let second = bed.file("p.fits", 2000, &mut rng);
    bed.put(&store, &second).await.expect("it is put");
    assert_equal(&store, &first).await;
    assert_equal(&store, &second).await;
    assert_eq!(bed.keys().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_has_its_class() {
    let Some(bed) = Bed::new("s3-classes") else { return };
    let mut rng = seed("s3-classes");
    let package = bed.file("p.fits", 1000, &mut rng);
    let class = async |settings: Settings| {
        let store = S3::new(settings).expect("settings");
        let error = bed.put(&store, &package).await.expect_err("it cannot work");
        println!("{:?}: {error}", error.class);
        error.class
    };
    let with = |access: &str, secret: &str| Credentials {
        access_key: access.to_owned(),
        secret_key: Secret::new(secret),
        session_token: None,
    };
    let wrong_key = Settings { credentials: with("nobody", "x"), ..bed.settings() };
    assert_eq!(class(wrong_key).await, ErrorClass::Authentication);
    let wrong_secret = Settings { credentials: with(S3Server::ACCESS_KEY, "x"), ..bed.settings() };
    assert_eq!(class(wrong_secret).await, ErrorClass::Authentication);
    assert_eq!(class(Settings { bucket: "nowhere".to_owned(), ..bed.settings() }).await, ErrorClass::Configuration);
    // Nothing listens there.
    assert_eq!(class(settings("http://127.0.0.1:9")).await, ErrorClass::Network);
    // What listens there is no S3 server, and does not even speak HTTP.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let quick = Limits { request: Duration::from_millis(200), tries: 2, ..bed.settings().limits };
    assert_eq!(class(Settings { limits: quick, ..settings(&endpoint) }).await, ErrorClass::Network);
    bed.proxy.be_busy(u64::MAX);
    assert_eq!(class(bed.settings()).await, ErrorClass::RemoteBusy);
    bed.proxy.be_busy(0);
    bed.proxy.be_skewed(u64::MAX);
    assert_eq!(class(bed.settings()).await, ErrorClass::Configuration);
    bed.proxy.be_skewed(0);
    let store = bed.store();
    let missing = Package { relative_path: RelPath::new("gone.fits").expect("a path"), ..package.clone() };
    assert_eq!(bed.put(&store, &missing).await.expect_err("no source").class, ErrorClass::MissingSource);
    let back = store.read_back(&package, &Seen::default(), &CancellationToken::new()).await;
    assert_eq!(back.expect_err("it was never put").class, ErrorClass::MissingSource);
    assert!(bed.keys().await.is_empty());
    // And with all that over, it works.
    bed.proxy.be_busy(3);
    bed.put(&store, &package).await.expect("retries are enough");
    assert_equal(&store, &package).await;
}

/// Seen to fail with every part sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_endpoint_went_away_is_not_sent_again() {
    let Some(bed) = Bed::new("s3-away") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-away"));
    let package = bed.file("p.fits", 12 * PART + 77, &mut rng);
    // Shut off when a third is safe.
    let bed = Arc::new(bed);
    let away = Arc::clone(&bed);
    bed.proxy.delay(Duration::from_millis(50));
    let seen = Seen { at: 4 * PART, then: Some(Box::new(move || away.proxy.be_away(true))), ..Seen::default() };
    let error = bed.put_as(&store, &package, false, &seen).await.expect_err("nobody answers");
    assert_eq!(error.class, ErrorClass::Network, "{error}");
    drop(seen);
    let safe = bed.proxy.count();
    assert!(safe.acknowledged() >= 4 && safe.acknowledged() < 13, "{safe:?}");
    bed.proxy.be_away(false);
    bed.proxy.delay(Duration::ZERO);
    bed.proxy.forget();
    let stored = bed.put(&bed.store(), &package).await.expect("it goes on");
    let Stored::Written { resumed_bytes } = stored else { panic!("{stored:?}") };
    assert!(resumed_bytes >= 4 * PART, "{resumed_bytes} bytes were kept");
    let again = bed.proxy.count();
    for (part, (_, acknowledged)) in &safe.parts {
        assert!(!acknowledged || !again.parts.contains_key(part), "{part:?} was sent twice");
    }
    assert_eq!(again.begun, 0, "it went on with the upload that was there");
    assert_equal(&store, &package).await;
    assert_eq!(bed.uploads().await, 0);
}

/// Seen to fail with parts kept unread, and with other uploads left alone.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_other_bytes_are_not_kept_and_other_uploads_are_removed() {
    let Some(bed) = Bed::new("s3-parts") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-parts"));
    let package = bed.file("p.fits", 3 * PART, &mut rng);
    let bytes = fs::read(bed.scene.join("p.fits")).expect("the source");
    // Stopped after its first part, by which its key is known.
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let seen = Seen { at: 1, then: Some(Box::new(move || stop.cancel())), ..Seen::default() };
    let root = Root::open(bed.scene.path()).expect("the folder");
    let source = Source { root: &root, path: &package.relative_path };
    store.put(&package, &source, &turn(false), &seen, &cancel).await.expect_err("it was stopped");
    let raw = bed.raw();
    let list = raw.list_multipart_uploads().bucket(S3Server::BUCKET).send().await.expect("a list");
    let key = list.uploads()[0].key.clone().expect("its key");
    raw.abort_multipart_upload()
        .bucket(S3Server::BUCKET)
        .key(&key)
        .upload_id(list.uploads()[0].upload_id.as_deref().expect("its id"))
        .send()
        .await
        .expect("it is removed");
    // One upload with the least, one with the most, of which one part has other bytes.
    let part = usize::try_from(PART).expect("a part fits");
    let mut other = bytes[part..2 * part].to_vec();
    other[77] ^= 1;
    let first = bytes[..part].to_vec();
    for parts in [vec![(1, first.clone())], vec![(1, first), (2, other)]] {
        let upload = raw.create_multipart_upload().bucket(S3Server::BUCKET).key(&key).send().await.expect("begun");
        for (number, body) in parts {
            raw.upload_part()
                .bucket(S3Server::BUCKET)
                .key(&key)
                .upload_id(upload.upload_id.as_deref().expect("its id"))
                .part_number(number)
                .body(body.into())
                .send()
                .await
                .expect("a part");
        }
    }
    assert_eq!(bed.uploads().await, 2);
    bed.proxy.forget();
    let stored = bed.put(&store, &package).await.expect("it goes on");
    assert_eq!(stored, Stored::Written { resumed_bytes: PART });
    let count = bed.proxy.count();
    assert_eq!((count.begun, count.removed, count.parts.len()), (0, 1, 2), "{count:?}");
    assert_eq!(bed.uploads().await, 0);
    assert_equal(&store, &package).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_to_whom_the_authority_vouches_for() {
    if let Some(why) = S3Server::missing() {
        return skip("s3-tls", why);
    }
    let (server, scene) = (S3Server::start_tls("s3-tls"), Scene::new("s3-tls"));
    write_file(&scene.join("p.fits"), 2 * PART + 1, &mut seed("s3-tls"));
    let package = package(scene.path(), "p.fits");
    let root = Root::open(scene.path()).expect("the folder");
    let source = Source { root: &root, path: &package.relative_path };
    let put = async |ca_file| {
        let store = S3::new(Settings { ca_file, ..settings(&server.endpoint()) })?;
        let (turn, seen) = (turn(false), Seen::default());
        let stored = store.put(&package, &source, &turn, &seen, &CancellationToken::new()).await?;
        assert_equal(&store, &package).await;
        Ok::<_, ccat_xfer::archive::ArchiveError>(stored)
    };
    let error = put(None).await.expect_err("nobody vouches for it");
    assert_eq!(error.class, ErrorClass::Authentication, "{error}");
    let error = put(Some(scene.join("p.fits"))).await.expect_err("that is no authority");
    assert_eq!(error.class, ErrorClass::Configuration, "{error}");
    put(Some(server.authority())).await.expect("it is put");
}

#[tokio::test(flavor = "multi_thread")]
async fn object_lock_and_storage_class_are_asked_for() {
    let Some(bed) = Bed::new("s3-lock") else { return };
    let mut rng = seed("s3-lock");
    let raw = bed.raw();
    raw.create_bucket().bucket("locked").object_lock_enabled_for_bucket(true).send().await.expect("a bucket");
    let lock = Some(Lock { mode: LockMode::Governance, days: 3 });
    let store = S3::new(Settings { bucket: "locked".to_owned(), lock, ..bed.settings() }).expect("settings");
    for bytes in [100, 2 * PART] {
        let package = bed.file(&format!("{bytes}.fits"), bytes, &mut rng);
        bed.put(&store, &package).await.expect("it is put");
        assert_equal(&store, &package).await;
    }
    let list = raw.list_objects_v2().bucket("locked").send().await.expect("a list");
    assert_eq!(list.contents().len(), 2);
    for object in list.contents() {
        let head = raw.head_object().bucket("locked").key(object.key().expect("a key")).send().await.expect("a head");
        assert_eq!(head.object_lock_mode().map(|mode| mode.as_str()), Some("GOVERNANCE"));
        let until = head.object_lock_retain_until_date().expect("a date").secs();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let days = (until - i64::try_from(now).expect("a time")) / 3600;
        assert!((71..=72).contains(&days), "{days} hours");
    }
    let class = Some("STANDARD_IA".to_owned());
    let store = S3::new(Settings { storage_class: class, ..bed.settings() }).expect("settings");
    let package = bed.file("ia.fits", 100, &mut rng);
    bed.put(&store, &package).await.expect("it is put");
    let key = bed.keys().await.into_iter().next().expect("its key");
    let head = raw.head_object().bucket(S3Server::BUCKET).key(key).send().await.expect("a head");
    assert_eq!(head.storage_class().map(|class| class.as_str()), Some("STANDARD_IA"));
}

/// Seen to fail with the expected digest taken for the one that was read.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_connections_and_altered_answers_are_found() {
    let Some(bed) = Bed::new("s3-drops") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-drops"));
    let package = bed.file("p.fits", 6 * PART + 5, &mut rng);
    bed.proxy.cut_parts(2);
    bed.put(&store, &package).await.expect("parts are sent again");
    bed.proxy.cut_gets(3);
    assert_equal(&store, &package).await;
    for _ in 0..3 {
        bed.proxy.alter_gets(1);
        assert!(finds_corruption(&store, &package).await, "one bit of one answer was flipped");
        assert_equal(&store, &package).await;
    }
    // A path that always breaks off, and brings some bytes each time: that says nothing of what lies there.
    bed.proxy.cut_gets(u64::MAX);
    let read = store.read_back(&package, &Seen::default(), &CancellationToken::new()).await;
    assert_eq!(read.expect_err("it never comes to its end").class, ErrorClass::Network);
}

/// Seen to fail with the expected digest taken for the one that was read, and with no new generation.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_there_with_other_bytes_is_found_and_replaced() {
    let Some(bed) = Bed::new("s3-replace") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-replace"));
    for (path, bytes) in [("small.fits", 1000), ("large.fits", 2 * PART)] {
        let package = bed.file(path, bytes, &mut rng);
        bed.put(&store, &package).await.expect("it is put");
        let key = bed.keys().await.into_iter().find(|key| key.contains(path)).expect("its key");
        bed.overwrite(&key, vec![1; usize::try_from(bytes).expect("a small file")]).await;
        assert_eq!(bed.put(&store, &package).await.expect("it is there"), Stored::Found);
        assert!(finds_corruption(&store, &package).await);
        let replaced = bed.put_as(&store, &package, true, &Seen::default()).await.expect("it is replaced");
        assert_eq!(replaced, Stored::Written { resumed_bytes: 0 });
        assert_equal(&store, &package).await;
        assert!(bed.keys().await.contains(&key), "the old one stays until it is forgotten");
        store.forget_replaced(&package).await.expect("it is forgotten");
        store.forget_replaced(&package).await.expect("forgetting twice is no error");
        assert!(!bed.keys().await.contains(&key));
        assert_equal(&store, &package).await;
        assert_eq!(bed.put(&store, &package).await.expect("it is there"), Stored::Found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_changed_in_the_servers_files_are_found() {
    let Some(mut bed) = Bed::new("s3-rot") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-rot"));
    let package = bed.file("p.fits", 2 * PART, &mut rng);
    bed.put(&store, &package).await.expect("it is put");
    assert_equal(&store, &package).await;
    let bytes = fs::read(bed.scene.join("p.fits")).expect("the source");
    let wanted = &bytes[5_000_000..5_000_064];
    bed.server.kill();
    let mut injected = 0;
    for volume in harness::volumes_in(&bed.server.data()) {
        let held = fs::read(&volume).expect("a volume");
        let file = fs::OpenOptions::new().write(true).open(&volume).expect("a volume");
        for at in held.windows(64).enumerate().filter(|(_, window)| *window == wanted).map(|(at, _)| at) {
            file.write_all_at(&[held[at + 10] ^ 1], u64::try_from(at + 10).expect("an offset")).expect("rot");
            injected += 1;
        }
    }
    assert!(injected > 0, "the bytes were not found in the server's files");
    bed.server.up();
    // The server tries long on its own.
    let quick = Limits { tries: 2, ..bed.settings().limits };
    let quick = S3::new(Settings { limits: quick, ..bed.settings() }).expect("settings");
    assert!(finds_corruption(&quick, &package).await);
    let replaced = bed.put_as(&store, &package, true, &Seen::default()).await.expect("it is replaced");
    assert!(matches!(replaced, Stored::Written { .. }));
    assert_equal(&store, &package).await;
    store.forget_replaced(&package).await.expect("it is forgotten");
    assert_equal(&store, &package).await;
}

/// Seen to fail with the digest not compared, and with the upload left there.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_is_not_archived() {
    let Some(bed) = Bed::new("s3-changes") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-changes"));
    let package = bed.file("p.fits", 4 * PART, &mut rng);
    let at = bed.scene.join("p.fits");
    let then = move || {
        let file = fs::OpenOptions::new().write(true).open(&at).expect("the source");
        file.write_all_at(b"changed", 3).expect("it is written to");
    };
    let seen = Seen { at: PART, then: Some(Box::new(then)), ..Seen::default() };
    let error = bed.put_as(&store, &package, false, &seen).await.expect_err("it changed");
    assert_eq!(error.class, ErrorClass::SourceChanged, "{error}");
    // Changed before it is read at all: its size is the same, its bytes are not.
    let error = bed.put(&store, &package).await.expect_err("it changed");
    assert_eq!(error.class, ErrorClass::SourceChanged, "{error}");
    assert!(bed.keys().await.is_empty());
    assert_eq!(bed.uploads().await, 0, "what can never be completed is removed");
}

/// Seen to fail with the manifest left out.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_back_as_it_was() {
    let Some(bed) = Bed::new("s3-tree") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-tree"));
    let spec =
        TreeSpec { large: 2 * PART + 9, small_files: 500, small_bytes: 3000, small_dirs: 7, sparse: 0, odd: true };
    build(&bed.scene.join("night/t"), &spec, &mut rng);
    let package = package(bed.scene.path(), "night/t");
    // Stopped on the way, by which some files are safe; then it goes on.
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let seen = Seen { at: package.size_bytes / 4, then: Some(Box::new(move || stop.cancel())), ..Seen::default() };
    let root = Root::open(bed.scene.path()).expect("the folder");
    let source = Source { root: &root, path: &package.relative_path };
    let error = store.put(&package, &source, &turn(false), &seen, &cancel).await.expect_err("it was stopped");
    assert_eq!(error.class, ErrorClass::Cancelled);
    let back = store.read_back(&package, &Seen::default(), &CancellationToken::new()).await;
    assert_eq!(back.expect_err("it is not whole").class, ErrorClass::MissingSource);
    let stored = bed.put(&store, &package).await.expect("it is put");
    assert!(matches!(stored, Stored::Written { resumed_bytes } if resumed_bytes > 0), "{stored:?}");
    assert_equal(&store, &package).await;
    assert_eq!(bed.put(&store, &package).await.expect("it is there"), Stored::Found);

    let out = bed.scene.folder("out");
    let folder = Root::open(&out).expect("a folder");
    store.fetch(&package, &folder, &Seen::default(), &CancellationToken::new()).await.expect("it comes back");
    assert_same_tree(&bed.scene.join("night/t"), &out.join("night/t"));
    store.fetch(&package, &folder, &Seen::default(), &CancellationToken::new()).await.expect("the same is there");

    // One file less, one file other, a manifest that is torn: each is found.
    let all = bed.keys().await;
    let file = all.iter().find(|key| key.ends_with("00007.dat")).expect("a file of the tree");
    bed.overwrite(file, vec![7; 3000]).await;
    assert!(finds_corruption(&store, &package).await);
    bed.delete(file).await;
    assert!(finds_corruption(&store, &package).await);
    assert!(matches!(
        bed.put_as(&store, &package, true, &Seen::default()).await.expect("it is replaced"),
        Stored::Written { .. }
    ));
    assert_equal(&store, &package).await;
    store.forget_replaced(&package).await.expect("it is forgotten");
    assert_equal(&store, &package).await;
    let left = bed.keys().await;
    assert_eq!(left.len(), all.len(), "one generation is left");
    let manifest = left.iter().find(|key| key.ends_with("/manifest")).expect("the manifest");
    bed.overwrite(manifest, b"{\"ccat_xfer_tree\":1".to_vec()).await;
    assert!(finds_corruption(&store, &package).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_file_is_the_file_and_overwrites_nothing() {
    let Some(bed) = Bed::new("s3-fetch") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-fetch"));
    let package = bed.file("a/p.fits", 3 * PART + 1, &mut rng);
    bed.put(&store, &package).await.expect("it is put");
    let out = bed.scene.folder("out");
    let folder = Root::open(&out).expect("a folder");
    bed.proxy.cut_gets(2);
    store.fetch(&package, &folder, &Seen::default(), &CancellationToken::new()).await.expect("it comes back");
    assert_eq!(fs::read(out.join("a/p.fits")).expect("it"), fs::read(bed.scene.join("a/p.fits")).expect("the source"));
    fs::write(out.join("a/p.fits"), "other").expect("something else");
    let error = store.fetch(&package, &folder, &Seen::default(), &CancellationToken::new()).await;
    assert_eq!(error.expect_err("it is taken").class, ErrorClass::DestinationDiffers);
    fs::remove_file(out.join("a/p.fits")).expect("remove it");
    bed.proxy.alter_gets(1);
    let error = store.fetch(&package, &folder, &Seen::default(), &CancellationToken::new()).await;
    assert_eq!(error.expect_err("other bytes came").class, ErrorClass::CorruptAtSource);
    assert_eq!(fs::read_dir(out.join("a")).expect("the folder").count(), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_are_written_listed_and_read() {
    let Some(bed) = Bed::new("s3-sidecars") else { return };
    let (store, mut rng) = (bed.store(), seed("s3-sidecars"));
    let mut packages = Vec::new();
    for n in 0..25 {
        let package = bed.file(&format!("night {}/p{n}.fits", n % 3), 100, &mut rng);
        store.write_sidecar(&package, format!("{{\"n\":{n}}}").as_bytes()).await.expect("it is written");
        packages.push(package);
    }
    store.write_sidecar(&packages[4], b"newer").await.expect("it is replaced");
    let (mut names, mut after): (Vec<String>, Option<String>) = (Vec::new(), None);
    loop {
        let page = store.sidecars(after.as_deref(), 10).await.expect("a list");
        assert!(page.len() <= 10);
        let Some(last) = page.last().cloned() else { break };
        names.extend(page);
        after = Some(last);
    }
    assert_eq!(names.len(), 25);
    assert!(names.is_sorted());
    let mut texts = Vec::new();
    for name in &names {
        texts.push(String::from_utf8(store.read_sidecar(name).await.expect("it is read")).expect("text"));
    }
    assert!(texts.contains(&"newer".to_owned()) && texts.contains(&"{\"n\":24}".to_owned()));
    let gone = names[0].replace("p0", "q0");
    assert_eq!(store.read_sidecar(&gone).await.expect_err("no such").class, ErrorClass::MissingSource);
    assert_eq!(store.read_sidecar("../x").await.expect_err("no name").class, ErrorClass::Configuration);
}

/// Not a test: what the next one kills. Does nothing unless told where to upload.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_uploads() {
    let (Ok(endpoint), Ok(folder)) = (std::env::var(ENDPOINT), std::env::var(FOLDER)) else { return };
    let root = Root::open(Path::new(&folder)).expect("the folder");
    let package = package(Path::new(&folder), "p.fits");
    let store = S3::new(settings(&endpoint)).expect("settings");
    let source = Source { root: &root, path: &package.relative_path };
    store.put(&package, &source, &turn(false), &Seen::default(), &CancellationToken::new()).await.expect("it is put");
}

const ENDPOINT: &str = "TEST_S3_ENDPOINT";
const FOLDER: &str = "TEST_S3_FOLDER";

/// Seen to fail with every part sent again, and with each attempt beginning an upload of its own.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_killed_at_half_goes_on() {
    let Some(bed) = Bed::new("s3-killed") else { return };
    let mut rng = seed("s3-killed");
    let package = bed.file("p.fits", size(1 << 30), &mut rng);
    let parts = usize::try_from(package.size_bytes.div_ceil(PART)).expect("a number of parts");
    // By which half is far from the end, for a slow machine too.
    bed.proxy.delay(Duration::from_millis(500));
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "child_that_uploads", "--nocapture"]);
    command.env(ENDPOINT, bed.proxy.endpoint()).env(FOLDER, bed.scene.path());
    let mut child = spawn(&bed.scene, command);
    let half = |_: &harness::Running| bed.proxy.count().acknowledged() >= parts / 2;
    assert!(child.wait_until(Duration::from_secs(120), half), "it never got to half");
    // Not always between two rounds of parts.
    tokio::time::sleep(Duration::from_millis(rng.below(500))).await;
    child.assert_running("killing it at half");
    drop(child.kill_now());
    // What was on its way when it died comes to its end.
    let end = Instant::now() + Duration::from_secs(60);
    while bed.proxy.under_way() > 0 {
        assert!(Instant::now() < end, "requests of who was killed never end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let safe = bed.proxy.count();
    let cut_off = safe.parts.values().filter(|(_, acknowledged)| !acknowledged).count();
    assert!(cut_off <= 4, "{cut_off} parts were on their way, at most 4 may be");
    bed.proxy.delay(Duration::ZERO);
    bed.proxy.forget();
    let store = bed.store();
    let stored = bed.put(&store, &package).await.expect("it goes on");
    let again = bed.proxy.count();
    let kept = u64::try_from(safe.acknowledged()).expect("a number of parts") * PART;
    assert!(matches!(stored, Stored::Written { resumed_bytes } if resumed_bytes >= kept), "{stored:?} of {kept}");
    for (part, (_, acknowledged)) in &safe.parts {
        assert!(!acknowledged || !again.parts.contains_key(part), "{part:?} was acknowledged and sent again");
    }
    assert_eq!(again.parts.len() + safe.acknowledged(), parts);
    assert!(again.parts.values().all(|(times, _)| *times == 1), "{again:?}");
    assert_eq!((again.begun, bed.uploads().await), (0, 0), "one upload, and none is left");
    assert_equal(&store, &package).await;
    harness::say(&format!(
        "killed at half: {parts} parts, {} acknowledged before, {cut_off} cut off, {} sent after",
        safe.acknowledged(),
        again.parts.len()
    ));
}
