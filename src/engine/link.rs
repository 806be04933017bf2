//! One link of a session: the first frames that prove where it belongs, and the tasks that carry frames over it.

use std::{sync::Arc, time::Duration};

use subtle::ConstantTimeEq as _;
use tokio::{sync::Mutex, task::JoinSet};

use super::{
    receive,
    session::{Session, protocol_failure},
};
use crate::{
    chunk::ChunkSize,
    net::{Lanes, Link, LinkInfo, NetError, RecvHalf, SendHalf},
    protocol::{
        Class, FRAME_HEADER_BYTES, FrameHeader, FrameKind, LinkAnswer, LinkHello, LinkId, LinkSide, PROTOCOL_VERSION,
        ProtocolError, Reader, SessionId, SessionSecret, link_proof,
    },
};

/// A link on which nothing was heard for this long is asked for a sign of life.
const PING_AFTER: Duration = Duration::from_secs(4);
/// A link that gave none for this long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(20);
/// A link's first frames must have come by then.
const FIRST_FRAME_LIMIT: Duration = Duration::from_secs(10);
/// Control frames are gathered into writes of about this size.
const WRITE_BYTES: usize = 128 << 10;

/// Why a link ended, or never became one.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The transport failed.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The listening side turned the link away.
    #[error("the peer refused the link: {text}")]
    Refused {
        /// Who is at fault.
        class: Class,
        /// Its words.
        text: String,
    },
    /// The peer does not know the session's secret.
    #[error("the peer could not prove that it belongs to this session")]
    Proof,
    /// Nothing came in time.
    #[error("nothing came from the peer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The peer left in good order, or the session is over.
    #[error("the link has ended")]
    Left,
}

async fn send_frame(send: &mut SendHalf, kind: FrameKind, body: &[u8]) -> Result<(), NetError> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    frame.extend_from_slice(&FrameHeader { kind, body_bytes: body.len() }.encode());
    frame.extend_from_slice(body);
    send.send(&frame, None).await?;
    send.flush().await
}

async fn recv_small(recv: &mut RecvHalf) -> Result<(FrameKind, Vec<u8>), LinkError> {
    tokio::time::timeout(FIRST_FRAME_LIMIT, recv_first(recv)).await.unwrap_or(Err(LinkError::Silent(FIRST_FRAME_LIMIT)))
}

async fn recv_first(recv: &mut RecvHalf) -> Result<(FrameKind, Vec<u8>), LinkError> {
    let mut head = [0; FRAME_HEADER_BYTES];
    recv.read_exact(&mut head).await?;
    let header = FrameHeader::decode(&head, ChunkSize::DEFAULT)?;
    if !matches!(header.kind, FrameKind::LinkHello | FrameKind::LinkAccept | FrameKind::LinkRefuse) {
        return Err(ProtocolError::PeerMisbehaved("a link starts with other frames").into());
    }
    let mut body = vec![0; header.body_bytes];
    recv.read_exact(&mut body).await?;
    Ok((header.kind, body))
}

/// The dialing side's first frame; what follows may be sent at once behind it.
pub async fn introduce(link: &mut Link, session: &Session, open: bool) -> Result<(), LinkError> {
    let hello = LinkHello {
        version: PROTOCOL_VERSION,
        session: session.id,
        open: open.then(|| session.secret.clone()),
        proof: link_proof(&session.secret, &session.id, LinkSide::Dialer, &link.info.binding),
    };
    send_frame(&mut link.main_send, FrameKind::LinkHello, &hello.encode()).await?;
    Ok(())
}

/// Waits for the listening side's answer to [`introduce`].
pub async fn await_answer(link: &mut Link, session: &Session) -> Result<(), LinkError> {
    let (kind, body) = recv_small(&mut link.main_recv).await?;
    match LinkAnswer::decode(kind, &body)? {
        LinkAnswer::Accept { version, proof } => {
            check_version(version)?;
            let ours = link_proof(&session.secret, &session.id, LinkSide::Listener, &link.info.binding);
            if bool::from(ours.ct_eq(&proof)) { Ok(()) } else { Err(LinkError::Proof) }
        }
        LinkAnswer::Refuse { class, text } => Err(LinkError::Refused { class, text }),
    }
}

