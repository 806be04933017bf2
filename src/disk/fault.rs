//! Mistakes planted on purpose, and places where a test may cut the power.
//!
//! In a build for use all of this is constant and compiles to nothing. With the feature `faults`, the environment
//! variable `CCAT_XFER_FAULT` plants one mistake for the whole process (its values are the words of [`Fault::word`]),
//! and tests plant one for their own thread. A test that has never failed proves nothing; these make it fail.

/// A mistake in the order or number of syncs, of the kind that a review misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The journal is synced before the data that it speaks of.
    SyncOrderSwapped,
    /// Directories are never synced.
    DirectorySyncDropped,
    /// A group is acknowledged before its journal is synced.
    AcknowledgedBeforeJournalSync,
    /// A file is published before its data is synced.
    PublishedBeforeDataSync,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::SyncOrderSwapped,
        Self::DirectorySyncDropped,
        Self::AcknowledgedBeforeJournalSync,
        Self::PublishedBeforeDataSync,
    ];

    /// The word for it in `CCAT_XFER_FAULT`.
    pub fn word(self) -> &'static str {
        match self {
            Self::SyncOrderSwapped => "sync-order-swapped",
            Self::DirectorySyncDropped => "directory-sync-dropped",
            Self::AcknowledgedBeforeJournalSync => "acknowledged-before-journal-sync",
            Self::PublishedBeforeDataSync => "published-before-data-sync",
        }
    }
}

/// A place between two steps, at which a crash leaves a state of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A part has its name; nothing speaks of it yet.
    PartCreated,
    /// Bytes were handed to the system.
    Written,
    /// The data of a group is durable; the journal does not know.
    DataSynced,
    /// The journal's records were written.
    JournalAppended,
    /// The journal is durable; nobody was told.
    JournalSynced,
    /// Everything about the file is durable but its name.
    FileSynced,
    /// Where a rename is done by link and unlink: both names exist.
    Linked,
    /// The final name exists; its directory is not synced.
    Renamed,
    /// The final name is durable; the journal still speaks of a part.
    DirectorySynced,
    /// The journal was cut to its header.
    Compacted,
}

/// Whether `fault` is planted here.
#[cfg(not(any(test, feature = "faults")))]
#[inline(always)]
pub const fn planted(_: Fault) -> bool {
    false
}

/// Passes a point.
#[cfg(not(any(test, feature = "faults")))]
#[inline(always)]
pub const fn point(_: Point) {}

#[cfg(any(test, feature = "faults"))]
pub use active::{at_points, plant, planted, point};

#[cfg(any(test, feature = "faults"))]
mod active {
    use std::{
        cell::{Cell, RefCell},
        sync::OnceLock,
    };

    use super::{Fault, Point};

    type Hook = Box<dyn FnMut(Point)>;

    thread_local! {
        static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Whether `fault` is planted in this thread or, by `CCAT_XFER_FAULT`, in this process.
    pub fn planted(fault: Fault) -> bool {
        static PROCESS: OnceLock<Option<Fault>> = OnceLock::new();
        let process = PROCESS.get_or_init(|| {
            let word = std::env::var("CCAT_XFER_FAULT").ok()?;
            Fault::ALL.into_iter().find(|fault| fault.word() == word)
        });
        *process == Some(fault) || PLANTED.get() == Some(fault)
    }

    /// Plants a mistake in this thread, or takes it away.
    pub fn plant(fault: Option<Fault>) {
        PLANTED.set(fault);
    }

    /// Has this thread call `hook` at every point, or nothing any more.
    pub fn at_points(hook: Option<Hook>) {
        HOOK.set(hook);
    }

    /// Passes a point.
    pub fn point(point: Point) {
        // Taken out while it runs, so that a hook may pass points itself.
        if let Some(mut hook) = HOOK.take() {
            hook(point);
            HOOK.set(Some(hook));
        }
    }
}
