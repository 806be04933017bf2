//! What operators see: pages of work and packages. Every list is read by key, so that a page
//! costs the same wherever it lies.

use serde::Serialize;

use super::{
    Store, StoreError,
    many::list,
    sql::{Row, Tx, Value, args},
    work::Kind as WorkKind,
};
use crate::model::{
    BundleId, ErrorClass, Fence, LocationId, PackageId, PackageKind, PackageState, Policy, RouteId, SiteId, Status,
    Timestamp, Work,
};

/// Most rows of one page.
pub const MOST_ROWS: u32 = 1000;

/// Rows in the order of their ids.
#[derive(Clone, Debug, Serialize)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Where the next page begins: give it as `after`. `None` is the end.
    pub next: Option<i64>,
}

/// Which work is meant. Everything that is given must hold; nothing given is all of one kind.
#[derive(Clone, Debug, Default)]
pub struct WorkFilter {
    /// Transfers or archive transfers.
    pub kind: WorkKind,
    /// These alone, where any are given.
    pub ids: Vec<i64>,
    /// With one of these, where any are given.
    pub statuses: Vec<Status>,
    /// Whose last error is of this class.
    pub error_class: Option<ErrorClass>,
    /// That begins or ends there.
    pub location: Option<LocationId>,
    /// That begins or ends at this site.
    pub site: Option<SiteId>,
    /// That takes this route. Archive transfers take none.
    pub route: Option<RouteId>,
    /// That moves this package.
    pub package: Option<PackageId>,
    /// That nothing was heard of since.
    pub updated_before: Option<Timestamp>,
}

/// Which packages are meant.
#[derive(Clone, Debug, Default)]
pub struct PackageFilter {
    /// In one of these states, where any are given.
    pub states: Vec<PackageState>,
    /// That were registered there.
    pub origin: Option<LocationId>,
    /// Whose name begins so.
    pub name_prefix: Option<String>,
    /// That were registered there, or that a transfer takes from there or to there.
    pub location: Option<LocationId>,
    /// The same for a site.
    pub site: Option<SiteId>,
    /// That a transfer takes over this route.
    pub route: Option<RouteId>,
    /// With a transfer in one of these, where any are given.
    pub statuses: Vec<Status>,
    /// With a transfer whose last error is of this class.
    pub error_class: Option<ErrorClass>,
    /// This one alone.
    pub package: Option<PackageId>,
    /// That nothing was heard of since.
    pub updated_before: Option<Timestamp>,
}

impl PackageFilter {
    fn conditions(&self) -> Conditions {
        let mut all = Conditions::default();
        all.any("p.state", self.states.iter().map(|s| s.as_str().into()));
        if let Some(package) = self.package {
            all.add("p.id = $", package.into());
        }
        if let Some(origin) = self.origin {
            all.add("p.origin_location_id = $", origin.into());
        }
        if let Some(location) = self.location {
            all.add(
                &format!(
                    "(p.origin_location_id = $ OR {MOVED} AND $ IN (t.origin_location_id, t.destination_location_id)))"
                ),
                location.into(),
            );
        }
        if let Some(site) = self.site {
            let of = |column: &str| format!("{column} IN (SELECT id FROM data_location WHERE site_id = $)");
            let (begins, ends) = (of("t.origin_location_id"), of("t.destination_location_id"));
            all.add(&format!("({} OR {MOVED} AND ({begins} OR {ends})))", of("p.origin_location_id")), site.into());
        }
        if let Some(time) = self.updated_before {
            all.add("p.updated_at < $", time.into());
        }
        // Of one transfer, all of it.
        let outside = all.text.len();
        if let Some(route) = self.route {
            all.add("t.route_id = $", route.into());
        }
        all.any("t.status", self.statuses.iter().map(|s| s.as_str().into()));
        if let Some(class) = self.error_class {
            all.add("t.error_class = $", class.as_str().into());
        }
        let inside = all.text.split_off(outside);
        if !inside.is_empty() {
            all.text.push_str(&format!(" AND {MOVED}{inside})"));
        }
        if let Some(prefix) = &self.name_prefix {
            let length = i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX);
            all.add("substr(p.name, 1, CAST($ AS INTEGER))", length.into());
            all.args.push(prefix.into());
            let name = all.args.len();
            all.text.push_str(&format!(" = ${name}"));
        }
        all
    }
}

