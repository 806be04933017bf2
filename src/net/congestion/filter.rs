//! What is kept of a series of measurements: its largest of late, its smallest of late, and the course of the last round trip.

use std::time::{Duration, Instant};

use super::units::real;

/// The largest of this cycle and the one before (the draft's `BBR.max_bw` filter, section 5.5.5).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Largest {
    now: f64,
    before: f64,
}

impl Largest {
    pub(super) fn see(&mut self, value: f64) {
        self.now = self.now.max(value);
    }

    /// A cycle ends. One in which nothing was measured forgets nothing.
    pub(super) fn turn(&mut self) {
        if self.now > 0.0 {
            self.before = self.now;
            self.now = 0.0;
        }
    }

    /// Forgets all but `value`.
    pub(super) fn set(&mut self, value: f64) {
        *self = Self { now: value, before: 0.0 };
    }

    pub(super) fn get(&self) -> f64 {
        self.now.max(self.before)
    }
}

/// How long a smallest round trip time is believed (the draft's `MinRTTFilterLen`, 10 s).
const BELIEVED: Duration = Duration::from_secs(10);

/// The smallest round trip time, and since when nothing as small was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Smallest {
    value: Option<Duration>,
    confirmed: Instant,
}

impl Smallest {
    pub(super) fn new(now: Instant) -> Self {
        Self { value: None, confirmed: now }
    }

    /// A sample within a sixteenth of the smallest confirms it: a path's own noise is no queue.
    pub(super) fn see(&mut self, now: Instant, rtt: Duration) {
        let smallest = self.value.unwrap_or(Duration::MAX);
        if rtt <= smallest.saturating_add(smallest / 16) {
            self.confirmed = now;
        }
        self.value = Some(smallest.min(rtt));
    }

    pub(super) fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.confirmed) > BELIEVED
    }

    pub(super) fn set(&mut self, now: Instant, rtt: Duration) {
        *self = Self { value: Some(rtt), confirmed: now };
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.value
    }
}

/// A round trip is looked at in so many pieces: what a queue shows within a fraction of one must not wait for its end.
const PIECES: u32 = 16;

/// The rate of a piece is that of so many pieces together: a quarter of a round trip.
const RATE_PIECES: usize = 4;

/// Samples of a piece, at least: acknowledgements of a burst's end come late, and jitter hides the rest.
const PIECE_SAMPLES: u32 = 8;

/// One piece of a round trip, complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Smallest round trip time in it.
    pub(super) rtt: Duration,
    /// Delivery rate over the last quarter of a round trip, in bytes per second.
    pub(super) rate: f64,
    /// The same over the quarter before.
    pub(super) rate_before: f64,
}

/// Cuts the stream of acknowledgements into [`Piece`]s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    /// When the last pieces began, and what was delivered by then; the newest last.
    began: [(Instant, u64); RATE_PIECES],
    rates: [f64; RATE_PIECES],
    rtt: Duration,
    samples: u32,
}

impl Pieces {
    pub(super) fn new(now: Instant, delivered: u64) -> Self {
        Self { began: [(now, delivered); RATE_PIECES], rates: [0.0; RATE_PIECES], rtt: Duration::MAX, samples: 0 }
    }

    pub(super) fn see(&mut self, now: Instant, rtt: Duration, delivered: u64, min_rtt: Duration) -> Option<Piece> {
        self.rtt = self.rtt.min(rtt);
        self.samples = self.samples.saturating_add(1);
        let (latest, _) = self.began[RATE_PIECES - 1];
        if self.samples < PIECE_SAMPLES || now.saturating_duration_since(latest) < min_rtt / PIECES {
            return None;
        }
        let (since, had) = self.began[0];
        let took = now.saturating_duration_since(since).as_secs_f64();
        let rate = if took > 0.0 { real(delivered.saturating_sub(had)) / took } else { 0.0 };
        let piece = Piece { rtt: self.rtt, rate, rate_before: self.rates[0] };
        self.rates.rotate_left(1);
        self.rates[RATE_PIECES - 1] = rate;
        self.began.rotate_left(1);
        self.began[RATE_PIECES - 1] = (now, delivered);
        self.rtt = Duration::MAX;
        self.samples = 0;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_two_cycles_stays_and_silence_forgets_nothing() {
        let mut rate = Largest::default();
        rate.see(5.0);
        rate.see(3.0);
        rate.turn();
        rate.turn();
        rate.see(2.0);
        assert!((rate.get() - 5.0).abs() < 1e-9);
        rate.turn();
        assert!((rate.get() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_round_trip_time_is_stale_when_nothing_comes_near_it() {
        let origin = Instant::now();
        let s = |s: u64| origin + Duration::from_secs(s);
        let ms = Duration::from_millis;
        let mut smallest = Smallest::new(origin);
        smallest.see(origin, ms(100));
        smallest.see(s(9), ms(105));
        assert!(!smallest.is_stale(s(19)));
        smallest.see(s(19), ms(110));
        assert!(smallest.is_stale(s(20)));
        assert_eq!(smallest.get(), Some(ms(100)));
    }

    #[test]
    fn a_piece_needs_time_and_samples() {
        let origin = Instant::now();
        let ms = |ms: u64| origin + Duration::from_millis(ms);
        let rtt = Duration::from_millis(80);
        let mut pieces = Pieces::new(origin, 0);
        let mut seen = Vec::new();
        for at in 1..=80 {
            seen.extend(pieces.see(ms(at), rtt + Duration::from_millis(at), at * 1000, rtt));
        }
        assert_eq!(seen.len(), 10, "eight samples take longer than a sixteenth of the round trip");
        assert_eq!(seen[1].rtt, Duration::from_millis(89));
        assert!((seen[9].rate - 1e6).abs() < 1.0);
    }
}
