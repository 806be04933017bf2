use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::entry::{Entry, EntryKind, MAX_PAGE_ENTRIES, PAGE_TARGET_BYTES};
use super::incoming::{Early, Incoming, Receiving, State, Weight};
use super::tree::TreeHasher;
use super::{
    Action, Admit, Class, DataHead, Disposition, Done, ENTRY_WINDOW, ENTRY_WINDOW_BYTES, Message, Prepared,
    ProtocolError, Receipt, ReceiverEvent, ReceiverStats,
};
use crate::chunk::{ChunkSet, ChunkSize, ChunkValue, Digest};

/// A group is made durable when it holds this many bytes.
pub(super) const GROUP_BYTES: u64 = 64 << 20;
/// A group is made durable at the latest this long after its first chunk was written.
pub(super) const GROUP_AGE: Duration = Duration::from_secs(5);
/// How often one chunk may arrive with bytes that do not match its value before the file fails.
const MAX_STRIKES: u8 = 3;
/// Receipts of one message take at most this many bytes.
pub(super) const RECEIPTS_BYTES: usize = 128 << 10;
/// Most pairs, packs or values in one message, so that it stays well below the longest one.
pub(super) const MAX_LIST: usize = 4096;
/// Runs of holes that may wait to be hashed before frames should no longer be taken.
const SOFT_HOLES: usize = 4096;
/// Runs of holes and unmerged subtrees of all files together. An honest sender reads files from front to back, so it
/// stays far below; memory for more would be the peer's to claim.
const MAX_PIECES: usize = 1 << 18;
/// Dropped chunks of one file that are remembered one by one; beyond, the whole file is wanted again.
const MAX_DROPPED_FRAGMENTS: usize = 16;
/// Files in one publish action.
pub(super) const MAX_PUBLISH: usize = 4096;

/// The receiving machine: what to accept, verify, write, sync, publish and acknowledge. Knows no file, link or clock.
///
/// Inputs are the `handle_*` and `admit*` methods; outputs are [`Self::poll_message`] and [`Self::poll_action`], to be
/// polled until empty after any input.
///
/// Every entry reaches its end by exactly one receipt or one failure, both told to the sender.
#[derive(Debug)]
pub struct Receiver {
    pub(super) chunk_size: ChunkSize,
    pub(super) holds: bool,
    pub(super) overwrite: bool,
    // What each file must be, where this end was told so.
    pub(super) expected: Option<Digest>,
    pub(super) items: BTreeMap<u64, Incoming>,
    pub(super) items_bytes: usize,
    pub(super) weight: Weight,
    pub(super) next_id: u64,
    pub(super) end: Option<u64>,
    pub(super) in_process: BTreeSet<(u64, u64)>,
    // Wanted again once their entry is prepared.
    pub(super) dropped: BTreeMap<u64, ChunkSet>,
    pub(super) unsynced: BTreeMap<u64, Vec<(u64, ChunkValue)>>,
    pub(super) unsynced_bytes: u64,
    pub(super) unsynced_since: Option<Duration>,
    pub(super) syncing: bool,
    pub(super) sync_asked: bool,
    pub(super) publishable: VecDeque<(u64, Digest)>,
    pub(super) publishing: bool,
    pub(super) got_chunks: BTreeSet<(u64, u64)>,
    pub(super) got_packs: BTreeSet<u64>,
    pub(super) receipts: Vec<Receipt>,
    pub(super) receipts_bytes: usize,
    pub(super) messages: VecDeque<Message>,
    pub(super) actions: VecDeque<Action>,
    pub(super) tree: TreeHasher,
    pub(super) failed: u64,
    pub(super) tree_sent: bool,
    // What is said about entries is also taken down; the word on the tree waits for that.
    pub(super) keep: bool,
    pub(super) keeping: Option<Message>,
    pub(super) finished: bool,
    pub(super) stats: ReceiverStats,
    pub(super) events: VecDeque<ReceiverEvent>,
}

