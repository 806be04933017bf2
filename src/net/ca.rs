//! A private authority: makes the certificates of a group of sites, and shows what is in one.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{
    Identity, IdentityError, certificates_of, leaf_params, pem_block, read_private, read_public, write_new,
};
use super::peer::Fingerprint;
use super::policy::names;

/// New certificates are valid from a little before they are made, for peers whose clocks are slow.
const CLOCK_LEEWAY: Duration = Duration::from_secs(3600);

const DAY: Duration = Duration::from_secs(86_400);

/// A private certificate authority: a key that vouches for names.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority of that name, valid for so many days.
    ///
    /// # Errors
    /// [`IdentityError::Make`].
    pub fn make(name: &str, days: u32) -> Result<Self, IdentityError> {
        let make = |error: rcgen::Error| IdentityError::Make { what: "an authority", detail: error.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        // It vouches for peers, never for other authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let (from, until) = dates(days);
        (params.not_before, params.not_after) = (from.into(), until.into());
        let certificate = params.self_signed(&key).map_err(make)?.der().clone();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads certificate and key from two PEM files; the key's must be closed to others.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let content = |path: &Path, problem: String| IdentityError::Content { path: path.to_owned(), problem };
        let key_pem = read_private(key)?;
        let key_text = std::str::from_utf8(&key_pem).map_err(|error| content(key, error.to_string()))?;
        let pair = KeyPair::from_pem(key_text).map_err(|error| content(key, format!("no usable key ({error})")))?;
        let own = certificates_of(&read_public(certificate)?, certificate)?.swap_remove(0);
        // Checks that they belong together.
        Identity::from_parts(vec![own.clone()], PrivateKeyDer::Pkcs8(pair.serialize_der().into()))
            .map_err(|problem| content(certificate, problem))?;
        let issuer = Issuer::from_ca_cert_der(&own, pair).map_err(|error| content(certificate, error.to_string()))?;
        Ok(Self { certificate: own, issuer })
    }

    /// Writes certificate and key to two new files; only the owner may read the key's.
    ///
    /// # Errors
    /// [`IdentityError::Exists`], [`IdentityError::Io`].
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), IdentityError> {
        write_new(key, &pem_block("PRIVATE KEY", &self.issuer.key().serialize_der()), 0o600)?;
        write_new(certificate, &pem_block("CERTIFICATE", &self.certificate), 0o644)
    }

    /// What peers are told to trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The same as PEM.
    pub fn certificate_pem(&self) -> String {
        pem_block("CERTIFICATE", &self.certificate)
    }

    /// A new key, and a certificate that vouches that it is `name`'s for so many days.
    ///
    /// # Errors
    /// [`IdentityError::Make`], for instance if the name has characters that a certificate cannot carry.
    pub fn issue(&self, name: &str, days: u32) -> Result<Identity, IdentityError> {
        let (from, until) = dates(days);
        self.issue_between(name, from, until)
    }

    pub(super) fn issue_between(
        &self,
        name: &str,
        from: SystemTime,
        until: SystemTime,
    ) -> Result<Identity, IdentityError> {
        let make = |error: rcgen::Error| IdentityError::Make { what: "a certificate", detail: error.to_string() };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = leaf_params(name).map_err(make)?;
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (from.into(), until.into());
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        Identity::from_parts(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .map_err(|problem| IdentityError::Make { what: "a certificate", detail: problem })
    }
}

fn dates(days: u32) -> (SystemTime, SystemTime) {
    let now = SystemTime::now();
    (now - CLOCK_LEEWAY, now + DAY * days)
}

/// What a certificate says, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it is about.
    pub subject: String,
    /// Who vouches.
    pub issuer: String,
    /// DNS names; what a private authority's peers are known by.
    pub names: Vec<String>,
    /// Of its key.
    pub fingerprint: Fingerprint,
    /// First valid second, since the epoch.
    pub not_before_s: i64,
    /// Last valid second, since the epoch.
    pub not_after_s: i64,
    /// Validity for people: from, to.
    pub validity: (String, String),
    /// Whether it may vouch for others.
    pub authority: bool,
}

/// The certificates in a PEM text, in their order.
///
/// # Errors
/// [`IdentityError::Content`]; `path` is named in it.
pub fn show(pem: &[u8], path: &Path) -> Result<Vec<CertificateFacts>, IdentityError> {
    let content = |problem: String| IdentityError::Content { path: path.to_owned(), problem };
    certificates_of(pem, path)?
        .iter()
        .map(|certificate| {
            let (_, parsed) = X509Certificate::from_der(certificate.as_ref())
                .map_err(|error| content(format!("a damaged certificate ({error})")))?;
            let validity = parsed.validity();
            Ok(CertificateFacts {
                subject: parsed.subject().to_string(),
                issuer: parsed.issuer().to_string(),
                names: names(certificate).map_err(|refusal| content(refusal.to_string()))?,
                fingerprint: Fingerprint::of_spki(parsed.public_key().raw),
                not_before_s: validity.not_before.timestamp(),
                not_after_s: validity.not_after.timestamp(),
                validity: (validity.not_before.to_string(), validity.not_after.to_string()),
                authority: parsed.is_ca(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_kept_and_still_vouches() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
        let made = Authority::make("CCAT development", 30).unwrap();
        made.save(&certificate, &key).unwrap();
        let found = Authority::load(&certificate, &key).unwrap();
        assert_eq!(found.certificate(), made.certificate());
        let leaf = found.issue("cologne", 3).unwrap();

        let facts = show(leaf.certificates_pem().as_bytes(), Path::new("-")).unwrap();
        let [facts] = facts.as_slice() else { panic!("one certificate") };
        assert_eq!(facts.names, ["cologne"]);
        assert_eq!(facts.subject, "CN=cologne");
        assert_eq!(facts.issuer, "CN=CCAT development");
        assert_eq!(facts.fingerprint, leaf.fingerprint());
        assert!(!facts.authority);
        let lifetime = facts.not_after_s - facts.not_before_s;
        assert_eq!(lifetime, 3 * 86_400 + 3600);

        let own = show(&std::fs::read(&certificate).unwrap(), &certificate).unwrap();
        assert!(own[0].authority);
        assert!(matches!(made.save(&certificate, &key), Err(IdentityError::Exists { .. })));
    }

    #[test]
    fn what_is_not_an_authority_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("ca.pem"), folder.path().join("ca.key"));
        let (one, two) = (Authority::make("a", 1).unwrap(), Authority::make("b", 1).unwrap());
        one.save(&certificate, &key).unwrap();
        let (certificate_2, key_2) = (folder.path().join("ca2.pem"), folder.path().join("ca2.key"));
        two.save(&certificate_2, &key_2).unwrap();
        assert!(matches!(Authority::load(&certificate, &key_2), Err(IdentityError::Content { .. })));
        assert!(matches!(Authority::load(&key, &key), Err(IdentityError::Content { .. })));
        assert!(show(b"nothing", Path::new("-")).is_err());
        assert!(one.issue("käse", 1).is_err());
    }
}
