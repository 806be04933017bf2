use std::fmt;

use serde::{Deserialize, Serialize};

use super::vocabulary::words;
use crate::chunk::{Digest, DigestParseError};

words! {
    /// How a package's digest is computed.
    Algorithm, "a digest's algorithm" {
        /// BLAKE3 of a file's bytes; what `b3sum` prints.
        Blake3 = "blake3",
        /// The tree digest: over names, metadata and digests of all entries of a tree.
        Tree = "tree",
        /// SHA-256 of a file's bytes, for other programs.
        Sha256 = "sha256",
    }
}

/// A digest and what computed it. Every algorithm that is known makes 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackageDigest {
    /// What computed it.
    pub algorithm: Algorithm,
    /// The digest.
    #[serde(with = "hex")]
    pub value: [u8; 32],
}

impl PackageDigest {
    /// A digest given as 64 hexadecimal digits.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(algorithm: Algorithm, text: &str) -> Result<Self, DigestParseError> {
        text.parse::<Digest>().map(|digest| Self { algorithm, value: digest.0 })
    }

    /// The digits alone.
    pub fn hex(&self) -> String {
        Digest(self.value).to_string()
    }
}

impl fmt::Display for PackageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, Digest(self.value))
    }
}

impl fmt::Debug for PackageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::chunk::Digest;

    pub(in crate::model) fn serialize<S: Serializer>(value: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Digest(*value))
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<Digest>().map(|d| d.0).map_err(D::Error::custom)
    }
}
