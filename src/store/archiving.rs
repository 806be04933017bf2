//! Packages that reached a site with archives become work for these archives, and copies that went bad there become
//! repairs.
//!
//! A copy has a time at which this planner looks at it (`archive_due_at`): at once when it is new or was called
//! something else, later when nothing could be done, never when nothing is left to do. The index holds only those with
//! a time, by location, so a look costs as much as is new, however much was archived before; copies at sites without
//! archives wait there unlooked at, until their site gets one.
//!
//! What the policy asks for is stored when the first archive work of a package is planned (`archive_requirement`), and
//! stays. Requirements, work and the copy's time are written in one transaction; a second manager skips what the first
//! one holds, and its copy of a plan fails on `long_term_archive_transfer_once`.
//!
//! A repair reads from a verified copy of the same site, a buffer before another archive; one that failed for it is not
//! taken again. Where the site has none, the package is asked for from another site, and looked at again.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Store, StoreError,
    many::{Alias, any_of, skip_locked, with_ids},
    network::network,
    plan::{begin_packages, time},
    schedule::count,
    sql::{Tx, args},
    wakeups::Wakeup,
};
use crate::model::{CopyStatus, LocationId, LocationType, Network, PackageId, Policy, SiteId, Timestamp, Verification};

/// Copies of one transaction.
const COPIES_AT_ONCE: usize = 100;

/// How much one look of the archive planner does.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveLimits {
    /// Most copies of one look.
    pub copies: usize,
    /// When a copy for which nothing could be done comes again.
    pub look_again: Duration,
}

impl Default for ArchiveLimits {
    fn default() -> Self {
        Self { copies: 1000, look_again: Duration::from_secs(30) }
    }
}

/// What one look of the archive planner did.
#[derive(Clone, Debug, Default)]
pub struct ArchivesPlanned {
    /// Copies that were looked at.
    pub looked_at: usize,
    /// Archive transfers made, for the first time.
    pub transfers: usize,
    /// Archive transfers made to replace a bad copy.
    pub repairs: usize,
    /// Requests made to bring a package to a site whose archive has to be repaired.
    pub requests: usize,
    /// Looks that another manager was faster with.
    pub lost: usize,
    /// Bad copies that nothing is there to repair from.
    pub unrepaired: Vec<(PackageId, LocationId)>,
    /// The limit was reached; look again at once.
    pub is_unfinished: bool,
}

/// The archives that packages may be sent to now, of each site the ones that a policy asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Archives {
    chosen: BTreeMap<SiteId, Vec<LocationId>>,
}

impl Archives {
    /// Each archive, or as many as it says of a group: those that are not paused and not full before others, then by
    /// priority.
    pub(super) async fn of(tx: &mut Tx, network: &Network) -> Result<Self, StoreError> {
        let text = "SELECT l.id, l.archive_group, l.archive_copies FROM data_location l JOIN site s ON s.id = l.site_id
            WHERE l.location_type = 'long_term_archive' AND l.active AND s.active";
        let mut found = Vec::new();
        for row in tx.rows(text, args![]).await? {
            let id = LocationId::new(row.int("id")?);
            let Some(place) = network.locations.get(&id) else { continue };
            let is_full = place.room_bytes.is_some_and(|room| room <= 0);
            found.push((
                (place.site, place.paused, is_full, place.priority, id),
                row.opt_text("archive_group")?,
                usize::try_from(row.int("archive_copies")?).unwrap_or(usize::MAX),
            ));
        }
        found.sort();
        let mut chosen: BTreeMap<SiteId, Vec<LocationId>> = BTreeMap::new();
        let mut of_group: BTreeMap<(SiteId, String), usize> = BTreeMap::new();
        for ((site, .., id), group, copies) in found {
            if let Some(group) = group {
                let there = of_group.entry((site, group)).or_default();
                if *there >= copies {
                    continue;
                }
                *there += 1;
            }
            chosen.entry(site).or_default().push(id);
        }
        Ok(Self { chosen })
    }
}

/// Whether an archive is at one of the sites where package `p` lies or shall go.
const OF_SITES: &str = "(l.site_id = $2 OR l.site_id IN (SELECT r.destination_site_id FROM transfer_request r
    WHERE r.package_id = p.id AND NOT r.withdrawn))";

