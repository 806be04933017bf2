//! Groups made durable, files published, directories closed: one after the other.

use super::{Destination, Slot, disk_failure, job_failure, journal_failure};
use crate::chunk::{ChunkValue, Digest};
use crate::engine::session::Session;
use crate::engine::{FailureClass, JobError};
use crate::journal::{GroupItem, Jobs, JournalError, Publish, PublishMode, PublishOutcome, Staged};
use crate::protocol::{Action, Class, Entry, Evidence, Message};
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// Something for the part store.
pub(super) enum Task {
    Action(Action),
    Discard(Staged),
}

/// Syncs, publishes and closes directories, one after the other.
pub(super) async fn keep_store(
    session: Arc<Session>,
    destination: Arc<Destination>,
    mut tasks: mpsc::UnboundedReceiver<Task>,
) {
    while let Some(task) = tasks.recv().await {
        let (on, told) = (Arc::clone(&destination), Arc::clone(&session));
        let done = spawn_blocking(move || match task {
            Task::Discard(staged) => {
                if let Err(error) = on.store.discard(&staged) {
                    tracing::warn!(%error, "a part of no use could not be removed");
                }
            }
            Task::Action(Action::Sync { group }) => {
                let items = on.group(&group);
                match on.store.commit(&items, &[]) {
                    Ok(()) => {
                        let now = told.now();
                        told.with_receiver(|r| r.handle_synced(&group, now));
                    }
                    Err(error) => told.fail(job_failure(journal_failure(&error))),
                }
            }
            Task::Action(Action::Publish { files }) => on.publish(&told, &files),
            Task::Action(Action::CloseDir { id, entry }) => {
                let closed = on.close_dir(&entry);
                told.with_receiver(|r| r.handle_dir_done(id, closed.err()));
            }
            Task::Action(Action::Keep { message, last }) => match on.keep(&message, last) {
                Ok(()) if last => drop(told.with_receiver(crate::protocol::Receiver::handle_kept)),
                Ok(()) => {}
                Err(error) => told.fail(job_failure(journal_failure(&error))),
            },
            Task::Action(_) => {}
        })
        .await;
        if done.is_err() {
            session.fail(JobError::new(FailureClass::Bug, "a task of the part store ended badly"));
        }
    }
}

impl Destination {
    /// Begins to keep the receipts of this attempt, which `owner` began.
    pub(in crate::engine) fn keep_receipts(&self, job: [u8; 16], fence: u64, owner: &str) -> Result<(), JournalError> {
        let writer = Jobs::new(Arc::clone(&self.root)).keep_receipts(job, fence, owner)?;
        *self.receipts.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(())
    }

    /// Whether receipts are kept.
    pub(in crate::engine) fn keeps_receipts(&self) -> bool {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether nothing is to be changed.
    pub(in crate::engine) fn is_dry(&self) -> bool {
        self.flags.dry_run
    }

    fn keep(&self, message: &Message, last: bool) -> Result<(), JournalError> {
        let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writer) = receipts.as_mut() else { return Ok(()) };
        writer.add(message.encode())?;
        if last
            && let Some(writer) = receipts.take()
            && !writer.finish()?
        {
            tracing::warn!("the receipts of this job are too many to be kept");
        }
        Ok(())
    }

    fn group(&self, group: &[(u64, Vec<(u64, ChunkValue)>)]) -> Vec<GroupItem> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        group
            .iter()
            .filter_map(|(id, chunks)| match files.get(id)? {
                Slot::Large(slot) => {
                    let part = slot.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
                    Some(GroupItem { part, chunks: chunks.clone() })
                }
                Slot::Small(_) => None,
            })
            .collect()
    }

    fn close_dir(&self, entry: &Entry) -> Result<(), (Class, String)> {
        if self.read_only_names {
            return Ok(());
        }
        let path = self.local(&entry.path)?;
        let meta = self.meta(&entry.meta);
        if path.is_root() {
            *self.root_meta.lock().unwrap_or_else(PoisonError::into_inner) = Some(meta);
        }
        self.root.set_metadata(&path, &meta).map_err(|e| disk_failure(&e))
    }

    fn publish(&self, session: &Session, files: &[(u64, Digest)]) {
        let start = SystemTime::now();
        let mut items = Vec::with_capacity(files.len());
        let mut ids = Vec::with_capacity(files.len());
        for &(id, root) in files {
            let Some(Some(entry)) = session.with_receiver_quietly(|r| r.entry(id).cloned()) else { continue };
            match self.publishable(id, &entry) {
                Ok(item) => {
                    items.push(item);
                    ids.push((id, root));
                }
                Err(failure) => self.failed(session, id, failure),
            }
        }
        let received = self.evidence("received", "memory", false, start, SystemTime::now());
        let mut proofs = vec![vec![received]; items.len()];
        if self.flags.read_back {
            self.read_back(session, &mut items, &mut ids, &mut proofs);
        }
        let outcomes = match self.store.publish(&items) {
            Ok(outcomes) => outcomes,
            Err(error) => return session.fail(job_failure(journal_failure(&error))),
        };
        for (((id, root), outcome), evidence) in ids.into_iter().zip(outcomes).zip(proofs) {
            match outcome {
                PublishOutcome::Published(_) => {
                    session.with_receiver_quietly(|r| r.handle_published(id, root, evidence));
                }
                PublishOutcome::AlreadyExists => {
                    session.with_receiver_quietly(|r| r.handle_name_taken(id, root));
                }
                PublishOutcome::Conflict => self.failed(
                    session,
                    id,
                    (Class::Destination, "the destination changed while it was being replaced; run again".to_owned()),
                ),
                PublishOutcome::Failed(error) => self.failed(session, id, journal_failure(&error)),
            }
        }
        session.with_receiver(crate::protocol::Receiver::handle_publish_done);
    }

    /// Reads back what is about to be published; what does not come back as it was written is not published.
    fn read_back(
        &self,
        session: &Session,
        items: &mut Vec<Publish>,
        ids: &mut Vec<(u64, Digest)>,
        proofs: &mut Vec<Vec<Evidence>>,
    ) {
        let mut at = 0;
        while let (Some(item), Some(&(id, root))) = (items.get(at), ids.get(at)) {
            let failure = match self.store.read_back(&item.staged) {
                Ok(back) if back.digest == root => {
                    let evidence = self.evidence(back.method.word(), "disk", back.cached(), back.started, back.ended);
                    proofs[at].push(evidence);
                    at += 1;
                    continue;
                }
                Ok(back) => (
                    Class::Integrity,
                    format!(
                        "{}: read back as {} instead of {root}; the destination's disk or memory is at fault",
                        item.staged.path(),
                        back.digest
                    ),
                ),
                Err(error) => journal_failure(&error),
            };
            items.remove(at);
            ids.remove(at);
            proofs.remove(at);
            self.failed(session, id, failure);
        }
    }

    fn publishable(&self, id: u64, entry: &Entry) -> Result<Publish, (Class, String)> {
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        let mode = match replaced {
            Some(expected) if self.flags.overwrite => PublishMode::Replace { expected },
            _ => PublishMode::NoReplace,
        };
        let slot = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let staged = match slot {
            Some(Slot::Small(part)) => Staged::Small(part),
            // A file without chunks never opened its part.
            Some(Slot::Large(_)) | None => Staged::Part(self.part(id, entry)?),
        };
        Ok(Publish { staged, meta: self.meta(&entry.meta), mode })
    }
}
