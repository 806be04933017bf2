use super::{Malformed, ProtocolError, Reader, Writer};
use crate::chunk::{ChunkSize, ChunkValue};

/// Bytes of the header that starts every frame.
pub const FRAME_HEADER_BYTES: usize = 8;
/// Bytes of a data frame's head, which follows its header.
pub const DATA_HEAD_BYTES: usize = 56;
/// Longest message that a control frame carries.
pub(super) const MAX_MESSAGE_BYTES: usize = 256 << 10;
/// Longest body of a link's first frames.
pub const MAX_LINK_FRAME_BYTES: usize = 4 << 10;

/// The kind of a frame: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The dialing side's first frame: which session, and proof of belonging to it.
    LinkHello,
    /// The listening side's answer.
    LinkAccept,
    /// The listening side's refusal; the link ends.
    LinkRefuse,
    /// A numbered message.
    Control,
    /// Acknowledges messages when there is none to send.
    Ack,
    /// Asks for a sign of life.
    Ping,
    /// Gives it.
    Pong,
    /// This link is leaving in good order; whatever else is under way is resent on another.
    Leave,
    /// Bytes of a chunk.
    Data,
    /// Several whole small files.
    Pack,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            Self::LinkHello => 0x01,
            Self::LinkAccept => 0x02,
            Self::LinkRefuse => 0x03,
            Self::Control => 0x10,
            Self::Ack => 0x11,
            Self::Ping => 0x12,
            Self::Pong => 0x13,
            Self::Leave => 0x14,
            Self::Data => 0x20,
            Self::Pack => 0x21,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x01 => Self::LinkHello,
            0x02 => Self::LinkAccept,
            0x03 => Self::LinkRefuse,
            0x10 => Self::Control,
            0x11 => Self::Ack,
            0x12 => Self::Ping,
            0x13 => Self::Pong,
            0x14 => Self::Leave,
            0x20 => Self::Data,
            0x21 => Self::Pack,
            _ => return None,
        })
    }

    /// The longest body that a frame of this kind may have.
    pub fn max_body_bytes(self, chunk_size: ChunkSize) -> usize {
        match self {
            Self::LinkHello | Self::LinkAccept | Self::LinkRefuse => MAX_LINK_FRAME_BYTES,
            Self::Control => 16 + MAX_MESSAGE_BYTES,
            Self::Ack | Self::Ping | Self::Pong => 8,
            Self::Leave => 0,
            Self::Data => DATA_HEAD_BYTES + chunk_size.buffer_bytes(),
            Self::Pack => chunk_size.buffer_bytes(),
        }
    }
}

/// The header of a frame: what follows, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: FrameKind,
    /// Length of the body in bytes.
    pub body_bytes: usize,
}

impl FrameHeader {
    /// The bytes on the wire: kind, three zero bytes, length.
    pub fn encode(self) -> [u8; FRAME_HEADER_BYTES] {
        let len = u32::try_from(self.body_bytes).unwrap_or(u32::MAX).to_le_bytes();
        [self.kind.code(), 0, 0, 0, len[0], len[1], len[2], len[3]]
    }

    /// Reads a header and compares the length with the maximum of its kind.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], chunk_size: ChunkSize) -> Result<Self, ProtocolError> {
        let mut r = Reader::new(bytes, "frame header");
        let code = r.u8()?;
        let reserved = r.array::<3>()?;
        let found = r.u32()?;
        let kind = FrameKind::from_code(code).ok_or_else(|| r.error(Malformed::Unknown(code.into())))?;
        if reserved != [0; 3] {
            return Err(r.error(Malformed::Unknown(u64::from(reserved[0]))));
        }
        let limit = kind.max_body_bytes(chunk_size);
        let body_bytes = usize::try_from(found)
            .ok()
            .filter(|&n| n <= limit)
            .ok_or_else(|| r.error(Malformed::TooLong { found: found.into(), limit: limit as u64 }))?;
        Ok(Self { kind, body_bytes })
    }
}

/// The head of a data frame. The payload follows: `len` bytes that start `offset` bytes into the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHead {
    /// Which file of the session.
    pub file: u64,
    /// Which chunk of the file.
    pub chunk: u64,
    /// Where in the chunk the payload starts.
    pub offset: u32,
    /// How long the payload is.
    pub len: u32,
    /// The value of the whole chunk.
    pub value: ChunkValue,
}

impl DataHead {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; DATA_HEAD_BYTES] {
        let mut out = [0; DATA_HEAD_BYTES];
        out[..8].copy_from_slice(&self.file.to_le_bytes());
        out[8..16].copy_from_slice(&self.chunk.to_le_bytes());
        out[16..20].copy_from_slice(&self.offset.to_le_bytes());
        out[20..24].copy_from_slice(&self.len.to_le_bytes());
        out[24..].copy_from_slice(&self.value.0);
        out
    }

    /// Reads the head of a data frame whose body has `body_bytes`, head included.
    pub fn decode(bytes: &[u8; DATA_HEAD_BYTES], body_bytes: usize) -> Result<Self, ProtocolError> {
        let mut r = Reader::new(bytes, "data frame");
        let head =
            Self { file: r.u64()?, chunk: r.u64()?, offset: r.u32()?, len: r.u32()?, value: ChunkValue(r.array()?) };
        if head.len == 0 || u64::from(head.len) + DATA_HEAD_BYTES as u64 != body_bytes as u64 {
            return Err(r.error(Malformed::Unknown(head.len.into())));
        }
        Ok(head)
    }
}