/// Writes what the policies of packages ask for, as they lie at a site now, unless it was written before. Packages
/// that want one archive, where their site has none, get nothing.
pub(super) async fn require(
    tx: &mut Tx,
    archives: &Archives,
    packages: &[i64],
    site: SiteId,
) -> Result<(), StoreError> {
    if packages.is_empty() || archives.chosen.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = archives.chosen.values().flatten().copied().collect();
    let here = archives.chosen.get(&site).and_then(|here| here.first()).copied();
    for (policy, which, chosen) in [
        (Policy::EveryArchive, "$2 = $2", all.clone()),
        (Policy::SiteArchives, OF_SITES, all),
        (Policy::OneArchive, "l.site_id = $2", here.into_iter().collect()),
    ] {
        let text = format!(
            "INSERT INTO archive_requirement (package_id, location_id)
            SELECT p.id, l.id FROM raw_data_package p CROSS JOIN data_location l
            WHERE p.id IN ({}) AND l.id IN ({}) AND p.policy = $1 AND {which}
                AND NOT EXISTS (SELECT 1 FROM archive_requirement q WHERE q.package_id = p.id)
            ORDER BY p.id, l.id ON CONFLICT DO NOTHING",
            any_of(3, packages.len()),
            any_of(3 + packages.len().next_power_of_two(), chosen.len())
        );
        let args = with_ids(args![policy.as_str(), site], packages.iter().copied());
        let args = with_ids(&args, chosen.iter().map(|l| l.number()));
        tx.execute(text, &args).await?;
    }
    Ok(())
}

/// A location whose copies are looked at.
#[derive(Clone, Copy, Debug)]
struct Spot {
    location: LocationId,
    site: SiteId,
    location_type: LocationType,
}

/// A copy whose time has come.
#[derive(Clone, Copy, Debug)]
struct Due {
    copy: i64,
    package: i64,
    status: CopyStatus,
    verification: Verification,
    policy: Policy,
    is_origin: bool,
}

impl Due {
    /// Whether an archive may be filled from it.
    fn is_source(self, spot: Spot) -> bool {
        self.status == CopyStatus::Present
            && matches!(self.verification, Verification::Verified | Verification::Registered)
            && (self.is_origin || spot.location_type == LocationType::Buffer)
    }

    fn is_bad(self) -> bool {
        self.status == CopyStatus::Present && matches!(self.verification, Verification::Suspect | Verification::Corrupt)
    }
}

/// What became of the copies of one transaction.
#[derive(Debug, Default)]
struct Handled {
    looked_at: usize,
    transfers: usize,
    repairs: usize,
    requests: usize,
    unrepaired: Vec<PackageId>,
}

impl Store {
    /// One look of the archive planner: work for packages that lie at sites with archives and are not in them yet, and
    /// repairs of copies that went bad. Only at `site`, by short name, where one is given.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a site that is not there; the database is away, or a row cannot be understood. What
    /// was planned before stays planned.
    pub async fn plan_archives(
        &self,
        limits: &ArchiveLimits,
        site: Option<&str>,
        actor: &str,
    ) -> Result<ArchivesPlanned, StoreError> {
        let only = match site {
            Some(name) => Some(self.site_id(name).await?),
            None => None,
        };
        let mut planned = ArchivesPlanned::default();
        let mut tx = self.read().await?;
        let network = network(&mut tx).await?;
        let archives = Archives::of(&mut tx, &network).await?;
        let mut spots = Vec::new();
        for (&location, place) in &network.locations {
            let is_meant = only.is_none_or(|only| only == place.site) && archives.chosen.contains_key(&place.site);
            if place.active && is_meant {
                let spot = Spot { location, site: place.site, location_type: place.location_type };
                if !due(&mut tx, spot, 1, limits.look_again, "").await?.is_empty() {
                    spots.push(spot);
                }
            }
        }
        drop(tx);
        while !spots.is_empty() {
            let mut next = Vec::new();
            for spot in spots {
                let left = limits.copies.saturating_sub(planned.looked_at).min(COPIES_AT_ONCE);
                if left == 0 {
                    planned.is_unfinished = true;
                    return Ok(planned);
                }
                let handled = match self.plan_at(spot, &archives, left, limits.look_again, actor).await {
                    Err(StoreError::Conflict(_) | StoreError::Duplicate(_)) => {
                        planned.lost += 1;
                        continue;
                    }
                    other => other?,
                };
                planned.looked_at += handled.looked_at;
                planned.transfers += handled.transfers;
                planned.repairs += handled.repairs;
                planned.requests += handled.requests;
                planned.unrepaired.extend(handled.unrepaired.into_iter().map(|package| (package, spot.location)));
                if handled.looked_at == left {
                    next.push(spot);
                }
            }
            spots = next;
        }
        Ok(planned)
    }