/// A transfer `t` of package `p`; more conditions and a bracket follow.
const MOVED: &str = "EXISTS (SELECT 1 FROM transfer_request q JOIN data_transfer t
    ON t.data_transfer_package_id = q.data_transfer_package_id WHERE q.package_id = p.id";

/// One piece of work.
#[derive(Clone, Debug, Serialize)]
pub struct WorkRow {
    /// Which.
    pub work: Work,
    /// Where it stands.
    pub status: Status,
    /// 0 to 9, 9 first.
    pub priority: i64,
    /// `SITE/LOCATION`.
    pub origin: String,
    /// `SITE/LOCATION`.
    pub destination: String,
    /// The route's name; archive transfers have none.
    pub route: Option<String>,
    /// The bundle; archive transfers have none.
    pub bundle: Option<BundleId>,
    /// The package of an archive transfer.
    pub package: Option<PackageId>,
    /// How many packages.
    pub package_count: u64,
    /// Which hop of its bundle.
    pub hop: i64,
    /// Verified bytes at the destination.
    pub bytes_done: u64,
    /// All bytes.
    pub bytes_total: u64,
    /// Failed attempts since the last retry by a person.
    pub retry_count: u64,
    /// Attempts in all.
    pub attempt: u64,
    /// The present fence.
    pub fence: Fence,
    /// The worker that has it.
    pub owner: Option<String>,
    /// Not before then.
    pub next_attempt_at: Timestamp,
    /// Class of the last error, while it is not mended.
    pub error_class: Option<ErrorClass>,
    /// The last error.
    pub error_text: Option<String>,
    /// Whether its worker was asked to stop.
    pub cancel_requested: bool,
    /// When it was planned.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it was over.
    pub finished_at: Option<Timestamp>,
}

/// One package.
#[derive(Clone, Debug, Serialize)]
pub struct PackageRow {
    /// Which.
    pub id: PackageId,
    /// For people.
    pub name: String,
    /// A file or a tree.
    pub kind: PackageKind,
    /// Where it stands.
    pub state: PackageState,
    /// `SITE/LOCATION` where it was registered.
    pub origin: String,
    /// Its size.
    pub size_bytes: u64,
    /// Files in it.
    pub file_count: u64,
    /// 0 to 9, 9 first.
    pub priority: i64,
    /// Which archives must get it.
    pub policy: Policy,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Conditions with their parameters.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    text: String,
    args: Vec<Value>,
}

impl Conditions {
    /// Adds `AND text`, in which `$` stands for the next parameter.
    fn add(&mut self, text: &str, value: Value) {
        self.args.push(value);
        let name = format!("${}", self.args.len());
        self.text.push_str(" AND ");
        self.text.push_str(&text.replace('$', &name));
    }

    fn any(&mut self, column: &str, values: impl IntoIterator<Item = Value>) {
        let first = self.args.len() + 1;
        self.args.extend(values);
        if self.args.len() >= first {
            let names = list(first, self.args.len() + 1 - first);
            self.text.push_str(&format!(" AND {column} IN ({names})"));
        }
    }
}

