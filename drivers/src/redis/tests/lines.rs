//! Lines of Fifo queues, whoever writes to them and whatever is damaged in them.

use super::{super::scripts, ALWAYS, Subject, claim, declaration, job};
use crate::{
    Claimed, Declaration, Driver, DriverExt, JobState, NewJob, Ordering, QueueName, QueueSettings, Settle,
};
use redis::Value;
use std::time::Duration;

const F: &str = "longshore:{line}:F";

fn line() -> QueueName {
    "line".parse().unwrap()
}

/// A Fifo queue on a server.
async fn start() -> Subject {
    let subject = Subject::start(ALWAYS).await;
    let settings = QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() };
    subject.driver.declare(&line(), Declaration { settings, ..declaration() }).await.unwrap();
    subject
}

fn keyed(id: &str) -> NewJob {
    NewJob { ordering_key: Some("k".into()), ..job(id) }
}

async fn enqueue(subject: &Subject, id: &str) {
    subject.driver.enqueue_one(&line(), keyed(id)).await.unwrap();
}

async fn next(subject: &Subject) -> Vec<Claimed> {
    subject.driver.claim(&line(), claim(10, Duration::ZERO)).await.unwrap()
}

/// What a producer without Longshore is answered: id, type, media type, payload, delay, ordering key of each job.
async fn produce(subject: &Subject, jobs: &[[&str; 6]]) -> Vec<Value> {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(scripts::ENQUEUE.text).arg(1).arg("longshore:{line}:q").arg("longshore").arg("");
    for [id, kind, media, payload, delay, key] in jobs {
        cmd.arg(*id).arg(*kind).arg(*media).arg(*payload).arg(*delay).arg("").arg("").arg("").arg(*key);
    }
    cmd.query_async(&mut subject.raw.clone()).await.unwrap()
}

#[tokio::test]
async fn a_job_that_breaks_a_limit_is_refused_alone_and_leaves_nothing() {
    let subject = start().await;
    let long = "x".repeat(201);
    let heavy = "x".repeat(1024 * 1024 + 1);
    let good = ["good", "mail", "text/plain", "{}", "0", "k"];
    let bad = [
        ["", "mail", "text/plain", "{}", "0", "k1"],
        ["a b", "mail", "text/plain", "{}", "0", "k2"],
        [&long, "mail", "text/plain", "{}", "0", "k3"],
        ["b1", "", "text/plain", "{}", "0", "k4"],
        ["b2", "a\"b", "text/plain", "{}", "0", "k5"],
        ["b3", &long, "text/plain", "{}", "0", "k6"],
        ["b4", "mail", "text\nplain", "{}", "0", "k7"],
        ["b5", "mail", &long, "{}", "0", "k8"],
        ["b6", "mail", "text/plain", &heavy, "0", "k9"],
        ["b7", "mail", "text/plain", "{}", "", "k10"],
        ["b8", "mail", "text/plain", "{}", "soon", "k11"],
        ["b9", "mail", "text/plain", "{}", "-1", "k12"],
        ["b10", "mail", "text/plain", "{}", "nan", "k13"],
        ["b11", "mail", "text/plain", "{}", "31622400001", "k14"],
        ["b12", "mail", "text/plain", "{}", "0", "k k"],
        ["b13", "mail", "text/plain", "{}", "0", "k\u{fc}"],
        ["b14", "mail", "text/plain", "{}", "0", "k\\"],
        ["b15", "mail", "text/plain", "{}", "0", &long],
    ];
    let jobs: Vec<_> = std::iter::once(good).chain(bad).collect();
    let answer = produce(&subject, &jobs).await;
    let codes = format!("C{}", "I".repeat(bad.len()));
    assert_eq!(answer[..2], [Value::BulkString(b"OK".to_vec()), Value::BulkString(codes.into_bytes())]);
    let heads: Vec<String> = subject.raw(&["HKEYS", F]).await;
    assert_eq!(heads, ["k"]);
    let claimed = next(&subject).await;
    assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(subject.driver.stats(&line()).await.unwrap().parked, Some(0));
    subject.end().await;
}

/// What a producer is answered that sends these arguments behind the prefix.
async fn send(subject: &Subject, words: &[&str]) -> redis::RedisResult<Vec<Value>> {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(scripts::ENQUEUE.text).arg(1).arg("longshore:{line}:q").arg("longshore").arg(words);
    cmd.query_async(&mut subject.raw.clone()).await
}

#[tokio::test]
async fn a_call_with_a_part_of_a_job_does_nothing() {
    let subject = start().await;
    for words in [
        &["", "one", "mail", "text/plain", "{}", "0", "", "", "", "k", "two", "mail"][..],
        &[],
        &["same"],
        &["same", "mail"],
        &["same", "mail", "text/plain", "one", "{}", "two"],
    ] {
        let answer = send(&subject, words).await;
        assert!(answer.is_err(), "{words:?}: {answer:?}");
    }
    assert!(next(&subject).await.is_empty());
    subject.end().await;
}

#[tokio::test]
async fn the_short_form_keeps_the_same_limits() {
    let subject = start().await;
    let (long, heavy) = ("x".repeat(201), "x".repeat(1024 * 1024 + 1));
    let calls: [(&[&str], &str); 7] = [
        (&["same", "mail", "text/plain", "a b", "{}", "", "{}", &long, "{}", "good", "{}"], "IIIC"),
        (&["same", "mail", "text/plain; charset=utf-8", "heavy", &heavy], "I"),
        (&["same", "", "text/plain", "one", "{}"], "I"),
        (&["same", "a\"b", "text/plain", "one", "{}", "two", "{}"], "II"),
        (&["same", "mail", "text\nplain", "one", "{}"], "I"),
        (&["same", "mail", &long, "one", "{}"], "I"),
        (&["same", "mail", "text/plain"], ""),
    ];
    for (words, codes) in calls {
        let answer = send(&subject, words).await.unwrap();
        assert_eq!(answer[1], Value::BulkString(codes.into()), "{:?}", &words[..3]);
    }
    let claimed = next(&subject).await;
    assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["good"]);
    assert_eq!(subject.driver.stats(&line()).await.unwrap().parked, Some(0));
    subject.end().await;
}

