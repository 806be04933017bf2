//! `list`, `show` and `explain`.

use std::fmt::Write as _;

use super::{Daemon, FailureClass, JobError, Screen, args, args::Listed, open, print_json, store_error, table};
use crate::{
    cli::exit::Exit,
    config::units::show_size,
    model::{PackageId, Work},
    store::{
        ArchiveFilter, LastRecord, PackageFilter, PackageStanding, Page, RecordRow, Store, WorkFilter, WorkKind,
        WorkRow,
    },
};

pub(super) async fn list(args: &args::List, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    let store = open(daemon).await?;
    let wrong = |e| store_error(&e);
    let (after, most) = (args.after, args.most);
    refuse_what_filters_nothing(args)?;
    match args.what {
        Listed::Transfers | Listed::ArchiveTransfers => {
            let kind = if args.what == Listed::Transfers { WorkKind::Transfer } else { WorkKind::Archive };
            let filter = filter(&store, kind, &args.filter, &[]).await?;
            let page = store.work_page(&filter, after, most).await.map_err(wrong)?;
            show_page(screen, args.json, &page, WORK_HEAD, work_cells)?;
        }
        Listed::Archive => {
            let meant = filter(&store, WorkKind::Archive, &args.filter, &[]).await?;
            let filter = ArchiveFilter {
                location: meant.location,
                site: meant.site,
                package: meant.package,
                states: args.state.clone(),
            };
            let page = store.archive_page(&filter, after, most).await.map_err(wrong)?;
            let head = &["PACKAGE", "STATE", "ARCHIVE", "HELD", "VERIFIED", "HOW", "WORK", "ERROR", "NAME"];
            show_page(screen, args.json, &page, head, |a| {
                let dash = || "-".to_owned();
                vec![
                    a.package.to_string(),
                    a.state.to_string(),
                    a.location.clone(),
                    a.verification.map_or_else(dash, |v| v.to_string()),
                    a.last_record.as_ref().map_or_else(dash, |r| r.at.to_string()),
                    a.last_record.as_ref().map_or_else(dash, how),
                    a.work.map_or_else(dash, |work| format!("{work} {}", a.status.map_or("", |s| s.as_str()))),
                    a.error_class.map_or_else(dash, |class| class.to_string()),
                    a.name.clone(),
                ]
            })?;
        }
        Listed::Packages => {
            let meant = filter(&store, WorkKind::Transfer, &args.filter, &[]).await?;
            let filter = PackageFilter {
                states: args.state.clone(),
                location: meant.location,
                site: meant.site,
                route: meant.route,
                statuses: meant.statuses,
                error_class: meant.error_class,
                package: meant.package,
                updated_before: meant.updated_before,
                ..PackageFilter::default()
            };
            let page = store.package_page(&filter, after, most).await.map_err(wrong)?;
            let head = &["ID", "STATE", "ORIGIN", "SIZE", "FILES", "NAME"];
            show_page(screen, args.json, &page, head, |p| {
                vec![
                    p.id.to_string(),
                    p.state.to_string(),
                    p.origin.clone(),
                    show_size(p.size_bytes),
                    p.file_count.to_string(),
                    p.name.clone(),
                ]
            })?;
        }
        Listed::Workers => {
            let rows = store.workers(&store.lease_clock()).await.map_err(wrong)?;
            let head = &["NAME", "STATE", "ALIVE", "HOST", "PROCESS", "SLOTS", "SPOOLED", "HEARD OF", "QUEUES", "RUNS"];
            show_page(screen, args.json, &Page { rows, next: None }, head, |w| {
                let queues: Vec<_> = w.queues.iter().map(ToString::to_string).collect();
                let runs: Vec<_> = w
                    .running
                    .iter()
                    .map(|s| format!("{} {} {} since {}", s.work, s.phase, show_size(s.bytes_done), s.since))
                    .collect();
                vec![
                    w.name.clone(),
                    w.state.to_string(),
                    if w.alive { "yes" } else { "no" }.to_owned(),
                    w.host.clone(),
                    w.process_id.to_string(),
                    w.slots.to_string(),
                    w.spooled.to_string(),
                    w.heartbeat_at.to_string(),
                    queues.join(","),
                    if runs.is_empty() { "-".to_owned() } else { runs.join("; ") },
                ]
            })?;
        }
        Listed::DeadLetters => {
            let rows = store.dead_letters(after.unwrap_or(0), most, false).await.map_err(wrong)?;
            show_page(screen, args.json, &Page { rows, next: None }, &["ID", "QUEUE", "AT", "REASON"], |d| {
                vec![d.id.to_string(), d.queue.clone(), d.at.to_string(), d.reason.clone()]
            })?;
        }
    }
    store.close().await;
    Ok(Exit::Success)
}

