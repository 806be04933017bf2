//! What a sidecar says of a package, from what the database knows and the archive was found to hold.

use std::collections::BTreeMap;

use super::{
    super::{Failure, wall_clock},
    Archiving, spelled,
};
use crate::{
    archive::{
        self, Package, ReadHow,
        sidecar::{Chunks, Described, Provenance, Sidecar, Step, Verified},
    },
    engine,
    model::{
        ErrorClass, Evidence, PackageDigest,
        topology::{Fault, Place},
    },
    store::{Claim, Member, Sighting, StoreError},
};

impl Archiving {
    pub(super) fn sidecar(
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
                written_at: wall_clock(),
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

    /// What the database knows of a package, for its sidecar.
    pub(super) async fn facts(&self, member: &Member, package: &Package) -> Result<Facts, Failure> {
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
pub(super) struct Facts {
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
