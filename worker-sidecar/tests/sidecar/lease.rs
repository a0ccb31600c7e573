//! Leases and settles while things go wrong around them.

use crate::support::{Pod, eventually};
use longshore_drivers::{DeadReason, ErrorKind, Settle};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A machine that stands still for a moment doesn't end it.
const LEASE: Duration = Duration::from_secs(4);

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
async fn a_job_runs_on_while_the_broker_is_away_and_settles_when_it_is_back_in_time() {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.away(true);
    pod.app.let_go(1);
    eventually("answered", || async { pod.app.running() == 0 }).await;
    eventually("waits for the broker", || async { pod.status().await["unsettled"] == 1 }).await;
    pod.broker.away(false);
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    eventually("done", || async { pod.status().await["unsettled"] == 0 }).await;
}

/// Brokers go by the clock: the work is not lost, but it is done again.
#[tokio::test]
async fn a_job_whose_broker_was_away_for_longer_than_its_lease_runs_again() {
    let pod = pod().await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.away(true);
    sleep(LEASE * 3 / 2).await;
    assert_eq!(pod.app.running(), 1, "nobody hangs up because of a broker's outage");
    pod.app.let_go(1);
    eventually("waits for the broker", || async { pod.status().await["unsettled"] == 1 }).await;
    pod.broker.away(false);
    pod.app.let_go(1);
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    assert_eq!(pod.broker.deliveries("job-1"), 2);
    eventually("counted", || async { pod.counted("lost").await == 1 && pod.counted("succeeded").await == 1 })
        .await;
}

#[tokio::test]
async fn the_lease_of_a_job_that_was_long_on_its_way_is_extended_at_once() {
    let pod = Pod::start(|policy| policy.queues[0].lease = Duration::from_secs(10)).await;
    pod.broker.answer_late(Duration::from_secs(7));
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    sleep(Duration::from_secs(5)).await;
    pod.app.let_go(1);
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    assert_eq!(pod.broker.deliveries("job-1"), 1);
}

#[tokio::test]
async fn a_job_that_waits_for_its_settle_or_for_the_app_keeps_no_payload() {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "status-202");
    eventually("detached", || async { !pod.app.seen().is_empty() && pod.app.running() == 0 }).await;
    eventually("no payload is kept", || async { pod.broker.payloads_kept() == 0 }).await;
    pod.enqueue("job-2", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    pod.broker.away(true);
    pod.app.let_go(1);
    eventually("waits for the broker", || async { pod.status().await["unsettled"] == 1 }).await;
    eventually("no payload is kept", || async { pod.broker.payloads_kept() == 0 }).await;
}

#[tokio::test]
async fn the_lease_of_a_job_is_kept_for_as_long_as_its_settle_takes() {
    let pod = pod().await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    // Only settles fail, for several leases.
    for _ in 0..30 {
        pod.broker.fail_settle(ErrorKind::Unavailable, false);
    }
    let began = Instant::now();
    pod.app.let_go(1);
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    assert!(began.elapsed() > LEASE * 2, "{:?}", began.elapsed());
    assert_eq!(pod.broker.deliveries("job-1"), 1);
}

#[tokio::test]
async fn a_settle_whose_answer_was_lost_is_counted_as_unknown() {
    let pod = Pod::start(|_| {}).await;
    pod.broker.fail_settle(ErrorKind::Ambiguous, true);
    pod.enqueue("job-1", "ok");
    eventually("counted", || async { pod.counted("unknown").await == 1 }).await;
    assert_eq!(pod.broker.settles("job-1"), [Settle::Succeed { result: None }]);
    assert_eq!(pod.counted("succeeded").await, 0);
}

#[tokio::test]
async fn the_app_is_told_when_nobody_knows_whether_its_settle_counted() {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "status-202");
    eventually("detached", || async { !pod.app.seen().is_empty() && pod.app.running() == 0 }).await;
    let receipt = pod.app.seen()[0].header("job-receipt").to_owned();
    pod.broker.fail_settle(ErrorKind::Ambiguous, true);
    let (status, answer) = pod.post(&format!("/v1/jobs/{receipt}/complete"), &[], b"").await;
    assert_eq!(status, 502, "{answer}");
    assert!(answer.contains("Ambiguous"), "{answer}");
}

#[tokio::test]
async fn a_result_that_the_broker_finds_too_large_ends_the_job() {
    let pod = Pod::start(|_| {}).await;
    pod.broker.fail_settle(ErrorKind::TooLarge, false);
    pod.enqueue("job-1", "json");
    let Settle::Bury { reason, failure } = pod.settled("job-1").await else {
        panic!("not dead");
    };
    assert_eq!((reason, failure.reason.as_str()), (DeadReason::Rejected, "ResultTooLarge"));
}

#[tokio::test]
async fn a_settle_survives_a_token_that_was_refused() {
    let pod = Pod::start(|_| {}).await;
    pod.broker.fail_settle(ErrorKind::Unauthorized, false);
    pod.enqueue("job-1", "ok");
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
}

#[tokio::test]
async fn a_settle_that_can_never_succeed_is_given_up() {
    let pod = Pod::start(|_| {}).await;
    pod.broker.fail_settle(ErrorKind::Invalid, false);
    pod.enqueue("job-1", "ok");
    eventually("counted", || async { pod.counted("abandoned").await == 1 }).await;
    assert!(pod.broker.settles("job-1").is_empty());
    eventually("nothing is kept", || async { pod.status().await["unsettled"] == 0 }).await;
}

#[tokio::test]
async fn settles_that_pile_up_travel_together() {
    let pod = Pod::start(|policy| policy.concurrency = 50).await;
    for number in 0..50 {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    eventually("all run", || async { pod.app.running() == 50 }).await;
    // Those that end while a settle is on its way go with the next one.
    pod.broker.hold_settles(true);
    pod.app.let_go(50);
    eventually("all answered", || async { pod.status().await["unsettled"] == 50 }).await;
    pod.broker.hold_settles(false);
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
