use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Text that is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}; write it as in {example}")]
pub struct IdParseError {
    /// The text.
    pub text: String,
    /// What was wanted.
    pub what: &'static str,
    /// How one looks.
    pub example: &'static str,
}

/// Ids are the database's own numbers. They are shown with a letter for their kind, so that one pasted into the wrong
/// command is noticed; the bare number is understood as well.
macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $letters:literal, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// The id that the database calls by this number.
            pub const fn new(number: i64) -> Self {
                Self(number)
            }

            /// The database's number.
            pub const fn number(self) -> i64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letters, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, IdParseError> {
                number(text.strip_prefix($letters).unwrap_or(text)).map(Self).ok_or_else(|| IdParseError {
                    text: text.to_owned(),
                    what: $what,
                    example: concat!($letters, "12"),
                })
            }
        }
    )*};
}

ids! {
    /// A site.
    SiteId = "site", "the id of a site";
    /// A data location: a place of a site that holds data.
    LocationId = "l", "the id of a location";
    /// An endpoint that others reach.
    PeerId = "peer", "the id of a peer";
    /// A route between sites or locations.
    RouteId = "r", "the id of a route";
    /// A raw data package.
    PackageId = "p", "the id of a package";
    /// The wish that a package be somewhere.
    RequestId = "q", "the id of a request";
    /// Packages that are moved together.
    BundleId = "b", "the id of a bundle";
    /// One hop of a bundle.
    TransferId = "t", "the id of a transfer";
    /// One package's way into one archive.
    ArchiveTransferId = "a", "the id of an archive transfer";
    /// A worker, whatever process it is at the moment.
    WorkerId = "w", "the id of a worker";
}

fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&n| digits && n > 0)
}

/// What a worker claims: both kinds have the same columns, states and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A hop between sites.
    Transfer(TransferId),
    /// A way into an archive.
    Archive(ArchiveTransferId),
}

impl Work {
    /// The table that holds it, which is also its entity's name in `event`.
    pub const fn table(self) -> &'static str {
        match self {
            Self::Transfer(_) => "data_transfer",
            Self::Archive(_) => "long_term_archive_transfer",
        }
    }

    /// The database's number in that table.
    pub const fn number(self) -> i64 {
        match self {
            Self::Transfer(id) => id.number(),
            Self::Archive(id) => id.number(),
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transfer(id) => id.fmt(f),
            Self::Archive(id) => id.fmt(f),
        }
    }
}

impl FromStr for Work {
    type Err = IdParseError;

    /// `t12` or `a3`; a bare number is a transfer's.
    fn from_str(text: &str) -> Result<Self, IdParseError> {
        if text.starts_with('a') { text.parse().map(Self::Archive) } else { text.parse().map(Self::Transfer) }
    }
}

/// Raised by one with every claim of a piece of work, and issued by the store only. Whoever holds a lower one than
/// the row, the receiver's journal or the archive has seen is overtaken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(i64);

impl Fence {
    /// The fence that a row holds; 0 is a row that nobody has claimed.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number, never negative in a row.
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_printed() {
        assert_eq!(TransferId::new(12).to_string(), "t12");
        assert_eq!("t12".parse(), Ok(TransferId::new(12)));
        assert_eq!("12".parse(), Ok(TransferId::new(12)));
        for text in ["", "t", "p12", "t0", "t-1", "t+1", "t1x", "99999999999999999999", "tt1"] {
            assert!(text.parse::<TransferId>().is_err(), "{text}");
        }
        for work in [Work::Transfer(TransferId::new(1)), Work::Archive(ArchiveTransferId::new(2))] {
            assert_eq!(work.to_string().parse(), Ok(work));
        }
        assert_eq!(
            "p".parse::<PackageId>().unwrap_err().to_string(),
            "'p' is not the id of a package; write it as in p12"
        );
    }
}
