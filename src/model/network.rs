use std::collections::BTreeMap;

use serde::Serialize;

use super::{Dialer, LocationId, LocationType, RouteId, RouteType, SiteId};

/// Most hops of one way, as the schema allows them.
const MAX_HOPS: usize = 8;

/// Sites, locations and routes as the planner sees them: one consistent look at the topology, with the room that is
/// left at each place.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Sites by id.
    pub sites: BTreeMap<SiteId, PlannedSite>,
    /// Locations by id.
    pub locations: BTreeMap<LocationId, PlannedLocation>,
    /// Routes by id.
    pub routes: BTreeMap<RouteId, PlannedRoute>,
}

/// A site, for the planner.
#[derive(Clone, Debug)]
pub struct PlannedSite {
    /// Its short name.
    pub name: String,
    /// Whether it takes part.
    pub active: bool,
}

/// A location, for the planner.
#[derive(Clone, Debug)]
pub struct PlannedLocation {
    /// Its site.
    pub site: SiteId,
    /// `SITE/LOCATION`.
    pub name: String,
    /// What it is for.
    pub location_type: LocationType,
    /// 1 is taken before 2.
    pub priority: i64,
    /// Whether it takes part.
    pub active: bool,
    /// Whether an operator has stopped it for now.
    pub paused: bool,
    /// Bytes that may still be planned for it: free, less what stays free, less what is on its way. `None` when nobody
    /// has reported what is free.
    pub room_bytes: Option<i64>,
}

/// A route, for the planner.
#[derive(Clone, Debug)]
pub struct PlannedRoute {
    /// Its name.
    pub name: String,
    /// What it is.
    pub route_type: RouteType,
    /// Where it begins.
    pub origin_site: SiteId,
    /// Where it ends.
    pub destination_site: SiteId,
    /// The location that a custom route is for.
    pub origin: Option<LocationId>,
    /// The location that a custom route leads to.
    pub destination: Option<LocationId>,
    /// The third site of a relay.
    pub via: Option<SiteId>,
    /// Which end dials.
    pub dialer: Dialer,
    /// Whether it takes part.
    pub active: bool,
    /// Whether attempts may run on it now: not paused, its breaker not open.
    pub healthy: bool,
}

/// Where packages shall go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// This location and no other.
    Location(LocationId),
    /// The best buffer of a site.
    Site(SiteId),
    /// A site with a long-term archive, in turn.
    AnyArchiveSite,
}

/// One hop of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The route that it takes.
    pub route: RouteId,
    /// The relay that it is a leg of.
    pub relay: Option<RouteId>,
    /// Where it begins.
    pub origin: LocationId,
    /// Where it ends.
    pub destination: LocationId,
    /// Whose queue holds it: the end that dials.
    pub queue: LocationId,
}

/// Why there is no way now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Obstacle {
    /// The origin or the destination is not in the topology any more.
    #[error("location {location} is inactive; `topology apply` with it makes it active")]
    LocationInactive {
        /// `SITE/LOCATION`.
        location: String,
    },
    /// The site is not in the topology any more.
    #[error("site {site} is inactive; `topology apply` with it makes it active")]
    SiteInactive {
        /// Its short name.
        site: String,
    },
    /// Nothing leads there.
    #[error("no active route leads from {from} to {to}; add one to the topology")]
    NoRoute {
        /// `SITE/LOCATION` of the origin.
        from: String,
        /// The destination.
        to: String,
    },
    /// The legs of a relay lead back to where they came from, or are too many.
    #[error("the relay from {from} to {to} leads in a circle or has more than 8 hops; correct its legs")]
    RelayLoop {
        /// `SITE/LOCATION` of the origin.
        from: String,
        /// The destination.
        to: String,
    },
    /// The site has no place for it.
    #[error("site {site} has no active buffer; add one to the topology, or name the location")]
    NoBuffer {
        /// Its short name.
        site: String,
    },
    /// All buffers are paused.
    #[error("every buffer of site {site} is paused; `resume` one of them")]
    BuffersPaused {
        /// Its short name.
        site: String,
    },
    /// All buffers were tried.
    #[error("every other buffer of site {site} has failed for it already")]
    BuffersFailed {
        /// Its short name.
        site: String,
    },
    /// It does not fit.
    #[error("{place} has no room for {bytes} bytes")]
    NoRoom {
        /// `SITE/LOCATION`, or the site none of whose buffers has it.
        place: String,
        /// What is to go there.
        bytes: u64,
    },
    /// No other site has an archive.
    #[error("no other active site has an active long-term archive")]
    NoArchiveSite,
    /// Sites with archives are there, and none can be reached now.
    #[error("no site with an archive can be reached now: {reasons}")]
    NoHealthySite {
        /// Each of them with its reason.
        reasons: String,
    },
}

impl Obstacle {
    /// Whether something smaller might find a way.
    pub const fn is_about_size(&self) -> bool {
        matches!(self, Self::NoRoom { .. } | Self::NoHealthySite { .. })
    }
}

