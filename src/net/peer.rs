//! How a peer is named, and why one is turned away.

use std::fmt;
use std::str::FromStr;

use rustls::CertificateError;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use subtle::ConstantTimeEq;
use thiserror::Error;

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER): the name of a key, whatever certificate carries it.
///
/// `openssl x509 -in cert.pem -noout -pubkey | openssl pkey -pubin -outform der | sha256sum` prints the same.
#[derive(Clone, Copy, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Stands where nobody showed a key: the peer on a byte stream. No certificate has it.
    pub const NONE: Self = Self([0; 32]);

    /// The fingerprint of a certificate's key.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if these bytes are no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let parsed = ParsedCertificate::try_from(certificate).map_err(|error| Refusal::Malformed(error.to_string()))?;
        Ok(Self::of_spki(parsed.subject_public_key_info().as_ref()))
    }

    pub(super) fn of_spki(spki: &[u8]) -> Self {
        let mut hash = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
            .tls13()
            .expect("invariant: this is a TLS 1.3 suite")
            .common
            .hash_provider
            .start();
        hash.update(spki);
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(hash.finish().as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// The bytes themselves.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Fingerprint {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for Fingerprint {
    /// In constant time: an attacker must not learn by trying how much of a fingerprint is right.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::hash::Hash for Fingerprint {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{text}' is no fingerprint: 64 hexadecimal digits are wanted, as `ccat-xfer cert show` prints them")]
pub struct FingerprintError {
    /// What was read, shortened.
    text: String,
}

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Takes 64 hexadecimal digits, with or without `sha256:` before and colons between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || FingerprintError { text: text.chars().take(80).collect() };
        let trimmed = text.trim();
        let digits = trimmed.strip_prefix("sha256:").unwrap_or(trimmed);
        let mut nibbles =
            digits.chars().filter(|&c| c != ':').map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()));
        let mut bytes = [0; 32];
        for byte in &mut bytes {
            let high = nibbles.next().flatten().ok_or_else(error)?;
            let low = nibbles.next().flatten().ok_or_else(error)?;
            *byte = high << 4 | low;
        }
        if nibbles.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

/// What a policy calls a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName(String);

impl PeerName {
    /// Any text; it is for settings, logs and rights.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a policy does not accept a peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nobody with this key is known.
    #[error("its key {0} is not among the trusted ones (`ccat-xfer cert trust` adds a key)")]
    UnknownKey(Fingerprint),
    /// The certificate was not issued by a trusted authority.
    #[error("its certificate (key {fingerprint}) was not issued by the trusted authority: {detail}")]
    UnknownIssuer {
        /// Of the key shown.
        fingerprint: Fingerprint,
        /// What the check said.
        detail: String,
    },
    /// The certificate was valid once.
    #[error("its certificate (key {0}) has expired: issue a new one, and check both clocks")]
    Expired(Fingerprint),
    /// The certificate will be valid.
    #[error("its certificate (key {0}) is not valid yet: check both clocks")]
    NotYetValid(Fingerprint),
    /// Issued by the trusted authority, but to somebody else.
    #[error("its certificate is in order but names {names:?}, and none of these is a configured peer")]
    UnknownName {
        /// What the certificate says.
        names: Vec<String>,
    },
    /// Not a certificate that can be judged.
    #[error("what it showed cannot be read as a certificate: {0}")]
    Malformed(String),
}

impl From<&Refusal> for CertificateError {
    /// Chooses the alert that the peer gets to see.
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownKey(_) | Refusal::UnknownIssuer { .. } => Self::UnknownIssuer,
            Refusal::Expired(_) => Self::Expired,
            Refusal::NotYetValid(_) => Self::NotValidYet,
            Refusal::UnknownName { .. } => Self::ApplicationVerificationFailure,
            Refusal::Malformed(_) => Self::BadEncoding,
        }
    }
}

/// Decides who a certificate chain makes of its holder. That the holder has the key is checked elsewhere.
pub trait PeerPolicy: Send + Sync + fmt::Debug {
    /// The peer's name, or why it is turned away. `chain` has at least one certificate, the peer's own first; its bytes are
    /// hostile.
    ///
    /// # Errors
    /// The refusal.
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<PeerName, Refusal>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_survives_its_text_and_refuses_others() {
        let fingerprint = Fingerprint::of_spki(b"abc");
        assert_eq!(fingerprint.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        let with_colons = fingerprint.to_string().replace("ba78", "BA:78:");
        assert_eq!(with_colons.parse(), Ok(fingerprint));
        for text in ["", "sha256:", "ba78", &format!("{fingerprint}0"), &"g".repeat(64), &"ä".repeat(64)] {
            assert!(text.parse::<Fingerprint>().is_err(), "{text}");
        }
    }
}
