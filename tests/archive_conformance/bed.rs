//! What the suite needs of an archive, and packages to put into it.

use std::{
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ccat_xfer::{
    archive::{Archive, ArchiveError, Package, Progress, Reading, Source, Stored, Turn},
    chunk::RelPath,
    disk::Root,
    engine::measure,
    model::{Algorithm, PackageDigest, PackageKind},
};
use tokio_util::sync::CancellationToken;

/// One archive of a kind, empty, in a place of its own, with a folder beside it that packages come from.
pub(crate) trait Bed: Send + Sync {
    /// A handle of the archive, as another process would have one.
    fn archive(&self) -> Arc<dyn Archive>;

    /// Where packages lie before they are archived.
    fn origin(&self) -> &Path;

    /// Changes one byte of what rests, behind the archive's back.
    fn corrupt(&self, package: &Package);

    /// Whether a put that was cut off leaves bytes that do not travel again.
    fn resumes(&self) -> bool;

    /// Packages and the like that the archive's medium holds beside this one and its sidecar: what was set aside, or is
    /// left over.
    fn left_over(&self, package: &Package) -> Vec<String>;

    /// Whether a file that is a package of its own gets its mode and time back when it is copied out. Trees always do.
    fn keeps_bits_of_files(&self) -> bool {
        true
    }

    /// Whether what was replaced goes away when it is forgotten.
    fn forgets(&self) -> bool {
        true
    }
}

pub(crate) fn at(path: impl AsRef<[u8]>) -> RelPath {
    RelPath::new(path.as_ref()).expect("a path")
}

/// What lies at `path` below the origin, as it would be registered.
pub(crate) fn register(bed: &dyn Bed, path: impl AsRef<[u8]>) -> Package {
    let path = at(path);
    let root = Root::open(bed.origin()).expect("open the origin");
    let measured = measure(&root, &path).expect("measure a package");
    let (kind, algorithm) = match measured.is_tree {
        true => (PackageKind::Tree, Algorithm::Tree),
        false => (PackageKind::File, Algorithm::Blake3),
    };
    Package {
        kind,
        relative_path: path,
        size_bytes: measured.size_bytes,
        file_count: measured.file_count,
        expected: PackageDigest { algorithm, value: measured.digest.0 },
    }
}

/// A file of these bytes, registered.
pub(crate) fn file(bed: &dyn Bed, path: impl AsRef<[u8]>, bytes: &[u8]) -> Package {
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path.as_ref());
    let whole = bed.origin().join(name);
    fs::create_dir_all(whole.parent().expect("a folder")).expect("make a folder");
    fs::write(whole, bytes).expect("write a file");
    register(bed, path)
}

/// A large file without two equal chunks, registered.
pub(crate) fn large(bed: &dyn Bed, path: &str, mebibytes: u64) -> Package {
    let mut file = fs::File::create(bed.origin().join(path)).expect("make a file");
    let mut block = vec![0x5a_u8; 1 << 20];
    for n in 0..mebibytes {
        block[..8].copy_from_slice(&n.to_le_bytes());
        file.write_all(&block).expect("write a file");
    }
    register(bed, path)
}

pub(crate) fn turn(job: u8, fence: u64) -> Turn {
    Turn { job: [job; 16], fence, replace: false, seen_corrupt: false }
}

/// A piece of work is about one package.
pub(crate) fn turn_of(package: &Package, fence: u64) -> Turn {
    let mut job = [0; 16];
    job.copy_from_slice(&package.expected.value[..16]);
    Turn { job, fence, replace: false, seen_corrupt: false }
}

/// Counts, and can cancel when so many bytes were counted.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) bytes: AtomicU64,
    pub(crate) cancel_at: Option<(u64, CancellationToken)>,
}

impl Progress for Count {
    fn advance(&self, bytes: u64) {
        let now = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if let Some((at, cancel)) = &self.cancel_at
            && now >= *at
        {
            cancel.cancel();
        }
    }
}

pub(crate) async fn put_as(bed: &dyn Bed, package: &Package, turn: Turn) -> Result<Stored, ArchiveError> {
    let root = Root::open(bed.origin()).expect("open the origin");
    let source = Source { root: &root, path: &package.relative_path };
    let never = CancellationToken::new();
    bed.archive().put(package, &source, &turn, &Count::default(), &never).await
}

pub(crate) async fn put(bed: &dyn Bed, package: &Package) -> Stored {
    put_as(bed, package, turn_of(package, 1)).await.unwrap_or_else(|e| panic!("put {}: {e}", package.relative_path))
}

pub(crate) async fn read(bed: &dyn Bed, package: &Package) -> Result<Reading, ArchiveError> {
    bed.archive().read_back(package, &Count::default(), &CancellationToken::new()).await
}

/// Reads a package back and says whether it is what was registered.
pub(crate) async fn rests_well(bed: &dyn Bed, package: &Package) -> bool {
    let reading = read(bed, package).await.unwrap_or_else(|e| panic!("read {}: {e}", package.relative_path));
    assert!(reading.started_at <= reading.ended_at);
    let equal = reading.digest.0 == package.expected.value;
    if equal {
        assert_eq!((reading.size_bytes, reading.file_count), (package.size_bytes, package.file_count));
    }
    equal
}