/// A filter that would be heeded by nothing must not seem to have been.
fn refuse_what_filters_nothing(args: &args::List) -> Result<(), JobError> {
    let is_unfiltered = matches!(args.what, Listed::Workers | Listed::DeadLetters) && args.filter.is_narrowed();
    let has_states = matches!(args.what, Listed::Packages | Listed::Archive);
    if is_unfiltered || (!args.state.is_empty() && !has_states) {
        return Err(JobError::new(
            FailureClass::Usage,
            "--state is for packages and the archive; workers and dead letters take no filter",
        ));
    }
    let args::Filter { status, class, route, older, .. } = &args.filter;
    if args.what == Listed::Archive && !(status.is_empty() && class.is_none() && route.is_none() && older.is_none()) {
        return Err(JobError::new(
            FailureClass::Usage,
            "the archive is listed by --location, --site, --package and --state; list archive-transfers takes the others",
        ));
    }
    Ok(())
}

/// Which work a command means.
pub(super) async fn filter(
    store: &Store,
    kind: WorkKind,
    typed: &args::Filter,
    ids: &[Work],
) -> Result<WorkFilter, JobError> {
    let wrong = |e| store_error(&e);
    let location = match &typed.location {
        Some(place) => Some(store.location_id(&place.to_string()).await.map_err(wrong)?),
        None => None,
    };
    let site = match &typed.site {
        Some(name) => Some(store.site_id(name).await.map_err(wrong)?),
        None => None,
    };
    let route = match &typed.route {
        Some(name) => Some(store.route_id(name).await.map_err(wrong)?),
        None => None,
    };
    let updated_before = match typed.older {
        // By the database's clock, which wrote the rows.
        Some(age) => Some(store.now().await.map_err(wrong)?.before(age)),
        None => None,
    };
    Ok(WorkFilter {
        kind,
        ids: ids.iter().map(|work| work.number()).collect(),
        statuses: typed.status.clone(),
        error_class: typed.class,
        location,
        site,
        route,
        package: typed.package,
        updated_before,
    })
}

fn show_page<T: serde::Serialize>(
    screen: &Screen,
    json: bool,
    page: &Page<T>,
    head: &[&str],
    cells: impl Fn(&T) -> Vec<String>,
) -> Result<(), JobError> {
    if json {
        for row in &page.rows {
            print_json(screen, row)?;
        }
        return Ok(());
    }
    let rows: Vec<_> = page.rows.iter().map(cells).collect();
    screen.print(&table(head, &rows));
    if let Some(next) = page.next {
        screen.print(&format!("there are more: --after {next}\n"));
    }
    Ok(())
}

const WORK_HEAD: &[&str] = &["ID", "STATUS", "FROM", "TO", "DONE", "OF", "TRIES", "WORKER", "ERROR"];

fn work_cells(row: &WorkRow) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        row.work.to_string(),
        row.status.to_string(),
        row.origin.clone(),
        row.destination.clone(),
        show_size(row.bytes_done),
        show_size(row.bytes_total),
        row.attempt.to_string(),
        row.owner.clone().unwrap_or_else(dash),
        row.error_class.map_or_else(dash, |class| class.to_string()),
    ]
}