/// What is asked of [`Network::way`].
#[derive(Clone, Copy, Debug)]
pub struct Errand<'a> {
    /// Where the packages are.
    pub origin: LocationId,
    /// Where they shall go.
    pub destination: Destination,
    /// How much they are.
    pub bytes: u64,
    /// The site that was chosen the last time among several.
    pub last_site: Option<SiteId>,
    /// Places that were tried in vain.
    pub avoid: &'a [LocationId],
}

impl Network {
    /// The way for an errand: a custom route of these locations before a direct one, a direct one before a relay. A
    /// destination that is only a site takes its best buffer; several sites take turns, among those that can be
    /// reached. A named location that is paused is planned for, and waits; a buffer that is paused is passed over.
    ///
    /// # Errors
    /// There is none, with the reason.
    pub fn way(&self, errand: &Errand<'_>) -> Result<Vec<Hop>, Obstacle> {
        let from = self.location(errand.origin)?;
        match errand.destination {
            Destination::Location(id) => {
                let place = self.location(id)?;
                self.legs(errand, errand.origin, (place.site, Some(id)), &mut Vec::new())
            }
            Destination::Site(site) => self.legs(errand, errand.origin, (site, None), &mut Vec::new()),
            Destination::AnyArchiveSite => {
                let mut reasons = Vec::new();
                for site in in_turn(self.archive_sites(from.site), errand.last_site) {
                    match self.legs(errand, errand.origin, (site, None), &mut Vec::new()) {
                        Ok(hops) if hops.iter().all(|hop| self.is_healthy(hop)) => return Ok(hops),
                        Ok(_) => reasons.push(format!("{}: its route is paused or broken", self.site_name(site))),
                        Err(obstacle) => reasons.push(format!("{}: {obstacle}", self.site_name(site))),
                    }
                }
                Err(if reasons.is_empty() {
                    Obstacle::NoArchiveSite
                } else {
                    Obstacle::NoHealthySite { reasons: reasons.join("; ") }
                })
            }
        }
    }

    /// Counts bytes as on their way to where hops end.
    pub fn reserve(&mut self, hops: &[Hop], bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        for hop in hops {
            if let Some(room) = self.locations.get_mut(&hop.destination).and_then(|l| l.room_bytes.as_mut()) {
                *room = room.saturating_sub(bytes);
            }
        }
    }

    /// Whether a site has another buffer that would take something now: whether a failover from this one is worth a
    /// look.
    pub fn has_alternative(&self, to: LocationId) -> bool {
        self.locations.get(&to).is_some_and(|failed| {
            self.locations.iter().any(|(&id, l)| {
                id != to
                    && l.site == failed.site
                    && l.location_type == LocationType::Buffer
                    && l.active
                    && !l.paused
                    && l.room_bytes.is_none_or(|room| room > 0)
            })
        })
    }

    fn location(&self, id: LocationId) -> Result<&PlannedLocation, Obstacle> {
        let inactive = |location: String| Obstacle::LocationInactive { location };
        let location = self.locations.get(&id).ok_or_else(|| inactive(id.to_string()))?;
        if !location.active {
            return Err(inactive(location.name.clone()));
        }
        if self.sites.get(&location.site).is_none_or(|s| !s.active) {
            return Err(Obstacle::SiteInactive { site: self.site_name(location.site) });
        }
        Ok(location)
    }

    fn site_name(&self, id: SiteId) -> String {
        self.sites.get(&id).map_or_else(|| id.to_string(), |s| s.name.clone())
    }

    fn place_name(&self, (site, location): (SiteId, Option<LocationId>)) -> String {
        match location.and_then(|id| self.locations.get(&id)) {
            Some(place) => place.name.clone(),
            None => self.site_name(site),
        }
    }

    fn archive_sites(&self, without: SiteId) -> Vec<SiteId> {
        let mut sites: Vec<_> = self
            .locations
            .values()
            .filter(|l| l.location_type == LocationType::LongTermArchive && l.active && l.site != without)
            .map(|l| l.site)
            .filter(|s| self.sites.get(s).is_some_and(|s| s.active))
            .collect();
        sites.sort();
        sites.dedup();
        sites
    }

    fn is_healthy(&self, hop: &Hop) -> bool {
        self.routes.get(&hop.route).is_some_and(|r| r.healthy)
            && hop.relay.is_none_or(|r| self.routes.get(&r).is_some_and(|r| r.healthy))
            && [hop.origin, hop.destination]
                .iter()
                .all(|l| self.locations.get(l).is_some_and(|l| l.active && !l.paused))
    }

