use std::collections::{BTreeMap, HashMap, HashSet, VecDeque, btree_map};

use super::entry::{Entry, EntryKind, MAX_PAGE_ENTRIES, PAGE_TARGET_BYTES};
use super::frame::{MAX_PACK_FILES, PACK_HEAD_BYTES, PACK_RECORD_BYTES};
use super::outgoing::{Outgoing, Stage, Transfer};
use super::tree::TreeHasher;
use super::{
    Class, Disposition, Done, LinkId, Message, ProtocolError, Receipt, SenderEvent, SenderStats, Verdict, Work,
};
use crate::chunk::{ChunkSize, ChunkValue, Digest};

/// Files of at most this many bytes travel in packs.
pub const PACK_MAX_FILE_BYTES: u64 = 256 << 10;
/// Entries that may be unfinished at once; bounds the memory of both ends.
pub const ENTRY_WINDOW: usize = 32 << 10;
/// What unfinished entries, and finished ones behind an unfinished one, may take in memory; bounds both ends.
pub const ENTRY_WINDOW_BYTES: usize = 16 << 20;
/// Disjoint ranges of one file that a receiver may want again at once.
const MAX_AGAIN_FRAGMENTS: usize = 1 << 16;

/// A chunk that the receiver has not acknowledged. There is one sending of a chunk at a time: were it claimed again
/// before its driver has reported, that report could not be told from the next one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flight {
    /// A driver has it.
    Sending(Then),
    /// It was handed to this link.
    On(LinkId),
}

/// What comes of a chunk once its driver has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Fly,
    /// It is wanted again already.
    Again,
    /// It is acknowledged already.
    Nothing,
}

/// A pack that the receiver has not acknowledged.
#[derive(Debug)]
struct Pack {
    files: Vec<u64>,
    // `None` while it is being read and sent.
    link: Option<LinkId>,
}

/// The sending machine: what to read, what to send, what is unacknowledged. Knows no file, link or clock.
///
/// Inputs are the `handle_*` methods; outputs are [`Self::poll_message`], [`Self::poll_event`] and
/// [`Self::next_work`], to be polled until empty after any input. Work may be done by many drivers at once, in any
/// order, and what links and drivers report may come late: after the link's death or the receiver's acknowledgement.
#[derive(Debug)]
pub struct Sender {
    chunk_size: ChunkSize,
    // The receiver answers every page before its files may be read.
    holds: bool,
    items: BTreeMap<u64, Outgoing>,
    items_bytes: usize,
    next_id: u64,
    page: Vec<Entry>,
    page_bytes: usize,
    // (file, size) of files that wait for a pack, some of which may have ended meanwhile.
    small: VecDeque<(u64, u64)>,
    small_bytes: u64,
    // Files that may have a chunk to read.
    ready: VecDeque<u64>,
    packs: BTreeMap<u64, Pack>,
    next_pack: u64,
    // Chunks to be sent or sent, and not acknowledged.
    in_flight: BTreeMap<(u64, u64), Flight>,
    lost_links: HashSet<LinkId>,
    ended: bool,
    tree: TreeHasher,
    tree_receipt: Option<(Option<Digest>, u64)>,
    messages: VecDeque<Message>,
    events: VecDeque<SenderEvent>,
    stats: SenderStats,
}

impl Sender {
    /// A machine for one session. `holds` is the receiver's word from the handshake.
    pub fn new(chunk_size: ChunkSize, holds: bool) -> Self {
        Self {
            chunk_size,
            holds,
            items: BTreeMap::new(),
            items_bytes: 0,
            next_id: 0,
            page: Vec::new(),
            page_bytes: 0,
            small: VecDeque::new(),
            small_bytes: 0,
            ready: VecDeque::new(),
            packs: BTreeMap::new(),
            next_pack: 0,
            in_flight: BTreeMap::new(),
            lost_links: HashSet::new(),
            ended: false,
            tree: TreeHasher::default(),
            tree_receipt: None,
            messages: VecDeque::new(),
            events: VecDeque::new(),
            stats: SenderStats::default(),
        }
    }

