use crate::telemetry::metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, Metrics};

/// What a broker's client counted since it was made.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    published: Family<PublishLabels, Counter>,
    delivered: Counter,
    acknowledged: Counter,
    given_back: Counter,
    dead: Family<DeadLabels, Counter>,
    connected: Counter,
    failed: Counter,
    replaced: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PublishLabels {
    result: Published,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Published {
    Confirmed,
    Unroutable,
    Full,
    Unconfirmed,
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLabels {
    reason: Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Dead {
    Undecodable,
    Rejected,
    GivenUp,
}

impl Figures {
    /// Shows them in `metrics`, as `ccat_xfer_broker_...`.
    pub fn register(&self, metrics: &Metrics) {
        metrics.section("broker", |registry| {
            registry.register(
                "hints_published",
                "Hints handed to the broker, by what became of them",
                self.published.clone(),
            );
            registry.register("hints_delivered", "Hints given to a worker", self.delivered.clone());
            registry.register("hints_acknowledged", "Hints that a worker acknowledged", self.acknowledged.clone());
            registry.register("hints_given_back", "Hints given back without acknowledgement", self.given_back.clone());
            registry.register("dead_letters", "Dead letters that the sink took, by reason", self.dead.clone());
            registry.register("connections", "Connections made", self.connected.clone());
            registry.register("failures", "Connections and sessions that failed", self.failed.clone());
            registry.register("queues_replaced", "Stuck queues that were deleted", self.replaced.clone());
        });
    }

    /// Hints that the broker confirmed.
    pub fn confirmed(&self) -> u64 {
        self.published.get_or_create(&PublishLabels { result: Published::Confirmed }).get()
    }

    /// Connections made.
    pub fn connections(&self) -> u64 {
        self.connected.get()
    }

    /// Queues that were deleted because the broker could not work with them for long.
    pub fn replaced(&self) -> u64 {
        self.replaced.get()
    }

    pub(super) fn count_published(&self, result: Published) {
        self.published.get_or_create(&PublishLabels { result }).inc();
    }

    pub(super) fn count_dead(&self, reason: Dead) {
        self.dead.get_or_create(&DeadLabels { reason }).inc();
    }

    pub(super) fn count_delivered(&self) {
        self.delivered.inc();
    }

    pub(super) fn count_acknowledged(&self) {
        self.acknowledged.inc();
    }

    pub(super) fn count_given_back(&self) {
        self.given_back.inc();
    }

    pub(super) fn count_connected(&self) {
        self.connected.inc();
    }

    pub(super) fn count_failed(&self) {
        self.failed.inc();
    }

    pub(super) fn count_replaced(&self) {
        self.replaced.inc();
    }
}

impl From<&super::DeadReason> for Dead {
    fn from(reason: &super::DeadReason) -> Self {
        match reason {
            super::DeadReason::Undecodable(_) => Self::Undecodable,
            super::DeadReason::Rejected => Self::Rejected,
            super::DeadReason::GivenUp { .. } => Self::GivenUp,
        }
    }
}
