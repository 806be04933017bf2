use ccat_xfer::{
    model::{BreakerState, DatedReason, Ending, ErrorClass, Obstacle, Reason, StartRate, Status},
    store::{Backend, Explanation, SweepRules, SwitchFilter},
};

use crate::{
    bed::Bed,
    world::{
        WORLD, apply, at_once, claim, end, failure, package, planned, run_one, set_free, set_location, submit,
        transfers, work, worker,
    },
};

const OUT: &[&str] = &["ccat_out_data_transfer"];
const QUEUE: &str = "ccat_out_data_transfer";

async fn explain(bed: &Bed, transfer: i64) -> Explanation {
    let explanation = bed.store.explain(work(transfer)).await.expect("explain");
    assert!(!explanation.reasons.is_empty());
    serde_json::to_string(&explanation).expect("JSON");
    explanation
}

/// The first reason.
async fn first(bed: &Bed, transfer: i64) -> DatedReason {
    explain(bed, transfer).await.reasons[0].clone()
}

pub(crate) async fn what_a_person_has_to_do(bed: &Bed) {
    apply(bed, WORLD).await;
    let id = planned(bed, "a", "ccat/out", "cologne").await[0];
    assert_eq!(first(bed, id).await.reason, Reason::NoWorker { queue: QUEUE.into() });
    let one = worker(&bed.store, "one", 1, OUT).await;
    assert_eq!(first(bed, id).await.reason, Reason::NotOffered { queue: QUEUE.into(), before: 0 });
    bed.store.schedule("manager").await.expect("schedule");
    assert_eq!(first(bed, id).await.reason, Reason::Offered { queue: QUEUE.into() });

    let route = SwitchFilter { routes: vec!["ccat-cologne".into()], ..SwitchFilter::default() };
    bed.store.switch(&route, true, "op", "storm", false).await.expect("pause");
    let told = first(bed, id).await;
    let paused = Reason::RoutePaused { route: "ccat-cologne".into(), why: "storm (by op)".into() };
    assert_eq!(told.reason, paused);
    assert!(told.since.is_some(), "it says since when");
    assert_eq!(told.text, "route ccat-cologne is paused: storm (by op); `resume` it");
    bed.store.switch(&route, false, "op", "over", false).await.expect("resume");
    bed.store.schedule("manager").await.expect("schedule");

    set_location(bed, "cologne_first", "paused = TRUE").await;
    let paused = Reason::LocationPaused { location: "cologne/first".into(), why: "set (by test)".into() };
    assert_eq!(first(bed, id).await.reason, paused);
    set_location(bed, "cologne_first", "paused = FALSE, active = FALSE").await;
    assert_eq!(first(bed, id).await.reason, Reason::LocationInactive { location: "cologne/first".into() });
    set_location(bed, "cologne_first", "active = TRUE").await;
    set_route(bed, "active = FALSE").await;
    assert_eq!(first(bed, id).await.reason, Reason::RouteInactive { route: "ccat-cologne".into() });
    set_route(bed, "active = TRUE").await;

    bed.store.stop_worker(&one).await.expect("stop");
    let told = first(bed, id).await;
    assert_eq!(told.reason, Reason::NoWorker { queue: QUEUE.into() }, "offered, and nobody there any more");
    assert!(told.since.is_some());

    let hops = planned(bed, "far", "ccat/out", "chile").await;
    let reason = first(bed, hops[1]).await.reason;
    assert_eq!(reason, Reason::FirstHop { hop: work(hops[0]), status: Status::Pending });
}

async fn set_route(bed: &Bed, what: &str) {
    bed.done(&format!(
        "UPDATE data_transfer_route SET {what}, changed_by = 'test', change_reason = 'six resets' \
         WHERE name = 'ccat-cologne'"
    ))
    .await;
}

