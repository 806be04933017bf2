use super::entry::{Entry, MAX_PAGE_ENTRIES, MAX_TEXT_BYTES};
use super::{Class, Malformed, ProtocolError, Reader, Writer};
use crate::chunk::{ChunkSize, ChunkValue, Digest};

/// Longest typed path in a hello.
const MAX_TYPED_BYTES: u16 = 4096;
/// The optional field of a hello that carries [`Hello::streams`].
const EXTENSION_STREAMS: u16 = 1;
/// Most sources or names in a hello.
pub const MAX_HELLO_ITEMS: usize = 4096;

/// What the starter of a job asks for. First message of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Features that the peer must know, or refuse.
    pub required: Vec<u16>,
    /// Features that the peer may use if it knows them.
    pub optional: Vec<u16>,
    /// Program and version, for logs and receipts.
    pub program: String,
    /// Names the job across attempts.
    pub job: [u8; 16],
    /// Raised by every attempt of a control plane; 0 from a command line.
    pub fence: u64,
    /// What for.
    pub purpose: Purpose,
    /// Unit of hashing.
    pub chunk_size: ChunkSize,
    /// Flags of the job.
    pub flags: JobFlags,
    /// Most file bytes per second that the sending end may hand to links; 0 is no limit.
    pub rate_limit: u64,
    /// Frames that the sending end may have under way on one QUIC link; 0 leaves it to that end. An optional field: a
    /// peer that does not know it skips it.
    pub streams: u32,
    /// Which end sends, and its paths.
    pub request: Request,
}

/// Why a session is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To move bytes.
    Copy,
    /// To ask again for the receipts of the job; nothing moves.
    Receipts,
}

/// Flags of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobFlags {
    /// Replace files that differ.
    pub overwrite: bool,
    /// Trust equal size and time.
    pub quick: bool,
    /// Read back from the medium before publishing.
    pub read_back: bool,
    /// Keep owner and group.
    pub owner: bool,
    /// Change nothing, say what would be done.
    pub dry_run: bool,
}

impl JobFlags {
    fn bits(self) -> u32 {
        u32::from(self.overwrite)
            | u32::from(self.quick) << 1
            | u32::from(self.read_back) << 2
            | u32::from(self.owner) << 3
            | u32::from(self.dry_run) << 4
    }

    fn from_bits(bits: u32) -> Option<Self> {
        (bits < 32).then_some(Self {
            overwrite: bits & 1 != 0,
            quick: bits & 2 != 0,
            read_back: bits & 4 != 0,
            owner: bits & 8 != 0,
            dry_run: bits & 16 != 0,
        })
    }
}

/// Which end sends, and its paths as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The starter sends.
    Push {
        /// Where to.
        destination: TypedPath,
        /// The sources as typed, so that the receiver can tell what it holds of them. At most [`MAX_HELLO_ITEMS`]; the
        /// entries of the manifest decide, not these.
        sources: Vec<Vec<u8>>,
        /// There are more sources than these.
        more: bool,
    },
    /// The starter receives.
    Pull {
        /// What to send.
        sources: Vec<TypedPath>,
        /// The starter's destination holds something of this job already, so it will answer page by page.
        holds: bool,
    },
}

/// A path at the peer, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedPath {
    /// Location of an endpoint; empty over ssh.
    pub location: String,
    /// The path, trailing slash included.
    pub path: Vec<u8>,
}

/// The accepting end's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Optional features of the hello that will be used.
    pub features: Vec<u16>,
    /// Program and version.
    pub program: String,
    /// Host name.
    pub host: String,
    /// The receiver holds something of this job, so it will answer page by page. False where the accepting end sends.
    pub holds: bool,
}

/// What the receiver says about an entry of a page before data flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Send it.
    Send,
    /// A file of this size is there: read yours and tell its root; nothing travels unless wanted.
    Compare,
    /// Nothing is needed; a receipt or a failure follows.
    Settled,
    /// Some chunks are there: their values follow in `HOLDS`.
    Held,
}

