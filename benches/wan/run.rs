//! `wan run`: two commands at the ends of a link.

use std::{
    cell::RefCell,
    error::Error,
    ffi::OsString,
    fs, io,
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    rc::Rc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    control::{Control, Request},
    report::{Ended, Report, Sample, cpu, direction},
    wan::{Change, Direction, Profile, RMEM_MAX, Setup, WMEM_MAX, Wan, time},
};

/// How long a command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(2);

/// The hosts are 10.77.0.1 (A) and 10.77.0.2 (B), also fd77::1 and fd77::2; the commands find the addresses in WAN_A and
/// WAN_B. B starts first. The run is over when A ends; B is then ended too. The exit code is A's; 124 after --limit, 125
/// if there is no link.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) link: LinkArgs,
    /// Changes the link at a time after the start: `--at 5s rate=200mbit --at 10s ab.down --at 11s up`. Can be given
    /// more than once.
    #[arg(long, num_args = 2, value_names = ["TIME", "CHANGE"])]
    at: Vec<String>,
    /// Starts A only once something at B listens on this port (TCP or UDP).
    #[arg(long, value_name = "PORT")]
    ready: Option<u16>,
    /// Writes what went over the link to this file, or to stdout for `-`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Samples in the JSON.
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    every: String,
    /// Makes a socket at this path through which `wan set` changes the link.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The longest time that A may take.
    #[arg(long, value_name = "TIME", default_value = "60min")]
    limit: String,
    /// How long B may go on by itself after A has ended, before it is ended.
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    linger: String,
    /// Command at A, and after a second `--` that at B.
    #[arg(last = true, required = true, value_name = "A... -- B")]
    commands: Vec<OsString>,
}

/// The link and its hosts.
#[derive(Args, Clone, Debug)]
pub(crate) struct LinkArgs {
    /// Of IP packets with their headers, each way: `1gbit`, `100mbit`. Without it as fast as the machine goes.
    #[arg(long)]
    pub(crate) rate: Option<String>,
    /// Round trip, half of it each way: `200ms`.
    #[arg(long, default_value = "0")]
    pub(crate) rtt: String,
    /// Wandering extra delay, each way, from 0 to this; nothing is reordered.
    #[arg(long)]
    jitter: Option<String>,
    /// Bytes that wait before the link: `25MB`, or `1bdp`, `0.1bdp` of rate x round trip; `1bdp` if not said, 1 MB at least.
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// Share of the wire packets that is lost, each way: `1%`, `0.01%`.
    #[arg(long)]
    pub(crate) loss: Option<String>,
    /// Mean number of packets lost in a row (Gilbert model); without it each is lost by itself.
    #[arg(long)]
    pub(crate) burst: Option<String>,
    /// More of the link, as in --at: `ba.loss=0`, `ab.rate=100mbit`.
    #[arg(long, value_name = "CHANGE")]
    pub(crate) link: Vec<String>,
    /// Largest packet.
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// The same seed loses the same packets of the same sequence.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Kernel settings of both hosts.
    #[arg(long, value_enum, default_value = "debian")]
    pub(crate) profile: Host,
    /// TCP's congestion control at both hosts: cubic, bbr, reno. Without it the machine's.
    #[arg(long, value_name = "NAME")]
    pub(crate) tcp_cc: Option<String>,
    /// Sets net.core.rmem_max and wmem_max to the profile's while the run lasts. They are the whole machine's: others
    /// on it see them too, and SIGKILL leaves them so. Without this a difference is only said.
    #[arg(long)]
    pub(crate) host_sysctls: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// As Debian installs: rmem_max 212992, TCP up to 6 MB (receive) and 4 MB (send).
    Debian,
    /// 64 MB for all of them.
    Tuned,
}

impl Host {
    fn profile(self) -> Profile {
        match self {
            Self::Debian => Profile::Debian,
            Self::Tuned => Profile::Tuned,
        }
    }
}

impl LinkArgs {
    /// From a link in one word, which may say all but the hosts.
    pub(crate) fn of(link: &str, seed: u64, profile: Host, tcp_cc: Option<String>) -> Self {
        let word = |key: &str| {
            let value = link.split(',').filter_map(|w| w.trim().strip_prefix(key)?.strip_prefix('=')).next_back();
            value.map(str::to_owned)
        };
        Self {
            rate: word("rate"),
            rtt: word("rtt").unwrap_or_else(|| "0".to_owned()),
            jitter: None,
            queue: word("queue"),
            loss: None,
            burst: None,
            link: vec![link.to_owned()],
            mtu: 1500,
            seed,
            profile,
            tcp_cc,
            host_sysctls: false,
        }
    }

