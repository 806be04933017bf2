//! The outbox on its way to the broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use uuid::Uuid;

use super::turns::Turn;
use crate::{
    broker::{self, Broker, BrokerError, PublishError},
    store::{Hint, Store, StoreError},
};

/// Publishes hints, many at once.
#[derive(Debug)]
pub(super) struct Relay {
    broker: Arc<dyn Broker>,
    /// How long a turn may publish. On PostgreSQL its hints are locked so long, and the database ends a transaction that is
    /// idle for 60 s.
    limit: Duration,
    memory: Mutex<Memory>,
}

/// What a relay knows from its earlier turns.
#[derive(Debug)]
struct Memory {
    /// Whether the last turn could publish; only changes are told.
    works: bool,
    /// Queues that gave no answer, and when they are asked again.
    silent: BTreeMap<String, Instant>,
    /// Until when a broker that nobody reached is left alone.
    away: Option<Instant>,
    /// When old hints were last removed.
    purged: Option<Instant>,
}

/// What a turn does with one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// All its hints are published.
    Everything,
    /// It was silent: one hint shows whether it still is.
    Once,
    /// It is left alone.
    Nothing,
}

/// What the publishes of one turn share.
#[derive(Debug)]
struct TurnState {
    asks: BTreeMap<String, Ask>,
    /// Hints that were handed to the broker, with their queues, until its answer.
    begun: BTreeMap<i64, String>,
    /// Whether the broker could not be reached: what was not begun is not tried.
    is_away: bool,
}

/// What became of a hint in one turn.
#[derive(Debug)]
enum Told {
    /// The broker has it.
    Sent,
    /// It was tried in vain.
    Failed(String),
    /// Its queue is left alone.
    Silent,
    /// The broker is away, and was not asked.
    Left,
}

/// First one hint of each queue, then a second one of each: a queue with many hints does not hold up the others. Behind the
/// first [`TELL`] of a queue there is none: whoever hears of one looks until nothing is left.
fn in_turns(hints: &[Hint]) -> Vec<&Hint> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut ordered: Vec<_> = hints
        .iter()
        .map(|hint| {
            let place = places.entry(hint.queue.to_string()).or_default();
            *place += 1;
            (*place, hint)
        })
        .collect();
    ordered.retain(|(place, _)| *place <= TELL);
    ordered.sort_by_key(|(place, _)| *place);
    ordered.into_iter().map(|(_, hint)| hint).collect()
}

/// What a hint says that was not sent because its queue did not answer another one.
const SILENT: &str = "its queue did not answer; it is asked again later";
/// What a hint says whose turn was over before its answer came.
const LATE: &str = "no answer came before the turn was over";

impl Relay {
    pub(super) fn new(broker: Arc<dyn Broker>) -> Self {
        Self::with_limit(broker, TURN)
    }

    fn with_limit(broker: Arc<dyn Broker>, limit: Duration) -> Self {
        let memory = Memory { works: true, silent: BTreeMap::new(), away: None, purged: None };
        Self { broker, limit, memory: Mutex::new(memory) }
    }

