//! Ctrl-C: the first one ends a job cleanly, so that it can be resumed; the second one ends the process.

use std::{io, process};

use tokio_util::sync::CancellationToken;

use super::{exit::Exit, human::Screen};
use crate::{engine::FailureClass, task::Termination};

/// Makes SIGINT and SIGTERM cancel `cancel`. Must be called within a runtime. SIGHUP keeps its meaning, so that nohup
/// works. The operator is told on `screen`, where there is one.
pub(super) fn watch(cancel: &CancellationToken, screen: Option<Screen>) -> io::Result<()> {
    let mut termination = Termination::listen()?;
    let cancel = cancel.clone();
    tokio::spawn(async move {
        loop {
            termination.next().await;
            if cancel.is_cancelled() {
                if let Some(screen) = &screen {
                    screen.clear();
                }
                hard_exit();
            }
            cancel.cancel();
            if let Some(screen) = &screen {
                screen.note("ending; what is done is kept. Press Ctrl-C again to end at once.");
            }
        }
    });
    Ok(())
}

#[expect(clippy::exit, reason = "the operator asked twice; the journal makes any instant safe")]
fn hard_exit() {
    process::exit(i32::from(Exit::Failed(FailureClass::Cancelled).code()))
}
