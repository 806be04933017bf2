use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, fs::symlink},
    path::Path,
    process::Command,
};

use rustix::{
    fs::{FileType, Mode, mkdirat, mknodat},
    process::{Gid, Uid},
};

use super::*;

fn walk(sources: &[&Path]) -> Walk {
    Walk::new(&sources.iter().map(|p| p.to_path_buf()).collect::<Vec<_>>()).unwrap()
}

/// `dir` with a trailing slash.
fn contents(dir: &Path) -> PathBuf {
    dir.join("")
}

fn line(found: &Found) -> String {
    match found {
        Found::Entry(entry) => match &entry.kind {
            Kind::Dir => format!("D {}", entry.path),
            Kind::DirEnd => format!("E {}", entry.path),
            Kind::File => format!("F {} {}", entry.path, entry.meta.size),
            Kind::Symlink { target } => format!("L {} {}", entry.path, escape_bytes(target)),
        },
        Found::Skipped { path, reason } => format!("S {} {reason:?}", escape_bytes(path)),
        Found::Failed { path, class, text } => format!("! {} {class} {text}", escape_bytes(path)),
    }
}

fn lines(walk: Walk) -> Vec<String> {
    walk.map(|found| line(&found)).collect()
}

fn make(dir: &Path, files: &[&str]) {
    for file in files {
        let path = dir.join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file.as_bytes()).unwrap();
        }
    }
}

/// Seen to fail with directories compared by their bare names: `a` is then before `a!`, though `a/b` is after it.
#[test]
fn order_is_the_byte_order_of_whole_paths() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["t/a/b", "t/a!", "t/a.txt", "t/a0", "t/b/", "t/a/z/z", "t/Z", "t/a-/x", "t/ab/c"]);
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut open = Vec::new();
    for found in walk(&[&temp.path().join("t")]) {
        let Found::Entry(entry) = found else { panic!("{found:?}") };
        let mut key = entry.path.as_bytes().to_vec();
        match entry.kind {
            Kind::Dir => {
                key.push(b'/');
                open.push(key.clone());
                keys.push(key);
            }
            Kind::DirEnd => {
                key.push(b'/');
                assert_eq!(open.pop().unwrap(), key);
            }
            _ => keys.push(key),
        }
    }
    assert!(open.is_empty());
    assert_eq!(keys.len(), 14);
    assert!(keys.is_sorted(), "{:?}", keys.iter().map(|k| escape_bytes(k)).collect::<Vec<_>>());
}

#[test]
fn a_trailing_slash_means_the_contents() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["d/f"]);
    let d = temp.path().join("d");
    let named = walk(&[&d]);
    assert_eq!(named.single(), Some((&b"d"[..], true)));
    assert_eq!(lines(named), ["D d", "F d/f 3", "E d"]);
    let inner = walk(&[&contents(&d)]);
    assert_eq!(inner.single(), None);
    assert_eq!(inner.roots()[0].path, d);
    assert_eq!(lines(inner), ["D ", "F f 3", "E "]);
    let file = walk(&[&d.join("f")]);
    assert_eq!(file.single(), Some((&b"f"[..], false)));
    assert_eq!(lines(file), ["F f 3"]);
}

#[test]
fn a_symlink_is_followed_only_as_argument_with_slash() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["d/f"]);
    symlink("d", temp.path().join("l")).unwrap();
    symlink("../..", temp.path().join("d/up")).unwrap();
    assert_eq!(lines(walk(&[&temp.path().join("l")])), ["L l d"]);
    assert_eq!(lines(walk(&[&temp.path().join("l/")])), ["D ", "F f 3", "L up ../..", "E "]);
}

