use crate::bed::{Bed, Raw, set_status};

async fn done(raw: &Raw, text: &str) {
    let rows = raw.exec(text).await.unwrap_or_else(|e| panic!("{text}: {e}"));
    assert!(rows > 0, "no row was touched: {text}");
}

/// Registers the login's worker as a daemon does.
async fn enrol(raw: &Raw, name: &str) -> i64 {
    raw.int(&format!(
        "INSERT INTO worker (name, boot_nonce, host, process_id, version, state, slots, lease_us, heartbeat_at, \
         heartbeat_boot, heartbeat_until) VALUES ('{name}', 'n', 'h', 1, '0', 'active', 4, 10000000, 1, '', 2) RETURNING id"
    ))
    .await
    .expect("enrol")
}

/// From the claim to the end with a worker's rights alone.
pub(crate) async fn a_worker_does_its_work(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    bed.move_to(planned.transfer, "scheduled").await.expect("schedule");
    let worker = bed.login("worker_ccat", "worker").await;
    let id = enrol(&worker, "w_ccat").await;
    let here = bed.location("ccat_output_buffer").await;
    done(
        &worker,
        &format!("INSERT INTO worker_queue (worker_id, location_id, operation) VALUES ({id}, {here}, 'data_transfer')"),
    )
    .await;
    let seen = worker
        .int(&format!("SELECT id FROM data_transfer WHERE queue_location_id = {here} AND status = 'scheduled' FOR UPDATE SKIP LOCKED"))
        .await;
    assert_eq!(seen, Ok(planned.transfer));
    let work = format!("WHERE id = {}", planned.transfer);
    let to_running = set_status("in_progress", id);
    done(&worker, &format!("UPDATE data_transfer SET {to_running}, fence = fence + 1, attempt = attempt + 1 {work}"))
        .await;
    done(
        &worker,
        &format!("UPDATE data_transfer SET lease_until = now_us() + 10000000, bytes_done = 7 {work} AND fence = 1"),
    )
    .await;
    let members = "SELECT count(*) FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id \
                   JOIN package_digest d ON d.package_id = p.id";
    assert_eq!(worker.int(members).await, Ok(1));
    let to = bed.location("cologne_buffer").await;
    done(&worker, &bed.record(&planned, to, 1, &[])).await;
    done(&worker, &bed.copy(planned.package, to)).await;
    done(
        &worker,
        &format!(
            "INSERT INTO attempt (data_transfer_id, fence, number, worker_id, worker_name, started_at, ended_at, outcome, \
             bytes_done) VALUES ({}, 1, 1, {id}, 'w_ccat', 1, 2, 'completed', 1000)",
            planned.transfer
        ),
    )
    .await;
    done(&worker, &format!("UPDATE data_transfer SET {} {work} AND fence = 1", set_status("completed", id))).await;
    assert_eq!(
        bed.int(&format!(
            "SELECT count(*) FROM event WHERE entity = 'data_transfer' AND entity_id = {} AND to_state = 'completed'",
            planned.transfer
        ))
        .await,
        1
    );
}

