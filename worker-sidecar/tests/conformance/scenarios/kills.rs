//! Deaths at each point of a job's life.

use crate::frame::{
    app::Order,
    eventually,
    ledger::Ended,
    pod::Pod,
    site::{LEASE, Site, job, jobs, quiet, texts},
};
use crate::{
    bounds::{early, over},
    judge,
};
use longshore_drivers::{
    JobState,
    conformance::proxy::{Proxy, Side, Weather},
};
use std::time::Duration;

pub(super) async fn worker_restart_recovery(site: Site) {
    let pod = site.pod(|_| {}).await;
    let (held, batch) =
        jobs("held", over("jobs that run", 4_usize), &Order { hold: true, ..Order::default() });
    site.enqueue(batch).await;
    for id in &held {
        site.ran(id, 1).await;
    }
    let (waiting, batch) = jobs("waiting", over("jobs that wait", 20_usize), &Order::default());
    site.enqueue(batch).await;
    pod.kill();
    site.ledger.let_go(texts(&held));
    pod.start().await;
    site.succeed(texts(&held).chain(texts(&waiting))).await;
    for (ids, count) in [(&held, 2), (&waiting, 1)] {
        for id in ids {
            let runs = site.ledger.runs_of(id);
            assert_eq!(runs.len(), count, "runs of {id}");
            assert!(runs.iter().all(|run| run.attempt == 1), "the loss of the worker cost {id} an attempt");
        }
    }
    assert_eq!(site.inspect("held-0").await.lost_deliveries, 1, "deliveries that were lost");
    judge::runs_do_not_overlap(&site.ledger.runs()).unwrap();
}

pub(super) async fn worker_killed_before_handler(site: Site) {
    let proxy = site.proxy().await;
    let first = site.pod_over(&proxy, |_| {}).await;
    // The answer to its claim will be held, so that the job is claimed and nobody has it.
    proxy.set(Weather::HeldFrom(Side::Server, "claimed-job"));
    site.enqueue(vec![job("claimed-job", &Order::default())]).await;
    let leased_until = site.reaches("claimed-job", JobState::Active).await.lease_until.expect("it is leased");
    first.kill();
    assert_eq!(site.ledger.runs_of("claimed-job").len(), 0, "runs before the death");
    let _second = site.pod(|_| {}).await;
    site.succeed(["claimed-job"]).await;
    let runs = site.ledger.runs_of("claimed-job");
    assert_eq!((runs.len(), runs[0].attempt, runs[0].delivery), (1, 1, 2), "its one run");
    over("lease", LEASE);
    assert!(runs[0].began_at.after(early()) >= leased_until, "it ran before its lease was over");
    let late = runs[0].began_at.since(leased_until);
    site.measure(format!("ran {late:.0?} after the end of the lease"));
}

pub(super) async fn worker_killed_mid_handler(site: Site) {
    let (first, second) = (site.pod(|_| {}).await, site.idle_pod(|_| {}).await);
    site.enqueue(vec![job("job", &Order { hold: true, ..Order::default() })]).await;
    site.ran("job", 1).await;
    first.kill();
    let leased_until = site.inspect("job").await.lease_until.expect("it is leased");
    second.start().await;
    site.ran("job", 2).await;
    site.ledger.let_go(["job"]);
    site.succeed(["job"]).await;
    let runs = site.ledger.runs_of("job");
    assert_eq!((runs.len(), runs[0].how()), (2, Some(Ended::HungUp)), "runs, and the end of the first");
    assert_eq!((runs[1].attempt, runs[1].delivery), (1, 2), "the loss costs a delivery and no attempt");
    over("lease", LEASE);
    assert!(runs[1].began_at.after(early()) >= leased_until, "it ran before its lease was over");
    assert_eq!(site.accepted("job").await, runs[1].number, "the run whose end counts");
    let late = runs[1].began_at.since(leased_until);
    site.measure(format!("ran again {late:.0?} after the end of the lease"));
}

/// A worker whose app has answered while the wire was held, so that its settle is under way for ever.
async fn settling(site: &Site, held: Side) -> (Proxy, Pod) {
    let proxy = site.proxy().await;
    let pod = site.pod_over(&proxy, |_| {}).await;
    site.enqueue(vec![job("job", &Order { hold: true, ..Order::default() })]).await;
    site.ran("job", 1).await;
    // Nobody waits for an answer, so that there is a connection for the settle.
    quiet(&proxy).await;
    proxy.set(Weather::Held(held));
    site.ledger.let_go(["job"]);
    let settling = || async { pod.status().await["unsettled"] == 1 && proxy.held() > 0 };
    eventually("the settle is under way", settling).await;
    (proxy, pod)
}

