//! Everything about one piece of work, or one package.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Store, StoreError,
    holdings::{CopyRow, PackageStanding, copies, opt_word, standing},
    list::{PACKAGE_SELECT, PackageRow, WorkRow, one_work, package_row},
    sql::{Tx, args},
    work::Kind as WorkKind,
};
use crate::model::{
    Algorithm, BundleId, CheckMethod, Fence, PackageDigest, PackageId, ReadHow, RequestId, StorageType, Timestamp,
    TransferId, Work,
};

/// Most attempts, events, records and packages that are shown: the last ones.
const MOST: i64 = 200;

/// One attempt that ended.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptRow {
    /// The fence under which it ran.
    pub fence: Fence,
    /// Which attempt it was.
    pub number: u64,
    /// The worker's name.
    pub worker: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// `completed`, `handed_back`, or the class of the error.
    pub outcome: String,
    /// The error and its causes, as JSON.
    pub error_chain: Box<RawValue>,
    /// Verified bytes at the destination when it ended.
    pub bytes_done: u64,
    /// Its log.
    pub log: String,
}

/// One change of a state.
#[derive(Clone, Debug, Serialize)]
pub struct EventRow {
    /// From; nothing for the first one.
    pub from_state: Option<String>,
    /// To.
    pub to_state: String,
    /// Who.
    pub actor: String,
    /// The fence at that moment, for work.
    pub fence: Option<Fence>,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// What was found at a place.
#[derive(Clone, Debug, Serialize)]
pub struct RecordRow {
    /// Whose bytes.
    pub package: PackageId,
    /// `SITE/LOCATION`.
    pub location: String,
    /// As registered.
    pub expected: PackageDigest,
    /// As found.
    pub found: PackageDigest,
    /// As registered.
    pub expected_size_bytes: u64,
    /// As found.
    pub found_size_bytes: u64,
    /// How the bytes were read, where that is known.
    pub how: Option<ReadHow>,
    /// Why nothing was read, where nothing was.
    pub unread_reason: Option<String>,
    /// Whether both are equal.
    pub is_equal: bool,
    /// How it was looked at.
    pub method: CheckMethod,
    /// What it was read from.
    pub medium: StorageType,
    /// Whether a cache may have answered.
    pub cached: bool,
    /// The machine that looked.
    pub host: String,
    /// The fence under which it was found.
    pub fence: Option<Fence>,
    /// When.
    pub recorded_at: Timestamp,
}

/// A wish that a package be somewhere.
#[derive(Clone, Debug, Serialize)]
pub struct RequestRow {
    /// Which.
    pub id: RequestId,
    /// `SITE/LOCATION`.
    pub origin: String,
    /// `SITE/LOCATION`, `SITE`, or nothing: any site with an archive.
    pub destination: Option<String>,
    /// 0 to 9, 9 first.
    pub priority: i64,
    /// Its bundle, once it is planned.
    pub bundle: Option<BundleId>,
    /// The transfers of that bundle, in the order in which they were made.
    pub transfers: Vec<TransferId>,
    /// Why it could not be planned the last time.
    pub obstacle: Option<String>,
    /// Whether nobody wants it any more.
    pub is_withdrawn: bool,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// By whom.
    pub requested_by: String,
}

/// Everything about one piece of work.
#[derive(Clone, Debug, Serialize)]
pub struct WorkDetail {
    /// As it is listed.
    pub row: WorkRow,
    /// The transfer that it waits for.
    pub waits_for: Option<TransferId>,
    /// Its packages.
    pub packages: Vec<PackageRow>,
    /// Its attempts, the last one first.
    pub attempts: Vec<AttemptRow>,
    /// Its changes, the last one first.
    pub events: Vec<EventRow>,
    /// What was verified in it, the last one first.
    pub records: Vec<RecordRow>,
}

/// Everything about one package.
#[derive(Clone, Debug, Serialize)]
pub struct PackageDetail {
    /// As it is listed.
    pub row: PackageRow,
    /// Its digests.
    pub digests: Vec<PackageDigest>,
    /// Where it shall go.
    pub requests: Vec<RequestRow>,
    /// What lies of it where.
    pub copies: Vec<CopyRow>,
    /// How far it is archived.
    pub standing: PackageStanding,
    /// What was said of it: one JSON object.
    pub metadata: Option<Box<RawValue>>,
    /// Its changes, the last one first.
    pub events: Vec<EventRow>,
    /// What was found of it anywhere, the last one first.
    pub records: Vec<RecordRow>,
}

impl Store {
    /// Everything about one piece of work.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn work_detail(&self, work: Work) -> Result<WorkDetail, StoreError> {
        let mut tx = self.read().await?;
        let row = one_work(&mut tx, work).await?;
        let (waits_for, packages) = match work {
            Work::Transfer(id) => {
                let row = tx.row("SELECT waits_for FROM data_transfer WHERE id = $1", args![id]).await?;
                let waits_for = row.map(|r| r.opt_int("waits_for")).transpose()?.flatten().map(TransferId::new);
                let which = "p.id IN (SELECT r.package_id FROM transfer_request r JOIN data_transfer t
                    ON t.data_transfer_package_id = r.data_transfer_package_id WHERE t.id = $1)";
                (waits_for, packages(&mut tx, which, id.number()).await?)
            }
            Work::Archive(id) => {
                let which = "p.id = (SELECT package_id FROM long_term_archive_transfer WHERE id = $1)";
                (None, packages(&mut tx, which, id.number()).await?)
            }
        };
        let column = WorkKind::of(work).reference();
        Ok(WorkDetail {
            row,
            waits_for,
            packages,
            attempts: attempts(&mut tx, column, work.number()).await?,
            events: events(&mut tx, work.table(), work.number()).await?,
            records: records(&mut tx, column, work.number()).await?,
        })
    }

    /// Everything about one package.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn package_detail(&self, id: PackageId) -> Result<PackageDetail, StoreError> {
        let mut tx = self.read().await?;
        let row = packages(&mut tx, "p.id = $1", id.number()).await?.into_iter().next();
        let row = row.ok_or_else(|| StoreError::NotFound { what: "package", name: id.to_string() })?;
        let mut digests = Vec::new();
        let text = "SELECT algorithm, digest FROM package_digest WHERE package_id = $1 ORDER BY algorithm";
        for row in tx.rows(text, args![id]).await? {
            digests.push(digest(row.word("algorithm")?, row.bytes("digest")?)?);
        }
        Ok(PackageDetail {
            row,
            digests,
            requests: requests(&mut tx, id).await?,
            copies: copies(&mut tx, id).await?,
            standing: standing(&mut tx, id).await?,
            metadata: metadata(&mut tx, id).await?,
            events: events(&mut tx, "raw_data_package", id.number()).await?,
            records: records(&mut tx, "package_id", id.number()).await?,
        })
    }
}

