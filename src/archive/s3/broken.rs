//! Whose fault is it that a store does not give an object: that of its bytes, or of a store whose data are away?
//!
//! No answer tells. A store that finds a checksum of its own wrong and one that does not reach the disk that an object is on
//! both say 500 `InternalError` (SeaweedFS 4.48, with bytes changed in a volume and with the volume's server away). So the
//! object is tried once more after a while, and then others are: where the store gives those and not this one, this one is
//! bad. Where it gives none, or many are not given, it is the store that is not well, and a later attempt finds out.

use aws_sdk_s3::config::{Builder, retry::RetryConfig};
use futures_util::{StreamExt as _, stream};
use tokio::time::sleep;

use super::{S3, failure::Refused, keys};
use crate::{archive::ArchiveError, model::ErrorClass};

impl S3 {
    /// A request that failed as often as it may: of this object alone, or of the whole store?
    pub(super) async fn unreadable(&self, key: &str, at: u64, refused: Refused) -> ArchiveError {
        if refused.is_its_own_fault() {
            return self.broken(key, at, &ArchiveError::from(refused).to_string()).await;
        }
        refused.into()
    }

    /// A store that answers, and does not give the bytes of an object from `at` on.
    pub(super) async fn broken(&self, key: &str, at: u64, why: &str) -> ArchiveError {
        self.whose_fault(key, at, why).await.unwrap_or_else(|error| error)
    }

    async fn whose_fault(&self, key: &str, at: u64, why: &str) -> Result<ArchiveError, ArchiveError> {
        let shown = self.shown(key);
        let Some(there) = self.head(key).await? else { return Ok(self.gone(key)) };
        sleep(self.settings.limits.backoff.limit * PAUSES).await;
        let tries = self.settings.limits.tries;
        if self.gives(key, at).await? {
            let text =
                format!("{shown} could not be read from byte {at} on, tried {tries} times, and can be now: {why}");
            return Ok(ArchiveError::new(ErrorClass::Network, text));
        }
        let mut own = false;
        for place in [0, at.saturating_sub(1), there.size.saturating_sub(1)] {
            own = own || place != at && self.gives(key, place).await?;
        }
        let others = self.others(key).await?;
        let asked = others.len();
        let mut given = 0;
        let mut answers = stream::iter(others)
            .map(async |other| self.gives(&other, 0).await)
            .buffer_unordered(self.settings.parallel_objects)
            .boxed();
        while let Some(answer) = answers.next().await {
            given += usize::from(answer?);
        }
        if asked - given <= (asked + FEW / 2) / FEW && (own || given > 0) {
            return Ok(ArchiveError::new(
                ErrorClass::CorruptInFlight,
                format!(
                    "{shown} is there and cannot be read from byte {at} on, tried {tries} times and once more, while {given} \
                     of {asked} other objects can: {why}; replace it from another copy"
                ),
            ));
        }
        Ok(ArchiveError::new(
            ErrorClass::RemoteBusy,
            format!(
                "{shown} is there and cannot be read from byte {at} on, and only {given} of {asked} other objects can: the \
                 store does not reach its data; see to it: {why}"
            ),
        ))
    }

    /// Whether the store gives the byte there, asked once: it was given time. An error is of the whole store.
    async fn gives(&self, key: &str, at: u64) -> Result<bool, ArchiveError> {
        let once = Builder::new().retry_config(RetryConfig::disabled());
        let asked = self.client.get_object().bucket(&self.settings.bucket).key(key).range(format!("bytes={at}-{at}"));
        let answer = asked.customize().config_override(once).send().await;
        match answer.map_err(|e| Refused::new("read", self.shown(key), &e)) {
            Ok(answer) => {
                let mut body = answer.body;
                Ok(matches!(self.next(&mut body).await, Ok(Some(_))))
            }
            Err(refused) if refused.is_its_own_fault() => Ok(false),
            // It was removed, or has another size now; the store knows of it.
            Err(refused) if refused.is_missing() || refused.is_past_end() => Ok(true),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Some other objects of packages, at random, of those behind this one, or of the first ones. What is small may lie where
    /// its name does, and not where data do, so large ones go before.
    async fn others(&self, key: &str) -> Result<Vec<String>, ArchiveError> {
        let folder = keys::packages(&self.settings.prefix);
        let mut found = self.list(&folder, Some(key.to_owned()), LISTED).await?;
        if found.len() < OTHERS {
            found.extend(self.list(&folder, None, LISTED).await?);
        }
        found.retain(|(other, said)| other != key && said.size > 0);
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found.dedup_by(|(a, _), (b, _)| a == b);
        // Others every time: the same ones may be bad too, and would each speak against the other for ever.
        found.sort_by_cached_key(|(_, said)| (said.size < LARGE_BYTES, rand::random::<u64>()));
        Ok(found.into_iter().take(OTHERS).map(|(other, _)| other).collect())
    }
}

/// How many of the longest waits between tries are waited before the last one: a minute, where a wait is 20 s.
const PAUSES: u32 = 3;
/// Objects that are tried beside a bad one; one in [`FEW`], rounded, may be bad itself. Where a third of the data is away, one look in
/// 70 misses that: `(2/3)^16 + 16 * 1/3 * (2/3)^15 = 1.4 %`.
const OTHERS: usize = 16;
const FEW: usize = 16;
/// Not small.
const LARGE_BYTES: u64 = 1 << 20;
/// Keys of which the others are chosen: one page.
const LISTED: usize = 1000;
