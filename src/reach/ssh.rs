//! `[USER@]HOST:PATH`: a program started over ssh for one job.
//!
//! Ssh authenticates both ends and carries one greeting each way: throw-away keys, a session and its secret, and where
//! each end listens. Then both dial each other over QUIC and TCP. If nothing connects, the ssh connection itself becomes
//! the link; otherwise it is needed no more.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Stdio,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    process::{ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    Reached,
    dialer::{CONNECT_LIMIT, Candidate, Race, Target, allowed, choose, grace, join, maintain, tcp_connections},
    endpoint::{link_failure, resolve},
    greeting::{Answer, Call, hex, read, write},
};
use crate::{
    chunk::plain_text,
    engine::{
        FailureClass, JobError, Observer, Options, Remote, Session, TransportChoice, accept_link, hear_hello, program,
        proves, refuse, run_link,
    },
    net::{
        BindOptions, Congestion, DialOptions, Fingerprint, HandshakeLimits, Identity, Link, Listener, NetError,
        PeerName, PeerPolicy, Refusal, Transport, Tuning, stream_link,
    },
    protocol::Class,
};

/// How long the ssh process may take to end once its job is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a login, with whatever is typed for it, and the far program's answer may take.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// Accepts the one key that the greeting names, once it has come.
#[derive(Debug, Default)]
pub(super) struct Late(OnceLock<Fingerprint>);

impl Late {
    pub(super) fn expect(&self, fingerprint: Fingerprint) {
        let _ = self.0.set(fingerprint);
    }
}

