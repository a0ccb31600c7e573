//! Never early, late by little.

use crate::conformance::{
    Failed, Fixture, Verdict, check, check_eq,
    fixture::{LEASE, job, number, numbered},
    machine::{Watch, late},
    servers::clock::Skew,
};
use crate::{Failure, Settle, Timestamp};
use std::time::Duration;

pub(super) async fn delay_not_before_window(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let mut worst = Duration::ZERO;
    for delay in [1, 37, 250, 500].map(Duration::from_millis) {
        let watch = Watch::start();
        subject.enqueue(job().with_delay(delay)).await?;
        let claimed = subject.next().await?;
        worst = worst.max(fixture.in_time("a delayed job", watch, delay, late())?);
        check!(claimed.ready_at.since(claimed.enqueued_at) >= delay, "ready_at is before the due time");
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
        let watch = Watch::start();
        producer.enqueue(job().with_delay(delay)).await.map(|id| (id, watch))
    });
    let (claimed, (id, watch)) = (claimed?, enqueued?);
    let worst = fixture.in_time("a job's delay", watch, delay, late())?;
    check_eq!(claimed.id, id, "the job");
    fixture.measure(format!("{worst:.1?} late"));
    Ok(())
}

pub(super) async fn ordering_delayed_immediate_mix(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    // In one batch, so that all delays count from one moment.
    let delays = [600, 0, 300, 0, 450, 0].into_iter().enumerate();
    let jobs = delays.map(|(index, delay)| numbered(index).with_delay(Duration::from_millis(delay)));
    subject.enqueue_all(jobs.collect()).await?;
    let (mut order, mut due) = (Vec::new(), Vec::new());
    while order.len() < 6 {
        let claimed = subject.next().await?;
        order.push(number(&claimed)?);
        due.push(claimed.ready_at);
        subject.succeed(&claimed).await?;
    }
    check_eq!(order, [1, 3, 5, 2, 4, 0], "the order of immediate and delayed jobs");
    check!(due.is_sorted(), "not in the order of their due times: {due:?}");
    Ok(())
}

pub(super) async fn retry_backoff_not_before_window(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let mut claimed = subject.next().await?;
    let mut worst = Duration::ZERO;
    for delay in [50, 100, 200, 400].map(Duration::from_millis) {
        let settle = Settle::Retry { delay, failure: Failure::new("HandlerError", "again") };
        let watch = Watch::start();
        subject.settle(&claimed, settle).await?;
        claimed = subject.next().await?;
        worst = worst.max(fixture.in_time("a retry", watch, delay, late())?);
    }
    check_eq!(claimed.attempt, 5, "the attempt after four retries");
    fixture.measure(format!("at most {worst:.1?} late"));
    Ok(())
}

pub(super) async fn delayed_behind_a_longer_one(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let long = fixture.over("delay of the longer one", Duration::from_secs(60));
    let short = Duration::from_millis(300);
    subject.enqueue(numbered(0).with_delay(long)).await?;
    subject.enqueue(numbered(1)).await?;
    let claimed = subject.next().await?;
    let failure = Failure::new("HandlerError", "much later");
    subject.settle(&claimed, Settle::Retry { delay: long, failure }).await?;
    let watch = Watch::start();
    subject.enqueue(numbered(2).with_delay(short)).await?;
    let claimed = subject.next().await?;
    fixture.in_time("a job's delay", watch, short, late())?;
    check_eq!(number(&claimed)?, 2, "the job behind longer delays");
    let watch = Watch::start();
    let failure = Failure::new("HandlerError", "soon");
    subject.settle(&claimed, Settle::Retry { delay: short, failure }).await?;
    let claimed = subject.next().await?;
    fixture.in_time("the delay of a retry", watch, short, late())?;
    check_eq!((number(&claimed)?, claimed.attempt), (2, 2), "the retry behind longer delays");
    Ok(())
}

pub(super) async fn ordering_retry_reorder_allowed(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue_all((0..3).map(numbered).collect()).await?;
    let first = subject.next().await?;
    check_eq!(number(&first)?, 0, "the first job");
    let failure = Failure::new("HandlerError", "again");
    subject.settle(&first, Settle::Retry { delay: Duration::from_millis(300), failure }).await?;
    let mut order = Vec::new();
    while order.len() < 3 {
        let claimed = subject.next().await?;
        order.push(number(&claimed)?);
        subject.succeed(&claimed).await?;
    }
    check_eq!(order, [1, 2, 0], "the order of jobs of which the first one was retried");
    Ok(())
}

