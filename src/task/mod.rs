//! How long-lived work starts, ends and tries again: the words that every daemon shares, without a word of its domain.
//!
//! - [`Gate`]: one place that says "take nothing new" and then "end now". The first SIGTERM or SIGINT drains, the second
//!   ends at once.
//! - [`supervise()`]: a task whose panic becomes a value with its backtrace, so that a daemon records it and goes on.
//! - [`BootTime`]: a clock that does not stand still while the machine is suspended, for what others count on.
//! - [`Backoff`] and [`retry()`]: waiting between attempts, with jitter, so that many clients of a server that came back do
//!   not call it in step.

mod boot;
mod retry;
mod shutdown;
mod signals;
mod supervise;

pub use boot::BootTime;
pub use retry::{Backoff, Delays, GaveUp, retry};
pub use shutdown::{Gate, Pass};
pub use signals::{Hangup, Termination};
pub use supervise::{Panic, Supervised, TaskEnd, supervise};
