use std::os::fd::AsFd;

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, Statx, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod,
        fchown, futimens, makedev, statx, utimensat,
    },
    io::Errno,
};

/// A point in time as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC; negative before it.
    pub seconds: i64,
    /// Nanoseconds after that second, below 10^9.
    pub nanoseconds: u32,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Other,
}

impl FileKind {
    pub(crate) fn from_mode(mode: u32) -> Self {
        Self::from_type(FileType::from_raw_mode(mode))
    }

    pub(crate) fn from_type(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// Tells a file from another one, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number on it.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of contents or metadata.
    pub ctime: Timestamp,
}

impl Identity {
    /// Whether both name the same inode, whatever became of its contents.
    pub fn same_inode(&self, other: &Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

/// What is known of a name without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Which one it is.
    pub identity: Identity,
    /// Permission bits, setuid, setgid and sticky included (12 bits).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Bytes of storage it takes; below the size for a file with holes.
    pub allocated_bytes: u64,
}

impl Stat {
    pub(crate) fn of_fd(fd: impl AsFd) -> Result<Self, Errno> {
        statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(|s| Self::from_statx(&s))
    }

    pub(crate) fn of_name(dir: impl AsFd, name: &[u8]) -> Result<Self, Errno> {
        statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).map(|s| Self::from_statx(&s))
    }

    fn from_statx(s: &Statx) -> Self {
        let mode = u32::from(s.stx_mode);
        Self {
            kind: FileKind::from_mode(mode),
            identity: Identity {
                dev: makedev(s.stx_dev_major, s.stx_dev_minor),
                ino: s.stx_ino,
                size: s.stx_size,
                mtime: Timestamp { seconds: s.stx_mtime.tv_sec, nanoseconds: s.stx_mtime.tv_nsec },
                ctime: Timestamp { seconds: s.stx_ctime.tv_sec, nanoseconds: s.stx_ctime.tv_nsec },
            },
            mode: mode & ALL_MODE_BITS,
            uid: s.stx_uid,
            gid: s.stx_gid,
            links: s.stx_nlink,
            allocated_bytes: s.stx_blocks.saturating_mul(STAT_BLOCK_BYTES),
        }
    }
}

/// What a copy takes over from its original, beyond the bytes. `None` leaves the field as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileMeta {
    /// Permission bits. Setuid, setgid and sticky are masked away unless the owner is kept.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<Timestamp>,
    /// Owner and group; needs privilege.
    pub owner: Option<(u32, u32)>,
}

impl FileMeta {
    /// Applies all to an open file or directory. The owner comes first: a change of owner clears setuid and setgid.
    pub(crate) fn apply(&self, fd: impl AsFd) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        if let Some(mode) = self.effective_mode() {
            fchmod(&fd, mode)?;
        }
        match self.times() {
            Some(times) => futimens(&fd, &times),
            None => Ok(()),
        }
    }

    /// Applies what a symbolic link has to the link itself, never to what it points to.
    pub(crate) fn apply_to_link(&self, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            chownat(&dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        match self.times() {
            Some(times) => utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
            None => Ok(()),
        }
    }

    fn effective_mode(&self) -> Option<Mode> {
        let kept = if self.owner.is_some() { ALL_MODE_BITS } else { PERMISSION_BITS };
        self.mode.map(|mode| Mode::from_raw_mode(mode & kept))
    }

    fn times(&self) -> Option<Timestamps> {
        // The access time stays: nobody asked for it, and setting it would hide when the copy was read.
        self.mtime.map(|t| Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: t.seconds, tv_nsec: i64::from(t.nanoseconds.min(999_999_999)) },
        })
    }
}

const ALL_MODE_BITS: u32 = 0o7777;
const PERMISSION_BITS: u32 = 0o777;
/// `st_blocks` counts these whatever the file system's block size (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;
