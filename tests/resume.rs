//! Either end killed at a random instant: the next run completes, and sends little again. Transport and direction
//! change between the runs, as the journal must not care.

mod harness;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use harness::{
    Endpoint, Events, Far, Rng, Scene, Transport, TreeSpec, Xfer, assert_same_tree, build, check_digests, count, exit,
    far_pids, kill, processes_with, say, seed, size, spawn,
};
use rustix::process::Signal;

/// What may be lost with a process: one group (at most 256 MiB) and what the buffers of both ends hold.
const LOST_AT_MOST: u64 = (256 << 20) + 2 * (96 << 20);
/// QUIC's largest datagram here, in bytes.
const LARGEST_DATAGRAM: u64 = 6550;
/// Stretches the runs, so that an instant within one can be hit: 60 MB/s.
const RATE: u64 = 60_000_000;

struct Round<'a> {
    scene: &'a Scene,
    source: &'a Path,
    dest: &'a Path,
}

impl Round<'_> {
    fn xfer(&self, transport: Transport) -> Xfer<'_> {
        Xfer::new(self.scene, Far::Rsh, transport).reconnect(Duration::from_secs(1))
    }

    /// Starts a run, kills one end after `after`, waits until the other has gone by itself. What was printed until then,
    /// or `None` if the run was over before.
    fn killed(&self, transport: Transport, push: bool, kill_sender: bool, after: Duration) -> Option<Events> {
        let before = far_pids(self.scene).len();
        let xfer = self.xfer(transport).arg("--rate-limit").arg(RATE.to_string());
        let mut run = xfer.spawn(push, self.source, self.dest);
        run.wait_until(after, |_| false);
        if !run.is_running() {
            run.wait(Duration::from_secs(10)).expect_code(exit::SUCCESS);
            return None;
        }
        let initiator_is_victim = push == kill_sender;
        let out = if initiator_is_victim {
            Some(run.kill_now().stdout)
        } else {
            for pid in &far_pids(self.scene)[before..] {
                kill(*pid, Signal::KILL);
            }
            // The end that is left waits for its peer as long as it was told to, then says what happened. It may have had
            // all that it needed: then it was over before, too.
            let left = run.wait(Duration::from_secs(60)).expect_one_of(&[exit::SUCCESS, exit::NETWORK, exit::PARTIAL]);
            (left.code() != Some(exit::SUCCESS)).then_some(left.stdout)
        };
        // A far end that was killed off before its first link came up waits for that one for 30 s.
        self.scene.assert_no_engine_left(Duration::from_secs(45));
        out.map(|out| Events::parse(&out))
    }
}

fn orders(rng: &mut Rng) -> (Transport, bool) {
    (*rng.pick(&Transport::ALL), rng.coin())
}

/// A name that does not exist yet is that of the copy. The same command must mean the same when the interrupted run has
/// made it.
#[test]
fn a_folder_goes_on_under_its_new_name() {
    let mut rng = seed("a_folder_goes_on_under_its_new_name");
    let scene = Scene::new("new-name");
    let source = scene.join("source");
    let large = 24 << 20;
    build(&source, &TreeSpec::plain(large, 20), &mut rng);
    let root = scene.folder("location");
    let endpoint = Endpoint::start(&scene, &root, &["create", "read"]);
    for (n, (push, far)) in [(true, Far::Rsh), (false, Far::Rsh), (true, Far::Serve(&endpoint))].into_iter().enumerate()
    {
        let parent = root.join(format!("parent-{n}"));
        fs::create_dir(&parent).expect("a folder");
        let (dest, parts) = (parent.join("new"), parent.join(".ccat-xfer"));
        let slow = Xfer::new(&scene, far, Transport::Tcp).arg("--rate-limit").arg("8M");
        let command = |xfer: &Xfer<'_>| {
            if push { xfer.send(&[&source], &dest) } else { xfer.recv(&source, &dest) }
        };
        let mut run = spawn(&scene, command(&slow));
        assert!(run.wait_until(Duration::from_secs(60), |_| dest.exists()), "run {n} made no folder");
        run.signal(Signal::INT);
        run.wait(Duration::from_secs(60)).expect_code(exit::CANCELLED);
        let events = spawn(&scene, command(&Xfer::new(&scene, far, Transport::Tcp)))
            .wait(Duration::from_secs(120))
            .expect_code(exit::SUCCESS)
            .events();
        assert_eq!(events.number("bytes"), large + 20 * (10 << 10), "run {n}");
        assert_same_tree(&source, &dest);
        assert!(!parts.exists(), "run {n} left {}", parts.display());
        // That job has come to its end: now the name is a folder that the source is put into.
        spawn(&scene, command(&Xfer::new(&scene, far, Transport::Tcp)))
            .wait(Duration::from_secs(120))
            .expect_code(exit::SUCCESS);
        assert_same_tree(&source, &dest.join("source"));
    }
}

