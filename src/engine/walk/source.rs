use std::{
    collections::VecDeque,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, fstat, openat, statat},
    io::Errno,
};

use super::super::FailureClass;
use super::{
    DIR_FLAGS, Found, Meta, PARTS_FOLDER, failed,
    names::{Names, sort_key},
};
use crate::{
    chunk::{RelPath, escape_bytes},
    disk::shown_path,
};

/// A directory that entries' paths are relative to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRoot {
    /// As given on the command line, or the parent of what was given.
    pub path: PathBuf,
}

impl SourceRoot {
    /// Where an entry below this root is, for a human.
    pub fn shown(&self, path: &RelPath) -> String {
        escape_bytes(shown_path(&self.path.join(OsStr::from_bytes(path.as_bytes()))))
    }
}

/// Source arguments that no job can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No source was given, or an empty word.
    #[error("a source is an empty path; name a file or folder")]
    Empty,
    /// Two sources would have the same path at the destination.
    #[error("two sources are called {name}; send them by two commands or to two folders")]
    SameName {
        /// The name, escaped.
        name: String,
    },
    /// A source is the folder of left-over parts.
    #[error("{path} holds left-over parts of this program; copy what lies beside it")]
    Parts {
        /// The argument, escaped.
        path: String,
    },
    /// None of the sources can be read.
    #[error("{text}")]
    Unreadable {
        /// What is wrong with the first one.
        text: String,
    },
}

impl SourceError {
    /// Who is at fault.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Unreadable { .. } => FailureClass::Source,
            _ => FailureClass::Usage,
        }
    }
}

/// The source arguments, looked at once.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) roots: Vec<SourceRoot>,
    /// Top-level entries in canonical order.
    pub(super) tops: Vec<TopName>,
    /// Sources that cannot be read.
    pub(super) failed: VecDeque<Found>,
    /// The directory whose contents become the destination's, if one was given with a trailing slash.
    pub(super) root_meta: Option<(usize, Meta)>,
    pub(super) single: Option<(Vec<u8>, bool)>,
}

/// One name at the top of the destination.
#[derive(Clone, Debug)]
pub(super) struct TopName {
    pub(super) root: usize,
    pub(super) name: Vec<u8>,
    pub(super) is_dir: bool,
}

/// What a source argument means.
#[derive(Debug, PartialEq, Eq)]
enum Argument<'a> {
    /// The contents of a directory.
    Contents(&'a Path),
    /// One entry of a directory, under its own name.
    Named { parent: &'a Path, name: &'a [u8] },
}

impl Sources {
    pub(super) fn open(arguments: &[PathBuf]) -> Result<Self, SourceError> {
        let mut sources = Self::default();
        let mut first_text = None;
        for argument in arguments {
            match sources.add(argument)? {
                Ok(()) => {}
                Err(text) => {
                    let name = argument.file_name().unwrap_or(argument.as_os_str());
                    first_text.get_or_insert_with(|| text.clone());
                    sources.failed.push_back(failed(name.as_bytes(), text));
                }
            }
        }
        if sources.failed.len() == arguments.len() {
            return Err(first_text.map_or(SourceError::Empty, |text| SourceError::Unreadable { text }));
        }
        sources.tops.sort_by(|a, b| sort_key(&a.name, a.is_dir).cmp(sort_key(&b.name, b.is_dir)));
        sources.refuse_same_names()?;
        if let ([_], None, [top]) = (arguments, &sources.root_meta, sources.tops.as_slice()) {
            sources.single = Some((top.name.clone(), top.is_dir));
        }
        Ok(sources)
    }

