//! The sending driver: walks the sources, reads and hashes what the machine asks for, and hands it to links.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    Action as Reported, FailureClass, FileReport, JobError, Observer, Progress,
    link::{LinkError, Outlet, gather_control},
    pace::Pace,
    session::{Machine, Session, class_of, wire_class},
    walk::{self, Walk},
};
use crate::{
    buf::Buffer,
    chunk::{ChunkSize, ChunkValue, Digest, RelPath, chunk_value},
    disk::{DiskError, DiskErrorKind, Root, SourceFile},
    net::Transport,
    protocol::{
        Class, DATA_HEAD_BYTES, DataHead, Done, Entry, EntryKind, FRAME_HEADER_BYTES, FrameHeader, FrameKind, LinkId,
        MAX_PACK_FILES, Meta, Sender, SenderEvent, Verdict, Work, encode_pack_head,
    },
};

/// Chunks in flight on one QUIC connection unless the operator says otherwise.
const QUIC_STREAMS: usize = 12;
/// Frames being read ahead for one ordered stream: one is written while the next is read and hashed.
const MAIN_FRAMES: usize = 2;
/// How many entries the walk may be ahead.
const WALK_AHEAD: usize = 2048;

/// What a sending end reads: the sources, and the files open now.
#[derive(Debug)]
pub(super) struct Sources {
    roots: Vec<(PathBuf, Root)>,
    // Which root a top-level name lives in, where there are several roots.
    tops: Mutex<HashMap<Vec<u8>, usize>>,
    open: Mutex<HashMap<u64, Arc<SourceFile>>>,
    pace: Pace,
    streams: Option<usize>,
    // What each file must read as, where that is known.
    expected: Option<Digest>,
    /// Links to files that were seen before become separate files: how many.
    hard_links: AtomicU64,
    skipped: AtomicU64,
}

/// Figures of a sending driver that no machine knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SourceFigures {
    /// Hard links that became separate files.
    pub hard_links: u64,
    /// Entries that are neither files, directories nor links.
    pub skipped: u64,
}

impl Sources {
    /// Opens the roots of a walk.
    pub(super) fn open(
        walk: &Walk,
        pace: Pace,
        streams: Option<usize>,
        expected: Option<Digest>,
    ) -> Result<Self, JobError> {
        let roots = walk
            .roots()
            .iter()
            .map(|r| Ok((r.path.clone(), Root::open(&r.path).map_err(|e| source_error(&e))?)))
            .collect::<Result<_, JobError>>()?;
        Ok(Self {
            roots,
            tops: Mutex::default(),
            open: Mutex::default(),
            pace,
            streams,
            expected,
            hard_links: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        })
    }

    /// Figures by value.
    pub(super) fn figures(&self) -> SourceFigures {
        SourceFigures {
            hard_links: self.hard_links.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }

    fn root_of(&self, path: &RelPath) -> &Root {
        let index = match (self.roots.len(), path.first()) {
            (1, _) | (_, None) => 0,
            (_, Some(top)) => self.tops.lock().unwrap_or_else(PoisonError::into_inner).get(top).copied().unwrap_or(0),
        };
        &self.roots[index.min(self.roots.len() - 1)].1
    }

    fn file(&self, id: u64, path: &RelPath, size: u64) -> Result<Arc<SourceFile>, (Class, String)> {
        if let Some(file) = self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(Arc::clone(file));
        }
        let file = self.open_now(path, size)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(open.entry(id).or_insert_with(|| Arc::new(file))))
    }

    fn open_now(&self, path: &RelPath, size: u64) -> Result<SourceFile, (Class, String)> {
        let file = SourceFile::open(self.root_of(path), path).map_err(|e| (Class::Source, e.to_string()))?;
        let found = file.identity().size;
        if found != size {
            return Err((
                Class::Source,
                format!(
                    "{path}: had {size} bytes when it was listed and has {found} now; send it again when it is quiet"
                ),
            ));
        }
        Ok(file)
    }

    fn close(&self, id: u64) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// The error that a failing source means for the job.
pub(super) fn source_error(error: &DiskError) -> JobError {
    let class = if error.kind() == DiskErrorKind::TooManyOpen { FailureClass::Bug } else { FailureClass::Source };
    JobError::new(class, error.to_string())
}

