//! The state machine: what it believes about the path, and the window that follows from it. See the module's text above.

use std::time::{Duration, Instant};

use super::filter::{Largest, Piece, Pieces, Smallest};
use super::samples::{Ledger, Sample};
use super::units::{carried, real, whole};
use super::{Limits, PathSnapshot, PathState, Remembered};

/// Packets that may wait at the receiver for an acknowledgement: it is asked to answer every tenth at once.
const UNANSWERED_PACKETS: u64 = 12;

/// Least window. With fewer packets than [`UNANSWERED_PACKETS`] every acknowledgement would wait for the receiver's timer.
const FLOOR_PACKETS: u64 = 16;

/// First window while nothing is known, in packets; RFC 6928 takes 10, content networks 32 and more.
const FIRST_PACKETS: u64 = 32;

/// As soon as the round trip time is known, the first window is what this carries in one (20 Mbit/s, in bytes per second): paced, it
/// is a slow video stream, whatever the round trip time.
const FIRST_RATE: f64 = 2.5e6;

/// Acknowledgements after which a round trip time is known well enough to jump to a remembered rate.
const CONFIRMING_ACKS: u32 = 3;

/// A sender's timer may be late by so much; the window carries the link over it.
const LATE_TIMER: Duration = Duration::from_millis(2);

/// What an acknowledged byte adds to the window in startup. quinn paces at 1.25 windows per round trip, so the rate r grows as
/// r' = 1.25 x 0.85 x r(one round trip ago): by 1.79 in a round trip. A queue shows a round trip late, and what is sent too much
/// until then is 0.6 of a bandwidth-delay product; doubling would make it 0.8.
const GROWTH: f64 = 0.85;

/// Growth per round below which startup sees a plateau, and the rounds it takes (the draft, section 5.3.1.2).
const PLATEAU_GROWTH: f64 = 1.25;
const PLATEAU_ROUNDS: u32 = 3;

/// What a probe for bandwidth adds to the window (the draft's `BBRProbeUpPacingGain`).
const UP_GAIN: f64 = 1.25;

/// Rate growth after a probe that shows a path with much more to give: doubling starts again.
const UP_FOUND: f64 = 1.15;

/// Round trips from one probe to the next; fewer while the path gives less than half of what it gave of late, for it may come back.
const CRUISE_ROUNDS: u32 = 10;
const CRUISE_ROUNDS_FALLEN: u32 = 3;
/// What a probe leaves of the best rate of late: a fifth of it is the usual again after nine.
const PEAK_KEPT: f64 = 0.9;

/// Share of the bandwidth-delay product to which a probe's queue is drained.
const DOWN_GAIN: f64 = 0.95;

/// The same while the smallest round trip time is measured anew (the draft's `BBRProbeRTTCwndGain`).
const PROBE_RTT_GAIN: f64 = 0.5;

/// Most that is in flight, in bandwidth-delay products, beside flows that fill the queue (the draft's `BBRDefaultCwndGain`).
const CROWDED_GAIN: f64 = 2.0;

/// Loss share that is taken for noise whether or not there is a queue.
const TOLERATED: f64 = 0.05;

/// Loss share above the path's usual one that is taken for our own doing when there is a queue (the draft's `BBRLossThresh`).
const OWN_LOSS: f64 = 0.02;

/// Growth of the rate in a quarter of a round trip that shows a queue to be that of others; doubling makes 1.19.
const STILL_GROWING: f64 = 1.06;

/// The queue, in smallest round trip times, that is fair for a flow of one packet; it falls with the root of the packets.
const FAIR_QUEUE: f64 = 20.0;
const FAIR_LEAST: f64 = 0.05;
const FAIR_MOST: f64 = 0.6;
/// Most that a round changes for it.
const FAIR_STEP: f64 = 0.1;

/// Loss share at which startup ends without any queue: a policer, or a queue shorter than its threshold.
const STARTUP_LOSS: f64 = 0.10;
/// And packets: one burst is not a share.
const STARTUP_LOST_PACKETS: u64 = 32;

