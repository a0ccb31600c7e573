//! Leases end, are extended, and count.

use crate::conformance::{
    Failed, Fixture, Verdict, check, check_eq, eventually,
    fixture::{LEASE, job},
    history::{Client, History},
    is_kind,
    machine::{Window, windowed},
};
use crate::{DeadReason, DriverExt, ErrorKind, JobId, JobState, Outcome, QueueSettings, Receipt, Settle};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Of a job that is to be kept: a machine that stands still for a moment doesn't lose it.
const LONG: Duration = Duration::from_secs(4);
const SHORT: Duration = Duration::from_millis(250);

pub(super) async fn lease_expiry_returns_job_and_counts_a_delivery(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let other = subject.beside(&fixture).await?;
    let id = subject.enqueue(job()).await?;
    let since = Instant::now();
    subject.next_for(SHORT).await?;
    let again = other.next().await?;
    let took = since.elapsed();
    fixture.not_early("a job under a lease", took, SHORT)?;
    check_eq!((again.attempt, again.delivery), (1, 2), "attempt and delivery");
    let lost = subject.record(&id).await?.map(|record| record.lost_deliveries);
    check_eq!(lost, Some(1), "lost deliveries");
    fixture.measure(format!("{:.1?} late", took.saturating_sub(SHORT)));
    other.succeed(&again).await
}

pub(super) async fn stale_receipt_is_refused(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let first = subject.next_for(SHORT).await?;
    let second = subject.next().await?;
    check_eq!(second.id, first.id, "the job of the second claim");
    let (driver, queue) = (&subject.driver, &subject.queue);
    for receipt in [&first.receipt, &Receipt("no receipt of anybody".into())] {
        let settle = driver.settle_one(queue, receipt, Settle::Succeed { result: None }).await;
        check!(is_kind(&settle, ErrorKind::StaleReceipt), "a stale settle: {settle:?}");
        let extend = driver.extend_one(queue, receipt, LEASE).await;
        check!(is_kind(&extend, ErrorKind::StaleReceipt), "a stale extension: {extend:?}");
    }
    subject.succeed(&second).await?;
    let twice = driver.settle_one(queue, &second.receipt, Settle::Succeed { result: None }).await;
    check!(is_kind(&twice, ErrorKind::StaleReceipt), "a second settle: {twice:?}");
    Ok(())
}

pub(super) async fn extend_keeps_the_job(fixture: Fixture) -> Verdict {
    fixture.over("lease", LONG);
    windowed(&fixture, LONG, extended).await
}

async fn extended(fixture: Fixture, window: Window) -> Verdict {
    let subject = fixture.subject().await?;
    let other = subject.beside(&fixture).await?;
    subject.enqueue(job()).await?;
    let (lease, since) = (window.length(), Instant::now());
    let mut open = window.open();
    let claimed = subject.next_for(lease).await?;
    let mut before = claimed.lease_until;
    while since.elapsed() < lease * 3 / 2 {
        let extending = window.open();
        let answer = subject.driver.extend_one(&subject.queue, &claimed.receipt, lease).await;
        open.judge(answer.is_ok(), || format!("an extension in time: {answer:?}"))?;
        let extension = answer?;
        check!(extension.lease_until >= before, "an extension made the lease shorter");
        check!(!extension.cancel_requested, "nobody asked for a cancellation");
        (open, before) = (extending, extension.lease_until);
        let others = other.claim_for(1, LEASE, Duration::from_millis(150)).await?;
        open.judge(others.is_empty(), || "a job with an extended lease was handed out again".into())?;
    }
    let settled = subject.succeed(&claimed).await;
    open.judge(settled.is_ok(), || format!("a settle in time: {settled:?}"))
}

