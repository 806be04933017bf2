use std::{fs::File, io, sync::Arc};

use aws_sdk_s3::{operation::get_object::GetObjectOutput, primitives::ByteStream};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{sleep, timeout};

use super::{
    S3, blocking,
    failure::{Refused, bug},
};
use crate::{
    archive::{ArchiveError, Progress},
    buf::Buffer,
    chunk::{ByteRange, ChunkSize, ChunkValue, Digest, RootBuilder, chunk_value},
    disk::write_sparse,
    model::ErrorClass,
};

/// What an object turned out to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Got {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// One object that is read: hashed, and written to a file where there is one.
struct Download<'a> {
    store: &'a S3,
    key: &'a str,
    etag: Option<String>,
    size: u64,
    into: Option<Arc<File>>,
    progress: &'a dyn Progress,
}

impl S3 {
    /// Reads an object by ranges side by side, each going on where its connection was lost. `None` if there is no such
    /// object.
    pub(super) async fn read(
        &self,
        key: &str,
        into: Option<Arc<File>>,
        progress: &dyn Progress,
    ) -> Result<Option<Got>, ArchiveError> {
        // The first range tells the size, and is all of most objects.
        let first = match self.get(key, ByteRange { start: 0, len: RANGE_BYTES }, None).await {
            Ok(first) => first,
            Err(refused) if refused.is_missing() => return Ok(None),
            Err(refused) if refused.is_past_end() => {
                let there = self.head(key).await?;
                let empty = |there: super::sums::Said| {
                    if there.size == 0 {
                        Ok(Got { digest: Digest::of(&[]), size: 0 })
                    } else {
                        Err(self.garbage(key, "it gives no bytes of an object that has some"))
                    }
                };
                return there.map(empty).transpose();
            }
            Err(refused) => return Err(self.unreadable(key, 0, refused).await),
        };
        let size = size_of(&first, 0).ok_or_else(|| self.garbage(key, "it did not say which bytes it gives"))?;
        if let Some(file) = &into {
            // Zeros are not written: a store does not say where a file had holes.
            file.set_len(size).map_err(|error| not_written(&error))?;
        }
        let download = Download { store: self, key, etag: first.e_tag, size, into, progress };
        let mut root = RootBuilder::new(ChunkSize::DEFAULT, size);
        let mut body = Some(first.body);
        let mut under_way = stream::iter((0..size).step_by(RANGE_STEP))
            .map(|start| download.range(start, body.take()))
            .buffer_unordered(self.settings.parallel_parts);
        while let Some(values) = under_way.try_next().await? {
            for (index, value) in values {
                root.insert(index, value);
                progress.chunk(index, value);
            }
        }
        drop(under_way);
        let digest = root.root().map_err(|error| bug(error.to_string()))?;
        Ok(Some(Got { digest, size }))
    }

    /// A small object as a whole. `None` if there is none.
    pub(super) async fn read_bytes(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, ArchiveError> {
        let mut delays = self.settings.limits.backoff.delays();
        loop {
            let answer = self.client.get_object().bucket(&self.settings.bucket).key(key).send().await;
            let answer = match answer.map_err(|e| Refused::new("read", self.shown(key), &e)) {
                Ok(answer) => answer,
                Err(refused) if refused.is_missing() => return Ok(None),
                Err(refused) => return Err(self.unreadable(key, 0, refused).await),
            };
            let wanted = answer.content_length.and_then(|n| u64::try_from(n).ok());
            let (mut bytes, mut body) = (Vec::new(), answer.body);
            let why = loop {
                match self.next(&mut body).await {
                    Ok(Some(more)) => bytes.extend_from_slice(&more),
                    Ok(None) if wanted.is_none_or(|n| n == bytes.len() as u64) => return Ok(Some(bytes)),
                    Ok(None) => break "the answer ended before its end".to_owned(),
                    Err(why) => break why,
                }
                if bytes.len() as u64 > limit {
                    let text = format!("{} has more than {limit} bytes, as none of ours has", self.shown(key));
                    return Err(ArchiveError::new(ErrorClass::CorruptInFlight, text));
                }
            };
            let delay = delays.next_delay();
            if delays.failures() >= self.settings.limits.tries {
                return Err(self.broken(key, bytes.len() as u64, &why).await);
            }
            sleep(delay).await;
        }
    }

    pub(super) async fn get(
        &self,
        key: &str,
        range: ByteRange,
        etag: Option<&str>,
    ) -> Result<GetObjectOutput, Refused> {
        self.client
            .get_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .range(format!("bytes={}-{}", range.start, range.end() - 1))
            .set_if_match(etag.map(str::to_owned))
            .send()
            .await
            .map_err(|e| Refused::new("read", self.shown(key), &e))
    }

    pub(super) async fn next(&self, body: &mut ByteStream) -> Result<Option<bytes::Bytes>, String> {
        let stall = self.settings.limits.stall;
        match timeout(stall, body.next()).await {
            Err(_) => Err(format!("no byte came for {} s", stall.as_secs())),
            Ok(None) => Ok(None),
            Ok(Some(Ok(bytes))) => Ok(Some(bytes)),
            Ok(Some(Err(error))) => Err(error.to_string()),
        }
    }
}

impl Download<'_> {
    /// The values of the chunks of one range.
    async fn range(&self, start: u64, mut body: Option<ByteStream>) -> Result<Vec<(u64, ChunkValue)>, ArchiveError> {
        let end = self.size.min(start + RANGE_BYTES);
        let mut filling = Filling { values: Vec::new(), buffer: None, at: start };
        let mut delays = self.store.settings.limits.backoff.delays();
        loop {
            let before = filling.at;
            let mut stream = match body.take() {
                Some(stream) => stream,
                None => self.open(before, end).await?,
            };
            let why = loop {
                match self.store.next(&mut stream).await {
                    Ok(Some(bytes)) if filling.at + bytes.len() as u64 > end => {
                        return Err(self.store.garbage(self.key, "it gives more bytes than were asked for"));
                    }
                    Ok(Some(bytes)) => self.take(&mut filling, &bytes).await?,
                    Ok(None) => break "the answer ended before its end".to_owned(),
                    Err(why) => break why,
                }
                if filling.at == end {
                    return Ok(filling.values);
                }
            };
            if filling.at - before >= ChunkSize::DEFAULT.bytes() {
                delays.reset();
            }
            let delay = delays.next_delay();
            if delays.failures() >= self.store.settings.limits.tries {
                if filling.at > before {
                    // Bytes come, and something cuts them short: that says nothing of the object.
                    let text = format!("{} comes in pieces too small: {why}", self.store.shown(self.key));
                    return Err(ArchiveError::new(ErrorClass::Network, text));
                }
                return Err(self.store.broken(self.key, filling.at, &why).await);
            }
            sleep(delay).await;
        }
    }

