//! The far end of a job started over ssh: reads one greeting from stdin, answers on stdout, serves one session, ends.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    dialer::{Race, Target, allowed, join, maintain},
    greeting::{Answer, Call, read, unhex, write},
    ssh::{Late, choice_from, congestion_from, listen, tuning},
};
use crate::{
    chunk::ChunkSize,
    engine::{
        FailureClass, Home, JobError, Observer, Options, Session, Silent, TransportChoice, accept, accept_link,
        hear_hello, program, proves, refuse, run_link,
    },
    net::{DialOptions, Fingerprint, Identity, Link, Listener, PeerPolicy, stream_link},
    protocol::{Class, SessionSecret},
};

/// Without any link by then, nobody is coming.
const FIRST_LINK_LIMIT: Duration = Duration::from_secs(30);

/// Serves one job over stdin and stdout.
///
/// # Errors
/// As the job's.
pub async fn stdio(cancel: CancellationToken) -> Result<(), JobError> {
    let (mut from, mut to) = (tokio::io::stdin(), tokio::io::stdout());
    let network = |text: String| JobError::new(FailureClass::Network, text);
    let call: Call = read(&mut from).await.map_err(|e| network(e.to_string()))?;
    let bad = |what: &str| JobError::new(FailureClass::Usage, format!("the greeting's {what} cannot be read"));
    let choice = choice_from(&call.transport).ok_or_else(|| bad("transport"))?;
    let options = Options {
        chunk_size: ChunkSize::from_bytes(call.chunk_bytes).map_err(|e| bad(&e.to_string()))?,
        memory_bytes: call.memory_bytes.min(1 << 30),
        reconnect_timeout: Duration::from_secs(call.reconnect_s.min(24 * 3600)),
        transport: choice,
        congestion: congestion_from(&call.congestion).ok_or_else(|| bad("congestion"))?,
        ..Options::default()
    };
    let session = Session::new(
        unhex(&call.session).ok_or_else(|| bad("session"))?,
        SessionSecret(unhex(&call.secret).ok_or_else(|| bad("secret"))?),
        super::pool(&options),
        options.chunk_size,
    );
    let fingerprint: Fingerprint = call.fingerprint.parse().map_err(|_| bad("fingerprint"))?;
    let identity = Identity::throw_away().map_err(|e| JobError::new(FailureClass::Bug, e.to_string()))?;
    let policy = Arc::new(Late::default());
    policy.expect(fingerprint);
    let (mut listener, mut trouble) = (None, None);
    if choice != TransportChoice::Ssh && !call.reverse {
        match listen(call.ports.0..=call.ports.1, &options, &identity, &policy).await {
            Ok(bound) => listener = Some(bound),
            Err(error) => trouble = Some(error.to_string()),
        }
    }
    let (here, there) = ssh_addresses();
    let answer = Answer {
        program: program().to_owned(),
        fingerprint: identity.fingerprint().to_string(),
        addresses: here.into_iter().collect(),
        port: listener.as_ref().map_or(0, Listener::port),
        trouble,
    };
    write(&mut to, &answer).await.map_err(|e| network(format!("cannot answer over ssh: {e}")))?;
    let mut tasks = JoinSet::new();
    if let Some(listener) = listener {
        tasks.spawn(take_calls(Arc::clone(&session), listener));
    }
    if call.port != 0 {
        let mut addresses: Vec<SocketAddr> =
            call.addresses.iter().copied().chain(there).map(|ip| SocketAddr::new(ip, call.port)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let dial =
            DialOptions { tuning: tuning(&options), ..DialOptions::new(identity, policy as Arc<dyn PeerPolicy>) };
        let target = Target { addresses, options: dial };
        tasks.spawn(call_back(Arc::clone(&session), target, choice, call.connections));
    }
    tasks.spawn(take_stream(Arc::clone(&session), stream_link(from, to, false)));
    let watched = Arc::clone(&session);
    tasks.spawn(async move {
        tokio::time::sleep(FIRST_LINK_LIMIT).await;
        if watched.never_linked() {
            watched.fail(JobError::new(FailureClass::Network, "no link came up within 30 s"));
        }
    });
    let observer: Arc<dyn Observer> = Arc::new(Silent);
    let serve = accept(&session, &Home, options.reconnect_timeout, None, &observer);
    tokio::pin!(serve);
    let outcome = tokio::select! {
        outcome = &mut serve => outcome,
        () = cancel.cancelled() => {
            session.fail(JobError::new(FailureClass::Cancelled, "the far end was told to stop; the same command resumes"));
            serve.await
        }
    };
    session.close("the job is over").await;
    tasks.shutdown().await;
    outcome.map(|_| ())
}

/// Our address and the caller's, as sshd tells them (`SSH_CONNECTION`, see sshd(8)).
fn ssh_addresses() -> (Option<IpAddr>, Option<IpAddr>) {
    let told = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let mut fields = told.split_whitespace();
    let there = fields.next().and_then(|ip| ip.parse().ok());
    let here = fields.nth(1).and_then(|ip| ip.parse().ok());
    (here, there)
}

async fn take_calls(session: Arc<Session>, listener: Listener) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            () = session.over.cancelled() => return listener.close(),
            call = listener.accept() => {
                let Ok(link) = call else { return };
                calls.spawn(take(Arc::clone(&session), link));
            }
            Some(_) = calls.join_next() => {}
        }
    }
}

