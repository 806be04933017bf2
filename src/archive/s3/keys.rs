use crate::{
    archive::Package,
    chunk::{Digest, RelPath},
};

/// Where one package's objects lie. See the module's documentation for the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    base: String,
    sidecar: String,
}

impl Keys {
    pub(super) fn of(prefix: &str, package: &Package) -> Self {
        let digest = package.expected.hex();
        let path = &package.relative_path;
        // The longest addition is that of a tree's file by its digest.
        let base = fitting(path, &digest, MAX_KEY_BYTES - prefix.len() - PACKAGES.len() - 100, encode_path);
        let name = fitting(path, &digest, MAX_KEY_BYTES - prefix.len() - SIDECARS.len() - SIDECAR_END.len(), encode);
        Self { base: format!("{prefix}{PACKAGES}{base}"), sidecar: format!("{prefix}{SIDECARS}{name}{SIDECAR_END}") }
    }

    /// What all keys of the package begin with, those of its replacements too.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// The object of a file, or the folder of a tree, in one generation.
    pub(super) fn root(&self, generation: u32) -> String {
        match generation {
            0 => self.base.clone(),
            n => format!("{}.r{n}", self.base),
        }
    }

    /// The generation that a key or folder below [`Self::base`] is of.
    pub(super) fn generation(&self, key: &str) -> Option<u32> {
        let rest = key.strip_prefix(&self.base)?;
        let rest = rest.split_once('/').map_or(rest, |(generation, _)| generation);
        match rest.strip_prefix(".r") {
            None => rest.is_empty().then_some(0),
            Some(number) => number.parse().ok().filter(|n: &u32| *n > 0 && n.to_string() == number),
        }
    }

    pub(super) fn sidecar(&self) -> &str {
        &self.sidecar
    }
}

/// The folder of a tree's files.
pub(super) fn files(root: &str) -> String {
    format!("{root}{FILES}")
}

/// A file of a tree.
pub(super) fn file(root: &str, path: &RelPath) -> String {
    let folder = files(root);
    let name = encode_path(path.as_bytes());
    // '@' is in no encoded path.
    let name = if folder.len() + name.len() > MAX_KEY_BYTES || name.split('/').any(|part| part.len() > MAX_PART_BYTES) {
        format!("@{}", Digest::of(path.as_bytes()))
    } else {
        name
    };
    folder + &name
}

/// What makes a tree whole.
pub(super) fn manifest(root: &str) -> String {
    format!("{root}/manifest")
}

/// What the keys of all packages begin with.
pub(super) fn packages(prefix: &str) -> String {
    format!("{prefix}{PACKAGES}")
}

/// The object or folder of the package that a key is of, in one generation; `None` for what has not the form of our keys.
pub(super) fn package_of<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    let rest = key.strip_prefix(prefix)?.strip_prefix(PACKAGES)?;
    let is_ours = |b: u8| b.is_ascii_alphanumeric() || b"-_.=/@".contains(&b);
    if !rest.bytes().all(is_ours) || rest.split('/').any(str::is_empty) {
        return None;
    }
    // A folder of that name may lie in the package's own path too.
    let folders = rest.match_indices(FILES).map(|(at, _)| &rest[..at]);
    folders.chain([rest]).find(|root| is_root(root))
}

/// As `PATH.DIGEST` is, or `PATH.DIGEST.rN`.
fn is_root(name: &str) -> bool {
    let is_number = |n: &str| n.parse().is_ok_and(|number: u32| number > 0 && number.to_string() == n);
    let base = name.rsplit_once(".r").filter(|(_, number)| is_number(number)).map_or(name, |(base, _)| base);
    let Some((path, digest)) = base.rsplit_once('.') else { return false };
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    !path.is_empty() && !path.ends_with('/') && digest.len() == 64 && digest.bytes().all(is_digit)
}

/// What the keys of all sidecars begin with.
pub(super) fn sidecars(prefix: &str) -> String {
    format!("{prefix}{SIDECARS}")
}

/// Whether a name may be one of a sidecar: it comes from callers, and must not lead elsewhere.
pub(super) fn is_sidecar(name: &str) -> bool {
    name.ends_with(SIDECAR_END) && !name.contains('/') && name.len() <= MAX_KEY_BYTES
}

fn fitting(path: &RelPath, digest: &str, room: usize, encode: fn(&[u8]) -> String) -> String {
    let name = format!("{}.{digest}", encode(path.as_bytes()));
    if name.len() <= room && name.split('/').all(|part| part.len() <= MAX_PART_BYTES) {
        return name;
    }
    format!("@{}.{digest}", Digest::of(path.as_bytes()))
}

/// Bytes as a part of a key that every store takes as it is: what is no letter, digit, '-', '_' or '.' becomes `=` and two
/// hexadecimal digits. Not `%`, which some stores decode once too often.
fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("={byte:02X}")),
        }
    }
    out
}

