//! Bytes, rates and times in one kind of number.
//!
//! Rates are bytes per second as `f64`: products of a rate and a time overflow integers of nanoseconds, and 53 bits are exact for
//! every window that fits a machine.

use std::time::Duration;

/// Bytes as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "windows and counts are far below 2^53, and a rate is an estimate")]
pub(super) fn real(bytes: u64) -> f64 {
    bytes as f64
}

/// Back to whole bytes: nothing below zero, nothing that is not a number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates, and that is wanted")]
pub(super) fn whole(bytes: f64) -> u64 {
    bytes.max(0.0) as u64
}

/// What `rate` carries in `time`, in bytes.
pub(super) fn carried(rate: f64, time: Duration) -> f64 {
    rate * time.as_secs_f64()
}
