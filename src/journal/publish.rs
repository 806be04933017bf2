use std::{
    collections::HashMap,
    fs::File,
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    JournalError, Part, PartStore, SmallPart,
    commit::{SYNCED_ONE_BY_ONE, add, distinct},
    folder::make_parts_dir,
    record::Body,
    store::Shared,
    writer::{Writer, part_name},
};
use crate::{
    chunk::{RelPath, escape_bytes},
    disk::{
        Dir, DiskError, DiskErrorKind, FileMeta, Identity, LockOutcome, ReadBack, Root, Stat, SyncScope, fault,
        lock_file, read_back, sync_scope,
    },
};

/// A file whose bytes are complete and verified.
#[derive(Clone, Debug)]
pub enum Staged {
    /// Written chunk by chunk.
    Part(Arc<Part>),
    /// Written at once.
    Small(SmallPart),
}

/// A file to be given its final name.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The file.
    pub staged: Staged,
    /// What it takes over from its original.
    pub meta: FileMeta,
    /// What may be at its destination.
    pub mode: PublishMode,
}

/// What may be at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishMode {
    /// Nothing; what is there is never replaced.
    NoReplace,
    /// The entry that was there when the file was begun, and no other. Nothing will do, too.
    Replace {
        /// That entry.
        expected: Identity,
    },
}

/// What became of a file to be published.
#[derive(Debug)]
pub enum PublishOutcome {
    /// It has its final name, durably.
    Published(Stat),
    /// The name is taken; the part stays until it is discarded.
    AlreadyExists,
    /// What is there is not what was to be replaced; the part stays until it is discarded.
    Conflict,
    /// This one file could not be published; the part stays.
    Failed(JournalError),
}

/// Open directories of final names. Looked up anew for each batch: a handle from the root's cache might be that of a
/// directory that was renamed since.
pub(super) struct Targets<'a> {
    root: &'a Root,
    open: HashMap<RelPath, Arc<Dir>>,
    /// There were more than may be open at once.
    overflowed: bool,
}

impl PartStore {
    /// Gives files their final names: metadata, sync of the contents, rename, sync of the directories. When this
    /// returns, every published name is durable.
    ///
    /// The directories must exist. Failures of one name are outcomes; failed writes and syncs poison the store.
    pub fn publish(&self, files: &[Publish]) -> Result<Vec<PublishOutcome>, JournalError> {
        let shared = &self.shared;
        let _one = shared.commit.lock().unwrap_or_else(PoisonError::into_inner);
        shared.check_fence()?;
        let mut outcomes: Vec<Option<PublishOutcome>> = files.iter().map(|_| None).collect();
        let mut ready = Vec::new();
        for (i, file) in files.iter().enumerate() {
            match file.staged.apply(&file.meta) {
                Ok(()) => ready.push((i, file)),
                Err(e) => outcomes[i] = Some(PublishOutcome::Failed(e)),
            }
        }
        shared.make_durable(&ready)?;
        let lock = match ready.iter().any(|(_, file)| file.mode != PublishMode::NoReplace) {
            true => Some(shared.lock_names()?),
            false => None,
        };
        let mut renamed = Vec::new();
        let mut targets = Targets::new(&shared.root);
        for (i, file) in ready {
            match shared.rename(file, &mut targets)? {
                None => renamed.push((i, file)),
                Some(outcome) => outcomes[i] = Some(outcome),
            }
        }
        drop(lock);
        fault::point(fault::Point::Renamed);
        targets.sync().map_err(|e| shared.poison(e))?;
        for folder in distinct(renamed.iter().map(|(_, file)| file.staged.place().0).collect()) {
            folder.dir().sync().map_err(|e| shared.poison(e))?;
        }
        fault::point(fault::Point::DirectorySynced);
        let mut targets = Targets::new(&shared.root);
        for (i, file) in &renamed {
            outcomes[*i] = Some(verify(&file.staged, &mut targets));
        }
        shared.forget(renamed.iter().map(|(_, file)| &file.staged))?;
        Ok(outcomes.into_iter().map(|o| o.unwrap_or(PublishOutcome::Conflict)).collect())
    }

    /// Gives a file up and removes its part.
    pub fn discard(&self, staged: &Staged) -> Result<(), JournalError> {
        self.shared.check()?;
        let (writer, number) = staged.place();
        self.shared.lock().forget(staged.path(), writer, number);
        writer.remove_part(number).map_err(|e| self.shared.poison(e))
    }

