//! How two ends of a TCP connection become sure of each other, before it is a link.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustls::Connection;
use rustls::pki_types::{CertificateDer, ServerName};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::dial::DialOptions;
use super::error::{End, NetError};
use super::half::WELCOME;
use super::peer::{Fingerprint, PeerPolicy, Refusal};
use super::tcp::{Nonblocking, drain, link_over, write_out};
use super::tls::{ALPN, BINDING_LABEL, Verifier, client_config, tls_error};
use super::tuning::Tuning;
use super::{Link, LinkInfo, Peer, Transport};

/// How long an end that turned its peer away waits for the peer to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Calls `address`. The caller limits the time.
pub(super) async fn dial_tcp(address: SocketAddr, options: &DialOptions) -> Result<Link, NetError> {
    let peer = address.to_string();
    let verifier = Verifier::new(Arc::clone(&options.policy));
    let config = client_config(&options.identity, Arc::clone(&verifier))
        .map_err(|error| NetError::Tls { peer: peer.clone(), detail: error.to_string() })?;
    let socket = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => NetError::Unreachable { peer: peer.clone(), detail: error.to_string() },
        _ => NetError::from_io(&peer, "connect", error),
    })?;
    options.tuning.tune_tcp(&socket);
    let name = ServerName::IpAddress(address.ip().into());
    let tls = rustls::ClientConnection::new(Arc::new(config), name)
        .map_err(|error| NetError::Tls { peer: peer.clone(), detail: error.to_string() })?;
    let mut tls = Connection::Client(tls);
    if let Err(error) = handshake(&socket, &mut tls).await {
        return Err(error.explain(&peer, verifier.refusal()));
    }
    assemble(socket, tls, &*options.policy, peer, true)
}

/// Answers a caller. The caller of this limits the time.
pub(super) async fn accept_tcp(
    socket: TcpStream,
    config: Arc<rustls::ServerConfig>,
    verifier: &Verifier,
    policy: &dyn PeerPolicy,
    tuning: &Tuning,
) -> Result<Link, NetError> {
    let peer = socket.peer_addr().map_or_else(|_| "a peer that left".to_owned(), |address| address.to_string());
    tuning.tune_tcp(&socket);
    let tls = rustls::ServerConnection::new(config)
        .map_err(|error| NetError::Tls { peer: peer.clone(), detail: error.to_string() })?;
    let mut tls = Connection::Server(tls);
    if let Err(error) = handshake(&socket, &mut tls).await {
        // The alert is only read if no reset overtakes it, so what the peer still sends is read before the socket goes.
        let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Write);
        let _ = tokio::time::timeout(FAREWELL, drain(&socket, 64 << 10)).await;
        return Err(error.explain(&peer, verifier.refusal()));
    }
    let mut link = assemble(socket, tls, policy, peer, false)?;
    link.main_send.send(&[WELCOME], None).await?;
    Ok(link)
}

/// Turns a connection whose handshake is done into a link.
fn assemble(
    socket: TcpStream,
    tls: Connection,
    policy: &dyn PeerPolicy,
    peer: String,
    dialed: bool,
) -> Result<Link, NetError> {
    let tls_failed = |detail: String| NetError::Tls { peer: peer.clone(), detail };
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(tls_failed("it speaks another protocol than ccat-xfer/1".to_owned()));
    }
    let info = LinkInfo {
        transport: Transport::Tcp,
        peer: judge(policy, tls.peer_certificates().unwrap_or_default(), &peer)?,
        remote: socket.peer_addr().ok(),
        local: socket.local_addr().ok(),
        binding: tls
            .export_keying_material([0; 32], BINDING_LABEL, Some(&[]))
            .map_err(|error| tls_failed(error.to_string()))?,
        dialed,
    };
    Ok(link_over(socket, tls, info, peer))
}

