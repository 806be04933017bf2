use std::{fs::File, sync::Arc};

use super::{JournalError, log::Listing, writer::JOURNAL_NAME};
use crate::{
    chunk::escape_bytes,
    disk::{Dir, DiskError, DiskErrorKind, FileKind, RESERVED_NAME, Root},
};

/// Opens the directory of parts if it is there. Anything there that this program and user did not make is refused.
pub(super) fn open_parts_dir(root: &Root) -> Result<Option<Arc<Dir>>, JournalError> {
    let path = escape_bytes(&root.handle().child(RESERVED_NAME));
    let refuse = |why| Err(JournalError::NotOurs { path, why });
    let Some(stat) = root.handle().stat_name(RESERVED_NAME)? else { return Ok(None) };
    if stat.kind != FileKind::Dir {
        return refuse("it is not a directory");
    }
    let dir = match root.handle().open_dir(RESERVED_NAME) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let stat = dir.stat()?;
    if stat.uid != rustix::process::geteuid().as_raw() {
        return refuse("it belongs to another user");
    }
    if stat.mode & 0o022 != 0 {
        return refuse("other users may write to it");
    }
    Ok(Some(Arc::new(dir)))
}

/// Opens the directory of parts, making it if need be.
pub(super) fn make_parts_dir(root: &Root) -> Result<Arc<Dir>, JournalError> {
    for _ in 0..CREATE_TRIES {
        if root.handle().create_dir(RESERVED_NAME, 0o700)? {
            root.handle().sync()?;
        }
        if let Some(dir) = open_parts_dir(root)? {
            return Ok(dir);
        }
    }
    Err(JournalError::Busy { path: escape_bytes(RESERVED_NAME) })
}

/// Reads all journals without locking any. Folders that cannot be read are passed over.
pub(super) fn read_folders(parts_dir: &Dir) -> Result<Vec<(Vec<u8>, Listing)>, JournalError> {
    let mut folders = Vec::new();
    for entry in parts_dir.entries()? {
        let name = entry?.name;
        if is_folder_name(&name)
            && let Some((_, journal)) = open_folder(parts_dir, &name)?
            && let Ok((listing, replayed)) = Listing::read(&journal)
            && replayed.known
            && !replayed.foreign
        {
            folders.push((name, listing));
        }
    }
    Ok(folders)
}

/// Opens a folder and its journal, following nothing. `None` if either is not there (any more) or not ours.
pub(super) fn open_folder(parts_dir: &Dir, name: &[u8]) -> Result<Option<(Dir, File)>, JournalError> {
    let owner = parts_dir.stat()?.uid;
    match parts_dir.stat_name(name)? {
        Some(stat) if stat.kind == FileKind::Dir && stat.uid == owner => {}
        _ => return Ok(None),
    }
    let gone =
        |e: &DiskError| matches!(e.kind(), DiskErrorKind::NotFound | DiskErrorKind::Escape | DiskErrorKind::Exists);
    let dir = match parts_dir.open_dir(name) {
        Err(e) if gone(&e) => return Ok(None),
        other => other?,
    };
    match dir.stat_name(JOURNAL_NAME)? {
        Some(stat) if stat.kind == FileKind::File && stat.uid == owner => {}
        _ => return Ok(None),
    }
    match dir.open_write(JOURNAL_NAME) {
        Err(e) if gone(&e) => Ok(None),
        Ok(journal) => Ok(Some((dir, journal))),
        Err(e) => Err(e.into()),
    }
}

/// Whether a name in the parts directory is that of a writer's folder.
pub(super) fn is_folder_name(name: &[u8]) -> bool {
    name.strip_prefix(b"w-").is_some_and(|hex| hex.len() == 16 && hex.iter().all(u8::is_ascii_hexdigit))
}

const CREATE_TRIES: u32 = 20;
