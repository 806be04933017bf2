//! RabbitMQ.
//!
//! The client library's own recovery is not used: every session is built from nothing (connection, channel, queues, consumers), so that
//! there is one way into a working state and it is taken after every kind of failure, be it a restart, a wiped node, a
//! deleted queue or a silence.

mod address;
mod burial;
mod intake;
mod link;
mod publish;
mod topology;

use std::{
    collections::BTreeSet,
    num::NonZeroU16,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use address::{Address, AddressError, Credentials, CredentialsError};
pub(super) use intake::Held;

use self::{intake::RabbitSubscription, link::Link, publish::Publisher};
use super::{Broker, BrokerError, DeadLetterSink, Figures, Hint, PublishError, QueueName, Subscription};
use crate::task::Backoff;

/// Which RabbitMQ, and as whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is.
    pub address: Address,
    /// Who we are.
    pub credentials: Credentials,
    /// PEM file with the authorities that may vouch for the broker's certificate. Default: those of the machine.
    pub ca_file: Option<PathBuf>,
    /// How long things may take.
    pub times: Times,
}

/// Time limits. The defaults suit a broker that is a round trip of 300 ms away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// For a connection with TLS and login. Default 10 s.
    pub connect: Duration,
    /// For each answer. Default 10 s.
    pub answer: Duration,
    /// AMQP heartbeat in seconds: a peer that is silent for twice as long is gone. Default 10.
    pub heartbeat_s: u16,
    /// Between two looks at whether a subscription's queues still deliver. Default 10 s.
    pub probe: Duration,
    /// How long hints wait for a subscriber that does not ask for the next one; then they go back to their queues and to other
    /// subscribers. Must stay far below the broker's `consumer_timeout` (30 min). Default 30 s.
    pub hold: Duration,
    /// How long a queue may be unable to serve a subscription, on a connection that answers, until it is deleted and made
    /// again. Its hints are lost then, and their rows cause new ones. Must be longer than a cluster needs to elect a
    /// leader when nodes restart. Default 5 min.
    pub stuck: Duration,
    /// Between attempts to connect. Default 200 ms, doubling up to 5 s.
    pub backoff: Backoff,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            heartbeat_s: 10,
            probe: Duration::from_secs(10),
            hold: Duration::from_secs(30),
            stuck: Duration::from_secs(300),
            backoff: Backoff { first: Duration::from_millis(200), limit: Duration::from_secs(5) },
        }
    }
}

/// A RabbitMQ. Publishing and consuming have a connection each: the broker slows a connection that publishes too much, and that
/// must not slow acknowledgements.
#[derive(Debug)]
pub struct RabbitBroker {
    config: Arc<Config>,
    publisher: Publisher,
    intake: Arc<Link>,
    wanted: Arc<Mutex<BTreeSet<QueueName>>>,
    figures: Figures,
    over: CancellationToken,
}

impl RabbitBroker {
    /// Connects when it is first needed, so that a broker that is away at the start is like one that goes away later.
    pub fn new(config: Config) -> Self {
        let config = Arc::new(config);
        let figures = Figures::default();
        let link = |purpose| Arc::new(Link::new(Arc::clone(&config), purpose, figures.clone()));
        let wanted = Arc::new(Mutex::new(BTreeSet::new()));
        Self {
            publisher: Publisher::new(link("publisher"), config.times.answer, Arc::clone(&wanted)),
            intake: link("consumer"),
            config,
            wanted,
            figures,
            over: CancellationToken::new(),
        }
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    async fn declare(&self, queues: &BTreeSet<QueueName>) -> Result<(), BrokerError> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).extend(queues.iter().cloned());
        self.publisher.declare(queues).await
    }

    async fn publish(&self, hint: &Hint) -> Result<(), PublishError> {
        let result = self.publisher.publish(hint).await;
        self.figures.count_published(publish::label(&result));
        result
    }

    async fn subscribe(
        &self,
        queues: BTreeSet<QueueName>,
        slots: NonZeroU16,
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        if self.over.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let (link, over) = (Arc::clone(&self.intake), self.over.clone());
        Ok(Box::new(RabbitSubscription::start(link, self.config.times, queues, slots, self.figures.clone(), over)))
    }

    async fn bury(&self, sink: Arc<dyn DeadLetterSink>, stop: CancellationToken) {
        tokio::select! {
            () = burial::bury(&self.intake, self.config.times, sink, &self.figures) => {}
            () = stop.cancelled() => {}
            () = self.over.cancelled() => {}
        }
    }

    async fn prove(&self) -> Result<(), BrokerError> {
        self.publisher.prove().await
    }

    fn figures(&self) -> &Figures {
        &self.figures
    }

    async fn close(&self) {
        self.over.cancel();
        self.publisher.close().await;
        self.intake.close().await;
    }
}
