//! What a stranger, or a known peer gone mad, sends to a live endpoint costs it nothing: no panic, no hang, no memory,
//! and afterwards it serves as before.

mod harness;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use ccat_xfer::{
    chunk::{ChunkSize, Digest, RelPath, chunk_value},
    protocol::{
        Class, DataHead, Entry, EntryKind, FrameHeader, FrameKind, Hello, JobFlags, LinkHello, LinkSide, Message, Meta,
        PROTOCOL_VERSION, Purpose, Request, SessionSecret, TypedPath, encode_pack_head, link_proof,
    },
};
use harness::{
    Endpoint, Far, Rng, Scene, Transport, TreeSpec, Xfer, assert_same_tree, build, count, exit, say, seed, status_kib,
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};

const GROWTH_KIB: u64 = 16 << 10;

struct Target {
    scene: Scene,
    endpoint: Endpoint,
    before_kib: u64,
}

impl Target {
    /// An endpoint that has served once, so that what it keeps for good is there already.
    fn warm(name: &str) -> Self {
        let scene = Scene::new(name);
        let root = scene.folder("location");
        let endpoint = Endpoint::start(&scene, &root, &["list", "read", "create"]);
        let mut target = Self { scene, endpoint, before_kib: 0 };
        target.serves("warm-up");
        target.before_kib = target.rss_kib();
        target
    }

    fn rss_kib(&self) -> u64 {
        status_kib(self.endpoint.pid(), "VmRSS:").expect("the endpoint runs")
    }

    fn serves(&self, name: &str) {
        let source = self.scene.folder(&format!("source-{name}"));
        build(&source, &TreeSpec::plain(10 << 20, 50), &mut Rng(1));
        for transport in [Transport::Quic, Transport::Tcp] {
            let dest = self.endpoint.root().join(format!("{name}-{}", transport.word()));
            Xfer::new(&self.scene, Far::Serve(&self.endpoint), transport)
                .run(true, &source, &dest)
                .expect_code(exit::SUCCESS);
            assert_same_tree(&source, &dest);
        }
    }

    fn assert_unharmed(mut self) {
        assert!(self.endpoint.is_running(), "the endpoint died:\n{}", self.endpoint.said());
        let after = self.rss_kib();
        say(&format!("resident before {} KiB, after {after} KiB", self.before_kib));
        assert!(after < self.before_kib + GROWTH_KIB, "grew from {} to {after} KiB", self.before_kib);
        self.serves("after");
        let said = self.endpoint.said();
        assert!(!said.contains("panicked"), "a panic:\n{said}");
    }
}

/// Bytes that look like something: pure noise, a TLS record, a QUIC long header, HTTP.
fn noise(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len.max(8)];
    rng.bytes(&mut bytes);
    match rng.below(5) {
        0 => bytes[..5].copy_from_slice(&[0x16, 3, 1, 2, 0]),
        1 => bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]),
        2 => bytes[..8].copy_from_slice(b"GET / HT"),
        3 => bytes[..8].copy_from_slice(b"CCATXFER"),
        _ => {}
    }
    bytes
}

