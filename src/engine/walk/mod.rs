//! Walks the sources of a job in canonical order: depth first, the entries of a directory by the bytes of their names,
//! with a directory compared as `name/`. That is the byte order of whole paths when the paths of directories end in
//! `/`, so a tree's manifest needs no sort of its own.
//!
//! Below a source argument no symlink is ever followed: every level is opened by name relative to its parent's handle,
//! and what a name turns out to be must match what its directory said, else it is reported as changed. What cannot be
//! read is reported and the walk goes on.
//!
//! Memory is one directory's names per level. Handles are bounded too: the deepest [`MAX_LEVEL_HANDLES`] levels keep
//! theirs, the others are reopened on the way back, checked by device and inode.

mod entry;
mod names;
mod source;
#[cfg(test)]
mod tests;

use std::{ffi::CString, os::fd::OwnedFd, path::PathBuf};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, readlinkat, statat},
    io::Errno,
};

pub use entry::{Entry, Found, Identity, Kind, Meta, SkipReason, Time};
pub use source::{SourceError, SourceRoot};

use self::{
    names::Names,
    source::{Sources, TopName},
};
use super::FailureClass;
use crate::{
    chunk::{RelPath, escape_bytes},
    disk::shown_path,
};

/// The folder of parts and journals beside a destination; never part of a job.
pub const PARTS_FOLDER: &[u8] = b".ccat-xfer";

/// Levels of the tree whose directory handles stay open.
pub const MAX_LEVEL_HANDLES: usize = 32;

/// The entries of a job's sources, in canonical order. Blocking: each step may touch the disk.
#[derive(Debug)]
pub struct Walk {
    sources: Sources,
    next_top: usize,
    // The handle of the root that the current top-level entry lives in, and its index.
    root: Option<(usize, OwnedFd)>,
    levels: Vec<Level>,
    // levels[..first_open] have no handle, levels[first_open..] have one.
    first_open: usize,
    emitted_root: bool,
    finished: bool,
}

#[derive(Debug)]
struct Level {
    handle: Option<OwnedFd>,
    meta: Meta,
    path: RelPath,
    names: Names,
    next: usize,
}

impl Walk {
    /// Looks at the source arguments, as typed. The current folder is where relative ones start.
    ///
    /// `dir` means the directory under its own name, `dir/` its contents; only with the slash is a symlink followed.
    /// A missing source is reported by the walk, unless all are missing: then there is nothing to do.
    pub fn new(arguments: &[PathBuf]) -> Result<Self, SourceError> {
        Ok(Self {
            sources: Sources::open(arguments)?,
            next_top: 0,
            root: None,
            levels: Vec::new(),
            first_open: 0,
            emitted_root: false,
            finished: false,
        })
    }

    /// The directories that entries' paths are relative to; [`Entry::root`] is an index into these.
    pub fn roots(&self) -> &[SourceRoot] {
        &self.sources.roots
    }

    /// The one top-level entry, when a single source without a trailing slash was given: its name, and whether it is a
    /// directory. Such a source may get a new name at the destination, as with cp.
    pub fn single(&self) -> Option<(&[u8], bool)> {
        self.sources.single.as_ref().map(|(name, is_dir)| (name.as_slice(), *is_dir))
    }

    fn step(&mut self) -> Option<Found> {
        if let Some(level) = self.levels.last_mut() {
            let Some((name, said_dir)) = level.names.get(level.next) else { return Some(self.leave()) };
            let (name, path) = (name.to_vec(), level.path.clone());
            level.next += 1;
            return Some(self.visit(&path, &name, said_dir));
        }
        if let Some(failed) = self.sources.failed.pop_front() {
            return Some(failed);
        }
        if let Some((root, meta)) = self.sources.root_meta
            && !self.emitted_root
        {
            self.emitted_root = true;
            return Some(Found::Entry(Entry { root, path: RelPath::root(), kind: Kind::Dir, meta }));
        }
        if let Some(TopName { root, name, is_dir }) = self.sources.tops.get(self.next_top).cloned() {
            self.next_top += 1;
            let refused = self.enter_root(root, &name);
            return Some(refused.unwrap_or_else(|| self.visit(&RelPath::root(), &name, is_dir)));
        }
        if self.finished {
            return None;
        }
        self.finished = true;
        let (root, meta) = self.sources.root_meta?;
        Some(Found::Entry(Entry { root, path: RelPath::root(), kind: Kind::DirEnd, meta }))
    }

    /// Opens the root of the next top-level entry, unless the last one lived there too. What it returns is the failure.
    fn enter_root(&mut self, root: usize, name: &[u8]) -> Option<Found> {
        if self.root.as_ref().is_some_and(|(open, _)| *open == root) {
            return None;
        }
        self.root = None;
        let at = &self.sources.roots[root];
        // The root is the operator's own argument: its symlinks are followed.
        match openat(CWD, &at.path, DIR_FLAGS, Mode::empty()) {
            Ok(handle) => {
                self.root = Some((root, handle));
                None
            }
            Err(error) => Some(failed(
                name,
                format!("cannot open the source folder {}: {error}", escape_bytes(shown_path(&at.path))),
            )),
        }
    }