async fn metadata(tx: &mut Tx, id: PackageId) -> Result<Option<Box<RawValue>>, StoreError> {
    let text = "SELECT metadata FROM raw_data_package_metadata WHERE package_id = $1";
    let Some(row) = tx.row(text, args![id]).await? else { return Ok(None) };
    let raw = RawValue::from_string(row.text("metadata")?);
    raw.map(Some).map_err(|e| StoreError::Corrupt(format!("metadata: {e}")))
}

async fn packages(tx: &mut Tx, which: &'static str, id: i64) -> Result<Vec<PackageRow>, StoreError> {
    let text = format!("{PACKAGE_SELECT} WHERE {which} ORDER BY p.id LIMIT $2");
    tx.rows(text, args![id, MOST]).await?.iter().map(package_row).collect()
}

fn digest(algorithm: Algorithm, value: Vec<u8>) -> Result<PackageDigest, StoreError> {
    let value = value.try_into().map_err(|_| StoreError::Corrupt("a digest has not 32 bytes".into()))?;
    Ok(PackageDigest { algorithm, value })
}

async fn attempts(tx: &mut Tx, column: &'static str, id: i64) -> Result<Vec<AttemptRow>, StoreError> {
    let text = format!(
        "SELECT fence, number, worker_name, started_at, ended_at, outcome, error_chain, bytes_done, log FROM attempt
        WHERE {column} = $1 ORDER BY fence DESC LIMIT $2"
    );
    let mut found = Vec::new();
    for row in tx.rows(text, args![id, MOST]).await? {
        found.push(AttemptRow {
            fence: Fence::new(row.int("fence")?),
            number: row.size("number")?,
            worker: row.text("worker_name")?,
            started_at: row.time("started_at")?,
            ended_at: row.time("ended_at")?,
            outcome: row.text("outcome")?,
            error_chain: RawValue::from_string(row.text("error_chain")?)
                .map_err(|e| StoreError::Corrupt(format!("error_chain: {e}")))?,
            bytes_done: row.size("bytes_done")?,
            log: row.text("log")?,
        });
    }
    Ok(found)
}