    /// Whether another entry may be pushed now. To be asked before each one: the receiver refuses what is above the
    /// window. While this is false the page should be flushed, so that what is in it can come to an end.
    pub fn wants_entries(&self) -> bool {
        !self.ended
            && self.items.len() + self.page.len() < ENTRY_WINDOW
            && self.items_bytes + self.page_bytes + self.tree.waiting_bytes() < ENTRY_WINDOW_BYTES
    }

    /// Takes the next entry of the walk. It is sent with its page: see [`Self::flush_page`]. True if a page was sent.
    pub fn handle_entry(&mut self, entry: Entry) -> bool {
        let bytes = entry.encoded_bytes();
        let pages = self.messages.len();
        if self.page.len() == MAX_PAGE_ENTRIES || self.page_bytes + bytes > PAGE_TARGET_BYTES {
            self.flush_page();
        }
        if !matches!(entry.kind, EntryKind::DirEnd) {
            self.stats.entries_found += 1;
            self.stats.bytes_found = self.stats.bytes_found.saturating_add(entry.size());
        }
        self.page_bytes += bytes;
        self.page.push(entry);
        self.messages.len() > pages
    }

    /// Sends what the page holds. Called when the walk pauses or ends.
    pub fn flush_page(&mut self) {
        if self.page.is_empty() {
            return;
        }
        let entries = std::mem::take(&mut self.page);
        self.page_bytes = 0;
        let first = self.next_id;
        for entry in &entries {
            let id = self.next_id;
            self.next_id += 1;
            self.items_bytes += entry.encoded_bytes();
            let stage = if matches!(entry.kind, EntryKind::Failed { .. }) { Stage::Failed } else { Stage::Announced };
            self.items.insert(id, Outgoing::new(entry.clone(), stage));
            if !self.holds {
                self.make_ready(id, Disposition::Send);
            }
        }
        self.messages.push_back(Message::Page { first, entries });
    }

    /// The walk is complete.
    pub fn handle_end(&mut self) {
        self.flush_page();
        if !self.ended {
            self.ended = true;
            self.messages.push_back(Message::End { entries: self.next_id, bytes: self.stats.bytes_found });
        }
    }

    fn make_ready(&mut self, id: u64, disposition: Disposition) {
        let Some(item) = self.items.get_mut(&id) else { return };
        let (EntryKind::File { size, .. }, Stage::Announced) = (&item.entry.kind, &item.stage) else { return };
        let size = *size;
        if disposition == Disposition::Send && size <= PACK_MAX_FILE_BYTES {
            item.stage = Stage::Small { queued: true, sent: false, pack: None };
            self.small.push_back((id, size));
            self.small_bytes += size;
            return;
        }
        item.stage = Stage::Chunks(Box::new(Transfer::new(self.chunk_size, size, disposition)));
        // What is held must be told first.
        if disposition != Disposition::Held {
            self.list(id, false);
        }
    }

    /// Notes that a file may have a chunk to read.
    fn list(&mut self, id: u64, soon: bool) {
        let Some(t) = self.transfer(id) else { return };
        if !std::mem::replace(&mut t.listed, true) {
            if soon { self.ready.push_front(id) } else { self.ready.push_back(id) }
        }
    }

    /// The next thing to do, if there is any now.
    pub fn next_work(&mut self) -> Option<Work> {
        let full = self.small.len() >= MAX_PACK_FILES / 2 || self.small_bytes >= self.chunk_size.bytes() / 2;
        if full && let Some(work) = self.claim_pack() {
            return Some(work);
        }
        self.claim_chunk().or_else(|| self.claim_pack())
    }

    fn claim_pack(&mut self) -> Option<Work> {
        let limit = self.chunk_size.bytes();
        let (mut files, mut bytes) = (Vec::new(), PACK_HEAD_BYTES as u64);
        while let Some(&(id, size)) = self.small.front() {
            let next = bytes + size + PACK_RECORD_BYTES as u64;
            if (next > limit && !files.is_empty()) || files.len() == MAX_PACK_FILES {
                break;
            }
            self.small.pop_front();
            self.small_bytes -= size;
            let Some(item) = self.items.get_mut(&id) else { continue };
            let Stage::Small { queued, pack, .. } = &mut item.stage else { continue };
            if next > limit {
                // The smallest chunk size is below the largest packed file: such a pack would not fit a buffer.
                item.stage = Stage::Chunks(Box::new(Transfer::new(self.chunk_size, size, Disposition::Send)));
                self.list(id, true);
                return self.claim_chunk();
            }
            *queued = false;
            *pack = Some(self.next_pack);
            bytes = next;
            files.push((id, size));
        }
        if files.is_empty() {
            return None;
        }
        let pack = self.next_pack;
        self.next_pack += 1;
        self.packs.insert(pack, Pack { files: files.iter().map(|f| f.0).collect(), link: None });
        Some(Work::Pack { pack, files })
    }

