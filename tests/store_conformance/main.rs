//! Both databases keep the promises of `store`'s module doc: every case runs on SQLite and on a private PostgreSQL, each
//! in a database of its own. What the store's own code never does is done here by plain SQL.

#[path = "../harness/mod.rs"]
mod harness;

mod archive;
mod bed;
mod history;
mod lifecycle;
mod planning;
mod roles;
mod schema;

use std::{future::Future, panic::AssertUnwindSafe, pin::Pin};

use futures_util::FutureExt as _;
use harness::{Durability, Postgres, Scene, say, skip};

use bed::Bed;

type Case = (&'static str, for<'a> fn(&'a Bed) -> Pin<Box<dyn Future<Output = ()> + 'a>>);

macro_rules! cases {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), |bed| Box::pin($module::$name(bed)))),*]
    };
}

const CASES: &[Case] = cases![
    schema::an_empty_database_a_newer_and_another_schema_are_told_apart,
    schema::a_schema_is_not_changed_under_running_workers,
    schema::names_of_queues_stay_and_are_not_shared,
    schema::every_word_of_the_model_is_one_of_the_schema,
    schema::leases_have_a_clock,
    schema::no_index_leads_with_what_its_condition_says,
    planning::a_topology_is_applied_once,
    planning::what_leaves_the_topology_becomes_inactive,
    planning::registering_twice_makes_nothing_new,
    planning::what_contradicts_a_registration_is_refused,
    planning::intake_is_accepted_or_refused_with_a_reason,
    planning::a_row_of_intake_that_the_database_refuses_holds_up_no_other,
    planning::a_plan_is_made_once,
    planning::the_second_hop_waits_for_the_first,
    lifecycle::only_legal_changes_of_status,
    lifecycle::only_legal_changes_of_packages,
    lifecycle::completed_needs_proof,
    lifecycle::archived_needs_proof,
    lifecycle::an_overtaken_owner_writes_nothing,
    lifecycle::an_attempt_that_ended_does_not_come_back,
    history::what_is_written_stays,
    history::every_change_has_an_event,
    archive::what_only_passed_by_proves_nothing_in_an_archive,
    archive::a_cache_and_a_tape_system_are_believed_where_the_location_says_so,
    archive::completed_needs_a_reading_of_this_attempt,
    archive::a_copy_that_is_not_verified_is_no_archived_one,
    archive::a_package_is_archived_no_longer_than_its_copies_are_good,
    archive::what_was_required_stays,
    archive::a_way_into_an_archive_is_planned_once,
    archive::metadata_are_one_object,
];

async fn all(backend: &str, beds: impl AsyncFn(&str) -> Bed, cases: &[Case]) {
    let mut failed = Vec::new();
    for (name, case) in cases {
        let bed = beds(name).await;
        let ended = AssertUnwindSafe(case(&bed)).catch_unwind().await;
        bed.close().await;
        say(&format!("{backend}: {name}: {}", if ended.is_ok() { "ok" } else { "FAILED" }));
        if ended.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{backend}: {failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_every_promise() {
    let scene = Scene::new("store-sqlite");
    all("sqlite", async |name: &str| Bed::sqlite(&scene, name).await, CASES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_every_promise() {
    if let Some(why) = Postgres::missing() {
        return skip("postgres_keeps_every_promise", why);
    }
    let scene = Scene::new("store-postgres");
    let server = Postgres::start(&scene, Durability::Speed);
    let only_here: &[Case] = cases![
        roles::a_worker_does_its_work,
        roles::a_worker_reaches_only_its_rows_and_columns,
        roles::the_others_reach_what_they_need,
        roles::an_owner_needs_no_superuser,
    ];
    let cases = [CASES, only_here].concat();
    all("postgres", async |name: &str| Bed::postgres(&server, name).await, &cases).await;
}
