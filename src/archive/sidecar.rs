//! The sidecar: what an archive says about a package by itself, if nothing else is left.
//!
//! One JSON file beside each package. Its envelope has the form's version and BLAKE3 of the bytes of `content`, exactly as
//! they stand in the file, so that a torn or changed one is known as such:
//!
//! ```json
//! { "ccat_xfer_sidecar": 1, "blake3": "<64 digits>", "content": { ... } }
//! ```
//!
//! `content` is a [`Sidecar`]. Moments are RFC 3339 in UTC with microseconds. Paths are bytes: `path_hex` is the path, and
//! `path` the same for people where it is UTF-8. Database numbers (`t12`) are names in the history, and bind nothing after
//! a rebuild. A reader takes at most [`MAX_BYTES`] and refuses a higher version than its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Metadata, ReadHow};
use crate::{
    chunk::{ChunkSize, ChunkValue, Digest, RelPath, RootBuilder},
    model::{CheckMethod, PackageDigest, PackageKind, Policy, StorageType, Timestamp, topology::Place},
};

/// Largest sidecar that is written or read.
pub const MAX_BYTES: usize = 16 << 20;
/// Most chunk values that are kept: those of 64 GiB in chunks of 4 MiB, a megabyte of digits.
pub const MOST_CHUNKS: u64 = 1 << 14;
const VERSION: u32 = 1;

/// All that is to be known about an archived package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sidecar {
    /// What it is.
    pub package: Described,
    /// Where this copy rests, `SITE/LOCATION`.
    #[serde(with = "spelled")]
    pub archive: Place,
    /// How it came here.
    pub provenance: Provenance,
    /// What was observed.
    pub metadata: Metadata,
    /// What was found when it was read back here; at least one is equal.
    pub verification: Vec<Verified>,
}

/// A package as it was registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Where it was registered, `SITE/LOCATION`.
    #[serde(with = "spelled")]
    pub origin: Place,
    /// Below its origin's root, for people; nothing if it is not UTF-8.
    pub path: Option<String>,
    /// The same as bytes.
    #[serde(with = "path_hex")]
    pub path_hex: RelPath,
    /// File or tree.
    pub kind: PackageKind,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Files in it.
    pub file_count: u64,
    /// What it must be; the first says it for its kind.
    pub digests: Vec<PackageDigest>,
    /// The values of its chunks.
    pub chunks: Chunks,
    /// When.
    #[serde(with = "moment")]
    pub registered_at: Timestamp,
    /// 0 to 9.
    pub priority: u8,
    /// Which archives it must reach.
    pub policy: Policy,
    /// The same by name, `SITE/LOCATION`.
    #[serde(with = "all_spelled")]
    pub required: Vec<Place>,
}

/// BLAKE3 chaining values of the chunks of a file: with them a damaged file says where it is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chunks {
    /// All of them, in order; they merge to the file's digest.
    Values {
        /// Bytes of each but the last.
        chunk_bytes: u64,
        /// 64 hexadecimal digits each.
        values: Vec<String>,
    },
    /// None, because of this.
    Omitted(String),
}

/// How a package came into an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The place that it was read from, `SITE/LOCATION`.
    #[serde(with = "spelled")]
    pub source: Place,
    /// What was found of it on its way, the first look first.
    pub steps: Vec<Step>,
    /// The archive transfer that put it here, as `a3`.
    pub work: String,
    /// Its fence.
    pub fence: u64,
    /// The worker that put it here.
    pub worker: String,
    /// The worker's machine.
    pub host: String,
    /// The program and its version.
    pub program: String,
    /// When the sidecar was written, after the read-back.
    #[serde(with = "moment")]
    pub written_at: Timestamp,
}

