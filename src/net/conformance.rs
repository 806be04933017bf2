//! What every link promises, asked of QUIC, TCP and a byte stream alike.
//!
//! Faults that these tests were seen to fail with stand in each test's text. No test asserts a duration; [`soon`] only keeps a hang
//! from being a hang of the whole run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;

/// Ends a test that hangs.
pub(super) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), work).await {
        Ok(value) => value,
        Err(_) => panic!("hangs: {what}"),
    }
}

pub(super) struct Site {
    pub(super) identity: Identity,
    pub(super) policy: Arc<dyn PeerPolicy>,
}

/// Two sites that know each other's keys.
pub(super) fn friends() -> (Site, Site) {
    let (here, there) = (Identity::throw_away().unwrap(), Identity::throw_away().unwrap());
    let knows = |other: &Identity, name: &str| -> Arc<dyn PeerPolicy> {
        Arc::new(Pinned::new([(other.fingerprint(), PeerName::new(name))]))
    };
    let (policy_here, policy_there) = (knows(&there, "there"), knows(&here, "here"));
    (Site { identity: here, policy: policy_here }, Site { identity: there, policy: policy_there })
}

pub(super) fn bind_options(site: &Site) -> BindOptions {
    BindOptions {
        addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        ports: 0..=0,
        quic: true,
        tcp: true,
        identity: site.identity.clone(),
        policy: Arc::clone(&site.policy),
        limits: HandshakeLimits::default(),
        tuning: Tuning::default(),
    }
}

pub(super) fn dial_options(site: &Site) -> DialOptions {
    DialOptions::new(site.identity.clone(), Arc::clone(&site.policy))
}

pub(super) fn address(listener: &Listener) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, listener.port()))
}

/// A link as seen from its two ends; the dialing end first.
pub(super) async fn pair(transport: Transport) -> (Link, Link) {
    if transport == Transport::Stream {
        // Pipes of the system, as between us and an ssh process.
        let (here_write, there_read) = tokio::net::unix::pipe::pipe().unwrap();
        let (there_write, here_read) = tokio::net::unix::pipe::pipe().unwrap();
        return (stream_link(here_read, here_write, true), stream_link(there_read, there_write, false));
    }
    let (here, there) = friends();
    let listener = Listener::bind(bind_options(&there)).await.unwrap();
    let options = dial_options(&here);
    let (dialed, accepted) =
        soon("making a link", async { tokio::join!(dial(transport, address(&listener), &options), listener.accept()) })
            .await;
    (dialed.unwrap(), accepted.unwrap())
}

