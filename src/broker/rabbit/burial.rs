use std::{
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use futures_util::StreamExt as _;
use lapin::{
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    Times,
    intake::SUSPICIONS,
    link::{self, Link, explain, in_time},
    topology::{self, DEAD},
};
use crate::broker::{
    BrokerError, DeadLetter, DeadLetterSink, DeadReason, Figures, Hint, figures::Dead, memory::SINK_BACKOFF,
};

/// Hands dead letters to the sink for ever, through every failure of the broker.
pub(super) async fn bury(link: &Link, times: Times, sink: Arc<dyn DeadLetterSink>, figures: &Figures) {
    let mut delays = times.backoff.delays();
    let mut told: Option<BrokerError> = None;
    loop {
        let began = Instant::now();
        let error = session(link, times, sink.as_ref(), figures).await;
        if began.elapsed() > times.backoff.limit {
            delays.reset();
            told = None;
        }
        let delay = delays.next_delay();
        // Once for each kind of trouble; when the broker is back, its link says so.
        if told.as_ref() == Some(&error) {
            tracing::debug!(%error, delay_ms = delay.as_millis(), "dead letters are still not read");
        } else {
            tracing::warn!(%error, "dead letters are not read; they wait in the broker");
            told = Some(error);
        }
        figures.count_failed();
        sleep(delay).await;
    }
}

async fn session(link: &Link, times: Times, sink: &dyn DeadLetterSink, figures: &Figures) -> BrokerError {
    let connection = match link.connection().await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    match read(&connection, times, sink, figures).await {
        Err(error) => {
            if matches!(error, BrokerError::Timeout { .. }) {
                link.discard_if_silent(&connection, times.answer).await;
            }
            error
        }
        Ok(never) => match never {},
    }
}

async fn read(
    connection: &lapin::Connection,
    times: Times,
    sink: &dyn DeadLetterSink,
    figures: &Figures,
) -> Result<std::convert::Infallible, BrokerError> {
    const DOING: &str = "reading dead letters";
    let channel = link::channel(connection, times.answer).await?;
    topology::declare_dead(&channel, times.answer).await?;
    let asked = async {
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        channel.basic_consume(DEAD.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
    };
    let mut letters = in_time(DOING, times.answer, asked).await?.map_err(|e| explain(DOING, DEAD, &e))?;
    let mut forgotten = 0;
    let mut probe = interval(times.probe);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let delivery = tokio::select! {
            delivery = letters.next() => delivery,
            _ = probe.tick() => {
                let found = topology::look(&channel, DEAD, times.answer).await?;
                forgotten = if found.consumer_count() == 0 { forgotten + 1 } else { 0 };
                if forgotten >= SUSPICIONS {
                    let detail = "the broker does not know the reader any more".to_owned();
                    return Err(BrokerError::Lost { operation: DOING, detail });
                }
                continue;
            }
        };
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => return Err(explain(DOING, DEAD, &error)),
            None => {
                return Err(BrokerError::Lost { operation: DOING, detail: "the consumer was cancelled".to_owned() });
            }
        };
        let acker = delivery.acker.clone();
        let letter = letter(delivery);
        keep(sink, &letter).await;
        figures.count_dead(Dead::from(&letter.reason));
        // `false` or an error: the letter comes again, and the sink expects that.
        let _ = in_time(DOING, times.answer, acker.ack(BasicAckOptions::default())).await?;
    }
}

async fn keep(sink: &dyn DeadLetterSink, letter: &DeadLetter) {
    let mut delays = SINK_BACKOFF.delays();
    while let Err(error) = sink.bury(letter).await {
        if delays.failures() == 0 {
            tracing::warn!(%error, "a dead letter waits in the broker");
        } else {
            tracing::debug!(%error, failures = delays.failures(), "a dead letter still waits in the broker");
        }
        sleep(delays.next_delay()).await;
    }
    if delays.failures() > 0 {
        tracing::info!("dead letters are kept again");
    }
}

fn letter(delivery: Delivery) -> DeadLetter {
    let history = delivery.properties.headers().as_ref().map(FieldTable::inner);
    // The newest death is the first entry (RabbitMQ's doc of `x-death`).
    let death = history.and_then(|headers| headers.get("x-death")).and_then(|deaths| match deaths {
        AMQPValue::FieldArray(deaths) => deaths.as_slice().first().cloned(),
        _ => None,
    });
    let field = |name: &str| match &death {
        Some(AMQPValue::FieldTable(death)) => death.inner().get(name).cloned(),
        _ => None,
    };
    let queue = text(field("queue")).unwrap_or_else(|| delivery.routing_key.to_string());
    let word = text(field("reason"));
    let died = match field("time") {
        Some(AMQPValue::Timestamp(seconds)) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        _ => None,
    };
    let reason = match (Hint::from_bytes(&delivery.data, &queue), word.as_deref()) {
        (Err(error), Some("rejected") | None) => DeadReason::Undecodable(error),
        (Ok(_), Some("rejected") | None) => DeadReason::Rejected,
        (_, Some(word)) => DeadReason::GivenUp { word: word.to_owned() },
    };
    let message_id = delivery.properties.message_id().as_ref().map(ToString::to_string);
    DeadLetter { message_id, died, ..DeadLetter::new(Some(queue), reason, delivery.data) }
}

fn text(value: Option<AMQPValue>) -> Option<String> {
    match value? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}
