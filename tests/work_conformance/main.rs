//! What workers and managers do with work, on SQLite and on a private PostgreSQL: claims, leases, outcomes, sweeps, the
//! outbox, workers. Every case has a database of its own; what only a clock would bring about is done by plain SQL.

#[path = "../harness/mod.rs"]
mod harness;

#[allow(dead_code, reason = "the other conformance suite uses the rest of it")]
#[path = "../store_conformance/bed.rs"]
mod bed;

mod claims;
mod clock;
mod crew;
mod outcomes;
mod roles;
mod scene;
mod sweeps;

use std::{
    env, fs, future::Future, os::unix::fs::PermissionsExt as _, panic::AssertUnwindSafe, pin::Pin, process::Command,
    time::Instant,
};

use clock::{Offset, no_setting_of_a_clock_loses_a_lease, wall_clock_us};
use futures_util::FutureExt as _;
use harness::{Durability, Postgres, Scene, say, skip, spawn};

use bed::Bed;
use ccat_xfer::{
    model::WorkerState,
    store::{Renewal, Store, StoreError, SweepRules},
};
use scene::{LEASE, QUEUE, claim, completed, enrol};

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
    claims::several_come_at_once_where_nothing_limits_them,
    claims::several_claimers_of_many_get_each_row_once,
    outcomes::an_overtaken_owner_writes_nothing,
    outcomes::a_replayed_outcome_counts_once,
    outcomes::of_several_outcomes_each_gets_its_own_answer,
    outcomes::an_overtaken_outcome_among_others_takes_nothing_from_its_new_owner,
    outcomes::a_lie_among_several_outcomes_harms_no_other,
    outcomes::completed_without_records_is_refused,
    outcomes::an_earlier_attempts_record_is_no_proof,
    outcomes::another_workers_outcome_counts_for_nothing,
    outcomes::odd_text_does_not_lose_an_outcome,
    outcomes::failures_are_retried_as_their_class_says,
    outcomes::handed_back_work_is_no_failure,
    outcomes::a_bad_source_becomes_suspect,
    outcomes::what_arrived_is_not_suspected_with_its_bundle,
    outcomes::work_that_nobody_claimed_has_no_end,
    outcomes::a_dead_link_pauses_its_route,
    outcomes::an_archive_transfer_ends_like_a_transfer,
    sweeps::a_lost_lease_is_offered_again,
    sweeps::a_late_owner_is_back_unless_overtaken,
    sweeps::what_a_worker_runs_it_does_not_claim_again,
    sweeps::too_many_losses_end_it,
    sweeps::cancelled_work_is_not_offered_again,
    sweeps::two_managers_sweep_once,
    sweeps::a_bad_row_holds_up_no_other,
    sweeps::cancelled_after_a_loss_it_has_its_attempt,
    sweeps::a_lost_hint_is_written_again,
    sweeps::hints_are_published_and_forgotten,
    sweeps::waiting_tasks_are_woken,
    crew::a_name_belongs_to_one_process,
    crew::a_worker_that_leaves_claims_nothing,
    crew::a_silent_worker_is_marked,
    crew::letters_are_kept_until_resolved,
];

