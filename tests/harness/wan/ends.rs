//! The two hosts at the ends: network namespaces without a name, each held by a thread. What the thread opens or starts
//! lives inside. The kernel removes a namespace with the last process that uses it, so nothing stays behind however the
//! program ends.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    process::Signal,
    thread::{UnshareFlags, gettid, unshare_unsafe},
};

use super::WanError;

/// The kernel settings of an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Profile {
    /// A Debian host as installed: Linux's defaults for 4 GB of memory and more, where TCP can have 6 MB in flight.
    #[default]
    Debian,
    /// A host tuned for long paths: 64 MB for each TCP connection and for UDP sockets.
    Tuned,
}

/// `net.core.rmem_max` and `wmem_max` are the whole machine's, not a namespace's.
pub(crate) const RMEM_MAX: &str = "/proc/sys/net/core/rmem_max";
pub(crate) const WMEM_MAX: &str = "/proc/sys/net/core/wmem_max";

impl Profile {
    fn tcp_memory(self) -> [(&'static str, &'static str); 2] {
        match self {
            // tcp_rmem and tcp_wmem in Documentation/networking/ip-sysctl.rst.
            Self::Debian => [("net/ipv4/tcp_rmem", "4096 131072 6291456"), ("net/ipv4/tcp_wmem", "4096 16384 4194304")],
            Self::Tuned => {
                [("net/ipv4/tcp_rmem", "4096 131072 67108864"), ("net/ipv4/tcp_wmem", "4096 16384 67108864")]
            }
        }
    }

