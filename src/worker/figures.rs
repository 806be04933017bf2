use std::{fmt, sync::Arc};

use super::Shared;
use crate::{
    model::{AttemptOutcome, Ending, ErrorClass},
    telemetry::metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, Kind, LabelValueEncoder, Metrics},
};

/// What a worker counted since it started.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    attempts: Family<EndLabels, Counter>,
    bytes: Counter,
    packages: Counter,
    outcomes: Family<WriteLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    end: Ended,
}

/// How an attempt ended: `completed`, `handed_back`, `overtaken` or the class of its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ended {
    Completed,
    HandedBack,
    Overtaken,
    Failed(ErrorClass),
}

impl EncodeLabelValue for Ended {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        let word = match self {
            Self::Completed => "completed",
            Self::HandedBack => "handed_back",
            Self::Overtaken => "overtaken",
            Self::Failed(class) => class.as_str(),
        };
        EncodeLabelValue::encode(&word, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    result: Wrote,
}

/// What the database said to an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Wrote {
    Now,
    Before,
    Stale,
    Later,
    Refused,
}

impl Figures {
    /// Shows them as `ccat_xfer_worker_...`, with what the worker has at the moment.
    pub(super) fn register(shared: &Arc<Shared>, metrics: &Metrics) {
        let figures = shared.figures.clone();
        metrics.section("worker", |registry| {
            registry.register("attempts", "Attempts that ended here, by how", figures.attempts);
            registry.register("verified_bytes", "Bytes of packages that arrived and were found equal", figures.bytes);
            registry.register("verified_packages", "Packages that arrived and were found equal", figures.packages);
            registry.register("outcomes", "Outcomes given to the database, by what it said", figures.outcomes);
        });
        let at = |read: fn(&Shared) -> u64| {
            let shared = Arc::clone(shared);
            move || read(&shared)
        };
        let many = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let (slots, running) = (at(|s| s.config.slots.into()), at(|s| s.slots.used().into()));
        metrics.observe("worker", "slots", "Attempts that may run at once", Kind::Gauge, slots);
        metrics.observe("worker", "slots_used", "Attempts that run", Kind::Gauge, running);
        let spool = Arc::clone(shared);
        metrics.observe(
            "worker",
            "spooled",
            "Outcomes on this disk that wait for the database",
            Kind::Gauge,
            move || many(spool.spool.waiting()),
        );
    }

    pub(super) fn count_ended(&self, end: Ended) {
        self.attempts.get_or_create(&EndLabels { end }).inc();
    }

    /// Counts an outcome of this process, before it is written.
    pub(super) fn count_outcome(&self, outcome: &AttemptOutcome) {
        for evidence in outcome.evidence.iter().filter(|e| e.is_equal()) {
            self.bytes.inc_by(evidence.found_size_bytes);
            self.packages.inc();
        }
        self.count_ended(match &outcome.ending {
            Ending::Completed => Ended::Completed,
            Ending::HandedBack { .. } => Ended::HandedBack,
            Ending::Failed { class, .. } => Ended::Failed(*class),
        });
    }

    pub(super) fn count_written(&self, result: Wrote) {
        self.outcomes.get_or_create(&WriteLabels { result }).inc();
    }
}
