//! An archive in an S3 store, at any endpoint.
//!
//! **Keys.** `PREFIXpackages/PATH.DIGEST` is a file; of a tree it is a folder, with `files/PATH` for each file and
//! `manifest` for all the rest: names, modes, times, links, empty folders. The manifest is put last and makes the tree
//! whole. Sidecars are `PREFIXsidecars/PATH.DIGEST.ccat.json`, side by side so that listing them costs what they are. In a
//! PATH every byte but letters, digits, '-', '_' and '.' is `=XX`; one that is too long for a key is `@` and its BLAKE3.
//!
//! Mode and time of a file are metadata of its object, `ccat-mode` and `ccat-mtime`.
//!
//! **Nothing is overwritten.** Every object of a package is put on the condition that its key is free, and looked for
//! before, because some stores do not know the condition. What lies there already is `Found`: the read-back judges it. Only
//! a file of a tree that is not whole yet is put in the place of what an earlier attempt left of it, on the condition that
//! this still is what was seen.
//!
//! **Resuming.** No journal is kept here: the store knows its unfinished uploads and their parts. Each part is read from the
//! source again and compared with what the store says of its own (its checksum, or the MD5 that is its ETag); only equal
//! ones are kept. What cannot be compared is sent again. So it is with the files of a tree that is not whole, large ones too: by
//! the CRC-64/NVME of the whole, or the ETag, which is the MD5 of the parts' MD5. Uploads of the same key that are not gone on
//! with are removed, those of a tree once it is whole, and those of an attempt whose error has no retry. One that was
//! cancelled, or that found no retry left, keeps its parts for whoever tries again: what was begun 30 days ago, and has had no
//! part since, is removed when a worker starts. Only what has the form of a package's key below the prefix is.
//!
//! **Replacing.** A corrupt package is not touched: the new bytes get the next generation's keys (`PATH.DIGEST.r1` and so
//! on), and the highest generation that is whole is the package. A crash leaves the old one, or the old and the new one.
//! [`Archive::forget_replaced`] removes the lower ones. An attempt that died may have put the highest one already, so the next
//! one reads that before it puts another, and keeps it if it is as it should be.
//!
//! **Memory** is the parallel parts' buffers and those of the small objects, whatever is uploaded; of a tree its manifest
//! besides.

mod broken;
mod client;
mod download;
mod failure;
mod keys;
mod manifest;
mod settings;
mod sums;
mod sweep;
mod tree;
mod upload;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use async_trait::async_trait;
use aws_sdk_s3::{
    Client,
    primitives::DateTime,
    types::{ObjectLockMode, StorageClass},
};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

pub use settings::{Checksum, Credentials, Limits, Lock, LockMode, MAX_PART_BYTES, MIN_PART_BYTES, Settings};

use self::{
    failure::{Refused, bug, cancelled, of_source},
    keys::Keys,
    sums::Said,
    upload::{Only, Upload},
};
use super::{Archive, ArchiveError, LEFT_AFTER, Package, Progress, ReadHow, Reading, Source, Stored, Turn, Unseen};
use crate::{
    buf::Pool,
    chunk::{ByteRange, ChunkSize, Digest, RelPath},
    disk::{self, FileMeta, Root, SourceFile, Stat},
    model::{Algorithm, ErrorClass, PackageKind, StorageType, Timestamp},
};

/// A bucket, or a part of one, as an archive.
pub struct S3 {
    settings: Settings,
    client: Client,
    /// Buffers for parts, shared by all packages.
    parts: Pool,
    /// Buffers for small objects.
    small: Pool,
    /// Buffers for chunks that are read back.
    reading: Pool,
    /// Held while a file is sent that needs larger parts than the common buffers are.
    large: Mutex<()>,
}

