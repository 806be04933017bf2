//! `demo`: an endpoint and a send over loopback, with real files, checked by reading both trees again.

mod compare;
mod tree;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use self::{
    compare::{Contents, What},
    tree::Shape,
};
use super::{
    args::Demo,
    block_on,
    engine::{Engine, Means},
    exit::Exit,
    human::Screen,
    manifest,
    watch::Watch,
};
use crate::{
    chunk::Digest,
    config::units::show_size,
    engine::{Direction, FailureClass, JobError, Options, Remote, RemotePath},
    net::Congestion,
};

pub(super) fn demo(args: &Demo, engine: &dyn Engine, screen: &Screen) -> Result<Exit, JobError> {
    demo_with(args, Shape::DEMO, engine, screen)
}

fn demo_with(args: &Demo, shape: Shape, engine: &dyn Engine, screen: &Screen) -> Result<Exit, JobError> {
    if let Some(data) = args.data.as_deref().filter(|data| !data.is_dir()) {
        return Err(JobError::new(FailureClass::Source, format!("{} is not a folder", data.display())));
    }
    let place = Place::new()?;
    let result = show(args, shape, engine, screen, &place);
    if args.rm {
        fs::remove_dir_all(&place.folder).map_err(|e| place.failed("remove", &place.folder, &e))?;
        screen.print(&format!("removed {}\n", place.folder.display()));
    } else {
        screen.print(&format!("the files stay in {}; remove them with rm -r\n", place.folder.display()));
    }
    result
}

/// The demo's own folder.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
}

impl Place {
    fn new() -> Result<Self, JobError> {
        let number: u64 = rand::random();
        let place = Self { folder: std::env::temp_dir().join(format!("ccat-xfer-demo-{number:016x}")) };
        // Never one that is there, and nobody else's to look into: with --data it holds a copy of it.
        DirBuilder::new().mode(0o700).create(&place.folder).map_err(|e| place.failed("make", &place.folder, &e))?;
        Ok(place)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn failed(&self, verb: &str, path: &Path, error: &io::Error) -> JobError {
        JobError::new(
            FailureClass::Destination,
            format!("cannot {verb} {}: {error}; TMPDIR names where the demo's files go", path.display()),
        )
    }
}

fn show(args: &Demo, shape: Shape, engine: &dyn Engine, screen: &Screen, place: &Place) -> Result<Exit, JobError> {
    screen.print(
        "A demo on this machine. Real: the files, the endpoint, its keys, the encryption, the protocol, the disk writes\n\
         and the checks. Not real: the distance; the network is this machine's loopback, and both ends are one process.\n",
    );
    let source = match &args.data {
        Some(data) => data.clone(),
        None => {
            let source = place.at("source");
            screen.print(&format!("making files in {}\n", source.display()));
            tree::make(&source, shape).map_err(|e| place.failed("make files in", &source, &e))?;
            source
        }
    };
    let destination = place.at("destination");
    fs::create_dir(&destination).map_err(|e| place.failed("make", &destination, &e))?;

    let watch = Arc::new(Watch::new(screen.clone(), None, false, None));
    let cancel = CancellationToken::new();
    let endpoint_end = CancellationToken::new();
    let result = block_on(Some(screen), &cancel, async || {
        let endpoint = engine.loopback(destination.clone(), endpoint_end.clone()).await?;
        screen.print(&format!("an endpoint listens on 127.0.0.1, port {}\n", endpoint.port));
        let to = RemotePath { location: Some(endpoint.location), path: Vec::new() };
        engine
            .run(
                Direction::Push { sources: vec![source.join("")], destination: to },
                Remote::Endpoint { host: "127.0.0.1".into(), port: endpoint.port },
                Options::default(),
                Means { credentials: Some(endpoint.credentials), congestion: Congestion::default() },
                Arc::clone(&watch) as _,
                cancel.clone(),
            )
            .await
    });
    endpoint_end.cancel();
    let exit = watch.finish(&result);
    if exit != Exit::Success {
        return Ok(exit);
    }
    check(&source, &destination, screen, place)
}

fn check(source: &Path, destination: &Path, screen: &Screen, place: &Place) -> Result<Exit, JobError> {
    let read = |folder: &Path, class| compare::contents(folder).map_err(|text| JobError::new(class, text));
    screen.print("reading both trees again\n");
    let sent = read(source, FailureClass::Source)?;
    let got = read(destination, FailureClass::Destination)?;
    let differences = compare::differences(&sent, &got);
    if !differences.is_empty() {
        for difference in &differences {
            screen.note(&format!("not equal: {difference}"));
        }
        return Err(JobError::new(FailureClass::Integrity, "the two trees are not equal"));
    }
    let list = place.at("manifest.b3");
    let written = write_manifest(&list, &sent);
    written.map_err(|error| JobError::new(FailureClass::Destination, error.to_string()))?;
    let (count, bytes) = files(&sent).fold((0u64, 0u64), |(n, sum), (_, _, size)| (n + 1, sum + size));
    let quoted = |path: &Path| quote(path.as_os_str().as_bytes());
    let mut text =
        format!("all {count} files ({}) have equal digests on both sides. To check by hand:\n", show_size(bytes));
    for folder in [source, destination] {
        text.push_str(&format!("  (cd {} && b3sum --quiet -c {})\n", quoted(folder), quoted(&list)));
    }
    text.push_str("b3sum of the largest files must print:\n");
    let mut largest: Vec<_> = files(&got).collect();
    largest.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.0.cmp(b.0)));
    for (path, digest, _) in largest.into_iter().take(LINES) {
        let whole = destination.join(std::ffi::OsStr::from_bytes(path));
        if let Some(line) = manifest::b3sum_line(whole.as_os_str().as_bytes(), digest) {
            text.push_str(&line);
        }
    }
    screen.print(&text);
    Ok(Exit::Success)
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

