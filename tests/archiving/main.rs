//! The whole chain into a long-term archive: `ccat` -> `cologne` -> the archives there, by daemons that are processes of
//! their own. A package is called archived when its archives were read back, and not before.

mod care;
mod chaos;
#[path = "../control/mod.rs"]
mod control;
#[path = "../harness/mod.rs"]
mod harness;
mod lease;
mod s3;

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use ccat_xfer::{
    archive::{Disk, Package, sidecar::Sidecar},
    model::ErrorClass,
};

use control::world::{Backend, HANG, Shelf, Terms, World};
use harness::{Rng, Running, S3Server, b3sum_of, count, say, seed, skip, write_file};

/// An archive in a folder of the scene. It may lie in memory, where nothing but the cache can be read.
const DISK: Shelf<'_> =
    Shelf { name: "archive", storage: "disk", topology: "cached_read_back_counts = true", settings: "root = \"ROOT\"" };

const TERMS: Terms<'_> = Terms {
    dialer: "origin",
    rate: None,
    worker: "slots = 2\nlease = \"3s\"\nretry_percent = 5\nreconnect_timeout = \"5s\"\n",
    manager: "bundle_packages = 4\nbundle_age = \"0s\"",
    poll: None,
    endpoints: true,
    archives: &[DISK],
};

fn found(world: &World) -> PathBuf {
    let root = world.scene.folder("archive");
    world.say(&["archive", "found", &root.display().to_string()]);
    root
}

fn worker(world: &World, name: &str, environment: &[(&str, &str)]) -> Running {
    worker_of(world, name, &["archive"], environment)
}

/// A worker for both buffers and these archives.
fn worker_of(world: &World, name: &str, archives: &[&str], environment: &[(&str, &str)]) -> Running {
    let archives: Vec<_> = archives.iter().map(|archive| format!("cologne/{archive}")).collect();
    let mut words = vec!["worker", "--name", name, "--location", "ccat/buffer", "cologne/buffer"];
    words.extend(archives.iter().map(String::as_str));
    world.start(&words, environment)
}

fn manager(world: &World) -> Running {
    world.start(&["manager", "all"], &[("CCAT_XFER_MANAGER_NAME", "m1")])
}

/// Files and trees at the origin. Returns their names.
fn make_packages(world: &World, packages: u64, rng: &mut Rng) -> Vec<String> {
    make_these(world, 0..packages, rng)
}