    fn claim_chunk(&mut self) -> Option<Work> {
        while let Some(&file) = self.ready.front() {
            if let Some(t) = self.transfer(file) {
                if let Some(chunk) = t.claim() {
                    return Some(Work::Chunk { file, chunk });
                }
                // It is listed again by whatever gives it something to do.
                t.listed = false;
                if t.wants_check() {
                    t.checking = true;
                    self.ready.pop_front();
                    return Some(Work::Check { file });
                }
            }
            self.ready.pop_front();
        }
        None
    }

    /// A chunk was read and has this value.
    pub fn handle_chunk_read(&mut self, file: u64, chunk: u64, value: ChunkValue) -> Verdict {
        let len = self.chunk_bytes(file, chunk);
        let Some(item) = self.items.get_mut(&file) else { return Verdict::Skip };
        let Stage::Chunks(t) = &mut item.stage else { return Verdict::Skip };
        t.reading = t.reading.saturating_sub(1);
        let first = t.roots.insert(chunk, value);
        let kept = first && !t.compare && t.held.remove(&chunk) == Some(value);
        let verdict = if t.compare {
            Verdict::Skip
        } else if kept {
            item.kept_bytes += len;
            self.stats.bytes_resumed = self.stats.bytes_resumed.saturating_add(len);
            match self.messages.back_mut() {
                Some(Message::Keep { file: f, first, count }) if *f == file && *first + *count == chunk => *count += 1,
                _ => self.messages.push_back(Message::Keep { file, first: chunk, count: 1 }),
            }
            Verdict::Skip
        } else if let btree_map::Entry::Vacant(vacant) = self.in_flight.entry((file, chunk)) {
            vacant.insert(Flight::Sending(Then::Fly));
            Verdict::Send
        } else {
            // It was claimed twice, and the other claim sends it.
            Verdict::Skip
        };
        let check = t.wants_check();
        if kept {
            self.note_held(file, len);
        }
        if check {
            self.list(file, true);
        }
        verdict
    }

    /// A run of chunks is zeros: as [`Self::handle_chunk_read`], but a hole message travels instead of bytes.
    pub fn handle_hole_read(&mut self, file: u64, chunk: u64, value: ChunkValue) {
        if self.handle_chunk_read(file, chunk, value) == Verdict::Send {
            // The control channel is reliable: nothing is in flight that could be lost with a link.
            self.in_flight.remove(&(file, chunk));
            let len = self.chunk_bytes(file, chunk);
            self.note_held(file, len);
            if let Some(item) = self.items.get_mut(&file) {
                item.sent_bytes = item.sent_bytes.saturating_add(len);
            }
            match self.messages.back_mut() {
                Some(Message::Hole { file: f, first, count }) if *f == file && *first + *count == chunk => *count += 1,
                _ => self.messages.push_back(Message::Hole { file, first: chunk, count: 1 }),
            }
        }
    }

    /// A chunk was handed to a link.
    pub fn handle_chunk_sent(&mut self, file: u64, chunk: u64, link: LinkId) {
        let len = self.chunk_bytes(file, chunk);
        if let Some(item) = self.items.get_mut(&file)
            && let Stage::Chunks(t) = &mut item.stage
        {
            if t.sent.insert(chunk) {
                item.sent_bytes += len;
            } else {
                self.stats.bytes_repeated += len;
            }
        }
        match self.in_flight.get(&(file, chunk)) {
            Some(Flight::Sending(Then::Fly)) if !self.lost_links.contains(&link) => {
                self.in_flight.insert((file, chunk), Flight::On(link));
            }
            _ => self.handle_chunk_unsent(file, chunk),
        }
    }

