//! `claim_next`: the best row that may run now becomes this worker's, and with it, if there is room for more, those that
//! stand behind it on the same way.
//!
//! Rows that wait are found without walking over them. The claim index is sorted by way (queue, route, origin,
//! destination) and then by priority and age, so that the first row of each way is the only candidate on it; the search
//! leaps from way to way. What forbids a row (pause, breaker, limits, a location that is not active) is a property of
//! its way, and so a million rows of a paused route cost as much as one.
//!
//! A way without limits gives as many rows as the worker has room for: one round of statements and one commit for all of
//! them. Where a limit, a rate or a breaker counts what runs, one row is taken at a time.
//!
//! Most looks find nothing, and so the first one is a question by itself: is anything offered at all? It locks nothing, waits
//! for nobody, and costs one step of an index for each queue. On SQLite one claim runs at a time. On PostgreSQL several do: they skip each
//! other's rows, and where a number must not be exceeded (limits, one look of a breaker) the claim looks again under a lock
//! that all others take too.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{
    Backend, LeaseClock, Store, StoreError, limits,
    many::{any_of, off_index, with_ids},
    sql::{Row, Tx, Value, args},
    work::{EndedFence, Kind, WorkRow},
    workers::{WorkerSession, micros},
};
use crate::model::{
    Algorithm, Breaker, BreakerState, Dialer, Fence, LocationId, LocationType, Method, OnTapeReadback, PackageDigest,
    PackageId, PackageKind, QueueName, RouteId, StorageType, Timestamp, Transport, Work,
};

/// How often a claim that met another one looks again before it finds nothing.
const TRIES: usize = 8;
/// Namespaces of advisory locks, in the bits above any id.
const LOCK_ROUTE: i64 = 0x5831 << 48;
const LOCK_LOCATION: i64 = 0x5832 << 48;

/// Work that a worker holds, with all that it needs to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// The work.
    pub work: Work,
    /// What every later statement about it needs, here and at the receiver.
    pub fence: Fence,
    /// Which attempt this is, from 1.
    pub attempt: u64,
    /// Failed attempts before this one that counted.
    pub retry_count: u64,
    /// From 0 to 9; higher comes first.
    pub priority: u64,
    /// The database's time of the claim.
    pub claimed_at: Timestamp,
    /// Where the bytes are.
    pub origin: Place,
    /// Where they have to be.
    pub destination: Place,
    /// Whether the worker is at the origin (and pushes) or at the destination.
    pub side: Dialer,
    /// How a transfer goes; archive transfers have none.
    pub route: Option<RouteTerms>,
    /// Which hop of a bundle this is, from 1; archive transfers have none.
    pub hop: Option<u64>,
    /// What is to be moved.
    pub members: Vec<Member>,
    /// Sum of the members' sizes.
    pub bytes_total: u64,
    /// Verified bytes that earlier attempts reported.
    pub bytes_done: u64,
    /// What an archive asks for; transfers have none.
    pub archive: Option<ArchiveTerms>,
}

impl Claim {
    /// The end that the worker has to reach.
    pub const fn other(&self) -> &Place {
        match self.side {
            Dialer::Origin => &self.destination,
            Dialer::Destination => &self.origin,
        }
    }

    /// The end that the worker's own settings must know.
    pub const fn own(&self) -> &Place {
        match self.side {
            Dialer::Origin => &self.origin,
            Dialer::Destination => &self.destination,
        }
    }
}

/// A location as a worker sees it. What its name means on a machine stands in that machine's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its row.
    pub location: LocationId,
    /// Its site's name.
    pub site: String,
    /// Its site's short name.
    pub site_short_name: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub location_type: LocationType,
    /// What it is made of.
    pub storage_type: StorageType,
    /// Bytes per second that all transfers there may use together.
    pub rate_limit_bytes_per_s: Option<u64>,
    /// The endpoint through which others reach it.
    pub peer: Option<PeerAddress>,
}

/// An endpoint: where it listens, and whose key it must show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerAddress {
    /// Its name.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// The fingerprint of its key.
    pub fingerprint: String,
    /// Whether it may be used.
    pub active: bool,
}

/// The options of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteTerms {
    /// Its row.
    pub route: RouteId,
    /// Its name.
    pub name: String,
    /// What moves the bytes.
    pub method: Method,
    /// Which kinds of link may be tried.
    pub transport: Transport,
    /// Bytes per second.
    pub rate_limit_bytes_per_s: Option<u64>,
    /// Data streams of one link.
    pub streams: Option<u64>,
}

