//! The `ccat-xfer` program.

fn main() {}
