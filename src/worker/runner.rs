//! Transfers: a claimed row becomes jobs of the engine, one for each package, and their receipts become evidence.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::IpAddr,
    num::NonZeroU32,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, Config, Failure, Meter, Place, Runner,
    collector::{Collector, Seen},
    failure::End,
    fault,
};
use crate::{
    chunk::{Digest, RelPath},
    disk::{FileKind, Root},
    engine::{Direction, JobId, Observer, Options, Remote, RemotePath, Summary, TransportChoice},
    model::{
        Algorithm, CheckMethod, Dialer, ErrorClass, Evidence, Method, PackageDigest, PackageKind, QueueName, Timestamp,
        Transport,
    },
    net::{Fingerprint, Identity, Pinned},
    reach::{self, Credentials},
    store::{self, Claim, Member},
};

/// Moves packages with the engine, between a folder of this machine and the other site's endpoint.
#[derive(Clone, Debug)]
pub struct Transfers {
    worker: String,
    host: String,
    places: BTreeMap<String, Place>,
    options: Options,
    identity: Identity,
}

impl Transfers {
    /// For a worker of these settings, which endpoints know by `identity`.
    pub fn new(config: &Config, identity: Identity) -> Self {
        Self {
            worker: config.name.clone(),
            host: config.host.clone(),
            places: config.places.clone(),
            options: config.options.clone(),
            identity,
        }
    }
}

/// What all packages of a claim have in common.
struct Way {
    root: Arc<Root>,
    remote: Remote,
    credentials: Credentials,
    options: Options,
    /// The other end's location, as its endpoint calls it.
    location: String,
    /// Who received: the fingerprint of its key.
    receiver_key: String,
}

#[async_trait]
impl Runner for Transfers {
    /// Runs all packages of a claim, one after the other. What is wrong with one of them holds up no other; anything
    /// else ends the attempt.
    async fn run(&self, claim: &Claim, meter: &Meter, cancel: &CancellationToken) -> Attempt {
        let mut attempt = Attempt::default();
        let way = match way(self, claim) {
            Ok(way) => way,
            Err(failure) => {
                attempt.failure = Some(failure);
                return attempt;
            }
        };
        let mut own = Vec::new();
        for member in &claim.members {
            if cancel.is_cancelled() {
                attempt.failure = Some(Failure::new(ErrorClass::Cancelled, "stopped between two packages"));
                break;
            }
            fault::package_begins(&member.relative_path);
            let package = format!("package {} ({})", member.package, member.name);
            match carry(self, claim, member, &way, meter, cancel, &mut attempt).await {
                Ok(()) => meter.finish(member.size_bytes),
                Err(failure) => {
                    attempt.log.push(format!("{package}: {}: {}", failure.class, failure.chain.join(": ")));
                    let failure = failure.during(package);
                    if !failure.is_of_one_package() {
                        // It decides about the next attempt: behind it are packages that nobody has tried.
                        attempt.failure = Some(failure);
                        return attempt;
                    }
                    meter.finish(0);
                    own.push(failure);
                }
            }
        }
        if let Some(failure) = first_of_packages(own, claim.members.len())
            && attempt.failure.is_none()
        {
            attempt.failure = Some(failure);
        }
        attempt
    }
}

/// The first failure of those that are packages' own, which speaks for the claim.
fn first_of_packages(own: Vec<Failure>, packages: usize) -> Option<Failure> {
    let failed = own.len();
    let first = own.into_iter().next()?;
    Some(if failed == 1 { first } else { first.during(format!("{failed} of {packages} packages failed, the first")) })
}

