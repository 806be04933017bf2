//! Packages become archive work, and archive work is scheduled, claimed, swept, retried and explained like transfers.

use std::time::Duration;

use ccat_xfer::{
    manager::{self, Duties},
    model::{CheckMethod, Ending, ErrorClass, PackageId, Policy, ReadHow, Reason, Status, Work},
    store::{
        ArchiveFilter, ArchiveLimits, ArchivesPlanned, Claim, Store, StoreError, SweepRules, SwitchFilter, WorkFilter,
        WorkKind, WorkerSession,
    },
    task::Gate,
    telemetry::{health::Health, metrics::Metrics},
};
use futures_util::future::join_all;

use crate::{
    bed::Bed,
    harness::count,
    world::{
        WORLD, apply, at_once, claim, end, failure, package, plan_of, run_one, set_location, state, submit, worker,
    },
};

const OUT: &[&str] = &["ccat_out_data_transfer"];
pub(crate) const LTA: &str = "cologne_lta_long_term_archive_transfer";

pub(crate) async fn plan_archives(bed: &Bed) -> ArchivesPlanned {
    bed.store.plan_archives(&ArchiveLimits::default(), None, "manager").await.expect("plan")
}

/// A package that was brought to a site: nothing of it is in an archive yet.
pub(crate) async fn arrived(bed: &Bed, path: &str, policy: Policy, to: &str) -> i64 {
    let mut one = package(path, "ccat/out", 1000);
    one.policy = policy;
    let id = submit(bed, one, to).await.package.number();
    bed.store.plan(&at_once(), "manager").await.expect("plan");
    let carrier = worker(&bed.store, "carrier", 1, OUT).await;
    run_one(bed, &carrier, Ending::Completed).await;
    bed.store.settle(10, "manager").await.expect("settle");
    id
}

/// What an archive's worker finds first.
pub(crate) async fn next(bed: &Bed, keeper: &WorkerSession) -> Claim {
    bed.store.schedule("manager").await.expect("schedule");
    claim(&bed.store, keeper).await.expect("archive work")
}

pub(crate) async fn keep(bed: &Bed, keeper: &WorkerSession) -> Claim {
    let held = next(bed, keeper).await;
    end(&bed.store, keeper, &held, Ending::Completed).await;
    bed.store.settle(10, "manager").await.expect("settle");
    held
}

/// A package that its archive in cologne holds.
pub(crate) async fn archived(bed: &Bed, path: &str) -> (i64, WorkerSession) {
    let id = arrived(bed, path, Policy::SiteArchives, "cologne").await;
    plan_archives(bed).await;
    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    keep(bed, &keeper).await;
    assert_eq!(state(bed, id).await, "archived");
    (id, keeper)
}

/// `ORIGIN -> DESTINATION` of all archive work of a package.
pub(crate) async fn ways(bed: &Bed, package: i64) -> Vec<String> {
    let filter =
        WorkFilter { kind: WorkKind::Archive, package: Some(PackageId::new(package)), ..WorkFilter::default() };
    let page = bed.store.work_page(&filter, None, 100).await.expect("list");
    page.rows.iter().map(|row| format!("{} -> {}", row.origin, row.destination)).collect()
}

pub(crate) async fn standing(bed: &Bed, package: i64) -> String {
    bed.store.explain_package(PackageId::new(package)).await.expect("explain").text
}

