//! Requests become bundles and transfers.
//!
//! Requests of one origin, destination and priority are a *group*; the schema spells it in one indexed column, so a look
//! costs a step of the index for each group and a bounded number of rows of each, however many wait. A group that
//! nothing leads from is passed over at that cost, and is placed by the first look after the topology has changed; a
//! request that is too large for what is left comes again after [`PlanLimits::look_again`].
//!
//! A bundle, its requests, all its hops and the turn of the site that was chosen are written in one transaction. A
//! second manager does not see the requests while the first one holds them, and afterwards they are not unplanned any
//! more; were it otherwise, `data_transfer_live` and the rule that a request goes into a bundle once refuse its copy.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Backend, Store, StoreError,
    many::{Alias, any_of, distinct, locked, numbers, off_index, skip_locked, with_ids},
    network::network,
    schedule::{Offering, Ready},
    sql::{Row, Tx, Value, args},
    wakeups::Wakeup,
    workers::micros,
};
use crate::model::{
    BundleId, BundleLimits, Candidate, Cut, Destination, Errand, Hop, LocationId, Network, Obstacle, SiteId, Timestamp,
    TransferId,
};

/// Most groups of one look. There are as many as pairs of locations between which something waits.
const GROUPS: u32 = 10_000;
/// Most bundles of one transaction.
const BUNDLES_AT_ONCE: usize = 64;
/// Requests whose obstacle is kept up to date where a whole group has no way.
const SHOWN: usize = 64;

pub(super) const UNPLANNED: &str = "data_transfer_package_id IS NULL AND NOT withdrawn";

/// How much one look of the planner does, and how bundles are cut.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// How bundles are cut.
    pub bundle: BundleLimits,
    /// Most bundles of one look.
    pub bundles: usize,
    /// When a request that fitted nowhere comes again.
    pub look_again: Duration,
    /// Whether what was made is offered to workers in the same transaction, as far as they have room. What is not offered
    /// here, [`Store::schedule`] offers.
    pub offers: bool,
}

impl Default for PlanLimits {
    fn default() -> Self {
        Self { bundle: BundleLimits::default(), bundles: 256, look_again: Duration::from_secs(30), offers: true }
    }
}

/// What one look of the planner did.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    /// Bundles made.
    pub bundles: usize,
    /// Transfers made: one for each hop of each bundle.
    pub transfers: usize,
    /// Packages in those bundles.
    pub packages: usize,
    /// Transfers that were offered at once.
    pub offered: usize,
    /// Whether transfers wait that were not offered here.
    pub leaves_some: bool,
    /// Looks that another manager was faster with.
    pub lost: usize,
    /// Groups that could not be placed, with the reason.
    pub obstacles: Vec<(LocationId, Destination, Obstacle)>,
    /// When the next bundle is due that waits for more packages.
    pub next_due: Option<Timestamp>,
    /// The limit was reached; look again at once.
    pub is_unfinished: bool,
}

/// Requests that may go into one bundle.
#[derive(Clone, Debug)]
struct Group {
    key: String,
    origin: LocationId,
    destination: Destination,
    priority: i64,
}

impl Group {
    fn parse(key: String) -> Result<Self, StoreError> {
        let [origin, site, location, priority] = numbers(&key)?;
        Ok(Self {
            origin: LocationId::new(origin),
            destination: destination(Some(site).filter(|&n| n != 0), Some(location).filter(|&n| n != 0)),
            priority,
            key,
        })
    }
}

/// Where a request's columns say that it shall go.
pub(super) const fn destination(site: Option<i64>, location: Option<i64>) -> Destination {
    match (site, location) {
        (_, Some(location)) => Destination::Location(LocationId::new(location)),
        (Some(site), None) => Destination::Site(SiteId::new(site)),
        (None, None) => Destination::AnyArchiveSite,
    }
}

/// A request that waits.
#[derive(Clone, Debug)]
struct Waiting {
    request: i64,
    package: i64,
    bytes: u64,
    since: Timestamp,
    obstacle: Option<String>,
}

