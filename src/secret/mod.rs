//! Passwords and tokens: read from files that nobody else can read, and never shown.
//!
//! A secret reaches the process by a file or by its environment, never by an argument (every user of a machine sees the
//! arguments of every process) and never by an address that may be logged.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use subtle::ConstantTimeEq as _;

/// Longest secret that is read, in bytes.
const MAX_SECRET_BYTES: u64 = 4096;

/// Text that must not be seen. Its `Debug` shows nothing of it and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret that came from elsewhere, such as the environment.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Reads a file and drops the line ends behind the secret.
    ///
    /// # Errors
    /// The file cannot be read, others than its owner may read it, or it holds no usable text.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let unreadable = |source| SecretError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        // Asked of the open file, not of the path: what was judged is what is read.
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode });
        }
        let mut bytes = Vec::new();
        file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let unusable = |why| SecretError::Unusable { path: path.to_owned(), why };
        if bytes.len() as u64 > MAX_SECRET_BYTES {
            return Err(unusable("it is longer than 4096 bytes"));
        }
        let text = String::from_utf8(bytes).map_err(|_| unusable("it is not UTF-8"))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(unusable("it is empty"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself, for whoever must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `offered` is this secret, in a time that does not depend on where the two differ.
    pub fn matches(&self, offered: &[u8]) -> bool {
        // Digests have one length, so that not even the secret's length shows.
        let (ours, theirs) = (blake3::hash(self.0.as_bytes()), blake3::hash(offered));
        ours.as_bytes().ct_eq(theirs.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a file gave no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system refused.
    #[error("cannot read the secret in {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "{} can be read by others than its owner (mode {mode:03o}); run: chmod 600 {}",
        .path.display(),
        .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds no usable text.
    #[error("{} holds no secret: {why}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn file(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn a_private_file_is_read_without_its_line_end() {
        let (_folder, path) = file(b"pass word\r\n", 0o600);
        let secret = Secret::from_file(&path).unwrap();
        assert_eq!(secret.expose(), "pass word");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret.matches(b"pass word"));
        for wrong in [&b""[..], b"pass", b"pass wore", b"pass word\n"] {
            assert!(!secret.matches(wrong));
        }
    }

    #[test]
    fn an_open_file_is_refused() {
        for mode in [0o640, 0o604, 0o644, 0o620] {
            let (_folder, path) = file(b"x", mode);
            assert!(matches!(Secret::from_file(&path), Err(SecretError::Exposed { mode: m, .. }) if m == mode));
        }
    }

    #[test]
    fn a_file_without_a_secret_is_refused() {
        for text in [&b""[..], b"\n\n", b"\xff", &[b'x'; 4097]] {
            let (_folder, path) = file(text, 0o600);
            assert!(matches!(Secret::from_file(&path), Err(SecretError::Unusable { .. })));
        }
        assert!(matches!(Secret::from_file(Path::new("/nowhere/at/all")), Err(SecretError::Io { .. })));
    }
}
