//! What stands in RabbitMQ. Arguments of a queue can never be changed, so they are constants and not settings.
//!
//! | name | what |
//! |---|---|
//! | each declared queue | quorum, durable; at most 10,000 messages, then publishing is refused; dead letters at least once |
//! | `ccat_xfer.dead` | fanout exchange, durable |
//! | `ccat_xfer.dead` | quorum queue bound to it; at most 100,000 messages |
//!
//! A queue that was full takes hints again when it is four fifths full. Refusing new hints (`reject-publish`) instead of dropping
//! old ones is also what at-least-once dead letters need. The delivery limit is out of reach: the row counts its attempts, and a
//! hint that comes back often is no poison.
//!
//! A queue for hints that stays unable to work is deleted and made again. The queue of dead letters never is: no row makes
//! its content again, so a person decides.

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    Channel, Connection, ExchangeKind, Queue,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};

use super::link::{explain, in_time};
use crate::broker::{BrokerError, QueueName, memory::MAX_QUEUE_LENGTH, queue::OWN_PREFIX};

/// Exchange and queue of dead letters.
pub(super) const DEAD: &str = "ccat_xfer.dead";
const _: () = assert!(OWN_PREFIX.len() < DEAD.len());

const MAX_DEAD: i32 = 100_000;
const DELIVERY_LIMIT: i32 = 1_000_000;

/// Makes the place for dead letters. Without it a rejected body would have nowhere to go.
pub(super) async fn declare_dead(channel: &Channel, limit: Duration) -> Result<(), BrokerError> {
    const DOING: &str = "declaring the dead letters' queue";
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    in_time(DOING, limit, channel.exchange_declare(DEAD.into(), ExchangeKind::Fanout, durable, FieldTable::default()))
        .await
        .and_then(|result| result.map_err(|error| explain(DOING, DEAD, &error)))?;
    let mut arguments = quorum();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(MAX_DEAD));
    in_time(DOING, limit, channel.queue_declare(DEAD.into(), QueueDeclareOptions::durable(), arguments))
        .await
        .and_then(|result| result.map_err(|error| explain(DOING, DEAD, &error)))?;
    let bind =
        channel.queue_bind(DEAD.into(), DEAD.into(), "".into(), QueueBindOptions::default(), FieldTable::default());
    in_time(DOING, limit, bind).await?.map_err(|error| explain(DOING, DEAD, &error))
}

/// Makes one queue for hints, or finds it as it should be.
pub(super) async fn declare(channel: &Channel, queue: &QueueName, limit: Duration) -> Result<(), BrokerError> {
    const DOING: &str = "declaring a queue";
    let length = i32::try_from(MAX_QUEUE_LENGTH).expect("a small constant");
    let mut arguments = quorum();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(length));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(DEAD.into()));
    arguments.insert("x-dead-letter-strategy".into(), AMQPValue::LongString("at-least-once".into()));
    in_time(DOING, limit, channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments))
        .await?
        .map_err(|error| explain(DOING, queue.as_str(), &error))?;
    Ok(())
}

/// Deletes a queue with all it holds.
pub(super) async fn delete(channel: &Channel, queue: &QueueName, limit: Duration) -> Result<(), BrokerError> {
    const DOING: &str = "deleting a queue";
    in_time(DOING, limit, channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()))
        .await?
        .map_err(|error| explain(DOING, queue.as_str(), &error))?;
    Ok(())
}

/// Asks how a queue is; a queue that is gone is an error and ends the channel.
pub(super) async fn look(channel: &Channel, queue: &str, limit: Duration) -> Result<Queue, BrokerError> {
    const DOING: &str = "looking at a queue";
    let passive = QueueDeclareOptions::durable().passive();
    in_time(DOING, limit, channel.queue_declare(queue.into(), passive, FieldTable::default()))
        .await?
        .map_err(|error| explain(DOING, queue, &error))
}

/// Makes all of them, each on a channel of its own where need be, because the broker ends a channel on which one could not be
/// made. Gives back those that are another kind, with the reason.
pub(super) async fn declare_all(
    connection: &Connection,
    queues: &BTreeSet<QueueName>,
    limit: Duration,
) -> Result<Vec<(QueueName, BrokerError)>, BrokerError> {
    let mut refused = Vec::new();
    let mut channel = super::link::channel(connection, limit).await?;
    declare_dead(&channel, limit).await?;
    for queue in queues {
        match declare(&channel, queue, limit).await {
            Ok(()) => {}
            Err(error @ BrokerError::Mismatch { .. }) => {
                refused.push((queue.clone(), error));
                channel = super::link::channel(connection, limit).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments
}
