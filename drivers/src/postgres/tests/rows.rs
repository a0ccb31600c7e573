//! Rows that can't be read, versions that aren't known, plans.

use super::{Bench, connect, declaration, job, owner, until};
use crate::{
    Address, Driver, DriverExt, ErrorKind, Notify, Outcome, QueueSettings, ReadCompletions, Settle,
    conformance::servers::postgres::Server,
    postgres::{Postgres, PostgresConfig},
};
use std::time::Duration;

#[tokio::test]
async fn damaged_jobs_are_dead_and_counted_and_others_are_handed_out() {
    let bench = Bench::start().await;
    let mut jobs = vec![job(); 4];
    jobs[0].headers.insert("x".into(), "y".into());
    let ids: Vec<_> = bench.driver.enqueue(&bench.queue, jobs).await.unwrap();
    let ids: Vec<_> = ids.into_iter().map(|answer| answer.unwrap().id().clone()).collect();
    bench
        .admin
        .batch_execute("UPDATE longshore.jobs SET headers = '{broken' WHERE headers IS NOT NULL")
        .await
        .unwrap();
    bench
        .admin
        .execute("UPDATE longshore.jobs SET id = 'has blanks' WHERE id = $1", &[&ids[1].as_str()])
        .await
        .unwrap();
    bench.admin.execute("DELETE FROM longshore.jobs WHERE id = $1", &[&ids[2].as_str()]).await.unwrap();
    let claimed = bench.claim(1, Duration::from_secs(5)).await;
    assert_eq!(claimed.first().map(|job| &job.id), Some(&ids[3]));
    assert_eq!(bench.driver.stats(&bench.queue).await.unwrap().parked, Some(3));
    let record = bench.driver.inspect(&bench.queue, &ids[0]).await.unwrap().unwrap();
    assert!(matches!(record.outcome, Some(Outcome::Dead { failure, .. }) if failure.reason == "Unreadable"));
}

#[tokio::test]
async fn a_damaged_completion_stands_aside_until_the_next_start() {
    let bench = Bench::start().await;
    let address = Address::new("test").unwrap();
    for _ in 0..2 {
        let notify = Notify { address: address.clone(), context: "a\0b".into() };
        bench.driver.enqueue_one(&bench.queue, job().with_notify(notify)).await.unwrap();
        let claimed = bench.claim(1, Duration::from_secs(5)).await;
        let succeed = Settle::Succeed { result: None };
        bench.driver.settle_one(&bench.queue, &claimed[0].receipt, succeed).await.unwrap();
    }
    let break_one = "UPDATE longshore.completions SET outcome = 'broken' \
         WHERE id = (SELECT min(id) FROM longshore.completions)";
    bench.admin.batch_execute(break_one).await.unwrap();
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(1) };
    let page = bench.driver.completions(&address, read.clone()).await.unwrap();
    assert_eq!(page.completions.len(), 1);
    assert_eq!(page.completions[0].context, "a\0b");
    assert_eq!(bench.driver.stats(&bench.queue).await.unwrap().parked, Some(1));
    bench.driver.acknowledge(&address, vec![page.completions[0].receipt.clone()]).await.unwrap();
    bench.admin.batch_execute("UPDATE longshore.completions SET outcome = '\"cancelled\"'").await.unwrap();
    assert!(bench.driver.completions(&address, read.clone()).await.unwrap().caught_up);
    // A new operator looks at them again.
    let later = Postgres::new(PostgresConfig::new(&bench.url()).unwrap()).unwrap();
    later.probe().await.unwrap();
    assert_eq!(later.completions(&address, read).await.unwrap().completions.len(), 1);
}

#[tokio::test]
async fn two_declarers_make_one_schema() {
    let server = Server::start(&[]).await.unwrap();
    let url = server.url(server.address());
    let queue = "test.shop.mails".parse().unwrap();
    let declare = |_| {
        let driver = Postgres::new(PostgresConfig::new(&url).unwrap()).unwrap();
        let queue = &queue;
        async move { driver.declare(queue, declaration(QueueSettings::default())).await }
    };
    let made = futures::future::try_join_all((0..6).map(declare)).await.unwrap();
    assert_eq!(made.iter().filter(|declared| declared.created).count(), 1);
    assert!(made.iter().all(|declared| declared.backend_id == made[0].backend_id));
}

#[tokio::test]
async fn an_empty_database_says_what_to_do() {
    let server = Server::start(&[]).await.unwrap();
    let driver = Postgres::new(PostgresConfig::new(&server.url(server.address())).unwrap()).unwrap();
    let queue = "test.shop.mails".parse().unwrap();
    let error = driver.stats(&queue).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("operator"), "{error}");
    driver.delete_queue(&queue, &owner()).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_says_otherwise() {
    let bench = Bench::start().await;
    let newer = |compatible: i32| format!("UPDATE longshore.meta SET version = 9, compatible = {compatible}");
    bench.admin.batch_execute(&newer(9)).await.unwrap();
    for operator in [false, true] {
        let driver = Postgres::new(PostgresConfig::new(&bench.url()).unwrap()).unwrap();
        let error = if operator {
            driver.probe().await.unwrap_err()
        } else {
            driver.stats(&bench.queue).await.unwrap_err()
        };
        assert_eq!(error.kind, ErrorKind::Fatal);
        assert!(error.message.contains("newer Longshore"), "{error}");
    }
    bench.admin.batch_execute(&newer(1)).await.unwrap();
    let driver = Postgres::new(PostgresConfig::new(&bench.url()).unwrap()).unwrap();
    driver.probe().await.unwrap();
    driver.stats(&bench.queue).await.unwrap();
}

