//! Packages become known, with the wish where they should be.

use super::{
    Backend, Store, StoreError,
    sql::{Tx, Value, args},
    wakeups::Wakeup,
};
use crate::{
    chunk::RelPath,
    model::{Algorithm, LocationId, PackageId, PackageKind, Policy, RequestId, SiteId, topology::Place},
};

/// A package as it was found at its origin: size and digests were taken there, once.
#[derive(Clone, Debug)]
pub struct NewPackage {
    /// For people; the last part of the path unless something better is known.
    pub name: String,
    /// File or tree.
    pub kind: PackageKind,
    /// The location that holds it.
    pub origin: Place,
    /// Below the location's root; not the root itself.
    pub path: RelPath,
    /// Bytes of all its files.
    pub size_bytes: u64,
    /// Files in it; 1 for a file.
    pub file_count: u64,
    /// The blake3 digest of a file, the tree digest of a tree.
    pub identity: [u8; 32],
    /// For other programs, where somebody computed it.
    pub sha256: Option<[u8; 32]>,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Which archives it must reach.
    pub policy: Policy,
    /// One JSON object of keys and values, for its sidecar: [`checked_metadata`] takes it.
    pub metadata: Option<String>,
}

/// Most bytes of a package's metadata.
pub const MOST_METADATA: usize = 1 << 20;

/// Metadata as the schema takes them: one JSON object of at most [`MOST_METADATA`] bytes.
///
/// # Errors
/// [`StoreError::Refused`], with what is wrong.
pub fn checked_metadata(text: &str) -> Result<&str, StoreError> {
    let refused = |why: String| StoreError::Refused(format!("metadata: {why}"));
    if text.len() > MOST_METADATA {
        return Err(refused(format!("{} bytes are more than {MOST_METADATA}", text.len())));
    }
    match serde_json::from_str(text) {
        // PostgreSQL takes no NUL in a text, however it is written.
        Ok(serde_json::Value::Object(_)) if text.contains("\\u0000") => Err(refused("a text holds a NUL".into())),
        Ok(serde_json::Value::Object(_)) => Ok(text),
        Ok(_) => Err(refused("not an object of keys and values".into())),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// Where a package should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// There.
    Place(Place),
    /// In the best buffer of that site, by short name; which one, the planner says.
    Site(String),
    /// At whichever site has its turn.
    Any,
}

/// What became of one package and one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The package.
    pub package: PackageId,
    /// Whether nobody had registered it before.
    pub is_new_package: bool,
    /// The wish.
    pub request: RequestId,
    /// Whether nobody had wished it before.
    pub is_new_request: bool,
}

impl Store {
    /// Registers packages and where they should be, all or nothing. The same thing twice makes nothing new, and the
    /// answer says so: one for each package and destination, in order.
    ///
    /// # Errors
    /// An unknown or inactive site or location; a package that starts where it should go; a size or digest that
    /// contradicts what is registered; the database.
    pub async fn register(
        &self,
        packages: &[NewPackage],
        destinations: &[Destination],
        actor: &str,
    ) -> Result<Vec<Registered>, StoreError> {
        let mut tx = self.write().await?;
        let registered = register(&mut tx, packages, destinations, actor).await?;
        tx.commit().await?;
        self.wake(Wakeup::Pending);
        Ok(registered)
    }

    /// Decides up to `most` new rows of `intake`, each in a transaction of its own, so that one bad row holds up no
    /// other. Several managers may do it at once.
    ///
    /// # Errors
    /// The database. What is wrong with a row is written into it.
    pub async fn take_intake(&self, most: u32, actor: &str) -> Result<Vec<Decided>, StoreError> {
        let mut decided = Vec::new();
        for _ in 0..most {
            match self.take_one(actor).await? {
                Some(one) => decided.push(one),
                None => break,
            }
        }
        Ok(decided)
    }

