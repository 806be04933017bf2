use std::fmt;

/// The size of every chunk of a file but its last: a power of two from 64 KiB to 64 MiB.
///
/// A power of two of at least 1 KiB makes each aligned chunk a complete BLAKE3 subtree (BLAKE3 paper, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkSize {
    log2: u8,
}

/// A chunk size that is not a power of two within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk size {0} is not a power of two from 64 KiB to 64 MiB")]
pub struct ChunkSizeError(pub u64);

impl ChunkSize {
    /// 4 MiB: large enough that per-chunk work vanishes, small enough that repair and stream limits stay cheap.
    pub const DEFAULT: Self = Self { log2: 22 };
    /// Smallest size accepted, as a power of two.
    pub const MIN_LOG2: u8 = 16;
    /// Largest size accepted, as a power of two.
    pub const MAX_LOG2: u8 = 26;

    /// A size given in bytes.
    pub fn from_bytes(bytes: u64) -> Result<Self, ChunkSizeError> {
        let log2 = u8::try_from(bytes.trailing_zeros()).unwrap_or(u8::MAX);
        if bytes.is_power_of_two() {
            Self::from_log2(log2).map_err(|_| ChunkSizeError(bytes))
        } else {
            Err(ChunkSizeError(bytes))
        }
    }

    /// A size given as its base-2 logarithm, as it travels on the wire.
    pub fn from_log2(log2: u8) -> Result<Self, ChunkSizeError> {
        if (Self::MIN_LOG2..=Self::MAX_LOG2).contains(&log2) {
            Ok(Self { log2 })
        } else {
            Err(ChunkSizeError(1u64.checked_shl(u32::from(log2)).unwrap_or(0)))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.log2
    }

    /// The size in bytes, as a buffer length.
    pub fn buffer_bytes(self) -> usize {
        1 << self.log2
    }

    /// The base-2 logarithm of the size.
    pub fn log2(self) -> u8 {
        self.log2
    }

    /// How many chunks a file of `file_len` bytes has; an empty file has none.
    pub fn count(self, file_len: u64) -> u64 {
        file_len.div_ceil(self.bytes())
    }

    /// The bytes of chunk `index` of a file of `file_len` bytes, or `None` past its end.
    pub fn range(self, index: u64, file_len: u64) -> Option<ByteRange> {
        let start = index.checked_mul(self.bytes())?;
        (start < file_len).then(|| ByteRange { start, len: self.bytes().min(file_len - start) })
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.log2 >= 20 {
            write!(f, "{} MiB", 1 << (self.log2 - 20))
        } else {
            write!(f, "{} KiB", 1 << (self.log2 - 10))
        }
    }
}

/// A contiguous run of bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Number of bytes; never 0.
    pub len: u64,
}

impl ByteRange {
    /// The offset just past the last byte.
    pub fn end(self) -> u64 {
        self.start + self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_tile_the_file() {
        let size = ChunkSize::from_log2(16).unwrap();
        let c = size.bytes();
        for len in [0, 1, c - 1, c, c + 1, 2 * c - 1, 2 * c, 2 * c + 1, 7 * c + 3] {
            let mut next = 0;
            for index in 0..size.count(len) {
                let range = size.range(index, len).unwrap();
                assert_eq!(range.start, next);
                next = range.end();
            }
            assert_eq!(next, len);
            assert_eq!(size.range(size.count(len), len), None);
        }
    }

    #[test]
    fn sizes_outside_the_limits_are_refused() {
        for bytes in [0, 1, 3, 1 << 15, (1 << 16) + 1, 1 << 27, u64::MAX] {
            assert!(ChunkSize::from_bytes(bytes).is_err(), "{bytes}");
        }
        assert!(ChunkSize::from_log2(255).is_err());
        assert_eq!(ChunkSize::from_bytes(4 << 20).unwrap(), ChunkSize::DEFAULT);
        assert_eq!(ChunkSize::DEFAULT.range(u64::MAX, u64::MAX), None);
    }
}
