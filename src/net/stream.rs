//! A link over a pair of byte streams, such as the standard input and output of an ssh connection.
//!
//! No TLS: who is at the other end, and that nobody listens, is ssh's business. An end of file at a frame's boundary cannot
//! be told from a peer that died there; the session above has to say its goodbye.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::closer::{Closer, Control, Gate, LinkStats};
use super::error::NetError;
use super::half::{RecvHalf, RecvKind, SendHalf, SendKind};
use super::peer::{Fingerprint, PeerName};
use super::{Link, LinkInfo, Peer, Transport};

/// One direction. It is taken away, and so ended for the peer, by whoever closes the link, whether or not a half is in use.
struct Slot<T: ?Sized>(Mutex<Option<Pin<Box<T>>>>);

impl<T: ?Sized> Slot<T> {
    /// Does one non-blocking step; the lock is held for nothing else.
    fn step<R>(&self, step: impl FnOnce(Pin<&mut T>) -> Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(inner) => step(inner.as_mut()),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn take(&self) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(inner);
    }
}

type Reader = Slot<dyn AsyncRead + Send>;
type Writer = Slot<dyn AsyncWrite + Send>;

struct StreamControl {
    reader: Arc<Reader>,
    writer: Arc<Writer>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
}

impl Control for StreamControl {
    fn cut(&self, _: &str) {
        self.reader.take();
        self.writer.take();
    }

    fn stats(&self) -> LinkStats {
        LinkStats {
            wire_bytes_sent: self.sent.load(Ordering::Relaxed),
            wire_bytes_received: self.received.load(Ordering::Relaxed),
            ..LinkStats::default()
        }
    }
}

/// Makes a link of what is read from `r` and written to `w`.
pub fn stream_link(r: impl AsyncRead + Send + 'static, w: impl AsyncWrite + Send + 'static, dialed: bool) -> Link {
    let gate = Gate::new("ssh stream".to_owned());
    let (alive, over) = watch::channel(());
    let alive = Arc::new(alive);
    let writer: Arc<Writer> = Arc::new(Slot(Mutex::new(Some(Box::pin(w)))));
    let reader: Arc<Reader> = Arc::new(Slot(Mutex::new(Some(Box::pin(r)))));
    let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let control = StreamControl {
        reader: Arc::clone(&reader),
        writer: Arc::clone(&writer),
        sent: Arc::clone(&sent),
        received: Arc::clone(&received),
    };
    let send = StreamSend { gate: Arc::clone(&gate), writer, sent, _alive: Arc::clone(&alive) };
    let recv = StreamRecv { gate: Arc::clone(&gate), reader, received, _alive: alive };
    Link {
        main_send: SendHalf::new(SendKind::Stream(send), Arc::clone(&gate)),
        main_recv: RecvHalf::new(RecvKind::Stream(recv), Arc::clone(&gate), false),
        lanes: None,
        info: LinkInfo {
            transport: Transport::Stream,
            peer: Peer { fingerprint: Fingerprint::NONE, name: PeerName::new("ssh stream") },
            remote: None,
            local: None,
            binding: [0; 32],
            dialed,
        },
        closer: Closer { gate, control: Arc::new(control), over },
    }
}

pub(super) struct StreamSend {
    gate: Arc<Gate>,
    writer: Arc<Writer>,
    sent: Arc<AtomicU64>,
    _alive: Arc<watch::Sender<()>>,
}

impl StreamSend {
    pub(super) async fn send(&mut self, head: &[u8], payload: &[u8]) -> Result<(), NetError> {
        let (mut head, mut payload) = (head, payload);
        while !(head.is_empty() && payload.is_empty()) {
            let slices = [IoSlice::new(head), IoSlice::new(payload)];
            let count = self.wait("send", |writer, context| writer.poll_write_vectored(context, &slices)).await?;
            if count == 0 {
                return Err(NetError::from_io(&self.gate.peer, "send", io::ErrorKind::BrokenPipe.into()));
            }
            self.sent.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
            let from_head = count.min(head.len());
            head = head.get(from_head..).unwrap_or_default();
            payload = payload.get(count - from_head..).unwrap_or_default();
        }
        // Some writers (standard output) keep a frame until they are asked.
        self.flush().await
    }

    pub(super) async fn flush(&mut self) -> Result<(), NetError> {
        self.wait("send", |writer, context| writer.poll_flush(context)).await
    }

    pub(super) async fn finish(&mut self) -> Result<(), NetError> {
        self.wait("finish", |writer, context| writer.poll_shutdown(context)).await?;
        self.writer.take();
        Ok(())
    }

    async fn wait<R>(
        &self,
        operation: &'static str,
        mut step: impl FnMut(Pin<&mut (dyn AsyncWrite + Send)>, &mut Context<'_>) -> Poll<io::Result<R>>,
    ) -> Result<R, NetError> {
        tokio::select! {
            biased;
            error = self.gate.shut_down() => Err(error),
            result = poll_fn(|context| self.writer.step(|writer| step(writer, context))) => {
                result.map_err(|error| NetError::from_io(&self.gate.peer, operation, error))
            }
        }
    }
}

impl Drop for StreamSend {
    fn drop(&mut self) {
        self.writer.take();
    }
}

impl fmt::Debug for StreamSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSend").finish_non_exhaustive()
    }
}

pub(super) struct StreamRecv {
    gate: Arc<Gate>,
    reader: Arc<Reader>,
    received: Arc<AtomicU64>,
    _alive: Arc<watch::Sender<()>>,
}

impl StreamRecv {
    pub(super) async fn read(&mut self, into: &mut [u8]) -> Result<usize, NetError> {
        let mut into = ReadBuf::new(into);
        let result = tokio::select! {
            biased;
            error = self.gate.shut_down() => return Err(error),
            result = poll_fn(|context| self.reader.step(|reader| reader.poll_read(context, &mut into))) => result,
        };
        result.map_err(|error| NetError::from_io(&self.gate.peer, "receive", error))?;
        let count = into.filled().len();
        self.received.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(count)
    }
}

impl Drop for StreamRecv {
    fn drop(&mut self) {
        self.reader.take();
    }
}

impl fmt::Debug for StreamRecv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRecv").finish_non_exhaustive()
    }
}
