use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Running, Scene, spawn,
    sshd::free_port,
    xfer::{PROGRAM, own_home},
};

/// A running `serve` on loopback with one location, and one client identity that it knows.
#[derive(Debug)]
pub(crate) struct Endpoint {
    server: Running,
    folder: PathBuf,
    root: PathBuf,
    host: String,
    port: u16,
    verbose: bool,
}

/// How an endpoint is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    /// Of the one client.
    pub(crate) rights: &'a [&'a str],
    /// The address to listen on.
    pub(crate) host: &'a str,
    /// More lines of the table `serve`.
    pub(crate) serve: &'a str,
    /// More lines behind the client's rights in the only location.
    pub(crate) location: &'a str,
    /// Logs what it does, link by link.
    pub(crate) verbose: bool,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self { rights: &["create"], host: "127.0.0.1", serve: "", location: "", verbose: false }
    }
}

impl Endpoint {
    /// Serves `root` as the location `data` with these rights for the one client.
    pub(crate) fn start(scene: &Scene, root: &Path, rights: &[&str]) -> Self {
        let folder = scene.folder("endpoint");
        let (server, client) = (folder.join("server"), folder.join("client"));
        acquaint(scene, &server, &client);
        Self::begin(scene, root, &Setup { rights, ..Setup::default() })
    }

    /// As [`Self::start`], with identities that are there already.
    pub(crate) fn begin(scene: &Scene, root: &Path, setup: &Setup<'_>) -> Self {
        let Setup { rights, host, serve, location, verbose } = *setup;
        let folder = scene.folder("endpoint");
        let port = free_port();
        let rights: Vec<String> = rights.iter().map(|r| format!("\"{r}\"")).collect();
        let settings = format!(
            "identity = \"{server}\"\n[serve]\nlisten = \"{host}\"\nport = {port}\n{serve}\n[[serve.location]]\nname = \"data\"\npath = \"{root}\"\n\n\
             [[serve.location.right]]\npeer = \"client\"\nmay = [{rights}]\n{location}",
            server = folder.join("server").display(),
            root = root.display(),
            rights = rights.join(", "),
        );
        fs::write(folder.join("serve.toml"), settings).expect("write the settings");
        let server = run_server(scene, &folder, verbose);
        Self { server, folder, root: root.to_owned(), host: host.to_owned(), port, verbose }
    }

    /// Kills it and starts it again.
    pub(crate) fn restart(&mut self, scene: &Scene) {
        self.server.signal(rustix::process::Signal::KILL);
        self.server.wait_until(Duration::from_secs(20), |_| false);
        self.server = run_server(scene, &self.folder, self.verbose);
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        self.server.signal(signal);
    }

    /// Waits until it has said this so often.
    pub(crate) fn wait_for_words(&mut self, words: &str, times: usize) {
        let said =
            self.server.wait_until(Duration::from_secs(60), |s| s.stderr_so_far().matches(words).count() >= times);
        assert!(said, "it never said {words:?} {times} times:\n{}", self.said());
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> i32 {
        self.server.pid()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    pub(crate) fn said(&self) -> String {
        self.server.stderr_so_far()
    }

    pub(crate) fn url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("xfer://{host}:{}/data", self.port)
    }

    /// What the known client adds to its command line.
    pub(crate) fn client_args(&self) -> Vec<OsString> {
        vec!["--identity".into(), self.identity("client").into()]
    }

    /// The identity folder of `client` or `server`.
    pub(crate) fn identity(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder with the identities and the configuration.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn run_server(scene: &Scene, folder: &Path, verbose: bool) -> Running {
    let mut command = Command::new(PROGRAM);
    // Its own words tell when it listens, and when it has reloaded.
    command.args(if verbose { &["-v"][..] } else { &["--log", "info"] });
    command.arg("serve").arg("--config").arg(folder.join("serve.toml"));
    own_home(scene, &mut command);
    let mut server = spawn(scene, command);
    let listens = server.wait_until(Duration::from_secs(30), |s| s.stderr_so_far().contains("serving QUIC and TCP"));
    assert!(listens, "the endpoint does not listen:\n{}", server.stderr_so_far());
    server
}

/// Makes two identities that trust each other as `server` and `client`.
pub(crate) fn acquaint(scene: &Scene, server: &Path, client: &Path) {
    make_identity(scene, server, "server");
    make_identity(scene, client, "client");
    trust(scene, server, client, "client");
    trust(scene, client, server, "server");
}

/// Makes an identity with `ccat-xfer cert`.
pub(crate) fn make_identity(scene: &Scene, folder: &Path, name: &str) {
    cert(scene, folder, &["new", "--name", name]);
}

/// Lets the identity in `folder` trust the one in `peer` under this name.
pub(crate) fn trust(scene: &Scene, folder: &Path, peer: &Path, name: &str) {
    let certificate = peer.join("certificate.pem");
    cert(scene, folder, &["trust", certificate.to_str().expect("UTF-8"), name]);
}

/// `ccat-xfer cert` with these words.
pub(crate) fn cert(scene: &Scene, folder: &Path, words: &[&str]) {
    let mut command = Command::new(PROGRAM);
    command.arg("--identity").arg(folder).arg("cert").args(words);
    own_home(scene, &mut command);
    spawn(scene, command).wait(Duration::from_secs(30)).expect_code(0);
}
