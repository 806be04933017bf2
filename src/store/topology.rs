//! The topology in the database: read whole, changed by one transaction.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Store, StoreError, limits,
    sql::{Row, Tx, Value, args},
};
use crate::model::{
    QueueName,
    topology::{Change, Location, Peer, Place, Route, RouteEnd, Site, Topology, TopologyError},
};

/// Why a topology was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It cannot follow the one that the database has.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The database did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether changes are made or only told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Make them.
    Now,
    /// Tell them.
    DryRun,
}

impl Store {
    /// The topology as the database has it, with what is inactive.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn topology(&self) -> Result<Topology, StoreError> {
        load(&mut self.read().await?).await
    }

    /// Makes the database's topology this one, in one transaction, and tells what was changed. What is missing from
    /// `wanted` becomes inactive; nothing is deleted but rates of starts and the rights of logins that are no longer
    /// named. Pauses, free space and breakers are left as they are.
    ///
    /// # Errors
    /// Something differs that cannot change, or the database refuses.
    pub async fn apply_topology(
        &self,
        wanted: &Topology,
        actor: &str,
        apply: Apply,
    ) -> Result<Vec<Change>, ApplyError> {
        let mut tx = match apply {
            Apply::Now => self.write().await?,
            Apply::DryRun => self.read().await?,
        };
        if let (Tx::Postgres(_), Apply::Now) = (&tx, apply) {
            // Two appliers: the second one compares with what the first one made.
            tx.execute("LOCK TABLE site IN SHARE ROW EXCLUSIVE MODE", args![]).await?;
        }
        let there = load(&mut tx).await?;
        let changes = there.diff(wanted)?;
        if apply == Apply::DryRun || changes.is_empty() {
            return Ok(changes);
        }
        // First what goes: it makes room for keys and ways that the new ones take.
        deactivate(&mut tx, &there, wanted, actor).await?;
        for (name, peer) in changed(&there.peers, &wanted.peers) {
            write_peer(&mut tx, name, peer).await?;
        }
        for (short_name, site) in changed(&there.sites, &wanted.sites) {
            write_site(&mut tx, short_name, site).await?;
        }
        for (place, location) in changed(&there.locations, &wanted.locations) {
            write_location(&mut tx, place, location, actor).await?;
        }
        for (name, route) in changed(&there.routes, &wanted.routes) {
            write_route(&mut tx, name, route, actor).await?;
        }
        // In the order in which claims lock them.
        let scopes: BTreeSet<_> = there.start_rates.keys().chain(wanted.start_rates.keys()).collect();
        for scope in scopes.into_iter().filter(|&scope| there.start_rates.get(scope) != wanted.start_rates.get(scope)) {
            limits::write(&mut tx, scope, wanted.start_rates.get(scope).copied()).await?;
        }
        let reason: Vec<String> = changes.iter().map(ToString::to_string).collect();
        tx.execute(
            "INSERT INTO event (entity, entity_id, to_state, actor, reason) VALUES ('topology', 0, 'applied', $1, $2)",
            args![actor, reason.join("\n")],
        )
        .await?;
        tx.commit().await?;
        Ok(changes)
    }
}

fn changed<'a, K: Ord, T: PartialEq>(
    there: &'a BTreeMap<K, T>,
    wanted: &'a BTreeMap<K, T>,
) -> impl Iterator<Item = (&'a K, &'a T)> {
    wanted.iter().filter(|(key, thing)| there.get(*key) != Some(*thing))
}

fn gone<'a, K: Ord, T>(there: &'a BTreeMap<K, T>, wanted: &'a BTreeMap<K, T>) -> impl Iterator<Item = &'a K> {
    there.keys().filter(|key| !wanted.contains_key(*key))
}

