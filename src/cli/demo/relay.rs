//! A link that is longer and worse than loopback: a relay in user space between the two sites.
//!
//! A UDP datagram that passes waits for half the round trip, and is dropped by chance. With a rate it waits for its turn as
//! well, and is dropped where more than [`QUEUE`] of them wait, as in a router. On TCP the relay can delay and pace only:
//! it ends each connection itself, so nothing can be lost on it, and what TCP's own clock measures is this machine.

use std::{
    collections::HashMap,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::units::{self, show_rate};

/// What a link does to what passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cli) struct Link {
    /// There and back.
    pub(super) round_trip: Duration,
    /// Of a million UDP datagrams so many are dropped.
    pub(super) loss_ppm: u32,
    /// Bytes per second, each way; as fast as the machine if `None`.
    pub(super) rate: Option<u64>,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let round_trip = units::duration(parts.next().unwrap_or_default()).map_err(|e| e.to_string())?;
        if round_trip > LONGEST {
            return Err(format!("'{text}': a round trip of more than {} s is no link", LONGEST.as_secs()));
        }
        let mut link = Self { round_trip, loss_ppm: 0, rate: None };
        for part in parts {
            match part.strip_suffix('%') {
                Some(percent) => {
                    link.loss_ppm = loss(percent).ok_or_else(|| format!("'{part}' is no loss below 100 %"))?
                }
                None => link.rate = Some(units::rate(part).map_err(|e| e.to_string())?),
            }
        }
        Ok(link)
    }
}

/// Millionths, from per cent.
fn loss(percent: &str) -> Option<u32> {
    let percent = percent.trim();
    let (whole, fraction) = percent.split_once('.').unwrap_or((percent, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let ppm = whole.parse::<u32>().ok()? * 10_000 + format!("{fraction:0<4}").parse::<u32>().ok()?;
    (ppm < 1_000_000).then_some(ppm)
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms there and back", self.round_trip.as_millis())?;
        if self.loss_ppm > 0 {
            write!(f, ", {} of UDP lost", Percent(self.loss_ppm.into(), 1_000_000))?;
        }
        self.rate.map_or(Ok(()), |rate| write!(f, ", {} each way", show_rate(rate)))
    }
}

/// A part of a whole, for people.
struct Percent(u64, u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = self.0.saturating_mul(10_000) / self.1.max(1);
        write!(f, "{}.{:02} %", hundredths / 100, hundredths % 100)
    }
}

/// A running relay. It ends when its token is cancelled.
#[derive(Debug)]
pub(super) struct Relay {
    port: u16,
    figures: Arc<Figures>,
}

#[derive(Debug, Default)]
struct Figures {
    datagrams: AtomicU64,
    lost: AtomicU64,
    crowded: AtomicU64,
    tcp_bytes: AtomicU64,
}

/// What everything that passes shares.
#[derive(Clone, Debug)]
struct Way {
    link: Link,
    target: SocketAddr,
    figures: Arc<Figures>,
    tasks: TaskTracker,
    end: CancellationToken,
}

impl Relay {
    /// Begins to listen on a free port of 127.0.0.1, UDP and TCP.
    pub(super) async fn start(link: Link, target: u16, end: CancellationToken) -> io::Result<Self> {
        let (tcp, udp) = bind().await?;
        let port = tcp.local_addr()?.port();
        let figures = Arc::new(Figures::default());
        let way = Way {
            link,
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, target)),
            figures: Arc::clone(&figures),
            tasks: TaskTracker::new(),
            end,
        };
        let (there, back) = (Clock::new(link.rate), Clock::new(link.rate));
        way.spawn(datagrams(way.clone(), Arc::new(udp), there.clone(), back.clone()));
        way.spawn(connections(way.clone(), tcp, there, back));
        Ok(Self { port, figures })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What passed, in words.
    pub(super) fn told(&self) -> String {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let f = &self.figures;
        let (all, lost) = (of(&f.datagrams), of(&f.lost));
        let crowded = match of(&f.crowded) {
            0 => String::new(),
            n => format!("\nand {n} for which its queue was full"),
        };
        format!(
            "the relay got {} UDP datagrams, dropped {lost} of them ({}){crowded};\nover TCP {}",
            all,
            Percent(lost, all),
            units::show_size(of(&f.tcp_bytes))
        )
    }
}

impl Way {
    /// Runs until it ends by itself or the relay ends.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.tasks.spawn(async move {
            end.run_until_cancelled(work).await;
        });
    }

    fn delay(&self) -> Duration {
        self.link.round_trip / 2
    }
}

