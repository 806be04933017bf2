//! Part files and the resume journal: the document of record of what lies on disk.
//!
//! # Goals
//!
//! - A file that is being received survives the death of either process and of the machine: what was acknowledged is
//!   there, and a journal never says more than the data hold.
//! - A part is found by its destination path alone, whatever peer, transport or job it came by.
//! - Two processes never write one inode, not even when one of them was stopped and goes on years later.
//! - A final name appears at once, with the right bytes and metadata, and replaces nothing by accident.
//!
//! # Non-goals
//!
//! - Trust in old bytes. A journal says which chunks were durable; whoever resumes hashes them again before it
//!   believes so. What cannot be hashed right is received anew.
//! - Protection from the user who owns the directory, or from root. Others cannot write to it.
//! - Sharing one part among several writers.
//!
//! # Layout
//!
//! Let `P` be the destination directory of a job. All names below are in `P`, on the file system of `P`; a destination
//! on another file system is refused, because it could not be renamed to.
//!
//! ```text
//! .ccat-xfer/                     mode 0700; not a link, ours, writable by nobody else: otherwise refused, not repaired
//!   w-<16 hex digits>/            one writer: a session of one process
//!     journal                     locked exclusively (flock) for the writer's whole life
//!     <8 hex digits>.part         part files, mode 0600, by part number
//!   jobs/<32 hex digits>          one job: highest fence; beyond 100,000 of them those older than 30 days go
//!   jobs/<32 hex digits>.receipts receipts of the job's last attempt that came to its end
//!   jobs/<16 hex digits>.new      receipts of an attempt under way, locked (flock) while they are taken down
//!   n-<32 hex digits>             a folder is being copied under a new name into `P`
//!   publish.lock                  locked while a name is replaced
//! ```
//!
//! No file that is copied may have a component `.ccat-xfer` (in any case) in its path. Directories are removed when
//! they are empty, lock files and journals only by a holder of their lock.
//!
//! # Journals
//!
//! A journal is a sequence of records; so are the two files of a job. Integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length `n` of the body, at most 1 MiB |
//! | 4 | 1 | kind |
//! | 5 | 3 | 0 |
//! | 8 | 8 | sequence number |
//! | 16 | n | body |
//! | 16 + n | 16 | first 16 bytes of the BLAKE3 hash of all before it |
//!
//! The first record is a header with sequence number 0. The record after it may have any higher number; every other
//! one has one more than the one before it. (A journal that is cut back to its header goes on counting.)
//!
//! | kind | body | in |
//! |---|---|---|
//! | 1 header | `"ccatxfer"`, version u16 = 1, writer 16 bytes, created u64 (seconds since 1970 UTC) | all |
//! | 2 part | part u32, inode u64, size u64, chunk size u8 (log2), sparse u8 (0, 1), path | journal |
//! | 3 chunks | part u32, first u64, 1 to 16,384 values of 32 bytes | journal |
//! | 4 whole | part u32, inode u64, size u64, digest 32 bytes, path | journal |
//! | 5 ended | part u32 | journal |
//! | 6 fence | fence u64 | job, receipts |
//! | 7 receipt | at most 512 KiB that the engine understands | receipts |
//!
//! The writer of a job's files is the job id. A path is relative to `P`, 1 to 4,095 bytes to the end of the body, and
//! keeps the rules of [`RelPath`](crate::chunk::RelPath). The value of a chunk is its BLAKE3 chaining value at its
//! place in the file, or the root if the file has one chunk only ([`ChunkValue`](crate::chunk::ChunkValue)).
//!
//! Reading goes on to the first record that is incomplete, has a wrong check value or is out of order. What lies
//! behind it is a *torn tail*: whoever holds the lock cuts it off and syncs before adding anything. If the record that
//! stopped the reading has a right check value but an unknown kind or version, or if the header itself is damaged, the
//! journal is *foreign*: it is left as it is, and only `clean` removes it. In a job's file
//! this ends the job, and so does a tail that is complete but no record and not zeros, because a fence that cannot be
//! read must not count as none.
//!
//! What a journal says, from front to back: *part* begins a part that holds nothing, also if the number is in use (the
//! size of the file changed). *chunks* adds chunks; a value for a chunk replaces the earlier one; chunks past the end
//! of the file are ignored. *whole* says that the part file is the whole file, complete, metadata included. *ended*
//! ends the part. A part is one only if all of the following holds: `<number>.part` exists, is a regular file and no
//! link, has the inode that the record names, and has one name only. (Two names: it was published by link and unlink,
//! and the process died between the two. Its bytes must not change any more.)
//!
//! # Writing
//!
//! One folder has one writer. It makes the folder and an empty journal, takes the lock, looks whether the path still
//! names the file that it locked, writes the header, and syncs journal, folder and parts directory. A part gets the
//! next number, by O_EXCL. Chunks are verified before they are written.
//!
//! *Group commit*: (1) the data of every part of the group is synced, and the folder if it has new names; (2) *chunks*
//! and *whole* records are appended; (3) the journal is synced; (4) the group is acknowledged. Above 16 files, one
//! `syncfs(2)` does (1), where it reports errors (Linux 5.8).
//!
//! *Publication*: (1) metadata is set on the open file; (2) the file is synced; (3) whole small files get their
//! records, and the journal is synced; (4) the part is renamed to its final name without replacing, by link and unlink
//! where the file system cannot do that; (5) the final directory and the folder are synced; (6) the final name is
//! looked up again from `P` and must be that inode; (7) it is reported; (8) *ended* is appended, not synced. To
//! replace a file, step 4 is done under the lock of `publish.lock`, and only if what is there is what was there when
//! the file was begun: device, inode, size, mtime and ctime.
//!
//! *Compaction*: when nothing in a journal is alive and it has grown by 64 KiB, it is cut back to its header and
//! synced before anything is added.
//!
//! Any failed write, sync or (where the medium may be at fault) rename ends the attempt for all its files: later calls
//! refuse. A sync is never tried again, because Linux marks the failed pages clean. The next attempt finds what the
//! journals say and hashes it.
//!
//! # Taking over
//!
//! Whoever wants to write a path reads all journals without their locks. If one has a part for that path, it tries to
//! lock that journal; when it gets the lock and the path still names the locked file, it reads the journal again, cuts
//! the torn tail, removes part files that the journal does not speak of, and appends to it from then on. If the lock
//! is taken, it waits up to 5 s, then makes a part of its own, and may copy chunks from the other one, open for
//! reading only and hashed on the way. Of several parts of dead writers the one that holds most stays. Journals
//! without a path that is asked for are neither locked nor changed. Where a file system has no locks, nothing is ever
//! taken over.
//!
//! A job with a fence first raises it in its file, under that file's lock, and looks before every commit and
//! publication whether a higher one has come: a process that was stopped and goes on ends by itself there, and the
//! lock keeps it out of the files of its successor.
//!
//! # New names
//!
//! A single folder sent to a name that does not exist gets this name. The job's `P` is then the parent of the new
//! folder, where the same command, finding the folder, would go *into* it. So before the folder is made, the empty file
//! `n-<digits>` is made in `P` and the directory synced; the digits are the first 16 bytes of the BLAKE3 hash of the new
//! name, one NUL and the source's name. Whoever is to put a folder of the same name into an existing folder looks for it
//! first, and if it is there, goes on under the new name. It is removed when the sender has said `BYE` and no entry
//! failed, and by `clean --remove`.
//!
//! # Receipts
//!
//! Of a job with a fence the receipts are kept, so that they can be asked for again. A job without one leaves nothing
//! behind. The file has, behind its header, a fence record (the attempt's), a receipt record with the name of the peer
//! that began the attempt (at most 255 bytes of UTF-8; none if that was this machine's user), and receipt records that
//! hold messages of the wire protocol as they were said: `RECEIPTS` and `ENTRY_FAILED`, and `TREE_RECEIPT` as the last.
//!
//! They are taken down under a name of their own as they arise; at the end (1) the file is synced, (2) the fence is
//! looked at, (3) it is renamed in place of an earlier attempt's, (4) the directory is synced, and only then the sender
//! hears that the tree is complete. So a file under the final name is whole, and any damage to it is an error. A file
//! under the first name whose lock is free is removed by whoever keeps receipts next. More than 1 GiB of one job is not
//! kept at all; of more than 1,024 jobs the receipts that were made first are removed.
//!
//! # Why a crash does no harm
//!
//! - Before (1) of a commit, or during it: the journal does not speak of the chunks. Their bytes are received again.
//! - Between (1) and (3): the journal speaks of all, some or none of them, and those it speaks of are durable.
//! - After (3): all are there.
//! - Before (4) of a publication: the part is there, as its journal says. Its mode may keep its owner out; whoever
//!   takes it over gives itself access again.
//! - Between (4) and (5): the final name is there or not, and its bytes are right in both cases.
//! - After (5): the name is durable. A journal that still speaks of the part speaks of a file that is not there.
//! - During link and unlink: both names, one inode; the part is no part, and its name is removed by whoever takes the
//!   folder over.
//! - While a folder is made or removed: it has no journal or a blank one; it holds nothing and is removed by whoever
//!   ends a session next.
//!
//! # Assumptions
//!
//! The disk does what it says it synced; read-back exists because some do not. Renaming is atomic. `flock` excludes,
//! also between machines where several mount the same file system (NFS with `local_lock=flock` and Lustre with
//! `localflock` do not do that: do not let two machines write to one destination there). Inode numbers stay the same
//! over a remount; where they do not, parts are received anew.