#[tokio::test]
async fn a_long_transaction_elsewhere_does_not_stop_claims() {
    let bench = Bench::start().await;
    let old = connect(&bench.url()).await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM longshore.jobs")
        .await
        .unwrap();
    let (mut first, mut last) = (Duration::ZERO, Duration::ZERO);
    for round in 0..20 {
        bench.driver.enqueue(&bench.queue, vec![job(); 1000]).await.unwrap();
        let since = std::time::Instant::now();
        let claimed = bench.claim(1000, Duration::ZERO).await;
        assert_eq!(claimed.len(), 1000);
        let ends = claimed
            .into_iter()
            .map(|job| crate::Settlement { receipt: job.receipt, settle: Settle::Succeed { result: None } });
        let settled = bench.driver.settle(&bench.queue, ends.collect()).await.unwrap();
        assert!(settled.iter().all(Result::is_ok));
        let took = since.elapsed();
        if round < 3 {
            first += took
        } else if round >= 17 {
            last += took
        }
    }
    // 20,000 dead rows would show, if every claim had to walk over them.
    assert!(last < first * 10, "claims got slower: {first:?}, then {last:?}");
    old.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn who_reads_completions_has_not_caught_up_while_somebody_else_holds_one() {
    let bench = Bench::start().await;
    let address = Address::new("test").unwrap();
    let add = "INSERT INTO longshore.completions (job_seq, settled_at, address, queue, job, outcome, context) \
         VALUES (0, 0, 'test', 'test.shop.mails', 'x', '\"cancelled\"', '')";
    bench.admin.batch_execute(add).await.unwrap();
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_secs(10) };
    let held = bench.driver.completions(&address, read.clone()).await.unwrap();
    assert_eq!(held.completions.len(), 1);
    let end = std::time::Instant::now() + Duration::from_secs(3);
    let writes = async {
        while std::time::Instant::now() < end {
            bench.admin.batch_execute(add).await.unwrap();
        }
    };
    let reads = async {
        while std::time::Instant::now() < end {
            let page = bench.driver.completions(&address, read.clone()).await.unwrap();
            assert!(!page.caught_up, "the first one is still out");
            let receipts = page.completions.into_iter().map(|completion| completion.receipt).collect();
            bench.driver.acknowledge(&address, receipts).await.unwrap();
        }
    };
    tokio::join!(writes, reads);
}

#[tokio::test]
async fn a_job_that_goes_while_it_is_looked_at_is_there_or_not() {
    let bench = Bench::start().await;
    let id = crate::JobId::new("one").unwrap();
    bench.driver.enqueue_one(&bench.queue, job().with_id(id.clone())).await.unwrap();
    let remover = connect(&bench.url()).await;
    // Whoever looks finds the job and waits for where it stands.
    remover.batch_execute("BEGIN; LOCK TABLE longshore.waiting IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (driver, queue) = (bench.driver.clone(), bench.queue.clone());
    let looking = tokio::spawn(async move { driver.inspect(&queue, &id).await });
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%inspect%'";
    until(&bench.admin, waits, 1, Duration::from_secs(4)).await;
    remover.batch_execute("DELETE FROM longshore.waiting; DELETE FROM longshore.jobs; COMMIT").await.unwrap();
    if let Some(record) = looking.await.unwrap().unwrap() {
        assert_eq!(record.state, crate::JobState::Ready, "as it stood when the look began");
    }
}

#[tokio::test]
async fn a_schema_may_have_a_name_that_means_something_in_sql() {
    let server = Server::start(&[]).await.unwrap();
    let mut config = PostgresConfig::new(&server.url(server.address())).unwrap();
    config.schema = "user".to_owned();
    let driver = Postgres::new(config).unwrap();
    let queue = "test.shop.mails".parse().unwrap();
    driver.declare(&queue, declaration(QueueSettings::default())).await.unwrap();
    driver.enqueue_one(&queue, job()).await.unwrap();
    let client = connect(&server.url(server.address())).await;
    let add = "SELECT \"user\".enqueue('test.shop.mails', 'mail', '{}')";
    client.batch_execute(add).await.unwrap();
    assert_eq!(super::claim(&driver, &queue, 10, Duration::from_secs(5)).await.unwrap().len(), 2);
    driver.delete_queue(&queue, &owner()).await.unwrap();
}

#[tokio::test]
async fn leases_that_ended_long_ago_are_stepped_over_once_a_second() {
    let bench = Bench::start().await;
    let old = connect(&bench.url()).await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM longshore.jobs")
        .await
        .unwrap();
    bench
        .admin
        .batch_execute(
            "INSERT INTO longshore.active (seq, queue, at, token, due_at, claimed_at, notify, bytes, attempts, lost, \
             deliveries, worker) SELECT -n, (SELECT id FROM longshore.queues), n, 0, 0, 0, false, 0, 0, 0, 1, '' \
             FROM generate_series(1, 300000) AS n; DELETE FROM longshore.active",
        )
        .await
        .unwrap();
    bench.driver.enqueue(&bench.queue, vec![job(); 100]).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..30 {
        let since = std::time::Instant::now();
        assert_eq!(bench.claim(1, Duration::ZERO).await.len(), 1);
        took.push(since.elapsed());
    }
    took.sort();
    // One that looks at all of them shows what that costs.
    let (usual, full) = (took[15], took[29]);
    assert!(usual * 3 < full, "a claim takes {usual:?} mostly and {full:?} at most");
    old.batch_execute("ROLLBACK").await.unwrap();
}
