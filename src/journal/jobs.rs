use std::{
    fs::File,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    JournalError,
    folder::{make_parts_dir, open_parts_dir},
    log::{Log, Replayed, replay},
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
}

/// Forgets fences, the oldest first, where there are more than `most`; not those younger than `age`: nobody comes back with
/// a fence that was overtaken so long ago. One that is being raised just now stays.
pub(super) fn remove_old_fences(dir: &Dir, most: usize, age: Duration) -> Result<(), JournalError> {
    let mut names = Vec::new();
    for entry in dir.entries()? {
        let name = entry?.name;
        if name.len() == FENCE_NAME_BYTES && name.iter().all(u8::is_ascii_hexdigit) {
            names.push(name);
        }
    }
    let Some(surplus) = names.len().checked_sub(most).filter(|n| *n > 0) else { return Ok(()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut old = Vec::new();
    for name in names {
        let Some(stat) = dir.stat_name(&name)? else { continue };
        let changed = stat.identity.ctime;
        if u64::try_from(changed.seconds).is_ok_and(|s| Duration::from_secs(s) + age <= now) {
            old.push((changed, name));
        }
    }
    old.sort_unstable();
    for (_, name) in old.into_iter().take(surplus) {
        let file = match dir.open_write(&name) {
            Err(e) if e.kind() == DiskErrorKind::NotFound => continue,
            other => other?,
        };
        if lock_file(dir, &name, &file)? == LockOutcome::Held {
            dir.remove_file(&name)?;
        }
    }
    Ok(())
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
const FENCE_NAME_BYTES: usize = 32;
/// More jobs than one night has, and longer than any worker is away.
pub(super) const KEPT_FENCES: usize = 100_000;
pub(super) const FENCE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);
const CREATE_TRIES: u32 = 20;
