//! Reading again what is archived.

use tokio_util::sync::CancellationToken;

use super::{Failure, runner};
use crate::{
    archive::{Archive, Package, Progress, ReadHow, Reading},
    engine,
    model::{CheckMethod, ErrorClass, Evidence, LocationId, StorageType},
    store::Member,
};

/// What an archive was found to hold of a package.
#[derive(Clone, Debug)]
pub enum Scrubbed {
    /// It was read: equal or not.
    Read(Box<Evidence>),
    /// It is not there.
    Missing(String),
    /// It is there and cannot be read.
    Unreadable(String),
}

/// Reads a package from an archive once more, and changes nothing there.
///
/// `host` is who reads; `unread` says that the archive's settings have nobody read it.
///
/// # Errors
/// It could not be read: nothing is known of it then.
pub async fn scrub(
    archive: &dyn Archive,
    location: LocationId,
    member: &Member,
    (host, unread): (&str, bool),
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Scrubbed, Failure> {
    let package = package_of(member)?;
    match archive.read_back(&package, progress, cancel).await {
        Ok(reading) => {
            let medium = archive.medium();
            let seen = Seen { host, method: CheckMethod::Scrub, reading: &reading, unread };
            let evidence = evidence(member, &package, location, medium, &seen);
            Ok(Scrubbed::Read(Box::new(evidence)))
        }
        Err(error) if error.class == ErrorClass::MissingSource => Ok(Scrubbed::Missing(error.to_string())),
        // It is there, and its medium or its shape does not let it be read.
        Err(error) if matches!(error.class, ErrorClass::CorruptInFlight | ErrorClass::DestinationDiffers) => {
            Ok(Scrubbed::Unreadable(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// A reading, and who made it.
pub(super) struct Seen<'a> {
    pub(super) host: &'a str,
    pub(super) method: CheckMethod,
    pub(super) reading: &'a Reading,
    /// Whether nobody looks, by the archive's settings.
    pub(super) unread: bool,
}

/// A package as an archive needs to know it.
pub(super) fn package_of(member: &Member) -> Result<Package, Failure> {
    Ok(Package {
        kind: member.kind,
        relative_path: runner::path(&member.relative_path)?,
        size_bytes: member.size_bytes,
        file_count: member.file_count,
        expected: member.identity()?,
    })
}

/// What a reading says of a package at a location.
pub(super) fn evidence(
    member: &Member,
    package: &Package,
    location: LocationId,
    medium: StorageType,
    seen: &Seen<'_>,
) -> Evidence {
    let Seen { host, method, reading, unread } = seen;
    Evidence {
        package: member.package,
        location,
        path: member.relative_path.clone(),
        algorithm: package.expected.algorithm,
        expected_digest: package.expected.value,
        found_digest: reading.digest.0,
        expected_size_bytes: package.size_bytes,
        found_size_bytes: reading.size_bytes,
        method: *method,
        medium,
        cached: reading.how == ReadHow::Cached,
        how: Some(reading.how),
        unread_reason: reading.vouched_by.clone().filter(|_| *unread),
        host: (*host).to_owned(),
        version: engine::program().to_owned(),
        receiver_key: None,
        started_at: reading.started_at,
        ended_at: reading.ended_at.max(reading.started_at),
    }
}
