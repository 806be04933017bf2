//! What counts in an archive, whoever writes the rows.

use crate::{
    bed::{Bed, Planned, set_status},
    lifecycle::read_back,
};

type But = [(&'static str, &'static str)];

fn with(more: &But) -> Vec<(&'static str, String)> {
    let mut all = read_back();
    all.extend(more.iter().map(|(column, value)| (*column, (*value).to_owned())));
    all
}

/// A package that one archive has to hold.
async fn required(bed: &Bed) -> (Planned, i64) {
    let planned = bed.planned().await;
    let lta = bed.location("cologne_lta").await;
    bed.done(&format!("INSERT INTO archive_requirement (package_id, location_id) VALUES ({}, {lta})", planned.package))
        .await;
    (planned, lta)
}

fn to_state(package: i64, state: &str) -> String {
    format!("UPDATE raw_data_package SET state = '{state}', changed_by = 'x', change_reason = 'x' WHERE id = {package}")
}

fn to_verification(package: i64, location: i64, word: &str) -> String {
    format!(
        "UPDATE physical_copy SET verification = '{word}', changed_by = 'somebody', change_reason = 'a look' \
         WHERE package_id = {package} AND location_id = {location}"
    )
}

async fn set_lta(bed: &Bed, what: &str) {
    bed.done(&format!("UPDATE data_location SET {what}, changed_by = 't', change_reason = 't' WHERE name = 'lta'"))
        .await;
}

/// Seen to fail with the triggers before: any equal record of the place was proof.
pub(crate) async fn what_only_passed_by_proves_nothing_in_an_archive(bed: &Bed) {
    bed.apply_topology().await;
    let (planned, lta) = required(bed).await;
    for method in ["'received'", "'found_equal'"] {
        bed.done(&bed.record(&planned, lta, 1, &with(&[("method", method)]))).await;
        bed.refused(&bed.copy(planned.package, lta), "verified needs").await;
        bed.refused(&to_state(planned.package, "archived"), "archived needs").await;
    }
    // The very same is enough in a buffer.
    let buffer = bed.location("cologne_buffer").await;
    bed.done(&bed.record(&planned, buffer, 1, &with(&[("method", "'received'")]))).await;
    bed.done(&bed.copy(planned.package, buffer)).await;
    bed.done(&bed.record(&planned, lta, 1, &with(&[]))).await;
    bed.done(&bed.copy(planned.package, lta)).await;
    bed.done(&to_state(planned.package, "archived")).await;
}

pub(crate) async fn a_cache_and_a_tape_system_are_believed_where_the_location_says_so(bed: &Bed) {
    bed.apply_topology().await;
    let cached: &But = &[("cached", "TRUE"), ("read_how", "'cached'")];
    let checksum: &But = &[("read_how", "'vouched'")];
    let unread: &But = &[("read_how", "'vouched'"), ("unread_reason", "'the library is far'")];
    for (what, settings) in [
        (cached, vec!["cached_read_back_counts = TRUE"]),
        (checksum, vec!["on_tape_readback = 'checksum'", "on_tape_readback = 'none'"]),
        (unread, vec!["on_tape_readback = 'none'"]),
    ] {
        let (planned, lta) = required(bed).await;
        set_lta(bed, "cached_read_back_counts = FALSE, on_tape_readback = 'full'").await;
        bed.done(&bed.record(&planned, lta, 1, &with(what))).await;
        bed.refused(&bed.copy(planned.package, lta), "verified needs").await;
        for setting in &settings {
            let (planned, lta) = required(bed).await;
            set_lta(bed, setting).await;
            bed.done(&bed.record(&planned, lta, 1, &with(what))).await;
            bed.done(&bed.copy(planned.package, lta)).await;
            bed.done(&to_state(planned.package, "archived")).await;
        }
    }
    set_lta(bed, "on_tape_readback = 'checksum'").await;
    let (planned, lta) = required(bed).await;
    bed.done(&bed.record(&planned, lta, 1, &with(unread))).await;
    bed.refused(&bed.copy(planned.package, lta), "verified needs").await;
    // The columns agree with each other.
    let contradictions: [&But; 4] = [
        &[("read_how", "'cached'")],
        &[("cached", "TRUE")],
        &[("unread_reason", "'a reason'")],
        &[("read_how", "'vouched'"), ("unread_reason", "''")],
    ];
    for odd in contradictions {
        let said = bed.exec(&bed.record(&planned, lta, 1, &with(odd))).await.expect_err("they contradict");
        assert!(said.to_lowercase().contains("check"), "{said}");
    }
}

/// Archive work of a package from the buffer in cologne, claimed.
async fn archive_work(bed: &Bed, planned: &Planned, lta: i64) -> i64 {
    let buffer = bed.location("cologne_buffer").await;
    let id = bed
        .int(&format!(
            "INSERT INTO long_term_archive_transfer (package_id, origin_location_id, destination_location_id, \
             queue_location_id, bytes_total, changed_by, change_reason) \
             VALUES ({}, {buffer}, {lta}, {lta}, 1000, 't', 't') RETURNING id",
            planned.package
        ))
        .await;
    claim(bed, id).await;
    id
}

