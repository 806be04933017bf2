use serde::Serialize;

use super::{BreakerState, ErrorClass, Status, Timestamp, Work};

/// Why a piece of work is not running, or that it is. One text each; `explain` shows all that hold, the one to act on
/// first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// It is over, well.
    #[error("it is completed")]
    Completed,
    /// It is over, and a person stopped it.
    #[error("it was cancelled: {text}")]
    Cancelled {
        /// Who stopped it, and why.
        text: String,
    },
    /// It is over until a person retries it.
    #[error("it failed for good ({class}): {text}; `retry` it when the cause is mended")]
    Failed {
        /// The last error's class.
        class: ErrorClass,
        /// The last error.
        text: String,
    },
    /// A worker has it.
    #[error("it is running on worker {worker}")]
    Running {
        /// The worker's name.
        worker: String,
    },
    /// Its worker was asked to stop it.
    #[error("it is being cancelled; worker {worker} was asked to stop")]
    Cancelling {
        /// The worker's name.
        worker: String,
    },
    /// The worker that has it has not been heard of.
    #[error("worker {worker} has not renewed its lease; it is offered to others with the next sweep")]
    LeaseExpired {
        /// The worker's name.
        worker: String,
    },
    /// The hop before it is not over.
    #[error("it waits for the hop before it, {hop}, which is {status}")]
    FirstHop {
        /// That hop.
        hop: Work,
        /// Where that stands.
        status: Status,
    },
    /// An operator stopped the route.
    #[error("route {route} is paused: {why}; `resume` it")]
    RoutePaused {
        /// The route's name.
        route: String,
        /// What the operator said.
        why: String,
    },
    /// The route is not in the topology any more.
    #[error("route {route} is inactive; `topology apply` with it makes it active")]
    RouteInactive {
        /// The route's name.
        route: String,
    },
    /// An operator stopped a location at one end.
    #[error("location {location} is paused: {why}; `resume` it")]
    LocationPaused {
        /// `SITE/LOCATION`.
        location: String,
        /// What the operator said.
        why: String,
    },
    /// A location at one end is not in the topology any more.
    #[error("location {location} is inactive; `topology apply` with it makes it active")]
    LocationInactive {
        /// `SITE/LOCATION`.
        location: String,
    },
    /// Attempts on the route kept failing.
    #[error("the circuit breaker of route {route} is {state}: {failures} attempts failed one after the other: {why}")]
    BreakerOpen {
        /// The route's name.
        route: String,
        /// Whether it waits, or lets one attempt through.
        state: BreakerState,
        /// How many.
        failures: u64,
        /// The last of them.
        why: String,
    },
    /// The package is not where it was registered.
    #[error("the package is missing at its origin: {text}")]
    MissingSource {
        /// The last error.
        text: String,
    },
    /// The destination had no room the last time.
    #[error("the destination {location} is full: {text}")]
    DestinationFull {
        /// `SITE/LOCATION`.
        location: String,
        /// The last error, or what is free.
        text: String,
    },
    /// It failed and waits for its next attempt.
    #[error("its last attempt failed ({class}: {text}) and it waits for the next one")]
    Backoff {
        /// The last error's class.
        class: ErrorClass,
        /// The last error.
        text: String,
    },
    /// It is not due yet, and nothing failed.
    #[error("it is not due yet")]
    NotDue,
    /// No living worker serves its queue.
    #[error("no worker that is alive serves queue {queue}; start one there with `worker`")]
    NoWorker {
        /// The queue.
        queue: String,
    },
    /// Too many were started in too short a time.
    #[error("the rate limit of {scope} ({limit}) is used up")]
    RateLimit {
        /// The queue, or `all queues`.
        scope: String,
        /// As `100/s`.
        limit: String,
    },
    /// So many run already on the route or at the location.
    #[error("{place} runs its {limit} at once already")]
    ConcurrencyLimit {
        /// A route or a location, with its name.
        place: String,
        /// How many.
        limit: u64,
    },
    /// All workers of the queue are busy.
    #[error("all {slots} slots of the workers of queue {queue} are taken")]
    NoSlot {
        /// The queue.
        queue: String,
        /// How many.
        slots: u64,
    },
    /// Nothing is in its way; a manager has not looked at it yet, or others are before it.
    #[error("it waits for a manager to offer it to the workers of queue {queue}; {before} are offered before it")]
    NotOffered {
        /// The queue.
        queue: String,
        /// How many are offered and not taken yet.
        before: u64,
    },
    /// Nothing is in its way; a worker will take it.
    #[error("it is offered to the workers of queue {queue}")]
    Offered {
        /// The queue.
        queue: String,
    },
}

/// A reason with the times that belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatedReason {
    /// The reason.
    #[serde(flatten)]
    pub reason: Reason,
    /// The reason's sentence.
    pub text: String,
    /// Since when it holds, where that is known.
    pub since: Option<Timestamp>,
    /// When it ends by itself, where that is known.
    pub until: Option<Timestamp>,
}

impl DatedReason {
    /// A reason with its times.
    pub fn new(reason: Reason, since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self { text: reason.to_string(), reason, since, until }
    }
}
