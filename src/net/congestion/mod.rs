//! A congestion controller for long paths: led by what the path delivers, not by what it loses.
//!
//! **Model.** The path is a delivery rate (the largest of this probing cycle and the last) and a round trip time without a queue (the
//! smallest of late); their product is what it holds. Pure state: fed with what quinn reports, asked for a window; it reads no clock.
//! The parts: `samples` makes delivery rates, `filter` keeps extremes, `model` decides.
//!
//! **Window and pacing.** quinn sends at most a window per round trip and spreads it at 1.25 windows per smoothed round trip; the
//! pace cannot be set by itself, and a window small enough to pace at a rate would limit the throughput to 0.8 of it. So the window is
//! the volume that is wanted in flight, and the pacer only smooths it.
//!
//! - *Startup*: the window grows by 0.85 of what is acknowledged: 1.79 times in a round trip, not 2 (`GROWTH` in `model` says why). It
//!   begins with 32 packets and, once the round trip time is known, with what 20 Mbit/s carry in it, at most 512 KiB. It ends when the
//!   smallest round trip time of a sixteenth of a round trip is over the smallest ever by 1/128 + 1.5 ms + what 12 packets take; or
//!   when three rounds bring less than a quarter; or when a tenth is lost. The rate is then that of the last quarter of a round trip.
//!   What was lost of the packets of startup tells what the path holds, and the first probe stays below that.
//! - *Drain*: down to the product. *Cruise*: the product, and 12 packets and 2 ms for late acknowledgements and timers, for 0.5 to 2.5 s
//!   (ten round trips, +-20 % at random; three after the rate fell to less than half of what it was, for it may come back).
//! - *Up*: 1.25 products for two rounds, until a queue of a tenth of the round trip shows. 15 % more delivered: startup again, which
//!   then ends only if the rate stopped to grow too, for the queue may be that of others. *Down*: 0.95 products, until the queue is
//!   gone.
//! - *Probe RTT*: half a product for a round trip, only if nothing came within a sixteenth of the smallest round trip time for 10 s.
//!   Alone on a path it never happens: *Down* shows the smallest round trip time in each cycle.
//!
//! **Loss.** Up to 5 % of a round changes nothing, unless it comes with a queue (round trip time up by an eighth) and is 2 % above what the
//! path usually loses. In *Up*, 2 % + twice the usual loss of what is in flight ends the probe. Either lowers a bound of the volume in
//! flight (to what was there when it began, or 0.85); a probe without loss lifts it by 1/32, 1/16, ... of itself per round. Persistent
//! congestion starts again with a quarter of the product. An ECN mark lowers rate and volume to 0.85 (RFC 8511), once a round.
//!
//! **Sharing.** In *Cruise*, a queue means that others are there, or that the rate fell. The window then follows what was delivered, and a
//! step of at most 10 % a round leads to a fair queue: 20 / sqrt(packets in the window) of the round trip, 0.05 to 0.6. All flows
//! see one queue, and the larger ones call it long first, as in Swift (SIGCOMM 2020, section 3.5). A queue over 0.6 of the
//! round trip is that of flows that fill it, and no step is made.
//!
//! **Careful resume** (draft-ietf-tsvwg-careful-resume): with a remembered rate, and a round trip time within half and twice of what is
//! remembered, the window jumps to half of the remembered product after three acknowledgements (those of the handshake confirm the path)
//! and startup goes on from there; a queue or loss ends it as ever.
//!
//! **Sources.** draft-ietf-ccwg-bbr (states, gains 1.25 and 2 and 0.5, plateau, 2 % loss, 10 s), draft-cheng-iccrg-delivery-rate-estimation
//! (samples), RFC 9406 (delay ends startup; its 1/8 of a round trip is too late for a short queue), RFC 9002.
//!
//! **Departures from the BBRv3 draft.** No pacing gains, for quinn has none. Delay ends startup before the plateau does: a queue of a
//! tenth of the product would lose a whole product otherwise. Loss by itself below 5 % never lowers anything (the draft cuts the
//! short-term bounds by 0.7 in every round with loss). No regular *Probe RTT* and no refill round: each costs a part of a second at 200 ms. A
//! found rate leads back to doubling instead of 1.25 per round.
//!
//! **Measured** with whole connections of quinn-proto 0.11.19 over a model of a link in virtual time: 100 Mbit/s, 200 ms, 100 MiB, UDP
//! payloads as large as quinn finds, a first window of 512 KiB (a fifth of this product, where it is a fiftieth at 1 Gbit/s). Share of
//! the link with handshake and ramp; drops of the queue in the first 3 s in bandwidth-delay products, and later in percent of the job.
//! Jobs still running after 30 s are counted until then.
//!
//! | queue | random loss | this | drops | quinn CUBIC | drops | quinn BBR | drops |
//! |---|---|---|---|---|---|---|---|
//! | 1 product | 0 | 0.88 | 0, 0 | 0.89 | 2.9, 0 | 0.85 | 5.3, 104 % |
//! | 1 | 0.01 % | 0.88 | 0, 0 | 0.25 | 0, 0 | - | - |
//! | 1 | 0.1 % | 0.87 | 0, 0 | 0.05 | 0, 0 | 0.83 | 8.1, 69 % |
//! | 1 | 1 % | 0.86 | 0, 0 | 0.015 | 0, 0 | 0.81 | 7.2, 61 % |
//! | 0.1 | 0 | 0.88 | 0.80, 0.4 % | 0.74 | 1.7, 0 | 0.84 | 8.9, 129 % |
//! | 0.1 | 0.01 % | 0.88 | 0.77, 0.4 % | 0.25 | 0, 0 | - | - |
//! | 0.1 | 0.1 % | 0.86 | 0.77, 0.4 % | 0.05 | 0, 0 | - | - |
//! | 0.1 | 1 % | 0.85 | 0.69, 0.4 % | 0.015 | 0, 0 | 0.80 | 11, 132 % |
//!
//! 1 Gbit/s, 1 GiB: 0.79 at 1 % loss; 0.89 with a remembered path; 0.82 with a queue of a tenth of the product, which drops 0.69 of a
//! product in the first 3 s (0.58 by startup) and 0.3 % later. noq's BBRv3 was not run: it is tied to noq's own
//! connection. Two jobs at 1 Gbit/s, the second 4 s after the first: the second has only a tenth of the link 20 s later. At 100 Mbit/s
//! it has 0.26 to 0.57 of what both get from the sixth second on.
//!
//! The tests have a tenth of 1 Gbit/s and of the first window: 0.82 without loss, 0.81 at 0.1 %, 0.80 at 1 %; 0.88 with a remembered
//! path; 0.80 with 0.5 % in bursts of 8; 0.75 to 0.79 of a link that falls to a fifth for 4 s.
//!
//! quinn sends lost data of a stream behind all that is buffered of others unless the stream has a
//! higher priority: without it, seconds of 0.3 and 1.4 alternate.

