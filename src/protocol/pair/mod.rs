//! Both machines and their channels, joined by links that exist in virtual time only.
//!
//! [`Pair`] is a network, a clock, a source, a destination and the two drivers in one. It does what an engine does, in
//! an order drawn from a seed: reads, hashes, sends, verifies, writes, syncs and publishes take small random times, and
//! links lose whatever is on them when they are killed, which each end notices in its own time. Frames, packs and
//! messages pass through the real codecs.

mod destination;
mod hostile;
mod link;
mod promises;
mod receiving;
mod sending;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::destination::Destination;
use self::link::{Link, LinkSpec};
use self::receiving::{Receiving, Verified};
use self::sending::{Sending, Shipped};
use self::source::Source;
use super::{
    Action, FRAME_HEADER_BYTES, FrameHeader, FrameKind, Hello, JobFlags, LinkId, Message, Purpose, Request, TypedPath,
    Welcome, Work,
};
use crate::chunk::ChunkSize;

/// More events than any test needs.
const MAX_EVENTS: u64 = 2_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sender,
    Receiver,
}

impl Side {
    fn other(self) -> Self {
        if self == Self::Sender { Self::Receiver } else { Self::Sender }
    }
}

#[derive(Debug)]
enum Event {
    Arrive { link: LinkId, to: Side, frame: Vec<u8> },
    Open(LinkSpec),
    Kill(LinkId),
    KillAny,
    Lost { link: LinkId, side: Side },
    Worked(Work),
    Shipped { what: Shipped, link: LinkId },
    Verified(Verified),
    Acted(Action),
    ReadHeld { file: u64, from: u64 },
    Timeout,
    Walk,
}

/// What a test may choose.
#[derive(Clone, Copy, Debug)]
struct Knobs {
    seed: u64,
    chunk_size: ChunkSize,
    starter: Side,
    overwrite: bool,
    /// Overrides what the receiver would say it holds.
    holds: Option<bool>,
    /// Chunk buffers of each side.
    buffers: usize,
    /// Longest time that a piece of local work takes.
    local: Duration,
    /// Longest time until an end notices that a link is dead, or that a frame has left.
    notice: Duration,
    /// A chunk may travel in two frames.
    split: bool,
    /// The walk of the source takes time: pages are short and come all through the session.
    stroll: bool,
}

impl Knobs {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            chunk_size: ChunkSize::from_log2(16).unwrap(),
            starter: Side::Sender,
            overwrite: false,
            holds: None,
            buffers: 24,
            local: Duration::from_millis(3),
            notice: Duration::ZERO,
            split: false,
            stroll: false,
        }
    }
}

/// What happened, for tests to judge.
#[derive(Debug, Default)]
struct Log {
    up_at: Option<Duration>,
    first_data_at: Option<Duration>,
    finished_at: Option<Duration>,
    chunks_sent: BTreeMap<(u64, u64), u32>,
    packed_sent: BTreeMap<u64, u32>,
    /// Bytes handed to a link and not acknowledged when the sender noticed its death, summed over links.
    in_flight_at_deaths: u64,
    /// Bytes that the receiver wanted after it had refused or dropped them.
    wanted_bytes: u64,
    deaths: u64,
    dropped: u64,
    parked: u64,
    most_unfinished: [usize; 2],
    messages: BTreeMap<&'static str, u64>,
}

/// Changes the body of a data or pack frame on its way: (link, kind, body).
type Tamper = Box<dyn FnMut(&mut StdRng, FrameKind, &mut [u8])>;

struct Pair {
    knobs: Knobs,
    now: Duration,
    rng: StdRng,
    queue: BTreeMap<(Duration, u64), Event>,
    events: u64,
    links: BTreeMap<LinkId, Link>,
    tx: Sending,
    rx: Receiving,
    tamper: Option<Tamper>,
    log: Log,
}

