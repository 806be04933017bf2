use std::{
    fmt,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    JournalError, PartStore,
    log::{Content, Listed},
    store::Shared,
    writer::{Live, Writer, part_name},
};
use crate::{
    chunk::{Digest, RelPath},
    disk::{DiskError, DiskErrorKind, FileMeta, Stat, fault},
};

/// A whole small file in a part of its own, whose file is closed: thousands of them may wait to be published.
#[derive(Clone)]
pub struct SmallPart {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Arc<Writer>,
    pub(super) number: u32,
    pub(super) path: RelPath,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) digest: Digest,
    /// The metadata that the file should have is not on it (any more).
    stale_meta: AtomicBool,
}

impl SmallPart {
    /// Destination, relative to the store's root.
    pub fn path(&self) -> &RelPath {
        &self.inner.path
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// BLAKE3 root of the bytes that were written.
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }
}

impl PartStore {
    /// Writes a file whose whole content is in hand and verified. Nothing is synced: that happens for many at once, in
    /// [`PartStore::commit`] or [`PartStore::publish`].
    ///
    /// What was left of the path by earlier attempts is given up. A failed write poisons the store.
    pub fn write_small(
        &self,
        path: &RelPath,
        data: &[u8],
        digest: Digest,
        meta: &FileMeta,
    ) -> Result<SmallPart, JournalError> {
        let shared = &self.shared;
        shared.check()?;
        shared.check_target(path)?;
        let writer = {
            let mut claims = shared.lock();
            claims.supersede(shared, path)?;
            claims.own(shared)?
        };
        let (number, mut file, inode) = writer.create_part()?;
        let error = |operation, e| DiskError::new(operation, writer.dir().child(&part_name(number)), e);
        file.write_all(data).map_err(|e| shared.poison(error("write", e)))?;
        if let Err(e) = meta.apply(&file) {
            let _ = writer.dir().remove_file(&part_name(number));
            return Err(error("set metadata of", e.into()).into());
        }
        // What a network file system says only on closing, the sync of the batch says again.
        drop(file);
        fault::point(fault::Point::Written);
        let size = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let listed = Listed { path: path.clone(), inode, size, content: Content::Whole { digest } };
        writer.insert(number, Live { listed, open: true, recorded: false });
        shared.lock().know(path, &writer, number);
        let stale_meta = AtomicBool::new(false);
        let (shared, path) = (Arc::clone(shared), path.clone());
        Ok(SmallPart { inner: Arc::new(Inner { shared, writer, number, path, inode, size, digest, stale_meta }) })
    }

    /// A whole file that an earlier attempt left for this path, if its bytes still are what its journal says.
    ///
    /// It is as good as just written and committed. One that is damaged is given up.
    pub fn adopt_small(&self, path: &RelPath) -> Result<Option<SmallPart>, JournalError> {
        let shared = &self.shared;
        shared.check()?;
        shared.check_target(path)?;
        let mut claims = shared.lock();
        let Some((writer, number, live)) = claims.whole(shared, path)? else { return Ok(None) };
        if live.open {
            return Err(JournalError::InUse { path: path.clone() });
        }
        let Content::Whole { digest } = live.listed.content else { return Ok(None) };
        let sound = match writer.open_part(number, live.listed.inode)? {
            Some(file) => {
                let stat = Stat::of_fd(&file);
                stat.is_ok_and(|s| s.identity.size == live.listed.size)
                    && hash(&file).is_ok_and(|found| found == digest)
            }
            None => false,
        };
        if !sound {
            claims.forget(path, &writer, number);
            writer.remove_part(number).map_err(|e| shared.poison(e))?;
            return Ok(None);
        }
        writer.update(number, |live| live.open = true);
        let Listed { inode, size, .. } = live.listed;
        let stale_meta = AtomicBool::new(true);
        let (shared, path) = (Arc::clone(shared), path.clone());
        let inner = Inner { shared, writer, number, path, inode, size, digest, stale_meta };
        Ok(Some(SmallPart { inner: Arc::new(inner) }))
    }
}

impl SmallPart {
    /// Makes sure that the closed file has its metadata; the next sync makes it durable. Says whether a sync is needed.
    pub(super) fn apply(&self, meta: &FileMeta) -> Result<bool, JournalError> {
        if !self.inner.stale_meta.load(Ordering::Acquire) {
            return Ok(false);
        }
        let file = self.open()?;
        meta.apply(&file).map_err(|e| self.error("set metadata of", e.into()))?;
        self.inner.stale_meta.store(false, Ordering::Release);
        Ok(true)
    }

    /// Syncs the closed file by itself.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        let Inner { writer, number, .. } = &*self.inner;
        let file = match writer.dir().open_read(&part_name(*number)) {
            // Its mode keeps even its owner out; what it is part of can be synced.
            Err(e) if e.kind() == DiskErrorKind::Permission => return self.inner.shared.root.sync(),
            other => other?,
        };
        file.sync_all().map_err(|e| self.error("sync", e))
    }

    /// Opens it again, whatever its mode.
    pub(super) fn open(&self) -> Result<std::fs::File, JournalError> {
        let Inner { writer, number, inode, .. } = &*self.inner;
        self.inner.stale_meta.store(true, Ordering::Release);
        match writer.open_part(*number, *inode)? {
            Some(file) => Ok(file),
            None => Err(self.error("open", rustix::io::Errno::NOENT.into()).into()),
        }
    }

    fn error(&self, operation: &'static str, source: std::io::Error) -> DiskError {
        DiskError::new(operation, self.inner.writer.dir().child(&part_name(self.inner.number)), source)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.writer.update(self.number, |live| live.open = false);
    }
}

impl fmt::Debug for SmallPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmallPart")
            .field("path", &self.inner.path)
            .field("size", &self.inner.size)
            .finish_non_exhaustive()
    }
}

fn hash(file: &std::fs::File) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}
