//! One direction of the link: a queue, a rate, losses, a delay. Pure: the caller brings the clock and the packets.
//!
//! The queue is kept as positions in the stream of all bytes that were accepted. Serving it at a rate moves one number
//! along, so the instant at which a packet has left is exact however seldom the model is looked at, and a change of the
//! rate counts from the bit at which it happens. Units are 1e-9 bits, so that rate x nanoseconds has no remainder.

use std::collections::VecDeque;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::shape::{Change, Direction, Shape};

/// 1e-9 bits since the link was made.
type Position = u128;

const PER_BYTE: Position = 8_000_000_000;

/// What became of one wire packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives, and has left when the link has served this much.
    Kept(Position),
    /// It took its place in queue and rate, and is lost on the way.
    Lost,
    /// It did not fit into the queue.
    Dropped,
    /// The link was down.
    Down,
}

/// Packets and their bytes, IP headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// What went through one direction since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// All that came to the link.
    pub(crate) offered: Tally,
    /// What arrived at the other end.
    pub(crate) delivered: Tally,
    /// Lost at random.
    pub(crate) lost: Tally,
    /// Did not fit into the queue.
    pub(crate) dropped: Tally,
    /// Came or waited while the link was down.
    pub(crate) down: Tally,
    /// The most bytes that ever waited.
    pub(crate) largest_queue: u64,
}

/// A piece under way: one packet, or several in a row as one super-packet.
#[derive(Debug)]
struct Piece<T> {
    load: Tally,
    what: T,
}

/// One direction. `T` is what stands for a piece.
#[derive(Debug)]
pub(crate) struct Link<T> {
    direction: Direction,
    shape: Shape,
    random: StdRng,
    /// Nanoseconds of the caller's clock.
    now: u64,
    accepted: Position,
    served: Position,
    waiting: VecDeque<(Position, Piece<T>)>,
    flying: VecDeque<(u64, Piece<T>)>,
    last_due: u64,
    after_a_loss: bool,
    jitter: Jitter,
    counters: Counters,
}

