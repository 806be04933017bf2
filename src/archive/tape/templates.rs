//! The commands of a tape system, as its settings give them.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    time::Duration,
};

use super::super::ArchiveError;
use crate::model::ErrorClass;

/// What stands for the path of a file on this machine that is to be put.
const SOURCE: &str = "{source}";
/// What stands for an object's name in the tape system.
const KEY: &str = "{key}";
/// What stands for the path on this machine that an object is to be copied to; there is nothing there before.
const TARGET: &str = "{target}";

/// One command: a program and its arguments. A placeholder is a word of its own; no shell reads any of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    words: Vec<String>,
    limit: Duration,
}

/// What the placeholders of a command stand for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Filling<'a> {
    pub(super) source: Option<&'a OsStr>,
    pub(super) key: &'a str,
    pub(super) target: &'a str,
}

impl Template {
    /// Checks the words of `name` (for messages). `needed` are the placeholders that it must have, each once; it may have no
    /// others.
    fn new(name: &str, words: &[String], limit: Duration, needed: &[&str]) -> Result<Self, ArchiveError> {
        let refuse = |why: String| {
            Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!("the tape system's {name} command {why}; correct it in the worker's settings"),
            ))
        };
        match words.first() {
            None => return refuse("is empty".to_owned()),
            Some(program) if program.is_empty() || program.contains('{') => {
                return refuse("begins with something else than a program".to_owned());
            }
            Some(_) => {}
        }
        if limit.is_zero() {
            return refuse("has no time to run in".to_owned());
        }
        for word in words {
            if word.contains('\0') {
                return refuse("holds a NUL byte".to_owned());
            }
            let known = [SOURCE, KEY, TARGET];
            if known.contains(&word.as_str()) && !needed.contains(&word.as_str()) {
                return refuse(format!("has {word}, which means nothing there"));
            }
            if !known.contains(&word.as_str()) && known.iter().any(|k| word.contains(k)) {
                return refuse(format!("has a placeholder within the word {word:?}; each must be a word of its own"));
            }
        }
        for needed in needed {
            if words.iter().filter(|word| word == needed).count() != 1 {
                return refuse(format!("must have {needed} once"));
            }
        }
        Ok(Self { words: words.to_vec(), limit })
    }

    /// How long it may run.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The program and its arguments.
    pub(super) fn argv(&self, filling: Filling<'_>) -> Vec<OsString> {
        let fill = |word: &String| match word.as_str() {
            SOURCE => filling.source.unwrap_or_default().to_owned(),
            KEY => filling.key.into(),
            TARGET => filling.target.into(),
            _ => word.into(),
        };
        self.words.iter().map(fill).collect()
    }

    /// The program.
    pub(super) fn program(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }
}

/// How what lies on tape is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readback {
    /// Fetched and hashed.
    Full,
    /// The tape system is asked for its checksum, which is compared with that of the bytes that were put.
    Checksum(ChecksumAlgorithm),
    /// Not at all. The record carries the reason.
    None {
        /// Why that is enough, in the operator's words.
        reason: String,
    },
}

/// What a tape system computes over its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// 64 hexadecimal digits.
    Blake3,
    /// 64 hexadecimal digits.
    Sha256,
}

impl ChecksumAlgorithm {
    /// Its name in settings and records.
    pub fn word(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}

/// Everything about a tape system, from the settings of the worker that serves it. Nothing of it comes from a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A folder of this machine for what is packed and fetched, with room for the largest package.
    pub staging: PathBuf,
    /// `{source}` `{key}`: copies a file into the system under a name that is free.
    pub put: Vec<String>,
    /// `{key}` `{target}`: copies it out.
    pub get: Vec<String>,
    /// `{key}`: prints the state of an object as its first word: `missing`, `on_disk`, `staging` or `on_tape`.
    pub stat: Vec<String>,
    /// `{key}`: prints the checksum of an object as its first word.
    pub checksum: Option<Vec<String>>,
    /// Prints all keys, one a line.
    pub list: Option<Vec<String>>,
    /// How long put and get may run.
    pub copy_limit: Duration,
    /// How long the others may run.
    pub ask_limit: Duration,
    /// How long an object that was put may take until it is on tape.
    pub tape_limit: Duration,
    /// The first wait between two looks whether it is; waits double, up to a minute.
    pub tape_poll: Duration,
    /// What counts as a reading: the setting `on_tape_readback`.
    pub readback: Readback,
}

