use std::{collections::HashMap, sync::Arc};

use aws_sdk_s3::{
    error::ProvideErrorMetadata as _,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart, MultipartUpload},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    Checksum, S3, blocking,
    failure::{Refused, bug, of_source},
    metadata,
    sums::{PartSums, Said, Sum, crc64_of_all},
};
use crate::{
    archive::{ArchiveError, Progress},
    buf::Pool,
    chunk::{ByteRange, ChunkSize, ChunkValue, Digest, RootBuilder, chunk_value},
    disk::SourceFile,
    model::ErrorClass,
};

/// One file on its way to one object.
pub(super) struct Upload<'a> {
    pub(super) store: &'a S3,
    pub(super) key: &'a str,
    /// What the file must be, where that is known before it was read.
    pub(super) expected: Option<Digest>,
    /// What the store has under this key, where the object is of a tree that is not whole yet and so may be replaced.
    pub(super) left: Option<&'a Said>,
    pub(super) progress: &'a dyn Progress,
}

/// On which condition an object is put.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only<'a> {
    /// Its key is free.
    Free,
    /// What lies there is what was seen, by its ETag. For files of a tree that is not whole yet.
    Still(&'a str),
    /// None. For sidecars.
    Always,
}

impl<'a> Only<'a> {
    fn if_none_match(self) -> Option<String> {
        matches!(self, Self::Free).then(|| "*".to_owned())
    }

    fn if_match(self) -> Option<String> {
        if let Self::Still(etag) = self { Some(etag.to_owned()) } else { None }
    }

    /// Of what an earlier attempt has left.
    fn left(left: Option<&'a Said>) -> Self {
        match left {
            Some(left) if !left.etag.is_empty() => Self::Still(&left.etag),
            _ => Self::Free,
        }
    }

    /// Whether this, which lies there, keeps the object from being put.
    fn is_broken_by(self, there: &Said) -> bool {
        match self {
            Self::Free => true,
            Self::Still(etag) => there.etag.trim_matches('"') != etag.trim_matches('"'),
            Self::Always => false,
        }
    }
}

/// A file whose bytes the store has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Bytes that an earlier attempt had sent.
    pub(super) resumed: u64,
    /// Something lay there; whether it is the same is for the read-back to say.
    pub(super) found: bool,
}

/// How a file is cut, and the buffers for it.
struct Cut {
    bytes: u64,
    parallel: usize,
    pool: Pool,
}

impl Cut {
    /// Bytes of the part of this index.
    fn range(&self, index: u64, size: u64) -> ByteRange {
        let start = index * self.bytes;
        ByteRange { start, len: self.bytes.min(size - start) }
    }
}

/// A part that the store has.
struct Part {
    number: i32,
    range: ByteRange,
    etag: String,
    sum: Sum,
    values: Vec<(u64, ChunkValue)>,
    kept: bool,
}

