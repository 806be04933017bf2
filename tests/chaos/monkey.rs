//! Who does the damage: kills and freezes daemons at random and starts them again, restarts and wipes the broker, and
//! puts hints into its queues that nobody meant.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use ccat_xfer::broker::{Hint, QueueName};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, options::BasicPublishOptions};
use rustix::process::Signal;
use uuid::Uuid;

use crate::{
    control::world::{Backend, HANG, World, worker_words},
    harness::{Rng, Running, say},
};

const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
const MANAGERS: [&str; 2] = ["m1", "m2"];

/// The damage that is still to be done, and what was done.
pub(crate) struct Monkey<'a> {
    world: &'a World,
    /// Where the hints go.
    queue: QueueName,
    planted: String,
    rng: Rng,
    crew: Vec<Daemon>,
    /// Blows that are left, and when the next one falls.
    left: u64,
    next: Instant,
    transfers: u64,
    /// Whether a worker was killed that had something.
    has_cut_in: bool,
    done: Done,
    channel: Option<Channel>,
    /// What killed daemons had said.
    said: Vec<String>,
}

#[derive(Debug, Default)]
struct Done {
    killed_workers: u64,
    killed_managers: u64,
    frozen: u64,
    aborted: u64,
    broker_restarts: u64,
    broker_wipes: u64,
    duplicates: u64,
    garbage: u64,
}

struct Daemon {
    name: &'static str,
    running: Option<Running>,
    /// When it is started again, or goes on.
    again: Instant,
    frozen: bool,
}

impl Daemon {
    fn is_manager(&self) -> bool {
        self.name.starts_with('m')
    }
}

impl<'a> Monkey<'a> {
    pub(crate) fn new(world: &'a World, queue: &str, planted: &str, transfers: u64, rng: Rng) -> Self {
        let now = Instant::now();
        let daemon = |name| Daemon { name, running: None, again: now, frozen: false };
        Self {
            world,
            queue: QueueName::new(queue).expect("a name"),
            planted: planted.to_owned(),
            rng,
            crew: WORKERS.into_iter().chain(MANAGERS).map(daemon).collect(),
            left: transfers / 2 + 2,
            next: now,
            transfers,
            has_cut_in: false,
            done: Done::default(),
            channel: None,
            said: Vec::new(),
        }
    }

    pub(crate) fn managers(&self) -> BTreeSet<String> {
        MANAGERS.into_iter().map(str::to_owned).collect()
    }

    /// One look at the crew, and at most one blow.
    pub(crate) fn play(&mut self) {
        self.revive();
        let now = Instant::now();
        let owners = self.world.rows(&["DISTINCT claimed_by"], "FROM data_transfer WHERE status = 'in_progress'");
        // Who hits nobody at work proves nothing.
        if self.left > 0 && now >= self.next && !owners.is_empty() {
            self.next = now + Duration::from_millis(100 + self.rng.below(700));
            self.strike(&owners);
            // Chance alone may strike only those that had just ended what they did.
            self.left -= u64::from(self.has_cut_in);
        }
        if self.world.backend == Backend::Servers {
            let over = "FROM data_transfer WHERE status = 'completed'";
            let completed = u64::try_from(self.world.number("count(*)", over)).expect("a count");
            if self.done.broker_restarts == 0 && completed * 5 >= self.transfers {
                self.break_broker(false);
            } else if self.done.broker_wipes == 0 && completed * 2 >= self.transfers {
                self.break_broker(true);
            }
            self.disturb();
        }
        std::thread::sleep(Duration::from_millis(30));
    }

    /// Starts what is down, lets go on what was frozen, and looks at what ended by itself.
    fn revive(&mut self) {
        let now = Instant::now();
        for daemon in &mut self.crew {
            if let Some(running) = &mut daemon.running {
                if daemon.frozen && now >= daemon.again {
                    running.signal(Signal::CONT);
                    daemon.frozen = false;
                }
                if !daemon.frozen && !running.is_running() {
                    let ended = daemon.running.take().expect("just seen").wait(HANG);
                    let aborted = ended.status.signal() == Some(Signal::ABORT.as_raw());
                    assert!(aborted, "{} ended: {:?}\n{}", daemon.name, ended.status, end_of(&ended.stderr));
                    self.done.aborted += 1;
                    self.said.push(ended.stderr);
                    daemon.again = now + Duration::from_millis(self.rng.below(500));
                }
            } else if now >= daemon.again {
                daemon.running = Some(if daemon.is_manager() {
                    self.world.launch(&["manager", "transfer"], &[("CCAT_XFER_MANAGER_NAME", daemon.name)])
                } else {
                    self.world.launch(&worker_words(daemon.name), &[("CCAT_XFER_FAULT_ATTEMPTS", &self.planted)])
                });
            }
        }
    }

