//! Keeps the lease of one attempt while it runs.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    AWAY, Shared, clock,
    collector::Meter,
    complain,
    stop::{Stop, Why},
};
use crate::{
    model::Work,
    store::{Backend, Claim, Renewal, Wakeup},
    task::BootTime,
};

/// Renews with the verified bytes, and stops the attempt when it was overtaken or cancelled. Runs until it is dropped or has
/// stopped the attempt. A renewal that fails stops nothing: the receiver's fence says who may write there, and a late
/// renewal that nobody overtook brings the lease back. Only an archive has no receiver: such an attempt is stopped when its
/// lease is over, counted from before the claim (`asked`) and each renewal were asked for, by a clock that goes on while the
/// machine sleeps.
pub(super) async fn keep(shared: Arc<Shared>, claim: Arc<Claim>, meter: Meter, stop: Stop, asked: BootTime) {
    let store = &shared.store;
    let mut wakeups = store.wakeups();
    let every = shared.config.renew_every;
    // A claim that waited for the database has used up some of its lease.
    let mut renewal = interval_at(Instant::now() + every.saturating_sub(asked.elapsed()), every);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Nobody tells one process what another one wrote into its SQLite file.
    let mut look = interval_at(Instant::now() + LOOK, LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looks = store.backend() == Backend::Sqlite;
    let mut delays = AWAY.delays();
    let alone = matches!(claim.work, Work::Archive(_));
    let mut over = asked + shared.config.lease;
    loop {
        tokio::select! {
            _ = renewal.tick() => {}
            _ = wakeups.next(&[Wakeup::Cancel]) => {}
            _ = look.tick(), if looks => {
                // A read: it waits for no writer, and writes nothing.
                if !matches!(store.is_cancel_requested(claim.work).await, Ok(true)) {
                    continue;
                }
            }
            () = over.reached(), if alone => return stop.now(Why::LeaseLost),
            () = stop.token().cancelled() => return,
        }
        // In this order: a machine that sleeps between the two believes in too little, not in too much.
        let asked = BootTime::now();
        let now = clock(store);
        let renewing = store.renew(&shared.session, claim.work, claim.fence, shared.config.lease, &now, meter.bytes());
        let renewed = tokio::select! {
            renewed = renewing => renewed,
            () = over.reached(), if alone => return stop.now(Why::LeaseLost),
        };
        match renewed {
            Ok(Renewal::Held) => {
                delays.reset();
                over = asked + shared.config.lease;
            }
            Ok(Renewal::Revived) => {
                delays.reset();
                over = asked + shared.config.lease;
                tracing::info!(work = %claim.work, fence = %claim.fence, "the lease had run out, and is ours again");
                // It stood in the way of what is behind it: nobody claims what he has himself.
                shared.slots.look_again();
            }
            Ok(Renewal::CancelRequested) => return stop.now(Why::Cancelled),
            Ok(Renewal::Overtaken) => return stop.now(Why::Overtaken),
            Err(error) => {
                complain(&error, &mut delays, "a lease could not be renewed; the attempt goes on");
                delays.next_delay();
            }
        }
    }
}

/// Between looks for a cancellation, where no notification comes from other processes: it has to take effect within 1 s.
const LOOK: Duration = Duration::from_millis(400);