async fn events(tx: &mut Tx, entity: &'static str, id: i64) -> Result<Vec<EventRow>, StoreError> {
    let text = "SELECT from_state, to_state, actor, fence, at, reason FROM event
        WHERE entity = $1 AND entity_id = $2 ORDER BY id DESC LIMIT $3";
    let mut found = Vec::new();
    for row in tx.rows(text, args![entity, id, MOST]).await? {
        found.push(EventRow {
            from_state: row.opt_text("from_state")?,
            to_state: row.text("to_state")?,
            actor: row.text("actor")?,
            fence: row.opt_int("fence")?.map(Fence::new),
            at: row.time("at")?,
            reason: row.text("reason")?,
        });
    }
    Ok(found)
}

async fn records(tx: &mut Tx, column: &'static str, id: i64) -> Result<Vec<RecordRow>, StoreError> {
    let text = format!(
        "SELECT v.package_id, s.short_name || '/' || l.name AS location, v.algorithm, v.expected_digest, v.found_digest,
            v.expected_size_bytes, v.found_size_bytes, v.method, v.medium, v.cached, v.host, v.fence, v.recorded_at,
            v.read_how, v.unread_reason
        FROM verification_record v JOIN data_location l ON l.id = v.location_id JOIN site s ON s.id = l.site_id
        WHERE v.{column} = $1 ORDER BY v.id DESC LIMIT $2"
    );
    let mut found = Vec::new();
    for row in tx.rows(text, args![id, MOST]).await? {
        let algorithm = row.word("algorithm")?;
        let expected = digest(algorithm, row.bytes("expected_digest")?)?;
        let was_found = digest(algorithm, row.bytes("found_digest")?)?;
        let (expected_size_bytes, found_size_bytes) = (row.size("expected_size_bytes")?, row.size("found_size_bytes")?);
        found.push(RecordRow {
            package: PackageId::new(row.int("package_id")?),
            location: row.text("location")?,
            expected,
            found: was_found,
            expected_size_bytes,
            found_size_bytes,
            how: opt_word(&row, "read_how")?,
            unread_reason: row.opt_text("unread_reason")?,
            is_equal: expected == was_found && expected_size_bytes == found_size_bytes,
            method: row.word("method")?,
            medium: row.word("medium")?,
            cached: row.flag("cached")?,
            host: row.text("host")?,
            fence: row.opt_int("fence")?.map(Fence::new),
            recorded_at: row.time("recorded_at")?,
        });
    }
    Ok(found)
}

async fn requests(tx: &mut Tx, package: PackageId) -> Result<Vec<RequestRow>, StoreError> {
    let text = "SELECT r.id, os.short_name || '/' || ol.name AS origin,
            CASE WHEN dl.name IS NULL THEN ds.short_name ELSE ds.short_name || '/' || dl.name END AS destination,
            r.priority, r.data_transfer_package_id, r.obstacle, r.withdrawn, r.requested_at, r.requested_by
        FROM transfer_request r
            JOIN data_location ol ON ol.id = r.origin_location_id JOIN site os ON os.id = ol.site_id
            LEFT JOIN site ds ON ds.id = r.destination_site_id
            LEFT JOIN data_location dl ON dl.id = r.destination_location_id
        WHERE r.package_id = $1 ORDER BY r.id LIMIT $2";
    let mut found = Vec::new();
    for row in tx.rows(text, args![package, MOST]).await? {
        let bundle = row.opt_int("data_transfer_package_id")?.map(BundleId::new);
        let mut transfers = Vec::new();
        if let Some(bundle) = bundle {
            let text = "SELECT id FROM data_transfer WHERE data_transfer_package_id = $1 ORDER BY id";
            for row in tx.rows(text, args![bundle]).await? {
                transfers.push(TransferId::new(row.int("id")?));
            }
        }
        found.push(RequestRow {
            id: RequestId::new(row.int("id")?),
            origin: row.text("origin")?,
            destination: row.opt_text("destination")?,
            priority: row.int("priority")?,
            bundle,
            transfers,
            obstacle: row.opt_text("obstacle")?,
            is_withdrawn: row.flag("withdrawn")?,
            requested_at: row.time("requested_at")?,
            requested_by: row.text("requested_by")?,
        });
    }
    Ok(found)
}