    /// A chunk that was claimed was not read.
    pub fn handle_chunk_unread(&mut self, file: u64, chunk: u64) {
        if let Some(t) = self.transfer(file) {
            t.reading = t.reading.saturating_sub(1);
            t.again.insert(chunk);
            self.list(file, true);
        }
    }

    /// A check that was claimed was not made.
    pub fn handle_unchecked(&mut self, file: u64) {
        if let Some(t) = self.transfer(file) {
            t.checking = false;
            self.list(file, true);
        }
    }

    /// A chunk that was read to be sent was not: its link died before.
    pub fn handle_chunk_unsent(&mut self, file: u64, chunk: u64) {
        if let Some(Flight::Sending(then)) = self.in_flight.get(&(file, chunk)).copied() {
            self.in_flight.remove(&(file, chunk));
            if then != Then::Nothing {
                self.repeat(file, chunk);
            }
        }
    }

    fn repeat(&mut self, file: u64, chunk: u64) {
        if let Some(t) = self.transfer(file) {
            t.again.insert(chunk);
            self.list(file, true);
        }
    }

    /// A pack was handed to a link.
    pub fn handle_pack_sent(&mut self, pack: u64, link: LinkId) {
        let Some(p) = self.packs.get_mut(&pack) else { return };
        p.link = Some(link);
        for id in &p.files {
            if let Some(item) = self.items.get_mut(id)
                && let Stage::Small { sent, .. } = &mut item.stage
            {
                if std::mem::replace(sent, true) {
                    self.stats.bytes_repeated += item.entry.size();
                } else {
                    item.sent_bytes = item.entry.size();
                }
            }
        }
        if self.lost_links.contains(&link) {
            self.handle_pack_unsent(pack);
        }
    }

    /// A pack that was to be sent was not.
    pub fn handle_pack_unsent(&mut self, pack: u64) {
        if let Some(pack) = self.packs.remove(&pack) {
            pack.files.into_iter().rev().for_each(|id| self.requeue_small(id));
        }
    }

    /// Takes a file out of the pack that it travels in: the pack's fate is no longer the file's. A pack without files
    /// is not waited for, or a receiver could make us remember one for each time that it wants a file.
    fn unpack(&mut self, id: u64) {
        let Some(Outgoing { stage: Stage::Small { pack, .. }, .. }) = self.items.get_mut(&id) else { return };
        let Some(number) = pack.take() else { return };
        if let Some(pack) = self.packs.get_mut(&number) {
            pack.files.retain(|file| *file != id);
            if pack.files.is_empty() {
                self.packs.remove(&number);
            }
        }
    }

    fn requeue_small(&mut self, id: u64) {
        if let Some(item) = self.items.get_mut(&id)
            && let Stage::Small { queued, .. } = &mut item.stage
            && !std::mem::replace(queued, true)
        {
            let size = item.entry.size();
            self.small_bytes += size;
            self.small.push_front((id, size));
        }
    }

    /// The source is unchanged after its last chunk was read.
    pub fn handle_checked(&mut self, file: u64) {
        let Some(t) = self.transfer(file) else { return };
        t.checking = false;
        if let Ok(root) = t.roots.root()
            && !std::mem::replace(&mut t.ended, true)
        {
            self.messages.push_back(Message::FileEnd { file, root });
        }
    }

    /// A file cannot be read, or changed while it was. Its event follows when the receiver has agreed: if it has
    /// published the file already, that stands.
    pub fn handle_read_failed(&mut self, file: u64, class: Class, text: String) {
        let Some(item) = self.items.get_mut(&file) else { return };
        if matches!(item.entry.kind, EntryKind::File { .. })
            && !matches!(std::mem::replace(&mut item.stage, Stage::Failed), Stage::Failed)
        {
            self.messages.push_back(Message::FileFailed { file, class, text });
            self.forget_in_flight(file);
        }
    }