fn convert(found: walk::Found, sources: &Sources) -> Option<Entry> {
    match found {
        walk::Found::Entry(e) => {
            if let Some(top) = e.path.first()
                && sources.roots.len() > 1
            {
                let mut tops = sources.tops.lock().unwrap_or_else(PoisonError::into_inner);
                if !tops.contains_key(top) {
                    tops.insert(top.to_vec(), e.root);
                }
            }
            let meta = Meta {
                mode: e.meta.mode & 0o7777,
                mtime_s: e.meta.mtime.seconds,
                mtime_ns: e.meta.mtime.nanoseconds.min(999_999_999),
                uid: e.meta.uid,
                gid: e.meta.gid,
            };
            let kind = match e.kind {
                walk::Kind::Dir => EntryKind::Dir,
                walk::Kind::DirEnd => EntryKind::DirEnd,
                walk::Kind::Symlink { target } => EntryKind::Symlink { target },
                walk::Kind::File => {
                    if e.meta.nlink > 1 {
                        sources.hard_links.fetch_add(1, Ordering::Relaxed);
                    }
                    EntryKind::File { size: e.meta.size, sparse: e.meta.is_sparse(), expected: sources.expected }
                }
            };
            Some(Entry { path: e.path, meta, kind })
        }
        walk::Found::Skipped { path, .. } => {
            sources.skipped.fetch_add(1, Ordering::Relaxed);
            let path = RelPath::new(path).unwrap_or_default();
            Some(Entry { path, meta: Meta::default(), kind: EntryKind::Skipped })
        }
        walk::Found::Failed { path, class, text } => {
            // A path that cannot be told on the wire still counts; its text names it.
            let path = RelPath::new(path).unwrap_or_default();
            Some(Entry { path, meta: Meta::default(), kind: EntryKind::Failed { class: wire_class(class), text } })
        }
    }
}

/// Walks the sources and feeds the machine, as fast as its window allows.
async fn feed(session: Arc<Session>, sources: Arc<Sources>, mut walk: Walk) -> Result<(), JobError> {
    let (tx, mut rx) = mpsc::channel::<Entry>(WALK_AHEAD);
    let converting = Arc::clone(&sources);
    let walker = spawn_blocking(move || {
        for found in walk.by_ref() {
            if let Some(entry) = convert(found, &converting)
                && tx.blocking_send(entry).is_err()
            {
                return;
            }
        }
    });
    loop {
        let entry = match rx.try_recv() {
            Ok(entry) => Some(entry),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                // The walk is slower than the links: what is there goes out now.
                session.with_sender(Sender::flush_page);
                rx.recv().await
            }
        };
        let Some(entry) = entry else { break };
        loop {
            let changed = session.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match session.with_sender_quietly(|s| s.wants_entries()) {
                Some(true) | None => break,
                Some(false) => {
                    session.with_sender(Sender::flush_page);
                    changed.await;
                }
            }
            if session.over.is_cancelled() {
                return Ok(());
            }
        }
        if session.with_sender_quietly(|s| s.handle_entry(entry)) == Some(true) {
            session.pump_now();
        }
    }
    if walker.await.is_err() {
        return Err(JobError::new(FailureClass::Bug, "the walk of the sources ended badly"));
    }
    session.with_sender(Sender::handle_end);
    Ok(())
}

/// Drives a sending session to its end. The machine must be installed.
pub(super) async fn drive(
    session: &Arc<Session>,
    sources: &Arc<Sources>,
    walk: Walk,
    observer: &Arc<dyn Observer>,
    reconnect: Duration,
) -> Result<(), JobError> {
    session.set_sources(Arc::clone(sources));
    let mut feeding = tokio::spawn(feed(Arc::clone(session), Arc::clone(sources), walk));
    let mut fed = false;
    let mut over = false;
    let mut ticker = tokio::time::interval(Duration::from_millis(200));
    let mut shown = Instant::now();
    let result = loop {
        let changed = session.changed();
        tokio::pin!(changed);
        changed.as_mut().enable();
        // One look at both: a peer that was told that all is done may leave, and what its absence breaks comes later.
        let (mut events, finished, failure, progress) = {
            let mut state = session.lock();
            let failure = state.failure.clone();
            let links = u32::try_from(state.links.len()).unwrap_or(u32::MAX);
            let Machine::Sender(sender) = &mut state.machine else {
                break Err(JobError::new(FailureClass::Bug, "no sending machine"));
            };
            let events: Vec<_> = std::iter::from_fn(|| sender.poll_event()).collect();
            let s = sender.stats();
            let progress = Progress {
                entries_done: s.entries_done,
                entries_found: s.entries_found,
                bytes_done: s.bytes_held,
                bytes_durable: s.bytes_durable,
                bytes_found: s.bytes_found,
                scan_complete: sender.is_scanned(),
                links,
            };
            (events, sender.is_finished(), failure, progress)
        };
        for event in events.drain(..) {
            report(observer, event, sources);
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
        }
        tokio::select! {
            () = changed => {}
            _ = ticker.tick() => {}
            () = session.over.cancelled() => over = true,
            fed_now = &mut feeding, if !fed => {
                fed = true;
                match fed_now {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break Err(error),
                    Err(_) => break Err(JobError::new(FailureClass::Bug, "reading the sources ended badly")),
                }
            }
        }
    };
    feeding.abort();
    result
}