    /// In the words of a change.
    pub(crate) fn words(&self) -> String {
        let mut words = vec![format!("rtt={}", self.rtt)];
        let mut word = |key: &str, value: &Option<String>| {
            if let Some(value) = value {
                words.push(format!("{key}={value}"));
            }
        };
        word("rate", &self.rate);
        word("jitter", &self.jitter);
        word("loss", &self.loss);
        word("burst", &self.burst);
        let queue = match (&self.queue, &self.rate) {
            (Some(queue), _) => Some(queue.clone()),
            (None, Some(_)) => Some(self.default_queue()),
            (None, None) => None,
        };
        word("queue", &queue);
        words.extend(self.link.iter().cloned());
        words.join(",")
    }

    fn default_queue(&self) -> String {
        let mut shape = crate::wan::Shape::default();
        let rate = self.rate.as_deref().unwrap_or("off");
        if let Ok(change) = format!("rate={rate},rtt={}", self.rtt).parse::<Change>() {
            change.apply(Direction::AToB, &mut shape);
        }
        format!("{}", shape.round_trip_bytes().max(1_000_000))
    }

    pub(crate) fn setup(&self) -> Result<Setup, Box<dyn Error>> {
        Ok(Setup {
            link: self.words().parse()?,
            mtu: self.mtu,
            seed: self.seed,
            profile: self.profile.profile(),
            congestion: self.tcp_cc.clone(),
        })
    }
}

/// What is to be run on a link that is there.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) a: Command,
    pub(crate) b: Option<Command>,
    pub(crate) ready: Option<u16>,
    pub(crate) changes: Vec<(Duration, Change)>,
    pub(crate) every: Duration,
    pub(crate) limit: Duration,
    /// How long B may go on by itself after A.
    pub(crate) linger: Duration,
}

