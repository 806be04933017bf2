use super::{Malformed, ProtocolError};
use crate::chunk::{Digest, RelPath, plain_text};

/// Takes fields from the front of bytes that a peer wrote. All integers are little-endian.
///
/// Every method fails with the name given to [`Reader::new`], and no length read from the bytes is used before it was
/// compared with what is there and with its maximum.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`, which errors will call `what`.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    /// The error that these bytes deserve.
    pub fn error(&self, why: Malformed) -> ProtocolError {
        ProtocolError::Malformed { what: self.what, why }
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// Exactly `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], ProtocolError> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or_else(|| self.error(Malformed::Truncated))?;
        self.bytes = tail;
        Ok(head)
    }

    /// Exactly `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (head, tail) = self.bytes.split_first_chunk().ok_or_else(|| self.error(Malformed::Truncated))?;
        self.bytes = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, ProtocolError> {
        Ok(self.array::<1>()?[0])
    }

    /// One byte that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, ProtocolError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(self.error(Malformed::Unknown(n.into()))),
        }
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self) -> Result<i64, ProtocolError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A 32-byte digest.
    pub fn digest(&mut self) -> Result<Digest, ProtocolError> {
        self.array().map(Digest)
    }

    /// A digest behind a presence byte.
    pub fn optional_digest(&mut self) -> Result<Option<Digest>, ProtocolError> {
        if self.bool()? { self.digest().map(Some) } else { Ok(None) }
    }

    /// Bytes behind a 16-bit length of at most `limit`.
    pub fn bytes16(&mut self, limit: u16) -> Result<&'a [u8], ProtocolError> {
        let found = self.u16()?;
        if found > limit {
            return Err(self.error(Malformed::TooLong { found: found.into(), limit: limit.into() }));
        }
        self.take(found.into())
    }

    /// Text behind a 16-bit length; what is not UTF-8 or could steer a terminal is replaced, since it only ever reaches a
    /// human.
    pub fn text16(&mut self, limit: u16) -> Result<String, ProtocolError> {
        let mut text = plain_text(self.bytes16(limit)?);
        // A replacement is longer than what it replaces, and what was accepted must fit when it is sent on.
        text.truncate(text.floor_char_boundary(limit.into()));
        Ok(text)
    }

    /// A path behind a 16-bit length.
    pub fn path(&mut self) -> Result<RelPath, ProtocolError> {
        let bytes = self.bytes16(4096)?;
        RelPath::new(bytes).map_err(|e| self.error(e.into()))
    }

    /// A 32-bit count of items of at least `item_bytes` each, compared with the bytes that are left.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, ProtocolError> {
        let found = self.u32()?;
        let limit = self.bytes.len() / item_bytes.max(1);
        usize::try_from(found)
            .ok()
            .filter(|&n| n <= limit)
            .ok_or_else(|| self.error(Malformed::TooLong { found: found.into(), limit: limit as u64 }))
    }

    /// Ends the reading; bytes left over are an error.
    pub fn finish(self) -> Result<(), ProtocolError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.error(Malformed::Trailing)) }
    }
}

/// Appends fields to a message. The counterpart of [`Reader`].
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.raw(&[v])
    }

    /// One byte, 0 or 1.
    pub fn bool(&mut self, v: bool) -> &mut Self {
        self.u8(v.into())
    }

    /// Two bytes.
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// Eight bytes, signed.
    pub fn i64(&mut self, v: i64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }

    /// A digest behind a presence byte.
    pub fn optional_digest(&mut self, v: Option<&Digest>) -> &mut Self {
        match v {
            Some(d) => self.bool(true).raw(&d.0),
            None => self.bool(false),
        }
    }

    /// Bytes behind a 16-bit length; what is longer than `limit` is cut, which only text may be.
    pub fn bytes16(&mut self, bytes: &[u8], limit: u16) -> &mut Self {
        let cut = bytes.get(..usize::from(limit)).unwrap_or(bytes);
        self.u16(u16::try_from(cut.len()).unwrap_or(limit)).raw(cut)
    }

    /// A path behind a 16-bit length.
    pub fn path(&mut self, path: &RelPath) -> &mut Self {
        self.bytes16(path.as_bytes(), 4096)
    }

    /// A 32-bit count.
    pub fn count(&mut self, n: usize) -> &mut Self {
        self.u32(u32::try_from(n).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_text_keeps_its_limit() {
        let mut bytes = 9u16.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"abc\xff\xff\xff\xff\xff\xff");
        let mut reader = Reader::new(&bytes, "test");
        assert_eq!(reader.text16(9).as_deref(), Ok("abc\u{fffd}\u{fffd}"));
    }

    #[test]
    fn declared_counts_are_compared_with_what_is_there() {
        let mut w = Writer::new();
        w.u32(u32::MAX).raw(&[0; 64]);
        let bytes = w.into_bytes();
        assert!(matches!(
            Reader::new(&bytes, "list").count(32),
            Err(ProtocolError::Malformed { why: Malformed::TooLong { limit: 2, .. }, .. })
        ));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let mut w = Writer::new();
        w.u8(1).u16(2).u32(3).u64(4).i64(-5).optional_digest(Some(&Digest([7; 32]))).bytes16(b"abc", 10);
        let bytes = w.into_bytes();
        let read = |bytes: &[u8]| -> Result<(), ProtocolError> {
            let mut r = Reader::new(bytes, "x");
            r.u8()?;
            r.u16()?;
            r.u32()?;
            r.u64()?;
            r.i64()?;
            r.optional_digest()?;
            r.bytes16(10)?;
            r.finish()
        };
        assert!(read(&bytes).is_ok());
        for n in 0..bytes.len() {
            assert!(read(&bytes[..n]).is_err(), "{n}");
        }
    }
}
