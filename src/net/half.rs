//! The two directions of a link's main stream, and QUIC's further streams.

use std::sync::Arc;

use bytes::Bytes;

use super::closer::Gate;
use super::error::NetError;
use super::quic::{QuicLanes, QuicRecv, QuicSend};
use super::stream::{StreamRecv, StreamSend};
use super::tcp::{TcpRecv, TcpSend};

/// The byte with which an accepting end says that it accepted the dialing one.
pub(super) const WELCOME: u8 = 0x06;

/// Where a half stands between two calls.
#[derive(Debug)]
enum Stage {
    Ready,
    /// A call is under way. Found at the start of another one, it means that the first one's future was dropped: a
    /// part of a frame is gone or on the wire, and nothing more can be said on this half.
    Busy,
    /// What ended it is what every later call hears.
    Failed(Box<NetError>),
    Ended,
}

#[derive(Debug)]
pub(super) enum SendKind {
    Quic(QuicSend),
    Tcp(TcpSend),
    Stream(StreamSend),
}

/// The outgoing direction of a stream. One task owns it.
///
/// Dropping it before [`SendHalf::finish`] tells the peer that the stream is incomplete.
#[derive(Debug)]
pub struct SendHalf {
    kind: SendKind,
    gate: Arc<Gate>,
    stage: Stage,
}

impl SendHalf {
    pub(super) fn new(kind: SendKind, gate: Arc<Gate>) -> Self {
        Self { kind, gate, stage: Stage::Ready }
    }

    /// Sends `head`, then `payload`; returns when the transport has taken all of it.
    ///
    /// QUIC keeps the payload, without a copy, until the peer's transport has acknowledged it; TCP and byte streams let go
    /// of it before they return. A future that is dropped before its end leaves this half unusable.
    ///
    /// # Errors
    /// [`NetError::Closed`], [`NetError::Reset`] when the link has ended; [`NetError::Identity`] when the peer turned
    /// this end away; [`NetError::Misuse`] after `finish` or after a dropped call.
    pub async fn send(&mut self, head: &[u8], payload: Option<Bytes>) -> Result<(), NetError> {
        self.enter()?;
        let result = match &mut self.kind {
            SendKind::Quic(half) => half.send(head, payload).await,
            SendKind::Tcp(half) => half.send(head, payload.as_deref().unwrap_or_default()).await,
            SendKind::Stream(half) => half.send(head, payload.as_deref().unwrap_or_default()).await,
        };
        self.leave(result, Stage::Ready)
    }

    /// Pushes what lower layers still hold towards the peer. QUIC and TCP hold nothing back.
    ///
    /// # Errors
    /// As [`SendHalf::send`].
    pub async fn flush(&mut self) -> Result<(), NetError> {
        self.enter()?;
        let result = match &mut self.kind {
            SendKind::Quic(_) | SendKind::Tcp(_) => Ok(()),
            SendKind::Stream(half) => half.flush().await,
        };
        self.leave(result, Stage::Ready)
    }

    /// Says that nothing more will come on this stream; the peer reads everything, then a clean end.
    ///
    /// It does not wait until the peer has read. Dropping the half afterwards is harmless: delivery goes on in the
    /// background (see [`super::Closer::over`]).
    ///
    /// # Errors
    /// As [`SendHalf::send`].
    pub async fn finish(&mut self) -> Result<(), NetError> {
        self.enter()?;
        let result = match &mut self.kind {
            SendKind::Quic(half) => half.finish(),
            SendKind::Tcp(half) => half.finish().await,
            SendKind::Stream(half) => half.finish().await,
        };
        self.leave(result, Stage::Ended)
    }

    fn enter(&mut self) -> Result<(), NetError> {
        self.gate.check()?;
        match &self.stage {
            Stage::Ready => {
                self.stage = Stage::Busy;
                Ok(())
            }
            Stage::Busy => Err(NetError::Misuse { what: "sending after a send that was abandoned" }),
            Stage::Failed(error) => Err(NetError::clone(error)),
            Stage::Ended => Err(NetError::Misuse { what: "sending after finish" }),
        }
    }

