use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{Archiving, Attempt, Meter, Runner, Transfers};
use crate::{model::Work, store::Claim};

/// All that a worker does: each kind of work has its runner.
#[derive(Debug)]
pub struct Duties {
    /// For hops between sites.
    pub transfers: Transfers,
    /// For ways into archives.
    pub archiving: Archiving,
}

#[async_trait]
impl Runner for Duties {
    async fn begin(&self) {
        self.transfers.begin().await;
        self.archiving.begin().await;
    }

    async fn free_bytes(&self, archive: &str) -> Option<u64> {
        self.archiving.free_bytes(archive).await
    }

    async fn run(&self, claim: &Claim, meter: &Meter, cancel: &CancellationToken) -> Attempt {
        match claim.work {
            Work::Transfer(_) => self.transfers.run(claim, meter, cancel).await,
            Work::Archive(_) => self.archiving.run(claim, meter, cancel).await,
        }
    }
}
