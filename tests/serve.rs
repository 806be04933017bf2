//! What an endpoint promises its peers, from outside: receipts that can be asked for again, newer attempts that end older
//! ones, limits that hold per peer, keys that are changed while it runs, and a conversation whose version and features
//! are agreed on. Also the flags of a copy that need two ends to be seen.

mod harness;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ccat_xfer::{
    chunk::{ChunkSize, Digest},
    endpoint::keyring::Keyring,
    engine::{
        Direction, FailureClass, FileReport, JobError, JobId, Kept, KeptTree, Observer, Options, Progress, Remote,
        RemotePath, Summary, TransportChoice,
    },
    protocol::{
        Class, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Hello, JobFlags, LinkAnswer, LinkHello, LinkSide, Message,
        Purpose, Request, SessionSecret, TypedPath, link_proof,
    },
    reach::{self, Credentials},
};
use harness::{
    Endpoint, Far, PROGRAM, Rng, Running, Scene, Setup, Transport, TreeSpec, Xfer, acquaint, assert_same_tree, build,
    cert, exit, is_root, local_rsh, make_identity, own_home, script, seed, skip, spawn, trust, write_file,
};
use rustix::process::Signal;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection, SignatureScheme,
    Stream, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio_util::sync::CancellationToken;

const ALPN: &[u8] = b"ccat-xfer/1";
const HANG: Duration = Duration::from_secs(120);

/// Remembers what a job told.
#[derive(Debug, Default)]
struct Watcher {
    files: Mutex<Vec<FileReport>>,
    bytes: Mutex<u64>,
}

impl Observer for Watcher {
    fn file(&self, report: &FileReport) {
        self.files.lock().expect("no panic").push(report.clone());
    }

    fn warning(&self, _: &str) {}

    fn progress(&self, progress: &Progress) {
        *self.bytes.lock().expect("no panic") = progress.bytes_done;
    }
}

