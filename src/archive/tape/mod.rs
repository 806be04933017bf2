//! An archive on tape, reached by the commands of its own client.
//!
//! # Objects
//!
//! | key | what |
//! |---|---|
//! | `ab/cd/DIGEST-PATH/NAME` | a file, as it is |
//! | `ab/cd/DIGEST-PATH/NAME.tar` | a tree, packed (see `pack.rs`) |
//! | the same and `.ccat.sum` | what the checksum command must answer; only where it is asked |
//! | the same and `.ccat.done` | a note that the put ended well, and of which piece of work |
//! | the first and `.ccat.json` | the sidecar |
//!
//! The folder is that of the archive on disk. NAME is the package's name with all but letters, digits and `._-+=@` as `%` and
//! two hexadecimal digits; a long one is cut after 160 characters. So a key has none but plain characters and never begins with
//! a dash.
//!
//! A tape system is not trusted to overwrite or remove. What is replaced, a corrupt package or a sidecar, stays, and the new
//! one gets the key with `.r1`, `.r2`, ... behind it; the highest counts. Whoever removes old ones by other means begins with
//! none that has a higher one.
//!
//! # Commands
//!
//! `put`, `get`, `stat`, and where wanted `checksum` and `list`, from the settings of the worker only: see [`Settings`]. Each
//! runs in a process group of its own, without our own variables, with a limit of time, after which the whole group is ended.
//!
//! | end of a command | class |
//! |---|---|
//! | cannot be started; exit code 64, 78, 126, 127 | configuration |
//! | 66 | missing_source |
//! | 73 | destination_differs |
//! | 75; ended by a signal | remote_busy |
//! | 77 | authentication |
//! | any other; out of time; an answer that is none | network |
//!
//! # Put and reading
//!
//! The source is hashed, put, and must be unchanged after that. Then the note is put, and `stat` is asked until it says
//! `on_tape`; a put that was cut off behind the note goes on with that. How a reading is done is a setting, and every reading
//! says it ([`Readback`]).
//!
//! An object without its note is what a put that never ended has left, or one that died in the moment before the note. Where
//! objects are read it stays if it reads as it should, and gets its note; otherwise, and always under [`Readback::None`], the
//! package is put anew under the next key. Under [`Readback::None`] nothing counts as read without its note, either.
//!
//! A repair whose attempt died may have put its object already. So the next one reads the highest before it puts another, and
//! keeps it if it reads as it should; under [`Readback::None`], if its note is of the same piece of work.

mod ask;
mod pack;
mod run;
mod staging;
mod templates;
mod transfer;

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    Archive, ArchiveError, Package, Progress, Reading, Source, Stored, Turn,
    key::{Key, SIDECAR_SUFFIX, escape},
    watch::Watch,
};
use crate::{
    disk::Root,
    model::{Algorithm, ErrorClass, PackageKind, StorageType},
};

pub use templates::{ChecksumAlgorithm, Readback, Settings, Template, Templates};

/// Longest name of a package in a key.
const NAME_CHARS: usize = 160;

/// An archive on tape.
#[derive(Debug)]
pub struct Tape {
    settings: Arc<Settings>,
    templates: Arc<Templates>,
}

impl Tape {
    /// Checks the settings. Nothing is run.
    ///
    /// # Errors
    /// Configuration: which command or setting is wrong, and how.
    pub fn new(settings: Settings) -> Result<Self, ArchiveError> {
        let templates = Arc::new(Templates::new(&settings)?);
        Ok(Self { settings: Arc::new(settings), templates })
    }

    fn work(&self, package: &Package, cancel: &CancellationToken) -> Result<Work, ArchiveError> {
        let (suits, end) = match package.kind {
            PackageKind::File => (Algorithm::Blake3, ""),
            PackageKind::Tree => (Algorithm::Tree, ".tar"),
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
        let key = Key::of(package)?;
        let mut name = escape(&key.name);
        name.truncate(NAME_CHARS);
        Ok(Work {
            settings: Arc::clone(&self.settings),
            templates: Arc::clone(&self.templates),
            cancel: cancel.clone(),
            object: format!("{}/{name}{end}", key.folder),
            sidecar: format!("{}/{name}{SIDECAR_SUFFIX}", key.folder),
            own_name: key.own_name,
            package: package.clone(),
        })
    }

    fn asking(&self) -> ask::Asking<'_> {
        ask::Asking { settings: &self.settings, templates: &self.templates }
    }
}

/// One package, for one call.
#[derive(Clone, Debug)]
struct Work {
    settings: Arc<Settings>,
    templates: Arc<Templates>,
    cancel: CancellationToken,
    object: String,
    sidecar: String,
    own_name: Vec<u8>,
    package: Package,
}

impl Work {
    fn asking(&self) -> ask::Asking<'_> {
        ask::Asking { settings: &self.settings, templates: &self.templates }
    }

    /// What is being done, for the front of an error.
    fn doing(&self, verb: &str) -> String {
        format!("cannot {verb} {} on tape as {}", self.package.relative_path, self.object)
    }

    fn missing(&self, verb: &str) -> ArchiveError {
        ArchiveError::new(
            ErrorClass::MissingSource,
            format!("{}: it is not there; archive it anew from another copy", self.doing(verb)),
        )
    }
}

#[async_trait]
impl Archive for Tape {
    fn medium(&self) -> StorageType {
        StorageType::Tape
    }

    /// No tape system tells.
    async fn free_bytes(&self) -> Result<Option<u64>, ArchiveError> {
        Ok(None)
    }

    async fn put(
        &self,
        package: &Package,
        source: &Source<'_>,
        turn: &Turn,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Stored, ArchiveError> {
        let stop = cancel.child_token();
        let _guard = stop.clone().drop_guard();
        self.work(package, &stop)?.put(source, turn, progress).await
    }

    async fn read_back(
        &self,
        package: &Package,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Reading, ArchiveError> {
        let stop = cancel.child_token();
        let _guard = stop.clone().drop_guard();
        let work = self.work(package, &stop)?;
        let watch = Arc::new(Watch::default());
        watch.tell(progress, work.read_back(&watch)).await
    }

    async fn write_sidecar(&self, package: &Package, sidecar: &[u8]) -> Result<(), ArchiveError> {
        let never = CancellationToken::new();
        self.work(package, &never)?.write_sidecar(sidecar).await
    }

    async fn sidecars(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ArchiveError> {
        self.asking().sidecars(after, limit).await
    }

    async fn read_sidecar(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        transfer::read_sidecar(&self.asking(), name).await
    }

    async fn fetch(
        &self,
        package: &Package,
        folder: &Root,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let stop = cancel.child_token();
        let _guard = stop.clone().drop_guard();
        self.work(package, &stop)?.fetch(folder, progress).await
    }

    /// What was replaced stays under its older key; only that there is a newer one is looked at.
    async fn forget_replaced(&self, package: &Package) -> Result<(), ArchiveError> {
        let never = CancellationToken::new();
        let work = self.work(package, &never)?;
        match work.asking().latest(&work.object, &never).await? {
            Some(_) => Ok(()),
            None => Err(work.missing("forget what was replaced of")),
        }
    }
}
