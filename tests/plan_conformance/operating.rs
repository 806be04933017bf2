use std::time::Duration;

use ccat_xfer::{
    model::{Ending, ErrorClass, LocationId, Status},
    store::{PackageFilter, StoreError, SwitchFilter, WorkFilter},
};

use crate::{
    bed::Bed,
    world::{
        WORLD, apply, at_once, claim, failure, package, planned, run_one, state, status, submit, transfers, work,
        worker,
    },
};

const OUT: &[&str] = &["ccat_out_data_transfer"];

fn only(transfer: i64) -> WorkFilter {
    WorkFilter { ids: vec![transfer], ..WorkFilter::default() }
}

pub(crate) async fn cancel_and_retry_do_what_a_dry_run_says(bed: &Bed) {
    apply(bed, WORLD).await;
    for n in 0..12 {
        planned(bed, &format!("{n}"), "ccat/out", if n % 2 == 0 { "us" } else { "cologne" }).await;
    }
    let one = worker(&bed.store, "one", 1, OUT).await;
    bed.store.schedule("manager").await.expect("schedule");
    let held = claim(&bed.store, &one).await.expect("a claim");
    let us = LocationId::new(bed.location("us_buffer").await);
    let filter = WorkFilter { location: Some(us), ..WorkFilter::default() };
    let before = bed.int("SELECT count(*) FROM event").await;
    let told = bed.store.cancel(&filter, "op", "wrong run", true).await.expect("a dry run");
    assert_eq!(bed.int("SELECT count(*) FROM event").await, before, "a dry run changes nothing");
    let done = bed.store.cancel(&filter, "op", "wrong run", false).await.expect("cancel");
    assert_eq!((told.count, &told.work), (done.count, &done.work));
    assert_eq!(done.count, 6);
    assert_eq!(held.work, work(1), "the oldest one is to us");
    assert_eq!(status(bed, 1).await, "in_progress", "what runs is asked to stop");
    let row = bed.store.work_detail(work(1)).await.expect("show").row;
    assert!(row.cancel_requested);
    assert_eq!(status(bed, 3).await, "failed");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE error_class = 'cancelled'").await, 5);
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status IN ('pending', 'scheduled')").await, 6);
    let again = bed.store.cancel(&filter, "op", "wrong run", false).await.expect("cancel");
    assert_eq!((again.count, again.passed_over.len()), (0, 1));
    bed.store.settle(100, "manager").await.expect("settle");
    assert_eq!(bed.int("SELECT count(*) FROM raw_data_package WHERE state = 'failed'").await, 5);

    let cancelled = WorkFilter { error_class: Some(ErrorClass::Cancelled), ..WorkFilter::default() };
    let told = bed.store.retry(&cancelled, "op", "after all", true).await.expect("a dry run");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE error_class = 'cancelled'").await, 5);
    let done = bed.store.retry(&cancelled, "op", "after all", false).await.expect("retry");
    assert_eq!((told.count, &told.work), (done.count, &done.work));
    assert_eq!(done.count, 5);
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE error_class IS NOT NULL").await, 0);
    assert_eq!(bed.int("SELECT count(*) FROM raw_data_package WHERE state = 'failed'").await, 0);
    let why = "SELECT count(*) FROM event WHERE actor = 'op' AND reason = 'after all' AND entity = 'data_transfer'";
    assert_eq!(bed.int(why).await, 5, "who did it and why is kept");

    // A worker that hands back what it was asked to stop.
    bed.store.hand_back(&one, held.work, held.fence, 0, "stopping").await.expect("hand back");
    bed.store.schedule("manager").await.expect("schedule");
    assert_eq!(status(bed, 1).await, "failed", "it is not begun again");

    // Before anything is planned there is only the request.
    let unplanned = submit(bed, package("later", "ccat/out", 1), "us").await.package.number();
    assert_eq!(bed.store.withdraw(&[unplanned], true).await.expect("a dry run"), 1);
    assert_eq!(bed.store.withdraw(&[unplanned], false).await.expect("withdraw"), 1);
    assert_eq!(bed.store.plan(&at_once(), "manager").await.expect("plan").bundles, 0);
}

pub(crate) async fn a_chain_of_hops_ends_and_begins_as_one(bed: &Bed) {
    apply(bed, WORLD).await;
    let hops = planned(bed, "a", "ccat/out", "chile").await;
    let done = bed.store.cancel(&only(hops[0]), "op", "no", false).await.expect("cancel");
    assert_eq!(done.count, 2, "a hop that waits for it would wait for ever");
    assert_eq!(status(bed, hops[1]).await, "failed");
    let done = bed.store.retry(&only(hops[0]), "op", "yes", false).await.expect("retry");
    assert_eq!(done.count, 1);
    assert_eq!(status(bed, hops[1]).await, "pending", "it comes back with the one before it");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'pending' AND NOT ready").await, 1);
    let one = worker(&bed.store, "one", 1, OUT).await;
    assert_eq!(run_one(bed, &one, Ending::Completed).await, hops[0]);
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer WHERE status = 'pending' AND ready").await, 1);
}

