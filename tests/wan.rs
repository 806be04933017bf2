//! The emulated wide-area link: its model on a clock of its own, and a real pair of hosts with one between them. Times are
//! asserted from below only where a machine under load could be late.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "harness/wan/mod.rs"]
mod wan;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use wan::{Change, Counters, Direction, Setup, Wan, WanError};

const LIMIT: Duration = Duration::from_secs(60);

/// None, and a line that says so, where no such link can be made.
fn start(test: &str, link: &str, change: impl FnOnce(&mut Setup)) -> Option<Wan> {
    let mut setup = Setup { link: link.parse().unwrap(), ..Setup::default() };
    change(&mut setup);
    match Wan::start(&setup) {
        Ok(wan) => Some(wan),
        Err(why @ (WanError::Namespace { .. } | WanError::Device { .. } | WanError::Start { .. })) => {
            // Past the runner's capture.
            let _ = writeln!(std::io::stderr(), "SKIP: {test}: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

fn udp(wan: &Wan, at_b: bool) -> UdpSocket {
    let (host, address) = if at_b { (wan.b(), Wan::B[0]) } else { (wan.a(), Wan::A[0]) };
    let socket = host.call(move || UdpSocket::bind((address, 4000))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

#[test]
fn a_round_trip_takes_its_time() {
    let Some(wan) = start("a_round_trip_takes_its_time", "rtt=40ms", |_| ()) else { return };
    let (a, b) = (udp(&wan, false), udp(&wan, true));
    let mut buffer = [0; 64];
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let sent = Instant::now();
        a.send_to(b"there", (Wan::B[0], 4000)).unwrap();
        let (n, from) = b.recv_from(&mut buffer).unwrap();
        let one_way = sent.elapsed();
        assert!(one_way >= Duration::from_millis(20), "{one_way:?}");
        b.send_to(&buffer[..n], from).unwrap();
        a.recv(&mut buffer).unwrap();
        best = best.min(sent.elapsed());
    }
    assert!(best >= Duration::from_millis(40), "{best:?}");
    assert!(best < Duration::from_millis(80), "the best of ten took {best:?}");
}

#[test]
fn exactly_the_packets_that_the_model_loses_are_missing() {
    let test = "exactly_the_packets_that_the_model_loses_are_missing";
    let Some(wan) = start(test, "ab.loss=10%,ab.rate=200mbit", |_| ()) else { return };
    let (a, b) = (udp(&wan, false), udp(&wan, true));
    let mut arrived = 0;
    let mut buffer = [0; 2000];
    for round in 0..50_u64 {
        for number in 0..20_u64 {
            let body = [(round * 20 + number).to_le_bytes().as_slice(), &[7; 1000]].concat();
            a.send_to(&body, (Wan::B[0], 4000)).unwrap();
        }
        // The socket's buffer holds a round, so that only the link loses.
        b.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        while let Ok(n) = b.recv(&mut buffer) {
            assert_eq!(n, 1008);
            arrived += 1;
        }
    }
    b.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    while b.recv(&mut buffer).is_ok() {
        arrived += 1;
    }
    let c = quiet(&wan, Direction::AToB);
    // A host says a few things by itself, such as IPv6 router solicitations.
    assert!((1000..1010).contains(&c.offered.packets), "{c:?}");
    assert_eq!(c.delivered.packets + c.lost.packets, c.offered.packets);
    let others = c.offered.packets - 1000;
    assert!((50..=150).contains(&c.lost.packets), "{c:?}");
    assert!(c.delivered.packets - arrived <= others, "{arrived} arrived: {c:?}");
}

/// Waits until nothing moves, so that the counters are final.
fn quiet(wan: &Wan, direction: Direction) -> Counters {
    let end = Instant::now() + LIMIT;
    loop {
        let before = wan.state(direction).counters;
        std::thread::sleep(Duration::from_millis(200));
        let now = wan.state(direction).counters;
        if now == before {
            return now;
        }
        assert!(Instant::now() < end, "never quiet: {now:?}");
    }
}

/// Sends so many bytes over TCP from A to B and compares them there.
fn tcp_whole(wan: &Wan, address: &'static str, bytes: usize) {
    let data: Vec<u8> =
        (0..bytes as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).to_le_bytes()[0]).collect();
    let listener = wan.b().call(move || TcpListener::bind((address, 4001))).unwrap().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut stream = wan.a().call(move || TcpStream::connect((address, 4001))).unwrap().unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    stream.write_all(&data).unwrap();
    drop(stream);
    let got = receiver.join().unwrap();
    assert_eq!(got.len(), data.len());
    assert!(got == data, "the bytes differ");
}

/// A line of /proc/net/snmp as the value of one of its columns.
fn snmp(text: &str, protocol: &str, column: &str) -> u64 {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix(protocol)?.strip_prefix(": "));
    let at = lines.next().unwrap().split(' ').position(|c| c == column).unwrap();
    lines.next().unwrap().split(' ').nth(at).unwrap().parse().unwrap()
}

#[test]
fn tcp_arrives_whole_though_rows_of_packets_lose_some() {
    let test = "tcp_arrives_whole_though_rows_of_packets_lose_some";
    for address in Wan::B {
        let link = "rate=500mbit,rtt=10ms,queue=2MB,ab.loss=2%";
        let Some(wan) = start(test, link, |_| ()) else { return };
        tcp_whole(&wan, address, 8 << 20);
        let c = quiet(&wan, Direction::AToB);
        assert!(c.lost.packets > 50, "{c:?}");
        // Nothing is dropped but what the model says: TCP sent again what was lost, and hardly more.
        let again = snmp(&wan.a().read("snmp"), "Tcp", "RetransSegs");
        let gone = c.lost.packets + c.dropped.packets;
        assert!(again + 10 >= gone && again <= 2 * gone + 20, "{again} sent again for {gone}: {c:?}");
        assert_eq!(snmp(&wan.b().read("snmp"), "Ip", "InHdrErrors"), 0);
        assert_eq!(wan.unseen(Direction::AToB), 0);
    }
}

#[test]
fn tcp_is_not_faster_than_the_link() {
    let Some(wan) = start("tcp_is_not_faster_than_the_link", "rate=100mbit,rtt=2ms,queue=500kB", |_| ()) else {
        return;
    };
    let started = Instant::now();
    tcp_whole(&wan, Wan::B[0], 10_000_000);
    let took = started.elapsed();
    // 0.8 s for the data alone at 100 Mbit/s.
    assert!(took >= Duration::from_millis(828), "{took:?}");
}

#[test]
fn a_link_that_is_down_carries_nothing() {
    let Some(wan) = start("a_link_that_is_down_carries_nothing", "rtt=0", |_| ()) else { return };
    let (a, b) = (udp(&wan, false), udp(&wan, true));
    let mut buffer = [0; 64];
    let change = |text: &str| wan.change(&text.parse::<Change>().unwrap());
    change("ab.down");
    a.send_to(b"lost", (Wan::B[0], 4000)).unwrap();
    b.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(b.recv(&mut buffer).is_err());
    assert!(quiet(&wan, Direction::AToB).down.packets >= 1);
    change("up");
    b.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    a.send_to(b"there", (Wan::B[0], 4000)).unwrap();
    assert_eq!(b.recv(&mut buffer).unwrap(), 5);
}

#[test]
fn nothing_stays_behind() {
    let Some(wan) = start("nothing_stays_behind", "rtt=0", |_| ()) else { return };
    let namespace = wan.a().namespace();
    let mut command = Command::new("sleep");
    // Without the test's pipes: one that outlives it must not hold up who reads them.
    command.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = wan.b().spawn(command).unwrap();
    assert!(std::fs::read_link(&namespace).is_ok());
    let started = Instant::now();
    drop(wan);
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(std::fs::read_link(&namespace).is_err(), "{namespace} is still there");
    // It died with its host.
    let end = Instant::now() + Duration::from_secs(10);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the program outlived its host");
        std::thread::sleep(Duration::from_millis(10));
    }
}
