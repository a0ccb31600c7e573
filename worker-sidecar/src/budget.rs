//! Bytes in memory that several tasks share.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A part of a budget; it goes back when this is dropped.
pub(crate) type Share = OwnedSemaphorePermit;

/// A number of bytes that is given out in shares.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(crate) fn new(total: u32) -> Self {
        Self { bytes: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for a share of `bytes`. Whoever holds one must not wait for another: two of them could wait for each other.
    pub(crate) async fn wait(&self, bytes: usize) -> Option<Share> {
        let bytes = u32::try_from(bytes).unwrap_or(self.total).min(self.total);
        // Nobody closes the semaphore.
        self.bytes.clone().acquire_many_owned(bytes).await.ok()
    }

    /// A share of `bytes` if it is there now.
    pub(crate) fn take(&self, bytes: usize) -> Option<Share> {
        self.bytes.clone().try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// How many bytes are given out.
    pub(crate) fn spent(&self) -> usize {
        (self.total as usize).saturating_sub(self.bytes.available_permits())
    }
}

/// Gives back what is not needed of `share` when only `bytes` are.
pub(crate) fn shrink(share: &mut Share, bytes: usize) {
    drop(share.split(share.num_permits().saturating_sub(bytes)));
}
