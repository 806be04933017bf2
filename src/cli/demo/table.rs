//! The demo's table: one line for each package, on a terminal in place, else a line for each change.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::units::{show_rate, show_size},
    model::{PackageId, Status, TransferId},
};

/// A package on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: PackageId,
    /// Escaped.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// What moves it, once that is planned.
    pub(super) transfer: Option<Moving>,
}

/// The transfer of a package, and of others that share its bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moving {
    pub(super) id: TransferId,
    pub(super) status: Status,
    pub(super) attempt: u64,
    pub(super) bytes_done: u64,
    pub(super) bytes_total: u64,
    pub(super) bytes_per_s: Option<u64>,
    pub(super) route: String,
    /// The class of its last error.
    pub(super) error: Option<String>,
}

impl Moving {
    /// Whether nothing more happens by itself.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Failed)
    }
}

impl Row {
    pub(super) fn is_over(&self) -> bool {
        self.transfer.as_ref().is_some_and(Moving::is_over)
    }

    pub(super) fn is_completed(&self) -> bool {
        self.transfer.as_ref().is_some_and(|t| t.status == Status::Completed)
    }

    /// In a word or two.
    pub(super) fn state(&self) -> String {
        let Some(t) = &self.transfer else { return "registered".to_owned() };
        match t.status {
            Status::InProgress => {
                format!("in_progress {:>3}%", t.bytes_done.saturating_mul(100) / t.bytes_total.max(1))
            }
            status => status.to_string(),
        }
    }

    fn line(&self) -> String {
        let (attempt, rate, route) = match &self.transfer {
            // An error is of more interest than the way.
            Some(t) => {
                let way = t.error.as_deref().unwrap_or(&t.route);
                (t.attempt.to_string(), t.bytes_per_s.map(show_rate).unwrap_or_default(), way)
            }
            None => ("-".to_owned(), String::new(), "-"),
        };
        let name = fitted(&self.name, NAME);
        let line = format!(
            "{name:<NAME$} {:>SIZE$}  {:<STATE$} {attempt:>TRY$} {rate:>RATE$}  {route}",
            show_size(self.size_bytes),
            self.state(),
        );
        fitted(line.trim_end(), WIDTH)
    }
}

/// The first characters, the last of them a dot where more follow.
fn fitted(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['.']).collect()
}

fn head() -> String {
    format!(
        "{:<NAME$} {:>SIZE$}  {:<STATE$} {:>TRY$} {:>RATE$}  {}",
        "PACKAGE", "SIZE", "STATE", "TRY", "RATE", "ROUTE"
    )
}

/// The whole table, with at most `most` packages: those that move before those that wait, and these before those that
/// are over, each in its order.
pub(super) fn whole(rows: &[Row], most: usize, since: Duration) -> String {
    let rank = |row: &Row| match &row.transfer {
        Some(t) if t.status == Status::Completed => 3,
        Some(t) if t.status == Status::InProgress => 0,
        Some(_) => 1,
        None => 2,
    };
    let mut shown: Vec<&Row> = rows.iter().collect();
    if shown.len() > most {
        shown.sort_by_key(|row| (rank(row), row.id));
        shown.truncate(most);
        shown.sort_by_key(|row| row.id);
    }
    let mut text = head();
    for row in &shown {
        text.push('\n');
        text.push_str(&row.line());
    }
    if rows.len() > shown.len() {
        text.push_str(&format!("\n... and {} more", rows.len() - shown.len()));
    }
    let completed = rows.iter().filter(|row| row.is_completed());
    let (count, bytes) = completed.fold((0usize, 0u64), |(n, sum), row| (n + 1, sum + row.size_bytes));
    text.push_str(&format!(
        "\n{count} of {} packages have arrived ({}) after {:.1} s",
        rows.len(),
        show_size(bytes),
        since.as_secs_f64()
    ));
    text
}

/// Tells changes by lines, where no table can be drawn again.
#[derive(Debug, Default)]
pub(super) struct Changes {
    told: BTreeMap<PackageId, String>,
}

impl Changes {
    /// A line for each package whose state is another one than the last time.
    pub(super) fn since_last(&mut self, rows: &[Row], since: Duration) -> String {
        let mut text = String::new();
        if self.told.is_empty() && !rows.is_empty() {
            text.push_str(&format!("{:>TIME$}  {}\n", "TIME", head()));
        }
        for row in rows {
            // A rate or a percentage is no change of state.
            let key = row.transfer.as_ref().map(|t| (t.status, t.attempt, t.error.clone()));
            let key = format!("{key:?}");
            if self.told.get(&row.id) != Some(&key) {
                text.push_str(&format!("{:>5.1} s  {}\n", since.as_secs_f64(), row.line()));
                self.told.insert(row.id, key);
            }
        }
        text
    }
}

const WIDTH: usize = 79;
const NAME: usize = 17;
const SIZE: usize = 8;
const STATE: usize = 16;
const TRY: usize = 3;
const RATE: usize = 9;
const TIME: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::escape_bytes;

    fn row(id: i64, name: &str, transfer: Option<(Status, Option<&str>)>) -> Row {
        let moving = |(status, error): (Status, Option<&str>)| Moving {
            id: TransferId::new(id),
            status,
            attempt: 1,
            bytes_done: 5_000_000,
            bytes_total: 10_000_000,
            bytes_per_s: Some(123_000_000),
            route: "ccat to cologne".into(),
            error: error.map(str::to_owned),
        };
        Row { id: PackageId::new(id), name: name.into(), size_bytes: 33_500_000, transfer: transfer.map(moving) }
    }

    #[test]
    fn a_table_fits_80_columns() {
        let rows = [
            row(1, "scan-0.dat", Some((Status::InProgress, None))),
            row(
                2,
                &escape_bytes("long name\n".repeat(9).as_bytes()),
                Some((Status::Pending, Some("destination_differs"))),
            ),
            row(3, "night-00", None),
            row(4, "b", Some((Status::Completed, None))),
        ];
        let text = whole(&rows, 99, Duration::from_millis(1234));
        assert!(text.lines().all(|line| line.chars().count() < 80), "{text}");
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "PACKAGE               SIZE  STATE            TRY      RATE  ROUTE",
                "scan-0.dat         33.5 MB  in_progress  50%   1  123 MB/s  ccat to cologne",
                "long name\\nlong .  33.5 MB  pending            1  123 MB/s  destination_differs",
                "night-00           33.5 MB  registered         -            -",
                "b                  33.5 MB  completed          1  123 MB/s  ccat to cologne",
                "1 of 4 packages have arrived (33.5 MB) after 1.2 s",
            ]
        );
        let short = whole(&rows, 2, Duration::ZERO);
        assert!(short.contains("scan-0") && !short.contains("night") && short.contains("and 2 more"), "{short}");
    }

    #[test]
    fn a_change_is_told_once() {
        let mut changes = Changes::default();
        let mut one = row(1, "a", None);
        assert_eq!(changes.since_last(std::slice::from_ref(&one), Duration::ZERO).lines().count(), 2);
        assert_eq!(changes.since_last(std::slice::from_ref(&one), Duration::ZERO), "");
        one.transfer = row(1, "a", Some((Status::InProgress, None))).transfer;
        assert!(changes.since_last(std::slice::from_ref(&one), Duration::ZERO).contains("in_progress"));
        if let Some(t) = &mut one.transfer {
            t.bytes_done += 1;
        }
        assert_eq!(changes.since_last(&[one], Duration::ZERO), "", "bytes are no change of state");
    }
}
