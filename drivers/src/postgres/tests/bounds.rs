//! What happens by itself, however much of it there is: it goes in parts that a statement can do, and comes to its end.

use super::{Bench, job, until};
use crate::{
    Declaration, Driver, DriverExt, JobState, Owner, QueueSettings,
    postgres::{Postgres, PostgresConfig},
};
use std::time::Duration;

/// Adds `$1` jobs that ended a while ago, each of which says that it has 1 MiB.
const OVER: &str = "WITH added AS (INSERT INTO longshore.jobs (seq, queue, enqueued_at, id, type, payload) \
     SELECT nextval('longshore.job_seq'), (SELECT max(id) FROM longshore.queues), 0, 'old-' || n, 'mail', \
     convert_to(repeat('x', 1048576), 'UTF8') FROM generate_series(1, $1::bigint) AS n RETURNING seq, queue) \
     INSERT INTO longshore.finished (seq, queue, at, finished_at, due_at, state, attempts, lost, bytes) \
     SELECT seq, queue, 0, 0, 0, 5, 1, 0, 1048576 FROM added";

async fn jobs(bench: &Bench) -> i64 {
    bench.admin.query_one("SELECT count(*) FROM longshore.jobs", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_deletion_ends_though_its_name_is_somebody_elses_by_now() {
    let bench = Bench::start().await;
    for _ in 0..6 {
        bench.driver.enqueue(&bench.queue, vec![job(); 1000]).await.unwrap();
    }
    // Whoever deletes it goes away after the first part.
    bench
        .admin
        .batch_execute("SELECT longshore.delete_queue('test.shop.mails', 'test', 'one')")
        .await
        .unwrap();
    assert_eq!(jobs(&bench).await, 5000);
    let other = Owner { installation: "test".into(), uid: "two".into() };
    let anew = Declaration { owner: other, settings: QueueSettings::default(), adopt: false };
    bench.driver.declare(&bench.queue, anew).await.unwrap();
    bench.driver.enqueue_one(&bench.queue, job()).await.unwrap();
    let driver = Postgres::new(PostgresConfig::new(&bench.url()).unwrap()).unwrap();
    driver.stats(&bench.queue).await.unwrap();
    until(&bench.admin, "SELECT count(*) FROM longshore.jobs", 1, Duration::from_secs(15)).await;
    // The one who deleted it asks again: it isn't theirs, and stays.
    let error = bench.driver.delete_queue(&bench.queue, &super::owner()).await.unwrap_err();
    assert_eq!(error.kind, crate::ErrorKind::Conflict, "{error}");
    assert_eq!(bench.claim(1, Duration::ZERO).await.len(), 1);
}

#[tokio::test]
async fn retention_goes_in_parts_of_bounded_bytes() {
    let bench = Bench::start().await;
    bench.driver.close().await;
    bench.admin.execute(OVER, &[&100_i64]).await.unwrap();
    let forget = "SELECT again FROM longshore.forget('test.shop.mails')";
    let (mut parts, mut before) = (0, 100);
    loop {
        let again: bool = bench.admin.query_one(forget, &[]).await.unwrap().get(0);
        let left = jobs(&bench).await;
        assert!(before - left <= 64, "{} MiB in one part", before - left);
        (parts, before) = (parts + 1, left);
        assert_eq!(again, left > 0, "{left} are left");
        if !again {
            break;
        }
    }
    assert!(parts >= 2);
}

#[tokio::test]
async fn purges_and_deletions_go_in_parts_of_bounded_bytes() {
    let bench = Bench::start().await;
    // Nobody's retention ends.
    bench.admin.batch_execute("UPDATE longshore.queues SET retain_completed = 1 << 60").await.unwrap();
    bench.admin.execute(OVER, &[&150_i64]).await.unwrap();
    let purge = "SELECT purged FROM longshore.purge('test.shop.mails', 5, 100)";
    let purged: i64 = bench.admin.query_one(purge, &[]).await.unwrap().get(0);
    assert!((1..=64).contains(&purged), "{purged} MiB in one part");
    // A call goes on until it has what was asked for.
    let purged = bench.driver.purge(&bench.queue, JobState::Succeeded, 70).await.unwrap();
    assert_eq!(purged, 70);
    let before = jobs(&bench).await;
    let delete = "SELECT more FROM longshore.delete_queue('test.shop.mails', 'test', 'one')";
    let more: bool = bench.admin.query_one(delete, &[]).await.unwrap().get(0);
    assert!(more && before - jobs(&bench).await <= 64);
    bench.driver.delete_queue(&bench.queue, &super::owner()).await.unwrap();
    assert_eq!(jobs(&bench).await, 0);
}

#[tokio::test]
async fn retention_that_fails_undoes_no_lease_and_no_count() {
    let bench = Bench::start().await;
    bench.admin.execute(OVER, &[&1_i64]).await.unwrap();
    bench
        .admin
        .batch_execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$; \
             CREATE TRIGGER no BEFORE DELETE ON longshore.finished FOR EACH ROW EXECUTE FUNCTION no()",
        )
        .await
        .unwrap();
    bench.driver.enqueue_one(&bench.queue, job()).await.unwrap();
    let claim =
        crate::Claim { max: 1, wait: Duration::ZERO, lease: Duration::from_secs(1), worker: "tester".into() };
    assert_eq!(bench.driver.claim(&bench.queue, claim).await.unwrap().len(), 1);
    until(&bench.admin, "SELECT count(*) FROM longshore.waiting", 1, Duration::from_secs(15)).await;
}

#[tokio::test]
async fn counts_are_added_up_until_none_are_left() {
    let bench = Bench::start().await;
    bench.driver.close().await;
    bench
        .admin
        .batch_execute(
            "INSERT INTO longshore.deltas (queue, ready) \
             SELECT (SELECT id FROM longshore.queues), 1 FROM generate_series(1, 12000)",
        )
        .await
        .unwrap();
    for again in [true, true, false] {
        let row = bench.admin.query_one("SELECT again FROM longshore.tick('test.shop.mails')", &[]).await;
        assert_eq!(row.unwrap().get::<_, bool>(0), again);
    }
    let row = bench.admin.query_one("SELECT count(*), sum(ready)::bigint FROM longshore.deltas", &[]).await;
    let row = row.unwrap();
    assert!(row.get::<_, i64>(0) <= 17);
    assert_eq!(row.get::<_, i64>(1), 12_000);
}

#[tokio::test]
async fn whoever_waits_hears_of_a_job_that_became_due() {
    let bench = Bench::start().await;
    bench.driver.close().await;
    let add = "SELECT longshore.enqueue('test.shop.mails', 'mail', '{}', delay => '50 ms')";
    bench.admin.batch_execute(add).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let told = bench.admin.query_one("SELECT ready FROM longshore.tick('test.shop.mails')", &[]).await;
    assert!(told.unwrap().get::<_, bool>(0));
    let told = bench.admin.query_one("SELECT ready FROM longshore.tick('test.shop.mails')", &[]).await;
    assert!(!told.unwrap().get::<_, bool>(0), "it is told once");
}
