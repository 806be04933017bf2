use super::vocabulary::words;

words! {
    /// Where a piece of work stands. The words are those of the operations database.
    Status, "a status" {
        /// It waits for a manager, or for its next attempt.
        Pending = "pending",
        /// It may be claimed; a hint was or will be published.
        Scheduled = "scheduled",
        /// A worker holds it, by lease and fence.
        InProgress = "in_progress",
        /// All of it is at its destination, verified. Nothing follows.
        Completed = "completed",
        /// It needs a person: the reason stands beside it.
        Failed = "failed",
    }

    /// Where a package stands.
    PackageState, "a state of a package" {
        /// At its origin only.
        Waiting = "waiting",
        /// Part of work that is not finished.
        Transferring = "transferring",
        /// Verified in every archive that its policy requires.
        Archived = "archived",
        /// Its work failed, or an archived copy is not intact any more.
        Failed = "failed",
    }

    /// What happens to a piece of work.
    Move, "a change of status" {
        /// A manager offers it to workers.
        Schedule = "schedule",
        /// A manager takes an offer back.
        Unschedule = "unschedule",
        /// A worker takes it; the fence rises.
        Claim = "claim",
        /// The last owner renews late; nobody has claimed it since.
        Revive = "revive",
        /// The sweeper finds the lease run out.
        LoseLease = "lose_lease",
        /// A worker that stops gives it back, or the last attempt may be tried again later.
        GiveBack = "give_back",
        /// Everything arrived; also by the last owner after its lease, while nobody has claimed it since.
        Complete = "complete",
        /// No further attempt is of use, or somebody cancelled it.
        Fail = "fail",
        /// A person wants it tried again.
        Retry = "retry",
    }

    /// What happens to a package.
    PackageMove, "a change of a package's state" {
        /// Work for it exists.
        Begin = "begin",
        /// Its work is over, and no archive is required.
        Rest = "rest",
        /// Every required archive has it.
        Archive = "archive",
        /// Its work failed, or a copy is not intact.
        Fail = "fail",
        /// A person wants it tried again.
        Retry = "retry",
    }
}

/// A change that the lifecycle does not know. The database refuses it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{change} is not possible: it is {from}")]
pub struct IllegalChange {
    /// Where it stands.
    pub from: &'static str,
    /// What was to happen.
    pub change: &'static str,
}

impl Status {
    /// The whole lifecycle of a piece of work.
    ///
    /// # Errors
    /// The change is not possible from here.
    pub const fn on(self, change: Move) -> Result<Self, IllegalChange> {
        Ok(match (self, change) {
            (Self::Pending, Move::Schedule) => Self::Scheduled,
            (Self::Scheduled, Move::Unschedule) => Self::Pending,
            // From `in_progress`: a lease that has run out and that no sweeper has seen yet.
            (Self::Scheduled | Self::InProgress, Move::Claim) => Self::InProgress,
            (Self::Pending | Self::Scheduled, Move::Revive) => Self::InProgress,
            (Self::InProgress, Move::LoseLease) => Self::Scheduled,
            (Self::Pending | Self::Scheduled | Self::InProgress, Move::GiveBack) => Self::Pending,
            (Self::Pending | Self::Scheduled | Self::InProgress, Move::Complete) => Self::Completed,
            (Self::Pending | Self::Scheduled | Self::InProgress, Move::Fail) => Self::Failed,
            (Self::Failed, Move::Retry) => Self::Pending,
            _ => return Err(IllegalChange { from: self.as_str(), change: change.as_str() }),
        })
    }

    /// Whether nothing happens any more unless a person acts.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

impl PackageState {
    /// The whole lifecycle of a package.
    ///
    /// # Errors
    /// The change is not possible from here.
    pub const fn on(self, change: PackageMove) -> Result<Self, IllegalChange> {
        Ok(match (self, change) {
            (Self::Waiting, PackageMove::Begin) => Self::Transferring,
            (Self::Transferring, PackageMove::Rest) => Self::Waiting,
            (Self::Waiting | Self::Transferring | Self::Failed, PackageMove::Archive) => Self::Archived,
            (Self::Waiting | Self::Transferring | Self::Archived, PackageMove::Fail) => Self::Failed,
            (Self::Failed, PackageMove::Begin) => Self::Transferring,
            (Self::Failed, PackageMove::Retry) => Self::Waiting,
            _ => return Err(IllegalChange { from: self.as_str(), change: change.as_str() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair that some change makes. `tests/store_conformance.rs` holds the databases to the same list.
    #[test]
    fn the_changes_of_status_are_these() {
        use Status::{Completed, Failed, InProgress, Pending, Scheduled};
        let mut found: Vec<(Status, Status)> = Vec::new();
        for &from in Status::ALL {
            for &change in Move::ALL {
                if let Ok(to) = from.on(change)
                    && from != to
                    && !found.contains(&(from, to))
                {
                    found.push((from, to));
                }
            }
        }
        found.sort();
        let mut wanted = vec![
            (Pending, Scheduled),
            (Pending, InProgress),
            (Pending, Completed),
            (Pending, Failed),
            (Scheduled, Pending),
            (Scheduled, InProgress),
            (Scheduled, Completed),
            (Scheduled, Failed),
            (InProgress, Pending),
            (InProgress, Scheduled),
            (InProgress, Completed),
            (InProgress, Failed),
            (Failed, Pending),
        ];
        wanted.sort();
        assert_eq!(found, wanted);
    }

    #[test]
    fn nothing_follows_completion() {
        for &change in Move::ALL {
            assert!(Status::Completed.on(change).is_err(), "{change}");
        }
        assert_eq!(
            Status::Completed.on(Move::Claim).unwrap_err().to_string(),
            "claim is not possible: it is completed"
        );
        assert!(Status::Failed.on(Move::Revive).is_err(), "a cancelled row stays so");
        assert!(PackageState::Archived.on(PackageMove::Begin).is_err());
    }
}
