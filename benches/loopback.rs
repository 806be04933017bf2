//! Wall time of whole commands on one machine, memory to memory: ours over TCP, QUIC and ssh beside `cp`, `rsync` and
//! `scp` over ssh, and `bbcp` where it is on the PATH.
//!
//! ```text
//! cargo bench --bench loopback                     1 and 4 GiB, 3 runs each, in /dev/shm
//! CCAT_XFER_BENCH_SIZES=256M,1G                    other sizes (M and G are 2^20 and 2^30)
//! CCAT_XFER_BENCH_RUNS=5                           other number of runs
//! CCAT_XFER_BENCH_DIR=/data                        another place
//! ```
//!
//! The rows of one size take turns run by run, so that all see the same machine. Figures are medians. bbcp sleeps one
//! second before it ends; its rows show that second in a column of its own, and the rate with it taken off.
//!
//! What profiles of 4 GiB over TCP taught (`perf record -e cpu-clock -a`; both ends on two cores of an EPYC with AVX2):
//!
//! - BLAKE3 at both ends is 20 % of all CPU time, AES-GCM 16 %, the kernel's copies into and out of files and sockets 30 %,
//!   copies between rustls' buffers and ours 9 %.
//! - Two buffered writes into one inode at a time do not run side by side: the second spins for the inode's lock. Letting
//!   it sleep instead took 15 % off the wall time (6.7 s to 5.7 s).
//! - The CPU jitter collector of aws-lc costs each process 80 ms at its first random number; a send of one small file
//!   took 80 ms with it and takes 10 ms without (`.cargo/config.toml`).
//! - Pieces of 128 KiB between cipher and socket stay in a core's cache; with 512 KiB everything takes half as long again.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const OURS: &str = env!("CARGO_BIN_EXE_ccat-xfer");

fn main() {
    let sizes = sizes(&std::env::var("CCAT_XFER_BENCH_SIZES").unwrap_or_else(|_| "1G,4G".into()));
    let runs: usize = std::env::var("CCAT_XFER_BENCH_RUNS").ok().and_then(|v| v.parse().ok()).unwrap_or(3).max(1);
    let base = std::env::var_os("CCAT_XFER_BENCH_DIR").map_or_else(default_base, PathBuf::from);
    let place = Place::new(&base);
    let sshd = Sshd::start(&place.0);
    println!("{} runs each in {}, median wall time of the whole command", runs, base.display());
    if sshd.is_none() {
        println!("not run: rows over ssh (openssh-server or openssh-client is not installed)");
    }
    if !on_path("bbcp") {
        println!("not run: bbcp, bbcp -e (no bbcp on the PATH)");
    }
    for bytes in sizes {
        if !fits(&place.0, 2 * bytes) {
            println!("not run: {} MiB (no room for two copies in {})", bytes >> 20, base.display());
            continue;
        }
        table(&place.0, sshd.as_ref(), bytes, runs);
    }
}

struct Row {
    name: &'static str,
    /// Seconds that the command sleeps whatever it does.
    fixed: f64,
    command: Box<dyn Fn() -> Command>,
    seconds: Vec<f64>,
    fault: Option<String>,
}

fn table(place: &Path, sshd: Option<&Sshd>, bytes: u64, runs: usize) {
    let source = place.join("source.bin");
    let dest = place.join("dest.bin");
    write_noise(&source, bytes);
    let mut rows = rows(&source, &dest, sshd);
    for _ in 0..runs {
        for row in rows.iter_mut().filter(|r| r.fault.is_none()) {
            let _ = fs::remove_file(&dest);
            let started = Instant::now();
            let out = (row.command)().stdin(Stdio::null()).output();
            let took = started.elapsed().as_secs_f64();
            match out {
                Err(e) => row.fault = Some(e.to_string()),
                Ok(out) if !out.status.success() => {
                    let said = String::from_utf8_lossy(&out.stderr);
                    row.fault = Some(format!("{}, {}", out.status, said.lines().last().unwrap_or("")));
                }
                Ok(_) if !same(&source, &dest) => row.fault = Some("the copy differs".into()),
                Ok(_) => row.seconds.push(took),
            }
        }
    }
    let _ = fs::remove_file(&dest);
    println!("\n{} MiB", bytes >> 20);
    println!(
        "{:<22} {:>9} {:>9} {:>9} {:>12} {:>12}",
        "command", "seconds", "GB/s", "fixed s", "GB/s without", "x bbcp -e"
    );
    let median = |row: &Row| row.seconds.get(row.seconds.len() / 2).copied();
    for row in &mut rows {
        row.seconds.sort_by(f64::total_cmp);
    }
    let yardstick = rows.iter().find(|r| r.name == "bbcp -e").and_then(median);
    for row in &rows {
        let Some(seconds) = median(row) else {
            println!("{:<22} failed: {}", row.name, row.fault.as_deref().unwrap_or("never ran"));
            continue;
        };
        let rate = |s: f64| gigabytes(bytes) / s;
        let fixed = if row.fixed > 0.0 { format!("{:.2}", row.fixed) } else { "-".into() };
        let ratio = yardstick.map_or_else(|| "-".into(), |y| format!("{:.2}", y / seconds));
        let without =
            if row.fixed > 0.0 { format!("{:.2}", rate((seconds - row.fixed).max(0.001))) } else { "-".into() };
        println!("{:<22} {seconds:>9.2} {:>9.2} {fixed:>9} {without:>12} {ratio:>12}", row.name, rate(seconds));
    }
}

