//! Sites, locations, routes and peers by name, as a file describes them and as the database holds them.
//!
//! ```toml
//! [[peer]]                        # an endpoint (`ccat-xfer serve`) that others dial
//! name = "cologne"
//! address = "xfer.cologne.example:8422"
//! fingerprint = "sha256:..."      # of its key, as `cert show` prints it
//!
//! [[site]]
//! name = "Cologne"
//! short_name = "cologne"          # [a-z][a-z0-9_]*; part of queue names, never changes
//! location = "Cologne, Germany"   # for people
//!
//! [[location]]
//! site = "cologne"
//! name = "buffer"                 # [a-z][a-z0-9_]*; part of queue names, never changes
//! type = "buffer"                 # source, buffer, long_term_archive, processing
//! storage = "disk"                # disk (default), s3, tape
//! priority = 1                    # 1 is taken before 2
//! peer = "cologne"                # the endpoint that serves it
//! capacity = "200T"               # hints for the choice between buffers
//! keep_free = "1T"
//! rate_limit = "1G"               # bytes per second
//! max_concurrent = 8
//! logins = ["cologne_worker"]     # PostgreSQL logins whose workers may work here
//!
//! [[location]]                    # what else a long_term_archive may say
//! site = "cologne"
//! name = "tape"
//! type = "long_term_archive"
//! storage = "tape"
//! archive_group = "vaults"        # of the site's archives with this word, packages go to `archive_copies`; without a
//! archive_copies = 1              # group to each archive. Equal in all of a group; 1 is the default
//! cached_read_back_counts = false # whether a reading that a cache may have answered proves anything
//! on_tape_readback = "full"       # full (default), checksum (the tape system's own is enough), none
//!
//! [[route]]
//! name = "ccat-cologne"
//! type = "direct"                 # direct (default), relay, custom
//! from = "ccat"                   # SITE, or SITE/LOCATION in a custom route
//! to = "cologne"
//! via = "santiago"                # the third site of a relay; both legs are routes of their own
//! dialer = "origin"               # origin (default) or destination
//! method = "xfer"                 # xfer (default) or bbcp
//! transport = "auto"              # auto (default), quic, tcp, ssh
//! rate_limit = "800Mbit"
//! streams = 8
//! max_concurrent = 4
//!
//! [[start_rate]]                  # how much may start, of all workers together
//! queue = "ccat_buffer_data_transfer" # one queue, as `list workers` names it; without it all queues together
//! rate = "100/m"                  # a second (s), a minute (m) or an hour (h)
//! ```

mod check;
mod diff;
mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use super::{Dialer, LocationType, Method, OnTapeReadback, RouteType, StartRate, StorageType, Transport};

pub use diff::{Change, ChangeKind, FieldChange};

/// Most hops of a relay with all its legs.
pub const MAX_HOPS: usize = 8;

/// Everything by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Endpoints by name.
    pub peers: BTreeMap<String, Peer>,
    /// Sites by short name.
    pub sites: BTreeMap<String, Site>,
    /// Locations by site and name.
    pub locations: BTreeMap<Place, Location>,
    /// Routes by name.
    pub routes: BTreeMap<String, Route>,
    /// How much may start, by the queue's name; [`ALL_QUEUES`] is the rate of all of them together.
    pub start_rates: BTreeMap<String, StartRate>,
}

/// In the place of a queue's name: all queues together.
pub const ALL_QUEUES: &str = "*";

/// A location's name: `SITE/LOCATION`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Short name of the site.
    pub site: String,
    /// Name of the location there.
    pub location: String,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `HOST:PORT`.
    pub address: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub fingerprint: String,
    /// Whether it is in the file.
    pub active: bool,
}

/// A site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// For people.
    pub name: String,
    /// For people.
    pub location: String,
    /// Whether it is in the file.
    pub active: bool,
}