/// How a receiver knows that bytes are where they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// `received` (hashed in memory before it was written), `direct`, `dropped` or `cached` (read back).
    pub method: String,
    /// What it was read from: `memory` or `disk`.
    pub medium: String,
    /// The read-back may have come from a cache.
    pub cached: bool,
    /// Host name of the receiver.
    pub host: String,
    /// Program and version of the receiver.
    pub program: String,
    /// Start of the check, ns since 1970-01-01 UTC.
    pub start_ns: i64,
    /// End of the check, ns since 1970-01-01 UTC.
    pub end_ns: i64,
}

/// What the receiver did about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Published from bytes that travelled.
    Copied,
    /// Equal bytes were there.
    Same,
    /// Equal size and time were trusted.
    Trusted,
    /// A directory or link was made or brought up to date.
    Made,
    /// Counted only.
    Skipped,
    /// With `dry_run`: would have been copied.
    WouldCopy,
}

/// The receiver's word on one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which entry.
    pub id: u64,
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 root (algorithm 1) of a file.
    pub digest: Option<Digest>,
    /// What was done.
    pub done: Done,
    /// Its bytes and its name would survive a power cut.
    pub durable: bool,
    /// It stands under its final name.
    pub published: bool,
    /// How that is known.
    pub evidence: Vec<Evidence>,
}