    async fn plan_at(
        &self,
        spot: Spot,
        archives: &Archives,
        most: usize,
        look_again: Duration,
        actor: &str,
    ) -> Result<Handled, StoreError> {
        let mut tx = self.write().await?;
        let lock = skip_locked(&tx, Alias::Copy);
        let copies = due(&mut tx, spot, most, look_again, lock).await?;
        if copies.is_empty() {
            return Ok(Handled::default());
        }
        let mut handled = Handled { looked_at: copies.len(), ..Handled::default() };
        let later = if spot.location_type == LocationType::LongTermArchive {
            repair(&mut tx, spot, &copies, actor, &mut handled).await?
        } else {
            archive(&mut tx, spot, archives, &copies, actor, &mut handled).await?
        };
        put_off(&mut tx, &copies, &later, look_again).await?;
        tx.commit().await?;
        if handled.transfers + handled.repairs + handled.requests > 0 {
            self.wake(Wakeup::Pending);
        }
        Ok(handled)
    }
}

/// Copies of a location whose time has come. None is put off for longer than `look_again`: what seems to be was
/// written by a clock that was set back since.
async fn due(
    tx: &mut Tx,
    spot: Spot,
    most: usize,
    look_again: Duration,
    lock: &'static str,
) -> Result<Vec<Due>, StoreError> {
    let now = time(tx).await?;
    let mut found = Vec::new();
    for (range, end) in [("<=", now), (">", now.after(look_again))] {
        let text = format!(
            "SELECT c.id, c.package_id, c.status, c.verification, p.policy, p.origin_location_id
            FROM physical_copy c JOIN raw_data_package p ON p.id = c.package_id
            WHERE c.location_id = $1 AND c.archive_due_at IS NOT NULL AND c.archive_due_at {range} $2
            ORDER BY c.archive_due_at, c.id LIMIT $3{lock}"
        );
        let left = i64::try_from(most.saturating_sub(found.len())).unwrap_or(i64::MAX);
        for row in tx.rows(text, args![spot.location, end, left]).await? {
            found.push(Due {
                copy: row.int("id")?,
                package: row.int("package_id")?,
                status: row.word("status")?,
                verification: row.word("verification")?,
                policy: row.word("policy")?,
                is_origin: row.int("origin_location_id")? == spot.location.number(),
            });
        }
    }
    Ok(found)
}

/// Work for the archives of a site from copies that lie there. Returns the packages that come again.
async fn archive(
    tx: &mut Tx,
    spot: Spot,
    archives: &Archives,
    copies: &[Due],
    actor: &str,
    handled: &mut Handled,
) -> Result<Vec<i64>, StoreError> {
    let mut packages: Vec<_> =
        copies.iter().filter(|c| c.is_source(spot) && c.policy != Policy::TransferOnly).map(|c| c.package).collect();
    packages.sort_unstable();
    if packages.is_empty() {
        return Ok(packages);
    }
    require(tx, archives, &packages, spot.site).await?;
    let missing = format!(
        "FROM archive_requirement q JOIN raw_data_package p ON p.id = q.package_id
            JOIN data_location l ON l.id = q.location_id
        WHERE q.package_id IN ({}) AND l.site_id = $2
            AND NOT EXISTS (SELECT 1 FROM physical_copy c WHERE c.package_id = q.package_id
                AND c.location_id = q.location_id AND c.status = 'present')
            AND NOT EXISTS (SELECT 1 FROM long_term_archive_transfer t WHERE t.package_id = q.package_id
                AND t.destination_location_id = q.location_id
                AND (t.status <> 'failed' OR t.origin_location_id = $1))",
        any_of(4, packages.len())
    );
    let text = format!(
        "INSERT INTO long_term_archive_transfer (package_id, origin_location_id, destination_location_id,
            queue_location_id, priority, bytes_total, changed_by, change_reason)
        SELECT p.id, $1, l.id, l.id, p.priority, p.size_bytes, $3, 'planned' {missing} AND l.active
        ORDER BY p.id, l.id RETURNING package_id"
    );
    let args = with_ids(args![spot.location, spot.site, actor], packages.iter().copied());
    let rows = tx.rows(text, &args).await?;
    handled.transfers = rows.len();
    let mut begun = rows.iter().map(|row| row.int("package_id")).collect::<Result<Vec<_>, _>>()?;
    begun.dedup();
    if !begun.is_empty() {
        begin_packages(tx, begun, actor, "archive work was planned").await?;
    }
    // What is left is for archives that are not active now.
    let text = format!("SELECT DISTINCT q.package_id {missing} AND $3 = $3");
    tx.rows(text, &args).await?.iter().map(|row| row.int("package_id")).collect()
}

