//! For how long this process saw rows unchanged, on a clock of its own that nobody can set.
//!
//! A server's wall clock may be set by an hour while leases run. So on PostgreSQL nobody compares a lease with it: who
//! holds one changes its row with every renewal, and whoever saw a row unchanged for the lease's whole length calls it
//! lost. No clocks of two machines are compared.

use std::collections::BTreeMap;

/// The time of one look, on the looker's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Before the rows were asked for.
    pub(super) began_us: i64,
    /// After they came.
    pub(super) ended_us: i64,
}

#[derive(Debug)]
struct Seen<M> {
    mark: M,
    at_us: i64,
    unchanged_us: i64,
}

/// Rows and the marks that they bore. A mark changes with every renewal.
#[derive(Debug)]
pub(super) struct Watch<K, M>(BTreeMap<K, Seen<M>>);

impl<K, M> Default for Watch<K, M> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, M: PartialEq> Watch<K, M> {
    /// Notes what a look saw; whether the row was unchanged for `length_us` by now.
    ///
    /// Between two looks no more than half of the length counts: whoever could not look for a while, because the
    /// database was away, knows that nobody could renew meanwhile, and gives them time to.
    pub(super) fn is_lost(&mut self, look: Look, key: K, mark: M, length_us: i64) -> bool {
        match self.0.get_mut(&key) {
            Some(seen) if seen.mark == mark => {
                let since_us = look.began_us.saturating_sub(seen.at_us).clamp(0, (length_us / 2).max(1));
                seen.unchanged_us = seen.unchanged_us.saturating_add(since_us);
                seen.at_us = seen.at_us.max(look.began_us);
                seen.unchanged_us >= length_us
            }
            _ => {
                self.0.insert(key, Seen { mark, at_us: look.ended_us, unchanged_us: 0 });
                false
            }
        }
    }

    /// Forgets all rows but these.
    pub(super) fn keep_only(&mut self, keys: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| keys(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: i64) -> Look {
        Look { began_us: us, ended_us: us }
    }

    #[test]
    fn what_stays_unchanged_for_its_length_is_lost() {
        let mut watch = Watch::default();
        let lost: Vec<_> = [0, 4, 8, 10, 12].map(|us| watch.is_lost(at(us), 1, "a", 10)).into();
        assert_eq!(lost, [false, false, false, true, true]);
        assert!(!watch.is_lost(at(14), 1, "b", 10), "it was renewed");
        assert!(!watch.is_lost(at(23), 1, "b", 10));
        watch.keep_only(|_| false);
        assert!(!watch.is_lost(at(24), 1, "b", 10), "forgotten");
    }

    #[test]
    fn time_without_a_look_is_not_held_against_anybody() {
        let mut watch = Watch::default();
        assert!(!watch.is_lost(at(0), 1, (), 10));
        assert!(!watch.is_lost(at(1000), 1, (), 10), "the database may have been away");
        assert!(watch.is_lost(at(1005), 1, (), 10), "but it was not renewed since either");
        // However rarely somebody looks, the dead are found.
        let lost: Vec<_> = [0, 100, 200, 300].map(|us| watch.is_lost(at(us), 2, (), 10)).into();
        assert_eq!(lost, [false, false, true, true]);
    }

    #[test]
    fn a_slow_answer_does_not_count_for_its_row() {
        let mut watch = Watch::default();
        assert!(!watch.is_lost(Look { began_us: 0, ended_us: 8 }, 1, (), 10));
        assert!(!watch.is_lost(at(12), 1, (), 10));
        assert!(!watch.is_lost(at(17), 1, (), 10));
        assert!(watch.is_lost(at(18), 1, (), 10));
        // Two looks at once, the older one told last.
        assert!(!watch.is_lost(at(50), 2, (), 10));
        assert!(!watch.is_lost(at(45), 2, (), 10));
        assert!(!watch.is_lost(at(55), 2, (), 10));
        assert!(watch.is_lost(at(60), 2, (), 10));
    }
}
