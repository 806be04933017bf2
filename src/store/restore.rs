//! Packages and their copies come back from what an archive says of itself, into a database that knows the topology and
//! perhaps nothing else. Saying it twice changes nothing.

use serde::Serialize;

use super::{
    Store, StoreError,
    registration::{describe, location_of},
    scrub::{digests, insert_record},
    settle::keep_states,
    sql::{Tx, Value, args},
};
use crate::{
    chunk::RelPath,
    model::{
        Evidence, LocationId, PackageDigest, PackageId, PackageKind, PackageState, Policy, Timestamp, topology::Place,
    },
};

/// A package as it was registered once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredPackage {
    /// For people.
    pub name: String,
    /// File or tree.
    pub kind: PackageKind,
    /// Where it was registered.
    pub origin: Place,
    /// Below the root of its origin.
    pub path: RelPath,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Files in it; 1 for a file.
    pub file_count: u64,
    /// The blake3 digest of a file, the tree digest of a tree.
    pub identity: [u8; 32],
    /// All that were registered, the identity among them.
    pub digests: Vec<PackageDigest>,
    /// 0 to 9.
    pub priority: u8,
    /// Which archives it had to reach.
    pub policy: Policy,
    /// The archives that its policy asked for, as they were stored with it. The one that is restored from is added.
    pub required: Vec<Place>,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// One JSON object of keys and values.
    pub metadata: Option<String>,
}

/// A copy with what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredCopy {
    /// The archive.
    pub location: Place,
    /// Path below its root.
    pub path: RelPath,
    /// What was found there. `package` and `location` of each are set by [`Store::restore`].
    pub records: Vec<Evidence>,
    /// When it counts as looked at at the latest: before all that the database itself has looked at there
    /// ([`Store::before_all_looks`]), so that a look through the archive begins with what nobody has seen since. Asked once
    /// for all copies that are restored together: those that are dated later then keep the order in which they came.
    pub looked_at_by: Option<Timestamp>,
}

/// What became of one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The package.
    pub package: PackageId,
    /// Whether it was not known before.
    pub is_new_package: bool,
    /// How many of its copies were not known before.
    pub new_copies: u64,
    /// How many records were not known before.
    pub new_records: u64,
}

impl Store {
    /// A moment before all looks at the copies of a location that the database knows of; nothing where it knows of none.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a place that the topology does not have; the database.
    pub async fn before_all_looks(&self, at: &Place) -> Result<Option<Timestamp>, StoreError> {
        let mut tx = self.read().await?;
        let (location, _) = location_of(&mut tx, at).await?;
        let text = "SELECT checked_at FROM physical_copy WHERE location_id = $1 AND checked_at IS NOT NULL
            ORDER BY checked_at LIMIT 1";
        let row = tx.row(text, args![location]).await?;
        let first = row.map(|row| row.time("checked_at")).transpose()?;
        Ok(first.map(|first| Timestamp::from_micros(first.micros().saturating_sub(1).max(1))))
    }

    /// Writes a package, its copies and their records as they were, all or nothing. What is there already and equal is
    /// left as it is.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the package or a copy is there and differs, or the records prove no copy;
    /// [`StoreError::NotFound`] for a place that the topology does not have; the database.
    pub async fn restore(
        &self,
        package: &RestoredPackage,
        copies: &[RestoredCopy],
        actor: &str,
    ) -> Result<Restored, StoreError> {
        let mut tx = self.write().await?;
        let (origin, _) = location_of(&mut tx, &package.origin).await?;
        let (id, is_new_package) = restore_package(&mut tx, package, origin, actor).await?;
        let mut done = Restored { package: id, is_new_package, new_copies: 0, new_records: 0 };
        let mut places = Vec::new();
        for copy in copies {
            places.push(location_of(&mut tx, &copy.location).await?.0);
        }
        let mut required = places.clone();
        for place in &package.required {
            required.push(location_of(&mut tx, place).await?.0);
        }
        require_all(&mut tx, id, &required).await?;
        for (copy, location) in copies.iter().zip(places) {
            for record in &copy.records {
                let record = Evidence { package: id, location, ..record.clone() };
                done.new_records += u64::from(restore_record(&mut tx, &record).await?);
            }
            done.new_copies += u64::from(restore_copy(&mut tx, id, package, copy, location, actor).await?);
        }
        keep_states(&mut tx, &[id.number()], actor, "restored from an archive").await?;
        tx.commit().await?;
        Ok(done)
    }
}