pub(super) async fn show(args: &args::Show, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    let usage = |e: crate::model::IdParseError| JobError::new(FailureClass::Usage, e.to_string());
    let store = open(daemon).await?;
    if args.id.starts_with('p') {
        let id: PackageId = args.id.parse().map_err(usage)?;
        let detail = store.package_detail(id).await.map_err(|e| store_error(&e))?;
        if args.json {
            print_json(screen, &detail)?;
        } else {
            let p = &detail.row;
            let mut text = format!(
                "{} {} ({}, {}, {} files) of {}: {}\n",
                p.id,
                p.name,
                p.kind,
                show_size(p.size_bytes),
                p.file_count,
                p.origin,
                p.state
            );
            for digest in &detail.digests {
                let _ = writeln!(text, "  digest {digest}");
            }
            for r in &detail.requests {
                let to = r.destination.as_deref().unwrap_or("any archive site");
                let transfers: Vec<_> = r.transfers.iter().map(ToString::to_string).collect();
                let why = r.obstacle.as_ref().map(|o| format!(" ({o})")).unwrap_or_default();
                let _ = writeln!(text, "  wanted at {to} by {}: {}{why}", r.requested_by, transfers.join(", "));
            }
            for c in &detail.copies {
                let seen = c.last_record.as_ref().map(|r| format!(", {} on {} at {}", how(r), r.host, r.at));
                let _ = writeln!(
                    text,
                    "  lies at {} ({}): {}, {}{}",
                    c.location,
                    c.location_type,
                    c.status,
                    c.verification,
                    seen.unwrap_or_default()
                );
            }
            let _ = writeln!(text, "  {}", detail.standing.text);
            if let Some(metadata) = &detail.metadata {
                let _ = writeln!(text, "  metadata {metadata}");
            }
            for r in &detail.records {
                let _ = writeln!(text, "{}", record(r));
            }
            screen.print(&text);
        }
    } else {
        let work: Work = args.id.parse().map_err(usage)?;
        let detail = store.work_detail(work).await.map_err(|e| store_error(&e))?;
        if args.json {
            print_json(screen, &detail)?;
        } else {
            let mut text = table(WORK_HEAD, &[work_cells(&detail.row)]);
            if let Some(error) = &detail.row.error_text {
                let _ = writeln!(text, "last error: {error}");
            }
            for p in &detail.packages {
                let _ = writeln!(text, "  {} {} ({})", p.id, p.name, show_size(p.size_bytes));
            }
            for a in &detail.attempts {
                let _ = writeln!(text, "  attempt {} (fence {}) by {}: {}", a.number, a.fence, a.worker, a.outcome);
                for line in a.log.lines() {
                    let _ = writeln!(text, "    {line}");
                }
            }
            for e in &detail.events {
                let from = e.from_state.as_deref().unwrap_or("");
                let _ = writeln!(text, "  {} {from} -> {} by {}: {}", e.at, e.to_state, e.actor, e.reason);
            }
            for r in &detail.records {
                let _ = writeln!(text, "{}", record(r));
            }
            screen.print(&text);
        }
    }
    store.close().await;
    Ok(Exit::Success)
}

fn record(r: &RecordRow) -> String {
    let word = if r.is_equal { "equal" } else { "NOT EQUAL" };
    let read = r.how.map(|how| format!(" {how}")).unwrap_or_default();
    let why = r.unread_reason.as_ref().map(|why| format!(", not read: {why}")).unwrap_or_default();
    let (at, package, method) = (r.recorded_at, r.package, r.method);
    format!("  {at} {package} at {} ({method}{read}, {word}{why}) on {}: {}", r.location, r.host, r.found)
}

/// How a copy was last looked at, in a few words.
fn how(r: &LastRecord) -> String {
    let word = if r.is_equal { "" } else { " NOT EQUAL" };
    let read = r.how.map(|how| format!(" {how}")).unwrap_or_default();
    format!("{}{read}{word}", r.method)
}

pub(super) async fn explain(args: &args::Explain, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    let store: Store = open(daemon).await?;
    let work = match args.meant {
        args::Meant::Work(work) => work,
        args::Meant::Package(id) => {
            let standing = store.explain_package(id).await.map_err(|e| store_error(&e))?;
            if args.json {
                print_json(screen, &standing)?;
            } else {
                screen.print(&stands(&standing));
            }
            store.close().await;
            return Ok(Exit::Success);
        }
    };
    let explained = store.explain(work).await.map_err(|e| store_error(&e))?;
    if args.json {
        print_json(screen, &explained)?;
    } else {
        let mut text = format!("{} is {} since {}\n", explained.work, explained.status, explained.since);
        for dated in &explained.reasons {
            let since = dated.since.map(|t| format!(", since {t}")).unwrap_or_default();
            let until = dated.until.map(|t| format!(", until {t}")).unwrap_or_default();
            let _ = writeln!(text, "- {}{since}{until}", dated.text);
        }
        if let Some(error) = &explained.last_error {
            let _ = writeln!(text, "last error ({}, {}): {}", error.class, error.at, error.text);
        }
        if let Some(at) = explained.next_attempt_at {
            let _ = writeln!(text, "next attempt: {at}");
        }
        let _ = writeln!(text, "attempts so far: {}", explained.attempts);
        screen.print(&text);
    }
    store.close().await;
    Ok(Exit::Success)
}

/// How far a package is archived.
fn stands(standing: &PackageStanding) -> String {
    let mut text = format!(
        "{} is {} since {}: {}\n{}\n",
        standing.package, standing.state, standing.since, standing.reason, standing.text
    );
    for archive in &standing.archives {
        let held = if archive.holds { "holds it" } else { "does not hold it" };
        let work = archive.work.map(|work| format!(", {work} is {}", archive.status.map_or("", |s| s.as_str())));
        let _ = writeln!(text, "- {} {held}{}", archive.location, work.unwrap_or_default());
        if let Some(error) = &archive.error_text {
            let _ = writeln!(text, "  {error}");
        }
    }
    text
}