impl Watcher {
    async fn wait_for_bytes(&self) {
        let end = Instant::now() + HANG;
        while *self.bytes.lock().expect("no panic") == 0 {
            assert!(Instant::now() < end, "no byte has moved");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

fn credentials(folder: &Path) -> Credentials {
    let keyring = Keyring::new(folder);
    Credentials { identity: keyring.identity().expect("an identity"), policy: keyring.policy().expect("peers") }
}

fn at(endpoint: &Endpoint) -> Remote {
    Remote::Endpoint { host: "127.0.0.1".into(), port: endpoint.port() }
}

fn below(path: &str) -> RemotePath {
    RemotePath { location: Some("data".into()), path: path.as_bytes().to_vec() }
}

fn options(job: u8, fence: u64) -> Options {
    Options { job: JobId([job; 16]), fence, ..Options::default() }
}

fn ask(remote: Remote, identity: Option<&Path>, path: RemotePath, job: u8) -> Result<(KeptTree, Vec<Kept>), JobError> {
    let mut told = Vec::new();
    let watcher: Arc<dyn Observer> = Arc::new(Watcher::default());
    let tree = runtime().block_on(reach::receipts(
        path,
        remote,
        options(job, 0),
        identity.map(credentials),
        watcher,
        CancellationToken::new(),
        &mut |kept| told.push(kept),
    ))?;
    Ok((tree, told))
}

fn digests(told: &[Kept]) -> Vec<Digest> {
    let mut all: Vec<Digest> =
        told.iter().filter_map(|k| if let Kept::Receipt(r) = k { r.digest } else { None }).collect();
    all.sort_unstable_by_key(|d| d.0);
    all
}

/// The receipts of a job outlive the session and the process that made them, and are told to the peer that began it,
/// and to nobody else.
#[test]
fn receipts_are_told_again_to_whom_they_belong() {
    let mut rng = seed("receipts_are_told_again_to_whom_they_belong");
    let scene = Scene::new("receipts");
    let root = scene.folder("location");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(12 << 20, 700), &mut rng);
    let folder = scene.folder("endpoint");
    let (server, client) = (folder.join("server"), folder.join("client"));
    acquaint(&scene, &server, &client);
    for name in ["other", "nobody"] {
        make_identity(&scene, &folder.join(name), name);
        trust(&scene, &server, &folder.join(name), name);
        trust(&scene, &folder.join(name), &server, "server");
    }
    let setup = Setup {
        rights: &["create"],
        location: "[[serve.location.right]]\npeer = \"other\"\nmay = [\"create\", \"read\"]\n",
        ..Setup::default()
    };
    let mut endpoint = Endpoint::begin(&scene, &root, &setup);
    let watcher = Arc::new(Watcher::default());
    let push = |job: u8, fence: u64, dest: &str| {
        let direction = Direction::Push { sources: vec![source.clone()], destination: below(dest) };
        let observer: Arc<dyn Observer> = Arc::clone(&watcher) as _;
        let known = Some(credentials(&client));
        let run = reach::run(direction, at(&endpoint), options(job, fence), known, observer, CancellationToken::new());
        runtime().block_on(run)
    };
    let summary = push(1, 3, "new").expect("the job");
    push(2, 0, "plain").expect("the job without a fence");
    endpoint.restart(&scene);
    // The destination did not exist when it was named; now it does.
    let (tree, told) = ask(at(&endpoint), Some(&client), below("new"), 1).expect("the receipts");
    assert_eq!((tree.digest, tree.failed), (summary.tree_digest, 0));
    assert!(summary.tree_digest.is_some() && tree.entries == told.len() as u64);
    let mut made: Vec<Digest> = watcher.files.lock().expect("no panic").iter().filter_map(|f| f.digest).collect();
    made.truncate(made.len() / 2);
    made.sort_unstable_by_key(|d| d.0);
    assert_eq!(digests(&told), made, "each file's receipt, once");
    assert!(told.iter().all(|k| matches!(k, Kept::Receipt(r) if r.published && (r.digest.is_none() || r.durable))));
    // Asking again changes nothing.
    assert_eq!(ask(at(&endpoint), Some(&client), below("new"), 1).expect("again").1, told);
    for (who, path, job, class) in [
        ("other", "new", 1, FailureClass::Usage),
        ("nobody", "new", 1, FailureClass::Identity),
        ("client", "new", 9, FailureClass::Usage),
        ("client", "plain", 2, FailureClass::Usage),
        ("client", "no/such", 1, FailureClass::Usage),
        ("client", "../new", 1, FailureClass::Usage),
    ] {
        let refused = ask(at(&endpoint), Some(&folder.join(who)), below(path), job).expect_err(who);
        assert_eq!(refused.class, class, "{who} {path} {job}: {refused}");
    }
    assert!(!root.join("no").exists(), "asking makes nothing");
    // A later attempt that finds everything there takes the place of the first one's.
    let watch: Arc<dyn Observer> = Arc::new(Watcher::default());
    let direction = Direction::Push { sources: vec![harness::with_slash(&source)], destination: below("new") };
    let again = reach::run(
        direction,
        at(&endpoint),
        options(1, 4),
        Some(credentials(&client)),
        watch,
        CancellationToken::new(),
    );
    let summary = runtime().block_on(again).expect("the second attempt");
    let (tree, _) = ask(at(&endpoint), Some(&client), below("new"), 1).expect("the receipts");
    assert_eq!(tree.digest, summary.tree_digest);
}

/// Over ssh the system's user decides, and nothing is told that is not there.
#[test]
fn receipts_are_told_again_over_ssh() {
    let mut rng = seed("receipts_are_told_again_over_ssh");
    let scene = Scene::new("receipts-ssh");
    let (source, dest) = (scene.join("source"), scene.join("dest"));
    build(&source, &TreeSpec::plain(1 << 20, 30), &mut rng);
    let path = RemotePath { location: None, path: dest.as_os_str().as_encoded_bytes().to_vec() };
    let direction = Direction::Push { sources: vec![source], destination: path.clone() };
    let watcher: Arc<dyn Observer> = Arc::new(Watcher::default());
    let run = reach::run(direction, by_rsh(&scene), options(5, 1), None, watcher, CancellationToken::new());
    let summary = runtime().block_on(run).expect("the job");
    let (tree, told) = ask(by_rsh(&scene), None, path.clone(), 5).expect("the receipts");
    assert_eq!((tree.digest, digests(&told).len()), (summary.tree_digest, 31));
    assert_eq!(ask(by_rsh(&scene), None, path, 6).expect_err("another job").class, FailureClass::Usage);
}

fn by_rsh(scene: &Scene) -> Remote {
    Remote::Ssh {
        target: "127.0.0.1".into(),
        rsh: local_rsh(scene).split(' ').map(str::to_owned).collect(),
        remote_path: PROGRAM.into(),
        ports: 0..=0,
        data_address: None,
        reverse: false,
    }
}

/// Jobs that have ended leave nothing at an endpoint that would count against the peer's next ones.
#[test]
fn ended_jobs_do_not_use_up_a_peers_sessions() {
    let mut rng = seed("ended_jobs_do_not_use_up_a_peers_sessions");
    let scene = Scene::new("ended");
    let root = scene.folder("location");
    write_file(&root.join("file"), 1_000, &mut rng);
    let folder = scene.folder("endpoint");
    acquaint(&scene, &folder.join("server"), &folder.join("client"));
    let setup =
        Setup { rights: &["read", "create"], serve: "max_sessions_per_peer = 2\n", verbose: true, ..Setup::default() };
    let mut endpoint = Endpoint::begin(&scene, &root, &setup);
    for n in 0..12 {
        let xfer = Xfer::new(&scene, Far::Serve(&endpoint), Transport::Tcp);
        let got = scene.join(&format!("got-{n}"));
        spawn(&scene, xfer.recv(&root.join("file"), &got)).wait(HANG).expect_code(exit::SUCCESS);
        spawn(&scene, xfer.send(&[&got], &root.join(format!("sent-{n}")))).wait(HANG).expect_code(exit::SUCCESS);
        // The client leaves when it knows everything; the endpoint's own end of the job may take a moment more.
        endpoint.wait_for_words("job complete", 2 * n + 2);
    }
    assert!(!endpoint.said().contains("job ended"), "{}", endpoint.said());
}

/// A fence holds wherever it is kept: an attempt that gave the destination its name kept it beside the destination.
#[test]
fn a_late_attempt_is_refused_though_its_destination_exists_now() {
    let mut rng = seed("a_late_attempt_is_refused_though_its_destination_exists_now");
    let scene = Scene::new("late");
    let root = scene.folder("location");
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(1 << 20, 20), &mut rng);
    let endpoint = Endpoint::start(&scene, &root, &["create"]);
    let client = endpoint.identity("client");
    let push = |fence: u64| {
        let direction = Direction::Push { sources: vec![source.clone()], destination: below("new") };
        let watcher: Arc<dyn Observer> = Arc::new(Watcher::default());
        let known = Some(credentials(&client));
        runtime().block_on(reach::run(
            direction,
            at(&endpoint),
            options(1, fence),
            known,
            watcher,
            CancellationToken::new(),
        ))
    };
    push(2).expect("the newer one");
    let late = push(1).expect_err("the late one");
    assert_eq!(late.class, FailureClass::Overtaken, "{late}");
    assert_same_tree(&source, &root.join("new"));
}

/// A newer attempt ends an older one that is under way, which says so, whether one process serves both or two do, and
/// whoever receives.
#[test]
fn a_newer_attempt_ends_the_older_one_at_once() {
    let mut rng = seed("a_newer_attempt_ends_the_older_one_at_once");
    let scene = Scene::new("fence");
    let root = scene.folder("location");
    let endpoint = Endpoint::start(&scene, &root, &["read", "create"]);
    let client = endpoint.identity("client");
    fs::create_dir(root.join("from")).expect("a folder");
    write_file(&root.join("from/file"), 12 << 20, &mut rng);
    let runtime = runtime();
    for (n, (ssh, push)) in [(false, true), (false, false), (true, true), (true, false)].into_iter().enumerate() {
        let job = u8::try_from(n).expect("few") + 1;
        let begin = |fence: u64, rate: Option<u64>| {
            let near = scene.folder(&format!("near-{n}"));
            let far = |name: &str| match ssh {
                false => below(name),
                true => RemotePath { location: None, path: root.join(name).into_os_string().into_encoded_bytes() },
            };
            let direction = match push {
                true => Direction::Push { sources: vec![root.join("from/file")], destination: far(&format!("to-{n}")) },
                // An endpoint that sends ends the older attempt wherever its bytes go.
                false if !ssh => Direction::Pull {
                    sources: vec![far("from/file")],
                    destination: scene.folder(&format!("near-{n}-{fence}")),
                },
                false => Direction::Pull { sources: vec![far("from/file")], destination: near },
            };
            let remote = if ssh { by_rsh(&scene) } else { at(&endpoint) };
            let options = Options { rate_limit: rate, transport: TransportChoice::Tcp, ..options(job, fence) };
            let watcher = Arc::new(Watcher::default());
            let observer: Arc<dyn Observer> = Arc::clone(&watcher) as _;
            let known = Some(credentials(&client));
            let run = reach::run(direction, remote, options, known, observer, CancellationToken::new());
            (runtime.spawn(run), watcher)
        };
        fs::create_dir_all(root.join(format!("to-{n}"))).expect("a folder");
        // It would take minutes, and commits nothing meanwhile.
        let (older, watcher) = begin(1, Some(50_000));
        runtime.block_on(watcher.wait_for_bytes_or_links());
        let (newer, _) = begin(2, None);
        let old: Result<Summary, JobError> =
            runtime.block_on(async { tokio::time::timeout(HANG, older).await }).expect("it ends").expect("no panic");
        let old = old.expect_err("overtaken");
        assert_eq!(old.class, FailureClass::Overtaken, "ssh {ssh}, push {push}: {old}");
        let new =
            runtime.block_on(async { tokio::time::timeout(HANG, newer).await }).expect("it ends").expect("no panic");
        assert_eq!(new.expect("the newer one").files, 1, "ssh {ssh}, push {push}");
        if ssh || push {
            let late = runtime.block_on(begin(1, None).0).expect("no panic").expect_err("late");
            assert_eq!(late.class, FailureClass::Overtaken, "ssh {ssh}, push {push}: {late}");
        }
    }
}

impl Watcher {
    /// A job of one slow chunk: it runs when it has told its progress for a while.
    async fn wait_for_bytes_or_links(&self) {
        tokio::time::timeout(Duration::from_secs(5), self.wait_for_bytes()).await.unwrap_or_default();
    }
}

/// Limits are a peer's, not a session's, and not a key's. Only a lower bound of time is judged: no load shortens it.
#[test]
fn limits_hold_for_a_peer() {
    let mut rng = seed("limits_hold_for_a_peer");
    let scene = Scene::new("limits");
    let root = scene.folder("location");
    write_file(&root.join("file"), 24 << 20, &mut rng);
    let folder = scene.folder("endpoint");
    acquaint(&scene, &folder.join("server"), &folder.join("client"));
    // The same peer with a second key, and another one.
    for (key, name) in [("client2", "client"), ("other", "other")] {
        make_identity(&scene, &folder.join(key), name);
        trust(&scene, &folder.join("server"), &folder.join(key), name);
        trust(&scene, &folder.join(key), &folder.join("server"), "server");
    }
    let setup = Setup {
        rights: &["read"],
        serve: "rate_limit = 8388608\nmax_sessions_per_peer = 2\n",
        location: "[[serve.location.right]]\npeer = \"other\"\nmay = [\"read\"]\n",
        ..Setup::default()
    };
    let endpoint = Endpoint::begin(&scene, &root, &setup);
    let fetch = |key: &str, n: u32| -> Running {
        let mut command = Command::new(PROGRAM);
        command.args(["recv", "--json", "--transport", "tcp", "--identity"]).arg(folder.join(key));
        command.arg(format!("{}/file", endpoint.url())).arg(scene.folder(&format!("dest-{n}")));
        own_home(&scene, &mut command);
        spawn(&scene, command)
    };
    let begun = Instant::now();
    let mut both = [fetch("client", 1), fetch("client2", 2)];
    // Both sessions are there when bytes of both have come.
    for (n, one) in both.iter_mut().enumerate() {
        let parts = scene.join(&format!("dest-{}/.ccat-xfer", n + 1));
        assert!(one.wait_until(HANG, |_| parts.exists()), "no bytes have come");
    }
    let third = fetch("client2", 3).wait(HANG).expect_code(exit::NETWORK);
    assert!(third.said().contains("as many sessions as it may have"), "{}", third.said());
    fetch("other", 4).wait(HANG).expect_code(exit::SUCCESS);
    for one in both {
        one.wait(HANG).expect_code(exit::SUCCESS);
    }
    // Twelve chunks of half a second each, the first of which waits for nothing.
    assert!(begun.elapsed() >= Duration::from_secs(5), "48 MiB in {:?} at 8 MiB/s", begun.elapsed());
}

#[test]
fn a_pull_tells_how_many_streams_it_wants() {
    let mut rng = seed("a_pull_tells_how_many_streams_it_wants");
    let scene = Scene::new("streams");
    let root = scene.folder("location");
    write_file(&root.join("file"), 1 << 20, &mut rng);
    let folder = scene.folder("endpoint");
    acquaint(&scene, &folder.join("server"), &folder.join("client"));
    let mut endpoint = Endpoint::begin(&scene, &root, &Setup { rights: &["read"], verbose: true, ..Setup::default() });
    for (args, says) in [(&["--streams", "7"][..], "streams=7"), (&[], "streams=0")] {
        let dest = scene.folder(&format!("dest-{says}"));
        let mut xfer = Xfer::new(&scene, Far::Serve(&endpoint), Transport::Quic);
        for arg in args {
            xfer = xfer.arg(arg);
        }
        spawn(&scene, xfer.recv(&root.join("file"), &dest)).wait(HANG).expect_code(exit::SUCCESS);
        let plain = strip_colours(&endpoint.said());
        assert!(plain.contains(says), "{says}: {plain}");
    }
    assert!(endpoint.is_running());
}

fn strip_colours(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match c {
            '\u{1b}' => inside = true,
            'm' if inside => inside = false,
            _ if inside => {}
            c => out.push(c),
        }
    }
    out
}

