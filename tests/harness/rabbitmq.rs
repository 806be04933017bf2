use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Running, Scene, have, is_root, kill, say, spawn, sshd::wait_for_port};

/// A private RabbitMQ: own node name, ports, folders and port mapper, on loopback only; ended with the value.
#[derive(Debug)]
pub(crate) struct Rabbitmq {
    scene: Scene,
    folder: PathBuf,
    port: u16,
    tls_port: u16,
    distribution_port: u16,
    mapper_port: u16,
    mapper: Option<Running>,
    server: Option<Running>,
    /// The node itself; what was started is a shell around it.
    machine: Option<i32>,
    as_nobody: bool,
}

const LIMIT: Duration = Duration::from_secs(120);
/// Who runs it where the tests run as root.
const NOBODY: u32 = 65534;

impl Rabbitmq {
    const PROGRAM: &'static str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

    /// Why none can be started here.
    pub(crate) fn missing() -> Option<&'static str> {
        if !Path::new(Self::PROGRAM).exists() {
            Some("rabbitmq-server is not installed")
        } else if !have("epmd") {
            Some("Erlang's epmd is not on the PATH")
        } else if is_root() && !have("setpriv") {
            Some("setpriv is not installed")
        } else {
            None
        }
    }

    /// Starts a node and waits until it takes connections. Somebody may take one of its ports before it does; then it gets
    /// others.
    pub(crate) fn start(name: &str) -> Self {
        let mut why = String::new();
        for _ in 0..3 {
            let mut node = Self::prepared(name);
            match node.try_up() {
                Ok(()) => return node,
                Err(trouble) => why = trouble,
            }
        }
        panic!("{why}");
    }

    fn prepared(name: &str) -> Self {
        let scene = Scene::new(name);
        let folder = scene.folder("rabbitmq");
        for path in [scene.path(), &folder] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("open a folder");
        }
        let as_nobody = is_root() && reachable(&folder);
        let (port, tls_port) = (lasting_port(), lasting_port());
        make_certificates(&folder);
        let settings = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nlisteners.ssl.1 = 127.0.0.1:{tls_port}\n\
             ssl_options.cacertfile = {folder}/ca.pem\nssl_options.certfile = {folder}/server.pem\n\
             ssl_options.keyfile = {folder}/server.key\nssl_options.verify = verify_none\n\
             loopback_users.guest = true\ndisk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 512MB\n\
             log.console = false\n",
            folder = folder.display(),
        );
        fs::write(folder.join("rabbitmq.conf"), settings).expect("write the settings");
        fs::write(folder.join("enabled_plugins"), "[].\n").expect("write the list of plugins");
        if as_nobody {
            for path in [".", "ca.pem", "server.pem", "server.key", "rabbitmq.conf", "enabled_plugins"] {
                chown(folder.join(path), Some(NOBODY), Some(NOBODY)).expect("give a file away");
            }
        }
        let mut node = Self {
            scene,
            folder,
            port,
            tls_port,
            distribution_port: lasting_port(),
            mapper_port: lasting_port(),
            mapper: None,
            server: None,
            machine: None,
            as_nobody,
        };
        let mut mapper = node.command("epmd");
        mapper.args(["-address", "127.0.0.1", "-port", &node.mapper_port.to_string()]);
        node.mapper = Some(spawn(&node.scene, mapper));
        assert!(wait_for_port(node.mapper_port, LIMIT), "epmd does not listen");
        node
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The port with TLS; its certificate is for `localhost`.
    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The authority that vouches for it.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Starts the node again, after [`Rabbitmq::kill`] or [`Rabbitmq::wipe`].
    pub(crate) fn up(&mut self) {
        self.try_up().unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_up(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "the node runs already");
        let pid_file = self.folder.join("pid");
        let _ = fs::remove_file(&pid_file);
        let mut server = self.command(Self::PROGRAM);
        let name = format!("t{}@localhost", self.port);
        server.env("RABBITMQ_NODENAME", name);
        for (variable, file) in [
            ("RABBITMQ_MNESIA_BASE", "mnesia"),
            ("RABBITMQ_LOG_BASE", "log"),
            // Without its extension.
            ("RABBITMQ_CONFIG_FILE", "rabbitmq"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
        ] {
            server.env(variable, self.folder.join(file));
        }
        server.env("RABBITMQ_PID_FILE", &pid_file).env("RABBITMQ_CONF_ENV_FILE", "/dev/null");
        server.env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1");
        server.env("RABBITMQ_NODE_PORT", self.port.to_string());
        server.env("RABBITMQ_DIST_PORT", self.distribution_port.to_string());
        server.env("RABBITMQ_SERVER_START_ARGS", "");
        // No busy waiting: the machine has other work.
        server.env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
        );
        let mut server = spawn(&self.scene, server);
        // Not looked for by its environment: a container's root may not read another user's.
        let (port, process) = (self.port, || fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok());
        let ready =
            server.wait_until(LIMIT, |_| process().is_some() && TcpStream::connect(("127.0.0.1", port)).is_ok());
        if !ready {
            let trouble = format!("RabbitMQ did not start:\n{}\n{}", server.stderr_so_far(), self.log());
            if let Some(process) = process() {
                kill(process, Signal::KILL);
            }
            return Err(trouble);
        }
        self.machine = process();
        self.server = Some(server);
        Ok(())
    }

    /// SIGKILL, as a machine that lost power would treat it.
    pub(crate) fn kill(&mut self) {
        let server = self.server.take().expect("it runs");
        self.signal(Signal::KILL);
        self.machine = None;
        server.kill_now();
        self.wait_for_silence();
    }

    /// Ends the node in order.
    pub(crate) fn stop(&mut self) {
        let mut server = self.server.take().expect("it runs");
        self.signal(Signal::TERM);
        assert!(!server.wait_until(LIMIT, |_| false) && !server.is_running(), "the node does not end");
        self.machine = None;
        drop(server);
        self.wait_for_silence();
    }

    /// Ends the node and deletes all that it knew: queues, messages, users.
    pub(crate) fn wipe(&mut self) {
        self.kill();
        fs::remove_dir_all(self.folder.join("mnesia")).expect("delete the node's data");
    }

    /// Freezes the node: connections stay open and nothing answers.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.folder.join("log")).into_iter().flatten().flatten() {
            text += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
        let start = text.len().saturating_sub(4000);
        text.get(start..).unwrap_or_default().to_owned()
    }

    /// A command in the node's environment, and without rights where we have too many.
    fn command(&self, program: &str) -> Command {
        let mut command = if self.as_nobody {
            let mut command = Command::new("setpriv");
            let id = NOBODY.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", program]);
            command
        } else {
            Command::new(program)
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LANG", "C.UTF-8");
        command.env("HOME", &self.folder).current_dir(&self.folder);
        command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_EPMD_PORT", self.mapper_port.to_string());
        command
    }

    fn signal(&self, signal: Signal) {
        kill(self.machine.expect("the node runs"), signal);
    }

    /// Helpers of the node may hold its ports for a moment longer.
    fn wait_for_silence(&self) {
        let end = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(Instant::now() < end, "the killed node still listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Rabbitmq {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(&format!("--- RabbitMQ's log (end)\n{}", self.log()));
        }
        if let Some(machine) = self.machine.take() {
            kill(machine, Signal::CONT);
            kill(machine, Signal::KILL);
        }
    }
}

/// A port that stays free while the node is down: below those that the system gives to callers.
fn lasting_port() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    loop {
        let random = RandomState::new().hash_one(0) % 10_000;
        let port = 20_000 + u16::try_from(random).expect("less than 10,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whether an unprivileged user gets there.
fn reachable(folder: &Path) -> bool {
    let id = NOBODY.to_string();
    Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups", "--", "test", "-x"])
        .arg(folder)
        .status()
        .is_ok_and(|status| status.success())
}

/// An authority of the test's own and a server certificate for `localhost`.
pub(super) fn make_certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let server = server.signed_by(&key, &authority).expect("a certificate");
    for (name, text) in [("ca.pem", authority.pem()), ("server.pem", server.pem()), ("server.key", key.serialize_pem())]
    {
        fs::write(folder.join(name), text).expect("write a certificate");
    }
}
