//! Rows that can't be read cost themselves, not their neighbours.

use super::{Broker, job, read, to};
use crate::{Driver, DriverExt, JobState, ListJobs, Outcome, Settle};
use std::time::Duration;

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
async fn a_job_behind_one_that_cannot_be_read_is_handed_out_at_once() {
    let broker = Broker::start().await;
    for _ in 0..3 {
        broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    }
    let whole = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    broker.run("DELETE FROM bodies WHERE seq <= 3").await;
    let claimed = broker.claim(1).await;
    assert_eq!(claimed.first().map(|job| &job.id), Some(whole.id()));
    assert_eq!(broker.parked().await, 3);
}

/// Every column whose text somebody reads.
const NO_UTF8: &str = "
    UPDATE jobs SET id = CAST(x'ff' AS TEXT) WHERE type = 'id';
    UPDATE jobs SET type = CAST(x'ff' AS TEXT) WHERE type = 'type';
    UPDATE jobs SET worker = CAST(x'ff' AS TEXT), at = 0 WHERE type = 'worker';
    UPDATE jobs SET state = 99 WHERE type = 'state';
    UPDATE bodies SET notify_address = CAST(x'ff' AS TEXT) WHERE seq = (SELECT seq FROM jobs WHERE type = 'address');
    UPDATE bodies SET notify_context = CAST(x'ff' AS TEXT) WHERE seq = (SELECT seq FROM jobs WHERE type = 'context');
    UPDATE queues SET name = CAST(x'ff' AS TEXT) WHERE name = 'lost';
    UPDATE completions SET job = CAST(x'ff' AS TEXT) WHERE id = 1;
    UPDATE completions SET queue = CAST(x'ff' AS TEXT) WHERE id = 2;
    UPDATE completions SET context = CAST(x'ff' AS TEXT) WHERE id = 3;
    UPDATE completions SET address = CAST(x'ff' AS TEXT) WHERE id = 4;
";

#[tokio::test]
async fn text_that_is_no_utf8_stops_neither_the_start_nor_anything_else() {
    // Without grace: the end of a lease is waited for below.
    let mut broker = Broker::start_with(|config| config.lease_grace = Duration::ZERO).await;
    let lost = broker.beside("lost").await;
    for _ in 0..6 {
        lost.driver.enqueue_one(&lost.queue, to("a")).await.unwrap();
        let claimed = lost.claim(1).await;
        lost.succeed(&claimed[0]).await;
    }
    let typed = |name: &str| crate::NewJob { job_type: name.into(), ..to("b") };
    broker.driver.enqueue_one(&broker.queue, typed("worker")).await.unwrap();
    broker.claim(1).await;
    for name in ["id", "type", "state", "address", "context"] {
        broker.driver.enqueue_one(&broker.queue, typed(name)).await.unwrap();
    }
    broker.run(NO_UTF8).await;
    broker.restart().await;
    let whole = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    // Timers work: the lease of the damaged worker's job ends.
    let since = std::time::Instant::now();
    while broker.depths().await[2] > 0 {
        assert!(since.elapsed() < Duration::from_secs(10), "timers don't work");
    }
    let list = ListJobs { state: JobState::Ready, limit: 100, after: None };
    let page = broker.driver.list(&broker.queue, list).await.unwrap();
    assert!(page.jobs.iter().any(|record| record.id == *whole.id()), "{page:?}");
    let claimed = broker.claim(10).await;
    assert!(claimed.iter().any(|job| job.id == *whole.id()), "{claimed:?}");
    for job in &claimed {
        broker.succeed(job).await;
    }
    // Two of six completions are whole; one that can't be read waits aside, two belong to a queue that nobody knows.
    let page = read(&broker, "a").await;
    assert_eq!(page.completions.len(), 2);
    let receipts = page.completions.into_iter().map(|completion| completion.receipt).collect();
    // Their queue was left out.
    broker.driver.acknowledge(&crate::Address::new("a").unwrap(), receipts).await.unwrap();
    // The job in no known state, and three that nobody can be given: two damaged addresses or contexts, one id.
    let parked = broker.parked().await;
    assert!(parked >= 3, "{parked}");
}

#[tokio::test]
async fn completions_that_cannot_be_read_are_counted_with_their_queue() {
    let broker = Broker::start().await;
    broker.driver.enqueue_one(&broker.queue, to("a")).await.unwrap();
    let claimed = broker.claim(1).await;
    broker.succeed(&claimed[0]).await;
    broker.run("UPDATE completions SET outcome = 'nonsense'").await;
    assert_eq!(broker.parked().await, 0);
    assert!(read(&broker, "a").await.completions.is_empty());
    assert_eq!(broker.parked().await, 1);
}
