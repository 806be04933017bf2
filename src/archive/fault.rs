//! A disk that says it wrote and keeps other bytes, for tests.
//!
//! In a build for use there is none: [`Lies::from_environment`] finds nothing. With the feature `faults`, the environment
//! variable `CCAT_XFER_ARCHIVE_FAULT` (`changed=5,dropped=5`: of a hundred packages put, how many) plants some for the whole
//! process, and `CCAT_XFER_ARCHIVE_FAULT_LOG` names a file that gets one line for each, `KIND PATH`.

use crate::{chunk::RelPath, disk::Root};

/// Whether and how bytes below a store go wrong after it was told that they are safe.
#[derive(Debug)]
pub struct Lies {
    #[cfg(any(test, feature = "faults"))]
    active: active::Active,
    #[cfg(not(any(test, feature = "faults")))]
    _none: std::convert::Infallible,
}

#[cfg(not(any(test, feature = "faults")))]
impl Lies {
    pub(super) const fn from_environment() -> Option<Self> {
        None
    }

    pub(super) fn spoil(&self, _: &Root, _: &RelPath) {}
}

#[cfg(any(test, feature = "faults"))]
impl Lies {
    /// Of a hundred packages put, so many get a changed byte, and so many others lose a block.
    pub fn new(changed_percent: u32, dropped_percent: u32) -> Self {
        Self { active: active::Active::new(changed_percent, dropped_percent, None) }
    }

    /// How many packages were spoilt.
    pub fn told(&self) -> u64 {
        self.active.told()
    }

    pub(super) fn from_environment() -> Option<Self> {
        active::Active::from_environment().map(|active| Self { active })
    }

    /// Perhaps spoils the package `name` below `home`.
    pub(super) fn spoil(&self, home: &Root, name: &RelPath) {
        self.active.spoil(home, name);
    }
}

#[cfg(any(test, feature = "faults"))]
mod active {
    use std::{
        ffi::OsStr,
        fs::{File, OpenOptions, Permissions},
        io::{self, Write as _},
        os::unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, PermissionsExt as _},
        },
        path::{Path, PathBuf},
        sync::atomic::{AtomicU64, Ordering},
    };

    use crate::{
        chunk::RelPath,
        disk::Root,
        engine::walk::{Found, Kind, Walk},
    };

    const BLOCK: u64 = 4096;

    #[derive(Debug)]
    pub(super) struct Active {
        changed_percent: u32,
        dropped_percent: u32,
        log: Option<PathBuf>,
        told: AtomicU64,
    }

    impl Active {
        pub(super) fn new(changed_percent: u32, dropped_percent: u32, log: Option<PathBuf>) -> Self {
            Self { changed_percent, dropped_percent, log, told: AtomicU64::new(0) }
        }

        pub(super) fn from_environment() -> Option<Self> {
            let words = std::env::var("CCAT_XFER_ARCHIVE_FAULT").ok()?;
            let percent = |of: &str| {
                let word = words.split(',').find_map(|word| word.strip_prefix(of)?.strip_prefix('='));
                word.and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            let log = std::env::var_os("CCAT_XFER_ARCHIVE_FAULT_LOG").map(PathBuf::from);
            Some(Self::new(percent("changed"), percent("dropped"), log))
        }

        pub(super) fn told(&self) -> u64 {
            self.told.load(Ordering::Relaxed)
        }

        pub(super) fn spoil(&self, home: &Root, name: &RelPath) {
            let drawn = rand::random_range(0..100);
            let word = if drawn < self.changed_percent {
                "changed"
            } else if drawn < self.changed_percent + self.dropped_percent {
                "dropped"
            } else {
                return;
            };
            match spoil(home, name, word == "dropped") {
                Ok(Some(at)) => {
                    self.told.fetch_add(1, Ordering::Relaxed);
                    self.note(word, &at);
                }
                // Nothing in it has bytes.
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a fault could not be planted"),
            }
        }

        fn note(&self, word: &str, at: &Path) {
            let Some(log) = &self.log else { return };
            let line = format!("{word} {}\n", at.display());
            let noted =
                OpenOptions::new().create(true).append(true).open(log).and_then(|mut f| f.write_all(line.as_bytes()));
            if let Err(error) = noted {
                tracing::error!(%error, "a planted fault could not be noted");
            }
        }
    }

    fn spoil(home: &Root, name: &RelPath, drop: bool) -> io::Result<Option<PathBuf>> {
        let (_handle, at) = home.handle_path().map_err(io::Error::other)?;
        let walk = Walk::new(&[at.join(OsStr::from_bytes(name.as_bytes()))]).map_err(io::Error::other)?;
        let files: Vec<_> = walk
            .filter_map(|found| match found {
                Found::Entry(entry) if entry.kind == Kind::File && entry.meta.size > 0 => Some(entry),
                _ => None,
            })
            .collect();
        if files.is_empty() {
            return Ok(None);
        }
        let entry = &files[rand::random_range(0..files.len())];
        let path = at.join(OsStr::from_bytes(entry.path.as_bytes()));
        std::fs::set_permissions(&path, Permissions::from_mode(entry.meta.mode | 0o600))?;
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let offset = rand::random_range(0..entry.meta.size);
        if !(drop && drop_block(&file, offset, entry.meta.size)?) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset)?;
            file.write_all_at(&[byte[0] ^ (1 << rand::random_range(0..8))], offset)?;
        }
        file.sync_all()?;
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        std::fs::set_permissions(&path, Permissions::from_mode(entry.meta.mode))?;
        Ok(Some(home.path().join(OsStr::from_bytes(entry.path.as_bytes()))))
    }

    /// A block that was never written; false if nobody could tell.
    fn drop_block(file: &File, offset: u64, size: u64) -> io::Result<bool> {
        let start = offset / BLOCK * BLOCK;
        let mut bytes = vec![0; usize::try_from(BLOCK.min(size - start)).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, start)?;
        if bytes.iter().all(|b| *b == 0) {
            return Ok(false);
        }
        bytes.fill(0);
        file.write_all_at(&bytes, start)?;
        Ok(true)
    }
}
