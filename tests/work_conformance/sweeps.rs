use std::{collections::BTreeSet, time::Duration};

use ccat_xfer::{
    model::{ErrorClass, Status},
    store::{Backend, LeaseClock, Recorded, Renewal, StoreError, SweepRules, Swept, Wakeup, WorkFilter},
};
use futures_util::future::join_all;

use crate::{
    bed::Bed,
    harness::{LIMIT, seed},
    scene::{self, LEASE, QUEUE, claim, completed, enrol, failed, work},
};

async fn sweep(bed: &Bed, rules: &SweepRules) -> Swept {
    scene::sweep(&bed.store, "manager", rules).await
}

pub(crate) async fn a_lost_lease_is_offered_again(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    assert_eq!(sweep(bed, &SweepRules::default()).await.offered, [], "its lease holds");
    let clock = bed.store.lease_clock();
    let renewal = bed.store.renew(&session, held.work, held.fence, LEASE, &clock, 400).await.expect("renew");
    assert_eq!(renewal, Renewal::Held);
    assert_eq!(bed.int("SELECT bytes_done FROM data_transfer").await, 400);
    bed.store.renew(&session, held.work, held.fence, LEASE, &clock, 300).await.expect("renew");
    assert_eq!(bed.int("SELECT bytes_done FROM data_transfer").await, 400, "progress does not go back");
    bed.store.renew(&session, held.work, held.fence, LEASE, &clock, u64::MAX).await.expect("renew");
    assert_eq!(bed.int("SELECT bytes_done FROM data_transfer").await, 1000, "and is not above all there is");

    bed.expire(transfer).await;
    let hints = bed.int("SELECT count(*) FROM outbox").await;
    assert_eq!(sweep(bed, &SweepRules::default()).await.offered, [held.work]);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, hints + 1);
    let row = "data_transfer WHERE status = 'scheduled' AND owner IS NULL AND losses = 1 AND retry_count = 0 \
               AND attempt = 1 AND fence = 1";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1, "losing a lease is no attempt");
    assert_eq!(bed.int("SELECT count(*) FROM attempt").await, 0, "it may come back");
    assert_eq!(claim(&bed.store, &session).await.expect("offered").attempt, 2);

    if bed.store.backend() == Backend::Sqlite {
        // The machine was restarted: what was leased before it is over, whatever the clocks say.
        let clock = LeaseClock { boot: "another boot".into(), now_us: Some(1), steady_us: 1 };
        let swept = bed.store.sweep("manager", &clock, &SweepRules::default()).await.expect("sweep");
        assert_eq!(swept.offered, [held.work]);
    }
}

/// A worker that had lost sight of the database finds its own work offered when it comes back.
pub(crate) async fn what_a_worker_runs_it_does_not_claim_again(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    session.hold(held.work);
    bed.expire(transfer).await;
    assert_eq!(sweep(bed, &SweepRules::default()).await.offered, [held.work]);
    assert_eq!(claim(&bed.store, &session).await, None, "it runs here already");
    let clock = bed.store.lease_clock();
    let renewal = bed.store.renew(&session, held.work, held.fence, LEASE, &clock, 700).await.expect("renew");
    assert_eq!(renewal, Renewal::Revived, "the same attempt goes on");
    bed.expire(transfer).await;
    sweep(bed, &SweepRules::default()).await;
    session.release(held.work);
    assert_eq!(claim(&bed.store, &session).await.expect("it has ended here").attempt, 2);
    // Another process of that name runs nothing yet.
    bed.expire(transfer).await;
    sweep(bed, &SweepRules::default()).await;
    session.hold(held.work);
    let other = enrol(&bed.store, "other", &[QUEUE]).await;
    assert_eq!(claim(&bed.store, &other).await.expect("offered to anybody else").attempt, 3);
}