impl WorkFilter {
    pub(super) fn conditions(&self) -> Conditions {
        let mut all = Conditions::default();
        all.any("t.id", self.ids.iter().map(|&id| id.into()));
        all.any("t.status", self.statuses.iter().map(|s| s.as_str().into()));
        if let Some(class) = self.error_class {
            all.add("t.error_class = $", class.as_str().into());
        }
        if let Some(location) = self.location {
            all.add("$ IN (t.origin_location_id, t.destination_location_id)", location.into());
        }
        if let Some(site) = self.site {
            all.add(
                "(t.origin_location_id IN (SELECT id FROM data_location WHERE site_id = $)
                    OR t.destination_location_id IN (SELECT id FROM data_location WHERE site_id = $))",
                site.into(),
            );
        }
        match (self.route, self.kind) {
            (None, _) => {}
            (Some(route), WorkKind::Transfer) => all.add("t.route_id = $", route.into()),
            (Some(_), WorkKind::Archive) => all.text.push_str(" AND 1 = 0"),
        }
        match (self.package, self.kind) {
            (None, _) => {}
            (Some(package), WorkKind::Archive) => all.add("t.package_id = $", package.into()),
            (Some(package), WorkKind::Transfer) => all.add(
                "t.data_transfer_package_id IN
                    (SELECT q.data_transfer_package_id FROM transfer_request q WHERE q.package_id = $)",
                package.into(),
            ),
        }
        if let Some(time) = self.updated_before {
            all.add("t.updated_at < $", time.into());
        }
        all
    }
}

/// Rows behind `after`, with one more than asked for to see whether there is a next page.
async fn page<T>(
    tx: &mut Tx,
    select: &str,
    key: &str,
    mut conditions: Conditions,
    (after, most): (Option<i64>, u32),
    read: impl Fn(&Row) -> Result<(i64, T), StoreError>,
) -> Result<Page<T>, StoreError> {
    let most = usize::try_from(most.clamp(1, MOST_ROWS)).unwrap_or(usize::MAX);
    conditions.add(&format!("{key} > $"), after.unwrap_or(0).into());
    conditions.args.push(i64::try_from(most + 1).unwrap_or(i64::MAX).into());
    let text = format!("{select} WHERE TRUE{} ORDER BY {key} LIMIT ${}", conditions.text, conditions.args.len());
    let rows = tx.rows(text, &conditions.args).await?;
    let mut read = rows.iter().take(most).map(read).collect::<Result<Vec<_>, _>>()?;
    let next = if rows.len() > most { read.last().map(|(id, _)| *id) } else { None };
    Ok(Page { rows: read.drain(..).map(|(_, row)| row).collect(), next })
}

/// Columns and joins of a [`WorkRow`].
fn work_select(kind: WorkKind) -> String {
    let own = match kind {
        WorkKind::Transfer => {
            "rt.name AS route, t.data_transfer_package_id AS bundle, CAST(NULL AS BIGINT) AS package,
            (SELECT b.package_count FROM data_transfer_package b WHERE b.id = t.data_transfer_package_id)
                AS package_count, t.hop"
        }
        WorkKind::Archive => {
            "CAST(NULL AS TEXT) AS route, CAST(NULL AS BIGINT) AS bundle, t.package_id AS package,
            CAST(1 AS BIGINT) AS package_count, CAST(1 AS BIGINT) AS hop"
        }
    };
    let route = match kind {
        WorkKind::Transfer => "JOIN data_transfer_route rt ON rt.id = t.route_id",
        WorkKind::Archive => "",
    };
    format!(
        "SELECT t.id, t.status, t.priority, os.short_name || '/' || ol.name AS origin,
            ds.short_name || '/' || dl.name AS destination, {own}, t.bytes_done, t.bytes_total, t.retry_count, t.attempt,
            t.fence, w.name AS owner, t.next_attempt_at, t.error_class, t.error_text, t.cancel_requested, t.created_at,
            t.updated_at, t.finished_at
        FROM {} t JOIN data_location ol ON ol.id = t.origin_location_id JOIN site os ON os.id = ol.site_id
            JOIN data_location dl ON dl.id = t.destination_location_id JOIN site ds ON ds.id = dl.site_id
            {route} LEFT JOIN worker w ON w.id = t.owner",
        kind.table()
    )
}

