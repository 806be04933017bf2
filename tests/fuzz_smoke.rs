//! A few seconds of hostile bytes for every decoder, without libFuzzer: the committed inputs, then seeded mutations of
//! them. `scripts/soak fuzz` runs the same functions under libFuzzer.

#[path = "../fuzz/decoders.rs"]
mod decoders;

use std::{
    fs,
    io::Write as _,
    panic::catch_unwind,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ccat_xfer::{
    chunk::{ChunkSize, ChunkValue, Digest, RelPath},
    journal::record::{Body, Record},
    protocol::{
        Class, DataHead, Entry, EntryKind, FrameHeader, FrameKind, LinkAnswer, LinkHello, Message, Meta, SessionSecret,
        encode_pack_head,
    },
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

type Target = (&'static str, fn(&[u8]));
const TARGETS: [Target; 4] = [
    ("frame", decoders::frame),
    ("handshake", decoders::handshake),
    ("manifest", decoders::manifest),
    ("journal", decoders::journal),
];

/// What a process may grow by while it decodes.
const GROWTH_KIB: u64 = 16 << 10;

/// One test for all targets, so that the growth of memory is that of one target at a time.
#[test]
fn hostile_bytes_harm_no_decoder() {
    let seconds = std::env::var("CCAT_XFER_FUZZ_SECONDS").ok().and_then(|v| v.parse().ok()).unwrap_or(2);
    let seed = std::env::var("CCAT_XFER_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs() ^ u64::from(d.subsec_nanos()) << 20)
    });
    say(&format!("seed: fuzz_smoke: CCAT_XFER_SEED={seed}"));
    for (name, run) in TARGETS {
        let corpus = read_corpus(name);
        assert!(!corpus.is_empty(), "fuzz/corpus/{name} is empty");
        let mut rng = StdRng::seed_from_u64(seed);
        for bytes in &corpus {
            guarded(name, run, bytes);
        }
        let before = resident_kib();
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut runs = 0u64;
        while Instant::now() < end {
            for _ in 0..256 {
                guarded(name, run, &mutated(&corpus, &mut rng));
                runs += 1;
            }
        }
        let grown = resident_kib().saturating_sub(before);
        say(&format!(
            "fuzz: {name}: {} inputs, {runs} mutations in {seconds} s, {grown} KiB more resident",
            corpus.len()
        ));
        assert!(grown < GROWTH_KIB, "{name} grew by {grown} KiB");
    }
}

/// Every committed input must reach the decoder's inside: most of them are accepted whole.
#[test]
fn the_committed_inputs_are_todays_format() {
    for (name, _) in TARGETS {
        for (file, wanted) in inputs(name) {
            let path = folder(name).join(&file);
            let found = fs::read(&path).unwrap_or_default();
            if std::env::var_os("CCAT_XFER_WRITE_CORPUS").is_some() {
                fs::create_dir_all(folder(name)).expect("make a folder");
                fs::write(&path, &wanted).expect("write an input");
            } else {
                assert_eq!(
                    found,
                    wanted,
                    "{} is of another format; CCAT_XFER_WRITE_CORPUS=1 writes it anew",
                    path.display()
                );
            }
        }
    }
}

fn guarded(name: &str, run: fn(&[u8]), bytes: &[u8]) {
    if catch_unwind(|| run(bytes)).is_err() {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{name}"));
        fs::write(&path, bytes).expect("keep the input");
        panic!("{name} panicked; its input is in {}", path.display());
    }
}

fn mutated(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..9) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].get(rng.random_range(0..5)).expect("five"),
            3 => bytes.truncate(at),
            4 => {
                let mut more = vec![0; rng.random_range(1..64)];
                rng.fill_bytes(&mut more);
                bytes.splice(at..at, more);
            }
            5 => {
                let end = (at + rng.random_range(1..32)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                // The numbers at which lengths go wrong, in the widths that the formats use.
                let number = *[0u64, 1, 255, 256, 65_535, 65_536, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX]
                    .get(rng.random_range(0..11))
                    .expect("eleven");
                let width = *[1, 2, 4, 8].get(rng.random_range(0..4)).expect("four");
                for (to, from) in bytes[at..].iter_mut().zip(&number.to_le_bytes()[..width]) {
                    *to = *from;
                }
            }
            7 => {
                let other = &corpus[rng.random_range(0..corpus.len())];
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + rng.random_range(1..200)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes.truncate(1 << 20);
    bytes
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

fn read_corpus(name: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder(name)).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("read an input")).collect()
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

// ---- the inputs

fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let named =
        |list: Vec<Vec<u8>>| list.into_iter().enumerate().map(|(n, bytes)| (format!("{n:02}"), bytes)).collect();
    let framed =
        |kind: FrameKind, body: &[u8]| [&FrameHeader { kind, body_bytes: body.len() }.encode()[..], body].concat();
    match target {
        "frame" => {
            let data = DataHead { file: 3, chunk: 9, offset: 0, len: 4, value: ChunkValue([7; 32]) };
            let data = framed(FrameKind::Data, &[&data.encode()[..], b"data"].concat());
            let pack =
                [encode_pack_head(1, &[(5, 3, Digest::of(b"abc")), (6, 2, Digest::of(b"de"))]), b"abcde".to_vec()]
                    .concat();
            let control = |m: &Message| {
                framed(
                    FrameKind::Control,
                    &[&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &m.encode()].concat(),
                )
            };
            let mut stream = framed(FrameKind::LinkHello, &hello(true).encode());
            for message in messages() {
                stream.extend(control(&message));
            }
            stream.extend(&data);
            stream.extend(framed(FrameKind::Ping, &8u64.to_le_bytes()));
            stream.extend(framed(FrameKind::Leave, &[]));
            named(vec![data, framed(FrameKind::Pack, &pack), framed(FrameKind::Ack, &[0; 8]), stream])
        }
        "handshake" => {
            let tagged = |tag: u8, bytes: Vec<u8>| [vec![tag], bytes].concat();
            let accept = LinkAnswer::Accept { version: 1, proof: [4; 32] };
            let refuse = LinkAnswer::Refuse { class: Class::Identity, text: "who are you?".into() };
            named(vec![
                tagged(0, hello(true).encode()),
                tagged(0, hello(false).encode()),
                tagged(1, accept.encode()),
                tagged(2, refuse.encode()),
                tagged(3, Message::Abort { class: Class::Source, text: "gone".into() }.encode()),
            ])
        }
        "manifest" => named(messages().iter().map(Message::encode).collect()),
        "journal" => {
            let all = records();
            let mut list: Vec<Vec<u8>> = all.iter().map(Record::encode).collect();
            list.push(all.iter().flat_map(Record::encode).collect());
            named(list)
        }
        _ => unreachable!("no such target"),
    }
}

fn hello(open: bool) -> LinkHello {
    LinkHello { version: 1, session: [1; 16], open: open.then_some(SessionSecret([2; 32])), proof: [3; 32] }
}

fn path(text: &[u8]) -> RelPath {
    RelPath::new(text.to_vec()).expect("a path")
}

fn messages() -> Vec<Message> {
    let meta = Meta { mode: 0o644, mtime_s: -5, mtime_ns: 999_999_999, uid: 0, gid: 1000 };
    let entry = |name: &[u8], kind| Entry { path: path(name), meta, kind };
    vec![
        Message::Abort { class: Class::Network, text: "cut off".into() },
        Message::Page {
            first: 0,
            entries: vec![
                entry(b"dir", EntryKind::Dir),
                entry(
                    b"dir/a \xff\n",
                    EntryKind::File { size: 1 << 40, sparse: true, expected: Some(Digest::of(b"x")) },
                ),
                entry(b"dir/b", EntryKind::File { size: 0, sparse: false, expected: None }),
                entry(b"dir/link", EntryKind::Symlink { target: b"../x".to_vec() }),
                entry(b"dir/fifo", EntryKind::Skipped),
                entry(b"dir/closed", EntryKind::Failed { class: Class::Source, text: "permission denied".into() }),
                entry(b"dir", EntryKind::DirEnd),
            ],
        },
        Message::Holds { file: 1, first: 0, values: vec![ChunkValue([1; 32]), ChunkValue([2; 32])], last: true },
        Message::Hole { file: 1, first: 2, count: 1 << 20 },
        Message::FileEnd { file: 1, root: Digest::of(b"x") },
        Message::FileFailed { file: 2, class: Class::Source, text: "changed".into() },
        Message::End { entries: 7, bytes: 1 << 40 },
    ]
}

fn records() -> Vec<Record> {
    [
        Body::Header { writer: [7; 16], created: 1_700_000_000 },
        Body::Part {
            part: 1,
            inode: 99,
            size: 1 << 40,
            chunk_size: ChunkSize::DEFAULT,
            sparse: true,
            path: path(b"a/b \xff"),
        },
        Body::Chunks { part: 1, first: 3, values: vec![ChunkValue([1; 32]), ChunkValue([2; 32])] },
        Body::Whole { part: 2, inode: 100, size: 5, digest: Digest([9; 32]), path: path(b"c") },
        Body::Ended { part: 1 },
        Body::Fence { fence: 12 },
        Body::Receipt { bytes: b"receipt".to_vec() },
    ]
    .into_iter()
    .zip(0..)
    .map(|(body, sequence)| Record { sequence, body })
    .collect()
}
