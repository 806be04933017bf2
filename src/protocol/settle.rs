//! How entries come to their end in a receiving machine: completion, groups, publication, receipts.

use std::time::Duration;

use super::entry::EntryKind;
use super::incoming::{Incoming, State};
use super::receiver::{GROUP_AGE, GROUP_BYTES, MAX_LIST, MAX_PUBLISH, RECEIPTS_BYTES};
use super::{Action, Class, Done, Evidence, Message, Receipt, Receiver, ReceiverEvent};
use crate::chunk::{ChunkSet, ChunkValue, Digest};

impl Receiver {
    pub(super) fn complete(&mut self, file: u64) {
        let Some(item) = self.items.get(&file) else { return };
        let State::Receiving(f) = &item.state else { return };
        if f.reading_held {
            return;
        }
        let root = match f.whole {
            Some(digest) => digest,
            None => {
                let (Ok(root), Some(end)) = (f.roots.root(), f.end) else { return };
                if root != end {
                    let text = format!(
                        "{}: the pieces add up to {root}, but the source reads {end}; it changed or was misread",
                        item.entry.path
                    );
                    return self.fail(file, Class::Integrity, text);
                }
                root
            }
        };
        if let EntryKind::File { expected: Some(expected), .. } = item.entry.kind
            && expected != root
        {
            let text = format!("{}: the source has digest {root}, but {expected} was expected", item.entry.path);
            return self.fail(file, Class::Source, text);
        }
        // Publishing syncs the whole file; its last group needs no record of its own.
        self.forget_unsynced(file);
        self.publish(file, root);
    }

    pub(super) fn publish(&mut self, file: u64, root: Digest) {
        self.enter(file, State::Publishing);
        self.publishable.push_back((file, root));
        self.maybe_publish();
    }

    pub(super) fn maybe_publish(&mut self) {
        if !self.publishing && !self.publishable.is_empty() {
            self.publishing = true;
            let n = self.publishable.len().min(MAX_PUBLISH);
            self.actions.push_back(Action::Publish { files: self.publishable.drain(..n).collect() });
        }
    }

    /// A file stands under its final name, durably.
    pub fn handle_published(&mut self, file: u64, root: Digest, evidence: Vec<Evidence>) {
        let size = self.items.get(&file).map_or(0, |i| i.entry.size());
        let done = Done::Copied;
        self.done(file, Receipt { id: file, size, digest: Some(root), done, durable: true, published: true, evidence });
    }

    /// Another file took the final name meanwhile: compare with it.
    pub fn handle_name_taken(&mut self, file: u64, root: Digest) {
        if self.items.contains_key(&file) {
            self.enter(file, State::Comparing { ours: None, theirs: Some(root), arrived: true });
            self.actions.push_back(Action::Compare { file });
        }
    }

    /// A publish action is over; every file of it was told.
    pub fn handle_publish_done(&mut self) {
        self.publishing = false;
        self.maybe_publish();
    }

    /// An entry failed on this side.
    pub fn handle_failed(&mut self, id: u64, class: Class, text: String) {
        self.fail(id, class, text);
    }

    /// The mode and times of a directory are set, or could not be.
    pub fn handle_dir_done(&mut self, id: u64, failed: Option<(Class, String)>) {
        match failed {
            None => {
                let receipt = Receipt {
                    id,
                    size: 0,
                    digest: None,
                    done: Done::Made,
                    durable: false,
                    published: true,
                    evidence: Vec::new(),
                };
                self.done(id, receipt);
            }
            Some((class, text)) => self.fail(id, class, text),
        }
    }

    /// A sync action is over: its chunks would survive a power cut.
    pub fn handle_synced(&mut self, group: &[(u64, Vec<(u64, ChunkValue)>)], now: Duration) {
        self.syncing = false;
        let mut ranges = Vec::new();
        for (file, chunks) in group {
            let mut set = ChunkSet::new();
            chunks.iter().for_each(|(chunk, _)| set.insert_range(*chunk, 1));
            ranges.extend(set.ranges().map(|(first, count)| (*file, first, count)));
            let Some(item) = self.items.get_mut(file) else { continue };
            let size = item.entry.size();
            let bytes: u64 = set.iter().filter_map(|c| self.chunk_size.range(c, size)).map(|r| r.len).sum();
            let bytes = bytes.min(size - item.durable_bytes);
            item.durable_bytes += bytes;
            self.stats.bytes_durable = self.stats.bytes_durable.saturating_add(bytes);
        }
        for part in ranges.chunks(MAX_LIST) {
            self.messages.push_back(Message::Durable { ranges: part.to_vec() });
        }
        if std::mem::take(&mut self.sync_asked) {
            self.sync_now();
        }
        self.maybe_sync(now);
    }

    pub(super) fn maybe_sync(&mut self, now: Duration) {
        let old = self.unsynced_since.is_some_and(|since| now.saturating_sub(since) >= GROUP_AGE);
        if !self.syncing && !self.unsynced.is_empty() && (self.unsynced_bytes >= GROUP_BYTES || old) {
            self.sync_now();
        }
    }

    /// Makes everything written durable now, because the session is about to be left.
    pub fn sync_now(&mut self) {
        if self.syncing {
            self.sync_asked = true;
        } else if !self.unsynced.is_empty() {
            self.syncing = true;
            self.unsynced_bytes = 0;
            self.unsynced_since = None;
            self.actions.push_back(Action::Sync { group: std::mem::take(&mut self.unsynced).into_iter().collect() });
        }
    }

