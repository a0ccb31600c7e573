//! Completions of several queues: when one's clock goes another way, when one is gone, when one is damaged.

use super::{ALWAYS, Subject, claim, declaration, job};
use crate::{
    Address, Completion, Driver, DriverExt, ErrorKind, Notify, Owner, QueueName, ReadCompletions, Settle,
};
use std::time::Duration;

fn address() -> Address {
    Address::new("a").unwrap()
}

fn queue(name: &str) -> QueueName {
    name.parse().unwrap()
}

async fn declare(subject: &Subject, name: &str) {
    subject.driver.declare(&queue(name), declaration()).await.unwrap();
}

async fn enqueue(subject: &Subject, name: &str, id: &str) {
    let job = job(id).with_notify(Notify { address: address(), context: id.into() });
    subject.driver.enqueue_one(&queue(name), job).await.unwrap();
}

/// A job of the queue that succeeded.
async fn done(subject: &Subject, name: &str, id: &str) {
    enqueue(subject, name, id).await;
    let claimed = subject.driver.claim(&queue(name), claim(1, Duration::ZERO)).await.unwrap();
    let succeed = Settle::Succeed { result: None };
    subject.driver.settle_one(&queue(name), &claimed[0].receipt, succeed).await.unwrap();
}

async fn delete(subject: &Subject, name: &str) {
    let owner = Owner { installation: "test".into(), uid: "one".into() };
    subject.driver.delete_queue(&queue(name), &owner).await.unwrap();
}

async fn page(subject: &Subject, lease: u64) -> crate::CompletionPage {
    let read = ReadCompletions { max: 100, wait: Duration::ZERO, lease: Duration::from_millis(lease) };
    subject.driver.completions(&address(), read).await.unwrap()
}

fn ids(completions: &[Completion]) -> Vec<&str> {
    completions.iter().map(|one| one.job.as_str()).collect()
}

async fn acknowledge(subject: &Subject, completions: &[Completion]) {
    let receipts = completions.iter().map(|one| one.receipt.clone()).collect();
    subject.driver.acknowledge(&address(), receipts).await.unwrap();
}

/// Makes the queue's clock what it is after the server's went back by an hour.
async fn bridge(subject: &Subject, name: &str) {
    let (seconds, _): (u64, u64) = subject.raw(&["TIME"]).await;
    let key = format!("longshore:{{{name}}}:q");
    let () = subject.raw(&["HSET", &key, "clock", &((seconds + 3600) * 1000).to_string()]).await;
}

/// Reads until the ids of what was read so far are these.
async fn read_until(subject: &Subject, lease: u64, expected: &[&str]) -> Vec<Completion> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut read = Vec::new();
    loop {
        read.extend(page(subject, lease).await.completions);
        if ids(&read) == expected {
            return read;
        }
        assert!(tokio::time::Instant::now() < deadline, "{:?}, not {expected:?}", ids(&read));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_clock_that_went_back_holds_no_completion_up_and_keeps_their_order() {
    let subject = Subject::start(ALWAYS).await;
    declare(&subject, "other").await;
    bridge(&subject, "test").await;
    done(&subject, "test", "first").await;
    // Times are in milliseconds.
    tokio::time::sleep(Duration::from_millis(2)).await;
    done(&subject, "other", "second").await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    done(&subject, "test", "third").await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let read = page(&subject, 10_000).await;
    assert_eq!(ids(&read.completions), ["first", "second", "third"]);
    assert!(read.caught_up);
    subject.end().await;
}

#[tokio::test]
async fn a_queue_whose_clock_was_bridged_keeps_its_time_when_it_is_deleted() {
    let subject = Subject::start(ALWAYS).await;
    declare(&subject, "other").await;
    bridge(&subject, "test").await;
    enqueue(&subject, "test", "leased").await;
    assert_eq!(subject.claim(1).await.len(), 1);
    enqueue(&subject, "test", "purged").await;
    done(&subject, "other", "other").await;
    // A lease that began before the deletion and one that begins after it end in their time.
    acknowledge(&subject, &read_until(&subject, 1000, &["other"]).await).await;
    delete(&subject, "test").await;
    let read = read_until(&subject, 20, &["leased", "purged"]).await;
    assert!(read.iter().all(|one| one.delivery == 1));
    let read = read_until(&subject, 10_000, &["leased", "purged"]).await;
    assert!(read.iter().all(|one| one.delivery == 2));
    acknowledge(&subject, &read).await;
    let left: Vec<String> = subject.raw(&["KEYS", "longshore:{test}:*"]).await;
    assert!(left.is_empty(), "{left:?}");
    subject.end().await;
}

#[tokio::test]
async fn a_lease_that_began_before_a_bridged_queue_was_deleted_ends_in_its_time() {
    let subject = Subject::start(ALWAYS).await;
    bridge(&subject, "test").await;
    done(&subject, "test", "one").await;
    read_until(&subject, 200, &["one"]).await;
    delete(&subject, "test").await;
    assert!(read_until(&subject, 10_000, &["one"]).await[0].delivery == 2);
    subject.end().await;
}

#[tokio::test]
async fn a_queue_that_is_gone_leaves_the_index_when_it_was_read_to_its_end() {
    let subject = Subject::start(ALWAYS).await;
    done(&subject, "test", "live").await;
    for index in 0..40 {
        let name = format!("gone-{index}");
        declare(&subject, &name).await;
        done(&subject, &name, &name).await;
        delete(&subject, &name).await;
    }
    let members = async || -> usize { subject.raw(&["SCARD", "longshore:a:{a}"]).await };
    let read = page(&subject, 10_000).await.completions;
    assert_eq!((read.len(), members().await), (41, 41));
    acknowledge(&subject, &read).await;
    assert!(page(&subject, 10_000).await.caught_up);
    assert_eq!(members().await, 1);
    declare(&subject, "gone-0").await;
    done(&subject, "gone-0", "again").await;
    assert_eq!(ids(&page(&subject, 10_000).await.completions), ["again"]);
    assert_eq!(members().await, 2);
    subject.end().await;
}

#[tokio::test]
async fn a_damaged_queue_holds_no_completions_of_others_up() {
    // What can't be looked at, and what can't be leased.
    for key in ["a:a", "c"] {
        let subject = Subject::start(ALWAYS).await;
        declare(&subject, "other").await;
        done(&subject, "test", "lost").await;
        done(&subject, "other", "found").await;
        let whole = page(&subject, 1).await;
        assert_eq!(whole.completions.len(), 2);
        let key = format!("longshore:{{test}}:{key}");
        let () = subject.raw(&["SET", &key, "nonsense"]).await;
        let read = read_until(&subject, 10_000, &["found"]).await;
        assert!(!page(&subject, 10_000).await.caught_up, "{key}");
        // The damaged one is told of, the other one is done all the same.
        let receipts = whole.completions.iter().map(|one| one.receipt.clone()).collect();
        let told = subject.driver.acknowledge(&address(), receipts).await;
        assert_eq!(told.unwrap_err().kind, ErrorKind::Fatal, "{key}");
        let left: usize = subject.raw(&["HLEN", "longshore:{other}:c"]).await;
        assert_eq!((left, read[0].job.as_str()), (0, "found"), "{key}");
        subject.end().await;
    }
}
