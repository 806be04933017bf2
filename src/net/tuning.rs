//! Every window, limit and socket option of QUIC and TCP, in one place, with its reason.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::congestion::{Limits, ModelFactory, Remembered};

/// Which rule limits what QUIC has in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Our own, led by the path's rate and round trip time: takes loss up to a few percent for noise. The default.
    #[default]
    Model,
    /// quinn's CUBIC: fair to others, helpless against random loss.
    Cubic,
}

impl Congestion {
    /// The word on the command line and in the summary.
    pub fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Cubic => "cubic",
        }
    }
}

/// Limits of links. The defaults suit paths up to 2 Gbit/s over 300 ms (bandwidth x delay = 75 MB).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// QUIC's congestion controller.
    pub congestion: Congestion,
    /// Largest first congestion window in bytes. Default 512 KiB: 20 Mbit/s over 200 ms; paced, it does not burst.
    pub start_window_bytes: u64,
    /// Largest congestion window in bytes. Default 192 MiB: more than a probe takes of 2 Gbit/s over 300 ms beside others.
    pub window_cap_bytes: u64,
    /// What an earlier job learned about the path to this peer. Default none.
    pub remembered: Option<Remembered>,
    /// What may be unread on one QUIC stream, in bytes. Default 8 MiB: two chunks, so that a lost packet stalls nothing.
    pub stream_window_bytes: u32,
    /// What may be unread on one QUIC connection at first, in bytes. Default 64 MiB. It grows with what arrives in a round trip.
    pub receive_window_bytes: u32,
    /// The largest that it grows to, in bytes. Default 256 MiB: three and a half times 2 Gbit/s over 300 ms.
    pub receive_window_cap_bytes: u32,
    /// What may be handed to one QUIC connection and not be acknowledged, in bytes. Default 256 MiB: never the limit; memory is
    /// limited by the buffers of a job.
    pub send_window_bytes: u64,
    /// How many one-way streams the peer may have open. Default 256.
    pub max_lanes: u32,
    /// A link on which nothing arrives for so long is dead. Default 30 s.
    pub idle_timeout: Duration,
    /// How often an idle link is kept alive. Default 5 s: below the idle timeouts of NAT tables for UDP (30 s).
    pub keep_alive: Duration,
    /// What is asked of the kernel for each UDP buffer, in bytes. Default 8 MiB; it grants up to `net.core.[rw]mem_max`.
    pub udp_buffer_bytes: usize,
    /// Largest UDP payload that is tried. Default 8952: a jumbo frame less IPv6 and UDP headers. With `segmentation_offload` it is
    /// at most 6550.
    pub max_datagram_bytes: u16,
    /// Whether the kernel may segment for us (GSO). Default yes; some drivers lose such packets.
    pub segmentation_offload: bool,
    /// TCP congestion control that is asked for. Default `bbr`; a kernel that refuses keeps its own.
    pub tcp_congestion: Option<String>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            congestion: Congestion::default(),
            start_window_bytes: 512 << 10,
            window_cap_bytes: 192 << 20,
            remembered: None,
            stream_window_bytes: 8 << 20,
            receive_window_bytes: 64 << 20,
            receive_window_cap_bytes: 256 << 20,
            send_window_bytes: 256 << 20,
            max_lanes: 256,
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            udp_buffer_bytes: 8 << 20,
            max_datagram_bytes: 8952,
            segmentation_offload: true,
            tcp_congestion: Some("bbr".to_owned()),
        }
    }
}

/// quinn 0.11 hands the kernel ten datagrams at once, whatever their size. Together they must fit the 65,507 bytes of one UDP send: else
/// the kernel refuses (EMSGSIZE), quinn takes that for a lost MTU probe, and every packet of a full burst is gone.
const MAX_OFFLOADED_BYTES: u16 = 6550;

/// What an accepting end lets a peer keep in its memory before it knows who that is, in bytes.
const STRANGER_WINDOW_BYTES: u32 = 64 << 10;

impl Tuning {
    /// QUIC's settings for a dialing end.
    pub(super) fn dialing(&self) -> TransportConfig {
        let mut config = self.transport();
        config
            .receive_window(VarInt::from_u32(self.receive_window_bytes))
            .max_concurrent_uni_streams(VarInt::from_u32(self.max_lanes))
            .max_concurrent_bidi_streams(VarInt::from_u32(0));
        config
    }

