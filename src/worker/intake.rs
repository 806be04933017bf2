//! Finds work: a hint or the poll, free slots, a claim for as many, and only then the hint's acknowledgement. From the claim on
//! the lease carries the duty, not the broker.

use std::{
    collections::BTreeSet,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{AWAY, Shared, clock, complain, finish, is_away, queue_of, queues, stop::Why, wait};
use crate::{
    broker::{self, Broker, Delivery, Subscription},
    store::{Found, OpenQueue, StoreError, Wakeup, Wakeups},
    task::BootTime,
    telemetry::health::Heartbeat,
};

/// Claims until the gate drains.
pub(super) async fn run(shared: &Arc<Shared>, broker: Option<Arc<dyn Broker>>, pulse: Heartbeat) {
    let mut source = Source {
        subscription: match &broker {
            Some(broker) => subscribe(shared, broker).await,
            None => None,
        },
        wakeups: shared.store.wakeups(),
        poll: shared.config.poll,
    };
    // Acknowledged after the next claim: until then the broker keeps it for somebody else.
    let mut held: Option<Delivery> = None;
    let mut delays = AWAY.delays();
    while !shared.gate.is_draining() {
        pulse.found_nothing();
        if shared.spool.waiting() > 0 {
            // Whoever cannot write outcomes takes nothing new; the hint goes back.
            held = None;
            wait(&shared.gate, SPOOLED).await;
            continue;
        }
        let freed = shared.slots.freed();
        tokio::pin!(freed);
        // Asked first: a queue that was not full then is open, for nobody else fills it.
        let is_any_full = shared.slots.is_any_full();
        let open = shared.slots.open_queues();
        if open.is_empty() {
            tokio::select! {
                // What was written together is free together.
                () = &mut freed => wait(&shared.gate, GATHER).await,
                () = shared.gate.draining() => {}
                // A worker with full slots is well, and says so.
                () = tokio::time::sleep(SPOOLED) => {}
            }
            continue;
        }
        let asked = BootTime::now();
        match claim(shared, &open).await {
            Ok(found) if !found.claims.is_empty() => {
                delays.reset();
                pulse.worked();
                for claim in found.claims {
                    let slot = shared.slots.take(&queue_of(&claim));
                    shared.session.hold(claim.work);
                    tokio::spawn(finish::attend(Arc::clone(shared), claim, slot, asked));
                }
                acknowledge(&mut held).await;
            }
            Ok(found) => {
                delays.reset();
                acknowledge(&mut held).await;
                tokio::select! {
                    hint = source.next() => held = hint,
                    // Another queue has room now, or what has ended here was in the way of what waits.
                    () = &mut freed, if is_any_full || found.waits => {}
                    () = shared.gate.draining() => {}
                }
            }
            Err(error @ StoreError::WorkerReplaced { .. }) => {
                tracing::error!(%error, "stopping: whatever runs here belongs to the other process now");
                shared.stop_all(Why::Overtaken);
                shared.gate.drain();
            }
            Err(error) => {
                complain(&error, &mut delays, "nothing can be claimed now");
                held = None;
                let time = delays.next_delay();
                // What no waiting mends is looked at rarely.
                wait(&shared.gate, if is_away(&error) { time } else { time.max(WRONG) }).await;
            }
        }
    }
    drop(held);
    pulse.retire();
}

async fn claim(shared: &Shared, open: &[OpenQueue]) -> Result<Found, StoreError> {
    let now = clock(&shared.store);
    shared.store.claim_some(&shared.session, open, shared.config.lease, &now).await
}

async fn acknowledge(held: &mut Option<Delivery>) {
    if let Some(delivery) = held.take() {
        // A broker that lost it delivers it again; that costs one look.
        delivery.ack().await;
    }
}

/// Where a reason to look comes from.
struct Source {
    subscription: Option<Box<dyn Subscription>>,
    wakeups: Wakeups,
    poll: Duration,
}

impl Source {
    /// Waits for a reason to look for work. Cancel safe.
    async fn next(&mut self) -> Option<Delivery> {
        let until = Instant::now() + self.poll;
        let hint = async {
            match &mut self.subscription {
                Some(subscription) => match subscription.next().await {
                    Some(delivery) => delivery,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            delivery = hint => Some(delivery),
            // In one process with the manager on SQLite this comes before the hint.
            _ = self.wakeups.next(&[Wakeup::Outbox]) => None,
            () = tokio::time::sleep_until(until.into()) => None,
        }
    }
}

async fn subscribe(shared: &Shared, broker: &Arc<dyn Broker>) -> Option<Box<dyn Subscription>> {
    let names: BTreeSet<broker::QueueName> = queues(&shared.config)
        .iter()
        .filter_map(|(queue, _)| broker::QueueName::new(&queue.to_string()).ok())
        .collect();
    if let Err(error) = broker.declare(&names).await {
        tracing::warn!(%error, "the broker has not made the queues yet; work is found by looking until it has");
    }
    match broker.subscribe(names, NonZeroU16::MIN).await {
        Ok(subscription) => Some(subscription),
        Err(error) => {
            tracing::warn!(%error, "no hints come; work is found by looking");
            None
        }
    }
}

/// From the first slot that became free to a claim, where none was: several claims of one row cost more than one of several.
const GATHER: Duration = Duration::from_millis(2);
/// Between looks at whether outcomes still wait.
const SPOOLED: Duration = Duration::from_millis(500);
/// Between looks after an error that is not the database's absence.
const WRONG: Duration = Duration::from_secs(2);
