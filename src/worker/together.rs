//! Outcomes that end at the same time are written together: one transaction for all that came while the one before was
//! under way.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::{
    model::AttemptOutcome,
    store::{Recorded, Store, StoreError},
};

/// Most outcomes of one transaction.
const MOST: usize = 64;

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
            let some = self.some();
            let outcomes: Vec<_> = some.iter().map(|one| one.outcome.as_ref()).collect();
            let answers = store.finish_all(&outcomes, rand::random()).await;
            for (one, answer) in some.into_iter().zip(answers) {
                // Somebody who has given up keeps it on his disk.
                let _ = one.answer.send(answer);
            }
        }
    }

    /// The oldest, a power of two of them: statements differ with their number, and the database prepares each.
    fn some(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        waiting.retain(|one| !one.answer.is_closed());
        let count = match waiting.len().min(MOST) {
            0 => 0,
            n => 1 << n.ilog2(),
        };
        let rest = waiting.split_off(count);
        mem::replace(&mut *waiting, rest)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        // A list is whole between two statements.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn given_up() -> StoreError {
    StoreError::Unavailable("whoever was writing this outcome with others gave up".into())
}
