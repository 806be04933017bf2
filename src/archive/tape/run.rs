//! One command of a tape system: run with a limit, nothing of it left behind, told apart how it ended.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{ArchiveError, failure},
    templates::{Filling, Template},
};
use crate::{chunk::plain_text, model::ErrorClass};

/// What is kept of what a command says for an error.
const KEPT_BYTES: usize = 4 << 10;
/// An answer is not longer.
const ANSWER_BYTES: usize = 64 << 10;
/// How long the streams of a command that has ended may stay open: what it left running holds them.
const STREAM_LIMIT: Duration = Duration::from_secs(2);
/// Our own settings hold secrets that are no business of a tape system's client.
const OWN_VARIABLES: &str = "CCAT_XFER_";

/// The process group of a command, ended when dropped: no command outlives whoever ran it.
struct Group(Option<Pid>);

impl Group {
    fn end(&mut self) {
        if let Some(group) = self.0.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Its leader was waited for and its streams are closed, so nobody is left, and the number may mean others soon.
    fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command and returns what it printed, at most 64 KiB.
///
/// # Errors
/// See the table in [`super`]; `what` is in front of each.
pub(super) async fn run(
    what: &str,
    template: &Template,
    filling: Filling<'_>,
    cancel: &CancellationToken,
) -> Result<String, ArchiveError> {
    if cancel.is_cancelled() {
        return Err(failure::cancelled(what));
    }
    let mut child = start(what, template, filling)?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut said = tokio::spawn(async move { tokio::join!(keep(out, ANSWER_BYTES), keep(err, KEPT_BYTES)) });
    let ended = tokio::select! {
        ended = timeout(template.limit(), child.wait()) => ended,
        () = cancel.cancelled() => {
            group.end();
            let _ = child.wait().await;
            return Err(failure::cancelled(what));
        }
    };
    let Ok(ended) = ended else {
        group.end();
        let _ = child.wait().await;
        let text = format!(
            "{} ran for {} s and was ended; see what keeps it, or allow it more time",
            template.program(),
            template.limit().as_secs_f64()
        );
        return Err(ArchiveError { class: ErrorClass::Network, chain: vec![what.to_owned(), text] });
    };
    let streams = timeout(STREAM_LIMIT, &mut said).await;
    match streams {
        Ok(_) => group.forget(),
        Err(_) => {
            group.end();
            said.abort();
        }
    }
    let status = ended.map_err(|e| {
        ArchiveError::caused(ErrorClass::Bug, format!("{what}: cannot wait for {}", template.program()), &e)
    })?;
    let (answer, complaint) = match streams {
        Ok(Ok(said)) => said,
        _ => (Vec::new(), b"(it left a process behind that holds its output; that was ended)".to_vec()),
    };
    if status.success() {
        return Ok(String::from_utf8_lossy(&answer).into_owned());
    }
    let (class, how) = meaning(status);
    let tail = |bytes: &[u8]| plain_text(bytes.trim_ascii()).chars().take(500).collect::<String>();
    let mut said = tail(&complaint);
    if said.is_empty() {
        said = tail(&answer);
    }
    let text = format!("{} {how}: {}", template.program(), if said.is_empty() { "it said nothing" } else { &said });
    Err(ArchiveError { class, chain: vec![what.to_owned(), text] })
}

fn start(what: &str, template: &Template, filling: Filling<'_>) -> Result<Child, ArchiveError> {
    let argv = template.argv(filling);
    let (program, arguments) = argv.split_first().map(|(p, a)| (p.clone(), a)).unwrap_or_default();
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(OWN_VARIABLES) {
            command.env_remove(name);
        }
    }
    command.spawn().map_err(|e| {
        let text = format!("{what}: cannot start {}; see the worker's settings", template.program());
        ArchiveError::caused(ErrorClass::Configuration, text, &e)
    })
}

/// The first bytes of a stream. The rest is read and dropped: a command must not hang on a full pipe.
async fn keep(stream: Option<impl AsyncRead + Unpin>, most: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let room = most.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&buffer[..room]);
    }
    kept
}

/// What an exit code means, as sysexits.h has it where a program keeps to that.
fn meaning(status: std::process::ExitStatus) -> (ErrorClass, String) {
    use std::os::unix::process::ExitStatusExt as _;
    if let Some(signal) = status.signal() {
        return (ErrorClass::RemoteBusy, format!("was ended by signal {signal}"));
    }
    let code = status.code().unwrap_or(-1);
    let class = match code {
        64 | 78 | 126 | 127 => ErrorClass::Configuration,
        66 => ErrorClass::MissingSource,
        73 => ErrorClass::DestinationDiffers,
        75 => ErrorClass::RemoteBusy,
        77 => ErrorClass::Authentication,
        _ => ErrorClass::Network,
    };
    (class, format!("failed with exit code {code}"))
}

/// As [`run`], for a command that prints many lines: `line` hears each, and lines beyond 16 KiB are cut.
pub(super) async fn lines(
    what: &str,
    template: &Template,
    mut line: impl FnMut(&str) + Send,
) -> Result<(), ArchiveError> {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let mut child = start(what, template, Filling::default())?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let complaint = tokio::spawn(keep(err, KEPT_BYTES));
    let work = async {
        if let Some(out) = out {
            let mut out = BufReader::new(out);
            let mut bytes = Vec::new();
            while let Ok(1..) = (&mut out).take(16 << 10).read_until(b'\n', &mut bytes).await {
                line(String::from_utf8_lossy(&bytes).trim_end());
                bytes.clear();
            }
        }
        child.wait().await
    };
    let Ok(ended) = timeout(template.limit(), work).await else {
        group.end();
        let text = format!("{} ran for {} s and was ended", template.program(), template.limit().as_secs_f64());
        return Err(ArchiveError { class: ErrorClass::Network, chain: vec![what.to_owned(), text] });
    };
    let said = timeout(STREAM_LIMIT, complaint).await;
    match &said {
        Ok(_) => group.forget(),
        Err(_) => group.end(),
    }
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let (class, how) = meaning(status);
            let said = said.ok().and_then(Result::ok).unwrap_or_default();
            let text = format!("{} {how}: {}", template.program(), plain_text(said.trim_ascii()));
            Err(ArchiveError { class, chain: vec![what.to_owned(), text] })
        }
        Err(e) => Err(ArchiveError::caused(ErrorClass::Bug, format!("{what}: cannot wait for it"), &e)),
    }
}
