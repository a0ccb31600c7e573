//! Calls that meet other transactions: producers' own, which may be long, and drivers'.

use super::{Bench, connect, declaration, job, until};
use crate::{
    Driver, DriverExt, Enqueued, ErrorKind, JobId, JobState, NewJob, Ordering, QueueName, QueueSettings,
    Settle, Settlement,
};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How many statements wait for somebody else's transaction.
const WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";

fn id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

#[tokio::test]
async fn a_job_that_is_forgotten_while_it_is_added_again_is_there() {
    let bench = Bench::start().await;
    let (old, new) = (job().with_id(id("a-x")), job().with_id(id("m-1")));
    bench.driver.enqueue_one(&bench.queue, old.clone()).await.unwrap();
    let claimed = bench.claim(1, Duration::from_secs(5)).await;
    bench
        .driver
        .settle_one(&bench.queue, &claimed[0].receipt, Settle::Succeed { result: None })
        .await
        .unwrap();
    let producer = connect(&bench.url()).await;
    let add = "BEGIN; SELECT longshore.enqueue('test.shop.mails', 'mail', '{}', id => 'm-1')";
    producer.batch_execute(add).await.unwrap();
    let (driver, queue) = (bench.driver.clone(), bench.queue.clone());
    let adding = tokio::spawn(async move { driver.enqueue(&queue, vec![old, new]).await });
    until(&bench.admin, WAITS, 1, Duration::from_secs(4)).await;
    // The first job's retention ends at this moment.
    bench
        .admin
        .batch_execute(
            "UPDATE longshore.finished SET at = 0; DELETE FROM longshore.finished; \
             DELETE FROM longshore.jobs WHERE id = 'a-x'",
        )
        .await
        .unwrap();
    producer.batch_execute("ROLLBACK").await.unwrap();
    for answer in adding.await.unwrap().unwrap() {
        let Enqueued::Created { id } = answer.unwrap() else { panic!("it was new") };
        let record = bench.driver.inspect(&bench.queue, &id).await.unwrap();
        assert_eq!(record.map(|record| record.state), Some(JobState::Ready), "{id} was said to be added");
    }
}

/// A queue with an order.
async fn ordered(bench: &Bench) -> QueueName {
    let queue: QueueName = "test.shop.orders".parse().unwrap();
    let settings = QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() };
    bench.driver.declare(&queue, declaration(settings)).await.unwrap();
    queue
}

fn keyed(key: &str) -> NewJob {
    NewJob { ordering_key: Some(key.to_owned()), ..job() }
}

/// A producer whose transaction stays open with a job in it.
async fn open(bench: &Bench, arguments: &str) -> Client {
    let producer = connect(&bench.url()).await;
    producer.batch_execute(&format!("BEGIN; SELECT longshore.enqueue({arguments})")).await.unwrap();
    producer
}

/// Twenty calls at once, of which number 10 meets an open transaction: the slowest of the others, and when that one was
/// done after all.
async fn among_others(call: impl AsyncFn(usize)) -> (Duration, Duration) {
    let timed = |at| {
        let call = &call;
        async move {
            let since = Instant::now();
            call(at).await;
            since.elapsed()
        }
    };
    let mut took = futures::future::join_all((0..20).map(timed)).await;
    let met = took.remove(10);
    (took.into_iter().max().unwrap(), met)
}

const SOON: Duration = Duration::from_millis(2500);

#[tokio::test]
async fn an_open_transaction_keeps_up_its_own_key_only() {
    let bench = Bench::start().await;
    let queue = ordered(&bench).await;
    for line_is_there in [false, true] {
        let busy = if line_is_there { "there" } else { "new" };
        if line_is_there {
            bench.driver.enqueue_one(&queue, keyed(busy)).await.unwrap();
        }
        let add = format!("'test.shop.orders', 'mail', '{{}}', ordering_key => '{busy}'");
        let producer = open(&bench, &add).await;
        let ended = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            producer.batch_execute("COMMIT").await.unwrap();
        };
        let calls = among_others(async |at| {
            let key = if at == 10 { busy.to_owned() } else { format!("{busy}-{at}") };
            bench.driver.enqueue_one(&queue, keyed(&key)).await.unwrap();
        });
        let ((others, met), ()) = tokio::join!(calls, ended);
        assert!(others < SOON, "others waited {others:?}");
        assert!(met > Duration::from_secs(2), "it went past an open transaction of its key: {met:?}");
    }
}

