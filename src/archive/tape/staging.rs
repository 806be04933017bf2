//! Folders of this machine for what is packed and fetched. Each lives as long as one call; what a killed process left is
//! removed by whoever makes the next one.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use super::super::{ArchiveError, disk::remove_all, failure};
use crate::{
    chunk::{Digest, RelPath, escape_bytes},
    disk::{LockOutcome, Root, lock_file},
    model::ErrorClass,
};

const PREFIX: &[u8] = b"ccat-xfer-tape-";
const LOCK: &[u8] = b"lock";

/// A folder of one call, removed with all in it when dropped.
#[derive(Debug)]
pub(super) struct Staging {
    staging: Root,
    name: RelPath,
    /// The folder itself.
    pub(super) root: Root,
    path: PathBuf,
    // Locked (flock) for as long as the folder is in use.
    _lock: File,
}

impl Staging {
    /// Makes one below `staging`. Blocking.
    pub(super) fn new(staging: &Path) -> Result<Self, ArchiveError> {
        let what = format!(
            "cannot make a folder in the staging folder {}",
            escape_bytes(std::os::unix::ffi::OsStrExt::as_bytes(staging.as_os_str()))
        );
        let failed = |e| failure::of_disk(&what, &e);
        if !staging.is_absolute() || staging.to_str().is_none() {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!("{what}: commands need an absolute path in UTF-8; correct the worker's settings"),
            ));
        }
        let folder = Root::open(staging).map_err(failed)?;
        remove_abandoned(&folder);
        let unique: [u8; 16] = rand::random();
        let name = [PREFIX, &Digest::of(&unique).to_string().as_bytes()[..32]].concat();
        let name = RelPath::new(name).map_err(|e| ArchiveError::caused(ErrorClass::Bug, &what, &e))?;
        folder.make_dirs_unsynced(&name, 0o700).map_err(failed)?;
        let root = folder.beneath(&name).map_err(failed)?;
        let lock = root.handle().create_file(LOCK).map_err(failed)?;
        lock_file(root.handle(), LOCK, &lock).map_err(failed)?;
        let path = staging.join(name.to_string());
        Ok(Self { staging: folder, name, root, path, _lock: lock })
    }

    /// Where a file in it is, for a command.
    pub(super) fn path_of(&self, name: &str) -> String {
        self.path.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.staging, &self.name) {
            tracing::warn!(%error, "a staging folder could not be removed");
        }
    }
}

/// What cannot be removed now is tried by the next one.
fn remove_abandoned(staging: &Root) {
    let Ok(entries) = staging.handle().entries() else { return };
    for entry in entries.flatten().filter(|entry| entry.name.starts_with(PREFIX)) {
        let Ok(name) = RelPath::new(entry.name) else { continue };
        let abandoned = staging.beneath(&name).ok().is_some_and(|folder| {
            let Ok(lock) = folder.handle().open_write(LOCK) else { return false };
            matches!(lock_file(folder.handle(), LOCK, &lock), Ok(LockOutcome::Held))
        });
        if abandoned && let Err(error) = remove_all(staging, &name) {
            tracing::warn!(%error, "an abandoned staging folder could not be removed");
        }
    }
}