/// Repairs of copies in an archive. Returns the packages that come again.
async fn repair(
    tx: &mut Tx,
    spot: Spot,
    copies: &[Due],
    actor: &str,
    handled: &mut Handled,
) -> Result<Vec<i64>, StoreError> {
    let mut later = Vec::new();
    for bad in copies.iter().filter(|c| c.is_bad()) {
        let text = "SELECT count(*) AS live FROM long_term_archive_transfer WHERE package_id = $1
            AND destination_location_id = $2 AND status IN ('pending', 'scheduled', 'in_progress')";
        let row = tx.row(text, args![bad.package, spot.location]).await?;
        if row.map_or(Ok(0), |row| row.int("live"))? > 0 {
            continue;
        }
        let text = "SELECT coalesce(max(repair), 0) + 1 AS next FROM long_term_archive_transfer
            WHERE package_id = $1 AND destination_location_id = $2 AND status = 'completed'";
        let next = tx.row(text, args![bad.package, spot.location]).await?.map_or(Ok(1), |row| row.int("next"))?;
        let text = "INSERT INTO long_term_archive_transfer (package_id, origin_location_id, destination_location_id,
                queue_location_id, priority, bytes_total, repair, changed_by, change_reason)
            SELECT p.id, c.location_id, $2, $2, p.priority, p.size_bytes, $4, $5, 'a repair was planned'
            FROM raw_data_package p JOIN physical_copy c ON c.package_id = p.id
                JOIN data_location l ON l.id = c.location_id
            WHERE p.id = $1 AND c.location_id <> $2 AND c.status = 'present'
                AND c.verification IN ('verified', 'registered') AND l.site_id = $3 AND l.active
                AND NOT EXISTS (SELECT 1 FROM long_term_archive_transfer t WHERE t.package_id = p.id
                    AND t.destination_location_id = $2 AND t.repair = $4 AND t.origin_location_id = c.location_id)
            ORDER BY CASE l.location_type WHEN 'buffer' THEN 0 WHEN 'long_term_archive' THEN 2 ELSE 1 END, l.priority,
                l.id LIMIT 1";
        let made = tx.execute(text, args![bad.package, spot.location, spot.site, next, actor]).await?;
        handled.repairs += count(made);
        if made == 0 {
            handled.requests += ask_for(tx, bad.package, spot, actor).await?;
            handled.unrepaired.push(PackageId::new(bad.package));
            later.push(bad.package);
        }
    }
    Ok(later)
}

/// Asks another site for a package that has to be repaired here and that no verified copy here can be read from.
/// Returns how many requests were made.
async fn ask_for(tx: &mut Tx, package: i64, spot: Spot, actor: &str) -> Result<usize, StoreError> {
    let text = "INSERT INTO transfer_request (package_id, origin_location_id, destination_site_id,
            destination_location_id, priority, requested_by)
        SELECT p.id, c.location_id, b.site_id, b.id, p.priority, $3
        FROM raw_data_package p JOIN physical_copy c ON c.package_id = p.id
            JOIN data_location l ON l.id = c.location_id CROSS JOIN data_location b
        WHERE p.id = $1 AND c.status = 'present' AND c.verification IN ('verified', 'registered')
            AND l.active AND l.location_type <> 'long_term_archive' AND l.site_id <> $2
            AND b.site_id = $2 AND b.location_type = 'buffer' AND b.active
            AND NOT EXISTS (SELECT 1 FROM physical_copy h WHERE h.package_id = p.id AND h.location_id = b.id)
        ORDER BY b.priority, b.id, l.priority, l.id LIMIT 1 ON CONFLICT DO NOTHING";
    Ok(count(tx.execute(text, args![package, spot.site, actor]).await?))
}

/// Looks at copies no more until something about them changes, but at those of `later` soon.
async fn put_off(tx: &mut Tx, copies: &[Due], later: &[i64], look_again: Duration) -> Result<(), StoreError> {
    let soon = time(tx).await?.after(look_again);
    let (again, over): (Vec<&Due>, Vec<&Due>) = copies.iter().partition(|c| later.contains(&c.package));
    for (some, at) in [(again, Some(soon)), (over, None::<Timestamp>)] {
        if !some.is_empty() {
            let text = format!("UPDATE physical_copy SET archive_due_at = $1 WHERE id IN ({})", any_of(2, some.len()));
            tx.execute(text, &with_ids(args![at], some.iter().map(|c| c.copy))).await?;
        }
    }
    Ok(())
}

/// An archive could not be filled from a copy that is not what it was. The planner looks at the others.
pub(super) async fn look_for_another_source(tx: &mut Tx, package: i64, not: LocationId) -> Result<(), StoreError> {
    let text = "UPDATE physical_copy SET archive_due_at = 0 WHERE package_id = $1 AND location_id <> $2
        AND status = 'present'";
    tx.execute(text, args![package, not]).await?;
    Ok(())
}
