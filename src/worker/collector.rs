use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use super::failure::{Failure, UNEXPECTED, class_of, reason};
use crate::{
    chunk::{Digest, escape_bytes},
    engine::{Action, FailureClass, FileReport, Observer, Progress},
    model::{CheckMethod, Timestamp},
    protocol::Evidence,
};

/// Verified bytes of an attempt, over all its packages.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    finished: Arc<AtomicU64>,
    current: Arc<AtomicU64>,
    phase: Arc<AtomicU8>,
}

/// What an attempt does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Bytes move between sites.
    Transfer,
    /// Bytes go into an archive.
    Put,
    /// They are read from it.
    ReadBack,
    /// What was found is written beside them.
    Sidecar,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Transfer, Self::Put, Self::ReadBack, Self::Sidecar];

    /// The word in `list workers`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Transfer => "transfer",
            Self::Put => "put",
            Self::ReadBack => "read back",
            Self::Sidecar => "sidecar",
        }
    }
}

impl Meter {
    /// Verified so far.
    pub fn bytes(&self) -> u64 {
        self.finished.load(Ordering::Relaxed).saturating_add(self.current.load(Ordering::Relaxed))
    }

    /// What is being done.
    pub fn phase(&self) -> Phase {
        Phase::ALL.get(usize::from(self.phase.load(Ordering::Relaxed))).copied().unwrap_or(Phase::Transfer)
    }

    /// The next phase begins.
    pub fn enter(&self, phase: Phase) {
        let number = Phase::ALL.iter().position(|&p| p == phase).and_then(|n| u8::try_from(n).ok());
        self.phase.store(number.unwrap_or_default(), Ordering::Relaxed);
    }

    /// So many bytes of the package under way.
    pub(super) fn at(&self, bytes: u64) {
        self.current.store(bytes, Ordering::Relaxed);
    }

    /// A package is done; its bytes are these.
    pub fn finish(&self, bytes: u64) {
        self.current.store(0, Ordering::Relaxed);
        self.finished.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Watches the job of one package, and keeps what its receipts say: sums only, however many files a tree has.
#[derive(Debug)]
pub(super) struct Collector {
    meter: Meter,
    seen: Mutex<Seen>,
}

/// What the receiver said about a package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Regular files that are there.
    pub(super) files: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The digest of the last one: of the only one, where the package is a file.
    pub(super) digest: Option<Digest>,
    /// How it was looked at; the weakest of all.
    pub(super) look: Option<Look>,
    /// The source's bytes were not those that were registered, and nothing was published.
    pub(super) unexpected: Option<Unexpected>,
    /// The first entries that failed.
    pub(super) failures: Vec<Failure>,
    /// Warnings, the first ones.
    pub(super) warnings: Vec<String>,
}

/// A source with other bytes than were registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unexpected {
    pub(super) size_bytes: u64,
    /// When it was last written to, as its end says.
    pub(super) modified_at: Option<Timestamp>,
}

/// How the receiver knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) method: CheckMethod,
    pub(super) cached: bool,
    pub(super) host: String,
    pub(super) version: String,
    pub(super) started_at: Timestamp,
    pub(super) ended_at: Timestamp,
}

impl Look {
    fn of(action: &Action, evidence: &[Evidence]) -> Option<Self> {
        // The last look is the one closest to the medium.
        let last = evidence.last()?;
        let method = match (action, last.method.as_str()) {
            (Action::Same | Action::Trusted, _) => CheckMethod::FoundEqual,
            (_, "received") => CheckMethod::Received,
            _ => CheckMethod::ReadBack,
        };
        let time = |ns: i64| Timestamp::from_micros(ns / 1000);
        Some(Self {
            method,
            // What was hashed in memory before it was written says nothing of the medium.
            cached: last.cached || last.medium == "memory",
            host: last.host.clone(),
            version: last.program.clone(),
            started_at: time(evidence.iter().map(|e| e.start_ns).min()?),
            ended_at: time(evidence.iter().map(|e| e.end_ns).max()?),
        })
    }

    /// A tree is known as well as the least known file of it, and looked at from the first to the last.
    fn join(&mut self, other: Self) {
        if strength(other.method) < strength(self.method) {
            self.method = other.method;
        }
        self.cached |= other.cached;
        self.started_at = self.started_at.min(other.started_at);
        self.ended_at = self.ended_at.max(other.ended_at);
    }
}

const fn strength(method: CheckMethod) -> u8 {
    match method {
        CheckMethod::Received => 0,
        CheckMethod::FoundEqual => 1,
        CheckMethod::ReadBack => 2,
        CheckMethod::Scrub => 3,
    }
}