/// What can be refused before anything is touched.
fn way(here: &Transfers, claim: &Claim) -> Result<Way, Failure> {
    let Some(route) = &claim.route else {
        return Err(Failure::new(ErrorClass::Bug, "work without a route came to the runner of transfers"));
    };
    if route.method == Method::Bbcp {
        return Err(Failure::configuration(format!(
            "route '{}' is of method bbcp, which this program does not have; set the route's method to xfer",
            route.name
        )));
    }
    let stem = stem(claim.own());
    let Some(place) = here.places.get(&stem) else {
        return Err(Failure::configuration(format!(
            "worker {} has no folder for location {}/{}; name it in [locations.\"{1}/{2}\"] of its settings",
            here.worker,
            claim.own().site_short_name,
            claim.own().name
        )));
    };
    let root = Root::open(&place.root).map_err(|error| {
        Failure::of_disk(&error, end(claim.side)).during(format!("location {stem} is not there, or not mounted"))
    })?;
    let peer = claim.other().peer.as_ref().filter(|peer| peer.active).ok_or_else(|| {
        Failure::configuration(format!(
            "location {}/{} has no active peer in the topology, so nobody can be called there",
            claim.other().site_short_name,
            claim.other().name
        ))
    })?;
    let (host, port) = host_and_port(&peer.address)
        .ok_or_else(|| Failure::configuration(format!("peer '{}': '{}' is not HOST:PORT", peer.name, peer.address)))?;
    let fingerprint: Fingerprint =
        peer.fingerprint.parse().map_err(|error| Failure::configuration(format!("peer '{}': {error}", peer.name)))?;
    let fence = u64::try_from(claim.fence.number())
        .map_err(|_| Failure::new(ErrorClass::Bug, format!("fence {} is below 0", claim.fence)))?;
    let limits =
        [route.rate_limit_bytes_per_s, claim.origin.rate_limit_bytes_per_s, claim.destination.rate_limit_bytes_per_s];
    let base = &here.options;
    let streams = route.streams.and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new);
    let receiver = match claim.side {
        Dialer::Origin => fingerprint,
        Dialer::Destination => here.identity.fingerprint(),
    };
    Ok(Way {
        root: Arc::new(root),
        remote: Remote::Endpoint { host, port },
        credentials: Credentials { identity: here.identity.clone(), policy: Arc::new(Pinned::only(fingerprint)) },
        options: Options {
            fence,
            overwrite: false,
            quick: false,
            dry_run: false,
            rate_limit: limits.into_iter().flatten().chain(base.rate_limit).min(),
            streams: streams.or(base.streams),
            transport: match route.transport {
                Transport::Auto => base.transport,
                Transport::Quic => TransportChoice::Quic,
                Transport::Tcp => TransportChoice::Tcp,
                Transport::Ssh => {
                    return Err(Failure::configuration(format!(
                        "route '{}' asks for transport ssh, which endpoints do not speak; use auto, quic or tcp",
                        route.name
                    )));
                }
            },
            ..base.clone()
        },
        location: self::stem(claim.other()),
        receiver_key: receiver.to_string(),
    })
}

