//! What a running process tells about itself: log lines, figures, and whether it makes progress.
//!
//! - [`logs`]: one subscriber for the process, whose level can be switched while it runs.
//! - [`metrics`]: a registry that is handed down when a daemon is built; there is no global one. Labels are enums, so that
//!   no text from outside can make their number grow.
//! - [`health`]: every loop of a daemon has a heartbeat; a loop that is alive but stuck is reported as stale. A process that
//!   exists proves nothing.
//! - [`http`]: `GET /health` and `GET /metrics`, on loopback unless a token guards them.

#[cfg(feature = "control")]
pub mod health;
#[cfg(feature = "control")]
pub mod http;
pub mod logs;
#[cfg(feature = "control")]
pub mod metrics;
