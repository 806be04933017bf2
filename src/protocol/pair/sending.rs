use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;

use super::source::{Fault, Source};
use super::{Event, Pair, Side, pick};
use crate::chunk::{Digest, chunk_value};
use crate::protocol::{
    Channel, Class, DataHead, Entry, EntryKind, FrameKind, LinkId, Message, Receipt, Request, Sender, SenderEvent,
    Verdict, Work, encode_pack_head,
};

/// The sending end: its machine, its channel, and what a driver keeps.
pub(super) struct Sending {
    pub(super) machine: Option<Sender>,
    pub(super) channel: Channel,
    pub(super) live: BTreeSet<LinkId>,
    pub(super) source: Source,
    pub(super) walked: usize,
    pub(super) walking: bool,
    pub(super) free: usize,
    pub(super) receipts: Vec<(Entry, Receipt)>,
    pub(super) failed: Vec<(Entry, Class, String)>,
    // What was handed to each link and not acknowledged, by the test's own account: (file, chunk) -> bytes.
    on_links: BTreeMap<LinkId, BTreeMap<Shipped, u64>>,
}

/// Something handed to a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shipped {
    Chunk(u64, u64),
    Pack(u64),
}

impl Sending {
    pub(super) fn new(source: Source, buffers: usize) -> Self {
        Self {
            machine: None,
            channel: Channel::new(),
            live: BTreeSet::new(),
            source,
            walked: 0,
            walking: false,
            free: buffers,
            receipts: Vec::new(),
            failed: Vec::new(),
            on_links: BTreeMap::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.machine.as_ref().is_some_and(Sender::is_finished) && self.channel.is_drained()
    }

    pub(super) fn hear_machine(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        while let Some(message) = machine.poll_message() {
            self.channel.push(&message);
        }
        while let Some(event) = machine.poll_event() {
            match event {
                SenderEvent::Done(entry, receipt) => self.receipts.push((*entry, receipt)),
                SenderEvent::Failed(entry, class, text) => self.failed.push((*entry, class, text)),
            }
        }
    }
}

impl Pair {
    pub(super) fn drive_sender(&mut self) {
        let Some(machine) = &mut self.tx.machine else { return };
        let mut strolled = false;
        while machine.wants_entries() && !self.tx.channel.is_congested() && !self.tx.walking {
            match self.tx.source.entries.get(self.tx.walked) {
                Some(next) => {
                    machine.handle_entry(next.entry.clone());
                }
                None => {
                    machine.handle_end();
                    break;
                }
            }
            self.tx.walked += 1;
            strolled = self.knobs.stroll;
            self.tx.walking = strolled;
        }
        machine.flush_page();
        if strolled {
            self.after_work(Event::Walk);
        }
        let Some(machine) = &self.tx.machine else { return };
        self.log.most_unfinished[0] = self.log.most_unfinished[0].max(machine.unfinished());
        while self.tx.free > 0 && !self.tx.live.is_empty() && !self.tx.channel.is_congested() {
            let Some(work) = self.tx.machine.as_mut().and_then(Sender::next_work) else { break };
            self.tx.free -= 1;
            self.after_work(Event::Worked(work));
        }
    }

    pub(super) fn worked(&mut self, work: Work) {
        match work {
            Work::Chunk { file, chunk } => self.chunk_read(file, chunk),
            Work::Pack { pack, files } => self.pack_read(pack, &files),
            Work::Check { file } => {
                self.tx.free += 1;
                let changed = self.tx.source.entries[index(file)].fault == Some(Fault::Changed);
                let machine = self.tx.machine.as_mut().unwrap();
                if changed {
                    machine.handle_read_failed(file, Class::Source, "it changed".into());
                } else {
                    machine.handle_checked(file);
                }
            }
        }
    }

    fn chunk_read(&mut self, file: u64, chunk: u64) {
        let source = &self.tx.source.entries[index(file)];
        let machine = self.tx.machine.as_mut().unwrap();
        if source.fault == Some(Fault::Unreadable) {
            self.tx.free += 1;
            return machine.handle_read_failed(file, Class::Source, "it cannot be read".into());
        }
        let len = source.bytes.len() as u64;
        let range = self.knobs.chunk_size.range(chunk, len).expect("the machine asked for a chunk that is not there");
        let bytes = source.bytes[index(range.start)..index(range.end())].to_vec();
        let value = chunk_value(self.knobs.chunk_size, chunk, len, &bytes);
        let sparse = matches!(source.entry.kind, EntryKind::File { sparse: true, .. });
        if sparse && bytes.iter().all(|&b| b == 0) {
            self.tx.free += 1;
            return machine.handle_hole_read(file, chunk, value);
        }
        if machine.handle_chunk_read(file, chunk, value) == Verdict::Skip {
            self.tx.free += 1;
            return;
        }
        let Some(link) = pick(&self.tx.live, &mut self.rng) else {
            self.tx.free += 1;
            return machine.handle_chunk_unsent(file, chunk);
        };
        let cut = if self.knobs.split && bytes.len() > 1 && self.rng.random_bool(0.5) {
            self.rng.random_range(1..bytes.len())
        } else {
            bytes.len()
        };
        let mut left = Duration::ZERO;
        for (offset, part) in [(0, &bytes[..cut]), (cut, &bytes[cut..])] {
            if !part.is_empty() {
                let (offset, len) = (u32::try_from(offset).unwrap(), u32::try_from(part.len()).unwrap());
                let head = DataHead { file, chunk, offset, len, value };
                left = self.put(Side::Sender, link, FrameKind::Data, &[&head.encode(), part]);
            }
        }
        *self.log.chunks_sent.entry((file, chunk)).or_default() += 1;
        self.ship(Shipped::Chunk(file, chunk), range.len, link, left);
    }