/// What is left of a bound after a loss that counts (the draft's `BBRBeta`).
const BETA: f64 = 0.7;
/// The same for the volume in flight.
const BETA_IN_FLIGHT: f64 = 0.85;

#[derive(Clone, Debug)]
struct Round {
    /// The round ends with the first packet sent after so much was delivered.
    until: u64,
    began: Instant,
    delivered: u64,
    lost: u64,
    rtt: Duration,
    /// The window, not the application, was the limit at some time.
    filled: bool,
    marked: bool,
}

impl Round {
    fn new(now: Instant, delivered: u64) -> Self {
        Self { until: delivered, began: now, delivered, lost: 0, rtt: Duration::MAX, filled: false, marked: false }
    }
}

/// What is believed and done; see the module's text.
#[derive(Clone, Debug)]
pub(super) struct Model {
    limits: Limits,
    remembered: Option<Remembered>,
    mtu: u64,
    window: u64,
    state: PathState,
    entered: Instant,
    /// Rounds that ended in this state.
    rounds: u32,
    ledger: Ledger,
    rate: Largest,
    /// The best rate of late.
    peak: f64,
    min_rtt: Smallest,
    pieces: Pieces,
    piece_rate: f64,
    smoothed: Duration,
    round: Round,
    /// Smallest round trip time of the last whole round.
    last_rtt: Option<Duration>,
    /// Rate that a queue or loss has shown to be enough, until the next probe, and the rounds since.
    rate_bound: Option<f64>,
    rate_bound_rounds: u32,
    /// Volume in flight that the path has shown to be too much.
    volume_bound: Option<f64>,
    /// The window of startup.
    growing: f64,
    plateau: f64,
    plateau_rounds: u32,
    /// How much queue startup takes for one, doubled by each false alarm.
    alarm_doublings: u32,
    /// Startup follows a probe that found much more.
    again: bool,
    confirming: u32,
    /// What the probe started from.
    probe_rate: f64,
    probe_base: f64,
    probe_rtt: Duration,
    probe_step: f64,
    /// Loss of packets sent in this state.
    lost_here: u64,
    /// Packets sent before this belong to the last startup, and what was lost of them after it.
    startup_ended: Instant,
    overshot: u64,
    drained: Option<Instant>,
    wait: Duration,
    usual_loss: f64,
    lost: u64,
    app_limited: bool,
    random: u64,
}

