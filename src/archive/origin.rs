//! The package as it lies where it is archived from.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use super::{ArchiveError, Package, failure};
use crate::{
    chunk::RelPath,
    disk::{FileKind, Root},
    model::{ErrorClass, PackageKind},
};

/// Looks whether `path` below `root` may be the package, and returns a path to it that no link below the root can lead
/// elsewhere. It is good as long as the handle is open.
pub(super) fn look(root: &Path, path: &RelPath, package: &Package) -> Result<(OwnedFd, PathBuf), ArchiveError> {
    let what = format!("cannot read {path}, which is to be archived");
    let failed = |e| failure::of_source(&what, &e);
    let root = Root::open(root).map_err(failed)?;
    let found = root.stat(path).map_err(failed)?;
    let (Some(found), Some((folder, name))) = (found, path.split_last()) else {
        return Err(ArchiveError::new(
            ErrorClass::MissingSource,
            format!("{path}, which is to be archived, is not there; see whether its location is mounted"),
        ));
    };
    let as_registered = match (found.kind, package.kind) {
        (FileKind::File, PackageKind::File) => found.identity.size == package.size_bytes,
        (FileKind::Dir, PackageKind::Tree) => true,
        _ => false,
    };
    if !as_registered {
        return Err(changed(path, "is not what was registered"));
    }
    let (handle, at) = root.beneath(&folder).and_then(|folder| folder.handle_path()).map_err(failed)?;
    Ok((handle, at.join(OsStr::from_bytes(name))))
}

/// The package is not what it was when it was registered.
pub(super) fn changed(path: &RelPath, how: &str) -> ArchiveError {
    ArchiveError::new(
        ErrorClass::SourceChanged,
        format!("{path}, which is to be archived, {how}; register what is there now"),
    )
}