/// One send of a small folder by this identity.
fn send_as(scene: &Scene, endpoint: &Endpoint, identity: &Path, name: &str) -> harness::Finished {
    let source = scene.folder(&format!("source-{name}"));
    fs::write(source.join("file"), name).expect("a file");
    let mut command = Command::new(PROGRAM);
    command.args(["send", "--json", "--identity"]).arg(identity).arg(harness::with_slash(&source));
    command.arg(format!("{}/{name}", endpoint.url()));
    own_home(scene, &mut command);
    spawn(scene, command).wait(HANG)
}

#[test]
fn keys_and_peers_change_while_it_runs() {
    let scene = Scene::new("reload");
    let root = scene.folder("location");
    let folder = scene.folder("endpoint");
    let (server, client, late) = (folder.join("server"), folder.join("client"), folder.join("late"));
    acquaint(&scene, &server, &client);
    let location = "[[serve.location.right]]\npeer = \"late\"\n";
    let mut endpoint = Endpoint::begin(&scene, &root, &Setup { location, ..Setup::default() });
    make_identity(&scene, &late, "late");
    trust(&scene, &late, &server, "server");
    send_as(&scene, &endpoint, &late, "unknown").expect_code(exit::IDENTITY);
    // On request.
    let words = "keys, peers and rights reloaded";
    endpoint.signal(Signal::HUP);
    endpoint.wait_for_words(words, 1);
    send_as(&scene, &endpoint, &late, "still").expect_code(exit::IDENTITY);
    // By itself, when a file has changed.
    trust(&scene, &server, &late, "late");
    endpoint.wait_for_words(words, 2);
    send_as(&scene, &endpoint, &late, "known").expect_code(exit::SUCCESS);
    // Another key of its own.
    let fresh = folder.join("fresh");
    make_identity(&scene, &fresh, "server");
    fs::copy(fresh.join("identity.pem"), server.join("identity.new")).expect("copy a key");
    fs::rename(server.join("identity.new"), server.join("identity.pem")).expect("put it in place");
    endpoint.signal(Signal::HUP);
    endpoint.wait_for_words(words, 3);
    send_as(&scene, &endpoint, &client, "old-key").expect_code(exit::IDENTITY);
    trust(&scene, &client, &fresh, "server");
    send_as(&scene, &endpoint, &client, "new-key").expect_code(exit::SUCCESS);
    // What cannot be read changes nothing.
    fs::write(server.join("trusted"), "nonsense\n").expect("spoil a file");
    endpoint.wait_for_words("the old keys, peers and rights stay", 1);
    send_as(&scene, &endpoint, &client, "stays").expect_code(exit::SUCCESS);
    for (name, there) in [("unknown", false), ("still", false), ("known", true), ("old-key", false), ("stays", true)] {
        assert_eq!(root.join(name).exists(), there, "{name}");
    }
    assert!(endpoint.is_running());
}

