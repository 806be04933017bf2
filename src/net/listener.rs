//! Answering callers: QUIC and TCP on one port number, with bounded work for strangers.
//!
//! Until a caller has been accepted it costs one of `max_half_open` places, at most `timeout` long, a socket (TCP), and about 64 KiB.
//! One address holds at most `max_half_open_per_address` places (IPv6: one /64). Where more than `retry_above` are taken, a QUIC
//! caller has to prove its address first, which costs this end no memory at all (RFC 9000 section 8.1.2).

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, Incoming, ServerConfig, TokioRuntime, ValidationTokenConfig};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Link;
use super::crowd::{HalfOpen, HandshakeLimits, Place};
use super::error::{End, NetError};
use super::greeting::accept_tcp;
use super::identity::Identity;
use super::peer::PeerPolicy;
use super::ports::bind_pair;
use super::quic::accept_quic;
use super::tls::{Verifier, server_config};
use super::tuning::{Tuning, UdpFacts};

/// How many accepted links wait for [`Listener::accept`].
const BACKLOG: usize = 16;

/// Where and for whom to listen.
#[derive(Clone, Debug)]
pub struct BindOptions {
    /// Local address; `::` takes IPv4 too where the system can.
    pub addr: IpAddr,
    /// Ports to try, in order; 0 = any free one.
    pub ports: RangeInclusive<u16>,
    /// Whether to take QUIC.
    pub quic: bool,
    /// Whether to take TCP.
    pub tcp: bool,
    /// Who we are.
    pub identity: Identity,
    /// Who may call.
    pub policy: Arc<dyn PeerPolicy>,
    /// What strangers may cost.
    pub limits: HandshakeLimits,
    /// Windows and limits of links.
    pub tuning: Tuning,
}

/// Who we are and who may call, as one; replaced as one.
struct Credentials {
    policy: Arc<dyn PeerPolicy>,
    verifier: Arc<Verifier>,
    tls: Arc<rustls::ServerConfig>,
    quic: Arc<ServerConfig>,
}

impl Credentials {
    fn new(
        identity: &Identity,
        policy: Arc<dyn PeerPolicy>,
        limits: &HandshakeLimits,
        tuning: &Tuning,
    ) -> Result<Arc<Self>, NetError> {
        let failed = |detail: String| NetError::Tls { peer: "our own identity".to_owned(), detail };
        let verifier = Verifier::new(Arc::clone(&policy));
        let tls = Arc::new(server_config(identity, Arc::clone(&verifier)).map_err(|error| failed(error.to_string()))?);
        let crypto = QuicServerConfig::try_from(Arc::clone(&tls)).map_err(|error| failed(error.to_string()))?;
        let mut quic = ServerConfig::with_crypto(Arc::new(crypto));
        // No tokens for later visits: peers come seldom, and each token is one more thing to check and to leak.
        let mut tokens = ValidationTokenConfig::default();
        tokens.sent(0);
        quic.transport_config(Arc::new(tuning.accepting()))
            .validation_token_config(tokens)
            .retry_token_lifetime(limits.timeout)
            .max_incoming(limits.max_half_open)
            .incoming_buffer_size(16 << 10)
            .incoming_buffer_size_total(4 << 20);
        Ok(Arc::new(Self { policy, verifier, tls, quic: Arc::new(quic) }))
    }
}

struct Shared {
    credentials: RwLock<Arc<Credentials>>,
    limits: HandshakeLimits,
    tuning: Tuning,
    half_open: Arc<HalfOpen>,
    stop: CancellationToken,
    links: mpsc::Sender<Link>,
}

impl Shared {
    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs one caller's handshake to its end and hands the link over. The place is kept until somebody takes the link, so that a
    /// listener whose owner is busy does not pile links up.
    fn greet<F>(self: &Arc<Self>, place: Place, from: SocketAddr, handshake: F)
    where
        F: Future<Output = Result<Link, NetError>> + Send + 'static,
    {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            let work = async {
                match tokio::time::timeout(shared.limits.timeout, handshake).await {
                    Ok(Ok(link)) => {
                        let _ = shared.links.send(link).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%from, %error, "a caller was not accepted"),
                    Err(_) => tracing::debug!(%from, "a caller took too long to show who it is"),
                }
            };
            tokio::select! {
                () = work => {}
                () = shared.stop.cancelled() => {}
            }
        });
    }
}

