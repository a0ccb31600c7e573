//! The end of a pod, in the order that jobs survive.

use crate::support::{self, Pod, eventually};
use longshore_drivers::Settle;
use longshore_worker_sidecar::{drain::Stage, hooks};
use std::time::Duration;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

async fn running(count: usize) -> Pod {
    let pod = Pod::start(|_| {}).await;
    for number in 1..=count {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    eventually("jobs run", || async { pod.app.running() == count }).await;
    pod
}

async fn fire(pod: &Pod) {
    hooks::fire(pod.api(), &pod.token_file()).await.unwrap();
}

async fn finished(pod: &mut Pod) {
    let sidecar = pod.sidecar.take().unwrap();
    timeout(support::DEADLINE, sidecar.finished()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pod_ends_in_order() {
    let mut pod = running(1).await;
    fire(&pod).await;
    assert_eq!(pod.sidecar().stage(), Stage::Draining);
    // Whatever comes now is for others.
    pod.enqueue("late", "ok");
    let hook = async { (pod.admin("/hooks/app-stop").await.0, pod.app.running()) };
    let job = async {
        eventually("draining is shown", || async { pod.status().await["draining"] == "draining" }).await;
        assert_eq!(pod.app.running(), 1, "the app works on");
        pod.app.let_go(1);
    };
    let ((status, still_running), ()) = futures::join!(hook, job);
    assert_eq!((status, still_running), (200, 0), "the hook returns when nothing runs");
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    pod.app.down();
    pod.sidecar().terminator().terminate().await;
    finished(&mut pod).await;
    assert!(pod.broker.settles("late").is_empty() && !pod.broker.is_leased("late"));
}

#[tokio::test]
async fn a_connection_that_is_lost_while_the_app_stops_costs_no_attempt() {
    let mut pod = Pod::start(|policy| policy.drain_timeout = Duration::from_millis(50)).await;
    pod.enqueue("job-1", "hang");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    fire(&pod).await;
    eventually("time is up", || async { pod.sidecar().stage() == Stage::AppMayStop }).await;
    assert!(pod.broker.settles("job-1").is_empty(), "the app still has it");
    pod.app.down();
    assert_eq!(pod.settled("job-1").await, Settle::Release { delay: Duration::ZERO });
    pod.sidecar().terminator().terminate().await;
    finished(&mut pod).await;
}

#[tokio::test]
async fn a_late_answer_settles() {
    let mut pod = Pod::start(|policy| policy.drain_timeout = Duration::from_millis(50)).await;
    pod.enqueue("job-1", "wait");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    fire(&pod).await;
    eventually("time is up", || async { pod.sidecar().stage() == Stage::AppMayStop }).await;
    pod.app.let_go(1);
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    pod.sidecar().terminator().terminate().await;
    finished(&mut pod).await;
}

#[tokio::test]
async fn what_does_not_finish_is_released_at_the_end() {
    let mut pod = Pod::start(|policy| policy.drain_timeout = Duration::from_millis(50)).await;
    pod.enqueue("job-1", "hang");
    eventually("runs", || async { pod.app.running() == 1 }).await;
    fire(&pod).await;
    eventually("time is up", || async { pod.sidecar().stage() == Stage::AppMayStop }).await;
    pod.sidecar().terminator().terminate().await;
    finished(&mut pod).await;
    assert_eq!(pod.broker.settles("job-1"), [Settle::Release { delay: Duration::ZERO }]);
}

#[tokio::test]
async fn a_signal_without_a_hook_lets_a_living_app_finish() {
    let mut pod = running(1).await;
    pod.sidecar().terminator().terminate().await;
    assert_eq!(pod.sidecar().stage(), Stage::Draining);
    pod.app.let_go(1);
    finished(&mut pod).await;
    assert_eq!(pod.broker.settles("job-1"), [Settle::Succeed { result: None }]);
}

#[tokio::test]
async fn the_second_signal_ends_it() {
    let mut pod = running(1).await;
    let terminator = pod.sidecar().terminator();
    terminator.terminate().await;
    terminator.terminate().await;
    finished(&mut pod).await;
    assert_eq!(pod.broker.settles("job-1"), [Settle::Release { delay: Duration::ZERO }]);
}

#[tokio::test]
async fn a_detached_job_of_an_app_that_is_gone_is_released_without_waiting() {
    let mut pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "status-202");
    eventually("detached", || async { !pod.app.seen().is_empty() && pod.app.running() == 0 }).await;
    fire(&pod).await;
    pod.app.down();
    eventually("nobody listens", || async { !pod.app.listens().await }).await;
    pod.sidecar().terminator().terminate().await;
    finished(&mut pod).await;
    assert_eq!(pod.broker.settles("job-1"), [Settle::Release { delay: Duration::ZERO }]);
}

#[tokio::test]
async fn a_restart_of_the_app_is_no_end_of_the_pod() {
    let pod = running(1).await;
    let began = Instant::now();
    // What the kubelet does when a liveness probe fails: the hook, then the signals.
    let (status, _) = pod.admin("/hooks/app-stop").await;
    assert_eq!(status, 200);
    assert!(began.elapsed() < Duration::from_secs(15));
    pod.app.down();
    assert!(matches!(pod.settled("job-1").await, Settle::Retry { .. }), "the app died on it");
    pod.app.up().await;
    pod.enqueue("job-2", "ok");
    assert_eq!(pod.settled("job-2").await, Settle::Succeed { result: None });
    assert_eq!(pod.sidecar().stage(), Stage::Running);
}

#[tokio::test]
async fn what_a_claim_brings_after_the_drain_began_goes_back_at_once() {
    let mut pod = Pod::start(|policy| {
        policy.queues = vec![support::queue("emails"), support::queue("images")];
    })
    .await;
    pod.broker.hold_answers(true);
    for number in 1..=2 {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    eventually("one runs, one is on its way", || async {
        pod.app.running() == 1 && pod.broker.is_leased("job-2")
    })
    .await;
    fire(&pod).await;
    pod.broker.hold_answers(false);
    assert_eq!(pod.settled("job-2").await, Settle::Release { delay: Duration::ZERO });
    pod.app.let_go(1);
    pod.sidecar().terminator().terminate().await;
    finished(&mut pod).await;
    assert_eq!(pod.app.seen().len(), 1);
}

#[tokio::test]
async fn nothing_is_claimed_while_a_hook_of_the_app_is_undecided() {
    let pod = Pod::start(|_| {}).await;
    let mut hook = Box::pin(pod.admin("/hooks/app-stop"));
    let held = eventually("held", || async { pod.status().await["hold"] == "appStops" });
    tokio::select! {
        answer = &mut hook => panic!("decided too soon: {answer:?}"),
        () = held => {}
    }
    fire(&pod).await;
    assert_eq!(hook.await.0, 200);
    assert!(pod.sidecar().stage() >= Stage::Draining);
}

#[tokio::test]
async fn a_crowd_of_connections_neither_keeps_the_drain_away_nor_looks_like_a_death() {
    let pod = Pod::start(|_| {}).await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(pod.api()).await.unwrap());
    }
    for _ in 0..260 {
        crowd.push(TcpStream::connect(pod.admin_address()).await.unwrap());
    }
    eventually("alive", || async { pod.admin("/livez").await.0 == 200 }).await;
    assert_eq!(pod.admin("/metrics").await.0, 503);
    fire(&pod).await;
    assert_eq!(pod.sidecar().stage(), Stage::AppMayStop);
}

#[tokio::test]
async fn hooks_of_the_app_wait_however_many_there_are() {
    let pod = running(1).await;
    fire(&pod).await;
    let mut hooks = Box::pin(futures::future::join_all((0..60).map(|_| pod.admin("/hooks/app-stop"))));
    assert!(timeout(Duration::from_millis(300), &mut hooks).await.is_err(), "they wait");
    pod.app.let_go(1);
    let answers = hooks.await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
}

#[tokio::test]
async fn only_the_pod_can_start_a_drain() {
    let pod = Pod::start(|_| {}).await;
    let (status, _) =
        support::app::request(pod.api(), "POST", "/v1/drain", &[("authorization", "Bearer x")], b"").await;
    assert_eq!(status, 401);
    assert_eq!(pod.admin("/v1/drain").await.0, 404);
    assert_eq!(pod.sidecar().stage(), Stage::Running);
}
