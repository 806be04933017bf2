//! The attempts of jobs that run in this process. The fence on disk keeps an overtaken attempt from writing; this ends it
//! at once, so that its peer need not send what nobody will keep.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::{FailureClass, JobError, Session};

/// What runs, for one endpoint.
#[derive(Debug, Default)]
pub struct Attempts {
    running: Mutex<Vec<Running>>,
}

struct Running {
    scope: Scope,
    fence: u64,
    session: Arc<Session>,
}

/// Attempts of one job concern each other only where the same peers may have begun them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Received into this location; whoever began it had the right to create there.
    Into { job: [u8; 16], location: String },
    /// Sent to this peer.
    To { job: [u8; 16], peer: String },
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("scope", &self.scope).field("fence", &self.fence).finish_non_exhaustive()
    }
}

/// An attempt's place among those that run, until dropped.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    among: &'a Attempts,
    session: Arc<Session>,
}

impl Attempts {
    /// Begins an attempt: ends those with a lower fence, or is refused if there is one with a higher one.
    pub(super) fn enter(&self, scope: Scope, fence: u64, session: &Arc<Session>) -> Result<Attempt<'_>, JobError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let of_job = |other: &&Running| other.scope == scope;
        if let Some(newer) = running.iter().filter(of_job).map(|other| other.fence).max().filter(|&n| n > fence) {
            return Err(overtaken(newer, fence));
        }
        for older in running.iter().filter(of_job).filter(|other| other.fence < fence) {
            older.session.fail(overtaken(fence, older.fence));
        }
        running.push(Running { scope, fence, session: Arc::clone(session) });
        Ok(Attempt { among: self, session: Arc::clone(session) })
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut running = self.among.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|other| !Arc::ptr_eq(&other.session, &self.session));
    }
}

fn overtaken(newer: u64, ours: u64) -> JobError {
    JobError::new(
        FailureClass::Overtaken,
        format!("a newer attempt (fence {newer}) of this job has begun; this one (fence {ours}) has ended"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{buf::Pool, chunk::ChunkSize, protocol::SessionSecret};

    fn session(id: u8) -> Arc<Session> {
        Session::new([id; 16], SessionSecret([id; 32]), Pool::new(1, 64 << 10), ChunkSize::DEFAULT)
    }

    fn into(job: u8) -> Scope {
        Scope::Into { job: [job; 16], location: "data".into() }
    }

    fn class(session: &Session) -> Option<FailureClass> {
        session.failure().map(|f| f.class)
    }

    #[test]
    fn a_newer_attempt_ends_the_older_ones_of_its_job_and_place() {
        let attempts = Attempts::default();
        let (first, same, other, sent, newer) = (session(1), session(2), session(3), session(4), session(5));
        let _first = attempts.enter(into(1), 1, &first).unwrap();
        let _same = attempts.enter(into(1), 1, &same).unwrap();
        let _other = attempts.enter(into(2), 1, &other).unwrap();
        let to = Scope::To { job: [1; 16], peer: "data".into() };
        let _sent = attempts.enter(to, 1, &sent).unwrap();
        assert!([&first, &same, &other, &sent].iter().all(|s| s.failure().is_none()), "equal fences are one attempt");
        let held = attempts.enter(into(1), 2, &newer).unwrap();
        assert_eq!([&first, &same].map(|s| class(s)), [Some(FailureClass::Overtaken); 2]);
        assert_eq!([&other, &sent, &newer].map(|s| class(s)), [None; 3]);
        let late = attempts.enter(into(1), 1, &session(6)).unwrap_err();
        assert_eq!(late.class, FailureClass::Overtaken, "it had passed the fence on disk before the newer one came");
        drop(held);
        assert!(attempts.enter(into(1), 1, &session(7)).is_ok(), "what has ended is forgotten");
    }
}
