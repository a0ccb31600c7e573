//! Jobs in PostgreSQL.
//!
//! One schema holds tables and functions (`sql/`); every call of the contract is one call of a function, which is one
//! statement, one round trip and one transaction. So a settle, the completion it writes and the turn of the next job of
//! its line are one commit, and a driver needs no right on any table: the functions run as the schema's owner.
//!
//! - **Where a job stands** is which of three narrow tables holds it: `waiting`, `active` or `finished`. What never
//!   changes (payload, headers) is in `jobs`, whose unique index also remembers ids. A claim deletes rows at the front of
//!   one index with `SKIP LOCKED`; it never meets finished jobs, and for a second at most the rows that earlier claims
//!   left dead ([`claim`]).
//! - **A job that is due is ready**, whatever its row says: nothing has to move first. Leases that ended are taken back in
//!   bounded slices by claims, by `stats`, and by whoever looks after the queue ([`upkeep`]).
//! - **Depths** are sums: every statement adds one row that says what it changed, in the same transaction, and `tick`
//!   adds old rows up. Nobody waits for a counter, and the sum is exact at any moment. Within 10,000 jobs of `maxDepth`
//!   producers stand in line behind one lock and the limit is exact; further away they don't, so that it can only be
//!   passed by transactions that bring 10,000 jobs at once, and by producers' own open transactions.
//! - **Strict order**: `lines` has a row per ordering key with work, which says whose turn it is and is the key's lock.
//!   It is taken before any job, in the order of keys; rows of jobs are taken in the order of their numbers. Deadlocks
//!   that remain are undone by the server and tried again, a bounded number of times.
//! - **Sharing**: concurrent calls of a kind share statements ([`batch`]), over a few pipelined connections ([`pool`]).
//! - **Waking**: see [`wake`]. **Time** is the server's clock, in whole milliseconds, rounded so that nothing is early.
//!
//! What is weaker than in the reference model: of failures, worker names and the like, NUL characters become U+FFFD,
//! because the server's texts can't hold them; a worker's name is cut to 200 characters; a job whose retention is over is
//! known until somebody looks after the queue, mostly less than a second; the average service time weighs the last 50
//! jobs and those of the present second alike.

mod admin;
mod batch;
mod claim;
mod completions;
mod config;
mod enqueue;
mod error;
mod inspect;
mod pool;
mod schema;
mod settle;
#[cfg(test)]
#[cfg(feature = "conformance")]
mod tests;
mod tls;
mod upkeep;
mod wake;

pub use config::PostgresConfig;

use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Delay,
    Driver, Durability, Enqueued, Error, Extension, IdMemory, JobId, JobPage, JobRecord, JobState, Lease,
    Limits, ListJobs, NewJob, Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt, Result,
    Settlement, WakeStream, checks,
};
use async_trait::async_trait;
use batch::Batcher;
use claim::{Found, Wanted};
use enqueue::NewRow;
use futures::{StreamExt, stream};
use pool::Pool;
use std::{
    pin::{Pin, pin},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    sync::{broadcast, futures::Notified},
    time::Instant,
};
use tokio_postgres::types::ToSql;
use tokio_util::sync::DropGuard;
use upkeep::Upkeep;
use wake::Wakes;

/// Nobody waits longer in one call.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Not even if the server says that something is due: others are at it.
const SHORTEST_LOOK: Duration = Duration::from_millis(5);
/// How long a close waits for statements that are under way.
const CLOSES: Duration = Duration::from_secs(5);

/// What all calls of one driver share.
#[derive(Debug)]
struct Shared {
    pool: Arc<Pool>,
    wakes: Arc<Wakes>,
    upkeep: Upkeep,
    /// For jobs that are due.
    floors: claim::Floors,
    /// For leases that ended.
    looks: claim::Floors,
    depths: enqueue::Depths,
    /// Completions that others could not read were taken back.
    unparked: AtomicBool,
}

