//! Carries one operation out on both brokers and compares what they say, times and receipts aside.

use super::operations::{End, Operation, Sent};
use longshore_drivers::{
    Address, Claim, Claimed, CompletionReceipt, DeadReason, Declaration, DriverExt, DynDriver, Enqueued,
    Error, Failure, JobId, JobRecord, ListJobs, NewJob, Notify, Ordering, Owner, Payload, QueueName,
    QueueSettings, QueueStats, ReadCompletions, Receipt, Settle,
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering as Atomic},
    time::Duration,
};

const LEASE: Duration = Duration::from_secs(3600);
const LATER: Duration = Duration::from_secs(7200);
/// Brokers count time in milliseconds, and what happens in the same one has no order. So nothing does.
const TICK: Duration = Duration::from_millis(3);

/// What both brokers are asked about.
struct Subject {
    queue: QueueName,
    address: Address,
    settings: QueueSettings,
}

/// One broker, and what it calls things.
struct Side {
    driver: DynDriver,
    jobs: Vec<JobId>,
    numbers: BTreeMap<JobId, usize>,
    receipts: Vec<Receipt>,
    completions: Vec<CompletionReceipt>,
}

/// The broker under test and the reference model.
pub(crate) struct Pair {
    tested: Side,
    reference: Side,
    subject: Subject,
    /// The broker under test is told something else than it should be.
    deviates: bool,
}

/// What a call said, in words that don't depend on who said it.
type Said = Result<String, Error>;

impl Pair {
    /// Two brokers and names that nobody has used on them.
    pub(crate) fn new(tested: DynDriver, reference: DynDriver, deviates: bool) -> Self {
        static HISTORIES: AtomicU64 = AtomicU64::new(0);
        let number = HISTORIES.fetch_add(1, Atomic::Relaxed);
        // A broker may outlive this process.
        let name = format!("model-{}-{number}", uuid::Uuid::new_v4().simple());
        let subject = Subject {
            queue: name.parse().unwrap(),
            address: Address::new(name).unwrap(),
            settings: QueueSettings::default(),
        };
        Self { tested: Side::new(tested), reference: Side::new(reference), subject, deviates }
    }

    /// Declares the queue on both.
    pub(crate) async fn declare(&mut self, fifo: bool) -> Result<(), String> {
        self.subject.settings.ordering = if fifo { Ordering::Fifo } else { Ordering::BestEffort };
        self.run(&Operation::Declare { paused: false, depth: 100 }).await
    }

