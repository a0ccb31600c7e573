//! Strict order reaches the app: with room for many jobs, those of one key come one after the other.

use crate::support::{Pod, app::App, broker::Broker, eventually};
use longshore_drivers::{
    Declaration, DynDriver, JobId, NewJob, Ordering, Owner, Payload, QueueName, QueueSettings,
    memory::Memory, policy::Handler,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

const KEYS: usize = 3;
const JOBS: usize = 30;

/// A pod on a queue in strict order, which holds jobs of some keys.
async fn pod(job_type: &str, pull: bool) -> (Pod, DynDriver, QueueName) {
    let driver: DynDriver = Arc::new(Memory::new());
    let queue: QueueName = "test.shop.emails".parse().unwrap();
    let declaration = Declaration {
        owner: Owner { installation: "test".into(), uid: "u".into() },
        settings: QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() },
        adopt: false,
    };
    driver.declare(&queue, declaration).await.unwrap();
    let jobs = (0..JOBS).map(|index| NewJob {
        ordering_key: Some(format!("key-{}", index % KEYS)),
        ..NewJob::new(job_type, Payload::json("{}")).with_id(JobId::new(format!("{index:03}")).unwrap())
    });
    driver.enqueue(&queue, jobs.collect()).await.unwrap();
    let pod = Pod::over(driver.clone(), Arc::new(Broker::default()), App::start().await, |policy| {
        policy.concurrency = 8;
        policy.queues[0].retry.initial = Duration::from_millis(5);
        if pull {
            policy.handler = Handler::Pull {};
        }
    })
    .await;
    (pod, driver, queue)
}

/// The ids of each key, in the order of `seen`.
fn by_key<'a>(seen: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, Vec<String>> {
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    seen.for_each(|(key, id)| lines.entry(key.to_owned()).or_default().push(id.to_owned()));
    lines
}

fn expected(times: usize) -> BTreeMap<String, Vec<String>> {
    let line = |key: usize| {
        let ids = (key..JOBS).step_by(KEYS);
        ids.flat_map(|index| std::iter::repeat_n(format!("{index:03}"), times)).collect()
    };
    (0..KEYS).map(|key| (format!("key-{key}"), line(key))).collect()
}

#[tokio::test]
async fn pushed_jobs_of_one_key_come_one_after_the_other() {
    let (pod, driver, queue) = pod("wait", false).await;
    // As many run as there are keys, although there is room for more.
    for done in 0..JOBS {
        let left = KEYS.min(JOBS - done);
        eventually("the next ones run", || async { pod.app.running() == left }).await;
        pod.app.let_go(1);
        let behind = (JOBS - KEYS).saturating_sub(done + 1) as u64;
        eventually("one is over", || async { driver.stats(&queue).await.unwrap().blocked == Some(behind) })
            .await;
    }
    let seen = pod.app.seen();
    assert_eq!(
        by_key(seen.iter().map(|seen| (seen.header("job-ordering-key"), seen.header("job-id")))),
        expected(1)
    );
    assert_eq!(pod.app.most(), KEYS);
}

#[tokio::test]
async fn attempts_of_a_job_come_before_the_next_one_of_its_key() {
    // Three attempts each, all of which fail.
    let (pod, driver, queue) = pod("status-500", false).await;
    eventually("all are dead", || async { driver.stats(&queue).await.unwrap().dead == Some(JOBS as u64) })
        .await;
    let seen = pod.app.seen();
    assert_eq!(
        by_key(seen.iter().map(|seen| (seen.header("job-ordering-key"), seen.header("job-id")))),
        expected(3)
    );
}

#[tokio::test]
async fn pulled_jobs_of_one_key_come_one_after_the_other() {
    let (pod, _, _) = pod("ok", true).await;
    let mut seen = Vec::new();
    while seen.len() < JOBS {
        let (status, answer) =
            pod.post("/v1/queues/emails/claim", &[], br#"{"max": 8, "waitMs": 5000, "leaseMs": 1}"#).await;
        assert_eq!(status, 200, "{answer}");
        let jobs = serde_json::from_str::<Value>(&answer).unwrap()["jobs"].as_array().unwrap().clone();
        assert!((1..=KEYS).contains(&jobs.len()), "{jobs:?}");
        for job in jobs {
            seen.push((
                job["orderingKey"].as_str().unwrap().to_owned(),
                job["id"].as_str().unwrap().to_owned(),
            ));
            let settle =
                json!({"settlements": [{"receipt": job["receipt"], "settle": {"succeed": {}}}]}).to_string();
            assert_eq!(pod.post("/v1/queues/emails/settle", &[], settle.as_bytes()).await.0, 200);
        }
    }
    assert_eq!(by_key(seen.iter().map(|(key, id)| (key.as_str(), id.as_str()))), expected(1));
}
