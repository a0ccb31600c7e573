//! Calls that meet other transactions: producers' own, which may be long, and drivers'.

use super::{Bench, connect, job, until};
use crate::{Driver, DriverExt, Enqueued, JobId, JobState, Settle};
use std::time::Duration;

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
