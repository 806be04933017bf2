//! The controller on model links, at a tenth of the rate for which it is meant, with a tenth of everything that is counted in
//! bytes: the bandwidth-delay product is 2.5 MB, the first window 52 KiB, and a job of 100 MiB is as long as one of 1 GiB at 1 Gbit/s.

use super::sim::{Factory, Link, Outcome, Simulation};
use super::*;

const LINK: Link = Link { rate: 12.5e6, rtt: 0.2, queue: 1.0, loss: 0.0, burst: 1.0, jitter: 0.0, changes: Vec::new() };

const JOB: u64 = 100 << 20;

/// A tenth of the 512 KiB of a job.
const START: u64 = 52 << 10;

/// Seconds that belong to the ramp.
const RAMP: f64 = 3.0;

/// Of the link's losses and of the times of the probes.
const SEED: u64 = 7;

/// The same probes at the same times in each run.
#[derive(Clone, Copy, Debug)]
struct Seeded {
    remembered: Option<Remembered>,
    seed: u64,
}

impl ControllerFactory for Seeded {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let limits = Limits { start: START, cap: 192 << 20 };
        // Xorshift needs many bits that are set, or begins with small numbers.
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Box::new(ModelController(Model::new(limits, self.remembered, seed, now, mtu)))
    }
}

fn ours(seed: u64) -> Factory {
    Arc::new(Seeded { remembered: None, seed })
}

fn remembering(rate: u64, seed: u64) -> Factory {
    Arc::new(Seeded { remembered: Some(Remembered { rate, min_rtt: Duration::from_millis(200) }), seed })
}

fn run(link: &Link, factory: &Factory) -> Outcome {
    let mut simulation = Simulation::new(link.clone(), SEED);
    simulation.add(factory, 0.0, JOB);
    let outcome = simulation.run(60.0).remove(0);
    assert_eq!(outcome.failed, None, "{link:?}");
    outcome
}

fn share(link: &Link, outcome: &Outcome) -> f64 {
    units::real(JOB) / outcome.took.expect("it ended in time") / link.rate
}

fn dropped(outcome: &Outcome, ramp: bool) -> f64 {
    outcome.drops.iter().filter(|drop| (drop.0 < RAMP) == ramp).map(|drop| units::real(drop.1)).sum()
}

/// Seen to fail with quinn's CUBIC (not done in a minute at 0.1 %) and with startup's growth at a tenth (0.54 of the link).
#[test]
fn random_loss_leaves_the_rate_alone() {
    for (loss, least, each) in [(0.0, 0.74, 0.92), (0.001, 0.74, 0.92), (0.01, 0.70, 0.90)] {
        let link = Link { loss, ..LINK };
        let outcome = run(&link, &ours(SEED));
        let share = share(&link, &outcome);
        let slow = outcome.seconds[5..outcome.seconds.len() - 1].iter().copied().min().unwrap();
        let slow = units::real(slow) / link.rate;
        assert!(share > least, "loss {loss}: {share:.3} of the link");
        assert!(slow > each, "loss {loss}: {slow:.3} of the link in a second");
    }
}

/// Seen to fail with the alarm of startup left out (1.22 of a bandwidth-delay product dropped), and with loss ignored (1.13, and
/// 2.5 % later).
#[test]
fn a_short_queue_is_not_flooded() {
    for loss in [0.0, 0.001] {
        let link = Link { queue: 0.1, loss, ..LINK };
        let outcome = run(&link, &ours(SEED));
        let ramp = dropped(&outcome, true) / link.product();
        let later = dropped(&outcome, false) / units::real(JOB);
        assert!(share(&link, &outcome) > 0.70, "{:.3} of the link", share(&link, &outcome));
        // Ten packets are a larger part of this queue than of one at 1 Gbit/s, where the ramp drops 0.6.
        assert!(ramp < 0.85, "{ramp:.2} of a product dropped in the ramp");
        assert!(later < 0.02, "{later:.4} dropped after the ramp");
    }
}

/// Seen to fail with quinn's CUBIC (not done in a minute) and with startup's growth at a tenth (0.54 of the link).
#[test]
fn bursts_of_loss_and_jitter_are_taken_for_what_they_are() {
    for link in [Link { loss: 0.005, burst: 8.0, ..LINK }, Link { jitter: 0.005, ..LINK }] {
        let outcome = run(&link, &ours(SEED));
        assert!(share(&link, &outcome) > 0.72, "{link:?}: {:.3} of the link", share(&link, &outcome));
    }
}

/// Down to a fifth and back again. Seen to fail with as long a wait for the next probe after a fall as ever (0.69).
#[test]
fn the_rate_is_followed_down_and_up() {
    let link = Link { changes: vec![(4.0, 2.5e6), (8.0, 12.5e6)], ..LINK };
    let outcome = run(&link, &ours(SEED));
    let could = 4.0 * 12.5e6 + 4.0 * 2.5e6 + (outcome.took.unwrap() - 8.0) * 12.5e6;
    let used = units::real(JOB) / could;
    assert!(used > 0.72, "{used:.3} of what the link could carry");
}

