//! Heartbeats: proof that each loop of a daemon did something, or looked and found nothing to do, not long ago.
//!
//! A loop takes a [`Heartbeat`] with the longest silence that is still normal for it, and reports after each turn. A loop that
//! hangs, panicked, or waits for a server that does not come back falls silent, and [`Health`] names it. A heartbeat
//! that is dropped goes stale as well: only [`Heartbeat::retire`] takes it off the list.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;

/// The heartbeats of a process.
#[derive(Clone, Debug, Default)]
pub struct Health {
    loops: Arc<Mutex<BTreeMap<String, Beats>>>,
}

#[derive(Clone, Copy, Debug)]
struct Beats {
    limit: Duration,
    born: Instant,
    /// Last turn of any kind.
    last_turn: Option<Instant>,
    /// Last turn that did something.
    last_work: Option<Instant>,
}

/// One loop's way to say that it goes on.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    health: Health,
    name: String,
}

impl Health {
    /// Without any loop, and so healthy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a loop that must report at least every `limit`; it has that long for its first report as well. A name that is
    /// there already is taken over: a loop that was started again is the same loop.
    pub fn heartbeat(&self, name: impl Into<String>, limit: Duration) -> Heartbeat {
        let name = name.into();
        let beats = Beats { limit, born: Instant::now(), last_turn: None, last_work: None };
        self.loops().insert(name.clone(), beats);
        Heartbeat { health: self.clone(), name }
    }

    /// How all loops are now.
    pub fn report(&self) -> Report {
        self.report_at(Instant::now())
    }

    pub(crate) fn report_at(&self, now: Instant) -> Report {
        let millis =
            |since: Instant| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        let loops: Vec<LoopReport> = self
            .loops()
            .iter()
            .map(|(name, beats)| {
                let silent = now.saturating_duration_since(beats.last_turn.unwrap_or(beats.born));
                LoopReport {
                    name: name.clone(),
                    state: match (silent > beats.limit, beats.last_turn) {
                        (true, _) => LoopState::Stale,
                        (false, None) => LoopState::Starting,
                        (false, Some(_)) => LoopState::Fresh,
                    },
                    silent_ms: millis(beats.last_turn.unwrap_or(beats.born)),
                    limit_ms: u64::try_from(beats.limit.as_millis()).unwrap_or(u64::MAX),
                    since_work_ms: beats.last_work.map(millis),
                }
            })
            .collect();
        let stale: Vec<String> = loops.iter().filter(|l| l.state == LoopState::Stale).map(|l| l.name.clone()).collect();
        Report { healthy: stale.is_empty(), stale, loops }
    }

    fn loops(&self) -> MutexGuard<'_, BTreeMap<String, Beats>> {
        // Nothing panics while it is held; a map is whole between two statements anyway.
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heartbeat {
    /// The loop did something.
    pub fn worked(&self) {
        let now = Instant::now();
        self.note(|beats| {
            beats.last_turn = Some(now);
            beats.last_work = Some(now);
        });
    }

    /// The loop looked and there was nothing to do.
    pub fn found_nothing(&self) {
        let now = Instant::now();
        self.note(|beats| beats.last_turn = Some(now));
    }

    /// The loop ended as it should; nothing more is expected of it.
    pub fn retire(self) {
        self.health.loops().remove(&self.name);
    }

    fn note(&self, change: impl FnOnce(&mut Beats)) {
        if let Some(beats) = self.health.loops().get_mut(&self.name) {
            change(beats);
        }
    }
}

/// What `/health` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether no loop is stale.
    pub healthy: bool,
    /// The loops that are.
    pub stale: Vec<String>,
    /// All of them, by name.
    pub loops: Vec<LoopReport>,
}

/// One loop in a [`Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoopReport {
    /// Its name.
    pub name: String,
    /// Whether it goes on.
    pub state: LoopState,
    /// Milliseconds since its last report, or since it was added.
    pub silent_ms: u64,
    /// Milliseconds of silence after which it is stale.
    pub limit_ms: u64,
    /// Milliseconds since it last did something; absent if it never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_work_ms: Option<u64>,
}

/// Whether a loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopState {
    /// It has not reported yet, and still has time to.
    Starting,
    /// It reported in time.
    Fresh,
    /// It has been silent for too long.
    Stale,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_silent_loop_is_named() {
        let health = Health::new();
        assert!(health.report().healthy);
        let (planner, sweeper) = (health.heartbeat("planner", LIMIT), health.heartbeat("sweeper", LIMIT * 100));
        let start = Instant::now();
        let states = |at: Duration| -> Vec<_> {
            health
                .report_at(start + at)
                .loops
                .into_iter()
                .map(|l| (l.name, l.state, l.since_work_ms.is_some()))
                .collect()
        };
        let row = |name: &str, state, worked| (name.to_owned(), state, worked);
        use LoopState::{Fresh, Stale, Starting};
        assert_eq!(states(Duration::ZERO), [row("planner", Starting, false), row("sweeper", Starting, false)]);
        planner.worked();
        sweeper.found_nothing();
        assert_eq!(states(LIMIT / 2), [row("planner", Fresh, true), row("sweeper", Fresh, false)]);
        assert_eq!(states(LIMIT * 2), [row("planner", Stale, true), row("sweeper", Fresh, false)]);
        let report = health.report_at(start + LIMIT * 2);
        assert_eq!((report.healthy, report.stale.as_slice()), (false, &["planner".to_owned()][..]));

        // A loop that died stays on the list; one that retired does not.
        drop(planner);
        assert!(!health.report_at(start + LIMIT * 2).healthy);
        health.heartbeat("planner", LIMIT).retire();
        assert_eq!(health.report_at(start + LIMIT * 2).loops.len(), 1);
        assert!(health.report_at(start + LIMIT * 2).healthy);
    }

    #[test]
    fn a_loop_that_never_reports_goes_stale_too() {
        let health = Health::new();
        let _heartbeat = health.heartbeat("relay", LIMIT);
        assert!(!health.report_at(Instant::now() + LIMIT * 2).healthy);
    }

    #[test]
    fn the_report_as_json() {
        let report = Report {
            healthy: false,
            stale: vec!["relay".to_owned()],
            loops: vec![LoopReport {
                name: "relay".to_owned(),
                state: LoopState::Stale,
                silent_ms: 61_000,
                limit_ms: 60_000,
                since_work_ms: None,
            }],
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"healthy":false,"stale":["relay"],"loops":[{"name":"relay","state":"stale","silent_ms":61000,"limit_ms":60000}]}"#
        );
    }
}
