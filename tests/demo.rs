//! The README's first command: it ends well, says what is real, writes nothing into the data it was given, and the
//! checks that it proposes hold.

mod harness;

use std::{path::Path, process::Command, time::Duration};

use harness::{Finished, PROGRAM, Rng, Scene, TreeSpec, assert_same_tree, build, own_home, spawn};

fn demo(scene: &Scene, args: &[&str], data: Option<&Path>) -> Finished {
    let mut command = Command::new(PROGRAM);
    command.arg("demo").args(args).env("TMPDIR", scene.folder("tmp"));
    if let Some(data) = data {
        command.arg("--data").arg(data);
    }
    own_home(scene, &mut command);
    spawn(scene, command).wait(Duration::from_secs(300)).expect_code(0)
}

/// The proposed command lines, run as a reader would.
fn proposals(said: &str) -> Vec<String> {
    said.lines()
        .map(str::trim)
        .filter(|line| {
            line.contains("b3sum") && (line.starts_with('(') || line.starts_with("b3sum")) && !line.ends_with(':')
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_demo_ends_with_a_verified_copy() {
    let scene = Scene::new("demo");
    let done = demo(&scene, &[], None);
    let said = String::from_utf8(done.stdout).expect("text");
    assert!(said.to_lowercase().contains("real"), "its first lines say what is real:\n{said}");
    let lines = proposals(&said);
    assert!(!lines.is_empty(), "it ends with checks to make by hand:\n{said}");
    for line in lines {
        let out = Command::new("sh").arg("-c").arg(&line).output().expect("sh starts");
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn the_demo_only_reads_ones_own_data() {
    let scene = Scene::new("demo-data");
    let data = scene.join("data");
    let untouched = scene.join("untouched");
    build(&data, &TreeSpec { odd: true, sparse: 4 << 20, ..TreeSpec::plain(3 << 20, 30) }, &mut Rng(3));
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&untouched).status();
    assert!(copied.expect("cp starts").success());
    demo(&scene, &["--rm"], Some(&data));
    assert_same_tree(&untouched, &data);
    let left = std::fs::read_dir(scene.folder("tmp")).expect("a folder").count();
    assert_eq!(left, 0, "--rm leaves nothing");
    scene.assert_no_engine_left(Duration::from_secs(10));
}
