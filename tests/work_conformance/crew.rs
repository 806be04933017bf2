use ccat_xfer::{
    model::{Fence, Timestamp, WorkerState},
    store::{Backend, LeaseClock, RunningSpan, StoreError, SweepRules},
};
use futures_util::future::join_all;

use crate::{
    bed::Bed,
    scene::{QUEUE, claim, enrol, later, profile, sweep},
};

pub(crate) async fn a_name_belongs_to_one_process(bed: &Bed) {
    bed.apply_topology().await;
    let clock = bed.store.lease_clock();
    let first = enrol(&bed.store, "w", &[QUEUE]).await;
    let error = bed.store.register_worker(&profile("w", "other", &[QUEUE]), &clock).await.expect_err("refused");
    assert!(matches!(&error, StoreError::WorkerAlive { name, .. } if name == "w"), "{error}");
    let again = enrol(&bed.store, "w", &[QUEUE]).await;
    assert_eq!(again.id(), first.id(), "the same process may register again");
    assert_eq!(bed.int("SELECT count(*) FROM worker_queue").await, 1);

    // Of several that start at once with one name, one wins.
    let started = join_all(
        (0..4).map(async |n| bed.store.register_worker(&profile("twin", &format!("n{n}"), &[QUEUE]), &clock).await),
    )
    .await;
    assert_eq!(started.iter().filter(|s| s.is_ok()).count(), 1);
    for error in started.iter().filter_map(|s| s.as_ref().err()) {
        assert!(matches!(error, StoreError::WorkerAlive { .. } | StoreError::Conflict(_)), "{error}");
    }

    // Not heard of for its lease: the name is free, and the one that comes back too late finds that out.
    bed.silence("w").await;
    if bed.store.backend() == Backend::Postgres {
        // Whoever wants it has to see that silence.
        for n in 0..3 {
            let taken = bed.store.register_worker(&profile("w", "second", &[QUEUE]), &later(&bed.store)).await;
            assert!(matches!(taken, Err(StoreError::WorkerAlive { .. })) == (n < 2), "{n}: {taken:?}");
        }
    }
    let second = bed.store.register_worker(&profile("w", "second", &[QUEUE]), &clock).await.expect("free");
    assert_eq!(second.id(), first.id());
    bed.scheduled().await;
    let queues: Vec<_> = first.queues().cloned().collect();
    for error in [
        bed.store.heartbeat(&first, &clock, WorkerState::Active, &[]).await.expect_err("refused"),
        bed.store.drain_worker(&first).await.expect_err("refused"),
        bed.store.stop_worker(&first).await.expect_err("refused"),
        bed.store.claim_next(&first, &queues, crate::scene::LEASE, &clock).await.expect_err("refused"),
    ] {
        assert!(matches!(error, StoreError::WorkerReplaced { .. }), "{error}");
    }
    assert!(claim(&bed.store, &second).await.is_some());
    bed.store.stop_worker(&second).await.expect("stop");
    bed.store.register_worker(&profile("w", "third", &[QUEUE]), &clock).await.expect("free at once");
    let error = bed
        .store
        .register_worker(&profile("x", "n", &["nowhere_at_all_data_transfer"]), &clock)
        .await
        .expect_err("refused");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

pub(crate) async fn a_worker_that_leaves_claims_nothing(bed: &Bed) {
    bed.apply_topology().await;
    bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    bed.store.drain_worker(&session).await.expect("drain");
    assert_eq!(claim(&bed.store, &session).await, None);
    let clock = bed.store.lease_clock();
    bed.store.heartbeat(&session, &clock, WorkerState::Active, &[]).await.expect("beat");
    assert!(claim(&bed.store, &session).await.is_some());
}

pub(crate) async fn a_silent_worker_is_marked(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.scheduled().await;
    let clock = bed.store.lease_clock();
    let (silent, loud) = (enrol(&bed.store, "silent", &[QUEUE]).await, enrol(&bed.store, "loud", &[QUEUE]).await);
    let span = RunningSpan {
        work: crate::scene::work(&planned),
        fence: Fence::new(1),
        phase: "transfer".into(),
        since: Timestamp::from_micros(5),
        bytes_done: 77,
    };
    for session in [&silent, &loud] {
        bed.store.heartbeat(session, &clock, WorkerState::Active, std::slice::from_ref(&span)).await.expect("beat");
    }
    bed.silence("silent").await;
    let swept = sweep(&bed.store, "m", &SweepRules::default()).await;
    assert_eq!(swept.dead_workers, ["silent"]);
    let again = sweep(&bed.store, "m", &SweepRules::default()).await;
    assert!(again.dead_workers.is_empty());
    let views = bed.store.workers(&clock).await.expect("list");
    let seen: Vec<_> = views.iter().map(|v| (v.name.as_str(), v.state, v.alive)).collect();
    assert_eq!(seen, [("loud", WorkerState::Active, true), ("silent", WorkerState::Stopped, false)]);
    assert_eq!(views[0].running, [span]);
    assert_eq!(views[0].queues, [QUEUE.parse().expect("a queue")]);
    assert_eq!(claim(&bed.store, &silent).await, None, "it is believed dead");
    bed.store.heartbeat(&silent, &clock, WorkerState::Active, &[]).await.expect("it is back");
    assert!(claim(&bed.store, &silent).await.is_some());
    if bed.store.backend() == Backend::Sqlite {
        let other_boot = LeaseClock { boot: "another boot".into(), ..clock };
        let swept = bed.store.sweep("m", &other_boot, &SweepRules::default()).await.expect("sweep");
        assert_eq!(swept.dead_workers.len(), 2, "none lives on after a restart");
    }
}

pub(crate) async fn letters_are_kept_until_resolved(bed: &Bed) {
    for n in 0..3u8 {
        bed.store.keep_dead_letter(QUEUE, &[0xff, n], "{}", "does not decode").await.expect("keep");
    }
    let letters = bed.store.dead_letters(0, 2, false).await.expect("list");
    assert_eq!(letters.iter().map(|l| l.body.clone()).collect::<Vec<_>>(), [vec![0xff, 0], vec![0xff, 1]]);
    let next = bed.store.dead_letters(letters[1].id, 2, false).await.expect("list");
    assert_eq!(next.len(), 1);
    let ids = [letters[0].id, letters[0].id, 4711];
    assert_eq!(bed.store.resolve_dead_letters(&ids, "me").await.expect("resolve"), 1);
    assert_eq!(bed.store.dead_letters(0, 9, false).await.expect("list").len(), 2);
    let all = bed.store.dead_letters(0, 9, true).await.expect("list");
    assert_eq!(all[0].resolved.as_ref().map(|(_, by)| by.as_str()), Some("me"));
    let error = bed.store.keep_dead_letter(QUEUE, b"x", "{}", "").await.expect_err("refused");
    assert!(matches!(error, StoreError::Refused(_)), "a letter has a reason: {error}");
}