    /// A link died: what was on it and not acknowledged is read and sent again.
    pub fn handle_link_lost(&mut self, link: LinkId) {
        self.lost_links.insert(link);
        let lost: Vec<_> = self.in_flight.iter().filter(|(_, f)| **f == Flight::On(link)).map(|(k, _)| *k).collect();
        for (file, chunk) in lost {
            self.in_flight.remove(&(file, chunk));
            self.repeat(file, chunk);
        }
        let lost: Vec<_> = self.packs.iter().filter(|(_, p)| p.link == Some(link)).map(|(k, _)| *k).collect();
        for pack in lost.into_iter().rev() {
            self.handle_pack_unsent(pack);
        }
    }

    /// Takes a message of the receiver.
    pub fn handle_message(&mut self, message: Message) -> Result<(), ProtocolError> {
        match message {
            Message::Answer { first, count, exceptions } => self.handle_answer(first, count, &exceptions)?,
            Message::Holds { file, first, values, last } => self.handle_holds(file, first, &values, last)?,
            Message::Got { chunks, packs } => {
                for (file, chunk) in chunks {
                    self.handle_got(file, chunk);
                }
                for pack in packs {
                    for id in self.packs.remove(&pack).map(|p| p.files).unwrap_or_default() {
                        let size = self.items.get(&id).map_or(0, |i| i.entry.size());
                        self.note_held(id, size);
                    }
                }
            }
            Message::Durable { ranges } => {
                for (file, first, count) in ranges {
                    self.handle_durable(file, first, count);
                }
            }
            Message::Want { file, ranges } => self.handle_want(file, &ranges)?,
            Message::Receipts(receipts) => {
                for receipt in receipts {
                    self.handle_receipt(receipt);
                }
            }
            Message::EntryFailed { id, class, text } => {
                if let Some(item) = self.remove(id) {
                    self.fail(id, item.entry, class, text);
                }
            }
            Message::TreeReceipt { digest, failed } => {
                if !self.ended || !self.items.is_empty() || self.is_finished() {
                    return Err(ProtocolError::PeerMisbehaved("it closed the tree before every entry was done"));
                }
                self.tree_receipt = Some((digest, failed));
                self.messages.push_back(Message::Bye);
            }
            _ => return Err(ProtocolError::PeerMisbehaved("a receiver does not say that")),
        }
        Ok(())
    }

    fn handle_answer(
        &mut self,
        first: u64,
        count: u32,
        exceptions: &[(u64, Disposition)],
    ) -> Result<(), ProtocolError> {
        let end = first.saturating_add(count.into());
        if end > self.next_id || count as usize > MAX_PAGE_ENTRIES {
            return Err(ProtocolError::PeerMisbehaved("it answers entries that were never sent"));
        }
        let exceptions: HashMap<u64, Disposition> = exceptions.iter().copied().collect();
        if exceptions.keys().any(|id| !(first..end).contains(id)) {
            return Err(ProtocolError::PeerMisbehaved("it answers entries of another page"));
        }
        for id in first..end {
            let disposition = exceptions.get(&id).copied().unwrap_or(Disposition::Send);
            if self.holds {
                if disposition != Disposition::Settled {
                    self.make_ready(id, disposition);
                }
            } else if disposition == Disposition::Compare {
                self.compare_late(id);
            }
        }
        Ok(())
    }

    /// Without `holds` a file is on its way when the receiver finds that it has one of that size. What was not sent
    /// yet is only read; and since a packed file has no `FILE_END`, it is read again to tell its root.
    fn compare_late(&mut self, id: u64) {
        let Some(item) = self.items.get_mut(&id) else { return };
        match &mut item.stage {
            Stage::Small { .. } => {
                let size = item.entry.size();
                item.stage = Stage::Chunks(Box::new(Transfer::new(self.chunk_size, size, Disposition::Compare)));
                self.list(id, false);
            }
            Stage::Chunks(t) => t.compare = true,
            _ => {}
        }
    }

    fn handle_holds(&mut self, file: u64, first: u64, values: &[ChunkValue], last: bool) -> Result<(), ProtocolError> {
        let Some(t) = self.transfer(file) else { return Ok(()) };
        let end = first.saturating_add(values.len() as u64);
        if end > t.chunks || first < t.held_told {
            return Err(ProtocolError::PeerMisbehaved("it holds chunks that the file does not have"));
        }
        for (chunk, value) in (first..).zip(values) {
            if !t.roots.contains(chunk) {
                t.held.insert(chunk, *value);
            }
        }
        t.held_told = if last { u64::MAX } else { end };
        t.held_below = t.held_below.max(t.held_told.min(t.chunks));
        self.list(file, true);
        Ok(())
    }

