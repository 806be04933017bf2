use ccat_xfer::store::Backend;

use crate::bed::Bed;

pub(crate) async fn what_is_written_stays(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    bed.claim(planned.transfer).await;
    bed.prove(&planned, 1).await;
    bed.done(&format!(
        "INSERT INTO attempt (data_transfer_id, fence, number, worker_name, started_at, ended_at, outcome, bytes_done) \
         VALUES ({}, 1, 1, 'w', 1, 2, 'network', 0)",
        planned.transfer
    ))
    .await;
    let mut changes = vec![
        ("event", "reason = 'x'"),
        ("verification_record", "host = 'x'"),
        ("attempt", "log = 'x'"),
        ("package_digest", "algorithm = 'sha256'"),
    ];
    for (table, set) in &changes {
        assert!(bed.int(&format!("SELECT count(*) FROM {table}")).await > 0, "{table} has rows");
        bed.refused(&format!("UPDATE {table} SET {set}"), "only inserted").await;
        bed.refused(&format!("DELETE FROM {table}"), "only inserted").await;
    }
    changes.extend([
        ("raw_data_package", ""),
        ("data_transfer", ""),
        ("physical_copy", ""),
        ("long_term_archive_transfer", ""),
    ]);
    for (table, _) in &changes {
        match bed.store.backend() {
            Backend::Postgres => bed.refused(&format!("TRUNCATE {table} CASCADE"), "").await,
            Backend::Sqlite if *table != "long_term_archive_transfer" => {
                bed.refused(&format!("DELETE FROM {table}"), "").await;
            }
            Backend::Sqlite => {}
        }
    }
    if bed.store.backend() == Backend::Sqlite {
        // REPLACE deletes without asking the triggers for deletion.
        for table in ["event", "verification_record", "attempt", "package_digest"] {
            bed.refused(&format!("INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1"), "only inserted")
                .await;
        }
    }
    for set in ["size_bytes = 1", "kind = 'tree'", "file_count = 2", "identity = relative_path"] {
        let text = format!("UPDATE raw_data_package SET {set} WHERE id = {}", planned.package);
        assert!(bed.exec(&text).await.is_err(), "{text}");
    }
}

pub(crate) async fn every_change_has_an_event(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    bed.claim(planned.transfer).await;
    bed.prove(&planned, 1).await;
    bed.move_to(planned.transfer, "completed").await.expect("complete");
    let count = async |what: &str| bed.int(&format!("SELECT count(*) FROM event WHERE {what}")).await;
    let of = format!("entity = 'data_transfer' AND entity_id = {}", planned.transfer);
    assert_eq!(count(&of).await, 4);
    for step in [
        "from_state IS NULL AND to_state = 'pending' AND reason = 'planned' AND fence = 0",
        "from_state = 'pending' AND to_state = 'scheduled' AND reason = 'due'",
        "from_state = 'scheduled' AND to_state = 'in_progress' AND fence = 1",
        "from_state = 'in_progress' AND to_state = 'completed' AND actor = 'test' AND at > 1600000000000000",
    ] {
        assert_eq!(count(&format!("{of} AND {step}")).await, 1, "{step}");
    }
    bed.done("UPDATE data_location SET paused = TRUE, changed_by = 'op', change_reason = 'repair' WHERE name = 'lta'")
        .await;
    let paused = "entity = 'data_location' AND from_state = 'active' AND to_state = 'paused' AND reason = 'repair'";
    assert_eq!(count(paused).await, 1);
    bed.done(
        "UPDATE data_transfer_route SET breaker_state = 'open', breaker_until = 9, changed_by = 'm', \
         change_reason = '5 failures' WHERE name = 'ccat-cologne'",
    )
    .await;
    assert_eq!(count("entity = 'data_transfer_route' AND to_state = 'active open'").await, 1);
    assert_eq!(count("entity = 'raw_data_package' AND to_state = 'waiting'").await, 1);
    assert_eq!(count("entity = 'physical_copy' AND to_state = 'present verified'").await, 1);
}
