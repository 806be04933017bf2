//! `--json`: one object per line on stdout, one line per event.
//!
//! Every object has `schema` (1) and `event`. Within one schema fields may be added, never removed or changed; readers
//! skip what they do not know. Sizes are bytes.
//!
//! - `file`: one entry reached its end. `path` relative to the destination, null unless it is UTF-8; `path_b64` the same
//!   bytes in base64, always; `size`; `digest` BLAKE3 in hexadecimal, or null; `action`: `copied`, `same`, `trusted`,
//!   `made`, `skipped`, `would_copy`, `verified` or `failed`; with `failed` also `class` (a word of [`super::exit`]) and
//!   `text`. If the receiver said how it knows: `evidence`, a list of `method` (`received`, `direct`, `dropped`,
//!   `cached`), `medium` (`memory`, `disk`), `cached` (may have come from a cache), `host`, `program`, `start_ns` and
//!   `end_ns` (since 1970-01-01 UTC).
//! - `progress`: `entries_done`, `entries_found`, `bytes_done` (verified), `bytes_durable`, `bytes_found`,
//!   `scan_complete`, `links`.
//! - `warning`: `text`.
//! - `summary`: always the last line. `exit` and `exit_code` as in [`super::exit`]; `class` and `text` if the job ended
//!   early, else null; then the figures, null if the job did not get that far: `bytes`, `files`, `others` (folders and
//!   links), `skipped`, `hard_links`, `failed`, `seconds`, `goodput_mbit_s`, `wire_bytes`, `bytes_resumed`,
//!   `bytes_repeated`, `transport` (words joined by `+`), `transport_reason`, `streams`, `controller`, `retransmits`,
//!   `tree_digest`, `limited_by`. Of `verify`: `bytes`, `files` (right), `failed`, of these `different` and
//!   `unreadable`, `seconds`.

use std::{
    fmt,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::{base64, exit::Exit, verify::Outcome};
use crate::{
    engine::{Action, FileReport, JobError, Progress, Summary},
    protocol::Evidence,
};

const SCHEMA: u32 = 1;

/// Writes events. A reader that went away silences it; the job goes on.
pub(super) struct Json {
    out: Mutex<Option<Box<dyn Write + Send>>>,
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json")
    }
}

impl Json {
    pub(super) fn stdout() -> Self {
        // Whole lines per write: a reader that follows along sees no half objects.
        Self::to(Box::new(io::BufWriter::with_capacity(64 << 10, io::stdout())))
    }

    pub(super) fn to(out: Box<dyn Write + Send>) -> Self {
        Self { out: Mutex::new(Some(out)) }
    }

    pub(super) fn file(&self, report: &FileReport) {
        let (class, text) = match &report.action {
            Action::Failed { class, text } => (Some(class.word()), Some(text.as_str())),
            _ => (None, None),
        };
        self.line(
            &FileEvent {
                schema: SCHEMA,
                event: "file",
                path: std::str::from_utf8(&report.path).ok(),
                path_b64: base64::encode(&report.path),
                size: report.size,
                digest: report.digest.map(|d| d.to_string()),
                action: report.action.word(),
                class,
                text,
                evidence: report.evidence.iter().map(Proof::of).collect(),
            },
            false,
        );
    }

    /// A file that `verify` found right.
    pub(super) fn verified(&self, report: &FileReport) {
        self.line(
            &FileEvent {
                schema: SCHEMA,
                event: "file",
                path: std::str::from_utf8(&report.path).ok(),
                path_b64: base64::encode(&report.path),
                size: report.size,
                digest: report.digest.map(|d| d.to_string()),
                action: "verified",
                class: None,
                text: None,
                evidence: Vec::new(),
            },
            false,
        );
    }

    pub(super) fn progress(&self, progress: &Progress) {
        self.line(
            &ProgressEvent {
                schema: SCHEMA,
                event: "progress",
                entries_done: progress.entries_done,
                entries_found: progress.entries_found,
                bytes_done: progress.bytes_done,
                bytes_durable: progress.bytes_durable,
                bytes_found: progress.bytes_found,
                scan_complete: progress.scan_complete,
                links: progress.links,
            },
            true,
        );
    }

    pub(super) fn warning(&self, text: &str) {
        self.line(&WarningEvent { schema: SCHEMA, event: "warning", text }, true);
    }