pub(crate) async fn a_worker_reaches_only_its_rows_and_columns(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    bed.claim(planned.transfer).await;
    let (here, there) = (bed.location("ccat_output_buffer").await, bed.location("cologne_buffer").await);
    let owner = bed.login("worker_ccat", "worker").await;
    let other = bed.login("worker_cologne", "worker").await;

    // Columns: where work goes, how big and how urgent it is.
    for set in [
        "origin_location_id = 1",
        "destination_location_id = 1",
        "queue_location_id = 1",
        "route_id = 1",
        "priority = 9",
        "bytes_total = 0",
        "cancel_requested = FALSE",
        "data_transfer_package_id = 1",
        "ready = TRUE",
        "created_at = 0",
    ] {
        owner
            .refused(&format!("UPDATE data_transfer SET {set} WHERE id = {}", planned.transfer), "permission denied")
            .await;
    }
    for text in [
        "UPDATE raw_data_package SET priority = 9",
        "UPDATE package_digest SET digest = digest",
        "INSERT INTO package_digest (package_id, algorithm, digest) VALUES (1, 'sha256', '\\x00')",
        "UPDATE data_location SET active = FALSE",
        "UPDATE site SET name = 'x'",
        "UPDATE peer SET address = 'evil:1'",
        "UPDATE data_transfer_route SET method = 'bbcp'",
        "INSERT INTO worker_login (login, location_id) VALUES ('worker_ccat', 2)",
        "INSERT INTO event (entity, entity_id, to_state, actor, reason) VALUES ('topology', 0, 'x', 'x', 'x')",
        "INSERT INTO transfer_request (package_id, origin_location_id, requested_by) VALUES (1, 1, 'x')",
        "DELETE FROM data_transfer",
        "DELETE FROM attempt",
        "UPDATE verification_record SET host = 'x'",
        "ALTER TABLE data_transfer DISABLE TRIGGER ALL",
        "DROP TABLE attempt",
        "CREATE TABLE ccat_xfer.mine (a INT)",
        "SET ROLE ccat_xfer_owner",
        "SELECT refuse('x')",
        "SELECT * FROM intake",
        "SELECT * FROM event",
    ] {
        let said = owner.exec(text).await.expect_err(text);
        assert!(said.contains("permission denied") || said.contains("must be owner"), "{text}: {said}");
    }

    // Rows: the other site's worker does not even see it.
    assert_eq!(owner.int("SELECT count(*) FROM data_transfer").await, Ok(1));
    for table in
        ["data_transfer", "raw_data_package", "package_digest", "transfer_request", "data_transfer_package", "attempt"]
    {
        assert_eq!(other.int(&format!("SELECT count(*) FROM {table}")).await, Ok(0), "{table}");
    }
    assert_eq!(
        other.exec(&format!("UPDATE data_transfer SET bytes_done = 1 WHERE id = {}", planned.transfer)).await,
        Ok(0)
    );
    for text in [bed.record(&planned, there, 1, &[]), bed.copy(planned.package, here)] {
        let said = other.exec(&text).await.expect_err(&text);
        assert!(said.contains("row-level security") || said.contains("verified needs"), "{said}");
    }
    // Its own locations it may speak of, those of others not.
    done(&owner, &format!("UPDATE data_location SET free_bytes = 1, free_bytes_at = 1 WHERE id = {here}")).await;
    assert_eq!(
        owner.exec(&format!("UPDATE data_location SET free_bytes = 1, free_bytes_at = 1 WHERE id = {there}")).await,
        Ok(0)
    );
    let mine = enrol(&owner, "w_ccat").await;
    assert_eq!(other.exec(&format!("UPDATE worker SET slots = 1 WHERE id = {mine}")).await, Ok(0));
    owner
        .refused(
            &format!(
                "INSERT INTO worker_queue (worker_id, location_id, operation) VALUES ({mine}, {there}, 'data_transfer')"
            ),
            "row-level security",
        )
        .await;
    let stray = [("data_transfer_id", "NULL".to_owned()), ("fence", "NULL".to_owned())];
    owner.refused(&bed.record(&planned, there, 1, &stray), "row-level security").await;
    // Work that is over is no reason to write copies elsewhere.
    bed.prove(&planned, 1).await;
    bed.move_to(planned.transfer, "completed").await.expect("complete");
    let change = format!(
        "UPDATE physical_copy SET verification = 'suspect', changed_by = 'x', change_reason = 'x' WHERE location_id = {there}"
    );
    assert_eq!(owner.exec(&change).await, Ok(0));
    assert_eq!(other.exec(&change).await, Ok(1), "it lies at its own location");
}