/// Everything that travels on the reliable control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Starter to acceptor, first.
    Hello(Box<Hello>),
    /// Acceptor to starter, first.
    Welcome(Welcome),
    /// Either: the job ends here.
    Abort {
        /// Who is at fault.
        class: Class,
        /// For a human.
        text: String,
    },
    /// Sender: a page of the manifest.
    Page {
        /// Id of its first entry.
        first: u64,
        /// Its entries.
        entries: Vec<Entry>,
    },
    /// Receiver: what to do with the entries of a page. Sent for every page when it `holds`, else only for exceptions.
    Answer {
        /// Id of the page's first entry.
        first: u64,
        /// Number of the page's entries.
        count: u32,
        /// Entries that are not [`Disposition::Send`].
        exceptions: Vec<(u64, Disposition)>,
    },
    /// Receiver: values of chunks that it holds and has just read again.
    Holds {
        /// Which file.
        file: u64,
        /// The first chunk.
        first: u64,
        /// Values of it and those behind it.
        values: Vec<ChunkValue>,
        /// No more of this file follows.
        last: bool,
    },
    /// Sender: the chunks are all zeros.
    Hole {
        /// Which file.
        file: u64,
        /// The first chunk.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Sender: the chunks have the values that the receiver said it holds, so they do not travel.
    Keep {
        /// Which file.
        file: u64,
        /// The first chunk.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Sender: all chunks of the file were read; this is its root.
    FileEnd {
        /// Which file.
        file: u64,
        /// BLAKE3 root of what was read.
        root: Digest,
    },
    /// Sender: the file cannot be sent.
    FileFailed {
        /// Which file.
        file: u64,
        /// Who is at fault.
        class: Class,
        /// For a human.
        text: String,
    },
    /// Sender: the manifest is complete.
    End {
        /// Number of entries.
        entries: u64,
        /// Sum of the sizes of files.
        bytes: u64,
    },
    /// Receiver: these are verified and need not be sent again while this session lives.
    Got {
        /// (file, chunk) pairs.
        chunks: Vec<(u64, u64)>,
        /// Numbers of packs.
        packs: Vec<u64>,
    },
    /// Receiver: these ranges would survive a power cut.
    Durable {
        /// (file, first chunk, count).
        ranges: Vec<(u64, u64, u64)>,
    },
    /// Receiver: send these (again).
    Want {
        /// Which file.
        file: u64,
        /// (first chunk, count); a count of `u64::MAX` means to the end.
        ranges: Vec<(u64, u64)>,
    },
    /// Receiver: these entries reached their end.
    Receipts(Vec<Receipt>),
    /// Receiver: this entry failed; the rest goes on.
    EntryFailed {
        /// Which entry.
        id: u64,
        /// Who is at fault.
        class: Class,
        /// For a human.
        text: String,
    },
    /// Receiver: every entry reached its end.
    TreeReceipt {
        /// Tree digest, if no entry failed.
        digest: Option<Digest>,
        /// Entries that failed.
        failed: u64,
    },
    /// Sender: the receipts have arrived; both ends may forget the session.
    Bye,
}

fn encode_features(w: &mut Writer, features: &[u16]) {
    w.u8(u8::try_from(features.len()).unwrap_or(u8::MAX));
    for f in features.iter().take(255) {
        w.u16(*f);
    }
}

fn decode_features(r: &mut Reader<'_>) -> Result<Vec<u16>, ProtocolError> {
    (0..r.u8()?).map(|_| r.u16()).collect()
}

fn encode_typed(w: &mut Writer, p: &TypedPath) {
    w.bytes16(p.location.as_bytes(), 255).bytes16(&p.path, MAX_TYPED_BYTES);
}

fn decode_typed(r: &mut Reader<'_>) -> Result<TypedPath, ProtocolError> {
    Ok(TypedPath { location: r.text16(255)?, path: r.bytes16(MAX_TYPED_BYTES)?.to_vec() })
}

/// Optional fields behind a hello or welcome: (type u16, length u16, bytes). `known` takes those that this program knows;
/// all others are skipped. What a peer must not skip is named among the hello's required features.
fn read_extensions(
    r: &mut Reader<'_>,
    mut known: impl FnMut(u16, Reader<'_>) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    while r.remaining() > 0 {
        let code = r.u16()?;
        known(code, Reader::new(r.bytes16(u16::MAX)?, "optional field"))?;
    }
    Ok(())
}

fn bounded(r: &mut Reader<'_>, item_bytes: usize, limit: usize) -> Result<usize, ProtocolError> {
    let n = r.count(item_bytes)?;
    if n > limit { Err(r.error(Malformed::TooLong { found: n as u64, limit: limit as u64 })) } else { Ok(n) }
}

impl Hello {
    fn encode(&self, w: &mut Writer) {
        encode_features(w, &self.required);
        encode_features(w, &self.optional);
        w.bytes16(self.program.as_bytes(), 255).raw(&self.job).u64(self.fence);
        w.u8(match self.purpose {
            Purpose::Copy => 1,
            Purpose::Receipts => 2,
        });
        w.u8(self.chunk_size.log2()).u32(self.flags.bits()).u64(self.rate_limit);
        match &self.request {
            Request::Push { destination, sources, more } => {
                w.u8(1);
                encode_typed(w, destination);
                w.count(sources.len());
                for s in sources {
                    w.bytes16(s, MAX_TYPED_BYTES);
                }
                w.bool(*more);
            }
            Request::Pull { sources, holds } => {
                w.u8(2).count(sources.len());
                for s in sources {
                    encode_typed(w, s);
                }
                w.bool(*holds);
            }
        }
        if self.streams > 0 {
            w.u16(EXTENSION_STREAMS).u16(4).u32(self.streams);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        let mut hello = Self::decode_fixed(r)?;
        read_extensions(r, |code, mut field| {
            if code != EXTENSION_STREAMS {
                return Ok(());
            }
            hello.streams = field.u32()?;
            field.finish()
        })?;
        Ok(hello)
    }

    fn decode_fixed(r: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            required: decode_features(r)?,
            optional: decode_features(r)?,
            program: r.text16(255)?,
            job: r.array()?,
            fence: r.u64()?,
            purpose: match r.u8()? {
                1 => Purpose::Copy,
                2 => Purpose::Receipts,
                n => return Err(r.error(Malformed::Unknown(n.into()))),
            },
            chunk_size: {
                let log2 = r.u8()?;
                ChunkSize::from_log2(log2).map_err(|_| r.error(Malformed::Unknown(log2.into())))?
            },
            flags: {
                let bits = r.u32()?;
                JobFlags::from_bits(bits).ok_or_else(|| r.error(Malformed::Unknown(bits.into())))?
            },
            rate_limit: r.u64()?,
            streams: 0,
            request: match r.u8()? {
                1 => {
                    let destination = decode_typed(r)?;
                    let n = bounded(r, 2, MAX_HELLO_ITEMS)?;
                    let sources = (0..n)
                        .map(|_| Ok(r.bytes16(MAX_TYPED_BYTES)?.to_vec()))
                        .collect::<Result<_, ProtocolError>>()?;
                    Request::Push { destination, sources, more: r.bool()? }
                }
                2 => {
                    let n = bounded(r, 4, MAX_HELLO_ITEMS)?;
                    let sources = (0..n).map(|_| decode_typed(r)).collect::<Result<_, _>>()?;
                    Request::Pull { sources, holds: r.bool()? }
                }
                n => return Err(r.error(Malformed::Unknown(n.into()))),
            },
        })
    }
}

