use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    time::{SystemTime, UNIX_EPOCH},
};

use super::record::{Body, FRAME_BYTES, MAX_BODY_BYTES, Record, RecordError};
use crate::chunk::{ChunkSet, ChunkSize, Digest, RelPath};

/// The end of a journal, to which records are added. Reading happens once, in [`replay`].
#[derive(Debug)]
pub(super) struct Log {
    end: u64,
    header_end: u64,
    next_sequence: u64,
}

impl Log {
    /// Writes the header of a new journal.
    pub(super) fn create(mut file: &File, writer: [u8; 16]) -> io::Result<Self> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let header = Record { sequence: 0, body: Body::Header { writer, created } }.encode();
        file.write_all(&header)?;
        let end = len_u64(header.len())?;
        Ok(Self { end, header_end: end, next_sequence: 1 })
    }

    /// Goes on where a journal that was read ends, after its torn tail was cut.
    pub(super) fn resume(file: &File, replayed: &Replayed) -> io::Result<Self> {
        if replayed.torn {
            file.set_len(replayed.end)?;
            // Otherwise a later crash could bring the old tail back behind new records.
            file.sync_all()?;
        }
        Ok(Self { end: replayed.end, header_end: replayed.header_end, next_sequence: replayed.next_sequence })
    }

    /// Adds records with one write. They are durable once the file is synced.
    ///
    /// After an error the tail is undefined; the caller gives the journal up.
    pub(super) fn append(&mut self, file: &File, bodies: impl IntoIterator<Item = Body>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for body in bodies {
            bytes.extend_from_slice(&Record { sequence: self.next_sequence, body }.encode());
            self.next_sequence += 1;
            if bytes.len() >= WRITE_BYTES {
                self.write(file, &mut bytes)?;
            }
        }
        self.write(file, &mut bytes)
    }

    fn write(&mut self, file: &File, bytes: &mut Vec<u8>) -> io::Result<()> {
        file.write_all_at(bytes, self.end)?;
        self.end += len_u64(bytes.len())?;
        bytes.clear();
        Ok(())
    }

    /// Whether so much was written that cutting the file back is worth a sync.
    pub(super) fn is_long(&self) -> bool {
        self.end - self.header_end > COMPACT_BYTES
    }

    /// Cuts the journal back to its header, when nothing in it is alive. Sequence numbers go on.
    pub(super) fn compact(&mut self, file: &File) -> io::Result<()> {
        file.set_len(self.header_end)?;
        // Durable before anything is added: a record must never lie behind the remains of an older one.
        file.sync_all()?;
        self.end = self.header_end;
        Ok(())
    }
}

/// What reading a journal from its start found.
#[derive(Debug)]
pub(super) struct Replayed {
    /// The header was there and of a version that this program knows.
    pub(super) known: bool,
    /// Something lies behind the last good record.
    pub(super) torn: bool,
    /// What lies there is complete, but no record, and not the zeros that a crash leaves where a write did not arrive.
    pub(super) damaged: bool,
    /// It is not torn but foreign: some record is of a newer kind, so the journal must be left alone.
    pub(super) foreign: bool,
    /// By the writer's clock, in seconds since 1970.
    pub(super) created: u64,
    end: u64,
    header_end: u64,
    next_sequence: u64,
}

/// Reads a journal and shows every good record to `visit`, in order, up to the first that is not good.
///
/// Memory stays bounded by the longest record, whatever the file holds.
pub(super) fn replay(file: &File, mut visit: impl FnMut(Body)) -> io::Result<Replayed> {
    let mut found = Replayed {
        known: false,
        torn: false,
        damaged: false,
        foreign: false,
        created: 0,
        end: 0,
        header_end: 0,
        next_sequence: 0,
    };
    let mut window = Vec::new();
    let (mut used, mut offset, mut at_end) = (0, 0, false);
    loop {
        let error = match Record::decode(window.get(used..).unwrap_or_default()) {
            Ok((record, len)) => {
                let first_after_header = found.known && found.end == found.header_end;
                let in_order = record.sequence == found.next_sequence
                    || (first_after_header && record.sequence > found.next_sequence);
                let header = matches!(record.body, Body::Header { .. });
                if in_order && header != found.known {
                    used += len;
                    found.end += len_u64(len)?;
                    found.next_sequence = record.sequence.saturating_add(1);
                    if let Body::Header { created, .. } = record.body {
                        (found.known, found.created, found.header_end) = (true, created, found.end);
                    } else {
                        visit(record.body);
                    }
                    continue;
                }
                RecordError::Malformed
            }
            Err(e) => e,
        };
        if error != RecordError::Incomplete || at_end {
            found.foreign = error == RecordError::Unknown || (!found.known && error != RecordError::Incomplete);
            let tail = window.get(used..).unwrap_or_default();
            found.torn = !tail.is_empty();
            found.damaged = error != RecordError::Incomplete && tail.iter().any(|&b| b != 0);
            return Ok(found);
        }
        window.drain(..used);
        used = 0;
        let old = window.len();
        window.resize(old + READ_BYTES, 0);
        let n = read_some(file, &mut window[old..], offset)?;
        window.truncate(old + n);
        offset += len_u64(n)?;
        at_end = n == 0;
    }
}