impl Waiting {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            request: row.int("id")?,
            package: row.int("package_id")?,
            bytes: row.size("size_bytes")?,
            since: row.time("requested_at")?,
            obstacle: row.opt_text("obstacle")?,
        })
    }
}

/// What became of one group in one transaction.
#[derive(Debug, Default)]
struct Placed {
    bundles: usize,
    transfers: usize,
    packages: usize,
    offered: usize,
    next_due: Option<Timestamp>,
    obstacle: Option<Obstacle>,
    /// Nothing more to do for it in this look.
    is_done: bool,
}

impl Store {
    /// One look of the planner: makes bundles and transfers of requests that are due.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood. What was planned before stays planned.
    pub async fn plan(&self, limits: &PlanLimits, actor: &str) -> Result<Planned, StoreError> {
        let mut planned = Planned::default();
        let mut tx = self.read().await?;
        let mut network = network(&mut tx).await?;
        let keys = distinct(&mut tx, "transfer_request", "planning_group", UNPLANNED, GROUPS).await?;
        let mut offering =
            if limits.offers && !keys.is_empty() { Offering::read(self, &mut tx).await? } else { Offering::default() };
        drop(tx);
        let mut groups = keys.into_iter().map(Group::parse).collect::<Result<Vec<_>, _>>()?;
        groups.sort_by_key(|g| std::cmp::Reverse(g.priority));
        // In rounds, so that a long group does not keep the others waiting.
        while !groups.is_empty() {
            let mut next = Vec::new();
            for group in groups {
                let left = limits.bundles.saturating_sub(planned.bundles);
                if left == 0 {
                    planned.is_unfinished = true;
                    planned.leaves_some = offering.leaves_some;
                    return Ok(planned);
                }
                let placed = match self.plan_group(&group, &mut network, &mut offering, limits, left, actor).await {
                    Err(StoreError::Conflict(_) | StoreError::Duplicate(_)) => {
                        planned.lost += 1;
                        continue;
                    }
                    other => other?,
                };
                planned.bundles += placed.bundles;
                planned.transfers += placed.transfers;
                planned.packages += placed.packages;
                planned.offered += placed.offered;
                planned.next_due = [planned.next_due, placed.next_due].into_iter().flatten().min();
                if let Some(obstacle) = placed.obstacle {
                    planned.obstacles.push((group.origin, group.destination, obstacle));
                }
                if !placed.is_done {
                    next.push(group);
                }
            }
            groups = next;
        }
        planned.leaves_some = offering.leaves_some;
        Ok(planned)
    }

