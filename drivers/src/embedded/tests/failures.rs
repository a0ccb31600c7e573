//! Commands, timers, commits and disks that fail.

use super::{Broker, job, to};
use crate::{
    Claim, Driver, DriverExt, ErrorKind, NewJob, Payload, Settle,
    embedded::command::{Answer, Breakage},
};
use futures::future::join_all;
use std::time::{Duration, Instant};

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

/// How many commits there were.
pub(super) async fn commits(broker: &Broker) -> u64 {
    match broker.spoil(Breakage::Count).await.unwrap() {
        Answer::Removed(commits) => commits,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_spoilt_command_costs_its_group_no_commit_each() {
    let broker = Broker::start().await;
    let before = commits(&broker).await;
    let many = join_all((0..200).map(|_| broker.driver.enqueue_one(&broker.queue, job())));
    let (added, spoilt) = tokio::join!(many, broker.spoil(Breakage::Statement));
    assert_eq!(spoilt.unwrap_err().kind, ErrorKind::Fatal);
    assert!(added.iter().all(Result::is_ok));
    let made = commits(&broker).await - before;
    assert!(made < 50, "{made} commits");
}

/// A claim that waits for nothing.
fn at_once(max: u32) -> Claim {
    Claim { max, wait: Duration::ZERO, lease: Duration::from_secs(60), worker: "w".repeat(200) }
}

const SPOIL_QUEUE_1: &str = "CREATE TRIGGER spoil BEFORE UPDATE ON jobs WHEN NEW.queue = 1 \
    BEGIN SELECT RAISE(ABORT, 'a test spoils this'); END";

#[tokio::test]
async fn timers_and_claims_of_one_queue_fail_without_the_others() {
    let broker = Broker::start().await;
    let other = broker.beside("other").await;
    let soon = || job().with_delay(Duration::from_millis(50));
    broker.driver.enqueue(&broker.queue, vec![job(), soon()]).await.unwrap();
    broker.run(SPOIL_QUEUE_1).await;
    // That one can't be handed out; its claimer hears of it, not of an empty queue.
    let failed = broker.driver.claim(&broker.queue, at_once(1)).await.unwrap_err();
    assert_eq!(failed.kind, ErrorKind::Fatal);
    for _ in 0..3 {
        other.driver.enqueue_one(&other.queue, soon()).await.unwrap();
        let wait = Claim { wait: Duration::from_secs(10), ..at_once(1) };
        let claimed = other.driver.claim(&other.queue, wait).await.unwrap();
        assert_eq!(claimed.len(), 1, "another queue's timers wait");
        other.succeed(&claimed[0]).await;
    }
    broker.run("DROP TRIGGER spoil").await;
    let since = Instant::now();
    while broker.depths().await[0] < 2 {
        assert!(since.elapsed() < Duration::from_secs(10), "the timers did not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(broker.claim(10).await.len(), 2);
}

#[tokio::test]
async fn a_claim_that_ends_the_whole_transaction_is_told_so_and_others_are_served() {
    let broker = Broker::start().await;
    let other = broker.beside("other").await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    other.driver.enqueue_one(&other.queue, job()).await.unwrap();
    broker
        .run(
            "CREATE TRIGGER spoil BEFORE UPDATE ON jobs WHEN NEW.queue = 1 \
             BEGIN SELECT RAISE(ROLLBACK, 'a test spoils this'); END",
        )
        .await;
    let wait = |max| Claim { wait: Duration::from_secs(60), ..at_once(max) };
    let failed = tokio::time::timeout(Duration::from_secs(20), broker.driver.claim(&broker.queue, wait(1)));
    assert_eq!(failed.await.unwrap().unwrap_err().kind, ErrorKind::Fatal);
    let served = other.driver.claim(&other.queue, Claim { wait: Duration::from_secs(20), ..at_once(1) });
    assert_eq!(served.await.unwrap().len(), 1);
    broker.run("DROP TRIGGER spoil").await;
    assert_eq!(broker.driver.claim(&broker.queue, wait(1)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_queue_that_cannot_be_taken_apart_holds_nobody_up() {
    let broker = Broker::start().await;
    let other = broker.beside("other").await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    broker
        .run(
            "CREATE TRIGGER spoil BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'a test spoils this'); END",
        )
        .await;
    let owner = crate::Owner { installation: "i".into(), uid: "u".into() };
    let deletion = broker.driver.delete_queue(&broker.queue, &owner);
    let (deleted, ()) = tokio::join!(deletion, async {
        other.driver.enqueue_one(&other.queue, job()).await.unwrap();
        assert_eq!(other.claim(1).await.len(), 1);
        broker.run("DROP TRIGGER spoil").await;
    });
    deleted.unwrap();
}

#[tokio::test]
async fn completions_of_one_address_fail_without_the_others() {
    let broker = Broker::start().await;
    for address in ["bad", "good"] {
        broker.driver.enqueue_one(&broker.queue, to(address)).await.unwrap();
        let claimed = broker.claim(1).await;
        broker.succeed(&claimed[0]).await;
    }
    broker
        .run(
            "CREATE TRIGGER spoil BEFORE UPDATE ON completions WHEN NEW.address = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'a test spoils this'); END",
        )
        .await;
    let read = crate::ReadCompletions { max: 1, wait: Duration::ZERO, lease: Duration::from_secs(1) };
    let bad = broker.driver.completions(&crate::Address::new("bad").unwrap(), read).await;
    assert_eq!(bad.unwrap_err().kind, ErrorKind::Fatal);
    assert_eq!(super::read(&broker, "good").await.completions.len(), 1);
}

#[tokio::test]
async fn a_commit_that_fails_leaves_its_outcome_open_and_nothing_in_memory() {
    let broker = Broker::start().await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let failing = Breakage::Commits(1, rusqlite::ffi::SQLITE_IOERR_FSYNC);
    let (spoilt, claimed) =
        tokio::join!(broker.spoil(failing), broker.driver.claim(&broker.queue, at_once(1)));
    assert_eq!(spoilt.unwrap_err().kind, ErrorKind::Ambiguous);
    // Whether it was in that group or came into the pause after it: never as if there were no job.
    assert!(claimed.is_err() || claimed.is_ok_and(|jobs| jobs.len() == 1));
    let again = Claim { wait: Duration::from_secs(10), ..at_once(1) };
    if broker.depths().await[2] == 0 {
        assert_eq!(broker.driver.claim(&broker.queue, again).await.unwrap().len(), 1);
    }
    assert_eq!(broker.depths().await, [0, 0, 1, 0, 0]);
}

#[tokio::test]
async fn a_broker_whose_transactions_fail_for_good_ends() {
    let broker = Broker::start().await;
    let ended = broker.driver.ended();
    let failing = Breakage::Commits(u32::MAX, rusqlite::ffi::SQLITE_CORRUPT);
    broker.spoil(failing).await.unwrap_err();
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the thread goes on");
    let asked = broker.driver.probe().await.unwrap_err();
    assert_eq!(asked.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_full_disk_refuses_claims_and_settles_and_they_succeed_when_there_is_room() {
    let broker = Broker::start().await;
    broker.driver.enqueue(&broker.queue, vec![job(); 1000]).await.unwrap();
    let first = broker.claim(1).await;
    broker.run("PRAGMA max_page_count = 1").await;
    // The names of workers need room.
    let claimed = broker.driver.claim(&broker.queue, at_once(999)).await;
    assert_eq!(claimed.unwrap_err().kind, ErrorKind::Unavailable);
    let result = Some(Payload::json(vec![b'1'; 200_000]));
    let settle = || Settle::Succeed { result: result.clone() };
    let settled = broker.driver.settle_one(&broker.queue, &first[0].receipt, settle()).await;
    assert_eq!(settled.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(broker.depths().await, [999, 0, 1, 0, 0]);
    broker.run("PRAGMA max_page_count = 1000000").await;
    broker.driver.settle_one(&broker.queue, &first[0].receipt, settle()).await.unwrap();
    let again = Claim { wait: Duration::from_secs(10), ..at_once(999) };
    assert_eq!(broker.driver.claim(&broker.queue, again).await.unwrap().len(), 999);
}

#[tokio::test]
async fn large_jobs_are_handed_out_in_bounded_portions_and_nobody_goes_away_empty() {
    const MIB: usize = 1024 * 1024;
    let broker = Broker::start().await;
    let large = || NewJob::new("large", Payload { content_type: "x/y".into(), bytes: vec![1; MIB].into() });
    for _ in 0..60 {
        broker.driver.enqueue_one(&broker.queue, large()).await.unwrap();
    }
    // More than a pass hands out.
    let claims = join_all((0..40).map(|_| broker.driver.claim(&broker.queue, at_once(1)))).await;
    assert!(claims.iter().all(|claim| claim.as_ref().is_ok_and(|jobs| jobs.len() == 1)));
    let claimed = broker.claim(1000).await;
    assert_eq!(claimed.len(), 16);
}