async fn take(session: Arc<Session>, mut link: Link) {
    match hear_hello(&mut link).await {
        Ok(hello) if proves(&hello, &session.secret, &session.id, &link.info) => {
            if accept_link(&mut link, &session).await.is_ok() {
                drop(run_link(link, &session, true));
            }
        }
        Ok(_) => refuse(&mut link, Class::Identity, "this link belongs to no session here").await,
        Err(error) => tracing::debug!(%error, "a caller said nothing useful"),
    }
}

/// The ssh connection as a link, if the starter makes it one. Its end is the end of the job only where nothing else
/// ever connected.
async fn take_stream(session: Arc<Session>, mut link: Link) {
    match hear_hello_patiently(&mut link).await {
        Some(hello) if proves(&hello, &session.secret, &session.id, &link.info) => {
            if accept_link(&mut link, &session).await.is_ok() {
                run_link(link, &session, true).await;
            }
            if session.links() == 0 && !session.over.is_cancelled() {
                session
                    .fail(JobError::new(FailureClass::Network, "the ssh connection ended; the same command resumes"));
            }
        }
        _ => {
            if session.never_linked() {
                session.fail(JobError::new(FailureClass::Network, "the ssh connection ended before a link was up"));
            }
        }
    }
}

async fn hear_hello_patiently(link: &mut Link) -> Option<crate::protocol::LinkHello> {
    // The starter may turn to this connection at any time, or never.
    crate::engine::hear_hello_whenever(link).await.ok()
}

/// Dials the starter over everything allowed. It accepts what it chooses.
async fn call_back(session: Arc<Session>, target: Target, choice: TransportChoice, connections: usize) {
    let mut race = Race::start(&target, allowed(choice));
    let mut joins = JoinSet::new();
    let mut seen = Vec::new();
    while let Some(candidate) = race.next().await {
        let transport = candidate.link.info.transport;
        if seen.contains(&transport) {
            candidate.link.closer().close("one is enough");
            continue;
        }
        seen.push(transport);
        let (session, remote) = (Arc::clone(&session), candidate.link.info.remote);
        joins.spawn(async move { (transport, remote, join(candidate.link, &session, false, true).await) });
    }
    while let Some(Ok((transport, remote, joined))) = joins.join_next().await {
        if joined.is_ok() {
            let target = Target { addresses: remote.into_iter().collect(), ..target };
            return maintain(session, target, choice, transport, connections).await;
        }
    }
}
