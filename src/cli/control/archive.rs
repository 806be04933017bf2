//! `archive found`, `verify --location` and `db rebuild`.

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Daemon, FailureClass, JobError, Screen, actor, args, args::ArchiveCommand, open, print_json, store_error};
use crate::{
    archive::{
        Archive, Disk, Progress,
        sidecar::{Sidecar, Verified},
    },
    cli::exit::Exit,
    config::units::show_size,
    engine::host_name,
    model::{
        Algorithm, CheckMethod, ErrorClass, Evidence, LocationId, PackageId, PackageKind, ReadHow, ScrubTally,
        Timestamp, topology::Place,
    },
    store::{CopyToCheck, Finding, Looked, RestoredCopy, RestoredPackage, Store, StoreError},
    worker::{Failure, Scrubbed, scrub},
};

pub(super) fn archive(args: &args::Archive, screen: &Screen) -> Result<Exit, JobError> {
    let ArchiveCommand::Found { root } = &args.command;
    Disk::found(root).map_err(|error| JobError::new(FailureClass::Destination, error.to_string()))?;
    screen.print(&format!("{} is an archive\n", root.display()));
    Ok(Exit::Success)
}

/// The archive of a location, as this machine's settings have it, and whether these have nobody read it.
async fn configured(location: &Place, daemon: &Daemon) -> Result<(Arc<dyn Archive>, bool), JobError> {
    let named = daemon.locations.get(&location.to_string()).and_then(|found| found.archive());
    let settings = named.ok_or_else(|| {
        let text = format!(
            "this machine has no archive for {location}; name it in the settings: [locations.\"{location}\"] archive = \"disk\""
        );
        JobError::new(FailureClass::Usage, text)
    })?;
    let archive = settings.open().await.map_err(|error| told(&error.into()))?;
    Ok((archive, settings.reads_nothing()))
}

fn told(failure: &Failure) -> JobError {
    let class = match failure.class {
        ErrorClass::Network | ErrorClass::RemoteBusy | ErrorClass::LostWorker => FailureClass::Network,
        ErrorClass::Authentication => FailureClass::Identity,
        ErrorClass::Cancelled => FailureClass::Cancelled,
        ErrorClass::Bug => FailureClass::Bug,
        ErrorClass::Configuration => FailureClass::Usage,
        _ => FailureClass::Destination,
    };
    JobError::new(class, failure.chain.join(": "))
}

/// Failures one after the other that are taken for the archive's, and not for those of packages.
const FAILURES_IN_A_ROW: u32 = 5;

/// Reads what is archived at a location again, the oldest evidence first, and records what it finds.
pub(super) async fn verify(
    args: &args::Scrub,
    location: &Place,
    json: bool,
    daemon: &Daemon,
    screen: &Screen,
    cancel: &CancellationToken,
) -> Result<Exit, JobError> {
    let (archive, reads_nothing) = configured(location, daemon).await?;
    let store = open(daemon).await?;
    let wrong = |e| store_error(&e);
    let id = store.location_id(&location.to_string()).await.map_err(wrong)?;
    let (began, host, by) = (store.now().await.map_err(wrong)?, host_name(), actor());
    let meter = Meter::new(args.rate_limit);
    let mut look = Look { tally: ScrubTally::default(), unread: 0, held_back: Vec::new() };
    let through = Through { args, json, screen, store: &store, by: &by };
    let reading = Reading { archive: &*archive, reads_nothing, id, host: &host, meter: &meter, cancel };
    let ended = look.through(&through, &reading, location, began).await;
    // What was found is written down however the look ended, unless it seems to be the archive that is missing.
    let mut recorded = Ok(());
    if args.yes || !look.tally.is_suspicious() {
        for (copy, is_missing, why) in &look.held_back {
            let finding = if *is_missing { Finding::Missing { why } } else { Finding::Unreadable { why } };
            recorded = recorded.and(store.record_check(copy, finding, &by).await.map(drop));
        }
    }
    let ended = ended.and_then(|ended| recorded.map(|()| ended).map_err(wrong));
    store.close().await;
    if ended? == Ended::Interrupted {
        return Err(JobError::new(FailureClass::Cancelled, "interrupted; what was found so far is recorded"));
    }
    let Look { tally, unread, .. } = look;
    if json {
        print_json(
            screen,
            &serde_json::json!({
                "schema": 1, "event": "summary", "looked_at": tally.looked_at, "equal": tally.equal,
                "different": tally.different, "missing": tally.missing, "unreadable": tally.unreadable, "not_read": unread,
                "bytes": meter.bytes(),
            }),
        )?;
    } else {
        screen.print(&format!(
            "{} packages of {location} were read ({}): {} equal, {} different, {} missing, {} unreadable\n",
            tally.looked_at - unread,
            show_size(meter.bytes()),
            tally.equal,
            tally.different,
            tally.missing,
            tally.unreadable
        ));
        if unread > 0 {
            screen.print(&format!(
                "{unread} packages were not read, as the settings of this machine want it: that they are there is all that is \
                 known; on_tape_readback = \"full\" reads them\n"
            ));
        }
    }
    Ok(match (tally.different, tally.missing + tally.unreadable) {
        (0, 0) => Exit::Success,
        (0, _) => Exit::Failed(FailureClass::Destination),
        _ => Exit::Failed(FailureClass::Integrity),
    })
}