#[test]
fn several_sources_merge_in_canonical_order() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["x/b/1", "y/a", "z/b.txt", "w/b"]);
    let p = |name: &str| temp.path().join(name);
    let merged = walk(&[&p("z/b.txt"), &p("x/b"), &p("y/a")]);
    assert_eq!(merged.single(), None);
    assert_eq!(lines(merged), ["F a 3", "F b.txt 7", "D b", "F b/1 5", "E b"]);
    let both = Walk::new(&[contents(&p("x")), contents(&p("y"))]).unwrap();
    assert_eq!(lines(both), ["D ", "F a 3", "D b", "F b/1 5", "E b", "E "]);
    // A file and a directory of one name are not neighbours in canonical order.
    let clash = Walk::new(&[p("x/b"), p("z/b.txt"), p("w/b")]).unwrap_err();
    assert_eq!(clash, SourceError::SameName { name: "b".into() });
}

#[test]
fn missing_sources_are_reported_and_all_missing_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["f"]);
    let (f, gone) = (temp.path().join("f"), temp.path().join("gone"));
    let got = lines(walk(&[&gone, &f]));
    assert_eq!(got[0], format!("! gone source source {} does not exist", gone.display()));
    assert_eq!(got[1..], ["F f 1"]);
    assert!(matches!(Walk::new(&[gone]), Err(SourceError::Unreadable { .. })));
    assert!(matches!(Walk::new(&[contents(&f)]), Err(SourceError::Unreadable { .. })));
    assert_eq!(Walk::new(&[]).unwrap_err(), SourceError::Empty);
}

#[test]
fn names_are_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let long = [b'x'; 255];
    let names: [&[u8]; 6] = [b"\n", b" ", b"-rf", b"\xff\xfe", &long, b"..."];
    for name in names {
        fs::write(temp.path().join(OsStr::from_bytes(name)), b"").unwrap();
    }
    let mut got: Vec<Vec<u8>> = walk(&[&contents(temp.path())])
        .filter_map(|found| match found {
            Found::Entry(Entry { kind: Kind::File, path, .. }) => Some(path.as_bytes().to_vec()),
            _ => None,
        })
        .collect();
    assert!(got.is_sorted());
    let mut want: Vec<Vec<u8>> = names.iter().map(|n| n.to_vec()).collect();
    want.sort();
    got.sort();
    assert_eq!(got, want);
}

#[test]
fn what_cannot_be_copied_is_skipped_and_counted() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["d/.ccat-xfer/parts/1", "d/f", "d/e/.ccat-xfer/x"]);
    mknodat(CWD, temp.path().join("d/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("d/sock")).unwrap();
    assert_eq!(
        lines(walk(&[&temp.path().join("d")])),
        [
            "D d",
            "S d/.ccat-xfer Parts",
            "D d/e",
            "S d/e/.ccat-xfer Parts",
            "E d/e",
            "F d/f 3",
            "S d/pipe Fifo",
            "S d/sock Socket",
            "E d"
        ]
    );
    assert!(matches!(Walk::new(&[temp.path().join("d/.ccat-xfer")]), Err(SourceError::Parts { .. })));
}

#[test]
fn metadata_is_what_stat_says() {
    use std::os::unix::fs::MetadataExt;
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("f");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o4751)).unwrap();
    file.set_modified(std::time::UNIX_EPOCH - std::time::Duration::new(5, 250)).unwrap();
    fs::hard_link(&path, temp.path().join("g")).unwrap();
    let Some(Found::Entry(entry)) = walk(&[&path]).next() else { panic!() };
    let want = fs::metadata(&path).unwrap();
    assert_eq!(entry.meta.mode, 0o4751);
    assert_eq!(entry.meta.mtime, Time { seconds: -6, nanoseconds: 999_999_750 });
    assert_eq!(entry.meta.identity, Identity { dev: want.dev(), ino: want.ino() });
    assert_eq!((entry.meta.size, entry.meta.nlink), (1 << 20, 2));
    assert!(entry.meta.is_sparse());
}

