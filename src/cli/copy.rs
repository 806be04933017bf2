//! `send` and `recv`.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    args::Copy,
    block_on, cert,
    engine::{Engine, Means},
    exit::Exit,
    fail,
    human::Screen,
    json::Json,
    manifest, spec,
    watch::Watch,
};
use crate::{
    config::Settings,
    engine::{Direction, FailureClass, JobError, Options, Remote, TransportChoice},
};

/// A job, ready to run.
#[derive(Debug)]
struct Plan {
    direction: Direction,
    remote: Remote,
    options: Options,
    means: Means,
    manifest: Option<manifest::Writer>,
}

pub(super) fn copy(verb: spec::Verb, args: &Copy, settings: &Settings, engine: &dyn Engine, screen: &Screen) -> Exit {
    let Plan { direction, remote, options, means, manifest } = match plan(verb, args, settings) {
        Ok(plan) => plan,
        Err(error) => return fail(screen, args.json, &error),
    };
    let json = args.json.then(Json::stdout);
    let watch = Arc::new(Watch::new(screen.clone(), json, args.dry_run, manifest));
    let cancel = CancellationToken::new();
    let result = block_on(Some(screen), &cancel, async || {
        engine.run(direction, remote, options, means, Arc::clone(&watch) as _, cancel.clone()).await
    });
    watch.finish(&result)
}

fn plan(verb: spec::Verb, args: &Copy, settings: &Settings) -> Result<Plan, JobError> {
    let usage = |text: String| JobError::new(FailureClass::Usage, text);
    let (destination, sources) =
        args.paths.split_last().ok_or_else(|| usage("SOURCE and DEST are missing; see --help".into()))?;
    let (direction, remote) =
        spec::job(verb, sources, destination, settings, args.reverse).map_err(|e| usage(e.to_string()))?;
    if matches!(remote, Remote::Ssh { .. }) && args.peer_fingerprint.is_some() {
        return Err(usage(
            "--peer-fingerprint names an endpoint (xfer://); with HOST:PATH ssh says who the peer is".into(),
        ));
    }
    if let Remote::Endpoint { .. } = remote {
        if args.reverse {
            return Err(usage("--reverse needs a far end that ssh starts; an endpoint (xfer://) only accepts".into()));
        }
        if settings.transport == TransportChoice::Ssh {
            return Err(usage(
                "--transport ssh needs HOST:PATH; an endpoint (xfer://) is reached by quic or tcp".into(),
            ));
        }
    }
    // A dry run has nothing to list.
    let manifest = args.manifest.as_deref().filter(|_| !args.dry_run).map(manifest::Writer::create).transpose();
    let credentials = match remote {
        Remote::Endpoint { .. } => Some(cert::credentials(settings, args.peer_fingerprint.as_deref())?),
        Remote::Ssh { .. } => None,
    };
    Ok(Plan {
        direction,
        remote,
        options: Options { overwrite: args.overwrite, dry_run: args.dry_run, ..settings.options() },
        means: Means { credentials, congestion: settings.congestion },
        manifest: manifest.map_err(|e| usage(e.to_string()))?,
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn planned(words: &[&str]) -> Result<Plan, String> {
        let cli = Cli::try_parse_from(words.iter().map(OsString::from)).map_err(|e| e.to_string())?;
        match cli.command {
            Some(Command::Send(copy)) => plan(spec::Verb::Send, &copy, &Settings::default()),
            Some(Command::Recv(copy)) => plan(spec::Verb::Recv, &copy, &Settings::default()),
            _ => panic!("{words:?}"),
        }
        .map_err(|e| e.text)
    }

    #[test]
    fn flags_reach_the_options() {
        let plan = planned(&["x", "send", "--overwrite", "-n", "--reverse", "a", "h:b"]).unwrap();
        assert!(plan.options.overwrite && plan.options.dry_run);
        assert!(matches!(plan.remote, Remote::Ssh { reverse: true, .. }));
        let plan = planned(&["x", "recv", "h:b", "a"]).unwrap();
        assert!(!plan.options.overwrite && !plan.options.dry_run);
    }

    #[test]
    fn what_an_endpoint_cannot_do_is_refused() {
        assert!(planned(&["x", "send", "--reverse", "a", "xfer://h/l"]).unwrap_err().contains("--reverse needs"));
        assert!(planned(&["x", "send", "a", "b"]).unwrap_err().contains("no remote end"));
        let missing = planned(&["x", "send", "--manifest", "/nonexistent/m", "a", "h:b"]).unwrap_err();
        assert!(missing.starts_with("cannot write the manifest /nonexistent/m: "), "{missing}");
    }
}
