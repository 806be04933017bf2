use std::sync::{Arc, PoisonError};

use super::{
    JournalError, Part, PartStore, SmallPart, log::Content, part::chunk_records, record::Body, store::Shared,
    writer::Writer,
};
use crate::{
    chunk::ChunkValue,
    disk::{SyncScope, fault, sync_scope},
};

/// Chunks of one part that were written and are to be made durable.
#[derive(Clone, Debug)]
pub struct GroupItem {
    /// The part.
    pub part: Arc<Part>,
    /// Index and value of each chunk, in any order.
    pub chunks: Vec<(u64, ChunkValue)>,
}

impl PartStore {
    /// Makes a group durable: its data, then the journals that speak of it. When this returns, the group may be
    /// acknowledged.
    ///
    /// Any failure poisons the store: what a failed sync has lost cannot be known.
    pub fn commit(&self, group: &[GroupItem], small: &[SmallPart]) -> Result<(), JournalError> {
        let _one = self.shared.commit.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.check_fence()?;
        let mut records: Vec<(Arc<Writer>, Vec<Body>)> = Vec::new();
        for item in group {
            add(&mut records, &item.part.writer, chunk_records(item.part.number, &item.chunks));
        }
        let small: Vec<&SmallPart> = small.iter().filter(|small| !small.is_recorded()).collect();
        for small in &small {
            add(&mut records, &small.inner.writer, [small.record()]);
        }
        if fault::planted(fault::Fault::SyncOrderSwapped) {
            self.shared.record(&records)?;
            self.shared.sync_data(group.iter().map(|item| &*item.part), &small)?;
        } else {
            // The order is the promise: a journal that ran ahead of the data would call lost bytes verified.
            self.shared.sync_data(group.iter().map(|item| &*item.part), &small)?;
            self.shared.record(&records)?;
        }
        for item in group {
            item.part.writer.update(item.part.number, |live| {
                if let Content::Chunks { held, .. } = &mut live.listed.content {
                    for &(index, _) in &item.chunks {
                        held.insert(index);
                    }
                }
            });
        }
        for small in small {
            small.inner.writer.update(small.inner.number, |live| live.recorded = true);
        }
        Ok(())
    }
}

impl Shared {
    /// Makes the contents of files durable, and their names in the writers' folders.
    pub(super) fn sync_data<'a>(
        &self,
        parts: impl Iterator<Item = &'a Part>,
        small: &[&SmallPart],
    ) -> Result<(), JournalError> {
        let mut parts: Vec<&Part> = parts.collect();
        parts.sort_unstable_by_key(|part| (part.writer.name(), part.number));
        parts.dedup_by(|a, b| std::ptr::eq(*a, *b));
        if parts.len() + small.len() > SYNCED_ONE_BY_ONE && sync_scope() == SyncScope::FileSystem {
            self.root.sync().map_err(|e| self.poison(e))?;
        } else {
            for part in &parts {
                part.file.sync_data().map_err(|e| part.poison("sync", e))?;
            }
            for small in small {
                small.sync().map_err(|e| self.poison(e))?;
            }
            let mut folders: Vec<&Arc<Writer>> = parts.iter().map(|part| &part.writer).collect();
            folders.extend(small.iter().map(|small| &small.inner.writer));
            for folder in distinct(folders) {
                folder.sync_names().map_err(|e| self.poison(e))?;
            }
        }
        fault::point(fault::Point::DataSynced);
        Ok(())
    }

    /// Appends records to their journals and makes these durable.
    pub(super) fn record(&self, records: &[(Arc<Writer>, Vec<Body>)]) -> Result<(), JournalError> {
        for (writer, bodies) in records {
            writer.append(bodies.iter().cloned()).map_err(|e| self.poison(e))?;
        }
        fault::point(fault::Point::JournalAppended);
        if !fault::planted(fault::Fault::AcknowledgedBeforeJournalSync) {
            for (writer, _) in records {
                writer.sync_journal().map_err(|e| self.poison(e))?;
            }
        }
        fault::point(fault::Point::JournalSynced);
        Ok(())
    }
}

impl SmallPart {
    pub(super) fn is_recorded(&self) -> bool {
        self.inner.writer.live(self.inner.number).is_some_and(|live| live.recorded)
    }

    pub(super) fn record(&self) -> Body {
        Body::Whole {
            part: self.inner.number,
            inode: self.inner.inode,
            size: self.inner.size,
            digest: self.inner.digest,
            path: self.inner.path.clone(),
        }
    }
}

pub(super) fn add(
    records: &mut Vec<(Arc<Writer>, Vec<Body>)>,
    writer: &Arc<Writer>,
    bodies: impl IntoIterator<Item = Body>,
) {
    match records.iter_mut().find(|(w, _)| Arc::ptr_eq(w, writer)) {
        Some((_, list)) => list.extend(bodies),
        None => records.push((Arc::clone(writer), bodies.into_iter().collect())),
    }
}

pub(super) fn distinct(mut writers: Vec<&Arc<Writer>>) -> Vec<&Arc<Writer>> {
    writers.sort_unstable_by_key(|writer| writer.name());
    writers.dedup_by(|a, b| Arc::ptr_eq(a, b));
    writers
}

/// Above this many files one sync of the whole file system is cheaper, though it also waits for what others wrote.
pub(super) const SYNCED_ONE_BY_ONE: usize = 16;
