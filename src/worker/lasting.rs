//! Tasks that the whole worker relies on. A defect in one turn of such a task must not end it silently: the worker would
//! lose its name, or keep outcomes for ever.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::task::{TaskEnd, supervise};

/// A task that is begun again after a panic, until it returns or is ended.
#[derive(Debug)]
pub(super) struct Lasting {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Lasting {
    /// Runs what `task` makes, and `pause` after each panic what it makes then.
    pub(super) fn start<F>(name: String, pause: Duration, task: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let handle = tokio::spawn(async move {
            loop {
                let mut running = supervise(name.clone(), task());
                let ended = tokio::select! {
                    ended = &mut running => ended,
                    () = stopped.cancelled() => {
                        running.abort();
                        // Nothing of it happens any more once this is over.
                        let _ = running.await;
                        return;
                    }
                };
                match ended {
                    Ok(()) | Err(TaskEnd::Aborted { .. }) => return,
                    Err(end) => tracing::error!(task = name, %end, "a task ended badly; it begins again"),
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stopped.cancelled() => return,
                }
            }
        });
        Self { stop, handle }
    }

    /// Ends it at its next await, and waits for that.
    pub(super) async fn end(self) {
        self.stop.cancel();
        // It only waits for what is supervised.
        let _ = self.handle.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_no_task_that_is_relied_on() {
        let turns = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&turns);
        let alive = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&alive);
        let task = Lasting::start("clumsy".into(), Duration::from_millis(1), move || {
            let (turns, told) = (Arc::clone(&counted), Arc::clone(&told));
            async move {
                assert!(turns.fetch_add(1, Ordering::SeqCst) >= 2, "a planted panic");
                told.notify_one();
                std::future::pending().await
            }
        });
        alive.notified().await;
        assert_eq!(turns.load(Ordering::SeqCst), 3);
        task.end().await;
        assert_eq!(Arc::strong_count(&alive), 1, "nothing of it is left");
    }

    #[tokio::test]
    async fn what_returns_is_not_begun_again() {
        let turns = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&turns);
        let task = Lasting::start("short".into(), Duration::ZERO, move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async {}
        });
        task.handle.await.unwrap();
        assert_eq!(turns.load(Ordering::SeqCst), 1);
    }
}
