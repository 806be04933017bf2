//! Which version the schema has, and how it gets there.

use super::{
    Db, Store, StoreError, postgres,
    sql::{Tx, args},
};
use crate::chunk::Digest;

#[derive(Debug)]
struct Step {
    version: i64,
    name: &'static str,
    text: &'static str,
}

/// The steps of one database, in order.
macro_rules! steps {
    ($folder:literal) => {
        &[
            Step { version: 1, name: "control_plane", text: step!($folder, "0001_control_plane") },
            Step { version: 2, name: "leases", text: step!($folder, "0002_leases") },
            Step { version: 3, name: "proofs", text: step!($folder, "0003_proofs") },
            Step { version: 4, name: "spool", text: step!($folder, "0004_spool") },
            Step { version: 5, name: "archive", text: step!($folder, "0005_archive") },
            Step { version: 6, name: "batches", text: step!($folder, "0006_batches") },
            Step { version: 7, name: "seeks", text: step!($folder, "0007_seeks") },
        ]
    };
}

macro_rules! step {
    ($folder:literal, $file:literal) => {
        include_str!(concat!("migrations/", $folder, "/", $file, ".sql"))
    };
}

const SQLITE: &[Step] = steps!("sqlite");
const POSTGRES: &[Step] = steps!("postgres");

/// Roles and grants are stated anew by every migration, so that they fit the tables there are.
const ROLES: &str = include_str!("migrations/postgres/roles.sql");

/// What a migration did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version before; 0 is an empty database.
    pub from: i64,
    /// The version now.
    pub to: i64,
}

impl Store {
    fn steps(&self) -> &'static [Step] {
        match self.db {
            Db::Sqlite(_) => SQLITE,
            Db::Postgres(_) => POSTGRES,
        }
    }

    /// The schema's version that this program needs.
    pub fn schema_version(&self) -> i64 {
        self.steps().last().map_or(0, |s| s.version)
    }

    /// Brings the schema to this program's version, in one transaction. Does nothing to one that is there. On
    /// PostgreSQL it also makes the roles that are missing and states their rights, and changes nothing under workers that
    /// run.
    ///
    /// # Errors
    /// The schema is newer, or was made by another build, or the login may not create it;
    /// [`StoreError::WorkersRunning`].
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        self.migrate_as(false).await
    }

    /// The same, whoever runs: a new manager takes an older program's work for lost, since that renews its leases in a
    /// way that this one does not look at.
    ///
    /// # Errors
    /// As for [`Store::migrate`], without the last one.
    pub async fn migrate_forced(&self) -> Result<Migrated, StoreError> {
        self.migrate_as(true).await
    }

    async fn migrate_as(&self, forced: bool) -> Result<Migrated, StoreError> {
        let mut tx = self.write().await?;
        if let Tx::Postgres(_) = tx {
            // One migration at a time; the number is any that nobody else locks.
            tx.script(
                "SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(109278487935078); \
                 CREATE SCHEMA IF NOT EXISTS ccat_xfer",
            )
            .await?;
        }
        tx.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY, name TEXT NOT NULL, \
             digest TEXT NOT NULL, applied_at BIGINT NOT NULL)",
            args![],
        )
        .await?;
        let from = applied(&mut tx, self.steps()).await?;
        let to = self.schema_version();
        if from > to {
            return Err(StoreError::SchemaNewer { found: from, known: to });
        }
        if 0 < from && from < to && !forced {
            none_running(&mut tx).await?;
        }
        for step in self.steps().iter().filter(|s| s.version > from) {
            tx.script(step.text).await?;
            tx.execute(
                "INSERT INTO schema_version (version, name, digest, applied_at) VALUES ($1, $2, $3, now_us())",
                args![step.version, step.name, Digest::of(step.text.as_bytes()).to_string()],
            )
            .await?;
        }
        if let Tx::Postgres(_) = tx {
            tx.script(ROLES).await?;
        }
        tx.commit().await?;
        Ok(Migrated { from, to })
    }

    /// Refuses a schema that is not this program's. A schema that the embedded SQLite file lacks is made by
    /// [`Store::open`] before.
    ///
    /// # Errors
    /// [`StoreError::SchemaMissing`], [`StoreError::SchemaOlder`], [`StoreError::SchemaNewer`] or
    /// [`StoreError::SchemaDiffers`].
    pub async fn check(&self) -> Result<(), StoreError> {
        let mut tx = self.read().await?;
        let there = match tx {
            Tx::Sqlite(_) => {
                tx.row("SELECT 1 AS one FROM sqlite_schema WHERE type = 'table' AND name = 'schema_version'", args![])
                    .await?
            }
            Tx::Postgres(_) => {
                tx.row(
                    "SELECT 1 AS one FROM pg_catalog.pg_tables WHERE schemaname = $1 AND tablename = 'schema_version'",
                    args![postgres::SCHEMA],
                )
                .await?
            }
        };
        if there.is_none() {
            return Err(StoreError::SchemaMissing);
        }
        let found = applied(&mut tx, self.steps()).await?;
        let known = self.schema_version();
        match found.cmp(&known) {
            std::cmp::Ordering::Less if found == 0 => Err(StoreError::SchemaMissing),
            std::cmp::Ordering::Less => Err(StoreError::SchemaOlder { found, known }),
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(StoreError::SchemaNewer { found, known }),
        }
    }
}

