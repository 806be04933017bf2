use std::io;

use rustix::io::Errno;

use crate::chunk::escape_bytes;

/// An operation on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}{}", escape_bytes(path), self.kind().advice())]
pub struct DiskError {
    /// Verb and object, as in "cannot VERB PATH".
    pub operation: &'static str,
    /// What it was done to, as bytes; escaped when displayed.
    pub path: Vec<u8>,
    /// What the system said.
    pub source: io::Error,
}

/// What a caller can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskErrorKind {
    /// No space or quota left, or larger than the file system allows.
    NoSpace,
    /// The name or a directory above it does not exist.
    NotFound,
    /// Not permitted to this user.
    Permission,
    /// The name is taken, or a name that must be a directory is something else.
    Exists,
    /// A symbolic link, `..` or another way out of the root was refused.
    Escape,
    /// The file system or file is read-only.
    ReadOnly,
    /// The two names are on different file systems.
    OtherFileSystem,
    /// Not a regular file, where only a regular file is read.
    NotAFile,
    /// The file ended or changed while it was read.
    Changed,
    /// The name is reserved for this program's own files.
    Reserved,
    /// Too many files are open.
    TooManyOpen,
    /// Anything else; the medium may be at fault.
    Io,
}

impl DiskErrorKind {
    fn advice(self) -> &'static str {
        match self {
            Self::NoSpace => "; free space or raise the quota, then run the same command again: it resumes",
            Self::Escape => "; symbolic links are not followed below the root of a copy",
            Self::OtherFileSystem => "; copy to each file system separately",
            Self::TooManyOpen => "; raise the limit on open files (ulimit -n)",
            _ => "",
        }
    }
}

impl DiskError {
    /// An error of `operation` on `path`.
    pub fn new(operation: &'static str, path: impl Into<Vec<u8>>, source: impl Into<io::Error>) -> Self {
        Self { operation, path: path.into(), source: source.into() }
    }

    pub(crate) fn refused(operation: &'static str, path: impl Into<Vec<u8>>, refusal: Refusal) -> Self {
        let kind = match refusal {
            Refusal::NotAFile | Refusal::Reserved => io::ErrorKind::InvalidInput,
            Refusal::Changed(_) => io::ErrorKind::InvalidData,
            Refusal::OtherFileSystem => io::ErrorKind::CrossesDevices,
        };
        Self::new(operation, path, io::Error::new(kind, refusal))
    }

    pub(crate) fn other_file_system(path: impl Into<Vec<u8>>) -> Self {
        Self::refused("keep parts for", path, Refusal::OtherFileSystem)
    }

    /// What to tell apart.
    pub fn kind(&self) -> DiskErrorKind {
        if let Some(refusal) = self.source.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()) {
            return match refusal {
                Refusal::NotAFile => DiskErrorKind::NotAFile,
                Refusal::Reserved => DiskErrorKind::Reserved,
                Refusal::Changed(_) => DiskErrorKind::Changed,
                Refusal::OtherFileSystem => DiskErrorKind::OtherFileSystem,
            };
        }
        match Errno::from_io_error(&self.source) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => DiskErrorKind::NoSpace,
            Some(Errno::NOENT) => DiskErrorKind::NotFound,
            Some(Errno::ACCESS | Errno::PERM) => DiskErrorKind::Permission,
            Some(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => DiskErrorKind::Exists,
            Some(Errno::LOOP) => DiskErrorKind::Escape,
            Some(Errno::ROFS) => DiskErrorKind::ReadOnly,
            Some(Errno::XDEV) => DiskErrorKind::OtherFileSystem,
            Some(Errno::MFILE | Errno::NFILE) => DiskErrorKind::TooManyOpen,
            Some(_) => DiskErrorKind::Io,
            None if self.source.kind() == io::ErrorKind::UnexpectedEof => DiskErrorKind::Changed,
            None => DiskErrorKind::Io,
        }
    }
}

/// What this program refuses by itself, where the system would not.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it is not a regular file")]
    NotAFile,
    #[error("the name .ccat-xfer is reserved for parts of transfers")]
    Reserved,
    #[error("{0}")]
    Changed(&'static str),
    #[error("it is on another file system than the parts beside the destination")]
    OtherFileSystem,
}
