//! One package on its way into an archive: put, read back, and put anew where what lies there is corrupt.

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::super::{Failure, Phase, fault, gauge::Gauge, wall_clock};
use crate::{
    archive::{Archive, Package, ReadHow, Reading, Source, Stored, Turn},
    chunk::Digest,
    model::{ErrorClass, StorageType},
};

/// A package of fewer bytes is put whoever writes: its reading is too short to lay beside another one's writing.
const LARGE_BYTES: u64 = 16 << 20;

/// One package on its way into an archive.
pub(super) struct Job<'a> {
    pub(super) archive: &'a dyn Archive,
    pub(super) writers: &'a Semaphore,
    pub(super) package: &'a Package,
    pub(super) source: Source<'a>,
    pub(super) turn: Turn,
    pub(super) gauge: Gauge,
    pub(super) cancel: &'a CancellationToken,
}

/// What an archive holds after a put.
pub(super) struct Brought {
    pub(super) stored: Stored,
    pub(super) reading: Reading,
    /// Whether a corrupt copy was set aside for it.
    pub(super) replaced: bool,
}

/// How it is known that what lies there is corrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// From before this attempt, or without its bytes: one before it may have replaced it since.
    Told,
    /// It was read just now.
    Seen,
}

impl Job<'_> {
    /// Puts the package and reads it back. `may_replace`: what lies there already and differs may be set aside.
    pub(super) async fn bring(&self, may_replace: bool, log: &mut Vec<String>) -> Result<Brought, Failure> {
        let stored = match self.put(None).await {
            Ok(stored) => stored,
            Err(failure) if failure.class == ErrorClass::DestinationDiffers && may_replace => {
                log.push(format!("other bytes lie there: {}", failure.chain.join(": ")));
                return self.replace(Known::Told).await;
            }
            Err(failure) => return Err(failure),
        };
        let reading = match self.read_back().await {
            // It lies there whole, and cannot be read: no attempt would ever find anything else.
            Err(failure) if failure.class == ErrorClass::CorruptInFlight && stored == Stored::Found && may_replace => {
                log.push(format!("what lies there cannot be read: {}", failure.chain.join(": ")));
                return self.replace(Known::Seen).await;
            }
            other => other?,
        };
        if stored != Stored::Found || is_equal(self.package, &reading) {
            return Ok(Brought { stored, reading, replaced: false });
        }
        let found =
            format!("other bytes lie there than were registered: {} of {} bytes", reading.digest, reading.size_bytes);
        if !may_replace {
            return Err(Failure::new(
                ErrorClass::DestinationDiffers,
                format!("{found}; nothing was overwritten; `retry` sets them aside and archives the package anew"),
            ));
        }
        log.push(found);
        self.replace(Known::Seen).await
    }

    /// Puts it anew: what lies there is known to be corrupt, and stays beside it until this was read back.
    pub(super) async fn replace(&self, known: Known) -> Result<Brought, Failure> {
        let stored = self.put(Some(known)).await?;
        let reading = self.read_back().await?;
        Ok(Brought { stored, reading, replaced: true })
    }

    async fn put(&self, replace: Option<Known>) -> Result<Stored, Failure> {
        if self.cancel.is_cancelled() {
            return Err(stopped());
        }
        let _writer = self.writer().await?;
        self.gauge.begin(Phase::Put);
        let turn = Turn { replace: replace.is_some(), seen_corrupt: replace == Some(Known::Seen), ..self.turn };
        let stored = self.archive.put(self.package, &self.source, &turn, &self.gauge, self.cancel).await;
        stored.map_err(|error| Failure::from(error).during("cannot put the package into the archive"))
    }

    /// Waits until a large package may be put.
    async fn writer(&self) -> Result<Option<SemaphorePermit<'_>>, Failure> {
        if self.package.size_bytes < LARGE_BYTES || self.archive.medium() == StorageType::Tape {
            return Ok(None);
        }
        let permit = self.cancel.run_until_cancelled(self.writers.acquire()).await.ok_or_else(stopped)?;
        permit.map(Some).map_err(|error| Failure::new(ErrorClass::Bug, error.to_string()))
    }

    async fn read_back(&self) -> Result<Reading, Failure> {
        if self.cancel.is_cancelled() {
            return Err(stopped());
        }
        self.gauge.begin(Phase::ReadBack);
        if fault::is_read_back_off() {
            return Ok(believed(self.package));
        }
        let reading = self.archive.read_back(self.package, &self.gauge, self.cancel).await;
        reading.map_err(|error| Failure::from(error).during("cannot read the package back from the archive"))
    }
}

