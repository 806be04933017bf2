//! `explain`, as it is typed, beside daemons that run: the true reason for each cause that an operator meets. The same
//! reasons are held to their details, on both databases, by `plan_conformance`.

#[path = "control/mod.rs"]
mod control;
mod harness;

use std::{
    fs,
    time::{Duration, Instant},
};

use ccat_xfer::{model::StartRate, store::Store};
use serde_json::Value;

use control::world::{Backend, HANG, Terms, World, lines};
use harness::{Postgres, free_port};

fn reasons(world: &World, id: i64) -> Vec<Value> {
    let said = world.say(&["explain", &format!("t{id}"), "--json"]);
    lines(&said.stdout)[0]["reasons"].as_array().expect("a list").clone()
}

/// Waits until it is the first reason, and returns it.
fn until_first(world: &World, id: i64, kind: &str) -> Value {
    until(world, id, kind, |reasons| reasons.first().filter(|r| r["kind"] == kind).cloned())
}

/// Waits until it is one of the reasons.
fn until_told(world: &World, id: i64, kind: &str) -> Value {
    until(world, id, kind, |reasons| reasons.iter().find(|r| r["kind"] == kind).cloned())
}

fn until(world: &World, id: i64, kind: &str, found: impl Fn(&[Value]) -> Option<Value>) -> Value {
    let end = Instant::now() + HANG;
    loop {
        let reasons = reasons(world, id);
        if let Some(reason) = found(&reasons) {
            assert!(!reason["text"].as_str().unwrap_or_default().is_empty(), "{reason}");
            return reason;
        }
        assert!(Instant::now() < end, "t{id} is never told {kind}: {reasons:?}\n{}", world.story());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Registers a file as a transfer of its own, and returns its number.
fn submit(world: &World, name: &str) -> i64 {
    let before = world.number("count(*)", "FROM data_transfer");
    fs::write(world.origin().join(name), name).expect("write a file");
    world.submit(&[name]);
    let rest = "FROM data_transfer";
    world.until("planned", &["count(*)"], rest, |row| row[0] == (before + 1).to_string());
    before + 1
}

fn every_reason(backend: Backend) {
    let test = format!("reasons on {}", backend.word());
    if backend.is_missing(&test) {
        return;
    }
    let worker = "lease = \"3s\"\nslots = 6\nretry_percent = 1000\nreconnect_timeout = \"1s\"\n";
    let mut world = World::new("reasons", backend, &Terms { worker, ..Terms::default() });
    let _manager = world.manager("m1");
    let first = submit(&world, "first");
    let told = until_first(&world, first, "no_worker");
    assert_eq!(told["queue"], "ccat_buffer_data_transfer");

    world.say(&["pause", "--route", "there", "--reason", "a storm"]);
    let told = until_first(&world, first, "route_paused");
    assert!(told["text"].as_str().expect("a text").contains("a storm"), "{told}");

    // A rate that is used up, before the worker comes.
    let store = world.runtime.block_on(Store::open(&world.database(Postgres::ADMIN))).expect("open");
    let hourly = StartRate::new(1, 3_600_000_000).expect("a rate");
    world.runtime.block_on(store.set_rate_limit(None, Some(hourly))).expect("limit");
    world.execute("UPDATE rate_limit SET tokens_micro = 0");
    let _worker = world.worker("w1");
    world.say(&["resume", "--route", "there"]);
    until_first(&world, first, "rate_limit");
    world.runtime.block_on(store.set_rate_limit(None, None)).expect("lift");
    world.until_status(first, "completed");

    let missing = submit_then(&world, "missing", |world| {
        fs::remove_file(world.origin().join("missing")).expect("remove a file");
    });
    until_first(&world, missing, "missing_source");

    let now = world.runtime.block_on(store.now()).expect("the time").micros();
    world.runtime.block_on(store.close());
    // Again with each look: a worker there says with every heartbeat what is free.
    let fill = format!(
        "UPDATE data_location SET free_bytes = 1, free_bytes_at = {now}, changed_by = 'test', change_reason = 'full' \
         WHERE queue_stem = 'cologne_buffer'"
    );
    let full = until(&world, missing, "destination_full", |reasons| {
        world.execute(&fill);
        reasons.iter().find(|r| r["kind"] == "destination_full").cloned()
    });
    assert_eq!(full["location"], "cologne/buffer");
    world.execute(
        "UPDATE data_location SET free_bytes = NULL, free_bytes_at = NULL, changed_by = 'test', change_reason = 'room' \
         WHERE queue_stem = 'cologne_buffer'",
    );

    // Nobody answers at the other site: first each waits for its next attempt, then the route for a while.
    world.end_endpoints();
    let lost = submit(&world, "lost");
    let told = until_told(&world, lost, "backoff");
    assert_eq!(told["class"], "network", "{told}");
    for n in 0..5 {
        submit(&world, &format!("lost{n}"));
    }
    let told = until_told(&world, lost, "breaker_open");
    assert!(told["failures"].as_u64() >= Some(5) && told["until"].is_i64() | told["until"].is_string(), "{told}");

    // A third site behind the second one.
    let mut topology = fs::read_to_string(world.scene.join("topology.toml")).expect("read the topology");
    topology.push_str(&format!(
        "\n[[peer]]\nname = \"chile\"\naddress = \"127.0.0.1:{}\"\nfingerprint = \"sha256:{:064}\"\n\
         [[site]]\nname = \"chile site\"\nshort_name = \"chile\"\n\
         [[location]]\nsite = \"chile\"\nname = \"buffer\"\ntype = \"buffer\"\npeer = \"chile\"\n\
         [[route]]\nname = \"onward\"\nfrom = \"cologne\"\nto = \"chile\"\n\
         [[route]]\nname = \"far\"\ntype = \"relay\"\nfrom = \"ccat\"\nto = \"chile\"\nvia = \"cologne\"\n",
        free_port(),
        1
    ));
    fs::write(world.scene.join("topology.toml"), topology).expect("write the topology");
    world.say(&["topology", "apply", "topology.toml"]);
    fs::write(world.origin().join("far"), "far").expect("write a file");
    world.say(&["submit", "--from", "ccat/buffer", "--to", "chile/buffer", "far"]);
    let hop = world.until("two hops", &["id"], "FROM data_transfer WHERE hop = 2", |_| true);
    let told = until_first(&world, hop[0].parse().expect("a number"), "first_hop");
    assert!(told["text"].as_str().expect("a text").contains("the hop before it"), "{told}");
}

/// As [`submit`], with something between registering and the first attempt.
fn submit_then(world: &World, name: &str, then: impl Fn(&World)) -> i64 {
    world.say(&["pause", "--route", "there", "--reason", "something is done first"]);
    let id = submit(world, name);
    then(world);
    world.say(&["resume", "--route", "there"]);
    id
}

#[test]
fn explain_gives_the_true_reason_on_sqlite() {
    every_reason(Backend::Sqlite);
}

#[test]
fn explain_gives_the_true_reason_on_postgresql() {
    every_reason(Backend::Servers);
}
