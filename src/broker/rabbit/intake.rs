use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use lapin::{
    Acker, Channel, Connection,
    message::Delivery as Message,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions},
    types::FieldTable,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Times,
    link::{self, Link, explain, in_time},
    topology,
};
use crate::broker::{BrokerError, Delivery, Figures, Hint, Pulse, QueueName, Receipt, Subscription, pulse::PulseCell};

/// How often in a row a queue may hold hints and give us none before the session is built anew. Twice, because a hint may be under
/// way at the first look.
pub(super) const SUSPICIONS: u32 = 2;

/// Hints from RabbitMQ, kept coming by a task per queue: a queue that the broker cannot serve (no leader after a crash,
/// another kind of the same name) does not hold up the others.
#[derive(Debug)]
pub(super) struct RabbitSubscription {
    arrived: mpsc::UnboundedReceiver<Arrived>,
    intakes: BTreeMap<QueueName, Running>,
    seed: Seed,
    over: CancellationToken,
}

#[derive(Debug)]
struct Running {
    pulse: PulseCell,
    _task: AbortOnDropHandle<()>,
}

/// What every intake of a subscription starts with.
#[derive(Clone, Debug)]
struct Seed {
    link: Arc<Link>,
    times: Times,
    slots: u16,
    /// Its bound is the prefetch of the queues.
    out: mpsc::UnboundedSender<Arrived>,
    demand: Arc<Demand>,
    figures: Figures,
}

/// A hint on its way from the task to the subscriber.
#[derive(Debug)]
struct Arrived {
    hint: Hint,
    acker: Acker,
    place: Place,
}

/// Counts hints of one queue that are with us.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the subscriber waits for a hint. While it does not, for long, none is asked of the broker: what lies here could
/// be worked on elsewhere.
#[derive(Debug)]
struct Demand {
    waiting: AtomicBool,
    /// When it last did.
    last: Mutex<Instant>,
    began: Notify,
}

impl Demand {
    fn begin(&self) -> Waiting<'_> {
        self.waiting.store(true, Ordering::SeqCst);
        self.began.notify_waiters();
        Waiting(self)
    }

    fn is_over(&self, hold: Duration) -> bool {
        !self.waiting.load(Ordering::SeqCst)
            && self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= hold
    }

    async fn begun(&self) {
        loop {
            let mut began = std::pin::pin!(self.began.notified());
            began.as_mut().enable();
            if self.waiting.load(Ordering::SeqCst) {
                return;
            }
            began.await;
        }
    }
}

struct Waiting<'a>(&'a Demand);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.waiting.store(false, Ordering::SeqCst);
    }
}

impl RabbitSubscription {
    pub(super) fn start(
        link: Arc<Link>,
        times: Times,
        queues: BTreeSet<QueueName>,
        slots: NonZeroU16,
        figures: Figures,
        over: CancellationToken,
    ) -> Self {
        let (out, arrived) = mpsc::unbounded_channel();
        let demand = Arc::new(Demand {
            // Prefetched from the start, so that the first wait is short.
            waiting: AtomicBool::new(false),
            last: Mutex::new(Instant::now()),
            began: Notify::new(),
        });
        let seed = Seed { link, times, slots: slots.get(), out, demand, figures };
        let mut subscription = Self { arrived, intakes: BTreeMap::new(), seed, over };
        subscription.set_queues(queues);
        subscription
    }
}

#[async_trait]
impl Subscription for RabbitSubscription {
    async fn next(&mut self) -> Option<Delivery> {
        let _waiting = self.seed.demand.begin();
        loop {
            let Arrived { hint, acker, place } = self.over.run_until_cancelled(self.arrived.recv()).await??;
            // Not usable: of a session that is gone, and the broker delivers it again. Not wanted: of a queue that was
            // left, whose channel ends and gives it back.
            if acker.usable() && self.intakes.contains_key(&hint.queue) {
                self.seed.figures.count_delivered();
                let held = Held { acker: Some(acker), _place: place, figures: self.seed.figures.clone() };
                return Some(Delivery { hint, receipt: Receipt::Rabbit(held) });
            }
        }
    }

