//! Whole QUIC connections over a model of a link, in virtual time: quinn's own loss recovery, pacer and acknowledgements, with no
//! socket and no waiting.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::congestion::ControllerFactory;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, IdleTimeout, MtuDiscoveryConfig, ServerConfig, StreamId, TransportConfig, VarInt,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::units::{real, whole};

pub(super) type Factory = Arc<dyn ControllerFactory + Send + Sync>;

/// What a packet is on the wire beside its UDP payload.
const HEADERS: usize = 28;
/// Largest UDP payload of the link, and the largest that is tried.
const LARGEST: usize = 1472;
const PROBED: u16 = 6550;
/// A stream carries so much, as a chunk does in a job: a tenth of it, as the links of these tests have a tenth of the rate.
const CHUNK: u64 = 400 << 10;
const NANOS: f64 = 1e9;

const SENDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 1);
const RECEIVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 2);

/// The link from sender to receiver; the way back only delays.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Bytes per second on the wire.
    pub(super) rate: f64,
    /// Round trip time in seconds.
    pub(super) rtt: f64,
    /// Drop-tail queue in bandwidth-delay products.
    pub(super) queue: f64,
    /// Share of packets lost behind the queue.
    pub(super) loss: f64,
    /// Mean length of a burst of loss in packets (Gilbert-Elliott); 1: each packet by itself.
    pub(super) burst: f64,
    /// Largest extra delay of a packet each way, in seconds; order is kept.
    pub(super) jitter: f64,
    /// Changes of the rate: when, in seconds, and to what; 0 is down.
    pub(super) changes: Vec<(f64, f64)>,
}

impl Link {
    pub(super) fn product(&self) -> f64 {
        self.rate * self.rtt
    }
}

/// What became of one job.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// Seconds from the first packet to the last byte read.
    pub(super) took: Option<f64>,
    /// Bytes that came in each second, whether or not those before them had come.
    pub(super) seconds: Vec<u64>,
    /// Bytes that stood in the queue all through each second, as its packets met them.
    pub(super) standing: Vec<u64>,
    /// When the queue dropped how many bytes.
    pub(super) drops: Vec<(f64, u64)>,
    pub(super) failed: Option<String>,
}

impl Outcome {
    fn met(&mut self, seconds: f64, queued: u64) {
        let second = usize::try_from(whole(seconds)).unwrap();
        let seen = self.standing.len().max(second + 1);
        self.standing.resize(seen, u64::MAX);
        self.standing[second] = self.standing[second].min(queued);
    }
}

enum What {
    Arrival { flow: usize, at_receiver: bool, data: BytesMut },
    Wake { flow: usize, at_receiver: bool },
    Served,
    Rate(f64),
}

struct Coming {
    at: u64,
    order: u64,
    what: What,
}

impl PartialEq for Coming {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Coming {}

impl PartialOrd for Coming {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Coming {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

struct Side {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    wake: Option<u64>,
}

struct Flow {
    sender: Side,
    receiver: Side,
    config: Option<ClientConfig>,
    size: u64,
    unwritten: u64,
    writing: Option<(StreamId, u64)>,
    reading: Vec<StreamId>,
    read: u64,
    started: f64,
    outcome: Outcome,
}

/// The link and what runs over it.
pub(super) struct Simulation {
    now: u64,
    order: u64,
    origin: Instant,
    coming: BinaryHeap<Reverse<Coming>>,
    flows: Vec<Flow>,
    link: Link,
    rate: f64,
    queue: VecDeque<(usize, BytesMut)>,
    queued: usize,
    busy: bool,
    losing: bool,
    latest: [u64; 2],
    random: StdRng,
    chunk: Bytes,
}

fn nanos(seconds: f64) -> u64 {
    whole(seconds * NANOS)
}

fn size_of(count: usize) -> f64 {
    real(u64::try_from(count).unwrap())
}

fn transport(factory: &Factory) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(PROBED);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(10));
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(1 << 28))
        .send_window(1 << 28)
        .send_fairness(false)
        .max_concurrent_uni_streams(VarInt::from_u32(256))
        .max_idle_timeout(Some(IdleTimeout::try_from(Duration::from_secs(90)).unwrap()))
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::clone(factory));
    Arc::new(config)
}

fn configs(factory: &Factory) -> (ClientConfig, ServerConfig) {
    // The signatures of this kind of key have one size, so the handshake takes as long in each run.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let made = rcgen::CertificateParams::new(["far".to_owned()]).unwrap().self_signed(&key).unwrap();
    let certificate: CertificateDer<'static> = made.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    server.transport_config(transport(factory));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    client.transport_config(transport(factory));
    (client, server)
}

