//! Packages on their way to tape and back.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        ArchiveError, Progress, ReadHow, Reading, Source, Stored, Turn,
        disk::now,
        failure, origin,
        watch::{Watch, blocking, observer},
    },
    Work,
    ask::{Asking, Latest, State, sidecar_of},
    pack::{self, Packer},
    run::run,
    staging::Staging,
    templates::{ChecksumAlgorithm, Filling, Readback},
};
use crate::{
    chunk::{Digest, RelPath},
    disk::{DiskError, Root, SourceFile, read_back_watched},
    engine::{FailureClass, JobId, MeasureError, Options, copy_here, measure, measure_by},
    model::{ErrorClass, PackageKind},
};

/// Name of an object in a staging folder.
const OBJECT: &str = "object";
/// No sidecar is longer.
const MAX_SIDECAR_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 1 << 20;

/// A note says little.
const MAX_NOTE_BYTES: u64 = 4096;

/// What was found of an object.
struct Found {
    digest: Digest,
    size_bytes: u64,
    file_count: u64,
    how: ReadHow,
    vouched_by: Option<String>,
}

/// What is put: a file of this machine, verified, and what keeps its path good.
struct Ready {
    path: PathBuf,
    sum: Option<String>,
    // A file of the package's origin, to be looked at again after it was put.
    origin: Option<SourceFile>,
    _staging: Option<Staging>,
}

impl Work {
    pub(super) async fn put(
        self,
        source: &Source<'_>,
        turn: &Turn,
        progress: &dyn Progress,
    ) -> Result<Stored, ArchiveError> {
        let asking = self.asking();
        let latest = asking.latest(&self.object, &self.cancel).await?;
        if let Some(latest) = &latest
            && self.may_stay(latest, turn).await?
        {
            asking.await_tape(&latest.key, &self.cancel).await?;
            // It may have been put just now.
            asking.await_known(&note_of(&latest.key), &self.cancel).await?;
            return Ok(Stored::Found);
        }
        let key = asking.next_key(&self.object, latest.as_ref())?;
        let what = self.doing("put");
        let (handle, at) = source.root.handle_path().map_err(|e| failure::of_source(&what, &e))?;
        let named = elsewhere(source.root.path()).join(OsStr::from_bytes(source.path.as_bytes()));
        let (this, path) = (self.clone(), source.path.clone());
        let ready = blocking(move || {
            let _handle = handle;
            this.prepare(&at, named, &path)
        })
        .await?;
        if let Some(sum) = &ready.sum {
            self.put_small(&format!("{key}.ccat.sum"), sum.as_bytes()).await?;
        }
        let filling = Filling { source: Some(ready.path.as_os_str()), key: &key, ..Filling::default() };
        run(&what, &self.templates.put, filling, &self.cancel).await?;
        if let Some(origin) = &ready.origin {
            origin.check_unchanged().map_err(|e| failure::of_source(&what, &e))?;
        }
        drop(ready);
        self.note(&key, turn).await?;
        self.asking().await_tape(&key, &self.cancel).await?;
        // Small and put later, it is known later than what it speaks for; and only with it does anything count as put.
        self.asking().await_known(&note_of(&key), &self.cancel).await?;
        progress.advance(self.package.size_bytes);
        Ok(Stored::Written { resumed_bytes: 0 })
    }

    /// Whether what lies there already is not to be put anew.
    async fn may_stay(&self, latest: &Latest, turn: &Turn) -> Result<bool, ArchiveError> {
        let is_noted = self.is_noted(&latest.key).await?;
        if is_noted && !turn.replace {
            return Ok(true);
        }
        // No claim before this one can have replaced it.
        if turn.replace && !turn.may_have_replaced(latest.is_replacement()) {
            return Ok(false);
        }
        let may_stay = match self.settings.readback {
            Readback::None { .. } => is_noted && self.is_noted_by(&latest.key, turn).await?,
            Readback::Full | Readback::Checksum(_) => self.reads_well(&latest.key).await?,
        };
        if may_stay && !is_noted {
            self.note(&latest.key, turn).await?;
        }
        Ok(may_stay)
    }