    /// `relays` are those whose legs are being sought: a leg that needs one of them again would never end.
    fn legs(
        &self,
        errand: &Errand<'_>,
        from: LocationId,
        to: (SiteId, Option<LocationId>),
        relays: &mut Vec<RouteId>,
    ) -> Result<Vec<Hop>, Obstacle> {
        let origin = self.location(from)?;
        if self.sites.get(&to.0).is_none_or(|s| !s.active) {
            return Err(Obstacle::SiteInactive { site: self.site_name(to.0) });
        }
        let hop = |id: RouteId, route: &PlannedRoute, destination: LocationId| Hop {
            route: id,
            relay: relays.first().copied(),
            origin: from,
            destination,
            queue: match route.dialer {
                Dialer::Origin => from,
                Dialer::Destination => destination,
            },
        };
        let ways = || {
            self.routes.iter().filter(|(_, r)| r.active && r.origin_site == origin.site && r.destination_site == to.0)
        };
        let end = self.end(errand, from, to);
        let mut custom: Vec<_> = ways()
            .filter(|(_, r)| r.route_type == RouteType::Custom)
            .filter(|(_, r)| r.origin.is_none_or(|o| o == from))
            .filter(|(_, r)| r.destination.is_none_or(|d| d != from && to.1.is_none_or(|wanted| wanted == d)))
            .collect();
        // Both ends named before the origin alone before the destination alone.
        custom.sort_by_key(|(id, r)| (r.origin.is_none(), r.destination.is_none(), **id));
        let mut refused = None;
        for (&id, route) in custom {
            let destination = match route.destination {
                Some(named) => self.takes(errand, named, to.1.is_none()).map(|()| named),
                None => end.clone(),
            };
            match destination {
                Ok(destination) => return Ok(vec![hop(id, route, destination)]),
                Err(obstacle) => refused = refused.or(Some(obstacle)),
            }
        }
        if let Some((&id, route)) = ways().find(|(_, r)| r.route_type == RouteType::Direct) {
            return Ok(vec![hop(id, route, end?)]);
        }
        if let Some((&id, route)) = ways().find(|(_, r)| r.route_type == RouteType::Relay)
            && let Some(via) = route.via
        {
            let circle = || Obstacle::RelayLoop { from: origin.name.clone(), to: self.place_name(to) };
            // Told before the legs are sought: a full destination is no reason to fill the site between.
            end?;
            if relays.contains(&id) || relays.len() >= MAX_HOPS {
                return Err(circle());
            }
            relays.push(id);
            let mut hops = self.legs(errand, from, (via, None), relays)?;
            let between = hops.last().map_or(from, |h| h.destination);
            hops.extend(self.legs(errand, between, to, relays)?);
            relays.pop();
            return if hops.len() > MAX_HOPS { Err(circle()) } else { Ok(hops) };
        }
        Err(refused.unwrap_or_else(|| Obstacle::NoRoute { from: origin.name.clone(), to: self.place_name(to) }))
    }

    /// Whether a place may be planned for. One that nobody insists on must not be paused either.
    fn takes(&self, errand: &Errand<'_>, id: LocationId, passable: bool) -> Result<(), Obstacle> {
        let place = self.location(id)?;
        if passable && errand.avoid.contains(&id) {
            return Err(Obstacle::BuffersFailed { site: self.site_name(place.site) });
        }
        if passable && place.paused {
            return Err(Obstacle::BuffersPaused { site: self.site_name(place.site) });
        }
        if place.room_bytes.is_some_and(|room| u64::try_from(room).map_or(true, |room| room < errand.bytes)) {
            return Err(Obstacle::NoRoom { place: place.name.clone(), bytes: errand.bytes });
        }
        Ok(())
    }

    /// Where a way to a site ends: at the named location, or at its best buffer that takes it.
    fn end(
        &self,
        errand: &Errand<'_>,
        from: LocationId,
        (site, named): (SiteId, Option<LocationId>),
    ) -> Result<LocationId, Obstacle> {
        if let Some(id) = named {
            return self.takes(errand, id, false).map(|()| id);
        }
        let mut buffers: Vec<_> = self
            .locations
            .iter()
            .filter(|&(&id, l)| l.site == site && l.location_type == LocationType::Buffer && l.active && id != from)
            .collect();
        buffers.sort_by_key(|(id, l)| (l.priority, **id));
        let mut first = None;
        for (&id, _) in buffers {
            match self.takes(errand, id, true) {
                Ok(()) => return Ok(id),
                // A buffer that is only full says more than one that an operator stopped.
                Err(full @ Obstacle::NoRoom { .. }) => first = Some(full),
                Err(other) => first = first.or(Some(other)),
            }
        }
        Err(match first {
            None => Obstacle::NoBuffer { site: self.site_name(site) },
            Some(Obstacle::NoRoom { bytes, .. }) => {
                Obstacle::NoRoom { place: format!("site {}", self.site_name(site)), bytes }
            }
            Some(other) => other,
        })
    }
}

/// All sites, beginning behind the last one.
fn in_turn(sites: Vec<SiteId>, last: Option<SiteId>) -> impl Iterator<Item = SiteId> {
    let start = sites.iter().position(|&s| last.is_some_and(|last| s > last)).unwrap_or(0);
    let count = sites.len();
    sites.into_iter().cycle().skip(start).take(count)
}
