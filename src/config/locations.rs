//! The tables `[locations."SITE/NAME"]`: what a location's name means on this machine.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{ConfigError, daemon::Wrong, units};
use crate::{
    archive::{self, s3, tape},
    model::{OnTapeReadback, StorageType, topology::Place},
    secret::Secret,
};

/// What a location's name means on this machine.
#[derive(Clone, Debug)]
pub struct Location {
    /// Where its data is.
    pub means: Means,
    /// Attempts of its queue at once.
    pub slots: Option<u32>,
}

/// Where the data of a location is.
#[derive(Clone, Debug)]
pub enum Means {
    /// In a folder of this machine, under the packages' own paths.
    Folder(PathBuf),
    /// In an archive.
    Archive(archive::Settings),
}

impl Location {
    /// Its folder; an archive has none that packages could be sent from.
    pub fn folder(&self) -> Option<&Path> {
        match &self.means {
            Means::Folder(root) => Some(root),
            Means::Archive(_) => None,
        }
    }

    /// Its archive.
    pub const fn archive(&self) -> Option<&archive::Settings> {
        match &self.means {
            Means::Folder(_) => None,
            Means::Archive(settings) => Some(settings),
        }
    }
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LocationTable {
    root: Option<PathBuf>,
    slots: Option<u32>,
    archive: Option<StorageType>,
    s3: Option<S3Table>,
    tape: Option<TapeTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct S3Table {
    endpoint: String,
    bucket: String,
    prefix: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    credentials_file: Option<PathBuf>,
    part_size: Option<String>,
    parallel_parts: Option<usize>,
    parallel_objects: Option<usize>,
    checksum: Option<String>,
    storage_class: Option<String>,
    lock_mode: Option<String>,
    lock_days: Option<u32>,
    ca_file: Option<PathBuf>,
    allow_plain_http: Option<bool>,
    connect_timeout: Option<String>,
    request_timeout: Option<String>,
    stall_timeout: Option<String>,
    tries: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TapeTable {
    staging: PathBuf,
    put: Vec<String>,
    get: Vec<String>,
    stat: Vec<String>,
    checksum: Option<Vec<String>>,
    list: Option<Vec<String>>,
    copy_timeout: Option<String>,
    ask_timeout: Option<String>,
    tape_timeout: Option<String>,
    tape_poll: Option<String>,
    on_tape_readback: Option<OnTapeReadback>,
    checksum_algorithm: Option<String>,
    unread_reason: Option<String>,
}

pub(super) fn locations(
    tables: BTreeMap<String, LocationTable>,
    credentials: Option<&Secret>,
    wrong: &Wrong<'_>,
) -> Result<BTreeMap<String, Location>, ConfigError> {
    let read = |(name, table): (String, LocationTable)| {
        if let Err(error) = name.parse::<Place>() {
            return Err(wrong("locations", error.to_string()));
        }
        let location =
            location(table, credentials).map_err(|text| wrong("locations", format!("\"{name}\": {text}")))?;
        Ok((name, location))
    };
    tables.into_iter().map(read).collect()
}

fn location(table: LocationTable, credentials: Option<&Secret>) -> Result<Location, String> {
    let LocationTable { root, slots, archive, s3, tape } = table;
    if slots == Some(0) {
        return Err("its slots are at least 1".into());
    }
    if root.as_ref().is_some_and(|root| !root.is_absolute()) {
        return Err("its root must be an absolute path".into());
    }
    let means = match (archive, root, s3, tape) {
        (None, Some(root), None, None) => Means::Folder(root),
        (None, None, None, None) => {
            return Err("it needs a root (its folder), or archive = \"disk\", \"s3\" or \"tape\"".into());
        }
        (None, _, _, _) => return Err("s3 and tape are for archives; say archive = \"s3\" or \"tape\"".into()),
        (Some(StorageType::Disk), Some(root), None, None) => Means::Archive(archive::Settings::Disk(root)),
        (Some(StorageType::S3), None, Some(table), None) => {
            Means::Archive(archive::Settings::S3(Box::new(s3_settings(table, credentials)?)))
        }
        (Some(StorageType::Tape), None, None, Some(table)) => {
            Means::Archive(archive::Settings::Tape(Box::new(tape_settings(table)?)))
        }
        (Some(StorageType::Disk), ..) => return Err("an archive on disk has a root, and neither s3 nor tape".into()),
        (Some(kind), ..) => {
            return Err(format!("an archive of kind {kind} has a table '{kind}' of its own and no root"));
        }
    };
    Ok(Location { means, slots })
}

fn s3_settings(table: S3Table, credentials: Option<&Secret>) -> Result<s3::Settings, String> {
    let credentials = match (&table.credentials_file, credentials) {
        (Some(file), _) => s3_credentials(&Secret::from_file(file).map_err(|e| format!("s3.credentials_file: {e}"))?)?,
        (None, Some(secret)) => s3_credentials(secret)?,
        (None, None) => {
            return Err(format!(
                "s3 needs ACCESS_KEY:SECRET_KEY in a file (s3.credentials_file) or in {}",
                super::daemon::S3_CREDENTIALS
            ));
        }
    };
    let usual = s3::Settings::new(table.endpoint, table.bucket, credentials);
    let time = |key: &str, text: Option<&str>, usual| match text {
        None => Ok(usual),
        Some(text) => match units::duration(text) {
            Ok(time) if !time.is_zero() => Ok(time),
            Ok(_) => Err(format!("s3.{key} is above 0")),
            Err(error) => Err(format!("s3.{key}: {error}")),
        },
    };
    let checksum = match table.checksum.as_deref() {
        None | Some("crc64nvme") => s3::Checksum::Crc64Nvme,
        Some("sha256") => s3::Checksum::Sha256,
        Some("content_md5") => s3::Checksum::ContentMd5,
        Some(other) => return Err(format!("s3.checksum '{other}' is none of crc64nvme, sha256, content_md5")),
    };
    let lock = match (table.lock_mode.as_deref(), table.lock_days) {
        (None, None) => None,
        (Some("governance"), Some(days)) => Some(s3::Lock { mode: s3::LockMode::Governance, days }),
        (Some("compliance"), Some(days)) => Some(s3::Lock { mode: s3::LockMode::Compliance, days }),
        (Some(mode), Some(_)) => return Err(format!("s3.lock_mode '{mode}' is neither governance nor compliance")),
        _ => return Err("s3.lock_mode and s3.lock_days stand together".into()),
    };
    let limits = s3::Limits {
        connect: time("connect_timeout", table.connect_timeout.as_deref(), usual.limits.connect)?,
        request: time("request_timeout", table.request_timeout.as_deref(), usual.limits.request)?,
        stall: time("stall_timeout", table.stall_timeout.as_deref(), usual.limits.stall)?,
        tries: table.tries.unwrap_or(usual.limits.tries),
        ..usual.limits
    };
    Ok(s3::Settings {
        prefix: table.prefix.unwrap_or(usual.prefix),
        region: table.region.unwrap_or(usual.region),
        path_style: table.path_style.unwrap_or(usual.path_style),
        part_bytes: match &table.part_size {
            None => usual.part_bytes,
            Some(text) => units::size(text).map_err(|e| format!("s3.part_size: {e}"))?,
        },
        parallel_parts: table.parallel_parts.unwrap_or(usual.parallel_parts),
        parallel_objects: table.parallel_objects.unwrap_or(usual.parallel_objects),
        checksum,
        storage_class: table.storage_class,
        lock,
        ca_file: table.ca_file,
        allow_plain_http: table.allow_plain_http.unwrap_or(false),
        limits,
        ..usual
    })
}

/// `ACCESS_KEY:SECRET_KEY`, with `:SESSION_TOKEN` behind it where they are temporary.
fn s3_credentials(secret: &Secret) -> Result<s3::Credentials, String> {
    let mut words = secret.expose().splitn(3, ':');
    match (words.next(), words.next(), words.next()) {
        (Some(access_key), Some(secret_key), token) if !access_key.is_empty() && !secret_key.is_empty() => {
            Ok(s3::Credentials {
                access_key: access_key.to_owned(),
                secret_key: Secret::new(secret_key),
                session_token: token.map(Secret::new),
            })
        }
        _ => Err("the credentials of s3 are ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]".into()),
    }
}

fn tape_settings(table: TapeTable) -> Result<tape::Settings, String> {
    if !table.staging.is_absolute() {
        return Err("tape.staging must be an absolute path".into());
    }
    let time = |key: &str, text: Option<&str>, usual_s| match text {
        None => Ok(Duration::from_secs(usual_s)),
        Some(text) => units::duration(text).map_err(|e| format!("tape.{key}: {e}")),
    };
    let algorithm = match table.checksum_algorithm.as_deref() {
        None | Some("sha256") => tape::ChecksumAlgorithm::Sha256,
        Some("blake3") => tape::ChecksumAlgorithm::Blake3,
        Some(other) => return Err(format!("tape.checksum_algorithm '{other}' is neither sha256 nor blake3")),
    };
    let readback = match (table.on_tape_readback.unwrap_or(OnTapeReadback::Full), table.unread_reason) {
        (OnTapeReadback::Full, None) => tape::Readback::Full,
        (OnTapeReadback::Checksum, None) => tape::Readback::Checksum(algorithm),
        (OnTapeReadback::None, Some(reason)) => tape::Readback::None { reason },
        (OnTapeReadback::None, None) => return Err("tape.on_tape_readback = \"none\" needs its unread_reason".into()),
        (_, Some(_)) => return Err("tape.unread_reason is for on_tape_readback = \"none\" alone".into()),
    };
    let settings = tape::Settings {
        staging: table.staging,
        put: table.put,
        get: table.get,
        stat: table.stat,
        checksum: table.checksum,
        list: table.list,
        copy_limit: time("copy_timeout", table.copy_timeout.as_deref(), 6 * 3600)?,
        ask_limit: time("ask_timeout", table.ask_timeout.as_deref(), 60)?,
        tape_limit: time("tape_timeout", table.tape_timeout.as_deref(), 24 * 3600)?,
        tape_poll: time("tape_poll", table.tape_poll.as_deref(), 5)?,
        readback,
    };
    tape::Templates::new(&settings).map_err(|error| format!("tape: {error}"))?;
    Ok(settings)
}
