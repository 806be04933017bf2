//! The accept loop of `serve`: finds or opens the session that a link names, for peers that may.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{keyring::Keyring, location::Locations, settings::Settings};
use crate::{
    buf::Pool,
    chunk::ChunkSize,
    engine::{
        FailureClass, JobError, LinkError, Observer, Pace, Session, Silent, accept, accept_link, hear_hello, proves,
        refuse, run_link,
    },
    net::{BindOptions, Fingerprint, HandshakeLimits, Identity, Link, Listener, NetError, PeerPolicy, Tuning},
    protocol::{Class, LinkHello, PROTOCOL_VERSION, SessionId},
};

/// How often the files of keys, peers and rights are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
/// How long a session outlives its links.
const RECONNECT_LIMIT: Duration = Duration::from_secs(600);

/// What an endpoint needs besides its settings.
pub struct Endpoint {
    listener: Listener,
    settings: Settings,
    locations: RwLock<Arc<Locations>>,
    sessions: Mutex<HashMap<SessionId, Open>>,
    // One for each peer that has a session, where there is a limit.
    paces: Mutex<HashMap<String, Weak<Pace>>>,
    over: CancellationToken,
}

struct Open {
    session: Arc<Session>,
    peer: Fingerprint,
    // Rights and limits are given to names; one peer may have several keys.
    name: String,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("port", &self.listener.port()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Binds, as this identity, for the peers that the policy knows.
    ///
    /// # Errors
    /// Destination (a location), network (the port), identity.
    pub async fn bind(
        settings: Settings,
        identity: Identity,
        policy: Arc<dyn PeerPolicy>,
    ) -> Result<Arc<Self>, JobError> {
        let locations = Arc::new(Locations::open(&settings)?);
        let listener = Listener::bind(BindOptions {
            addr: settings.listen,
            ports: settings.port..=settings.port,
            quic: true,
            tcp: true,
            identity,
            policy,
            limits: HandshakeLimits::default(),
            tuning: Tuning::default(),
        })
        .await
        .map_err(|e| JobError::new(FailureClass::Network, e.to_string()))?;
        Ok(Arc::new(Self {
            listener,
            settings,
            locations: RwLock::new(locations),
            sessions: Mutex::default(),
            paces: Mutex::default(),
            over: CancellationToken::new(),
        }))
    }

    /// The port that it listens on, UDP and TCP.
    pub fn port(&self) -> u16 {
        self.listener.port()
    }

    /// Why QUIC is not served, if it is not.
    pub fn without_quic(&self) -> Option<&str> {
        self.listener.without_quic()
    }

    /// Takes other keys, peers and rights. Sessions under way go on.
    ///
    /// # Errors
    /// What is wrong with the new ones; the old ones stay.
    pub fn reload(&self, settings: &Settings, keyring: &Keyring) -> Result<(), JobError> {
        let identity = keyring.identity().map_err(|e| JobError::new(FailureClass::Identity, e.to_string()))?;
        let policy = keyring.policy().map_err(|e| JobError::new(FailureClass::Identity, e.to_string()))?;
        let mut locations = self.locations.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = Arc::new(locations.with_rights_of(settings)?);
        self.listener.reload(&identity, policy).map_err(|e| JobError::new(FailureClass::Identity, e.to_string()))?;
        *locations = fresh;
        Ok(())
    }

    /// Serves until `cancel`. Sessions under way are then ended, resumable.
    pub async fn serve(self: Arc<Self>, cancel: CancellationToken) {
        let mut calls = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                call = self.listener.accept() => match call {
                    Ok(link) => {
                        let here = Arc::clone(&self);
                        calls.spawn(async move { here.take(link).await });
                    }
                    Err(NetError::Closed { .. }) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a call could not be taken");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = calls.join_next() => {}
            }
        }
        self.over.cancel();
        self.listener.close();
        let open: Vec<Arc<Session>> = {
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.drain().map(|(_, open)| open.session).collect()
        };
        for session in &open {
            session.fail(JobError::new(
                FailureClass::Cancelled,
                "the endpoint is being stopped; the same command resumes",
            ));
        }
        let ended = async { while calls.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(15), ended).await;
    }