impl Pair {
    fn new(knobs: Knobs, source: Source, destination: Destination) -> Self {
        Self {
            knobs,
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(knobs.seed),
            queue: BTreeMap::new(),
            events: 0,
            links: BTreeMap::new(),
            tx: Sending::new(source, knobs.buffers),
            rx: Receiving::new(destination, knobs.buffers),
            tamper: None,
            log: Log::default(),
        }
    }

    /// A pair with one link, up at once.
    fn over(knobs: Knobs, source: Source, destination: Destination, spec: LinkSpec) -> Self {
        let mut pair = Self::new(knobs, source, destination);
        pair.at(Duration::ZERO, Event::Open(spec));
        pair
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.events += 1;
        self.queue.insert((time, self.events), event);
    }

    fn random(&mut self, longest: Duration) -> Duration {
        if longest.is_zero() { longest } else { longest.mul_f64(self.rng.random_range(0.0..1.0)) }
    }

    /// Schedules the end of a piece of local work that starts now.
    fn after_work(&mut self, event: Event) {
        let time = self.now + self.random(self.knobs.local);
        self.at(time, event);
    }

    /// Runs until nothing is left to happen, by when both ends must be done.
    fn run(&mut self) {
        let _seed = PrintSeed(self.knobs.seed);
        self.run_until(|_| false);
        assert!(self.is_done(), "nothing is left to happen\n{}", self.describe());
    }

    fn run_until(&mut self, stop: impl Fn(&Self) -> bool) {
        while !stop(self) {
            let Some(((time, _), event)) = self.queue.pop_first() else { return };
            assert!(self.events < MAX_EVENTS, "no end\n{}", self.describe());
            self.now = time;
            self.handle(event);
            self.drive_sender();
            self.drive_receiver();
            self.speak(Side::Sender);
            self.speak(Side::Receiver);
        }
    }

    fn is_done(&self) -> bool {
        self.tx.is_done() && self.rx.is_done()
    }

