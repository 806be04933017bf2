//! The two ways to know a peer: by its key, or by a name that a private authority vouches for.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::peer::{Fingerprint, PeerName, PeerPolicy, Refusal};
use super::tls::provider;

/// Accepts exactly the keys it was given. Validity dates are not judged: the key is the identity, and no clock can make it wrong.
#[derive(Clone, Debug, Default)]
pub struct Pinned {
    known: Vec<(Fingerprint, PeerName)>,
}

impl Pinned {
    /// The keys, each with the name of its holder.
    pub fn new(known: impl IntoIterator<Item = (Fingerprint, PeerName)>) -> Self {
        // The stand-in for "no key" must never be what a configuration error turns into an accepted one.
        Self { known: known.into_iter().filter(|(fingerprint, _)| *fingerprint != Fingerprint::NONE).collect() }
    }

    /// One key; its holder is called by its fingerprint.
    pub fn only(fingerprint: Fingerprint) -> Self {
        Self::new([(fingerprint, PeerName::new(fingerprint.to_string()))])
    }
}

impl PeerPolicy for Pinned {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<PeerName, Refusal> {
        let first = chain.first().ok_or_else(|| Refusal::Malformed("no certificate".to_owned()))?;
        let shown = Fingerprint::of(first)?;
        // Looks at all of them, so that time tells nothing about which one matched.
        let mut found = None;
        for (fingerprint, name) in &self.known {
            if *fingerprint == shown {
                found = Some(name);
            }
        }
        found.cloned().ok_or(Refusal::UnknownKey(shown))
    }
}

/// Accepts certificates that a private authority issued to one of the given names, within their validity dates.
///
/// Membership alone grants nothing: a valid certificate for a name that is not listed is refused.
#[derive(Clone, Debug)]
pub struct PrivateCa {
    roots: Arc<RootCertStore>,
    names: BTreeSet<String>,
}

impl PrivateCa {
    /// Trusts `roots` to vouch for `names`.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if a root is no certificate, or if there is none.
    pub fn new(roots: &[CertificateDer<'static>], names: impl IntoIterator<Item = String>) -> Result<Self, Refusal> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).map_err(|error| Refusal::Malformed(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(Refusal::Malformed("no authority's certificate was given".to_owned()));
        }
        Ok(Self { roots: Arc::new(store), names: names.into_iter().collect() })
    }

    fn judge_at(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<PeerName, Refusal> {
        let (first, rest) = chain.split_first().ok_or_else(|| Refusal::Malformed("no certificate".to_owned()))?;
        let fingerprint = Fingerprint::of(first)?;
        let parsed = ParsedCertificate::try_from(first).map_err(|error| Refusal::Malformed(error.to_string()))?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            rest,
            now,
            provider().signature_verification_algorithms.all,
        )
        .map_err(|error| refusal(fingerprint, &error))?;
        let names = names(first)?;
        match names.iter().find(|name| self.names.contains(*name)) {
            Some(name) => Ok(PeerName::new(name.clone())),
            None => Err(Refusal::UnknownName { names }),
        }
    }
}

impl PeerPolicy for PrivateCa {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<PeerName, Refusal> {
        self.judge_at(chain, UnixTime::now())
    }
}

/// Accepts whom one of several policies accepts; the first one that does gives the name.
#[derive(Clone, Debug, Default)]
pub struct AnyOf(pub Vec<Arc<dyn PeerPolicy>>);

impl PeerPolicy for AnyOf {
    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<PeerName, Refusal> {
        let mut refused = None;
        for policy in &self.0 {
            match policy.judge(chain) {
                Ok(name) => return Ok(name),
                // The last one is the most telling: an authority says what is wrong with the certificate.
                Err(refusal) => refused = Some(refusal),
            }
        }
        match (refused, chain.first()) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(first)) => Err(Refusal::UnknownKey(Fingerprint::of(first)?)),
            (None, None) => Err(Refusal::Malformed("no certificate".to_owned())),
        }
    }
}