#[test]
fn noise_on_both_ports() {
    let mut rng = seed("noise_on_both_ports");
    let target = Target::warm("flood-noise");
    let address = ("127.0.0.1", target.endpoint.port());
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for n in 0..count("datagrams of noise", 100_000) {
        let len = 20 + rng.index(1_400);
        // A full buffer loses one; that is what UDP does.
        let _ = udp.send_to(&noise(&mut rng, len), address);
        if n % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for _ in 0..count("connections with noise", 3_000) {
        let Ok(mut tcp) = TcpStream::connect(address) else { continue };
        let len = rng.index(4_000);
        let _ = tcp.write_all(&noise(&mut rng, len));
        if rng.coin() {
            let _ = tcp.shutdown(Shutdown::Write);
        }
    }
    target.assert_unharmed();
}

/// What one session took, the next one uses again.
#[test]
fn an_endpoint_does_not_grow_with_its_sessions() {
    let target = Target::warm("flood-sessions");
    let mut seen = Vec::new();
    for n in 0..12 {
        target.serves(&format!("round-{n}"));
        seen.push(target.rss_kib());
    }
    say(&format!("resident after each two sessions, in KiB: {seen:?}"));
    // The first rounds show what one session takes; the buffers in use at once vary from run to run.
    let (early, late) = seen.split_at(seen.len() / 2);
    let (early, late) = (early.iter().max().expect("some"), late.iter().min().expect("some"));
    assert!(*late < early + GROWTH_KIB, "grew from {early} to {late} KiB");
}

/// Connections that say nothing are few and short-lived, and keep nobody else out.
#[test]
fn silent_connections_keep_nobody_out() {
    let target = Target::warm("flood-silent");
    let address = ("127.0.0.1", target.endpoint.port());
    let mut open: Vec<TcpStream> = Vec::new();
    for _ in 0..500 {
        open.extend(TcpStream::connect(address));
    }
    std::thread::sleep(Duration::from_secs(15));
    let mut closed = 0;
    for tcp in &mut open {
        tcp.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        closed += usize::from(!matches!(tcp.read(&mut [0; 16]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock));
    }
    say(&format!("{closed} of {} silent connections were closed within 15 s", open.len()));
    assert_eq!(closed, open.len(), "a handshake has 10 s");
    target.assert_unharmed();
}

/// Without a certificate there is no conversation: not one byte of ours comes back.
#[test]
fn an_anonymous_call_is_refused() {
    let target = Target::warm("flood-anonymous");
    for alpn in [Some(b"ccat-xfer/1".to_vec()), None, Some(b"h2".to_vec())] {
        let outcome = call(&target.endpoint, None, alpn, b"CCATXFER and more", Duration::from_secs(10));
        assert!(outcome.is_err(), "an anonymous caller was answered with {outcome:?}");
    }
    // A certificate that nobody trusts.
    let stranger = target.scene.join("stranger");
    harness::make_identity(&target.scene, &stranger, "stranger");
    let outcome =
        call(&target.endpoint, Some(&stranger), Some(b"ccat-xfer/1".to_vec()), b"CCATXFER", Duration::from_secs(10));
    assert!(outcome.is_err(), "a stranger was answered with {outcome:?}");
    target.assert_unharmed();
}

/// A known peer that sends what is no protocol: mutated first frames, wrong versions, absurd lengths, noise behind a
/// good start.
#[test]
fn mutated_frames_of_a_known_peer() {
    let mut rng = seed("mutated_frames_of_a_known_peer");
    let target = Target::warm("flood-frames");
    let client = target.endpoint.identity("client");
    let mut sent = 0u64;
    let wanted = count("mutated frames", 100_000);
    while sent < wanted {
        // Many frames on one connection, until the endpoint has had enough of it.
        let mut bytes = Vec::new();
        for _ in 0..=rng.below(40) {
            bytes.extend(frame(&mut rng));
            sent += 1;
        }
        let _ = call(&target.endpoint, Some(&client), Some(b"ccat-xfer/1".to_vec()), &bytes, Duration::from_secs(15));
    }
    target.assert_unharmed();
}

/// A frame by the layout of the wire specification (kind, three zero bytes, length, body), then mutated.
fn frame(rng: &mut Rng) -> Vec<u8> {
    const KINDS: [u8; 10] = [0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x13, 0x14, 0x20, 0x21];
    let len = *rng.pick(&[0usize, 8, 16, 60, 91, 123, 200, 4_096, 20_000]);
    let mut body = vec![0; len];
    rng.bytes(&mut body);
    if len >= 60 && rng.coin() {
        body[..8].copy_from_slice(b"CCATXFER");
        body[8..10].copy_from_slice(&[1, 0]);
    }
    let declared = match rng.below(6) {
        0 => u32::MAX,
        1 => u32::try_from(rng.below(1 << 32)).expect("32 bits"),
        _ => u32::try_from(len).expect("short"),
    };
    let mut out = vec![*rng.pick(&KINDS), 0, 0, 0];
    out.extend_from_slice(&declared.to_le_bytes());
    out.extend_from_slice(&body);
    for _ in 0..rng.below(4) {
        let at = rng.index(out.len());
        out[at] ^= 1 << rng.below(8);
    }
    out
}

/// The frames of a whole session that pushes two files, as a known peer would send them.
struct Script {
    session: [u8; 16],
    secret: SessionSecret,
    /// Header and body of every frame behind the first.
    frames: Vec<Vec<u8>>,
    /// Ends the session, if it got so far. Without it an endpoint rightly waits for its peer to come back.
    last: Vec<u8>,
}

impl Script {
    fn new(rng: &mut Rng, dest: &str) -> Self {
        let mut session = [0; 16];
        let mut secret = [0; 32];
        rng.bytes(&mut session);
        rng.bytes(&mut secret);
        let mut large = vec![0; 100_000];
        rng.bytes(&mut large);
        let small = b"a small file".to_vec();
        let meta = Meta { mode: 0o644, mtime_s: 1_700_000_000, mtime_ns: 5, uid: 0, gid: 0 };
        let entry = |path: &[u8], mode, kind| Entry {
            path: RelPath::new(path.to_vec()).expect("a path"),
            meta: Meta { mode, ..meta },
            kind,
        };
        let file = |data: &[u8]| EntryKind::File { size: data.len() as u64, sparse: false, expected: None };
        let hello = Hello {
            required: Vec::new(),
            optional: Vec::new(),
            program: "flood".into(),
            job: session,
            fence: 0,
            purpose: Purpose::Copy,
            chunk_size: ChunkSize::DEFAULT,
            flags: JobFlags::default(),
            rate_limit: 0,
            streams: 0,
            request: Request::Push {
                destination: TypedPath { location: "data".into(), path: dest.as_bytes().to_vec() },
                sources: vec![b"flood/".to_vec()],
                more: false,
            },
        };
        let entries = vec![
            entry(b"", 0o755, EntryKind::Dir),
            entry(b"large", 0o644, file(&large)),
            entry(b"small", 0o644, file(&small)),
            entry(b"", 0o755, EntryKind::DirEnd),
        ];
        let value = chunk_value(ChunkSize::DEFAULT, 0, large.len() as u64, &large);
        let data = DataHead { file: 1, chunk: 0, offset: 0, len: 100_000, value };
        let pack = encode_pack_head(0, &[(2, 12, Digest::of(&small))]);
        let bytes = (large.len() + small.len()) as u64;
        let mut frames = Vec::new();
        let mut seq = 0u64;
        let mut control = |message: Message| {
            let body = [&seq.to_le_bytes()[..], &0u64.to_le_bytes(), &message.encode()].concat();
            seq += 1;
            framed(FrameKind::Control, &body)
        };
        frames.push(control(Message::Hello(Box::new(hello))));
        frames.push(control(Message::Page { first: 0, entries: entries.clone() }));
        frames.push(framed(FrameKind::Data, &[&data.encode()[..], &large].concat()));
        frames.push(framed(FrameKind::Pack, &[&pack[..], &small].concat()));
        frames.push(control(Message::FileEnd { file: 1, root: Digest::of(&large) }));
        frames.push(control(Message::End { entries: entries.len() as u64, bytes }));
        frames.push(framed(FrameKind::Ping, &7u64.to_le_bytes()));
        let last = control(Message::Abort { class: Class::Cancelled, text: "enough".into() });
        Self { last, session, secret: SessionSecret(secret), frames }
    }

    /// One to three of: a bit changed, a frame twice, a frame gone, two exchanged, one from elsewhere, a length that lies.
    fn mutate(&mut self, rng: &mut Rng) {
        for _ in 0..=rng.below(3) {
            let n = rng.index(self.frames.len());
            match rng.below(7) {
                0..=2 => {
                    // Heads more often than payloads: most bytes are payload.
                    let reach = if rng.coin() { self.frames[n].len().min(80) } else { self.frames[n].len() };
                    let at = rng.index(reach);
                    self.frames[n][at] ^= 1 << rng.below(8);
                }
                3 => {
                    let again = self.frames[n].clone();
                    self.frames.insert(rng.index(self.frames.len()), again);
                }
                // Data only: with a message missing the last one is not heard.
                4 if matches!(self.frames[n][0], 0x20 | 0x21) => drop(self.frames.remove(n)),
                5 => {
                    let other = rng.index(self.frames.len());
                    self.frames.swap(n, other);
                }
                _ => self.frames.insert(n, frame(rng)),
            }
        }
    }
}

fn framed(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    [&FrameHeader { kind, body_bytes: body.len() }.encode()[..], body].concat()
}

/// Sessions that begin as they should and go wrong later.
#[test]
fn mutated_sessions_of_a_known_peer() {
    let mut rng = seed("mutated_sessions_of_a_known_peer");
    let mut target = Target::warm("flood-sessions-mutated");
    let client = target.endpoint.identity("client");
    // As it should be: the script reaches the inside, down to publication.
    let dest = target.endpoint.root().join("unharmed");
    play(&target.endpoint, &client, &Script::new(&mut rng, "unharmed"), Some(&dest.join("small")))
        .expect("a good session");
    let found =
        fs::read(dest.join("small")).unwrap_or_else(|e| panic!("not published, {e}: {}", target.endpoint.said()));
    assert_eq!(found, b"a small file");
    target.before_kib = target.rss_kib();
    let wanted = count("frames of sessions that go wrong", 100_000);
    let mut sent = 0u64;
    let mut published = 0u64;
    let mut n = 0u64;
    while sent < wanted {
        n += 1;
        let name = format!("mutated-{n}");
        let mut script = Script::new(&mut rng, &name);
        script.mutate(&mut rng);
        sent += script.frames.len() as u64;
        // A refusal is as good as patience.
        let _ = play(&target.endpoint, &client, &script, None);
        // A link that died in mid-frame leaves a session that rightly waits for its peer. One more link, and a message
        // out of order, ends it: else the few sessions that one peer may have are soon taken.
        script.frames = vec![framed(FrameKind::Control, &[&1_000u64.to_le_bytes()[..], &[0; 12]].concat())];
        script.last.clear();
        let _ = play(&target.endpoint, &client, &script, None);
        let small = target.endpoint.root().join(&name).join("small");
        if let Ok(bytes) = fs::read(small) {
            published += 1;
            assert_eq!(bytes, b"a small file", "{name}: something else was published");
        }
    }
    say(&format!("{n} sessions with {sent} frames, {published} of them published the small file all the same"));
    target.assert_unharmed();
}

/// Opens a link by the rules, then sends a script. Waits for a file to appear if told which.
fn play(endpoint: &Endpoint, identity: &Path, script: &Script, until: Option<&Path>) -> Result<(), String> {
    let mut tls = connect(endpoint, Some(identity), Some(b"ccat-xfer/1".to_vec()), Duration::from_secs(10))?;
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).map_err(|e| e.to_string())?;
    }
    let binding =
        tls.conn.export_keying_material([0u8; 32], b"EXPORTER-ccat-xfer link", Some(&[])).map_err(|e| e.to_string())?;
    let hello = LinkHello {
        version: PROTOCOL_VERSION,
        session: script.session,
        open: Some(script.secret.clone()),
        proof: link_proof(&script.secret, &script.session, LinkSide::Dialer, &binding),
    };
    let mut all = framed(FrameKind::LinkHello, &hello.encode());
    script.frames.iter().for_each(|f| all.extend_from_slice(f));
    if until.is_none() {
        all.extend_from_slice(&script.last);
    }
    tls.write_all(&all).and_then(|()| tls.flush()).map_err(|e| e.to_string())?;
    // Give what was sent the time to be read: a close at once may overtake it.
    tls.sock.set_read_timeout(Some(Duration::from_millis(if until.is_some() { 200 } else { 30 }))).expect("a timeout");
    let end = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let ended = match tls.read(&mut [0; 4096]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => until.is_none(),
            Err(_) => true,
        };
        if until.is_some_and(Path::exists) || ended || std::time::Instant::now() > end {
            return Ok(());
        }
    }
}

