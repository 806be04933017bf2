//! How a link is ended from outside, and what can be asked about it while others use its halves.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::congestion::PathSnapshot;
use super::error::{End, NetError};

/// What the halves of one link share: whether it was closed here, and why.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) peer: String,
    token: CancellationToken,
    reason: OnceLock<String>,
}

impl Gate {
    pub(super) fn new(peer: String) -> Arc<Self> {
        Arc::new(Self { peer, token: CancellationToken::new(), reason: OnceLock::new() })
    }

    /// The first reason stays.
    pub(super) fn shut(&self, reason: &str) {
        let _ = self.reason.set(reason.to_owned());
        self.token.cancel();
    }

    pub(super) fn check(&self) -> Result<(), NetError> {
        if self.token.is_cancelled() { Err(self.error()) } else { Ok(()) }
    }

    pub(super) async fn shut_down(&self) -> NetError {
        self.token.cancelled().await;
        self.error()
    }

    /// What the link's users hear, if it was closed here, instead of whatever the transport made of it.
    pub(super) fn prefer(&self, error: NetError) -> NetError {
        if self.token.is_cancelled() { self.error() } else { error }
    }

    fn error(&self) -> NetError {
        let reason = self.reason.get().cloned().unwrap_or_default();
        NetError::Closed { peer: self.peer.clone(), by: End::Here, reason }
    }
}

/// What a transport offers beside its streams.
pub(super) trait Control: Send + Sync {
    /// Ends the connection below; must not block. The gate is shut already.
    fn cut(&self, reason: &str);
    fn stats(&self) -> LinkStats;
}

/// Ends a link and asks it for figures, from any task, at any time.
#[derive(Clone)]
pub struct Closer {
    pub(super) gate: Arc<Gate>,
    pub(super) control: Arc<dyn Control>,
    pub(super) over: watch::Receiver<()>,
}

impl Closer {
    /// Ends the link at once: every pending and later call on its halves fails with [`NetError::Closed`].
    ///
    /// Bytes in flight may be lost; a clean end is [`super::SendHalf::finish`] on both sides. The reason reaches the
    /// peer over QUIC only (at most 256 bytes of it).
    pub fn close(&self, reason: &str) {
        self.gate.shut(reason);
        self.control.cut(reason);
    }

    /// Figures of the connection, by value.
    pub fn stats(&self) -> LinkStats {
        self.control.stats()
    }

    /// Completes when nothing of the link is left: both halves were dropped, and what they had sent before
    /// [`super::SendHalf::finish`] was delivered or given up (after at most 10 s). A process that wants its last bytes
    /// delivered waits for this before it exits.
    pub async fn over(&self) {
        let mut over = self.over.clone();
        while over.changed().await.is_ok() {}
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer").field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// Figures of one link since it was made. What a transport does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Smoothed round trip time.
    pub rtt: Option<Duration>,
    /// Smallest round trip time seen.
    pub min_rtt: Option<Duration>,
    /// Packets declared lost.
    pub lost_packets: Option<u64>,
    /// Bytes in packets declared lost.
    pub lost_bytes: Option<u64>,
    /// Packets sent, probes included.
    pub sent_packets: Option<u64>,
    /// How often the congestion controller was told of loss.
    pub congestion_events: Option<u64>,
    /// Bytes handed to the socket, headers above UDP or TCP and retransmissions by QUIC included.
    pub wire_bytes_sent: u64,
    /// Bytes received from the socket, counted likewise.
    pub wire_bytes_received: u64,
    /// Congestion window in bytes.
    pub congestion_window: Option<u64>,
    /// What the congestion controller believes about the path.
    pub path: Option<PathSnapshot>,
    /// Name of the congestion controller in use.
    pub controller: Option<String>,
    /// Largest UDP payload in use, in bytes.
    pub mtu: Option<u16>,
    /// UDP send buffer that the kernel granted, in bytes.
    pub udp_send_buffer: Option<u64>,
    /// UDP receive buffer that the kernel granted, in bytes.
    pub udp_receive_buffer: Option<u64>,
}
