use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _, symlink},
    },
    path::Path,
    process::Command,
};

use super::Rng;

/// What a tree holds.
#[derive(Clone, Debug)]
pub(crate) struct TreeSpec {
    /// Bytes of the one large file; 0 for none.
    pub(crate) large: u64,
    pub(crate) small_files: u64,
    pub(crate) small_bytes: u64,
    pub(crate) small_dirs: u64,
    /// Apparent bytes of the sparse file; 0 for none.
    pub(crate) sparse: u64,
    /// Links, a FIFO, strange names, modes and times.
    pub(crate) odd: bool,
}

impl TreeSpec {
    /// The tree of the round-trip promise: its long form, or a tenth of it.
    pub(crate) fn promised() -> Self {
        Self {
            large: super::size(1 << 30),
            small_files: super::size(10_000),
            small_bytes: 10 << 10,
            small_dirs: 20,
            sparse: super::size(8 << 30),
            odd: true,
        }
    }

    /// A large file and some small ones.
    pub(crate) fn plain(large: u64, small_files: u64) -> Self {
        Self { large, small_files, small_bytes: 10 << 10, small_dirs: 4, sparse: 0, odd: false }
    }
}

/// Builds the tree at `root`. The same seed gives the same bytes.
pub(crate) fn build(root: &Path, spec: &TreeSpec, rng: &mut Rng) {
    fs::create_dir_all(root).expect("make the tree's root");
    if spec.large > 0 {
        write_file(&root.join("large.bin"), spec.large, rng);
    }
    for n in 0..spec.small_files {
        let folder = root.join(format!("small/{:02}", n % spec.small_dirs.max(1)));
        fs::create_dir_all(&folder).expect("make a folder");
        write_file(&folder.join(format!("{n:05}.dat")), spec.small_bytes, rng);
    }
    if spec.sparse > 0 {
        sparse(&root.join("sparse.img"), spec.sparse, rng);
    }
    if spec.odd {
        odd(root, rng);
    }
}

fn odd(root: &Path, rng: &mut Rng) {
    let odd = root.join("odd");
    fs::create_dir_all(&odd).expect("make a folder");
    File::create(odd.join("empty")).expect("make a file");
    fs::create_dir_all(odd.join("empty dir/deeper")).expect("make a folder");
    for name in [
        b"with space".as_slice(),
        b" leading and trailing ",
        b"new\nline",
        b"tab\tand \x1b[31mescape",
        b"not utf-8 \xff\xfe",
        b"-rf",
        b"--option=x",
        b"host:colon",
        "gr\u{fc}n \u{1f6f0}".as_bytes(),
        b"quote'\"\\",
        b"*?[a]",
        &[b'n'; 255],
    ] {
        write_file(&odd.join(OsStr::from_bytes(name)), 1 + rng.below(40_000), rng);
    }
    let strange_dir = odd.join(OsStr::from_bytes(b"dir \xc0\n"));
    fs::create_dir_all(&strange_dir).expect("make a folder");
    write_file(&strange_dir.join("inside"), 77, rng);
    // Lengths around the limits that matter: hash blocks, packing, chunks.
    for (n, len) in
        [1u64, 1023, 1024, 1025, 65_535, 65_536, 65_537, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (8 << 20) + 3]
            .into_iter()
            .enumerate()
    {
        write_file(&odd.join(format!("edge-{n:02}-{len}")), len, rng);
    }
    symlink("with space", odd.join("link to file")).expect("make a link");
    symlink("empty dir", odd.join("link to dir")).expect("make a link");
    symlink("nowhere/at all", odd.join("dangling")).expect("make a link");
    symlink("/etc/hostname", odd.join("absolute")).expect("make a link");
    symlink("../../../..", odd.join("upward")).expect("make a link");
    symlink(OsStr::from_bytes(b"raw \xff target"), odd.join("link raw")).expect("make a link");
    make_fifo(&odd.join("fifo"));
    for (name, mode) in [("mode-400", 0o400), ("mode-640", 0o640), ("mode-755", 0o755), ("mode-444", 0o444)] {
        let path = odd.join(name);
        write_file(&path, 10, rng);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set a mode");
    }
    let closed = odd.join("read-only dir");
    fs::create_dir_all(&closed).expect("make a folder");
    write_file(&closed.join("inside"), 12, rng);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("set a mode");
    // Times with nanoseconds, one before 1970, links and folders too; folders last, as writing into them moves theirs.
    for (path, when) in [
        ("empty", "1999-12-31 23:59:59.123456789 UTC"),
        ("-rf", "1969-07-20 20:17:40.000000001 UTC"),
        ("dangling", "2001-02-03 04:05:06.700000000 UTC"),
        ("empty dir/deeper", "2010-10-10 10:10:10.101010101 UTC"),
        ("empty dir", "2011-11-11 11:11:11.111111111 UTC"),
        ("read-only dir", "2012-12-12 12:12:12.121212121 UTC"),
        (".", "2013-01-02 03:04:05.060708090 UTC"),
    ] {
        let ok = Command::new("touch").arg("-h").arg("-d").arg(when).arg("--").arg(odd.join(path)).status();
        assert!(ok.expect("touch starts").success(), "touch {path}");
    }
}

/// A file with 1 MiB of data in 16 pieces, the first and last bytes of the file among them half of the time.
fn sparse(path: &Path, len: u64, rng: &mut Rng) {
    let file = File::create(path).expect("make a file");
    file.set_len(len).expect("set a length");
    let mut piece = vec![0; 64 << 10];
    for n in 0..16u64 {
        rng.bytes(&mut piece);
        let at = match n {
            0 => 0,
            1 => len - piece.len() as u64,
            // Whole blocks, so that the same data makes the same blocks on the other side.
            _ => rng.below(len - piece.len() as u64) / 65_536 * 65_536,
        };
        file.write_all_at(&piece, at).expect("write a piece");
    }
}

/// A file of random bytes.
pub(crate) fn write_file(path: &Path, len: u64, rng: &mut Rng) {
    let mut file = File::create(path).unwrap_or_else(|e| panic!("make {}: {e}", path.display()));
    let mut block = vec![0; usize::try_from(len.min(1 << 20)).expect("at most 1 MiB")];
    let mut left = len;
    while left > 0 {
        let n = usize::try_from(left.min(1 << 20)).expect("at most 1 MiB");
        rng.bytes(&mut block[..n]);
        file.write_all(&block[..n]).expect("write a file");
        left -= n as u64;
    }
}

/// A file of one repeated byte.
pub(crate) fn fill(path: &Path, len: usize, byte: u8) {
    fs::write(path, vec![byte; len]).expect("write a file");
}

fn make_fifo(path: &Path) {
    let ok = Command::new("mkfifo").arg("--").arg(path).status().expect("mkfifo starts").success();
    assert!(ok, "mkfifo {}", path.display());
}

/// Changes one bit of a file, its times left as they were.
pub(crate) fn flip_bit(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).expect("open a file");
    let times = file.metadata().expect("metadata");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read a byte");
    byte[0] ^= 1;
    file.write_all_at(&byte, at).expect("write a byte");
    let kept = fs::FileTimes::new().set_modified(times.modified().expect("a time"));
    file.set_times(kept).expect("set times");
}
