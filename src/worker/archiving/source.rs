//! Where a package is read from on its way into an archive, and whether that still is what was registered.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    super::{Attempt, Failure, failure::End, origin::Origin, runner, wall_clock},
    Archiving,
    job::{Brought, stopped},
};
use crate::{
    archive::{Package, Unseen},
    chunk::{Digest, RelPath},
    disk::Root,
    engine::{self, Measured},
    model::{CheckMethod, ErrorClass, Evidence, ReadHow, Timestamp},
    store::{Claim, Member},
};

impl Archiving {
    /// Where a package is read from: a folder of this machine, or one to which it was copied out of another archive.
    pub(super) async fn source(
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

    /// Whose fault it is that the archive reads other bytes than were registered.
    pub(super) fn differing(
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
}

/// The source, read once more.
pub(super) struct Again {
    measured: Measured,
    /// When the file was last written to; nothing for a tree, which has many.
    modified_at: Option<Timestamp>,
    started_at: Timestamp,
    ended_at: Timestamp,
}

pub(super) async fn again(root: &Arc<Root>, path: &RelPath, cancel: &CancellationToken) -> Result<Again, Failure> {
    let (root, at, started_at) = (Arc::clone(root), path.clone(), wall_clock());
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
    Ok(Again { measured, modified_at, started_at, ended_at: wall_clock().max(started_at) })
}
