//! The words of the control plane: what a transfer is, which states it has, how it may fail, where it waits.
//!
//! Pure: no clock, no database, no task. The names and values of enums are those of the observatory's operations
//! database (`Status`, `PackageState`, `LocationType`, queue names), so that an operator reads the same words in both.
//!
//! | word | meaning |
//! |---|---|
//! | package | a file or a tree of files below a location, with size and digest taken once at its origin |
//! | request | the wish that a package be at a site or location |
//! | bundle | packages that one transfer moves together (`data_transfer_package`) |
//! | transfer | one hop of a bundle from a location to another (`data_transfer`) |
//! | archive transfer | one package's way into one long-term archive (`long_term_archive_transfer`) |
//! | work | a transfer or an archive transfer: what a worker claims |
//! | fence | a number that every claim of a piece of work raises; lower ones are refused everywhere |

mod breaker;
mod digest;
mod failure;
mod grouping;
mod id;
mod network;
mod outcome;
mod package_work;
mod queue;
mod reason;
mod scrub;
mod start_rate;
mod status;
mod time;
pub mod topology;
mod vocabulary;

pub use breaker::{Breaker, LinkNews};
pub use digest::{Algorithm, PackageDigest};
pub use failure::{End, ErrorClass, RetryPolicy};
pub use grouping::{BundleLimits, Candidate, Cut};
pub use id::{
    ArchiveTransferId, BundleId, Fence, IdParseError, LocationId, PackageId, PeerId, RequestId, RouteId, SiteId,
    TransferId, Work, WorkerId,
};
pub use network::{Destination, Errand, Hop, Network, Obstacle, PlannedLocation, PlannedRoute, PlannedSite};
pub use outcome::{AttemptOutcome, Ending, Evidence, OutcomeError};
pub use package_work::PackageWork;
pub use queue::{Operation, QueueName, QueueNameError};
pub use reason::{DatedReason, Reason};
pub use scrub::ScrubTally;
pub use start_rate::{StartRate, StartRateError, StartTokens};
pub use status::{IllegalChange, Move, PackageMove, PackageState, Status};
pub use time::Timestamp;
pub use vocabulary::{
    BreakerState, CheckMethod, CopyStatus, Dialer, LocationType, Method, OnTapeReadback, PackageKind, Policy, ReadHow,
    RouteType, StorageType, Transport, Verification, WordError, WorkerState,
};
