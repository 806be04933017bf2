use std::collections::BTreeMap;

use super::{Dialer, Fault, Location, LocationType, MAX_HOPS, Place, Route, RouteEnd, RouteType, Topology};

impl Topology {
    /// What is wrong with the whole, when each part is right by itself.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.groups(&mut faults);
        for (name, route) in &self.routes {
            let at = format!("route '{name}'");
            let before = faults.len();
            shape(&at, route, &mut faults);
            if let Some((other, _)) =
                self.routes.iter().find(|(n, r)| *n < name && r.from == route.from && r.to == route.to)
            {
                faults.push(Fault::Twice { at: at.clone(), of: format!("between the same ends, '{other}'") });
            }
            if faults.len() > before {
                continue;
            }
            if route.route_type == RouteType::Relay {
                match self.legs(name, &mut Vec::new()) {
                    Ok(hops) if hops > MAX_HOPS => {
                        let why = format!("it has {hops} hops, at most {MAX_HOPS} are possible");
                        faults.push(Fault::Value { at, why });
                    }
                    Ok(_) => {}
                    Err(fault) => faults.push(fault),
                }
            } else {
                self.reachable(&at, route, &mut faults);
            }
        }
        faults
    }

    /// Archives of one group ask for one number of copies.
    fn groups(&self, faults: &mut Vec<Fault>) {
        let mut copies: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for (place, location) in &self.locations {
            let Some(group) = &location.archive_group else { continue };
            let first = *copies.entry((&place.site, group)).or_insert(location.archive_copies);
            if first != location.archive_copies {
                let why = format!("another location of archive_group '{group}' says archive_copies = {first}");
                faults.push(Fault::Value { at: format!("location '{place}'"), why });
            }
        }
    }

    /// The route from one site to another, where no location of them has one of its own.
    pub fn route_between(&self, from: &str, to: &str) -> Option<(&str, &Route)> {
        let ways = || self.routes.iter().filter(|(_, r)| r.active && r.from.site == from && r.to.site == to);
        let plain = ways().find(|(_, r)| r.route_type != RouteType::Custom);
        plain.or_else(|| ways().next()).map(|(name, route)| (name.as_str(), route))
    }

    /// The routes of all hops from one location to another, in order: a relay gives those of its legs. A custom route
    /// between both locations goes before one that names the origin's, that before one that names the destination's,
    /// and these before the routes between the sites. Only what is active counts. `None` where there is no way.
    pub fn way(&self, from: &Place, to: &Place) -> Option<Vec<&str>> {
        let fits = |end: &RouteEnd, place: &Place| {
            end.site == place.site && end.location.as_ref().is_none_or(|l| *l == place.location)
        };
        let named = |route: &Route| (route.from.location.is_some(), route.to.location.is_some());
        let best = self
            .routes
            .iter()
            .filter(|(_, r)| r.active && fits(&r.from, from) && fits(&r.to, to))
            .max_by_key(|(_, r)| named(r))?;
        let mut hops = Vec::new();
        self.expand(best.0, &mut hops)?;
        Some(hops)
    }

    /// The hops of a route, no more than [`MAX_HOPS`].
    fn expand<'a>(&'a self, name: &'a str, hops: &mut Vec<&'a str>) -> Option<()> {
        let route = self.routes.get(name)?;
        match (&route.via, hops.len() < MAX_HOPS) {
            (_, false) => None,
            (None, true) => {
                hops.push(name);
                Some(())
            }
            (Some(via), true) => {
                // A database that was changed by hand may hold the loop that no file can.
                self.legs(name, &mut Vec::new()).ok()?;
                let (first, _) = self.route_between(&route.from.site, via)?;
                let (second, _) = self.route_between(via, &route.to.site)?;
                self.expand(first, hops)?;
                self.expand(second, hops)
            }
        }
    }

    /// How many hops a route has, or why its legs lead nowhere.
    fn legs<'a>(&'a self, name: &'a str, on_the_way: &mut Vec<&'a str>) -> Result<usize, Fault> {
        let Some(route) = self.routes.get(name) else { return Ok(0) };
        let (RouteType::Relay, Some(via)) = (route.route_type, &route.via) else { return Ok(1) };
        if on_the_way.contains(&name) {
            on_the_way.push(name);
            return Err(Fault::RelayLoop { at: format!("route '{}'", on_the_way[0]), path: on_the_way.join(" -> ") });
        }
        on_the_way.push(name);
        let mut hops = 0usize;
        for (from, to) in [(&route.from.site, via), (via, &route.to.site)] {
            let Some((leg, _)) = self.route_between(from, to) else {
                return Err(Fault::LeadsNowhere {
                    at: format!("route '{name}'"),
                    why: format!("there is no route for its leg from {from} to {to}"),
                });
            };
            hops = hops.saturating_add(self.legs(leg, on_the_way)?);
        }
        on_the_way.pop();
        Ok(hops)
    }

    /// Both ends have a location for it, and somebody to dial.
    fn reachable(&self, at: &str, route: &Route, faults: &mut Vec<Fault>) {
        let ends = [
            (&route.from, "leave from", Dialer::Destination, [LocationType::Source, LocationType::Buffer].as_slice()),
            (&route.to, "arrive at", Dialer::Origin, [LocationType::Buffer, LocationType::Processing].as_slice()),
        ];
        let is_archive = |(_, l): (_, &Location)| l.location_type == LocationType::LongTermArchive;
        if route.to.location.is_some() && self.at_end(&route.to).any(is_archive) {
            let why = format!(
                "{} is a long-term archive; let the route end in a buffer of its site, and archive work goes on from there",
                route.to
            );
            faults.push(Fault::Value { at: at.to_owned(), why });
        }
        for (end, what, dialled_by, types) in ends {
            // A location that a custom route names may be of any type: an archive is the origin of its copies.
            let fitting: Vec<&Location> = self
                .at_end(end)
                .filter(|(_, l)| l.active && (end.location.is_some() || types.contains(&l.location_type)))
                .map(|(_, l)| l)
                .collect();
            let why = if fitting.is_empty() {
                format!("{end} has no location to {what}")
            } else if route.dialer == dialled_by
                && route.from.site != route.to.site
                && fitting.iter().all(|l| l.peer.is_none())
            {
                format!("no location of {end} has a peer to dial")
            } else {
                continue;
            };
            faults.push(Fault::LeadsNowhere { at: at.to_owned(), why });
        }
    }

    fn at_end<'a>(&'a self, end: &'a RouteEnd) -> impl Iterator<Item = (&'a Place, &'a Location)> {
        self.locations
            .iter()
            .filter(|(p, _)| p.site == end.site && end.location.as_ref().is_none_or(|l| *l == p.location))
    }
}

/// What the database's CHECKs refuse too.
fn shape(at: &str, route: &Route, faults: &mut Vec<Fault>) {
    let mut wrong = |why: &str| faults.push(Fault::Value { at: at.to_owned(), why: why.to_owned() });
    let locations = [&route.from, &route.to].iter().filter(|e| e.location.is_some()).count();
    match route.route_type {
        RouteType::Relay => match &route.via {
            None => wrong("a relay names its third site with `via`"),
            Some(via) if *via == route.from.site || *via == route.to.site => {
                wrong("the third site of a relay is another one than its ends");
            }
            Some(_) => {}
        },
        _ if route.via.is_some() => wrong("only a relay has a `via`"),
        _ => {}
    }
    match route.route_type {
        RouteType::Custom if locations == 0 => wrong("a custom route names a location: SITE/LOCATION"),
        RouteType::Direct | RouteType::Relay if locations > 0 => wrong("only a custom route names locations"),
        _ => {}
    }
    if route.from.site == route.to.site && (locations < 2 || route.from == route.to) {
        wrong("a route within a site names two locations");
    }
}
