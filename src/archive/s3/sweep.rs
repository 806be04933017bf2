//! Uploads that nobody will complete: their attempts found no retry left, or were cancelled.

use std::{collections::BTreeSet, time::Duration};

use super::{S3, keys, now};
use crate::archive::ArchiveError;

impl S3 {
    /// Removes unfinished uploads to keys of packages that were begun `age` ago and have had no part since, by the times
    /// that the store gives; what it gives no time of stays. Returns of how many packages that was.
    ///
    /// Its clock is close to ours: it refuses requests that were signed some minutes away.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub async fn sweep_older(&self, age: Duration) -> Result<u64, ArchiveError> {
        let prefix = &self.settings.prefix;
        let limit = now().before(age).micros().div_euclid(1_000_000);
        let mut packages = BTreeSet::new();
        for upload in self.uploads_below(&keys::packages(prefix)).await? {
            let (Some(key), Some(id), Some(begun)) = (upload.key, upload.upload_id, upload.initiated) else { continue };
            let Some(package) = keys::package_of(prefix, &key).filter(|_| (1..=limit).contains(&begun.secs())) else {
                continue;
            };
            // One that takes long is not left: its parts are newer than its beginning.
            let Some(parts) = self.parts_of(&key, &id).await? else { continue };
            if parts.values().all(|part| part.sent_at_s.is_some_and(|at| (1..=limit).contains(&at)))
                && self.abort(&key, &id).await
            {
                packages.insert(package.to_owned());
            }
        }
        Ok(packages.len() as u64)
    }
}
