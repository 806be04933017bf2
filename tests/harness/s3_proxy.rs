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
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    fate: Option<Arc<dyn Fate>>,
    /// Requests that were read and are not answered.
    under_way: AtomicU64,
    closing: AtomicBool,
    away: AtomicBool,
    delay_ms: AtomicU64,
    altered: AtomicU64,
    cut_answers: AtomicU64,
    cut_parts: AtomicU64,
    busy: AtomicU64,
    skewed: AtomicU64,
    count: Mutex<Count>,
    /// What objects begin with, by path, where there is a fate to tell it to.
    begins: Mutex<HashMap<String, Vec<u8>>>,
    open: Mutex<Vec<TcpStream>>,
}

/// A request as it passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Passing {
    pub(crate) method: String,
    /// Bucket and key, as the address has them.
    pub(crate) path: String,
    /// Of a file that is sent in parts.
    pub(crate) part: Option<u32>,
}

/// Harm to an answer with an object's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// One bit is another.
    Altered,
    /// The connection ends in the middle.
    Cut,
}

/// Decides what befalls which request.
pub(crate) trait Fate: Send + Sync {
    /// Whether the connection ends in the middle of an object's bytes, which are on their way to the server.
    fn cuts_off(&self, request: &Passing) -> bool;
    /// What befalls an object's bytes on their way to the client.
    fn harms(&self, request: &Passing) -> Option<Harm>;
    /// That harm was done, to the answer's end.
    fn has_harmed(&self, request: &Passing, harm: Harm);
    /// The server says that it has an object whole, which begins so; its answer waits until this returns.
    fn is_stored(&self, request: &Passing, begins: &[u8]);
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
    /// GETs of an object's bytes, by its path.
    pub(crate) gets: HashMap<String, u64>,
}

impl Count {
    pub(crate) fn acknowledged(&self) -> usize {
        self.parts.values().filter(|(_, acknowledged)| *acknowledged).count()
    }
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        Self::started(server, None)
    }

    /// One that asks what befalls each request, besides what it is told to do.
    pub(crate) fn with_fate(server: u16, fate: Arc<dyn Fate>) -> Self {
        Self::started(server, Some(fate))
    }

    fn started(server: u16, fate: Option<Arc<dyn Fate>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind on loopback");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            server,
            fate,
            under_way: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            away: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            altered: AtomicU64::new(0),
            cut_answers: AtomicU64::new(0),
            cut_parts: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            skewed: AtomicU64::new(0),
            count: Mutex::default(),
            begins: Mutex::default(),
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

    /// Requests that are not answered yet.
    pub(crate) fn under_way(&self) -> u64 {
        self.shared.under_way.load(SeqCst)
    }

    pub(crate) fn count(&self) -> Count {
        self.shared.count.lock().expect("no thread panics").clone()
    }

    /// Counts from nothing again.
    pub(crate) fn forget(&self) {
        *self.shared.count.lock().expect("no thread panics") = Count::default();
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({} before {})", self.port, self.shared.server)
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
            let _under_way = UnderWay::new(&self.under_way);
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
                self.note(|count| *count.gets.entry(path.to_owned()).or_default() += 1);
            }
            let number = part.as_ref().map(|(_, number)| *number);
            let passing = Passing { method: method.clone(), path: path.to_owned(), part: number };
            let puts = method == "PUT" && path.trim_matches('/').contains('/');
            let is_whole = puts && number.is_none() || method == "POST" && field(query, "uploadId").is_some();
            (&*server).write_all(&request.bytes()).ok()?;
            if part.is_some() && takes_one(&self.cut_parts) {
                pass(&mut asking, server, request.length() / 2, None)?;
                return None;
            }
            let mut left = request.length();
            if let Some(fate) = self.fate.as_ref().filter(|_| puts && left > 1) {
                if fate.cuts_off(&passing) {
                    pass(&mut asking, server, left / 2, None)?;
                    return None;
                }
                if number.is_none_or(|number| number == 1) {
                    let mut begins = vec![0; usize::try_from(left.min(BEGINS)).expect("few bytes")];
                    asking.read_exact(&mut begins).ok()?;
                    (&*server).write_all(&begins).ok()?;
                    left -= begins.len() as u64;
                    self.begins.lock().expect("no thread panics").insert(passing.path.clone(), begins);
                }
            }
            if request.chunked() {
                pass_chunks(&mut asking, server)?;
            } else {
                pass(&mut asking, server, left, None)?;
            }
            let answer = Head::read(&mut answering)?;
            let good = answer.first.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
            if let (Some(part), true) = (&part, good) {
                self.note(|count| count.parts.entry(part.clone()).or_default().1 = true);
            }
            if let Some(fate) = self.fate.as_ref().filter(|_| is_whole && good) {
                let begins = self.begins.lock().expect("no thread panics").get(path).cloned();
                fate.is_stored(&passing, &begins.unwrap_or_default());
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
            let told = (bytes_of_object && takes_one(&self.altered)).then_some(Harm::Altered);
            let fated = self.fate.as_ref().filter(|_| bytes_of_object && told.is_none());
            let harm = told.or_else(|| fated.and_then(|fate| fate.harms(&passing)));
            match harm {
                _ if answer.chunked() => pass_chunks(&mut answering, client)?,
                None => pass(&mut answering, client, length, None)?,
                Some(Harm::Altered) => pass(&mut answering, client, length, Some(length / 2))?,
                Some(Harm::Cut) => pass(&mut answering, client, length / 2, None)?,
            }
            if let (Some(fate), Some(harm)) = (fated, harm) {
                fate.has_harmed(&passing, harm);
            }
            if harm == Some(Harm::Cut) {
                return None;
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Count)) {
        change(&mut self.count.lock().expect("no thread panics"));
    }
}

/// Counts a request for as long as it lives.
struct UnderWay<'a>(&'a AtomicU64);

impl<'a> UnderWay<'a> {
    fn new(of: &'a AtomicU64) -> Self {
        of.fetch_add(1, SeqCst);
        Self(of)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
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

/// How much of an object's beginning is kept; enough to know it by.
const BEGINS: u64 = 64;