/// A look at a package on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Where it was, `SITE/LOCATION`.
    #[serde(with = "spelled")]
    pub at: Place,
    /// The transfer that brought it there, as `t12`; nothing for a look without one.
    pub work: Option<String>,
    /// How it was looked at.
    pub method: CheckMethod,
    /// What was found.
    pub found: PackageDigest,
    /// Whether that is what was registered.
    pub is_equal: bool,
    /// The machine that looked.
    pub host: String,
    /// When that ended.
    #[serde(with = "moment")]
    pub ended_at: Timestamp,
}

/// What a reading of the archive found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// As registered.
    pub expected: PackageDigest,
    /// As read.
    pub found: PackageDigest,
    /// As registered.
    pub expected_size_bytes: u64,
    /// As read.
    pub found_size_bytes: u64,
    /// What it was read from.
    pub medium: StorageType,
    /// How the bytes were had.
    pub how: ReadHow,
    /// Why nobody read them, where nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread_reason: Option<String>,
    /// The machine that read.
    pub host: String,
    /// The program's version there.
    pub version: String,
    /// When the reading began.
    #[serde(with = "moment")]
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(with = "moment")]
    pub ended_at: Timestamp,
}

impl Verified {
    /// Whether what was read is what was registered.
    pub fn is_equal(&self) -> bool {
        self.expected == self.found && self.expected_size_bytes == self.found_size_bytes
    }
}

/// Bytes that are no sidecar that this program understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SidecarError {
    /// Not all of it is there, or some of it is something else. The package beside it can still be verified and archived
    /// again, which writes a new one.
    #[error("the sidecar is torn or was changed: {0}; archive the package again to have a new one")]
    Torn(String),
    /// Its content is whole, and no content of this version.
    #[error("the sidecar is whole and is none: {0}")]
    Malformed(String),
    /// Written by a newer program.
    #[error("the sidecar has version {found}, and this program knows up to {VERSION}; use the newer program")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// More than any sidecar has.
    #[error("the sidecar has {0} bytes, and none has more than {MAX_BYTES}")]
    TooLarge(usize),
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "ccat_xfer_sidecar")]
    version: u32,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    blake3: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

impl Sidecar {
    /// As it is written.
    ///
    /// # Errors
    /// It would be larger than any may be.
    pub fn to_json(&self) -> Result<Vec<u8>, SidecarError> {
        let malformed = |e: serde_json::Error| SidecarError::Malformed(e.to_string());
        let content = serde_json::to_string_pretty(self).map_err(malformed)?;
        let digest = Digest::of(content.as_bytes());
        let text =
            format!("{{\n\"ccat_xfer_sidecar\": {VERSION},\n\"blake3\": \"{digest}\",\n\"content\": {content}\n}}\n");
        if text.len() > MAX_BYTES {
            return Err(SidecarError::TooLarge(text.len()));
        }
        Ok(text.into_bytes())
    }

    /// As it was written.
    ///
    /// # Errors
    /// It is torn, no sidecar, a newer program's, or larger than any.
    pub fn from_json(bytes: &[u8]) -> Result<Self, SidecarError> {
        if bytes.len() > MAX_BYTES {
            return Err(SidecarError::TooLarge(bytes.len()));
        }
        let torn = |e: serde_json::Error| SidecarError::Torn(e.to_string());
        // The version first: what a newer program wrote need not have the fields of this one.
        let Version { version: found } = serde_json::from_slice(bytes).map_err(torn)?;
        if found > VERSION {
            return Err(SidecarError::Newer { found });
        }
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(torn)?;
        let digest = Digest::of(envelope.content.get().as_bytes());
        if envelope.blake3.parse() != Ok(digest) {
            return Err(SidecarError::Torn(format!(
                "its content has digest {digest}, and {} is named",
                envelope.blake3
            )));
        }
        serde_json::from_str(envelope.content.get()).map_err(|e| SidecarError::Malformed(e.to_string()))
    }
}

/// Collects the values of a file's chunks while it is read, in any order.
#[derive(Debug)]
pub struct ChunkCollector {
    size: ChunkSize,
    file_len: u64,
    values: BTreeMap<u64, ChunkValue>,
}

