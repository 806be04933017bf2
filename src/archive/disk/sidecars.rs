//! Sidecars: written whole, listed in order, read with a bound.

use std::{io::Read as _, sync::Arc};

use super::{
    super::{
        ArchiveError, failure,
        key::{escape, is_sidecar, unescape},
    },
    PACKAGES, Work, below,
};
use crate::{
    chunk::RelPath,
    disk::{Dir, DiskError, DiskErrorKind, Root, write_file},
    model::ErrorClass,
};

/// No sidecar is longer.
const MAX_BYTES: u64 = 16 << 20;

impl Work {
    pub(super) fn write_sidecar(&self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let what = self.doing("write the sidecar of");
        let disk = |e| failure::of_disk(&what, &e);
        if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_BYTES) {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!("{what}: it has {} bytes, more than {MAX_BYTES}; shorten the package's metadata", bytes.len()),
            ));
        }
        let root = self.mount()?;
        self.resting(&root)?;
        let home = root.beneath(&self.home()?).map_err(disk)?;
        let name = self.key.sidecar();
        write_file(home.handle(), &name, bytes).map_err(disk)?;
        home.handle().set_mode(&name, 0o444).map_err(disk)
    }
}

/// The names of at most `limit` sidecars after `after`: paths below the folder of packages, escaped.
pub(super) fn list(root: &Root, after: Option<&str>, limit: usize) -> Result<Vec<String>, ArchiveError> {
    let packages = below(PACKAGES)?;
    let after: Vec<&str> = after.map(|after| after.split('/').collect()).unwrap_or_default();
    let mut found = Vec::new();
    descend(root, &packages, &mut Vec::new(), &after, limit, &mut found)
        .map_err(|e| failure::of_disk("cannot list the sidecars of an archive", &e))?;
    Ok(found)
}

/// Folders above a package's own.
const LEVELS: usize = 3;

/// `after` has the names that come before what is asked for, from this level on; empty if everything is.
fn descend(
    root: &Root,
    at: &RelPath,
    above: &mut Vec<String>,
    after: &[&str],
    limit: usize,
    found: &mut Vec<String>,
) -> Result<(), DiskError> {
    let dir = match root.dir_now(at) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let first = after.first().copied().unwrap_or_default();
    for name in sorted(&dir, above.len())? {
        if found.len() >= limit {
            break;
        }
        if name.as_str() < first || (above.len() == LEVELS && name == first) {
            continue;
        }
        let behind = if name == first { after.get(1..).unwrap_or_default() } else { &[] };
        above.push(name);
        if above.len() > LEVELS {
            found.push(above.join("/"));
        } else if let Some(name) = above.last()
            && let Ok(path) = at.join(name.as_bytes())
        {
            descend(root, &path, above, behind, limit, found)?;
        }
        above.pop();
    }
    Ok(())
}

/// The names of one level in order, those only that an archive makes there.
fn sorted(dir: &Arc<Dir>, level: usize) -> Result<Vec<String>, DiskError> {
    let mut names = Vec::new();
    for entry in dir.entries()? {
        let name = entry?.name;
        if level == LEVELS {
            if is_sidecar(&name) {
                names.push(escape(&name));
            }
        } else if let Ok(name) = String::from_utf8(name)
            && is_folder(&name, level)
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn is_folder(name: &str, level: usize) -> bool {
    let length = if level + 1 < LEVELS { 2 } else { 81 };
    name.len() == length && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// The bytes of the sidecar of this name.
pub(super) fn read(root: &Root, name: &str) -> Result<Vec<u8>, ArchiveError> {
    let what = format!("cannot read the sidecar {name}");
    let refuse = |class, why: &str| Err(ArchiveError::new(class, format!("{what}: {why}")));
    let (folders, file) = name.rsplit_once('/').unwrap_or_default();
    let well_formed = folders.split('/').count() == LEVELS
        && folders.split('/').enumerate().all(|(level, name)| is_folder(name, level));
    let Some(file) = unescape(file).filter(|file| well_formed && is_sidecar(file)) else {
        return refuse(ErrorClass::Configuration, "no sidecar of an archive on disk has such a name");
    };
    let folder = root.beneath(&below(&format!("{PACKAGES}/{folders}"))?);
    let opened = folder.and_then(|folder| folder.handle().open_read(&file));
    let opened = match opened {
        Err(e) if e.kind() == DiskErrorKind::NotFound => {
            return refuse(ErrorClass::MissingSource, "it is not there");
        }
        other => other.map_err(|e| failure::of_disk(&what, &e))?,
    };
    let mut bytes = Vec::new();
    let read = opened.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| failure::of_disk(&what, &DiskError::new("read", &*file, e)))?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_BYTES) {
        return refuse(ErrorClass::CorruptInFlight, "it is longer than 16 MiB, and no such sidecar is ever written");
    }
    Ok(bytes)
}
