use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::destination::{Destination, Published};
use super::sending::index;
use super::{Event, Pair};
use crate::chunk::{ChunkSet, ChunkSize, ChunkValue, Digest, chunk_value};
use crate::protocol::{
    Action, Admit, Channel, Class, DATA_HEAD_BYTES, DataHead, EntryKind, FrameKind, LinkId, Message, Receiver,
    decode_pack,
};

/// The receiving end: its machine, its channel, and what a driver keeps.
pub(super) struct Receiving {
    pub(super) machine: Option<Receiver>,
    pub(super) channel: Channel,
    pub(super) live: BTreeSet<LinkId>,
    pub(super) destination: Destination,
    /// What was taken down to be said again.
    pub(super) kept: Vec<Message>,
    buffers: usize,
    verifying: usize,
    // Frames that have arrived and were not taken: one queue per link and one for each frame of a lane.
    inboxes: Vec<(LinkId, VecDeque<Frame>)>,
    // Each holds a buffer.
    parked: Vec<(LinkId, DataHead, Vec<u8>)>,
    assembling: BTreeMap<(u64, u64), Assembly>,
    packs: BTreeMap<u64, Pack>,
    next_pack: u64,
    timer: Option<std::time::Duration>,
    finished: bool,
}

type Frame = (FrameKind, Vec<u8>);

/// A chunk of which some bytes are here. Holds a buffer.
struct Assembly {
    value: ChunkValue,
    bytes: Vec<u8>,
    have: ChunkSet,
    links: BTreeSet<LinkId>,
}

/// A pack of which some files are parked or being written. Holds a buffer.
struct Pack {
    number: u64,
    parked: Vec<(u64, Digest, Vec<u8>)>,
    writing: usize,
}

#[derive(Debug)]
pub(super) enum Verified {
    Chunk { file: u64, chunk: u64, value: ChunkValue, bytes: Vec<u8> },
    Packed { pack: u64, file: u64, digest: Digest, bytes: Vec<u8> },
}

impl Receiving {
    pub(super) fn new(destination: Destination, buffers: usize) -> Self {
        Self {
            machine: None,
            channel: Channel::new(),
            live: BTreeSet::new(),
            destination,
            kept: Vec::new(),
            buffers,
            verifying: 0,
            inboxes: Vec::new(),
            parked: Vec::new(),
            assembling: BTreeMap::new(),
            packs: BTreeMap::new(),
            next_pack: 0,
            timer: None,
            finished: false,
        }
    }

    /// Buffers that are not free.
    pub(super) fn used(&self) -> usize {
        self.parked.len() + self.assembling.len() + self.packs.len() + self.verifying
    }

    fn may_park(&self) -> bool {
        // What waits for a page to be prepared waits for this side alone. What waits for a page to arrive may keep the
        // buffers that the frames in front of that page need, so it may take half of them only.
        self.parked.len() + self.packs.len() <= self.buffers / 2
    }

    pub(super) fn is_done(&self) -> bool {
        self.finished && self.channel.is_drained()
    }

    pub(super) fn hear_machine(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        while let Some(message) = machine.poll_message() {
            self.channel.push(&message);
        }
        while machine.poll_event().is_some() {}
    }

    /// A frame came off a link, which keeps it until the driver has room.
    pub(super) fn take_in(&mut self, link: LinkId, lanes: bool, kind: FrameKind, body: Vec<u8>) {
        if !self.live.contains(&link) {
            return;
        }
        let own = lanes && matches!(kind, FrameKind::Data | FrameKind::Pack);
        match self.inboxes.iter_mut().find(|(l, q)| !own && *l == link && q.iter().all(|f| !lanes || is_main(f.0))) {
            Some((_, queue)) => queue.push_back((kind, body)),
            None => self.inboxes.push((link, VecDeque::from([(kind, body)]))),
        }
    }

    fn forget(&mut self, file: u64, chunk: u64) {
        self.assembling.remove(&(file, chunk));
        self.parked.retain(|(_, head, _)| (head.file, head.chunk) != (file, chunk));
    }
}

fn is_main(kind: FrameKind) -> bool {
    !matches!(kind, FrameKind::Data | FrameKind::Pack)
}

impl Pair {
    pub(super) fn start_receiver(&mut self) {
        self.rx.destination.overwrite = self.knobs.overwrite;
        self.rx.machine = Some(Receiver::new(self.knobs.chunk_size, self.holds(), self.knobs.overwrite));
    }

