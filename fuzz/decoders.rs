//! What each fuzz target does with its bytes, used by libFuzzer and by `tests/fuzz_smoke.rs`.
//!
//! Every decoder reads hostile bytes. It may refuse them; it must not panic, hang or take memory by a number that it
//! read. What it accepts must come back equal after encoding.

#![allow(dead_code, reason = "each target uses one of them")]

use ccat_xfer::{
    chunk::ChunkSize,
    journal::record::Record,
    protocol::{
        DATA_HEAD_BYTES, DataHead, FRAME_HEADER_BYTES, FrameHeader, FrameKind, LinkAnswer, LinkHello, Message,
        decode_pack,
    },
};

/// A stream of frames as a link delivers them: header, then body, by its kind.
pub(crate) fn frame(mut bytes: &[u8]) {
    // More than any real stream of small frames needs; bounds one run.
    for _ in 0..64 {
        let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return };
        let Ok(header) = FrameHeader::decode(head, ChunkSize::DEFAULT) else { return };
        assert_eq!(header.encode(), *head, "a header that was accepted is its own encoding");
        assert!(header.body_bytes <= header.kind.max_body_bytes(ChunkSize::DEFAULT));
        let (body, rest) = rest.split_at(header.body_bytes.min(rest.len()));
        match header.kind {
            FrameKind::Data => {
                if let Some((head, _)) = body.split_first_chunk::<DATA_HEAD_BYTES>()
                    && let Ok(data) = DataHead::decode(head, header.body_bytes)
                {
                    assert_eq!(data.encode(), *head);
                    assert_eq!(u64::from(data.len) + DATA_HEAD_BYTES as u64, header.body_bytes as u64);
                }
            }
            FrameKind::Pack => {
                if let Ok((_, records)) = decode_pack(body) {
                    assert!(records.len() <= ccat_xfer::protocol::MAX_PACK_FILES);
                }
            }
            FrameKind::LinkHello => handshake_hello(body),
            FrameKind::LinkAccept | FrameKind::LinkRefuse => drop(LinkAnswer::decode(header.kind, body)),
            FrameKind::Control => manifest(body.get(16..).unwrap_or_default()),
            FrameKind::Ack | FrameKind::Ping | FrameKind::Pong | FrameKind::Leave => {}
        }
        bytes = rest;
    }
}

/// The first frames of a link, and the hello and welcome of a session.
pub(crate) fn handshake(bytes: &[u8]) {
    let Some((&which, rest)) = bytes.split_first() else { return };
    match which % 4 {
        0 => handshake_hello(rest),
        1 => drop(LinkAnswer::decode(FrameKind::LinkAccept, rest)),
        2 => drop(LinkAnswer::decode(FrameKind::LinkRefuse, rest)),
        _ => manifest(rest),
    }
}

fn handshake_hello(bytes: &[u8]) {
    if let Ok(hello) = LinkHello::decode(bytes) {
        let again = hello.encode();
        assert!(bytes.starts_with(&again), "what was accepted is the front of what came");
        assert_eq!(LinkHello::decode(&again).as_ref(), Ok(&hello));
    }
}

/// Messages of the control channel: pages of the manifest, answers, receipts.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        let again = message.encode();
        assert_eq!(Message::decode(&again).as_ref(), Ok(&message), "a message survives its own encoding");
    }
}

/// A journal's bytes, read record by record as on opening one.
pub(crate) fn journal(mut bytes: &[u8]) {
    while let Ok((record, taken)) = Record::decode(bytes) {
        assert!(taken > 0 && taken <= bytes.len(), "a record takes at least one byte and no more than there are");
        let again = record.encode();
        assert_eq!(again, bytes[..taken], "a record that was accepted is its own encoding");
        bytes = &bytes[taken..];
    }
    // The check value keeps mutations out of the bodies, so give them a fitting one.
    if let Some(sealed) = sealed(bytes)
        && let Ok((record, _)) = Record::decode(&sealed)
    {
        assert_eq!(Record::decode(&record.encode()).map(|(r, _)| r).as_ref(), Ok(&record));
    }
}

/// The first record of `bytes` with the check value that the disk format demands: 16 bytes of the BLAKE3 of head and
/// body.
fn sealed(bytes: &[u8]) -> Option<Vec<u8>> {
    const HEAD_BYTES: usize = 16;
    let len = usize::try_from(u32::from_le_bytes(*bytes.first_chunk::<4>()?)).ok()?;
    // A length beyond what is there is shortened, so that every input makes a record.
    let len = len.min(bytes.len().checked_sub(HEAD_BYTES)?);
    let mut sealed = u32::try_from(len).ok()?.to_le_bytes().to_vec();
    sealed.extend_from_slice(bytes.get(4..HEAD_BYTES + len)?);
    let check = blake3::hash(&sealed);
    sealed.extend_from_slice(&check.as_bytes()[..16]);
    Some(sealed)
}
