//! `retry`, `cancel`, `pause` and `resume`.

use std::fmt::Write as _;

use super::{Daemon, FailureClass, JobError, Screen, actor, args, look::filter, open, print_json, store_error};
use crate::{
    cli::exit::Exit,
    model::Work,
    store::{Store, SwitchFilter, Touched, WorkFilter, WorkKind},
};

pub(super) async fn retry(args: &args::Touch, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    check(args)?;
    let store = open(daemon).await?;
    let filters = filters(args, &store).await?;
    for filter in filters {
        let touched = store.retry(&filter, &actor(), &args.reason, args.dry_run).await.map_err(|e| store_error(&e))?;
        told(args, &touched, "retry", screen)?;
    }
    store.close().await;
    Ok(Exit::Success)
}

pub(super) async fn cancel(args: &args::Touch, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    check(args)?;
    let store = open(daemon).await?;
    let filters = filters(args, &store).await?;
    for filter in filters {
        let touched = store.cancel(&filter, &actor(), &args.reason, args.dry_run).await.map_err(|e| store_error(&e))?;
        told(args, &touched, "cancel", screen)?;
    }
    store.close().await;
    Ok(Exit::Success)
}

/// Nothing said is not everything.
fn check(args: &args::Touch) -> Result<(), JobError> {
    if args.ids.is_empty() && !args.filter.is_narrowed() && !args.all {
        return Err(JobError::new(
            FailureClass::Usage,
            "name transfers (t12 ...), narrow by --status, --class, --package, --location, --site, --route or --older, \
             or say --all",
        ));
    }
    Ok(())
}

/// What is meant, by kind of work.
async fn filters(args: &args::Touch, store: &Store) -> Result<Vec<WorkFilter>, JobError> {
    let of = |archive: bool| -> Vec<Work> {
        args.ids.iter().copied().filter(|work| matches!(work, Work::Archive(_)) == archive).collect()
    };
    let mut found = Vec::new();
    for (kind, ids) in [(WorkKind::Transfer, of(false)), (WorkKind::Archive, of(true))] {
        if !ids.is_empty() || args.ids.is_empty() {
            found.push(filter(store, kind, &args.filter, &ids).await?);
        }
    }
    Ok(found)
}

fn told(args: &args::Touch, touched: &Touched, verb: &str, screen: &Screen) -> Result<(), JobError> {
    if args.json {
        return print_json(screen, touched);
    }
    let mut text = String::new();
    for one in &touched.work {
        let _ = writeln!(text, "{} {} -> {}", one.work, one.from, one.to);
    }
    for (work, why) in &touched.passed_over {
        let _ = writeln!(text, "{work} passed over: {why}");
    }
    let would = if touched.is_dry_run { " (dry run)" } else { "" };
    let _ = writeln!(text, "{verb}: {}{would}", touched.count);
    screen.print(&text);
    Ok(())
}

pub(super) async fn switch(
    args: &args::Switch,
    paused: bool,
    daemon: &Daemon,
    screen: &Screen,
) -> Result<Exit, JobError> {
    let filter =
        SwitchFilter { locations: args.location.clone(), routes: args.route.clone(), sites: args.site.clone() };
    if filter.locations.is_empty() && filter.routes.is_empty() && filter.sites.is_empty() {
        return Err(JobError::new(FailureClass::Usage, "name a --location SITE/NAME, a --route NAME or a --site SITE"));
    }
    let store = open(daemon).await?;
    let switched =
        store.switch(&filter, paused, &actor(), &args.reason, args.dry_run).await.map_err(|e| store_error(&e))?;
    let would = if args.dry_run { " (dry run)" } else { "" };
    for one in &switched {
        if args.json {
            print_json(screen, one)?;
        } else {
            let word = |paused: bool| if paused { "paused" } else { "running" };
            screen.print(&format!(
                "{} {}: {} -> {}{would}\n",
                one.what,
                one.name,
                word(one.was_paused),
                word(one.is_paused)
            ));
        }
    }
    store.close().await;
    Ok(Exit::Success)
}
