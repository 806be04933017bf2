use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::chunk::{ChunkSize, ChunkValue, Digest, chunk_value};
use crate::protocol::{Class, Done, Entry, EntryKind, Prepared};

/// A destination in memory. It knows files by path, as a real one does, and asserts what must hold of every publish.
#[derive(Clone, Debug, Default)]
pub(super) struct Destination {
    pub(super) files: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) dirs: BTreeSet<Vec<u8>>,
    pub(super) closed: BTreeSet<Vec<u8>>,
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Chunks of unfinished files, as another attempt left them or this one has written them.
    pub(super) parts: BTreeMap<Vec<u8>, BTreeMap<u64, Vec<u8>>>,
    /// Parts that hold something of another attempt.
    pub(super) resumable: BTreeSet<Vec<u8>>,
    /// Files that somebody else puts under a name just before it is published.
    pub(super) intruders: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) published: BTreeSet<Vec<u8>>,
    /// A file of which every chunk takes this long to write.
    pub(super) slow: Option<(Vec<u8>, Duration)>,
    pub(super) overwrite: bool,
    pub(super) finished: bool,
}

/// What became of a publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Published {
    Yes,
    NameTaken,
}

impl Destination {
    pub(super) fn holds(&self, path: &[u8]) -> bool {
        self.files.contains_key(path) || self.resumable.contains(path)
    }

    pub(super) fn prepare(&mut self, entry: &Entry) -> Prepared {
        let path = entry.path.as_bytes();
        match &entry.kind {
            EntryKind::File { size, .. } => match self.files.get(path) {
                _ if self.resumable.contains(path) => Prepared::Held,
                None => Prepared::Receive,
                Some(bytes) if bytes.len() as u64 == *size => Prepared::Compare,
                Some(_) if self.overwrite => Prepared::Receive,
                Some(_) => Prepared::Failed { class: Class::Destination, text: "another size".into() },
            },
            EntryKind::Dir => {
                self.dirs.insert(path.to_vec());
                Prepared::Settled { done: Done::Made, durable: true }
            }
            EntryKind::Symlink { target } => {
                self.links.insert(path.to_vec(), target.clone());
                Prepared::Settled { done: Done::Made, durable: true }
            }
            EntryKind::DirEnd => Prepared::Later,
            EntryKind::Skipped | EntryKind::Failed { .. } => Prepared::Settled { done: Done::Skipped, durable: false },
        }
    }

    pub(super) fn write(&mut self, path: &[u8], chunk: u64, bytes: Vec<u8>) {
        assert!(!self.published.contains(path), "{} written after it was published", path.escape_ascii());
        self.parts.entry(path.to_vec()).or_default().insert(chunk, bytes);
    }

    /// The values of what another attempt left of this file, run by run.
    pub(super) fn held(&self, size: ChunkSize, path: &[u8], file_len: u64) -> Vec<(u64, Vec<ChunkValue>)> {
        let mut runs: Vec<(u64, Vec<ChunkValue>)> = Vec::new();
        for (&chunk, bytes) in self.parts.get(path).into_iter().flatten() {
            let value = chunk_value(size, chunk, file_len, bytes);
            match runs.last_mut() {
                Some((first, values)) if *first + values.len() as u64 == chunk => values.push(value),
                _ => runs.push((chunk, vec![value])),
            }
        }
        runs
    }

    pub(super) fn publish(&mut self, path: &[u8], root: Digest) -> Published {
        let whole: Vec<u8> = self.parts.get(path).into_iter().flat_map(|p| p.values()).flatten().copied().collect();
        assert_eq!(Digest::of(&whole), root, "{} published with a root that is not its own", path.escape_ascii());
        if let Some(intruder) = self.intruders.remove(path) {
            self.files.insert(path.to_vec(), intruder);
            return Published::NameTaken;
        }
        assert!(self.overwrite || !self.files.contains_key(path), "{} replaced without leave", path.escape_ascii());
        assert!(self.published.insert(path.to_vec()), "{} published twice", path.escape_ascii());
        self.files.insert(path.to_vec(), whole);
        self.parts.remove(path);
        Published::Yes
    }
}
