use rustix::fs::{FileType, Stat};

use super::FailureClass;
use crate::chunk::RelPath;

/// One step of the walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Something to copy, or the end of a directory.
    Entry(Entry),
    /// Something that is not copied by design; counted, no failure.
    Skipped {
        /// Path relative to the destination.
        path: Vec<u8>,
        /// Why.
        reason: SkipReason,
    },
    /// Something that should have been copied but could not be read.
    Failed {
        /// Path relative to the destination; may be too long to be a [`RelPath`].
        path: Vec<u8>,
        /// Who was at fault.
        class: FailureClass,
        /// For a human.
        text: String,
    },
}

/// Why something is not copied by design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A block or character device.
    Device,
    /// Our own folder of left-over parts.
    Parts,
    /// Of a type that this kernel knows and we do not.
    Unknown,
}

impl SkipReason {
    pub(super) fn of(kind: FileType) -> Self {
        match kind {
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::BlockDevice | FileType::CharacterDevice => Self::Device,
            _ => Self::Unknown,
        }
    }
}

/// One entry of a source tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index into [`super::Walk::roots`]; the entry is at that root's path plus `path`.
    pub root: usize,
    /// Path relative to the destination.
    pub path: RelPath,
    /// What it is.
    pub kind: Kind,
    /// Its metadata; of a file a hint only, the reader compares again.
    pub meta: Meta,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory; its contents follow, then its `DirEnd`.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink {
        /// Where it points, as stored.
        target: Vec<u8>,
    },
    /// The end of a directory, with the metadata of its start: now its time can be set.
    DirEnd,
}

/// A time as file systems keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970 UTC, negative before.
    pub seconds: i64,
    /// Nanoseconds within the second, below 10^9.
    pub nanoseconds: u32,
}

/// What tells one inode from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// Metadata of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, set-id and sticky bits included (the low 12 bits of `st_mode`).
    pub mode: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes of a regular file; otherwise what the file system says.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Names of the inode.
    pub nlink: u64,
    /// Which inode it is.
    pub identity: Identity,
}

impl Meta {
    /// Whether fewer bytes are allocated than the length says: it has holes, or the file system compresses.
    pub fn is_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }
}

impl From<&Stat> for Meta {
    #[allow(clippy::useless_conversion, reason = "the fields' types differ between architectures")]
    fn from(stat: &Stat) -> Self {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
        Self {
            mode: u32::from(stat.st_mode) & 0o7777,
            mtime: time(i64::from(stat.st_mtime), stat.st_mtime_nsec),
            ctime: time(i64::from(stat.st_ctime), stat.st_ctime_nsec),
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            nlink: u64::from(stat.st_nlink),
            identity: Identity { dev: u64::from(stat.st_dev), ino: u64::from(stat.st_ino) },
        }
    }
}
