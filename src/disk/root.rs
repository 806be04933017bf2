use std::{
    collections::HashMap,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Dir, DiskError, DiskErrorKind, Entries, FileKind, FileMeta, Stat, error::Refusal, space};
use crate::chunk::RelPath;

/// Directory of a destination in which parts, journals and locks live. No name of a copy may be spelled like it.
pub const RESERVED_NAME: &[u8] = b".ccat-xfer";

/// Whether a component of `path` is [`RESERVED_NAME`], in any case: some file systems do not tell cases apart.
pub fn is_reserved(path: &RelPath) -> bool {
    path.components().any(|name| name.eq_ignore_ascii_case(RESERVED_NAME))
}

/// A path for a human: what lies behind a handle of [`Root::handle_path`] is named without it, because the number says
/// nothing to anybody, least of all to a peer.
pub fn shown_path(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    let Some(rest) = bytes.strip_prefix(HANDLES) else { return bytes };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    match rest.split_at(digits) {
        ([], _) => bytes,
        (_, [] | [b'/']) => b".",
        (_, [b'/', below @ ..]) => below,
        _ => bytes,
    }
}

/// Where the kernel shows a process its open files.
const HANDLES: &[u8] = b"/proc/self/fd/";

/// An open directory, beneath which every lookup stays.
///
/// Lookups refuse symbolic links in every component (`openat2(2)` with RESOLVE_BENEATH, NO_SYMLINKS, NO_MAGICLINKS;
/// where the kernel has no such call, one `openat(2)` with O_NOFOLLOW per component). The root itself may be reached
/// through links: its path comes from the operator.
#[derive(Debug)]
pub struct Root {
    dir: Arc<Dir>,
    path: PathBuf,
    // Cleared for good once the kernel says that it has no openat2.
    one_call: AtomicBool,
    // Handles of directories used lately; emptied when full, so that it needs no order.
    cache: Mutex<HashMap<RelPath, Arc<Dir>>>,
}

