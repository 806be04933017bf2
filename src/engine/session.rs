//! A session: the control channel, the links that carry it now, and the machine that it drives.
//!
//! Locking: one short mutex guards channel, links and machine. Nothing is awaited under it and no disk is touched.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{FailureClass, JobError, TransportKind, receive::Destination, send::Sources};
use crate::{
    buf::Pool,
    chunk::ChunkSize,
    net::{Closer, Transport},
    protocol::{Channel, Class, LinkId, Message, ProtocolError, Receiver, Sender, SessionId, SessionSecret, Work},
};

/// Messages that may wait for a machine during the handshake.
const MAX_EARLY_MESSAGES: usize = 4096;
/// Their bytes, beyond which nothing more is taken from links.
const MAX_EARLY_BYTES: usize = 4 << 20;

/// What a session is made of; shared by its links' tasks and its driver.
pub struct Session {
    /// Its name on links.
    pub id: SessionId,
    /// Proves that a link belongs to it.
    pub secret: SessionSecret,
    /// Buffers for chunks.
    pub pool: Pool,
    /// Cancelled when the session is over, however it ended.
    pub over: CancellationToken,
    state: Mutex<State>,
    // Something to transmit.
    transmit: Notify,
    // Work to claim, actions to take, links gone or come: whoever drives should look.
    progress: Notify,
    // A link came or went.
    link_ended: Notify,
    started: Instant,
    figures: Figures,
    sources: OnceLock<Arc<Sources>>,
    destination: OnceLock<Arc<Destination>>,
}

#[derive(Debug, Default)]
struct Figures {
    wire_bytes: AtomicU64,
    retransmits: AtomicU64,
}

/// The mutable part of a session.
pub(super) struct State {
    pub(super) channel: Channel,
    pub(super) links: BTreeMap<LinkId, LinkEntry>,
    next_link: LinkId,
    pub(super) machine: Machine,
    // With the bytes that each one took on the wire.
    early: VecDeque<(Message, usize)>,
    early_bytes: usize,
    pub(super) failure: Option<JobError>,
    lost_since: Option<Instant>,
    last_link_error: Option<String>,
    transports: Vec<TransportKind>,
    peak_links: u32,
    pub(super) chunk_size: ChunkSize,
    chosen: (String, String),
}

/// The machine of a session.
#[derive(Debug)]
pub(super) enum Machine {
    /// The handshake is not over.
    None,
    /// This end sends.
    Sender(Box<Sender>),
    /// This end receives.
    Receiver(Box<Receiver>),
}

/// What the links of a session moved.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkFigures {
    pub(super) wire_bytes: u64,
    pub(super) retransmits: u64,
    pub(super) transports: Vec<TransportKind>,
    pub(super) peak_links: u32,
}

