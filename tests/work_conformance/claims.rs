use std::collections::BTreeSet;

use ccat_xfer::{
    model::{Dialer, QueueName, StartRate},
    store::{OpenQueue, Store, StoreError},
};
use futures_util::future::join_all;

use crate::{
    bed::{Bed, Planned},
    harness::seed,
    scene::{LEASE, QUEUE, claim, completed, enrol},
};

/// Several workers claim at once until there is nothing left; returns who claimed what.
async fn rush(store: &Store, workers: usize) -> Vec<(i64, i64)> {
    let tasks = (0..workers).map(async |n| {
        let session = enrol(store, &format!("w{n}"), &[QUEUE]).await;
        let mut mine = Vec::new();
        while let Some(claim) = claim(store, &session).await {
            mine.push((claim.work.number(), claim.fence.number()));
        }
        mine
    });
    join_all(tasks).await.concat()
}

pub(crate) async fn many_claimers_get_each_row_once(bed: &Bed) {
    bed.apply_topology().await;
    let mut wanted = BTreeSet::new();
    for _ in 0..40 {
        wanted.insert((bed.scheduled().await.transfer, 1));
    }
    let found = rush(&bed.store, 8).await;
    assert_eq!(found.len(), 40);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE attempt = 1 AND status = 'in_progress'").await, 40);
}

pub(crate) async fn higher_priority_and_then_age_come_first(bed: &Bed) {
    bed.apply_topology().await;
    let mut rng = seed("higher_priority_and_then_age_come_first");
    let mut wanted = Vec::new();
    for n in 0..20 {
        let planned = bed.planned().await;
        let priority = rng.below(10);
        // Two routes: the best of several ways is found.
        if n % 2 == 0 {
            bed.done(&format!("UPDATE data_transfer SET priority = {priority} WHERE id = {}", planned.transfer)).await;
            bed.schedule(planned.transfer).await;
            wanted.push((std::cmp::Reverse(priority), planned.transfer));
        } else {
            let other = other_way(bed, planned.bundle, priority).await;
            wanted.push((std::cmp::Reverse(priority), other));
        }
    }
    wanted.sort_unstable();
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    for (_, transfer) in wanted {
        assert_eq!(claim(&bed.store, &session).await.expect("work").work.number(), transfer);
    }
    assert_eq!(claim(&bed.store, &session).await, None);
}

/// A transfer to `us/buffer` on another route, scheduled. The planned one is given up for it.
async fn other_way(bed: &Bed, bundle: i64, priority: u64) -> i64 {
    let (from, to) = (bed.location("ccat_output_buffer").await, bed.location("us_buffer").await);
    bed.done(&format!(
        "UPDATE data_transfer SET status = 'failed', finished_at = 1, error_class = 'cancelled', error_text = 'other \
         way', changed_by = 'test', change_reason = 'other way' WHERE data_transfer_package_id = {bundle}"
    ))
    .await;
    let id = bed
        .int(&format!(
            "INSERT INTO data_transfer (data_transfer_package_id, route_id, origin_location_id, \
             destination_location_id, queue_location_id, ready, bytes_total, priority, changed_by, change_reason) \
             SELECT {bundle}, (SELECT max(id) FROM data_transfer_route), {from}, {to}, {from}, TRUE, size_bytes, \
             {priority}, 'test', 'planned' FROM data_transfer_package WHERE id = {bundle} RETURNING id"
        ))
        .await;
    bed.schedule(id).await;
    bed.exec("UPDATE data_location SET max_concurrent = NULL, changed_by = 'test', change_reason = 'test'")
        .await
        .expect("lift the limit");
    id
}

pub(crate) async fn a_claim_brings_all_that_a_worker_needs(bed: &Bed) {
    bed.apply_topology().await;
    let (one, two) = (bed.register("a/one", "cologne/buffer").await, bed.register("a/two", "cologne/buffer").await);
    let bundle = bed.bundle(&[one, two]).await;
    let transfer = bed.transfer(bundle, "ccat_output_buffer", "cologne_buffer", 1, None).await.expect("plan");
    bed.done(&format!("UPDATE data_transfer SET route_id = route_id, priority = 6 WHERE id = {transfer}")).await;
    bed.schedule(transfer).await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let claim = claim(&bed.store, &session).await.expect("work");
    assert_eq!((claim.work.number(), claim.fence.number(), claim.attempt, claim.hop), (transfer, 1, 1, Some(1)));
    assert_eq!((claim.priority, claim.bytes_total, claim.side), (6, 2000, Dialer::Origin));
    assert_eq!((claim.own().name.as_str(), claim.other().site.as_str()), ("output_buffer", "Cologne"));
    let peer = claim.other().peer.as_ref().expect("a peer");
    assert_eq!((peer.name.as_str(), peer.active), ("cologne", true));
    assert!(claim.own().peer.is_none());
    assert!(claim.route.is_some());
    let packages: Vec<_> = claim.members.iter().map(|m| (m.package, m.relative_path.as_slice())).collect();
    assert_eq!(packages, [(one.package, b"a/one".as_slice()), (two.package, b"a/two")]);
    for member in &claim.members {
        let identity = *blake3::hash(&member.relative_path).as_bytes();
        assert!(member.digests.iter().any(|d| d.value == identity), "{member:?}");
        assert_eq!((member.size_bytes, &member.source_path), (1000, &member.relative_path));
    }
    let held = "SELECT count(*) FROM data_transfer WHERE status = 'in_progress' AND claimed_by = 'w' AND owner = ";
    assert_eq!(bed.int(&format!("{held}{}", session.id().number())).await, 1);

    let other: QueueName = "us_buffer_data_transfer".parse().expect("a queue");
    let error = bed.store.claim_next(&session, &[other], LEASE, &bed.store.lease_clock()).await.expect_err("refused");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
}

