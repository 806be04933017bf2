use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Stands between an S3 client and its server on loopback, counts what passes and does harm where it is told to.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    closing: AtomicBool,
    away: AtomicBool,
    delay_ms: AtomicU64,
    altered: AtomicU64,
    cut_answers: AtomicU64,
    cut_parts: AtomicU64,
    busy: AtomicU64,
    skewed: AtomicU64,
    count: Mutex<Count>,
    open: Mutex<Vec<TcpStream>>,
}

/// What passed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count {
    /// Requests by method.
    pub(crate) requests: HashMap<String, u64>,
    /// Parts by key and number: how often one was sent, and whether the server acknowledged it.
    pub(crate) parts: HashMap<(String, u32), (u64, bool)>,
    /// Multipart uploads begun.
    pub(crate) begun: u64,
    /// Multipart uploads removed.
    pub(crate) removed: u64,
    /// GETs of an object's bytes.
    pub(crate) gets: u64,
}

impl Count {
    pub(crate) fn acknowledged(&self) -> usize {
        self.parts.values().filter(|(_, acknowledged)| *acknowledged).count()
    }
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind on loopback");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            server,
            closing: AtomicBool::new(false),
            away: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            altered: AtomicU64::new(0),
            cut_answers: AtomicU64::new(0),
            cut_parts: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            skewed: AtomicU64::new(0),
            count: Mutex::default(),
            open: Mutex::default(),
        });
        let of_listener = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&of_listener);
                if shared.closing.load(SeqCst) {
                    return;
                }
                thread::spawn(move || shared.serve(client));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Flips a bit in the next so many answers with an object's bytes.
    pub(crate) fn alter_gets(&self, answers: u64) {
        self.shared.altered.store(answers, SeqCst);
    }

    /// Ends the connection in the middle of the next so many answers with an object's bytes.
    pub(crate) fn cut_gets(&self, answers: u64) {
        self.shared.cut_answers.store(answers, SeqCst);
    }

    /// Ends the connection in the middle of the next so many parts.
    pub(crate) fn cut_parts(&self, parts: u64) {
        self.shared.cut_parts.store(parts, SeqCst);
    }

    /// Answers the next so many requests by 503 SlowDown.
    pub(crate) fn be_busy(&self, requests: u64) {
        self.shared.busy.store(requests, SeqCst);
    }

    /// Answers the next so many requests as a store does whose clock is elsewhere.
    pub(crate) fn be_skewed(&self, requests: u64) {
        self.shared.skewed.store(requests, SeqCst);
    }

    /// How long each request waits.
    pub(crate) fn delay(&self, wait: Duration) {
        self.shared.delay_ms.store(u64::try_from(wait.as_millis()).expect("a short wait"), SeqCst);
    }

    /// Whether the endpoint is away: every connection ends, and none is answered.
    pub(crate) fn be_away(&self, away: bool) {
        self.shared.away.store(away, SeqCst);
        if away {
            self.shared.close_all();
        }
    }

    pub(crate) fn count(&self) -> Count {
        self.shared.count.lock().expect("no thread panics").clone()
    }

    /// Counts from nothing again.
    pub(crate) fn forget(&self) {
        *self.shared.count.lock().expect("no thread panics") = Count::default();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        self.shared.close_all();
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// The head of a request or answer.
struct Head {
    first: String,
    lines: Vec<String>,
}

impl Head {
    fn read(from: &mut impl std::io::BufRead) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        (!lines.is_empty()).then(|| Self { first: lines.remove(0), lines })
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn length(&self) -> u64 {
        self.value("content-length").and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn chunked(&self) -> bool {
        self.value("transfer-encoding").is_some_and(|v| v.contains("chunked"))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.first.clone().into_bytes();
        for line in self.lines.iter().filter(|line| !line.to_ascii_lowercase().starts_with("expect:")) {
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(line.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes
    }
}

impl Shared {
    fn close_all(&self) {
        for stream in self.open.lock().expect("no thread panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn serve(&self, client: TcpStream) {
        if self.away.load(SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else { return };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            self.open.lock().expect("no thread panics").extend(stream.try_clone());
        }
        // Whatever fails, both connections end with this function.
        let _ = self.exchanges(&client, &server);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }

    fn exchanges(&self, client: &TcpStream, server: &TcpStream) -> Option<()> {
        let (mut asking, mut answering) = (BufReader::new(client), BufReader::new(server));
        loop {
            let request = Head::read(&mut asking)?;
            thread::sleep(Duration::from_millis(self.delay_ms.load(SeqCst)));
            let mut words = request.first.split(' ');
            let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
            let (path, query) = target.split_once('?').map_or((target.as_str(), ""), |(path, query)| (path, query));
            self.note(|count| *count.requests.entry(method.clone()).or_default() += 1);
            if request.value("expect").is_some() {
                (&*client).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
            }
            if takes_one(&self.busy) {
                discard(&mut asking, request.length())?;
                answer(client, "503 Service Unavailable", "SlowDown", &method)?;
                continue;
            }
            if takes_one(&self.skewed) {
                discard(&mut asking, request.length())?;
                answer(client, "403 Forbidden", "RequestTimeTooSkewed", &method)?;
                continue;
            }
            let part = field(query, "partNumber").and_then(|n| n.parse().ok()).filter(|_| method == "PUT");
            let part: Option<(String, u32)> = part.map(|number| (path.to_owned(), number));
            if let Some(part) = &part {
                self.note(|count| count.parts.entry(part.clone()).or_default().0 += 1);
            }
            if method == "POST" && field(query, "uploads").is_some() {
                self.note(|count| count.begun += 1);
            }
            if method == "DELETE" && field(query, "uploadId").is_some() {
                self.note(|count| count.removed += 1);
            }
            let object = method == "GET" && path.trim_matches('/').contains('/') && field(query, "uploadId").is_none();
            if object {
                self.note(|count| count.gets += 1);
            }
            (&*server).write_all(&request.bytes()).ok()?;
            if part.is_some() && takes_one(&self.cut_parts) {
                pass(&mut asking, server, request.length() / 2, None)?;
                return None;
            }
            if request.chunked() {
                pass_chunks(&mut asking, server)?;
            } else {
                pass(&mut asking, server, request.length(), None)?;
            }
            let answer = Head::read(&mut answering)?;
            let good = answer.first.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
            if let (Some(part), true) = (&part, good) {
                self.note(|count| count.parts.entry(part.clone()).or_default().1 = true);
            }
            (&*client).write_all(&answer.bytes()).ok()?;
            let empty = method == "HEAD" || [" 204", " 304"].iter().any(|status| answer.first.contains(status));
            if empty {
                continue;
            }
            let length = answer.length();
            let bytes_of_object = object && good && length > 1;
            if bytes_of_object && takes_one(&self.cut_answers) {
                pass(&mut answering, client, length / 2, None)?;
                return None;
            }
            let flip = (bytes_of_object && takes_one(&self.altered)).then_some(length / 2);
            if answer.chunked() {
                pass_chunks(&mut answering, client)?;
            } else {
                pass(&mut answering, client, length, flip)?;
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Count)) {
        change(&mut self.count.lock().expect("no thread panics"));
    }
}

fn takes_one(of: &AtomicU64) -> bool {
    of.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn field<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// Passes so many bytes on, with one bit flipped in the byte at `flip`.
fn pass(from: &mut impl Read, mut to: &TcpStream, length: u64, flip: Option<u64>) -> Option<()> {
    let (mut block, mut at) = ([0; 64 << 10], 0);
    while at < length {
        let room = usize::try_from((length - at).min(block.len() as u64)).expect("below the block's size");
        let n = from.read(&mut block[..room]).ok().filter(|n| *n > 0)?;
        if let Some(flip) = flip.and_then(|flip| flip.checked_sub(at)).and_then(|f| usize::try_from(f).ok())
            && flip < n
        {
            block[flip] ^= 0x10;
        }
        to.write_all(&block[..n]).ok()?;
        at += n as u64;
    }
    Some(())
}

fn pass_chunks(from: &mut impl std::io::BufRead, mut to: &TcpStream) -> Option<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|n| *n > 0)?;
        to.write_all(line.as_bytes()).ok()?;
        let size = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
        if size == 0 {
            loop {
                let mut line = String::new();
                from.read_line(&mut line).ok().filter(|n| *n > 0)?;
                to.write_all(line.as_bytes()).ok()?;
                if line.trim().is_empty() {
                    return Some(());
                }
            }
        }
        pass(from, to, size + 2, None)?;
    }
}

fn discard(from: &mut impl Read, length: u64) -> Option<()> {
    std::io::copy(&mut from.take(length), &mut std::io::sink()).ok().filter(|n| *n == length).map(drop)
}

fn answer(mut client: &TcpStream, status: &str, code: &str, method: &str) -> Option<()> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>told to</Message></Error>");
    let body = if method == "HEAD" { String::new() } else { body };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all((head + &body).as_bytes()).ok()
}
