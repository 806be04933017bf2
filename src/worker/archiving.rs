//! Archive transfers: a package is put into an archive, read back from it, compared with what was registered, and gets its
//! sidecar.
//!
//! **What counts.** Only the reading of the archive is evidence, never what `put` said. Where the two differ, the source is
//! read again to know whose fault it is: a source that is as it was registered means `corrupt_in_flight`, any other one
//! `source_changed` or `corrupt_at_source`.
//!
//! **What lies there already.** The key holds the package's digest, so other bytes under it are a corrupt copy of this
//! package. The first claim of a transfer did not make them: it fails as `destination_differs` and touches nothing. A later
//! one may have, before it died; it sets them aside, puts the package anew, and removes them once that was read back. So
//! does whoever retries by hand, and a repair.
//!
//! **Writing and reading.** Of the attempts at one archive that run at once, one fewer than there may be puts a large package:
//! attempts that share a medium evenly begin together, would end their puts together, and would then read back together
//! while nobody writes. A tape system is not kept from what it orders by itself.
//!
//! **Lease.** Nobody but the archive stands between two writers, so an attempt stops when its lease is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, Config, Failure, Meter, Phase, Runner,
    failure::End,
    fault,
    gauge::Gauge,
    origin::{Origin, Staging},
    runner,
    scrub::{self, Seen},
};
use crate::{
    archive::{
        self, Archive, ArchiveError, Package, ReadHow, Reading, Source, Stored, Turn, Unseen,
        sidecar::{Chunks, Described, Provenance, Sidecar, Step, Verified},
    },
    chunk::{Digest, RelPath},
    disk::Root,
    engine::{self, Measured},
    model::{
        CheckMethod, ErrorClass, Evidence, OnTapeReadback, PackageDigest, StorageType, Timestamp,
        topology::{Fault, Place},
    },
    store::{self, ArchiveTerms, Claim, Member, Sighting, Store, StoreError},
};

/// Puts packages into archives that this machine's settings name.
#[derive(Debug)]
pub struct Archiving {
    worker: String,
    host: String,
    folders: BTreeMap<String, PathBuf>,
    shelves: BTreeMap<String, Shelf>,
    /// Those of them whose queues this worker serves.
    served: BTreeSet<String>,
    /// Where packages are copied to on their way from one archive to another.
    staging: Arc<Staging>,
    store: Store,
}

/// An archive of the settings.
#[derive(Debug)]
struct Shelf {
    settings: archive::Settings,
    /// Some keep connections.
    opened: OnceCell<Arc<dyn Archive>>,
    /// Large packages that are put at once.
    writers: Semaphore,
}

/// A package of fewer bytes is put whoever writes: its reading is too short to lay beside another one's writing.
const LARGE_BYTES: u64 = 16 << 20;

impl Archiving {
    /// For a worker of these settings. `folders` are all locations that have one on this machine, served or not: packages
    /// are read from them. Both are by the stem of their queues.
    pub fn new(
        config: &Config,
        folders: BTreeMap<String, PathBuf>,
        archives: BTreeMap<String, archive::Settings>,
        store: Store,
    ) -> Self {
        let shelf = |stem: &str, settings| {
            let slots = config.archives.get(stem).copied().flatten().unwrap_or(config.slots).min(config.slots);
            let writers =
                usize::try_from(slots).unwrap_or(usize::MAX).saturating_sub(1).clamp(1, Semaphore::MAX_PERMITS);
            Shelf { settings, opened: OnceCell::new(), writers: Semaphore::new(writers) }
        };
        Self {
            worker: config.name.clone(),
            host: config.host.clone(),
            staging: Arc::new(Staging::beside(&config.spool)),
            folders,
            served: config.archives.keys().cloned().collect(),
            shelves: archives
                .into_iter()
                .map(|(stem, settings)| {
                    let shelf = shelf(&stem, settings);
                    (stem, shelf)
                })
                .collect(),
            store,
        }
    }

