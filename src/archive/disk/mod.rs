//! An archive on a file system.
//!
//! # Layout
//!
//! ```text
//! ROOT/.ccat-xfer-archive                    the marker: `ccat-xfer archive 1`; a folder without it is no archive
//! ROOT/packages/ab/cd/DIGEST-PATH/           one package: ab and cd are the first digits of DIGEST, PATH is of its path
//!   NAME                                     the package, read-only
//!   NAME.ccat.modes                          the permission bits that it had
//!   NAME.ccat.json                           its sidecar
//!   NAME.ccat.corrupt-JOB-FENCE              what was replaced, until the new bytes were read back
//! ROOT/incoming/DIGEST-PATH/                 a package on its way, with its parts and journal
//! ROOT/incoming/DIGEST-PATH.owner            which attempt puts it; locked while it gets its name
//! ROOT/.ccat-xfer/jobs/                      highest fence of each job
//! ```
//!
//! # Protocol
//!
//! A package comes in by the engine's own receiver, within this process: chunk verified in memory -> written -> data
//! synced -> journal synced -> root compared -> file synced -> named in `incoming`. A put that was cut off resumes there.
//! Then the package's permission bits are noted (synced), and it is renamed to its place without replacing anything, and both
//! folders are synced. A tree appears at once, like a file. Last, its files and folders become read-only.
//!
//! An attempt that was overtaken while it slept does nothing any more: before the package gets its name, and anything is set
//! aside, it looks under a lock whether it still is the one that puts it, and whether it was told to stop.
//!
//! To replace a corrupt package, the new one comes in first; then the corrupt one is renamed to its `corrupt` name and the
//! new one to its place. After a crash between the two, the corrupt one is set aside and the new one whole in `incoming`: the
//! next attempt goes on from there.
//!
//! What nobody wrote to for 30 days is swept from `incoming` when a worker starts.
//!
//! # Permission bits
//!
//! A tree's digest covers permission bits, and what rests has lost those for writing. So they are noted beside the package,
//! and a reading takes them from there. Wrong notes give another digest, and are found like wrong bytes.
//!
//! # Assumptions
//!
//! As those of the [journal](crate::journal). Every call looks for the marker: an archive that is not mounted is never taken
//! for an empty one.

mod modes;
mod owner;
mod put;
mod rest;
mod sidecars;
mod sweep;

pub(super) use modes::ModesError;
pub(super) use rest::{now, remove_all};

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    Archive, ArchiveError, LEFT_AFTER, Package, Progress, Reading, Source, Stored, Turn, failure,
    fault::Lies,
    key::Key,
    watch::{Watch, blocking},
};
use crate::{
    chunk::{RelPath, escape_bytes},
    disk::{DiskError, DiskErrorKind, Root, write_file},
    model::{Algorithm, ErrorClass, PackageKind, StorageType},
};

/// Name of the file that makes a folder an archive.
pub const MARKER: &str = ".ccat-xfer-archive";
/// Its words; the version of the layout follows.
const MARKER_WORDS: &str = "ccat-xfer archive ";
/// Version of the layout above.
const VERSION: u32 = 1;
const PACKAGES: &str = "packages";
const INCOMING: &str = "incoming";

/// An archive below a folder.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    lies: Option<Arc<Lies>>,
}

