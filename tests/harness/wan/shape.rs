use std::{str::FromStr, time::Duration};

use super::WanError;

/// What one direction of the link does to packets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Bits of IP packets per second; none is as fast as the machine goes.
    pub(crate) rate: Option<u64>,
    /// From the end of a packet's transmission to its arrival.
    pub(crate) delay: Duration,
    /// What is added to the delay at most. It wanders between 0 and this and never reorders.
    pub(crate) jitter: Duration,
    /// Bytes that wait before the link, that in transmission among them. What does not fit is dropped.
    pub(crate) queue: u64,
    /// Of packets that took their share of queue and rate.
    pub(crate) loss: Loss,
    /// A link that is down carries nothing and forgets its queue.
    pub(crate) up: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            queue: u64::MAX,
            loss: Loss::default(),
            up: true,
        }
    }
}

impl Shape {
    /// The bytes that fill the link for one round trip with the other direction alike: the usual size of a queue.
    pub(crate) fn round_trip_bytes(&self) -> u64 {
        let bits = u128::from(self.rate.unwrap_or(0)) * 2 * self.delay.as_nanos() / 1_000_000_000;
        u64::try_from(bits / 8).unwrap_or(u64::MAX)
    }
}

/// The Gilbert model (E. N. Gilbert, Bell System Technical Journal 39, 1960, with nothing surviving in its bad state):
/// a share of all packets is lost in runs of a mean length. Independent losses are a case of it, with a mean run of
/// 1 / (1 - share).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Loss {
    /// Of all packets, from 0 to 1.
    pub(crate) share: f64,
    /// Mean number of packets lost in a row; none for independent losses.
    pub(crate) burst: Option<f64>,
}

impl Loss {
    /// The chance of a loss, by whether the packet before was lost.
    pub(crate) fn chance(&self, after_a_loss: bool) -> f64 {
        match self.burst {
            _ if self.share <= 0.0 => 0.0,
            _ if self.share >= 1.0 => 1.0,
            None => self.share,
            Some(mean) if after_a_loss => 1.0 - 1.0 / mean,
            // In balance as many packets enter the bad state as leave it.
            Some(mean) => (self.share / (mean * (1.0 - self.share))).min(1.0),
        }
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From end A to end B.
    AToB,
    /// From end B to end A.
    BToA,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::AToB, Self::BToA];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::AToB => 0,
            Self::BToA => 1,
        }
    }

    /// As it is written in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AToB => "a to b",
            Self::BToA => "b to a",
        }
    }
}

/// A change of the link, written `rate=200mbit,loss=1%,ab.queue=5MB,down`. Keys without `ab.` or `ba.` mean both
/// directions.
///
/// | key | value |
/// |---|---|
/// | `rate` | `200mbit`, `1gbit`, `off` |
/// | `rtt` | `200ms`, half of it in each direction |
/// | `delay` | `100ms`, one way |
/// | `jitter` | `5ms` |
/// | `queue` | `25MB`, `2MiB`, `64k`, `off`, or `1bdp`, `0.1bdp`: parts of rate x round trip as they are then |
/// | `loss` | `1%`, `0.01` |
/// | `burst` | mean packets lost in a row, or `off` |
/// | `down`, `up` | no value |
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Change(Vec<(Option<Direction>, Setting)>);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Setting {
    Rate(Option<u64>),
    Delay(Duration),
    Jitter(Duration),
    Queue(u64),
    QueueOfRoundTrip(f64),
    Loss(f64),
    Burst(Option<f64>),
    Up(bool),
}