fn report(observer: &Arc<dyn Observer>, event: SenderEvent, sources: &Sources) {
    match event {
        SenderEvent::Done(entry, receipt) => {
            sources.close(receipt.id);
            observer.file(&FileReport {
                path: entry.path.as_bytes().to_vec(),
                size: receipt.size,
                digest: receipt.digest,
                action: reported(receipt.done),
                evidence: receipt.evidence,
                modified_us: entry.meta.modified_us(),
            });
        }
        SenderEvent::Failed(entry, class, text) => observer.file(&FileReport {
            path: entry.path.as_bytes().to_vec(),
            size: entry.size(),
            digest: None,
            action: Reported::Failed { class: class_of(class), text },
            evidence: Vec::new(),
            modified_us: entry.meta.modified_us(),
        }),
    }
}

/// What a receipt's word means to whoever watches.
pub(super) fn reported(done: Done) -> Reported {
    match done {
        Done::Copied => Reported::Copied,
        Done::Same => Reported::Same,
        Done::Trusted => Reported::Trusted,
        Done::Made => Reported::Made,
        Done::Skipped => Reported::Skipped,
        Done::WouldCopy => Reported::WouldCopy,
    }
}

/// Sends data by one link until the link or the session ends. Does nothing where this end receives.
pub(super) async fn run_outlet(
    session: Arc<Session>,
    link: LinkId,
    transport: Transport,
    outlet: Outlet,
) -> Result<(), LinkError> {
    let Some(sources) = session.sources().await else { return Ok(()) };
    let frames = match (&outlet, transport) {
        (Outlet::Main(_), _) => MAIN_FRAMES,
        (Outlet::Lanes(_), _) => sources.streams.unwrap_or(QUIC_STREAMS),
    };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..frames.clamp(1, 256) {
        tasks.spawn(send_frames(Arc::clone(&session), Arc::clone(&sources), link, outlet.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(result) => result?,
            Err(_) => return Err(LinkError::Left),
        }
    }
    Ok(())
}

/// A claimed piece of work. Whatever is not dealt with when its task ends, or is dropped, goes back to the machine.
struct Claim<'a> {
    session: &'a Session,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    ChunkClaimed { file: u64, chunk: u64 },
    ChunkRead { file: u64, chunk: u64 },
    PackClaimed { pack: u64 },
    CheckClaimed { file: u64 },
    // Told to the machine; if it was handed to a link, the link's end gives it back.
    Done,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let stage = self.stage;
        if !matches!(stage, Stage::Done) {
            self.session.with_sender(|s| match stage {
                Stage::ChunkClaimed { file, chunk } => s.handle_chunk_unread(file, chunk),
                Stage::ChunkRead { file, chunk } => s.handle_chunk_unsent(file, chunk),
                Stage::PackClaimed { pack } => s.handle_pack_unsent(pack),
                Stage::CheckClaimed { file } => s.handle_unchecked(file),
                Stage::Done => {}
            });
        }
    }
}