/// Opens a TLS connection, says something, and returns what came back. An error when the endpoint refused.
fn call(
    endpoint: &Endpoint,
    identity: Option<&Path>,
    alpn: Option<Vec<u8>>,
    say: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, String> {
    let mut tls = connect(endpoint, identity, alpn, limit)?;
    tls.write_all(say).map_err(|e| e.to_string())?;
    tls.flush().map_err(|e| e.to_string())?;
    tls.conn.send_close_notify();
    let _ = tls.flush();
    let mut answer = Vec::new();
    match tls.read_to_end(&mut answer) {
        Ok(_) => Ok(answer),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the endpoint hangs on to a bad connection for {limit:?}")
        }
        Err(e) => Err(e.to_string()),
    }
}

/// A TLS client with the identity in a folder, or none, that accepts any server.
fn connect(
    endpoint: &Endpoint,
    identity: Option<&Path>,
    alpn: Option<Vec<u8>>,
    limit: Duration,
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(folder) => {
            let pem = folder.join("identity.pem");
            let cert = CertificateDer::from_pem_file(&pem).expect("a certificate");
            let key = PrivateKeyDer::from_pem_file(&pem).expect("a key");
            builder.with_client_auth_cert(vec![cert], key).expect("an identity")
        }
    };
    config.alpn_protocols = alpn.into_iter().collect();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let tcp = TcpStream::connect(("127.0.0.1", endpoint.port())).map_err(|e| e.to_string())?;
    tcp.set_read_timeout(Some(limit)).expect("a timeout");
    tcp.set_write_timeout(Some(limit)).expect("a timeout");
    Ok(StreamOwned::new(connection, tcp))
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

/// The far end of an ssh job, fed with what is no protocol, ends by itself with a word about it.
#[test]
fn noise_into_a_far_end_on_stdio() {
    let mut rng = seed("noise_into_a_far_end_on_stdio");
    let scene = Scene::new("flood-stdio");
    let mut ended = std::collections::BTreeMap::new();
    for n in 0..count("far ends fed with noise", 1_000) {
        let len = rng.index(3_000);
        let mut bytes = noise(&mut rng, len);
        if n % 3 == 0 {
            bytes = (0..5).flat_map(|_| frame(&mut rng)).collect();
        }
        let input = scene.join("input");
        fs::write(&input, &bytes).expect("write a file");
        let mut command = std::process::Command::new("sh");
        command.arg("-c").arg(format!("exec {} --stdio < {}", harness::PROGRAM, input.display()));
        harness::own_home(&scene, &mut command);
        let done = harness::spawn(&scene, command).wait(Duration::from_secs(30));
        assert!(done.code().is_some_and(|c| c != exit::SUCCESS), "{:?} for noise: {}", done.status, done.stderr);
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
        *ended.entry(done.code()).or_insert(0) += 1;
    }
    say(&format!("noise on stdio, by exit code: {ended:?}"));
}
