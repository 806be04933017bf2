//! Whose turn it is to give a package its name.
//!
//! `incoming/DIGEST-PATH.owner` names the attempt that puts a package. Whoever begins writes himself into it; whoever has it
//! all together looks into it before he gives the package its name, and holds the file's lock (flock) over both. So a
//! process that slept past its lease finds another's name there, or no file because that one has ended, and does nothing.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::super::Turn;
use crate::{
    disk::{Dir, DiskError, DiskErrorKind, LockOutcome, lock_file},
    engine::JobId,
};

/// What the name of such a file ends in.
pub(super) const OWNER_SUFFIX: &[u8] = b".owner";
/// A holder does a few renames; one that takes longer is asleep, or its disk is.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// No attempt's name is longer.
const MAX_BYTES: u64 = 256;

/// An attempt's hold on a package. Given up when dropped.
#[derive(Debug)]
pub(super) struct Owner {
    incoming: Arc<Dir>,
    name: Vec<u8>,
    attempt: String,
}

/// The lock of a package, held.
pub(super) struct Held {
    file: File,
}

impl Owner {
    /// Takes a package over from whoever had it. `None` if somebody holds its lock.
    pub(super) fn take(incoming: &Arc<Dir>, package: &str, turn: &Turn) -> Result<Option<Self>, DiskError> {
        let attempt = format!("{} {} {:016x}\n", JobId(turn.job), turn.fence, rand::random::<u64>());
        let owner = Self { incoming: Arc::clone(incoming), name: name_of(package), attempt };
        let Some(mut held) = owner.lock(true, LOCK_LIMIT)? else { return Ok(None) };
        held.write(&owner)?;
        Ok(Some(owner))
    }

    /// The lock of a package that nobody puts; `None` if somebody has it now.
    pub(super) fn of_nobody(incoming: &Arc<Dir>, package: &str) -> Result<Option<(Self, Held)>, DiskError> {
        let owner = Self { incoming: Arc::clone(incoming), name: name_of(package), attempt: String::new() };
        Ok(owner.lock(true, Duration::ZERO)?.map(|held| (owner, held)))
    }

    /// The package's lock, if it still is this attempt's.
    pub(super) fn hold(&self) -> Result<Option<Held>, DiskError> {
        let Some(mut held) = self.lock(false, LOCK_LIMIT)? else { return Ok(None) };
        Ok(held.is_of(self)?.then_some(held))
    }

    /// Gives the package up, which is whole or will not be.
    pub(super) fn end(self, _held: Held) -> Result<(), DiskError> {
        self.remove()
    }

    fn remove(&self) -> Result<(), DiskError> {
        match self.incoming.remove_file(&self.name) {
            Err(e) if e.kind() != DiskErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn lock(&self, make: bool, limit: Duration) -> Result<Option<Held>, DiskError> {
        let end = Instant::now() + limit;
        loop {
            let file = match self.incoming.open_write(&self.name) {
                Err(e) if e.kind() == DiskErrorKind::NotFound && !make => return Ok(None),
                Err(e) if e.kind() == DiskErrorKind::NotFound => match self.incoming.create_file(&self.name) {
                    Err(e) if e.kind() == DiskErrorKind::Exists => continue,
                    other => other?,
                },
                other => other?,
            };
            match lock_file(&self.incoming, &self.name, &file)? {
                // Without locks the name alone is looked at.
                LockOutcome::Held | LockOutcome::Unsupported => return Ok(Some(Held { file })),
                LockOutcome::Gone => {}
                LockOutcome::Busy if Instant::now() >= end => return Ok(None),
                LockOutcome::Busy => thread::sleep(LOCK_LOOK),
            }
        }
    }
}

impl Held {
    fn write(&mut self, owner: &Owner) -> Result<(), DiskError> {
        // After a crash of the machine nobody is left to be kept away, so it need not be durable.
        let written = self.file.set_len(0).and_then(|()| self.file.rewind());
        let written = written.and_then(|()| self.file.write_all(owner.attempt.as_bytes()));
        written.map_err(|e| DiskError::new("write", owner.incoming.child(&owner.name), e))
    }

    fn is_of(&mut self, owner: &Owner) -> Result<bool, DiskError> {
        let mut found = String::new();
        let read = self.file.rewind().and_then(|()| (&mut self.file).take(MAX_BYTES).read_to_string(&mut found));
        match read {
            Ok(_) => Ok(found == owner.attempt),
            // No attempt writes that.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Ok(false),
            Err(e) => Err(DiskError::new("read", owner.incoming.child(&owner.name), e)),
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // One that is busy or another's is let be.
        if let Ok(Some(mut held)) = self.lock(false, Duration::ZERO)
            && matches!(held.is_of(self), Ok(true))
        {
            let _ = self.remove();
        }
    }
}

/// The name of a package's file.
pub(super) fn name_of(package: &str) -> Vec<u8> {
    [package.as_bytes(), OWNER_SUFFIX].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Root;

    fn turn(fence: u64) -> Turn {
        Turn { job: [1; 16], fence, replace: false, seen_corrupt: false }
    }

    #[test]
    fn whoever_begins_later_has_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let first = Owner::take(root.handle(), "p", &turn(1)).unwrap().unwrap();
        assert!(first.hold().unwrap().is_some());
        // The same turn, by a process that does not know of the first.
        let second = Owner::take(root.handle(), "p", &turn(1)).unwrap().unwrap();
        assert!(first.hold().unwrap().is_none());
        drop(first);
        let held = second.hold().unwrap().expect("it was not the first's to give up");
        assert!(Owner::take(root.handle(), "p", &turn(2)).unwrap().is_none(), "nobody comes between");
        second.end(held).unwrap();
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_another_has_ended_is_nobodys() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let first = Owner::take(root.handle(), "p", &turn(1)).unwrap().unwrap();
        drop(Owner::take(root.handle(), "p", &turn(2)).unwrap().unwrap());
        assert!(first.hold().unwrap().is_none());
    }
}
