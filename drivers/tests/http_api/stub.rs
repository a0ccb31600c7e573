//! A driver just good enough to be put on the network, which tells what it was asked.

use async_trait::async_trait;
use futures::{StreamExt, stream};
use longshore_drivers::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Delay,
    Driver, Durability, Enqueued, Error, ErrorKind, Extension, IdMemory, JobId, JobPage, JobRecord, JobState,
    Lease, Limits, ListJobs, NewJob, Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt,
    Result, Settlement, Timestamp, Wake, WakeStream,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, Semaphore, broadcast};

#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) capabilities: Capabilities,
    pub(crate) queues: Mutex<HashMap<QueueName, VecDeque<Claimed>>>,
    pub(crate) results: Mutex<BTreeMap<JobId, Payload>>,
    /// The sizes of the batches that were enqueued.
    pub(crate) batches: Mutex<Vec<usize>>,
    /// The sizes that claims asked for.
    pub(crate) claims: Mutex<Vec<u32>>,
    /// Enqueues and settles need a permit each.
    pub(crate) gate: Semaphore,
    /// Claims need a permit each.
    pub(crate) claim_gate: Semaphore,
    pub(crate) waiting: AtomicUsize,
    pub(crate) wakes: broadcast::Sender<Wake>,
    /// What every answer about a queue's depth is.
    pub(crate) stats: Result<QueueStats>,
    pub(crate) arrived: Notify,
}

impl Default for Stub {
    fn default() -> Self {
        Self {
            capabilities: Capabilities {
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
                exact_depth: false,
                fifo: false,
                durability: Durability::None,
                limits: Limits::default(),
            },
            queues: Mutex::new(HashMap::from([(super::queue(), VecDeque::new())])),
            results: Mutex::default(),
            batches: Mutex::default(),
            claims: Mutex::default(),
            gate: Semaphore::new(1_000_000),
            claim_gate: Semaphore::new(1_000_000),
            waiting: AtomicUsize::new(0),
            wakes: broadcast::channel(16).0,
            stats: Ok(QueueStats::default()),
            arrived: Notify::new(),
        }
    }
}

impl Stub {
    pub(crate) fn with_limits(max_payload: usize) -> Self {
        let mut stub = Self::default();
        stub.capabilities.limits = Limits { max_payload, max_result: max_payload };
        stub
    }

    pub(crate) fn closed_gate() -> Self {
        Self { gate: Semaphore::new(0), ..Self::default() }
    }

    fn known<T>(&self, queue: &QueueName, with: impl FnOnce(&mut VecDeque<Claimed>) -> T) -> Result<T> {
        let mut queues = self.queues.lock().unwrap();
        queues.get_mut(queue).map(with).ok_or_else(|| Error::no_queue(queue))
    }
}

struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn on(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn claimed(id: JobId, job: NewJob) -> Claimed {
    Claimed {
        receipt: Receipt(format!("r-{id}")),
        id,
        job_type: job.job_type,
        payload: job.payload,
        overrides: job.overrides,
        headers: job.headers,
        attempt: 1,
        delivery: 1,
        enqueued_at: Timestamp::default(),
        ready_at: Timestamp::default(),
        lease_until: Timestamp::default(),
        last_failure: None,
        notify: job.notify,
        ordering_key: None,
    }
}

fn unsupported<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "the stub can't do this"))
}

#[async_trait]
impl Driver for Stub {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn probe(&self) -> Result<Probe> {
        Ok(Probe {
            backend: "stub".to_owned(),
            version: "1".to_owned(),
            backend_id: "b1".to_owned(),
            capabilities: self.capabilities.clone(),
        })
    }

    async fn declare(&self, queue: &QueueName, _: Declaration) -> Result<Declared> {
        let mut queues = self.queues.lock().unwrap();
        let created = queues.insert(queue.clone(), VecDeque::new()).is_none();
        let backend_id = "b1".to_owned();
        Ok(Declared { created, backend_id })
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        if owner != &super::owner() {
            return Err(Error::owned_by_another(queue));
        }
        self.queues.lock().unwrap().remove(queue);
        Ok(())
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        self.batches.lock().unwrap().push(jobs.len());
        self.gate.acquire().await.unwrap().forget();
        let answers = self.known(queue, |ready| {
            let add = |job: NewJob| {
                job.validate(&self.capabilities.limits)?;
                let id = job.id.clone().unwrap_or_else(JobId::generate);
                ready.push_back(claimed(id.clone(), job));
                Ok(Enqueued::Created { id })
            };
            jobs.into_iter().map(add).collect()
        })?;
        self.arrived.notify_waiters();
        let queue = queue.clone();
        drop(self.wakes.send(Wake::Queue { queue }));
        Ok(answers)
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        self.claims.lock().unwrap().push(claim.max);
        let _waits = Waits::on(&self.waiting);
        self.claim_gate.acquire().await.unwrap().forget();
        let deadline = tokio::time::Instant::now() + claim.wait;
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            let jobs: Vec<_> = self.known(queue, |ready| {
                let count = ready.len().min(claim.max as usize);
                ready.drain(..count).collect()
            })?;
            if !jobs.is_empty() || tokio::time::timeout_at(deadline, arrived).await.is_err() {
                return Ok(jobs);
            }
        }
    }

    async fn extend(
        &self,
        _: &QueueName,
        receipts: Vec<Receipt>,
        _: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        Ok(receipts.iter().map(|receipt| Err(Error::stale(receipt))).collect())
    }

    async fn settle(&self, _: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        self.batches.lock().unwrap().push(settlements.len());
        self.gate.acquire().await.unwrap().forget();
        let answer = |settlement: &Settlement| match settlement.receipt.0.as_str() {
            "stale" => Err(Error::stale(&settlement.receipt)),
            _ => Ok(()),
        };
        Ok(settlements.iter().map(answer).collect())
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        self.known(queue, |_| ())?;
        self.stats.clone()
    }

    async fn wake(&self) -> Result<WakeStream> {
        let hints = stream::unfold(self.wakes.subscribe(), |mut wakes| async move {
            let hint = wakes.recv().await.ok()?;
            Some((Ok(hint), wakes))
        });
        Ok(hints.boxed())
    }

    async fn completions(&self, _: &Address, _: ReadCompletions) -> Result<CompletionPage> {
        Ok(CompletionPage { completions: Vec::new(), caught_up: true })
    }

    async fn acknowledge(&self, _: &Address, _: Vec<CompletionReceipt>) -> Result<()> {
        Ok(())
    }

    async fn unpin(&self, _: &QueueName, _: Vec<JobId>) -> Result<()> {
        Ok(())
    }

    async fn results(&self, _: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        let results = self.results.lock().unwrap();
        Ok(ids.iter().map(|id| results.get(id).cloned()).collect())
    }

    async fn inspect(&self, queue: &QueueName, _: &JobId) -> Result<Option<JobRecord>> {
        self.known(queue, |_| None)
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        self.known(queue, |_| ())?;
        Ok(JobPage {
            jobs: Vec::new(),
            next: Some(format!("{:?} {} {}", list.state, list.limit, list.after.unwrap_or_default())),
        })
    }

    async fn cancel(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        unsupported()
    }

    async fn redrive(&self, _: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        Ok(ids.iter().map(|_| Ok(())).collect())
    }

    async fn purge(&self, _: &QueueName, _: JobState, limit: u32) -> Result<u64> {
        Ok(u64::from(limit))
    }

    async fn close(&self) {}
}
