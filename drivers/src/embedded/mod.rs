//! The embedded broker: SQLite in a file that this process owns alone.
//!
//! One thread owns the database ([`writer`]); callers send it commands and wait for answers. Everything it acknowledges
//! has been synced to the disk. It is meant for one machine with a local disk; on a network file system it refuses to
//! start.

mod claim;
mod command;
mod completions;
mod config;
mod deadlines;
mod enqueue;
mod execute;
mod filesystem;
mod inspect;
mod intake;
mod ordering;
mod queues;
mod schema;
mod settle;
mod state;
mod storage;
mod timers;
mod transition;
mod waiting;
mod writer;

#[cfg(test)]
#[cfg(feature = "models")]
mod models;
#[cfg(test)]
mod tests;

pub use config::{Clock, Config, SystemClock};

use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Delay,
    Driver, Durability, Enqueued, Error, ErrorKind, Extension, IdMemory, JobId, JobPage, JobRecord, JobState,
    Lease, Limits, ListJobs, NewJob, Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt,
    Result, Settlement, Wake, WakeStream, checks,
};
use async_trait::async_trait;
use command::{Answer, Operation, expect_answer};
use futures::{StreamExt, stream};
use intake::Intake;
use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, oneshot, watch};

/// Hints that a slow subscriber may have unread; older ones are lost to it.
const HINTS: usize = 1024;
/// Nobody waits longer in one call.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// An open embedded broker. Dropping it closes the file soon, [`Driver::close`] before it returns.
#[derive(Debug)]
pub struct Embedded {
    intake: Arc<Intake>,
    capabilities: Capabilities,
    backend_id: String,
    hints: broadcast::WeakSender<Wake>,
    done: watch::Receiver<()>,
}

impl Embedded {
    /// Opens the database of `config`, making or migrating it if need be. Blocks for as long as that takes.
    ///
    /// # Errors
    /// `Unavailable` while another process has the file open; `Fatal` when it is damaged, newer than this code, not
    /// ours, or on a network file system.
    pub fn open(config: Config) -> Result<Self> {
        let intake = Arc::new(Intake::new());
        let (hints, _) = broadcast::channel(HINTS);
        let (done, closed) = watch::channel(());
        let weak_hints = hints.downgrade();
        let (opened, answer) = mpsc::channel();
        let shared = writer::Shared { intake: intake.clone(), hints, done };
        std::thread::Builder::new()
            .name("longshore-db".to_owned())
            .spawn(move || writer::run(&config, shared, &opened))
            .map_err(|error| Error::unavailable(format!("the broker's thread can't be started: {error}")))?;
        let backend_id = answer.recv().map_err(|_| {
            Error::new(ErrorKind::Fatal, "the broker's thread ended while it opened the database")
        })??;
        Ok(Self { intake, capabilities: capabilities(), backend_id, hints: weak_hints, done: closed })
    }

    /// Waits until the broker's thread has ended: after [`Driver::close`], or because it could not go on.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut done = self.done.clone();
        // The thread drops its end when it ends; that is the error waited for.
        async move { while done.changed().await.is_ok() {} }
    }

    /// Asks the writer.
    async fn ask(&self, operation: Operation) -> Result<Answer> {
        self.intake.send(operation).await?.await.map_err(|_| cut_off())?
    }

    /// Answers an empty batch without the writer, but not when the broker is closed.
    fn nothing<T>(&self) -> Result<Vec<T>> {
        if self.intake.is_closed() { Err(intake::closed()) } else { Ok(Vec::new()) }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.intake.close();
    }
}

/// What this broker can do.
fn capabilities() -> Capabilities {
    Capabilities {
        id_memory: IdMemory::UntilAcked,
        fencing: true,
        atomic_settle: true,
        lease: Lease::Extendable,
        delay: Some(Delay { max: Limits::MAX_DELAY }),
        pause: true,
        inspect: true,
        cancel: true,
        result_store: true,
        wake: true,
        exact_depth: true,
        fifo: true,
        durability: Durability::Machine,
        limits: Limits::default(),
    }
}

