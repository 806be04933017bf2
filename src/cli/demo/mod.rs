//! `demo`: packages go from `ccat` to `cologne` and into the archive there, on this machine. Two sites with an endpoint and a
//! worker each, a manager, a database and a broker run as `up` runs them; what is archived is checked by reading all three
//! places again.

mod chain;
mod compare;
mod patience;
mod relay;
mod table;
mod tree;

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

pub(super) use self::relay::Link;
use self::{
    chain::{Chain, DESTINATION, ORIGIN, Plan, archive_place},
    compare::{Contents, What},
    patience::{Hopeless, Patience, refuse_full},
    table::{Changes, Row},
    tree::Shape,
};
use super::{args::Demo, block_on, control::measured, exit::Exit, human::Screen, manifest};
use crate::{
    archive::{self, Disk},
    chunk::{Digest, escape_bytes},
    config::{Settings, units::show_size},
    disk::Root,
    engine::{FailureClass, JobError, walk::PARTS_FOLDER},
    model::{Algorithm, PackageDigest, PackageKind, topology::Place as Location},
    store::NewPackage,
};

pub(super) fn demo(args: &Demo, settings: &Settings, screen: &Screen) -> Result<Exit, JobError> {
    if let Some(data) = args.data.as_deref().filter(|data| !data.is_dir()) {
        return Err(JobError::new(FailureClass::Source, format!("{} is not a folder", data.display())));
    }
    let folder = Folder::new()?;
    let cancel = CancellationToken::new();
    // Without the screen: what an interrupted demo leaves is nothing, and that is said here.
    let result = block_on(None, &cancel, async || {
        let demo = Running { args, settings, screen, folder: &folder, cancel: &cancel };
        demo.run().await
    });
    screen.clear();
    let interrupted = cancel.is_cancelled();
    if args.rm || interrupted {
        remove(&folder.path).map_err(|e| folder.failed("remove", &folder.path, &e))?;
        screen.print(&format!("removed {}\n", folder.path.display()));
    } else {
        screen.print(&format!(
            "the files stay in {0}; remove them with chmod -R u+w {0} && rm -r {0}\n",
            folder.path.display()
        ));
    }
    if interrupted {
        return Err(JobError::new(FailureClass::Cancelled, "the demo was interrupted"));
    }
    result
}

/// Removes the demo's files. What rests in its archive is read-only, also for whoever removes it.
fn remove(path: &Path) -> io::Result<()> {
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}

/// The demo's own folder.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> Result<Self, JobError> {
        let number: u64 = rand::random();
        let folder = Self { path: std::env::temp_dir().join(format!("ccat-xfer-demo-{number:016x}")) };
        // Never one that is there, and nobody else's to look into: with --data it holds a copy of it.
        DirBuilder::new().mode(0o700).create(&folder.path).map_err(|e| folder.failed("make", &folder.path, &e))?;
        Ok(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn failed(&self, verb: &str, path: &Path, error: &io::Error) -> JobError {
        JobError::new(
            FailureClass::Destination,
            format!("cannot {verb} {}: {error}; TMPDIR names where the demo's files go", path.display()),
        )
    }
}

struct Running<'a> {
    args: &'a Demo,
    settings: &'a Settings,
    screen: &'a Screen,
    folder: &'a Folder,
    cancel: &'a CancellationToken,
}