impl Upload<'_> {
    /// Sends a file, or of a large one what is missing.
    pub(super) async fn send(&self, file: SourceFile) -> Result<Sent, ArchiveError> {
        let size = file.identity().size;
        file.advise_sequential();
        if size <= self.store.settings.part_bytes {
            return self.send_whole(Arc::new(file), size).await;
        }
        self.send_parts(&Arc::new(file), size).await
    }

    async fn send_whole(&self, file: Arc<SourceFile>, size: u64) -> Result<Sent, ArchiveError> {
        let len = length(size)?;
        let pool = if len <= self.store.small.bytes_each() { &self.store.small } else { &self.store.parts };
        let mut buffer = pool.acquire().await;
        let (left, metadata) = (self.left.cloned(), metadata(file.stat()));
        let (buffer, digest, same) = blocking(move || {
            buffer.set_len(len);
            file.read_exact_at(&mut buffer, 0).and_then(|()| file.check_unchanged()).map_err(|e| of_source(&e))?;
            let same = left.is_some_and(|left| left.fits(&buffer) == Some(true));
            let digest = Digest::of(&buffer);
            Ok((buffer, digest, same))
        })
        .await?;
        self.check(digest)?;
        let sent = |resumed, found| Sent { digest, size, resumed, found };
        let answer = if same {
            sent(size, false)
        } else {
            let only = Only::left(self.left);
            let put = self.store.put_bytes(self.key, buffer.freeze(), only, Some(metadata)).await;
            match put {
                Ok(()) => sent(0, false),
                Err(refused) if refused.is_taken() => sent(0, true),
                Err(refused) => return Err(refused.into()),
            }
        };
        self.progress.advance(size);
        Ok(answer)
    }

    async fn send_parts(&self, file: &Arc<SourceFile>, size: u64) -> Result<Sent, ArchiveError> {
        let _large;
        let cut = match self.store.cut(size) {
            Some(cut) => cut,
            // Larger parts than the common buffers are for one file at a time.
            None => {
                _large = self.store.large.lock().await;
                self.store.large_cut(size)?
            }
        };
        if let Some(digest) = self.is_there(file, size, &cut).await? {
            // Whoever began others is gone, or finds the object there, too.
            self.store.abort_all(self.key).await?;
            self.check(digest)?;
            self.progress.advance(size);
            return Ok(Sent { digest, size, resumed: size, found: false });
        }
        let (upload, known) = self.begin(file).await?;
        let sent = self.send_missing(file, size, &cut, &upload, &known).await;
        if sent.as_ref().is_err_and(is_final) {
            // Nobody will complete it.
            self.store.abort(self.key, &upload).await;
        }
        sent
    }

    /// The file's digest, if what an earlier attempt left there is the file. It is read for that, and nothing is sent.
    async fn is_there(&self, file: &Arc<SourceFile>, size: u64, cut: &Cut) -> Result<Option<Digest>, ArchiveError> {
        let Some(left) = self.left.filter(|left| left.size == size) else { return Ok(None) };
        let said = Said { crc64: self.store.crc64_of(self.key).await?, ..left.clone() };
        let (mut root, mut sums) = (RootBuilder::new(ChunkSize::DEFAULT, size), Vec::new());
        let mut under_way = stream::iter(0..size.div_ceil(cut.bytes))
            .map(async |index| {
                let range = cut.range(index, size);
                let (mut buffer, file) = (cut.pool.acquire().await, Arc::clone(file));
                blocking(move || {
                    buffer.set_len(length(range.len)?);
                    file.read_exact_at(&mut buffer, range.start).map_err(|e| of_source(&e))?;
                    Ok((values_of(range, size, &buffer), PartSums::of(&buffer)))
                })
                .await
            })
            .buffered(cut.parallel)
            .boxed();
        while let Some((values, sum)) = under_way.try_next().await? {
            for (index, value) in values {
                root.insert(index, value);
            }
            sums.push(sum);
        }
        drop(under_way);
        let checked = Arc::clone(file);
        blocking(move || checked.check_unchanged().map_err(|e| of_source(&e))).await?;
        if said.fits_parts(&sums) != Some(true) {
            return Ok(None);
        }
        root.root().map(Some).map_err(|error| bug(error.to_string()))
    }

    async fn send_missing(
        &self,
        file: &Arc<SourceFile>,
        size: u64,
        cut: &Cut,
        upload: &str,
        known: &HashMap<i32, Said>,
    ) -> Result<Sent, ArchiveError> {
        let mut root = RootBuilder::new(ChunkSize::DEFAULT, size);
        let mut parts = Vec::new();
        let mut under_way = stream::iter(0..size.div_ceil(cut.bytes))
            .map(|index| self.part(file, size, cut, upload, index, known))
            .buffer_unordered(cut.parallel);
        while let Some(mut part) = under_way.try_next().await? {
            for (index, value) in part.values.drain(..) {
                root.insert(index, value);
            }
            self.progress.advance(part.range.len);
            parts.push(part);
        }
        drop(under_way);
        let checked = Arc::clone(file);
        blocking(move || checked.check_unchanged().map_err(|e| of_source(&e))).await?;
        let digest = root.root().map_err(|error| bug(error.to_string()))?;
        self.check(digest)?;
        let resumed = parts.iter().filter(|part| part.kept).map(|part| part.range.len).sum();
        let found = self.complete(upload, parts, size).await?;
        Ok(Sent { digest, size, resumed, found })
    }

    /// Reads and hashes a part, and sends it unless the store has these very bytes.
    async fn part(
        &self,
        file: &Arc<SourceFile>,
        size: u64,
        cut: &Cut,
        upload: &str,
        index: u64,
        known: &HashMap<i32, Said>,
    ) -> Result<Part, ArchiveError> {
        let number = i32::try_from(index + 1).map_err(|_| bug("a file has too many parts"))?;
        let range = cut.range(index, size);
        let mut buffer = cut.pool.acquire().await;
        let (file, said, checksum) = (Arc::clone(file), known.get(&number).cloned(), self.store.settings.checksum);
        let (buffer, values, sum, kept) = blocking(move || {
            buffer.set_len(length(range.len)?);
            file.read_exact_at(&mut buffer, range.start).map_err(|e| of_source(&e))?;
            let kept = said.filter(|said| said.fits(&buffer) == Some(true));
            let (values, sum) = (values_of(range, size, &buffer), Sum::of(checksum, &buffer));
            Ok((buffer, values, sum, kept))
        })
        .await?;
        if let Some(said) = kept {
            return Ok(Part { number, range, etag: said.etag, sum, values, kept: true });
        }
        let store = self.store;
        let answer = store
            .client
            .upload_part()
            .bucket(&store.settings.bucket)
            .key(self.key)
            .upload_id(upload)
            .part_number(number)
            .set_checksum_crc64_nvme(sum.crc64())
            .set_checksum_sha256(sum.sha256())
            .set_content_md5(sum.md5())
            .body(ByteStream::from(buffer.freeze()))
            .customize()
            // The sum stands in a signed header.
            .disable_payload_signing()
            .send()
            .await
            .map_err(|e| Refused::new("send part of", store.shown(self.key), &e))?;
        let etag = answer.e_tag.ok_or_else(|| store.garbage(self.key, "it gave a part no ETag"))?;
        Ok(Part { number, range, etag, sum, values, kept: false })
    }

    /// The upload to go on with, and the parts of it that the store says it has. Others of the same key are removed:
    /// whoever began them is gone, or finds its upload gone, and the next attempt begins anew.
    async fn begin(&self, file: &SourceFile) -> Result<(String, HashMap<i32, Said>), ArchiveError> {
        let mut best: Option<(String, HashMap<i32, Said>)> = None;
        let mut others = Vec::new();
        for upload in self.store.uploads(self.key).await? {
            let Some(id) = upload.upload_id.clone() else { continue };
            let parts = if self.is_like_ours(&upload) { self.store.parts_of(self.key, &id).await? } else { None };
            let Some(parts) = parts else {
                others.push(id);
                continue;
            };
            let weight = |parts: &HashMap<i32, Said>| parts.values().map(|p| p.size).sum::<u64>();
            match &mut best {
                Some((_, most)) if weight(most) >= weight(&parts) => others.push(id),
                best => others.extend(best.replace((id, parts)).map(|(id, _)| id)),
            }
        }
        for id in others {
            self.store.abort(self.key, &id).await;
        }
        match best {
            Some(best) => Ok(best),
            None => Ok((self.create(file).await?, HashMap::new())),
        }
    }

    fn is_like_ours(&self, upload: &MultipartUpload) -> bool {
        // Some stores do not tell.
        upload.checksum_algorithm.is_none() || upload.checksum_algorithm == self.algorithm()
    }

    fn algorithm(&self) -> Option<ChecksumAlgorithm> {
        match self.store.settings.checksum {
            Checksum::Crc64Nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Checksum::Sha256 => Some(ChecksumAlgorithm::Sha256),
            Checksum::ContentMd5 => None,
        }
    }

    fn checksum_type(&self) -> Option<ChecksumType> {
        match self.store.settings.checksum {
            Checksum::Crc64Nvme => Some(ChecksumType::FullObject),
            Checksum::Sha256 => Some(ChecksumType::Composite),
            Checksum::ContentMd5 => None,
        }
    }

    async fn create(&self, file: &SourceFile) -> Result<String, ArchiveError> {
        let store = self.store;
        let (mode, until) = store.retention();
        let answer = store
            .client
            .create_multipart_upload()
            .bucket(&store.settings.bucket)
            .key(self.key)
            .set_checksum_algorithm(self.algorithm())
            .set_checksum_type(self.checksum_type())
            .set_metadata(Some(metadata(file.stat())))
            .set_storage_class(store.storage_class())
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .send()
            .await
            .map_err(|e| Refused::new("begin", store.shown(self.key), &e))?;
        answer.upload_id.ok_or_else(|| store.garbage(self.key, "it gave an upload no id"))
    }

    /// Makes the object of its parts, unless something lies there; true if it does.
    async fn complete(&self, upload: &str, mut parts: Vec<Part>, size: u64) -> Result<bool, ArchiveError> {
        parts.sort_by_key(|part| part.number);
        let (store, only) = (self.store, Only::left(self.left));
        // For stores that do not know the conditions below.
        if store.head(self.key).await?.is_some_and(|there| only.is_broken_by(&there)) {
            store.abort(self.key, upload).await;
            return Ok(true);
        }
        let whole = self.store.settings.checksum == Checksum::Crc64Nvme;
        let crc = parts.iter().filter_map(|part| match part.sum {
            Sum::Crc64Nvme(value) => Some((value, part.range.len)),
            _ => None,
        });
        let crc = whole.then(|| crc64_of_all(crc));
        let list = parts.into_iter().map(|part| {
            CompletedPart::builder()
                .part_number(part.number)
                .e_tag(part.etag)
                .set_checksum_crc64_nvme(part.sum.crc64())
                .set_checksum_sha256(part.sum.sha256())
                .build()
        });
        let answer = store
            .client
            .complete_multipart_upload()
            .bucket(&store.settings.bucket)
            .key(self.key)
            .upload_id(upload)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(list.collect())).build())
            .set_checksum_type(self.checksum_type())
            .set_checksum_crc64_nvme(crc)
            .set_if_none_match(only.if_none_match())
            .set_if_match(only.if_match())
            .send()
            .await;
        let refused = match answer {
            Ok(_) => return Ok(false),
            Err(error) => Refused::new("complete", store.shown(self.key), &error),
        };
        if refused.is_taken() {
            store.abort(self.key, upload).await;
            return Ok(true);
        }
        // The answer to a try before may have been lost, or another attempt of this work may have been faster.
        if refused.is_no_upload() && store.head(self.key).await?.is_some_and(|there| there.size == size) {
            return Ok(false);
        }
        Err(refused.into())
    }

    fn check(&self, found: Digest) -> Result<(), ArchiveError> {
        match self.expected {
            Some(expected) if expected != found => Err(ArchiveError::new(
                ErrorClass::SourceChanged,
                format!(
                    "the package's file holds other bytes than were registered: {expected} was registered, {found} was \
                     read; nothing was archived"
                ),
            )),
            _ => Ok(()),
        }
    }
}

