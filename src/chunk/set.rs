use std::collections::BTreeMap;

/// A set of chunk indices, kept as disjoint ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkSet {
    // start -> end (exclusive); never empty, never touching
    ranges: BTreeMap<u64, u64>,
    len: u64,
}

impl ChunkSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of chunks in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u64) -> bool {
        self.ranges.range(..=index).next_back().is_some_and(|(_, &end)| index < end)
    }

    /// Number of disjoint ranges: what the set costs in memory.
    pub fn fragments(&self) -> usize {
        self.ranges.len()
    }

    /// Those of the `count` chunks from `first` that are not in the set, as (first, count).
    pub fn gaps(&self, first: u64, count: u64) -> Vec<(u64, u64)> {
        let (mut at, end) = (first, first.saturating_add(count));
        let mut gaps = Vec::new();
        if let Some((_, &e)) = self.ranges.range(..=first).next_back() {
            at = at.max(e);
        }
        while at < end {
            let next = self.ranges.range(at..end).next().map_or((end, end), |(&s, &e)| (s, e));
            if next.0 > at {
                gaps.push((at, next.0 - at));
            }
            at = next.1;
        }
        gaps
    }

    /// Adds one chunk; false if it was there.
    pub fn insert(&mut self, index: u64) -> bool {
        if self.contains(index) {
            return false;
        }
        self.insert_range(index, 1);
        true
    }

    /// Adds `count` chunks from `first`; those past the last representable index are ignored.
    pub fn insert_range(&mut self, first: u64, count: u64) {
        let (mut start, mut end) = (first, first.saturating_add(count));
        if start == end {
            return;
        }
        if let Some((&s, &e)) = self.ranges.range(..=start).next_back()
            && e >= start
        {
            start = s;
            end = end.max(e);
        }
        let swallowed: Vec<u64> = self.ranges.range(start..=end).map(|(&s, _)| s).collect();
        for s in swallowed {
            if let Some(e) = self.ranges.remove(&s) {
                self.len -= e - s;
                end = end.max(e);
            }
        }
        self.len += end - start;
        self.ranges.insert(start, end);
    }

    /// Removes one chunk; false if it was not there.
    pub fn remove(&mut self, index: u64) -> bool {
        let Some((&start, &end)) = self.ranges.range(..=index).next_back() else { return false };
        if index >= end {
            return false;
        }
        self.ranges.remove(&start);
        if start < index {
            self.ranges.insert(start, index);
        }
        if index + 1 < end {
            self.ranges.insert(index + 1, end);
        }
        self.len -= 1;
        true
    }

    /// The ranges in order, as (first, count).
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&s, &e)| (s, e - s))
    }

    /// The chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|(&s, &e)| s..e)
    }

    /// The smallest chunk, taken out of the set.
    pub fn pop_first(&mut self) -> Option<u64> {
        let (start, end) = self.ranges.pop_first()?;
        if start + 1 < end {
            self.ranges.insert(start + 1, end);
        }
        self.len -= 1;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set(ops in prop::collection::vec((0u8..4, 0u64..60, 0u64..12), 0..200)) {
            let (mut set, mut model) = (ChunkSet::new(), BTreeSet::new());
            for (op, first, count) in ops {
                match op {
                    0 => prop_assert_eq!(set.insert(first), model.insert(first)),
                    1 => { set.insert_range(first, count); model.extend(first..first + count); }
                    2 => prop_assert_eq!(set.remove(first), model.remove(&first)),
                    _ => prop_assert_eq!(set.pop_first(), model.pop_first()),
                }
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.len(), model.len() as u64);
                let gaps: Vec<u64> = set.gaps(first, count).into_iter().flat_map(|(s, n)| s..s + n).collect();
                prop_assert_eq!(gaps, (first..first + count).filter(|c| !model.contains(c)).collect::<Vec<_>>());
            }
        }
    }
}