    pub(super) fn forget_unsynced(&mut self, file: u64) {
        let Some(chunks) = self.unsynced.remove(&file) else { return };
        let size = self.items.get(&file).map_or(0, |i| i.entry.size());
        let bytes: u64 = chunks.iter().filter_map(|c| self.chunk_size.range(c.0, size)).map(|r| r.len).sum();
        self.unsynced_bytes = self.unsynced_bytes.saturating_sub(bytes);
        if self.unsynced.is_empty() {
            self.unsynced_since = None;
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.syncing { None } else { self.unsynced_since.map(|s| s + GROUP_AGE) }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.maybe_sync(now);
    }

    /// Changes an entry; every change of what a peer can make it cost must come through here.
    pub(super) fn change<R>(&mut self, id: u64, f: impl FnOnce(&mut Incoming) -> R) -> Option<R> {
        let item = self.items.get_mut(&id)?;
        let before = item.state.weight();
        let result = f(item);
        let after = item.state.weight();
        self.weight.holes = self.weight.holes + after.holes - before.holes;
        self.weight.subtrees = self.weight.subtrees + after.subtrees - before.subtrees;
        Some(result)
    }

    pub(super) fn enter(&mut self, id: u64, state: State) {
        self.change(id, |item| item.state = state);
    }

    pub(super) fn remove(&mut self, id: u64, discard: bool) -> Option<Incoming> {
        self.forget_unsynced(id);
        self.dropped.remove(&id);
        let item = self.items.remove(&id)?;
        self.items_bytes -= item.entry.encoded_bytes();
        let weight = item.state.weight();
        self.weight.holes -= weight.holes;
        self.weight.subtrees -= weight.subtrees;
        if matches!(item.entry.kind, EntryKind::File { .. }) {
            self.actions.push_back(Action::Release { file: id, discard });
        }
        if !matches!(item.entry.kind, EntryKind::DirEnd) {
            self.stats.entries_done += 1;
        }
        Some(item)
    }

    pub(super) fn done(&mut self, id: u64, receipt: Receipt) {
        let Some(item) = self.remove(id, receipt.done == Done::Same) else { return };
        self.tree.insert(id, &item.entry, receipt.digest.as_ref());
        let (size, s) = (item.entry.size(), &mut self.stats);
        if matches!(receipt.done, Done::Copied | Done::Same | Done::Trusted) {
            s.bytes_held = s.bytes_held.saturating_add(size - item.held_bytes);
            if receipt.durable {
                s.bytes_durable = s.bytes_durable.saturating_add(size - item.durable_bytes);
            }
        }
        if matches!(receipt.done, Done::Same | Done::Trusted) {
            s.bytes_resumed = s.bytes_resumed.saturating_add(size - item.held_bytes);
        }
        match item.entry.kind {
            EntryKind::File { .. } => {
                s.files_done += 1;
                s.bytes_done = s.bytes_done.saturating_add(size);
            }
            EntryKind::Dir | EntryKind::Symlink { .. } => s.others_done += 1,
            EntryKind::Skipped => s.skipped += 1,
            _ => {}
        }
        if !matches!(item.entry.kind, EntryKind::DirEnd) {
            self.events.push_back(ReceiverEvent::Done(Box::new(item.entry), receipt.clone()));
        }
        self.receipts_bytes += receipt.encoded_bytes();
        self.receipts.push(receipt);
        if self.receipts_bytes >= RECEIPTS_BYTES {
            self.flush_receipts();
        }
        self.advance();
    }

    pub(super) fn flush_receipts(&mut self) {
        if !self.receipts.is_empty() {
            self.receipts_bytes = 0;
            let message = Message::Receipts(std::mem::take(&mut self.receipts));
            self.take_down(&message);
            self.messages.push_back(message);
        }
    }

    pub(super) fn fail(&mut self, id: u64, class: Class, text: String) {
        let Some(item) = self.remove(id, false) else { return };
        self.tree.fail(id);
        self.failed += 1;
        let message = Message::EntryFailed { id, class, text: text.clone() };
        self.take_down(&message);
        self.messages.push_back(message);
        self.events.push_back(ReceiverEvent::Failed(Box::new(item.entry), class, text));
        self.advance();
    }

    /// Closes directories whose content is complete, and the tree when everything is.
    pub(super) fn advance(&mut self) {
        if let Some((&id, item)) = self.items.iter_mut().next() {
            if matches!(item.state, State::Waiting) {
                item.state = State::Closing;
                self.actions.push_back(Action::CloseDir { id, entry: item.entry.clone() });
            }
        } else if self.end.is_some() && !self.tree_sent && self.keeping.is_none() {
            self.flush_receipts();
            let digest = self.tree.digest(self.next_id);
            let tree = Message::TreeReceipt { digest, failed: self.failed };
            if self.keep {
                self.actions.push_back(Action::Keep { message: tree.clone(), last: true });
                self.keeping = Some(tree);
            } else {
                self.tree_sent = true;
                self.messages.push_back(tree);
            }
        }
    }

    fn take_down(&mut self, message: &Message) {
        if self.keep {
            self.actions.push_back(Action::Keep { message: message.clone(), last: false });
        }
    }
}