#[async_trait]
impl Driver for Embedded {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn probe(&self) -> Result<Probe> {
        self.ask(Operation::Probe).await?;
        Ok(Probe {
            backend: "embedded".to_owned(),
            version: format!("SQLite {}", rusqlite::version()),
            backend_id: self.backend_id.clone(),
            capabilities: self.capabilities.clone(),
        })
    }

    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        expect_answer!(self.ask(Operation::Declare(queue.clone(), declaration)).await?, Declared)
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        self.ask(Operation::DeleteQueue(queue.clone(), owner.clone())).await.map(drop)
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        checks::batch(jobs.len())?;
        if jobs.is_empty() {
            return self.nothing();
        }
        let rows = jobs.into_iter().map(|job| enqueue::prepare(job, &self.capabilities.limits)).collect();
        expect_answer!(self.ask(Operation::Enqueue(queue.clone(), rows)).await?, Enqueued)
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        checks::claim(&claim)?;
        let deadline = Instant::now() + claim.wait.min(LONGEST_WAIT);
        let answer = self.intake.send(Operation::Claim(queue.clone(), claim, deadline)).await?;
        let mut handover = Handover { answer, intake: &self.intake };
        let answer = (&mut handover.answer).await.map_err(|_| cut_off())??;
        expect_answer!(answer, Claimed)
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        checks::batch(receipts.len())?;
        checks::lease(lease)?;
        if receipts.is_empty() {
            return self.nothing();
        }
        expect_answer!(self.ask(Operation::Extend(queue.clone(), receipts, lease)).await?, Extended)
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        checks::batch(settlements.len())?;
        if settlements.is_empty() {
            return self.nothing();
        }
        expect_answer!(self.ask(Operation::Settle(queue.clone(), settlements)).await?, Settled)
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        expect_answer!(self.ask(Operation::Stats(queue.clone())).await?, Stats)
    }

    async fn wake(&self) -> Result<WakeStream> {
        let hints = self.hints.upgrade().ok_or_else(intake::closed)?.subscribe();
        Ok(stream::unfold(hints, next_hint).boxed())
    }

    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
        checks::read(&read)?;
        let deadline = Instant::now() + read.wait.min(LONGEST_WAIT);
        expect_answer!(self.ask(Operation::Completions(address.clone(), read, deadline)).await?, Completions)
    }

    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
        checks::batch(receipts.len())?;
        if receipts.is_empty() {
            return self.nothing::<()>().map(drop);
        }
        self.ask(Operation::Acknowledge(address.clone(), receipts)).await.map(drop)
    }

    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return self.nothing::<()>().map(drop);
        }
        self.ask(Operation::Unpin(queue.clone(), ids)).await.map(drop)
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return self.nothing();
        }
        expect_answer!(self.ask(Operation::Results(queue.clone(), ids)).await?, Results)
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        let answer = self.ask(Operation::Inspect(queue.clone(), id.clone())).await?;
        expect_answer!(answer, Record).map(|record| record.map(|record| *record))
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        checks::limit(list.limit)?;
        expect_answer!(self.ask(Operation::List(queue.clone(), list)).await?, Page)
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return self.nothing();
        }
        expect_answer!(self.ask(Operation::Cancel(queue.clone(), ids)).await?, States)
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return self.nothing();
        }
        expect_answer!(self.ask(Operation::Redrive(queue.clone(), ids)).await?, Settled)
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        checks::purge(state)?;
        expect_answer!(self.ask(Operation::Purge(queue.clone(), state, limit)).await?, Removed)
    }

    async fn close(&self) {
        self.intake.close();
        self.ended().await;
    }
}

/// The answer to a claim on its way to the claimer. Whoever stops waiting at the last moment gives the jobs back.
struct Handover<'a> {
    answer: oneshot::Receiver<Result<Answer>>,
    intake: &'a Intake,
}

impl Drop for Handover<'_> {
    fn drop(&mut self) {
        self.answer.close();
        if let Ok(Ok(Answer::Claimed(jobs))) = self.answer.try_recv()
            && !jobs.is_empty()
        {
            let receipts = jobs.into_iter().map(|job| job.receipt).collect();
            self.intake.post(Operation::Unclaim(receipts));
        }
    }
}

async fn next_hint(
    mut hints: broadcast::Receiver<Wake>,
) -> Option<(Result<Wake>, broadcast::Receiver<Wake>)> {
    loop {
        match hints.recv().await {
            Ok(hint) => return Some((Ok(hint), hints)),
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn cut_off() -> Error {
    Error::new(
        ErrorKind::Ambiguous,
        "the broker's writer ended before it answered; the change may have been made",
    )
}
