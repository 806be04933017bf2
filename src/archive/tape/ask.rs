//! Questions to a tape system.

use std::collections::BTreeSet;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        ArchiveError, failure,
        key::{SIDECAR_SUFFIX, is_sidecar},
    },
    run::{lines, run},
    templates::{Filling, Settings, Templates},
};
use crate::{chunk::plain_text, model::ErrorClass, task::Backoff};

/// The longest wait between two looks whether an object is on tape.
const LONGEST_POLL: std::time::Duration = std::time::Duration::from_secs(60);
/// A tape system may take so many looks until it knows of an object that it has just taken.
const BLIND_POLLS: u32 = 3;
/// An object is not replaced more often.
const MAX_REPLACED: u32 = 64;

/// What a tape system says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Missing,
    OnDisk,
    Staging,
    OnTape,
}

/// The key that counts of an object, and the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    pub(super) key: String,
    pub(super) state: State,
    nth: u32,
}

/// A tape system and the commands that reach it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    pub(super) settings: &'a Settings,
    pub(super) templates: &'a Templates,
}

impl Latest {
    /// Whether it was put in place of an older one.
    pub(super) fn is_replacement(&self) -> bool {
        self.nth > 0
    }
}

fn nth_key(object: &str, nth: u32) -> String {
    if nth == 0 { object.to_owned() } else { format!("{object}.r{nth}") }
}

impl Asking<'_> {
    /// The state of one object.
    pub(super) async fn state(&self, key: &str, cancel: &CancellationToken) -> Result<State, ArchiveError> {
        let what = format!("cannot tell the state of {key} on tape");
        let answer = run(&what, &self.templates.stat, Filling { key, ..Filling::default() }, cancel).await?;
        match answer.split_whitespace().next() {
            Some("missing") => Ok(State::Missing),
            Some("on_disk") => Ok(State::OnDisk),
            Some("staging") => Ok(State::Staging),
            Some("on_tape") => Ok(State::OnTape),
            _ => Err(garbage(&what, &answer, "one of missing, on_disk, staging, on_tape")),
        }
    }

    /// The newest of an object and what replaced it; `None` if there is none.
    pub(super) async fn latest(
        &self,
        object: &str,
        cancel: &CancellationToken,
    ) -> Result<Option<Latest>, ArchiveError> {
        let mut latest = None;
        for nth in 0..=MAX_REPLACED {
            let key = nth_key(object, nth);
            match self.state(&key, cancel).await? {
                State::Missing => break,
                state => latest = Some(Latest { key, state, nth }),
            }
        }
        Ok(latest)
    }

    /// A key that is free for what replaces `latest`.
    pub(super) fn next_key(&self, object: &str, latest: Option<&Latest>) -> Result<String, ArchiveError> {
        let nth = latest.map_or(0, |latest| latest.nth + 1);
        if nth > MAX_REPLACED {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!(
                    "{object} was replaced {MAX_REPLACED} times on tape; see why, and clear up by the tape system's own means"
                ),
            ));
        }
        Ok(nth_key(object, nth))
    }

    /// Waits until an object that was put is on tape.
    pub(super) async fn await_tape(&self, key: &str, cancel: &CancellationToken) -> Result<(), ArchiveError> {
        self.await_state(key, |state| state == State::OnTape, cancel).await
    }

    /// Waits until the tape system knows of an object that was put, wherever it is.
    pub(super) async fn await_known(&self, key: &str, cancel: &CancellationToken) -> Result<(), ArchiveError> {
        self.await_state(key, |state| state != State::Missing, cancel).await
    }

    async fn await_state(
        &self,
        key: &str,
        is_there: impl Fn(State) -> bool + Send,
        cancel: &CancellationToken,
    ) -> Result<(), ArchiveError> {
        let deadline = Instant::now() + self.settings.tape_limit;
        let mut waits = Backoff { first: self.settings.tape_poll, limit: LONGEST_POLL }.delays();
        loop {
            let state = self.state(key, cancel).await?;
            match state {
                state if is_there(state) => return Ok(()),
                State::Missing if waits.failures() >= BLIND_POLLS => {
                    return Err(ArchiveError::new(
                        ErrorClass::CorruptInFlight,
                        format!("{key} was put and is missing on tape; see what became of it in the tape system"),
                    ));
                }
                _ => {}
            }
            let wait = waits.next_delay();
            if Instant::now() + wait > deadline {
                return Err(ArchiveError::new(
                    ErrorClass::RemoteBusy,
                    format!(
                        "{key} is not on tape after {} s ({state:?}); the next attempt goes on waiting",
                        self.settings.tape_limit.as_secs_f64()
                    ),
                ));
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = cancel.cancelled() => return Err(failure::cancelled(format!("{key} is not on tape yet"))),
            }
        }
    }

    /// What the checksum command says of an object, in small letters.
    pub(super) async fn checksum(&self, key: &str, cancel: &CancellationToken) -> Result<String, ArchiveError> {
        let what = format!("cannot have the checksum of {key} on tape");
        let Some(template) = &self.templates.checksum else {
            return Err(ArchiveError::new(ErrorClass::Configuration, format!("{what}: there is no checksum command")));
        };
        let answer = run(&what, template, Filling { key, ..Filling::default() }, cancel).await?;
        let word = answer.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        if word.len() != 64 || !word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(garbage(&what, &answer, "a checksum of 64 hexadecimal digits"));
        }
        Ok(word)
    }

    /// The first `limit` sidecars after `after`, whatever order the tape system lists them in.
    pub(super) async fn sidecars(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ArchiveError> {
        let what = "cannot list the sidecars on tape";
        let Some(template) = &self.templates.list else {
            return Err(ArchiveError::new(
                ErrorClass::Configuration,
                format!("{what}: the tape system has no list command; name one in the worker's settings"),
            ));
        };
        let mut first = BTreeSet::new();
        let hear = |line: &str| {
            let Some(name) = sidecar_of(line) else { return };
            if limit == 0 || after.is_some_and(|after| name <= after) {
                return;
            }
            if first.len() < limit {
                first.insert(name.to_owned());
            } else if first.last().is_some_and(|last| name < last.as_str()) && first.insert(name.to_owned()) {
                first.pop_last();
            }
        };
        let listed = timeout(self.settings.ask_limit, lines(what, template, hear)).await;
        listed.unwrap_or_else(|_| {
            Err(ArchiveError::new(ErrorClass::Network, format!("{what}: it takes too long; allow it more time")))
        })?;
        Ok(first.into_iter().collect())
    }
}

