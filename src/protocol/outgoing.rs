//! What a sending machine keeps about one entry.

use std::collections::HashMap;

use super::{Disposition, Entry};
use crate::chunk::{ChunkSet, ChunkSize, ChunkValue, RootBuilder};

/// An entry that was announced and has neither a receipt nor a failure yet.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) entry: Entry,
    pub(super) stage: Stage,
    // Handed to links at least once, or told as holes.
    pub(super) sent_bytes: u64,
    // Not sent because the receiver holds them.
    pub(super) kept_bytes: u64,
    // Held by the receiver, as far as it has said.
    pub(super) held_bytes: u64,
    pub(super) durable_bytes: u64,
}

/// How far the bytes of an entry are.
#[derive(Debug)]
pub(super) enum Stage {
    /// No file, or a file whose page the receiver has not answered.
    Announced,
    /// A file that travels whole; `queued` while no pack has taken it, else in this one.
    Small { queued: bool, sent: bool, pack: Option<u64> },
    /// A file that is read by chunks.
    Chunks(Box<Transfer>),
    /// Said to have failed. The receiver's word is waited for, because a receipt may be on its way already.
    Failed,
}

impl Outgoing {
    pub(super) fn new(entry: Entry, stage: Stage) -> Self {
        Self { entry, stage, sent_bytes: 0, kept_bytes: 0, held_bytes: 0, durable_bytes: 0 }
    }

    pub(super) fn transfer(&mut self) -> Option<&mut Transfer> {
        if let Stage::Chunks(transfer) = &mut self.stage { Some(transfer) } else { None }
    }
}

/// A file that is read by chunks.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) chunks: u64,
    // Chunks below this were claimed once.
    pub(super) cursor: u64,
    // To be read and sent again.
    pub(super) again: ChunkSet,
    pub(super) sent: ChunkSet,
    pub(super) reading: u32,
    pub(super) roots: RootBuilder,
    // Values that the receiver says it holds, of chunks that were not read yet.
    pub(super) held: HashMap<u64, ChunkValue>,
    // The receiver has told all that it holds below this chunk.
    pub(super) held_told: u64,
    // Chunks from here on wait for it to tell; the number of chunks if it was not asked.
    pub(super) held_below: u64,
    // Read and hash only: the receiver compares the root with that of a file it has.
    pub(super) compare: bool,
    pub(super) ended: bool,
    pub(super) checking: bool,
    // Among those that may have something to claim.
    pub(super) listed: bool,
}

impl Transfer {
    pub(super) fn new(chunk_size: ChunkSize, size: u64, disposition: Disposition) -> Self {
        let chunks = chunk_size.count(size);
        Self {
            chunks,
            cursor: 0,
            again: ChunkSet::new(),
            sent: ChunkSet::new(),
            reading: 0,
            roots: RootBuilder::new(chunk_size, size),
            held: HashMap::new(),
            held_told: 0,
            held_below: if disposition == Disposition::Held { 0 } else { chunks },
            compare: disposition == Disposition::Compare,
            ended: false,
            checking: false,
            listed: false,
        }
    }

    /// The next chunk to read.
    pub(super) fn claim(&mut self) -> Option<u64> {
        let chunk = match self.again.pop_first() {
            Some(chunk) => chunk,
            None if self.cursor < self.held_below => {
                self.cursor += 1;
                self.cursor - 1
            }
            None => return None,
        };
        self.reading += 1;
        Some(chunk)
    }

    /// Every chunk was read, and nobody has looked at the source since.
    pub(super) fn wants_check(&self) -> bool {
        self.reading == 0 && self.roots.known() == self.chunks && !self.ended && !self.checking
    }
}
