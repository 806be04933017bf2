use serde::{Deserialize, Serialize};

use super::{
    Algorithm, CheckMethod, ErrorClass, Fence, LocationId, PackageId, ReadHow, StorageType, Timestamp, Work,
    digest::hex,
};

/// How one attempt ended: what a worker writes in one fenced transaction, and keeps on its disk while the database is
/// away. Everything that the transaction needs is in it, so that another process can replay it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptOutcome {
    /// Version of this form. A reader refuses a higher one than its own.
    version: u32,
    /// What was attempted.
    pub work: Work,
    /// By whom, in the row's eyes.
    pub fence: Fence,
    /// The worker's name, for the history.
    pub worker: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Verified bytes at the destination.
    pub bytes_done: u64,
    /// How it ended.
    pub ending: Ending,
    /// What was verified on the way, also when it failed in the end.
    pub evidence: Vec<Evidence>,
    /// The attempt's log as text.
    pub log: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Everything is there; the evidence says so for each package.
    Completed,
    /// It failed.
    Failed {
        /// What kind of failure it is.
        class: ErrorClass,
        /// The error and its causes, outermost first.
        chain: Vec<String>,
    },
    /// The worker stopped and gave the work back. Not a failure, and counted against nothing.
    HandedBack {
        /// Why it stopped.
        reason: String,
    },
}

/// What was found at a place: one row of `verification_record`, whether equal or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Whose bytes.
    pub package: PackageId,
    /// Where.
    pub location: LocationId,
    /// Path below the location's root, for the copy that is made known. Hexadecimal in JSON: paths are bytes.
    #[serde(with = "hex_bytes")]
    pub path: Vec<u8>,
    /// How both digests were computed.
    pub algorithm: Algorithm,
    /// As registered.
    #[serde(with = "hex")]
    pub expected_digest: [u8; 32],
    /// As found.
    #[serde(with = "hex")]
    pub found_digest: [u8; 32],
    /// As registered.
    pub expected_size_bytes: u64,
    /// As found.
    pub found_size_bytes: u64,
    /// How it was looked at.
    pub method: CheckMethod,
    /// What it was read from.
    pub medium: StorageType,
    /// Whether the bytes may have come from a cache above the medium.
    pub cached: bool,
    /// How the bytes were read, where that is known. [`ReadHow::Cached`] exactly where `cached` is set.
    #[serde(default)]
    pub how: Option<ReadHow>,
    /// Why nothing was read: for [`ReadHow::Vouched`] under [`OnTapeReadback::None`](super::OnTapeReadback::None) alone.
    #[serde(default)]
    pub unread_reason: Option<String>,
    /// The machine that looked.
    pub host: String,
    /// The program's version there.
    pub version: String,
    /// The fingerprint of the receiver's key, where there was one.
    pub receiver_key: Option<String>,
    /// When the looking began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
}

impl Evidence {
    /// Whether what was found is what was registered.
    pub fn is_equal(&self) -> bool {
        self.expected_digest == self.found_digest && self.expected_size_bytes == self.found_size_bytes
    }
}

/// Bytes that are no outcome that this program understands.
#[derive(Debug, thiserror::Error)]
pub enum OutcomeError {
    /// Not JSON, or a field is missing or wrong.
    #[error("an outcome does not decode: {0}")]
    Malformed(String),
    /// Written by a newer program.
    #[error("an outcome has version {found}, and this program knows up to {known}; replay it with the newer program")]
    Newer {
        /// Its version.
        found: u32,
        /// The highest that is known.
        known: u32,
    },
}

impl AttemptOutcome {
    const VERSION: u32 = 1;

    /// An outcome without evidence and log yet.
    pub fn new(
        work: Work,
        fence: Fence,
        worker: impl Into<String>,
        started_at: Timestamp,
        ended_at: Timestamp,
        ending: Ending,
    ) -> Self {
        Self {
            version: Self::VERSION,
            work,
            fence,
            worker: worker.into(),
            started_at,
            ended_at,
            bytes_done: 0,
            ending,
            evidence: Vec::new(),
            log: String::new(),
        }
    }

    /// As it is spooled.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("invariant: no map with other keys than text, and no number that JSON lacks")
    }

    /// As it was spooled.
    ///
    /// # Errors
    /// It does not decode, or a newer program wrote it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, OutcomeError> {
        #[derive(Deserialize)]
        struct Envelope {
            version: u32,
        }
        let malformed = |e: serde_json::Error| OutcomeError::Malformed(e.to_string());
        // The version first: what a newer program wrote need not have the fields of this one.
        let Envelope { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version > Self::VERSION {
            return Err(OutcomeError::Newer { found: version, known: Self::VERSION });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }
}

mod hex_bytes {
    use std::fmt::Write as _;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for b in bytes {
            let _ = write!(text, "{b:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom("a path is an even number of hexadecimal digits");
        if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| wrong())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TransferId;

    fn example() -> AttemptOutcome {
        let time = Timestamp::from_micros(1);
        let work = Work::Transfer(TransferId::new(7));
        let ending = Ending::Failed { class: ErrorClass::Network, chain: vec!["reset".into()] };
        let mut outcome = AttemptOutcome::new(work, Fence::new(3), "w", time, time, ending);
        outcome.evidence.push(Evidence {
            package: PackageId::new(1),
            location: LocationId::new(2),
            path: b"a/\xff".to_vec(),
            algorithm: Algorithm::Blake3,
            expected_digest: [1; 32],
            found_digest: [1; 32],
            expected_size_bytes: 5,
            found_size_bytes: 5,
            method: CheckMethod::Received,
            medium: StorageType::Disk,
            cached: true,
            how: Some(ReadHow::Cached),
            unread_reason: None,
            host: "h".into(),
            version: "0".into(),
            receiver_key: None,
            started_at: time,
            ended_at: time,
        });
        outcome
    }

    #[test]
    fn a_spooled_outcome_is_read_back_whole() {
        let outcome = example();
        assert_eq!(AttemptOutcome::from_json(outcome.to_json().as_bytes()).unwrap(), outcome);
        assert!(outcome.evidence[0].is_equal());
    }

    /// A worker's spool may be older than its program.
    #[test]
    fn an_outcome_that_was_spooled_before_ways_to_read_had_names_is_read() {
        let text = example().to_json().replace(r#""how":"cached","unread_reason":null,"#, "");
        assert!(!text.contains("how"), "{text}");
        let outcome = AttemptOutcome::from_json(text.as_bytes()).unwrap();
        assert_eq!((outcome.evidence[0].how, outcome.evidence[0].cached), (None, true));
    }

    #[test]
    fn what_a_newer_program_wrote_is_refused_as_such() {
        let error = AttemptOutcome::from_json(br#"{"version":2,"other":true}"#).unwrap_err();
        assert!(matches!(error, OutcomeError::Newer { found: 2, known: 1 }), "{error}");
        for bytes in [&b""[..], b"{}", b"[]", b"{\"version\":1}", b"\xff"] {
            assert!(matches!(AttemptOutcome::from_json(bytes), Err(OutcomeError::Malformed(_))));
        }
        let text = example().to_json().replace("612fff", "612f\u{e9}");
        assert!(matches!(AttemptOutcome::from_json(text.as_bytes()), Err(OutcomeError::Malformed(_))));
    }
}