/// The sidecar that a key belongs to: the key without the number of what replaced it.
pub(super) fn sidecar_of(key: &str) -> Option<&str> {
    let (object, nth) = key.rsplit_once(".r").unwrap_or((key, ""));
    let numbered = !nth.is_empty() && nth.bytes().all(|b| b.is_ascii_digit()) && is_sidecar(object.as_bytes());
    let name = if numbered { object } else { key };
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+=@%".contains(&b));
    (plain && name.ends_with(SIDECAR_SUFFIX) && name.split('/').count() == 4).then_some(name)
}

fn garbage(what: &str, answer: &str, wanted: &str) -> ArchiveError {
    let said: String = plain_text(answer.trim().as_bytes()).chars().take(200).collect();
    ArchiveError::new(
        ErrorClass::Network,
        format!("{what}: the command said {said:?} instead of {wanted}; run it by hand and see"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_are_told_from_other_objects() {
        for (key, name) in [
            ("ab/cd/d-p/x.ccat.json", Some("ab/cd/d-p/x.ccat.json")),
            ("ab/cd/d-p/x.ccat.json.r12", Some("ab/cd/d-p/x.ccat.json")),
            ("ab/cd/d-p/x.ccat.json.rx", None),
            ("ab/cd/d-p/x", None),
            ("ab/cd/d-p/x.r1", None),
            ("x.ccat.json", None),
            ("ab/cd/d p/x.ccat.json", None),
            ("", None),
        ] {
            assert_eq!(sidecar_of(key), name, "{key}");
        }
    }
}