impl S3 {
    /// Puts bytes that are in hand, on a condition. What has metadata, be it empty, is a package's, and
    /// gets its storage class and retention.
    pub(super) async fn put_bytes(
        &self,
        key: &str,
        bytes: Bytes,
        only: Only<'_>,
        metadata: Option<HashMap<String, String>>,
    ) -> Result<(), Refused> {
        let sum = Sum::of(self.settings.checksum, &bytes);
        let package = metadata.is_some();
        let (mode, until) = if package { self.retention() } else { (None, None) };
        self.client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .set_metadata(metadata)
            .set_if_none_match(only.if_none_match())
            .set_if_match(only.if_match())
            .set_checksum_crc64_nvme(sum.crc64())
            .set_checksum_sha256(sum.sha256())
            .set_content_md5(sum.md5())
            .set_storage_class(self.storage_class().filter(|_| package))
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .body(ByteStream::from(bytes))
            .customize()
            .disable_payload_signing()
            .send()
            .await
            .map(drop)
            .map_err(|e| Refused::new("put", self.shown(key), &e))
    }

    /// What the store says that the CRC-64/NVME of a whole object is.
    async fn crc64_of(&self, key: &str) -> Result<Option<String>, ArchiveError> {
        let asked = self.client.head_object().bucket(&self.settings.bucket).key(key);
        let answer = asked.checksum_mode(ChecksumMode::Enabled).send().await;
        match answer.map_err(|e| Refused::new("look for", self.shown(key), &e)) {
            Ok(there) => Ok(there.checksum_crc64_nvme),
            // Nothing to compare: it is sent.
            Err(refused) if refused.is_missing() || refused.is_bare_missing() => Ok(None),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Unfinished uploads to this key.
    async fn uploads(&self, key: &str) -> Result<Vec<MultipartUpload>, ArchiveError> {
        let mut found = self.uploads_below(key).await?;
        found.retain(|upload| upload.key.as_deref() == Some(key));
        Ok(found)
    }

    /// Removes all unfinished uploads to a key.
    pub(super) async fn abort_all(&self, key: &str) -> Result<(), ArchiveError> {
        for id in self.uploads(key).await?.into_iter().filter_map(|upload| upload.upload_id) {
            self.abort(key, &id).await;
        }
        Ok(())
    }

    /// Removes all unfinished uploads to keys that begin so. Those that stay cost space only.
    pub(super) async fn abort_below(&self, prefix: &str) {
        match self.uploads_below(prefix).await {
            Ok(found) => {
                for upload in found {
                    if let (Some(key), Some(id)) = (upload.key, upload.upload_id) {
                        self.abort(&key, &id).await;
                    }
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Unfinished uploads to keys that begin so.
    pub(super) async fn uploads_below(&self, prefix: &str) -> Result<Vec<MultipartUpload>, ArchiveError> {
        let (mut found, mut after) = (Vec::new(), (None, None));
        for _ in 0..MAX_PAGES {
            let page = self
                .client
                .list_multipart_uploads()
                .bucket(&self.settings.bucket)
                .prefix(prefix)
                .set_key_marker(after.0.take())
                .set_upload_id_marker(after.1.take())
                .send()
                .await;
            let page = match page {
                Ok(page) => page,
                Err(error) if error.code() == Some("NotImplemented") => {
                    tracing::warn!(bucket = self.settings.bucket, "the S3 store lists no uploads, so none is resumed");
                    return Ok(Vec::new());
                }
                Err(error) => return Err(Refused::new("list uploads of", self.shown(prefix), &error).into()),
            };
            let uploads = page.uploads.unwrap_or_default().into_iter();
            // Some stores take the prefix for a hint.
            found.extend(uploads.filter(|upload| upload.key.as_deref().is_some_and(|key| key.starts_with(prefix))));
            after = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || after.0.is_none() {
                return Ok(found);
            }
        }
        Err(self.garbage(prefix, "its list of uploads has no end"))
    }

    /// Parts of an upload by number; `None` if there is no such upload any more.
    pub(super) async fn parts_of(&self, key: &str, upload: &str) -> Result<Option<HashMap<i32, Said>>, ArchiveError> {
        let (mut found, mut after) = (HashMap::new(), None);
        for _ in 0..MAX_PAGES {
            let page = self
                .client
                .list_parts()
                .bucket(&self.settings.bucket)
                .key(key)
                .upload_id(upload)
                .set_part_number_marker(after.take())
                .send()
                .await;
            let page = match page.map_err(|e| Refused::new("list parts of", self.shown(key), &e)) {
                Ok(page) => page,
                Err(refused) if refused.is_no_upload() => return Ok(None),
                Err(refused) => return Err(refused.into()),
            };
            for part in page.parts.unwrap_or_default() {
                if let (Some(number), Some(etag)) = (part.part_number, part.e_tag) {
                    let size = part.size.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                    let sent_at_s = part.last_modified.map(|at| at.secs());
                    let (crc64, sha256) = (part.checksum_crc64_nvme, part.checksum_sha256);
                    let said = Said { etag, size, crc64, sha256, sent_at_s };
                    found.insert(number, said);
                }
            }
            after = page.next_part_number_marker;
            if page.is_truncated != Some(true) || after.is_none() {
                return Ok(Some(found));
            }
        }
        Err(self.garbage(key, "its list of parts has no end"))
    }

    /// Removes an upload that nobody will complete; false if it stays. That costs space only, and the next attempt tries again.
    pub(super) async fn abort(&self, key: &str, upload: &str) -> bool {
        let answer =
            self.client.abort_multipart_upload().bucket(&self.settings.bucket).key(key).upload_id(upload).send().await;
        match answer.map_err(|error| Refused::new("remove an upload of", self.shown(key), &error)) {
            Err(refused) if !refused.is_no_upload() => {
                tracing::warn!("{}", ArchiveError::from(refused));
                false
            }
            _ => true,
        }
    }

    fn cut(&self, size: u64) -> Option<Cut> {
        let (bytes, parallel) = (self.settings.part_bytes, self.settings.parallel_parts);
        (size.div_ceil(bytes) <= MAX_PARTS).then(|| Cut { bytes, parallel, pool: self.parts.clone() })
    }

    /// Parts so large that there are not too many, and no more at once than the common buffers would hold.
    fn large_cut(&self, size: u64) -> Result<Cut, ArchiveError> {
        let chunk = ChunkSize::DEFAULT.bytes();
        let bytes = size.div_ceil(MAX_PARTS).next_multiple_of(chunk);
        if bytes > super::settings::MAX_PART_BYTES {
            let text = format!("a file of {size} bytes is larger than any S3 object can be; archive it elsewhere");
            return Err(ArchiveError::new(ErrorClass::Configuration, text));
        }
        let room = self.settings.part_bytes.saturating_mul(self.settings.parallel_parts as u64);
        let parallel = usize::try_from(room / bytes).unwrap_or(1).max(1);
        Ok(Cut { bytes, parallel, pool: Pool::new(parallel, length(bytes)?) })
    }
}

/// Whether no attempt comes after this error without a person.
pub(super) fn is_final(error: &ArchiveError) -> bool {
    error.class != ErrorClass::Cancelled && error.class.policy().retries == 0
}

fn values_of(range: ByteRange, size: u64, bytes: &[u8]) -> Vec<(u64, ChunkValue)> {
    let first = range.start / ChunkSize::DEFAULT.bytes();
    (first..)
        .zip(bytes.chunks(ChunkSize::DEFAULT.buffer_bytes()))
        .map(|(index, chunk)| (index, chunk_value(ChunkSize::DEFAULT, index, size, chunk)))
        .collect()
}

fn length(bytes: u64) -> Result<usize, ArchiveError> {
    usize::try_from(bytes).map_err(|_| bug("a part is larger than memory"))
}

/// S3's limit.
const MAX_PARTS: u64 = 10_000;
/// Of 1,000 rows each: more than any key has.
const MAX_PAGES: usize = 1000;
