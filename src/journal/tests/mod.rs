//! Tests of the parts of one destination, on a real file system.

mod hostile;
mod housekeeping;
mod kill;
mod publishing;
mod resuming;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use super::*;
use crate::{
    chunk::{ChunkSize, ChunkValue, Digest, RelPath, chunk_value},
    disk::{FileMeta, Root},
};

/// A destination directory for a test.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn root(&self) -> Arc<Root> {
        Arc::new(Root::open(self.dir.path()).unwrap())
    }

    fn store(&self) -> PartStore {
        self.store_that_waits(Duration::ZERO)
    }

    fn store_that_waits(&self, lock_wait: Duration) -> PartStore {
        PartStore::open(self.root(), StoreOptions { lock_wait, job: None }).unwrap()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn folders(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.at(".ccat-xfer")) else { return Vec::new() };
        let mut all: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
        all.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with("w-"));
        all.sort();
        all
    }
}

fn path(bytes: &str) -> RelPath {
    RelPath::new(bytes.as_bytes()).unwrap()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut data);
    data
}

const CHUNK: usize = 64 << 10;

fn chunk_size() -> ChunkSize {
    ChunkSize::from_log2(16).unwrap()
}

fn len(data: &[u8]) -> u64 {
    u64::try_from(data.len()).unwrap()
}

/// Writes some chunks of `data` and returns their values.
fn write(part: &Part, data: &[u8], chunks: impl IntoIterator<Item = u64>) -> Vec<(u64, ChunkValue)> {
    let mut values = Vec::new();
    for index in chunks {
        let range = chunk_size().range(index, len(data)).unwrap();
        let bytes = &data[usize::try_from(range.start).unwrap()..usize::try_from(range.end()).unwrap()];
        part.write_chunk(range.start, bytes, part.sparse()).unwrap();
        values.push((index, chunk_value(chunk_size(), index, len(data), bytes)));
    }
    values
}

fn begin(store: &PartStore, name: &str, data: &[u8]) -> Arc<Part> {
    Arc::new(store.begin(&path(name), len(data), chunk_size(), false).unwrap())
}

fn commit(store: &PartStore, part: &Arc<Part>, chunks: Vec<(u64, ChunkValue)>) {
    store.commit(&[GroupItem { part: Arc::clone(part), chunks }], &[]).unwrap();
}

fn small(store: &PartStore, name: &str, data: &[u8]) -> SmallPart {
    store.write_small(&path(name), data, Digest::of(data), &FileMeta::default()).unwrap()
}

fn publish_one(store: &PartStore, staged: Staged, mode: PublishMode) -> PublishOutcome {
    let mut outcomes = store.publish(&[Publish { staged, meta: FileMeta::default(), mode }]).unwrap();
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

/// Every chunk that a part says it holds must hash to the value it has; returns their indices.
fn check_held(part: &Part) -> Vec<u64> {
    let mut buf = vec![0; CHUNK];
    for &(index, value) in part.held_values() {
        assert_eq!(part.hash_chunk(index, &mut buf).unwrap(), Some(value), "chunk {index} of {}", part.path());
    }
    let ranges: Vec<u64> = part.held().iter().flat_map(|r| r.first..r.first + r.count).collect();
    assert_eq!(ranges, part.held_values().iter().map(|v| v.0).collect::<Vec<_>>());
    ranges
}
