//! The registry of figures, in the text format that Prometheus reads (OpenMetrics 1.0).
//!
//! A module that counts has a struct of counters of its own, made once and registered here under its section; it counts
//! whether or not anybody looks. Labels derive [`EncodeLabelValue`] on an enum. What somebody else counts already is read
//! when it is asked for: [`Metrics::observe`].

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
pub use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The figures of a process. Every name begins with `ccat_xfer_`.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Without any figure.
    pub fn new() -> Self {
        Self { registry: Arc::new(Mutex::new(Registry::with_prefix("ccat_xfer"))) }
    }

    /// Adds figures whose names continue with `section`, a noun such as `broker`.
    pub fn section(&self, section: &'static str, register: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(registry.sub_registry_with_prefix(section));
    }

    /// Adds a figure that is read whenever somebody asks. `read` must not block.
    pub fn observe(
        &self,
        section: &'static str,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let observed = Observed { name, help, kind, read: Box::new(read) };
        self.section(section, |registry| registry.register_collector(Box::new(observed)));
    }

    /// All figures as text.
    ///
    /// # Errors
    /// A figure of ours cannot be written, which is a defect of its encoder.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// How a figure may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
}

struct Observed {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = (self.read)();
        // A collector's help is written as it stands, a registered figure's with a full stop behind it.
        let help = format!("{}.", self.help);
        match self.kind {
            Kind::Counter => {
                let figure = ConstCounter::new(now);
                figure.encode(encoder.encode_descriptor(self.name, &help, None, figure.metric_type())?)
            }
            Kind::Gauge => {
                let figure = ConstGauge::new(i64::try_from(now).unwrap_or(i64::MAX));
                figure.encode(encoder.encode_descriptor(self.name, &help, None, figure.metric_type())?)
            }
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
    enum Outcome {
        Done,
        Failed,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Labels {
        outcome: Outcome,
    }

    #[test]
    fn what_others_count_is_read_when_it_is_asked_for() {
        let metrics = Metrics::new();
        let count = Arc::new(std::sync::atomic::AtomicU64::new(7));
        let read = Arc::clone(&count);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        metrics.observe("store", "stale", "Refused", Kind::Counter, move || read.load(relaxed));
        metrics.observe("store", "waiting", "Waiting", Kind::Gauge, || 3);
        count.store(9, relaxed);
        let text = metrics.render().unwrap();
        for line in [
            "# HELP ccat_xfer_store_stale Refused.",
            "# TYPE ccat_xfer_store_stale counter",
            "ccat_xfer_store_stale_total 9",
            "# TYPE ccat_xfer_store_waiting gauge",
            "ccat_xfer_store_waiting 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n---\n{text}");
        }
    }

    #[test]
    fn figures_are_rendered_under_their_section() {
        let metrics = Metrics::new();
        let turns = Family::<Labels, Counter>::default();
        metrics.section("planner", |registry| registry.register("turns", "Turns of the planner", turns.clone()));
        turns.get_or_create(&Labels { outcome: Outcome::Done }).inc_by(3);
        turns.get_or_create(&Labels { outcome: Outcome::Failed }).inc();
        let text = metrics.render().unwrap();
        for line in [
            "# HELP ccat_xfer_planner_turns Turns of the planner.",
            "# TYPE ccat_xfer_planner_turns counter",
            "ccat_xfer_planner_turns_total{outcome=\"Done\"} 3",
            "ccat_xfer_planner_turns_total{outcome=\"Failed\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n---\n{text}");
        }
    }
}