    fn shelf(&self, place: &store::Place) -> Result<&Shelf, Failure> {
        self.shelves.get(&runner::stem(place)).ok_or_else(|| {
            Failure::configuration(format!(
                "worker {} has no archive for location {}/{}; name it in [locations.\"{1}/{2}\"] of its settings",
                self.worker, place.site_short_name, place.name
            ))
        })
    }

    async fn archive(&self, place: &store::Place) -> Result<Arc<dyn Archive>, Failure> {
        let shelf = self.shelf(place)?;
        let failed = |error| Failure::from(error).during(format!("archive {}/{}", place.site_short_name, place.name));
        shelf.opened.get_or_try_init(|| shelf.settings.open()).await.cloned().map_err(failed)
    }

    /// Where a package is read from: a folder of this machine, or one to which it was copied out of another archive.
    async fn source(
        &self,
        claim: &Claim,
        package: &Package,
        at: &RelPath,
        cancel: &CancellationToken,
    ) -> Result<Origin, Failure> {
        let place = &claim.origin;
        let stem = runner::stem(place);
        if let Some(folder) = self.folders.get(&stem) {
            let root = Root::open(folder).map_err(|error| {
                let there = format!("location {}/{} is not there, or not mounted", place.site_short_name, place.name);
                Failure::of_disk(&error, End::Origin).during(there)
            })?;
            return Ok(Origin { root: Arc::new(root), path: at.clone(), _staged: None });
        }
        if !self.shelves.contains_key(&stem) {
            return Err(Failure::configuration(format!(
                "worker {} has neither folder nor archive for location {}/{}, from which the package is read; name it in \
                 [locations.\"{1}/{2}\"] of its settings",
                self.worker, place.site_short_name, place.name
            )));
        }
        let archive = self.archive(place).await?;
        let staged = self.staging.of(claim.work)?;
        let root = Root::open(staged.folder()).map_err(|error| Failure::of_disk(&error, End::Destination))?;
        // Copying out is no progress of a way in.
        let fetched = archive.fetch(package, &root, &Unseen, cancel).await;
        fetched.map_err(|error| {
            let from = format!("cannot copy the package out of {}/{}", place.site_short_name, place.name);
            Failure::from(error).during(from)
        })?;
        Ok(Origin { root: Arc::new(root), path: package.relative_path.clone(), _staged: Some(staged) })
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        Self { class: error.class, chain: error.chain }
    }
}

#[async_trait]
impl Runner for Archiving {
    async fn begin(&self) {
        let staging = Arc::clone(&self.staging);
        drop(tokio::task::spawn_blocking(move || staging.sweep()));
        for (stem, shelf) in self.shelves.iter().filter(|(stem, _)| self.served.contains(*stem)) {
            let (stem, settings) = (stem.clone(), shelf.settings.clone());
            // An archive may come late, or be slow; nobody waits for it.
            tokio::spawn(async move {
                let swept = async { settings.open().await?.sweep().await };
                match swept.await {
                    Ok(0) => {}
                    Ok(packages) => {
                        tracing::info!(archive = stem, packages, "parts that nobody came back for are removed")
                    }
                    Err(error) => tracing::warn!(archive = stem, %error, "the archive was not cleared up"),
                }
            });
        }
    }

    async fn free_bytes(&self, archive: &str) -> Option<u64> {
        let shelf = self.shelves.get(archive)?;
        let archive = shelf.opened.get_or_try_init(|| shelf.settings.open()).await.ok()?;
        archive.free_bytes().await.ok()?
    }

    async fn run(&self, claim: &Claim, meter: &Meter, cancel: &CancellationToken) -> Attempt {
        let mut attempt = Attempt::default();
        for member in &claim.members {
            fault::package_begins(&member.relative_path);
            match keep(self, claim, member, meter, cancel, &mut attempt).await {
                Ok(()) => meter.finish(member.size_bytes),
                Err(failure) => {
                    meter.finish(0);
                    attempt.failure = Some(failure.during(format!("package {} ({})", member.package, member.name)));
                    break;
                }
            }
        }
        attempt
    }
}

