//! What is there already, hashed again: parts, files under their final name, and the zeros of holes.

use super::{Destination, HELD_BATCH, disk_failure, journal_failure};
use crate::buf::Buffer;
use crate::chunk::{ChunkValue, Digest, chunk_value};
use crate::disk::{DiskError, SourceFile};
use crate::engine::session::Session;
use crate::engine::{FailureClass, JobError};
use crate::protocol::Class;
use std::sync::{Arc, PoisonError};
use tokio::task::spawn_blocking;

pub(super) async fn compare(session: Arc<Session>, destination: Arc<Destination>, file: u64) {
    let Ok(_permit) = destination.hashers.acquire().await else { return };
    let Some(Some(entry)) = session.with_receiver_quietly(|r| r.entry(file).cloned()) else { return };
    let on = Arc::clone(&destination);
    let buffer = session.pool.acquire().await;
    let over = session.over.clone();
    let read = spawn_blocking(move || {
        let path = on.local(&entry.path)?;
        let source = SourceFile::open(&on.root, &path).map_err(|e| disk_failure(&e))?;
        let mut replaced = on.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.entry(file).or_insert_with(|| source.identity());
        drop(replaced);
        let root = hash_file(&source, buffer, &over).map_err(|e| disk_failure(&e))?;
        Ok::<_, (Class, String)>(root)
    })
    .await;
    match read {
        Ok(Ok(root)) => {
            session.with_receiver(|r| r.handle_compared(file, root));
        }
        Ok(Err(failure)) => destination.failed(&session, file, failure),
        Err(_) => session.fail(JobError::new(FailureClass::Bug, "comparing ended badly")),
    }
}

pub(super) fn hash_file(
    source: &SourceFile,
    mut buffer: Buffer,
    over: &tokio_util::sync::CancellationToken,
) -> Result<Digest, DiskError> {
    let mut hasher = blake3::Hasher::new();
    let size = source.identity().size;
    let mut at = 0;
    while at < size && !over.is_cancelled() {
        let n = usize::try_from(size - at).unwrap_or(usize::MAX).min(buffer.capacity());
        buffer.set_len(n);
        source.read_exact_at(&mut buffer, at)?;
        hasher.update(&buffer);
        at += n as u64;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Hashes again what a part holds, and tells the sender batch by batch; what a live writer holds is copied first.
pub(super) async fn read_held(session: Arc<Session>, destination: Arc<Destination>, file: u64) {
    let Ok(_permit) = destination.hashers.acquire().await else { return };
    let Some(Some(entry)) = session.with_receiver_quietly(|r| r.entry(file).cloned()) else { return };
    let mut buffer = session.pool.acquire().await;
    let (on, told) = (Arc::clone(&destination), Arc::clone(&session));
    let read = spawn_blocking(move || {
        if let Some(whole) = on.adopt_whole(file, &entry)? {
            told.with_receiver(|r| r.handle_held(file, 0, whole, true));
            return Ok(());
        }
        let part = on.part(file, &entry)?;
        let mut batch: Vec<ChunkValue> = Vec::new();
        let mut first = 0;
        buffer.set_len(on.chunk_size.buffer_bytes().min(buffer.capacity()));
        let copied = part.copy_seed(&mut buffer).map_err(|e| journal_failure(&e))?;
        let held = part.held().iter().flat_map(|r| r.first..r.first + r.count).chain(copied.iter().map(|c| c.0));
        for index in held {
            if told.over.is_cancelled() {
                return Ok(());
            }
            // Bytes that cannot be read are as good as missing.
            let Ok(Some(value)) = part.hash_chunk(index, &mut buffer) else { continue };
            if !batch.is_empty() && (first + batch.len() as u64 != index || batch.len() >= HELD_BATCH) {
                let values = std::mem::take(&mut batch);
                told.with_receiver(|r| r.handle_held(file, first, values, false));
            }
            if batch.is_empty() {
                first = index;
            }
            batch.push(value);
        }
        told.with_receiver(|r| r.handle_held(file, first, batch, true));
        Ok::<_, (Class, String)>(())
    })
    .await;
    match read {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => destination.failed(&session, file, failure),
        Err(_) => session.fail(JobError::new(FailureClass::Bug, "reading a part ended badly")),
    }
}

pub(super) async fn write_hole(
    session: Arc<Session>,
    destination: Arc<Destination>,
    file: u64,
    first: u64,
    count: u64,
) {
    let Ok(_permit) = destination.hashers.acquire().await else { return };
    let Some(Some(entry)) = session.with_receiver_quietly(|r| r.entry(file).cloned()) else { return };
    let mut buffer = session.pool.acquire().await;
    let (on, told) = (Arc::clone(&destination), Arc::clone(&session));
    let written = spawn_blocking(move || {
        let size = entry.size();
        let part = on.part(file, &entry)?;
        buffer.set_len(on.chunk_size.buffer_bytes().min(buffer.capacity()));
        buffer.fill(0);
        for chunk in first..first.saturating_add(count) {
            let Some(range) = on.chunk_size.range(chunk, size) else { break };
            if told.over.is_cancelled() || told.with_receiver_quietly(|r| r.wants_chunk(file, chunk)) != Some(true) {
                continue;
            }
            let Some(zeros) = usize::try_from(range.len).ok().and_then(|n| buffer.get(..n)) else { break };
            let value = chunk_value(on.chunk_size, chunk, size, zeros);
            part.write_hole(range.start, range.len).map_err(|e| journal_failure(&e))?;
            let now = told.now();
            told.with_receiver(|r| r.handle_written(file, chunk, value, now));
        }
        Ok::<_, (Class, String)>(())
    })
    .await;
    match written {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => destination.failed(&session, file, failure),
        Err(_) => session.fail(JobError::new(FailureClass::Bug, "writing a hole ended badly")),
    }
}
