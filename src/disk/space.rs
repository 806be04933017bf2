use std::{
    fs::File,
    sync::{Mutex, OnceLock, PoisonError},
};

use rustix::{fs::FallocateFlags, io::Errno};

use super::{Dir, DiskError};

/// Asks for storage ahead of what is written, so that a file lies in few pieces. A hint: nothing depends on it.
#[derive(Debug)]
pub struct Reservation {
    // (written so far, asked for up to this offset); None once the file system declined.
    state: Mutex<Option<(u64, u64)>>,
    file_bytes: u64,
}

impl Reservation {
    /// For a file that will have `file_bytes` bytes. Never used for sparse files, whose holes it would fill.
    pub fn new(file: &File, file_bytes: u64) -> Self {
        let useful = file_bytes > FIRST_STEP_BYTES && !is_memory(file);
        Self { state: Mutex::new(useful.then_some((0, 0))), file_bytes }
    }

    /// For a file that gets no hints.
    pub fn none() -> Self {
        Self { state: Mutex::new(None), file_bytes: 0 }
    }

    /// Called after `len` bytes were written at `offset`.
    ///
    /// The next step is as large as what was really written, from 16 MiB to 1 GiB: a peer that declares much and sends
    /// little holds little.
    pub fn written(&self, file: &File, offset: u64, len: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((written, reserved)) = &mut *state else { return };
        *written = written.saturating_add(len);
        let end = offset.saturating_add(len);
        if end < reserved.saturating_sub(FIRST_STEP_BYTES / 2) || *reserved >= self.file_bytes {
            return;
        }
        let from = end.max(*reserved);
        let step = (*written).clamp(FIRST_STEP_BYTES, LARGEST_STEP_BYTES).min(self.file_bytes.saturating_sub(from));
        if step == 0 {
            return;
        }
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, step) {
            Ok(()) => *reserved = from + step,
            Err(Errno::INTR) => {}
            // Not supported, or no room: the write itself will say so where it matters.
            Err(_) => *state = None,
        }
    }
}

/// How many files one sync can make durable with an error from any of them reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncScope {
    /// `syncfs(2)` reports write-back errors (Linux 5.8).
    FileSystem,
    /// It does not; every file must be synced by itself.
    EachFile,
}

/// What this kernel offers.
pub fn sync_scope() -> SyncScope {
    static SCOPE: OnceLock<SyncScope> = OnceLock::new();
    *SCOPE.get_or_init(|| {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= (5, 8) { SyncScope::FileSystem } else { SyncScope::EachFile }
    })
}

/// Makes all data and names on the file system of `dir` durable.
///
/// Write-back errors since the last call on the same handle are reported, whoever's file they hit.
pub fn sync_file_system(dir: &Dir) -> Result<(), DiskError> {
    rustix::fs::syncfs(dir).map_err(|e| DiskError::new("sync the file system of", dir.display_path(), e))
}

/// Whether the file lives in memory: there is no medium behind it.
pub(crate) fn is_memory(file: &File) -> bool {
    matches!(magic(file), Some(TMPFS_MAGIC | RAMFS_MAGIC))
}

/// Whether `O_DIRECT` may be taken without going past the cache.
pub(crate) fn direct_is_doubtful(file: &File) -> bool {
    matches!(magic(file), None | Some(TMPFS_MAGIC | RAMFS_MAGIC | ZFS_MAGIC | FUSE_MAGIC))
}

fn magic(file: &File) -> Option<u64> {
    let fs = rustix::fs::fstatfs(file).ok()?;
    u64::try_from(fs.f_type).ok()
}

const FIRST_STEP_BYTES: u64 = 16 << 20;
const LARGEST_STEP_BYTES: u64 = 1 << 30;
// statfs(2); ZFS from its own source (include/sys/fs/zfs.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const ZFS_MAGIC: u64 = 0x2fc1_2fc1;
const FUSE_MAGIC: u64 = 0x6573_5546;
