//! What puts that never came back left in `incoming`: parts that nobody will resume.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    super::{ArchiveError, failure},
    INCOMING, below,
    owner::{OWNER_SUFFIX, Owner},
    rest::remove_all,
};
use crate::{
    chunk::RelPath,
    disk::{DiskError, DiskErrorKind, Root},
    journal::list_parts,
};

/// Removes packages on their way that nobody wrote to for `age`, and returns how many. Never what is locked.
pub(super) fn sweep(root: &Root, age: Duration) -> Result<u64, ArchiveError> {
    let what = "cannot clear up what is on its way into the archive";
    let failed = |e: DiskError| failure::of_disk(what, &e);
    let incoming = match root.beneath(&below(INCOMING)?) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(0),
        other => other.map_err(failed)?,
    };
    let mut packages = BTreeSet::new();
    for entry in incoming.handle().entries().map_err(failed)? {
        let name = entry.map_err(failed)?.name;
        let package = name.strip_suffix(OWNER_SUFFIX).unwrap_or(&name);
        packages.extend(std::str::from_utf8(package).ok().filter(|package| is_package(package)).map(str::to_owned));
    }
    let mut removed = 0;
    for package in packages {
        match remove(&incoming, &package, age) {
            Ok(gone) => removed += u64::from(gone),
            // It keeps no other from being cleared up.
            Err(error) => tracing::warn!(%error, package, "what is on its way into an archive stays"),
        }
    }
    Ok(removed)
}

/// As `DIGEST-PATH` is.
fn is_package(name: &str) -> bool {
    name.len() == 81 && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn remove(incoming: &Root, package: &str, age: Duration) -> Result<bool, ArchiveError> {
    let what = format!("cannot clear up {package}, which is on its way into the archive");
    let disk = |e| failure::of_disk(&what, &e);
    if !is_left(incoming, package, age).map_err(disk)? {
        return Ok(false);
    }
    // From here on nobody begins with it.
    let Some((owner, held)) = Owner::of_nobody(incoming.handle(), package).map_err(disk)? else { return Ok(false) };
    let folder = below(package)?;
    if !is_left(incoming, package, age).map_err(disk)? || is_written(incoming, &folder)? {
        return Ok(false);
    }
    remove_all(incoming, &folder)
        .map_err(|e| ArchiveError::caused(crate::model::ErrorClass::Configuration, &*what, &e))?;
    owner.end(held).map_err(disk)?;
    Ok(true)
}

/// Whether a process writes there, whatever its files' times say.
fn is_written(incoming: &Root, folder: &RelPath) -> Result<bool, ArchiveError> {
    let what = "cannot tell what is on its way into the archive";
    let folder = match incoming.beneath(folder) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(false),
        other => other.map_err(|e| failure::of_disk(what, &e))?,
    };
    let parts = list_parts(&folder).map_err(|e| failure::of_journal(what, &e))?;
    Ok(parts.iter().any(|part| part.locked))
}

/// Whether nothing of it was changed for so long. Copies have the times of their sources, but not that of their last change.
fn is_left(incoming: &Root, package: &str, age: Duration) -> Result<bool, DiskError> {
    let (_handle, at) = incoming.handle_path()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let failed = |e| DiskError::new("examine", package.as_bytes(), e);
    let owner = at.join(format!("{package}{}", String::from_utf8_lossy(OWNER_SUFFIX)));
    let mut open: Vec<PathBuf> = vec![at.join(package), owner];
    while let Some(path) = open.pop() {
        let found = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(failed)?,
        };
        // An owner without a name is the lock of a sweep that was cut off, or of this one.
        let is_lock = found.is_file() && found.len() == 0 && path.extension().is_some_and(|end| end == "owner");
        let changed = Duration::from_secs(u64::try_from(found.ctime()).unwrap_or(0));
        if !is_lock && changed + age > now {
            return Ok(false);
        }
        if found.is_dir() {
            for entry in fs::read_dir(&path).map_err(failed)? {
                open.push(entry.map_err(failed)?.path());
            }
        }
    }
    Ok(true)
}
