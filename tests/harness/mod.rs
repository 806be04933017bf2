//! What the black-box tests share: a scene with a folder and processes of its own, the commands under test with a time
//! limit, trees and their comparison, a private sshd, a private PostgreSQL, an endpoint, network namespaces.
//!
//! Everything a test starts carries the scene's mark in its environment, so that what is left over is found and ended
//! even when it moved to another process group, and nothing of anybody else is touched.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

mod command;
mod compare;
mod events;
mod netns;
mod postgres;
mod rabbitmq;
mod s3;
mod s3_proxy;
mod scale;
mod scene;
mod serve;
mod sshd;
mod tree;
mod xfer;

pub(crate) use command::{Finished, Running, spawn};
pub(crate) use compare::{assert_same_tree, b3sum_of, check_digests, differences, tree_blocks};
pub(crate) use events::Events;
pub(crate) use netns::{Block, Netns, Topology};
pub(crate) use postgres::{Durability, Postgres};
pub(crate) use rabbitmq::Rabbitmq;
pub(crate) use s3::{S3Server, volumes_in};
pub(crate) use s3_proxy::{Count, Fate, Harm, Passing, Proxy};
pub(crate) use scale::{Rng, count, full, say, scaled, seed, size, skip};
pub(crate) use scene::{Scene, command_line, have, is_root, kill, peak_rss_kib, processes_with, status_kib};
pub(crate) use serve::{Endpoint, Setup, acquaint, cert, make_identity, trust};
pub(crate) use sshd::{Sshd, free_port};
pub(crate) use tree::{TreeSpec, build, fill, flip_bit, write_file};
pub(crate) use xfer::{
    Far, LIMIT, PROGRAM, Transport, Xfer, as_rsh, exit, far_pids, local_rsh, own_home, script, with_slash,
};