    pub(super) fn drive_receiver(&mut self) {
        loop {
            let mut progress = false;
            for at in 0..self.rx.inboxes.len() {
                while self.take_one(at) {
                    progress = true;
                }
            }
            self.rx.inboxes.retain(|(_, queue)| !queue.is_empty());
            while let Some(action) = self.rx.machine.as_mut().and_then(Receiver::poll_action) {
                progress = true;
                self.after_work(Event::Acted(action));
            }
            if !progress && !self.evict() {
                break;
            }
        }
        if let Some(machine) = &self.rx.machine {
            self.log.most_unfinished[1] = self.log.most_unfinished[1].max(machine.unfinished());
            if machine.poll_timeout() != self.rx.timer {
                self.rx.timer = machine.poll_timeout();
                if let Some(time) = self.rx.timer {
                    assert!(time >= self.now, "seed {}: it wants to be called in the past", self.knobs.seed);
                    self.at(time, Event::Timeout);
                }
            }
        }
    }

    /// Frames wait, and every buffer waits for frames behind them: one must give way.
    fn evict(&mut self) -> bool {
        let stuck = !self.rx.inboxes.is_empty() && self.rx.used() >= self.rx.buffers && self.rx.verifying == 0;
        let writing = self.rx.packs.values().any(|p| p.writing > 0);
        let oldest = self.rx.assembling.keys().next().copied().filter(|_| stuck && !writing);
        if let Some((file, chunk)) = oldest {
            self.drop_chunk(file, chunk);
        }
        oldest.is_some()
    }

    pub(super) fn timeout(&mut self) {
        if self.rx.timer.is_some_and(|t| t <= self.now) {
            self.rx.timer = None;
            self.rx.machine.as_mut().unwrap().handle_timeout(self.now);
        }
    }

    /// Takes the first frame of an inbox, if there is room for it.
    fn take_one(&mut self, at: usize) -> bool {
        let (link, queue) = &self.rx.inboxes[at];
        let link = *link;
        let Some((kind, body)) = queue.front() else { return false };
        if self.rx.machine.as_ref().is_some_and(Receiver::is_congested) {
            return false;
        }
        let buffered = match kind {
            FrameKind::Data => {
                let head = DataHead::decode(body[..DATA_HEAD_BYTES].try_into().unwrap(), body.len()).unwrap();
                !self.rx.assembling.contains_key(&(head.file, head.chunk))
            }
            FrameKind::Pack => true,
            _ => false,
        };
        if buffered && self.rx.used() >= self.rx.buffers {
            return false;
        }
        let (kind, body) = self.rx.inboxes[at].1.pop_front().unwrap();
        match kind {
            FrameKind::Control => {
                let message = self.rx.channel.handle_frame(&body);
                if let Some(m) = message.unwrap_or_else(|e| panic!("seed {}: {e}", self.knobs.seed)) {
                    self.receiver_hears(m);
                }
            }
            FrameKind::Ack => self.rx.channel.handle_ack(u64::from_le_bytes(body.try_into().unwrap())).unwrap(),
            FrameKind::Data => {
                let head = DataHead::decode(body[..DATA_HEAD_BYTES].try_into().unwrap(), body.len()).unwrap();
                self.data(link, head, body[DATA_HEAD_BYTES..].to_vec());
            }
            FrameKind::Pack => {
                let (number, records) = decode_pack(&body).unwrap();
                let parked = records.iter().map(|r| (r.file, r.digest, r.data.to_vec())).collect();
                self.rx.next_pack += 1;
                let id = self.rx.next_pack;
                self.rx.packs.insert(id, Pack { number, parked, writing: 0 });
                self.unpack(id);
            }
            kind => panic!("{kind:?} at the receiver"),
        }
        true
    }

    fn receiver_hears(&mut self, message: Message) {
        match message {
            Message::Hello(_) => {
                self.start_receiver();
                let welcome = self.welcome(self.holds());
                self.rx.channel.push(&welcome);
            }
            Message::Welcome(_) => {}
            message => {
                let machine = self.rx.machine.as_mut().unwrap();
                machine.handle_message(message).unwrap_or_else(|e| panic!("seed {}: {e}", self.knobs.seed));
                self.rx.finished = machine.is_finished();
            }
        }
    }

    fn data(&mut self, link: LinkId, head: DataHead, payload: Vec<u8>) {
        let machine = self.rx.machine.as_mut().unwrap();
        let announced = machine.entry(head.file).is_some();
        match machine.admit(&head).unwrap_or_else(|e| panic!("seed {}: {e}", self.knobs.seed)) {
            Admit::Discard => self.rx.forget(head.file, head.chunk),
            Admit::Park if !announced && !self.rx.may_park() => {
                self.log.dropped += 1;
                self.drop_chunk(head.file, head.chunk);
            }
            Admit::Park => {
                self.log.parked += 1;
                self.rx.parked.push((link, head, payload));
            }
            Admit::Accept { file_len, .. } => self.assemble(link, head, &payload, file_len),
        }
    }