pub(crate) async fn the_others_reach_what_they_need(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let manager = bed.login("manager_login", "manager").await;
    let submitter = bed.login("submitter_login", "submitter").await;
    let another = bed.login("submitter_other", "submitter").await;
    let reader = bed.login("reader_login", "reader").await;

    // The store's own code with the roles that run it.
    let store = ccat_xfer::store::Store::open(&bed.url_of("submitter_login")).await.expect("log in");
    let to = [ccat_xfer::store::Destination::Site("cologne".into())];
    for is_new in [true, false] {
        let registered = store.register(&[bed.package("by a submitter")], &to, "me").await.expect("register");
        assert_eq!((registered[0].is_new_package, registered[0].is_new_request), (is_new, is_new));
    }
    assert!(store.migrate().await.is_err(), "a submitter is no owner");
    store.close().await;

    let intake = format!(
        "INSERT INTO intake (origin_site, origin_location, destination_site, relative_path, kind, size_bytes, digest) \
         VALUES ('ccat', 'output_buffer', 'cologne', '\\x61', 'file', 5, '{}')",
        "ab".repeat(32)
    );
    done(&submitter, &intake).await;
    assert_eq!(submitter.int("SELECT count(*) FROM intake WHERE submitted_by = 'submitter_login'").await, Ok(1));
    assert_eq!(another.int("SELECT count(*) FROM intake").await, Ok(0), "others' rows");
    for text in [
        "UPDATE intake SET state = 'accepted'",
        "INSERT INTO intake (submitted_by) VALUES ('x')",
        "UPDATE transfer_request SET priority = 9",
        "UPDATE raw_data_package SET state = 'archived'",
        "INSERT INTO raw_data_package (state) VALUES ('archived')",
        "SELECT * FROM data_transfer",
    ] {
        submitter.refused(text, "permission denied").await;
    }
    let store = ccat_xfer::store::Store::open(&bed.url_of("manager_login")).await.expect("log in");
    let decided = store.take_intake(10, "manager").await.expect("decide");
    assert!(decided.len() == 1 && decided[0].outcome.is_ok(), "{decided:?}");
    store.close().await;

    let work = format!("WHERE id = {}", planned.transfer);
    done(
        &manager,
        &format!("UPDATE data_transfer SET status = 'scheduled', changed_by = 'm', change_reason = 'due' {work}"),
    )
    .await;
    for text in [
        format!("UPDATE data_transfer SET fence = 1 {work}"),
        format!("UPDATE data_transfer SET destination_location_id = 1 {work}"),
        "UPDATE peer SET address = 'x:1'".to_owned(),
        "UPDATE data_location SET location_type = 'buffer'".to_owned(),
        bed.record(&planned, bed.location("cologne_buffer").await, 1, &[]),
        "DELETE FROM event".to_owned(),
    ] {
        manager.refused(&text, "permission denied").await;
    }
    assert_eq!(reader.int("SELECT count(*) FROM data_transfer").await, Ok(1));
    for text in [
        "UPDATE data_transfer SET bytes_done = 1",
        "INSERT INTO site (name, short_name) VALUES ('x', 'x')",
        "DELETE FROM outbox",
    ] {
        reader.refused(text, "permission denied").await;
    }
}

/// A login with CREATEROLE and a database of its own migrates; so does another member of the owner's role.
pub(crate) async fn an_owner_needs_no_superuser(bed: &Bed) {
    for (login, options) in [("owner_first", "CREATEROLE"), ("owner_second", "NOCREATEROLE")] {
        bed.exec(&format!("CREATE ROLE {login} LOGIN {options}")).await.expect("make a login");
        bed.exec(&format!("GRANT ccat_xfer_owner TO {login}")).await.expect("grant");
    }
    bed.exec("CREATE DATABASE owned OWNER owner_first").await.expect("make a database");
    for (login, from) in [("owner_first", 0), ("owner_second", bed.store.schema_version())] {
        let url = bed.url_of(login).replace(&bed.database(), "owned");
        let store = ccat_xfer::store::Store::connect(&url).await.expect("log in");
        let migrated = store.migrate().await.unwrap_or_else(|e| panic!("{login}: {e}"));
        assert_eq!((migrated.from, migrated.to), (from, store.schema_version()));
        store.check().await.expect("it is there");
        store.close().await;
    }
}
