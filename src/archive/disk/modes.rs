//! The permission bits of a package, noted beside it: one line for each file and folder in the order of a walk, `MODE PATH`, the
//! mode in octal, the path below the package escaped, `.` for the package itself.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use super::super::key::escape;
use crate::{
    chunk::RelPath,
    disk::{Dir, DiskError, DiskErrorKind, FileMeta, Root},
    engine::walk::{Entry, Found, Kind, Walk},
};

/// Longest line: a mode, a path with every byte escaped.
const LINE_BYTES: u64 = 16 << 10;

/// Why permission bits could not be noted or changed.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ModesError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The package cannot be walked.
    #[error("{0}")]
    Walk(String),
}

/// Files and folders of the package at `at`, in the order of a walk.
fn walk(at: &Path) -> Result<impl Iterator<Item = Result<Entry, ModesError>> + use<>, ModesError> {
    let walk = Walk::new(&[at.to_owned()]).map_err(|e| ModesError::Walk(e.to_string()))?;
    Ok(walk.filter_map(|found| match found {
        Found::Entry(entry) => matches!(entry.kind, Kind::Dir | Kind::File).then_some(Ok(entry)),
        Found::Skipped { .. } => None,
        Found::Failed { text, .. } => Some(Err(ModesError::Walk(text))),
    }))
}

/// The path below the package, as in a line.
fn shown(path: &RelPath) -> String {
    let mut names = path.components();
    names.next();
    let below: Vec<String> = names.map(escape).collect();
    if below.is_empty() { ".".to_owned() } else { below.join("/") }
}

/// Notes the bits of the package at `source` in file `name` of `home`, durably.
pub(super) fn record(source: &Path, home: &Dir, name: &[u8]) -> Result<(), ModesError> {
    let temporary = [name, b".new"].concat();
    match home.remove_file(&temporary) {
        Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let error = |e| DiskError::new("write", [home.display_path(), b"/", &temporary].concat(), e);
    let mut file = BufWriter::new(home.create_file(&temporary)?);
    for entry in walk(source)? {
        let entry = entry?;
        writeln!(file, "{:o} {}", entry.meta.mode, shown(&entry.path)).map_err(error)?;
    }
    let file = file.into_inner().map_err(|e| error(e.into_error()))?;
    file.sync_all().map_err(error)?;
    home.rename(&temporary, home, name)?;
    home.sync()?;
    Ok(())
}

/// The notes of a package, read from front to back.
#[derive(Debug)]
pub(super) struct Modes(Option<BufReader<File>>);

impl Modes {
    /// Opens the notes; a package without any has the bits that it has.
    pub(super) fn open(home: &Dir, name: &[u8]) -> Result<Self, DiskError> {
        match home.open_read(name) {
            Ok(file) => Ok(Self(Some(BufReader::new(file)))),
            Err(e) if e.kind() == DiskErrorKind::NotFound => Ok(Self(None)),
            Err(e) => Err(e),
        }
    }

    /// The bits that the next file or folder of the walk had. Those that it has where the notes are of other entries: its
    /// digest then shows that something is wrong.
    pub(super) fn of(&mut self, path: &RelPath, now: u32) -> u32 {
        let Some(notes) = &mut self.0 else { return now };
        let mut line = String::new();
        let read = notes.by_ref().take(LINE_BYTES).read_line(&mut line);
        let noted = read.ok().and_then(|_| line.trim_end().split_once(' '));
        match noted.map(|(mode, of)| (u32::from_str_radix(mode, 8), of)) {
            Some((Ok(mode), of)) if of == shown(path) => mode & 0o7777,
            _ => {
                self.0 = None;
                now
            }
        }
    }
}

/// Takes the bits for writing from the package `name` below `home`. Protects against slips, so it need not be durable.
pub(super) fn make_read_only(home: &Root, name: &RelPath) -> Result<(), ModesError> {
    let (_handle, at) = home.handle_path()?;
    for entry in walk(&at.join(OsStr::from_bytes(name.as_bytes())))? {
        let entry = entry?;
        let kept = entry.meta.mode & 0o555;
        if entry.meta.mode != kept {
            home.set_metadata(&entry.path, &FileMeta { mode: Some(kept), ..FileMeta::default() })?;
        }
    }
    Ok(())
}

/// Gives the copy `name` below `folder` the bits that `modes` has for it.
pub(super) fn restore(folder: &Root, name: &RelPath, mut modes: Modes) -> Result<(), ModesError> {
    let (_handle, at) = folder.handle_path()?;
    for entry in walk(&at.join(OsStr::from_bytes(name.as_bytes())))? {
        let entry = entry?;
        let mode = modes.of(&entry.path, entry.meta.mode);
        if mode != entry.meta.mode {
            folder.set_metadata(&entry.path, &FileMeta { mode: Some(mode), ..FileMeta::default() })?;
        }
    }
    Ok(())
}
