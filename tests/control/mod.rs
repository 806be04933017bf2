//! What the tests of whole control planes share.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod checker;
pub(crate) mod world;