    /// One name of the directory `parent`, whose handle is the deepest one.
    fn visit(&mut self, parent: &RelPath, name: &[u8], said_dir: bool) -> Found {
        let path = match parent.join(name) {
            Ok(path) => path,
            Err(error) => {
                let mut bytes = parent.as_bytes().to_vec();
                bytes.push(b'/');
                bytes.extend_from_slice(name);
                return failed(&bytes, format!("cannot copy this source path: {error}"));
            }
        };
        if name == PARTS_FOLDER {
            return Found::Skipped { path: path.as_bytes().to_vec(), reason: SkipReason::Parts };
        }
        // A RelPath has no NUL.
        let Ok(c_name) = CString::new(name) else { return self.changed(&path) };
        if said_dir {
            return self.enter(path, &c_name);
        }
        let Some((root, handle)) = self.handle() else { return self.changed(&path) };
        let stat = match statat(handle, c_name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(stat) => stat,
            Err(error) => return self.unreadable("read the metadata of", &path, error),
        };
        let meta = Meta::from(&stat);
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => match readlinkat(handle, c_name.as_c_str(), Vec::new()) {
                Ok(target) => Kind::Symlink { target: target.into_bytes() },
                Err(error) => return self.unreadable("read the link", &path, error),
            },
            // The order of the walk rests on what the directory said.
            FileType::Directory => return self.changed(&path),
            other => return Found::Skipped { path: path.as_bytes().to_vec(), reason: SkipReason::of(other) },
        };
        Found::Entry(Entry { root, path, kind, meta })
    }

    /// Opens a directory, reads its names and makes it the deepest level.
    fn enter(&mut self, path: RelPath, name: &CString) -> Found {
        let Some((root, parent)) = self.handle() else { return self.changed(&path) };
        let opened = match openat(parent, name.as_c_str(), DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::LOOP | Errno::NOTDIR) => return self.changed(&path),
            Err(error) => return self.unreadable("open the folder", &path, error),
        };
        let read = fstat(&opened).and_then(|stat| Ok((stat, Names::read(&opened)?)));
        let (stat, names) = match read {
            Ok(read) => read,
            Err(error) => return self.unreadable("read the folder", &path, error),
        };
        let meta = Meta::from(&stat);
        self.levels.push(Level { handle: Some(opened), meta, path: path.clone(), names, next: 0 });
        if self.levels.len() - self.first_open > MAX_LEVEL_HANDLES {
            self.levels[self.first_open].handle = None;
            self.first_open += 1;
        }
        Found::Entry(Entry { root, path, kind: Kind::Dir, meta })
    }

    /// Closes the deepest level and makes its parent usable again.
    fn leave(&mut self) -> Found {
        let (Some(level), Some(&(root, _))) = (self.levels.pop(), self.root.as_ref()) else {
            return failed(b"", "the walk lost its place".to_owned());
        };
        if self.levels.len() <= self.first_open && !self.levels.is_empty() {
            self.reopen(level.handle.as_ref());
        }
        Found::Entry(Entry { root, path: level.path, kind: Kind::DirEnd, meta: level.meta })
    }

    /// Gets the deepest level a handle again: by `..` of the child just left, else by name from the root. Where both
    /// lead to another inode the directory was moved or replaced; the level then stays without a handle and each of
    /// its remaining names is reported as changed.
    fn reopen(&mut self, child: Option<&OwnedFd>) {
        let Some(level) = self.levels.last() else { return };
        let want = level.meta.identity;
        let same = |handle: &OwnedFd| fstat(handle).is_ok_and(|stat| Meta::from(&stat).identity == want);
        let mut handle =
            child.and_then(|child| openat(child, c"..", DIR_FLAGS, Mode::empty()).ok()).filter(|handle| same(handle));
        if handle.is_none() {
            handle = self.descend(&level.path).filter(same);
        }
        self.first_open = self.levels.len() - 1;
        if let Some(level) = self.levels.last_mut() {
            level.handle = handle;
        }
    }

    /// Opens a directory by its names from the root, following no link.
    fn descend(&self, path: &RelPath) -> Option<OwnedFd> {
        let (_, root) = self.root.as_ref()?;
        path.components().try_fold(None, |at: Option<OwnedFd>, name| {
            let parent = at.as_ref().unwrap_or(root);
            openat(parent, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()).ok().map(Some)
        })?
    }

    /// The handle that the current names are relative to, and the index of its root.
    fn handle(&self) -> Option<(usize, &OwnedFd)> {
        let (root, root_handle) = self.root.as_ref()?;
        match self.levels.last() {
            None => Some((*root, root_handle)),
            Some(level) => Some((*root, level.handle.as_ref()?)),
        }
    }

    fn changed(&self, path: &RelPath) -> Found {
        failed(
            path.as_bytes(),
            format!("{} was moved or replaced while it was read; run the command again", self.shown(path)),
        )
    }

    fn unreadable(&self, verb: &str, path: &RelPath, error: Errno) -> Found {
        let text = match error {
            Errno::NOENT => format!("{} vanished while the source was read", self.shown(path)),
            Errno::ACCESS | Errno::PERM => {
                format!("cannot {verb} {}: permission denied; make it readable for this user", self.shown(path))
            }
            _ => format!("cannot {verb} {}: {error}", self.shown(path)),
        };
        failed(path.as_bytes(), text)
    }

    /// A path as the operator knows it.
    fn shown(&self, path: &RelPath) -> String {
        match &self.root {
            Some((root, _)) => self.sources.roots[*root].shown(path),
            None => path.to_string(),
        }
    }

    /// Directory handles held, for the tests of the bound.
    #[cfg(test)]
    fn open_handles(&self) -> usize {
        self.levels.iter().filter(|level| level.handle.is_some()).count() + usize::from(self.root.is_some())
    }

    /// Bytes held for names, for the tests of the bound.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.levels.iter().map(|level| level.names.held_bytes()).sum()
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        self.step()
    }
}

fn failed(path: &[u8], text: String) -> Found {
    Found::Failed { path: path.to_vec(), class: FailureClass::Source, text }
}

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
