//! What holds while a lease does, and what when it doesn't.

use crate::frame::{
    app::Order,
    eventually,
    ledger::Ended,
    site::{LEASE, Site, job},
};
use crate::{
    bounds::{at_most, early, over},
    judge,
};
use longshore_drivers::{
    DeadReason, JobState, Outcome,
    conformance::proxy::{Side, Weather},
};
use std::time::Duration;

pub(super) async fn lease_shorter_than_handler(site: Site) {
    let lease = over("lease", Duration::from_millis(1500));
    let works = over("in the handler", lease * 4);
    let work_ms = u64::try_from(works.as_millis()).unwrap();
    let pods = [
        site.pod(|policy| policy.queues[0].lease = lease).await,
        site.pod(|policy| policy.queues[0].lease = lease).await,
    ];
    site.enqueue(vec![job("long", &Order { work_ms, ..Order::default() })]).await;
    site.succeed(["long"]).await;
    assert_eq!(site.ledger.runs_of("long").len(), 1, "runs");
    let record = site.inspect("long").await;
    assert_eq!(record.lost_deliveries, 0, "leases that ended");
    for pod in &pods {
        assert_eq!(pod.counted("lost").await, 0, "leases that a worker lost");
    }
    site.measure("a handler of four leases");
}

pub(super) async fn stopped_worker_wakes_after_lease(site: Site) {
    // Its only slot is taken by the job, so that no claim of its own waits at the broker.
    let frozen = site.pod(|policy| policy.concurrency = 1).await;
    let other = site.idle_pod(|_| {}).await;
    site.enqueue(vec![job("job", &Order { hold: true, ..Order::default() })]).await;
    site.ran("job", 1).await;
    frozen.sidecar().process.freeze();
    // Nobody extends it from here on.
    let leased_until = site.inspect("job").await.lease_until.expect("it is leased");
    other.start().await;
    let runs = site.ran("job", 2).await;
    assert!(runs[0].ended.is_none(), "the app beside the frozen sidecar works on");
    over("lease", LEASE);
    assert!(
        runs[1].began_at.after(early()) >= leased_until,
        "the second run began before the lease of the first was over"
    );
    site.ledger.let_go(["job"]);
    site.succeed(["job"]).await;
    // Now the frozen one finds an answer of its app, and a lease that is long over.
    frozen.sidecar().process.thaw();
    eventually("its settle is refused", || async { frozen.counted("lost").await == 1 }).await;
    assert_eq!(frozen.counted("succeeded").await, 0, "settles of the frozen worker that were taken");
    let runs = site.ledger.runs_of("job");
    assert_eq!(runs.len(), 2, "runs");
    assert_eq!(site.accepted("job").await, runs[1].number, "the run whose end counts");
    // It is of use again.
    site.enqueue(vec![job("after", &Order::default())]).await;
    other.kill();
    site.succeed(["after"]).await;
    site.measure(format!("a lease of {LEASE:?}; two runs, of which one was leased at any time"));
}

pub(super) async fn stopped_worker_starts_no_lost_job(site: Site) {
    let (proxy, lease) = (site.proxy().await, Duration::from_secs(2));
    let frozen = site.pod_over(&proxy, |policy| policy.queues[0].lease = lease).await;
    let other = site.idle_pod(|_| {}).await;
    site.enqueue(vec![job("warm-up", &Order::default())]).await;
    site.succeed(["warm-up"]).await;
    eventually("it has nothing to do", || async { frozen.counted("succeeded").await == 1 }).await;
    // The job is leased, and the answer that says so is on its way when the worker freezes.
    proxy.set(Weather::HeldFrom(Side::Server, "lost-job"));
    site.enqueue(vec![job("lost-job", &Order::default())]).await;
    let leased_until = site.reaches("lost-job", JobState::Active).await.lease_until.expect("it is leased");
    eventually("the answer is on its way", || async { proxy.held() > 0 }).await;
    frozen.sidecar().process.freeze();
    proxy.heal();
    assert_eq!(site.ledger.runs_of("lost-job").len(), 0, "runs while the worker that has it is frozen");
    other.start().await;
    site.succeed(["lost-job"]).await;
    // What the frozen one finds now is a job that somebody else has done.
    frozen.sidecar().process.thaw();
    eventually("it finds the job lost", || async { frozen.counted("lost").await == 1 }).await;
    other.kill();
    site.enqueue(vec![job("after", &Order::default())]).await;
    site.succeed(["after"]).await;
    let runs = site.ledger.runs_of("lost-job");
    assert_eq!((runs.len(), runs[0].pod), (1, other.number), "runs, and the pod of the first");
    over("lease", LEASE);
    assert!(runs[0].began_at.after(early()) >= leased_until, "it ran before its lease was over");
}

pub(super) async fn throttling_never_quarantines(site: Site) {
    let most = at_most("lost deliveries", 2_u32);
    site.declare(|settings| settings.max_deliveries = most).await;
    let pod = site.pod(|policy| policy.concurrency = 2).await;
    let throttled =
        Order { answers: vec![429, 503, 429, 503, 200], retry_after: Some(0), ..Order::default() };
    let throttled_then_lost =
        Order { answers: vec![429, 429, 200], retry_after: Some(0), hold: true, ..Order::default() };
    site.enqueue(vec![job("throttled", &throttled), job("lost-once", &throttled_then_lost)]).await;
    site.ran("lost-once", 1).await;
    pod.kill();
    pod.start().await;
    site.ran("lost-once", 2).await;
    site.ledger.let_go(["lost-once"]);
    site.succeed(["throttled", "lost-once"]).await;
    let runs = site.ledger.runs_of("throttled");
    assert!(
        runs.len() > over("throttled deliveries", 4_usize),
        "deliveries that ended without an attempt: {}",
        runs.len()
    );
    assert!(runs.iter().all(|run| run.attempt == 1), "throttling costs no attempt");
    judge::runs_do_not_overlap(&site.ledger.runs()).unwrap();
    // The count is there all the same: a job that is lost as often as allowed is quarantined.
    site.enqueue(vec![job("deadly", &Order { hold: true, ..Order::default() })]).await;
    for deaths in 1..=most as usize {
        site.ran("deadly", deaths).await;
        pod.kill();
        pod.start().await;
    }
    let record = site.reaches("deadly", JobState::Dead).await;
    let Some(Outcome::Dead { reason: DeadReason::Quarantined, .. }) = record.outcome else {
        panic!("it ended otherwise: {:?}", record.outcome);
    };
    let deadly = site.ledger.runs_of("deadly");
    assert_eq!((deadly.len(), deadly[1].how()), (2, Some(Ended::HungUp)), "runs of the quarantined");
    site.measure(format!("{} throttled deliveries with maxDeliveries 2", runs.len() - 1));
}
