//! A panic planted on purpose. In a build for use this is nothing; with the feature `faults` the environment variable
//! `CCAT_XFER_PANIC` names the path of a package at whose beginning the worker's task panics.

#[cfg(not(any(test, feature = "faults")))]
#[inline(always)]
pub(super) const fn package_begins(_: &[u8]) {}

#[cfg(any(test, feature = "faults"))]
pub(super) fn package_begins(path: &[u8]) {
    use std::os::unix::ffi::OsStrExt as _;
    if std::env::var_os("CCAT_XFER_PANIC").is_some_and(|planted| planted.as_bytes() == path) {
        panic!("planted at {}", String::from_utf8_lossy(path));
    }
}