pub(crate) async fn what_is_closed_is_not_begun(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let by = "changed_by = 'test', change_reason = 'test'";
    let now = bed.store.now().await.expect("a clock").micros();
    for (close, open) in [
        (
            format!("UPDATE data_transfer_route SET paused = TRUE, {by}"),
            format!("UPDATE data_transfer_route SET paused = FALSE, {by}"),
        ),
        (
            format!("UPDATE data_transfer_route SET active = FALSE, {by}"),
            format!("UPDATE data_transfer_route SET active = TRUE, {by}"),
        ),
        (
            format!("UPDATE data_location SET paused = TRUE, {by} WHERE queue_stem = 'cologne_buffer'"),
            format!("UPDATE data_location SET paused = FALSE, {by}"),
        ),
        (
            format!("UPDATE data_location SET paused = TRUE, {by} WHERE queue_stem = 'ccat_output_buffer'"),
            format!("UPDATE data_location SET paused = FALSE, {by}"),
        ),
        (
            format!("UPDATE data_location SET active = FALSE, {by} WHERE queue_stem = 'cologne_buffer'"),
            format!("UPDATE data_location SET active = TRUE, {by}"),
        ),
        (
            "UPDATE site SET active = FALSE WHERE short_name = 'cologne'".to_owned(),
            "UPDATE site SET active = TRUE".to_owned(),
        ),
        (
            format!(
                "UPDATE data_transfer_route SET breaker_state = 'open', breaker_until = {}, {by}",
                now + 300_000_000
            ),
            format!("UPDATE data_transfer_route SET breaker_state = 'closed', breaker_until = NULL, {by}"),
        ),
        (empty_bucket(QUEUE, now), "DELETE FROM rate_limit".to_owned()),
        (empty_bucket("*", now), "DELETE FROM rate_limit".to_owned()),
    ] {
        bed.done(&close).await;
        assert_eq!(claim(&bed.store, &session).await, None, "{close}");
        assert_eq!(bed.status(planned.transfer).await, "scheduled", "{close}");
        bed.done(&open).await;
    }
    // Clocks that were set back an hour: neither a bucket nor a breaker waits for the old time to come again.
    let ahead = now + 3_600_000_000;
    bed.done(&empty_bucket("*", ahead)).await;
    bed.done(&format!("UPDATE data_transfer_route SET breaker_state = 'open', breaker_until = {ahead}, {by}")).await;
    assert_eq!(claim(&bed.store, &session).await.expect("all is open again").work.number(), planned.transfer);
}

fn empty_bucket(scope: &str, refilled_at: i64) -> String {
    format!(
        "INSERT INTO rate_limit (scope, starts, period_us, tokens_micro, refilled_at) \
         VALUES ('{scope}', 1, 3600000000, 0, {refilled_at})"
    )
}

pub(crate) async fn closed_ways_do_not_hide_open_ones(bed: &Bed) {
    bed.apply_topology().await;
    for _ in 0..5 {
        let Planned { transfer, .. } = bed.planned().await;
        bed.done(&format!("UPDATE data_transfer SET priority = 9 WHERE id = {transfer}")).await;
        bed.schedule(transfer).await;
    }
    let behind = bed.planned().await;
    let open = other_way(bed, behind.bundle, 0).await;
    let pause = "UPDATE data_location SET paused = TRUE, changed_by = 'test', change_reason = 'test'";
    bed.done(&format!("{pause} WHERE queue_stem = 'cologne_buffer'")).await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    assert_eq!(claim(&bed.store, &session).await.map(|c| c.work.number()), Some(open));
    assert_eq!(claim(&bed.store, &session).await, None);
}

