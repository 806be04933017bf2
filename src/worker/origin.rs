use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Failure;
use crate::{
    archive::remove_folder,
    chunk::RelPath,
    disk::Root,
    model::{ErrorClass, Work},
};

/// What a package is read from.
pub(super) struct Origin {
    pub(super) root: Arc<Root>,
    pub(super) path: RelPath,
    pub(super) _staged: Option<Staged>,
}

/// Where a worker's packages lie on their way from one archive to another: a folder of its own for each process that has the
/// worker's name.
#[derive(Debug)]
pub(super) struct Staging {
    all: PathBuf,
    own: PathBuf,
}

impl Staging {
    /// Beside the worker's spool, in a folder with the spool's whole name: those of two workers of one machine may differ
    /// behind their last dot alone.
    pub(super) fn beside(spool: &Path) -> Self {
        let mut name = spool.as_os_str().to_owned();
        name.push(".staging");
        Self::new(name.into())
    }

    fn new(all: PathBuf) -> Self {
        let own = all.join(format!("{:016x}", rand::random::<u64>()));
        Self { all, own }
    }

    /// Removes what processes before this one left, and nothing that has another name than theirs. Blocking.
    pub(super) fn sweep(&self) {
        let left = fs::read_dir(&self.all).into_iter().flatten().flatten();
        let is_ours = |name: &OsStr| name.len() == 16 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
        let left = left.filter(|entry| is_ours(&entry.file_name()));
        for folder in left.map(|entry| entry.path()).filter(|folder| *folder != self.own) {
            match remove_folder(&folder) {
                Ok(()) => {
                    tracing::info!(folder = %folder.display(), "copies out of an archive were left and are removed")
                }
                Err(error) => tracing::warn!(%error, "copies out of an archive were left"),
            }
        }
    }

    /// A folder for this work. What an earlier attempt of it left goes first.
    pub(super) fn of(&self, work: Work) -> Result<Staged, Failure> {
        let folder = self.own.join(work.to_string());
        remove_folder(&folder)?;
        fs::create_dir_all(&folder).map_err(|error| {
            let class = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorClass::NoSpace,
                _ => ErrorClass::Configuration,
            };
            Failure::new(class, format!("cannot make {}: {error}", folder.display()))
        })?;
        Ok(Staged { folder })
    }
}

/// A folder of this machine for a package on its way from one archive to another. Removed when dropped.
#[derive(Debug)]
pub(super) struct Staged {
    folder: PathBuf,
}

impl Staged {
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.folder) {
            tracing::warn!(%error, "a copy out of an archive could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

    use super::*;
    use crate::model::ArchiveTransferId;

    /// On a thread whose rights are those of any user.
    fn as_plain_user(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let plain = scope.spawn(|| {
                let none = CapabilitySets { effective: CapabilitySet::empty(), ..capabilities(None).unwrap() };
                set_capabilities(None, none).unwrap();
                work();
            });
            plain.join().unwrap();
        });
    }

    fn read_only_tree(at: &Path) {
        fs::create_dir_all(at.join("sub")).unwrap();
        fs::write(at.join("sub/file"), b"bytes").unwrap();
        for folder in [at.join("sub"), at.to_owned()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
        }
    }

    /// Catches a name made by `Path::with_extension`.
    #[test]
    fn two_workers_share_no_folder_and_nothing_else_is_swept() {
        let temp = tempfile::tempdir().unwrap();
        let staging = |worker: &str| Staging::beside(&temp.path().join(worker));
        assert_ne!(staging("lta.disk").all, staging("lta.tape").all);
        let spool = temp.path().join("w.staging");
        fs::create_dir_all(spool.join("some folder")).unwrap();
        fs::write(spool.join("outcome.json"), b"{}").unwrap();
        staging("w").sweep();
        assert_eq!(fs::read_dir(&spool).unwrap().count(), 2);
    }

    /// Catches a removal that stops at a folder which nobody may write to.
    #[test]
    fn copies_that_are_read_only_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        as_plain_user(|| {
            let all = temp.path().join("staging");
            let staging = Staging::new(all.clone());
            let work = Work::Archive(ArchiveTransferId::new(7));
            let staged = staging.of(work).unwrap();
            read_only_tree(&staged.folder().join("tree"));
            drop(staged);
            assert_eq!(fs::read_dir(&staging.own).unwrap().count(), 0);
            // Of a process that was killed.
            let left = staging.of(work).unwrap();
            read_only_tree(&left.folder().join("tree"));
            std::mem::forget(left);
            let next = Staging::new(all.clone());
            let ours = next.of(work).unwrap();
            next.sweep();
            assert!(!staging.own.exists() && ours.folder().exists());
            assert_eq!(fs::read_dir(&all).unwrap().count(), 1);
        });
    }
}