fn work_row(kind: WorkKind, row: &Row) -> Result<WorkRow, StoreError> {
    Ok(WorkRow {
        work: kind.work(row.int("id")?),
        status: row.word("status")?,
        priority: row.int("priority")?,
        origin: row.text("origin")?,
        destination: row.text("destination")?,
        route: row.opt_text("route")?,
        bundle: row.opt_int("bundle")?.map(BundleId::new),
        package: row.opt_int("package")?.map(PackageId::new),
        package_count: row.size("package_count")?,
        hop: row.int("hop")?,
        bytes_done: row.size("bytes_done")?,
        bytes_total: row.size("bytes_total")?,
        retry_count: row.size("retry_count")?,
        attempt: row.size("attempt")?,
        fence: Fence::new(row.int("fence")?),
        owner: row.opt_text("owner")?,
        next_attempt_at: row.time("next_attempt_at")?,
        error_class: class(row)?,
        error_text: row.opt_text("error_text")?,
        cancel_requested: row.flag("cancel_requested")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        finished_at: row.opt_time("finished_at")?,
    })
}

/// The class of the last error.
pub(super) fn class(row: &Row) -> Result<Option<ErrorClass>, StoreError> {
    let word = row.opt_text("error_class")?;
    word.map(|w| w.parse().map_err(|e| StoreError::Corrupt(format!("error_class: {e}")))).transpose()
}

pub(super) fn package_row(row: &Row) -> Result<PackageRow, StoreError> {
    Ok(PackageRow {
        id: PackageId::new(row.int("id")?),
        name: row.text("name")?,
        kind: row.word("kind")?,
        state: row.word("state")?,
        origin: row.text("origin")?,
        size_bytes: row.size("size_bytes")?,
        file_count: row.size("file_count")?,
        priority: row.int("priority")?,
        policy: row.word("policy")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    })
}

pub(super) const PACKAGE_SELECT: &str = "SELECT p.id, p.name, p.kind, p.state, s.short_name || '/' || l.name AS origin,
        p.size_bytes, p.file_count, p.priority, p.policy, p.created_at, p.updated_at
    FROM raw_data_package p JOIN data_location l ON l.id = p.origin_location_id JOIN site s ON s.id = l.site_id";

/// One piece of work as it is listed.
pub(super) async fn one_work(tx: &mut Tx, work: Work) -> Result<WorkRow, StoreError> {
    let kind = WorkKind::of(work);
    let text = format!("{} WHERE t.id = $1", work_select(kind));
    match tx.row(text, args![work.number()]).await? {
        Some(row) => work_row(kind, &row),
        None => Err(StoreError::NotFound { what: "work", name: work.to_string() }),
    }
}

/// Ids of the work that a filter means and whose status is one of those given, behind `after`.
pub(super) async fn matching(
    tx: &mut Tx,
    filter: &WorkFilter,
    statuses: &[Status],
    after: i64,
    most: u32,
) -> Result<Vec<i64>, StoreError> {
    let mut conditions = filter.conditions();
    conditions.any("t.status", statuses.iter().map(|s| s.as_str().into()));
    let select = format!("SELECT t.id FROM {} t", filter.kind.table());
    let read = |row: &Row| row.int("id").map(|id| (id, id));
    Ok(page(tx, &select, "t.id", conditions, (Some(after), most), read).await?.rows)
}

impl Store {
    /// Work that a filter means, in the order of ids.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood.
    pub async fn work_page(
        &self,
        filter: &WorkFilter,
        after: Option<i64>,
        most: u32,
    ) -> Result<Page<WorkRow>, StoreError> {
        let mut tx = self.read().await?;
        let read = |row: &Row| Ok((row.int("id")?, work_row(filter.kind, row)?));
        page(&mut tx, &work_select(filter.kind), "t.id", filter.conditions(), (after, most), read).await
    }

    /// Packages that a filter means, in the order of ids.
    ///
    /// # Errors
    /// The database is away, or a row cannot be understood.
    pub async fn package_page(
        &self,
        filter: &PackageFilter,
        after: Option<i64>,
        most: u32,
    ) -> Result<Page<PackageRow>, StoreError> {
        let mut tx = self.read().await?;
        let conditions = filter.conditions();
        let read = |row: &Row| Ok((row.int("id")?, package_row(row)?));
        page(&mut tx, PACKAGE_SELECT, "p.id", conditions, (after, most), read).await
    }
}
