//! Files beneath a root.
//!
//! A [`Root`] is an open directory; every name that a peer chose is looked up beneath it and never through a symbolic
//! link. Names are created, renamed and removed in an open [`Dir`] by one plain component, because `openat2(2)` covers
//! opening only. Sources are read with `pread(2)` and never mapped: a truncated mapping raises SIGBUS.
//!
//! Nothing here retries a failed sync: Linux marks the failed pages clean, so that a second `fsync(2)` succeeds over
//! lost data. What follows from an error is decided above.

mod dir;
mod durable;
mod error;
pub mod fault;
mod lock;
mod meta;
mod readback;
mod root;
mod source;
mod space;
mod sparse;

pub use dir::{Dir, Entries, Entry};
pub use durable::write_file;
pub use error::{DiskError, DiskErrorKind};
pub use lock::{LockOutcome, lock_file};
pub use meta::{FileKind, FileMeta, Identity, Stat, Timestamp};
pub use readback::{ReadBack, ReadMethod, read_back, read_back_watched};
pub use root::{RESERVED_NAME, Root, is_reserved, shown_path};
pub use source::SourceFile;
pub use space::{Reservation, SyncScope, sync_file_system, sync_scope};
pub use sparse::{Extent, next_data, punch_hole, write_sparse};
