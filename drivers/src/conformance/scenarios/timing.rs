//! Never early, late by little.

use crate::conformance::{
    Fixture, Verdict, check, check_eq,
    fixture::{job, number, numbered},
};
use crate::{Failure, Settle};
use std::time::{Duration, Instant};

/// Later than this is too late, on any machine that also compiles something.
const LATE: Duration = Duration::from_secs(2);

pub(super) async fn delay_not_before_window(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let mut worst = Duration::ZERO;
    for delay in [1, 37, 250, 500].map(Duration::from_millis) {
        let since = Instant::now();
        subject.enqueue(job().with_delay(delay)).await?;
        let claimed = subject.next().await?;
        let took = since.elapsed();
        check!(took >= delay, "a job delayed by {delay:?} came after {took:?}");
        check!(took < delay + LATE, "a job delayed by {delay:?} came after {took:?}");
        check!(claimed.ready_at.since(claimed.enqueued_at) >= delay, "ready_at is before the due time");
        worst = worst.max(took.saturating_sub(delay));
        subject.succeed(&claimed).await?;
    }
    fixture.measure(format!("at most {worst:.1?} late"));
    Ok(())
}

pub(super) async fn claim_wakes_for_due_job(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let producer = subject.beside(&fixture).await?;
    let delay = Duration::from_millis(400);
    let (claimed, enqueued) = tokio::join!(subject.next(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let since = Instant::now();
        producer.enqueue(job().with_delay(delay)).await.map(|id| (id, since))
    });
    let (claimed, (id, since)) = (claimed?, enqueued?);
    let took = since.elapsed();
    check_eq!(claimed.id, id, "the job");
    check!(took >= delay && took < delay + LATE, "a job delayed by {delay:?} came after {took:?}");
    fixture.measure(format!("{:.1?} late", took.saturating_sub(delay)));
    Ok(())
}

pub(super) async fn ordering_delayed_immediate_mix(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let millis = Duration::from_millis;
    for (index, delay) in [600, 0, 300, 0, 450, 0].into_iter().enumerate() {
        subject.enqueue(numbered(index).with_delay(millis(delay))).await?;
    }
    let mut order = Vec::new();
    while order.len() < 6 {
        let claimed = subject.next().await?;
        order.push(number(&claimed)?);
        subject.succeed(&claimed).await?;
    }
    check_eq!(order, [1, 3, 5, 2, 4, 0], "the order of the jobs");
    Ok(())
}

pub(super) async fn retry_backoff_not_before_window(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let mut claimed = subject.next().await?;
    let mut worst = Duration::ZERO;
    for delay in [50, 100, 200, 400].map(Duration::from_millis) {
        let settle = Settle::Retry { delay, failure: Failure::new("HandlerError", "again") };
        let since = Instant::now();
        subject.settle(&claimed, settle).await?;
        claimed = subject.next().await?;
        let took = since.elapsed();
        check!(took >= delay && took < delay + LATE, "a retry after {delay:?} came after {took:?}");
        worst = worst.max(took.saturating_sub(delay));
    }
    check_eq!(claimed.attempt, 5, "the attempt after four retries");
    fixture.measure(format!("at most {worst:.1?} late"));
    Ok(())
}