/// What an archive asks of whoever puts something there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveTerms {
    /// Whether what lies there is known to be bad, and is replaced.
    pub replace: bool,
    /// Whether a reading that a cache may have answered counts.
    pub cached_read_back_counts: bool,
    /// What has to be read back.
    pub on_tape_readback: OnTapeReadback,
}

/// A package of a bundle, or the one of an archive transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its row.
    pub package: PackageId,
    /// Its name.
    pub name: String,
    /// A file or a tree.
    pub kind: PackageKind,
    /// Where it lies below the root of the origin of this hop.
    pub source_path: Vec<u8>,
    /// The path that it was registered with; where it belongs below the root of the destination.
    pub relative_path: Vec<u8>,
    /// As registered.
    pub size_bytes: u64,
    /// As registered.
    pub file_count: u64,
    /// As registered, at least one.
    pub digests: Vec<PackageDigest>,
    /// When it was registered: bytes that were written before and differ now were not written by anybody.
    pub registered_at: Timestamp,
}

/// A queue that a worker claims from, and how much more of it may run there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenQueue {
    /// Its name.
    pub queue: QueueName,
    /// At least 1.
    pub room: u32,
}

/// What a look for work found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What is the worker's now.
    pub claims: Vec<Claim>,
    /// Where nothing was claimed: something is offered in these queues that must not run now (a pause, a limit, a breaker, or
    /// another worker was faster). It may run once something else has ended, of which nobody tells.
    pub waits: bool,
}

/// A queue that a worker claims from, with its location's row.
#[derive(Clone, Copy, Debug)]
struct Known<'a> {
    name: &'a QueueName,
    location: LocationId,
    room: u32,
}

/// What one look said.
enum Try {
    /// Never empty.
    Claimed(Vec<Claim>),
    Nothing,
    /// Another claim was faster at something.
    Again,
}

impl Store {
    /// Claims the first row, by priority and then age, that may run now in one of `queues`; `None` if there is none, or
    /// if the worker does not claim any more. `lease` counts from `clock`, read before this call. Which of its queues
    /// have a free slot is for the worker to know: it names only those.
    ///
    /// # Errors
    /// [`StoreError::WorkerReplaced`] when another process has the worker's name by now; [`StoreError::NotFound`] for a
    /// queue that it did not register.
    pub async fn claim_next(
        &self,
        session: &WorkerSession,
        queues: &[QueueName],
        lease: Duration,
        clock: &LeaseClock,
    ) -> Result<Option<Claim>, StoreError> {
        let queues: Vec<_> = queues.iter().map(|queue| OpenQueue { queue: queue.clone(), room: 1 }).collect();
        Ok(self.claim_some(session, &queues, lease, clock).await?.claims.pop())
    }

