//! Joins machines, buffers, disks and links into `send` and `receive`. Needs no control plane.

mod job;
mod report;

pub use job::{Direction, JobError, JobId, Options, Remote, RemotePath, TransportChoice};
pub use report::{Action, FailureClass, FileReport, Limit, Observer, Progress, Silent, Summary, TransportKind};
