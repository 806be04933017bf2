//! Delivery rate per acknowledgement, made from what quinn tells a controller.
//!
//! The method is that of draft-cheng-iccrg-delivery-rate-estimation: what was delivered when a packet left is kept until the packet is
//! acknowledged; the rate is what was delivered since, over the longer of the time it took to send and the time it took to be
//! acknowledged. quinn names an acknowledged packet by its time of sending only, and sends bursts of up to twenty packets
//! with one time: the record of a burst serves all its packets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::units::real;

/// Most bursts that are remembered: 300 ms of 2 Gbit/s, each packet a burst of its own. About 4 MB at the worst.
const MOST_RECORDS: usize = 65_536;

/// After so many round trips and [`SLACK`] more, nobody asks about a burst again: quinn has given up what is not acknowledged.
const REMEMBERED_ROUNDS: u32 = 4;
const SLACK: Duration = Duration::from_secs(1);

/// The state at the time a burst was sent.
#[derive(Clone, Copy, Debug)]
struct Burst {
    sent: Instant,
    /// Bytes delivered by then, and when the last of them were.
    delivered: u64,
    delivered_at: Instant,
    /// When the packet was sent whose delivery was the last to be known.
    first_sent: Instant,
    in_flight: u64,
    app_limited: bool,
}

/// What one acknowledgement tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Bytes per second. `None`: too short a time to tell.
    pub(super) rate: Option<f64>,
    /// Round trip time of the newest acknowledged packet.
    pub(super) rtt: Duration,
    /// When that packet was sent.
    pub(super) sent: Instant,
    /// Bytes delivered when it was sent.
    pub(super) prior_delivered: u64,
    /// The application, not the window, set the pace of it.
    pub(super) app_limited: bool,
    /// Bytes of this acknowledgement.
    pub(super) acked: u64,
}

/// Sent bursts that may yet be acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    bursts: VecDeque<Burst>,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    in_flight: u64,
    /// Bursts sent before this much was delivered are limited by the application.
    app_limited_until: u64,
    /// Of the acknowledgement that is being read.
    newest: Option<Burst>,
    acked: u64,
}

impl Ledger {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            bursts: VecDeque::new(),
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            in_flight: 0,
            app_limited_until: 0,
            newest: None,
            acked: 0,
        }
    }

    /// Bytes delivered since the beginning.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes in flight, as far as the last call told.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64, rtt: Duration) {
        if self.in_flight == 0 {
            // A pause is not part of the time that sending took.
            self.first_sent = now;
            self.delivered_at = now;
        }
        self.in_flight = self.in_flight.saturating_add(bytes);
        if let Some(last) = self.bursts.back_mut().filter(|last| last.sent >= now) {
            last.in_flight = self.in_flight;
            return;
        }
        let old = rtt.saturating_mul(REMEMBERED_ROUNDS).saturating_add(SLACK);
        while self.bursts.front().is_some_and(|first| now.saturating_duration_since(first.sent) > old)
            || self.bursts.len() >= MOST_RECORDS
        {
            self.bursts.pop_front();
        }
        self.bursts.push_back(Burst {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            in_flight: self.in_flight,
            app_limited: self.delivered < self.app_limited_until,
        });
    }

    pub(super) fn on_ack(&mut self, sent: Instant, bytes: u64) {
        self.delivered = self.delivered.saturating_add(bytes);
        self.acked = self.acked.saturating_add(bytes);
        if self.newest.is_some_and(|newest| newest.sent >= sent) {
            return;
        }
        if let Some(burst) = self.find(sent) {
            self.newest = Some(burst);
        }
    }

    pub(super) fn on_lost(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// What was in flight when the packet sent at `sent` left.
    pub(super) fn in_flight_at(&self, sent: Instant) -> Option<u64> {
        self.find(sent).map(|burst| burst.in_flight)
    }

    /// Ends an acknowledgement.
    pub(super) fn sample(&mut self, now: Instant, in_flight: u64, app_limited: bool) -> Option<Sample> {
        let acked = std::mem::take(&mut self.acked);
        let newest = self.newest.take();
        self.in_flight = in_flight;
        self.delivered_at = now;
        if app_limited {
            self.app_limited_until = self.delivered.saturating_add(in_flight).max(1);
        }
        let burst = newest?;
        self.first_sent = burst.sent;
        let sending = burst.sent.saturating_duration_since(burst.first_sent);
        let arriving = now.saturating_duration_since(burst.delivered_at);
        let took = sending.max(arriving).as_secs_f64();
        let gained = self.delivered.saturating_sub(burst.delivered);
        Some(Sample {
            rate: (took > 0.0).then(|| real(gained) / took),
            rtt: now.saturating_duration_since(burst.sent),
            sent: burst.sent,
            prior_delivered: burst.delivered,
            app_limited: burst.app_limited,
            acked,
        })
    }

    fn find(&self, sent: Instant) -> Option<Burst> {
        let at = self.bursts.partition_point(|burst| burst.sent < sent);
        self.bursts.get(at).filter(|burst| burst.sent == sent).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);

    #[test]
    fn the_rate_is_what_was_delivered_over_the_longer_of_both_times() {
        let origin = Instant::now();
        let ms = |ms: u64| origin + Duration::from_millis(ms);
        let mut ledger = Ledger::new(origin);
        // 1000 bytes a millisecond are sent; they come back at half the pace.
        let mut last = None;
        for now in 0..900 {
            if now < 400 {
                ledger.on_sent(ms(now), 1000, RTT);
            }
            if now >= 100 && now % 2 == 0 {
                ledger.on_ack(ms((now - 100) / 2), 1000);
                last = ledger.sample(ms(now), 1000, false);
            }
        }
        let last = last.unwrap();
        let rate = last.rate.unwrap();
        assert!((rate - 500e3).abs() < 5e3, "{rate}");
        assert_eq!(last.rtt, Duration::from_millis(499));
        assert_eq!(ledger.delivered(), 400_000);
    }

    #[test]
    fn a_pause_of_the_application_is_marked_until_what_was_sent_in_it_is_known() {
        let origin = Instant::now();
        let ms = |ms: u64| origin + Duration::from_millis(ms);
        let mut ledger = Ledger::new(origin);
        ledger.on_sent(ms(0), 1000, RTT);
        ledger.on_sent(ms(1), 1000, RTT);
        ledger.on_ack(ms(0), 1000);
        assert!(!ledger.sample(ms(100), 1000, true).unwrap().app_limited);
        ledger.on_sent(ms(101), 1000, RTT);
        ledger.on_ack(ms(1), 1000);
        ledger.sample(ms(102), 1000, false);
        ledger.on_ack(ms(101), 1000);
        assert!(ledger.sample(ms(201), 0, false).unwrap().app_limited);
        ledger.on_sent(ms(300), 1000, RTT);
        ledger.on_ack(ms(300), 1000);
        let sample = ledger.sample(ms(400), 0, false).unwrap();
        assert!(!sample.app_limited);
        let rate = sample.rate.unwrap();
        assert!((rate - 10e3).abs() < 1.0, "the pause does not count: {rate}");
    }

    /// Packets that nobody acknowledges (bare acknowledgements) do not fill the memory.
    #[test]
    fn memory_is_bounded() {
        let origin = Instant::now();
        let mut ledger = Ledger::new(origin);
        for at in 0..200_000 {
            ledger.on_sent(origin + Duration::from_micros(at), 40, RTT);
        }
        assert_eq!(ledger.bursts.len(), MOST_RECORDS);
        ledger.on_sent(origin + Duration::from_secs(100), 40, RTT);
        assert_eq!(ledger.bursts.len(), 1);
    }
}
