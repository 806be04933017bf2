use rand::{Rng, rngs::StdRng};

use crate::chunk::{ChunkSize, Digest, RelPath};
use crate::protocol::{Class, Entry, EntryKind, Meta};

/// A source tree in memory: its entries in manifest order. The id of an entry is its position.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    pub(super) entries: Vec<SourceEntry>,
}

#[derive(Clone, Debug)]
pub(super) struct SourceEntry {
    pub(super) entry: Entry,
    pub(super) bytes: Vec<u8>,
    pub(super) fault: Option<Fault>,
}

/// What goes wrong with a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It cannot be read.
    Unreadable,
    /// It is another file when its last chunk was read.
    Changed,
}

impl Source {
    pub(super) fn add(&mut self, path: &str, kind: EntryKind, bytes: Vec<u8>) -> u64 {
        let meta = Meta { mode: 0o644, mtime_s: 1_700_000_000, mtime_ns: 5, uid: 1, gid: 1 };
        let path = RelPath::new(path.as_bytes()).unwrap();
        self.entries.push(SourceEntry { entry: Entry { path, meta, kind }, bytes, fault: None });
        self.entries.len() as u64 - 1
    }

    pub(super) fn file(&mut self, path: &str, bytes: Vec<u8>) -> u64 {
        let kind = EntryKind::File { size: bytes.len() as u64, sparse: false, expected: None };
        self.add(path, kind, bytes)
    }

    pub(super) fn sparse(&mut self, path: &str, bytes: Vec<u8>) -> u64 {
        let kind = EntryKind::File { size: bytes.len() as u64, sparse: true, expected: None };
        self.add(path, kind, bytes)
    }

    pub(super) fn random_file(&mut self, path: &str, len: u64, rng: &mut StdRng) -> u64 {
        self.file(path, random_bytes(len, rng))
    }

    /// Files of every size at which something changes, a sparse one, and one entry of every other kind.
    pub(super) fn of_everything(size: ChunkSize, rng: &mut StdRng) -> Self {
        let mut source = Self::default();
        let c = size.bytes();
        source.add("d", EntryKind::Dir, Vec::new());
        source.add("d/empty", EntryKind::Dir, Vec::new());
        source.add("d/empty", EntryKind::DirEnd, Vec::new());
        for len in [0, 1, c - 1, c, c + 1, 4 * c, 5 * c, 5 * c + 1, 9 * c - 1] {
            source.random_file(&format!("d/f{len:08}"), len, rng);
        }
        let mut sparse = vec![0; usize::try_from(12 * c + 17).unwrap()];
        sparse[usize::try_from(5 * c).unwrap()] = 1;
        sparse[usize::try_from(9 * c).unwrap()..usize::try_from(10 * c).unwrap()].fill(7);
        source.sparse("d/g-sparse", sparse);
        source.sparse("d/h-all-hole", vec![0; usize::try_from(3 * c).unwrap()]);
        source.add("d/link", EntryKind::Symlink { target: b"f00000001".to_vec() }, Vec::new());
        source.add("d/pipe", EntryKind::Skipped, Vec::new());
        source.add("d", EntryKind::DirEnd, Vec::new());
        for n in 0..20 {
            source.random_file(&format!("small-{n:02}"), 37 * n, rng);
        }
        source
    }

    pub(super) fn add_failed(&mut self, path: &str) -> u64 {
        self.add(path, EntryKind::Failed { class: Class::Source, text: "permission denied".into() }, Vec::new())
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.bytes.len() as u64).sum()
    }

    /// The tree digest, put together anew from the definition of the canonical manifest.
    pub(super) fn tree_digest(&self) -> Digest {
        let mut out = vec![1u8];
        for SourceEntry { entry, bytes, .. } in &self.entries {
            let mut path = entry.path.as_bytes().to_vec();
            let (code, mode, target): (u8, u32, &[u8]) = match &entry.kind {
                EntryKind::File { .. } => (1, entry.meta.mode, &[]),
                EntryKind::Dir => {
                    path.push(b'/');
                    (2, entry.meta.mode, &[])
                }
                EntryKind::Symlink { target } => (4, 0o777, target),
                _ => continue,
            };
            out.push(code);
            out.extend(u32::try_from(path.len()).unwrap().to_le_bytes());
            out.extend(path);
            out.extend(mode.to_le_bytes());
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(u32::try_from(target.len()).unwrap().to_le_bytes());
            out.extend(target);
            if code == 1 {
                out.extend(blake3::hash(bytes).as_bytes());
            }
        }
        Digest(*blake3::hash(&out).as_bytes())
    }
}

pub(super) fn random_bytes(len: u64, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    rng.fill_bytes(&mut bytes);
    bytes
}