pub(crate) async fn what_time_mends(bed: &Bed) {
    apply(bed, WORLD).await;
    let one = worker(&bed.store, "one", 1, OUT).await;
    let id = planned(bed, "a", "ccat/out", "cologne/first").await[0];
    let again = async || {
        bed.store.retry(&ccat_xfer::store::WorkFilter::default(), "op", "now", false).await.expect("retry");
    };
    // Backoff, with the last error and the next attempt.
    run_one(bed, &one, failure(ErrorClass::Network)).await;
    let told = explain(bed, id).await;
    assert!(matches!(&told.reasons[0].reason, Reason::Backoff { class: ErrorClass::Network, .. }), "{told:?}");
    assert_eq!(told.reasons[0].until, told.next_attempt_at);
    assert!(told.reasons[0].since.is_some() && told.next_attempt_at > told.reasons[0].since);
    let last = told.last_error.expect("the last error");
    assert_eq!((last.class, last.text.as_str()), (ErrorClass::Network, "a planted network: because"));
    again().await;
    run_one(bed, &one, failure(ErrorClass::MissingSource)).await;
    assert!(matches!(first(bed, id).await.reason, Reason::MissingSource { .. }));
    again().await;
    run_one(bed, &one, failure(ErrorClass::NoSpace)).await;
    let told = first(bed, id).await;
    assert!(
        matches!(&told.reason, Reason::DestinationFull { location, .. } if location == "cologne/first"),
        "{told:?}"
    );
    again().await;
    set_free(bed, "cologne_first", 10).await;
    let told = first(bed, id).await;
    assert!(matches!(&told.reason, Reason::DestinationFull { .. }), "told before it is tried: {told:?}");
    set_location(bed, "cologne_first", "free_bytes = NULL, free_bytes_at = NULL").await;

    // An open breaker, until it lets one through.
    let later = "breaker_until = created_at + 590000000";
    set_route(bed, &format!("breaker_state = 'open', breaker_failures = 6, {later}")).await;
    let told = first(bed, id).await;
    let state = BreakerState::Open;
    assert_eq!(
        told.reason,
        Reason::BreakerOpen { route: "ccat-cologne".into(), state, failures: 6, why: "six resets".into() }
    );
    assert!(told.since.is_some() && told.until > told.since);
    set_route(bed, "breaker_state = 'closed', breaker_until = NULL, breaker_failures = 0").await;

    // A rate that is used up, of the queue and of all.
    let rate = |starts| StartRate::new(starts, 3_600_000_000).expect("a rate");
    let queue = QUEUE.parse().expect("a queue");
    bed.store.set_rate_limit(Some(&queue), Some(rate(1))).await.expect("limit");
    bed.done("UPDATE rate_limit SET tokens_micro = 0").await;
    let told = first(bed, id).await;
    let limit = "1/h".to_owned();
    assert_eq!(told.reason, Reason::RateLimit { scope: format!("queue {QUEUE}"), limit: limit.clone() });
    assert!(told.until.is_some());
    bed.store.set_rate_limit(Some(&queue), None).await.expect("lift");
    bed.store.set_rate_limit(None, Some(rate(1))).await.expect("limit");
    bed.done("UPDATE rate_limit SET tokens_micro = 0").await;
    assert_eq!(first(bed, id).await.reason, Reason::RateLimit { scope: "all queues".into(), limit });
    bed.store.set_rate_limit(None, None).await.expect("lift");

    // Somebody else has the slot, or the only place on the route.
    bed.store.schedule("manager").await.expect("schedule");
    let held = claim(&bed.store, &one).await.expect("a claim");
    let other = planned(bed, "b", "ccat/out", "cologne/first").await[0];
    assert_eq!(held.work, work(id));
    assert_eq!(first(bed, other).await.reason, Reason::NoSlot { queue: QUEUE.into(), slots: 1 });
    set_route(bed, "max_concurrent = 1").await;
    let full = Reason::ConcurrencyLimit { place: "route ccat-cologne".into(), limit: 1 };
    assert_eq!(first(bed, other).await.reason, full);
    set_route(bed, "max_concurrent = NULL").await;
    set_location(bed, "cologne_first", "max_concurrent = 1").await;
    let full = Reason::ConcurrencyLimit { place: "location cologne/first".into(), limit: 1 };
    assert_eq!(first(bed, other).await.reason, full);
}

pub(crate) async fn what_is_over_or_runs(bed: &Bed) {
    apply(bed, WORLD).await;
    let one = worker(&bed.store, "one", 1, OUT).await;
    let id = planned(bed, "a", "ccat/out", "us").await[0];
    bed.store.schedule("manager").await.expect("schedule");
    let held = claim(&bed.store, &one).await.expect("a claim");
    assert_eq!(first(bed, id).await.reason, Reason::Running { worker: "one".into() });
    let filter = ccat_xfer::store::WorkFilter { ids: vec![id], ..Default::default() };
    bed.store.cancel(&filter, "op", "no", false).await.expect("cancel");
    assert_eq!(first(bed, id).await.reason, Reason::Cancelling { worker: "one".into() });
    bed.done("UPDATE data_transfer SET lease_until = 1").await;
    assert_eq!(first(bed, id).await.reason, Reason::LeaseExpired { worker: "one".into() });
    bed.store.cancel(&filter, "op", "at last", false).await.expect("cancel");
    let text = match bed.store.backend() {
        // Nobody will hear of it: it is over at once.
        Backend::Sqlite => "by op: at last",
        // No clock tells that there; the sweep sees it.
        Backend::Postgres => {
            bed.done("UPDATE data_transfer SET lease_us = 1").await;
            for _ in 0..2 {
                bed.store.sweep("m", &bed.store.lease_clock(), &SweepRules::default()).await.expect("sweep");
            }
            "cancelled; one, who had it, was not heard of"
        }
    };
    assert_eq!(first(bed, id).await.reason, Reason::Cancelled { text: text.into() });
    drop(held);
    let id = planned(bed, "b", "ccat/out", "us").await[0];
    run_one(bed, &one, failure(ErrorClass::SourceChanged)).await;
    let told = explain(bed, id).await;
    assert!(matches!(&told.reasons[0].reason, Reason::Failed { class: ErrorClass::SourceChanged, .. }), "{told:?}");
    assert_eq!(told.next_attempt_at, None);
    let id = planned(bed, "c", "ccat/out", "us").await[0];
    bed.store.schedule("manager").await.expect("schedule");
    let held = claim(&bed.store, &one).await.expect("a claim");
    end(&bed.store, &one, &held, Ending::Completed).await;
    let told = first(bed, id).await;
    assert_eq!(told.reason, Reason::Completed);
    assert!(told.since.is_some());
}

pub(crate) async fn a_request_without_a_way(bed: &Bed) {
    apply(bed, WORLD).await;
    set_location(bed, "us_buffer", "active = FALSE").await;
    let stuck = submit(bed, package("a", "ccat/out", 5), "us").await;
    let told = bed.store.request_obstacle(stuck.request).await.expect("explain");
    assert_eq!(told, Some(Obstacle::NoBuffer { site: "us".into() }));
    set_location(bed, "us_buffer", "active = TRUE").await;
    assert_eq!(bed.store.request_obstacle(stuck.request).await.expect("explain"), None);
    bed.store.plan(&at_once(), "manager").await.expect("plan");
    assert_eq!(transfers(bed, stuck.package.number()).await.len(), 1);
}
