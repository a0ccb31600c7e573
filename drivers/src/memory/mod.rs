//! The reference model: the whole contract in plain maps, in one process, without durability.
//!
//! [`model`] decides, without waiting; this module waits. It is what other backends are compared with, and a broker for
//! tests and local runs.

mod lines;
mod model;
mod streams;

use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Delay,
    Driver, Durability, Enqueued, Error, Extension, IdMemory, JobId, JobPage, JobRecord, JobState, Lease,
    Limits, ListJobs, NewJob, Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt, Result,
    Settlement, Timestamp, Wake, WakeStream, checks,
};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use model::Model;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Hints that a slow subscriber may have unread; older ones are lost to it.
const HINTS: usize = 1024;
/// Nobody sleeps longer without a look at the clock.
const GLANCE: Duration = Duration::from_millis(500);
/// Nobody waits longer in one call.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A broker in memory.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    backend_id: String,
}

#[derive(Debug)]
struct Shared {
    model: Mutex<Model>,
    /// By how many milliseconds its clock is ahead of this machine's.
    ahead: i64,
    /// Somebody changed something.
    changed: Notify,
    hints: broadcast::Sender<Wake>,
    closed: CancellationToken,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Model> {
        // A panic in the model is a bug, but no reason to refuse everything from then on.
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now().as_millis().saturating_add(self.ahead);
        model.advance(Timestamp::from_millis(now));
        model
    }

    /// Tells those who wait what changed.
    fn publish(&self, mut model: MutexGuard<'_, Model>) {
        let hints = model.hints();
        drop(model);
        for hint in hints {
            // Without subscribers there is nobody to tell.
            let _ = self.hints.send(hint);
        }
        self.changed.notify_waiters();
    }

    /// Carries one call out.
    fn call<T>(&self, work: impl FnOnce(&mut Model) -> Result<T>) -> Result<T> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        let mut model = self.lock();
        let answer = work(&mut model);
        self.publish(model);
        answer
    }

    /// How long nothing happens by itself.
    fn quiet(&self) -> Duration {
        let model = self.lock();
        let (now, next) = (model.now(), model.next_event());
        drop(model);
        next.map_or(GLANCE, |next| next.since(now).max(Duration::from_millis(1)).min(GLANCE))
    }

    /// Asks until there is an answer or the time is over. Dropping it is harmless: it answers where it asks.
    async fn wait_for<T>(
        &self,
        wait: Duration,
        ask: impl Fn(&mut Model) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let answer = self.call_quietly(&ask)?;
            if answer.is_some() || Instant::now() >= deadline {
                return Ok(answer);
            }
            let look = deadline.min(Instant::now() + self.quiet());
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(look) => {}
                () = self.closed.cancelled() => return Err(closed()),
            }
        }
    }

    /// Like [`Shared::call`], but wakes others only if there is news.
    fn call_quietly<T>(&self, ask: impl Fn(&mut Model) -> Result<Option<T>>) -> Result<Option<T>> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        let mut model = self.lock();
        let answer = ask(&mut model);
        let hints = model.hints();
        drop(model);
        if !hints.is_empty() {
            for hint in hints {
                let _ = self.hints.send(hint);
            }
            self.changed.notify_waiters();
        }
        answer
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty broker.
    pub fn new() -> Self {
        Self::ahead(0)
    }

    /// An empty broker whose clock is so many milliseconds ahead of this machine's, or behind it where that is negative: for
    /// those who show that nobody goes by the clock of a caller.
    pub fn ahead(millis: i64) -> Self {
        Self {
            shared: Arc::new(Shared {
                model: Mutex::default(),
                ahead: millis,
                changed: Notify::new(),
                hints: broadcast::channel(HINTS).0,
                closed: CancellationToken::new(),
            }),
            capabilities: capabilities(),
            backend_id: uuid::Uuid::now_v7().to_string(),
        }
    }

    /// Carries out one call per item, on a queue that exists.
    fn each<I, T>(
        &self,
        queue: &QueueName,
        items: Vec<I>,
        mut work: impl FnMut(&mut Model, I) -> Result<T>,
    ) -> Result<Vec<Result<T>>> {
        checks::batch(items.len())?;
        self.shared.call(|model| {
            if !items.is_empty() {
                model.find(queue)?;
            }
            Ok(items.into_iter().map(|item| work(model, item)).collect())
        })
    }
}

fn closed() -> Error {
    Error::unavailable("the broker is closed")
}

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
        durability: Durability::None,
        limits: Limits::default(),
    }
}