    /// SIGKILL to one of them, or SIGSTOP for longer or shorter than a lease.
    fn strike(&mut self, owners: &[Vec<String>]) {
        // Workers are hit oftener, and most of all those that have something.
        let chosen = match self.rng.below(6) {
            _ if !self.has_cut_in => self.rng.pick(owners)[0].as_str(),
            0 => MANAGERS[self.rng.index(MANAGERS.len())],
            1 => WORKERS[self.rng.index(WORKERS.len())],
            _ => self.rng.pick(owners)[0].as_str(),
        };
        let Some(daemon) = self.crew.iter_mut().find(|d| d.name == chosen) else { return };
        if daemon.frozen || daemon.running.is_none() {
            return;
        }
        if self.has_cut_in && self.rng.below(3) == 0 {
            daemon.running.as_ref().expect("just seen").signal(Signal::STOP);
            daemon.again = Instant::now() + Duration::from_millis(500 + self.rng.below(6_000));
            daemon.frozen = true;
            self.done.frozen += 1;
        } else {
            let ended = daemon.running.take().expect("just seen").kill_now();
            self.said.push(ended.stderr);
            daemon.again = Instant::now() + Duration::from_millis(self.rng.below(1_000));
            if daemon.is_manager() {
                self.done.killed_managers += 1;
            } else {
                self.done.killed_workers += 1;
                let held =
                    format!("FROM data_transfer WHERE status = 'in_progress' AND claimed_by = '{}'", daemon.name);
                self.has_cut_in |= self.world.number("count(*)", &held) > 0;
            }
        }
    }

    /// A power cut, and perhaps a disk that is lost with it: queues, messages, all.
    fn break_broker(&mut self, wiped: bool) {
        let mut broker = self.world.rabbit.borrow_mut();
        let broker = broker.as_mut().expect("it was started");
        self.channel = None;
        if wiped {
            broker.wipe();
            self.done.broker_wipes += 1;
        } else {
            broker.kill();
            self.done.broker_restarts += 1;
        }
        broker.up();
    }

    /// Hints that were published already, in any order and more than once, and bodies that are none.
    fn disturb(&mut self) {
        let known = self.world.rows(&["id"], "FROM outbox WHERE sent_at IS NOT NULL ORDER BY id DESC LIMIT 50");
        let mut bodies = Vec::new();
        for _ in 0..self.rng.below(3) {
            if known.is_empty() {
                break;
            }
            let id: u128 = self.rng.pick(&known)[0].parse().expect("a number");
            let hint = Hint { id: Uuid::from_u128(id), queue: self.queue.clone() }.to_bytes();
            bodies.extend(std::iter::repeat_n(hint, 1 + self.rng.index(3)));
            self.done.duplicates += 1;
        }
        if self.rng.below(4) == 0 {
            let mut noise = vec![0; self.rng.index(200)];
            self.rng.bytes(&mut noise);
            let others: [&[u8]; 4] = [
                &noise,
                br#"{"version":9,"kind":"hint"}"#,
                br#"{"version":1,"kind":"hint","id":"00000000-0000-0000-0000-000000000001","queue":"nobody"}"#,
                b"{\"version\":1,\"kind\":\"hint\",\"id\":\"\0\"}",
            ];
            bodies.push(self.rng.pick(&others).to_vec());
            self.done.garbage += 1;
        }
        let port = self.world.rabbit.borrow().as_ref().expect("it was started").port();
        let channel = self.channel.take();
        self.channel = self.world.runtime.block_on(async {
            let publish = async {
                let channel = match channel {
                    Some(channel) => channel,
                    None => {
                        let address = format!("amqp://guest:guest@127.0.0.1:{port}");
                        Connection::connect(&address, ConnectionProperties::default()).await?.create_channel().await?
                    }
                };
                for body in &bodies {
                    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                    channel.basic_publish("".into(), self.queue.as_str().into(), options, body, properties).await?;
                }
                Ok::<_, lapin::Error>(channel)
            };
            // A broker that is down takes nothing; the next look tries again.
            tokio::time::timeout(Duration::from_secs(5), publish).await.ok()?.ok()
        });
    }

    /// Whether the broker was restarted, and lost all it had.
    pub(crate) fn has_broken_the_broker(&self) -> bool {
        self.done.broker_restarts > 0 && self.done.broker_wipes > 0
    }

    /// Has everybody leave in order.
    pub(crate) fn end(&mut self) {
        for daemon in &mut self.crew {
            if let Some(running) = daemon.running.take() {
                running.signal(Signal::CONT);
                running.signal(Signal::TERM);
                let ended = running.wait(HANG);
                // Its last attempt may have been one that ends the process.
                let aborted = ended.status.signal() == Some(Signal::ABORT.as_raw());
                // Or it had only just been started, and did not listen to signals yet.
                let young = ended.status.signal() == Some(Signal::TERM.as_raw()) && !ended.stderr.contains(" INFO ");
                let right = ended.code() == Some(0) || aborted || young;
                assert!(right, "{} ended: {:?}\n{}", daemon.name, ended.status, end_of(&ended.stderr));
                self.said.push(ended.stderr);
            }
        }
    }

    /// What the daemons say, for a test that fails.
    pub(crate) fn said(&self) -> String {
        let living = self.crew.iter().filter_map(|d| Some((d.name, d.running.as_ref()?.stderr_so_far())));
        let mut text = format!("{}\n", self.sums());
        for (name, said) in living {
            text.push_str(&format!("--- {name} (end)\n{}\n", end_of(&said)));
        }
        if std::env::var_os("CCAT_XFER_KEEP").is_some() {
            say(&self.said.join("\n--- another one\n"));
        }
        text
    }

    /// What was done, and how many writes of stale owners were refused or left undone.
    pub(crate) fn sums(&self) -> String {
        let stale = |words: &str| self.said.iter().map(|said| said.matches(words).count()).sum::<usize>();
        format!(
            "{:?}, {} dead letters kept, stale: {} outcomes refused, {} attempts given up as overtaken",
            self.done,
            self.world.number("count(*)", "FROM dead_letter"),
            stale("counts for nothing"),
            stale("overtaken: somebody else")
        )
    }
}

fn end_of(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
