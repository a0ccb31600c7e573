//! What the logs of sidecars tell of jobs.

use crate::{
    bounds::over,
    chronicle::Chronicle,
    frame::{
        app::Order,
        eventually,
        pod::Pod,
        site::{LEASE, Site, job, jobs, quiet},
    },
};
use longshore_drivers::{
    JobId, NewJob, Overrides,
    conformance::proxy::{Side, Weather},
    policy::WorkerPolicy,
};
use std::{collections::BTreeSet, time::Duration};

/// A pod with events in its log, which works on the queue.
async fn pod(site: &Site, change: impl FnOnce(&mut WorkerPolicy)) -> Pod {
    let pod = site.idle_pod(change).await.with_events();
    pod.start().await;
    pod
}

/// What all of them tell so far.
fn told(pods: &[&Pod]) -> Chronicle {
    let lines = pods.iter().flat_map(|pod| pod.events()).collect();
    Chronicle::read(lines).unwrap_or_else(|found| panic!("{found}"))
}

/// What all of them tell once the end of each job is told, judged against the apps' ledger and the broker's records.
async fn judged(site: &Site, pods: &[&Pod], ids: &[String]) -> Chronicle {
    // The broker knows an end a moment before the worker writes it.
    eventually("each job's end is told", || async {
        let told = told(pods);
        ids.iter().all(|id| told.is_over(id))
    })
    .await;
    let told = told(pods);
    told.agrees_with_runs(&site.ledger.runs()).unwrap();
    for id in ids {
        told.agrees_with_record(&site.inspect(id).await).unwrap();
    }
    told
}

fn held() -> Order {
    Order { hold: true, ..Order::default() }
}

/// An order for an app that answers with these, one after the other, and wants no job back later than at once.
fn answers(answers: &[u16]) -> Order {
    Order { answers: answers.to_vec(), retry_after: Some(0), ..Order::default() }
}

pub(super) async fn events_per_job_in_order(site: Site) {
    // Its slots are taken, so that no claim of its own waits at the broker when it dies.
    let killed = pod(&site, |policy| policy.concurrency = 3).await;
    let (mut ids, batch) = jobs("lost", over("jobs of a killed worker", 3_usize), &held());
    site.enqueue(batch).await;
    for id in &ids {
        site.ran(id, 1).await;
    }
    killed.kill();
    let pods = [pod(&site, |_| {}).await, pod(&site, |_| {}).await];
    let all = [&killed, &pods[0], &pods[1]];
    for (name, count, order) in [
        ("fine", 40, Order { work_ms: 5, ..Order::default() }),
        ("again", 10, answers(&[500, 200])),
        ("twice", 5, answers(&[500, 500, 200])),
        ("throttled", 5, answers(&[429, 429, 200])),
        ("rejected", 5, answers(&[400])),
        ("mixed", 5, answers(&[429, 500, 200])),
    ] {
        let (more, batch) = jobs(name, count, &order);
        site.enqueue(batch.into_iter().map(|job| job.with_delay(Duration::from_millis(200))).collect()).await;
        ids.extend(more);
    }
    site.ledger.let_go(["lost-0", "lost-1", "lost-2"]);
    site.drained().await;
    let told = judged(&site, &all, &ids).await;
    let lost = told.judge().unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(lost, BTreeSet::from(["lost-0", "lost-1", "lost-2"]), "jobs with a delivery that has no end");
    for (id, expected) in [
        ("lost-0", &["succeeded"][..]),
        ("fine-0", &["succeeded"]),
        ("again-0", &["retried HandlerError", "succeeded"]),
        ("twice-0", &["retried HandlerError", "retried HandlerError", "succeeded"]),
        ("rejected-0", &["dead Rejected HandlerRejected"]),
        ("mixed-0", &["released Throttled", "retried HandlerError", "succeeded"]),
    ] {
        assert_eq!(story(&told, id), expected, "what is told of {id}");
    }
    site.measure(format!("{} jobs on three workers, one of them killed with three jobs", ids.len()));
}

/// The story without deliveries that found no slot free: those say nothing about the job.
fn story(told: &Chronicle, id: &str) -> Vec<String> {
    told.story(id).into_iter().filter(|what| what != "released NotStarted").collect()
}

/// Jobs that go wrong in the app, and what is told of each.
const WRONG: [(&str, &[u16], &[&str]); 10] = [
    ("rejected", &[400], &["dead Rejected HandlerRejected"]),
    ("poison", &[500], &["retried HandlerError", "dead Exhausted HandlerError"]),
    ("closed", &[0, 200], &["retried ConnectionLost", "succeeded"]),
    ("throttled", &[429, 200], &["released Throttled", "succeeded"]),
    ("unrouted", &[404, 200], &["released Unroutable", "succeeded"]),
    ("refused", &[401, 200], &["released Unauthorized", "succeeded"]),
    ("detached", &[202, 200], &["detached", "retried Timeout", "succeeded"]),
    ("stuck", &[], &["retried Timeout", "dead Exhausted Timeout"]),
    ("bulky", &[200], &["dead Rejected ResultTooLarge"]),
    ("cancelled", &[], &["cancelled"]),
];

