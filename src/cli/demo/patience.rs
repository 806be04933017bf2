//! When the demo gives up. The daemons that it runs wait for room, or for the far end, as long as it takes; somebody who
//! watches does not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::table::{Moving, Row};
use crate::{
    config::units::show_size,
    engine::{FailureClass, JobError},
    model::{ErrorClass, Status, Work},
};

/// Watches whether anything changes.
#[derive(Debug)]
pub(super) struct Patience {
    last: Vec<Option<State>>,
    since: Instant,
}

/// What shows that it goes on: which work it is, its status, attempt and verified bytes.
type State = (Work, Status, u64, u64);

/// Why there is no use in waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hopeless<'a> {
    /// The destination is full.
    Full(&'a Moving),
    /// Nothing has changed for [`LONGEST`]; the first package that waits.
    Still(&'a Row),
}

impl Patience {
    pub(super) const fn new(now: Instant) -> Self {
        Self { last: Vec::new(), since: now }
    }

    /// Looks at the packages as they are `now`.
    pub(super) fn look<'a>(&mut self, rows: &'a [Row], now: Instant) -> Option<Hopeless<'a>> {
        let moving = || rows.iter().filter_map(Row::moving);
        if let Some(full) = moving().find(|t| t.error.as_deref() == Some(ErrorClass::NoSpace.as_str())) {
            return Some(Hopeless::Full(full));
        }
        let states: Vec<_> =
            rows.iter().map(|row| row.moving().map(|t| (t.id, t.status, t.attempt, t.bytes_done))).collect();
        if states != self.last {
            self.last = states;
            self.since = now;
        }
        if now.saturating_duration_since(self.since) < LONGEST {
            return None;
        }
        rows.iter().find(|row| !row.is_over()).map(Hopeless::Still)
    }
}

/// Refuses packages that have no room at the destination.
pub(super) fn refuse_full(needed: u64, free: u64, destination: &Path) -> Result<(), JobError> {
    if needed <= free {
        return Ok(());
    }
    let text = format!(
        "the packages have {} and {} has {} free; TMPDIR names where the demo's files go",
        show_size(needed),
        destination.display(),
        show_size(free)
    );
    Err(JobError::new(FailureClass::Destination, text))
}

/// Longer than a link that broke takes to come back.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PackageId, PackageState, TransferId};

    fn row(transfer: Option<(Status, u64, Option<&str>)>) -> Row {
        let moving = |(status, bytes_done, error): (Status, u64, Option<&str>)| Moving {
            id: Work::Transfer(TransferId::new(7)),
            status,
            attempt: 1,
            bytes_done,
            bytes_total: 100,
            bytes_per_s: None,
            route: String::new(),
            error: error.map(str::to_owned),
        };
        Row {
            id: PackageId::new(1),
            name: "a".into(),
            size_bytes: 100,
            stands: PackageState::Transferring,
            transfer: transfer.map(moving),
            archiving: None,
        }
    }

    #[test]
    fn what_stands_still_is_given_up_and_what_moves_is_not() {
        let began = Instant::now();
        let mut patience = Patience::new(began);
        let mut at = began;
        for bytes in 0..5 {
            at += LONGEST - Duration::from_secs(1);
            let rows = [row(None), row(Some((Status::InProgress, bytes, None)))];
            assert_eq!(patience.look(&rows, at), None, "{bytes}");
        }
        let mut rows = [row(Some((Status::Completed, 100, None))), row(None)];
        rows[0].stands = PackageState::Archived;
        assert_eq!(patience.look(&rows, at), None);
        assert_eq!(patience.look(&rows, at + LONGEST - Duration::from_millis(1)), None);
        assert!(matches!(patience.look(&rows, at + LONGEST), Some(Hopeless::Still(row)) if row.transfer.is_none()));
        rows[1] = row(Some((Status::Pending, 0, Some("no_space"))));
        assert!(matches!(patience.look(&rows, at), Some(Hopeless::Full(_))));
    }

    #[test]
    fn packages_need_room() {
        let there = Path::new("/tmp/x");
        assert!(refuse_full(100, 100, there).is_ok());
        let refused = refuse_full(101, 100, there).unwrap_err();
        assert_eq!(refused.class, FailureClass::Destination);
        assert!(refused.text.contains("TMPDIR") && refused.text.contains("/tmp/x"), "{}", refused.text);
    }
}
