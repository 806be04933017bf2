use std::{fmt, time::Duration};

use tokio_util::sync::CancellationToken;

/// How long to wait between attempts: from `first`, doubling up to `limit`, each wait drawn between half of that and all
/// of it. Half is kept so that a retry is never immediate; the rest is drawn so that clients do not retry in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait after the first failure.
    pub first: Duration,
    /// Longest wait after any failure.
    pub limit: Duration,
}

impl Backoff {
    /// The wait after this many failures in a row (1 is the first).
    pub fn delay(&self, failures: u32) -> Duration {
        let ceiling = self.ceiling(failures);
        // The draw is on nanoseconds; u64 holds 584 years of them.
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(nanos / 2 + rand::random_range(0..=nanos - nanos / 2))
    }

    /// Starts counting failures.
    pub fn delays(self) -> Delays {
        Delays { backoff: self, failures: 0 }
    }

    fn ceiling(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.limit)
    }
}

/// The waits of one loop.
#[derive(Clone, Debug)]
pub struct Delays {
    backoff: Backoff,
    failures: u32,
}

impl Delays {
    /// Counts a failure and says how long to wait.
    pub fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.backoff.delay(self.failures)
    }

    /// Forgets the failures, after a success that deserves it.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Why [`retry`] ended without a result.
#[derive(Debug, PartialEq, Eq)]
pub enum GaveUp<E> {
    /// The caller called this error permanent, or it was the last attempt's.
    Failed(E),
    /// The token was cancelled while waiting; the last error is attached if there was one.
    Cancelled(Option<E>),
}

impl<E: fmt::Display> fmt::Display for GaveUp<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Cancelled(Some(error)) => write!(f, "cancelled; the last attempt failed: {error}"),
            Self::Cancelled(None) => f.write_str("cancelled"),
        }
    }
}

impl<E: std::error::Error> std::error::Error for GaveUp<E> {}

/// Runs `attempt` until it succeeds, `permanent` says that waiting does not help, `attempts` have failed, or `cancel`.
/// An attempt that has begun is not cut short by `cancel`; it is given the number of failures before it.
///
/// # Errors
/// See [`GaveUp`].
pub async fn retry<T, E>(
    backoff: Backoff,
    attempts: u32,
    cancel: &CancellationToken,
    permanent: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut(u32) -> Result<T, E>,
) -> Result<T, GaveUp<E>> {
    let mut delays = backoff.delays();
    if cancel.is_cancelled() {
        return Err(GaveUp::Cancelled(None));
    }
    loop {
        let error = match attempt(delays.failures()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let delay = delays.next_delay();
        if permanent(&error) || delays.failures() >= attempts {
            return Err(GaveUp::Failed(error));
        }
        if cancel.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
            return Err(GaveUp::Cancelled(Some(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), limit: Duration::from_secs(10) };
    const QUICK: Backoff = Backoff { first: Duration::from_micros(10), limit: Duration::from_micros(100) };

    #[test]
    fn waits_double_within_their_bounds() {
        for failures in (1..=12).chain([31, 32, 33, 64, 1000, u32::MAX]) {
            let ceiling = BACKOFF.first.saturating_mul(1 << (failures - 1).min(20)).min(BACKOFF.limit);
            let drawn: Vec<Duration> = (0..200).map(|_| BACKOFF.delay(failures)).collect();
            assert!(drawn.iter().all(|d| *d >= ceiling / 2 && *d <= ceiling), "{failures}: {drawn:?}");
            assert!(drawn.windows(2).any(|w| w[0] != w[1]), "{failures}: no jitter");
        }
        let huge = Backoff { first: Duration::MAX, limit: Duration::MAX };
        assert!(huge.delay(5) > Duration::from_secs(3600));
        assert_eq!(Backoff { first: Duration::ZERO, limit: Duration::ZERO }.delay(3), Duration::ZERO);
    }

    #[tokio::test]
    async fn an_attempt_is_made_again_until_it_works() {
        let cancel = CancellationToken::new();
        let result = retry(QUICK, 10, &cancel, |_: &u32| false, async |n| if n < 4 { Err(n) } else { Ok("done") });
        assert_eq!(result.await, Ok("done"));
    }

    #[tokio::test]
    async fn it_ends_at_the_last_attempt_and_at_a_permanent_error() {
        let cancel = CancellationToken::new();
        let result: Result<(), _> = retry(QUICK, 3, &cancel, |_| false, async |n| Err(n)).await;
        assert_eq!(result, Err(GaveUp::Failed(2)));
        let result: Result<(), _> = retry(QUICK, 100, &cancel, |n| *n == 5, async |n| Err(n)).await;
        assert_eq!(result, Err(GaveUp::Failed(5)));
    }

    #[tokio::test]
    async fn cancelling_ends_the_wait() {
        let cancel = CancellationToken::new();
        let inner = cancel.clone();
        let result: Result<(), _> = retry(
            QUICK,
            u32::MAX,
            &cancel,
            |_| false,
            async |n| {
                if n == 2 {
                    inner.cancel();
                }
                Err(n)
            },
        )
        .await;
        assert_eq!(result, Err(GaveUp::Cancelled(Some(2))));
        let result: Result<(), GaveUp<u32>> = retry(QUICK, 9, &cancel, |_| false, async |_| Ok(())).await;
        assert_eq!(result, Err(GaveUp::Cancelled(None)));
    }
}
