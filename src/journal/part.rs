use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    JournalError,
    claims::Asked,
    log::{Content, Listed},
    record::{Body, MAX_VALUES},
    store::Shared,
    writer::{Live, Writer, part_name},
};
use crate::{
    chunk::{ChunkSet, ChunkSize, ChunkValue, RelPath, chunk_value},
    disk::{DiskError, Identity, Reservation, Stat, fault, punch_hole, write_sparse},
};

/// A file on its way, in a folder whose journal this process has locked.
#[derive(Debug)]
pub struct Part {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Arc<Writer>,
    pub(super) number: u32,
    pub(super) file: File,
    pub(super) path: RelPath,
    pub(super) inode: u64,
    size: u64,
    chunk_size: ChunkSize,
    sparse: bool,
    values: Vec<(u64, ChunkValue)>,
    held: Vec<HeldRange>,
    touched: Mutex<Touched>,
    /// The kernel lets one buffered write at a time into a file and lets the others spin; who sleeps here instead leaves
    /// its core to a hash.
    writing: Mutex<()>,
    reservation: Reservation,
    seed: Option<SeedFile>,
}

/// A run of chunks that the journal says are durable. To be hashed again before it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRange {
    /// Index of the first chunk.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What a live writer has of the same file. It is only ever read.
#[derive(Debug)]
pub struct SeedFile {
    /// The other writer's part, open for reading.
    pub file: File,
    /// What the indices mean.
    pub chunk_size: ChunkSize,
    /// Length of the whole file.
    pub size: u64,
    /// Chunks that its journal says are durable.
    pub values: Vec<(u64, ChunkValue)>,
}

/// Where something may have been written, so that zeros must be punched.
#[derive(Debug)]
enum Touched {
    Chunks(ChunkSet),
    Anywhere,
}

/// What is known of a part that was there.
pub(super) struct Adopted {
    pub(super) live: Live,
    pub(super) values: Vec<(u64, ChunkValue)>,
    /// What its journal says holds as it is.
    pub(super) same: bool,
}

impl Part {
    pub(super) fn create(
        shared: &Arc<Shared>,
        writer: &Arc<Writer>,
        number: u32,
        file: File,
        inode: u64,
        asked: &Asked<'_>,
        seed: Option<SeedFile>,
    ) -> Result<Self, JournalError> {
        let error = |e| DiskError::new("set the length of", writer.dir().child(&part_name(number)), e);
        // A hole: no storage is taken by it, whatever size a peer declared. Too long for the file system shows here.
        if let Err(e) = file.set_len(asked.size) {
            let _ = writer.dir().remove_file(&part_name(number));
            return Err(error(e).into());
        }
        writer.append([record(number, inode, asked)]).map_err(|e| shared.poison(e))?;
        writer.insert(number, Live { listed: listed(inode, asked, ChunkSet::new()), open: true, recorded: true });
        let touched = Touched::Chunks(ChunkSet::new());
        Ok(Self::assemble(shared, writer, number, file, inode, asked, Vec::new(), touched, seed))
    }

    pub(super) fn adopt(
        shared: &Arc<Shared>,
        writer: &Arc<Writer>,
        number: u32,
        file: File,
        asked: &Asked<'_>,
        adopted: Adopted,
    ) -> Result<Self, JournalError> {
        let inode = adopted.live.listed.inode;
        let child = || writer.dir().child(&part_name(number));
        let stat = Stat::of_fd(&file).map_err(|e| DiskError::new("examine", child(), e))?;
        if stat.identity.size != asked.size {
            file.set_len(asked.size).map_err(|e| DiskError::new("set the length of", child(), e))?;
        }
        if !adopted.same {
            let bodies = std::iter::once(record(number, inode, asked)).chain(chunk_records(number, &adopted.values));
            writer.append(bodies).map_err(|e| shared.poison(e))?;
        }
        let held = indices(&adopted.values);
        writer.insert(number, Live { listed: listed(inode, asked, held), open: true, recorded: true });
        let values = adopted.values;
        Ok(Self::assemble(shared, writer, number, file, inode, asked, values, Touched::Anywhere, None))
    }

    #[expect(clippy::too_many_arguments, reason = "one place that names every field")]
    fn assemble(
        shared: &Arc<Shared>,
        writer: &Arc<Writer>,
        number: u32,
        file: File,
        inode: u64,
        asked: &Asked<'_>,
        values: Vec<(u64, ChunkValue)>,
        touched: Touched,
        seed: Option<SeedFile>,
    ) -> Self {
        let held = indices(&values).ranges().map(|(first, count)| HeldRange { first, count }).collect();
        let reservation = if asked.sparse { Reservation::none() } else { Reservation::new(&file, asked.size) };
        Self {
            shared: Arc::clone(shared),
            writer: Arc::clone(writer),
            number,
            file,
            path: asked.path.clone(),
            inode,
            size: asked.size,
            chunk_size: asked.chunk_size,
            sparse: asked.sparse,
            values,
            held,
            touched: Mutex::new(touched),
            writing: Mutex::default(),
            reservation,
            seed,
        }
    }

    /// Destination, relative to the store's root.
    pub fn path(&self) -> &RelPath {
        &self.path
    }

    /// Length of the whole file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the chunk indices mean.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// Whether runs of zeros are left as holes.
    pub fn sparse(&self) -> bool {
        self.sparse
    }

    /// The chunks that the journal said were durable when the part was taken over; empty for a new part.
    pub fn held(&self) -> &[HeldRange] {
        &self.held
    }

    /// The same with their values, in order of index.
    pub fn held_values(&self) -> &[(u64, ChunkValue)] {
        &self.values
    }

    /// What a live writer has of this file, where one does.
    pub fn seed(&self) -> Option<&SeedFile> {
        self.seed.as_ref()
    }

