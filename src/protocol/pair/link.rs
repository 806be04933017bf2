use std::time::Duration;

use super::Side;

/// A link that exists in virtual time only.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkSpec {
    /// One way.
    pub(super) latency: Duration,
    /// Bytes per second each way; `None` for a link that takes no time to fill.
    pub(super) rate: Option<u64>,
    /// Data and pack frames have streams of their own: they overtake each other and the main stream.
    pub(super) lanes: bool,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) spec: LinkSpec,
    pub(super) alive: bool,
    busy_until: [Duration; 2],
}

impl Link {
    pub(super) fn new(spec: LinkSpec) -> Self {
        Self { spec, alive: true, busy_until: [Duration::ZERO; 2] }
    }

    /// When a frame handed over now has left, and when it arrives if the link lives that long.
    pub(super) fn transmit(&mut self, now: Duration, from: Side, bytes: usize) -> (Duration, Duration) {
        let busy = &mut self.busy_until[usize::from(from == Side::Receiver)];
        let takes = self.spec.rate.map_or(0.0, |rate| bytes as f64 / rate as f64);
        *busy = now.max(*busy) + Duration::from_secs_f64(takes);
        (*busy, *busy + self.spec.latency)
    }
}
