use crate::{
    chunk::escape_bytes,
    disk::{DiskError, DiskErrorKind},
    engine::{FailureClass, JobError},
    model::ErrorClass,
};

/// Why an attempt failed, in the control plane's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind it is, which decides about another attempt.
    pub class: ErrorClass,
    /// The error and its causes, outermost first.
    pub chain: Vec<String>,
}

impl Failure {
    /// Of one text.
    pub fn new(class: ErrorClass, text: impl Into<String>) -> Self {
        Self { class, chain: vec![text.into()] }
    }

    pub(super) fn configuration(text: impl Into<String>) -> Self {
        Self::new(ErrorClass::Configuration, text)
    }

    /// With what was being done in front of it.
    pub(super) fn during(mut self, what: impl Into<String>) -> Self {
        self.chain.insert(0, what.into());
        self
    }

    /// An attempt of the engine that failed, for a package of these paths.
    pub(super) fn of_job(error: &JobError, paths: &[&[u8]]) -> Self {
        Self::new(class_of(error.class, &error.text, paths), error.text.clone())
    }

    /// Whether it says something about one package only, so that others of its bundle may well go through.
    pub(super) const fn is_of_one_package(&self) -> bool {
        matches!(
            self.class,
            ErrorClass::MissingSource
                | ErrorClass::SourceChanged
                | ErrorClass::CorruptAtSource
                | ErrorClass::DestinationDiffers
        )
    }

    /// A file of our own end that cannot be looked at.
    pub(super) fn of_disk(error: &DiskError, end: End) -> Self {
        let class = match (error.kind(), end) {
            (DiskErrorKind::NoSpace, _) => ErrorClass::NoSpace,
            // A mount may come late.
            (DiskErrorKind::NotFound, End::Origin) => ErrorClass::MissingSource,
            (DiskErrorKind::Changed | DiskErrorKind::NotAFile, End::Origin) => ErrorClass::SourceChanged,
            (DiskErrorKind::Io, End::Origin) => ErrorClass::MissingSource,
            (DiskErrorKind::Exists | DiskErrorKind::NotAFile, End::Destination) => ErrorClass::DestinationDiffers,
            _ => ErrorClass::Configuration,
        };
        Self::new(class, error.to_string())
    }
}

/// Which end of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Origin,
    Destination,
}

/// What a receiver says of a source whose bytes are not those that it was told to expect.
pub(super) const UNEXPECTED: &str = "was expected";

/// The one place where the engine's classes become the control plane's. The engine tells who is at fault; where one of its
/// classes is several of ours, the text that came with it decides, because that is all that comes from the far end; but not
/// the name of the file in it, which may be any word. The first row that fits holds.
///
/// | engine | text holds | class |
/// |---|---|---|
/// | source | `No such file`, `os error 2)` | missing_source |
/// | source | `was expected`, `changed` | source_changed; for a file that nobody wrote to since it was registered corrupt_at_source |
/// | source | `Permission denied`, `symbolic link` | configuration |
/// | source | anything else | missing_source |
/// | destination | `No space`, `quota`, `os error 28)`, `os error 122)` | no_space |
/// | destination | `exists at the destination` | destination_differs |
/// | destination | `Input/output error` | no_space: the medium fails, and another buffer may be taken |
/// | destination | anything else | configuration |
/// | network | `as many sessions as it may have` | remote_busy |
/// | network | anything else | network |
/// | integrity | | corrupt_in_flight |
/// | identity | `has no right to`, `no location` | configuration |
/// | identity | anything else | authentication |
/// | cancelled | | network: it was not us, so the far end is being stopped |
/// | overtaken | | configuration: the receiver knows a higher fence than a row that is still ours |
/// | usage | | configuration |
/// | bug | | bug |
const TABLE: &[(FailureClass, &[&str], ErrorClass)] = &[
    (FailureClass::Source, &["No such file", "os error 2)"], ErrorClass::MissingSource),
    (FailureClass::Source, &[UNEXPECTED, "changed"], ErrorClass::SourceChanged),
    (FailureClass::Source, &["Permission denied", "symbolic link"], ErrorClass::Configuration),
    (FailureClass::Source, &[], ErrorClass::MissingSource),
    (FailureClass::Destination, &["No space", "quota", "os error 28)", "os error 122)"], ErrorClass::NoSpace),
    (FailureClass::Destination, &["exists at the destination"], ErrorClass::DestinationDiffers),
    (FailureClass::Destination, &["Input/output error"], ErrorClass::NoSpace),
    (FailureClass::Destination, &[], ErrorClass::Configuration),
    (FailureClass::Network, &["as many sessions as it may have"], ErrorClass::RemoteBusy),
    (FailureClass::Network, &[], ErrorClass::Network),
    (FailureClass::Integrity, &[], ErrorClass::CorruptInFlight),
    (FailureClass::Identity, &["has no right to", "no location"], ErrorClass::Configuration),
    (FailureClass::Identity, &[], ErrorClass::Authentication),
    (FailureClass::Cancelled, &[], ErrorClass::Network),
    (FailureClass::Overtaken, &[], ErrorClass::Configuration),
    (FailureClass::Usage, &[], ErrorClass::Configuration),
    (FailureClass::Bug, &[], ErrorClass::Bug),
];

/// The class of a failure that the engine reports of one of these paths.
pub(super) fn class_of(class: FailureClass, text: &str, paths: &[&[u8]]) -> ErrorClass {
    let text = match class {
        FailureClass::Source | FailureClass::Destination => reason(text, paths),
        _ => text,
    };
    TABLE
        .iter()
        .find(|(of, words, _)| *of == class && (words.is_empty() || words.iter().any(|w| text.contains(w))))
        .map_or(ErrorClass::Bug, |(_, _, to)| *to)
}

