//! What lies where, and what is known of it: copies with their last evidence, archives with what they still wait for,
//! and all that a sidecar says of a package.

use serde::Serialize;

use super::{
    Page, Store, StoreError,
    list::MOST_ROWS,
    scrub::digests,
    sql::{Row, Tx, args},
};
use crate::model::{
    ArchiveTransferId, CheckMethod, CopyStatus, ErrorClass, Fence, LocationId, LocationType, OnTapeReadback,
    PackageDigest, PackageId, PackageKind, PackageState, Policy, ReadHow, SiteId, Status, Timestamp, TransferId,
    Verification, Work,
};

/// Most records of one package in its sidecar.
const MOST_RECORDS: i64 = 1000;

/// The last look at a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastRecord {
    /// Whether what was found is what was registered.
    pub is_equal: bool,
    /// How it was looked at.
    pub method: CheckMethod,
    /// How the bytes were read, where that is known.
    pub how: Option<ReadHow>,
    /// Why nothing was read, where nothing was.
    pub unread_reason: Option<String>,
    /// The machine that looked.
    pub host: String,
    /// When it was written down.
    pub at: Timestamp,
}

/// What lies of a package at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyRow {
    /// `SITE/LOCATION`.
    pub location: String,
    /// What the place is for.
    pub location_type: LocationType,
    /// Below the root of that place, as far as it is text.
    pub path: String,
    /// What is known to lie there.
    pub status: CopyStatus,
    /// How far it is trusted.
    pub verification: Verification,
    /// Why it is, or is not.
    pub reason: String,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// The last look at it; the origin's copy has none until somebody looks.
    pub last_record: Option<LastRecord>,
}

/// Where a package stands with one archive that its policy asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveRow {
    /// The package.
    pub package: PackageId,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: PackageState,
    /// `SITE/LOCATION` of the archive.
    pub location: String,
    /// Whether it holds the package, verified.
    pub holds: bool,
    /// How far its copy is trusted; nothing before there is one.
    pub verification: Option<Verification>,
    /// The last look at it.
    pub last_record: Option<LastRecord>,
    /// The last work for it.
    pub work: Option<Work>,
    /// Where that stands.
    pub status: Option<Status>,
    /// Class of its last error, while it is not mended.
    pub error_class: Option<ErrorClass>,
    /// Its last error.
    pub error_text: Option<String>,
    /// When the copy was last looked at.
    pub checked_at: Option<Timestamp>,
}

/// Which archives are meant. Everything that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct ArchiveFilter {
    /// This archive.
    pub location: Option<LocationId>,
    /// Archives of this site.
    pub site: Option<SiteId>,
    /// This package.
    pub package: Option<PackageId>,
    /// Of packages in one of these states, where any are given.
    pub states: Vec<PackageState>,
}

/// How far a package is archived, and what is in its way.
#[derive(Clone, Debug, Serialize)]
pub struct PackageStanding {
    /// The package.
    pub package: PackageId,
    /// Its state.
    pub state: PackageState,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: String,
    /// How many archives its policy asks for; nothing is stored before the first archive work is planned.
    pub required: u64,
    /// How many of them hold it.
    pub held: u64,
    /// As a sentence: "1 of 2 archives hold it".
    pub text: String,
    /// Each of these archives.
    pub archives: Vec<ArchiveRow>,
}

/// A look at a package anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sighting {
    /// `SITE/LOCATION`.
    pub location: String,
    /// The work in which it was seen, with its fence.
    pub work: Option<(Work, Fence)>,
    /// Whether it was what was registered.
    pub is_equal: bool,
    /// By what.
    pub found: PackageDigest,
    /// How it was looked at.
    pub method: CheckMethod,
    /// How the bytes were read, where that is known.
    pub how: Option<ReadHow>,
    /// The machine that looked.
    pub host: String,
    /// The program there.
    pub version: String,
    /// When the looking began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// All that a sidecar says of a package, as a worker's login sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dossier {
    /// The package.
    pub package: PackageId,
    /// Its name.
    pub name: String,
    /// A file or a tree.
    pub kind: PackageKind,
    /// `SITE/LOCATION` where it was registered.
    pub origin: String,
    /// The path that it was registered with.
    pub relative_path: Vec<u8>,
    /// As registered.
    pub size_bytes: u64,
    /// As registered.
    pub file_count: u64,
    /// As registered.
    pub digests: Vec<PackageDigest>,
    /// 0 to 9.
    pub priority: i64,
    /// Which archives it must reach.
    pub policy: Policy,
    /// `SITE/LOCATION` of these archives.
    pub required: Vec<String>,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// One JSON object of keys and values.
    pub metadata: Option<String>,
    /// Every look at it, the first one first; the last 1000.
    pub sightings: Vec<Sighting>,
}