async fn claim(bed: &Bed, id: i64) {
    let running = set_status("in_progress", bed.worker().await);
    for set in [set_status("scheduled", 0), format!("{running}, fence = fence + 1, attempt = attempt + 1")] {
        bed.done(&format!("UPDATE long_term_archive_transfer SET {set} WHERE id = {id}")).await;
    }
}

/// A record of archive work.
fn of_work(bed: &Bed, planned: &Planned, lta: i64, (work, fence): (i64, i64), method: &str) -> String {
    let mut all = read_back();
    all.extend([
        ("long_term_archive_transfer_id", work.to_string()),
        ("fence", fence.to_string()),
        ("method", method.to_owned()),
    ]);
    bed.record(planned, lta, fence, &all)
}

pub(crate) async fn completed_needs_a_reading_of_this_attempt(bed: &Bed) {
    bed.apply_topology().await;
    let (planned, lta) = required(bed).await;
    let id = archive_work(bed, &planned, lta).await;
    let completed = format!("UPDATE long_term_archive_transfer SET {} WHERE id = {id}", set_status("completed", 0));
    bed.refused(&completed, "completed needs").await;
    // A look of somebody else makes the copy verified, and this attempt no better.
    bed.done(&bed.record(&planned, lta, 1, &with(&[]))).await;
    bed.done(&bed.copy(planned.package, lta)).await;
    bed.refused(&completed, "completed needs").await;
    for method in ["'received'", "'scrub'"] {
        bed.done(&of_work(bed, &planned, lta, (id, 1), method)).await;
        bed.refused(&completed, "completed needs").await;
    }
    bed.done(&of_work(bed, &planned, lta, (id, 1), "'read_back'")).await;
    // The attempt after it has to read for itself.
    bed.done(&format!("UPDATE long_term_archive_transfer SET {} WHERE id = {id}", set_status("pending", 0))).await;
    claim(bed, id).await;
    bed.refused(&completed, "completed needs").await;
    bed.done(&of_work(bed, &planned, lta, (id, 2), "'read_back'")).await;
    bed.done(&completed).await;
    bed.done(&to_state(planned.package, "archived")).await;
}

/// Catches a copy that is only there being taken for one that is verified.
pub(crate) async fn a_copy_that_is_not_verified_is_no_archived_one(bed: &Bed) {
    bed.apply_topology().await;
    for word in ["suspect", "corrupt"] {
        let (planned, lta) = required(bed).await;
        let package = planned.package;
        let id = archive_work(bed, &planned, lta).await;
        // It was read back and was equal, by this very attempt.
        bed.done(&of_work(bed, &planned, lta, (id, 1), "'read_back'")).await;
        bed.done(&bed.copy(package, lta).replace("'verified'", &format!("'{word}'"))).await;
        let completed = format!("UPDATE long_term_archive_transfer SET {} WHERE id = {id}", set_status("completed", 0));
        bed.refused(&to_state(package, "archived"), "archived needs").await;
        bed.refused(&completed, "completed needs").await;
        bed.done(&to_verification(package, lta, "verified")).await;
        bed.done(&completed).await;
        bed.done(&to_state(package, "archived")).await;
    }
}

pub(crate) async fn a_package_is_archived_no_longer_than_its_copies_are_good(bed: &Bed) {
    bed.apply_topology().await;
    let state = async |package: i64, word: &str| {
        bed.int(&format!("SELECT count(*) FROM raw_data_package WHERE id = {package} AND state = '{word}'")).await == 1
    };
    for word in ["suspect", "corrupt"] {
        let (planned, lta) = required(bed).await;
        let package = planned.package;
        bed.done(&bed.record(&planned, lta, 1, &with(&[]))).await;
        bed.done(&bed.copy(package, lta)).await;
        bed.done(&to_state(package, "archived")).await;
        bed.done(&to_verification(package, lta, word)).await;
        assert!(state(package, "failed").await);
        let reason = format!("its copy in cologne/lta is {word}: a look");
        let events = format!(
            "SELECT count(*) FROM event WHERE entity = 'raw_data_package' AND entity_id = {package} \
             AND to_state = 'failed' AND reason = '{reason}' AND actor = 'somebody'"
        );
        assert_eq!(bed.int(&events).await, 1);
        bed.refused(&to_state(package, "archived"), "archived needs").await;
        // A record of other bytes takes the older ones with it.
        bed.done(&bed.record(&planned, lta, 1, &with(&[("found_digest", "ZEROS")]))).await;
        bed.refused(&to_verification(package, lta, "verified"), "verified needs").await;
        bed.done(&bed.record(&planned, lta, 1, &with(&[("method", "'scrub'")]))).await;
        bed.done(&to_verification(package, lta, "verified")).await;
        assert!(state(package, "archived").await, "it comes back with its copy");
        bed.done(&format!(
            "UPDATE physical_copy SET status = 'deleted', changed_by = 'x', change_reason = 'x' \
             WHERE package_id = {package} AND location_id = {lta}"
        ))
        .await;
        assert!(state(package, "failed").await);
    }
    // A copy that no policy asks for is not missed.
    let (planned, lta) = required(bed).await;
    bed.done(&bed.record(&planned, lta, 1, &with(&[]))).await;
    bed.done(&bed.copy(planned.package, lta)).await;
    bed.done(&to_state(planned.package, "archived")).await;
    let origin = bed.location("ccat_output_buffer").await;
    bed.done(&to_verification(planned.package, origin, "suspect")).await;
    assert!(state(planned.package, "archived").await);
}