    async fn take(self: Arc<Self>, mut link: Link) {
        match hear_hello(&mut link).await {
            Ok(hello) => {
                if let Err((class, text)) = self.admit(&mut link, &hello).await {
                    tracing::info!(peer = %link.info.peer.name, text, "a link was refused");
                    refuse(&mut link, class, &text).await;
                    return;
                }
                let found = self.find(&hello.session);
                let Some(session) = found else { return };
                if accept_link(&mut link, &session).await.is_ok() {
                    run_link(link, &session, true).await;
                }
            }
            Err(LinkError::Protocol(error)) => {
                tracing::info!(peer = %link.info.peer.name, %error, "a caller spoke no ccat-xfer");
                refuse(&mut link, Class::Network, &error.to_string()).await;
            }
            Err(error) => tracing::debug!(%error, "a caller said nothing useful"),
        }
    }

    fn find(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|open| Arc::clone(&open.session))
    }

    /// Lets the link into its session, opening it if it may be.
    async fn admit(self: &Arc<Self>, link: &mut Link, hello: &LinkHello) -> Result<(), (Class, String)> {
        // Who speaks a later version too is answered in ours.
        if hello.version < PROTOCOL_VERSION {
            return Err((
                Class::Network,
                format!(
                    "protocol version {} is not spoken here, only {PROTOCOL_VERSION}; update the older end",
                    hello.version
                ),
            ));
        }
        let peer = link.info.peer.clone();
        let identity = |text: &str| (Class::Identity, text.to_owned());
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = sessions.get(&hello.session) {
            if open.peer != peer.fingerprint || !proves(hello, &open.session.secret, &hello.session, &link.info) {
                return Err(identity("this link does not belong to the session that it names"));
            }
            if open.session.links() >= self.settings.max_links_per_session {
                return Err((Class::Usage, "the session has as many links as it may have".to_owned()));
            }
            return Ok(());
        }
        let Some(secret) = &hello.open else {
            return Err((
                Class::Network,
                "this session is unknown here, perhaps since the endpoint was restarted; the same command resumes"
                    .to_owned(),
            ));
        };
        if !proves(hello, secret, &hello.session, &link.info) {
            return Err(identity("this link does not belong to the session that it names"));
        }
        if self.over.is_cancelled() {
            return Err((Class::Network, "the endpoint is being stopped".to_owned()));
        }
        let of_peer = sessions.values().filter(|open| open.name == peer.name.as_str()).count();
        if sessions.len() >= self.settings.max_sessions || of_peer >= self.settings.max_sessions_per_peer {
            return Err((
                Class::Network,
                "the endpoint has as many sessions as it may have; try again later".to_owned(),
            ));
        }
        let chunk_size = ChunkSize::DEFAULT;
        let buffers = (self.settings.memory_per_session / chunk_size.buffer_bytes()).max(6);
        let pool = Pool::new(buffers, chunk_size.buffer_bytes());
        let session = Session::new(hello.session, secret.clone(), pool, chunk_size);
        let name = peer.name.as_str().to_owned();
        let open = Open { session: Arc::clone(&session), peer: peer.fingerprint, name: name.clone() };
        sessions.insert(hello.session, open);
        drop(sessions);
        let here = Arc::clone(self);
        tokio::spawn(async move { here.conduct(session, &name).await });
        Ok(())
    }

    /// The rate that all sessions of this peer keep to together.
    fn pace_of(&self, peer: &str) -> Option<Arc<Pace>> {
        let limit = self.settings.rate_limit?;
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.retain(|_, pace| pace.strong_count() > 0);
        if let Some(pace) = paces.get(peer).and_then(Weak::upgrade) {
            return Some(pace);
        }
        let pace = Arc::new(Pace::new(Some(limit)));
        paces.insert(peer.to_owned(), Arc::downgrade(&pace));
        Some(pace)
    }

    async fn conduct(self: Arc<Self>, session: Arc<Session>, peer: &str) {
        let places = self.locations.read().unwrap_or_else(PoisonError::into_inner).seen_by(peer);
        let observer: Arc<dyn Observer> = Arc::new(Silent);
        let outcome = accept(&session, &places, RECONNECT_LIMIT, self.pace_of(peer), &observer).await;
        session.close("the job is over").await;
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session.id);
        match outcome {
            Ok(summary) => tracing::info!(
                peer,
                files = summary.files,
                bytes = summary.bytes,
                failed = summary.failed,
                seconds = summary.seconds,
                "job complete"
            ),
            Err(error) => tracing::warn!(peer, class = error.class.word(), %error, "job ended"),
        }
    }
}

