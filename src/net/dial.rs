//! Calling a peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::error::NetError;
use super::greeting::dial_tcp;
use super::identity::Identity;
use super::peer::PeerPolicy;
use super::quic::dial_quic;
use super::tuning::Tuning;
use super::{Link, Transport};

/// When a call counts as made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confirm {
    /// When the peer has accepted us; costs a round trip more, and a refusal is this call's error.
    #[default]
    Await,
    /// When we have accepted the peer; if it refuses us, the first read (or a later send) says so.
    Lazily,
}

/// How to call a peer.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// Who we are.
    pub identity: Identity,
    /// Who may answer.
    pub policy: Arc<dyn PeerPolicy>,
    /// Windows and limits.
    pub tuning: Tuning,
    /// When the call counts as made.
    pub confirm: Confirm,
    /// How long it may take.
    pub timeout: Duration,
}

impl DialOptions {
    /// With default tuning, confirmed, within 10 s.
    pub fn new(identity: Identity, policy: Arc<dyn PeerPolicy>) -> Self {
        Self {
            identity,
            policy,
            tuning: Tuning::default(),
            confirm: Confirm::default(),
            timeout: Duration::from_secs(10),
        }
    }
}

/// Calls `address`. Dropping the future gives up.
///
/// # Errors
/// [`NetError::Refused`], [`NetError::Unreachable`], [`NetError::Timeout`] (also where UDP is dropped, or nobody listens on a UDP
/// port), [`NetError::Identity`], [`NetError::Tls`], [`NetError::Reset`]; [`NetError::Misuse`] for [`Transport::Stream`].
pub async fn dial(transport: Transport, address: SocketAddr, options: &DialOptions) -> Result<Link, NetError> {
    let call = async {
        let mut link = match transport {
            Transport::Quic => dial_quic(address, options).await?,
            Transport::Tcp => dial_tcp(address, options).await?,
            Transport::Stream => return Err(NetError::Misuse { what: "a byte stream cannot be dialed" }),
        };
        if options.confirm == Confirm::Await {
            link.main_recv.welcome().await?;
        }
        Ok(link)
    };
    match tokio::time::timeout(options.timeout, call).await {
        Ok(result) => result,
        Err(_) => Err(NetError::Timeout {
            peer: address.to_string(),
            operation: match transport {
                Transport::Quic => "calling over QUIC (UDP)",
                Transport::Tcp | Transport::Stream => "calling over TCP",
            },
            after: options.timeout,
        }),
    }
}