/// A reading that nobody made.
fn believed(package: &Package) -> Reading {
    let now = wall_clock();
    Reading {
        digest: Digest(package.expected.value),
        size_bytes: package.size_bytes,
        file_count: package.file_count,
        how: ReadHow::Direct,
        vouched_by: None,
        started_at: now,
        ended_at: now,
    }
}

pub(super) fn is_equal(package: &Package, reading: &Reading) -> bool {
    reading.digest.0 == package.expected.value
        && reading.size_bytes == package.size_bytes
        && reading.file_count == package.file_count
}

pub(super) fn stopped() -> Failure {
    Failure::new(ErrorClass::Cancelled, "stopped before the package was archived")
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Arc, Mutex},
        time::Duration,
    };

    use async_trait::async_trait;

    use super::{super::super::Meter, *};
    use crate::{
        archive::{ArchiveError, Progress},
        chunk::RelPath,
        disk::Root,
        model::{Algorithm, PackageDigest, PackageKind, Timestamp},
    };

    /// Holds bytes, and keeps others when it lies.
    #[derive(Debug, Default)]
    struct Memory {
        bytes: Mutex<Option<Vec<u8>>>,
        lies: bool,
        /// Whether to replace, and whether what is replaced was read.
        puts: Mutex<Vec<(bool, bool)>>,
        stop_after_put: Option<CancellationToken>,
        writers: Option<Arc<Semaphore>>,
        /// How many more could be put while this was read back.
        free_writers: Mutex<Option<usize>>,
    }

    #[async_trait]
    impl Archive for Memory {
        fn medium(&self) -> StorageType {
            StorageType::S3
        }

        async fn free_bytes(&self) -> Result<Option<u64>, ArchiveError> {
            Ok(None)
        }

        async fn put(
            &self,
            _: &Package,
            source: &Source<'_>,
            turn: &Turn,
            progress: &dyn Progress,
            _: &CancellationToken,
        ) -> Result<Stored, ArchiveError> {
            self.puts.lock().unwrap().push((turn.replace, turn.seen_corrupt));
            if let Some(stop) = &self.stop_after_put {
                stop.cancel();
            }
            let mut bytes = self.bytes.lock().unwrap();
            if bytes.is_some() && !turn.replace {
                return Ok(Stored::Found);
            }
            let mut given = fs::read(source.root.path().join(source.path.to_string())).unwrap();
            progress.advance(given.len() as u64);
            if self.lies {
                given[0] ^= 1;
            }
            *bytes = Some(given);
            Ok(Stored::Written { resumed_bytes: 0 })
        }

        async fn read_back(
            &self,
            _: &Package,
            progress: &dyn Progress,
            _: &CancellationToken,
        ) -> Result<Reading, ArchiveError> {
            *self.free_writers.lock().unwrap() = self.writers.as_ref().map(|writers| writers.available_permits());
            let bytes = self.bytes.lock().unwrap().clone().unwrap();
            progress.advance(bytes.len() as u64);
            let now = Timestamp::from_micros(1);
            Ok(Reading {
                digest: Digest::of(&bytes),
                size_bytes: bytes.len() as u64,
                file_count: 1,
                how: ReadHow::RemoteGet,
                vouched_by: None,
                started_at: now,
                ended_at: now,
            })
        }

        async fn write_sidecar(&self, _: &Package, _: &[u8]) -> Result<(), ArchiveError> {
            Ok(())
        }

        async fn sidecars(&self, _: Option<&str>, _: usize) -> Result<Vec<String>, ArchiveError> {
            Ok(Vec::new())
        }

        async fn read_sidecar(&self, _: &str) -> Result<Vec<u8>, ArchiveError> {
            Ok(Vec::new())
        }

        async fn fetch(
            &self,
            _: &Package,
            _: &Root,
            _: &dyn Progress,
            _: &CancellationToken,
        ) -> Result<(), ArchiveError> {
            Ok(())
        }

        async fn forget_replaced(&self, _: &Package) -> Result<(), ArchiveError> {
            Ok(())
        }
    }

    const BYTES: &[u8] = b"0123456789";

    /// What becomes of a package of [`BYTES`] in an archive, and what the meter says then.
    async fn bring(archive: &Memory, may_replace: bool) -> (Result<Brought, Failure>, u64) {
        bring_as(archive, may_replace, 10).await
    }

    /// The same, for one that says to have so many bytes.
    async fn bring_as(archive: &Memory, may_replace: bool, size_bytes: u64) -> (Result<Brought, Failure>, u64) {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("f"), BYTES).unwrap();
        let (root, path) = (Root::open(temp.path()).unwrap(), RelPath::new(b"f".to_vec()).unwrap());
        let package = Package {
            kind: PackageKind::File,
            relative_path: path.clone(),
            size_bytes,
            file_count: 1,
            expected: PackageDigest { algorithm: Algorithm::Blake3, value: Digest::of(BYTES).0 },
        };
        let writers = archive.writers.clone().unwrap_or_else(|| Arc::new(Semaphore::new(1)));
        let (meter, cancel) = (Meter::default(), archive.stop_after_put.clone().unwrap_or_default());
        let job = Job {
            archive,
            writers: &writers,
            package: &package,
            source: Source { root: &root, path: &path },
            turn: Turn { job: [1; 16], fence: 1, replace: false, seen_corrupt: false },
            gauge: Gauge::new(meter.clone(), &package),
            cancel: &cancel,
        };
        let brought = job.bring(may_replace, &mut Vec::new()).await;
        (brought, meter.bytes())
    }

    #[tokio::test]
    async fn what_is_read_back_counts_whole_and_what_was_put_counts_half() {
        let (brought, bytes) = bring(&Memory::default(), false).await;
        assert!(!brought.unwrap().replaced);
        assert_eq!(bytes, 10);
        let stopped = Memory { stop_after_put: Some(CancellationToken::new()), ..Memory::default() };
        let (brought, bytes) = bring(&stopped, false).await;
        assert_eq!(brought.err().map(|failure| failure.class), Some(ErrorClass::Cancelled));
        assert_eq!(bytes, 5);
    }

    #[tokio::test]
    async fn a_large_package_is_put_in_its_turn_and_read_back_in_anybodys() {
        let writers = Arc::new(Semaphore::new(0));
        let archive = || Memory { writers: Some(Arc::clone(&writers)), ..Memory::default() };
        bring_as(&archive(), false, LARGE_BYTES - 1).await.0.unwrap();
        let waiting = archive();
        let brought = bring_as(&waiting, false, LARGE_BYTES);
        tokio::pin!(brought);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut brought).await.is_err(), "it did not wait");
        assert!(waiting.puts.lock().unwrap().is_empty());
        writers.add_permits(1);
        brought.await.0.unwrap();
        assert_eq!(*waiting.free_writers.lock().unwrap(), Some(1), "it kept its turn while it was read back");
        let cancelled = Memory { stop_after_put: Some(CancellationToken::new()), ..archive() };
        let turn = writers.acquire().await.unwrap();
        let brought = bring_as(&cancelled, false, LARGE_BYTES);
        let stop = async { cancelled.stop_after_put.as_ref().unwrap().cancel() };
        let ((brought, _), ()) = tokio::join!(brought, stop);
        assert_eq!(brought.err().map(|failure| failure.class), Some(ErrorClass::Cancelled));
        drop(turn);
    }

    /// Catches a first claim that may replace.
    #[tokio::test]
    async fn other_bytes_are_replaced_by_whoever_may_have_put_them() {
        let taken = || Memory { bytes: Mutex::new(Some(b"other".to_vec())), ..Memory::default() };
        let first = taken();
        let (brought, _) = bring(&first, false).await;
        assert_eq!(brought.err().map(|failure| failure.class), Some(ErrorClass::DestinationDiffers));
        assert_eq!(*first.puts.lock().unwrap(), [(false, false)], "nothing was set aside");
        let later = taken();
        let (brought, _) = bring(&later, true).await;
        assert!(brought.unwrap().replaced);
        assert_eq!(*later.puts.lock().unwrap(), [(false, false), (true, true)], "it is read once");
        assert_eq!(later.bytes.lock().unwrap().as_deref(), Some(BYTES));
    }

    #[tokio::test]
    async fn an_archive_that_lies_is_read_as_it_is() {
        let (brought, _) = bring(&Memory { lies: true, ..Memory::default() }, false).await;
        assert_ne!(brought.unwrap().reading.digest, Digest::of(BYTES));
    }
}
