use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use super::{
    Jobs, JournalError,
    jobs::{FENCE_AGE, JOBS_NAME, KEPT_FENCES, check_fence, file_name, make_jobs, open_jobs, remove_old_fences},
    log::{Log, replay},
    record::{Body, MAX_RECEIPT_BYTES, Record},
};
use crate::{
    chunk::escape_bytes,
    disk::{Dir, DiskError, DiskErrorKind, FileKind, LockOutcome, Root, lock_file},
};

/// Most bytes of receipts that are kept of one job. What would be longer is not kept at all.
pub const MAX_KEPT_BYTES: u64 = 1 << 30;
/// Jobs of one destination whose receipts are kept; the oldest go first.
pub const MAX_KEPT_JOBS: usize = 1024;

/// Takes down the receipts of one attempt. Nobody sees them before [`Self::finish`].
#[derive(Debug)]
pub struct ReceiptWriter {
    root: Arc<Root>,
    dir: Arc<Dir>,
    job: [u8; 16],
    fence: u64,
    name: Vec<u8>,
    file: File,
    log: Log,
    bytes: u64,
    finished: bool,
}

/// Receipts that were kept, open for reading.
#[derive(Debug)]
pub struct KeptReceipts {
    /// Whose attempt it was: the peer's name, or nothing.
    pub owner: String,
    /// Of the attempt that made them.
    pub fence: u64,
    path: Vec<u8>,
    file: File,
}

impl Jobs {
    /// Begins to take down the receipts of an attempt that `owner` began, of at most 255 bytes. The receipts of an
    /// earlier attempt stay until [`ReceiptWriter::finish`].
    pub fn keep_receipts(&self, job: [u8; 16], fence: u64, owner: &str) -> Result<ReceiptWriter, JournalError> {
        for _ in 0..CREATE_TRIES {
            let dir = match make_jobs(self.root()) {
                // A session that finished took the empty directory away.
                Err(JournalError::Disk(e)) if e.kind() == DiskErrorKind::NotFound => continue,
                other => other?,
            };
            remove_stale(&dir)?;
            let name = unfinished_name(rand::random());
            let file = match dir.create_file(&name) {
                Err(e) if matches!(e.kind(), DiskErrorKind::NotFound | DiskErrorKind::Exists) => continue,
                other => other?,
            };
            // The lock says that somebody is at it. Without locks nobody can take it for left over, either.
            if !matches!(lock_file(&dir, &name, &file)?, LockOutcome::Held | LockOutcome::Unsupported) {
                continue;
            }
            let error = |e| DiskError::new("write", dir.child(&name), e);
            let mut log = Log::create(&file, job).map_err(error)?;
            let owner = Body::Receipt { bytes: owner.as_bytes().iter().copied().take(MAX_OWNER_BYTES).collect() };
            log.append(&file, [Body::Fence { fence }, owner]).map_err(error)?;
            let root = Arc::clone(self.root());
            return Ok(ReceiptWriter { root, dir, job, fence, name, file, log, bytes: 0, finished: false });
        }
        Err(JournalError::Busy { path: escape_bytes(JOBS_NAME) })
    }

    /// The receipts of the last attempt of a job that came to its end; `None` if none are kept. Makes nothing.
    pub fn receipts(&self, job: [u8; 16]) -> Result<Option<KeptReceipts>, JournalError> {
        let Some(dir) = open_jobs(self.root())? else { return Ok(None) };
        let name = receipts_name(job);
        let file = match dir.open_read(&name) {
            Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let path = dir.child(&name);
        let mut head = vec![0; HEAD_BYTES];
        let len = file.read_at(&mut head, 0).map_err(|e| DiskError::new("read", path.clone(), e))?;
        head.truncate(len);
        match read_head(&head, job) {
            Some((fence, owner)) => Ok(Some(KeptReceipts { owner, fence, path, file })),
            None => Err(damaged(&path)),
        }
    }
}

impl ReceiptWriter {
    /// Takes down one message, of at most 512 KiB. Not durable before [`Self::finish`].
    pub fn add(&mut self, receipt: Vec<u8>) -> Result<(), JournalError> {
        let path = || self.dir.child(&self.name);
        if receipt.len() > MAX_RECEIPT_BYTES {
            return Err(DiskError::new("keep a receipt in", path(), rustix::io::Errno::FBIG).into());
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(receipt.len()).unwrap_or(u64::MAX));
        if self.bytes > MAX_KEPT_BYTES {
            return Ok(());
        }
        self.log
            .append(&self.file, [Body::Receipt { bytes: receipt }])
            .map_err(|e| DiskError::new("write", path(), e))?;
        Ok(())
    }

