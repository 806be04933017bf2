use ccat_xfer::model::{Move, PackageMove, PackageState, Status};

use crate::bed::{Bed, Planned};

/// A transfer that was claimed once and then came to this status.
async fn at(bed: &Bed, status: Status) -> Planned {
    let planned = bed.planned().await;
    bed.claim(planned.transfer).await;
    bed.prove(&planned, 1).await;
    if status != Status::InProgress {
        bed.move_to(planned.transfer, status.as_str()).await.unwrap_or_else(|e| panic!("to {status}: {e}"));
    }
    planned
}

pub(crate) async fn only_legal_changes_of_status(bed: &Bed) {
    bed.apply_topology().await;
    for &from in Status::ALL {
        for &to in Status::ALL.iter().filter(|&&to| to != from) {
            let planned = at(bed, from).await;
            let legal = Move::ALL.iter().any(|&m| from.on(m) == Ok(to));
            let done = bed.move_to(planned.transfer, to.as_str()).await;
            assert_eq!(done.is_ok(), legal, "{from} -> {to}: {done:?}");
            if let Err(said) = done {
                assert!(said.contains("illegal change"), "{from} -> {to}: {said}");
            }
        }
    }
    let fresh = bed.planned().await;
    let said = bed.move_to(fresh.transfer, "in_progress").await.expect_err("nobody has claimed it");
    assert!(said.contains("by a claim") || said.to_lowercase().contains("check"), "{said}");
}

pub(crate) async fn only_legal_changes_of_packages(bed: &Bed) {
    bed.apply_topology().await;
    let change = |id: i64, to: PackageState| {
        format!("UPDATE raw_data_package SET state = '{to}', changed_by = 't', change_reason = 't' WHERE id = {id}")
    };
    for &from in PackageState::ALL {
        for &to in PackageState::ALL.iter().filter(|&&to| to != from) {
            let planned = bed.planned().await;
            archive(bed, &planned).await;
            if from != PackageState::Waiting {
                bed.done(&change(planned.package, from)).await;
            }
            let legal = PackageMove::ALL.iter().any(|&m| from.on(m) == Ok(to));
            let done = bed.exec(&change(planned.package, to)).await;
            assert_eq!(done.is_ok(), legal, "{from} -> {to}: {done:?}");
        }
    }
}

/// A required archive with all its proof, recorded without work, as a scrub does.
async fn archive(bed: &Bed, planned: &Planned) {
    let lta = bed.location("cologne_lta").await;
    bed.done(&format!("INSERT INTO archive_requirement (package_id, location_id) VALUES ({}, {lta})", planned.package))
        .await;
    bed.done(&bed.record(planned, lta, 1, &read_back())).await;
    bed.done(&bed.copy(planned.package, lta)).await;
}

/// A reading of what rests in an archive, without work.
pub(crate) fn read_back() -> Vec<(&'static str, String)> {
    [
        ("data_transfer_id", "NULL"),
        ("fence", "NULL"),
        ("method", "'read_back'"),
        ("cached", "FALSE"),
        ("read_how", "'direct'"),
    ]
    .map(|(column, value)| (column, value.to_owned()))
    .to_vec()
}

pub(crate) async fn completed_needs_proof(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let (to, from) = (bed.location("cologne_buffer").await, bed.location("ccat_output_buffer").await);
    bed.claim(planned.transfer).await;
    let refused = async |why: &str| {
        let said = bed.move_to(planned.transfer, "completed").await.expect_err(why);
        assert!(said.contains("completed needs"), "{why}: {said}");
    };
    refused("no record").await;
    let text = |value: &str| value.to_owned();
    for (why, but) in [
        ("another digest was found", vec![("found_digest", text("ZEROS"))]),
        ("another digest was expected", vec![("expected_digest", text("ZEROS"))]),
        ("both are the wrong one", vec![("expected_digest", text("ZEROS")), ("found_digest", text("ZEROS"))]),
        ("another size was found", vec![("found_size_bytes", text("999"))]),
        ("both sizes are wrong", vec![("found_size_bytes", text("999")), ("expected_size_bytes", text("999"))]),
        ("another algorithm", vec![("algorithm", text("'sha256'"))]),
        ("another place", vec![("location_id", from.to_string())]),
    ] {
        bed.done(&bed.record(&planned, to, 1, &but)).await;
        bed.refused(&bed.copy(planned.package, to), "verified needs").await;
        refused(why).await;
    }
    bed.done(&bed.record(&planned, to, 1, &[])).await;
    refused("no copy").await;
    bed.refused(&bed.copy(planned.package, to).replace("'verified'", "'registered'"), "registered is the origin alone")
        .await;
    bed.done(&bed.copy(planned.package, to).replace("'verified'", "'suspect'")).await;
    refused("a suspect copy").await;
    bed.done(&format!(
        "UPDATE physical_copy SET verification = 'verified', changed_by = 't', change_reason = 't' \
         WHERE package_id = {} AND location_id = {to}",
        planned.id().number()
    ))
    .await;
    bed.move_to(planned.transfer, "completed").await.expect("all is proved");
}

