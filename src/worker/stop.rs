use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// Why an attempt has to end before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody claimed the work anew, or another process has this worker's name: nothing is to be written.
    Overtaken,
    /// A person wants it stopped.
    Cancelled,
    /// The lease is over, and nobody but us keeps two from writing.
    LeaseLost,
    /// This worker leaves.
    Draining,
}

/// Ends one attempt. The first reason counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    why: Arc<OnceLock<Why>>,
    token: CancellationToken,
}

impl Stop {
    pub(super) fn now(&self, why: Why) {
        let _ = self.why.set(why);
        self.token.cancel();
    }

    pub(super) fn why(&self) -> Option<Why> {
        self.why.get().copied()
    }

    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }
}