/// Files and directories that vanish or change their kind between the directory's reading and their own.
#[test]
fn what_changes_underway_is_reported_and_the_walk_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let d = temp.path().join("d");
    make(&d, &["a/x", "b", "c", "e/x", "f/x", "z"]);
    let mut walk = walk(&[&d]);
    assert_eq!(line(&walk.next().unwrap()), "D d");
    fs::remove_file(d.join("b")).unwrap();
    fs::remove_file(d.join("c")).unwrap();
    fs::create_dir(d.join("c")).unwrap();
    fs::remove_dir_all(d.join("e")).unwrap();
    fs::remove_dir_all(d.join("f")).unwrap();
    symlink("/etc", d.join("f")).unwrap();
    let got: Vec<String> =
        walk.map(|found| line(&found)).map(|l| l.replace(temp.path().to_str().unwrap(), "")).collect();
    assert_eq!(
        got,
        [
            "D d/a",
            "F d/a/x 3",
            "E d/a",
            "! d/b source //d/b vanished while the source was read",
            "! d/c source //d/c was moved or replaced while it was read; run the command again",
            "! d/e source //d/e vanished while the source was read",
            "! d/f source //d/f was moved or replaced while it was read; run the command again",
            "F d/z 1",
            "E d"
        ]
        .map(|l| l.replace("//", "/"))
    );
}

/// Seen to fail with every level's handle kept.
#[test]
fn a_deep_tree_needs_few_handles() {
    let temp = tempfile::tempdir().unwrap();
    let depth = 1200;
    deepen(temp.path(), "d", depth);
    let mut walk = walk(&[&contents(temp.path())]);
    let (mut dirs, mut ends, mut most) = (0, 0, 0);
    while let Some(found) = walk.next() {
        most = most.max(walk.open_handles());
        let Found::Entry(entry) = found else { panic!("{found:?}") };
        match entry.kind {
            Kind::Dir => dirs += 1,
            Kind::DirEnd => ends += 1,
            _ => {}
        }
    }
    assert_eq!((dirs, ends), (depth + 1, depth + 1));
    assert!(most <= MAX_LEVEL_HANDLES + 1, "{most} handles");
    remove_deep(temp.path());
}

#[test]
fn the_way_back_from_the_deep_reads_the_siblings() {
    let temp = tempfile::tempdir().unwrap();
    let depth = 100;
    let mut at = temp.path().to_path_buf();
    for _ in 0..depth {
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("z"), b"").unwrap();
        at.push("d");
    }
    let got = lines(walk(&[&contents(temp.path())]));
    assert_eq!(got.iter().filter(|l| l.starts_with("F ")).count(), depth);
    assert_eq!(got.iter().filter(|l| l.starts_with('!')).count(), 0);
}

/// An ancestor whose handle was given up is moved away: its remaining names are failures, never read elsewhere.
#[test]
fn a_moved_ancestor_is_not_mistaken_for_another() {
    let temp = tempfile::tempdir().unwrap();
    let depth = MAX_LEVEL_HANDLES + 8;
    let mut at = temp.path().join("top");
    for _ in 0..depth {
        fs::create_dir_all(at.join("d")).unwrap();
        fs::write(at.join("z"), b"").unwrap();
        at.push("d");
    }
    let mut walk = walk(&[&temp.path().join("top")]);
    // top, then `depth` directories: the deepest is now open and the upper ones have no handle.
    for _ in 0..=depth {
        assert!(line(&walk.next().unwrap()).starts_with("D "));
    }
    // top/d/d moves out; what stands at its place has the same names.
    fs::rename(temp.path().join("top/d/d/d"), temp.path().join("moved")).unwrap();
    fs::rename(temp.path().join("top/d/d"), temp.path().join("old")).unwrap();
    make(temp.path(), &["top/d/d/d/", "top/d/d/z"]);
    let rest: Vec<String> = walk.map(|found| line(&found)).collect();
    let failures: Vec<&String> = rest.iter().filter(|l| l.starts_with('!')).collect();
    assert!(failures.iter().any(|l| l.starts_with("! top/d/d/z ")), "{failures:?}");
    assert_eq!(rest.last().unwrap(), "E top");
    assert_eq!(rest.iter().filter(|l| l.starts_with("E ")).count(), depth + 1);
    assert!(rest.contains(&"F top/z 0".to_owned()) && rest.contains(&"F top/d/z 0".to_owned()));
}