impl PeerPolicy for Late {
    fn judge(&self, chain: &[rustls_pki_types::CertificateDer<'_>]) -> Result<PeerName, Refusal> {
        let shown = chain.first().ok_or_else(|| Refusal::Malformed("no certificate".to_owned()))?;
        let found = Fingerprint::of(shown)?;
        match self.0.get() {
            Some(expected) if *expected == found => Ok(PeerName::new("peer")),
            _ => Err(Refusal::UnknownKey(found)),
        }
    }
}

/// The ssh process of a job.
pub(crate) struct Child(tokio::process::Child);

impl Child {
    pub(super) async fn end(mut self) {
        if tokio::time::timeout(LAST_WORDS, self.0.wait()).await.is_err() {
            let _ = self.0.kill().await;
        }
    }
}

/// Windows and limits of a job's links.
pub(super) fn tuning(options: &Options) -> Tuning {
    Tuning { congestion: options.congestion, ..Tuning::default() }
}

/// The congestion controller of a link, as far as it can be told.
pub(super) fn controller(link: &Link, options: &Options) -> String {
    match link.info.transport {
        Transport::Quic => options.congestion.word().to_owned(),
        Transport::Tcp => "kernel".to_owned(),
        Transport::Stream => "ssh".to_owned(),
    }
}

fn spawn(rsh: &[String], target: &str, remote_path: &str) -> Result<tokio::process::Child, JobError> {
    let usage = |text: String| JobError::new(FailureClass::Usage, text);
    let (name, arguments) = rsh.split_first().ok_or_else(|| usage("--rsh is empty".to_owned()))?;
    if target.starts_with('-') || target.contains("@-") {
        return Err(usage(format!("{target:?} is no host name: it begins with '-'")));
    }
    Command::new(name)
        .args(arguments)
        .arg(target)
        .arg(format!("{remote_path} --stdio"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| JobError::new(FailureClass::Network, format!("cannot start {name:?}: {e}; is it installed?")))
}

/// The address that ssh would call, after its configuration.
async fn host_of(rsh: &[String], target: &str) -> String {
    let plain = target.rsplit('@').next().unwrap_or(target).trim_matches(['[', ']']).to_owned();
    let Some(name) = rsh.first().filter(|name| name.rsplit('/').next() == Some("ssh")) else { return plain };
    let asked =
        Command::new(name).args(&rsh[1..]).args(["-G", target]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(Ok(output)) = tokio::time::timeout(Duration::from_secs(3), asked).await else { return plain };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(|l| l.strip_prefix("hostname ")).map_or(plain, str::to_owned)
}

/// Our own address on the way to each of these. Nothing is sent.
fn local_addresses(to: &[SocketAddr]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in to {
        let any: SocketAddr =
            if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let local = UdpSocket::bind(any).and_then(|s| s.connect(address).and_then(|()| s.local_addr()));
        if let Ok(local) = local
            && !found.contains(&local.ip())
        {
            found.push(local.ip());
        }
    }
    found
}

pub(super) async fn listen(
    ports: std::ops::RangeInclusive<u16>,
    options: &Options,
    identity: &Identity,
    policy: &Arc<Late>,
) -> Result<Listener, NetError> {
    let kinds = allowed(options.transport);
    Listener::bind(BindOptions {
        addr: Ipv6Addr::UNSPECIFIED.into(),
        ports,
        quic: kinds.contains(&Transport::Quic),
        tcp: kinds.contains(&Transport::Tcp),
        identity: identity.clone(),
        policy: Arc::clone(policy) as Arc<dyn PeerPolicy>,
        limits: HandshakeLimits::default(),
        tuning: tuning(options),
    })
    .await
}

/// Starts the far program and brings up the links of the session.
pub(super) async fn reach(
    session: &Arc<Session>,
    remote: &Remote,
    options: &Options,
    observer: &Arc<dyn Observer>,
) -> Result<Reached, JobError> {
    let Remote::Ssh { target, rsh, remote_path, ports, data_address, reverse } = remote else {
        return Err(JobError::new(FailureClass::Bug, "not an ssh peer"));
    };
    let identity = Identity::throw_away().map_err(|e| JobError::new(FailureClass::Bug, e.to_string()))?;
    let policy = Arc::new(Late::default());
    let mut child = spawn(rsh, target, remote_path)?;
    let (Some(mut to), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(JobError::new(FailureClass::Bug, "the ssh process has no pipes"));
    };
    let host = match data_address {
        Some(address) => address.clone(),
        None => host_of(rsh, target).await,
    };
    let direct = options.transport != TransportChoice::Ssh;
    let listener = if direct {
        match listen(ports.clone(), options, &identity, &policy).await {
            Ok(listener) => Some(listener),
            Err(error) => {
                observer.warning(&format!("not listening for the far side: {error}"));
                None
            }
        }
    } else {
        None
    };
    let known = if direct { resolve(&host, 9).await.unwrap_or_default() } else { Vec::new() };
    let connections = options.streams.and_then(|n| usize::try_from(n.get()).ok()).unwrap_or_else(tcp_connections);
    let call = Call {
        program: program().to_owned(),
        session: hex(&session.id),
        secret: hex(&session.secret.0),
        fingerprint: identity.fingerprint().to_string(),
        addresses: local_addresses(&known),
        port: listener.as_ref().map_or(0, Listener::port),
        transport: choice_word(options.transport).to_owned(),
        congestion: options.congestion.word().to_owned(),
        reverse: *reverse,
        ports: (*ports.start(), *ports.end()),
        connections,
        chunk_bytes: options.chunk_size.bytes(),
        memory_bytes: options.memory_bytes,
        reconnect_s: options.reconnect_timeout.as_secs(),
    };
    let answer: Answer = match tokio::time::timeout(GREETING_LIMIT, exchange(&mut to, &mut from, &call)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(greeting_failure(child, target, &error).await),
        Err(_) => {
            let limit = GREETING_LIMIT.as_secs();
            return Err(JobError::new(
                FailureClass::Network,
                format!(
                    "{target}: no ccat-xfer answered over ssh within {limit} s; does a shell wait for something there?"
                ),
            ));
        }
    };
    let fingerprint = answer
        .fingerprint
        .parse::<Fingerprint>()
        .map_err(|e| JobError::new(FailureClass::Network, format!("the far side's fingerprint cannot be read: {e}")))?;
    policy.expect(fingerprint);
    if let Some(trouble) = &answer.trouble
        && direct
        && !reverse
    {
        observer.warning(&format!("the far side cannot listen: {}", plain_text(trouble.as_bytes())));
    }
    let addresses = far_addresses(&known, &answer, data_address.is_some());
    let dial = DialOptions { tuning: tuning(options), ..DialOptions::new(identity, policy as Arc<dyn PeerPolicy>) };
    let target = Target { addresses, options: dial };
    let mut tasks = JoinSet::new();
    let (tx, mut arrivals) = mpsc::channel(8);
    if let Some(listener) = listener {
        tasks.spawn(take_calls(Arc::clone(session), listener, tx));
    }
    let race = if direct && !reverse { allowed(options.transport) } else { &[] };
    let chosen = if direct { compete(&target, race, &mut arrivals).await } else { Err(Vec::new()) };
    let fallback = Arc::new(Mutex::new(Some((from, to))));
    match chosen {
        Ok((candidate, why)) => {
            let transport = candidate.link.info.transport;
            let who = if candidate.accepted { "dialed by the far side" } else { "dialed from here" };
            session.choose(format!("{why}; {who}"), controller(&candidate.link, options));
            let (remote, candidate_accepted) = (candidate.link.info.remote, candidate.accepted);
            if candidate_accepted {
                let mut link = candidate.link;
                accept_link(&mut link, session).await.map_err(|e| link_failure(&e))?;
                drop(run_link(link, session, true));
            } else {
                join(candidate.link, session, false, true).await.map_err(|e| link_failure(&e))?;
                let target = Target { addresses: remote.into_iter().collect(), ..target };
                tasks.spawn(maintain(Arc::clone(session), target, options.transport, transport, connections));
            }
            // Where this side dials, the far side's calls count only while nothing else works.
            let wanted = if candidate_accepted { connections } else { 1 };
            tasks.spawn(welcome_more(Arc::clone(session), arrivals, wanted));
            tasks.spawn(fall_back(Arc::clone(session), fallback, candidate_accepted));
        }
        Err(failures) => {
            let why = if direct {
                let reasons: Vec<String> = failures.iter().map(|(t, e)| format!("{}: {e}", t.word())).collect();
                let reasons = if reasons.is_empty() { "nobody called".to_owned() } else { reasons.join("; ") };
                let text = format!("no direct connection came about ({reasons})");
                if options.transport != TransportChoice::Auto {
                    return Err(JobError::new(
                        FailureClass::Network,
                        format!("{text}; try --transport auto or --reverse"),
                    ));
                }
                observer.warning(&format!("{text}; the data goes through the ssh connection"));
                text
            } else {
                "asked for".to_owned()
            };
            session.choose(why, "ssh".to_owned());
            use_stream(session, &fallback).await?;
        }
    }
    Ok(Reached { tasks, ssh: Some(Child(child)) })
}

type Pipes = Arc<Mutex<Option<(ChildStdout, ChildStdin)>>>;

async fn use_stream(session: &Arc<Session>, pipes: &Pipes) -> Result<(), JobError> {
    let taken = pipes.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((from, to)) = taken else {
        return Err(JobError::new(FailureClass::Network, "the ssh connection has been used up"));
    };
    join(stream_link(from, to, true), session, false, true).await.map_err(|e| link_failure(&e))
}

/// Moves the session to the ssh connection when its direct links stay away.
async fn fall_back(session: Arc<Session>, pipes: Pipes, accepted: bool) {
    // Whoever dials tries for a while first; where the far side dials, this side can only wait.
    let patience = if accepted { Duration::from_secs(20) } else { Duration::from_secs(10) };
    while !session.over.is_cancelled() {
        if session.lost_for().is_some_and(|(lost, _)| lost > patience) {
            if let Err(error) = use_stream(&session, &pipes).await {
                tracing::debug!(%error, "no way over ssh either");
            }
            return;
        }
        session.link_change(Duration::from_secs(1)).await;
    }
}

async fn exchange(
    to: &mut ChildStdin,
    from: &mut ChildStdout,
    call: &Call,
) -> Result<Answer, super::greeting::GreetingError> {
    // A program that is not there closes the pipe: what it printed instead says more than the broken pipe.
    let written = write(to, call).await;
    match read(from).await {
        Ok(answer) => written.map(|()| answer).map_err(Into::into),
        Err(error) => Err(error),
    }
}

async fn greeting_failure(
    mut child: tokio::process::Child,
    target: &str,
    error: &super::greeting::GreetingError,
) -> JobError {
    let status = tokio::time::timeout(LAST_WORDS, child.wait()).await;
    let status = match status {
        Ok(Ok(status)) => format!("; the remote shell ended with {status}"),
        _ => String::new(),
    };
    let hint = match &status {
        s if s.contains("127") => "; is ccat-xfer installed there? --remote-path names the program",
        s if s.contains("255") => "; can you log in with ssh?",
        _ => "",
    };
    JobError::new(FailureClass::Network, format!("{target}: {error}{status}{hint}"))
}

fn far_addresses(known: &[SocketAddr], answer: &Answer, given: bool) -> Vec<SocketAddr> {
    if answer.port == 0 {
        return Vec::new();
    }
    let mut found: Vec<SocketAddr> = known.iter().map(|a| SocketAddr::new(a.ip(), answer.port)).collect();
    if !given {
        found.extend(answer.addresses.iter().map(|ip| SocketAddr::new(*ip, answer.port)));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// A call that proved to belong to the session and waits to be accepted.
pub(super) struct Arrival(pub(super) Link);

/// Takes calls, and hands on those that belong to the session.
async fn take_calls(session: Arc<Session>, listener: Listener, to: mpsc::Sender<Arrival>) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            () = session.over.cancelled() => return listener.close(),
            call = listener.accept() => {
                let Ok(mut link) = call else { return };
                let (session, to) = (Arc::clone(&session), to.clone());
                calls.spawn(async move {
                    match hear_hello(&mut link).await {
                        Ok(hello) if proves(&hello, &session.secret, &session.id, &link.info) => {
                            let _ = to.send(Arrival(link)).await;
                        }
                        Ok(_) => refuse(&mut link, Class::Identity, "this link belongs to no session here").await,
                        Err(error) => tracing::debug!(%error, "a caller said nothing useful"),
                    }
                });
            }
            Some(_) = calls.join_next() => {}
        }
    }
}

/// Waits for connections in both directions, and chooses.
async fn compete(
    target: &Target,
    transports: &[Transport],
    arrivals: &mut mpsc::Receiver<Arrival>,
) -> Result<(Candidate, String), Vec<(Transport, NetError)>> {
    let mut race = Race::start(target, transports);
    let started = Instant::now();
    let mut deadline = tokio::time::Instant::now() + CONNECT_LIMIT;
    let mut candidates: Vec<Candidate> = Vec::new();
    let (mut calling, mut hearing) = (true, true);
    while calling || hearing {
        let candidate = tokio::select! {
            candidate = race.next(), if calling => match candidate {
                Some(candidate) => candidate,
                None => {
                    calling = false;
                    continue;
                }
            },
            arrival = arrivals.recv(), if hearing => match arrival {
                Some(Arrival(link)) => Candidate { link, took: started.elapsed(), accepted: true },
                None => {
                    hearing = false;
                    continue;
                }
            },
            () = tokio::time::sleep_until(deadline) => break,
        };
        deadline = deadline.min(tokio::time::Instant::now() + grace(&candidate));
        candidates.push(candidate);
        let kinds = |t| candidates.iter().any(|c| c.link.info.transport == t && !c.accepted);
        if transports.iter().all(|&t| kinds(t)) && !transports.is_empty() {
            break;
        }
    }
    choose(candidates, &race.failures).ok_or(race.failures)
}

/// Takes further links from the far side, up to the number wanted.
async fn welcome_more(session: Arc<Session>, mut arrivals: mpsc::Receiver<Arrival>, wanted: usize) {
    while let Some(Arrival(mut link)) = arrivals.recv().await {
        if session.links() >= wanted {
            refuse(&mut link, Class::Usage, "enough links").await;
            continue;
        }
        match accept_link(&mut link, &session).await {
            Ok(()) => {
                drop(run_link(link, &session, true));
            }
            Err(error) => tracing::debug!(%error, "a link left while it was accepted"),
        }
    }
}

pub(super) fn choice_word(choice: TransportChoice) -> &'static str {
    match choice {
        TransportChoice::Auto => "auto",
        TransportChoice::Quic => "quic",
        TransportChoice::Tcp => "tcp",
        TransportChoice::Ssh => "ssh",
    }
}

pub(super) fn choice_from(word: &str) -> Option<TransportChoice> {
    [TransportChoice::Auto, TransportChoice::Quic, TransportChoice::Tcp, TransportChoice::Ssh]
        .into_iter()
        .find(|c| choice_word(*c) == word)
}

pub(super) fn congestion_from(word: &str) -> Option<Congestion> {
    [Congestion::Model, Congestion::Cubic].into_iter().find(|c| c.word() == word)
}