    /// Drops all that is here of a chunk: a part of it without the rest would keep a buffer for ever.
    fn drop_chunk(&mut self, file: u64, chunk: u64) {
        self.rx.forget(file, chunk);
        self.rx.machine.as_mut().unwrap().handle_dropped(file, chunk);
    }

    fn assemble(&mut self, link: LinkId, head: DataHead, payload: &[u8], file_len: u64) {
        let key = (head.file, head.chunk);
        let len = self.knobs.chunk_size.range(head.chunk, file_len).unwrap().len;
        let new = || Assembly {
            value: head.value,
            bytes: vec![0; index(len)],
            have: ChunkSet::new(),
            links: BTreeSet::new(),
        };
        let assembly = self.rx.assembling.entry(key).or_insert_with(new);
        if assembly.value != head.value {
            *assembly = new();
        }
        let start = head.offset as usize;
        assembly.bytes[start..start + payload.len()].copy_from_slice(payload);
        assembly.have.insert_range(head.offset.into(), head.len.into());
        assembly.links.insert(link);
        if assembly.have.len() == len {
            let Assembly { value, bytes, .. } = self.rx.assembling.remove(&key).unwrap();
            if self.rx.machine.as_mut().unwrap().begin_chunk(head.file, head.chunk) {
                self.rx.verifying += 1;
                let verified = Verified::Chunk { file: head.file, chunk: head.chunk, value, bytes };
                let path = self.rx.machine.as_ref().and_then(|m| m.entry(head.file)).map(|e| e.path.as_bytes());
                match &self.rx.destination.slow {
                    Some((slow, takes)) if path == Some(slow) => {
                        let time = self.now + *takes;
                        self.at(time, Event::Verified(verified));
                    }
                    _ => self.after_work(Event::Verified(verified)),
                }
            }
        }
    }

    fn unpack(&mut self, id: u64) {
        let full = !self.rx.may_park();
        let Some(pack) = self.rx.packs.get_mut(&id) else { return };
        let machine = self.rx.machine.as_mut().unwrap();
        let mut verify = Vec::new();
        for (file, digest, bytes) in std::mem::take(&mut pack.parked) {
            let admit = machine.admit_packed(file, bytes.len() as u64);
            match admit.unwrap_or_else(|e| panic!("seed {}: {e}", self.knobs.seed)) {
                Admit::Accept { .. } => verify.push(Verified::Packed { pack: id, file, digest, bytes }),
                Admit::Park if full && machine.entry(file).is_none() => {
                    self.log.dropped += 1;
                    machine.handle_dropped(file, u64::MAX);
                }
                Admit::Park => {
                    self.log.parked += 1;
                    pack.parked.push((file, digest, bytes));
                }
                Admit::Discard => {}
            }
        }
        pack.writing += verify.len();
        for verified in verify {
            self.after_work(Event::Verified(verified));
        }
        self.pack_done(id);
    }

    fn pack_done(&mut self, id: u64) {
        if self.rx.packs.get(&id).is_some_and(|p| p.writing == 0 && p.parked.is_empty()) {
            let number = self.rx.packs.remove(&id).unwrap().number;
            self.rx.machine.as_mut().unwrap().handle_pack_done(number);
        }
    }

    pub(super) fn verified(&mut self, verified: Verified) {
        let machine = self.rx.machine.as_mut().unwrap();
        match verified {
            Verified::Chunk { file, chunk, value, bytes } => {
                self.rx.verifying -= 1;
                let entry = machine.entry(file).cloned();
                let size = entry.as_ref().map_or(0, |e| e.size());
                if entry.is_some() && chunk_value(self.knobs.chunk_size, chunk, size, &bytes) != value {
                    machine.handle_refused(file, chunk);
                } else {
                    if let Some(entry) = entry {
                        self.rx.destination.write(entry.path.as_bytes(), chunk, bytes);
                    }
                    machine.handle_written(file, chunk, value, self.now);
                    self.rx.forget(file, chunk);
                }
            }
            Verified::Packed { pack, file, digest, bytes } => {
                if Digest::of(&bytes) != digest {
                    machine.handle_refused(file, u64::MAX);
                } else {
                    if let Some(entry) = machine.entry(file) {
                        self.rx.destination.write(entry.path.as_bytes(), 0, bytes);
                    }
                    machine.handle_packed_written(file, digest);
                }
                self.rx.packs.get_mut(&pack).unwrap().writing -= 1;
                self.pack_done(pack);
            }
        }
    }

    pub(super) fn receiver_lost(&mut self, link: LinkId) {
        self.rx.live.remove(&link);
        self.rx.inboxes.retain(|(l, _)| *l != link);
        self.rx.assembling.retain(|_, a| !a.links.contains(&link));
    }