impl Running<'_> {
    async fn run(&self) -> Result<Exit, JobError> {
        self.screen.print(&opening(self.args));
        let origin = match &self.args.data {
            // Links on the way to it are the reader's own; below it none is followed.
            Some(data) => fs::canonicalize(data)
                .map_err(|e| JobError::new(FailureClass::Source, format!("cannot open {}: {e}", data.display())))?,
            None => self.generated().await?,
        };
        let destination = self.folder.at(DESTINATION);
        fs::create_dir(&destination).map_err(|e| self.folder.failed("make", &destination, &e))?;
        let archive = self.folder.at(ARCHIVE);
        fs::create_dir(&archive).map_err(|e| self.folder.failed("make", &archive, &e))?;
        Disk::found(&archive).map_err(|e| JobError::new(FailureClass::Destination, e.to_string()))?;
        let plan = Plan {
            folder: &self.folder.path,
            origin: &origin,
            destination: &destination,
            archive: &archive,
            link: self.args.link,
        };
        let mut chain = Chain::start(&plan, self.settings).await?;
        let watched = self.watch(&mut chain, &plan).await;
        let relayed = chain.relay.as_ref().map(|relay| format!("{}\n", relay.told()));
        let told = match &watched {
            Ok(true) => self.tell(&chain).await,
            _ => Ok((String::new(), Exit::Success)),
        };
        let packages = chain.packages().to_vec();
        let stopped = chain.stop().await;
        if !watched? {
            return Err(JobError::new(FailureClass::Cancelled, "the demo was interrupted"));
        }
        let (text, exit) = told?;
        self.screen.print(&text);
        self.screen.print(&relayed.unwrap_or_default());
        stopped?;
        if exit != Exit::Success {
            return Ok(exit);
        }
        planted::spoil_destination(&destination, &packages);
        planted::spoil_archive(&archive, &packages);
        self.check([&origin, &destination, &archive], packages).await
    }

    async fn generated(&self) -> Result<PathBuf, JobError> {
        let origin = self.folder.at(ORIGIN);
        self.screen.print(&format!("making files in {}\n", origin.display()));
        let (at, cancel) = (origin.clone(), self.cancel.clone());
        let made = blocking(move || tree::make(&at, Shape::DEMO, &cancel)).await?;
        made.map_err(|e| self.folder.failed("make files in", &origin, &e))?;
        Ok(origin)
    }

    /// Submits, and shows the table until nothing moves any more. False if it was interrupted.
    async fn watch(&self, chain: &mut Chain, plan: &Plan<'_>) -> Result<bool, JobError> {
        let between = match &chain.relay {
            Some(relay) => format!("\n{DESTINATION} is called through the relay, on port {}", relay.port()),
            None => String::new(),
        };
        self.screen.print(&format!(
            "endpoints listen on 127.0.0.1: {ORIGIN} on port {}, {DESTINATION} on port {}{between}\n\
             reading the packages of {ORIGIN} once, for their digests\n",
            chain.ports.0, chain.ports.1
        ));
        let (root, cancel) = (plan.origin.to_owned(), self.cancel.clone());
        let (packages, passed_over) = blocking(move || packages(&root, &cancel)).await??;
        for name in &passed_over {
            self.screen.note(&format!("not a package, because it is neither a file nor a folder: {name}"));
        }
        if self.cancel.is_cancelled() {
            return Ok(false);
        }
        let root = Root::open(plan.destination);
        let free = root.and_then(|root| root.free_bytes());
        let free = free.map_err(|error| JobError::new(FailureClass::Destination, error.to_string()))?;
        refuse_full(packages.iter().fold(0, |sum, p| sum.saturating_add(p.size_bytes)), free, plan.destination)?;
        planted::spoil_origin(plan.origin, &packages);
        chain.submit(packages).await?;
        let (began, mut changes) = (Instant::now(), Changes::default());
        let mut patience = Patience::new(began);
        loop {
            let rows = chain.look().await?;
            let over = rows.iter().all(Row::is_over);
            if self.screen.is_live() {
                self.screen.board(table::whole(rows, MOST_ROWS, began.elapsed()));
            } else {
                self.screen.print(&changes.since_last(rows, began.elapsed()));
            }
            if over {
                self.screen.clear();
                self.screen.print(&format!("\n{}\n", table::whole(rows, usize::MAX, began.elapsed())));
                return Ok(true);
            }
            match patience.look(rows, Instant::now()) {
                Some(Hopeless::Full(transfer)) => {
                    let work = transfer.id;
                    let (_, why) = chain.failure(work).await?;
                    let text = format!("{DESTINATION} is full: {why}; TMPDIR names where the demo's files go");
                    return Err(JobError::new(FailureClass::Destination, text));
                }
                Some(Hopeless::Still(row)) => {
                    let (work, name, state) = (row.moving().map(|t| t.id), row.name.clone(), row.state());
                    let (class, why) = match work {
                        Some(work) => chain.failure(work).await?,
                        // What the planner waits for.
                        None => (None, format!("{DESTINATION} may have no room, and TMPDIR names where it lies")),
                    };
                    let why = if why.is_empty() { "no error was told".to_owned() } else { why };
                    let text =
                        format!("nothing has moved for {} s: {name} is {state}; {why}", patience::LONGEST.as_secs());
                    return Err(JobError::new(class.unwrap_or(FailureClass::Destination), text));
                }
                None => {}
            }
            if chain.has_ended() {
                return Err(JobError::new(
                    FailureClass::Bug,
                    "the demo's daemons ended before the packages were archived",
                ));
            }
            tokio::select! {
                () = tokio::time::sleep(REDRAW) => {}
                () = self.cancel.cancelled() => return Ok(false),
            }
        }
    }

    /// The verification record of each package, and what failed.
    async fn tell(&self, chain: &Chain) -> Result<(String, Exit), JobError> {
        let mut text = format!(
            "\nverification records: what was read from {}, against what {ORIGIN} registered\n",
            archive_place()
        );
        let (mut failed, mut classes) = (0usize, Vec::new());
        for (row, package) in chain.rows().iter().zip(chain.packages()) {
            let Some(record) = chain.record(row.id).await?.filter(|_| row.is_archived()) else {
                failed += 1;
                let (class, why) = match row.moving() {
                    Some(moving) => chain.failure(moving.id).await?,
                    None => (None, String::new()),
                };
                classes.extend(class);
                let arrived = if row.archiving.is_some() { "NOT ARCHIVED" } else { "NOT ARRIVED" };
                let _ = writeln!(text, "  {} {}: {arrived}\n    {why}", row.id, row.name);
                continue;
            };
            let same = record.is_equal && record.found.value == package.identity;
            if !same {
                failed += 1;
                classes.push(FailureClass::Integrity);
            }
            let _ = writeln!(
                text,
                "  {} {}: {}, {}, {}{} on {} at {}\n    {} {}",
                row.id,
                row.name,
                if same { "equal" } else { "NOT EQUAL" },
                show_size(record.found_size_bytes),
                record.method,
                record.how.map(|how| format!(" ({how})")).unwrap_or_default(),
                record.host,
                record.recorded_at,
                match record.found.algorithm {
                    Algorithm::Blake3 => "b3sum",
                    _ => "tree ",
                },
                Digest(record.found.value)
            );
        }
        let exit = match (failed, classes.first()) {
            (0, _) => Exit::Success,
            (n, Some(class)) if n == chain.rows().len() && classes.iter().all(|c| c == class) => Exit::Failed(*class),
            _ => Exit::Partial,
        };
        if failed > 0 {
            let _ = writeln!(text, "{failed} of {} packages are not archived", chain.rows().len());
        }
        Ok((text, exit))
    }

    /// Reads all places, as somebody would who trusts none of it.
    async fn check(&self, places: [&Path; 3], packages: Vec<NewPackage>) -> Result<Exit, JobError> {
        self.screen.print("\nreading all three places again, without the database\n");
        let [origin, destination, archive] = places.map(Path::to_owned);
        let cancel = self.cancel.clone();
        let read = move || {
            let paths: Vec<_> = packages.iter().map(|p| PathBuf::from(os(p.path.as_bytes()))).collect();
            let read = |folder: &Path, class| {
                compare::contents(folder, &paths, &cancel).map_err(|text| JobError::new(class, text))
            };
            let sent = read(&origin, FailureClass::Source)?;
            let got = read(&destination, FailureClass::Destination)?;
            Ok((sent, got, archived(&archive, &packages, &cancel)?))
        };
        let (sent, got, kept) = blocking(read).await??;
        let mut differences = compare::differences(&sent, &got);
        differences.extend(compare::differences(&sent, &kept.by_path).iter().map(|text| format!("archive: {text}")));
        if !differences.is_empty() {
            for difference in &differences {
                self.screen.note(&format!("not equal: {difference}"));
            }
            return Err(JobError::new(FailureClass::Integrity, "the three places are not equal"));
        }
        let (list, keys) = (self.folder.at(MANIFEST), self.folder.at(ARCHIVE_MANIFEST));
        let written = write_manifest(&list, &sent).and_then(|()| write_manifest(&keys, &kept.by_key));
        written.map_err(|error| JobError::new(FailureClass::Destination, error.to_string()))?;
        let [origin, destination, archive] = places;
        self.screen.print(&by_hand(&kept.by_key, [(origin, &list), (destination, &list), (archive, &keys)], archive));
        Ok(Exit::Success)
    }
}

