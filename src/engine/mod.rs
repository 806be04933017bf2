//! Joins machines, buffers, disks and links into `send` and `receive`. Needs no control plane.

mod report;

pub use report::{Action, FailureClass, FileReport, Limit, Observer, Progress, Silent, Summary, TransportKind};
