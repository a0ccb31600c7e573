//! What only this backend promises: isolation within a group, counts that survive failures, damaged rows, full disks.
//! What every backend promises is in the conformance suite.

mod damage;
mod failures;
mod kill;
#[cfg(feature = "memory")]
mod model;
mod ordering;
mod plans;
mod time;

use super::{
    Config, Embedded,
    command::{Answer, Breakage, Operation},
    state::State,
    storage::Sql,
    transition::Tx,
};
use crate::{
    Address, Claim, Declaration, Driver, DriverExt, ErrorKind, Failure, JobState, ListJobs, NewJob, Notify,
    Owner, Payload, QueueName, QueueSettings, ReadCompletions, Result, Settle,
};
use rusqlite::Connection;
use std::{sync::Arc, time::Duration};
use time::Hands;

/// Carries out what a test wants to go wrong.
pub(super) fn spoil(tx: &mut Tx<'_>, breakage: Breakage) -> Sql<Result<Answer>> {
    let write = "INSERT INTO meta (key, value) VALUES ('spoilt', 'yes')";
    match breakage {
        Breakage::Panic => {
            tx.db.execute(write, ())?;
            panic!("a test spoils this command")
        }
        Breakage::Statement => {
            tx.db.execute(write, ())?;
            tx.db.execute(write, ())?;
        }
        Breakage::Run(statement) => tx.db.execute_batch(statement)?,
        Breakage::Commits(failing, code) => {
            (tx.state.commits.failing, tx.state.commits.code) = (failing, code)
        }
        Breakage::Count => return Ok(Ok(Answer::Removed(tx.state.commits.made))),
    }
    Ok(Ok(Answer::Done))
}

/// What happens to commits, and what happened.
#[derive(Debug, Default)]
pub(super) struct Commits {
    failing: u32,
    code: i32,
    made: u64,
}

/// A commit that a test can let fail.
pub(super) fn commit(db: &Connection, state: &mut State) -> Sql<()> {
    let commits = &mut state.commits;
    if let Some(left) = commits.failing.checked_sub(1) {
        commits.failing = left;
        let failure = rusqlite::ffi::Error::new(commits.code);
        return Err(rusqlite::Error::SqliteFailure(failure, None));
    }
    commits.made += 1;
    db.execute_batch("COMMIT")
}

struct Broker {
    driver: Arc<Embedded>,
    queue: QueueName,
    config: Config,
    directory: Arc<tempfile::TempDir>,
}

impl Broker {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(directory.path().join("jobs.db"));
        change(&mut config);
        let broker = Self {
            driver: Arc::new(Embedded::open(config.clone()).unwrap()),
            queue: "q".parse().unwrap(),
            config,
            directory: Arc::new(directory),
        };
        broker.declare(QueueSettings::default()).await;
        broker
    }

    async fn declare(&self, settings: QueueSettings) {
        let declaration = Declaration {
            owner: Owner { installation: "i".into(), uid: "u".into() },
            settings,
            adopt: false,
        };
        self.driver.declare(&self.queue, declaration).await.unwrap();
    }

    async fn restart(&mut self) {
        self.driver.close().await;
        self.driver = Arc::new(Embedded::open(self.config.clone()).unwrap());
    }

    async fn spoil(&self, breakage: Breakage) -> Result<Answer> {
        self.driver.ask(Operation::Break(breakage)).await
    }

    async fn run(&self, statement: &'static str) {
        self.spoil(Breakage::Run(statement)).await.unwrap();
    }

    /// The same broker with another queue.
    async fn beside(&self, queue: &str) -> Self {
        self.beside_with(queue, QueueSettings::default()).await
    }

    async fn beside_with(&self, queue: &str, settings: QueueSettings) -> Self {
        let other = Self {
            driver: self.driver.clone(),
            queue: queue.parse().unwrap(),
            config: self.config.clone(),
            directory: self.directory.clone(),
        };
        other.declare(settings).await;
        other
    }

    async fn succeed(&self, claimed: &crate::Claimed) {
        let succeed = Settle::Succeed { result: None };
        self.driver.settle_one(&self.queue, &claimed.receipt, succeed).await.unwrap();
    }

    async fn parked(&self) -> u64 {
        self.driver.stats(&self.queue).await.unwrap().parked.unwrap()
    }

    async fn claim(&self, max: u32) -> Vec<crate::Claimed> {
        let claim =
            Claim { max, wait: Duration::ZERO, lease: Duration::from_secs(60), worker: "test".into() };
        self.driver.claim(&self.queue, claim).await.unwrap()
    }

    /// Counts as the driver tells them, and as the database holds them after a restart.
    async fn depths(&self) -> [u64; 5] {
        let stats = self.driver.stats(&self.queue).await.unwrap();
        [stats.ready, stats.scheduled, stats.active, stats.retrying, stats.dead].map(Option::unwrap)
    }
}

fn job() -> NewJob {
    NewJob::new("mail", Payload::json("{}"))
}

fn to(address: &str) -> NewJob {
    job().with_notify(Notify { address: Address::new(address).unwrap(), context: "c".into() })
}

