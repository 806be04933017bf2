use std::{net::IpAddr, path::PathBuf, time::Duration};

use hyper::Uri;

use crate::{archive::ArchiveError, model::ErrorClass, secret::Secret, task::Backoff};

/// Parts are a whole number of chunks, so that what was hashed for a part is hashed for the file. S3 takes none below 5 MiB.
pub const MIN_PART_BYTES: u64 = 8 << 20;
/// S3 takes no larger part.
pub const MAX_PART_BYTES: u64 = 4 << 30;

/// A bucket, and how it is spoken to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://HOST[:PORT]`. Plain `http` is for this machine's own addresses.
    pub endpoint: String,
    /// What requests are signed for; many stores of one's own take any word.
    pub region: String,
    /// The bucket. It is never created.
    pub bucket: String,
    /// What all keys begin with: empty, or a folder with a slash behind it.
    pub prefix: String,
    /// Whether the bucket stands in the path and not in the host's name.
    pub path_style: bool,
    /// Who we are.
    pub credentials: Credentials,
    /// Bytes of a part: a multiple of 4 MiB from 8 MiB. Larger for a file that would have more than 10,000 of them.
    pub part_bytes: u64,
    /// Parts under way at once, and ranges at a read-back. That many parts are held in memory, over all packages.
    pub parallel_parts: usize,
    /// Small objects of a tree under way at once, each of up to 1 MiB.
    pub parallel_objects: usize,
    /// What the store checks each part by.
    pub checksum: Checksum,
    /// Storage class of packages; the store's default without. One that cannot be read at once is refused.
    pub storage_class: Option<String>,
    /// Retention of packages, for buckets that were made with object lock.
    pub lock: Option<Lock>,
    /// PEM file of the authorities that vouch for the endpoint; those of the system without.
    pub ca_file: Option<PathBuf>,
    /// Lets data and keys travel in the clear to another machine.
    pub allow_plain_http: bool,
    /// How long to wait for what.
    pub limits: Limits,
}

/// Who we are to the store.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Access key id. It names and proves nothing.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

/// What a store checks bytes by before it says that it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-64/NVME of each part; the store combines them and compares the whole object too.
    Crc64Nvme,
    /// SHA-256 of each part.
    Sha256,
    /// `Content-MD5` of each part and no newer header: for stores that refuse those (`when_required`).
    ContentMd5,
}

/// Who may undo a retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Those with a special right.
    Governance,
    /// Nobody.
    Compliance,
}

/// How long nobody may delete a version of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Who may undo it.
    pub mode: LockMode,
    /// Days from the upload.
    pub days: u32,
}

/// Time limits and retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a connection.
    pub connect: Duration,
    /// For one try of one request, its part's bytes included.
    pub request: Duration,
    /// Without a byte of an answer's body.
    pub stall: Duration,
    /// Tries of one request or range, the first one included.
    pub tries: u32,
    /// Waits between them.
    pub backoff: Backoff,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            request: Duration::from_mins(10),
            stall: Duration::from_secs(30),
            tries: 6,
            backoff: Backoff { first: Duration::from_millis(500), limit: Duration::from_secs(20) },
        }
    }
}

