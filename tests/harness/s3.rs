use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{Running, Scene, have, rabbitmq::make_certificates, say, spawn};

/// A private S3 server (SeaweedFS): own ports and folder, on loopback only, no telemetry; ended with the value.
#[derive(Debug)]
pub(crate) struct S3Server {
    scene: Scene,
    folder: PathBuf,
    ports: Ports,
    tls: bool,
    server: Option<Running>,
}

/// Each is used with a second one, 10,000 above.
#[derive(Clone, Copy, Debug)]
struct Ports {
    s3: u16,
    master: u16,
    volume: u16,
    filer: u16,
    admin: u16,
}

const LIMIT: Duration = Duration::from_secs(60);

impl S3Server {
    pub(crate) const ACCESS_KEY: &'static str = "test-key";
    pub(crate) const SECRET_KEY: &'static str = "test-secret";
    pub(crate) const BUCKET: &'static str = "archive";

    /// Why none can be started here.
    pub(crate) fn missing() -> Option<&'static str> {
        program().is_none().then_some("weed is neither on the PATH nor in target/tools/seaweedfs; scripts/test install")
    }

    /// Starts a server with an empty bucket. Somebody may take one of its ports before it does; then it gets others.
    pub(crate) fn start(name: &str) -> Self {
        Self::started(name, false)
    }

    /// One that speaks TLS; its certificate is for `localhost`.
    pub(crate) fn start_tls(name: &str) -> Self {
        Self::started(name, true)
    }

    fn started(name: &str, tls: bool) -> Self {
        let mut why = String::new();
        for _ in 0..3 {
            let scene = Scene::new(name);
            let folder = scene.folder("seaweedfs");
            for name in ["data", "log"] {
                fs::create_dir(folder.join(name)).expect("a folder can be made");
            }
            let ports = Ports {
                s3: free_pair(),
                master: free_pair(),
                volume: free_pair(),
                filer: free_pair(),
                admin: free_pair(),
            };
            if tls {
                make_certificates(&folder);
            }
            let mut server = Self { scene, folder, ports, tls, server: None };
            match server.try_up() {
                Ok(()) => return server,
                Err(trouble) => why = trouble,
            }
        }
        panic!("{why}");
    }

    pub(crate) fn port(&self) -> u16 {
        self.ports.s3
    }

    pub(crate) fn endpoint(&self) -> String {
        match self.tls {
            true => format!("https://localhost:{}", self.ports.s3),
            false => format!("http://127.0.0.1:{}", self.ports.s3),
        }
    }

    /// The authority that vouches for it.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Starts the server again on the same data, after [`S3Server::kill`].
    pub(crate) fn up(&mut self) {
        self.try_up().unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_up(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "the server runs already");
        let program = program().expect("checked by the caller");
        let (folder, ports) = (self.folder.display(), self.ports);
        let mut command = Command::new(program);
        command.args([format!("-logdir={folder}/log"), "mini".to_owned()]);
        command.args([
            format!("-dir={folder}/data"),
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            format!("-s3.port={}", ports.s3),
            format!("-master.port={}", ports.master),
            format!("-volume.port={}", ports.volume),
            format!("-filer.port={}", ports.filer),
            format!("-admin.port={}", ports.admin),
            format!("-filer.localSocket={folder}/filer.sock"),
            format!("-s3.localSocket={folder}/s3.sock"),
            format!("-bucket={}", Self::BUCKET),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
            "-webdav=false".to_owned(),
            "-admin.ui=false".to_owned(),
            "-master.telemetry=false".to_owned(),
        ]);
        if self.tls {
            command.args([format!("-s3.cert.file={folder}/server.pem"), format!("-s3.key.file={folder}/server.key")]);
        }
        command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default()).env("HOME", &self.folder);
        command.env("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY);
        command.env("TMPDIR", &self.folder).current_dir(&self.folder);
        let mut server = spawn(&self.scene, command);
        // The bucket is made once all the rest answers.
        let bucket = format!("/buckets/{}/", Self::BUCKET);
        let listens = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
        let speaks = |port| if self.tls { listens(port) } else { is_there(port, "/status") };
        let ready = server.wait_until(LIMIT, |_| speaks(ports.s3) && is_there(ports.filer, &bucket));
        if !ready {
            let said = format!("SeaweedFS did not start:\n{}\n{}", server.stderr_so_far(), self.log());
            return Err(said);
        }
        self.server = Some(server);
        Ok(())
    }

    /// SIGKILL, as a machine that lost power would treat it; its data stays.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take().expect("it runs").kill_now());
        self.until_silent();
    }

    /// SIGTERM: it may end what it does.
    pub(crate) fn stop(&mut self) {
        let server = self.server.take().expect("it runs");
        server.signal(Signal::TERM);
        drop(server.wait(LIMIT));
        self.until_silent();
    }

    fn until_silent(&self) {
        let end = Instant::now() + LIMIT;
        while TcpStream::connect(("127.0.0.1", self.ports.s3)).is_ok() {
            assert!(Instant::now() < end, "the server that ended still listens");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Freezes the server: connections stay open and nothing answers.
    pub(crate) fn freeze(&self, frozen: bool) {
        let server = self.server.as_ref().expect("it runs");
        server.signal(if frozen { Signal::STOP } else { Signal::CONT });
    }

    /// The folder of all that it keeps.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.folder.join("log")).into_iter().flatten().flatten() {
            text += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
        let start = text.len().saturating_sub(4000);
        text.get(start..).unwrap_or_default().to_owned()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(&format!("--- SeaweedFS's log (end)\n{}", self.log()));
        }
        if let Some(server) = self.server.take() {
            server.signal(Signal::CONT);
            drop(server.kill_now());
        }
    }
}

/// The files in a server's folder that hold the bytes of objects.
pub(crate) fn volumes_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "dat") {
                found.push(path);
            }
        }
    }
    found
}

fn program() -> Option<PathBuf> {
    if have("weed") {
        return Some(PathBuf::from("weed"));
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/seaweedfs/bin/weed");
    own.is_file().then_some(own)
}

/// Whether a server has something there; it listens before it answers.
fn is_there(port: u16, path: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let asked = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    let mut answer = [0; 12];
    asked.is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 200"
}

/// A port that stays free while the server is down, as does the one 10,000 above.
fn free_pair() -> u16 {
    use std::hash::{BuildHasher as _, RandomState};
    loop {
        let random = RandomState::new().hash_one(0) % 10_000;
        let port = 11_000 + u16::try_from(random).expect("less than 10,000");
        if [port, port + 10_000].into_iter().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return port;
        }
    }
}
