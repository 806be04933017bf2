use crate::{
    store::{ArchivesPlanned, Planned, Scheduled, Settled, Swept},
    telemetry::metrics::{Counter, EncodeLabelSet, EncodeLabelValue, Family, Metrics},
};

/// What a manager did since it started.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    turns: Family<TurnLabels, Counter>,
    intake: Family<IntakeLabels, Counter>,
    bundles: Counter,
    transfers: Counter,
    packages: Counter,
    obstacles: Counter,
    archive_transfers: Counter,
    repairs: Counter,
    unrepaired: Counter,
    ends: Counter,
    failovers: Counter,
    offered: Counter,
    taken_back: Counter,
    cancelled: Counter,
    leases_lost: Counter,
    given_up: Counter,
    hinted_again: Counter,
    workers_lost: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TurnLabels {
    task: Task,
    result: TurnEnd,
}

/// The loops of a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Task {
    Intake,
    Planner,
    Archiver,
    Settler,
    Sweeper,
    Relay,
    Outbox,
}

impl Task {
    /// Its name in the log and in `/health`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Intake => "intake",
            Self::Planner => "planner",
            Self::Archiver => "archiver",
            Self::Settler => "settler",
            Self::Sweeper => "sweeper",
            Self::Relay => "relay",
            Self::Outbox => "outbox",
        }
    }
}

/// How one turn of a loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum TurnEnd {
    Idle,
    Worked,
    Unfinished,
    /// Another manager was faster.
    Conflict,
    Failed,
    Panicked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IntakeLabels {
    decision: Decision,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Decision {
    Accepted,
    Refused,
}

impl Figures {
    /// Shows them as `ccat_xfer_manager_...`.
    pub(super) fn register(&self, metrics: &Metrics) {
        let f = self.clone();
        metrics.section("manager", |registry| {
            registry.register("turns", "Turns of the manager's loops, by how they ended", f.turns);
            registry.register("intake_rows", "Rows of other programs, by what became of them", f.intake);
            registry.register("bundles_planned", "Bundles made", f.bundles);
            registry.register("transfers_planned", "Transfers made, one for each hop", f.transfers);
            registry.register("packages_planned", "Packages in the bundles made", f.packages);
            registry.register("obstacles_met", "Groups that a look could not place", f.obstacles);
            registry.register("archive_transfers_planned", "Archive transfers made", f.archive_transfers);
            registry.register("repairs_planned", "Archive transfers made to replace a bad copy", f.repairs);
            registry.register(
                "repairs_without_source",
                "Looks at a bad copy with nothing to repair from",
                f.unrepaired,
            );
            registry.register("ends_settled", "Ends of work whose consequences were drawn", f.ends);
            registry.register("failovers", "Transfers that another buffer got instead", f.failovers);
            registry.register("offers", "Work offered to workers", f.offered);
            registry.register("offers_taken_back", "Offers taken back because their way was stopped", f.taken_back);
            registry.register("cancelled", "Work ended because somebody asked for it", f.cancelled);
            registry.register("leases_lost", "Work offered again after its lease was lost", f.leases_lost);
            registry.register("given_up", "Work failed because too many leases were lost with it", f.given_up);
            registry.register("queues_hinted_again", "Queues that got a new hint for an old offer", f.hinted_again);
            registry.register("workers_lost", "Workers that were not heard of", f.workers_lost);
        });
    }

    pub(super) fn count_turn(&self, task: Task, result: TurnEnd) {
        self.turns.get_or_create(&TurnLabels { task, result }).inc();
    }

    pub(super) fn count_intake(&self, is_accepted: bool) {
        let decision = if is_accepted { Decision::Accepted } else { Decision::Refused };
        self.intake.get_or_create(&IntakeLabels { decision }).inc();
    }

    pub(super) fn count_settle(&self, settled: &Settled) {
        add(&self.ends, settled.ends);
        add(&self.failovers, settled.failovers);
    }

    pub(super) fn count_archives(&self, planned: &ArchivesPlanned) {
        add(&self.archive_transfers, planned.transfers);
        add(&self.repairs, planned.repairs);
        add(&self.unrepaired, planned.unrepaired.len());
    }

    pub(super) fn count_plan(&self, planned: &Planned, scheduled: &Scheduled) {
        add(&self.bundles, planned.bundles);
        add(&self.transfers, planned.transfers);
        add(&self.packages, planned.packages);
        add(&self.obstacles, planned.obstacles.len());
        add(&self.offered, planned.offered + scheduled.offered);
        add(&self.taken_back, scheduled.taken_back);
        add(&self.cancelled, scheduled.cancelled);
    }

    pub(super) fn count_sweep(&self, swept: &Swept) {
        add(&self.leases_lost, swept.offered.len());
        add(&self.given_up, swept.failed.len());
        add(&self.cancelled, swept.cancelled.len());
        self.hinted_again.inc_by(swept.hinted.into());
        add(&self.workers_lost, swept.dead_workers.len());
    }
}

fn add(counter: &Counter, n: usize) {
    counter.inc_by(u64::try_from(n).unwrap_or(u64::MAX));
}