/// Jobs come one after the other, in this order.
async fn come(subject: &Subject, expected: &[&str]) {
    for id in expected {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let claimed = loop {
            let claimed = next(subject).await;
            if !claimed.is_empty() {
                break claimed;
            }
            assert!(tokio::time::Instant::now() < deadline, "{id}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), [*id]);
        let succeed = Settle::Succeed { result: None };
        subject.driver.settle_one(&line(), &claimed[0].receipt, succeed).await.unwrap();
    }
}

#[tokio::test]
async fn jobs_of_one_call_stand_in_their_line_in_their_order() {
    let subject = start().await;
    let jobs = ["one", "two", "three"].map(|id| [id, "mail", "text/plain", "{}", "0", "k"]);
    let answer = produce(&subject, &jobs).await;
    assert_eq!(answer[1], Value::BulkString(b"CCC".to_vec()));
    come(&subject, &["one", "two", "three"]).await;
    subject.end().await;
}

#[tokio::test]
async fn a_long_line_of_damaged_jobs_holds_up_nobody_who_comes_behind() {
    let subject = start().await;
    let ids: Vec<_> = (0..150).map(|index| format!("damaged-{index}")).collect();
    for id in &ids {
        enqueue(&subject, id).await;
    }
    for id in &ids {
        let () = subject.raw(&["HSET", "longshore:{line}:t", id, "nonsense"]).await;
    }
    // Both come while the line goes past a hundred jobs at a time.
    let jobs = ["one", "two"].map(|id| [id, "mail", "text/plain", "{}", "0", "k"]);
    let answer = produce(&subject, &jobs).await;
    assert_eq!(answer[1], Value::BulkString(b"CC".to_vec()));
    come(&subject, &["one", "two"]).await;
    subject.end().await;
}

#[tokio::test]
async fn jobs_that_lost_what_changed_of_them_stay_in_their_line() {
    let subject = start().await;
    for id in ["one", "two", "three"] {
        enqueue(&subject, id).await;
    }
    let short = crate::Claim { lease: Duration::from_millis(1), ..claim(10, Duration::ZERO) };
    assert_eq!(subject.driver.claim(&line(), short).await.unwrap().len(), 1);
    let () = subject.raw(&["DEL", "longshore:{line}:t"]).await;
    come(&subject, &["one", "two", "three"]).await;
    assert_eq!(subject.driver.stats(&line()).await.unwrap().parked, Some(0));
    subject.end().await;
}

#[tokio::test]
async fn a_job_at_the_head_of_its_line_that_cannot_be_read_holds_up_nobody() {
    // What is damaged, and who comes across it.
    for (damage, hash, finder) in [
        ("HDEL", "s", "claim"),
        ("HSET", "s", "claim"),
        ("HSET", "t", "claim"),
        ("HDEL", "s", "purge"),
        ("HSET", "s", "purge"),
        ("HSET", "t", "purge"),
        ("HDEL", "s", "lease"),
        ("HSET", "t", "lease"),
    ] {
        let subject = start().await;
        enqueue(&subject, "one").await;
        enqueue(&subject, "two").await;
        if finder == "lease" {
            let short = crate::Claim { lease: Duration::from_millis(1), ..claim(10, Duration::ZERO) };
            assert_eq!(subject.driver.claim(&line(), short).await.unwrap().len(), 1);
        }
        let key = format!("longshore:{{line}}:{hash}");
        let words = [damage, &key, "one", "nonsense"];
        let () = subject.raw(&words[..if damage == "HDEL" { 3 } else { 4 }]).await;
        if finder == "purge" {
            assert_eq!(subject.driver.purge(&line(), JobState::Ready, 10).await.unwrap(), 1);
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        let claimed = loop {
            let claimed = next(&subject).await;
            if !claimed.is_empty() {
                break claimed;
            }
            assert!(tokio::time::Instant::now() < deadline, "{damage} {hash}, found by a {finder}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(claimed[0].id.as_str(), "two", "{damage} {hash}, found by a {finder}");
        let succeed = Settle::Succeed { result: None };
        subject.driver.settle_one(&line(), &claimed[0].receipt, succeed).await.unwrap();
        let heads: usize = subject.raw(&["HLEN", F]).await;
        assert_eq!(heads, 0, "{damage} {hash}, found by a {finder}");
        subject.end().await;
    }
}

#[tokio::test]
async fn a_line_whose_head_is_gone_goes_on_with_the_next_job_that_comes() {
    let subject = start().await;
    enqueue(&subject, "one").await;
    enqueue(&subject, "two").await;
    let claimed = next(&subject).await;
    let () = subject.raw(&["HSET", F, "k", "00000000000001ghost"]).await;
    let succeed = Settle::Succeed { result: None };
    subject.driver.settle_one(&line(), &claimed[0].receipt, succeed).await.unwrap();
    assert!(next(&subject).await.is_empty());
    enqueue(&subject, "three").await;
    for expected in ["two", "three"] {
        let claimed = next(&subject).await;
        assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), [expected]);
        let succeed = Settle::Succeed { result: None };
        subject.driver.settle_one(&line(), &claimed[0].receipt, succeed).await.unwrap();
    }
    subject.end().await;
}