pub mod record;

#[cfg(feature = "engine")]
mod claims;
#[cfg(feature = "engine")]
mod clean;
#[cfg(feature = "engine")]
mod commit;
#[cfg(feature = "engine")]
mod error;
#[cfg(feature = "engine")]
mod folder;
#[cfg(feature = "engine")]
mod jobs;
#[cfg(feature = "engine")]
mod link;
#[cfg(feature = "engine")]
mod log;
#[cfg(feature = "engine")]
mod names;
#[cfg(feature = "engine")]
mod part;
#[cfg(feature = "engine")]
mod publish;
#[cfg(feature = "engine")]
mod receipts;
#[cfg(feature = "engine")]
mod small;
#[cfg(feature = "engine")]
mod store;
#[cfg(feature = "engine")]
mod writer;

#[cfg(feature = "engine")]
pub use self::{
    clean::{LeftPart, PartId, Which, list_parts, parts_path, remove_unlocked},
    commit::GroupItem,
    error::JournalError,
    jobs::{JobState, Jobs},
    link::PublishLink,
    names::NewName,
    part::{HeldRange, Part, SeedFile},
    publish::{Publish, PublishMode, PublishOutcome, Staged},
    receipts::{KeptReceipts, MAX_KEPT_BYTES, MAX_KEPT_JOBS, ReceiptWriter},
    small::SmallPart,
    store::{PartStore, StoreOptions},
};

#[cfg(feature = "engine")]
#[cfg(test)]
mod tests;
