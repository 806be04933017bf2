//! A package at rest: read back, copied out, and what was replaced forgotten.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;

use super::{
    super::{
        ArchiveError, Progress, ReadHow, Reading, failure,
        watch::{Watch, blocking, observer},
    },
    Work,
    modes::{self, Modes, ModesError},
};
use crate::{
    chunk::{Digest, RelPath},
    disk::{DiskError, DiskErrorKind, FileMeta, ReadMethod, Root, read_back_watched},
    engine::{
        FailureClass, Look, MeasureError, Options, copy_here, measure_by,
        walk::{Found, Kind, Meta, Walk},
    },
    model::{ErrorClass, PackageKind, Timestamp},
    protocol::EntryKind,
};

/// Reads files from the medium, and takes permission bits from the notes beside the package.
struct Medium<'a> {
    modes: Modes,
    own_name: &'a [u8],
    how: ReadHow,
    watch: &'a Watch,
    stop: &'a CancellationToken,
}

impl Look for Medium<'_> {
    fn file(&mut self, folder: &Root, path: &RelPath) -> Result<(u64, Digest), DiskError> {
        let (dir, name) = folder.parent(path)?;
        let gone = || DiskError::new("read back", path.as_bytes(), rustix::io::Errno::NOENT);
        let identity = dir.stat_name(name)?.ok_or_else(gone)?.identity;
        let read = read_back_watched(&dir, name, &identity, &mut |bytes| {
            self.watch.add(bytes);
            !self.stop.is_cancelled()
        })?;
        self.how = weaker(self.how, read.method);
        Ok((identity.size, read.digest))
    }

    fn entry(&mut self, path: RelPath, meta: &Meta, kind: &EntryKind) -> Result<(RelPath, u32), DiskError> {
        let mode = match kind {
            EntryKind::Dir | EntryKind::File { .. } => self.modes.of(&path, meta.mode),
            _ => meta.mode,
        };
        Ok((under(self.own_name, &path).unwrap_or(path), mode))
    }
}

/// The path with its first name replaced.
fn under(top: &[u8], path: &RelPath) -> Option<RelPath> {
    path.components().skip(1).try_fold(RelPath::new(top).ok()?, |path, name| path.join(name)).ok()
}

/// A package counts as read in the weakest of the ways in which its files were.
fn weaker(before: ReadHow, method: ReadMethod) -> ReadHow {
    match (before, method) {
        (ReadHow::Cached, _) | (_, ReadMethod::Cached) => ReadHow::Cached,
        (ReadHow::Dropped, _) | (_, ReadMethod::Dropped) => ReadHow::Dropped,
        (how, ReadMethod::Direct) => how,
    }
}

impl Work {
    pub(super) fn read_back(&self, watch: &Watch, stop: &CancellationToken) -> Result<Reading, ArchiveError> {
        let what = self.doing("read");
        let started_at = now();
        let root = self.mount()?;
        let path = self.resting(&root)?;
        let (home, _) = path.split_last().unwrap_or_default();
        let home = root.beneath(&home).map_err(|e| failure::of_disk(&what, &e))?;
        let modes = Modes::open(home.handle(), &self.key.beside("modes")).map_err(|e| failure::of_disk(&what, &e))?;
        let own_name = &self.key.own_name;
        let mut medium = Medium { modes, own_name, how: ReadHow::Direct, watch, stop };
        let measured = match measure_by(&root, &path, &mut medium) {
            Ok(measured) => measured,
            Err(_) if stop.is_cancelled() => return Err(failure::cancelled(what)),
            Err(MeasureError::Disk(e)) => return Err(unreadable(what, &e)),
            Err(MeasureError::Job(e)) if e.class == FailureClass::Source => {
                return Err(ArchiveError { class: ErrorClass::DestinationDiffers, chain: vec![what, e.text] });
            }
            Err(MeasureError::Job(e)) => {
                return Err(ArchiveError { class: ErrorClass::Bug, chain: vec![what, e.text] });
            }
        };
        Ok(Reading {
            digest: measured.digest,
            size_bytes: measured.size_bytes,
            file_count: measured.file_count,
            how: medium.how,
            vouched_by: None,
            started_at,
            ended_at: now(),
        })
    }

