//! Finding one port number for UDP and TCP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use socket2::{Domain, Protocol, Socket, Type};

use super::error::NetError;
use super::tuning::Tuning;

/// How many port numbers are tried where any will do.
const PORT_TRIES: u32 = 64;

/// What was bound.
pub(super) struct Sockets {
    pub(super) udp: Option<std::net::UdpSocket>,
    pub(super) tcp: Option<std::net::TcpListener>,
    pub(super) port: u16,
    pub(super) without_quic: Option<String>,
}

/// Finds a port number that is free for all that is wanted.
pub(super) fn bind_pair(
    addr: IpAddr,
    ports: &RangeInclusive<u16>,
    quic: bool,
    tcp: bool,
    tuning: &Tuning,
) -> Result<Sockets, NetError> {
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let mut candidates: Vec<u16> = ports.clone().collect();
    if candidates.contains(&0) {
        // Whatever the system gives; the other protocol may have that number taken, so more than once.
        candidates = (0..PORT_TRIES).map(|_| 0).collect();
    }
    for wanted in candidates {
        let fail = |operation, error| NetError::from_io(&SocketAddr::new(addr, wanted).to_string(), operation, error);
        let mut without_quic = None;
        let mut udp = None;
        if quic {
            match tuning.udp_socket(SocketAddr::new(addr, wanted)) {
                Ok(socket) => udp = Some(socket),
                Err(error) if in_use(&error) => continue,
                Err(error) if tcp => without_quic = Some(error.to_string()),
                Err(error) => return Err(fail("listen on UDP", error)),
            }
        }
        let udp_port = udp.as_ref().map(|socket| socket.local_addr().map(|local| local.port()));
        let port = udp_port.transpose().map_err(|error| fail("listen on UDP", error))?.unwrap_or(wanted);
        if !tcp {
            return Ok(Sockets { udp, tcp: None, port, without_quic });
        }
        match tcp_socket(SocketAddr::new(addr, port)) {
            Ok(listener) => {
                let port = listener.local_addr().map_err(|error| fail("listen on TCP", error))?.port();
                return Ok(Sockets { udp, tcp: Some(listener), port, without_quic });
            }
            Err(error) if in_use(&error) => {}
            Err(error) => return Err(fail("listen on TCP", error)),
        }
    }
    Err(NetError::PortInUse { ports: ports.clone() })
}

fn tcp_socket(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        let _ = socket.set_only_v6(false);
    }
    // Past connections of an endpoint that was restarted must not keep its port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
