//! Much at once.

use crate::frame::{
    app::Order,
    eventually,
    site::{QUEUE, Site, job, jobs, texts},
};
use crate::{
    bounds::{at_most, over},
    history::is_soak,
    judge,
};
use longshore_drivers::{DeadReason, DriverExt, ErrorKind, JobState, NewJob, Outcome, Payload};
use std::time::Duration;

pub(super) async fn backpressure_saturation(site: Site) {
    const DEPTH: u64 = 50;
    let depth = at_most("jobs that wait", DEPTH);
    let slots = at_most("jobs at once", 2_u32);
    site.declare(|settings| settings.max_depth = depth).await;
    let pod = site.pod(|policy| policy.concurrency = slots).await;
    let slots = slots as usize;
    let order = Order { hold: true, answers: vec![500, 200], ..Order::default() };
    let mut ids = Vec::new();
    let refusal = loop {
        let id = format!("job-{}", ids.len());
        match site.driver.enqueue_one(&site.queue, job(&id, &order)).await {
            Ok(_) => ids.push(id),
            Err(error) => break error,
        }
        if ids.len() == slots {
            eventually("both slots are taken", || async { site.ledger.running() == slots }).await;
        }
        assert!(ids.len() < 200, "the queue is never full");
    };
    assert_eq!(
        (refusal.kind, ids.len() as u64),
        (ErrorKind::Full, depth + slots as u64),
        "the refusal, and the jobs before"
    );
    let path = format!("/v1/queues/{QUEUE}/jobs/work");
    let (status, _) = pod.post(&path, &[], serde_json::to_vec(&Order::default()).unwrap()).await;
    assert_eq!(status, 429, "the local API's refusal");
    assert_eq!(site.ledger.begun(), slots, "a saturated worker takes no more");
    // Retries of a full queue are nobody's new jobs: each job fails once.
    site.ledger.let_go(texts(&ids));
    site.drained().await;
    site.succeed(texts(&ids)).await;
    assert!(site.ledger.most_at_once(pod.number) <= slots, "more than its concurrency");
    let (after, batch) = jobs("after", 20, &Order::default());
    site.enqueue(batch).await;
    site.succeed(texts(&after)).await;
    site.measure(format!("refused at {depth} waiting jobs; {} retries went in all the same", ids.len()));
}

/// Jobs of each kind.
fn each() -> usize {
    if is_soak() { 2000 } else { 60 }
}

pub(super) fn soak_patience() -> Duration {
    Duration::from_secs(if is_soak() { 1800 } else { 90 })
}

pub(super) async fn soak_mixed_load(site: Site) {
    let mut pods = Vec::new();
    for _ in 0..3 {
        let retry_soon = |policy: &mut longshore_drivers::policy::WorkerPolicy| {
            policy.concurrency = 8;
            policy.queues[0].timeout = Duration::from_secs(2);
        };
        pods.push(site.pod(retry_soon).await);
    }
    let order = Order::default;
    let kinds = [
        ("quick", order()),
        ("slow", Order { work_ms: 50, ..order() }),
        ("fails-once", Order { answers: vec![500, 200], ..order() }),
        ("closes-once", Order { answers: vec![0, 200], ..order() }),
        ("throttles-once", Order { answers: vec![503, 200], retry_after: Some(0), ..order() }),
        ("large", Order { padding: "p".repeat(20_000), ..order() }),
        ("delayed", order()),
        ("poison", Order { answers: vec![500], ..order() }),
        ("rejected", Order { answers: vec![422], ..order() }),
        ("broken", order()),
    ];
    for (kind, order) in &kinds {
        let (_, batch) = jobs(kind, each(), order);
        let shape = |number: usize, job: NewJob| match *kind {
            "delayed" => job.with_delay(Duration::from_millis(20 * (number as u64 % 100))),
            "broken" => NewJob { payload: Payload::json("{"), ..job },
            _ => job,
        };
        let mut batch: Vec<_> =
            batch.into_iter().enumerate().map(|(number, job)| shape(number, job)).collect();
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(500));
            site.enqueue(std::mem::replace(&mut batch, rest)).await;
        }
    }
    over("jobs", kinds.len() * each());
    over("kinds of them", kinds.len());
    over("workers", pods.len());
    pods[0].terminate().await;
    pods[0].start().await;
    site.drained_within(soak_patience()).await;
    for (kind, _) in &kinds {
        for number in 0..each() {
            ends_as_deserved(&site, kind, &format!("{kind}-{number}")).await;
        }
    }
    judge::runs_do_not_overlap(&site.ledger.runs()).unwrap();
    let stats = site.stats().await;
    assert_eq!(stats.dead, Some(3 * each() as u64), "dead jobs");
    site.measure(format!(
        "{} jobs of {} kinds, {} runs",
        kinds.len() * each(),
        kinds.len(),
        site.ledger.begun()
    ));
}

async fn ends_as_deserved(site: &Site, kind: &str, id: &str) {
    let record = site.inspect(id).await;
    let attempts: Vec<_> = site.ledger.runs_of(id).iter().map(|run| run.attempt).collect();
    let reason = match &record.outcome {
        Some(Outcome::Dead { reason, .. }) => Some(*reason),
        _ => None,
    };
    let expected: (_, _, &[u32]) = match kind {
        "fails-once" | "closes-once" => (JobState::Succeeded, None, &[1, 2]),
        "throttles-once" => (JobState::Succeeded, None, &[1, 1]),
        "poison" => (JobState::Dead, Some(DeadReason::Exhausted), &[1, 2, 3]),
        "rejected" | "broken" => (JobState::Dead, Some(DeadReason::Rejected), &[1]),
        _ => (JobState::Succeeded, None, &[1]),
    };
    assert_eq!((record.state, reason, attempts.as_slice()), expected, "the end of {id}");
}