impl Receiver {
    /// A machine for one session. `holds`: every page is answered before its files are sent.
    pub fn new(chunk_size: ChunkSize, holds: bool, overwrite: bool) -> Self {
        Self {
            chunk_size,
            holds,
            overwrite,
            expected: None,
            items: BTreeMap::new(),
            items_bytes: 0,
            weight: Weight::default(),
            next_id: 0,
            end: None,
            in_process: BTreeSet::new(),
            dropped: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            unsynced_bytes: 0,
            unsynced_since: None,
            syncing: false,
            sync_asked: false,
            publishable: VecDeque::new(),
            publishing: false,
            got_chunks: BTreeSet::new(),
            got_packs: BTreeSet::new(),
            receipts: Vec::new(),
            receipts_bytes: 0,
            messages: VecDeque::new(),
            actions: VecDeque::new(),
            tree: TreeHasher::default(),
            failed: 0,
            tree_sent: false,
            keep: false,
            keeping: None,
            finished: false,
            stats: ReceiverStats::default(),
            events: VecDeque::new(),
        }
    }

    /// Each file must have this digest, also where the sender does not say so. To be called first.
    pub fn expect(&mut self, digest: Digest) {
        self.expected = Some(digest);
    }

    /// Asks for everything that is said about entries to be taken down: see [`Action::Keep`]. To be called first.
    pub fn keep_receipts(&mut self) {
        self.keep = true;
    }

    /// All receipts are durable where they can be asked for again: the sender may hear that the tree is complete.
    pub fn handle_kept(&mut self) {
        if let Some(tree) = self.keeping.take() {
            self.tree_sent = true;
            self.messages.push_back(tree);
        }
    }

    /// Takes a message of the sender.
    pub fn handle_message(&mut self, message: Message) -> Result<(), ProtocolError> {
        match message {
            Message::Page { first, entries } => self.handle_page(first, entries)?,
            Message::Hole { file, first, count } => self.handle_hole(file, first, count)?,
            Message::Keep { file, first, count } => self.handle_keep(file, first, count)?,
            Message::FileEnd { file, root } => self.handle_file_end(file, root)?,
            Message::FileFailed { file, class, text } => self.handle_file_failed(file, class, text)?,
            Message::End { entries, .. } => {
                if entries != self.next_id || self.end.is_some() {
                    return Err(ProtocolError::PeerMisbehaved("it ended the manifest at the wrong place"));
                }
                self.end = Some(entries);
                self.advance();
            }
            Message::Bye => {
                if !self.tree_sent || self.finished {
                    return Err(ProtocolError::PeerMisbehaved("it left before the tree was complete"));
                }
                self.finished = true;
                self.actions.push_back(Action::Finish);
            }
            _ => return Err(ProtocolError::PeerMisbehaved("a sender does not say that")),
        }
        Ok(())
    }

    fn handle_page(&mut self, first: u64, mut entries: Vec<Entry>) -> Result<(), ProtocolError> {
        for entry in &mut entries {
            if let (Some(ours), EntryKind::File { expected, .. }) = (self.expected, &mut entry.kind) {
                *expected = Some(ours);
            }
        }
        if first != self.next_id || self.end.is_some() || entries.is_empty() {
            return Err(ProtocolError::PeerMisbehaved("its pages do not follow each other"));
        }
        self.items_bytes += entries.iter().map(Entry::encoded_bytes).sum::<usize>();
        // A page of tolerance: a sender may ask its window once per page.
        if self.items.len() + entries.len() > ENTRY_WINDOW + MAX_PAGE_ENTRIES
            || self.items_bytes + self.tree.waiting_bytes() > ENTRY_WINDOW_BYTES + 2 * PAGE_TARGET_BYTES
        {
            return Err(ProtocolError::PeerMisbehaved("it announces more entries than the window allows"));
        }
        for entry in &entries {
            if !matches!(entry.kind, EntryKind::DirEnd) {
                self.stats.entries_found += 1;
                self.stats.bytes_found = self.stats.bytes_found.saturating_add(entry.size());
            }
            let state = State::Preparing(Early::default());
            let item = Incoming { entry: entry.clone(), state, held_bytes: 0, durable_bytes: 0 };
            self.items.insert(self.next_id, item);
            self.next_id += 1;
        }
        self.actions.push_back(Action::Prepare { first, entries });
        Ok(())
    }