    /// Syncs a file that is about to be published, reads it back from the medium if that can be had, and hashes it.
    pub fn read_back(&self, staged: &Staged) -> Result<ReadBack, JournalError> {
        self.shared.check()?;
        let (writer, number) = staged.place();
        let identity = match staged {
            Staged::Part(part) => part.identity()?,
            Staged::Small(small) => {
                let stat = writer.dir().stat_name(&part_name(number))?;
                let Some(stat) = stat.filter(|s| s.identity.ino == small.inner.inode) else {
                    let path = writer.dir().child(&part_name(number));
                    return Err(DiskError::new("read back", path, rustix::io::Errno::NOENT).into());
                };
                if stat.mode & 0o400 == 0 {
                    // Opening it so gives its owner access; publishing sets the mode again.
                    small.open()?;
                }
                Identity { size: small.inner.size, ..stat.identity }
            }
        };
        read_back(writer.dir(), &part_name(number), &identity).map_err(|e| match e.kind() {
            DiskErrorKind::Changed => e.into(),
            _ => self.shared.poison(e),
        })
    }
}

impl Staged {
    /// Destination, relative to the store's root.
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Part(part) => part.path(),
            Self::Small(small) => small.path(),
        }
    }

    fn place(&self) -> (&Arc<Writer>, u32) {
        match self {
            Self::Part(part) => (&part.writer, part.number),
            Self::Small(small) => (&small.inner.writer, small.inner.number),
        }
    }

    fn inode(&self) -> u64 {
        match self {
            Self::Part(part) => part.inode,
            Self::Small(small) => small.inner.inode,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Part(part) => part.size(),
            Self::Small(small) => small.size(),
        }
    }

    fn apply(&self, meta: &FileMeta) -> Result<(), JournalError> {
        match self {
            Self::Part(part) => meta.apply(&part.file).map_err(|e| part.error("set metadata of", e.into()).into()),
            Self::Small(small) => small.apply(meta).map(|_| ()),
        }
    }
}

impl Shared {
    /// Contents, metadata and, for whole small files, the journal: durable before any of them gets its name.
    fn make_durable(&self, ready: &[(usize, &Publish)]) -> Result<(), JournalError> {
        if fault::planted(fault::Fault::PublishedBeforeDataSync) {
            return Ok(());
        }
        let mut small = Vec::new();
        let mut records: Vec<(Arc<Writer>, Vec<Body>)> = Vec::new();
        let mut parts = Vec::new();
        for (_, file) in ready {
            match &file.staged {
                Staged::Part(part) => parts.push(part),
                Staged::Small(one) => {
                    small.push(one);
                    if !one.is_recorded() {
                        add(&mut records, &one.inner.writer, [one.record()]);
                    }
                }
            }
        }
        if parts.len() + small.len() > SYNCED_ONE_BY_ONE && sync_scope() == SyncScope::FileSystem {
            self.root.sync().map_err(|e| self.poison(e))?;
        } else {
            for part in parts {
                part.file.sync_all().map_err(|e| part.poison("sync", e))?;
            }
            for one in &small {
                one.sync().map_err(|e| self.poison(e))?;
            }
        }
        fault::point(fault::Point::FileSynced);
        if !records.is_empty() {
            for one in &small {
                one.inner.writer.sync_names().map_err(|e| self.poison(e))?;
            }
            self.record(&records)?;
            for one in small {
                one.inner.writer.update(one.inner.number, |live| live.recorded = true);
            }
        }
        Ok(())
    }

    /// Renames one file. `None` if that worked.
    fn rename(&self, file: &Publish, targets: &mut Targets<'_>) -> Result<Option<PublishOutcome>, JournalError> {
        let (writer, number) = file.staged.place();
        let renamed = targets
            .parent(file.staged.path())
            .and_then(|(dir, name)| self.rename_as(file.mode, writer.dir(), &part_name(number), &dir, name));
        match renamed {
            // The medium may be at fault, and then nothing about the names is known.
            Err(e) if e.kind() == DiskErrorKind::Io => Err(self.poison(e)),
            Err(e) => Ok(Some(PublishOutcome::Failed(e.into()))),
            Ok(outcome) => Ok(outcome),
        }
    }

    /// Renames to a name at which only what the mode allows may be. `None` if that worked.
    pub(super) fn rename_as(
        &self,
        mode: PublishMode,
        from: &Dir,
        from_name: &[u8],
        to: &Dir,
        name: &[u8],
    ) -> Result<Option<PublishOutcome>, DiskError> {
        let result = match mode {
            PublishMode::NoReplace => from.rename_no_replace(from_name, to, name),
            PublishMode::Replace { expected } => match to.stat_name(name)? {
                None => from.rename_no_replace(from_name, to, name),
                Some(now) if now.identity == expected => from.rename(from_name, to, name),
                Some(_) => return Ok(Some(PublishOutcome::Conflict)),
            },
        };
        match result {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == DiskErrorKind::Exists => Ok(Some(match mode {
                PublishMode::NoReplace => PublishOutcome::AlreadyExists,
                PublishMode::Replace { .. } => PublishOutcome::Conflict,
            })),
            Err(e) => Err(e),
        }
    }

