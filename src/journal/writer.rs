use std::{
    collections::HashMap,
    fs::File,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    JournalError,
    folder::open_folder,
    log::{Content, Listed, Listing, Log, Replayed, replay},
    record::Body,
};
use crate::{
    chunk::{ChunkValue, escape_bytes},
    disk::{Dir, DiskError, DiskErrorKind, FileKind, LockOutcome, Stat, fault, lock_file},
};

/// One writer's folder, with its journal locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Writer {
    dir: Dir,
    name: Vec<u8>,
    // Its lock is the writer's; closing it gives the lock back.
    journal: File,
    state: Mutex<State>,
    // Names were made in the folder since it was last synced.
    names_unsynced: AtomicBool,
}

#[derive(Debug)]
struct State {
    log: Log,
    parts: HashMap<u32, Live>,
    next_part: u32,
}

/// A part in a folder that we hold the lock of.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) listed: Listed,
    /// Somebody in this process has it in hand.
    pub(super) open: bool,
    /// The journal has, or is about to have, a record of it that is worth keeping.
    pub(super) recorded: bool,
}

/// What came of trying to take over a folder.
#[derive(Debug)]
pub(super) enum Takeover {
    Taken(Writer),
    /// Its writer is alive.
    Busy,
    /// Nothing that can be taken over: gone, without a header, of a newer version, or no locks here.
    Nothing,
}

impl Writer {
    /// Makes a new folder with an empty journal, locked and durable.
    pub(super) fn create(parts_dir: &Dir) -> Result<Self, JournalError> {
        for _ in 0..CREATE_TRIES {
            let id: [u8; 16] = rand::random();
            let name: Vec<u8> =
                [b"w-", id[..8].iter().map(|b| format!("{b:02x}")).collect::<String>().as_bytes()].concat();
            if !parts_dir.create_dir(&name, 0o700)? {
                continue;
            }
            let dir = parts_dir.open_dir(&name)?;
            let journal = dir.create_file(JOURNAL_NAME)?;
            // A sweeper may have taken the folder for an abandoned one before it was locked; then it is left to it.
            if matches!(lock_file(&dir, JOURNAL_NAME, &journal)?, LockOutcome::Busy | LockOutcome::Gone) {
                continue;
            }
            let error = |e| DiskError::new("write", dir.child(JOURNAL_NAME), e);
            let log = Log::create(&journal, id).map_err(error)?;
            journal.sync_all().map_err(error)?;
            dir.sync()?;
            parts_dir.sync()?;
            let state = Mutex::new(State { log, parts: HashMap::new(), next_part: 1 });
            return Ok(Self { dir, name, journal, state, names_unsynced: AtomicBool::new(false) });
        }
        Err(JournalError::Busy { path: escape_bytes(parts_dir.display_path()) })
    }

    /// Takes over the folder of a writer that is no more. Whatever is in it was read without the lock before, and is
    /// read again under it.
    pub(super) fn take_over(parts_dir: &Dir, name: &[u8]) -> Result<Takeover, JournalError> {
        let Some((dir, journal)) = open_folder(parts_dir, name)? else { return Ok(Takeover::Nothing) };
        match lock_file(&dir, JOURNAL_NAME, &journal)? {
            LockOutcome::Held => {}
            LockOutcome::Busy => return Ok(Takeover::Busy),
            LockOutcome::Gone | LockOutcome::Unsupported => return Ok(Takeover::Nothing),
        }
        let error = |e| DiskError::new("read", dir.child(JOURNAL_NAME), e);
        let (listing, replayed) = Listing::read(&journal).map_err(error)?;
        if !replayed.known || replayed.foreign {
            return Ok(Takeover::Nothing);
        }
        let log = Log::resume(&journal, &replayed).map_err(error)?;
        let parts = listing.parts.into_iter().map(|(n, listed)| (n, Live { listed, open: false, recorded: true }));
        let mut state = State { log, parts: parts.collect(), next_part: listing.next_part };
        // A journal may speak of parts that were published since, or whose file is another one by now.
        state.parts.retain(|&number, live| is_ours(&dir, number, live.listed.inode));
        let writer = Self {
            dir,
            name: name.to_vec(),
            journal,
            state: Mutex::new(state),
            names_unsynced: AtomicBool::new(false),
        };
        writer.remove_strays()?;
        writer.forget_wish()?;
        Ok(Takeover::Taken(writer))
    }

