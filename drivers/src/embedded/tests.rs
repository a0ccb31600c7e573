//! What only this backend promises: isolation within a group, counts that survive failures, damaged rows, full disks.
//! What every backend promises is in the conformance suite.

use super::{
    Clock, Config, Embedded,
    command::{Answer, Breakage, Operation},
    storage::Sql,
    transition::Tx,
};
use crate::{
    Address, Claim, Declaration, Driver, DriverExt, ErrorKind, Failure, JobState, Limits, ListJobs, NewJob,
    Notify, Outcome, Owner, Payload, QueueName, QueueSettings, ReadCompletions, Result, Settle, Timestamp,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

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
    }
    Ok(Ok(Answer::Done))
}

struct Broker {
    driver: Arc<Embedded>,
    queue: QueueName,
    config: Config,
    _directory: tempfile::TempDir,
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
            _directory: directory,
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
async fn a_spoilt_command_harms_no_neighbour_of_its_group() {
    let mut broker = Broker::start().await;
    for breakage in [Breakage::Panic, Breakage::Statement] {
        let (before, spoilt, after) = tokio::join!(
            broker.driver.enqueue_one(&broker.queue, job()),
            broker.spoil(breakage),
            broker.driver.enqueue_one(&broker.queue, job()),
        );
        before.unwrap();
        assert_eq!(spoilt.unwrap_err().kind, ErrorKind::Fatal);
        after.unwrap();
    }
    assert_eq!(broker.depths().await, [4, 0, 0, 0, 0]);
    // Nothing of the spoilt commands is left: the key they write is still free.
    broker.run("INSERT INTO meta (key, value) VALUES ('spoilt', 'no')").await;
    broker.restart().await;
    assert_eq!(broker.depths().await, [4, 0, 0, 0, 0]);
    assert_eq!(broker.claim(10).await.len(), 4);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_works_again_when_there_is_room() {
    let broker = Broker::start().await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    broker.run("PRAGMA max_page_count = 1").await;
    let large = || NewJob::new("large", Payload::json(vec![b'1'; 200_000]));
    let (large_one, stats) =
        tokio::join!(broker.driver.enqueue_one(&broker.queue, large()), broker.driver.stats(&broker.queue));
    assert_eq!(large_one.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(stats.unwrap().ready, Some(1));
    broker.run("PRAGMA max_page_count = 1000000").await;
    broker.driver.enqueue_one(&broker.queue, large()).await.unwrap();
    assert_eq!(broker.claim(10).await.len(), 2);
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

#[tokio::test]
async fn a_job_that_cannot_be_read_is_dead_and_others_are_handed_out() {
    let broker = Broker::start().await;
    let mut with_headers = to("a");
    with_headers.headers.insert("x".into(), "y".into());
    let broken = broker.driver.enqueue_one(&broker.queue, with_headers).await.unwrap();
    let whole = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    broker.run("UPDATE bodies SET headers = '{broken' WHERE headers IS NOT NULL").await;
    let claimed = broker.claim(10).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].id, *whole.id());
    let record = broker.driver.inspect(&broker.queue, broken.id()).await.unwrap().unwrap();
    assert!(matches!(record.outcome, Some(Outcome::Dead { failure, .. }) if failure.reason == "Unreadable"));
    assert_eq!(read(&broker, "a").await.completions.len(), 1);
}

async fn read(broker: &Broker, address: &str) -> crate::CompletionPage {
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(10) };
    let address = Address::new(address).unwrap();
    broker.driver.completions(&address, read).await.unwrap()
}

#[tokio::test]
async fn a_completion_that_cannot_be_read_is_put_aside_until_the_next_start() {
    let mut broker = Broker::start().await;
    for _ in 0..2 {
        broker.driver.enqueue_one(&broker.queue, to("a")).await.unwrap();
        let claimed = broker.claim(1).await;
        let succeed = Settle::Succeed { result: None };
        broker.driver.settle_one(&broker.queue, &claimed[0].receipt, succeed).await.unwrap();
    }
    broker.run("UPDATE completions SET outcome = 'broken' || outcome WHERE id = 1").await;
    let page = read(&broker, "a").await;
    assert_eq!(page.completions.len(), 1);
    assert!(page.caught_up);
    broker.run("UPDATE completions SET outcome = substr(outcome, 7) WHERE id = 1").await;
    assert!(read(&broker, "a").await.completions.is_empty());
    broker.restart().await;
    assert_eq!(read(&broker, "a").await.completions.len(), 1);
}

#[tokio::test]
async fn many_jobs_due_at_once_hold_nobody_up() {
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
    assert!(probes >= 5, "all jobs became ready in {probes} steps");
}

#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn time_does_not_go_backwards() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    hands.0.store(500_000, Ordering::Relaxed);
    let id = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let record = broker.driver.inspect(&broker.queue, id.id()).await.unwrap().unwrap();
    assert_eq!(record.enqueued_at.as_millis(), 1_000_000);
}