/// A look through an archive, as far as it has come.
struct Look {
    tally: ScrubTally,
    /// Packages of these that nobody read, as the settings want it.
    unread: u64,
    /// Copies that are missing (true) or cannot be read, and why. Not written down before it is known that the archive is
    /// there: what is bad loses its packages their state.
    held_back: Vec<(CopyToCheck, bool, String)>,
}

/// How a look came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    AllSeen,
    Interrupted,
}

/// What a look is asked for, and where it tells what it finds.
struct Through<'a> {
    args: &'a args::Scrub,
    json: bool,
    screen: &'a Screen,
    store: &'a Store,
    by: &'a str,
}

/// What is read, and how.
struct Reading<'a> {
    archive: &'a dyn Archive,
    reads_nothing: bool,
    id: LocationId,
    host: &'a str,
    meter: &'a Meter,
    cancel: &'a CancellationToken,
}

impl Look {
    async fn through(
        &mut self,
        asked: &Through<'_>,
        reading: &Reading<'_>,
        location: &Place,
        began: Timestamp,
    ) -> Result<Ended, JobError> {
        let Through { args, json, screen, store, by } = *asked;
        let Reading { archive, reads_nothing, id, host, meter, cancel } = *reading;
        let wrong = |e| store_error(&e);
        let (mut after, mut failures) = (None, 0u32);
        let most = args.limit.map_or(u64::MAX, u64::from);
        while self.tally.looked_at < most {
            let copies = store.next_to_check(id, began, after, AT_ONCE).await.map_err(wrong)?;
            let Some(last) = copies.last() else { break };
            after = Some(last.cursor);
            for copy in &copies {
                if self.tally.looked_at >= most {
                    return Ok(Ended::AllSeen);
                }
                if cancel.is_cancelled() {
                    return Ok(Ended::Interrupted);
                }
                self.tally.looked_at += 1;
                let found = scrub(archive, id, &copy.package, (host, reads_nothing), meter, cancel).await;
                failures = if found.is_ok() { 0 } else { failures + 1 };
                let looked = match &found {
                    Ok(Scrubbed::Read(evidence)) => {
                        if evidence.is_equal() && evidence.unread_reason.is_some() {
                            self.unread += 1;
                        } else if evidence.is_equal() {
                            self.tally.equal += 1;
                        } else {
                            self.tally.different += 1;
                        }
                        Some(store.record_check(copy, Finding::Read(evidence), by).await.map_err(wrong)?)
                    }
                    Ok(Scrubbed::Missing(why)) => {
                        self.tally.missing += 1;
                        self.held_back.push((copy.clone(), true, why.clone()));
                        None
                    }
                    Ok(Scrubbed::Unreadable(why)) => {
                        self.tally.unreadable += 1;
                        self.held_back.push((copy.clone(), false, why.clone()));
                        None
                    }
                    Err(failure) if failure.class == ErrorClass::Cancelled => return Ok(Ended::Interrupted),
                    // What is wrong with all of them is said once.
                    Err(failure)
                        if concerns_all(failure.class)
                            && (self.tally.looked_at == 1 || failures >= FAILURES_IN_A_ROW) =>
                    {
                        return Err(told(failure));
                    }
                    Err(_) => {
                        self.tally.unreadable += 1;
                        None
                    }
                };
                show(screen, json, copy, &found, looked)?;
                if self.tally.is_suspicious() && !args.yes {
                    let text = format!(
                        "{} of {} packages are missing or cannot be read at {location}: perhaps it is not mounted, or \
                         another archive; look there, and go on with --yes",
                        self.tally.missing + self.tally.unreadable,
                        self.tally.looked_at
                    );
                    return Err(JobError::new(FailureClass::Destination, text));
                }
                meter.wait(cancel).await;
            }
        }
        Ok(Ended::AllSeen)
    }
}