async fn all(backend: &str, beds: impl AsyncFn(&str) -> Bed, cases: &[Case]) {
    let only = env::var("CCAT_XFER_CASE").ok();
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
    let only_here: &[Case] = cases![
        roles::a_workers_login_is_enough,
        roles::a_managers_login_is_enough,
        roles::archives_need_no_more_than_their_logins
    ];
    let cases = [CASES, only_here].concat();
    all("postgres", async |name: &str| Bed::postgres(&server, name).await, &cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_clock_that_is_set_loses_no_lease() {
    let name = "a_servers_clock_that_is_set_loses_no_lease";
    if let Some(why) = Postgres::missing().or_else(no_library) {
        return skip(name, why);
    }
    let scene = Scene::new("clock-postgres");
    let folder = tempfile::tempdir().expect("a folder");
    // The server's user reads it.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open the folder");
    let offset = Offset(folder.path().join("offset"));
    offset.set(0);
    let server = Postgres::start_with(&scene, Durability::Speed, &offset.environment());
    let bed = Bed::postgres(&server, "clock").await;
    no_setting_of_a_clock_loses_a_lease(&bed, &offset, wall_clock_us).await;
    bed.close().await;
}

#[test]
fn a_machines_clock_that_is_set_loses_no_lease_on_sqlite() {
    let name = "a_machines_clock_that_is_set_loses_no_lease_on_sqlite";
    if let Some(why) = no_library() {
        return skip(name, why);
    }
    let scene = Scene::new("clock-sqlite");
    let offset = Offset(scene.join("offset"));
    offset.set(0);
    let mut child = Command::new(env::current_exe().expect("this program"));
    child.args(["--ignored", "--exact", "within_a_process_whose_clock_is_set", "--nocapture"]);
    child.envs(offset.environment()).env(CLOCK, &offset.0);
    let ended = spawn(&scene, child).wait(harness::LIMIT * 4).expect_code(0);
    assert!(ended.said().contains("1 passed"), "{}", ended.said());
}

/// Where the child finds its offset.
const CLOCK: &str = "CCAT_XFER_CLOCK";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the test before it runs it in a process of its own"]
async fn within_a_process_whose_clock_is_set() {
    let Some(file) = env::var_os(CLOCK) else {
        return skip("within_a_process_whose_clock_is_set", "it is a part of another test");
    };
    let scene = Scene::new("clock-child");
    let (begun, wall) = (Instant::now(), wall_clock_us());
    let bed = Bed::sqlite(&scene, "clock").await;
    let true_now = || wall + i64::try_from(begun.elapsed().as_micros()).expect("a time");
    no_setting_of_a_clock_loses_a_lease(&bed, &Offset(file.into()), true_now).await;
    bed.close().await;
}

/// Seen to hang without the limit of statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_is_an_error_and_no_wait() {
    if let Some(why) = Postgres::missing() {
        return skip("a_server_that_stands_still_is_an_error_and_no_wait", why);
    }
    let scene = Scene::new("frozen");
    let server = Postgres::start(&scene, Durability::Speed);
    let bed = Bed::postgres(&server, "frozen").await;
    bed.apply_topology().await;
    bed.scheduled().await;
    bed.scheduled().await;
    let session = enrol(&bed.store, "w", &[QUEUE]).await;
    let held = claim(&bed.store, &session).await.expect("work");
    let queues: Vec<_> = session.queues().cloned().collect();
    let clock = bed.store.lease_clock();
    // Half way through a transaction.
    let batch = bed.store.unsent(5).await.expect("hints");
    server.freeze(true);
    let asked = async {
        let done = completed(&held, "w");
        tokio::join!(
            async { bed.store.claim_next(&session, &queues, LEASE, &clock).await.err() },
            async { bed.store.renew(&session, held.work, held.fence, LEASE, &clock, 1).await.err() },
            async { bed.store.finish(&done, 0).await.err() },
            async { bed.store.sweep("m", &clock, &SweepRules::default()).await.err() },
            async { bed.store.stop_worker(&session).await.err() },
            async { Store::open(&bed.url()).await.err() },
        )
    };
    let answers = tokio::time::timeout(harness::LIMIT, asked).await;
    drop(batch);
    server.freeze(false);
    let (a, b, c, d, e, f) = answers.expect("nobody waits for ever");
    for error in [a, b, c, d, e, f] {
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
    // All goes on, also with the connections that were given up.
    let begun = Instant::now();
    let again = async || bed.store.renew(&session, held.work, held.fence, LEASE, &clock, 2).await;
    while !matches!(again().await, Ok(Renewal::Held)) {
        assert!(begun.elapsed() < harness::LIMIT, "{:?}", again().await);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bed.store.heartbeat(&session, &clock, WorkerState::Active, &[]).await.expect("beat");
    assert!(claim(&bed.store, &session).await.is_some());
    bed.store.finish(&completed(&held, "w"), 0).await.expect("finish");
    bed.close().await;
}

fn no_library() -> Option<&'static str> {
    Offset::library().is_none().then_some("libfaketime is not installed")
}
