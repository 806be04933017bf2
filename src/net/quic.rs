//! A link over one QUIC connection: the main stream is its only bidirectional one; lanes are unidirectional.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::rustls::pki_types::CertificateDer;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, ReadError, RecvStream, SendStream, TokioRuntime, VarInt,
    WriteError,
};
use rustls::AlertDescription;
use tokio::sync::watch;

use super::closer::{Closer, Control, Gate, LinkStats};
use super::congestion::ModelController;
use super::credit::Credit;
use super::dial::DialOptions;
use super::error::{End, NetError};
use super::greeting::judge;
use super::half::{Lanes, RecvHalf, RecvKind, SendHalf, SendKind, WELCOME};
use super::peer::{PeerPolicy, Refusal};
use super::tls::{ALPN, BINDING_LABEL, Verifier, client_config, identity_alert};
use super::tuning::{Tuning, UdpFacts};
use super::{Link, LinkInfo, Transport};

/// The dialing end's first byte on the main stream; a stream on which nothing was sent does not exist for the peer.
const HELLO: u8 = 0x05;

/// Application error codes; 0 is what quinn says when the last handle is dropped.
const CLOSED_ON_PURPOSE: VarInt = VarInt::from_u32(1);
const NO_LONGER_NEEDED: VarInt = VarInt::from_u32(2);
/// Of a stream that was given up.
const ABANDONED: VarInt = VarInt::from_u32(3);

/// Longest reason sent with a close, in bytes; it has to fit a packet.
const MAX_REASON_BYTES: usize = 256;

/// How long a dropped link, finished in order, goes on to deliver what is in flight.
const LINGER: Duration = Duration::from_secs(10);

/// How long a process waits until its closing packets are out.
const CLOSING: Duration = Duration::from_millis(200);

type Delivered = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// What all streams of a link share; the connection ends with the last of them.
struct Core {
    connection: Connection,
    /// The dialing end's own socket. A listener's is the listener's.
    endpoint: Option<Endpoint>,
    gate: Arc<Gate>,
    udp: UdpFacts,
    controller: &'static str,
    /// Completes when the peer has acknowledged the finished main stream.
    delivered: Mutex<Option<Delivered>>,
    alive: watch::Sender<()>,
}