/// An endpoint that has been configured and confined, and does not listen yet.
#[derive(Debug)]
pub struct Prepared {
    settings: Settings,
    file: PathBuf,
    keyring: Keyring,
    confined: Result<&'static str, String>,
}

/// Reads the settings and confines the calling thread, and all threads that it will start, to what they name. To be
/// called before the runtime has threads: Landlock does not reach those that exist.
///
/// # Errors
/// Usage: the settings. Identity: no key, or nobody trusted.
pub fn prepare(file: &Path, identity_folder: &Path) -> Result<Prepared, JobError> {
    let settings = Settings::load(file).map_err(|e| JobError::new(FailureClass::Usage, e.to_string()))?;
    let keyring = Keyring::new(identity_folder);
    // Found wanting now, while the message still reaches a terminal.
    keyring
        .identity()
        .and_then(|_| keyring.policy())
        .map_err(|e| JobError::new(FailureClass::Identity, e.to_string()))?;
    Locations::open(&settings)?;
    let confined = if settings.sandbox {
        super::sandbox::confine(&settings, identity_folder, file).map_err(|e| e.to_string())
    } else {
        Err("serve.sandbox = false".to_owned())
    };
    Ok(Prepared { settings, file: file.to_owned(), keyring, confined })
}

/// Runs a prepared endpoint until `cancel`. Keys, peers and rights are reloaded on SIGHUP, and within 2 s of a change of
/// their files. A file that is found half written is refused, and read again when it has changed once more.
///
/// # Errors
/// What keeps it from starting.
pub async fn serve(prepared: Prepared, cancel: CancellationToken) -> Result<(), JobError> {
    let Prepared { settings, file, keyring, confined } = prepared;
    let identity_error = |e: super::keyring::KeyringError| JobError::new(FailureClass::Identity, e.to_string());
    let identity = keyring.identity().map_err(identity_error)?;
    let policy = keyring.policy().map_err(identity_error)?;
    match &confined {
        Ok(level) => tracing::info!(level, "confined to the locations and the identity folder"),
        Err(why) => tracing::warn!(why, "NOT confined to the locations"),
    }
    let endpoint = Endpoint::bind(settings.clone(), identity, policy).await?;
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
        .map_err(|e| JobError::new(FailureClass::Bug, format!("cannot listen for SIGHUP: {e}")))?;
    let shown = SocketWord(settings.listen, endpoint.port());
    tracing::info!(listen = %shown, "serving QUIC and TCP");
    if let Some(why) = endpoint.without_quic() {
        tracing::warn!(why, "QUIC is not served");
    }
    let watched: Arc<[PathBuf]> = keyring.files().into_iter().chain([file.clone()]).collect();
    let mut seen = look(&watched).await;
    let mut every = tokio::time::interval(RELOAD_EVERY);
    let serving = tokio::spawn(Arc::clone(&endpoint).serve(cancel.clone()));
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            _ = hangup.recv() => {
                seen = look(&watched).await;
                reload(&endpoint, &file, &keyring);
            }
            _ = every.tick() => {
                let found = look(&watched).await;
                if found != seen {
                    seen = found;
                    reload(&endpoint, &file, &keyring);
                }
            }
        }
    }
    serving.await.map_err(|_| JobError::new(FailureClass::Bug, "the endpoint ended badly"))
}

fn reload(endpoint: &Endpoint, file: &Path, keyring: &Keyring) {
    match Settings::load(file) {
        Ok(fresh) => match endpoint.reload(&fresh, keyring) {
            Ok(()) => tracing::info!("keys, peers and rights reloaded"),
            Err(error) => tracing::error!(%error, "the old keys, peers and rights stay"),
        },
        Err(error) => tracing::error!(%error, "the old settings stay"),
    }
}

/// What tells one state of the files from the next: inode, length and time of change of each.
async fn look(files: &Arc<[PathBuf]>) -> Option<Vec<Option<(u64, u64, i64, i64)>>> {
    use std::os::unix::fs::MetadataExt as _;
    let files = Arc::clone(files);
    let stamp = |file: &PathBuf| std::fs::metadata(file).ok().map(|m| (m.ino(), m.len(), m.ctime(), m.ctime_nsec()));
    tokio::task::spawn_blocking(move || files.iter().map(stamp).collect()).await.ok()
}

struct SocketWord(IpAddr, u16);

impl std::fmt::Display for SocketWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::net::SocketAddr::new(self.0, self.1).fmt(f)
    }
}