impl ChunkCollector {
    /// For a file of so many bytes, in chunks of [`ChunkSize::DEFAULT`]. Nothing is allocated from that number.
    pub const fn new(file_len: u64) -> Self {
        Self { size: ChunkSize::DEFAULT, file_len, values: BTreeMap::new() }
    }

    /// The value of chunk `index`. A later one takes an earlier one's place: a reading that began anew is the one that counts.
    pub fn insert(&mut self, index: u64, value: ChunkValue) {
        if index < self.size.count(self.file_len).min(MOST_CHUNKS) {
            self.values.insert(index, value);
        }
    }

    /// What a sidecar says: all values, if they merge to this digest.
    pub fn finish(self, digest: &Digest) -> Chunks {
        let total = self.size.count(self.file_len);
        if total < 2 {
            return Chunks::Omitted("the file has one chunk, whose value is its digest".into());
        }
        if total > MOST_CHUNKS {
            return Chunks::Omitted(format!("the file has {total} chunks, and at most {MOST_CHUNKS} are named"));
        }
        let mut root = RootBuilder::new(self.size, self.file_len);
        for (index, value) in &self.values {
            root.insert(*index, *value);
        }
        match root.root() {
            Ok(root) if root == *digest => Chunks::Values {
                chunk_bytes: self.size.bytes(),
                values: self.values.values().map(|value| Digest(value.0).to_string()).collect(),
            },
            Ok(_) => Chunks::Omitted("the values that were seen do not merge to the digest".into()),
            Err(_) => Chunks::Omitted("the archive is not read by chunks".into()),
        }
    }
}

mod spelled {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::model::topology::Place;