    pub(super) fn acted(&mut self, action: Action) {
        let size = self.knobs.chunk_size;
        let now = self.now;
        let machine = self.rx.machine.as_mut().unwrap();
        let destination = &mut self.rx.destination;
        match action {
            Action::Prepare { first, entries } => {
                let found = entries.iter().map(|entry| destination.prepare(entry)).collect();
                machine.handle_prepared(first, found);
                self.unpark();
            }
            Action::Compare { file } => {
                let path = machine.entry(file).unwrap().path.clone();
                let root = Digest::of(&destination.files[path.as_bytes()]);
                machine.handle_compared(file, root);
            }
            Action::ReadHeld { file } => self.read_held(file, 0),
            Action::Hole { file, first, count } => {
                for chunk in first..first + count {
                    if machine.wants_chunk(file, chunk) {
                        let entry = machine.entry(file).unwrap();
                        let (len, path) = (entry.size(), entry.path.clone());
                        let bytes = vec![0; index(size.range(chunk, len).unwrap().len)];
                        let value = chunk_value(size, chunk, len, &bytes);
                        destination.write(path.as_bytes(), chunk, bytes);
                        machine.handle_written(file, chunk, value, now);
                    }
                }
            }
            Action::Sync { group } => machine.handle_synced(&group, now),
            Action::Publish { files } => {
                for (file, root) in files {
                    let Some(entry) = machine.entry(file) else { continue };
                    match destination.publish(entry.path.as_bytes(), root) {
                        Published::Yes => machine.handle_published(file, root, Vec::new()),
                        Published::NameTaken => machine.handle_name_taken(file, root),
                    }
                }
                machine.handle_publish_done();
            }
            Action::CloseDir { id, entry } => {
                self.assert_below_is_done(id, &entry.path);
                self.rx.destination.closed.insert(entry.path.as_bytes().to_vec());
                self.rx.machine.as_mut().unwrap().handle_dir_done(id, None);
            }
            Action::Release { file, .. } => {
                let chunks: Vec<_> = self.rx.assembling.range((file, 0)..=(file, u64::MAX)).map(|(k, _)| k.1).collect();
                chunks.into_iter().for_each(|chunk| self.rx.forget(file, chunk));
                self.unpark();
            }
            Action::Keep { message, last } => {
                self.rx.kept.push(message);
                if last {
                    machine.handle_kept();
                }
            }
            Action::Finish => destination.finished = true,
        }
    }

    /// Reads the next run of what a part holds, and goes on a little later.
    pub(super) fn read_held(&mut self, file: u64, from: u64) {
        let machine = self.rx.machine.as_mut().unwrap();
        let Some(entry) = machine.entry(file).cloned() else { return };
        let runs = self.rx.destination.held(self.knobs.chunk_size, entry.path.as_bytes(), entry.size());
        match runs.into_iter().find(|(first, _)| *first >= from) {
            Some((first, values)) => {
                let from = first + values.len() as u64;
                machine.handle_held(file, first, values, false);
                self.after_work(Event::ReadHeld { file, from });
            }
            None => machine.handle_held(file, from, Vec::new(), true),
        }
    }

    fn assert_below_is_done(&self, end: u64, dir: &crate::chunk::RelPath) {
        let mut below = dir.as_bytes().to_vec();
        below.push(b'/');
        for (id, source) in (0..end).zip(&self.tx.source.entries) {
            let path = source.entry.path.as_bytes();
            if path.starts_with(&below) && matches!(source.entry.kind, EntryKind::File { .. }) {
                let open = self.rx.machine.as_ref().unwrap().entry(id).is_some();
                assert!(!open, "seed {}: {dir} closed before {}", self.knobs.seed, source.entry.path);
            }
        }
    }

    /// Looks again at everything that was parked.
    fn unpark(&mut self) {
        for (link, head, payload) in std::mem::take(&mut self.rx.parked) {
            self.data(link, head, payload);
        }
        let packs: Vec<_> = self.rx.packs.keys().copied().collect();
        packs.into_iter().for_each(|id| self.unpack(id));
    }

    pub(super) fn failed_texts(&self) -> Vec<(String, Class)> {
        self.tx.failed.iter().map(|(entry, class, _)| (entry.path.to_string(), *class)).collect()
    }
}

/// Used by tests that need the values of what a part holds.
pub(super) fn chunks_of(size: ChunkSize, bytes: &[u8]) -> BTreeMap<u64, Vec<u8>> {
    bytes.chunks(size.buffer_bytes()).enumerate().map(|(n, b)| (n as u64, b.to_vec())).collect()
}
