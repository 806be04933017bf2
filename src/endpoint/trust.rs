//! The file of trusted peers, `trusted` in the identity folder.
//!
//! Plain text, one peer per line: fingerprint, white space, name. In place of a fingerprint `ca` means whom the authority
//! in `ca.pem` calls by that name. Empty lines and lines that begin with `#` mean nothing. A name may stand more than once
//! (a peer that changes its key has two lines for a while), a fingerprint only once. An update locks `trusted.lock` and replaces the file as a whole, so readers need no lock.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::net::Fingerprint;

/// The file's name in the identity folder.
pub const FILE_NAME: &str = "trusted";

/// One trusted peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// How it shows who it is.
    pub proof: Proof,
    /// What rights are given to.
    pub name: String,
}

/// How a peer shows who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By this key.
    Key(Fingerprint),
    /// By a certificate of the authority in `ca.pem`.
    Authority,
}

/// Why the file cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Reading failed.
    #[error("cannot read the trusted peers in {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write the trusted peers to {path}: {source}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line that is not a fingerprint and a name.
    #[error("{path}, line {line}: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// A name or fingerprint that cannot stand in the file.
    #[error("'{text}' {reason}")]
    Word {
        /// As given.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The fingerprint is there under another name.
    #[error("this peer is trusted already, as '{name}'; remove that line from {path} first")]
    OtherName {
        /// Which file.
        path: PathBuf,
        /// The name there.
        name: String,
    },
}

impl Trusted {
    /// A peer whose words can stand in the file.
    pub fn new(proof: &str, name: &str) -> Result<Self, TrustError> {
        let word = |text: &str, reason| Err(TrustError::Word { text: text.to_owned(), reason });
        let parsed = match proof {
            AUTHORITY => Proof::Authority,
            _ => match proof.parse::<Fingerprint>() {
                Ok(fingerprint) if fingerprint != Fingerprint::NONE => Proof::Key(fingerprint),
                _ => {
                    return word(
                        proof,
                        "is not a fingerprint; copy what 'ccat-xfer cert show' prints on the peer's machine",
                    );
                }
            },
        };
        if !is_name(name) {
            return word(name, "is not a name; use letters, digits, '.', '-' and '_', up to 64 of them");
        }
        Ok(Self { proof: parsed, name: name.to_owned() })
    }
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.proof {
            Proof::Key(fingerprint) => write!(f, "{fingerprint} {}", self.name),
            Proof::Authority => write!(f, "{AUTHORITY} {}", self.name),
        }
    }
}

/// The trusted peers of an identity folder; none if the file does not exist.
pub fn read(folder: &Path) -> Result<Vec<Trusted>, TrustError> {
    let path = folder.join(FILE_NAME);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(TrustError::Read { path, source }),
    }
}

/// Adds a peer. False if it is there already under this name.
pub fn add(folder: &Path, peer: &Trusted) -> Result<bool, TrustError> {
    let path = folder.join(FILE_NAME);
    let failed = |source| TrustError::Write { path: path.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    // Held until the end of this function; a lock on the file itself would be on an inode that the rename replaces.
    let lock = private(&folder.join("trusted.lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    for other in read(folder)? {
        if other == *peer {
            return Ok(false);
        }
        if other.proof == peer.proof && other.proof != Proof::Authority {
            return Err(TrustError::OtherName { path, name: other.name });
        }
    }
    let mut text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => HEADER.to_owned(),
        Err(source) => return Err(TrustError::Read { path, source }),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{peer}\n"));
    replace(folder, &path, text.as_bytes()).map_err(failed)?;
    Ok(true)
}

/// Replaces a file at once: after a power cut it is the old one or the new one.
fn replace(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join("trusted.new");
    let mut file = private(&temporary)?;
    file.set_len(0)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Trusted>, TrustError> {
    let mut peers: Vec<Trusted> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let malformed = |reason| TrustError::Malformed { path: path.to_owned(), line: number + 1, reason };
        let mut words = line.split_whitespace();
        let (Some(fingerprint), Some(name), None) = (words.next(), words.next(), words.next()) else {
            return Err(malformed("a line is a fingerprint and a name"));
        };
        let peer = Trusted::new(fingerprint, name).map_err(|_| malformed("not a fingerprint and a name"))?;
        if peer.proof != Proof::Authority && peers.iter().any(|other| other.proof == peer.proof) {
            return Err(malformed("this fingerprint stands twice"));
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (1..=64).contains(&text.len()) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed)
}

/// Stands in place of a fingerprint.
const AUTHORITY: &str = "ca";
const HEADER: &str = "# Peers that ccat-xfer trusts: a fingerprint and a name per line.\n";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn peer(number: u8, name: &str) -> Trusted {
        Trusted::new(&format!("{:02x}", number + 1).repeat(32), name).unwrap()
    }

    #[test]
    fn what_is_added_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("new");
        assert_eq!(read(&folder).unwrap(), []);
        assert!(add(&folder, &peer(1, "cologne")).unwrap());
        assert!(add(&folder, &peer(2, "cologne")).unwrap());
        assert!(!add(&folder, &peer(1, "cologne")).unwrap());
        assert!(
            matches!(add(&folder, &peer(1, "chile")), Err(TrustError::OtherName { name, .. }) if name == "cologne")
        );
        assert_eq!(read(&folder).unwrap(), [peer(1, "cologne"), peer(2, "cologne")]);
        assert_eq!(fs::metadata(folder.join(FILE_NAME)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_authority_may_vouch_for_several_names() {
        let temp = tempfile::tempdir().unwrap();
        let vouched = |name| Trusted::new("ca", name).unwrap();
        assert!(add(temp.path(), &vouched("a")).unwrap());
        assert!(add(temp.path(), &vouched("b")).unwrap());
        assert!(!add(temp.path(), &vouched("a")).unwrap());
        assert_eq!(read(temp.path()).unwrap(), [vouched("a"), vouched("b")]);
    }

    #[test]
    fn what_people_wrote_stays() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(FILE_NAME);
        fs::write(&path, format!("# mine\n\n  {}   a  ", "01".repeat(32))).unwrap();
        add(temp.path(), &peer(2, "b")).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("# mine\n\n  010"));
        assert_eq!(read(temp.path()).unwrap().len(), 2);
    }

    #[test]
    fn damaged_files_are_refused_with_their_line() {
        let good = "01".repeat(32);
        for bad in ["x", &format!("{good} two names"), &good, &format!("{good} n\n{good} m"), "short n"] {
            let error = parse(Path::new("f"), &format!("# c\n{bad}")).unwrap_err();
            assert!(matches!(error, TrustError::Malformed { line: 2 | 3, .. }), "{bad}: {error}");
        }
        let none = "0".repeat(64);
        for (fingerprint, name) in
            [("", "n"), (&none, "n"), ("ca", ""), (good.as_str(), ""), (&good, "a b"), (&good, "#x"), (&good, "n\n")]
        {
            assert!(Trusted::new(fingerprint, name).is_err(), "{name}");
        }
    }

    /// Two updates at once both last. Seen to fail without the lock.
    #[test]
    fn updates_do_not_lose_each_other() {
        let temp = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let folder = temp.path();
                scope.spawn(move || {
                    for number in 0..10 {
                        add(folder, &peer(thread * 10 + number, "n")).unwrap();
                    }
                });
            }
        });
        assert_eq!(read(temp.path()).unwrap().len(), 40);
    }
}
