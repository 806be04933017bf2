//! `clean`: what interrupted jobs left at a destination.

use std::fmt::Write as _;

use super::{args::Clean, exit::Exit, human::Screen};
use crate::{
    config::units::show_size,
    disk::{DiskErrorKind, Root},
    engine::{FailureClass, JobError},
    journal::{JournalError, LeftPart, Which, list_parts, parts_path, remove_unlocked},
};

pub(super) fn clean(args: &Clean, screen: &Screen) -> Result<Exit, JobError> {
    let root = Root::open(&args.dest).map_err(|error| {
        let class = match error.kind() {
            DiskErrorKind::NotFound => FailureClass::Usage,
            _ => FailureClass::Destination,
        };
        JobError::new(class, error.to_string())
    })?;
    let failed = |error: JournalError| JobError::new(FailureClass::Destination, error.to_string());
    let mut text = String::new();
    // Writing to a String cannot fail.
    if args.remove {
        for part in remove_unlocked(&root, &Which::All).map_err(failed)? {
            let _ = writeln!(text, "removed: {}", words(&part));
        }
    }
    let kept = list_parts(&root).map_err(failed)?;
    for part in &kept {
        let _ = writeln!(text, "{}: {}", if part.locked { "in use" } else { "left over" }, words(part));
    }
    let hint = match (kept.is_empty(), args.remove) {
        (true, _) => "",
        (false, true) => "; what is in use stays",
        (false, false) => "; run the job again to resume it, or clean --remove to give up what is not in use",
    };
    let _ = writeln!(text, "{} parts in {}{hint}", kept.len(), parts_path(&root));
    screen.print(&text);
    Ok(Exit::Success)
}

fn words(part: &LeftPart) -> String {
    let minutes = part.age.as_secs() / 60;
    let age = match minutes {
        0..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    };
    let path = part.path.as_ref().map_or_else(|| "(its journal cannot be read)".to_owned(), ToString::to_string);
    format!("{path} ({} of {}, {age} old)", show_size(part.held_bytes), show_size(part.size))
}
