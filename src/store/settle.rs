//! What follows from the end of work: states of packages, ways to further archives, another buffer.
//!
//! A row of work is *settled* once a manager has drawn the consequences of its end, in the same transaction; rows that
//! are not stand in an index of their own, so a look costs nothing for those that were settled before. Two managers do
//! not settle a row twice: each skips what the other one holds.

use std::collections::BTreeMap;

use super::{
    Store, StoreError,
    archiving::{Archives, look_for_another_source, require},
    list::class,
    many::{Alias, any_of, locked, off_index, skip_locked, with_ids},
    network::network,
    plan::{Chain, Turn, begin_packages, destination, insert_hops, turn},
    schedule::count,
    sql::{Tx, args},
    wakeups::Wakeup,
    work::Kind as WorkKind,
};
use crate::model::{
    BundleId, Destination, Errand, ErrorClass, Hop, LocationId, Network, PackageState, PackageWork, Policy, Status,
    TransferId,
};

/// What one look did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Ends of work that were looked at.
    pub ends: usize,
    /// Packages whose state changed.
    pub packages: usize,
    /// Requests made for further archive sites.
    pub requests: usize,
    /// Transfers that another buffer got instead.
    pub failovers: usize,
    /// Looks that another manager was in the way of; they come again.
    pub lost: usize,
    /// Ends that the database refused to settle, with no change; they come again.
    pub refused: usize,
}

/// A transfer that ended, or whose destination is full.
#[derive(Clone, Debug)]
struct Ended {
    id: TransferId,
    bundle: BundleId,
    hop: i64,
    waits_for: Option<TransferId>,
    origin: LocationId,
    destination: LocationId,
    priority: i64,
    bytes: u64,
    status: Status,
    class: Option<ErrorClass>,
    text: Option<String>,
    cancelled: bool,
}

/// Bundles whose members are read at once.
const BUNDLES_AT_ONCE: usize = 64;

const ENDED: &str = "t.id, t.data_transfer_package_id, t.hop, t.waits_for, t.origin_location_id,
    t.destination_location_id, t.priority, t.bytes_total, t.status, t.error_class, t.error_text, t.cancel_requested";

impl Store {
    /// Settles up to `batch` ends of work of each kind, and looks for another buffer for up to as many transfers whose
    /// own is full.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood.
    pub async fn settle(&self, batch: u32, actor: &str) -> Result<Settled, StoreError> {
        let mut done = Settled::default();
        for kind in WorkKind::ALL {
            let ids = self.unsettled(kind, batch).await?;
            if ids.is_empty() {
                continue;
            }
            match self.settle_some(kind, &ids, actor).await {
                Ok(some) => done.add(some),
                Err(StoreError::Conflict(_)) => done.lost += ids.len(),
                // One row that is refused must not keep the others.
                Err(StoreError::Refused(_) | StoreError::Duplicate(_)) => {
                    for id in ids {
                        match self.settle_some(kind, &[id], actor).await {
                            Ok(some) => done.add(some),
                            Err(StoreError::Conflict(_)) => done.lost += 1,
                            Err(StoreError::Refused(_) | StoreError::Duplicate(_)) => done.refused += 1,
                            Err(other) => return Err(other),
                        }
                    }
                }
                Err(other) => return Err(other),
            }
        }
        done.failovers += self.leave_full_buffers(batch, actor).await?;
        if done.failovers + done.requests > 0 {
            self.wake(Wakeup::Pending);
        }
        Ok(done)
    }

    async fn unsettled(&self, kind: WorkKind, batch: u32) -> Result<Vec<i64>, StoreError> {
        let mut tx = self.read().await?;
        let text = format!(
            "SELECT id FROM {} WHERE status IN ('completed', 'failed') AND NOT settled
                AND settled = FALSE ORDER BY finished_at, id LIMIT $1",
            kind.table()
        );
        tx.rows(text, args![batch]).await?.iter().map(|row| row.int("id")).collect()
    }

