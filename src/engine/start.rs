//! The handshake of a session, from either end, and the job behind it.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    FailureClass, JobError, JobId, Limit, Observer, Options, Pace, Summary,
    attempts::Scope,
    places::{Places, resolve_destination, top_name},
    receipts,
    receive::{self, Destination, host_name},
    send::{self, SourceFigures, Sources},
    session::{Machine, Session},
    walk::Walk,
};
use crate::{
    chunk::ChunkSize,
    disk::Root,
    journal::{Jobs, JournalError, PartStore, StoreOptions},
    protocol::{
        FEATURES, Hello, JobFlags, MAX_HELLO_ITEMS, Message, Purpose, Receiver, Request, Sender, TypedPath, Welcome,
        common, unknown_required,
    },
};

/// How long the ends wait for each other's first words.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

fn flags(options: &Options) -> JobFlags {
    JobFlags {
        overwrite: options.overwrite,
        quick: options.quick,
        read_back: options.read_back,
        owner: options.owner,
        dry_run: options.dry_run,
    }
}

fn hello(options: &Options, request: Request) -> Message {
    // A sending end always packs and leaves holes out, so the other end must know both.
    let known: Vec<u16> = FEATURES.iter().map(|f| f.code).collect();
    let (required, optional) = match request {
        Request::Push { .. } => (known, Vec::new()),
        Request::Pull { .. } => (Vec::new(), known),
    };
    Message::Hello(Box::new(Hello {
        required,
        optional,
        program: super::program().to_owned(),
        job: options.job.0,
        fence: options.fence,
        purpose: Purpose::Copy,
        chunk_size: options.chunk_size,
        flags: flags(options),
        rate_limit: options.rate_limit.unwrap_or(0),
        streams: options.streams.map_or(0, NonZeroU32::get),
        request,
    }))
}

/// The first words of a session that asks for what is kept of a job.
pub(super) fn request_for_receipts(destination: TypedPath, job: JobId) -> Message {
    let mut message = hello(&Options::default(), Request::Push { destination, sources: Vec::new(), more: false });
    if let Message::Hello(hello) = &mut message {
        (hello.job, hello.purpose) = (job.0, Purpose::Receipts);
    }
    message
}

async fn hear(session: &Session) -> Result<Message, JobError> {
    tokio::time::timeout(HANDSHAKE_LIMIT, session.hear()).await.unwrap_or_else(|_| {
        Err(JobError::new(FailureClass::Network, "the peer said nothing for 30 s after the link was up"))
    })
}

pub(super) async fn welcome(session: &Session) -> Result<Welcome, JobError> {
    match hear(session).await? {
        Message::Welcome(welcome) => Ok(welcome),
        _ => Err(JobError::new(FailureClass::Network, "the peer answered with something else than a welcome")),
    }
}

/// A walk over the sources, or why there is nothing to walk.
pub fn walk(sources: &[PathBuf]) -> Result<Walk, JobError> {
    Walk::new(sources).map_err(|e| JobError::new(e.class(), e.to_string()))
}