    /// The same for as many rows as there is room for. The first one is that of [`Store::claim_next`]; with it come those
    /// of its priority that stand behind it on the same way, if nothing limits that way.
    ///
    /// # Errors
    /// As [`Store::claim_next`].
    pub async fn claim_some(
        &self,
        session: &WorkerSession,
        queues: &[OpenQueue],
        lease: Duration,
        clock: &LeaseClock,
    ) -> Result<Found, StoreError> {
        let known = queues
            .iter()
            .map(|open| {
                let known = session.queues.iter().find(|(name, _)| *name == open.queue);
                known.map(|(name, location)| Known { name, location: *location, room: open.room }).ok_or_else(|| {
                    StoreError::NotFound { what: "queue of this worker named", name: open.queue.to_string() }
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if !self.is_offered(&known).await? {
            return Ok(Found::default());
        }
        let nothing = Found { claims: Vec::new(), waits: true };
        // A claim takes the one writer's turn; where something is in the way of all that waits, a reader sees it too.
        if self.backend() == Backend::Sqlite && !self.has_candidate(&known).await? {
            return Ok(nothing);
        }
        for _ in 0..TRIES {
            match self.try_claim(session, &known, lease, clock).await? {
                Try::Claimed(claims) => return Ok(Found { claims, waits: false }),
                Try::Nothing => break,
                Try::Again => {}
            }
        }
        Ok(nothing)
    }

    /// Whether anything is offered in these queues, be it that it may not run now.
    async fn is_offered(&self, queues: &[Known<'_>]) -> Result<bool, StoreError> {
        for kind in Kind::ALL {
            let places: Vec<_> = places(queues, kind).into_iter().map(Value::from).collect();
            if places.is_empty() {
                continue;
            }
            let text = offered_text(kind, places.len(), self.backend() == Backend::Sqlite);
            if let [row] = self.ask(text, &places).await?.as_slice()
                && row.flag("offered")?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether something may run now, as far as a reader sees.
    async fn has_candidate(&self, queues: &[Known<'_>]) -> Result<bool, StoreError> {
        let mut tx = self.read().await?;
        for kind in Kind::ALL {
            if candidate(&mut tx, kind, &places(queues, kind)).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn try_claim(
        &self,
        session: &WorkerSession,
        queues: &[Known<'_>],
        lease: Duration,
        clock: &LeaseClock,
    ) -> Result<Try, StoreError> {
        let mut tx = self.write().await?;
        let tried = look_and_claim(&mut tx, session, queues, lease, clock).await;
        if let Ok(Try::Claimed(_)) = tried {
            tx.commit().await?;
        } else {
            // At once: whoever looks next, perhaps this very claim, would skip the rows that are still locked.
            let undone = tx.rollback().await;
            if tried.is_ok() {
                undone?;
            }
        }
        tried
    }
}

/// The locations of those queues that hold work of a kind.
fn places(queues: &[Known<'_>], kind: Kind) -> Vec<LocationId> {
    queues.iter().filter(|q| q.name.operation() == kind.operation()).map(|q| q.location).collect()
}

/// One look, within a transaction that is committed only if something was claimed.
async fn look_and_claim(
    tx: &mut Tx,
    session: &WorkerSession,
    queues: &[Known<'_>],
    lease: Duration,
    clock: &LeaseClock,
) -> Result<Try, StoreError> {
    let rates = limits::read(tx).await?;
    let open: Vec<_> = queues.iter().filter(|q| rates.allows(q.name)).copied().collect();
    let mut best: Option<Terms> = None;
    for kind in Kind::ALL {
        let Some(id) = candidate(tx, kind, &places(&open, kind)).await? else { continue };
        let Some(terms) = Terms::of(tx, kind.work(id)).await? else { return Ok(Try::Again) };
        if best.as_ref().is_none_or(|other| terms.priority > other.priority) {
            best = Some(terms);
        }
    }
    let Some(terms) = best else { return Ok(Try::Nothing) };
    let kind = Kind::of(terms.work);
    let queue = open.iter().find(|q| q.location == terms.queue && q.name.operation() == kind.operation());
    let Some(queue) = queue else { return Ok(Try::Again) };
    let limited = !rates.is_empty() || terms.is_limited();
    let mut rows = terms.lock_way(tx, if limited { 1 } else { queue.room }).await?;
    if rows.is_empty() {
        return Ok(Try::Again);
    }
    // Their renewal brings them back; what stands behind them is looked at then.
    rows.retain(|row| !session.holds(row.work));
    let Some(first) = rows.first() else { return Ok(Try::Nothing) };
    if limited
        && (!terms.still_open(tx, first).await? || (!rates.is_empty() && !limits::take_start(tx, queue.name).await?))
    {
        return Ok(Try::Again);
    }
    for row in &mut rows {
        if row.fence.number() > 0 {
            row.ended = EndedFence::of(tx, row.work, row.fence).await?;
            if row.ended.is_none() {
                row.end_lost(tx, "lost_worker", "the lease ran out, and the work was claimed anew").await?;
            }
        }
    }
    let text = format!(
        "UPDATE {} SET status = 'in_progress', fence = fence + 1, attempt = attempt + 1, owner = $1, \
             claimed_by = $2, claimed_at = now_us(), lease_until = coalesce($3, now_us()) + $4, lease_boot = $5, lease_us = $4, \
             updated_at = now_us(), changed_by = $2, change_reason = 'claimed' \
             WHERE id IN ({}) AND {} = 'scheduled' AND EXISTS (SELECT 1 FROM worker w \
             WHERE w.id = $1 AND w.boot_nonce = $6 AND w.state = 'active') RETURNING id, fence, attempt, claimed_at",
        kind.table(),
        any_of(7, rows.len()),
        off_index("status")
    );
    let args = args![session.id, &session.name, clock.now_us, micros(lease), &clock.boot, &session.boot_nonce];
    let mut claimed = BTreeMap::new();
    for row in tx.rows(text, &with_ids(args, rows.iter().map(|row| row.work.number()))).await? {
        claimed.insert(row.int("id")?, row);
    }
    if claimed.is_empty() {
        let mine = tx
            .row("SELECT state FROM worker WHERE id = $1 AND boot_nonce = $2", args![session.id, &session.boot_nonce])
            .await?;
        return if mine.is_some() { Ok(Try::Nothing) } else { Err(session.replaced()) };
    }
    let mut members = members(tx, &terms, &rows).await?;
    let mut claims = Vec::with_capacity(rows.len());
    for row in &rows {
        let number = row.work.number();
        let Some(claimed) = claimed.get(&number) else { continue };
        claims.push(terms.claim(row, claimed, members.remove(&number).unwrap_or_default())?);
    }
    Ok(Try::Claimed(claims))
}

/// The best row of these queues that may run now. On PostgreSQL it is locked, and rows that others hold are skipped.
async fn candidate(tx: &mut Tx, kind: Kind, queues: &[LocationId]) -> Result<Option<i64>, StoreError> {
    if queues.is_empty() {
        return Ok(None);
    }
    let sqlite = matches!(tx, Tx::Sqlite(_));
    let args: Vec<Value> = queues.iter().map(|&q| Value::from(q)).collect();
    let row = tx.row(candidate_text(kind, queues.len(), sqlite), &args).await?;
    row.map(|row| row.int("id")).transpose()
}

/// Rows of a list of queues.
fn seeds(queues: usize) -> String {
    let rows: Vec<_> = (1..=queues).map(|n| format!("(CAST(${n} AS BIGINT))")).collect();
    rows.join(", ")
}

/// One step of the claim index for each queue, in whose order it asks though one row is enough: PostgreSQL would else walk
/// over another index.
fn offered_text(kind: Kind, queues: usize, sqlite: bool) -> String {
    let way = match kind {
        Kind::Transfer => "t.route_id, t.origin_location_id, t.destination_location_id",
        Kind::Archive => "t.origin_location_id",
    };
    format!(
        "WITH q(id) AS (VALUES {}) SELECT EXISTS (SELECT 1 FROM q WHERE (SELECT t.id FROM {} t {} \
         WHERE t.status = 'scheduled' AND t.queue_location_id = q.id ORDER BY {way}, t.priority DESC, t.id LIMIT 1) \
         IS NOT NULL) AS offered",
        seeds(queues),
        kind.table(),
        kind.claim_index(sqlite)
    )
}

/// `head` leaps from way to way: each step finds the first row behind the way of the one before. It compares one column
/// at a time: SQLite seeks to the first row that equals a row of values, and walks from there to the first that is above.
/// The zeroes added keep it from comparing with another affinity than the index's, which would make it walk too; and it
/// joins crosswise in the order that is written, heads first.
fn candidate_text(kind: Kind, queues: usize, sqlite: bool) -> String {
    let seeds = seeds(queues);
    let (table, index) = (kind.table(), kind.claim_index(sqlite));
    let (way, place): (&[&str], _) = match kind {
        Kind::Transfer => (&["route_id", "origin_location_id", "destination_location_id"], ROUTE_OPEN),
        Kind::Archive => (&["origin_location_id"], ""),
    };
    let of = |alias: &str| way.iter().map(|c| format!("{alias}.{c}")).collect::<Vec<_>>().join(", ");
    let order = |alias: &str| format!("{}, {alias}.priority DESC, {alias}.id", of(alias));
    // The next destination of this route and origin, else the next origin of this route, else the next route.
    let next = |equal: usize| {
        let same: String = way[..equal].iter().map(|c| format!(" AND n.{c} = t.{c} + 0")).collect();
        format!(
            "(SELECT n.id FROM {table} n {index} WHERE n.status = 'scheduled' \
             AND n.queue_location_id = t.queue_location_id + 0{same} AND n.{c} > t.{c} + 0 ORDER BY {}, {} LIMIT 1)",
            way[equal..].iter().map(|c| format!("n.{c}")).collect::<Vec<_>>().join(", "),
            "n.priority DESC, n.id",
            c = way[equal],
        )
    };
    let leap = (0..way.len()).rev().map(next).collect::<Vec<_>>().join(", ");
    // Of one value there is nothing to choose, and SQLite's function wants two.
    let leap = if way.len() > 1 { format!("coalesce({leap})") } else { leap };
    let (route_running, place_running) = if sqlite {
        (SQLITE_ROUTE_RUNNING.to_owned(), [sqlite_running_at("o"), sqlite_running_at("d")])
    } else {
        ("running_on_route(r.id)".to_owned(), ["running_at_location(o.id)".into(), "running_at_location(d.id)".into()])
    };
    let [at_origin, at_destination] = place_running;
    let mut text = format!(
        "WITH RECURSIVE q(id) AS (VALUES {seeds}), head(id) AS (\
         SELECT (SELECT t.id FROM {table} t {index} WHERE t.status = 'scheduled' AND t.queue_location_id = q.id \
         ORDER BY {first} LIMIT 1) FROM q \
         UNION ALL SELECT {leap} FROM head h CROSS JOIN {table} t WHERE t.id = h.id), \
         open AS (SELECT t.* FROM head h CROSS JOIN {table} t {place} \
         JOIN data_location o ON o.id = t.origin_location_id JOIN data_location d ON d.id = t.destination_location_id \
         JOIN site s ON s.id = o.site_id JOIN site e ON e.id = d.site_id \
         WHERE t.id = h.id AND o.active AND NOT o.paused AND d.active AND NOT d.paused AND s.active AND e.active \
         AND (o.max_concurrent IS NULL OR {at_origin} < o.max_concurrent) \
         AND (d.max_concurrent IS NULL OR {at_destination} < d.max_concurrent)",
        first = order("t"),
    );
    if kind == Kind::Transfer {
        let _ = write!(
            text,
            " AND r.active AND NOT r.paused AND {} AND (r.max_concurrent IS NULL OR {route_running} < r.max_concurrent)",
            breaker_lets_through()
        );
    }
    if sqlite {
        text.push_str(") SELECT id FROM open ORDER BY priority DESC, id LIMIT 1");
    } else {
        // The head may be another claim's by now: the first row behind it that nobody holds is taken.
        let same = way.iter().map(|c| format!(" AND t.{c} = w.{c}")).collect::<String>();
        let _ = write!(
            text,
            ") SELECT p.id FROM (SELECT * FROM open ORDER BY priority DESC, id) w CROSS JOIN LATERAL (\
             SELECT t.id FROM {table} t WHERE t.status = 'scheduled' AND t.queue_location_id = w.queue_location_id{same} \
             ORDER BY {}, t.priority DESC, t.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) p LIMIT 1",
            of("t")
        );
    }
    text
}

const ROUTE_OPEN: &str = "JOIN data_transfer_route r ON r.id = t.route_id";
const SQLITE_ROUTE_RUNNING: &str =
    "(SELECT count(*) FROM data_transfer a WHERE a.status = 'in_progress' AND a.route_id = r.id)";

fn sqlite_running_at(alias: &str) -> String {
    let count = |table: &str| {
        format!(
            "(SELECT count(*) FROM {table} a WHERE a.status = 'in_progress' \
             AND {alias}.id IN (a.origin_location_id, a.destination_location_id))"
        )
    };
    format!("({} + {})", count("data_transfer"), count("long_term_archive_transfer"))
}

/// Whether the breaker lets something through: closed, or its pause is over. A pause that ends further ahead than any
/// may is one whose clock was set back.
pub(super) fn breaker_lets_through() -> String {
    format!(
        "(r.breaker_state = 'closed' OR r.breaker_until <= now_us() OR r.breaker_until > now_us() + {})",
        micros(Breaker::LONGEST_PAUSE)
    )
}

/// What the rows around a piece of work say: the same for all of its way.
struct Terms {
    work: Work,
    priority: i64,
    queue: LocationId,
    origin: Place,
    destination: Place,
    /// `max_concurrent` of origin, destination and route.
    most: [Option<i64>; 3],
    route: Option<RouteTerms>,
    breaker: BreakerState,
    /// Without what differs from row to row.
    archive: Option<ArchiveTerms>,
}

impl Terms {
    async fn of(tx: &mut Tx, work: Work) -> Result<Option<Self>, StoreError> {
        let place = |p: &str, alias: &str, site: &str, peer: &str| {
            format!(
                "{alias}.id AS {p}_id, {site}.name AS {p}_site, {site}.short_name AS {p}_short, \
                 {alias}.name AS {p}_name, {alias}.location_type AS {p}_type, {alias}.storage_type AS {p}_storage, \
                 {alias}.rate_limit_bytes_per_s AS {p}_rate, {alias}.max_concurrent AS {p}_most, \
                 {peer}.name AS {p}_peer, {peer}.address AS {p}_address, {peer}.fingerprint AS {p}_fingerprint, \
                 coalesce({peer}.active, FALSE) AS {p}_usable"
            )
        };
        let (own, join) = match work {
            Work::Transfer(_) => (
                ", r.id AS route_id, r.name AS route, r.method, r.transport, \
                 r.rate_limit_bytes_per_s AS route_rate, r.streams, r.max_concurrent AS route_most, \
                 r.breaker_state",
                ROUTE_OPEN,
            ),
            Work::Archive(_) => (", d.cached_read_back_counts, d.on_tape_readback", ""),
        };
        let text = format!(
            "SELECT t.priority, t.queue_location_id, {}, {}{own} FROM {} t {join} JOIN data_location o ON o.id = t.origin_location_id \
             JOIN data_location d ON d.id = t.destination_location_id JOIN site s ON s.id = o.site_id \
             JOIN site e ON e.id = d.site_id LEFT JOIN peer op ON op.id = o.peer_id \
             LEFT JOIN peer dp ON dp.id = d.peer_id WHERE t.id = $1",
            place("o", "o", "s", "op"),
            place("d", "d", "e", "dp"),
            work.table()
        );
        let Some(row) = tx.row(text, args![work.number()]).await? else { return Ok(None) };
        let mut terms = Self {
            work,
            priority: row.int("priority")?,
            queue: LocationId::new(row.int("queue_location_id")?),
            origin: Place::read(&row, "o")?,
            destination: Place::read(&row, "d")?,
            most: [row.opt_int("o_most")?, row.opt_int("d_most")?, None],
            route: None,
            breaker: BreakerState::Closed,
            archive: None,
        };
        match work {
            Work::Transfer(_) => {
                terms.most[2] = row.opt_int("route_most")?;
                terms.breaker = row.word("breaker_state")?;
                terms.route = Some(RouteTerms {
                    route: RouteId::new(row.int("route_id")?),
                    name: row.text("route")?,
                    method: row.word("method")?,
                    transport: row.word("transport")?,
                    rate_limit_bytes_per_s: opt_size(&row, "route_rate")?,
                    streams: opt_size(&row, "streams")?,
                });
            }
            Work::Archive(_) => {
                terms.archive = Some(ArchiveTerms {
                    replace: false,
                    cached_read_back_counts: row.flag("cached_read_back_counts")?,
                    on_tape_readback: row.word("on_tape_readback")?,
                });
            }
        }
        Ok(Some(terms))
    }

    /// Whether something counts what runs on this way.
    fn is_limited(&self) -> bool {
        self.most.iter().any(Option::is_some) || self.breaker != BreakerState::Closed
    }

    /// The first rows of this way and priority, locked until the end of the transaction on PostgreSQL, where rows that
    /// others hold are skipped.
    async fn lock_way(&self, tx: &mut Tx, most: u32) -> Result<Vec<WorkRow>, StoreError> {
        let kind = Kind::of(self.work);
        let mut args = args![self.queue, self.priority, most, self.origin.location].to_vec();
        // Ordered as the claim index is, though most of it is the same in all, and the priority as a range: were all of it
        // equal, PostgreSQL would see no order but the id's, and walk over the table by that.
        let (way, order) = match &self.route {
            Some(route) => {
                args.extend_from_slice(args![self.destination.location, route.route]);
                (
                    "t.origin_location_id = $4 AND t.destination_location_id = $5 AND t.route_id = $6",
                    "t.route_id, t.origin_location_id, t.destination_location_id",
                )
            }
            None => ("t.origin_location_id = $4", "t.origin_location_id"),
        };
        let condition = format!(
            "{} WHERE t.status = 'scheduled' AND t.queue_location_id = $1 AND {way} \
             AND t.priority >= $2 AND t.priority <= $2 ORDER BY {order}, t.priority DESC, t.id LIMIT $3",
            kind.claim_index(matches!(tx, Tx::Sqlite(_)))
        );
        WorkRow::lock_some(tx, kind, &condition, &args, " SKIP LOCKED").await
    }

    /// Whether the row may still be begun: limits are counted anew under locks, and the one look of a breaker is
    /// taken. `false` rolls the transaction back.
    async fn still_open(&self, tx: &mut Tx, row: &WorkRow) -> Result<bool, StoreError> {
        if let Tx::Postgres(_) = tx
            && self.most.iter().any(Option::is_some)
        {
            // Route first, then locations by number: all claims wait in the same order.
            let mut locks = Vec::new();
            if let (Some(_), Some(route)) = (self.most[2], row.route) {
                locks.push(LOCK_ROUTE | route.number());
            }
            let mut places = Vec::new();
            for (most, location) in [(self.most[0], row.origin), (self.most[1], row.destination)] {
                if most.is_some() {
                    places.push(LOCK_LOCATION | location.number());
                }
            }
            places.sort_unstable();
            locks.extend(places);
            for lock in locks {
                tx.rows("SELECT pg_advisory_xact_lock($1)", args![lock]).await?;
            }
            // A statement of its own sees what was committed while the locks were waited for.
            let counted = tx
                .row(
                    "SELECT ($4 IS NULL OR running_at_location($1) < $4) AND ($5 IS NULL OR running_at_location($2) < $5) \
                     AND ($6 IS NULL OR running_on_route($3) < $6) AS open",
                    args![row.origin, row.destination, row.route, self.most[0], self.most[1], self.most[2]],
                )
                .await?;
            if !counted.ok_or_else(|| StoreError::Corrupt("no count".into()))?.flag("open")? {
                return Ok(false);
            }
        }
        if self.breaker == BreakerState::Closed {
            return Ok(true);
        }
        let text = format!(
            "UPDATE data_transfer_route AS r SET breaker_state = 'half_open', breaker_until = now_us() + $2, \
             updated_at = now_us(), changed_by = 'breaker', change_reason = $3 \
             WHERE id = $1 AND breaker_state <> 'closed' AND {}",
            breaker_lets_through()
        );
        let args = args![row.route, micros(Breaker::PROBE), format!("{} looks whether the link is back", row.work)];
        Ok(tx.execute(text, args).await? == 1)
    }

    fn claim(&self, row: &WorkRow, claimed: &Row, members: Vec<Member>) -> Result<Claim, StoreError> {
        let side = if row.queue == row.origin { Dialer::Origin } else { Dialer::Destination };
        let size = |name: &'static str, value: i64| {
            u64::try_from(value).map_err(|_| StoreError::Corrupt(format!("{name} is {value}")))
        };
        Ok(Claim {
            work: row.work,
            fence: Fence::new(claimed.int("fence")?),
            attempt: claimed.size("attempt")?,
            retry_count: row.retry_count.into(),
            priority: size("priority", row.priority)?,
            claimed_at: claimed.time("claimed_at")?,
            origin: self.origin.clone(),
            destination: self.destination.clone(),
            side,
            route: self.route.clone(),
            hop: row.hop.map(|hop| size("hop", hop)).transpose()?,
            members,
            bytes_total: size("bytes_total", row.bytes_total)?,
            bytes_done: size("bytes_done", row.bytes_done)?,
            archive: self.archive.map(|terms| ArchiveTerms { replace: row.is_repair, ..terms }),
        })
    }
}

impl Place {
    fn read(row: &Row, prefix: &str) -> Result<Self, StoreError> {
        let at = |name: &str| format!("{prefix}_{name}");
        let peer = match row.opt_text(&at("peer"))? {
            None => None,
            Some(name) => Some(PeerAddress {
                name,
                address: row.text(&at("address"))?,
                fingerprint: row.text(&at("fingerprint"))?,
                active: row.flag(&at("usable"))?,
            }),
        };
        Ok(Self {
            location: LocationId::new(row.int(&at("id"))?),
            site: row.text(&at("site"))?,
            site_short_name: row.text(&at("short"))?,
            name: row.text(&at("name"))?,
            location_type: row.word(&at("type"))?,
            storage_type: row.word(&at("storage"))?,
            rate_limit_bytes_per_s: opt_size(row, &at("rate"))?,
            peer,
        })
    }
}

fn opt_size(row: &Row, name: &str) -> Result<Option<u64>, StoreError> {
    row.opt_int(name)?.map(|v| u64::try_from(v).map_err(|_| StoreError::Corrupt(format!("{name} is {v}")))).transpose()
}

/// What belongs to each of these rows of one way.
async fn members(tx: &mut Tx, terms: &Terms, rows: &[WorkRow]) -> Result<BTreeMap<i64, Vec<Member>>, StoreError> {
    let what = match Kind::of(terms.work) {
        Kind::Transfer => {
            "data_transfer t JOIN transfer_request r ON r.data_transfer_package_id = t.data_transfer_package_id \
             JOIN raw_data_package p ON p.id = r.package_id"
        }
        Kind::Archive => "long_term_archive_transfer t JOIN raw_data_package p ON p.id = t.package_id",
    };
    // One row for each digest, so that one question is enough.
    let text = format!(
        "SELECT t.id AS work, p.id, p.name, p.kind, p.relative_path, p.size_bytes, p.file_count, p.created_at, \
         coalesce(c.path, p.relative_path) AS source_path, g.algorithm, g.digest FROM {what} \
         LEFT JOIN physical_copy c ON c.package_id = p.id AND c.location_id = $1 \
         LEFT JOIN package_digest g ON g.package_id = p.id WHERE t.id IN ({}) ORDER BY t.id, p.id, g.algorithm",
        any_of(2, rows.len())
    );
    let mut all: BTreeMap<i64, Vec<Member>> = BTreeMap::new();
    let args = with_ids(args![terms.origin.location], rows.iter().map(|row| row.work.number()));
    for row in tx.rows(text, &args).await? {
        let package = PackageId::new(row.int("id")?);
        let members = all.entry(row.int("work")?).or_default();
        if members.last().is_none_or(|last| last.package != package) {
            members.push(Member {
                package,
                name: row.text("name")?,
                kind: row.word("kind")?,
                source_path: row.bytes("source_path")?,
                relative_path: row.bytes("relative_path")?,
                size_bytes: row.size("size_bytes")?,
                file_count: row.size("file_count")?,
                digests: Vec::new(),
                registered_at: row.time("created_at")?,
            });
        }
        if let (Some(value), Some(member)) = (row.opt_bytes("digest")?, members.last_mut()) {
            let value = value.try_into().map_err(|_| StoreError::Corrupt(format!("a digest of {package}")))?;
            member.digests.push(PackageDigest { algorithm: row.word::<Algorithm>("algorithm")?, value });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::{model::Operation, store::Db};

    /// The plan leaps over the claim index and touches rows by key, whatever the tables hold.
    #[tokio::test]
    async fn no_statement_of_a_claim_walks_over_rows_that_wait() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        let mut tx = store.read().await.unwrap();
        for (kind, leap) in [
            (
                Kind::Transfer,
                "data_transfer_claim (queue_location_id=? AND route_id=? AND origin_location_id=? AND destination_location_id>?)",
            ),
            (Kind::Archive, "long_term_archive_transfer_claim (queue_location_id=? AND origin_location_id>?)"),
        ] {
            let text = format!("EXPLAIN QUERY PLAN {}", candidate_text(kind, 2, true));
            let rows = tx.rows(text, args![1i64, 2i64]).await.unwrap();
            let plan: Vec<String> = rows.iter().map(|r| r.text("detail").unwrap()).collect();
            assert!(plan.iter().any(|line| line.contains(leap)), "{plan:#?}");
            for line in &plan {
                // What it walks over is what it has found so far, never a table.
                let walked = line.strip_prefix("SCAN ").map(|rest| rest.split(' ').next().unwrap_or(rest));
                assert!(walked.is_none_or(|w| ["2", "q", "h", "open"].contains(&w)), "{plan:#?}");
            }
        }
    }

    /// With the columns of a way compared as one row of values there would be ten thousand steps, where one is enough.
    #[tokio::test]
    async fn a_long_way_costs_a_claim_no_more_than_a_short_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        let Db::Sqlite(db) = &store.db else { panic!("not SQLite") };
        let mut connection = db.writer.acquire().await.unwrap();
        let fill = "PRAGMA foreign_keys = OFF; PRAGMA recursive_triggers = OFF; DROP TRIGGER data_transfer_birth; \
            DROP TRIGGER data_transfer_chain; DROP TRIGGER data_transfer_bundle; \
            DROP TRIGGER data_transfer_born; \
            WITH RECURSIVE s(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM s WHERE n < 10000) \
            INSERT INTO data_transfer (data_transfer_package_id, route_id, origin_location_id, destination_location_id, \
            queue_location_id, ready, status, bytes_total, changed_by, change_reason) \
            SELECT n, 1, 1, 2, 1, 1, 'scheduled', 1, 'test', 'test' FROM s";
        sqlx::raw_sql(fill).execute(&mut *connection).await.unwrap();
        let steps = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&steps);
        let mut handle = connection.lock_handle().await.unwrap();
        handle.set_progress_handler(10, move || {
            counted.fetch_add(10, Ordering::Relaxed);
            true
        });
        drop(handle);
        let text = candidate_text(Kind::Transfer, 1, true);
        let query = sqlx::query(sqlx::AssertSqlSafe(text.replace("now_us()", crate::store::sqlite::NOW_US)));
        query.bind(1_i64).fetch_all(&mut *connection).await.unwrap();
        let steps = steps.load(Ordering::Relaxed);
        assert!((10..2000).contains(&steps), "{steps} instructions");
    }

    /// Catches a question whose text grows deeper with each queue: SQLite takes a thousand terms.
    #[tokio::test]
    async fn a_worker_may_serve_thousands_of_queues() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        for kind in Kind::ALL {
            let queues: Vec<Value> = (0..5000_i64).map(Value::from).collect();
            let rows = store.ask(offered_text(kind, queues.len(), true), &queues).await.unwrap();
            assert!(!rows[0].flag("offered").unwrap());
            let mut tx = store.read().await.unwrap();
            assert!(tx.row(candidate_text(kind, queues.len(), true), &queues).await.unwrap().is_none());
        }
    }

    #[test]
    fn queues_of_other_operations_are_not_claimed_from() {
        for &operation in Operation::ALL {
            let kind = Kind::of_operation(operation);
            assert!(kind.is_none_or(|k| k.operation() == operation));
        }
    }
}