/// Refuses while workers are heard of. On SQLite all programs compare leases with the clock of the boot, old ones and new
/// ones alike.
async fn none_running(tx: &mut Tx) -> Result<(), StoreError> {
    if matches!(tx, Tx::Sqlite(_)) {
        return Ok(());
    }
    let text = "SELECT name FROM worker WHERE state <> 'stopped' AND heartbeat_until > now_us() ORDER BY name";
    let names = tx.rows(text, args![]).await?.iter().map(|row| row.text("name")).collect::<Result<Vec<_>, _>>()?;
    if names.is_empty() { Ok(()) } else { Err(StoreError::WorkersRunning { names: names.join(", ") }) }
}

/// The highest version that was applied. A newer one is reported before a difference: the newer program decides.
async fn applied(tx: &mut Tx, steps: &[Step]) -> Result<i64, StoreError> {
    let rows = tx.rows("SELECT version, digest FROM schema_version ORDER BY version", args![]).await?;
    let known = steps.last().map_or(0, |s| s.version);
    let mut highest = 0;
    let mut differs = None;
    for row in rows {
        let version = row.int("version")?;
        highest = highest.max(version);
        let digest = row.text("digest")?;
        let step = steps.iter().find(|s| s.version == version);
        if step.is_some_and(|s| Digest::of(s.text.as_bytes()).to_string() != digest) {
            differs = differs.or(Some(version));
        }
    }
    match differs {
        Some(version) if highest <= known => Err(StoreError::SchemaDiffers { version }),
        _ => Ok(highest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both lists have the same versions, so that one number says what a schema can hold.
    #[test]
    fn both_databases_have_the_same_versions() {
        let versions = |steps: &[Step]| steps.iter().map(|s| (s.version, s.name)).collect::<Vec<_>>();
        assert_eq!(versions(SQLITE), versions(POSTGRES));
        assert!((1..).zip(SQLITE).all(|(n, step)| step.version == n), "one after the other");
    }

    /// What an earlier version of this program made.
    #[tokio::test]
    async fn an_older_schema_is_brought_to_this_version() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::connect(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        let mut tx = store.write().await.unwrap();
        tx.script(
            "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, \
             applied_at BIGINT NOT NULL)",
        )
        .await
        .unwrap();
        tx.script(SQLITE[0].text).await.unwrap();
        let digest = Digest::of(SQLITE[0].text.as_bytes()).to_string();
        tx.execute("INSERT INTO schema_version VALUES (1, 'control_plane', $1, 1)", args![digest]).await.unwrap();
        tx.commit().await.unwrap();
        let known = store.schema_version();
        let older = store.check().await.unwrap_err();
        assert!(matches!(older, StoreError::SchemaOlder { found: 1, known: k } if k == known), "{older}");
        assert_eq!(store.migrate().await.unwrap(), Migrated { from: 1, to: known });
        store.check().await.unwrap();
    }

    #[tokio::test]
    async fn a_file_is_made_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("x.db").display());
        let store = Store::open(&url).await.unwrap();
        let version = store.schema_version();
        assert_eq!(store.migrate().await.unwrap(), Migrated { from: version, to: version });
        assert!(store.now().await.unwrap() > crate::model::Timestamp::from_micros(1_600_000_000_000_000));
        store.close().await;
        Store::open(&url).await.unwrap().close().await;
    }
}