/// Names the peer once more after the handshake: the verifier inside TLS cannot hand the name out.
pub(super) fn judge(policy: &dyn PeerPolicy, chain: &[CertificateDer<'_>], peer: &str) -> Result<Peer, NetError> {
    let identity = |why: String| NetError::Identity { peer: peer.to_owned(), by: End::Here, why };
    let first = chain.first().ok_or_else(|| identity("it showed no certificate".to_owned()))?;
    let name = policy.judge(chain).map_err(|refusal| identity(refusal.to_string()))?;
    let fingerprint = Fingerprint::of(first).map_err(|refusal| identity(refusal.to_string()))?;
    Ok(Peer { fingerprint, name })
}

enum HandshakeError {
    Io(io::Error),
    HungUp,
    Tls(rustls::Error),
}

impl HandshakeError {
    fn explain(self, peer: &str, refusal: Option<Refusal>) -> NetError {
        match self {
            Self::Io(error) => NetError::from_io(peer, "greet", error),
            Self::HungUp => {
                let detail = "it hung up while we greeted it (too many callers there, or no ccat-xfer)".to_owned();
                NetError::Reset { peer: peer.to_owned(), detail }
            }
            Self::Tls(error) => tls_error(peer, refusal, &error),
        }
    }
}

async fn handshake(socket: &TcpStream, tls: &mut Connection) -> Result<(), HandshakeError> {
    let unused = AtomicU64::new(0);
    loop {
        match write_out(tls, socket, &unused) {
            Ok(()) if !tls.is_handshaking() => return Ok(()),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable().await.map_err(HandshakeError::Io)?;
                continue;
            }
            Err(error) => return Err(HandshakeError::Io(error)),
        }
        match tls.read_tls(&mut Nonblocking(socket)) {
            Ok(0) => return Err(HandshakeError::HungUp),
            Ok(_) => {
                if let Err(error) = tls.process_new_packets() {
                    // The alert; the socket's buffer has room for it, or nobody reads there anyway.
                    let _ = write_out(tls, socket, &unused);
                    return Err(HandshakeError::Tls(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable().await.map_err(HandshakeError::Io)?;
            }
            Err(error) => return Err(HandshakeError::Io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use rustls::ConnectionTrafficSecrets;
    use rustls::crypto::CryptoProvider;
    use rustls::crypto::cipher::{
        AeadKey, Iv, MessageDecrypter, MessageEncrypter, Tls13AeadAlgorithm, UnsupportedOperationError,
    };
    use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};
    use tokio::net::TcpListener;

    use super::super::conformance::{friends, soon};
    use super::super::tls::{client_config_with, provider, server_config_with};
    use super::*;

    /// Counts the keys that are taken into use for sending.
    struct Counting {
        inner: &'static dyn Tls13AeadAlgorithm,
        keys: AtomicU64,
    }

    impl Tls13AeadAlgorithm for Counting {
        fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
            self.keys.fetch_add(1, Ordering::Relaxed);
            self.inner.encrypter(key, iv)
        }

        fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
            self.inner.decrypter(key, iv)
        }

        fn key_len(&self) -> usize {
            self.inner.key_len()
        }

        fn extract_keys(&self, key: AeadKey, iv: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
            self.inner.extract_keys(key, iv)
        }
    }

    /// AES-128-GCM keys are good for 2^24 records, 256 GiB; here for 20. They are changed under way, in both directions, and nobody
    /// notices. Seen to fail with the usual limit (no key is changed then).
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keys_are_changed_under_way() {
        let suite = provider().cipher_suites[0].tls13().unwrap();
        let common = CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 20,
        };
        let counting: &'static Counting =
            Box::leak(Box::new(Counting { inner: suite.aead_alg, keys: AtomicU64::new(0) }));
        let short_lived: &'static Tls13CipherSuite =
            Box::leak(Box::new(Tls13CipherSuite { common, aead_alg: counting, ..*suite }));
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![SupportedCipherSuite::Tls13(short_lived)],
            ..CryptoProvider::clone(provider())
        });
        let (here, there) = friends();
        let verifier = Verifier::new(Arc::clone(&there.policy));
        let server = server_config_with(Arc::clone(&provider), &there.identity, Arc::clone(&verifier)).unwrap();
        let client = client_config_with(provider, &here.identity, Verifier::new(Arc::clone(&here.policy))).unwrap();

        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tuning = Tuning::default();
        let accepting = async {
            let (socket, _) = listener.accept().await.unwrap();
            accept_tcp(socket, Arc::new(server), &verifier, &*there.policy, &tuning).await.unwrap()
        };
        let dialing = async {
            let socket = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("there").unwrap();
            let tls = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
            let mut tls = Connection::Client(tls);
            assert!(handshake(&socket, &mut tls).await.is_ok());
            assemble(socket, tls, &*here.policy, "there".to_owned(), true).unwrap()
        };
        let (dialed, accepted) = soon("making a link", async { tokio::join!(dialing, accepting) }).await;

        let mut tasks = tokio::task::JoinSet::new();
        for (mut send, mut recv) in [(dialed.main_send, accepted.main_recv), (accepted.main_send, dialed.main_recv)] {
            tasks.spawn(async move {
                for round in 0..8 {
                    send.send(&[round; 60], Some(Bytes::from(vec![round; 1 << 20]))).await.unwrap();
                }
                send.finish().await.unwrap();
            });
            tasks.spawn(async move {
                let mut bytes = vec![0; 60 + (1 << 20)];
                for round in 0..8 {
                    recv.read_exact(&mut bytes).await.unwrap();
                    assert!(bytes.iter().all(|byte| *byte == round));
                }
                assert!(!recv.read_exact_or_end(&mut [0]).await.unwrap());
            });
        }
        soon("carrying data", async {
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        })
        .await;
        // 8 MiB each way are 512 records and more.
        let keys = counting.keys.load(Ordering::Relaxed);
        assert!(keys >= 40, "{keys} keys");
    }
}
