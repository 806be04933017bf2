//! Lets a QUIC peer send more where the path holds more.
//!
//! What a receiver allows is memory that a peer may fill, so it begins small. Each [`EVERY`] it becomes [`PRODUCTS`] times what arrives in
//! a round trip, and [`SPARE`] more: startup doubles in a round trip, and one more round trip passes until lost bytes are there.

use std::time::Duration;

use quinn::{Connection, VarInt};

/// Shorter than the round trips for which it matters.
const EVERY: Duration = Duration::from_millis(50);

const PRODUCTS: u64 = 3;

const SPARE: u64 = 32 << 20;

/// What has been allowed, and what was seen.
#[derive(Debug)]
pub(super) struct Credit {
    allowed: u64,
    cap: u64,
    arrived: u64,
}

impl Credit {
    /// `allowed` is what the peer has already, `cap` the most that it may get; both in bytes.
    pub(super) fn new(allowed: u32, cap: u32) -> Self {
        Self { allowed: allowed.into(), cap: cap.into(), arrived: 0 }
    }

    /// The new allowance, if it is to grow: `arrived` bytes since the beginning, `passed` since the last call.
    fn next(&mut self, arrived: u64, passed: Duration, rtt: Duration) -> Option<u64> {
        let new = arrived.saturating_sub(std::mem::replace(&mut self.arrived, arrived));
        let passed = passed.as_micros().max(1);
        let in_round_trip = u128::from(new).saturating_mul(rtt.as_micros()) / passed;
        let in_round_trip = u64::try_from(in_round_trip).unwrap_or(u64::MAX);
        let wanted = in_round_trip.saturating_mul(PRODUCTS).saturating_add(SPARE).min(self.cap);
        // Small steps are not worth a frame.
        (wanted > self.allowed.saturating_add(self.allowed / 8)).then(|| {
            self.allowed = wanted;
            wanted
        })
    }

    /// Follows the connection that `connection` gives, until it gives none.
    pub(super) async fn follow(mut self, connection: impl Fn() -> Option<Connection>) {
        let mut last = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(connection) = connection().filter(|connection| connection.close_reason().is_none()) else {
                return;
            };
            let stats = connection.stats();
            let passed = last.elapsed();
            last = tokio::time::Instant::now();
            let allowed = self.next(stats.udp_rx.bytes, passed, stats.path.rtt);
            if let Some(allowed) = allowed.and_then(|bytes| VarInt::from_u64(bytes).ok()) {
                connection.set_receive_window(allowed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(300);

    #[test]
    fn allows_three_times_what_arrives_in_a_round_trip_and_never_less_than_before() {
        let mut credit = Credit::new(64 << 20, 256 << 20);
        assert_eq!(credit.next(1_000_000, EVERY, RTT), None, "a slow path needs no more");
        // 2 Gbit/s: 12.5 MB in 50 ms.
        let allowed = credit.next(13_500_000, EVERY, RTT).unwrap();
        assert_eq!(allowed, 225_000_000 + SPARE);
        assert_eq!(credit.next(13_600_000, EVERY, RTT), None, "what is allowed is not taken back");
        assert_eq!(credit.next(113_600_000, EVERY, RTT), None, "the cap is too near for a frame");
        let mut credit = Credit::new(64 << 20, 256 << 20);
        assert_eq!(credit.next(u64::MAX, Duration::ZERO, RTT), Some(256 << 20));
    }
}