async fn send_frames(
    session: Arc<Session>,
    sources: Arc<Sources>,
    link: LinkId,
    outlet: Outlet,
) -> Result<(), LinkError> {
    loop {
        // Nothing is claimed before there is a buffer for it: an empty pool is the back-pressure.
        let mut buffer = Some(session.pool.acquire().await);
        let work = loop {
            let changed = session.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(work) = session.claim() {
                break work;
            }
            // An idle frame must not keep a buffer from the others.
            buffer = None;
            if session.over.is_cancelled() {
                return Ok(());
            }
            changed.await;
        };
        let stage = match &work {
            Work::Pack { pack, .. } => Stage::PackClaimed { pack: *pack },
            Work::Chunk { file, chunk } => Stage::ChunkClaimed { file: *file, chunk: *chunk },
            Work::Check { file } => Stage::CheckClaimed { file: *file },
        };
        let mut claim = Claim { session: &session, stage };
        let buffer = match buffer {
            Some(buffer) => buffer,
            None => session.pool.acquire().await,
        };
        match work {
            Work::Pack { pack, files } => send_pack(&mut claim, &sources, link, &outlet, pack, files, buffer).await?,
            Work::Chunk { file, chunk } => send_chunk(&mut claim, &sources, link, &outlet, file, chunk, buffer).await?,
            Work::Check { file } => check(&mut claim, &sources, file).await,
        }
    }
}

async fn check(claim: &mut Claim<'_>, sources: &Arc<Sources>, id: u64) {
    let session = claim.session;
    let Some(Some(entry)) = session.with_sender_quietly(|s| s.entry(id).cloned()) else { return };
    let reading = Arc::clone(sources);
    let checked = spawn_blocking(move || {
        let file = reading.file(id, &entry.path, entry.size())?;
        file.check_unchanged().map_err(|e| (Class::Source, e.to_string()))
    })
    .await;
    sources.close(id);
    claim.stage = Stage::Done;
    match checked {
        Ok(Ok(())) => session.with_sender(|s| s.handle_checked(id)),
        Ok(Err((class, text))) => session.with_sender(|s| s.handle_read_failed(id, class, text)),
        Err(_) => {
            session.with_sender(|s| s.handle_read_failed(id, Class::Bug, "checking the source ended badly".into()))
        }
    };
}

enum ChunkRead {
    Data(Buffer, ChunkValue),
    Hole(ChunkValue),
}

fn read_chunk(
    sources: &Sources,
    entry: &Entry,
    id: u64,
    chunk: u64,
    size: ChunkSize,
    mut buffer: Buffer,
) -> Result<ChunkRead, (Class, String)> {
    let EntryKind::File { size: file_len, sparse, .. } = entry.kind else {
        return Err((Class::Bug, "not a file".to_owned()));
    };
    let file = sources.file(id, &entry.path, file_len)?;
    let failed = |e: DiskError| (Class::Source, e.to_string());
    let range = size.range(chunk, file_len).ok_or_else(|| (Class::Bug, "no such chunk".to_owned()))?;
    buffer.set_len(usize::try_from(range.len).map_err(|_| (Class::Bug, "chunk too long".to_owned()))?);
    let hole = sparse && file.next_data(range.start).map_err(failed)?.is_none_or(|extent| extent.start >= range.end());
    if hole {
        buffer.fill(0);
        return Ok(ChunkRead::Hole(chunk_value(size, chunk, file_len, &buffer)));
    }
    file.read_exact_at(&mut buffer, range.start).map_err(failed)?;
    let value = chunk_value(size, chunk, file_len, &buffer);
    Ok(ChunkRead::Data(buffer, value))
}

async fn send_chunk(
    claim: &mut Claim<'_>,
    sources: &Arc<Sources>,
    link: LinkId,
    outlet: &Outlet,
    file: u64,
    chunk: u64,
    buffer: Buffer,
) -> Result<(), LinkError> {
    let session = claim.session;
    let chunk_size = session.lock().chunk_size;
    let Some(Some(entry)) = session.with_sender_quietly(|s| s.entry(file).cloned()) else { return Ok(()) };
    let reading = Arc::clone(sources);
    let read = spawn_blocking(move || read_chunk(&reading, &entry, file, chunk, chunk_size, buffer)).await;
    claim.stage = Stage::Done;
    let (buffer, value) = match read {
        Ok(Ok(ChunkRead::Data(buffer, value))) => (buffer, value),
        Ok(Ok(ChunkRead::Hole(value))) => {
            session.with_sender(|s| s.handle_hole_read(file, chunk, value));
            return Ok(());
        }
        Ok(Err((class, text))) => {
            sources.close(file);
            session.with_sender(|s| s.handle_read_failed(file, class, text));
            return Ok(());
        }
        Err(_) => {
            session.with_sender(|s| s.handle_read_failed(file, Class::Bug, "reading ended badly".into()));
            return Ok(());
        }
    };
    if session.with_sender(|s| s.handle_chunk_read(file, chunk, value)) != Some(Verdict::Send) {
        return Ok(());
    }
    claim.stage = Stage::ChunkRead { file, chunk };
    sources.pace.take(buffer.len()).await;
    if !session.mark_sent(link, |s| s.handle_chunk_sent(file, chunk, link)) {
        return Err(LinkError::Left);
    }
    claim.stage = Stage::Done;
    let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let head = DataHead { file, chunk, offset: 0, len, value };
    let mut front = [0; FRAME_HEADER_BYTES + DATA_HEAD_BYTES];
    let body_bytes = DATA_HEAD_BYTES + buffer.len();
    front[..FRAME_HEADER_BYTES].copy_from_slice(&FrameHeader { kind: FrameKind::Data, body_bytes }.encode());
    front[FRAME_HEADER_BYTES..].copy_from_slice(&head.encode());
    transmit(session, link, outlet, &front, buffer.freeze()).await
}