pub(crate) async fn archived_needs_proof(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let (lta, buffer) = (bed.location("cologne_lta").await, bed.location("cologne_buffer").await);
    let package = planned.package;
    let archived = format!(
        "UPDATE raw_data_package SET state = 'archived', changed_by = 't', change_reason = 't' WHERE id = {package}"
    );
    bed.refused(&archived, "archived needs").await;
    let require = |location: i64| {
        format!("INSERT INTO archive_requirement (package_id, location_id) VALUES ({package}, {location})")
    };
    let without = [("data_transfer_id", "NULL".to_owned()), ("fence", "NULL".to_owned())];
    bed.done(&require(lta)).await;
    bed.refused(&archived, "archived needs").await;
    bed.done(&bed.record(&planned, lta, 1, &read_back())).await;
    bed.refused(&archived, "archived needs").await;
    bed.done(&bed.copy(package, lta)).await;

    let work = format!(
        "INSERT INTO long_term_archive_transfer (package_id, origin_location_id, destination_location_id, \
         queue_location_id, bytes_total, changed_by, change_reason) VALUES ({package}, {buffer}, {lta}, {lta}, 1000, 't', 't')"
    );
    bed.refused(&work.replace(&format!("{lta}, {lta}"), &format!("{buffer}, {buffer}")), "").await;
    bed.done(&work).await;
    let said = bed.exec(&work).await.expect_err("one live archive transfer");
    assert!(said.to_lowercase().contains("unique"), "{said}");

    bed.done(&archived).await;
    bed.refused(&archived.replace("'archived'", "'transferring'"), "illegal change").await;

    // A buffer is no archive, whatever lies there.
    let other = bed.planned().await;
    bed.done(&bed.record(&other, buffer, 1, &without)).await;
    bed.done(&bed.copy(other.package, buffer)).await;
    let swap = |text: &str| text.replace(&format!("= {package}"), &format!("= {}", other.package));
    bed.done(&require(buffer).replace(&format!("({package},"), &format!("({},", other.package))).await;
    bed.refused(&swap(&archived), "archived needs").await;
}

pub(crate) async fn an_overtaken_owner_writes_nothing(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let to = bed.location("cologne_buffer").await;
    bed.claim(planned.transfer).await;
    bed.done(&bed.record(&planned, to, 1, &[])).await;
    // Swept, and claimed by another.
    bed.move_to(planned.transfer, "scheduled").await.expect("swept");
    bed.claim(planned.transfer).await;
    bed.refused(&bed.record(&planned, to, 1, &[]), "overtaken").await;
    bed.refused(&attempt(planned.transfer, 1, "lost_worker"), "overtaken").await;
    bed.refused(&bed.record(&planned, to, 3, &[]), "overtaken").await;
    let fence = |n: &str| format!("UPDATE data_transfer SET fence = {n}, attempt = 1 WHERE id = {}", planned.transfer);
    bed.refused(&fence("1"), "fence").await;
    bed.refused(&fence("4"), "fence").await;
    bed.done(&attempt(planned.transfer, 2, "completed")).await;
    let other = bed.planned().await;
    let stray = bed.record(&planned, to, 2, &[("package_id", other.package.to_string())]);
    bed.refused(&stray, "not of this work").await;
    let elsewhere = bed.location("us_buffer").await;
    bed.refused(&bed.record(&planned, elsewhere, 2, &[]), "not of this work").await;
    bed.prove(&planned, 2).await;
    bed.move_to(planned.transfer, "completed").await.expect("by the owner");
    bed.refused(&bed.record(&planned, to, 2, &[]), "overtaken").await;
    bed.refused(&format!("UPDATE data_transfer SET bytes_total = 1 WHERE id = {}", planned.transfer), "cannot change")
        .await;
}

fn attempt(transfer: i64, fence: i64, outcome: &str) -> String {
    format!(
        "INSERT INTO attempt (data_transfer_id, fence, number, worker_name, started_at, ended_at, outcome, bytes_done) \
         VALUES ({transfer}, {fence}, {fence}, 'w', 1, 2, '{outcome}', 0)"
    )
}

pub(crate) async fn an_attempt_that_ended_does_not_come_back(bed: &Bed) {
    bed.apply_topology().await;
    // A lease that was lost: a late renewal, and a late outcome, count while nobody has claimed it.
    for late in ["in_progress", "completed"] {
        for swept in ["scheduled", "pending"] {
            let planned = bed.planned().await;
            bed.claim(planned.transfer).await;
            bed.prove(&planned, 1).await;
            bed.move_to(planned.transfer, swept).await.expect("swept");
            bed.move_to(planned.transfer, late).await.unwrap_or_else(|e| panic!("{swept} -> {late}: {e}"));
        }
    }
    // An attempt that failed has ended.
    let planned = bed.planned().await;
    bed.claim(planned.transfer).await;
    bed.done(&attempt(planned.transfer, 1, "network")).await;
    let again = bed.exec(&attempt(planned.transfer, 1, "completed")).await.expect_err("a fence ends once");
    assert!(again.contains("ends once") || again.contains("unique"), "{again}");
    bed.move_to(planned.transfer, "pending").await.expect("it is tried again later");
    let said = bed.move_to(planned.transfer, "in_progress").await.expect_err("a late renewal");
    assert!(said.contains("does not come back"), "{said}");
    bed.claim(planned.transfer).await;
    assert_eq!(bed.int(&format!("SELECT fence FROM data_transfer WHERE id = {}", planned.transfer)).await, 2);
}
