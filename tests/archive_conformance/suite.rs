//! The promises of an archive.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use ccat_xfer::{
    archive::{Progress, Source, Stored, Turn},
    disk::Root,
    model::{Algorithm, ErrorClass, PackageDigest},
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use tokio_util::sync::CancellationToken;

use super::{
    bed::{Bed, Count, at, file, large, put, put_as, read, register, rests_well, turn, turn_of},
    harness::{TreeSpec, assert_same_tree, build, seed},
};

pub(crate) async fn a_package_reads_back_as_it_was_registered(bed: &dyn Bed) {
    let package = file(bed, "night/obs.dat", &[7; 5_000_001]);
    assert_eq!(put(bed, &package).await, Stored::Written { resumed_bytes: 0 });
    assert!(rests_well(bed, &package).await);
}

pub(crate) async fn a_tree_of_a_thousand_odd_entries_reads_back(bed: &dyn Bed) {
    let spec =
        TreeSpec { large: 9 << 20, small_files: 1000, small_bytes: 700, small_dirs: 20, sparse: 64 << 20, odd: true };
    build(&bed.origin().join("night"), &spec, &mut seed("archive_conformance"));
    let package = register(bed, "night");
    assert!(matches!(put(bed, &package).await, Stored::Written { .. }));
    assert!(rests_well(bed, &package).await);
}

pub(crate) async fn empty_packages_rest_too(bed: &dyn Bed) {
    let empty = file(bed, "empty", b"");
    fs::create_dir(bed.origin().join("folder")).unwrap();
    let folder = register(bed, "folder");
    for package in [empty, folder] {
        put(bed, &package).await;
        assert!(rests_well(bed, &package).await, "{}", package.relative_path);
    }
}

pub(crate) async fn a_second_put_finds_the_first(bed: &dyn Bed) {
    fs::create_dir(bed.origin().join("tree")).unwrap();
    let packages = [file(bed, "one", b"one"), {
        file(bed, "tree/a", b"a");
        register(bed, "tree")
    }];
    for package in packages {
        put(bed, &package).await;
        for other in [turn_of(&package, 1), turn_of(&package, 2), turn(2, 1)] {
            assert_eq!(put_as(bed, &package, other).await.unwrap(), Stored::Found);
        }
        assert!(rests_well(bed, &package).await);
        assert_eq!(bed.left_over(&package), Vec::<String>::new());
    }
}

pub(crate) async fn other_bytes_at_the_same_path_lie_beside(bed: &dyn Bed) {
    let first = file(bed, "night", b"first");
    put(bed, &first).await;
    let second = file(bed, "night", b"other");
    assert!(matches!(put_as(bed, &second, turn(2, 1)).await.unwrap(), Stored::Written { .. }));
    assert!(rests_well(bed, &first).await, "nothing that rests is overwritten");
    assert!(rests_well(bed, &second).await);
}

pub(crate) async fn equal_bytes_at_two_paths_are_two_packages(bed: &dyn Bed) {
    let (one, other) = (file(bed, "a/x", b"same"), file(bed, "b/x", b"same"));
    put(bed, &one).await;
    assert!(matches!(put_as(bed, &other, turn(2, 1)).await.unwrap(), Stored::Written { .. }));
    bed.corrupt(&one);
    assert!(!rests_well(bed, &one).await);
    assert!(rests_well(bed, &other).await);
}