#[async_trait]
impl Driver for Memory {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn probe(&self) -> Result<Probe> {
        self.shared.call(|_| {
            Ok(Probe {
                backend: "memory".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                backend_id: self.backend_id.clone(),
                capabilities: self.capabilities.clone(),
            })
        })
    }

    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        self.shared.call(|model| {
            Ok(Declared { created: model.declare(queue, declaration)?, backend_id: self.backend_id.clone() })
        })
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        self.shared.call(|model| model.delete_queue(queue, owner))
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        self.each(queue, jobs, |model, job| model.enqueue(queue, job, &self.capabilities.limits))
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        checks::claim(&claim)?;
        let ask = |model: &mut Model| {
            model.find(queue)?;
            let jobs = model.claim(queue, &claim);
            Ok((!jobs.is_empty()).then_some(jobs))
        };
        Ok(self.shared.wait_for(claim.wait, ask).await?.unwrap_or_default())
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        checks::lease(lease)?;
        self.each(queue, receipts, |model, receipt| model.extend(queue, &receipt, lease))
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        self.each(queue, settlements, |model, Settlement { receipt, settle }| {
            model.settle(queue, &receipt, &settle, &self.capabilities.limits)
        })
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        self.shared.call(|model| model.find(queue).map(model::Queue::stats))
    }

    async fn wake(&self) -> Result<WakeStream> {
        if self.shared.closed.is_cancelled() {
            return Err(closed());
        }
        let subscription = (self.shared.clone(), self.shared.hints.subscribe());
        Ok(stream::unfold(subscription, next_hint).boxed())
    }

    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
        checks::read(&read)?;
        let ask = |model: &mut Model| {
            let now = model.now();
            let page = model.streams.read(address, &read, now);
            Ok((!page.completions.is_empty()).then_some(page))
        };
        if let Some(page) = self.shared.wait_for(read.wait, ask).await? {
            return Ok(page);
        }
        self.shared.call(|model| {
            let now = model.now();
            Ok(model.streams.read(address, &read, now))
        })
    }

    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
        checks::batch(receipts.len())?;
        self.shared.call(|model| {
            for receipt in receipts {
                if let Some((queue, number)) = model.streams.acknowledge(address, &receipt) {
                    model.release(&queue, number);
                }
            }
            Ok(())
        })
    }

    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
        checks::batch(ids.len())?;
        self.shared.call(|model| {
            ids.iter().for_each(|id| model.unpin(queue, id));
            Ok(())
        })
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        let results = self.each(queue, ids, |model, id| Ok(model.result(queue, &id)))?;
        results.into_iter().collect()
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        self.shared.call(|model| Ok(model.find(queue)?.record(id)))
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        checks::limit(list.limit)?;
        let after = list.after.as_deref().map_or(Some((i64::MIN, 0)), |text| {
            let (at, number) = text.split_once('.')?;
            Some((at.parse().ok()?, number.parse().ok()?))
        });
        let after =
            after.ok_or_else(|| Error::invalid("the cursor of a list is the `next` of the page before"))?;
        let limit = (list.limit as usize).min(Limits::BATCH);
        self.shared.call(|model| {
            let mut found = model.find(queue)?.page(list.state, after, limit + 1);
            let more = found.len() > limit;
            found.truncate(limit);
            let last = found.last().filter(|_| more);
            let next = last.map(|((at, number), _)| format!("{at}.{number}"));
            let jobs = found.into_iter().map(|(_, job)| job).collect();
            Ok(JobPage { jobs, next })
        })
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        self.each(queue, ids, |model, id| model.cancel(queue, &id))
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        self.each(queue, ids, |model, id| model.redrive(queue, &id))
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        checks::purge(state)?;
        self.shared.call(|model| {
            model.find(queue)?;
            Ok(model.purge(queue, state, limit))
        })
    }

    async fn close(&self) {
        self.shared.closed.cancel();
    }
}

/// The next hint. Time passes only where somebody looks at the clock, so a subscriber does while it waits.
async fn next_hint(
    (shared, mut hints): (Arc<Shared>, broadcast::Receiver<Wake>),
) -> Option<(Result<Wake>, (Arc<Shared>, broadcast::Receiver<Wake>))> {
    loop {
        let quiet = shared.quiet();
        tokio::select! {
            hint = hints.recv() => match hint {
                Ok(hint) => return Some((Ok(hint), (shared, hints))),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            },
            () = tokio::time::sleep(quiet) => shared.publish(shared.lock()),
            () = shared.closed.cancelled() => return None,
        }
    }
}
