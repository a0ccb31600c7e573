//! How workers begin, go on and end.

use crate::bounds::{at_most, over};
use crate::frame::{
    app::Order,
    eventually,
    ledger::Ended,
    site::{Site, job, jobs, texts},
};
use bytes::Bytes;
use longshore_drivers::{JobId, JobState, NewJob, Payload};
use std::time::Duration;
use tokio::time::sleep;

pub(super) async fn register_handler(site: Site) {
    let pod = site.pod(|_| {}).await;
    let payload = Bytes::from_static(b"{ \"workMs\":1,\"padding\":\"spaces  stay\" }");
    let job = NewJob::new(
        "invoice.send",
        Payload { content_type: "application/json".into(), bytes: payload.clone() },
    );
    site.enqueue(vec![job.with_id(JobId::new("invoice-1").unwrap())]).await;
    site.succeed(["invoice-1"]).await;
    let runs = site.ledger.runs();
    assert_eq!(runs.len(), 1, "runs");
    let run = &runs[0];
    assert_eq!((run.request.as_str(), run.job_type.as_str()), ("POST /jobs", "invoice.send"));
    assert_eq!((run.job.as_str(), run.idempotency_key.as_str()), ("invoice-1", "invoice-1"));
    assert_eq!((run.attempt, run.delivery, &run.body), (1, 1, &payload));
    assert_eq!(run.how(), Some(Ended::Answered(200)));
    assert_eq!(site.accepted("invoice-1").await, run.number);
    // The broker knows it a moment before the worker does.
    eventually("the worker counts it", || async { pod.counted("succeeded").await == 1 }).await;
}

pub(super) async fn startworkers_idempotent(site: Site) {
    let pod = site.pod(|_| {}).await;
    let order = Order { work_ms: 5, ..Order::default() };
    let each = over("jobs", 300_usize) / 3;
    over("processes for one pod", 2_usize);
    let (mut ids, first) = jobs("first", each, &order);
    site.enqueue(first).await;
    let second = pod.another().await;
    let (more, then) = jobs("second", each, &order);
    site.enqueue(then).await;
    ids.extend(more);
    // The same policy again, then another one, then what is no policy: the last good one stays.
    pod.change(|_| {});
    pod.change(|policy| policy.concurrency = 7);
    eventually("the new policy is taken", || async { pod.status().await["concurrency"] == 7 }).await;
    let (more, then) = jobs("third", each, &order);
    site.enqueue(then).await;
    ids.extend(more);
    site.drained().await;
    site.succeed(texts(&ids)).await;
    assert_eq!(site.ledger.begun(), ids.len(), "runs");
    drop(second);
    site.measure("300 jobs, two processes for one pod, two reloads");
}

pub(super) async fn worker_churn(site: Site) {
    const CYCLES: usize = 6;
    over("starts and stops", CYCLES);
    let stay = site.pod(|policy| policy.concurrency = 2).await;
    let come_and_go = site.idle_pod(|_| {}).await;
    let order = Order { work_ms: 20, ..Order::default() };
    let mut ids = Vec::new();
    for cycle in 0..CYCLES {
        let (more, batch) = jobs(&format!("cycle-{cycle}"), 40, &order);
        site.enqueue(batch).await;
        ids.extend(more);
        come_and_go.start().await;
        let before = site.ledger.runs().iter().filter(|run| run.pod == come_and_go.number).count();
        eventually("it takes part", || async {
            let mine = site.ledger.runs().iter().filter(|run| run.pod == come_and_go.number).count();
            mine > before || site.ledger.begun() >= ids.len()
        })
        .await;
        come_and_go.terminate().await;
    }
    site.drained().await;
    site.succeed(texts(&ids)).await;
    assert_eq!(site.ledger.begun(), ids.len(), "runs");
    let guests = site.ledger.runs().iter().filter(|run| run.pod == come_and_go.number).count();
    assert!(guests > 0, "the worker that comes and goes ran nothing");
    eventually("nothing is left to settle", || async { stay.status().await["unsettled"] == 0 }).await;
    site.measure(format!("{CYCLES} starts and stops, {guests} of {} jobs ran there", ids.len()));
}

pub(super) async fn idle_sidecar_asks_seldom(site: Site) {
    let proxy = site.proxy().await;
    let _pod = site.pod_over(&proxy, |_| {}).await;
    site.enqueue(vec![job("before", &Order::default())]).await;
    site.drained().await;
    let idle = over("idle", Duration::from_secs(15));
    let before = proxy.asked();
    // A machine that stands still makes it longer, and leaves less time to ask.
    sleep(idle).await;
    let asked = proxy.asked() - before;
    let most = 2 * usize::try_from(idle.as_secs()).unwrap();
    assert!(asked <= at_most("requests", most), "{asked} requests in {idle:?}");
    site.measure(format!("{asked} requests in {idle:?}"));
    site.enqueue(vec![job("after", &Order::default())]).await;
    site.succeed(["before", "after"]).await;
}

pub(super) async fn suspended_queue_starts_nothing(site: Site) {
    let pod = site.pod(|policy| policy.queues[0].suspended = true).await;
    site.enqueue(vec![job("waits", &Order::default())]).await;
    // The length of two looks at the policy; a sidecar that claims takes milliseconds.
    sleep(over("suspended", Duration::from_secs(2))).await;
    assert_eq!((site.ledger.begun(), site.inspect("waits").await.state), (0, JobState::Ready));
    pod.change(|policy| policy.queues[0].suspended = false);
    site.succeed(["waits"]).await;
    assert_eq!(site.ledger.begun(), 1, "runs");
}