/// Whom a private authority vouches for, for as long as it does.
#[test]
fn a_private_authority_vouches_for_a_while() {
    let scene = Scene::new("authority");
    let root = scene.folder("location");
    let folder = scene.folder("endpoint");
    let (ca, other_ca) = (scene.join("ca"), scene.join("other-ca"));
    let word = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let issue = |authority: &Path, name: &str, out: &Path, days: &str| {
        cert(&scene, out, &["issue", name, "--ca", &word(authority), "--out", &word(out), "--days", days]);
    };
    for authority in [&ca, &other_ca] {
        cert(&scene, &folder, &["ca", &word(authority)]);
    }
    let (server, client) = (folder.join("server"), folder.join("client"));
    issue(&ca, "server", &server, "10");
    issue(&ca, "client", &client, "10");
    let (expired, stranger, unnamed) = (folder.join("expired"), folder.join("stranger"), folder.join("unnamed"));
    issue(&ca, "client", &expired, "0");
    issue(&other_ca, "client", &stranger, "10");
    issue(&ca, "guest", &unnamed, "10");
    cert(&scene, &server, &["trust", "ca", "client"]);
    for peer in [&client, &expired, &stranger, &unnamed] {
        cert(&scene, peer, &["trust", "ca", "server"]);
    }
    // The stranger believes the endpoint's authority; the endpoint does not believe its.
    fs::copy(client.join("ca.pem"), stranger.join("ca.pem")).expect("copy a certificate");
    let endpoint = Endpoint::begin(&scene, &root, &Setup::default());
    // A certificate for no days is valid up to the second in which it was issued.
    std::thread::sleep(Duration::from_millis(2_100));
    send_as(&scene, &endpoint, &client, "valid").expect_code(exit::SUCCESS);
    for (identity, name) in [(&expired, "expired"), (&stranger, "stranger"), (&unnamed, "unnamed")] {
        send_as(&scene, &endpoint, identity, name).expect_code(exit::IDENTITY);
        assert!(!root.join(name).exists(), "{name} left something");
    }
    drop(endpoint);
    // The other way round: an endpoint whose certificate has expired.
    fs::remove_dir_all(&server).expect("remove a folder");
    issue(&ca, "server", &server, "0");
    cert(&scene, &server, &["trust", "ca", "client"]);
    std::thread::sleep(Duration::from_millis(2_100));
    let endpoint = Endpoint::begin(&scene, &root, &Setup::default());
    let refused = send_as(&scene, &endpoint, &client, "expired-endpoint").expect_code(exit::IDENTITY);
    assert!(refused.said().contains("expired"), "{}", refused.said());
    assert!(!root.join("expired-endpoint").exists());
}

