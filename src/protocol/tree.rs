use std::collections::BTreeMap;

use super::{Entry, EntryKind, Writer};
use crate::chunk::Digest;

/// Version of the canonical manifest, its first byte.
const CANONICAL_VERSION: u8 = 1;

/// Hashes the canonical manifest of a tree while its entries reach their ends in any order.
///
/// The canonical manifest is the version byte 1, then for every directory, file and link in the order of the manifest
/// (which is that of path bytes, a directory's path ending in `/`): type (1 file, 2 directory, 4 link), path length
/// (u32) and bytes, mode (u32), size (u64), link target length (u32) and bytes, and for a file its 32-byte root. The
/// mode of a link counts as 0o777.
#[derive(Debug)]
pub struct TreeHasher {
    hasher: blake3::Hasher,
    // Entries that are done while an earlier one is not.
    waiting: BTreeMap<u64, Option<Vec<u8>>>,
    waiting_bytes: usize,
    next: u64,
    whole: bool,
}

impl Default for TreeHasher {
    fn default() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[CANONICAL_VERSION]);
        Self { hasher, waiting: BTreeMap::new(), waiting_bytes: 0, next: 0, whole: true }
    }
}

impl TreeHasher {
    /// Adds an entry that is where it should be; `root` is that of a file.
    pub fn insert(&mut self, id: u64, entry: &Entry, root: Option<&Digest>) {
        let (code, size, target): (u8, u64, &[u8]) = match &entry.kind {
            EntryKind::File { size, .. } => (1, *size, &[]),
            EntryKind::Dir => (2, 0, &[]),
            EntryKind::Symlink { target } => (4, 0, target),
            EntryKind::DirEnd | EntryKind::Skipped | EntryKind::Failed { .. } => return self.settle(id, None),
        };
        let mut path = entry.path.as_bytes().to_vec();
        if code == 2 {
            path.push(b'/');
        }
        let mode = if code == 4 { 0o777 } else { entry.meta.mode };
        let mut w = Writer::new();
        w.u8(code).count(path.len()).raw(&path).u32(mode).u64(size).count(target.len()).raw(target);
        if code == 1 {
            match root {
                Some(root) => w.raw(&root.0),
                None => return self.fail(id),
            };
        }
        self.settle(id, Some(w.into_bytes()));
    }

    /// Notes that an entry failed: the tree has no digest.
    pub fn fail(&mut self, id: u64) {
        self.whole = false;
        self.settle(id, None);
    }

    fn settle(&mut self, id: u64, line: Option<Vec<u8>>) {
        // What is below `next` was hashed: a second word on it changes nothing and must not wait for ever.
        if id < self.next || self.waiting.contains_key(&id) {
            return;
        }
        self.waiting_bytes += cost(line.as_ref());
        self.waiting.insert(id, line);
        while let Some(line) = self.waiting.remove(&self.next) {
            self.waiting_bytes -= cost(line.as_ref());
            if let Some(line) = line {
                self.hasher.update(&line);
            }
            self.next += 1;
        }
    }

    /// What the entries cost that are done while an earlier one is not: the length of each one's line, and 24 bytes.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The digest of the first `entries` entries, once all of them are done and none failed.
    pub fn digest(&self, entries: u64) -> Option<Digest> {
        (self.whole && self.next == entries).then(|| Digest(*self.hasher.finalize().as_bytes()))
    }
}

fn cost(line: Option<&Vec<u8>>) -> usize {
    24 + line.map_or(0, Vec::len)
}
