use std::{
    fs::File,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    JournalError,
    folder::{is_folder_name, open_folder, open_parts_dir},
    jobs::JOBS_NAME,
    log::Listing,
    names::forget_names,
    publish::PUBLISH_LOCK,
    writer::{JOURNAL_NAME, part_name, part_number},
};
use crate::{
    chunk::{RelPath, escape_bytes},
    disk::{Dir, DiskErrorKind, FileKind, LockOutcome, Root, lock_file},
};

/// A part that an attempt left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftPart {
    /// Names the part for [`remove_unlocked`].
    pub id: PartId,
    /// Destination, relative to the directory; `None` if its journal cannot be read.
    pub path: Option<RelPath>,
    /// Length of the whole file in bytes; for an unreadable journal, of what is there.
    pub size: u64,
    /// Bytes that are durable and can be resumed.
    pub held_bytes: u64,
    /// Storage that it takes, in bytes.
    pub allocated_bytes: u64,
    /// Time since it was last written to.
    pub age: Duration,
    /// A process is writing it, or may be: it cannot be told where the file system has no locks.
    pub locked: bool,
}

/// Names a part below one directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartId {
    folder: Vec<u8>,
    number: u32,
}

/// Which parts to remove.
#[derive(Clone, Debug)]
pub enum Which {
    /// All.
    All,
    /// Those not written to for this long.
    OlderThan(Duration),
    /// These.
    These(Vec<PartId>),
}

/// The parts that attempts left below `root`, those in use included.
pub fn list_parts(root: &Root) -> Result<Vec<LeftPart>, JournalError> {
    let Some(parts_dir) = open_parts_dir(root)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for name in folders(&parts_dir)? {
        let Some((dir, journal)) = open_folder(&parts_dir, &name)? else { continue };
        let listing = Listing::read(&journal).map(|(listing, _)| listing).unwrap_or_default();
        let locked = !matches!(lock_file(&dir, JOURNAL_NAME, &journal)?, LockOutcome::Held);
        found.extend(left_parts(&dir, &name, &listing, locked)?);
    }
    Ok(found)
}

/// Removes parts that no process is writing, and returns them.
pub fn remove_unlocked(root: &Root, which: &Which) -> Result<Vec<LeftPart>, JournalError> {
    let Some(parts_dir) = open_parts_dir(root)? else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for name in folders(&parts_dir)? {
        let Some((dir, journal)) = open_folder(&parts_dir, &name)? else { continue };
        if !matches!(lock_file(&dir, JOURNAL_NAME, &journal)?, LockOutcome::Held) {
            continue;
        }
        let listing = Listing::read(&journal).map(|(listing, _)| listing).unwrap_or_default();
        let (go, stay): (Vec<_>, Vec<_>) =
            left_parts(&dir, &name, &listing, false)?.into_iter().partition(|part| match which {
                Which::All => true,
                Which::OlderThan(age) => part.age >= *age,
                Which::These(ids) => ids.contains(&part.id),
            });
        for part in &go {
            dir.remove_file(&part_name(part.id.number))?;
        }
        removed.extend(go);
        if stay.is_empty() {
            remove_folder(&parts_dir, &name, &dir, &journal)?;
        }
    }
    // A job under way needs its notes as much as its parts.
    if matches!(which, Which::All) && folders(&parts_dir)?.is_empty() {
        forget_names(&parts_dir)?;
    }
    sweep(root, &parts_dir)?;
    Ok(removed)
}

