//! Under which names a package rests.

use super::{ArchiveError, Package};
use crate::{chunk::Digest, model::ErrorClass};

/// What the name of a sidecar ends in.
pub(super) const SIDECAR_SUFFIX: &str = ".ccat.json";
/// What is only an archive's own is named so: `NAME.ccat.SOMETHING`.
const OWN_MARK: &[u8] = b".ccat.";
/// Longest part of a package's name that goes into an archive's own names, so that none of these exceeds 255 bytes.
const STEM_BYTES: usize = 180;

/// Where a package rests: a folder of its own, chosen by its digest and its path, and a name in it.
///
/// The folder is `ab/cd/DIGEST-PATH`: DIGEST is the package's in 64 hexadecimal digits, `ab` and `cd` are the first four of
/// them, and PATH is the first 16 digits of the BLAKE3 hash of its path. So a folder has one package, equal bytes at two
/// paths are two packages, and other bytes at one path lie beside each other.
///
/// The name is the package's own. One that holds `.ccat.`, which marks what is the archive's own, is cut to 180 bytes and
/// gets `.package` behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// `ab/cd/DIGEST-PATH`.
    pub(super) folder: String,
    /// The name in it.
    pub(super) name: Vec<u8>,
    /// The package's own name, which it has again when it is copied out.
    pub(super) own_name: Vec<u8>,
}

impl Key {
    /// Where `package` rests.
    pub(super) fn of(package: &Package) -> Result<Self, ArchiveError> {
        let Some((_, own_name)) = package.relative_path.split_last() else {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                "a package is the root of its location and has no name to rest under; register what lies in it",
            ));
        };
        let digest = package.expected.hex();
        let path = Digest::of(package.relative_path.as_bytes()).to_string();
        let folder = format!("{}/{}/{digest}-{}", &digest[..2], &digest[2..4], &path[..16]);
        let name = if own_name.windows(OWN_MARK.len()).any(|w| w == OWN_MARK) {
            [stem(own_name), b".package"].concat()
        } else {
            own_name.to_vec()
        };
        Ok(Self { folder, name, own_name: own_name.to_vec() })
    }

    /// A name of the archive's own beside the package: `NAME.ccat.WHAT`, of a long NAME its first 180 bytes.
    pub(super) fn beside(&self, what: &str) -> Vec<u8> {
        [stem(&self.name), OWN_MARK, what.as_bytes()].concat()
    }

    /// The name of the sidecar.
    pub(super) fn sidecar(&self) -> Vec<u8> {
        [stem(&self.name), SIDECAR_SUFFIX.as_bytes()].concat()
    }
}

fn stem(name: &[u8]) -> &[u8] {
    &name[..name.len().min(STEM_BYTES)]
}

/// Whether a name in a package's folder is that of its sidecar.
pub(super) fn is_sidecar(name: &[u8]) -> bool {
    name.ends_with(SIDECAR_SUFFIX.as_bytes())
}

/// Bytes of a name as text that any system takes and [`unescape`] reads again: letters, digits and `._-+=@` stay, every
/// other byte becomes `%` and two hexadecimal digits.
pub(super) fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"._-+=@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

/// The bytes that [`escape`] made this text of; `None` if it made no such text.
pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = behind;
            continue;
        }
        let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &behind[2..];
    }
    (escape(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chunk::RelPath,
        model::{Algorithm, PackageDigest, PackageKind},
    };

    fn package(path: &[u8]) -> Package {
        Package {
            kind: PackageKind::File,
            relative_path: RelPath::new(path).unwrap(),
            size_bytes: 0,
            file_count: 1,
            expected: PackageDigest { algorithm: Algorithm::Blake3, value: [0xab; 32] },
        }
    }

    #[test]
    fn equal_bytes_at_two_paths_rest_in_two_folders() {
        let (one, other) = (Key::of(&package(b"a/x")).unwrap(), Key::of(&package(b"b/x")).unwrap());
        assert!(one.folder.starts_with("ab/ab/abab"));
        assert_ne!(one.folder, other.folder);
        assert_eq!(one.name, b"x");
    }

    #[test]
    fn no_package_is_taken_for_a_sidecar() {
        for name in [&b"x.ccat.json"[..], b".ccat.json", b"a.ccat.modes"] {
            let key = Key::of(&package(name)).unwrap();
            assert!(!is_sidecar(&key.name), "{}", escape(&key.name));
            assert_eq!(key.own_name, name);
            assert!(is_sidecar(&key.sidecar()));
        }
    }

    #[test]
    fn own_names_stay_short() {
        let key = Key::of(&package(&[b'n'; 255])).unwrap();
        assert_eq!(key.name.len(), 255);
        assert!(key.sidecar().len() <= 200 && key.beside("corrupt").len() <= 200);
    }

    #[test]
    fn names_are_escaped_and_read_again() {
        for name in [&b"plain.dat"[..], b"-rf", b"new\nline", b"100%", b"\xff\xfe", b" ", b"%25"] {
            let text = escape(name);
            assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
            assert_eq!(unescape(&text).as_deref(), Some(name));
        }
        assert_eq!(unescape("%2"), None);
        assert_eq!(unescape("%41"), None, "no two texts for one name");
        assert_eq!(unescape("a/b"), None);
    }
}
