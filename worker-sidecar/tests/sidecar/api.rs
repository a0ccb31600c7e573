//! The API that the app finds on localhost.

use crate::support::{self, Pod, eventually, job};
use longshore_drivers::{
    DeadReason, Failure, Settle,
    policy::{Handler, WorkerPolicy},
};
use serde_json::{Value, json};
use std::time::Duration;

fn parsed(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {body}"))
}

#[tokio::test]
async fn a_job_is_enqueued_with_two_lines() {
    let pod = Pod::start(|_| {}).await;
    let (status, body) =
        pod.post("/v1/queues/emails/jobs/emails.send", &[("job-id", "j1")], b"{\"to\":1}").await;
    assert_eq!((status, parsed(&body)), (201, json!({"id": "j1"})));
    let (status, body) =
        pod.post("/v1/queues/emails/jobs/emails.send", &[("job-id", "j1")], b"{\"to\":1}").await;
    assert_eq!((status, parsed(&body)), (200, json!({"id": "j1", "duplicate": true})));
    pod.settled("j1").await;
    let seen = pod.app.seen().remove(0);
    assert_eq!((seen.header("job-type"), &seen.body[..]), ("emails.send", &b"{\"to\":1}"[..]));
}

#[tokio::test]
async fn what_travels_with_a_job_reaches_the_app() {
    let pod = Pod::start(|_| {}).await;
    let headers = [
        ("content-type", "text/csv"),
        ("job-max-attempts", "9"),
        ("job-timeout-ms", "1234"),
        ("job-ordering-key", "customer:42"),
        ("job-meta-tenant", "42"),
        ("traceparent", "00-a-b-01"),
        ("cookie", "secret"),
    ];
    let (status, _) = pod.post("/v1/queues/emails/jobs/import", &headers, b"a,b").await;
    assert_eq!(status, 201);
    eventually("arrived", || async { !pod.app.seen().is_empty() }).await;
    let seen = pod.app.seen().remove(0);
    for (name, value) in [
        ("content-type", "text/csv"),
        ("job-max-attempts", "9"),
        ("job-timeout-ms", "1234"),
        ("job-ordering-key", "customer:42"),
        ("job-meta-tenant", "42"),
        ("traceparent", "00-a-b-01"),
        ("cookie", ""),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn bad_requests_are_told_why() {
    let pod = Pod::start(|_| {}).await;
    let large = vec![b'x'; 1024 * 1024 + 1];
    for (path, headers, body, expected, kind) in [
        ("/v1/queues/unknown/jobs/x", vec![], &b"{}"[..], 404, "NotFound"),
        ("/v1/queues/emails/jobs/x", vec![("job-id", "a b")], b"{}", 400, "Invalid"),
        ("/v1/queues/emails/jobs/x", vec![("job-delay-ms", "soon")], b"{}", 400, "Invalid"),
        ("/v1/queues/emails/jobs/x", vec![("job-ordering-key", "a b")], b"{}", 400, "Invalid"),
        ("/v1/queues/emails/jobs/x", vec![("job-ordering-key", "")], b"{}", 400, "Invalid"),
        ("/v1/queues/emails/jobs/x", vec![], &large, 413, "TooLarge"),
        ("/v1/jobs/nobodys/complete", vec![], b"", 409, "StaleReceipt"),
        ("/v1/jobs/nobodys/fail", vec![], b"", 409, "StaleReceipt"),
    ] {
        let (status, answer) = pod.post(path, &headers, body).await;
        assert_eq!((status, parsed(&answer)["kind"].as_str()), (expected, Some(kind)), "{path}");
    }
    let (status, _) = support::app::request(pod.api(), "POST", "/v1/queues/emails/jobs/x", &[], b"{}").await;
    assert_eq!(status, 401);
}

async fn detached(pod: &Pod) -> String {
    pod.enqueue("job-1", "status-202");
    eventually("detached", || async { !pod.app.seen().is_empty() && pod.app.running() == 0 }).await;
    assert!(pod.broker.settles("job-1").is_empty());
    pod.app.seen()[0].header("job-receipt").to_owned()
}

#[tokio::test]
async fn a_detached_job_is_completed_later() {
    let pod = Pod::start(|_| {}).await;
    let receipt = detached(&pod).await;
    let path = format!("/v1/jobs/{receipt}/complete");
    let (status, _) = pod.post(&path, &[("content-type", "application/json")], b"[1]").await;
    assert_eq!(status, 204);
    let Settle::Succeed { result: Some(result) } = pod.settled("job-1").await else {
        panic!("no result");
    };
    assert_eq!(&result.bytes[..], b"[1]");
    let (status, _) = pod.post(&path, &[], b"[1]").await;
    assert_eq!(status, 409, "once");
}

#[tokio::test]
async fn a_detached_job_fails_later() {
    let pod = Pod::start(|_| {}).await;
    let receipt = detached(&pod).await;
    let (status, _) =
        pod.post(&format!("/v1/jobs/{receipt}/fail"), &[("job-outcome", "dead")], b"no such user").await;
    assert_eq!(status, 204);
    let Settle::Bury { failure, .. } = pod.settled("job-1").await else {
        panic!("not dead");
    };
    assert_eq!(failure.message, "no such user");
}

#[tokio::test]
async fn a_detached_job_that_nobody_completes_times_out() {
    let pod = Pod::start(|policy| policy.queues[0].timeout = Duration::from_secs(3)).await;
    detached(&pod).await;
    let Settle::Retry { failure, .. } = pod.settled("job-1").await else {
        panic!("no retry");
    };
    assert_eq!(failure.reason, "Timeout");
}

#[tokio::test]
async fn a_job_may_be_completed_before_its_request_is_answered() {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    let receipt = pod.app.seen()[0].header("job-receipt").to_owned();
    assert_eq!(pod.post(&format!("/v1/jobs/{receipt}/complete"), &[], b"").await.0, 204);
    pod.app.let_go(1);
    eventually("answered", || async { pod.app.running() == 0 }).await;
    assert_eq!(pod.app.hung_up(), 0);
    assert_eq!(pod.broker.settles("job-1"), [Settle::Succeed { result: None }]);
}

async fn claim(pod: &Pod, wait: u64) -> (u16, Value) {
    let body = json!({"max": 10, "waitMs": wait, "leaseMs": 1}).to_string();
    let (status, answer) = pod.post("/v1/queues/emails/claim", &[], body.as_bytes()).await;
    (status, parsed(&answer))
}

#[tokio::test]
async fn an_app_may_pull_its_jobs() {
    let pod = Pod::start(|policy| {
        policy.handler = Handler::Pull {};
        policy.concurrency = 2;
    })
    .await;
    for number in 1..=3 {
        pod.enqueue(&format!("job-{number}"), "ok");
    }
    let (status, answer) = claim(&pod, 0).await;
    let jobs = answer["jobs"].as_array().unwrap().clone();
    assert_eq!((status, jobs.len()), (200, 2), "as many as the policy allows");
    assert_eq!(claim(&pod, 0).await.1["jobs"], json!([]));
    assert_eq!(pod.status().await["inFlight"], 2);

    let settlements =
        json!({"settlements": [{"receipt": jobs[0]["receipt"], "settle": {"succeed": {}}}]}).to_string();
    let (status, _) = pod.post("/v1/queues/emails/settle", &[], settlements.as_bytes()).await;
    assert_eq!(status, 200);
    let receipt = jobs[1]["receipt"].as_str().unwrap();
    assert_eq!(pod.post(&format!("/v1/jobs/{receipt}/complete"), &[], b"").await.0, 204);
    assert_eq!(claim(&pod, 0).await.1["jobs"].as_array().unwrap().len(), 1);
    assert!(pod.app.seen().is_empty(), "nothing is pushed");
}

pub(crate) async fn pulling(change: impl FnOnce(&mut WorkerPolicy)) -> Pod {
    Pod::start(|policy| {
        policy.handler = Handler::Pull {};
        change(policy);
    })
    .await
}

pub(crate) async fn pulled(pod: &Pod) -> Value {
    let jobs = claim(pod, 2000).await.1["jobs"].take();
    jobs[0].clone()
}

pub(crate) async fn settle(pod: &Pod, receipt: &Value, settle: Value) -> Value {
    let body = json!({"settlements": [{"receipt": receipt, "settle": settle}]}).to_string();
    let (status, answer) = pod.post("/v1/queues/emails/settle", &[], body.as_bytes()).await;
    assert_eq!(status, 200, "{answer}");
    parsed(&answer)["results"][0].clone()
}

#[tokio::test]
async fn a_pulled_job_is_told_its_bounds() {
    let pod = pulling(|_| {}).await;
    pod.enqueue("job-1", "ok");
    let headers = &pulled(&pod).await["headers"];
    assert_eq!((&headers["job-max-attempts"], &headers["job-timeout-ms"]), (&json!("3"), &json!("30000")));
    assert!(headers["job-deadline"].is_string() && headers["traceparent"].is_string(), "{headers}");
}

#[tokio::test]
async fn an_ordering_key_goes_in_and_out_as_json() {
    let pod = pulling(|_| {}).await;
    let mut new = serde_json::to_value(job("job-1", "ok")).unwrap();
    new["orderingKey"] = json!("customer:42");
    let body = json!({"jobs": [new]}).to_string();
    let (status, answer) = pod.post("/v1/queues/emails/jobs", &[], body.as_bytes()).await;
    assert_eq!((status, &parsed(&answer)["results"][0]["ok"]["created"]["id"]), (200, &json!("job-1")));
    assert_eq!(pulled(&pod).await["orderingKey"], "customer:42");
    pod.enqueue("job-2", "ok");
    let without = pulled(&pod).await;
    assert_eq!((&without["id"], without.get("orderingKey")), (&json!("job-2"), None));
}

#[tokio::test]
async fn a_pulled_jobs_retry_follows_the_policy_up_to_its_last_attempt() {
    let pod = pulling(|policy| policy.queues[0].retry.initial = Duration::from_millis(30)).await;
    pod.enqueue("job-1", "ok");
    for attempt in 1..=3 {
        let job = pulled(&pod).await;
        assert_eq!(job["attempt"], attempt);
        let retry = json!({"retry": {"failure": {"reason": "Flaky", "message": "once more"}}});
        assert_eq!(settle(&pod, &job["receipt"], retry).await, json!({"ok": null}));
    }
    let failure = Failure::new("Flaky", "once more");
    let retry = |delay| Settle::Retry { delay: Duration::from_millis(delay), failure: failure.clone() };
    let dead = Settle::Bury { reason: DeadReason::Exhausted, failure: failure.clone() };
    assert_eq!(pod.broker.settles("job-1"), [retry(30), retry(60), dead]);
    assert_eq!(pod.counted("retried").await, 2);
}

#[tokio::test]
async fn a_pulled_job_whose_time_is_up_costs_an_attempt_however_often_it_is_extended() {
    let pod = pulling(|policy| policy.queues[0].timeout = Duration::from_millis(400)).await;
    pod.enqueue("job-1", "ok");
    let job = pulled(&pod).await;
    let body = json!({"receipts": [job["receipt"]], "leaseMs": 60_000}).to_string();
    eventually("refused", || async {
        let (_, answer) = pod.post("/v1/queues/emails/extend", &[], body.as_bytes()).await;
        parsed(&answer)["results"][0]["error"]["kind"] == "StaleReceipt"
    })
    .await;
    let Settle::Retry { failure, .. } = pod.settled("job-1").await else {
        panic!("no retry");
    };
    assert_eq!(failure.reason, "Timeout");
    let late = settle(&pod, &job["receipt"], json!({"succeed": {}})).await;
    assert_eq!(late["error"]["kind"], "StaleReceipt");
}

#[tokio::test]
async fn a_queue_that_was_suspended_while_a_pull_waited_hands_out_nothing() {
    let mut pod = pulling(|_| {}).await;
    let waiting = async { claim(&pod, 5000).await.1 };
    let suspending = async {
        eventually("the claim waits", || async { pod.broker.waits() == 1 }).await;
        let mut policy = pod.policy.clone();
        policy.queues[0].suspended = true;
        policy.concurrency = 9;
        support::write(&pod.directory, &policy);
        eventually("taken", || async { pod.status().await["concurrency"] == 9 }).await;
        pod.enqueue("job-1", "ok");
    };
    let (answer, ()) = futures::join!(waiting, suspending);
    assert_eq!(answer["jobs"], json!([]));
    assert_eq!(pod.settled("job-1").await, Settle::Release { delay: Duration::ZERO });
    pod.change(|policy| policy.queues[0].suspended = false);
}

#[tokio::test]
async fn an_app_that_pulls_counts_as_claiming() {
    let pod = pulling(|_| {}).await;
    eventually("shown", || async { pod.admin("/metrics").await.1.contains("sidecar_claiming 1") }).await;
}

#[tokio::test]
async fn a_pushed_job_that_its_app_settles_itself_is_not_hung_up_on() {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    let receipt = json!(pod.app.seen()[0].header("job-receipt"));
    assert_eq!(settle(&pod, &receipt, json!({"succeed": {}})).await, json!({"ok": null}));
    pod.app.let_go(1);
    eventually("answered", || async { pod.app.running() == 0 }).await;
    assert_eq!(pod.app.hung_up(), 0);
    assert_eq!(pod.broker.settles("job-1"), [Settle::Succeed { result: None }]);
}

#[tokio::test]
async fn a_header_that_does_not_travel_is_refused_by_name() {
    let pod = Pod::start(|_| {}).await;
    for (name, expected) in [("cookie", 400), ("Job-Meta-Tenant", 200), ("job-id", 400), ("baggage", 200)] {
        let mut new = serde_json::to_value(job(&format!("job-{expected}-{name}"), "ok")).unwrap();
        new["headers"] = json!({name: "x"});
        let body = json!({"jobs": [new]}).to_string();
        let (status, answer) = pod.post("/v1/queues/emails/jobs", &[], body.as_bytes()).await;
        assert_eq!(status, expected, "{name}: {answer}");
        assert_eq!(answer.contains("does not travel"), expected == 400, "{answer}");
    }
}

#[tokio::test]
async fn pulled_jobs_are_released_at_the_end() {
    let mut pod = Pod::start(|policy| policy.handler = Handler::Pull {}).await;
    pod.enqueue("job-1", "ok");
    assert_eq!(claim(&pod, 0).await.1["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(pod.post("/v1/drain", &[], b"").await.0, 202);
    let (status, answer) = claim(&pod, 1000).await;
    assert_eq!((status, answer["kind"].as_str()), (503, Some("Unavailable")));
    let sidecar = pod.sidecar.take().unwrap();
    sidecar.terminator().terminate().await;
    sidecar.finished().await.unwrap();
    assert_eq!(pod.broker.settles("job-1"), [Settle::Release { delay: Duration::ZERO }]);
}

#[tokio::test]
async fn pushed_jobs_cannot_be_pulled() {
    let pod = Pod::start(|_| {}).await;
    assert_eq!(claim(&pod, 0).await.0, 501);
}

#[tokio::test]
async fn an_app_cannot_write_to_workflows() {
    let pod = Pod::start(|_| {}).await;
    let mut new = serde_json::to_value(job("job-1", "ok")).unwrap();
    new["notify"] = json!({"address": "operator", "context": "x"});
    let body = json!({"jobs": [new]}).to_string();
    let (status, _) = pod.post("/v1/queues/emails/jobs", &[], body.as_bytes()).await;
    assert_eq!(status, 400);
}