impl Receipt {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.id).u64(self.size).optional_digest(self.digest.as_ref());
        w.u8(match self.done {
            Done::Copied => 1,
            Done::Same => 2,
            Done::Trusted => 3,
            Done::Made => 4,
            Done::Skipped => 5,
            Done::WouldCopy => 6,
        });
        w.bool(self.durable).bool(self.published);
        w.u8(u8::try_from(self.evidence.len()).unwrap_or(u8::MAX));
        for e in self.evidence.iter().take(255) {
            for text in [&e.method, &e.medium, &e.host, &e.program] {
                w.bytes16(text.as_bytes(), 255);
            }
            w.bool(e.cached).i64(e.start_ns).i64(e.end_ns);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: r.u64()?,
            size: r.u64()?,
            digest: r.optional_digest()?,
            done: match r.u8()? {
                1 => Done::Copied,
                2 => Done::Same,
                3 => Done::Trusted,
                4 => Done::Made,
                5 => Done::Skipped,
                6 => Done::WouldCopy,
                n => return Err(r.error(Malformed::Unknown(n.into()))),
            },
            durable: r.bool()?,
            published: r.bool()?,
            evidence: (0..r.u8()?)
                .map(|_| {
                    Ok(Evidence {
                        method: r.text16(255)?,
                        medium: r.text16(255)?,
                        host: r.text16(255)?,
                        program: r.text16(255)?,
                        cached: r.bool()?,
                        start_ns: r.i64()?,
                        end_ns: r.i64()?,
                    })
                })
                .collect::<Result<_, ProtocolError>>()?,
        })
    }

    /// An upper bound of the bytes that this receipt takes in a message.
    pub fn encoded_bytes(&self) -> usize {
        64 + self
            .evidence
            .iter()
            .map(|e| 40 + e.method.len() + e.medium.len() + e.host.len() + e.program.len())
            .sum::<usize>()
    }
}

