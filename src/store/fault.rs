//! A mistake planted on purpose: in a build with the feature `faults`, `CCAT_XFER_FAULT_FENCE=ignored` lets outcomes and
//! renewals of an overtaken fence pass as if it were the present one. What a test of the fence is worth shows when it fails.

/// Whether it is planted.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub(super) const fn fence_is_ignored() -> bool {
    false
}

/// Whether it is planted.
#[cfg(feature = "faults")]
pub(super) fn fence_is_ignored() -> bool {
    static PLANTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *PLANTED.get_or_init(|| std::env::var_os("CCAT_XFER_FAULT_FENCE").is_some_and(|word| word == "ignored"))
}