/// Moves one package and compares.
async fn carry(
    here: &Transfers,
    claim: &Claim,
    member: &Member,
    way: &Way,
    meter: &Meter,
    cancel: &CancellationToken,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let (from, to) = (path(&member.source_path)?, path(&member.relative_path)?);
    let (Some((from_dir, from_name)), Some((to_dir, to_name))) = (from.split_last(), to.split_last()) else {
        return Err(Failure::configuration("a package's path is the root of its location"));
    };
    if from_name != to_name {
        return Err(Failure::configuration("the package has another name here than it was registered with"));
    }
    let expected = member.identity()?;
    // Keeps the folder reachable by its handle while the engine works beneath it.
    let (_handle, direction) = match claim.side {
        Dialer::Origin => {
            let (handle, folder) = own_source(&way.root, &from, &from_dir, member)?;
            let destination = RemotePath { location: Some(way.location.clone()), path: folder_bytes(&to_dir) };
            (handle, Direction::Push { sources: vec![folder.join(OsStr::from_bytes(from_name))], destination })
        }
        Dialer::Destination => {
            let (handle, folder) = own_folder(&way.root, &to_dir)?;
            let source = RemotePath { location: Some(way.location.clone()), path: from.as_bytes().to_vec() };
            (handle, Direction::Pull { sources: vec![source], destination: folder })
        }
    };
    // A tree is known by the digest of the whole only, once all of it is there.
    let whole = (member.kind == PackageKind::File).then_some(Digest(expected.value));
    let options = Options { job: job_of(claim, member, &expected), expected: whole, ..way.options.clone() };
    let collector = Arc::new(Collector::new(meter.clone()));
    let started = Instant::now();
    let result = reach::run(
        direction,
        way.remote.clone(),
        options,
        Some(way.credentials.clone()),
        Arc::clone(&collector) as Arc<dyn Observer>,
        cancel.clone(),
    )
    .await;
    let seen = collector.seen();
    attempt.log.extend(seen.warnings.iter().map(|text| format!("package {}: {text}", member.package)));
    let summary = match result {
        Ok(summary) if summary.failed == 0 => summary,
        // An entry's own error says more than the sum of them.
        Ok(_) | Err(_) if !seen.failures.is_empty() => {
            let failure = first_of(&seen);
            return Err(match seen.unexpected {
                Some(found) if failure.class == ErrorClass::SourceChanged => Failure {
                    class: origin_fault(member, found.size_bytes, found.modified_at),
                    ..failure.during("the origin holds other bytes than were registered; nothing was published")
                },
                _ => failure,
            });
        }
        Ok(summary) => {
            return Err(Failure::new(ErrorClass::Bug, format!("{} entries failed without a reason", summary.failed)));
        }
        Err(error) => return Err(Failure::of_job(&error, &[&member.source_path, &member.relative_path])),
    };
    attempt.log.push(told(member, &summary, started));
    let evidence = evidence(here, claim, member, way, &expected, &seen, &summary, started)?;
    let equal = evidence.is_equal();
    let found = Digest(evidence.found_digest);
    let found_size_bytes = evidence.found_size_bytes;
    attempt.evidence.push(evidence);
    if equal && (member.kind == PackageKind::File || seen.files == member.file_count) {
        return Ok(());
    }
    // The engine has proven that both ends hold the same; so the origin has other bytes than were registered.
    Err(Failure::new(
        // Which of a tree's files it is, is not known here; a file would not have been published.
        ErrorClass::SourceChanged,
        format!(
            "the origin holds other bytes than were registered: {} of {} bytes in {} files was registered, {found} of \
             {found_size_bytes} bytes in {} files was found; it lies at the destination under the package's name",
            Digest(expected.value),
            member.size_bytes,
            member.file_count,
            seen.files
        ),
    ))
}

/// Whether somebody wrote to the origin's file, or its medium reads otherwise than before.
pub(super) fn origin_fault(member: &Member, size_bytes: u64, modified_at: Option<Timestamp>) -> ErrorClass {
    match modified_at {
        Some(at) if at <= member.registered_at && size_bytes == member.size_bytes => ErrorClass::CorruptAtSource,
        _ => ErrorClass::SourceChanged,
    }
}

impl Member {
    /// What the package must be: the digest that says it.
    pub(super) fn identity(&self) -> Result<PackageDigest, Failure> {
        let wanted = match self.kind {
            PackageKind::File => Algorithm::Blake3,
            PackageKind::Tree => Algorithm::Tree,
        };
        self.digests.iter().find(|digest| digest.algorithm == wanted).copied().ok_or_else(|| {
            Failure::new(ErrorClass::Bug, format!("the package was registered without a {wanted} digest"))
        })
    }
}

/// The folder of a package at our own origin, by a handle that was looked up beneath the root: no link leads out of it.
fn own_source(root: &Root, path: &RelPath, dir: &RelPath, member: &Member) -> Result<(OwnedFd, PathBuf), Failure> {
    let failed = |error| Failure::of_disk(&error, End::Origin);
    let Some(stat) = root.stat(path).map_err(failed)? else {
        return Err(Failure::new(ErrorClass::MissingSource, format!("{path} is not there any more")));
    };
    match (member.kind, stat.kind) {
        (PackageKind::File, FileKind::File) | (PackageKind::Tree, FileKind::Dir) => {}
        (_, FileKind::Symlink) => {
            return Err(Failure::configuration(format!("{path} is a symbolic link; packages are files and folders")));
        }
        (kind, _) => {
            return Err(Failure::new(
                ErrorClass::SourceChanged,
                format!("{path} was registered as a {kind} and is none now"),
            ));
        }
    }
    // Before anything is sent: what has another size is another package.
    if member.kind == PackageKind::File && stat.identity.size != member.size_bytes {
        return Err(Failure::new(
            ErrorClass::SourceChanged,
            format!(
                "{path} has {} bytes, {} were registered; register what is there now",
                stat.identity.size, member.size_bytes
            ),
        ));
    }
    root.beneath(dir).and_then(|folder| folder.handle_path()).map_err(failed)
}

