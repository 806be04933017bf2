/// Text that is none of the words of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}; it is one of {}", allowed.join(", "))]
pub struct WordError {
    /// The text.
    pub text: String,
    /// What was wanted.
    pub what: &'static str,
    /// All words of the set.
    pub allowed: &'static [&'static str],
}

/// A closed set of words with one spelling everywhere: database, configuration, JSON and terminal.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            const WORDS: &'static [&'static str] = &[$($text),+];

            /// The one spelling.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::model::WordError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::model::WordError { text: text.to_owned(), what: $what, allowed: Self::WORDS }),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(super) use words;

words! {
    /// What a location is for.
    LocationType, "a type of location" {
        /// Where an instrument writes.
        Source = "source",
        /// Where packages wait for their next step.
        Buffer = "buffer",
        /// Where packages stay.
        LongTermArchive = "long_term_archive",
        /// Where packages are worked on.
        Processing = "processing",
    }

    /// What a location is made of.
    StorageType, "a type of storage" {
        /// A file system.
        Disk = "disk",
        /// An object store.
        S3 = "s3",
        /// Tape, behind commands of the site.
        Tape = "tape",
    }

    /// What a route is.
    RouteType, "a type of route" {
        /// From site to site.
        Direct = "direct",
        /// Over a third site: one hop for each leg.
        Relay = "relay",
        /// Between named locations, before the routes between their sites.
        Custom = "custom",
    }

    /// Which end opens the connection, and so which end's queue holds the work.
    Dialer, "a side that dials" {
        /// The origin pushes; the work waits in the queue of the origin's location.
        Origin = "origin",
        /// The destination pulls; the work waits in the queue of the destination's location.
        Destination = "destination",
    }

    /// What moves the bytes.
    Method, "a method of transfer" {
        /// This program's own engine.
        Xfer = "xfer",
        /// The program bbcp.
        Bbcp = "bbcp",
    }

    /// Which kinds of link the engine may try on a route.
    Transport, "a transport" {
        /// Whatever works best.
        Auto = "auto",
        /// QUIC only.
        Quic = "quic",
        /// TCP with TLS only.
        Tcp = "tcp",
        /// Through ssh only.
        Ssh = "ssh",
    }

    /// What a package is.
    PackageKind, "a kind of package" {
        /// One file; identified by its BLAKE3 digest.
        File = "file",
        /// A directory with all in it; identified by its tree digest.
        Tree = "tree",
    }

    /// Which long-term archives a package must reach.
    Policy, "a policy" {
        /// None: it is moved and that is all.
        TransferOnly = "transfer_only",
        /// Those of the sites where it lies and where it shall go; none where these have none. The default.
        SiteArchives = "site_archives",
        /// One, whichever comes first in turn.
        OneArchive = "one_archive",
        /// Every one that is active when the package arrives.
        EveryArchive = "every_archive",
    }

    /// What is known to lie at a place.
    CopyStatus, "a status of a copy" {
        /// It can be read there.
        Present = "present",
        /// Unpacked for processing, its package file removed.
        Staged = "staged",
        /// It may be deleted.
        DeletionPossible = "deletion_possible",
        /// It will be deleted.
        DeletionScheduled = "deletion_scheduled",
        /// It is being deleted.
        DeletionInProgress = "deletion_in_progress",
        /// It was deleted.
        Deleted = "deleted",
        /// It could not be deleted.
        DeletionFailed = "deletion_failed",
    }

    /// How far a copy is trusted.
    Verification, "a verification" {
        /// The copy from which size and digest were taken; the origin's only.
        Registered = "registered",
        /// An equal verification record exists for it.
        Verified = "verified",
        /// Something speaks against it.
        Suspect = "suspect",
        /// It was found different.
        Corrupt = "corrupt",
    }

    /// How a digest was found.
    CheckMethod, "a method of verification" {
        /// From the bytes as they arrived, before they were published.
        Received = "received",
        /// From the medium after they were written.
        ReadBack = "read_back",
        /// From what was there already when a transfer came.
        FoundEqual = "found_equal",
        /// From a later reading of everything.
        Scrub = "scrub",
    }

    /// How the bytes of a reading were had.
    ReadHow, "a way to read" {
        /// Past the page cache (`O_DIRECT`).
        Direct = "direct",
        /// After they were seen to be gone from the page cache.
        Dropped = "dropped",
        /// Perhaps from the page cache.
        Cached = "cached",
        /// By a GET from a store elsewhere.
        RemoteGet = "remote_get",
        /// By the archive system's own command.
        Command = "command",
        /// Not read: the archive system vouches for them (a checksum of its own), as its policy allows.
        Vouched = "vouched",
    }

    /// What an archive has to read of a package after it was put there, before it counts.
    OnTapeReadback, "a policy of reading back" {
        /// All of it.
        Full = "full",
        /// At least the archive system's own checksum.
        Checksum = "checksum",
        /// Nothing; the record says why.
        None = "none",
    }

    /// A route's circuit breaker.
    BreakerState, "a state of a circuit breaker" {
        /// Attempts run.
        Closed = "closed",
        /// No attempt runs until the time is over.
        Open = "open",
        /// One attempt runs, to see whether the link is back.
        HalfOpen = "half_open",
    }

    /// What a worker is doing.
    WorkerState, "a state of a worker" {
        /// It claims.
        Active = "active",
        /// It finishes what it has and claims nothing.
        Draining = "draining",
        /// It has gone in good order.
        Stopped = "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_as_it_is_written() {
        for &word in CopyStatus::ALL {
            assert_eq!(word.as_str().parse(), Ok(word));
            assert_eq!(serde_json::to_string(&word).unwrap(), format!("\"{word}\""));
            assert_eq!(serde_json::from_str::<CopyStatus>(&format!("\"{word}\"")).unwrap(), word);
        }
        let error = "floppy".parse::<StorageType>().unwrap_err();
        assert_eq!(error.to_string(), "'floppy' is not a type of storage; it is one of disk, s3, tape");
    }
}