impl Shared {
    /// These addresses have completions.
    fn tell(&self, addresses: Option<&[String]>) {
        self.wakes.tell_addresses(addresses.into_iter().flatten().map(String::as_str));
    }
}

/// A text as the server can hold it.
fn text(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

/// A driver for PostgreSQL, 14 or later.
#[derive(Debug)]
pub struct Postgres {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    enqueues: Batcher<QueueName, NewRow, Enqueued>,
    claims: Batcher<Wanted, (), Found>,
    settles: Batcher<QueueName, settle::End, ()>,
    extends: Batcher<(QueueName, Duration), (i64, i64), Extension>,
    /// Ends background work with the driver.
    _guard: DropGuard,
}

impl Postgres {
    /// A driver for the server that `config` names. It connects when it is first used, inside a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` when the configuration makes no sense.
    pub fn new(config: PostgresConfig) -> Result<Self> {
        let pool = Arc::new(Pool::new(config)?);
        let guard = pool.closed.clone().drop_guard();
        let shared = Arc::new(Shared {
            pool,
            wakes: Arc::new(Wakes::new()),
            upkeep: Upkeep::default(),
            floors: claim::Floors::default(),
            looks: claim::Floors::default(),
            depths: enqueue::Depths::default(),
            unparked: AtomicBool::new(false),
        });
        let (of_enqueue, of_order, of_claim, of_settle, of_extend, of_orphans) =
            (shared.clone(), shared.clone(), shared.clone(), shared.clone(), shared.clone(), shared.clone());
        Ok(Self {
            capabilities: capabilities(),
            enqueues: Batcher::new(
                move |queue: QueueName, rows: Vec<NewRow>| {
                    let shared = of_enqueue.clone();
                    Box::pin(async move {
                        let met = enqueue::run(&shared, &queue, &rows).await;
                        (rows, met)
                    })
                },
                move |queue| of_order.depths.is_unordered(queue),
                |_, _| {},
            ),
            claims: Batcher::new(
                move |wanted: Wanted, items: Vec<()>| {
                    let shared = of_claim.clone();
                    Box::pin(async move {
                        let found = claim::run(&shared, &wanted, items.len()).await;
                        (items, found.map(|found| found.into_iter().map(|found| Some(Ok(found))).collect()))
                    })
                },
                |_| true,
                move |wanted: Wanted, found| give_back(&of_orphans, wanted.queue, found),
            ),
            settles: Batcher::new(
                move |queue: QueueName, ends: Vec<settle::End>| {
                    let shared = of_settle.clone();
                    Box::pin(async move {
                        let met = settle::run(&shared, &queue, &ends).await;
                        (ends, met)
                    })
                },
                |_| true,
                |_, _| {},
            ),
            extends: Batcher::new(
                move |(queue, lease): (QueueName, Duration), claims: Vec<(i64, i64)>| {
                    let shared = of_extend.clone();
                    Box::pin(async move {
                        let done = settle::extend(&shared, &queue, lease, &claims).await;
                        (claims, done.map(|done| done.into_iter().map(Some).collect()))
                    })
                },
                |_| true,
                |_, _| {},
            ),
            shared,
            _guard: guard,
        })
    }

    /// Removes the schema and all that is in it. For tests, which leave nothing behind.
    #[cfg(feature = "conformance")]
    pub(crate) async fn remove_schema(&self) -> Result<()> {
        let (client, connection) = self.shared.pool.connect().await?;
        let carrier = tokio::spawn(connection);
        let schema = schema::quoted(&self.shared.pool.config.schema);
        let statement = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
        let removed = client.batch_execute(&statement).await;
        drop(client);
        drop(carrier);
        removed.map_err(|error| error::of_statement(&error, error::Effect::Change))
    }

    /// Called first by every call.
    fn begin(&self) -> Result<&Arc<Shared>> {
        if self.shared.pool.closed.is_cancelled() {
            return Err(closed());
        }
        wake::start_notifier(&self.shared.pool, &self.shared.wakes);
        upkeep::start(&self.shared);
        Ok(&self.shared)
    }

    /// When a call that may wait has to be over.
    fn deadline(&self, wait: Duration) -> Instant {
        if !wait.is_zero() {
            wake::start_listener(&self.shared.pool, &self.shared.wakes);
        }
        Instant::now() + wait.min(LONGEST_WAIT)
    }

    /// Rests until the bell rings, nothing may be expected to stay as it is for longer, or the time is over.
    async fn rest(
        &self,
        rung: Pin<&mut Notified<'_>>,
        deadline: Instant,
        quiet: Option<Duration>,
    ) -> Result<()> {
        let rest = self.shared.wakes.rest();
        let look = quiet.map_or(rest, |quiet| quiet.clamp(SHORTEST_LOOK, rest));
        tokio::select! {
            () = rung => Ok(()),
            () = tokio::time::sleep_until(deadline.min(Instant::now() + look)) => Ok(()),
            () = self.shared.pool.closed.cancelled() => Err(closed()),
        }
    }

    /// What can be claimed now; and how long nothing will come by itself.
    async fn claim_now(&self, wanted: &Wanted, max: usize) -> Result<(Vec<Claimed>, Option<Duration>)> {
        let (mut jobs, mut quiet) = (Vec::new(), None);
        for found in self.claims.submit(wanted.clone(), vec![(); max], 0).await? {
            match found? {
                Found::Job(job) => jobs.push(*job),
                Found::Nothing(rest) => quiet = rest,
            }
        }
        Ok((jobs, quiet))
    }
}

fn closed() -> Error {
    Error::unavailable("the driver is closed")
}

/// Checks items, has those that are right carried out together, and puts the answers in the items' order.
async fn each<I, R, A>(
    items: Vec<I>,
    prepare: impl Fn(I) -> Result<R>,
    run: impl AsyncFnOnce(Vec<R>) -> Result<Vec<Result<A>>>,
) -> Result<Vec<Result<A>>> {
    let (mut rows, mut answers) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    for item in items {
        match prepare(item) {
            Ok(row) => {
                rows.push(row);
                answers.push(None);
            }
            Err(error) => answers.push(Some(error)),
        }
    }
    let mut done = run(rows).await?.into_iter();
    let missing =
        || Err(Error::new(crate::ErrorKind::Fatal, "the server answered fewer items than there were"));
    let fill = |answer: Option<Error>| answer.map_or_else(|| done.next().unwrap_or_else(missing), Err);
    Ok(answers.into_iter().map(fill).collect())
}

/// Jobs that were leased for a caller who went away wait again.
fn give_back(shared: &Arc<Shared>, queue: QueueName, found: Vec<Result<Found>>) {
    let ends: Vec<_> = found
        .into_iter()
        .filter_map(|found| match found {
            Ok(Found::Job(job)) => settle::released(&job.receipt),
            _ => None,
        })
        .collect();
    if ends.is_empty() {
        return;
    }
    let shared = shared.clone();
    tokio::spawn(async move {
        if let Err(error) = settle::insist(&shared, &queue, ends).await {
            tracing::debug!(%error, "jobs of a claim that was dropped stay leased until their lease ends");
        }
    });
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
        durability: Durability::Machine,
        limits: Limits::default(),
    }
}