pub(crate) async fn what_was_required_stays(bed: &Bed) {
    bed.apply_topology().await;
    let (planned, lta) = required(bed).await;
    let buffer = bed.location("cologne_buffer").await;
    let change = format!("UPDATE archive_requirement SET location_id = {buffer}");
    for text in [change.as_str(), "DELETE FROM archive_requirement"] {
        bed.refused(text, "only inserted").await;
    }
    bed.done(&bed.record(&planned, lta, 1, &with(&[]))).await;
    bed.done(&bed.copy(planned.package, lta)).await;
    bed.done(&to_state(planned.package, "archived")).await;
    bed.refused(
        &format!("INSERT INTO archive_requirement (package_id, location_id) VALUES ({}, {buffer})", planned.package),
        "no further one",
    )
    .await;
}

pub(crate) async fn a_way_into_an_archive_is_planned_once(bed: &Bed) {
    bed.apply_topology().await;
    let (planned, lta) = required(bed).await;
    let buffer = bed.location("cologne_buffer").await;
    let work = |repair: i64| {
        format!(
            "INSERT INTO long_term_archive_transfer (package_id, origin_location_id, destination_location_id, \
             queue_location_id, bytes_total, repair, changed_by, change_reason) \
             VALUES ({}, {buffer}, {lta}, {lta}, 1000, {repair}, 't', 't')",
            planned.package
        )
    };
    bed.done(&work(0)).await;
    for repair in [0, 1] {
        let said = bed.exec(&work(repair)).await.expect_err("one at a time");
        assert!(said.to_lowercase().contains("unique"), "{said}");
    }
    let id = bed.int("SELECT max(id) FROM long_term_archive_transfer").await;
    bed.refused(&format!("UPDATE long_term_archive_transfer SET repair = 3 WHERE id = {id}"), "cannot change").await;
    claim(bed, id).await;
    bed.done(&of_work(bed, &planned, lta, (id, 1), "'read_back'")).await;
    bed.done(&bed.copy(planned.package, lta)).await;
    bed.done(&format!("UPDATE long_term_archive_transfer SET {} WHERE id = {id}", set_status("completed", 0))).await;
    let said = bed.exec(&work(0)).await.expect_err("it was done");
    assert!(said.to_lowercase().contains("unique"), "{said}");
    bed.done(&work(1)).await;
}

pub(crate) async fn metadata_are_one_object(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let insert = |text: &str| {
        format!("INSERT INTO raw_data_package_metadata (package_id, metadata) VALUES ({}, '{text}')", planned.package)
    };
    for bad in ["", "[1]", "7", "{", "{\"a\": }"] {
        let said = bed.exec(&insert(bad)).await.expect_err(bad);
        assert!(said.to_lowercase().contains("check") || said.to_lowercase().contains("json"), "{bad}: {said}");
        let error = ccat_xfer::store::checked_metadata(bad).expect_err("the store says so before");
        assert!(error.to_string().contains("metadata"), "{error}");
    }
    bed.done(&insert("{\"obs_id\": \"7\"}")).await;
    let mut package = bed.package("described");
    package.metadata = Some("{\"target_name\": \"M31\"}".into());
    let to = [ccat_xfer::store::Destination::Site("cologne".into())];
    for _ in 0..2 {
        bed.store.register(&[package.clone()], &to, "test").await.expect("register");
    }
    let there = "SELECT count(*) FROM raw_data_package_metadata WHERE metadata LIKE '%M31%'";
    assert_eq!(bed.int(there).await, 1);
    // Another program's, with the policy that nobody named.
    let path = bed.blob(b"by intake");
    bed.done(&format!(
        "INSERT INTO intake (origin_site, origin_location, destination_site, relative_path, kind, size_bytes, digest, \
         metadata) VALUES ('ccat', 'output_buffer', 'cologne', {path}, 'file', 5, '{}', '{{\"obs_id\": \"8\"}}')",
        "ab".repeat(32)
    ))
    .await;
    let decided = bed.store.take_intake(5, "manager").await.expect("decide");
    assert!(decided.len() == 1 && decided[0].outcome.is_ok(), "{decided:?}");
    let there = "SELECT count(*) FROM raw_data_package p JOIN raw_data_package_metadata m ON m.package_id = p.id
        WHERE p.policy = 'site_archives' AND m.metadata LIKE '%\"8\"%'";
    assert_eq!(bed.int(there).await, 1);
}