impl Root {
    /// Opens a directory that exists.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let bytes = shown_path(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| DiskError::new("open directory", bytes, e))?;
        Ok(Self {
            dir: Arc::new(Dir::new(fd, bytes.to_vec())),
            path: path.to_owned(),
            one_call: AtomicBool::new(true),
            cache: Mutex::default(),
        })
    }

    /// A directory beneath this one as a root of its own: nothing looked up through it leaves it.
    pub fn beneath(&self, path: &RelPath) -> Result<Self, DiskError> {
        let dir = self.dir_now(path)?;
        let shown = self.path.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
        Ok(Self {
            dir,
            path: shown,
            one_call: AtomicBool::new(self.one_call.load(Ordering::Relaxed)),
            cache: Mutex::default(),
        })
    }

    /// A handle of this directory, and a path that leads to it through the handle whatever is renamed meanwhile. The path
    /// is good as long as the handle is open, in this process.
    pub fn handle_path(&self) -> Result<(OwnedFd, PathBuf), DiskError> {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        let handle = rustix::io::fcntl_dupfd_cloexec(self.dir.as_fd(), 3)
            .map_err(|e| DiskError::new("keep a handle of", self.dir.display_path(), e))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        Ok((handle, path))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root's own handle.
    pub fn handle(&self) -> &Arc<Dir> {
        &self.dir
    }

    /// An open directory beneath the root. A handle used lately may be returned again, so the directory may have been
    /// renamed since; see [`Root::dir_now`].
    pub fn dir(&self, path: &RelPath) -> Result<Arc<Dir>, DiskError> {
        if path.is_root() {
            return Ok(Arc::clone(&self.dir));
        }
        if let Some(dir) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(Arc::clone(dir));
        }
        let dir = self.dir_now(path)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_DIRS {
            cache.clear();
        }
        cache.insert(path.clone(), Arc::clone(&dir));
        Ok(dir)
    }

    /// The directory that has this path now.
    pub fn dir_now(&self, path: &RelPath) -> Result<Arc<Dir>, DiskError> {
        if path.is_root() {
            return Ok(Arc::clone(&self.dir));
        }
        let full = self.dir.child(path.as_bytes());
        match self.open_beneath(path) {
            Ok(fd) => Ok(Arc::new(Dir::new(fd, full))),
            Err(e) => Err(DiskError::new("open directory", full, e)),
        }
    }

    /// Forgets handles, after directories were renamed or removed.
    pub fn forget_handles(&self) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn open_beneath(&self, path: &RelPath) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if self.one_call.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            for _ in 0..LOOKUP_TRIES {
                match rustix::fs::openat2(&self.dir, path.as_bytes(), flags, Mode::empty(), resolve) {
                    // A rename elsewhere disturbed the lookup (openat2(2)).
                    Err(Errno::AGAIN) => {}
                    Err(Errno::NOSYS) => {
                        self.one_call.store(false, Ordering::Relaxed);
                        break;
                    }
                    // Some sandboxes answer so to calls they do not know; a true refusal comes again below.
                    Err(Errno::PERM) => break,
                    // Here it means that the path would have left the root.
                    Err(Errno::XDEV) => return Err(Errno::LOOP),
                    other => return other,
                }
            }
        }
        let mut current: Option<OwnedFd> = None;
        for name in path.components() {
            let flags = flags | OFlags::NOFOLLOW;
            let next = match &current {
                None => rustix::fs::openat(&self.dir, name, flags, Mode::empty()),
                Some(fd) => rustix::fs::openat(fd, name, flags, Mode::empty()),
            };
            current = Some(next.map_err(|e| {
                let stat = match &current {
                    None => Stat::of_name(&self.dir, name),
                    Some(fd) => Stat::of_name(fd, name),
                };
                // The kernel says ENOTDIR of a link that was not followed.
                if e == Errno::NOTDIR && stat.is_ok_and(|s| s.kind == FileKind::Symlink) { Errno::LOOP } else { e }
            })?);
        }
        current.ok_or(Errno::INVAL)
    }

    /// Looks up one component at a time from now on, as where the kernel has no `openat2(2)`.
    #[cfg(test)]
    pub(crate) fn walk_only(self) -> Self {
        self.one_call.store(false, Ordering::Relaxed);
        self
    }

    /// The directory of a path and its last name. The root has no such name and is refused.
    pub fn parent<'a>(&self, path: &'a RelPath) -> Result<(Arc<Dir>, &'a [u8]), DiskError> {
        let Some((dir, name)) = path.split_last() else {
            return Err(DiskError::new("use as a file", self.dir.display_path(), Errno::ISDIR));
        };
        Ok((self.dir(&dir)?, name))
    }

    /// What a path stands for, itself and not what it links to; `None` if it or a directory above it does not exist.
    pub fn stat(&self, path: &RelPath) -> Result<Option<Stat>, DiskError> {
        if path.is_root() {
            return self.dir.stat().map(Some);
        }
        match self.parent(path) {
            Ok((dir, name)) => dir.stat_name(name),
            Err(e) if e.kind() == DiskErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What symbolic link `path` points to.
    pub fn read_link(&self, path: &RelPath) -> Result<Vec<u8>, DiskError> {
        let (dir, name) = self.parent(path)?;
        dir.read_link(name)
    }

    /// The names in directory `path`.
    pub fn entries(&self, path: &RelPath) -> Result<Entries, DiskError> {
        self.dir(path)?.entries()
    }

    /// Applies metadata to what has this path: a directory, a file, or a link itself.
    ///
    /// It is durable once [`Root::sync`], or the file's own sync, has returned.
    pub fn set_metadata(&self, path: &RelPath, meta: &FileMeta) -> Result<(), DiskError> {
        self.refuse_reserved("set metadata of", path)?;
        let error = |e: Errno| DiskError::new("set metadata of", self.dir.child(path.as_bytes()), e);
        if path.is_root() {
            return meta.apply(&self.dir).map_err(error);
        }
        let (dir, name) = self.parent(path)?;
        match dir.stat_name(name)?.map(|stat| stat.kind) {
            None => Err(error(Errno::NOENT)),
            Some(FileKind::Symlink) => dir.set_link_metadata(name, meta),
            Some(FileKind::Dir) => meta.apply(&self.dir_now(path)?).map_err(error),
            Some(FileKind::File | FileKind::Other) => meta.apply(dir.open_read(name)?).map_err(error),
        }
    }

    /// Creates a symbolic link if its name is free (`Exists` otherwise). The target may be any bytes but none: it is
    /// kept, never followed. The directory is not synced.
    pub fn symlink(&self, target: &[u8], path: &RelPath) -> Result<(), DiskError> {
        self.refuse_reserved("create link", path)?;
        let (dir, name) = self.parent(path)?;
        dir.create_symlink(target, name)
    }

    /// Makes everything on the root's file system durable, directories included.
    pub fn sync(&self) -> Result<(), DiskError> {
        space::sync_file_system(&self.dir)
    }

    /// Bytes that this user may still write.
    pub fn free_bytes(&self) -> Result<u64, DiskError> {
        let fs = rustix::fs::fstatvfs(&self.dir)
            .map_err(|e| DiskError::new("examine the file system of", self.dir.display_path(), e))?;
        Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    pub(crate) fn refuse_reserved(&self, operation: &'static str, path: &RelPath) -> Result<(), DiskError> {
        if is_reserved(path) {
            return Err(DiskError::refused(operation, self.dir.child(path.as_bytes()), Refusal::Reserved));
        }
        Ok(())
    }
}

/// Enough for the directories that files in flight share, few beside the limit on open files (1,024 by default).
const CACHED_DIRS: usize = 64;
/// Lookups disturbed by renames before one component is looked up at a time.
const LOOKUP_TRIES: usize = 32;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
        sync::atomic::AtomicBool,
        thread,
    };

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    use super::*;

    fn path(bytes: &[u8]) -> RelPath {
        RelPath::new(bytes).unwrap()
    }

    fn both_lookups(dir: &Path) -> [Root; 2] {
        [Root::open(dir).unwrap(), Root::open(dir).unwrap().walk_only()]
    }

    /// Seen to fail with O_NOFOLLOW left out of the walk, and with NO_SYMLINKS left out of the one call.
    #[test]
    fn links_are_refused_in_every_component() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir_all(inside.join("real/deep")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "s").unwrap();
        symlink("../outside", inside.join("out")).unwrap();
        symlink("real", inside.join("in")).unwrap();
        symlink("../../outside", inside.join("real/out")).unwrap();
        symlink("/proc/self/root", inside.join("magic")).unwrap();
        symlink("../outside/secret", inside.join("file")).unwrap();
        for root in both_lookups(&inside) {
            assert!(root.dir(&path(b"real/deep")).is_ok());
            for link in [&b"out"[..], b"in", b"real/out", b"magic", b"in/deep", b"real/out/x", b"magic/tmp"] {
                assert_eq!(root.dir(&path(link)).unwrap_err().kind(), DiskErrorKind::Escape, "{}", path(link));
            }
            for made in [&b"out/new"[..], b"in/new", b"real/out/new/deep"] {
                assert_eq!(root.make_dirs(&path(made), 0o755).unwrap_err().kind(), DiskErrorKind::Escape);
                assert_eq!(root.symlink(b"x", &path(made)).unwrap_err().kind(), DiskErrorKind::Escape);
            }
            let opened = super::super::SourceFile::open(&root, &path(b"file"));
            assert_eq!(opened.unwrap_err().kind(), DiskErrorKind::Escape);
            assert_eq!(root.stat(&path(b"file")).unwrap().unwrap().kind, FileKind::Symlink);
            assert_eq!(root.stat(&path(b"none/at/all")).unwrap(), None);
        }
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 1);
    }

    #[test]
    fn reserved_names_are_made_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for bytes in [&b".ccat-xfer"[..], b"a/.ccat-xfer/b", b".CCAT-xfer/jobs"] {
            assert_eq!(root.make_dirs(&path(bytes), 0o755).unwrap_err().kind(), DiskErrorKind::Reserved);
            assert_eq!(root.symlink(b"t", &path(bytes)).unwrap_err().kind(), DiskErrorKind::Reserved);
            let set = root.set_metadata(&path(bytes), &FileMeta::default());
            assert_eq!(set.unwrap_err().kind(), DiskErrorKind::Reserved);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// Inodes below a directory, itself included.
    fn inodes(at: &Path) -> BTreeSet<u64> {
        let mut found = BTreeSet::from([fs::symlink_metadata(at).unwrap().ino()]);
        if fs::symlink_metadata(at).unwrap().is_dir() {
            fs::read_dir(at).unwrap().for_each(|e| found.extend(inodes(&e.unwrap().path())));
        }
        found
    }

    /// 10,000 generated paths of pieces that have broken other programs: nothing is made outside the root.
    ///
    /// Seen to fail with `Dir` made to pass names on as they are.
    #[test]
    fn no_generated_path_leaves_the_root() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", inside.join("l")).unwrap();
        symlink("../../outside", inside.join("a/l")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        let outside = |dir: &Path| {
            let mut all = inodes(dir);
            inodes(&inside).iter().for_each(|ino| _ = all.remove(ino));
            all
        };
        let before = outside(dir.path());
        let pieces: [&[u8]; 20] = [
            b"..",
            b".",
            b"",
            b"/",
            b"//",
            b"a",
            b"b",
            b"l",
            b"up",
            b"\0",
            b"../",
            b"/..",
            b"outside",
            b"...",
            b"..\xff",
            b"\xc0\xae\xc0\xae",
            b"%2e%2e",
            b"\\..\\",
            b"~",
            b"\n",
        ];
        for root in both_lookups(&inside) {
            for _ in 0..5_000 {
                let mut bytes = Vec::new();
                for _ in 0..rng.random_range(1..6) {
                    bytes.extend_from_slice(pieces[rng.random_range(0..pieces.len())]);
                    if rng.random_bool(0.6) {
                        bytes.push(b'/');
                    }
                }
                // As a name, without the checks of a path ...
                let _ = root.handle().create_file(&bytes);
                let _ = root.handle().create_dir(&bytes, 0o700);
                let _ = root.handle().create_symlink(b"x", &bytes);
                // ... and as a path that passed them.
                let Ok(path) = RelPath::new(bytes) else { continue };
                let _ = root.make_dirs_unsynced(&path, 0o755);
                let _ = root.symlink(b"../outside", &path);
                if let Ok((dir, name)) = root.parent(&path) {
                    let _ = dir.create_file(name);
                    let _ = dir.rename(name, root.handle(), name);
                }
            }
        }
        assert_eq!(outside(dir.path()), before);
    }

    /// A racer exchanges a directory and a link to the outside as fast as it can.
    ///
    /// Seen to fail with NO_SYMLINKS and BENEATH left out of the one call, and with O_NOFOLLOW left out of the walk.
    #[test]
    fn a_link_swapped_in_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir_all(inside.join("d")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", inside.join("l")).unwrap();
        let done = AtomicBool::new(false);
        let swaps = thread::scope(|scope| {
            let racer = scope.spawn(|| {
                let (a, b) = (inside.join("d"), inside.join("l"));
                let mut swaps = 0u32;
                while !done.load(Ordering::Relaxed) {
                    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                    swaps += 1;
                }
                swaps
            });
            let mut made = 0;
            for root in both_lookups(&inside) {
                for i in 0..10_000u32 {
                    root.forget_handles();
                    // Files stay where they were made, to be counted there.
                    let name = format!("d/f{:?}{i}", root.one_call);
                    if let Ok((dir, name)) = root.parent(&path(name.as_bytes()))
                        && dir.create_file(name).is_ok()
                    {
                        made += 1;
                    }
                    let _ = root.make_dirs_unsynced(&path(b"d/x"), 0o755);
                }
            }
            done.store(true, Ordering::Relaxed);
            assert!(made > 100, "the racer left only {made} files to be made");
            racer.join().unwrap()
        });
        println!("{swaps} swaps");
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn directories_are_made_listed_and_given_their_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(root.make_dirs(&path(b"a/b/c"), 0o700).unwrap());
        assert!(!root.make_dirs(&path(b"a/b"), 0o700).unwrap());
        assert!(!root.make_dirs(&RelPath::root(), 0o700).unwrap());
        fs::write(dir.path().join("a/file"), "x").unwrap();
        assert_eq!(root.make_dirs(&path(b"a/file/x"), 0o700).unwrap_err().kind(), DiskErrorKind::Exists);
        root.symlink(b"\xff nowhere", &path(b"a/link")).unwrap();
        assert_eq!(root.symlink(b"x", &path(b"a/link")).unwrap_err().kind(), DiskErrorKind::Exists);
        assert_eq!(root.read_link(&path(b"a/link")).unwrap(), b"\xff nowhere");
        let names: BTreeSet<Vec<u8>> = root.entries(&path(b"a")).unwrap().map(|e| e.unwrap().name).collect();
        assert_eq!(names, [b"b".to_vec(), b"file".to_vec(), b"link".to_vec()].into());

        let mtime = super::super::Timestamp { seconds: -5, nanoseconds: 123_456_789 };
        let meta = FileMeta { mode: Some(0o7751), mtime: Some(mtime), owner: None };
        for name in [&b"a/b"[..], b"a/file", b"a/link"] {
            root.set_metadata(&path(name), &meta).unwrap();
            let stat = root.stat(&path(name)).unwrap().unwrap();
            assert_eq!(stat.identity.mtime, mtime);
            if stat.kind != FileKind::Symlink {
                assert_eq!(stat.mode, 0o751, "setuid, setgid and sticky are not taken over");
            }
        }
        let me = fs::metadata(dir.path()).unwrap();
        let owned = FileMeta { owner: Some((me.uid(), me.gid())), ..meta };
        root.set_metadata(&path(b"a/file"), &owned).unwrap();
        assert_eq!(root.stat(&path(b"a/file")).unwrap().unwrap().mode, 0o7751);
        assert!(root.free_bytes().unwrap() > 0);
        root.sync().unwrap();
    }
}
