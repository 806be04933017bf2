//! Delivery of hints: "queue Q has work".
//!
//! **Promise.** The database row is the truth; a hint only saves waiting for the next poll. So a hint may come twice, late, out of
//! order, or never, and none of that loses data. What is promised: [`Broker::publish`] succeeds only after the broker took
//! responsibility for the hint in a queue that exists; a hint that was delivered and not acknowledged comes again, here
//! or elsewhere; a body that is no hint reaches a [`DeadLetterSink`] with its reason and is never delivered in a loop; a
//! [`Subscription`] goes on by itself when the broker restarts or was wiped, and [`Subscription::pulse`] tells when it was
//! last proven alive, so that no consumer is dead in silence.
//!
//! **Acknowledge right after the claim**, not after the transfer: from the claim on the lease in the database carries the duty. A
//! broker ends the channel of a consumer that holds a delivery for long (RabbitMQ: 30 min).
//!
//! **Backends**, with one conformance suite (`tests/broker_conformance.rs`): [`MemoryBroker`] within one process, and
//! [`RabbitBroker`]. Neither knows the database: who publishes, and who keeps dead letters, is the caller's affair.
//!
//! **Bytes.** A hint is JSON, [`Hint::to_bytes`]; a change of its meaning raises `version`.

mod dead;
mod envelope;
mod error;
mod figures;
mod memory;
mod pulse;
mod queue;
mod rabbit;

use std::{collections::BTreeSet, fmt, num::NonZeroU16, sync::Arc};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use dead::{DeadLetter, DeadLetterSink, DeadReason, SinkError};
pub use envelope::{EnvelopeError, Hint};
pub use error::{BrokerError, PublishError};
pub use figures::Figures;
pub use memory::MemoryBroker;
pub use pulse::Pulse;
pub use queue::{QueueName, QueueNameError};
pub use rabbit::{Address, AddressError, Config as RabbitConfig, Credentials, CredentialsError, RabbitBroker, Times};

/// What delivers hints.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync {
    /// Makes these queues exist, beside those declared before. They are remembered: when the broker lost them, they are made
    /// again.
    ///
    /// # Errors
    /// The broker cannot be reached (the queues are remembered nevertheless), or a queue of that name is there with other
    /// properties.
    async fn declare(&self, queues: &BTreeSet<QueueName>) -> Result<(), BrokerError>;

    /// Hands a hint to the broker and waits until it took responsibility. Many may be under way at once.
    ///
    /// # Errors
    /// The hint was not taken, or nobody knows: then it may arrive all the same, and publishing it again is right.
    async fn publish(&self, hint: &Hint) -> Result<(), PublishError>;

    /// Takes hints from these queues from now on. `slots` is how many hints of one queue may be with this subscriber without
    /// acknowledgement; 1 shares them best among subscribers.
    ///
    /// An unreachable broker is no error: the subscription connects when it can, and its pulse tells.
    ///
    /// # Errors
    /// The broker was closed.
    async fn subscribe(
        &self,
        queues: BTreeSet<QueueName>,
        slots: NonZeroU16,
    ) -> Result<Box<dyn Subscription>, BrokerError>;

    /// Hands dead letters to `sink` until `stop`. A letter leaves the broker only after the sink took it; a sink that fails
    /// is asked again after a while.
    async fn bury(&self, sink: Arc<dyn DeadLetterSink>, stop: CancellationToken);

    /// One round trip to the broker.
    ///
    /// # Errors
    /// It did not answer.
    async fn prove(&self) -> Result<(), BrokerError>;

    /// What was counted.
    fn figures(&self) -> &Figures;

    /// Ends all subscriptions and connections. To be awaited before the runtime ends.
    async fn close(&self);
}

/// Hints from some queues.
#[async_trait]
pub trait Subscription: fmt::Debug + Send {
    /// The next hint; `None` after [`Broker::close`]. Cancel safe. A hint is taken from the queues only for callers that wait: call
    /// it only with a free slot.
    async fn next(&mut self) -> Option<Delivery>;

    /// Takes hints from these queues instead.
    fn set_queues(&mut self, queues: BTreeSet<QueueName>);

    /// When it was last proven that hints would arrive.
    fn pulse(&self) -> Pulse;
}

/// A hint that waits for its acknowledgement. Dropped without one it goes back to its queue.
#[derive(Debug)]
pub struct Delivery {
    hint: Hint,
    receipt: Receipt,
}

#[derive(Debug)]
enum Receipt {
    Memory(memory::Held),
    Rabbit(rabbit::Held),
}

impl Delivery {
    /// What it says.
    pub fn hint(&self) -> &Hint {
        &self.hint
    }

    /// Ends the broker's care for it. `false`: the broker had given it up already (the connection broke), and it comes again.
    pub async fn ack(self) -> bool {
        match self.receipt {
            Receipt::Memory(held) => held.ack(),
            Receipt::Rabbit(held) => held.ack().await,
        }
    }
}
