use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt as _};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const HANG: Duration = Duration::from_secs(60);

struct Running {
    address: SocketAddr,
    cancel: CancellationToken,
    health: Health,
    metrics: Metrics,
}

async fn start(config: &Config) -> Running {
    let (health, metrics, cancel) = (Health::new(), Metrics::new(), CancellationToken::new());
    let server = Server::bind(config, health.clone(), metrics.clone()).await.unwrap();
    let address = server.address();
    tokio::spawn(server.serve(cancel.clone()));
    Running { address, cancel, health, metrics }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What comes back for these bytes, until the server closes.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(HANG, stream.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8(answer).unwrap()
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n")
}

fn token_file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (folder, path)
}

#[tokio::test]
async fn health_follows_the_loops() {
    let server = start(&Config { listen: LOOPBACK, token_file: None }).await;
    let relay = server.health.heartbeat("relay", HANG);
    relay.found_nothing();
    let answer = ask(server.address, &get("/health", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("application/json") && answer.contains(r#""state":"fresh""#), "{answer}");

    let _stuck = server.health.heartbeat("planner", Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(2)).await;
    let answer = ask(server.address, &get("/health", "")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains(r#""stale":["planner"]"#), "{answer}");
}

#[tokio::test]
async fn metrics_are_served_and_nothing_else() {
    let server = start(&Config { listen: LOOPBACK, token_file: None }).await;
    let turns = metrics::Counter::<u64>::default();
    server.metrics.section("test", |registry| registry.register("turns", "Turns", turns.clone()));
    turns.inc();
    let answer = ask(server.address, &get("/metrics", "")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("ccat_xfer_test_turns_total 1\n") && answer.contains(metrics::CONTENT_TYPE), "{answer}");
    assert!(ask(server.address, &get("/", "")).await.starts_with("HTTP/1.1 404 "));
    let post = "POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(server.address, post).await.starts_with("HTTP/1.1 405 "));
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_set() {
    let (_folder, path) = token_file("0123456789abcdef\n");
    // All addresses of the machine: only with a token.
    let open = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let mut server = start(&Config { listen: open, token_file: Some(path) }).await;
    server.address.set_ip(Ipv4Addr::LOCALHOST.into());
    for wrong in [
        "",
        "Authorization: Bearer 0123456789abcdeg\r\n",
        "Authorization: Bearer 0123456789abcde\r\n",
        "Authorization: Bearer 0123456789abcdef0\r\n",
        "Authorization: Basic 0123456789abcdef\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer é\r\n",
    ] {
        for path in ["/health", "/metrics", "/other"] {
            let answer = ask(server.address, &get(path, wrong)).await;
            assert!(answer.starts_with("HTTP/1.1 401 ") && !answer.contains("loops"), "{wrong}: {answer}");
        }
    }
    let answer = ask(server.address, &get("/health", "Authorization: bearer 0123456789abcdef\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_open_address_without_a_good_token_is_refused() {
    let bind = async |listen: &str, token_file: Option<PathBuf>| {
        Server::bind(&Config { listen: listen.parse().unwrap(), token_file }, Health::new(), Metrics::new()).await
    };
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        assert!(matches!(bind(open, None).await, Err(HttpError::OpenToOthers { .. })), "{open}");
    }
    assert!(bind("[::ffff:127.0.0.1]:0", None).await.is_ok());
    let (_folder, weak) = token_file("short\n");
    assert!(matches!(bind("0.0.0.0:0", Some(weak)).await, Err(HttpError::WeakToken { .. })));
    let (_folder, exposed) = token_file("0123456789abcdef\n");
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(bind("127.0.0.1:0", Some(exposed)).await, Err(HttpError::Token(SecretError::Exposed { .. }))));
}

#[tokio::test]
async fn hostile_callers_are_cut_off_and_others_are_served() {
    let server = start(&Config { listen: LOOPBACK, token_file: None }).await;
    let endless = format!("GET /health HTTP/1.1\r\nX: {}", "a".repeat(4 * MAX_HEADER_BYTES));
    let answer = ask(server.address, &endless).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let many = (0..4 * MAX_HEADERS).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let answer = ask(server.address, &get("/health", &many)).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    let answer = ask(server.address, "\u{1}\u{2}nonsense\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");

    // More silent callers than there are places: each is cut off in time and the honest one gets through.
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 4 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let answer = timeout(HANG, ask(server.address, &get("/health", ""))).await.expect("places come free again");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