/// One port for both kinds.
async fn bind() -> io::Result<(TcpListener, UdpSocket)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((tcp, roomy(udp)?)),
            Err(error) if tries >= BIND_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

/// With room for what comes while this process does something else; the system grants what it likes.
fn roomy(socket: UdpSocket) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::from(socket.into_std()?);
    let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BYTES);
    UdpSocket::from_std(socket.into())
}

/// When the next byte of one direction may leave.
#[derive(Clone, Debug)]
struct Clock {
    rate: Option<u64>,
    next: Arc<Mutex<Instant>>,
}

impl Clock {
    fn new(rate: Option<u64>) -> Self {
        Self { rate, next: Arc::new(Mutex::new(Instant::now())) }
    }

    /// When so many bytes that came now have left; `None` where more than `most` of time stands before them.
    fn depart(&self, bytes: usize, most: Option<Duration>) -> Option<Instant> {
        let now = Instant::now();
        let Some(rate) = self.rate else { return Some(now) };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = now.max(*next);
        if most.is_some_and(|most| begin - now > most) {
            return None;
        }
        let nanoseconds =
            u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000) / u128::from(rate.max(1));
        *next = begin + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        Some(*next)
    }
}

type Datagram = (Instant, Vec<u8>);

/// Decides about a datagram that came, and puts it on its way.
fn pass(way: &Way, clock: &Clock, bytes: &[u8], on: &mpsc::Sender<Datagram>) {
    way.figures.datagrams.fetch_add(1, Ordering::Relaxed);
    if rand::random_range(0..1_000_000) < way.link.loss_ppm {
        way.figures.lost.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let sent = clock
        .depart(bytes.len(), Some(QUEUE))
        .is_some_and(|at| on.try_send((at + way.delay(), bytes.to_vec())).is_ok());
    if !sent {
        way.figures.crowded.fetch_add(1, Ordering::Relaxed);
    }
}

/// UDP: each caller gets a socket of its own towards the target, so that answers find back.
async fn datagrams(way: Way, front: Arc<UdpSocket>, there: Clock, back: Clock) {
    let mut callers: HashMap<SocketAddr, mpsc::Sender<Datagram>> = HashMap::new();
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    loop {
        let Ok((len, caller)) = front.recv_from(&mut buffer).await else {
            // What the kernel tells of a peer that is gone; the socket works on.
            continue;
        };
        if callers.get(&caller).is_none_or(mpsc::Sender::is_closed) {
            match open(&way, caller, &front, &back).await {
                Ok(on) => callers.insert(caller, on),
                Err(error) => {
                    tracing::warn!(%error, "the relay cannot pass a datagram");
                    continue;
                }
            };
        }
        if let Some(on) = callers.get(&caller) {
            pass(&way, &there, &buffer[..len], on);
        }
    }
}

async fn open(
    way: &Way,
    caller: SocketAddr,
    front: &Arc<UdpSocket>,
    back: &Clock,
) -> io::Result<mpsc::Sender<Datagram>> {
    let far = roomy(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?)?;
    far.connect(way.target).await?;
    let far = Arc::new(far);
    let (on, mut waiting) = mpsc::channel::<Datagram>(MOST_DATAGRAMS);
    let to = Arc::clone(&far);
    way.spawn(async move {
        while let Some((at, bytes)) = waiting.recv().await {
            sleep_until(at).await;
            // A target that is not there loses it, as a network would.
            let _ = to.send(&bytes).await;
        }
    });
    let (answer, mut answers) = mpsc::channel::<Datagram>(MOST_DATAGRAMS);
    let to = Arc::clone(front);
    way.spawn(async move {
        while let Some((at, bytes)) = answers.recv().await {
            sleep_until(at).await;
            let _ = to.send_to(&bytes, caller).await;
        }
    });
    let (here, clock) = (way.clone(), back.clone());
    way.spawn(async move {
        let mut buffer = vec![0; LARGEST_DATAGRAM];
        loop {
            if let Ok(len) = far.recv(&mut buffer).await {
                pass(&here, &clock, &buffer[..len], &answer);
            } else {
                // Refused, because the target is not there now; not asked at once again.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    Ok(on)
}

async fn connections(way: Way, listener: TcpListener, there: Clock, back: Clock) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(far) = TcpStream::connect(way.target).await else { continue };
        for stream in [&near, &far] {
            let _ = stream.set_nodelay(true);
        }
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        carry(&way, near_in, far_out, &there);
        carry(&way, far_in, near_out, &back);
    }
}

/// One direction of a TCP connection.
fn carry(way: &Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, clock: &Clock) {
    let (on, mut waiting) = mpsc::channel::<Datagram>(MOST_PIECES);
    let (here, clock) = (way.clone(), clock.clone());
    way.spawn(async move {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(len) = from.read(&mut buffer).await {
            here.figures.tcp_bytes.fetch_add(u64::try_from(len).unwrap_or(0), Ordering::Relaxed);
            let at = clock.depart(len, None).unwrap_or_else(Instant::now) + here.delay();
            // Nothing is the end of the stream, which takes its time as well.
            if on.send((at, buffer[..len].to_vec())).await.is_err() || len == 0 {
                break;
            }
        }
    });
    way.spawn(async move {
        while let Some((at, bytes)) = waiting.recv().await {
            sleep_until(at).await;
            let written = if bytes.is_empty() { to.shutdown().await } else { to.write_all(&bytes).await };
            if written.is_err() || bytes.is_empty() {
                break;
            }
        }
    });
}

/// Longer than to the Moon and back.
const LONGEST: Duration = Duration::from_secs(10);
/// What may wait for its turn where there is a rate.
const QUEUE: Duration = Duration::from_millis(250);
/// Datagrams on their way at once, one direction of one caller.
const MOST_DATAGRAMS: usize = 32_768;
const LARGEST_DATAGRAM: usize = 65_536;
/// Pieces of a TCP stream on their way at once.
const MOST_PIECES: usize = 512;
const PIECE_BYTES: usize = 64 << 10;
const SOCKET_BYTES: usize = 8 << 20;
const BIND_TRIES: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_as_people_type_them() {
        let link = |text: &str| text.parse::<Link>();
        let plain = Link { round_trip: Duration::from_millis(200), loss_ppm: 0, rate: None };
        assert_eq!(link("200ms"), Ok(plain));
        assert_eq!(link("200ms,1%"), Ok(Link { loss_ppm: 10_000, ..plain }));
        assert_eq!(link("200ms, 0.01%, 1Gbit"), Ok(Link { loss_ppm: 100, rate: Some(125_000_000), ..plain }));
        for bad in ["", "1%", "200ms,100%", "200ms,-1%", "200ms,x", "1h", "200ms,1%,0bit", "200ms,.5%"] {
            assert!(link(bad).is_err(), "{bad}");
        }
        assert_eq!(
            link("200ms,1%,1Gbit").unwrap().to_string(),
            "200 ms there and back, 1.00 % of UDP lost, 125 MB/s each way"
        );
    }

    /// Seen to fail with the delay left out.
    #[tokio::test]
    async fn datagrams_are_delayed_and_some_are_lost() {
        let target = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let end = CancellationToken::new();
        let link = "60ms,50%".parse().unwrap();
        let relay = Relay::start(link, target.local_addr().unwrap().port(), end.clone()).await.unwrap();
        let caller = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        caller.connect((Ipv4Addr::LOCALHOST, relay.port())).await.unwrap();
        let began = Instant::now();
        for n in 0..200u8 {
            caller.send(&[n]).await.unwrap();
        }
        let (mut buffer, mut came) = ([0; 8], 0);
        let (_, back) = target.recv_from(&mut buffer).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(30), "half the round trip");
        while tokio::time::timeout(Duration::from_secs(1), target.recv_from(&mut buffer)).await.is_ok() {
            came += 1;
        }
        assert!((20..180).contains(&came), "about half: {came}");
        // An answer finds the caller, sooner or later.
        for _ in 0..64 {
            target.send_to(b"back", back).await.unwrap();
        }
        let (len, sender) = caller.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], sender.port()), (&b"back"[..], relay.port()));
        assert!(relay.told().contains("UDP datagrams"), "{}", relay.told());
        end.cancel();
    }

    /// Seen to fail with the delay left out.
    #[tokio::test]
    async fn tcp_is_delayed_and_whole() {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let end = CancellationToken::new();
        let link = "300ms,10%,80Mbit".parse().unwrap();
        let relay = Relay::start(link, target.local_addr().unwrap().port(), end.clone()).await.unwrap();
        let echo = tokio::spawn(async move {
            let (mut stream, _) = target.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
        });
        let mut caller = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port())).await.unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let began = Instant::now();
        caller.write_all(&sent).await.unwrap();
        caller.shutdown().await.unwrap();
        let mut all = Vec::new();
        caller.read_to_end(&mut all).await.unwrap();
        assert!(all == sent, "what comes back is what was sent");
        assert!(began.elapsed() >= Duration::from_millis(300), "there and back");
        echo.await.unwrap();
        end.cancel();
    }
}
