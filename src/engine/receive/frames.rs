//! Bytes from links: verified, written, parked or put together from pieces.

use super::{Assembly, Destination, ParkedFrame, Slot, job_failure, journal_failure};
use crate::buf::Buffer;
use crate::chunk::{ChunkValue, Digest, chunk_value};
use crate::engine::link::LinkError;
use crate::engine::session::Session;
use crate::engine::{FailureClass, JobError};
use crate::journal::Staged;
use crate::net::RecvHalf;
use crate::protocol::{
    Admit, Class, DATA_HEAD_BYTES, DataHead, Entry, EntryKind, FrameHeader, FrameKind, ProtocolError, decode_pack,
};
use std::sync::{Arc, PoisonError};
use tokio::task::spawn_blocking;

/// Takes the body of a data or pack frame from a link.
pub(in crate::engine) async fn take_frame(
    session: &Arc<Session>,
    header: FrameHeader,
    from: &mut RecvHalf,
) -> Result<(), LinkError> {
    let Some(destination) = session.destination().await else {
        return Err(ProtocolError::PeerMisbehaved("it sends data to an end that does not receive").into());
    };
    match header.kind {
        FrameKind::Data => take_data(session, &destination, header, from).await,
        _ => take_pack(session, &destination, header, from).await,
    }
}

async fn skip(from: &mut RecvHalf, mut bytes: usize) -> Result<(), LinkError> {
    let mut scratch = vec![0; bytes.min(64 << 10)];
    while bytes > 0 {
        let n = bytes.min(scratch.len());
        from.read_exact(&mut scratch[..n]).await?;
        bytes -= n;
    }
    Ok(())
}

async fn take_data(
    session: &Arc<Session>,
    destination: &Arc<Destination>,
    header: FrameHeader,
    from: &mut RecvHalf,
) -> Result<(), LinkError> {
    if header.body_bytes <= DATA_HEAD_BYTES {
        return Err(ProtocolError::PeerMisbehaved("a data frame without data").into());
    }
    let mut head = [0; DATA_HEAD_BYTES];
    from.read_exact(&mut head).await?;
    let head = DataHead::decode(&head, header.body_bytes)?;
    let len = header.body_bytes - DATA_HEAD_BYTES;
    let admit = session.with_receiver(|r| r.admit(&head)).ok_or(LinkError::Left)??;
    match admit {
        Admit::Discard => return skip(from, len).await,
        Admit::Park if !destination.may_park(session) => {
            skip(from, len).await?;
            session.with_receiver(|r| r.handle_dropped(head.file, head.chunk));
            return Ok(());
        }
        Admit::Park | Admit::Accept { .. } => {}
    }
    let mut buffer = session.pool.acquire().await;
    buffer.set_len(len);
    from.read_exact(&mut buffer).await?;
    handle_data(session, destination, header, head, buffer)
}

pub(super) fn handle_data(
    session: &Arc<Session>,
    destination: &Arc<Destination>,
    header: FrameHeader,
    head: DataHead,
    buffer: Buffer,
) -> Result<(), LinkError> {
    let mut parked = destination.parked.lock().unwrap_or_else(PoisonError::into_inner);
    let admit = session.with_receiver_quietly(|r| r.admit(&head)).ok_or(LinkError::Left)??;
    let range = match admit {
        Admit::Accept { file_len, .. } => destination.chunk_size.range(head.chunk, file_len),
        // Under the lock of what is parked, so that the end of the preparation finds it.
        Admit::Park => {
            parked.frames.push((header, ParkedFrame::Data(head, buffer)));
            return Ok(());
        }
        Admit::Discard => return Ok(()),
    };
    drop(parked);
    let Some(whole_bytes) = range.and_then(|r| u32::try_from(r.len).ok()) else { return Ok(()) };
    let (head, buffer) = if head.len == whole_bytes {
        (head, buffer)
    } else {
        match destination.assemble(session, head, whole_bytes, buffer) {
            Some(buffer) => (DataHead { offset: 0, len: whole_bytes, ..head }, buffer),
            None => return Ok(()),
        }
    };
    let found = session.with_receiver(|r| (r.begin_chunk(head.file, head.chunk), r.entry(head.file).cloned()));
    if let Some((true, Some(entry))) = found {
        let (session, destination) = (Arc::clone(session), Arc::clone(destination));
        tokio::spawn(async move {
            let (file, chunk) = (head.file, head.chunk);
            let on = Arc::clone(&destination);
            let written = spawn_blocking(move || on.write_chunk(&entry, &head, &buffer)).await;
            match written {
                Ok(Ok(true)) => {
                    let now = session.now();
                    session.with_receiver(|r| r.handle_written(file, chunk, head.value, now));
                }
                Ok(Ok(false)) => {
                    tracing::warn!(file, chunk, "a chunk arrived damaged and is asked for again");
                    session.with_receiver(|r| r.handle_refused(file, chunk));
                }
                Ok(Err(failure)) => destination.failed(&session, file, failure),
                Err(_) => session.fail(JobError::new(FailureClass::Bug, "writing a chunk ended badly")),
            }
        });
    }
    Ok(())
}