    async fn open(&self, start: u64, end: u64) -> Result<ByteStream, ArchiveError> {
        let range = ByteRange { start, len: end - start };
        let answer = match self.store.get(self.key, range, self.etag.as_deref()).await {
            Ok(answer) => answer,
            Err(refused) if refused.is_taken() => {
                let text = format!("{} was replaced while it was read", self.store.shown(self.key));
                return Err(ArchiveError::new(ErrorClass::RemoteBusy, text));
            }
            Err(refused) => return Err(self.store.unreadable(self.key, start, refused).await),
        };
        if size_of(&answer, start) != Some(self.size) {
            return Err(self.store.garbage(self.key, "it gives other bytes of the object than were asked for"));
        }
        Ok(answer.body)
    }

    /// Puts bytes where they belong, and hashes each chunk that is full.
    async fn take(&self, filling: &mut Filling, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        while !bytes.is_empty() {
            let mut buffer = match filling.buffer.take() {
                Some(buffer) => buffer,
                None => {
                    let mut buffer = self.store.reading.acquire().await;
                    buffer.set_len(0);
                    buffer
                }
            };
            let index = filling.at / ChunkSize::DEFAULT.bytes();
            let chunk = ChunkSize::DEFAULT.range(index, self.size).ok_or_else(|| bug("a chunk past the end"))?;
            let filled = buffer.len();
            let whole = usize::try_from(chunk.len).map_err(|_| bug("a chunk is larger than memory"))?;
            let (now, later) = bytes.split_at(bytes.len().min(whole - filled));
            buffer.set_len(filled + now.len());
            buffer[filled..].copy_from_slice(now);
            bytes = later;
            filling.at += now.len() as u64;
            if filled + now.len() < whole {
                filling.buffer = Some(buffer);
                continue;
            }
            let (into, size) = (self.into.clone(), self.size);
            let value = blocking(move || {
                if let Some(file) = into {
                    write_sparse(&file, &buffer, chunk.start, true).map_err(|error| not_written(&error))?;
                }
                Ok(chunk_value(ChunkSize::DEFAULT, index, size, &buffer))
            })
            .await?;
            filling.values.push((index, value));
            self.progress.advance(chunk.len);
        }
        Ok(())
    }
}

/// How far a range has come.
struct Filling {
    values: Vec<(u64, ChunkValue)>,
    /// The chunk that `at` lies in, as far as it came.
    buffer: Option<Buffer>,
    at: u64,
}

/// The whole object's size, if the answer begins at this byte.
fn size_of(answer: &GetObjectOutput, start: u64) -> Option<u64> {
    match answer.content_range() {
        Some(range) => {
            let (first, rest) = range.strip_prefix("bytes ")?.split_once('-')?;
            let (_, size) = rest.split_once('/')?;
            (first.parse() == Ok(start)).then(|| size.parse().ok())?
        }
        // All of it, because it is so small, or because the store knows no ranges.
        None => (start == 0).then(|| answer.content_length().and_then(|n| u64::try_from(n).ok()))?,
    }
}

fn not_written(error: &io::Error) -> ArchiveError {
    let class = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorClass::NoSpace,
        _ => ErrorClass::Configuration,
    };
    ArchiveError::caused(class, "cannot write the copy of an archived package", error)
}

/// What one request asks for: few requests for a large object, and little to read again after a lost connection.
const RANGE_BYTES: u64 = 16 << 20;
const RANGE_STEP: usize = 16 << 20;
