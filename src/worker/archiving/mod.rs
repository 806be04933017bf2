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

mod job;
mod sidecar;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use self::job::{Brought, Job, Known, is_equal, stopped};
use super::{
    Attempt, Config, Failure, Meter, Phase, Runner, fault,
    gauge::Gauge,
    origin::Staging,
    runner,
    scrub::{self, Seen},
};
use crate::{
    archive::{self, Archive, ArchiveError, Package, ReadHow, Reading, Source, Stored, Turn},
    model::{CheckMethod, ErrorClass, Evidence, OnTapeReadback, StorageType, topology::Place},
    store::{self, ArchiveTerms, Claim, Member, Store},
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
        turn: Turn {
            job: runner::job_of(claim, member, &package.expected).0,
            fence,
            replace: false,
            seen_corrupt: false,
        },
        gauge: Gauge::new(meter.clone(), &package),
        cancel,
    };
    let terms = claim.archive.ok_or_else(|| Failure::new(ErrorClass::Bug, "archive work came without its terms"))?;
    let found =
        if terms.replace { job.replace(Known::Told).await? } else { job.bring(fence > 1, &mut attempt.log).await? };
    let seen = here.evidence(claim, member, &package, archive.medium(), &found.reading);
    attempt.evidence.push(seen.clone());
    if !is_equal(&package, &found.reading) {
        let now = source::again(&origin.root, &origin.path, cancel).await?;
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
    use super::*;
    use crate::{chunk::Digest, model::Timestamp};

    #[test]
    fn a_reading_that_proves_nothing_there_is_refused_with_what_to_do() {
        let terms =
            ArchiveTerms { replace: false, cached_read_back_counts: false, on_tape_readback: OnTapeReadback::Full };
        let now = Timestamp::from_micros(1);
        let reading = |how| Reading {
            digest: Digest([7; 32]),
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