impl Settings {
    /// A bucket with everything else as it is best for most stores.
    pub fn new(endpoint: impl Into<String>, bucket: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            endpoint: endpoint.into(),
            region: "us-east-1".to_owned(),
            bucket: bucket.into(),
            prefix: String::new(),
            path_style: true,
            credentials,
            part_bytes: 16 << 20,
            parallel_parts: 4,
            parallel_objects: 16,
            checksum: Checksum::Crc64Nvme,
            storage_class: None,
            lock: None,
            ca_file: None,
            allow_plain_http: false,
            limits: Limits::default(),
        }
    }

    /// Refuses what cannot work or is not safe.
    pub(super) fn check(&self) -> Result<(), ArchiveError> {
        let refuse = |what: String| Err(ArchiveError::new(ErrorClass::Configuration, what));
        let uri: Uri = match self.endpoint.parse() {
            Ok(uri) => uri,
            Err(error) => return refuse(format!("S3 endpoint '{}' is no address: {error}", self.endpoint)),
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        match uri.scheme_str() {
            _ if host.is_empty() => return refuse(format!("S3 endpoint '{}' names no host", self.endpoint)),
            Some("https") => {}
            Some("http") if is_loopback(host) => {}
            Some("http") if self.allow_plain_http => {
                tracing::warn!(endpoint = self.endpoint, "S3 data travels in the clear, as the settings allow");
            }
            Some("http") => {
                return refuse(format!(
                    "S3 endpoint '{}' is another machine's and without TLS; use https, or set allow_plain_http",
                    self.endpoint
                ));
            }
            _ => return refuse(format!("S3 endpoint '{}' must begin with https://", self.endpoint)),
        }
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return refuse(format!("'{}' is no name of a bucket", self.bucket));
        }
        let strange = |c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c));
        let prefix = &self.prefix;
        if !prefix.is_empty()
            && (!prefix.ends_with('/') || prefix.starts_with('/') || prefix.contains("//") || prefix.contains(strange))
        {
            return refuse(format!(
                "S3 prefix '{prefix}' must be letters, digits, '-', '_', '.' and '/', and end in one slash"
            ));
        }
        if prefix.len() > MAX_PREFIX_BYTES {
            return refuse(format!("S3 prefix '{prefix}' is longer than {MAX_PREFIX_BYTES} bytes"));
        }
        if !(MIN_PART_BYTES..=MAX_PART_BYTES).contains(&self.part_bytes) || !self.part_bytes.is_multiple_of(4 << 20) {
            return refuse(format!(
                "S3 parts of {} bytes are not possible; give a multiple of 4 MiB from 8 MiB to 4 GiB",
                self.part_bytes
            ));
        }
        if !(1..=64).contains(&self.parallel_parts) || !(1..=256).contains(&self.parallel_objects) {
            return refuse("S3 uploads run 1 to 64 parts and 1 to 256 small objects at once".to_owned());
        }
        if self.limits.tries == 0 {
            return refuse("an S3 request must be tried at least once".to_owned());
        }
        if self.lock.is_some_and(|lock| lock.days == 0) {
            return refuse("S3 object lock for 0 days locks nothing; leave it out".to_owned());
        }
        match self.storage_class.as_deref() {
            Some(class @ ("GLACIER" | "DEEP_ARCHIVE" | "SNOW")) => refuse(format!(
                "objects of S3 storage class {class} cannot be read back at once, so nothing could be called archived; \
                 use GLACIER_IR or another class, and a lifecycle rule of the bucket for later"
            )),
            _ => Ok(()),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Leaves most of a key's 1,024 bytes to the package.
const MAX_PREFIX_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(endpoint: &str) -> Settings {
        let credentials = Credentials { access_key: "k".to_owned(), secret_key: Secret::new("s"), session_token: None };
        Settings::new(endpoint, "bucket", credentials)
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        for good in ["https://s3.example.org", "http://127.0.0.1:8333", "http://[::1]:8333", "http://localhost:1"] {
            settings(good).check().unwrap();
        }
        for bad in [
            "http://s3.example.org",
            "http://127.0.0.1.example.org",
            "s3.example.org",
            "ftp://127.0.0.1",
            "",
            "http://",
        ] {
            assert_eq!(settings(bad).check().unwrap_err().class, ErrorClass::Configuration, "{bad}");
        }
        Settings { allow_plain_http: true, ..settings("http://s3.example.org") }.check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let good = || settings("https://s3.example.org");
        good().check().unwrap();
        Settings { prefix: "raw/2026/".to_owned(), ..good() }.check().unwrap();
        for bad in [
            Settings { bucket: String::new(), ..good() },
            Settings { prefix: "raw".to_owned(), ..good() },
            Settings { prefix: "/raw/".to_owned(), ..good() },
            Settings { prefix: "a b/".to_owned(), ..good() },
            Settings { prefix: format!("{}/", "a".repeat(300)), ..good() },
            Settings { part_bytes: 5 << 20, ..good() },
            Settings { part_bytes: (16 << 20) + 1, ..good() },
            Settings { parallel_parts: 0, ..good() },
            Settings { storage_class: Some("DEEP_ARCHIVE".to_owned()), ..good() },
            Settings { lock: Some(Lock { mode: LockMode::Governance, days: 0 }), ..good() },
        ] {
            assert_eq!(bad.check().unwrap_err().class, ErrorClass::Configuration, "{bad:?}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", settings("https://x")).contains("\"s\""));
    }
}