/// The DNS names of a certificate's subject alternative names. The subject itself is not looked at.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Refusal> {
    let (_, parsed) =
        X509Certificate::from_der(certificate.as_ref()).map_err(|error| Refusal::Malformed(error.to_string()))?;
    let alternative = parsed.subject_alternative_name().map_err(|error| Refusal::Malformed(error.to_string()))?;
    Ok(alternative.map_or_else(Vec::new, |extension| {
        extension
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect()
    }))
}

fn refusal(fingerprint: Fingerprint, error: &rustls::Error) -> Refusal {
    use rustls::CertificateError as Why;
    match error {
        rustls::Error::InvalidCertificate(Why::Expired | Why::ExpiredContext { .. }) => Refusal::Expired(fingerprint),
        rustls::Error::InvalidCertificate(Why::NotValidYet | Why::NotValidYetContext { .. }) => {
            Refusal::NotYetValid(fingerprint)
        }
        other => Refusal::UnknownIssuer { fingerprint, detail: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::ca::Authority;
    use super::super::identity::Identity;
    use super::*;

    fn later(days: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * 86_400))
    }

    #[test]
    fn pinned_accepts_its_keys_only_and_names_their_holders() {
        let (known, other) = (Identity::throw_away().unwrap(), Identity::throw_away().unwrap());
        let policy = Pinned::new([(known.fingerprint(), PeerName::new("cologne"))]);
        assert_eq!(policy.judge(known.chain()), Ok(PeerName::new("cologne")));
        assert_eq!(policy.judge(other.chain()), Err(Refusal::UnknownKey(other.fingerprint())));
        assert!(matches!(policy.judge(&[]), Err(Refusal::Malformed(_))));
        assert!(matches!(policy.judge(&[vec![0x30; 40].into()]), Err(Refusal::Malformed(_))));
        // A known certificate behind an unknown one proves nothing: only the first one's key signs.
        let mixed = [other.chain(), known.chain()].concat();
        assert!(policy.judge(&mixed).is_err());
    }

    /// Seen to fail with the name check left out (any member of the authority was let in) and with the dates taken from
    /// the epoch instead of the clock.
    #[test]
    fn private_ca_judges_issuer_dates_and_name() {
        let (authority, stranger) = (Authority::make("ours", 30).unwrap(), Authority::make("ours", 30).unwrap());
        let policy = PrivateCa::new(&[authority.certificate().clone()], ["cologne".to_owned()]).unwrap();
        let leaf = authority.issue("cologne", 10).unwrap();
        assert_eq!(policy.judge(leaf.chain()), Ok(PeerName::new("cologne")));
        assert!(matches!(policy.judge_at(leaf.chain(), later(11)), Err(Refusal::Expired(_))));
        let past = UnixTime::since_unix_epoch(Duration::from_secs(1_000_000));
        assert!(matches!(policy.judge_at(leaf.chain(), past), Err(Refusal::NotYetValid(_))));
        let other = authority.issue("chile", 10).unwrap();
        assert_eq!(policy.judge(other.chain()), Err(Refusal::UnknownName { names: vec!["chile".to_owned()] }));
        let forged = stranger.issue("cologne", 10).unwrap();
        assert!(matches!(policy.judge(forged.chain()), Err(Refusal::UnknownIssuer { .. })));
        let own = Identity::throw_away().unwrap();
        assert!(matches!(policy.judge(own.chain()), Err(Refusal::UnknownIssuer { .. })));
        assert!(PrivateCa::new(&[], []).is_err());
    }

    #[test]
    fn any_of_takes_the_first_that_accepts() {
        let authority = Authority::make("ours", 30).unwrap();
        let (leaf, own) = (authority.issue("cologne", 10).unwrap(), Identity::throw_away().unwrap());
        let pinned = Pinned::new([(own.fingerprint(), PeerName::new("chile"))]);
        let ca = PrivateCa::new(&[authority.certificate().clone()], ["cologne".to_owned()]).unwrap();
        let policy = AnyOf(vec![Arc::new(pinned), Arc::new(ca)]);
        assert_eq!(policy.judge(leaf.chain()), Ok(PeerName::new("cologne")));
        assert_eq!(policy.judge(own.chain()), Ok(PeerName::new("chile")));
        assert!(policy.judge(Identity::throw_away().unwrap().chain()).is_err());
        assert!(AnyOf::default().judge(own.chain()).is_err());
    }
}
