//! Why a piece of work is not running. Everything is read in one snapshot, with the rules that scheduling and claims
//! go by; nothing is kept for it.

use serde::Serialize;

use super::{
    Store, StoreError,
    list::class,
    network::{IS_FRESH, network},
    plan::{destination, time},
    schedule::route_of,
    sql::{Row, Tx, args},
    work::Kind as WorkKind,
};
use crate::model::{
    Breaker, BreakerState, DatedReason, Errand, ErrorClass, LocationId, Obstacle, QueueName, Reason, RequestId,
    RetryPolicy, StartRate, StartTokens, Status, Timestamp, TransferId, Work,
};

/// Why a piece of work is not running, or that it is.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Which.
    pub work: Work,
    /// Where it stands.
    pub status: Status,
    /// Since when.
    pub since: Timestamp,
    /// All reasons that hold, the one to act on first. Never empty.
    pub reasons: Vec<DatedReason>,
    /// What went wrong the last time.
    pub last_error: Option<LastError>,
    /// When it is tried next; nothing for what runs or is over.
    pub next_attempt_at: Option<Timestamp>,
    /// Attempts so far.
    pub attempts: u64,
}

/// What went wrong in the last attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// Its class.
    pub class: ErrorClass,
    /// The error and its causes.
    pub text: String,
    /// When.
    pub at: Timestamp,
}

/// The columns that decide.
#[derive(Debug)]
struct Subject {
    kind: WorkKind,
    work: Work,
    status: Status,
    ready: bool,
    waits_for: Option<i64>,
    queue: i64,
    queue_name: String,
    route: i64,
    origin: i64,
    destination: i64,
    bytes: i64,
    next_attempt_at: Timestamp,
    updated_at: Timestamp,
    scheduled_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    owner: Option<String>,
    claimed_at: Option<Timestamp>,
    expired: bool,
    cancelling: bool,
    class: Option<ErrorClass>,
    text: String,
    attempts: u64,
    priority: i64,
}

