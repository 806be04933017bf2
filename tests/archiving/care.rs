//! What rests is looked after: read again, repaired, and known again when the database is lost.

use std::{fs, path::Path};

use sqlx::{AssertSqlSafe, Row as _, SqlitePool};

use super::{
    Backend, DISK, HANG, Running, Shelf, TERMS, Terms, World, assert_archived, found, has_same_bytes, make_packages,
    manager, resting, seed, sidecars, submit, until_archived, worker, worker_of, write_file,
};
use crate::harness::{Finished, exit, flip_bit, spawn};

/// A world with so many packages in its archive, and the daemons that put them there.
fn archived(name: &str, packages: usize) -> (World, std::path::PathBuf, Vec<String>, [Running; 2]) {
    let world = World::new(name, Backend::Sqlite, &TERMS);
    let root = found(&world);
    let names = make_packages(&world, packages as u64, &mut seed(name));
    let daemons = [manager(&world), worker(&world, "w1", &[])];
    submit(&world, &names);
    until_archived(&world, packages);
    (world, root, names, daemons)
}

fn verify(world: &World, more: &[&str], code: i32) -> Finished {
    let words = [&["verify", "--location", "cologne/archive"], more].concat();
    spawn(&world.scene, world.command(&words)).wait(HANG).expect_code(code)
}

fn file_of(root: &Path, name: &str) -> std::path::PathBuf {
    resting(root, &sidecars(root)[name])
}

fn make_writable(path: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(path, mode).expect("make it writable");
}

#[test]
fn a_copy_that_went_bad_is_found_and_repaired() {
    let (world, root, names, daemons) = archived("scrub", 12);
    let said = verify(&world, &[], 0).said();
    assert!(said.contains("12 equal, 0 different, 0 missing"), "{said}");
    let (spoilt, lost) = (file_of(&root, &names[0]), file_of(&root, &names[2]));
    make_writable(&spoilt);
    flip_bit(&spoilt, 1000);
    fs::remove_file(&lost).expect("remove");
    let said = verify(&world, &["--json"], exit::INTEGRITY).said();
    assert!(said.contains("\"different\":1") && said.contains("\"missing\":1"), "{said}");
    // The manager plans the repairs, and the worker replaces both.
    until_archived(&world, names.len());
    world.until(
        "both repaired",
        &["count(*)"],
        "FROM physical_copy WHERE verification IN ('corrupt', 'suspect')",
        |row| row[0] == "0",
    );
    until_archived(&world, names.len());
    for name in [&names[0], &names[2]] {
        assert!(has_same_bytes(&world.origin().join(name), &file_of(&root, name)), "{name}");
    }
    assert_archived(&world, &root, &names);
    verify(&world, &["--limit", "5", "--rate-limit", "1G"], 0);
    drop(daemons);
}

#[test]
fn a_look_that_misses_much_stops_and_asks() {
    let (world, root, names, daemons) = archived("missing", 8);
    drop(daemons);
    for name in &names[2..5] {
        let at = file_of(&root, name);
        fs::rename(&at, at.with_extension("away")).expect("put it away");
    }
    let stopped = verify(&world, &[], exit::DESTINATION);
    assert!(stopped.stderr.contains("--yes"), "{}", stopped.stderr);
    let said = verify(&world, &["--yes"], exit::DESTINATION).said();
    assert!(said.contains("missing"), "{said}");
}

/// Catches what was found missing being forgotten with a look that breaks off.
#[test]
fn what_a_look_found_is_written_down_when_the_archive_fails_before_its_end() {
    let world = World::new("broken-off", Backend::Sqlite, &TERMS);
    let (root, mut rng) = (found(&world), seed("broken off"));
    let names: Vec<_> = (0..60).map(|n| format!("{n:02}")).collect();
    for name in &names {
        write_file(&world.origin().join(name), 1000, &mut rng);
    }
    let daemons = [manager(&world), worker(&world, "w1", &[])];
    submit(&world, &names);
    until_archived(&world, names.len());
    drop(daemons);
    let oldest_first = "FROM physical_copy c JOIN raw_data_package p ON p.id = c.package_id \
         JOIN data_location l ON l.id = c.location_id WHERE l.name = 'archive' ORDER BY c.checked_at, c.id";
    let order = world.rows(&["p.name"], oldest_first);
    let files: Vec<_> = order.iter().map(|row| file_of(&root, &row[0])).collect();
    fs::rename(&files[0], files[0].with_extension("away")).expect("put it away");
    // A tenth is not much, so it is taken for the archive's own trouble.
    for file in &files[55..] {
        let home = file.parent().expect("a folder");
        fs::rename(home, home.with_extension("away")).expect("put it away");
        std::os::unix::fs::symlink("/nowhere", home).expect("make a link");
    }
    let words = ["verify", "--location", "cologne/archive"];
    let ended = spawn(&world.scene, world.command(&words)).wait(HANG);
    assert_ne!(ended.code(), Some(0));
    assert!(!ended.stderr.contains("--yes"), "{}", ended.stderr);
    let bad = world.rows(
        &["p.name", "c.verification"],
        "FROM physical_copy c JOIN raw_data_package p ON p.id = c.package_id \
         WHERE c.verification NOT IN ('registered', 'verified')",
    );
    assert_eq!(bad, [[order[0][0].clone(), "suspect".to_owned()]], "{}", ended.stderr);
}

