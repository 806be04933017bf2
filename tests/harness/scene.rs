use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

/// One test's place: a folder on a real file system, and a mark that all its processes carry.
#[derive(Debug)]
pub(crate) struct Scene {
    dir: tempfile::TempDir,
    mark: String,
}

impl Scene {
    /// Not of the program's own prefix: it warns about settings that it does not know.
    pub(crate) const MARK: &'static str = "TEST_SCENE_OF_CCAT_XFER";

    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::var_os("CCAT_XFER_TEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        fs::create_dir_all(&base).expect("the folder for tests can be made");
        SWEEP.call_once(|| sweep(&base));
        let dir = tempfile::Builder::new()
            .prefix(&format!("{name}-p{}-", std::process::id()))
            .rand_bytes(6)
            .tempdir_in(base)
            .expect("a temporary folder");
        Self { dir, mark: format!("{name}-{}-{n}", std::process::id()) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An empty folder of this name, made now.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("a folder can be made");
        path
    }

    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// Processes of this scene that run the program under test.
    pub(crate) fn engines(&self) -> Vec<i32> {
        let program = fs::canonicalize(super::xfer::PROGRAM).unwrap_or_default();
        processes_with(&self.mark)
            .into_iter()
            .filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program))
            .collect()
    }

    /// Waits until none of them is left; says which are if they stay.
    pub(crate) fn assert_no_engine_left(&self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let left = self.engines();
            if left.is_empty() {
                return;
            }
            if Instant::now() > end {
                let said: Vec<String> = left.iter().map(|pid| format!("{pid}: {}", command_line(*pid))).collect();
                panic!("processes left after {limit:?}:\n{}", said.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Folders of test processes that are gone: killed ones, and those that a static held.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.rsplit("-p").next()?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // A folder without write permission cannot be emptied by anybody but root; the next run tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

static SWEEP: Once = Once::new();

impl Drop for Scene {
    fn drop(&mut self) {
        // Twice: a process may have been forking while it was looked for.
        for _ in 0..2 {
            for pid in processes_with(&self.mark) {
                kill(pid, Signal::CONT);
                kill(pid, Signal::KILL);
            }
        }
        if std::env::var_os("CCAT_XFER_KEEP").is_some() {
            super::say(&format!("kept: {}", self.dir.path().display()));
            self.dir.disable_cleanup(true);
        }
    }
}

/// Processes whose environment holds this mark. Zombies have none.
pub(crate) fn processes_with(mark: &str) -> Vec<i32> {
    let wanted = format!("{}={mark}", Scene::MARK);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|&b| b == 0).any(|one| one == wanted.as_bytes()) {
            found.push(pid);
        }
    }
    found
}

pub(crate) fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // Gone already is as good.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

pub(crate) fn command_line(pid: i32) -> String {
    fs::read(format!("/proc/{pid}/cmdline"))
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .unwrap_or_default()
}

/// The most memory that a living process ever held resident, in KiB.
pub(crate) fn peak_rss_kib(pid: i32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

pub(crate) fn status_kib(pid: i32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is on the PATH, or in the folders that only root has there.
pub(crate) fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}