async fn send_pack(
    claim: &mut Claim<'_>,
    sources: &Arc<Sources>,
    link: LinkId,
    outlet: &Outlet,
    pack: u64,
    files: Vec<(u64, u64)>,
    buffer: Buffer,
) -> Result<(), LinkError> {
    let session = claim.session;
    let entries: Vec<(u64, Entry)> = session
        .with_sender_quietly(|s| files.iter().filter_map(|f| Some((f.0, s.entry(f.0)?.clone()))).collect())
        .unwrap_or_default();
    let reading = Arc::clone(sources);
    let read = spawn_blocking(move || read_pack(&reading, pack, &entries, buffer)).await;
    let Ok((front, buffer, failed)) = read else {
        claim.stage = Stage::Done;
        for (file, _) in files {
            session.with_sender(|s| s.handle_read_failed(file, Class::Bug, "reading ended badly".into()));
        }
        return Ok(());
    };
    for (file, class, text) in failed {
        session.with_sender(|s| s.handle_read_failed(file, class, text));
    }
    sources.pace.take(buffer.len()).await;
    if !session.mark_sent(link, |s| s.handle_pack_sent(pack, link)) {
        return Err(LinkError::Left);
    }
    claim.stage = Stage::Done;
    transmit(session, link, outlet, &front, buffer.freeze()).await
}

type PackRead = (Vec<u8>, Buffer, Vec<(u64, Class, String)>);

fn read_pack(sources: &Sources, pack: u64, entries: &[(u64, Entry)], mut buffer: Buffer) -> PackRead {
    let mut table: Vec<(u64, u32, Digest)> = Vec::with_capacity(entries.len().min(MAX_PACK_FILES));
    let mut failed = Vec::new();
    let mut filled = 0;
    for (id, entry) in entries {
        let read = (|| {
            let size = entry.size();
            let file = sources.open_now(&entry.path, size)?;
            let len = usize::try_from(size).map_err(|_| (Class::Bug, "file too long for a pack".to_owned()))?;
            if filled + len > buffer.capacity() {
                return Err((Class::Bug, "pack too long for a buffer".to_owned()));
            }
            buffer.set_len(filled + len);
            let into = &mut buffer[filled..];
            file.read_exact_at(into, 0).map_err(|e| (Class::Source, e.to_string()))?;
            let digest = Digest::of(into);
            file.check_unchanged().map_err(|e| (Class::Source, e.to_string()))?;
            Ok((len, digest))
        })();
        match read {
            Ok((len, digest)) => {
                filled += len;
                table.push((*id, u32::try_from(len).unwrap_or(u32::MAX), digest));
            }
            Err((class, text)) => failed.push((*id, class, text)),
        }
    }
    buffer.set_len(filled);
    let head = encode_pack_head(pack, &table);
    let header = FrameHeader { kind: FrameKind::Pack, body_bytes: head.len() + filled };
    let mut front = header.encode().to_vec();
    front.extend_from_slice(&head);
    (front, buffer, failed)
}

async fn transmit(
    session: &Session,
    link: LinkId,
    outlet: &Outlet,
    front: &[u8],
    payload: Bytes,
) -> Result<(), LinkError> {
    match outlet {
        Outlet::Lanes(lanes) => {
            let mut lane = lanes.open().await?;
            lane.send(front, Some(payload)).await?;
            lane.finish().await?;
        }
        Outlet::Main(main) => {
            let mut main = main.lock().await;
            let control = gather_control(session, link)?;
            if !control.is_empty() {
                main.send(&control, None).await?;
            }
            main.send(front, Some(payload)).await?;
            main.flush().await?;
        }
    }
    Ok(())
}