    /// The last line.
    pub(super) fn summary(&self, exit: Exit, error: Option<&JobError>, summary: Option<&Summary>) {
        let s = summary;
        self.line(
            &SummaryEvent {
                schema: SCHEMA,
                event: "summary",
                exit: exit.word(),
                exit_code: exit.code(),
                class: error.map(|e| e.class.word()),
                text: error.map(|e| e.text.as_str()),
                bytes: s.map(|s| s.bytes),
                files: s.map(|s| s.files),
                others: s.map(|s| s.others),
                skipped: s.map(|s| s.skipped),
                hard_links: s.map(|s| s.hard_links),
                failed: s.map(|s| s.failed),
                seconds: s.map(|s| s.seconds),
                goodput_mbit_s: s.map(Summary::goodput_mbit_s),
                wire_bytes: s.map(|s| s.wire_bytes),
                bytes_resumed: s.map(|s| s.bytes_resumed),
                bytes_repeated: s.map(|s| s.bytes_repeated),
                transport: s.map(|s| s.transports.iter().map(|t| t.word()).collect::<Vec<_>>().join("+")),
                transport_reason: s.map(|s| s.transport_reason.as_str()),
                streams: s.map(|s| s.streams),
                controller: s.map(|s| s.controller.as_str()),
                retransmits: s.map(|s| s.retransmits),
                tree_digest: s.and_then(|s| s.tree_digest).map(|d| d.to_string()),
                limited_by: s.map(|s| s.limited_by.word()),
            },
            true,
        );
    }

    /// The last line of `verify`.
    pub(super) fn verify_summary(&self, exit: Exit, outcome: &Outcome) {
        self.line(
            &VerifyEvent {
                schema: SCHEMA,
                event: "summary",
                exit: exit.word(),
                exit_code: exit.code(),
                class: None,
                text: None,
                bytes: outcome.bytes,
                files: outcome.files,
                failed: outcome.different + outcome.unreadable,
                different: outcome.different,
                unreadable: outcome.unreadable,
                seconds: outcome.seconds,
            },
            true,
        );
    }

    fn line(&self, event: &impl Serialize, flush: bool) {
        let mut guard = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(out) = guard.as_mut() else { return };
        let written = serde_json::to_vec(event).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            out.write_all(&line)?;
            if flush { out.flush() } else { Ok(()) }
        });
        if written.is_err() {
            *guard = None;
        }
    }
}

#[derive(Serialize)]
struct FileEvent<'a> {
    schema: u32,
    event: &'static str,
    path: Option<&'a str>,
    path_b64: String,
    size: u64,
    digest: Option<String>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<Proof<'a>>,
}

#[derive(Serialize)]
struct Proof<'a> {
    method: &'a str,
    medium: &'a str,
    cached: bool,
    host: &'a str,
    program: &'a str,
    start_ns: i64,
    end_ns: i64,
}

impl<'a> Proof<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        Self {
            method: &evidence.method,
            medium: &evidence.medium,
            cached: evidence.cached,
            host: &evidence.host,
            program: &evidence.program,
            start_ns: evidence.start_ns,
            end_ns: evidence.end_ns,
        }
    }
}

#[derive(Serialize)]
struct ProgressEvent {
    schema: u32,
    event: &'static str,
    entries_done: u64,
    entries_found: u64,
    bytes_done: u64,
    bytes_durable: u64,
    bytes_found: u64,
    scan_complete: bool,
    links: u32,
}

#[derive(Serialize)]
struct WarningEvent<'a> {
    schema: u32,
    event: &'static str,
    text: &'a str,
}

#[derive(Serialize)]
struct SummaryEvent<'a> {
    schema: u32,
    event: &'static str,
    exit: &'static str,
    exit_code: u8,
    class: Option<&'static str>,
    text: Option<&'a str>,
    bytes: Option<u64>,
    files: Option<u64>,
    others: Option<u64>,
    skipped: Option<u64>,
    hard_links: Option<u64>,
    failed: Option<u64>,
    seconds: Option<f64>,
    goodput_mbit_s: Option<f64>,
    wire_bytes: Option<u64>,
    bytes_resumed: Option<u64>,
    bytes_repeated: Option<u64>,
    transport: Option<String>,
    transport_reason: Option<&'a str>,
    streams: Option<u32>,
    controller: Option<&'a str>,
    retransmits: Option<u64>,
    tree_digest: Option<String>,
    limited_by: Option<&'static str>,
}

