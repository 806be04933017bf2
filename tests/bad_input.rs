//! What goes wrong outside gets a typed error and the documented exit code, and leaves the destination as it was or
//! resumable.

mod harness;

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use harness::{
    Endpoint, Far, Finished, PROGRAM, Scene, Transport, TreeSpec, Xfer, as_rsh, assert_same_tree, build, differences,
    exit, fill, have, is_root, make_identity, own_home, script, seed, skip, spawn, trust, with_slash,
};

/// No error may take longer to be told than this.
const SOON: Duration = Duration::from_secs(60);

fn run(scene: &Scene, command: Command) -> Finished {
    spawn(scene, command).wait(SOON)
}

/// What is at a folder besides the parts folder.
fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".ccat-xfer")
        .collect();
    names.sort();
    names
}

fn assert_says(done: &Finished, words: &[&str]) {
    for word in words {
        assert!(done.said().contains(word), "it must say {word:?}:\n{}", done.said());
    }
}

// ---- the command itself

#[test]
fn a_host_or_user_that_begins_with_a_dash_is_refused() {
    let scene = Scene::new("dash");
    let source = scene.join("file");
    fill(&source, 10, 1);
    let marker = scene.join("marker");
    for host in [
        format!("-oProxyCommand=touch${{IFS}}{}", marker.display()),
        format!("-oProxyCommand=touch${{IFS}}{}@host", marker.display()),
        "user@-host".to_owned(),
        "-F/dev/null".to_owned(),
    ] {
        for push in [true, false] {
            let mut command = Command::new(PROGRAM);
            let far = format!("{host}:/tmp/x");
            command.arg(if push { "send" } else { "recv" }).arg("--");
            if push {
                command.arg(&source).arg(&far);
            } else {
                command.arg(&far).arg(scene.join("dest"));
            }
            own_home(&scene, &mut command);
            run(&scene, command).expect_code(exit::USAGE);
            assert!(!marker.exists(), "{host}: something was run");
        }
    }
}

#[test]
fn two_remote_ends_are_refused_with_a_hint() {
    let scene = Scene::new("two-remote");
    for (verb, source, dest) in [
        ("send", "one:/a", "two:/b"),
        ("recv", "one:/a", "two:/b"),
        ("send", "xfer://one/data/a", "two:/b"),
        ("recv", "one:/a", "xfer://two/data/b"),
    ] {
        let mut command = Command::new(PROGRAM);
        command.args([verb, source, dest]);
        own_home(&scene, &mut command);
        let done = run(&scene, command).expect_code(exit::USAGE);
        assert!(!done.stderr.trim().is_empty(), "a hint");
    }
}

#[test]
fn nonsense_on_the_command_line_is_usage() {
    let scene = Scene::new("usage");
    let source = scene.join("file");
    fill(&source, 10, 1);
    let file = source.to_str().expect("UTF-8");
    for words in [
        vec!["send"],
        vec!["send", file],
        vec!["send", "--chunk-size", "3000", file, "host:/tmp/x"],
        vec!["send", "--rate-limit", "fast", file, "host:/tmp/x"],
        vec!["send", "--transport", "pigeon", file, "host:/tmp/x"],
        vec!["send", "--no-such-flag", file, "host:/tmp/x"],
        vec!["send", file, "xfer://host:99999/data/x"],
        vec!["send", file, "xfer://host/data/../x"],
        vec!["teleport"],
    ] {
        let mut command = Command::new(PROGRAM);
        command.args(&words);
        own_home(&scene, &mut command);
        let done = run(&scene, command);
        assert_eq!(done.code(), Some(exit::USAGE), "{words:?}: {}", done.stderr);
    }
}

// ---- the source

#[test]
fn a_missing_source_is_named() {
    let scene = Scene::new("missing");
    let dest = scene.folder("dest");
    for push in [true, false] {
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Ssh);
        let source = scene.join("is-not-there");
        let command = if push { xfer.send(&[&source], &dest) } else { xfer.recv(&source, &dest) };
        let done = run(&scene, command).expect_code(exit::SOURCE);
        assert_says(&done, &["is-not-there"]);
        assert_eq!(names_in(&dest), [""; 0]);
    }
}

