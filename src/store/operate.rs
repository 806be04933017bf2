//! What operators do: retry, cancel, pause, resume. Each takes a filter and can say what it would touch without
//! touching it. Large sets are worked through in batches, each a transaction of its own, so that no operator stops the
//! managers; one that is interrupted is repeated.

use serde::Serialize;

use super::{
    Store, StoreError,
    list::{WorkFilter, matching},
    many::{any_of, locked, with_ids},
    settle::keep_states,
    sql::{Tx, Value, args},
    wakeups::Wakeup,
    work::{Kind as WorkKind, WorkRow},
};
use crate::model::{LocationId, RouteId, Status, Work};

const BATCH: u32 = 500;
/// Most pieces of work that a report names.
const NAMED: usize = 1000;

/// What an action changed, or would change.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Touched {
    /// Nothing was written.
    pub is_dry_run: bool,
    /// How many were touched.
    pub count: u64,
    /// The first 1000 of them.
    pub work: Vec<TouchedWork>,
    /// Those that were meant and could not be touched, with the reason; the first 1000.
    pub passed_over: Vec<(Work, String)>,
}

/// One piece of work that an action changed, or would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TouchedWork {
    /// Which.
    pub work: Work,
    /// Where it stood.
    pub from: Status,
    /// Where it stands now. A running transfer that is cancelled stands where it stood until its worker has stopped.
    pub to: Status,
}

impl Touched {
    fn touch(&mut self, work: Work, from: Status, to: Status) {
        self.count += 1;
        if self.work.len() < NAMED {
            self.work.push(TouchedWork { work, from, to });
        }
    }

    fn pass_over(&mut self, work: Work, reason: String) {
        if self.passed_over.len() < NAMED {
            self.passed_over.push((work, reason));
        }
    }
}

/// Which locations and routes are meant: all that are named, and all of the sites that are named.
#[derive(Clone, Debug, Default)]
pub struct SwitchFilter {
    /// `SITE/LOCATION`.
    pub locations: Vec<String>,
    /// Names of routes.
    pub routes: Vec<String>,
    /// Short names of sites, with all their locations.
    pub sites: Vec<String>,
}

/// A location or a route that was paused or resumed, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Switched {
    /// `location` or `route`.
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// Whether it was paused before.
    pub was_paused: bool,
    /// Whether it is paused now.
    pub is_paused: bool,
}

/// A row that an action may change.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: i64,
    status: Status,
    /// What took its place.
    successor: Option<i64>,
    expired: bool,
    asked: bool,
}

impl Store {
    /// Tries failed work again, as if it were new, and work that waits for its next attempt at once. Hops that were
    /// given up with a hop before them come back with it.
    ///
    /// # Errors
    /// The database is away; what was done before stays done.
    pub async fn retry(
        &self,
        filter: &WorkFilter,
        actor: &str,
        reason: &str,
        dry_run: bool,
    ) -> Result<Touched, StoreError> {
        let mut done = Touched { is_dry_run: dry_run, ..Touched::default() };
        let mut after = 0;
        loop {
            let mut tx = if dry_run { self.read().await? } else { self.write().await? };
            let ids = matching(&mut tx, filter, &[Status::Failed, Status::Pending], after, BATCH).await?;
            let Some(&last) = ids.last() else { return Ok(done) };
            after = last;
            let mut again = Vec::new();
            let mut sooner = Vec::new();
            for row in self.candidates(&mut tx, filter.kind, &ids, dry_run).await? {
                let work = filter.kind.work(row.id);
                match (row.status, row.successor) {
                    (Status::Failed, Some(successor)) => {
                        done.pass_over(work, format!("{} took its place", filter.kind.work(successor)));
                    }
                    (Status::Failed, None) => {
                        done.touch(work, Status::Failed, Status::Pending);
                        again.push(row.id);
                    }
                    (Status::Pending, _) => sooner.push(row.id),
                    _ => {}
                }
            }
            for id in hurried(&mut tx, filter.kind, &sooner, dry_run, actor, reason).await? {
                done.touch(filter.kind.work(id), Status::Pending, Status::Pending);
            }
            if !dry_run {
                begin_anew(&mut tx, filter.kind, &again, actor, reason).await?;
                tx.commit().await?;
                self.wake(Wakeup::Pending);
            }
        }
    }

