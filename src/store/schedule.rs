//! Pending work is offered to workers.
//!
//! Work of one queue, route, pair of locations and priority is a *lane*: pause, breaker and limits are the same for all
//! of it, and the schema spells it in one indexed column. A lane whose way is stopped is not offered at all, and what
//! was offered of it before is taken back, so that it does not use up the hints of work that can run.
//!
//! Offered and not yet claimed are at most [`HINTS_PER_SLOT`] pieces of work for each slot of the queue's living
//! workers. A queue that nobody serves is offered nothing; `explain` says so. The row and its hint are written in one
//! transaction. What the planner makes while there is room is offered in the planner's own transaction.

use std::collections::BTreeMap;

use super::{
    Store, StoreError,
    claim::breaker_lets_through,
    many::{Alias, any_of, distinct, numbers, off_index, skip_locked, with_ids},
    sql::{Row, Tx, args},
    wakeups::Wakeup,
    work::{Kind as WorkKind, WorkRow},
    workers::micros,
};
use crate::model::{Hop, Operation, RetryPolicy, Timestamp, TransferId};

/// Offers outstanding for each slot of a queue's living workers.
pub const HINTS_PER_SLOT: i64 = 4;

/// Most offers of one queue in one transaction, however many slots it has.
const MOST_AT_ONCE: i64 = 1000;
const LANES: u32 = 10_000;

/// What one look of the scheduler did.
#[derive(Clone, Debug, Default)]
pub struct Scheduled {
    /// Work that is offered now.
    pub offered: usize,
    /// Offers taken back because their way is stopped.
    pub taken_back: usize,
    /// Work that ended because somebody had asked for it.
    pub cancelled: usize,
    /// Queues that another manager was just looking at.
    pub lost: usize,
    /// Queues that have work which could be offered, and no living worker.
    pub without_worker: Vec<String>,
    /// When the next work is due that waits for its next attempt; looked for where nothing was offered.
    pub next_due: Option<Timestamp>,
}

/// Condition of the index of what could be offered.
const fn pending(kind: WorkKind) -> &'static str {
    match kind {
        WorkKind::Transfer => "status = 'pending' AND ready",
        WorkKind::Archive => "status = 'pending'",
    }
}

/// The route of a row, 0 where there is none.
pub(super) const fn route_of(kind: WorkKind) -> &'static str {
    match kind {
        WorkKind::Transfer => "route_id",
        WorkKind::Archive => "CAST(0 AS BIGINT)",
    }
}

/// What stops or limits a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Way {
    route: i64,
    origin: i64,
    destination: i64,
}

impl Way {
    const fn of(hop: &Hop) -> Self {
        Self { route: hop.route.number(), origin: hop.origin.number(), destination: hop.destination.number() }
    }
}

#[derive(Clone, Debug)]
struct Lane {
    key: String,
    kind: WorkKind,
    queue: i64,
    way: Way,
    priority: i64,
}

impl Lane {
    fn parse(kind: WorkKind, key: String) -> Result<Self, StoreError> {
        let (queue, way, priority) = match kind {
            WorkKind::Transfer => {
                let [queue, route, origin, destination, priority] = numbers(&key)?;
                (queue, Way { route, origin, destination }, priority)
            }
            WorkKind::Archive => {
                let [queue, origin, priority] = numbers(&key)?;
                (queue, Way { route: 0, origin, destination: queue }, priority)
            }
        };
        Ok(Self { key, kind, queue, way, priority })
    }
}

/// How much may be offered on each route and location at once: 0 is stopped, `None` is no limit.
#[derive(Clone, Debug, Default)]
struct Limits {
    routes: BTreeMap<i64, Option<i64>>,
    locations: BTreeMap<i64, Option<i64>>,
}