impl Model {
    pub(super) fn new(limits: Limits, remembered: Option<Remembered>, seed: u64, now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        let first = mtu.saturating_mul(FIRST_PACKETS).min(limits.cap);
        Self {
            limits,
            remembered,
            mtu,
            window: first,
            state: PathState::Startup,
            entered: now,
            rounds: 0,
            ledger: Ledger::new(now),
            rate: Largest::default(),
            peak: 0.0,
            min_rtt: Smallest::new(now),
            pieces: Pieces::new(now, 0),
            piece_rate: 0.0,
            smoothed: Duration::from_millis(333),
            round: Round::new(now, 0),
            last_rtt: None,
            rate_bound: None,
            rate_bound_rounds: 0,
            volume_bound: None,
            growing: real(first),
            plateau: 0.0,
            plateau_rounds: 0,
            alarm_doublings: 0,
            again: false,
            confirming: 0,
            probe_rate: 0.0,
            probe_base: 0.0,
            probe_rtt: Duration::ZERO,
            probe_step: 0.0,
            lost_here: 0,
            startup_ended: now,
            overshot: 0,
            drained: None,
            wait: Duration::ZERO,
            usual_loss: 0.0,
            lost: 0,
            app_limited: false,
            random: seed | 1,
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }

    pub(super) fn first_window(&self) -> u64 {
        self.mtu.saturating_mul(FIRST_PACKETS).min(self.limits.cap)
    }

    pub(super) fn snapshot(&self) -> PathSnapshot {
        let known = self.lost.saturating_add(self.ledger.delivered());
        PathSnapshot {
            rate: whole(self.rate()),
            min_rtt: self.min_rtt.get(),
            lost_per_million: u32::try_from(self.lost.saturating_mul(1_000_000) / known.max(1)).unwrap_or(1_000_000),
            state: self.state,
            window: self.window,
            app_limited: self.app_limited,
            window_capped: self.window >= self.limits.cap,
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
        self.set_window();
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        self.ledger.on_sent(now, bytes, self.smoothed);
    }

    pub(super) fn on_ack(&mut self, sent: Instant, bytes: u64, app_limited: bool, smoothed: Duration) {
        self.ledger.on_ack(sent, bytes);
        self.smoothed = smoothed;
        self.round.filled |= !app_limited;
    }

    /// Ends an acknowledgement: everything is decided here, but for what a loss decides.
    pub(super) fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool) {
        self.app_limited = app_limited;
        let Some(sample) = self.ledger.sample(now, in_flight, app_limited) else { return };
        self.min_rtt.see(now, sample.rtt);
        self.round.rtt = self.round.rtt.min(sample.rtt);
        if let Some(rate) = sample.rate
            && (!sample.app_limited || rate > self.rate.get())
        {
            self.rate.see(rate);
        }
        let min_rtt = self.base_rtt();
        let piece = self.pieces.see(now, sample.rtt, self.ledger.delivered(), min_rtt);
        if let Some(piece) = piece {
            self.piece_rate = piece.rate;
        }
        match self.state {
            PathState::Startup => self.startup(now, &sample, piece),
            PathState::Up => {
                let queue = self.probe_rtt.saturating_add(min_rtt / 10).saturating_add(self.noise());
                if piece.is_some_and(|piece| piece.rtt > queue) {
                    self.enter(PathState::Down, now);
                }
            }
            PathState::Drain | PathState::Down => {
                if real(in_flight) <= self.goal() || self.rounds >= 3 {
                    self.cruise(now);
                }
            }
            PathState::Cruise => {
                if self.min_rtt.is_stale(now) && !app_limited {
                    self.probe_rtt = Duration::MAX;
                    self.enter(PathState::ProbeRtt, now);
                } else if now.saturating_duration_since(self.entered) >= self.wait && self.rounds >= 1 && !app_limited {
                    self.probe(now, in_flight);
                }
            }
            PathState::ProbeRtt => self.measure_rtt(now, &sample, in_flight),
        }
        if sample.prior_delivered >= self.round.until {
            self.end_round(now);
        }
        self.set_window();
    }

    pub(super) fn on_lost(&mut self, now: Instant, sent: Instant, persistent: bool, bytes: u64) {
        let in_flight = self.ledger.in_flight_at(sent).unwrap_or_else(|| self.ledger.in_flight());
        self.ledger.on_lost(bytes);
        self.lost = self.lost.saturating_add(bytes);
        if persistent {
            self.start_again(now);
        } else if bytes == 0 {
            self.on_mark(now, sent);
        } else if sent >= self.entered {
            self.round.lost = self.round.lost.saturating_add(bytes);
            self.lost_here = self.lost_here.saturating_add(bytes);
            match self.state {
                PathState::Startup => {
                    let known = self.ledger.delivered().saturating_sub(self.round.delivered) + self.round.lost;
                    if self.round.lost > self.mtu.saturating_mul(STARTUP_LOST_PACKETS)
                        && real(self.round.lost) > real(known) * STARTUP_LOSS
                    {
                        self.volume_bound = Some(real(in_flight) * BETA_IN_FLIGHT);
                        self.end_startup(now);
                    }
                }
                PathState::Up => {
                    let mine = (OWN_LOSS + 2.0 * self.usual_loss) * real(in_flight);
                    if real(self.lost_here) > mine.max(real(self.mtu.saturating_mul(FLOOR_PACKETS))) {
                        self.volume_bound = Some(real(in_flight.saturating_sub(self.lost_here)).max(self.product()));
                        self.enter(PathState::Down, now);
                    }
                }
                _ => {}
            }
        } else if sent < self.startup_ended {
            self.see_overshoot(in_flight, bytes);
        }
        self.set_window();
    }

    /// Startup sends too much for a round trip before it can know. Where that began to be lost is what the path holds.
    fn see_overshoot(&mut self, in_flight: u64, bytes: u64) {
        self.overshot = self.overshot.saturating_add(bytes);
        let own = (OWN_LOSS * self.product()).max(real(self.mtu.saturating_mul(STARTUP_LOST_PACKETS)));
        if self.volume_bound.is_none() && real(self.overshot) > own {
            self.volume_bound = Some(real(in_flight).max(self.product()));
        }
    }

    /// An ECN mark: once a round, as much as RFC 8511 asks.
    fn on_mark(&mut self, now: Instant, sent: Instant) {
        if self.round.marked || sent < self.entered {
            return;
        }
        self.round.marked = true;
        match self.state {
            PathState::Startup => self.end_startup(now),
            PathState::Up => self.enter(PathState::Down, now),
            _ => self.bound_rate(self.rate() * BETA_IN_FLIGHT),
        }
        self.volume_bound = Some(real(self.window) * BETA_IN_FLIGHT);
    }

    /// Everything was lost for several timeouts. The path may be another one now: a quarter of what it carried, and doubling.
    fn start_again(&mut self, now: Instant) {
        let again = self.state == PathState::Startup;
        let first = real(self.first_window());
        self.growing = if again { first } else { (self.product() / 4.0).max(first) };
        self.rate_bound = None;
        self.volume_bound = None;
        self.plateau = 0.0;
        self.plateau_rounds = 0;
        self.again = false;
        self.enter(PathState::Startup, now);
        self.round = Round::new(now, self.ledger.delivered());
        self.pieces = Pieces::new(now, self.ledger.delivered());
    }

    fn startup(&mut self, now: Instant, sample: &Sample, piece: Option<Piece>) {
        if self.confirming < CONFIRMING_ACKS {
            self.confirming += 1;
            let paced = carried(FIRST_RATE, self.base_rtt()).min(real(self.limits.start));
            self.growing = self.growing.max(paced);
        } else if let Some(remembered) = self.remembered.take() {
            self.jump(&remembered);
        }
        if !self.app_limited {
            self.growing = (self.growing + GROWTH * real(sample.acked)).min(real(self.limits.cap));
        }
        let Some(piece) = piece.filter(|_| self.round.filled) else { return };
        let clear = if self.again { self.probe_rtt.max(self.base_rtt()) } else { self.base_rtt() };
        // The first time nothing is known, and any queue ends it. Later the queue may be that of others.
        let growing = self.again && (self.rounds == 0 || piece.rate > piece.rate_before * STILL_GROWING);
        if piece.rtt > clear.saturating_add(self.alarm()) && !growing {
            self.end_startup(now);
        }
    }

    /// Careful resume: half of what was remembered, if this is still the same path.
    fn jump(&mut self, remembered: &Remembered) {
        let now = self.base_rtt();
        if now >= remembered.min_rtt / 2 && now <= remembered.min_rtt.saturating_mul(2) {
            let half = carried(real(remembered.rate), remembered.min_rtt.min(now)) / 2.0;
            self.growing = self.growing.max(half).min(real(self.limits.cap));
        }
    }

    fn end_startup(&mut self, now: Instant) {
        // A sample averages over a round trip in which the rate doubled: the last pieces know better what the link gives.
        let most = self.rate.get();
        self.rate.set(self.piece_rate.clamp(most, 2.0 * most));
        self.startup_ended = now;
        self.overshot = 0;
        self.enter(PathState::Drain, now);
    }

    fn cruise(&mut self, now: Instant) {
        let first = self.state == PathState::Drain;
        let rounds = if self.rate() < self.peak / 2.0 { CRUISE_ROUNDS_FALLEN } else { CRUISE_ROUNDS };
        let usual =
            self.base_rtt().saturating_mul(rounds).clamp(Duration::from_millis(500), Duration::from_millis(2500));
        self.wait = if first { Duration::ZERO } else { usual.mul_f64(0.8 + 0.4 * self.roll()) };
        self.enter(PathState::Cruise, now);
        self.last_rtt = None;
    }

    fn probe(&mut self, now: Instant, in_flight: u64) {
        self.peak = self.rate.get().max(PEAK_KEPT * self.peak);
        if let Some(bound) = self.rate_bound.take()
            && self.rate_bound_rounds >= 4
        {
            self.rate.set(bound);
        }
        self.rate.turn();
        self.probe_rate = self.rate.get();
        self.probe_base = self.product().max(real(in_flight).min(CROWDED_GAIN * self.product()));
        self.probe_rtt = self.last_rtt.unwrap_or_else(|| self.base_rtt());
        self.probe_step = 1.0 / 32.0;
        self.enter(PathState::Up, now);
    }

    fn measure_rtt(&mut self, now: Instant, sample: &Sample, in_flight: u64) {
        match self.drained {
            None if real(in_flight) <= self.goal() => self.drained = Some(now),
            Some(drained) if sample.sent >= drained => {
                self.probe_rtt = self.probe_rtt.min(sample.rtt);
                if sample.sent >= drained + Duration::from_millis(20) {
                    self.min_rtt.set(now, self.probe_rtt);
                    self.cruise(now);
                }
            }
            _ => {}
        }
        if self.rounds >= 6 {
            self.min_rtt.set(now, self.round.rtt.min(self.smoothed));
            self.cruise(now);
        }
    }

    fn end_round(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.round.began).as_secs_f64();
        let delivered = real(self.ledger.delivered().saturating_sub(self.round.delivered));
        let rate = if took > 0.0 { delivered / took } else { 0.0 };
        let lost = real(self.round.lost);
        let loss = if lost > 0.0 { lost / (lost + delivered) } else { 0.0 };
        let queue = self.round.rtt > self.crowded_rtt();
        self.rounds = self.rounds.saturating_add(1);
        self.rate_bound_rounds = self.rate_bound_rounds.saturating_add(1);
        match self.state {
            PathState::Startup if self.round.filled => self.see_plateau(now),
            PathState::Up => self.judge_probe(now),
            PathState::Cruise if self.round.filled => {
                let own = loss > TOLERATED || (queue && loss > self.usual_loss + OWN_LOSS);
                if own && self.round.lost > self.mtu.saturating_mul(FLOOR_PACKETS) {
                    self.bound_rate(rate.max(BETA * self.rate()));
                    self.volume_bound = Some(delivered.max(BETA_IN_FLIGHT * real(self.window)));
                } else if queue {
                    self.share(rate);
                } else {
                    self.usual_loss += (loss - self.usual_loss) / 8.0;
                }
                self.last_rtt = Some(self.round.rtt);
            }
            _ => {}
        }
        self.round = Round { until: self.ledger.delivered(), ..Round::new(now, self.ledger.delivered()) };
    }

