//! Man pages and completions, made from the same definitions as the help.

use std::{fs, io};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{
    args::{Cli, Docs},
    exit::Exit,
};
use crate::engine::{FailureClass, JobError};

pub(super) fn docs(args: &Docs) -> Result<Exit, JobError> {
    write(args).map_err(|error| {
        JobError::new(FailureClass::Destination, format!("cannot write to {}: {error}", args.dir.display()))
    })?;
    Ok(Exit::Success)
}

fn write(args: &Docs) -> io::Result<()> {
    fs::create_dir_all(&args.dir)?;
    let mut command = Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "ccat-xfer", &args.dir)?;
    }
    clap_mangen::generate_to(command, &args.dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_are_written() {
        let temp = tempfile::tempdir().unwrap();
        docs(&Docs { dir: temp.path().join("new") }).unwrap();
        for name in [
            "ccat-xfer.1",
            "ccat-xfer-send.1",
            "ccat-xfer-cert-new.1",
            "ccat-xfer.bash",
            "_ccat-xfer",
            "ccat-xfer.fish",
        ] {
            assert!(temp.path().join("new").join(name).is_file(), "{name}");
        }
    }
}