    /// Removes the queue from both.
    pub(crate) async fn end(&mut self) -> Result<(), String> {
        for side in [&self.tested, &self.reference] {
            let deleted = side.driver.delete_queue(&self.subject.queue, &owner()).await;
            deleted.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Carries `operation` out on both and compares.
    pub(crate) async fn run(&mut self, operation: &Operation) -> Result<(), String> {
        if let Operation::Declare { paused, depth } = operation {
            self.subject.settings.paused = *paused;
            self.subject.settings.max_depth = u64::from(*depth);
        }
        tokio::time::sleep(TICK).await;
        let told = if self.deviates { deviation(operation) } else { operation.clone() };
        let said = words(self.tested.run(&self.subject, &told).await);
        let expected = words(self.reference.run(&self.subject, operation).await);
        if said != expected {
            return Err(format!("it says\n    {said}\nand the reference model says\n    {expected}"));
        }
        Ok(())
    }
}

fn words(said: Said) -> String {
    said.unwrap_or_else(|error| refused(&error))
}

/// Kinds are part of the contract, texts are not.
fn refused(error: &Error) -> String {
    format!("refused as {}", error.kind)
}

/// What a driver that confuses two settles would be told.
fn deviation(operation: &Operation) -> Operation {
    match operation {
        Operation::Settle(claim, End::Retry { later }) => {
            Operation::Settle(*claim, End::Release { later: *later })
        }
        other => other.clone(),
    }
}

fn owner() -> Owner {
    Owner { installation: "model".into(), uid: "one".into() }
}

impl Side {
    fn new(driver: DynDriver) -> Self {
        Self {
            driver,
            jobs: Vec::new(),
            numbers: BTreeMap::new(),
            receipts: Vec::new(),
            completions: Vec::new(),
        }
    }

    async fn run(&mut self, subject: &Subject, operation: &Operation) -> Said {
        let Subject { queue, address, settings } = subject;
        let driver = self.driver.clone();
        match operation {
            Operation::Declare { .. } => {
                let declaration = Declaration { owner: owner(), settings: settings.clone(), adopt: false };
                driver.declare(queue, declaration).await.map(|declared| format!("new: {}", declared.created))
            }
            Operation::Enqueue(jobs) => {
                let jobs = jobs.iter().map(|sent| new_job(sent, address)).collect();
                let answers = driver.enqueue(queue, jobs).await?;
                Ok(each(answers, |enqueued| self.enqueued(&enqueued)))
            }
            Operation::Claim(max) => {
                let max = u32::from(*max);
                let claim = Claim { max, wait: Duration::ZERO, lease: LEASE, worker: "model".into() };
                let claimed = driver.claim(queue, claim).await?;
                Ok(claimed.into_iter().map(|job| self.claimed(job)).collect::<Vec<_>>().join(", "))
            }
            Operation::Settle(claim, end) => {
                let receipt = self.receipt(*claim);
                driver.settle_one(queue, &receipt, settle(*end)).await.map(|()| "settled".into())
            }
            Operation::Extend(claim) => {
                let extended = driver.extend_one(queue, &self.receipt(*claim), LEASE).await?;
                Ok(format!("extended, cancel requested: {}", extended.cancel_requested))
            }
            Operation::Read(max) => self.read(address, u32::from(*max)).await,
            Operation::Acknowledge(completion) => {
                let receipt = pick(&self.completions, *completion).cloned();
                let receipt = receipt.unwrap_or_else(|| CompletionReceipt("nobody's".into()));
                driver.acknowledge(address, vec![receipt]).await.map(|()| "acknowledged".into())
            }
            look => self.administer(queue, look).await,
        }
    }

    async fn administer(&mut self, queue: &QueueName, operation: &Operation) -> Said {
        let driver = self.driver.clone();
        match operation {
            Operation::Cancel(first, second) => {
                let ids = vec![self.job(*first), self.job(*second)];
                Ok(each(driver.cancel(queue, ids).await?, |state| format!("{state:?}")))
            }
            Operation::Redrive(job) => {
                Ok(each(driver.redrive(queue, vec![self.job(*job)]).await?, |()| "redriven".into()))
            }
            Operation::Purge(state) => {
                driver.purge(queue, *state, 1000).await.map(|purged| format!("purged {purged}"))
            }
            Operation::Unpin(job) => {
                driver.unpin(queue, vec![self.job(*job)]).await.map(|()| "unpinned".into())
            }
            Operation::Inspect(job) => {
                let record = driver.inspect(queue, &self.job(*job)).await?;
                Ok(record.map_or_else(|| "unknown".into(), |record| self.record(&record)))
            }
            Operation::Result(job) => {
                let results = driver.results(queue, vec![self.job(*job)]).await?;
                Ok(format!("{results:?}"))
            }
            Operation::List(state) => {
                let list = ListJobs { state: *state, limit: 1000, after: None };
                let page = driver.list(queue, list).await?;
                let mut jobs: Vec<_> = page.jobs.into_iter().map(|record| self.record(&record)).collect();
                // Which of two comes first is the broker's choice where both came at one moment.
                jobs.sort();
                Ok(format!("{} more: {}", jobs.join(", "), page.next.is_some()))
            }
            Operation::Stats if driver.capabilities().exact_depth => {
                driver.stats(queue).await.map(|stats| counts(&stats))
            }
            _ => Ok(String::new()),
        }
    }

    async fn read(&mut self, address: &Address, max: u32) -> Said {
        let read = ReadCompletions { max, wait: Duration::ZERO, lease: ReadCompletions::MAX_LEASE };
        let page = self.driver.completions(address, read).await?;
        let mut told = Vec::new();
        for completion in page.completions {
            let number = self.number(&completion.job);
            told.push(format!(
                "#{number} {:?} {:?} delivery {}",
                completion.outcome, completion.context, completion.delivery
            ));
            self.completions.push(completion.receipt);
        }
        Ok(format!("{} caught up: {}", told.join(", "), page.caught_up))
    }

    fn number(&mut self, id: &JobId) -> usize {
        let next = self.jobs.len();
        let number = *self.numbers.entry(id.clone()).or_insert(next);
        if number == next {
            self.jobs.push(id.clone());
        }
        number
    }

    fn job(&self, number: u8) -> JobId {
        pick(&self.jobs, number).cloned().unwrap_or_else(|| JobId::new("unknown").unwrap())
    }

    fn receipt(&self, claim: u8) -> Receipt {
        pick(&self.receipts, claim).cloned().unwrap_or_else(|| Receipt("nobody's".into()))
    }

    fn enqueued(&mut self, enqueued: &Enqueued) -> String {
        let number = self.number(enqueued.id());
        match enqueued {
            Enqueued::Created { .. } => format!("#{number} is new"),
            Enqueued::Duplicate { state, outcome, .. } => {
                format!("#{number} is known: {state:?} {outcome:?}")
            }
        }
    }

    fn claimed(&mut self, job: Claimed) -> String {
        let number = self.number(&job.id);
        self.receipts.push(job.receipt);
        format!(
            "#{number} {} {:?} {:?} {:?} key {:?} attempt {} delivery {} {:?} {:?}",
            job.job_type,
            job.payload,
            job.overrides,
            job.headers,
            job.ordering_key,
            job.attempt,
            job.delivery,
            job.last_failure,
            job.notify.map(|notify| notify.context),
        )
    }

    fn record(&mut self, record: &JobRecord) -> String {
        let number = self.number(&record.id);
        let (leased, over) = (record.lease_until.is_some(), record.finished_at.is_some());
        let later = record.due_at.since(record.enqueued_at) > LATER / 2;
        format!(
            "#{number} {} {:?} attempts {} lost {} later {later} leased {leased} over {over} {:?} {:?} {:?} {} bytes",
            record.job_type,
            record.state,
            record.attempts,
            record.lost_deliveries,
            record.worker,
            record.last_failure,
            record.outcome,
            record.payload_bytes,
        )
    }
}

fn pick<T>(all: &[T], number: u8) -> Option<&T> {
    all.get(usize::from(number).checked_rem(all.len())?)
}

fn each<T>(answers: Vec<Result<T, Error>>, mut tell: impl FnMut(T) -> String) -> String {
    let told = answers.into_iter().map(|answer| match answer {
        Ok(answer) => tell(answer),
        Err(error) => refused(&error),
    });
    told.collect::<Vec<_>>().join(", ")
}

fn counts(stats: &QueueStats) -> String {
    let QueueStats { ready, scheduled, active, retrying, blocked, dead, .. } = stats;
    let (oldest, due) = (stats.oldest_ready_at.is_some(), stats.next_due_at.is_some());
    // A broker without Fifo need not know what it is to be blocked.
    let blocked = blocked.unwrap_or(0);
    format!("{ready:?} {scheduled:?} {active:?} {retrying:?} {blocked} {dead:?} {oldest} {due}")
}

fn new_job(sent: &Sent, address: &Address) -> NewJob {
    let payload = if sent.other_payload { "{\"b\": 2}" } else { "{\"a\": 1}" };
    let mut job = NewJob::new("model", Payload::json(payload));
    job.id = sent.id.map(|id| JobId::new(format!("id-{id}")).unwrap());
    job.ordering_key = sent.key.map(|key| format!("key-{key}"));
    job.delay = if sent.delayed { LATER } else { Duration::ZERO };
    job.headers = BTreeMap::from([("job-meta-a".to_owned(), "b".to_owned())]);
    job.notify = sent.notifies.then(|| Notify { address: address.clone(), context: "c".into() });
    job
}

fn settle(end: End) -> Settle {
    let delay = |later| if later { LATER } else { Duration::ZERO };
    match end {
        End::Succeed(result) => {
            let result = result.map(|bytes| Payload::json(vec![b'1'; usize::from(bytes)]));
            Settle::Succeed { result }
        }
        End::Retry { later } => {
            Settle::Retry { delay: delay(later), failure: Failure::new("HandlerError", "again") }
        }
        End::Release { later } => Settle::Release { delay: delay(later) },
        End::Bury => {
            Settle::Bury { reason: DeadReason::Exhausted, failure: Failure::new("HandlerError", "no") }
        }
    }
}