/// How readings count in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveSettings {
    /// Whether one that a cache may have answered counts.
    pub cached_read_back_counts: bool,
    /// What has to be read back.
    pub on_tape_readback: OnTapeReadback,
}

/// Columns of a [`LastRecord`] `v`, and the join that finds it for the copy `c`.
const RECORD_COLUMNS: &str =
    "v.expected_digest = v.found_digest AND v.expected_size_bytes = v.found_size_bytes AS is_equal,
    v.method, v.read_how, v.unread_reason, v.host, v.recorded_at";
const LAST_RECORD: &str = "LEFT JOIN verification_record v ON v.id = (SELECT max(w.id) FROM verification_record w
    WHERE w.package_id = c.package_id AND w.location_id = c.location_id)";

fn last_record(row: &Row) -> Result<Option<LastRecord>, StoreError> {
    let Some(method) = row.opt_text("method")? else { return Ok(None) };
    Ok(Some(LastRecord {
        is_equal: row.flag("is_equal")?,
        method: method.parse().map_err(|e| StoreError::Corrupt(format!("method: {e}")))?,
        how: opt_word(row, "read_how")?,
        unread_reason: row.opt_text("unread_reason")?,
        host: row.text("host")?,
        at: row.time("recorded_at")?,
    }))
}

/// One of a closed set of words, or nothing.
pub(super) fn opt_word<T>(row: &Row, name: &str) -> Result<Option<T>, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let word = row.opt_text(name)?;
    word.map(|w| w.parse().map_err(|e| StoreError::Corrupt(format!("{name}: {e}")))).transpose()
}

/// Every copy of a package.
pub(super) async fn copies(tx: &mut Tx, package: PackageId) -> Result<Vec<CopyRow>, StoreError> {
    let text = format!(
        "SELECT s.short_name || '/' || l.name AS location, l.location_type, c.path, c.status, c.verification,
            c.change_reason, c.updated_at, {RECORD_COLUMNS}
        FROM physical_copy c JOIN data_location l ON l.id = c.location_id JOIN site s ON s.id = l.site_id {LAST_RECORD}
        WHERE c.package_id = $1 ORDER BY c.id LIMIT 200"
    );
    let mut found = Vec::new();
    for row in tx.rows(text, args![package]).await? {
        found.push(CopyRow {
            location: row.text("location")?,
            location_type: row.word("location_type")?,
            path: String::from_utf8_lossy(&row.bytes("path")?).into_owned(),
            status: row.word("status")?,
            verification: row.word("verification")?,
            reason: row.text("change_reason")?,
            updated_at: row.time("updated_at")?,
            last_record: last_record(&row)?,
        });
    }
    Ok(found)
}

/// Archives of packages that `condition` names, in the order of packages.
async fn archives(tx: &mut Tx, condition: &str, values: &[super::sql::Value]) -> Result<Vec<ArchiveRow>, StoreError> {
    let text = format!(
        "SELECT p.id AS package_id, p.name, p.state, s.short_name || '/' || l.name AS location,
            coalesce(c.status = 'present' AND c.verification = 'verified', FALSE) AS holds, c.verification, c.checked_at,
            t.id AS work, t.status, t.error_class, t.error_text, {RECORD_COLUMNS}
        FROM archive_requirement q JOIN raw_data_package p ON p.id = q.package_id
            JOIN data_location l ON l.id = q.location_id JOIN site s ON s.id = l.site_id
            LEFT JOIN physical_copy c ON c.package_id = q.package_id AND c.location_id = q.location_id
            LEFT JOIN long_term_archive_transfer t ON t.id = (SELECT max(w.id) FROM long_term_archive_transfer w
                WHERE w.package_id = q.package_id AND w.destination_location_id = q.location_id)
            {LAST_RECORD}
        WHERE {condition} ORDER BY q.package_id, q.location_id"
    );
    let mut found = Vec::new();
    for row in tx.rows(text, values).await? {
        found.push(ArchiveRow {
            package: PackageId::new(row.int("package_id")?),
            name: row.text("name")?,
            state: row.word("state")?,
            location: row.text("location")?,
            holds: row.flag("holds")?,
            verification: opt_word(&row, "verification")?,
            last_record: last_record(&row)?,
            work: row.opt_int("work")?.map(|id| Work::Archive(ArchiveTransferId::new(id))),
            status: opt_word(&row, "status")?,
            error_class: opt_word(&row, "error_class")?,
            error_text: row.opt_text("error_text")?,
            checked_at: row.opt_time("checked_at")?,
        });
    }
    Ok(found)
}

