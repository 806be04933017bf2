use crate::{
    chunk::RelPath,
    disk::{DiskError, DiskErrorKind},
};

/// Why parts cannot be kept or published.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An earlier write or sync failed, so that nothing more can be promised by this store. A new attempt, which reads
    /// back what is really there, may go on.
    #[error("an earlier write failed, and what it left is not trusted: {cause}")]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// A path from a peer uses the name that is reserved for parts.
    #[error("{path}: the name .ccat-xfer is reserved for parts of transfers")]
    Reserved {
        /// The path.
        path: RelPath,
    },
    /// The directory of parts is not what this program makes, and nothing in it was touched.
    #[error("{path}: {why}; move it away or choose another destination")]
    NotOurs {
        /// What it is about, escaped.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// This session already writes that file.
    #[error("{path}: this session already writes that file")]
    InUse {
        /// The path.
        path: RelPath,
    },
    /// Bytes outside the declared size of the file.
    #[error("{path}: bytes past the declared end of the file")]
    PastTheEnd {
        /// The path.
        path: RelPath,
    },
    /// A newer attempt of the same job owns the destination.
    #[error("a newer attempt of this job (fence {highest}) has taken over from this one (fence {ours})")]
    Overtaken {
        /// The highest fence seen.
        highest: u64,
        /// The fence of the caller.
        ours: u64,
    },
    /// Another process held a lock for longer than is waited for.
    #[error("{path}: another process holds its lock; it may be stopped")]
    Busy {
        /// What is locked, escaped.
        path: String,
    },
}

impl JournalError {
    /// What a failed file operation was about, where it was one.
    pub fn disk_kind(&self) -> Option<DiskErrorKind> {
        match self {
            Self::Disk(e) => Some(e.kind()),
            _ => None,
        }
    }
}