fn show(
    screen: &Screen,
    json: bool,
    copy: &CopyToCheck,
    found: &Result<Scrubbed, Failure>,
    looked: Option<Looked>,
) -> Result<(), JobError> {
    let package = &copy.package;
    let (word, detail) = match found {
        Ok(Scrubbed::Read(evidence)) => {
            let how = evidence.how.map_or("", |how| how.as_str()).to_owned();
            match &evidence.unread_reason {
                Some(why) if evidence.is_equal() => ("NOT READ", why.clone()),
                _ => (if evidence.is_equal() { "equal" } else { "DIFFERENT" }, how),
            }
        }
        Ok(Scrubbed::Missing(why)) => ("MISSING", why.clone()),
        Ok(Scrubbed::Unreadable(why)) => ("UNREADABLE", why.clone()),
        Err(failure) => ("UNREADABLE", failure.chain.join(": ")),
    };
    if json {
        let event = serde_json::json!({
            "schema": 1, "event": "copy", "package": package.package.to_string(), "name": package.name,
            "size": package.size_bytes, "found": word.to_lowercase().replace(' ', "_"), "detail": detail, "recorded": looked,
            "last_checked_at": copy.checked_at.to_string(),
        });
        return print_json(screen, &event);
    }
    let recorded = match looked {
        Some(Looked::NotCounted) => proves_nothing(found),
        Some(Looked::Overtaken) => "; somebody else looked meanwhile",
        Some(Looked::Recorded(_)) | None => "",
    };
    screen.print(&format!("{} {}: {word} ({detail}){recorded}\n", package.package, package.name));
    Ok(())
}

/// Why an equal reading does not count.
fn proves_nothing(found: &Result<Scrubbed, Failure>) -> &'static str {
    match found {
        Ok(Scrubbed::Read(evidence)) if evidence.unread_reason.is_some() => {
            "; it proves nothing, and stays as old as it was"
        }
        Ok(Scrubbed::Read(evidence)) if evidence.cached => {
            "; it proves nothing here: a cache may have answered, and cached_read_back_counts is not set for the location"
        }
        _ => {
            "; it proves nothing here: the tape system vouches for it, and on_tape_readback of the location wants it read"
        }
    }
}

/// Whether an error is about the archive, and not about what is read there.
const fn concerns_all(class: ErrorClass) -> bool {
    matches!(
        class,
        ErrorClass::Configuration
            | ErrorClass::Authentication
            | ErrorClass::Network
            | ErrorClass::RemoteBusy
            | ErrorClass::Cancelled
            | ErrorClass::Bug
    )
}

/// Restores packages, copies and records from the sidecars of an archive.
pub(super) async fn rebuild(
    from: &Place,
    json: bool,
    daemon: &Daemon,
    screen: &Screen,
    cancel: &CancellationToken,
) -> Result<Exit, JobError> {
    let (archive, _) = configured(from, daemon).await?;
    let store = open(daemon).await?;
    let (by, mut after, mut sums) = (actor(), None::<String>, Sums::default());
    sums.then = format!("ccat-xfer verify --location {from}");
    let looked_at_by = store.before_all_looks(from).await.map_err(|error| store_error(&error))?;
    loop {
        let names = archive.sidecars(after.as_deref(), usize::try_from(AT_ONCE).unwrap_or(usize::MAX)).await;
        let names = names.map_err(|error| told(&error.into()))?;
        let Some(last) = names.last() else { break };
        after = Some(last.clone());
        for name in &names {
            if cancel.is_cancelled() {
                return Err(JobError::new(FailureClass::Cancelled, "interrupted; what was restored so far stays"));
            }
            sums.sidecars += 1;
            let bytes = match archive.read_sidecar(name).await {
                Ok(bytes) => bytes,
                Err(error) if concerns_all(error.class) => return Err(told(&error.into())),
                Err(error) => {
                    sums.refused += 1;
                    screen.note(&format!("{name}: {error}"));
                    continue;
                }
            };
            let (package, copy) = match Sidecar::from_json(&bytes)
                .map_err(|e| e.to_string())
                .and_then(|s| restored(s, from, looked_at_by))
            {
                Ok(read) => read,
                Err(why) => {
                    sums.refused += 1;
                    screen.note(&format!("{name}: {why}"));
                    continue;
                }
            };
            match store.restore(&package, &[copy], &by).await {
                Ok(done) => {
                    sums.packages += u64::from(done.is_new_package);
                    sums.copies += done.new_copies;
                    sums.records += done.new_records;
                }
                // What is wrong with one package keeps no other from being restored.
                Err(error @ (StoreError::Refused(_) | StoreError::NotFound { .. })) => {
                    sums.refused += 1;
                    screen.note(&format!("{name}: {error}"));
                }
                Err(error) => return Err(store_error(&error)),
            }
        }
    }
    store.close().await;
    if json {
        print_json(screen, &sums)?;
    } else {
        screen.print(&format!(
            "{} sidecars of {from}: {} packages, {} copies and {} records are new, {} were refused\n",
            sums.sidecars, sums.packages, sums.copies, sums.records, sums.refused
        ));
        if sums.copies > 0 {
            screen.print(&format!(
                "the sidecars are believed so far, and nothing of their packages was read; `{}` does, these first\n",
                sums.then
            ));
        }
    }
    Ok(if sums.refused == 0 { Exit::Success } else { Exit::Partial })
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    sidecars: u64,
    packages: u64,
    copies: u64,
    records: u64,
    refused: u64,
    /// What to run next: sidecars are believed until their packages were read.
    then: String,
}