/// Paths of 4,095 bytes are copied, longer ones are reported.
#[test]
fn paths_end_at_the_limit() {
    let temp = tempfile::tempdir().unwrap();
    let name = "n".repeat(255);
    // 16 x 256 = 4,096 bytes with the file's name 254 long: one less than the limit allows.
    deepen(temp.path(), &name, 16);
    let found: Vec<Found> = walk(&[&contents(temp.path())]).collect();
    let deepest =
        found.iter().filter_map(|f| if let Found::Entry(e) = f { Some(e.path.as_bytes().len()) } else { None });
    assert_eq!(deepest.max(), Some(16 * 256 - 1));
    deepen(temp.path(), &name, 17);
    let got = lines(walk(&[&contents(temp.path())]));
    assert_eq!(got.iter().filter(|l| l.starts_with('!') && l.contains("longer than 4095 bytes")).count(), 1);
    remove_deep(temp.path());
}

/// Root reads everything, so the thread that walks gives up its user id (on Linux each thread has its own).
#[test]
fn unreadable_things_are_reported_and_the_walk_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    make(temp.path(), &["d/closed/x", "d/listed/x", "d/z"]);
    let mode =
        |path: &str, mode| fs::set_permissions(temp.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    mode("", 0o755);
    mode("d/closed", 0o000);
    mode("d/listed", 0o444);
    let source = temp.path().join("d");
    let got = std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let nobody = 65534;
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(nobody)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(nobody)).unwrap();
        }
        lines(Walk::new(&[source]).unwrap())
    })
    .join()
    .unwrap();
    mode("d/closed", 0o755);
    mode("d/listed", 0o755);
    assert_eq!(got.len(), 7, "{got:?}");
    assert!(got[1].starts_with("! d/closed source cannot open the folder ") && got[1].contains("permission denied"));
    assert_eq!(got[2], "D d/listed");
    assert!(got[3].starts_with("! d/listed/x source cannot read the metadata of "), "{got:?}");
    assert_eq!(got[4..], ["E d/listed", "F d/z 3", "E d"]);
}

#[test]
fn memory_is_one_directory_of_names() {
    let memory = Path::new("/dev/shm");
    let temp = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    for dir in 0..100 {
        let dir = temp.path().join(format!("directory-{dir:03}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..1000 {
            fs::File::create(dir.join(format!("file-{file:04}.fits"))).unwrap();
        }
    }
    let mut walk = walk(&[&contents(temp.path())]);
    let (mut files, mut most) = (0, 0);
    while let Some(found) = walk.next() {
        most = most.max(walk.held_bytes());
        files += u32::from(matches!(found, Found::Entry(Entry { kind: Kind::File, .. })));
    }
    assert_eq!(files, 100_000);
    // 1,000 names of 14 bytes and their index, rounded up by doubling.
    assert!(most < 128 << 10, "{most} bytes");
}

/// Makes `dir/name/name/...` to any depth.
fn deepen(dir: &Path, name: &str, depth: usize) {
    let mut at = openat(CWD, dir, DIR_FLAGS, Mode::empty()).unwrap();
    for _ in 0..depth {
        let _ = mkdirat(&at, name, Mode::RWXU);
        at = openat(&at, name, DIR_FLAGS, Mode::empty()).unwrap();
    }
}

/// The standard library removes recursively with one handle per level.
fn remove_deep(dir: &Path) {
    assert!(Command::new("rm").arg("-rf").arg("--").arg(dir).status().unwrap().success());
    fs::create_dir(dir).unwrap();
}
