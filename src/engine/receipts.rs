//! Receipts that are said again: by the end that keeps them, to whoever began the job.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    FailureClass, JobError, JobId, places::Places, receive::job_failure, receive::journal_failure, session::Session,
    session::class_of, session::protocol_failure, start,
};
use crate::{
    chunk::Digest,
    disk::Root,
    journal::{Jobs, KeptReceipts},
    protocol::{Hello, Message, Purpose, Receipt, Request, TypedPath, Welcome},
};

/// How long either end waits for the next word of the other.
const WORD_LIMIT: Duration = Duration::from_secs(30);
/// Messages read from disk ahead of the links.
const READ_AHEAD: usize = 2;

/// What the receiver said about one entry of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It reached its end.
    Receipt(Receipt),
    /// It failed.
    Failed {
        /// Id of the entry in the session that made the receipts.
        id: u64,
        /// Who or what was at fault.
        class: FailureClass,
        /// For a human.
        text: String,
    },
}

/// What the receiver said about the whole tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptTree {
    /// Tree digest, if no entry failed.
    pub digest: Option<Digest>,
    /// Entries that failed.
    pub failed: u64,
    /// Entries told of.
    pub entries: u64,
}

/// Asks the peer for the receipts of a job that this end pushed to `destination`. `tell` hears of each entry once, in the
/// order in which they ended; memory is needed for a few messages only, however long the list is.
///
/// # Errors
/// Usage: the peer keeps none of this job, or not for us. Otherwise as a job's.
pub async fn ask_receipts(
    session: &Arc<Session>,
    destination: TypedPath,
    job: JobId,
    tell: &mut (dyn FnMut(Kept) + Send),
) -> Result<KeptTree, JobError> {
    let outcome = ask(session, destination, job, tell).await;
    if let Err(error) = &outcome {
        session.abort(error.class, &error.text).await;
    }
    outcome
}

async fn ask(
    session: &Arc<Session>,
    destination: TypedPath,
    job: JobId,
    tell: &mut (dyn FnMut(Kept) + Send),
) -> Result<KeptTree, JobError> {
    session.say(&start::request_for_receipts(destination, job));
    start::welcome(session).await?;
    let mut entries = 0u64;
    loop {
        match word(session).await? {
            Message::Receipts(receipts) => {
                for receipt in receipts {
                    entries += 1;
                    tell(Kept::Receipt(receipt));
                }
            }
            Message::EntryFailed { id, class, text } => {
                entries += 1;
                tell(Kept::Failed { id, class: class_of(class), text });
            }
            Message::TreeReceipt { digest, failed } => {
                session.say(&Message::Bye);
                session.drained(Duration::from_secs(3)).await;
                session.leave().await;
                return Ok(KeptTree { digest, failed, entries });
            }
            _ => return Err(misbehaved("it answered with something else than receipts")),
        }
    }
}

/// Answers a peer that asks. `welcome` is said only if there is something to tell.
pub(super) async fn tell(
    session: &Arc<Session>,
    places: &dyn Places,
    hello: &Hello,
    welcome: Welcome,
) -> Result<(), JobError> {
    debug_assert_eq!(hello.purpose, Purpose::Receipts);
    let Request::Push { destination, .. } = &hello.request else {
        return Err(JobError::new(
            FailureClass::Usage,
            "whoever starts a pull keeps its receipts; there are none here",
        ));
    };
    let roots = places.kept_at(destination)?;
    let (job, peer) = (hello.job, places.peer().map(str::to_owned));
    let found = spawn_blocking(move || find(roots, job, peer.as_deref())).await.map_err(|_| ended_badly())??;
    // The same words whether there are none or they are another's.
    let Some(kept) = found else {
        return Err(JobError::new(
            FailureClass::Usage,
            format!(
                "no receipts of job {} are kept here for you; run the job again: files that are there are compared",
                JobId(job)
            ),
        ));
    };
    session.say(&Message::Welcome(welcome));
    let (tx, mut rx) = mpsc::channel(READ_AHEAD);
    let reading = spawn_blocking(move || {
        kept.read(|bytes| {
            // A listener that left needs no more.
            let _ = tx.blocking_send(bytes);
        })
    });
    let mut complete = false;
    while let Some(bytes) = rx.recv().await {
        let message = Message::decode(&bytes).ok().filter(|_| !complete);
        complete = match message {
            Some(Message::Receipts(_) | Message::EntryFailed { .. }) => false,
            Some(Message::TreeReceipt { .. }) => true,
            _ => {
                return Err(JobError::new(
                    FailureClass::Destination,
                    "what is kept of this job is no list of receipts",
                ));
            }
        };
        if let Some(message) = &message {
            session.say(message);
        }
        if tokio::time::timeout(WORD_LIMIT, session.unburdened()).await.is_err() {
            return Err(silent());
        }
    }
    reading.await.map_err(|_| ended_badly())?.map_err(|e| job_failure(journal_failure(&e)))?;
    if !complete {
        return Err(JobError::new(FailureClass::Destination, "the receipts of this job are not complete"));
    }
    match word(session).await? {
        Message::Bye => {
            session.drained(Duration::from_secs(3)).await;
            session.leave().await;
            Ok(())
        }
        _ => Err(misbehaved("it was told everything and did not leave")),
    }
}

/// The first of these directories that keeps the job's receipts for this peer.
fn find(roots: Vec<Arc<Root>>, job: [u8; 16], peer: Option<&str>) -> Result<Option<KeptReceipts>, JobError> {
    for root in roots {
        let found = Jobs::new(root).receipts(job).map_err(|e| job_failure(journal_failure(&e)))?;
        if let Some(kept) = found.filter(|kept| peer.is_none_or(|peer| kept.owner == peer)) {
            return Ok(Some(kept));
        }
    }
    Ok(None)
}

async fn word(session: &Session) -> Result<Message, JobError> {
    tokio::time::timeout(WORD_LIMIT, session.hear()).await.unwrap_or_else(|_| Err(silent()))
}

fn silent() -> JobError {
    JobError::new(FailureClass::Network, format!("nothing came from the peer for {} s", WORD_LIMIT.as_secs()))
}

fn ended_badly() -> JobError {
    JobError::new(FailureClass::Bug, "reading receipts ended badly")
}

fn misbehaved(what: &'static str) -> JobError {
    protocol_failure(&crate::protocol::ProtocolError::PeerMisbehaved(what))
}
