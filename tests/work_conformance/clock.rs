//! Wall clocks are set by an hour, forward and back, under a server and under a process, while work runs. libfaketime
//! stands between them and the system's clock; the steady clocks stay.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ccat_xfer::{
    model::{ErrorClass, WorkerState},
    store::{LeaseClock, Renewal, Store, StoreError, SweepRules, WorkerSession},
};

use crate::{
    bed::Bed,
    harness::LIMIT,
    scene::{QUEUE, completed, failed, profile},
};

const LEASE: Duration = Duration::from_secs(2);
const HOUR: i64 = 3600;

/// The file that says by how many seconds a clock is off.
#[derive(Clone, Debug)]
pub(crate) struct Offset(pub(crate) PathBuf);

impl Offset {
    /// The library that reads it, where it is installed.
    pub(crate) fn library() -> Option<PathBuf> {
        let folders = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|e| e.path().join("faketime"));
        folders.map(|folder| folder.join("libfaketime.so.1")).find(|library| library.is_file())
    }

    /// What a program needs in its environment.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_PRELOAD", Self::library().expect("asked for before")),
            ("FAKETIME_TIMESTAMP_FILE", self.0.clone()),
            ("FAKETIME_NO_CACHE", Path::new("1").to_owned()),
            ("DONT_FAKE_MONOTONIC", Path::new("1").to_owned()),
        ]
    }

    pub(crate) fn set(&self, seconds: i64) {
        // Replaced as a whole: somebody reads it at every look at the clock.
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n")).expect("write the offset");
        std::fs::rename(&new, &self.0).expect("replace the offset");
    }
}

async fn enrol(store: &Store, name: &str) -> WorkerSession {
    let profile = ccat_xfer::store::WorkerProfile { lease: LEASE, ..profile(name, "nonce", &[QUEUE]) };
    store.register_worker(&profile, &store.lease_clock()).await.expect("register")
}

/// Seen to fail on PostgreSQL with leases that are compared with the server's clock, and on both without the ranges of
/// the scheduler that lie too far ahead. `true_now` is a clock that nobody sets, where there is one to compare with.
pub(crate) async fn no_setting_of_a_clock_loses_a_lease(bed: &Bed, offset: &Offset, true_now: impl Fn() -> i64) {
    bed.apply_topology().await;
    let store = &bed.store;
    let (alive, silent) = (enrol(store, "alive").await, enrol(store, "silent").await);
    for jump in [HOUR, -HOUR, 0] {
        let (kept, dead) = (bed.scheduled().await.transfer, bed.scheduled().await.transfer);
        let queues: Vec<_> = alive.queues().cloned().collect();
        let claim = async |session| {
            store.claim_next(session, &queues, LEASE, &store.lease_clock()).await.expect("claim").expect("work")
        };
        store.heartbeat(&silent, &store.lease_clock(), WorkerState::Active, &[]).await.expect("beat");
        let held = claim(&alive).await;
        let lost = claim(&silent).await;
        assert_eq!((held.work.number(), lost.work.number()), (kept, dead));

        store.heartbeat(&alive, &store.lease_clock(), WorkerState::Active, &[]).await.expect("beat");
        offset.set(jump);
        // Before anybody has renewed by the new time.
        let swept = store.sweep("m", &store.lease_clock(), &SweepRules::default()).await.expect("sweep");
        assert!(swept.offered.is_empty(), "{jump}: {swept:?}");
        assert!(!swept.dead_workers.contains(&"alive".to_owned()), "{jump}: {swept:?}");
        let seen = (store.now().await.expect("a clock").micros() - true_now()) / 1_000_000;
        assert!((seen - jump).abs() < 600, "the clock is off by {seen} s and not by {jump} s");
        let begun = Instant::now();
        let (mut is_offered, mut is_dead) = (false, false);
        // Longer than a lease, and until what is really lost was found.
        while begun.elapsed() < LEASE * 2 || !is_offered || !is_dead {
            assert!(begun.elapsed() < LIMIT, "{jump}: what is lost is found: work {is_offered}, worker {is_dead}");
            let clock: LeaseClock = store.lease_clock();
            store.heartbeat(&alive, &clock, WorkerState::Active, &[]).await.expect("beat");
            let renewed = store.renew(&alive, held.work, held.fence, LEASE, &clock, 1).await.expect("renew");
            assert_eq!(renewed, Renewal::Held, "{jump}");
            let swept = store.sweep("m", &store.lease_clock(), &SweepRules::default()).await.expect("sweep");
            assert!(!swept.offered.contains(&held.work), "{jump}: it was renewed");
            assert!(swept.dead_workers.iter().all(|name| name == "silent"), "{jump}: {:?}", swept.dead_workers);
            is_offered |= swept.offered.contains(&lost.work);
            is_dead |= swept.dead_workers == ["silent"];
            let thief = store.register_worker(&profile("alive", "thief", &[QUEUE]), &store.lease_clock()).await;
            assert!(matches!(thief, Err(StoreError::WorkerAlive { .. })), "{jump}: {thief:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        store.finish(&completed(&held, "alive"), 0).await.expect("finish");
        let again = claim(&alive).await;
        assert_eq!(again.work, lost.work, "what was lost is done by another one");
        // A wait for a next attempt that was dated before the clock is set back.
        offset.set(jump + HOUR);
        store.finish(&failed(&again, "alive", ErrorClass::RemoteBusy), 0).await.expect("finish");
        offset.set(jump);
        let begun = Instant::now();
        while bed.status(dead).await == "pending" {
            assert!(begun.elapsed() < LIMIT, "{jump}: it waits for the old time to come again");
            store.heartbeat(&alive, &store.lease_clock(), WorkerState::Active, &[]).await.expect("beat");
            store.schedule("m").await.expect("schedule");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let last = claim(&alive).await;
        store.finish(&completed(&last, "alive"), 0).await.expect("finish");
    }
}

pub(crate) fn wall_clock_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_micros()).expect("a time")
}
