use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    sync::mpsc,
    thread,
    time::SystemTime,
};

use rustix::{
    fs::Advice,
    io::{Errno, ReadWriteFlags},
};

use super::{Dir, DiskError, Identity, Stat, error::Refusal, space};
use crate::{buf::Buffer, chunk::Digest};

/// How bytes were read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadMethod {
    /// With `O_DIRECT`, past the page cache.
    Direct,
    /// From the medium, after the file was dropped from the page cache and seen not to be there.
    Dropped,
    /// Perhaps from the page cache: the file system offers nothing better.
    Cached,
}

impl ReadMethod {
    /// The word in receipts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Dropped => "dropped",
            Self::Cached => "cached",
        }
    }
}

/// What a second reading of a file found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBack {
    /// BLAKE3 root of what was read.
    pub digest: Digest,
    /// How it was read.
    pub method: ReadMethod,
    /// When reading began, by the wall clock.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
}

impl ReadBack {
    /// Whether the bytes may have come from memory instead of the medium.
    pub fn cached(&self) -> bool {
        self.method == ReadMethod::Cached
    }
}

/// Syncs file `name`, reads it again through a new handle from the medium if that can be had, and hashes it.
///
/// `expected` says which file it must be: another inode or length is `Changed`. An error of the sync is final.
pub fn read_back(dir: &Dir, name: &[u8], expected: &Identity) -> Result<ReadBack, DiskError> {
    read_back_watched(dir, name, expected, &mut |_| true)
}

/// As [`read_back`]. `watch` hears how many more bytes were read, and ends the reading with an error if it says no.
pub fn read_back_watched(
    dir: &Dir,
    name: &[u8],
    expected: &Identity,
    watch: &mut dyn FnMut(u64) -> bool,
) -> Result<ReadBack, DiskError> {
    let started = SystemTime::now();
    let error = |e: io::Error| DiskError::new("read back", dir.child(name), e);
    let file = dir.open_read(name)?;
    check(dir, name, &file, expected)?;
    file.sync_all().map_err(|e| DiskError::new("sync", dir.child(name), e))?;
    // Clean pages go; what stays is looked for below.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);

    let done = |digest, method| ReadBack { digest, method, started, ended: SystemTime::now() };
    if !space::direct_is_doubtful(&file)
        && let Some(direct) = dir.open_direct(name)?
    {
        check(dir, name, &direct, expected)?;
        match hash(&direct, expected.size, watch) {
            Ok(digest) => return Ok(done(digest, ReadMethod::Direct)),
            // Some file systems take the flag and then refuse the reads.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => {}
            Err(e) => return Err(error(e)),
        }
    }
    let method = if is_out_of_cache(&file, expected.size) { ReadMethod::Dropped } else { ReadMethod::Cached };
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
    Ok(done(hash(&file, expected.size, watch).map_err(error)?, method))
}

fn check(dir: &Dir, name: &[u8], file: &File, expected: &Identity) -> Result<(), DiskError> {
    let now = Stat::of_fd(file).map_err(|e| DiskError::new("examine", dir.child(name), e))?.identity;
    if now.same_inode(expected) && now.size == expected.size {
        Ok(())
    } else {
        Err(DiskError::refused("read back", dir.child(name), Refusal::Changed("it is not the file that was written")))
    }
}

fn hash(file: &File, size: u64, watch: &mut dyn FnMut(u64) -> bool) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut take = |bytes: &[u8]| {
        hasher.update(bytes);
        if watch(u64::try_from(bytes.len()).map_err(io::Error::other)?) {
            return Ok(());
        }
        Err(io::Error::other("the reading was stopped"))
    };
    if size <= READ_BYTES as u64 {
        let (mut buffer, mut offset) = (Buffer::detached(READ_BYTES), 0);
        while offset < size {
            offset += read_piece(file, &mut buffer, offset)?;
            take(&buffer)?;
        }
    } else {
        hash_while_reading(file, size, &mut take)?;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// One piece is read while `take` has the one before it.
fn hash_while_reading(file: &File, size: u64, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let (to_reader, empty) = mpsc::sync_channel(PIECES);
    let (to_taker, full) = mpsc::sync_channel(PIECES);
    for _ in 0..PIECES {
        // There is room for all of them.
        let _ = to_reader.send(Buffer::detached(READ_BYTES / PIECES));
    }
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut offset = 0;
            while offset < size {
                // Whoever takes them no more has an error to tell.
                let Ok(mut buffer) = empty.recv() else { break };
                offset += read_piece(file, &mut buffer, offset)?;
                if to_taker.send(buffer).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let mut taken = Ok(());
        for buffer in full {
            taken = take(&buffer);
            if taken.is_err() {
                break;
            }
            // After the last piece nobody waits for another one.
            let _ = to_reader.send(buffer);
        }
        drop(to_reader);
        let read = reading.join().map_err(|_| io::Error::other("the reading ended badly"))?;
        taken.and(read)
    })
}