#[async_trait]
impl Driver for Postgres {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn probe(&self) -> Result<Probe> {
        admin::probe(self.begin()?, &self.capabilities).await
    }

    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        admin::declare(self.begin()?, queue, &declaration).await
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        admin::delete(self.begin()?, queue, owner).await
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        checks::batch(jobs.len())?;
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.begin()?;
        let limits = &self.capabilities.limits;
        each(
            jobs,
            |job| enqueue::prepare(job, limits),
            async |rows: Vec<NewRow>| {
                let bytes = rows.iter().map(NewRow::bytes).sum();
                self.enqueues.submit(queue.clone(), rows, bytes).await
            },
        )
        .await
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        checks::claim(&claim)?;
        let shared = self.begin()?;
        let max = (claim.max as usize).min(Limits::BATCH);
        let wanted =
            Wanted { queue: queue.clone(), lease: claim.lease, worker: claim::worker(&claim.worker) };
        let bell = shared.wakes.of_queue(queue);
        let deadline = self.deadline(claim.wait);
        loop {
            let mut rung = pin!(bell.notified());
            // From here on no ring is missed.
            rung.as_mut().enable();
            let (jobs, quiet) = self.claim_now(&wanted, max).await?;
            if !jobs.is_empty() || Instant::now() >= deadline {
                return Ok(jobs);
            }
            self.rest(rung, deadline, quiet).await?;
        }
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        checks::lease(lease)?;
        checks::batch(receipts.len())?;
        if receipts.is_empty() {
            return Ok(Vec::new());
        }
        self.begin()?;
        each(
            receipts,
            |receipt| claim::parse_receipt(&receipt).ok_or_else(|| Error::stale(&receipt)),
            async |claims: Vec<(i64, i64)>| self.extends.submit((queue.clone(), lease), claims, 0).await,
        )
        .await
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        checks::batch(settlements.len())?;
        if settlements.is_empty() {
            return Ok(Vec::new());
        }
        self.begin()?;
        let limits = &self.capabilities.limits;
        each(
            settlements,
            |settlement| settle::prepare(settlement, limits),
            async |ends: Vec<settle::End>| {
                let bytes = ends.iter().map(settle::End::bytes).sum();
                self.settles.submit(queue.clone(), ends, bytes).await
            },
        )
        .await
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        inspect::stats(self.begin()?, queue).await
    }

    async fn wake(&self) -> Result<WakeStream> {
        let shared = self.begin()?;
        let hints = shared.wakes.hints.subscribe();
        let since = wake::present(&shared.pool).await?;
        wake::start_listener(&shared.pool, &shared.wakes);
        wake::start_watcher(&shared.pool, &shared.wakes, since);
        let closed = shared.pool.closed.clone();
        let next = async |mut hints: broadcast::Receiver<crate::Wake>| loop {
            match hints.recv().await {
                Ok(hint) => return Some((Ok(hint), hints)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        };
        Ok(stream::unfold(hints, next).take_until(closed.cancelled_owned()).boxed())
    }

    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
        checks::read(&read)?;
        let shared = self.begin()?;
        let bell = shared.wakes.of_address(address);
        let deadline = self.deadline(read.wait);
        loop {
            let mut rung = pin!(bell.notified());
            rung.as_mut().enable();
            let look = completions::read(shared, address, &read).await?;
            if !look.page.completions.is_empty() || Instant::now() >= deadline {
                return Ok(look.page);
            }
            self.rest(rung, deadline, look.quiet).await?;
        }
    }

    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
        checks::batch(receipts.len())?;
        completions::acknowledge(self.begin()?, address, &receipts).await
    }

    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
        checks::batch(ids.len())?;
        completions::unpin(self.begin()?, queue, &ids).await
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        inspect::results(self.begin()?, queue, &ids).await
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        inspect::inspect(self.begin()?, queue, id).await
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        checks::limit(list.limit)?;
        inspect::list(self.begin()?, queue, &list).await
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        admin::cancel(self.begin()?, queue, &ids).await
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        checks::batch(ids.len())?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        admin::redrive(self.begin()?, queue, &ids).await
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        checks::purge(state)?;
        admin::purge(self.begin()?, queue, state, limit).await
    }

    async fn close(&self) {
        let deadline = Instant::now() + CLOSES;
        self.shared.pool.closed.cancel();
        while self.shared.pool.busy() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shared.pool.close();
    }
}
