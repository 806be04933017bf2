use std::{
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use super::{Netns, Running, Scene, have, is_root, spawn};

/// A private sshd: own keys, own port, ended with the value.
#[derive(Debug)]
pub(crate) struct Sshd {
    server: Running,
    folder: PathBuf,
    address: String,
    port: u16,
}

impl Sshd {
    const PROGRAM: &'static str = "/usr/sbin/sshd";

    /// Why none can be started here.
    pub(crate) fn missing() -> Option<&'static str> {
        if !PathBuf::from(Self::PROGRAM).exists() {
            Some("openssh-server is not installed")
        } else if !have("ssh") || !have("ssh-keygen") {
            Some("openssh-client is not installed")
        } else {
            None
        }
    }

    /// On loopback, on a free port.
    pub(crate) fn start(scene: &Scene) -> Self {
        let port = free_port();
        Self::launch(scene, None, "127.0.0.1", port)
    }

    /// In a namespace, on its port 2222.
    pub(crate) fn start_in(scene: &Scene, netns: &Netns, address: &str) -> Self {
        Self::launch(scene, Some(netns), address, 2222)
    }

    fn launch(scene: &Scene, netns: Option<&Netns>, address: &str, port: u16) -> Self {
        let folder = scene.folder(&format!("sshd-{}-{port}", address.replace(':', "_")));
        for key in ["host_key", "user_key"] {
            let ok = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(folder.join(key))
                .status()
                .expect("ssh-keygen starts");
            assert!(ok.success(), "ssh-keygen failed");
        }
        fs::copy(folder.join("user_key.pub"), folder.join("authorized_keys")).expect("copy a key");
        if is_root() {
            fs::create_dir_all("/run/sshd").expect("make /run/sshd");
        }
        let mut words: Vec<String> = netns.map(Netns::prefix).unwrap_or_default();
        words.push(Self::PROGRAM.to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["-D", "-f", "/dev/null", "-p", &port.to_string()]);
        command.arg("-h").arg(folder.join("host_key")).arg("-E").arg(folder.join("log"));
        for option in [
            format!("ListenAddress={address}"),
            format!("PidFile={}", folder.join("pid").display()),
            format!("AuthorizedKeysFile={}", folder.join("authorized_keys").display()),
            "StrictModes=no".to_owned(),
            "UsePAM=no".to_owned(),
            "PasswordAuthentication=no".to_owned(),
            "KbdInteractiveAuthentication=no".to_owned(),
            "PermitRootLogin=prohibit-password".to_owned(),
            "MaxStartups=100".to_owned(),
            "Subsystem=sftp internal-sftp".to_owned(),
            // The far ends belong to the scene as well.
            format!("SetEnv={}={}", Scene::MARK, scene.mark()),
        ] {
            command.arg("-o").arg(option);
        }
        let mut server = spawn(scene, command);
        let sshd = {
            let ready = server.wait_until(Duration::from_secs(20), |_| match netns {
                None => TcpStream::connect((address, port)).is_ok(),
                Some(_) => folder.join("pid").exists(),
            });
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(ready, "sshd did not start:\n{log}{}", server.stderr_so_far());
            Self { server, folder, address: address.to_owned(), port }
        };
        sshd.write_config();
        sshd
    }

    /// The host as the command line names it.
    pub(crate) fn target(&self) -> &str {
        &self.address
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The ssh command that reaches it.
    pub(crate) fn rsh(&self) -> String {
        format!("ssh -F {}", self.folder.join("config").display())
    }

    /// The ssh command that reaches it through another.
    pub(crate) fn rsh_through(&self, jump: &Self) -> String {
        let config = self.folder.join("config-jump");
        let text = format!(
            "Host {}\n  Port {}\n  IdentityFile {}\n  ProxyJump none\nHost {}\n  Port {}\n  IdentityFile {}\n  ProxyJump {}\nHost *\n{OPTIONS}",
            jump.address,
            jump.port,
            jump.folder.join("user_key").display(),
            self.address,
            self.port,
            self.folder.join("user_key").display(),
            jump.address,
        );
        fs::write(&config, text).expect("write a configuration");
        format!("ssh -F {}", config.display())
    }

    fn write_config(&self) {
        // `alias` resolves nowhere but in this file: the address for data must come from the ssh connection itself.
        let text = format!(
            "Host alias\n  HostName {}\nHost *\n  Port {}\n  IdentityFile {}\n{OPTIONS}",
            self.address,
            self.port,
            self.folder.join("user_key").display()
        );
        fs::write(self.folder.join("config"), text).expect("write a configuration");
    }
}

const OPTIONS: &str = "  IdentitiesOnly yes\n  BatchMode yes\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  \
                       LogLevel ERROR\n  ConnectTimeout 10\n";

/// A TCP port that nobody had a moment ago.
pub(crate) fn free_port() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    loop {
        // Below what the system gives to outgoing connections, so that none of them takes it meanwhile.
        let random = RandomState::new().hash_one(0) % 10_000;
        let port = 10_000 + u16::try_from(random).expect("less than 10,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until something accepts TCP there.
pub(crate) fn wait_for_port(port: u16, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