pub(crate) async fn what_reaches_a_site_with_archives_is_archived(bed: &Bed) {
    apply(bed, &WORLD.replace("[[route]]\nname = \"ccat-us\"", &format!("{SECOND}[[route]]\nname = \"ccat-us\"")))
        .await;
    let id = arrived(bed, "a", Policy::SiteArchives, "cologne").await;
    assert_eq!(state(bed, id).await, "transferring", "it goes on");
    assert_eq!(standing(bed, id).await, "0 of 2 archives hold it");
    let planned = plan_archives(bed).await;
    assert_eq!((planned.transfers, planned.repairs, planned.lost), (2, 0, 0), "{planned:?}");
    assert_eq!(ways(bed, id).await, ["cologne/first -> cologne/lta", "cologne/first -> cologne/vault"]);
    let again = plan_archives(bed).await;
    assert_eq!((again.looked_at, again.transfers), (0, 0), "{again:?}");

    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    let held = next(bed, &keeper).await;
    let terms = held.archive.expect("an archive's terms");
    assert!(!terms.replace && !terms.cached_read_back_counts);
    assert_eq!((held.origin.name.as_str(), held.own().name.as_str()), ("first", "lta"));
    assert_eq!(held.members[0].source_path, b"a");
    end(&bed.store, &keeper, &held, Ending::Completed).await;
    bed.store.settle(10, "manager").await.expect("settle");
    assert_eq!(standing(bed, id).await, "1 of 2 archives hold it");
    assert_eq!(state(bed, id).await, "transferring");

    let other = worker(&bed.store, "other", 1, &["cologne_vault_long_term_archive_transfer"]).await;
    keep(bed, &other).await;
    assert_eq!(state(bed, id).await, "archived");
    assert_eq!(plan_archives(bed).await.transfers, 0);
    let detail = bed.store.package_detail(PackageId::new(id)).await.expect("show");
    assert_eq!(detail.standing.text, "2 of 2 archives hold it");
    let places: Vec<_> = detail.copies.iter().map(|c| (c.location.as_str(), c.verification.as_str())).collect();
    assert_eq!(
        places,
        [
            ("ccat/out", "registered"),
            ("cologne/first", "verified"),
            ("cologne/lta", "verified"),
            ("cologne/vault", "verified")
        ]
    );
    let last = detail.copies[2].last_record.as_ref().expect("a record");
    assert_eq!((last.method, last.how, last.is_equal), (CheckMethod::ReadBack, Some(ReadHow::Direct), true));
    let page = bed.store.archive_page(&ArchiveFilter::default(), None, 10).await.expect("list");
    assert!(page.rows.len() == 2 && page.rows.iter().all(|row| row.holds), "{page:?}");
    let dossier = bed.store.dossier(PackageId::new(id)).await.expect("dossier");
    assert_eq!(dossier.required, ["cologne/lta", "cologne/vault"]);
    assert_eq!(dossier.sightings.len(), 3);
}

const SECOND: &str = "[[location]]\nsite = \"cologne\"\nname = \"vault\"\ntype = \"long_term_archive\"\n";

pub(crate) async fn what_may_rest_where_its_policy_says(bed: &Bed) {
    apply(bed, WORLD).await;
    let id = arrived(bed, "moved", Policy::TransferOnly, "cologne").await;
    assert_eq!(plan_archives(bed).await.transfers, 0, "nobody archives it");
    assert_eq!(state(bed, id).await, "waiting");
    assert_eq!(standing(bed, id).await, "no archive is asked for");

    let id = arrived(bed, "every", Policy::EveryArchive, "cologne").await;
    assert_eq!(plan_archives(bed).await.transfers, 1, "the one of this site");
    assert_eq!(standing(bed, id).await, "0 of 2 archives hold it");
    let id = arrived(bed, "one", Policy::OneArchive, "us").await;
    assert_eq!(plan_archives(bed).await.transfers, 1);
    assert_eq!(ways(bed, id).await, ["us/buffer -> us/lta"]);
    let id = arrived(bed, "no archive there", Policy::SiteArchives, "chile").await;
    assert_eq!(ways(bed, id).await.len(), 0);

    // Where it shall be an archive's, the archive's worker brings it.
    let to = ccat_xfer::store::Destination::Place("cologne/lta".parse().expect("a place"));
    let error = bed.store.register(&[package("x", "ccat/out", 5)], &[to], "test").await.expect_err("refused");
    assert!(error.to_string().contains("send it to cologne"), "{error}");
}

pub(crate) async fn what_lies_there_before_its_site_has_an_archive_is_archived_then(bed: &Bed) {
    let archive = "[[location]]\nsite = \"cologne\"\nname = \"lta\"\ntype = \"long_term_archive\"\n";
    apply(bed, &WORLD.replace(archive, "")).await;
    let id = arrived(bed, "early", Policy::SiteArchives, "cologne").await;
    assert_eq!(plan_archives(bed).await.looked_at, 0, "no archive, no look");
    assert_eq!(state(bed, id).await, "waiting");
    apply(bed, WORLD).await;
    assert_eq!(plan_archives(bed).await.transfers, 1);
    assert_eq!(state(bed, id).await, "transferring");
    // An archive that is not active now gets it when it is again.
    let id = arrived(bed, "both", Policy::EveryArchive, "us").await;
    set_location(bed, "us_lta", "active = FALSE").await;
    set_location(bed, "cologne_lta", "active = FALSE").await;
    assert_eq!(plan_archives(bed).await.transfers, 0);
    set_location(bed, "us_lta", "active = TRUE").await;
    assert_eq!(plan_archives(bed).await.transfers, 1);
    assert_eq!(ways(bed, id).await, ["us/buffer -> us/lta"]);
}