impl Destination {
    /// Adds a piece to its chunk; the chunk, once it is whole.
    fn assemble(&self, session: &Session, head: DataHead, whole_bytes: u32, mut piece: Buffer) -> Option<Buffer> {
        let at = usize::try_from(head.offset).ok()?;
        let whole = usize::try_from(whole_bytes).ok()?;
        let key = (head.file, head.chunk);
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        // Another value than before: one of the two is wrong, and the later one may be the repair.
        if pieces.get(&key).is_some_and(|a| a.value != head.value) {
            pieces.remove(&key);
        }
        // Chunks in pieces hold their buffers; some must be left for what completes them.
        if !pieces.contains_key(&key) && pieces.len() >= 4.max(session.pool.available()) {
            drop(pieces);
            session.with_receiver(|r| r.handle_dropped(head.file, head.chunk));
            return None;
        }
        match pieces.get_mut(&key) {
            Some(assembly) => assembly.add(at, &piece),
            None => {
                let len = piece.len();
                piece.set_len(whole);
                piece.copy_within(..len, at);
                let mut assembly = Assembly { buffer: piece, value: head.value, have: Vec::new() };
                assembly.note(at, at + len);
                pieces.insert(key, assembly);
            }
        }
        if pieces.get(&key)?.is_whole() { pieces.remove(&key).map(|a| a.buffer) } else { None }
    }

    /// Half of the pool may wait for pages; the rest keeps the links moving, so that the pages can come.
    fn may_park(&self, session: &Session) -> bool {
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        parked.frames.len() < 4.max(session.pool.available())
    }

    /// A failure of one file fails that file; a failure of the store fails the attempt.
    pub(super) fn failed(&self, session: &Session, file: u64, (class, text): (Class, String)) {
        if class == Class::Overtaken || self.store.poisoned().is_some() {
            session.fail(job_failure((class, text)));
        } else {
            session.with_receiver(|r| r.handle_failed(file, class, text));
        }
    }

    /// Verifies a chunk and writes it; false if it is damaged.
    fn write_chunk(&self, entry: &Entry, head: &DataHead, data: &[u8]) -> Result<bool, (Class, String)> {
        let EntryKind::File { size, sparse, .. } = entry.kind else {
            return Err((Class::Bug, "a chunk of something that is no file".to_owned()));
        };
        let Some(range) = self.chunk_size.range(head.chunk, size) else { return Ok(false) };
        if chunk_value(self.chunk_size, head.chunk, size, data) != head.value {
            return Ok(false);
        }
        let part = self.part(head.file, entry)?;
        part.write_chunk(range.start, data, sparse).map_err(|e| journal_failure(&e))?;
        Ok(true)
    }

