//! `wan bench`: tools that copy one file over emulated links, memory to memory, side by side.

use std::{
    error::Error,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use rustix::fs::SeekFrom;
use serde_json::{Value, json};

use crate::{
    plot::{self, Line},
    report::{Report, mega},
    run::{Host, Limits, LinkArgs, Plan, run},
    tools::{PORT, Place, Tool, write_noise},
    wan::{Change, Direction, Shape, Wan, time},
};

/// Each row is the wall time of the whole command at A, from its start to its end; the far end is running by then. A run
/// that does not end in time is cut, and its rate is that of the bytes that were there. The exit code is 1 if a tool failed
/// or its copy differs.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// A link, as `rate=1gbit,rtt=200ms,loss=0.1%`; more in the words of `wan run --at`. Its queue is 1bdp if not said.
    /// Can be given more than once. Without it 1gbit and 200ms with a loss of 0, 0.1 and 1 %.
    #[arg(long = "link", value_name = "CHANGE")]
    links: Vec<String>,
    /// Which tools. Without it all that are installed.
    #[arg(long, value_enum, value_delimiter = ',')]
    tools: Vec<Tool>,
    /// The file, in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Runs of each row; the median is shown. Tools take turns.
    #[arg(long, default_value_t = 3)]
    runs: u64,
    /// When a run is cut.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    cut: String,
    /// ccat-xfer. Without it the release build beside this program.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// A folder in memory for the copies.
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    dir: PathBuf,
    /// Writes a plot of each link into this folder.
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Writes all runs to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "debian")]
    profile: Host,
    /// TCP's congestion control at both hosts; without it the machine's.
    #[arg(long, value_name = "NAME")]
    tcp_cc: Option<String>,
    /// As in `wan run`.
    #[arg(long)]
    host_sysctls: bool,
    /// Of the first run; the next has the next.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One run of one tool.
#[derive(Debug)]
struct Outcome {
    report: Report,
    /// Bytes of the file that were there at the end.
    arrived: u64,
    /// TCP segments that A sent again, of all that it sent.
    again: (u64, u64),
    fault: Option<String>,
}

impl Outcome {
    /// Mbit/s.
    fn goodput(&self) -> f64 {
        mega(self.arrived) * 8.0 / self.report.took.as_secs_f64()
    }

    fn json(&self, tool: Tool, link: &str) -> Value {
        let mut all = self.report.json(link);
        all["tool"] = json!(tool.name());
        all["arrived_bytes"] = json!(self.arrived);
        all["goodput_mbit"] = json!(self.goodput());
        all["tcp_segments_sent_again"] = json!(self.again.0);
        all["tcp_segments_sent"] = json!(self.again.1);
        all["fault"] = json!(self.fault);
        all
    }
}

pub(crate) fn main(args: &BenchArgs) -> Result<u8, Box<dyn Error>> {
    let cut = time(&args.cut).ok_or("--cut is a time, such as 60s")?;
    let place = Place::new(&args.dir, args.program.as_deref())?;
    let mut tools = Vec::new();
    for &tool in Tool::all() {
        match place.missing(tool) {
            _ if !args.tools.is_empty() && !args.tools.contains(&tool) => {}
            None => tools.push(tool),
            Some(why) => println!("not run: {} ({why})", tool.name()),
        }
    }
    let links = if args.links.is_empty() {
        ["0", "0.1%", "1%"].map(|loss| format!("rate=1gbit,rtt=200ms,loss={loss}")).to_vec()
    } else {
        args.links.clone()
    };
    let bytes = args.mib << 20;
    write_noise(&place.source(), bytes)?;
    let mut all = Vec::new();
    let mut failed = false;
    for (number, link) in links.iter().enumerate() {
        let mut rows: Vec<(Tool, Vec<Outcome>)> = tools.iter().map(|t| (*t, Vec::new())).collect();
        for turn in 0..args.runs {
            for (tool, outcomes) in &mut rows {
                outcomes.push(one(args, &place, *tool, link, args.seed + turn, cut, bytes)?);
            }
        }
        for (tool, outcomes) in &mut rows {
            failed |= outcomes.iter().any(|o| o.fault.is_some() && !o.report.limit_reached);
            all.extend(outcomes.iter().map(|o| o.json(*tool, link)));
            outcomes.sort_by(|a, b| a.goodput().total_cmp(&b.goodput()));
        }
        table(args, link, &rows)?;
        if let Some(folder) = &args.svg {
            fs::create_dir_all(folder)?;
            fs::write(folder.join(format!("link-{}.svg", number + 1)), picture(link, &rows)?)?;
        }
    }
    if let Some(path) = &args.json {
        fs::write(path, format!("{}\n", Value::from(all)))?;
    }
    Ok(u8::from(failed))
}

fn link_args(args: &BenchArgs, link: &str, seed: u64) -> LinkArgs {
    LinkArgs::of(link, seed, args.profile, args.tcp_cc.clone())
}