    /// Stops work: what does not run fails at once as cancelled, what runs when its worker has heard of it. Hops that
    /// wait for a cancelled one are cancelled with it.
    ///
    /// # Errors
    /// The database is away; what was done before stays done.
    pub async fn cancel(
        &self,
        filter: &WorkFilter,
        actor: &str,
        reason: &str,
        dry_run: bool,
    ) -> Result<Touched, StoreError> {
        let mut done = Touched { is_dry_run: dry_run, ..Touched::default() };
        let live = [Status::Pending, Status::Scheduled, Status::InProgress];
        let mut after = 0;
        loop {
            let mut tx = if dry_run { self.read().await? } else { self.write().await? };
            let ids = matching(&mut tx, filter, &live, after, BATCH).await?;
            let Some(&last) = ids.last() else { return Ok(done) };
            after = last;
            let ids = with_later_hops(&mut tx, filter.kind, &ids).await?;
            let mut now = Vec::new();
            let mut asked = Vec::new();
            for row in self.candidates(&mut tx, filter.kind, &ids, dry_run).await? {
                let work = filter.kind.work(row.id);
                match row.status {
                    Status::InProgress if row.expired => {
                        done.touch(work, row.status, Status::Failed);
                        now.push(row.id);
                    }
                    Status::InProgress if row.asked => done.pass_over(work, "its worker was asked already".into()),
                    Status::InProgress => {
                        done.touch(work, row.status, row.status);
                        asked.push(row.id);
                    }
                    Status::Pending | Status::Scheduled => {
                        done.touch(work, row.status, Status::Failed);
                        now.push(row.id);
                    }
                    Status::Completed | Status::Failed => {}
                }
            }
            if !dry_run {
                stop(&mut tx, filter.kind, &now, actor, reason).await?;
                ask_to_stop(&mut tx, filter.kind, &asked, actor, reason).await?;
                tx.commit().await?;
                self.wake(Wakeup::Cancel);
            }
        }
    }

    /// Withdraws requests of these packages that are not planned yet. Returns how many there are.
    ///
    /// # Errors
    /// The database is away.
    pub async fn withdraw(&self, packages: &[i64], dry_run: bool) -> Result<u64, StoreError> {
        let names = any_of(1, packages.len());
        let unplanned = format!("package_id IN ({names}) AND data_transfer_package_id IS NULL AND NOT withdrawn");
        let args = with_ids(&[], packages.iter().copied());
        if dry_run {
            let text = format!("SELECT count(*) AS n FROM transfer_request WHERE {unplanned}");
            let row = self.read().await?.row(text, &args).await?;
            return row.map_or(Ok(0), |row| row.size("n"));
        }
        let mut tx = self.write().await?;
        let count =
            tx.execute(format!("UPDATE transfer_request SET withdrawn = TRUE WHERE {unplanned}"), &args).await?;
        tx.commit().await?;
        Ok(count)
    }

    /// Pauses or resumes locations and routes. Work that runs goes on; nothing new is begun on what is paused.
    ///
    /// # Errors
    /// Something that was named is not there; then nothing is changed. Or the database is away.
    pub async fn switch(
        &self,
        filter: &SwitchFilter,
        paused: bool,
        actor: &str,
        reason: &str,
        dry_run: bool,
    ) -> Result<Vec<Switched>, StoreError> {
        let mut tx = if dry_run { self.read().await? } else { self.write().await? };
        let mut found = Vec::new();
        for name in &filter.locations {
            let (site, location) = name.split_once('/').unwrap_or((name, ""));
            found.push(one_location(&mut tx, site, location, name).await?);
        }
        for site in &filter.sites {
            let text = "SELECT l.id, l.paused, s.short_name || '/' || l.name AS name
                FROM data_location l JOIN site s ON s.id = l.site_id WHERE s.short_name = $1 AND l.active ORDER BY l.id";
            let rows = tx.rows(text, args![site]).await?;
            if rows.is_empty() {
                return Err(StoreError::NotFound { what: "site with active locations", name: site.clone() });
            }
            for row in rows {
                found.push((Switch::Location(LocationId::new(row.int("id")?)), row.text("name")?, row.flag("paused")?));
            }
        }
        for name in &filter.routes {
            let row = tx.row("SELECT id, paused FROM data_transfer_route WHERE name = $1", args![name]).await?;
            let row = row.ok_or_else(|| StoreError::NotFound { what: "route", name: name.clone() })?;
            found.push((Switch::Route(RouteId::new(row.int("id")?)), name.clone(), row.flag("paused")?));
        }
        let mut done: Vec<Switched> = Vec::new();
        for (switch, name, was_paused) in found {
            if done.iter().any(|d| d.what == switch.what() && d.name == name) {
                continue;
            }
            if was_paused != paused && !dry_run {
                let text = format!(
                    "UPDATE {} SET paused = $2, updated_at = now_us(), changed_by = $3, change_reason = $4 WHERE id = $1",
                    switch.table()
                );
                tx.execute(text, args![switch.number(), paused, actor, reason]).await?;
            }
            done.push(Switched { what: switch.what(), name, was_paused, is_paused: paused });
        }
        if !dry_run {
            tx.commit().await?;
            self.wake(Wakeup::Pending);
        }
        Ok(done)
    }

