//! What a sending machine asks of its driver, and what it tells.

use super::entry::Entry;
use super::{Class, Receipt};

/// Something for a driver to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Read these whole files, hash them and send them as one pack, then call [`super::Sender::handle_pack_sent`].
    Pack {
        /// Number of the pack.
        pack: u64,
        /// (file, size).
        files: Vec<(u64, u64)>,
    },
    /// Read and hash one chunk, then call [`super::Sender::handle_chunk_read`].
    Chunk {
        /// Which file.
        file: u64,
        /// Which chunk.
        chunk: u64,
    },
    /// Every chunk was read: see whether the source is still what it was, then call [`super::Sender::handle_checked`].
    Check {
        /// Which file.
        file: u64,
    },
}

/// What to do with a chunk that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it, then call [`super::Sender::handle_chunk_sent`].
    Send,
    /// The receiver holds it, or is not to have it now.
    Skip,
}

/// What became of an entry, for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderEvent {
    /// The receiver's word.
    Done(Box<Entry>, Receipt),
    /// It failed, here or there.
    Failed(Box<Entry>, Class, String),
}

/// Figures of a sending machine, by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderStats {
    /// Entries pushed, ends of directories not counted.
    pub entries_found: u64,
    /// Entries at their end, ends of directories not counted.
    pub entries_done: u64,
    /// Bytes of files pushed.
    pub bytes_found: u64,
    /// Bytes that the receiver holds verified.
    pub bytes_held: u64,
    /// Bytes that the receiver says would survive a power cut.
    pub bytes_durable: u64,
    /// Bytes that did not travel because the receiver held them.
    pub bytes_resumed: u64,
    /// Bytes handed to links more than once.
    pub bytes_repeated: u64,
    /// Entries that failed.
    pub failed: u64,
    /// Bytes of regular files that are where they should be.
    pub bytes_done: u64,
    /// Regular files that are where they should be.
    pub files_done: u64,
    /// Directories and links that are where they should be.
    pub others_done: u64,
}
