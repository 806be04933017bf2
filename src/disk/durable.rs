use std::{io::Write as _, sync::Arc};

use super::{Dir, DiskError, DiskErrorKind, Root};
use crate::chunk::RelPath;

impl Root {
    /// Creates the directories of `path` that do not exist, each durably: the parent of every new one is synced.
    /// Returns whether the last one is new.
    pub fn make_dirs(&self, path: &RelPath, mode: u32) -> Result<bool, DiskError> {
        self.make(path, mode, Dir::sync)
    }

    /// Like [`Root::make_dirs`], durable once [`Root::sync`] returns: for many directories at once.
    pub fn make_dirs_unsynced(&self, path: &RelPath, mode: u32) -> Result<bool, DiskError> {
        self.make(path, mode, |_| Ok(()))
    }

    fn make(&self, path: &RelPath, mode: u32, sync: impl Fn(&Dir) -> Result<(), DiskError>) -> Result<bool, DiskError> {
        self.refuse_reserved("create directory", path)?;
        match self.dir_now(path) {
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == DiskErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let mut current = Arc::clone(self.handle());
        let mut created = false;
        for name in path.components() {
            created = current.create_dir(name, mode)?;
            if created {
                sync(&current)?;
            }
            current = Arc::new(current.open_dir(name)?);
        }
        Ok(created)
    }
}

/// Replaces file `name` by `bytes`, durably: after a crash it holds the old bytes or the new ones.
///
/// The temporary name is the name with `.new` behind it; callers see to it that nobody else writes the same file.
pub fn write_file(dir: &Dir, name: &[u8], bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = [name, b".new"].concat();
    match dir.remove_file(&temporary) {
        Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = dir.create_file(&temporary)?;
    let error = |e| DiskError::new("write", dir.child(&temporary), e);
    file.write_all(bytes).map_err(error)?;
    file.sync_all().map_err(error)?;
    dir.rename(&temporary, dir, name)?;
    dir.sync()
}