pub(super) async fn max_deliveries_quarantines(fixture: Fixture) -> Verdict {
    let most = fixture.at_most("lost deliveries", 2_u32);
    let settings = QueueSettings { max_deliveries: most, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    let id = subject.enqueue(job()).await?;
    for _ in 0..most {
        subject.next_for(Duration::from_millis(100)).await?;
    }
    eventually("a job that was lost twice is dead", || async {
        Ok(subject.state(&id).await? == JobState::Dead)
    })
    .await?;
    check!(subject.claim(1).await?.is_empty(), "a quarantined job was handed out");
    let Some(record) = subject.record(&id).await? else {
        return Err(Failed("a quarantined job is not known".into()));
    };
    check_eq!((record.attempts, record.lost_deliveries), (0, most), "attempts and lost deliveries");
    check!(
        matches!(&record.outcome, Some(Outcome::Dead { reason: DeadReason::Quarantined, failure }) if !failure.reason.is_empty()),
        "the outcome is {:?}",
        record.outcome
    );
    Ok(())
}

pub(super) async fn throttle_never_quarantines(fixture: Fixture) -> Verdict {
    let settings = QueueSettings { max_deliveries: 2, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    subject.enqueue(job()).await?;
    for delivery in 1..=fixture.over("releases", 6_u32) {
        let claimed = subject.next().await?;
        check_eq!((claimed.attempt, claimed.delivery), (1, delivery), "attempt and delivery");
        let release = Settle::Release { delay: Duration::from_millis(5) };
        subject.settle(&claimed, release).await?;
    }
    let last = subject.next().await?;
    subject.succeed(&last).await
}

pub(super) async fn throttle_between_losses_counts_losses_only(fixture: Fixture) -> Verdict {
    let most = fixture.at_most("lost deliveries", 2_u32);
    let releases = fixture.over("releases before each", 3_u32);
    let settings = QueueSettings { max_deliveries: most, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    let id = subject.enqueue(job()).await?;
    for lost in 1..=most {
        // Releases neither count nor make up for a loss.
        for _ in 0..releases {
            let claimed = subject.next().await?;
            subject.settle(&claimed, Settle::Release { delay: Duration::ZERO }).await?;
            check_eq!(subject.state(&id).await?, JobState::Ready, "the state after a release");
        }
        subject.next_for(Duration::from_millis(100)).await?;
        let expected = if lost == most { JobState::Dead } else { JobState::Ready };
        eventually("a lost job is where it belongs", || async { Ok(subject.state(&id).await? == expected) })
            .await?;
        let record = subject.record(&id).await?;
        check_eq!(record.map(|record| record.lost_deliveries), Some(lost), "lost deliveries");
    }
    check!(subject.claim(1).await?.is_empty(), "a quarantined job was handed out");
    Ok(())
}

/// Three handlers that take three times their lease, and somebody who wants their jobs all the time.
pub(super) async fn heartbeat_keeps_one_leased_run(fixture: Fixture) -> Verdict {
    fixture.over("lease", LONG);
    windowed(&fixture, LONG, heartbeat).await
}

async fn heartbeat(fixture: Fixture, window: Window) -> Verdict {
    let jobs_held = fixture.over("jobs", 3_usize);
    let (lease, beats) = (window.length(), fixture.over("extensions", 9_u32));
    let subject = fixture.subject().await?;
    let history = Arc::new(History::default());
    let client = async |number| {
        let driver = fixture.driver().await?;
        Ok::<_, Failed>(Client::new(&history, number, driver, subject.queue.clone()))
    };
    let (worker, rival) = (client(0).await?, client(1).await?);
    let jobs = (0..jobs_held).map(|index| JobId::new(format!("job-{index}")).map(|id| job().with_id(id)));
    for answer in worker.enqueue(jobs.collect::<Result<_, _>>()?).await? {
        answer?;
    }
    let mut open = window.open();
    let held = worker.claim(10, lease, Duration::ZERO).await?;
    check_eq!(held.len(), jobs_held, "jobs that were claimed");
    let run = async {
        for _ in 0..beats {
            tokio::time::sleep(lease / 3).await;
            let extending = window.open();
            for job in &held {
                let answer = worker.extend(job, lease).await;
                open.judge(answer.is_ok(), || format!("an extension in time: {answer:?}"))?;
            }
            open = extending;
        }
        let settles = held.iter().map(|job| (job, Settle::Succeed { result: None }));
        for answer in worker.settle(settles.collect()).await? {
            open.judge(answer.is_ok(), || format!("a settle in time: {answer:?}"))?;
        }
        Ok::<_, Failed>(())
    };
    let watch = async {
        for _ in 0..=beats {
            let stolen = rival.claim(10, LEASE, lease / 3).await?;
            check!(stolen.is_empty(), "jobs under an extended lease were handed out: {stolen:?}");
        }
        Ok::<_, Failed>(())
    };
    let (ran, watched) = tokio::join!(run, watch);
    // Whoever ran knows whether every lease was extended in time, without which the other one may get a job.
    ran?;
    watched?;
    super::faults::judge(&subject, &history).await
}
