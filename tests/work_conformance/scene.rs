//! Workers, scheduled work and outcomes.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use ccat_xfer::{
    model::{AttemptOutcome, CheckMethod, Ending, ErrorClass, Evidence, StorageType, Timestamp, TransferId, Work},
    store::{Claim, LeaseClock, Store, SweepRules, Swept, WorkerProfile, WorkerSession},
};

use crate::bed::{Bed, Planned};

pub(crate) const LEASE: Duration = Duration::from_secs(600);
pub(crate) const QUEUE: &str = "ccat_output_buffer_data_transfer";

pub(crate) fn profile(name: &str, nonce: &str, queues: &[&str]) -> WorkerProfile {
    WorkerProfile {
        name: name.to_owned(),
        boot_nonce: nonce.to_owned(),
        host: "host".to_owned(),
        process_id: 7,
        version: "0".to_owned(),
        slots: 4,
        lease: LEASE,
        queues: queues.iter().map(|q| (q.parse().expect("a queue"), Some(2))).collect(),
    }
}

pub(crate) async fn enrol(store: &Store, name: &str, queues: &[&str]) -> WorkerSession {
    let clock = store.lease_clock();
    store.register_worker(&profile(name, "nonce", queues), &clock).await.expect("register")
}

/// A manager's clock, half a second further with each call: what a case makes silent has a lease of a second at most.
pub(crate) fn later(store: &Store) -> LeaseClock {
    static AHEAD_US: AtomicI64 = AtomicI64::new(0);
    let mut clock = store.lease_clock();
    clock.steady_us += AHEAD_US.fetch_add(500_000, Ordering::Relaxed);
    clock
}

/// The sweeps of a manager that looked for long enough to see what is silent; all that they did.
pub(crate) async fn sweep(store: &Store, manager: &str, rules: &SweepRules) -> Swept {
    let mut all = Swept::default();
    for _ in 0..3 {
        let swept = store.sweep(manager, &later(store), rules).await.expect("sweep");
        all.offered.extend(swept.offered);
        all.failed.extend(swept.failed);
        all.cancelled.extend(swept.cancelled);
        all.hinted += swept.hinted;
        all.dead_workers.extend(swept.dead_workers);
        all.refused.extend(swept.refused);
    }
    all
}

/// Claims from all queues of a worker.
pub(crate) async fn claim(store: &Store, session: &WorkerSession) -> Option<Claim> {
    let queues: Vec<_> = session.queues().cloned().collect();
    store.claim_next(session, &queues, LEASE, &store.lease_clock()).await.expect("claim")
}

impl Bed {
    pub(crate) async fn schedule(&self, transfer: i64) {
        self.done(&format!(
            "UPDATE data_transfer SET status = 'scheduled', scheduled_at = 5, changed_by = 'test', \
             change_reason = 'due' WHERE id = {transfer}"
        ))
        .await;
    }

    /// A transfer from `ccat/output_buffer` to `cologne/buffer` that waits for a worker.
    pub(crate) async fn scheduled(&self) -> Planned {
        let planned = self.planned().await;
        self.schedule(planned.transfer).await;
        planned
    }

    /// The lease of a transfer runs out.
    pub(crate) async fn expire(&self, transfer: i64) {
        self.done(&format!(
            "UPDATE data_transfer SET lease_until = 1, lease_us = 1 WHERE id = {transfer} AND status = 'in_progress'"
        ))
        .await;
    }

    /// A worker is not heard of for its lease.
    pub(crate) async fn silence(&self, worker: &str) {
        self.done(&format!("UPDATE worker SET heartbeat_until = 1, lease_us = 1000000 WHERE name = '{worker}'")).await;
    }

    pub(crate) async fn status(&self, transfer: i64) -> String {
        const WORDS: [&str; 5] = ["pending", "scheduled", "in_progress", "completed", "failed"];
        for word in WORDS {
            let found = self
                .int(&format!("SELECT count(*) FROM data_transfer WHERE id = {transfer} AND status = '{word}'"))
                .await;
            if found == 1 {
                return word.to_owned();
            }
        }
        panic!("no transfer {transfer}");
    }

    /// How much was ever written about work, and when last, to see that nothing was.
    pub(crate) async fn footprint(&self) -> Vec<i64> {
        let mut found = Vec::new();
        for what in [
            "count(*) FROM verification_record",
            "count(*) FROM physical_copy",
            "count(*) FROM attempt",
            "count(*) FROM event",
            "count(*) FROM outbox",
            "coalesce(max(updated_at), 0) FROM data_transfer",
            "coalesce(max(bytes_done), 0) FROM data_transfer",
            "coalesce(max(lease_until), 0) FROM data_transfer",
        ] {
            found.push(self.int(&format!("SELECT {what}")).await);
        }
        found
    }
}

pub(crate) fn work(planned: &Planned) -> Work {
    Work::Transfer(TransferId::new(planned.transfer))
}

pub(crate) fn outcome(claim: &Claim, worker: &str, ending: Ending) -> AttemptOutcome {
    let began = claim.claimed_at;
    let mut outcome =
        AttemptOutcome::new(claim.work, claim.fence, worker, began, Timestamp::from_micros(began.micros() + 5), ending);
    outcome.bytes_done = claim.bytes_total;
    outcome.log = "what happened".into();
    outcome
}

/// Everything arrived, and the receiver has read it.
pub(crate) fn completed(claim: &Claim, worker: &str) -> AttemptOutcome {
    let mut outcome = outcome(claim, worker, Ending::Completed);
    outcome.evidence = claim
        .members
        .iter()
        .map(|member| {
            let digest = member.digests.first().expect("every package has one");
            Evidence {
                package: member.package,
                location: claim.destination.location,
                path: member.relative_path.clone(),
                algorithm: digest.algorithm,
                expected_digest: digest.value,
                found_digest: digest.value,
                expected_size_bytes: member.size_bytes,
                found_size_bytes: member.size_bytes,
                method: CheckMethod::Received,
                medium: StorageType::Disk,
                cached: true,
                how: None,
                unread_reason: None,
                host: "far".into(),
                version: "0".into(),
                receiver_key: Some("sha256:aa".into()),
                started_at: outcome.started_at,
                ended_at: outcome.ended_at,
            }
        })
        .collect();
    outcome
}

pub(crate) fn failed(claim: &Claim, worker: &str, class: ErrorClass) -> AttemptOutcome {
    let chain = vec!["it did not work".to_owned(), class.to_string()];
    let mut outcome = outcome(claim, worker, Ending::Failed { class, chain });
    outcome.bytes_done = 0;
    outcome
}
