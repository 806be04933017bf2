//! Numbers as people type them.

use std::time::Duration;

/// Text that is not a number with a known unit. Its display names what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("'{0}' is not a size; write bytes with k, M, G, T (10^3) or Ki, Mi, Gi, Ti (2^10), as in 64Mi")]
    Size(String),
    /// Not a rate.
    #[error("'{0}' is not a rate; write bytes per second as in 100M, or bits per second as in 800Mbit")]
    Rate(String),
    /// Not a duration.
    #[error("'{0}' is not a duration; write a number with ms, s, m or h, as in 10m")]
    Duration(String),
}

/// A size in bytes: `4096`, `64k` (10^3), `64Ki` (2^10), `1.5G`, with an optional `B` at the end.
pub fn size(text: &str) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    scaled(trimmed.strip_suffix('B').unwrap_or(trimmed)).ok_or_else(|| UnitError::Size(text.to_owned()))
}

/// A rate in bytes per second: `100M`, `100MB/s`, `800Mbit`, `800Mbit/s`. Never 0.
pub fn rate(text: &str) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    let trimmed = trimmed.strip_suffix("/s").unwrap_or(trimmed);
    let bytes = match trimmed.strip_suffix("bit") {
        Some(bits) => scaled(bits).map(|bits| bits / 8),
        None => scaled(trimmed.strip_suffix('B').unwrap_or(trimmed)),
    };
    bytes.filter(|&b| b > 0).ok_or_else(|| UnitError::Rate(text.to_owned()))
}

/// A duration: `500ms`, `30s`, `10m`, `2h`; a bare number means seconds.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let trimmed = text.trim();
    let (number, milliseconds) = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)]
        .iter()
        .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
        .unwrap_or((trimmed, 1000));
    decimal(number, milliseconds).map(Duration::from_millis).ok_or_else(|| UnitError::Duration(text.to_owned()))
}

/// A size for people: three digits and a decimal unit.
pub fn show_size(bytes: u64) -> String {
    show(bytes, "B")
}

/// A rate for people, in bytes per second.
pub fn show_rate(bytes_per_second: u64) -> String {
    show(bytes_per_second, "B/s")
}

fn show(value: u64, unit: &str) -> String {
    const STEPS: [(u64, &str); 5] =
        [(1_000_000_000_000_000, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
    for (step, prefix) in STEPS {
        if value >= step {
            let (whole, tenths) = (value / step, value % step / (step / 100));
            return match whole {
                0..10 => format!("{whole}.{tenths:02} {prefix}{unit}"),
                10..100 => format!("{whole}.{} {prefix}{unit}", tenths / 10),
                _ => format!("{whole} {prefix}{unit}"),
            };
        }
    }
    format!("{value} {unit}")
}

fn scaled(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("K", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("", 1),
    ];
    let (number, factor) = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    decimal(number.trim_end(), factor)
}

/// `number * factor` in whole units, without floating point: sizes are exact. Digits below one unit are cut.
fn decimal(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let value = u128::from(whole.parse::<u64>().ok()?) * scale + u128::from(fraction.parse::<u64>().ok()?);
    u64::try_from(value * u128::from(factor) / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 64_000),
            ("64K", 64_000),
            ("64Ki", 65_536),
            ("64KiB", 65_536),
            ("64 MiB", 64 << 20),
            ("1.5G", 1_500_000_000),
            ("0.5Ki", 512),
            ("2T", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "B", "k", "-1", "1e3", "1..2", ".5", "5.", "1kk", "20000000T", "18446744073709551616", "ten", "+5"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_bytes_unless_they_say_bit() {
        for (text, bytes) in [
            ("100M", 100_000_000),
            ("100MB/s", 100_000_000),
            ("800Mbit", 100_000_000),
            ("1Gbit/s", 125_000_000),
            ("8bit", 1),
        ] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for text in ["0", "7bit", "fast", "bit", "100Mb"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("10m", 600_000), ("600", 600_000), ("1.5s", 1500), ("500ms", 500), ("2h", 7_200_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "m", "-1s", "1d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_340, "12.3 kB"),
            (123_456_789, "123 MB"),
            (1_999_999_999, "1.99 GB"),
            (u64::MAX, "18446 PB"),
        ] {
            assert_eq!(show_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,12}") {
            let _ = (size(&text), rate(&text), duration(&text));
        }

        #[test]
        fn whole_bytes_survive(bytes in any::<u64>()) {
            prop_assert_eq!(size(&bytes.to_string()), Ok(bytes));
        }
    }
}