/// The listening side chooses a version up to ours. There is one only.
fn check_version(answered: u16) -> Result<(), ProtocolError> {
    if answered == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(ProtocolError::PeerIncompatible(format!(
        "it speaks version {answered} of the protocol, and only {PROTOCOL_VERSION} is spoken here"
    )))
}

/// Reads the dialing side's first frame.
pub async fn hear_hello(link: &mut Link) -> Result<LinkHello, LinkError> {
    match recv_small(&mut link.main_recv).await? {
        (FrameKind::LinkHello, body) => Ok(LinkHello::decode(&body)?),
        _ => Err(ProtocolError::PeerMisbehaved("its first frame is no link hello").into()),
    }
}

/// As [`hear_hello`], without a limit of time: for a connection that may never become a link.
pub async fn hear_hello_whenever(link: &mut Link) -> Result<LinkHello, LinkError> {
    match recv_first(&mut link.main_recv).await? {
        (FrameKind::LinkHello, body) => Ok(LinkHello::decode(&body)?),
        _ => Err(ProtocolError::PeerMisbehaved("its first frame is no link hello").into()),
    }
}

/// Whether the dialing side knows the secret of the session that it names.
pub fn proves(hello: &LinkHello, secret: &SessionSecret, session: &SessionId, info: &LinkInfo) -> bool {
    let ours = link_proof(secret, session, LinkSide::Dialer, &info.binding);
    hello.session == *session && bool::from(ours.ct_eq(&hello.proof))
}

/// Takes the link into the session.
pub async fn accept(link: &mut Link, session: &Session) -> Result<(), LinkError> {
    let answer = LinkAnswer::Accept {
        version: PROTOCOL_VERSION,
        proof: link_proof(&session.secret, &session.id, LinkSide::Listener, &link.info.binding),
    };
    send_frame(&mut link.main_send, answer.kind(), &answer.encode()).await?;
    Ok(())
}

/// Turns the link away, with a reason.
pub async fn refuse(link: &mut Link, class: Class, text: &str) {
    let answer = LinkAnswer::Refuse { class, text: text.to_owned() };
    let tell = async {
        if send_frame(&mut link.main_send, answer.kind(), &answer.encode()).await.is_ok() {
            let _ = link.main_send.finish().await;
            // The peer closes when it has read the reason; a close from here could overtake it.
            let mut end = [0];
            let _ = link.main_recv.read_exact_or_end(&mut end).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), tell).await;
}

/// The ways that data frames can leave by one link.
#[derive(Clone, Debug)]
pub(super) enum Outlet {
    /// Each on a stream of its own.
    Lanes(Lanes),
    /// On the main stream, one after the other.
    Main(Arc<Mutex<SendHalf>>),
}

/// Takes a link that belongs to the session into it, and carries frames in the background until either ends. The
/// returned future completes with the link; it need not be awaited.
pub fn run(link: Link, session: &Arc<Session>, answered: bool) -> impl Future<Output = ()> + use<> {
    let id = session.add_link(link.info.transport, link.closer());
    let carried = tokio::spawn(carry(link, id, Arc::clone(session), answered));
    async move {
        let _ = carried.await;
    }
}

