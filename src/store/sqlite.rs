//! What is SQLite's alone: how a file is opened, and what the time is.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::error::StoreError;

/// The wall clock, for columns that people read. Leases go by [`boot_time_us`].
pub(super) const NOW_US: &str = "(CAST(unixepoch('subsec') * 1000000 AS INTEGER))";

/// A writer waits this long for the lock before its transaction is a conflict.
const BUSY: Duration = Duration::from_secs(10);
const ACQUIRE: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// File systems between machines, as /proc/self/mountinfo calls them. SQLite's write-ahead log needs memory that all
/// its processes share, and locks that hold.
const NETWORK: &[&str] = &[
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "glusterfs",
    "ocfs2",
    "gfs2",
    "coda",
    "orangefs",
    "davfs",
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.davfs",
    "fuse.mount-s3",
    "fuse.goofys",
    "fuse.juicefs",
];

/// One writer, so that processes of one machine queue at the lock and not within it, and some readers, which in WAL
/// mode wait for nobody.
#[derive(Clone, Debug)]
pub(super) struct Sqlite {
    pub(super) writer: SqlitePool,
    pub(super) reader: SqlitePool,
    pub(super) boot: String,
}

/// The path in `sqlite:PATH` or `sqlite://PATH`.
pub(super) fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let path = url.strip_prefix("sqlite:").map(|rest| rest.strip_prefix("//").unwrap_or(rest)).unwrap_or_default();
    if path.is_empty() || path.contains(":memory:") || path.contains('?') {
        return Err(StoreError::Address(format!("'{url}' is not sqlite:PATH; a file is needed, without options")));
    }
    Ok(PathBuf::from(path))
}

pub(super) async fn open(path: &Path) -> Result<Sqlite, StoreError> {
    let unavailable = |e: std::io::Error| StoreError::Unavailable(format!("{}: {e}", path.display()));
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = fs::canonicalize(folder).map_err(unavailable)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(unavailable)?;
    if let Some(kind) = file_system(&mounts, &folder).filter(|kind| NETWORK.contains(kind)) {
        return Err(StoreError::NetworkFileSystem { path: folder.display().to_string(), kind: kind.to_owned() });
    }
    // Made here for its mode: whoever may read the file reads everything. The log beside it takes the same mode.
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(unavailable(e)),
        _ => {}
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(unavailable)?.trim().to_owned();
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        // NORMAL would lose committed rows in a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .foreign_keys(true)
        // So that REPLACE fires the triggers that refuse deletion.
        .pragma("recursive_triggers", "ON")
        .pragma("trusted_schema", "OFF");
    let writer =
        SqlitePoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE).connect_with(options.clone()).await?;
    let reader = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE)
        .connect_lazy_with(options.pragma("query_only", "ON"));
    Ok(Sqlite { writer, reader, boot })
}

/// Microseconds since this machine started, with the time that it slept. Nobody can set it.
pub(super) fn boot_time_us() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1000)
}

/// The kind of file system below which an absolute path lies: that of the longest mount point, the last one where
/// several lie upon each other.
fn file_system<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for line in mountinfo.lines() {
        let mut words = line.split(' ');
        let Some(point) = words.nth(4).map(unescape) else { continue };
        let Some(kind) = words.skip_while(|w| *w != "-").nth(1) else { continue };
        let depth = Path::new(&point).components().count();
        if path.starts_with(&point) && best.is_none_or(|(most, _)| depth >= most) {
            best = Some((depth, kind));
        }
    }
    best.map(|(_, kind)| kind)
}

/// The kernel writes space, tab, newline and backslash in a mount point as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_that_of_the_longest_mount_point() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      30 22 0:40 / /data rw,nosuid shared:1 master:2 - nfs4 server:/x rw\n\
                      31 30 8:2 / /data/my\\040disk rw - xfs /dev/sdb rw\n\
                      32 22 0:41 / /home rw - ext4 /dev/sdc rw\n\
                      33 32 0:42 / /home rw - fuse.sshfs host: rw\n\
                      a line that is none\n";
        for (path, kind) in [
            ("/", "ext4"),
            ("/var", "ext4"),
            ("/database", "ext4"),
            ("/data", "nfs4"),
            ("/data/a/b", "nfs4"),
            ("/data/my disk/x", "xfs"),
            ("/home/me", "fuse.sshfs"),
        ] {
            assert_eq!(file_system(mounts, Path::new(path)), Some(kind), "{path}");
        }
    }

    #[test]
    fn addresses_name_a_file() {
        assert_eq!(path_of("sqlite:/a/b.db").unwrap(), Path::new("/a/b.db"));
        assert_eq!(path_of("sqlite:///a/b.db").unwrap(), Path::new("/a/b.db"));
        assert_eq!(path_of("sqlite:b.db").unwrap(), Path::new("b.db"));
        for url in ["sqlite:", "sqlite::memory:", "sqlite:a?mode=ro", "/a/b.db"] {
            assert!(path_of(url).is_err(), "{url}");
        }
    }

    #[test]
    fn the_boot_clock_goes_on() {
        let before = boot_time_us();
        assert!(before > 0 && boot_time_us() >= before);
    }
}