    async fn settle_some(&self, kind: WorkKind, ids: &[i64], actor: &str) -> Result<Settled, StoreError> {
        let mut done = Settled::default();
        let mut tx = self.write().await?;
        let lock = skip_locked(&tx, Alias::Work);
        let names = any_of(1, ids.len());
        let unsettled = format!("{} IN ('completed', 'failed') AND NOT t.settled", off_index("t.status"));
        let mut packages = Vec::new();
        let mut held = Vec::new();
        match kind {
            WorkKind::Archive => {
                let text = format!(
                    "SELECT t.id, t.package_id, t.origin_location_id, t.error_class FROM long_term_archive_transfer t
                    WHERE t.id IN ({names}) AND {unsettled} ORDER BY t.id{lock}"
                );
                for row in tx.rows(text, &with_ids(&[], ids.iter().copied())).await? {
                    held.push(row.int("id")?);
                    packages.push(row.int("package_id")?);
                    let blamed = [ErrorClass::CorruptAtSource, ErrorClass::SourceChanged, ErrorClass::MissingSource];
                    if class(&row)?.is_some_and(|class| blamed.contains(&class)) {
                        let origin = LocationId::new(row.int("origin_location_id")?);
                        look_for_another_source(&mut tx, row.int("package_id")?, origin).await?;
                    }
                }
            }
            WorkKind::Transfer => {
                let text = format!(
                    "SELECT {ENDED} FROM data_transfer t WHERE t.id IN ({names}) AND {unsettled} ORDER BY t.id{lock}"
                );
                let ends = ended(&mut tx, text, ids).await?;
                let mut network = network(&mut tx).await?;
                let mut archives = None;
                let nobody = Members::default();
                for some in ends.chunks(BUNDLES_AT_ONCE) {
                    let numbers: Vec<_> = some.iter().map(|end| end.bundle).collect();
                    let bundles = members_of(&mut tx, &numbers).await?;
                    for end in some {
                        held.push(end.id.number());
                        // Both hops of a bundle may end in one look.
                        let members = bundles.get(&end.bundle).unwrap_or(&nobody);
                        let arrived = if end.status == Status::Completed {
                            members.packages.clone()
                        } else if fail_over(&mut tx, &mut network, end, actor).await? {
                            done.failovers += 1;
                            Vec::new()
                        } else {
                            // The others of its bundle.
                            verified_at(&mut tx, end.destination, &members.packages).await?
                        };
                        if members.is_for_archives && !arrived.is_empty() {
                            // A package that nobody archives goes no further than its own transfers.
                            if archives.is_none() {
                                archives = Some(Archives::of(&mut tx, &network).await?);
                            }
                            let archives = archives.get_or_insert_default();
                            done.requests += go_on(&mut tx, &network, archives, end, &arrived, actor).await?;
                        }
                        packages.extend_from_slice(&members.packages);
                    }
                }
            }
        }
        packages.sort_unstable();
        packages.dedup();
        // Before the states, whose trigger looks at the rows: settled is what they are from now on.
        mark_settled(&mut tx, kind, &held).await?;
        done.packages += keep_states(&mut tx, &packages, actor, "its work changed").await?;
        done.ends = held.len();
        tx.commit().await?;
        Ok(done)
    }