#[test]
fn a_killed_end_costs_one_group_at_most() {
    let mut rng = seed("a_killed_end_costs_one_group_at_most");
    let kills = count("SIGKILL at random instants", 200);
    let scene = Scene::new("resume");
    let source = scene.join("source");
    let large = if harness::full() { 1 << 30 } else { 96 << 20 };
    build(&source, &TreeSpec::plain(large, size(3_000)), &mut rng);
    let total = large + size(3_000) * (10 << 10);
    let length = Duration::from_millis(total * 1000 / RATE + 300);
    let (mut hit, mut late, mut held) = (0u64, 0u64, 0u64);
    let mut n = 0u64;
    while hit < kills {
        assert!(late < kills * 4, "most runs ended before they could be killed");
        let dest = scene.join(&format!("dest-{n}"));
        n += 1;
        let round = Round { scene: &scene, source: &source, dest: &dest };
        let mut durable = 0;
        let mut done = 0;
        let mut story = String::new();
        for _ in 0..=rng.below(3) {
            let (transport, push) = orders(&mut rng);
            let kill_sender = hit % 2 == 0;
            let after = Duration::from_millis(rng.below(u64::try_from(length.as_millis()).expect("small")));
            story += &format!(
                "{} over {}, {} killed after {after:?}; ",
                if push { "push" } else { "pull" },
                transport.word(),
                if kill_sender { "sender" } else { "receiver" }
            );
            let Some(events) = round.killed(transport, push, kill_sender, after) else {
                late += 1;
                continue;
            };
            hit += 1;
            durable = durable.max(events.durable());
            done = done.max(events.done());
        }
        let (transport, push) = orders(&mut rng);
        story += &format!("then {} over {}", if push { "push" } else { "pull" }, transport.word());
        let finished = round.xfer(transport).run(push, &source, &dest);
        let events = finished.expect_code(exit::SUCCESS).events();
        assert_same_tree(&source, &dest);
        check_digests(&events, &dest);
        let resumed = events.number("bytes_resumed");
        let wire = events.number("wire_bytes");
        assert_eq!(events.number("bytes"), total, "{story}");
        // Acknowledged as durable means: it never travels again.
        assert!(resumed >= durable, "{durable} bytes were durable, {resumed} were resumed: {story}");
        assert!(resumed + LOST_AT_MOST >= done, "{done} bytes had arrived, {resumed} were resumed: {story}");
        let fresh = total - resumed;
        // What the network lost travels again; that is no fault of resuming.
        let lost = events.number("retransmits") * LARGEST_DATAGRAM;
        assert!(
            wire <= fresh + fresh / 20 + (8 << 20) + lost,
            "{wire} bytes on the wire for {fresh} that were missing: {story}"
        );
        held += resumed;
        fs::remove_dir_all(&dest).expect("remove a copy");
    }
    say(&format!("{hit} kills in {n} rounds, {late} runs ended first, {held} bytes resumed"));
    assert!(held > 0, "not one byte was ever resumed");
}

/// The disk changed what a part holds while nobody looked: the bytes decide, not the journal.
#[test]
fn a_bit_flipped_in_a_part_is_found() {
    let mut rng = seed("a_bit_flipped_in_a_part_is_found");
    for round in 0..4 {
        let scene = Scene::new("flip");
        let (source, dest) = (scene.join("source"), scene.join("dest"));
        build(&source, &TreeSpec::plain(96 << 20, 0), &mut rng);
        let run = Round { scene: &scene, source: &source, dest: &dest };
        let after = Duration::from_millis(1_300);
        assert!(run.killed(Transport::Tcp, true, round % 2 == 0, after).is_some(), "killed in mid-transfer");
        let part = largest_below(&dest.join(".ccat-xfer")).expect("a killed run leaves a part");
        harness::flip_bit(&part, rng.below(32 << 20));
        let done = run.xfer(Transport::Tcp).run(round < 2, &source, &dest).expect_code(exit::SUCCESS);
        assert_same_tree(&source, &dest);
        check_digests(&done.events(), &dest);
    }
}

/// Damaged, cut or emptied journals cost time, never data.
#[test]
fn a_damaged_journal_is_survived() {
    let mut rng = seed("a_damaged_journal_is_survived");
    for round in 0..6u64 {
        let scene = Scene::new("journal");
        let (source, dest) = (scene.join("source"), scene.join("dest"));
        build(&source, &TreeSpec::plain(64 << 20, 100), &mut rng);
        let run = Round { scene: &scene, source: &source, dest: &dest };
        run.killed(Transport::Ssh, true, round % 2 == 0, Duration::from_millis(900));
        let large = largest_below(&dest.join(".ccat-xfer"));
        for file in files_below(&dest.join(".ccat-xfer")) {
            if Some(&file) == large.as_ref() {
                continue;
            }
            let len = fs::metadata(&file).expect("metadata").len();
            match round % 3 {
                0 if len > 0 => harness::flip_bit(&file, rng.below(len)),
                1 => {
                    fs::File::options().write(true).open(&file).expect("open").set_len(rng.below(len + 1)).expect("cut")
                }
                2 => {
                    let mut bytes = fs::read(&file).expect("read");
                    bytes.extend_from_slice(&[0x5a; 100]);
                    fs::write(&file, bytes).expect("write");
                }
                _ => {}
            }
        }
        run.xfer(Transport::Ssh).run(true, &source, &dest).expect_code(exit::SUCCESS);
        // What cannot be read belongs to nobody and is left to `clean`.
        let real: Vec<String> = harness::differences(&source, &dest)
            .into_iter()
            .filter(|l| !l.contains(".ccat-xfer") && !l.ends_with(" ./"))
            .collect();
        assert_eq!(real, [""; 0]);
    }
}

