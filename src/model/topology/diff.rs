use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{super::StartRate, Fault, Location, Peer, Route, Site, Topology, TopologyError};

/// What applying a topology does to one of its things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What happens.
    pub kind: ChangeKind,
    /// `peer`, `site`, `location`, `route` or `start_rate`.
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// Every field that gets another value.
    pub fields: Vec<FieldChange>,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is new.
    Add,
    /// It gets other values.
    Alter,
    /// It is not in the file any more. It stays, inactive: rows speak of it. A rate of starts is lifted.
    Deactivate,
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its name.
    pub field: &'static str,
    /// As the database has it; nothing where the thing is new.
    pub from: Option<String>,
    /// As it will be.
    pub to: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            ChangeKind::Add => '+',
            ChangeKind::Alter => '~',
            ChangeKind::Deactivate => '-',
        };
        write!(f, "{sign} {} {}", self.what, self.name)?;
        for field in &self.fields {
            match &field.from {
                Some(from) => write!(f, "\n    {}: {from} -> {}", field.field, field.to)?,
                None => write!(f, "\n    {}: {}", field.field, field.to)?,
            }
        }
        Ok(())
    }
}

type Facts = Vec<(&'static str, String)>;

impl Topology {
    /// What leads from `self`, which the database holds, to `wanted`. Empty where nothing does: applying twice changes
    /// nothing.
    ///
    /// # Errors
    /// Something differs that cannot change.
    pub fn diff(&self, wanted: &Self) -> Result<Vec<Change>, TopologyError> {
        let mut faults = Vec::new();
        for (name, route) in &wanted.routes {
            let Some(there) = self.routes.get(name) else { continue };
            // Transfers on their way say which route they use; it must go on to be that way.
            let ends = |r: &Route| format!("{} -> {}", r.from, r.to);
            if ends(there) != ends(route) {
                faults.push(Fault::Fixed {
                    at: format!("route '{name}'"),
                    what: "its ends",
                    from: ends(there),
                    to: ends(route),
                });
            }
        }
        if !faults.is_empty() {
            return Err(TopologyError::Faults(faults));
        }
        let mut changes = Vec::new();
        part("peer", &self.peers, &wanted.peers, peer_facts, &mut changes);
        part("site", &self.sites, &wanted.sites, site_facts, &mut changes);
        part("location", &self.locations, &wanted.locations, location_facts, &mut changes);
        part("route", &self.routes, &wanted.routes, route_facts, &mut changes);
        part("start_rate", &self.start_rates, &wanted.start_rates, start_rate_facts, &mut changes);
        Ok(changes)
    }
}

fn part<K: Ord + fmt::Display, T>(
    what: &'static str,
    there: &BTreeMap<K, T>,
    wanted: &BTreeMap<K, T>,
    facts: fn(&T) -> Facts,
    changes: &mut Vec<Change>,
) {
    for (name, thing) in wanted {
        let before = there.get(name).map(facts);
        let fields: Vec<FieldChange> = facts(thing)
            .into_iter()
            .enumerate()
            .filter_map(|(i, (field, to))| {
                let from = before.as_ref().map(|b| b[i].1.clone());
                (from.as_ref() != Some(&to)).then_some(FieldChange { field, from, to })
            })
            .collect();
        if !fields.is_empty() {
            let kind = if before.is_some() { ChangeKind::Alter } else { ChangeKind::Add };
            changes.push(Change { kind, what, name: name.to_string(), fields });
        }
    }
    for (name, thing) in there.iter().filter(|(name, _)| !wanted.contains_key(name)) {
        let active = facts(thing).into_iter().any(|(field, value)| field == "active" && value == "true");
        if active {
            let fields = vec![FieldChange { field: "active", from: Some("true".into()), to: "false".into() }];
            changes.push(Change { kind: ChangeKind::Deactivate, what, name: name.to_string(), fields });
        }
    }
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "none".to_owned(), |v| v.to_string())
}

fn peer_facts(peer: &Peer) -> Facts {
    vec![
        ("active", peer.active.to_string()),
        ("address", peer.address.clone()),
        ("fingerprint", peer.fingerprint.clone()),
    ]
}

fn site_facts(site: &Site) -> Facts {
    vec![("active", site.active.to_string()), ("name", site.name.clone()), ("location", site.location.clone())]
}

fn location_facts(location: &Location) -> Facts {
    let logins: Vec<&str> = location.logins.iter().map(String::as_str).collect();
    vec![
        ("active", location.active.to_string()),
        ("type", location.location_type.to_string()),
        ("storage", location.storage_type.to_string()),
        ("priority", location.priority.to_string()),
        ("peer", or_none(location.peer.as_ref())),
        ("capacity_bytes", or_none(location.capacity_bytes)),
        ("keep_free_bytes", location.keep_free_bytes.to_string()),
        ("rate_limit_bytes_per_s", or_none(location.rate_limit_bytes_per_s)),
        ("max_concurrent", or_none(location.max_concurrent)),
        ("logins", logins.join(",")),
        ("archive_group", or_none(location.archive_group.as_ref())),
        ("archive_copies", location.archive_copies.to_string()),
        ("cached_read_back_counts", location.cached_read_back_counts.to_string()),
        ("on_tape_readback", location.on_tape_readback.to_string()),
    ]
}

fn start_rate_facts(rate: &StartRate) -> Facts {
    vec![("active", "true".to_owned()), ("rate", rate.to_string())]
}

fn route_facts(route: &Route) -> Facts {
    vec![
        ("active", route.active.to_string()),
        ("type", route.route_type.to_string()),
        ("from", route.from.to_string()),
        ("to", route.to.to_string()),
        ("via", or_none(route.via.as_ref())),
        ("method", route.method.to_string()),
        ("dialer", route.dialer.to_string()),
        ("transport", route.transport.to_string()),
        ("rate_limit_bytes_per_s", or_none(route.rate_limit_bytes_per_s)),
        ("streams", or_none(route.streams)),
        ("max_concurrent", or_none(route.max_concurrent)),
    ]
}