impl Store {
    /// Why a piece of work is not running: all reasons that hold now.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn explain(&self, work: Work) -> Result<Explanation, StoreError> {
        let mut tx = self.read().await?;
        let now = time(&mut tx).await?;
        let subject = self.subject(&mut tx, work).await?;
        let mut reasons = Vec::new();
        match subject.status {
            Status::Completed => reasons.push(DatedReason::new(Reason::Completed, subject.finished_at, None)),
            Status::Failed => reasons.push(failed(&subject)),
            Status::InProgress => reasons.push(running(&subject)),
            Status::Pending | Status::Scheduled => self.obstacles(&mut tx, &subject, now, &mut reasons).await?,
        }
        let since = since(&mut tx, &subject).await?;
        let last_error = last_error(&mut tx, &subject).await?;
        let waits = matches!(subject.status, Status::Pending | Status::Scheduled);
        Ok(Explanation {
            work,
            status: subject.status,
            since,
            reasons,
            last_error,
            next_attempt_at: waits.then_some(subject.next_attempt_at),
            attempts: subject.attempts,
        })
    }

    /// Why a request has no transfer yet, looked up now; `None` when nothing is in its way or it has one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or the database is away.
    pub async fn request_obstacle(&self, request: RequestId) -> Result<Option<Obstacle>, StoreError> {
        let mut tx = self.read().await?;
        let text = "SELECT r.origin_location_id, r.destination_site_id, r.destination_location_id,
                r.data_transfer_package_id, r.withdrawn, p.size_bytes
            FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id WHERE r.id = $1";
        let row = tx.row(text, args![request]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound { what: "request", name: request.to_string() })?;
        if row.opt_int("data_transfer_package_id")?.is_some() || row.flag("withdrawn")? {
            return Ok(None);
        }
        let network = network(&mut tx).await?;
        let errand = Errand {
            origin: LocationId::new(row.int("origin_location_id")?),
            destination: destination(row.opt_int("destination_site_id")?, row.opt_int("destination_location_id")?),
            bytes: row.size("size_bytes")?,
            last_site: None,
            avoid: &[],
        };
        Ok(network.way(&errand).err())
    }

    async fn subject(&self, tx: &mut Tx, work: Work) -> Result<Subject, StoreError> {
        let kind = WorkKind::of(work);
        let clock = self.lease_clock();
        let own = match kind {
            WorkKind::Transfer => "t.ready, t.waits_for",
            WorkKind::Archive => "(1 = 1) AS ready, CAST(NULL AS BIGINT) AS waits_for",
        };
        let text = format!(
            "SELECT t.id, t.status, {own}, t.queue_location_id, l.queue_stem, {} AS route, t.origin_location_id,
                t.destination_location_id, t.bytes_total, t.next_attempt_at, t.updated_at, t.scheduled_at, t.finished_at,
                w.name AS owner, t.claimed_at, t.cancel_requested, t.error_class, t.error_text, t.attempt, t.priority,
                coalesce(t.lease_boot <> $2 OR t.lease_until < coalesce($3, now_us()), (1 = 0)) AS expired
            FROM {} t JOIN data_location l ON l.id = t.queue_location_id LEFT JOIN worker w ON w.id = t.owner
            WHERE t.id = $1",
            route_of(kind),
            kind.table()
        );
        let row = tx.row(text, args![work.number(), clock.boot, clock.now_us]).await?;
        let row = row.ok_or_else(|| StoreError::NotFound { what: "work", name: work.to_string() })?;
        Subject::read(kind, work, &row)
    }

    /// What keeps work from being claimed, the first to act on first: what a person has to do before what time mends.
    async fn obstacles(
        &self,
        tx: &mut Tx,
        subject: &Subject,
        now: Timestamp,
        reasons: &mut Vec<DatedReason>,
    ) -> Result<(), StoreError> {
        if let (false, Some(before)) = (subject.ready, subject.waits_for) {
            let text = "SELECT status, updated_at FROM data_transfer WHERE id = $1";
            let row = tx.row(text, args![before]).await?;
            let row = row.ok_or_else(|| StoreError::NotFound { what: "transfer", name: before.to_string() })?;
            let reason = Reason::FirstHop { hop: Work::Transfer(TransferId::new(before)), status: row.word("status")? };
            reasons.push(DatedReason::new(reason, row.opt_time("updated_at")?, None));
        }
        let most_at_location = locations(tx, subject, reasons).await?;
        let most_on_route = route(tx, subject, now, reasons).await?;
        let slots = self.slots(tx, subject, reasons).await?;
        failures(tx, subject, now, reasons).await?;
        if !subject.ready {
            return Ok(());
        }
        rates(tx, subject, now, reasons).await?;
        for (place, limit, condition, id) in most_on_route.into_iter().chain(most_at_location) {
            let text = format!("SELECT count(*) AS n FROM data_transfer WHERE status = 'in_progress' AND {condition}");
            let mut running = count(tx, text, id).await?;
            if condition != ON_ROUTE {
                let text = format!(
                    "SELECT count(*) AS n FROM long_term_archive_transfer WHERE status = 'in_progress' AND {condition}"
                );
                running += count(tx, text, id).await?;
            }
            if running >= limit {
                reasons.push(DatedReason::new(Reason::ConcurrencyLimit { place, limit }, None, None));
            }
        }
        if let Some((slots, busy)) = slots
            && busy >= slots
        {
            let reason = Reason::NoSlot { queue: subject.queue_name.clone(), slots };
            reasons.push(DatedReason::new(reason, None, None));
        }
        if reasons.is_empty() {
            reasons.push(last_resort(tx, subject).await?);
        }
        Ok(())
    }

    /// Slots of the queue's living workers and how many are taken; tells when there is none.
    async fn slots(
        &self,
        tx: &mut Tx,
        subject: &Subject,
        reasons: &mut Vec<DatedReason>,
    ) -> Result<Option<(u64, u64)>, StoreError> {
        let clock = self.lease_clock();
        let text = "SELECT count(*) AS workers, CAST(coalesce(sum(w.slots), 0) AS BIGINT) AS slots,
                CAST(coalesce(sum(
                    (SELECT count(*) FROM data_transfer t WHERE t.status = 'in_progress' AND t.owner = w.id)
                    + (SELECT count(*) FROM long_term_archive_transfer t WHERE t.status = 'in_progress'
                        AND t.owner = w.id)), 0) AS BIGINT) AS busy
            FROM worker_queue q JOIN worker w ON w.id = q.worker_id
            WHERE q.location_id = $1 AND q.operation = $2 AND w.state = 'active' AND w.heartbeat_boot = $3
                AND w.heartbeat_until > coalesce($4, now_us())";
        let operation = subject.kind.operation().as_str();
        let row = tx.row(text, args![subject.queue, operation, clock.boot, clock.now_us]).await?;
        let row = row.ok_or_else(|| StoreError::Corrupt("no count".into()))?;
        if row.int("workers")? > 0 {
            return Ok(Some((row.size("slots")?, row.size("busy")?)));
        }
        let text = "SELECT max(w.heartbeat_at) AS at FROM worker_queue q JOIN worker w ON w.id = q.worker_id
            WHERE q.location_id = $1 AND q.operation = $2";
        let row = tx.row(text, args![subject.queue, operation]).await?;
        let since = row.map(|r| r.opt_time("at")).transpose()?.flatten();
        reasons.push(DatedReason::new(Reason::NoWorker { queue: subject.queue_name.clone() }, since, None));
        Ok(None)
    }
}

