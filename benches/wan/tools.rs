//! The tools of `wan bench`: how each is started at the two ends.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::ValueEnum;

use crate::wan::Wan;

/// Where the far end of each tool listens.
pub(crate) const PORT: u16 = 7401;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tool {
    /// ccat-xfer with its defaults.
    Auto,
    /// ccat-xfer over QUIC.
    Quic,
    /// ccat-xfer over TCP.
    Tcp,
    /// One TCP connection that only sends.
    Iperf3,
    /// rsync over ssh.
    Rsync,
    Scp,
    /// bbcp with 4 streams.
    Bbcp4,
    /// bbcp with 16 streams.
    Bbcp16,
}

impl Tool {
    pub(crate) fn all() -> &'static [Self] {
        Self::value_variants()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "ccat-xfer auto",
            Self::Quic => "ccat-xfer quic",
            Self::Tcp => "ccat-xfer tcp",
            Self::Iperf3 => "iperf3",
            Self::Rsync => "rsync over ssh",
            Self::Scp => "scp",
            Self::Bbcp4 => "bbcp -s 4",
            Self::Bbcp16 => "bbcp -s 16",
        }
    }

    pub(crate) fn is_tcp(self) -> bool {
        !matches!(self, Self::Auto | Self::Quic)
    }

    fn is_ours(self) -> bool {
        matches!(self, Self::Auto | Self::Quic | Self::Tcp)
    }
}

const NAME: &str = "wan-bench-";

/// Removes the folders of benches that were interrupted: they fill memory.
fn remove_left_over(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_prefix(NAME)) else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A folder of the bench's own, removed with the value.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    ours: Option<PathBuf>,
    ssh: bool,
}

impl Place {
    pub(crate) fn new(base: &Path, ours: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        remove_left_over(base);
        let folder = base.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir_all(folder.join("dest"))?;
        let beside = || {
            let own = std::env::current_exe().ok()?;
            Some(own.parent()?.parent()?.join("ccat-xfer")).filter(|p| p.is_file())
        };
        let ours = ours.map(Path::to_owned).or_else(beside);
        let mut place = Self { folder, ours, ssh: false };
        if let Some(ours) = place.ours.clone() {
            place.acquaint(&ours)?;
        }
        place.ssh = place.prepare_ssh().is_ok();
        Ok(place)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.folder.join("source.bin")
    }

    pub(crate) fn arrivals(&self) -> PathBuf {
        self.folder.join("dest")
    }

