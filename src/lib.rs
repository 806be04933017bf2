//! `ccat-xfer` moves observatory data between sites, fast, resumable and provably intact.
//!
//! The crate has layers; each may import only from those above it in this list (`tests/layering.rs` checks it):
//!
//! - [`chunk`] (pure): what a chunk, a digest and a path are.
//! - [`protocol`] (pure, sans-IO): what two ends say to each other. Its module doc is the wire specification.
//! - `buf`, `disk`, `net` (I/O): buffers, files beneath a root, links between machines.
//! - [`journal`]: part files and the resume journal. Its module doc is the disk format.
//! - `engine`: joins the above into `send` and `receive`.
//! - `reach`: the two ways to a peer, ssh and a running endpoint; keeps links up.
//! - `secret`, `task`, `telemetry`: leaves that know nothing of the domain: passwords; shutdown, supervision and retries;
//!   logs, metrics, health.
//! - `broker`: hints that a queue has work, in-process or through RabbitMQ.
//! - `endpoint`: what a running `serve` accepts, and for whom.
//! - [`model`] (pure): the words of the control plane.
//! - [`store`]: its databases. Its module doc says what is persisted, and why each constraint holds.
//! - [`archive`]: where packages rest for good: disk, S3, tape by command.
//! - `manager`, `worker`: the daemons: what schedules, and what moves.
//! - `config`, `cli`: settings and the command line.

#[cfg(feature = "control")]
pub mod archive;
#[cfg(feature = "control")]
pub mod broker;
#[cfg(feature = "engine")]
pub mod buf;
pub mod chunk;
#[cfg(feature = "engine")]
pub mod cli;
#[cfg(feature = "engine")]
pub mod config;
#[cfg(feature = "engine")]
pub mod disk;
#[cfg(feature = "engine")]
pub mod endpoint;
#[cfg(feature = "engine")]
pub mod engine;
pub mod journal;
#[cfg(feature = "control")]
pub mod manager;
#[cfg(feature = "control")]
pub mod model;
#[cfg(feature = "engine")]
pub mod net;
pub mod protocol;
#[cfg(feature = "engine")]
pub mod reach;
#[cfg(feature = "control")]
pub mod secret;
#[cfg(feature = "control")]
pub mod store;
#[cfg(feature = "engine")]
pub mod task;
#[cfg(feature = "engine")]
pub mod telemetry;
#[cfg(feature = "control")]
pub mod worker;
