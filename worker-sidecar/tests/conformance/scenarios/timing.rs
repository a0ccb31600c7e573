//! Never early, late by little.

use crate::bounds::{at_most, early, late, over};
use crate::frame::{
    self,
    app::Order,
    ledger::{Ended, gaps},
    site::{Site, job, jobs, texts},
};
use longshore_drivers::{DeadReason, JobState, Outcome};
use std::time::Duration;

pub(super) async fn retry_backoff_not_before_window(site: Site) {
    const JITTER: u32 = 50;
    let initial = Duration::from_millis(200);
    let _pod = site
        .pod(|policy| {
            policy.concurrency = 20;
            let retry = &mut policy.queues[0].retry;
            (retry.max_attempts, retry.initial, retry.jitter_percent) = (4, initial, JITTER);
        })
        .await;
    let (ids, batch) = jobs(
        "job",
        over("jobs with three retries each", 20),
        &Order { answers: vec![500, 500, 500, 200], ..Order::default() },
    );
    site.enqueue(batch).await;
    site.drained().await;
    site.succeed(texts(&ids)).await;
    let mut latest = Duration::ZERO;
    let mut jittered = 0;
    for id in &ids {
        let runs = site.ledger.runs_of(id);
        let attempts: Vec<_> = runs.iter().map(|run| run.attempt).collect();
        assert_eq!(attempts, [1, 2, 3, 4], "attempts of {id}, in order");
        for (number, gap) in gaps(&runs).into_iter().enumerate() {
            let base = initial * 2_u32.pow(u32::try_from(number).unwrap());
            let longest = base * (100 + over("% of jitter", JITTER)) / 100;
            assert!(gap + early() >= base, "retry {} of {id} came after {gap:?}, which is early", number + 1);
            assert!(gap < longest + late(), "retry {} of {id} came after {gap:?}", number + 1);
            latest = latest.max(gap.saturating_sub(longest));
            jittered += usize::from(gap > base + base / 10);
        }
    }
    // 60 waits of which each is lengthened by more than a tenth with a chance of four in five.
    assert!(jittered > 20, "only {jittered} of 60 waits were lengthened");
    site.measure(format!("60 retries, none early, at most {latest:.0?} later than the longest window"));
}

pub(super) async fn timeout_retry_not_before_window(site: Site) {
    let (patience, backoff) = (over("time-out", Duration::from_millis(400)), Duration::from_millis(300));
    let _pod = site
        .pod(|policy| {
            policy.queues[0].timeout = patience;
            let retry = &mut policy.queues[0].retry;
            (retry.max_attempts, retry.initial) = (3, backoff);
        })
        .await;
    site.enqueue(vec![job("stuck", &Order { hold: true, ..Order::default() })]).await;
    let record = site.reaches("stuck", JobState::Dead).await;
    let Some(Outcome::Dead { reason: DeadReason::Exhausted, failure }) = record.outcome else {
        panic!("it ended otherwise: {:?}", record.outcome);
    };
    assert_eq!(failure.reason, "Timeout");
    let runs = site.ledger.runs_of("stuck");
    assert_eq!(runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    for (number, pair) in runs.windows(2).enumerate() {
        assert_eq!(pair[0].how(), Some(Ended::HungUp), "the app hears that nobody waits any more");
        let window = backoff * 2_u32.pow(u32::try_from(number).unwrap());
        let gap = pair[1].began.duration_since(pair[0].ended_at());
        assert!(
            gap + early() >= window,
            "attempt {} came {gap:?} after the one before, which is early",
            number + 2
        );
        assert!(gap < window + late(), "attempt {} came {gap:?} after the one before", number + 2);
        let lasted = pair[0].ended_at().duration_since(pair[0].began);
        assert!(lasted < patience + late(), "attempt {} lasted {lasted:?}", number + 1);
    }
}

pub(super) async fn worker_restart_delay_recovery(site: Site) {
    let delay = Duration::from_millis(2500);
    let pod = site.pod(|_| {}).await;
    let since = std::time::Instant::now();
    let (ids, batch) = jobs("later", 10, &Order::default());
    site.enqueue(batch.into_iter().map(|job| job.with_delay(delay)).collect()).await;
    pod.kill();
    pod.start().await;
    pod.kill();
    site.kill_broker().await;
    site.start_broker().await;
    pod.start().await;
    let back = std::time::Instant::now();
    site.succeed(texts(&ids)).await;
    let runs = site.ledger.runs();
    assert_eq!(runs.len(), ids.len(), "runs");
    let mut latest = Duration::ZERO;
    for run in &runs {
        let took = run.began.duration_since(since);
        assert!(took + early() >= delay, "{} came after {took:?}, which is early", run.job);
        latest = latest.max(run.began.duration_since(back.max(since + delay)));
    }
    // A kill of the broker costs its clients up to a pause of theirs.
    let bound = at_most("late", frame::late() + Duration::from_secs(5));
    assert!(latest < bound, "it came {latest:?} late");
    site.measure(format!(
        "at most {latest:.0?} late once a worker was back, over two kills of the worker and one of the broker"
    ));
}