/// What an archive holds.
struct Archived {
    /// By the packages' own paths.
    by_path: Contents,
    /// By the paths in the archive.
    by_key: Contents,
}

/// Reads packages from the archive's folder.
fn archived(root: &Path, packages: &[NewPackage], cancel: &CancellationToken) -> Result<Archived, JobError> {
    let mut archived = Archived { by_path: Contents::new(), by_key: Contents::new() };
    for package in packages {
        let key = Disk::path_of(&as_archived(package));
        let key = key.map_err(|error| JobError::new(FailureClass::Destination, error.to_string()))?;
        let Some((folder, name)) = key.split_last() else { continue };
        let found = compare::contents(&root.join(os(folder.as_bytes())), &[PathBuf::from(os(name))], cancel)
            .map_err(|text| JobError::new(FailureClass::Destination, text))?;
        for (path, what) in found {
            let rest = path.strip_prefix(name).unwrap_or(&path);
            archived.by_path.insert([package.path.as_bytes(), rest].concat(), what.clone());
            archived.by_key.insert([key.as_bytes(), rest].concat(), what);
        }
    }
    Ok(archived)
}

fn as_archived(package: &NewPackage) -> archive::Package {
    let algorithm = match package.kind {
        PackageKind::File => Algorithm::Blake3,
        PackageKind::Tree => Algorithm::Tree,
    };
    archive::Package {
        kind: package.kind,
        relative_path: package.path.clone(),
        size_bytes: package.size_bytes,
        file_count: package.file_count,
        expected: PackageDigest { algorithm, value: package.identity },
    }
}

