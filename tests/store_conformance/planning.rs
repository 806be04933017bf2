use ccat_xfer::{
    model::topology::{ChangeKind, Topology},
    store::{Apply, Backend, Destination, StoreError},
};

use crate::{
    bed::{Bed, TOPOLOGY},
    harness::seed,
};

pub(crate) async fn a_topology_is_applied_once(bed: &Bed) {
    let topology = Topology::parse(TOPOLOGY).expect("a topology");
    let told = bed.store.apply_topology(&topology, "test", Apply::DryRun).await.expect("a dry run");
    assert_eq!(bed.int("SELECT count(*) FROM site").await, 0, "a dry run writes nothing");
    let made = bed.store.apply_topology(&topology, "test", Apply::Now).await.expect("apply");
    assert_eq!(told, made);
    assert_eq!(made.len(), 12);
    assert_eq!(bed.store.topology().await.expect("read"), topology, "what is read is what was written");
    assert_eq!(bed.store.apply_topology(&topology, "test", Apply::Now).await.expect("again"), []);
    assert_eq!(bed.int("SELECT count(*) FROM event WHERE entity = 'topology'").await, 1);
}

pub(crate) async fn what_leaves_the_topology_becomes_inactive(bed: &Bed) {
    bed.apply_topology().await;
    bed.done("UPDATE data_transfer_route SET paused = TRUE, changed_by = 'op', change_reason = 'storm'").await;
    let mut less = Topology::parse(TOPOLOGY).expect("a topology");
    less.routes.retain(|name, _| name == "ccat-cologne");
    less.locations.values_mut().for_each(|l| l.logins.clear());
    less.start_rates.insert("*".into(), "100/s".parse().expect("a rate"));
    less.start_rates.insert("cologne_buffer_data_transfer".into(), "7/m".parse().expect("a rate"));
    let changes = bed.store.apply_topology(&less, "test", Apply::Now).await.expect("apply");
    let gone: Vec<&str> =
        changes.iter().filter(|c| c.kind == ChangeKind::Deactivate).map(|c| c.name.as_str()).collect();
    assert_eq!(gone, ["ccat-us", "cologne-us"]);
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer_route").await, 3, "nothing is deleted");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer_route WHERE active AND paused").await, 1);
    assert_eq!(bed.int("SELECT count(*) FROM worker_login").await, 0, "a right that is not named is gone");
    assert_eq!(bed.store.topology().await.expect("read").start_rates, less.start_rates);
    let all = Topology::parse(TOPOLOGY).expect("a topology");
    bed.store.apply_topology(&all, "test", Apply::Now).await.expect("apply");
    assert_eq!(bed.store.topology().await.expect("read"), all);
    assert_eq!(bed.int("SELECT count(*) FROM rate_limit").await, 0, "a rate that is not named is lifted");
    assert_eq!(bed.int("SELECT count(*) FROM data_transfer_route WHERE paused").await, 3, "a pause is an operator's");
}

pub(crate) async fn registering_twice_makes_nothing_new(bed: &Bed) {
    bed.apply_topology().await;
    let packages = [bed.package("a"), bed.package("b")];
    let to = [Destination::Place("cologne/buffer".parse().expect("a place")), Destination::Any];
    let first = bed.store.register(&packages, &to, "test").await.expect("register");
    assert_eq!(first.len(), 4);
    assert!(first.iter().all(|r| r.is_new_package && r.is_new_request));
    let second = bed.store.register(&packages, &to, "somebody else").await.expect("register");
    assert!(second.iter().all(|r| !r.is_new_package && !r.is_new_request));
    let ids = |all: &[ccat_xfer::store::Registered]| all.iter().map(|r| (r.package, r.request)).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&second));
    assert_eq!(bed.int("SELECT count(*) FROM raw_data_package").await, 2);
    assert_eq!(bed.int("SELECT count(*) FROM physical_copy WHERE verification = 'registered'").await, 2);

    // Many at once: one of them makes it.
    let many = (0..8).map(|_| async { bed.register("c", "cologne/buffer").await });
    let all = futures_util::future::join_all(many).await;
    assert_eq!(all.iter().filter(|r| r.is_new_package).count(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|r| r.is_new_request).count(), 1, "{all:?}");

    // Other bytes at the same path are another package.
    let mut other = bed.package("a");
    other.identity = [7; 32];
    assert!(bed.store.register(&[other], &to, "test").await.expect("register")[0].is_new_package);
}

