use std::sync::Arc;

use super::{
    JournalError,
    folder::{make_parts_dir, open_parts_dir},
};
use crate::disk::{Dir, DiskErrorKind, RESERVED_NAME, Root};

/// A folder that is being copied under a new name into a directory.
///
/// `DEST` means a new name only while it does not exist, so the first attempt would be the only one that could be told
/// apart from a copy *into* `DEST`. The note says that the name was given by a job which has not come to its end, so
/// that the same command goes on where it was.
#[derive(Clone, Debug)]
pub struct NewName {
    root: Arc<Root>,
    note: Vec<u8>,
}

impl NewName {
    /// The folder `from` as `to` in `root`. Makes nothing.
    pub fn new(root: Arc<Root>, from: &[u8], to: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        // Names have no NUL.
        hasher.update(to).update(&[0]).update(from);
        let mut note = NOTE_PREFIX.to_vec();
        note.extend_from_slice(&hasher.finalize().to_hex().as_bytes()[..NOTE_DIGITS]);
        Self { root, note }
    }

    /// Notes, durably, that the name is about to be given.
    ///
    /// # Errors
    /// The directory of parts cannot be written, or is not ours.
    pub fn begin(&self) -> Result<(), JournalError> {
        let dir = make_parts_dir(&self.root)?;
        match dir.create_file(&self.note) {
            Ok(_) => Ok(dir.sync()?),
            Err(e) if e.kind() == DiskErrorKind::Exists => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a job that has not come to its end gave the name.
    ///
    /// # Errors
    /// The directory of parts cannot be read, or is not ours.
    pub fn is_begun(&self) -> Result<bool, JournalError> {
        match open_parts_dir(&self.root)? {
            Some(dir) => Ok(dir.stat_name(&self.note)?.is_some()),
            None => Ok(false),
        }
    }

    /// Forgets it: sender and receiver know that the job has come to its end. A power cut may bring the note back; the
    /// same command then finds everything in place.
    ///
    /// # Errors
    /// The directory of parts cannot be written, or is not ours.
    pub fn end(&self) -> Result<(), JournalError> {
        let Some(dir) = open_parts_dir(&self.root)? else { return Ok(()) };
        match dir.remove_file(&self.note) {
            Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        self.root.handle().remove_dir(RESERVED_NAME)?;
        Ok(())
    }
}

/// Removes the notes of all jobs: what is left of them is given up.
pub(super) fn forget_names(parts_dir: &Dir) -> Result<(), JournalError> {
    for entry in parts_dir.entries()? {
        let name = entry?.name;
        if is_note(&name) {
            match parts_dir.remove_file(&name) {
                Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_note(name: &[u8]) -> bool {
    name.strip_prefix(NOTE_PREFIX).is_some_and(|hex| hex.len() == NOTE_DIGITS && hex.iter().all(u8::is_ascii_hexdigit))
}

const NOTE_PREFIX: &[u8] = b"n-";
const NOTE_DIGITS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_remembered_until_its_job_has_ended() {
        let temp = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(temp.path()).unwrap());
        let name = NewName::new(Arc::clone(&root), b"from", b"to");
        assert!(!name.is_begun().unwrap());
        name.begin().unwrap();
        name.begin().unwrap();
        assert!(NewName::new(Arc::clone(&root), b"from", b"to").is_begun().unwrap());
        assert!(!NewName::new(Arc::clone(&root), b"to", b"from").is_begun().unwrap());
        assert!(!NewName::new(Arc::clone(&root), b"other", b"to").is_begun().unwrap());
        name.end().unwrap();
        name.end().unwrap();
        assert!(!name.is_begun().unwrap());
        assert!(!temp.path().join(".ccat-xfer").exists());
    }

    #[test]
    fn giving_up_what_is_left_gives_up_the_names_too() {
        let temp = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(temp.path()).unwrap());
        let name = NewName::new(Arc::clone(&root), b"from", b"to");
        name.begin().unwrap();
        super::super::remove_unlocked(&root, &super::super::Which::All).unwrap();
        assert!(!name.is_begun().unwrap());
        assert!(!temp.path().join(".ccat-xfer").exists());
    }
}