impl S3 {
    /// Makes the client. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// Configuration: the settings cannot work, or are not safe.
    pub fn new(settings: Settings) -> Result<Self, ArchiveError> {
        settings.check()?;
        let client = client::client(&settings)?;
        let part = usize::try_from(settings.part_bytes).map_err(|_| bug("a part is larger than memory"))?;
        let (parallel, objects) = (settings.parallel_parts, settings.parallel_objects);
        Ok(Self {
            client,
            parts: Pool::new(parallel, part),
            small: Pool::new(objects, SMALL_BYTES),
            reading: Pool::new(parallel + objects, ChunkSize::DEFAULT.buffer_bytes()),
            large: Mutex::new(()),
            settings,
        })
    }

    fn keys(&self, package: &Package) -> Result<Keys, ArchiveError> {
        let suits = match package.kind {
            PackageKind::File => Algorithm::Blake3,
            PackageKind::Tree => Algorithm::Tree,
        };
        if package.expected.algorithm != suits {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!(
                    "{} is known by a {} digest, which an archive does not read; register it with {suits}",
                    package.relative_path, package.expected.algorithm
                ),
            ));
        }
        Ok(Keys::of(&self.settings.prefix, package))
    }

    /// A key as a human finds it.
    fn shown(&self, key: &str) -> String {
        format!("s3://{}/{key} at {}", self.settings.bucket, self.settings.endpoint)
    }

    fn gone(&self, key: &str) -> ArchiveError {
        let text = format!("{} is not there; archive it again", self.shown(key));
        ArchiveError::new(ErrorClass::MissingSource, text)
    }

    fn garbage(&self, key: &str, what: &str) -> ArchiveError {
        let text = format!("the S3 store gives an answer for {} that makes no sense: {what}", self.shown(key));
        ArchiveError::new(ErrorClass::Network, text)
    }

    fn storage_class(&self) -> Option<StorageClass> {
        self.settings.storage_class.as_deref().map(StorageClass::from)
    }

    fn retention(&self) -> (Option<ObjectLockMode>, Option<DateTime>) {
        let Some(lock) = self.settings.lock else { return (None, None) };
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        };
        let until = now().micros() / 1_000_000 + i64::from(lock.days) * 86_400;
        (Some(mode), Some(DateTime::from_secs(until)))
    }

    /// What the store says of an object, if there is one.
    async fn head(&self, key: &str) -> Result<Option<Said>, ArchiveError> {
        let answer = self.client.head_object().bucket(&self.settings.bucket).key(key).send().await;
        match answer.map_err(|e| Refused::new("look for", self.shown(key), &e)) {
            Ok(there) => Ok(Some(Said {
                etag: there.e_tag.unwrap_or_default(),
                size: there.content_length.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                ..Said::default()
            })),
            Err(refused) if refused.is_missing() => Ok(None),
            Err(refused) if refused.is_bare_missing() => self.refuse_bare_missing(key).await.map(|()| None),
            Err(refused) => Err(refused.into()),
        }
    }

    /// A HEAD said 404, as anything before the store may: its answer has no word for it. A GET's has, so one is sent for the
    /// first byte.
    async fn refuse_bare_missing(&self, key: &str) -> Result<(), ArchiveError> {
        let look = format!("{} says 404 to a HEAD and has it for a GET; see what stands before it", self.shown(key));
        match self.get(key, ByteRange { start: 0, len: 1 }, None).await {
            Err(refused) if refused.is_missing() => Ok(()),
            Err(refused) if !refused.is_past_end() => Err(refused.into()),
            Ok(_) | Err(_) => Err(ArchiveError::new(ErrorClass::Network, look)),
        }
    }

    /// Mode and time that an object was put with. What is no such text is left out: it comes from the store.
    async fn bits(&self, key: &str) -> Result<FileMeta, ArchiveError> {
        let answer = self.client.head_object().bucket(&self.settings.bucket).key(key).send().await;
        let there = answer.map_err(|e| Refused::new("look for", self.shown(key), &e))?;
        let text = |name: &str| there.metadata().and_then(|all| all.get(name));
        let mode = text(MODE).and_then(|text| u32::from_str_radix(text, 8).ok()).map(|mode| mode & 0o777);
        let mtime = text(MTIME).and_then(|text| {
            let (seconds, nanoseconds) = text.split_once('.')?;
            let time = disk::Timestamp { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? };
            (time.nanoseconds < 1_000_000_000).then_some(time)
        });
        Ok(FileMeta { mode, mtime, owner: None })
    }

    /// Generations of which there is anything.
    async fn generations(&self, keys: &Keys) -> Result<BTreeSet<u32>, ArchiveError> {
        let (mut found, mut after) = (BTreeSet::new(), None);
        for _ in 0..MAX_PAGES {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(keys.base())
                .delimiter("/")
                .set_continuation_token(after.take())
                .send()
                .await
                .map_err(|e| Refused::new("look for", self.shown(keys.base()), &e))?;
            let objects = page.contents().iter().filter_map(|object| object.key());
            let folders = page.common_prefixes().iter().filter_map(|folder| folder.prefix());
            found.extend(objects.chain(folders).filter_map(|key| keys.generation(key)));
            after = page.next_continuation_token;
            if page.is_truncated != Some(true) || after.is_none() {
                return Ok(found);
            }
        }
        Err(self.garbage(keys.base(), "its list of objects has no end"))
    }

    /// The highest of these generations that is whole.
    async fn whole(&self, package: &Package, keys: &Keys, all: &BTreeSet<u32>) -> Result<Option<u32>, ArchiveError> {
        for &generation in all.iter().rev() {
            let root = keys.root(generation);
            let mark = match package.kind {
                PackageKind::File => root,
                PackageKind::Tree => keys::manifest(&root),
            };
            if self.head(&mark).await?.is_some() {
                return Ok(Some(generation));
            }
        }
        Ok(None)
    }

    /// Where the package lies now.
    async fn current(&self, package: &Package) -> Result<String, ArchiveError> {
        let keys = self.keys(package)?;
        let all = self.generations(&keys).await?;
        match self.whole(package, &keys, &all).await? {
            Some(generation) => Ok(keys.root(generation)),
            None => Err(self.gone(keys.base())),
        }
    }

    async fn put_now(
        &self,
        package: &Package,
        source: &Source<'_>,
        turn: &Turn,
        progress: &dyn Progress,
    ) -> Result<Stored, ArchiveError> {
        let keys = self.keys(package)?;
        let all = self.generations(&keys).await?;
        let whole = self.whole(package, &keys, &all).await?;
        let generation = match whole {
            None => 0,
            Some(generation) if turn.replace && !self.was_replaced(package, &keys, generation, turn).await? => {
                generation + 1
            }
            Some(generation) => {
                self.clear_up(package, &keys.root(generation)).await?;
                return Ok(Stored::Found);
            }
        };
        let root = keys.root(generation);
        match package.kind {
            PackageKind::Tree => tree::put(self, package, source, &root, all.contains(&generation), progress).await,
            PackageKind::File => {
                let (folder, name) = folder_of(source)?;
                let file = blocking(move || SourceFile::open(&folder, &name).map_err(|e| of_source(&e))).await?;
                refuse_other_size(package, file.identity().size)?;
                let expected = Some(Digest(package.expected.value));
                let upload = Upload { store: self, key: &root, expected, left: None, progress };
                let sent = upload.send(file).await?;
                if sent.found {
                    return Ok(Stored::Found);
                }
                Ok(Stored::Written { resumed_bytes: sent.resumed })
            }
        }
    }

    /// Whether an attempt before this one put this generation in the place of a corrupt one.
    async fn was_replaced(
        &self,
        package: &Package,
        keys: &Keys,
        generation: u32,
        turn: &Turn,
    ) -> Result<bool, ArchiveError> {
        if !turn.may_have_replaced(generation > 0) {
            return Ok(false);
        }
        match self.read_at(package, &keys.root(generation), &Unseen).await {
            Ok(read) => Ok(read == (Digest(package.expected.value), package.size_bytes, package.file_count)),
            Err(error) if matches!(error.class, ErrorClass::MissingSource | ErrorClass::CorruptInFlight) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the uploads that were begun for a package which is whole, or is to go.
    async fn clear_up(&self, package: &Package, root: &str) -> Result<(), ArchiveError> {
        match package.kind {
            PackageKind::File => self.abort_all(root).await,
            PackageKind::Tree => {
                tree::clear_up(self, package, root).await;
                Ok(())
            }
        }
    }

    async fn read_now(&self, package: &Package, progress: &dyn Progress) -> Result<Reading, ArchiveError> {
        let started_at = now();
        let root = self.current(package).await?;
        let (digest, size_bytes, file_count) = self.read_at(package, &root, progress).await?;
        let how = ReadHow::RemoteGet;
        Ok(Reading { digest, size_bytes, file_count, how, vouched_by: None, started_at, ended_at: now() })
    }

    /// The digest of what lies there, the bytes and the number of its files.
    async fn read_at(
        &self,
        package: &Package,
        root: &str,
        progress: &dyn Progress,
    ) -> Result<(Digest, u64, u64), ArchiveError> {
        match package.kind {
            PackageKind::File => {
                let got = self.read(root, None, progress).await?.ok_or_else(|| self.gone(root))?;
                Ok((got.digest, got.size, 1))
            }
            PackageKind::Tree => tree::read_back(self, root, progress).await,
        }
    }

    /// Keys below `prefix` and behind `after`, at most `limit`, with what the store says of each.
    async fn list(
        &self,
        prefix: &str,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<(String, Said)>, ArchiveError> {
        let (mut found, mut token) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let room = i32::try_from(limit.saturating_sub(found.len()).min(1000)).unwrap_or(1000);
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(prefix)
                .set_start_after(after.clone())
                .set_continuation_token(token.take())
                .max_keys(room)
                .send()
                .await
                .map_err(|e| Refused::new("list", self.shown(prefix), &e))?;
            for object in page.contents.unwrap_or_default() {
                let size = object.size.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                let said = Said { etag: object.e_tag.unwrap_or_default(), size, ..Said::default() };
                found.extend(object.key.map(|key| (key, said)));
            }
            token = page.next_continuation_token;
            if found.len() >= limit || page.is_truncated != Some(true) || token.is_none() {
                found.truncate(limit);
                return Ok(found);
            }
        }
        Err(self.garbage(prefix, "its list of objects has no end"))
    }

    async fn delete(&self, key: &str) -> Result<(), ArchiveError> {
        let answer = self.client.delete_object().bucket(&self.settings.bucket).key(key).send().await;
        match answer.map_err(|e| Refused::new("remove", self.shown(key), &e)) {
            Err(refused) if !refused.is_missing() => Err(refused.into()),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[async_trait]
impl Archive for S3 {
    fn medium(&self) -> StorageType {
        StorageType::S3
    }

    /// No store tells: a quota shows when it is reached.
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
        until(cancel, self.put_now(package, source, turn, progress)).await
    }

    async fn read_back(
        &self,
        package: &Package,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Reading, ArchiveError> {
        until(cancel, self.read_now(package, progress)).await
    }

    async fn write_sidecar(&self, package: &Package, sidecar: &[u8]) -> Result<(), ArchiveError> {
        let keys = self.keys(package)?;
        if sidecar.len() as u64 > MAX_SIDECAR_BYTES {
            let text = format!("a sidecar of {} bytes is too large; none may have more than 16 MiB", sidecar.len());
            return Err(ArchiveError::new(ErrorClass::Configuration, text));
        }
        let bytes = bytes::Bytes::copy_from_slice(sidecar);
        Ok(self.put_bytes(keys.sidecar(), bytes, Only::Always, None).await?)
    }

    async fn sidecars(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ArchiveError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let folder = keys::sidecars(&self.settings.prefix);
        let mut after = after.map(|name| format!("{folder}{name}"));
        let mut names = Vec::new();
        // Keys of others may lie between: a page without a sidecar is not the last one.
        loop {
            let found = self.list(&folder, after.take(), limit).await?;
            let is_last = found.len() < limit;
            after = found.last().map(|(key, _)| key.clone());
            let these = found.into_iter().filter_map(|(key, _)| key.strip_prefix(&folder).map(str::to_owned));
            names.extend(these.filter(|name| keys::is_sidecar(name)));
            if is_last || names.len() >= limit {
                names.truncate(limit);
                return Ok(names);
            }
        }
    }

    async fn read_sidecar(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        if !keys::is_sidecar(name) {
            let text = format!("'{}' is no name of a sidecar", crate::chunk::escape_bytes(name.as_bytes()));
            return Err(ArchiveError::new(ErrorClass::Configuration, text));
        }
        let key = keys::sidecars(&self.settings.prefix) + name;
        self.read_bytes(&key, MAX_SIDECAR_BYTES).await?.ok_or_else(|| self.gone(&key))
    }

    async fn fetch(
        &self,
        package: &Package,
        folder: &Root,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let fetch = async {
            let root = self.current(package).await?;
            tree::fetch(self, package, &root, folder, progress).await
        };
        until(cancel, fetch).await
    }

    async fn forget_replaced(&self, package: &Package) -> Result<(), ArchiveError> {
        let keys = self.keys(package)?;
        let all = self.generations(&keys).await?;
        let Some(current) = self.whole(package, &keys, &all).await? else { return Ok(()) };
        for generation in all.range(..current) {
            let root = keys.root(*generation);
            self.clear_up(package, &root).await?;
            match package.kind {
                PackageKind::File => self.delete(&root).await?,
                PackageKind::Tree => tree::remove(self, &root).await?,
            }
        }
        Ok(())
    }

    async fn sweep(&self) -> Result<u64, ArchiveError> {
        self.sweep_older(LEFT_AFTER).await
    }
}

/// Runs until the end or until told to stop; requests under way are dropped then.
async fn until<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, ArchiveError>> + Send,
) -> Result<T, ArchiveError> {
    cancel.run_until_cancelled(work).await.unwrap_or_else(|| Err(cancelled()))
}

/// Runs what reads files or hashes much where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| bug(format!("work on a thread ended early: {error}")))?
}

/// The folder that a source lies in, and its path below that.
fn folder_of(source: &Source<'_>) -> Result<(Arc<Root>, RelPath), ArchiveError> {
    let refuse = || ArchiveError::new(ErrorClass::Configuration, "a package's path is the root of its location");
    let (dir, name) = source.path.split_last().ok_or_else(refuse)?;
    let folder = source.root.beneath(&dir).map_err(|e| of_source(&e))?;
    let name = RelPath::new(name).map_err(|error| bug(error.to_string()))?;
    Ok((Arc::new(folder), name))
}

fn refuse_other_size(package: &Package, found: u64) -> Result<(), ArchiveError> {
    if package.size_bytes == found {
        return Ok(());
    }
    let (path, wanted) = (&package.relative_path, package.size_bytes);
    Err(ArchiveError::new(
        ErrorClass::SourceChanged,
        format!("{path} has {found} bytes, {wanted} were registered; register what is there now"),
    ))
}

/// The metadata of a file's object.
fn metadata(stat: &Stat) -> HashMap<String, String> {
    let time = stat.identity.mtime;
    HashMap::from([
        (MODE.to_owned(), format!("{:04o}", stat.mode)),
        (MTIME.to_owned(), format!("{}.{:09}", time.seconds, time.nanoseconds)),
    ])
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Objects of a tree up to this size have buffers of their own, so that many are under way at once.
const SMALL_BYTES: usize = 1 << 20;
/// Metadata: permission bits in octal digits.
const MODE: &str = "ccat-mode";
/// Metadata: seconds since 1970 and, behind a point, nanoseconds.
const MTIME: &str = "ccat-mtime";
/// As the trait says.
const MAX_SIDECAR_BYTES: u64 = 16 << 20;
/// Of 1,000 rows each: more than any prefix of ours has.
const MAX_PAGES: usize = 10_000;
