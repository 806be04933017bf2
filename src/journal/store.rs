use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use super::{
    JournalError,
    claims::{Asked, Claims, usable_values},
    folder::open_parts_dir,
    jobs,
    log::Content,
    part::{Adopted, Part},
    writer::Writer,
};
use crate::{
    chunk::{ChunkSize, RelPath},
    disk::{DiskError, DiskErrorKind, Root, is_reserved},
};

/// How a store behaves.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// How long to wait for a live writer to let go of a part before a new one is made. Waited for once per writer.
    pub lock_wait: Duration,
    /// The job and its fence. With a fence above 0, every commit and publication first looks whether a newer attempt
    /// has begun.
    pub job: Option<([u8; 16], u64)>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        // An old session that is being ended needs a moment to close its files; one that was stopped never will.
        Self { lock_wait: Duration::from_secs(5), job: None }
    }
}

/// The parts of one destination directory, as one session sees and writes them.
///
/// All calls block. Writing to parts may go on from many threads while one other commits or publishes.
pub struct PartStore {
    pub(super) shared: Arc<Shared>,
}

/// What a store and its parts have in common.
pub(super) struct Shared {
    pub(super) root: Arc<Root>,
    pub(super) options: StoreOptions,
    poison: OnceLock<String>,
    claims: Mutex<Claims>,
    /// One commit or publication at a time.
    pub(super) commit: Mutex<()>,
}