    /// Whether the copy is the source, byte for byte.
    pub(crate) fn same(&self) -> io::Result<bool> {
        let (mut a, mut b) = (File::open(self.source())?, File::open(self.arrivals().join("source.bin"))?);
        if a.metadata()?.len() != b.metadata()?.len() {
            return Ok(false);
        }
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let n = a.read(&mut left)?;
            if n == 0 {
                return Ok(true);
            }
            b.read_exact(&mut right[..n])?;
            if left[..n] != right[..n] {
                return Ok(false);
            }
        }
    }

    /// Removes what arrived.
    pub(crate) fn clear(&self) -> io::Result<()> {
        fs::remove_dir_all(self.arrivals())?;
        fs::create_dir_all(self.arrivals())
    }

    /// Why a tool cannot be run.
    pub(crate) fn missing(&self, tool: Tool) -> Option<String> {
        let program = match tool {
            _ if tool.is_ours() => {
                let missing = "no release build of ccat-xfer; --program names one";
                return self.ours.is_none().then(|| missing.to_owned());
            }
            Tool::Iperf3 => return (!on_path("iperf3")).then(|| "iperf3 is not installed".to_owned()),
            Tool::Rsync => "rsync",
            Tool::Bbcp4 | Tool::Bbcp16 => "bbcp",
            _ => "scp",
        };
        if !on_path(program) {
            return Some(format!("{program} is not installed"));
        }
        (!self.ssh).then(|| "openssh-server or openssh-client is not installed".to_owned())
    }

    /// The command at A.
    pub(crate) fn sender(&self, tool: Tool, bytes: u64) -> Result<Command, Box<dyn Error>> {
        let source = self.source();
        let far = format!("{}:{}/", Wan::B[0], self.arrivals().display());
        let config = self.folder.join("ssh_config");
        let ssh = format!("ssh -F {}", config.display());
        let mut command = match tool {
            Tool::Auto | Tool::Quic | Tool::Tcp => {
                let mut command = self.own("client")?;
                command.args(["send", "--transport"]);
                command.arg(match tool {
                    Tool::Quic => "quic",
                    Tool::Tcp => "tcp",
                    _ => "auto",
                });
                command.arg(&source).arg(format!("xfer://{}:{PORT}/data/", Wan::B[0]));
                command
            }
            Tool::Iperf3 => {
                let mut command = Command::new("iperf3");
                command.args(["-c", Wan::B[0], "-p", &PORT.to_string(), "-n", &bytes.to_string()]);
                command
            }
            Tool::Rsync => {
                let mut command = Command::new("rsync");
                command.args(["-W", "-e", &ssh]).arg(&source).arg(far);
                command
            }
            Tool::Scp => {
                let mut command = Command::new("scp");
                command.args(["-q", "-F"]).arg(&config).arg(&source).arg(far);
                command
            }
            Tool::Bbcp4 | Tool::Bbcp16 => {
                let program = find("bbcp").ok_or("no bbcp on the PATH")?;
                let mut command = Command::new(&program);
                let streams = if tool == Tool::Bbcp4 { "4" } else { "16" };
                // ssh looks elsewhere for programs.
                let far_end = format!("{ssh} %H {}", program.display());
                command.args(["-f", "-s", streams, "-T", &far_end]).arg(&source);
                command.arg(format!("root@{far}source.bin"));
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.words_of_a())?);
        Ok(command)
    }

    /// The command at B. It listens on [`PORT`].
    pub(crate) fn receiver(&self, tool: Tool) -> Result<Command, Box<dyn Error>> {
        let mut command = match tool {
            Tool::Auto | Tool::Quic | Tool::Tcp => {
                let mut command = self.own("server")?;
                command.arg("serve").arg("--config").arg(self.folder.join("serve.toml"));
                command
            }
            Tool::Iperf3 => {
                let mut command = Command::new("iperf3");
                command.args(["-s", "-p", &PORT.to_string()]);
                command
            }
            Tool::Rsync | Tool::Scp | Tool::Bbcp4 | Tool::Bbcp16 => {
                let mut command = Command::new("/usr/sbin/sshd");
                command
                    .args(["-D", "-f", "/dev/null", "-p", &PORT.to_string(), "-h"])
                    .arg(self.folder.join("host_key"));
                let keys = format!("AuthorizedKeysFile={}", self.folder.join("user_key.pub").display());
                command.arg("-E").arg(self.folder.join("sshd.log")).args(["-o", "PidFile=none", "-o", &keys]);
                command.args(["-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PasswordAuthentication=no"]);
                command.args(["-o", "PermitRootLogin=prohibit-password", "-o", "Subsystem=sftp internal-sftp"]);
                command
            }
        };
        let words = File::create(self.folder.join("b.err"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
        Ok(command)
    }

    /// The last line that the command at A said.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(self.words_of_a()).unwrap_or_default();
        text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("").to_owned()
    }

    fn words_of_a(&self) -> PathBuf {
        self.folder.join("a.err")
    }

    fn own(&self, identity: &str) -> Result<Command, Box<dyn Error>> {
        let mut command = Command::new(self.ours.as_deref().ok_or("no ccat-xfer")?);
        command.env("HOME", &self.folder).arg("--identity").arg(self.folder.join(identity));
        for (name, _) in std::env::vars_os() {
            let word = name.to_string_lossy();
            if word.starts_with("XDG_") || word.starts_with("CCAT_XFER_") {
                command.env_remove(&name);
            }
        }
        Ok(command)
    }

    /// Makes two identities that know each other, and the endpoint's settings.
    fn acquaint(&self, ours: &Path) -> Result<(), Box<dyn Error>> {
        for name in ["server", "client"] {
            done(self.own(name)?.args(["cert", "new", "--name", name]))?;
        }
        for (name, peer) in [("server", "client"), ("client", "server")] {
            let certificate = self.folder.join(peer).join("certificate.pem");
            done(self.own(name)?.args(["cert", "trust"]).arg(certificate).arg(peer))?;
        }
        let settings = format!(
            "identity = \"{}\"\n[serve]\nlisten = \"{}\"\nport = {PORT}\n[[serve.location]]\nname = \"data\"\npath = \
             \"{}\"\n[[serve.location.right]]\npeer = \"client\"\nmay = [\"create\"]\n",
            self.folder.join("server").display(),
            Wan::B[0],
            self.arrivals().display(),
        );
        fs::write(self.folder.join("serve.toml"), settings)?;
        println!("ccat-xfer: {}", ours.display());
        Ok(())
    }

    fn prepare_ssh(&self) -> Result<(), Box<dyn Error>> {
        if !Path::new("/usr/sbin/sshd").exists() || !on_path("ssh") {
            return Err("no ssh".into());
        }
        for key in ["host_key", "user_key"] {
            done(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(self.folder.join(key)))?;
        }
        fs::create_dir_all("/run/sshd")?;
        let lines = format!(
            "Host *\n  User root\n  Port {PORT}\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n  \
             StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n",
            self.folder.join("user_key").display()
        );
        Ok(fs::write(self.folder.join("ssh_config"), lines)?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn done(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim()).into())
}

fn on_path(program: &str) -> bool {
    find(program).is_some()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Bytes that no tool can compress.
pub(crate) fn write_noise(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        file.write_all(&block[..n])?;
        left -= n as u64;
    }
    Ok(())
}