/// What a sidecar restores.
fn restored(
    sidecar: Sidecar,
    from: &Place,
    looked_at_by: Option<Timestamp>,
) -> Result<(RestoredPackage, RestoredCopy), String> {
    if sidecar.archive != *from {
        return Err(format!("it is of {}, not of {from}", sidecar.archive));
    }
    let package = sidecar.package;
    let wanted = match package.kind {
        PackageKind::File => Algorithm::Blake3,
        PackageKind::Tree => Algorithm::Tree,
    };
    let identity = package.digests.iter().find(|digest| digest.algorithm == wanted);
    let identity = identity.ok_or_else(|| format!("it names no {wanted} digest"))?.value;
    let record = |seen: &Verified| Evidence {
        // The store knows better.
        package: PackageId::new(1),
        location: LocationId::new(1),
        path: package.path_hex.as_bytes().to_vec(),
        algorithm: seen.expected.algorithm,
        expected_digest: seen.expected.value,
        found_digest: seen.found.value,
        expected_size_bytes: seen.expected_size_bytes,
        found_size_bytes: seen.found_size_bytes,
        method: CheckMethod::ReadBack,
        medium: seen.medium,
        cached: seen.how == ReadHow::Cached,
        how: Some(seen.how),
        unread_reason: seen.unread_reason.clone(),
        host: seen.host.clone(),
        version: seen.version.clone(),
        receiver_key: None,
        started_at: seen.started_at,
        ended_at: seen.ended_at,
    };
    let copy = RestoredCopy {
        location: sidecar.archive,
        path: package.path_hex.clone(),
        records: sidecar.verification.iter().map(record).collect(),
        looked_at_by,
    };
    let package = RestoredPackage {
        name: package.name,
        kind: package.kind,
        origin: package.origin,
        path: package.path_hex,
        size_bytes: package.size_bytes,
        file_count: package.file_count,
        identity,
        digests: package.digests,
        priority: package.priority,
        policy: package.policy,
        required: package.required,
        registered_at: package.registered_at,
        metadata: sidecar.metadata.registered,
    };
    Ok((package, copy))
}

/// Counts what is read, and keeps the average to a rate.
#[derive(Debug)]
struct Meter {
    rate: Option<NonZeroU64>,
    began: Instant,
    bytes: Mutex<u64>,
}

impl Meter {
    fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.and_then(NonZeroU64::new), began: Instant::now(), bytes: Mutex::default() }
    }

    fn bytes(&self) -> u64 {
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that was read would have been read at the rate.
    async fn wait(&self, cancel: &CancellationToken) {
        let Some(rate) = self.rate else { return };
        let micros = u128::from(self.bytes()) * 1_000_000 / u128::from(rate.get());
        let due = self.began + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            () = cancel.cancelled() => {}
        }
    }
}

impl Progress for Meter {
    fn advance(&self, bytes: u64) {
        let mut all = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *all = all.saturating_add(bytes);
    }
}

/// Copies of one question to the database.
const AT_ONCE: u32 = 100;