    /// QUIC's settings for an accepting end: hardly any memory for a stranger. [`Tuning::admit`] gives the rest.
    pub(super) fn accepting(&self) -> TransportConfig {
        let mut config = self.transport();
        config
            .receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES.min(self.receive_window_bytes)))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .max_concurrent_bidi_streams(VarInt::from_u32(1));
        config
    }

    /// Lifts the limits for a peer that has been accepted.
    pub(super) fn admit(&self, connection: &quinn::Connection) {
        connection.set_receive_window(VarInt::from_u32(self.receive_window_bytes));
        connection.set_max_concurrent_uni_streams(VarInt::from_u32(self.max_lanes));
    }

    fn transport(&self) -> TransportConfig {
        let mut config = TransportConfig::default();
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.largest_datagram());
        let mut acks = AckFrequencyConfig::default();
        // An acknowledgement for ten packets costs a tenth of the return path and of both CPUs.
        acks.ack_eliciting_threshold(VarInt::from_u32(10));
        config
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes))
            .send_window(self.send_window_bytes)
            // Chunks finish one after the other rather than all at the end.
            .send_fairness(false)
            .max_idle_timeout(quinn::IdleTimeout::try_from(self.idle_timeout).ok())
            .keep_alive_interval(Some(self.keep_alive))
            .mtu_discovery_config(Some(mtu))
            .ack_frequency_config(Some(acks))
            // Datagrams are not used.
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(self.segmentation_offload);
        match self.congestion {
            Congestion::Model => {
                let limits = Limits { start: self.start_window_bytes, cap: self.window_cap_bytes };
                let factory = ModelFactory { limits, remembered: self.remembered };
                config.congestion_controller_factory(Arc::new(factory));
            }
            Congestion::Cubic => {
                let mut cubic = CubicConfig::default();
                cubic.initial_window(self.start_window_bytes);
                config.congestion_controller_factory(Arc::new(cubic));
            }
        }
        config
    }

    /// Settings of a QUIC endpoint.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        // What we tell the peer it may send; refused only below 1200.
        let _ = config.max_udp_payload_size(self.largest_datagram());
        config
    }

    fn largest_datagram(&self) -> u16 {
        let limit = if self.segmentation_offload { MAX_OFFLOADED_BYTES } else { u16::MAX };
        self.max_datagram_bytes.clamp(1200, limit)
    }

    /// A UDP socket with the largest buffers that the kernel grants.
    pub(super) fn udp_socket(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            // One socket for both kinds of addresses where the system can; else IPv6 alone.
            let _ = socket.set_only_v6(false);
        }
        let _ = socket.set_recv_buffer_size(self.udp_buffer_bytes);
        let _ = socket.set_send_buffer_size(self.udp_buffer_bytes);
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    /// Options of a TCP connection. None of them is needed to work, so none of them may stop it.
    ///
    /// Buffer sizes are left alone: a fixed one switches the kernel's own tuning off.
    pub(super) fn tune_tcp(&self, stream: &tokio::net::TcpStream) {
        let _ = stream.set_nodelay(true);
        let keep_alive = TcpKeepalive::new().with_time(self.keep_alive).with_interval(self.keep_alive).with_retries(4);
        let _ = SockRef::from(stream).set_tcp_keepalive(&keep_alive);
        let _ = sockopt::set_tcp_user_timeout(stream, u32::try_from(self.idle_timeout.as_millis()).unwrap_or(u32::MAX));
        if let Some(name) = &self.tcp_congestion {
            let _ = sockopt::set_tcp_congestion(stream, name);
        }
    }
}

/// What became of a UDP socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct UdpFacts {
    pub(super) port: u16,
    /// Buffers that the kernel granted, in bytes.
    pub(super) send_buffer: Option<u64>,
    pub(super) receive_buffer: Option<u64>,
}

impl UdpFacts {
    pub(super) fn of(socket: &UdpSocket) -> Self {
        let port = socket.local_addr().map_or(0, |local| local.port());
        let socket = SockRef::from(socket);
        // Linux doubles what was asked for its own bookkeeping and reports the double.
        let real = |size: io::Result<usize>| size.ok().and_then(|bytes| u64::try_from(bytes / 2).ok());
        Self { port, send_buffer: real(socket.send_buffer_size()), receive_buffer: real(socket.recv_buffer_size()) }
    }
}
