//! What a scenario gets, and what most scenarios do with it.

use super::{Amount, Bounds, Broker, Verdict, check, machine::Watch, proxy::Proxy};
use crate::{
    Address, Claim, Claimed, Completion, CompletionPage, Declaration, DriverExt, DynDriver, Enqueued, JobId,
    JobRecord, JobState, NewJob, Notify, Owner, Payload, QueueName, QueueSettings, QueueStats,
    ReadCompletions, Settle,
};
use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Why a scenario failed, for people.
#[derive(Debug, Clone)]
pub struct Failed(pub String);

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(format!("unexpected error: {error}"))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// How long anything may take that has no reason to take long.
pub const SOON: Duration = Duration::from_secs(10);

/// A broker and names that no other trial uses.
#[derive(Debug)]
pub struct Fixture {
    broker: Arc<dyn Broker>,
    prefix: String,
    measured: Arc<Mutex<Option<String>>>,
    bounds: Bounds,
}

impl Fixture {
    /// A fixture on `broker`. The names it gives out begin with `prefix`: lowercase letters, digits and dashes.
    pub fn new(broker: Arc<dyn Broker>, prefix: impl Into<String>) -> Self {
        static TRIALS: AtomicU64 = AtomicU64::new(0);
        // A broker that outlives this process knows the names of other runs.
        static RUN: OnceLock<String> = OnceLock::new();
        let run = RUN.get_or_init(|| uuid::Uuid::new_v4().simple().to_string()[..8].to_owned());
        let trial = TRIALS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}-{run}-{trial}", prefix.into());
        Self { broker, prefix, measured: Arc::default(), bounds: Bounds::default() }
    }

    /// Where the numbers go that the scenario asserts.
    pub fn bounds(&self) -> Bounds {
        self.bounds.clone()
    }

    /// Answers `bound` for the scenario to assert, and keeps it for the report.
    pub(super) fn at_most<A: Amount>(&self, name: &'static str, bound: A) -> A {
        self.bounds.at_most(name, bound)
    }

    /// Answers `bound` for the scenario to assert, and keeps it for the report.
    pub(super) fn at_least<A: Amount>(&self, name: &'static str, bound: A) -> A {
        self.bounds.at_least(name, bound)
    }

    /// Answers `amount`, which the scenario makes the broker go through, and keeps it for the report.
    pub(super) fn over<A: Amount>(&self, name: &'static str, amount: A) -> A {
        self.bounds.over(name, amount)
    }

    /// What was due after `due` came after `took`: not before.
    pub(super) fn not_early(&self, what: &str, took: Duration, due: Duration) -> Verdict {
        let early = self.at_most("early", Duration::ZERO);
        check!(took + early >= due, "{what} that was due after {due:?} came after {took:?}");
        Ok(())
    }

    /// What was due after `due` came when `watch` is looked at: not before, and late by less than `late`, the machine's pauses
    /// aside. How late it came.
    pub(super) fn in_time(
        &self,
        what: &str,
        watch: Watch,
        due: Duration,
        late: Duration,
    ) -> Result<Duration, Failed> {
        let (took, pauses) = (watch.elapsed(), watch.pauses());
        self.not_early(what, took, due)?;
        let late = self.at_most("late", late);
        check!(
            took < due + late + pauses,
            "{what} that was due after {due:?} came after {took:?}, of which the machine stood still for {pauses:?}"
        );
        Ok(took.saturating_sub(due))
    }

    /// The same trial once more, with names that no attempt before it used.
    pub(super) fn attempt(&self, number: u32) -> Self {
        let prefix = format!("{}-{number}", self.prefix);
        let (broker, bounds) = (self.broker.clone(), self.bounds.clone());
        Self { broker, prefix, measured: self.measured.clone(), bounds }
    }

    /// The same trial on another broker.
    pub(super) fn on(&self, broker: Arc<dyn Broker>) -> Self {
        let (prefix, bounds) = (self.prefix.clone(), self.bounds.clone());
        Self { broker, prefix, measured: self.measured.clone(), bounds }
    }

    /// Where a figure goes that the scenario measured.
    pub fn measured(&self) -> Arc<Mutex<Option<String>>> {
        self.measured.clone()
    }

    /// Keeps a figure for the report.
    pub fn measure(&self, figure: impl Into<String>) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(figure.into());
    }

    /// A handle to the broker, independent of those given out before.
    pub async fn driver(&self) -> Result<DynDriver, Failed> {
        Ok(self.broker.handle().await?)
    }

    /// The broker, for those who break it.
    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    /// A way to the broker that can be broken.
    pub async fn proxy(&self) -> Result<Proxy, Failed> {
        let address = self.broker.address().ok_or_else(|| Failed("the broker has no address".into()))?;
        Ok(Proxy::start(address).await?)
    }

    /// The same `subject` through `proxy`, with a handle whose calls end soon.
    pub(super) async fn through(&self, proxy: &Proxy, subject: &Subject) -> Result<Subject, Failed> {
        let driver = self.broker.handle_at(proxy.address()).await?;
        Ok(Subject { driver, queue: subject.queue.clone() })
    }

    /// The same `subject` through `proxy`, with a handle that is as patient as any.
    pub(super) async fn patiently_through(
        &self,
        proxy: &Proxy,
        subject: &Subject,
    ) -> Result<Subject, Failed> {
        let driver = self.broker.patient_handle_at(proxy.address()).await?;
        Ok(Subject { driver, queue: subject.queue.clone() })
    }

    /// Stops the broker and starts it again with the same data. Handles from before are no longer of use.
    pub async fn restart(&self) -> Verdict {
        Ok(self.broker.restart().await?)
    }

    /// A queue name of this trial.
    pub fn queue_name(&self, name: &str) -> Result<QueueName, Failed> {
        Ok(format!("{}.{name}", self.prefix).parse()?)
    }

    /// An address of this trial.
    pub fn address(&self, name: &str) -> Result<Address, Failed> {
        Ok(Address::new(format!("{}.{name}", self.prefix))?)
    }

    /// A job's notification to [`Fixture::address`].
    pub fn notify(&self, name: &str) -> Result<Notify, Failed> {
        Ok(Notify { address: self.address(name)?, context: format!("context of {name}") })
    }

    /// A declared queue with default settings.
    pub async fn subject(&self) -> Result<Subject, Failed> {
        self.subject_with(QueueSettings::default()).await
    }

    /// A declared queue.
    pub async fn subject_with(&self, settings: QueueSettings) -> Result<Subject, Failed> {
        let subject = self.undeclared("jobs").await?;
        subject.declare(settings).await?;
        Ok(subject)
    }

    /// A queue that nobody has declared (here).
    pub async fn undeclared(&self, name: &str) -> Result<Subject, Failed> {
        Ok(Subject { driver: self.driver().await?, queue: self.queue_name(name)? })
    }
}

