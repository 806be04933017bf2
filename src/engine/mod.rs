//! Joins machines, buffers, disks and links into `send` and `receive`. Needs no control plane.
//!
//! [`Session`] holds the machine of one end and the links that are up; [`run_link`] carries frames between a link and its
//! session; [`push`], [`pull`] and [`accept`] hold the handshake and drive the machine to its end.

mod attempts;
mod here;
mod job;
mod link;
mod measure;
mod pace;
mod places;
mod receipts;
mod receive;
mod report;
mod send;
mod session;
mod start;
pub mod walk;

use std::time::Duration;

pub use attempts::Attempts;
pub use here::copy_here;
pub use job::{Direction, JobError, JobId, Options, Remote, RemotePath, TransportChoice};
pub use link::{
    LinkError, accept as accept_link, await_answer, hear_hello, hear_hello_whenever, introduce, proves, refuse,
    run as run_link,
};
pub use measure::{Look, MeasureError, Measured, measure, measure_by};
pub use pace::Pace;
pub use places::{Home, Opened, Places, resolve_destination, top_name, unfinished_name};
pub use receipts::{Kept, KeptTree, ask_receipts};
pub use receive::{Naming, host_name};
pub use report::{Action, FailureClass, FileReport, Limit, Observer, Progress, Silent, Summary, TransportKind};
pub use session::{Session, class_of, wire_class};
pub use start::{accept, pull, push, walk};

/// Program and version, as peers and receipts name it.
pub fn program() -> &'static str {
    concat!("ccat-xfer ", env!("CARGO_PKG_VERSION"))
}

/// The end of a session whose links stayed away.
fn no_link(lost: Duration, why: Option<&str>) -> JobError {
    let why = why.map(|w| format!(" (the last one: {w})")).unwrap_or_default();
    JobError::new(
        FailureClass::Network,
        format!("no link to the peer for {} s{why}; the same command resumes", lost.as_secs()),
    )
}
