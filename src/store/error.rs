use crate::model::{Fence, IllegalChange, Work};

/// Why the store did not do what was asked. Each answers what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or does not answer in time. Nothing is known to have happened; a commit that
    /// was under way may have. Try again later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Two transactions met, and this one was rolled back. Try again at once.
    #[error("the database rolled a transaction back because another one was in its way: {0}")]
    Conflict(String),
    /// A row with this key is there already: somebody else did the same.
    #[error("it is there already: {0}")]
    Duplicate(String),
    /// Somebody has claimed the work anew, or it is over. Whoever holds this fence writes nothing more.
    #[error("{work}: fence {fence} was overtaken, or the work is over")]
    Stale {
        /// The work.
        work: Work,
        /// The fence of the caller.
        fence: Fence,
    },
    /// A rule of the schema refused a row. A caller that meets it has a mistake.
    #[error("the database refused a row: {0}")]
    Refused(String),
    /// The lifecycle does not know this change.
    #[error("{what}: {change}")]
    Illegal {
        /// What was to change.
        what: String,
        /// The change.
        change: IllegalChange,
    },
    /// A live worker has this name.
    #[error(
        "a worker named {name} is running on {host} (process {process_id}); give this one another name, or wait until \
         that one has stopped or was not heard of for its lease"
    )]
    WorkerAlive {
        /// The name.
        name: String,
        /// The machine of the other one.
        host: String,
        /// Its process there.
        process_id: i64,
    },
    /// Another process has taken over this worker's name. This one stops: it may write nothing more as that worker.
    #[error("the worker {name} is another process by now, or was never registered; this one has to stop")]
    WorkerReplaced {
        /// The name.
        name: String,
    },
    /// This login has no right to do that.
    #[error("the database login has no right to do that: {0}")]
    Denied(String),
    /// Nothing has that name or id.
    #[error("no {what} {name}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Under which name.
        name: String,
    },
    /// There is no schema.
    #[error("the database has no ccat_xfer schema; run `ccat-xfer db migrate` with the owner's login")]
    SchemaMissing,
    /// The schema is older than this program.
    #[error(
        "the schema has version {found}, this program needs {known}; run `ccat-xfer db migrate` with the owner's login"
    )]
    SchemaOlder {
        /// The database's version.
        found: i64,
        /// This program's version.
        known: i64,
    },
    /// The schema is newer than this program.
    #[error("the schema has version {found}, this program knows up to {known}; use a newer program")]
    SchemaNewer {
        /// The database's version.
        found: i64,
        /// This program's version.
        known: i64,
    },
    /// Daemons of the older program use the schema that was to be brought to this version.
    #[error(
        "workers are running on the older schema: {names}; stop all daemons first (managers too), or, if they are gone, \
         wait for their lease or use `ccat-xfer db migrate --force`"
    )]
    WorkersRunning {
        /// Their names.
        names: String,
    },
    /// A migration that was applied is another one than this program has.
    #[error("migration {version} in the database is not the one of this program; it was made by another build")]
    SchemaDiffers {
        /// Which migration.
        version: i64,
    },
    /// The address of the database cannot be used.
    #[error("{0}")]
    Address(String),
    /// SQLite's locks and shared memory do not work between machines.
    #[error("{path} lies on {kind}, where SQLite may corrupt its file; use a local folder, or PostgreSQL")]
    NetworkFileSystem {
        /// The folder.
        path: String,
        /// The kind of file system.
        kind: String,
    },
    /// A row holds what this program does not understand.
    #[error("a row cannot be read: {0}")]
    Corrupt(String),
    /// Anything else that the database says.
    #[error("the database says: {0}")]
    Database(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::Database(inner) => {
                let message = inner.message().to_owned();
                match inner.code().as_deref().unwrap_or("") {
                    "23505" => Self::Duplicate(message),
                    // PostgreSQL: CX001 is the schema's own refusal, class 23 a constraint, class 22 a value that fits no
                    // column (a NUL in a text, a number too large), class 54 one beyond a limit (a key too long for its
                    // index).
                    "CX001" => Self::Refused(message),
                    code if code.len() == 5 && ["22", "23", "54"].iter().any(|class| code.starts_with(class)) => {
                        Self::Refused(message)
                    }
                    "42501" => Self::Denied(message),
                    "40001" | "40P01" | "55P03" => Self::Conflict(message),
                    // Shutting down, starting up, a statement's time limit.
                    "57P01" | "57P02" | "57P03" | "57014" | "25P03" => Self::Unavailable(message),
                    // Connections, room and memory, files of the server, damaged pages.
                    code if code.len() == 5 && ["08", "53", "58"].iter().any(|class| code.starts_with(class)) => {
                        Self::Unavailable(message)
                    }
                    "XX001" | "XX002" => Self::Unavailable(message),
                    // SQLite's extended result codes: trigger, check, not null, foreign key, STRICT type.
                    "1811" | "275" | "1299" | "787" | "3091" => Self::Refused(message),
                    "2067" | "1555" | "2579" => Self::Duplicate(message),
                    // Busy in its kinds: the writer lock was not had within busy_timeout.
                    "5" | "261" | "517" | "773" => Self::Conflict(message),
                    "8" | "264" | "520" | "776" | "1032" => Self::Denied(message),
                    // I/O errors, a full disk, a file that cannot be opened.
                    "13" | "14" => Self::Unavailable(message),
                    code if code.parse::<u32>().is_ok_and(|c| c & 0xff == 10) => Self::Unavailable(message),
                    _ => Self::Database(message),
                }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Self::Unavailable(text),
            sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Corrupt(text)
            }
            sqlx::Error::Configuration(_) => Self::Address(text),
            _ => Self::Database(text),
        }
    }
}