/// One small file inside a pack: whole, with its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackRecord<'a> {
    /// Which file of the session.
    pub file: u64,
    /// BLAKE3 of its bytes.
    pub digest: crate::chunk::Digest,
    /// Its bytes.
    pub data: &'a [u8],
}

/// Bytes of a pack's own head: its number and the number of records.
pub(super) const PACK_HEAD_BYTES: usize = 12;
/// Bytes of each record's head in the table behind the pack's head.
pub(super) const PACK_RECORD_BYTES: usize = 44;
/// Most files in one pack.
pub const MAX_PACK_FILES: usize = 1024;

/// Writes the head and table of a pack: number, count, then (file, length, digest) for each record. The contents follow
/// in the same order.
pub fn encode_pack_head(pack: u64, records: &[(u64, u32, crate::chunk::Digest)]) -> Vec<u8> {
    let mut w = Writer::new();
    w.u64(pack).count(records.len());
    for (file, len, digest) in records {
        w.u64(*file).u32(*len).raw(&digest.0);
    }
    w.into_bytes()
}

/// Reads a whole pack. Lengths must add up exactly.
pub fn decode_pack(body: &[u8]) -> Result<(u64, Vec<PackRecord<'_>>), ProtocolError> {
    let mut r = Reader::new(body, "pack");
    let pack = r.u64()?;
    let count = r.count(PACK_RECORD_BYTES)?;
    if count > MAX_PACK_FILES {
        return Err(r.error(Malformed::TooLong { found: count as u64, limit: MAX_PACK_FILES as u64 }));
    }
    let mut heads = Vec::with_capacity(count);
    for _ in 0..count {
        heads.push((r.u64()?, r.u32()?, r.digest()?));
    }
    let mut records = Vec::with_capacity(count);
    for (file, len, digest) in heads {
        let len = usize::try_from(len).map_err(|_| r.error(Malformed::Truncated))?;
        records.push(PackRecord { file, digest, data: r.take(len)? });
    }
    r.finish()?;
    Ok((pack, records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Digest;

    #[test]
    fn lengths_above_the_kinds_maximum_are_refused() {
        for kind in [FrameKind::LinkHello, FrameKind::Control, FrameKind::Ack, FrameKind::Leave, FrameKind::Data] {
            let limit = kind.max_body_bytes(ChunkSize::DEFAULT);
            let ok = FrameHeader { kind, body_bytes: limit };
            assert_eq!(FrameHeader::decode(&ok.encode(), ChunkSize::DEFAULT).unwrap(), ok);
            let long = FrameHeader { kind, body_bytes: limit + 1 };
            assert!(FrameHeader::decode(&long.encode(), ChunkSize::DEFAULT).is_err());
        }
        assert!(FrameHeader::decode(&[0x7f, 0, 0, 0, 0, 0, 0, 0], ChunkSize::DEFAULT).is_err());
        assert!(FrameHeader::decode(&[0x11, 0, 1, 0, 8, 0, 0, 0], ChunkSize::DEFAULT).is_err());
    }

    /// Golden bytes: a change of layout is a change of the protocol version.
    #[test]
    fn data_head_layout_is_fixed() {
        let head = DataHead { file: 1, chunk: 2, offset: 3, len: 4, value: ChunkValue([9; 32]) };
        let mut golden = vec![1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0];
        golden.extend([9; 32]);
        assert_eq!(head.encode().to_vec(), golden);
        assert_eq!(DataHead::decode(&head.encode(), DATA_HEAD_BYTES + 4).unwrap(), head);
        assert!(DataHead::decode(&head.encode(), DATA_HEAD_BYTES + 5).is_err());
    }

    #[test]
    fn packs_must_add_up() {
        let files: [&[u8]; 3] = [b"", b"abc", b"de"];
        let table: Vec<_> =
            files.iter().zip(10u64..).map(|(d, f)| (f, u32::try_from(d.len()).unwrap(), Digest::of(d))).collect();
        let mut body = encode_pack_head(77, &table);
        for f in files {
            body.extend_from_slice(f);
        }
        let (pack, records) = decode_pack(&body).unwrap();
        assert_eq!(pack, 77);
        assert_eq!(records.iter().map(|r| r.data).collect::<Vec<_>>(), files);
        for n in 0..body.len() {
            assert!(decode_pack(&body[..n]).is_err(), "{n}");
        }
        body.push(0);
        assert!(decode_pack(&body).is_err());
    }
}