#[tokio::test]
async fn jobs_of_other_keys_are_settled_while_a_transaction_is_open() {
    let bench = Bench::start().await;
    let queue = ordered(&bench).await;
    let jobs = (0..20).map(|at| keyed(&at.to_string())).collect();
    bench.driver.enqueue(&queue, jobs).await.unwrap();
    let claimed = super::claim(&bench.driver, &queue, 20, Duration::from_secs(5)).await.unwrap();
    assert_eq!(claimed[10].ordering_key.as_deref(), Some("10"));
    let producer = open(&bench, "'test.shop.orders', 'mail', '{}', ordering_key => '10'").await;
    let ended = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        producer.batch_execute("COMMIT").await.unwrap();
    };
    let extended = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let since = Instant::now();
        bench.driver.extend_one(&queue, &claimed[10].receipt, Duration::from_secs(60)).await.unwrap();
        since.elapsed()
    };
    let calls = among_others(async |at| {
        let succeed = Settle::Succeed { result: None };
        bench.driver.settle_one(&queue, &claimed[at].receipt, succeed).await.unwrap();
    });
    let ((others, met), (), extended) = tokio::join!(calls, ended, extended);
    assert!(others < SOON, "others waited {others:?}");
    assert!(met > Duration::from_secs(2), "it went past an open transaction of its key: {met:?}");
    assert!(extended < Duration::from_secs(1), "a longer lease took {extended:?}");
}

#[tokio::test]
async fn an_open_transaction_keeps_up_its_own_id_only() {
    let bench = Bench::start().await;
    // So that the driver knows the queue.
    bench.driver.enqueue_one(&bench.queue, job()).await.unwrap();
    let producer = open(&bench, "'test.shop.mails', 'mail', '{}', id => 'id-10'").await;
    let ended = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        producer.batch_execute("ROLLBACK").await.unwrap();
    };
    let calls = among_others(async |at| {
        let added = bench.driver.enqueue_one(&bench.queue, job().with_id(id(&format!("id-{at}")))).await;
        assert!(matches!(added, Ok(Enqueued::Created { .. })), "{added:?}");
    });
    let ((others, met), ()) = tokio::join!(calls, ended);
    assert!(others < SOON, "others waited {others:?}");
    assert!(met > Duration::from_secs(2), "it went past an open transaction of its id: {met:?}");
}

#[tokio::test]
async fn of_one_call_only_what_meets_an_open_transaction_is_left_out() {
    let bench = Bench::start().await;
    let queue = ordered(&bench).await;
    bench.driver.enqueue_one(&bench.queue, job()).await.unwrap();
    bench.driver.enqueue(&queue, vec![keyed("a"), keyed("b")]).await.unwrap();
    let claimed = super::claim(&bench.driver, &queue, 2, Duration::from_secs(5)).await.unwrap();
    let _id = open(&bench, "'test.shop.mails', 'mail', '{}', id => 'id-10'").await;
    let _key = open(&bench, "'test.shop.orders', 'mail', '{}', ordering_key => 'a'").await;
    let ends = claimed
        .into_iter()
        .map(|job| Settlement { receipt: job.receipt, settle: Settle::Succeed { result: None } });
    let (by_id, by_key, settled) = tokio::join!(
        bench
            .driver
            .enqueue(&bench.queue, (0..100).map(|at| job().with_id(id(&format!("id-{at}")))).collect()),
        bench.driver.enqueue(&queue, vec![keyed("a"), keyed("b"), keyed("a"), keyed("c")]),
        bench.driver.settle(&queue, ends.collect()),
    );
    let unavailable = |error: Option<ErrorKind>| {
        assert!(error.is_none_or(|kind| kind == ErrorKind::Unavailable), "{error:?}");
        error.is_some()
    };
    let left_out = |answers: Vec<crate::Result<Enqueued>>| -> Vec<bool> {
        answers.into_iter().map(|answer| unavailable(answer.err().map(|error| error.kind))).collect()
    };
    let by_id = left_out(by_id.unwrap());
    assert_eq!(by_id.iter().position(|left| *left), Some(10));
    assert_eq!(by_id.iter().filter(|left| **left).count(), 1);
    assert_eq!(left_out(by_key.unwrap()), [true, false, true, false]);
    let settled: Vec<bool> = settled
        .unwrap()
        .into_iter()
        .map(|answer| unavailable(answer.err().map(|error| error.kind)))
        .collect();
    assert_eq!(settled, [true, false]);
}

#[tokio::test]
async fn a_producers_long_transaction_doesnt_get_slower_with_each_job() {
    let bench = Bench::start().await;
    let settings = QueueSettings { max_depth: 4100, ..QueueSettings::default() };
    bench.driver.declare(&bench.queue, declaration(settings)).await.unwrap();
    let producer = connect(&bench.url()).await;
    producer.batch_execute("BEGIN").await.unwrap();
    let add = |count: usize| {
        let producer = &producer;
        async move {
            let since = Instant::now();
            let adding = format!(
                "SELECT longshore.enqueue('test.shop.mails', 'mail', '{{}}') FROM generate_series(1, {count})"
            );
            producer.batch_execute(&adding).await.map(|()| since.elapsed())
        }
    };
    let first = add(500).await.unwrap();
    add(3000).await.unwrap();
    let last = add(500).await.unwrap();
    assert!(last < first * 3, "500 jobs took {first:?} at first and {last:?} at last");
    // It is exact for all that.
    add(100).await.unwrap();
    let full = add(1).await.unwrap_err();
    assert_eq!(full.code().map(tokio_postgres::error::SqlState::code), Some("LS429"));
    producer.batch_execute("ROLLBACK").await.unwrap();
    bench.driver.enqueue_one(&bench.queue, job()).await.unwrap();
}
