//! Outcomes on their way to the database, one file each, on this machine's disk. A file is there before the database is
//! told, and goes only after the database has accepted the outcome or called it stale. A worker that dies in between finds
//! it when it starts again.
//!
//! | name ends in | the outcome |
//! |---|---|
//! | `.held` | is being written to the database right now; the next start takes it for one that waits |
//! | `.json` | waits for the database, and while it does nothing new is claimed |
//! | `.refused` | will never be taken: it breaks a rule of the database. Told once, kept for a person |

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
    is_away, wait,
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

/// An outcome that is safe here while the database is told.
#[derive(Debug)]
pub(super) struct Held {
    file: PathBuf,
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
        let refused = files_named(folder, "refused").map_err(wrong)?.len();
        if refused > 0 {
            tracing::warn!(refused, folder = %folder.display(), "the database refused outcomes; they lie here");
        }
        Ok(Self { folder: folder.to_owned(), waiting: AtomicUsize::new(waiting), changed: Notify::new() })
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Takes over what an earlier process of this name was telling the database when it died. To be called once the name
    /// is ours.
    pub(super) fn adopt(&self) -> Result<(), SpoolError> {
        let wrong = |source| SpoolError::Folder { folder: self.folder.clone(), source };
        for file in files_named(&self.folder, "held").map_err(wrong)? {
            tracing::info!(file = %file.display(), "an earlier run died with this outcome; it waits for the database");
            fs::rename(&file, file.with_extension("json")).map_err(wrong)?;
        }
        self.recount();
        Ok(())
    }

    /// Makes one durable before the database is told.
    pub(super) async fn hold(&self, outcome: &AttemptOutcome) -> Result<Held, SpoolError> {
        let (folder, name, text) = (self.folder.clone(), name_of(outcome, "held"), outcome.to_json());
        let file = folder.join(&name);
        spawn_blocking(move || {
            let root = Root::open(&folder)?;
            write_file(root.handle(), name.as_bytes(), text.as_bytes())
        })
        .await
        .map_err(|_| SpoolError::Task)??;
        Ok(Held { file })
    }

    /// The database has it.
    pub(super) fn forget(&self, held: &Held) {
        // A file that stays is replayed, which changes nothing.
        if let Err(error) = fs::remove_file(&held.file) {
            tracing::debug!(file = %held.file.display(), %error, "an outcome that was written stays on the disk");
        }
    }

    /// The database does not have it yet: it waits, and is replayed.
    pub(super) fn keep(&self, held: &Held) -> Result<(), SpoolError> {
        tracing::warn!(file = %held.file.display(), "the outcome is kept on this machine until the database takes it");
        let wrong = |source| SpoolError::Folder { folder: self.folder.clone(), source };
        fs::rename(&held.file, held.file.with_extension("json")).map_err(wrong)?;
        self.recount();
        self.changed.notify_waiters();
        Ok(())
    }

    /// The database will never take it.
    pub(super) fn set_aside(&self, held: &Held, why: &dyn std::error::Error) {
        if let Err(error) = set_aside(&held.file, why) {
            tracing::error!(file = %held.file.display(), %error, "a refused outcome cannot be renamed");
        }
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
                Err(Trouble::Io(error)) if delays.failures() == 0 => {
                    tracing::error!(%error, "spooled outcomes cannot be read");
                }
                Err(Trouble::Io(error)) => tracing::debug!(%error, "spooled outcomes still cannot be read"),
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

/// Each file once. One that the database cannot take now, though it is there, does not keep the others.
async fn replay_all(shared: &Shared) -> Result<(), Trouble> {
    let mut trouble = None;
    for file in files(&shared.spool.folder).map_err(Trouble::Io)? {
        let bytes = fs::read(&file).map_err(Trouble::Io)?;
        let outcome = match AttemptOutcome::from_json(&bytes) {
            Ok(outcome) => Arc::new(outcome),
            Err(error) => {
                set_aside(&file, &error).map_err(Trouble::Io)?;
                continue;
            }
        };
        match write(shared, &outcome).await {
            Written::Done => fs::remove_file(&file).map_err(Trouble::Io)?,
            Written::Later(error) if is_away(&error) => return Err(Trouble::Store(error)),
            Written::Later(error) => trouble = trouble.or(Some(error)),
            Written::Never(error) => set_aside(&file, &error).map_err(Trouble::Io)?,
        }
    }
    trouble.map_or(Ok(()), |error| Err(Trouble::Store(error)))
}

/// Keeps a file that will never be taken, under a name that is not replayed: a person may want to know.
fn set_aside(file: &Path, why: &dyn std::error::Error) -> io::Result<()> {
    tracing::error!(file = %file.display(), error = %why, "an outcome is set aside: it cannot be written");
    fs::rename(file, file.with_extension("refused"))
}

/// The outcomes there, oldest name first.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    files_named(folder, "json")
}

fn files_named(folder: &Path, ending: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn name_of(outcome: &AttemptOutcome, ending: &str) -> String {
    format!("{}-{}.{ending}", outcome.work, outcome.fence)
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
            spool.keep(&spool.hold(&outcome(number)).await.unwrap()).unwrap();
        }
        assert_eq!(spool.waiting(), 2, "one fence ends once");
        // What is being told stops nobody from claiming, and is found all the same.
        let told = spool.hold(&outcome(3)).await.unwrap();
        spool.forget(&told);
        spool.hold(&outcome(4)).await.unwrap();
        assert_eq!(spool.waiting(), 2);
        drop(spool);
        // What a crash leaves half written has another name.
        fs::write(folder.join("t3-1.json.new"), b"{").unwrap();
        let again = Spool::open(&folder).unwrap();
        assert_eq!(again.waiting(), 2);
        again.adopt().unwrap();
        assert_eq!(again.waiting(), 3);
        let read: Vec<_> =
            files(&folder).unwrap().iter().map(|f| AttemptOutcome::from_json(&fs::read(f).unwrap()).unwrap()).collect();
        assert_eq!(read.iter().map(|o| o.work.number()).collect::<Vec<_>>(), [1, 2, 4]);
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
