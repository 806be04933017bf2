use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keeps to a rate by giving every block a start time (virtual scheduling, as in the generic cell rate algorithm,
/// ITU-T I.371): a block may start when those before it would have been sent at exactly that rate.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: Option<u64>,
    next: Mutex<Instant>,
    // A second rate, which others keep to as well.
    shared: Option<Arc<Self>>,
}

impl Pace {
    /// No limit, or a limit in bytes per second.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let bytes_per_second = bytes_per_second.filter(|r| *r > 0);
        Self { bytes_per_second, next: Mutex::new(Instant::now()), shared: None }
    }

    /// This rate, and one that holds for several sessions together.
    pub(super) fn within(self, shared: Option<Arc<Self>>) -> Self {
        Self { shared, ..self }
    }

    /// Waits until `bytes` may be sent.
    pub(super) async fn take(&self, bytes: usize) {
        let shared = self.shared.as_ref().and_then(|shared| shared.start(bytes));
        if let Some(start) = self.start(bytes).max(shared) {
            tokio::time::sleep_until(start.into()).await;
        }
    }

    /// Gives the next block its start.
    fn start(&self, bytes: usize) -> Option<Instant> {
        let rate = self.bytes_per_second?;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(Instant::now());
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate);
        *next = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one of several sessions takes, the others wait for. Only lower bounds, which no load can break.
    #[tokio::test]
    async fn sessions_share_a_rate() {
        let begun = Instant::now();
        let shared = Arc::new(Pace::new(Some(100_000)));
        let sessions: Vec<Pace> = (0..4).map(|_| Pace::new(None).within(Some(Arc::clone(&shared)))).collect();
        for session in &sessions {
            session.take(10_000).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(300), "three others before the last");
        let own = Pace::new(Some(50_000)).within(Some(shared));
        own.take(10_000).await;
        own.take(1).await;
        assert!(begun.elapsed() >= Duration::from_millis(500), "the lower of the two rates");
        assert!(Pace::new(Some(0)).start(1).is_none(), "no limit");
    }
}
