//! Memory does not grow with what is sent: a huge sparse file, and a huge number of empty ones.

mod harness;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use harness::{Endpoint, Far, Scene, Transport, Xfer, assert_same_tree, command_line, exit, peak_rss_kib, say, size};

const LIMIT_KIB: u64 = 256 << 10;

/// The peak of every process of the program in this scene, by what it was called, while `work` runs.
fn peaks(scene: &Scene, work: impl FnOnce()) -> BTreeMap<i32, (u64, String)> {
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|threads| {
        let watch = threads.spawn(|| {
            let mut peaks = BTreeMap::new();
            while !stop.load(Ordering::Relaxed) {
                for pid in scene.engines() {
                    if let Some(kib) = peak_rss_kib(pid) {
                        let name = command_line(pid).split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" ");
                        peaks.insert(pid, (kib, name));
                    }
                }
                // The high-water mark needs no fine clock; only the last moments of a process are missed.
                std::thread::sleep(Duration::from_millis(30));
            }
            peaks
        });
        // Also when the work fails: the watch must end.
        struct Stop(Arc<AtomicBool>);
        impl Drop for Stop {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = Stop(Arc::clone(&stop));
        work();
        drop(guard);
        watch.join().expect("the watch does not panic")
    })
}

fn assert_small(what: &str, peaks: &BTreeMap<i32, (u64, String)>) {
    assert!(peaks.len() >= 2, "{what}: both ends must have been seen: {peaks:?}");
    for (kib, name) in peaks.values() {
        say(&format!("{what}: {name}: {} MiB at most", kib >> 10));
        assert!(*kib < LIMIT_KIB, "{what}: {name} held {} MiB", kib >> 10);
    }
}

#[test]
fn a_huge_sparse_file() {
    for (push, transport) in [(true, Transport::Tcp), (false, Transport::Quic), (true, Transport::Ssh)] {
        let scene = Scene::new("memory-sparse");
        let (source, dest) = (scene.folder("source"), scene.join("dest"));
        File::create(source.join("sparse")).and_then(|f| f.set_len(size(20 << 30))).expect("a sparse file");
        let peaks = peaks(&scene, || {
            Xfer::new(&scene, Far::Rsh, transport).run(push, &source, &dest).expect_code(exit::SUCCESS);
        });
        assert_small(&format!("{} GiB sparse over {}", size(20 << 30) >> 30, transport.word()), &peaks);
        assert_same_tree(&source, &dest);
    }
}

/// Dense bytes keep every buffer busy.
#[test]
fn a_large_dense_file() {
    for (push, transport) in
        [(true, Transport::Tcp), (false, Transport::Tcp), (true, Transport::Quic), (true, Transport::Ssh)]
    {
        let scene = Scene::new("memory-dense");
        let (source, dest) = (scene.folder("source"), scene.join("dest"));
        harness::write_file(&source.join("dense"), 600 << 20, &mut harness::Rng(5));
        let peaks = peaks(&scene, || {
            Xfer::new(&scene, Far::Rsh, transport).run(push, &source, &dest).expect_code(exit::SUCCESS);
        });
        assert_small(&format!("600 MiB dense over {}", transport.word()), &peaks);
    }
}

#[test]
fn very_many_empty_files() {
    let files = size(200_000);
    let scene = Scene::new("memory-many");
    let source = scene.folder("source");
    for n in 0..files {
        let folder = source.join(format!("{:03}", n / 1_000));
        if n % 1_000 == 0 {
            fs::create_dir(&folder).expect("a folder");
        }
        File::create(folder.join(format!("{n:06}"))).expect("a file");
    }
    for push in [true, false] {
        let dest = scene.join(if push { "pushed" } else { "pulled" });
        let peaks = peaks(&scene, || {
            let done = Xfer::new(&scene, Far::Rsh, Transport::Tcp).run(push, &source, &dest).expect_code(exit::SUCCESS);
            assert_eq!(done.events().number("files"), files);
        });
        assert_small(&format!("{files} empty files"), &peaks);
        assert_same_tree(&source, &dest);
    }
}

#[test]
fn an_endpoint_that_serves_many_files() {
    let files = size(50_000);
    let scene = Scene::new("memory-serve");
    let root = scene.folder("location");
    let source = scene.folder("source");
    for n in 0..files {
        fs::write(source.join(format!("{n:06}")), [7; 100]).expect("a file");
    }
    let endpoint = Endpoint::start(&scene, &root, &["list", "read", "create"]);
    let peaks = peaks(&scene, || {
        let xfer = Xfer::new(&scene, Far::Serve(&endpoint), Transport::Quic);
        xfer.run(true, &source, &root.join("dest")).expect_code(exit::SUCCESS);
        xfer.run(false, &root.join("dest"), &scene.join("back")).expect_code(exit::SUCCESS);
    });
    assert_small(&format!("{files} files through an endpoint"), &peaks);
    assert_same_tree(&source, &scene.join("back"));
}
