use std::time::Duration;

use super::queue::QueueName;

/// Why the broker did not do something. All but [`BrokerError::Closed`] may pass by themselves or after somebody acted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Nobody answers there.
    #[error("the broker at {address} cannot be reached: {detail}")]
    Unreachable {
        /// Host, port and virtual host.
        address: String,
        /// What the system or TLS said.
        detail: String,
    },
    /// It answers and does not let us in.
    #[error(
        "the broker at {address} refuses this user or its virtual host: {detail} (are name and password right, may the user use it?)"
    )]
    Denied {
        /// Host, port and virtual host.
        address: String,
        /// What the broker said.
        detail: String,
    },
    /// A queue or exchange of the name is there and is another kind.
    #[error(
        "{name} exists in the broker with other properties: {detail} (another program's? use a virtual host of our own, or delete it)"
    )]
    Mismatch {
        /// Its name.
        name: String,
        /// What the broker said.
        detail: String,
    },
    /// The connection broke, or the broker ended it.
    #[error("the link to the broker broke while {operation}: {detail}")]
    Lost {
        /// What we were doing.
        operation: &'static str,
        /// What was said.
        detail: String,
    },
    /// No answer in time.
    #[error("the broker did not answer within {} s while {operation}", .after.as_secs_f32())]
    Timeout {
        /// What we were doing.
        operation: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The broker holds messages for us and sends none.
    #[error("the broker holds hints in {queue} and delivers none of them")]
    Silent {
        /// The queue.
        queue: QueueName,
    },
    /// The queue is there and the broker cannot work with it: it is being made, or has no leader.
    #[error(
        "the broker has {queue} and cannot work with it now (is it being made, or without a leader after a crash?): {detail}"
    )]
    NotReady {
        /// The queue.
        queue: QueueName,
        /// What shows it.
        detail: String,
    },
    /// [`Broker::close`](super::Broker::close) was called.
    #[error("the broker was closed by this process")]
    Closed,
}

/// Why a hint was not published. Only the relay's row says what is to be published again: after each of these, all that is
/// not known to be published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no such queue: nobody declared it.
    #[error("the broker has no queue {queue}: declare it first")]
    Unroutable {
        /// The queue.
        queue: QueueName,
    },
    /// The queue takes no more; whoever reads it is behind or away.
    #[error("the broker's queue {queue} is full: its workers are behind or away")]
    Full {
        /// The queue.
        queue: QueueName,
    },
    /// It was sent, and whether it was taken is not known.
    #[error("whether the broker took a hint for {queue} is not known: {cause}")]
    Unconfirmed {
        /// The queue.
        queue: QueueName,
        /// What came between.
        cause: BrokerError,
    },
    /// It was not sent.
    #[error("a hint for {queue} was not sent: {cause}")]
    Unavailable {
        /// The queue.
        queue: QueueName,
        /// What came between.
        cause: BrokerError,
    },
}
