use std::time::Duration;

use ccat_xfer::{
    model::{ArchiveTransferId, Breaker, CheckMethod, Ending, ErrorClass, Fence, Status, Timestamp, TransferId, Work},
    store::{Recorded, Renewal, StoreError, SweepRules},
};
use futures_util::future::join_all;

use crate::{
    bed::Bed,
    scene::{LEASE, QUEUE, claim, completed, enrol, failed, outcome, sweep},
};

/// Seen to fail with the fence left out of `store::finish` (the comparison with the row's, and the look for an attempt
/// that ended it): the overtaken owner then completes its successor's attempt. With the comparison alone left out, the
/// lost attempt that was written before still refuses the lower fence, and the case fails at the fence from nowhere.
pub(crate) async fn an_overtaken_owner_writes_nothing(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let (first, second) = (enrol(&bed.store, "first", &[QUEUE]).await, enrol(&bed.store, "second", &[QUEUE]).await);
    let old = claim(&bed.store, &first).await.expect("work");
    bed.expire(transfer).await;
    let clock = bed.store.lease_clock();
    let swept = sweep(&bed.store, "m", &SweepRules::default()).await;
    assert_eq!(swept.offered, [old.work]);
    let new = claim(&bed.store, &second).await.expect("it is offered again");
    assert_eq!((new.work, new.fence), (old.work, Fence::new(2)));
    let lost = "SELECT count(*) FROM attempt WHERE fence = 1 AND outcome = 'lost_worker' AND worker_name = 'first'";
    assert_eq!(bed.int(lost).await, 1, "the lost attempt is written before the fence rises");

    let before = bed.footprint().await;
    let refused = bed.store.stale_refusals();
    for late in [completed(&old, "first"), failed(&old, "first", ErrorClass::Network)] {
        let error = bed.store.finish(&late, 0).await.expect_err("refused");
        assert!(matches!(error, StoreError::Stale { fence, .. } if fence == Fence::new(1)), "{error}");
    }
    let error = bed.store.hand_back(&first, old.work, old.fence, 500, "stopping").await.expect_err("refused");
    assert!(matches!(error, StoreError::Stale { .. }), "{error}");
    let mut from_nowhere = failed(&new, "second", ErrorClass::Network);
    from_nowhere.fence = Fence::new(3);
    let error = bed.store.finish(&from_nowhere, 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::Stale { .. }), "{error}");
    let renewal = bed.store.renew(&first, old.work, old.fence, LEASE, &clock, 900).await.expect("renew");
    assert_eq!(renewal, Renewal::Overtaken);
    assert_eq!(bed.footprint().await, before);
    assert_eq!(bed.store.stale_refusals(), refused + 5);

    let recorded = bed.store.finish(&completed(&new, "second"), 0).await.expect("finish");
    assert_eq!(recorded, Recorded::Now { status: Status::Completed, next_attempt_at: None });
    let before = bed.footprint().await;
    bed.store.finish(&completed(&old, "first"), 0).await.expect_err("refused");
    assert_eq!(bed.footprint().await, before, "also after the end");
}

