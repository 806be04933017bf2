//! What the failures of the layers below mean for an archive.

use super::ArchiveError;
use crate::{
    chunk::escape_bytes,
    disk::{DiskError, DiskErrorKind},
    engine::{FailureClass, JobError},
    journal::JournalError,
    model::ErrorClass,
};

/// A file of an archive's disk, or of a staging folder, that cannot be made, changed or read.
pub(super) fn of_disk(what: impl Into<String>, error: &DiskError) -> ArchiveError {
    let class = match error.kind() {
        // A medium that fails is left as one that is full: others may take the package.
        DiskErrorKind::NoSpace | DiskErrorKind::Io => ErrorClass::NoSpace,
        DiskErrorKind::Exists | DiskErrorKind::NotAFile | DiskErrorKind::Changed => ErrorClass::DestinationDiffers,
        DiskErrorKind::TooManyOpen => ErrorClass::RemoteBusy,
        _ => ErrorClass::Configuration,
    };
    ArchiveError { class, chain: vec![what.into(), error.to_string()] }
}

/// As [`of_disk`], for what the journal says.
pub(super) fn of_journal(what: impl Into<String>, error: &JournalError) -> ArchiveError {
    match error {
        JournalError::Disk(error) => of_disk(what, error),
        JournalError::Busy { .. } | JournalError::InUse { .. } => {
            ArchiveError { class: ErrorClass::RemoteBusy, chain: vec![what.into(), error.to_string()] }
        }
        JournalError::Poisoned { .. } => {
            ArchiveError { class: ErrorClass::NoSpace, chain: vec![what.into(), error.to_string()] }
        }
        _ => ArchiveError { class: ErrorClass::Configuration, chain: vec![what.into(), error.to_string()] },
    }
}

/// The package as its origin has it cannot be read.
pub(super) fn of_source(what: impl Into<String>, error: &DiskError) -> ArchiveError {
    let class = match error.kind() {
        DiskErrorKind::Changed | DiskErrorKind::NotAFile => ErrorClass::SourceChanged,
        DiskErrorKind::NotFound | DiskErrorKind::Io => ErrorClass::MissingSource,
        DiskErrorKind::TooManyOpen => ErrorClass::RemoteBusy,
        _ => ErrorClass::Configuration,
    };
    ArchiveError { class, chain: vec![what.into(), error.to_string()] }
}

/// A copy within this machine that failed for the file or folder `path`. The engine tells which end is at fault; the rest
/// is in its text only, and the name of the file in it, which may be any word, must not decide.
pub(super) fn of_copy(what: impl Into<String>, error: &JobError, path: &[u8]) -> ArchiveError {
    let text = nameless(&error.text, path);
    let holds = |words: &[&str]| words.iter().any(|w| text.contains(w));
    let class = match error.class {
        FailureClass::Source if holds(&["No such file", "os error 2)", "vanished"]) => ErrorClass::MissingSource,
        FailureClass::Source if holds(&["was expected", "changed", "listed", "written to", "replaced"]) => {
            ErrorClass::SourceChanged
        }
        FailureClass::Source if holds(&["ermission denied", "symbolic link"]) => ErrorClass::Configuration,
        FailureClass::Source => ErrorClass::MissingSource,
        FailureClass::Destination
            if holds(&["No space", "quota", "os error 28)", "os error 122)", "Input/output error"]) =>
        {
            ErrorClass::NoSpace
        }
        FailureClass::Destination if holds(&["exists at the destination", "is something else"]) => {
            ErrorClass::DestinationDiffers
        }
        FailureClass::Destination if holds(&["another process holds its lock"]) => ErrorClass::RemoteBusy,
        FailureClass::Destination | FailureClass::Overtaken | FailureClass::Usage | FailureClass::Identity => {
            ErrorClass::Configuration
        }
        FailureClass::Integrity => ErrorClass::CorruptInFlight,
        FailureClass::Network => ErrorClass::Network,
        FailureClass::Cancelled => ErrorClass::Cancelled,
        FailureClass::Bug => ErrorClass::Bug,
    };
    ArchiveError { class, chain: vec![what.into(), error.text.clone()] }
}

/// A text without the names of a path and of the folders that it lies in.
fn nameless(text: &str, path: &[u8]) -> String {
    let mut text = text.to_owned();
    let mut named = path;
    while !named.is_empty() {
        text = text.replace(&escape_bytes(named), "");
        named = &named[..named.iter().rposition(|&b| b == b'/').unwrap_or(0)];
    }
    text
}

/// It was asked to end.
pub(super) fn cancelled(what: impl Into<String>) -> ArchiveError {
    ArchiveError { class: ErrorClass::Cancelled, chain: vec![what.into(), "ended on request".to_owned()] }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn names_choose_no_class() {
        for name in ["quota/x", "changed", "No space", "vanished"] {
            let text = DiskError::new("open", name, Errno::ACCESS).to_string();
            let error = JobError::new(FailureClass::Destination, text.clone());
            assert_eq!(of_copy("x", &error, name.as_bytes()).class, ErrorClass::Configuration, "{name}");
            let error = JobError::new(FailureClass::Source, text);
            assert_eq!(of_copy("x", &error, name.as_bytes()).class, ErrorClass::Configuration, "{name}");
        }
        let full = JobError::new(FailureClass::Destination, DiskError::new("write", "a", Errno::NOSPC).to_string());
        assert_eq!(of_copy("x", &full, b"a").class, ErrorClass::NoSpace);
    }
}
