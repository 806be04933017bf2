use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Failure;
use crate::{chunk::RelPath, disk::Root, model::ErrorClass, store::Claim};

/// What a package is read from.
pub(super) struct Origin {
    pub(super) root: Arc<Root>,
    pub(super) path: RelPath,
    pub(super) _staged: Option<Staged>,
}

/// A folder of this machine for a package on its way from one archive to another. Removed when dropped.
pub(super) struct Staged {
    pub(super) folder: PathBuf,
}

impl Staged {
    /// One for this work. What an earlier attempt of it left goes first.
    pub(super) fn new(staging: &Path, claim: &Claim) -> Result<Self, Failure> {
        let folder = staging.join(format!("{}", claim.work));
        let failed = |error: io::Error| {
            let class = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::NoSpace,
                _ => ErrorClass::Configuration,
            };
            Failure::new(class, format!("cannot make {}: {error}", folder.display()))
        };
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Self { folder })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, folder = %self.folder.display(), "a copy out of an archive could not be removed");
        }
    }
}