impl Drop for Core {
    /// Closing a QUIC connection throws away what is in flight, so a finished main stream is delivered first.
    fn drop(&mut self) {
        let delivered = self.delivered.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let (connection, endpoint) = (self.connection.clone(), self.endpoint.take());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.gate.check().is_ok() && delivered.is_none() && connection.close_reason().is_none() {
            // Unfinished: the peer must not take this for a clean end.
            connection.close(VarInt::from_u32(0), b"");
        }
        let alive = std::mem::replace(&mut self.alive, watch::Sender::new(()));
        runtime.spawn(async move {
            if let Some(delivered) = delivered {
                tokio::select! {
                    _ = tokio::time::timeout(LINGER, delivered) => {}
                    _ = connection.closed() => {}
                }
                connection.close(NO_LONGER_NEEDED, b"");
            }
            drop(connection);
            if let Some(endpoint) = endpoint {
                let _ = tokio::time::timeout(CLOSING, endpoint.wait_idle()).await;
            }
            drop(alive);
        });
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Core {
    fn ended(&self, error: &ConnectionError) -> NetError {
        self.gate.prefer(explain(&self.gate.peer, None, error))
    }

    fn write_failed(&self, error: &WriteError) -> NetError {
        match error {
            WriteError::ConnectionLost(error) => self.ended(error),
            other => self.gate.prefer(NetError::Reset { peer: self.gate.peer.clone(), detail: other.to_string() }),
        }
    }
}

/// The closer's view; it must not keep the connection alive.
struct QuicControl {
    core: Weak<Core>,
    last: Mutex<LinkStats>,
}

impl Control for QuicControl {
    fn cut(&self, reason: &str) {
        if let Some(core) = self.core.upgrade() {
            let reason = reason.as_bytes();
            core.connection.close(CLOSED_ON_PURPOSE, reason.get(..MAX_REASON_BYTES).unwrap_or(reason));
        }
    }

    fn stats(&self) -> LinkStats {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(core) = self.core.upgrade() {
            let stats = core.connection.stats();
            *last = LinkStats {
                rtt: Some(stats.path.rtt),
                min_rtt: Some(stats.path.min_rtt),
                lost_packets: Some(stats.path.lost_packets),
                lost_bytes: Some(stats.path.lost_bytes),
                sent_packets: Some(stats.path.sent_packets),
                congestion_events: Some(stats.path.congestion_events),
                wire_bytes_sent: stats.udp_tx.bytes,
                wire_bytes_received: stats.udp_rx.bytes,
                congestion_window: Some(stats.path.cwnd),
                path: core
                    .connection
                    .congestion_state()
                    .into_any()
                    .downcast::<ModelController>()
                    .ok()
                    .map(|controller| controller.snapshot()),
                controller: Some(core.controller.to_owned()),
                mtu: Some(stats.path.current_mtu),
                udp_send_buffer: core.udp.send_buffer,
                udp_receive_buffer: core.udp.receive_buffer,
            };
        }
        last.clone()
    }
}

/// A sending stream.
#[derive(Debug)]
pub(super) struct QuicSend {
    stream: SendStream,
    core: Arc<Core>,
    role: Role,
    finished: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Main,
    Lane,
}

impl QuicSend {
    pub(super) async fn send(&mut self, head: &[u8], payload: Option<Bytes>) -> Result<(), NetError> {
        let mut chunks = [Bytes::copy_from_slice(head), payload.unwrap_or_default()];
        self.stream.write_all_chunks(&mut chunks).await.map_err(|error| self.core.write_failed(&error))
    }

    pub(super) fn finish(&mut self) -> Result<(), NetError> {
        if let Some(reason) = self.core.connection.close_reason() {
            return Err(self.core.ended(&reason));
        }
        if self.stream.finish().is_err() {
            let detail = "it does not read this stream any more".to_owned();
            return Err(NetError::Reset { peer: self.core.gate.peer.clone(), detail });
        }
        self.finished = true;
        if self.role == Role::Main {
            let acknowledged = self.stream.stopped();
            let delivered: Delivered = Box::pin(async move {
                let _ = acknowledged.await;
            });
            *self.core.delivered.lock().unwrap_or_else(PoisonError::into_inner) = Some(delivered);
        }
        Ok(())
    }
}

impl Drop for QuicSend {
    /// quinn would finish the stream, and the peer would take a part for the whole.
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(ABANDONED);
        }
    }
}

/// A receiving stream.
#[derive(Debug)]
pub(super) struct QuicRecv {
    stream: RecvStream,
    core: Arc<Core>,
}

impl QuicRecv {
    pub(super) async fn read(&mut self, into: &mut [u8]) -> Result<usize, NetError> {
        match self.stream.read(into).await {
            Ok(count) => Ok(count.unwrap_or(0)),
            Err(ReadError::ConnectionLost(error)) => Err(self.core.ended(&error)),
            Err(ReadError::Reset(_)) => {
                let detail = "it gave up this stream before its end".to_owned();
                Err(self.core.gate.prefer(NetError::Reset { peer: self.core.gate.peer.clone(), detail }))
            }
            Err(other) => {
                let detail = other.to_string();
                Err(self.core.gate.prefer(NetError::Reset { peer: self.core.gate.peer.clone(), detail }))
            }
        }
    }
}

/// Opens and accepts further streams.
#[derive(Clone, Debug)]
pub(super) struct QuicLanes(Arc<Core>);

impl QuicLanes {
    pub(super) async fn open(&self) -> Result<SendHalf, NetError> {
        let stream = self.0.connection.open_uni().await.map_err(|error| self.0.ended(&error))?;
        // What is lost of an early lane goes out again before what was not sent of later ones: else it waits behind all
        // that is buffered. The main stream, at 0, goes before them all.
        let order = i32::try_from(stream.id().index()).unwrap_or(i32::MAX);
        let _ = stream.set_priority((-1_i32).saturating_sub(order));
        let send = QuicSend { stream, core: Arc::clone(&self.0), role: Role::Lane, finished: false };
        Ok(SendHalf::new(SendKind::Quic(send), Arc::clone(&self.0.gate)))
    }