impl Message {
    /// The bytes of a control frame behind its numbers.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Hello(h) => {
                w.u8(1);
                h.encode(&mut w);
            }
            Self::Welcome(m) => {
                w.u8(2);
                encode_features(&mut w, &m.features);
                w.bytes16(m.program.as_bytes(), 255).bytes16(m.host.as_bytes(), 255).bool(m.holds);
            }
            Self::Abort { class, text } => {
                w.u8(3).u8(class.code()).bytes16(text.as_bytes(), MAX_TEXT_BYTES);
            }
            Self::Page { first, entries } => {
                w.u8(10).u64(*first).count(entries.len());
                for e in entries {
                    e.encode(&mut w);
                }
            }
            Self::Answer { first, count, exceptions } => {
                w.u8(11).u64(*first).u32(*count).count(exceptions.len());
                for (id, d) in exceptions {
                    w.u64(*id).u8(match d {
                        Disposition::Send => 0,
                        Disposition::Compare => 1,
                        Disposition::Settled => 2,
                        Disposition::Held => 3,
                    });
                }
            }
            Self::Holds { file, first, values, last } => {
                w.u8(12).u64(*file).u64(*first).bool(*last).count(values.len());
                for v in values {
                    w.raw(&v.0);
                }
            }
            Self::Hole { file, first, count } => {
                w.u8(13).u64(*file).u64(*first).u64(*count);
            }
            Self::Keep { file, first, count } => {
                w.u8(18).u64(*file).u64(*first).u64(*count);
            }
            Self::FileEnd { file, root } => {
                w.u8(14).u64(*file).raw(&root.0);
            }
            Self::FileFailed { file, class, text } => {
                w.u8(15).u64(*file).u8(class.code()).bytes16(text.as_bytes(), MAX_TEXT_BYTES);
            }
            Self::End { entries, bytes } => {
                w.u8(16).u64(*entries).u64(*bytes);
            }
            Self::Got { chunks, packs } => {
                w.u8(20).count(chunks.len());
                for (f, c) in chunks {
                    w.u64(*f).u64(*c);
                }
                w.count(packs.len());
                for p in packs {
                    w.u64(*p);
                }
            }
            Self::Durable { ranges } => {
                w.u8(21).count(ranges.len());
                for (f, first, n) in ranges {
                    w.u64(*f).u64(*first).u64(*n);
                }
            }
            Self::Want { file, ranges } => {
                w.u8(22).u64(*file).count(ranges.len());
                for (first, n) in ranges {
                    w.u64(*first).u64(*n);
                }
            }
            Self::Receipts(items) => {
                w.u8(23).count(items.len());
                for i in items {
                    i.encode(&mut w);
                }
            }
            Self::EntryFailed { id, class, text } => {
                w.u8(24).u64(*id).u8(class.code()).bytes16(text.as_bytes(), MAX_TEXT_BYTES);
            }
            Self::TreeReceipt { digest, failed } => {
                w.u8(25).optional_digest(digest.as_ref()).u64(*failed);
            }
            Self::Bye => {
                w.u8(17);
            }
        }
        w.into_bytes()
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut r = Reader::new(bytes, "message");
        let message = match r.u8()? {
            1 => Self::Hello(Box::new(Hello::decode(&mut r)?)),
            2 => Self::Welcome(Welcome {
                features: decode_features(&mut r)?,
                program: r.text16(255)?,
                host: r.text16(255)?,
                holds: r.bool()?,
            }),
            3 => Self::Abort { class: Class::from_code(r.u8()?), text: r.text16(MAX_TEXT_BYTES)? },
            10 => {
                let first = r.u64()?;
                let n = bounded(&mut r, 27, MAX_PAGE_ENTRIES)?;
                Self::Page { first, entries: (0..n).map(|_| Entry::decode(&mut r)).collect::<Result<_, _>>()? }
            }
            11 => {
                let (first, count) = (r.u64()?, r.u32()?);
                let n = bounded(&mut r, 9, MAX_PAGE_ENTRIES)?;
                let exceptions = (0..n)
                    .map(|_| {
                        let id = r.u64()?;
                        Ok((
                            id,
                            match r.u8()? {
                                0 => Disposition::Send,
                                1 => Disposition::Compare,
                                2 => Disposition::Settled,
                                3 => Disposition::Held,
                                d => return Err(r.error(Malformed::Unknown(d.into()))),
                            },
                        ))
                    })
                    .collect::<Result<_, ProtocolError>>()?;
                Self::Answer { first, count, exceptions }
            }
            12 => {
                let (file, first, last) = (r.u64()?, r.u64()?, r.bool()?);
                let n = r.count(32)?;
                Self::Holds {
                    file,
                    first,
                    last,
                    values: (0..n).map(|_| r.array().map(ChunkValue)).collect::<Result<_, _>>()?,
                }
            }
            13 => Self::Hole { file: r.u64()?, first: r.u64()?, count: r.u64()? },
            14 => Self::FileEnd { file: r.u64()?, root: r.digest()? },
            15 => {
                Self::FileFailed { file: r.u64()?, class: Class::from_code(r.u8()?), text: r.text16(MAX_TEXT_BYTES)? }
            }
            16 => Self::End { entries: r.u64()?, bytes: r.u64()? },
            17 => Self::Bye,
            18 => Self::Keep { file: r.u64()?, first: r.u64()?, count: r.u64()? },
            20 => {
                let n = r.count(16)?;
                let chunks = (0..n).map(|_| Ok((r.u64()?, r.u64()?))).collect::<Result<_, ProtocolError>>()?;
                let n = r.count(8)?;
                Self::Got { chunks, packs: (0..n).map(|_| r.u64()).collect::<Result<_, _>>()? }
            }
            21 => {
                let n = r.count(24)?;
                Self::Durable {
                    ranges: (0..n).map(|_| Ok((r.u64()?, r.u64()?, r.u64()?))).collect::<Result<_, ProtocolError>>()?,
                }
            }
            22 => {
                let file = r.u64()?;
                let n = r.count(16)?;
                Self::Want {
                    file,
                    ranges: (0..n).map(|_| Ok((r.u64()?, r.u64()?))).collect::<Result<_, ProtocolError>>()?,
                }
            }
            23 => {
                let n = r.count(21)?;
                Self::Receipts((0..n).map(|_| Receipt::decode(&mut r)).collect::<Result<_, _>>()?)
            }
            24 => Self::EntryFailed { id: r.u64()?, class: Class::from_code(r.u8()?), text: r.text16(MAX_TEXT_BYTES)? },
            25 => Self::TreeReceipt { digest: r.optional_digest()?, failed: r.u64()? },
            n => return Err(r.error(Malformed::Unknown(n.into()))),
        };
        if matches!(message, Self::Welcome(_)) {
            read_extensions(&mut r, |_, _| Ok(()))?;
        }
        r.finish()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::RelPath;
    use crate::protocol::{EntryKind, Meta};

    fn samples() -> Vec<Message> {
        let path = |p: &[u8]| RelPath::new(p).unwrap();
        let entry = |p: &[u8], kind| Entry {
            path: path(p),
            meta: Meta { mode: 0o640, mtime_s: -5, mtime_ns: 7, uid: 1, gid: 2 },
            kind,
        };
        let hello = |request| {
            Message::Hello(Box::new(Hello {
                required: vec![1],
                optional: vec![2, 3],
                program: "p".into(),
                job: [5; 16],
                fence: 6,
                purpose: Purpose::Copy,
                chunk_size: ChunkSize::DEFAULT,
                flags: JobFlags { overwrite: true, dry_run: true, ..JobFlags::default() },
                rate_limit: 7,
                streams: 0,
                request,
            }))
        };
        let typed = TypedPath { location: "buffer".into(), path: b"a/\xff/".to_vec() };
        vec![
            hello(Request::Push { destination: typed.clone(), sources: vec![b"x".to_vec()], more: true }),
            hello(Request::Pull { sources: vec![typed], holds: true }),
            Message::Welcome(Welcome { features: vec![2], program: "q".into(), host: "h".into(), holds: false }),
            Message::Abort { class: Class::Identity, text: "no".into() },
            Message::Page {
                first: 9,
                entries: vec![
                    entry(b"f", EntryKind::File { size: 1, sparse: true, expected: Some(Digest([1; 32])) }),
                    entry(b"d", EntryKind::Dir),
                    entry(b"d", EntryKind::DirEnd),
                    entry(b"l", EntryKind::Symlink { target: b"../x".to_vec() }),
                    entry(b"p", EntryKind::Skipped),
                    entry(b"g", EntryKind::Failed { class: Class::Source, text: "gone".into() }),
                ],
            },
            Message::Answer { first: 0, count: 3, exceptions: vec![(1, Disposition::Held), (2, Disposition::Compare)] },
            Message::Holds { file: 1, first: 2, values: vec![ChunkValue([3; 32])], last: true },
            Message::Hole { file: 1, first: 2, count: 3 },
            Message::Keep { file: 1, first: 2, count: 3 },
            Message::FileEnd { file: 1, root: Digest([4; 32]) },
            Message::FileFailed { file: 1, class: Class::Source, text: "x".into() },
            Message::End { entries: 1, bytes: 2 },
            Message::Got { chunks: vec![(1, 2)], packs: vec![3] },
            Message::Durable { ranges: vec![(1, 2, 3)] },
            Message::Want { file: 1, ranges: vec![(0, u64::MAX)] },
            Message::Receipts(vec![Receipt {
                id: 1,
                size: 2,
                digest: Some(Digest([5; 32])),
                done: Done::Copied,
                durable: true,
                published: true,
                evidence: vec![Evidence {
                    method: "direct".into(),
                    medium: "disk".into(),
                    cached: false,
                    host: "h".into(),
                    program: "p".into(),
                    start_ns: 1,
                    end_ns: 2,
                }],
            }]),
            Message::EntryFailed { id: 1, class: Class::Destination, text: "full".into() },
            Message::TreeReceipt { digest: None, failed: 1 },
            Message::Bye,
        ]
    }

    #[test]
    fn a_peers_words_steer_no_terminal() {
        let said = Message::Abort { class: Class::Source, text: "gone\x1b[2J\nall is well\u{202e}".into() };
        let heard = Message::decode(&said.encode());
        assert_eq!(heard.unwrap(), Message::Abort { class: Class::Source, text: "gone?[2J all is well?".into() });
    }

    #[test]
    fn messages_roundtrip_and_every_truncation_is_refused() {
        for m in samples() {
            let bytes = m.encode();
            assert_eq!(Message::decode(&bytes).unwrap(), m);
            for n in 0..bytes.len() {
                assert!(Message::decode(&bytes[..n]).is_err(), "{m:?} cut at {n}");
            }
            let mut longer = bytes;
            longer.push(0);
            assert!(Message::decode(&longer).is_err());
        }
    }

    #[test]
    fn unknown_fields_of_a_hello_are_skipped() {
        for m in samples().into_iter().take(3) {
            let mut bytes = m.encode();
            bytes.extend([9, 9, 3, 0, 1, 2, 3]);
            assert_eq!(Message::decode(&bytes).unwrap(), m);
        }
    }

    #[test]
    fn the_wish_for_streams_is_an_optional_field() {
        let Some(Message::Hello(plain)) = samples().into_iter().next() else { panic!("a hello") };
        let wish = Message::Hello(Box::new(Hello { streams: 12, ..*plain.clone() }));
        let bytes = wish.encode();
        assert_eq!(Message::decode(&bytes).unwrap(), wish);
        let field = bytes.len() - 8;
        assert_eq!(Message::decode(&bytes[..field]).unwrap(), Message::Hello(plain), "a peer without it");
        for n in field + 1..bytes.len() {
            assert!(Message::decode(&bytes[..n]).is_err(), "cut at {n}");
        }
        // Between fields that nobody knows yet, and with a length that is not its own.
        let unknown = [9, 9, 3, 0, 1, 2, 3];
        let among = [&bytes[..field], &unknown, &bytes[field..], &unknown].concat();
        assert_eq!(Message::decode(&among).unwrap(), wish);
        for len in [0u8, 3, 5] {
            let mut lies = bytes.clone();
            lies[field + 2] = len;
            lies.resize(field + 4 + usize::from(len), 0);
            assert!(Message::decode(&lies).is_err(), "length {len}");
        }
    }

    #[test]
    fn hostile_entries_are_refused() {
        let sized = |size| Message::Page {
            first: 0,
            entries: vec![Entry {
                path: RelPath::new(b"f".to_vec()).unwrap(),
                meta: Meta::default(),
                kind: EntryKind::File { size, sparse: false, expected: None },
            }],
        };
        assert!(Message::decode(&sized(1 << 62).encode()).is_ok());
        assert!(Message::decode(&sized(1 << 63).encode()).is_err());
        let mut bytes = sized(1).encode();
        let at = bytes.iter().position(|&b| b == b'f').unwrap();
        bytes[at] = b'/';
        assert!(matches!(Message::decode(&bytes), Err(ProtocolError::Malformed { why: Malformed::Path(_), .. })));
    }
}
