//! What a receiving machine keeps about one entry.

use std::collections::{BTreeMap, HashMap};

use super::{Class, Entry};
use crate::chunk::{ChunkSet, ChunkSize, ChunkValue, Digest, RootBuilder};

/// An entry that was announced and has neither a receipt nor a failure yet.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) entry: Entry,
    pub(super) state: State,
    pub(super) held_bytes: u64,
    pub(super) durable_bytes: u64,
}

/// How far an entry is.
#[derive(Debug)]
pub(super) enum State {
    /// The driver looks at what the destination has.
    Preparing(Early),
    Receiving(Box<Receiving>),
    /// The root of what stands under the final name, once known; the sender's root, once known; whether the sender's
    /// bytes are here, complete, and wait for the name only.
    Comparing {
        ours: Option<Digest>,
        theirs: Option<Digest>,
        arrived: bool,
    },
    /// Complete; only its name is missing.
    Publishing,
    /// The end of a directory whose entries are not all done.
    Waiting,
    Closing,
}

/// What the sender said of a file before the driver had looked.
#[derive(Debug, Default)]
pub(super) struct Early {
    pub(super) end: Option<Digest>,
    pub(super) holes: ChunkSet,
    pub(super) failed: Option<(Class, String)>,
}

/// A file that is being put together.
#[derive(Debug)]
pub(super) struct Receiving {
    // Values of chunks that the part holds and the sender has agreed to.
    pub(super) roots: RootBuilder,
    pub(super) end: Option<Digest>,
    // Came whole, in a pack, with this digest.
    pub(super) whole: Option<Digest>,
    pub(super) reading_held: bool,
    // Values of chunks that the part holds from another attempt; the sender has not said yet whether they are right.
    pub(super) held: BTreeMap<u64, ChunkValue>,
    // Announced as holes, and not yet hashed.
    pub(super) holes: ChunkSet,
    pub(super) strikes: HashMap<u64, u8>,
}

impl Receiving {
    pub(super) fn new(chunk_size: ChunkSize, size: u64, end: Option<Digest>) -> Self {
        Self {
            roots: RootBuilder::new(chunk_size, size),
            end,
            whole: None,
            reading_held: false,
            held: BTreeMap::new(),
            holes: ChunkSet::new(),
            strikes: HashMap::new(),
        }
    }
}

/// What a peer can make an entry cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    // Runs of holes that were announced and not yet hashed.
    pub(super) holes: usize,
    // Subtrees that could not be merged yet.
    pub(super) subtrees: usize,
}

impl State {
    pub(super) fn weight(&self) -> Weight {
        match self {
            Self::Preparing(early) => Weight { holes: early.holes.fragments(), subtrees: 0 },
            Self::Receiving(f) => Weight { holes: f.holes.fragments(), subtrees: f.roots.fragments() },
            _ => Weight::default(),
        }
    }
}