/// Root reads everything, so these runs are somebody else's.
fn as_nobody(test: &str) -> Option<(Scene, Vec<&'static str>)> {
    if !is_root() {
        return Some((Scene::new(test), Vec::new()));
    }
    if !have("setpriv") {
        skip(test, "util-linux (setpriv) is not installed");
        return None;
    }
    let scene = Scene::new(test);
    let words = vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    fs::set_permissions(scene.path(), fs::Permissions::from_mode(0o777)).expect("open the folder");
    let mut probe = Command::new(words[0]);
    probe.args(&words[1..]).arg("test").arg("-x").arg(PROGRAM);
    let mut inside = Command::new(words[0]);
    inside.args(&words[1..]).arg("test").arg("-w").arg(scene.path());
    if !probe.status().is_ok_and(|s| s.success()) || !inside.status().is_ok_and(|s| s.success()) {
        skip(test, "another user can reach neither the program nor the test's folder");
        return None;
    }
    Some((scene, words))
}

#[test]
fn an_unreadable_source_fails_alone() {
    let Some((scene, nobody)) = as_nobody("unreadable") else { return };
    let source = scene.folder("source");
    build(&source, &TreeSpec::plain(0, 20), &mut seed("unreadable"));
    let closed = source.join("small/00/closed");
    fill(&closed, 100, 7);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("close it");
    // Made by whoever runs the copy, who may set its times then.
    let dest = scene.join("dest");
    fs::set_permissions(scene.folder("home"), fs::Permissions::from_mode(0o777)).expect("open it");
    let xfer = Xfer::new(&scene, Far::Rsh, Transport::Ssh).under(&nobody);
    fs::write(scene.join("rsh-pids"), "")
        .and_then(|()| fs::set_permissions(scene.join("rsh-pids"), fs::Permissions::from_mode(0o666)))
        .expect("a list of far ends");
    let done = xfer.run(true, &source, &dest).expect_code(exit::PARTIAL);
    let events = done.events();
    assert_eq!(events.with_action("failed"), 1, "{:?}", events.files);
    assert_eq!(events.with_action("copied"), 20);
    assert!(!dest.join("small/00/closed").exists());
    // Nothing but the closed file: then it is the source's fault alone.
    let alone = xfer.send(&[&closed], &dest.join("alone"));
    run(&scene, alone).expect_code(exit::SOURCE);
}

#[test]
fn a_source_that_changes_while_it_is_read_is_not_published() {
    type Change = fn(&Path);
    let change: [(&str, Change); 4] = [
        ("truncated", |file| {
            fs::File::options().write(true).open(file).unwrap().set_len(1 << 20).unwrap();
        }),
        ("grown", |file| {
            use std::io::Write as _;
            fs::File::options().append(true).open(file).unwrap().write_all(b"more").unwrap();
        }),
        ("rewritten", |file| {
            use std::os::unix::fs::FileExt as _;
            let file = fs::File::options().write(true).open(file).unwrap();
            file.write_all_at(b"others", 100).unwrap();
            file.write_all_at(b"others", 60_000_000).unwrap();
        }),
        ("replaced", |file| {
            let other = file.with_extension("new");
            fill(&other, 64 << 20, 3);
            fs::rename(other, file).unwrap();
        }),
    ];
    for push in [true, false] {
        for (what, change) in change {
            let scene = Scene::new("changing");
            let (source, dest) = (scene.folder("source"), scene.join("dest"));
            build(&source, &TreeSpec::plain(64 << 20, 0), &mut seed("changing"));
            let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
            let mut slow = xfer.clone().arg("--rate-limit").arg("25000000").spawn(push, &source, &dest);
            slow.wait_until_under_way("changed in mid-transfer");
            change(&source.join("large.bin"));
            let done = slow.wait(SOON).expect_one_of(&[exit::SOURCE, exit::PARTIAL]);
            assert!(!dest.join("large.bin").exists(), "{what}: a mixture of two states was published");
            assert!(done.said().contains("large.bin"), "{what}: it is named:\n{}", done.said());
            xfer.run(push, &source, &dest).expect_code(exit::SUCCESS);
            assert_same_tree(&source, &dest);
        }
    }
}