async fn carry(link: Link, id: LinkId, session: Arc<Session>, answered: bool) {
    let info = link.info.clone();
    tracing::debug!(link = id, transport = info.transport.word(), remote = ?info.remote, "link joined");
    let Link { main_send, main_recv, lanes, .. } = link;
    let main_send = Arc::new(Mutex::new(main_send));
    let mut tasks: JoinSet<Result<(), LinkError>> = JoinSet::new();
    tasks.spawn(read_main(Arc::clone(&session), id, main_recv, (!answered).then(|| info.clone())));
    tasks.spawn(write_control(Arc::clone(&session), id, Arc::clone(&main_send)));
    let outlet = match &lanes {
        Some(lanes) => Outlet::Lanes(lanes.clone()),
        None => Outlet::Main(Arc::clone(&main_send)),
    };
    if let Some(lanes) = lanes {
        tasks.spawn(accept_lanes(Arc::clone(&session), id, lanes));
    }
    tasks.spawn(super::send::run_outlet(Arc::clone(&session), id, info.transport, outlet));
    let why = tokio::select! {
        () = session.over.cancelled() => LinkError::Left,
        ended = next_end(&mut tasks) => ended,
    };
    if let LinkError::Protocol(error) = &why {
        tracing::warn!(link = id, %error, "the peer broke the protocol");
        session.fail(protocol_failure(error));
    }
    session.drop_link(id, &why.to_string());
    tasks.shutdown().await;
}

async fn next_end(tasks: &mut JoinSet<Result<(), LinkError>>) -> LinkError {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            // A task that has nothing more to do on this link leaves the others to it.
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(panic) => {
                tracing::error!(%panic, "a link's task ended badly");
                return LinkError::Left;
            }
        }
    }
    LinkError::Left
}

async fn read_main(
    session: Arc<Session>,
    id: LinkId,
    mut recv: RecvHalf,
    unanswered: Option<LinkInfo>,
) -> Result<(), LinkError> {
    if let Some(info) = unanswered {
        let (kind, body) = recv_small(&mut recv).await?;
        match LinkAnswer::decode(kind, &body)? {
            LinkAnswer::Accept { version, proof } => {
                check_version(version)?;
                let ours = link_proof(&session.secret, &session.id, LinkSide::Listener, &info.binding);
                if !bool::from(ours.ct_eq(&proof)) {
                    return Err(LinkError::Proof);
                }
            }
            LinkAnswer::Refuse { class, text } => {
                session.fail(super::JobError::new(super::class_of(class), text.clone()));
                return Err(LinkError::Refused { class, text });
            }
        }
    }
    let mut body = Vec::new();
    loop {
        let mut head = [0; FRAME_HEADER_BYTES];
        if !recv.read_exact_or_end(&mut head).await? {
            return Err(LinkError::Left);
        }
        let chunk_size = session.lock().chunk_size;
        let header = FrameHeader::decode(&head, chunk_size)?;
        tracing::trace!(link = id, kind = ?header.kind, bytes = header.body_bytes, "frame");
        if matches!(header.kind, FrameKind::Data | FrameKind::Pack) {
            receive::take_frame(&session, header, &mut recv).await?;
            heard(&session, id);
            continue;
        }
        body.resize(header.body_bytes, 0);
        recv.read_exact(&mut body).await?;
        heard(&session, id);
        match header.kind {
            FrameKind::Control => {
                let mut r = Reader::new(&body, "control frame");
                let (seq, ack) = (r.u64()?, r.u64()?);
                let message = r.take(r.remaining())?;
                session.handle_control(seq, ack, message)?;
                session.uncongested().await;
            }
            FrameKind::Ack => {
                let mut r = Reader::new(&body, "acknowledgement");
                let ack = r.u64()?;
                r.finish()?;
                session.handle_ack(ack)?;
            }
            FrameKind::Ping => {
                if let Some(link) = session.lock().links.get_mut(&id) {
                    link.pong_due = true;
                }
                session.wake_transmit();
            }
            FrameKind::Pong => {}
            FrameKind::Leave => return Err(LinkError::Left),
            _ => return Err(ProtocolError::PeerMisbehaved("that frame belongs to a link's start").into()),
        }
    }
}

fn heard(session: &Session, id: LinkId) {
    if let Some(link) = session.lock().links.get_mut(&id) {
        link.heard = std::time::Instant::now();
        link.ping_sent = None;
    }
}

