use std::time::Duration;

use super::Timestamp;

/// When packages of one origin and destination become a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleLimits {
    /// A bundle is not filled beyond this many bytes; one package alone may be more.
    pub bytes: u64,
    /// A bundle holds at most so many packages.
    pub packages: usize,
    /// Nobody waits longer than this for others to fill it up.
    pub age: Duration,
}

impl Default for BundleLimits {
    fn default() -> Self {
        Self { bytes: 64 << 30, packages: 256, age: Duration::from_secs(5) }
    }
}

/// A package that waits for its bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its size.
    pub bytes: u64,
    /// Since when it waits.
    pub since: Timestamp,
}

/// What becomes of those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The first so many are a bundle.
    Take(usize),
    /// They wait for more, until then.
    Wait(Timestamp),
    /// Nobody is there.
    Nobody,
}

impl BundleLimits {
    /// Decides about those that wait, in their order. `more` says that others stand behind them.
    pub fn cut(&self, waiting: &[Candidate], more: bool, now: Timestamp) -> Cut {
        let mut sum = 0_u64;
        let mut taken = 0;
        for candidate in waiting.iter().take(self.packages.max(1)) {
            let with = sum.saturating_add(candidate.bytes);
            if taken > 0 && with > self.bytes {
                break;
            }
            sum = with;
            taken += 1;
        }
        let Some(oldest) = waiting.iter().take(taken).map(|c| c.since).min() else { return Cut::Nobody };
        // Written by a clock that was set back since.
        let is_ahead = oldest > now;
        let is_full = taken < waiting.len() || more || sum >= self.bytes || taken >= self.packages;
        let due = oldest.after(self.age);
        if is_full || is_ahead || due <= now { Cut::Take(taken) } else { Cut::Wait(due) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: BundleLimits = BundleLimits { bytes: 100, packages: 4, age: Duration::from_micros(50) };

    fn at(since: i64, bytes: u64) -> Candidate {
        Candidate { bytes, since: Timestamp::from_micros(since) }
    }

    #[test]
    fn a_bundle_is_cut_when_it_is_full_or_old() {
        let now = Timestamp::from_micros(40);
        let cut = |waiting: &[Candidate], more| LIMITS.cut(waiting, more, now);
        assert_eq!(cut(&[], false), Cut::Nobody);
        assert_eq!(cut(&[at(10, 30), at(0, 30)], false), Cut::Wait(Timestamp::from_micros(50)), "the oldest counts");
        assert_eq!(cut(&[at(10, 30), at(-10, 30)], false), Cut::Take(2), "old enough");
        assert_eq!(cut(&[at(41, 30)], false), Cut::Take(1), "the clock was set back");
        assert_eq!(cut(&[at(10, 60), at(10, 60)], false), Cut::Take(1), "the second one would be too much");
        assert_eq!(cut(&[at(10, 60), at(10, 40)], false), Cut::Take(2), "just full");
        assert_eq!(cut(&[at(10, 1); 4], false), Cut::Take(4), "enough packages");
        assert_eq!(cut(&[at(10, 900)], false), Cut::Take(1), "one alone may be more");
        assert_eq!(cut(&[at(10, 1)], true), Cut::Take(1), "those behind it do not fit into this look");
    }

    proptest! {
        #[test]
        fn no_bundle_is_beyond_its_limits(sizes in proptest::collection::vec(0_u64..150, 0..9), now in 0_i64..100) {
            let waiting: Vec<_> = sizes.iter().map(|&b| at(0, b)).collect();
            match LIMITS.cut(&waiting, false, Timestamp::from_micros(now)) {
                Cut::Nobody => prop_assert!(sizes.is_empty()),
                Cut::Wait(until) => prop_assert!(until > Timestamp::from_micros(now)),
                Cut::Take(n) => {
                    prop_assert!((1..=LIMITS.packages).contains(&n));
                    prop_assert!(n == 1 || sizes[..n].iter().sum::<u64>() <= LIMITS.bytes);
                }
            }
        }
    }
}