/// A listener answers in a version that the dialer speaks, and a dialer leaves one that does not.
#[test]
fn versions_are_agreed_on() {
    let scene = Scene::new("version");
    let root = scene.folder("location");
    let endpoint = Endpoint::start(&scene, &root, &["create"]);
    for version in [1, 2, u16::MAX] {
        let mut call = Call::open(&endpoint, version);
        assert!(matches!(call.answer(), LinkAnswer::Accept { version: 1, .. }), "to {version}");
    }
    // No version at all is no hello.
    let mut call = Call::open(&endpoint, 0);
    assert!(matches!(call.answer(), LinkAnswer::Refuse { class: Class::Network, .. }));
    assert_eq!(fs::read_dir(&root).expect("the location").count(), 0, "nothing is written");

    // A listener from the future, with the endpoint's own key.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let key = endpoint.identity("server").join("identity.pem");
    let future = std::thread::spawn(move || answer_in_version(&listener, &key, 9));
    let source = scene.folder("source");
    fs::write(source.join("file"), b"bytes").expect("a file");
    let mut command = Command::new(PROGRAM);
    command.args(["send", "--json", "--transport", "tcp", "--identity"]).arg(endpoint.identity("client"));
    command.arg(source.join("file")).arg(format!("xfer://127.0.0.1:{port}/data/x"));
    own_home(&scene, &mut command);
    let done = spawn(&scene, command).wait(HANG).expect_code(exit::NETWORK);
    assert!(done.said().contains("version 9 of the protocol"), "{}", done.said());
    assert!(future.join().expect("no panic"), "it said nothing behind its hello");
}