async fn accept_lanes(session: Arc<Session>, id: LinkId, lanes: Lanes) -> Result<(), LinkError> {
    let mut streams: JoinSet<Result<(), LinkError>> = JoinSet::new();
    loop {
        tokio::select! {
            lane = lanes.accept() => {
                let mut lane = lane?;
                let session = Arc::clone(&session);
                streams.spawn(async move {
                    let mut head = [0; FRAME_HEADER_BYTES];
                    if !lane.read_exact_or_end(&mut head).await? {
                        return Ok(());
                    }
                    let chunk_size = session.lock().chunk_size;
                    let header = FrameHeader::decode(&head, chunk_size)?;
                    if !matches!(header.kind, FrameKind::Data | FrameKind::Pack) {
                        return Err(ProtocolError::PeerMisbehaved("only data travels on one-way streams").into());
                    }
                    receive::take_frame(&session, header, &mut lane).await?;
                    heard(&session, id);
                    Ok(())
                });
            }
            Some(ended) = streams.join_next() => match ended {
                Ok(Ok(())) => {}
                // One stream may be reset while its link lives on; what it carried is asked for or sent again.
                Ok(Err(LinkError::Protocol(error))) => return Err(error.into()),
                Ok(Err(error)) => tracing::debug!(link = id, %error, "a stream ended early"),
                Err(panic) => tracing::error!(%panic, "a stream's task ended badly"),
            },
        }
    }
}

async fn write_control(session: Arc<Session>, id: LinkId, send: Arc<Mutex<SendHalf>>) -> Result<(), LinkError> {
    loop {
        let wanted = session.transmit_wanted();
        tokio::pin!(wanted);
        wanted.as_mut().enable();
        let mut half = send.lock().await;
        let out = gather_control(&session, id)?;
        if out.is_empty() {
            drop(half);
            let _ = tokio::time::timeout(Duration::from_secs(1), wanted).await;
            continue;
        }
        half.send(&out, None).await?;
        half.flush().await?;
    }
}

/// The control frames that this link should carry now. To be called by who holds its sending half: on an ordered stream
/// data must not overtake the messages that announce it, or the end that waits for these would never read them.
pub(super) fn gather_control(session: &Session, id: LinkId) -> Result<Vec<u8>, LinkError> {
    let mut out = Vec::new();
    let mut state = session.lock();
    let state = &mut *state;
    let Some(link) = state.links.get_mut(&id) else { return Err(LinkError::Left) };
    let quiet = link.heard.elapsed();
    if quiet > DEAD_AFTER {
        return Err(LinkError::Silent(quiet));
    }
    if std::mem::take(&mut link.pong_due) {
        push_frame(&mut out, FrameKind::Pong, &[&[0; 8]]);
    }
    if quiet > PING_AFTER && link.ping_sent.is_none_or(|at| at.elapsed() > PING_AFTER) {
        link.ping_sent = Some(std::time::Instant::now());
        push_frame(&mut out, FrameKind::Ping, &[&[0; 8]]);
    }
    while out.len() < WRITE_BYTES
        && let Some(n) = state.channel.poll_transmit(id)
    {
        push_frame(&mut out, FrameKind::Control, &[&n.head(), n.body]);
    }
    if out.is_empty()
        && state.channel.primary() == Some(id)
        && let Some(ack) = state.channel.poll_ack()
    {
        push_frame(&mut out, FrameKind::Ack, &[&ack.to_le_bytes()]);
    }
    Ok(out)
}

fn push_frame(out: &mut Vec<u8>, kind: FrameKind, parts: &[&[u8]]) {
    let body_bytes = parts.iter().map(|p| p.len()).sum();
    out.extend_from_slice(&FrameHeader { kind, body_bytes }.encode());
    for part in parts {
        out.extend_from_slice(part);
    }
}
