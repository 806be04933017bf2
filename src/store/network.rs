//! The topology as the planner sees it.

use super::{
    StoreError,
    claim::breaker_lets_through,
    sql::{Tx, args},
};
use crate::model::{LocationId, Network, PlannedLocation, PlannedRoute, PlannedSite, RouteId, SiteId};

/// Whether what a worker said of a location `l` is of use: it says it anew with every report, many times in these ten
/// minutes. If nobody serves the place any more, nobody would ever say that there is room again.
pub(super) const IS_FRESH: &str = "l.free_bytes_at BETWEEN now_us() - 600000000 AND now_us() + 600000000";

/// Reads sites, locations with their room, and routes. What is on its way to a place is the sum of at most 10,000
/// transfers, the largest ones: beyond that a place's room is a guess that its own `no_space` errors correct, and the
/// time of a look stays bounded.
pub(super) async fn network(tx: &mut Tx) -> Result<Network, StoreError> {
    let mut network = Network::default();
    for row in tx.rows("SELECT id, short_name, active FROM site", args![]).await? {
        let site = PlannedSite { name: row.text("short_name")?, active: row.flag("active")? };
        network.sites.insert(SiteId::new(row.int("id")?), site);
    }
    let text = format!(
        "SELECT l.id, l.site_id, s.short_name, l.name, l.location_type, l.priority, l.active, l.paused,
            CASE WHEN l.free_bytes IS NOT NULL AND {IS_FRESH} THEN l.free_bytes - l.keep_free_bytes -
                (SELECT CAST(coalesce(sum(b.bytes_left), 0) AS BIGINT) FROM
                    (SELECT t.bytes_total - t.bytes_done AS bytes_left FROM data_transfer t
                        WHERE t.destination_location_id = l.id AND t.status IN ('pending', 'scheduled', 'in_progress')
                    ORDER BY t.bytes_total DESC LIMIT 10000) b) -
                (SELECT CAST(coalesce(sum(b.bytes_left), 0) AS BIGINT) FROM
                    (SELECT t.bytes_total - t.bytes_done AS bytes_left FROM long_term_archive_transfer t
                        WHERE t.destination_location_id = l.id AND t.status IN ('pending', 'scheduled', 'in_progress')
                    ORDER BY t.bytes_total DESC LIMIT 10000) b) END AS room
        FROM data_location l JOIN site s ON s.id = l.site_id"
    );
    for row in tx.rows(text, args![]).await? {
        let location = PlannedLocation {
            site: SiteId::new(row.int("site_id")?),
            name: format!("{}/{}", row.text("short_name")?, row.text("name")?),
            location_type: row.word("location_type")?,
            priority: row.int("priority")?,
            active: row.flag("active")?,
            paused: row.flag("paused")?,
            room_bytes: row.opt_int("room")?,
        };
        network.locations.insert(LocationId::new(row.int("id")?), location);
    }
    let text = format!(
        "SELECT id, name, route_type, origin_site_id, destination_site_id, origin_location_id,
            destination_location_id, via_site_id, dialer, active,
            (NOT paused AND (breaker_state <> 'open' OR {})) AS healthy
        FROM data_transfer_route r WHERE active",
        breaker_lets_through()
    );
    for row in tx.rows(text, args![]).await? {
        let route = PlannedRoute {
            name: row.text("name")?,
            route_type: row.word("route_type")?,
            origin_site: SiteId::new(row.int("origin_site_id")?),
            destination_site: SiteId::new(row.int("destination_site_id")?),
            origin: row.opt_int("origin_location_id")?.map(LocationId::new),
            destination: row.opt_int("destination_location_id")?.map(LocationId::new),
            via: row.opt_int("via_site_id")?.map(SiteId::new),
            dialer: row.word("dialer")?,
            active: row.flag("active")?,
            healthy: row.flag("healthy")?,
        };
        network.routes.insert(RouteId::new(row.int("id")?), route);
    }
    Ok(network)
}
