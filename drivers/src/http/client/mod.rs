//! A driver that speaks to a broker over HTTP.
//!
//! It keeps no state but its connections, so it may be made while the broker is away: its calls are `Unavailable` until
//! the broker is there.

mod batch;
mod config;
mod token;
mod transport;
mod wake;

pub use config::HttpConfig;
pub use token::TokenSource;

use super::{
    Effect,
    wire::{
        AcknowledgeBody, ClaimedJobs, Done, EnqueueBody, ExtendBody, Heard, IdsBody, Inspected, PurgeBody,
        Purged, Results, SettleBody,
    },
};
use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Driver,
    Enqueued, Error, ErrorKind, Extension, JobId, JobPage, JobRecord, JobState, Limits, ListJobs, NewJob,
    Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt, Result, Settlement, WakeStream,
    coalesce::{Bounds, Coalescer, Size},
};
use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use transport::{Call, Transport};

/// How long callers of single enqueues get their answers after the driver was closed.
const CLOSE: Duration = Duration::from_secs(5);
/// Requests of single enqueues: the server answers one while the next one gathers.
const SHARED: Bounds = Bounds { under_way: 1, items: Limits::BATCH, bytes: batch::BYTES };

fn size(job: &NewJob) -> Size {
    Size::item(batch::job_bytes(job))
}

/// A broker at the other end of HTTP.
#[derive(Debug)]
pub struct HttpDriver {
    transport: Arc<Transport>,
    /// Single enqueues share requests.
    singles: Arc<Coalescer<QueueName, NewJob, Result<Enqueued>>>,
    assumed: Capabilities,
    probed: OnceLock<Capabilities>,
}

impl HttpDriver {
    /// A driver for the broker that `config` names. Reaches out only when it is called.
    ///
    /// Until the first [`Driver::probe`] succeeds its capabilities are those that `config` assumes; from then on they
    /// are the broker's.
    pub fn new(config: HttpConfig) -> Self {
        let assumed = config.assumed.clone();
        let transport = Arc::new(Transport::new(config));
        let carrier = transport.clone();
        let singles = Coalescer::of_items(SHARED, size, move |queue, jobs| {
            let transport = carrier.clone();
            async move { enqueue(&transport, &queue, jobs).await }
        });
        Self { transport, singles, assumed, probed: OnceLock::new() }
    }

    /// The same for a broker that has to be there: its capabilities are its own from the start.
    ///
    /// # Errors
    /// Those of [`Driver::probe`].
    pub async fn connect(config: HttpConfig) -> Result<Self> {
        let driver = Self::new(config);
        driver.probe().await?;
        Ok(driver)
    }

    /// Adds jobs that are known to fit, in as many requests as their sizes ask for.
    async fn send_jobs(&self, queue: &QueueName, mut jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        if jobs.len() == 1
            && let Some(job) = jobs.pop()
        {
            let answer = self.singles.call(queue.clone(), job).await?;
            return Ok(vec![answer]);
        }
        batch::in_parts(jobs, batch::job_bytes, |jobs| enqueue(&self.transport, queue, jobs)).await
    }
}

#[async_trait]
impl Driver for HttpDriver {
    fn capabilities(&self) -> &Capabilities {
        self.probed.get().unwrap_or(&self.assumed)
    }