    async fn plan_group(
        &self,
        group: &Group,
        network: &mut Network,
        offering: &mut Offering,
        limits: &PlanLimits,
        left: usize,
        actor: &str,
    ) -> Result<Placed, StoreError> {
        let most = limits.bundle.packages.max(BUNDLES_AT_ONCE) + 1;
        let nothing =
            Errand { origin: group.origin, destination: group.destination, bytes: 0, last_site: None, avoid: &[] };
        if let Err(obstacle) = network.way(&nothing) {
            self.show_obstacle(group, &obstacle, limits.look_again).await?;
            return Ok(Placed { obstacle: Some(obstacle), is_done: true, ..Placed::default() });
        }
        let over = |waiting: &[Waiting], now| match limits.bundle.cut(&candidates(waiting), waiting.len() >= most, now)
        {
            Cut::Nobody => Some(Placed { is_done: true, ..Placed::default() }),
            Cut::Wait(until) => Some(Placed { next_due: Some(until), is_done: true, ..Placed::default() }),
            Cut::Take(_) => None,
        };
        // On SQLite a reader looks first, who waits for no writer. On PostgreSQL the same look costs a writer nothing more.
        if self.backend() == Backend::Sqlite {
            let mut tx = self.read().await?;
            let (waiting, now) = head(&mut tx, group, most, limits.look_again, "").await?;
            if let Some(placed) = over(&waiting, now) {
                return Ok(placed);
            }
        }
        let mut tx = self.write().await?;
        let lock = skip_locked(&tx, Alias::Request);
        let (waiting, now) = head(&mut tx, group, most, limits.look_again, lock).await?;
        if let Some(placed) = over(&waiting, now) {
            tx.rollback().await?;
            return Ok(placed);
        }
        let is_whole = waiting.len() < most;
        let mut rest = waiting;
        let mut placed = Placed::default();
        // Kept aside until the commit: a rolled-back plan reserves nothing.
        let mut view = network.clone();
        let mut bundles = Vec::new();
        while bundles.len() < left.min(BUNDLES_AT_ONCE) {
            let count = match limits.bundle.cut(&candidates(&rest), !is_whole && !rest.is_empty(), now) {
                Cut::Take(count) => count,
                Cut::Wait(until) => {
                    placed.next_due = Some(until);
                    placed.is_done = true;
                    break;
                }
                Cut::Nobody => {
                    // A whole look that placed nothing is enough for this time.
                    placed.is_done = is_whole || bundles.is_empty();
                    break;
                }
            };
            match place(&mut tx, group, &view, &rest[..count]).await? {
                Ok((taken, hops)) => {
                    let others = rest.split_off(taken);
                    view.reserve(&hops, sum(&rest));
                    placed.bundles += 1;
                    placed.transfers += hops.len();
                    placed.packages += taken;
                    bundles.push(Bundle { members: rest, hops });
                    rest = others;
                }
                Err(obstacle) => {
                    rest = set_aside(&mut tx, group, &view, rest, limits.look_again).await?;
                    placed.obstacle = Some(obstacle);
                }
            }
        }
        if !bundles.is_empty() {
            let ready = write_bundles(&mut tx, group, &bundles, actor).await?;
            placed.offered = offering.offer_made(&mut tx, &ready, actor).await?;
        }
        tx.commit().await?;
        if placed.transfers > 0 {
            self.wake(Wakeup::Pending);
        }
        if placed.offered > 0 {
            self.wake(Wakeup::Outbox);
        }
        *network = view;
        Ok(placed)
    }

    /// Keeps the obstacle of the first requests of a group up to date, writing only where it changed.
    async fn show_obstacle(&self, group: &Group, obstacle: &Obstacle, look_again: Duration) -> Result<(), StoreError> {
        let text = obstacle.to_string();
        let mut tx = self.read().await?;
        let (waiting, _) = head(&mut tx, group, SHOWN, look_again, "").await?;
        drop(tx);
        let stale: Vec<_> =
            waiting.iter().filter(|w| w.obstacle.as_deref() != Some(&text)).map(|w| w.request).collect();
        if stale.is_empty() {
            return Ok(());
        }
        let mut tx = self.write().await?;
        let statement = format!(
            "UPDATE transfer_request SET obstacle = $1 WHERE id IN ({}) AND {UNPLANNED}",
            any_of(2, stale.len())
        );
        tx.execute(statement, &with_ids(args![text], stale)).await?;
        tx.commit().await
    }
}

fn sum(members: &[Waiting]) -> u64 {
    members.iter().fold(0, |sum, w| sum.saturating_add(w.bytes))
}

fn candidates(waiting: &[Waiting]) -> Vec<Candidate> {
    waiting.iter().map(|w| Candidate { bytes: w.bytes, since: w.since }).collect()
}