// ---- the destination

#[test]
fn a_destination_that_differs_is_left_alone() {
    let scene = Scene::new("differs");
    let source = scene.folder("source");
    build(&source, &TreeSpec::plain(5 << 20, 10), &mut seed("differs"));
    for push in [true, false] {
        let dest = scene.folder(if push { "pushed" } else { "pulled" });
        fill(&dest.join("large.bin"), 5 << 20, 9);
        let mine = harness::b3sum_of([dest.join("large.bin").as_path()].into_iter());
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
        let done = xfer.run(push, &source, &dest).expect_code(exit::PARTIAL);
        assert_eq!(done.events().with_action("failed"), 1);
        assert_eq!(
            harness::b3sum_of([dest.join("large.bin").as_path()].into_iter()),
            mine,
            "what was there is as it was"
        );
        // One file alone: nothing was done, so the destination is at fault.
        let one = [source.join("large.bin"), dest.join("large.bin")];
        let command = if push { xfer.send(&[&one[0]], &one[1]) } else { xfer.recv(&one[0], &one[1]) };
        run(&scene, command).expect_one_of(&[exit::DESTINATION, exit::PARTIAL]);
        let over = xfer.clone().arg("--overwrite");
        over.run(push, &source, &dest).expect_code(exit::SUCCESS);
        assert_same_tree(&source, &dest);
    }
}

/// A folder where a file should be, and the other way round, also with `--overwrite`.
#[test]
fn kinds_that_differ_are_refused() {
    let scene = Scene::new("kinds");
    let (source, dest) = (scene.folder("source"), scene.folder("dest"));
    fs::create_dir_all(source.join("a")).unwrap();
    fill(&source.join("a/x"), 10, 1);
    fill(&source.join("b"), 10, 1);
    fill(&source.join("fine"), 10, 1);
    fill(&dest.join("a"), 10, 2);
    fs::create_dir_all(dest.join("b")).unwrap();
    fill(&dest.join("b/kept"), 10, 3);
    for overwrite in [false, true] {
        let mut xfer = Xfer::new(&scene, Far::Rsh, Transport::Ssh);
        if overwrite {
            xfer = xfer.arg("--overwrite");
        }
        xfer.run(true, &source, &dest).expect_code(exit::PARTIAL);
        assert_eq!(fs::read(dest.join("b/kept")).unwrap(), [3; 10], "nothing is ever deleted");
        assert_eq!(fs::read(dest.join("fine")).unwrap(), [1; 10]);
    }
}

#[test]
fn a_destination_that_is_not_writable_is_named() {
    let Some((scene, nobody)) = as_nobody("not-writable") else { return };
    let source = scene.folder("source");
    build(&source, &TreeSpec::plain(1000, 3), &mut seed("not-writable"));
    let dest = scene.folder("dest");
    fs::set_permissions(&dest, fs::Permissions::from_mode(0o555)).expect("close it");
    fs::set_permissions(scene.folder("home"), fs::Permissions::from_mode(0o777)).expect("open it");
    fs::write(scene.join("rsh-pids"), "")
        .and_then(|()| fs::set_permissions(scene.join("rsh-pids"), fs::Permissions::from_mode(0o666)))
        .expect("a list of far ends");
    for push in [true, false] {
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Ssh).under(&nobody);
        let done = xfer.run(push, &source, &dest).expect_code(exit::DESTINATION);
        assert_says(&done, &["dest"]);
        assert_eq!(names_in(&dest), [""; 0]);
    }
}

/// A small file system of its own, unmounted with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf, bytes: u64) -> Option<Self> {
        let ok = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&at).status();
        ok.is_ok_and(|s| s.success()).then_some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Full at 0, 50 and 99.9 % of what is needed. With room made, the next run takes up what is there.