/// Rows of a database file.
fn rows(world: &World, file: &str, text: &str) -> Vec<Vec<String>> {
    let url = format!("sqlite:{}", world.scene.join(file).display());
    world.runtime.block_on(async {
        let pool = SqlitePool::connect(&url).await.expect("open");
        let rows = sqlx::query(AssertSqlSafe(text.to_owned())).fetch_all(&pool).await;
        let rows = rows.unwrap_or_else(|e| panic!("{text}: {e}"));
        pool.close().await;
        rows.iter()
            .map(|row| (0..row.len()).map(|n| row.get::<Option<String>, _>(n).unwrap_or_default()).collect())
            .collect()
    })
}

/// All that a rebuild has to bring back, by names and not by numbers.
const RESTORED: [&str; 4] = [
    "SELECT hex(p.relative_path), p.name, p.kind, s.short_name || '/' || l.name, CAST(p.size_bytes AS TEXT), \
     CAST(p.file_count AS TEXT), hex(p.identity), CAST(p.priority AS TEXT), p.policy, p.state, CAST(p.created_at AS TEXT), m.metadata \
     FROM raw_data_package p JOIN data_location l ON l.id = p.origin_location_id JOIN site s ON s.id = l.site_id \
     LEFT JOIN raw_data_package_metadata m ON m.package_id = p.id ORDER BY 1",
    "SELECT hex(p.relative_path), d.algorithm, hex(d.digest) FROM package_digest d \
     JOIN raw_data_package p ON p.id = d.package_id ORDER BY 1, 2",
    "SELECT hex(p.relative_path), hex(c.path), CAST(c.size_bytes AS TEXT), c.status, c.verification FROM physical_copy c \
     JOIN raw_data_package p ON p.id = c.package_id JOIN data_location l ON l.id = c.location_id \
     WHERE l.name = 'archive' ORDER BY 1",
    "SELECT hex(p.relative_path), v.algorithm, hex(v.expected_digest), hex(v.found_digest), CAST(v.found_size_bytes AS TEXT), \
     v.method, v.medium, CAST(v.cached AS TEXT), v.read_how, v.host, v.version, CAST(v.started_at AS TEXT), \
     CAST(v.ended_at AS TEXT) FROM verification_record v JOIN raw_data_package p ON p.id = v.package_id \
     JOIN data_location l ON l.id = v.location_id WHERE l.name = 'archive' ORDER BY 1",
];

#[test]
fn a_lost_database_is_rebuilt_from_sidecars_alone() {
    let packages = usize::try_from(crate::harness::count("packages", 500)).expect("a number");
    let (world, root, names, daemons) = archived("rebuild", packages);
    drop(daemons);
    let before = RESTORED.map(|text| rows(&world, "control.db", text));
    assert!(before.iter().all(|rows| rows.len() == names.len()), "{}", before[3].len());
    let other = format!("sqlite:{}", world.scene.join("other.db").display());
    let say = |words: &[&str], code: i32| {
        let mut command = world.command(words);
        command.env("CCAT_XFER_DATABASE_URL", &other);
        spawn(&world.scene, command).wait(HANG).expect_code(code)
    };
    say(&["topology", "apply", "topology.toml"], 0);
    let rebuild = ["db", "rebuild", "--from", "cologne/archive"];
    let said = say(&rebuild, 0).said();
    assert!(said.contains(&format!("{packages} sidecars")) && said.contains("0 were refused"), "{said}");
    assert!(said.contains("nothing of their packages was read"), "{said}");
    assert!(said.contains("ccat-xfer verify --location cologne/archive"), "{said}");
    for (before, text) in before.iter().zip(RESTORED) {
        assert_eq!(rows(&world, "other.db", text), *before, "{text}");
    }
    let said = say(&rebuild, 0).said();
    assert!(said.contains("0 packages, 0 copies and 0 records are new"), "{said}");
    assert!(!said.contains("believed"), "{said}");
    // A torn one is told of, and costs nothing else.
    let torn = fs::read_dir(file_of(&root, &names[0]).parent().expect("a folder")).expect("list");
    let torn = torn.map(|e| e.expect("an entry").path()).find(|p| p.extension().is_some_and(|end| end == "json"));
    let torn = torn.expect("a sidecar");
    let bytes = fs::read(&torn).expect("read");
    make_writable(&torn);
    fs::write(&torn, &bytes[..bytes.len() / 2]).expect("tear it");
    let said = say(&rebuild, exit::PARTIAL);
    assert!(said.stderr.contains("torn"), "{}", said.stderr);
}