pub(crate) async fn a_replayed_outcome_counts_once(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let transfer = bed.scheduled().await.transfer;
    let held = claim(&bed.store, &session).await.expect("work");
    let done = completed(&held, "w");
    // Several copies of one outcome at once, as after a connection that broke while it committed.
    let answers = join_all((0..4).map(|_| bed.store.finish(&done, 3))).await;
    let answers: Vec<Recorded> = answers.into_iter().map(|a| a.expect("finish")).collect();
    assert_eq!(answers.iter().filter(|&a| *a == Recorded::Before).count(), 3, "{answers:?}");
    let before = bed.footprint().await;
    assert_eq!(bed.store.finish(&done, 3).await.expect("replay"), Recorded::Before);
    let error = bed.store.finish(&failed(&held, "w", ErrorClass::Network), 3).await.expect_err("refused");
    assert!(matches!(error, StoreError::Stale { .. }), "one fence ends once: {error}");
    assert_eq!(bed.footprint().await, before);
    assert_eq!(bed.status(transfer).await, "completed");
    for what in [
        "verification_record WHERE fence = 1",
        "attempt WHERE outcome = 'completed' AND number = 1 AND bytes_done = 1000 AND log = 'what happened'",
        "physical_copy WHERE status = 'present' AND verification = 'verified'",
        "data_transfer WHERE status = 'completed' AND bytes_done = 1000 AND owner IS NULL AND finished_at IS NOT NULL",
    ] {
        assert_eq!(bed.int(&format!("SELECT count(*) FROM {what}")).await, 1, "{what}");
    }

    // A failure that is replayed counts as one failure.
    let transfer = bed.scheduled().await.transfer;
    let held = claim(&bed.store, &session).await.expect("work");
    let broken = failed(&held, "w", ErrorClass::Network);
    assert!(matches!(bed.store.finish(&broken, 3).await, Ok(Recorded::Now { status: Status::Pending, .. })));
    assert_eq!(bed.store.finish(&broken, 3).await.expect("replay"), Recorded::Before);
    assert_eq!(bed.int(&format!("SELECT retry_count FROM data_transfer WHERE id = {transfer}")).await, 1);
}

/// Catches a judgement that `finish_completed` leaves out: the overtaken outcome would count.
pub(crate) async fn of_several_outcomes_each_gets_its_own_answer(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let other = enrol(&bed.store, "other", &[QUEUE]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        bed.scheduled().await;
        held.push(claim(&bed.store, &session).await.expect("work"));
    }
    let overtaken = held[0].clone();
    bed.expire(overtaken.work.number()).await;
    sweep(&bed.store, "m", &SweepRules::default()).await;
    let anew = claim(&bed.store, &other).await.expect("it is offered again");
    assert_eq!((anew.work, anew.fence), (overtaken.work, Fence::new(2)));
    bed.store.finish(&completed(&anew, "other"), 0).await.expect("finish");
    bed.scheduled().await;
    let third = claim(&bed.store, &session).await.expect("work");
    let replayed = completed(&held[1], "w");
    bed.store.finish(&replayed, 0).await.expect("finish");
    bed.scheduled().await;
    let fourth = claim(&bed.store, &session).await.expect("work");
    bed.scheduled().await;
    let fifth = claim(&bed.store, &session).await.expect("work");

    let all = [
        completed(&overtaken, "w"),
        completed(&third, "w"),
        failed(&fourth, "w", ErrorClass::Network),
        replayed,
        completed(&fifth, "w"),
        completed(&third, "w"),
    ];
    let refused = bed.store.stale_refusals();
    let answers = bed.store.finish_all(&all.iter().collect::<Vec<_>>(), 3).await;
    let done = Recorded::Now { status: Status::Completed, next_attempt_at: None };
    assert!(matches!(answers[0], Err(StoreError::Stale { fence, .. }) if fence == Fence::new(1)), "{:?}", answers[0]);
    assert_eq!(answers[1].as_ref().expect("finish"), &done);
    assert!(matches!(answers[2], Ok(Recorded::Now { status: Status::Pending, .. })), "{:?}", answers[2]);
    assert_eq!(answers[3].as_ref().expect("finish"), &Recorded::Before);
    assert_eq!(answers[4].as_ref().expect("finish"), &done);
    assert_eq!(answers[5].as_ref().expect("finish"), &Recorded::Before, "the same once more");
    assert_eq!(bed.store.stale_refusals(), refused + 1);
    for claim in [&third, &fifth] {
        let number = claim.work.number();
        assert_eq!(bed.status(number).await, "completed");
        for what in [
            format!("attempt WHERE data_transfer_id = {number} AND outcome = 'completed' AND worker_name = 'w'"),
            format!("verification_record WHERE data_transfer_id = {number} AND fence = 1"),
            format!("data_transfer WHERE id = {number} AND bytes_done = 1000 AND owner IS NULL AND changed_by = 'w'"),
            format!(
                "event WHERE entity = 'data_transfer' AND entity_id = {number} AND to_state = 'completed' AND reason = \
                     'attempt 1 delivered everything'"
            ),
        ] {
            assert_eq!(bed.int(&format!("SELECT count(*) FROM {what}")).await, 1, "{what}");
        }
    }
}