impl<T> Link<T> {
    /// The same seed, shape and calls give the same fates and times.
    pub(crate) fn new(direction: Direction, shape: Shape, seed: u64) -> Self {
        Self {
            direction,
            shape,
            random: StdRng::seed_from_u64(seed),
            now: 0,
            accepted: 0,
            served: 0,
            waiting: VecDeque::new(),
            flying: VecDeque::new(),
            last_due: 0,
            after_a_loss: false,
            jitter: Jitter::default(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes that wait, that in transmission among them.
    pub(crate) fn queued(&self) -> u64 {
        match self.shape.rate {
            None => 0,
            Some(_) => u64::try_from((self.accepted - self.served).div_ceil(PER_BYTE)).unwrap_or(u64::MAX),
        }
    }

    /// Decides about wire packets of these sizes that come now, in a row. The caller then hands over what is kept with
    /// [`Self::push`], in order.
    pub(crate) fn offer(&mut self, now: u64, sizes: impl Iterator<Item = u64>, fates: &mut Vec<Fate>) {
        self.advance(now);
        fates.clear();
        for bytes in sizes {
            fates.push(self.decide(bytes));
        }
    }

    fn decide(&mut self, bytes: u64) -> Fate {
        let one = Tally { packets: 1, bytes };
        self.counters.offered.add(one);
        if !self.shape.up {
            self.counters.down.add(one);
            return Fate::Down;
        }
        let queued = self.queued();
        // An empty queue takes any packet: a router has room for the one that it sends.
        if queued > 0 && queued.saturating_add(bytes) > self.shape.queue {
            self.counters.dropped.add(one);
            return Fate::Dropped;
        }
        self.accepted += Position::from(bytes) * PER_BYTE;
        self.counters.largest_queue = self.counters.largest_queue.max(self.queued());
        let chance = self.shape.loss.chance(self.after_a_loss);
        self.after_a_loss = chance > 0.0 && self.random.random_bool(chance);
        if self.after_a_loss {
            self.counters.lost.add(one);
            Fate::Lost
        } else {
            Fate::Kept(self.accepted)
        }
    }

    /// Sends packets that [`Self::offer`] kept; `end` is what it said of the last of them.
    pub(crate) fn push(&mut self, what: T, load: Tally, end: Position) {
        self.waiting.push_back((end, Piece { load, what }));
    }

    /// The next piece that has arrived by now, and when it did.
    pub(crate) fn take(&mut self, now: u64) -> Option<(u64, T)> {
        self.advance(now);
        let (due, _) = self.flying.front()?;
        if *due > now {
            return None;
        }
        let (due, piece) = self.flying.pop_front()?;
        self.counters.delivered.add(piece.load);
        Some((due, piece.what))
    }

    /// When to look again; none while nothing is under way. Never after the next arrival.
    pub(crate) fn next(&self) -> Option<u64> {
        if let Some((due, _)) = self.flying.front() {
            return Some(*due);
        }
        let (end, _) = self.waiting.front()?;
        let delay = u64::try_from(self.shape.delay.as_nanos()).unwrap_or(u64::MAX);
        Some(self.leaves(*end, self.served, self.now).saturating_add(delay))
    }

    /// Changes the link from now on. What has left already arrives as it would have.
    pub(crate) fn change(&mut self, now: u64, change: &Change) {
        self.advance(now);
        change.apply(self.direction, &mut self.shape);
        if !self.shape.up {
            for (_, piece) in self.waiting.drain(..) {
                self.counters.down.add(piece.load);
            }
            self.served = self.accepted;
        }
    }

    /// When the link has served up to `end`, if it had served up to `from` at `start`.
    fn leaves(&self, end: Position, from: Position, start: u64) -> u64 {
        match self.shape.rate {
            None => start,
            Some(rate) => {
                let nanos = end.saturating_sub(from).div_ceil(Position::from(rate));
                start.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }

    fn advance(&mut self, now: u64) {
        let (start, from) = (self.now, self.served);
        self.now = now.max(start);
        self.served = match self.shape.rate {
            None => self.accepted,
            Some(rate) => self.accepted.min(from + Position::from(rate) * Position::from(self.now - start)),
        };
        while self.waiting.front().is_some_and(|(end, _)| *end <= self.served) {
            let Some((end, piece)) = self.waiting.pop_front() else { break };
            let left = self.leaves(end, from, start);
            let extra = self.jitter.at(left, &self.shape, &mut self.random);
            let delay = u64::try_from(self.shape.delay.as_nanos()).unwrap_or(u64::MAX);
            let due = left.saturating_add(delay).saturating_add(extra).max(self.last_due);
            self.last_due = due;
            self.flying.push_back((due, piece));
        }
    }
}

/// Extra delay on straight lines between random points, uniform from 0 to the amplitude A, 2 A apart in time. A line then
/// falls by at most half a second per second, so nothing overtakes. (Extra delays drawn per packet would have to reorder
/// or, with order kept, all end up near the largest.)
#[derive(Debug, Default)]
struct Jitter {
    from: (u64, u64),
    to: (u64, u64),
}

impl Jitter {
    fn at(&mut self, time: u64, shape: &Shape, random: &mut StdRng) -> u64 {
        let amplitude = u64::try_from(shape.jitter.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        if amplitude == 0 {
            return 0;
        }
        let apart = 2 * amplitude;
        if time >= self.to.0.saturating_add(apart) {
            // Nothing came for long: on from where it was.
            self.to.0 = time;
        }
        while time >= self.to.0 {
            self.from = self.to;
            self.to = (self.from.0.saturating_add(apart), random.random_range(0..=amplitude));
        }
        let (span, gone) = (self.to.0 - self.from.0, time.saturating_sub(self.from.0));
        let part = u128::from(self.to.1.abs_diff(self.from.1)) * u128::from(gone) / u128::from(span.max(1));
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        if self.to.1 > self.from.1 { self.from.1 + part } else { self.from.1.saturating_sub(part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 1500;

    fn link(words: &str, seed: u64) -> Link<u64> {
        let mut shape = Shape::default();
        words.parse::<Change>().unwrap().apply(Direction::AToB, &mut shape);
        Link::new(Direction::AToB, shape, seed)
    }

    /// Offers so many packets, numbered, one by one.
    fn send(link: &mut Link<u64>, now: u64, numbers: std::ops::Range<u64>) -> Vec<Fate> {
        let mut all = Vec::new();
        let mut fates = Vec::new();
        for number in numbers {
            link.offer(now, [PACKET].into_iter(), &mut fates);
            if let Fate::Kept(end) = fates[0] {
                link.push(number, Tally { packets: 1, bytes: PACKET }, end);
            }
            all.append(&mut fates);
        }
        all
    }

    /// All that arrives, looked for as often as the link says.
    fn arrivals(link: &mut Link<u64>) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        while let Some(next) = link.next() {
            while let Some(arrival) = link.take(next) {
                all.push(arrival);
            }
        }
        all
    }

    #[test]
    fn packets_leave_at_the_rate_to_the_nanosecond() {
        // 1500 bytes at 100 Mbit/s are 120 us; at 7 Mbit/s they are no whole number of nanoseconds, and nothing adds up.
        for (words, rate) in [("rate=100mbit,delay=30ms", 100_000_000), ("rate=7mbit,delay=30ms", 7_000_000_u64)] {
            let mut link = link(words, 1);
            send(&mut link, 1000, 0..1000);
            let arrived = arrivals(&mut link);
            assert_eq!(arrived.len(), 1000);
            for (due, number) in arrived {
                let exact = ((number + 1) * PACKET * 8 * 1_000_000_000).div_ceil(rate);
                assert_eq!(due, 1000 + exact + 30_000_000, "packet {number} at {rate} bit/s");
            }
        }
    }

    #[test]
    fn a_link_that_was_idle_does_not_save_up_its_rate() {
        let mut link = link("rate=100mbit", 1);
        send(&mut link, 0, 0..1);
        assert_eq!(arrivals(&mut link), [(120_000, 0)]);
        send(&mut link, 10_000_000, 1..3);
        assert_eq!(arrivals(&mut link), [(10_120_000, 1), (10_240_000, 2)]);
    }

    #[test]
    fn the_queue_drops_its_tail_by_bytes() {
        let mut link = link("rate=100mbit,queue=15000B", 1);
        let fates = send(&mut link, 0, 0..20);
        assert!(fates[..10].iter().all(|f| matches!(f, Fate::Kept(_))), "{fates:?}");
        assert!(fates[10..].iter().all(|f| *f == Fate::Dropped), "{fates:?}");
        assert_eq!(link.counters().largest_queue, 15_000);
        assert_eq!(link.counters().dropped, Tally { packets: 10, bytes: 15_000 });
        // A packet's time less one nanosecond later it still does not fit; then one does, and no second.
        assert_eq!(send(&mut link, 119_999, 20..21), [Fate::Dropped]);
        let fates = send(&mut link, 120_000, 21..23);
        assert!(matches!(fates[..], [Fate::Kept(_), Fate::Dropped]), "{fates:?}");
        let numbers: Vec<u64> = arrivals(&mut link).into_iter().map(|(_, n)| n).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 21]);
    }

    #[test]
    fn a_queue_smaller_than_a_packet_still_sends_one_at_a_time() {
        let mut link = link("rate=100mbit,queue=100B", 1);
        let fates = send(&mut link, 0, 0..2);
        assert!(matches!(fates[..], [Fate::Kept(_), Fate::Dropped]), "{fates:?}");
    }

    /// Share lost, and mean length of a run of losses.
    fn losses(words: &str) -> (f64, f64) {
        const PACKETS: u32 = 1_000_000;
        let mut link = link(words, 7);
        let mut fates = Vec::new();
        let (mut lost, mut runs, mut before) = (0_u32, 0_u32, false);
        link.offer(0, (0..PACKETS).map(|_| PACKET), &mut fates);
        for fate in &fates {
            let is = *fate == Fate::Lost;
            lost += u32::from(is);
            runs += u32::from(is && !before);
            before = is;
        }
        assert_eq!(link.counters().lost.packets, u64::from(lost));
        assert_eq!(link.counters().offered.packets, u64::from(PACKETS));
        (f64::from(lost) / f64::from(PACKETS), f64::from(lost) / f64::from(runs.max(1)))
    }

    fn near(value: f64, wanted: f64, part: f64) -> bool {
        (value - wanted).abs() <= wanted * part
    }

    #[test]
    fn random_losses_have_their_share_and_come_alone() {
        assert_eq!(losses("loss=0"), (0.0, 0.0));
        let (share, run) = losses("loss=1%");
        // Five standard deviations of a million packets.
        assert!(near(share, 0.01, 0.05), "share {share}");
        assert!(near(run, 1.0 / 0.99, 0.01), "run {run}");
        let (share, _) = losses("loss=0.1%");
        assert!(near(share, 0.001, 0.16), "share {share}");
        assert_eq!(losses("loss=100%").0, 1.0);
    }

    #[test]
    fn bursts_have_their_share_and_their_length() {
        for (words, share, mean) in [("loss=0.5%,burst=8", 0.005, 8.0), ("loss=5%,burst=20", 0.05, 20.0)] {
            let (lost, run) = losses(words);
            assert!(near(lost, share, 0.15), "{words}: share {lost}");
            assert!(near(run, mean, 0.15), "{words}: run {run}");
        }
    }

    #[test]
    fn a_lost_packet_still_uses_the_link() {
        let mut link = link("rate=100mbit,loss=100%", 1);
        assert_eq!(send(&mut link, 0, 0..5), [Fate::Lost; 5]);
        assert_eq!(link.queued(), 5 * PACKET);
        link.change(0, &"loss=0".parse().unwrap());
        send(&mut link, 0, 5..6);
        assert_eq!(arrivals(&mut link), [(6 * 120_000, 5)]);
    }

    #[test]
    fn the_same_seed_gives_the_same_run_and_another_seed_another() {
        let run = |seed| {
            let mut link = link("rate=1gbit,rtt=200ms,loss=5%,burst=3,jitter=5ms,queue=1bdp", seed);
            let mut fates = Vec::new();
            for tick in 0..200 {
                fates.extend(send(&mut link, tick * 100_000, tick * 10..tick * 10 + 10));
            }
            (fates, arrivals(&mut link))
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    #[test]
    fn jitter_spreads_over_its_range_and_reorders_nothing() {
        let mut link = link("delay=20ms,jitter=5ms", 3);
        for number in 0..20_000 {
            send(&mut link, number * 100_000, number..number + 1);
        }
        let arrived = arrivals(&mut link);
        let extra: Vec<u64> = arrived.iter().map(|(due, n)| due - n * 100_000 - 20_000_000).collect();
        assert!(arrived.iter().zip(0..).all(|((_, number), expected)| *number == expected));
        assert!(arrived.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert!(extra.iter().all(|e| *e <= 5_000_000));
        let mean = extra.iter().sum::<u64>() / 20_000;
        assert!((2_000_000..3_000_000).contains(&mean), "{mean}");
        assert!(extra.iter().any(|e| *e < 500_000) && extra.iter().any(|e| *e > 4_500_000));
    }

    #[test]
    fn a_new_rate_counts_from_its_instant() {
        let mut link = link("rate=100mbit", 1);
        send(&mut link, 0, 0..3);
        // The second packet is half sent: its other half takes five times as long.
        link.change(180_000, &"rate=20mbit".parse().unwrap());
        assert_eq!(arrivals(&mut link), [(120_000, 0), (180_000 + 300_000, 1), (180_000 + 900_000, 2)]);
    }

    #[test]
    fn a_shorter_delay_does_not_let_packets_overtake() {
        let mut link = link("delay=100ms", 1);
        send(&mut link, 0, 0..1);
        link.change(0, &"delay=10ms".parse().unwrap());
        send(&mut link, 0, 1..2);
        assert_eq!(arrivals(&mut link), [(100_000_000, 0), (100_000_000, 1)]);
    }

    #[test]
    fn a_link_that_goes_down_forgets_its_queue_and_carries_again_when_up() {
        let mut link = link("rate=100mbit,delay=10ms", 1);
        send(&mut link, 0, 0..5);
        link.change(250_000, &"down".parse().unwrap());
        assert_eq!(send(&mut link, 300_000, 5..7), [Fate::Down; 2]);
        assert_eq!(link.queued(), 0);
        // Three were in the queue, one of them half sent.
        assert_eq!(link.counters().down, Tally { packets: 5, bytes: 5 * PACKET });
        link.change(400_000, &"up".parse().unwrap());
        send(&mut link, 500_000, 7..8);
        assert_eq!(arrivals(&mut link), [(10_120_000, 0), (10_240_000, 1), (10_620_000, 7)]);
    }

    #[test]
    fn all_that_came_is_accounted_for() {
        let mut link = link("rate=50mbit,queue=60kB,loss=3%,jitter=1ms", 9);
        for tick in 0..500 {
            send(&mut link, tick * 1_000_000, tick * 6..tick * 6 + 6);
        }
        let delivered = arrivals(&mut link).len();
        let c = link.counters();
        assert!(c.dropped.packets > 0 && c.lost.packets > 0, "{c:?}");
        assert_eq!(c.delivered.packets, u64::try_from(delivered).unwrap());
        let mut sum = c.delivered;
        for part in [c.lost, c.dropped, c.down] {
            sum.add(part);
        }
        assert_eq!(sum, c.offered);
        assert!(c.largest_queue <= 60_000);
    }
}