pub(crate) async fn a_late_owner_is_back_unless_overtaken(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let (late, other) = (enrol(&bed.store, "late", &[QUEUE]).await, enrol(&bed.store, "other", &[QUEUE]).await);
    let held = claim(&bed.store, &late).await.expect("work");
    bed.expire(transfer).await;
    sweep(bed, &SweepRules::default()).await;
    let clock = bed.store.lease_clock();
    let renew = async || bed.store.renew(&late, held.work, held.fence, LEASE, &clock, 700).await.expect("renew");
    assert_eq!(renew().await, Renewal::Revived);
    assert_eq!(renew().await, Renewal::Held);
    let row = "data_transfer WHERE status = 'in_progress' AND fence = 1 AND losses = 0";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1);
    assert_eq!(claim(&bed.store, &other).await, None, "it is taken again");

    // A late outcome counts as well, while nobody has claimed the work since.
    bed.expire(transfer).await;
    sweep(bed, &SweepRules::default()).await;
    assert_eq!(bed.status(transfer).await, "scheduled");
    let recorded = bed.store.finish(&completed(&held, "late"), 0).await.expect("finish");
    assert_eq!(recorded, Recorded::Now { status: Status::Completed, next_attempt_at: None });
    assert_eq!(claim(&bed.store, &other).await, None);

    // An attempt that ended does not come back.
    let transfer = bed.scheduled().await.transfer;
    let held = claim(&bed.store, &late).await.expect("work");
    bed.store.finish(&failed(&held, "late", ErrorClass::RemoteBusy), 0).await.expect("finish");
    let renewal = bed.store.renew(&late, held.work, held.fence, LEASE, &clock, 1).await.expect("renew");
    assert_eq!(renewal, Renewal::Overtaken);
    assert_eq!(bed.status(transfer).await, "pending");
}

pub(crate) async fn too_many_losses_end_it(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "killer", &[QUEUE]).await;
    let rules = SweepRules { losses: 2, ..SweepRules::default() };
    let mut last = None;
    for n in 0..3 {
        let held = claim(&bed.store, &session).await.expect("work");
        bed.expire(transfer).await;
        let swept = sweep(bed, &rules).await;
        assert_eq!((swept.offered.len(), swept.failed.len()), if n < 2 { (1, 0) } else { (0, 1) }, "loss {n}");
        last = Some(held);
    }
    let row = "data_transfer WHERE status = 'failed' AND error_class = 'lost_worker'";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1);
    let lost = "attempt WHERE outcome = 'lost_worker' AND worker_name = 'killer'";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {lost}")).await, 3);
    let error = bed.store.finish(&completed(&last.expect("three"), "killer"), 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::Stale { .. }), "{error}");

    // A person who retries it gives it all its chances again.
    bed.done(&format!(
        "UPDATE data_transfer SET status = 'pending', finished_at = NULL, changed_by = 'me', change_reason = 'retry' \
         WHERE id = {transfer}"
    ))
    .await;
    bed.schedule(transfer).await;
    claim(&bed.store, &session).await.expect("work");
    bed.expire(transfer).await;
    assert_eq!(sweep(bed, &rules).await.offered.len(), 1);

    // What ended otherwise in between counts anew.
    let held = claim(&bed.store, &session).await.expect("work");
    bed.store.finish(&failed(&held, "killer", ErrorClass::RemoteBusy), 0).await.expect("finish");
    assert_eq!(bed.int("SELECT losses FROM data_transfer").await, 0);
}

pub(crate) async fn cancelled_work_is_not_offered_again(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    claim(&bed.store, &session).await.expect("work");
    bed.done("UPDATE data_transfer SET cancel_requested = TRUE, changed_by = 'me', change_reason = 'no'").await;
    bed.expire(planned.transfer).await;
    assert_eq!(sweep(bed, &SweepRules::default()).await.cancelled, [work(&planned)]);
    let row = "data_transfer WHERE status = 'failed' AND error_class = 'cancelled'";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1);
}