    async fn take_one(&self, actor: &str) -> Result<Option<Decided>, StoreError> {
        let mut tx = self.write().await?;
        let lock = if self.backend() == Backend::Postgres { " FOR UPDATE SKIP LOCKED" } else { "" };
        let text = format!("SELECT * FROM intake WHERE state = 'new' ORDER BY id LIMIT 1{lock}");
        let Some(row) = tx.row(text, args![]).await? else { return Ok(None) };
        let id = row.int("id")?;
        let refusal = match accept(&mut tx, &row, actor).await {
            Ok(Ok(registered)) => {
                tx.execute(
                    "UPDATE intake SET state = 'accepted', package_id = $2, decided_at = now_us() WHERE id = $1",
                    args![id, registered.package],
                )
                .await?;
                tx.commit().await?;
                return Ok(Some(Decided { id, outcome: Ok(registered) }));
            }
            Ok(Err(refusal)) => refusal,
            Err(error @ (StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::Denied(_))) => {
                return Err(error);
            }
            // Whatever the database has against this row, it would say at every look, before all rows that came later.
            Err(error) => error.to_string(),
        };
        // The transaction may be broken, and has written half a package: another one says no.
        drop(tx);
        let mut tx = self.write().await?;
        tx.execute(
            "UPDATE intake SET state = 'refused', refusal = $2, decided_at = now_us() WHERE id = $1 AND state = 'new'",
            args![id, &refusal],
        )
        .await?;
        tx.commit().await?;
        Ok(Some(Decided { id, outcome: Err(refusal) }))
    }
}

/// What became of a row of `intake`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The row.
    pub id: i64,
    /// The package, or why it was refused.
    pub outcome: Result<Registered, String>,
}

