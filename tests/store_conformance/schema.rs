use ccat_xfer::{
    model::{
        Algorithm, BreakerState, CheckMethod, CopyStatus, Dialer, ErrorClass, LocationType, Method, OnTapeReadback,
        Operation, PackageKind, PackageState, Policy, ReadHow, RouteType, Status, StorageType, Transport, Verification,
        WorkerState,
    },
    store::{Backend, Store, StoreError},
};

use crate::bed::Bed;

pub(crate) async fn an_empty_database_a_newer_and_another_schema_are_told_apart(bed: &Bed) {
    let known = bed.store.schema_version();
    let again = bed.store.migrate().await.expect("migrate twice");
    assert_eq!((again.from, again.to), (known, known));
    Store::open(&bed.url()).await.expect("a schema of our own").close().await;

    bed.done(&format!("UPDATE schema_version SET digest = 'x' WHERE version = {known}")).await;
    let error = Store::open(&bed.url()).await.expect_err("another schema");
    assert!(matches!(error, StoreError::SchemaDiffers { version } if version == known), "{error}");

    bed.done(&format!(
        "INSERT INTO schema_version (version, name, digest, applied_at) VALUES ({}, 'later', 'y', 1)",
        known + 1
    ))
    .await;
    for error in [
        Store::open(&bed.url()).await.expect_err("a newer schema"),
        bed.store.migrate().await.expect_err("a newer schema"),
    ] {
        assert!(
            matches!(error, StoreError::SchemaNewer { found, known: k } if found == known + 1 && k == known),
            "{error}"
        );
    }

    if bed.store.backend() == Backend::Postgres {
        bed.done("DELETE FROM schema_version").await;
        let error = Store::open(&bed.url()).await.expect_err("an older schema");
        assert!(matches!(error, StoreError::SchemaMissing), "{error}");
        bed.exec("DROP SCHEMA ccat_xfer CASCADE").await.expect("drop it");
        let error = Store::open(&bed.url()).await.expect_err("no schema");
        assert!(matches!(error, StoreError::SchemaMissing) && error.to_string().contains("db migrate"), "{error}");
    }
}

/// The version of [`make_older`].
const OLDER: i64 = 4;

/// A database that an older program made.
async fn make_older(bed: &Bed) {
    bed.exec("DROP SCHEMA ccat_xfer CASCADE").await.expect("drop it");
    bed.exec("CREATE SCHEMA ccat_xfer").await.expect("make it");
    bed.exec(
        "CREATE TABLE schema_version (version BIGINT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, \
         applied_at BIGINT NOT NULL)",
    )
    .await
    .expect("make it");
    for (version, text) in [
        (1, include_str!("../../src/store/migrations/postgres/0001_control_plane.sql")),
        (2, include_str!("../../src/store/migrations/postgres/0002_leases.sql")),
        (3, include_str!("../../src/store/migrations/postgres/0003_proofs.sql")),
        (4, include_str!("../../src/store/migrations/postgres/0004_spool.sql")),
    ] {
        bed.exec(text).await.unwrap_or_else(|e| panic!("{version}: {e}"));
        let digest = blake3::hash(text.as_bytes());
        bed.done(&format!("INSERT INTO schema_version VALUES ({version}, 'older', '{digest}', 1)")).await;
    }
    bed.done(
        "INSERT INTO worker (name, boot_nonce, host, process_id, version, state, slots, lease_us, heartbeat_at, \
         heartbeat_boot, heartbeat_until) VALUES ('alive', 'n', 'h', 1, '0', 'active', 1, 600000000, now_us(), '', \
         now_us() + 600000000)",
    )
    .await;
}

pub(crate) async fn a_schema_is_not_changed_under_running_workers(bed: &Bed) {
    if bed.store.backend() == Backend::Sqlite {
        return;
    }
    let known = bed.store.schema_version();
    make_older(bed).await;
    let error = bed.store.migrate().await.expect_err("a worker runs");
    assert!(matches!(&error, StoreError::WorkersRunning { names } if names == "alive"), "{error}");
    assert_eq!(bed.int("SELECT max(version) FROM schema_version").await, OLDER);
    assert_eq!(bed.store.migrate_forced().await.expect("forced").to, known);
    bed.store.migrate().await.expect("nothing to do, whoever runs");
    make_older(bed).await;
    bed.done("UPDATE worker SET heartbeat_until = 1").await;
    assert_eq!(bed.store.migrate().await.expect("nobody is heard of").from, OLDER);
}

