use std::collections::BTreeSet;

use serde::Deserialize;

use super::{
    super::{QueueName, StartRateError},
    ALL_QUEUES, Dialer, Fault, Location, LocationType, Method, OnTapeReadback, Peer, Place, Route, RouteEnd, RouteType,
    Site, StorageType, Topology, TopologyError, Transport, is_name,
};
use crate::config::units;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peer: Vec<PeerTable>,
    #[serde(default)]
    site: Vec<SiteTable>,
    #[serde(default)]
    location: Vec<LocationTable>,
    #[serde(default)]
    route: Vec<RouteTable>,
    #[serde(default)]
    start_rate: Vec<StartRateTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerTable {
    name: String,
    address: String,
    fingerprint: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteTable {
    name: String,
    short_name: String,
    #[serde(default)]
    location: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocationTable {
    site: String,
    name: String,
    #[serde(rename = "type")]
    location_type: LocationType,
    storage: Option<StorageType>,
    priority: Option<u32>,
    peer: Option<String>,
    capacity: Option<String>,
    keep_free: Option<String>,
    rate_limit: Option<String>,
    max_concurrent: Option<u32>,
    #[serde(default)]
    logins: BTreeSet<String>,
    archive_group: Option<String>,
    archive_copies: Option<u32>,
    cached_read_back_counts: Option<bool>,
    on_tape_readback: Option<OnTapeReadback>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteTable {
    name: String,
    #[serde(rename = "type")]
    route_type: Option<RouteType>,
    from: String,
    to: String,
    via: Option<String>,
    dialer: Option<Dialer>,
    method: Option<Method>,
    transport: Option<Transport>,
    rate_limit: Option<String>,
    streams: Option<u32>,
    max_concurrent: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartRateTable {
    queue: Option<String>,
    rate: String,
}

impl Topology {
    /// Reads the text of a topology file and checks all that it says.
    ///
    /// # Errors
    /// It does not parse, or it says what cannot be; then every fault is named.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        let file: File = toml::from_str(text).map_err(|e| TopologyError::Syntax(e.to_string()))?;
        let mut reader = Reader { topology: Self::default(), faults: Vec::new() };
        file.peer.into_iter().for_each(|t| reader.peer(t));
        file.site.into_iter().for_each(|t| reader.site(t));
        file.location.into_iter().for_each(|t| reader.location(t));
        file.route.into_iter().for_each(|t| reader.route(t));
        file.start_rate.into_iter().for_each(|t| reader.start_rate(t));
        let Reader { topology, mut faults } = reader;
        // What follows from the whole is only worth saying when its parts are right.
        if faults.is_empty() {
            faults = topology.faults();
        }
        if faults.is_empty() { Ok(topology) } else { Err(TopologyError::Faults(faults)) }
    }
}

struct Reader {
    topology: Topology,
    faults: Vec<Fault>,
}

impl Reader {
    fn value(&mut self, at: &str, why: impl Into<String>) {
        self.faults.push(Fault::Value { at: at.to_owned(), why: why.into() });
    }

    fn name(&mut self, at: &str, what: &str, name: &str) {
        if !is_name(name) {
            self.value(at, format!("{what} '{name}' is not 1 to 40 of a-z, 0-9 and _, beginning with a letter"));
        }
    }

    fn title(&mut self, at: &str, name: &str) {
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            self.value(at, "a name is 1 to 100 printable characters");
        }
    }

    fn twice(&mut self, at: String, there: bool) {
        if there {
            self.faults.push(Fault::Twice { at, of: "with this name".into() });
        }
    }

    /// A size or rate that both databases can hold.
    fn units(
        &mut self,
        at: &str,
        text: Option<String>,
        read: fn(&str) -> Result<u64, units::UnitError>,
    ) -> Option<u64> {
        match read(&text?) {
            Ok(value) if i64::try_from(value).is_ok() => Some(value),
            Ok(value) => {
                self.value(at, format!("{value} is above 2^63 - 1"));
                None
            }
            Err(error) => {
                self.value(at, error.to_string());
                None
            }
        }
    }

    fn at_least_one(&mut self, at: &str, what: &str, value: Option<u32>, most: u32) {
        if value.is_some_and(|v| v == 0 || v > most) {
            self.value(at, format!("{what} is 1 to {most}"));
        }
    }

    fn peer(&mut self, table: PeerTable) {
        let at = format!("peer '{}'", table.name);
        self.title(&at, &table.name);
        if table.address.is_empty() || table.address.len() > 300 || table.address.contains(char::is_whitespace) {
            self.value(&at, "an address is HOST:PORT");
        }
        let digits = table.fingerprint.strip_prefix("sha256:").unwrap_or(&table.fingerprint).replace(':', "");
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            self.value(&at, "a fingerprint is sha256: and 64 hexadecimal digits, as `ccat-xfer cert show` prints it");
        }
        let fingerprint = format!("sha256:{}", digits.to_ascii_lowercase());
        if let Some((other, _)) = self.topology.peers.iter().find(|(_, p)| p.fingerprint == fingerprint) {
            let of = format!("with this fingerprint, '{other}'");
            self.faults.push(Fault::Twice { at: at.clone(), of });
        }
        let peer = Peer { address: table.address, fingerprint, active: true };
        let there = self.topology.peers.insert(table.name, peer).is_some();
        self.twice(at, there);
    }

    fn site(&mut self, table: SiteTable) {
        let at = format!("site '{}'", table.short_name);
        self.name(&at, "short name", &table.short_name);
        self.title(&at, &table.name);
        if self.topology.sites.values().any(|s| s.name == table.name) {
            self.faults.push(Fault::Twice { at: at.clone(), of: format!("called '{}'", table.name) });
        }
        let site = Site { name: table.name, location: table.location, active: true };
        let there = self.topology.sites.insert(table.short_name, site).is_some();
        self.twice(at, there);
    }

    fn location(&mut self, table: LocationTable) {
        let place = Place { site: table.site.clone(), location: table.name.clone() };
        let at = format!("location '{place}'");
        self.name(&at, "name", &place.location);
        self.known_site(&at, &place.site);
        if let Some(peer) = table.peer.as_ref().filter(|p| !self.topology.peers.contains_key(*p)) {
            self.faults.push(Fault::Unknown { at: at.clone(), what: "peer", name: peer.clone() });
        }
        self.at_least_one(&at, "priority", table.priority, 1000);
        self.at_least_one(&at, "max_concurrent", table.max_concurrent, 100_000);
        if table.logins.iter().any(|l| l.is_empty() || l.len() > 63) {
            self.value(&at, "a login is 1 to 63 characters");
        }
        let stem = |p: &Place| QueueName::stem_of(&p.site, &p.location);
        if let Some(other) = self.topology.locations.keys().find(|p| **p != place && stem(p) == stem(&place)) {
            let of = format!("with the same queues, '{other}'");
            self.faults.push(Fault::Twice { at: at.clone(), of });
        }
        self.archive_keys(&at, &table);
        let capacity_bytes = self.units(&at, table.capacity, units::size);
        if capacity_bytes == Some(0) {
            self.value(&at, "a capacity is above 0");
        }
        let location = Location {
            location_type: table.location_type,
            storage_type: table.storage.unwrap_or(StorageType::Disk),
            priority: table.priority.unwrap_or(1),
            peer: table.peer,
            capacity_bytes,
            keep_free_bytes: self.units(&at, table.keep_free, units::size).unwrap_or(0),
            rate_limit_bytes_per_s: self.units(&at, table.rate_limit, units::rate),
            max_concurrent: table.max_concurrent,
            logins: table.logins,
            archive_group: table.archive_group,
            archive_copies: table.archive_copies.unwrap_or(1),
            cached_read_back_counts: table.cached_read_back_counts.unwrap_or(false),
            on_tape_readback: table.on_tape_readback.unwrap_or(OnTapeReadback::Full),
            active: true,
        };
        let there = self.topology.locations.insert(place, location).is_some();
        self.twice(at, there);
    }

    fn archive_keys(&mut self, at: &str, table: &LocationTable) {
        if let Some(group) = &table.archive_group {
            self.name(at, "archive_group", group);
        }
        self.at_least_one(at, "archive_copies", table.archive_copies, 100);
        if table.archive_copies.is_some() && table.archive_group.is_none() {
            self.value(at, "archive_copies counts within an archive_group; name that too");
        }
        let is_said = table.archive_group.is_some()
            || table.cached_read_back_counts.is_some()
            || table.on_tape_readback.is_some();
        if is_said && table.location_type != LocationType::LongTermArchive {
            self.value(
                at,
                "archive_group, cached_read_back_counts and on_tape_readback are for a long_term_archive alone",
            );
        }
        let reads_less = table.on_tape_readback.is_some_and(|policy| policy != OnTapeReadback::Full);
        if reads_less && table.storage != Some(StorageType::Tape) {
            self.value(at, "only an archive with storage = \"tape\" may read back less than everything");
        }
    }

    fn known_site(&mut self, at: &str, site: &str) {
        if !self.topology.sites.contains_key(site) {
            self.faults.push(Fault::Unknown { at: at.to_owned(), what: "site", name: site.to_owned() });
        }
    }

    fn end(&mut self, at: &str, text: &str) -> RouteEnd {
        let (site, location) = match text.split_once('/') {
            Some((site, location)) => (site, Some(location)),
            None => (text, None),
        };
        self.known_site(at, site);
        if let Some(location) = location {
            let place = Place { site: site.to_owned(), location: location.to_owned() };
            if self.topology.sites.contains_key(site) && !self.topology.locations.contains_key(&place) {
                self.faults.push(Fault::Unknown { at: at.to_owned(), what: "location", name: place.to_string() });
            }
        }
        RouteEnd { site: site.to_owned(), location: location.map(str::to_owned) }
    }

    fn route(&mut self, table: RouteTable) {
        let at = format!("route '{}'", table.name);
        self.title(&at, &table.name);
        let (from, to) = (self.end(&at, &table.from), self.end(&at, &table.to));
        if let Some(via) = &table.via {
            self.known_site(&at, via);
        }
        self.at_least_one(&at, "streams", table.streams, 256);
        self.at_least_one(&at, "max_concurrent", table.max_concurrent, 100_000);
        let route = Route {
            route_type: table.route_type.unwrap_or(RouteType::Direct),
            from,
            to,
            via: table.via,
            method: table.method.unwrap_or(Method::Xfer),
            dialer: table.dialer.unwrap_or(Dialer::Origin),
            transport: table.transport.unwrap_or(Transport::Auto),
            rate_limit_bytes_per_s: self.units(&at, table.rate_limit, units::rate),
            streams: table.streams,
            max_concurrent: table.max_concurrent,
            active: true,
        };
        let there = self.topology.routes.insert(table.name, route).is_some();
        self.twice(at, there);
    }

    fn start_rate(&mut self, table: StartRateTable) {
        let queue = table.queue.unwrap_or_else(|| ALL_QUEUES.to_owned());
        let at = format!("start_rate of '{queue}'");
        if queue != ALL_QUEUES {
            let is_of = |name: &QueueName, p: &Place| name.stem() == QueueName::stem_of(&p.site, &p.location);
            match queue.parse::<QueueName>() {
                Ok(name) if self.topology.locations.keys().any(|place| is_of(&name, place)) => {}
                Ok(_) => self.faults.push(Fault::Unknown { at: at.clone(), what: "queue", name: queue.clone() }),
                Err(error) => self.value(&at, error.to_string()),
            }
        }
        match table.rate.parse() {
            Ok(rate) => {
                let there = self.topology.start_rates.insert(queue, rate).is_some();
                self.twice(at, there);
            }
            Err(error) => self.value(&at, StartRateError::to_string(&error)),
        }
    }
}
