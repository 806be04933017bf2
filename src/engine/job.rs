use std::{fmt, num::NonZeroU32, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{FailureClass, Summary};
use crate::{
    chunk::{ChunkSize, Digest},
    net::Congestion,
};

/// What a job is asked to do, beyond where from and where to. The defaults are meant to be right.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the job across attempts.
    pub job: JobId,
    /// Raised by every attempt of the control plane; 0 from the command line.
    pub fence: u64,
    /// Unit of hashing and repair.
    pub chunk_size: ChunkSize,
    /// Replace destination files that differ, each atomically and after verification.
    pub overwrite: bool,
    /// Trust equal size and modification time instead of reading both sides.
    pub quick: bool,
    /// Read every file back from the medium before it is published.
    pub read_back: bool,
    /// Keep owner and group.
    pub owner: bool,
    /// Say what would be done and do nothing.
    pub dry_run: bool,
    /// Upper bound in bytes per second, headers not counted.
    pub rate_limit: Option<u64>,
    /// Connections (TCP) or streams in flight (QUIC); `None` lets the engine choose.
    pub streams: Option<NonZeroU32>,
    /// Which kinds of link to try.
    pub transport: TransportChoice,
    /// QUIC's congestion controller.
    pub congestion: Congestion,
    /// How long a session waits for a new link after its last one died.
    pub reconnect_timeout: Duration,
    /// Bytes of chunk buffers per process.
    pub memory_bytes: usize,
    /// What every regular file of the job must read as, where that is known before: a file with other bytes is failed with
    /// class source, before it gets its name. For jobs of one file; a tree is known by the digest of the whole only.
    pub expected: Option<Digest>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            job: JobId::random(),
            fence: 0,
            chunk_size: ChunkSize::DEFAULT,
            overwrite: false,
            quick: false,
            read_back: false,
            owner: false,
            dry_run: false,
            rate_limit: None,
            streams: None,
            transport: TransportChoice::Auto,
            congestion: Congestion::default(),
            reconnect_timeout: Duration::from_secs(600),
            memory_bytes: 96 << 20,
            expected: None,
        }
    }
}

/// 128 bits that name a job across attempts, processes and links.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId(pub [u8; 16]);

impl JobId {
    /// A new name.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

/// Which kinds of link a job may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// QUIC and TCP at once; what answers first carries the data. ssh only where nothing else connects.
    #[default]
    Auto,
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
    /// The ssh connection that starts the job.
    Ssh,
}

/// How to reach the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Started over ssh for this one job.
    Ssh {
        /// `[USER@]HOST` as ssh takes it.
        target: String,
        /// The remote shell and its arguments; the target and one constant command follow.
        rsh: Vec<String>,
        /// The program to run there.
        remote_path: String,
        /// Ports that either side may listen on for this job; 0 lets the system choose.
        ports: RangeInclusive<u16>,
        /// The far side's address for data, where it differs from the one that ssh reached.
        data_address: Option<String>,
        /// Only the far side dials.
        reverse: bool,
    },
    /// A running endpoint (`serve`).
    Endpoint {
        /// Name or address.
        host: String,
        /// UDP and TCP port.
        port: u16,
    },
}

/// A path at the far end: below a location of an endpoint, or of the remote user's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotePath {
    /// The location's name; `None` over ssh.
    pub location: Option<String>,
    /// The path as typed, a trailing slash included; relative to the location or to the remote home.
    pub path: Vec<u8>,
}

/// One end's paths of a job, as typed: a trailing slash means the contents of a directory, as in rsync.
#[derive(Clone, Debug)]
pub enum Direction {
    /// Local sources to a remote destination.
    Push {
        /// What to send.
        sources: Vec<PathBuf>,
        /// Where to.
        destination: RemotePath,
    },
    /// Remote sources to a local destination.
    Pull {
        /// What to fetch.
        sources: Vec<RemotePath>,
        /// Where to.
        destination: PathBuf,
    },
}

/// Why a job ended without its [`Summary`] or with failures in it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct JobError {
    /// Who or what was at fault.
    pub class: FailureClass,
    /// What, where and what to do.
    pub text: String,
    /// What was done until then, if the job got that far.
    pub summary: Option<Box<Summary>>,
}

impl JobError {
    /// An error without a summary.
    pub fn new(class: FailureClass, text: impl Into<String>) -> Self {
        Self { class, text: text.into(), summary: None }
    }
}
