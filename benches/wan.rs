//! A wide-area link between any two commands, and the throughput of copying tools over such links. `scripts/wan` builds
//! this and calls it.
//!
//! ```text
//! wan run --rate 1gbit --rtt 200ms --loss 0.1% -- iperf3 -c 10.77.0.2 -- iperf3 -s
//! wan run ... --at 5s rate=200mbit --at 10s rate=1gbit -- COMMAND_AT_A -- COMMAND_AT_B
//! wan bench --svg plots               the tools that are there, at 1 Gbit/s and 200 ms with 0, 0.1 and 1 % loss
//! wan set SOCKET down                  changes the link of `wan run --control SOCKET`
//! ```

#[path = "../tests/harness/wan/mod.rs"]
mod wan;

#[path = "wan/control.rs"]
mod control;
#[path = "wan/matrix.rs"]
mod matrix;
#[path = "wan/plot.rs"]
mod plot;
#[path = "wan/report.rs"]
mod report;
#[path = "wan/run.rs"]
mod run;
#[path = "wan/tools.rs"]
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Two hosts on this machine with a wide-area link between them.
#[derive(Debug, Parser)]
#[command(name = "wan")]
struct Cli {
    #[command(subcommand)]
    command: Option<Words>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Words {
    /// Runs a command at each end, and says what went over the link.
    Run(Box<run::RunArgs>),
    /// Compares tools that copy a file over links, and plots them.
    Bench(Box<matrix::BenchArgs>),
    /// Changes the link of a run that was started with --control, and prints its counters.
    Set(control::SetArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Words::Run(args)) => run::main(&args),
        Some(Words::Bench(args)) => matrix::main(&args),
        Some(Words::Set(args)) => control::main(&args),
        None => {
            println!("wan: nothing to do; `scripts/wan --help` says what there is");
            Ok(0)
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("wan: {error}");
            ExitCode::from(125)
        }
    }
}