    /// Rows with what decides about them, locked unless it is a dry run.
    async fn candidates(
        &self,
        tx: &mut Tx,
        kind: WorkKind,
        ids: &[i64],
        dry_run: bool,
    ) -> Result<Vec<Candidate>, StoreError> {
        let lock = if dry_run { "" } else { locked(tx) };
        // What `data_transfer_live` would refuse, and a hop of a way that was left.
        let successor = match kind {
            WorkKind::Transfer => {
                "SELECT min(n.id) FROM data_transfer n WHERE n.data_transfer_package_id = t.data_transfer_package_id
                    AND n.status <> 'failed' AND n.id <> t.id
                    AND (n.hop = t.hop OR (n.hop < t.hop AND n.id > t.id))"
            }
            WorkKind::Archive => {
                "SELECT min(n.id) FROM long_term_archive_transfer n WHERE n.package_id = t.package_id
                    AND n.destination_location_id = t.destination_location_id AND n.status <> 'failed' AND n.id <> t.id
                    AND (n.id > t.id OR n.repair = t.repair OR n.status <> 'completed')"
            }
        };
        // On PostgreSQL no clock tells: a silent worker's work is asked for, and the sweep ends it.
        let clock = self.lease_clock();
        let text = format!(
            "SELECT t.id, t.status, t.cancel_requested, ({successor}) AS successor,
                coalesce(t.lease_boot <> $1 OR t.lease_until < $2, FALSE) AS expired
            FROM {} t WHERE t.id IN ({}) ORDER BY t.id{lock}",
            kind.table(),
            any_of(3, ids.len())
        );
        let rows = tx.rows(text, &with_ids(args![clock.boot, clock.now_us], ids.iter().copied())).await?;
        let mut found = Vec::new();
        for row in rows {
            found.push(Candidate {
                id: row.int("id")?,
                status: row.word("status")?,
                successor: row.opt_int("successor")?,
                expired: row.flag("expired")?,
                asked: row.flag("cancel_requested")?,
            });
        }
        // Two failed rows of one hop, or of one archive, that are meant at once: the later one comes back.
        keep_latest(tx, kind, &mut found).await?;
        Ok(found)
    }
}

/// What [`Store::switch`] switches.
#[derive(Clone, Copy, Debug)]
enum Switch {
    Location(LocationId),
    Route(RouteId),
}

impl Switch {
    const fn what(self) -> &'static str {
        match self {
            Self::Location(_) => "location",
            Self::Route(_) => "route",
        }
    }

    const fn table(self) -> &'static str {
        match self {
            Self::Location(_) => "data_location",
            Self::Route(_) => "data_transfer_route",
        }
    }

    const fn number(self) -> i64 {
        match self {
            Self::Location(id) => id.number(),
            Self::Route(id) => id.number(),
        }
    }
}

async fn one_location(
    tx: &mut Tx,
    site: &str,
    location: &str,
    name: &str,
) -> Result<(Switch, String, bool), StoreError> {
    let text = "SELECT l.id, l.paused FROM data_location l JOIN site s ON s.id = l.site_id
        WHERE s.short_name = $1 AND l.name = $2";
    let row = tx.row(text, args![site, location]).await?;
    let row = row.ok_or_else(|| StoreError::NotFound { what: "location", name: name.to_owned() })?;
    Ok((Switch::Location(LocationId::new(row.int("id")?)), name.to_owned(), row.flag("paused")?))
}

/// Of failed rows of one hop, or of one package's way into one archive, all but the last one have that as their
/// successor.
async fn keep_latest(tx: &mut Tx, kind: WorkKind, found: &mut [Candidate]) -> Result<(), StoreError> {
    let failed: Vec<_> = found.iter().filter(|c| c.status == Status::Failed && c.successor.is_none()).collect();
    if failed.len() < 2 {
        return Ok(());
    }
    let names = any_of(1, failed.len());
    let same = match kind {
        WorkKind::Transfer => "n.data_transfer_package_id = t.data_transfer_package_id AND n.hop <= t.hop",
        WorkKind::Archive => "n.package_id = t.package_id AND n.destination_location_id = t.destination_location_id",
    };
    let text = format!(
        "SELECT t.id, (SELECT max(n.id) FROM {table} n
            WHERE {same} AND n.status = 'failed' AND n.id > t.id AND n.id IN ({names})) AS later
        FROM {table} t WHERE t.id IN ({names})",
        table = kind.table()
    );
    let args = with_ids(&[], failed.iter().map(|c| c.id));
    for row in tx.rows(text, &args).await? {
        let (id, later) = (row.int("id")?, row.opt_int("later")?);
        for candidate in found.iter_mut().filter(|c| c.id == id) {
            candidate.successor = later;
        }
    }
    Ok(())
}

