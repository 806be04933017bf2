use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::error::BrokerError;

/// How sure it is that hints would arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// When a hint arrived or the broker last answered; `None` if it never did.
    pub proven: Option<Instant>,
    /// What is wrong now.
    pub trouble: Option<BrokerError>,
}

impl Pulse {
    /// Whether the proof is not older than `limit`.
    pub fn is_fresh(&self, limit: Duration) -> bool {
        self.proven.is_some_and(|at| at.elapsed() <= limit)
    }

    pub(super) fn now() -> Self {
        Self { proven: Some(Instant::now()), trouble: None }
    }
}

/// A pulse that one task writes and others read.
#[derive(Clone, Debug, Default)]
pub(super) struct PulseCell(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    proven: Option<Instant>,
    trouble: Option<BrokerError>,
    /// Nobody wants a hint, so none is asked for and nothing can be wrong.
    resting: bool,
}

impl PulseCell {
    pub(super) fn proven(&self) {
        let mut state = self.state();
        state.proven = Some(Instant::now());
        state.trouble = None;
    }

    pub(super) fn troubled(&self, error: BrokerError) {
        self.state().trouble = Some(error);
    }

    pub(super) fn resting(&self, resting: bool) {
        let mut state = self.state();
        // The time of rest counts as proven, so that its end does not look like a long silence.
        if state.resting {
            state.proven = Some(Instant::now());
        }
        state.resting = resting;
    }

    pub(super) fn read(&self) -> Pulse {
        let state = self.state();
        if state.resting {
            return Pulse::now();
        }
        Pulse { proven: state.proven, trouble: state.trouble.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