/// A queue and a driver, with the steps that scenarios are made of.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The driver.
    pub driver: DynDriver,
    /// The queue.
    pub queue: QueueName,
}

/// A claim's lease where no scenario asks for another one.
pub(super) const LEASE: Duration = Duration::from_secs(60);

impl Subject {
    pub(super) fn owner() -> Owner {
        Owner { installation: "conformance".into(), uid: "one".into() }
    }

    pub(super) async fn declare(&self, settings: QueueSettings) -> Verdict {
        let declaration = Declaration { owner: Self::owner(), settings, adopt: false };
        self.driver.declare(&self.queue, declaration).await?;
        Ok(())
    }

    /// The same queue through another handle.
    pub(super) async fn beside(&self, fixture: &Fixture) -> Result<Self, Failed> {
        Ok(Self { driver: fixture.driver().await?, queue: self.queue.clone() })
    }

    pub(super) async fn enqueue(&self, job: NewJob) -> Result<JobId, Failed> {
        match self.driver.enqueue_one(&self.queue, job).await? {
            Enqueued::Created { id } => Ok(id),
            other @ Enqueued::Duplicate { .. } => {
                Err(Failed(format!("a new job was answered with {other:?}")))
            }
        }
    }

    pub(super) async fn enqueue_all(&self, jobs: Vec<NewJob>) -> Result<Vec<JobId>, Failed> {
        let mut ids = Vec::with_capacity(jobs.len());
        for answer in self.driver.enqueue(&self.queue, jobs).await? {
            ids.push(answer?.id().clone());
        }
        Ok(ids)
    }