/// Bytes of which every 8 say where they belong.
fn pattern(seed: u64, len: usize) -> Bytes {
    let words = (0..).flat_map(|word: u64| (word ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    words.take(len).collect()
}

const SIZES: [(usize, usize); 18] = [
    (1, 0),
    (0, 1),
    (60, 0),
    (60, 1),
    (60, 16_323),
    (60, 16_324),
    (60, 16_325),
    (60, 65_536),
    (0, 262_143),
    (0, 262_144),
    (0, 262_145),
    (60, 131_012),
    (60, 131_013),
    (131_072, 131_073),
    (60, 262_085),
    (300_000, 10),
    (60, (4 << 20) - 1),
    (60, 4 << 20),
];

async fn say_all(mut send: SendHalf, seed: u64) {
    for (case, (head, payload)) in (0..).zip(SIZES) {
        let payload = pattern(seed + 100 + case, payload);
        let payload = (!payload.is_empty()).then_some(payload);
        send.send(&pattern(seed + case, head), payload).await.unwrap();
    }
    send.flush().await.unwrap();
    send.finish().await.unwrap();
}

async fn hear_all(mut recv: RecvHalf, seed: u64) {
    for (case, (head, payload)) in (0..).zip(SIZES) {
        for (seed, len) in [(seed + case, head), (seed + 100 + case, payload)] {
            let mut bytes = vec![0; len];
            recv.read_exact(&mut bytes).await.unwrap();
            assert!(bytes == pattern(seed, len), "case {case}: {head} + {payload} bytes");
        }
    }
    let mut one_more = [0];
    assert!(!recv.read_exact_or_end(&mut one_more).await.unwrap(), "a clean end");
    assert!(!recv.read_exact_or_end(&mut one_more).await.unwrap(), "and it stays the end");
    assert!(matches!(recv.read_exact(&mut one_more).await, Err(NetError::Truncated { missing: 1, .. })));
}

/// Both directions at once, sizes around every boundary of records, pieces and chunks. Seen to fail with one byte of each piece
/// dropped at a boundary, and with the sent head repeated after a partial write.
async fn carries_all_sizes_both_ways(transport: Transport) {
    let (here, there) = pair(transport).await;
    soon("carrying all sizes", async {
        tokio::join!(
            say_all(here.main_send, 1000),
            hear_all(there.main_recv, 1000),
            say_all(there.main_send, 2000),
            hear_all(here.main_recv, 2000),
        )
    })
    .await;
}

/// 64 MiB in chunks each way at once, as tasks on all threads.
async fn carries_much_both_ways(transport: Transport) {
    const CHUNKS: u64 = 16;
    let (here, there) = pair(transport).await;
    let mut tasks = tokio::task::JoinSet::new();
    for (mut send, mut recv, seed) in [(here.main_send, there.main_recv, 1), (there.main_send, here.main_recv, 1 << 32)]
    {
        tasks.spawn(async move {
            for chunk in 0..CHUNKS {
                send.send(&chunk.to_le_bytes(), Some(pattern(seed + chunk, 4 << 20))).await.unwrap();
            }
            send.finish().await.unwrap();
        });
        tasks.spawn(async move {
            let mut bytes = vec![0; 4 << 20];
            for chunk in 0..CHUNKS {
                let mut head = [0; 8];
                recv.read_exact(&mut head).await.unwrap();
                assert_eq!(head, chunk.to_le_bytes());
                recv.read_exact(&mut bytes).await.unwrap();
                assert!(bytes == pattern(seed + chunk, 4 << 20), "chunk {chunk}");
            }
            assert!(!recv.read_exact_or_end(&mut [0]).await.unwrap());
        });
    }
    soon("carrying 128 MiB", async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap()
        }
    })
    .await;
}

/// A link that is finished and dropped at once still delivers all of it, although the dropping end never read what the other had
/// sent. Seen to fail over TCP with the lingering in `Core::drop` left out (the kernel resets), and over QUIC with the
/// connection closed in `Core::drop` before the stream was acknowledged.
async fn finished_data_survives_a_drop(transport: Transport) {
    let (here, mut there) = pair(transport).await;
    soon("speaking", there.main_send.send(b"never read", Some(pattern(9, 50_000)))).await.unwrap();
    let closer = here.closer();
    let Link { mut main_send, main_recv, lanes, .. } = here;
    let sender = tokio::spawn(async move {
        main_send.send(b"", Some(pattern(7, 8 << 20))).await.unwrap();
        main_send.finish().await.unwrap();
        drop((main_send, main_recv, lanes));
    });
    let mut bytes = vec![0; 8 << 20];
    soon("reading what a dropped link had sent", async {
        there.main_recv.read_exact(&mut bytes).await.unwrap();
        assert!(!there.main_recv.read_exact_or_end(&mut [0]).await.unwrap());
    })
    .await;
    assert!(bytes == pattern(7, 8 << 20));
    sender.await.unwrap();
    drop(there);
    soon("the end of a dropped link", closer.over()).await;
}