/// Archives one package.
async fn keep(
    here: &Archiving,
    claim: &Claim,
    member: &Member,
    meter: &Meter,
    cancel: &CancellationToken,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let archive = here.archive(&claim.destination).await?;
    let package = scrub::package_of(member)?;
    let origin = here.source(claim, &package, &runner::path(&member.source_path)?, cancel).await?;
    // Before anything is written: whoever waits for the database then would hold up what is done.
    let facts = here.facts(member, &package).await?;
    let fence = u64::try_from(claim.fence.number())
        .map_err(|_| Failure::new(ErrorClass::Bug, format!("fence {} is below 0", claim.fence)))?;
    let job = Job {
        archive: &*archive,
        writers: &here.shelf(&claim.destination)?.writers,
        package: &package,
        source: Source { root: &origin.root, path: &origin.path },
        turn: Turn { job: runner::job_of(claim, member, &package.expected).0, fence, replace: false },
        gauge: Gauge::new(meter.clone(), &package),
        cancel,
    };
    let terms = claim.archive.ok_or_else(|| Failure::new(ErrorClass::Bug, "archive work came without its terms"))?;
    let found = if terms.replace { job.replace().await? } else { job.bring(fence > 1, &mut attempt.log).await? };
    let seen = here.evidence(claim, member, &package, archive.medium(), &found.reading);
    attempt.evidence.push(seen.clone());
    if !is_equal(&package, &found.reading) {
        let now = again(&origin.root, &origin.path, cancel).await?;
        return Err(here.differing(claim, member, &package, &found, &now, attempt));
    }
    counts(&terms, &found.reading)?;
    meter.enter(Phase::Sidecar);
    let sidecar = here.sidecar(claim, &package, facts, &seen, found.reading.how, job.gauge.chunks(&package))?;
    if cancel.is_cancelled() {
        return Err(stopped());
    }
    let written = cancel.run_until_cancelled(archive.write_sidecar(&package, &sidecar)).await.ok_or_else(stopped)?;
    written.map_err(|e| Failure::from(e).during("cannot write the sidecar"))?;
    // An attempt before this one may have replaced it, and died.
    if found.replaced || fence > 1 {
        let forgotten = cancel.run_until_cancelled(archive.forget_replaced(&package)).await.ok_or_else(stopped)?;
        // The package is whole and was read back; where nothing may be removed, the corrupt copy stays beside it.
        if let Err(error) = forgotten {
            attempt.log.push(format!("the corrupt copy that was replaced stays: {error}"));
        }
    }
    attempt.log.push(told(member, &found));
    Ok(())
}

/// One package on its way into an archive.
struct Job<'a> {
    archive: &'a dyn Archive,
    writers: &'a Semaphore,
    package: &'a Package,
    source: Source<'a>,
    turn: Turn,
    gauge: Gauge,
    cancel: &'a CancellationToken,
}

/// What an archive holds after a put.
struct Brought {
    stored: Stored,
    reading: Reading,
    /// Whether a corrupt copy was set aside for it.
    replaced: bool,
}

