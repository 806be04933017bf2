//! Calls a peer over QUIC and TCP at once, chooses, and keeps the links of a session up.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::net_failure;
use crate::{
    engine::{
        FailureClass, JobError, LinkError, Session, TransportChoice, await_answer, class_of, introduce, run_link,
    },
    net::{DialOptions, Link, NetError, Transport, dial},
    protocol::Class,
};

/// Direct links must have come about within this time, or other ways are taken.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// When one transport has answered, the other gets this much longer, or half as long as the first took.
const GRACE: Duration = Duration::from_millis(150);
/// Below this round trip time TCP is chosen when both answer: there the processor is the limit, and it costs less.
const SHORT_PATH: Duration = Duration::from_millis(10);
/// First and longest pause between attempts to bring links back.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A peer whose port is closed is gone: its process holds the session in memory.
const REFUSALS: u32 = 8;

/// Connections of one job over TCP, unless the operator says otherwise.
pub fn tcp_connections() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 8)
}

/// The transports that a choice allows, in no order.
pub(super) fn allowed(choice: TransportChoice) -> &'static [Transport] {
    match choice {
        TransportChoice::Auto => &[Transport::Quic, Transport::Tcp],
        TransportChoice::Quic => &[Transport::Quic],
        TransportChoice::Tcp => &[Transport::Tcp],
        TransportChoice::Ssh => &[],
    }
}

/// Whom to call, and as whom.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) options: DialOptions,
}

/// A connection that came about, and how.
pub(super) struct Candidate {
    pub(super) link: Link,
    pub(super) took: Duration,
    /// The peer called, and waits for our answer to its hello.
    pub(super) accepted: bool,
}

/// All calls of one race.
pub(super) struct Race {
    calls: JoinSet<(Transport, SocketAddr, Duration, Result<Link, NetError>)>,
    pub(super) failures: Vec<(Transport, NetError)>,
}

impl Race {
    pub(super) fn start(target: &Target, transports: &[Transport]) -> Self {
        let mut calls = JoinSet::new();
        for &transport in transports {
            for &address in &target.addresses {
                let options = target.options.clone();
                calls.spawn(async move {
                    let started = Instant::now();
                    let result = dial(transport, address, &options).await;
                    (transport, address, started.elapsed(), result)
                });
            }
        }
        Self { calls, failures: Vec::new() }
    }

    /// The next connection that comes about; `None` when every call has failed.
    pub(super) async fn next(&mut self) -> Option<Candidate> {
        while let Some(ended) = self.calls.join_next().await {
            match ended {
                Ok((_, _, took, Ok(link))) => return Some(Candidate { link, took, accepted: false }),
                Ok((transport, address, _, Err(error))) => {
                    tracing::debug!(transport = transport.word(), %address, %error, "a call failed");
                    self.failures.push((transport, error));
                }
                Err(_) => {}
            }
        }
        None
    }
}

/// The best of the candidates, and why. QUIC's handshake takes one round trip, TCP's with TLS two.
pub(super) fn choose(
    mut candidates: Vec<Candidate>,
    failures: &[(Transport, NetError)],
) -> Option<(Candidate, String)> {
    let has = |candidates: &[Candidate], t| candidates.iter().any(|c| c.link.info.transport == t);
    let (quic, tcp) = (has(&candidates, Transport::Quic), has(&candidates, Transport::Tcp));
    let rtt = candidates.iter().map(round_trip).min()?;
    let shown = format!("{:.1} ms", rtt.as_secs_f64() * 1e3);
    let failed = |t: Transport| failures.iter().find(|f| f.0 == t).map(|f| f.1.to_string());
    let (wanted, why) = match (quic, tcp) {
        (true, true) if rtt < SHORT_PATH => {
            (Transport::Tcp, format!("both QUIC and TCP answered; TCP costs less on a path of {shown}"))
        }
        (true, true) => (Transport::Quic, format!("both QUIC and TCP answered; QUIC bears loss better over {shown}")),
        (true, false) => (Transport::Quic, reason("QUIC", "TCP", failed(Transport::Tcp))),
        (false, _) => (Transport::Tcp, reason("TCP", "QUIC", failed(Transport::Quic))),
    };
    let at = candidates.iter().position(|c| c.link.info.transport == wanted)?;
    let chosen = candidates.swap_remove(at);
    for other in candidates {
        other.link.closer().close("another connection was chosen");
    }
    Some((chosen, why))
}