    /// A page was prepared: what was found, in order.
    pub fn handle_prepared(&mut self, first: u64, found: Vec<Prepared>) {
        let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
        let exceptions: Vec<_> = (first..)
            .zip(&found)
            .filter_map(|(id, prepared)| {
                let disposition = match prepared {
                    Prepared::Compare => Disposition::Compare,
                    Prepared::Held => Disposition::Held,
                    Prepared::Settled { .. } | Prepared::Failed { .. } => Disposition::Settled,
                    Prepared::Receive | Prepared::Later => return None,
                };
                Some((id, disposition))
            })
            .collect();
        // The answer goes before whatever the entries cause.
        if self.holds || !exceptions.is_empty() {
            self.messages.push_back(Message::Answer { first, count, exceptions });
        }
        for (id, prepared) in (first..).zip(found) {
            let early = self.change(id, |item| match &mut item.state {
                State::Preparing(early) => Some(std::mem::take(early)),
                _ => None,
            });
            if let Some(Some(early)) = early {
                self.prepared(id, prepared, early);
            }
        }
        self.advance();
    }

    fn prepared(&mut self, id: u64, prepared: Prepared, early: Early) {
        let Some(item) = self.items.get(&id) else { return };
        let size = item.entry.size();
        let listed =
            if let EntryKind::Failed { class, text } = &item.entry.kind { Some((*class, text.clone())) } else { None };
        if let Some((class, text)) = listed.or(early.failed) {
            return self.fail(id, class, text);
        }
        match prepared {
            Prepared::Receive | Prepared::Held => {
                let mut f = Receiving::new(self.chunk_size, size, early.end);
                f.reading_held = prepared == Prepared::Held;
                if f.reading_held {
                    self.actions.push_back(Action::ReadHeld { file: id });
                }
                let holes = early.holes.ranges();
                self.actions.extend(holes.map(|(first, count)| Action::Hole { file: id, first, count }));
                f.holes = early.holes;
                self.enter(id, State::Receiving(Box::new(f)));
                if let Some(dropped) = self.dropped.remove(&id) {
                    self.messages.push_back(Message::Want { file: id, ranges: dropped.ranges().collect() });
                }
                self.complete(id);
            }
            Prepared::Compare => {
                self.enter(id, State::Comparing { ours: None, theirs: early.end, arrived: false });
                self.actions.push_back(Action::Compare { file: id });
            }
            Prepared::Settled { done, durable } => {
                let published = !matches!(done, Done::WouldCopy | Done::Skipped);
                self.done(id, Receipt { id, size, digest: None, done, durable, published, evidence: Vec::new() });
            }
            Prepared::Failed { class, text } => self.fail(id, class, text),
            Prepared::Later => self.enter(id, State::Waiting),
        }
    }

    /// Says what to do with a data frame, before its payload is taken from the link.
    pub fn admit(&mut self, head: &DataHead) -> Result<Admit, ProtocolError> {
        let Some(item) = self.items.get(&head.file) else { return self.admit_unknown(head.file) };
        let EntryKind::File { size, sparse, .. } = item.entry.kind else {
            return Err(ProtocolError::PeerMisbehaved("it sends bytes of something that is no file"));
        };
        let Some(range) = self.chunk_size.range(head.chunk, size) else {
            return Err(ProtocolError::PeerMisbehaved("it sends bytes past the end of a file"));
        };
        if u64::from(head.offset) + u64::from(head.len) > range.len {
            return Err(ProtocolError::PeerMisbehaved("it sends bytes past the end of a chunk"));
        }
        match &item.state {
            State::Preparing(_) => Ok(Admit::Park),
            State::Receiving(f) if f.roots.contains(head.chunk) => {
                // The sender had not heard that it is here, or it would not send it again.
                self.got_chunks.insert((head.file, head.chunk));
                Ok(Admit::Discard)
            }
            State::Receiving(f) if f.whole.is_some() || self.in_process.contains(&(head.file, u64::MAX)) => {
                Ok(Admit::Discard)
            }
            State::Receiving(_) if self.weight.holes + self.weight.subtrees > MAX_PIECES => {
                Err(ProtocolError::PeerMisbehaved("it sends files in too many pieces"))
            }
            State::Receiving(_) => Ok(Admit::Accept { file_len: size, sparse }),
            _ => Ok(Admit::Discard),
        }
    }