/// Takes links from callers on one port number.
pub struct Listener {
    shared: Arc<Shared>,
    links: tokio::sync::Mutex<mpsc::Receiver<Link>>,
    endpoint: Option<Endpoint>,
    port: u16,
    without_quic: Option<String>,
    _stop: DropGuard,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Listener {
    /// Starts to listen. Handshakes begin at once; accepted links wait for [`Listener::accept`].
    ///
    /// Where UDP cannot be had at all but TCP can, TCP alone is served and [`Listener::without_quic`] says why.
    ///
    /// # Errors
    /// [`NetError::PortInUse`] if no port of the range is free for what is asked; [`NetError::Io`] where the system refuses for
    /// another reason; [`NetError::Misuse`] if neither QUIC nor TCP is wanted; [`NetError::Tls`] for an unusable identity.
    pub async fn bind(options: BindOptions) -> Result<Self, NetError> {
        if !options.quic && !options.tcp {
            return Err(NetError::Misuse { what: "listening for neither QUIC nor TCP" });
        }
        let BindOptions { addr, ports, quic, tcp, identity, policy, limits, tuning } = options;
        let credentials = Credentials::new(&identity, policy, &limits, &tuning)?;
        let sockets = bind_pair(addr, &ports, quic, tcp, &tuning)?;

        let (sender, links) = mpsc::channel(BACKLOG);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            credentials: RwLock::new(Arc::clone(&credentials)),
            limits,
            tuning,
            half_open: Arc::new(HalfOpen::default()),
            stop: stop.clone(),
            links: sender,
        });
        let failed = |error| NetError::from_io(&format!("port {}", sockets.port), "listen", error);
        if let Some(tcp) = sockets.tcp {
            let tcp = TcpListener::from_std(tcp).map_err(failed)?;
            tokio::spawn(take_tcp(Arc::clone(&shared), tcp));
        }
        let mut endpoint = None;
        if let Some(udp) = sockets.udp {
            let facts = UdpFacts::of(&udp);
            let config = ServerConfig::clone(&credentials.quic);
            let made =
                Endpoint::new(shared.tuning.endpoint(), Some(config), udp, Arc::new(TokioRuntime)).map_err(failed)?;
            tokio::spawn(take_quic(Arc::clone(&shared), made.clone(), facts));
            endpoint = Some(made);
        }
        Ok(Self {
            shared,
            links: tokio::sync::Mutex::new(links),
            endpoint,
            port: sockets.port,
            without_quic: sockets.without_quic,
            _stop: stop.drop_guard(),
        })
    }

    /// The port number, the same for UDP and TCP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Why QUIC is not served although it was asked for.
    pub fn without_quic(&self) -> Option<&str> {
        self.without_quic.as_deref()
    }

    /// The next accepted link of either kind. Cancel-safe. Callers that are not accepted are not seen here.
    ///
    /// # Errors
    /// [`NetError::Closed`] after [`Listener::close`].
    pub async fn accept(&self) -> Result<Link, NetError> {
        let closed = || NetError::Closed {
            peer: format!("port {}", self.port),
            by: End::Here,
            reason: "we do not listen any more".to_owned(),
        };
        let next = async { self.links.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Err(closed()),
            link = next => link.ok_or_else(closed),
        }
    }

    /// Callers that are in a handshake now.
    pub fn half_open(&self) -> usize {
        self.shared.half_open.total()
    }

    /// From the next caller on, be `identity` and judge by `policy`. Links that exist stay.
    ///
    /// # Errors
    /// [`NetError::Tls`] for an unusable identity; everything stays as it was then.
    pub fn reload(&self, identity: &Identity, policy: Arc<dyn PeerPolicy>) -> Result<(), NetError> {
        let fresh = Credentials::new(identity, policy, &self.shared.limits, &self.shared.tuning)?;
        *self.shared.credentials.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Takes no more callers; both ports are free soon after. Links that exist stay.
    pub fn close(&self) {
        self.shared.stop.cancel();
        if let Some(endpoint) = &self.endpoint {
            endpoint.set_server_config(None);
        }
    }
}

async fn take_tcp(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => {
                // Beyond the limits the socket is dropped: that costs the least, and the caller may come again.
                let Some(place) = shared.half_open.enter(from.ip(), &shared.limits) else { continue };
                let inner = Arc::clone(&shared);
                shared.greet(place, from, async move {
                    let credentials = inner.credentials();
                    let tls = Arc::clone(&credentials.tls);
                    accept_tcp(socket, tls, &credentials.verifier, &*credentials.policy, &inner.tuning).await
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; one of the handshakes will give some back.
                tracing::warn!(%error, "cannot take a TCP caller");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn take_quic(shared: Arc<Shared>, endpoint: Endpoint, udp: UdpFacts) {
    loop {
        let incoming = tokio::select! {
            () = shared.stop.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let from = incoming.remote_address();
        let proven = incoming.remote_address_validated();
        let crowded = shared.half_open.total() >= shared.limits.retry_above;
        let place = if crowded && !proven { None } else { shared.half_open.enter(from.ip(), &shared.limits) };
        let Some(place) = place else {
            turn_away(incoming, proven);
            continue;
        };
        let inner = Arc::clone(&shared);
        shared.greet(place, from, async move {
            let credentials = inner.credentials();
            let connecting = incoming
                .accept_with(Arc::clone(&credentials.quic))
                .map_err(|error| NetError::Reset { peer: from.to_string(), detail: error.to_string() })?;
            accept_quic(connecting, &credentials.verifier, &*credentials.policy, &inner.tuning, udp).await
        });
    }
}

/// An address that was not proven is asked to prove itself: others may use it, and its places may not be theirs.
fn turn_away(incoming: Incoming, proven: bool) {
    if proven {
        incoming.refuse();
    } else if let Err(error) = incoming.retry() {
        error.into_incoming().ignore();
    }
}
