//! The demo's table: one line for each package, on a terminal in place, else a line for each change.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::units::{show_rate, show_size},
    model::{PackageId, PackageState, Status, Work},
};

/// A package on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: PackageId,
    /// Escaped.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// As the database has it.
    pub(super) stands: PackageState,
    /// What moves it to the other site, once that is planned.
    pub(super) transfer: Option<Moving>,
    /// What puts it into the archive, once it is at the other site.
    pub(super) archiving: Option<Moving>,
}

/// The transfer of a package, and of others that share its bundle, or its way into the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moving {
    pub(super) id: Work,
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
        // The others of a bundle that failed may have arrived, and go on.
        self.is_archived() || self.stands == PackageState::Failed
    }

    pub(super) fn is_archived(&self) -> bool {
        self.stands == PackageState::Archived
    }

    /// What happens to it now, or happened last.
    pub(super) fn moving(&self) -> Option<&Moving> {
        self.archiving.as_ref().or(self.transfer.as_ref())
    }

    /// In a word or two.
    pub(super) fn state(&self) -> String {
        let percent = |moving: &Moving| moving.bytes_done.saturating_mul(100) / moving.bytes_total.max(1);
        match (&self.transfer, &self.archiving) {
            _ if self.is_archived() => "archived".to_owned(),
            (_, Some(into)) => match into.status {
                Status::InProgress => format!("archiving   {:>3}%", percent(into)),
                Status::Completed => "read back".to_owned(),
                Status::Failed => "not archived".to_owned(),
                _ => "to be archived".to_owned(),
            },
            (Some(t), None) if t.status == Status::InProgress => format!("in_progress {:>3}%", percent(t)),
            (Some(t), None) => t.status.to_string(),
            (None, None) => "registered".to_owned(),
        }
    }

    fn line(&self) -> String {
        let (attempt, rate, route) = match self.moving() {
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
    let rank = |row: &Row| match row.moving() {
        _ if row.is_archived() => 3,
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
    let archived = rows.iter().filter(|row| row.is_archived());
    let (count, bytes) = archived.fold((0usize, 0u64), |(n, sum), row| (n + 1, sum + row.size_bytes));
    text.push_str(&format!(
        "\n{count} of {} packages are archived ({}) after {:.1} s",
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
            let key = row.moving().map(|t| (t.id, t.status, t.attempt, t.error.clone()));
            let key = format!("{key:?} {}", row.stands);
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
    use crate::{chunk::escape_bytes, model::TransferId};

    fn row(id: i64, name: &str, transfer: Option<(Status, Option<&str>)>) -> Row {
        let moving = |(status, error): (Status, Option<&str>)| Moving {
            id: Work::Transfer(TransferId::new(id)),
            status,
            attempt: 1,
            bytes_done: 5_000_000,
            bytes_total: 10_000_000,
            bytes_per_s: Some(123_000_000),
            route: "ccat to cologne".into(),
            error: error.map(str::to_owned),
        };
        Row {
            id: PackageId::new(id),
            name: name.into(),
            size_bytes: 33_500_000,
            stands: PackageState::Transferring,
            transfer: transfer.map(moving),
            archiving: None,
        }
    }

    fn archiving(mut row: Row, status: Status) -> Row {
        row.archiving = row.transfer.clone().map(|t| Moving { status, route: "cologne/archive".into(), ..t });
        if status == Status::Completed {
            row.stands = PackageState::Archived;
        }
        row
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
            archiving(row(5, "c", Some((Status::Completed, None))), Status::InProgress),
            archiving(row(6, "d", Some((Status::Completed, None))), Status::Completed),
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
                "c                  33.5 MB  archiving    50%   1  123 MB/s  cologne/archive",
                "d                  33.5 MB  archived           1  123 MB/s  cologne/archive",
                "1 of 6 packages are archived (33.5 MB) after 1.2 s",
            ]
        );
        let short = whole(&rows, 2, Duration::ZERO);
        assert!(short.contains("scan-0") && !short.contains("night") && short.contains("and 4 more"), "{short}");
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
