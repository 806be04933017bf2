use std::fmt;

use crate::{chunk::Digest, protocol::Evidence};

/// What a job tells whoever watches it. Calls are short and come from any thread; an implementation must not block.
pub trait Observer: Send + Sync + fmt::Debug {
    /// One entry reached its end, well or badly.
    fn file(&self, report: &FileReport);
    /// Something that the operator should read but that ends nothing.
    fn warning(&self, text: &str);
    /// Figures as they stand; called a few times a second.
    fn progress(&self, progress: &Progress);
}

/// Watches nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn file(&self, _: &FileReport) {}
    fn warning(&self, _: &str) {}
    fn progress(&self, _: &Progress) {}
}

/// What became of one entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileReport {
    /// Path relative to the destination, as bytes; may be anything but NUL.
    pub path: Vec<u8>,
    /// Length in bytes; 0 for anything but a regular file.
    pub size: u64,
    /// BLAKE3 root of a regular file's bytes, once known.
    pub digest: Option<Digest>,
    /// What was done.
    pub action: Action,
    /// How the receiver knows that the bytes are there: what it hashed, from where, when.
    pub evidence: Vec<Evidence>,
    /// When the source was last written to, in microseconds since the Unix epoch, as its sender says.
    pub modified_us: Option<i64>,
}

/// What was done about one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Bytes travelled and the entry was published.
    Copied,
    /// The destination already held equal bytes.
    Same,
    /// The destination had equal size and time, and `--quick` trusts these.
    Trusted,
    /// A directory or link was made or brought up to date.
    Made,
    /// Not a file, directory or link: counted, not copied.
    Skipped,
    /// With `--dry-run`: would have been copied.
    WouldCopy,
    /// Not copied, and why.
    Failed {
        /// Who or what was at fault.
        class: FailureClass,
        /// For a human: what, where and what to do.
        text: String,
    },
}

impl Action {
    /// The word in `--json` and on a terminal.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Same => "same",
            Self::Trusted => "trusted",
            Self::Made => "made",
            Self::Skipped => "skipped",
            Self::WouldCopy => "would_copy",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Who or what was at fault; decides the exit code and whether another attempt can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The command or its settings make no sense.
    Usage,
    /// Missing, unreadable or changed while it was read.
    Source,
    /// Not writable, full, or holds something different.
    Destination,
    /// Bytes were not what their digest says, and repair did not help.
    Integrity,
    /// The peer is not who it should be, or we are not welcome.
    Identity,
    /// The path between the ends.
    Network,
    /// A newer attempt owns the destination.
    Overtaken,
    /// Ended on request.
    Cancelled,
    /// A defect of this program.
    Bug,
}

impl FailureClass {
    /// The word in `--json` and in logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Integrity => "integrity",
            Self::Identity => "identity",
            Self::Network => "network",
            Self::Overtaken => "overtaken",
            Self::Cancelled => "cancelled",
            Self::Bug => "bug",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Figures of a running job, copied out. All byte figures count verified bytes of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries that reached their end.
    pub entries_done: u64,
    /// Entries found so far; final once `scan_complete`.
    pub entries_found: u64,
    /// Bytes that the receiver holds verified.
    pub bytes_done: u64,
    /// Of these, bytes that the receiver acknowledged as durable.
    pub bytes_durable: u64,
    /// Bytes found so far; final once `scan_complete`.
    pub bytes_found: u64,
    /// The source has been walked to its end.
    pub scan_complete: bool,
    /// Links that are up.
    pub links: u32,
}

/// The kinds of link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// QUIC over UDP.
    Quic,
    /// TCP with TLS 1.3.
    Tcp,
    /// A byte stream: the ssh connection that started the job.
    Ssh,
}

impl TransportKind {
    /// The word on the command line and in `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Ssh => "ssh",
        }
    }
}

/// What limited the rate, as far as the engine could tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// Reading the source.
    SourceDisk,
    /// Writing or syncing the destination.
    DestinationDisk,
    /// The links.
    Network,
    /// The job was told to go no faster.
    RateLimit,
    /// Too short or too even to tell.
    #[default]
    Unknown,
}

impl Limit {
    /// The word in `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::SourceDisk => "source_disk",
            Self::DestinationDisk => "destination_disk",
            Self::Network => "network",
            Self::RateLimit => "rate_limit",
            Self::Unknown => "unknown",
        }
    }
}

/// The end of a job, for a human and for `--json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Bytes of regular files that the destination now holds verified, resumed ones included.
    pub bytes: u64,
    /// Regular files among the entries that ended well.
    pub files: u64,
    /// Directories and links that ended well.
    pub others: u64,
    /// FIFOs, sockets and devices that were not copied.
    pub skipped: u64,
    /// Hard links that became separate files.
    pub hard_links: u64,
    /// Entries that failed.
    pub failed: u64,
    /// From the first link to the last receipt, in seconds.
    pub seconds: f64,
    /// Bytes put on and taken from the wire by all links, headers of ours included.
    pub wire_bytes: u64,
    /// Bytes that did not travel because the destination held them.
    pub bytes_resumed: u64,
    /// Kinds of link that carried data.
    pub transports: Vec<TransportKind>,
    /// Why these and not others.
    pub transport_reason: String,
    /// Connections (TCP) or connections times streams in flight (QUIC) at the peak.
    pub streams: u32,
    /// Congestion controller, as the transport names it.
    pub controller: String,
    /// Chunks that were sent more than once, in bytes.
    pub bytes_repeated: u64,
    /// Packets or segments that the transports sent again.
    pub retransmits: u64,
    /// BLAKE3 of the canonical manifest; `None` if the job ended before it was whole.
    pub tree_digest: Option<Digest>,
    /// What limited the rate.
    pub limited_by: Limit,
}

impl Summary {
    /// Verified bytes per second, in 10^6 bit/s.
    pub fn goodput_mbit_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bits = self.bytes.saturating_sub(self.bytes_resumed) as f64 * 8.0;
        if self.seconds > 0.0 { bits / 1e6 / self.seconds } else { 0.0 }
    }
}