pub(super) async fn ordering_multi_worker_best_effort(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let other = subject.beside(&fixture).await?;
    let notify = fixture.notify("order")?;
    let jobs = (0..3).map(|index| numbered(index).with_notify(notify.clone()));
    let ids = subject.enqueue_all(jobs.collect()).await?;
    // One claimer holds the first job; the other one starts and ends those behind it meanwhile.
    let held = subject.next().await?;
    check_eq!(number(&held)?, 0, "the job that is held");
    for expected in [1, 2] {
        let passing = other.next().await?;
        check_eq!(number(&passing)?, expected, "the job that passes");
        other.succeed(&passing).await?;
    }
    subject.succeed(&held).await?;
    let page = subject.read(&notify.address, 10).await?;
    let order: Vec<_> = page.completions.into_iter().map(|completion| completion.job).collect();
    check_eq!(order, [ids[1].clone(), ids[2].clone(), ids[0].clone()], "the order in which they ended");
    Ok(())
}

/// The broker's clock decides, whatever the caller's shows: every instant it tells is on its own. The caller's is this
/// machine's, so it is the broker's that is wrong, once each way.
pub(super) async fn clock_of_the_caller_changes_nothing(fixture: Fixture) -> Verdict {
    fixture.over("between the clocks, either way", Duration::from_secs(3600));
    let skews = [("an hour behind", Skew::ahead(3600)), ("an hour ahead", Skew::behind(3600))];
    let mut seen = Vec::new();
    for (what, skew) in skews {
        let broker = fixture.broker().with_clock(skew).await?;
        let ahead = by_the_clock_of(&fixture.on(broker.clone()), skew).await;
        broker.stop().await;
        let ahead = ahead.map_err(|failed| Failed(format!("with a caller's clock {what}: {failed}")))?;
        seen.push(format!("{ahead} s"));
    }
    fixture.measure(format!("the broker's clock was {} ahead of the caller's", seen.join(" and ")));
    Ok(())
}

/// By how many seconds the broker's clock was ahead, when everything else is in order.
async fn by_the_clock_of(fixture: &Fixture, skew: Skew) -> Result<i64, Failed> {
    let subject = fixture.subject().await?;
    let other = subject.beside(fixture).await?;
    let (delay, lease) = (Duration::from_millis(400), Duration::from_millis(500));
    let here = Timestamp::now();
    let watch = Watch::start();
    subject.enqueue(job().with_delay(delay)).await?;
    let there = Timestamp::now();
    let first = match subject.claim_for(1, lease, Duration::ZERO).await?.pop() {
        // A machine that stood still until the job was due; if it was not, that shows below.
        Some(first) => first,
        None => subject.next_for(lease).await?,
    };
    fixture.in_time("a delayed job", watch, delay, late())?;
    let claimed_at = first.lease_until.as_millis() - i64::try_from(lease.as_millis())?;
    // A broker may round what it tells.
    let tick = i64::try_from(fixture.at_most("off its clock", Duration::from_secs(1)).as_millis())?;
    let on_our_clock = first.enqueued_at.as_millis() - skew.as_millis();
    check!(
        (here.as_millis() - tick..=there.as_millis() + tick).contains(&on_our_clock),
        "a clock that is {} ms ahead told {} of what was enqueued between {} and {}",
        skew.as_millis(),
        first.enqueued_at.as_millis(),
        here.as_millis(),
        there.as_millis()
    );
    check!(first.ready_at.since(first.enqueued_at) >= delay, "it was ready before it was due");
    check!(first.ready_at.as_millis() <= claimed_at, "it was claimed before it was ready");
    let watch = Watch::start();
    let second = other.next().await?;
    let (took, pauses) = (watch.elapsed(), watch.pauses());
    let bound = fixture.at_most("late", late());
    check!(
        took < lease + bound + pauses,
        "a lease of {lease:?} ended after {took:?}, {pauses:?} of them pauses"
    );
    let began = second.lease_until.as_millis() - i64::try_from(LEASE.as_millis())?;
    check!(began >= first.lease_until.as_millis(), "the second lease began before the first one ended");
    check_eq!(second.delivery, 2, "the delivery after the lease");
    other.succeed(&second).await?;
    let ahead = first.enqueued_at.as_millis() - here.as_millis();
    // To the next one: the call took its time.
    Ok((ahead + 500).div_euclid(1000))
}
