//! The `ccat-xfer` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ccat_xfer::cli::main(std::env::args_os())
}