/// A peer that dies within a frame is an error, never a clean end. Seen to fail with an end of file taken for a clean end over TCP.
async fn death_in_a_frame_is_an_error(transport: Transport) {
    let (mut here, mut there) = pair(transport).await;
    here.main_send.send(b"half a fra", None).await.unwrap();
    drop(here);
    let mut bytes = [0; 20];
    let error = soon("noticing a death", there.main_recv.read_exact(&mut bytes)).await.unwrap_err();
    match transport {
        Transport::Stream => assert!(matches!(error, NetError::Truncated { missing: 10, .. }), "{error:?}"),
        _ => assert!(matches!(error, NetError::Reset { .. }), "{error:?}"),
    }
    let again = there.main_recv.read_exact(&mut bytes).await.unwrap_err();
    assert_eq!(again.to_string(), error.to_string(), "it stays so");
}

/// Death between two frames is an error as well where there is a way to tell it from an end.
async fn death_between_frames_is_an_error(transport: Transport) {
    let (mut here, mut there) = pair(transport).await;
    here.main_send.send(b"a frame", None).await.unwrap();
    let mut bytes = [0; 7];
    soon("reading", there.main_recv.read_exact(&mut bytes)).await.unwrap();
    drop(here);
    let end = soon("noticing a death", there.main_recv.read_exact_or_end(&mut bytes)).await;
    match transport {
        Transport::Stream => assert!(matches!(end, Ok(false)), "{end:?}"),
        _ => assert!(matches!(end, Err(NetError::Reset { .. })), "{end:?}"),
    }
}

async fn end_in_a_frame_is_truncation(transport: Transport) {
    let (mut here, mut there) = pair(transport).await;
    here.main_send.send(b"half a fra", None).await.unwrap();
    here.main_send.finish().await.unwrap();
    let error = soon("noticing the end", there.main_recv.read_exact(&mut [0; 13])).await.unwrap_err();
    assert!(matches!(error, NetError::Truncated { missing: 3, .. }), "{error:?}");
}

