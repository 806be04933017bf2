//! Long work in other tasks and threads, watched from the one that was asked for it.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::spawn_blocking;

use super::{ArchiveError, Progress};
use crate::{
    engine::{Action, FileReport, JobError, Observer, Progress as JobProgress},
    model::ErrorClass,
};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Bytes done so far, and the first file of a copy that failed.
#[derive(Debug, Default)]
pub(super) struct Watch {
    bytes: AtomicU64,
    failed: Mutex<Option<(JobError, Vec<u8>)>>,
}

impl Watch {
    /// So many bytes more.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The first file that failed, and its path.
    pub(super) fn failed(&self) -> Option<(JobError, Vec<u8>)> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for `work`, telling `progress` meanwhile how far it is.
    pub(super) async fn tell<T>(&self, progress: &dyn Progress, work: impl Future<Output = T>) -> T {
        let mut ticker = tokio::time::interval(TELL_EVERY);
        let mut told = 0;
        let mut tell = || {
            let bytes = self.bytes.load(Ordering::Relaxed);
            if bytes > told {
                progress.advance(bytes - told);
                told = bytes;
            }
        };
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    tell();
                    return done;
                }
                _ = ticker.tick() => tell(),
            }
        }
    }
}

impl Observer for Watch {
    fn file(&self, report: &FileReport) {
        if let Action::Failed { class, text } = &report.action {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| (JobError::new(*class, text.clone()), report.path.clone()));
        }
    }

    fn warning(&self, text: &str) {
        tracing::warn!(text, "a copy into or out of an archive");
    }

    fn progress(&self, progress: &JobProgress) {
        self.bytes.fetch_max(progress.bytes_durable, Ordering::Relaxed);
    }
}

/// Runs what touches the disk where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, ArchiveError> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(ArchiveError::new(ErrorClass::Bug, "a task of the archive ended badly")))
}

/// As an observer for the engine.
pub(super) fn observer(watch: &Arc<Watch>) -> Arc<dyn Observer> {
    Arc::clone(watch) as Arc<dyn Observer>
}