    pub(super) fn serialize<S: Serializer>(place: &Place, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(place)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Place, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod all_spelled {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::model::topology::Place;

    pub(super) fn serialize<S: Serializer>(places: &[Place], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(places.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Place>, D::Error> {
        let all = Vec::<String>::deserialize(deserializer)?;
        all.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

mod moment {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _, ser::Error as _};

    use crate::model::Timestamp;

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        let time = DateTime::<Utc>::from_timestamp_micros(time.micros());
        let time = time.ok_or_else(|| S::Error::custom("a moment is beyond the calendar"))?;
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(D::Error::custom)?;
        Ok(Timestamp::from_micros(time.timestamp_micros()))
    }
}

mod path_hex {
    use std::fmt::Write as _;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::chunk::RelPath;

    pub(super) fn serialize<S: Serializer>(path: &RelPath, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * path.as_bytes().len());
        for b in path.as_bytes() {
            let _ = write!(text, "{b:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RelPath, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom("a path is an even number of hexadecimal digits");
        if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| wrong());
        let bytes = (0..text.len()).step_by(2).map(byte).collect::<Result<Vec<_>, _>>()?;
        RelPath::new(bytes).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chunk::chunk_value, model::Algorithm};

    fn example() -> Sidecar {
        let digest = PackageDigest { algorithm: Algorithm::Blake3, value: [7; 32] };
        let at = Timestamp::from_micros(1_700_000_000_123_456);
        let place = |text: &str| text.parse::<Place>().unwrap();
        Sidecar {
            package: Described {
                name: "run7".into(),
                origin: place("ccat/buffer"),
                path: None,
                path_hex: RelPath::new(b"2026/run7\xff".to_vec()).unwrap(),
                kind: PackageKind::File,
                size_bytes: 12,
                file_count: 1,
                digests: vec![digest],
                chunks: Chunks::Omitted("one".into()),
                registered_at: at,
                priority: 4,
                policy: Policy::EveryArchive,
                required: vec![place("cologne/archive")],
            },
            archive: place("cologne/archive"),
            provenance: Provenance {
                source: place("cologne/buffer"),
                steps: vec![Step {
                    at: place("cologne/buffer"),
                    work: Some("t1".into()),
                    method: CheckMethod::Received,
                    found: digest,
                    is_equal: true,
                    host: "h".into(),
                    ended_at: at,
                }],
                work: "a1".into(),
                fence: 1,
                worker: "w".into(),
                host: "h".into(),
                program: "p 1".into(),
                written_at: at,
            },
            metadata: Metadata::of(&BTreeMap::from([("obs_id".to_owned(), "\u{fc}".into())]), 12),
            verification: vec![Verified {
                expected: digest,
                found: digest,
                expected_size_bytes: 12,
                found_size_bytes: 12,
                medium: StorageType::Disk,
                how: ReadHow::Direct,
                unread_reason: None,
                host: "h".into(),
                version: "p 1".into(),
                started_at: at,
                ended_at: at,
            }],
        }
    }

    #[test]
    fn a_sidecar_is_read_as_it_was_written() {
        let sidecar = example();
        let text = sidecar.to_json().unwrap();
        assert_eq!(Sidecar::from_json(&text).unwrap(), sidecar);
        let text = String::from_utf8(text).unwrap();
        for words in ["2023-11-14T22:13:20.123456Z", "323032362f72756e37ff", "\"obs_id\": \"\u{fc}\"", "\"direct\""] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(sidecar.verification[0].is_equal());
    }

    /// Catches a digest of the content that is not compared.
    #[test]
    fn a_torn_or_changed_one_is_known() {
        let text = example().to_json().unwrap();
        for len in (0..text.len() - 3).step_by(7) {
            assert!(matches!(Sidecar::from_json(&text[..len]), Err(SidecarError::Torn(_))), "{len} bytes");
        }
        let changed = String::from_utf8(text.clone()).unwrap().replace("\"size_bytes\": 12", "\"size_bytes\": 13");
        assert!(matches!(Sidecar::from_json(changed.as_bytes()), Err(SidecarError::Torn(_))));
        let mut holed = text;
        holed[200..260].fill(0);
        assert!(matches!(Sidecar::from_json(&holed), Err(SidecarError::Torn(_))));
        assert_eq!(Sidecar::from_json(&vec![b' '; MAX_BYTES + 1]), Err(SidecarError::TooLarge(MAX_BYTES + 1)));
    }

    #[test]
    fn what_a_newer_program_wrote_is_refused_as_such() {
        let newer = br#"{ "ccat_xfer_sidecar": 2, "content": "something else" }"#;
        assert_eq!(Sidecar::from_json(newer), Err(SidecarError::Newer { found: 2 }));
        let content = "{\"package\": 1}";
        let digest = Digest::of(content.as_bytes());
        let other = format!("{{\"ccat_xfer_sidecar\": 1, \"blake3\": \"{digest}\", \"content\": {content}}}");
        assert!(matches!(Sidecar::from_json(other.as_bytes()), Err(SidecarError::Malformed(_))));
    }

    #[test]
    fn chunk_values_are_named_when_they_make_the_digest() {
        let data = vec![3; ChunkSize::DEFAULT.buffer_bytes() + 5];
        let len = u64::try_from(data.len()).unwrap();
        let value = |index| {
            let range = ChunkSize::DEFAULT.range(index, len).unwrap();
            let (from, to) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end()).unwrap());
            chunk_value(ChunkSize::DEFAULT, index, len, &data[from..to])
        };
        let all = |indices: &[u64]| {
            let mut collector = ChunkCollector::new(len);
            for &index in indices {
                collector.insert(index, value(index));
            }
            collector.finish(&Digest::of(&data))
        };
        assert!(matches!(all(&[1, 0, 1]), Chunks::Values { values, .. } if values.len() == 2));
        assert!(matches!(all(&[0]), Chunks::Omitted(_)));
        assert!(matches!(ChunkCollector::new(u64::MAX).finish(&Digest([0; 32])), Chunks::Omitted(_)));
    }
}
