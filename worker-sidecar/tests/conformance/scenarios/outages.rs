//! Brokers that die and come back.

use crate::bounds::{at_least, over};
use crate::frame::{
    app::Order,
    eventually,
    ledger::Ended,
    site::{Site, job, jobs, texts},
};
use longshore_drivers::{ErrorKind, JobState};
use std::time::{Duration, Instant};
use tokio::time::sleep;

pub(super) async fn broker_killed_during_push(site: Site) {
    let pod = site.pod(|policy| policy.queues[0].lease = Duration::from_secs(20)).await;
    let (running, batch) =
        jobs("running", over("jobs that run", 4_usize), &Order { hold: true, ..Order::default() });
    site.enqueue(batch).await;
    for id in &running {
        site.ran(id, 1).await;
    }
    let (waiting, batch) = jobs("waiting", over("jobs that wait", 50_usize), &Order::default());
    site.enqueue(batch).await;
    site.kill_broker().await;
    // Two of them end while nobody can be told, two when it is over.
    site.ledger.let_go(texts(&running[..2]));
    eventually("they end", || async { site.ledger.running() == 2 }).await;
    eventually("the worker knows that the broker is away", || async {
        pod.status().await["brokers"][0]["reachable"] == false
    })
    .await;
    site.start_broker().await;
    let back = Instant::now();
    site.succeed(texts(&running[..2])).await;
    let took = back.elapsed();
    site.ledger.let_go(texts(&running[2..]));
    site.drained().await;
    site.succeed(texts(&running).chain(texts(&waiting))).await;
    let runs = site.ledger.runs();
    assert_eq!(runs.len(), running.len() + waiting.len(), "runs");
    assert!(runs.iter().all(|run| run.how() == Some(Ended::Answered(200))), "nobody was hung up on");
    site.measure(format!("settled {took:.0?} after the broker was back"));
}

pub(super) async fn dispatch_during_broker_fault(site: Site) {
    let _pod = site.pod(|_| {}).await;
    let (ids, batch) = jobs("job", over("enqueues", 300_usize), &Order::default());
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for (number, (id, job)) in ids.iter().zip(batch).enumerate() {
        if number == 100 {
            site.kill_broker().await;
        }
        if number == 200 {
            site.start_broker().await;
        }
        match site.driver.enqueue(&site.queue, vec![job]).await.and_then(|mut answers| answers.remove(0)) {
            Ok(_) => acknowledged.push(id.as_str()),
            Err(error) => {
                refused += 1;
                let expected =
                    matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Ambiguous | ErrorKind::Timeout);
                assert!(expected, "a broker that is away is told as {:?}", error.kind);
            }
        }
    }
    let (least_refused, least) = (at_least("refused", 100_usize), at_least("acknowledged", 190_usize));
    assert!(
        refused >= least_refused && acknowledged.len() >= least,
        "{refused} refused, {} not",
        acknowledged.len()
    );
    site.succeed(acknowledged.iter().copied()).await;
    site.drained().await;
    site.measure(format!("{} acknowledged and done, {refused} refused", acknowledged.len()));
}

pub(super) async fn consume_after_broker_recovery(site: Site) {
    let (ids, batch) = jobs("job", over("jobs", 50_usize), &Order::default());
    site.enqueue(batch).await;
    site.kill_broker().await;
    // Started into the outage, twice.
    let pod = site.pod(|_| {}).await;
    pod.kill();
    pod.start().await;
    sleep(over("of outage after their start", Duration::from_secs(1))).await;
    assert_eq!(site.ledger.begun(), 0, "runs during the outage");
    site.start_broker().await;
    let back = Instant::now();
    site.succeed(texts(&ids)).await;
    let took = back.elapsed();
    assert_eq!(site.ledger.begun(), ids.len(), "runs");
    site.enqueue(vec![job("later", &Order::default())]).await;
    assert_eq!(site.reaches("later", JobState::Succeeded).await.attempts, 1);
    site.measure(format!("50 jobs done {took:.0?} after the broker was back"));
}
