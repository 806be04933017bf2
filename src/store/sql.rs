//! One text of SQL for both databases: `$1`-style parameters, results by column name, and the two places where the
//! dialects differ everywhere (`now_us()`, flags).
//!
//! Every statement has a time limit of its own here: a server that stands still, or a network that swallows, answers
//! nothing, and its own limits do not help.
//!
//! Texts are constants, or constants joined from constants (a table's name). What comes from outside is a parameter.

use std::{
    borrow::Cow,
    future::Future,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    Arguments as _, PgPool, Postgres, Row as _, SqlSafeStr as _, SqlStr, Sqlite, SqlitePool,
    postgres::{PgArguments, PgRow},
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{error::StoreError, sqlite};
use crate::model::{
    ArchiveTransferId, BundleId, Fence, LocationId, PackageId, PeerId, RequestId, RouteId, SiteId, Timestamp,
    TransferId, WorkerId,
};

/// A parameter. NULL has a type too: PostgreSQL asks for it.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Flag(Option<bool>),
}

macro_rules! values {
    ($($type:ty => $variant:ident, |$value:ident| $into:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self {
                Self::$variant(Some($into))
            }
        }

        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self {
                Self::$variant(value.map(|$value| $into))
            }
        }
    )*};
}

values! {
    i64 => Int, |v| v;
    u32 => Int, |v| v.into();
    &str => Text, |v| v.to_owned();
    String => Text, |v| v;
    &[u8] => Bytes, |v| v.to_vec();
    Vec<u8> => Bytes, |v| v;
    [u8; 32] => Bytes, |v| v.to_vec();
    bool => Flag, |v| v;
    Timestamp => Int, |v| v.micros();
    Fence => Int, |v| v.number();
    SiteId => Int, |v| v.number();
    LocationId => Int, |v| v.number();
    PeerId => Int, |v| v.number();
    RouteId => Int, |v| v.number();
    PackageId => Int, |v| v.number();
    RequestId => Int, |v| v.number();
    BundleId => Int, |v| v.number();
    TransferId => Int, |v| v.number();
    ArchiveTransferId => Int, |v| v.number();
    WorkerId => Int, |v| v.number();
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl Value {
    /// A count or size. Both databases hold 63 bits.
    ///
    /// # Errors
    /// It has more.
    pub(crate) fn size(value: u64) -> Result<Self, StoreError> {
        i64::try_from(value).map(Self::from).map_err(|_| StoreError::Refused(format!("{value} is above 2^63 - 1")))
    }
}

/// The parameters of one statement, in order.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::store::sql::Value::from($value)),*] };
}
pub(crate) use args;

/// One row of a result.
#[derive(Debug)]
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! column {
    ($row:expr, $name:expr, $type:ty) => {
        match $row {
            Row::Sqlite(row) => row.try_get::<$type, _>($name),
            Row::Postgres(row) => row.try_get::<$type, _>($name),
        }
        .map_err(StoreError::from)
    };
}

impl Row {
    /// A whole number, or an id.
    pub(crate) fn int(&self, name: &str) -> Result<i64, StoreError> {
        column!(self, name, i64)
    }

    pub(crate) fn opt_int(&self, name: &str) -> Result<Option<i64>, StoreError> {
        column!(self, name, Option<i64>)
    }

    /// A count or size.
    pub(crate) fn size(&self, name: &str) -> Result<u64, StoreError> {
        let value = self.int(name)?;
        u64::try_from(value).map_err(|_| StoreError::Corrupt(format!("{name} is {value}")))
    }

    pub(crate) fn text(&self, name: &str) -> Result<String, StoreError> {
        column!(self, name, String)
    }

    pub(crate) fn opt_text(&self, name: &str) -> Result<Option<String>, StoreError> {
        column!(self, name, Option<String>)
    }

    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        column!(self, name, Vec<u8>)
    }

    pub(crate) fn opt_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        column!(self, name, Option<Vec<u8>>)
    }

    /// A flag, or the result of a condition.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, StoreError> {
        match self {
            Self::Sqlite(row) => Ok(row.try_get::<i64, _>(name)? != 0),
            Self::Postgres(row) => Ok(row.try_get(name)?),
        }
    }

    /// One of a closed set of words.
    pub(crate) fn word<T>(&self, name: &str) -> Result<T, StoreError>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        self.text(name)?.parse().map_err(|e| StoreError::Corrupt(format!("{name}: {e}")))
    }

    pub(crate) fn time(&self, name: &str) -> Result<Timestamp, StoreError> {
        self.int(name).map(Timestamp::from_micros)
    }

    pub(crate) fn opt_time(&self, name: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.opt_int(name)?.map(Timestamp::from_micros))
    }
}

/// For one statement, or for a connection and a transaction's begin. SQLite's own wait for its writer's lock is shorter.
const ANSWER: Duration = Duration::from_secs(12);
/// For a migration, which may wait for another one.
const SCRIPT: Duration = Duration::from_secs(1800);

/// Waits for an answer of the database, not for ever.
pub(crate) async fn in_time<T>(asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    within(ANSWER, asked).await
}

