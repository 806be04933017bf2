use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Endpoint, Finished, Netns, Running, Scene, Sshd, spawn};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ccat-xfer");

/// The exit codes that the command line documents.
pub(crate) mod exit {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const USAGE: i32 = 2;
    pub(crate) const SOURCE: i32 = 3;
    pub(crate) const DESTINATION: i32 = 4;
    pub(crate) const INTEGRITY: i32 = 5;
    pub(crate) const IDENTITY: i32 = 6;
    pub(crate) const NETWORK: i32 = 7;
    pub(crate) const PARTIAL: i32 = 8;
    pub(crate) const OVERTAKEN: i32 = 9;
    pub(crate) const CANCELLED: i32 = 130;
    /// What a failure at either end may be called when both see it at once.
    pub(crate) const ANY_FAILURE: &[i32] = &[SOURCE, DESTINATION, INTEGRITY, IDENTITY, NETWORK, PARTIAL];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Auto,
    Quic,
    Tcp,
    Ssh,
}

impl Transport {
    pub(crate) const ALL: [Self; 3] = [Self::Quic, Self::Tcp, Self::Ssh];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Ssh => "ssh",
        }
    }
}

/// How the far end comes to life.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Far<'a> {
    /// A script in place of ssh runs the command on this machine.
    Rsh,
    /// A real ssh to a real sshd.
    Sshd(&'a Sshd),
    /// A running endpoint.
    Serve(&'a Endpoint),
}

/// One `send` or `recv` to be.
#[derive(Clone, Debug)]
pub(crate) struct Xfer<'a> {
    scene: &'a Scene,
    far: Far<'a>,
    transport: Transport,
    netns: Option<&'a Netns>,
    args: Vec<OsString>,
    wrap: Vec<OsString>,
    rsh: Option<String>,
    remote_path: Option<String>,
}

impl<'a> Xfer<'a> {
    pub(crate) fn new(scene: &'a Scene, far: Far<'a>, transport: Transport) -> Self {
        Self { scene, far, transport, netns: None, args: Vec::new(), wrap: Vec::new(), rsh: None, remote_path: None }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Runs in this namespace.
    pub(crate) fn inside(mut self, netns: &'a Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Words to put before the program: strace and its like.
    pub(crate) fn under(mut self, words: &[&str]) -> Self {
        self.wrap = words.iter().map(OsString::from).collect();
        self
    }

    /// Another program in place of ssh.
    pub(crate) fn rsh(mut self, command: impl Into<String>) -> Self {
        self.rsh = Some(command.into());
        self
    }

    /// Another program at the far end.
    pub(crate) fn remote_path(mut self, command: impl Into<String>) -> Self {
        self.remote_path = Some(command.into());
        self
    }

    /// How long either end waits for a lost peer.
    pub(crate) fn reconnect(self, limit: Duration) -> Self {
        self.arg("--reconnect-timeout").arg(format!("{}s", limit.as_secs()))
    }

    /// `send SOURCES... FAR:DEST`.
    pub(crate) fn send(&self, sources: &[&Path], dest: &Path) -> Command {
        let mut command = self.command("send");
        command.args(sources).arg(self.far_path(dest));
        command
    }

    /// `recv FAR:SOURCE DEST`.
    pub(crate) fn recv(&self, source: &Path, dest: &Path) -> Command {
        let mut command = self.command("recv");
        command.arg(self.far_path(source)).arg(dest);
        command
    }

    /// The contents of one folder to become those of another, in either direction.
    pub(crate) fn copy(&self, push: bool, source: &Path, dest: &Path) -> Command {
        // A trailing slash means the contents, as in rsync.
        let source = with_slash(source);
        if push { self.send(&[&source], dest) } else { self.recv(&source, dest) }
    }

    pub(crate) fn spawn(&self, push: bool, source: &Path, dest: &Path) -> Running {
        spawn(self.scene, self.copy(push, source, dest))
    }

    pub(crate) fn run(&self, push: bool, source: &Path, dest: &Path) -> Finished {
        self.spawn(push, source, dest).wait(LIMIT)
    }

    /// The far end's name for a path of this machine.
    pub(crate) fn far_path(&self, path: &Path) -> OsString {
        match self.far {
            Far::Rsh => prefixed("127.0.0.1:", path),
            Far::Sshd(sshd) => prefixed(&format!("{}:", sshd.target()), path),
            Far::Serve(endpoint) => {
                let below = path.strip_prefix(endpoint.root()).expect("below the endpoint's location");
                let mut url = OsString::from(format!("{}/", endpoint.url()));
                url.push(below);
                if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                    url.push("/");
                }
                url
            }
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut words: Vec<OsString> = match self.netns {
            Some(netns) => netns.prefix().into_iter().map(OsString::from).collect(),
            None => Vec::new(),
        };
        words.extend(self.wrap.iter().cloned());
        words.push(PROGRAM.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(verb).arg("--json");
        if self.transport != Transport::Auto {
            command.args(["--transport", self.transport.word()]);
        }
        let remote_path = self.remote_path.clone().unwrap_or_else(|| PROGRAM.to_owned());
        match self.far {
            Far::Rsh => {
                let rsh = self.rsh.clone().unwrap_or_else(|| local_rsh(self.scene));
                command.arg("--rsh").arg(rsh).arg("--remote-path").arg(remote_path);
            }
            Far::Sshd(sshd) => {
                let rsh = self.rsh.clone().unwrap_or_else(|| sshd.rsh());
                command.arg("--rsh").arg(rsh).arg("--remote-path").arg(remote_path);
            }
            Far::Serve(endpoint) => {
                command.args(endpoint.client_args());
            }
        }
        command.args(&self.args);
        own_home(self.scene, &mut command);
        command
    }
}

/// How long any one command may take before the test gives up on it.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// Keeps the settings, keys and caches of whoever runs the tests out of them.
pub(crate) fn own_home(scene: &Scene, command: &mut Command) {
    command.env("HOME", scene.folder("home"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("XDG_") || name.starts_with("CCAT_XFER_") {
            command.env_remove(&*name);
        }
    }
}

/// A stand-in for ssh: skips options, drops the host, and runs the command here. Each far end's process id is kept in
/// `rsh-pids`, so that tests can kill just that end.
pub(crate) fn local_rsh(scene: &Scene) -> String {
    let path = scene.join("rsh");
    if !path.exists() {
        let pids = scene.join("rsh-pids");
        script(
            &path,
            &format!(
                "while :; do case $1 in -l|-p|-o|-i) shift 2;; -*) shift;; *) break;; esac; done\nshift\n\
                 echo $$ >> {}\nexport SSH_CONNECTION='127.0.0.1 50000 127.0.0.1 22'\nexec sh -c \"exec $*\"\n",
                pids.display()
            ),
        );
    }
    as_rsh(&path)
}

/// The `--rsh` that runs a script. Through `sh`, as a fork in another test's thread may hold the new file open for
/// writing, and to execute it would then fail.
pub(crate) fn as_rsh(script: &Path) -> String {
    format!("sh {}", script.display())
}

/// Process ids of the far ends started through [`local_rsh`], oldest first.
pub(crate) fn far_pids(scene: &Scene) -> Vec<i32> {
    fs::read_to_string(scene.join("rsh-pids")).unwrap_or_default().lines().filter_map(|l| l.parse().ok()).collect()
}

/// An executable shell script.
pub(crate) fn script(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}")).expect("write a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("make it executable");
}

pub(crate) fn with_slash(path: &Path) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push("/");
    text.into()
}

fn prefixed(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}