    /// Whether an object reads as it should. What cannot be read for a reason of its own does not.
    async fn reads_well(&self, key: &str) -> Result<bool, ArchiveError> {
        let expected = Digest(self.package.expected.value);
        let unseen = Arc::new(Watch::default());
        match self.clone().found(key, &unseen).await {
            Ok(found) => Ok(found.digest == expected),
            Err(error) => match error.class {
                ErrorClass::MissingSource
                | ErrorClass::CorruptInFlight
                | ErrorClass::CorruptAtSource
                | ErrorClass::DestinationDiffers
                | ErrorClass::Network => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Notes that the put of an object ended well. An object without that is the rest of one that did not.
    async fn note(&self, key: &str, turn: &Turn) -> Result<(), ArchiveError> {
        self.put_small(&note_of(key), job_line(turn).as_bytes()).await
    }

    async fn is_noted(&self, key: &str) -> Result<bool, ArchiveError> {
        Ok(self.asking().state(&note_of(key), &self.cancel).await? != State::Missing)
    }

    /// Whether an attempt of this piece of work put it.
    async fn is_noted_by(&self, key: &str, turn: &Turn) -> Result<bool, ArchiveError> {
        let note = get_small(&self.asking(), &note_of(key), MAX_NOTE_BYTES, &self.cancel).await?;
        Ok(note == job_line(turn).as_bytes())
    }

    /// Reads the source, which must be what was registered. A tree is packed on the way.
    fn prepare(&self, root: &Path, named: PathBuf, path: &RelPath) -> Result<Ready, ArchiveError> {
        let what = self.doing("put");
        let (_held, _) = origin::look(root, path, &self.package)?;
        let root = Root::open(root).map_err(|e| failure::of_source(&what, &e))?;
        match self.package.kind {
            PackageKind::File => {
                let origin = SourceFile::open(&root, path).map_err(|e| failure::of_source(&what, &e))?;
                let read = measure(&root, path).map_err(|e| failure::of_copy(&what, &e, path.as_bytes()))?;
                self.refuse_changed(path, read.digest)?;
                let named = std::path::absolute(named)
                    .map_err(|e| ArchiveError::caused(ErrorClass::MissingSource, &what, &e))?;
                let sum = match self.sum_algorithm() {
                    // What it is registered with is what the command must answer.
                    None | Some(ChecksumAlgorithm::Blake3) => None,
                    Some(algorithm) => Some(self.sum(&root, path, algorithm)?),
                };
                Ok(Ready { path: named, sum, origin: Some(origin), _staging: None })
            }
            PackageKind::Tree => {
                let staging = Staging::new(&self.settings.staging)?;
                self.pack(&root, path, &staging)?;
                let sum =
                    self.sum_algorithm().map(|algorithm| self.sum(&staging.root, &object()?, algorithm)).transpose()?;
                let path = PathBuf::from(staging.path_of(OBJECT));
                Ok(Ready { path, sum, origin: None, _staging: Some(staging) })
            }
        }
    }

    fn refuse_changed(&self, path: &RelPath, found: Digest) -> Result<(), ArchiveError> {
        if found.0 == self.package.expected.value {
            return Ok(());
        }
        Err(origin::changed(path, &format!("has digest {found}, but {} was expected", self.package.expected.hex())))
    }

    fn pack(&self, root: &Root, path: &RelPath, staging: &Staging) -> Result<(), ArchiveError> {
        let what = self.doing("pack");
        let staged = |e: std::io::Error| failure::of_disk(&what, &DiskError::new("write", staging.path_of(OBJECT), e));
        let file = staging.root.handle().create_file(OBJECT.as_bytes()).map_err(|e| failure::of_disk(&what, &e))?;
        let mut packer = Packer::new(file, &self.cancel);
        let measured = match measure_by(root, path, &mut packer) {
            Ok(measured) => measured,
            Err(_) if self.cancel.is_cancelled() => return Err(failure::cancelled(what)),
            Err(error) => {
                return Err(match (packer.take_failure(), error) {
                    (Some(error), _) => staged(error),
                    (None, MeasureError::Disk(error)) => failure::of_source(what, &error),
                    (None, MeasureError::Job(error)) => failure::of_copy(what, &error, path.as_bytes()),
                });
            }
        };
        packer.finish().map_err(staged)?;
        self.refuse_changed(path, measured.digest)
    }

    fn sum_algorithm(&self) -> Option<ChecksumAlgorithm> {
        match self.settings.readback {
            Readback::Checksum(algorithm) => Some(algorithm),
            Readback::Full | Readback::None { .. } => None,
        }
    }

    fn sum(&self, root: &Root, path: &RelPath, algorithm: ChecksumAlgorithm) -> Result<String, ArchiveError> {
        let what = self.doing("hash");
        let failed = |e| failure::of_source(&what, &e);
        let file = SourceFile::open(root, path).map_err(failed)?;
        let (size, mut at) = (file.identity().size, 0);
        let (mut blake3, mut sha256) = (blake3::Hasher::new(), Sha256::new());
        let mut buffer = vec![0; BUFFER_BYTES];
        while at < size {
            if self.cancel.is_cancelled() {
                return Err(failure::cancelled(what));
            }
            let left = usize::try_from(size - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..left], at).map_err(failed)?;
            match algorithm {
                ChecksumAlgorithm::Blake3 => {
                    blake3.update(&buffer[..left]);
                }
                ChecksumAlgorithm::Sha256 => sha256.update(&buffer[..left]),
            }
            at += u64::try_from(left).unwrap_or(u64::MAX);
        }
        Ok(match algorithm {
            ChecksumAlgorithm::Blake3 => Digest(*blake3.finalize().as_bytes()).to_string(),
            ChecksumAlgorithm::Sha256 => Digest(sha256.finalize().into()).to_string(),
        })
    }

    /// Puts bytes as an object of their own. One that is there already is left as it is.
    async fn put_small(&self, key: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        let asking = self.asking();
        if asking.state(key, &self.cancel).await? != State::Missing {
            return Ok(());
        }
        let (staging, bytes) = (self.settings.staging.clone(), bytes.to_vec());
        let staging = blocking(move || {
            let staging = Staging::new(&staging)?;
            let written = staging.root.handle().create_file(OBJECT.as_bytes()).and_then(|mut file| {
                let written = file.write_all(&bytes).and_then(|()| file.sync_all());
                written.map_err(|e| DiskError::new("write", staging.path_of(OBJECT), e))
            });
            written.map_err(|e| failure::of_disk("cannot stage what is to go to tape", &e))?;
            Ok(staging)
        })
        .await?;
        let path = staging.path_of(OBJECT);
        let filling = Filling { source: Some(OsStr::new(&path)), key, ..Filling::default() };
        run(&format!("cannot put {key} on tape"), &self.templates.put, filling, &self.cancel).await.map(drop)
    }

    pub(super) async fn read_back(self, watch: &Arc<Watch>) -> Result<Reading, ArchiveError> {
        let started_at = now();
        let Some(latest) = self.asking().latest(&self.object, &self.cancel).await? else {
            return Err(self.missing("read"));
        };
        let found = self.clone().found(&latest.key, watch).await?;
        Ok(Reading {
            digest: found.digest,
            size_bytes: found.size_bytes,
            file_count: found.file_count,
            how: found.how,
            vouched_by: found.vouched_by,
            started_at,
            ended_at: now(),
        })
    }

    /// What is found of an object in the way that the settings want.
    async fn found(self, key: &str, watch: &Arc<Watch>) -> Result<Found, ArchiveError> {
        let vouched = |digest, by| Found {
            digest,
            size_bytes: self.package.size_bytes,
            file_count: self.package.file_count,
            how: ReadHow::Vouched,
            vouched_by: Some(by),
        };
        let expected = Digest(self.package.expected.value);
        match &self.settings.readback {
            Readback::Full => {
                let (this, watched) = (self.clone(), Arc::clone(watch));
                let staging = self.get(key).await?;
                let held = blocking(move || this.hash(&staging, &watched)).await?;
                let pack::Held { digest, size_bytes, file_count } = held;
                Ok(Found { digest, size_bytes, file_count, how: ReadHow::Command, vouched_by: None })
            }
            Readback::Checksum(algorithm) => {
                let said = self.asking().checksum(key, &self.cancel).await?;
                let wanted = match (self.package.kind, algorithm) {
                    (PackageKind::File, ChecksumAlgorithm::Blake3) => self.package.expected.hex(),
                    _ => self.sum_of(key).await?,
                };
                let found = said.parse::<Digest>().ok().filter(|_| said != wanted);
                let by = format!("{} by the tape system's own checksum", algorithm.word());
                Ok(vouched(found.unwrap_or(expected), by))
            }
            Readback::None { reason } if self.is_noted(key).await? => {
                Ok(vouched(expected, format!("not read: {reason}")))
            }
            Readback::None { .. } => Err(ArchiveError::new(
                ErrorClass::MissingSource,
                format!(
                    "{}: nothing is read there, and {key} has no note that its put ended well; archive it anew from \
                     another copy",
                    self.doing("read")
                ),
            )),
        }
    }

    /// The checksum that was noted when the object was put.
    async fn sum_of(&self, key: &str) -> Result<String, ArchiveError> {
        let bytes = get_small(&self.asking(), &format!("{key}.ccat.sum"), 4096, &self.cancel).await?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Copies an object out.
    async fn get(&self, key: &str) -> Result<Staging, ArchiveError> {
        get(&self.asking(), key, &self.cancel).await
    }

    fn hash(&self, staging: &Staging, watch: &Watch) -> Result<pack::Held, ArchiveError> {
        match self.package.kind {
            PackageKind::Tree => pack::read(&self.open(staging)?, None, self.package.size_bytes, watch, &self.cancel),
            PackageKind::File => {
                let what = self.doing("read");
                let disk = |e| failure::of_disk(&what, &e);
                let stat = staging.root.handle().stat_name(OBJECT.as_bytes()).map_err(disk)?;
                let identity = stat.ok_or_else(|| self.missing("read"))?.identity;
                let read = read_back_watched(staging.root.handle(), OBJECT.as_bytes(), &identity, &mut |bytes| {
                    watch.add(bytes);
                    !self.cancel.is_cancelled()
                });
                if self.cancel.is_cancelled() {
                    return Err(failure::cancelled(what));
                }
                let digest = read.map_err(disk)?.digest;
                Ok(pack::Held { digest, size_bytes: identity.size, file_count: 1 })
            }
        }
    }

    fn open(&self, staging: &Staging) -> Result<File, ArchiveError> {
        let opened = staging.root.handle().open_read(OBJECT.as_bytes());
        opened.map_err(|e| failure::of_disk(self.doing("read"), &e))
    }

    pub(super) async fn fetch(self, folder: &Root, progress: &dyn Progress) -> Result<(), ArchiveError> {
        let what = self.doing("copy out");
        let Some(latest) = self.asking().latest(&self.object, &self.cancel).await? else {
            return Err(self.missing("copy out"));
        };
        let (handle, at) = folder.handle_path().map_err(|e| failure::of_disk(&what, &e))?;
        let staging = self.get(&latest.key).await?;
        let watch = Arc::new(Watch::default());
        let this = self.clone();
        let (staging, to) = blocking(move || {
            let _handle = handle;
            let what = this.doing("copy out");
            let disk = |e| failure::of_disk(&what, &e);
            // The engine copies it as it would from anywhere, so that nothing at its destination is overwritten.
            let digest = match this.package.kind {
                PackageKind::File => this.hash(&staging, &Watch::default())?.digest,
                PackageKind::Tree => {
                    let (most, unseen) = (this.package.size_bytes, Watch::default());
                    let unpacked = RelPath::new(*b"unpacked");
                    let unpacked = unpacked.map_err(|e| ArchiveError::caused(ErrorClass::Bug, &what, &e))?;
                    staging.root.make_dirs_unsynced(&unpacked, 0o700).map_err(disk)?;
                    let into = staging.root.beneath(&unpacked).map_err(disk)?;
                    pack::read(&this.open(&staging)?, Some(&into), most, &unseen, &this.cancel)?.digest
                }
            };
            if digest.0 != this.package.expected.value {
                return Err(ArchiveError::new(
                    ErrorClass::CorruptAtSource,
                    format!("{what}: it has digest {digest} instead of {}", this.package.expected.hex()),
                ));
            }
            let (parent, _) = this.package.relative_path.split_last().unwrap_or_default();
            let folder = Root::open(&at).map_err(disk)?;
            folder.make_dirs(&parent, 0o755).map_err(disk)?;
            Ok((staging, Arc::new(folder.beneath(&parent).map_err(disk)?)))
        })
        .await?;
        let (source, rename) = match self.package.kind {
            PackageKind::File => (PathBuf::from(staging.path_of(OBJECT)), Some((OBJECT.into(), self.own_name.clone()))),
            PackageKind::Tree => {
                (PathBuf::from(staging.path_of("unpacked")).join(OsStr::from_bytes(&self.own_name)), None)
            }
        };
        let options = Options::default();
        let copied =
            watch.tell(progress, copy_here(source, to, rename, &options, observer(&watch), &self.cancel)).await;
        match copied.err().map(|error| (error, self.own_name.clone())).or_else(|| watch.failed()) {
            None => Ok(()),
            Some((error, file)) => {
                let mut failed = failure::of_copy(what, &error, &file);
                if error.class == FailureClass::Source && failed.class != ErrorClass::Cancelled {
                    failed.class = ErrorClass::CorruptInFlight;
                }
                Err(failed)
            }
        }
    }

    pub(super) async fn write_sidecar(&self, bytes: &[u8]) -> Result<(), ArchiveError> {
        if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_SIDECAR_BYTES) {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!(
                    "{}: it has {} bytes, more than {MAX_SIDECAR_BYTES}; shorten the package's metadata",
                    self.doing("write the sidecar of"),
                    bytes.len()
                ),
            ));
        }
        let asking = self.asking();
        let latest = asking.latest(&self.sidecar, &self.cancel).await?;
        let key = asking.next_key(&self.sidecar, latest.as_ref())?;
        self.put_small(&key, bytes).await
    }
}