impl Limits {
    async fn read(tx: &mut Tx) -> Result<Self, StoreError> {
        let mut limits = Self::default();
        // A breaker whose time is over lets one attempt through; the claim keeps to that.
        let text = format!(
            "SELECT TRUE AS is_route, id, CASE WHEN NOT active OR paused OR (breaker_state = 'open' AND NOT {})
                    THEN 0 WHEN breaker_state <> 'closed' THEN 1
                    ELSE max_concurrent * 4 END AS most
            FROM data_transfer_route r
            UNION ALL SELECT FALSE, id, CASE WHEN NOT active OR paused THEN 0 ELSE max_concurrent * 4 END
            FROM data_location",
            breaker_lets_through()
        );
        for row in tx.rows(text, args![]).await? {
            let all = if row.flag("is_route")? { &mut limits.routes } else { &mut limits.locations };
            all.insert(row.int("id")?, row.opt_int("most")?);
        }
        Ok(limits)
    }

    /// The smallest limit on a way.
    fn of(&self, way: Way) -> Option<i64> {
        // What is not there stops; an archive's way has no route.
        let route = if way.route == 0 { None } else { self.routes.get(&way.route).copied().unwrap_or(Some(0)) };
        let location = |id| self.locations.get(&id).copied().unwrap_or(Some(0));
        [route, location(way.origin), location(way.destination)].into_iter().flatten().min()
    }

    fn is_stopped(&self, way: Way) -> bool {
        self.of(way) == Some(0)
    }
}

/// Queues in which what is made may be offered at once, read before the transaction that offers.
#[derive(Clone, Debug, Default)]
pub(super) struct Offering {
    limits: Limits,
    /// By location. Only those in which nothing else waits to be offered: what is older or more urgent comes first, and only
    /// [`Store::schedule`] looks at both.
    queues: BTreeMap<i64, Served>,
    /// Whether something waits that is not offered here.
    pub(super) leaves_some: bool,
}

/// A transfer that may run as soon as it is offered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) transfer: TransferId,
    pub(super) hop: Hop,
}

impl Offering {
    pub(super) async fn read(store: &Store, tx: &mut Tx) -> Result<Self, StoreError> {
        let limits = Limits::read(tx).await?;
        let served = store.served(tx).await?.into_iter().filter(|queue| queue.kind == WorkKind::Transfer);
        let mut queues: BTreeMap<_, _> = served.map(|queue| (queue.location, queue)).collect();
        let mut leaves_some = false;
        for key in distinct(tx, WorkKind::Transfer.table(), "lane", pending(WorkKind::Transfer), LANES).await? {
            let lane = Lane::parse(WorkKind::Transfer, key)?;
            if !limits.is_stopped(lane.way) {
                leaves_some = true;
                queues.remove(&lane.queue);
            }
        }
        Ok(Self { limits, queues, leaves_some })
    }

    /// Offers what was made in this very transaction, as far as there is room; returns how many. From the first that must
    /// wait, all in its queue wait.
    pub(super) async fn offer_made(&mut self, tx: &mut Tx, made: &[Ready], actor: &str) -> Result<usize, StoreError> {
        let mut by_queue: BTreeMap<i64, Vec<Ready>> = BTreeMap::new();
        for ready in made.iter().filter(|ready| !self.limits.is_stopped(Way::of(&ready.hop))) {
            by_queue.entry(ready.hop.queue.number()).or_default().push(*ready);
        }
        let mut offered = 0;
        for (location, own) in by_queue {
            let Some(queue) = self.queues.get(&location) else {
                self.leaves_some = true;
                continue;
            };
            let mut room = Room::of(queue, &offers(tx, queue, "").await?, &self.limits);
            let takes = |ready: &&Ready| room.take(Way::of(&ready.hop), &self.limits);
            let chosen: Vec<_> = own.iter().take_while(takes).map(|ready| ready.transfer.number()).collect();
            offered += publish(tx, queue, &chosen, actor).await?;
            if chosen.len() < own.len() {
                self.leaves_some = true;
                self.queues.remove(&location);
            }
        }
        Ok(offered)
    }
}

/// How much more may be offered in a queue.
#[derive(Debug)]
struct Room {
    left: i64,
    on_way: BTreeMap<Way, i64>,
}

