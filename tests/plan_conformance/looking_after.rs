//! What is archived is read again; what went bad is marked, repaired and counted; what an archive says is restored.

use ccat_xfer::{
    chunk::RelPath,
    model::{
        Algorithm, AttemptOutcome, CheckMethod, Ending, ErrorClass, Evidence, PackageDigest, PackageId, PackageKind,
        Policy, ReadHow, StorageType, Timestamp, Verification,
    },
    store::{CopyToCheck, Finding, Looked, RestoredCopy, RestoredPackage, StoreError},
};

use crate::{
    archiving::{LTA, archived, arrived, keep, next, plan_archives, standing, ways},
    bed::Bed,
    world::{WORLD, apply, at_once, end, failure, run_one, set_location, state, worker},
};

async fn to_check(bed: &Bed) -> Vec<CopyToCheck> {
    let location = bed.store.location_id("cologne/lta").await.expect("a location");
    let now = bed.store.now().await.expect("the time");
    bed.store.next_to_check(location, now.after(std::time::Duration::from_secs(1)), None, 10).await.expect("look")
}

/// A reading of a copy that found these bytes.
fn reading(copy: &CopyToCheck, found: Option<[u8; 32]>) -> Evidence {
    let digest = copy.package.digests[0];
    Evidence {
        package: copy.package.package,
        location: copy.location,
        path: copy.package.source_path.clone(),
        algorithm: digest.algorithm,
        expected_digest: digest.value,
        found_digest: found.unwrap_or(digest.value),
        expected_size_bytes: copy.package.size_bytes,
        found_size_bytes: copy.package.size_bytes,
        method: CheckMethod::Scrub,
        medium: StorageType::Disk,
        cached: false,
        how: Some(ReadHow::Direct),
        unread_reason: None,
        host: "h".into(),
        version: "0".into(),
        receiver_key: None,
        started_at: Timestamp::from_micros(1),
        ended_at: Timestamp::from_micros(2),
    }
}

