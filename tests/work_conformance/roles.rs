//! PostgreSQL: each daemon does its part with its own role's rights.

use ccat_xfer::{
    model::{CheckMethod, Ending, ErrorClass, WorkerState},
    store::{Recorded, Renewal, Store, StoreError, SweepRules},
};

use crate::{
    bed::Bed,
    scene::{LEASE, QUEUE, claim, completed, enrol, failed, profile, sweep},
};

async fn log_in(bed: &Bed, login: &str, role: &str) -> Store {
    bed.login(login, role).await;
    Store::open(&bed.url_of(login)).await.expect("log in")
}

pub(crate) async fn a_workers_login_is_enough(bed: &Bed) {
    bed.apply_topology().await;
    let store = log_in(bed, "worker_ccat", "worker").await;
    let by = "changed_by = 'test', change_reason = 'test'";
    bed.done(&format!("UPDATE data_transfer_route SET max_concurrent = 1, {by}")).await;
    bed.store.set_rate_limit(None, Some("1000/s".parse().expect("a rate"))).await.expect("limit");
    let session = enrol(&store, "w", &[QUEUE]).await;
    let clock = store.lease_clock();
    store.heartbeat(&session, &clock, WorkerState::Active, &[]).await.expect("beat");
    store.report(&session, 2, &[(QUEUE.parse().expect("a queue"), 1 << 40)]).await.expect("report");
    let free = "SELECT free_bytes FROM data_location WHERE queue_stem = 'ccat_output_buffer'";
    assert_eq!(bed.int(free).await, 1 << 40);
    for _ in 0..3 {
        bed.scheduled().await;
    }
    let held = claim(&store, &session).await.expect("work");
    assert_eq!(held.members.len(), 1);
    assert_eq!(claim(&store, &session).await, None, "one at a time on this route");
    assert_eq!(store.renew(&session, held.work, held.fence, LEASE, &clock, 5).await.expect("renew"), Renewal::Held);
    assert!(matches!(store.finish(&completed(&held, "w"), 0).await, Ok(Recorded::Now { .. })));
    assert_eq!(store.finish(&completed(&held, "w"), 0).await.expect("replay"), Recorded::Before);

    let held = claim(&store, &session).await.expect("work");
    store.hand_back(&session, held.work, held.fence, 5, "stopping").await.expect("hand back");
    let held = claim(&store, &session).await.expect("work");
    bed.expire(held.work.number()).await;
    sweep(&bed.store, "m", &SweepRules::default()).await;
    let again = claim(&store, &session).await.expect("with the lost attempt");
    let mut rotten = completed(&again, "w");
    rotten.evidence[0].location = again.origin.location;
    rotten.evidence[0].method = CheckMethod::ReadBack;
    rotten.evidence[0].found_digest = [7; 32];
    rotten.ending = Ending::Failed { class: ErrorClass::CorruptAtSource, chain: Vec::new() };
    store.finish(&rotten, 0).await.expect("finish");
    bed.done(
        "UPDATE data_transfer SET status = 'scheduled', changed_by = 't', change_reason = 't' WHERE status = 'pending'",
    )
    .await;
    let held = claim(&store, &session).await.expect("work");
    store.finish(&failed(&held, "w", ErrorClass::Network), 0).await.expect("the breaker counts");
    store.keep_dead_letter(QUEUE, b"?", "{}", "does not decode").await.expect("keep");
    store.stop_worker(&session).await.expect("stop");

    // Another site's worker: neither this queue's work nor this worker's name.
    let other = log_in(bed, "worker_cologne", "worker").await;
    let error = other.register_worker(&profile("thief", "n", &[QUEUE]), &clock).await.expect_err("refused");
    assert!(matches!(error, StoreError::Denied(_)), "{error}");
    let session = enrol(&other, "c", &["cologne_buffer_data_transfer"]).await;
    let error = other.finish(&completed(&held, "c"), 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert_eq!(claim(&other, &session).await, None);
    store.close().await;
    other.close().await;
}

pub(crate) async fn a_managers_login_is_enough(bed: &Bed) {
    bed.apply_topology().await;
    let store = log_in(bed, "manager", "manager").await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let clock = store.lease_clock();
    let rules = SweepRules { losses: 0, ..SweepRules::default() };
    let (lost, ended) = (bed.scheduled().await, bed.scheduled().await);
    claim(&bed.store, &session).await.expect("work");
    claim(&bed.store, &session).await.expect("work");
    bed.expire(lost.transfer).await;
    assert_eq!(sweep(&store, "m", &SweepRules::default()).await.offered.len(), 1);
    bed.expire(ended.transfer).await;
    assert_eq!(sweep(&store, "m", &rules).await.failed.len(), 1);
    let mut batch = store.unsent(5).await.expect("hints");
    let id = batch.hints()[0].id;
    batch.mark_sent(id);
    batch.settle().await.expect("settle");
    bed.done("UPDATE outbox SET sent_at = 7, created_at = 7").await;
    assert_eq!(store.purge_outbox(std::time::Duration::from_secs(1), 5).await.expect("purge"), 1);
    assert_eq!(sweep(&store, "m", &rules).await.hinted, 1);
    bed.silence("w").await;
    assert_eq!(sweep(&store, "m", &rules).await.dead_workers, ["w"]);
    assert_eq!(store.workers(&clock).await.expect("list").len(), 1);
    store.set_rate_limit(None, Some("5/m".parse().expect("a rate"))).await.expect("limit");
    store.set_rate_limit(None, None).await.expect("lift");
    store.keep_dead_letter(QUEUE, b"?", "{}", "does not decode").await.expect("keep");
    let letters = store.dead_letters(0, 5, false).await.expect("list");
    assert_eq!(store.resolve_dead_letters(&[letters[0].id], "me").await.expect("resolve"), 1);
    // It cannot claim: it may not raise a fence.
    bed.scheduled().await;
    let clock = bed.store.lease_clock();
    bed.store.heartbeat(&session, &clock, WorkerState::Active, &[]).await.expect("beat");
    let queues: Vec<_> = session.queues().cloned().collect();
    let error = store.claim_next(&session, &queues, LEASE, &clock).await.expect_err("refused");
    assert!(matches!(error, StoreError::Denied(_)), "{error}");
    store.close().await;
}
