//! What a user of the server may do, and what is told of it.

use super::{ALWAYS, Redis, RedisConfig, Subject, claim, job};
use crate::{
    Driver, DriverExt, Enqueued, ErrorKind, JobId, Settle,
    conformance::{Broker, servers::redis::RedisBroker},
};
use std::time::Duration;

/// Makes a user with these rights, and a driver that is this user.
async fn user(subject: &Subject, rights: &[&str]) -> Redis {
    let docs = ["~longshore:*", "+@all", "-@admin", "-@dangerous", "+info", "+config|get"];
    let words = [&["ACL", "SETUSER", "app", "reset", "on", ">sekret"], &docs[..], rights].concat();
    let () = subject.raw(&words).await;
    let url = subject.server.url().replace("redis://", "redis://app:sekret@");
    Redis::new(RedisConfig::new(&url).unwrap()).unwrap()
}

#[tokio::test]
async fn a_user_without_channels_is_refused_before_any_work() {
    let subject = Subject::start(ALWAYS).await;
    let driver = user(&subject, &[]).await;
    let refused = driver.enqueue_one(&subject.queue, job("one")).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthorized, "{refused}");
    assert!(refused.message.contains("&longshore:*"), "{refused}");
    let found = subject.driver.inspect(&subject.queue, &JobId::new("one").unwrap()).await.unwrap();
    assert!(found.is_none(), "{found:?}");
    let driver = user(&subject, &["&longshore:*"]).await;
    driver.enqueue_one(&subject.queue, job("one")).await.unwrap();
    driver.close().await;
    subject.end().await;
}

#[tokio::test]
async fn channels_that_are_lost_later_cost_wake_ups_alone() {
    let subject = Subject::start(ALWAYS).await;
    let driver = user(&subject, &["&longshore:*"]).await;
    driver.enqueue_one(&subject.queue, job("one")).await.unwrap();
    let () = subject.raw(&["ACL", "SETUSER", "app", "resetchannels"]).await;
    let added = driver.enqueue_one(&subject.queue, job("two")).await;
    assert!(matches!(added, Ok(Enqueued::Created { .. })), "{added:?}");
    // Somebody stands in the line of those who wait.
    let () = subject.raw(&["ZADD", "longshore:{test}:w", "1", "nobody/1"]).await;
    driver.enqueue_one(&subject.queue, job("three")).await.unwrap();
    let claimed = driver.claim(&subject.queue, claim(10, Duration::ZERO)).await.unwrap();
    assert_eq!(claimed.len(), 3);
    for job in &claimed {
        let succeed = Settle::Succeed { result: None };
        driver.settle_one(&subject.queue, &job.receipt, succeed).await.unwrap();
    }
    driver.close().await;
    subject.end().await;
}

#[tokio::test]
async fn an_error_inside_a_script_leaves_open_what_was_done() {
    let subject = Subject::start(ALWAYS).await;
    // The last thing that the script looks at, when the job is there already.
    let () = subject.raw(&["SET", "longshore:{test}:w", "nonsense"]).await;
    let broken = subject.enqueue("one").await.unwrap_err();
    assert!(subject.driver.inspect(&subject.queue, &JobId::new("one").unwrap()).await.unwrap().is_some());
    assert_eq!(broken.kind, ErrorKind::Ambiguous, "{broken}");
    assert!(broken.message.contains("WRONGTYPE") && broken.message.contains("test"), "{broken}");
    subject.end().await;
}

#[tokio::test]
async fn a_password_that_the_server_repeats_is_not_shown() {
    let server = RedisBroker::start(&["--rename-command", "HELLO", ""]).await.unwrap();
    let url = server.url().replace("redis://", "redis://default:sekret@");
    let driver = Redis::new(RedisConfig::new(&url).unwrap()).unwrap();
    let error = driver.probe().await.unwrap_err();
    assert!(!error.message.contains("sekret"), "{error}");
    assert!(error.message.contains("HELLO"), "{error}");
    server.stop().await;
}