const LINES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::engine::tests::Copier;

    const SMALL: Shape = Shape { large: (1, 100_000), small: 120 };

    fn run(data: Option<&Path>, engine: &Copier) -> Result<u8, FailureClass> {
        let args = Demo { data: data.map(Path::to_owned), rm: true };
        demo_with(&args, SMALL, engine, &Screen::without_bar()).map(Exit::code).map_err(|e| e.class)
    }

    #[test]
    fn equal_trees_are_success_and_anything_else_is_not() {
        assert_eq!(run(None, &Copier::default()), Ok(0));
        assert_eq!(run(None, &Copier { spoil: true, ..Copier::default() }), Err(FailureClass::Integrity));
        assert_eq!(run(None, &Copier { refuse: true, ..Copier::default() }), Ok(7));
    }

    #[test]
    fn own_data_is_only_read() {
        let temp = tempfile::tempdir().unwrap();
        let data = temp.path().join("data");
        tree::make(&data, SMALL).unwrap();
        let before = compare::contents(temp.path()).unwrap();
        assert_eq!(run(Some(&data), &Copier::default()), Ok(0));
        assert_eq!(compare::contents(temp.path()).unwrap(), before);
        assert_eq!(run(Some(&temp.path().join("none")), &Copier::default()), Err(FailureClass::Source));
    }

    /// The same bytes on every machine, so that people can compare what they see.
    #[test]
    fn the_tree_is_the_same_every_time() {
        let temp = tempfile::tempdir().unwrap();
        let tree = |name: &str| {
            tree::make(&temp.path().join(name), SMALL).unwrap();
            compare::contents(&temp.path().join(name)).unwrap()
        };
        let (mut one, two) = (tree("one"), tree("two"));
        assert!(compare::differences(&one, &two).is_empty());
        one.remove(&b"scan-0.dat"[..]);
        assert_eq!(compare::differences(&one, &two), ["scan-0.dat is extra"]);
        assert_eq!(compare::differences(&two, &one), ["scan-0.dat is missing"]);
    }

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quote(b"/tmp/a-b_1.c"), "/tmp/a-b_1.c");
        assert_eq!(quote(b"/tmp/a b'c"), "'/tmp/a b'\\''c'");
    }
}
