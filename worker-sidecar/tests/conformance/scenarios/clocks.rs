//! Workers whose wall clocks are wrong.

use crate::bounds::{at_most, early, late, over};
use crate::frame::{
    app::Order,
    eventually,
    ledger::gaps,
    pod::Pod,
    site::{LEASE, Site, job, jobs, texts},
};
use crate::judge;
use longshore_drivers::{Timestamp, conformance::servers::clock::Skew};
use std::time::{Duration, Instant};

const HOUR: i32 = 3600;
/// What a worker runs at once.
const AT_ONCE: usize = 4;
const DELAY: Duration = Duration::from_millis(1500);
const BACKOFF: Duration = Duration::from_secs(1);

pub(super) async fn clock_skew_between_workers(site: Site) {
    over("between a worker's clock and the broker's, either way", Duration::from_secs(3600));
    let ahead = worker(&site, Skew::ahead(HOUR)).await;
    let behind = worker(&site, Skew::behind(HOUR)).await;
    let latest = windows_and_leases(&site, [&ahead, &behind]).await;
    hand_over(&site, "from-ahead", &ahead, &behind).await;
    hand_over(&site, "from-behind", &behind, &ahead).await;
    judge::runs_do_not_overlap(&site.ledger.runs()).unwrap();
    site.measure(format!("clocks 3600 s ahead and 3600 s behind the broker's; at most {latest:.0?} late"));
}

/// A worker by whose clock it is `skew` later, which its log shows.
async fn worker(site: &Site, skew: Skew) -> Pod {
    let pod = site
        .idle_pod(|policy| {
            policy.concurrency = u32::try_from(AT_ONCE).unwrap();
            policy.queues[0].retry.initial = BACKOFF;
        })
        .await
        .with_clock(skew);
    let before = Timestamp::now();
    pod.start().await;
    let after = Timestamp::now();
    let told = pod.sidecar().started_at.as_millis() - skew.as_millis();
    assert!(
        (before.as_millis()..=after.as_millis()).contains(&told),
        "its clock is {} ms ahead, not {}",
        pod.sidecar().started_at.as_millis() - after.as_millis(),
        skew.as_millis()
    );
    pod
}

/// Delays and retries keep their windows on both, and no lease ends that its worker extends. How late anything came.
async fn windows_and_leases(site: &Site, pods: [&Pod; 2]) -> Duration {
    // As many as both have room for: each takes half of them.
    let order = Order { hold: true, answers: vec![500, 200], ..Order::default() };
    let (ids, batch) = jobs("job", pods.len() * AT_ONCE, &order);
    let since = Instant::now();
    site.enqueue(batch.into_iter().map(|job| job.with_delay(DELAY)).collect()).await;
    eventually("each worker has its half", || async { site.ledger.begun() >= ids.len() }).await;
    let mut latest = Duration::ZERO;
    for run in site.ledger.runs() {
        let took = run.began.duration_since(since);
        assert!(took + early() >= DELAY, "{} came after {took:?}, which is early", run.job);
        assert!(took < DELAY + late(), "{} came after {took:?}", run.job);
        latest = latest.max(took.saturating_sub(DELAY));
    }
    for pod in pods {
        let own = site.ledger.runs().iter().filter(|run| run.pod == pod.number).count();
        assert_eq!(own, AT_ONCE, "runs on worker {}", pod.number);
    }
    over("lease", LEASE);
    tokio::time::sleep(over("in the handler", LEASE * 2)).await;
    assert_eq!(site.ledger.begun(), ids.len(), "runs while all are leased");
    site.ledger.let_go(texts(&ids));
    site.succeed(texts(&ids)).await;
    for id in &ids {
        let runs = site.ledger.runs_of(id);
        assert_eq!(runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2], "attempts of {id}");
        let gap = gaps(&runs)[0];
        assert!(gap + early() >= BACKOFF, "the retry of {id} came after {gap:?}, which is early");
        assert!(gap < BACKOFF + late(), "the retry of {id} came after {gap:?}");
        latest = latest.max(gap.saturating_sub(BACKOFF));
        let lost = site.inspect(id).await.lost_deliveries;
        assert_eq!(lost, at_most("lost leases of workers that live", 0_u32), "leases of {id} that ended");
    }
    latest
}

/// A worker dies, and the other one takes its job when the broker says that the lease is over.
async fn hand_over(site: &Site, id: &str, from: &Pod, to: &Pod) {
    to.terminate().await;
    site.enqueue(vec![job(id, &Order { hold: true, ..Order::default() })]).await;
    site.ran(id, 1).await;
    let leased_until = site.inspect(id).await.lease_until.expect("it is leased");
    from.kill();
    to.start().await;
    let runs = site.ran(id, 2).await;
    assert_eq!([runs[0].pod, runs[1].pod], [from.number, to.number], "where {id} ran");
    assert!(runs[1].began_at.after(early()) >= leased_until, "{id} ran before its lease was over");
    assert_eq!((runs[1].attempt, runs[1].delivery), (1, 2), "the loss costs a delivery and no attempt");
    site.ledger.let_go([id]);
    site.succeed([id]).await;
    assert_eq!(site.ledger.runs_of(id).len(), 2, "runs of {id}");
    from.start().await;
}