#[tokio::test]
async fn a_lease_that_ended_by_the_clock_is_over_before_anybody_else_has_the_job() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let claimed = broker.claim(1).await;
    hands.0.store(claimed[0].lease_until.as_millis(), Ordering::Relaxed);
    let succeed = Settle::Succeed { result: None };
    let settled = broker.driver.settle_one(&broker.queue, &claimed[0].receipt, succeed).await;
    assert_eq!(settled.unwrap_err().kind, ErrorKind::StaleReceipt);
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
async fn nobody_pins_a_job_for_ever() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    let id = broker.driver.enqueue_one(&broker.queue, to("gone")).await.unwrap();
    let claimed = broker.claim(1).await;
    let succeed = Settle::Succeed { result: None };
    broker.driver.settle_one(&broker.queue, &claimed[0].receipt, succeed).await.unwrap();
    let pin = i64::try_from(Limits::PIN.as_millis()).unwrap();
    hands.0.fetch_add(pin - 60_000, Ordering::Relaxed);
    let known = || async { broker.driver.inspect(&broker.queue, id.id()).await.unwrap().is_some() };
    broker.depths().await;
    assert!(known().await);
    // Retention, an hour, counts from the end of the pin.
    hands.0.fetch_add(120_000, Ordering::Relaxed);
    broker.depths().await;
    assert!(known().await);
    hands.0.fetch_add(2 * 3_600_000, Ordering::Relaxed);
    let since = std::time::Instant::now();
    while known().await {
        assert!(since.elapsed() < Duration::from_secs(10), "the job is still there");
    }
}

#[test]
fn hot_statements_use_their_indexes() {
    let directory = tempfile::tempdir().unwrap();
    let db = super::schema::open(&Config::new(directory.path().join("jobs.db"))).unwrap();
    for (statement, index) in [
        (
            "SELECT seq FROM jobs WHERE queue = 1 AND state = 0 AND at = 1 AND seq > 2 ORDER BY seq LIMIT 5",
            "SEARCH jobs USING COVERING INDEX jobs_by_state (queue=? AND state=? AND at=? AND rowid>?)",
        ),
        (
            "SELECT seq FROM jobs WHERE queue = 1 AND state = 0 AND at > 1 ORDER BY at, seq LIMIT 5",
            "SEARCH jobs USING COVERING INDEX jobs_by_state (queue=? AND state=? AND at>?)",
        ),
        (
            "SELECT id, payload FROM jobs LEFT JOIN bodies ON bodies.seq = jobs.seq \
             WHERE queue = 1 AND state = 0 ORDER BY at, jobs.seq LIMIT 5",
            "SEARCH jobs USING INDEX jobs_by_state (queue=? AND state=?)",
        ),
        (
            "SELECT min(at) FROM jobs WHERE queue = 1 AND state = 0",
            "SEARCH jobs USING COVERING INDEX jobs_by_state (queue=? AND state=?)",
        ),
        (
            "SELECT id FROM completions WHERE address = 'a' AND leased_until <= 1 ORDER BY id LIMIT 5",
            "SEARCH completions USING INDEX completions_by_address (address=?)",
        ),
    ] {
        let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let steps: Vec<String> =
            plan.query_map((), |row| row.get(3)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
        assert!(steps.contains(&index.to_owned()), "{statement}: {steps:?}");
        assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{statement}: {steps:?}");
    }
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

/// Where the child of the next test finds its database.
const CHILD: &str = "LONGSHORE_TEST_CHILD_DB";

#[tokio::test]
#[ignore = "the other half of `what_was_acknowledged_survives_the_death_of_the_process`"]
async fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let driver = Embedded::open(Config::new(path)).unwrap();
    let queue: QueueName = "q".parse().unwrap();
    loop {
        let jobs = vec![job(); 3];
        for answer in driver.enqueue(&queue, jobs).await.unwrap() {
            println!("acknowledged {}", answer.unwrap().id());
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_death_of_the_process() {
    use std::io::BufRead;
    let mut broker = Broker::start().await;
    broker.driver.close().await;
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["embedded::tests::child_that_is_killed", "--exact", "--ignored", "--nocapture"])
        .env(CHILD, &broker.config.path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged: Vec<String> = lines
        .by_ref()
        .map_while(std::result::Result::ok)
        .filter_map(|line| line.split("acknowledged ").nth(1).map(str::to_owned))
        .take(500)
        .collect();
    assert_eq!(acknowledged.len(), 500);
    child.kill().unwrap();
    let rest = lines.map_while(std::result::Result::ok);
    // The last line may have been cut.
    let rest: Vec<_> =
        rest.filter_map(|line| line.split("acknowledged ").nth(1).map(str::to_owned)).collect();
    child.wait().unwrap();

    broker.restart().await;
    for id in acknowledged.iter().chain(rest.iter().rev().skip(1)) {
        let id = crate::JobId::new(id.as_str()).unwrap();
        assert!(broker.driver.inspect(&broker.queue, &id).await.unwrap().is_some(), "{id}");
    }
}
