//! A real S3 server that is ended and started again, whose files are changed after it said that it has the bytes, behind a
//! proxy that alters what it answers and drops connections.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_s3::{Client, config as sdk};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde_json::Value;
use tempfile::TempDir;

use super::{Bed, Fault, Rng, S3Server, Shelf, World, volumes::Volumes};
use crate::{
    harness::{self, Fate, Harm, Passing, Proxy, differences},
    s3::settings,
};

/// What is planted, at most one to each copy of a package. The first three are corruptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A byte in the server's files is another, and its own sum of it too.
    Forged,
    /// A byte in the server's files is another; the server sees that by its own sum when it reads it. It tries 13 s long.
    Rotted,
    /// A bit of what the server answers is another.
    Altered,
    /// The connection ends in the middle of what is read.
    CutAnswer,
    /// The connection ends in the middle of what is sent.
    CutRequest,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Forged, Self::Rotted, Self::Altered, Self::CutAnswer, Self::CutRequest];
    fn is_corruption(self) -> bool {
        !matches!(self, Self::CutAnswer | Self::CutRequest)
    }
}

/// Draws which copy of a package meets what.
struct Plan {
    volumes: Volumes,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    /// Kinds that are planted, and the copy for which each is due next.
    due: BTreeMap<Kind, u64>,
    /// Copies from one fault of a kind to the next, on average.
    apart: u64,
    /// Copies that were begun, by package and generation, and what they are to meet.
    copies: HashMap<String, Option<Kind>>,
    planted: Vec<(Kind, String)>,
    /// Connections that were dropped, and of them by the request those for which nobody has asked again yet.
    dropped: u64,
    open: HashMap<Passing, u64>,
}

impl State {
    /// What this copy is to meet.
    fn lot(&mut self, copy: &str) -> Option<Kind> {
        let number = self.copies.len() as u64;
        if let Some(lot) = self.copies.get(copy) {
            return *lot;
        }
        let lot = self.due.iter().find(|(_, due)| **due <= number).map(|(kind, _)| *kind);
        if let Some(kind) = lot {
            let apart = match kind {
                // It may never come to it: the server may be killed before it acknowledges.
                _ if self.number(kind) == 0 => 5,
                Kind::Rotted => 50 + self.rng.below(100),
                _ => self.rng.below(2 * self.apart),
            };
            self.due.insert(kind, number + 1 + apart);
        }
        self.copies.insert(copy.to_owned(), lot);
        lot
    }

    /// It was done; this copy meets nothing more.
    fn done(&mut self, copy: &str, digest: &str, kind: Kind) {
        if self.copies.insert(copy.to_owned(), None).flatten().is_some() {
            self.planted.push((kind, digest.to_owned()));
        }
    }

    fn drops(&mut self, request: &Passing) {
        self.dropped += 1;
        *self.open.entry(request.clone()).or_default() += 1;
    }

    fn number(&self, kind: Kind) -> usize {
        self.planted.iter().filter(|(planted, _)| *planted == kind).count()
    }
}

impl Plan {
    fn new(volumes: Volumes, kinds: &[Kind], mut rng: Rng) -> Self {
        // All of them together 5 % of the copies; of a tenth of the packages that would often be none of a kind.
        let apart = if harness::full() { 100 } else { 33 };
        // The first of each in the first half, and early what takes long.
        let first = |kind| harness::scaled(500) / if kind == Kind::Rotted { 10 } else { 2 };
        let due = kinds.iter().map(|kind| (*kind, rng.below(first(*kind)))).collect();
        let state =
            State { rng, due, apart, copies: HashMap::new(), planted: Vec::new(), dropped: 0, open: HashMap::new() };
        Self { volumes, state: Mutex::new(state) }
    }

    fn lacks(&self) -> Option<Kind> {
        let mut state = self.state.lock().expect("no thread panics");
        let kinds: Vec<_> = state.due.keys().copied().collect();
        let lacking: Vec<_> = kinds.into_iter().filter(|kind| state.number(*kind) == 0).collect();
        for kind in &lacking {
            state.due.insert(*kind, 0);
        }
        lacking.first().copied()
    }
}