async fn load(tx: &mut Tx) -> Result<Topology, StoreError> {
    let mut topology = Topology::default();
    for row in tx.rows("SELECT name, address, fingerprint, active FROM peer", args![]).await? {
        let peer =
            Peer { address: row.text("address")?, fingerprint: row.text("fingerprint")?, active: row.flag("active")? };
        topology.peers.insert(row.text("name")?, peer);
    }
    for row in tx.rows("SELECT short_name, name, location, active FROM site", args![]).await? {
        let site = Site { name: row.text("name")?, location: row.text("location")?, active: row.flag("active")? };
        topology.sites.insert(row.text("short_name")?, site);
    }
    let rows = tx
        .rows(
            "SELECT s.short_name, l.name, l.location_type, l.storage_type, l.priority, p.name AS peer, \
             l.capacity_bytes, l.keep_free_bytes, l.rate_limit_bytes_per_s, l.max_concurrent, l.active, \
             l.archive_group, l.archive_copies, l.cached_read_back_counts, l.on_tape_readback \
             FROM data_location l JOIN site s ON s.id = l.site_id LEFT JOIN peer p ON p.id = l.peer_id",
            args![],
        )
        .await?;
    for row in rows {
        let location = Location {
            location_type: row.word("location_type")?,
            storage_type: row.word("storage_type")?,
            priority: count(&row, "priority")?.unwrap_or(1),
            peer: row.opt_text("peer")?,
            capacity_bytes: size(&row, "capacity_bytes")?,
            keep_free_bytes: row.size("keep_free_bytes")?,
            rate_limit_bytes_per_s: size(&row, "rate_limit_bytes_per_s")?,
            max_concurrent: count(&row, "max_concurrent")?,
            logins: BTreeSet::new(),
            archive_group: row.opt_text("archive_group")?,
            archive_copies: count(&row, "archive_copies")?.unwrap_or(1),
            cached_read_back_counts: row.flag("cached_read_back_counts")?,
            on_tape_readback: row.word("on_tape_readback")?,
            active: row.flag("active")?,
        };
        topology.locations.insert(Place { site: row.text("short_name")?, location: row.text("name")? }, location);
    }
    let rows = tx
        .rows(
            "SELECT s.short_name, l.name, w.login FROM worker_login w JOIN data_location l ON l.id = w.location_id \
             JOIN site s ON s.id = l.site_id",
            args![],
        )
        .await?;
    for row in rows {
        let place = Place { site: row.text("short_name")?, location: row.text("name")? };
        if let Some(location) = topology.locations.get_mut(&place) {
            location.logins.insert(row.text("login")?);
        }
    }
    let rows = tx
        .rows(
            "SELECT r.name, r.route_type, o.short_name AS from_site, ol.name AS from_location, \
             d.short_name AS to_site, dl.name AS to_location, v.short_name AS via, r.method, r.dialer, r.transport, \
             r.rate_limit_bytes_per_s, r.streams, r.max_concurrent, r.active FROM data_transfer_route r \
             JOIN site o ON o.id = r.origin_site_id JOIN site d ON d.id = r.destination_site_id \
             LEFT JOIN data_location ol ON ol.id = r.origin_location_id \
             LEFT JOIN data_location dl ON dl.id = r.destination_location_id \
             LEFT JOIN site v ON v.id = r.via_site_id",
            args![],
        )
        .await?;
    for row in rows {
        let route = Route {
            route_type: row.word("route_type")?,
            from: RouteEnd { site: row.text("from_site")?, location: row.opt_text("from_location")? },
            to: RouteEnd { site: row.text("to_site")?, location: row.opt_text("to_location")? },
            via: row.opt_text("via")?,
            method: row.word("method")?,
            dialer: row.word("dialer")?,
            transport: row.word("transport")?,
            rate_limit_bytes_per_s: size(&row, "rate_limit_bytes_per_s")?,
            streams: count(&row, "streams")?,
            max_concurrent: count(&row, "max_concurrent")?,
            active: row.flag("active")?,
        };
        topology.routes.insert(row.text("name")?, route);
    }
    topology.start_rates = limits::rates(tx).await?;
    Ok(topology)
}

fn size(row: &Row, name: &str) -> Result<Option<u64>, StoreError> {
    row.opt_int(name)?.map(|v| u64::try_from(v).map_err(|_| StoreError::Corrupt(format!("{name} is {v}")))).transpose()
}

fn count(row: &Row, name: &str) -> Result<Option<u32>, StoreError> {
    row.opt_int(name)?.map(|v| u32::try_from(v).map_err(|_| StoreError::Corrupt(format!("{name} is {v}")))).transpose()
}

fn optional_size(value: Option<u64>) -> Result<Value, StoreError> {
    value.map_or(Ok(Value::Int(None)), Value::size)
}

async fn deactivate(tx: &mut Tx, there: &Topology, wanted: &Topology, actor: &str) -> Result<(), StoreError> {
    const REASON: &str = "not in the topology any more";
    for name in gone(&there.routes, &wanted.routes) {
        tx.execute(
            "UPDATE data_transfer_route SET active = FALSE, updated_at = now_us(), changed_by = $2, change_reason = $3 \
             WHERE name = $1 AND active",
            args![name, actor, REASON],
        )
        .await?;
    }
    for place in gone(&there.locations, &wanted.locations) {
        tx.execute(
            "UPDATE data_location SET active = FALSE, updated_at = now_us(), changed_by = $2, change_reason = $3 \
             WHERE queue_stem = $1 AND active",
            args![QueueName::stem_of(&place.site, &place.location), actor, REASON],
        )
        .await?;
    }
    for short_name in gone(&there.sites, &wanted.sites) {
        tx.execute(
            "UPDATE site SET active = FALSE, updated_at = now_us() WHERE short_name = $1 AND active",
            args![short_name],
        )
        .await?;
    }
    for name in gone(&there.peers, &wanted.peers) {
        tx.execute("UPDATE peer SET active = FALSE, updated_at = now_us() WHERE name = $1 AND active", args![name])
            .await?;
    }
    Ok(())
}

async fn write_peer(tx: &mut Tx, name: &str, peer: &Peer) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO peer (name, address, fingerprint, active) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO UPDATE \
         SET address = excluded.address, fingerprint = excluded.fingerprint, active = excluded.active, \
         updated_at = now_us()",
        args![name, &peer.address, &peer.fingerprint, peer.active],
    )
    .await?;
    Ok(())
}