    /// Writes verified bytes at `offset`. They are not durable before a commit.
    ///
    /// With `sparse`, runs of zeros are left or made holes. Any failure poisons the store.
    pub fn write_chunk(&self, offset: u64, data: &[u8], sparse: bool) -> Result<(), JournalError> {
        self.shared.check()?;
        let len = self.within(offset, data.len())?;
        if len == 0 {
            return Ok(());
        }
        let fresh = self.touch(offset, len);
        let turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written =
            if sparse { write_sparse(&self.file, data, offset, fresh) } else { self.file.write_all_at(data, offset) };
        drop(turn);
        written.map_err(|e| self.poison("write", e))?;
        if !sparse {
            self.reservation.written(&self.file, offset, len);
        }
        fault::point(fault::Point::Written);
        Ok(())
    }

    /// Makes a range read as zeros without writing them.
    pub fn write_hole(&self, offset: u64, len: u64) -> Result<(), JournalError> {
        self.shared.check()?;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(JournalError::PastTheEnd { path: self.path.clone() });
        }
        if !self.touch(offset, len) {
            punch_hole(&self.file, offset, len).map_err(|e| self.poison("punch a hole into", e))?;
        }
        Ok(())
    }

    /// Fills `buf` from `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), JournalError> {
        self.within(offset, buf.len())?;
        self.file.read_exact_at(buf, offset).map_err(|e| self.error("read", e).into())
    }

    /// Reads chunk `index` into the front of `buf` and hashes it. `None` if the file has no such chunk or `buf` is too
    /// short for it.
    pub fn hash_chunk(&self, index: u64, buf: &mut [u8]) -> Result<Option<ChunkValue>, JournalError> {
        let Some(range) = self.chunk_size.range(index, self.size) else { return Ok(None) };
        let Some(buf) = usize::try_from(range.len).ok().and_then(|len| buf.get_mut(..len)) else { return Ok(None) };
        self.read_at(buf, range.start)?;
        Ok(Some(chunk_value(self.chunk_size, index, self.size, buf)))
    }

    /// Copies from the seed every chunk that still has the value that its journal says, and returns those. They are
    /// written, not committed. `buf` must hold a chunk.
    pub fn copy_seed(&self, buf: &mut [u8]) -> Result<Vec<(u64, ChunkValue)>, JournalError> {
        let Some(seed) = &self.seed else { return Ok(Vec::new()) };
        let mut copied = Vec::new();
        for &(index, expected) in &seed.values {
            let Some(range) = self.chunk_size.range(index, self.size) else { continue };
            let Some(bytes) = usize::try_from(range.len).ok().and_then(|len| buf.get_mut(..len)) else { continue };
            // Its owner may change it while we read, so what was read is what is hashed.
            if seed.file.read_exact_at(bytes, range.start).is_err() {
                continue;
            }
            if chunk_value(self.chunk_size, index, self.size, bytes) == expected {
                self.write_chunk(range.start, bytes, self.sparse)?;
                copied.push((index, expected));
            }
        }
        Ok(copied)
    }

    pub(super) fn identity(&self) -> Result<Identity, JournalError> {
        Stat::of_fd(&self.file).map(|s| s.identity).map_err(|e| self.error("examine", e.into()).into())
    }

    fn within(&self, offset: u64, len: usize) -> Result<u64, JournalError> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(len),
            _ => Err(JournalError::PastTheEnd { path: self.path.clone() }),
        }
    }

    /// Notes that a range is written, and says whether nothing ever was there.
    fn touch(&self, offset: u64, len: u64) -> bool {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        let Touched::Chunks(chunks) = &mut *touched else { return false };
        let bytes = self.chunk_size.bytes();
        let (first, end) = (offset / bytes, offset.saturating_add(len).div_ceil(bytes));
        let before = chunks.len();
        chunks.insert_range(first, end - first);
        chunks.len() - before == end - first
    }

    pub(super) fn error(&self, operation: &'static str, source: io::Error) -> DiskError {
        DiskError::new(operation, self.writer.dir().child(&part_name(self.number)), source)
    }

    pub(super) fn poison(&self, operation: &'static str, source: io::Error) -> JournalError {
        self.shared.poison(self.error(operation, source))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.writer.update(self.number, |live| live.open = false);
    }
}

fn record(part: u32, inode: u64, asked: &Asked<'_>) -> Body {
    Body::Part {
        part,
        inode,
        size: asked.size,
        chunk_size: asked.chunk_size,
        sparse: asked.sparse,
        path: asked.path.clone(),
    }
}

fn listed(inode: u64, asked: &Asked<'_>, held: ChunkSet) -> Listed {
    let content = Content::Chunks { chunk_size: asked.chunk_size, held };
    Listed { path: asked.path.clone(), inode, size: asked.size, content }
}

/// Records for chunks in any order: one per run without a gap.
pub(super) fn chunk_records(part: u32, chunks: &[(u64, ChunkValue)]) -> Vec<Body> {
    let mut sorted: Vec<&(u64, ChunkValue)> = chunks.iter().collect();
    sorted.sort_by_key(|(index, _)| *index);
    let mut bodies: Vec<Body> = Vec::new();
    let mut next = None;
    for &(index, value) in sorted {
        match bodies.last_mut() {
            Some(Body::Chunks { values, .. }) if next == Some(index) && values.len() < MAX_VALUES => values.push(value),
            _ => bodies.push(Body::Chunks { part, first: index, values: vec![value] }),
        }
        next = index.checked_add(1);
    }
    bodies
}

/// Chunks in `values`, as a set.
fn indices(values: &[(u64, ChunkValue)]) -> ChunkSet {
    let mut set = ChunkSet::new();
    for &(index, _) in values {
        set.insert(index);
    }
    set
}
