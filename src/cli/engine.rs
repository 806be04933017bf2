//! What the command line asks of the layers below, as one trait, so that commands are tested without a network.

use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    endpoint::{self, Endpoint, Prepared, Settings},
    engine::{Direction, FailureClass, JobError, Observer, Options, Remote, Summary},
    net::{Congestion, Identity, IdentityError, PeerName, Pinned},
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

/// An endpoint that runs in this process, for `demo`.
#[derive(Clone, Debug)]
pub(super) struct Loopback {
    /// The port it got.
    pub(super) port: u16,
    /// The name of its only location.
    pub(super) location: String,
    /// A throw-away identity that it trusts, and a policy that trusts it.
    pub(super) credentials: Credentials,
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

    /// Starts an endpoint on 127.0.0.1 with a free port, one location that is `destination`, and throw-away keys. It ends
    /// when `cancel` does.
    fn loopback(&self, destination: PathBuf, cancel: CancellationToken) -> Job<Loopback>;
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

    fn loopback(&self, destination: PathBuf, cancel: CancellationToken) -> Job<Loopback> {
        Box::pin(async move {
            let broken = |e: IdentityError| JobError::new(FailureClass::Bug, e.to_string());
            let (server, client) = (Identity::throw_away().map_err(broken)?, Identity::throw_away().map_err(broken)?);
            let policy = Arc::new(Pinned::only(server.fingerprint()));
            let known = Pinned::new([(client.fingerprint(), PeerName::new(DEMO_PEER))]);
            let settings = Settings::loopback(DEMO_LOCATION, destination, DEMO_PEER);
            let endpoint = Endpoint::bind(settings, server, Arc::new(known)).await?;
            let port = endpoint.port();
            tokio::spawn(endpoint.serve(cancel));
            Ok(Loopback {
                port,
                location: DEMO_LOCATION.to_owned(),
                credentials: Credentials { identity: client, policy },
            })
        })
    }
}

/// What the demo's endpoint calls its location and its only peer.
const DEMO_LOCATION: &str = "demo";
const DEMO_PEER: &str = "demo";

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::Path,
        sync::{Mutex, PoisonError},
    };

    use super::*;
    use crate::{
        chunk::Digest,
        engine::{
            Action, FileReport, Limit,
            walk::{Found, Kind, Walk},
        },
        net::{Identity, Pinned},
    };

    /// An engine that copies by the standard library, and spoils one file if told so.
    #[derive(Debug, Default)]
    pub(in crate::cli) struct Copier {
        pub(in crate::cli) destination: Mutex<PathBuf>,
        pub(in crate::cli) spoil: bool,
        pub(in crate::cli) refuse: bool,
    }

    impl Copier {
        fn copy(&self, source: &Path, observer: &dyn Observer) -> Summary {
            let destination = self.destination.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut summary = Summary {
                bytes: 0,
                files: 0,
                others: 0,
                skipped: 0,
                hard_links: 0,
                failed: 0,
                seconds: 0.1,
                wire_bytes: 0,
                bytes_resumed: 0,
                transports: Vec::new(),
                transport_reason: String::new(),
                streams: 1,
                controller: String::new(),
                bytes_repeated: 0,
                retransmits: 0,
                tree_digest: None,
                limited_by: Limit::Unknown,
            };
            for found in Walk::new(&[source.to_owned()]).unwrap() {
                let Found::Entry(entry) = found else { continue };
                let name = std::os::unix::ffi::OsStrExt::from_bytes(entry.path.as_bytes());
                let (from, to) = (source.join::<&std::ffi::OsStr>(name), destination.join(name));
                match entry.kind {
                    Kind::Dir => fs::create_dir_all(to).unwrap(),
                    Kind::DirEnd => {}
                    Kind::Symlink { target } => {
                        let target: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&target);
                        symlink(target, to).unwrap();
                    }
                    Kind::File => {
                        let mut bytes = fs::read(from).unwrap();
                        let digest = Some(Digest::of(&bytes));
                        if self.spoil && summary.files == 0 {
                            bytes.push(0);
                        }
                        fs::write(to, &bytes).unwrap();
                        summary.files += 1;
                        summary.bytes += entry.meta.size;
                        let path = entry.path.as_bytes().to_vec();
                        observer.file(&FileReport {
                            path,
                            size: entry.meta.size,
                            digest,
                            action: Action::Copied,
                            evidence: Vec::new(),
                        });
                    }
                }
            }
            summary
        }
    }

    impl Engine for Copier {
        fn run(
            &self,
            direction: Direction,
            _: Remote,
            _: Options,
            _: Means,
            observer: Arc<dyn Observer>,
            _: CancellationToken,
        ) -> Job<Summary> {
            let Direction::Push { sources, .. } = direction else { panic!("the double only pushes") };
            let result = if self.refuse {
                Err(JobError::new(FailureClass::Network, "no answer"))
            } else {
                Ok(self.copy(&sources[0], &*observer))
            };
            Box::pin(async { result })
        }

        fn loopback(&self, destination: PathBuf, _: CancellationToken) -> Job<Loopback> {
            *self.destination.lock().unwrap_or_else(PoisonError::into_inner) = destination;
            let identity = Identity::throw_away().unwrap();
            let policy = Arc::new(Pinned::only(identity.fingerprint()));
            let credentials = Credentials { identity, policy };
            Box::pin(async { Ok(Loopback { port: 1, location: "demo".into(), credentials }) })
        }

        fn serve(&self, prepared: Prepared, cancel: CancellationToken) -> Job<()> {
            Linked.serve(prepared, cancel)
        }

        fn stdio(&self, cancel: CancellationToken) -> Job<()> {
            Linked.stdio(cancel)
        }
    }
}
