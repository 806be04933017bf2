#![doc = include_str!("wire.md")]

mod action;
mod channel;
mod codec;
mod compat;
mod entry;
mod error;
mod frame;
mod handshake;
mod incoming;
mod message;
mod outgoing;
#[cfg(test)]
mod pair;
mod receiver;
mod sender;
mod settle;
mod tree;
mod work;

pub use action::{Action, Admit, Prepared, ReceiverEvent, ReceiverStats};
pub use channel::{CONTROL_HEAD_BYTES, Channel, LinkId, Numbered};
pub use codec::{Reader, Writer};
pub use compat::{FEATURES, Feature, common, unknown_required};
pub use entry::{Entry, EntryKind, MAX_PAGE_ENTRIES, MAX_TEXT_BYTES, Meta};
pub use error::{Class, Malformed, ProtocolError};
pub use frame::{
    DATA_HEAD_BYTES, DataHead, FRAME_HEADER_BYTES, FrameHeader, FrameKind, MAX_LINK_FRAME_BYTES, MAX_PACK_FILES,
    PackRecord, decode_pack, encode_pack_head,
};
pub use handshake::{LinkAnswer, LinkHello, LinkSide, PROTOCOL_VERSION, SessionId, SessionSecret, link_proof};
pub use message::{
    Disposition, Done, Evidence, Hello, JobFlags, MAX_HELLO_ITEMS, Message, Purpose, Receipt, Request, TypedPath,
    Welcome,
};
pub use receiver::Receiver;
pub use sender::{ENTRY_WINDOW, ENTRY_WINDOW_BYTES, PACK_MAX_FILE_BYTES, Sender};
pub use tree::TreeHasher;
pub use work::{SenderEvent, SenderStats, Verdict, Work};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{ChunkSize, MAX_NAME_BYTES, MAX_PATH_BYTES};

    const SPECIFICATION: &str = include_str!("wire.md");

    /// Seen to fail with a limit changed in the code.
    #[test]
    fn the_specification_states_the_limits() {
        let limits: [(&str, u64); 13] = [
            ("message", FrameKind::Control.max_body_bytes(ChunkSize::DEFAULT) as u64 - 16),
            ("body of `LINK_HELLO`, `LINK_ACCEPT`, `LINK_REFUSE`", MAX_LINK_FRAME_BYTES as u64),
            ("entries in a page", MAX_PAGE_ENTRIES as u64),
            ("unfinished entries", ENTRY_WINDOW as u64),
            ("cost of entries from the first unfinished one on", ENTRY_WINDOW_BYTES as u64),
            ("files in a pack", MAX_PACK_FILES as u64),
            ("largest file that this program packs", PACK_MAX_FILE_BYTES),
            ("sources in a hello", MAX_HELLO_ITEMS as u64),
            ("text", MAX_TEXT_BYTES.into()),
            ("path", MAX_PATH_BYTES as u64),
            ("name", MAX_NAME_BYTES as u64),
            ("size of a file", i64::MAX.unsigned_abs()),
            ("control bytes under way", 8 << 20),
        ];
        for (name, value) in limits {
            assert!(SPECIFICATION.contains(&format!("| {name} | {value} |")), "{name}: {value}");
        }
        for feature in FEATURES {
            assert!(SPECIFICATION.contains(&format!("| {} | {} |", feature.code, feature.meaning)));
        }
    }

    /// Seen to fail with another order of the numbers in front of a message.
    #[test]
    fn the_example_of_the_specification_is_a_frame() {
        let hex = SPECIFICATION.split("```text\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
        let bytes: Vec<u8> = hex.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        let message = Message::Hole { file: 3, first: 2, count: 5 };
        let body = message.encode();
        let numbered = Numbered { seq: 7, ack: 4, body: &body };
        let header = FrameHeader { kind: FrameKind::Control, body_bytes: CONTROL_HEAD_BYTES + body.len() };
        assert_eq!(bytes, [&header.encode()[..], &numbered.head(), &body].concat());
    }
}