/// The source changed between the runs: what is published is the source as it is now.
#[test]
fn a_source_that_changed_between_runs_arrives_as_it_is_now() {
    let mut rng = seed("a_source_that_changed_between_runs_arrives_as_it_is_now");
    let scene = Scene::new("changed");
    let (source, dest) = (scene.join("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(96 << 20, 50), &mut rng);
    let run = Round { scene: &scene, source: &source, dest: &dest };
    run.killed(Transport::Tcp, true, false, Duration::from_millis(1_200));
    // Times as before: only the bytes tell.
    harness::flip_bit(&source.join("large.bin"), 5);
    harness::flip_bit(&source.join("large.bin"), 50 << 20);
    run.xfer(Transport::Quic).run(true, &source, &dest).expect_code(exit::SUCCESS);
    assert_same_tree(&source, &dest);
    // And a shorter one.
    fs::File::options().write(true).open(source.join("large.bin")).unwrap().set_len(10 << 20).unwrap();
    let other = scene.join("other");
    let run = Round { dest: &other, ..run };
    run.xfer(Transport::Tcp).run(false, &source, &other).expect_code(exit::SUCCESS);
    assert_same_tree(&source, &other);
}

/// Ctrl-C ends both ends at once and leaves a state that the next run takes up.
#[test]
fn an_interrupt_ends_both_ends_at_once() {
    let mut rng = seed("an_interrupt_ends_both_ends_at_once");
    for push in [true, false] {
        for transport in Transport::ALL {
            let scene = Scene::new("interrupt");
            let (source, dest) = (scene.join("source"), scene.join("dest"));
            build(&source, &TreeSpec::plain(96 << 20, 20), &mut rng);
            // Ten minutes of patience, which an interrupt must cut short.
            let xfer = Xfer::new(&scene, Far::Rsh, transport).reconnect(Duration::from_secs(600));
            let mut run = xfer.clone().arg("--rate-limit").arg(RATE.to_string()).spawn(push, &source, &dest);
            run.wait_until_under_way("interrupted in mid-transfer");
            run.signal(Signal::INT);
            run.wait(Duration::from_secs(20)).expect_code(exit::CANCELLED);
            scene.assert_no_engine_left(Duration::from_secs(10));
            let events = xfer.run(push, &source, &dest).expect_code(exit::SUCCESS).events();
            assert!(events.number("bytes_resumed") > 0, "what had arrived was kept: {}", events.summary());
            assert_same_tree(&source, &dest);
        }
    }
}

/// `clean` lists and removes what an abandoned run left.
#[test]
fn clean_removes_left_over_parts() {
    let scene = Scene::new("clean");
    let (source, dest) = (scene.join("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(64 << 20, 0), &mut seed("clean"));
    let run = Round { scene: &scene, source: &source, dest: &dest };
    assert!(run.killed(Transport::Tcp, true, true, Duration::from_millis(700)).is_some());
    assert!(dest.join(".ccat-xfer").exists(), "a killed run leaves a part");
    let clean = |args: &[&str]| {
        let mut command = std::process::Command::new(harness::PROGRAM);
        command.arg("clean").args(args).arg(&dest);
        harness::own_home(&scene, &mut command);
        spawn(&scene, command).wait(Duration::from_secs(60)).expect_code(exit::SUCCESS)
    };
    clean(&[]);
    assert!(largest_below(&dest.join(".ccat-xfer")).is_some(), "a listing removes nothing");
    clean(&["--remove"]);
    assert!(largest_below(&dest.join(".ccat-xfer")).is_none(), "parts are gone");
}

fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn largest_below(root: &Path) -> Option<PathBuf> {
    files_below(root).into_iter().max_by_key(|f| fs::metadata(f).map_or(0, |m| m.len()))
}

/// The harness itself: a scene finds its processes, also those that left the group, and ends them.
#[test]
fn a_scene_finds_and_ends_its_processes() {
    let scene = Scene::new("self");
    let mut command = std::process::Command::new("setsid");
    command.args(["sh", "-c", "sleep 300 & sleep 300"]);
    let run = spawn(&scene, command);
    std::thread::sleep(Duration::from_millis(300));
    assert!(processes_with(scene.mark()).len() >= 2);
    let mark = scene.mark().to_owned();
    drop(run);
    drop(scene);
    std::thread::sleep(Duration::from_millis(300));
    assert!(processes_with(&mark).is_empty());
}
