//! Nothing leaves the destination: not by the spelling of a path, not by links that are there, not by links put in
//! place of folders while files are written.

mod harness;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ccat_xfer::{
    chunk::{Digest, RelPath},
    disk::{FileMeta, Root},
    journal::{PartStore, Publish, PublishMode, PublishOutcome, Staged, StoreOptions},
};
use harness::{Rng, Scene, count, say, seed};
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// What is below a folder: inode, size, times and link target of everything.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64, Option<PathBuf>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).expect("read a folder").flatten().map(|e| e.path()));
        }
        let entry = (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), fs::read_link(&path).ok());
        found.insert(path, entry);
    }
    found
}

fn store(at: &Path) -> PartStore {
    let root = Arc::new(Root::open(at).expect("open the root"));
    PartStore::open(root, StoreOptions { lock_wait: Duration::ZERO, job: None }).expect("open the store")
}

/// Tries to put a small file there with all that belongs to it. True if it arrived somewhere.
fn put(store: &PartStore, path: &RelPath, data: &[u8]) -> bool {
    if let Some((parent, _)) = path.split_last()
        && store.root().make_dirs(&parent, 0o755).is_err()
    {
        return false;
    }
    let Ok(part) = store.write_small(path, data, Digest::of(data), &FileMeta::default()) else { return false };
    let publish = Publish { staged: Staged::Small(part), meta: FileMeta::default(), mode: PublishMode::NoReplace };
    match store.publish(std::slice::from_ref(&publish)) {
        Ok(outcomes) if matches!(outcomes.first(), Some(PublishOutcome::Published(_))) => true,
        // A part that found no place must go, or the next attempt finds it.
        _ => {
            let _ = store.discard(&publish.staged);
            false
        }
    }
}

const NAMES: [&[u8]; 16] = [
    b"..",
    b".",
    b"",
    b"a",
    b"b",
    b"plain",
    b"up",
    b"out",
    b"root",
    b"loop",
    b"file-link",
    b".ccat-xfer",
    b"x\0y",
    b"\xff\xfe",
    b"...",
    b"a\nb",
];

#[test]
fn generated_paths_do_not_escape() {
    let mut rng = seed("generated_paths_do_not_escape");
    let scene = Scene::new("escape");
    let outside = scene.folder("outside");
    fs::create_dir_all(outside.join("a/b")).expect("a folder");
    fs::write(outside.join("target"), b"mine").expect("a file");
    let inside = scene.folder("inside");
    fs::create_dir_all(inside.join("a/b")).expect("a folder");
    for (name, target) in [
        ("up", Path::new("..")),
        ("out", &outside),
        ("root", Path::new("/")),
        ("loop", Path::new("loop")),
        ("file-link", &outside.join("target")),
        ("a/up", Path::new("../..")),
        ("a/b/out", &outside),
    ] {
        symlink(target, inside.join(name)).expect("plant a link");
    }
    // The scene's own folder is outside too.
    let before = (snapshot(&outside), names(scene.path()));
    let mut current = store(&inside);
    let (mut refused, mut put_there) = (0u64, 0u64);
    for n in 0..count("generated paths", 10_000) {
        let mut bytes = Vec::new();
        if rng.below(12) == 0 {
            bytes.push(b'/');
        }
        for depth in 0..=rng.below(5) {
            if depth > 0 {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(NAMES[rng.index(NAMES.len())]);
            if rng.below(200) == 0 {
                bytes.extend_from_slice(&[b'n'; 300]);
            }
        }
        let Ok(path) = RelPath::new(bytes) else {
            refused += 1;
            continue;
        };
        if put(&current, &path, &n.to_le_bytes()) {
            put_there += 1;
        }
        let _ = current.root().dir(&path);
        if current.poisoned().is_some() {
            current = store(&inside);
        }
    }
    say(&format!("{refused} refused by their spelling, {put_there} published inside"));
    assert!(refused > 0 && put_there > 0, "the paths must be of all kinds");
    assert!(before == (snapshot(&outside), names(scene.path())), "something outside changed");
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder).expect("read a folder").flatten().map(|e| e.path()).collect();
    names.sort();
    names
}

/// A folder on the way is exchanged with a link to the outside and back, as fast as the kernel does it.
#[test]
fn swapped_links_do_not_lead_outside() {
    let mut rng = seed("swapped_links_do_not_lead_outside");
    let scene = Scene::new("swap");
    let outside = scene.folder("outside");
    fs::create_dir_all(outside.join("b")).expect("a folder");
    let inside = scene.folder("inside");
    fs::create_dir_all(inside.join("a/b")).expect("a folder");
    symlink(&outside, inside.join("trap")).expect("plant a link");
    let before = snapshot(&outside);
    let wanted = count("symlink swaps", 100_000);
    let (swaps, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (mut arrived, mut poisoned) = (0u64, 0u64);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // The link stands for an instant only, at any instant, so that some step of a file's way meets it while the
            // steps before went well.
            let mut rng = Rng(7);
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..2 {
                    renameat_with(CWD, inside.join("a"), CWD, inside.join("trap"), RenameFlags::EXCHANGE)
                        .expect("exchange");
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_micros(rng.below(150)));
            }
        });
        let mut current = store(&inside);
        let mut n = 0u64;
        while swaps.load(Ordering::Relaxed) < wanted || n < 2_000 {
            n += 1;
            let text = match rng.below(3) {
                0 => format!("a/{n}"),
                1 => format!("a/b/{n}"),
                _ => format!("a/new{}/{n}", rng.below(50)),
            };
            let path = RelPath::new(text.into_bytes()).expect("a path");
            arrived += u64::from(put(&current, &path, b"inside"));
            // Handles kept from before a swap would hide the race.
            current.root().forget_handles();
            if current.poisoned().is_some() {
                current = store(&inside);
                poisoned += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    say(&format!(
        "{arrived} files were published and {poisoned} attempts ended during {} swaps",
        swaps.load(Ordering::Relaxed)
    ));
    assert!(before == snapshot(&outside), "something arrived outside");
}