fn one(
    args: &BenchArgs,
    place: &Place,
    tool: Tool,
    link: &str,
    seed: u64,
    cut: Duration,
    bytes: u64,
) -> Result<Outcome, Box<dyn Error>> {
    let setup = link_args(args, link, seed).setup()?;
    place.clear()?;
    let _limits = Limits::of_the_machine(setup.profile, args.host_sysctls, false)?;
    let wan = Wan::start(&setup)?;
    let plan = Plan {
        a: place.sender(tool, bytes)?,
        b: Some(place.receiver(tool)?),
        ready: Some(PORT),
        changes: Vec::new(),
        every: Duration::from_millis(100),
        limit: cut,
        linger: Duration::ZERO,
    };
    let report = run(&wan, plan, |_| ())?;
    let whole = report.ended[0].code == Some(0) && !report.limit_reached;
    let arrived = match tool {
        // It leaves no file. Until it is cut, what arrived less the headers of full segments.
        Tool::Iperf3 if whole => bytes,
        Tool::Iperf3 => report.last.states[0].counters.delivered.bytes * 1448 / 1500,
        _ => written(&place.arrivals()).min(bytes),
    };
    let fault = match (&report, tool) {
        _ if report.limit_reached => Some(format!("cut after {} s", cut.as_secs())),
        _ if !whole => Some(format!("exit {:?}: {}", report.ended[0].code, place.last_words())),
        (_, Tool::Iperf3) => None,
        _ if !place.same()? => Some("the copy differs".to_owned()),
        _ => None,
    };
    let snmp = wan.a().read("snmp");
    let again = (tcp(&snmp, "RetransSegs"), tcp(&snmp, "OutSegs"));
    Ok(Outcome { report, arrived, again, fault })
}

/// A column of `Tcp` in /proc/net/snmp.
fn tcp(text: &str, column: &str) -> u64 {
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Tcp: "));
    let at = lines.next().and_then(|l| l.split(' ').position(|c| c == column));
    at.and_then(|at| lines.next()?.split(' ').nth(at)?.parse().ok()).unwrap_or(0)
}

/// Bytes that were written to the files below. What an unfinished copy has only set aside is a hole.
fn written(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => written(&entry.path()),
        Ok(kind) if kind.is_file() => File::open(entry.path()).map_or(0, |file| data_of(&file)),
        _ => 0,
    };
    entries.map(of).sum()
}

fn data_of(file: &File) -> u64 {
    let (mut sum, mut at) = (0, 0);
    while let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) {
        let Ok(end) = rustix::fs::seek(file, SeekFrom::Hole(start)) else { break };
        sum += end - start;
        at = end;
    }
    sum
}

fn shape_of(args: &BenchArgs, link: &str) -> Result<Shape, Box<dyn Error>> {
    let mut shape = Shape::default();
    link_args(args, link, 0).words().parse::<Change>()?.apply(Direction::AToB, &mut shape);
    Ok(shape)
}

fn table(args: &BenchArgs, link: &str, rows: &[(Tool, Vec<Outcome>)]) -> Result<(), Box<dyn Error>> {
    let shape = shape_of(args, link)?;
    let rate = shape.rate.map(mega);
    println!(
        "\n{link}, queue {:.2} MB; {} MiB, median of {}; hosts {:?}, TCP {}",
        mega(shape.queue),
        args.mib,
        args.runs,
        args.profile,
        args.tcp_cc.as_deref().unwrap_or("as the machine's")
    );
    println!(
        "{:<18} {:>8} {:>9} {:>8} {:>10} {:>8} {:>9} {:>9}",
        "tool", "seconds", "Mbit/s", "of link", "TCP again", "lost", "dropped", "CPU s/GB"
    );
    for (tool, outcomes) in rows {
        let Some(o) = outcomes.get(outcomes.len() / 2) else { continue };
        let c = &o.report.last.states[0].counters;
        let percent = |part: u64, all: u64| format!("{:.3} %", mega(part) * 100.0 / mega(all.max(1)));
        let cpu = o.report.ended.iter().map(|e| e.cpu.as_secs_f64()).sum::<f64>();
        println!(
            "{:<18} {:>8.2} {:>9.1} {:>8} {:>10} {:>8} {:>9} {:>9.2}  {}",
            tool.name(),
            o.report.took.as_secs_f64(),
            o.goodput(),
            rate.map_or_else(|| "-".into(), |r| format!("{:.3}", o.goodput() / r)),
            if tool.is_tcp() { percent(o.again.0, o.again.1) } else { "-".into() },
            percent(c.lost.packets, c.offered.packets),
            percent(c.dropped.packets, c.offered.packets),
            cpu / (mega(o.arrived).max(1.0) / 1000.0),
            o.fault.as_deref().unwrap_or(""),
        );
        let unseen: u64 = o.report.unseen.iter().sum();
        if unseen > 0 {
            println!("  not exact: the devices dropped {unseen} rows of packets before the link");
        }
    }
    Ok(())
}

fn picture(link: &str, rows: &[(Tool, Vec<Outcome>)]) -> Result<String, Box<dyn Error>> {
    let mut shape = Shape::default();
    link.parse::<Change>()?.apply(Direction::AToB, &mut shape);
    let lines = rows.iter().filter_map(|(tool, outcomes)| {
        let samples = &outcomes.get(outcomes.len() / 2)?.report.samples;
        // Half a second at a time: a tenth shows each burst.
        let points = samples.iter().step_by(5).zip(samples.iter().step_by(5).skip(1)).map(|(from, to)| {
            let bytes = [from, to].map(|s| s.states[0].counters.delivered.bytes);
            let seconds = (to.at - from.at).as_secs_f64();
            (to.at.as_secs_f64(), mega(bytes[1] - bytes[0]) * 8.0 / seconds.max(1e-9))
        });
        Some(Line { name: tool.name().to_owned(), points: points.collect() })
    });
    Ok(plot::svg(link, &lines.collect::<Vec<_>>(), shape.rate.map(mega)))
}
