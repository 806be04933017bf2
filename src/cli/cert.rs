//! `cert`: keys, certificates and trusted peers.

use std::{path::Path, sync::Arc};

use super::{
    args::{Cert, CertCommand},
    exit::Exit,
    human::Screen,
    need_identity,
};
use crate::{
    config::Settings,
    endpoint::{
        keyring::{Keyring, KeyringError, fingerprint_of},
        trust::{self, TrustError, Trusted},
    },
    engine::{FailureClass, JobError},
    net::{Authority, Fingerprint, FingerprintError, IdentityError, Pinned},
    reach::Credentials,
};

pub(super) fn cert(args: &Cert, settings: &Settings, screen: &Screen) -> Result<Exit, JobError> {
    let text = match &args.command {
        CertCommand::New { name, out } => {
            let keyring = Keyring::new(match out {
                Some(out) => out,
                None => need_identity(settings)?,
            });
            let name = match name {
                Some(name) => name.clone(),
                None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            };
            let identity = keyring.make().map_err(|e| failure(&e))?;
            made(&keyring, identity.fingerprint(), &name)
        }
        CertCommand::Show { dir } => show(&Keyring::new(match dir {
            Some(dir) => dir,
            None => need_identity(settings)?,
        }))?,
        CertCommand::Trust { peer, name } => {
            let folder = need_identity(settings)?;
            let proof = if Path::new(peer).is_file() {
                fingerprint_of(Path::new(peer)).map_err(|e| failure(&e))?.to_string()
            } else {
                peer.clone()
            };
            let peer = Trusted::new(&proof, name).map_err(|e| trust_failure(&e))?;
            match trust::add(folder, &peer).map_err(|e| trust_failure(&e))? {
                true => format!("trusted now: {peer}\n"),
                false => format!("trusted already: {peer}\n"),
            }
        }
        CertCommand::Ca { dir, name, days } => {
            let authority = Authority::make(name, *days).map_err(|e| failure(&e.into()))?;
            // Readable to its owner alone, the key above all.
            Keyring::new(dir).make_folder().map_err(|e| failure(&e))?;
            authority.save(&dir.join("ca.pem"), &dir.join("ca-key.pem")).map_err(|e| failure(&e.into()))?;
            format!(
                "made the authority '{name}' in {}; its key stays there, and each site gets ca.pem\n",
                dir.display()
            )
        }
        CertCommand::Issue { name, ca, out, days } => {
            let authority =
                Authority::load(&ca.join("ca.pem"), &ca.join("ca-key.pem")).map_err(|e| failure(&e.into()))?;
            let keyring = Keyring::new(out);
            let identity = keyring.make_issued(&authority, name, *days).map_err(|e| failure(&e))?;
            format!(
                "issued {name}'s identity in {}, valid for {days} days\nfingerprint: {}\non each peer: ccat-xfer cert trust ca {name}\n",
                keyring.folder().display(),
                identity.fingerprint()
            )
        }
    };
    screen.print(&text);
    Ok(Exit::Success)
}

/// Who we are to an endpoint, and whom we trust there: the one key that was named, or any peer that we trust.
pub(super) fn credentials(settings: &Settings, peer: Option<&str>) -> Result<Credentials, JobError> {
    let keyring = Keyring::new(need_identity(settings)?);
    let identity = keyring.identity().map_err(|e| failure(&e))?;
    let policy = match peer {
        Some(text) => {
            let usage = |e: FingerprintError| JobError::new(FailureClass::Usage, format!("--peer-fingerprint: {e}"));
            Arc::new(Pinned::only(text.parse().map_err(usage)?))
        }
        None => keyring.policy().map_err(|e| failure(&e))?,
    };
    Ok(Credentials { identity, policy })
}

fn made(keyring: &Keyring, fingerprint: Fingerprint, name: &str) -> String {
    format!(
        "made an identity in {}\nfingerprint: {fingerprint}\non each peer: ccat-xfer cert trust {fingerprint} {name}\n",
        keyring.folder().display()
    )
}

fn show(keyring: &Keyring) -> Result<String, JobError> {
    let mut text = match keyring.identity() {
        Ok(identity) => {
            format!("us: {}\n    hand out {}\n", identity.fingerprint(), keyring.certificate_file().display())
        }
        Err(missing @ KeyringError::Missing { .. }) => format!("us: {missing}\n"),
        Err(error) => return Err(failure(&error)),
    };
    let peers = trust::read(keyring.folder()).map_err(|e| trust_failure(&e))?;
    if peers.is_empty() {
        text.push_str("trusted peers: none\n");
    } else {
        text.push_str("trusted peers:\n");
        for peer in peers {
            text.push_str(&format!("  {peer}\n"));
        }
    }
    Ok(text)
}

fn failure(error: &KeyringError) -> JobError {
    let class = match error {
        KeyringError::Trust(error) => return trust_failure(error),
        KeyringError::Identity(IdentityError::Exists { .. }) => FailureClass::Usage,
        _ => FailureClass::Identity,
    };
    JobError::new(class, error.to_string())
}

fn trust_failure(error: &TrustError) -> JobError {
    let class = match error {
        TrustError::Word { .. } | TrustError::OtherName { .. } => FailureClass::Usage,
        _ => FailureClass::Identity,
    };
    JobError::new(class, error.to_string())
}
