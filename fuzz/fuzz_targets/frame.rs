//! libFuzzer's way into one decoder; `decoders.rs` says what is checked.
#![no_main]

#[path = "../decoders.rs"]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| decoders::frame(bytes));