pub(crate) async fn what_was_replaced_is_not_retried(bed: &Bed) {
    apply(bed, WORLD).await;
    let one = worker(&bed.store, "one", 1, OUT).await;
    let first = planned(bed, "a", "ccat/out", "cologne").await[0];
    run_one(bed, &one, failure(ErrorClass::Configuration)).await;
    bed.store.settle(10, "manager").await.expect("settle");
    let done = bed.store.retry(&only(first), "op", "again", false).await.expect("retry");
    assert_eq!((done.count, done.passed_over.len()), (0, 1), "another buffer has it: {done:?}");
    // Both have failed: the later one comes back, and only that.
    run_one(bed, &one, failure(ErrorClass::Configuration)).await;
    bed.store.settle(10, "manager").await.expect("settle");
    let all = WorkFilter { statuses: vec![Status::Failed], ..WorkFilter::default() };
    let done = bed.store.retry(&all, "op", "again", false).await.expect("retry");
    assert_eq!((done.count, done.passed_over.len()), (1, 1), "{done:?}");
    let package = bed.int("SELECT min(id) FROM raw_data_package").await;
    let hops = transfers(bed, package).await;
    assert_eq!((status(bed, hops[0]).await, status(bed, hops[1]).await), ("failed".into(), "pending".into()));
    assert_eq!(state(bed, package).await, "transferring");
    // What waits for its next attempt is tried at once.
    run_one(bed, &one, failure(ErrorClass::Network)).await;
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 0);
    assert_eq!(bed.store.retry(&only(hops[1]), "op", "now", false).await.expect("retry").count, 1);
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 1);
}

pub(crate) async fn pause_and_resume(bed: &Bed) {
    apply(bed, WORLD).await;
    let filter = SwitchFilter {
        locations: vec!["us/buffer".into(), "us/buffer".into()],
        routes: vec!["ccat-us".into()],
        sites: vec!["cologne".into()],
    };
    let paused = "SELECT (SELECT count(*) FROM data_location WHERE paused)
        + (SELECT count(*) FROM data_transfer_route WHERE paused)";
    let told = bed.store.switch(&filter, true, "op", "storm", true).await.expect("a dry run");
    assert_eq!(bed.int(paused).await, 0);
    let done = bed.store.switch(&filter, true, "op", "storm", false).await.expect("pause");
    assert_eq!(told, done);
    assert_eq!(done.len(), 6, "{done:?}");
    assert_eq!(bed.int(paused).await, 6);
    let again = bed.store.switch(&filter, true, "op", "storm", false).await.expect("pause");
    assert!(again.iter().all(|s| s.was_paused && s.is_paused));
    assert_eq!(bed.int("SELECT count(*) FROM event WHERE actor = 'op'").await, 6, "the second time changed nothing");
    bed.store.switch(&filter, false, "op", "over", false).await.expect("resume");
    assert_eq!(bed.int(paused).await, 0);
    for wrong in [
        SwitchFilter { locations: vec!["us/bufer".into()], ..filter.clone() },
        SwitchFilter { locations: vec!["us".into()], ..filter.clone() },
        SwitchFilter { routes: vec!["x".into()], ..filter.clone() },
        SwitchFilter { sites: vec!["x".into()], ..filter.clone() },
    ] {
        let error = bed.store.switch(&wrong, true, "op", "storm", false).await.expect_err("a wrong name");
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    }
    assert_eq!(bed.int(paused).await, 0, "all or nothing");
}