impl Job<'_> {
    /// Puts the package and reads it back. `may_replace`: what lies there already and differs may be set aside.
    async fn bring(&self, may_replace: bool, log: &mut Vec<String>) -> Result<Brought, Failure> {
        let stored = match self.put(false).await {
            Ok(stored) => stored,
            Err(failure) if failure.class == ErrorClass::DestinationDiffers && may_replace => {
                log.push(format!("other bytes lie there: {}", failure.chain.join(": ")));
                return self.replace().await;
            }
            Err(failure) => return Err(failure),
        };
        let reading = match self.read_back().await {
            // It lies there whole, and cannot be read: no attempt would ever find anything else.
            Err(failure) if failure.class == ErrorClass::CorruptInFlight && stored == Stored::Found && may_replace => {
                log.push(format!("what lies there cannot be read: {}", failure.chain.join(": ")));
                return self.replace().await;
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
        self.replace().await
    }

    /// Puts it anew: what lies there is known to be corrupt, and stays beside it until this was read back.
    async fn replace(&self) -> Result<Brought, Failure> {
        let stored = self.put(true).await?;
        let reading = self.read_back().await?;
        Ok(Brought { stored, reading, replaced: true })
    }

    async fn put(&self, replace: bool) -> Result<Stored, Failure> {
        if self.cancel.is_cancelled() {
            return Err(stopped());
        }
        let _writer = self.writer().await?;
        self.gauge.begin(Phase::Put);
        let turn = Turn { replace, ..self.turn };
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

impl Archiving {
    fn evidence(
        &self,
        claim: &Claim,
        member: &Member,
        package: &Package,
        medium: StorageType,
        reading: &Reading,
    ) -> Evidence {
        let location = claim.destination.location;
        let unread =
            self.shelves.get(&runner::stem(&claim.destination)).is_some_and(|shelf| shelf.settings.reads_nothing());
        let seen = Seen { host: &self.host, method: CheckMethod::ReadBack, reading, unread };
        scrub::evidence(member, package, location, medium, &seen)
    }

    fn sidecar(
        &self,
        claim: &Claim,
        package: &Package,
        mut facts: Facts,
        seen: &Evidence,
        how: ReadHow,
        chunks: Chunks,
    ) -> Result<Vec<u8>, Failure> {
        facts.package.chunks = chunks;
        let sidecar = Sidecar {
            package: facts.package,
            archive: spelled(&claim.destination),
            provenance: Provenance {
                source: spelled(&claim.origin),
                steps: facts.steps,
                work: claim.work.to_string(),
                fence: u64::try_from(claim.fence.number()).unwrap_or(0),
                worker: self.worker.clone(),
                host: self.host.clone(),
                program: engine::program().to_owned(),
                written_at: super::wall_clock(),
            },
            metadata: facts.metadata,
            verification: vec![Verified {
                expected: package.expected,
                found: PackageDigest { algorithm: seen.algorithm, value: seen.found_digest },
                expected_size_bytes: seen.expected_size_bytes,
                found_size_bytes: seen.found_size_bytes,
                medium: seen.medium,
                how,
                unread_reason: seen.unread_reason.clone(),
                host: seen.host.clone(),
                version: seen.version.clone(),
                started_at: seen.started_at,
                ended_at: seen.ended_at,
            }],
        };
        sidecar.to_json().map_err(|error| Failure::new(ErrorClass::Bug, error.to_string()))
    }

    /// Whose fault it is that the archive reads other bytes than were registered.
    fn differing(
        &self,
        claim: &Claim,
        member: &Member,
        package: &Package,
        found: &Brought,
        source: &Again,
        attempt: &mut Attempt,
    ) -> Failure {
        let reading = &found.reading;
        let differs = format!(
            "the archive reads other bytes than were registered: {} of {} bytes in {} files was registered, {} of {} \
             bytes in {} files was read ({})",
            Digest(package.expected.value),
            package.size_bytes,
            package.file_count,
            reading.digest,
            reading.size_bytes,
            reading.file_count,
            reading.how
        );
        let now = &source.measured;
        if now.digest.0 == package.expected.value && now.size_bytes == package.size_bytes {
            let text = "the source was read again and is as it was registered";
            return Failure::new(ErrorClass::CorruptInFlight, text).during(differs);
        }
        attempt.evidence.push(Evidence {
            location: claim.origin.location,
            path: member.source_path.clone(),
            found_digest: now.digest.0,
            found_size_bytes: now.size_bytes,
            method: CheckMethod::Scrub,
            medium: claim.origin.storage_type,
            cached: true,
            how: Some(ReadHow::Cached),
            started_at: source.started_at,
            ended_at: source.ended_at,
            ..self.evidence(claim, member, package, claim.destination.storage_type, reading)
        });
        let text = format!("the source holds other bytes, too: {} of {} bytes", now.digest, now.size_bytes);
        Failure::new(runner::origin_fault(member, now.size_bytes, source.modified_at), text).during(differs)
    }

    /// What the database knows of a package, for its sidecar.
    async fn facts(&self, member: &Member, package: &Package) -> Result<Facts, Failure> {
        let failed = |error: StoreError| {
            Failure::new(ErrorClass::Network, error.to_string()).during("cannot ask the database what the sidecar says")
        };
        let dossier = self.store.dossier(member.package).await.map_err(failed)?;
        let place = |text: &str| text.parse::<Place>().map_err(|e: Fault| Failure::new(ErrorClass::Bug, e.to_string()));
        let known = dossier.metadata.as_deref().map(serde_json::from_str).transpose();
        let known: BTreeMap<_, _> = known
            .map_err(|e| Failure::new(ErrorClass::Bug, format!("the package's metadata: {e}")))?
            .unwrap_or_default();
        Ok(Facts {
            package: Described {
                name: dossier.name,
                origin: place(&dossier.origin)?,
                path: std::str::from_utf8(package.relative_path.as_bytes()).ok().map(str::to_owned),
                path_hex: package.relative_path.clone(),
                kind: package.kind,
                size_bytes: package.size_bytes,
                file_count: package.file_count,
                digests: first_of(&package.expected, &dossier.digests),
                chunks: Chunks::Omitted(String::new()),
                registered_at: dossier.registered_at,
                priority: u8::try_from(dossier.priority).unwrap_or(0),
                policy: dossier.policy,
                required: dossier.required.iter().map(|text| place(text)).collect::<Result<_, _>>()?,
            },
            metadata: archive::Metadata {
                registered: dossier.metadata.clone(),
                ..archive::Metadata::of(&known, package.size_bytes)
            },
            steps: dossier.sightings.iter().map(step).collect::<Result<_, _>>()?,
        })
    }
}

/// What the database knows of a package.
struct Facts {
    package: Described,
    metadata: archive::Metadata,
    steps: Vec<Step>,
}

/// The digest that says what a package is comes first.
fn first_of(identity: &PackageDigest, all: &[PackageDigest]) -> Vec<PackageDigest> {
    [*identity].into_iter().chain(all.iter().copied().filter(|digest| digest != identity)).collect()
}

/// A look on the way, as the sidecar tells it.
fn step(seen: &Sighting) -> Result<Step, Failure> {
    Ok(Step {
        at: seen.location.parse().map_err(|e: Fault| Failure::new(ErrorClass::Bug, e.to_string()))?,
        work: seen.work.map(|(work, _)| work.to_string()),
        method: seen.method,
        found: seen.found,
        is_equal: seen.is_equal,
        host: seen.host.clone(),
        ended_at: seen.ended_at,
    })
}

/// The source, read once more.
struct Again {
    measured: Measured,
    /// When the file was last written to; nothing for a tree, which has many.
    modified_at: Option<Timestamp>,
    started_at: Timestamp,
    ended_at: Timestamp,
}

async fn again(root: &Arc<Root>, path: &RelPath, cancel: &CancellationToken) -> Result<Again, Failure> {
    let (root, at, started_at) = (Arc::clone(root), path.clone(), super::wall_clock());
    let reading = tokio::task::spawn_blocking(move || {
        let stat = root.stat(&at).map_err(|error| Failure::of_disk(&error, End::Origin))?;
        let measured = engine::measure(&root, &at).map_err(|error| Failure::of_job(&error, &[at.as_bytes()]))?;
        let mtime = stat.filter(|_| !measured.is_tree).map(|stat| stat.identity.mtime);
        let modified_at = mtime.map(|t| {
            Timestamp::from_micros(t.seconds.saturating_mul(1_000_000).saturating_add(i64::from(t.nanoseconds / 1000)))
        });
        Ok::<_, Failure>((measured, modified_at))
    });
    let (measured, modified_at) = tokio::select! {
        read = reading => read.map_err(|_| Failure::new(ErrorClass::Bug, "reading the source again ended badly"))??,
        () = cancel.cancelled() => return Err(stopped()),
    };
    Ok(Again { measured, modified_at, started_at, ended_at: super::wall_clock().max(started_at) })
}

/// A reading that nobody made.
fn believed(package: &Package) -> Reading {
    let now = super::wall_clock();
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

fn is_equal(package: &Package, reading: &Reading) -> bool {
    reading.digest.0 == package.expected.value
        && reading.size_bytes == package.size_bytes
        && reading.file_count == package.file_count
}

/// Refuses a reading that the database would not believe here, in words that say what to do.
fn counts(terms: &ArchiveTerms, reading: &Reading) -> Result<(), Failure> {
    match reading.how {
        ReadHow::Cached if !terms.cached_read_back_counts => Err(Failure::configuration(
            "the archive could be read from the cache of this machine only, which proves nothing of its medium; if its \
             file system has no other way, set cached_read_back_counts = true for the location in the topology",
        )),
        ReadHow::Vouched if terms.on_tape_readback == OnTapeReadback::Full => Err(Failure::configuration(
            "the archive was not read back, and the topology wants that; set on_tape_readback of the worker's settings to \
             full, or that of the location in the topology to what the settings say",
        )),
        _ => Ok(()),
    }
}

fn stopped() -> Failure {
    Failure::new(ErrorClass::Cancelled, "stopped before the package was archived")
}

fn told(member: &Member, found: &Brought) -> String {
    let put = match found.stored {
        Stored::Written { resumed_bytes: 0 } => "put".to_owned(),
        Stored::Written { resumed_bytes } => format!("put ({resumed_bytes} bytes were there already)"),
        Stored::Found => "found there".to_owned(),
    };
    let replaced = if found.replaced { " in place of a corrupt copy" } else { "" };
    let reading = &found.reading;
    format!(
        "package {}: {put}{replaced}, {} bytes read back in {:.1} s ({}), equal",
        member.package,
        reading.size_bytes,
        reading.ended_at.since(reading.started_at).as_secs_f64(),
        reading.how
    )
}

fn spelled(place: &store::Place) -> Place {
    Place { site: place.site_short_name.clone(), location: place.name.clone() }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Mutex, time::Duration};

    use super::*;
    use crate::{
        archive::Progress,
        model::{Algorithm, PackageKind},
    };

    /// Holds bytes, and keeps others when it lies.
    #[derive(Debug, Default)]
    struct Memory {
        bytes: Mutex<Option<Vec<u8>>>,
        lies: bool,
        puts: Mutex<Vec<bool>>,
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
            self.puts.lock().unwrap().push(turn.replace);
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
            turn: Turn { job: [1; 16], fence: 1, replace: false },
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
        assert_eq!(*first.puts.lock().unwrap(), [false], "nothing was set aside");
        let later = taken();
        let (brought, _) = bring(&later, true).await;
        assert!(brought.unwrap().replaced);
        assert_eq!(*later.puts.lock().unwrap(), [false, true]);
        assert_eq!(later.bytes.lock().unwrap().as_deref(), Some(BYTES));
    }

    #[tokio::test]
    async fn an_archive_that_lies_is_read_as_it_is() {
        let (brought, _) = bring(&Memory { lies: true, ..Memory::default() }, false).await;
        assert_ne!(brought.unwrap().reading.digest, Digest::of(BYTES));
    }

    #[test]
    fn a_reading_that_proves_nothing_there_is_refused_with_what_to_do() {
        let terms =
            ArchiveTerms { replace: false, cached_read_back_counts: false, on_tape_readback: OnTapeReadback::Full };
        let now = Timestamp::from_micros(1);
        let reading = |how| Reading {
            digest: Digest::of(BYTES),
            size_bytes: 10,
            file_count: 1,
            how,
            vouched_by: None,
            started_at: now,
            ended_at: now,
        };
        counts(&terms, &reading(ReadHow::Direct)).unwrap();
        let cached = counts(&terms, &reading(ReadHow::Cached)).unwrap_err();
        assert!(cached.chain[0].contains("cached_read_back_counts"), "{cached:?}");
        let vouched = counts(&terms, &reading(ReadHow::Vouched)).unwrap_err();
        assert!(vouched.chain[0].contains("on_tape_readback"), "{vouched:?}");
        counts(&ArchiveTerms { cached_read_back_counts: true, ..terms }, &reading(ReadHow::Cached)).unwrap();
    }
}
