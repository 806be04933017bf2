//! What is archived is read again, the oldest evidence first, and what is found is written down.
//!
//! Nothing is deleted here, and nothing repaired: a copy that went bad is marked, its package leaves `archived` by the
//! same commit, and the archive manager's next look plans the repair.

use serde::Serialize;

use super::{
    Member, Store, StoreError,
    many::locked,
    sql::{Row, Tx, Value, args},
    wakeups::Wakeup,
};
use crate::model::{
    CheckMethod, Evidence, LocationId, OnTapeReadback, PackageDigest, PackageId, ReadHow, Timestamp, Verification,
};

/// Which readings prove something in an archive. The schema's view `proof` says the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadingRules {
    cached: bool,
    on_tape: OnTapeReadback,
}

impl ReadingRules {
    /// Those of a location; `None` where it is no archive.
    pub(super) async fn of(tx: &mut Tx, location: LocationId) -> Result<Option<Self>, StoreError> {
        let text = "SELECT cached_read_back_counts, on_tape_readback FROM data_location
            WHERE id = $1 AND location_type = 'long_term_archive'";
        let row = tx.row(text, args![location]).await?;
        row.map(|row| Ok(Self { cached: row.flag("cached_read_back_counts")?, on_tape: row.word("on_tape_readback")? }))
            .transpose()
    }

    pub(super) fn count(self, evidence: &Evidence) -> bool {
        let is_reading = matches!(evidence.method, CheckMethod::ReadBack | CheckMethod::Scrub);
        let vouched = match self.on_tape {
            OnTapeReadback::Full => false,
            OnTapeReadback::Checksum => evidence.unread_reason.is_none(),
            OnTapeReadback::None => true,
        };
        is_reading && (self.cached || !evidence.cached) && (vouched || evidence.how != Some(ReadHow::Vouched))
    }
}

/// How far a look through an archive has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CheckCursor {
    at: Timestamp,
    copy: i64,
}

/// A copy in an archive, to be read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyToCheck {
    /// The next ones come behind it.
    pub cursor: CheckCursor,
    /// Where it rests.
    pub location: LocationId,
    /// What it is a copy of. `source_path` is its path there.
    pub package: Member,
    /// How far it is trusted now.
    pub verification: Verification,
    /// When it was last looked at.
    pub checked_at: Timestamp,
}

/// What a look at a copy found.
#[derive(Clone, Copy, Debug)]
pub enum Finding<'a> {
    /// It was read: equal or not, with [`CheckMethod::Scrub`].
    Read(&'a Evidence),
    /// It is not there.
    Missing {
        /// What the archive said.
        why: &'a str,
    },
    /// It is there, and its medium does not give it back.
    Unreadable {
        /// What the archive said.
        why: &'a str,
    },
}

/// What became of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Looked {
    /// It was written, and the copy is trusted so far.
    Recorded(Verification),
    /// The reading was equal and is kept, but proves nothing there: it may have come from a cache, or nothing was read,
    /// and the location's settings do not let that count. The copy stays as old as it was.
    NotCounted,
    /// Somebody else looked at the copy, or replaced it, since it was given out. Nothing was written.
    Overtaken,
}