pub(crate) async fn what_contradicts_a_registration_is_refused(bed: &Bed) {
    bed.apply_topology().await;
    let to = [Destination::Place("cologne/buffer".parse().expect("a place"))];
    bed.store.register(&[bed.package("a")], &to, "test").await.expect("register");
    let mut other = bed.package("a");
    other.size_bytes += 1;
    let error = bed.store.register(&[bed.package("b"), other], &to, "test").await.expect_err("another size");
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    assert_eq!(bed.int("SELECT count(*) FROM raw_data_package").await, 1, "all or nothing");
    let mut lost = bed.package("c");
    lost.origin.location = "cellar".into();
    let error = bed.store.register(&[lost], &to, "test").await.expect_err("an unknown location");
    assert_eq!(error.to_string(), "no active location ccat/cellar");
    let here = [Destination::Place("ccat/output_buffer".parse().expect("a place"))];
    assert!(matches!(bed.store.register(&[bed.package("d")], &here, "t").await, Err(StoreError::Refused(_))));
    let mut with_sha = bed.package("a");
    with_sha.sha256 = Some([1; 32]);
    bed.store.register(&[with_sha.clone()], &to, "test").await.expect("a digest more");
    with_sha.sha256 = Some([2; 32]);
    assert!(matches!(bed.store.register(&[with_sha], &to, "test").await, Err(StoreError::Refused(_))));
}

pub(crate) async fn intake_is_accepted_or_refused_with_a_reason(bed: &Bed) {
    bed.apply_topology().await;
    let row = |site: &str, location: &str, path: &[u8], size: u64| {
        format!(
            "INSERT INTO intake (origin_site, origin_location, destination_site, destination_location, relative_path, \
             kind, size_bytes, digest) VALUES ('{site}', '{location}', 'Cologne', NULL, {}, 'file', {size}, '{}')",
            bed.blob(path),
            "ab".repeat(32)
        )
    };
    bed.done(&row("ccat", "output_buffer", b"x/y", 5)).await;
    bed.done(&row("mars", "output_buffer", b"x/y", 5)).await;
    bed.done(&row("CCAT Observatory", "output_buffer", b"../y", 5)).await;
    bed.done(&row("ccat", "output_buffer", b"x/y", 6)).await;
    bed.done(&row("CCAT Observatory", "output_buffer", b"x/y", 5)).await;
    let decided = bed.store.take_intake(100, "manager").await.expect("decide");
    let said: Vec<String> = decided
        .iter()
        .map(|d| match &d.outcome {
            Ok(r) => format!("{} new={}", r.package, r.is_new_package),
            Err(why) => why.clone(),
        })
        .collect();
    assert_eq!(said[0], "p1 new=true");
    assert_eq!(said[1], "no active site mars");
    assert!(said[2].starts_with("relative_path: "), "{said:?}");
    assert!(said[3].contains("another size"), "{said:?}");
    assert_eq!(said[4], "p1 new=false");
    assert_eq!(bed.int("SELECT count(*) FROM intake WHERE state = 'accepted' AND package_id = 1").await, 2);
    assert_eq!(bed.int("SELECT count(*) FROM intake WHERE state = 'refused' AND refusal <> ''").await, 3);
    assert_eq!(bed.store.take_intake(100, "manager").await.expect("decide"), []);
    assert_eq!(
        bed.int("SELECT count(*) FROM transfer_request WHERE destination_site_id IS NOT NULL").await,
        1,
        "accepted twice, wished once"
    );
}

