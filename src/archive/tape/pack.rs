//! A tree as one object: a tar stream in the order of the canonical manifest, so that its tree digest can be computed from the
//! stream.
//!
//! Each entry has PAX records for its path, its modification time to the nanosecond and, where it is a link, its target;
//! owners are 0. Equal trees make equal streams. Holes become zeros.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read},
    os::unix::fs::FileExt as _,
};

use tar::{Archive, Builder, EntryType, Header};
use tokio_util::sync::CancellationToken;

use super::super::{ArchiveError, failure, watch::Watch};
use crate::{
    chunk::{Digest, RelPath},
    disk::{DiskError, FileMeta, Root, SourceFile, Timestamp, write_sparse},
    engine::{Look, walk},
    protocol::{Entry, EntryKind, Meta, TreeHasher},
};

const BUFFER_BYTES: usize = 1 << 20;
/// A path, a link's target and a time, with room to spare.
const MAX_RECORDS_BYTES: u64 = 64 << 10;
/// Space in a header for a path; a longer one is cut there, and whole in its PAX record.
const HEADER_PATH_BYTES: usize = 100;

/// Writes a tree to a tar stream while its digest is computed.
pub(super) struct Packer<'a> {
    tar: Builder<BufWriter<File>>,
    stop: &'a CancellationToken,
    // Why the stream could not be written; the walk then ends with an error of its own.
    failed: Option<io::Error>,
}

impl<'a> Packer<'a> {
    /// A stream into `file`.
    pub(super) fn new(file: File, stop: &'a CancellationToken) -> Self {
        let tar = Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        Self { tar, stop, failed: None }
    }

    /// Why the stream could not be written, if that is what ended the walk.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    /// Ends the stream.
    pub(super) fn finish(self) -> io::Result<()> {
        self.tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }

    fn header(
        &mut self,
        kind: EntryType,
        path: &[u8],
        (mode, mtime): (u32, (i64, u32)),
        size: u64,
        target: &[u8],
    ) -> io::Result<Header> {
        let time = pax_time(mtime);
        let mut records = vec![("path", path), ("mtime", time.as_bytes())];
        if !target.is_empty() {
            records.push(("linkpath", target));
        }
        self.tar.append_pax_extensions(records)?;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(mtime.0).unwrap_or(0));
        header.set_size(size);
        let cut = &path[..path.len().min(HEADER_PATH_BYTES)];
        header.as_old_mut().name[..cut.len()].copy_from_slice(cut);
        let cut = &target[..target.len().min(HEADER_PATH_BYTES)];
        header.as_old_mut().linkname[..cut.len()].copy_from_slice(cut);
        header.set_cksum();
        Ok(header)
    }

    fn written<T>(&mut self, path: &RelPath, result: io::Result<T>) -> Result<T, DiskError> {
        result.map_err(|error| {
            let text = error.to_string();
            self.failed.get_or_insert(error);
            DiskError::new("pack", path.as_bytes(), io::Error::other(text))
        })
    }
}

/// Seconds and nanoseconds as a decimal number, as PAX has times.
fn pax_time((seconds, nanoseconds): (i64, u32)) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        // 1.25 s before the epoch are second -2 and 750,000,000 ns.
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

fn parse_pax_time(text: &str) -> Option<(i64, u32)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds = match part {
        "" => 0,
        part => format!("{part:0<9}").get(..9)?.parse::<u32>().ok()?,
    };
    match whole.strip_prefix('-') {
        Some(before) if nanoseconds > 0 => {
            Some((before.parse::<i64>().ok()?.checked_neg()?.checked_sub(1)?, 1_000_000_000 - nanoseconds))
        }
        _ => Some((whole.parse().ok()?, nanoseconds)),
    }
}

impl Look for Packer<'_> {
    fn file(&mut self, folder: &Root, path: &RelPath) -> Result<(u64, Digest), DiskError> {
        let file = SourceFile::open(folder, path)?;
        file.advise_sequential();
        let stat = *file.stat();
        let (size, mtime) = (stat.identity.size, stat.identity.mtime);
        let times = (mtime.seconds, mtime.nanoseconds);
        let header = self.header(EntryType::Regular, path.as_bytes(), (stat.mode, times), size, &[]);
        let header = self.written(path, header)?;
        let mut reading =
            Reading { file: &file, at: 0, size, hasher: blake3::Hasher::new(), stop: self.stop, failed: None };
        let appended = self.tar.append(&header, &mut reading);
        let (hasher, failed) = (reading.hasher, reading.failed);
        if let Some(error) = failed {
            return Err(error);
        }
        self.written(path, appended)?;
        file.check_unchanged()?;
        Ok((size, Digest(*hasher.finalize().as_bytes())))
    }

    fn entry(&mut self, path: RelPath, meta: &walk::Meta, kind: &EntryKind) -> Result<(RelPath, u32), DiskError> {
        let facts = (meta.mode, (meta.mtime.seconds, meta.mtime.nanoseconds));
        let header = match kind {
            EntryKind::Dir => {
                let with_slash = [path.as_bytes(), b"/"].concat();
                self.header(EntryType::Directory, &with_slash, facts, 0, &[])
            }
            EntryKind::Symlink { target } => {
                self.header(EntryType::Symlink, path.as_bytes(), (0o777, facts.1), 0, target)
            }
            _ => return Ok((path, meta.mode)),
        };
        let appended = header.and_then(|header| self.tar.append(&header, io::empty()));
        self.written(&path, appended)?;
        if self.stop.is_cancelled() {
            return Err(DiskError::new("pack", path.as_bytes(), io::Error::other("it was stopped")));
        }
        Ok((path, meta.mode))
    }
}

