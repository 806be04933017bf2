use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use super::{Meter, Phase};
use crate::{
    archive::{
        Package, Progress,
        sidecar::{ChunkCollector, Chunks},
    },
    chunk::{ChunkValue, Digest},
    model::PackageKind,
};

/// Tells the meter how far a package is: its bytes count half when they were put, and whole when they were read back.
#[derive(Debug)]
pub(super) struct Gauge {
    meter: Meter,
    size_bytes: u64,
    phase: AtomicU8,
    done: AtomicU64,
    chunks: Mutex<ChunkCollector>,
}

impl Gauge {
    pub(super) fn new(meter: Meter, package: &Package) -> Self {
        let chunks = Mutex::new(ChunkCollector::new(package.size_bytes));
        Self { meter, size_bytes: package.size_bytes, phase: AtomicU8::new(PUT), done: AtomicU64::new(0), chunks }
    }

    pub(super) fn begin(&self, phase: Phase) {
        self.phase.store(if phase == Phase::ReadBack { READ_BACK } else { PUT }, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.meter.enter(phase);
        self.show(0);
    }

    fn show(&self, done: u64) {
        let done = done.min(self.size_bytes);
        let half = done / 2;
        let whole = if self.phase.load(Ordering::Relaxed) == READ_BACK { self.size_bytes / 2 + half } else { half };
        self.meter.at(whole);
    }

    /// The values of the chunks that the last reading told of.
    pub(super) fn chunks(&self, package: &Package) -> Chunks {
        if package.kind == PackageKind::Tree {
            return Chunks::Omitted("a tree has the digests of its files in its tree digest".into());
        }
        let seen = std::mem::replace(&mut *self.seen(), ChunkCollector::new(package.size_bytes));
        seen.finish(&Digest(package.expected.value))
    }

    fn seen(&self) -> MutexGuard<'_, ChunkCollector> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Gauge {
    fn advance(&self, bytes: u64) {
        self.show(self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes));
    }

    fn chunk(&self, index: u64, value: ChunkValue) {
        self.seen().insert(index, value);
    }
}

const PUT: u8 = 0;
const READ_BACK: u8 = 1;
