//! Outcomes that the database did not take yet, one file each, on this machine's disk. A file is there before the slot of
//! its attempt is free, and goes only after the database has accepted the outcome or called it stale.
//!
//! For the first 5 s after its end an outcome is on its way to the database, and in memory only. Should the worker die then,
//! the lease runs out and the work is done again; the receiver has the bytes.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task::spawn_blocking};

use super::{
    AWAY, Shared, complain,
    finish::{Written, write},
    wait,
};
use crate::{
    disk::{DiskError, Root, write_file},
    model::AttemptOutcome,
    telemetry::health::Heartbeat,
};

/// A folder of outcomes. Named by work and fence, which end only once.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    waiting: AtomicUsize,
    changed: Notify,
}

/// Why an outcome could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder cannot be read or made.
    #[error("cannot use the folder of spooled outcomes {}: {source}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file cannot be written durably.
    #[error("cannot keep an outcome: {0}")]
    Write(#[from] DiskError),
    /// The task that wrote ended badly.
    #[error("keeping an outcome ended badly")]
    Task,
}

impl Spool {
    /// Opens a folder, making it if need be, and counts what an earlier process left there.
    pub(super) fn open(folder: &Path) -> Result<Self, SpoolError> {
        let wrong = |source| SpoolError::Folder { folder: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(wrong)?;
        let waiting = files(folder).map_err(wrong)?.len();
        if waiting > 0 {
            tracing::info!(waiting, folder = %folder.display(), "outcomes of an earlier run wait for the database");
        }
        Ok(Self { folder: folder.to_owned(), waiting: AtomicUsize::new(waiting), changed: Notify::new() })
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Keeps one durably.
    pub(super) async fn put(&self, outcome: AttemptOutcome) -> Result<(), SpoolError> {
        let folder = self.folder.clone();
        let name = name_of(&outcome);
        tracing::warn!(file = name, "the outcome is kept on this machine until the database takes it");
        spawn_blocking(move || {
            let root = Root::open(&folder)?;
            write_file(root.handle(), name.as_bytes(), outcome.to_json().as_bytes())
        })
        .await
        .map_err(|_| SpoolError::Task)??;
        self.recount();
        self.changed.notify_waiters();
        Ok(())
    }

    fn recount(&self) {
        if let Ok(found) = files(&self.folder) {
            self.waiting.store(found.len(), Ordering::Release);
        }
    }
}

/// Writes what is spooled as soon as the database takes it. Runs until it is aborted.
pub(super) async fn replay(shared: Arc<Shared>, pulse: Heartbeat) {
    let mut delays = AWAY.delays();
    loop {
        if shared.spool.waiting() > 0 {
            match replay_all(&shared).await {
                Ok(()) => delays.reset(),
                Err(Trouble::Store(error)) => complain(&error, &mut delays, "spooled outcomes wait for the database"),
                Err(Trouble::Io(error)) => tracing::error!(%error, "spooled outcomes cannot be read"),
            }
            shared.spool.recount();
        }
        pulse.found_nothing();
        if shared.spool.waiting() > 0 {
            let time = delays.next_delay();
            tokio::time::sleep(time).await;
        } else {
            tokio::select! {
                () = shared.spool.changed.notified() => {}
                () = wait(&shared.gate, IDLE) => tokio::time::sleep(SETTLE).await,
            }
        }
    }
}

enum Trouble {
    Store(crate::store::StoreError),
    Io(io::Error),
}

async fn replay_all(shared: &Shared) -> Result<(), Trouble> {
    for file in files(&shared.spool.folder).map_err(Trouble::Io)? {
        let bytes = fs::read(&file).map_err(Trouble::Io)?;
        let outcome = match AttemptOutcome::from_json(&bytes) {
            Ok(outcome) => outcome,
            Err(error) => {
                set_aside(&file, &error).map_err(Trouble::Io)?;
                continue;
            }
        };
        match write(&shared.store, &outcome).await {
            Written::Done => fs::remove_file(&file).map_err(Trouble::Io)?,
            Written::Later(error) => return Err(Trouble::Store(error)),
            Written::Never(error) => set_aside(&file, &error).map_err(Trouble::Io)?,
        }
    }
    Ok(())
}

/// Keeps a file that will never be taken, under a name that is not replayed: a person may want to know.
fn set_aside(file: &Path, why: &dyn std::error::Error) -> io::Result<()> {
    tracing::error!(file = %file.display(), error = %why, "an outcome is set aside: it cannot be written");
    fs::rename(file, file.with_extension("refused"))
}

/// The outcomes there, oldest name first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn name_of(outcome: &AttemptOutcome) -> String {
    format!("{}-{}.json", outcome.work, outcome.fence)
}

/// Between looks at a folder in which nothing waits.
const IDLE: Duration = Duration::from_secs(10);
/// While the gate drains there is no waiting for it; a short rest instead.
const SETTLE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ending, Fence, TransferId, Work};

    fn outcome(number: i64) -> AttemptOutcome {
        let time = super::super::wall_clock();
        AttemptOutcome::new(Work::Transfer(TransferId::new(number)), Fence::new(2), "w", time, time, Ending::Completed)
    }

    #[tokio::test]
    async fn what_is_spooled_is_found_by_the_next_process() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("state/spool");
        let spool = Spool::open(&folder).unwrap();
        assert_eq!(spool.waiting(), 0);
        for number in [1, 2, 1] {
            spool.put(outcome(number)).await.unwrap();
        }
        assert_eq!(spool.waiting(), 2, "one fence ends once");
        drop(spool);
        // What a crash leaves half written has another name.
        fs::write(folder.join("t3-1.json.new"), b"{").unwrap();
        let again = Spool::open(&folder).unwrap();
        assert_eq!(again.waiting(), 2);
        let read: Vec<_> =
            files(&folder).unwrap().iter().map(|f| AttemptOutcome::from_json(&fs::read(f).unwrap()).unwrap()).collect();
        assert_eq!(read.iter().map(|o| o.work.number()).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_and_not_replayed_for_ever() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("t1-1.json");
        fs::write(&file, b"{").unwrap();
        let error = AttemptOutcome::from_json(b"{").unwrap_err();
        set_aside(&file, &error).unwrap();
        assert!(files(temp.path()).unwrap().is_empty());
        assert!(temp.path().join("t1-1.refused").exists());
    }
}
