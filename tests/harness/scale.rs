use std::{
    io::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

/// Writes past the test runner's capture: seeds, counts and skips must be seen in a run that passes.
pub(crate) fn say(text: &str) {
    // A closed stderr must not fail a test.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says visibly that a test did not run. `scripts/test` counts these lines.
pub(crate) fn skip(test: &str, reason: &str) {
    say(&format!("SKIP: {test}: {reason}"));
}

/// Whether the long runs were asked for (`scripts/soak`).
pub(crate) fn full() -> bool {
    std::env::var("CCAT_XFER_SOAK").is_ok_and(|v| v == "full")
}

/// A tenth of a count, at least 20.
pub(crate) fn scaled(long: u64) -> u64 {
    if full() { long } else { (long / 10).max(20).min(long) }
}

/// How often to do something that the long run does `long` times: a tenth, at least 20.
pub(crate) fn count(what: &str, long: u64) -> u64 {
    let now = scaled(long);
    say(&format!("count: {what}: {now} (long run: {long})"));
    now
}

/// How much of something that the long run does `long` of: a tenth.
pub(crate) fn size(long: u64) -> u64 {
    if full() { long } else { long / 10 }
}

/// The run's seed: `CCAT_XFER_SEED`, or the clock. Printed, so that a failure can be run again.
pub(crate) fn seed(test: &str) -> Rng {
    let seed = std::env::var("CCAT_XFER_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_secs() ^ u64::from(d.subsec_nanos()) << 20)
    });
    say(&format!("seed: {test}: CCAT_XFER_SEED={seed}"));
    Rng(seed)
}

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    pub(crate) fn bytes(&mut self, out: &mut [u8]) {
        for block in out.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            block.copy_from_slice(&word[..block.len()]);
        }
    }
}
