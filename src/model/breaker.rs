use std::time::Duration;

use super::{BreakerState, Timestamp};

/// A route's circuit breaker: after some failures in a row that speak against the link, nothing is tried for a while,
/// so that a dead link does not burn the retries of everything that waits for it. Then one attempt looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Whether attempts run.
    pub state: BreakerState,
    /// Failures that spoke against the link since the last one that did not.
    pub failures: u32,
    /// How often it opened since the link last worked: each time it stays open for longer.
    pub trips: u32,
    /// When the next look is due; nothing while it is closed.
    pub until: Option<Timestamp>,
}

/// What an attempt told about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkNews {
    /// Bytes came through.
    Works,
    /// It failed in a way that speaks against the link.
    Fails,
    /// It ended for another reason.
    Nothing,
}

impl Breaker {
    /// A link of which nothing bad is known.
    pub const CLOSED: Self = Self { state: BreakerState::Closed, failures: 0, trips: 0, until: None };
    /// It opens with this many failures in a row.
    pub const THRESHOLD: u32 = 5;
    /// It is open for this long at first, and for twice as long with each further trip.
    pub const FIRST_PAUSE: Duration = Duration::from_secs(15);
    /// It is not open for longer than this. An end of the pause that lies further ahead is a clock that was set.
    pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);
    /// How long after a look another one may begin if nothing was heard of it.
    pub const PROBE: Duration = Duration::from_secs(60);

    /// After an attempt that ended at `now`. `random` is the caller's, over its whole range: routes that broke
    /// together are not tried together.
    #[must_use]
    pub fn after(self, news: LinkNews, now: Timestamp, random: u32) -> Self {
        match (self.state, news) {
            (_, LinkNews::Works) => Self::CLOSED,
            // The look is over and told nothing: another one may begin.
            (BreakerState::HalfOpen, LinkNews::Nothing) => Self { until: Some(now), ..self },
            (_, LinkNews::Nothing) => self,
            (BreakerState::Closed, LinkNews::Fails) if self.failures.saturating_add(1) < Self::THRESHOLD => {
                Self { failures: self.failures + 1, ..self }
            }
            (BreakerState::Closed | BreakerState::HalfOpen, LinkNews::Fails) => Self {
                state: BreakerState::Open,
                failures: self.failures.saturating_add(1),
                trips: self.trips.saturating_add(1),
                until: Some(now.after(Self::pause(self.trips, random))),
            },
            // An attempt that had begun before it opened.
            (BreakerState::Open, LinkNews::Fails) => Self { failures: self.failures.saturating_add(1), ..self },
        }
    }

    /// Half of the pause, and as much again drawn by chance.
    fn pause(trips: u32, random: u32) -> Duration {
        let full =
            Self::FIRST_PAUSE.saturating_mul(1u32.checked_shl(trips).unwrap_or(u32::MAX)).min(Self::LONGEST_PAUSE);
        let half = full / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000);

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_when_bytes_come_through() {
        let mut breaker = Breaker::CLOSED;
        for _ in 1..Breaker::THRESHOLD {
            breaker = breaker.after(LinkNews::Fails, NOW, 0);
            assert_eq!(breaker.state, BreakerState::Closed);
        }
        assert_eq!(breaker.after(LinkNews::Works, NOW, 0), Breaker::CLOSED, "a success between them starts anew");
        breaker = breaker.after(LinkNews::Nothing, NOW, 0).after(LinkNews::Fails, NOW, 0);
        assert_eq!((breaker.state, breaker.trips), (BreakerState::Open, 1));
        assert_eq!(breaker.until, Some(NOW.after(Breaker::FIRST_PAUSE / 2)));
        assert_eq!(breaker.after(LinkNews::Fails, NOW, 9).until, breaker.until, "a straggler does not prolong it");
        let probing = Breaker { state: BreakerState::HalfOpen, ..breaker };
        assert_eq!(probing.after(LinkNews::Works, NOW, 0), Breaker::CLOSED);
        assert_eq!(probing.after(LinkNews::Nothing, NOW, 0).until, Some(NOW));
        let again = probing.after(LinkNews::Fails, NOW, u32::MAX);
        assert_eq!((again.state, again.trips), (BreakerState::Open, 2));
        assert_eq!(again.until, Some(NOW.after(Breaker::FIRST_PAUSE * 2)));
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        for trips in [0, 1, 10, 31, 32, u32::MAX] {
            for random in [0, 1, u32::MAX] {
                let pause = Breaker::pause(trips, random);
                assert!(pause >= Breaker::FIRST_PAUSE / 2 && pause <= Breaker::LONGEST_PAUSE, "{trips} {pause:?}");
            }
        }
    }
}