fn folders(parts_dir: &Dir) -> Result<Vec<Vec<u8>>, JournalError> {
    let mut names = Vec::new();
    for entry in parts_dir.entries()? {
        let name = entry?.name;
        if is_folder_name(&name) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn left_parts(dir: &Dir, folder: &[u8], listing: &Listing, locked: bool) -> Result<Vec<LeftPart>, JournalError> {
    let mut found = Vec::new();
    for entry in dir.entries()? {
        let name = entry?.name;
        let Some(number) = part_number(&name) else { continue };
        let Some(stat) = dir.stat_name(&name)? else { continue };
        let listed = listing.parts.get(&number).filter(|l| l.inode == stat.identity.ino && stat.kind == FileKind::File);
        found.push(LeftPart {
            id: PartId { folder: folder.to_vec(), number },
            path: listed.map(|l| l.path.clone()),
            size: listed.map_or(stat.identity.size, |l| l.size),
            held_bytes: listed.map_or(0, super::log::Listed::held_bytes),
            allocated_bytes: stat.allocated_bytes,
            age: age(stat.identity.ctime.seconds),
            locked,
        });
    }
    Ok(found)
}

fn age(changed_seconds: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(u64::try_from(changed_seconds).unwrap_or(0)))
}

/// Takes a folder away. The journal's lock is held, and given back with the file.
fn remove_folder(parts_dir: &Dir, name: &[u8], dir: &Dir, _locked: &File) -> Result<(), JournalError> {
    dir.remove_file(JOURNAL_NAME)?;
    parts_dir.remove_dir(name)?;
    Ok(())
}

/// Removes folders of dead writers in which nothing is worth keeping, and the parts directory if that was all.
pub(super) fn sweep(root: &Root, parts_dir: &Dir) -> Result<(), JournalError> {
    for name in folders(parts_dir)? {
        let Some((dir, journal)) = open_folder(parts_dir, &name)? else {
            // A crash between the folder and its journal, or between the removal of the two.
            remove_bare_folder(parts_dir, &name)?;
            continue;
        };
        // Looked at without the lock first, so that a folder worth keeping is never locked, and again under it.
        if is_worthless(&dir, &name, &journal)?
            && lock_file(&dir, JOURNAL_NAME, &journal)? == LockOutcome::Held
            && is_worthless(&dir, &name, &journal)?
        {
            for part in left_parts(&dir, &name, &Listing::default(), false)? {
                dir.remove_file(&part_name(part.id.number))?;
            }
            remove_folder(parts_dir, &name, &dir, &journal)?;
        }
    }
    remove_lock_file(parts_dir)?;
    parts_dir
        .remove_dir(JOBS_NAME)
        .or_else(|e| if e.kind() == DiskErrorKind::NotFound { Ok(false) } else { Err(e) })?;
    match root.handle().remove_dir(crate::disk::RESERVED_NAME) {
        // Not synced: should a crash bring the empty directory back, the next one takes it away.
        Ok(_) => Ok(()),
        Err(e) if e.kind() == DiskErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whether nothing in a folder can be resumed. A folder of a newer version is worth keeping.
fn is_worthless(dir: &Dir, name: &[u8], journal: &File) -> Result<bool, JournalError> {
    let Ok((listing, replayed)) = Listing::read(journal) else { return Ok(false) };
    if replayed.foreign {
        return Ok(false);
    }
    match left_parts(dir, name, &listing, false) {
        Ok(parts) => Ok(parts.iter().all(|part| part.held_bytes == 0)),
        // Somebody else is removing it.
        Err(e) if e.disk_kind() == Some(DiskErrorKind::NotFound) => Ok(false),
        Err(e) => Err(e),
    }
}

fn remove_bare_folder(parts_dir: &Dir, name: &[u8]) -> Result<(), JournalError> {
    // Only an empty one goes. One that is being made loses this race and is made again under another name.
    match parts_dir.remove_dir(name) {
        Err(e) if !matches!(e.kind(), DiskErrorKind::NotFound | DiskErrorKind::Exists) => Err(e.into()),
        _ => Ok(()),
    }
}

/// Removed only by a holder of the lock, so that nobody else can hold it under the same name.
fn remove_lock_file(parts_dir: &Dir) -> Result<(), JournalError> {
    let file = match parts_dir.open_write(PUBLISH_LOCK) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if lock_file(parts_dir, PUBLISH_LOCK, &file)? == LockOutcome::Held {
        parts_dir.remove_file(PUBLISH_LOCK)?;
    }
    Ok(())
}

/// The parts directory of `root`, for messages.
pub fn parts_path(root: &Root) -> String {
    escape_bytes(&root.handle().child(crate::disk::RESERVED_NAME))
}