/// What is real and what is not.
fn opening(args: &Demo) -> String {
    let mut text = format!(
        "A demo on this machine: packages go from {ORIGIN} to {DESTINATION} and into an archive.\n\
         Real: the files, both endpoints with their keys, the manager, the workers, the\n\
         database (SQLite), encryption, protocol, disk writes, reading back and checks.\n\
         Not real: the distance. Both sites are one process on one machine, hints go\n\
         through memory instead of RabbitMQ, and the network is loopback.\n"
    );
    if let Some(link) = args.link {
        let _ = write!(
            text,
            "Between the sites a relay in user space plays a link:\n\
             {link}.\n\
             It delays and drops UDP datagrams. TCP it can only delay and pace: it ends each\n\
             connection itself, so that nothing can be lost on it.\n"
        );
    }
    if let Some(data) = &args.data {
        let _ = writeln!(text, "{} is only read, where it lies.", data.display());
    }
    text
}

/// The files and folders of a folder, as packages, and the names of what is neither.
fn packages(folder: &Path, cancel: &CancellationToken) -> Result<(Vec<NewPackage>, Vec<String>), JobError> {
    let unreadable = |e: String| JobError::new(FailureClass::Source, e);
    let root = Root::open(folder).map_err(|e| unreadable(e.to_string()))?;
    let from = Location { site: ORIGIN.to_owned(), location: "buffer".to_owned() };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| unreadable(format!("cannot list {}: {e}", folder.display())))? {
        names.push(entry.map_err(|e| unreadable(format!("cannot list {}: {e}", folder.display())))?.file_name());
    }
    names.sort();
    let (mut found, mut passed_over) = (Vec::new(), Vec::new());
    for name in names.iter().filter(|name| name.as_bytes() != PARTS_FOLDER) {
        if cancel.is_cancelled() {
            break;
        }
        let is_package = fs::symlink_metadata(folder.join(name)).is_ok_and(|m| m.is_file() || m.is_dir());
        if is_package {
            found.push(measured(&root, folder, Path::new(name), &from, PRIORITY)?);
        } else {
            passed_over.push(escape_bytes(name.as_bytes()));
        }
    }
    if found.is_empty() && !cancel.is_cancelled() {
        return Err(unreadable(format!("{} holds no file and no folder", folder.display())));
    }
    Ok((found, passed_over))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JobError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| JobError::new(FailureClass::Bug, "a task of the demo ended badly"))
}