pub(crate) async fn groups_ask_for_as_many_as_they_say(bed: &Bed) {
    let grouped = |name: &str, copies: u32| {
        format!(
            "[[location]]\nsite = \"cologne\"\nname = \"{name}\"\ntype = \"long_term_archive\"\n\
             archive_group = \"{}\"\narchive_copies = {copies}\n",
            &name[..1]
        )
    };
    let more: String =
        [grouped("a1", 2), grouped("a2", 2), grouped("a3", 2), grouped("b1", 1), grouped("b2", 1)].concat();
    apply(bed, &WORLD.replacen("[[route]]", &format!("{more}[[route]]"), 1)).await;
    set_location(bed, "cologne_a1", "paused = TRUE").await;
    let id = arrived(bed, "a", Policy::SiteArchives, "cologne").await;
    plan_archives(bed).await;
    let mut found = ways(bed, id).await;
    found.sort();
    assert_eq!(found, ["a2", "a3", "b1", "lta"].map(|name| format!("cologne/first -> cologne/{name}")));
    // It was stored with the package.
    set_location(bed, "cologne_a1", "paused = FALSE").await;
    bed.done("UPDATE physical_copy SET archive_due_at = 0").await;
    assert_eq!(plan_archives(bed).await.transfers, 0);
}

pub(crate) async fn three_managers_plan_archive_work_once(bed: &Bed) {
    apply(bed, WORLD).await;
    let wanted = usize::try_from(count("archived packages", 2000)).expect("few").max(20);
    for some in (0..wanted).collect::<Vec<_>>().chunks(200) {
        let packages: Vec<_> = some
            .iter()
            .map(|n| {
                let mut one = package(&format!("run/{n}"), "cologne/first", 10);
                one.policy = Policy::SiteArchives;
                one
            })
            .collect();
        let to = [ccat_xfer::store::Destination::Site("us".into())];
        bed.store.register(&packages, &to, "test").await.expect("register");
    }
    let mut managers = vec![bed.store.clone()];
    for _ in 0..2 {
        managers.push(Store::open(&bed.url()).await.expect("another manager"));
    }
    let planned = join_all(managers.iter().enumerate().map(async |(n, store)| {
        let (mut made, limits) = (0, ArchiveLimits { copies: 150, ..ArchiveLimits::default() });
        loop {
            let planned = store.plan_archives(&limits, None, &format!("manager {n}")).await.expect("plan");
            made += planned.transfers;
            if planned.looked_at == 0 && planned.lost == 0 {
                return made;
            }
        }
    }))
    .await;
    for other in &managers[1..] {
        other.close().await;
    }
    let made: usize = planned.iter().sum();
    assert_eq!(made, wanted, "{planned:?}");
    let rows = bed.int("SELECT count(*) FROM long_term_archive_transfer").await;
    let packages = bed.int("SELECT count(DISTINCT package_id) FROM long_term_archive_transfer").await;
    assert_eq!((rows, packages), (i64::try_from(wanted).expect("few"), rows));
    let required = bed.int("SELECT count(*) FROM archive_requirement").await;
    assert_eq!(required, 2 * rows, "those of the site where it lies and of the one where it shall go");
}

pub(crate) async fn only_the_site_that_is_meant(bed: &Bed) {
    apply(bed, WORLD).await;
    arrived(bed, "c", Policy::SiteArchives, "cologne").await;
    arrived(bed, "u", Policy::SiteArchives, "us").await;
    let limits = ArchiveLimits::default();
    let planned = bed.store.plan_archives(&limits, Some("us"), "manager").await.expect("plan");
    assert_eq!(planned.transfers, 1);
    assert_eq!(bed.int("SELECT count(*) FROM long_term_archive_transfer").await, 1);
    let error = bed.store.plan_archives(&limits, Some("nowhere"), "manager").await.expect_err("unknown");
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert_eq!(plan_archives(bed).await.transfers, 1);
}

