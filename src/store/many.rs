//! What statements over several rows share: lists of parameters, locks, and steps from key to key.

use super::{
    StoreError,
    sql::{Tx, Value},
};

/// `$first, $first+1, ...`: one for each of `count` values. Never empty: `IN ()` is not SQL.
pub(super) fn list(first: usize, count: usize) -> String {
    let names: Vec<_> = (first..first + count.max(1)).map(|n| format!("${n}")).collect();
    names.join(", ")
}

/// The names of `count` ids that a row's is one of, from `$first` on. More of them than there are ids: texts that differ
/// in the length of a list only would each be prepared anew, on every connection.
pub(super) fn any_of(first: usize, count: usize) -> String {
    list(first, count.next_power_of_two())
}

/// A text column in a condition on rows that their keys name already, as a value that no index holds: PostgreSQL, which
/// knows nothing of a young table's rows, would walk over all rows of a status instead of looking up the keys.
pub(super) fn off_index(column: &str) -> String {
    format!("{column} || ''")
}

/// The values of `fixed`, then those of `ids` for [`any_of`], the last one as often as is needed.
pub(super) fn with_ids(fixed: &[Value], ids: impl IntoIterator<Item = i64>) -> Vec<Value> {
    let mut ids: Vec<i64> = ids.into_iter().collect();
    // Equal to no id, for the one name that an empty list has.
    let last = ids.last().copied().unwrap_or(0);
    ids.resize(ids.len().next_power_of_two(), last);
    fixed.iter().cloned().chain(ids.into_iter().map(Value::from)).collect()
}

/// Locks the rows of `alias` that are read and leaves out those that another manager holds. SQLite has one writer.
pub(super) const fn skip_locked(tx: &Tx, alias: Alias) -> &'static str {
    match (tx, alias) {
        (Tx::Sqlite(_), _) => "",
        (Tx::Postgres(_), Alias::Only) => " FOR NO KEY UPDATE SKIP LOCKED",
        (Tx::Postgres(_), Alias::Copy) => " FOR NO KEY UPDATE OF c SKIP LOCKED",
        (Tx::Postgres(_), Alias::Request) => " FOR NO KEY UPDATE OF r SKIP LOCKED",
        (Tx::Postgres(_), Alias::Work) => " FOR NO KEY UPDATE OF t SKIP LOCKED",
    }
}

/// Locks the rows that are read, waiting for whoever holds them.
pub(super) const fn locked(tx: &Tx) -> &'static str {
    match tx {
        Tx::Sqlite(_) => "",
        Tx::Postgres(_) => " FOR NO KEY UPDATE",
    }
}

/// Whose rows [`skip_locked`] locks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Alias {
    /// The statement's only table.
    Only,
    /// `c`, copies.
    Copy,
    /// `r`, requests.
    Request,
    /// `t`, work.
    Work,
}

/// The different values of an indexed text column, in order: one step of the index for each, however many rows have
/// it. `wanted` is the condition of the partial index.
pub(super) async fn distinct(
    tx: &mut Tx,
    table: &'static str,
    column: &'static str,
    wanted: &'static str,
    most: u32,
) -> Result<Vec<String>, StoreError> {
    let text = format!(
        "WITH RECURSIVE step (k) AS (
            SELECT (SELECT {column} FROM {table} WHERE {wanted} ORDER BY {column} LIMIT 1)
            UNION ALL
            SELECT (SELECT {column} FROM {table} WHERE {wanted} AND {column} > step.k ORDER BY {column} LIMIT 1)
            FROM step WHERE step.k IS NOT NULL)
        SELECT k FROM step WHERE k IS NOT NULL LIMIT $1"
    );
    tx.rows(text, &[Value::from(most)]).await?.iter().map(|row| row.text("k")).collect()
}

/// The numbers of a key of the schema, as `3/0/7/4`.
pub(super) fn numbers<const N: usize>(key: &str) -> Result<[i64; N], StoreError> {
    let parsed: Option<Vec<i64>> = key.split('/').map(|n| n.parse().ok()).collect();
    parsed.and_then(|n| n.try_into().ok()).ok_or_else(|| StoreError::Corrupt(format!("the key '{key}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_never_empty() {
        assert_eq!(list(3, 2), "$3, $4");
        assert_eq!(list(1, 0), "$1");
        assert_eq!(with_ids(&[], []).len(), 1);
        assert_eq!(with_ids(&[Value::from(1_i64)], [5, 6]).len(), 3);
        assert_eq!(any_of(3, 3), "$3, $4, $5, $6");
        assert_eq!(with_ids(&[Value::from(1_i64)], [5, 6, 7]).len(), 5);
        assert_eq!((any_of(1, 0), any_of(1, 1)), ("$1".to_owned(), "$1".to_owned()));
    }

    #[test]
    fn keys_have_their_numbers() {
        assert_eq!(numbers::<3>("1/0/22").unwrap(), [1, 0, 22]);
        for key in ["", "1/2", "1/2/3/4", "1/x/3"] {
            assert!(numbers::<3>(key).is_err(), "{key}");
        }
    }
}