impl Subject {
    fn read(kind: WorkKind, work: Work, row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            kind,
            work,
            status: row.word("status")?,
            ready: row.flag("ready")?,
            waits_for: row.opt_int("waits_for")?,
            queue: row.int("queue_location_id")?,
            queue_name: QueueName::new(row.text("queue_stem")?, kind.operation()).to_string(),
            route: row.int("route")?,
            origin: row.int("origin_location_id")?,
            destination: row.int("destination_location_id")?,
            bytes: row.int("bytes_total")?,
            next_attempt_at: row.time("next_attempt_at")?,
            updated_at: row.time("updated_at")?,
            scheduled_at: row.opt_time("scheduled_at")?,
            finished_at: row.opt_time("finished_at")?,
            owner: row.opt_text("owner")?,
            claimed_at: row.opt_time("claimed_at")?,
            expired: row.flag("expired")?,
            cancelling: row.flag("cancel_requested")?,
            class: class(row)?,
            text: row.opt_text("error_text")?.unwrap_or_default(),
            attempts: row.size("attempt")?,
            priority: row.int("priority")?,
        })
    }
}

fn failed(subject: &Subject) -> DatedReason {
    let text = subject.text.clone();
    let reason = match subject.class {
        Some(ErrorClass::Cancelled) => Reason::Cancelled { text },
        // The schema has no failed row without a class.
        class => Reason::Failed { class: class.unwrap_or(ErrorClass::Bug), text },
    };
    DatedReason::new(reason, subject.finished_at, None)
}

fn running(subject: &Subject) -> DatedReason {
    let worker = subject.owner.clone().unwrap_or_default();
    let (reason, since) = if subject.expired {
        (Reason::LeaseExpired { worker }, None)
    } else if subject.cancelling {
        (Reason::Cancelling { worker }, Some(subject.updated_at))
    } else {
        (Reason::Running { worker }, subject.claimed_at)
    };
    DatedReason::new(reason, since, None)
}

/// Since when work has its status: the last event that gave it that.
async fn since(tx: &mut Tx, subject: &Subject) -> Result<Timestamp, StoreError> {
    let text = "SELECT at FROM event WHERE entity = $1 AND entity_id = $2 AND to_state = $3
            AND (from_state IS NULL OR from_state <> to_state) ORDER BY id DESC LIMIT 1";
    let row = tx.row(text, args![subject.work.table(), subject.work.number(), subject.status.as_str()]).await?;
    row.map_or(Ok(subject.updated_at), |row| row.time("at"))
}

async fn last_error(tx: &mut Tx, subject: &Subject) -> Result<Option<LastError>, StoreError> {
    let column = subject.kind.reference();
    let text = format!(
        "SELECT outcome, error_chain, ended_at FROM attempt
        WHERE {column} = $1 AND outcome NOT IN ('completed', 'handed_back') ORDER BY fence DESC LIMIT 1"
    );
    if let Some(row) = tx.row(text, args![subject.work.number()]).await? {
        let chain: Vec<String> = serde_json::from_str(&row.text("error_chain")?).unwrap_or_default();
        let text = if chain.is_empty() { subject.text.clone() } else { chain.join(": ") };
        return Ok(Some(LastError { class: row.word("outcome")?, text, at: row.time("ended_at")? }));
    }
    Ok(subject.class.map(|class| LastError { class, text: subject.text.clone(), at: subject.updated_at }))
}

const ON_ROUTE: &str = "route_id = $1";
const AT_LOCATION: &str = "$1 IN (origin_location_id, destination_location_id)";

