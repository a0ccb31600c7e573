//! How jobs come to handlers, and how often.

use crate::frame::{
    app::Order,
    ledger::Ended,
    site::{QUEUE, Site, job, jobs, open, texts},
};
use crate::{
    bounds::{Bytes, at_most, over},
    judge,
};
use longshore_drivers::{DeadReason, ErrorKind, JobId, JobState, NewJob, Outcome, Payload};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::time::sleep;

pub(super) async fn wait_all_processed(site: Site) {
    let _pods = [site.pod(|_| {}).await, site.pod(|_| {}).await];
    let (ids, jobs) = jobs("job", over("jobs", 200_usize), &Order { work_ms: 10, ..Order::default() });
    site.enqueue(jobs).await;
    let read_empty = loop {
        if open(&site.stats().await) == Some(0) {
            break Instant::now();
        }
        sleep(Duration::from_millis(2)).await;
    };
    let runs = site.ledger.runs();
    assert_eq!(runs.len(), ids.len(), "runs");
    assert!(runs.iter().all(|run| run.ended_at() < read_empty), "a handler ended after the queue read empty");
    site.succeed(texts(&ids)).await;
}

pub(super) async fn poison_message_max_retry(site: Site) {
    let most = at_most("attempts", 3_u32);
    let own_most = at_most("attempts of a job with an own limit", 2_u32);
    let _pod = site.pod(|policy| policy.queues[0].retry.max_attempts = most).await;
    let poison = Order { answers: vec![500], ..Order::default() };
    let own = NewJob {
        overrides: longshore_drivers::Overrides { max_attempts: Some(own_most), timeout: None },
        ..job("own", &poison)
    };
    site.enqueue(vec![job("poison", &poison), own]).await;
    for (id, attempts) in [("poison", most), ("own", own_most)] {
        let record = site.reaches(id, JobState::Dead).await;
        assert_eq!(record.attempts, attempts, "attempts of {id} that the broker counted");
        let Some(Outcome::Dead { reason: DeadReason::Exhausted, failure }) = record.outcome else {
            panic!("{id} ended otherwise: {:?}", record.outcome);
        };
        assert_eq!(failure.reason, "HandlerError");
    }
    // Whatever would still come of them would come before the end of a job behind them.
    site.enqueue(vec![job("behind", &Order { work_ms: 500, ..Order::default() })]).await;
    site.succeed(["behind"]).await;
    let told = |id: &str| site.ledger.runs_of(id).iter().map(|run| run.attempt).collect::<Vec<_>>();
    assert_eq!((told("poison"), told("own")), (vec![1, 2, 3], vec![1, 2]), "what the app was told");
    assert_eq!(site.stats().await.dead, Some(2));
}

pub(super) async fn bind_invalid_json(site: Site) {
    let _pod = site.pod(|policy| policy.concurrency = 1).await;
    let broken = NewJob::new("work", Payload::json("{\"workMs\": "));
    let broken = broken.with_id(JobId::new("broken").unwrap());
    site.enqueue(vec![broken, job("next", &Order::default())]).await;
    let record = site.reaches("broken", JobState::Dead).await;
    let Some(Outcome::Dead { reason: DeadReason::Rejected, failure }) = record.outcome else {
        panic!("it ended otherwise: {:?}", record.outcome);
    };
    assert_eq!((failure.reason.as_str(), failure.message.as_str()), ("HandlerRejected", "no order"));
    site.succeed(["next"]).await;
    let runs = site.ledger.runs_of("broken");
    assert_eq!((runs.len(), runs[0].how()), (1, Some(Ended::Answered(400))), "its one run");
    assert_eq!(runs[0].body, "{\"workMs\": ", "the bytes as they were enqueued");
    assert_eq!(site.ledger.runs_of("next").len(), 1, "runs of the next");
}

pub(super) async fn duplicate_delivery_idempotency(site: Site) {
    let (first, second) = (site.pod(|_| {}).await, site.idle_pod(|_| {}).await);
    site.enqueue(vec![job("paid", &Order { effect: true, hold: true, ..Order::default() })]).await;
    site.ran("paid", 1).await;
    assert_eq!(site.ledger.effects("paid"), 1, "the effect is done before the worker dies");
    first.kill();
    second.start().await;
    site.ledger.let_go(["paid"]);
    site.succeed(["paid"]).await;
    let runs = site.ledger.runs_of("paid");
    let keys: BTreeSet<_> = runs.iter().map(|run| run.idempotency_key.as_str()).collect();
    assert_eq!((runs.len(), keys), (2, BTreeSet::from(["paid"])), "two deliveries with one key");
    assert_eq!(runs.iter().map(|run| (run.attempt, run.delivery)).collect::<Vec<_>>(), [(1, 1), (1, 2)]);
    assert_eq!(site.ledger.effects("paid"), 1, "effects");
}