/// A link that gives a fifth for good is still full, so goodput shows nothing; the queue does. Seen to fail with an estimate
/// that is never lowered (in 18 seconds of 20).
#[test]
fn a_fallen_rate_leaves_no_queue_behind() {
    let slow = 2.5e6;
    let link = Link { changes: vec![(4.0, slow)], ..LINK };
    let outcome = run(&link, &ours(SEED));
    let stood =
        outcome.standing[10..30].iter().map(|&bytes| units::real(bytes) / slow).filter(|&wait| wait > 0.2).count();
    assert!(stood < 5, "a queue of more than 0.2 s stood in {stood} seconds of 20");
    let carried: u64 = outcome.seconds[10..30].iter().sum();
    assert!(units::real(carried) / 20.0 > 0.9 * slow, "{carried} bytes in 20 s");
}

/// A policer: no queue to speak of, and all that is too much is lost. Seen to fail with loss ignored (15 % dropped).
#[test]
fn loss_of_its_own_doing_is_answered() {
    let link = Link { queue: 0.02, ..LINK };
    let outcome = run(&link, &ours(SEED));
    let later = dropped(&outcome, false) / units::real(JOB);
    assert!(share(&link, &outcome) > 0.6, "{:.3} of the link", share(&link, &outcome));
    assert!(later < 0.02, "{later:.4} dropped after the ramp");
}

#[test]
fn bytes_move_soon_after_an_outage() {
    for down in [1.0, 10.0] {
        let link = Link { changes: vec![(4.0, 0.0), (4.0 + down, 12.5e6)], ..LINK };
        let outcome = run(&link, &ours(SEED));
        let back = units::whole(4.0 + down);
        let back = usize::try_from(back).unwrap();
        let moved: u64 = outcome.seconds[back..back + 5].iter().sum();
        assert!(moved > 10 << 20, "{moved} bytes in the five seconds after {down} s");
    }
}

#[test]
fn a_remembered_path_starts_sooner_and_another_path_is_not_flooded() {
    let fresh = run(&LINK, &ours(SEED)).took.unwrap();
    let known = run(&LINK, &remembering(12_000_000, SEED));
    assert!(known.took.unwrap() < fresh - 0.3, "{known:?}, {fresh} s without memory");
    assert!(share(&LINK, &known) > 0.82, "{:.3} of the link", share(&LINK, &known));
    // The link is a quarter of what it was.
    let link = Link { rate: 12.5e6 / 4.0, queue: 0.5, ..LINK };
    let wrong = run(&link, &remembering(12_000_000, SEED));
    assert!(dropped(&wrong, true) < 2.0 * link.product(), "{} dropped", dropped(&wrong, true));
    assert!(share(&link, &wrong) > 0.8, "{:.3} of the link", share(&link, &wrong));
}

/// The part of the first of two jobs, of seconds 10 to 25: the mean of three runs.
fn part_of_the_first(start: f64) -> f64 {
    let parts = [0, 1, 2].map(|run| {
        let seed = SEED + 1000 * run;
        let mut simulation = Simulation::new(LINK, seed);
        simulation.add(&ours(seed), 0.0, 3 * JOB);
        simulation.add(&ours(seed + 100), start, 3 * JOB);
        let outcomes = simulation.run(25.5);
        let sum = |outcome: &Outcome| units::real(outcome.seconds[10..25].iter().sum::<u64>());
        sum(&outcomes[0]) / (sum(&outcomes[0]) + sum(&outcomes[1]))
    });
    parts.iter().sum::<f64>() / 3.0
}

#[test]
fn two_jobs_share_the_link() {
    let part = part_of_the_first(0.0);
    assert!((0.4..0.6).contains(&part), "{part:.3} for the first");
}

/// Single runs lie between 0.43 and 0.74: the later one comes up by its probes, and some find the queue of the other. Seen to fail
/// with startup's growth at a tenth (0.74 for the first).
#[test]
fn a_later_job_comes_to_share_the_link() {
    let part = part_of_the_first(4.0);
    assert!((0.3..0.7).contains(&part), "{part:.3} for the first");
}

/// CUBIC fills the queue and backs off by its own drops; it keeps its part.
#[test]
fn cubic_keeps_its_part_beside_it() {
    let cubic: Factory = Arc::new(quinn_proto::congestion::CubicConfig::default());
    let mut simulation = Simulation::new(LINK, SEED);
    simulation.add(&cubic, 0.0, JOB);
    simulation.add(&ours(SEED), 0.0, JOB);
    let outcomes = simulation.run(13.0);
    let part = |outcome: &Outcome| units::real(outcome.seconds[2..12].iter().sum::<u64>()) / 10.0 / LINK.rate;
    assert!(part(&outcomes[0]) > 0.15, "{:.3} for CUBIC", part(&outcomes[0]));
    assert!(part(&outcomes[1]) > 0.15, "{:.3} for ours", part(&outcomes[1]));
}