/// A place that holds data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// What it is for.
    pub location_type: LocationType,
    /// What it is made of.
    pub storage_type: StorageType,
    /// 1 is taken before 2.
    pub priority: u32,
    /// The endpoint that serves it.
    pub peer: Option<String>,
    /// Bytes that it holds in all.
    pub capacity_bytes: Option<u64>,
    /// Bytes that stay free.
    pub keep_free_bytes: u64,
    /// Bytes per second in and out.
    pub rate_limit_bytes_per_s: Option<u64>,
    /// Pieces of work at once.
    pub max_concurrent: Option<u32>,
    /// PostgreSQL logins whose workers may work here.
    pub logins: BTreeSet<String>,
    /// Archives of one site that stand for each other.
    pub archive_group: Option<String>,
    /// How many of the group a package goes to.
    pub archive_copies: u32,
    /// Whether a reading that a cache may have answered proves anything of what rests in this archive.
    pub cached_read_back_counts: bool,
    /// What has to be read back in this archive.
    pub on_tape_readback: OnTapeReadback,
    /// Whether it is in the file.
    pub active: bool,
}

/// One end of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteEnd {
    /// Short name of the site.
    pub site: String,
    /// A location, where the route is for that one only.
    pub location: Option<String>,
}

/// A way from site to site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it is.
    pub route_type: RouteType,
    /// Where it begins.
    pub from: RouteEnd,
    /// Where it ends.
    pub to: RouteEnd,
    /// The third site of a relay.
    pub via: Option<String>,
    /// What moves the bytes.
    pub method: Method,
    /// Which end dials.
    pub dialer: Dialer,
    /// Which links may be tried.
    pub transport: Transport,
    /// Bytes per second.
    pub rate_limit_bytes_per_s: Option<u64>,
    /// TCP connections or QUIC streams.
    pub streams: Option<u32>,
    /// Transfers at once.
    pub max_concurrent: Option<u32>,
    /// Whether it is in the file.
    pub active: bool,
}

/// What is wrong with a topology: all of it, so that a file is mended once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Not TOML, or not these tables and keys.
    #[error("the topology file does not parse: {0}")]
    Syntax(String),
    /// It says what cannot be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
}

/// One thing that is wrong, with where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Two with one name, or two ways between the same ends.
    #[error("{at}: there is another one {of}")]
    Twice {
        /// Where.
        at: String,
        /// What is there twice.
        of: String,
    },
    /// A name that nothing has.
    #[error("{at}: no {what} is called '{name}'")]
    Unknown {
        /// Where.
        at: String,
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A value that does not parse or cannot be.
    #[error("{at}: {why}")]
    Value {
        /// Where.
        at: String,
        /// What is wrong, and what is allowed.
        why: String,
    },
    /// Following the legs of a relay comes back to it, or does not end.
    #[error("{at}: its legs lead back to it: {path}")]
    RelayLoop {
        /// The relay.
        at: String,
        /// The routes on the way.
        path: String,
    },
    /// Nothing can be moved along it.
    #[error("{at}: it leads nowhere: {why}")]
    LeadsNowhere {
        /// The route.
        at: String,
        /// What is missing.
        why: String,
    },
    /// The database has it otherwise, and it cannot change.
    #[error("{at}: {what} cannot change from {from} to {to}; give it another name")]
    Fixed {
        /// Where.
        at: String,
        /// What.
        what: &'static str,
        /// As the database has it.
        from: String,
        /// As the file has it.
        to: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.location)
    }
}

impl FromStr for Place {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text.split_once('/') {
            Some((site, location)) if is_name(site) && is_name(location) => {
                Ok(Self { site: site.to_owned(), location: location.to_owned() })
            }
            _ => Err(Fault::Value { at: format!("'{text}'"), why: "a location is written SITE/LOCATION".into() }),
        }
    }
}

impl fmt::Display for RouteEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(f, "{}/{location}", self.site),
            None => f.write_str(&self.site),
        }
    }
}

/// A name that may stand in the name of a queue.
fn is_name(text: &str) -> bool {
    text.len() <= 40
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests;