/// Catches a first outcome that is not judged.
pub(crate) async fn an_overtaken_outcome_among_others_takes_nothing_from_its_new_owner(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let other = enrol(&bed.store, "other", &[QUEUE]).await;
    bed.scheduled().await;
    let overtaken = claim(&bed.store, &session).await.expect("work");
    bed.expire(overtaken.work.number()).await;
    sweep(&bed.store, "m", &SweepRules::default()).await;
    let anew = claim(&bed.store, &other).await.expect("it is offered again");
    bed.scheduled().await;
    let own = claim(&bed.store, &session).await.expect("work");
    let (late, done) = (completed(&overtaken, "w"), completed(&own, "w"));
    let answers = bed.store.finish_all(&[&late, &done], 3).await;
    assert!(matches!(answers[0], Err(StoreError::Stale { .. })), "{:?}", answers[0]);
    assert!(matches!(answers[1], Ok(Recorded::Now { status: Status::Completed, .. })), "{:?}", answers[1]);
    assert_eq!(bed.status(anew.work.number()).await, "in_progress");
    bed.store.finish(&completed(&anew, "other"), 0).await.expect("it is still the other one's");
}

pub(crate) async fn a_lie_among_several_outcomes_harms_no_other(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        bed.scheduled().await;
        held.push(claim(&bed.store, &session).await.expect("work"));
    }
    let (truth, mut lie) = (completed(&held[0], "w"), completed(&held[1], "w"));
    lie.evidence.clear();
    let answers = bed.store.finish_all(&[&truth, &lie], 0).await;
    assert!(matches!(answers[0], Ok(Recorded::Now { status: Status::Completed, .. })), "{:?}", answers[0]);
    assert!(matches!(answers[1], Err(StoreError::Refused(_))), "{:?}", answers[1]);
    assert_eq!(bed.status(held[1].work.number()).await, "in_progress");
}

pub(crate) async fn completed_without_records_is_refused(bed: &Bed) {
    bed.apply_topology().await;
    bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let before = bed.footprint().await;
    let mut none = completed(&held, "w");
    none.evidence.clear();
    let mut other_bytes = completed(&held, "w");
    other_bytes.evidence[0].found_digest = [9; 32];
    let mut other_size = completed(&held, "w");
    other_size.evidence[0].found_size_bytes -= 1;
    let mut other_expectation = completed(&held, "w");
    other_expectation.evidence[0].expected_digest = [9; 32];
    other_expectation.evidence[0].found_digest = [9; 32];
    let mut elsewhere = completed(&held, "w");
    elsewhere.evidence[0].location = held.origin.location;
    for lie in [none, other_bytes, other_size, other_expectation, elsewhere] {
        let error = bed.store.finish(&lie, 0).await.expect_err("refused");
        assert!(matches!(error, StoreError::Refused(_)), "{error}");
        assert_eq!(bed.footprint().await, before, "all or nothing");
    }
    bed.store.finish(&completed(&held, "w"), 0).await.expect("the truth is accepted");

    // What was there already and is equal is as good as what arrived.
    bed.scheduled().await;
    let held = claim(&bed.store, &session).await.expect("work");
    let mut there = completed(&held, "w");
    there.evidence[0].method = CheckMethod::FoundEqual;
    there.bytes_done = 0;
    assert!(matches!(bed.store.finish(&there, 0).await, Ok(Recorded::Now { status: Status::Completed, .. })));
}

