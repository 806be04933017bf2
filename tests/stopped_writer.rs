//! A receiver stopped with SIGSTOP still has its files open. A second run overtakes it; continued, it must not change a
//! byte of what its successor wrote.

mod harness;

use std::{path::Path, time::Duration};

use harness::{Far, Running, Scene, Transport, TreeSpec, Xfer, build, differences, exit, far_pids, kill, seed};
use rustix::process::Signal;

/// Starts a slow run and stops its receiver in mid-transfer. Returns the run and the receiver's process id.
fn stopped(xfer: &Xfer<'_>, scene: &Scene, push: bool, source: &Path, dest: &Path) -> (Running, i32) {
    let before = far_pids(scene).len();
    let mut run = xfer.clone().arg("--rate-limit").arg("40000000").spawn(push, source, dest);
    run.wait_until_under_way("stopped in mid-transfer");
    let receiver = if push { *far_pids(scene)[before..].first().expect("a far end") } else { run.pid() };
    kill(receiver, Signal::STOP);
    (run, receiver)
}

fn assert_same_but_parts(source: &Path, dest: &Path) {
    let real: Vec<String> = differences(source, dest)
        .into_iter()
        .filter(|line| !line.contains(".ccat-xfer"))
        .filter(|l| !l.ends_with(" ./"))
        .collect();
    assert!(real.is_empty(), "the copy differs:\n{}", real.join("\n"));
}

/// Continued after its successor has finished.
fn overtaken(push: bool, transport: Transport) {
    let scene = Scene::new("stopped");
    let (source, dest) = (scene.join("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(96 << 20, 200), &mut seed("stopped_writer"));
    let xfer = Xfer::new(&scene, Far::Rsh, transport).reconnect(Duration::from_secs(2));
    let (first, receiver) = stopped(&xfer, &scene, push, &source, &dest);
    xfer.run(push, &source, &dest).expect_code(exit::SUCCESS);
    assert_same_but_parts(&source, &dest);
    kill(receiver, Signal::CONT);
    // Success would be right too: it may find that all is there already. A crash or a hang would not.
    let ended = first.wait(Duration::from_secs(120));
    assert!(ended.code().is_some(), "ended by a signal: {ended:?}");
    scene.assert_no_engine_left(Duration::from_secs(30));
    assert_same_but_parts(&source, &dest);
}

/// Continued while its successor is at work.
fn overtaken_in_mid_transfer(push: bool) {
    let scene = Scene::new("stopped-mid");
    let (source, dest) = (scene.join("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(96 << 20, 200), &mut seed("stopped_writer"));
    let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp).reconnect(Duration::from_secs(2));
    let (first, receiver) = stopped(&xfer, &scene, push, &source, &dest);
    let mut second = xfer.clone().arg("--rate-limit").arg("12000000").spawn(push, &source, &dest);
    // Past the 5 s for which a successor waits for the lock.
    second.wait_until(Duration::from_secs(7), |_| false);
    kill(receiver, Signal::CONT);
    second.wait(Duration::from_secs(120)).expect_code(exit::SUCCESS);
    assert_same_but_parts(&source, &dest);
    let ended = first.wait(Duration::from_secs(120));
    assert!(ended.code().is_some(), "ended by a signal: {ended:?}");
    scene.assert_no_engine_left(Duration::from_secs(30));
    assert_same_but_parts(&source, &dest);
}

#[test]
fn push_overtaken_then_continued() {
    overtaken(true, Transport::Tcp);
}

#[test]
fn pull_overtaken_then_continued() {
    overtaken(false, Transport::Tcp);
}

#[test]
fn push_over_quic_overtaken_then_continued() {
    overtaken(true, Transport::Quic);
}

#[test]
fn push_continued_while_the_successor_works() {
    overtaken_in_mid_transfer(true);
}

#[test]
fn pull_continued_while_the_successor_works() {
    overtaken_in_mid_transfer(false);
}