    fn forget<'a>(&self, published: impl Iterator<Item = &'a Staged>) -> Result<(), JournalError> {
        let mut ended: Vec<(Arc<Writer>, Vec<u32>)> = Vec::new();
        let mut claims = self.lock();
        for staged in published {
            let (writer, number) = staged.place();
            claims.forget(staged.path(), writer, number);
            match ended.iter_mut().find(|(w, _)| Arc::ptr_eq(w, writer)) {
                Some((_, numbers)) => numbers.push(number),
                None => ended.push((Arc::clone(writer), vec![number])),
            }
        }
        drop(claims);
        for (writer, numbers) in ended {
            writer.end_parts(&numbers).map_err(|e| self.poison(e))?;
        }
        Ok(())
    }

    /// Keeps other processes of this program from replacing names below this root between a look and a rename.
    pub(super) fn lock_names(&self) -> Result<File, JournalError> {
        let deadline = Instant::now() + NAME_LOCK_WAIT;
        let dir = make_parts_dir(&self.root)?;
        loop {
            let file = match dir.create_file(PUBLISH_LOCK) {
                Err(e) if e.kind() == DiskErrorKind::Exists => dir.open_write(PUBLISH_LOCK),
                other => other,
            };
            match file {
                // Removed between the two.
                Err(e) if e.kind() == DiskErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
                Ok(file) => match lock_file(&dir, PUBLISH_LOCK, &file)? {
                    // Without locks the look itself is all there is.
                    LockOutcome::Held | LockOutcome::Unsupported => return Ok(file),
                    LockOutcome::Busy | LockOutcome::Gone => {}
                },
            }
            if Instant::now() >= deadline {
                return Err(JournalError::Busy { path: escape_bytes(&dir.child(PUBLISH_LOCK)) });
            }
            thread::sleep(NAME_LOCK_POLL);
        }
    }
}

impl<'a> Targets<'a> {
    pub(super) fn new(root: &'a Root) -> Self {
        Self { root, open: HashMap::new(), overflowed: false }
    }

    /// The directory of a path, and its last name.
    pub(super) fn parent<'p>(&mut self, path: &'p RelPath) -> Result<(Arc<Dir>, &'p [u8]), DiskError> {
        let Some((dir_path, name)) = path.split_last() else { return self.root.parent(path) };
        if let Some(dir) = self.open.get(&dir_path) {
            return Ok((Arc::clone(dir), name));
        }
        let dir = self.root.dir_now(&dir_path)?;
        if self.open.len() >= OPEN_TARGETS {
            self.open.clear();
            self.overflowed = true;
        }
        self.open.insert(dir_path, Arc::clone(&dir));
        Ok((dir, name))
    }

    /// Makes the names in all directories that were asked for durable.
    pub(super) fn sync(&self) -> Result<(), DiskError> {
        if self.overflowed || self.open.len() > SYNCED_ONE_BY_ONE {
            return if fault::planted(fault::Fault::DirectorySyncDropped) { Ok(()) } else { self.root.sync() };
        }
        self.open.values().try_for_each(|dir| dir.sync())
    }
}

/// Looks the final name up from the root once more: what is reported is what is there.
fn verify(staged: &Staged, targets: &mut Targets<'_>) -> PublishOutcome {
    match targets.parent(staged.path()).and_then(|(dir, name)| dir.stat_name(name)) {
        Ok(Some(stat)) if stat.identity.ino == staged.inode() && stat.identity.size == staged.size() => {
            PublishOutcome::Published(stat)
        }
        Ok(_) => PublishOutcome::Conflict,
        Err(e) => PublishOutcome::Failed(e.into()),
    }
}

/// Lock file of the parts directory; see [`Shared::lock_names`].
pub(super) const PUBLISH_LOCK: &[u8] = b"publish.lock";
// A look and a rename take microseconds; a holder that is this slow is stopped.
const NAME_LOCK_WAIT: Duration = Duration::from_secs(10);
const NAME_LOCK_POLL: Duration = Duration::from_millis(2);
/// A batch may go to more directories than a process may have open.
const OPEN_TARGETS: usize = 64;