    /// Bytes may overtake the page that announces them, but not by more than the window.
    fn admit_unknown(&self, file: u64) -> Result<Admit, ProtocolError> {
        if file < self.next_id {
            Ok(Admit::Discard)
        } else if file - self.next_id > (ENTRY_WINDOW + MAX_PAGE_ENTRIES) as u64 || self.end.is_some() {
            Err(ProtocolError::PeerMisbehaved("it sends bytes of a file that it cannot have announced"))
        } else {
            Ok(Admit::Park)
        }
    }

    /// Takes a chunk whose bytes are all here into processing; false if the same chunk, or the whole file, is being
    /// processed already: the bytes are dropped, nothing is to be told.
    pub fn begin_chunk(&mut self, file: u64, chunk: u64) -> bool {
        !self.in_process.contains(&(file, u64::MAX)) && self.in_process.insert((file, chunk))
    }

    /// Says what to do with one file of a pack.
    pub fn admit_packed(&mut self, file: u64, len: u64) -> Result<Admit, ProtocolError> {
        let Some(item) = self.items.get(&file) else { return self.admit_unknown(file) };
        let EntryKind::File { size, sparse, .. } = item.entry.kind else {
            return Err(ProtocolError::PeerMisbehaved("it packs something that is no file"));
        };
        if size != len {
            return Err(ProtocolError::PeerMisbehaved("it packs a file with another size than announced"));
        }
        match &item.state {
            State::Preparing(_) => Ok(Admit::Park),
            // Whole or by chunks, never both at once: two writers of one part would prove nothing.
            State::Receiving(f) if f.whole.is_none() && f.roots.known() == 0 => {
                Ok(if self.in_process.range((file, 0)..=(file, u64::MAX)).next().is_none() {
                    self.in_process.insert((file, u64::MAX));
                    Admit::Accept { file_len: size, sparse }
                } else {
                    Admit::Discard
                })
            }
            _ => Ok(Admit::Discard),
        }
    }

    /// Bytes were dropped although they were wanted or to be parked; they must come again. What arrived before its
    /// entry was prepared is asked for when it is, not earlier: it would arrive too early again.
    pub fn handle_dropped(&mut self, file: u64, chunk: u64) {
        self.in_process.remove(&(file, chunk));
        let first = if chunk == u64::MAX { 0 } else { chunk };
        let early = match self.items.get(&file).map(|i| &i.state) {
            None => file >= self.next_id,
            Some(State::Preparing(_)) => true,
            Some(State::Receiving(f)) => {
                if !f.roots.contains(first) && f.whole.is_none() {
                    self.messages.push_back(Message::Want { file, ranges: vec![(first, 1)] });
                }
                false
            }
            Some(_) => false,
        };
        if early {
            let set = self.dropped.entry(file).or_default();
            set.insert(first);
            if set.fragments() > MAX_DROPPED_FRAGMENTS {
                set.insert_range(0, u64::MAX);
            }
        }
    }

