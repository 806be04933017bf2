use std::time::Duration;

use super::vocabulary::words;

words! {
    /// Why an attempt failed: a closed set, each with its [`RetryPolicy`].
    ErrorClass, "a class of errors" {
        /// The link broke, or none came up.
        Network = "network",
        /// The far end is there and takes no more work now.
        RemoteBusy = "remote_busy",
        /// One end does not accept who the other one is.
        Authentication = "authentication",
        /// The destination is full.
        NoSpace = "no_space",
        /// The package is not where it was registered.
        MissingSource = "missing_source",
        /// The package has other bytes than it was registered with, and its times say that somebody wrote to it.
        SourceChanged = "source_changed",
        /// What arrived is not what was sent, more often than repair could mend.
        CorruptInFlight = "corrupt_in_flight",
        /// The origin reads other bytes than were registered, though nobody wrote to them.
        CorruptAtSource = "corrupt_at_source",
        /// Something else has the name at the destination already.
        DestinationDiffers = "destination_differs",
        /// Names, settings or permissions are wrong.
        Configuration = "configuration",
        /// The worker was not heard of until its lease was over and somebody else had claimed the work.
        LostWorker = "lost_worker",
        /// A person stopped it.
        Cancelled = "cancelled",
        /// This program is wrong.
        Bug = "bug",
    }
}

/// What becomes of work whose retries are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `failed`, until a person retries it.
    Failed,
    /// `failed`, and the origin's copy is marked suspect: no retry reads better bytes from it.
    SourceSuspect,
    /// `failed` at once because somebody wanted it so.
    Stopped,
}

/// How one class of errors is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first one; 0 means never again without a person.
    pub retries: u32,
    /// What the first wait is drawn from.
    pub base: Duration,
    /// No wait is longer.
    pub longest: Duration,
    /// Whether it speaks against the link, and so counts for the route's circuit breaker.
    pub blames_link: bool,
    /// What follows the last attempt.
    pub end: End,
}

/// | class | retries | first wait | longest wait | counts for the breaker | then |
/// |---|---|---|---|---|---|
/// | network | 20 | 2 s | 5 min | yes | failed |
/// | remote_busy | 100 | 5 s | 5 min | no | failed |
/// | authentication | 5 | 30 s | 10 min | yes | failed |
/// | no_space | 50 | 1 min | 30 min | no | failed; the planner may take another buffer before |
/// | missing_source | 5 | 30 s | 10 min | no | failed; a mount may come late |
/// | source_changed | 0 | | | no | failed; register what is there now |
/// | corrupt_in_flight | 5 | 1 s | 1 min | yes | failed |
/// | corrupt_at_source | 0 | | | no | failed, and the origin's copy is suspect |
/// | destination_differs | 0 | | | no | failed; nothing is overwritten |
/// | configuration | 0 | | | no | failed |
/// | lost_worker | 5 | 1 s | 1 min | no | failed; it may be what kills them |
/// | cancelled | 0 | | | no | failed |
/// | bug | 1 | 1 min | 1 min | no | failed |
///
/// A wait is half of `first wait * 2^retry`, at most the longest, and as much again drawn by chance. The setting
/// `worker.retry_percent` makes all of them longer or shorter, up to [`RetryPolicy::LONGEST`].
const fn policy(class: ErrorClass) -> RetryPolicy {
    const fn retry(retries: u32, base_s: u64, longest_s: u64, blames_link: bool) -> RetryPolicy {
        RetryPolicy {
            retries,
            base: Duration::from_secs(base_s),
            longest: Duration::from_secs(longest_s),
            blames_link,
            end: End::Failed,
        }
    }
    const fn never(end: End) -> RetryPolicy {
        RetryPolicy { retries: 0, base: Duration::ZERO, longest: Duration::ZERO, blames_link: false, end }
    }
    match class {
        ErrorClass::Network => retry(20, 2, 300, true),
        ErrorClass::RemoteBusy => retry(100, 5, 300, false),
        ErrorClass::Authentication => retry(5, 30, 600, true),
        ErrorClass::NoSpace => retry(50, 60, 1800, false),
        ErrorClass::MissingSource => retry(5, 30, 600, false),
        ErrorClass::CorruptInFlight => retry(5, 1, 60, true),
        ErrorClass::LostWorker => retry(5, 1, 60, false),
        ErrorClass::Bug => retry(1, 60, 60, false),
        ErrorClass::SourceChanged | ErrorClass::DestinationDiffers | ErrorClass::Configuration => never(End::Failed),
        ErrorClass::CorruptAtSource => never(End::SourceSuspect),
        ErrorClass::Cancelled => never(End::Stopped),
    }
}