/// The note beside an object.
fn note_of(key: &str) -> String {
    format!("{key}.ccat.done")
}

/// What a note says: whose work the put was, so that a later attempt of it knows its own.
fn job_line(turn: &Turn) -> String {
    format!("job {}\n", JobId(turn.job))
}

/// A path that means the same to another process: a command does not have our handles.
fn elsewhere(path: &Path) -> PathBuf {
    match path.strip_prefix("/proc/self") {
        Ok(rest) => Path::new("/proc").join(std::process::id().to_string()).join(rest),
        Err(_) => path.to_owned(),
    }
}

fn object() -> Result<RelPath, ArchiveError> {
    RelPath::new(OBJECT.as_bytes())
        .map_err(|e| ArchiveError::caused(ErrorClass::Bug, "the name of a staged object", &e))
}

async fn get(asking: &Asking<'_>, key: &str, cancel: &CancellationToken) -> Result<Staging, ArchiveError> {
    let place = asking.settings.staging.clone();
    let staging = blocking(move || Staging::new(&place)).await?;
    let target = staging.path_of(OBJECT);
    let what = format!("cannot get {key} from tape");
    run(&what, &asking.templates.get, Filling { key, target: &target, ..Filling::default() }, cancel).await?;
    match staging.root.handle().stat_name(OBJECT.as_bytes()) {
        Ok(Some(_)) => Ok(staging),
        Ok(None) => Err(ArchiveError::new(
            ErrorClass::Network,
            format!("{what}: the command succeeded and made no file; run it by hand and see"),
        )),
        Err(e) => Err(failure::of_disk(what, &e)),
    }
}

