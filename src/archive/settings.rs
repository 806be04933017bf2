use std::{path::PathBuf, sync::Arc};

use super::{Archive, ArchiveError, Disk, Tape, s3, tape};

/// What an archive's name means on a machine.
#[derive(Clone, Debug)]
pub enum Settings {
    /// A folder with the marker of an archive.
    Disk(PathBuf),
    /// A bucket.
    S3(Box<s3::Settings>),
    /// A tape system behind its own commands.
    Tape(Box<tape::Settings>),
}

impl Settings {
    /// Opens it. A disk is looked at when it is used.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub async fn open(&self) -> Result<Arc<dyn Archive>, ArchiveError> {
        Ok(match self {
            Self::Disk(root) => Arc::new(Disk::new(root)),
            Self::S3(settings) => Arc::new(s3::S3::new((**settings).clone())?),
            Self::Tape(settings) => Arc::new(Tape::new((**settings).clone())?),
        })
    }

    /// Whether nothing is read back from it, and its readings carry the reason.
    pub fn reads_nothing(&self) -> bool {
        matches!(self, Self::Tape(settings) if matches!(settings.readback, tape::Readback::None { .. }))
    }
}