impl Change {
    /// The shape after the change.
    pub(crate) fn apply(&self, direction: Direction, shape: &mut Shape) {
        for (only, setting) in &self.0 {
            if only.is_some_and(|d| d != direction) {
                continue;
            }
            match *setting {
                Setting::Rate(rate) => shape.rate = rate,
                Setting::Delay(delay) => shape.delay = delay,
                Setting::Jitter(jitter) => shape.jitter = jitter,
                Setting::Queue(bytes) => shape.queue = bytes,
                Setting::QueueOfRoundTrip(part) => shape.queue = part_of(shape.round_trip_bytes(), part),
                Setting::Loss(share) => shape.loss.share = share,
                Setting::Burst(mean) => shape.loss.burst = mean,
                Setting::Up(up) => shape.up = up,
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a size of a queue, rounded; the part is checked to be finite and positive"
)]
fn part_of(bytes: u64, part: f64) -> u64 {
    // A queue that holds no packet at all would be no link.
    ((bytes as f64 * part) as u64).max(3000)
}

impl FromStr for Change {
    type Err = WanError;

    fn from_str(text: &str) -> Result<Self, WanError> {
        let mut settings = Vec::new();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (only, rest) = match word.split_once('.') {
                Some(("ab", rest)) => (Some(Direction::AToB), rest),
                Some(("ba", rest)) => (Some(Direction::BToA), rest),
                _ => (None, word),
            };
            settings.push((only, setting(rest).ok_or_else(|| WanError::Change(word.to_owned()))?));
        }
        Ok(Self(settings))
    }
}

fn setting(word: &str) -> Option<Setting> {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let or_off = |number: Option<f64>| if value == "off" { Some(None) } else { number.map(Some) };
    match key {
        "rate" if value == "off" => Some(Setting::Rate(None)),
        "rate" => rate(value).map(|r| Setting::Rate(Some(r))),
        "rtt" => time(value).map(|t| Setting::Delay(t / 2)),
        "delay" => time(value).map(Setting::Delay),
        "jitter" => time(value).map(Setting::Jitter),
        "queue" if value == "off" => Some(Setting::Queue(u64::MAX)),
        "queue" => match value.strip_suffix("bdp") {
            Some(part) => number(part).filter(|p| *p > 0.0).map(Setting::QueueOfRoundTrip),
            None => bytes(value).map(Setting::Queue),
        },
        "loss" => share(value).map(Setting::Loss),
        "burst" => or_off(number(value).filter(|b| *b >= 1.0)).map(Setting::Burst),
        "down" if value.is_empty() => Some(Setting::Up(false)),
        "up" if value.is_empty() => Some(Setting::Up(true)),
        _ => None,
    }
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0)
}

fn share(text: &str) -> Option<f64> {
    let share = match text.strip_suffix('%') {
        Some(percent) => number(percent)? / 100.0,
        None => number(text)?,
    };
    (share <= 1.0).then_some(share)
}

/// A number with one of these units.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    whole(number(digits)? * factor)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
fn whole(value: f64) -> Option<u64> {
    (0.0..9.0e18).contains(&value).then_some(value.round() as u64)
}

fn rate(text: &str) -> Option<u64> {
    let bits = scaled(text, &[("bit", 1.0), ("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)])?;
    (bits > 0).then_some(bits)
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("", 1.0), ("b", 1.0), ("k", 1e3), ("kB", 1e3), ("M", 1e6), ("MB", 1e6), ("G", 1e9), ("GB", 1e9)];
    let binary = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)];
    scaled(text, &units).or_else(|| scaled(text, &binary)).filter(|b| *b > 0)
}

/// A span such as `200ms`, `1.5s`, `300us`, `2min`.
pub(crate) fn time(text: &str) -> Option<Duration> {
    let units = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("min", 60e9)];
    if text == "0" { Some(Duration::ZERO) } else { scaled(text, &units).map(Duration::from_nanos) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> [Shape; 2] {
        let change: Change = text.parse().unwrap();
        Direction::BOTH.map(|d| {
            let mut shape = Shape::default();
            change.apply(d, &mut shape);
            shape
        })
    }

    #[test]
    fn a_change_is_read_as_a_person_writes_it() {
        let [ab, ba] =
            changed("rate=1gbit,rtt=200ms,queue=1bdp,loss=0.1%,ba.loss=0.02,ab.burst=8,ba.jitter=5ms,ba.down");
        assert_eq!(ab.rate, Some(1_000_000_000));
        assert_eq!(ab.delay, Duration::from_millis(100));
        assert_eq!(ab.queue, 25_000_000);
        assert_eq!(ab.loss, Loss { share: 0.001, burst: Some(8.0) });
        assert_eq!(ba.loss, Loss { share: 0.02, burst: None });
        assert_eq!((ab.jitter, ba.jitter), (Duration::ZERO, Duration::from_millis(5)));
        assert_eq!((ab.up, ba.up), (true, false));
        assert_eq!(changed("queue=2MiB")[0].queue, 2 << 20);
        assert_eq!(changed("queue=64k")[1].queue, 64_000);
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for wrong in ["rate", "rate=0gbit", "rate=5", "loss=101%", "loss=-1", "burst=0.5", "down=1", "delay=5", "ac.up"]
        {
            assert!(wrong.parse::<Change>().is_err(), "{wrong}");
        }
    }
}