/// A folder at our own destination, made if need be, by a handle that was looked up beneath the root.
fn own_folder(root: &Root, dir: &RelPath) -> Result<(OwnedFd, PathBuf), Failure> {
    let failed = |error| Failure::of_disk(&error, End::Destination);
    if !dir.is_root() {
        root.make_dirs(dir, 0o755).map_err(failed)?;
    }
    let (handle, folder) = root.beneath(dir).and_then(|folder| folder.handle_path()).map_err(failed)?;
    // With a slash: into it, whatever it is a link to.
    Ok((handle, PathBuf::from(format!("{}/", folder.display()))))
}

#[expect(clippy::too_many_arguments, reason = "one record has many columns")]
fn evidence(
    here: &Transfers,
    claim: &Claim,
    member: &Member,
    way: &Way,
    expected: &PackageDigest,
    seen: &Seen,
    summary: &Summary,
    started: Instant,
) -> Result<Evidence, Failure> {
    let found = match member.kind {
        PackageKind::File => seen.digest,
        PackageKind::Tree => summary.tree_digest,
    };
    let found =
        found.ok_or_else(|| Failure::new(ErrorClass::CorruptInFlight, "the receiver gave no digest of the whole"))?;
    // A receipt without a look (an empty tree has no file to look at) is dated by our own clock.
    let (ended_at, took) = (super::wall_clock(), started.elapsed());
    let began_at =
        Timestamp::from_micros(ended_at.micros().saturating_sub(i64::try_from(took.as_micros()).unwrap_or(0)));
    let look = seen.look.as_ref();
    let begin = look.map_or(began_at, |l| l.started_at);
    Ok(Evidence {
        package: member.package,
        location: claim.destination.location,
        path: member.relative_path.clone(),
        algorithm: expected.algorithm,
        expected_digest: expected.value,
        found_digest: found.0,
        expected_size_bytes: member.size_bytes,
        found_size_bytes: seen.bytes,
        method: look.map_or(CheckMethod::FoundEqual, |l| l.method),
        medium: claim.destination.storage_type,
        cached: look.is_none_or(|l| l.cached),
        how: None,
        unread_reason: None,
        host: look.map(|l| l.host.clone()).filter(|h| !h.is_empty()).unwrap_or_else(|| here.host.clone()),
        version: look
            .map(|l| l.version.clone())
            .filter(|v| !v.is_empty())
            .unwrap_or_else(|| crate::engine::program().to_owned()),
        receiver_key: Some(way.receiver_key.clone()),
        started_at: begin,
        ended_at: look.map_or(ended_at, |l| l.ended_at).max(begin),
    })
}

fn first_of(seen: &Seen) -> Failure {
    let mut failures = seen.failures.iter().cloned();
    let first = failures.next().unwrap_or_else(|| Failure::new(ErrorClass::Bug, "no failure was told"));
    // The others stand behind it, as far as they were kept.
    Failure { class: first.class, chain: first.chain.into_iter().chain(failures.flat_map(|f| f.chain)).collect() }
}

fn told(member: &Member, summary: &Summary, started: Instant) -> String {
    let transports: Vec<_> = summary.transports.iter().map(|t| t.word()).collect();
    format!(
        "package {}: {} files, {} bytes ({} resumed) in {:.1} s over {} ({}), {:.1} Mbit/s, {} bytes on the wire, limited by {}",
        member.package,
        summary.files,
        summary.bytes,
        summary.bytes_resumed,
        started.elapsed().as_secs_f64(),
        if transports.is_empty() { "no data link".to_owned() } else { transports.join("+") },
        summary.transport_reason,
        summary.goodput_mbit_s(),
        summary.wire_bytes,
        summary.limited_by.word()
    )
}

/// The same for every attempt of a transfer, so that the receiver's journal resumes it, and another one for every other
/// transfer: the place and the identity are in it, because the numbers of another database may be the same.
pub(super) fn job_of(claim: &Claim, member: &Member, identity: &PackageDigest) -> JobId {
    let mut hasher = blake3::Hasher::new_derive_key("ccat-xfer 2026 job of a transfer");
    for part in [
        claim.work.table().as_bytes(),
        stem(&claim.origin).as_bytes(),
        stem(&claim.destination).as_bytes(),
        &member.relative_path,
    ] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    hasher.update(&claim.work.number().to_le_bytes()).update(&member.package.number().to_le_bytes());
    // No other digest: one that is added later makes no other package.
    hasher.update(&identity.value);
    let mut job = [0; 16];
    hasher.finalize_xof().fill(&mut job);
    JobId(job)
}