    fn handle_got(&mut self, file: u64, chunk: u64) {
        // It may have been lost with its link as far as we knew, and wait to be read again.
        let again = self.transfer(file).is_some_and(|t| t.again.remove(chunk));
        let flew = match self.in_flight.get_mut(&(file, chunk)) {
            Some(Flight::Sending(then)) => std::mem::replace(then, Then::Nothing) != Then::Nothing,
            Some(Flight::On(_)) => self.in_flight.remove(&(file, chunk)).is_some(),
            None => false,
        };
        if again || flew {
            self.note_held(file, self.chunk_bytes(file, chunk));
        }
    }

    fn note_held(&mut self, file: u64, bytes: u64) {
        if let Some(item) = self.items.get_mut(&file) {
            let bytes = bytes.min(item.entry.size() - item.held_bytes);
            item.held_bytes += bytes;
            self.stats.bytes_held = self.stats.bytes_held.saturating_add(bytes);
        }
    }

    fn handle_durable(&mut self, file: u64, first: u64, count: u64) {
        if let Some(item) = self.items.get_mut(&file) {
            let (size, unit) = (item.entry.size(), self.chunk_size.bytes());
            let at = |chunk: u64| chunk.saturating_mul(unit).min(size);
            let bytes = (at(first.saturating_add(count)) - at(first)).min(size - item.durable_bytes);
            item.durable_bytes += bytes;
            self.stats.bytes_durable = self.stats.bytes_durable.saturating_add(bytes);
        }
    }

    fn handle_want(&mut self, file: u64, ranges: &[(u64, u64)]) -> Result<(), ProtocolError> {
        let Some(item) = self.items.get_mut(&file) else { return Ok(()) };
        let Stage::Chunks(t) = &mut item.stage else {
            self.unpack(file);
            self.requeue_small(file);
            return Ok(());
        };
        t.compare = false;
        let mut wanted = Vec::new();
        for &(first, count) in ranges {
            if first >= t.chunks.max(1) {
                return Err(ProtocolError::PeerMisbehaved("it wants chunks that the file does not have"));
            }
            // What was never claimed comes in its turn.
            let end = first.saturating_add(count).min(t.cursor);
            if end > first {
                t.again.insert_range(first, end - first);
                wanted.push((first, end - 1));
            }
        }
        if t.again.fragments() > MAX_AGAIN_FRAGMENTS {
            return Err(ProtocolError::PeerMisbehaved("it wants a file in too many pieces"));
        }
        for (first, last) in wanted {
            self.ground(file, first, last);
        }
        self.list(file, true);
        Ok(())
    }

    /// Takes back chunks that are to be sent again. One that a driver has comes in its turn when it has reported.
    fn ground(&mut self, file: u64, first: u64, last: u64) {
        let chunks: Vec<_> = self.in_flight.range((file, first)..=(file, last)).map(|(k, _)| k.1).collect();
        for chunk in chunks {
            match self.in_flight.get_mut(&(file, chunk)) {
                Some(Flight::Sending(then)) => {
                    *then = Then::Again;
                    if let Some(t) = self.transfer(file) {
                        t.again.remove(chunk);
                    }
                }
                _ => {
                    self.in_flight.remove(&(file, chunk));
                }
            }
        }
    }

    fn forget_in_flight(&mut self, file: u64) {
        let keys: Vec<_> = self.in_flight.range((file, 0)..=(file, u64::MAX)).map(|(k, _)| *k).collect();
        for key in keys {
            self.in_flight.remove(&key);
        }
    }