fn read_some(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buf, offset) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn len_u64(len: usize) -> io::Result<u64> {
    u64::try_from(len).map_err(io::Error::other)
}

/// What a journal says of the parts that are alive in it, without the values of their chunks.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) parts: HashMap<u32, Listed>,
    /// Above every number that was ever used here.
    pub(super) next_part: u32,
}

/// One part, as its journal has it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) path: RelPath,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) content: Content,
}

/// How much of a part is durable.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Some chunks.
    Chunks { chunk_size: ChunkSize, held: ChunkSet },
    /// The whole file.
    Whole { digest: Digest },
}

impl Listing {
    pub(super) fn apply(&mut self, body: Body) {
        match body {
            Body::Part { part, inode, size, chunk_size, sparse: _, path } => {
                self.note(part);
                let content = Content::Chunks { chunk_size, held: ChunkSet::new() };
                self.parts.insert(part, Listed { path, inode, size, content });
            }
            Body::Whole { part, inode, size, digest, path } => {
                self.note(part);
                self.parts.insert(part, Listed { path, inode, size, content: Content::Whole { digest } });
            }
            Body::Chunks { part, first, values } => {
                if let Some(Listed { size, content: Content::Chunks { chunk_size, held, .. }, .. }) =
                    self.parts.get_mut(&part)
                {
                    let count = u64::try_from(values.len()).unwrap_or(u64::MAX);
                    let total = chunk_size.count(*size);
                    held.insert_range(first.min(total), count.min(total - first.min(total)));
                }
            }
            Body::Ended { part } => {
                self.parts.remove(&part);
            }
            Body::Header { .. } | Body::Fence { .. } | Body::Receipt { .. } => {}
        }
    }

    fn note(&mut self, part: u32) {
        self.next_part = self.next_part.max(part.saturating_add(1));
    }

    pub(super) fn read(file: &File) -> io::Result<(Self, Replayed)> {
        let mut listing = Self::default();
        let replayed = replay(file, |body| listing.apply(body))?;
        Ok((listing, replayed))
    }
}

impl Listed {
    /// Bytes that the journal says are durable.
    pub(super) fn held_bytes(&self) -> u64 {
        match &self.content {
            Content::Whole { .. } => self.size,
            Content::Chunks { chunk_size, held, .. } => {
                let bytes = |(first, count): (u64, u64)| {
                    let end = first.saturating_add(count).saturating_mul(chunk_size.bytes()).min(self.size);
                    end.saturating_sub(first.saturating_mul(chunk_size.bytes()))
                };
                held.ranges().map(bytes).sum()
            }
        }
    }
}