/// What a text says about a file, behind the name of it. Texts name a file, or a folder that it lies in, and then say what
/// is wrong: `cannot write night/quota: No space left on device`.
pub(super) fn reason<'a>(text: &'a str, paths: &[&[u8]]) -> &'a str {
    for path in paths {
        let mut named = *path;
        while !named.is_empty() {
            let name = format!("{}: ", escape_bytes(named));
            if let Some(at) = text.find(&name) {
                return &text[at + name.len()..];
            }
            named = &named[..named.iter().rposition(|&b| b == b'/').unwrap_or(0)];
        }
    }
    // Another file's, such as one of ours beside it.
    match text.split_once(": ") {
        Some((what, reason)) if what.starts_with("cannot ") => reason,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    const CLASSES: [FailureClass; 9] = [
        FailureClass::Usage,
        FailureClass::Source,
        FailureClass::Destination,
        FailureClass::Integrity,
        FailureClass::Identity,
        FailureClass::Network,
        FailureClass::Overtaken,
        FailureClass::Cancelled,
        FailureClass::Bug,
    ];

    #[test]
    fn every_class_of_the_engine_has_a_row_for_any_text() {
        for class in CLASSES {
            let rows: Vec<_> = TABLE.iter().filter(|row| row.0 == class).collect();
            assert_eq!(rows.iter().filter(|row| row.1.is_empty()).count(), 1, "{class}");
            assert!(rows.last().unwrap().1.is_empty(), "{class}: what fits anything comes last");
        }
    }

    /// The words are those that the layers below really say.
    #[test]
    fn real_texts_find_their_class() {
        let disk = |errno| DiskError::new("write", "a/b", errno).to_string();
        for (class, text, expected) in [
            (FailureClass::Destination, disk(Errno::NOSPC), ErrorClass::NoSpace),
            (FailureClass::Destination, disk(Errno::DQUOT), ErrorClass::NoSpace),
            (FailureClass::Destination, disk(Errno::ROFS), ErrorClass::Configuration),
            (FailureClass::Destination, disk(Errno::ACCESS), ErrorClass::Configuration),
            (FailureClass::Source, disk(Errno::NOENT), ErrorClass::MissingSource),
            (FailureClass::Source, disk(Errno::ACCESS), ErrorClass::Configuration),
            (FailureClass::Source, disk(Errno::IO), ErrorClass::MissingSource),
        ] {
            assert_eq!(class_of(class, &text, &[b"a/b"]), expected, "{text}");
        }
        let busy = "the endpoint has as many sessions as it may have; try again later";
        assert_eq!(class_of(FailureClass::Network, busy, &[]), ErrorClass::RemoteBusy);
        let right = "\"p\" has no right to create in location \"x\"; the endpoint's settings grant it";
        assert_eq!(class_of(FailureClass::Identity, right, &[]), ErrorClass::Configuration);
        assert_eq!(class_of(FailureClass::Identity, "certificate unknown", &[]), ErrorClass::Authentication);
    }

    #[test]
    fn names_of_files_choose_no_class() {
        let denied = |path: &str| DiskError::new("open", path, Errno::ACCESS).to_string();
        for path in [
            "calibration_changed",
            "quota/x",
            "was expected/No space: changed",
            "a: No such file",
            "quota\n/exists at the destination",
            "night/os error 28)",
        ] {
            let source = |text: &str| class_of(FailureClass::Source, text, &[path.as_bytes()]);
            let destination = |text: &str| class_of(FailureClass::Destination, text, &[path.as_bytes()]);
            assert_eq!(source(&denied(path)), ErrorClass::Configuration, "{path}");
            assert_eq!(source(&denied(&format!("/srv/data/{path}"))), ErrorClass::Configuration, "{path}");
            assert_eq!(destination(&denied(path)), ErrorClass::Configuration, "{path}");
            let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
            assert_eq!(destination(&denied(folder)), ErrorClass::Configuration, "{folder}");
            let full = DiskError::new("write", path, Errno::NOSPC).to_string();
            assert_eq!(destination(&full), ErrorClass::NoSpace, "{path}");
            let other = format!("{}: the source has digest 1, but 2 was expected", escape_bytes(path.as_bytes()));
            assert_eq!(source(&other), ErrorClass::SourceChanged, "{path}");
        }
        // Not a file of the package.
        let ours = DiskError::new("write", ".ccat-xfer/quota", Errno::ROFS).to_string();
        assert_eq!(class_of(FailureClass::Destination, &ours, &[b"night"]), ErrorClass::Configuration);
        assert_eq!(class_of(FailureClass::Source, "it changed", &[b"night"]), ErrorClass::SourceChanged);
    }

    /// Texts that another layer owns are found in its source, so that a change there is noticed here.
    #[test]
    fn words_of_other_layers_are_still_theirs() {
        let server = include_str!("../endpoint/server.rs");
        assert!(server.contains("as many sessions as it may have"));
        let location = include_str!("../endpoint/location.rs");
        assert!(location.contains("has no right to") && location.contains("no location"));
        let receiver = include_str!("../protocol/receiver.rs");
        assert!(receiver.contains("exists at the destination") && receiver.contains(UNEXPECTED));
        assert!(include_str!("../protocol/settle.rs").contains(UNEXPECTED));
    }
}