#[test]
fn a_full_destination_is_an_error_and_resumable() {
    let test = "a_full_destination_is_an_error_and_resumable";
    if !is_root() {
        return skip(test, "a file system of its own needs root");
    }
    let need = 48u64 << 20;
    for push in [true, false] {
        for permille in [0u64, 500, 999] {
            let scene = Scene::new("full");
            let source = scene.folder("source");
            build(&source, &TreeSpec::plain(need, 20), &mut seed(test));
            // Room for the tree and what belongs to it once the filler is gone.
            let size = need + (8 << 20);
            let Some(disk) = Tmpfs::mount(scene.folder("disk"), size) else {
                return skip(test, "tmpfs cannot be mounted");
            };
            let filler = disk.0.join("filler");
            fill(&filler, usize::try_from(size - need * permille / 1000 / 4096 * 4096).expect("small"), 0xaa);
            let dest = disk.0.join("dest");
            let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
            let done = xfer.run(push, &source, &dest);
            let said = format!("{permille} permille, push {push}: {}", done.stderr);
            assert!(matches!(done.code(), Some(exit::DESTINATION | exit::PARTIAL)), "exit {:?}, {said}", done.code());
            assert!(!dest.join("large.bin").exists(), "published on a full disk, {said}");
            fs::remove_file(&filler).expect("make room");
            xfer.run(push, &source, &dest).expect_code(exit::SUCCESS);
            assert_same_tree(&source, &dest);
            scene.assert_no_engine_left(Duration::from_secs(20));
        }
    }
}

/// A link planted where parts go, or where a folder should be, leads nobody outside.
#[test]
fn planted_links_are_not_followed() {
    let scene = Scene::new("planted");
    let source = scene.folder("source");
    build(&source, &TreeSpec::plain(6 << 20, 20), &mut seed("planted"));
    for push in [true, false] {
        for planted in [".ccat-xfer", "small", "small/00"] {
            let name = format!("{}-{}", if push { "push" } else { "pull" }, planted.replace('/', "_"));
            let (dest, outside) = (scene.folder(&name), scene.folder(&format!("outside-{name}")));
            if let Some(folder) = Path::new(planted).parent() {
                fs::create_dir_all(dest.join(folder)).expect("make a folder");
            }
            symlink(&outside, dest.join(planted)).expect("plant a link");
            let done = Xfer::new(&scene, Far::Rsh, Transport::Tcp).run(push, &source, &dest);
            done.expect_one_of(&[exit::DESTINATION, exit::PARTIAL]);
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}: something was made outside");
            assert!(fs::symlink_metadata(dest.join(planted)).unwrap().is_symlink(), "{name}: the link was replaced");
        }
    }
}