    async fn probe(&self) -> Result<Probe> {
        let probe: Probe = self.transport.call(Call::get("/v1/probe")).await?;
        // A broker that was upgraded keeps the table it had when this driver was made.
        drop(self.probed.set(probe.capabilities.clone()));
        Ok(probe)
    }

    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        self.transport.call(Call::put(format!("/v1/queues/{queue}"), &declaration)?).await
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        self.transport.call_for_nothing(Call::delete(transport::delete_path(queue, owner))).await
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        batch::check(jobs.len())?;
        // A job that is too large would take its neighbours with it: it never leaves.
        let limits = self.capabilities().limits;
        let verdicts: Vec<_> = jobs.iter().map(|job| job.validate(&limits)).collect();
        let fitting = jobs.into_iter().zip(&verdicts).filter(|(_, verdict)| verdict.is_ok());
        let fitting = fitting.map(|(job, _)| job).collect();
        let mut answers = self.send_jobs(queue, fitting).await?.into_iter();
        let missing = || Err(transport::wrong_count(Effect::Changes));
        Ok(verdicts
            .into_iter()
            .map(|verdict| verdict.and_then(|()| answers.next().unwrap_or_else(missing)))
            .collect())
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        let call =
            Call::post(Effect::Changes, format!("/v1/queues/{queue}/claim"), &claim)?.waiting(claim.wait);
        let ClaimedJobs { jobs } = self.transport.call(call).await?;
        Ok(jobs)
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        let count = receipts.len();
        batch::check(count)?;
        let body = ExtendBody { receipts, lease };
        self.ask_each(format!("/v1/queues/{queue}/extend"), &body, count).await
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        batch::check(settlements.len())?;
        let path = format!("/v1/queues/{queue}/settle");
        batch::in_parts(settlements, batch::settlement_bytes, |settlements| {
            let (path, count) = (path.clone(), settlements.len());
            async move { self.change_each(path, &SettleBody { settlements }, count).await }
        })
        .await
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        self.transport.call(Call::get(format!("/v1/queues/{queue}/stats"))).await
    }

    async fn wake(&self) -> Result<WakeStream> {
        wake::subscribe(self.transport.clone()).await
    }

    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
        let path = format!("/v1/completions/{address}/read");
        let call = Call::post(Effect::Changes, path, &read)?.waiting(read.wait);
        self.transport.call(call).await
    }

    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
        batch::check(receipts.len())?;
        let path = format!("/v1/completions/{address}/acknowledge");
        let call = Call::post(Effect::Changes, path, &AcknowledgeBody { receipts })?;
        self.transport.call_for_nothing(call).await
    }

    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
        batch::check(ids.len())?;
        let call = Call::post(Effect::Changes, format!("/v1/queues/{queue}/unpin"), &IdsBody { ids })?;
        self.transport.call_for_nothing(call).await
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        batch::check(ids.len())?;
        self.read_results(&format!("/v1/queues/{queue}/results"), ids).await
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        let call = Call::get(format!("/v1/queues/{queue}/jobs/{id}"));
        let Inspected { job } = self.transport.call(call).await?;
        Ok(job)
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        self.transport.call(Call::get(transport::list_path(queue, &list)?)).await
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        let count = ids.len();
        batch::check(count)?;
        self.ask_each(format!("/v1/queues/{queue}/cancel"), &IdsBody { ids }, count).await
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        let count = ids.len();
        batch::check(count)?;
        self.change_each(format!("/v1/queues/{queue}/redrive"), &IdsBody { ids }, count).await
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        let path = format!("/v1/queues/{queue}/purge");
        let call = Call::post(Effect::Changes, path, &PurgeBody { state, limit })?;
        let Purged { purged } = self.transport.call(call).await?;
        Ok(purged)
    }

    async fn close(&self) {
        self.transport.close();
        // What is under way ends by itself; a caller who still waits hears its answer.
        drop(tokio::time::timeout(CLOSE, self.singles.finish()).await);
    }
}

impl HttpDriver {
    /// A change with an answer per item.
    async fn ask_each<B, T>(&self, path: String, body: &B, count: usize) -> Result<Vec<Result<T>>>
    where
        B: serde::Serialize + Sync,
        T: serde::de::DeserializeOwned,
    {
        ask_each(&self.transport, path, body, count).await
    }

    /// A change that answers nothing per item, if all went well.
    async fn change_each<B: serde::Serialize + Sync>(
        &self,
        path: String,
        body: &B,
        count: usize,
    ) -> Result<Vec<Result<()>>> {
        let answers: Vec<Result<Done>> = self.ask_each(path, body, count).await?;
        Ok(answers.into_iter().map(|answer| answer.map(|Done| ())).collect())
    }

    /// Asks for all at once; a broker that refuses so much is asked for the halves.
    fn read_results<'a>(
        &'a self,
        path: &'a str,
        ids: Vec<JobId>,
    ) -> BoxFuture<'a, Result<Vec<Option<Payload>>>> {
        async move {
            let body = IdsBody { ids };
            let call = Call::post(Effect::Reads, path.to_owned(), &body)?;
            let mut ids = body.ids;
            match self.transport.call(call).await {
                Ok(Results { results }) if results.len() == ids.len() => Ok(results),
                Ok(_) => Err(transport::wrong_count(Effect::Reads)),
                Err(error) if error.kind == ErrorKind::TooLarge && ids.len() > 1 => {
                    let rest = ids.split_off(ids.len() / 2);
                    let mut results = self.read_results(path, ids).await?;
                    results.extend(self.read_results(path, rest).await?);
                    Ok(results)
                }
                Err(error) => Err(error),
            }
        }
        .boxed()
    }
}

async fn enqueue(
    transport: &Transport,
    queue: &QueueName,
    jobs: Vec<NewJob>,
) -> Result<Vec<Result<Enqueued>>> {
    let count = jobs.len();
    ask_each(transport, format!("/v1/queues/{queue}/jobs"), &EnqueueBody { jobs }, count).await
}

async fn ask_each<B, T>(transport: &Transport, path: String, body: &B, count: usize) -> Result<Vec<Result<T>>>
where
    B: serde::Serialize + Sync,
    T: serde::de::DeserializeOwned,
{
    let answers: Heard<T> = transport.call(Call::post(Effect::Changes, path, body)?).await?;
    if answers.results.len() != count {
        return Err::<_, Error>(transport::wrong_count(Effect::Changes));
    }
    Ok(answers.into())
}