fn by_hand(archived: &Contents, places: [(&Path, &Path); 3], archive: &Path) -> String {
    let (count, bytes) = files(archived).fold((0u64, 0u64), |(n, sum), (_, _, size)| (n + 1, sum + size));
    let quoted = |path: &Path| quote(path.as_os_str().as_bytes());
    let mut text =
        format!("all {count} files ({}) have equal digests in all three places. To check by hand:\n", show_size(bytes));
    for (folder, list) in places {
        // Beside it the short name will do.
        let short =
            list.file_name().filter(|_| folder.parent() == list.parent()).map(|name| Path::new("..").join(name));
        let _ = writeln!(
            text,
            "  (cd {} && b3sum --quiet -c {})",
            quoted(folder),
            quoted(&short.unwrap_or_else(|| list.into()))
        );
    }
    text.push_str("b3sum of the largest files in the archive must print:\n");
    let mut largest: Vec<_> = files(archived).collect();
    largest.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(b.0)));
    for (path, digest, _) in largest.into_iter().take(LINES) {
        if let Some(line) = manifest::b3sum_line(archive.join(os(path)).as_os_str().as_bytes(), digest) {
            text.push_str(&line);
        }
    }
    text
}

fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(bytes)
}

fn files(contents: &Contents) -> impl Iterator<Item = (&[u8], Digest, u64)> {
    contents.iter().filter_map(|(path, what)| match what {
        What::File { digest, size } => Some((path.as_slice(), *digest, *size)),
        _ => None,
    })
}

fn write_manifest(path: &Path, contents: &Contents) -> Result<(), manifest::ManifestError> {
    let mut writer = manifest::Writer::create(path)?;
    for (path, digest, _) in files(contents) {
        writer.add(path, digest)?;
    }
    writer.finish()
}