/// Two runs at once into one folder: no mixture, and at the end the tree is right.
#[test]
fn two_runs_at_once_into_one_folder() {
    let scene = Scene::new("twice");
    let (source, dest) = (scene.folder("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(48 << 20, 200), &mut seed("twice"));
    let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
    let limited = xfer.clone().arg("--rate-limit").arg("40000000");
    let runs = [limited.spawn(true, &source, &dest), limited.spawn(false, &source, &dest)];
    let codes: Vec<Option<i32>> = runs.into_iter().map(|r| r.wait(Duration::from_secs(120)).code()).collect();
    assert!(codes.contains(&Some(exit::SUCCESS)), "one of the two must win: {codes:?}");
    assert!(codes.iter().all(Option::is_some), "none may crash: {codes:?}");
    scene.assert_no_engine_left(Duration::from_secs(20));
    xfer.run(true, &source, &dest).expect_code(exit::SUCCESS);
    let real: Vec<String> =
        differences(&source, &dest).into_iter().filter(|l| !l.contains(".ccat-xfer") && !l.ends_with(" ./")).collect();
    assert!(real.is_empty(), "{real:?}");
}

/// Source and destination in one folder, so that both ends meet at one parts folder, and a tree onto itself.
#[test]
fn both_ends_in_one_folder() {
    let scene = Scene::new("one-folder");
    let home = scene.folder("data");
    build(&home.join("a"), &TreeSpec::plain(6 << 20, 20), &mut seed("one-folder"));
    for transport in [Transport::Tcp, Transport::Ssh] {
        let xfer = Xfer::new(&scene, Far::Rsh, transport);
        let b = home.join(format!("b-{}", transport.word()));
        xfer.run(true, &home.join("a"), &b).expect_code(exit::SUCCESS);
        assert_same_tree(&home.join("a"), &b);
        let before = fs::read(home.join("a/large.bin")).unwrap();
        let itself = xfer.clone().arg("--overwrite").run(true, &home.join("a"), &home.join("a"));
        itself.expect_one_of(&[exit::SUCCESS, exit::USAGE, exit::DESTINATION, exit::PARTIAL]);
        assert_eq!(fs::read(home.join("a/large.bin")).unwrap(), before, "a tree sent onto itself is as it was");
    }
    // What another transfer left there is nobody's data.
    fs::create_dir_all(home.join("a/.ccat-xfer/other")).unwrap();
    fill(&home.join("a/.ccat-xfer/other/part"), 1000, 1);
    let dest = scene.join("dest");
    Xfer::new(&scene, Far::Rsh, Transport::Ssh).run(true, &home.join("a"), &dest).expect_code(exit::SUCCESS);
    assert!(!dest.join(".ccat-xfer/other/part").exists(), "parts of another transfer were copied");
}

// ---- the way there

#[test]
fn ports_in_use() {
    let scene = Scene::new("ports");
    let (source, dest) = (scene.folder("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(1 << 20, 5), &mut seed("ports"));
    let tcp = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = tcp.local_addr().unwrap().port();
    let _udp = UdpSocket::bind(("0.0.0.0", port)).expect("the same port");
    let range = format!("{port}-{port}");
    let demanded = Xfer::new(&scene, Far::Rsh, Transport::Tcp).arg("--port-range").arg(&range);
    let done = demanded.run(true, &source, &dest).expect_one_of(&[exit::NETWORK, exit::USAGE]);
    assert_says(&done, &[&port.to_string()]);
    let done = Xfer::new(&scene, Far::Rsh, Transport::Auto).arg("--port-range").arg(&range).run(true, &source, &dest);
    let events = done.expect_code(exit::SUCCESS).events();
    assert_eq!(events.transports(), ["ssh"], "{}", events.summary());
    assert_same_tree(&source, &dest);
}

#[test]
fn ssh_that_fails_is_quoted() {
    let scene = Scene::new("ssh-fails");
    let (source, dest) = (scene.folder("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(1000, 2), &mut seed("ssh-fails"));
    for (name, body, words) in [
        (
            "refused",
            "echo 'ssh: connect to host x port 22: Connection refused' >&2; exit 255",
            vec!["Connection refused"],
        ),
        ("denied", "echo 'x: Permission denied (publickey).' >&2; exit 255", vec!["Permission denied"]),
        ("not found", "echo 'sh: 1: ccat-xfer: not found' >&2; exit 127", vec!["not found", "--remote-path"]),
        ("silent", "exit 1", vec![]),
        ("killed", "kill -9 $$", vec![]),
    ] {
        let rsh = scene.join(&format!("rsh-{}", name.replace(' ', "-")));
        script(&rsh, body);
        for push in [true, false] {
            let xfer = Xfer::new(&scene, Far::Rsh, Transport::Auto).rsh(as_rsh(&rsh));
            let done = spawn(&scene, xfer.copy(push, &source, &dest)).wait(SOON).expect_code(exit::NETWORK);
            assert_says(&done, &words);
            assert!(!dest.exists() || names_in(&dest).is_empty(), "{name}");
        }
    }
    let mut missing = Xfer::new(&scene, Far::Rsh, Transport::Auto).rsh("/no/such/program").copy(true, &source, &dest);
    missing.env_remove("SSH_AUTH_SOCK");
    let done = run(&scene, missing).expect_one_of(&[exit::NETWORK, exit::USAGE]);
    assert_says(&done, &["/no/such/program"]);
}

/// A login banner before the protocol is survived or named; other talk is named; nothing hangs.
#[test]
fn an_ssh_that_talks_before_the_protocol() {
    let scene = Scene::new("banner");
    let source = scene.folder("source");
    build(&source, &TreeSpec::plain(1 << 20, 5), &mut seed("banner"));
    let good = harness::local_rsh(&scene);
    for (name, body, may_work) in [
        ("banner", format!("echo 'Welcome to the machine'; exec {good} \"$@\""), true),
        ("long banner", format!("yes 'All your data are belong to us' | head -c 300000; exec {good} \"$@\""), true),
        ("binary banner", format!("head -c 5000 /dev/zero; exec {good} \"$@\""), true),
        ("half a line", format!("printf 'no newline'; exec {good} \"$@\""), true),
        ("other program", "echo 'bash-5.2$'; cat >/dev/null".to_owned(), false),
        ("echo", "cat".to_owned(), false),
        ("silence", "exec sleep 1000".to_owned(), false),
        ("endless", "exec yes".to_owned(), false),
    ] {
        let rsh = scene.join(&format!("rsh-{}", name.replace(' ', "-")));
        script(&rsh, &body);
        let dest = scene.join(&format!("dest-{}", name.replace(' ', "-")));
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Auto).rsh(as_rsh(&rsh));
        let done = spawn(&scene, xfer.copy(true, &source, &dest)).wait(Duration::from_secs(120));
        match done.code() {
            Some(exit::SUCCESS) if may_work => assert_same_tree(&source, &dest),
            Some(exit::NETWORK) => assert!(!done.said().trim().is_empty(), "{name}: it says why"),
            other => panic!("{name}: exit {other:?}: {}", done.stderr),
        }
    }
}

/// Goes quiet in mid-transfer: both ends give up after the timeout, and the next run resumes.
#[test]
fn a_stalled_peer_is_given_up() {
    let scene = Scene::new("stalled");
    let (source, dest) = (scene.folder("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(64 << 20, 5), &mut seed("stalled"));
    for push in [true, false] {
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp).reconnect(Duration::from_secs(3));
        let before = harness::far_pids(&scene).len();
        let mut slow = xfer.clone().arg("--rate-limit").arg("25000000").spawn(push, &source, &dest);
        slow.wait_until_under_way("stalled in mid-transfer");
        let far = harness::far_pids(&scene)[before];
        harness::kill(far, rustix::process::Signal::STOP);
        let done = slow.wait(Duration::from_secs(180));
        assert!(matches!(done.code(), Some(exit::NETWORK | exit::PARTIAL)), "exit {:?}: {}", done.code(), done.stderr);
        harness::kill(far, rustix::process::Signal::CONT);
        scene.assert_no_engine_left(Duration::from_secs(60));
        xfer.run(push, &source, &dest).expect_code(exit::SUCCESS);
        assert_same_tree(&source, &dest);
        fs::remove_dir_all(&dest).expect("remove a copy");
    }
}

// ---- endpoints

fn served(name: &str, rights: &[&str]) -> (Scene, Endpoint, PathBuf) {
    let scene = Scene::new(name);
    let root = scene.folder("location");
    let endpoint = Endpoint::start(&scene, &root, rights);
    let source = scene.folder("source");
    build(&source, &TreeSpec::plain(1 << 20, 5), &mut seed(name));
    (scene, endpoint, source)
}

#[test]
fn rights_are_enforced() {
    let (scene, endpoint, source) = served("rights-read", &["list", "read"]);
    fill(&endpoint.root().join("there"), 100, 1);
    let xfer = Xfer::new(&scene, Far::Serve(&endpoint), Transport::Tcp);
    xfer.run(true, &source, &endpoint.root().join("pushed")).expect_code(exit::IDENTITY);
    assert_eq!(names_in(endpoint.root()), ["there"], "no right to create");
    run(&scene, xfer.recv(&endpoint.root().join("there"), &scene.join("got"))).expect_code(exit::SUCCESS);

    let (scene, endpoint, source) = served("rights-create", &["create"]);
    fill(&endpoint.root().join("there"), 100, 1);
    let xfer = Xfer::new(&scene, Far::Serve(&endpoint), Transport::Tcp);
    xfer.run(true, &source, &endpoint.root().join("pushed")).expect_code(exit::SUCCESS);
    assert_same_tree(&source, &endpoint.root().join("pushed"));
    run(&scene, xfer.recv(&endpoint.root().join("there"), &scene.join("got"))).expect_code(exit::IDENTITY);
    assert!(!scene.join("got").exists(), "no right to read");
    // Overwriting is a right of its own.
    harness::flip_bit(&source.join("large.bin"), 10);
    let over = xfer.arg("--overwrite").run(true, &source, &endpoint.root().join("pushed"));
    over.expect_one_of(&[exit::IDENTITY, exit::PARTIAL]);
    assert!(!differences(&source, &endpoint.root().join("pushed")).is_empty(), "no right to overwrite");
}

#[test]
fn a_stranger_is_refused() {
    let (scene, endpoint, source) = served("stranger", &["list", "read", "create", "overwrite"]);
    // One that trusts the endpoint, which does not know it; and the known one, meaning another endpoint.
    let (stranger, mistaken) = (scene.join("stranger"), scene.join("mistaken"));
    make_identity(&scene, &stranger, "stranger");
    trust(&scene, &stranger, &endpoint.identity("server"), "server");
    fs::create_dir_all(&mistaken).expect("a folder");
    for file in ["certificate.pem", "identity.pem"] {
        fs::copy(endpoint.identity("client").join(file), mistaken.join(file)).expect("copy an identity");
    }
    trust(&scene, &mistaken, &stranger, "server");
    for transport in [Transport::Quic, Transport::Tcp] {
        for identity in [&stranger, &mistaken] {
            let mut command = Command::new(PROGRAM);
            command.args(["send", "--transport", transport.word(), "--identity"]).arg(identity);
            command.arg(with_slash(&source)).arg(format!("{}/x", endpoint.url()));
            own_home(&scene, &mut command);
            run(&scene, command).expect_code(exit::IDENTITY);
        }
    }
    assert_eq!(names_in(endpoint.root()), [""; 0], "nothing arrived");
}

#[test]
fn an_unknown_location_is_refused() {
    let (scene, endpoint, source) = served("location", &["list", "read", "create"]);
    let mut command = Command::new(PROGRAM);
    command
        .args(["send"])
        .args(endpoint.client_args())
        .arg(&source)
        .arg(format!("xfer://127.0.0.1:{}/elsewhere/x", endpoint.port()));
    own_home(&scene, &mut command);
    let done = run(&scene, command).expect_one_of(&[exit::IDENTITY, exit::DESTINATION, exit::USAGE]);
    assert_says(&done, &["elsewhere"]);
}

#[test]
fn an_endpoint_whose_port_is_taken_says_so() {
    let (scene, endpoint, _) = served("taken", &["read"]);
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg("--config").arg(endpoint.folder().join("serve.toml"));
    own_home(&scene, &mut command);
    let done = run(&scene, command);
    assert!(matches!(done.code(), Some(exit::NETWORK | exit::USAGE)), "exit {:?}: {}", done.code(), done.stderr);
    assert_says(&done, &[&endpoint.port().to_string()]);
}

#[test]
fn an_endpoint_that_is_not_there() {
    let scene = Scene::new("nobody-there");
    let source = scene.join("file");
    fill(&source, 10, 1);
    make_identity(&scene, &scene.join("me"), "me");
    make_identity(&scene, &scene.join("other"), "other");
    trust(&scene, &scene.join("me"), &scene.join("other"), "other");
    let port = harness::free_port();
    let mut command = Command::new(PROGRAM);
    command.args(["send", "--identity"]).arg(scene.join("me"));
    command.args(["--reconnect-timeout", "2s"]).arg(&source).arg(format!("xfer://127.0.0.1:{port}/data/x"));
    own_home(&scene, &mut command);
    run(&scene, command).expect_code(exit::NETWORK);
}
