//! A tree arrives as it was: every transport, both directions, every way to reach the other end.
//!
//! The comparison is not ours: rsync reads both sides, and `b3sum` checks every digest that was printed.

mod harness;

use std::{fs, path::Path, sync::OnceLock};

use harness::{
    Endpoint, Far, Scene, Sshd, Transport, TreeSpec, Xfer, assert_same_tree, build, check_digests, exit, seed, skip,
};

/// The tree of the promise is built once; every test of this file reads it.
fn tree() -> &'static Path {
    static TREE: OnceLock<Scene> = OnceLock::new();
    let scene = TREE.get_or_init(|| {
        let scene = Scene::new("tree");
        build(&scene.join("tree"), &TreeSpec::promised(), &mut seed("roundtrip"));
        scene
    });
    // A static is never dropped; the next run sweeps its folder away.
    Box::leak(scene.join("tree").into_boxed_path())
}

fn round_trip(name: &str, far: &dyn Fn(&Scene) -> Started, transport: Transport, push: bool) {
    let scene = Scene::new(name);
    let dest = scene.join("dest");
    let started = far(&scene);
    let xfer = Xfer::new(&scene, started.far(), transport);
    let source = match &started {
        // An endpoint gives only what is below its location.
        Started::Serve(_) if !push => {
            let below = scene.join("location/tree");
            fs::create_dir_all(&below).expect("make a folder");
            copy_by_rsync(tree(), &below);
            below
        }
        _ => tree().to_owned(),
    };
    let dest = if matches!(started, Started::Serve(_)) && push { scene.join("location/dest") } else { dest };
    // The folder itself, not its contents: its own mode and times are compared too.
    fs::create_dir_all(&dest).expect("make a folder");
    let copy = dest.join(source.file_name().expect("a name"));
    let run = || {
        let command = if push { xfer.send(&[&source], &dest) } else { xfer.recv(&source, &dest) };
        harness::spawn(&scene, command).wait(harness::LIMIT).expect_code(exit::SUCCESS).events()
    };
    let events = run();
    let real: Vec<String> =
        harness::differences(&source, &copy).into_iter().filter(|l| !l.ends_with("/fifo")).collect();
    assert_eq!(real, [""; 0]);
    assert_same_tree(&source, &copy);
    let checked = check_digests(&events, &dest);
    let files = usize::try_from(events.number("files")).expect("a count");
    assert_eq!(checked, files, "every file has a digest in --json");
    assert_eq!(events.number("skipped"), 1, "the FIFO is counted");
    assert_eq!(events.transports(), [transport.word()], "the data went where it was told to");
    let small = source.join("small");
    assert!(files > fs::read_dir(small).expect("a folder").count(), "all files are in the count");

    // Again: everything is there already, and nothing travels.
    let again = run();
    assert_eq!(again.with_action("copied"), 0, "a second run copies nothing");
    let real: Vec<String> =
        harness::differences(&source, &copy).into_iter().filter(|l| !l.ends_with("/fifo")).collect();
    assert_eq!(real, [""; 0], "after the second run");
    if !matches!(started, Started::Serve(_)) {
        scene.assert_no_engine_left(std::time::Duration::from_secs(10));
    }
}

/// The far end of one test.
enum Started {
    Sshd(Sshd),
    Serve(Endpoint),
    Rsh,
}

impl Started {
    fn far(&self) -> Far<'_> {
        match self {
            Self::Sshd(sshd) => Far::Sshd(sshd),
            Self::Serve(endpoint) => Far::Serve(endpoint),
            Self::Rsh => Far::Rsh,
        }
    }
}

fn over_sshd(name: &str, transport: Transport, push: bool) {
    if let Some(reason) = Sshd::missing() {
        return skip(name, reason);
    }
    round_trip(name, &|scene| Started::Sshd(Sshd::start(scene)), transport, push);
}

fn over_serve(name: &str, transport: Transport, push: bool) {
    let start = |scene: &Scene| {
        let root = scene.folder("location");
        Started::Serve(Endpoint::start(scene, &root, &["list", "read", "create"]))
    };
    round_trip(name, &start, transport, push);
}

