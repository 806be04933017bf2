//! The registry of figures, in the text format that Prometheus reads (OpenMetrics 1.0).
//!
//! A module that counts has a struct of counters of its own, made once and registered here under its section; it counts
//! whether or not anybody looks. Labels derive [`EncodeLabelValue`] on an enum.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
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