/// A reader that waits for a silent peer and a writer that waits for one that does not read: both end when the link is closed
/// from elsewhere, and the peer learns of it although the halves are still held. Seen to fail over TCP and over a stream with
/// `cut` doing nothing.
async fn close_wakes_reader_and_writer(transport: Transport) {
    let (here, mut there) = pair(transport).await;
    let closer = here.closer();
    let Link { mut main_send, mut main_recv, lanes, .. } = here;
    let writer = tokio::spawn(async move {
        let payload = Bytes::from(vec![1; 4 << 20]);
        loop {
            if let Err(error) = main_send.send(b"", Some(payload.clone())).await {
                return (main_send, error);
            }
        }
    });
    let reader = tokio::spawn(async move {
        let error = main_recv.read_exact(&mut [0; 1]).await.unwrap_err();
        (main_recv, error)
    });
    // Until the writer has filled what is between them, it would not be a waiting one.
    let mut before = u64::MAX;
    while transport != Transport::Stream && closer.stats().wire_bytes_sent != before {
        before = closer.stats().wire_bytes_sent;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::task::yield_now().await;
    closer.close("enough");
    let (mut send, error) = soon("waking the writer", writer).await.unwrap();
    assert!(matches!(&error, NetError::Closed { by: End::Here, reason, .. } if reason == "enough"), "{error:?}");
    let (mut recv, error) = soon("waking the reader", reader).await.unwrap();
    assert!(matches!(&error, NetError::Closed { by: End::Here, reason, .. } if reason == "enough"), "{error:?}");
    assert!(matches!(send.send(b"x", None).await, Err(NetError::Closed { .. })));
    assert!(matches!(send.finish().await, Err(NetError::Closed { .. })));
    assert!(matches!(recv.read_exact(&mut [0]).await, Err(NetError::Closed { .. })));

    // The halves are still held here; the peer has to notice all the same.
    let mut scrap = vec![0; 1 << 20];
    let error = soon("the peer noticing", async {
        loop {
            match there.main_recv.read_exact_or_end(&mut scrap).await {
                Ok(true) => {}
                other => return other,
            }
        }
    })
    .await;
    match (transport, error) {
        (Transport::Quic, Err(NetError::Closed { by: End::Peer, reason, .. })) => assert_eq!(reason, "enough"),
        (Transport::Tcp, Err(NetError::Reset { .. } | NetError::Tls { .. })) | (Transport::Stream, _) => {}
        (_, other) => panic!("{other:?}"),
    }
    drop((send, recv, lanes, there));
    soon("the end of a closed link", closer.over()).await;
}

/// A frame of which a part may be on its way is never continued by another one. Seen to fail with the stage left at `Ready`.
async fn an_abandoned_call_spoils_its_half(transport: Transport) {
    let (mut here, mut there) = pair(transport).await;
    let payload = Bytes::from(vec![1; 256 << 20]);
    let abandoned = tokio::time::timeout(Duration::from_millis(300), here.main_send.send(b"", Some(payload))).await;
    assert!(abandoned.is_err(), "nobody reads, so it cannot have ended");
    let again = soon("a second send", here.main_send.send(b"x", None)).await;
    assert!(matches!(again, Err(NetError::Misuse { .. })), "{again:?}");
    assert!(matches!(here.main_send.finish().await, Err(NetError::Misuse { .. })));

    // Waiting for the first byte of a frame may be given up, in its middle not.
    let nothing = tokio::time::timeout(Duration::from_millis(10), here.main_recv.read_exact_or_end(&mut [0; 8])).await;
    assert!(nothing.is_err());
    there.main_send.send(b"12345678abc", None).await.unwrap();
    let mut bytes = [0; 8];
    soon("reading", here.main_recv.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"12345678");
    let part = tokio::time::timeout(Duration::from_millis(300), here.main_recv.read_exact(&mut bytes)).await;
    assert!(part.is_err());
    let again = soon("a second read", here.main_recv.read_exact(&mut bytes)).await;
    assert!(matches!(again, Err(NetError::Misuse { .. })), "{again:?}");
}

async fn both_ends_know_the_same(transport: Transport) {
    let (mut here, mut there) = pair(transport).await;
    assert_eq!((here.info.dialed, there.info.dialed), (true, false));
    assert_eq!((here.info.transport, there.info.transport), (transport, transport));
    assert_eq!(here.info.binding, there.info.binding);
    let (other, _other_end) = pair(transport).await;
    if transport == Transport::Stream {
        assert_eq!(here.info.binding, [0; 32]);
        assert_eq!(here.info.peer.fingerprint, Fingerprint::NONE);
    } else {
        assert_ne!(here.info.binding, [0; 32]);
        assert_ne!(here.info.binding, other.info.binding, "every connection has its own");
        assert_eq!((here.info.peer.name.as_str(), there.info.peer.name.as_str()), ("there", "here"));
        assert_ne!(here.info.peer.fingerprint, there.info.peer.fingerprint);
        assert_eq!(here.info.remote, there.info.local);
        // A dialing end does not know which of its addresses QUIC takes.
        assert_eq!(here.info.local, there.info.remote.filter(|_| transport == Transport::Tcp));
        assert_eq!(here.info.remote.unwrap().ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let mut bytes = vec![0; 1 << 20];
    let (sent, received) = soon("counting", async {
        tokio::join!(here.main_send.send(b"", Some(pattern(1, 1 << 20))), there.main_recv.read_exact(&mut bytes))
    })
    .await;
    assert!(sent.is_ok() && received.is_ok());
    let (sent, received) = (here.stats(), there.stats());
    assert!(sent.wire_bytes_sent >= 1 << 20 && sent.wire_bytes_sent < 2 << 20, "{sent:?}");
    assert!(received.wire_bytes_received >= 1 << 20 && received.wire_bytes_received < 2 << 20, "{received:?}");
    if transport == Transport::Quic {
        assert!(sent.rtt.is_some() && sent.congestion_window.is_some() && sent.udp_receive_buffer.is_some());
        assert!(sent.path.is_some_and(|path| path.window > 0 && path.min_rtt.is_some()), "{sent:?}");
        assert_eq!(sent.controller.as_deref(), Some("model"));
    }
    let closer = here.closer();
    drop(here);
    assert!(closer.stats().wire_bytes_sent >= sent.wire_bytes_sent, "the last figures stay");
}

macro_rules! over_every_transport {
    ($($name:ident),* $(,)?) => {
        mod over_quic {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Transport::Quic).await; })*
        }
        mod over_tcp {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Transport::Tcp).await; })*
        }
        mod over_a_stream {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(Transport::Stream).await; })*
        }
    };
}