impl Simulation {
    pub(super) fn new(link: Link, seed: u64) -> Self {
        let mut simulation = Self {
            now: 0,
            order: 0,
            origin: Instant::now(),
            coming: BinaryHeap::new(),
            flows: Vec::new(),
            rate: link.rate,
            queue: VecDeque::new(),
            queued: 0,
            busy: false,
            losing: false,
            latest: [0; 2],
            random: StdRng::seed_from_u64(seed),
            chunk: Bytes::from(vec![7; usize::try_from(CHUNK).unwrap()]),
            link,
        };
        for (at, rate) in simulation.link.changes.clone() {
            simulation.plan(nanos(at), What::Rate(rate));
        }
        simulation
    }

    /// A job of `size` bytes that begins after `start` seconds.
    pub(super) fn add(&mut self, factory: &Factory, start: f64, size: u64) {
        let number = u8::try_from(self.flows.len()).unwrap();
        let mut endpoint = EndpointConfig::default();
        endpoint.rng_seed(Some([number; 32])).max_udp_payload_size(PROBED).unwrap();
        let endpoint = Arc::new(endpoint);
        let (client, server) = configs(factory);
        let side = |server| Side {
            endpoint: Endpoint::new(Arc::clone(&endpoint), server, true, None),
            connection: None,
            wake: None,
        };
        self.flows.push(Flow {
            sender: side(None),
            receiver: side(Some(Arc::new(server))),
            config: Some(client),
            size,
            unwritten: size,
            writing: None,
            reading: Vec::new(),
            read: 0,
            started: start,
            outcome: Outcome::default(),
        });
        let flow = self.flows.len() - 1;
        self.plan(nanos(start), What::Wake { flow, at_receiver: false });
    }

    /// Runs until every job has ended, at most `limit` seconds.
    pub(super) fn run(mut self, limit: f64) -> Vec<Outcome> {
        while let Some(Reverse(next)) = self.coming.pop() {
            self.now = next.at;
            let over = self.flows.iter().all(|flow| flow.outcome.took.is_some() || flow.outcome.failed.is_some());
            if over || self.seconds() > limit {
                break;
            }
            match next.what {
                What::Rate(rate) => {
                    self.rate = rate;
                    if !self.busy {
                        self.serve();
                    }
                }
                What::Served => {
                    self.busy = false;
                    if self.rate > 0.0 {
                        self.deliver();
                    }
                    self.serve();
                }
                What::Wake { flow, at_receiver } => self.wake(flow, at_receiver),
                What::Arrival { flow, at_receiver, data } => self.arrive(flow, at_receiver, data),
            }
        }
        self.flows.into_iter().map(|flow| flow.outcome).collect()
    }

    fn plan(&mut self, at: u64, what: What) {
        self.order += 1;
        self.coming.push(Reverse(Coming { at, order: self.order, what }));
    }

    fn seconds(&self) -> f64 {
        real(self.now) / NANOS
    }

    fn instant(&self) -> Instant {
        self.origin + Duration::from_nanos(self.now)
    }

    fn side(&mut self, flow: usize, at_receiver: bool) -> &mut Side {
        let flow = &mut self.flows[flow];
        if at_receiver { &mut flow.receiver } else { &mut flow.sender }
    }

    fn wake(&mut self, flow: usize, at_receiver: bool) {
        let (now, at) = (self.instant(), self.now);
        if let Some(config) = self.flows[flow].config.take() {
            let sender = &mut self.flows[flow].sender;
            sender.connection = Some(sender.endpoint.connect(now, config, RECEIVER, "far").unwrap());
        } else {
            let side = self.side(flow, at_receiver);
            if side.wake != Some(at) {
                return;
            }
            side.wake = None;
            if let Some((_, connection)) = &mut side.connection {
                connection.handle_timeout(now);
            }
        }
        self.drive(flow, at_receiver);
    }

