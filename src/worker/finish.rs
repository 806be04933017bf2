//! One claimed piece of work, from its claim to its outcome.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Attempt, Running, Shared,
    collector::Meter,
    failure::Failure,
    fault,
    figures::{Ended, Wrote},
    is_away, lease,
    slots::Slot,
    stop::{Stop, Why},
};
use crate::{
    model::{AttemptOutcome, Ending, ErrorClass, Timestamp},
    store::{Claim, Recorded, RunningSpan, StoreError},
    task::{BootTime, TaskEnd, supervise},
};

/// Runs a claim to its end and writes how it ended. `slot` is free afterwards, whatever happens in between. `asked` is when
/// the claim was asked for.
pub(super) async fn attend(shared: Arc<Shared>, claim: Claim, slot: Slot, asked: BootTime) {
    let span = tracing::info_span!(
        "attempt",
        work = %claim.work,
        fence = %claim.fence,
        attempt = claim.attempt,
        peer = claim.other().peer.as_ref().map_or("", |peer| peer.name.as_str())
    );
    let claim = Arc::new(claim);
    let here = Arc::clone(&shared);
    let attended = Arc::clone(&claim);
    // What is wrong outside the runner is caught too: a slot that is lost is lost until the next restart.
    let ended = supervise(
        format!("{} fence {}", claim.work, claim.fence),
        async move { conduct(&here, &attended, asked).await }.instrument(span),
    );
    if let Err(end) = ended.await {
        tracing::error!(work = %claim.work, fence = %claim.fence, %end, "an attempt ended badly; its lease will run out");
    }
    shared.session.release(claim.work);
    shared.running().retain(|r| (r.span.work, r.span.fence) != (claim.work, claim.fence));
    drop(slot);
}

async fn conduct(shared: &Arc<Shared>, claim: &Arc<Claim>, asked: BootTime) {
    let (stop, meter, started) = (Stop::default(), Meter::default(), Instant::now());
    let span = RunningSpan {
        work: claim.work,
        fence: claim.fence,
        phase: "transfer".into(),
        since: claim.claimed_at,
        bytes_done: 0,
    };
    shared.running().push(Running { span, meter: meter.clone(), stop: stop.clone() });
    if shared.gate.is_stopped() {
        stop.now(Why::Draining);
    }
    tracing::info!(packages = claim.members.len(), bytes = claim.bytes_total, "an attempt begins");
    let keeping = supervise(
        format!("lease of {}", claim.work),
        lease::keep(Arc::clone(shared), Arc::clone(claim), meter.clone(), stop.clone(), asked).in_current_span(),
    );
    let (here, running, measured, token) = (Arc::clone(shared), Arc::clone(claim), meter.clone(), stop.token().clone());
    let job = supervise(
        format!("{}", claim.work),
        async move {
            let (runner, claim, meter) = (&here.runner, &running, &measured);
            let run = |token: CancellationToken| async move { runner.run(claim, meter, &token).await };
            fault::around(claim, meter, &token, run).await
        }
        .in_current_span(),
    );
    let attempt = job.await.unwrap_or_else(|end| panicked(&end));
    drop(keeping);
    let took = started.elapsed();
    match (&attempt.failure, stop.why()) {
        (_, Some(Why::Overtaken)) => {
            shared.figures.count_ended(Ended::Overtaken);
            tracing::warn!("overtaken: somebody else has this work by now; nothing is written");
        }
        (Some(_), Some(Why::Draining | Why::LeaseLost)) => hand_back(shared, claim, &meter, stop.why()).await,
        (failure, why) => {
            let ending = match (failure, why) {
                (None, _) => Ending::Completed,
                (Some(failure), Some(Why::Cancelled)) => Ending::Failed {
                    class: ErrorClass::Cancelled,
                    chain: ["cancelled while it ran".to_owned()].into_iter().chain(failure.chain.clone()).collect(),
                },
                (Some(failure), _) => Ending::Failed { class: failure.class, chain: failure.chain.clone() },
            };
            let ended_at = claim.claimed_at.after(took);
            record(shared, outcome(shared, claim, &attempt, &meter, ending, ended_at)).await;
        }
    }
}

fn outcome(
    shared: &Shared,
    claim: &Claim,
    attempt: &Attempt,
    meter: &Meter,
    ending: Ending,
    ended_at: Timestamp,
) -> AttemptOutcome {
    let (work, fence, began) = (claim.work, claim.fence, claim.claimed_at);
    let mut outcome = AttemptOutcome::new(work, fence, shared.config.name.clone(), began, ended_at, ending);
    outcome.bytes_done = meter.bytes().min(claim.bytes_total);
    outcome.evidence.clone_from(&attempt.evidence);
    outcome.log = attempt.log.join("\n");
    outcome
}

