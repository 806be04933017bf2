use std::{
    io::Read,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use super::{Events, Scene};

/// Starts a command in a process group of its own, marked as the scene's, its output collected as it comes.
pub(crate) fn spawn(scene: &Scene, mut command: Command) -> Running {
    let words = format!("{command:?}");
    command
        .env(Scene::MARK, scene.mark())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start {words}: {e}"));
    let stdout = Collector::start(child.stdout.take().expect("piped"));
    let stderr = Collector::start(child.stderr.take().expect("piped"));
    Running { child, words, started, stdout, stderr, done: false }
}

/// A command on its way. Dropping it kills its process group.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    words: String,
    started: Instant,
    stdout: Collector,
    stderr: Collector,
    done: bool,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        super::scene::kill(self.pid(), signal);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.bytes()
    }

    pub(crate) fn stderr_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Waits for the end. A command that outlives `limit` is killed with all its group, and the test fails: nothing
    /// under test may hang.
    pub(crate) fn wait(mut self, limit: Duration) -> Finished {
        let end = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                break status;
            }
            if Instant::now() > end {
                let said = self.describe();
                self.kill_group();
                panic!("not ended after {limit:?}: {said}");
            }
            std::thread::sleep(Duration::from_millis(4));
        };
        self.finish(status)
    }

    /// Waits until `ready` says so or the command ends or the limit passes; tells which.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut(&Self) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if ready(self) {
                return true;
            }
            if !self.is_running() || Instant::now() > end {
                return ready(self);
            }
            std::thread::sleep(Duration::from_millis(4));
        }
    }

    /// Waits until the receiver holds some megabytes, and fails if it is over by then.
    pub(crate) fn wait_until_under_way(&mut self, doing: &str) {
        self.wait_until(Duration::from_secs(60), |run| Events::parse(&run.stdout_so_far()).done() > 8 << 20);
        self.assert_running(doing);
    }

    /// SIGKILL to this process alone, and its end awaited.
    pub(crate) fn kill_now(mut self) -> Finished {
        self.signal(Signal::KILL);
        let status = self.child.wait().expect("wait for a child");
        self.finish(status)
    }

    fn finish(mut self, status: ExitStatus) -> Finished {
        self.done = true;
        let took = self.started.elapsed();
        // A grandchild may hold the pipes open; what it says later is nobody's business.
        let end = Instant::now() + Duration::from_secs(2);
        while !(self.stdout.ended() && self.stderr.ended()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        Finished {
            words: self.words.clone(),
            status,
            took,
            stdout: self.stdout.bytes(),
            stderr: String::from_utf8_lossy(&self.stderr.bytes()).into_owned(),
        }
    }

    /// Fails with all that was said unless it still runs.
    pub(crate) fn assert_running(&mut self, doing: &str) {
        if !self.is_running() {
            panic!("{doing}: it ended already: {}", self.describe());
        }
    }

    fn describe(&self) -> String {
        format!(
            "{}\n--- stdout (end)\n{}\n--- stderr (end)\n{}",
            self.words,
            tail(&String::from_utf8_lossy(&self.stdout.bytes())),
            tail(&self.stderr_so_far())
        )
    }

    fn kill_group(&mut self) {
        if let Some(group) = Pid::from_raw(self.pid()) {
            let _ = rustix::process::kill_process_group(group, Signal::CONT);
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            self.kill_group();
        }
    }
}

/// A command that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) words: String,
    pub(crate) status: ExitStatus,
    pub(crate) took: Duration,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails with all that was said unless the exit code is this one. A signal, and so a crash, is never right.
    pub(crate) fn expect_code(self, code: i32) -> Self {
        self.expect_one_of(&[code])
    }

    pub(crate) fn expect_one_of(self, codes: &[i32]) -> Self {
        let right = self.code().is_some_and(|c| codes.contains(&c));
        assert!(
            right,
            "exit {:?} (signal {:?}) instead of {codes:?} after {:?}\n{}\n--- stdout (end)\n{}\n--- stderr (end)\n{}",
            self.code(),
            self.status.signal(),
            self.took,
            self.words,
            tail(&String::from_utf8_lossy(&self.stdout)),
            tail(&self.stderr)
        );
        assert!(!self.stderr.contains("panicked at"), "a panic in {}:\n{}", self.words, tail(&self.stderr));
        self
    }

    /// All that was said, on stderr or as events.
    pub(crate) fn said(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), self.stderr)
    }

    pub(crate) fn events(&self) -> Events {
        Events::parse(&self.stdout)
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(4000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut block = [0; 16 << 10];
            while let Ok(n @ 1..) = from.read(&mut block) {
                into.lock().expect("no reader panics").extend_from_slice(&block[..n]);
            }
        });
        Self { bytes, thread }
    }

    fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().expect("no reader panics").clone()
    }
}