    fn describe(&self) -> String {
        format!(
            "at {:?}: sender {:?}\nreceiver {:?}\nbuffers free {}, used {}, links {:?} and {:?}, log {:?}",
            self.now,
            self.tx.machine.as_ref().map(|m| (m.stats(), m.unfinished())),
            self.rx.machine.as_ref().map(|m| (m.stats(), m.unfinished())),
            self.tx.free,
            self.rx.used(),
            self.tx.live,
            self.rx.live,
            self.log
        )
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { link, to, frame } => {
                if self.links[&link].alive {
                    self.arrive(link, to, frame);
                }
            }
            Event::Open(spec) => self.open(spec),
            Event::Kill(link) => self.kill(link),
            Event::KillAny => {
                let alive: Vec<_> = self.links.iter().filter(|(_, l)| l.alive).map(|(id, _)| *id).collect();
                if !alive.is_empty() {
                    let which = self.rng.random_range(0..alive.len());
                    self.kill(alive[which]);
                }
            }
            Event::Lost { link, side: Side::Sender } => self.sender_lost(link),
            Event::Lost { link, side: Side::Receiver } => self.receiver_lost(link),
            Event::Worked(work) => self.worked(work),
            Event::Shipped { what, link } => self.shipped(&what, link),
            Event::Verified(verified) => self.verified(verified),
            Event::Acted(action) => self.acted(action),
            Event::ReadHeld { file, from } => self.read_held(file, from),
            Event::Timeout => self.timeout(),
            Event::Walk => self.tx.walking = false,
        }
    }

    fn open(&mut self, spec: LinkSpec) {
        let id = self.links.len() as u64 + 1;
        self.links.insert(id, Link::new(spec));
        self.tx.live.insert(id);
        self.rx.live.insert(id);
        if self.log.up_at.replace(self.now).is_none() {
            let hello = self.hello();
            match self.knobs.starter {
                Side::Sender => self.tx.channel.push(&hello),
                Side::Receiver => {
                    self.rx.channel.push(&hello);
                    self.start_receiver();
                }
            }
        }
    }

    fn kill(&mut self, link: LinkId) {
        let Some(l) = self.links.get_mut(&link) else { return };
        if std::mem::replace(&mut l.alive, false) {
            self.log.deaths += 1;
            for side in [Side::Sender, Side::Receiver] {
                let time = self.now + self.random(self.knobs.notice);
                self.at(time, Event::Lost { link, side });
            }
        }
    }

    fn hello(&self) -> Message {
        let path = TypedPath { location: String::new(), path: b"x".to_vec() };
        Message::Hello(Box::new(Hello {
            required: Vec::new(),
            optional: vec![1, 2],
            program: "pair".into(),
            job: [1; 16],
            fence: 0,
            purpose: Purpose::Copy,
            chunk_size: self.knobs.chunk_size,
            flags: JobFlags { overwrite: self.knobs.overwrite, ..JobFlags::default() },
            rate_limit: 0,
            streams: 0,
            request: match self.knobs.starter {
                Side::Sender => Request::Push { destination: path, sources: Vec::new(), more: true },
                Side::Receiver => Request::Pull { sources: vec![path], holds: self.holds() },
            },
        }))
    }

    fn welcome(&self, holds: bool) -> Message {
        Message::Welcome(Welcome { features: vec![1, 2], program: "pair".into(), host: "virtual".into(), holds })
    }

    fn holds(&self) -> bool {
        let destination = &self.rx.destination;
        let any = self.tx.source.entries.iter().any(|e| destination.holds(e.entry.path.as_bytes()));
        self.knobs.holds.unwrap_or(any)
    }

    /// Puts a frame on a link; returns when it has left.
    fn put(&mut self, from: Side, link: LinkId, kind: FrameKind, body: &[&[u8]]) -> Duration {
        let body_bytes = body.iter().map(|part| part.len()).sum();
        let mut frame = FrameHeader { kind, body_bytes }.encode().to_vec();
        body.iter().for_each(|part| frame.extend_from_slice(part));
        let l = self.links.get_mut(&link).unwrap();
        let (left, mut arrives) = l.transmit(self.now, from, frame.len());
        if l.spec.lanes && matches!(kind, FrameKind::Data | FrameKind::Pack) {
            let jitter = l.spec.latency;
            arrives += self.random(jitter);
        }
        self.at(arrives, Event::Arrive { link, to: from.other(), frame });
        left
    }

    fn arrive(&mut self, link: LinkId, to: Side, mut frame: Vec<u8>) {
        let header =
            FrameHeader::decode(frame[..FRAME_HEADER_BYTES].try_into().unwrap(), self.knobs.chunk_size).unwrap();
        let mut body = frame.split_off(FRAME_HEADER_BYTES);
        assert_eq!(body.len(), header.body_bytes);
        if let (Some(tamper), FrameKind::Data | FrameKind::Pack) = (&mut self.tamper, header.kind) {
            tamper(&mut self.rng, header.kind, &mut body);
        }
        match to {
            Side::Sender => self.sender_takes(link, header.kind, &body),
            Side::Receiver => self.rx.take_in(link, self.links[&link].spec.lanes, header.kind, body),
        }
    }

    /// Moves what a side's machine says through its channel to its primary link.
    fn speak(&mut self, side: Side) {
        match side {
            Side::Sender => self.tx.hear_machine(),
            Side::Receiver => self.rx.hear_machine(),
        }
        let (live, channel) = match side {
            Side::Sender => (&self.tx.live, &mut self.tx.channel),
            Side::Receiver => (&self.rx.live, &mut self.rx.channel),
        };
        if channel.primary().is_none_or(|link| !live.contains(&link)) {
            channel.set_primary(pick(live, &mut self.rng));
        }
        let Some(link) = channel.primary() else { return };
        loop {
            let channel = if side == Side::Sender { &mut self.tx.channel } else { &mut self.rx.channel };
            let Some(numbered) = channel.poll_transmit(link) else { break };
            let (head, body) = (numbered.head(), numbered.body.to_vec());
            self.put(side, link, FrameKind::Control, &[&head, &body]);
        }
        let channel = if side == Side::Sender { &mut self.tx.channel } else { &mut self.rx.channel };
        if let Some(ack) = channel.poll_ack() {
            self.put(side, link, FrameKind::Ack, &[&ack.to_le_bytes()]);
        }
    }

    /// What every run must end with, whatever happened on the way.
    fn assert_right(&self) {
        let seed = self.knobs.seed;
        let (tx, rx) = (self.tx.machine.as_ref().unwrap(), self.rx.machine.as_ref().unwrap());
        let destination = &self.rx.destination;
        assert!(!tx.tree_disagrees(), "seed {seed}: the ends disagree about the tree");
        assert_eq!(tx.stats().failed, rx.failed(), "seed {seed}");
        assert!(destination.finished && tx.unfinished() == 0 && rx.unfinished() == 0, "seed {seed}");
        let failed: BTreeSet<_> = self.tx.failed.iter().map(|(entry, ..)| entry.path.as_bytes()).collect();
        for source in &self.tx.source.entries {
            let path = source.entry.path.as_bytes();
            if failed.contains(path) {
                continue;
            }
            match &source.entry.kind {
                super::EntryKind::File { .. } => {
                    assert!(destination.files.get(path) == Some(&source.bytes), "seed {seed}: {path:?} differs");
                }
                super::EntryKind::Dir => assert!(destination.dirs.contains(path), "seed {seed}"),
                super::EntryKind::DirEnd => assert!(destination.closed.contains(path), "seed {seed}"),
                super::EntryKind::Symlink { target } => assert_eq!(&destination.links[path], target, "seed {seed}"),
                _ => {}
            }
        }
        for (entry, receipt) in &self.tx.receipts {
            let source = &self.tx.source.entries[usize::try_from(receipt.id).unwrap()];
            assert_eq!(entry, &source.entry, "seed {seed}");
            if matches!(entry.kind, super::EntryKind::File { .. }) {
                assert_eq!(receipt.digest.unwrap().0, *blake3::hash(&source.bytes).as_bytes(), "seed {seed}");
            }
        }
        if failed.is_empty() {
            assert_eq!(tx.tree_digest(), Some(self.tx.source.tree_digest()), "seed {seed}");
        }
        assert_eq!(tx.tree_digest(), rx.tree_digest(), "seed {seed}");
        assert_eq!((self.tx.free, self.rx.used()), (self.knobs.buffers, 0), "seed {seed}: buffers leak");
        let stats = tx.stats();
        assert_eq!(stats.entries_found, stats.entries_done, "seed {seed}");
        if failed.is_empty() {
            assert_eq!(stats.bytes_found, self.tx.source.total_bytes(), "seed {seed}");
            assert_eq!(stats.bytes_held, stats.bytes_found, "seed {seed}");
            assert_eq!(stats.bytes_durable, stats.bytes_found, "seed {seed}");
            assert_eq!(rx.stats().bytes_held, stats.bytes_found, "seed {seed}");
            assert_eq!(rx.stats().bytes_durable, stats.bytes_found, "seed {seed}");
            // What travelled although it was here is not resumed, but only the sender can know that.
            if self.knobs.holds != Some(false) {
                assert_eq!(rx.stats().bytes_resumed, stats.bytes_resumed, "seed {seed}");
            }
        }
    }
}

/// Says which seed a test has failed with.
struct PrintSeed(u64);

impl Drop for PrintSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}", self.0);
        }
    }
}

fn pick(live: &BTreeSet<LinkId>, rng: &mut StdRng) -> Option<LinkId> {
    (!live.is_empty()).then(|| live.iter().copied().nth(rng.random_range(0..live.len()))).flatten()
}
