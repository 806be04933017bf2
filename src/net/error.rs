use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// Which end of a link did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// This process.
    Here,
    /// The process at the other end.
    Peer,
}

/// Why a link could not be made, or why it ended.
///
/// `peer` is what the operator would type: an address with its port, or `ssh stream`.
#[derive(Clone, Debug, Error)]
pub enum NetError {
    /// The machine answered, but nobody listens at that port.
    #[error("{peer} refused the connection: nobody listens there (is the endpoint running, is the port right?)")]
    Refused {
        /// Whom we called.
        peer: String,
    },
    /// Nothing came in time.
    #[error("{peer} did not answer within {} s while {operation} (a firewall may drop these packets)", .after.as_secs_f32())]
    Timeout {
        /// Whom we waited for.
        peer: String,
        /// What we were doing.
        operation: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// One end closed the link on purpose, not by a broken path.
    #[error("the link to {peer} was closed by {}: {reason}", match .by { End::Here => "this end", End::Peer => "the peer" })]
    Closed {
        /// The other end.
        peer: String,
        /// Who closed it.
        by: End,
        /// What the closing end said; empty if it said nothing.
        reason: String,
    },
    /// The link broke: the peer died, or something between cut it.
    #[error("the link to {peer} broke: {detail}")]
    Reset {
        /// The other end.
        peer: String,
        /// What the transport said.
        detail: String,
    },
    /// The peer ended its stream in the middle of something.
    #[error("{peer} ended its stream {missing} bytes too early")]
    Truncated {
        /// The other end.
        peer: String,
        /// How many of the bytes just asked for never came.
        missing: usize,
    },
    /// One end did not accept who the other is.
    #[error("{}: {why}", match .by {
        End::Here => format!("{peer} is not accepted here"),
        End::Peer => format!("{peer} does not accept this end's identity"),
    })]
    Identity {
        /// The other end.
        peer: String,
        /// Who refused.
        by: End,
        /// Why, and what to do.
        why: String,
    },
    /// Every port of the range is taken.
    #[error("port {} is in use by another program on this machine: choose another one or end that program", show_ports(.ports))]
    PortInUse {
        /// The ports that were tried.
        ports: RangeInclusive<u16>,
    },
    /// No way to the peer.
    #[error("{peer} cannot be reached: {detail}")]
    Unreachable {
        /// Whom we called.
        peer: String,
        /// What the system said.
        detail: String,
    },
    /// The caller did what the contract of this module forbids.
    #[error("misuse of a link: {what}")]
    Misuse {
        /// What it did.
        what: &'static str,
    },
    /// The TLS layer failed for a reason other than identity.
    #[error("TLS with {peer} failed: {detail} (does a ccat-xfer of a matching version listen there?)")]
    Tls {
        /// The other end.
        peer: String,
        /// What TLS said.
        detail: String,
    },
    /// The system refused something else.
    #[error("{operation} ({peer}): {source}")]
    Io {
        /// The other end, or the local address.
        peer: String,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

impl NetError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Reset { .. }
            | Self::Truncated { .. }
            | Self::Unreachable { .. }
            | Self::Io { .. } => true,
            Self::Identity { .. } | Self::PortInUse { .. } | Self::Misuse { .. } | Self::Tls { .. } => false,
        }
    }

    /// What an operating system error on an open or opening connection means.
    pub(super) fn from_io(peer: &str, operation: &'static str, error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        let peer = peer.to_owned();
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused { peer },
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => {
                Self::Unreachable { peer, detail: error.to_string() }
            }
            Kind::TimedOut => Self::Reset { peer, detail: "the peer acknowledged nothing for too long".to_owned() },
            Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::BrokenPipe
            | Kind::NotConnected
            | Kind::UnexpectedEof => Self::Reset { peer, detail: error.to_string() },
            _ => Self::Io { peer, operation, source: Arc::new(error) },
        }
    }
}

fn show_ports(ports: &RangeInclusive<u16>) -> String {
    if ports.start() == ports.end() {
        format!("{}", ports.start())
    } else {
        format!("range {}-{}", ports.start(), ports.end())
    }
}