    fn handle_receipt(&mut self, receipt: Receipt) {
        let Some(mut item) = self.remove(receipt.id) else { return };
        if let (Some(t), Some(theirs)) = (item.transfer(), receipt.digest)
            && let Ok(ours) = t.roots.root()
            && ours != theirs
        {
            let text = format!(
                "{}: the receiver has a file with digest {theirs}, but the source reads {ours}",
                item.entry.path
            );
            return self.fail(receipt.id, item.entry, Class::Integrity, text);
        }
        let (size, s) = (item.entry.size(), &mut self.stats);
        if matches!(receipt.done, Done::Copied | Done::Same | Done::Trusted) {
            s.bytes_held = s.bytes_held.saturating_add(size - item.held_bytes);
            if receipt.durable {
                s.bytes_durable = s.bytes_durable.saturating_add(size - item.durable_bytes);
            }
        }
        if matches!(receipt.done, Done::Same | Done::Trusted) {
            let travelled = item.sent_bytes + item.kept_bytes;
            s.bytes_resumed = s.bytes_resumed.saturating_add(size.saturating_sub(travelled));
        }
        self.tree.insert(receipt.id, &item.entry, receipt.digest.as_ref());
        if !matches!(item.entry.kind, EntryKind::DirEnd) {
            self.stats.entries_done += 1;
            match item.entry.kind {
                EntryKind::File { size, .. } => {
                    self.stats.files_done += 1;
                    self.stats.bytes_done = self.stats.bytes_done.saturating_add(size);
                }
                EntryKind::Dir | EntryKind::Symlink { .. } => self.stats.others_done += 1,
                _ => {}
            }
            self.events.push_back(SenderEvent::Done(Box::new(item.entry), receipt));
        }
    }

    fn fail(&mut self, id: u64, entry: Entry, class: Class, text: String) {
        self.tree.fail(id);
        self.stats.failed += 1;
        if !matches!(entry.kind, EntryKind::DirEnd) {
            self.stats.entries_done += 1;
        }
        self.events.push_back(SenderEvent::Failed(Box::new(entry), class, text));
    }

    fn remove(&mut self, id: u64) -> Option<Outgoing> {
        self.unpack(id);
        let item = self.items.remove(&id)?;
        self.items_bytes -= item.entry.encoded_bytes();
        self.forget_in_flight(id);
        Some(item)
    }

    fn transfer(&mut self, file: u64) -> Option<&mut Transfer> {
        self.items.get_mut(&file)?.transfer()
    }

    fn chunk_bytes(&self, file: u64, chunk: u64) -> u64 {
        let size = self.items.get(&file).map_or(0, |i| i.entry.size());
        self.chunk_size.range(chunk, size).map_or(0, |r| r.len)
    }

    /// The entry of an unfinished id.
    pub fn entry(&self, id: u64) -> Option<&Entry> {
        self.items.get(&id).map(|i| &i.entry)
    }

    /// Entries announced that have not reached their end.
    pub fn unfinished(&self) -> usize {
        self.items.len()
    }

    /// The next message for the control channel.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    /// The next event for whoever watches.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// Figures as they stand.
    pub fn stats(&self) -> SenderStats {
        self.stats
    }

    /// Whether the walk is complete.
    pub fn is_scanned(&self) -> bool {
        self.ended
    }

    /// The receiver closed the tree and `BYE` was queued.
    pub fn is_finished(&self) -> bool {
        self.tree_receipt.is_some()
    }

    /// The tree digest, computed here from the receipts; `None` until the end, or if an entry failed.
    pub fn tree_digest(&self) -> Option<Digest> {
        self.tree.digest(self.next_id)
    }

    /// The receiver's tree digest differs from ours although no entry failed.
    pub fn tree_disagrees(&self) -> bool {
        self.tree_receipt.is_some_and(|(theirs, failed)| failed == 0 && theirs != self.tree_digest())
    }

    /// How many things are remembered, whatever they are: what a hostile peer could make grow.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        let per_file = self.items.values().map(|i| match &i.stage {
            Stage::Chunks(t) => t.again.fragments() + t.sent.fragments() + t.held.len() + t.roots.fragments(),
            _ => 0,
        });
        per_file.sum::<usize>()
            + self.items.len()
            + self.small.len()
            + self.ready.len()
            + self.packs.len()
            + self.in_flight.len()
            + self.messages.len()
            + self.events.len()
            + self.tree.waiting_bytes() / 24
    }
}