/// The requests of a group that are due, the oldest first, and the time of the look. Nobody is put off for longer than
/// `look_again`: what seems to be was written by a clock that was set back since.
async fn head(
    tx: &mut Tx,
    group: &Group,
    most: usize,
    look_again: Duration,
    lock: &'static str,
) -> Result<(Vec<Waiting>, Timestamp), StoreError> {
    // Two ranges of the index, and not one OR, which would walk over all that waits.
    let range = |range: &str| {
        format!(
            "SELECT * FROM (SELECT r.id, r.package_id, r.requested_at, r.obstacle, p.size_bytes, now_us() AS now
            FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id
            WHERE r.planning_group = $1 AND r.not_before {range}
                AND r.data_transfer_package_id IS NULL AND NOT r.withdrawn
            ORDER BY r.not_before, r.id LIMIT $2{lock}) AS x"
        )
    };
    let text = format!("{} UNION ALL {} LIMIT $2", range("<= (SELECT now_us())"), range("> (SELECT now_us() + $3)"));
    let args = args![group.key.as_str(), i64::try_from(most).unwrap_or(i64::MAX), micros(look_again)];
    let rows = tx.rows(text, args).await?;
    // Without a row the time makes no difference.
    let now = rows.first().map_or(Ok(Timestamp::from_micros(0)), |row| row.time("now"))?;
    Ok((rows.iter().map(Waiting::read).collect::<Result<_, _>>()?, now))
}

/// The database's time, within a transaction.
pub(super) async fn time(tx: &mut Tx) -> Result<Timestamp, StoreError> {
    let row = tx.row("SELECT now_us() AS now", args![]).await?;
    row.ok_or_else(|| StoreError::Corrupt("no time".into()))?.time("now")
}

/// How many of these go, and which way; fewer than asked where only those have room.
async fn place(
    tx: &mut Tx,
    group: &Group,
    network: &Network,
    members: &[Waiting],
) -> Result<Result<(usize, Vec<Hop>), Obstacle>, StoreError> {
    let turn = match group.destination {
        Destination::AnyArchiveSite => Some(turn(tx, network, group.origin).await?),
        _ => None,
    };
    let mut count = members.len();
    loop {
        let errand = Errand {
            origin: group.origin,
            destination: group.destination,
            bytes: sum(&members[..count]),
            last_site: turn.as_ref().and_then(|t| t.last),
            avoid: &[],
        };
        match network.way(&errand) {
            Ok(hops) => {
                if let (Some(turn), Some(last)) = (turn, hops.last()) {
                    turn.take(tx, network, last.destination).await?;
                }
                return Ok(Ok((count, hops)));
            }
            Err(obstacle) if obstacle.is_about_size() && count > 1 => count /= 2,
            Err(obstacle) => return Ok(Err(obstacle)),
        }
    }
}

/// Whose turn it is among several destination sites.
#[derive(Debug)]
pub(super) struct Turn {
    group: String,
    pub(super) last: Option<SiteId>,
}

/// Reads and locks the turn of what leaves a site.
pub(super) async fn turn(tx: &mut Tx, network: &Network, origin: LocationId) -> Result<Turn, StoreError> {
    let site = network.locations.get(&origin).map_or(0, |l| l.site.number());
    let group = format!("archives from site {site}");
    let text = "INSERT INTO round_robin (route_group) VALUES ($1) ON CONFLICT DO NOTHING";
    tx.execute(text, args![group.as_str()]).await?;
    let text = format!("SELECT last_site_id FROM round_robin WHERE route_group = $1{}", locked(tx));
    let row = tx.row(text, args![group.as_str()]).await?;
    let last = row.map(|r| r.opt_int("last_site_id")).transpose()?.flatten().map(SiteId::new);
    Ok(Turn { group, last })
}

impl Turn {
    /// Writes that the site of this location had its turn.
    pub(super) async fn take(&self, tx: &mut Tx, network: &Network, to: LocationId) -> Result<(), StoreError> {
        let site = network.locations.get(&to).map(|l| l.site);
        let text = "UPDATE round_robin SET last_site_id = $2, turn = turn + 1, updated_at = now_us()
            WHERE route_group = $1";
        tx.execute(text, args![self.group.as_str(), site]).await?;
        Ok(())
    }
}