pub(crate) async fn failures_are_retried_as_their_class_says(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let transfer = bed.scheduled().await.transfer;
    for n in 0..3u32 {
        let held = claim(&bed.store, &session).await.expect("work");
        let before = bed.store.now().await.expect("a clock");
        let recorded = bed.store.finish(&failed(&held, "w", ErrorClass::RemoteBusy), u32::MAX / 2).await;
        let after = bed.store.now().await.expect("a clock");
        let Ok(Recorded::Now { status: Status::Pending, next_attempt_at: Some(next) }) = recorded else {
            panic!("{recorded:?}")
        };
        let wait = ErrorClass::RemoteBusy.policy().wait(n, u32::MAX / 2).expect("a retry");
        assert!(next >= before.after(wait) && next <= after.after(wait), "{n}: {before} + {wait:?} is not {next}");
        let row = format!(
            "data_transfer WHERE id = {transfer} AND status = 'pending' AND retry_count = {} AND next_attempt_at = {} \
             AND error_class = 'remote_busy' AND error_text = 'it did not work: remote_busy'",
            n + 1,
            next.micros()
        );
        assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1, "{n}");
        bed.schedule(transfer).await;
    }
    // Each class has its own limit: one retry after a bug, whatever else went wrong before.
    let held = claim(&bed.store, &session).await.expect("work");
    let once = bed.store.finish(&failed(&held, "w", ErrorClass::Bug), 0).await;
    assert!(matches!(once, Ok(Recorded::Now { status: Status::Pending, .. })), "{once:?}");
    bed.schedule(transfer).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let twice = bed.store.finish(&failed(&held, "w", ErrorClass::Bug), 0).await.expect("finish");
    assert_eq!(twice, Recorded::Now { status: Status::Failed, next_attempt_at: None });
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'failed' AND error_class = 'bug'").await, 1);

    for class in [
        ErrorClass::SourceChanged,
        ErrorClass::DestinationDiffers,
        ErrorClass::Configuration,
        ErrorClass::CorruptAtSource,
        ErrorClass::Cancelled,
    ] {
        bed.scheduled().await;
        let held = claim(&bed.store, &session).await.expect("work");
        let recorded = bed.store.finish(&failed(&held, "w", class), 0).await.expect("finish");
        assert_eq!(recorded, Recorded::Now { status: Status::Failed, next_attempt_at: None }, "{class}");
    }
    // Somebody does not want it any more: no retry.
    let transfer = bed.scheduled().await.transfer;
    let held = claim(&bed.store, &session).await.expect("work");
    bed.done(&format!(
        "UPDATE data_transfer SET cancel_requested = TRUE, changed_by = 'test', change_reason = 'no' WHERE id = {transfer}"
    ))
    .await;
    let clock = bed.store.lease_clock();
    let renewal = bed.store.renew(&session, held.work, held.fence, LEASE, &clock, 1).await.expect("renew");
    assert_eq!(renewal, Renewal::CancelRequested);
    let recorded = bed.store.finish(&failed(&held, "w", ErrorClass::Network), 0).await.expect("finish");
    assert_eq!(recorded, Recorded::Now { status: Status::Failed, next_attempt_at: None });
    let row = format!("data_transfer WHERE id = {transfer} AND error_class = 'cancelled'");
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1);
}

pub(crate) async fn handed_back_work_is_no_failure(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let recorded = bed.store.hand_back(&session, held.work, held.fence, 600, "stopping").await.expect("hand back");
    let Recorded::Now { status: Status::Pending, next_attempt_at: Some(due) } = recorded else {
        panic!("{recorded:?}")
    };
    assert!(due <= bed.store.now().await.expect("a clock"), "at once");
    let row = format!(
        "data_transfer WHERE id = {transfer} AND retry_count = 0 AND bytes_done = 600 AND error_class IS NULL \
         AND owner IS NULL"
    );
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {row}")).await, 1);
    bed.schedule(transfer).await;
    let held = claim(&bed.store, &session).await.expect("work");
    assert_eq!((held.attempt, held.bytes_done), (2, 600));
}