pub(crate) async fn two_managers_sweep_once(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    for _ in 0..20 {
        bed.scheduled().await;
        claim(&bed.store, &session).await.expect("work");
    }
    bed.done("UPDATE data_transfer SET lease_until = 1, lease_us = 1").await;
    let rules = SweepRules { batch: 7, ..SweepRules::default() };
    let once = async || bed.store.sweep("manager", &scene::later(&bed.store), &rules).await.expect("sweep");
    if bed.store.backend() == Backend::Postgres {
        assert_eq!(once().await.offered, [], "nobody is judged at the first look");
    }
    let mut offered = Vec::new();
    while offered.len() < 20 {
        let swept = join_all((0..3).map(|_| once())).await;
        let now: Vec<_> = swept.into_iter().flat_map(|s| s.offered).collect();
        assert!(!now.is_empty() && now.len() <= 21, "a batch is a batch, and something is left: {}", offered.len());
        offered.extend(now);
    }
    assert_eq!(offered.iter().collect::<BTreeSet<_>>().len(), 20, "each once");
    assert_eq!(offered.len(), 20);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, 20);
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE losses = 1 AND status = 'scheduled'").await, 20);
}

pub(crate) async fn a_lost_hint_is_written_again(bed: &Bed) {
    bed.apply_topology().await;
    bed.scheduled().await;
    bed.scheduled().await;
    let rules = SweepRules { hint_age: Duration::from_secs(30), ..SweepRules::default() };
    assert_eq!(sweep(bed, &rules).await.hinted, 0, "nobody serves the queue");
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    assert_eq!(sweep(bed, &rules).await.hinted, 1, "one for the queue");
    assert_eq!(sweep(bed, &rules).await.hinted, 0, "it is not sent yet");
    bed.done("UPDATE outbox SET sent_at = now() WHERE sent_at IS NULL".replace("now()", "7").as_str()).await;
    assert_eq!(sweep(bed, &rules).await.hinted, 0, "it is new");
    bed.done("UPDATE outbox SET created_at = created_at - 31000000").await;
    assert_eq!(sweep(bed, &rules).await.hinted, 1, "it is old, and work still waits");
    let batch = bed.store.unsent(10).await.expect("hints");
    assert_eq!(batch.hints().len(), 1);
    assert_eq!(batch.hints()[0].queue.to_string(), QUEUE);
    drop(batch);
    while claim(&bed.store, &session).await.is_some() {}
    bed.done("UPDATE outbox SET sent_at = 7, created_at = 7").await;
    assert_eq!(sweep(bed, &rules).await.hinted, 0, "nothing waits");
}

pub(crate) async fn hints_are_published_and_forgotten(bed: &Bed) {
    bed.apply_topology().await;
    let here = bed.location("ccat_output_buffer").await;
    for n in 1..=6 {
        bed.done(&format!(
            "INSERT INTO outbox (location_id, operation, work_id, priority) VALUES ({here}, 'data_transfer', {n}, {n})"
        ))
        .await;
    }
    let mut first = bed.store.unsent(2).await.expect("hints");
    let ids = |batch: &ccat_xfer::store::OutboxBatch| batch.hints().iter().map(|h| h.id).collect::<Vec<_>>();
    let taken = ids(&first);
    assert_eq!(taken.len(), 2);
    if bed.store.backend() == Backend::Postgres {
        let second = bed.store.unsent(10).await.expect("hints");
        assert_eq!(second.hints().len(), 4, "another relay gets the others");
        assert!(ids(&second).iter().all(|id| !taken.contains(id)));
    }
    first.mark_sent(taken[0]);
    first.note_failure(taken[1], "no such queue");
    first.settle().await.expect("settle");
    let rest = bed.store.unsent(10).await.expect("hints");
    assert_eq!(rest.hints().len(), 5);
    let last = rest.hints().last().expect("five");
    assert_eq!((last.id, last.tries), (taken[1], 1), "what fails stands behind");
    assert_eq!(last.work.map(|w| w.number()), Some(2));
    drop(rest);
    assert_eq!(bed.store.purge_outbox(Duration::from_secs(3600), 10).await.expect("purge"), 0, "it is new");
    bed.done("UPDATE outbox SET sent_at = 7 WHERE sent_at IS NOT NULL").await;
    assert_eq!(bed.store.purge_outbox(Duration::from_secs(3600), 10).await.expect("purge"), 1);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, 5, "the unsent stay");
}