#[derive(Serialize)]
struct VerifyEvent {
    schema: u32,
    event: &'static str,
    exit: &'static str,
    exit_code: u8,
    class: Option<&'static str>,
    text: Option<&'static str>,
    bytes: u64,
    files: u64,
    failed: u64,
    different: u64,
    unreadable: u64,
    seconds: f64,
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        chunk::Digest,
        engine::{FailureClass, Limit, TransportKind},
    };

    /// A writer whose bytes a test can read.
    #[derive(Clone, Debug, Default)]
    pub(in crate::cli) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(in crate::cli) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(in crate::cli) fn summary() -> Summary {
        Summary {
            bytes: 3_000_000,
            files: 2,
            others: 1,
            skipped: 1,
            hard_links: 0,
            failed: 1,
            seconds: 0.5,
            wire_bytes: 2_100_000,
            bytes_resumed: 1_000_000,
            transports: vec![TransportKind::Quic, TransportKind::Tcp],
            transport_reason: "quic answered first".into(),
            streams: 8,
            controller: "bbr".into(),
            bytes_repeated: 4096,
            retransmits: 3,
            tree_digest: Some(Digest([0xab; 32])),
            limited_by: Limit::Network,
        }
    }

    /// The schema is a promise: this text may grow, but what is there stays.
    #[test]
    fn golden_events() {
        let out = Captured::default();
        let json = Json::to(Box::new(out.clone()));
        let mut report = FileReport {
            path: b"a/b".to_vec(),
            size: 3,
            digest: Some(Digest([1; 32])),
            action: Action::Copied,
            evidence: Vec::new(),
            modified_us: None,
        };
        json.file(&report);
        report.evidence.push(Evidence {
            method: "direct".into(),
            medium: "disk".into(),
            cached: false,
            host: "h".into(),
            program: "p 1".into(),
            start_ns: 4,
            end_ns: 5,
        });
        json.file(&report);
        report.evidence.clear();
        json.verified(&report);
        report.path = b"\xff\n".to_vec();
        report.digest = None;
        report.action = Action::Failed { class: FailureClass::Source, text: "gone".into() };
        json.file(&report);
        json.progress(&Progress {
            entries_done: 1,
            entries_found: 2,
            bytes_done: 3,
            bytes_durable: 4,
            bytes_found: 5,
            scan_complete: true,
            links: 6,
        });
        json.warning("slow");
        json.summary(Exit::Partial, None, Some(&summary()));
        json.summary(
            Exit::Failed(FailureClass::Network),
            Some(&JobError::new(FailureClass::Network, "no answer")),
            None,
        );
        let one = "01".repeat(32);
        let ab = "ab".repeat(32);
        let golden = format!(
            r#"{{"schema":1,"event":"file","path":"a/b","path_b64":"YS9i","size":3,"digest":"{one}","action":"copied"}}
{{"schema":1,"event":"file","path":"a/b","path_b64":"YS9i","size":3,"digest":"{one}","action":"copied","evidence":[{{"method":"direct","medium":"disk","cached":false,"host":"h","program":"p 1","start_ns":4,"end_ns":5}}]}}
{{"schema":1,"event":"file","path":"a/b","path_b64":"YS9i","size":3,"digest":"{one}","action":"verified"}}
{{"schema":1,"event":"file","path":null,"path_b64":"/wo=","size":3,"digest":null,"action":"failed","class":"source","text":"gone"}}
{{"schema":1,"event":"progress","entries_done":1,"entries_found":2,"bytes_done":3,"bytes_durable":4,"bytes_found":5,"scan_complete":true,"links":6}}
{{"schema":1,"event":"warning","text":"slow"}}
{{"schema":1,"event":"summary","exit":"partial","exit_code":8,"class":null,"text":null,"bytes":3000000,"files":2,"others":1,"skipped":1,"hard_links":0,"failed":1,"seconds":0.5,"goodput_mbit_s":32.0,"wire_bytes":2100000,"bytes_resumed":1000000,"bytes_repeated":4096,"transport":"quic+tcp","transport_reason":"quic answered first","streams":8,"controller":"bbr","retransmits":3,"tree_digest":"{ab}","limited_by":"network"}}
{{"schema":1,"event":"summary","exit":"network","exit_code":7,"class":"network","text":"no answer","bytes":null,"files":null,"others":null,"skipped":null,"hard_links":null,"failed":null,"seconds":null,"goodput_mbit_s":null,"wire_bytes":null,"bytes_resumed":null,"bytes_repeated":null,"transport":null,"transport_reason":null,"streams":null,"controller":null,"retransmits":null,"tree_digest":null,"limited_by":null}}
"#
        );
        assert_eq!(out.text(), golden);
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        #[derive(Debug)]
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let json = Json::to(Box::new(Closed));
        json.warning("one");
        json.warning("two");
    }
}