pub(crate) async fn a_bad_source_becomes_suspect(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let origin = format!("physical_copy WHERE package_id = {} AND verification = ", planned.package);
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {origin}'registered'")).await, 1);
    let mut rotten = completed(&held, "w");
    rotten.evidence[0].location = held.origin.location;
    rotten.evidence[0].method = CheckMethod::ReadBack;
    rotten.evidence[0].found_digest = [7; 32];
    rotten.ending = Ending::Failed { class: ErrorClass::CorruptAtSource, chain: vec!["other bytes".into()] };
    let recorded = bed.store.finish(&rotten, 0).await.expect("finish");
    assert_eq!(recorded, Recorded::Now { status: Status::Failed, next_attempt_at: None });
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {origin}'suspect'")).await, 1);
    assert_eq!(bed.int("SELECT count(*) FROM verification_record").await, 1, "what was found is kept");
    assert_eq!(bed.int("SELECT count(*) FROM physical_copy").await, 1, "and nothing arrived");
}

/// The worker looks at the destination only, so it cannot say at the origin which package it was.
pub(crate) async fn what_arrived_is_not_suspected_with_its_bundle(bed: &Bed) {
    bed.apply_topology().await;
    let (good, bad) = (bed.register("good", "cologne/buffer").await, bed.register("bad", "cologne/buffer").await);
    let bundle = bed.bundle(&[good, bad]).await;
    let transfer = bed.transfer(bundle, "ccat_output_buffer", "cologne_buffer", 1, None).await.expect("plan");
    bed.schedule(transfer).await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let mut outcome = completed(&held, "w");
    outcome.evidence.retain(|e| e.package == good.package);
    outcome.ending = Ending::Failed { class: ErrorClass::CorruptAtSource, chain: vec!["other bytes".into()] };
    let recorded = bed.store.finish(&outcome, 0).await.expect("finish");
    assert_eq!(recorded, Recorded::Now { status: Status::Failed, next_attempt_at: None });
    let copies = |of: &str| format!("SELECT count(*) FROM physical_copy WHERE {of}");
    let suspect = format!("verification = 'suspect' AND location_id = {}", held.origin.location.number());
    assert_eq!(bed.int(&copies(&format!("{suspect} AND package_id = {}", bad.package.number()))).await, 1);
    assert_eq!(bed.int(&copies("verification = 'suspect'")).await, 1);
    let arrived = format!("verification = 'verified' AND package_id = {}", good.package.number());
    assert_eq!(bed.int(&copies(&arrived)).await, 1, "the other one is there, though the transfer failed");
}

