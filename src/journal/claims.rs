use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    JournalError,
    folder::{make_parts_dir, open_folder, read_folders},
    log::{Content, Listed},
    part::SeedFile,
    store::Shared,
    writer::{Live, Takeover, Writer, part_name, read_values},
};
use crate::{
    chunk::{ChunkSize, ChunkValue, RelPath, escape_bytes},
    disk::{Dir, DiskErrorKind, RESERVED_NAME},
};

/// A folder's name and a part in it.
type Place = (Arc<[u8]>, u32);

/// Which parts a session has, and which it knows of.
#[derive(Default)]
pub(super) struct Claims {
    parts_dir: Option<Arc<Dir>>,
    own: Option<Arc<Writer>>,
    adopted: Vec<Arc<Writer>>,
    /// Paths in folders that we hold the lock of.
    paths: HashMap<RelPath, (Arc<Writer>, u32)>,
    /// Paths in folders of others, as they were read without a lock: folder and part.
    others: HashMap<RelPath, Vec<Place>>,
    /// Folders whose writer was waited for in vain.
    alive: HashSet<Arc<[u8]>>,
}

impl Claims {
    /// Reads what is there, locking nothing.
    pub(super) fn read(parts_dir: Option<Arc<Dir>>) -> Result<Self, JournalError> {
        let mut claims = Self::default();
        if let Some(dir) = parts_dir {
            for (folder, listing) in read_folders(&dir)? {
                let folder: Arc<[u8]> = folder.into();
                for (part, listed) in listing.parts {
                    claims.others.entry(listed.path).or_default().push((Arc::clone(&folder), part));
                }
            }
            claims.parts_dir = Some(dir);
        }
        Ok(claims)
    }

    /// The folder that new parts go to, made when the first one is needed.
    pub(super) fn own(&mut self, shared: &Shared) -> Result<Arc<Writer>, JournalError> {
        if let Some(own) = &self.own {
            return Ok(Arc::clone(own));
        }
        for _ in 0..CREATE_TRIES {
            let parts_dir = make_parts_dir(&shared.root)?;
            match Writer::create(&parts_dir) {
                // Another session finished meanwhile and took the empty directory away.
                Err(JournalError::Disk(e)) if e.kind() == DiskErrorKind::NotFound => {}
                other => {
                    let writer = Arc::new(other?);
                    (self.parts_dir, self.own) = (Some(parts_dir), Some(Arc::clone(&writer)));
                    return Ok(writer);
                }
            }
        }
        Err(JournalError::Busy { path: escape_bytes(RESERVED_NAME) })
    }

    /// Takes over the folders of dead writers that have a part for this path. Of several parts the one that holds most
    /// stays.
    pub(super) fn claim_candidates(
        &mut self,
        shared: &Shared,
        path: &RelPath,
        wait: Duration,
    ) -> Result<(), JournalError> {
        let deadline = Instant::now() + wait;
        while let Some(folder) = self.candidate(path) {
            let Some(parts_dir) = self.parts_dir.clone() else { return Ok(()) };
            let mut asked = false;
            let taken = loop {
                match Writer::take_over(&parts_dir, &folder)? {
                    Takeover::Taken(writer) => break Some(writer),
                    Takeover::Nothing => break None,
                    Takeover::Busy if Instant::now() >= deadline => {
                        self.alive.insert(Arc::clone(&folder));
                        // The time is over for this one; others are asked once.
                        return self.claim_candidates(shared, path, Duration::ZERO);
                    }
                    Takeover::Busy if !std::mem::replace(&mut asked, true) => {
                        super::writer::ask_for(&parts_dir, &folder)
                    }
                    Takeover::Busy => thread::sleep(LOCK_POLL.min(deadline.saturating_duration_since(Instant::now()))),
                }
            };
            self.forget_folder(&folder);
            if let Some(writer) = taken {
                self.adopt(shared, Arc::new(writer))?;
            }
        }
        Ok(())
    }

    /// A folder with a part for this path whose writer is not known to be alive.
    fn candidate(&self, path: &RelPath) -> Option<Arc<[u8]>> {
        let (folder, _) = self.others.get(path)?.iter().find(|(folder, _)| !self.alive.contains(folder))?;
        Some(Arc::clone(folder))
    }

    fn forget_folder(&mut self, folder: &Arc<[u8]>) {
        self.others.retain(|_, found| {
            found.retain(|(f, _)| f != folder);
            !found.is_empty()
        });
    }

    fn adopt(&mut self, shared: &Shared, writer: Arc<Writer>) -> Result<(), JournalError> {
        for (number, path, held) in writer.live_paths() {
            let rival = self.paths.get(&path).cloned();
            let rival_held = rival.as_ref().and_then(|(w, n)| w.live(*n)).map(|l| (l.open, l.listed.held_bytes()));
            match (rival, rival_held) {
                (Some(_), Some((open, rival_held))) if open || rival_held >= held => {
                    writer.remove_part(number).map_err(|e| shared.poison(e))?;
                }
                (rival, _) => {
                    if let Some((loser, n)) = rival {
                        loser.remove_part(n).map_err(|e| shared.poison(e))?;
                    }
                    self.paths.insert(path, (Arc::clone(&writer), number));
                }
            }
        }
        self.adopted.push(writer);
        Ok(())
    }

