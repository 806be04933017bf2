//! A link over one TCP connection with TLS 1.3.
//!
//! rustls' state machine is driven here, not by tokio-rustls: its streams can only be split behind one lock that is held while
//! the socket is waited for, and they read in small pieces. Here the lock is held for cryptography and for copies to and from the
//! kernel, never across an await, so that both directions run at once.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::Connection;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::closer::{Closer, Control, Gate, LinkStats};
use super::error::NetError;
use super::half::{RecvHalf, RecvKind, SendHalf, SendKind};
use super::tls::tls_error;
use super::{Link, LinkInfo};

/// How many bytes are encrypted between two visits to the socket: a multiple of the largest TLS record. They are touched five times on
/// their way, so they have to stay in a core's own cache; with 512 KiB everything takes one and a half times as long.
const PIECE_BYTES: usize = 128 << 10;

/// How many bytes are read from the socket at once.
const READ_BYTES: usize = 128 << 10;

/// How long a dropped link, finished in order, goes on to deliver what is in flight.
const LINGER: Duration = Duration::from_secs(10);

/// What the two halves share.
struct Core {
    socket: Arc<TcpStream>,
    tls: Mutex<Connection>,
    gate: Arc<Gate>,
    sent: AtomicU64,
    received: AtomicU64,
    /// We said close_notify and FIN.
    finished: AtomicBool,
    /// The peer said so, or the connection is dead: nothing more can come.
    ended: AtomicBool,
    alive: watch::Sender<()>,
}

impl Core {
    /// A poisoned lock means a panic inside rustls; its state is then no worse than after any other failed call.
    fn tls(&self) -> MutexGuard<'_, Connection> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self, operation: &'static str, error: io::Error) -> NetError {
        self.ended.store(true, Ordering::Relaxed);
        NetError::from_io(&self.gate.peer, operation, error)
    }

    /// Hands all encrypted bytes to the kernel.
    async fn flush(&self) -> Result<(), NetError> {
        loop {
            match write_out(&mut self.tls(), &self.socket, &self.sent) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.broken("send", error)),
            }
            tokio::select! {
                biased;
                error = self.gate.shut_down() => return Err(error),
                ready = self.socket.writable() => ready.map_err(|error| self.broken("send", error))?,
            }
        }
    }
}