async fn get_small(
    asking: &Asking<'_>,
    key: &str,
    most: u64,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, ArchiveError> {
    let staging = get(asking, key, cancel).await?;
    let what = format!("cannot read {key} from tape");
    blocking(move || {
        let file = staging.root.handle().open_read(OBJECT.as_bytes()).map_err(|e| failure::of_disk(&what, &e))?;
        let mut bytes = Vec::new();
        let read = file.take(most + 1).read_to_end(&mut bytes);
        read.map_err(|e| failure::of_disk(&what, &DiskError::new("read", staging.path_of(OBJECT), e)))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > most) {
            return Err(ArchiveError::new(
                ErrorClass::CorruptInFlight,
                format!("{what}: it is longer than {most} bytes, and none like it is ever written"),
            ));
        }
        Ok(bytes)
    })
    .await
}

/// The newest sidecar of a name that was listed.
pub(super) async fn read_sidecar(asking: &Asking<'_>, name: &str) -> Result<Vec<u8>, ArchiveError> {
    let never = CancellationToken::new();
    if sidecar_of(name) != Some(name)
        || name.starts_with(['-', '/'])
        || name.split('/').any(|n| matches!(n, "" | "." | ".."))
    {
        return Err(ArchiveError::new(
            ErrorClass::Configuration,
            format!("cannot read the sidecar {name}: no sidecar on tape has such a name"),
        ));
    }
    match asking.latest(name, &never).await? {
        Some(latest) => get_small(asking, &latest.key, MAX_SIDECAR_BYTES, &never).await,
        None => Err(ArchiveError::new(
            ErrorClass::MissingSource,
            format!("cannot read the sidecar {name} from tape: it is not there"),
        )),
    }
}