    fn see_plateau(&mut self, now: Instant) {
        if self.rate.get() >= self.plateau * PLATEAU_GROWTH {
            self.plateau = self.rate.get();
            self.plateau_rounds = 0;
            return;
        }
        self.plateau_rounds += 1;
        if self.plateau_rounds >= PLATEAU_ROUNDS {
            self.end_startup(now);
        }
    }

    /// The first round of a probe sends more, the second hears what became of it. A queue has ended it before.
    fn judge_probe(&mut self, now: Instant) {
        let held = self.volume_bound.is_some_and(|bound| bound < UP_GAIN * self.probe_base);
        if held {
            // Nothing bad was heard of the volume so far: each round a step that is twice the last.
            if self.rounds >= 2 {
                self.volume_bound = self.volume_bound.map(|bound| bound * (1.0 + self.probe_step));
                self.probe_step *= 2.0;
            }
        } else if self.rounds >= 2 {
            if self.rate.get() > UP_FOUND * self.probe_rate {
                self.growing = real(self.window);
                self.again = true;
                self.plateau = self.rate.get();
                self.plateau_rounds = 0;
                self.alarm_doublings = (self.alarm_doublings + 1).min(4);
                self.volume_bound = None;
                self.enter(PathState::Startup, now);
            } else {
                self.enter(PathState::Down, now);
            }
        }
    }

