use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir as RawDir, Mode, OFlags, RenameFlags},
    io::Errno,
};

use super::{DiskError, FileKind, FileMeta, Stat, error::Refusal, fault};

/// An open directory, in which names are made and changed by one plain component.
///
/// The handle stays with the inode: a directory that is renamed takes its handle along.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    // For messages only.
    path: Vec<u8>,
}

impl Dir {
    pub(crate) fn new(fd: OwnedFd, path: Vec<u8>) -> Self {
        Self { fd, path }
    }

    /// Where the directory was when it was opened, for messages.
    pub fn display_path(&self) -> &[u8] {
        &self.path
    }

    /// The directory itself.
    pub fn stat(&self) -> Result<Stat, DiskError> {
        Stat::of_fd(&self.fd).map_err(|e| DiskError::new("examine", &*self.path, e))
    }

    /// What `name` stands for, itself and not what it links to; `None` if there is no such name.
    pub fn stat_name(&self, name: &[u8]) -> Result<Option<Stat>, DiskError> {
        let name = self.plain("examine", name)?;
        match Stat::of_name(&self.fd, name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("examine", name, e)),
        }
    }

    /// Opens the directory `name`, never through a symbolic link.
    pub fn open_dir(&self, name: &[u8]) -> Result<Self, DiskError> {
        let name = self.plain("open directory", name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map_err(|e| self.error("open directory", name, e))?;
        Ok(Self::new(fd, self.child(name)))
    }

    /// Creates directory `name`; false if the name is taken. The entry is durable once this directory is synced.
    pub fn create_dir(&self, name: &[u8], mode: u32) -> Result<bool, DiskError> {
        let name = self.plain("create directory", name)?;
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(self.error("create directory", name, e)),
        }
    }

    /// Creates file `name` (mode 0600) for reading and writing; the name must be free.
    pub fn create_file(&self, name: &[u8]) -> Result<File, DiskError> {
        let name = self.plain("create", name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.error("create", name, e))?;
        Ok(File::from(fd))
    }

    /// Opens file `name` for reading and writing if it is a regular file and no symbolic link.
    pub fn open_write(&self, name: &[u8]) -> Result<File, DiskError> {
        self.open_regular("open for writing", name, OFlags::RDWR)
    }

    /// Opens file `name` for reading if it is a regular file and no symbolic link. Never waits on a FIFO.
    pub fn open_read(&self, name: &[u8]) -> Result<File, DiskError> {
        self.open_regular("open", name, OFlags::RDONLY)
    }

    /// Opens file `name` past the page cache. `Ok(None)` where the file system cannot do that.
    pub fn open_direct(&self, name: &[u8]) -> Result<Option<File>, DiskError> {
        match self.open_regular("open", name, OFlags::RDONLY | OFlags::DIRECT) {
            Ok(file) => Ok(Some(file)),
            Err(e) if Errno::from_io_error(&e.source) == Some(Errno::INVAL) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn open_regular(&self, operation: &'static str, name: &[u8], access: OFlags) -> Result<File, DiskError> {
        let name = self.plain(operation, name)?;
        // Opening a device can have effects, so the kind is looked at first; the second look is the one that counts.
        let before = Stat::of_name(&self.fd, name).map_err(|e| self.error(operation, name, e))?;
        if matches!(before.kind, FileKind::Dir | FileKind::Other) {
            return Err(DiskError::refused(operation, self.child(name), Refusal::NotAFile));
        }
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|e| self.error(operation, name, e))?;
        let stat = Stat::of_fd(&fd).map_err(|e| self.error(operation, name, e))?;
        if stat.kind != FileKind::File {
            return Err(DiskError::refused(operation, self.child(name), Refusal::NotAFile));
        }
        Ok(File::from(fd))
    }

    /// Creates a symbolic link.
    pub fn create_symlink(&self, target: &[u8], name: &[u8]) -> Result<(), DiskError> {
        let name = self.plain("create link", name)?;
        rustix::fs::symlinkat(target, &self.fd, name).map_err(|e| self.error("create link", name, e))
    }

    /// What symbolic link `name` points to.
    pub fn read_link(&self, name: &[u8]) -> Result<Vec<u8>, DiskError> {
        let name = self.plain("read link", name)?;
        rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(|e| self.error("read link", name, e))
    }

    /// Applies metadata to link `name` itself.
    pub fn set_link_metadata(&self, name: &[u8], meta: &FileMeta) -> Result<(), DiskError> {
        let name = self.plain("set times of link", name)?;
        meta.apply_to_link(&self.fd, name).map_err(|e| self.error("set times of link", name, e))
    }

    /// Changes the mode of `name`. Follows a link (Linux before 6.6 cannot help it), so this is for directories that
    /// nobody else can write to.
    pub(crate) fn set_mode(&self, name: &[u8], mode: u32) -> Result<(), DiskError> {
        let name = self.plain("set mode of", name)?;
        rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|e| self.error("set mode of", name, e))
    }

    /// Renames `name` to `to_name` in `to`, replacing what is there.
    pub fn rename(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), DiskError> {
        let (name, to_name) = (self.plain("rename", name)?, to.plain("rename to", to_name)?);
        rustix::fs::renameat(&self.fd, name, &to.fd, to_name).map_err(|e| to.error("rename to", to_name, e))
    }

    /// Renames `name` to `to_name` in `to` if that name is free; `Exists` otherwise.
    ///
    /// Where the file system cannot rename that way, a hard link is made and the old name removed. A crash between the
    /// two leaves one inode with two names, which [`Stat::links`] shows.
    pub fn rename_no_replace(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), DiskError> {
        let (name, to_name) = (self.plain("rename", name)?, to.plain("rename to", to_name)?);
        match rustix::fs::renameat_with(&self.fd, name, &to.fd, to_name, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::INVAL | Errno::NOSYS) => self.link_and_remove(name, to, to_name),
            Err(e) => Err(to.error("rename to", to_name, e)),
        }
    }

    pub(crate) fn link_and_remove(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), DiskError> {
        rustix::fs::linkat(&self.fd, name, &to.fd, to_name, AtFlags::empty())
            .map_err(|e| to.error("link to", to_name, e))?;
        fault::point(fault::Point::Linked);
        self.remove_file(name)
    }

    /// Removes the name of a file or link.
    pub fn remove_file(&self, name: &[u8]) -> Result<(), DiskError> {
        let name = self.plain("remove", name)?;
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).map_err(|e| self.error("remove", name, e))
    }

    /// Removes directory `name`; false if something is in it, true also if it is gone already.
    pub fn remove_dir(&self, name: &[u8]) -> Result<bool, DiskError> {
        let name = self.plain("remove directory", name)?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(e) => Err(self.error("remove directory", name, e)),
        }
    }

    /// Makes the names in this directory durable.
    pub fn sync(&self) -> Result<(), DiskError> {
        if fault::planted(fault::Fault::DirectorySyncDropped) {
            return Ok(());
        }
        rustix::fs::fsync(&self.fd).map_err(|e| DiskError::new("sync directory", &*self.path, e))
    }

    /// The names in this directory, in no order, as a stream.
    pub fn entries(&self) -> Result<Entries, DiskError> {
        let error = |e: Errno| DiskError::new("list", &*self.path, e);
        let raw = RawDir::read_from(&self.fd).map_err(error)?;
        Ok(Entries { raw, path: self.path.clone() })
    }

    /// A name is one component: what comes here from above is checked once more, because `openat` would follow `..`.
    fn plain<'a>(&self, operation: &'static str, name: &'a [u8]) -> Result<&'a [u8], DiskError> {
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
            return Err(DiskError::new(operation, self.child(name), Errno::LOOP));
        }
        Ok(name)
    }

    pub(crate) fn child(&self, name: &[u8]) -> Vec<u8> {
        [&*self.path, b"/", name].concat()
    }

    fn error(&self, operation: &'static str, name: &[u8], source: Errno) -> DiskError {
        DiskError::new(operation, self.child(name), source)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, as bytes.
    pub name: Vec<u8>,
    /// What it stands for, where the directory says so; some file systems do not.
    pub kind: Option<FileKind>,
}

/// The names in a directory, without `.` and `..`.
#[derive(Debug)]
pub struct Entries {
    raw: RawDir,
    path: Vec<u8>,
}

impl Iterator for Entries {
    type Item = Result<Entry, DiskError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.raw.read()? {
                Ok(entry) => entry,
                Err(e) => return Some(Err(DiskError::new("list", &*self.path, e))),
            };
            let name = CStr::to_bytes(entry.file_name());
            if name != b"." && name != b".." {
                let kind = match entry.file_type() {
                    rustix::fs::FileType::Unknown => None,
                    kind => Some(FileKind::from_type(kind)),
                };
                return Some(Ok(Entry { name: name.to_vec(), kind }));
            }
        }
    }
}
