//! Leases and settles while things go wrong around them.

use crate::support::{Pod, eventually};
use longshore_drivers::Settle;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const LEASE: Duration = Duration::from_millis(300);

async fn pod() -> Pod {
    Pod::start(|policy| policy.queues[0].lease = LEASE).await
}

#[tokio::test]
async fn leases_of_a_queue_are_extended_together() {
    let pod = pod().await;
    for number in 0..4 {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    eventually("all run", || async { pod.app.running() == 4 }).await;
    let (before, began) = (pod.broker.extends(), Instant::now());
    eventually("extended", || async { pod.broker.extends() >= before + 6 }).await;
    assert!(began.elapsed() >= LEASE, "one request for four jobs in a third of the lease");
    pod.app.let_go(4);
    eventually("settled", || async { pod.broker.settled() == 4 }).await;
}

#[tokio::test]
async fn a_lost_lease_ends_the_run_without_a_settle() {
    let pod = pod().await;
    pod.enqueue("job-1", "hang");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.lose("job-1");
    eventually("hung up", || async { pod.app.hung_up() == 1 }).await;
    eventually("slot free", || async { pod.status().await["inFlight"] == 0 }).await;
    assert!(pod.broker.settles("job-1").is_empty());
    let metrics = pod.admin("/metrics").await.1;
    assert!(
        metrics.contains("longshore_sidecar_jobs_total{queue=\"emails\",outcome=\"lost\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_cancelled_job_is_hung_up_on_and_released() {
    let pod = pod().await;
    pod.enqueue("job-1", "hang");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.cancel_job("job-1");
    assert_eq!(pod.settled("job-1").await, Settle::Release { delay: Duration::ZERO });
    eventually("hung up", || async { pod.app.hung_up() >= 1 }).await;
}

#[tokio::test]
async fn a_job_runs_on_while_the_broker_is_away_and_settles_when_it_is_back() {
    let pod = pod().await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.away(true);
    sleep(LEASE * 2).await;
    assert_eq!(pod.app.running(), 1);
    pod.app.let_go(1);
    eventually("answered", || async { pod.app.running() == 0 }).await;
    eventually("waits for the broker", || async { pod.status().await["unsettled"] == 1 }).await;
    pod.broker.away(false);
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    eventually("done", || async { pod.status().await["unsettled"] == 0 }).await;
}

#[tokio::test]
async fn settles_that_pile_up_travel_together() {
    let pod = Pod::start(|policy| policy.concurrency = 50).await;
    for number in 0..50 {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    eventually("all run", || async { pod.app.running() == 50 }).await;
    pod.app.let_go(50);
    eventually("settled", || async { pod.broker.settled() == 50 }).await;
    let batches = pod.broker.batches();
    assert!(batches.len() < 25, "{batches:?}");
}

#[tokio::test]
async fn a_settle_that_is_refused_costs_its_neighbours_nothing() {
    let pod = Pod::start(|_| {}).await;
    for number in 1..=4 {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    eventually("all run", || async { pod.app.running() == 4 }).await;
    pod.broker.poison("job-2");
    pod.app.let_go(4);
    eventually("the others are settled", || async { pod.broker.settled() == 3 }).await;
    assert!(pod.broker.settles("job-2").is_empty());
    eventually("given up", || async {
        let metrics = pod.admin("/metrics").await.1;
        metrics.contains("outcome=\"abandoned\"} 1")
    })
    .await;
    assert_eq!(pod.status().await["inFlight"], 0);
}

#[tokio::test]
async fn a_driver_that_panics_stops_nothing() {
    let pod = pod().await;
    for call in ["claim", "extend"] {
        pod.broker.panic_at(call);
        pod.enqueue(call, "wait");
        eventually("runs", || async { pod.app.running() == 1 }).await;
        let before = pod.broker.extends();
        eventually("extended", || async { pod.broker.extends() > before }).await;
        pod.app.let_go(1);
        assert_eq!(pod.settled(call).await, Settle::Succeed { result: None });
    }
    pod.broker.panic_at("settle");
    pod.enqueue("settle", "ok");
    eventually("given up", || async { pod.admin("/metrics").await.1.contains("outcome=\"abandoned\"} 1") })
        .await;
    pod.enqueue("after", "ok");
    assert_eq!(pod.settled("after").await, Settle::Succeed { result: None });
}