pub(crate) fn main(args: &RunArgs) -> Result<u8, Box<dyn Error>> {
    let setup = args.link.setup()?;
    let plan = plan(args)?;
    let _limits = Limits::of_the_machine(setup.profile, args.link.host_sysctls, true)?;
    let control = args.control.as_deref().map(Control::listen).transpose()?;
    let wan = Wan::start(&setup)?;
    eprintln!("wan: A {} and B {}: {}", Wan::A[0], Wan::B[0], args.link.words());
    eprintln!("wan: enter with nsenter --net={} (A), --net={} (B)", wan.a().namespace(), wan.b().namespace());
    let report = run(&wan, plan, |wan| {
        for request in control.iter().flat_map(|c| c.requests.try_iter()) {
            answer(wan, &request);
        }
    })?;
    report.print();
    if let Some(path) = &args.json {
        let text = format!("{}\n", report.json(&args.link.words()));
        if path.as_os_str() == "-" {
            print!("{text}");
        } else {
            fs::write(path, text)?;
        }
    }
    if report.limit_reached {
        return Ok(124);
    }
    Ok(report.ended[0].code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

fn answer(wan: &Wan, (words, reply): &Request) {
    let said = match words.parse::<Change>() {
        Ok(change) => {
            wan.change(&change);
            let of = |d: Direction| direction(&wan.state(d), wan.unseen(d));
            serde_json::json!({"a_to_b": of(Direction::AToB), "b_to_a": of(Direction::BToA)})
        }
        Err(error) => serde_json::json!({"error": error.to_string()}),
    };
    // Who asked may have left.
    let _ = reply.send(said.to_string());
}

fn plan(args: &RunArgs) -> Result<Plan, Box<dyn Error>> {
    let span = |text: &str| time(text).ok_or_else(|| format!("'{text}' is no time: write 5s, 200ms, 2min"));
    let mut changes = Vec::new();
    for pair in args.at.chunks(2) {
        let [at, change] = pair else { continue };
        changes.push((span(at)?, change.parse::<Change>()?));
    }
    changes.sort_by_key(|(at, _)| *at);
    let mut ends = args.commands.splitn(2, |word| word == "--");
    let mut command = || {
        let words = ends.next()?;
        let (program, rest) = words.split_first()?;
        let mut command = Command::new(program);
        command.args(rest).env("WAN_A", Wan::A[0]).env("WAN_B", Wan::B[0]);
        Some(command)
    };
    let a = command().ok_or("no command for A")?;
    let mut b = command();
    if let Some(b) = &mut b {
        // Stdout is A's alone, for who reads it.
        b.stdin(Stdio::null()).stdout(io::stderr().as_fd().try_clone_to_owned()?);
    }
    Ok(Plan {
        a,
        b,
        ready: args.ready,
        changes,
        every: span(&args.every)?.max(STEP),
        limit: span(&args.limit)?,
        linger: span(&args.linger)?,
    })
}

/// Runs it. `meanwhile` is called every few milliseconds.
pub(crate) fn run(wan: &Wan, plan: Plan, mut meanwhile: impl FnMut(&Wan)) -> Result<Report, Box<dyn Error>> {
    let [own_before, reaped] = cpu();
    let reaped = Rc::new(RefCell::new(reaped));
    let mut b = match plan.b {
        // A group of its own, so that the end of A ends all of it.
        Some(mut command) => {
            command.process_group(0);
            Some(End::new(wan.b().spawn(command)?, &reaped))
        }
        None => None,
    };
    if let Some(port) = plan.ready
        && !wan.b().wait_for_port(port, Duration::from_secs(20))
    {
        return Err(format!("nothing at B listens on port {port} after 20 s").into());
    }
    let started = Instant::now();
    let mut a = End::new(wan.a().spawn(plan.a)?, &reaped);
    let mut changes = plan.changes.into_iter().peekable();
    let mut samples = Vec::new();
    let mut limit_reached = false;
    let took = loop {
        let at = started.elapsed();
        while let Some((_, change)) = changes.next_if(|(when, _)| *when <= at) {
            wan.change(&change);
        }
        let steps = u32::try_from(samples.len()).unwrap_or(u32::MAX);
        if at >= plan.every.saturating_mul(steps) {
            samples.push(Sample::take(wan, at));
        }
        meanwhile(wan);
        if a.has_ended()? {
            break at;
        }
        if let Some(b) = &mut b {
            b.has_ended()?;
        }
        if at > plan.limit {
            limit_reached = true;
            a.stop()?;
            break at;
        }
        std::thread::sleep(STEP);
    };
    let last = Sample::take(wan, took);
    samples.push(last);
    if let Some(b) = &mut b {
        // A server of one transfer may want to say goodbye.
        b.ends_within(plan.linger)?;
        b.stop()?;
    }
    let [own_after, _] = cpu();
    Ok(Report {
        took,
        ended: [a.ended, b.map(|b| b.ended).unwrap_or_default()],
        last,
        unseen: Direction::BOTH.map(|d| wan.unseen(d)),
        emulator_cpu: own_after.saturating_sub(own_before),
        samples,
        limit_reached,
    })
}

/// A command at an end.
#[derive(Debug)]
struct End {
    child: Child,
    ended: Ended,
    /// CPU time of all children that were waited for so far. It grows by what the next one used.
    reaped: Rc<RefCell<Duration>>,
}

impl End {
    fn new(child: Child, reaped: &Rc<RefCell<Duration>>) -> Self {
        Self { child, ended: Ended::default(), reaped: Rc::clone(reaped) }
    }

    fn has_ended(&mut self) -> io::Result<bool> {
        if self.ended.code.is_some() {
            return Ok(true);
        }
        if let Some(status) = self.child.try_wait()? {
            let [_, reaped] = cpu();
            let before = std::mem::replace(&mut *self.reaped.borrow_mut(), reaped);
            self.ended = Ended { code: Some(as_a_shell_says(status)), cpu: reaped.saturating_sub(before) };
        }
        Ok(self.ended.code.is_some())
    }

    fn ends_within(&mut self, limit: Duration) -> io::Result<bool> {
        let end = Instant::now() + limit;
        while !self.has_ended()? {
            if Instant::now() > end {
                return Ok(false);
            }
            std::thread::sleep(STEP);
        }
        Ok(true)
    }

    fn stop(&mut self) -> io::Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            if self.has_ended()? {
                return Ok(());
            }
            self.signal(signal);
            self.ends_within(GRACE)?;
        }
        Ok(())
    }

    /// To its group, if it leads one.
    fn signal(&self, signal: Signal) {
        let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        if kill_process_group(pid, signal).is_err() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn as_a_shell_says(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1)
}

/// The machine's limits on socket buffers, put back with the value.
#[derive(Debug)]
pub(crate) struct Limits(Vec<(&'static str, String)>);

impl Limits {
    pub(crate) fn of_the_machine(profile: Profile, set: bool, say: bool) -> Result<Self, Box<dyn Error>> {
        let wanted = profile.socket_limit().to_string();
        let mut limits = Self(Vec::new());
        for path in [RMEM_MAX, WMEM_MAX] {
            let is = fs::read_to_string(path)?.trim().to_owned();
            if is == wanted {
                continue;
            }
            if set {
                fs::write(path, &wanted)?;
                limits.0.push((path, is));
            } else if say {
                eprintln!("wan: {path} is {is}, {wanted} on a host of this profile; --host-sysctls sets it");
            }
        }
        Ok(limits)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (path, was) in &self.0 {
            let _ = fs::write(path, was);
        }
    }
}