    fn set_queues(&mut self, queues: BTreeSet<QueueName>) {
        self.intakes.retain(|queue, _| queues.contains(queue));
        for queue in queues {
            let (seed, over) = (&self.seed, &self.over);
            self.intakes.entry(queue).or_insert_with_key(|queue| {
                let pulse = PulseCell::default();
                let intake =
                    Intake { queue: queue.clone(), seed: seed.clone(), pulse: pulse.clone(), with_us: Arc::default() };
                let over = over.clone();
                let task = tokio::spawn(async move {
                    over.run_until_cancelled(intake.run()).await;
                });
                Running { pulse, _task: AbortOnDropHandle::new(task) }
            });
        }
    }

    /// The worst of its queues.
    fn pulse(&self) -> Pulse {
        if self.over.is_cancelled() {
            return Pulse { proven: None, trouble: Some(BrokerError::Closed) };
        }
        self.intakes.values().map(|intake| intake.pulse.read()).fold(Pulse::now(), |worst, one| Pulse {
            // `None`, never proven, is the least.
            proven: worst.proven.min(one.proven),
            trouble: worst.trouble.or(one.trouble),
        })
    }
}

/// A hint with the subscriber.
#[derive(Debug)]
pub(in crate::broker) struct Held {
    /// Gone once it is settled.
    acker: Option<Acker>,
    _place: Place,
    figures: Figures,
}

impl Held {
    pub(in crate::broker) async fn ack(mut self) -> bool {
        let Some(acker) = self.acker.take() else { return false };
        // The library may never tell of one that a connection took with it. The broker delivers it again.
        let told = in_time("acknowledging a hint", ACK_LIMIT, acker.ack(BasicAckOptions::default())).await;
        let acknowledged = matches!(told, Ok(Ok(true)));
        if acknowledged {
            self.figures.count_acknowledged();
        }
        acknowledged
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(acker) = self.acker.take() else { return };
        self.figures.count_given_back();
        // Without a runtime the connection ends as well, which gives it back too.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _ = acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await;
            });
        }
    }
}

/// For an acknowledgement to leave: nothing comes back for it.
const ACK_LIMIT: Duration = Duration::from_secs(10);

struct Intake {
    queue: QueueName,
    seed: Seed,
    pulse: PulseCell,
    /// Hints of the queue that are with us.
    with_us: Arc<AtomicUsize>,
}

/// A session that ended because nobody asks for hints.
struct NoDemand;

impl Intake {
    async fn run(self) {
        let times = self.seed.times;
        let mut delays = times.backoff.delays();
        let mut last = None;
        // Since when the queue cannot serve us although the broker answers.
        let mut stuck: Option<Instant> = None;
        loop {
            let began = Instant::now();
            let ended = self.session().await;
            if began.elapsed() > times.backoff.limit {
                delays.reset();
            }
            match ended {
                Ok(NoDemand) => {
                    stuck = None;
                    self.pulse.resting(true);
                    self.seed.demand.begun().await;
                    self.pulse.resting(false);
                }
                Err(error) => {
                    let delay = delays.next_delay();
                    // Said once for each kind of trouble, not at each attempt.
                    if last.as_ref() == Some(&error) {
                        tracing::debug!(queue = %self.queue, %error, "still no hints arrive");
                    } else {
                        tracing::warn!(queue = %self.queue, %error, "no hints arrive; subscribing again");
                    }
                    self.seed.figures.count_failed();
                    stuck = matches!(error, BrokerError::NotReady { .. }).then(|| stuck.unwrap_or(began));
                    last = Some(error.clone());
                    self.pulse.troubled(error);
                    sleep(delay).await;
                    if stuck.is_some_and(|since| since.elapsed() >= times.stuck) {
                        stuck = None;
                        self.replace().await;
                    }
                }
            }
        }
    }

    async fn session(&self) -> Result<NoDemand, BrokerError> {
        let connection = self.seed.link.connection().await?;
        let ended = self.consume(&connection).await;
        if matches!(ended, Err(BrokerError::Timeout { .. } | BrokerError::NotReady { .. })) {
            self.seed.link.discard_if_silent(&connection, self.seed.times.answer).await;
        }
        ended
    }