    /// Where the package rests, if it does.
    pub(super) fn resting(&self, root: &Root) -> Result<RelPath, ArchiveError> {
        let path = self.home()?.join(&self.key.name);
        let path = path.map_err(|e| ArchiveError::caused(ErrorClass::Bug, self.doing("name"), &e))?;
        match root.stat(&path) {
            Ok(Some(_)) => Ok(path),
            Ok(None) => Err(ArchiveError::new(
                ErrorClass::MissingSource,
                format!("{}: it is not there; archive it anew from another copy", self.doing("find")),
            )),
            Err(e) => Err(failure::of_disk(self.doing("find"), &e)),
        }
    }

    /// The names in the package's folder.
    pub(super) fn names(&self, home: &Root) -> Result<Vec<Vec<u8>>, ArchiveError> {
        let names = home.handle().entries().and_then(|all| all.map(|e| e.map(|e| e.name)).collect());
        names.map_err(|e| failure::of_disk(self.doing("list what belongs to"), &e))
    }

    pub(super) async fn fetch(
        self,
        folder: &Root,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let what = self.doing("copy out");
        let (handle, at) = folder.handle_path().map_err(|e| failure::of_disk(&what, &e))?;
        let this = self.clone();
        let (_held, source, to) = blocking(move || {
            let _handle = handle;
            let what = this.doing("copy out");
            let disk = |e| failure::of_disk(&what, &e);
            let root = this.mount()?;
            let (home, _) = this.resting(&root)?.split_last().map(|(h, n)| (h, n.to_vec())).unwrap_or_default();
            let (held, home) = root.beneath(&home).and_then(|home| home.handle_path()).map_err(disk)?;
            let (parent, _) = this.package.relative_path.split_last().unwrap_or_default();
            let folder = Root::open(&at).map_err(disk)?;
            folder.make_dirs(&parent, 0o755).map_err(disk)?;
            let to = folder.beneath(&parent).map_err(disk)?;
            Ok((held, home.join(OsStr::from_bytes(&this.key.name)), Arc::new(to)))
        })
        .await?;
        let watch = Arc::new(Watch::default());
        let expected = (self.package.kind == PackageKind::File).then_some(Digest(self.package.expected.value));
        let options = Options { expected, ..Options::default() };
        let rename = (self.key.name != self.key.own_name).then(|| (self.key.name.clone(), self.key.own_name.clone()));
        let copy = copy_here(source, Arc::clone(&to), rename, &options, observer(&watch), cancel);
        let copied = watch.tell(progress, copy).await;
        let failed = copied.err().map(|error| (error, self.key.name.clone())).or_else(|| watch.failed());
        if let Some((error, file)) = failed {
            let mut failed = failure::of_copy(what, &error, &file);
            // Nobody writes to what rests: its bytes went bad.
            if failed.class == ErrorClass::SourceChanged {
                failed.class = ErrorClass::CorruptAtSource;
            }
            return Err(failed);
        }
        blocking(move || self.finish_fetch(&to)).await
    }

