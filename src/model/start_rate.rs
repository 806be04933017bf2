use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// How many pieces of work may start in a second, minute or hour: `100/s`, `100/m`, `100/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StartRate {
    starts: u32,
    period: Period,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    Second,
    Minute,
    Hour,
}

/// Text that is no rate of starts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a rate of starts; one looks like 100/s, 100/m or 100/h, from 1 to 1000000")]
pub struct StartRateError(pub String);

/// What is left of a rate: a bucket that fills evenly and holds one second's worth, at least one start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartTokens {
    /// Millionths of a start.
    pub micro: i64,
    /// When that was so.
    pub at: Timestamp,
}

impl StartRate {
    /// What a start costs of [`StartTokens::micro`].
    pub const COST: i64 = 1_000_000;
    const MOST: u32 = 1_000_000;

    /// The rate of a row: starts in `period_us` microseconds. `None` if it is none that text could say.
    pub fn new(starts: i64, period_us: i64) -> Option<Self> {
        let period = match period_us {
            1_000_000 => Period::Second,
            60_000_000 => Period::Minute,
            3_600_000_000 => Period::Hour,
            _ => return None,
        };
        let starts = u32::try_from(starts).ok().filter(|s| (1..=Self::MOST).contains(s))?;
        Some(Self { starts, period })
    }

    /// Starts in a period.
    pub const fn starts(self) -> u32 {
        self.starts
    }

    /// The period in microseconds.
    pub const fn period_us(self) -> i64 {
        match self.period {
            Period::Second => 1_000_000,
            Period::Minute => 60_000_000,
            Period::Hour => 3_600_000_000,
        }
    }

    /// A full bucket.
    pub fn full(self, now: Timestamp) -> StartTokens {
        StartTokens { micro: self.capacity(), at: now }
    }

    /// What is there at `now`. After a clock was set back it is full, at the price of one burst: what is kept until
    /// the old time comes again would stop everything.
    #[must_use]
    pub fn refill(self, left: StartTokens, now: Timestamp) -> StartTokens {
        if left.at > now {
            return self.full(now);
        }
        let elapsed_us = i128::from(now.micros().saturating_sub(left.at.micros()));
        let gained = elapsed_us * i128::from(self.starts) * i128::from(Self::COST) / i128::from(self.period_us());
        let micro = (i128::from(left.micro.max(0)) + gained).min(i128::from(self.capacity()));
        // The capacity is an i64, and so is what is not above it.
        StartTokens { micro: i64::try_from(micro).unwrap_or(i64::MAX), at: now }
    }

    fn capacity(self) -> i64 {
        (i64::from(self.starts) * 1_000_000 / self.period_us()).max(1) * Self::COST
    }
}

impl fmt::Display for StartRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = match self.period {
            Period::Second => 's',
            Period::Minute => 'm',
            Period::Hour => 'h',
        };
        write!(f, "{}/{period}", self.starts)
    }
}

impl FromStr for StartRate {
    type Err = StartRateError;

    fn from_str(text: &str) -> Result<Self, StartRateError> {
        let wrong = || StartRateError(text.to_owned());
        let (starts, period) = text.split_once('/').ok_or_else(wrong)?;
        let period = match period {
            "s" => Period::Second,
            "m" => Period::Minute,
            "h" => Period::Hour,
            _ => return Err(wrong()),
        };
        if starts.is_empty() || !starts.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let starts = starts.parse().ok().filter(|s| (1..=Self::MOST).contains(s)).ok_or_else(wrong)?;
        Ok(Self { starts, period })
    }
}

impl From<StartRate> for String {
    fn from(rate: StartRate) -> Self {
        rate.to_string()
    }
}

impl TryFrom<String> for StartRate {
    type Error = StartRateError;

    fn try_from(text: String) -> Result<Self, StartRateError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> StartRate {
        text.parse().unwrap()
    }

    #[test]
    fn rates_are_read_as_they_are_printed() {
        for text in ["1/s", "100/m", "1000000/h"] {
            assert_eq!(rate(text).to_string(), text);
            let rate = rate(text);
            assert_eq!(StartRate::new(rate.starts().into(), rate.period_us()), Some(rate));
        }
        for text in ["", "100", "/s", "0/s", "-1/s", "+1/s", "1.5/s", "1/d", "1/S", " 1/s", "1000001/s", "1/s/s"] {
            assert!(text.parse::<StartRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_bucket_fills_evenly_up_to_a_second_of_starts() {
        let start = Timestamp::from_micros(5_000_000_000);
        let later = |us: i64| Timestamp::from_micros(start.micros() + us);
        let empty = StartTokens { micro: 0, at: start };
        assert_eq!(rate("100/s").refill(empty, later(10_000)).micro, StartRate::COST);
        assert_eq!(rate("100/s").refill(empty, later(i64::MAX / 2)).micro, 100 * StartRate::COST);
        assert_eq!(rate("60/m").refill(empty, later(500_000)).micro, StartRate::COST / 2);
        assert_eq!(rate("1/h").refill(empty, later(3_600_000_000)).micro, StartRate::COST);
        assert_eq!(rate("1/h").refill(empty, later(36_000_000_000)).micro, StartRate::COST, "an idle day is no burst");
        let back = later(-3_600_000_000);
        assert_eq!(rate("100/s").refill(empty, back), rate("100/s").full(back));
    }
}