/// Registers what a row of `intake` says. The inner error is the submitter's.
async fn accept(tx: &mut Tx, row: &super::sql::Row, actor: &str) -> Result<Result<Registered, String>, StoreError> {
    let handed = match Handed::of(row)? {
        Ok(handed) => handed,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let submitter = row.text("submitted_by")?;
    handed.register(tx, &format!("{actor} for {submitter}")).await.map(Ok)
}

/// A row of `intake`, understood.
struct Handed {
    package: NewPackage,
    destination: (String, Option<String>),
}

impl Handed {
    /// The inner error is the submitter's.
    fn of(row: &super::sql::Row) -> Result<Result<Self, String>, StoreError> {
        let path = match RelPath::new(row.bytes("relative_path")?) {
            Ok(path) if !path.is_root() => path,
            Ok(_) => return Ok(Err("relative_path: it names the location itself".into())),
            Err(error) => return Ok(Err(format!("relative_path: {error}"))),
        };
        let digest = |text: String| text.parse::<crate::chunk::Digest>().map(|d| d.0).map_err(|e| e.to_string());
        let identity = match digest(row.text("digest")?) {
            Ok(identity) => identity,
            Err(error) => return Ok(Err(format!("digest: {error}"))),
        };
        let sha256 = match row.opt_text("sha256")?.map(digest).transpose() {
            Ok(sha256) => sha256,
            Err(error) => return Ok(Err(format!("sha256: {error}"))),
        };
        let priority =
            u8::try_from(row.int("priority")?).map_err(|e| StoreError::Corrupt(format!("intake.priority: {e}")))?;
        let package = NewPackage {
            name: path.to_string(),
            kind: row.word("kind")?,
            origin: Place { site: row.text("origin_site")?, location: row.text("origin_location")? },
            path,
            size_bytes: row.size("size_bytes")?,
            file_count: row.size("file_count")?,
            identity,
            sha256,
            priority,
            policy: row.word("policy")?,
            metadata: row.opt_text("metadata")?,
        };
        Ok(Ok(Self { package, destination: (row.text("destination_site")?, row.opt_text("destination_location")?) }))
    }

    async fn register(mut self, tx: &mut Tx, actor: &str) -> Result<Registered, StoreError> {
        self.package.origin.site = short_name(tx, &self.package.origin.site).await?;
        let site = short_name(tx, &self.destination.0).await?;
        let destination = match self.destination.1 {
            Some(location) => Destination::Place(Place { site, location }),
            None => Destination::Site(site),
        };
        let registered = register(tx, &[self.package], &[destination], actor).await?;
        registered.into_iter().next().ok_or_else(|| StoreError::Corrupt("nothing was registered".into()))
    }
}

/// A site by either of its names.
async fn short_name(tx: &mut Tx, name: &str) -> Result<String, StoreError> {
    let row = tx
        .row(
            "SELECT short_name FROM site WHERE active AND (short_name = $1 OR name = $1) \
             ORDER BY CASE WHEN short_name = $1 THEN 0 ELSE 1 END LIMIT 1",
            args![name],
        )
        .await?;
    row.ok_or_else(|| StoreError::NotFound { what: "active site", name: name.to_owned() })?.text("short_name")
}

async fn register(
    tx: &mut Tx,
    packages: &[NewPackage],
    destinations: &[Destination],
    actor: &str,
) -> Result<Vec<Registered>, StoreError> {
    let mut targets = Vec::new();
    for destination in destinations {
        targets.push(match destination {
            Destination::Place(place) => {
                let (location, site) = location_of(tx, place).await?;
                refuse_archive(tx, place, location).await?;
                (Some(site), Some(location))
            }
            Destination::Site(name) => {
                let row = tx.row("SELECT id FROM site WHERE active AND short_name = $1", args![name]).await?;
                let row = row.ok_or_else(|| StoreError::NotFound { what: "active site", name: name.clone() })?;
                (Some(SiteId::new(row.int("id")?)), None)
            }
            Destination::Any => (None, None),
        });
    }
    let mut registered = Vec::new();
    for package in packages {
        let (origin, _) = location_of(tx, &package.origin).await?;
        let (id, is_new_package) = register_package(tx, package, origin, actor).await?;
        for &(site, location) in &targets {
            let (request, is_new_request) = request(tx, id, origin, site, location, package.priority, actor).await?;
            registered.push(Registered { package: id, is_new_package, request, is_new_request });
        }
    }
    Ok(registered)
}

pub(super) async fn location_of(tx: &mut Tx, place: &Place) -> Result<(LocationId, SiteId), StoreError> {
    let row = tx
        .row(
            "SELECT l.id, l.site_id FROM data_location l JOIN site s ON s.id = l.site_id \
             WHERE l.active AND s.active AND s.short_name = $1 AND l.name = $2",
            args![&place.site, &place.location],
        )
        .await?
        .ok_or_else(|| StoreError::NotFound { what: "active location", name: place.to_string() })?;
    Ok((LocationId::new(row.int("id")?), SiteId::new(row.int("site_id")?)))
}

/// What shall rest in an archive is sent to a buffer before it.
async fn refuse_archive(tx: &mut Tx, place: &Place, location: LocationId) -> Result<(), StoreError> {
    let text = "SELECT 1 AS one FROM data_location WHERE id = $1 AND location_type = 'long_term_archive'";
    match tx.row(text, args![location]).await? {
        None => Ok(()),
        Some(_) => Err(StoreError::Refused(format!(
            "{place} is a long-term archive; send it to {}, and the archives there get it from the buffer",
            place.site
        ))),
    }
}

async fn register_package(
    tx: &mut Tx,
    package: &NewPackage,
    origin: LocationId,
    actor: &str,
) -> Result<(PackageId, bool), StoreError> {
    let path = package.path.as_bytes();
    let made = tx
        .row(
            "INSERT INTO raw_data_package (name, kind, origin_location_id, relative_path, size_bytes, file_count, \
             identity, priority, policy, changed_by, change_reason) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'registered') \
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
                actor,
            ],
        )
        .await?;
    let Some(row) = made else {
        let id = known_package(tx, package, origin).await?;
        describe(tx, id, package.metadata.as_deref()).await?;
        return Ok((id, false));
    };
    let id = PackageId::new(row.int("id")?);
    let algorithm = match package.kind {
        PackageKind::File => Algorithm::Blake3,
        PackageKind::Tree => Algorithm::Tree,
    };
    let digests = [(algorithm, Some(package.identity)), (Algorithm::Sha256, package.sha256)];
    for (algorithm, digest) in digests.into_iter().filter_map(|(a, d)| Some((a, d?))) {
        tx.execute(
            "INSERT INTO package_digest (package_id, algorithm, digest) VALUES ($1, $2, $3)",
            args![id, algorithm.as_str(), digest],
        )
        .await?;
    }
    tx.execute(
        "INSERT INTO physical_copy (package_id, location_id, path, size_bytes, status, verification, changed_by, \
         change_reason) VALUES ($1, $2, $3, $4, 'present', 'registered', $5, 'registered')",
        args![id, origin, path, Value::size(package.size_bytes)?, actor],
    )
    .await?;
    describe(tx, id, package.metadata.as_deref()).await?;
    Ok((id, true))
}