impl Store {
    /// Copies in an archive behind `after`, the oldest evidence first, at most `most`. A look through all of it begins
    /// with the time at which it began as `before`: what it has looked at is newer, and does not come again.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood.
    pub async fn next_to_check(
        &self,
        location: LocationId,
        before: Timestamp,
        after: Option<CheckCursor>,
        most: u32,
    ) -> Result<Vec<CopyToCheck>, StoreError> {
        let after = after.unwrap_or(CheckCursor { at: Timestamp::from_micros(0), copy: 0 });
        let mut tx = self.read().await?;
        // The first condition alone is what SQLite's index is entered by.
        let text = "SELECT c.id, c.checked_at, c.verification, c.path AS source_path, p.id AS package_id, p.name,
                p.kind, p.relative_path, p.size_bytes, p.file_count, p.created_at
            FROM physical_copy c JOIN raw_data_package p ON p.id = c.package_id
            WHERE c.location_id = $1 AND c.checked_at >= $2 AND (c.checked_at > $2 OR c.id > $3)
                AND c.checked_at < $4 AND c.status = 'present'
            ORDER BY c.checked_at, c.id LIMIT $5";
        let rows = tx.rows(text, args![location, after.at, after.copy, before, most]).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            found.push(copy_to_check(&mut tx, location, row).await?);
        }
        Ok(found)
    }

    /// Writes what a look found. A mismatch makes the copy corrupt, a missing one suspect; equal bytes make it verified,
    /// whatever was thought of it. `actor` is who looked.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the copy is not known; [`StoreError::Refused`] for evidence of something else.
    pub async fn record_check(
        &self,
        copy: &CopyToCheck,
        finding: Finding<'_>,
        actor: &str,
    ) -> Result<Looked, StoreError> {
        let mut tx = self.write().await?;
        let text = format!(
            "SELECT id, verification, checked_at FROM physical_copy WHERE package_id = $1 AND location_id = $2
                AND status = 'present'{}",
            locked(&tx)
        );
        let row = tx.row(text, args![copy.package.package, copy.location]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound {
            what: "copy of",
            name: format!("{} at {}", copy.package.package, copy.location),
        })?;
        if row.opt_time("checked_at")? != Some(copy.checked_at) {
            return Ok(Looked::Overtaken);
        }
        let stood: Verification = row.word("verification")?;
        let (verification, why) = match finding {
            Finding::Read(evidence) => {
                let is_of_it = evidence.package == copy.package.package && evidence.location == copy.location;
                if !is_of_it || evidence.method != CheckMethod::Scrub {
                    return Err(StoreError::Refused("evidence of another copy, or not of a look through".into()));
                }
                insert_record(&mut tx, evidence, None).await?;
                let rules = ReadingRules::of(&mut tx, copy.location).await?;
                // What nobody read is no second look, whatever a first one may do without.
                let says_nothing =
                    evidence.unread_reason.is_some() || rules.is_some_and(|rules| !rules.count(evidence));
                if evidence.is_equal() && says_nothing {
                    tx.commit().await?;
                    return Ok(Looked::NotCounted);
                }
                if evidence.is_equal() {
                    (Verification::Verified, "it was read again, and is equal".to_owned())
                } else {
                    (Verification::Corrupt, "it was read again, and differs".to_owned())
                }
            }
            Finding::Missing { .. } | Finding::Unreadable { .. } if stood == Verification::Corrupt => {
                (stood, "it is missing, or cannot be read".to_owned())
            }
            Finding::Unreadable { why } => {
                (Verification::Suspect, format!("it cannot be read: {}", why.replace('\0', "\u{fffd}")))
            }
            Finding::Missing { why } => {
                (Verification::Suspect, format!("it is missing: {}", why.replace('\0', "\u{fffd}")))
            }
        };
        if verification == stood {
            tx.execute("UPDATE physical_copy SET checked_at = now_us() WHERE id = $1", args![row.int("id")?]).await?;
        } else {
            tx.execute(
                "UPDATE physical_copy SET verification = $2, checked_at = now_us(), updated_at = now_us(), \
                 changed_by = $3, change_reason = $4 WHERE id = $1",
                args![row.int("id")?, verification.as_str(), actor, why],
            )
            .await?;
        }
        tx.commit().await?;
        if verification != Verification::Verified {
            self.wake(Wakeup::Pending);
        }
        Ok(Looked::Recorded(verification))
    }
}

async fn copy_to_check(tx: &mut Tx, location: LocationId, row: &Row) -> Result<CopyToCheck, StoreError> {
    let package = PackageId::new(row.int("package_id")?);
    let checked_at = row.time("checked_at")?;
    Ok(CopyToCheck {
        cursor: CheckCursor { at: checked_at, copy: row.int("id")? },
        location,
        package: Member {
            package,
            name: row.text("name")?,
            kind: row.word("kind")?,
            source_path: row.bytes("source_path")?,
            relative_path: row.bytes("relative_path")?,
            size_bytes: row.size("size_bytes")?,
            file_count: row.size("file_count")?,
            digests: digests(tx, package).await?,
            registered_at: row.time("created_at")?,
        },
        verification: row.word("verification")?,
        checked_at,
    })
}

/// The registered digests of a package.
pub(super) async fn digests(tx: &mut Tx, package: PackageId) -> Result<Vec<PackageDigest>, StoreError> {
    let text = "SELECT algorithm, digest FROM package_digest WHERE package_id = $1 ORDER BY algorithm";
    let mut found = Vec::new();
    for row in tx.rows(text, args![package]).await? {
        let value = row.bytes("digest")?;
        let value = value.try_into().map_err(|_| StoreError::Corrupt(format!("a digest of {package}")))?;
        found.push(PackageDigest { algorithm: row.word("algorithm")?, value });
    }
    Ok(found)
}

/// Writes a record that belongs to no work.
pub(super) async fn insert_record(tx: &mut Tx, e: &Evidence, recorded_at: Option<Timestamp>) -> Result<(), StoreError> {
    let mut args = args![e.package, e.location, e.algorithm.as_str(), e.expected_digest, e.found_digest].to_vec();
    args.push(Value::size(e.expected_size_bytes)?);
    args.push(Value::size(e.found_size_bytes)?);
    args.extend_from_slice(args![
        e.method.as_str(),
        e.medium.as_str(),
        e.cached,
        e.how.map(ReadHow::as_str),
        e.unread_reason.clone(),
        &e.host,
        &e.version,
        e.receiver_key.clone(),
        e.started_at,
        e.ended_at.max(e.started_at),
        recorded_at
    ]);
    tx.execute(
        "INSERT INTO verification_record (package_id, location_id, algorithm, expected_digest, found_digest, \
         expected_size_bytes, found_size_bytes, method, medium, cached, read_how, unread_reason, host, version, \
         receiver_key, started_at, ended_at, recorded_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
         $13, $14, $15, $16, $17, coalesce($18, now_us()))",
        &args,
    )
    .await?;
    Ok(())
}
