//! What the command line asks of the layers below, as one trait.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    endpoint::{self, Prepared},
    engine::{Direction, JobError, Observer, Options, Remote, Summary},
    net::Congestion,
    reach::{self, Credentials},
};

/// A running request.
pub(super) type Job<T> = Pin<Box<dyn Future<Output = Result<T, JobError>> + Send>>;

/// What a job needs besides its [`Options`].
#[derive(Clone, Debug)]
pub(super) struct Means {
    /// Who we are to an endpoint, and whom we trust there; `None` for jobs by ssh, whose two ends make throw-away keys.
    pub(super) credentials: Option<Credentials>,
    /// QUIC's congestion controller.
    pub(super) congestion: Congestion,
}

/// The layers below, as the command line sees them. Only reported errors come back; nothing below prints.
pub(super) trait Engine: Send + Sync {
    /// Runs one job to its end.
    fn run(
        &self,
        direction: Direction,
        remote: Remote,
        options: Options,
        means: Means,
        observer: Arc<dyn Observer>,
        cancel: CancellationToken,
    ) -> Job<Summary>;

    /// Runs a prepared endpoint until cancelled.
    fn serve(&self, prepared: Prepared, cancel: CancellationToken) -> Job<()>;

    /// The far end of a job that ssh started: reads stdin, writes stdout.
    fn stdio(&self, cancel: CancellationToken) -> Job<()>;
}

/// The real layers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Linked;

impl Engine for Linked {
    fn run(
        &self,
        direction: Direction,
        remote: Remote,
        options: Options,
        means: Means,
        observer: Arc<dyn Observer>,
        cancel: CancellationToken,
    ) -> Job<Summary> {
        let options = Options { congestion: means.congestion, ..options };
        Box::pin(reach::run(direction, remote, options, means.credentials, observer, cancel))
    }

    fn serve(&self, prepared: Prepared, cancel: CancellationToken) -> Job<()> {
        Box::pin(endpoint::serve(prepared, cancel))
    }

    fn stdio(&self, cancel: CancellationToken) -> Job<()> {
        Box::pin(reach::stdio(cancel))
    }
}