pub(crate) async fn the_oldest_evidence_comes_first(bed: &Bed) {
    apply(bed, WORLD).await;
    for path in ["a", "b", "c"] {
        archived(bed, path).await;
    }
    let began = bed.store.now().await.expect("the time");
    let location = bed.store.location_id("cologne/lta").await.expect("a location");
    let first = bed.store.next_to_check(location, began, None, 2).await.expect("look");
    assert_eq!(first.iter().map(|c| c.package.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let rest = bed.store.next_to_check(location, began, Some(first[1].cursor), 2).await.expect("look");
    assert_eq!(rest.iter().map(|c| c.package.name.as_str()).collect::<Vec<_>>(), ["c"]);
    let looked = bed.store.record_check(&first[0], Finding::Read(&reading(&first[0], None)), "v").await;
    assert_eq!(looked.expect("record"), Looked::Recorded(Verification::Verified));
    let left = bed.store.next_to_check(location, began, None, 9).await.expect("look");
    assert_eq!(left.iter().map(|c| c.package.name.as_str()).collect::<Vec<_>>(), ["b", "c"], "a was looked at");
    let all = to_check(bed).await;
    assert_eq!(all.iter().map(|c| c.package.name.as_str()).collect::<Vec<_>>(), ["b", "c", "a"]);
}

pub(crate) async fn a_mismatch_is_repaired_from_a_verified_copy(bed: &Bed) {
    apply(bed, WORLD).await;
    let (id, keeper) = archived(bed, "a").await;
    let copy = to_check(bed).await.remove(0);
    let looked = bed.store.record_check(&copy, Finding::Read(&reading(&copy, Some([7; 32]))), "v").await;
    assert_eq!(looked.expect("record"), Looked::Recorded(Verification::Corrupt));
    assert_eq!(state(bed, id).await, "failed", "by the same commit");
    let told = bed.store.explain_package(PackageId::new(id)).await.expect("explain");
    assert_eq!(told.reason, "its copy in cologne/lta is corrupt: it was read again, and differs");
    assert_eq!((told.required, told.held), (1, 0));
    // The old record proves nothing any more.
    let by_hand = "UPDATE physical_copy SET verification = 'verified', changed_by = 'x', change_reason = 'x'
        WHERE verification = 'corrupt'";
    bed.refused(by_hand, "verified needs").await;
    bed.refused(
        "UPDATE raw_data_package SET state = 'archived', changed_by = 'x', change_reason = 'x'",
        "archived needs",
    )
    .await;

    let planned = plan_archives(bed).await;
    assert_eq!((planned.repairs, planned.transfers, planned.unrepaired.len()), (1, 0, 0), "{planned:?}");
    assert_eq!(plan_archives(bed).await.repairs, 0, "once");
    assert_eq!(state(bed, id).await, "failed", "until it is repaired");
    let held = next(bed, &keeper).await;
    assert!(held.archive.is_some_and(|terms| terms.replace));
    assert_eq!(held.origin.name, "first");
    end(&bed.store, &keeper, &held, Ending::Completed).await;
    bed.store.settle(10, "manager").await.expect("settle");
    assert_eq!(state(bed, id).await, "archived");
    assert_eq!(plan_archives(bed).await.repairs, 0);

    // Bad again: the next repair, though one is completed.
    let copy = to_check(bed).await.remove(0);
    bed.store.record_check(&copy, Finding::Read(&reading(&copy, Some([8; 32]))), "v").await.expect("record");
    assert_eq!(plan_archives(bed).await.repairs, 1);
    keep(bed, &keeper).await;
    assert_eq!(state(bed, id).await, "archived");
    assert_eq!(bed.int("SELECT max(repair) FROM long_term_archive_transfer").await, 2);
}

pub(crate) async fn what_is_missing_is_suspect_and_comes_back(bed: &Bed) {
    apply(bed, WORLD).await;
    let (id, _) = archived(bed, "a").await;
    let copy = to_check(bed).await.remove(0);
    let looked = bed.store.record_check(&copy, Finding::Missing { why: "no such file" }, "v").await;
    assert_eq!(looked.expect("record"), Looked::Recorded(Verification::Suspect));
    assert_eq!(state(bed, id).await, "failed");
    // It was only not mounted.
    let copy = to_check(bed).await.remove(0);
    assert_eq!(copy.verification, Verification::Suspect);
    bed.store.record_check(&copy, Finding::Read(&reading(&copy, None)), "v").await.expect("record");
    assert_eq!(state(bed, id).await, "archived", "it was there all the time");
    assert_eq!(plan_archives(bed).await.repairs, 0);
}

/// Catches a manager that counts a suspect copy among those that archives hold.
pub(crate) async fn a_suspect_copy_is_held_by_no_archive(bed: &Bed) {
    apply(bed, WORLD).await;
    let (package, copy) = restored("a");
    let done = bed.store.restore(&package, std::slice::from_ref(&copy), "rebuild").await.expect("restore");
    let id = done.package.number();
    assert_eq!(standing(bed, id).await, "1 of 2 archives hold it");
    let found = to_check(bed).await.remove(0);
    bed.store.record_check(&found, Finding::Missing { why: "no such file" }, "v").await.expect("record");
    // The other archive holds it now, which is all that was missing.
    let other = RestoredCopy { location: "us/lta".parse().expect("a place"), ..copy };
    bed.store.restore(&package, &[other], "rebuild").await.expect("the other archive");
    bed.store.settle(10, "manager").await.expect("settle");
    assert_eq!(state(bed, id).await, "failed");
    let told = bed.store.explain_package(done.package).await.expect("explain");
    assert_eq!((told.required, told.held), (2, 1), "{told:?}");
    let found = to_check(bed).await.remove(0);
    bed.store.record_check(&found, Finding::Read(&reading(&found, None)), "v").await.expect("record");
    assert_eq!(state(bed, id).await, "archived");
}

pub(crate) async fn a_look_that_was_overtaken_writes_nothing(bed: &Bed) {
    apply(bed, WORLD).await;
    archived(bed, "a").await;
    let copy = to_check(bed).await.remove(0);
    bed.store.record_check(&copy, Finding::Read(&reading(&copy, None)), "v").await.expect("record");
    let records = bed.int("SELECT count(*) FROM verification_record").await;
    let late = bed.store.record_check(&copy, Finding::Read(&reading(&copy, Some([7; 32]))), "v").await;
    assert_eq!(late.expect("a late one"), Looked::Overtaken);
    assert_eq!(bed.int("SELECT count(*) FROM verification_record").await, records);
    let copy = to_check(bed).await.remove(0);
    let mut other = reading(&copy, None);
    other.method = CheckMethod::ReadBack;
    let error = bed.store.record_check(&copy, Finding::Read(&other), "v").await.expect_err("refused");
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
}

pub(crate) async fn a_cached_look_counts_only_where_it_may(bed: &Bed) {
    apply(bed, WORLD).await;
    let (id, _) = archived(bed, "a").await;
    let cached = |copy: &CopyToCheck| {
        let mut evidence = reading(copy, None);
        (evidence.cached, evidence.how) = (true, Some(ReadHow::Cached));
        evidence
    };
    let copy = to_check(bed).await.remove(0);
    bed.store.record_check(&copy, Finding::Missing { why: "gone" }, "v").await.expect("record");
    let copy = to_check(bed).await.remove(0);
    let looked = bed.store.record_check(&copy, Finding::Read(&cached(&copy)), "v").await.expect("record");
    assert_eq!(looked, Looked::NotCounted);
    assert_eq!(state(bed, id).await, "failed");
    set_location(bed, "cologne_lta", "cached_read_back_counts = TRUE").await;
    let looked = bed.store.record_check(&copy, Finding::Read(&cached(&copy)), "v").await.expect("record");
    assert_eq!(looked, Looked::Recorded(Verification::Verified));
    assert_eq!(state(bed, id).await, "archived");
    // Other bytes speak against a copy wherever they were read.
    set_location(bed, "cologne_lta", "cached_read_back_counts = FALSE").await;
    let copy = to_check(bed).await.remove(0);
    let bad = Evidence { found_digest: [3; 32], ..cached(&copy) };
    let looked = bed.store.record_check(&copy, Finding::Read(&bad), "v").await.expect("record");
    assert_eq!(looked, Looked::Recorded(Verification::Corrupt));
}

pub(crate) async fn another_site_helps_where_no_copy_is_left(bed: &Bed) {
    apply(bed, WORLD).await;
    let (id, keeper) = archived(bed, "a").await;
    bed.done(
        "UPDATE physical_copy SET verification = 'suspect', changed_by = 't', change_reason = 't'
        WHERE location_id IN (SELECT id FROM data_location WHERE queue_stem IN ('cologne_first', 'cologne_lta'))",
    )
    .await;
    let planned = plan_archives(bed).await;
    assert_eq!((planned.repairs, planned.requests, planned.unrepaired.len()), (0, 1, 1), "{planned:?}");
    assert_eq!(plan_archives(bed).await.looked_at, 0, "not before its time");
    bed.store.plan(&at_once(), "manager").await.expect("plan");
    let carrier = worker(&bed.store, "carrier", 1, &["ccat_out_data_transfer"]).await;
    run_one(bed, &carrier, Ending::Completed).await;
    bed.done("UPDATE physical_copy SET archive_due_at = 0 WHERE archive_due_at > 0").await;
    assert_eq!(plan_archives(bed).await.repairs, 1);
    assert_eq!(ways(bed, id).await[1], "cologne/second -> cologne/lta");
    keep(bed, &keeper).await;
    assert_eq!(state(bed, id).await, "archived");
}

fn restored(path: &str) -> (RestoredPackage, RestoredCopy) {
    let identity = *blake3::hash(path.as_bytes()).as_bytes();
    let at = Timestamp::from_micros(1_700_000_000_000_000);
    let path = RelPath::new(path.as_bytes()).expect("a path");
    let package = RestoredPackage {
        name: path.to_string(),
        kind: PackageKind::File,
        origin: "ccat/out".parse().expect("a place"),
        path: path.clone(),
        size_bytes: 1000,
        file_count: 1,
        identity,
        digests: vec![PackageDigest { algorithm: Algorithm::Blake3, value: identity }],
        priority: 6,
        policy: Policy::EveryArchive,
        required: vec!["us/lta".parse().expect("a place")],
        registered_at: at,
        metadata: Some(r#"{"obs_id": "7"}"#.into()),
    };
    let record = Evidence {
        package: PackageId::new(1),
        location: ccat_xfer::model::LocationId::new(1),
        path: path.as_bytes().to_vec(),
        algorithm: Algorithm::Blake3,
        expected_digest: identity,
        found_digest: identity,
        expected_size_bytes: 1000,
        found_size_bytes: 1000,
        method: CheckMethod::ReadBack,
        medium: StorageType::Disk,
        cached: false,
        how: Some(ReadHow::Dropped),
        unread_reason: None,
        host: "h".into(),
        version: "0".into(),
        receiver_key: None,
        started_at: at,
        ended_at: at,
    };
    let location = "cologne/lta".parse().expect("a place");
    (package, RestoredCopy { location, path, records: vec![record], looked_at_by: None })
}

pub(crate) async fn what_an_archive_says_is_restored_once(bed: &Bed) {
    apply(bed, WORLD).await;
    let (package, copy) = restored("a");
    let done = bed.store.restore(&package, std::slice::from_ref(&copy), "rebuild").await.expect("restore");
    assert_eq!((done.is_new_package, done.new_copies, done.new_records), (true, 1, 1));
    let id = done.package.number();
    assert_eq!(
        (state(bed, id).await.as_str(), standing(bed, id).await.as_str()),
        ("transferring", "1 of 2 archives hold it")
    );
    let again = bed.store.restore(&package, std::slice::from_ref(&copy), "rebuild").await.expect("again");
    assert_eq!((again.package, again.is_new_package, again.new_copies, again.new_records), (done.package, false, 0, 0));
    let other = RestoredCopy { location: "us/lta".parse().expect("a place"), ..copy.clone() };
    bed.store.restore(&package, &[other], "rebuild").await.expect("the other archive");
    assert_eq!(state(bed, id).await, "archived");
    let detail = bed.store.package_detail(done.package).await.expect("show");
    assert_eq!((detail.row.created_at, detail.row.priority), (package.registered_at, 6));
    assert_eq!(detail.metadata.as_deref().map(serde_json::value::RawValue::get), Some(r#"{"obs_id": "7"}"#));
    assert_eq!(plan_archives(bed).await.transfers, 0);

    for (what, wrong) in [
        ("size", RestoredPackage { size_bytes: 7, ..package.clone() }),
        ("name", RestoredPackage { name: "x".into(), ..package.clone() }),
        ("kind", RestoredPackage { kind: PackageKind::Tree, ..package.clone() }),
    ] {
        let error = bed.store.restore(&wrong, &[], "rebuild").await.expect_err(what);
        assert!(matches!(&error, StoreError::Refused(why) if why.contains(what)), "{what}: {error}");
    }
    let elsewhere = RestoredCopy { path: RelPath::new(&b"b"[..]).expect("a path"), ..copy.clone() };
    let error = bed.store.restore(&package, &[elsewhere], "rebuild").await.expect_err("another path");
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    // Nothing is taken on faith.
    let (package, mut unproven) = restored("b");
    unproven.records.clear();
    let error = bed.store.restore(&package, &[unproven], "rebuild").await.expect_err("no record");
    assert!(error.to_string().contains("verified needs"), "{error}");
    assert_eq!(bed.int("SELECT count(*) FROM raw_data_package").await, 1, "all or nothing");
    // And it is looked after like what was archived here.
    assert_eq!(plan_archives(bed).await.repairs, 0);
    arrived(bed, "later", Policy::SiteArchives, "cologne").await;
    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    plan_archives(bed).await;
    keep(bed, &keeper).await;
    let oldest = to_check(bed).await;
    assert_eq!(oldest[0].package.name, "a");
    assert_eq!(oldest[0].checked_at, copy.records[0].ended_at);
    // Sidecars that date their readings later than any are believed last, and stay in their order.
    let looked_at_by = bed.store.before_all_looks(&copy.location).await.expect("look");
    assert_eq!(looked_at_by.map(|by| by.micros() + 1), Some(copy.records[0].ended_at.micros()));
    let tomorrow = bed.store.now().await.expect("the time").after(std::time::Duration::from_secs(86_400));
    for name in ["late", "late too"] {
        let (package, mut late) = restored(name);
        (late.records[0].ended_at, late.looked_at_by) = (tomorrow, looked_at_by);
        bed.store.restore(&package, &[late], "rebuild").await.expect("restore");
    }
    let names: Vec<_> = to_check(bed).await.into_iter().map(|copy| copy.package.name).collect();
    assert_eq!(names, ["late", "late too", "a", "later"]);
}

/// A cache proves nothing, and a failure that says so is taken. Seen to fail (the outcome is refused for ever) without
/// the look at the location's settings before the copy is written.
pub(crate) async fn a_cached_reading_ends_no_archive_work(bed: &Bed) {
    apply(bed, WORLD).await;
    let id = arrived(bed, "a", Policy::SiteArchives, "cologne").await;
    plan_archives(bed).await;
    let keeper = worker(&bed.store, "keeper", 1, &[LTA]).await;
    let held = next(bed, &keeper).await;
    let now = bed.store.now().await.expect("the time");
    let member = &held.members[0];
    let mut outcome = AttemptOutcome::new(held.work, held.fence, "keeper", held.claimed_at, now, Ending::Completed);
    outcome.evidence.push(Evidence {
        package: member.package,
        location: held.destination.location,
        path: member.relative_path.clone(),
        algorithm: member.digests[0].algorithm,
        expected_digest: member.digests[0].value,
        found_digest: member.digests[0].value,
        expected_size_bytes: member.size_bytes,
        found_size_bytes: member.size_bytes,
        method: CheckMethod::ReadBack,
        medium: StorageType::Disk,
        cached: true,
        how: Some(ReadHow::Cached),
        unread_reason: None,
        host: "h".into(),
        version: "0".into(),
        receiver_key: None,
        started_at: now,
        ended_at: now,
    });
    let error = bed.store.finish(&outcome, 7).await.expect_err("refused");
    assert!(error.to_string().contains("completed needs a read-back"), "{error}");
    outcome.ending = failure(ErrorClass::Configuration);
    bed.store.finish(&outcome, 7).await.expect("it says that it failed, with what it found");
    let records = "SELECT count(*) FROM verification_record WHERE read_how = 'cached'";
    assert_eq!(bed.int(records).await, 1);
    let copies =
        "SELECT count(*) FROM physical_copy c JOIN data_location l ON l.id = c.location_id WHERE l.name = 'lta'";
    assert_eq!(bed.int(copies).await, 0, "nothing is known to lie there");
    bed.store.settle(10, "manager").await.expect("settle");
    assert_eq!(state(bed, id).await, "failed");
}