async fn restore_package(
    tx: &mut Tx,
    package: &RestoredPackage,
    origin: LocationId,
    actor: &str,
) -> Result<(PackageId, bool), StoreError> {
    let path = package.path.as_bytes();
    let made = tx
        .row(
            "INSERT INTO raw_data_package (name, kind, origin_location_id, relative_path, size_bytes, file_count, \
             identity, priority, policy, created_at, changed_by, change_reason) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'restored from an archive') \
             ON CONFLICT (origin_location_id, relative_path, identity) DO NOTHING RETURNING id",
            args![
                &package.name,
                package.kind.as_str(),
                origin,
                path,
                Value::size(package.size_bytes)?,
                Value::size(package.file_count)?,
                package.identity,
                i64::from(package.priority),
                package.policy.as_str(),
                package.registered_at,
                actor,
            ],
        )
        .await?;
    if let Some(row) = made {
        let id = PackageId::new(row.int("id")?);
        for digest in &package.digests {
            tx.execute(
                "INSERT INTO package_digest (package_id, algorithm, digest) VALUES ($1, $2, $3)",
                args![id, digest.algorithm.as_str(), digest.value],
            )
            .await?;
        }
        describe(tx, id, package.metadata.as_deref()).await?;
        return Ok((id, true));
    }
    let row = tx
        .row(
            "SELECT id, name, kind, size_bytes, file_count FROM raw_data_package \
             WHERE origin_location_id = $1 AND relative_path = $2 AND identity = $3",
            args![origin, path, package.identity],
        )
        .await?
        .ok_or_else(|| StoreError::Conflict("a package came and went".into()))?;
    let id = PackageId::new(row.int("id")?);
    let differs = |what: &str| {
        StoreError::Refused(format!("{}: known as {id}, with another {what} than the archive says", package.path))
    };
    let known = digests(tx, id).await?;
    for (is_equal, what) in [
        (row.text("name")? == package.name, "name"),
        (row.word::<PackageKind>("kind")? == package.kind, "kind"),
        (row.size("size_bytes")? == package.size_bytes, "size"),
        (row.size("file_count")? == package.file_count, "number of files"),
        (
            package.digests.iter().all(|d| known.iter().all(|k| k.algorithm != d.algorithm || k.value == d.value)),
            "digest",
        ),
    ] {
        if !is_equal {
            return Err(differs(what));
        }
    }
    Ok((id, false))
}

/// The archives that are required of it. One that is archived has what it needs.
async fn require_all(tx: &mut Tx, package: PackageId, locations: &[LocationId]) -> Result<(), StoreError> {
    let row = tx.row("SELECT state FROM raw_data_package WHERE id = $1", args![package]).await?;
    let row = row.ok_or_else(|| StoreError::Conflict("a package came and went".into()))?;
    if row.word::<PackageState>("state")? == PackageState::Archived {
        return Ok(());
    }
    for &location in locations {
        tx.execute(
            "INSERT INTO archive_requirement (package_id, location_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            args![package, location],
        )
        .await?;
    }
    Ok(())
}

/// A record is the same one when the same machine looked at the same time and found the same.
async fn restore_record(tx: &mut Tx, record: &Evidence) -> Result<bool, StoreError> {
    let text = "SELECT 1 AS one FROM verification_record WHERE package_id = $1 AND location_id = $2 AND algorithm = $3
        AND found_digest = $4 AND method = $5 AND host = $6 AND started_at = $7 AND ended_at = $8 LIMIT 1";
    let there = args![
        record.package,
        record.location,
        record.algorithm.as_str(),
        record.found_digest,
        record.method.as_str(),
        &record.host,
        record.started_at,
        record.ended_at
    ];
    if tx.row(text, there).await?.is_some() {
        return Ok(false);
    }
    insert_record(tx, record, Some(record.ended_at)).await?;
    Ok(true)
}

async fn restore_copy(
    tx: &mut Tx,
    id: PackageId,
    package: &RestoredPackage,
    copy: &RestoredCopy,
    location: LocationId,
    actor: &str,
) -> Result<bool, StoreError> {
    let said = copy.records.iter().map(|record| record.ended_at).min();
    let checked_at = said.map(|said| copy.looked_at_by.map_or(said, |by| said.min(by)));
    // Nothing else is to be done with it: the planner has no look at it.
    let made = tx
        .execute(
            "INSERT INTO physical_copy (package_id, location_id, path, size_bytes, status, verification, \
             archive_due_at, checked_at, changed_by, change_reason) \
             VALUES ($1, $2, $3, $4, 'present', 'verified', NULL, $5, $6, 'restored from an archive') \
             ON CONFLICT (package_id, location_id) DO NOTHING",
            args![id, location, copy.path.as_bytes(), Value::size(package.size_bytes)?, checked_at, actor],
        )
        .await?;
    if made > 0 {
        return Ok(true);
    }
    let text = "SELECT path FROM physical_copy WHERE package_id = $1 AND location_id = $2";
    let row = tx.row(text, args![id, location]).await?;
    let path = row.map(|row| row.bytes("path")).transpose()?;
    if path.as_deref() != Some(copy.path.as_bytes()) {
        return Err(StoreError::Refused(format!(
            "{id}: its copy in {} has another path than the archive says",
            copy.location
        )));
    }
    Ok(false)
}