pub(crate) async fn no_more_run_than_may(bed: &Bed) {
    bed.apply_topology().await;
    for _ in 0..12 {
        bed.scheduled().await;
    }
    let by = "changed_by = 'test', change_reason = 'test'";
    bed.done(&format!("UPDATE data_transfer_route SET max_concurrent = 3, {by}")).await;
    assert_eq!(rush(&bed.store, 6).await.len(), 3, "on a route");
    bed.done(&format!("UPDATE data_transfer_route SET max_concurrent = NULL, {by}")).await;
    bed.done(&format!("UPDATE data_location SET max_concurrent = 5, {by} WHERE queue_stem = 'cologne_buffer'")).await;
    assert_eq!(rush(&bed.store, 6).await.len(), 2, "at a location, with the three");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'in_progress'").await, 5);

    // One ends, and another one may begin.
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    bed.done(&format!("UPDATE data_location SET max_concurrent = 6, {by} WHERE queue_stem = 'cologne_buffer'")).await;
    let one = claim(&bed.store, &session).await.expect("one more");
    assert_eq!(claim(&bed.store, &session).await, None);
    bed.store.finish(&completed(&one, "w"), 0).await.expect("finish");
    assert!(claim(&bed.store, &session).await.is_some());
}

pub(crate) async fn no_more_start_than_may(bed: &Bed) {
    bed.apply_topology().await;
    for _ in 0..12 {
        bed.scheduled().await;
    }
    let rate: StartRate = "1/h".parse().expect("a rate");
    let queue: QueueName = QUEUE.parse().expect("a queue");
    bed.store.set_rate_limit(Some(&queue), Some(rate)).await.expect("limit");
    assert_eq!(bed.store.rate_limits().await.expect("limits"), [(Some(QUEUE.to_owned()), rate)]);
    assert_eq!(rush(&bed.store, 6).await.len(), 1, "in a queue");
    bed.store.set_rate_limit(Some(&queue), None).await.expect("lift");
    bed.store.set_rate_limit(None, Some(rate)).await.expect("limit");
    assert_eq!(rush(&bed.store, 6).await.len(), 1, "in all queues");
    bed.store.set_rate_limit(None, None).await.expect("lift");
    assert_eq!(rush(&bed.store, 6).await.len(), 10, "without a limit");
}

fn open(room: u32) -> OpenQueue {
    OpenQueue { queue: QUEUE.parse().expect("a queue"), room }
}

/// Catches limits that `claim_some` leaves out: more would run than may.
pub(crate) async fn several_come_at_once_where_nothing_limits_them(bed: &Bed) {
    bed.apply_topology().await;
    let lift = "UPDATE data_location SET max_concurrent = NULL, changed_by = 'test', change_reason = 'test'";
    bed.exec(lift).await.expect("lift the limit");
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let some = async |room: u32| -> Vec<i64> {
        let claims = bed.store.claim_some(&session, &[open(room)], LEASE, &bed.store.lease_clock()).await;
        claims.expect("claim").claims.iter().map(|claim| claim.work.number()).collect()
    };
    let mut transfers = Vec::new();
    for _ in 0..5 {
        transfers.push(bed.scheduled().await.transfer);
    }
    bed.done(&format!("UPDATE data_transfer SET priority = 9 WHERE id = {}", transfers[4])).await;
    assert_eq!(some(4).await, [transfers[4]], "what is more urgent comes first, and alone");
    assert_eq!(some(3).await, transfers[..3], "as many as there is room for, the oldest first");
    assert_eq!(some(8).await, [transfers[3]], "no more than there are");
    assert_eq!(some(8).await, [0_i64; 0]);
    // Each is a claim of its own.
    assert_eq!(
        bed.int("SELECT count(*) FROM data_transfer WHERE fence = 1 AND attempt = 1 AND owner IS NOT NULL").await,
        5
    );
    assert_eq!(bed.int("SELECT count(*) FROM event WHERE to_state = 'in_progress' AND reason = 'claimed'").await, 5);

    for _ in 0..4 {
        bed.scheduled().await;
    }
    bed.exec("UPDATE data_transfer_route SET max_concurrent = 7, changed_by = 'test', change_reason = 'test'")
        .await
        .expect("limit");
    assert_eq!([some(8).await.len(), some(8).await.len(), some(8).await.len()], [1, 1, 0], "where they are counted");
}

pub(crate) async fn several_claimers_of_many_get_each_row_once(bed: &Bed) {
    bed.apply_topology().await;
    let lift = "UPDATE data_location SET max_concurrent = NULL, changed_by = 'test', change_reason = 'test'";
    bed.exec(lift).await.expect("lift the limit");
    let mut wanted = BTreeSet::new();
    for _ in 0..60 {
        wanted.insert((bed.scheduled().await.transfer, 1));
    }
    let claimers = (0..6).map(async |n: u32| {
        let session = enrol(&bed.store, &format!("w{n}"), &[QUEUE]).await;
        let mut mine = Vec::new();
        loop {
            let clock = bed.store.lease_clock();
            let some = bed.store.claim_some(&session, &[open(1 + n)], LEASE, &clock).await.expect("claim").claims;
            if some.is_empty() {
                return mine;
            }
            assert!(some.len() <= 1 + n as usize);
            mine.extend(some.iter().map(|claim| (claim.work.number(), claim.fence.number())));
        }
    });
    let found = join_all(claimers).await.concat();
    assert_eq!(found.len(), 60);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), wanted);
}