pub(crate) async fn a_put_that_was_cut_off_is_done_again(bed: &dyn Bed) {
    let package = large(bed, "large", 384);
    let root = Root::open(bed.origin()).unwrap();
    let source = Source { root: &root, path: &package.relative_path };
    let cancel = CancellationToken::new();
    let count = Count { cancel_at: Some((64 << 20, cancel.clone())), ..Count::default() };
    let cut = bed.archive().put(&package, &source, &turn(1, 1), &count, &cancel).await;
    match &cut {
        Err(error) => {
            assert_eq!(error.class, ErrorClass::Cancelled, "{error}");
            assert_eq!(read(bed, &package).await.unwrap_err().class, ErrorClass::MissingSource, "whole or not at all");
        }
        Ok(_) => println!("the put was over before it could be cut off"),
    }
    let was_cut = cut.is_err();
    match put_as(bed, &package, turn(1, 2)).await.unwrap() {
        Stored::Written { resumed_bytes } if bed.resumes() && was_cut => {
            assert!(resumed_bytes >= 64 << 20, "only {resumed_bytes} bytes were kept");
        }
        Stored::Written { .. } => {}
        Stored::Found => assert!(!was_cut),
    }
    assert!(rests_well(bed, &package).await);
    assert_eq!(bed.left_over(&package), Vec::<String>::new());
}

pub(crate) async fn a_source_that_changed_is_refused(bed: &dyn Bed) {
    let one = file(bed, "one", b"as it was registered");
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(bed, "tree/a", b"a");
    let tree = register(bed, "tree");
    fs::write(bed.origin().join("one"), b"AS it was registered").unwrap();
    fs::write(bed.origin().join("tree/a"), b"b").unwrap();
    let gone = file(bed, "kind", b"a file");
    fs::remove_file(bed.origin().join("kind")).unwrap();
    fs::create_dir(bed.origin().join("kind")).unwrap();
    for package in [one, tree, gone] {
        let error = put_as(bed, &package, turn(1, 1)).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::SourceChanged, "{error}");
        assert_eq!(read(bed, &package).await.unwrap_err().class, ErrorClass::MissingSource);
        assert_eq!(bed.left_over(&package), Vec::<String>::new());
    }
}

/// Writes to the source as soon as the put moves.
#[derive(Debug)]
struct Meddle<'a> {
    at: &'a Path,
    done: AtomicBool,
}

impl Progress for Meddle<'_> {
    fn advance(&self, _: u64) {
        if !self.done.swap(true, Ordering::SeqCst) {
            use std::os::unix::fs::FileExt as _;
            let file = fs::File::options().write(true).open(self.at).unwrap();
            let size = file.metadata().unwrap().len();
            file.write_all_at(b"meddled", size - 7).unwrap();
        }
    }
}

/// The change may come too late to matter; then what rests is what was registered.
pub(crate) async fn a_source_that_changes_meanwhile_is_found(bed: &dyn Bed) {
    let package = large(bed, "large", 192);
    let root = Root::open(bed.origin()).unwrap();
    let source = Source { root: &root, path: &package.relative_path };
    let meddle = Meddle { at: &bed.origin().join("large"), done: AtomicBool::new(false) };
    match bed.archive().put(&package, &source, &turn(1, 1), &meddle, &CancellationToken::new()).await {
        Err(error) => assert_eq!(error.class, ErrorClass::SourceChanged, "{error}"),
        Ok(_) => assert!(rests_well(bed, &package).await),
    }
}

pub(crate) async fn a_missing_source_is_no_package(bed: &dyn Bed) {
    let package = file(bed, "night/gone", b"gone");
    fs::remove_file(bed.origin().join("night/gone")).unwrap();
    let error = put_as(bed, &package, turn(1, 1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::MissingSource, "{error}");
    fs::remove_dir(bed.origin().join("night")).unwrap();
    assert_eq!(put_as(bed, &package, turn(1, 2)).await.unwrap_err().class, ErrorClass::MissingSource);
    symlink("/etc", bed.origin().join("night")).unwrap();
    let error = put_as(bed, &package, turn(1, 3)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration, "a link is not followed: {error}");
}

pub(crate) async fn what_does_not_rest_is_missing(bed: &dyn Bed) {
    let package = file(bed, "never", b"never");
    let error = read(bed, &package).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::MissingSource, "{error}");
    let to = tempfile::tempdir().unwrap();
    let folder = Root::open(to.path()).unwrap();
    let fetched = bed.archive().fetch(&package, &folder, &Count::default(), &CancellationToken::new()).await;
    assert_eq!(fetched.unwrap_err().class, ErrorClass::MissingSource);
}