pub(super) fn path(bytes: &[u8]) -> Result<RelPath, Failure> {
    RelPath::new(bytes).map_err(|error| Failure::configuration(format!("the package's path is refused: {error}")))
}

/// A folder of the other end as it is typed: with a slash, so that a package goes into it under its own name.
fn folder_bytes(dir: &RelPath) -> Vec<u8> {
    if dir.is_root() { Vec::new() } else { [dir.as_bytes(), b"/"].concat() }
}

pub(super) fn stem(place: &store::Place) -> String {
    QueueName::stem_of(&place.site_short_name, &place.name)
}

const fn end(side: Dialer) -> End {
    match side {
        Dialer::Origin => End::Origin,
        Dialer::Destination => End::Destination,
    }
}

/// `HOST:PORT`, with an IPv6 address in brackets.
fn host_and_port(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&p| p > 0)?;
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<IpAddr>().ok().map(|_| inner)?,
        None if host.contains(':') || host.is_empty() => return None,
        None => host,
    };
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_package_speaks_for_all() {
        let failure = |text: &str| Failure::new(ErrorClass::MissingSource, text);
        assert_eq!(first_of_packages(Vec::new(), 3), None);
        assert_eq!(first_of_packages(vec![failure("a")], 3), Some(failure("a")));
        let two = first_of_packages(vec![failure("a"), Failure::new(ErrorClass::SourceChanged, "b")], 3);
        assert_eq!(two, Some(failure("a").during("2 of 3 packages failed, the first")));
    }

    #[test]
    fn addresses_name_a_host_and_a_port() {
        assert_eq!(host_and_port("h.example:8422"), Some(("h.example".into(), 8422)));
        assert_eq!(host_and_port("[::1]:9"), Some(("::1".into(), 9)));
        for bad in ["", "h", "h:", ":9", "h:0", "h:99999", "::1:9", "[h]:9", "h:-1"] {
            assert_eq!(host_and_port(bad), None, "{bad}");
        }
    }

    #[test]
    fn folders_are_typed_with_a_slash() {
        assert_eq!(folder_bytes(&RelPath::root()), b"");
        assert_eq!(folder_bytes(&RelPath::new(*b"a/b").unwrap()), b"a/b/");
        assert_eq!(path(b"../x").unwrap_err().class, ErrorClass::Configuration);
        assert_eq!(path(b"/x").unwrap_err().class, ErrorClass::Configuration);
    }

    #[test]
    fn a_source_that_is_not_what_was_registered_is_refused_before_it_is_sent() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("f"), b"12345").unwrap();
        std::os::unix::fs::symlink("/etc", temp.path().join("out")).unwrap();
        std::os::unix::fs::symlink("f", temp.path().join("link")).unwrap();
        let root = Root::open(temp.path()).unwrap();
        let member = |kind, size_bytes| Member {
            package: crate::model::PackageId::new(1),
            name: "f".into(),
            kind,
            source_path: Vec::new(),
            relative_path: Vec::new(),
            size_bytes,
            file_count: 1,
            digests: Vec::new(),
            registered_at: Timestamp::from_micros(0),
        };
        let class = |at: &str, kind, size| {
            let at = RelPath::new(at.as_bytes()).unwrap();
            let dir = at.split_last().unwrap().0;
            own_source(&root, &at, &dir, &member(kind, size)).map(|_| ()).map_err(|failure| failure.class)
        };
        assert_eq!(class("f", PackageKind::File, 5), Ok(()));
        assert_eq!(class("f", PackageKind::File, 6), Err(ErrorClass::SourceChanged));
        assert_eq!(class("f", PackageKind::Tree, 5), Err(ErrorClass::SourceChanged));
        assert_eq!(class("gone", PackageKind::File, 5), Err(ErrorClass::MissingSource));
        assert_eq!(class("link", PackageKind::File, 5), Err(ErrorClass::Configuration));
        assert_eq!(class("out/passwd", PackageKind::File, 5), Err(ErrorClass::Configuration));
    }
}
