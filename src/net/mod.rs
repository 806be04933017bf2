//! Links: authenticated, encrypted connections between two machines, and nothing about what is said on them.
//!
//! A [`Link`] has one ordered two-way main stream; over QUIC it has one-way [`Lanes`] beside it. It comes from [`dial()`], from a
//! [`Listener`], or from [`stream_link`], and looks the same from either end. One task owns a [`SendHalf`], one a [`RecvHalf`];
//! anybody may hold a [`Closer`].
//!
//! **On the wire.** QUIC version 1, or TCP; TLS 1.3 only, both ends show a certificate, ALPN `ccat-xfer/1`, no tickets, no early
//! data. The dialing end opens QUIC's only bidirectional stream as its main stream and sends one byte, 0x05, so that the
//! other end notices it. Over QUIC and TCP the accepting end, once it accepts the dialing one, sends one byte, 0x06, before
//! anything else on the main stream: a dialing end that has read it knows that it was not turned away (in TLS 1.3 the server judges
//! the client's certificate after the client believes that all is well). A byte stream carries neither.
//!
//! **Ending.** [`SendHalf::finish`] = FIN on QUIC, close_notify and FIN on TCP: the peer reads all and then a clean end. [`Closer::close`]
//! or a dropped half = the peer gets a typed error, never a clean end (on a byte stream an end is all there is to see). QUIC's
//! application error codes: 1 = closed on purpose, reason attached; 2 = no longer needed; 0 = dropped without a word.
//!
//! **Assumptions.** Clocks are judged for CA-issued certificates only. The kernel's UDP and TCP checksums are not relied upon: TLS
//! detects a flipped bit and ends the link.

mod ca;
mod closer;
mod congestion;
mod credit;
mod crowd;
mod dial;
mod error;
mod greeting;
mod half;
mod identity;
mod listener;
mod peer;
mod policy;
mod ports;
mod quic;
mod stream;
mod tcp;
mod tls;
mod tuning;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod hostile;

use std::net::SocketAddr;

pub use ca::{Authority, CertificateFacts, show};
pub use closer::{Closer, LinkStats};
pub use congestion::{PathSnapshot, PathState, Remembered};
pub use crowd::HandshakeLimits;
pub use dial::{Confirm, DialOptions, dial};
pub use error::{End, NetError};
pub use half::{Lanes, RecvHalf, SendHalf};
pub use identity::{Identity, IdentityError};
pub use listener::{BindOptions, Listener};
pub use peer::{Fingerprint, FingerprintError, PeerName, PeerPolicy, Refusal};
pub use policy::{AnyOf, Pinned, PrivateCa};
pub use stream::stream_link;
pub use tuning::{Congestion, Tuning};

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS 1.3 over TCP.
    Tcp,
    /// Somebody else's byte stream, in practice an ssh connection.
    Stream,
}

impl Transport {
    /// The word on the command line and in `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Stream => "ssh",
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Of its public key; [`Fingerprint::NONE`] on a byte stream.
    pub fingerprint: Fingerprint,
    /// What our policy calls it.
    pub name: PeerName,
}

/// What does not change during a link's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// What carries it.
    pub transport: Transport,
    /// Who is at the other end, as our policy judged.
    pub peer: Peer,
    /// The other end's address.
    pub remote: Option<SocketAddr>,
    /// Our address, where the transport tells (not to the dialing end of QUIC).
    pub local: Option<SocketAddr>,
    /// Equal on both ends of this connection and different on every other one (TLS exporter, label
    /// `EXPORTER-ccat-xfer link`, empty context); zeros on a byte stream.
    pub binding: [u8; 32],
    /// Whether this end called the other one.
    pub dialed: bool,
}

/// One authenticated connection. The parts may be taken out and given to different tasks.
#[derive(Debug)]
pub struct Link {
    /// What we send on the main stream.
    pub main_send: SendHalf,
    /// What the peer sends on the main stream.
    pub main_recv: RecvHalf,
    /// QUIC's one-way streams.
    pub lanes: Option<Lanes>,
    /// What does not change.
    pub info: LinkInfo,
    closer: Closer,
}

impl Link {
    /// A handle that ends the link and reports on it from elsewhere.
    pub fn closer(&self) -> Closer {
        self.closer.clone()
    }

    /// Figures, by value; [`Closer::stats`] gives the same after the link has been taken apart.
    pub fn stats(&self) -> LinkStats {
        self.closer.stats()
    }
}