#[tokio::test]
async fn counts_agree_with_the_database_after_every_kind_of_transition() {
    let mut broker = Broker::start().await;
    let jobs = (0..20).map(|_| job()).chain([job().with_delay(Duration::from_secs(60))]);
    broker.driver.enqueue(&broker.queue, jobs.collect()).await.unwrap();
    let claimed = broker.claim(10).await;
    let minute = Duration::from_secs(60);
    let failure = Failure::default();
    let settles = [
        Settle::Succeed { result: None },
        Settle::Retry { delay: minute, failure: failure.clone() },
        Settle::Retry { delay: Duration::ZERO, failure: failure.clone() },
        Settle::Release { delay: minute },
        Settle::Bury { reason: crate::DeadReason::Rejected, failure },
    ];
    for (job, settle) in claimed.iter().zip(settles) {
        broker.driver.settle_one(&broker.queue, &job.receipt, settle).await.unwrap();
    }
    let waiting = broker.claim(1).await[0].id.clone();
    let ids = vec![claimed[4].id.clone()];
    broker.driver.redrive(&broker.queue, ids).await.unwrap();
    broker.driver.cancel(&broker.queue, vec![waiting]).await.unwrap();
    broker.driver.purge(&broker.queue, JobState::Ready, 3).await.unwrap();
    let before = broker.depths().await;
    assert_eq!(before, [8, 2, 6, 1, 0]);
    broker.restart().await;
    assert_eq!(broker.depths().await, before);
}

async fn read(broker: &Broker, address: &str) -> crate::CompletionPage {
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(10) };
    let address = Address::new(address).unwrap();
    broker.driver.completions(&address, read).await.unwrap()
}

#[tokio::test]
async fn many_jobs_due_at_once_hold_nobody_up() {
    // A busy machine may let the broker alone do something for a while; it doesn't each time.
    for _ in 0..4 {
        if calls_while_many_become_ready().await >= 5 {
            return;
        }
    }
    panic!("jobs that are due become ready all at once, or hold calls up until all of them are");
}

/// How many calls are answered while 20,000 jobs become ready.
async fn calls_while_many_become_ready() -> u32 {
    let broker = Broker::start().await;
    for _ in 0..20 {
        let jobs = vec![job().with_delay(Duration::from_secs(60)); 1000];
        broker.driver.enqueue(&broker.queue, jobs).await.unwrap();
    }
    // Timers look at rows in the order of `at`; all of these are due now, and the next call is one of many.
    broker.run("UPDATE jobs SET at = enqueued_at, due_at = enqueued_at").await;
    let mut probes = 0;
    broker.driver.enqueue_one(&broker.queue, job().with_delay(Duration::from_millis(1))).await.unwrap();
    while broker.depths().await[0] < 20_001 {
        probes += 1;
        assert!(probes < 100_000, "jobs that are due stay where they are");
    }
    probes
}

#[tokio::test]
async fn pages_of_pinned_jobs_are_found_by_index() {
    let broker = Broker::start().await;
    for _ in 0..7 {
        broker.driver.enqueue_one(&broker.queue, to("a")).await.unwrap();
    }
    for claimed in broker.claim(10).await {
        let succeed = Settle::Succeed { result: None };
        broker.driver.settle_one(&broker.queue, &claimed.receipt, succeed).await.unwrap();
    }
    let (mut seen, mut after) = (0, None);
    loop {
        let list = ListJobs { state: JobState::Succeeded, limit: 3, after };
        let page = broker.driver.list(&broker.queue, list).await.unwrap();
        seen += page.jobs.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, 7);
}

#[tokio::test]
async fn callers_of_a_closed_broker_are_not_kept_waiting() {
    let broker = Broker::start().await;
    let wait = Claim {
        max: 1,
        wait: Duration::from_secs(60),
        lease: Duration::from_secs(60),
        worker: String::new(),
    };
    let (claimed, ()) = tokio::join!(broker.driver.claim(&broker.queue, wait), async {
        tokio::task::yield_now().await;
        broker.driver.close().await;
    });
    assert_eq!(claimed.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(broker.driver.wake().await.is_err());
}

#[tokio::test]
async fn a_claim_that_is_dropped_with_its_answer_gives_the_job_back_at_once() {
    let broker = Broker::start().await;
    let waiting = || {
        let claim = Claim {
            max: 1,
            wait: Duration::from_secs(60),
            lease: Duration::from_secs(60),
            worker: String::new(),
        };
        broker.driver.claim(&broker.queue, claim)
    };
    // Dropped while it waits, and dropped when its answer is there but not yet taken.
    for answered in [false, true] {
        let mut claim = waiting();
        assert!(futures::poll!(&mut claim).is_pending());
        broker.driver.probe().await.unwrap();
        if answered {
            broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
            while broker.depths().await[2] == 0 {
                tokio::task::yield_now().await;
            }
            drop(claim);
        } else {
            drop(claim);
            broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
        }
        let claimed = tokio::time::timeout(Duration::from_secs(10), waiting()).await;
        let claimed = claimed.unwrap().unwrap();
        assert_eq!((claimed[0].attempt, claimed[0].delivery), (1, 1));
    }
}
