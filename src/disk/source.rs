use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use super::{Dir, DiskError, Extent, Identity, Root, Stat, error::Refusal, next_data};
use crate::chunk::RelPath;

/// A regular file that is read as a source, or compared: by position, never mapped, never through a link.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    dir: Arc<Dir>,
    name: Vec<u8>,
    stat: Stat,
}

impl SourceFile {
    /// Opens a regular file beneath the root. Anything else is `NotAFile`, a link `Escape`; a FIFO is not waited for.
    pub fn open(root: &Root, path: &RelPath) -> Result<Self, DiskError> {
        let (dir, name) = root.parent(path)?;
        let file = dir.open_read(name)?;
        let stat = Stat::of_fd(&file).map_err(|e| DiskError::new("examine", dir.child(name), e))?;
        Ok(Self { file, dir, name: name.to_vec(), stat })
    }

    /// Which file it was when it was opened.
    pub fn identity(&self) -> Identity {
        self.stat.identity
    }

    /// What was known of it when it was opened.
    pub fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Whether it took less storage than it has bytes when it was opened.
    pub fn is_sparse(&self) -> bool {
        self.stat.allocated_bytes < self.stat.identity.size
    }

    /// Fails with `Changed` if the open file, or what now has its name, is not what was opened.
    ///
    /// Called after the last byte was read. Time stamps may lie, so this finds most changes, and the digest the rest.
    pub fn check_unchanged(&self) -> Result<(), DiskError> {
        let now = Stat::of_fd(&self.file).map_err(|e| self.error("examine", e))?;
        if now.identity != self.stat.identity {
            return Err(self.changed("it was written to while it was read"));
        }
        match self.dir.stat_name(&self.name)? {
            Some(named) if named.identity.same_inode(&now.identity) => Ok(()),
            _ => Err(self.changed("it was replaced or removed while it was read")),
        }
    }

    /// Fills `buf` from `offset`; `Changed` if the file ends before.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.file.read_exact_at(buf, offset).map_err(|e| {
            if e.kind() == std::io::ErrorKind::UnexpectedEof {
                self.changed("it became shorter while it was read")
            } else {
                self.error("read", e)
            }
        })
    }

    /// The first run of data at or after `from`; `None` if only a hole follows.
    pub fn next_data(&self, from: u64) -> Result<Option<Extent>, DiskError> {
        next_data(&self.file, from, self.stat.identity.size).map_err(|e| self.error("find holes of", e))
    }

    /// Tells the system that the file will be read from front to back.
    pub fn advise_sequential(&self) {
        // Advice; a file system that declines it costs speed only.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Sequential);
    }

    fn changed(&self, how: &'static str) -> DiskError {
        DiskError::refused("read", self.dir.child(&self.name), Refusal::Changed(how))
    }

    fn error(&self, operation: &'static str, source: impl Into<std::io::Error>) -> DiskError {
        DiskError::new(operation, self.dir.child(&self.name), source)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;
    use crate::disk::DiskErrorKind;

    fn path(bytes: &[u8]) -> RelPath {
        RelPath::new(bytes).unwrap()
    }

    #[test]
    fn changes_while_reading_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let at = dir.path().join("f");
        let fresh = || {
            fs::write(&at, [5; 10_000]).unwrap();
            SourceFile::open(&root, &path(b"f")).unwrap()
        };
        let kind = |r: Result<(), DiskError>| r.unwrap_err().kind();
        let source = fresh();
        let mut buf = [0; 100];
        source.read_exact_at(&mut buf, 9_900).unwrap();
        assert_eq!(buf, [5; 100]);
        source.check_unchanged().unwrap();

        File::options().append(true).open(&at).unwrap().write_all(b"more").unwrap();
        assert_eq!(kind(source.check_unchanged()), DiskErrorKind::Changed);

        let source = fresh();
        File::options().write(true).open(&at).unwrap().set_len(50).unwrap();
        assert_eq!(kind(source.read_exact_at(&mut buf, 0)), DiskErrorKind::Changed);

        let source = fresh();
        fs::write(dir.path().join("g"), [5; 10_000]).unwrap();
        fs::rename(dir.path().join("g"), &at).unwrap();
        assert_eq!(kind(source.check_unchanged()), DiskErrorKind::Changed);
    }

    /// Seen to hang with O_NONBLOCK left out and the look before the open left out.
    #[test]
    fn only_regular_files_are_sources() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        rustix::fs::mknodat(root.handle(), c"fifo", rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        for name in [&b"d"[..], b"fifo"] {
            let error = SourceFile::open(&root, &path(name)).unwrap_err();
            assert_eq!(error.kind(), DiskErrorKind::NotAFile, "{error}");
        }
        assert_eq!(SourceFile::open(&root, &path(b"no")).unwrap_err().kind(), DiskErrorKind::NotFound);
    }
}
