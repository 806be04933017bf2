use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use super::figures::{Figures, Task, TurnEnd};
use crate::{
    store::{Store, StoreError, Wakeup},
    task::{Backoff, Gate, TaskEnd, supervise},
    telemetry::health::{Health, Heartbeat},
};

/// What one turn of a loop found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing to do.
    Idle,
    /// Something was done; more will be told or found in time.
    Worked,
    /// A limit was reached; the next turn follows at once.
    Unfinished,
    /// Workers were offered something, and may soon be through with it. Nobody tells: a commit that notifies waits for
    /// every other one that does, so completions send nothing.
    Offered,
}

/// One turn under way.
pub(super) type Turning = Pin<Box<dyn Future<Output = Result<Turn, StoreError>> + Send>>;

/// A loop of a manager.
pub(super) struct Daemon {
    pub(super) task: Task,
    pub(super) name: String,
    /// Between turns, unless something of `kinds` happens.
    pub(super) every: Duration,
    /// Between turns, whatever happens.
    pub(super) least: Duration,
    pub(super) kinds: &'static [Wakeup],
    pub(super) store: Store,
    pub(super) health: Health,
    pub(super) figures: Figures,
    pub(super) gate: Gate,
}

impl Daemon {
    /// Starts it. It ends between two turns when the gate drains, or in the middle of one when the gate stops.
    pub(super) fn spawn(self, turn: impl Fn() -> Turning + Send + Sync + 'static) -> JoinHandle<()> {
        let turn = std::sync::Arc::new(turn);
        tokio::spawn(async move {
            let pulse = self.health.heartbeat(self.name.clone(), (self.every * 10).max(LONGEST_SILENCE));
            let mut wakeups = self.store.wakeups();
            let mut delays = BACKOFF.delays();
            let mut conflicts = 0_u32;
            let mut look_again = self.every;
            while !self.gate.is_draining() {
                let next = std::sync::Arc::clone(&turn);
                let began = Instant::now();
                let running = supervise(self.name.clone(), async move { next().await });
                let Some(ended) = self.gate.unless_stopped(running).await else { break };
                self.figures.count_turn(self.task, counted(&ended));
                let rest = match ended {
                    Ok(Ok(found)) => {
                        conflicts = 0;
                        if delays.failures() > 0 {
                            tracing::info!(task = self.name, failures = delays.failures(), "works again");
                            delays.reset();
                        }
                        tell(&pulse, found);
                        look_again = if found == Turn::Offered { SOON } else { (look_again * 2).min(self.every) };
                        (found != Turn::Unfinished).then_some(look_again)
                    }
                    // Another manager did the same just now. One that is always in the way is an error like others.
                    Ok(Err(StoreError::Conflict(_) | StoreError::Duplicate(_))) if conflicts < MANY => {
                        conflicts += 1;
                        Some(SOON)
                    }
                    Ok(Err(error)) => {
                        // Once, and then only for whoever wants details.
                        if delays.failures() == 0 {
                            tracing::warn!(task = self.name, %error, "cannot work now");
                        } else {
                            tracing::debug!(task = self.name, %error, failures = delays.failures(), "cannot work yet");
                        }
                        Some(delays.next_delay())
                    }
                    Err(end) => {
                        tracing::error!(task = self.name, %end, "a turn ended badly; the loop goes on");
                        Some(delays.next_delay().max(AFTER_PANIC))
                    }
                };
                let Some(rest) = rest else { continue };
                let failing = delays.failures() > 0;
                // Where something happens all the time, some of it is left to others.
                let least = self.least.max((began.elapsed() / REST).min(LONGEST_PAUSE)).min(rest);
                tokio::select! {
                    () = tokio::time::sleep(least) => {}
                    () = self.gate.draining() => {}
                }
                let rest = rest - least;
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    // A database that fails is not asked the more often the more there is to do.
                    _ = wakeups.next(self.kinds), if !self.kinds.is_empty() && !failing => {}
                    () = self.gate.draining() => {}
                }
            }
            pulse.retire();
        })
    }
}

fn counted(ended: &Result<Result<Turn, StoreError>, TaskEnd>) -> TurnEnd {
    match ended {
        Ok(Ok(Turn::Idle)) => TurnEnd::Idle,
        Ok(Ok(Turn::Worked | Turn::Offered)) => TurnEnd::Worked,
        Ok(Ok(Turn::Unfinished)) => TurnEnd::Unfinished,
        Ok(Err(StoreError::Conflict(_) | StoreError::Duplicate(_))) => TurnEnd::Conflict,
        Ok(Err(_)) => TurnEnd::Failed,
        Err(_) => TurnEnd::Panicked,
    }
}

fn tell(pulse: &Heartbeat, found: Turn) {
    match found {
        Turn::Idle => pulse.found_nothing(),
        Turn::Worked | Turn::Unfinished | Turn::Offered => pulse.worked(),
    }
}

/// Between looks at a database that is away.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), limit: Duration::from_secs(5) };
/// A busy loop rests for this part of the time that its last turn took.
const REST: u32 = 4;
/// Most that a busy loop rests because of its own length.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// After a transaction that met another one, and after an offer; then twice as long each time.
const SOON: Duration = Duration::from_millis(20);
/// Conflicts in a row that are only bad luck.
const MANY: u32 = 20;
/// A defect that comes at every turn must not fill the log.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// A loop that says nothing for so long stands still.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Seen to fail with twice the limit.
    #[tokio::test]
    async fn a_loop_that_stands_still_makes_the_process_unhealthy() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", temp.path().join("x.db").display())).await.unwrap();
        let (health, gate, figures) = (Health::new(), Gate::new(), Figures::default());
        let daemon = |task: Task| Daemon {
            task,
            name: task.name().to_owned(),
            every: Duration::from_millis(5),
            least: Duration::ZERO,
            kinds: &[],
            store: store.clone(),
            health: health.clone(),
            figures: figures.clone(),
            gate: gate.clone(),
        };
        let born = Instant::now();
        let turned = Arc::new(tokio::sync::Notify::new());
        let goes = Arc::clone(&turned);
        let loops = [
            daemon(Task::Sweeper).spawn(|| Box::pin(std::future::pending())),
            daemon(Task::Planner).spawn(move || {
                let goes = Arc::clone(&goes);
                Box::pin(async move {
                    goes.notify_one();
                    Ok(Turn::Idle)
                })
            }),
        ];
        // Both had a turn in which they could have said something, and some time went by.
        while born.elapsed() < Duration::from_millis(200) {
            turned.notified().await;
        }
        turned.notified().await;
        let silent = LONGEST_SILENCE + Duration::from_millis(150);
        let report = health.report_at(born + silent);
        assert_eq!((report.healthy, report.stale.as_slice()), (false, &["sweeper".to_owned()][..]));
        gate.stop();
        for ended in loops {
            ended.await.unwrap();
        }
        store.close().await;
    }
}