fn rows(source: &Path, dest: &Path, sshd: Option<&Sshd>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |name, fixed, command: Box<dyn Fn() -> Command>| {
        rows.push(Row { name, fixed, command, seconds: Vec::new(), fault: None });
    };
    let words = |program: &str, args: Vec<String>| {
        let program = program.to_owned();
        Box::new(move || {
            let mut command = Command::new(&program);
            command.args(&args);
            command
        })
    };
    let (from, to) = (text(source), text(dest));
    row("cp", 0.0, words("cp", vec![from.clone(), to.clone()]));
    if let Some(sshd) = sshd {
        for (name, transport) in [("ccat-xfer tcp", "tcp"), ("ccat-xfer quic", "quic"), ("ccat-xfer ssh", "ssh")] {
            let far = format!("127.0.0.1:{to}");
            let args = ["send", "--transport", transport, "--rsh", &sshd.rsh(), "--remote-path", OURS, &from, &far];
            row(name, 0.0, words(OURS, args.map(str::to_owned).to_vec()));
        }
        let far = format!("127.0.0.1:{to}");
        row("rsync over ssh", 0.0, words("rsync", ["-W", "-e", &sshd.rsh(), &from, &far].map(str::to_owned).to_vec()));
        row("scp", 0.0, words("scp", ["-q", "-F", &text(&sshd.config), &from, &far].map(str::to_owned).to_vec()));
    } else {
        // Without ssh the far end is started by a shell: the rows over our own links still stand.
        let rsh = source.with_file_name("rsh");
        fs::write(&rsh, "shift; exec sh -c \"$*\"\n").expect("write a script");
        for (name, transport) in [("ccat-xfer tcp", "tcp"), ("ccat-xfer quic", "quic")] {
            let far = format!("127.0.0.1:{to}");
            let rsh = format!("sh {}", rsh.display());
            let args = ["send", "--transport", transport, "--rsh", &rsh, "--remote-path", OURS, &from, &far];
            row(name, 0.0, words(OURS, args.map(str::to_owned).to_vec()));
        }
    }
    if on_path("bbcp") {
        // Both ends here; no ssh, as bbcp takes any command in its place (engines of the past were started so).
        let ends = ["-S", "bbcp", "-T", "bbcp"];
        let plain = [&["-s", "4"][..], &ends, &[&from, &to]].concat();
        let summed = [&["-s", "4", "-e"][..], &ends, &[&from, &to]].concat();
        row("bbcp", 1.0, words("bbcp", plain.iter().map(|s| (*s).to_owned()).collect()));
        row("bbcp -e", 1.0, words("bbcp", summed.iter().map(|s| (*s).to_owned()).collect()));
    }
    rows
}

fn text(path: &Path) -> String {
    path.to_str().expect("paths of the bench are UTF-8").to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn sizes(text: &str) -> Vec<u64> {
    text.split(',')
        .map(|one| {
            let one = one.trim();
            let (digits, shift) = match one.strip_suffix(['M', 'm']) {
                Some(digits) => (digits, 20),
                None => (one.strip_suffix(['G', 'g']).unwrap_or(one), 30),
            };
            digits.parse::<u64>().unwrap_or_else(|_| panic!("'{one}' is not a size such as 256M or 4G")) << shift
        })
        .collect()
}

fn default_base() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}

fn on_path(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).is_file())
}

fn fits(place: &Path, bytes: u64) -> bool {
    let room = rustix::fs::statvfs(place).map_or(0, |s| s.f_bavail * s.f_frsize);
    room > bytes + (64 << 20)
}

fn write_noise(path: &Path, bytes: u64) {
    let mut file = File::create(path).expect("make the source");
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).expect("write the source");
    }
}

fn same(a: &Path, b: &Path) -> bool {
    let (Ok(mut a), Ok(mut b)) = (File::open(a), File::open(b)) else { return false };
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let Ok(n) = a.read(&mut left) else { return false };
        if n == 0 {
            return matches!(b.read(&mut right), Ok(0));
        }
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return false;
        }
    }
}

/// The bench's folder, removed with the value.
struct Place(PathBuf);

impl Place {
    fn new(base: &Path) -> Self {
        let path = base.join(format!("ccat-xfer-bench-{}", std::process::id()));
        fs::create_dir_all(&path).expect("make a folder");
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A private sshd on loopback.
struct Sshd {
    server: Child,
    config: PathBuf,
}

impl Sshd {
    fn start(place: &Path) -> Option<Self> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() || !on_path("ssh") {
            return None;
        }
        for key in ["host_key", "user_key"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(place.join(key)).status();
            made.ok().filter(|s| s.success())?;
        }
        let _ = fs::create_dir_all("/run/sshd");
        let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let server = Command::new(program)
            .args(["-D", "-f", "/dev/null", "-p", &port.to_string(), "-h", &text(&place.join("host_key"))])
            .args(["-E", &text(&place.join("sshd.log")), "-o", "ListenAddress=127.0.0.1", "-o", "PidFile=none"])
            .args(["-o", &format!("AuthorizedKeysFile={}", text(&place.join("user_key.pub")))])
            .args(["-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PasswordAuthentication=no"])
            .args(["-o", "PermitRootLogin=prohibit-password", "-o", "Subsystem=sftp internal-sftp"])
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        let config = place.join("ssh_config");
        let lines = format!(
            "Host *\n  Port {port}\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n  StrictHostKeyChecking no\n  \
             UserKnownHostsFile /dev/null\n  LogLevel ERROR\n",
            text(&place.join("user_key"))
        );
        fs::write(&config, lines).ok()?;
        let sshd = Self { server, config };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(sshd)
    }

    fn rsh(&self) -> String {
        format!("ssh -F {}", text(&self.config))
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
