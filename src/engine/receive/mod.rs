//! The receiving driver: takes frames from links, verifies and writes them, makes them durable and publishes them.

mod frames;
mod held;
mod keep;
mod prepare;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
};

use self::{
    held::{compare, read_held, write_hole},
    keep::{Task, keep_store},
    prepare::prepare_pages,
};
use super::{
    Action as Reported, FailureClass, FileReport, JobError, Observer, Progress,
    send::reported,
    session::{Machine, Session, class_of},
};
use crate::{
    buf::Buffer,
    chunk::{ChunkSize, ChunkValue, RelPath},
    disk::{DiskError, FileMeta, Identity, Root, Timestamp},
    journal::{JournalError, NewName, Part, PartStore, ReceiptWriter, SmallPart, Staged},
    protocol::{Action, Class, DataHead, Entry, EntryKind, Evidence, FrameHeader, JobFlags, Meta, ReceiverEvent},
};

pub(super) use frames::take_frame;

/// Hashing of what is there already runs on this many threads at most.
const HASHERS: usize = 2;
/// How often a run looks whether a newer attempt of its job has begun in another process.
const FENCE_EVERY: Duration = Duration::from_secs(1);
/// Values of held chunks told in one message.
const HELD_BATCH: usize = 256;

/// What a receiving end writes to.
pub(super) struct Destination {
    /// The directory that entries' paths are relative to.
    pub root: Arc<Root>,
    store: PartStore,
    flags: JobFlags,
    chunk_size: ChunkSize,
    // The single source's name and the name that it gets here.
    rename: Option<(Vec<u8>, Vec<u8>)>,
    read_only_names: bool,
    host: String,
    files: Mutex<HashMap<u64, Slot>>,
    replaced: Mutex<HashMap<u64, Identity>>,
    parked: Mutex<Parked>,
    pieces: Mutex<HashMap<(u64, u64), Assembly>>,
    hashers: Semaphore,
    // What is said about entries, where it can be asked for again.
    receipts: Mutex<Option<ReceiptWriter>>,
    // Set again at the very end: removing the folder of parts changes the root's times.
    root_meta: Mutex<Option<FileMeta>>,
}

#[derive(Default)]
struct Parked {
    frames: Vec<(FrameHeader, ParkedFrame)>,
}

/// A chunk that arrives in pieces, in the buffer of the first one.
struct Assembly {
    buffer: Buffer,
    value: ChunkValue,
    // (start, end) of what is there, in order, not touching.
    have: Vec<(usize, usize)>,
}

impl Assembly {
    fn add(&mut self, at: usize, piece: &[u8]) {
        self.buffer[at..at + piece.len()].copy_from_slice(piece);
        self.note(at, at + piece.len());
    }

    fn note(&mut self, mut start: usize, mut end: usize) {
        self.have.retain(|&(s, e)| {
            let touches = s <= end && start <= e;
            if touches {
                (start, end) = (start.min(s), end.max(e));
            }
            !touches
        });
        self.have.push((start, end));
    }

    fn is_whole(&self) -> bool {
        self.have == [(0, self.buffer.len())]
    }
}

enum ParkedFrame {
    Data(DataHead, Buffer),
    Pack(Buffer),
}

#[derive(Clone)]
enum Slot {
    // Opened by the first who needs it; the others wait on the lock.
    Large(Arc<Mutex<Option<Arc<Part>>>>),
    Small(SmallPart),
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Destination").field("root", &self.root.path()).finish_non_exhaustive()
    }
}

/// How entries' paths become paths below the root.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    /// The single source's name, and the name that it gets here instead.
    pub rename: Option<(Vec<u8>, Vec<u8>)>,
}

impl Destination {
    /// A destination of one job.
    pub(super) fn new(
        root: Arc<Root>,
        store: PartStore,
        naming: Naming,
        flags: JobFlags,
        chunk_size: ChunkSize,
    ) -> Arc<Self> {
        Arc::new(Self {
            root,
            store,
            flags,
            chunk_size,
            rename: naming.rename,
            read_only_names: flags.dry_run,
            host: host_name(),
            files: Mutex::default(),
            replaced: Mutex::default(),
            parked: Mutex::default(),
            pieces: Mutex::default(),
            hashers: Semaphore::new(HASHERS),
            receipts: Mutex::default(),
            root_meta: Mutex::default(),
        })
    }

    fn local(&self, path: &RelPath) -> Result<RelPath, (Class, String)> {
        let Some((from, to)) = &self.rename else { return Ok(path.clone()) };
        let bad = |e: crate::chunk::PathError| (Class::Destination, format!("{path}: {e}"));
        let mut names = path.components();
        match names.next() {
            Some(first) if first == from.as_slice() => {
                names.try_fold(RelPath::new(to.clone()).map_err(bad)?, |p, n| p.join(n)).map_err(bad)
            }
            _ => Ok(path.clone()),
        }
    }

