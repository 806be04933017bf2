use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::queue::QueueName;

/// What `version` says today.
const VERSION: u64 = 1;

/// Longest body that is looked at. A hint has some 120 bytes and a name of at most 200.
const MAX_BODY_BYTES: usize = 1024;

/// "This queue has work." Nothing in it is trusted: whoever gets it asks the database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hint {
    /// Names the hint in logs; where a row of an outbox caused it, that row's id.
    pub id: Uuid,
    /// The queue that has work.
    pub queue: QueueName,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u64,
    kind: &'static str,
    id: Uuid,
    queue: &'a str,
}

/// Read before anything else, so that a body of another version is called that and not malformed.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

/// Fields that are not known are passed over: what must not be passed over raises the version.
#[derive(Deserialize)]
struct Body<'a> {
    kind: &'a str,
    id: Uuid,
    queue: &'a str,
}

impl Hint {
    /// The body: one line of JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        let written = Written { version: VERSION, kind: "hint", id: self.id, queue: self.queue.as_str() };
        serde_json::to_vec(&written).expect("numbers and text always have a JSON form")
    }

    /// Reads a body that came through `queue`.
    ///
    /// # Errors
    /// Why it is no hint for that queue.
    pub fn from_bytes(body: &[u8], queue: &str) -> Result<Self, EnvelopeError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(EnvelopeError::TooLong { bytes: body.len() });
        }
        let malformed = |error: serde_json::Error| EnvelopeError::Malformed { why: error.to_string() };
        let Versioned { version } = serde_json::from_slice(body).map_err(malformed)?;
        if version != VERSION {
            return Err(EnvelopeError::UnknownVersion { version });
        }
        let read: Body<'_> = serde_json::from_slice(body).map_err(malformed)?;
        if read.kind != "hint" {
            return Err(EnvelopeError::Malformed { why: format!("it is of the kind {:?}", read.kind) });
        }
        if read.queue != queue {
            return Err(EnvelopeError::WrongQueue { said: read.queue.to_owned() });
        }
        let name = QueueName::new(read.queue).map_err(|error| EnvelopeError::Malformed { why: error.to_string() })?;
        Ok(Self { id: read.id, queue: name })
    }
}

/// Why a body is no hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is no JSON of the expected form.
    #[error("the body is no hint: {why}")]
    Malformed {
        /// What is wrong with it.
        why: String,
    },
    /// It is of a version that this program does not know.
    #[error("the body is of version {version}; this program knows version {VERSION}: update the older one of the two")]
    UnknownVersion {
        /// What it says.
        version: u64,
    },
    /// It speaks of another queue than the one it came through.
    #[error("the body speaks of the queue {said:?}, and came through another")]
    WrongQueue {
        /// The queue that it names.
        said: String,
    },
    /// It is longer than any hint.
    #[error("the body has {bytes} bytes; no hint has more than {MAX_BODY_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = r#"{"version":1,"kind":"hint","id":"018f4e5a-7b6c-7d8e-9fa0-b1c2d3e4f506","queue":"cologne_buffer_data_transfer"}"#;

    fn hint() -> Hint {
        Hint {
            id: Uuid::from_u128(0x018f_4e5a_7b6c_7d8e_9fa0_b1c2_d3e4_f506),
            queue: QueueName::new("cologne_buffer_data_transfer").unwrap(),
        }
    }

    fn read(text: &str) -> Result<Hint, EnvelopeError> {
        Hint::from_bytes(text.as_bytes(), "cologne_buffer_data_transfer")
    }

    /// These bytes are in the queues of running sites.
    #[test]
    fn golden_bytes() {
        assert_eq!(String::from_utf8(hint().to_bytes()).unwrap(), GOLDEN);
        assert_eq!(read(GOLDEN), Ok(hint()));
        // A later program of the same version may say more.
        assert_eq!(read(&GOLDEN.replace("\"kind\"", "\"new\":[1],\"kind\"")), Ok(hint()));
    }

    #[test]
    fn what_is_no_hint_is_told_apart() {
        assert_eq!(read(&GOLDEN.replace(":1,", ":2,")), Err(EnvelopeError::UnknownVersion { version: 2 }));
        assert_eq!(read(r#"{"version":9}"#), Err(EnvelopeError::UnknownVersion { version: 9 }));
        let other = Hint::from_bytes(GOLDEN.as_bytes(), "other");
        assert_eq!(other, Err(EnvelopeError::WrongQueue { said: "cologne_buffer_data_transfer".to_owned() }));
        assert_eq!(read(&" ".repeat(1025)), Err(EnvelopeError::TooLong { bytes: 1025 }));
        let truncated = &GOLDEN[..GOLDEN.len() - 1];
        let kind = GOLDEN.replace("\"hint\"", "\"order\"");
        for bad in ["", "{}", "null", "[1]", "\u{0}", r#"{"version":"1"}"#, r#"{"version":-1}"#, truncated, &kind] {
            assert!(matches!(read(bad), Err(EnvelopeError::Malformed { .. })), "{bad}");
        }
    }

    /// Whatever bytes a queue holds: an answer, no panic, and nothing but our own form is taken.
    #[test]
    fn mutated_bodies_never_panic() {
        use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
        let seed: u64 = std::env::var("CCAT_XFER_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or_else(rand::random);
        println!("CCAT_XFER_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..20_000 {
            let mut bytes = GOLDEN.as_bytes().to_vec();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            if let Ok(hint) = Hint::from_bytes(&bytes, "cologne_buffer_data_transfer") {
                assert_eq!(hint.queue.as_str(), "cologne_buffer_data_transfer");
            }
        }
    }
}
