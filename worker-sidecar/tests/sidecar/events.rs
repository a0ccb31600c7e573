//! Events of what no real broker and no app of the conformance suite does on demand. The sidecar runs in the test's own thread,
//! so its log is that of the thread.

use crate::{
    api::{pulled, pulling, settle},
    support::{Pod, eventually},
};
use longshore_drivers::Settle;
use longshore_worker_sidecar::events::filter;
use serde_json::{Value, json};
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::EnvFilter;

/// The log of this thread, with events.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn open() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(EnvFilter::new(filter(Some("longshore::events=info"))))
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// What is told of a job: each event, and the word that says more.
    fn of(&self, job: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let word = |line: &Value| {
            let parts = [&line["event"], &line["reason"], &line["failure"], &line["settle"]];
            parts.into_iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        };
        lines.filter(|line| line["job"] == job).map(|line| word(&line)).collect()
    }

    async fn tells(&self, job: &str, count: usize) -> Vec<String> {
        eventually("it is told", || async { self.of(job).len() >= count }).await;
        self.of(job)
    }
}

#[tokio::test]
async fn jobs_that_the_app_pulls_are_told_too() {
    let (log, _guard) = Log::open();
    let pod = pulling(|policy| policy.queues[0].lease = Duration::from_secs(2)).await;
    pod.enqueue("done", "ok");
    let done = pulled(&pod).await;
    pod.enqueue("forgotten", "ok");
    assert_eq!(pulled(&pod).await["id"], "forgotten");
    assert_eq!(settle(&pod, &done["receipt"], json!({"succeed": {}})).await, json!({"ok": null}));
    pod.enqueue("failed", "ok");
    let failed = pulled(&pod).await;
    let retry = json!({"retry": {"delayMs": 60_000, "failure": {"reason": "no word", "message": "secret"}}});
    assert_eq!(settle(&pod, &failed["receipt"], retry).await, json!({"ok": null}));
    let told = |end: &str| ["job.claimed.v1", "job.started.v1", end].map(str::to_owned);
    assert_eq!(log.tells("done", 3).await, told("job.succeeded.v1"));
    assert_eq!(log.tells("failed", 3).await, told("job.retried.v1 Unnamed"));
    assert_eq!(log.tells("forgotten", 3).await, told("job.lease_lost.v1 NotExtended"));
}

#[tokio::test]
async fn a_detached_job_is_told_to_its_end() {
    let (log, _guard) = Log::open();
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "status-202");
    log.tells("job-1", 3).await;
    let receipt = pod.app.seen()[0].header("job-receipt").to_owned();
    assert_eq!(pod.post(&format!("/v1/jobs/{receipt}/complete"), &[], b"").await.0, 204);
    let expected = ["job.claimed.v1", "job.started.v1", "job.detached.v1", "job.succeeded.v1"];
    assert_eq!(log.tells("job-1", 4).await, expected);
}

#[tokio::test]
async fn a_job_that_came_too_late_is_told_as_lost_before_its_start() {
    let (log, _guard) = Log::open();
    let pod = Pod::start(|policy| policy.queues[0].lease = Duration::from_millis(400)).await;
    pod.broker.answer_late(Duration::from_millis(900));
    pod.enqueue("job-1", "ok");
    let told = log.tells("job-1", 2).await;
    assert_eq!(told[..2], ["job.claimed.v1", "job.lease_lost.v1 BeforeStart"]);
}

#[tokio::test]
async fn a_settle_that_is_given_up_is_told() {
    let (log, _guard) = Log::open();
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.poison("job-1");
    pod.app.let_go(1);
    let expected = ["job.claimed.v1", "job.started.v1", "job.settle_abandoned.v1 succeeded"];
    assert_eq!(log.tells("job-1", 3).await, expected);
}

#[tokio::test]
async fn a_job_that_may_not_start_is_told_as_given_back() {
    let (log, _guard) = Log::open();
    let mut pod = Pod::start(|_| {}).await;
    eventually("a claim waits", || async { pod.broker.waits() == 1 }).await;
    pod.change(|policy| (policy.queues[0].suspended, policy.concurrency) = (true, 9));
    eventually("the policy is taken", || async { pod.status().await["concurrency"] == 9 }).await;
    pod.enqueue("job-1", "ok");
    assert_eq!(pod.settled("job-1").await, Settle::Release { delay: Duration::ZERO });
    assert_eq!(log.tells("job-1", 2).await, ["job.claimed.v1", "job.released.v1 NotStarted"]);
}
