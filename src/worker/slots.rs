use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, futures::Notified};

use crate::{model::QueueName, store::OpenQueue};

/// How much runs at once: in the whole worker, and in each queue. Limits of links and locations are the database's, because
/// several workers share them.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    state: Arc<Mutex<State>>,
    freed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    free: u32,
    used: u32,
    /// Free slots of each queue; `None` for no limit of its own.
    queues: BTreeMap<QueueName, Option<u32>>,
}

/// A slot that is taken, until dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    queue: QueueName,
}

impl Slots {
    pub(super) fn new(slots: u32, queues: impl IntoIterator<Item = (QueueName, Option<u32>)>) -> Self {
        let state = State { free: slots, used: 0, queues: queues.into_iter().collect() };
        Self { state: Arc::new(Mutex::new(state)), freed: Arc::default() }
    }

    /// The queues that have room, and how much; none when the worker has none.
    pub(super) fn open_queues(&self) -> Vec<OpenQueue> {
        let state = self.state();
        let room = |(queue, free): (&QueueName, &Option<u32>)| {
            let room = free.unwrap_or(state.free).min(state.free);
            (room > 0).then(|| OpenQueue { queue: queue.clone(), room })
        };
        state.queues.iter().filter_map(room).collect()
    }

    /// Whether some queue has no room: a slot that becomes free may open it.
    pub(super) fn is_any_full(&self) -> bool {
        let state = self.state();
        state.free == 0 || state.queues.values().any(|free| *free == Some(0))
    }

    /// Takes a slot of a queue that was open. There is one claimer, so it still is.
    pub(super) fn take(&self, queue: &QueueName) -> Slot {
        let mut state = self.state();
        state.free = state.free.saturating_sub(1);
        state.used += 1;
        if let Some(Some(free)) = state.queues.get_mut(queue) {
            *free = free.saturating_sub(1);
        }
        drop(state);
        Slot { slots: self.clone(), queue: queue.clone() }
    }

    /// Hears of every slot that becomes free from now on, polled or not. Cancel safe.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Has whoever waits for a free slot look again: something else may be claimed by now.
    pub(super) fn look_again(&self) {
        self.freed.notify_waiters();
    }

    /// How many are taken.
    pub(super) fn used(&self) -> u32 {
        self.state().used
    }

    /// Waits until nothing runs.
    pub(super) async fn all_free(&self) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Listening before looking: a slot that becomes free in between is heard of.
            freed.as_mut().enable();
            if self.state().used == 0 {
                return;
            }
            freed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        state.free += 1;
        state.used = state.used.saturating_sub(1);
        if let Some(Some(free)) = state.queues.get_mut(&self.queue) {
            *free += 1;
        }
        drop(state);
        self.slots.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Operation;

    fn queue(stem: &str) -> QueueName {
        QueueName::new(stem, Operation::DataTransfer)
    }

    #[tokio::test]
    async fn a_full_queue_leaves_room_for_the_others() {
        let (a, b) = (queue("x_a"), queue("x_b"));
        let slots = Slots::new(2, [(a.clone(), Some(1)), (b.clone(), None)]);
        let open = |queue: &QueueName, room| OpenQueue { queue: queue.clone(), room };
        assert_eq!(slots.open_queues(), [open(&a, 1), open(&b, 2)]);
        let first = slots.take(&a);
        assert_eq!(slots.open_queues(), [open(&b, 1)]);
        let second = slots.take(&b);
        assert!(slots.open_queues().is_empty());
        drop(first);
        assert_eq!(slots.open_queues(), [open(&a, 1), open(&b, 1)]);
        let others = slots.clone();
        let waiting = tokio::spawn(async move { others.all_free().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
    }
}