impl ErrorClass {
    /// How this class is met.
    pub const fn policy(self) -> RetryPolicy {
        policy(self)
    }
}

impl RetryPolicy {
    /// No class waits for longer. A next attempt that lies further ahead was dated by a clock that was set back since,
    /// and is due.
    pub const LONGEST: Duration = Duration::from_secs(1800);

    /// The same with waits of so many percent, but none above [`Self::LONGEST`]: it would be taken for the work of a clock
    /// that was set back, and be over at once.
    #[must_use]
    pub fn paced(self, percent: u32) -> Self {
        let of = |wait: Duration| (wait.saturating_mul(percent) / 100).min(Self::LONGEST);
        Self { base: of(self.base), longest: of(self.longest), ..self }
    }

    /// How long to wait before the next attempt, `None` when there is none. `retry_count` is how many retries there
    /// were before; `random` is the caller's, over its whole range.
    pub fn wait(&self, retry_count: u32, random: u32) -> Option<Duration> {
        if retry_count >= self.retries {
            return None;
        }
        let full = self.base.saturating_mul(1u32.checked_shl(retry_count).unwrap_or(u32::MAX)).min(self.longest);
        let half = full / 2;
        let drawn = half.as_nanos() * u128::from(random) / u128::from(u32::MAX);
        Some(half + Duration::from_nanos(u64::try_from(drawn).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        assert_eq!(ErrorClass::ALL.iter().map(|c| c.policy().longest).max(), Some(RetryPolicy::LONGEST));
        let network = ErrorClass::Network.policy();
        let least = |retry| network.wait(retry, 0).unwrap();
        let most = |retry| network.wait(retry, u32::MAX).unwrap();
        assert_eq!((least(0), most(0)), (Duration::from_secs(1), Duration::from_secs(2)));
        assert_eq!((least(3), most(3)), (Duration::from_secs(8), Duration::from_secs(16)));
        assert_eq!((least(19), most(19)), (Duration::from_secs(150), Duration::from_secs(300)));
        assert_eq!(network.wait(20, 0), None);
    }

    #[test]
    fn a_pace_changes_the_waits_and_nothing_else() {
        let network = ErrorClass::Network.policy();
        assert_eq!(network.paced(100), network);
        let quick = network.paced(5);
        assert_eq!((quick.base, quick.longest), (Duration::from_millis(100), Duration::from_secs(15)));
        assert_eq!(RetryPolicy { base: network.base, longest: network.longest, ..quick }, network);
    }

    #[test]
    fn what_no_retry_mends_is_not_retried() {
        for class in [
            ErrorClass::SourceChanged,
            ErrorClass::CorruptAtSource,
            ErrorClass::DestinationDiffers,
            ErrorClass::Configuration,
            ErrorClass::Cancelled,
        ] {
            assert_eq!(class.policy().wait(0, 7), None, "{class}");
        }
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(class in 0..ErrorClass::ALL.len(), retry: u32, random: u32) {
            let policy = ErrorClass::ALL[class].policy();
            match policy.wait(retry, random) {
                None => prop_assert!(retry >= policy.retries),
                Some(wait) => {
                    prop_assert!(wait >= policy.base / 2 && wait <= policy.longest);
                    prop_assert!(retry < policy.retries);
                }
            }
        }

        #[test]
        fn no_pace_makes_a_wait_longer_than_any_may_be(
            class in 0..ErrorClass::ALL.len(), percent: u32, retry in 0u32..100, random: u32
        ) {
            let policy = ErrorClass::ALL[class].policy();
            let wait = policy.paced(percent).wait(retry, random);
            prop_assert_eq!(wait.is_some(), policy.wait(retry, random).is_some());
            prop_assert!(wait.is_none_or(|wait| wait <= RetryPolicy::LONGEST), "{:?}", wait);
        }
    }
}