    pub(super) async fn accept(&self) -> Result<RecvHalf, NetError> {
        let stream = self.0.connection.accept_uni().await.map_err(|error| self.0.ended(&error))?;
        let recv = QuicRecv { stream, core: Arc::clone(&self.0) };
        Ok(RecvHalf::new(RecvKind::Quic(recv), Arc::clone(&self.0.gate), false))
    }
}

/// Calls `address` from a socket of its own, so that each link has its own receive task. The caller limits the time.
pub(super) async fn dial_quic(address: SocketAddr, options: &DialOptions) -> Result<Link, NetError> {
    let peer = address.to_string();
    let tls_failed = |detail: String| NetError::Tls { peer: peer.clone(), detail };
    let verifier = Verifier::new(Arc::clone(&options.policy));
    let config =
        client_config(&options.identity, Arc::clone(&verifier)).map_err(|error| tls_failed(error.to_string()))?;
    let config = QuicClientConfig::try_from(config).map_err(|error| tls_failed(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(config));
    config.transport_config(Arc::new(options.tuning.dialing()));

    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = options
        .tuning
        .udp_socket(SocketAddr::new(any, 0))
        .map_err(|error| NetError::from_io(&peer, "open a UDP socket", error))?;
    let udp = UdpFacts::of(&socket);
    let endpoint = Endpoint::new(options.tuning.endpoint(), None, socket, Arc::new(TokioRuntime))
        .map_err(|error| NetError::from_io(&peer, "open a UDP socket", error))?;
    let connecting = endpoint
        .connect_with(config, address, "ccat-xfer")
        .map_err(|error| NetError::Unreachable { peer: peer.clone(), detail: error.to_string() })?;
    let connection = connecting.await.map_err(|error| explain(&peer, verifier.refusal(), &error))?;
    let (mut send, recv) = connection.open_bi().await.map_err(|error| explain(&peer, None, &error))?;
    send.write_all(&[HELLO])
        .await
        .map_err(|error| NetError::Reset { peer: peer.clone(), detail: error.to_string() })?;
    let parts = Parts { connection, endpoint: Some(endpoint), send, recv, udp, dialed: true };
    assemble(parts, &*options.policy, &options.tuning, peer)
}

/// Answers a caller whose address is good enough to talk to. The caller of this limits the time.
pub(super) async fn accept_quic(
    connecting: quinn::Connecting,
    verifier: &Verifier,
    policy: &dyn PeerPolicy,
    tuning: &Tuning,
    udp: UdpFacts,
) -> Result<Link, NetError> {
    let peer = connecting.remote_address().to_string();
    let connection = connecting.await.map_err(|error| explain(&peer, verifier.refusal(), &error))?;
    let (send, mut recv) = connection.accept_bi().await.map_err(|error| explain(&peer, None, &error))?;
    let mut hello = [0];
    let read = recv.read_exact(&mut hello).await;
    if read.is_err() || hello != [HELLO] {
        return Err(NetError::Tls { peer, detail: "its first byte is not that of this protocol".to_owned() });
    }
    let admitted = connection.clone();
    let parts = Parts { connection, endpoint: None, send, recv, udp, dialed: false };
    let mut link = assemble(parts, policy, tuning, peer)?;
    tuning.admit(&admitted);
    link.main_send.send(&[WELCOME], None).await?;
    Ok(link)
}

struct Parts {
    connection: Connection,
    endpoint: Option<Endpoint>,
    send: SendStream,
    recv: RecvStream,
    udp: UdpFacts,
    dialed: bool,
}

fn assemble(parts: Parts, policy: &dyn PeerPolicy, tuning: &Tuning, peer: String) -> Result<Link, NetError> {
    let Parts { connection, endpoint, send, recv, udp, dialed } = parts;
    let tls_failed = |detail: String| NetError::Tls { peer: peer.clone(), detail };
    let protocol = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    if protocol.and_then(|data| data.protocol).as_deref() != Some(ALPN) {
        return Err(tls_failed("it speaks another protocol than ccat-xfer/1".to_owned()));
    }
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let mut binding = [0; 32];
    connection
        .export_keying_material(&mut binding, BINDING_LABEL, &[])
        .map_err(|_| tls_failed("no channel binding".to_owned()))?;
    let remote = connection.remote_address();
    let info = LinkInfo {
        transport: Transport::Quic,
        peer: judge(policy, &chain.unwrap_or_default(), &peer)?,
        remote: Some(remote),
        local: connection.local_ip().map(|ip| SocketAddr::new(ip, udp.port)),
        binding,
        dialed,
    };
    let gate = Gate::new(peer);
    let (alive, over) = watch::channel(());
    let core = Arc::new(Core {
        connection,
        endpoint,
        gate: Arc::clone(&gate),
        udp,
        controller: tuning.congestion.word(),
        delivered: Mutex::new(None),
        alive,
    });
    let credit = Credit::new(tuning.receive_window_bytes, tuning.receive_window_cap_bytes);
    let followed = Arc::downgrade(&core);
    tokio::spawn(credit.follow(move || followed.upgrade().map(|core| core.connection.clone())));
    let control = QuicControl { core: Arc::downgrade(&core), last: Mutex::new(LinkStats::default()) };
    let main_send = QuicSend { stream: send, core: Arc::clone(&core), role: Role::Main, finished: false };
    let main_recv = QuicRecv { stream: recv, core: Arc::clone(&core) };
    Ok(Link {
        main_send: SendHalf::new(SendKind::Quic(main_send), Arc::clone(&gate)),
        main_recv: RecvHalf::new(RecvKind::Quic(main_recv), Arc::clone(&gate), dialed),
        lanes: Some(Lanes(QuicLanes(core))),
        info,
        closer: Closer { gate, control: Arc::new(control), over },
    })
}

/// What the peer said when it closed, which may be before anybody knows who it is: nothing that a terminal obeys.
fn harmless(close: &quinn::ConnectionClose) -> String {
    close.to_string().escape_debug().to_string()
}

/// What quinn's view of a connection's end means.
fn explain(peer: &str, refusal: Option<Refusal>, error: &ConnectionError) -> NetError {
    let owned = peer.to_owned();
    match error {
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(alert) => match identity_alert(alert) {
                Some(why) => NetError::Identity { peer: owned, by: End::Peer, why: why.to_owned() },
                None => NetError::Tls { peer: owned, detail: harmless(close) },
            },
            None => NetError::Reset { peer: owned, detail: harmless(close) },
        },
        ConnectionError::TransportError(failure) => match (refusal, alert(u64::from(failure.code))) {
            (Some(refusal), Some(_)) => NetError::Identity { peer: owned, by: End::Here, why: refusal.to_string() },
            (None, Some(alert)) if identity_alert(alert).is_some() => {
                NetError::Identity { peer: owned, by: End::Here, why: failure.reason.clone() }
            }
            (_, Some(_)) => NetError::Tls { peer: owned, detail: failure.to_string() },
            (_, None) => NetError::Reset { peer: owned, detail: failure.to_string() },
        },
        ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(0) => {
            NetError::Reset { peer: owned, detail: "it dropped the link without a word".to_owned() }
        }
        ConnectionError::ApplicationClosed(close) => NetError::Closed {
            peer: owned,
            by: End::Peer,
            reason: String::from_utf8_lossy(&close.reason).escape_debug().to_string(),
        },
        ConnectionError::LocallyClosed => NetError::Closed { peer: owned, by: End::Here, reason: String::new() },
        ConnectionError::TimedOut => {
            NetError::Reset { peer: owned, detail: "nothing came from it for too long".to_owned() }
        }
        ConnectionError::Reset | ConnectionError::CidsExhausted => {
            NetError::Reset { peer: owned, detail: error.to_string() }
        }
        ConnectionError::VersionMismatch => NetError::Tls { peer: owned, detail: error.to_string() },
    }
}

/// RFC 9001 section 4.8: TLS alerts travel as error codes 0x100 to 0x1ff.
fn alert(code: u64) -> Option<AlertDescription> {
    (code & !0xff == 0x100).then(|| u8::try_from(code & 0xff).ok().map(AlertDescription::from)).flatten()
}
