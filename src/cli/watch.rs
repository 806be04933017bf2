//! The observer of a job: passes events to the terminal or to JSON, counts, and writes the manifest.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    exit::{Exit, Tally},
    human::{self, Screen},
    json::Json,
    manifest,
};
use crate::engine::{Action, FileReport, JobError, Observer, Progress, Summary};

/// Watches one job.
#[derive(Debug)]
pub(super) struct Watch {
    screen: Screen,
    json: Option<Json>,
    dry_run: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tally: Tally,
    manifest: Option<manifest::Writer>,
    manifest_error: Option<manifest::ManifestError>,
    trusted: u64,
}

impl Watch {
    pub(super) fn new(screen: Screen, json: Option<Json>, dry_run: bool, manifest: Option<manifest::Writer>) -> Self {
        Self { screen, json, dry_run, state: Mutex::new(State { manifest, ..State::default() }) }
    }

    /// Says how the job ended. The manifest is complete only if the job ran to its end.
    pub(super) fn finish(&self, result: &Result<Summary, JobError>) -> Exit {
        self.screen.clear();
        let mut state = self.state();
        let (exit, error, summary) = match result {
            Ok(summary) => (state.tally.exit().at_least(summary.failed), None, Some(summary)),
            Err(error) => (Exit::Failed(error.class), Some(error), error.summary.as_deref()),
        };
        let mut exit = exit;
        if let Some(writer) = state.manifest.take() {
            let written = match (state.manifest_error.take(), result) {
                (Some(error), _) => Err(error),
                (None, Ok(_)) => writer.finish(),
                (None, Err(_)) => Ok(()),
            };
            if let Err(error) = written {
                self.warn(&error.to_string());
                if exit == Exit::Success {
                    exit = Exit::Partial;
                }
            } else if state.trusted > 0 {
                self.warn(&format!("{} files were trusted, not read, and are not in the manifest", state.trusted));
            }
        }
        drop(state);
        match &self.json {
            Some(json) => json.summary(exit, error, summary),
            None => {
                if let Some(summary) = summary {
                    self.screen.print(&human::summary(summary, self.dry_run));
                }
                if let Some(error) = error {
                    self.screen.note(&format!("ccat-xfer: {error}"));
                }
            }
        }
        exit
    }

    fn warn(&self, text: &str) {
        match &self.json {
            Some(json) => json.warning(text),
            None => self.screen.note(&format!("warning: {text}")),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves counters that are still good to report.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Watch {
    fn file(&self, report: &FileReport) {
        {
            let mut state = self.state();
            match &report.action {
                Action::Failed { class, .. } => state.tally.failed(*class),
                Action::Made | Action::Skipped => {}
                Action::Trusted => {
                    state.trusted += 1;
                    state.tally.done();
                }
                Action::Copied | Action::Same | Action::WouldCopy => state.tally.done(),
            }
            if let (Action::Copied | Action::Same, Some(digest)) = (&report.action, report.digest)
                && let Some(writer) = &mut state.manifest
                && let Err(error) = writer.add(&report.path, digest)
            {
                state.manifest_error.get_or_insert(error);
            }
        }
        match &self.json {
            Some(json) => json.file(report),
            None => self.screen.file(report),
        }
    }

    fn warning(&self, text: &str) {
        self.warn(text);
    }

    fn progress(&self, progress: &Progress) {
        match &self.json {
            Some(json) => json.progress(progress),
            None => self.screen.progress(progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chunk::Digest,
        cli::json::tests::{Captured, summary},
        engine::FailureClass,
    };

    fn report(path: &str, action: Action) -> FileReport {
        FileReport {
            path: path.into(),
            size: 1,
            digest: Some(Digest::of(path.as_bytes())),
            action,
            evidence: Vec::new(),
            modified_us: None,
        }
    }

    #[test]
    fn the_exit_follows_the_events() {
        let out = Captured::default();
        let watch = Watch::new(Screen::without_bar(), Some(Json::to(Box::new(out.clone()))), false, None);
        watch.file(&report("a", Action::Copied));
        watch.file(&report("b", Action::Failed { class: FailureClass::Source, text: "gone".into() }));
        watch.progress(&Progress::default());
        assert_eq!(watch.finish(&Ok(summary())), Exit::Partial);
        let text = out.text();
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().last().unwrap().starts_with(r#"{"schema":1,"event":"summary","exit":"partial""#));
    }

    #[test]
    fn failures_that_only_the_summary_knows_are_not_success() {
        let watch = Watch::new(Screen::without_bar(), Some(Json::to(Box::new(Captured::default()))), false, None);
        watch.file(&report("a", Action::Copied));
        assert_eq!(watch.finish(&Ok(summary())), Exit::Partial);
    }

    #[test]
    fn a_job_that_ended_early_writes_no_manifest() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("m");
        for (result, there) in [(Err(JobError::new(FailureClass::Network, "gone")), false), (Ok(summary()), true)] {
            let writer = manifest::Writer::create(&path).unwrap();
            let json = Json::to(Box::new(Captured::default()));
            let watch = Watch::new(Screen::without_bar(), Some(json), false, Some(writer));
            watch.file(&report("a", Action::Copied));
            watch.finish(&result);
            assert_eq!(path.exists(), there);
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), format!("{}  a\n", Digest::of(b"a")));
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}
