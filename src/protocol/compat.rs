//! The one table of features: number, since which program version, what it means.

/// A feature that two ends may agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its number on the wire.
    pub code: u16,
    /// The first program version that knows it.
    pub since: &'static str,
    /// What it means, in a sentence.
    pub meaning: &'static str,
}

/// Every feature that this program knows.
pub const FEATURES: &[Feature] = &[
    Feature { code: 1, since: "0.1.0", meaning: "small files travel in packs" },
    Feature { code: 2, since: "0.1.0", meaning: "runs of zero chunks travel as hole messages" },
];

/// The first required feature that this program does not know.
pub fn unknown_required(required: &[u16]) -> Option<u16> {
    required.iter().copied().find(|code| !FEATURES.iter().any(|f| f.code == *code))
}

/// Of the peer's optional features, those known here.
pub fn common(optional: &[u16]) -> Vec<u16> {
    optional.iter().copied().filter(|code| FEATURES.iter().any(|f| f.code == *code)).collect()
}