impl Drop for Core {
    /// A link that was finished here is not over before the peer has it all: closing a socket with unread data in it would make
    /// the kernel send a reset that destroys what is in flight. So somebody goes on reading until the peer's end.
    fn drop(&mut self) {
        let clean = self.finished.load(Ordering::Relaxed) && self.gate.check().is_ok();
        if !clean || self.ended.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (socket, alive) =
                (Arc::clone(&self.socket), std::mem::replace(&mut self.alive, watch::Sender::new(())));
            runtime.spawn(async move {
                let _ = tokio::time::timeout(LINGER, drain(&socket, usize::MAX)).await;
                drop(alive);
            });
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// The closer's view; it must not keep the connection alive.
struct TcpControl {
    core: Weak<Core>,
    last: Mutex<LinkStats>,
}

impl Control for TcpControl {
    fn cut(&self, _: &str) {
        if let Some(core) = self.core.upgrade() {
            core.ended.store(true, Ordering::Relaxed);
            // Not only our own tasks: the peer has to notice at once, also while somebody holds on to a half.
            let _ = SockRef::from(&*core.socket).shutdown(std::net::Shutdown::Both);
        }
    }

    fn stats(&self) -> LinkStats {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(core) = self.core.upgrade() {
            // TCP_INFO is out of reach without unsafe code, so there is no round trip time and no retransmission count.
            *last = LinkStats {
                wire_bytes_sent: core.sent.load(Ordering::Relaxed),
                wire_bytes_received: core.received.load(Ordering::Relaxed),
                controller: sockopt::tcp_congestion(&*core.socket).ok(),
                ..LinkStats::default()
            };
        }
        last.clone()
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) struct TcpSend(Arc<Core>);

impl TcpSend {
    pub(super) async fn send(&mut self, head: &[u8], payload: &[u8]) -> Result<(), NetError> {
        let (mut head, mut payload) = (head, payload);
        while !(head.is_empty() && payload.is_empty()) {
            let room = PIECE_BYTES.saturating_sub(head.len());
            let piece = payload.get(..room).unwrap_or(payload);
            let taken = self
                .0
                .tls()
                .writer()
                .write_vectored(&[IoSlice::new(head), IoSlice::new(piece)])
                .map_err(|error| self.0.broken("encrypt", error))?;
            if taken == 0 {
                return Err(NetError::Tls {
                    peer: self.0.gate.peer.clone(),
                    detail: "it takes no more data".to_owned(),
                });
            }
            let from_head = taken.min(head.len());
            head = head.get(from_head..).unwrap_or_default();
            payload = payload.get(taken - from_head..).unwrap_or_default();
            self.0.flush().await?;
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self) -> Result<(), NetError> {
        self.0.tls().send_close_notify();
        self.0.flush().await?;
        SockRef::from(&*self.0.socket)
            .shutdown(std::net::Shutdown::Write)
            .map_err(|error| self.0.broken("finish", error))?;
        self.0.finished.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for TcpSend {
    /// FIN without close_notify: the peer knows at once that this was no clean end.
    fn drop(&mut self) {
        if !self.0.finished.load(Ordering::Relaxed) {
            let _ = SockRef::from(&*self.0.socket).shutdown(std::net::Shutdown::Write);
        }
    }
}

/// The receiving half.
pub(super) struct TcpRecv {
    core: Arc<Core>,
    /// Read from the socket, not decrypted; made at the first read.
    raw: Vec<u8>,
    start: usize,
    end: usize,
}

impl TcpRecv {
    pub(super) async fn read(&mut self, into: &mut [u8]) -> Result<usize, NetError> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.raw.is_empty() {
            self.raw = vec![0; READ_BYTES];
        }
        loop {
            match self.decrypt(into)? {
                Some(count) => return Ok(count),
                None => self.fill().await?,
            }
        }
    }

    /// Decrypts what was read until `into` is full; `None` = more must be read, 0 = the peer's clean end.
    fn decrypt(&mut self, into: &mut [u8]) -> Result<Option<usize>, NetError> {
        let mut tls = self.core.tls();
        let mut filled = 0;
        loop {
            while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match tls.reader().read(rest) {
                    Ok(0) => {
                        self.core.ended.store(true, Ordering::Relaxed);
                        return Ok(Some(filled));
                    }
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(self.core.broken("receive", error)),
                }
            }
            let mut raw = self.raw.get(self.start..self.end).unwrap_or_default();
            if filled == into.len() || raw.is_empty() {
                return Ok((filled > 0).then_some(filled));
            }
            let taken = tls.read_tls(&mut raw).map_err(|error| self.core.broken("receive", error))?;
            self.start += taken;
            tls.process_new_packets().map_err(|error| {
                self.core.ended.store(true, Ordering::Relaxed);
                tls_error(&self.core.gate.peer, None, &error)
            })?;
            if taken == 0 {
                // Bytes after the peer's close_notify mean nothing.
                self.start = self.end;
            }
        }
    }

    async fn fill(&mut self) -> Result<(), NetError> {
        loop {
            match self.core.socket.try_read(&mut self.raw) {
                Ok(0) => {
                    self.core.ended.store(true, Ordering::Relaxed);
                    let detail = "it hung up without a word (did it crash?)".to_owned();
                    return Err(NetError::Reset { peer: self.core.gate.peer.clone(), detail });
                }
                Ok(count) => {
                    (self.start, self.end) = (0, count);
                    self.core.received.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.core.broken("receive", error)),
            }
            tokio::select! {
                biased;
                error = self.core.gate.shut_down() => return Err(error),
                ready = self.core.socket.readable() => ready.map_err(|error| self.core.broken("receive", error))?,
            }
        }
    }
}

impl fmt::Debug for TcpRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpRecv").field("core", &self.core).finish_non_exhaustive()
    }
}

/// Makes a link of a connection whose handshake is done and whose peer is known.
pub(super) fn link_over(socket: TcpStream, mut tls: Connection, info: LinkInfo, peer: String) -> Link {
    // Bounded by PIECE_BYTES, by how this module writes.
    tls.set_buffer_limit(None);
    let gate = Gate::new(peer);
    let (alive, over) = watch::channel(());
    let core = Arc::new(Core {
        socket: Arc::new(socket),
        tls: Mutex::new(tls),
        gate: Arc::clone(&gate),
        sent: AtomicU64::new(0),
        received: AtomicU64::new(0),
        finished: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        alive,
    });
    let control = TcpControl { core: Arc::downgrade(&core), last: Mutex::new(LinkStats::default()) };
    let recv = TcpRecv { core: Arc::clone(&core), raw: Vec::new(), start: 0, end: 0 };
    let welcome_due = info.dialed;
    Link {
        main_send: SendHalf::new(SendKind::Tcp(TcpSend(core)), Arc::clone(&gate)),
        main_recv: RecvHalf::new(RecvKind::Tcp(recv), Arc::clone(&gate), welcome_due),
        lanes: None,
        info,
        closer: Closer { gate, control: Arc::new(control), over },
    }
}

/// Writes until nothing is left or the socket is full (`WouldBlock`).
pub(super) fn write_out(tls: &mut Connection, socket: &TcpStream, sent: &AtomicU64) -> io::Result<()> {
    while tls.wants_write() {
        let count = tls.write_tls(&mut Nonblocking(socket))?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        sent.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    Ok(())
}

/// Reads and forgets until the peer's end, an error, or `limit` bytes.
pub(super) async fn drain(socket: &TcpStream, limit: usize) {
    let mut scrap = vec![0; 64 << 10];
    let mut seen = 0_usize;
    while seen < limit {
        match socket.try_read(&mut scrap) {
            Ok(0) => return,
            Ok(count) => seen = seen.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if socket.readable().await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// A socket as rustls wants it: either it goes on at once, or `WouldBlock`.
pub(super) struct Nonblocking<'a>(pub(super) &'a TcpStream);

impl Read for Nonblocking<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl Write for Nonblocking<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.try_write(from)
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
