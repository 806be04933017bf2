/// What a look through an archive has met so far, and whether it may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubTally {
    /// Copies that were looked at.
    pub looked_at: u64,
    /// As registered.
    pub equal: u64,
    /// Other bytes than registered.
    pub different: u64,
    /// Not there.
    pub missing: u64,
    /// Nobody knows: they could not be read.
    pub unreadable: u64,
}

impl ScrubTally {
    /// Looks that a share is taken of, at the least: one missing copy among the first ones is no share.
    const LEAST: u64 = 10;

    /// Whether more than a tenth of what was looked at is missing or cannot be read. Then the archive is likelier to be
    /// another one, or only a part of itself, than to have lost so much: whoever looks stops and asks.
    pub fn is_suspicious(&self) -> bool {
        self.missing.saturating_add(self.unreadable).saturating_mul(10) > self.looked_at.max(Self::LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_tenth_missing_is_suspicious() {
        let tally = |looked_at, missing| ScrubTally { looked_at, missing, ..ScrubTally::default() };
        for (looked_at, missing) in [(0, 0), (1, 1), (10, 1), (100, 10), (1000, 100)] {
            assert!(!tally(looked_at, missing).is_suspicious(), "{missing} of {looked_at}");
        }
        for (looked_at, missing) in [(2, 2), (10, 2), (100, 11), (1000, 101)] {
            assert!(tally(looked_at, missing).is_suspicious(), "{missing} of {looked_at}");
        }
        assert!(ScrubTally { unreadable: 5, ..tally(100, 6) }.is_suspicious());
    }
}
