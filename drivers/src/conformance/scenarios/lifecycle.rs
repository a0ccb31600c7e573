//! Calls that are dropped, brokers that stop.

use crate::conformance::{
    Fixture, Verdict, check, check_eq,
    fixture::{SOON, job, numbered},
    is_kind,
};
use crate::{DriverExt, Enqueued, ErrorKind, JobId, JobState, Payload, Settle};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

pub(super) async fn dispatch_context_cancellation(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let mut known = BTreeSet::new();
    for number in 0..60_u64 {
        let id = JobId::new(format!("dropped-{number}"))?;
        let send = subject.driver.enqueue_one(&subject.queue, job().with_id(id.clone()));
        // From never polled to surely done.
        if tokio::time::timeout(Duration::from_micros(number * 100), send).await.is_ok() {
            known.insert(id);
        }
    }
    let mut found = BTreeSet::new();
    loop {
        let jobs = subject.claim_for(100, SOON, Duration::from_millis(300)).await?;
        if jobs.is_empty() {
            break;
        }
        for claimed in jobs {
            check_eq!(claimed.payload, job().payload, "the payload of a job whose enqueue was dropped");
            subject.succeed(&claimed).await?;
            check!(found.insert(claimed.id), "a job was handed out twice");
        }
    }
    check!(found.is_superset(&known), "an acknowledged job is missing");
    dropped_claims(&fixture, &subject).await
}

/// Claims that are dropped while they wait: every job is settled by somebody in the end.
async fn dropped_claims(fixture: &Fixture, subject: &crate::conformance::Subject) -> Verdict {
    let producer = subject.beside(fixture).await?;
    for round in 0..20 {
        let wait = Duration::from_millis(round % 5 * 3);
        let claim = subject.claim_for(1, Duration::from_secs(1), SOON);
        let (got, sent) = tokio::join!(tokio::time::timeout(wait, claim), producer.enqueue(job()));
        let id = sent?;
        let claimed = match got {
            Ok(jobs) => jobs?.pop(),
            Err(_) => None,
        };
        let claimed = match claimed {
            Some(claimed) => claimed,
            None => subject.next().await?,
        };
        check_eq!(claimed.id, id, "the job after a dropped claim");
        check_eq!(claimed.attempt, 1, "its attempt");
        subject.succeed(&claimed).await?;
    }
    Ok(())
}

pub(super) async fn worker_restart_recovery(fixture: Fixture) -> Verdict {
    let before = fixture.subject().await?;
    let address = fixture.address("kept")?;
    let done = before.enqueue(job().with_notify(fixture.notify("kept")?)).await?;
    let result = Payload::json("{\"kept\":true}");
    let claimed = before.next().await?;
    let settle = Settle::Succeed { result: Some(result.clone()) };
    before.settle(&claimed, settle).await?;
    let interrupted = before.enqueue(numbered(1)).await?;
    let lost = before.next_for(Duration::from_secs(1)).await?;
    let held = before.enqueue(numbered(2)).await?;
    let holding = before.next().await?;
    let waiting = before.enqueue(numbered(3)).await?;
    let backend_id = before.driver.probe().await?.backend_id;

    fixture.restart().await?;
    let after = before.beside(&fixture).await?;
    check_eq!(after.driver.probe().await?.backend_id, backend_id, "the id of the data");
    let answer = after.driver.enqueue_one(&after.queue, job().with_id(done.clone())).await?;
    check!(
        matches!(answer, Enqueued::Duplicate { state: JobState::Succeeded, .. }),
        "a job that was done before the restart: {answer:?}"
    );
    check_eq!(after.next_completion(&address).await?.job, done, "the completion from before");
    if after.driver.capabilities().result_store {
        let results = after.driver.results(&after.queue, vec![done]).await?;
        check_eq!(results, [Some(result)], "the result from before");
    }
    check_eq!(after.next().await?.id, waiting, "the job that waited");
    let again = after.next().await?;
    check_eq!((&again.id, again.delivery), (&interrupted, 2), "the job whose claimer was lost");
    let stale = after.driver.settle_one(&after.queue, &lost.receipt, Settle::Succeed { result: None }).await;
    check!(is_kind(&stale, ErrorKind::StaleReceipt), "a receipt from before: {stale:?}");
    // A claimer that lives on keeps what it holds.
    check_eq!(holding.id, held, "the job that is held");
    after.succeed(&holding).await
}

pub(super) async fn worker_restart_delay_recovery(fixture: Fixture) -> Verdict {
    let before = fixture.subject().await?;
    let delay = Duration::from_millis(1500);
    let since = Instant::now();
    let short = before.enqueue(job().with_delay(Duration::from_millis(10))).await?;
    let id = before.enqueue(job().with_delay(delay)).await?;
    fixture.restart().await?;
    let after = before.beside(&fixture).await?;
    let first = after.next().await?;
    check_eq!(first.id, short, "the job that became due");
    let claimed = after.next().await?;
    let took = since.elapsed();
    check_eq!(claimed.id, id, "the delayed job");
    check!(took >= delay, "a job delayed by {delay:?} came after {took:?}");
    fixture.measure(format!("{:.1?} late", took.saturating_sub(delay)));
    Ok(())
}

pub(super) async fn shutdown_idempotent(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let driver = &subject.driver;
    tokio::time::timeout(SOON, async {
        tokio::join!(driver.close(), driver.close());
        driver.close().await;
    })
    .await?;
    let enqueue = driver.enqueue_one(&subject.queue, job()).await;
    check!(is_kind(&enqueue, ErrorKind::Unavailable), "an enqueue after the close: {enqueue:?}");
    let stats = driver.stats(&subject.queue).await;
    check!(is_kind(&stats, ErrorKind::Unavailable), "stats after the close: {stats:?}");
    let probe = driver.probe().await;
    check!(is_kind(&probe, ErrorKind::Unavailable), "a probe after the close");
    Ok(())
}
