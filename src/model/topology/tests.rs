use super::*;

const GOOD: &str = r#"
[[peer]]
name = "cologne"
address = "xfer.cologne.example:8422"
fingerprint = "sha256:00000000000000000000000000000000000000000000000000000000000000AA"

[[site]]
name = "CCAT"
short_name = "ccat"
[[site]]
name = "Cologne"
short_name = "cologne"
[[site]]
name = "Ithaca"
short_name = "us"

[[location]]
site = "ccat"
name = "output_buffer"
type = "buffer"
[[location]]
site = "cologne"
name = "buffer"
type = "buffer"
peer = "cologne"
rate_limit = "800Mbit"
keep_free = "1T"
[[location]]
site = "us"
name = "buffer"
type = "buffer"

[[route]]
name = "ccat-cologne"
from = "ccat"
to = "cologne"
[[route]]
name = "us-cologne"
from = "us"
to = "cologne"
"#;

fn faults(more: &str) -> Vec<String> {
    match Topology::parse(&format!("{GOOD}{more}")) {
        Ok(_) => Vec::new(),
        Err(TopologyError::Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
        Err(other) => vec![other.to_string()],
    }
}

fn route(name: &str, rest: &str) -> String {
    format!("\n[[route]]\nname = \"{name}\"\n{rest}\n")
}

#[test]
fn a_good_file_is_read() {
    let topology = Topology::parse(GOOD).unwrap();
    let place: Place = "cologne/buffer".parse().unwrap();
    assert_eq!(topology.locations[&place].rate_limit_bytes_per_s, Some(100_000_000));
    assert_eq!(topology.peers["cologne"].fingerprint, format!("sha256:{}aa", "0".repeat(62)));
    assert_eq!(topology.route_between("ccat", "cologne").unwrap().0, "ccat-cologne");
}

#[test]
fn what_cannot_be_is_named_with_its_place() {
    for (more, said) in [
        (route("x", "from = \"mars\"\nto = \"cologne\""), "route 'x': no site is called 'mars'"),
        (
            route("x", "type = \"custom\"\nfrom = \"ccat/cellar\"\nto = \"cologne\""),
            "route 'x': no location is called 'ccat/cellar'",
        ),
        (
            route("x", "from = \"cologne\"\nto = \"ccat\"\nrate_limit = \"fast\""),
            "route 'x': 'fast' is not a rate; write bytes per second as in 100M, or bits per second as in 800Mbit",
        ),
        (
            route("x", "from = \"ccat\"\nto = \"cologne\""),
            "route 'x': there is another one between the same ends, 'ccat-cologne'",
        ),
        (
            route("x", "from = \"cologne\"\nto = \"us\""),
            "route 'x': it leads nowhere: no location of us has a peer to dial",
        ),
        (
            route("x", "type = \"relay\"\nvia = \"us\"\nfrom = \"cologne\"\nto = \"ccat\""),
            "route 'x': it leads nowhere: there is no route for its leg from cologne to us",
        ),
        (
            route("x", "type = \"relay\"\nfrom = \"us\"\nto = \"ccat\""),
            "route 'x': a relay names its third site with `via`",
        ),
        (route("x", "from = \"ccat\"\nto = \"ccat\""), "route 'x': a route within a site names two locations"),
        (
            "\n[[site]]\nname = \"A\"\nshort_name = \"Ccat\"".to_owned(),
            "site 'Ccat': short name 'Ccat' is not 1 to 40 of a-z, 0-9 and _, beginning with a letter",
        ),
        (
            "\n[[location]]\nsite = \"us\"\nname = \"x\"\ntype = \"buffer\"\npeer = \"nobody\"".to_owned(),
            "location 'us/x': no peer is called 'nobody'",
        ),
    ] {
        assert_eq!(faults(&more), [said]);
    }
    assert!(Topology::parse("[[rout]]").unwrap_err().to_string().contains("rout"));
    assert!(
        Topology::parse("[[location]]\nsite=\"a\"\nname=\"b\"\ntype=\"bufer\"")
            .unwrap_err()
            .to_string()
            .contains("bufer")
    );
}

#[test]
fn sites_cannot_share_queues() {
    let more = "\n[[site]]\nname = \"X\"\nshort_name = \"us_a\"\n\
                [[location]]\nsite = \"us_a\"\nname = \"b\"\ntype = \"buffer\"\n\
                [[location]]\nsite = \"us\"\nname = \"a_b\"\ntype = \"buffer\"\n";
    assert_eq!(faults(more), ["location 'us/a_b': there is another one with the same queues, 'us_a/b'"]);
}

#[test]
fn relays_that_lead_back_are_refused() {
    // Each is a leg of the other: ccat -> us over cologne needs cologne -> us, which goes over ccat.
    let more = route("a", "type = \"relay\"\nvia = \"cologne\"\nfrom = \"ccat\"\nto = \"us\"")
        + &route("b", "type = \"relay\"\nvia = \"ccat\"\nfrom = \"cologne\"\nto = \"us\"")
        + &route("c", "dialer = \"destination\"\nfrom = \"cologne\"\nto = \"ccat\"");
    let said = faults(&more);
    assert_eq!(said[0], "route 'a': its legs lead back to it: a -> b -> a");
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn the_difference_leads_from_one_to_the_other() {
    let there = Topology::parse(GOOD).unwrap();
    assert_eq!(there.diff(&there).unwrap(), []);
    let added = Topology::default().diff(&there).unwrap();
    assert_eq!(added.len(), 9);
    assert!(added.iter().all(|c| c.kind == ChangeKind::Add));
    let mut wanted = there.clone();
    wanted.routes.remove("us-cologne");
    wanted.routes.get_mut("ccat-cologne").unwrap().streams = Some(4);
    let changes = there.diff(&wanted).unwrap();
    let shown: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["~ route ccat-cologne\n    streams: none -> 4", "- route us-cologne\n    active: true -> false"]
    );
    assert_eq!(
        serde_json::to_value(&changes[0]).unwrap(),
        serde_json::json!({"kind": "alter", "what": "route", "name": "ccat-cologne",
            "fields": [{"field": "streams", "from": "none", "to": "4"}]})
    );
    let mut moved = there.clone();
    moved.routes.get_mut("us-cologne").unwrap().from.site = "ccat".into();
    assert!(matches!(there.diff(&moved), Err(TopologyError::Faults(f)) if matches!(f[0], Fault::Fixed { .. })));
}

#[test]
fn the_way_is_the_most_particular_route_and_the_legs_of_a_relay() {
    let more = route("us-ccat", "dialer = \"destination\"\nfrom = \"cologne\"\nto = \"ccat\"")
        + &route("relay", "type = \"relay\"\nvia = \"cologne\"\nfrom = \"us\"\nto = \"ccat\"")
        + &route("fast", "type = \"custom\"\nfrom = \"us/buffer\"\nto = \"cologne\"");
    let mut topology = Topology::parse(&format!("{GOOD}{more}")).unwrap();
    let place = |text: &str| text.parse::<Place>().unwrap();
    let (us, ccat, cologne) = (place("us/buffer"), place("ccat/output_buffer"), place("cologne/buffer"));
    assert_eq!(topology.way(&us, &cologne), Some(vec!["fast"]));
    assert_eq!(topology.way(&us, &ccat), Some(vec!["us-cologne", "us-ccat"]));
    assert_eq!(topology.way(&ccat, &us), None);
    topology.routes.get_mut("us-ccat").unwrap().active = false;
    assert_eq!(topology.way(&us, &ccat), None, "a leg is gone");
    topology.routes.get_mut("fast").unwrap().active = false;
    assert_eq!(topology.way(&us, &cologne), Some(vec!["us-cologne"]));
}

fn archive(name: &str, rest: &str) -> String {
    format!("\n[[location]]\nsite = \"cologne\"\nname = \"{name}\"\ntype = \"long_term_archive\"\n{rest}\n")
}

#[test]
fn archives_say_how_many_and_what_counts() {
    let text = [
        archive("disk", "cached_read_back_counts = true"),
        archive(
            "tape",
            "storage = \"tape\"\non_tape_readback = \"checksum\"\narchive_group = \"v\"\narchive_copies = 2",
        ),
    ];
    let topology = Topology::parse(&format!("{GOOD}{}", text.concat())).unwrap();
    let tape = &topology.locations[&"cologne/tape".parse::<Place>().unwrap()];
    assert_eq!((tape.archive_group.as_deref(), tape.archive_copies), (Some("v"), 2));
    assert_eq!((tape.cached_read_back_counts, tape.on_tape_readback), (false, OnTapeReadback::Checksum));
    let disk = &topology.locations[&"cologne/disk".parse::<Place>().unwrap()];
    assert_eq!((disk.archive_copies, disk.cached_read_back_counts), (1, true));
    for (more, what) in [
        (archive("a", "archive_copies = 2"), "name that too"),
        (archive("a", "archive_group = \"v\"\narchive_copies = 0"), "archive_copies is 1 to"),
        (archive("a", "on_tape_readback = \"none\""), "storage = \"tape\""),
        (archive("a", "archive_group = \"V\""), "archive_group"),
        (
            [archive("a", "archive_group = \"v\"\narchive_copies = 2"), archive("b", "archive_group = \"v\"")].concat(),
            "another location of archive_group",
        ),
        (
            archive("a", "") + &route("x", "type = \"custom\"\nfrom = \"ccat\"\nto = \"cologne/a\""),
            "is a long-term archive",
        ),
        (
            "\n[[location]]\nsite = \"us\"\nname = \"b\"\ntype = \"buffer\"\ncached_read_back_counts = true\n"
                .to_owned(),
            "for a long_term_archive alone",
        ),
    ] {
        let found = faults(&more);
        assert!(found.iter().any(|fault| fault.contains(what)), "{what}: {found:?}");
    }
}

#[test]
fn rates_of_starts_are_for_queues_that_are() {
    let table = |queue: &str, rate: &str| format!("\n[[start_rate]]\n{queue}\nrate = \"{rate}\"\n");
    let one = "queue = \"ccat_output_buffer_data_transfer\"";
    let topology = Topology::parse(&format!("{GOOD}{}{}", table("", "100/s"), table(one, "7/h"))).unwrap();
    let rates: Vec<_> = topology.start_rates.iter().map(|(queue, rate)| format!("{queue} {rate}")).collect();
    assert_eq!(rates, ["* 100/s", "ccat_output_buffer_data_transfer 7/h"]);
    let changes = topology.diff(&Topology::parse(&format!("{GOOD}{}", table("", "1/m"))).unwrap()).unwrap();
    let told: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "~ start_rate *\n    rate: 100/s -> 1/m",
            "- start_rate ccat_output_buffer_data_transfer\n    active: true -> false"
        ]
    );
    for (queue, rate, fault) in [
        ("", "fast", "'fast' is not a rate of starts"),
        ("", "0/s", "'0/s' is not a rate of starts"),
        ("queue = \"mars_buffer_data_transfer\"", "1/s", "no queue is called 'mars_buffer_data_transfer'"),
        ("queue = \"buffer\"", "1/s", "buffer"),
    ] {
        let found = faults(&table(queue, rate));
        assert!(found.len() == 1 && found[0].contains(fault), "{queue} {rate}: {found:?}");
    }
    assert_eq!(faults(&format!("{}{}", table("", "1/s"), table("", "2/s"))).len(), 1, "twice");
}
