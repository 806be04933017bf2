//! What workers and managers do with work, on SQLite and on a private PostgreSQL: claims, leases, outcomes, sweeps, the
//! outbox, workers. Every case has a database of its own; what only a clock would bring about is done by plain SQL.

#[path = "../harness/mod.rs"]
mod harness;

#[allow(dead_code, reason = "the other conformance suite uses the rest of it")]
#[path = "../store_conformance/bed.rs"]
mod bed;

mod claims;
mod crew;
mod outcomes;
mod roles;
mod scene;
mod sweeps;

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
    claims::many_claimers_get_each_row_once,
    claims::higher_priority_and_then_age_come_first,
    claims::a_claim_brings_all_that_a_worker_needs,
    claims::what_is_closed_is_not_begun,
    claims::closed_ways_do_not_hide_open_ones,
    claims::no_more_run_than_may,
    claims::no_more_start_than_may,
    outcomes::an_overtaken_owner_writes_nothing,
    outcomes::a_replayed_outcome_counts_once,
    outcomes::completed_without_records_is_refused,
    outcomes::failures_are_retried_as_their_class_says,
    outcomes::handed_back_work_is_no_failure,
    outcomes::a_bad_source_becomes_suspect,
    outcomes::work_that_nobody_claimed_has_no_end,
    outcomes::a_dead_link_pauses_its_route,
    outcomes::an_archive_transfer_ends_like_a_transfer,
    sweeps::a_lost_lease_is_offered_again,
    sweeps::a_late_owner_is_back_unless_overtaken,
    sweeps::too_many_losses_end_it,
    sweeps::cancelled_work_is_not_offered_again,
    sweeps::two_managers_sweep_once,
    sweeps::a_lost_hint_is_written_again,
    sweeps::hints_are_published_and_forgotten,
    sweeps::waiting_tasks_are_woken,
    crew::a_name_belongs_to_one_process,
    crew::a_worker_that_leaves_claims_nothing,
    crew::a_silent_worker_is_marked,
    crew::letters_are_kept_until_resolved,
];

async fn all(backend: &str, beds: impl AsyncFn(&str) -> Bed, cases: &[Case]) {
    let only = std::env::var("CCAT_XFER_CASE").ok();
    let mut failed = Vec::new();
    for (name, case) in cases.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| name.contains(only))) {
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
async fn work_is_done_once_on_sqlite() {
    let scene = Scene::new("work-sqlite");
    all("sqlite", async |name: &str| Bed::sqlite(&scene, name).await, CASES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_is_done_once_on_postgres() {
    if let Some(why) = Postgres::missing() {
        return skip("work_is_done_once_on_postgres", why);
    }
    let scene = Scene::new("work-postgres");
    let server = Postgres::start(&scene, Durability::Speed);
    let only_here: &[Case] = cases![roles::a_workers_login_is_enough, roles::a_managers_login_is_enough];
    let cases = [CASES, only_here].concat();
    all("postgres", async |name: &str| Bed::postgres(&server, name).await, &cases).await;
}