impl Disk {
    /// The archive below `path`. Nothing is looked at before it is used: it may be mounted later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), lies: Lies::from_environment().map(Arc::new) }
    }

    /// Makes an archive of a folder that exists and is empty, or is one already. Blocking.
    ///
    /// # Errors
    /// Configuration: the folder does not exist, holds other things, or cannot be written to.
    pub fn found(path: impl Into<PathBuf>) -> Result<Self, ArchiveError> {
        let archive = Self::new(path);
        let what = format!("cannot make an archive of {}", archive.shown());
        let root = Root::open(&archive.path).map_err(|e| failure::of_disk(&what, &e))?;
        match marker_of(&root) {
            Ok(Some(_)) => {
                archive.mount()?;
                return Ok(archive);
            }
            Ok(None) => {}
            Err(e) => return Err(failure::of_disk(what, &e)),
        }
        for entry in root.handle().entries().map_err(|e| failure::of_disk(&what, &e))? {
            let name = entry.map_err(|e| failure::of_disk(&what, &e))?.name;
            if name != b"lost+found" {
                return Err(ArchiveError::new(
                    ErrorClass::Configuration,
                    format!("{what}: it holds {}; give an empty folder", escape_bytes(&name)),
                ));
            }
        }
        let words = format!("{MARKER_WORDS}{VERSION}\n");
        write_file(root.handle(), MARKER.as_bytes(), words.as_bytes()).map_err(|e| failure::of_disk(what, &e))?;
        Ok(archive)
    }

    /// Where a package rests below the archive's folder.
    ///
    /// # Errors
    /// Configuration: it has no name.
    pub fn path_of(package: &Package) -> Result<RelPath, ArchiveError> {
        let key = Key::of(package)?;
        let home = below(&format!("{PACKAGES}/{}", key.folder))?;
        home.join(&key.name)
            .map_err(|e| ArchiveError::caused(ErrorClass::Bug, "a package has no name in an archive", &e))
    }

    /// Removes what puts that never came back left on its way, not changed for `age`; never what a process writes to. Returns
    /// how many packages that was.
    ///
    /// # Errors
    /// Configuration: there is no archive, or its folders cannot be read.
    pub async fn sweep_older(&self, age: Duration) -> Result<u64, ArchiveError> {
        let at = self.path.clone();
        blocking(move || sweep::sweep(&*mount(&at)?, age)).await
    }

    /// With a disk below it that lies, for tests.
    #[cfg(any(test, feature = "faults"))]
    #[must_use]
    pub fn lying(self, lies: Arc<Lies>) -> Self {
        Self { lies: Some(lies), ..self }
    }

    fn shown(&self) -> String {
        escape_bytes(std::os::unix::ffi::OsStrExt::as_bytes(self.path.as_os_str()))
    }

    fn mount(&self) -> Result<Arc<Root>, ArchiveError> {
        mount(&self.path)
    }

    fn work(&self, package: &Package) -> Result<Work, ArchiveError> {
        let suits = match package.kind {
            PackageKind::File => Algorithm::Blake3,
            PackageKind::Tree => Algorithm::Tree,
        };
        if package.expected.algorithm != suits {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!(
                    "{} is known by {}, which no archive reads; register it with {suits}",
                    package.relative_path, package.expected.algorithm
                ),
            ));
        }
        Ok(Work {
            at: self.path.clone(),
            shown: self.shown(),
            key: Key::of(package)?,
            package: package.clone(),
            lies: self.lies.clone(),
        })
    }
}

