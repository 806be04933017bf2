//! The command line: what was typed ([`args`](self)), what it means, and how the end is told. The only place that
//! prints and that turns errors into exit codes ([`exit`]).

mod args;
mod base64;
mod cert;
mod clean;
#[cfg(feature = "control")]
mod control;
mod copy;
#[cfg(feature = "control")]
mod demo;
mod docs;
mod engine;
pub mod exit;
mod human;
mod interrupt;
pub mod json;
mod logs;
mod manifest;
mod spec;
mod verify;
mod watch;

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use tokio_util::sync::CancellationToken;

use self::{
    args::{Cli, Command, Common},
    engine::{Engine, Job, Linked},
    exit::Exit,
    human::Screen,
};
use crate::{
    config::{ConfigError, Layers, Settings},
    endpoint,
    engine::{FailureClass, JobError},
};

/// Runs the program with its arguments, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are success; whoever closed it does not want them.
            let _ = error.print();
            return if error.use_stderr() { Exit::Failed(FailureClass::Usage).into() } else { Exit::Success.into() };
        }
    };
    dispatch(cli, &Linked).into()
}

fn dispatch(cli: Cli, engine: &dyn Engine) -> Exit {
    let (json, bar, show_config) = match &cli.command {
        Some(Command::Send(copy) | Command::Recv(copy)) => (copy.json, !copy.json, copy.show_config || cli.show_config),
        Some(Command::Verify(verify)) => (verify.json, !verify.json, cli.show_config),
        #[cfg(feature = "control")]
        Some(Command::Demo(_)) => (false, true, cli.show_config),
        _ => (false, false, cli.show_config),
    };
    let screen = if bar { Screen::new() } else { Screen::without_bar() };
    let usage = |text: String| fail(&screen, json, &JobError::new(FailureClass::Usage, text));
    let flags = match &cli.command {
        Some(Command::Send(copy) | Command::Recv(copy)) => copy.settings.layer(),
        _ => Vec::new(),
    };
    let layers = match Loaded::new(&cli.common, &flags) {
        Ok(layers) => layers,
        Err(error) => return usage(error.to_string()),
    };
    let settings = match layers.layers.settings() {
        Ok(settings) => settings,
        Err(error) => return usage(error.to_string()),
    };
    if show_config {
        screen.print(&layers.layers.show());
        return Exit::Success;
    }
    // A daemon's log is all that it says; the other commands say what matters by themselves.
    let daemon = cli.command.as_ref().is_some_and(Command::is_daemon) && layers.layers.is_default("log");
    let filter = if daemon { "info" } else { &settings.log };
    let levels = match logs::start(filter, cli.common.verbose, &screen) {
        Ok(levels) => levels,
        Err(error) => return usage(error.to_string()),
    };
    for name in &layers.strange {
        tracing::warn!("the environment variable {name} names no setting; see --show-config");
    }
    if cli.stdio && cli.command.is_some() {
        return usage("--stdio takes no command: what to do comes over stdin".into());
    }
    if cli.stdio {
        return service(&screen, |cancel| engine.stdio(cancel));
    }
    #[cfg(not(feature = "control"))]
    drop(levels);
    #[cfg(feature = "control")]
    if let Some(request) = cli.command.as_ref().and_then(control::Request::of) {
        let context = control::Context { file: layers.file, settings: &settings, screen: &screen, levels: &levels };
        return told(&screen, control::run(&request, &context));
    }
    match cli.command {
        None => usage("a command is needed; see --help".into()),
        Some(Command::Send(args)) => copy::copy(spec::Verb::Send, &args, &settings, engine, &screen),
        Some(Command::Recv(args)) => copy::copy(spec::Verb::Recv, &args, &settings, engine, &screen),
        Some(Command::Serve) => match layers.file {
            // Before the runtime has threads: they inherit the confinement.
            Some(file) => match need_identity(&settings).and_then(|folder| endpoint::prepare(&file, folder)) {
                Ok(prepared) => service(&screen, |cancel| engine.serve(prepared, cancel)),
                Err(error) => fail(&screen, false, &error),
            },
            None => usage("serve needs a settings file with a table [serve]; name it with --config FILE".into()),
        },
        Some(Command::Verify(args)) => verify::verify(&args, &screen),
        Some(Command::Clean(args)) => told(&screen, clean::clean(&args, &screen)),
        Some(Command::Cert(args)) => told(&screen, cert::cert(&args, &settings, &screen)),
        #[cfg(feature = "control")]
        Some(Command::Demo(args)) => told(&screen, demo::demo(&args, &settings, &screen)),
        Some(Command::Docs(args)) => told(&screen, docs::docs(&args)),
        #[cfg(feature = "control")]
        Some(_) => fail(&screen, json, &JobError::new(FailureClass::Bug, "a command that nobody runs")),
    }
}