    /// Makes them durable and puts them in the place of those of an earlier attempt, unless a newer one has begun. False
    /// if they are too many to be kept.
    pub fn finish(mut self) -> Result<bool, JournalError> {
        if self.bytes > MAX_KEPT_BYTES {
            return Ok(false);
        }
        self.file.sync_all().map_err(|e| DiskError::new("sync", self.dir.child(&self.name), e))?;
        check_fence(&self.root, self.job, self.fence)?;
        self.dir.rename(&self.name, &self.dir, &receipts_name(self.job))?;
        self.finished = true;
        self.dir.sync()?;
        keep_house(&self.dir);
        Ok(true)
    }
}

impl Drop for ReceiptWriter {
    fn drop(&mut self) {
        if !self.finished {
            // What stays here is removed by whoever keeps receipts next.
            let _ = self.dir.remove_file(&self.name);
        }
    }
}

impl KeptReceipts {
    /// Reads them from front to back, as they were added; memory is needed for one at a time.
    ///
    /// # Errors
    /// Also if they are damaged; what was visited until then was right.
    pub fn read(self, mut visit: impl FnMut(Vec<u8>)) -> Result<(), JournalError> {
        let mut is_owner = true;
        let replayed = replay(&self.file, |body| {
            // The first one names the owner.
            if let Body::Receipt { bytes } = body
                && !std::mem::take(&mut is_owner)
            {
                visit(bytes);
            }
        })
        .map_err(|e| DiskError::new("read", self.path.clone(), e))?;
        // They got their name when they were whole, so that a torn tail is no crash's doing.
        if replayed.foreign || replayed.torn { Err(damaged(&self.path)) } else { Ok(()) }
    }
}

/// The fence and the owner, from the front of a file.
fn read_head(mut bytes: &[u8], job: [u8; 16]) -> Option<(u64, String)> {
    let mut next = || {
        let (record, len) = Record::decode(bytes).ok()?;
        bytes = bytes.get(len..)?;
        Some(record.body)
    };
    match (next()?, next()?, next()?) {
        (Body::Header { writer, .. }, Body::Fence { fence }, Body::Receipt { bytes }) if writer == job => {
            Some((fence, String::from_utf8(bytes).ok()?))
        }
        _ => None,
    }
}

/// Removes what processes left that died while they took receipts down.
fn remove_stale(dir: &Dir) -> Result<(), JournalError> {
    for name in names_with(dir, UNFINISHED)? {
        let file = match dir.open_write(&name) {
            Err(e) if e.kind() == DiskErrorKind::NotFound => continue,
            other => other?,
        };
        if lock_file(dir, &name, &file)? == LockOutcome::Held {
            dir.remove_file(&name)?;
        }
    }
    Ok(())
}

/// Forgets what is old. The job is done, whatever becomes of this: the next one looks again.
fn keep_house(dir: &Dir) {
    let told = |result: Result<(), JournalError>| {
        if let Err(error) = result {
            tracing::debug!(%error, "old receipts or fences were not removed");
        }
    };
    told(remove_oldest(dir));
    // Very many have to be looked at. By chance, so that programs which run one job each have their turn too.
    if rand::random_range(0..FENCES_EVERY) == 0 {
        told(remove_old_fences(dir, KEPT_FENCES, FENCE_AGE));
    }
}

fn remove_oldest(dir: &Dir) -> Result<(), JournalError> {
    let names = names_with(dir, FINISHED)?;
    let Some(surplus) = names.len().checked_sub(MAX_KEPT_JOBS).filter(|n| *n > 0) else { return Ok(()) };
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        if let Some(stat) = dir.stat_name(&name)?.filter(|stat| stat.kind == FileKind::File) {
            found.push((stat.identity.ctime, name));
        }
    }
    found.sort_unstable();
    for (_, name) in found.into_iter().take(surplus) {
        match dir.remove_file(&name) {
            Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    Ok(())
}

fn names_with(dir: &Dir, suffix: &[u8]) -> Result<Vec<Vec<u8>>, JournalError> {
    let mut names = Vec::new();
    for entry in dir.entries()? {
        let name = entry?.name;
        if name.ends_with(suffix) {
            names.push(name);
        }
    }
    Ok(names)
}

fn damaged(path: &[u8]) -> JournalError {
    let why = "the receipts are damaged or from a newer version of this program";
    JournalError::NotOurs { path: escape_bytes(path), why }
}

pub(super) fn receipts_name(job: [u8; 16]) -> Vec<u8> {
    [&file_name(job)[..], FINISHED].concat()
}

fn unfinished_name(random: u64) -> Vec<u8> {
    [format!("{random:016x}").as_bytes(), UNFINISHED].concat()
}

/// Jobs between two looks for old fences, on average.
const FENCES_EVERY: u32 = 1024;
const FINISHED: &[u8] = b".receipts";
const UNFINISHED: &[u8] = b".new";
const MAX_OWNER_BYTES: usize = 255;
/// Header, fence and owner fit.
const HEAD_BYTES: usize = 1024;
const CREATE_TRIES: u32 = 20;
