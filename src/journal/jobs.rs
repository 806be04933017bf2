use std::{
    fs::File,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    JournalError,
    folder::{make_parts_dir, open_parts_dir},
    log::{Log, Replayed, replay},
    receipts::receipts_name,
    record::Body,
};
use crate::{
    chunk::escape_bytes,
    disk::{Dir, DiskError, DiskErrorKind, LockOutcome, Root, lock_file},
};

/// What a destination remembers of jobs: the highest fence seen, and receipts that can be asked for again.
#[derive(Clone, Debug)]
pub struct Jobs {
    root: Arc<Root>,
}

/// What is remembered of one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobState {
    /// Highest fence that an attempt came with.
    pub fence: u64,
}

impl Jobs {
    /// The jobs of one destination directory. Makes nothing.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// Begins an attempt: durably raises the job's fence, or refuses one that was overtaken. Equal fences are the same
    /// attempt again.
    pub fn raise_fence(&self, job: [u8; 16], fence: u64) -> Result<(), JournalError> {
        let mut file = JobFile::open_or_create(&self.root, job)?;
        if fence < file.state.fence {
            return Err(JournalError::Overtaken { highest: file.state.fence, ours: fence });
        }
        if fence > file.state.fence {
            file.append(Body::Fence { fence })?;
        }
        Ok(())
    }

    /// What is remembered of a job; the default if nothing is.
    pub fn state(&self, job: [u8; 16]) -> Result<JobState, JournalError> {
        read_state(&self.root, job)
    }

    /// Forgets a job and its receipts, once its sender has them and no fence must be remembered.
    pub fn forget(&self, job: [u8; 16]) -> Result<(), JournalError> {
        let Some(dir) = open_jobs(&self.root)? else { return Ok(()) };
        match dir.remove_file(&receipts_name(job)) {
            Err(e) if e.kind() != DiskErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let name = file_name(job);
        let file = match dir.open_write(&name) {
            Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        if matches!(wait_for(&dir, &name, &file)?, LockOutcome::Gone) {
            return Ok(());
        }
        dir.remove_file(&name)?;
        dir.sync()?;
        Ok(())
    }
}

/// Refuses if a newer attempt has begun.
pub(super) fn check_fence(root: &Root, job: [u8; 16], ours: u64) -> Result<(), JournalError> {
    let highest = read_state(root, job)?.fence;
    if highest > ours { Err(JournalError::Overtaken { highest, ours }) } else { Ok(()) }
}

fn read_state(root: &Root, job: [u8; 16]) -> Result<JobState, JournalError> {
    let mut state = JobState::default();
    let Some(dir) = open_jobs(root)? else { return Ok(state) };
    let name = file_name(job);
    let file = match dir.open_read(&name) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => return Ok(state),
        other => other?,
    };
    let replayed = replay(&file, |body| state.apply(body)).map_err(|e| DiskError::new("read", dir.child(&name), e))?;
    refuse_damage(&dir, &name, &replayed)?;
    Ok(state)
}

impl JobState {
    fn apply(&mut self, body: Body) {
        if let Body::Fence { fence } = body {
            self.fence = self.fence.max(fence);
        }
    }
}

/// A job's file, locked.
struct JobFile {
    dir: Arc<Dir>,
    name: Vec<u8>,
    file: File,
    log: Log,
    state: JobState,
}

impl JobFile {
    fn open_or_create(root: &Root, job: [u8; 16]) -> Result<Self, JournalError> {
        let name = file_name(job);
        for _ in 0..CREATE_TRIES {
            let dir = match make_jobs(root) {
                // A session that finished took the empty directory away.
                Err(JournalError::Disk(e)) if e.kind() == DiskErrorKind::NotFound => continue,
                other => other?,
            };
            let file = match dir.create_file(&name) {
                Err(e) if e.kind() == DiskErrorKind::Exists => dir.open_write(&name),
                other => other,
            };
            let file = match file {
                Err(e) if e.kind() == DiskErrorKind::NotFound => continue,
                other => other?,
            };
            if matches!(wait_for(&dir, &name, &file)?, LockOutcome::Gone) {
                continue;
            }
            let error = |e| DiskError::new("read", dir.child(&name), e);
            let mut state = JobState::default();
            let replayed = replay(&file, |body| state.apply(body)).map_err(error)?;
            refuse_damage(&dir, &name, &replayed)?;
            let log = if replayed.known {
                Log::resume(&file, &replayed).map_err(error)?
            } else {
                file.set_len(0).map_err(error)?;
                let log = Log::create(&file, job).map_err(error)?;
                file.sync_all().map_err(error)?;
                dir.sync()?;
                log
            };
            return Ok(Self { dir, name, file, log, state });
        }
        Err(JournalError::Busy { path: escape_bytes(&name) })
    }

    fn append(&mut self, body: Body) -> Result<(), JournalError> {
        let error = |e| DiskError::new("write", self.dir.child(&self.name), e);
        self.log.append(&self.file, [body]).map_err(error)?;
        self.file.sync_data().map_err(error)?;
        Ok(())
    }
}

/// What fence a damaged file held is not known, so nothing may go on. An append that a crash cut short was promised to
/// nobody.
fn refuse_damage(dir: &Dir, name: &[u8], replayed: &Replayed) -> Result<(), JournalError> {
    if replayed.foreign || replayed.damaged {
        let path = escape_bytes(&dir.child(name));
        return Err(JournalError::NotOurs { path, why: "it is damaged or from a newer version of this program" });
    }
    Ok(())
}

fn wait_for(dir: &Dir, name: &[u8], file: &File) -> Result<LockOutcome, JournalError> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match lock_file(dir, name, file)? {
            LockOutcome::Busy if Instant::now() >= deadline => {
                return Err(JournalError::Busy { path: escape_bytes(&dir.child(name)) });
            }
            LockOutcome::Busy => thread::sleep(LOCK_POLL),
            other => return Ok(other),
        }
    }
}

pub(super) fn make_jobs(root: &Root) -> Result<Arc<Dir>, JournalError> {
    let parts_dir = make_parts_dir(root)?;
    if parts_dir.create_dir(JOBS_NAME, 0o700)? {
        parts_dir.sync()?;
    }
    Ok(Arc::new(parts_dir.open_dir(JOBS_NAME)?))
}

pub(super) fn open_jobs(root: &Root) -> Result<Option<Arc<Dir>>, JournalError> {
    let Some(parts_dir) = open_parts_dir(root)? else { return Ok(None) };
    match parts_dir.open_dir(JOBS_NAME) {
        Err(e) if e.kind() == DiskErrorKind::NotFound => Ok(None),
        other => Ok(Some(Arc::new(other?))),
    }
}

pub(super) fn file_name(job: [u8; 16]) -> Vec<u8> {
    job.iter().map(|b| format!("{b:02x}")).collect::<String>().into_bytes()
}

/// Folder of the parts directory with one file per job.
pub(super) const JOBS_NAME: &[u8] = b"jobs";
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);
const CREATE_TRIES: u32 = 20;