    /// Makes the queue anew. A quorum queue may be left without a leader for ever when its node is killed (seen with RabbitMQ
    /// 3.10; its Ra 2.2 begins no election for a queue whose log it finds empty), and a client can do nothing else about
    /// it. The rows of the hints it held cause new ones.
    async fn replace(&self) {
        let (queue, answer) = (&self.queue, self.seed.times.answer);
        tracing::error!(%queue, "the broker cannot work with the queue for long; it is deleted and made again");
        let replaced = async {
            let connection = self.seed.link.connection().await?;
            let channel = link::channel(&connection, answer).await?;
            topology::delete(&channel, queue, answer).await
        };
        // The next session makes it; if it is still there and stuck, all begins again.
        match replaced.await {
            Ok(()) => self.seed.figures.count_replaced(),
            Err(error) => tracing::warn!(%queue, %error, "it could not be deleted"),
        }
    }

    async fn consume(&self, connection: &Connection) -> Result<NoDemand, BrokerError> {
        const DOING: &str = "subscribing";
        let (name, answer) = (self.queue.as_str(), self.seed.times.answer);
        let one = BTreeSet::from([self.queue.clone()]);
        if let Some((_, error)) = topology::declare_all(connection, &one, answer).await?.into_iter().next() {
            return Err(error);
        }
        let channel = link::channel(connection, answer).await?;
        let asked = async {
            // Per consumer: a quorum queue knows no limit for a whole channel.
            channel.basic_qos(self.seed.slots, BasicQosOptions::default()).await?;
            channel.basic_consume(name.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
        };
        // The connection answered just now: it is about the queue. RabbitMQ says nothing, or ends the channel or even the
        // connection, when a queue without a leader has kept it waiting.
        let not_ready = |detail: String| BrokerError::NotReady { queue: self.queue.clone(), detail };
        let mut messages = match in_time(DOING, answer, asked).await {
            Ok(Ok(messages)) => messages,
            Ok(Err(error)) => {
                return Err(match explain(DOING, name, &error) {
                    BrokerError::Lost { detail, .. } => not_ready(detail),
                    other => other,
                });
            }
            Err(late) => return Err(not_ready(late.to_string())),
        };
        self.pulse.proven();
        let mut suspicions = 0;
        let mut probe = interval(self.seed.times.probe.min(self.seed.times.hold));
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(message)) => {
                        suspicions = 0;
                        self.pulse.proven();
                        self.take(message).await?;
                    }
                    Some(Err(error)) => return Err(explain("consuming", name, &error)),
                    None => {
                        let detail = format!("the broker ended the consumer of {name} (was the queue deleted?)");
                        return Err(BrokerError::Lost { operation: "consuming", detail });
                    }
                },
                _ = probe.tick() => {
                    if self.seed.demand.is_over(self.seed.times.hold) {
                        // The end of the channel gives back all that was not acknowledged.
                        let _ = in_time("resting", answer, channel.close(200, "resting".into())).await;
                        return Ok(NoDemand);
                    }
                    suspicions = if self.is_suspicious(&channel).await? { suspicions + 1 } else { 0 };
                    if suspicions >= SUSPICIONS {
                        return Err(BrokerError::Silent { queue: self.queue.clone() });
                    }
                    self.pulse.proven();
                }
            }
        }
    }

    async fn take(&self, message: Message) -> Result<(), BrokerError> {
        const DOING: &str = "refusing a message";
        match Hint::from_bytes(&message.data, self.queue.as_str()) {
            Ok(hint) => {
                let arrived = Arrived { hint, acker: message.acker, place: Place::take(&self.with_us) };
                // Nobody left to take it: the end of this task gives it back.
                let _ = self.seed.out.send(arrived);
            }
            Err(error) => {
                tracing::warn!(queue = %self.queue, %error, "a message is dead");
                // Without requeue it goes to the dead letters, and only there.
                let reject = message.acker.reject(BasicRejectOptions { requeue: false });
                in_time(DOING, self.seed.times.answer, reject)
                    .await?
                    .map_err(|e| explain(DOING, self.queue.as_str(), &e))?;
            }
        }
        Ok(())
    }

    /// Whether the queue does not know us, or holds hints and we have none. A queue that is gone is an error.
    async fn is_suspicious(&self, channel: &Channel) -> Result<bool, BrokerError> {
        let found = topology::look(channel, self.queue.as_str(), self.seed.times.answer).await?;
        let idle = self.with_us.load(Ordering::Relaxed) == 0;
        Ok(found.consumer_count() == 0 || (found.message_count() > 0 && idle))
    }
}