/// The job that goes wrong like this.
fn wrong(site: &Site, id: &str, statuses: &[u16]) -> NewJob {
    let mut order = answers(statuses);
    order.hold = statuses.is_empty();
    if id == "bulky" {
        order.result_bytes = site.driver.capabilities().limits.max_result + 1;
    }
    let hasty = matches!(id, "detached" | "stuck");
    let timeout = hasty.then(|| over("time-out", Duration::from_secs(1)));
    NewJob { overrides: Overrides { max_attempts: Some(2), timeout }, ..job(id, &order) }
}

async fn wrong_in_the_app(site: &Site, pod: &Pod) {
    site.enqueue(WRONG.iter().map(|(id, statuses, _)| wrong(site, id, statuses)).collect()).await;
    site.ran("cancelled", 1).await;
    let cancelled = vec![JobId::new("cancelled").unwrap()];
    site.driver.cancel(&site.queue, cancelled).await.unwrap().remove(0).unwrap();
    let ids: Vec<_> = WRONG.iter().map(|(id, ..)| (*id).to_owned()).collect();
    let told = judged(site, &[pod], &ids).await;
    for (id, _, expected) in WRONG {
        assert_eq!(story(&told, id), expected, "what is told of {id}");
    }
    let delay = told.of("poison").find_map(|told| told.delay_ms);
    assert_eq!(delay, Some(100), "the backoff that is told");
}

pub(super) async fn events_tell_error_paths(site: Site) {
    let first = pod(&site, |policy| policy.concurrency = 8).await;
    wrong_in_the_app(&site, &first).await;
    // The app is gone, and nobody has noticed when the job comes, or somebody has.
    first.app.down().await;
    site.enqueue(vec![job("unreached", &Order::default())]).await;
    let given_back = || async { told(&[&first]).of("unreached").any(|told| told.word() == "released") };
    eventually("the job that found no app is given back", given_back).await;
    first.app.up().await;
    site.succeed(["unreached"]).await;
    // A stop that can't wait.
    site.enqueue(vec![job("stopped", &held())]).await;
    site.ran("stopped", 1).await;
    first.sidecar().process.terminate();
    eventually("it drains", || async { first.status().await["draining"] == "draining" }).await;
    first.terminate().await;
    site.ledger.let_go(["stopped"]);
    // Two workers, each of whose only slot is taken, freeze over their leases. The app of one ends meanwhile.
    let one = |policy: &mut WorkerPolicy| policy.concurrency = 1;
    let frozen = [pod(&site, one).await, pod(&site, one).await];
    site.succeed(["stopped"]).await;
    for id in ["running", "settling"] {
        site.enqueue(vec![job(id, &held())]).await;
        site.ran(id, 1).await;
    }
    frozen.iter().for_each(|pod| pod.sidecar().process.freeze());
    site.ledger.let_go(["settling"]);
    let last = pod(&site, |_| {}).await;
    over("lease", LEASE);
    site.succeed(["settling"]).await;
    site.ran("running", 2).await;
    frozen.iter().for_each(|pod| pod.sidecar().process.thaw());
    let pods = [&first, &frozen[0], &frozen[1], &last];
    for id in ["running", "settling"] {
        let lost = || async { told(&pods).of(id).any(|told| told.word() == "lease_lost") };
        eventually("a lost lease is told", lost).await;
    }
    site.ledger.let_go(["running"]);
    let names = ["unreached", "stopped", "running", "settling"].into_iter();
    let ids: Vec<_> = names.chain(WRONG.iter().map(|wrong| wrong.0)).map(str::to_owned).collect();
    let told = judged(&site, &pods, &ids).await;
    assert_eq!(told.judge().unwrap(), BTreeSet::new(), "jobs with a delivery that has no end");
    assert_eq!(story(&told, "stopped"), ["released Draining", "succeeded"]);
    assert_eq!(story(&told, "running"), ["lease_lost Running", "succeeded"]);
    // The extension may be refused before the app's answer is read.
    let settling = story(&told, "settling");
    let found = ["lease_lost Settling", "lease_lost Running"].contains(&settling[0].as_str());
    assert!(found && settling[1..] == ["succeeded"], "{settling:?}");
    site.measure(format!("{} jobs over the app's faults, a stop and two frozen workers", ids.len()));
}

pub(super) async fn events_tell_unknown_settles(site: Site) {
    let proxy = site.proxy().await;
    let worker = site.idle_pod_over(&proxy, |_| {}).await.with_events();
    worker.start().await;
    site.enqueue(vec![job("job", &held())]).await;
    site.ran("job", 1).await;
    // Nobody waits for an answer, so that there is a connection for the settle.
    quiet(&proxy).await;
    proxy.set(Weather::Held(Side::Server));
    site.ledger.let_go(["job"]);
    site.succeed(["job"]).await;
    eventually("the answer is on its way", || async { proxy.held() > 0 }).await;
    proxy.set(Weather::Reset);
    worker.sidecar().process.says("settle failed").await.expect("the worker goes on");
    proxy.heal();
    let unknown = || async { told(&[&worker]).of("job").any(|told| told.word() == "settle_unknown") };
    eventually("an unknown settle is told", unknown).await;
    let told = told(&[&worker]);
    assert_eq!(told.judge().unwrap(), BTreeSet::new(), "jobs with a delivery that has no end");
    assert_eq!(story(&told, "job"), ["settle_unknown"]);
    assert_eq!(told.of("job").find_map(|told| told.settle.as_deref()), Some("succeeded"));
}