    /// Whether another session waits for this folder's lock.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.dir.stat_name(WISH_NAME), Ok(Some(_)))
    }

    fn forget_wish(&self) -> Result<(), JournalError> {
        match self.dir.remove_file(WISH_NAME) {
            Err(e) if e.kind() != DiskErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Removes part files that the journal does not speak of: nothing in them was ever durable, or they are a second
    /// name of a published file.
    fn remove_strays(&self) -> Result<(), JournalError> {
        let mut strays = Vec::new();
        for entry in self.dir.entries()? {
            let name = entry?.name;
            if part_number(&name).is_some_and(|n| !self.lock().parts.contains_key(&n)) {
                strays.push(name);
            }
        }
        for name in strays {
            match self.dir.remove_file(&name) {
                Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    pub(super) fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Makes a new part file, empty. The journal does not speak of it yet.
    pub(super) fn create_part(&self) -> Result<(u32, File, u64), JournalError> {
        let (number, file) = self.create_named(|name| self.dir.create_file(name))?;
        fault::point(fault::Point::PartCreated);
        self.names_unsynced.store(true, Ordering::Release);
        let stat = Stat::of_fd(&file).map_err(|e| DiskError::new("examine", self.dir.child(&part_name(number)), e))?;
        Ok((number, file, stat.identity.ino))
    }

    /// Makes a symbolic link under the name of a part that no journal speaks of.
    pub(super) fn create_link(&self, target: &[u8]) -> Result<u32, JournalError> {
        Ok(self.create_named(|name| self.dir.create_symlink(target, name))?.0)
    }

    fn create_named<T>(&self, create: impl Fn(&[u8]) -> Result<T, DiskError>) -> Result<(u32, T), DiskError> {
        loop {
            let number = {
                let mut state = self.lock();
                let number = state.next_part;
                state.next_part = number.wrapping_add(1);
                number
            };
            match create(&part_name(number)) {
                Err(e) if e.kind() == DiskErrorKind::Exists => {}
                other => return Ok((number, other?)),
            }
        }
    }

    /// Opens the file of a live part, if it still is the one that the journal means.
    pub(super) fn open_part(&self, number: u32, inode: u64) -> Result<Option<File>, JournalError> {
        if !is_ours(&self.dir, number, inode) {
            return Ok(None);
        }
        let name = part_name(number);
        let file = match self.dir.open_write(&name) {
            Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(None),
            // It was about to be published with a mode that keeps its owner out.
            Err(e) if e.kind() == DiskErrorKind::Permission => {
                self.dir.set_mode(&name, 0o600)?;
                self.dir.open_write(&name)?
            }
            other => other?,
        };
        let stat = Stat::of_fd(&file).map_err(|e| DiskError::new("examine", self.dir.child(&name), e))?;
        Ok((stat.identity.ino == inode && stat.links == 1).then_some(file))
    }

    pub(super) fn insert(&self, number: u32, live: Live) {
        self.lock().parts.insert(number, live);
    }

    pub(super) fn live(&self, number: u32) -> Option<Live> {
        self.lock().parts.get(&number).cloned()
    }

    pub(super) fn live_paths(&self) -> Vec<(u32, crate::chunk::RelPath, u64)> {
        let state = self.lock();
        state.parts.iter().map(|(&n, live)| (n, live.listed.path.clone(), live.listed.held_bytes())).collect()
    }

    /// Changes what is known of a live part; nothing if it is no more.
    pub(super) fn update(&self, number: u32, change: impl FnOnce(&mut Live)) {
        if let Some(live) = self.lock().parts.get_mut(&number) {
            change(live);
        }
    }

    /// The values that the journal has for the chunks of one part, by index.
    pub(super) fn values(&self, number: u32) -> Result<Values, JournalError> {
        read_values(&self.journal, number)
            .map(|(values, _)| values)
            .map_err(|e| DiskError::new("read", self.dir.child(JOURNAL_NAME), e).into())
    }

    /// Adds records, not yet durable.
    pub(super) fn append(&self, bodies: impl IntoIterator<Item = Body>) -> Result<(), JournalError> {
        let result = self.lock().log.append(&self.journal, bodies);
        result.map_err(|e| DiskError::new("write", self.dir.child(JOURNAL_NAME), e).into())
    }

    /// Makes the names of the parts durable; nothing to do if none is new.
    pub(super) fn sync_names(&self) -> Result<(), JournalError> {
        if self.names_unsynced.swap(false, Ordering::AcqRel) {
            self.dir.sync()?;
        }
        Ok(())
    }

    /// Makes all records that were appended durable. Does not hold up those who append meanwhile.
    pub(super) fn sync_journal(&self) -> Result<(), JournalError> {
        self.journal.sync_data().map_err(|e| DiskError::new("sync", self.dir.child(JOURNAL_NAME), e).into())
    }

    /// Forgets parts that are published or given up. The records need not be durable: a journal that speaks of a part
    /// without a file says nothing.
    pub(super) fn end_parts(&self, numbers: &[u32]) -> Result<(), JournalError> {
        let mut state = self.lock();
        let recorded = |n: &&u32| state.parts.get(n).is_some_and(|live| live.recorded);
        let bodies: Vec<Body> = numbers.iter().filter(recorded).map(|&part| Body::Ended { part }).collect();
        let error = |e| DiskError::new("write", self.dir.child(JOURNAL_NAME), e);
        state.log.append(&self.journal, bodies).map_err(error)?;
        for number in numbers {
            state.parts.remove(number);
        }
        if state.parts.is_empty() && state.log.is_long() {
            state.log.compact(&self.journal).map_err(error)?;
            // A map keeps the room it once needed.
            state.parts = HashMap::new();
            fault::point(fault::Point::Compacted);
        }
        Ok(())
    }

    /// Removes the file of a part and forgets it.
    pub(super) fn remove_part(&self, number: u32) -> Result<(), JournalError> {
        match self.dir.remove_file(&part_name(number)) {
            Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        self.end_parts(&[number])
    }

    /// Removes the folder if no part in it is worth keeping; false if some are. The lock is still held when the journal
    /// goes, so that nobody takes over a folder that is being removed.
    pub(super) fn remove_if_empty(&self, parts_dir: &Dir) -> Result<bool, JournalError> {
        let worthless: Vec<u32> = {
            let state = self.lock();
            state
                .parts
                .iter()
                .filter(|(_, l)| !l.open && (!l.recorded || l.listed.held_bytes() == 0))
                .map(|(&n, _)| n)
                .collect()
        };
        for number in worthless {
            self.remove_part(number)?;
        }
        if !self.lock().parts.is_empty() {
            return Ok(false);
        }
        self.remove_strays()?;
        self.forget_wish()?;
        self.dir.remove_file(JOURNAL_NAME)?;
        Ok(parts_dir.remove_dir(&self.name)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Values of chunks with their indices, in order.
type Values = Vec<(u64, ChunkValue)>;

/// The values that a journal has for one part, by index, and what else it says of that part.
pub(super) fn read_values(journal: &File, number: u32) -> std::io::Result<(Values, Option<Listed>)> {
    let mut listing = Listing::default();
    let mut values = std::collections::BTreeMap::new();
    let _: Replayed = replay(journal, |body| {
        match &body {
            Body::Part { part, .. } | Body::Whole { part, .. } | Body::Ended { part } if *part == number => {
                values.clear()
            }
            Body::Chunks { part, first, values: more } if *part == number => {
                values.extend((*first..).zip(more.iter().copied()));
            }
            _ => return,
        }
        listing.apply(body);
    })?;
    let listed = listing.parts.remove(&number);
    // Only indices that the file has.
    match &listed {
        Some(Listed { size, content: Content::Chunks { chunk_size, .. }, .. }) => {
            values.split_off(&chunk_size.count(*size));
        }
        _ => values.clear(),
    }
    Ok((values.into_iter().collect(), listed))
}

/// Whether the part's name stands for the file that the journal means, and for that alone. A second name would be a
/// published file, which must not change any more.
fn is_ours(dir: &Dir, number: u32, inode: u64) -> bool {
    dir.stat_name(&part_name(number))
        .is_ok_and(|s| s.is_some_and(|s| s.kind == FileKind::File && s.identity.ino == inode && s.links == 1))
}

/// The name of the file by which a session asks a folder's writer for the lock. A writer that has lost its links gives way.
const WISH_NAME: &[u8] = b"wanted";

/// Asks the writer of a folder to give way. A wish that cannot be left is not missed: the lock is waited for in any case.
pub(super) fn ask_for(parts_dir: &Dir, folder: &[u8]) {
    if let Ok(dir) = parts_dir.open_dir(folder) {
        drop(dir.create_file(WISH_NAME));
    }
}

pub(super) fn part_name(number: u32) -> Vec<u8> {
    format!("{number:08x}.part").into_bytes()
}

pub(super) fn part_number(name: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(name).ok()?.strip_suffix(".part")?;
    let number = u32::from_str_radix(digits, 16).ok()?;
    (part_name(number) == name).then_some(number)
}

pub(super) const JOURNAL_NAME: &[u8] = b"journal";
const CREATE_TRIES: u32 = 100;