/// Puts the requests off that find no way alone, of which the first is one. Returns the others.
async fn set_aside(
    tx: &mut Tx,
    group: &Group,
    network: &Network,
    waiting: Vec<Waiting>,
    look_again: Duration,
) -> Result<Vec<Waiting>, StoreError> {
    let until = time(tx).await?.after(look_again);
    let mut others = Vec::new();
    for (place, one) in waiting.into_iter().enumerate() {
        let errand = Errand {
            origin: group.origin,
            destination: group.destination,
            bytes: one.bytes,
            last_site: None,
            avoid: &[],
        };
        let obstacle = match network.way(&errand) {
            Ok(_) if place > 0 => {
                others.push(one);
                continue;
            }
            // Where turns differ the first one may have a way by now; it comes again all the same.
            found => found.err().map(|obstacle| obstacle.to_string()),
        };
        let text = format!("UPDATE transfer_request SET obstacle = $2, not_before = $3 WHERE id = $1 AND {UNPLANNED}");
        tx.execute(text, args![one.request, obstacle, until]).await?;
    }
    Ok(others)
}

/// What goes together, and its way.
#[derive(Debug)]
struct Bundle {
    members: Vec<Waiting>,
    hops: Vec<Hop>,
}

/// Writes bundles with all their hops: a few statements, however many they are. Returns the first hops.
async fn write_bundles(tx: &mut Tx, group: &Group, bundles: &[Bundle], actor: &str) -> Result<Vec<Ready>, StoreError> {
    let mut args = args![group.origin, actor].to_vec();
    for bundle in bundles {
        args.push(Value::size(sum(&bundle.members))?);
        args.push(i64::try_from(bundle.members.len()).unwrap_or(i64::MAX).into());
    }
    let values: Vec<_> = (0..bundles.len()).map(|n| format!("($1, ${}, ${}, $2)", 3 + 2 * n, 4 + 2 * n)).collect();
    let text = format!(
        "INSERT INTO data_transfer_package (origin_location_id, size_bytes, package_count, created_by)
        VALUES {} RETURNING id, size_bytes, package_count",
        values.join(", ")
    );
    // In whatever order they come back: those of one size and count are alike.
    let mut made: BTreeMap<(u64, u64), Vec<BundleId>> = BTreeMap::new();
    for row in tx.rows(text, &args).await? {
        let like = (row.size("size_bytes")?, row.size("package_count")?);
        made.entry(like).or_default().push(BundleId::new(row.int("id")?));
    }
    let mut chains = Vec::with_capacity(bundles.len());
    let mut pairs = Vec::new();
    for bundle in bundles {
        let bytes = sum(&bundle.members);
        let like = (bytes, u64::try_from(bundle.members.len()).unwrap_or(u64::MAX));
        let number = made.get_mut(&like).and_then(Vec::pop).ok_or_else(|| StoreError::Corrupt("no bundle".into()))?;
        pairs.extend(bundle.members.iter().map(|one| (one.request, number)));
        let chain = Chain { bundle: number, hop: 1, waits_for: None, priority: group.priority, bytes };
        chains.push((chain, bundle.hops.as_slice()));
    }
    let values: Vec<_> = (0..pairs.len()).map(|n| format!("(${}, ${})", 1 + 2 * n, 2 + 2 * n)).collect();
    // Not in the words of the index of what is unplanned: these are found by their ids.
    let text = format!(
        "WITH v (request, bundle) AS (VALUES {})
        UPDATE transfer_request SET data_transfer_package_id = v.bundle, planned_at = now_us(), obstacle = NULL
        FROM v WHERE id = v.request AND coalesce(data_transfer_package_id, 0) = 0 AND NOT withdrawn",
        values.join(", ")
    );
    let args: Vec<Value> =
        pairs.iter().flat_map(|&(request, bundle)| [Value::from(request), Value::from(bundle)]).collect();
    if tx.execute(text, &args).await? != u64::try_from(pairs.len()).unwrap_or(u64::MAX) {
        return Err(StoreError::Conflict("another manager planned some of these requests".into()));
    }
    let ready = insert_chains(tx, &chains, actor, "planned").await?;
    let packages: Vec<_> = bundles.iter().flat_map(|b| &b.members).map(|one| one.package).collect();
    begin_packages(tx, packages, actor, "planned").await?;
    Ok(ready)
}