fn make_these(world: &World, numbers: Range<u64>, rng: &mut Rng) -> Vec<String> {
    let mut names = Vec::new();
    for n in numbers {
        let name = format!("night/{n:03}");
        let path = world.origin().join(&name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        match n % 4 {
            // Above the size of one part in S3, and below.
            0 if n % 8 == 0 => write_file(&path, (9 << 20) + rng.below(3 << 20), rng),
            0 => write_file(&path, (5 << 20) + rng.below(3 << 20), rng),
            1 => {
                fs::create_dir_all(path.join("sub/empty")).expect("make folders");
                for file in 0..1 + rng.below(8) {
                    write_file(&path.join(format!("sub/{file}")), rng.below(300_000), rng);
                }
                std::os::unix::fs::symlink("sub/0", path.join("link")).expect("make a link");
            }
            _ => write_file(&path, rng.below(400_000), rng),
        }
        names.push(name);
    }
    names
}

fn submit(world: &World, names: &[String]) {
    world.submit(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Waits until so many packages are archived.
fn until_archived(world: &World, packages: usize) {
    let wanted = packages.to_string();
    let of = "FROM raw_data_package WHERE state = 'archived'";
    world.until("all archived", &["count(*)"], of, |row| row[0] == wanted);
}

/// All sidecars of an archive on disk, by the package's path.
fn sidecars(root: &Path) -> BTreeMap<String, Sidecar> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("list") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|end| end == "json") {
                let sidecar = Sidecar::from_json(&fs::read(&path).expect("read a sidecar"));
                let sidecar = sidecar.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                found.insert(sidecar.package.path_hex.to_string(), sidecar);
            } else if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    found
}

/// Where a package of this sidecar rests.
fn resting(root: &Path, sidecar: &Sidecar) -> PathBuf {
    let package = &sidecar.package;
    let key = Disk::path_of(&Package {
        kind: package.kind,
        relative_path: package.path_hex.clone(),
        size_bytes: package.size_bytes,
        file_count: package.file_count,
        expected: package.digests[0],
    });
    root.join(key.expect("a key").to_string())
}

/// Every package lies in the archive as it does at the origin, read-only, with a sidecar that says so.
fn assert_archived(world: &World, root: &Path, names: &[String]) {
    let sidecars = sidecars(root);
    assert_eq!(sidecars.len(), names.len(), "{:?}", sidecars.keys());
    for name in names {
        let sidecar = &sidecars[name];
        let (from, to) = (world.origin().join(name), resting(root, sidecar));
        assert!(has_same_bytes(&from, &to), "{name} differs");
        if to.is_file() {
            assert_eq!(b3sum_of([to.as_path()].into_iter())[0], sidecar.package.digests[0].hex(), "{name}");
        }
        let mode = fs::symlink_metadata(&to).expect("stat").permissions().mode();
        assert_eq!(mode & 0o222, 0, "{name} can be written to: {mode:o}");
        assert!(sidecar.verification.iter().any(|v| v.is_equal()), "{name}");
        assert_eq!(sidecar.provenance.source.to_string(), "cologne/buffer");
        assert_eq!(sidecar.package.origin.to_string(), "ccat/buffer");
        let steps = &sidecar.provenance.steps;
        assert!(steps.iter().any(|s| s.is_equal && s.at.to_string() == "cologne/buffer"), "{name}: {steps:?}");
    }
    assert_proven(world);
}

/// The database has the record of a read-back that found what was expected, for every package.
fn assert_proven(world: &World) {
    let unproven = world.rows(
        &["p.id"],
        "FROM raw_data_package p WHERE NOT EXISTS (SELECT 1 FROM verification_record v \
         JOIN data_location l ON l.id = v.location_id WHERE v.package_id = p.id AND l.name = 'archive' \
         AND v.method = 'read_back' AND v.expected_digest = v.found_digest)",
    );
    assert!(unproven.is_empty(), "{unproven:?}");
}

/// Whether both have the same bytes. Modes and times of what rests are another thing: an archive takes the right to write.
fn has_same_bytes(from: &Path, to: &Path) -> bool {
    if from.is_dir() {
        return harness::differences(from, to).iter().all(|line| line.starts_with('.'));
    }
    fs::read(from).expect("read") == fs::read(to).expect("read")
}

fn a_chain(backend: Backend) {
    let test = format!("archiving on {}", backend.word());
    if backend.is_missing(&test) {
        return;
    }
    let mut rng = seed(&test);
    let world = World::new("archiving", backend, &TERMS);
    let root = found(&world);
    let names = make_packages(&world, 12, &mut rng);
    let (_manager, _worker) = (manager(&world), worker(&world, "w1", &[]));
    submit(&world, &names);
    until_archived(&world, names.len());
    assert_archived(&world, &root, &names);
    let listed = world.say(&["list", "archive-transfers"]).said();
    assert_eq!(listed.lines().filter(|line| line.contains("completed")).count(), names.len(), "{listed}");
}

#[test]
fn packages_reach_the_archive_and_are_read_back_on_sqlite() {
    a_chain(Backend::Sqlite);
}

#[test]
fn packages_reach_the_archive_and_are_read_back_on_postgresql_and_rabbitmq() {
    a_chain(Backend::Servers);
}

/// The class and the text of the first archive transfer's error.
fn until_failed(world: &World) -> (ErrorClass, String) {
    let row = world
        .until("an error", &["error_class", "error_text"], "FROM long_term_archive_transfer", |row| !row[0].is_empty());
    (row[0].parse().expect("a class"), row[1].clone())
}

#[test]
fn a_folder_without_the_marker_is_no_archive() {
    let world = World::new("no-marker", Backend::Sqlite, &TERMS);
    world.scene.folder("archive");
    let names = make_packages(&world, 1, &mut seed("no marker"));
    let (_manager, _worker) = (manager(&world), worker(&world, "w1", &[]));
    submit(&world, &names);
    let (class, text) = until_failed(&world);
    assert_eq!(class, ErrorClass::Configuration, "{text}");
    assert!(text.contains("archive found"), "it says what to do: {text}");
    // Mended, and tried again.
    found(&world);
    world.say(&["retry", "a1"]);
    until_archived(&world, 1);
}

#[test]
fn other_bytes_under_a_packages_key_are_left_alone_until_somebody_retries() {
    let world = World::new("taken", Backend::Sqlite, &TERMS);
    let root = found(&world);
    let path = world.origin().join("one");
    write_file(&path, 300_000, &mut seed("taken"));
    let package = Package {
        kind: ccat_xfer::model::PackageKind::File,
        relative_path: ccat_xfer::chunk::RelPath::new(b"one".to_vec()).expect("a path"),
        size_bytes: 300_000,
        file_count: 1,
        expected: ccat_xfer::model::PackageDigest {
            algorithm: ccat_xfer::model::Algorithm::Blake3,
            value: ccat_xfer::chunk::Digest::of(&fs::read(&path).expect("read")).0,
        },
    };
    let key = root.join(Disk::path_of(&package).expect("a key").to_string());
    fs::create_dir_all(key.parent().expect("a folder")).expect("make folders");
    fs::write(&key, b"something else").expect("write");
    let (_manager, _worker) = (manager(&world), worker(&world, "w1", &[]));
    submit(&world, &["one".to_owned()]);
    let (class, text) = until_failed(&world);
    assert_eq!(class, ErrorClass::DestinationDiffers, "{text}");
    assert_eq!(fs::read(&key).expect("read"), b"something else");
    world.say(&["retry", "a1"]);
    until_archived(&world, 1);
    assert!(fs::read(&key).expect("read") == fs::read(&path).expect("read"));
}

#[test]
fn a_source_that_changed_in_the_buffer_is_not_archived() {
    let world = World::new("changed", Backend::Sqlite, &TERMS);
    let root = found(&world);
    write_file(&world.origin().join("one"), 300_000, &mut seed("changed"));
    let manager_running = manager(&world);
    let mover = world.start(&["worker", "--name", "w1", "--location", "ccat/buffer", "cologne/buffer"], &[]);
    submit(&world, &["one".to_owned()]);
    world.until_status(1, "completed");
    let arrived = world.destination().join("one");
    let mut bytes = fs::read(&arrived).expect("read");
    bytes[1000] ^= 1;
    fs::write(&arrived, bytes).expect("write");
    let _archivist = world.start(&["worker", "--name", "w2", "--location", "cologne/archive"], &[]);
    let (class, text) = until_failed(&world);
    assert_eq!(class, ErrorClass::SourceChanged, "{text}");
    assert_eq!(world.number("count(*)", "FROM raw_data_package WHERE state = 'archived'"), 0);
    assert!(sidecars(&root).is_empty());
    drop((manager_running, mover));
}