    fn arrive(&mut self, flow: usize, at_receiver: bool, data: BytesMut) {
        let now = self.instant();
        let side = self.side(flow, at_receiver);
        let mut answer = Vec::new();
        let from = if at_receiver { SENDER } else { RECEIVER };
        match side.endpoint.handle(now, from, None, None, data, &mut answer) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut side.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                side.connection = side.endpoint.accept(incoming, now, &mut answer, None).ok();
            }
            _ => {}
        }
        self.drive(flow, at_receiver);
    }

    fn drive(&mut self, flow: usize, at_receiver: bool) {
        let (now, seconds) = (self.instant(), self.seconds());
        let side = self.side(flow, at_receiver);
        let Some((handle, connection)) = &mut side.connection else { return };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = side.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        let mut failed = None;
        while let Some(event) = connection.poll() {
            if let Event::ConnectionLost { reason } = event {
                failed = Some(format!("{reason} after {seconds:.2} s"));
            }
        }
        let job = &mut self.flows[flow];
        if job.outcome.failed.is_none() && job.outcome.took.is_none() {
            job.outcome.failed = failed;
        }
        if at_receiver {
            job.read(seconds);
        } else {
            job.write(&self.chunk);
        }
        let mut packets = Vec::new();
        let side = self.side(flow, at_receiver);
        let Some((_, connection)) = &mut side.connection else { return };
        let mut buffer = Vec::new();
        while let Some(sent) = connection.poll_transmit(now, 10, &mut buffer) {
            let each = sent.segment_size.unwrap_or(sent.size);
            packets.extend(buffer[..sent.size].chunks(each).map(BytesMut::from));
            buffer.clear();
        }
        let wake = connection.poll_timeout();
        for packet in packets {
            self.send(flow, at_receiver, packet);
        }
        let wake = wake.map(|at| u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap());
        let wake = wake.map(|at| at.max(self.now));
        let side = self.side(flow, at_receiver);
        if side.wake != wake {
            side.wake = wake;
            if let Some(at) = wake {
                self.plan(at, What::Wake { flow, at_receiver });
            }
        }
    }

    fn send(&mut self, flow: usize, from_receiver: bool, data: BytesMut) {
        if data.len() > LARGEST || self.rate <= 0.0 {
            return;
        }
        if from_receiver {
            let at = self.arrival(1);
            self.plan(at, What::Arrival { flow, at_receiver: false, data });
            return;
        }
        let size = data.len() + HEADERS;
        if size_of(self.queued + size) > self.link.queue * self.link.product() {
            let at = self.seconds();
            self.flows[flow].outcome.drops.push((at, u64::try_from(size).unwrap()));
            return;
        }
        let at = self.seconds();
        self.flows[flow].outcome.met(at, u64::try_from(self.queued).unwrap());
        self.queued += size;
        self.queue.push_back((flow, data));
        if !self.busy {
            self.serve();
        }
    }

    fn serve(&mut self) {
        if self.rate <= 0.0 {
            return;
        }
        if let Some((_, data)) = self.queue.front() {
            self.busy = true;
            let at = self.now + nanos(size_of(data.len() + HEADERS) / self.rate);
            self.plan(at, What::Served);
        }
    }

    fn deliver(&mut self) {
        let Some((flow, data)) = self.queue.pop_front() else { return };
        self.queued -= data.len() + HEADERS;
        if !self.is_lost() {
            let at = self.arrival(0);
            self.plan(at, What::Arrival { flow, at_receiver: true, data });
        }
    }

    fn is_lost(&mut self) -> bool {
        let Link { loss, burst, .. } = self.link;
        if burst <= 1.0 {
            return self.random.random_bool(loss);
        }
        let turn = if self.losing { 1.0 / burst } else { loss / burst / (1.0 - loss) };
        self.losing ^= self.random.random_bool(turn);
        self.losing
    }

    fn arrival(&mut self, way: usize) -> u64 {
        let late = self.link.jitter * self.random.random_range(0.0..1.0);
        let at = (self.now + nanos(self.link.rtt / 2.0 + late)).max(self.latest[way]);
        self.latest[way] = at;
        at
    }
}

impl Flow {
    fn write(&mut self, chunk: &Bytes) {
        let Some((_, connection)) = &mut self.sender.connection else { return };
        if connection.is_handshaking() {
            return;
        }
        while self.unwritten > 0 || self.writing.is_some() {
            let (stream, left) = match self.writing {
                Some(writing) => writing,
                None => {
                    let Some(stream) = connection.streams().open(Dir::Uni) else { return };
                    let order = i32::try_from(stream.index()).unwrap();
                    connection.send_stream(stream).set_priority(-order).unwrap();
                    let size = self.unwritten.min(CHUNK);
                    self.unwritten -= size;
                    (stream, size)
                }
            };
            let mut part = [chunk.slice(..usize::try_from(left).unwrap())];
            let written = connection.send_stream(stream).write_chunks(&mut part).map_or(0, |written| written.bytes);
            let left = left - u64::try_from(written).unwrap();
            self.writing = (left > 0).then_some((stream, left));
            if left == 0 {
                connection.send_stream(stream).finish().unwrap();
            } else {
                return;
            }
        }
    }

    fn read(&mut self, seconds: f64) {
        let Some((_, connection)) = &mut self.receiver.connection else { return };
        while let Some(stream) = connection.streams().accept(Dir::Uni) {
            self.reading.push(stream);
        }
        let mut got = 0;
        self.reading.retain(|&stream| {
            let mut stream = connection.recv_stream(stream);
            let Ok(mut chunks) = stream.read(false) else { return false };
            let open = loop {
                match chunks.next(usize::MAX) {
                    Ok(Some(chunk)) => got += u64::try_from(chunk.bytes.len()).unwrap(),
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            let _ = chunks.finalize();
            open
        });
        self.read += got;
        let second = usize::try_from(whole(seconds)).unwrap();
        let seen = self.outcome.seconds.len().max(second + 1);
        self.outcome.seconds.resize(seen, 0);
        self.outcome.seconds[second] += got;
        if self.read >= self.size && self.outcome.took.is_none() {
            self.outcome.took = Some(seconds - self.started);
        }
    }
}
