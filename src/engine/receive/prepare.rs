//! What the destination has of the entries of a page, before bytes flow.

use super::{
    Destination, ParkedFrame, disk_failure,
    frames::{handle_data, handle_pack},
    journal_failure,
};
use crate::chunk::RelPath;
use crate::disk::{DiskError, DiskErrorKind, FileKind, FileMeta, Timestamp};
use crate::engine::link::LinkError;
use crate::engine::session::{Session, protocol_failure};
use crate::engine::{FailureClass, JobError};
use crate::protocol::{Class, Done, Entry, EntryKind, Meta, Prepared};
use std::sync::{Arc, PoisonError};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// Prepares pages in their order: directories must be there before what lies in them.
pub(super) async fn prepare_pages(
    session: Arc<Session>,
    destination: Arc<Destination>,
    mut pages: mpsc::UnboundedReceiver<(u64, Vec<Entry>)>,
) {
    while let Some((first, entries)) = pages.recv().await {
        let on = Arc::clone(&destination);
        let found = spawn_blocking(move || (first..).zip(&entries).map(|(id, e)| on.prepare(id, e)).collect()).await;
        let Ok(found) = found else {
            return session.fail(JobError::new(FailureClass::Bug, "preparing a page ended badly"));
        };
        // Under the lock of what is parked: nothing may be parked between the machine's knowing and the retrieval.
        let frames = {
            let mut parked = destination.parked.lock().unwrap_or_else(PoisonError::into_inner);
            session.with_receiver(|r| r.handle_prepared(first, found));
            std::mem::take(&mut parked.frames)
        };
        for (header, frame) in frames {
            let taken = match frame {
                ParkedFrame::Data(head, buffer) => handle_data(&session, &destination, header, head, buffer),
                ParkedFrame::Pack(buffer) => handle_pack(&session, &destination, header, buffer),
            };
            if let Err(LinkError::Protocol(error)) = taken {
                return session.fail(protocol_failure(&error));
            }
        }
    }
}

impl Destination {
    fn prepare(&self, id: u64, entry: &Entry) -> Prepared {
        match self.try_prepare(id, entry) {
            Ok(prepared) => prepared,
            Err((class, text)) => Prepared::Failed { class, text },
        }
    }

    fn try_prepare(&self, id: u64, entry: &Entry) -> Result<Prepared, (Class, String)> {
        let path = self.local(&entry.path)?;
        let settled = |done, durable| Ok(Prepared::Settled { done, durable });
        match &entry.kind {
            EntryKind::Skipped => settled(Done::Skipped, false),
            EntryKind::Failed { class, text } => Err((*class, text.clone())),
            EntryKind::DirEnd => Ok(Prepared::Later),
            _ if self.read_only_names => self.rehearse(&path, entry),
            EntryKind::Dir => {
                if let Some(name) = self.new_name(&entry.path)
                    && self.root.stat(&path).map_err(|e| disk_failure(&e))?.is_none()
                {
                    name.begin().map_err(|e| journal_failure(&e))?;
                }
                // The mode of the source may forbid writing; it is set when everything is in place.
                self.root.make_dirs_unsynced(&path, 0o700).map_err(|e| disk_failure(&e))?;
                settled(Done::Made, false)
            }
            EntryKind::Symlink { target } => self.make_link(&path, target, &entry.meta),
            EntryKind::File { size, .. } => {
                let found = self.root.stat(&path).map_err(|e| disk_failure(&e))?;
                let Some(stat) = found else {
                    return Ok(if self.store.has_part(&path) { Prepared::Held } else { Prepared::Receive });
                };
                if stat.kind != FileKind::File {
                    return Err((
                        Class::Destination,
                        format!("{path}: is something else than a file at the destination; move it away"),
                    ));
                }
                let mtime = Timestamp { seconds: entry.meta.mtime_s, nanoseconds: entry.meta.mtime_ns };
                if self.flags.quick && stat.identity.size == *size && stat.identity.mtime == mtime {
                    return settled(Done::Trusted, false);
                }
                self.replaced.lock().unwrap_or_else(PoisonError::into_inner).insert(id, stat.identity);
                if stat.identity.size == *size {
                    Ok(Prepared::Compare)
                } else if !self.flags.overwrite {
                    Err((
                        Class::Destination,
                        format!(
                            "{path}: exists at the destination with {} bytes instead of {size}; use --overwrite to replace it",
                            stat.identity.size
                        ),
                    ))
                } else if self.store.has_part(&path) {
                    Ok(Prepared::Held)
                } else {
                    Ok(Prepared::Receive)
                }
            }
        }
    }

    fn make_link(&self, path: &RelPath, target: &[u8], meta: &Meta) -> Result<Prepared, (Class, String)> {
        let failure = |e: DiskError| disk_failure(&e);
        match self.root.symlink(target, path) {
            Ok(()) => {}
            Err(e) if e.kind() == DiskErrorKind::Exists => {
                let stat = self.root.stat(path).map_err(failure)?;
                let same = stat.is_some_and(|s| s.kind == FileKind::Symlink)
                    && self.root.read_link(path).map_err(failure)? == target;
                if !same {
                    return Err((
                        Class::Destination,
                        format!("{path}: something else is there than a link to the same place; move it away"),
                    ));
                }
            }
            Err(e) => return Err(failure(e)),
        }
        let meta = FileMeta { mode: None, ..self.meta(meta) };
        self.root.set_metadata(path, &meta).map_err(failure)?;
        Ok(Prepared::Settled { done: Done::Made, durable: false })
    }

    /// What would be done, without doing it.
    fn rehearse(&self, path: &RelPath, entry: &Entry) -> Result<Prepared, (Class, String)> {
        let found = match self.root.stat(path) {
            Ok(found) => found,
            Err(e) if e.kind() == DiskErrorKind::NotFound => None,
            Err(e) => return Err(disk_failure(&e)),
        };
        match (&entry.kind, found) {
            (EntryKind::File { size, .. }, Some(stat)) if stat.kind == FileKind::File => {
                if stat.identity.size == *size {
                    Ok(Prepared::Compare)
                } else if self.flags.overwrite {
                    Ok(Prepared::Settled { done: Done::WouldCopy, durable: false })
                } else {
                    Err((Class::Destination, format!("{path}: exists at the destination with another size")))
                }
            }
            _ => Ok(Prepared::Settled { done: Done::WouldCopy, durable: false }),
        }
    }
}