/// The copy that a path is of, and its package's digest: `/BUCKET/packages/PATH.DIGEST[.rN][/...]`.
fn copy_of(path: &str) -> Option<(&str, &str)> {
    path.find("/packages/")?;
    let at = path.split('.').next()?.len() + 1;
    let digest = path.get(at..at + 64)?;
    let end = path[at..].find('/').map_or(path.len(), |n| at + n);
    Some((&path[..end], digest))
}

impl Fate for Plan {
    fn cuts_off(&self, request: &Passing) -> bool {
        let Some((copy, digest)) = copy_of(&request.path) else { return false };
        let mut state = self.state.lock().expect("no thread panics");
        state.open.remove(request);
        let cuts = state.lot(copy) == Some(Kind::CutRequest);
        if cuts {
            state.done(copy, digest, Kind::CutRequest);
            state.drops(request);
        }
        cuts
    }

    fn harms(&self, request: &Passing) -> Option<Harm> {
        let (copy, _) = copy_of(&request.path)?;
        let mut state = self.state.lock().expect("no thread panics");
        state.open.remove(request);
        let lot = state.lot(copy);
        // A tree has more than its manifest.
        if request.path.ends_with("/manifest") && state.rng.coin() {
            return None;
        }
        match lot {
            Some(Kind::Altered) => Some(Harm::Altered),
            Some(Kind::CutAnswer) => Some(Harm::Cut),
            _ => None,
        }
    }

    fn has_harmed(&self, request: &Passing, harm: Harm) {
        let Some((copy, digest)) = copy_of(&request.path) else { return };
        let mut state = self.state.lock().expect("no thread panics");
        match harm {
            Harm::Altered => state.done(copy, digest, Kind::Altered),
            Harm::Cut => {
                state.done(copy, digest, Kind::CutAnswer);
                state.drops(request);
            }
        }
    }

    fn is_stored(&self, request: &Passing, begins: &[u8]) {
        let Some((copy, digest)) = copy_of(&request.path) else { return };
        // Held to the end: nobody reads in the meantime.
        let mut state = self.state.lock().expect("no thread panics");
        let Some(kind @ (Kind::Forged | Kind::Rotted)) = state.lot(copy) else { return };
        // Any file of a tree, or its manifest, which comes last.
        let passed_by = request.path.contains("/files/") && state.rng.coin();
        if begins.len() < 16 || passed_by {
            return;
        }
        let random = state.rng.next();
        if self.volumes.spoil(begins, random, kind == Kind::Forged) > 0 {
            state.done(copy, digest, kind);
        }
    }
}

pub(super) struct S3Bed {
    /// Before the server, which it talks to.
    proxy: Proxy,
    server: S3Server,
    plan: Arc<Plan>,
    settings: String,
    rng: Rng,
    /// At how many percent of the packages the server is ended, the last one first.
    stops: Vec<u64>,
    killed: u64,
    stopped: u64,
    /// For the credentials, and for what is read back here.
    folder: TempDir,
}

impl S3Bed {
    pub(super) fn new(reads_back: bool) -> Self {
        let mut rng = harness::seed("the S3 server's fate");
        let server = S3Server::start("archive-chaos-s3");
        // What is to go unnoticed must look right to the server.
        let kinds: &[Kind] = if reads_back { &Kind::ALL } else { &[Kind::Forged] };
        let plan = Arc::new(Plan::new(Volumes::new(server.data()), kinds, Rng(rng.next())));
        let proxy = Proxy::with_fate(server.port(), Arc::clone(&plan) as Arc<dyn Fate>);
        let folder = tempfile::tempdir().expect("a folder");
        // What goes wrong is to end the attempt: that requests are tried again is another test's.
        let settings = settings("archive", &proxy.endpoint(), folder.path()) + "tries = 1\n";
        let stops = if harness::full() { vec![90, 75, 60, 45, 30, 15] } else { vec![60, 25] };
        Self { proxy, server, plan, settings, rng, stops, killed: 0, stopped: 0, folder }
    }