const READ_BYTES: usize = 256 << 10;
const WRITE_BYTES: usize = MAX_BODY_BYTES + FRAME_BYTES;
/// A few hundred small files: below it, cutting would cost more syncs than it saves bytes.
const COMPACT_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkValue;

    fn journal() -> (File, Vec<u64>) {
        let file = tempfile::tempfile().unwrap();
        let mut log = Log::create(&file, [3; 16]).unwrap();
        let mut ends = vec![log.end];
        let path = RelPath::new(b"a/b".to_vec()).unwrap();
        let chunk_size = ChunkSize::DEFAULT;
        for body in [
            Body::Part { part: 1, inode: 5, size: 40 << 20, chunk_size, sparse: false, path: path.clone() },
            Body::Chunks { part: 1, first: 0, values: vec![ChunkValue([1; 32]); 2] },
            Body::Whole { part: 2, inode: 6, size: 3, digest: Digest([2; 32]), path },
            Body::Chunks { part: 1, first: 9, values: vec![ChunkValue([1; 32]); 5] },
            Body::Ended { part: 2 },
        ] {
            log.append(&file, [body]).unwrap();
            ends.push(log.end);
        }
        (file, ends)
    }

    #[test]
    fn a_journal_says_what_was_appended() {
        let (file, ends) = journal();
        let (listing, replayed) = Listing::read(&file).unwrap();
        assert!(replayed.known && !replayed.torn && !replayed.foreign);
        assert_eq!(replayed.end, *ends.last().unwrap());
        assert_eq!(listing.next_part, 3);
        // Chunks past the end of the file are not believed.
        assert_eq!(listing.parts[&1].held_bytes(), 3 * (4 << 20));
        assert_eq!(listing.parts.len(), 1);
    }

    /// Seen to fail with the cut left out of `resume`.
    #[test]
    fn a_torn_tail_is_cut_at_every_byte_and_the_journal_goes_on() {
        let (whole, ends) = journal();
        let mut bytes = vec![0; usize::try_from(*ends.last().unwrap()).unwrap()];
        whole.read_exact_at(&mut bytes, 0).unwrap();
        for cut in 0..bytes.len() {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes[..cut], 0).unwrap();
            let mut seen = 0;
            let replayed = replay(&file, |_| seen += 1).unwrap();
            let good = ends.iter().rposition(|&end| end <= u64::try_from(cut).unwrap());
            assert_eq!(replayed.known, good.is_some());
            assert!(!replayed.foreign);
            let Some(good) = good else { continue };
            assert_eq!((seen, replayed.end), (good, ends[good]));
            assert_eq!(replayed.torn, ends[good] != u64::try_from(cut).unwrap());
            let mut log = Log::resume(&file, &replayed).unwrap();
            log.append(&file, [Body::Ended { part: 77 }]).unwrap();
            let mut last = None;
            assert!(!replay(&file, |body| last = Some(body)).unwrap().torn);
            assert_eq!(last, Some(Body::Ended { part: 77 }));
        }
    }

    /// Seen to fail with the check value not compared.
    #[test]
    fn every_flipped_bit_ends_the_journal_there() {
        let (whole, ends) = journal();
        let mut bytes = vec![0; usize::try_from(*ends.last().unwrap()).unwrap()];
        whole.read_exact_at(&mut bytes, 0).unwrap();
        let mut good_bodies = Vec::new();
        replay(&whole, |body| good_bodies.push(body)).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bad, 0).unwrap();
            let mut bodies = Vec::new();
            let replayed = replay(&file, |body| bodies.push(body)).unwrap();
            let hit = ends.iter().filter(|&&end| end <= u64::try_from(bit / 8).unwrap()).count();
            assert_eq!(replayed.known, hit > 0, "bit {bit}");
            assert_eq!(bodies, good_bodies[..hit.saturating_sub(1)], "bit {bit}");
        }
    }

    /// A record that was lost in the middle ends the journal too. Seen to fail with the sequence not compared.
    #[test]
    fn a_missing_record_is_noticed() {
        let (whole, ends) = journal();
        let mut bytes = vec![0; usize::try_from(*ends.last().unwrap()).unwrap()];
        whole.read_exact_at(&mut bytes, 0).unwrap();
        let [from, to] = [ends[1], ends[2]].map(|end| usize::try_from(end).unwrap());
        bytes.drain(from..to);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let replayed = replay(&file, |_| {}).unwrap();
        assert!(replayed.torn);
        assert_eq!(replayed.end, ends[1]);
    }

    #[test]
    fn a_compacted_journal_goes_on() {
        let (file, _) = journal();
        let replayed = replay(&file, |_| {}).unwrap();
        let mut log = Log::resume(&file, &replayed).unwrap();
        log.compact(&file).unwrap();
        log.append(&file, [Body::Ended { part: 1 }, Body::Ended { part: 2 }]).unwrap();
        let mut seen = 0;
        let replayed = replay(&file, |_| seen += 1).unwrap();
        assert_eq!((seen, replayed.torn), (2, false));
    }
}
