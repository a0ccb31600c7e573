//! Looking at jobs and mending them through the local API, over the reference model instead of the broker that does as it
//! is told.

use crate::support::{self, Pod, app::App, broker::Broker, eventually};
use longshore_drivers::{Declaration, DynDriver, Owner, QueueSettings, memory::Memory};
use serde_json::{Value, json};
use std::sync::Arc;

async fn pod() -> Pod {
    let memory: DynDriver = Arc::new(Memory::default());
    let owner = Owner { installation: "test".into(), uid: "emails".into() };
    let declaration = Declaration { owner, settings: QueueSettings::default(), adopt: false };
    memory.declare(&support::queue("emails").physical, declaration).await.unwrap();
    Pod::over(memory, Arc::new(Broker::default()), App::start().await, |_| {}).await
}

async fn enqueue(pod: &Pod, id: &str, job_type: &str, delay: &str) {
    let path = format!("/v1/queues/emails/jobs/{job_type}");
    let (status, answer) = pod.post(&path, &[("job-id", id), ("job-delay-ms", delay)], b"{}").await;
    assert_eq!(status, 201, "{answer}");
}

async fn state(pod: &Pod, id: &str) -> Value {
    pod.get(&format!("/v1/queues/emails/jobs/{id}")).await["job"]["state"].take()
}

async fn listed(pod: &Pod, state: &str) -> Vec<String> {
    let page = pod.get(&format!("/v1/queues/emails/jobs?state={state}")).await;
    let jobs = page["jobs"].as_array().unwrap();
    jobs.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

async fn ask(pod: &Pod, call: &str, ids: &[&str]) -> Value {
    let body = json!({ "ids": ids }).to_string();
    let (status, answer) = pod.post(&format!("/v1/queues/emails/{call}"), &[], body.as_bytes()).await;
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str::<Value>(&answer).unwrap()["results"].take()
}

#[tokio::test]
async fn dead_jobs_are_found_and_run_again() {
    let pod = pod().await;
    enqueue(&pod, "good", "json", "0").await;
    enqueue(&pod, "bad", "status-400", "0").await;
    eventually("both ended", || async {
        state(&pod, "good").await == "succeeded" && state(&pod, "bad").await == "dead"
    })
    .await;
    assert_eq!(listed(&pod, "dead").await, ["bad"]);
    let job = &pod.get("/v1/queues/emails/jobs/bad").await["job"];
    assert_eq!(job["lastFailure"]["reason"], "HandlerRejected");
    assert_eq!(pod.get("/v1/queues/emails/jobs/unknown").await["job"], Value::Null);
    assert_eq!(ask(&pod, "results", &["good"]).await[0]["json"], json!({"sent": 3}));
    assert_eq!(pod.get("/v1/queues/emails/stats").await["dead"], 1);

    let answers = ask(&pod, "redrive", &["bad", "unknown"]).await;
    assert_eq!((&answers[0], &answers[1]["error"]["kind"]), (&json!({"ok": null}), &json!("NotFound")));
    eventually("it ran again", || async {
        pod.app.seen().iter().filter(|seen| seen.header("job-id") == "bad").count() == 2
    })
    .await;
}

#[tokio::test]
async fn waiting_and_running_jobs_are_cancelled() {
    let pod = pod().await;
    enqueue(&pod, "later", "json", "3600000").await;
    assert_eq!(listed(&pod, "scheduled").await, ["later"]);
    assert_eq!(ask(&pod, "cancel", &["later"]).await[0], json!({"ok": "cancelled"}));
    assert_eq!(state(&pod, "later").await, "cancelled");
    let mut pod = pod;
    pod.change(|policy| policy.queues[0].lease = std::time::Duration::from_secs(4));
    pod.change(|policy| policy.concurrency = 3);
    eventually("taken", || async { pod.status().await["concurrency"] == 3 }).await;
    enqueue(&pod, "now", "hang", "0").await;
    eventually("runs", || async { pod.app.running() == 1 }).await;
    assert_eq!(ask(&pod, "cancel", &["now"]).await[0], json!({"ok": "active"}));
    eventually("hung up", || async { pod.app.hung_up() == 1 }).await;
    eventually("cancelled", || async { state(&pod, "now").await == "cancelled" }).await;
}

#[tokio::test]
async fn a_detached_job_is_completed_at_the_broker() {
    let pod = pod().await;
    enqueue(&pod, "job-1", "status-202", "0").await;
    eventually("detached", || async { !pod.app.seen().is_empty() && pod.app.running() == 0 }).await;
    let receipt = pod.app.seen()[0].header("job-receipt").to_owned();
    assert_eq!(state(&pod, "job-1").await, "active");
    assert_eq!(pod.post(&format!("/v1/jobs/{receipt}/complete"), &[], b"[1]").await.0, 204);
    assert_eq!(state(&pod, "job-1").await, "succeeded");
}