    /// A client of the test's own, past the proxy.
    fn raw(&self) -> Client {
        let key = sdk::Credentials::new(S3Server::ACCESS_KEY, S3Server::SECRET_KEY, None, None, "test");
        let config = sdk::Builder::new()
            .behavior_version(sdk::BehaviorVersion::latest())
            .endpoint_url(self.server.endpoint())
            .region(sdk::Region::new("us-east-1"))
            .force_path_style(true)
            .retry_config(sdk::retry::RetryConfig::disabled())
            .credentials_provider(key);
        Client::from_conf(config.build())
    }

    fn keys(&self, world: &World, prefix: &str) -> Vec<String> {
        let raw = self.raw();
        world.runtime.block_on(async {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = raw.list_objects_v2().bucket(S3Server::BUCKET).prefix(prefix).set_continuation_token(after);
                let page = page.send().await.expect("a list");
                found.extend(page.contents().iter().filter_map(|object| object.key.clone()));
                after = page.next_continuation_token;
                if after.is_none() {
                    return found;
                }
            }
        })
    }

    /// The copy of each package that counts, and whether it is a tree: the last generation that is whole, as the archive's
    /// documentation has it.
    fn newest(&self, world: &World) -> BTreeMap<String, (String, bool)> {
        let mut newest: BTreeMap<String, (u32, String, bool)> = BTreeMap::new();
        for key in self.keys(world, "packages/") {
            let (name, rest) = key["packages/".len()..].split_once('.').expect("a digest");
            let (root, member) = rest.split_once('/').map_or((rest, None), |(root, member)| (root, Some(member)));
            let generation = root.split_once(".r").map_or(0, |(_, n)| n.parse().expect("a generation"));
            let is_whole = member.is_none_or(|member| member == "manifest");
            if is_whole && newest.get(name).is_none_or(|(before, ..)| *before <= generation) {
                let root = format!("packages/{name}.{root}");
                newest.insert(name.to_owned(), (generation, root, member.is_some()));
            }
        }
        newest.into_iter().map(|(name, (_, root, is_tree))| (name, (root, is_tree))).collect()
    }

    fn read(&self, world: &World, raw: &Client, key: &str) -> Result<Vec<u8>, String> {
        world.runtime.block_on(async {
            let got = raw.get_object().bucket(S3Server::BUCKET).key(key).send().await;
            let body = got.map_err(|error| format!("{error:?}"))?.body.collect().await;
            body.map(|bytes| bytes.to_vec()).map_err(|error| format!("{error:?}"))
        })
    }

    /// Whether the copy below this key is what lies at the origin.
    fn check(&self, world: &World, raw: &Client, root: &str, is_tree: bool, origin: &Path) -> Result<(), String> {
        if !is_tree {
            let same = self.read(world, raw, root)? == fs::read(origin).expect("read");
            return same.then_some(()).ok_or_else(|| format!("{root} differs"));
        }
        let copy = tempfile::tempdir_in(self.folder.path()).expect("a folder");
        let manifest = self.read(world, raw, &format!("{root}/manifest"))?;
        let text = String::from_utf8(manifest).map_err(|error| error.to_string())?;
        let mut lines = Vec::new();
        for line in text.lines().skip(1) {
            lines.push(serde_json::from_str::<Value>(line).map_err(|error| format!("{root}: {error}: {line}"))?);
        }
        for line in &lines {
            let word = |name: &str| line[name].as_str().ok_or_else(|| format!("{root}: no {name}: {line}"));
            let at = copy.path().join(word("path")?);
            match word("kind")? {
                "dir" => fs::create_dir(&at).map_err(|error| error.to_string())?,
                "link" => std::os::unix::fs::symlink(word("target")?, &at).map_err(|error| error.to_string())?,
                _ => {
                    let bytes = self.read(world, raw, &format!("{root}/files/{}", word("path")?))?;
                    fs::write(&at, bytes).map_err(|error| error.to_string())?;
                }
            }
        }
        // Folders last: what is made in them changes their times.
        for line in lines.iter().rev() {
            let at = copy.path().join(line["path"].as_str().expect("read above"));
            dress(&at, line).map_err(|error| format!("{root}: {error}: {line}"))?;
        }
        let differ = differences(origin, &copy.path().join(origin.file_name().expect("a name")));
        differ.is_empty().then_some(()).ok_or_else(|| format!("{root} differs: {differ:?}"))
    }
}