pub(crate) async fn waiting_tasks_are_woken(bed: &Bed) {
    bed.apply_topology().await;
    let mut rng = seed("waiting_tasks_are_woken");
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let all = [Wakeup::Pending, Wakeup::Outbox, Wakeup::Cancel];
    let mut wakeups = bed.store.wakeups();
    if bed.store.backend() == Backend::Postgres {
        // Everybody looks once when listening begins.
        for &kind in &all {
            tokio::time::timeout(LIMIT, wakeups.next(&[kind])).await.expect("listening");
        }
    }
    for _ in 0..3 {
        let planned = bed.scheduled().await;
        let held = claim(&bed.store, &session).await.expect("work");
        while tokio::time::timeout(Duration::from_millis(300), wakeups.next(&all)).await.is_ok() {}
        if rng.below(2) == 0 {
            bed.store.hand_back(&session, held.work, held.fence, 0, "stopping").await.expect("hand back");
            tokio::time::timeout(LIMIT, wakeups.next(&[Wakeup::Pending])).await.expect("pending");
        } else {
            bed.expire(planned.transfer).await;
            sweep(bed, &SweepRules::default()).await;
            tokio::time::timeout(LIMIT, wakeups.next(&[Wakeup::Outbox])).await.expect("outbox");
        }
        if bed.store.backend() == Backend::Postgres {
            // Whoever wrote it.
            bed.done(&format!(
                "UPDATE data_transfer SET cancel_requested = TRUE, changed_by = 'me', change_reason = 'no' WHERE id = {}",
                planned.transfer
            ))
            .await;
            tokio::time::timeout(LIMIT, wakeups.next(&[Wakeup::Cancel])).await.expect("cancel");
        }
        bed.exec(&format!(
            "UPDATE data_transfer SET status = 'failed', finished_at = 1, error_class = 'cancelled', error_text = 'x', \
             owner = NULL, lease_until = NULL, lease_boot = NULL WHERE id = {}",
            planned.transfer
        ))
        .await
        .expect("out of the way");
    }
    while tokio::time::timeout(Duration::from_millis(300), wakeups.next(&all)).await.is_ok() {}
    bed.register("new/one", "cologne/buffer").await;
    tokio::time::timeout(LIMIT, wakeups.next(&[Wakeup::Pending]))
        .await
        .expect("what was registered is planned at once");
}

/// Seen to fail when the error of one row ends the sweep.
pub(crate) async fn a_bad_row_holds_up_no_other(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        bed.scheduled().await;
        held.push(claim(&bed.store, &session).await.expect("work").work);
    }
    // More retries than this program can count.
    bed.done(&format!("UPDATE data_transfer SET retry_count = 5000000000 WHERE id = {}", held[0].number())).await;
    bed.done("UPDATE data_transfer SET lease_until = 1, lease_us = 1").await;
    let swept = sweep(bed, &SweepRules::default()).await;
    assert_eq!(swept.offered, held[1..]);
    assert!(!swept.refused.is_empty() && swept.refused.iter().all(|(work, _)| *work == held[0]), "{swept:?}");
    assert_eq!(bed.status(held[0].number()).await, "in_progress");
}

/// Seen to fail without the row that cancelling writes.
pub(crate) async fn cancelled_after_a_loss_it_has_its_attempt(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    bed.expire(transfer).await;
    assert_eq!(sweep(bed, &SweepRules::default()).await.offered, [held.work]);
    let filter = WorkFilter { ids: vec![transfer], ..WorkFilter::default() };
    bed.store.cancel(&filter, "op", "no longer wanted", false).await.expect("cancel");
    assert_eq!(bed.status(transfer).await, "failed");
    let lost = "attempt WHERE fence = 1 AND outcome = 'lost_worker' AND worker_name = 'w'";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {lost}")).await, 1);
    let error = bed.store.finish(&completed(&held, "w"), 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::Stale { .. }), "{error}");
}