fn encode_path(bytes: &[u8]) -> String {
    bytes.split(|&b| b == b'/').map(encode).collect::<Vec<_>>().join("/")
}

const PACKAGES: &str = "packages/";
const FILES: &str = "/files/";
const SIDECARS: &str = "sidecars/";
const SIDECAR_END: &str = ".ccat.json";
/// S3's limit.
const MAX_KEY_BYTES: usize = 1024;
/// Stores that keep objects as files take no longer names.
const MAX_PART_BYTES: usize = 255;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::{Algorithm, PackageDigest, PackageKind};

    fn package(path: &[u8]) -> Package {
        Package {
            kind: PackageKind::File,
            relative_path: RelPath::new(path).unwrap(),
            size_bytes: 1,
            file_count: 1,
            expected: PackageDigest { algorithm: Algorithm::Blake3, value: [0xab; 32] },
        }
    }

    #[test]
    fn a_key_is_the_path_and_the_digest() {
        let keys = Keys::of("raw/", &package(b"2026-11-22/scan 1.fits"));
        let digest = "ab".repeat(32);
        assert_eq!(keys.root(0), format!("raw/packages/2026-11-22/scan=201.fits.{digest}"));
        assert_eq!(keys.root(2), format!("raw/packages/2026-11-22/scan=201.fits.{digest}.r2"));
        assert_eq!(keys.sidecar(), format!("raw/sidecars/2026-11-22=2Fscan=201.fits.{digest}.ccat.json"));
        for (key, generation) in [
            ("", Some(0)),
            ("/", Some(0)),
            ("/files/a", Some(0)),
            (".r3", Some(3)),
            (".r3/manifest", Some(3)),
            (".r03", None),
            (".r0", None),
            ("x", None),
        ] {
            assert_eq!(keys.generation(&format!("{}{key}", keys.base())), generation, "{key}");
        }
    }

    #[test]
    fn keys_of_packages_are_told_from_others() {
        let long = [vec![b'x'; 200], vec![b'/'], vec![b'y'; 200]].concat();
        let paths: [&[u8]; 5] = [b"a", b"a b/files/c", b"x/manifest", b"\xff.r1", &long];
        for (path, generation) in paths.into_iter().flat_map(|path| [(path, 0), (path, 7)]) {
            let root = Keys::of("raw/", &package(path)).root(generation);
            let inside = file(&root, &RelPath::new(&b"t/files/z"[..]).unwrap());
            for key in [&root, &inside] {
                assert_eq!(package_of("raw/", key), root.strip_prefix("raw/packages/"), "{key}");
                assert_eq!(package_of("", key), None, "{key} has another prefix");
            }
        }
        let digest = "ab".repeat(32);
        let others = [
            "raw/packages/another".to_owned(),
            "raw/packages/".to_owned(),
            format!("raw/sidecars/a.{digest}"),
            format!("raw/packages/.{digest}"),
            format!("raw/packages/a/.{digest}"),
            format!("raw/packages/a.{digest}0"),
            format!("raw/packages/a.{}", digest.to_uppercase()),
            format!("raw/packages/a.{digest}.r0"),
            format!("raw/packages/a.{digest}/manifest/x"),
            format!("raw/packages/a b.{digest}"),
            format!("raw/packages//a.{digest}"),
        ];
        for key in others {
            assert_eq!(package_of("raw/", &key), None, "{key}");
        }
    }

    #[test]
    fn every_path_has_a_key_of_its_own_that_fits() {
        let long = [vec![b'x'; 200], vec![b'/'], vec![b'y'; 200]].concat();
        let mut longest = Vec::new();
        while longest.len() < 3800 {
            longest.extend_from_slice(&[0xff; 100]);
            longest.push(b'/');
        }
        longest.push(b'z');
        let other = [&longest[..longest.len() - 1], b"w"].concat();
        let paths: [&[u8]; 11] =
            [b"a", b"a=20", b"a b", b"a/b", b"a=2Fb", b"@a", b"\xff", &long, &longest, &other, &[b'n'; 255]];
        let (mut seen, prefix) = (HashSet::new(), format!("{}/", "p".repeat(255)));
        for path in paths {
            let keys = Keys::of(&prefix, &package(path));
            let file = file(&keys.root(u32::MAX), &RelPath::new(path).unwrap());
            for key in [keys.root(u32::MAX), keys.sidecar().to_owned(), file, manifest(&keys.root(u32::MAX))] {
                assert!(key.len() <= 1024, "{} bytes: {key}", key.len());
                assert!(seen.insert(key.clone()), "twice: {key}");
            }
            assert!(is_sidecar(keys.sidecar().rsplit('/').next().unwrap()));
        }
        assert!(!is_sidecar("../x.ccat.json"));
    }
}