    /// The new name that the job gives, if this is the path of the folder that gets it.
    fn new_name(&self, path: &RelPath) -> Option<NewName> {
        let (from, to) = self.rename.as_ref()?;
        (path.as_bytes() == from.as_slice()).then(|| NewName::new(Arc::clone(&self.root), from, to))
    }

    /// Both ends know that everything is in place: the same command means a new copy from now on.
    fn forget_new_name(&self) -> Result<(), JournalError> {
        match &self.rename {
            Some((from, to)) if !self.read_only_names => NewName::new(Arc::clone(&self.root), from, to).end(),
            _ => Ok(()),
        }
    }

    fn meta(&self, meta: &Meta) -> FileMeta {
        FileMeta {
            mode: Some(meta.mode),
            mtime: Some(Timestamp { seconds: meta.mtime_s, nanoseconds: meta.mtime_ns }),
            owner: self.flags.owner.then_some((meta.uid, meta.gid)),
        }
    }

    fn part(&self, id: u64, entry: &Entry) -> Result<Arc<Part>, (Class, String)> {
        let EntryKind::File { size, sparse, .. } = entry.kind else {
            return Err((Class::Bug, "a part of something that is no file".to_owned()));
        };
        let slot = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            // Chunks of a file that was taken over whole: the source has other bytes now.
            if let Some(Slot::Small(part)) = files.get(&id) {
                self.store.discard(&Staged::Small(part.clone())).map_err(|e| journal_failure(&e))?;
                files.remove(&id);
            }
            match files.entry(id).or_insert_with(|| Slot::Large(Arc::default())) {
                Slot::Large(slot) => Arc::clone(slot),
                Slot::Small(_) => return Err((Class::Bug, "a small file has no chunks".to_owned())),
            }
        };
        let mut part = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = &*part {
            return Ok(Arc::clone(part));
        }
        let path = self.local(&entry.path)?;
        let opened = self.store.begin(&path, size, self.chunk_size, sparse).map_err(|e| journal_failure(&e))?;
        let opened = Arc::new(opened);
        *part = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Forgets a file. What was staged of it is returned.
    fn release(&self, id: u64) -> Option<Staged> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).retain(|(file, _), _| *file != id);
        match self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&id)? {
            Slot::Small(part) => Some(Staged::Small(part)),
            Slot::Large(slot) => slot.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Staged::Part),
        }
    }

    fn evidence(&self, method: &str, medium: &str, cached: bool, start: SystemTime, end: SystemTime) -> Evidence {
        Evidence {
            method: method.to_owned(),
            medium: medium.to_owned(),
            cached,
            host: self.host.clone(),
            program: super::program().to_owned(),
            start_ns: nanos(start),
            end_ns: nanos(end),
        }
    }
}

fn nanos(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_nanos()).ok()).unwrap_or(0)
}

/// This machine's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn disk_failure(error: &DiskError) -> (Class, String) {
    (Class::Destination, error.to_string())
}

pub(super) fn journal_failure(error: &JournalError) -> (Class, String) {
    let class = match error {
        JournalError::Overtaken { .. } => Class::Overtaken,
        _ => Class::Destination,
    };
    (class, error.to_string())
}

pub(super) fn job_failure((class, text): (Class, String)) -> JobError {
    JobError::new(class_of(class), text)
}