fn reason(taken: &str, other: &str, failure: Option<String>) -> String {
    match failure {
        Some(failure) => format!("only {taken} answered; {other}: {failure}"),
        None => format!("{taken} answered first"),
    }
}

fn round_trip(candidate: &Candidate) -> Duration {
    let measured = candidate.link.stats().rtt;
    let trips = if candidate.link.info.transport == Transport::Tcp { 2 } else { 1 };
    measured.unwrap_or(candidate.took / trips)
}

/// How long to wait for the other transport once one has answered.
pub(super) fn grace(first: &Candidate) -> Duration {
    GRACE.max(first.took)
}

/// Calls over everything that is allowed and keeps the best.
pub(super) async fn connect(target: &Target, choice: TransportChoice) -> Result<(Link, String), JobError> {
    let mut race = Race::start(target, allowed(choice));
    let mut candidates = Vec::new();
    let mut deadline = tokio::time::Instant::now() + target.options.timeout;
    while let Ok(Some(candidate)) = tokio::time::timeout_at(deadline, race.next()).await {
        if candidates.is_empty() {
            deadline = deadline.min(tokio::time::Instant::now() + grace(&candidate));
        }
        candidates.push(candidate);
        if candidates.len() >= allowed(choice).len() {
            break;
        }
    }
    choose(candidates, &race.failures).map(|(chosen, why)| (chosen.link, why)).ok_or_else(|| {
        // An identity that is refused says more than a port that is closed.
        let told =
            race.failures.iter().find(|f| matches!(f.1, NetError::Identity { .. })).or_else(|| race.failures.first());
        told.map_or_else(|| JobError::new(FailureClass::Network, "no address to call"), |(_, error)| net_failure(error))
    })
}

/// Brings a link into the session and runs it in the background.
pub(super) async fn join(mut link: Link, session: &Arc<Session>, open: bool, await_it: bool) -> Result<(), LinkError> {
    introduce(&mut link, session, open).await?;
    if await_it {
        await_answer(&mut link, session).await?;
    }
    drop(run_link(link, session, await_it));
    Ok(())
}

/// Keeps `wanted` links of one transport up until the session is over; on a dead path the other transport is tried too.
///
/// These links join the session and never open it: a peer that does not know it (any more) has ended it or was started
/// anew, and would begin one in which nothing that was said before has been heard.
pub(super) async fn maintain(
    session: Arc<Session>,
    target: Target,
    choice: TransportChoice,
    mut transport: Transport,
    wanted: usize,
) {
    let (mut pause, mut refusals) = (BACKOFF.0, 0);
    loop {
        if session.over.is_cancelled() {
            return;
        }
        let have = session.links();
        let needed = if transport == Transport::Tcp { wanted } else { 1 };
        if have >= needed {
            pause = BACKOFF.0;
            session.link_change(Duration::from_secs(1)).await;
            continue;
        }
        let mut failure = None;
        let attempt = async {
            for &address in &target.addresses {
                match dial(transport, address, &target.options).await {
                    Ok(link) => match join(link, &session, false, true).await {
                        Ok(()) => return true,
                        Err(error) => failure = Some(error),
                    },
                    Err(error) => failure = Some(error.into()),
                }
            }
            false
        };
        let joined = tokio::select! {
            joined = attempt => joined,
            () = session.over.cancelled() => return,
        };
        if joined {
            (pause, refusals) = (BACKOFF.0, 0);
            continue;
        }
        match failure {
            // The peer has as many links as it wants, or has not noticed yet that the old ones are dead.
            Some(LinkError::Refused { class: Class::Usage, .. }) => {}
            Some(LinkError::Refused { class, text }) if have == 0 => {
                return session.fail(JobError::new(class_of(class), text));
            }
            Some(LinkError::Refused { .. }) => return,
            Some(LinkError::Net(NetError::Refused { .. })) => refusals += 1,
            _ => {}
        }
        if have == 0 {
            if refusals >= REFUSALS {
                return session.fail(JobError::new(
                    FailureClass::Network,
                    "the peer's program is gone: nobody listens at its port any more; the same command resumes",
                ));
            }
            if let (TransportChoice::Auto, Transport::Quic) = (choice, transport) {
                transport = Transport::Tcp;
            } else if let (TransportChoice::Auto, Transport::Tcp) = (choice, transport) {
                transport = Transport::Quic;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = session.over.cancelled() => return,
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
}