pub(crate) async fn corruption_below_is_read_back(bed: &dyn Bed) {
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(bed, "tree/a", &[1; 100_000]);
    file(bed, "tree/b", &[2; 100_000]);
    for package in [file(bed, "one", &[3; 100_000]), register(bed, "tree")] {
        put(bed, &package).await;
        assert!(rests_well(bed, &package).await);
        bed.corrupt(&package);
        assert!(!rests_well(bed, &package).await, "{}", package.relative_path);
        assert_eq!(put(bed, &package).await, Stored::Found, "its bytes are judged by the reading alone");
        assert!(!rests_well(bed, &package).await);
    }
}

pub(crate) async fn a_corrupt_package_is_replaced_and_then_forgotten(bed: &dyn Bed) {
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(bed, "tree/a", b"a");
    for package in [file(bed, "one", b"one"), register(bed, "tree")] {
        put(bed, &package).await;
        bed.archive().write_sidecar(&package, b"{}").await.unwrap();
        bed.corrupt(&package);
        let replace = |fence| Turn { replace: true, ..turn_of(&package, fence) };
        assert!(matches!(put_as(bed, &package, replace(1)).await.unwrap(), Stored::Written { .. }));
        assert!(rests_well(bed, &package).await);
        assert_eq!(bed.left_over(&package).len(), 1, "the corrupt one is kept until the new one was read");
        bed.corrupt(&package);
        put_as(bed, &package, replace(2)).await.unwrap();
        assert!(rests_well(bed, &package).await);
        bed.archive().forget_replaced(&package).await.unwrap();
        bed.archive().forget_replaced(&package).await.unwrap();
        if bed.forgets() {
            assert_eq!(bed.left_over(&package), Vec::<String>::new());
        }
        assert!(rests_well(bed, &package).await);
    }
}

/// An attempt that put the new bytes and died before it said so.
pub(crate) async fn a_replacement_that_nobody_heard_of_is_found(bed: &dyn Bed) {
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(bed, "tree/a", b"a");
    for package in [file(bed, "one", b"one"), register(bed, "tree")] {
        put(bed, &package).await;
        bed.corrupt(&package);
        let replace = |fence| Turn { replace: true, ..turn_of(&package, fence) };
        assert!(matches!(put_as(bed, &package, replace(2)).await.unwrap(), Stored::Written { .. }));
        for fence in [3, 4] {
            assert_eq!(put_as(bed, &package, replace(fence)).await.unwrap(), Stored::Found);
            assert_eq!(bed.left_over(&package).len(), 1, "no copy more");
        }
        assert!(rests_well(bed, &package).await);
        bed.corrupt(&package);
        assert!(matches!(put_as(bed, &package, replace(5)).await.unwrap(), Stored::Written { .. }));
        assert!(rests_well(bed, &package).await);
    }
}

async fn copy_out(bed: &dyn Bed, package: &ccat_xfer::archive::Package, to: &Path) -> Result<(), ErrorClass> {
    let folder = Root::open(to).unwrap();
    let done = bed.archive().fetch(package, &folder, &Count::default(), &CancellationToken::new()).await;
    done.map_err(|e| {
        println!("{e}");
        e.class
    })
}

pub(crate) async fn a_corrupt_package_is_not_copied_out(bed: &dyn Bed) {
    fs::create_dir(bed.origin().join("tree")).unwrap();
    file(bed, "tree/a", b"a");
    for package in [file(bed, "one", b"one"), register(bed, "tree")] {
        put(bed, &package).await;
        bed.corrupt(&package);
        let to = tempfile::tempdir().unwrap();
        assert_eq!(copy_out(bed, &package, to.path()).await, Err(ErrorClass::CorruptAtSource));
    }
}