    /// A verified chunk was written to the part, or left as a hole there.
    pub fn handle_written(&mut self, file: u64, chunk: u64, value: ChunkValue, now: Duration) {
        self.in_process.remove(&(file, chunk));
        let chunk_size = self.chunk_size;
        let written = self.change(file, |item| {
            let range = chunk_size.range(chunk, item.entry.size())?;
            let State::Receiving(f) = &mut item.state else { return None };
            if f.whole.is_some() {
                return None;
            }
            f.held.remove(&chunk);
            let (hole, new) = (f.holes.remove(chunk), f.roots.insert(chunk, value));
            item.held_bytes += if new { range.len } else { 0 };
            Some((hole, new, range.len))
        });
        let Some(Some((hole, new, len))) = written else { return };
        if new {
            self.stats.bytes_held = self.stats.bytes_held.saturating_add(len);
        }
        // A hole came on the control channel, which loses nothing; and it costs so little to announce again that it
        // needs no group of its own.
        if !hole {
            self.got_chunks.insert((file, chunk));
            if new {
                self.unsynced.entry(file).or_default().push((chunk, value));
                self.unsynced_bytes += len;
                self.unsynced_since.get_or_insert(now);
            }
        }
        self.complete(file);
        self.maybe_sync(now);
    }

    /// The bytes of a chunk did not match its value.
    pub fn handle_refused(&mut self, file: u64, chunk: u64) {
        self.in_process.remove(&(file, chunk));
        let Some(item) = self.items.get_mut(&file) else { return };
        let State::Receiving(f) = &mut item.state else { return };
        let size = item.entry.size();
        let refused = self.chunk_size.range(chunk, size).map_or(size, |r| r.len);
        self.stats.bytes_refused = self.stats.bytes_refused.saturating_add(refused);
        let strikes = f.strikes.entry(chunk).or_default();
        *strikes += 1;
        if *strikes >= MAX_STRIKES {
            let text =
                format!("{}: arrived damaged {MAX_STRIKES} times; check the memory of both hosts", item.entry.path);
            self.fail(file, Class::Integrity, text);
        } else {
            let first = if chunk == u64::MAX { 0 } else { chunk };
            self.messages.push_back(Message::Want { file, ranges: vec![(first, 1)] });
        }
    }

    /// A small file of a pack was verified and written.
    pub fn handle_packed_written(&mut self, file: u64, digest: Digest) {
        self.in_process.remove(&(file, u64::MAX));
        let Some(item) = self.items.get_mut(&file) else { return };
        let State::Receiving(f) = &mut item.state else { return };
        if f.whole.replace(digest).is_none() {
            let new = item.entry.size() - item.held_bytes;
            item.held_bytes += new;
            self.stats.bytes_held = self.stats.bytes_held.saturating_add(new);
        }
        self.complete(file);
    }

    /// Every file of a pack was dealt with.
    pub fn handle_pack_done(&mut self, pack: u64) {
        self.got_packs.insert(pack);
    }