/// Drives a receiving session to its end. The machine and the destination must be installed.
pub(super) async fn drive(
    session: &Arc<Session>,
    destination: &Arc<Destination>,
    observer: &Arc<dyn Observer>,
    reconnect: Duration,
) -> Result<(), JobError> {
    let (prepare_tx, prepare_rx) = mpsc::unbounded_channel();
    let (store_tx, store_rx) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(prepare_pages(Arc::clone(session), Arc::clone(destination), prepare_rx));
    tasks.spawn(keep_store(Arc::clone(session), Arc::clone(destination), store_rx));
    let mut ticker = tokio::time::interval(Duration::from_millis(200));
    let (mut shown, mut fenced) = (Instant::now(), Instant::now());
    let mut over = false;
    let result = loop {
        let changed = session.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        // One look at both: a peer that was told that all is done may leave, and what its absence breaks comes later.
        let (actions, events, finished, failure, progress) = {
            let now = session.now();
            let mut state = session.lock();
            let failure = state.failure.clone();
            let links = u32::try_from(state.links.len()).unwrap_or(u32::MAX);
            let Machine::Receiver(receiver) = &mut state.machine else {
                break Err(JobError::new(FailureClass::Bug, "no receiving machine"));
            };
            receiver.handle_timeout(now);
            let actions: Vec<_> = std::iter::from_fn(|| receiver.poll_action()).collect();
            let events: Vec<_> = std::iter::from_fn(|| receiver.poll_event()).collect();
            let s = receiver.stats();
            let progress = Progress {
                entries_done: s.entries_done,
                entries_found: s.entries_found,
                bytes_done: s.bytes_held,
                bytes_durable: s.bytes_durable,
                bytes_found: s.bytes_found,
                scan_complete: receiver.is_scanned(),
                links,
            };
            (actions, events, receiver.is_finished(), failure, progress)
        };
        for event in events {
            report(observer, event);
        }
        for action in actions {
            match action {
                Action::Prepare { first, entries } => {
                    let _ = prepare_tx.send((first, entries));
                }
                Action::Compare { file } => {
                    tasks.spawn(compare(Arc::clone(session), Arc::clone(destination), file));
                }
                Action::ReadHeld { file } => {
                    tasks.spawn(read_held(Arc::clone(session), Arc::clone(destination), file));
                }
                Action::Hole { file, first, count } => {
                    tasks.spawn(write_hole(Arc::clone(session), Arc::clone(destination), file, first, count));
                }
                Action::Release { file, discard } => {
                    if let Some(staged) = destination.release(file)
                        && discard
                    {
                        let _ = store_tx.send(Task::Discard(staged));
                    }
                }
                other => {
                    let _ = store_tx.send(Task::Action(other));
                }
            }
        }
        while let Some(ended) = tasks.try_join_next() {
            if ended.is_err() {
                session.fail(JobError::new(FailureClass::Bug, "a task of the receiving end ended badly"));
            }
        }
        if finished {
            observer.progress(&progress);
            break Ok(());
        }
        if let Some(failure) = failure {
            break Err(failure);
        }
        if over {
            break Err(JobError::new(FailureClass::Network, "the session ended early"));
        }
        if let Some((lost, why)) = session.lost_for()
            && lost > reconnect
        {
            break Err(super::no_link(lost, why.as_deref()));
        }
        if shown.elapsed() >= Duration::from_millis(200) {
            shown = Instant::now();
            observer.progress(&progress);
            if fenced.elapsed() >= FENCE_EVERY {
                fenced = Instant::now();
                let asked = Arc::clone(destination);
                if let Ok(Err(error)) = spawn_blocking(move || asked.store.check_fence()).await {
                    break Err(job_failure(journal_failure(&error)));
                }
            }
            // A run whose peer is gone must not keep the next one from its parts.
            if progress.links == 0 {
                let asked = Arc::clone(destination);
                if spawn_blocking(move || asked.store.is_wanted()).await.unwrap_or(false) {
                    break Err(JobError::new(
                        FailureClass::Overtaken,
                        "another run has asked for the parts of this one",
                    ));
                }
            }
        }
        tokio::select! {
            () = changed => {}
            _ = ticker.tick() => {}
            () = session.over.cancelled() => over = true,
        }
    };
    // What was verified and written stays useful to the next attempt only if it is durable and known.
    if result.is_err() && destination.store.poisoned().is_none() {
        session.with_receiver(crate::protocol::Receiver::sync_now);
        while let Some(Some(action)) = session.with_receiver(crate::protocol::Receiver::poll_action) {
            if matches!(action, Action::Sync { .. }) {
                let _ = store_tx.send(Task::Action(action));
            }
        }
    }
    drop(prepare_tx);
    drop(store_tx);
    let quiet = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(10), quiet).await.is_err() {
        tasks.shutdown().await;
    }
    let ending = Arc::clone(destination);
    let whole = result.is_ok() && session.with_receiver_quietly(|r| r.failed()) == Some(0);
    let ended = spawn_blocking(move || {
        ending.files.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *ending.receipts.lock().unwrap_or_else(PoisonError::into_inner) = None;
        ending.parked.lock().unwrap_or_else(PoisonError::into_inner).frames.clear();
        ending.pieces.lock().unwrap_or_else(PoisonError::into_inner).clear();
        ending.store.finish()?;
        if whole {
            ending.forget_new_name()?;
        }
        match ending.root_meta.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(meta) => Ok(ending.root.set_metadata(&RelPath::root(), &meta)?),
            None => Ok::<_, JournalError>(()),
        }
    })
    .await;
    match (result, ended) {
        (Ok(()), Ok(Err(error))) => {
            observer.warning(&format!("the folder of parts could not be cleaned: {error}"));
            Ok(())
        }
        (result, _) => result,
    }
}

fn report(observer: &Arc<dyn Observer>, event: ReceiverEvent) {
    match event {
        ReceiverEvent::Done(entry, receipt) => observer.file(&FileReport {
            path: entry.path.as_bytes().to_vec(),
            size: receipt.size,
            digest: receipt.digest,
            action: reported(receipt.done),
            evidence: receipt.evidence,
            modified_us: entry.meta.modified_us(),
        }),
        ReceiverEvent::Failed(entry, class, text) => observer.file(&FileReport {
            path: entry.path.as_bytes().to_vec(),
            size: entry.size(),
            digest: None,
            action: Reported::Failed { class: class_of(class), text },
            evidence: Vec::new(),
            modified_us: entry.meta.modified_us(),
        }),
    }
}