mod filter;
mod model;
mod samples;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod units;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory};

use model::Model;

/// What an earlier job learned about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Delivery rate in bytes per second.
    pub rate: u64,
    /// Smallest round trip time.
    pub min_rtt: Duration,
}

/// What the controller is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// Doubling.
    Startup,
    /// Letting the queue of startup run dry.
    Drain,
    /// Sending more than the estimate, to see whether there is more.
    Up,
    /// Letting the queue of a probe run dry.
    Down,
    /// Sending what the path is known to carry.
    Cruise,
    /// Sending less, to see the round trip time without a queue.
    ProbeRtt,
}

impl PathState {
    /// The word in logs and in the summary.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Drain => "drain",
            Self::Up => "probe up",
            Self::Down => "probe down",
            Self::Cruise => "cruise",
            Self::ProbeRtt => "probe rtt",
        }
    }
}

/// What the controller believes about the path now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSnapshot {
    /// Delivery rate that the path is believed to give, in bytes per second of UDP payload.
    pub rate: u64,
    /// Smallest round trip time of late.
    pub min_rtt: Option<Duration>,
    /// Lost bytes of a million whose fate is known.
    pub lost_per_million: u32,
    /// What it is doing.
    pub state: PathState,
    /// Congestion window in bytes.
    pub window: u64,
    /// At the last acknowledgement there was nothing to send: the application is the limit.
    pub app_limited: bool,
    /// The window is the largest allowed: the cap is the limit.
    pub window_capped: bool,
}

/// Where the window may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest first window, in bytes.
    pub(super) start: u64,
    /// Largest window, in bytes.
    pub(super) cap: u64,
}

/// Makes a controller for each connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelFactory {
    pub(super) limits: Limits,
    /// Of the same path, by an earlier job.
    pub(super) remembered: Option<Remembered>,
}

impl ControllerFactory for ModelFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(ModelController(Model::new(self.limits, self.remembered, rand::random(), now, current_mtu)))
    }
}

/// [`Model`] behind quinn's interface.
#[derive(Clone, Debug)]
pub(super) struct ModelController(Model);

impl ModelController {
    pub(super) fn snapshot(&self) -> PathSnapshot {
        self.0.snapshot()
    }
}

impl Controller for ModelController {
    fn on_sent(&mut self, now: Instant, bytes: u64, _: u64) {
        self.0.on_sent(now, bytes);
    }

    fn on_ack(&mut self, _: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.0.on_ack(sent, bytes, app_limited, rtt.get());
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _: Option<u64>) {
        self.0.on_end_acks(now, in_flight, app_limited);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.0.on_lost(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.0.first_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