/// Takes one call, accepts it in a version of its own, and tells whether no message came behind.
fn answer_in_version(listener: &TcpListener, key: &Path, version: u16) -> bool {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificate = CertificateDer::from_pem_file(key).expect("a certificate");
    let private = PrivateKeyDer::from_pem_file(key).expect("a key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)
        .expect("an identity");
    config.alpn_protocols = vec![ALPN.to_vec()];
    let (mut tcp, _) = listener.accept().expect("a call");
    tcp.set_read_timeout(Some(HANG)).expect("a timeout");
    let mut tls = ServerConnection::new(Arc::new(config)).expect("a server");
    let mut stream = Stream::new(&mut tls, &mut tcp);
    stream.write_all(&[0x06]).and_then(|()| stream.flush()).expect("the first byte");
    let (kind, _) = read_frame(&mut stream).expect("a hello");
    assert_eq!(kind, FrameKind::LinkHello);
    let accept = LinkAnswer::Accept { version, proof: [0; 32] };
    stream.write_all(&framed(accept.kind(), &accept.encode())).and_then(|()| stream.flush()).expect("an answer");
    // Whoever leaves may say so.
    !matches!(read_frame(&mut stream), Ok((kind, _)) if kind != FrameKind::Leave)
}

/// A required feature that is unknown refuses the job before anything is made; an optional one, and an optional field,
/// are passed over.
#[test]
fn features_are_agreed_on() {
    let scene = Scene::new("features");
    let root = scene.folder("location");
    let endpoint = Endpoint::start(&scene, &root, &["create"]);
    let hello = |required: Vec<u16>, optional: Vec<u16>| Hello {
        required,
        optional,
        program: "from the future".into(),
        job: [3; 16],
        fence: 0,
        purpose: Purpose::Copy,
        chunk_size: ChunkSize::DEFAULT,
        flags: JobFlags::default(),
        rate_limit: 0,
        streams: 0,
        request: Request::Push {
            destination: TypedPath { location: "data".into(), path: b"made".to_vec() },
            sources: vec![b"a".to_vec(), b"b".to_vec()],
            more: false,
        },
    };
    let mut call = Call::open(&endpoint, 1);
    assert!(matches!(call.answer(), LinkAnswer::Accept { .. }));
    call.say(0, &Message::Hello(Box::new(hello(vec![1, 999], Vec::new()))).encode());
    match call.hear() {
        Message::Abort { class: Class::Usage, text } => assert!(text.contains("feature 999"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(!root.join("made").exists(), "refused before anything is made");

    let mut call = Call::open(&endpoint, 1);
    assert!(matches!(call.answer(), LinkAnswer::Accept { .. }));
    let mut bytes = Message::Hello(Box::new(hello(vec![1, 2], vec![2, 998, 999]))).encode();
    bytes.extend([0x77, 0x66, 5, 0, 1, 2, 3, 4, 5]);
    call.say(0, &bytes);
    match call.hear() {
        Message::Welcome(welcome) => assert_eq!(welcome.features, [2]),
        other => panic!("{other:?}"),
    }
    call.say(1, &Message::End { entries: 0, bytes: 0 }.encode());
    assert!(matches!(call.hear(), Message::TreeReceipt { failed: 0, .. }), "the job goes on as any other");
    call.say(2, &Message::Bye.encode());
    assert!(root.join("made").is_dir());
}

/// A link by the rules of the specification, over TCP.
struct Call {
    tls: StreamOwned<ClientConnection, TcpStream>,
    heard: u64,
}

impl Call {
    fn open(endpoint: &Endpoint, version: u16) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pem = endpoint.identity("client").join("identity.pem");
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&pem).expect("a certificate")],
                PrivateKeyDer::from_pem_file(&pem).expect("a key"),
            )
            .expect("an identity");
        config.alpn_protocols = vec![ALPN.to_vec()];
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        let tcp = TcpStream::connect(("127.0.0.1", endpoint.port())).expect("a connection");
        tcp.set_read_timeout(Some(HANG)).expect("a timeout");
        let mut tls = StreamOwned::new(connection, tcp);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock).expect("a handshake");
        }
        let label = b"EXPORTER-ccat-xfer link";
        let binding = tls.conn.export_keying_material([0u8; 32], label, Some(&[])).expect("a binding");
        // The listener's word that the certificate will do, before any frame.
        let mut admitted = [0];
        tls.read_exact(&mut admitted).expect("the listener's first byte");
        assert_eq!(admitted, [0x06]);
        let (session, secret) = (rand::random(), SessionSecret(rand::random()));
        let proof = link_proof(&secret, &session, LinkSide::Dialer, &binding);
        let hello = LinkHello { version, session, open: Some(secret), proof };
        tls.write_all(&framed(FrameKind::LinkHello, &hello.encode())).and_then(|()| tls.flush()).expect("a hello");
        Self { tls, heard: 0 }
    }

    fn answer(&mut self) -> LinkAnswer {
        let (kind, body) = read_frame(&mut self.tls).expect("an answer");
        LinkAnswer::decode(kind, &body).expect("an answer")
    }

    fn say(&mut self, number: u64, message: &[u8]) {
        let body = [&number.to_le_bytes()[..], &self.heard.to_le_bytes(), message].concat();
        self.tls.write_all(&framed(FrameKind::Control, &body)).and_then(|()| self.tls.flush()).expect("a message");
    }

    fn hear(&mut self) -> Message {
        loop {
            let (kind, body) = read_frame(&mut self.tls).expect("a message");
            if kind == FrameKind::Control {
                self.heard += 1;
                return Message::decode(&body[16..]).expect("a message");
            }
        }
    }
}

