use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    num::NonZeroU16,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    Broker, BrokerError, DeadLetter, DeadLetterSink, DeadReason, Delivery, Figures, Hint, PublishError, Pulse,
    QueueName, Receipt, Subscription,
    figures::{Dead, Published},
};
use crate::task::Backoff;

/// Hints that one queue holds at most, as in RabbitMQ.
pub(super) const MAX_QUEUE_LENGTH: usize = 10_000;

/// Dead letters that are held at most while nobody buries them.
const MAX_DEAD: usize = 10_000;

/// Waits between calls to a sink that fails.
pub(super) const SINK_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), limit: Duration::from_secs(30) };

/// Queues within this process, for one program that is manager and worker at once. Nothing outlives the process, and nothing has to:
/// the database's rows cause new hints.
#[derive(Clone, Debug, Default)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something came in, or all is over.
    news: Notify,
    died: Notify,
    over: CancellationToken,
    figures: Figures,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<QueueName, Queue>,
    dead: VecDeque<DeadLetter>,
}

#[derive(Debug, Default)]
struct Queue {
    bodies: VecDeque<Vec<u8>>,
    /// Hints with subscribers; they count for the bound, because they may come back.
    held: usize,
}

impl MemoryBroker {
    /// Without any queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts bytes into a queue as they are, as another program would that shares a broker.
    ///
    /// # Errors
    /// As [`Broker::publish`].
    pub fn inject(&self, queue: &QueueName, body: &[u8]) -> Result<(), PublishError> {
        if self.shared.over.is_cancelled() {
            return Err(PublishError::Unavailable { queue: queue.clone(), cause: BrokerError::Closed });
        }
        let mut state = self.shared.state();
        let Some(found) = state.queues.get_mut(queue) else {
            return Err(PublishError::Unroutable { queue: queue.clone() });
        };
        if found.bodies.len() + found.held >= MAX_QUEUE_LENGTH {
            return Err(PublishError::Full { queue: queue.clone() });
        }
        found.bodies.push_back(body.to_vec());
        drop(state);
        self.shared.news.notify_waiters();
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between lock and unlock panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn declare(&self, queues: &BTreeSet<QueueName>) -> Result<(), BrokerError> {
        if self.shared.over.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let mut state = self.shared.state();
        for queue in queues {
            state.queues.entry(queue.clone()).or_default();
        }
        Ok(())
    }

    async fn publish(&self, hint: &Hint) -> Result<(), PublishError> {
        let result = self.inject(&hint.queue, &hint.to_bytes());
        self.shared.figures.count_published(match &result {
            Ok(()) => Published::Confirmed,
            Err(PublishError::Unroutable { .. }) => Published::Unroutable,
            Err(PublishError::Full { .. }) => Published::Full,
            Err(PublishError::Unconfirmed { .. }) => Published::Unconfirmed,
            Err(PublishError::Unavailable { .. }) => Published::Unavailable,
        });
        result
    }

    async fn subscribe(
        &self,
        queues: BTreeSet<QueueName>,
        slots: NonZeroU16,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        self.declare(&queues).await?;
        Ok(Box::new(MemorySubscription {
            shared: Arc::clone(&self.shared),
            queues: queues.into_iter().map(|name| (name, Arc::default())).collect(),
            slots: usize::from(slots.get()),
            turn: 0,
        }))
    }

    async fn bury(&self, sink: Arc<dyn DeadLetterSink>, stop: CancellationToken) {
        let mut delays = SINK_BACKOFF.delays();
        loop {
            let died = self.shared.died.notified();
            // The letter stays at the front until the sink took it: no other way out can lose it.
            let front = self.shared.state().dead.front().cloned();
            let Some(letter) = front else {
                tokio::select! {
                    () = died => continue,
                    () = stop.cancelled() => return,
                    () = self.shared.over.cancelled() => return,
                }
            };
            let buried = tokio::select! {
                buried = sink.bury(&letter) => buried,
                () = stop.cancelled() => return,
            };
            match buried {
                Ok(()) => {
                    delays.reset();
                    self.shared.figures.count_dead(Dead::from(&letter.reason));
                    let mut state = self.shared.state();
                    if state.dead.front() == Some(&letter) {
                        state.dead.pop_front();
                    }
                }
                Err(error) => {
                    if delays.failures() == 0 {
                        tracing::warn!(%error, "a dead letter waits in the broker");
                    } else {
                        tracing::debug!(%error, failures = delays.failures(), "a dead letter still waits");
                    }
                    let delay = delays.next_delay();
                    if stop.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn prove(&self) -> Result<(), BrokerError> {
        if self.shared.over.is_cancelled() { Err(BrokerError::Closed) } else { Ok(()) }
    }

    fn figures(&self) -> &Figures {
        &self.shared.figures
    }

    async fn close(&self) {
        self.shared.over.cancel();
        self.shared.news.notify_waiters();
    }
}

#[derive(Debug)]
struct MemorySubscription {
    shared: Arc<Shared>,
    /// Each with the hints of it that are with this subscriber.
    queues: Vec<(QueueName, Arc<AtomicUsize>)>,
    slots: usize,
    /// Where the next look begins, so that no queue starves behind a busy one.
    turn: usize,
}

impl MemorySubscription {
    fn take(&mut self) -> Option<Delivery> {
        let mut guard = self.shared.state();
        let State { queues, dead } = &mut *guard;
        for step in 0..self.queues.len() {
            let at = (self.turn + step) % self.queues.len();
            let (name, held) = &self.queues[at];
            let Some(queue) = queues.get_mut(name) else { continue };
            while held.load(Ordering::Relaxed) < self.slots
                && let Some(body) = queue.bodies.pop_front()
            {
                match Hint::from_bytes(&body, name.as_str()) {
                    Ok(hint) => {
                        queue.held += 1;
                        held.fetch_add(1, Ordering::Relaxed);
                        self.turn = at + 1;
                        self.shared.figures.count_delivered();
                        let held = Held {
                            shared: Arc::downgrade(&self.shared),
                            queue: name.clone(),
                            body: Some(body),
                            mine: Arc::clone(held),
                        };
                        return Some(Delivery { hint, receipt: Receipt::Memory(held) });
                    }
                    Err(error) => {
                        tracing::warn!(queue = %name, %error, "a message is dead");
                        let mut letter = DeadLetter::new(Some(name.to_string()), DeadReason::Undecodable(error), body);
                        letter.died = Some(SystemTime::now());
                        if dead.len() >= MAX_DEAD {
                            tracing::error!("too many dead letters are waiting to be buried; the oldest is dropped");
                            dead.pop_front();
                        }
                        dead.push_back(letter);
                        self.shared.died.notify_one();
                    }
                }
            }
        }
        None
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            if self.shared.over.is_cancelled() {
                return None;
            }
            let shared = Arc::clone(&self.shared);
            let mut news = std::pin::pin!(shared.news.notified());
            // Listening before looking: what comes in between is not missed.
            news.as_mut().enable();
            if let Some(delivery) = self.take() {
                return Some(delivery);
            }
            tokio::select! {
                () = news => {}
                () = shared.over.cancelled() => return None,
            }
        }
    }

    fn set_queues(&mut self, queues: BTreeSet<QueueName>) {
        let mut state = self.shared.state();
        let kept = std::mem::take(&mut self.queues);
        for name in queues {
            state.queues.entry(name.clone()).or_default();
            let held = kept.iter().find(|(old, _)| *old == name).map(|(_, held)| Arc::clone(held)).unwrap_or_default();
            self.queues.push((name, held));
        }
        drop(state);
        self.shared.news.notify_waiters();
    }

    fn pulse(&self) -> Pulse {
        if self.shared.over.is_cancelled() {
            Pulse { proven: None, trouble: Some(BrokerError::Closed) }
        } else {
            Pulse::now()
        }
    }
}

/// A hint with a subscriber.
#[derive(Debug)]
pub(super) struct Held {
    shared: Weak<Shared>,
    queue: QueueName,
    /// Gone once it is settled.
    body: Option<Vec<u8>>,
    mine: Arc<AtomicUsize>,
}

impl Held {
    pub(super) fn ack(mut self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        self.body = None;
        self.mine.fetch_sub(1, Ordering::Relaxed);
        if let Some(queue) = shared.state().queues.get_mut(&self.queue) {
            queue.held -= 1;
        }
        shared.figures.count_acknowledged();
        shared.news.notify_waiters();
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (Some(body), Some(shared)) = (self.body.take(), self.shared.upgrade()) else { return };
        self.mine.fetch_sub(1, Ordering::Relaxed);
        if let Some(queue) = shared.state().queues.get_mut(&self.queue) {
            queue.held -= 1;
            queue.bodies.push_front(body);
        }
        shared.figures.count_given_back();
        shared.news.notify_waiters();
    }
}