/// PostgreSQL's index takes no key of more than about 2,700 bytes.
pub(crate) async fn a_row_of_intake_that_the_database_refuses_holds_up_no_other(bed: &Bed) {
    bed.apply_topology().await;
    let mut rng = seed("a_row_of_intake_that_the_database_refuses_holds_up_no_other");
    // Random, so that nothing compresses it, in parts that a file system takes.
    let long: Vec<u8> = (0..3900_u32)
        .map(|n| if n % 200 == 199 { b'/' } else { b'a' + u8::try_from(rng.below(26)).expect("small") })
        .collect();
    for path in [long.as_slice(), b"x/y"] {
        bed.done(&format!(
            "INSERT INTO intake (origin_site, origin_location, destination_site, destination_location, relative_path, \
             kind, size_bytes, digest) VALUES ('ccat', 'output_buffer', 'cologne', NULL, {}, 'file', 5, '{}')",
            bed.blob(path),
            "ab".repeat(32)
        ))
        .await;
    }
    let decided = bed.store.take_intake(100, "manager").await.expect("decide");
    let accepted: Vec<_> = decided.iter().map(|d| d.outcome.is_ok()).collect();
    let long_is_accepted = bed.store.backend() == Backend::Sqlite;
    assert_eq!(accepted, [long_is_accepted, true], "{decided:?}");
    assert_eq!(bed.int("SELECT count(*) FROM intake WHERE state = 'new'").await, 0);
}

pub(crate) async fn a_plan_is_made_once(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let twice = bed.transfer(planned.bundle, "ccat_output_buffer", "cologne_buffer", 1, None).await;
    assert!(twice.expect_err("a second live transfer").to_lowercase().contains("unique"));
    let elsewhere = bed.transfer(planned.bundle, "ccat_output_buffer", "us_buffer", 1, None).await;
    assert!(elsewhere.is_err(), "another destination is a second live transfer too");

    let late = bed.register("late", "cologne/buffer").await;
    let join = format!(
        "UPDATE transfer_request SET data_transfer_package_id = {}, planned_at = 1 WHERE id = {}",
        planned.bundle,
        late.request.number()
    );
    bed.refused(&join, "closed").await;
    let other = bed.bundle(&[late]).await;
    bed.refused(&join, "cannot change").await;
    bed.refused(&format!("UPDATE data_transfer_package SET size_bytes = 1 WHERE id = {other}"), "cannot change").await;

    // A bundle with wrong sums gets no transfer.
    let origin = bed.location("ccat_output_buffer").await;
    for (size, count) in [(999, 1), (1000, 2)] {
        let one = bed.register(&format!("sum{size}"), "cologne/buffer").await;
        let bundle = bed
            .int(&format!(
                "INSERT INTO data_transfer_package (origin_location_id, size_bytes, package_count, created_by) \
                 VALUES ({origin}, {size}, {count}, 'test') RETURNING id"
            ))
            .await;
        bed.done(&format!(
            "UPDATE transfer_request SET data_transfer_package_id = {bundle}, planned_at = 1 WHERE id = {}",
            one.request.number()
        ))
        .await;
        let said = bed.transfer(bundle, "ccat_output_buffer", "cologne_buffer", 1, None).await;
        assert!(said.expect_err("wrong sums").contains("other sums"));
    }

    // A failed one makes room; then the failed one cannot come back beside it.
    assert!(bed.move_to(planned.transfer, "failed").await.is_ok());
    bed.transfer(planned.bundle, "ccat_output_buffer", "us_buffer", 1, None).await.expect("a failover");
    let said = bed.move_to(planned.transfer, "pending").await.expect_err("two live ones");
    assert!(said.to_lowercase().contains("unique"), "{said}");
}

pub(crate) async fn the_second_hop_waits_for_the_first(bed: &Bed) {
    bed.apply_topology().await;
    let planned = bed.planned().await;
    let wrong = bed.transfer(planned.bundle, "us_buffer", "cologne_lta", 2, Some(planned.transfer)).await;
    assert!(wrong.expect_err("it starts elsewhere").contains("hop before"));
    let second = bed
        .transfer(planned.bundle, "cologne_buffer", "us_buffer", 2, Some(planned.transfer))
        .await
        .expect("the second hop");
    assert!(bed.move_to(second, "scheduled").await.is_err(), "it is not ready");
    bed.refused(&format!("UPDATE data_transfer SET ready = TRUE WHERE id = {second}"), "not completed").await;
    bed.claim(planned.transfer).await;
    bed.prove(&planned, 1).await;
    bed.move_to(planned.transfer, "completed").await.expect("the first hop is done");
    assert_eq!(bed.int(&format!("SELECT count(*) FROM data_transfer WHERE id = {second} AND ready")).await, 1);
    bed.move_to(second, "scheduled").await.expect("now it is ready");
}