async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            *LAST_SILENCE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            Err(StoreError::Unavailable(format!("no answer within {} s", limit.as_secs())))
        }
    }
}

/// When a statement of this process last got no answer. Its connection may be one that never answers again.
static LAST_SILENCE: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether connections that come back are to be doubted.
pub(crate) fn was_silent_lately() -> bool {
    let last = *LAST_SILENCE.lock().unwrap_or_else(PoisonError::into_inner);
    last.is_some_and(|at| at.elapsed() < Duration::from_secs(60))
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Tx {
    /// Runs a statement; returns how many rows it touched.
    pub(crate) async fn execute(
        &mut self,
        text: impl Into<Cow<'static, str>>,
        args: &[Value],
    ) -> Result<u64, StoreError> {
        Ok(match self {
            Self::Sqlite(tx) => {
                let query = sqlx::query_with(for_sqlite(text.into()), sqlite_args(args)?);
                in_time(query.execute(&mut **tx)).await?.rows_affected()
            }
            Self::Postgres(tx) => {
                let query = sqlx::query_with(plain(text.into()), postgres_args(args)?);
                in_time(query.execute(&mut **tx)).await?.rows_affected()
            }
        })
    }

    /// Runs a statement; returns all its rows.
    pub(crate) async fn rows(
        &mut self,
        text: impl Into<Cow<'static, str>>,
        args: &[Value],
    ) -> Result<Vec<Row>, StoreError> {
        Ok(match self {
            Self::Sqlite(tx) => {
                let query = sqlx::query_with(for_sqlite(text.into()), sqlite_args(args)?);
                in_time(query.fetch_all(&mut **tx)).await?.into_iter().map(Row::Sqlite).collect()
            }
            Self::Postgres(tx) => {
                let query = sqlx::query_with(plain(text.into()), postgres_args(args)?);
                in_time(query.fetch_all(&mut **tx)).await?.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// Runs a statement to its end; returns its first row.
    pub(crate) async fn row(
        &mut self,
        text: impl Into<Cow<'static, str>>,
        args: &[Value],
    ) -> Result<Option<Row>, StoreError> {
        // All rows are fetched: a statement that writes and RETURNs must run to its end.
        Ok(self.rows(text, args).await?.into_iter().next())
    }

    /// Runs several statements without parameters, as a migration has them, with a migration's patience.
    pub(crate) async fn script(&mut self, text: &'static str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => within(SCRIPT, sqlx::raw_sql(text).execute(&mut **tx)).await.map(|_| ()),
            Self::Postgres(tx) => within(SCRIPT, sqlx::raw_sql(text).execute(&mut **tx)).await.map(|_| ()),
        }
    }

    /// Rolls back now. A transaction that is dropped does so some time later, and keeps its row locks until then.
    pub(crate) async fn rollback(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => in_time(tx.rollback()).await,
            Self::Postgres(tx) => in_time(tx.rollback()).await,
        }
    }

    /// Commits. An error leaves open whether it was committed.
    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => in_time(tx.commit()).await,
            Self::Postgres(tx) => in_time(tx.commit()).await,
        }
    }
}

/// One question outside of any transaction.
pub(super) async fn ask_sqlite(
    pool: &SqlitePool,
    text: Cow<'static, str>,
    args: &[Value],
) -> Result<Vec<Row>, StoreError> {
    let query = sqlx::query_with(for_sqlite(text), sqlite_args(args)?);
    Ok(in_time(query.fetch_all(pool)).await?.into_iter().map(Row::Sqlite).collect())
}

/// The same on the other backend.
pub(super) async fn ask_postgres(
    pool: &PgPool,
    text: Cow<'static, str>,
    args: &[Value],
) -> Result<Vec<Row>, StoreError> {
    let query = sqlx::query_with(plain(text), postgres_args(args)?);
    Ok(in_time(query.fetch_all(pool)).await?.into_iter().map(Row::Postgres).collect())
}

fn plain(text: Cow<'static, str>) -> SqlStr {
    match text {
        Cow::Borrowed(text) => text.into_sql_str(),
        Cow::Owned(text) => sqlx::AssertSqlSafe(text).into_sql_str(),
    }
}

fn for_sqlite(text: Cow<'static, str>) -> SqlStr {
    if text.contains("now_us()") { plain(Cow::Owned(text.replace("now_us()", sqlite::NOW_US))) } else { plain(text) }
}

macro_rules! bind {
    ($arguments:ty, $args:expr) => {{
        let mut bound = <$arguments>::default();
        for arg in $args {
            match arg {
                Value::Int(v) => bound.add(*v),
                Value::Text(v) => bound.add(v.clone()),
                Value::Bytes(v) => bound.add(v.clone()),
                Value::Flag(v) => bound.add(*v),
            }
            .map_err(|e| StoreError::Database(e.to_string()))?;
        }
        Ok(bound)
    }};
}

fn sqlite_args(args: &[Value]) -> Result<SqliteArguments, StoreError> {
    bind!(SqliteArguments, args)
}

fn postgres_args(args: &[Value]) -> Result<PgArguments, StoreError> {
    bind!(PgArguments, args)
}
