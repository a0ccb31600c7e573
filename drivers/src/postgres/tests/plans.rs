//! How rows are found. The server itself writes down how it carried each statement of each function out, and how many rows
//! it looked at in vain: with thousands of jobs in every state a call looks at those that it is about, whatever the planner
//! thought of tables that were empty when it made its plan.

use super::{connect, declaration, job};
use crate::{
    Address, Claim, Claimed, DeadReason, Driver, Failure, JobId, JobState, ListJobs, Notify, Ordering,
    Payload, QueueName, QueueSettings, ReadCompletions, Settle, Settlement,
    conformance::servers::postgres::Server,
    postgres::{Postgres, PostgresConfig},
};
use std::time::Duration;

const TELLS: [&str; 5] = [
    "session_preload_libraries = 'auto_explain'",
    "auto_explain.log_min_duration = 0",
    "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off",
    "auto_explain.log_nested_statements = on",
];
/// Rows that one step of a statement may look at in vain: a page of what others hold or what is about to go.
const IN_VAIN: usize = 150;
/// Jobs of each state.
const JOBS: usize = 2000;
/// Ordering keys of each call.
const KEYS: usize = 400;

/// Nobody looks at all rows of these.
const LARGE: [&str; 5] = ["jobs", "waiting", "active", "finished", "completions"];

async fn claim(driver: &Postgres, queue: &QueueName, max: usize) -> Vec<Claimed> {
    let max = u32::try_from(max).unwrap();
    let claim = Claim { max, wait: Duration::ZERO, lease: Duration::from_secs(600), worker: "tester".into() };
    driver.claim(queue, claim).await.unwrap()
}

async fn enqueue(driver: &Postgres, (queue, order): (&QueueName, Ordering), count: usize) -> Vec<JobId> {
    let notify = Notify { address: Address::new("test").unwrap(), context: "1".into() };
    let mut ids = Vec::new();
    for part in 0..count.div_ceil(500) {
        let jobs = (0..500.min(count - part * 500)).map(|at| {
            let mut job = match at % 3 {
                0 => job().with_notify(notify.clone()),
                1 if at % 5 == 0 => job().with_delay(Duration::from_secs(3600)),
                _ => job(),
            };
            job.id = (at % 4 == 0).then(JobId::generate);
            job.ordering_key = (order == Ordering::Fifo).then(|| format!("key-{}", (part * 500 + at) % KEYS));
            job
        });
        for answer in driver.enqueue(queue, jobs.collect()).await.unwrap() {
            ids.push(answer.unwrap().id().clone());
        }
    }
    ids
}

async fn settle(driver: &Postgres, queue: &QueueName, jobs: Vec<Claimed>, settle: &Settle) {
    for part in jobs.chunks(500) {
        let ends = part
            .iter()
            .map(|job| Settlement { receipt: job.receipt.clone(), settle: settle.clone() })
            .collect();
        let answers = driver.settle(queue, ends).await.unwrap();
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
}

fn failure() -> Failure {
    Failure { reason: "Failed".into(), message: "it did".into() }
}

fn bury() -> Settle {
    Settle::Bury { reason: DeadReason::Exhausted, failure: failure() }
}

/// Thousands of jobs in every state, and a completion of many of them.
async fn fill(driver: &Postgres, queue: &QueueName, order: Ordering) {
    enqueue(driver, (queue, order), 6 * JOBS).await;
    for end in [Settle::Succeed { result: Some(Payload::json("1")) }, bury()] {
        for _ in 0..JOBS / 200 {
            let jobs = claim(driver, queue, 200).await;
            settle(driver, queue, jobs, &end).await;
        }
    }
    claim(driver, queue, 1000).await;
}

/// Each call of the contract with a few jobs.
async fn call_everything(driver: &Postgres, queue: &QueueName, order: Ordering) {
    let ids = enqueue(driver, (queue, order), 9).await;
    let mut jobs = claim(driver, queue, 6).await;
    let receipts = jobs.iter().map(|job| job.receipt.clone()).collect();
    driver.extend(queue, receipts, Duration::from_secs(60)).await.unwrap();
    let ends = [
        Settle::Succeed { result: Some(Payload::json("1")) },
        Settle::Retry { delay: Duration::from_secs(60), failure: failure() },
        Settle::Release { delay: Duration::ZERO },
        bury(),
    ];
    for end in ends {
        settle(driver, queue, jobs.pop().into_iter().collect(), &end).await;
    }
    driver.stats(queue).await.unwrap();
    driver.inspect(queue, &ids[0]).await.unwrap();
    driver.results(queue, ids.clone()).await.unwrap();
    for state in [JobState::Ready, JobState::Scheduled, JobState::Active, JobState::Succeeded, JobState::Dead]
    {
        driver.list(queue, ListJobs { state, limit: 10, after: None }).await.unwrap();
    }
    driver.cancel(queue, vec![ids[8].clone()]).await.unwrap();
    let dead = driver.list(queue, ListJobs { state: JobState::Dead, limit: 3, after: None }).await.unwrap();
    driver.redrive(queue, dead.jobs.iter().map(|job| job.id.clone()).collect()).await.unwrap();
    driver.unpin(queue, ids).await.unwrap();
    driver.purge(queue, JobState::Scheduled, 3).await.unwrap();
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(10) };
    let address = Address::new("test").unwrap();
    let page = driver.completions(&address, read).await.unwrap();
    let receipts = page.completions.into_iter().map(|completion| completion.receipt).collect();
    driver.acknowledge(&address, receipts).await.unwrap();
}

