use super::{PackageMove, PackageState};

/// What is known about all work of one package, for its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackageWork {
    /// Some of it is offered, runs, or will run when its turn comes.
    pub is_live: bool,
    /// Some of it failed, and nothing took its place.
    pub has_failed: bool,
    /// How many archives require it.
    pub required: u64,
    /// How many of those hold it, verified.
    pub archived: u64,
    /// Whether an archive that requires it waits for a way there: it arrived somewhere and goes on.
    pub goes_on: bool,
}

impl PackageWork {
    /// The state that says this.
    pub const fn state(&self) -> PackageState {
        if self.required > 0 && self.archived >= self.required {
            PackageState::Archived
        } else if self.is_live {
            PackageState::Transferring
        } else if self.has_failed {
            PackageState::Failed
        } else if self.goes_on {
            PackageState::Transferring
        } else {
            PackageState::Waiting
        }
    }

    /// What has to happen to a package that stands at `now`; `None` when nothing has to, or nothing may.
    pub fn change(&self, now: PackageState) -> Option<PackageMove> {
        let wanted = self.state();
        if wanted == now {
            return None;
        }
        // An archived package fails only when one of its copies does, which is not told from its work.
        if now == PackageState::Archived {
            return None;
        }
        PackageMove::ALL.iter().copied().find(|&change| now.on(change) == Ok(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_says_what_the_work_is() {
        let idle = PackageWork::default();
        let live = PackageWork { is_live: true, ..idle };
        let failed = PackageWork { has_failed: true, ..idle };
        assert_eq!(idle.state(), PackageState::Waiting);
        assert_eq!(live.state(), PackageState::Transferring);
        assert_eq!(failed.state(), PackageState::Failed);
        assert_eq!(PackageWork { has_failed: true, ..live }.state(), PackageState::Transferring, "not over yet");
        assert_eq!(PackageWork { required: 2, archived: 2, ..failed }.state(), PackageState::Archived);
        assert_eq!(PackageWork { required: 2, archived: 1, goes_on: true, ..idle }.state(), PackageState::Transferring);
    }

    /// Catches work that takes away what copies proved.
    #[test]
    fn no_work_makes_an_archived_package_anything_else() {
        let failed = PackageWork { has_failed: true, ..PackageWork::default() };
        let live = PackageWork { is_live: true, ..PackageWork::default() };
        for work in [PackageWork::default(), failed, live, PackageWork { required: 2, archived: 1, ..failed }] {
            assert_eq!(work.change(PackageState::Archived), None, "{work:?}");
        }
    }

    #[test]
    fn every_state_is_reached_by_a_legal_change_but_from_archived() {
        for &now in PackageState::ALL {
            for work in [
                PackageWork::default(),
                PackageWork { is_live: true, ..PackageWork::default() },
                PackageWork { has_failed: true, ..PackageWork::default() },
                PackageWork { required: 1, archived: 1, ..PackageWork::default() },
            ] {
                match work.change(now) {
                    Some(change) => assert_eq!(now.on(change), Ok(work.state())),
                    None => assert!(now == work.state() || now == PackageState::Archived, "{now} {work:?}"),
                }
            }
        }
    }
}
