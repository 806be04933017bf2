use std::{future::Future, ops::Add, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// A moment of this machine's life, with the time that it sleeps: `CLOCK_BOOTTIME`. What tokio and [`std::time::Instant`] go by
/// stands still while the machine is suspended, and a lease at the database does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        let time = clock_gettime(ClockId::Boottime);
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Self(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds))
    }

    /// Time since then; none where it has not come yet.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// Ends when this moment has come; at most a quarter of a second later on a machine that wakes up behind it.
    pub fn reached(self) -> impl Future<Output = ()> + Send {
        self.reached_by(Self::now)
    }

    async fn reached_by(self, now: impl Fn() -> Self + Send) {
        loop {
            let left = self.0.saturating_sub(now().0);
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Timers stand still with the machine, so none is longer.
const LOOK: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_goes_on_as_other_clocks_do() {
        let (before, monotonic) = (BootTime::now(), Instant::now());
        std::thread::sleep(Duration::from_millis(30));
        assert!(before + Duration::from_millis(30) <= BootTime::now());
        assert!(before.elapsed() >= Duration::from_millis(30));
        assert_eq!((before + Duration::from_secs(3600)).elapsed(), Duration::ZERO);
        assert!(BootTime::now() < before + monotonic.elapsed() + Duration::from_secs(3600));
    }

    /// Catches a timer for the whole time: it would still have the rest of it to go.
    #[tokio::test]
    async fn a_machine_that_slept_is_late_at_once() {
        let begun = Instant::now();
        let slept = || {
            let awake = if begun.elapsed() < Duration::from_millis(100) { 0 } else { 7200 };
            BootTime(Duration::from_secs(1000 + awake))
        };
        let over = BootTime(Duration::from_secs(1000)) + Duration::from_secs(3600);
        tokio::time::timeout(Duration::from_secs(20), over.reached_by(slept)).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn nothing_comes_early() {
        let begun = Instant::now();
        (BootTime::now() + Duration::from_millis(400)).reached().await;
        assert!(begun.elapsed() >= Duration::from_millis(390));
    }
}
