//! A Redis server as a broker: version 7.0 or newer, one primary, `maxmemory-policy noeviction`.
//!
//! Every operation on a queue is one Lua script, so it happens at once or not at all, by the server's clock. All keys of a
//! queue begin with `<prefix>:{<queue>}:` and lie in one hash slot; a queue has the same few keys however many jobs it
//! holds, and scripts do bounded work, so that a job costs the same behind ten others and behind a million. What is due is
//! made ready, what was lost comes back and what is old is forgotten in slices, by whatever script passes by: there is no
//! leader and no background work without somebody who waits.
//!
//! One connection carries all calls, another one listens. Concurrent calls for one item share a script. A claim that waits
//! stands in a line in Redis and is woken by name. `docs/brokers/redis.md` tells operators what to expect, and
//! `docs/wire-format-redis.md` tells producers how to enqueue without this crate.

mod admin;
mod claims;
mod completions;
mod config;
mod core;
mod enqueue;
mod errors;
mod hints;
mod hub;
mod leases;
mod link;
mod reply;
mod scripts;
mod server;
mod slices;
mod stored;
#[cfg(test)]
#[cfg(feature = "conformance")]
mod tests;

pub use config::RedisConfig;

use self::core::Core;
use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Driver,
    Enqueued, Extension, JobId, JobPage, JobRecord, JobState, ListJobs, NewJob, Owner, Payload, Probe,
    QueueName, QueueStats, ReadCompletions, Receipt, Result, Settlement, WakeStream, checks,
};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};

/// A broker on a Redis server.
#[derive(Debug)]
pub struct Redis {
    core: Arc<Core>,
}

impl Redis {
    /// A driver for the server that `config` names. It connects at its first call, and again whenever it has to.
    ///
    /// # Errors
    /// `Invalid` when `config` makes no sense. The server is not asked.
    pub fn new(config: RedisConfig) -> Result<Self> {
        Ok(Self { core: Arc::new(Core::new(config)?) })
    }
}

/// The only item of a batch, or the batch back.
fn only<T>(mut items: Vec<T>) -> Result<T, Vec<T>> {
    if items.len() == 1
        && let Some(item) = items.pop()
    {
        return Ok(item);
    }
    Err(items)
}

#[async_trait]
impl Driver for Redis {
    fn capabilities(&self) -> &Capabilities {
        &self.core.capabilities
    }

    /// The durability is the server's own: `Machine` with `appendonly yes` and `appendfsync always`, `None` without
    /// `appendonly`, else `Process`; with `everysec` that holds only while the disk keeps up, see `docs/brokers/redis.md`.
    async fn probe(&self) -> Result<Probe> {
        let facts = self.core.link.meet(errors::Call::Reads).await?;
        Ok(Probe {
            backend: "redis".to_owned(),
            version: facts.version,
            backend_id: facts.backend_id,
            capabilities: Capabilities { durability: facts.durability, ..self.core.capabilities.clone() },
        })
    }

    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        self.core.declare(queue, declaration).await
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        self.core.delete(queue, owner).await
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        checks::batch(jobs.len())?;
        match only(jobs) {
            Ok(job) => Ok(vec![self.core.enqueues.call(queue.clone(), job).await?]),
            Err(jobs) if jobs.is_empty() => Ok(Vec::new()),
            Err(jobs) if slices::are_many(&jobs, enqueue::size) => {
                let (link, queue) = (self.core.link.clone(), queue.clone());
                let work = async move { enqueue::enqueue(&link, &queue, jobs).await };
                slices::to_the_end(&self.core.hub.chores, work).await
            }
            Err(jobs) => enqueue::enqueue(&self.core.link, queue, jobs).await,
        }
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        checks::claim(&claim)?;
        self.core.claim(queue, &claim).await
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        checks::lease(lease)?;
        checks::batch(receipts.len())?;
        let lease = leases::millis(lease);
        match only(receipts) {
            Ok(receipt) => Ok(vec![self.core.extensions.call((queue.clone(), lease), receipt).await?]),
            Err(receipts) if receipts.is_empty() => Ok(Vec::new()),
            Err(receipts) => leases::extend(&self.core.link, queue, &receipts, lease).await,
        }
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        checks::batch(settlements.len())?;
        match only(settlements) {
            Ok(settlement) => Ok(vec![self.core.settles.call(queue.clone(), settlement).await?]),
            Err(settlements) if settlements.is_empty() => Ok(Vec::new()),
            Err(settlements) if slices::are_many(&settlements, leases::size) => {
                let (link, queue) = (self.core.link.clone(), queue.clone());
                let work = async move { leases::settle(&link, &queue, settlements).await };
                slices::to_the_end(&self.core.hub.chores, work).await
            }
            Err(settlements) => leases::settle(&self.core.link, queue, settlements).await,
        }
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        Ok(admin::stats(&self.core.link, queue).await?.0)
    }

    async fn wake(&self) -> Result<WakeStream> {
        hints::stream(&self.core).await
    }

    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
        checks::read(&read)?;
        self.core.read(address, &read).await
    }

    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
        checks::batch(receipts.len())?;
        self.core.acknowledge(address, &receipts).await
    }

    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
        checks::batch(ids.len())?;
        self.core.unpin(queue, &ids).await
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        checks::batch(ids.len())?;
        self.core.results(queue, &ids).await
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        self.core.inspect(queue, id).await
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        checks::limit(list.limit)?;
        self.core.list(queue, list).await
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.core.cancel(queue, &ids).await
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.core.redrive(queue, &ids).await
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        checks::purge(state)?;
        if limit == 0 {
            return self.stats(queue).await.map(|_| 0);
        }
        self.core.purge(queue, state, limit).await
    }

    async fn close(&self) {
        self.core.close().await;
    }
}
