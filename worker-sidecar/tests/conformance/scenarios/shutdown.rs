//! Stops in good order.

use crate::bounds::{early, over};
use crate::frame::{
    app::Order,
    eventually,
    ledger::{Ended, gaps},
    site::{Site, job, jobs, texts},
};
use longshore_drivers::JobState;
use std::time::{Duration, Instant};

pub(super) async fn shutdown_idempotent(site: Site) {
    let pod = site.pod(|_| {}).await;
    site.enqueue(vec![job("running", &Order { hold: true, ..Order::default() })]).await;
    site.ran("running", 1).await;
    for _ in 0..3 {
        pod.drain();
    }
    eventually("it drains", || async { pod.status().await["draining"] == "draining" }).await;
    site.enqueue(vec![job("behind", &Order::default())]).await;
    let ((), ()) = futures::join!(pod.terminate(), async {
        site.ledger.let_go(["running"]);
    });
    site.succeed(["running"]).await;
    let runs = site.ledger.runs_of("running");
    assert_eq!((runs.len(), runs[0].how()), (1, Some(Ended::Answered(200))), "the one run");
    assert_eq!(site.inspect("behind").await.state, JobState::Ready, "nothing is claimed during a stop");
    // The stop of a worker that did nothing, and of its successor.
    pod.start().await;
    site.succeed(["behind"]).await;
    for _ in 0..3 {
        pod.terminate().await;
        pod.start().await;
    }
    assert_eq!(site.ledger.begun(), 2, "runs");
}

pub(super) async fn shutdown_during_delay_retry(site: Site) {
    let (delay, backoff) =
        (over("delay", Duration::from_secs(2)), over("backoff", Duration::from_millis(1500)));
    let pod = site.pod(|policy| policy.queues[0].retry.initial = backoff).await;
    let since = Instant::now();
    let (delayed, batch) = jobs("delayed", 5, &Order::default());
    site.enqueue(batch.into_iter().map(|job| job.with_delay(delay)).collect()).await;
    let (failing, batch) = jobs("failing", 5, &Order { answers: vec![500, 200], ..Order::default() });
    site.enqueue(batch).await;
    for id in &failing {
        site.reaches(id, JobState::Retrying).await;
    }
    pod.terminate().await;
    assert!(site.ledger.runs().iter().all(|run| run.attempt == 1), "the stop came too late to say anything");
    pod.start().await;
    site.drained().await;
    site.succeed(texts(&delayed).chain(texts(&failing))).await;
    for id in &delayed {
        let runs = site.ledger.runs_of(id);
        assert_eq!((runs.len(), runs[0].attempt), (1, 1), "runs of {id}");
        assert!(runs[0].began.duration_since(since) + early() >= delay, "{id} came early");
    }
    for id in &failing {
        let runs = site.ledger.runs_of(id);
        assert_eq!(runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2], "attempts of {id}");
        assert!(gaps(&runs)[0] + early() >= backoff, "{id} came early");
    }
}

pub(super) async fn shutdown_releases_running_job(site: Site) {
    let (first, second) = (site.pod(|_| {}).await, site.idle_pod(|_| {}).await);
    site.enqueue(vec![job("long", &Order { hold: true, ..Order::default() })]).await;
    site.ran("long", 1).await;
    // The first signal finds a living app and waits; the second means it.
    first.sidecar().process.terminate();
    eventually("it drains", || async { first.status().await["draining"] == "draining" }).await;
    let asked = Instant::now();
    first.terminate().await;
    let took = asked.elapsed();
    assert_eq!(site.inspect("long").await.state, JobState::Ready, "it was given back, not left to its lease");
    second.start().await;
    site.ran("long", 2).await;
    site.ledger.let_go(["long"]);
    site.succeed(["long"]).await;
    let runs = site.ledger.runs_of("long");
    assert_eq!(runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 1], "no attempt was lost");
    assert_eq!(runs[0].how(), Some(Ended::HungUp), "the app hears that nobody waits any more");
    site.measure(format!("given back {took:.0?} after the second signal"));
}
