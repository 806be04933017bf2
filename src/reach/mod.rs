//! The two ways to reach a peer: a program started over ssh for one job, and a running endpoint.
//!
//! Both end in a [`Session`] with links. This module decides who dials whom, which of the links that come about carries
//! the data, and it brings links back when they die.

mod dialer;
mod endpoint;
mod greeting;
mod ssh;
mod stdio;

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    buf::Pool,
    engine::{
        Direction, FailureClass, JobError, Kept, KeptTree, Observer, Options, Remote, RemotePath, Session, Summary,
        ask_receipts, pull, push, walk,
    },
    net::{Identity, NetError, PeerPolicy},
    protocol::{SessionSecret, TypedPath},
};

pub use dialer::{CONNECT_LIMIT, tcp_connections};
pub use endpoint::resolve;
pub use stdio::stdio;

/// Who this end is when it calls an endpoint, and whom it trusts there.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Shown to the endpoint.
    pub identity: Identity,
    /// Judges the endpoint.
    pub policy: Arc<dyn PeerPolicy>,
}

/// Runs a job from this end.
///
/// `credentials` are needed for [`Remote::Endpoint`] only. Cancelling `cancel` ends both ends at once, resumable.
///
/// # Errors
/// The class tells who is at fault; the summary tells what was done until then.
pub async fn run(
    direction: Direction,
    remote: Remote,
    options: Options,
    credentials: Option<Credentials>,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) -> Result<Summary, JobError> {
    // What can be refused without the peer is refused before it is troubled.
    let prepared = match &direction {
        Direction::Push { sources, .. } => {
            let sources = sources.clone();
            let walk = tokio::task::spawn_blocking(move || walk(&sources))
                .await
                .map_err(|_| JobError::new(FailureClass::Bug, "looking at the sources ended badly"))??;
            Some(walk)
        }
        Direction::Pull { .. } => None,
    };
    let session = new_session(&options);
    let reached = tokio::select! {
        reached = bring_up(&session, &remote, &options, credentials.as_ref(), &observer) => reached?,
        () = cancel.cancelled() => return Err(cancelled()),
    };
    let job = async {
        match (direction, prepared) {
            (Direction::Push { sources, destination }, Some(walk)) => {
                let destination =
                    TypedPath { location: destination.location.unwrap_or_default(), path: destination.path };
                push(&session, walk, &sources, destination, &options, &observer).await
            }
            (Direction::Push { .. }, None) => Err(JobError::new(FailureClass::Bug, "nothing was prepared")),
            (Direction::Pull { sources, destination }, _) => {
                let sources = sources
                    .into_iter()
                    .map(|s| TypedPath { location: s.location.unwrap_or_default(), path: s.path })
                    .collect();
                pull(&session, sources, &destination, &options, &observer).await
            }
        }
    };
    tokio::pin!(job);
    let outcome = tokio::select! {
        outcome = &mut job => outcome,
        () = cancel.cancelled() => {
            session.fail(cancelled());
            // The driver makes durable what it has and tells the peer.
            tokio::time::timeout(Duration::from_secs(15), &mut job).await.unwrap_or_else(|_| Err(cancelled()))
        }
    };
    session.close("the job is over").await;
    reached.end().await;
    outcome
}

/// Asks the far end for the receipts of the job `options.job`, which this end pushed to `destination` with a fence above
/// 0 and which came to its end there. `tell` hears of each entry, in the order in which they ended.
///
/// # Errors
/// Usage: none are kept there for us. Otherwise as [`run`].
pub async fn receipts(
    destination: RemotePath,
    remote: Remote,
    options: Options,
    credentials: Option<Credentials>,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
    tell: &mut (dyn FnMut(Kept) + Send),
) -> Result<KeptTree, JobError> {
    let session = new_session(&options);
    let asked = async {
        let reached = bring_up(&session, &remote, &options, credentials.as_ref(), &observer).await?;
        let typed = TypedPath { location: destination.location.unwrap_or_default(), path: destination.path };
        Ok((ask_receipts(&session, typed, options.job, tell).await, reached))
    };
    let outcome = tokio::select! {
        outcome = asked => outcome,
        () = cancel.cancelled() => Err(cancelled()),
    };
    session.close("the job is over").await;
    let (outcome, reached) = outcome?;
    reached.end().await;
    outcome
}

/// The first link to the peer, and what brings further ones.
async fn bring_up(
    session: &Arc<Session>,
    remote: &Remote,
    options: &Options,
    credentials: Option<&Credentials>,
    observer: &Arc<dyn Observer>,
) -> Result<Reached, JobError> {
    match remote {
        Remote::Ssh { .. } => ssh::reach(session, remote, options, observer).await,
        Remote::Endpoint { host, port } => {
            let credentials = credentials.ok_or_else(|| {
                JobError::new(
                    FailureClass::Identity,
                    "an endpoint needs an identity; make one with `ccat-xfer cert new`",
                )
            })?;
            endpoint::reach(session, host, *port, credentials, options).await
        }
    }
}

fn cancelled() -> JobError {
    JobError::new(FailureClass::Cancelled, "ended on request; the same command resumes")
}

/// A session with its own buffers.
pub(crate) fn new_session(options: &Options) -> Arc<Session> {
    Session::new(rand::random(), SessionSecret(rand::random()), pool(options), options.chunk_size)
}

pub(crate) fn pool(options: &Options) -> Pool {
    let each = options.chunk_size.buffer_bytes();
    Pool::new((options.memory_bytes / each).clamp(6, 4096), each)
}

/// What keeps a reached peer reachable: background tasks, and the ssh process where there is one.
pub(crate) struct Reached {
    tasks: tokio::task::JoinSet<()>,
    ssh: Option<ssh::Child>,
}

impl Reached {
    async fn end(mut self) {
        self.tasks.shutdown().await;
        if let Some(ssh) = self.ssh.take() {
            ssh.end().await;
        }
    }
}

/// The job error that a failed link means.
pub(crate) fn net_failure(error: &NetError) -> JobError {
    let class = match error {
        NetError::Identity { .. } => FailureClass::Identity,
        NetError::Misuse { .. } => FailureClass::Bug,
        _ => FailureClass::Network,
    };
    JobError::new(class, error.to_string())
}
