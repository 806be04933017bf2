use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Running, Scene, have, is_root, spawn};

/// Whether commits reach the medium. Without, a test is faster, and says nothing about crashes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Fsync,
    Speed,
}

/// A private PostgreSQL: own data, reached by a socket in its own folder, stopped and removed with the value.
#[derive(Debug)]
pub(crate) struct Postgres {
    server: Option<Running>,
    // Not in the scene's folder: the path of a socket has 107 bytes, and the server's user must reach it.
    dir: tempfile::TempDir,
    programs: PathBuf,
}

impl Postgres {
    pub(crate) const ADMIN: &'static str = "admin";
    const LIMIT: Duration = Duration::from_secs(180);

    /// Why none can be started here.
    pub(crate) fn missing() -> Option<&'static str> {
        if programs().is_none() {
            Some("postgresql is not installed")
        } else if is_root() && (!have("setpriv") || nobody().is_none()) {
            Some("it does not run as root, and there is no setpriv or no user nobody")
        } else {
            None
        }
    }

    pub(crate) fn start(scene: &Scene, durability: Durability) -> Self {
        Self::start_with(scene, durability, &[])
    }

    /// With variables in the server's environment.
    pub(crate) fn start_with(scene: &Scene, durability: Durability, environment: &[(&str, PathBuf)]) -> Self {
        let programs = programs().expect("asked for before");
        let dir = tempfile::Builder::new().prefix("ccat-pg-").tempdir().expect("a temporary folder");
        if is_root() {
            let (user, group) = nobody().expect("asked for before");
            chown(dir.path(), Some(user), Some(group)).expect("give the folder away");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open the folder");
        let mut postgres = Self { server: None, dir, programs };
        let mut init = postgres.program("initdb");
        init.args(["-U", Self::ADMIN, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(postgres.data());
        spawn(scene, init).wait(Self::LIMIT).expect_code(0);
        postgres.launch(scene, durability, environment);
        postgres
    }

    fn launch(&mut self, scene: &Scene, durability: Durability, environment: &[(&str, PathBuf)]) {
        let mut command = self.program_with("postgres", environment);
        command.arg("-D").arg(self.data()).arg("-k").arg(self.dir.path());
        command.args(["-c", "listen_addresses=", "-c", "max_connections=100"]);
        if durability == Durability::Speed {
            command.args(["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off"]);
        }
        let mut server = spawn(scene, command);
        let ready = server.wait_until(Self::LIMIT, |s| s.stderr_so_far().contains("ready to accept connections"));
        assert!(ready, "PostgreSQL does not come up: {}", server.stderr_so_far());
        self.server = Some(server);
    }

    /// The address of a database for a user. Nobody needs a password.
    pub(crate) fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@localhost/{database}?host={}", self.dir.path().display())
    }

    /// What the server has said.
    pub(crate) fn log(&self) -> String {
        self.server.as_ref().map(Running::stderr_so_far).unwrap_or_default()
    }

    /// Signals the server: STOP and CONT make it unreachable for a while, KILL crashes it.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(server) = &self.server {
            server.signal(signal);
        }
    }

    /// Freezes or thaws the server with all its processes: connections stay open, and nothing answers.
    pub(crate) fn freeze(&self, frozen: bool) {
        let Some(server) = &self.server else { return };
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        // The parent first when it freezes, so that it starts no others; last when it thaws.
        let mut processes = children(server.pid());
        if frozen {
            server.signal(signal);
            processes = children(server.pid());
        }
        for process in processes {
            super::kill(process, signal);
        }
        server.signal(signal);
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        self.program_with(name, &[])
    }

    /// With variables that only the program itself has, as the user that it runs as.
    fn program_with(&self, name: &str, environment: &[(&str, PathBuf)]) -> Command {
        let path = self.programs.join(name);
        let variables = environment.iter().map(|(name, value)| format!("{name}={}", value.display()));
        let words: Vec<_> = ["env".to_owned()].into_iter().chain(variables).collect();
        let mut command = if is_root() {
            let (user, group) = nobody().expect("asked for before");
            let mut command = Command::new("setpriv");
            command
                .args([&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups", "--"])
                .args(words)
                .arg(path);
            command
        } else {
            let mut command = Command::new("env");
            command.args(&words[1..]).arg(path);
            command
        };
        command.current_dir(self.dir.path());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Fast shutdown: it takes its shared memory with it, which a kill would leave behind.
            server.signal(Signal::CONT);
            server.signal(Signal::INT);
            let end = Instant::now() + Duration::from_secs(20);
            while server.is_running() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// The processes whose parent this is.
fn children(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|process| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // The name, in brackets, may hold anything.
            let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            rest.split_whitespace().nth(1).and_then(|id| id.parse().ok()) == Some(parent)
        })
        .collect()
}

/// The folder with `initdb` and `postgres`: where Debian puts them, the newest version, or on the PATH.
fn programs() -> Option<PathBuf> {
    let complete = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    let mut installed: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder)| complete(folder))
        .collect();
    installed.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    installed.pop().map(|(_, folder)| folder).or_else(|| std::env::split_paths(&path).find(|f| complete(f)))
}

/// User and group of `nobody`.
fn nobody() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let mut words = passwd.lines().find_map(|line| line.strip_prefix("nobody:"))?.split(':').skip(1);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