fn framed(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    [&FrameHeader { kind, body_bytes: body.len() }.encode()[..], body].concat()
}

fn read_frame(from: &mut impl std::io::Read) -> std::io::Result<(FrameKind, Vec<u8>)> {
    let mut head = [0; FRAME_HEADER_BYTES];
    from.read_exact(&mut head)?;
    let header = FrameHeader::decode(&head, ChunkSize::DEFAULT).map_err(std::io::Error::other)?;
    let mut body = vec![0; header.body_bytes];
    from.read_exact(&mut body)?;
    Ok((header.kind, body))
}

/// Whoever answers is good enough: it is the endpoint that is under test.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// `::1`, over both transports.
#[test]
fn an_endpoint_on_ipv6() {
    let test = "an_endpoint_on_ipv6";
    if TcpListener::bind(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).is_err() {
        return skip(test, "there is no IPv6 loopback");
    }
    let scene = Scene::new("ipv6");
    let root = scene.folder("location");
    let folder = scene.folder("endpoint");
    acquaint(&scene, &folder.join("server"), &folder.join("client"));
    let endpoint = Endpoint::begin(&scene, &root, &Setup { host: "::1", ..Setup::default() });
    let source = scene.join("source");
    build(&source, &TreeSpec::plain(5 << 20, 20), &mut seed(test));
    for transport in [Transport::Quic, Transport::Tcp] {
        let dest = root.join(transport.word());
        Xfer::new(&scene, Far::Serve(&endpoint), transport).run(true, &source, &dest).expect_code(exit::SUCCESS);
        assert_same_tree(&source, &dest);
    }
}

/// Owner and group are kept if asked for, and only then.
#[test]
fn owner_is_kept_on_request() {
    let test = "owner_is_kept_on_request";
    if !is_root() {
        return skip(test, "only root may give files away");
    }
    let scene = Scene::new("owner");
    let source = scene.folder("source");
    for (name, owner) in [("small", (1234, 2345)), ("large", (3456, 4567))] {
        write_file(&source.join(name), if name == "large" { 5 << 20 } else { 10 }, &mut Rng(1));
        std::os::unix::fs::chown(source.join(name), Some(owner.0), Some(owner.1)).expect("give a file away");
    }
    let owners = |root: &Path| -> Vec<(u32, u32)> {
        let of = |name: &str| fs::metadata(root.join(name)).map(|m| (m.uid(), m.gid())).expect("a file");
        vec![of("small"), of("large")]
    };
    for push in [true, false] {
        let (plain, kept) = (scene.join(&format!("plain-{push}")), scene.join(&format!("kept-{push}")));
        let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
        xfer.run(push, &source, &plain).expect_code(exit::SUCCESS);
        xfer.arg("--owner").run(push, &source, &kept).expect_code(exit::SUCCESS);
        assert_eq!(owners(&kept), owners(&source), "push {push}");
        assert!(owners(&plain).iter().all(|o| *o == (0, 0)), "push {push}: {:?}", owners(&plain));
    }
}