    /// A destination that is full is tried again for hours. Where its site has another buffer, that one gets the
    /// transfer.
    async fn leave_full_buffers(&self, batch: u32, actor: &str) -> Result<usize, StoreError> {
        let mut tx = self.read().await?;
        let network = network(&mut tx).await?;
        let mut stuck = Vec::new();
        for &location in network.locations.keys().filter(|&&l| network.has_alternative(l)) {
            let text = "SELECT t.id FROM data_transfer t
                WHERE t.status = 'pending' AND t.error_class = 'no_space' AND t.destination_location_id = $1
                ORDER BY t.next_attempt_at, t.id LIMIT $2";
            for row in tx.rows(text, args![location, batch]).await? {
                stuck.push(row.int("id")?);
            }
        }
        drop(tx);
        stuck.truncate(usize::try_from(batch).unwrap_or(usize::MAX));
        let mut moved = 0;
        for id in stuck {
            match self.leave_full_buffer(id, actor).await {
                Ok(true) => moved += 1,
                Ok(false) | Err(StoreError::Conflict(_) | StoreError::Duplicate(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(moved)
    }

    async fn leave_full_buffer(&self, id: i64, actor: &str) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let mut network = network(&mut tx).await?;
        let lock = skip_locked(&tx, Alias::Work);
        let text = format!(
            "SELECT {ENDED} FROM data_transfer t WHERE t.id IN ($1) AND t.status = 'pending'
                AND t.error_class = 'no_space' AND NOT t.cancel_requested{lock}"
        );
        let Some(end) = ended(&mut tx, text, &[id]).await?.into_iter().next() else { return Ok(false) };
        let Some(way) = other_way(&mut tx, &network, &end).await? else { return Ok(false) };
        let text = "UPDATE data_transfer SET status = 'failed', settled = TRUE, finished_at = now_us(),
                updated_at = now_us(), changed_by = $2, change_reason = 'its destination is full; another buffer takes over'
            WHERE id = $1";
        tx.execute(text, args![end.id, actor]).await?;
        replace(&mut tx, &mut network, &end, &way, actor).await?;
        tx.commit().await?;
        Ok(true)
    }
}

impl Settled {
    const fn add(&mut self, other: Self) {
        self.ends += other.ends;
        self.packages += other.packages;
        self.requests += other.requests;
        self.failovers += other.failovers;
        self.lost += other.lost;
        self.refused += other.refused;
    }
}

async fn ended(tx: &mut Tx, text: String, ids: &[i64]) -> Result<Vec<Ended>, StoreError> {
    let mut ends = Vec::new();
    for row in tx.rows(text, &with_ids(&[], ids.iter().copied())).await? {
        ends.push(Ended {
            id: TransferId::new(row.int("id")?),
            bundle: BundleId::new(row.int("data_transfer_package_id")?),
            hop: row.int("hop")?,
            waits_for: row.opt_int("waits_for")?.map(TransferId::new),
            origin: LocationId::new(row.int("origin_location_id")?),
            destination: LocationId::new(row.int("destination_location_id")?),
            priority: row.int("priority")?,
            bytes: row.size("bytes_total")?,
            status: row.word("status")?,
            class: class(&row)?,
            text: row.opt_text("error_text")?,
            cancelled: row.flag("cancel_requested")?,
        });
    }
    Ok(ends)
}

/// What is in a bundle.
#[derive(Debug, Default)]
struct Members {
    packages: Vec<i64>,
    /// Whether any of them shall be archived.
    is_for_archives: bool,
}

async fn members_of(tx: &mut Tx, bundles: &[BundleId]) -> Result<BTreeMap<BundleId, Members>, StoreError> {
    let text = format!(
        "SELECT r.data_transfer_package_id AS bundle, r.package_id, p.policy <> $1 AS is_for_archives
        FROM transfer_request r JOIN raw_data_package p ON p.id = r.package_id
        WHERE r.data_transfer_package_id IN ({})",
        any_of(2, bundles.len())
    );
    let args = with_ids(args![Policy::TransferOnly.as_str()], bundles.iter().map(|bundle| bundle.number()));
    let mut found: BTreeMap<BundleId, Members> = BTreeMap::new();
    for row in tx.rows(text, &args).await? {
        let members = found.entry(BundleId::new(row.int("bundle")?)).or_default();
        members.packages.push(row.int("package_id")?);
        members.is_for_archives |= row.flag("is_for_archives")?;
    }
    Ok(found)
}

async fn mark_settled(tx: &mut Tx, kind: WorkKind, ids: &[i64]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let text = format!("UPDATE {} SET settled = TRUE WHERE id IN ({})", kind.table(), any_of(1, ids.len()));
    tx.execute(text, &with_ids(&[], ids.iter().copied())).await?;
    Ok(())
}

/// Those of the packages that lie verified at a location.
async fn verified_at(tx: &mut Tx, location: LocationId, packages: &[i64]) -> Result<Vec<i64>, StoreError> {
    let text = format!(
        "SELECT package_id FROM physical_copy WHERE package_id IN ({}) AND location_id = $1
            AND {} = 'present' AND verification = 'verified' ORDER BY package_id",
        any_of(2, packages.len()),
        off_index("status")
    );
    let rows = tx.rows(text, &with_ids(args![location], packages.iter().copied())).await?;
    rows.iter().map(|row| row.int("package_id")).collect()
}

/// These packages of a bundle arrived. Those that archives require, here or at other sites, get their requirements, and
/// requests for the other sites, which start from here. Returns how many requests were made.
async fn go_on(
    tx: &mut Tx,
    network: &Network,
    archives: &Archives,
    end: &Ended,
    packages: &[i64],
    actor: &str,
) -> Result<usize, StoreError> {
    let row = tx.row("SELECT 1 AS one FROM data_transfer WHERE waits_for = $1 LIMIT 1", args![end.id]).await?;
    let Some(site) = network.locations.get(&end.destination).map(|l| l.site) else { return Ok(0) };
    if row.is_some() {
        return Ok(0);
    }
    require(tx, archives, packages, site).await?;
    // One archive, and none here: it goes on to a site that has one, whose turn it is.
    let text = format!(
        "INSERT INTO transfer_request (package_id, origin_location_id, priority, requested_by)
        SELECT p.id, $1, p.priority, $2 FROM raw_data_package p
        WHERE p.id IN ({}) AND NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = p.id)
            AND p.policy = $3 ON CONFLICT DO NOTHING",
        any_of(4, packages.len())
    );
    let fixed = args![end.destination, actor, Policy::OneArchive.as_str()];
    let mut made = tx.execute(text, &with_ids(fixed, packages.iter().copied())).await?;
    let text = format!(
        "INSERT INTO transfer_request (package_id, origin_location_id, destination_site_id, priority, requested_by)
        SELECT DISTINCT q.package_id, $1, l.site_id, p.priority, $2
        FROM archive_requirement q JOIN data_location l ON l.id = q.location_id
            JOIN raw_data_package p ON p.id = q.package_id
        WHERE q.package_id IN ({}) AND l.site_id <> $3
            AND NOT EXISTS (SELECT 1 FROM transfer_request r
                WHERE r.package_id = q.package_id AND r.destination_site_id = l.site_id AND NOT r.withdrawn)
            AND NOT EXISTS (SELECT 1 FROM physical_copy c JOIN data_location h ON h.id = c.location_id
                WHERE c.package_id = q.package_id AND h.site_id = l.site_id AND c.status = 'present')
        ON CONFLICT DO NOTHING",
        any_of(4, packages.len())
    );
    let fixed = args![end.destination, actor, site];
    made += tx.execute(text, &with_ids(fixed, packages.iter().copied())).await?;
    Ok(count(made))
}

/// A way around a destination that failed, with the turn that it takes.
#[derive(Debug)]
struct OtherWay {
    hops: Vec<Hop>,
    turn: Option<Turn>,
}

/// A transfer failed because of its destination: the next buffer gets its bundle, if the destination was the
/// planner's choice.
async fn fail_over(tx: &mut Tx, network: &mut Network, end: &Ended, actor: &str) -> Result<bool, StoreError> {
    if end.cancelled || !matches!(end.class, Some(ErrorClass::NoSpace | ErrorClass::Configuration)) {
        return Ok(false);
    }
    let row = tx
        .row(
            "SELECT 1 AS one FROM data_transfer WHERE data_transfer_package_id = $1 AND hop = $2 AND status <> 'failed'",
            args![end.bundle, end.hop],
        )
        .await?;
    if row.is_some() {
        return Ok(false);
    }
    let Some(way) = other_way(tx, network, end).await? else { return Ok(false) };
    replace(tx, network, end, &way, actor).await?;
    Ok(true)
}

/// The way from where a transfer began to where its bundle shall go, around all destinations that failed for it.
async fn other_way(tx: &mut Tx, network: &Network, end: &Ended) -> Result<Option<OtherWay>, StoreError> {
    let text = "SELECT destination_site_id, destination_location_id FROM transfer_request
        WHERE data_transfer_package_id = $1 ORDER BY id LIMIT 1";
    let Some(row) = tx.row(text, args![end.bundle]).await? else { return Ok(None) };
    let wanted = destination(row.opt_int("destination_site_id")?, row.opt_int("destination_location_id")?);
    if wanted == Destination::Location(end.destination) {
        return Ok(None);
    }
    let text = "SELECT DISTINCT destination_location_id FROM data_transfer WHERE data_transfer_package_id = $1
        AND (id = $2 OR (status = 'failed' AND error_class IN ('no_space', 'configuration')))";
    let mut avoid = Vec::new();
    for row in tx.rows(text, args![end.bundle, end.id]).await? {
        avoid.push(LocationId::new(row.int("destination_location_id")?));
    }
    // The site that was chosen first: another one is chosen only when none of its buffers is left.
    let text = "SELECT destination_location_id FROM data_transfer WHERE data_transfer_package_id = $1
        ORDER BY hop DESC, id DESC LIMIT 1";
    let last = tx.row(text, args![end.bundle]).await?.map(|r| r.int("destination_location_id")).transpose()?;
    let chosen = last.and_then(|l| network.locations.get(&LocationId::new(l))).map(|l| l.site);
    let errand =
        |destination, last_site| Errand { origin: end.origin, destination, bytes: end.bytes, last_site, avoid: &avoid };
    // What failed at a custom route's own end is not tried there again.
    let around = |hops: Vec<Hop>| hops.iter().all(|h| !avoid.contains(&h.destination)).then_some(hops);
    let first = match (wanted, chosen) {
        (Destination::AnyArchiveSite, Some(site)) => network.way(&errand(Destination::Site(site), None)),
        _ => network.way(&errand(wanted, None)),
    };
    if let Some(hops) = first.ok().and_then(around) {
        return Ok(Some(OtherWay { hops, turn: None }));
    }
    if wanted != Destination::AnyArchiveSite {
        return Ok(None);
    }
    let turn = turn(tx, network, end.origin).await?;
    let hops = network.way(&errand(wanted, turn.last)).ok().and_then(around);
    Ok(hops.map(|hops| OtherWay { hops, turn: Some(turn) }))
}

/// Writes the other way of a bundle in the place of the one that failed and of the hops that waited for it.
async fn replace(
    tx: &mut Tx,
    network: &mut Network,
    end: &Ended,
    way: &OtherWay,
    actor: &str,
) -> Result<(), StoreError> {
    let text = "UPDATE data_transfer SET status = 'failed', settled = TRUE, error_class = $3, error_text = $4,
            finished_at = now_us(), updated_at = now_us(), changed_by = $5, change_reason = 'the bundle takes another way'
        WHERE data_transfer_package_id = $1 AND hop > $2 AND status = 'pending' AND NOT ready";
    let class = end.class.unwrap_or(ErrorClass::NoSpace).as_str();
    let cause = format!("the hop before it, {}, failed: {}", end.id, end.text.as_deref().unwrap_or("no reason given"));
    tx.execute(text, args![end.bundle, end.hop, class, cause, actor]).await?;
    let chain =
        Chain { bundle: end.bundle, hop: end.hop, waits_for: end.waits_for, priority: end.priority, bytes: end.bytes };
    let reason = format!("in the place of {}", end.id);
    insert_hops(tx, &chain, &way.hops, actor, &reason).await?;
    network.reserve(&way.hops, end.bytes);
    if let (Some(turn), Some(last)) = (&way.turn, way.hops.last()) {
        turn.take(tx, network, last.destination).await?;
    }
    let members = members_of(tx, &[end.bundle]).await?.remove(&end.bundle).unwrap_or_default();
    begin_packages(tx, members.packages, actor, &reason).await
}

/// Brings the states of packages to what their work says. Returns how many changed.
pub(super) async fn keep_states(tx: &mut Tx, packages: &[i64], actor: &str, reason: &str) -> Result<usize, StoreError> {
    let mut changed = 0;
    for some in packages.chunks(500) {
        let mut moves: BTreeMap<_, Vec<i64>> = BTreeMap::new();
        let names = any_of(1, some.len());
        let lock = locked(tx);
        // In this order, so that two managers never hold what the other one wants.
        let text = format!("SELECT id FROM raw_data_package WHERE id IN ({names}) ORDER BY id{lock}");
        tx.rows(text, &with_ids(&[], some.iter().copied())).await?;
        let text = format!(
            "SELECT p.id, p.state, {WORK_OF_PACKAGE} FROM raw_data_package p WHERE p.id IN ({names}) ORDER BY p.id"
        );
        for row in tx.rows(text, &with_ids(&[], some.iter().copied())).await? {
            let state: PackageState = row.word("state")?;
            let work = PackageWork {
                is_live: row.flag("is_live")?,
                has_failed: row.flag("has_failed")?,
                required: row.size("required")?,
                archived: row.size("archived")?,
                goes_on: row.flag("goes_on")?,
            };
            if let Some(change) = work.change(state) {
                let id = row.int("id")?;
                let to = state.on(change);
                let to = to.map_err(|change| StoreError::Illegal { what: format!("package p{id}"), change })?;
                moves.entry((state.as_str(), to.as_str())).or_default().push(id);
            }
        }
        for ((from, to), ids) in moves {
            let text = format!(
                "UPDATE raw_data_package SET state = $1, updated_at = now_us(), changed_by = $2, change_reason = $3
                WHERE id IN ({}) AND {} = $4",
                any_of(5, ids.len()),
                off_index("state")
            );
            changed += count(tx.execute(text, &with_ids(args![to, actor, reason, from], ids)).await?);
        }
    }
    Ok(changed)
}

/// [`PackageWork`] of the package `p`. A hop that waits for one that failed does not live, and a failed one counts only
/// where nothing took its place, and for those packages of its bundle that its last hop did not bring over. A copy in an archive that went bad is a failure until it is repaired.
///
/// Each look is at the rows of this package alone. `status || ''` keeps a database from looking through all rows of a
/// status instead, and `<> 'failed'` and `NOT withdrawn` let it use the indexes that leave those out.
const WORK_OF_PACKAGE: &str = "
    (EXISTS (SELECT 1 FROM transfer_request r JOIN data_transfer t
            ON t.data_transfer_package_id = r.data_transfer_package_id
        WHERE r.package_id = p.id AND NOT r.withdrawn AND t.status <> 'failed'
            AND (t.status || '' IN ('scheduled', 'in_progress') OR (t.status || '' = 'pending'
                AND (t.ready OR NOT EXISTS (SELECT 1 FROM data_transfer b
                    WHERE b.data_transfer_package_id = t.data_transfer_package_id AND b.hop < t.hop
                        AND b.status || '' = 'failed'
                        AND NOT EXISTS (SELECT 1 FROM data_transfer n
                            WHERE n.data_transfer_package_id = b.data_transfer_package_id AND n.hop = b.hop
                                AND n.status <> 'failed'))))))
        OR EXISTS (SELECT 1 FROM long_term_archive_transfer a WHERE a.package_id = p.id AND a.repair = 0
            AND a.status <> 'failed' AND a.status || '' IN ('pending', 'scheduled', 'in_progress'))) AS is_live,
    (EXISTS (SELECT 1 FROM transfer_request r JOIN data_transfer t
            ON t.data_transfer_package_id = r.data_transfer_package_id
        WHERE r.package_id = p.id AND NOT r.withdrawn AND t.status || '' = 'failed'
            AND NOT EXISTS (SELECT 1 FROM data_transfer n
                WHERE n.data_transfer_package_id = t.data_transfer_package_id AND n.status <> 'failed'
                    AND (n.hop = t.hop OR (n.hop < t.hop AND n.id > t.id)))
            AND (EXISTS (SELECT 1 FROM data_transfer l
                    WHERE l.data_transfer_package_id = t.data_transfer_package_id AND l.hop > t.hop
                        AND l.status <> 'failed')
                OR NOT EXISTS (SELECT 1 FROM physical_copy c
                    WHERE c.package_id = p.id AND c.location_id = t.destination_location_id
                        AND c.status = 'present' AND c.verification = 'verified')))
        OR EXISTS (SELECT 1 FROM long_term_archive_transfer a WHERE a.package_id = p.id AND a.destination_location_id > 0
            AND a.status = 'failed' AND a.repair = 0 AND NOT EXISTS (SELECT 1 FROM long_term_archive_transfer n
                WHERE n.package_id = p.id AND n.destination_location_id = a.destination_location_id AND n.id > a.id
                    AND n.status <> 'failed'))
        OR EXISTS (SELECT 1 FROM archive_requirement q JOIN physical_copy c
                ON c.package_id = q.package_id AND c.location_id = q.location_id
            WHERE q.package_id = p.id AND c.verification IN ('suspect', 'corrupt'))) AS has_failed,
    (SELECT count(*) FROM archive_requirement q WHERE q.package_id = p.id) AS required,
    (SELECT count(*) FROM archive_requirement q JOIN physical_copy c
        ON c.package_id = q.package_id AND c.location_id = q.location_id
        WHERE q.package_id = p.id AND c.status = 'present' AND c.verification = 'verified' AND EXISTS (
            SELECT 1 FROM proof v WHERE v.package_id = q.package_id AND v.location_id = q.location_id)) AS archived,
    EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = p.id) AS goes_on";

#[cfg(test)]
mod tests {
    use super::*;

    /// With `status` alone where it is `status || ''` all rows of that status would be walked over for each
    /// package.
    #[tokio::test]
    async fn the_state_of_a_package_is_found_in_its_own_rows() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&format!("sqlite:{}", dir.path().join("x.db").display())).await.unwrap();
        let mut tx = store.read().await.unwrap();
        let text =
            format!("EXPLAIN QUERY PLAN SELECT {WORK_OF_PACKAGE} FROM raw_data_package p WHERE p.id IN ($1, $2)");
        let rows = tx.rows(text, args![1i64, 2i64]).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.text("detail").unwrap()).collect();
        assert!(plan.iter().any(|line| line.starts_with("SEARCH t USING INDEX data_transfer_live")), "{plan:#?}");
        for line in &plan {
            assert!(!line.starts_with("SCAN") && !line.contains("(status=?"), "{line}: {plan:#?}");
        }
    }
}
