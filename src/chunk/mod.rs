//! What a chunk is: the unit of hashing and repair.
//!
//! A file is cut into aligned slices of one power-of-two size. Each slice is a whole subtree of the file's BLAKE3 tree,
//! so slices can be hashed in any order and on any thread, and their chaining values merge to the root that `b3sum`
//! prints. Nothing here knows of clocks, threads, files or networks.

mod digest;
mod layout;
mod path;
mod set;

pub use digest::{ChunkValue, Digest, DigestParseError, RootBuilder, RootError, chunk_value};
pub use layout::{ByteRange, ChunkSize, ChunkSizeError};
pub use path::{MAX_NAME_BYTES, MAX_PATH_BYTES, PathError, RelPath, escape_bytes, plain_text};
pub use set::ChunkSet;