    /// Others are there, or the link gives less than it did. What was delivered is what there is to have; a queue that is short for
    /// a flow of this size lets it take a little more, one that is long a little less. All flows see the same queue, and the larger
    /// one calls it long first: so they meet. A queue longer than any of us makes is that of flows that fill it: then it
    /// stays at what was delivered.
    fn share(&mut self, rate: f64) {
        let base = self.base_rtt().as_secs_f64();
        let queue = self.round.rtt.as_secs_f64() - base;
        let packets = real(self.window) / real(self.mtu);
        let fair = base * (FAIR_QUEUE / packets.sqrt()).clamp(FAIR_LEAST, FAIR_MOST);
        let foreign = queue > base * FAIR_MOST;
        let step = if foreign { 0.0 } else { FAIR_STEP * ((fair - queue) / fair).clamp(-1.0, 1.0) };
        let rate = (rate * (1.0 + step)).max(BETA * self.rate());
        if self.rate_bound.is_none() {
            self.rate_bound_rounds = 0;
        }
        self.rate_bound = Some(rate);
    }

    fn bound_rate(&mut self, rate: f64) {
        if self.rate_bound.is_none() {
            self.rate_bound_rounds = 0;
        }
        self.rate_bound = Some(self.rate_bound.map_or(rate, |bound| bound.min(rate)));
    }

