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
async fn what_stood_aside_is_not_counted_any_more_when_it_is_gone() {
    let subject = Subject::start(ALWAYS).await;
    let mut declaration = super::declaration();
    declaration.settings.retain_dead = Duration::from_millis(1);
    subject.driver.declare(&subject.queue, declaration).await.unwrap();
    let parked = async || subject.driver.stats(&subject.queue).await.unwrap().parked;
    // Long ones have their payloads apart.
    let long = |id| {
        let mut job = told(id);
        job.payload = crate::Payload::json("0".repeat(10_000));
        job
    };
    let nobody = |id| crate::NewJob { notify: None, ..long(id) };
    // Dead, old, and replaced by a job with the same id.
    subject.driver.enqueue_one(&subject.queue, nobody("same")).await.unwrap();
    let () = subject.raw(&["HDEL", &key("b"), "same"]).await;
    assert!(subject.claim(1).await.is_empty());
    tokio::time::sleep(Duration::from_millis(5)).await;
    subject.driver.enqueue_one(&subject.queue, nobody("same")).await.unwrap();
    assert_eq!(parked().await, Some(0));
    assert_eq!(subject.claim(1).await.len(), 1);
    // Without anything that would remember it.
    subject.driver.enqueue_one(&subject.queue, long("gone")).await.unwrap();
    let () = subject.raw(&["HDEL", &key("s"), "gone"]).await;
    assert!(subject.claim(1).await.is_empty());
    assert_eq!(parked().await, Some(1));
    subject.driver.purge(&subject.queue, JobState::Dead, 10).await.unwrap();
    assert_eq!(parked().await, Some(0));
    let bodies: Vec<String> = subject.raw(&["HKEYS", &key("b")]).await;
    assert_eq!(bodies, ["same"]);
    // Whoever waits for it hears of its end.
    let completions = read(&subject).await.completions;
    assert_eq!(completions.iter().map(|one| one.job.as_str()).collect::<Vec<_>>(), ["gone"]);
    assert_eq!(completions[0].outcome, Outcome::Purged);
    subject.end().await;
}

#[tokio::test]
async fn a_job_that_lost_one_of_its_two_parts_holds_up_neither_itself_nor_its_id() {
    let subject = Subject::start(ALWAYS).await;
    // Without what never changes the id is free, and nothing of the old job speaks for the new one.
    subject.enqueue("one").await.unwrap();
    let old = subject.claim(1).await;
    let () = subject.raw(&["HDEL", &key("s"), "one"]).await;
    assert!(matches!(subject.enqueue("one").await, Ok(crate::Enqueued::Created { .. })));
    let claimed = subject.claim(1).await;
    assert_eq!((claimed[0].id.as_str(), claimed[0].delivery), ("one", 1));
    assert!(subject.succeed(&old[0]).await.is_err());
    subject.succeed(&claimed[0]).await.unwrap();
    // Without what changed it comes again when its lease is over.
    subject.enqueue("two").await.unwrap();
    let short = crate::Claim { lease: Duration::from_millis(1), ..super::claim(1, Duration::ZERO) };
    let old = subject.driver.claim(&subject.queue, short).await.unwrap();
    let () = subject.raw(&["HDEL", &key("t"), "two"]).await;
    let again = subject.driver.claim(&subject.queue, super::claim(1, Duration::from_secs(5))).await.unwrap();
    assert_eq!(again.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["two"]);
    assert!(subject.succeed(&old[0]).await.is_err());
    subject.succeed(&again[0]).await.unwrap();
    // When it was over it isn't run again, and can be purged.
    for id in ["three", "four"] {
        subject.driver.enqueue_one(&subject.queue, told(id)).await.unwrap();
        let claimed = subject.claim(1).await;
        subject.succeed(&claimed[0]).await.unwrap();
        let () = subject.raw(&["HDEL", &key("t"), id]).await;
    }
    let names: Vec<String> = subject.raw(&["ZRANGE", &key("S"), "-2", "-1"]).await;
    // Its end was told, so it is pinned: one for more than thirty days, the other one not any more.
    let (seconds, _): (u64, u64) = subject.raw(&["TIME"]).await;
    let now = (seconds * 1000).to_string();
    let () = subject.raw(&["ZADD", &key("S"), "4503599627370497", &names[0], &now, &names[1]]).await;
    assert_eq!(subject.driver.stats(&subject.queue).await.unwrap().parked, Some(1));
    assert!(subject.claim(1).await.is_empty());
    assert_eq!(subject.driver.purge(&subject.queue, JobState::Succeeded, 10).await.unwrap(), 3);
    let left: usize = subject.raw(&["ZCARD", &key("S")]).await;
    assert_eq!(left, 0);
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
    assert_eq!(broken.kind, ErrorKind::Ambiguous);
    assert!(broken.message.contains("WRONGTYPE") && broken.message.contains("test"), "{broken}");
    let broken = subject.driver.claim(&subject.queue, super::claim(1, Duration::ZERO)).await.unwrap_err();
    assert_eq!(broken.kind, ErrorKind::Fatal);
    assert!(broken.message.contains("test"), "{broken}");
    subject.driver.enqueue_one(&other, job("one")).await.unwrap();
    let claimed = subject.driver.claim(&other, super::claim(1, Duration::ZERO)).await.unwrap();
    let succeed = Settle::Succeed { result: None };
    subject.driver.settle_one(&other, &claimed[0].receipt, succeed).await.unwrap();
    subject.end().await;
}