fn copy_by_rsync(from: &Path, to: &Path) {
    let ok = std::process::Command::new("rsync").arg("-aHS").arg(from.join(".")).arg(to).status();
    assert!(ok.expect("rsync starts").success(), "rsync of the test tree");
}

#[test]
fn send_over_quic_by_sshd() {
    over_sshd("send_over_quic_by_sshd", Transport::Quic, true);
}

#[test]
fn recv_over_quic_by_sshd() {
    over_sshd("recv_over_quic_by_sshd", Transport::Quic, false);
}

#[test]
fn send_over_tcp_by_sshd() {
    over_sshd("send_over_tcp_by_sshd", Transport::Tcp, true);
}

#[test]
fn recv_over_tcp_by_sshd() {
    over_sshd("recv_over_tcp_by_sshd", Transport::Tcp, false);
}

#[test]
fn send_over_ssh_by_sshd() {
    over_sshd("send_over_ssh_by_sshd", Transport::Ssh, true);
}

#[test]
fn recv_over_ssh_by_sshd() {
    over_sshd("recv_over_ssh_by_sshd", Transport::Ssh, false);
}

#[test]
fn send_over_ssh_by_a_plain_remote_shell() {
    round_trip("send_over_ssh_by_a_plain_remote_shell", &|_| Started::Rsh, Transport::Ssh, true);
}

#[test]
fn send_over_quic_to_serve() {
    over_serve("send_over_quic_to_serve", Transport::Quic, true);
}

#[test]
fn recv_over_quic_from_serve() {
    over_serve("recv_over_quic_from_serve", Transport::Quic, false);
}

#[test]
fn send_over_tcp_to_serve() {
    over_serve("send_over_tcp_to_serve", Transport::Tcp, true);
}

#[test]
fn recv_over_tcp_from_serve() {
    over_serve("recv_over_tcp_from_serve", Transport::Tcp, false);
}

/// The host's name stands in ssh's configuration alone: where to send data must come from the ssh connection itself.
#[test]
fn a_host_that_only_ssh_knows_is_reached_directly() {
    let name = "a_host_that_only_ssh_knows_is_reached_directly";
    if let Some(reason) = Sshd::missing() {
        return skip(name, reason);
    }
    let scene = Scene::new("alias");
    let sshd = Sshd::start(&scene);
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(9 << 20, 20), &mut seed(name));
    let dest = scene.join("dest");
    let mut command =
        Xfer::new(&scene, Far::Sshd(&sshd), Transport::Auto).send(&[&harness::with_slash(&source)], &dest);
    let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let mut renamed = std::process::Command::new(command.get_program());
    for word in &words[..words.len() - 1] {
        renamed.arg(word);
    }
    renamed.arg(format!("alias:{}", dest.display()));
    harness::own_home(&scene, &mut renamed);
    command = renamed;
    let events = harness::spawn(&scene, command).wait(harness::LIMIT).expect_code(exit::SUCCESS).events();
    assert!(
        !events.transports().contains(&"ssh".to_owned()),
        "a direct link was there to be had: {}",
        events.summary()
    );
    assert_same_tree(&source, &dest);
}

/// `auto` on one machine finds a direct link and says why it took it.
#[test]
fn auto_takes_a_direct_link_and_says_why() {
    let scene = Scene::new("auto");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(9 << 20, 50), &mut seed("auto"));
    for push in [true, false] {
        let dest = scene.join(if push { "pushed" } else { "pulled" });
        let done = Xfer::new(&scene, Far::Rsh, Transport::Auto).run(push, &source, &dest).expect_code(exit::SUCCESS);
        let events = done.events();
        assert!(events.transports().iter().any(|t| t == "quic" || t == "tcp"), "{}", events.summary());
        assert!(events.summary()["transport_reason"].as_str().is_some_and(|t| !t.is_empty()), "{}", events.summary());
        assert_same_tree(&source, &dest);
    }
}