/// One live link.
pub(super) struct LinkEntry {
    pub(super) transport: Transport,
    pub(super) closer: Closer,
    pub(super) heard: Instant,
    pub(super) ping_sent: Option<Instant>,
    pub(super) pong_due: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Session {
    /// A session without links.
    pub fn new(id: SessionId, secret: SessionSecret, pool: Pool, chunk_size: ChunkSize) -> Arc<Self> {
        Arc::new(Self {
            id,
            secret,
            pool,
            over: CancellationToken::new(),
            state: Mutex::new(State {
                channel: Channel::new(),
                links: BTreeMap::new(),
                next_link: 1,
                machine: Machine::None,
                early: VecDeque::new(),
                early_bytes: 0,
                failure: None,
                lost_since: Some(Instant::now()),
                last_link_error: None,
                transports: Vec::new(),
                peak_links: 0,
                chunk_size,
                chosen: Default::default(),
            }),
            transmit: Notify::new(),
            progress: Notify::new(),
            link_ended: Notify::new(),
            started: Instant::now(),
            figures: Figures::default(),
            sources: OnceLock::new(),
            destination: OnceLock::new(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the session began: the clock of its machines.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Runs `f` on the sending machine, then sends what it has to say. `None` if this end does not send.
    pub(super) fn with_sender<R>(&self, f: impl FnOnce(&mut Sender) -> R) -> Option<R> {
        let mut state = self.lock();
        let Machine::Sender(sender) = &mut state.machine else { return None };
        let result = f(sender);
        self.pump(&mut state);
        Some(result)
    }

    /// As [`Self::with_sender`], where nothing is said and nobody need look.
    pub(super) fn with_sender_quietly<R>(&self, f: impl FnOnce(&mut Sender) -> R) -> Option<R> {
        let mut state = self.lock();
        let Machine::Sender(sender) = &mut state.machine else { return None };
        Some(f(sender))
    }

    /// The next work for a link, unless the peer has yet to hear too much of what was done already.
    pub(super) fn claim(&self) -> Option<Work> {
        let mut state = self.lock();
        if state.channel.is_congested() {
            return None;
        }
        let Machine::Sender(sender) = &mut state.machine else { return None };
        sender.next_work()
    }

    /// Waits while the receiving machine has too much to do to take more from links, or nobody has yet heard what came.
    pub(super) async fn uncongested(&self) {
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let congested = {
                let state = self.lock();
                match &state.machine {
                    Machine::None => state.early_bytes > MAX_EARLY_BYTES,
                    Machine::Sender(_) => false,
                    Machine::Receiver(receiver) => receiver.is_congested(),
                }
            };
            if self.over.is_cancelled() || !congested {
                return;
            }
            changed.await;
        }
    }

    /// Waits while the peer has yet to hear too much of what was said already.
    pub(super) async fn unburdened(&self) {
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.over.is_cancelled() || self.failure().is_some() || !self.lock().channel.is_congested() {
                return;
            }
            changed.await;
        }
    }

    /// Notes that a chunk or pack is about to travel on `link`; false if the link is gone.
    pub(super) fn mark_sent(&self, link: LinkId, sent: impl FnOnce(&mut Sender)) -> bool {
        let mut state = self.lock();
        let alive = state.links.contains_key(&link);
        if alive && let Machine::Sender(sender) = &mut state.machine {
            sent(sender);
        }
        alive
    }

    /// Gives the links what they send from.
    pub(super) fn set_sources(&self, sources: Arc<Sources>) {
        let _ = self.sources.set(sources);
        self.progress.notify_waiters();
    }

    /// What this end sends from; `None` if it does not send, or the session is over.
    pub(super) async fn sources(&self) -> Option<Arc<Sources>> {
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(sources) = self.sources.get() {
                return Some(Arc::clone(sources));
            }
            if self.over.is_cancelled() || matches!(self.lock().machine, Machine::Receiver(_)) {
                return None;
            }
            tokio::select! {
                () = changed => {}
                () = self.over.cancelled() => return None,
            }
        }
    }

    /// Gives the links what they write to.
    pub(super) fn set_destination(&self, destination: Arc<Destination>) {
        let _ = self.destination.set(destination);
        self.progress.notify_waiters();
    }

    /// What this end writes to, waiting for the handshake; `None` if it does not receive.
    pub(super) async fn destination(&self) -> Option<Arc<Destination>> {
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(destination) = self.destination.get() {
                return Some(Arc::clone(destination));
            }
            if self.over.is_cancelled() || matches!(self.lock().machine, Machine::Sender(_)) {
                return None;
            }
            tokio::select! {
                () = changed => {}
                () = self.over.cancelled() => return None,
            }
        }
    }

    /// Sends what the machine has to say and wakes everybody.
    pub(super) fn pump_now(&self) {
        self.pump(&mut self.lock());
    }

    pub(super) fn wake_transmit(&self) {
        self.transmit.notify_waiters();
    }

    /// As [`Self::with_receiver`], where nothing is said and nobody need look.
    pub(super) fn with_receiver_quietly<R>(&self, f: impl FnOnce(&mut Receiver) -> R) -> Option<R> {
        let mut state = self.lock();
        let Machine::Receiver(receiver) = &mut state.machine else { return None };
        Some(f(receiver))
    }

    /// Runs `f` on the receiving machine, then sends what it has to say. `None` if this end does not receive.
    pub(super) fn with_receiver<R>(&self, f: impl FnOnce(&mut Receiver) -> R) -> Option<R> {
        let mut state = self.lock();
        let Machine::Receiver(receiver) = &mut state.machine else { return None };
        let result = f(receiver);
        self.pump(&mut state);
        Some(result)
    }

    fn pump(&self, state: &mut State) {
        let mut spoke = false;
        while let Some(message) = match &mut state.machine {
            Machine::None => None,
            Machine::Sender(m) => m.poll_message(),
            Machine::Receiver(m) => m.poll_message(),
        } {
            state.channel.push(&message);
            spoke = true;
        }
        if spoke {
            self.transmit.notify_waiters();
        }
        self.progress.notify_waiters();
    }

    /// Installs the machine at the end of the handshake and gives it what came early.
    pub(super) fn install(&self, machine: Machine, chunk_size: ChunkSize) {
        let mut state = self.lock();
        state.machine = machine;
        state.chunk_size = chunk_size;
        state.early_bytes = 0;
        for (message, _) in std::mem::take(&mut state.early) {
            if let Err(error) = dispatch(&mut state.machine, message) {
                self.fail_locked(&mut state, protocol_failure(&error));
                return;
            }
        }
        self.pump(&mut state);
    }

    /// Says something on the control channel.
    pub(super) fn say(&self, message: &Message) {
        self.lock().channel.push(message);
        self.transmit.notify_waiters();
    }

    /// Waits for the next message of the handshake.
    pub(super) async fn hear(&self) -> Result<Message, JobError> {
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some((message, bytes)) = state.early.pop_front() {
                    state.early_bytes -= bytes;
                    self.progress.notify_waiters();
                    return Ok(message);
                }
                if let Some(failure) = &state.failure {
                    return Err(failure.clone());
                }
            }
            tokio::select! {
                () = changed => {}
                () = self.over.cancelled() => return Err(self.failure().unwrap_or_else(|| {
                    JobError::new(FailureClass::Network, "the session ended during its handshake")
                })),
            }
        }
    }

    /// Takes a control frame from a link.
    pub(super) fn handle_control(&self, seq: u64, ack: u64, body: &[u8]) -> Result<(), ProtocolError> {
        let mut state = self.lock();
        let Some(message) = state.channel.handle_control(seq, ack, body)? else { return Ok(()) };
        if let Message::Abort { class, text } = message {
            let mut failure = JobError::new(class_of(class), text);
            if failure.text.is_empty() {
                failure.text = "the peer ended the job".to_owned();
            }
            self.transmit.notify_waiters();
            self.fail_locked(&mut state, failure);
            return Ok(());
        }
        let inner = &mut *state;
        match &mut inner.machine {
            Machine::None if inner.early.len() < MAX_EARLY_MESSAGES => {
                inner.early.push_back((message, body.len()));
                inner.early_bytes += body.len();
            }
            Machine::None => return Err(ProtocolError::PeerMisbehaved("it does not wait for the handshake")),
            machine => dispatch(machine, message)?,
        }
        self.transmit.notify_waiters();
        self.pump(&mut state);
        Ok(())
    }

    pub(super) fn handle_ack(&self, ack: u64) -> Result<(), ProtocolError> {
        let result = self.lock().channel.handle_ack(ack);
        self.transmit.notify_waiters();
        self.progress.notify_waiters();
        result
    }

    /// Takes a link that proved to belong here.
    pub(super) fn add_link(&self, transport: Transport, closer: Closer) -> LinkId {
        let mut state = self.lock();
        let id = state.next_link;
        state.next_link += 1;
        state
            .links
            .insert(id, LinkEntry { transport, closer, heard: Instant::now(), ping_sent: None, pong_due: false });
        state.lost_since = None;
        if state.channel.primary().is_none() {
            state.channel.set_primary(Some(id));
        }
        let kind = kind_of(transport);
        if !state.transports.contains(&kind) {
            state.transports.push(kind);
        }
        state.peak_links = state.peak_links.max(u32::try_from(state.links.len()).unwrap_or(u32::MAX));
        self.transmit.notify_waiters();
        self.progress.notify_waiters();
        id
    }

    /// A link died or left. What was on it goes again elsewhere.
    pub(super) fn drop_link(&self, id: LinkId, why: &str) {
        let mut state = self.lock();
        let Some(entry) = state.links.remove(&id) else { return };
        tracing::debug!(link = id, transport = entry.transport.word(), why, "link ended");
        let stats = entry.closer.stats();
        self.count(&stats);
        entry.closer.close(why);
        state.last_link_error = Some(why.to_owned());
        if state.channel.primary() == Some(id) {
            let next = state.links.keys().next().copied();
            state.channel.set_primary(next);
        }
        if state.links.is_empty() {
            state.lost_since = Some(Instant::now());
            // It may be long until the peer returns, if it does.
            self.pool.trim();
        }
        if let Machine::Sender(sender) = &mut state.machine {
            sender.handle_link_lost(id);
        }
        self.pump(&mut state);
        self.transmit.notify_waiters();
        self.link_ended.notify_waiters();
    }

    fn count(&self, stats: &crate::net::LinkStats) {
        self.figures.wire_bytes.fetch_add(stats.wire_bytes_sent + stats.wire_bytes_received, Ordering::Relaxed);
        self.figures.retransmits.fetch_add(stats.lost_packets.unwrap_or(0), Ordering::Relaxed);
    }

    /// How many links are up.
    pub fn links(&self) -> usize {
        self.lock().links.len()
    }

    /// For how long there has been no link, and what ended the last one.
    pub fn lost_for(&self) -> Option<(Duration, Option<String>)> {
        let state = self.lock();
        state.lost_since.map(|since| (since.elapsed(), state.last_link_error.clone()))
    }

    /// Whether no link ever belonged to the session.
    pub fn never_linked(&self) -> bool {
        self.lock().next_link == 1
    }

    /// Notes why the transport was chosen, and what controls its rate.
    pub fn choose(&self, reason: String, controller: String) {
        self.lock().chosen = (reason, controller);
    }

    /// What [`Self::choose`] noted.
    pub(super) fn chosen(&self) -> (String, String) {
        self.lock().chosen.clone()
    }

    /// Waits until something may have changed, at most `limit`.
    pub async fn link_change(&self, limit: Duration) {
        tokio::select! {
            () = tokio::time::sleep(limit) => {}
            () = self.over.cancelled() => {}
            () = self.link_ended.notified() => {}
        }
    }

    /// The session failed: says so to whoever waits, and closes its links soon.
    pub fn fail(&self, failure: JobError) {
        self.fail_locked(&mut self.lock(), failure);
    }

    fn fail_locked(&self, state: &mut State, failure: JobError) {
        state.failure.get_or_insert(failure);
        self.progress.notify_waiters();
    }

    /// Why the session failed, if it did.
    pub fn failure(&self) -> Option<JobError> {
        self.lock().failure.clone()
    }

    /// Waits until something may have changed for a driver. Create the future before looking.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.progress.notified()
    }

    pub(super) fn transmit_wanted(&self) -> tokio::sync::futures::Notified<'_> {
        self.transmit.notified()
    }

    /// Tells the peer why, waits shortly for it to be heard, and ends the session.
    pub async fn abort(&self, class: FailureClass, text: &str) {
        self.say(&Message::Abort { class: wire_class(class), text: text.to_owned() });
        self.drained(Duration::from_secs(1)).await;
        self.close("the job was ended").await;
    }

    /// Waits until the peer has acknowledged everything said, or `limit` has passed.
    pub(super) async fn drained(&self, limit: Duration) {
        let wait = async {
            loop {
                let changed = self.progress.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                {
                    let state = self.lock();
                    if state.channel.is_drained() || state.links.is_empty() {
                        return;
                    }
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }

    /// Ends the session in good order: the peer reads everything that was sent, then the end.
    pub async fn leave(&self) {
        self.close("the job is complete").await;
    }

    /// Ends the session and its links.
    pub async fn close(&self, why: &str) {
        let closers: Vec<Closer> = {
            let mut state = self.lock();
            for entry in state.links.values() {
                self.count(&entry.closer.stats());
            }
            let closers = state.links.values().map(|l| l.closer.clone()).collect();
            state.links.clear();
            state.channel.set_primary(None);
            closers
        };
        self.over.cancel();
        self.progress.notify_waiters();
        self.transmit.notify_waiters();
        for closer in &closers {
            closer.close(why);
        }
        for closer in &closers {
            let _ = tokio::time::timeout(Duration::from_secs(1), closer.over()).await;
        }
    }

    /// Figures of all links, ended ones included.
    pub(super) fn link_figures(&self) -> LinkFigures {
        let state = self.lock();
        let mut wire_bytes = self.figures.wire_bytes.load(Ordering::Relaxed);
        let mut retransmits = self.figures.retransmits.load(Ordering::Relaxed);
        for entry in state.links.values() {
            let stats = entry.closer.stats();
            wire_bytes += stats.wire_bytes_sent + stats.wire_bytes_received;
            retransmits += stats.lost_packets.unwrap_or(0);
        }
        LinkFigures { wire_bytes, retransmits, transports: state.transports.clone(), peak_links: state.peak_links }
    }
}

fn dispatch(machine: &mut Machine, message: Message) -> Result<(), ProtocolError> {
    match machine {
        Machine::None => Err(ProtocolError::Misuse("a message without a machine")),
        Machine::Sender(m) => m.handle_message(message),
        Machine::Receiver(m) => m.handle_message(message),
    }
}

/// The failure that a broken conversation amounts to.
pub(super) fn protocol_failure(error: &ProtocolError) -> JobError {
    let class = match error {
        ProtocolError::Misuse(_) => FailureClass::Bug,
        _ => FailureClass::Network,
    };
    JobError::new(class, format!("{error}; see that both ends run the same version"))
}

pub(super) fn kind_of(transport: Transport) -> TransportKind {
    match transport {
        Transport::Quic => TransportKind::Quic,
        Transport::Tcp => TransportKind::Tcp,
        Transport::Stream => TransportKind::Ssh,
    }
}

/// What a wire class means here.
pub fn class_of(class: Class) -> FailureClass {
    match class {
        Class::Usage => FailureClass::Usage,
        Class::Source => FailureClass::Source,
        Class::Destination => FailureClass::Destination,
        Class::Integrity => FailureClass::Integrity,
        Class::Identity => FailureClass::Identity,
        Class::Network => FailureClass::Network,
        Class::Overtaken => FailureClass::Overtaken,
        Class::Cancelled => FailureClass::Cancelled,
        Class::Bug => FailureClass::Bug,
    }
}

/// The wire class of a failure.
pub fn wire_class(class: FailureClass) -> Class {
    match class {
        FailureClass::Usage => Class::Usage,
        FailureClass::Source => Class::Source,
        FailureClass::Destination => Class::Destination,
        FailureClass::Integrity => Class::Integrity,
        FailureClass::Identity => Class::Identity,
        FailureClass::Network => Class::Network,
        FailureClass::Overtaken => Class::Overtaken,
        FailureClass::Cancelled => Class::Cancelled,
        FailureClass::Bug => Class::Bug,
    }
}