pub(super) async fn multi_worker_contention(site: Site) {
    const PODS: usize = 4;
    over("workers", PODS);
    let mut pods = Vec::new();
    for _ in 0..PODS {
        pods.push(site.pod(|_| {}).await);
    }
    let (ids, jobs) = jobs("job", over("jobs", 400_usize), &Order { work_ms: 10, ..Order::default() });
    site.enqueue(jobs).await;
    site.drained().await;
    site.succeed(texts(&ids)).await;
    let runs = site.ledger.runs();
    assert_eq!(runs.len(), ids.len(), "runs");
    judge::runs_do_not_overlap(&runs).unwrap();
    let shares: Vec<_> =
        pods.iter().map(|pod| runs.iter().filter(|run| run.pod == pod.number).count()).collect();
    assert!(shares.iter().all(|share| *share > 0), "somebody had nothing: {shares:?}");
    for pod in &pods {
        assert!(
            site.ledger.most_at_once(pod.number) <= at_most("at once on each", 4_usize),
            "more than its concurrency"
        );
    }
    site.measure(format!("shares of {PODS} workers: {shares:?}"));
}

pub(super) async fn unique_across_processes(site: Site) {
    const IDS: usize = 20;
    over("ids at two sidecars at once", IDS);
    let (one, two) = (site.pod(|_| {}).await, site.pod(|_| {}).await);
    let body = serde_json::to_vec(&Order::default()).unwrap();
    let path = format!("/v1/queues/{QUEUE}/jobs/work");
    let post = async |id: &str, body: &[u8]| {
        let headers = [("job-id", id)];
        let (first, second) = futures::join!(
            one.post(&path, &headers, body.to_vec()),
            two.post(&path, &headers, body.to_vec())
        );
        let mut statuses = [first.0, second.0];
        statuses.sort_unstable();
        (statuses, second.1)
    };
    let ids: Vec<_> = (0..IDS).map(|number| format!("same-{number}")).collect();
    for id in &ids {
        assert_eq!(post(id, &body).await.0, [200, 201], "one is created, the other a duplicate");
    }
    site.succeed(texts(&ids)).await;
    let (statuses, _) = post("same-0", b"{\"workMs\":9}").await;
    assert_eq!(statuses, [409, 409], "the same id with another payload");
    one.kill();
    two.kill();
    site.kill_broker().await;
    site.start_broker().await;
    one.start().await;
    two.start().await;
    for id in &ids {
        let (statuses, said) = post(id, &body).await;
        assert_eq!(statuses, [200, 200], "after the restarts");
        assert_eq!(serde_json::from_slice::<Value>(&said).unwrap()["duplicate"], true);
    }
    site.drained().await;
    assert_eq!(site.ledger.begun(), IDS, "runs");
}

pub(super) async fn payload_large(site: Site) {
    let pod = site.pod(|policy| policy.queues[0].retry.max_attempts = 2).await;
    let mut limits = site.driver.capabilities().limits;
    Bytes(limits.max_payload) = at_most("of payload", Bytes(limits.max_payload));
    Bytes(limits.max_result) = at_most("of result", Bytes(limits.max_result));
    let sized = |id: &str, bytes: usize| {
        let bare = job(id, &Order::default()).payload.len();
        job(id, &Order { padding: "p".repeat(bytes - bare), ..Order::default() })
    };
    let fitting = [sized("below", limits.max_payload - 1), sized("at", limits.max_payload)];
    site.enqueue(fitting.to_vec()).await;
    site.succeed(["below", "at"]).await;
    for sent in &fitting {
        let runs = site.ledger.runs_of(sent.id.as_ref().unwrap().as_str());
        assert!(runs.len() == 1 && runs[0].body == sent.payload.bytes, "the payload came otherwise");
    }
    let above = sized("above", limits.max_payload + 1);
    let refused = site.driver.enqueue(&site.queue, vec![above.clone()]).await;
    let refused = refused.and_then(|mut answers| answers.remove(0)).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::TooLarge);
    let path = format!("/v1/queues/{QUEUE}/jobs/work");
    let (status, _) = pod.post(&path, &[("job-id", "above")], above.payload.bytes).await;
    assert_eq!(status, 413, "the local API's answer");

    let result = |bytes: usize| Order { result_bytes: bytes, ..Order::default() };
    site.enqueue(vec![
        job("result-at", &result(limits.max_result)),
        job("result-above", &result(limits.max_result + 1)),
    ])
    .await;
    site.succeed(["result-at"]).await;
    let results = site.driver.results(&site.queue, vec![JobId::new("result-at").unwrap()]).await.unwrap();
    assert_eq!(results[0].as_ref().map(Payload::len), Some(limits.max_result), "bytes of the result");
    let record = site.reaches("result-above", JobState::Dead).await;
    let Some(Outcome::Dead { failure, .. }) = record.outcome else { panic!("no failure") };
    assert_eq!(failure.reason, "ResultTooLarge");
    assert_eq!(site.ledger.runs_of("result-above").len(), 1, "doing it again would give the same");
    site.measure(format!("{} bytes of payload, {} of result", limits.max_payload, limits.max_result));
}
