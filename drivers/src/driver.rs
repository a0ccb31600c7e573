//! The trait that every backend implements.

use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared,
    Enqueued, Error, Extension, JobId, JobPage, JobRecord, JobState, ListJobs, NewJob, Owner, Payload, Probe,
    QueueName, QueueStats, ReadCompletions, Receipt, Result, Settle, Settlement, Wake,
};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// A driver chosen at run time.
pub type DynDriver = Arc<dyn Driver>;

/// Hints about queues and completions, until the subscriber drops it or the broker goes away.
pub type WakeStream = BoxStream<'static, Result<Wake>>;

/// One connection to a broker.
///
/// Calls are batches with one answer per item, in the order of the request; the outer error means that nothing is known
/// about any of them. A driver reconnects by itself, so an `Unavailable` may be followed by a success.
///
/// Cancel safety: dropping a call that changes something leaves it done or not done, never half done; dropping a
/// [`Driver::claim`] may leave jobs leased to nobody until their lease ends.
#[async_trait]
pub trait Driver: Debug + Send + Sync + 'static {
    /// What this broker can do. Known from the moment the driver exists.
    fn capabilities(&self) -> &Capabilities;

    /// Asks the broker who it is; fails when it can't be reached.
    async fn probe(&self) -> Result<Probe>;

    /// Makes `queue` or brings its settings up to date. `Conflict` when it belongs to somebody else.
    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared>;

    /// Removes the `queue` of `owner` and all that is in it; jobs that notify leave a `Purged` completion. Unknown
    /// queues are fine. `Conflict` when it belongs to somebody else: then nothing is removed.
    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()>;

    /// Adds jobs. A known id adds nothing and answers `Duplicate`; with another payload it is a `Conflict`.
    /// A job that notifies is never refused with `Full`.
    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>>;

    /// Leases up to `claim.max` jobs, waiting up to `claim.wait` for the first.
    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>>;

    /// Makes leases end `lease` from now.
    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>>;

    /// Ends claims. A stale receipt changes nothing and is told so.
    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>>;

    /// How full a queue is.
    async fn stats(&self, queue: &QueueName) -> Result<QueueStats>;

    /// Hints about new work, consuming none of it.
    async fn wake(&self) -> Result<WakeStream>;

    /// Reads completions of `address`, oldest settle first, and leases them to this reader.
    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage>;

    /// Forgets completions. The jobs behind them start to age once they are also unpinned. Unknown receipts are fine.
    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()>;

    /// Whoever was to be told of these jobs needs nothing of them any more, neither their state nor their results: they
    /// start to age once their completions are also acknowledged. Remembered for a job that is not over yet. Unknown
    /// ids and queues are fine. Without it a job that notifies is kept for [`Limits::PIN`](crate::Limits::PIN).
    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()>;

    /// Results by job id; `None` where there is none.
    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>>;

    /// One job.
    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>>;

    /// A page of jobs.
    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage>;

    /// Cancels jobs: one that waits ends at once, one that runs is asked to stop and ends with its settle.
    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>>;

    /// Makes dead jobs ready again with all their attempts.
    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>>;

    /// Removes up to `limit` jobs that stand in `state` and tells how many; active ones can't be purged.
    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64>;

    /// Stops background work and gives connections back. Calls after it are `Unavailable`.
    async fn close(&self);
}

/// Single-item forms of the batch calls.
#[async_trait]
pub trait DriverExt {
    /// Enqueues one job.
    async fn enqueue_one(&self, queue: &QueueName, job: NewJob) -> Result<Enqueued>;
    /// Settles one job.
    async fn settle_one(&self, queue: &QueueName, receipt: &Receipt, settle: Settle) -> Result<()>;
    /// Extends one lease.
    async fn extend_one(&self, queue: &QueueName, receipt: &Receipt, lease: Duration) -> Result<Extension>;
}

#[async_trait]
impl<D: Driver + ?Sized> DriverExt for D {
    async fn enqueue_one(&self, queue: &QueueName, job: NewJob) -> Result<Enqueued> {
        only(self.enqueue(queue, vec![job]).await?)?
    }

    async fn settle_one(&self, queue: &QueueName, receipt: &Receipt, settle: Settle) -> Result<()> {
        only(self.settle(queue, vec![Settlement { receipt: receipt.clone(), settle }]).await?)?
    }

    async fn extend_one(&self, queue: &QueueName, receipt: &Receipt, lease: Duration) -> Result<Extension> {
        only(self.extend(queue, vec![receipt.clone()], lease).await?)?
    }
}

fn only<T>(answers: Vec<T>) -> Result<T> {
    let mut answers = answers.into_iter();
    match (answers.next(), answers.next()) {
        (Some(answer), None) => Ok(answer),
        _ => Err(Error::new(crate::ErrorKind::Fatal, "the broker answered one item with none or several")),
    }
}