impl Room {
    fn of(queue: &Served, outstanding: &[Offer], limits: &Limits) -> Self {
        let mut on_way: BTreeMap<Way, i64> = BTreeMap::new();
        let mut open = 0;
        for offer in outstanding.iter().filter(|offer| !offer.cancelled && !limits.is_stopped(offer.way)) {
            *on_way.entry(offer.way).or_default() += 1;
            open += 1;
        }
        Self { left: (queue.slots.saturating_mul(HINTS_PER_SLOT) - open).clamp(0, MOST_AT_ONCE), on_way }
    }

    /// Whether one more may be offered on a way; it is counted then.
    fn take(&mut self, way: Way, limits: &Limits) -> bool {
        let on_way = self.on_way.entry(way).or_default();
        let takes = self.left > 0 && limits.of(way).is_none_or(|most| *on_way < most);
        if takes {
            *on_way += 1;
            self.left -= 1;
        }
        takes
    }
}

/// A queue that somebody serves.
#[derive(Clone, Debug)]
struct Served {
    kind: WorkKind,
    location: i64,
    slots: i64,
}

/// Work that is offered already.
#[derive(Clone, Copy, Debug)]
struct Offer {
    id: i64,
    way: Way,
    cancelled: bool,
}

impl Store {
    /// One look of the scheduler: offers pending work that is due, by priority and age, to the queues that are served.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood. What was offered before stays offered.
    pub async fn schedule(&self, actor: &str) -> Result<Scheduled, StoreError> {
        let mut done = Scheduled::default();
        let mut tx = self.read().await?;
        let limits = Limits::read(&mut tx).await?;
        let queues = self.served(&mut tx).await?;
        let mut lanes = Vec::new();
        for kind in WorkKind::ALL {
            for key in distinct(&mut tx, kind.table(), "lane", pending(kind), LANES).await? {
                lanes.push(Lane::parse(kind, key)?);
            }
        }
        let waits = WorkKind::ALL.map(|kind| lanes.iter().any(|lane| lane.kind == kind));
        lanes.retain(|lane| !limits.is_stopped(lane.way));
        lanes.sort_by_key(|lane| std::cmp::Reverse(lane.priority));
        done.without_worker = unserved(&mut tx, &lanes, &queues).await?;
        let mut work = Vec::new();
        for queue in queues {
            let own: Vec<_> =
                lanes.iter().filter(|l| l.kind == queue.kind && l.queue == queue.location).cloned().collect();
            // A queue in which nothing changes costs no write.
            if !own.is_empty() {
                work.push((queue, own));
                continue;
            }
            let offers = offers(&mut tx, &queue, "").await?;
            if offers.iter().any(|o| o.cancelled || limits.is_stopped(o.way)) {
                work.push((queue, own));
            }
        }
        drop(tx);
        for (queue, own) in work {
            match self.offer(&queue, &own, &limits, actor, &mut done).await {
                Err(StoreError::Conflict(_)) => done.lost += 1,
                other => other?,
            }
        }
        if done.offered == 0 {
            let mut tx = self.read().await?;
            for (kind, _) in WorkKind::ALL.into_iter().zip(waits).filter(|(_, waits)| *waits) {
                done.next_due = [done.next_due, next_due(&mut tx, kind).await?].into_iter().flatten().min();
            }
        }
        Ok(done)
    }