pub(crate) async fn another_copy_is_read_when_the_first_one_is_bad(bed: &Bed) {
    apply(bed, WORLD).await;
    let id = arrived(bed, "a", Policy::SiteArchives, "cologne/first").await;
    let to = [ccat_xfer::store::Destination::Place("cologne/second".parse().expect("a place"))];
    let mut again = package("a", "ccat/out", 1000);
    again.policy = Policy::SiteArchives;
    bed.store.register(&[again], &to, "test").await.expect("register");
    plan_archives(bed).await;
    bed.store.plan(&at_once(), "manager").await.expect("plan");
    let carrier = worker(&bed.store, "carrier", 1, OUT).await;
    run_one(bed, &carrier, Ending::Completed).await;
    assert_eq!(plan_archives(bed).await.transfers, 0, "one is on its way");
    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    for (source, next_source) in [("first", 1), ("second", 0)] {
        let held = next(bed, &keeper).await;
        assert_eq!(held.origin.name, source);
        end(&bed.store, &keeper, &held, failure(ErrorClass::CorruptAtSource)).await;
        bed.store.settle(10, "manager").await.expect("settle");
        assert_eq!(plan_archives(bed).await.transfers, next_source, "after {source}");
    }
    assert_eq!(state(bed, id).await, "failed");
    let filter = WorkFilter { kind: WorkKind::Archive, statuses: vec![Status::Failed], ..WorkFilter::default() };
    let retried = bed.store.retry(&filter, "op", "mended", false).await.expect("retry");
    assert_eq!((retried.count, retried.passed_over.len()), (1, 1), "the later one alone: {retried:?}");
    keep(bed, &keeper).await;
    assert_eq!(state(bed, id).await, "archived");
}

pub(crate) async fn archive_work_is_swept_cancelled_and_retried_like_transfers(bed: &Bed) {
    apply(bed, WORLD).await;
    let id = arrived(bed, "a", Policy::SiteArchives, "cologne").await;
    plan_archives(bed).await;
    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    let held = next(bed, &keeper).await;
    bed.done("UPDATE long_term_archive_transfer SET lease_until = 1, lease_us = 1").await;
    let mut offered = Vec::new();
    for n in 0..3 {
        let mut clock = bed.store.lease_clock();
        clock.steady_us += 700_000 * n;
        offered.extend(bed.store.sweep("m", &clock, &SweepRules::default()).await.expect("sweep").offered);
    }
    assert_eq!(offered, [held.work]);
    let again = claim(&bed.store, &keeper).await.expect("offered again");
    assert_eq!((again.fence.number(), again.attempt), (2, 2));
    end(&bed.store, &keeper, &again, failure(ErrorClass::Network)).await;
    assert_eq!(bed.store.work_detail(held.work).await.expect("show").row.retry_count, 1);

    let all = WorkFilter { kind: WorkKind::Archive, ..WorkFilter::default() };
    assert_eq!(bed.store.cancel(&all, "op", "not now", false).await.expect("cancel").count, 1);
    bed.store.settle(10, "manager").await.expect("settle");
    assert_eq!(state(bed, id).await, "failed");
    bed.done("UPDATE physical_copy SET archive_due_at = 0").await;
    assert_eq!(plan_archives(bed).await.transfers, 0, "a person stopped it");
    assert_eq!(bed.store.retry(&all, "op", "now", false).await.expect("retry").count, 1);
    assert_eq!(state(bed, id).await, "transferring");
    keep(bed, &keeper).await;
    assert_eq!(state(bed, id).await, "archived");
    assert_eq!(bed.store.retry(&all, "op", "again", false).await.expect("retry").count, 0, "completed stays so");
}

