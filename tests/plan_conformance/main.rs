//! Planning, scheduling and operating on both databases: every case runs on SQLite and on a private PostgreSQL, each in
//! a database of its own. Workers are played by the store's own claims and outcomes.

#[path = "../harness/mod.rs"]
mod harness;

mod archiving;
#[allow(dead_code, reason = "the cases of the schema use the rest of it")]
#[path = "../store_conformance/bed.rs"]
mod bed;
mod explaining;
mod looking_after;
mod operating;
mod planning;
mod scheduling;
mod world;

use std::{future::Future, panic::AssertUnwindSafe, pin::Pin, time::Duration};

use bed::Bed;
use futures_util::FutureExt as _;
use harness::{Durability, Postgres, Scene, say, skip};

type Case = (&'static str, for<'a> fn(&'a Bed) -> Pin<Box<dyn Future<Output = ()> + 'a>>);

/// Far beyond what a case needs on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |bed| Box::pin($module::$name(bed)))),*]
    };
}

const CASES: &[Case] = cases![
    planning::three_managers_plan_everything_once,
    planning::a_relay_is_two_rows_and_the_second_waits,
    planning::a_custom_route_goes_before_a_direct_one,
    planning::the_best_buffer_that_takes_it_is_chosen,
    planning::what_a_worker_says_is_free_is_heeded,
    planning::what_fits_nowhere_leaves_the_way_free_for_others,
    planning::what_has_no_route_says_so_until_it_has_one,
    planning::archive_sites_take_turns,
    planning::every_archive_is_reached_from_the_first_one,
    planning::what_arrived_with_a_bundle_that_failed_goes_on,
    planning::hops_that_end_in_one_look_are_both_settled,
    planning::bundles_wait_for_more_until_they_are_old,
    planning::another_buffer_takes_over,
    planning::a_relay_leaves_a_buffer_between,
    planning::a_look_costs_the_same_with_many_rows,
    scheduling::offers_are_bounded_and_go_by_priority,
    scheduling::what_is_made_is_offered_with_it_where_there_is_room,
    scheduling::what_waits_is_not_overtaken_by_what_is_made,
    scheduling::three_managers_offer_each_row_once,
    scheduling::a_stopped_way_does_not_use_up_offers,
    scheduling::packages_say_what_becomes_of_them,
    operating::cancel_and_retry_do_what_a_dry_run_says,
    operating::a_chain_of_hops_ends_and_begins_as_one,
    operating::what_was_replaced_is_not_retried,
    operating::pause_and_resume,
    operating::lists_are_read_page_by_page,
    operating::rows_are_found_by_what_people_know_of_them,
    explaining::what_a_person_has_to_do,
    explaining::what_time_mends,
    explaining::what_is_over_or_runs,
    explaining::a_request_without_a_way,
    archiving::what_reaches_a_site_with_archives_is_archived,
    archiving::what_may_rest_where_its_policy_says,
    archiving::what_lies_there_before_its_site_has_an_archive_is_archived_then,
    archiving::groups_ask_for_as_many_as_they_say,
    archiving::three_managers_plan_archive_work_once,
    archiving::only_the_site_that_is_meant,
    archiving::another_copy_is_read_when_the_first_one_is_bad,
    archiving::archive_work_is_swept_cancelled_and_retried_like_transfers,
    archiving::archive_work_explains_itself,
    archiving::a_look_for_archive_work_costs_what_is_new,
    archiving::a_manager_plans_what_its_duties_are,
    looking_after::a_cached_reading_ends_no_archive_work,
    looking_after::the_oldest_evidence_comes_first,
    looking_after::a_mismatch_is_repaired_from_a_verified_copy,
    looking_after::what_is_missing_is_suspect_and_comes_back,
    looking_after::a_suspect_copy_is_held_by_no_archive,
    looking_after::a_look_that_was_overtaken_writes_nothing,
    looking_after::a_cached_look_counts_only_where_it_may,
    looking_after::another_site_helps_where_no_copy_is_left,
    looking_after::what_an_archive_says_is_restored_once,
];

async fn all(backend: &str, beds: impl AsyncFn(&str) -> Bed) {
    let only = std::env::var("CCAT_XFER_CASE").unwrap_or_default();
    let mut failed = Vec::new();
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(&only)) {
        let bed = beds(name).await;
        let ended = AssertUnwindSafe(tokio::time::timeout(LIMIT, case(&bed))).catch_unwind().await;
        bed.close().await;
        let ok = matches!(ended, Ok(Ok(())));
        say(&format!("{backend}: {name}: {}", if ok { "ok" } else { "FAILED" }));
        if !ok {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{backend}: {failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_plans_and_operates() {
    let scene = Scene::new("plan-sqlite");
    all("sqlite", async |name: &str| Bed::sqlite(&scene, name).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_plans_and_operates() {
    if let Some(why) = Postgres::missing() {
        return skip("postgres_plans_and_operates", why);
    }
    let scene = Scene::new("plan-postgres");
    let server = Postgres::start(&scene, Durability::Speed);
    all("postgres", async |name: &str| Bed::postgres(&server, name).await).await;
}