    fn enter(&mut self, state: PathState, now: Instant) {
        self.state = state;
        self.entered = now;
        self.rounds = 0;
        self.lost_here = 0;
        self.drained = None;
        // A round belongs to one state.
        self.round = Round::new(now, self.ledger.delivered());
        self.round.until = self.ledger.delivered();
    }

    fn base_rtt(&self) -> Duration {
        self.min_rtt.get().unwrap_or(self.smoothed)
    }

    fn rate(&self) -> f64 {
        self.rate_bound.unwrap_or_else(|| self.rate.get())
    }

    /// The bandwidth-delay product.
    fn product(&self) -> f64 {
        carried(self.rate(), self.base_rtt())
    }

    /// What bursts and late timers make of a round trip time without any queue.
    fn noise(&self) -> Duration {
        let burst = real(self.mtu.saturating_mul(UNANSWERED_PACKETS)) / self.rate.get().max(1.0);
        Duration::from_secs_f64(burst.min(0.05)).saturating_add(Duration::from_micros(1500))
    }

    /// Queueing delay that ends startup.
    fn alarm(&self) -> Duration {
        let least = (self.base_rtt() / 128).saturating_add(self.noise());
        least.saturating_mul(1 << self.alarm_doublings)
    }

    fn crowded_rtt(&self) -> Duration {
        self.base_rtt().saturating_add(self.base_rtt() / 8).saturating_add(self.noise())
    }

    /// Where `Drain`, `Down` and `ProbeRtt` want the volume in flight.
    fn goal(&self) -> f64 {
        let gain = match self.state {
            PathState::Drain => 1.0,
            PathState::ProbeRtt => PROBE_RTT_GAIN,
            _ => DOWN_GAIN,
        };
        (gain * self.product()).max(self.floor())
    }

    fn floor(&self) -> f64 {
        real(self.mtu.saturating_mul(FLOOR_PACKETS).min(self.limits.cap))
    }

    fn set_window(&mut self) {
        let product = self.product();
        let spare =
            real(self.mtu.saturating_mul(UNANSWERED_PACKETS)) + carried(self.rate(), LATE_TIMER).min(product / 16.0);
        let bound = self.volume_bound.unwrap_or(f64::MAX);
        let window = match self.state {
            PathState::Startup => self.growing,
            PathState::Drain | PathState::Down | PathState::ProbeRtt => self.goal(),
            PathState::Up => (UP_GAIN * self.probe_base.max(product) + spare).min(bound),
            PathState::Cruise => {
                let crowded = self.crowded_rtt();
                let rtt = match self.last_rtt {
                    Some(last) if last > crowded => self.smoothed,
                    Some(last) => last,
                    None => self.base_rtt(),
                };
                (carried(self.rate(), rtt).min(CROWDED_GAIN * product) + spare).min(bound)
            }
        };
        self.window = whole(window.max(self.floor())).min(self.limits.cap);
    }

    /// A number from 0 to 1 (xorshift): probes of flows that share a path must not meet.
    fn roll(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        real(self.random >> 32) / real(u64::from(u32::MAX))
    }
}