/// Starts a job that sends.
pub async fn push(
    session: &Arc<Session>,
    walk: Walk,
    typed: &[PathBuf],
    destination: TypedPath,
    options: &Options,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, JobError> {
    use std::os::unix::ffi::OsStrExt as _;
    let sources: Vec<Vec<u8>> = typed.iter().take(MAX_HELLO_ITEMS).map(|p| p.as_os_str().as_bytes().to_vec()).collect();
    // A hello is one message; beyond a thousand names the receiver looks at the whole destination instead.
    let more = typed.len() > 1000;
    let sources = if more { sources.into_iter().take(1000).collect() } else { sources };
    session.say(&hello(options, Request::Push { destination, sources, more }));
    let welcome = welcome(session).await?;
    let pace = Pace::new(options.rate_limit);
    send_side(session, walk, welcome.holds, pace, options, observer).await
}

async fn send_side(
    session: &Arc<Session>,
    walk: Walk,
    holds: bool,
    pace: Pace,
    options: &Options,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, JobError> {
    let started = Instant::now();
    let chunk_size = options.chunk_size;
    let streams = options.streams.and_then(|n| usize::try_from(n.get()).ok());
    let sources = Arc::new(Sources::open(&walk, pace, streams, options.expected)?);
    session.install(Machine::Sender(Box::new(Sender::new(chunk_size, holds))), chunk_size);
    let result = send::drive(session, &sources, walk, observer, options.reconnect_timeout).await;
    end(session, &result).await;
    let figures = sources.figures();
    let summary = session.with_sender_quietly(|s| {
        let stats = s.stats();
        let mut summary = Summary {
            bytes: stats.bytes_done,
            bytes_resumed: stats.bytes_resumed,
            bytes_repeated: stats.bytes_repeated,
            failed: stats.failed,
            tree_digest: s.tree_digest(),
            files: stats.files_done,
            others: stats.others_done,
            ..Summary::default()
        };
        if s.tree_disagrees() {
            summary.tree_digest = None;
        }
        (summary, s.tree_disagrees())
    });
    let Some((summary, disagrees)) = summary else {
        return Err(JobError::new(FailureClass::Bug, "no sending machine"));
    };
    let summary = complete(summary, session, figures, started);
    if disagrees {
        return Err(JobError {
            class: FailureClass::Integrity,
            text: "both ends have all files, but their manifests differ; run the job again".to_owned(),
            summary: Some(Box::new(summary)),
        });
    }
    result.map(|()| summary.clone()).map_err(|e| JobError { summary: Some(Box::new(summary)), ..e })
}

/// Starts a job that receives.
pub async fn pull(
    session: &Arc<Session>,
    sources: Vec<TypedPath>,
    destination: &Path,
    options: &Options,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, JobError> {
    let names: Vec<Vec<u8>> = sources.iter().map(|s| s.path.clone()).collect();
    let (root, naming) = resolve_destination(destination, &names, false, options.dry_run)?;
    raise_fence(&root, options.job.0, options.fence)?;
    let store = open_store(&root, options.job.0, options.fence)?;
    let holds = holds(&store, &names, &naming, false) || options.dry_run;
    let place = Destination::new(root, store, naming, flags(options), options.chunk_size);
    keep_receipts(&place, options.job.0, options.fence, "")?;
    session.say(&hello(options, Request::Pull { sources, holds }));
    welcome(session).await?;
    let mut receiver = Receiver::new(options.chunk_size, holds, options.overwrite);
    if let Some(expected) = options.expected {
        receiver.expect(expected);
    }
    receive_side(session, place, receiver, options.chunk_size, options.reconnect_timeout, observer).await
}

/// Receipts are kept where a control plane conducts the job: nobody else would know what to ask for, or ever clear up.
fn keep_receipts(place: &Destination, job: [u8; 16], fence: u64, owner: &str) -> Result<(), JobError> {
    if fence == 0 || place.is_dry() {
        return Ok(());
    }
    place.keep_receipts(job, fence, owner).map_err(|e| receive::job_failure(receive::journal_failure(&e)))
}

/// The first thing that an attempt does at its destination: durably, it is the newest from now on.
fn raise_fence(root: &Arc<Root>, job: [u8; 16], fence: u64) -> Result<(), JobError> {
    if fence == 0 {
        return Ok(());
    }
    Jobs::new(Arc::clone(root)).raise_fence(job, fence).map_err(|e| receive::job_failure(receive::journal_failure(&e)))
}

/// Refuses an attempt that was overtaken by one whose fence is kept in this directory.
fn heed_fence(root: &Arc<Root>, job: [u8; 16], fence: u64) -> Result<(), JobError> {
    let failure = |e| receive::job_failure(receive::journal_failure(&e));
    let highest = Jobs::new(Arc::clone(root)).state(job).map_err(failure)?.fence;
    if highest > fence { Err(failure(JournalError::Overtaken { highest, ours: fence })) } else { Ok(()) }
}

fn open_store(root: &Arc<Root>, job: [u8; 16], fence: u64) -> Result<PartStore, JobError> {
    PartStore::open(Arc::clone(root), StoreOptions { job: Some((job, fence)), ..StoreOptions::default() })
        .map_err(|e| receive::job_failure(receive::journal_failure(&e)))
}

/// Whether the destination has anything that the sender should be told of before it sends.
fn holds(store: &PartStore, typed: &[Vec<u8>], naming: &receive::Naming, more: bool) -> bool {
    let mut names = Vec::new();
    for path in typed {
        match (&naming.rename, top_name(path)) {
            (Some((_, to)), _) => names.push(to.clone()),
            (None, Some(name)) => names.push(name),
            // The contents of a directory may have any names.
            (None, None) => return !store.is_untouched(),
        }
    }
    if more { !store.is_untouched() } else { store.holds(&names) }
}

async fn receive_side(
    session: &Arc<Session>,
    place: Arc<Destination>,
    mut receiver: Receiver,
    chunk_size: ChunkSize,
    reconnect: Duration,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, JobError> {
    let started = Instant::now();
    // Frames wait for the destination; when they find it, the machine must be there.
    if place.keeps_receipts() {
        receiver.keep_receipts();
    }
    session.install(Machine::Receiver(Box::new(receiver)), chunk_size);
    session.set_destination(Arc::clone(&place));
    let result = receive::drive(session, &place, observer, reconnect).await;
    let result = match result {
        // Everything is in place and the sender was told; that it left without a word of thanks changes nothing here.
        Err(e)
            if e.class == FailureClass::Network && session.with_receiver_quietly(|r| r.is_complete()) == Some(true) =>
        {
            Ok(())
        }
        result => result,
    };
    end(session, &result).await;
    let summary = session.with_receiver_quietly(|r| {
        let stats = r.stats();
        Summary {
            bytes: stats.bytes_done,
            bytes_resumed: stats.bytes_resumed,
            bytes_repeated: stats.bytes_refused,
            failed: r.failed(),
            tree_digest: r.tree_digest(),
            files: stats.files_done,
            others: stats.others_done,
            skipped: stats.skipped,
            ..Summary::default()
        }
    });
    let Some(summary) = summary else { return Err(JobError::new(FailureClass::Bug, "no receiving machine")) };
    let skipped = summary.skipped;
    let summary = complete(summary, session, SourceFigures { hard_links: 0, skipped }, started);
    result.map(|()| summary.clone()).map_err(|e| JobError { summary: Some(Box::new(summary)), ..e })
}

fn greeting(hello: &Hello, holds: bool) -> Welcome {
    Welcome { features: common(&hello.optional), program: super::program().to_owned(), host: host_name(), holds }
}

/// Says goodbye as the end of the job demands, and ends the session.
async fn end(session: &Session, result: &Result<(), JobError>) {
    match result {
        Ok(()) => {
            session.drained(Duration::from_secs(3)).await;
            session.leave().await;
        }
        Err(error) => session.abort(error.class, &error.text).await,
    }
}

fn complete(summary: Summary, session: &Session, figures: SourceFigures, started: Instant) -> Summary {
    let links = session.link_figures();
    let (transport_reason, controller) = session.chosen();
    Summary {
        seconds: started.elapsed().as_secs_f64(),
        wire_bytes: links.wire_bytes,
        retransmits: links.retransmits,
        transports: links.transports,
        streams: links.peak_links,
        hard_links: figures.hard_links,
        skipped: figures.skipped,
        transport_reason,
        controller,
        limited_by: Limit::Unknown,
        ..summary
    }
}

/// Serves one session that a peer started, to its end. `pace` holds for all sessions that share it.
pub async fn accept(
    session: &Arc<Session>,
    places: &dyn Places,
    reconnect: Duration,
    pace: Option<Arc<Pace>>,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, JobError> {
    let outcome = accept_inner(session, places, reconnect, pace, observer).await;
    if let Err(error) = &outcome
        && !session.over.is_cancelled()
    {
        session.abort(error.class, &error.text).await;
    }
    outcome
}

async fn accept_inner(
    session: &Arc<Session>,
    places: &dyn Places,
    reconnect: Duration,
    pace: Option<Arc<Pace>>,
    observer: &Arc<dyn Observer>,
) -> Result<Summary, JobError> {
    let Message::Hello(hello) = hear(session).await? else {
        return Err(JobError::new(FailureClass::Network, "the session did not begin with a hello"));
    };
    if let Some(code) = unknown_required(&hello.required) {
        return Err(JobError::new(
            FailureClass::Usage,
            format!("feature {code} is required and unknown to {}; update it", super::program()),
        ));
    }
    let spoken = |code| hello.required.contains(&code) || hello.optional.contains(&code);
    if matches!(hello.request, Request::Pull { .. })
        && let Some(missing) = FEATURES.iter().find(|f| !spoken(f.code))
    {
        return Err(JobError::new(
            FailureClass::Usage,
            format!("the other end must know feature {} ({}); update it", missing.code, missing.meaning),
        ));
    }
    if hello.chunk_size.buffer_bytes() > session.pool.bytes_each() {
        return Err(JobError::new(
            FailureClass::Usage,
            format!("chunks of {} are larger than the buffers here; use a smaller --chunk-size", hello.chunk_size),
        ));
    }
    if hello.purpose == Purpose::Receipts {
        return receipts::tell(session, places, &hello, greeting(&hello, false)).await.map(|()| Summary::default());
    }
    let welcome = |holds| Message::Welcome(greeting(&hello, holds));
    match &hello.request {
        Request::Push { destination, sources, more } => {
            let (root, naming) = places.destination(destination, sources, *more, hello.flags)?;
            if hello.fence > 0 {
                // An earlier attempt may have given the destination its name, and kept its fence beside it.
                for other in places.kept_at(destination)? {
                    heed_fence(&other, hello.job, hello.fence)?;
                }
            }
            raise_fence(&root, hello.job, hello.fence)?;
            let into = Scope::Into { job: hello.job, location: destination.location.clone() };
            let _attempt = places.attempts().map(|a| a.enter(into, hello.fence, session)).transpose()?;
            let store = open_store(&root, hello.job, hello.fence)?;
            let holds = holds(&store, sources, &naming, *more) || hello.flags.dry_run;
            let place = Destination::new(root, store, naming, hello.flags, hello.chunk_size);
            keep_receipts(&place, hello.job, hello.fence, places.peer().unwrap_or_default())?;
            session.say(&welcome(holds));
            let receiver = Receiver::new(hello.chunk_size, holds, hello.flags.overwrite);
            receive_side(session, place, receiver, hello.chunk_size, reconnect, observer).await
        }
        Request::Pull { sources, holds } => {
            let opened = places.sources(sources)?;
            let to = Scope::To { job: hello.job, peer: places.peer().unwrap_or_default().to_owned() };
            let _attempt = places.attempts().map(|a| a.enter(to, hello.fence, session)).transpose()?;
            let walk = walk(&opened.paths)?;
            session.say(&welcome(false));
            // The lower of what the endpoint allows and the starter asks for.
            let asked = Some(hello.rate_limit).filter(|r| *r > 0);
            tracing::debug!(streams = hello.streams, rate_limit = hello.rate_limit, "the peer fetches");
            let pace = Pace::new(asked).within(pace);
            let options = Options {
                chunk_size: hello.chunk_size,
                reconnect_timeout: reconnect,
                streams: NonZeroU32::new(hello.streams),
                ..Options::default()
            };
            let result = send_side(session, walk, *holds, pace, &options, observer).await;
            drop(opened);
            result
        }
    }
}
