//! TLS as both QUIC and TCP use it: version 1.3 only, both ends show a certificate, no tickets, no early data.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};

use super::error::{End, NetError};
use super::identity::Identity;
use super::peer::{PeerPolicy, Refusal};

/// What both ends say they speak.
pub(super) const ALPN: &[u8] = b"ccat-xfer/1";

/// Exporter label of [`super::LinkInfo::binding`].
pub(super) const BINDING_LABEL: &[u8] = b"EXPORTER-ccat-xfer link";

/// Longest certificate chain that is looked at; ours have one or two.
const MAX_CHAIN: usize = 4;

/// One connection's, or one listener's, view of a policy for rustls.
#[derive(Debug)]
pub(super) struct Verifier {
    policy: Arc<dyn PeerPolicy>,
    /// The last refusal; for a dialing end that is its own connection's.
    refusal: Mutex<Option<Refusal>>,
}

impl Verifier {
    pub(super) fn new(policy: Arc<dyn PeerPolicy>) -> Arc<Self> {
        Arc::new(Self { policy, refusal: Mutex::new(None) })
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn verify(&self, first: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let judged = if rest.len() >= MAX_CHAIN {
            Err(Refusal::Malformed(format!("a chain of {} certificates", rest.len().saturating_add(1))))
        } else {
            let chain: Vec<_> = std::iter::once(first).chain(rest).cloned().collect();
            self.policy.judge(&chain)
        };
        match judged {
            Ok(_) => Ok(()),
            Err(refusal) => {
                let error = CertificateError::from(&refusal);
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
                Err(error.into())
            }
        }
    }

    fn verify_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The cryptography in use: aws-lc-rs, the fastest cipher of this machine first.
///
/// It is passed explicitly everywhere: rustls panics when it has to guess between two linked providers.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        use aws_lc_rs::cipher_suite::{
            TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
        };
        let cipher_suites = if has_aes() {
            vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256]
        } else {
            vec![TLS13_CHACHA20_POLY1305_SHA256, TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384]
        };
        Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
    })
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// The dialing end's side of TLS.
pub(super) fn client_config(identity: &Identity, verifier: Arc<Verifier>) -> Result<ClientConfig, rustls::Error> {
    client_config_with(Arc::clone(provider()), identity, verifier)
}

pub(super) fn client_config_with(
    provider: Arc<CryptoProvider>,
    identity: &Identity,
    verifier: Arc<Verifier>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    // Peers are known by key or by the certificate's names; nothing is gained by naming them in the clear.
    config.enable_sni = false;
    Ok(config)
}

/// The accepting end's side of TLS.
pub(super) fn server_config(identity: &Identity, verifier: Arc<Verifier>) -> Result<ServerConfig, rustls::Error> {
    server_config_with(Arc::clone(provider()), identity, verifier)
}

pub(super) fn server_config_with(
    provider: Arc<CryptoProvider>,
    identity: &Identity,
    verifier: Arc<Verifier>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key().clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A ticket that the client never reads turns its close into a reset, which kills data in flight.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// Whether an alert from the peer says that it does not accept our certificate; then what it means.
pub(super) fn identity_alert(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::UnknownCA => Some("it does not trust our key or its issuer (is it trusted over there?)"),
        AlertDescription::CertificateExpired => Some("our certificate has expired or is not valid yet there"),
        AlertDescription::CertificateRevoked => Some("our certificate was revoked"),
        AlertDescription::AccessDenied => Some("our certificate is in order but we are not a configured peer there"),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => Some("it could not judge our certificate"),
        AlertDescription::CertificateRequired => Some("it got no certificate from us"),
        _ => None,
    }
}

/// What a TLS failure on a TCP connection means.
pub(super) fn tls_error(peer: &str, refusal: Option<Refusal>, error: &rustls::Error) -> NetError {
    let peer = peer.to_owned();
    match error {
        rustls::Error::AlertReceived(alert) => match identity_alert(*alert) {
            Some(why) => NetError::Identity { peer, by: End::Peer, why: why.to_owned() },
            None => NetError::Tls { peer, detail: error.to_string() },
        },
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            let why = refusal.map_or_else(|| error.to_string(), |refusal| refusal.to_string());
            NetError::Identity { peer, by: End::Here, why }
        }
        _ => NetError::Tls { peer, detail: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::Fingerprint;
    use super::*;

    #[test]
    fn every_refusal_maps_to_an_alert_that_the_peer_understands_as_one() {
        let none = Fingerprint::NONE;
        for refusal in [
            Refusal::UnknownKey(none),
            Refusal::UnknownIssuer { fingerprint: none, detail: String::new() },
            Refusal::Expired(none),
            Refusal::NotYetValid(none),
            Refusal::UnknownName { names: Vec::new() },
            Refusal::Malformed(String::new()),
        ] {
            let alert = AlertDescription::from(CertificateError::from(&refusal));
            assert!(identity_alert(alert).is_some(), "{refusal} became {alert:?}");
        }
    }
}