    /// One batch: published, confirmed, marked. A crash between the last two publishes it again, which is allowed. A queue
    /// that gives no answer costs a turn one wait, and the next turns nothing.
    pub(super) async fn turn(&self, store: &Store, keep_sent: Duration) -> Result<Turn, StoreError> {
        self.purge(store, keep_sent).await?;
        if self.memory().away.is_some_and(|until| until > Instant::now()) {
            return Ok(Turn::Idle);
        }
        let mut batch = store.unsent(BATCH).await?;
        let hints = batch.hints().to_vec();
        if hints.is_empty() {
            return Ok(Turn::Idle);
        }
        let until = tokio::time::Instant::now() + self.limit;
        // The broker knows each queue once somebody named it; a name more costs nothing.
        let names: BTreeSet<_> =
            hints.iter().filter_map(|h| broker::QueueName::new(&h.queue.to_string()).ok()).collect();
        match tokio::time::timeout(self.limit / 2, self.broker.declare(&names)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "queues could not be made yet"),
            Err(_) => tracing::debug!("queues could not be made yet: the broker does not answer"),
        }
        let state = Mutex::new(TurnState { asks: self.plan(&hints), begun: BTreeMap::new(), is_away: false });
        let publishing: Vec<_> = in_turns(&hints).into_iter().map(|hint| self.publish(hint, &state)).collect();
        let mut answers = stream::iter(publishing).buffer_unordered(AT_ONCE);
        let full = hints.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX);
        let (mut sent, mut trouble) = (0u64, None);
        let mut told_queues = BTreeSet::new();
        while let Ok(Some((id, told))) = tokio::time::timeout_at(until, answers.next()).await {
            let queue = state.lock().unwrap_or_else(PoisonError::into_inner).begun.remove(&id);
            match told {
                Told::Sent => {
                    batch.mark_sent(id);
                    sent += 1;
                    if let Some(queue) = queue {
                        self.memory().silent.remove(&queue);
                        told_queues.insert(queue);
                    }
                }
                Told::Failed(error) => {
                    batch.note_failure(id, error.clone());
                    trouble = Some(error);
                }
                Told::Silent => {
                    // Behind the others, if these may not all be in this batch; without need nothing is written.
                    if full {
                        batch.note_failure(id, SILENT);
                    }
                    trouble = trouble.or_else(|| Some(SILENT.to_owned()));
                }
                Told::Left => {}
            }
        }
        drop(answers);
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let tried: BTreeSet<_> = in_turns(&hints).into_iter().map(|hint| hint.id).collect();
        for hint in hints.iter().filter(|hint| !tried.contains(&hint.id)) {
            let queue = hint.queue.to_string();
            let is_silent = state.asks.get(&queue) == Some(&Ask::Nothing) || state.begun.values().any(|q| *q == queue);
            if told_queues.contains(&queue) {
                batch.mark_sent(hint.id);
            } else if full && is_silent {
                // Behind the others, like those that were tried.
                batch.note_failure(hint.id, SILENT);
            }
        }
        self.memory().away = (state.is_away && sent == 0).then(|| Instant::now() + AWAY);
        // What was not begun stays as it was.
        for (id, queue) in state.begun {
            batch.note_failure(id, LATE);
            self.hush(queue);
            trouble = trouble.or_else(|| Some(LATE.to_owned()));
        }
        batch.settle().await?;
        let worked = std::mem::replace(&mut self.memory().works, trouble.is_none());
        match trouble {
            None => {
                if !worked {
                    tracing::info!("the broker takes all hints again");
                }
                Ok(if full { Turn::Unfinished } else { Turn::Worked })
            }
            Some(error) => {
                if worked {
                    tracing::warn!(
                        error,
                        "the broker does not take all hints; they wait, and workers find work by looking"
                    );
                }
                // Not at once: the same broker would be asked again and again.
                Ok(if sent > 0 { Turn::Worked } else { Turn::Idle })
            }
        }
    }

    /// Removes old hints at its own pace: an outbox in which something always waits must not grow for ever.
    async fn purge(&self, store: &Store, keep_sent: Duration) -> Result<(), StoreError> {
        if self.memory().purged.is_some_and(|at| at.elapsed() < PURGE_EVERY) {
            return Ok(());
        }
        let gone = store.purge_outbox(keep_sent, PURGE).await?;
        // A full purge has left some.
        let is_done = gone < u64::from(PURGE);
        self.memory().purged = is_done.then(Instant::now);
        Ok(())
    }

    /// What is asked of each queue in this turn.
    fn plan(&self, hints: &[Hint]) -> BTreeMap<String, Ask> {
        let memory = self.memory();
        let ask = |queue: &String| match memory.silent.get(queue) {
            None => Ask::Everything,
            Some(until) if *until <= Instant::now() => Ask::Once,
            Some(_) => Ask::Nothing,
        };
        hints.iter().map(|hint| hint.queue.to_string()).map(|queue| (queue.clone(), ask(&queue))).collect()
    }

    /// A queue gave no answer.
    fn hush(&self, queue: String) {
        self.memory().silent.insert(queue, Instant::now() + QUIET);
    }

    /// The hint's row, and what became of it.
    async fn publish(&self, hint: &Hint, state: &Mutex<TurnState>) -> (i64, Told) {
        let name = hint.queue.to_string();
        let message = match broker::QueueName::new(&name) {
            Ok(queue) => broker::Hint { id: u128::try_from(hint.id).map(Uuid::from_u128).unwrap_or_default(), queue },
            Err(error) => return (hint.id, Told::Failed(error.to_string())),
        };
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.is_away {
                return (hint.id, Told::Left);
            }
            match state.asks.get(&name) {
                Some(Ask::Nothing) => return (hint.id, Told::Silent),
                Some(Ask::Once) => {
                    state.asks.insert(name.clone(), Ask::Nothing);
                }
                Some(Ask::Everything) | None => {}
            }
            state.begun.insert(hint.id, name.clone());
        }
        let published = self.broker.publish(&message).await;
        if let Err(PublishError::Unconfirmed { cause, .. } | PublishError::Unavailable { cause, .. }) = &published
            && matches!(cause, BrokerError::Timeout { .. } | BrokerError::NotReady { .. })
        {
            // The rest of it would wait as long, one lane after the other.
            state.lock().unwrap_or_else(PoisonError::into_inner).asks.insert(name.clone(), Ask::Nothing);
            self.hush(name);
        }
        if let Err(PublishError::Unavailable { cause: BrokerError::Unreachable { .. }, .. }) = &published {
            state.lock().unwrap_or_else(PoisonError::into_inner).is_away = true;
        }
        (hint.id, published.map_or_else(|error| Told::Failed(error.to_string()), |()| Told::Sent))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where there is no broker, nobody reads hints: what is older than `age` is settled, so that the table does not grow.