    /// Gives a copy its permission bits back, and sees that it is the package.
    fn finish_fetch(&self, to: &Root) -> Result<(), ArchiveError> {
        let what = self.doing("copy out");
        let disk = |e| failure::of_disk(&what, &e);
        let home = self.mount()?.beneath(&self.home()?).map_err(disk)?;
        let modes = Modes::open(home.handle(), &self.key.beside("modes")).map_err(disk)?;
        let name = RelPath::new(self.key.own_name.clone())
            .map_err(|e| ArchiveError::caused(ErrorClass::Bug, self.doing("name"), &e))?;
        modes::restore(to, &name, modes).map_err(|e| self.modes_failure("copy out", &e))?;
        // No copy gets bits such as setuid, which count for the digest: the notes are asked here too.
        let modes = Modes::open(home.handle(), &self.key.beside("modes")).map_err(disk)?;
        let (watch, never) = (Watch::default(), CancellationToken::new());
        let own_name = &self.key.own_name;
        let mut medium = Medium { modes, own_name, how: ReadHow::Direct, watch: &watch, stop: &never };
        let measured =
            measure_by(to, &name, &mut medium).map_err(|e| ArchiveError::caused(ErrorClass::Network, &what, &e))?;
        if measured.digest.0 != self.package.expected.value {
            return Err(ArchiveError::new(
                ErrorClass::CorruptAtSource,
                format!("{what}: it has digest {} instead of {}", measured.digest, self.package.expected.hex()),
            ));
        }
        Ok(())
    }

    pub(super) fn forget_replaced(&self) -> Result<(), ArchiveError> {
        let what = self.doing("forget what was replaced of");
        let disk = |e| failure::of_disk(&what, &e);
        let home = match self.mount()?.beneath(&self.home()?) {
            Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
            other => other.map_err(disk)?,
        };
        let aside = self.key.beside("corrupt-");
        let names = self.names(&home)?;
        if names.iter().all(|name| *name != self.key.name) {
            return Err(ArchiveError::new(
                ErrorClass::MissingSource,
                format!("{what}: nothing has come in its place; archive it anew first"),
            ));
        }
        for name in names.into_iter().filter(|name| name.starts_with(&aside)) {
            let name = RelPath::new(name).map_err(|e| ArchiveError::caused(ErrorClass::Bug, &what, &e))?;
            remove_all(&home, &name).map_err(|e| self.modes_failure("forget what was replaced of", &e))?;
        }
        home.handle().sync().map_err(disk)
    }
}

/// Removes a file, or a folder with all below it, read-only or not. What is not there is removed.
pub(in super::super) fn remove_all(root: &Root, path: &RelPath) -> Result<(), ModesError> {
    let Some(found) = root.stat(path)? else { return Ok(()) };
    let (dir, name) = root.parent(path)?;
    if found.kind != crate::disk::FileKind::Dir {
        return Ok(dir.remove_file(name)?);
    }
    let folder = root.beneath(path)?;
    let (_handle, at) = folder.handle_path()?;
    // Nothing can be removed from a folder that nobody may write to.
    let inside = Walk::new(&[at.join("")]).map_err(|e| ModesError::Walk(e.to_string()))?;
    for found in inside {
        if let Found::Entry(entry) = found
            && entry.kind == Kind::Dir
            && entry.meta.mode & 0o700 != 0o700
        {
            folder.set_metadata(&entry.path, &FileMeta { mode: Some(0o700), ..FileMeta::default() })?;
        }
    }
    let (_handle, parent) = {
        let (parent, _) = path.split_last().unwrap_or_default();
        root.beneath(&parent)?.handle_path()?
    };
    std::fs::remove_dir_all(parent.join(OsStr::from_bytes(name)))
        .map_err(|e| DiskError::new("remove", path.as_bytes(), e))?;
    root.forget_handles();
    Ok(())
}

/// Bytes that rest cannot be read.
fn unreadable(what: String, error: &DiskError) -> ArchiveError {
    let class = match error.kind() {
        DiskErrorKind::NotFound => ErrorClass::MissingSource,
        DiskErrorKind::Io => ErrorClass::CorruptInFlight,
        DiskErrorKind::Changed | DiskErrorKind::NotAFile => ErrorClass::DestinationDiffers,
        DiskErrorKind::TooManyOpen => ErrorClass::RemoteBusy,
        _ => ErrorClass::Configuration,
    };
    ArchiveError { class, chain: vec![what, error.to_string()] }
}

/// The wall clock.
pub(in super::super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