    fn leave(&mut self, result: Result<(), NetError>, next: Stage) -> Result<(), NetError> {
        match result {
            Ok(()) => {
                self.stage = next;
                Ok(())
            }
            Err(error) => {
                let error = self.gate.prefer(error);
                self.stage = Stage::Failed(Box::new(error.clone()));
                Err(error)
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum RecvKind {
    Quic(QuicRecv),
    Tcp(TcpRecv),
    Stream(StreamRecv),
}

/// The incoming direction of a stream. One task owns it.
#[derive(Debug)]
pub struct RecvHalf {
    kind: RecvKind,
    gate: Arc<Gate>,
    stage: Stage,
    /// The acceptor's byte is still to come and is not data.
    welcome_due: bool,
}

impl RecvHalf {
    pub(super) fn new(kind: RecvKind, gate: Arc<Gate>, welcome_due: bool) -> Self {
        Self { kind, gate, stage: Stage::Ready, welcome_due }
    }

    /// Fills `into` from the stream.
    ///
    /// A future that is dropped after it has taken bytes leaves this half unusable; to stop a read from outside, use
    /// [`super::Closer::close`].
    ///
    /// # Errors
    /// [`NetError::Truncated`] at the peer's end of the stream; [`NetError::Reset`] when the peer died;
    /// [`NetError::Closed`]; [`NetError::Identity`] when the peer turned this end away; [`NetError::Misuse`].
    pub async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), NetError> {
        let missing = into.len();
        if self.read_exact_or_end(into).await? {
            Ok(())
        } else {
            Err(NetError::Truncated { peer: self.gate.peer.clone(), missing })
        }
    }

    /// Fills `into`, or returns `false` if the peer finished its stream cleanly before the first byte.
    ///
    /// Dropping the future is harmless as long as no byte of `into` has come.
    ///
    /// # Errors
    /// As [`RecvHalf::read_exact`]; [`NetError::Truncated`] only if some bytes came.
    pub async fn read_exact_or_end(&mut self, into: &mut [u8]) -> Result<bool, NetError> {
        self.gate.check()?;
        match &self.stage {
            Stage::Ready => {}
            Stage::Busy => return Err(NetError::Misuse { what: "reading after a read that was abandoned" }),
            Stage::Failed(error) => return Err(NetError::clone(error)),
            Stage::Ended => return Ok(into.is_empty()),
        }
        let result = self.fill(into).await;
        match &result {
            Ok(true) => self.stage = Stage::Ready,
            Ok(false) => self.stage = Stage::Ended,
            Err(error) => self.stage = Stage::Failed(Box::new(error.clone())),
        }
        result
    }

    async fn fill(&mut self, into: &mut [u8]) -> Result<bool, NetError> {
        self.welcome().await?;
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let missing = rest.len();
            let count = self.read(rest).await?;
            if count == 0 && filled == 0 {
                return Ok(false);
            }
            if count == 0 {
                return Err(NetError::Truncated { peer: self.gate.peer.clone(), missing });
            }
            filled += count;
            self.stage = Stage::Busy;
        }
        Ok(true)
    }

    /// Reads the acceptor's byte if it is still due, and so learns whether the peer accepted this end.
    pub(super) async fn welcome(&mut self) -> Result<(), NetError> {
        if !self.welcome_due {
            return Ok(());
        }
        let mut byte = [0];
        let count = self.read(&mut byte).await?;
        if count == 0 {
            return Err(NetError::Reset { peer: self.gate.peer.clone(), detail: "it hung up at once".to_owned() });
        }
        if byte != [WELCOME] {
            let detail = "its first byte is not that of this protocol".to_owned();
            return Err(NetError::Tls { peer: self.gate.peer.clone(), detail });
        }
        self.welcome_due = false;
        Ok(())
    }

    /// Some bytes; 0 = the peer finished cleanly. Cancel-safe.
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, NetError> {
        match &mut self.kind {
            RecvKind::Quic(half) => half.read(into).await,
            RecvKind::Tcp(half) => half.read(into).await,
            RecvKind::Stream(half) => half.read(into).await,
        }
        .map_err(|error| self.gate.prefer(error))
    }
}

/// Further one-way streams beside the main one; QUIC only. Each is opened by whoever sends on it.
#[derive(Clone, Debug)]
pub struct Lanes(pub(super) QuicLanes);

impl Lanes {
    /// Opens an outgoing stream; waits while the peer allows no more of them. The peer notices it with the first send.
    ///
    /// # Errors
    /// How the link ended.
    pub async fn open(&self) -> Result<SendHalf, NetError> {
        self.0.open().await
    }

    /// The next incoming stream. Cancel-safe.
    ///
    /// # Errors
    /// How the link ended.
    pub async fn accept(&self) -> Result<RecvHalf, NetError> {
        self.0.accept().await
    }
}