pub(crate) async fn a_package_is_copied_out_as_it_was(bed: &dyn Bed) {
    let spec =
        TreeSpec { large: 9 << 20, small_files: 50, small_bytes: 700, small_dirs: 5, sparse: 8 << 20, odd: true };
    build(&bed.origin().join("2026/night"), &spec, &mut seed("archive_conformance"));
    let one = bed.origin().join("2026/night/large.bin");
    fs::set_permissions(&one, fs::Permissions::from_mode(0o640)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    fs::File::options().write(true).open(&one).unwrap().set_modified(time).unwrap();
    let tree = register(bed, "2026/night");
    put(bed, &tree).await;
    let to = tempfile::tempdir().unwrap();
    copy_out(bed, &tree, to.path()).await.unwrap();
    assert_same_tree(&bed.origin().join("2026/night"), &to.path().join("2026/night"));
    copy_out(bed, &tree, to.path()).await.unwrap();

    let single = register(bed, "2026/night/large.bin");
    put(bed, &single).await;
    let to = tempfile::tempdir().unwrap();
    copy_out(bed, &single, to.path()).await.unwrap();
    let out = to.path().join("2026/night/large.bin");
    assert_eq!(fs::read(&out).unwrap(), fs::read(&one).unwrap());
    let meta = fs::metadata(&out).unwrap();
    if bed.keeps_bits_of_files() {
        assert_eq!((meta.mode() & 0o7777, meta.modified().unwrap()), (0o640, time));
    }
    fs::set_permissions(&out, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(&out, b"other").unwrap();
    assert_eq!(copy_out(bed, &single, to.path()).await, Err(ErrorClass::DestinationDiffers));
    assert_eq!(fs::read(&out).unwrap(), b"other", "nothing is overwritten");
}

/// On a thread whose rights are those of any user, whoever runs the test.
fn as_plain_user<T: Send>(work: impl Future<Output = T> + Send) -> T {
    let plain = move || {
        let none = CapabilitySets { effective: CapabilitySet::empty(), ..capabilities(None).unwrap() };
        set_capabilities(None, none).unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(work)
    };
    std::thread::scope(|scope| scope.spawn(plain).join().expect("no panic"))
}

/// Nobody but root moves a folder that he may not write to, or removes what lies in it.
pub(crate) async fn a_read_only_tree_is_copied_out_by_any_user(bed: &dyn Bed) {
    let at = bed.origin().join("night");
    fs::create_dir_all(at.join("sub")).unwrap();
    file(bed, "night/sub/a", b"some bytes");
    for folder in [at.join("sub"), at.clone()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let package = register(bed, "night");
    put(bed, &package).await;
    let to = tempfile::tempdir().unwrap();
    as_plain_user(copy_out(bed, &package, to.path())).unwrap();
    assert_same_tree(&at, &to.path().join("night"));
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1, "nothing else is left there");
    bed.corrupt(&package);
    let other = tempfile::tempdir().unwrap();
    assert_eq!(as_plain_user(copy_out(bed, &package, other.path())), Err(ErrorClass::CorruptAtSource));
    let left = fs::read_dir(other.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with('.')), "nothing is left there");
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) async fn sidecars_are_listed_in_order_and_read(bed: &dyn Bed) {
    let archive = bed.archive();
    assert_eq!(archive.sidecars(None, 10).await.unwrap(), Vec::<String>::new());
    let mut written = BTreeMap::new();
    for n in 0..23 {
        let package = file(bed, format!("night/{n}"), format!("bytes {n}").as_bytes());
        put(bed, &package).await;
        if n == 5 {
            continue;
        }
        let sidecar = format!("{{\"n\":{n}}}");
        archive.write_sidecar(&package, sidecar.as_bytes()).await.unwrap();
        written.insert(sidecar, n);
    }
    let mut listed: Vec<String> = Vec::new();
    loop {
        let page = archive.sidecars(listed.last().map(String::as_str), 4).await.unwrap();
        assert!(page.len() <= 4);
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert!(listed.is_sorted_by(|a, b| a < b), "{listed:?}");
    assert_eq!(listed.len(), 22, "a package without a sidecar has none");
    for name in &listed {
        let bytes = archive.read_sidecar(name).await.unwrap();
        assert!(written.remove(&String::from_utf8(bytes).unwrap()).is_some(), "{name}");
    }
    assert_eq!(archive.sidecars(None, 100).await.unwrap(), listed);
}

pub(crate) async fn a_sidecar_is_replaced_whole(bed: &dyn Bed) {
    let package = file(bed, "one", b"one");
    put(bed, &package).await;
    let archive = bed.archive();
    archive.write_sidecar(&package, &[b'x'; 100_000]).await.unwrap();
    archive.write_sidecar(&package, b"short").await.unwrap();
    let names = archive.sidecars(None, 10).await.unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(archive.read_sidecar(&names[0]).await.unwrap(), b"short");
    assert!(rests_well(bed, &package).await);
    let error = archive.write_sidecar(&package, &vec![b'x'; (16 << 20) + 1]).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration);
}

pub(crate) async fn what_is_no_sidecar_is_refused(bed: &dyn Bed) {
    let package = file(bed, "x.ccat.json", b"{\"not\": \"a sidecar\"}");
    put(bed, &package).await;
    assert!(rests_well(bed, &package).await);
    let archive = bed.archive();
    assert_eq!(archive.sidecars(None, 10).await.unwrap(), Vec::<String>::new());
    for name in ["", "x", "../../etc/passwd", "/etc/passwd.ccat.json", "a/b/c/../../../x.ccat.json", "-x.ccat.json"] {
        let error = archive.read_sidecar(name).await.unwrap_err();
        assert!(matches!(error.class, ErrorClass::Configuration | ErrorClass::MissingSource), "{name}: {error}");
    }
}

pub(crate) async fn a_digest_that_nothing_reads_is_refused(bed: &dyn Bed) {
    let mut package = file(bed, "one", b"one");
    package.expected = PackageDigest { algorithm: Algorithm::Sha256, ..package.expected };
    let error = put_as(bed, &package, turn(1, 1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Configuration, "{error}");
}

pub(crate) async fn odd_names_rest_and_come_back(bed: &dyn Bed) {
    let long = [b'n'; 255];
    let names: [&[u8]; 9] = [
        b"new\nline",
        b"\x1b[31m",
        b"not utf-8 \xff\xfe",
        b"-rf",
        b"{key} {source} $(id) `id` ; id",
        b"100%25",
        b"a.ccat.json",
        b"...",
        &long,
    ];
    for (n, name) in names.into_iter().enumerate() {
        let package = file(bed, name, format!("bytes {n}").as_bytes());
        put(bed, &package).await;
        assert!(rests_well(bed, &package).await, "{}", package.relative_path);
        bed.archive().write_sidecar(&package, b"{}").await.unwrap();
        let to = tempfile::tempdir().unwrap();
        copy_out(bed, &package, to.path()).await.unwrap();
        assert_eq!(fs::read(to.path().join(OsStr::from_bytes(name))).unwrap(), format!("bytes {n}").as_bytes());
    }
    assert_eq!(bed.archive().sidecars(None, 100).await.unwrap().len(), names.len());
}

pub(crate) async fn progress_counts_every_byte_once(bed: &dyn Bed) {
    let package = file(bed, "one", &[9; 10_000_000]);
    let root = Root::open(bed.origin()).unwrap();
    let source = Source { root: &root, path: &package.relative_path };
    let (count, never) = (Count::default(), CancellationToken::new());
    bed.archive().put(&package, &source, &turn(1, 1), &count, &never).await.unwrap();
    assert_eq!(count.bytes.load(Ordering::SeqCst), 10_000_000);
    let count = Count::default();
    bed.archive().read_back(&package, &count, &never).await.unwrap();
    assert_eq!(count.bytes.load(Ordering::SeqCst), 10_000_000);
}

pub(crate) async fn a_cancelled_reading_ends(bed: &dyn Bed) {
    let package = file(bed, "one", &[9; 10_000_000]);
    put(bed, &package).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = bed.archive().read_back(&package, &Count::default(), &cancel).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Cancelled, "{error}");
    assert!(at("one") == package.relative_path);
}