/// A limit: whose it is, how much, and what counts for it.
type Most = (String, u64, &'static str, i64);

async fn count(tx: &mut Tx, text: String, id: i64) -> Result<u64, StoreError> {
    tx.row(text, args![id]).await?.map_or(Ok(0), |row| row.size("n"))
}

/// When and why something was paused, from its last event that says so.
async fn paused(tx: &mut Tx, entity: &'static str, row: &Row) -> Result<(Option<Timestamp>, String), StoreError> {
    let text = "SELECT at, actor, reason FROM event WHERE entity = $1 AND entity_id = $2
            AND to_state LIKE 'paused%' AND from_state NOT LIKE 'paused%' ORDER BY id DESC LIMIT 1";
    match tx.row(text, args![entity, row.int("id")?]).await? {
        Some(event) => Ok((event.opt_time("at")?, format!("{} (by {})", event.text("reason")?, event.text("actor")?))),
        None => Ok((None, format!("{} (by {})", row.text("change_reason")?, row.text("changed_by")?))),
    }
}

/// Tells what stops the locations at both ends; returns their limits.
async fn locations(tx: &mut Tx, subject: &Subject, reasons: &mut Vec<DatedReason>) -> Result<Vec<Most>, StoreError> {
    let text = "SELECT l.id, s.short_name || '/' || l.name AS name, l.active AND s.active AS active, l.paused,
            l.max_concurrent, l.changed_by, l.change_reason, l.updated_at
        FROM data_location l JOIN site s ON s.id = l.site_id WHERE l.id IN ($1, $2) ORDER BY l.id";
    let mut limits = Vec::new();
    for row in tx.rows(text, args![subject.origin, subject.destination]).await? {
        let location = row.text("name")?;
        if !row.flag("active")? {
            let reason = Reason::LocationInactive { location: location.clone() };
            reasons.push(DatedReason::new(reason, row.opt_time("updated_at")?, None));
        }
        if row.flag("paused")? {
            let (since, why) = paused(tx, "data_location", &row).await?;
            reasons.push(DatedReason::new(Reason::LocationPaused { location: location.clone(), why }, since, None));
        }
        if row.opt_int("max_concurrent")?.is_some() {
            limits.push((format!("location {location}"), row.size("max_concurrent")?, AT_LOCATION, row.int("id")?));
        }
    }
    Ok(limits)
}

/// Tells what stops the route; returns its limit.
async fn route(
    tx: &mut Tx,
    subject: &Subject,
    now: Timestamp,
    reasons: &mut Vec<DatedReason>,
) -> Result<Option<Most>, StoreError> {
    let text = "SELECT id, name, active, paused, breaker_state, breaker_failures, breaker_until, max_concurrent,
            changed_by, change_reason, updated_at
        FROM data_transfer_route WHERE id = $1";
    let Some(row) = tx.row(text, args![subject.route]).await? else { return Ok(None) };
    let name = row.text("name")?;
    if !row.flag("active")? {
        let reason = Reason::RouteInactive { route: name.clone() };
        reasons.push(DatedReason::new(reason, row.opt_time("updated_at")?, None));
    }
    if row.flag("paused")? {
        let (since, why) = paused(tx, "data_transfer_route", &row).await?;
        reasons.push(DatedReason::new(Reason::RoutePaused { route: name.clone(), why }, since, None));
    }
    let state: BreakerState = row.word("breaker_state")?;
    let until = row.opt_time("breaker_until")?;
    if state == BreakerState::HalfOpen
        || (state == BreakerState::Open
            && until.is_some_and(|until| until > now && until <= now.after(Breaker::LONGEST_PAUSE)))
    {
        let text = "SELECT at, reason FROM event WHERE entity = 'data_transfer_route' AND entity_id = $1
                AND to_state LIKE $2 AND from_state NOT LIKE $2 ORDER BY id DESC LIMIT 1";
        let event = tx.row(text, args![subject.route, format!("% {state}")]).await?;
        let (since, why) = match event {
            Some(event) => (event.opt_time("at")?, event.text("reason")?),
            None => (None, row.text("change_reason")?),
        };
        let failures = row.size("breaker_failures")?;
        let reason = Reason::BreakerOpen { route: name.clone(), state, failures, why };
        reasons.push(DatedReason::new(reason, since, until));
    }
    Ok(match row.opt_int("max_concurrent")? {
        Some(_) => Some((format!("route {name}"), row.size("max_concurrent")?, ON_ROUTE, subject.route)),
        None => None,
    })
}

/// Tells of a wait for the next attempt, and of a destination that is full.
async fn failures(
    tx: &mut Tx,
    subject: &Subject,
    now: Timestamp,
    reasons: &mut Vec<DatedReason>,
) -> Result<(), StoreError> {
    let is_early = subject.next_attempt_at > now && subject.next_attempt_at <= now.after(RetryPolicy::LONGEST);
    let until = is_early.then_some(subject.next_attempt_at);
    let text = subject.text.clone();
    let full = format!(
        "SELECT s.short_name || '/' || l.name AS name, CASE WHEN {IS_FRESH} THEN l.free_bytes END AS free_bytes,
            l.keep_free_bytes, l.free_bytes_at
        FROM data_location l JOIN site s ON s.id = l.site_id WHERE l.id = $1"
    );
    let row = tx.row(full, args![subject.destination]).await?;
    let row = row.ok_or_else(|| StoreError::Corrupt("a transfer without destination".into()))?;
    let free = row.opt_int("free_bytes")?.map(|free| free - row.int("keep_free_bytes").unwrap_or(0));
    let location = row.text("name")?;
    if subject.class == Some(ErrorClass::NoSpace) && is_early {
        let reason = Reason::DestinationFull { location, text };
        reasons.push(DatedReason::new(reason, Some(subject.updated_at), until));
        return Ok(());
    }
    if free.is_some_and(|free| free < subject.bytes) {
        let text = format!("{} bytes may be written there, {} are needed", free.unwrap_or(0).max(0), subject.bytes);
        let since = row.opt_time("free_bytes_at")?;
        reasons.push(DatedReason::new(Reason::DestinationFull { location, text }, since, None));
    }
    if is_early {
        let reason = match subject.class {
            Some(ErrorClass::MissingSource) => Reason::MissingSource { text },
            Some(class) => Reason::Backoff { class, text },
            None => Reason::NotDue,
        };
        reasons.push(DatedReason::new(reason, Some(subject.updated_at), until));
    }
    Ok(())
}

/// Tells of a rate limit that has no start left, of the queue or of all.
async fn rates(
    tx: &mut Tx,
    subject: &Subject,
    now: Timestamp,
    reasons: &mut Vec<DatedReason>,
) -> Result<(), StoreError> {
    let text = "SELECT scope, starts, period_us, tokens_micro, refilled_at FROM rate_limit WHERE scope IN ($1, '*')";
    for row in tx.rows(text, args![subject.queue_name.as_str()]).await? {
        let scope = row.text("scope")?;
        let rate = StartRate::new(row.int("starts")?, row.int("period_us")?)
            .ok_or_else(|| StoreError::Corrupt(format!("rate_limit {scope}")))?;
        let left = StartTokens { micro: row.int("tokens_micro")?, at: row.time("refilled_at")? };
        let missing = StartRate::COST - rate.refill(left, now).micro;
        if missing <= 0 {
            continue;
        }
        // So many microseconds bring what is missing, rounded up.
        let per_us = i64::from(rate.starts()).saturating_mul(StartRate::COST);
        let wait = missing.saturating_mul(rate.period_us()).saturating_add(per_us - 1) / per_us;
        let until = Timestamp::from_micros(now.micros().saturating_add(wait));
        let scope = if scope == "*" { "all queues".to_owned() } else { format!("queue {scope}") };
        let reason = Reason::RateLimit { scope, limit: rate.to_string() };
        reasons.push(DatedReason::new(reason, None, Some(until)));
    }
    Ok(())
}

/// Nothing is in its way.
async fn last_resort(tx: &mut Tx, subject: &Subject) -> Result<DatedReason, StoreError> {
    let queue = subject.queue_name.clone();
    if subject.status == Status::Scheduled {
        return Ok(DatedReason::new(Reason::Offered { queue }, subject.scheduled_at, None));
    }
    // Bounded: more than that is only "many".
    let text = format!(
        "SELECT count(*) AS n FROM (SELECT id FROM {} WHERE queue_location_id = $1 AND status = 'scheduled'
            AND priority >= $2 LIMIT 10000) s",
        subject.kind.table()
    );
    let row = tx.row(text, args![subject.queue, subject.priority]).await?;
    let before = row.map_or(Ok(0), |row| row.size("n"))?;
    Ok(DatedReason::new(Reason::NotOffered { queue, before }, Some(subject.updated_at), None))
}