/// A source file as a stream, hashed on its way.
struct Reading<'a> {
    file: &'a SourceFile,
    at: u64,
    size: u64,
    hasher: blake3::Hasher,
    stop: &'a CancellationToken,
    failed: Option<DiskError>,
}

impl Read for Reading<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("it was stopped"));
        }
        let n = into.len().min(usize::try_from(self.size - self.at).unwrap_or(usize::MAX));
        let into = &mut into[..n];
        if let Err(error) = self.file.read_exact_at(into, self.at) {
            let text = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(text));
        }
        self.hasher.update(into);
        self.at += u64::try_from(n).map_err(io::Error::other)?;
        Ok(n)
    }
}

/// What a tar stream holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The tree digest; of a stream that is no package, the BLAKE3 hash of its bytes.
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    pub(super) file_count: u64,
}

/// Why the tree of a stream could not be told.
enum Trouble {
    /// It is no stream that [`Packer`] makes.
    Garbage,
    /// What is unpacked could not be written, or the stream not read.
    Failed(ArchiveError),
}

impl From<io::Error> for Trouble {
    fn from(_: io::Error) -> Self {
        Self::Garbage
    }
}

/// Reads the tree in the stream `file`, and unpacks it below `into` where that is given. At most `most` bytes of files are
/// read: a package has no more.
pub(super) fn read(
    file: &File,
    into: Option<&Root>,
    most: u64,
    watch: &Watch,
    stop: &CancellationToken,
) -> Result<Held, ArchiveError> {
    let unpacking = Unpacking { into, most, watch, stop };
    match unpacking.read(file) {
        Ok(held) => Ok(held),
        Err(Trouble::Failed(error)) => Err(error),
        Err(Trouble::Garbage) if stop.is_cancelled() => Err(failure::cancelled("cannot read what came from tape")),
        Err(Trouble::Garbage) => {
            let digest = hash(file, stop).map_err(|e| {
                failure::of_disk("cannot read what came from tape", &DiskError::new("read", *b"object", e))
            })?;
            Ok(Held { digest, size_bytes: 0, file_count: 0 })
        }
    }
}

fn hash(file: &File, stop: &CancellationToken) -> io::Result<Digest> {
    let (mut hasher, mut at, mut buffer) = (blake3::Hasher::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 || stop.is_cancelled() {
            return Ok(Digest(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..n]);
        at += u64::try_from(n).map_err(io::Error::other)?;
    }
}

struct Unpacking<'a> {
    into: Option<&'a Root>,
    most: u64,
    watch: &'a Watch,
    stop: &'a CancellationToken,
}

