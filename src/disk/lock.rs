use std::fs::{File, TryLockError};

use rustix::io::Errno;

use super::{Dir, DiskError, Stat};

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOutcome {
    /// Held until the file is closed.
    Held,
    /// Another open file holds it, here or in another process.
    Busy,
    /// The name stands for another file by now: what was locked is no longer what the name means.
    Gone,
    /// The file system has no locks that work.
    Unsupported,
}

/// Asks for the exclusive lock of an open file that was found as `name` in `dir`, without waiting.
///
/// Whoever removes a lock file does so while holding its lock, and whoever gets a lock looks whether the name still
/// stands for that file. So two holders never believe in two files of one name.
pub fn lock_file(dir: &Dir, name: &[u8], file: &File) -> Result<LockOutcome, DiskError> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(LockOutcome::Busy),
        Err(TryLockError::Error(e)) => {
            return match Errno::from_io_error(&e) {
                Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => Ok(LockOutcome::Unsupported),
                _ => Err(DiskError::new("lock", dir.child(name), e)),
            };
        }
    }
    let held = Stat::of_fd(file).map_err(|e| DiskError::new("examine", dir.child(name), e))?;
    let named = dir.stat_name(name)?;
    if named.is_some_and(|named| named.identity.same_inode(&held.identity)) {
        Ok(LockOutcome::Held)
    } else {
        Ok(LockOutcome::Gone)
    }
}
