//! What calls of every operation work on: for each change something of its own, so that what it did shows.

use super::calls::{Operation, Story, Unanswered};
use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check,
    fixture::{SOON, job},
};
use crate::{
    Address, Claimed, CompletionReceipt, DeadReason, Declaration, DynDriver, Error, ErrorKind, Failure,
    JobId, JobState, NewJob, Owner, QueueName, QueueSettings, ReadCompletions, Result, Settle,
};
use std::time::{Duration, Instant};

/// A job in each of the states that changes begin with.
#[derive(Debug)]
pub(super) struct Ground {
    /// The queue of all jobs that need none of their own.
    pub(super) jobs: QueueName,
    /// What an enqueue is to add.
    pub(super) added: JobId,
    /// A job to be settled.
    pub(super) held: Claimed,
    /// A job whose lease is to be extended.
    pub(super) extended: Claimed,
    /// A job to be cancelled.
    pub(super) waiting: JobId,
    /// A job to be redriven.
    pub(super) dead: JobId,
    /// A queue whose job is to be claimed.
    pub(super) claimable: (QueueName, JobId),
    /// A queue whose dead job is to be purged.
    pub(super) purged: (QueueName, JobId),
    /// A queue that is to be deleted.
    pub(super) deleted: (QueueName, JobId),
    /// A queue that nobody has declared.
    pub(super) undeclared: QueueName,
    /// A queue whose finished job goes as soon as it is unpinned.
    pub(super) kept: (QueueName, JobId),
    /// An address with a completion that nobody has read.
    pub(super) unread: Address,
    /// An address with a completion that is to be acknowledged.
    pub(super) told: (Address, CompletionReceipt),
}

impl Ground {
    /// Longer than any scenario, so that no lease ends meanwhile.
    const HELD: Duration = Duration::from_secs(1800);
    /// What a lease is extended to.
    pub(super) const EXTENDED: Duration = Duration::from_secs(3600);

    pub(super) fn owner() -> Owner {
        Subject::owner()
    }

    pub(super) fn declaration(settings: QueueSettings) -> Declaration {
        Declaration { owner: Self::owner(), settings, adopt: false }
    }

    /// The job of [`Ground::added`].
    pub(super) fn new_job(&self) -> NewJob {
        job().with_id(self.added.clone())
    }

    /// Lays it through `driver`, under names that begin with `name`.
    pub(super) async fn lay(fixture: &Fixture, driver: &DynDriver, name: &str) -> Result<Self, Failed> {
        let queue = |part: &str| fixture.queue_name(&format!("{name}-{part}"));
        let subject = async |part: &str, settings: QueueSettings| {
            let subject = Subject { driver: driver.clone(), queue: queue(part)? };
            subject.declare(settings).await.map(|()| subject)
        };
        let usual = QueueSettings::default;
        let jobs = subject("jobs", usual()).await?;
        let [unread, told, kept] = ["unread", "told", "kept"].map(|part| format!("{name}-{part}"));
        let ended = async |subject: &Subject, address: &str| {
            let id = subject.enqueue(job().with_notify(fixture.notify(address)?)).await?;
            subject.succeed(&subject.next().await?).await?;
            Ok::<_, Failed>((id, fixture.address(address)?))
        };
        let (_, unread) = ended(&jobs, &unread).await?;
        let (_, told) = ended(&jobs, &told).await?;
        let receipt = read(driver, &told).await?;
        let keeps = subject("keeps", QueueSettings { retain_completed: Duration::ZERO, ..usual() }).await?;
        let (pinned, kept) = ended(&keeps, &kept).await?;
        driver.acknowledge(&kept, vec![read(driver, &kept).await?]).await?;
        let dead = buried(&jobs).await?;
        let mut held = Vec::new();
        for _ in 0..2 {
            jobs.enqueue(job()).await?;
            held.push(jobs.next_for(Self::HELD).await?);
        }
        let one_job = async |part: &str| {
            let subject = subject(part, usual()).await?;
            let id = subject.enqueue(job()).await?;
            Ok::<_, Failed>((subject.queue, id))
        };
        let purged = subject("purged", usual()).await?;
        let missing = || Failed("two jobs were claimed".into());
        Ok(Self {
            added: JobId::generate(),
            extended: held.pop().ok_or_else(missing)?,
            held: held.pop().ok_or_else(missing)?,
            waiting: jobs.enqueue(job()).await?,
            dead,
            claimable: one_job("claimable").await?,
            deleted: one_job("deleted").await?,
            undeclared: queue("undeclared")?,
            kept: (keeps.queue, pinned),
            unread,
            told: (told, receipt),
            purged: (purged.queue.clone(), buried(&purged).await?),
            jobs: jobs.queue,
        })
    }

