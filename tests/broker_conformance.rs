//! What every broker promises, checked on each of them, and what RabbitMQ must survive besides.

mod harness;

use std::{
    collections::BTreeSet,
    num::NonZeroU16,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use ccat_xfer::{
    broker::{
        Address, Broker, BrokerError, Credentials, DeadLetter, DeadLetterSink, DeadReason, EnvelopeError, Hint,
        MemoryBroker, PublishError, QueueName, RabbitBroker, RabbitConfig, SinkError, Subscription, Times,
    },
    secret::Secret,
    task::Backoff,
    telemetry::metrics::Metrics,
};
use futures_util::{StreamExt as _, stream};
use harness::{Rabbitmq, count, say, seed, skip};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Nothing here may take this long, however busy the machine is.
const HANG: Duration = Duration::from_secs(300);
/// Nor this: a node is started meanwhile, and perhaps a queue is found to be stuck.
const OUTAGE: Duration = Duration::from_secs(400);

fn queue(name: &str) -> QueueName {
    QueueName::new(name).expect("a name")
}

fn queues(names: &[&str]) -> BTreeSet<QueueName> {
    names.iter().map(|name| queue(name)).collect()
}

fn hint(name: &str) -> Hint {
    Hint { id: Uuid::now_v7(), queue: queue(name) }
}

fn slots(n: u16) -> NonZeroU16 {
    NonZeroU16::new(n).expect("more than none")
}

/// A broker, and a way to put foreign bytes into its queues.
#[async_trait]
trait Stage: Sync {
    fn broker(&self) -> &dyn Broker;
    async fn inject(&self, queue: &QueueName, body: &[u8]);
}

struct Memory(MemoryBroker);

#[async_trait]
impl Stage for Memory {
    fn broker(&self) -> &dyn Broker {
        &self.0
    }

    async fn inject(&self, queue: &QueueName, body: &[u8]) {
        self.0.inject(queue, body).expect("the queue is there");
    }
}

struct Rabbit {
    broker: RabbitBroker,
    port: u16,
}

#[async_trait]
impl Stage for Rabbit {
    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    async fn inject(&self, queue: &QueueName, body: &[u8]) {
        let raw = raw(self.port).await;
        let channel = raw.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let sent = channel.basic_publish("".into(), queue.as_str().into(), options, body, properties).await;
        assert!(sent.expect("sent").await.expect("confirmed").is_ack());
        raw.close(200, "done".into()).await.expect("closed");
    }
}

/// The server without our code.
async fn raw(port: u16) -> Connection {
    let address = format!("amqp://guest:guest@127.0.0.1:{port}");
    Connection::connect(&address, ConnectionProperties::default()).await.expect("RabbitMQ answers")
}

/// Looks often and waits long: on a busy machine an answer takes as long as it takes.
fn quick() -> Times {
    Times {
        connect: Duration::from_secs(60),
        answer: Duration::from_secs(60),
        heartbeat_s: 60,
        probe: Duration::from_millis(300),
        backoff: Backoff { first: Duration::from_millis(50), limit: Duration::from_millis(500) },
        ..Times::default()
    }
}

fn rabbit(port: u16, times: Times) -> RabbitBroker {
    RabbitBroker::new(RabbitConfig {
        address: format!("amqp://127.0.0.1:{port}").parse().expect("an address"),
        credentials: Credentials::new("guest", Secret::new("guest")),
        ca_file: None,
        times,
    })
}

/// As a relay does it: a broker under load, or one that has just made the queue, may refuse for a moment.
async fn publish(broker: &dyn Broker, hint: &Hint) {
    let published = async {
        while let Err(error) = broker.publish(hint).await {
            assert!(!matches!(error, PublishError::Unroutable { .. } | PublishError::Full { .. }), "{error}");
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANG, published).await.expect("published in the end");
}

async fn next(subscription: &mut Box<dyn Subscription>) -> ccat_xfer::broker::Delivery {
    timeout(HANG, subscription.next()).await.expect("a hint arrives").expect("the broker is open")
}

// ---- the suite

async fn conforms(stage: &dyn Stage) {
    thousands_arrive(stage).await;
    nobody_reads_an_undeclared_queue(stage).await;
    what_is_not_acknowledged_comes_again(stage).await;
    slots_bound_what_is_with_a_subscriber(stage).await;
    what_is_no_hint_is_buried(stage).await;
    queues_change(stage).await;
    a_full_queue_refuses(stage).await;
    figures_count(stage);
    closing_ends_everything(stage).await;
}

async fn thousands_arrive(stage: &dyn Stage) {
    let (broker, names) = (stage.broker(), ["many_a", "many_b", "many_c"]);
    broker.declare(&queues(&names)).await.expect("declared");
    broker.declare(&queues(&names)).await.expect("declaring twice changes nothing");
    let mut rng = seed("thousands_arrive");
    let hints: Vec<Hint> = (0..count("hints", 20_000)).map(|_| hint(names[rng.index(names.len())])).collect();
    let mut one = broker.subscribe(queues(&names), slots(20)).await.expect("subscribed");
    let mut two = broker.subscribe(queues(&names), slots(1)).await.expect("subscribed");
    let all: BTreeSet<Uuid> = hints.iter().map(|hint| hint.id).collect();
    let publishing = async {
        stream::iter(&hints).for_each_concurrent(64, |hint| publish(broker, hint)).await;
    };
    let receiving = async {
        let mut left = all.clone();
        while !left.is_empty() {
            let delivery = tokio::select! {
                delivery = one.next() => delivery,
                delivery = two.next() => delivery,
            };
            let delivery = delivery.expect("the broker is open");
            let id = delivery.hint().id;
            assert!(all.contains(&id), "a hint that nobody sent");
            assert!(hints.iter().any(|h| h == delivery.hint()), "a hint changed on its way");
            if rng.below(10) == 0 {
                drop(delivery);
            } else if delivery.ack().await {
                left.remove(&id);
            }
        }
    };
    timeout(HANG, async { tokio::join!(publishing, receiving) }).await.expect("all arrive");
    assert!(one.pulse().is_fresh(HANG) && one.pulse().trouble.is_none());
    broker.prove().await.expect("it answers");
}

async fn nobody_reads_an_undeclared_queue(stage: &dyn Stage) {
    let result = stage.broker().publish(&hint("nobody_declared_this")).await;
    assert_eq!(result, Err(PublishError::Unroutable { queue: queue("nobody_declared_this") }));
}

async fn what_is_not_acknowledged_comes_again(stage: &dyn Stage) {
    let broker = stage.broker();
    let mut first = broker.subscribe(queues(&["again"]), slots(1)).await.expect("subscribed");
    broker.declare(&queues(&["again"])).await.expect("declared");
    let sent = hint("again");
    publish(broker, &sent).await;
    for _ in 0..3 {
        let delivery = next(&mut first).await;
        assert_eq!(delivery.hint(), &sent);
        drop(delivery);
    }
    // The consumer goes away with the hint in its hands.
    let held = next(&mut first).await;
    drop(first);
    drop(held);
    let mut second = broker.subscribe(queues(&["again"]), slots(1)).await.expect("subscribed");
    let delivery = next(&mut second).await;
    assert_eq!(delivery.hint(), &sent);
    assert!(delivery.ack().await);
    // And now it is gone.
    let after = hint("again");
    publish(broker, &after).await;
    let delivery = next(&mut second).await;
    assert_eq!(delivery.hint(), &after);
    assert!(delivery.ack().await);
}

async fn slots_bound_what_is_with_a_subscriber(stage: &dyn Stage) {
    let broker = stage.broker();
    broker.declare(&queues(&["slots"])).await.expect("declared");
    for _ in 0..3 {
        publish(broker, &hint("slots")).await;
    }
    let mut subscription = broker.subscribe(queues(&["slots"]), slots(2)).await.expect("subscribed");
    let (one, two) = (next(&mut subscription).await, next(&mut subscription).await);
    // The third goes to whoever has a slot, and not to one who already asks for it.
    let mut other = broker.subscribe(queues(&["slots"]), slots(1)).await.expect("subscribed");
    let three = tokio::select! {
        biased;
        _ = subscription.next() => panic!("a third hint came although two are not acknowledged"),
        three = next(&mut other) => three,
    };
    // And a free slot is used again.
    assert!(one.ack().await);
    publish(broker, &hint("slots")).await;
    let four = next(&mut subscription).await;
    assert!(two.ack().await && three.ack().await && four.ack().await);
}

#[derive(Debug, Default)]
struct Grave {
    letters: Mutex<Vec<DeadLetter>>,
    refusals: AtomicU32,
}

#[async_trait]
impl DeadLetterSink for Grave {
    async fn bury(&self, letter: &DeadLetter) -> Result<(), SinkError> {
        if self.refusals.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(SinkError("the database is away".into()));
        }
        self.letters.lock().expect("no panic").push(letter.clone());
        Ok(())
    }
}

async fn what_is_no_hint_is_buried(stage: &dyn Stage) {
    let broker = stage.broker();
    broker.declare(&queues(&["dead"])).await.expect("declared");
    let (grave, stop) = (Arc::new(Grave::default()), CancellationToken::new());
    let huge = vec![b'x'; 100 << 10];
    let other = String::from_utf8(hint("elsewhere").to_bytes()).expect("JSON");
    let bodies: [&[u8]; 5] = [b"\x80\x04pickled", br#"{"version":7,"new":true}"#, &huge, other.as_bytes(), b"the last"];
    let mut subscription = broker.subscribe(queues(&["dead"]), slots(1)).await.expect("subscribed");
    let mut good = Vec::new();
    for body in bodies {
        stage.inject(&queue("dead"), body).await;
        good.push(hint("dead"));
        publish(broker, good.last().expect("just pushed")).await;
    }
    let burying = broker.bury(Arc::clone(&grave) as Arc<dyn DeadLetterSink>, stop.clone());
    let reading = async {
        for sent in &good {
            let delivery = next(&mut subscription).await;
            assert_eq!(delivery.hint(), sent, "a dead body was delivered, or stood in the way");
            assert!(delivery.ack().await);
        }
        // Those before the last had their chance to come again.
        let is_last = |letter: &DeadLetter| letter.body == b"the last";
        while !grave.letters.lock().expect("no panic").iter().any(is_last) {
            sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    timeout(HANG, async { tokio::join!(burying, reading) }).await.expect("all are buried");
    let mut letters = grave.letters.lock().expect("no panic").clone();
    // A second copy is allowed after a lost acknowledgement, a loop is not.
    assert!(letters.len() <= 2 * bodies.len(), "{letters:?}");
    let mut seen = BTreeSet::new();
    letters.retain(|letter| seen.insert(letter.body.clone()));
    assert_eq!(letters.len(), bodies.len(), "{letters:?}");
    for (letter, body) in letters.iter().zip(bodies) {
        assert_eq!(letter.queue.as_deref(), Some("dead"));
        assert_eq!((letter.body_bytes, letter.body.as_slice()), (body.len(), &body[..body.len().min(64 << 10)]));
        assert!(letter.died.is_some(), "{letter:?}");
    }
    let reasons: Vec<_> = letters.iter().map(|letter| &letter.reason).collect();
    assert!(
        matches!(
            reasons.as_slice(),
            [
                DeadReason::Undecodable(EnvelopeError::Malformed { .. }),
                DeadReason::Undecodable(EnvelopeError::UnknownVersion { version: 7 }),
                DeadReason::Undecodable(EnvelopeError::TooLong { .. }),
                DeadReason::Undecodable(EnvelopeError::WrongQueue { .. }),
                DeadReason::Undecodable(EnvelopeError::Malformed { .. }),
            ]
        ),
        "{reasons:?}"
    );
}

async fn queues_change(stage: &dyn Stage) {
    let broker = stage.broker();
    let mut subscription = broker.subscribe(BTreeSet::new(), slots(1)).await.expect("subscribed");
    broker.declare(&queues(&["change_a", "change_b"])).await.expect("declared");
    for name in ["change_a", "change_b", "change_a"] {
        subscription.set_queues(queues(&[name]));
        let sent = hint(name);
        publish(broker, &sent).await;
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.hint(), &sent);
        assert!(delivery.ack().await);
    }
    // What is left is not read any more.
    let (left, after) = (hint("change_b"), hint("change_a"));
    publish(broker, &left).await;
    publish(broker, &after).await;
    let delivery = next(&mut subscription).await;
    assert_eq!(delivery.hint(), &after, "a queue that was left is still read");
    assert!(delivery.ack().await);
    subscription.set_queues(queues(&["change_a", "change_b"]));
    assert_eq!(next(&mut subscription).await.hint(), &left);
}

async fn a_full_queue_refuses(stage: &dyn Stage) {
    let broker = stage.broker();
    broker.declare(&queues(&["full"])).await.expect("declared");
    let results: Vec<_> =
        stream::iter(0..12_000).map(async |_| broker.publish(&hint("full")).await).buffer_unordered(32).collect().await;
    let taken = results.iter().filter(|result| result.is_ok()).count();
    // RabbitMQ counts a little late.
    assert!((10_000..12_000).contains(&taken), "{taken}");
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(PublishError::Full { .. }))), "another error");
    // Room is made by reading; RabbitMQ takes more when four fifths are left.
    let mut subscription = broker.subscribe(queues(&["full"]), slots(500)).await.expect("subscribed");
    for _ in 0..taken - 7_000 {
        assert!(next(&mut subscription).await.ack().await);
    }
    let room = async {
        while broker.publish(&hint("full")).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(HANG, room).await.expect("there is room again");
}

/// Nothing that is counted may stay at zero after all of the above.
fn figures_count(stage: &dyn Stage) {
    let metrics = Metrics::new();
    stage.broker().figures().register(&metrics);
    let text = metrics.render().expect("figures");
    for name in [
        "hints_published_total{result=\"Confirmed\"}",
        "hints_published_total{result=\"Unroutable\"}",
        "hints_published_total{result=\"Full\"}",
        "hints_delivered_total",
        "hints_acknowledged_total",
        "hints_given_back_total",
        "dead_letters_total{reason=\"Undecodable\"}",
    ] {
        let name = format!("ccat_xfer_broker_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("absent");
        assert!(value.parse::<u64>().is_ok_and(|n| n > 0), "{name}: {value}\n{text}");
    }
}

async fn closing_ends_everything(stage: &dyn Stage) {
    let broker = stage.broker();
    let mut subscription = broker.subscribe(queues(&["again"]), slots(1)).await.expect("subscribed");
    let (end, ()) = tokio::join!(timeout(HANG, subscription.next()), broker.close());
    assert!(end.expect("the wait ends").is_none());
    assert!(matches!(
        broker.publish(&hint("again")).await,
        Err(PublishError::Unavailable { cause: BrokerError::Closed, .. })
    ));
    assert_eq!(broker.prove().await, Err(BrokerError::Closed));
    assert!(matches!(broker.subscribe(BTreeSet::new(), slots(1)).await, Err(BrokerError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conforms(&Memory(MemoryBroker::new())).await;
}

// ---- RabbitMQ alone

/// One node for all cases, one after the other: starting a node is the most work of all. Each case has queues of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_conforms_and_survives() {
    if let Some(why) = Rabbitmq::missing() {
        return skip("rabbitmq_conforms_and_survives", why);
    }
    let node = Rabbitmq::start("rabbit");
    let port = node.port();
    conforms(&Rabbit { broker: rabbit(port, quick()), port }).await;
    say("RabbitMQ conforms");
    hints_do_not_lie_with_a_busy_subscriber(port).await;
    a_foreign_queue_is_told_and_does_not_disturb(port).await;
    strangers_are_refused(&node).await;
    say("RabbitMQ refuses strangers");
    it_may_be_killed_wiped_frozen_and_away(node).await;
}

/// What a relay does: it publishes what nobody claimed yet, again and again, until everything is claimed.
async fn everything_is_claimed(
    broker: &dyn Broker,
    subscription: &mut Box<dyn Subscription>,
    hints: &[Hint],
    mut disturb: impl FnMut(usize),
) {
    let claimed = Mutex::new(BTreeSet::new());
    let relay = async {
        loop {
            let open: Vec<&Hint> =
                hints.iter().filter(|hint| !claimed.lock().expect("no panic").contains(&hint.id)).collect();
            if open.is_empty() {
                return;
            }
            let results = stream::iter(open).map(|hint| broker.publish(hint)).buffer_unordered(16).collect::<Vec<_>>();
            let failed = results.await.into_iter().filter(Result::is_err).count();
            sleep(Duration::from_millis(if failed > 0 { 100 } else { 2000 })).await;
        }
    };
    let worker = async {
        loop {
            let delivery = subscription.next().await.expect("the broker is open");
            let done = {
                let mut claimed = claimed.lock().expect("no panic");
                // Copies from an earlier round may still come.
                if hints.contains(delivery.hint()) {
                    claimed.insert(delivery.hint().id);
                }
                claimed.len()
            };
            delivery.ack().await;
            disturb(done);
            if done == hints.len() {
                return;
            }
        }
    };
    let ended = timeout(OUTAGE, async { tokio::join!(relay, worker) }).await;
    let done = claimed.into_inner().expect("no panic").len();
    assert!(ended.is_ok(), "only {done} of {} are claimed; {:?}", hints.len(), subscription.pulse());
}

#[derive(Clone, Copy, Debug)]
enum Outage {
    Killed,
    Stopped,
    Wiped,
}

async fn it_may_be_killed_wiped_frozen_and_away(mut node: Rabbitmq) {
    let port = node.port();
    let broker = rabbit(port, Times { stuck: Duration::from_secs(20), answer: Duration::from_secs(15), ..quick() });
    let names = ["outage_a", "outage_b"];

    // Away at the start: subscribing is no error, publishing and declaring are typed ones, and all works when it comes.
    node.kill();
    let mut subscription = broker.subscribe(queues(&names), slots(4)).await.expect("subscribed");
    assert!(matches!(broker.declare(&queues(&names)).await, Err(BrokerError::Unreachable { .. })));
    let result = broker.publish(&hint(names[0])).await;
    assert!(
        matches!(result, Err(PublishError::Unavailable { cause: BrokerError::Unreachable { .. }, .. })),
        "{result:?}"
    );
    let told = async {
        while subscription.pulse().trouble.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(HANG, told).await.expect("the pulse tells");
    assert_eq!(subscription.pulse().proven, None);
    node.up();

    // Each in mid-stream. The one subscription lives through all of it.
    let some = |n: u64| -> Vec<Hint> { (0..n).map(|n| hint(names[usize::from(n % 2 == 0)])).collect() };
    let node = Arc::new(Mutex::new(node));
    for outage in [Outage::Killed, Outage::Stopped, Outage::Wiped] {
        let mut happening = None;
        everything_is_claimed(&broker, &mut subscription, &some(400), |done| {
            if done >= 100 && happening.is_none() {
                let node = Arc::clone(&node);
                // Beside relay and worker, which go on meanwhile.
                happening = Some(std::thread::spawn(move || {
                    let mut node = node.lock().expect("no panic");
                    match outage {
                        Outage::Killed => node.kill(),
                        Outage::Stopped => node.stop(),
                        Outage::Wiped => node.wipe(),
                    }
                    node.up();
                }));
            }
        })
        .await;
        let replaced = broker.figures().replaced();
        say(&format!("all claimed in spite of an outage: {outage:?}; stuck queues made anew so far: {replaced}"));
        happening.expect("there was an outage").join().expect("and it ended");
    }
    // Queues deleted under a connection that stays.
    let server = raw(port).await;
    let channel = server.create_channel().await.expect("a channel");
    for name in names {
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("deleted");
    }
    everything_is_claimed(&broker, &mut subscription, &some(50), |_| {}).await;

    // Frozen: everything is connected and nothing answers. Known within the limit, and over when it is over.
    node.lock().expect("no panic").freeze(true);
    let impatient = Times { answer: Duration::from_millis(500), connect: Duration::from_millis(500), ..quick() };
    let other = rabbit(port, impatient);
    let result = timeout(HANG, other.publish(&hint(names[0]))).await.expect("an answer in time");
    assert!(matches!(result, Err(PublishError::Unavailable { .. })), "{result:?}");
    node.lock().expect("no panic").freeze(false);
    everything_is_claimed(&broker, &mut subscription, &some(20), |_| {}).await;
    other.close().await;
    server.close(200, "done".into()).await.expect("closed");
    broker.close().await;
}

/// Seen to fail without the rest of a subscription that nobody asks.
async fn hints_do_not_lie_with_a_busy_subscriber(port: u16) {
    let broker = rabbit(port, Times { hold: Duration::from_millis(400), ..quick() });
    broker.declare(&queues(&["busy"])).await.expect("declared");
    let mut busy = broker.subscribe(queues(&["busy"]), slots(1)).await.expect("subscribed");
    // It works: takes one, and then is busy, with the second already on its way to it.
    publish(&broker, &hint("busy")).await;
    assert!(next(&mut busy).await.ack().await);
    let lying = hint("busy");
    publish(&broker, &lying).await;
    let mut idle = broker.subscribe(queues(&["busy"]), slots(1)).await.expect("subscribed");
    let delivery = next(&mut idle).await;
    assert_eq!(delivery.hint(), &lying);
    assert!(delivery.ack().await);
    drop(idle);
    // Resting is no illness, and the next question wakes it.
    assert_eq!(busy.pulse().trouble, None);
    let late = hint("busy");
    publish(&broker, &late).await;
    assert_eq!(next(&mut busy).await.hint(), &late);
    broker.close().await;
}

async fn a_foreign_queue_is_told_and_does_not_disturb(port: u16) {
    let server = raw(port).await;
    let channel = server.create_channel().await.expect("a channel");
    let classic = channel.queue_declare("foreign".into(), QueueDeclareOptions::durable(), FieldTable::default());
    classic.await.expect("declared");
    let broker = rabbit(port, quick());
    let result = broker.declare(&queues(&["foreign", "ours"])).await;
    assert!(matches!(&result, Err(BrokerError::Mismatch { name, .. }) if name == "foreign"), "{result:?}");
    let mut subscription = broker.subscribe(queues(&["foreign", "ours"]), slots(1)).await.expect("subscribed");
    let sent = hint("ours");
    publish(&broker, &sent).await;
    let delivery = next(&mut subscription).await;
    assert_eq!(delivery.hint(), &sent);
    assert!(delivery.ack().await);
    broker.close().await;
    server.close(200, "done".into()).await.expect("closed");
}

async fn strangers_are_refused(node: &Rabbitmq) {
    let with = |address: String, password: &str, ca_file| {
        RabbitBroker::new(RabbitConfig {
            address: address.parse::<Address>().expect("an address"),
            credentials: Credentials::new("guest", Secret::new(password)),
            ca_file,
            times: quick(),
        })
    };
    let plain = format!("amqp://127.0.0.1:{}", node.port());
    let wrong = with(plain.clone(), "wrong", None);
    let error = wrong.prove().await.expect_err("a wrong password");
    assert!(matches!(error, BrokerError::Denied { .. }), "{error}");
    let nowhere = with(format!("{plain}/nowhere"), "guest", None);
    let error = nowhere.prove().await.expect_err("no such virtual host");
    assert!(matches!(error, BrokerError::Denied { .. }), "{error}");

    let tls = format!("amqps://localhost:{}", node.tls_port());
    let trusting = with(tls.clone(), "guest", Some(node.authority()));
    trusting.prove().await.expect("the authority is ours");
    let strict = with(tls, "guest", None);
    let error = strict.prove().await.expect_err("nobody vouches for it");
    assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
    for broker in [wrong, nowhere, trusting, strict] {
        broker.close().await;
    }
}