pub(super) async fn drop_unread(store: &Store, age: Duration) -> Result<Turn, StoreError> {
    let mut batch = store.unsent(BATCH).await?;
    let ids: Vec<_> = batch.hints().iter().map(|hint| hint.id).collect();
    let full = ids.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX);
    for id in ids {
        batch.mark_sent(id);
    }
    batch.settle().await?;
    store.purge_outbox(age, PURGE).await?;
    Ok(if full { Turn::Unfinished } else { Turn::Idle })
}

/// Hints in one transaction.
const BATCH: u32 = 200;
/// Of these at most so many of one queue are published; the others say the same.
const TELL: usize = 8;
/// Of these under way to the broker at once.
const AT_ONCE: usize = 64;
/// Old hints that go in one turn.
const PURGE: u32 = 5000;
/// Between two looks for old hints.
const PURGE_EVERY: Duration = Duration::from_secs(30);
/// For publishing in one turn.
const TURN: Duration = Duration::from_secs(25);
/// How long a queue that gave no answer is left alone.
const QUIET: Duration = Duration::from_secs(30);
/// How long a broker that nobody reached is left alone, however many new hints there are.
const AWAY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::{
        num::NonZeroU16,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use async_trait::async_trait;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        broker::{DeadLetterSink, Figures, MemoryBroker, QueueName, Subscription},
        model::topology::Topology,
        store::Apply,
    };

    /// Takes hints of all queues but one, which never answers. It may be away as a whole.
    #[derive(Debug, Default)]
    struct Leaderless {
        asked: AtomicUsize,
        taken: AtomicUsize,
        is_away: AtomicBool,
        inner: MemoryBroker,
    }

    #[async_trait]
    impl Broker for Leaderless {
        async fn declare(&self, _: &BTreeSet<QueueName>) -> Result<(), BrokerError> {
            Ok(())
        }

        async fn publish(&self, hint: &broker::Hint) -> Result<(), PublishError> {
            if self.is_away.load(Ordering::SeqCst) {
                self.asked.fetch_add(1, Ordering::SeqCst);
                let cause = BrokerError::Unreachable { address: "nowhere".into(), detail: "refused".into() };
                return Err(PublishError::Unavailable { queue: hint.queue.clone(), cause });
            }
            if hint.queue.as_str().starts_with("there") {
                self.taken.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            self.asked.fetch_add(1, Ordering::SeqCst);
            std::future::pending().await
        }

        async fn subscribe(
            &self,
            queues: BTreeSet<QueueName>,
            slots: NonZeroU16,
        ) -> Result<Box<dyn Subscription>, BrokerError> {
            self.inner.subscribe(queues, slots).await
        }

        async fn bury(&self, sink: Arc<dyn DeadLetterSink>, stop: CancellationToken) {
            self.inner.bury(sink, stop).await;
        }

        async fn prove(&self) -> Result<(), BrokerError> {
            Ok(())
        }

        fn figures(&self) -> &Figures {
            self.inner.figures()
        }

        async fn close(&self) {
            self.inner.close().await;
        }
    }

    const TOPOLOGY: &str = "[[site]]\nname = \"here\"\nshort_name = \"here\"\n\
        [[site]]\nname = \"there\"\nshort_name = \"there\"\n\
        [[location]]\nsite = \"here\"\nname = \"a\"\ntype = \"buffer\"\n\
        [[location]]\nsite = \"there\"\nname = \"b\"\ntype = \"buffer\"\n";

    async fn add(store: &Store, location: &str, count: usize) {
        let mut tx = store.write().await.unwrap();
        for n in 0..count {
            let text = format!(
                "INSERT INTO outbox (location_id, operation, work_id, priority) \
                 SELECT id, 'data_transfer', {n}, 4 FROM data_location WHERE name = '{location}'"
            );
            tx.execute(text, &[]).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn count(store: &Store, what: &str) -> i64 {
        let mut tx = store.read().await.unwrap();
        tx.row(format!("SELECT count(*) AS n FROM outbox WHERE {what}"), &[]).await.unwrap().unwrap().int("n").unwrap()
    }

    #[tokio::test]
    async fn a_broker_that_is_away_is_asked_rarely_and_costs_few_writes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        store.apply_topology(&Topology::parse(TOPOLOGY).unwrap(), "test", Apply::Now).await.unwrap();
        let broker = Arc::new(Leaderless::default());
        broker.is_away.store(true, Ordering::SeqCst);
        let relay = Relay::with_limit(Arc::clone(&broker) as Arc<dyn Broker>, TURN);
        add(&store, "b", 150).await;
        let keep = Duration::from_secs(3600);
        for _ in 0..3 {
            relay.turn(&store, keep).await.unwrap();
        }
        let asked = broker.asked.load(Ordering::SeqCst);
        assert!((1..=AT_ONCE).contains(&asked), "{asked}: no second turn, and nothing behind the first refusal");
        assert_eq!(count(&store, "tries > 0").await, i64::try_from(asked).unwrap(), "only what was tried says so");
        broker.is_away.store(false, Ordering::SeqCst);
        relay.memory().away = Some(Instant::now());
        relay.turn(&store, keep).await.unwrap();
        assert_eq!(count(&store, "sent_at IS NULL").await, 0, "it is back");
    }

    #[tokio::test]
    async fn a_queue_that_never_answers_costs_one_wait_and_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        store.apply_topology(&Topology::parse(TOPOLOGY).unwrap(), "test", Apply::Now).await.unwrap();
        let broker = Arc::new(Leaderless::default());
        let relay = Relay::with_limit(Arc::clone(&broker) as Arc<dyn Broker>, Duration::from_millis(400));
        // More of the stuck queue than go at once, and before the others.
        add(&store, "a", 150).await;
        add(&store, "b", 20).await;
        let keep = Duration::from_secs(3600);
        relay.turn(&store, keep).await.unwrap();
        let asked = broker.asked.load(Ordering::SeqCst);
        assert!((1..=AT_ONCE).contains(&asked), "{asked}");
        assert_eq!(broker.taken.load(Ordering::SeqCst), TELL, "the others go, as many as say something new");
        relay.turn(&store, keep).await.unwrap();
        assert_eq!(broker.asked.load(Ordering::SeqCst), asked, "it is left alone");
        assert_eq!(store.unsent(500).await.unwrap().hints().len(), 150, "and its hints wait");
        relay.memory().silent.values_mut().for_each(|until| *until = Instant::now());
        relay.turn(&store, keep).await.unwrap();
        assert_eq!(broker.asked.load(Ordering::SeqCst), asked + 1, "one hint looks whether it is back");
    }

    #[tokio::test]
    async fn old_hints_go_although_something_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        store.apply_topology(&Topology::parse(TOPOLOGY).unwrap(), "test", Apply::Now).await.unwrap();
        let mut tx = store.write().await.unwrap();
        for (location, sent) in [("b", "7"), ("a", "NULL")] {
            let text = format!(
                "INSERT INTO outbox (location_id, operation, work_id, priority, sent_at) \
                 SELECT id, 'data_transfer', 1, 4, {sent} FROM data_location WHERE name = '{location}'"
            );
            tx.execute(text, &[]).await.unwrap();
        }
        tx.commit().await.unwrap();
        let relay = Relay::with_limit(Arc::new(Leaderless::default()), Duration::from_millis(50));
        relay.turn(&store, Duration::from_secs(3600)).await.unwrap();
        assert_eq!(count(&store, "id > 0").await, 1);
    }
}