/// The commands, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Templates {
    pub(super) put: Template,
    pub(super) get: Template,
    pub(super) stat: Template,
    pub(super) checksum: Option<Template>,
    pub(super) list: Option<Template>,
}

impl Templates {
    /// Checks the commands of `settings`.
    ///
    /// # Errors
    /// Configuration: which command is wrong, and how.
    pub fn new(settings: &Settings) -> Result<Self, ArchiveError> {
        let (copy, ask) = (settings.copy_limit, settings.ask_limit);
        let optional = |name, words: &Option<Vec<String>>, needed: &[&str]| {
            words.as_ref().map(|words| Template::new(name, words, ask, needed)).transpose()
        };
        let templates = Self {
            put: Template::new("put", &settings.put, copy, &[SOURCE, KEY])?,
            get: Template::new("get", &settings.get, copy, &[KEY, TARGET])?,
            stat: Template::new("stat", &settings.stat, ask, &[KEY])?,
            checksum: optional("checksum", &settings.checksum, &[KEY])?,
            list: optional("list", &settings.list, &[])?,
        };
        let refuse = |text: &str| Err(ArchiveError::new(ErrorClass::Configuration, text));
        match &settings.readback {
            Readback::Checksum(_) if templates.checksum.is_none() => refuse(
                "on_tape_readback is checksum, but the tape system has no checksum command; name one, or read in full",
            ),
            Readback::None { reason } if reason.trim().is_empty() => refuse(
                "on_tape_readback is none without a reason; say why what was put need not be read, or read in full",
            ),
            _ => Ok(templates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn settings() -> Settings {
        Settings {
            staging: "/nowhere".into(),
            put: words("tapecp {source} {key}"),
            get: words("tapecp -r {key} {target}"),
            stat: words("tapestat {key}"),
            checksum: None,
            list: None,
            copy_limit: Duration::from_secs(1),
            ask_limit: Duration::from_secs(1),
            tape_limit: Duration::from_secs(1),
            tape_poll: Duration::from_secs(1),
            readback: Readback::Full,
        }
    }

    #[test]
    fn words_stay_words_whatever_fills_them() {
        let templates = Templates::new(&settings()).unwrap();
        let filling = Filling { source: Some(OsStr::new("/a b;c $(d)")), key: "{source}", target: "" };
        assert_eq!(templates.put.argv(filling), ["tapecp", "/a b;c $(d)", "{source}"]);
    }

    #[test]
    fn what_cannot_be_filled_is_refused() {
        let good = settings();
        for (put, says) in [
            ("tapecp {key}", "must have {source} once"),
            ("tapecp {source} {key} {key}", "must have {key} once"),
            ("tapecp {source} --key={key}", "word of its own"),
            ("tapecp {source} {key} {target}", "means nothing there"),
            ("{source} {key}", "something else than a program"),
            ("", "something else than a program"),
        ] {
            let error = Templates::new(&Settings { put: words(put), ..good.clone() }).unwrap_err();
            assert!(error.to_string().contains(says), "{put}: {error}");
            assert_eq!(error.class, ErrorClass::Configuration);
        }
        assert!(Templates::new(&Settings { ask_limit: Duration::ZERO, ..good.clone() }).is_err());
        for readback in [Readback::Checksum(ChecksumAlgorithm::Blake3), Readback::None { reason: " ".to_owned() }] {
            assert!(Templates::new(&Settings { readback, ..good.clone() }).is_err());
        }
    }
}
