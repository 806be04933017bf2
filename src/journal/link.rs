use std::sync::PoisonError;

use super::{JournalError, PartStore, PublishMode, PublishOutcome, publish::Targets, writer::part_name};
use crate::{
    chunk::RelPath,
    disk::{DiskErrorKind, FileMeta, is_reserved},
};

/// A symbolic link to be given its name. It is kept as it is, never followed.
#[derive(Clone, Debug)]
pub struct PublishLink {
    /// Where it goes, relative to the store's root.
    pub path: RelPath,
    /// What it points to: any bytes but none, and no NUL.
    pub target: Vec<u8>,
    /// Its time and owner; a link has no mode.
    pub meta: FileMeta,
    /// What may be at its destination.
    pub mode: PublishMode,
}

impl PartStore {
    /// Makes symbolic links, each at once with its time and owner, and their names durable.
    ///
    /// The directories must exist. `Conflict` and `AlreadyExists` leave nothing behind.
    pub fn publish_links(&self, links: &[PublishLink]) -> Result<Vec<PublishOutcome>, JournalError> {
        let shared = &self.shared;
        let _one = shared.commit.lock().unwrap_or_else(PoisonError::into_inner);
        shared.check_fence()?;
        let lock = match links.iter().any(|link| link.mode != PublishMode::NoReplace) {
            true => Some(shared.lock_names()?),
            false => None,
        };
        let mut targets = Targets::new(&shared.root);
        let mut outcomes = Vec::with_capacity(links.len());
        for link in links {
            outcomes.push(match self.publish_link(link, &mut targets) {
                Err(e) if e.disk_kind() == Some(DiskErrorKind::Io) => return Err(shared.poison(e)),
                Err(e) => PublishOutcome::Failed(e),
                Ok(outcome) => outcome,
            });
        }
        drop(lock);
        targets.sync().map_err(|e| shared.poison(e))?;
        Ok(outcomes)
    }

    fn publish_link(&self, link: &PublishLink, targets: &mut Targets<'_>) -> Result<PublishOutcome, JournalError> {
        let shared = &self.shared;
        if is_reserved(&link.path) {
            return Err(JournalError::Reserved { path: link.path.clone() });
        }
        let (dir, name) = targets.parent(&link.path)?;
        let writer = shared.lock().own(shared)?;
        let number = writer.create_link(&link.target)?;
        let from = part_name(number);
        let renamed = writer
            .dir()
            .set_link_metadata(&from, &link.meta)
            .map_err(JournalError::from)
            .and_then(|()| Ok(shared.rename_as(link.mode, writer.dir(), &from, &dir, name)?));
        match renamed {
            Ok(None) => match dir.stat_name(name)? {
                Some(stat) => Ok(PublishOutcome::Published(stat)),
                None => Ok(PublishOutcome::Conflict),
            },
            other => {
                writer.dir().remove_file(&from)?;
                other.map(|outcome| outcome.unwrap_or(PublishOutcome::Conflict))
            }
        }
    }
}