impl Store {
    /// Archives and what they hold, in the order of packages: at most `most` packages behind `after`, each with all its
    /// archives that are meant.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood.
    pub async fn archive_page(
        &self,
        filter: &ArchiveFilter,
        after: Option<i64>,
        most: u32,
    ) -> Result<Page<ArchiveRow>, StoreError> {
        let most = most.clamp(1, MOST_ROWS);
        // One package is a bound of the index, which a condition with OR is not.
        let package = if filter.package.is_some() { "q.package_id = $3" } else { "CAST($3 AS BIGINT) IS NULL" };
        let mut meant = format!(
            "(CAST($1 AS BIGINT) IS NULL OR l.id = $1) AND (CAST($2 AS BIGINT) IS NULL OR l.site_id = $2) AND {package}"
        );
        if !filter.states.is_empty() {
            let words: Vec<_> = filter.states.iter().map(|s| format!("'{s}'")).collect();
            meant.push_str(&format!(" AND p.state IN ({})", words.join(", ")));
        }
        let wanted = args![filter.location, filter.site, filter.package];
        let mut tx = self.read().await?;
        let text = format!(
            "SELECT DISTINCT q.package_id FROM archive_requirement q JOIN raw_data_package p ON p.id = q.package_id
                JOIN data_location l ON l.id = q.location_id
            WHERE {meant} AND q.package_id > $4 ORDER BY q.package_id LIMIT $5"
        );
        let mut values = wanted.to_vec();
        values.extend_from_slice(args![after.unwrap_or(0), i64::from(most) + 1]);
        let rows = tx.rows(text, &values).await?;
        let packages = rows.iter().map(|row| row.int("package_id")).collect::<Result<Vec<_>, _>>()?;
        let shown = usize::try_from(most).unwrap_or(usize::MAX).min(packages.len());
        let (Some(&first), Some(&last)) = (packages.first(), packages[..shown].last()) else {
            return Ok(Page { rows: Vec::new(), next: None });
        };
        let mut values = wanted.to_vec();
        values.extend_from_slice(args![first, last]);
        let rows = archives(&mut tx, &format!("{meant} AND q.package_id BETWEEN $4 AND $5"), &values).await?;
        Ok(Page { rows, next: (packages.len() > shown).then_some(last) })
    }

    /// How far a package is archived, and what is in its way.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn explain_package(&self, id: PackageId) -> Result<PackageStanding, StoreError> {
        standing(&mut self.read().await?, id).await
    }

    /// All that a sidecar says of a package.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also for one that this login does not reach; the database is away.
    pub async fn dossier(&self, id: PackageId) -> Result<Dossier, StoreError> {
        let mut tx = self.read().await?;
        let text = "SELECT p.name, p.kind, s.short_name || '/' || l.name AS origin, p.relative_path, p.size_bytes,
                p.file_count, p.priority, p.policy, p.created_at, m.metadata
            FROM raw_data_package p JOIN data_location l ON l.id = p.origin_location_id JOIN site s ON s.id = l.site_id
                LEFT JOIN raw_data_package_metadata m ON m.package_id = p.id WHERE p.id = $1";
        let row = tx.row(text, args![id]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound { what: "package", name: id.to_string() })?;
        let text = "SELECT s.short_name || '/' || l.name AS location FROM archive_requirement q
                JOIN data_location l ON l.id = q.location_id JOIN site s ON s.id = l.site_id
            WHERE q.package_id = $1 ORDER BY 1";
        let required = tx.rows(text, args![id]).await?;
        Ok(Dossier {
            package: id,
            name: row.text("name")?,
            kind: row.word("kind")?,
            origin: row.text("origin")?,
            relative_path: row.bytes("relative_path")?,
            size_bytes: row.size("size_bytes")?,
            file_count: row.size("file_count")?,
            digests: digests(&mut tx, id).await?,
            priority: row.int("priority")?,
            policy: row.word("policy")?,
            required: required.iter().map(|row| row.text("location")).collect::<Result<_, _>>()?,
            registered_at: row.time("created_at")?,
            metadata: row.opt_text("metadata")?,
            sightings: sightings(&mut tx, id).await?,
        })
    }

    /// How readings count in an archive.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where the location is no archive; the database is away.
    pub async fn archive_settings(&self, location: LocationId) -> Result<ArchiveSettings, StoreError> {
        let mut tx = self.read().await?;
        let text = "SELECT cached_read_back_counts, on_tape_readback FROM data_location
            WHERE id = $1 AND location_type = 'long_term_archive'";
        let row = tx.row(text, args![location]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound { what: "archive", name: location.to_string() })?;
        Ok(ArchiveSettings {
            cached_read_back_counts: row.flag("cached_read_back_counts")?,
            on_tape_readback: row.word("on_tape_readback")?,
        })
    }
}

