//! Buffers: a fixed pool, which is the limit of memory.
//!
//! Every byte of a file that is in memory sits in a [`Buffer`] of the process's one [`Pool`]. A stage that needs a buffer
//! waits for one; nothing else slows the stages before it down. Buffers start on a page boundary, so that they serve
//! `O_DIRECT` as they are, and go home when dropped, also out of a [`bytes::Bytes`] that a transport still holds.

mod pool;

pub use pool::{Buffer, PAGE_BYTES, Pool};
