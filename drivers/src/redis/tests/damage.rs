//! What can't be read costs itself, not its neighbours.

use super::{ALWAYS, Subject, job};
use crate::{
    Address, Driver, DriverExt, ErrorKind, JobState, ListJobs, Notify, Outcome, ReadCompletions, Settle,
};
use std::time::Duration;

const KEYS: &str = "longshore:{test}:";

fn key(suffix: &str) -> String {
    format!("{KEYS}{suffix}")
}

fn told(id: &str) -> crate::NewJob {
    job(id).with_notify(Notify { address: Address::new("a").unwrap(), context: "context".into() })
}

async fn read(subject: &Subject) -> crate::CompletionPage {
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: Duration::from_millis(1) };
    subject.driver.completions(&Address::new("a").unwrap(), read).await.unwrap()
}

#[tokio::test]
async fn jobs_that_cannot_be_read_stand_aside() {
    let subject = Subject::start(ALWAYS).await;
    for id in ["state", "gone", "payload", "lost-extras", "extras", "whole"] {
        let mut job = told(id);
        job.headers.insert("x".into(), "y".into());
        if id == "payload" {
            // A short one stands with the state.
            job.payload = crate::Payload::json("0".repeat(10_000));
        }
        subject.driver.enqueue_one(&subject.queue, job).await.unwrap();
    }
    let () = subject.raw(&["HSET", &key("s"), "state", "nonsense"]).await;
    let () = subject.raw(&["HDEL", &key("s"), "gone"]).await;
    let () = subject.raw(&["HDEL", &key("b"), "payload"]).await;
    let () = subject.raw(&["HDEL", &key("m"), "lost-extras"]).await;
    let () = subject.raw(&["HSET", &key("m"), "extras", "{broken"]).await;
    let claimed = subject.claim(10).await;
    assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["whole"]);
    subject.succeed(&claimed[0]).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while subject.driver.stats(&subject.queue).await.unwrap().parked != Some(5) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", subject.driver.stats(&subject.queue).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Whose end can be told, is told of.
    let completions = read(&subject).await.completions;
    let dead = completions.iter().filter(|completion| {
        matches!(&completion.outcome, Outcome::Dead { failure, .. } if failure.reason == "Unreadable")
    });
    assert_eq!((dead.count(), completions.len()), (3, 4));
    let answer = subject.enqueue("state").await;
    assert_eq!(answer.unwrap_err().kind, ErrorKind::Fatal);
    let dead = ListJobs { state: JobState::Dead, limit: 10, after: None };
    assert_eq!(subject.driver.list(&subject.queue, dead).await.unwrap().jobs.len(), 3);
    subject.end().await;
}

#[tokio::test]
async fn a_completion_that_cannot_be_read_stands_aside() {
    let subject = Subject::start(ALWAYS).await;
    for id in ["broken", "whole"] {
        subject.driver.enqueue_one(&subject.queue, told(id)).await.unwrap();
        let claimed = subject.claim(1).await;
        subject.succeed(&claimed[0]).await.unwrap();
    }
    let () = subject.raw(&["HSET", &key("c"), "broken", "nonsense"]).await;
    let page = read(&subject).await;
    assert_eq!(page.completions.iter().map(|one| one.job.as_str()).collect::<Vec<_>>(), ["whole"]);
    assert!(page.caught_up);
    assert_eq!(subject.driver.stats(&subject.queue).await.unwrap().parked, Some(1));
    subject.end().await;
}

#[tokio::test]
async fn a_key_of_another_type_is_the_end_of_its_queue_alone() {
    let subject = Subject::start(ALWAYS).await;
    let other = "other".parse().unwrap();
    subject.driver.declare(&other, super::declaration()).await.unwrap();
    let () = subject.raw(&["SET", &key("R"), "nonsense"]).await;
    let broken = subject.enqueue("one").await.unwrap_err();
    assert_eq!(broken.kind, ErrorKind::Fatal);
    assert!(broken.message.contains("test"), "{broken}");
    subject.driver.enqueue_one(&other, job("one")).await.unwrap();
    let claimed = subject.driver.claim(&other, super::claim(1, Duration::ZERO)).await.unwrap();
    let succeed = Settle::Succeed { result: None };
    subject.driver.settle_one(&other, &claimed[0].receipt, succeed).await.unwrap();
    subject.end().await;
}