    /// Chunks of a part were read again and have these values; `last` when there are no more.
    pub fn handle_held(&mut self, file: u64, first: u64, values: Vec<ChunkValue>, last: bool) {
        let Some(item) = self.items.get_mut(&file) else { return };
        let State::Receiving(f) = &mut item.state else { return };
        for (chunk, value) in (first..).zip(&values) {
            if !f.roots.contains(chunk) {
                f.held.insert(chunk, *value);
            }
        }
        f.reading_held = !last;
        let mut at = first;
        let mut rest = values.as_slice();
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_LIST));
            let last = last && later.is_empty();
            self.messages.push_back(Message::Holds { file, first: at, values: now.to_vec(), last });
            at += now.len() as u64;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.complete(file);
    }

    /// The sender agrees to what is held: it is as good as received.
    fn handle_keep(&mut self, file: u64, first: u64, count: u64) -> Result<(), ProtocolError> {
        self.announced(file)?;
        let chunk_size = self.chunk_size;
        let end = first.checked_add(count).ok_or(ProtocolError::PeerMisbehaved("it keeps chunks without end"))?;
        let kept = self.change(file, |item| {
            let size = item.entry.size();
            let State::Receiving(f) = &mut item.state else { return Ok(0) };
            let mut kept = 0;
            for chunk in first..end {
                match f.held.remove(&chunk) {
                    Some(value) if f.roots.insert(chunk, value) => {
                        kept += chunk_size.range(chunk, size).map_or(0, |r| r.len);
                    }
                    _ if f.roots.contains(chunk) => {}
                    _ => return Err(ProtocolError::PeerMisbehaved("it keeps chunks that are not held")),
                }
            }
            item.held_bytes += kept;
            Ok(kept)
        });
        if let Some(kept) = kept.transpose()? {
            self.stats.bytes_held = self.stats.bytes_held.saturating_add(kept);
            self.stats.bytes_resumed = self.stats.bytes_resumed.saturating_add(kept);
        }
        self.complete(file);
        Ok(())
    }

    /// The control channel keeps order, so nothing is said of an entry before its page.
    fn announced(&self, id: u64) -> Result<(), ProtocolError> {
        let file = self.items.get(&id).is_none_or(|i| matches!(i.entry.kind, EntryKind::File { .. }));
        if id < self.next_id && file {
            Ok(())
        } else {
            Err(ProtocolError::PeerMisbehaved("it speaks of a file that it did not announce"))
        }
    }

    /// The file under the final name was read and has this root.
    pub fn handle_compared(&mut self, file: u64, root: Digest) {
        if let Some(Incoming { state: State::Comparing { ours, .. }, .. }) = self.items.get_mut(&file) {
            *ours = Some(root);
        }
        self.compare(file);
    }

    fn handle_file_end(&mut self, file: u64, root: Digest) -> Result<(), ProtocolError> {
        self.announced(file)?;
        let Some(item) = self.items.get_mut(&file) else { return Ok(()) };
        match &mut item.state {
            State::Preparing(early) => early.end = Some(root),
            State::Receiving(f) => {
                f.end = Some(root);
                self.complete(file);
            }
            State::Comparing { theirs, arrived: false, .. } => {
                *theirs = Some(root);
                self.compare(file);
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_file_failed(&mut self, file: u64, class: Class, text: String) -> Result<(), ProtocolError> {
        self.announced(file)?;
        match self.items.get_mut(&file).map(|i| &mut i.state) {
            // The driver must have answered before anything can be released.
            Some(State::Preparing(early)) => early.failed = Some((class, text)),
            // Everything is here and on its way to its name; the sender fails at sending it again.
            Some(State::Publishing | State::Comparing { arrived: true, .. }) | None => {}
            Some(_) => self.fail(file, class, text),
        }
        Ok(())
    }

    fn compare(&mut self, file: u64) {
        let Some(item) = self.items.get(&file) else { return };
        let State::Comparing { ours: Some(ours), theirs: Some(theirs), arrived } = item.state else { return };
        let size = item.entry.size();
        if let EntryKind::File { expected: Some(expected), .. } = item.entry.kind
            && expected != theirs
        {
            let text = format!("{}: the source has digest {theirs}, but {expected} was expected", item.entry.path);
            self.fail(file, Class::Source, text);
        } else if ours == theirs {
            let receipt = Receipt {
                id: file,
                size,
                digest: Some(ours),
                done: Done::Same,
                durable: true,
                published: true,
                evidence: Vec::new(),
            };
            self.done(file, receipt);
        } else if self.overwrite && arrived {
            self.publish(file, theirs);
        } else if self.overwrite {
            let f = Receiving::new(self.chunk_size, size, Some(theirs));
            self.enter(file, State::Receiving(Box::new(f)));
            self.messages.push_back(Message::Want { file, ranges: vec![(0, u64::MAX)] });
            self.complete(file);
        } else {
            let text = format!(
                "{}: exists at the destination with other bytes; use --overwrite to replace it",
                item.entry.path
            );
            self.fail(file, Class::Destination, text);
        }
    }

    fn handle_hole(&mut self, file: u64, first: u64, count: u64) -> Result<(), ProtocolError> {
        self.announced(file)?;
        let Some(item) = self.items.get(&file) else { return Ok(()) };
        let end = first.checked_add(count).ok_or(ProtocolError::PeerMisbehaved("it sends an endless hole"))?;
        if end > self.chunk_size.count(item.entry.size()) || count == 0 {
            return Err(ProtocolError::PeerMisbehaved("it sends a hole past the end of a file"));
        }
        if self.weight.holes + self.weight.subtrees > MAX_PIECES {
            return Err(ProtocolError::PeerMisbehaved("it sends files in too many pieces"));
        }
        let new = self.change(file, |item| match &mut item.state {
            State::Preparing(early) => {
                early.holes.insert_range(first, count);
                Vec::new()
            }
            State::Receiving(f) => {
                let new = f.holes.gaps(first, count);
                f.holes.insert_range(first, count);
                new
            }
            _ => Vec::new(),
        });
        let new = new.unwrap_or_default().into_iter();
        self.actions.extend(new.map(|(first, count)| Action::Hole { file, first, count }));
        Ok(())
    }

    /// Whether the entry has not been announced or prepared yet.
    pub fn is_early(&self, file: u64) -> bool {
        match self.items.get(&file) {
            Some(item) => matches!(item.state, State::Preparing { .. }),
            None => file >= self.next_id,
        }
    }

    /// Whether the chunk of a hole is still wanted: false once the file is done or failed, or the chunk is known.
    pub fn wants_chunk(&self, file: u64, chunk: u64) -> bool {
        match self.items.get(&file).map(|i| &i.state) {
            Some(State::Receiving(f)) => !f.roots.contains(chunk),
            _ => false,
        }
    }

    /// So many holes wait to be hashed that frames should stay in their links for a while. Only work that was asked for
    /// by [`Action`]s clears this, never the peer, so it is safe to wait for.
    pub fn is_congested(&self) -> bool {
        self.weight.holes > SOFT_HOLES
    }

    /// The next message for the control channel.
    pub fn poll_message(&mut self) -> Option<Message> {
        if self.messages.is_empty() {
            if !self.got_chunks.is_empty() || !self.got_packs.is_empty() {
                return Some(Message::Got {
                    chunks: take_some(&mut self.got_chunks),
                    packs: take_some(&mut self.got_packs),
                });
            }
            self.flush_receipts();
        }
        self.messages.pop_front()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next event for whoever watches.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent> {
        self.events.pop_front()
    }

    /// The entry of an unfinished id.
    pub fn entry(&self, id: u64) -> Option<&Entry> {
        self.items.get(&id).map(|i| &i.entry)
    }

    /// Entries announced that have not reached their end.
    pub fn unfinished(&self) -> usize {
        self.items.len()
    }

    /// Figures as they stand.
    pub fn stats(&self) -> ReceiverStats {
        self.stats
    }

    /// Whether the manifest is complete.
    pub fn is_scanned(&self) -> bool {
        self.end.is_some()
    }

    /// The sender has all receipts.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Every entry reached its end and the sender was told.
    pub fn is_complete(&self) -> bool {
        self.tree_sent
    }

    /// The tree digest; `None` until the end, or if an entry failed.
    pub fn tree_digest(&self) -> Option<Digest> {
        self.end.and_then(|n| self.tree.digest(n))
    }

    /// Entries that failed.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// How many things are remembered, whatever they are: what a hostile peer could make grow.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        let per_file = self.items.values().map(|i| {
            let weight = i.state.weight();
            let strikes = if let State::Receiving(f) = &i.state { f.strikes.len() } else { 0 };
            weight.holes + weight.subtrees + strikes
        });
        per_file.sum::<usize>()
            + self.items.len()
            + self.in_process.len()
            + self.dropped.values().map(ChunkSet::fragments).sum::<usize>()
            + self.unsynced.values().map(Vec::len).sum::<usize>()
            + self.got_chunks.len()
            + self.got_packs.len()
            + self.receipts.len()
            + self.messages.len()
            + self.actions.len()
            + self.events.len()
            + self.tree.waiting_bytes() / 24
    }
}

fn take_some<T: Ord + Copy>(set: &mut BTreeSet<T>) -> Vec<T> {
    std::iter::from_fn(|| set.pop_first()).take(MAX_LIST).collect()
}
