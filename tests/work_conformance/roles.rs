//! PostgreSQL: each daemon does its part with its own role's rights.

use ccat_xfer::{
    model::{CheckMethod, Ending, ErrorClass, ReadHow, Verification, WorkerState},
    store::{ArchiveLimits, Finding, Looked, Recorded, Renewal, Store, StoreError, SweepRules},
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

/// A manager plans, a worker archives and looks after it: each with its own role's rights.
pub(crate) async fn archives_need_no_more_than_their_logins(bed: &Bed) {
    const LTA: &str = "cologne_lta_long_term_archive_transfer";
    bed.apply_topology().await;
    let manager = log_in(bed, "manager", "manager").await;
    let worker = log_in(bed, "worker_cologne", "worker").await;
    let other = log_in(bed, "worker_ccat", "worker").await;
    let package = bed.planned().await.package;
    let buffer = bed.location("cologne_buffer").await;
    bed.done(&format!(
        "INSERT INTO raw_data_package_metadata (package_id, metadata) VALUES ({package}, '{{\"obs_id\": \"7\"}}')"
    ))
    .await;
    let planned = crate::bed::Planned { package, bundle: 0, transfer: 0 };
    let without = [("data_transfer_id", "NULL".to_owned()), ("fence", "NULL".to_owned())];
    bed.done(&bed.record(&planned, buffer, 1, &without)).await;
    bed.done(&bed.copy(package, buffer)).await;

    let limits = ArchiveLimits::default();
    assert_eq!(manager.plan_archives(&limits, None, "m").await.expect("plan").transfers, 1);
    let session = enrol(&worker, "keeper", &[LTA]).await;
    manager.schedule("m").await.expect("schedule");
    let held = claim(&worker, &session).await.expect("archive work");
    assert!(held.archive.is_some_and(|terms| !terms.replace));
    let dossier = worker.dossier(held.members[0].package).await.expect("what its sidecar says");
    assert_eq!((dossier.metadata.as_deref(), dossier.required.len()), (Some(r#"{"obs_id": "7"}"#), 1));
    let error = other.dossier(held.members[0].package).await;
    assert!(error.is_ok(), "it lies at its origin: {error:?}");
    let mut archived = completed(&held, "keeper");
    let evidence = &mut archived.evidence[0];
    (evidence.method, evidence.cached, evidence.how) = (CheckMethod::ReadBack, false, Some(ReadHow::Direct));
    assert!(matches!(worker.finish(&archived, 0).await, Ok(Recorded::Now { .. })));
    manager.settle(10, "m").await.expect("settle");
    let state = format!("SELECT count(*) FROM raw_data_package WHERE id = {package} AND state = 'archived'");
    assert_eq!(bed.int(&state).await, 1);

    let now = worker.now().await.expect("the time");
    let copy = worker.next_to_check(held.destination.location, now, None, 5).await.expect("look").remove(0);
    let mut found = archived.evidence[0].clone();
    (found.method, found.found_digest) = (CheckMethod::Scrub, [7; 32]);
    let error = other.record_check(&copy, Finding::Read(&found), "thief").await.expect_err("not its archive");
    assert!(matches!(error, StoreError::Denied(_) | StoreError::NotFound { .. }), "{error}");
    let looked = worker.record_check(&copy, Finding::Read(&found), "keeper").await.expect("record");
    assert_eq!(looked, Looked::Recorded(Verification::Corrupt));
    assert_eq!(bed.int(&state).await, 0, "the package leaves `archived` though its worker may not say so itself");
    assert_eq!(manager.plan_archives(&limits, None, "m").await.expect("plan").repairs, 1);
    for store in [manager, worker, other] {
        store.close().await;
    }
}
