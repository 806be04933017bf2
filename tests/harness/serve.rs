use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Running, Scene, spawn,
    sshd::{free_port, wait_for_port},
    xfer::{PROGRAM, own_home},
};

/// A running `serve` on loopback with one location, and one client identity that it knows.
#[derive(Debug)]
pub(crate) struct Endpoint {
    server: Running,
    folder: PathBuf,
    root: PathBuf,
    port: u16,
}

impl Endpoint {
    /// Serves `root` as the location `data` with these rights for the one client.
    pub(crate) fn start(scene: &Scene, root: &Path, rights: &[&str]) -> Self {
        let folder = scene.folder("endpoint");
        let (server, client) = (folder.join("server"), folder.join("client"));
        make_identity(scene, &server, "server");
        make_identity(scene, &client, "client");
        trust(scene, &server, &client, "client");
        trust(scene, &client, &server, "server");
        let port = free_port();
        let rights: Vec<String> = rights.iter().map(|r| format!("\"{r}\"")).collect();
        let settings = format!(
            "[serve]\nlisten = \"127.0.0.1\"\nport = {port}\nidentity = \"{server}\"\n\n[[serve.location]]\nname = \"data\"\npath = \"{root}\"\n\n\
             [[serve.location.right]]\npeer = \"client\"\nmay = [{rights}]\n",
            server = server.display(),
            root = root.display(),
            rights = rights.join(", "),
        );
        fs::write(folder.join("serve.toml"), settings).expect("write the settings");
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg("--config").arg(folder.join("serve.toml"));
        own_home(scene, &mut command);
        let server = spawn(scene, command);
        let endpoint = Self { server, folder, root: root.to_owned(), port };
        assert!(
            wait_for_port(port, Duration::from_secs(20)),
            "the endpoint does not listen:\n{}",
            endpoint.server.stderr_so_far()
        );
        endpoint
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
        format!("xfer://127.0.0.1:{}/data", self.port)
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

/// Makes an identity with `ccat-xfer cert`.
pub(crate) fn make_identity(scene: &Scene, folder: &Path, name: &str) {
    cert(scene, folder, &["new", "--name", name]);
}

/// Lets the identity in `folder` trust the one in `peer` under this name.
pub(crate) fn trust(scene: &Scene, folder: &Path, peer: &Path, name: &str) {
    let certificate = peer.join("certificate.pem");
    cert(scene, folder, &["trust", certificate.to_str().expect("UTF-8"), name]);
}

fn cert(scene: &Scene, folder: &Path, words: &[&str]) {
    let mut command = Command::new(PROGRAM);
    command.arg("--identity").arg(folder).arg("cert").args(words);
    own_home(scene, &mut command);
    spawn(scene, command).wait(Duration::from_secs(30)).expect_code(0);
}