/// Gives a file, link or folder the mode and the time that a manifest says.
fn dress(at: &Path, line: &Value) -> Result<(), String> {
    let time = Timespec {
        tv_sec: line["mtime_s"].as_i64().ok_or("no time")?,
        tv_nsec: line["mtime_ns"].as_i64().ok_or("no time")?,
    };
    if line["kind"] != "link" {
        let mode = line["mode"].as_u64().and_then(|mode| u32::try_from(mode).ok()).ok_or("no mode")?;
        fs::set_permissions(at, Permissions::from_mode(mode & 0o7777)).map_err(|error| error.to_string())?;
    }
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| error.to_string())
}

impl Bed for S3Bed {
    fn shelf(&self) -> Shelf<'_> {
        Shelf { name: "archive", storage: "s3", topology: "", settings: &self.settings }
    }

    fn begin(&mut self, _: &World) {}

    fn environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn play(&mut self, archived: u64, of: u64) {
        let is_due = self.stops.last().is_some_and(|percent| archived * 100 >= of * percent);
        // In the middle of something, and not when nobody asks.
        if !is_due || self.proxy.under_way() == 0 {
            return;
        }
        self.stops.pop();
        if self.stops.len() % 2 == 1 {
            self.server.kill();
            self.killed += 1;
        } else {
            self.server.stop();
            self.stopped += 1;
        }
        std::thread::sleep(Duration::from_millis(self.rng.below(1500)));
        self.server.up();
    }

    fn faults(&self) -> Vec<Fault> {
        let state = self.plan.state.lock().expect("no thread panics");
        let corrupt = state.planted.iter().filter(|(kind, _)| kind.is_corruption());
        corrupt.map(|(kind, digest)| Fault { kind: format!("{kind:?}"), digest: digest.clone() }).collect()
    }

    fn lacks(&self) -> Option<String> {
        let stop = (!self.stops.is_empty()).then(|| "end of the S3 server at work".to_owned());
        stop.or_else(|| self.plan.lacks().map(|kind| format!("fault of kind {kind:?}")))
    }

    fn corrupt(&self, world: &World, names: &[String]) -> Vec<String> {
        let (newest, raw) = (self.newest(world), self.raw());
        let mut corrupt = Vec::new();
        for name in names {
            let found = newest.get(name).ok_or_else(|| "nothing is there".to_owned());
            let found =
                found.and_then(|(root, is_tree)| self.check(world, &raw, root, *is_tree, &world.origin().join(name)));
            corrupt.extend(found.err().map(|why| format!("{name}: {why}")));
        }
        corrupt
    }

    fn assert_whole(&self, world: &World, names: &[String]) {
        let sidecars = self.keys(world, "sidecars/");
        assert_eq!(sidecars.len(), names.len(), "{sidecars:?}");
        // Of what was replaced nobody asks.
        let newest: BTreeSet<_> = self.newest(world).into_values().map(|(root, _)| root).collect();
        let state = self.plan.state.lock().expect("no thread panics");
        let root = |request: &Passing| {
            let copy = copy_of(&request.path).expect("of a package").0;
            copy.trim_start_matches('/').split_once('/').expect("a bucket").1.to_owned()
        };
        let open: Vec<_> = state.open.keys().filter(|request| newest.contains(&root(request))).collect();
        assert!(open.is_empty(), "dropped and never asked for again: {open:?}");
    }

    fn said(&self) -> String {
        let state = self.plan.state.lock().expect("no thread panics");
        format!(
            "the server was killed {} times and stopped {} times; {} connections dropped, {} asked again",
            self.killed,
            self.stopped,
            state.dropped,
            state.dropped - state.open.values().sum::<u64>(),
        )
    }
}
