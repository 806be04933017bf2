//! Buffers: a fixed pool, which is the limit of memory.