impl PartStore {
    /// Looks at what is left of earlier attempts below `root`. Makes and locks nothing.
    pub fn open(root: Arc<Root>, options: StoreOptions) -> Result<Self, JournalError> {
        let claims = Claims::read(open_parts_dir(&root)?)?;
        let shared =
            Shared { root, options, poison: OnceLock::new(), claims: Mutex::new(claims), commit: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The destination directory.
    pub fn root(&self) -> &Arc<Root> {
        &self.shared.root
    }

    /// Whether some part was begun for a path at or below one of these names, or one of the names exists already: if
    /// not, the sender need not ask what is here.
    pub fn holds<N: AsRef<[u8]>>(&self, top_level_names: &[N]) -> bool {
        let named = |path: &RelPath| top_level_names.iter().any(|name| path.first() == Some(name.as_ref()));
        if self.shared.lock().any(named) {
            return true;
        }
        // An unreadable name may be there, so that the answer must be yes.
        let exists = |name: &[u8]| self.shared.root.handle().stat_name(name).map_or(true, |stat| stat.is_some());
        top_level_names.iter().any(|name| exists(name.as_ref()))
    }

    /// Whether something is left of this very path, so that it should be read before anything is sent.
    pub fn has_part(&self, path: &RelPath) -> bool {
        self.shared.lock().any(|known| known == path)
    }

    /// Whether the destination has nothing at all: no entry, no part.
    pub fn is_untouched(&self) -> bool {
        if self.shared.lock().any(|_| true) {
            return false;
        }
        match self.shared.root.entries(&RelPath::root()) {
            Ok(mut entries) => entries.all(|e| e.is_ok_and(|e| e.name == crate::disk::RESERVED_NAME)),
            Err(_) => false,
        }
    }

    /// Whether another session waits for parts that this one holds. A session without links should give way.
    pub fn is_wanted(&self) -> bool {
        self.shared.lock().is_wanted()
    }

    /// Whether this attempt is still the newest one of its job, also by what other processes have begun.
    ///
    /// # Errors
    /// [`JournalError::Overtaken`]; or the job's file cannot be read.
    pub fn check_fence(&self) -> Result<(), JournalError> {
        match self.shared.options.job {
            Some((job, fence)) if fence > 0 => jobs::check_fence(&self.shared.root, job, fence),
            _ => Ok(()),
        }
    }

    /// The first failure that poisoned the store, if any did.
    pub fn poisoned(&self) -> Option<&str> {
        self.shared.poison.get().map(String::as_str)
    }

    /// Takes over what a dead writer left of this file, or makes a new part.
    ///
    /// A live writer's part is waited for as long as [`StoreOptions::lock_wait`]; then a new part is made that can be
    /// seeded from it ([`Part::copy_seed`]). Chunks said to be held must be hashed again before they are believed.
    pub fn begin(&self, path: &RelPath, size: u64, chunk_size: ChunkSize, sparse: bool) -> Result<Part, JournalError> {
        let shared = &self.shared;
        shared.check()?;
        shared.check_target(path)?;
        let mut claims = shared.lock();
        claims.claim_candidates(shared, path, shared.options.lock_wait)?;
        let asked = Asked { path, size, chunk_size, sparse };
        if let Some((writer, number)) = claims.ours(path) {
            if let Some(part) = shared.reopen(&writer, number, &asked)? {
                return Ok(part);
            }
            claims.forget(path, &writer, number);
            writer.remove_part(number).map_err(|e| shared.poison(e))?;
        }
        let seed = claims.seed(path, &asked);
        let writer = claims.own(shared)?;
        let (number, file, inode) = writer.create_part()?;
        let part = Part::create(shared, &writer, number, file, inode, &asked, seed)?;
        claims.know(path, &writer, number);
        Ok(part)
    }

    /// Removes what is worthless and releases all locks. What can be resumed stays, and so does a poisoned store.
    ///
    /// Called when no part is in use any more. Also clears folders of dead writers that hold nothing.
    pub fn finish(&self) -> Result<(), JournalError> {
        self.shared.check()?;
        let (parts_dir, writers) = self.shared.lock().release();
        let Some(parts_dir) = parts_dir else { return Ok(()) };
        for writer in &writers {
            writer.remove_if_empty(&parts_dir)?;
        }
        drop(writers);
        super::clean::sweep(&self.shared.root, &parts_dir)
    }
}

impl Shared {
    /// Refuses to go on after a failure that nothing can be promised after.
    pub(super) fn check(&self) -> Result<(), JournalError> {
        match self.poison.get() {
            Some(cause) => Err(JournalError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Like [`Shared::check`], and looks for a newer attempt of the job.
    pub(super) fn check_fence(&self) -> Result<(), JournalError> {
        self.check()?;
        match self.options.job {
            Some((job, fence)) if fence > 0 => jobs::check_fence(&self.root, job, fence),
            _ => Ok(()),
        }
    }

    /// Latches the first failure and hands it on.
    pub(super) fn poison(&self, error: impl Into<JournalError>) -> JournalError {
        let error = error.into();
        let _ = self.poison.set(error.to_string());
        error
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses paths that name no file of a copy.
    pub(super) fn check_target(&self, path: &RelPath) -> Result<(), JournalError> {
        if is_reserved(path) {
            return Err(JournalError::Reserved { path: path.clone() });
        }
        let (dir, _) = match self.root.parent(path) {
            // It may be made later.
            Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let (here, there) = (self.root.handle().stat()?.identity.dev, dir.stat()?.identity.dev);
        if here != there {
            return Err(DiskError::other_file_system(self.root.handle().child(path.as_bytes())).into());
        }
        Ok(())
    }

    /// A live part of ours or of a folder taken over; `None` if there is nothing worth taking.
    fn reopen(
        self: &Arc<Self>,
        writer: &Arc<Writer>,
        number: u32,
        asked: &Asked<'_>,
    ) -> Result<Option<Part>, JournalError> {
        let Some(live) = writer.live(number) else { return Ok(None) };
        if live.open {
            return Err(JournalError::InUse { path: asked.path.clone() });
        }
        let Some(file) = writer.open_part(number, live.listed.inode)? else { return Ok(None) };
        let values = usable_values(&live.listed, writer.values(number)?, asked);
        let same = matches!(live.listed.content, Content::Chunks { chunk_size, .. } if chunk_size == asked.chunk_size)
            && live.listed.size == asked.size
            && live.recorded;
        Part::adopt(self, writer, number, file, asked, Adopted { live, values, same }).map(Some)
    }
}

impl fmt::Debug for PartStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartStore").field("root", &self.shared.root.path()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("root", &self.root.path()).finish_non_exhaustive()
    }
}