/// Where hops are added to a bundle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) bundle: BundleId,
    /// The number of the first one.
    pub(super) hop: i64,
    /// The transfer before it. It is completed unless it is `None`.
    pub(super) waits_for: Option<TransferId>,
    pub(super) priority: i64,
    pub(super) bytes: u64,
}

/// Writes hops one behind the other, the first one ready.
pub(super) async fn insert_hops(
    tx: &mut Tx,
    chain: &Chain,
    hops: &[Hop],
    actor: &str,
    reason: &str,
) -> Result<(), StoreError> {
    insert_chains(tx, &[(*chain, hops)], actor, reason).await?;
    Ok(())
}

/// The same for several bundles: one statement for the first hop of all of them, one for the second, and so on. Returns the
/// first ones, which are ready.
async fn insert_chains(
    tx: &mut Tx,
    chains: &[(Chain, &[Hop])],
    actor: &str,
    reason: &str,
) -> Result<Vec<Ready>, StoreError> {
    const COLUMNS: usize = 10;
    let mut ready = Vec::with_capacity(chains.len());
    let mut before: BTreeMap<BundleId, TransferId> = BTreeMap::new();
    let longest = chains.iter().map(|(_, hops)| hops.len()).max().unwrap_or_default();
    for place in 0..longest {
        let mut args = args![place == 0, actor, reason].to_vec();
        let mut values = Vec::new();
        for (chain, hops) in chains {
            let Some(hop) = hops.get(place) else { continue };
            let waits_for = if place == 0 { chain.waits_for } else { before.get(&chain.bundle).copied() };
            let at = |n: usize| args.len() + n;
            values.push(format!(
                "(${}, ${}, ${}, ${}, ${}, ${}, ${}, ${}, $1, ${}, ${}, $2, $3)",
                at(1),
                at(2),
                at(3),
                at(4),
                at(5),
                at(6),
                at(7),
                at(8),
                at(9),
                at(COLUMNS)
            ));
            args.extend([
                chain.bundle.into(),
                hop.route.into(),
                hop.relay.into(),
                hop.origin.into(),
                hop.destination.into(),
                hop.queue.into(),
                (chain.hop + i64::try_from(place).unwrap_or(i64::MAX)).into(),
                waits_for.into(),
                chain.priority.into(),
                Value::size(chain.bytes)?,
            ]);
        }
        let text = format!(
            "INSERT INTO data_transfer (data_transfer_package_id, route_id, relay_route_id, origin_location_id,
                destination_location_id, queue_location_id, hop, waits_for, ready, priority, bytes_total, changed_by,
                change_reason)
            VALUES {} RETURNING id, data_transfer_package_id",
            values.join(", ")
        );
        for row in tx.rows(text, &args).await? {
            let bundle = BundleId::new(row.int("data_transfer_package_id")?);
            let transfer = TransferId::new(row.int("id")?);
            before.insert(bundle, transfer);
            let hops = chains.iter().find(|(chain, _)| place == 0 && chain.bundle == bundle).map(|(_, hops)| *hops);
            ready.extend(hops.and_then(<[Hop]>::first).map(|&hop| Ready { transfer, hop }));
        }
    }
    Ok(ready)
}

/// Work for packages exists now.
pub(super) async fn begin_packages(
    tx: &mut Tx,
    mut packages: Vec<i64>,
    actor: &str,
    reason: &str,
) -> Result<(), StoreError> {
    // Always in this order, so that two managers never hold what the other one wants.
    packages.sort_unstable();
    let names = any_of(3, packages.len());
    let lock = locked(tx);
    let text = format!(
        "UPDATE raw_data_package SET state = 'transferring', updated_at = now_us(), changed_by = $1, change_reason = $2
        WHERE id IN (SELECT id FROM raw_data_package WHERE id IN ({names}) AND {} IN ('waiting', 'failed')
            ORDER BY id{lock})",
        off_index("state")
    );
    tx.execute(text, &with_ids(args![actor, reason], packages)).await?;
    Ok(())
}