    /// Queues with the slots of their living workers.
    async fn served(&self, tx: &mut Tx) -> Result<Vec<Served>, StoreError> {
        let clock = self.lease_clock();
        let text = "SELECT q.location_id, q.operation, CAST(sum(CASE WHEN q.max_concurrent < w.slots
                    THEN q.max_concurrent ELSE w.slots END) AS BIGINT) AS slots
            FROM worker_queue q JOIN worker w ON w.id = q.worker_id
            WHERE w.state = 'active' AND w.heartbeat_boot = $1
                AND (CAST($2 AS BIGINT) IS NULL OR w.heartbeat_until > $2)
            GROUP BY q.location_id, q.operation";
        let mut queues = Vec::new();
        for row in tx.rows(text, args![clock.boot, clock.now_us]).await? {
            let operation: Operation = row.word("operation")?;
            if let Some(kind) = WorkKind::ALL.into_iter().find(|k| k.operation() == operation) {
                queues.push(Served { kind, location: row.int("location_id")?, slots: row.int("slots")? });
            }
        }
        Ok(queues)
    }

    async fn offer(
        &self,
        queue: &Served,
        lanes: &[Lane],
        limits: &Limits,
        actor: &str,
        done: &mut Scheduled,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let lock = skip_locked(&tx, Alias::Only);
        let outstanding = offers(&mut tx, queue, "").await?;
        let mut cancelled: Vec<_> = outstanding.iter().filter(|offer| offer.cancelled).map(|offer| offer.id).collect();
        let stopped = |offer: &&Offer| !offer.cancelled && limits.is_stopped(offer.way);
        let back: Vec<_> = outstanding.iter().filter(stopped).map(|offer| offer.id).collect();
        let mut room = Room::of(queue, &outstanding, limits);
        let mut chosen = Vec::new();
        for same_priority in lanes.chunk_by(|a, b| a.priority == b.priority) {
            let mut due = Vec::new();
            for lane in same_priority {
                // Two ranges of the index, and not one OR, which would walk over all that waits.
                let range = |range: &str| {
                    format!(
                        "SELECT * FROM (SELECT id, next_attempt_at, cancel_requested FROM {} WHERE {} AND lane = $1
                            AND next_attempt_at {range} ORDER BY next_attempt_at, id LIMIT $2{lock}) AS x",
                        queue.kind.table(),
                        pending(queue.kind),
                    )
                };
                let text = format!("{} UNION ALL {}", range("<= (SELECT now_us())"), range("> (SELECT now_us() + $3)"));
                for row in tx.rows(text, args![lane.key.as_str(), room.left, micros(RetryPolicy::LONGEST)]).await? {
                    let (at, id) = (row.int("next_attempt_at")?, row.int("id")?);
                    due.push((at, id, row.flag("cancel_requested")?, lane.way));
                }
            }
            due.sort_by_key(|&(at, id, ..)| (at, id));
            for (_, id, is_cancelled, way) in due {
                if is_cancelled {
                    cancelled.push(id);
                } else if room.take(way, limits) {
                    chosen.push(id);
                }
            }
            if room.left == 0 {
                break;
            }
        }
        let cancelled = cancel_now(&mut tx, queue.kind, &cancelled, actor).await?;
        let back = take_back(&mut tx, queue.kind, &back, actor).await?;
        let offered = publish(&mut tx, queue, &chosen, actor).await?;
        tx.commit().await?;
        if offered > 0 {
            self.wake(Wakeup::Outbox);
        }
        done.cancelled += cancelled;
        done.taken_back += back;
        done.offered += offered;
        Ok(())
    }
}

/// What is offered in a queue and not claimed: a bounded look, with room for as many that are stopped.
async fn offers(tx: &mut Tx, queue: &Served, lock: &'static str) -> Result<Vec<Offer>, StoreError> {
    let most = queue.slots.saturating_mul(2 * HINTS_PER_SLOT).min(2 * MOST_AT_ONCE);
    let text = format!(
        "SELECT id, {} AS route, origin_location_id, destination_location_id, cancel_requested FROM {}
        WHERE queue_location_id = $1 AND status = 'scheduled' LIMIT $2{lock}",
        route_of(queue.kind),
        queue.kind.table()
    );
    let read = |row: &Row| {
        Ok(Offer {
            id: row.int("id")?,
            way: Way {
                route: row.int("route")?,
                origin: row.int("origin_location_id")?,
                destination: row.int("destination_location_id")?,
            },
            cancelled: row.flag("cancel_requested")?,
        })
    };
    tx.rows(text, args![queue.location, most]).await?.iter().map(read).collect()
}

