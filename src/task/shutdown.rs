use std::{future::Future, io, time::Duration};

use tokio::time::timeout;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::Termination;

/// Where work enters a process, and how it is told to leave: open, draining, stopped, in this order only.
///
/// While draining, what is under way may finish and nothing new begins. Stopped means that what is still under way is
/// dropped where it stands; whoever holds a resource must be safe at any instant anyway, because SIGKILL asks nobody.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    drain: CancellationToken,
    stop: CancellationToken,
    inside: TaskTracker,
}

/// Somebody inside the gate; leaving is dropping it.
#[derive(Debug)]
pub struct Pass {
    _token: TaskTrackerToken,
}

impl Gate {
    /// An open gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the first SIGINT or SIGTERM drain and the second one stop. Must be called within a runtime.
    ///
    /// # Errors
    /// The system refused the signal handler.
    pub fn obey_signals(&self) -> io::Result<()> {
        let mut termination = Termination::listen()?;
        let gate = self.clone();
        tokio::spawn(async move {
            termination.next().await;
            tracing::info!("asked to end: taking nothing new, finishing what is under way");
            gate.drain();
            termination.next().await;
            tracing::warn!("asked to end again: ending now");
            gate.stop();
        });
        Ok(())
    }

    /// Lets work in, unless the gate drains.
    pub fn enter(&self) -> Option<Pass> {
        // Counted before it is asked: whoever drains and then waits either refuses this one or waits for it.
        let token = self.inside.token();
        (!self.is_draining()).then_some(Pass { _token: token })
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        self.inside.len()
    }

    /// Closes the gate for new work.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends all work. Drains as well.
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }

    /// Whether new work is refused.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether work under way must end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until new work is refused. Cancel safe.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.drain.cancelled()
    }

    /// Waits until work under way must end. Cancel safe.
    pub fn stopped(&self) -> WaitForCancellationFuture<'_> {
        self.stop.cancelled()
    }

    /// A token that is cancelled when the gate drains, for loops that look for new work.
    pub fn drain_token(&self) -> CancellationToken {
        self.drain.child_token()
    }

    /// A token that is cancelled when the gate stops, for work under way.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Runs `work` unless the gate stops first, which gives `None` and drops the work where it stands.
    pub async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.stop.run_until_cancelled(work).await
    }

    /// After [`Gate::drain`]: waits until all have left, and stops the gate if they take longer than `limit`. Whether they
    /// left by themselves.
    pub async fn emptied(&self, limit: Duration) -> bool {
        self.drain();
        self.inside.close();
        let left = tokio::select! {
            left = timeout(limit, self.inside.wait()) => left.is_ok(),
            () = self.stopped() => self.inside.is_empty(),
        };
        if !left {
            self.stop();
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const HANG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn those_inside_may_finish_and_nobody_enters() {
        let gate = Gate::new();
        let pass = gate.enter().unwrap();
        let other = gate.clone();
        let waiting = tokio::spawn(async move { other.emptied(LONG).await });
        gate.draining().await;
        assert!(gate.enter().is_none());
        assert_eq!(gate.inside(), 1);
        assert!(!waiting.is_finished() && !gate.is_stopped());
        drop(pass);
        assert!(waiting.await.unwrap());
        assert!(!gate.is_stopped());
    }

    #[tokio::test]
    async fn who_takes_too_long_is_stopped() {
        let gate = Gate::new();
        let _pass = gate.enter().unwrap();
        assert!(!gate.emptied(Duration::from_millis(5)).await);
        assert!(gate.is_stopped());
        assert_eq!(gate.unless_stopped(std::future::pending::<()>()).await, None);
    }

    #[tokio::test]
    async fn stopping_ends_the_wait_of_a_drain() {
        let gate = Gate::new();
        let _pass = gate.enter().unwrap();
        let other = gate.clone();
        let waiting = tokio::spawn(async move { other.emptied(LONG).await });
        gate.draining().await;
        gate.stop();
        assert!(!timeout(HANG, waiting).await.expect("it waits for the limit").unwrap());
    }

    #[tokio::test]
    async fn an_empty_gate_is_empty_at_once() {
        assert!(Gate::new().emptied(Duration::ZERO).await);
    }
}
