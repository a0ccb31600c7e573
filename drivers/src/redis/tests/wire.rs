//! What `docs/wire-format-redis.md` promises to producers.

use super::{super::scripts, ALWAYS, Subject};
use crate::{Driver, ErrorKind, conformance::servers};
use std::{path::Path, process::Command};

const SCRIPT: &str = include_str!("../../../../docs/redis/enqueue.lua");
const PAGE: &str = include_str!("../../../../docs/wire-format-redis.md");

#[test]
fn the_script_for_producers_is_the_one_that_the_driver_uses() {
    assert!(
        SCRIPT == scripts::ENQUEUE.text,
        "cd drivers/src/redis/lua && cat prelude.lua need.lua enqueue.lua > ../../../../docs/redis/enqueue.lua"
    );
}

#[tokio::test]
async fn the_examples_of_the_page_enqueue() {
    let subject = Subject::start(ALWAYS).await;
    let programs = servers::redis::programs().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let port = subject.server.url().rsplit(':').next().unwrap().to_owned();
    let mut answers = Vec::new();
    for example in PAGE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        let client = format!("\"{}/redis-cli\" -p {port} ", programs.display());
        let shell = example.replace("redis-cli ", &client);
        let out = Command::new("sh").arg("-ec").arg(shell).current_dir(&root).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        answers.push(String::from_utf8(out.stdout).unwrap());
    }
    assert!(answers.iter().all(|answer| answer.starts_with("OK\n")), "{answers:?}");
    let claimed = subject.claim(10).await;
    assert_eq!(claimed.len(), 3, "one is delayed");
    assert_eq!(claimed[2].id.as_str(), "order-4714");
    assert_eq!(&claimed[2].payload.bytes[..], br#"{"to":"anybody@example.com"}"#);
    assert_eq!((claimed[2].job_type.as_str(), claimed[2].headers.len()), ("mail", 0));
    assert_eq!(claimed[0].id.as_str(), "order-4711");
    assert_eq!(claimed[0].job_type, "mail");
    assert_eq!(&claimed[0].payload.bytes[..], br#"{"to":"somebody@example.com"}"#);
    assert_eq!(claimed[0].headers.get("traceparent").map(String::as_str), Some("00-ab-cd-01"));
    assert_eq!(claimed[0].overrides.max_attempts, Some(3));
    let stats = subject.driver.stats(&subject.queue).await.unwrap();
    assert_eq!(stats.scheduled, Some(1));
    assert_eq!(subject.enqueue("order-4711").await.unwrap_err().kind, ErrorKind::Conflict);
    subject.end().await;
}