pub(crate) async fn lists_are_read_page_by_page(bed: &Bed) {
    apply(bed, WORLD).await;
    for n in 0..7 {
        planned(bed, &format!("run{}/{n}", n % 2), "ccat/out", "us").await;
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = bed.store.work_page(&WorkFilter::default(), after, 3).await.expect("a page");
        assert!(page.rows.len() <= 3);
        seen.extend(page.rows.iter().map(|r| r.work.number()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, (1..=7).collect::<Vec<_>>());
    let page = bed.store.work_page(&WorkFilter::default(), None, 10).await.expect("a page");
    let json = serde_json::to_value(&page).expect("JSON");
    assert_eq!(json["rows"][0]["origin"], "ccat/out");
    assert_eq!(json["rows"][0]["status"], "pending");
    let package = ccat_xfer::model::PackageId::new(3);
    let filter = WorkFilter { package: Some(package), statuses: vec![Status::Pending], ..WorkFilter::default() };
    assert_eq!(bed.store.work_page(&filter, None, 10).await.expect("a page").rows.len(), 1);
    let filter = PackageFilter { name_prefix: Some("run1/".into()), ..PackageFilter::default() };
    let found = bed.store.package_page(&filter, None, 10).await.expect("a page");
    assert_eq!(found.rows.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["run1/1", "run1/3", "run1/5"]);
    let none = bed.store.work_detail(work(99)).await.expect_err("no such transfer");
    assert!(matches!(none, StoreError::NotFound { .. }));
    let one = worker(&bed.store, "one", 1, OUT).await;
    let first = run_one(bed, &one, failure(ErrorClass::Network)).await;
    let detail = bed.store.work_detail(work(first)).await.expect("show");
    assert_eq!((detail.packages.len(), detail.attempts.len()), (1, 1));
    assert_eq!(detail.attempts[0].outcome, "network");
    assert!(detail.events.len() >= 4, "planned, offered, claimed, failed: {:?}", detail.events);
}

/// Seen to fail with the condition of a site, and with that of a route, left out.
pub(crate) async fn rows_are_found_by_what_people_know_of_them(bed: &Bed) {
    apply(bed, WORLD).await;
    let there = planned(bed, "a", "ccat/out", "us").await[0];
    let back = planned(bed, "b", "us/buffer", "cologne/second").await[0];
    submit(bed, package("c", "ccat/special", 10), "chile/buffer").await;
    let store = &bed.store;
    let (us, special) = (store.site_id("us").await.expect("a site"), store.location_id("ccat/special").await);
    let second = store.location_id("cologne/second").await.expect("a location");
    let route = store.route_id("ccat-us").await.expect("a route");
    let now = store.now().await.expect("the time");
    let works = async |filter: WorkFilter| {
        let page = store.work_page(&filter, None, 10).await.expect("a page");
        page.rows.iter().map(|r| r.work.number()).collect::<Vec<_>>()
    };
    let names = async |filter: PackageFilter| {
        let page = store.package_page(&filter, None, 10).await.expect("a page");
        page.rows.iter().map(|r| r.name.clone()).collect::<Vec<_>>().join(" ")
    };
    let all = WorkFilter::default;
    assert_eq!(works(WorkFilter { site: Some(us), ..all() }).await, [there, back]);
    let ccat = store.site_id("ccat").await.expect("a site");
    assert_eq!(works(WorkFilter { site: Some(ccat), ..all() }).await, [there]);
    assert_eq!(works(WorkFilter { location: Some(second), ..all() }).await, [back]);
    assert_eq!(works(WorkFilter { site: Some(us), route: Some(route), ..all() }).await, [there]);
    assert!(
        works(WorkFilter { updated_before: Some(now.before(Duration::from_secs(3600))), ..all() }).await.is_empty()
    );
    let all = PackageFilter::default;
    assert_eq!(names(PackageFilter { site: Some(us), ..all() }).await, "a b");
    assert_eq!(names(PackageFilter { site: Some(ccat), ..all() }).await, "a c");
    assert_eq!(names(PackageFilter { location: special.ok(), ..all() }).await, "c");
    assert_eq!(names(PackageFilter { location: Some(second), ..all() }).await, "b");
    assert_eq!(names(PackageFilter { route: Some(route), ..all() }).await, "a");
    assert_eq!(names(PackageFilter { statuses: vec![Status::Pending], ..all() }).await, "a b");
    assert_eq!(
        names(PackageFilter { updated_before: Some(now.after(Duration::from_secs(9))), ..all() }).await,
        "a b c"
    );
    // Of one transfer all must hold, not some of one and the rest of another one.
    let other = PackageFilter { route: Some(route), statuses: vec![Status::Failed], ..all() };
    assert_eq!(names(other).await, "");
    let one = worker(store, "one", 1, OUT).await;
    run_one(bed, &one, failure(ErrorClass::Network)).await;
    let failing = PackageFilter { error_class: Some(ErrorClass::Network), name_prefix: Some("a".into()), ..all() };
    assert_eq!(names(failing.clone()).await, "a");
    assert_eq!(names(PackageFilter { site: Some(us), route: Some(route), ..failing }).await, "a");
    let error = store.route_id("nowhere").await.expect_err("a wrong name");
    assert!(matches!(error, StoreError::NotFound { what: "route", .. }), "{error}");
}