/// Writes an outcome: onto our own disk, then to the database, and both before the slot is free.
async fn record(shared: &Shared, outcome: AttemptOutcome) {
    shared.figures.count_outcome(&outcome);
    let outcome = Arc::new(outcome);
    match &outcome.ending {
        Ending::Failed { class, chain } => tracing::warn!(%class, error = chain.join(": "), "the attempt failed"),
        Ending::Completed | Ending::HandedBack { .. } => {
            tracing::info!(bytes = outcome.bytes_done, "the attempt is complete");
        }
    }
    let held = match shared.spool.hold(&outcome).await {
        Ok(held) => Some(held),
        Err(error) => {
            tracing::error!(%error, "an outcome is in memory only, until the database takes it");
            None
        }
    };
    // Whoever waits longer is replayed. Written twice it counts once.
    let later = match tokio::time::timeout(QUICK, write(shared, &outcome)).await {
        Ok(Written::Done) => {
            if let Some(held) = &held {
                shared.spool.forget(held);
            }
            return;
        }
        Ok(Written::Never(error)) => match &held {
            Some(held) => return shared.spool.set_aside(held, &error),
            None => error.to_string(),
        },
        Ok(Written::Later(error)) => error.to_string(),
        Err(_) => "the database does not answer".to_owned(),
    };
    tracing::debug!(error = later, "an outcome was not written yet");
    let kept = match held {
        Some(held) => shared.spool.keep(&held),
        None => match shared.spool.hold(&outcome).await {
            Ok(held) => shared.spool.keep(&held),
            Err(error) => Err(error),
        },
    };
    if let Err(error) = kept {
        // The lease runs out, and the work is done again; the receiver has the bytes.
        tracing::error!(%error, "an outcome is lost");
    }
}

/// What became of an outcome.
pub(super) enum Written {
    /// It is in the database, or nobody wants it any more.
    Done,
    /// The database is away.
    Later(StoreError),
    /// The database will never take it.
    Never(StoreError),
}

/// Tries once, with others that end now.
pub(super) async fn write(shared: &Shared, outcome: &Arc<AttemptOutcome>) -> Written {
    let result = shared.together.write(&shared.store, Arc::clone(outcome)).await;
    let (written, counted) = written(result, outcome);
    shared.figures.count_written(counted);
    written
}

fn written(result: Result<Recorded, StoreError>, outcome: &AttemptOutcome) -> (Written, Wrote) {
    match result {
        Ok(Recorded::Now { status, next_attempt_at }) => {
            let next = next_attempt_at.map(|at| at.to_string());
            tracing::info!(work = %outcome.work, fence = %outcome.fence, %status, next_attempt_at = next, "the outcome is written");
            (Written::Done, Wrote::Now)
        }
        Ok(Recorded::Before) => (Written::Done, Wrote::Before),
        Err(error @ StoreError::Stale { .. }) => {
            tracing::warn!(%error, "an outcome came too late and counts for nothing");
            (Written::Done, Wrote::Stale)
        }
        Err(error) if is_away(&error) => (Written::Later(error), Wrote::Later),
        // Perhaps a login or a schema that is being mended.
        Err(error @ (StoreError::Denied(_) | StoreError::Database(_))) => (Written::Later(error), Wrote::Later),
        Err(error) => (Written::Never(error), Wrote::Refused),
    }
}

async fn hand_back(shared: &Shared, claim: &Claim, meter: &Meter, why: Option<Why>) {
    let why = if why == Some(Why::LeaseLost) { "could not renew its lease" } else { "was told to stop" };
    let reason = format!("worker {} {why}", shared.config.name);
    let bytes = meter.bytes().min(claim.bytes_total);
    shared.figures.count_ended(Ended::HandedBack);
    match shared.store.hand_back(&shared.session, claim.work, claim.fence, bytes, &reason).await {
        Ok(_) => tracing::info!("handed back"),
        // Nothing is lost: the lease runs out, and that is no attempt.
        Err(error) => tracing::warn!(%error, "could not be handed back; its lease will run out"),
    }
}

fn panicked(end: &TaskEnd) -> Attempt {
    let mut attempt = Attempt { failure: Some(Failure::new(ErrorClass::Bug, end.to_string())), ..Attempt::default() };
    if let TaskEnd::Panicked(panic) = end {
        attempt.log.push(format!("{panic}\n{}", panic.backtrace));
    }
    attempt
}

/// For how long an outcome waits for the database before it is one that is replayed.
const QUICK: Duration = Duration::from_secs(5);