/// Catches archives whose room nobody tells.
#[test]
fn an_archive_that_is_full_says_so() {
    let full = Shelf { topology: "cached_read_back_counts = true\nkeep_free = \"1000000T\"", ..DISK };
    let world = World::new("full", Backend::Sqlite, &Terms { archives: &[full], ..TERMS });
    found(&world);
    let names = make_packages(&world, 1, &mut seed("full"));
    let _daemons = [manager(&world), worker(&world, "w1", &[])];
    let told = "FROM data_location WHERE name = 'archive'";
    let free = world.until("the room of the archive", &["free_bytes"], told, |row| !row[0].is_empty());
    assert!(free[0].parse::<u64>().expect("a number") > 0);
    // Nobody takes it on, so that there is time to ask.
    world.say(&["pause", "--location", "cologne/archive", "--reason", "a look"]);
    submit(&world, &names);
    world.until("a way into the archive", &["count(*)"], "FROM long_term_archive_transfer", |row| row[0] == "1");
    let said = world.say(&["explain", "a1"]).said();
    assert!(said.contains("bytes may be written there"), "{said}");
}

/// A tape system in a folder.
const SYSTEM: &str = r#"
verb=$1; shift
name() { printf '%s' "$root/$(printf '%s' "$1" | tr / _)"; }
root=$(dirname "$0")/objects
mkdir -p "$root"
case $verb in
put) cp "$1" "$(name "$2")" ;;
get) cp "$(name "$1")" "$2" ;;
stat) if [ -e "$(name "$1")" ]; then echo on_tape; else echo missing; fi ;;
esac
"#;

/// Catches what nobody read being counted as equal.
#[test]
fn a_look_says_what_it_did_not_read_and_why() {
    let settings = "[locations.\"cologne/vault\".tape]\nstaging = \"ROOT/staging\"\n\
         put = [\"/bin/sh\", \"ROOT/system\", \"put\", \"{source}\", \"{key}\"]\n\
         get = [\"/bin/sh\", \"ROOT/system\", \"get\", \"{key}\", \"{target}\"]\n\
         stat = [\"/bin/sh\", \"ROOT/system\", \"stat\", \"{key}\"]\ntape_poll = \"1s\"\n\
         on_tape_readback = \"none\"\nunread_reason = \"the library reads what it wrote\"";
    let vault = Shelf { name: "vault", storage: "tape", topology: "on_tape_readback = \"none\"", settings };
    let world = World::new("unread", Backend::Sqlite, &Terms { archives: &[vault], ..TERMS });
    let root = world.scene.folder("vault");
    fs::create_dir(root.join("staging")).expect("a folder");
    fs::write(root.join("system"), SYSTEM).expect("write the commands");
    let names = make_packages(&world, 1, &mut seed("unread"));
    let daemons = [manager(&world), worker_of(&world, "w1", &["vault"], &[])];
    submit(&world, &names);
    until_archived(&world, 1);
    let verify = |more: &[&str]| {
        let words = [&["verify", "--location", "cologne/vault"], more].concat();
        spawn(&world.scene, world.command(&words)).wait(HANG).expect_code(0).said()
    };
    let said = verify(&[]);
    assert!(said.contains("NOT READ (not read: the library reads what it wrote)"), "{said}");
    assert!(
        said.contains("0 packages of cologne/vault were read") && said.contains("1 packages were not read"),
        "{said}"
    );
    let said = verify(&["--json"]);
    assert!(said.contains("\"equal\":0") && said.contains("\"not_read\":1"), "{said}");
    drop(daemons);
}
