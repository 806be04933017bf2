//! `verify`: reads files again and compares them with a manifest.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    num::NonZeroUsize,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use rustix::fs::OFlags;

use super::{
    args::Verify,
    exit::Exit,
    fail,
    human::Screen,
    json::Json,
    manifest::{self, Line, ManifestError},
};
use crate::{
    chunk::{Digest, escape_bytes},
    config::units::show_size,
    engine::{Action, FailureClass, FileReport, JobError, Progress},
};

/// What came out, over all folders.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) different: u64,
    pub(super) unreadable: u64,
    pub(super) seconds: f64,
}

impl Outcome {
    /// A difference is worse news than a file that is missing.
    fn exit(&self) -> Exit {
        match (self.different, self.unreadable) {
            (0, 0) => Exit::Success,
            (0, _) => Exit::Failed(FailureClass::Source),
            _ => Exit::Failed(FailureClass::Integrity),
        }
    }
}

pub(super) fn verify(args: &Verify, screen: &Screen) -> Exit {
    let Some(manifest) = &args.manifest else {
        return fail(screen, args.json, &JobError::new(FailureClass::Usage, "verify needs --manifest FILE"));
    };
    let lines = match manifest::read(manifest) {
        Ok(lines) => lines,
        Err(error) => {
            let class = match error {
                ManifestError::Malformed { .. } => FailureClass::Integrity,
                _ => FailureClass::Source,
            };
            return fail(screen, args.json, &JobError::new(class, error.to_string()));
        }
    };
    let json = args.json.then(Json::stdout);
    let started = Instant::now();
    let mut outcome = Outcome::default();
    let mut progress = Progress { links: 1, scan_complete: true, ..Progress::default() };
    progress.entries_found = u64::try_from(lines.len().saturating_mul(args.path.len())).unwrap_or(u64::MAX);
    for root in &args.path {
        check(root, &lines, |report| {
            progress.entries_done += 1;
            match &report.action {
                Action::Failed { class: FailureClass::Integrity, .. } => outcome.different += 1,
                Action::Failed { .. } => outcome.unreadable += 1,
                _ => outcome.files += 1,
            }
            outcome.bytes += report.size;
            (progress.bytes_done, progress.bytes_found) = (outcome.bytes, outcome.bytes);
            match (&json, &report.action) {
                (Some(json), Action::Failed { .. }) => json.file(report),
                (Some(json), _) => json.verified(report),
                (None, _) => {
                    screen.file(report);
                    screen.progress(&progress);
                }
            }
        });
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    screen.clear();
    let exit = outcome.exit();
    match &json {
        Some(json) => json.verify_summary(exit, &outcome),
        None => screen.print(&words(&outcome)),
    }
    exit
}

fn words(outcome: &Outcome) -> String {
    let Outcome { files, bytes, different, unreadable, seconds } = outcome;
    format!(
        "{files} files are right, {different} differ, {unreadable} are missing or unreadable; {} read in {seconds:.1} s\n",
        show_size(*bytes)
    )
}

/// Checks every line below one root, several files at once; reports come in the order in which files are done.
fn check(root: &Path, lines: &[Line], mut report: impl FnMut(&FileReport)) {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(lines.len().max(1));
    thread::scope(|scope| {
        // Bounded: a slow terminal slows the reading down, it does not fill memory.
        let (sender, receiver) = mpsc::sync_channel(64);
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut buffer = vec![0; READ_BYTES];
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send(check_one(root, line, &mut buffer)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for done in receiver {
            report(&done);
        }
    });
}

fn check_one(root: &Path, line: &Line, buffer: &mut [u8]) -> FileReport {
    let path = root.join(std::ffi::OsStr::from_bytes(line.path.as_bytes()));
    let mut file = FileReport {
        path: line.path.as_bytes().to_vec(),
        size: 0,
        digest: Some(line.digest),
        action: Action::Same,
        evidence: Vec::new(),
        modified_us: None,
    };
    match digest(&path, buffer) {
        Ok((found, size)) => {
            file.size = size;
            file.digest = Some(found);
            if found != line.digest {
                let text = format!("its bytes are not those of the manifest, which says {}", line.digest);
                file.action = Action::Failed { class: FailureClass::Integrity, text };
            }
        }
        Err(error) => {
            file.digest = None;
            let shown = escape_bytes(path.as_os_str().as_bytes());
            let text = match error.kind() {
                io::ErrorKind::NotFound => format!("{shown} is missing"),
                _ => format!("cannot read {shown}: {error}"),
            };
            file.action = Action::Failed { class: FailureClass::Source, text };
        }
    }
    file
}

/// The digest and length of a regular file, read to its end. Plain reads: a mapping of a file that somebody truncates
/// would end the process.
pub(super) fn digest(path: &Path, buffer: &mut [u8]) -> io::Result<(Digest, u64)> {
    // Not to hang on a FIFO that stands where a file should.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let mut file: File =
        OpenOptions::new().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut hasher = blake3::Hasher::new();
    let mut size = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((Digest(*hasher.finalize().as_bytes()), size)),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                size += u64::try_from(n).unwrap_or(0);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Large enough that system calls vanish, small enough to stay in a core's cache.
pub(super) const READ_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::chunk::RelPath;

    #[test]
    fn each_kind_of_trouble_has_its_class() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        fs::write(at("right"), b"right").unwrap();
        fs::write(at("wrong"), b"changed").unwrap();
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::os::unix::fs::symlink("right", at("link")).unwrap();
        let lines: Vec<Line> = ["right", "wrong", "pipe", "link", "gone"]
            .map(|name| Line { path: RelPath::new(name).unwrap(), digest: Digest::of(b"right") })
            .into();
        let mut got = Vec::new();
        check(temp.path(), &lines, |report| {
            let class = if let Action::Failed { class, .. } = report.action { Some(class) } else { None };
            got.push((String::from_utf8(report.path.clone()).unwrap(), class));
        });
        got.sort_by(|a, b| a.0.cmp(&b.0));
        let source = Some(FailureClass::Source);
        assert_eq!(
            got,
            [
                ("gone".into(), source),
                ("link".into(), source),
                ("pipe".into(), source),
                ("right".into(), None),
                ("wrong".into(), Some(FailureClass::Integrity))
            ]
        );
    }

    #[test]
    fn exits() {
        let exit =
            |different, unreadable| Outcome { different, unreadable, files: 9, ..Outcome::default() }.exit().code();
        assert_eq!([exit(0, 0), exit(1, 0), exit(0, 1), exit(1, 1)], [0, 5, 3, 5]);
    }

    #[test]
    fn digests_are_blake3_of_any_length() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let mut buffer = vec![0; 1000];
        for len in [0, 1, 999, 1000, 1001, 100_000] {
            let bytes = vec![7; len];
            fs::write(&path, &bytes).unwrap();
            assert_eq!(digest(&path, &mut buffer).unwrap(), (Digest::of(&bytes), u64::try_from(len).unwrap()));
        }
    }
}
