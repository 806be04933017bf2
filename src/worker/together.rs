//! Outcomes that end at the same time are written together: one transaction for all that came while the one before was
//! under way, or within a moment.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    model::AttemptOutcome,
    store::{Recorded, Store, StoreError},
};

/// Most outcomes of one transaction.
const MOST: usize = 64;
/// How long the first one waits for others: less than its commit takes.
const GATHER: Duration = Duration::from_millis(1);

/// Writes outcomes of one worker.
#[derive(Debug, Default)]
pub(super) struct Together {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by whoever writes for all that wait.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Waiting {
    outcome: Arc<AttemptOutcome>,
    answer: oneshot::Sender<Result<Recorded, StoreError>>,
}

impl Together {
    /// Writes one, with whatever else waits. Whoever gives up waiting may leave the others without an answer: they hear
    /// that the database is not available.
    pub(super) async fn write(&self, store: &Store, outcome: Arc<AttemptOutcome>) -> Result<Recorded, StoreError> {
        let (answer, mut told) = oneshot::channel();
        self.waiting().push(Waiting { outcome, answer });
        let _turn = tokio::select! {
            biased;
            told = &mut told => return told.unwrap_or_else(|_| Err(given_up())),
            turn = self.turn.lock() => turn,
        };
        // Perhaps the one before wrote it. If not, it is among the first that wait now.
        loop {
            match told.try_recv() {
                Ok(answer) => return answer,
                Err(oneshot::error::TryRecvError::Closed) => return Err(given_up()),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            tokio::time::sleep(GATHER).await;
            let some = self.some();
            let outcomes: Vec<_> = some.iter().map(|one| one.outcome.as_ref()).collect();
            let answers = store.finish_all(&outcomes, rand::random()).await;
            for (one, answer) in some.into_iter().zip(answers) {
                // Somebody who has given up keeps it on his disk.
                let _ = one.answer.send(answer);
            }
        }
    }

    /// The oldest.
    fn some(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        waiting.retain(|one| !one.answer.is_closed());
        let count = at_once(waiting.len());
        let rest = waiting.split_off(count);
        mem::replace(&mut *waiting, rest)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // A list is whole between two statements.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of so many are written together. Statements differ with their number, and the database prepares each: every
/// number that the slots of a usual worker make, and few above.
fn at_once(waiting: usize) -> usize {
    match waiting.min(MOST) {
        few @ ..=16 => few,
        many => many - many % 16,
    }
}

fn given_up() -> StoreError {
    StoreError::Unavailable("whoever was writing this outcome with others gave up".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_of_outcomes_make_few_statements() {
        assert_eq!([0, 1, 16, 17, 40, 63, 64, 1000].map(at_once), [0, 1, 16, 16, 32, 48, 64, 64]);
    }
}