/// Defaults, file, environment, flags.
#[derive(Debug)]
struct Loaded {
    layers: Layers,
    /// The settings file, whether it was there or not.
    file: Option<PathBuf>,
    /// Variables with our prefix that mean nothing.
    strange: Vec<String>,
}

impl Loaded {
    fn new(common: &Common, flags: &[(&'static str, &str)]) -> Result<Self, ConfigError> {
        let folder = identity_folder();
        let mut layers = Layers::new(folder.as_deref());
        let named = common.config.clone().or_else(|| env::var_os("CCAT_XFER_CONFIG").map(PathBuf::from));
        let (file, must_exist) = match named {
            Some(file) => (Some(file), true),
            None => (folder.map(|folder| folder.join("config.toml")), false),
        };
        if let Some(file) = &file {
            match fs::read_to_string(file) {
                Ok(text) => layers.add_file(file, &text)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {}
                Err(error) => {
                    return Err(ConfigError::Unreadable { path: file.clone(), reason: error.to_string() });
                }
            }
        }
        let strange = layers.add_environment(env::vars_os())?;
        for (key, value) in common.layer().into_iter().chain(flags.iter().copied()) {
            layers.add_flag(key, value)?;
        }
        Ok(Self { layers, file, strange })
    }
}

/// `$XDG_CONFIG_HOME/ccat-xfer`, else `~/.config/ccat-xfer`. A relative XDG folder is to be ignored (XDG base directory
/// specification).
fn identity_folder() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("ccat-xfer"))
}

/// The folder of keys, or why there is none.
fn need_identity(settings: &Settings) -> Result<&Path, JobError> {
    if settings.identity.as_os_str().is_empty() {
        return Err(JobError::new(
            FailureClass::Usage,
            "no folder for keys is known, because HOME is not set; name one with --identity DIR",
        ));
    }
    Ok(&settings.identity)
}

/// Runs one request on a runtime of its own. Signals cancel it; `screen` hears of the first one.
fn block_on<T>(
    screen: Option<&Screen>,
    cancel: &CancellationToken,
    job: impl AsyncFnOnce() -> Result<T, JobError>,
) -> Result<T, JobError> {
    let broken = |error: io::Error| JobError::new(FailureClass::Bug, format!("cannot start the runtime: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(broken)?;
    let result = runtime.block_on(async {
        interrupt::watch(cancel, screen.cloned()).map_err(broken)?;
        job().await
    });
    // A thread that hangs in a dead file system, or waits for stdin, must not keep the process; every instant is safe to
    // stop at.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// A daemon or far end: runs until it is told to end, which is no failure.
fn service(screen: &Screen, start: impl FnOnce(CancellationToken) -> Job<()>) -> Exit {
    let cancel = CancellationToken::new();
    match block_on(None, &cancel, async || start(cancel.clone()).await) {
        Ok(()) => Exit::Success,
        Err(error) if error.class == FailureClass::Cancelled && cancel.is_cancelled() => Exit::Success,
        Err(error) => fail(screen, false, &error),
    }
}

/// The exit of a command that prints its own result.
fn told(screen: &Screen, result: Result<Exit, JobError>) -> Exit {
    result.unwrap_or_else(|error| fail(screen, false, &error))
}

/// Says why a command ends without having begun.
fn fail(screen: &Screen, json: bool, error: &JobError) -> Exit {
    let exit = Exit::Failed(error.class);
    screen.clear();
    if json {
        json::Json::stdout().summary(exit, Some(error), None);
    } else {
        screen.note(&format!("ccat-xfer: {error}"));
    }
    exit
}