pub(super) async fn worker_killed_after_handler(site: Site) {
    let (_proxy, first) = settling(&site, Side::Client).await;
    first.kill();
    assert_eq!(site.inspect("job").await.state, JobState::Active, "the settle arrived after all");
    let _second = site.pod(|_| {}).await;
    site.succeed(["job"]).await;
    let runs = site.ledger.runs_of("job");
    let ends: Vec<_> = runs.iter().map(|run| (run.attempt, run.how())).collect();
    let answered = Some(Ended::Answered(200));
    assert_eq!(ends, [(1, answered), (1, answered)], "both handlers ended well");
    assert_eq!(site.accepted("job").await, runs[1].number, "the run whose end counts");
    judge::runs_do_not_overlap(&runs).unwrap();
}

pub(super) async fn worker_killed_mid_settle(site: Site) {
    let (_proxy, first) = settling(&site, Side::Server).await;
    site.succeed(["job"]).await;
    assert_eq!(first.status().await["unsettled"], 1, "the worker has not heard of it");
    first.kill();
    let _second = site.pod(|_| {}).await;
    // Whatever would still come of it would come with the end of its lease.
    site.enqueue(vec![job("behind", &Order { work_ms: 5000, ..Order::default() })]).await;
    site.succeed(["behind"]).await;
    let runs = site.ledger.runs_of("job");
    assert_eq!(runs.len(), 1, "runs");
    assert_eq!(site.accepted("job").await, runs[0].number, "the run whose end counts");
}

pub(super) async fn worker_killed_mid_settle_frozen_broker(site: Site) {
    let first = site.pod(|_| {}).await;
    site.enqueue(vec![job("job", &Order { hold: true, ..Order::default() })]).await;
    site.ran("job", 1).await;
    site.freeze_broker().await;
    site.ledger.let_go(["job"]);
    eventually("the settle is under way", || async { first.status().await["unsettled"] == 1 }).await;
    first.kill();
    site.thaw_broker().await;
    let _second = site.pod(|_| {}).await;
    site.succeed(["job"]).await;
    site.enqueue(vec![job("behind", &Order { work_ms: 5000, ..Order::default() })]).await;
    site.succeed(["behind"]).await;
    let runs = site.ledger.runs_of("job");
    assert!((1..=2).contains(&runs.len()), "{} runs", runs.len());
    let last = runs.last().map(|run| run.number);
    assert_eq!(Some(site.accepted("job").await), last, "nothing runs after the end that counts");
    judge::runs_do_not_overlap(&runs).unwrap();
    site.measure(format!("{} run(s)", runs.len()));
}

pub(super) async fn app_exit_costs_attempt(site: Site) {
    let pod = site.pod(|policy| policy.queues[0].retry.max_attempts = 2).await;
    let closes = Order { answers: vec![0, 200], ..Order::default() };
    site.enqueue(vec![
        job("closed", &closes),
        job("always-closed", &Order { answers: vec![0], ..closes.clone() }),
    ])
    .await;
    site.succeed(["closed"]).await;
    let runs = site.ledger.runs_of("closed");
    let seen: Vec<_> = runs.iter().map(|run| (run.attempt, run.how())).collect();
    assert_eq!(seen, [(1, Some(Ended::Closed)), (2, Some(Ended::Answered(200)))]);
    let record = site.reaches("always-closed", JobState::Dead).await;
    assert_eq!(record.attempts, 2, "attempts of a job that always kills its connection");

    site.enqueue(vec![job("running", &Order { hold: true, ..Order::default() })]).await;
    site.ran("running", 1).await;
    pod.app.down().await;
    let record = site.reaches("running", JobState::Retrying).await;
    assert_eq!(record.attempts, 1, "attempts that the exit cost");
    let failure = record.last_failure.map(|failure| failure.reason);
    assert_eq!(failure.as_deref(), Some("ConnectionLost"));
    // While the app is away nothing is claimed for it, and nothing pays for that.
    site.enqueue(vec![job("patient", &Order::default())]).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    pod.app.up().await;
    site.ledger.let_go(["running"]);
    site.succeed(["running", "patient"]).await;
    let told = |id: &str| site.ledger.runs_of(id).iter().map(|run| run.attempt).collect::<Vec<_>>();
    assert_eq!((told("running"), told("patient")), (vec![1, 2], vec![1]), "attempts");
}