async fn next_due(tx: &mut Tx, kind: WorkKind) -> Result<Option<Timestamp>, StoreError> {
    let text = format!(
        // The time once for all rows: compared anew with each, it would be no bound for the index.
        "SELECT next_attempt_at FROM {} WHERE {} AND next_attempt_at > (SELECT now_us()) \
         ORDER BY next_attempt_at LIMIT 1",
        kind.table(),
        pending(kind)
    );
    tx.row(text, args![]).await?.map(|row| row.time("next_attempt_at")).transpose()
}

/// Names of the queues of lanes that nobody serves.
async fn unserved(tx: &mut Tx, lanes: &[Lane], queues: &[Served]) -> Result<Vec<String>, StoreError> {
    let mut missing: Vec<_> = lanes
        .iter()
        .filter(|l| !queues.iter().any(|q| q.kind == l.kind && q.location == l.queue))
        .map(|l| (l.kind, l.queue))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    let mut names = Vec::new();
    for (kind, location) in missing {
        let row = tx.row("SELECT queue_stem FROM data_location WHERE id = $1", args![location]).await?;
        if let Some(row) = row {
            names.push(format!("{}_{}", row.text("queue_stem")?, kind.operation()));
        }
    }
    Ok(names)
}

/// Ends work that somebody wanted to end while it was still running, and that came back from its worker.
async fn cancel_now(tx: &mut Tx, kind: WorkKind, ids: &[i64], actor: &str) -> Result<usize, StoreError> {
    if ids.is_empty() {
        return Ok(0);
    }
    WorkRow::end_all_lost(tx, kind, ids, "its lease ran out, and somebody had cancelled it").await?;
    let text = format!(
        "UPDATE {} SET status = 'failed', error_class = 'cancelled', error_text = 'a person asked for it while it ran', finished_at = now_us(),
            updated_at = now_us(), changed_by = $1
        WHERE id IN ({}) AND status IN ('pending', 'scheduled') AND cancel_requested",
        kind.table(),
        any_of(2, ids.len())
    );
    Ok(count(tx.execute(text, &with_ids(args![actor], ids.iter().copied())).await?))
}

async fn take_back(tx: &mut Tx, kind: WorkKind, ids: &[i64], actor: &str) -> Result<usize, StoreError> {
    if ids.is_empty() {
        return Ok(0);
    }
    let text = format!(
        "UPDATE {} SET status = 'pending', scheduled_at = NULL, updated_at = now_us(), changed_by = $1,
            change_reason = 'its way is stopped'
        WHERE id IN ({}) AND status = 'scheduled'",
        kind.table(),
        any_of(2, ids.len())
    );
    Ok(count(tx.execute(text, &with_ids(args![actor], ids.iter().copied())).await?))
}

/// Offers rows, with a hint for each.
async fn publish(tx: &mut Tx, queue: &Served, ids: &[i64], actor: &str) -> Result<usize, StoreError> {
    if ids.is_empty() {
        return Ok(0);
    }
    let table = queue.kind.table();
    let names = any_of(2, ids.len());
    let text = format!(
        "UPDATE {table} SET status = 'scheduled', scheduled_at = now_us(), updated_at = now_us(), changed_by = $1,
            change_reason = 'offered'
        WHERE id IN ({names}) AND {} = 'pending' RETURNING id",
        off_index("status")
    );
    let rows = tx.rows(text, &with_ids(args![actor], ids.iter().copied())).await?;
    let offered = rows.iter().map(|row| row.int("id")).collect::<Result<Vec<_>, _>>()?;
    if offered.is_empty() {
        return Ok(0);
    }
    let text = format!(
        "INSERT INTO outbox (location_id, operation, work_id, priority)
        SELECT queue_location_id, $1, id, priority FROM {table} WHERE id IN ({}) ORDER BY id",
        any_of(2, offered.len())
    );
    let operation = queue.kind.operation().as_str();
    tx.execute(text, &with_ids(args![operation], offered.iter().copied())).await?;
    Ok(offered.len())
}

pub(super) fn count(rows: u64) -> usize {
    usize::try_from(rows).unwrap_or(usize::MAX)
}