/// What stands in the log of steps that looked at more than they had to.
fn wasteful(log: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut step = "";
    for line in log.lines().map(str::trim) {
        if line.contains("(cost=") {
            step = line;
        }
        let all = LARGE.iter().any(|table| line.contains(&format!("Seq Scan on {table} ")));
        let vain =
            line.strip_prefix("Rows Removed by Filter: ").and_then(|count| count.parse::<usize>().ok());
        // What a call brought along may be gone through as often as it has to be.
        let own = ["CTE Scan", "Function Scan"].iter().any(|list| step.contains(list));
        if all || (!own && vain.is_some_and(|count| count > IN_VAIN)) {
            found.push(format!("{step}: {line}"));
        }
    }
    found
}

#[test]
fn a_step_that_looks_at_everything_is_seen() {
    let full = "->  Seq Scan on jobs j  (cost=0.00..1.00 rows=1 width=8) (actual rows=1 loops=1)";
    let filtered = "->  Index Scan using active_by_lease on active a  (cost=0) (actual rows=1 loops=1)\n  \
                    Rows Removed by Filter: 1999";
    assert_eq!(wasteful(full).len(), 1);
    assert_eq!(wasteful(filtered).len(), 1);
    assert!(wasteful("Index Scan using jobs_pkey on jobs\nRows Removed by Filter: 3").is_empty());
}

/// When a connection makes its plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planned {
    /// The server knows nothing of the tables.
    Blind,
    /// It knows that they are empty.
    Empty,
    /// It knows that they have room and hold nothing, as after a drain.
    Drained,
    /// It knows what they hold, and they change afterwards.
    Full,
}

#[tokio::test]
async fn every_call_finds_its_rows_without_looking_at_others() {
    for planned in [Planned::Blind, Planned::Empty, Planned::Drained, Planned::Full] {
        for order in [Ordering::BestEffort, Ordering::Fifo] {
            let told = told(planned, order).await;
            assert!(told.contains("Index Scan"), "the server told nothing");
            assert!(wasteful(&told).is_empty(), "{planned:?}, {order:?}: {:#?}", wasteful(&told));
        }
    }
}

/// What the server tells of each call, and of a batch of claims and settles, once there are thousands of jobs.
async fn told(planned: Planned, ordering: Ordering) -> String {
    let server = Server::start(&TELLS).await.unwrap();
    let url = server.url(server.address());
    let driver = || {
        let mut config = PostgresConfig::new(&url).unwrap();
        config.connections = 1;
        Postgres::new(config).unwrap()
    };
    let (operator, admin) = (driver(), connect(&url).await);
    let queue: QueueName = "test.shop.mails".parse().unwrap();
    let settings = QueueSettings { ordering, ..QueueSettings::default() };
    operator.declare(&queue, declaration(settings)).await.unwrap();
    if matches!(planned, Planned::Drained | Planned::Full) {
        fill(&operator, &queue, ordering).await;
    }
    if planned == Planned::Drained {
        for table in LARGE.iter().chain(&["lines"]) {
            admin.batch_execute(&format!("DELETE FROM longshore.{table}")).await.unwrap();
        }
    }
    if planned != Planned::Blind {
        admin.batch_execute("VACUUM (ANALYZE, TRUNCATE false)").await.unwrap();
    }
    let driver = driver();
    call_everything(&driver, &queue, ordering).await;
    fill(&driver, &queue, ordering).await;
    let log = server.data().with_file_name("log");
    let before = std::fs::read_to_string(&log).unwrap().len();
    call_everything(&driver, &queue, ordering).await;
    let jobs = claim(&driver, &queue, 200).await;
    settle(&driver, &queue, jobs, &Settle::Succeed { result: None }).await;
    let told = std::fs::read_to_string(&log).unwrap().split_off(before);
    operator.close().await;
    driver.close().await;
    told
}