/// `--quick` believes size and time; without it bytes decide.
#[test]
fn quick_trusts_size_and_time() {
    let mut rng = seed("quick_trusts_size_and_time");
    let scene = Scene::new("quick");
    let (source, dest) = (scene.folder("source"), scene.join("dest"));
    write_file(&source.join("same"), 1 << 20, &mut rng);
    write_file(&source.join("moved"), 1 << 20, &mut rng);
    let xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
    xfer.run(true, &source, &dest).expect_code(exit::SUCCESS);
    // Other bytes of the same length: under the old time, and under another one.
    for (name, keep) in [("same", true), ("moved", false)] {
        let path = dest.join(name);
        let time = fs::metadata(&path).and_then(|m| m.modified()).expect("a time");
        harness::flip_bit(&path, 4_321);
        let time = if keep { time } else { time + Duration::from_secs(5) };
        fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(time)).expect("set a time");
    }
    let events = xfer.clone().arg("--quick").run(true, &source, &dest).expect_one_of(&[exit::PARTIAL]).events();
    let action = |name: &str| {
        let found = events.files.iter().find(|f| f["path"].as_str().is_some_and(|p| p.ends_with(name)));
        found.map(|f| f["action"].as_str().unwrap_or_default().to_owned()).expect("an event")
    };
    assert_eq!((action("same").as_str(), action("moved").as_str()), ("trusted", "failed"));
    xfer.run(true, &source, &dest).expect_code(exit::DESTINATION);
}

/// Where the address that ssh reached is of no use, `--data-address` is.
#[test]
fn the_data_address_is_called() {
    let mut rng = seed("the_data_address_is_called");
    let scene = Scene::new("data-address");
    let source = scene.folder("source");
    write_file(&source.join("file"), 1 << 20, &mut rng);
    // A far end that does not know its own address, at a name that nobody knows.
    let rsh = scene.join("blind-rsh");
    script(&rsh, "shift\nunset SSH_CONNECTION\nexec sh -c \"exec $*\"\n");
    let send = |name: &str, more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["send", "--json", "--rsh", &harness::as_rsh(&rsh), "--remote-path", PROGRAM]).args(more);
        command.arg(harness::with_slash(&source));
        command.arg(format!("nowhere.invalid:{}", scene.join(name).display()));
        own_home(&scene, &mut command);
        let done = spawn(&scene, command).wait(HANG).expect_code(exit::SUCCESS);
        assert_same_tree(&source, &scene.join(name));
        done.events().transports()
    };
    assert_eq!(send("without", &[]), ["ssh"]);
    let direct = send("with", &["--data-address", "127.0.0.1"]);
    assert!(!direct.contains(&"ssh".to_owned()), "{direct:?}");
}

/// The evidence of every file is in `--json`, and says that it was read back if that was asked for.
#[test]
fn read_back_is_shown_as_evidence() {
    let mut rng = seed("read_back_is_shown_as_evidence");
    let scene = Scene::new("read-back");
    let source = scene.folder("source");
    write_file(&source.join("large"), 9 << 20, &mut rng);
    write_file(&source.join("small"), 1_000, &mut rng);
    for push in [true, false] {
        for read_back in [false, true] {
            let dest: PathBuf = scene.join(&format!("dest-{push}-{read_back}"));
            let mut xfer = Xfer::new(&scene, Far::Rsh, Transport::Tcp);
            if read_back {
                xfer = xfer.arg("--read-back");
            }
            let events = xfer.run(push, &source, &dest).expect_code(exit::SUCCESS).events();
            let files: Vec<_> = events.files.iter().filter(|f| f["digest"].is_string()).collect();
            assert_eq!(files.len(), 2);
            for file in files {
                let evidence = file["evidence"].as_array().unwrap_or_else(|| panic!("no evidence: {file}"));
                let methods: Vec<&str> = evidence.iter().filter_map(|e| e["method"].as_str()).collect();
                assert_eq!(methods[0], "received", "{file}");
                assert_eq!(evidence.len(), if read_back { 2 } else { 1 }, "{file}");
                if read_back {
                    let last = &evidence[1];
                    assert!(["direct", "dropped", "cached"].contains(&methods[1]), "{file}");
                    assert_eq!(last["medium"], "disk");
                    assert_eq!(last["cached"].as_bool(), Some(methods[1] == "cached"), "{file}");
                }
                for one in evidence {
                    assert!(one["program"].as_str().is_some_and(|p| p.starts_with("ccat-xfer ")), "{file}");
                    assert!(one["host"].is_string() && one["end_ns"].as_i64() >= one["start_ns"].as_i64(), "{file}");
                }
            }
        }
    }
}