    /// What `net.core.rmem_max` and `wmem_max` are on such a host.
    pub(crate) fn socket_limit(self) -> u64 {
        match self {
            Self::Debian => 212_992,
            Self::Tuned => 67_108_864,
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// One end of the link.
#[derive(Debug)]
pub(crate) struct Host {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    thread_id: i32,
}

impl Host {
    pub(crate) const DEVICE: &'static str = "wan0";

    /// An end with nothing in it but its loopback.
    pub(crate) fn new(name: &str) -> Result<Self, WanError> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("end {name}")).spawn(move || {
            let made = leave_for_a_new_namespace().map(|()| gettid().as_raw_pid());
            let failed = made.is_err();
            let _ = ready.send(made);
            if failed {
                return;
            }
            for job in todo {
                job();
            }
        });
        let thread = thread.map_err(|source| WanError::Thread { source })?;
        let made = made.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        let thread_id = made.map_err(|source| WanError::Namespace { source })?;
        let host = Self { jobs: Some(jobs), thread: Some(thread), thread_id };
        host.ip(&["link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// Runs something on the thread inside the end, so that the sockets that it opens belong there.
    pub(crate) fn call<R: Send + 'static>(&self, what: impl FnOnce() -> R + Send + 'static) -> Result<R, WanError> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = done.send(what());
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        let result = if sent { result.recv().ok() } else { None };
        result.ok_or_else(|| WanError::Thread { source: io::ErrorKind::BrokenPipe.into() })
    }

    /// Starts a program inside. It dies with this value, or with this process however that ends.
    #[expect(unsafe_code, reason = "a step between fork and exec has no safe wrapper")]
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Child, WanError> {
        let program = command.get_program().to_string_lossy().into_owned();
        // SAFETY: the closure makes one system call and touches no memory, lock or allocator.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        self.call(move || command.spawn())?.map_err(|source| WanError::Start { program, source })
    }

    /// Runs a program inside to its end and gives what it printed.
    pub(crate) fn output(&self, mut command: Command) -> Result<String, WanError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = format!("{command:?}");
        let out = self.spawn(command)?.wait_with_output();
        let out = out.map_err(|source| WanError::Start { program: program.clone(), source })?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        Err(WanError::Failed { program, said: String::from_utf8_lossy(&out.stderr).trim().to_owned() })
    }

    fn ip(&self, words: &[&str]) -> Result<(), WanError> {
        let mut command = Command::new("ip");
        command.args(words);
        self.output(command).map(drop)
    }

    /// Sets a kernel parameter of this end, such as `net/ipv4/tcp_congestion_control`.
    pub(crate) fn set(&self, parameter: &str, value: &str) -> Result<(), WanError> {
        let path = Path::new("/proc/sys").join(parameter);
        let (to, text) = (path.clone(), value.to_owned());
        self.call(move || fs::write(to, text))?.map_err(|source| WanError::Parameter {
            path,
            value: value.to_owned(),
            source,
        })
    }

    pub(crate) fn prepare(&self, profile: Profile, congestion: Option<&str>) -> Result<(), WanError> {
        for (parameter, value) in profile.tcp_memory() {
            self.set(parameter, value)?;
        }
        // What a route's metrics remember of one run must not help the next.
        self.set("net/ipv4/tcp_no_metrics_save", "1")?;
        match congestion {
            Some(name) => {
                const DEFAULT: &str = "net/ipv4/tcp_congestion_control";
                match self.set(DEFAULT, name) {
                    // A namespace takes only what the machine allows to everybody: that is widened for a moment.
                    Err(WanError::Parameter { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                        let _allowed = Allowed::also(name)?;
                        self.set(DEFAULT, name)
                    }
                    done => done,
                }
            }
            None => Ok(()),
        }
    }

    /// Makes the device and gives it its addresses.
    pub(crate) fn plug(&self, addresses: [&str; 2], mtu: u32) -> Result<fs::File, WanError> {
        let device = self.call(|| super::tun::open(Self::DEVICE))?.map_err(|source| WanError::Device { source })?;
        let mtu = mtu.to_string();
        // The kernel drops what the device's own queue cannot take, so that one is made to hold any burst.
        self.ip(&["link", "set", Self::DEVICE, "mtu", &mtu, "txqueuelen", "20000", "up"])?;
        let [v4, v6] = addresses;
        self.ip(&["addr", "add", &format!("{v4}/24"), "dev", Self::DEVICE])?;
        // A kernel without IPv6 is still a host.
        let _ = self.ip(&["addr", "add", &format!("{v6}/64"), "dev", Self::DEVICE, "nodad"]);
        Ok(device)
    }

    /// Removes the device; who reads from it gets an error.
    pub(crate) fn unplug(&self) {
        let _ = self.ip(&["link", "del", Self::DEVICE]);
    }

    /// What the device refused because its queue was full: packets that the model never saw.
    pub(crate) fn refused(&self) -> u64 {
        let text = self.read("dev");
        let line = text.lines().find_map(|l| l.trim().strip_prefix(Self::DEVICE)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().nth(11)?.parse().ok()).unwrap_or(0)
    }

    /// A table of `/proc/net` of this end.
    pub(crate) fn read(&self, table: &str) -> String {
        let path = format!("/proc/thread-self/net/{table}");
        self.call(move || fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
    }

    /// Waits until something inside listens on this port, TCP or UDP.
    pub(crate) fn wait_for_port(&self, port: u16, limit: Duration) -> bool {
        let mut wanted = String::new();
        let _ = write!(wanted, ":{port:04X}");
        let listens = |line: &str| {
            let mut words = line.split_whitespace();
            let local = words.nth(1).is_some_and(|w| w.ends_with(&wanted));
            // 0A is LISTEN, 07 the only state of a UDP socket without a peer (net/tcp_states.h).
            local && words.nth(1).is_some_and(|state| state == "0A" || state == "07")
        };
        let end = Instant::now() + limit;
        loop {
            if ["tcp", "tcp6", "udp", "udp6"].iter().any(|table| self.read(table).lines().any(listens)) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// For `nsenter --net=...`, while it lives.
    pub(crate) fn namespace(&self) -> String {
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.thread_id)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The machine's `tcp_allowed_congestion_control` with one more, put back with the value.
struct Allowed {
    was: String,
}

impl Allowed {
    const PATH: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

    fn also(name: &str) -> Result<Self, WanError> {
        let was = fs::read_to_string(Self::PATH).unwrap_or_default().trim().to_owned();
        let value = format!("{was} {name}");
        let set = fs::write(Self::PATH, &value);
        set.map_err(|source| WanError::Parameter { path: Self::PATH.into(), value, source })?;
        Ok(Self { was })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.was);
    }
}

#[expect(unsafe_code, reason = "rustix marks `unshare` as unsafe for flags that are not used here")]
fn leave_for_a_new_namespace() -> io::Result<()> {
    // SAFETY: only `UnshareFlags::FILES` can take a descriptor away from under another thread; NEWNET changes nothing but
    // which network later calls of this thread see.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}
