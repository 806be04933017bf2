use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a process to end: SIGINT (Ctrl-C) and SIGTERM (a service manager).
///
/// From [`Termination::listen`] on they no longer end the process by themselves.
#[derive(Debug)]
pub struct Termination {
    interrupt: Signal,
    terminate: Signal,
}

impl Termination {
    /// Starts to listen. Must be called within a runtime.
    ///
    /// # Errors
    /// The system refused the handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next of them. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// SIGHUP, which asks a daemon to change something without ending.
#[derive(Debug)]
pub struct Hangup(Signal);

impl Hangup {
    /// Starts to listen. Must be called within a runtime.
    ///
    /// # Errors
    /// The system refused the handler.
    pub fn listen() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next one. Cancel safe.
    pub async fn next(&mut self) {
        // The stream ends with the runtime only, and then nobody waits.
        let _ = self.0.recv().await;
    }
}