pub(crate) async fn work_that_nobody_claimed_has_no_end(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let other = bed.scheduled().await;
    let held = claim(&bed.store, &session).await.expect("work");
    assert_eq!(held.work.number(), other.transfer);
    for fence in [0, 1, 2] {
        let mut forged = failed(&held, "w", ErrorClass::Network);
        forged.work = Work::Transfer(TransferId::new(planned.transfer));
        forged.fence = Fence::new(fence);
        let error = bed.store.finish(&forged, 0).await.expect_err("refused");
        assert!(matches!(error, StoreError::Stale { .. } | StoreError::Refused(_)), "{fence}: {error}");
        let renewal = bed.store.renew(&session, forged.work, forged.fence, LEASE, &bed.store.lease_clock(), 1).await;
        assert!(!matches!(renewal, Ok(Renewal::Held | Renewal::Revived)), "{fence}: {renewal:?}");
    }
    assert_eq!(bed.status(planned.transfer).await, "pending");
    // Evidence about a package of other work.
    let mut strange = completed(&held, "w");
    strange.evidence[0].package = planned.id();
    let error = bed.store.finish(&strange, 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    let nowhere = Work::Transfer(TransferId::new(4711));
    let error =
        bed.store.renew(&session, nowhere, held.fence, LEASE, &bed.store.lease_clock(), 1).await.expect_err("refused");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

pub(crate) async fn a_dead_link_pauses_its_route(bed: &Bed) {
    bed.apply_topology().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    for n in 0..Breaker::THRESHOLD {
        bed.scheduled().await;
        let held = claim(&bed.store, &session).await.expect("closed so far");
        bed.store.finish(&failed(&held, "w", ErrorClass::Network), n).await.expect("finish");
    }
    let open = "data_transfer_route WHERE breaker_state = 'open' AND breaker_trips = 1";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {open}")).await, 1);
    // A slow machine must not see the end of the pause. Not above the longest there is: that would be a clock's jump.
    bed.done(
        "UPDATE data_transfer_route SET breaker_until = breaker_until + 300000000, changed_by = 'test', \
         change_reason = 'longer' WHERE breaker_state = 'open'",
    )
    .await;
    for _ in 0..4 {
        bed.scheduled().await;
    }
    assert_eq!(claim(&bed.store, &session).await, None, "nothing is tried meanwhile");

    // The pause is over: of several claims at once one looks.
    let over = "UPDATE data_transfer_route SET breaker_until = 1, changed_by = 'test', change_reason = 'later' \
                WHERE breaker_state <> 'closed'";
    bed.done(over).await;
    let looks = join_all((0..4).map(async |n| {
        let session = enrol(&bed.store, &format!("look{n}"), &[QUEUE]).await;
        claim(&bed.store, &session).await.map(|claim| (session, claim))
    }));
    let looks: Vec<_> = looks.await.into_iter().flatten().collect();
    assert_eq!(looks.len(), 1);
    let (who, look) = &looks[0];
    bed.store.finish(&failed(look, who.name(), ErrorClass::Network), 0).await.expect("finish");
    let open = "data_transfer_route WHERE breaker_state = 'open' AND breaker_trips = 2";
    assert_eq!(bed.int(&format!("SELECT count(*) FROM {open}")).await, 1, "the look failed");

    bed.done(over).await;
    let look = claim(&bed.store, &session).await.expect("another look");
    let hints = bed.int("SELECT count(*) FROM outbox").await;
    bed.store.finish(&completed(&look, "w"), 0).await.expect("finish");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer_route WHERE breaker_state <> 'closed'").await, 0);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, hints + 1, "who waits is told");
    assert!(claim(&bed.store, &session).await.is_some());
}

pub(crate) async fn an_archive_transfer_ends_like_a_transfer(bed: &Bed) {
    const ARCHIVE: &str = "cologne_lta_long_term_archive_transfer";
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let (from, to) = (bed.location("cologne_buffer").await, bed.location("cologne_lta").await);
    let id = bed
        .int(&format!(
            "INSERT INTO long_term_archive_transfer (package_id, origin_location_id, destination_location_id, \
             queue_location_id, bytes_total, changed_by, change_reason) \
             VALUES ({}, {from}, {to}, {to}, 1000, 'test', 'planned') RETURNING id",
            planned.package
        ))
        .await;
    let schedule = format!(
        "UPDATE long_term_archive_transfer SET status = 'scheduled', scheduled_at = 5, changed_by = 'test', \
         change_reason = 'due' WHERE id = {id}"
    );
    bed.done(&schedule).await;
    bed.schedule(planned.transfer).await;
    let session = enrol(&bed.store, "w", &[QUEUE, ARCHIVE]).await;
    bed.done(&format!("UPDATE long_term_archive_transfer SET priority = 9 WHERE id = {id}")).await;
    let held = claim(&bed.store, &session).await.expect("the more urgent of both kinds");
    assert_eq!(held.work, Work::Archive(ArchiveTransferId::new(id)));
    assert_eq!((held.members.len(), held.route.is_none(), held.hop), (1, true, None));
    assert_eq!(held.own().location, held.destination.location);

    let clock = bed.store.lease_clock();
    let renewal = bed.store.renew(&session, held.work, held.fence, Duration::from_secs(5), &clock, 10).await;
    assert_eq!(renewal.expect("renew"), Renewal::Held);
    bed.done(&format!("UPDATE long_term_archive_transfer SET lease_until = 1, lease_us = 1 WHERE id = {id}")).await;
    let swept = sweep(&bed.store, "m", &SweepRules::default()).await;
    assert_eq!(swept.offered, [held.work]);
    let again = claim(&bed.store, &session).await.expect("again");
    assert_eq!((again.work, again.fence), (held.work, Fence::new(2)));
    bed.store.finish(&outcome(&held, "w", Ending::Completed), 0).await.expect_err("refused");
    let mut archived = completed(&again, "w");
    archived.evidence[0].method = CheckMethod::ReadBack;
    archived.evidence[0].cached = false;
    let recorded = bed.store.finish(&archived, 0).await.expect("finish");
    assert_eq!(recorded, Recorded::Now { status: Status::Completed, next_attempt_at: None });
    assert_eq!(bed.store.finish(&archived, 0).await.expect("replay"), Recorded::Before);
    assert_eq!(claim(&bed.store, &session).await.expect("the other kind").work.number(), planned.transfer);
    assert!(again.claimed_at > Timestamp::from_micros(0));
}

/// Seen to fail with the trigger that took any record of the place.
pub(crate) async fn an_earlier_attempts_record_is_no_proof(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let first = claim(&bed.store, &session).await.expect("work");
    let mut arrived = failed(&first, "w", ErrorClass::RemoteBusy);
    arrived.evidence = completed(&first, "w").evidence;
    bed.store.finish(&arrived, 0).await.expect("finish");
    let copies = "SELECT count(*) FROM physical_copy WHERE verification = 'verified'";
    assert_eq!(bed.int(copies).await, 1, "what the first attempt found is known");
    bed.schedule(transfer).await;
    let second = claim(&bed.store, &session).await.expect("work");
    let mut unproven = completed(&second, "w");
    unproven.evidence.clear();
    let error = bed.store.finish(&unproven, 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    assert_eq!(bed.status(transfer).await, "in_progress");
    bed.store.finish(&completed(&second, "w"), 0).await.expect("with its own record");
}

/// A database that was restored gives a fence again. Seen to fail without the comparison of names.
pub(crate) async fn another_workers_outcome_counts_for_nothing(bed: &Bed) {
    bed.apply_topology().await;
    let transfer = bed.scheduled().await.transfer;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let before = bed.footprint().await;
    // Another database, or this one before it was restored, gave the same number to the same worker at another time.
    let mut elsewhere = completed(&held, "w");
    elsewhere.started_at = Timestamp::from_micros(held.claimed_at.micros() - 1);
    for forged in [completed(&held, "other"), failed(&held, "other", ErrorClass::Network), elsewhere] {
        let error = bed.store.finish(&forged, 0).await.expect_err("refused");
        assert!(matches!(error, StoreError::Stale { .. }), "{error}");
    }
    let other = enrol(&bed.store, "other", &[QUEUE]).await;
    let clock = bed.store.lease_clock();
    let renewal = bed.store.renew(&other, held.work, held.fence, LEASE, &clock, 5).await.expect("renew");
    assert_eq!(renewal, Renewal::Overtaken);
    assert_eq!(bed.footprint().await, before);
    let recorded = bed.store.finish(&completed(&held, "w"), 0).await;
    assert!(matches!(recorded, Ok(Recorded::Now { .. })), "{recorded:?}");
    // The same end, told by somebody else, is no replay.
    let error = bed.store.finish(&completed(&held, "other"), 0).await.expect_err("refused");
    assert!(matches!(error, StoreError::Stale { .. }), "{error}");
    assert_eq!(bed.status(transfer).await, "completed");
}

/// Seen to be refused by PostgreSQL for ever without the cleaning.
pub(crate) async fn odd_text_does_not_lose_an_outcome(bed: &Bed) {
    bed.apply_topology().await;
    bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let mut odd = failed(&held, "w", ErrorClass::RemoteBusy);
    odd.ending = Ending::Failed { class: ErrorClass::RemoteBusy, chain: vec!["a\0b".into(), "\u{1b}[2J".into()] };
    odd.log = "line\0 with a hole".into();
    bed.store.finish(&odd, 0).await.expect("finish");
    assert_eq!(bed.int("SELECT count(*) FROM attempt WHERE outcome = 'remote_busy'").await, 1);
}