/// A word as a shell takes it.
fn quote(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_')) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Corruption that tests plant, to see that it is found: `CCAT_XFER_FAULT_DEMO` is `origin`, `destination` or
/// `archive`.
#[cfg(feature = "faults")]
mod planted {
    use super::*;

    fn is(end: &str) -> bool {
        std::env::var("CCAT_XFER_FAULT_DEMO").is_ok_and(|planted| planted == end)
    }

    /// Another byte in the first package that is a file, between its registration and its transfer.
    pub(super) fn spoil_origin(folder: &Path, packages: &[NewPackage]) {
        let file = packages.iter().find(|p| p.kind == PackageKind::File);
        if let Some(file) = file.filter(|_| is("origin")) {
            spoil(&folder.join(os(file.path.as_bytes())));
        }
    }

    /// The same at the destination, after it was verified there.
    pub(super) fn spoil_destination(folder: &Path, packages: &[NewPackage]) {
        let mut paths = packages.iter().map(|package| folder.join(os(package.path.as_bytes())));
        if is("destination")
            && let Some(file) = paths.find(|path| path.is_file())
        {
            spoil(&file);
        }
    }

    /// The same in the archive, after it was read back.
    pub(super) fn spoil_archive(root: &Path, packages: &[NewPackage]) {
        let keys = packages.iter().filter_map(|package| Disk::path_of(&as_archived(package)).ok());
        let mut paths = keys.map(|key| root.join(os(key.as_bytes())));
        if is("archive")
            && let Some(file) = paths.find(|path| path.is_file())
        {
            spoil(&file);
        }
    }

    fn spoil(file: &Path) {
        let writable = PermissionsExt::from_mode(0o600);
        fs::set_permissions(file, writable).expect("invariant: the file is the test's own");
        let mut bytes = fs::read(file).expect("invariant: a test has made the file");
        bytes[0] ^= 1;
        fs::write(file, bytes).expect("invariant: a test may write here");
    }
}

#[cfg(not(feature = "faults"))]
mod planted {
    use super::*;

    pub(super) const fn spoil_origin(_: &Path, _: &[NewPackage]) {}
    pub(super) const fn spoil_destination(_: &Path, _: &[NewPackage]) {}
    pub(super) const fn spoil_archive(_: &Path, _: &[NewPackage]) {}
}

const ARCHIVE: &str = "archive";
const MANIFEST: &str = "manifest.b3";
const ARCHIVE_MANIFEST: &str = "archive.b3";
const LINES: usize = 5;
/// With head and foot they fit a terminal of 24 lines.
const MOST_ROWS: usize = 18;
/// As `submit` has it.
const PRIORITY: u8 = 4;
const REDRAW: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Shape = Shape { large: (1, 100_000), nights: 2, frames: 60 };

    /// The same bytes on every machine, so that people can compare what they see.
    #[test]
    fn the_tree_is_the_same_every_time() {
        let temp = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let tree = |name: &str| {
            let folder = temp.path().join(name);
            tree::make(&folder, SMALL, &cancel).unwrap();
            let (packages, passed_over) = packages(&folder, &cancel).unwrap();
            assert!(passed_over.is_empty(), "{passed_over:?}");
            let paths: Vec<_> = packages.iter().map(|p| PathBuf::from(os(p.path.as_bytes()))).collect();
            assert_eq!(paths, ["night-00", "night-01", "odd", "scan-0.dat"].map(PathBuf::from));
            compare::contents(&folder, &paths, &cancel).unwrap()
        };
        let (mut one, two) = (tree("one"), tree("two"));
        assert!(compare::differences(&one, &two).is_empty());
        one.remove(&b"scan-0.dat"[..]);
        assert_eq!(compare::differences(&one, &two), ["scan-0.dat is extra"]);
        assert_eq!(compare::differences(&two, &one), ["scan-0.dat is missing"]);
        cancel.cancel();
        assert!(compare::contents(temp.path(), &["one".into()], &cancel).is_err());
        assert!(tree::make(&temp.path().join("three"), SMALL, &cancel).is_err());
    }

    #[test]
    fn only_files_and_folders_are_packages() {
        let temp = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        assert_eq!(packages(temp.path(), &cancel).unwrap_err().class, FailureClass::Source);
        fs::write(temp.path().join("file"), b"x").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link\n")).unwrap();
        fs::create_dir(temp.path().join(".ccat-xfer")).unwrap();
        let (found, passed_over) = packages(temp.path(), &cancel).unwrap();
        assert_eq!(found.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["file"]);
        assert_eq!(passed_over, ["link\\n"]);
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quote(b"/tmp/a-b_1.c"), "/tmp/a-b_1.c");
        assert_eq!(quote(b"/tmp/a b'c"), "'/tmp/a b'\\''c'");
    }
}