    /// Whether what `operation` was to change is as it was, as `driver` sees it.
    ///
    /// # Errors
    /// Those of the calls that look.
    pub(super) async fn untouched(&self, driver: &DynDriver, operation: Operation) -> Result<bool> {
        let jobs = &self.jobs;
        let stands = async |queue: &QueueName, id: &JobId, state: JobState| {
            let record = driver.inspect(queue, id).await?;
            Ok::<_, Error>(record.is_some_and(|record| record.state == state))
        };
        let leased = async |claimed: &Claimed| {
            let record = driver.inspect(jobs, &claimed.id).await?;
            Ok::<_, Error>(record.is_some_and(|record| record.lease_until == Some(claimed.lease_until)))
        };
        let unread = async |address: &Address, wait: Duration| {
            // Whoever looks again finds it again.
            let look = ReadCompletions { max: 1, wait, lease: Duration::from_millis(1) };
            driver.completions(address, look).await.map(|page| !page.completions.is_empty())
        };
        match operation {
            Operation::Enqueue => driver.inspect(jobs, &self.added).await.map(|record| record.is_none()),
            Operation::Claim => stands(&self.claimable.0, &self.claimable.1, JobState::Ready).await,
            Operation::Extend => leased(&self.extended).await,
            Operation::Settle => leased(&self.held).await,
            Operation::Cancel => stands(jobs, &self.waiting, JobState::Ready).await,
            Operation::Redrive => stands(jobs, &self.dead, JobState::Dead).await,
            Operation::Purge => stands(&self.purged.0, &self.purged.1, JobState::Dead).await,
            Operation::Unpin => stands(&self.kept.0, &self.kept.1, JobState::Succeeded).await,
            Operation::Completions => unread(&self.unread, Duration::ZERO).await,
            // The short lease under which it was read is to be over first.
            Operation::Acknowledge => unread(&self.told.0, Duration::from_secs(1)).await,
            Operation::DeleteQueue => there(driver.inspect(&self.deleted.0, &self.deleted.1).await),
            Operation::Declare => match driver.stats(&self.undeclared).await {
                Ok(_) => Ok(false),
                Err(error) if error.kind == ErrorKind::NotFound => Ok(true),
                Err(error) => Err(error),
            },
            Operation::Probe
            | Operation::Stats
            | Operation::Wake
            | Operation::Results
            | Operation::Inspect
            | Operation::List => Ok(true),
        }
    }
}

/// Whether a job is there, and its queue.
fn there<T>(answer: Result<Option<T>>) -> Result<bool> {
    match answer {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        answer => answer.map(|found| found.is_some()),
    }
}

/// The next completion of an address, which comes again very soon.
async fn read(driver: &DynDriver, address: &Address) -> Result<CompletionReceipt, Failed> {
    let read = ReadCompletions { max: 1, wait: SOON, lease: Duration::from_millis(100) };
    let mut page = driver.completions(address, read).await?;
    let completion = page.completions.pop();
    completion.map(|one| one.receipt).ok_or_else(|| Failed(format!("no completion for {address}")))
}

/// A job that is dead.
async fn buried(subject: &Subject) -> Result<JobId, Failed> {
    let id = subject.enqueue(job()).await?;
    let failure = Failure::new("HandlerError", "no");
    let claimed = subject.next().await?;
    subject.settle(&claimed, Settle::Bury { reason: DeadReason::Rejected, failure }).await?;
    Ok(id)
}

/// Whoever said that nothing was done did nothing: not by now. How many of `told` said so of a change.
pub(super) async fn did_nothing(
    what: &str,
    ground: &Ground,
    driver: &DynDriver,
    told: &[Story],
) -> Result<usize, Failed> {
    let said_so = |story: &&Story| {
        let kind = story.answer.as_ref().err().map(|error| error.kind);
        story.operation.changes() && kind == Some(ErrorKind::Unavailable)
    };
    let sure: Vec<_> = told.iter().filter(said_so).collect();
    if !driver.capabilities().inspect {
        return Ok(0);
    }
    for Story { operation, answer, .. } in &sure {
        let since = Instant::now();
        let untouched = loop {
            match ground.untouched(driver, *operation).await {
                // This handle may have lost its connection with the others.
                Err(error) if error.kind.is_transient() && since.elapsed() < SOON => {
                    tokio::time::sleep(Duration::from_millis(25)).await;
                }
                answer => break answer?,
            }
        };
        check!(untouched, "{what}: {operation:?} answered {answer:?}, and something was done");
    }
    Ok(sure.len())
}

/// Each call ended within `bound` and answered what the table allows.
pub(super) fn kept_to_the_table(
    what: &str,
    why: Unanswered,
    told: &[Story],
    bound: Duration,
    pauses: Duration,
) -> Verdict {
    for Story { operation, answer, took } in told {
        check!(*took <= bound + pauses, "{what}: {operation:?} took {took:.1?}, pauses {pauses:.1?}");
        let kind = answer.as_ref().err().map(|error| error.kind);
        let allowed = operation.allowed(why, pauses);
        check!(
            kind.is_some_and(|kind| allowed.contains(&kind)),
            "{what}: {operation:?} answered {answer:?}, allowed is {allowed:?}"
        );
    }
    Ok(())
}
