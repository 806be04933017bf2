use super::{Class, Malformed, ProtocolError, Reader, Writer};
use crate::chunk::{Digest, RelPath};

/// Most entries in one page of the manifest.
pub const MAX_PAGE_ENTRIES: usize = 512;
/// A page is closed once its entries take this many bytes.
pub(super) const PAGE_TARGET_BYTES: usize = 64 << 10;
/// Longest target of a symbolic link.
pub(super) const MAX_LINK_TARGET_BYTES: u16 = 4095;
/// Longest text for a human in any message.
pub const MAX_TEXT_BYTES: u16 = 2048;

/// Mode, times and owner of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Seconds of the modification time since 1970-01-01 UTC.
    pub mtime_s: i64,
    /// Nanoseconds of the modification time, below 10^9.
    pub mtime_ns: u32,
    /// Owner, as a number.
    pub uid: u32,
    /// Group, as a number.
    pub gid: u32,
}

impl Meta {
    /// The modification time in microseconds since the Unix epoch, where that can be told in 64 bits.
    pub fn modified_us(&self) -> Option<i64> {
        self.mtime_s.checked_mul(1_000_000)?.checked_add(i64::from(self.mtime_ns / 1000))
    }
}

/// One line of the manifest. Its id is its position: the first entry of a session has id 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where, relative to the destination.
    pub path: RelPath,
    /// Mode, times and owner.
    pub meta: Meta,
    /// What.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// It occupies less than its length, so holes should stay holes.
        sparse: bool,
        /// Digest that the sender was told to expect.
        expected: Option<Digest>,
    },
    /// A directory; what lies in it follows, then its [`EntryKind::DirEnd`].
    Dir,
    /// Everything below the directory of this path has been listed; its times can be set.
    DirEnd,
    /// A symbolic link.
    Symlink {
        /// Where it points: any bytes but NUL.
        target: Vec<u8>,
    },
    /// A FIFO, socket or device: counted only.
    Skipped,
    /// Could not be listed or opened; the rest goes on.
    Failed {
        /// Who is at fault.
        class: Class,
        /// For a human.
        text: String,
    },
}

impl Entry {
    /// Length in bytes of a regular file, else 0.
    pub fn size(&self) -> u64 {
        if let EntryKind::File { size, .. } = self.kind { size } else { 0 }
    }

    /// An upper bound of the bytes that this entry takes in a page.
    pub fn encoded_bytes(&self) -> usize {
        80 + self.path.as_bytes().len()
            + match &self.kind {
                EntryKind::Symlink { target } => target.len(),
                EntryKind::Failed { text, .. } => text.len(),
                _ => 0,
            }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        let m = &self.meta;
        w.path(&self.path).u32(m.mode).i64(m.mtime_s).u32(m.mtime_ns).u32(m.uid).u32(m.gid);
        match &self.kind {
            EntryKind::File { size, sparse, expected } => {
                w.u8(1).u64(*size).bool(*sparse).optional_digest(expected.as_ref());
            }
            EntryKind::Dir => {
                w.u8(2);
            }
            EntryKind::DirEnd => {
                w.u8(3);
            }
            EntryKind::Symlink { target } => {
                w.u8(4).bytes16(target, MAX_LINK_TARGET_BYTES);
            }
            EntryKind::Skipped => {
                w.u8(5);
            }
            EntryKind::Failed { class, text } => {
                w.u8(6).u8(class.code()).bytes16(text.as_bytes(), MAX_TEXT_BYTES);
            }
        }
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        let path = r.path()?;
        let meta = Meta { mode: r.u32()?, mtime_s: r.i64()?, mtime_ns: r.u32()?, uid: r.u32()?, gid: r.u32()? };
        if meta.mode & !0o7777 != 0 {
            return Err(r.error(Malformed::Unknown(meta.mode.into())));
        }
        if meta.mtime_ns >= 1_000_000_000 {
            return Err(r.error(Malformed::Unknown(meta.mtime_ns.into())));
        }
        let kind = match r.u8()? {
            1 => EntryKind::File { size: r.u64()?, sparse: r.bool()?, expected: r.optional_digest()? },
            2 => EntryKind::Dir,
            3 => EntryKind::DirEnd,
            4 => {
                let target = r.bytes16(MAX_LINK_TARGET_BYTES)?.to_vec();
                if target.is_empty() || target.contains(&0) {
                    return Err(r.error(Malformed::Unknown(0)));
                }
                EntryKind::Symlink { target }
            }
            5 => EntryKind::Skipped,
            6 => EntryKind::Failed { class: Class::from_code(r.u8()?), text: r.text16(MAX_TEXT_BYTES)? },
            n => return Err(r.error(Malformed::Unknown(n.into()))),
        };
        // File offsets are signed 64-bit on every system that this runs on.
        if let EntryKind::File { size, .. } = kind
            && i64::try_from(size).is_err()
        {
            return Err(r.error(Malformed::TooLong { found: size, limit: i64::MAX.unsigned_abs() }));
        }
        if path.is_root() && !matches!(kind, EntryKind::Dir | EntryKind::DirEnd | EntryKind::Failed { .. }) {
            return Err(r.error(Malformed::Unknown(0)));
        }
        Ok(Self { path, meta, kind })
    }
}
