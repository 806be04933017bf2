use ccat_xfer::{
    model::{Ending, ErrorClass},
    store::{HINTS_PER_SLOT, PlanLimits, Store, SwitchFilter},
};
use futures_util::future::join_all;

use crate::{
    bed::Bed,
    world::{WORLD, apply, at_once, claim, end, failure, package, planned, run_one, state, status, submit, worker},
};

const OUT: &[&str] = &["ccat_out_data_transfer"];

async fn many(bed: &Bed, count: usize, to: &str) {
    for n in 0..count {
        let mut one = package(&format!("{to}/{n}"), "ccat/out", 10);
        one.priority = u8::try_from(n % 3).expect("small");
        submit(bed, one, to).await;
    }
    bed.store.plan(&at_once(), "manager").await.expect("plan");
}

pub(crate) async fn offers_are_bounded_and_go_by_priority(bed: &Bed) {
    apply(bed, WORLD).await;
    many(bed, 30, "us").await;
    let nobody = bed.store.schedule("manager").await.expect("schedule");
    assert_eq!(nobody.offered, 0);
    assert_eq!(nobody.without_worker, ["ccat_out_data_transfer"]);
    let one = worker(&bed.store, "one", 2, OUT).await;
    let wanted = usize::try_from(2 * HINTS_PER_SLOT).expect("small");
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, wanted);
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 0, "enough are offered");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'scheduled' AND priority = 2").await, 8);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, 8, "each with a hint");
    let held = claim(&bed.store, &one).await.expect("a claim");
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 1, "what was taken makes room");
    end(&bed.store, &one, &held, failure(ErrorClass::Network)).await;
    let later = bed.store.schedule("manager").await.expect("schedule");
    assert!(later.next_due.is_some(), "it says when the next attempt is due: {later:?}");
    let early = "SELECT count(*) FROM data_transfer WHERE status = 'scheduled' AND next_attempt_at > updated_at";
    assert_eq!(bed.int(early).await, 0, "nothing is offered before its time");
}

/// Catches offers that heed neither the slots nor what stops or limits a way.
pub(crate) async fn what_is_made_is_offered_with_it_where_there_is_room(bed: &Bed) {
    apply(bed, WORLD).await;
    let offering = PlanLimits { offers: true, ..at_once() };
    for n in 0..3 {
        submit(bed, package(&format!("a{n}"), "ccat/out", 10), "us").await;
    }
    let planned = bed.store.plan(&offering, "manager").await.expect("plan");
    assert_eq!((planned.bundles, planned.offered), (3, 0), "nobody serves the queue");
    worker(&bed.store, "one", 2, OUT).await;
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 3);
    for n in 0..9 {
        submit(bed, package(&format!("b{n}"), "ccat/out", 10), "us").await;
    }
    let room = usize::try_from(2 * HINTS_PER_SLOT).expect("small") - 3;
    let planned = bed.store.plan(&offering, "manager").await.expect("plan");
    assert_eq!((planned.bundles, planned.offered), (9, room));
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'scheduled' AND ready").await, 8);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, 8, "each with a hint");
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 0, "enough are offered");
    // Of a relay's two hops only the first may run.
    worker(&bed.store, "two", 50, OUT).await;
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 4);
    submit(bed, package("c", "ccat/out", 10), "chile").await;
    let planned = bed.store.plan(&offering, "manager").await.expect("plan");
    assert_eq!((planned.transfers, planned.offered), (2, 1));
    // What is stopped waits, and so does what a limit leaves no room for.
    bed.done("UPDATE data_transfer_route SET max_concurrent = 1, changed_by = 't', change_reason = 't' WHERE name = 'ccat-cologne'").await;
    let route = SwitchFilter { routes: vec!["ccat-us".into()], ..SwitchFilter::default() };
    bed.store.switch(&route, true, "op", "storm", false).await.expect("pause");
    for n in 0..6 {
        submit(bed, package(&format!("d{n}"), "ccat/out", 10), "us").await;
        submit(bed, package(&format!("e{n}"), "ccat/out", 10), "cologne").await;
    }
    let planned = bed.store.plan(&offering, "manager").await.expect("plan");
    assert_eq!((planned.bundles, planned.offered), (12, 3), "four for each that may run");
}

