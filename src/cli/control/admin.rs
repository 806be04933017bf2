//! `db` and `topology`.

use std::{fmt::Write as _, fs};

use tokio_util::sync::CancellationToken;

use super::{
    Daemon, FailureClass, JobError, Screen, Store, actor, archive, args,
    args::{DbCommand, TopologyCommand},
    make_sqlite_folder, open, print_json, store_error, told,
};
use crate::{
    cli::exit::Exit,
    model::topology::{Change, Topology},
    store::{Apply, ApplyError},
};

pub(super) async fn db(
    args: &args::Db,
    daemon: &Daemon,
    screen: &Screen,
    cancel: &CancellationToken,
) -> Result<Exit, JobError> {
    if let DbCommand::Rebuild { from, json } = &args.command {
        return archive::rebuild(from, *json, daemon, screen, cancel).await;
    }
    make_sqlite_folder(daemon)?;
    let store = Store::connect(daemon.database()).await.map_err(|e| told(&e, daemon))?;
    match &args.command {
        DbCommand::Migrate { force } => {
            let migrated = if *force { store.migrate_forced().await } else { store.migrate().await };
            let migrated = migrated.map_err(|e| told(&e, daemon))?;
            screen.print(&format!("{}: {migrated:?}\n", daemon.database_shown()));
        }
        DbCommand::Check => {
            store.check().await.map_err(|e| told(&e, daemon))?;
            screen.print(&format!("{}: the schema is this program's\n", daemon.database_shown()));
        }
        DbCommand::Rebuild { .. } => {}
    }
    store.close().await;
    Ok(Exit::Success)
}

pub(super) async fn topology(args: &args::Topology, daemon: &Daemon, screen: &Screen) -> Result<Exit, JobError> {
    match &args.command {
        TopologyCommand::Apply { file, dry_run, json } => {
            let usage = |text: String| JobError::new(FailureClass::Usage, text);
            let text = fs::read_to_string(file).map_err(|e| usage(format!("cannot read {}: {e}", file.display())))?;
            // All that is wrong with the file is told before the database is asked.
            let wanted = Topology::parse(&text).map_err(|e| usage(format!("{}: {e}", file.display())))?;
            let store = open(daemon).await?;
            let apply = if *dry_run { Apply::DryRun } else { Apply::Now };
            let changes = store.apply_topology(&wanted, &actor(), apply).await.map_err(|error| match error {
                ApplyError::Topology(error) => usage(format!("{}: {error}", file.display())),
                ApplyError::Store(error) => store_error(&error),
            })?;
            if *json {
                print_json(screen, &serde_json::json!({ "schema": 1, "dry_run": dry_run, "changes": changes }))?;
            } else {
                screen.print(&as_text(&changes, *dry_run));
            }
            store.close().await;
        }
        TopologyCommand::Show { json } => {
            let store = open(daemon).await?;
            let topology = store.topology().await.map_err(|e| store_error(&e))?;
            // What would have to be applied to an empty database: the same words as `apply` uses.
            let changes = Topology::default()
                .diff(&topology)
                .map_err(|e| JobError::new(FailureClass::Bug, format!("the database's topology cannot be: {e}")))?;
            if *json {
                print_json(screen, &serde_json::json!({ "schema": 1, "topology": changes }))?;
            } else {
                screen.print(&listed(&changes));
            }
            store.close().await;
        }
    }
    Ok(Exit::Success)
}

fn as_text(changes: &[Change], dry_run: bool) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for change in changes {
        let _ = writeln!(text, "{change}");
    }
    let _ = match (changes.len(), dry_run) {
        (0, _) => writeln!(text, "nothing to change"),
        (n, true) => writeln!(text, "{n} changes would be made"),
        (n, false) => writeln!(text, "{n} changes were made"),
    };
    text
}

fn listed(all: &[Change]) -> String {
    let mut text = String::new();
    for one in all {
        let fields: Vec<_> = one.fields.iter().map(|f| format!("{} {}", f.field, f.to)).collect();
        let _ = writeln!(text, "{} {}: {}", one.what, one.name, fields.join(", "));
    }
    if all.is_empty() {
        text.push_str("there is no topology yet; make one with `topology apply FILE`\n");
    }
    text
}