    fn pack_read(&mut self, pack: u64, files: &[(u64, u64)]) {
        let machine = self.tx.machine.as_mut().unwrap();
        let (mut table, mut contents) = (Vec::new(), Vec::new());
        for &(file, size) in files {
            let source = &self.tx.source.entries[index(file)];
            assert_eq!(source.bytes.len() as u64, size);
            if source.fault.is_some() {
                machine.handle_read_failed(file, Class::Source, "it cannot be read".into());
                continue;
            }
            table.push((file, u32::try_from(size).unwrap(), Digest::of(&source.bytes)));
            contents.extend_from_slice(&source.bytes);
        }
        let link = pick(&self.tx.live, &mut self.rng);
        let Some(link) = link.filter(|_| !table.is_empty()) else {
            self.tx.free += 1;
            return machine.handle_pack_unsent(pack);
        };
        let head = encode_pack_head(pack, &table);
        assert!(head.len() + contents.len() <= self.knobs.chunk_size.buffer_bytes(), "a pack must fit a buffer");
        for (file, ..) in table {
            *self.log.packed_sent.entry(file).or_default() += 1;
        }
        let left = self.put(Side::Sender, link, FrameKind::Pack, &[&head, &contents]);
        self.ship(Shipped::Pack(pack), contents.len() as u64, link, left);
    }

    fn ship(&mut self, what: Shipped, bytes: u64, link: LinkId, left: Duration) {
        self.log.first_data_at.get_or_insert(self.now);
        self.tx.on_links.entry(link).or_default().insert(what.clone(), bytes);
        let told = left + self.random(self.knobs.notice);
        self.at(told, Event::Shipped { what, link });
    }

    pub(super) fn shipped(&mut self, what: &Shipped, link: LinkId) {
        self.tx.free += 1;
        let machine = self.tx.machine.as_mut().unwrap();
        match *what {
            Shipped::Chunk(file, chunk) => machine.handle_chunk_sent(file, chunk, link),
            Shipped::Pack(pack) => machine.handle_pack_sent(pack, link),
        }
    }

    pub(super) fn sender_lost(&mut self, link: LinkId) {
        self.tx.live.remove(&link);
        let lost = self.tx.on_links.remove(&link).unwrap_or_default();
        self.log.in_flight_at_deaths += lost.values().sum::<u64>();
        if let Some(machine) = &mut self.tx.machine {
            machine.handle_link_lost(link);
        }
    }

    pub(super) fn sender_takes(&mut self, link: LinkId, kind: FrameKind, body: &[u8]) {
        if !self.tx.live.contains(&link) {
            return;
        }
        let message = match kind {
            FrameKind::Control => self.tx.channel.handle_frame(body),
            FrameKind::Ack => self.tx.channel.handle_ack(u64::from_le_bytes(body.try_into().unwrap())).map(|()| None),
            kind => panic!("{kind:?} at the sender"),
        };
        let Some(message) = message.unwrap_or_else(|e| panic!("seed {}: {e}", self.knobs.seed)) else { return };
        self.watch(&message);
        match message {
            Message::Hello(hello) => {
                let Request::Pull { holds, .. } = hello.request else { panic!("not a pull") };
                self.tx.machine = Some(Sender::new(hello.chunk_size, holds));
                let welcome = self.welcome(false);
                self.tx.channel.push(&welcome);
            }
            Message::Welcome(welcome) => self.tx.machine = Some(Sender::new(self.knobs.chunk_size, welcome.holds)),
            message => {
                let machine = self.tx.machine.as_mut().unwrap();
                machine.handle_message(message).unwrap_or_else(|e| panic!("seed {}: {e}", self.knobs.seed));
                if machine.is_finished() {
                    self.log.finished_at.get_or_insert(self.now);
                }
            }
        }
    }

    /// Keeps the test's own account of what is acknowledged and wanted.
    fn watch(&mut self, message: &Message) {
        let name = match message {
            Message::Answer { .. } => "answer",
            Message::Holds { .. } => "holds",
            Message::Got { .. } => "got",
            Message::Want { .. } => "want",
            Message::Durable { .. } => "durable",
            Message::Receipts(_) => "receipts",
            _ => "other",
        };
        *self.log.messages.entry(name).or_default() += 1;
        match message {
            Message::Got { chunks, packs } => {
                for on_link in self.tx.on_links.values_mut() {
                    for &(file, chunk) in chunks {
                        on_link.remove(&Shipped::Chunk(file, chunk));
                    }
                    for &pack in packs {
                        on_link.remove(&Shipped::Pack(pack));
                    }
                }
            }
            Message::Want { file, ranges } => {
                let size = self.tx.source.entries[index(*file)].bytes.len() as u64;
                for &(first, count) in ranges {
                    let unit = self.knobs.chunk_size.bytes();
                    let at = |chunk: u64| chunk.saturating_mul(unit).min(size);
                    self.log.wanted_bytes += at(first.saturating_add(count)) - at(first);
                }
            }
            _ => {}
        }
    }
}

pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}
