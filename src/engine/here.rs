//! A job within one machine: both ends in this process, with links in memory between them.
//!
//! What is promised of a copy between two machines (resumed, verified, whole or not at all, holes and times kept) is so
//! promised of a copy between two file systems too, by the same code. It costs a second hash of every byte and two
//! copies in memory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{io::DuplexStream, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    FailureClass, JobError, Observer, Options, Session, Silent, Summary, accept_link, hear_hello, introduce,
    places::{Opened, Places},
    receive::Naming,
    run_link,
    start::{accept, push, walk},
};
use crate::{
    buf::Pool,
    disk::Root,
    net::stream_link,
    protocol::{JobFlags, SessionSecret, TypedPath},
};

/// One is written while the other one is read; more bring nothing on a machine that hashes at several GB/s.
const LINKS: usize = 2;
/// What a link holds between its ends.
const LINK_BYTES: usize = 1 << 20;
/// A link in memory does not come back.
const LOST_LIMIT: Duration = Duration::from_secs(5);
/// How long the ends of a cancelled job may take to make durable what they have.
const END_LIMIT: Duration = Duration::from_secs(15);

/// Copies the file or tree `source` into the folder `to`, under its own name or, where given, under `name`.
///
/// Parts and the fence of `options` are kept in `to`, so the same call resumes. Cancelling makes durable what was copied.
/// Files that fail end the job with [`Summary::failed`] above 0; `observer` hears which ones and why.
///
/// # Errors
/// As a job between two machines, network excepted.
pub async fn copy_here(
    source: PathBuf,
    to: Arc<Root>,
    name: Option<(Vec<u8>, Vec<u8>)>,
    options: &Options,
    observer: Arc<dyn Observer>,
    cancel: &CancellationToken,
) -> Result<Summary, JobError> {
    let options = &Options { reconnect_timeout: LOST_LIMIT, ..options.clone() };
    let sources = vec![source];
    let typed = sources.clone();
    let walk = spawn_blocking(move || walk(&sources))
        .await
        .map_err(|_| JobError::new(FailureClass::Bug, "looking at the source ended badly"))??;
    let (id, secret) = (rand::random(), SessionSecret(rand::random()));
    let session = |secret| Session::new(id, secret, pool(options), options.chunk_size);
    let (near, far) = (session(secret.clone()), session(secret));
    // Whoever drops this job must not leave its links behind.
    let _guards = [near.over.clone().drop_guard(), far.over.clone().drop_guard()];
    for _ in 0..LINKS {
        join(&near, &far).await?;
    }
    let place = Here { root: to, naming: Naming { rename: name } };
    let silent: Arc<dyn Observer> = Arc::new(Silent);
    let destination = TypedPath { location: String::new(), path: Vec::new() };
    let job = async {
        tokio::join!(
            push(&near, walk, &typed, destination, options, &observer),
            accept(&far, &place, options.reconnect_timeout, None, &silent),
        )
    };
    tokio::pin!(job);
    let outcome = tokio::select! {
        outcome = &mut job => Some(outcome),
        () = cancel.cancelled() => {
            near.fail(cancelled());
            tokio::time::timeout(END_LIMIT, &mut job).await.ok()
        }
    };
    near.close("the job is over").await;
    far.close("the job is over").await;
    match outcome {
        None => Err(cancelled()),
        Some((Ok(summary), _)) => Ok(summary),
        // The end that broke off knows why; the other one knows that its links are gone.
        Some((Err(sent), Err(received))) if sent.class == FailureClass::Network => Err(received),
        Some((Err(sent), _)) => Err(sent),
    }
}

fn cancelled() -> JobError {
    JobError::new(FailureClass::Cancelled, "ended on request; the same copy resumes")
}

fn pool(options: &Options) -> Pool {
    let each = options.chunk_size.buffer_bytes();
    Pool::new((options.memory_bytes / each).clamp(6, 4096), each)
}

/// Joins two sessions of one id and secret by one more link.
async fn join(near: &Arc<Session>, far: &Arc<Session>) -> Result<(), JobError> {
    let bug = |error: super::LinkError| JobError::new(FailureClass::Bug, format!("a link in memory failed: {error}"));
    let (here, there) = tokio::io::duplex(LINK_BYTES);
    let link = |end: DuplexStream, dialed| {
        let (read, write) = tokio::io::split(end);
        stream_link(read, write, dialed)
    };
    let (mut calling, mut called) = (link(here, true), link(there, false));
    introduce(&mut calling, near, false).await.map_err(bug)?;
    hear_hello(&mut called).await.map_err(bug)?;
    accept_link(&mut called, far).await.map_err(bug)?;
    drop(run_link(called, far, true));
    drop(run_link(calling, near, false));
    Ok(())
}

/// The one folder that a job within this machine writes to.
struct Here {
    root: Arc<Root>,
    naming: Naming,
}

impl Places for Here {
    fn destination(&self, _: &TypedPath, _: &[Vec<u8>], _: bool, _: JobFlags) -> Result<(Arc<Root>, Naming), JobError> {
        Ok((Arc::clone(&self.root), self.naming.clone()))
    }

    fn sources(&self, _: &[TypedPath]) -> Result<Opened, JobError> {
        Err(JobError::new(FailureClass::Bug, "nothing is fetched within one machine"))
    }

    fn kept_at(&self, _: &TypedPath) -> Result<Vec<Arc<Root>>, JobError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;
    use crate::{chunk::RelPath, engine::measure};

    async fn copy(source: &Path, to: &Path, options: &Options) -> Result<Summary, JobError> {
        let root = Arc::new(Root::open(to).unwrap());
        let never = CancellationToken::new();
        copy_here(source.to_owned(), root, None, options, Arc::new(Silent), &never).await
    }

    #[tokio::test]
    async fn a_copy_has_the_digest_of_its_original_and_a_second_one_moves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("night/empty")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("night/a"), vec![7; 9 << 20]).unwrap();
        fs::set_permissions(from.join("night/a"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("a", from.join("night/link")).unwrap();
        let night = RelPath::new(b"night".to_vec()).unwrap();
        let tree = measure(&Root::open(&from).unwrap(), &night).unwrap();
        let first = copy(&from.join("night"), &to, &Options::default()).await.unwrap();
        assert_eq!((first.failed, first.tree_digest), (0, Some(tree.digest)));
        assert_eq!(measure(&Root::open(&to).unwrap(), &night).unwrap(), tree);
        let second = copy(&from.join("night"), &to, &Options::default()).await.unwrap();
        assert_eq!(second.bytes_resumed, 9 << 20);
    }

    #[tokio::test]
    async fn the_end_that_refuses_says_why() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"abc").unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let options = |fence| Options { job: crate::engine::JobId([3; 16]), fence, ..Options::default() };
        copy(&dir.path().join("a"), &to, &options(2)).await.unwrap();
        let late = copy(&dir.path().join("a"), &to, &options(1)).await.unwrap_err();
        assert_eq!(late.class, FailureClass::Overtaken, "{late}");
    }
}