    /// Adds one argument. The inner error is the text of a source that cannot be read.
    fn add(&mut self, argument: &Path) -> Result<Result<(), String>, SourceError> {
        match Argument::of(argument)? {
            Argument::Contents(path) => {
                let opened = openat(CWD, path, DIR_FLAGS, Mode::empty())
                    .and_then(|handle| Ok((fstat(&handle)?, Names::read(&handle)?)));
                let (stat, names) = match opened {
                    Ok(opened) => opened,
                    Err(error) => return Ok(Err(unreadable(argument, error))),
                };
                let root = self.root(path);
                self.root_meta.get_or_insert_with(|| (root, Meta::from(&stat)));
                let mut position = 0;
                while let Some((name, is_dir)) = names.get(position) {
                    self.tops.push(TopName { root, name: name.to_vec(), is_dir });
                    position += 1;
                }
            }
            Argument::Named { parent, name } => {
                if name == PARTS_FOLDER {
                    return Err(SourceError::Parts { path: escape_bytes(shown_path(argument)) });
                }
                let whole = parent.join(OsStr::from_bytes(name));
                let stat = match statat(CWD, &whole, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(error) => return Ok(Err(unreadable(argument, error))),
                };
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                let root = self.root(parent);
                self.tops.push(TopName { root, name: name.to_vec(), is_dir });
            }
        }
        Ok(Ok(()))
    }

    fn root(&mut self, path: &Path) -> usize {
        // Arguments from a shell's pattern share their parent; the last one is the one that repeats.
        if self.roots.last().is_none_or(|root| root.path != path) {
            self.roots.push(SourceRoot { path: path.to_owned() });
        }
        self.roots.len() - 1
    }

    fn refuse_same_names(&self) -> Result<(), SourceError> {
        // A file `a` and a directory `a` need not be neighbours in canonical order.
        let mut names: Vec<&[u8]> = self.tops.iter().map(|top| top.name.as_slice()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1] && pair[0] != PARTS_FOLDER) {
            Some(pair) => Err(SourceError::SameName { name: escape_bytes(pair[0]) }),
            None => Ok(()),
        }
    }
}

impl<'a> Argument<'a> {
    fn of(argument: &'a Path) -> Result<Self, SourceError> {
        let bytes = argument.as_os_str().as_bytes();
        if bytes.is_empty() {
            return Err(SourceError::Empty);
        }
        let (parent, name) = match bytes.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&bytes[..=slash], &bytes[slash + 1..]),
            None => (&b"."[..], bytes),
        };
        // `.` and `..` have no name of their own at a destination, so they mean their contents, as in rsync.
        Ok(match name {
            b"" | b"." | b".." => Self::Contents(argument),
            _ => Self::Named { parent: Path::new(OsStr::from_bytes(parent)), name },
        })
    }
}

fn unreadable(argument: &Path, error: Errno) -> String {
    let shown = escape_bytes(shown_path(argument));
    match error {
        Errno::NOENT => format!("source {shown} does not exist"),
        Errno::NOTDIR => format!("source {shown} is not a folder, but ends in '/' or has a file in its path"),
        Errno::ACCESS | Errno::PERM => format!("source {shown} cannot be read: permission denied"),
        _ => format!("source {shown} cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_not_shown() {
        for (path, shown) in [
            ("/proc/self/fd/16/a/b", "source a/b does not exist"),
            ("/proc/self/fd/16/", "source . does not exist"),
            ("/proc/self/fd/x", "source /proc/self/fd/x does not exist"),
            ("/a/b", "source /a/b does not exist"),
        ] {
            assert_eq!(unreadable(Path::new(path), Errno::NOENT), shown);
        }
    }

    #[test]
    fn arguments_mean_what_they_mean_to_rsync() {
        let named = |parent: &'static str, name: &'static str| Argument::Named {
            parent: Path::new(parent),
            name: name.as_bytes(),
        };
        for (typed, meaning) in [
            ("a", named(".", "a")),
            ("./a", named("./", "a")),
            ("/a", named("/", "a")),
            ("x/y/a", named("x/y/", "a")),
            ("a/", Argument::Contents(Path::new("a/"))),
            ("a//", Argument::Contents(Path::new("a//"))),
            ("/", Argument::Contents(Path::new("/"))),
            (".", Argument::Contents(Path::new("."))),
            ("a/.", Argument::Contents(Path::new("a/."))),
            ("..", Argument::Contents(Path::new(".."))),
        ] {
            let got = Argument::of(Path::new(typed)).unwrap();
            // Path's equality ignores trailing slashes, which matter here.
            assert_eq!(format!("{got:?}"), format!("{meaning:?}"), "{typed}");
        }
        assert_eq!(Argument::of(Path::new("")), Err(SourceError::Empty));
    }
}