/// How far a package is archived, and what is in its way.
pub(super) async fn standing(tx: &mut Tx, id: PackageId) -> Result<PackageStanding, StoreError> {
    let text = "SELECT state, policy, change_reason, updated_at FROM raw_data_package WHERE id = $1";
    let row = tx.row(text, args![id]).await?;
    let row = row.ok_or_else(|| StoreError::NotFound { what: "package", name: id.to_string() })?;
    let archives = archives(tx, "q.package_id = $1", args![id]).await?;
    let held = archives.iter().filter(|a| a.holds).count();
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let policy: Policy = row.word("policy")?;
    Ok(PackageStanding {
        package: id,
        state: row.word("state")?,
        since: row.time("updated_at")?,
        reason: row.text("change_reason")?,
        required: count(archives.len()),
        held: count(held),
        text: sentence(policy, held, archives.len()),
        archives,
    })
}

fn sentence(policy: Policy, held: usize, required: usize) -> String {
    match (policy, required) {
        (Policy::TransferOnly, 0) => "no archive is asked for".to_owned(),
        (_, 0) => "no archive work is planned for it yet".to_owned(),
        (_, 1) if held == 1 => "its archive holds it".to_owned(),
        _ => format!("{held} of {required} archives hold it"),
    }
}

async fn sightings(tx: &mut Tx, package: PackageId) -> Result<Vec<Sighting>, StoreError> {
    let text = "SELECT s.short_name || '/' || l.name AS location, v.data_transfer_id, v.long_term_archive_transfer_id,
            v.fence, v.expected_digest = v.found_digest AND v.expected_size_bytes = v.found_size_bytes AS is_equal,
            v.algorithm, v.found_digest, v.method, v.read_how, v.host, v.version, v.started_at, v.ended_at
        FROM verification_record v JOIN data_location l ON l.id = v.location_id JOIN site s ON s.id = l.site_id
        WHERE v.package_id = $1 ORDER BY v.id DESC LIMIT $2";
    let mut found = Vec::new();
    for row in tx.rows(text, args![package, MOST_RECORDS]).await? {
        let work = match (row.opt_int("data_transfer_id")?, row.opt_int("long_term_archive_transfer_id")?) {
            (Some(id), _) => Some(Work::Transfer(TransferId::new(id))),
            (None, Some(id)) => Some(Work::Archive(ArchiveTransferId::new(id))),
            (None, None) => None,
        };
        let value = row.bytes("found_digest")?;
        let value = value.try_into().map_err(|_| StoreError::Corrupt("a digest has not 32 bytes".into()))?;
        found.push(Sighting {
            location: row.text("location")?,
            work: work.zip(row.opt_int("fence")?.map(Fence::new)),
            is_equal: row.flag("is_equal")?,
            found: PackageDigest { algorithm: row.word("algorithm")?, value },
            method: row.word("method")?,
            how: opt_word(&row, "read_how")?,
            host: row.text("host")?,
            version: row.text("version")?,
            started_at: row.time("started_at")?,
            ended_at: row.time("ended_at")?,
        });
    }
    found.reverse();
    Ok(found)
}