/// What a path means: a folder without a trailing slash arrives under its own name, one file to a new name is that file.
#[test]
fn names_mean_what_they_mean_in_rsync_and_cp() {
    let scene = Scene::new("names");
    let source = scene.join("night");
    build(&source, &TreeSpec::plain(100_000, 8), &mut seed("names"));
    for push in [true, false] {
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Ssh);
        let into = scene.folder(if push { "into-push" } else { "into-pull" });
        let run = |from: &Path, to: &Path| {
            let command = if push { xfer.send(&[from], to) } else { xfer.recv(from, to) };
            harness::spawn(&scene, command).wait(harness::LIMIT).expect_code(exit::SUCCESS)
        };
        run(&source, &into);
        assert_same_tree(&source, &into.join("night"));
        run(&source.join("large.bin"), &into.join("renamed.bin"));
        assert_eq!(fs::read(source.join("large.bin")).unwrap(), fs::read(into.join("renamed.bin")).unwrap());
        run(&source.join("large.bin"), &into);
        assert!(into.join("large.bin").is_file(), "a file into a folder that is there");
        run(&source, &into.join("new"));
        assert_same_tree(&source, &into.join("new"));
    }
}

/// The contents of a folder become those of another, and its times and mode come along, as with rsync.
#[test]
fn the_contents_of_a_folder_take_its_times_along() {
    let scene = Scene::new("contents");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(1 << 20, 10), &mut seed("contents"));
    for push in [true, false] {
        let dest = scene.join(if push { "pushed" } else { "pulled" });
        Xfer::new(&scene, Far::Rsh, Transport::Tcp).run(push, &source, &dest).expect_code(exit::SUCCESS);
        assert_eq!(harness::differences(&source, &dest), [""; 0]);
    }
}

/// `--read-back` reads what was written before it is published, and says how.
#[test]
fn read_back_is_reported() {
    let scene = Scene::new("read-back");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(20 << 20, 30), &mut seed("read-back"));
    let dest = scene.join("dest");
    let done = Xfer::new(&scene, Far::Rsh, Transport::Tcp).arg("--read-back").run(true, &source, &dest);
    let events = done.expect_code(exit::SUCCESS).events();
    assert_same_tree(&source, &dest);
    assert_eq!(check_digests(&events, &dest), 31);
}

/// `--dry-run` says what would happen and does nothing.
#[test]
fn a_dry_run_changes_nothing() {
    let scene = Scene::new("dry-run");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(1 << 20, 10), &mut seed("dry-run"));
    let dest = scene.folder("dest");
    let done = Xfer::new(&scene, Far::Rsh, Transport::Ssh).arg("--dry-run").run(true, &source, &dest);
    let events = done.expect_code(exit::SUCCESS).events();
    let files = events.files.iter().filter(|f| f["action"] == "would_copy" && f["size"].as_u64() > Some(0)).count();
    assert_eq!(files, 11, "every file is told");
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 0, "nothing was made, not even a folder for parts");
}

/// The manifest is one that `b3sum -c` reads, and `verify` finds a flipped bit with it.
#[test]
fn a_manifest_checks_out_with_b3sum_and_verify() {
    let scene = Scene::new("manifest");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(5 << 20, 12), &mut seed("manifest"));
    let dest = scene.join("dest");
    let manifest = scene.join("manifest.b3");
    let done = Xfer::new(&scene, Far::Rsh, Transport::Tcp).arg("--manifest").arg(&manifest).run(true, &source, &dest);
    done.expect_code(exit::SUCCESS);
    let b3sum = |folder: &Path| {
        std::process::Command::new("b3sum")
            .arg("--check")
            .arg(&manifest)
            .current_dir(folder)
            .output()
            .expect("b3sum starts")
    };
    assert!(b3sum(&dest).status.success(), "b3sum -c: {}", String::from_utf8_lossy(&b3sum(&dest).stdout));
    let verify = || {
        let mut command = std::process::Command::new(harness::PROGRAM);
        command.arg("verify").arg("--manifest").arg(&manifest).arg(&dest);
        harness::own_home(&scene, &mut command);
        harness::spawn(&scene, command).wait(harness::LIMIT)
    };
    verify().expect_code(exit::SUCCESS);
    harness::flip_bit(&dest.join("large.bin"), 3_000_000);
    verify().expect_code(exit::INTEGRITY);
}
