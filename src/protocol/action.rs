//! What a receiving machine asks of its driver, and what it tells.

use super::entry::Entry;
use super::{Class, Done, Message, Receipt};
use crate::chunk::{ChunkValue, Digest};

/// Something for a driver to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// See what the destination has of these entries, make directories and links, then call
    /// [`super::Receiver::handle_prepared`].
    Prepare {
        /// Id of the first entry.
        first: u64,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// Read the file under the final name, hash it, then call [`super::Receiver::handle_compared`].
    Compare {
        /// Which file.
        file: u64,
    },
    /// Read and hash what the part holds, telling [`super::Receiver::handle_held`] as it goes.
    ReadHeld {
        /// Which file.
        file: u64,
    },
    /// Hash these chunks as zeros and leave holes, then call [`super::Receiver::handle_written`] for each. The count is the
    /// peer's word and may be large: see [`super::Receiver::wants_chunk`] before each one.
    Hole {
        /// Which file.
        file: u64,
        /// The first chunk.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Sync the data of these chunks, then the journal that names them, then call [`super::Receiver::handle_synced`].
    Sync {
        /// (file, its chunks).
        group: Vec<(u64, Vec<(u64, ChunkValue)>)>,
    },
    /// Publish these complete files, then call [`super::Receiver::handle_published`] or [`super::Receiver::handle_failed`] for each,
    /// then [`super::Receiver::handle_publish_done`].
    Publish {
        /// (file, its root).
        files: Vec<(u64, Digest)>,
    },
    /// Everything below this directory is in place: set its mode and times, then call [`super::Receiver::handle_dir_done`].
    CloseDir {
        /// The id of the directory's end.
        id: u64,
        /// The end's entry.
        entry: Entry,
    },
    /// Forget what is kept about this file: it failed or is settled. Unless it is to be discarded, its part stays for
    /// another attempt. What is under way for it may still report; nothing comes of that.
    Release {
        /// Which file.
        file: u64,
        /// Its part is of no use any more.
        discard: bool,
    },
    /// Take this message down, so that it can be said again in a later session. Asked for by a machine that was told to
    /// [`super::Receiver::keep_receipts`] only.
    Keep {
        /// [`Message::Receipts`], [`Message::EntryFailed`] or [`Message::TreeReceipt`].
        message: Message,
        /// It is the last one: make all of them durable, then call [`super::Receiver::handle_kept`].
        last: bool,
    },
    /// The tree is complete and the sender knows: remove what is left of the job.
    Finish,
}

/// What a driver found out about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// A file to receive from nothing.
    Receive,
    /// A file of this size is there: compare.
    Compare,
    /// Part of the file is there.
    Held,
    /// Nothing to be done any more.
    Settled {
        /// What was done.
        done: Done,
        /// It would survive a power cut.
        durable: bool,
    },
    /// It cannot be received.
    Failed {
        /// Who is at fault.
        class: Class,
        /// For a human.
        text: String,
    },
    /// The end of a directory: wait.
    Later,
}

/// What to do with bytes that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Verify and write them.
    Accept {
        /// Size of the file.
        file_len: u64,
        /// The file has holes worth keeping.
        sparse: bool,
    },
    /// Keep them until [`super::Receiver::handle_prepared`] was called for their entry.
    Park,
    /// They are known or no longer wanted.
    Discard,
}

/// What became of an entry, for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// It is where it should be.
    Done(Box<Entry>, Receipt),
    /// It failed, here or there.
    Failed(Box<Entry>, Class, String),
}

/// Figures of a receiving machine, by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiverStats {
    /// Entries announced, ends of directories not counted.
    pub entries_found: u64,
    /// Entries at their end, ends of directories not counted.
    pub entries_done: u64,
    /// Bytes of files announced.
    pub bytes_found: u64,
    /// Bytes held verified.
    pub bytes_held: u64,
    /// Bytes that would survive a power cut.
    pub bytes_durable: u64,
    /// Bytes that did not travel because they were here.
    pub bytes_resumed: u64,
    /// Bytes that arrived and did not match their value.
    pub bytes_refused: u64,
    /// Bytes of regular files that are where they should be.
    pub bytes_done: u64,
    /// Regular files that are where they should be.
    pub files_done: u64,
    /// Directories and links that are where they should be.
    pub others_done: u64,
    /// Entries that are counted only.
    pub skipped: u64,
}