/// Catches new work that takes all the room that is made: what waits would wait as long as new work comes.
pub(crate) async fn what_waits_is_not_overtaken_by_what_is_made(bed: &Bed) {
    apply(bed, WORLD).await;
    let offering = PlanLimits { offers: true, ..at_once() };
    let one = worker(&bed.store, "one", 1, OUT).await;
    many(bed, 6, "us").await;
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 4);
    let urgent = bed.int("SELECT max(id) FROM data_transfer WHERE status = 'pending'").await;
    bed.done(&format!(
        "UPDATE data_transfer SET priority = 9, changed_by = 't', change_reason = 't' WHERE id = {urgent}"
    ))
    .await;
    for round in 0..=HINTS_PER_SLOT {
        let held = claim(&bed.store, &one).await.expect("a claim");
        if held.work.number() == urgent {
            return;
        }
        end(&bed.store, &one, &held, Ending::Completed).await;
        submit(bed, package(&format!("new/{round}"), "ccat/out", 10), "us").await;
        let planned = bed.store.plan(&offering, "manager").await.expect("plan");
        assert!(planned.leaves_some, "{planned:?}");
        bed.store.schedule("manager").await.expect("schedule");
    }
    panic!("the urgent one is still not claimed");
}

pub(crate) async fn three_managers_offer_each_row_once(bed: &Bed) {
    apply(bed, WORLD).await;
    many(bed, 60, "us").await;
    many(bed, 60, "cologne").await;
    let slots = 25;
    worker(&bed.store, "one", slots, OUT).await;
    let managers = (0..3).map(|n| async move {
        let store = Store::connect(&bed.url()).await.expect("connect");
        let mut offered = 0;
        for _ in 0..5 {
            offered += store.schedule(&format!("manager {n}")).await.expect("schedule").offered;
        }
        store.close().await;
        offered
    });
    let offered: usize = join_all(managers).await.into_iter().sum();
    let offered = i64::try_from(offered).expect("few");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'scheduled'").await, offered);
    assert_eq!(bed.int("SELECT count(*) FROM outbox").await, offered);
    assert_eq!(bed.int("SELECT count(DISTINCT work_id) FROM outbox").await, offered);
    // Managers that look at the very same moment may each fill the room that they see.
    let most = 3 * HINTS_PER_SLOT * i64::from(slots);
    assert!(offered >= HINTS_PER_SLOT * i64::from(slots) && offered <= most, "{offered}");
}

pub(crate) async fn a_stopped_way_does_not_use_up_offers(bed: &Bed) {
    apply(bed, WORLD).await;
    many(bed, 20, "us").await;
    let one = worker(&bed.store, "one", 1, OUT).await;
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 4);
    let route = SwitchFilter { routes: vec!["ccat-us".into()], ..SwitchFilter::default() };
    bed.store.switch(&route, true, "op", "storm", false).await.expect("pause");
    many(bed, 2, "cologne").await;
    let looked = bed.store.schedule("manager").await.expect("schedule");
    assert_eq!((looked.taken_back, looked.offered), (4, 2), "{looked:?}");
    for _ in 0..2 {
        let held = claim(&bed.store, &one).await.expect("a claim");
        assert_eq!(held.destination.site_short_name, "cologne");
        end(&bed.store, &one, &held, Ending::Completed).await;
    }
    bed.store.switch(&route, false, "op", "over", false).await.expect("resume");
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 4);
    // A route that lets one at a time run does not fill the queue with what cannot run.
    bed.done("UPDATE data_transfer_route SET max_concurrent = 1, changed_by = 't', change_reason = 't'").await;
    worker(&bed.store, "two", 50, OUT).await;
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 0);
}

pub(crate) async fn packages_say_what_becomes_of_them(bed: &Bed) {
    apply(bed, WORLD).await;
    let one = worker(&bed.store, "one", 1, OUT).await;
    let registered = submit(bed, package("a", "ccat/out", 10), "us").await;
    let id = registered.package.number();
    assert_eq!(state(bed, id).await, "waiting");
    bed.store.plan(&at_once(), "manager").await.expect("plan");
    assert_eq!(state(bed, id).await, "transferring");
    run_one(bed, &one, Ending::Completed).await;
    bed.store.settle(10, "manager").await.expect("settle");
    assert_eq!(state(bed, id).await, "waiting", "no archive wants it");
    let failing = planned(bed, "b", "ccat/out", "us").await[0];
    run_one(bed, &one, failure(ErrorClass::Configuration)).await;
    assert_eq!(status(bed, failing).await, "failed");
    bed.store.settle(10, "manager").await.expect("settle");
    let other = bed.int("SELECT max(id) FROM raw_data_package").await;
    assert_eq!(state(bed, other).await, "failed");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE NOT settled").await, 0);
}