impl Unpacking<'_> {
    fn read(&self, file: &File) -> Result<Held, Trouble> {
        let mut tar = Archive::new(BufReader::with_capacity(BUFFER_BYTES, file));
        let mut tree = TreeHasher::default();
        let mut held = Held { digest: Digest([0; 32]), size_bytes: 0, file_count: 0 };
        let mut folders = Vec::new();
        let mut entries = 0;
        let mut records = Records::default();
        // The library splits records at newlines, which names may hold; so it hands them out as they are.
        for entry in tar.entries()?.raw(true) {
            let mut entry = entry?;
            if self.stop.is_cancelled() {
                return Err(Trouble::Garbage);
            }
            if entry.header().entry_type() == EntryType::XHeader {
                let mut bytes = Vec::new();
                entry.by_ref().take(MAX_RECORDS_BYTES).read_to_end(&mut bytes)?;
                records = Records::parse(&bytes).ok_or(Trouble::Garbage)?;
                continue;
            }
            let Records { path, target, mtime } = std::mem::take(&mut records);
            let path = RelPath::new(path.strip_suffix(b"/").unwrap_or(&path)).map_err(|_| Trouble::Garbage)?;
            let mode = entry.header().mode()? & 0o7777;
            let meta = FileMeta { mode: Some(mode), mtime, owner: None };
            let mut digest = None;
            let kind = match entry.header().entry_type() {
                EntryType::Directory => {
                    self.with(|into| into.make_dirs_unsynced(&path, 0o700).map(drop))?;
                    folders.push((path.clone(), meta));
                    EntryKind::Dir
                }
                EntryType::Symlink => {
                    self.with(|into| {
                        into.symlink(&target, &path)?;
                        into.set_metadata(&path, &FileMeta { mode: None, ..meta })
                    })?;
                    EntryKind::Symlink { target }
                }
                EntryType::Regular => {
                    let size = entry.size();
                    if held.size_bytes.checked_add(size).is_none_or(|all| all > self.most) {
                        return Err(Trouble::Garbage);
                    }
                    digest = Some(self.file(&mut entry, &path, size, &meta)?);
                    held.size_bytes += size;
                    held.file_count += 1;
                    EntryKind::File { size, sparse: false, expected: None }
                }
                _ => return Err(Trouble::Garbage),
            };
            let meta = Meta { mode, ..Meta::default() };
            tree.insert(entries, &Entry { path, meta, kind }, digest.as_ref());
            entries += 1;
        }
        // Innermost first: what is made in a folder changes its time.
        for (path, meta) in folders.iter().rev() {
            self.with(|into| into.set_metadata(path, meta))?;
        }
        held.digest = tree.digest(entries).ok_or(Trouble::Garbage)?;
        Ok(held)
    }

    fn with(&self, work: impl FnOnce(&Root) -> Result<(), DiskError>) -> Result<(), Trouble> {
        let done = self.into.map_or(Ok(()), work);
        done.map_err(|e| Trouble::Failed(failure::of_disk("cannot unpack what came from tape", &e)))
    }

    fn file(&self, from: &mut impl Read, path: &RelPath, size: u64, meta: &FileMeta) -> Result<Digest, Trouble> {
        let failed = |e| Trouble::Failed(failure::of_disk("cannot unpack what came from tape", &e));
        let made = self.into.map(|into| {
            let (dir, name) = into.parent(path)?;
            dir.create_file(name)
        });
        let made = made.transpose().map_err(failed)?;
        let (mut hasher, mut at, mut buffer) = (blake3::Hasher::new(), 0, vec![0; BUFFER_BYTES]);
        while at < size {
            if self.stop.is_cancelled() {
                return Err(Trouble::Garbage);
            }
            let left = usize::try_from(size - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact(&mut buffer[..left])?;
            hasher.update(&buffer[..left]);
            if let Some(file) = &made {
                write_sparse(file, &buffer[..left], at, true)
                    .map_err(|e| failed(DiskError::new("write", path.as_bytes(), e)))?;
            }
            let read = u64::try_from(left).unwrap_or(u64::MAX);
            self.watch.add(read);
            at += read;
        }
        if let Some(file) = &made {
            file.set_len(size).map_err(|e| failed(DiskError::new("write", path.as_bytes(), e)))?;
        }
        self.with(|into| into.set_metadata(path, meta))?;
        Ok(Digest(*hasher.finalize().as_bytes()))
    }
}

/// What stands in the PAX records before an entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Records {
    path: Vec<u8>,
    target: Vec<u8>,
    mtime: Option<Timestamp>,
}

impl Records {
    /// Records are `LENGTH KEY=VALUE` and a newline, LENGTH being that of all of it.
    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut found = Self::default();
        while !bytes.is_empty() {
            let space = bytes.iter().position(|b| *b == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let (record, rest) = bytes.split_at_checked(length)?;
            let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|b| *b == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => found.path = value.to_vec(),
                b"linkpath" => found.target = value.to_vec(),
                b"mtime" => {
                    let (seconds, nanoseconds) = parse_pax_time(std::str::from_utf8(value).ok()?)?;
                    found.mtime = Some(Timestamp { seconds, nanoseconds });
                }
                _ => {}
            }
            bytes = rest;
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_numbers_before_the_epoch_too() {
        for (time, text) in [
            ((0, 0), "0"),
            ((5, 7), "5.000000007"),
            ((-2, 750_000_000), "-1.250000000"),
            ((-1, 999_999_999), "-0.000000001"),
            ((-3, 0), "-3"),
        ] {
            assert_eq!(pax_time(time), text);
            assert_eq!(parse_pax_time(text), Some(time));
        }
        assert_eq!(parse_pax_time("1.5"), Some((1, 500_000_000)));
        assert_eq!(parse_pax_time("x"), None);
    }

    #[test]
    fn records_hold_any_bytes_and_damaged_ones_are_none() {
        let found = Records::parse(b"19 path=new\nline=\xff\n13 mtime=1.5\n13 comment=x\n").unwrap();
        assert_eq!(found.path, b"new\nline=\xff");
        assert_eq!(found.mtime, Some(Timestamp { seconds: 1, nanoseconds: 500_000_000 }));
        for damaged in [&b"20 path=a\n"[..], b"x", b"5 a=b", b"0 a=b\n", b"1 a=b\n", b"99999999999999999999 a=b\n"] {
            assert_eq!(Records::parse(damaged), None, "{}", String::from_utf8_lossy(damaged));
        }
    }
}