pub(crate) async fn names_of_queues_stay_and_are_not_shared(bed: &Bed) {
    bed.apply_topology().await;
    bed.refused("UPDATE site SET short_name = 'x' WHERE short_name = 'us'", "cannot change").await;
    bed.refused("UPDATE data_location SET name = 'x' WHERE name = 'lta'", "cannot change").await;
    bed.done("INSERT INTO site (name, short_name) VALUES ('X', 'cologne_a')").await;
    let location = |site: &str, name: &str, stem: &str| {
        format!(
            "INSERT INTO data_location (site_id, name, queue_stem, location_type, storage_type, changed_by, change_reason) \
             SELECT id, '{name}', '{stem}', 'buffer', 'disk', 't', 't' FROM site WHERE short_name = '{site}'"
        )
    };
    bed.refused(&location("us", "x", "us_y"), "queue_stem").await;
    bed.done(&location("cologne_a", "b", "cologne_a_b")).await;
    let said = bed.exec(&location("cologne", "a_b", "cologne_a_b")).await.expect_err("a shared queue");
    assert!(said.to_lowercase().contains("unique"), "{said}");
}

/// The CHECKs of the schema and the words of the model are the same sets.
pub(crate) async fn every_word_of_the_model_is_one_of_the_schema(bed: &Bed) {
    let texts: Vec<String> = match bed.store.backend() {
        Backend::Sqlite => vec![
            include_str!("../../src/store/migrations/sqlite/0001_control_plane.sql").to_owned(),
            include_str!("../../src/store/migrations/sqlite/0005_archive.sql").replace("''", "'"),
        ],
        Backend::Postgres => vec![
            include_str!("../../src/store/migrations/postgres/0001_control_plane.sql").to_owned(),
            include_str!("../../src/store/migrations/postgres/0005_archive.sql").to_owned(),
        ],
    };
    let text: String = texts.concat().split_whitespace().collect::<Vec<_>>().join(" ");
    fn list<T: std::fmt::Display>(words: &[T]) -> String {
        let words: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
        format!("({})", words.join(", "))
    }
    for (column, words) in [
        ("location_type", list(LocationType::ALL)),
        ("storage_type", list(StorageType::ALL)),
        ("medium", list(StorageType::ALL)),
        ("route_type", list(RouteType::ALL)),
        ("method", list(Method::ALL)),
        ("method", list(CheckMethod::ALL)),
        ("dialer", list(Dialer::ALL)),
        ("transport", list(Transport::ALL)),
        ("breaker_state", list(BreakerState::ALL)),
        ("state", list(WorkerState::ALL)),
        ("state", list(PackageState::ALL)),
        ("kind", list(PackageKind::ALL)),
        ("policy", list(Policy::ALL)),
        ("read_how", list(ReadHow::ALL)),
        ("on_tape_readback", list(OnTapeReadback::ALL)),
        ("algorithm", list(Algorithm::ALL)),
        ("operation", list(Operation::ALL)),
        ("status", list(Status::ALL)),
        ("status", list(CopyStatus::ALL)),
        ("verification", list(Verification::ALL)),
        ("error_class", list(ErrorClass::ALL)),
    ] {
        assert!(text.contains(&format!("CHECK ({column} IN {words})")), "{column} {words}");
    }
    let outcomes = list(ErrorClass::ALL).replacen('(', "('completed', 'handed_back', ", 1);
    assert!(text.contains(&format!("CHECK (outcome IN {outcomes})")), "{outcomes}");
}

pub(crate) async fn leases_have_a_clock(bed: &Bed) {
    let before = bed.store.now().await.expect("the time");
    let clock = bed.store.lease_clock();
    match bed.store.backend() {
        Backend::Sqlite => assert!(clock.boot.len() == 36 && clock.now_us.is_some_and(|us| us > 0), "{clock:?}"),
        Backend::Postgres => assert!(clock.boot.is_empty() && clock.now_us.is_none(), "{clock:?}"),
    }
    assert!(bed.store.now().await.expect("the time") >= before);
}

/// PostgreSQL drops from a search what the condition of a partial index says already: a first column that it says the value
/// of cannot be sought by, and the whole index is walked. Seen to fail on the indexes of version 6.
pub(crate) async fn no_index_leads_with_what_its_condition_says(bed: &Bed) {
    if bed.store.backend() != Backend::Postgres {
        return;
    }
    let text = r"SELECT count(*) FROM pg_indexes WHERE schemaname = 'ccat_xfer'
        AND substring(indexdef FROM '\((\w+)') = ANY (regexp_split_to_array(substring(indexdef FROM 'WHERE (.*)'), '[^a-z_]+'))
        AND indexdef !~ 'IS NOT NULL'";
    assert_eq!(bed.int(text).await, 0);
    assert!(
        bed.int("SELECT count(*) FROM pg_indexes WHERE schemaname = 'ccat_xfer' AND indexdef ~ 'WHERE'").await > 20
    );
}