    /// Whether somebody waits for a folder that we hold.
    pub(super) fn is_wanted(&self) -> bool {
        self.own.iter().chain(&self.adopted).any(|writer| writer.is_wanted())
    }

    /// Whether something is left of a path that satisfies `wanted`.
    pub(super) fn any(&self, wanted: impl Fn(&RelPath) -> bool) -> bool {
        self.others.keys().chain(self.paths.keys()).any(wanted)
    }

    /// The part that we have for a path.
    pub(super) fn ours(&self, path: &RelPath) -> Option<(Arc<Writer>, u32)> {
        self.paths.get(path).cloned()
    }

    /// Lets go of all folders.
    pub(super) fn release(&mut self) -> (Option<Arc<Dir>>, Vec<Arc<Writer>>) {
        self.paths.clear();
        (self.parts_dir.clone(), self.own.take().into_iter().chain(self.adopted.drain(..)).collect())
    }

    /// What a live writer has of this file, open for reading.
    pub(super) fn seed(&self, path: &RelPath, asked: &Asked<'_>) -> Option<SeedFile> {
        let parts_dir = self.parts_dir.as_ref()?;
        let found = self.others.get(path)?;
        // A seed is a convenience; whatever is wrong with it, the bytes travel instead.
        found.iter().find_map(|(folder, number)| {
            let (dir, journal) = open_folder(parts_dir, folder).ok()??;
            let (values, listed) = read_values(&journal, *number).ok()?;
            let listed = listed?;
            let file = dir.open_read(&part_name(*number)).ok()?;
            let values = usable_values(&listed, values, asked);
            (!values.is_empty()).then_some(SeedFile { file, chunk_size: asked.chunk_size, size: asked.size, values })
        })
    }

    /// Gives up what is left of this path, to be replaced by a whole file in hand.
    pub(super) fn supersede(&mut self, shared: &Shared, path: &RelPath) -> Result<(), JournalError> {
        if !self.others.is_empty() {
            self.claim_candidates(shared, path, Duration::ZERO)?;
        }
        if let Some((writer, number)) = self.paths.get(path).cloned() {
            if writer.live(number).is_some_and(|live| live.open) {
                return Err(JournalError::InUse { path: path.clone() });
            }
            self.paths.remove(path);
            writer.remove_part(number).map_err(|e| shared.poison(e))?;
        }
        Ok(())
    }

    pub(super) fn know(&mut self, path: &RelPath, writer: &Arc<Writer>, number: u32) {
        self.paths.insert(path.clone(), (Arc::clone(writer), number));
    }

    /// The whole file that is left for this path, if one is.
    pub(super) fn whole(
        &mut self,
        shared: &Shared,
        path: &RelPath,
    ) -> Result<Option<(Arc<Writer>, u32, Live)>, JournalError> {
        self.claim_candidates(shared, path, shared.options.lock_wait)?;
        let Some((writer, number)) = self.paths.get(path).cloned() else { return Ok(None) };
        let Some(live) = writer.live(number) else { return Ok(None) };
        Ok(matches!(live.listed.content, Content::Whole { .. }).then_some((writer, number, live)))
    }

    /// A part is published or given up.
    pub(super) fn forget(&mut self, path: &RelPath, writer: &Arc<Writer>, number: u32) {
        if self.paths.get(path).is_some_and(|(w, n)| Arc::ptr_eq(w, writer) && *n == number) {
            self.paths.remove(path);
            if self.paths.is_empty() {
                self.paths = HashMap::new();
            }
        }
    }
}

/// What the engine asks for.
pub(super) struct Asked<'a> {
    pub(super) path: &'a RelPath,
    pub(super) size: u64,
    pub(super) chunk_size: ChunkSize,
    pub(super) sparse: bool,
}

/// Values of an old part that mean the same in the file that is asked for, though its size may have changed.
///
/// A chunk's value depends on its place and bytes, and on whether the file has more than one chunk.
pub(super) fn usable_values(old: &Listed, values: Vec<(u64, ChunkValue)>, asked: &Asked<'_>) -> Vec<(u64, ChunkValue)> {
    match &old.content {
        Content::Whole { digest } => {
            if old.size == asked.size && old.size > 0 && old.size <= asked.chunk_size.bytes() {
                vec![(0, ChunkValue(digest.0))]
            } else {
                Vec::new()
            }
        }
        Content::Chunks { chunk_size, .. } if *chunk_size == asked.chunk_size => {
            let size = *chunk_size;
            if old.size != asked.size && (size.count(old.size) <= 1 || size.count(asked.size) <= 1) {
                return Vec::new();
            }
            values.into_iter().filter(|&(i, _)| size.range(i, old.size) == size.range(i, asked.size)).collect()
        }
        Content::Chunks { .. } => Vec::new(),
    }
}

const LOCK_POLL: Duration = Duration::from_millis(50);
const CREATE_TRIES: u32 = 20;