over_every_transport!(
    carries_all_sizes_both_ways,
    carries_much_both_ways,
    finished_data_survives_a_drop,
    death_in_a_frame_is_an_error,
    death_between_frames_is_an_error,
    end_in_a_frame_is_truncation,
    close_wakes_reader_and_writer,
    an_abandoned_call_spoils_its_half,
    both_ends_know_the_same,
);

/// More lanes than may be open at once, each a chunk, in whatever order they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_carry_chunks_beside_the_main_stream() {
    const LANES: u64 = 300;
    let (here, there) = pair(Transport::Quic).await;
    let (outgoing, incoming) = (here.lanes.clone().unwrap(), there.lanes.clone().unwrap());
    let sender = tokio::spawn(async move {
        for lane in 0..LANES {
            let mut send = outgoing.open().await.unwrap();
            send.send(&lane.to_le_bytes(), Some(pattern(lane, 100_000))).await.unwrap();
            send.finish().await.unwrap();
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..LANES {
        let mut recv = soon("a lane", incoming.accept()).await.unwrap();
        tasks.spawn(async move {
            let mut head = [0; 8];
            recv.read_exact(&mut head).await.unwrap();
            let mut bytes = vec![0; 100_000];
            recv.read_exact(&mut bytes).await.unwrap();
            assert!(!recv.read_exact_or_end(&mut [0]).await.unwrap());
            let lane = u64::from_le_bytes(head);
            assert!(bytes == pattern(lane, 100_000), "lane {lane}");
            lane
        });
    }
    let mut lanes = soon("all lanes", tasks.join_all()).await;
    lanes.sort_unstable();
    assert_eq!(lanes, (0..LANES).collect::<Vec<_>>());
    soon("the sender", sender).await.unwrap();
}

/// Seen to fail with quinn's own behaviour, which ends a dropped stream cleanly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_given_up_is_an_error_and_the_link_lives() {
    let (mut here, mut there) = pair(Transport::Quic).await;
    let mut lane = here.lanes.as_ref().unwrap().open().await.unwrap();
    lane.send(b"part", None).await.unwrap();
    let mut incoming = soon("a lane", there.lanes.as_ref().unwrap().accept()).await.unwrap();
    drop(lane);
    let error = soon("noticing", async {
        let mut byte = [0];
        loop {
            if let Err(error) = incoming.read_exact(&mut byte).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(error, NetError::Reset { .. }), "{error:?}");
    here.main_send.send(b"still here", None).await.unwrap();
    soon("the main stream", there.main_recv.read_exact(&mut [0; 10])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_wakes_who_waits_for_lanes() {
    let (here, there) = pair(Transport::Quic).await;
    let lanes = there.lanes.clone().unwrap();
    let waiting = tokio::spawn(async move { lanes.accept().await.err() });
    here.closer().close("done");
    let error = soon("waking", waiting).await.unwrap().unwrap();
    assert!(matches!(&error, NetError::Closed { by: End::Peer, reason, .. } if reason == "done"), "{error:?}");
    assert!(matches!(here.lanes.unwrap().open().await, Err(NetError::Closed { by: End::Here, .. })));
}
