use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keeps to a rate by giving every block a start time (virtual scheduling, as in the generic cell rate algorithm,
/// ITU-T I.371): a block may start when those before it would have been sent at exactly that rate.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    /// No limit, or a limit in bytes per second.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|r| *r > 0), next: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be sent.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let start = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let start = (*next).max(Instant::now());
            let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate);
            *next = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            start
        };
        tokio::time::sleep_until(start.into()).await;
    }
}
