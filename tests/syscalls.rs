//! The kernel says no: a sync that fails at every possible place, a write that fails, a rename that fails. A run that
//! met one never reports success, and the next run is right.

mod harness;

use std::{
    fs,
    time::{Duration, Instant},
};

use harness::{Far, Scene, Transport, TreeSpec, Xfer, assert_same_tree, build, exit, full, have, say, seed, skip};

/// What a sweep may take; it says how far it came.
const BUDGET: Duration = Duration::from_secs(60);

fn strace_works(test: &str) -> bool {
    if !have("strace") {
        skip(test, "strace is not installed");
        return false;
    }
    let works = std::process::Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "trace=fsync", "true"])
        .status()
        .is_ok_and(|s| s.success());
    if !works {
        skip(test, "strace may not trace here");
    }
    works
}

/// Fails the `n`th call of each thread to any of `calls`, for n = 1, 2, ... until no call is reached any more. The
/// receiver is the traced end: it starts the job itself when it pulls, and is started under strace when it is pushed to.
fn sweep(test: &str, calls: &str, error: &str, push: bool) {
    if !strace_works(test) {
        return;
    }
    let started = Instant::now();
    let (mut injected, mut n) = (0u32, 0u32);
    let most = if full() { 1_000 } else { 40 };
    loop {
        n += 1;
        let scene = Scene::new("syscalls");
        let (source, dest) = (scene.folder("source"), scene.join("dest"));
        build(&source, &TreeSpec::plain(9 << 20, 40), &mut seed(test));
        let log = scene.join("strace.log");
        let words = [
            "strace",
            "-f",
            "-y",
            "--seccomp-bpf",
            "-o",
            log.to_str().expect("UTF-8"),
            "-e",
            &format!("trace={calls}"),
            "-e",
            &format!("inject={calls}:error={error}:when={n}"),
        ];
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp).reconnect(Duration::from_secs(2));
        let faulty =
            if push { xfer.clone().remote_path(on_strace(&scene, &words)) } else { xfer.clone().under(&words) };
        let done = faulty.run(push, &source, &dest);
        let trace = fs::read_to_string(&log).unwrap_or_default();
        let hits: Vec<&str> = trace.lines().filter(|line| line.contains("(INJECTED)")).collect();
        let hit = hits.len();
        if hit > 0 {
            injected += 1;
            assert!(
                done.code().is_some_and(|c| c != exit::SUCCESS),
                "{calls} call {n} failed with {error} and the run reports {:?}: {hits:#?}\n{}",
                done.code(),
                done.stderr
            );
            assert!(!done.stderr.contains("panicked at"), "{}", done.stderr);
            xfer.run(push, &source, &dest).expect_code(exit::SUCCESS);
        } else {
            done.expect_code(exit::SUCCESS);
        }
        assert_same_tree(&source, &dest);
        if hit == 0 || n == most || started.elapsed() > BUDGET && !full() {
            let why = if hit == 0 { "all places reached" } else { "stopped early" };
            say(&format!("{test}: {calls} {error}: {injected} runs with a failed call, {why}"));
            assert!(injected > 0, "not one call was reached: the sweep tests nothing");
            return;
        }
    }
}

/// The far end's program: a script that runs it under strace.
fn on_strace(scene: &Scene, words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
    let path = scene.join("strace-far");
    harness::script(&path, &format!("exec {} {} \"$@\"\n", quoted.join(" "), harness::PROGRAM));
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn every_failed_sync_of_a_pulling_receiver_is_told() {
    sweep("every_failed_sync_of_a_pulling_receiver_is_told", "fsync,fdatasync,syncfs", "EIO", false);
}

#[test]
fn every_failed_sync_of_a_receiver_pushed_to_is_told() {
    sweep("every_failed_sync_of_a_receiver_pushed_to_is_told", "fsync,fdatasync,syncfs", "EIO", true);
}

#[test]
fn every_failed_write_is_told() {
    sweep("every_failed_write_is_told", "pwrite64,pwritev,pwritev2", "ENOSPC", false);
}

#[test]
fn every_failed_rename_is_told() {
    sweep("every_failed_rename_is_told", "renameat2,renameat,rename,linkat", "EIO", false);
}
