//! Where packages rest for good: archives on disk, in an S3 store, on tape behind its own client.
//!
//! An [`Archive`] keeps bytes and gives them back; it decides nothing. Who asks (`worker::archiving`) compares what was read
//! back with what was registered, and only that is evidence. No database is known here.
//!
//! **Names.** A package rests under a key made of its path and its digest: other bytes at the same path are another
//! package and lie beside it. Nothing that rests is ever overwritten.
//!
//! **Order.** `put` (resumed where an earlier attempt left it) -> `read_back` -> `write_sidecar`. A package without a
//! sidecar is one whose archiving has not ended.

mod disk;
mod error;
mod failure;
mod fault;
mod key;
mod obscore;
mod origin;
pub mod s3;
mod settings;
pub mod sidecar;
pub mod tape;
mod watch;

use std::{fmt, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{
    chunk::{ChunkValue, Digest, RelPath, escape_bytes},
    disk::{DiskError, DiskErrorKind, Root},
    model::{ErrorClass, PackageDigest, PackageKind, StorageType, Timestamp},
};

use self::disk::ModesError;
pub use crate::model::ReadHow;
pub use disk::{Disk, MARKER};
pub use error::ArchiveError;
#[cfg(any(test, feature = "faults"))]
pub use fault::Lies;
pub use obscore::Metadata;
pub use s3::S3;
pub use settings::Settings;
pub use tape::Tape;

/// A package as an archive needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// File or tree.
    pub kind: PackageKind,
    /// Path below the root of its origin.
    pub relative_path: RelPath,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Files in it; 1 for a file.
    pub file_count: u64,
    /// What it must be: blake3 of a file, the tree digest of a tree.
    pub expected: PackageDigest,
}

/// Whose turn it is to write. Equal for every attempt of one piece of work, but for the fence, which only rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The piece of work.
    pub job: [u8; 16],
    /// The claim. An archive that can refuses a lower one than it has seen.
    pub fence: u64,
    /// Whether what rests there is known to be corrupt and is to be replaced: it is kept under another name until the new
    /// bytes were read back.
    pub replace: bool,
    /// Whether this very attempt has read what rests there and found it corrupt: it is replaced without another look at it.
    pub seen_corrupt: bool,
}

impl Turn {
    /// Whether what rests there may be what an attempt to replace put in the place of a corrupt copy, and died before it said
    /// so: then it is read before another one is written. `is_replacement`: it lies where only a replacement does.
    pub(in crate::archive) fn may_have_replaced(&self, is_replacement: bool) -> bool {
        self.replace && !self.seen_corrupt && (is_replacement || self.fence > 1)
    }
}

/// Where a package is read from when it is put: a folder of this machine, below which its path is looked up.
#[derive(Debug)]
pub struct Source<'a> {
    /// The location's root.
    pub root: &'a Root,
    /// Path of the package below it.
    pub path: &'a RelPath,
}

/// Counts bytes as they are safe (put) or read (read-back).
pub trait Progress: fmt::Debug + Send + Sync {
    /// So many more.
    fn advance(&self, bytes: u64);

    /// A reading of a file found this value of a chunk of [`ChunkSize::DEFAULT`](crate::chunk::ChunkSize::DEFAULT). An
    /// archive that does not read by such chunks tells none.
    fn chunk(&self, _index: u64, _value: ChunkValue) {}
}

/// What is no progress of the work that it is done for.
#[derive(Clone, Copy, Debug)]
pub struct Unseen;

impl Progress for Unseen {
    fn advance(&self, _: u64) {}
}

/// What an archive holds of a package, as read from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Of the algorithm of [`Package::expected`].
    pub digest: Digest,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Files.
    pub file_count: u64,
    /// How.
    pub how: ReadHow,
    /// Of what was not read ([`ReadHow::Vouched`]): who vouches for it, by what algorithm, or why nobody needs to.
    pub vouched_by: Option<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// Removes a folder of this machine with all below it, read-only or not: a copy of a package may be. One that is not there is
/// removed. Blocking.
///
/// # Errors
/// Configuration: something in it is not ours to remove.
pub fn remove_folder(at: &Path) -> Result<(), ArchiveError> {
    let what = format!("cannot remove {}", escape_bytes(at.as_os_str().as_bytes()));
    let disk = |e: &DiskError| failure::of_disk(&what, e);
    let (Some(above), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(ArchiveError::new(ErrorClass::Configuration, format!("{what}: it lies in no other folder")));
    };
    let above = match Root::open(above) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| disk(&e))?,
    };
    let name =
        RelPath::new(name.as_bytes()).map_err(|e| ArchiveError::caused(ErrorClass::Configuration, &*what, &e))?;
    disk::remove_all(&above, &name).map_err(|e| match e {
        ModesError::Disk(e) => disk(&e),
        other @ ModesError::Walk(_) => ArchiveError::caused(ErrorClass::Configuration, &*what, &other),
    })
}

/// What an archive did with a package that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It was written; so many bytes of it were there from an earlier attempt.
    Written {
        /// Bytes that did not travel again.
        resumed_bytes: u64,
    },
    /// It lay there already. Its bytes are judged by the read-back alone.
    Found,
}

/// What was not written to for so long is left for good: no retry waits longer, and no night's data is of use to one that
/// does. 30 days.
const LEFT_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// Keeps packages. One conformance suite holds every implementation to the same promises.
#[async_trait]
pub trait Archive: fmt::Debug + Send + Sync {
    /// What it is made of.
    fn medium(&self) -> StorageType;

    /// Bytes that it may still take, if it can tell.
    async fn free_bytes(&self) -> Result<Option<u64>, ArchiveError>;

    /// Puts a package under its key, whole or not at all; resumes what an earlier attempt of the same job left. When it
    /// returns, the archive has said that the bytes are safe.
    async fn put(
        &self,
        package: &Package,
        source: &Source<'_>,
        turn: &Turn,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Stored, ArchiveError>;

    /// Reads all of a package from the archive and says what it found, equal or not.
    async fn read_back(
        &self,
        package: &Package,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Reading, ArchiveError>;

    /// Puts the sidecar beside a package, replacing an older one whole.
    async fn write_sidecar(&self, package: &Package, sidecar: &[u8]) -> Result<(), ArchiveError>;

    /// Names of all sidecars after `after`, at most `limit`, in order.
    async fn sidecars(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ArchiveError>;

    /// One of them, at most 16 MiB.
    async fn read_sidecar(&self, name: &str) -> Result<Vec<u8>, ArchiveError>;

    /// Copies a package out, to be the source of a repair elsewhere: below `folder`, under the package's own path.
    async fn fetch(
        &self,
        package: &Package,
        folder: &Root,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<(), ArchiveError>;

    /// Removes what was set aside when the package was replaced. Called once the new bytes were read back.
    async fn forget_replaced(&self, package: &Package) -> Result<(), ArchiveError>;

    /// Removes what puts that never came back left, and returns of how many packages. Called when a worker starts. An archive
    /// that keeps no such things does nothing.
    async fn sweep(&self) -> Result<u64, ArchiveError> {
        Ok(0)
    }
}