    /// A small file that an earlier attempt had whole and durable, hashed again: the value of its one chunk.
    pub(super) fn adopt_whole(&self, id: u64, entry: &Entry) -> Result<Option<Vec<ChunkValue>>, (Class, String)> {
        if entry.size() > self.chunk_size.bytes() {
            return Ok(None);
        }
        let path = self.local(&entry.path)?;
        let Some(part) = self.store.adopt_small(&path).map_err(|e| journal_failure(&e))? else { return Ok(None) };
        if part.size() != entry.size() {
            self.store.discard(&Staged::Small(part)).map_err(|e| journal_failure(&e))?;
            return Ok(None);
        }
        // The value of a file's only chunk is its root.
        let values = if part.size() == 0 { Vec::new() } else { vec![ChunkValue(part.digest().0)] };
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Slot::Small(part));
        Ok(Some(values))
    }

    fn write_packed(&self, id: u64, entry: &Entry, digest: Digest, data: &[u8]) -> Result<bool, (Class, String)> {
        if Digest::of(data) != digest {
            return Ok(false);
        }
        let path = self.local(&entry.path)?;
        let part =
            self.store.write_small(&path, data, digest, &self.meta(&entry.meta)).map_err(|e| journal_failure(&e))?;
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Slot::Small(part));
        Ok(true)
    }
}

async fn take_pack(
    session: &Arc<Session>,
    destination: &Arc<Destination>,
    header: FrameHeader,
    from: &mut RecvHalf,
) -> Result<(), LinkError> {
    let mut buffer = session.pool.acquire().await;
    buffer.set_len(header.body_bytes);
    from.read_exact(&mut buffer).await?;
    handle_pack(session, destination, header, buffer)
}

pub(super) fn handle_pack(
    session: &Arc<Session>,
    destination: &Arc<Destination>,
    header: FrameHeader,
    buffer: Buffer,
) -> Result<(), LinkError> {
    let (pack, records) = decode_pack(&buffer)?;
    let mut parked = destination.parked.lock().unwrap_or_else(PoisonError::into_inner);
    let room = parked.frames.len() < 4.max(session.pool.available());
    // (record, entry) of every file to be written.
    let mut wanted = Vec::new();
    let whole = session
        .with_receiver(|r| {
            let early = records.iter().any(|x| r.is_early(x.file));
            if early {
                if !room {
                    for x in &records {
                        r.handle_dropped(x.file, u64::MAX);
                    }
                }
                return Ok(false);
            }
            for (index, x) in records.iter().enumerate() {
                if let Admit::Accept { .. } = r.admit_packed(x.file, x.data.len() as u64)?
                    && let Some(entry) = r.entry(x.file)
                {
                    wanted.push((index, entry.clone()));
                }
            }
            Ok::<_, ProtocolError>(true)
        })
        .ok_or(LinkError::Left)??;
    drop(records);
    if !whole {
        if room {
            parked.frames.push((header, ParkedFrame::Pack(buffer)));
        }
        return Ok(());
    }
    drop(parked);
    let (session, destination) = (Arc::clone(session), Arc::clone(destination));
    tokio::spawn(async move {
        let on = Arc::clone(&destination);
        let written = spawn_blocking(move || {
            // Decoded once before; the bytes have not changed since.
            let Ok((_, records)) = decode_pack(&buffer) else { return Vec::new() };
            let write = |(index, entry): (usize, Entry)| {
                let x = records.get(index)?;
                Some((x.file, x.digest, on.write_packed(x.file, &entry, x.digest, x.data)))
            };
            wanted.into_iter().filter_map(write).collect::<Vec<_>>()
        })
        .await;
        let Ok(written) = written else {
            return session.fail(JobError::new(FailureClass::Bug, "writing a pack ended badly"));
        };
        for (file, digest, result) in written {
            match result {
                Ok(true) => {
                    session.with_receiver_quietly(|r| r.handle_packed_written(file, digest));
                }
                Ok(false) => {
                    session.with_receiver(|r| r.handle_refused(file, u64::MAX));
                }
                Err(failure) => destination.failed(&session, file, failure),
            }
        }
        session.with_receiver(|r| r.handle_pack_done(pack));
    });
    Ok(())
}