/// Fills a buffer with what there is at `offset`, at least one byte.
fn read_piece(file: &File, buffer: &mut Buffer, offset: u64) -> io::Result<u64> {
    // The full length also at the end of the file: O_DIRECT wants whole blocks and returns what there is.
    buffer.set_len(buffer.capacity());
    let n = loop {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    buffer.set_len(n);
    u64::try_from(n).map_err(io::Error::other)
}

/// Whether samples of the file, one every 4 MiB and its last byte, are all outside the page cache.
///
/// A read that may not wait fails with EAGAIN exactly where it would have to go to the medium (preadv2(2)).
fn is_out_of_cache(file: &File, size: u64) -> bool {
    if size == 0 || space::is_memory(file) {
        return false;
    }
    // Otherwise a probe brings in what follows it, and the next one would find that.
    if rustix::fs::fadvise(file, 0, None, Advice::Random).is_err() {
        return false;
    }
    let step = u64::try_from(READ_BYTES).unwrap_or(u64::MAX);
    let mut probes = (0..size).step_by(READ_BYTES).chain(Some(size - 1).filter(|last| last % step >= 4096));
    probes.all(|offset| {
        let mut byte = [0];
        let answer = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
        answer == Err(Errno::AGAIN)
    })
}

const READ_BYTES: usize = 4 << 20;
/// Buffers of a large file, which share those bytes.
const PIECES: usize = 2;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::{chunk::RelPath, disk::Root};

    fn check_in(dir: &Path) -> Vec<ReadMethod> {
        let root = Root::open(dir).unwrap();
        let mut methods = Vec::new();
        for size in [0usize, 1, 4095, 4096, 4097, (4 << 20) - 1, 4 << 20, (9 << 20) + 5] {
            let bytes: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            fs::write(dir.join("f"), &bytes).unwrap();
            let identity = root.stat(&RelPath::new(b"f".to_vec()).unwrap()).unwrap().unwrap().identity;
            let read = read_back(root.handle(), b"f", &identity).unwrap();
            assert_eq!(read.digest, Digest::of(&bytes), "{size} bytes by {:?}", read.method);
            assert!(read.started <= read.ended);
            let other = Identity { ino: identity.ino + 1, ..identity };
            assert!(read_back(root.handle(), b"f", &other).is_err());
            methods.push(read.method);
        }
        methods
    }

    #[test]
    fn what_is_read_back_is_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        println!("{:?}", check_in(dir.path()));
    }

    #[test]
    fn a_reading_counts_every_byte_once_and_ends_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for size in [100u64, (9 << 20) + 5] {
            fs::write(dir.path().join("f"), vec![3; usize::try_from(size).unwrap()]).unwrap();
            let identity = root.stat(&RelPath::new(b"f".to_vec()).unwrap()).unwrap().unwrap().identity;
            let mut seen = 0;
            let mut count = |bytes| {
                seen += bytes;
                true
            };
            read_back_watched(root.handle(), b"f", &identity, &mut count).unwrap();
            assert_eq!(seen, size);
            let mut asked = 0;
            let mut refuse = |_| {
                asked += 1;
                false
            };
            read_back_watched(root.handle(), b"f", &identity, &mut refuse).unwrap_err();
            assert_eq!(asked, 1);
        }
    }

    /// Memory has no medium to read from, and must not claim one. Seen to fail with tmpfs not looked for.
    #[test]
    fn memory_is_said_to_be_cached() {
        let shm = Path::new("/dev/shm");
        let Ok(dir) = tempfile::tempdir_in(shm) else {
            println!("SKIP: no /dev/shm to write to");
            return;
        };
        assert!(check_in(dir.path()).iter().all(|m| *m == ReadMethod::Cached));
    }

    /// The way without `O_DIRECT`: what is cached is seen to be, and what was dropped is not.
    #[test]
    fn dropped_pages_are_seen_to_be_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let size = 9 << 20;
        fs::write(dir.path().join("f"), vec![3; size]).unwrap();
        let file = root.handle().open_read(b"f").unwrap();
        let size = u64::try_from(size).unwrap();
        assert!(!is_out_of_cache(&file, size), "just written, so it must be cached");
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if space::direct_is_doubtful(&file) {
            println!("SKIP: the working directory is not on a disk");
            return;
        }
        assert!(is_out_of_cache(&file, size));
    }
}