pub(crate) async fn archive_work_explains_itself(bed: &Bed) {
    apply(bed, WORLD).await;
    arrived(bed, "a", Policy::SiteArchives, "cologne").await;
    plan_archives(bed).await;
    let id = bed.int("SELECT id FROM long_term_archive_transfer").await;
    let work = Work::Archive(ccat_xfer::model::ArchiveTransferId::new(id));
    let first = async || bed.store.explain(work).await.expect("explain").reasons[0].reason.clone();
    assert_eq!(first().await, Reason::NoWorker { queue: LTA.into() });
    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    assert_eq!(first().await, Reason::NotOffered { queue: LTA.into(), before: 0 });
    let lta = SwitchFilter { locations: vec!["cologne/lta".into()], ..SwitchFilter::default() };
    bed.store.switch(&lta, true, "op", "full", false).await.expect("pause");
    assert_eq!(bed.store.schedule("manager").await.expect("schedule").offered, 0);
    assert_eq!(first().await, Reason::LocationPaused { location: "cologne/lta".into(), why: "full (by op)".into() });
    bed.store.switch(&lta, false, "op", "room", false).await.expect("resume");
    bed.done("UPDATE data_location SET max_concurrent = 1, changed_by = 't', change_reason = 't' WHERE name = 'lta'")
        .await;
    bed.store.set_rate_limit(None, Some("1/h".parse().expect("a rate"))).await.expect("limit");
    let held = next(bed, &keeper).await;
    assert_eq!(first().await, Reason::Running { worker: "keeper".into() });
    end(&bed.store, &keeper, &held, failure(ErrorClass::NoSpace)).await;
    assert!(matches!(first().await, Reason::DestinationFull { .. }), "{:?}", first().await);
    let filter = WorkFilter { kind: WorkKind::Archive, ..WorkFilter::default() };
    bed.store.retry(&filter, "op", "room", false).await.expect("retry");
    bed.store.schedule("manager").await.expect("schedule");
    assert!(matches!(first().await, Reason::RateLimit { .. }), "{:?}", first().await);
}

pub(crate) async fn a_look_for_archive_work_costs_what_is_new(bed: &Bed) {
    for (text, index) in [
        (
            "SELECT c.id FROM physical_copy c JOIN raw_data_package p ON p.id = c.package_id
                WHERE c.location_id = 1 AND c.archive_due_at IS NOT NULL AND c.archive_due_at <= 5
                ORDER BY c.archive_due_at, c.id LIMIT 9",
            "physical_copy_archive_due (location_id=? AND archive_due_at>? AND archive_due_at<?)",
        ),
        (
            "SELECT c.id FROM physical_copy c JOIN raw_data_package p ON p.id = c.package_id
                WHERE c.location_id = 1 AND c.checked_at >= 2 AND (c.checked_at > 2 OR c.id > 3) AND c.checked_at < 4
                AND c.status = 'present' ORDER BY c.checked_at, c.id LIMIT 9",
            "physical_copy_checked (location_id=? AND checked_at>? AND checked_at<?)",
        ),
        (
            "SELECT max(id) FROM long_term_archive_transfer WHERE package_id = 1 AND destination_location_id = 2",
            "long_term_archive_transfer_of (package_id=? AND destination_location_id=?)",
        ),
    ] {
        let Some(plan) = plan_of(bed, text).await else { return };
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{text}: {plan}");
    }
}

/// The loops of a manager, with and without the duty to archive.
pub(crate) async fn a_manager_plans_what_its_duties_are(bed: &Bed) {
    apply(bed, WORLD).await;
    let id = arrived(bed, "a", Policy::SiteArchives, "cologne").await;
    let work = "SELECT count(*) FROM long_term_archive_transfer";
    for (archives, site, made) in [(false, None, 0), (true, Some("us"), 0), (true, Some("cologne"), 1)] {
        let duties = Duties { transfers: true, archives, site: site.map(str::to_owned) };
        let every = Duration::from_millis(20);
        let config = manager::Config { duties, plan_every: every, ..manager::Config::default() };
        let (gate, health, metrics) = (Gate::new(), Health::new(), Metrics::new());
        let begun = tokio::time::Instant::now();
        let looking = async {
            // Several looks, and more where something has to come of them.
            while begun.elapsed() < Duration::from_millis(300) || bed.int(work).await < made {
                assert!(begun.elapsed() < Duration::from_secs(60), "no archive work came");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            gate.drain();
        };
        tokio::join!(manager::run(config, bed.store.clone(), None, &health, &metrics, &gate), looking);
        assert_eq!(bed.int(work).await, made, "archives: {archives}, site: {site:?}");
        let figures = metrics.render().expect("figures");
        assert!(figures.contains(&format!("archive_transfers_planned_total {made}")), "{figures}");
    }
    assert_eq!(ways(bed, id).await, ["cologne/first -> cologne/lta"]);
}