/// Keeps what is said of a package, unless something was said before.
pub(super) async fn describe(tx: &mut Tx, package: PackageId, metadata: Option<&str>) -> Result<(), StoreError> {
    if let Some(text) = metadata {
        tx.execute(
            "INSERT INTO raw_data_package_metadata (package_id, metadata) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            args![package, checked_metadata(text)?],
        )
        .await?;
    }
    Ok(())
}

/// The package that has this key, if it is the same in all else.
async fn known_package(tx: &mut Tx, package: &NewPackage, origin: LocationId) -> Result<PackageId, StoreError> {
    let row = tx
        .row(
            "SELECT p.id, p.kind, p.size_bytes, d.digest AS sha256 FROM raw_data_package p \
             LEFT JOIN package_digest d ON d.package_id = p.id AND d.algorithm = 'sha256' \
             WHERE p.origin_location_id = $1 AND p.relative_path = $2 AND p.identity = $3",
            args![origin, package.path.as_bytes(), package.identity],
        )
        .await?
        .ok_or_else(|| StoreError::Conflict("a package came and went".into()))?;
    let id = PackageId::new(row.int("id")?);
    let differs = |what: &str| {
        StoreError::Refused(format!("{}: registered as {id} with the same digest but another {what}", package.path))
    };
    if row.size("size_bytes")? != package.size_bytes {
        return Err(differs("size"));
    }
    if row.word::<PackageKind>("kind")? != package.kind {
        return Err(differs("kind"));
    }
    match (package.sha256, row.opt_bytes("sha256")?) {
        (Some(ours), Some(theirs)) if ours.as_slice() != theirs.as_slice() => Err(differs("sha256")),
        (Some(ours), None) => {
            tx.execute(
                "INSERT INTO package_digest (package_id, algorithm, digest) VALUES ($1, 'sha256', $2)",
                args![id, ours],
            )
            .await?;
            Ok(id)
        }
        _ => Ok(id),
    }
}

async fn request(
    tx: &mut Tx,
    package: PackageId,
    origin: LocationId,
    site: Option<SiteId>,
    location: Option<LocationId>,
    priority: u8,
    actor: &str,
) -> Result<(RequestId, bool), StoreError> {
    let made = tx
        .row(
            "INSERT INTO transfer_request (package_id, origin_location_id, destination_site_id, \
             destination_location_id, priority, requested_by) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT DO NOTHING RETURNING id",
            args![package, origin, site, location, i64::from(priority), actor],
        )
        .await?;
    if let Some(row) = made {
        return Ok((RequestId::new(row.int("id")?), true));
    }
    let row = tx
        .row(
            "SELECT id FROM transfer_request WHERE package_id = $1 AND NOT withdrawn \
             AND coalesce(destination_site_id, 0) = coalesce($2, 0) \
             AND coalesce(destination_location_id, 0) = coalesce($3, 0)",
            args![package, site, location],
        )
        .await?
        .ok_or_else(|| StoreError::Conflict("a request came and went".into()))?;
    Ok((RequestId::new(row.int("id")?), false))
}