/// These transfers and all that wait for them, directly or not.
async fn with_later_hops(tx: &mut Tx, kind: WorkKind, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
    if kind == WorkKind::Archive {
        return Ok(ids.to_vec());
    }
    let text = format!(
        "WITH RECURSIVE chain (id) AS (
            SELECT id FROM data_transfer WHERE id IN ({})
            UNION SELECT t.id FROM data_transfer t JOIN chain c ON t.waits_for = c.id)
        SELECT id FROM chain ORDER BY id",
        any_of(1, ids.len())
    );
    tx.rows(text, &with_ids(&[], ids.iter().copied())).await?.iter().map(|row| row.int("id")).collect()
}

/// Makes pending work due that waits for its next attempt. Returns which work that is.
async fn hurried(
    tx: &mut Tx,
    kind: WorkKind,
    ids: &[i64],
    dry_run: bool,
    actor: &str,
    reason: &str,
) -> Result<Vec<i64>, StoreError> {
    let fixed: &[Value] = if dry_run { &[] } else { args![actor, reason] };
    let waiting =
        format!("id IN ({}) AND status = 'pending' AND next_attempt_at > now_us()", any_of(fixed.len() + 1, ids.len()));
    let args = with_ids(fixed, ids.iter().copied());
    let text = if dry_run {
        format!("SELECT id FROM {} WHERE {waiting} ORDER BY id", kind.table())
    } else {
        format!(
            "UPDATE {} SET next_attempt_at = now_us(), updated_at = now_us(), changed_by = $1, change_reason = $2
            WHERE {waiting} RETURNING id",
            kind.table()
        )
    };
    tx.rows(text, &args).await?.iter().map(|row| row.int("id")).collect()
}

/// Puts failed work back to its beginning, with the hops that failed because it did, and keeps the states of its
/// packages true.
async fn begin_anew(tx: &mut Tx, kind: WorkKind, ids: &[i64], actor: &str, reason: &str) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let ids = with_later_hops(tx, kind, ids).await?;
    let table = kind.table();
    let names = any_of(3, ids.len());
    let text = format!(
        "UPDATE {table} SET status = 'pending', retry_count = 0, next_attempt_at = now_us(), error_class = NULL,
            error_text = NULL, cancel_requested = FALSE, finished_at = NULL, scheduled_at = NULL, settled = FALSE,
            bytes_done = 0, updated_at = now_us(), changed_by = $1, change_reason = $2
        WHERE id IN ({names}) AND status = 'failed'"
    );
    tx.execute(text, &with_ids(args![actor, reason], ids.iter().copied())).await?;
    let names = any_of(1, ids.len());
    let text = match kind {
        WorkKind::Transfer => format!(
            "SELECT DISTINCT r.package_id FROM transfer_request r JOIN data_transfer t
                ON t.data_transfer_package_id = r.data_transfer_package_id WHERE t.id IN ({names}) ORDER BY 1"
        ),
        WorkKind::Archive => format!("SELECT DISTINCT package_id FROM {table} WHERE id IN ({names}) ORDER BY 1"),
    };
    let rows = tx.rows(text, &with_ids(&[], ids.iter().copied())).await?;
    let packages = rows.iter().map(|row| row.int("package_id")).collect::<Result<Vec<_>, _>>()?;
    keep_states(tx, &packages, actor, reason).await?;
    Ok(())
}

async fn stop(tx: &mut Tx, kind: WorkKind, ids: &[i64], actor: &str, reason: &str) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let text = format!(
        "UPDATE {} SET status = 'failed', error_class = 'cancelled', error_text = $3, owner = NULL, lease_until = NULL,
            lease_boot = NULL, cancel_requested = TRUE, finished_at = now_us(), updated_at = now_us(), changed_by = $1,
            change_reason = $2
        WHERE id IN ({}) AND status IN ('pending', 'scheduled', 'in_progress')",
        kind.table(),
        any_of(4, ids.len())
    );
    WorkRow::end_all_lost(tx, kind, ids, "its lease ran out, and then it was cancelled").await?;
    let cause = format!("by {actor}: {reason}");
    let fixed: &[Value] = args![actor, reason, cause];
    tx.execute(text, &with_ids(fixed, ids.iter().copied())).await?;
    Ok(())
}

async fn ask_to_stop(tx: &mut Tx, kind: WorkKind, ids: &[i64], actor: &str, reason: &str) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let text = format!(
        "UPDATE {} SET cancel_requested = TRUE, updated_at = now_us(), changed_by = $1, change_reason = $2
        WHERE id IN ({}) AND status = 'in_progress'",
        kind.table(),
        any_of(3, ids.len())
    );
    tx.execute(text, &with_ids(args![actor, reason], ids.iter().copied())).await?;
    Ok(())
}