/// Opens the folder of an archive, if it is one.
fn mount(path: &Path) -> Result<Arc<Root>, ArchiveError> {
    let shown = escape_bytes(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    let refuse = |text: String| Err(ArchiveError::new(ErrorClass::Configuration, text));
    let root = match Root::open(path) {
        Ok(root) => root,
        Err(e) if e.kind() == DiskErrorKind::NotFound => {
            return refuse(format!("there is no archive at {shown}: {e}; mount it, or correct the worker's settings"));
        }
        Err(e) => return Err(failure::of_disk(format!("cannot open the archive at {shown}"), &e)),
    };
    let marker =
        marker_of(&root).map_err(|e| failure::of_disk(format!("cannot tell whether {shown} is an archive"), &e))?;
    let Some(words) = marker else {
        return refuse(format!(
            "{shown} is no archive, or its file system is not mounted: it has no file {MARKER}; mount it, or make a new archive \
             of an empty folder with `ccat-xfer archive found`"
        ));
    };
    match words.strip_prefix(MARKER_WORDS).and_then(|v| v.trim_end().parse::<u32>().ok()) {
        Some(VERSION) => Ok(Arc::new(root)),
        Some(newer) if newer > VERSION => refuse(format!(
            "the archive at {shown} has layout {newer}, and only up to {VERSION} is known here; update this program"
        )),
        _ => refuse(format!(
            "{MARKER} of {shown} does not hold '{MARKER_WORDS}{VERSION}'; see what lies there before anything is written to it"
        )),
    }
}

/// What the marker says; `None` if there is none.
fn marker_of(root: &Root) -> Result<Option<String>, DiskError> {
    let file = match root.handle().open_read(MARKER.as_bytes()) {
        Ok(file) => file,
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes).map_err(|e| DiskError::new("read", MARKER.as_bytes(), e))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// One package of one archive: what a thread that may block needs to know.
#[derive(Clone, Debug)]
struct Work {
    at: PathBuf,
    // The archive's folder, for messages.
    shown: String,
    key: Key,
    package: Package,
    lies: Option<Arc<Lies>>,
}

impl Work {
    fn mount(&self) -> Result<Arc<Root>, ArchiveError> {
        mount(&self.at)
    }

    /// The package's folder below the root.
    fn home(&self) -> Result<RelPath, ArchiveError> {
        below(&format!("{PACKAGES}/{}", self.key.folder))
    }

    /// What is being done, for the front of an error.
    fn doing(&self, verb: &str) -> String {
        format!("cannot {verb} {} in the archive at {}", self.package.relative_path, self.shown)
    }

    fn name(&self) -> Result<RelPath, ArchiveError> {
        RelPath::new(self.key.name.clone()).map_err(|e| ArchiveError::caused(ErrorClass::Bug, self.doing("name"), &e))
    }
}

fn below(path: &str) -> Result<RelPath, ArchiveError> {
    RelPath::new(path.as_bytes())
        .map_err(|e| ArchiveError::caused(ErrorClass::Bug, format!("{path} is no path in an archive"), &e))
}

#[async_trait]
impl Archive for Disk {
    fn medium(&self) -> StorageType {
        StorageType::Disk
    }

    async fn free_bytes(&self) -> Result<Option<u64>, ArchiveError> {
        let (at, shown) = (self.path.clone(), self.shown());
        blocking(move || {
            let free = mount(&at)?.free_bytes();
            free.map(Some)
                .map_err(|e| failure::of_disk(format!("cannot tell what is free in the archive at {shown}"), &e))
        })
        .await
    }

    async fn put(
        &self,
        package: &Package,
        source: &Source<'_>,
        turn: &Turn,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Stored, ArchiveError> {
        self.work(package)?.put(source, *turn, progress, cancel).await
    }

    async fn read_back(
        &self,
        package: &Package,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Reading, ArchiveError> {
        let work = self.work(package)?;
        let watch = Arc::new(Watch::default());
        let stop = cancel.child_token();
        let _guard = stop.clone().drop_guard();
        let watched = Arc::clone(&watch);
        watch.tell(progress, blocking(move || work.read_back(&watched, &stop))).await
    }

    async fn write_sidecar(&self, package: &Package, sidecar: &[u8]) -> Result<(), ArchiveError> {
        let (work, bytes) = (self.work(package)?, sidecar.to_vec());
        blocking(move || work.write_sidecar(&bytes)).await
    }

    async fn sidecars(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ArchiveError> {
        let (at, after) = (self.path.clone(), after.map(str::to_owned));
        blocking(move || sidecars::list(&*mount(&at)?, after.as_deref(), limit)).await
    }

    async fn read_sidecar(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let (at, name) = (self.path.clone(), name.to_owned());
        blocking(move || sidecars::read(&*mount(&at)?, &name)).await
    }

    async fn fetch(
        &self,
        package: &Package,
        folder: &Root,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        self.work(package)?.fetch(folder, progress, cancel).await
    }

    async fn forget_replaced(&self, package: &Package) -> Result<(), ArchiveError> {
        let work = self.work(package)?;
        blocking(move || work.forget_replaced()).await
    }

    async fn sweep(&self) -> Result<u64, ArchiveError> {
        self.sweep_older(LEFT_AFTER).await
    }
}
