//! The identity folder: who we are and whom we trust.
//!
//! | file | holds |
//! |---|---|
//! | `identity.pem` | our private key and certificates; readable by its owner only |
//! | `certificate.pem` | our certificates alone, to hand out |
//! | `ca.pem` | the authority that vouches for peers, if there is one |
//! | `trusted` | the peers that we trust; see [`super::trust`] |

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::trust::{self, Proof, TrustError};
use crate::net::{AnyOf, Authority, Fingerprint, Identity, IdentityError, PeerName, PeerPolicy, Pinned, PrivateCa};

/// One identity folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    folder: PathBuf,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The trusted peers.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// There is no identity yet.
    #[error("there is no identity in {}; make one with 'ccat-xfer cert new'", .folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// Nobody is trusted, so nobody could be talked to.
    #[error("no peer is trusted in {}; add one with 'ccat-xfer cert trust'", .folder.display())]
    NobodyTrusted {
        /// The folder.
        folder: PathBuf,
    },
    /// The authority's certificate.
    #[error("{} is not an authority's certificate: {reason}", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder.
    #[error("cannot {operation} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Keyring {
    /// The folder need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Our certificates, to hand out.
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("certificate.pem")
    }

    /// The files that decide who we are and whom we trust. Some need not exist.
    pub fn files(&self) -> [PathBuf; 3] {
        ["identity.pem", "ca.pem", trust::FILE_NAME].map(|name| self.folder.join(name))
    }

    /// Makes a self-signed identity; never replaces one.
    pub fn make(&self) -> Result<Identity, KeyringError> {
        let identity = Identity::throw_away()?;
        self.keep(&identity)?;
        Ok(identity)
    }

    /// Makes an identity that an authority vouches for, and keeps the authority's certificate beside it.
    pub fn make_issued(&self, authority: &Authority, name: &str, days: u32) -> Result<Identity, KeyringError> {
        let identity = authority.issue(name, days)?;
        self.keep(&identity)?;
        let path = self.folder.join("ca.pem");
        write_public(&path, &authority.certificate_pem())?;
        Ok(identity)
    }

    /// Our key and certificates.
    pub fn identity(&self) -> Result<Identity, KeyringError> {
        match Identity::load(&self.folder.join("identity.pem")) {
            Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(KeyringError::Missing { folder: self.folder.clone() })
            }
            other => Ok(other?),
        }
    }

    /// Judges peers by the trusted ones. Fails if there are none: nobody is trusted by mistake.
    pub fn policy(&self) -> Result<Arc<dyn PeerPolicy>, KeyringError> {
        let (mut keys, mut names) = (Vec::new(), Vec::new());
        for peer in trust::read(&self.folder)? {
            match peer.proof {
                Proof::Key(fingerprint) => keys.push((fingerprint, PeerName::new(peer.name))),
                Proof::Authority => names.push(peer.name),
            }
        }
        let mut policies: Vec<Arc<dyn PeerPolicy>> = Vec::new();
        if !keys.is_empty() {
            policies.push(Arc::new(Pinned::new(keys)));
        }
        if !names.is_empty() {
            let path = self.folder.join("ca.pem");
            let wrong = |reason: String| KeyringError::Authority { path: path.clone(), reason };
            let roots = CertificateDer::pem_file_iter(&path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| wrong(error.to_string()))?;
            policies.push(Arc::new(PrivateCa::new(&roots, names).map_err(|refusal| wrong(refusal.to_string()))?));
        }
        if policies.is_empty() {
            return Err(KeyringError::NobodyTrusted { folder: self.folder.clone() });
        }
        Ok(Arc::new(AnyOf(policies)))
    }

    fn keep(&self, identity: &Identity) -> Result<(), KeyringError> {
        self.make_folder()?;
        identity.save(&self.folder.join("identity.pem"))?;
        write_public(&self.certificate_file(), &identity.certificates_pem())
    }

    /// A folder that nobody else may list; an existing one is left as it is.
    pub fn make_folder(&self) -> Result<(), KeyringError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(|source| KeyringError::Io {
            operation: "make the folder",
            path: self.folder.clone(),
            source,
        })
    }
}

/// The fingerprint of the first certificate in a PEM file.
pub fn fingerprint_of(certificate: &Path) -> Result<Fingerprint, KeyringError> {
    let pem = fs::read(certificate).map_err(|source| KeyringError::Io {
        operation: "read the certificate",
        path: certificate.to_owned(),
        source,
    })?;
    let facts = crate::net::show(&pem, certificate)?;
    facts.first().map(|facts| facts.fingerprint).ok_or_else(|| KeyringError::Authority {
        path: certificate.to_owned(),
        reason: "it holds no certificate".into(),
    })
}

fn write_public(path: &Path, pem: &str) -> Result<(), KeyringError> {
    fs::write(path, pem).map_err(|source| KeyringError::Io { operation: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{trust::Trusted, *};

    #[test]
    fn pinned_peers_are_known_and_others_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let (us, them) = (Keyring::new(temp.path().join("us")), Keyring::new(temp.path().join("them")));
        assert!(matches!(us.identity(), Err(KeyringError::Missing { .. })));
        let made = us.make().unwrap();
        assert_eq!(us.identity().unwrap().fingerprint(), made.fingerprint());
        assert_eq!(fingerprint_of(&us.certificate_file()).unwrap(), made.fingerprint());
        assert!(matches!(us.make(), Err(KeyringError::Identity(IdentityError::Exists { .. }))));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(us.folder()), mode(&us.folder().join("identity.pem"))), (0o700, 0o600));

        assert!(matches!(us.policy(), Err(KeyringError::NobodyTrusted { .. })));
        let peer = them.make().unwrap();
        trust::add(us.folder(), &Trusted::new(&peer.fingerprint().to_string(), "them").unwrap()).unwrap();
        let policy = us.policy().unwrap();
        assert_eq!(policy.judge(peer.chain()).unwrap(), PeerName::new("them"));
        assert!(policy.judge(made.chain()).is_err());
    }

    #[test]
    fn an_authority_vouches_for_named_peers_only() {
        let temp = tempfile::tempdir().unwrap();
        let authority = Authority::make("sites", 10).unwrap();
        let us = Keyring::new(temp.path().join("us"));
        us.make_issued(&authority, "us", 10).unwrap();
        trust::add(us.folder(), &Trusted::new("ca", "cologne").unwrap()).unwrap();
        let policy = us.policy().unwrap();
        assert_eq!(policy.judge(authority.issue("cologne", 10).unwrap().chain()).unwrap(), PeerName::new("cologne"));
        assert!(policy.judge(authority.issue("chile", 10).unwrap().chain()).is_err());
        let other = Authority::make("sites", 10).unwrap();
        assert!(policy.judge(other.issue("cologne", 10).unwrap().chain()).is_err());
        fs::remove_file(us.folder().join("ca.pem")).unwrap();
        assert!(matches!(us.policy(), Err(KeyringError::Authority { .. })));
    }
}
