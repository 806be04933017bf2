//! The commands of the control plane: what is typed becomes a call of the store, a manager or a worker.

mod admin;
mod archive;
mod args;
mod change;
mod daemons;
mod look;
mod submit;

use std::{env, io, path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

pub(super) use self::args::{
    Archive, Db, Explain, List, Manager, Scrub, Show, Submit, Switch, Topology, Touch, Up, Worker,
};
pub(super) use self::daemons::{Crew, Shelves, Watched, together};
pub(super) use self::submit::measured;
use super::{
    args::{Command, Verify},
    block_on,
    exit::Exit,
    human::Screen,
};
use crate::{
    config::{Daemon, Settings},
    engine::{FailureClass, JobError},
    model::topology::Place,
    store::{Store, StoreError},
    task::{Backoff, Gate, Hangup},
    telemetry::logs::LevelSwitch,
};

/// A command of the control plane.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Manager(&'a Manager),
    Worker(&'a Worker),
    Up(&'a Up),
    Archive(&'a Archive),
    Scrub { args: &'a Scrub, location: &'a Place, json: bool },
    Db(&'a Db),
    Topology(&'a Topology),
    Submit(&'a Submit),
    List(&'a List),
    Show(&'a Show),
    Explain(&'a Explain),
    Retry(&'a Touch),
    Cancel(&'a Touch),
    Pause(&'a Switch),
    Resume(&'a Switch),
}

impl<'a> Request<'a> {
    /// The request, if the command is the control plane's.
    pub(super) fn of(command: &'a Command) -> Option<Self> {
        Some(match command {
            Command::Manager(args) => Self::Manager(args),
            Command::Worker(args) => Self::Worker(args),
            Command::Up(args) => Self::Up(args),
            Command::Archive(args) => Self::Archive(args),
            Command::Verify(Verify { archived: args, json, .. }) => {
                Self::Scrub { args, location: args.location.as_ref()?, json: *json }
            }
            Command::Db(args) => Self::Db(args),
            Command::Topology(args) => Self::Topology(args),
            Command::Submit(args) => Self::Submit(args),
            Command::List(args) => Self::List(args),
            Command::Show(args) => Self::Show(args),
            Command::Explain(args) => Self::Explain(args),
            Command::Retry(args) => Self::Retry(args),
            Command::Cancel(args) => Self::Cancel(args),
            Command::Pause(args) => Self::Pause(args),
            Command::Resume(args) => Self::Resume(args),
            _ => return None,
        })
    }
}

/// What every command has at hand.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// The settings file, whether it is there or not.
    pub(super) file: Option<PathBuf>,
    pub(super) settings: &'a Settings,
    pub(super) screen: &'a Screen,
    pub(super) levels: &'a LevelSwitch,
}

/// Runs a command.
pub(super) fn run(request: &Request<'_>, context: &Context<'_>) -> Result<Exit, JobError> {
    let daemon = Daemon::load(context.file.as_deref(), env::vars_os(), state_folder().as_deref())
        .map_err(|e| JobError::new(FailureClass::Usage, e.to_string()))?;
    let screen = context.screen;
    let cancel = CancellationToken::new();
    match request {
        Request::Manager(args) => daemons::manager(args, &daemon, context),
        Request::Worker(args) => daemons::worker(args, &daemon, context),
        Request::Up(args) => daemons::up(args, &daemon, context),
        Request::Archive(args) => archive::archive(args, screen),
        Request::Scrub { args, location, json } => block_on(Some(screen), &cancel, async || {
            archive::verify(args, location, *json, &daemon, screen, &cancel).await
        }),
        Request::Db(args) => block_on(Some(screen), &cancel, async || admin::db(args, &daemon, screen, &cancel).await),
        Request::Topology(args) => {
            block_on(Some(screen), &cancel, async || admin::topology(args, &daemon, screen).await)
        }
        Request::Submit(args) => block_on(Some(screen), &cancel, async || submit::submit(args, &daemon, screen).await),
        Request::List(args) => block_on(Some(screen), &cancel, async || look::list(args, &daemon, screen).await),
        Request::Show(args) => block_on(Some(screen), &cancel, async || look::show(args, &daemon, screen).await),
        Request::Explain(args) => block_on(Some(screen), &cancel, async || look::explain(args, &daemon, screen).await),
        Request::Retry(args) => block_on(Some(screen), &cancel, async || change::retry(args, &daemon, screen).await),
        Request::Cancel(args) => block_on(Some(screen), &cancel, async || change::cancel(args, &daemon, screen).await),
        Request::Pause(args) => {
            block_on(Some(screen), &cancel, async || change::switch(args, true, &daemon, screen).await)
        }
        Request::Resume(args) => {
            block_on(Some(screen), &cancel, async || change::switch(args, false, &daemon, screen).await)
        }
    }
}

/// The database, now or not at all: an operator waits for no server.
async fn open(daemon: &Daemon) -> Result<Store, JobError> {
    make_sqlite_folder(daemon)?;
    Store::open(daemon.database()).await.map_err(|error| told(&error, daemon))
}

/// The database, as soon as it is there: a daemon that starts before its server waits. `None` when it is told to end first.
async fn open_patiently(daemon: &Daemon, gate: &Gate) -> Result<Option<Store>, JobError> {
    make_sqlite_folder(daemon)?;
    let mut delays = Backoff { first: Duration::from_millis(200), limit: Duration::from_secs(5) }.delays();
    while !gate.is_draining() {
        match Store::open(daemon.database()).await {
            Ok(store) => return Ok(Some(store)),
            Err(error @ (StoreError::Unavailable(_) | StoreError::Conflict(_))) => {
                if delays.failures() == 0 {
                    tracing::warn!(%error, database = daemon.database_shown(), "waiting for the database");
                }
                tokio::select! {
                    () = tokio::time::sleep(delays.next_delay()) => {}
                    () = gate.draining() => {}
                }
            }
            Err(error) => return Err(told(&error, daemon)),
        }
    }
    Ok(None)
}

/// The folder of the embedded default is ours to make.
fn make_sqlite_folder(daemon: &Daemon) -> Result<(), JobError> {
    let Some(path) = daemon.database().strip_prefix("sqlite:") else { return Ok(()) };
    let path = PathBuf::from(path);
    let (Some(folder), Some(state)) = (path.parent(), state_folder()) else { return Ok(()) };
    if folder == state {
        std::fs::create_dir_all(folder).map_err(|e| {
            JobError::new(FailureClass::Usage, format!("cannot make the folder {}: {e}", folder.display()))
        })?;
    }
    Ok(())
}

fn told(error: &StoreError, daemon: &Daemon) -> JobError {
    let mut told = store_error(error);
    told.text = format!("{}: {}", daemon.database_shown(), told.text);
    told
}

/// What an error of the database means to whoever typed the command.
pub(super) fn store_error(error: &StoreError) -> JobError {
    let class = match error {
        StoreError::Unavailable(_) | StoreError::Conflict(_) => FailureClass::Network,
        StoreError::Denied(_) => FailureClass::Identity,
        StoreError::Stale { .. } | StoreError::WorkerReplaced { .. } => FailureClass::Overtaken,
        StoreError::Corrupt(_) | StoreError::Database(_) => FailureClass::Bug,
        _ => FailureClass::Usage,
    };
    JobError::new(class, error.to_string())
}

/// `$XDG_STATE_HOME/ccat-xfer`, else `~/.local/state/ccat-xfer`.
fn state_folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(base.join("ccat-xfer"))
}

/// Who acts, for the history.
fn actor() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok().filter(|n| !n.is_empty()));
    format!("{}@{}", user.unwrap_or_else(|| "unknown".to_owned()), crate::engine::host_name())
}

/// Runs a daemon on a runtime of its own until it has drained. SIGHUP switches DEBUG on and off.
fn serve(context: &Context<'_>, job: impl AsyncFnOnce(Gate) -> Result<(), JobError>) -> Result<Exit, JobError> {
    let broken = |error: io::Error| JobError::new(FailureClass::Bug, format!("cannot start the runtime: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(broken)?;
    let levels = context.levels.clone();
    let result = runtime.block_on(async {
        let gate = Gate::new();
        gate.obey_signals().map_err(broken)?;
        let mut hangup = Hangup::listen().map_err(broken)?;
        let switching = tokio::spawn(async move {
            loop {
                hangup.next().await;
                levels.toggle();
                tracing::info!(debug = levels.is_verbose(), "the log's level was switched");
            }
        });
        let result = job(gate).await;
        switching.abort();
        result
    });
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.map(|()| Exit::Success)
}

/// One JSON object on a line.
fn print_json(screen: &Screen, value: &impl serde::Serialize) -> Result<(), JobError> {
    let text = serde_json::to_string(value)
        .map_err(|e| JobError::new(FailureClass::Bug, format!("a result has no JSON form: {e}")))?;
    screen.print(&format!("{text}\n"));
    Ok(())
}

/// Rows with equal columns.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let lines = std::iter::once(head.iter().map(ToString::to_string).collect()).chain(rows.iter().cloned());
    for line in lines {
        let line: Vec<String> = line;
        let mut out = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', (width + 2).saturating_sub(cell.chars().count())));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_equal_columns() {
        let rows = vec![vec!["t1".to_owned(), "a long one".to_owned()], vec!["t22".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["ID", "TEXT"], &rows), "ID   TEXT\nt1   a long one\nt22  x\n");
    }
}