    /// What can be claimed at once.
    pub(super) async fn claim(&self, max: u32) -> Result<Vec<Claimed>, Failed> {
        self.claim_for(max, LEASE, Duration::ZERO).await
    }

    pub(super) async fn claim_for(
        &self,
        max: u32,
        lease: Duration,
        wait: Duration,
    ) -> Result<Vec<Claimed>, Failed> {
        let claim = Claim { max, wait, lease, worker: "conformance".into() };
        Ok(self.driver.claim(&self.queue, claim).await?)
    }

    /// The next job, waited for.
    pub(super) async fn next(&self) -> Result<Claimed, Failed> {
        self.next_for(LEASE).await
    }

    /// The next job, waited for, under a lease of this length.
    pub(super) async fn next_for(&self, lease: Duration) -> Result<Claimed, Failed> {
        let mut jobs = self.claim_for(1, lease, SOON).await?;
        jobs.pop().ok_or_else(|| Failed(format!("no job could be claimed within {SOON:?}")))
    }

    /// The next job, which is not due before `delay` is over.
    pub(super) async fn next_after(&self, delay: Duration) -> Result<Claimed, Failed> {
        let (since, most) = (Instant::now(), delay + SOON);
        loop {
            // A broker may end a wait before its time.
            let left = most.saturating_sub(since.elapsed());
            if let Some(job) = self.claim_for(1, LEASE, left).await?.pop() {
                return Ok(job);
            }
            if left.is_zero() {
                return Err(Failed(format!("no job could be claimed within {most:?}")));
            }
        }
    }

    pub(super) async fn settle(&self, job: &Claimed, settle: Settle) -> Verdict {
        Ok(self.driver.settle_one(&self.queue, &job.receipt, settle).await?)
    }

    pub(super) async fn succeed(&self, job: &Claimed) -> Verdict {
        self.settle(job, Settle::Succeed { result: None }).await
    }

    pub(super) async fn stats(&self) -> Result<QueueStats, Failed> {
        Ok(self.driver.stats(&self.queue).await?)
    }

    pub(super) async fn record(&self, id: &JobId) -> Result<Option<JobRecord>, Failed> {
        Ok(self.driver.inspect(&self.queue, id).await?)
    }

    pub(super) async fn state(&self, id: &JobId) -> Result<JobState, Failed> {
        let record = self.record(id).await?;
        record.map(|record| record.state).ok_or_else(|| Failed(format!("job {id} is not known")))
    }

    /// Reads one page.
    pub(super) async fn read(&self, address: &Address, max: u32) -> Result<CompletionPage, Failed> {
        let read = ReadCompletions { max, wait: Duration::ZERO, lease: ReadCompletions::MAX_LEASE };
        Ok(self.driver.completions(address, read).await?)
    }

    /// The next completion, waited for.
    pub(super) async fn next_completion(&self, address: &Address) -> Result<Completion, Failed> {
        let read = ReadCompletions { max: 1, wait: SOON, lease: ReadCompletions::MAX_LEASE };
        let mut page = self.driver.completions(address, read).await?;
        page.completions.pop().ok_or_else(|| Failed(format!("no completion for {address} within {SOON:?}")))
    }
}

/// A small job.
pub(super) fn job() -> NewJob {
    NewJob::new("mail", Payload::json("{\"to\":\"somebody\"}"))
}

/// A small job that can be told from others.
pub(super) fn numbered(number: usize) -> NewJob {
    NewJob::new("mail", Payload::json(number.to_string()))
}

/// The number of a [`numbered`] job.
pub(super) fn number(job: &Claimed) -> Result<usize, Failed> {
    Ok(std::str::from_utf8(&job.payload.bytes)?.parse()?)
}

/// Asks again and again until the answer is yes.
pub async fn eventually<F>(what: &str, mut ask: impl FnMut() -> F) -> Verdict
where
    F: Future<Output = Result<bool, Failed>>,
{
    let since = Watch::start();
    loop {
        if ask().await? {
            return Ok(());
        }
        if since.elapsed() > SOON + since.pauses() {
            return Err(Failed(format!("{what}: not within {SOON:?}")));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