impl Collector {
    pub(super) fn new(meter: Meter) -> Self {
        Self { meter, seen: Mutex::default() }
    }

    /// What was seen so far.
    pub(super) fn seen(&self) -> Seen {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Collector {
    fn file(&self, report: &FileReport) {
        let mut seen = self.state();
        if let Action::Failed { class: FailureClass::Source, text } = &report.action
            && reason(text, &[&report.path]).contains(UNEXPECTED)
        {
            let modified_at = report.modified_us.map(Timestamp::from_micros);
            seen.unexpected = Some(Unexpected { size_bytes: report.size, modified_at });
        }
        match &report.action {
            Action::Failed { class, text } if seen.failures.len() < MOST_TEXTS => {
                let path = escape_bytes(&report.path);
                let class = class_of(*class, text, &[&report.path]);
                let text = if text.contains(&path) { text.clone() } else { format!("{path}: {text}") };
                seen.failures.push(Failure::new(class, text));
            }
            Action::Failed { .. } => {}
            action if report.digest.is_some() => {
                seen.files += 1;
                seen.bytes = seen.bytes.saturating_add(report.size);
                seen.digest = report.digest;
                if let Some(look) = Look::of(action, &report.evidence) {
                    match &mut seen.look {
                        Some(known) => known.join(look),
                        none => *none = Some(look),
                    }
                }
            }
            _ => {}
        }
    }

    fn warning(&self, text: &str) {
        let mut seen = self.state();
        if seen.warnings.len() < MOST_TEXTS {
            seen.warnings.push(text.to_owned());
        }
    }

    fn progress(&self, progress: &Progress) {
        self.meter.at(progress.bytes_done);
    }
}

/// Texts of one kind that are kept: the first ones say it all, and a tree may have a million.
const MOST_TEXTS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    fn report(path: &str, action: Action, method: &str, start_ns: i64) -> FileReport {
        let evidence = Evidence {
            method: method.into(),
            medium: if method == "received" { "memory" } else { "disk" }.into(),
            cached: false,
            host: "h".into(),
            program: "p 1".into(),
            start_ns,
            end_ns: start_ns + 5000,
        };
        FileReport {
            path: path.into(),
            size: 10,
            digest: Some(Digest::of(path.as_bytes())),
            action,
            evidence: vec![evidence],
            modified_us: Some(7),
        }
    }

    #[test]
    fn a_tree_is_known_as_well_as_its_least_known_file() {
        let collector = Collector::new(Meter::default());
        collector.file(&report("a", Action::Copied, "direct", 9_000));
        let look = collector.seen().look.unwrap();
        assert_eq!((look.method, look.cached), (CheckMethod::ReadBack, false));
        collector.file(&report("b", Action::Same, "direct", 1_000));
        collector.file(&report("c", Action::Copied, "received", 2_000));
        let seen = collector.seen();
        let look = seen.look.unwrap();
        assert_eq!((look.method, look.cached), (CheckMethod::Received, true));
        assert_eq!((look.started_at.micros(), look.ended_at.micros()), (1, 14));
        assert_eq!((seen.files, seen.bytes), (3, 30));
    }

    #[test]
    fn failures_keep_their_class_and_their_path() {
        let collector = Collector::new(Meter::default());
        for n in 0..100 {
            let text = "cannot write x: No space left on device (os error 28)".to_owned();
            let action = Action::Failed { class: FailureClass::Destination, text };
            collector.file(&report(&format!("f{n}"), action, "received", 0));
        }
        let seen = collector.seen();
        assert_eq!(seen.failures.len(), MOST_TEXTS);
        assert_eq!(seen.failures[0].class, crate::model::ErrorClass::NoSpace);
        assert!(seen.failures[0].chain[0].starts_with("f0: "), "{:?}", seen.failures[0]);
        assert_eq!(seen.files, 0);
    }

    #[test]
    fn only_what_the_receiver_says_makes_a_source_unexpected() {
        let collector = Collector::new(Meter::default());
        let failed = |text: &str| Action::Failed { class: FailureClass::Source, text: text.into() };
        collector.file(&report("was expected", failed("cannot open was expected: No such file"), "received", 0));
        let seen = collector.seen();
        assert_eq!((seen.unexpected, seen.failures[0].class), (None, crate::model::ErrorClass::MissingSource));
        collector.file(&report("a", failed("a: the source has digest 1, but 2 was expected"), "received", 0));
        assert_eq!(collector.seen().unexpected.map(|u| u.size_bytes), Some(10));
    }
}