async fn write_site(tx: &mut Tx, short_name: &str, site: &Site) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO site (short_name, name, location, active) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (short_name) DO UPDATE SET name = excluded.name, location = excluded.location, \
         active = excluded.active, updated_at = now_us()",
        args![short_name, &site.name, &site.location, site.active],
    )
    .await?;
    Ok(())
}

async fn write_location(tx: &mut Tx, place: &Place, location: &Location, actor: &str) -> Result<(), StoreError> {
    let stem = QueueName::stem_of(&place.site, &place.location);
    let row = tx
        .row(
            "INSERT INTO data_location (site_id, name, queue_stem, location_type, storage_type, priority, peer_id, \
             capacity_bytes, keep_free_bytes, rate_limit_bytes_per_s, max_concurrent, active, archive_group, \
             archive_copies, cached_read_back_counts, on_tape_readback, changed_by, change_reason) \
             SELECT s.id, $2, $3, $4, $5, $6, (SELECT id FROM peer WHERE name = $7), $8, $9, $10, $11, \
             $12, $14, $15, $16, $17, $13, 'topology applied' FROM site s WHERE s.short_name = $1 \
             ON CONFLICT (queue_stem) DO UPDATE SET location_type = excluded.location_type, \
             storage_type = excluded.storage_type, priority = excluded.priority, peer_id = excluded.peer_id, \
             capacity_bytes = excluded.capacity_bytes, keep_free_bytes = excluded.keep_free_bytes, \
             rate_limit_bytes_per_s = excluded.rate_limit_bytes_per_s, max_concurrent = excluded.max_concurrent, \
             active = excluded.active, archive_group = excluded.archive_group, \
             archive_copies = excluded.archive_copies, cached_read_back_counts = excluded.cached_read_back_counts, \
             on_tape_readback = excluded.on_tape_readback, updated_at = now_us(), changed_by = excluded.changed_by, \
             change_reason = excluded.change_reason RETURNING id",
            args![
                &place.site,
                &place.location,
                &stem,
                location.location_type.as_str(),
                location.storage_type.as_str(),
                location.priority,
                location.peer.clone(),
                optional_size(location.capacity_bytes)?,
                Value::size(location.keep_free_bytes)?,
                optional_size(location.rate_limit_bytes_per_s)?,
                location.max_concurrent,
                location.active,
                actor,
                location.archive_group.clone(),
                location.archive_copies,
                location.cached_read_back_counts,
                location.on_tape_readback.as_str(),
            ],
        )
        .await?;
    let id = row.ok_or_else(|| StoreError::NotFound { what: "site", name: place.site.clone() })?.int("id")?;
    tx.execute("DELETE FROM worker_login WHERE location_id = $1", args![id]).await?;
    for login in &location.logins {
        tx.execute("INSERT INTO worker_login (login, location_id) VALUES ($1, $2)", args![login, id]).await?;
    }
    Ok(())
}

async fn write_route(tx: &mut Tx, name: &str, route: &Route, actor: &str) -> Result<(), StoreError> {
    const LOCATION: &str = "(SELECT l.id FROM data_location l JOIN site s ON s.id = l.site_id WHERE s.short_name = ";
    let text = format!(
        "INSERT INTO data_transfer_route (name, route_type, origin_site_id, destination_site_id, origin_location_id, \
         destination_location_id, via_site_id, method, dialer, transport, rate_limit_bytes_per_s, streams, \
         max_concurrent, active, changed_by, change_reason) SELECT $1, $2, o.id, d.id, {LOCATION}$3 AND l.name = $5), \
         {LOCATION}$4 AND l.name = $6), (SELECT id FROM site WHERE short_name = $7), $8, $9, $10, $11, $12, $13, $14, \
         $15, 'topology applied' FROM site o, site d WHERE o.short_name = $3 AND d.short_name = $4 \
         ON CONFLICT (name) DO UPDATE SET route_type = excluded.route_type, via_site_id = excluded.via_site_id, \
         method = excluded.method, dialer = excluded.dialer, transport = excluded.transport, \
         rate_limit_bytes_per_s = excluded.rate_limit_bytes_per_s, streams = excluded.streams, \
         max_concurrent = excluded.max_concurrent, active = excluded.active, updated_at = now_us(), \
         changed_by = excluded.changed_by, change_reason = excluded.change_reason"
    );
    let written = tx
        .execute(
            text,
            args![
                name,
                route.route_type.as_str(),
                &route.from.site,
                &route.to.site,
                route.from.location.clone(),
                route.to.location.clone(),
                route.via.clone(),
                route.method.as_str(),
                route.dialer.as_str(),
                route.transport.as_str(),
                optional_size(route.rate_limit_bytes_per_s)?,
                route.streams,
                route.max_concurrent,
                route.active,
                actor,
            ],
        )
        .await?;
    if written == 0 {
        return Err(StoreError::NotFound { what: "site of route", name: name.to_owned() });
    }
    Ok(())
}
