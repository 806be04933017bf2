use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::sync::Semaphore;

use super::{
    link::{self, Link, explain, in_time},
    topology,
};
use crate::broker::{BrokerError, Hint, PublishError, QueueName, figures::Published, memory::MAX_QUEUE_LENGTH};

/// Hints under way at once.
const LANES: usize = 32;
/// AMQP's number for "keep it on disk".
const PERSISTENT: u8 = 2;

/// Publishes on channels of which each carries one hint at a time. A `basic.return` does not say which of several publishes it
/// belongs to, and the client library gives it to whichever is confirmed next: with one under way there is no doubt.
#[derive(Debug)]
pub(super) struct Publisher {
    link: Arc<Link>,
    answer: Duration,
    /// Queues to be made again when they are gone.
    wanted: Arc<Mutex<BTreeSet<QueueName>>>,
    places: Semaphore,
    idle: Mutex<Vec<Lane>>,
}

#[derive(Debug)]
struct Lane {
    connection: Arc<Connection>,
    channel: Channel,
}

/// What the broker said to one publish.
enum Answer {
    Taken,
    Returned,
    Refused,
}

impl Publisher {
    pub(super) fn new(link: Arc<Link>, answer: Duration, wanted: Arc<Mutex<BTreeSet<QueueName>>>) -> Self {
        Self { link, answer, wanted, places: Semaphore::new(LANES), idle: Mutex::default() }
    }

    pub(super) async fn publish(&self, hint: &Hint) -> Result<(), PublishError> {
        let queue = &hint.queue;
        let unavailable = |cause| PublishError::Unavailable { queue: queue.clone(), cause };
        let _place = self.places.acquire().await.map_err(|_| unavailable(BrokerError::Closed))?;
        let lane = self.lane().await.map_err(unavailable)?;
        // From here to its return to the idle ones the lane is ours alone: if this future is dropped half way, it goes with it.
        let mut answer = self.ask(&lane, hint).await?;
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(queue);
        if matches!(answer, Answer::Returned) && wanted {
            tracing::info!(%queue, "the broker lost a queue; making it again");
            let remade = async {
                topology::declare_dead(&lane.channel, self.answer).await?;
                topology::declare(&lane.channel, queue, self.answer).await
            };
            remade.await.map_err(unavailable)?;
            answer = self.ask(&lane, hint).await?;
        }
        let result = match answer {
            Answer::Taken => Ok(()),
            Answer::Returned => Err(PublishError::Unroutable { queue: queue.clone() }),
            Answer::Refused => Err(self.why_refused(&lane, queue).await),
        };
        self.idle().push(lane);
        result
    }

    /// The broker refuses for a full queue and for one that cannot work in the same words; only its length tells them apart.
    async fn why_refused(&self, lane: &Lane, queue: &QueueName) -> PublishError {
        match topology::look(&lane.channel, queue.as_str(), self.answer).await {
            // A full one takes more only when it is four fifths full, and is read meanwhile.
            Ok(found) if found.message_count() as usize >= MAX_QUEUE_LENGTH / 2 => {
                PublishError::Full { queue: queue.clone() }
            }
            Ok(found) => {
                let detail = format!("it refuses a hint and holds {} only", found.message_count());
                let cause = BrokerError::NotReady { queue: queue.clone(), detail };
                PublishError::Unavailable { queue: queue.clone(), cause }
            }
            Err(cause) => PublishError::Unavailable { queue: queue.clone(), cause },
        }
    }

    async fn ask(&self, lane: &Lane, hint: &Hint) -> Result<Answer, PublishError> {
        const DOING: &str = "publishing a hint";
        let queue = &hint.queue;
        let body = hint.to_bytes();
        let published = in_time(DOING, self.answer, async {
            let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let properties = BasicProperties::default()
                .with_content_type("application/json".into())
                .with_delivery_mode(PERSISTENT)
                .with_message_id(hint.id.to_string().into());
            // The default exchange routes to the queue of that name.
            lane.channel.basic_publish("".into(), queue.as_str().into(), mandatory, &body, properties).await?.await
        })
        .await;
        let unconfirmed = |cause| PublishError::Unconfirmed { queue: queue.clone(), cause };
        match published {
            Ok(Ok(Confirmation::Ack(None))) => Ok(Answer::Taken),
            Ok(Ok(Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)))) => Ok(Answer::Returned),
            Ok(Ok(Confirmation::Nack(None))) => Ok(Answer::Refused),
            Ok(Ok(Confirmation::NotRequested)) => Err(unconfirmed(BrokerError::Lost {
                operation: DOING,
                detail: "the channel gives no confirms".to_owned(),
            })),
            Ok(Err(error)) => Err(unconfirmed(explain(DOING, queue.as_str(), &error))),
            Err(late) => {
                // A broker that confirms nothing may be behind a path that died without a word. The lane is not used again.
                self.link.discard_if_silent(&lane.connection, self.answer).await;
                Err(unconfirmed(late))
            }
        }
    }

    pub(super) async fn declare(&self, queues: &BTreeSet<QueueName>) -> Result<(), BrokerError> {
        let connection = self.link.connection().await?;
        let declared = topology::declare_all(&connection, queues, self.answer).await;
        if matches!(declared, Err(BrokerError::Timeout { .. })) {
            self.link.discard_if_silent(&connection, self.answer).await;
        }
        match declared?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    pub(super) async fn prove(&self) -> Result<(), BrokerError> {
        let connection = self.link.connection().await?;
        // Opening a channel is a round trip that needs no right and no queue.
        let opened = link::channel(&connection, self.answer).await;
        if matches!(opened, Err(BrokerError::Timeout { .. })) {
            self.link.discard(&connection).await;
        }
        opened.map(drop)
    }

    pub(super) async fn close(&self) {
        self.places.close();
        self.idle().clear();
        self.link.close().await;
    }

    async fn lane(&self) -> Result<Lane, BrokerError> {
        const DOING: &str = "opening a channel to publish";
        while let Some(lane) = { self.idle().pop() } {
            if lane.channel.status().connected() && lane.connection.status().connected() {
                return Ok(lane);
            }
        }
        let connection = self.link.connection().await?;
        let opened = async {
            let channel = link::channel(&connection, self.answer).await?;
            in_time(DOING, self.answer, channel.confirm_select(ConfirmSelectOptions::default()))
                .await?
                .map_err(|error| explain(DOING, "the channel", &error))?;
            Ok(channel)
        };
        match opened.await {
            Ok(channel) => Ok(Lane { connection, channel }),
            Err(error) => {
                if matches!(error, BrokerError::Timeout { .. }) {
                    self.link.discard(&connection).await;
                }
                Err(error)
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn label(result: &Result<(), PublishError>) -> Published {
    match result {
        Ok(()) => Published::Confirmed,
        Err(PublishError::Unroutable { .. }) => Published::Unroutable,
        Err(PublishError::Full { .. }) => Published::Full,
        Err(PublishError::Unconfirmed { .. }) => Published::Unconfirmed,
        Err(PublishError::Unavailable { .. }) => Published::Unavailable,
    }
}
