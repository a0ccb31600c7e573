//! Strict order within a key, and only there.
//!
//! Each history is made on purpose: one job is held, delayed or failed, and whoever may not pass is shown not to.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq,
    fixture::{number, numbered},
    is_kind,
    machine::{Window, windowed},
};
use crate::{
    Claimed, DeadReason, DriverExt, ErrorKind, Failure, JobId, JobState, NewJob, Ordering, QueueSettings,
    Settle,
};
use std::time::{Duration, Instant};

fn settings() -> QueueSettings {
    QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() }
}

fn keyed(key: &str, number: usize) -> NewJob {
    NewJob { ordering_key: Some(key.to_owned()), ..numbered(number) }
}

/// The numbers of what can be claimed now.
fn numbers(jobs: &[Claimed]) -> Result<Vec<usize>, Failed> {
    jobs.iter().map(number).collect()
}

async fn only(subject: &Subject, what: &str, expected: usize) -> Result<Claimed, Failed> {
    let mut jobs = subject.claim(10).await?;
    check_eq!(numbers(&jobs)?, vec![expected], "{what}");
    jobs.pop().ok_or_else(|| Failed("no job".into()))
}

async fn nothing(subject: &Subject, what: &str) -> Verdict {
    let jobs = subject.claim(10).await?;
    check!(jobs.is_empty(), "{what}: {:?} came out", numbers(&jobs)?);
    Ok(())
}

pub(super) async fn ordering_fifo_one_at_a_time(fixture: Fixture) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    let jobs = fixture.over("jobs of a key", 5_usize);
    let ids = subject.enqueue_all((0..jobs).map(|index| keyed("a", index)).collect()).await?;
    let other = subject.beside(&fixture).await?;
    for index in 0..jobs {
        let held = only(&subject, "the next job of the key", index).await?;
        check_eq!(held.ordering_key.as_deref(), Some("a"), "its key");
        nothing(&other, "while it runs").await?;
        if subject.driver.capabilities().inspect && index + 1 < jobs {
            check_eq!(subject.state(&ids[index + 1]).await?, JobState::Blocked, "the job behind it");
        }
        if subject.driver.capabilities().exact_depth {
            let stats = subject.stats().await?;
            check_eq!((stats.ready, stats.blocked), (Some(0), Some((jobs - 1 - index) as u64)), "depths");
        }
        subject.succeed(&held).await?;
    }
    nothing(&subject, "of an empty queue").await
}

pub(super) async fn ordering_fifo_keys_are_independent(fixture: Fixture) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    let jobs = vec![keyed("a", 0), keyed("a", 1), keyed("b", 2), numbered(3), keyed("b", 4), numbered(5)];
    subject.enqueue_all(jobs).await?;
    let first = subject.claim(10).await?;
    check_eq!(numbers(&first)?, vec![0, 2, 3], "the first of each key, those without a key being one");
    subject.succeed(&first[1]).await?;
    let next = only(&subject, "the next of the key that is free", 4).await?;
    for job in [&first[0], &first[2], &next] {
        subject.succeed(job).await?;
    }
    check_eq!(numbers(&subject.claim(10).await?)?, vec![1, 5], "what is left");
    Ok(())
}

pub(super) async fn ordering_fifo_retry_blocks_key(fixture: Fixture) -> Verdict {
    windowed(&fixture, Duration::from_millis(300), retry_blocks_key).await
}

async fn retry_blocks_key(fixture: Fixture, window: Window) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    subject.enqueue_all(vec![keyed("a", 0), keyed("a", 1), keyed("b", 2)]).await?;
    let held = subject.claim(10).await?;
    check_eq!(numbers(&held)?, vec![0, 2], "the first of each key");
    let delay = window.length();
    let (open, since) = (window.open(), Instant::now());
    let failure = Failure::new("HandlerError", "not yet");
    subject.settle(&held[0], Settle::Retry { delay, failure }).await?;
    let blocked = nothing(&subject, "while the first one waits for its retry").await;
    open.judge(blocked.is_ok(), || format!("{blocked:?}"))?;
    let again = subject.next_after(delay).await?;
    fixture.not_early("a retry", since.elapsed(), delay)?;
    check_eq!((number(&again)?, again.attempt), (0, 2), "the job that comes next, and its attempt");
    subject.settle(&again, Settle::Release { delay: Duration::ZERO }).await?;
    let released = only(&subject, "after a release", 0).await?;
    subject.succeed(&released).await?;
    only(&subject, "after its end", 1).await?;
    Ok(())
}

pub(super) async fn ordering_fifo_delay_blocks_key(fixture: Fixture) -> Verdict {
    windowed(&fixture, Duration::from_millis(400), delay_blocks_key).await
}

async fn delay_blocks_key(fixture: Fixture, window: Window) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    let delay = window.length();
    let (open, since) = (window.open(), Instant::now());
    subject.enqueue(keyed("a", 0).with_delay(delay)).await?;
    subject.enqueue_all(vec![keyed("a", 1), keyed("b", 2)]).await?;
    let free = only(&subject, "while the first one is delayed", 2).await;
    open.judge(free.is_ok(), || format!("{free:?}"))?;
    subject.succeed(&free?).await?;
    let first = subject.next_after(delay).await?;
    fixture.not_early("the delayed job", since.elapsed(), delay)?;
    check_eq!(number(&first)?, 0, "the delayed job comes first");
    nothing(&subject, "while it runs").await?;
    subject.succeed(&first).await?;
    only(&subject, "after its end", 1).await?;
    Ok(())
}

pub(super) async fn ordering_fifo_lost_lease_blocks_key(fixture: Fixture) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    subject.enqueue_all(vec![keyed("a", 0), keyed("a", 1)]).await?;
    let lost = subject.next().await?;
    nothing(&subject, "while it runs").await?;
    subject.driver.extend_one(&subject.queue, &lost.receipt, Duration::from_millis(1)).await?;
    let again = subject.next().await?;
    check_eq!((number(&again)?, again.delivery), (0, 2), "what comes after its lease");
    nothing(&subject, "while it runs again").await?;
    let stale =
        subject.driver.settle_one(&subject.queue, &lost.receipt, Settle::Succeed { result: None }).await;
    check!(is_kind(&stale, ErrorKind::StaleReceipt), "the lost receipt: {stale:?}");
    nothing(&subject, "after a stale settle").await?;
    subject.succeed(&again).await?;
    only(&subject, "after its end", 1).await?;
    Ok(())
}

pub(super) async fn ordering_fifo_any_end_frees_key(fixture: Fixture) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    let (driver, queue) = (&subject.driver, &subject.queue);
    let ids = subject.enqueue_all((0..7).map(|index| keyed("a", index)).collect()).await?;
    let buried = only(&subject, "at first", 0).await?;
    let failure = Failure::new("Rejected", "no");
    subject.settle(&buried, Settle::Bury { reason: DeadReason::Rejected, failure }).await?;
    let held = only(&subject, "after a burial", 1).await?;
    // One that waits in the middle leaves the line, and nobody notices.
    let cancelled = driver.cancel(queue, vec![ids[3].clone()]).await?.remove(0)?;
    check_eq!(cancelled, JobState::Cancelled, "a cancelled job of the line");
    nothing(&subject, "after a cancellation behind it").await?;
    subject.settle(&held, Settle::Release { delay: Duration::from_secs(60) }).await?;
    driver.cancel(queue, vec![ids[1].clone()]).await?.remove(0)?;
    let held = only(&subject, "after a cancellation of the first", 2).await?;
    // A dead one that is redriven goes before those that were enqueued later, not before the one that runs.
    driver.redrive(queue, vec![ids[0].clone()]).await?.remove(0)?;
    nothing(&subject, "after a redrive").await?;
    subject.succeed(&held).await?;
    let redriven = only(&subject, "the redriven one", 0).await?;
    subject.settle(&redriven, Settle::Release { delay: Duration::ZERO }).await?;
    check_eq!(driver.purge(queue, JobState::Ready, 10).await?, 1, "purged jobs");
    let next = only(&subject, "after a purge", 4).await?;
    check_eq!(driver.purge(queue, JobState::Blocked, 10).await?, 2, "purged jobs of the line");
    subject.succeed(&next).await?;
    nothing(&subject, "of an empty line").await?;
    subject.enqueue(keyed("a", 9)).await?;
    only(&subject, "of a new line", 9).await?;
    Ok(())
}

pub(super) async fn ordering_fifo_many_workers(fixture: Fixture) -> Verdict {
    const KEYS: usize = 7;
    const JOBS: usize = 210;
    fixture.over("keys", KEYS);
    fixture.over("jobs", JOBS);
    let claimers = fixture.over("claimers", 6_usize);
    let subject = fixture.subject_with(settings()).await?;
    for first in (0..JOBS).step_by(30) {
        let jobs = (first..first + 30).map(|index| keyed(&format!("key-{}", index % KEYS), index));
        subject.enqueue_all(jobs.collect()).await?;
    }
    let order = tokio::sync::Mutex::new(vec![Vec::new(); KEYS]);
    let work = |worker: usize| {
        let (fixture, subject, order) = (&fixture, &subject, &order);
        async move {
            let subject = subject.beside(fixture).await?;
            loop {
                let jobs =
                    subject.claim_for(3, super::super::fixture::LEASE, Duration::from_millis(300)).await?;
                if jobs.is_empty() {
                    return Ok::<_, Failed>(());
                }
                for job in jobs {
                    let index = number(&job)?;
                    if job.attempt == 1 && (index + worker).is_multiple_of(5) {
                        let failure = Failure::new("HandlerError", "again");
                        subject
                            .settle(&job, Settle::Retry { delay: Duration::from_millis(5), failure })
                            .await?;
                        continue;
                    }
                    // Written down before the settle: from then on the next one may run elsewhere.
                    order.lock().await[index % KEYS].push(index);
                    subject.succeed(&job).await?;
                }
            }
        }
    };
    futures::future::try_join_all((0..claimers).map(work)).await?;
    for (key, order) in order.into_inner().into_iter().enumerate() {
        let expected: Vec<_> = (key..JOBS).step_by(KEYS).collect();
        check_eq!(order, expected, "the order in which the jobs of key {key} were done");
    }
    Ok(())
}

pub(super) async fn ordering_key_needs_fifo(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let answer = subject.driver.enqueue_one(&subject.queue, keyed("a", 1)).await;
    check!(is_kind(&answer, ErrorKind::Invalid), "a key where there is no order: {answer:?}");
    let bad = NewJob { ordering_key: Some("with blanks".into()), ..numbered(1) };
    let answer = subject.driver.enqueue_one(&subject.queue, bad).await;
    check!(is_kind(&answer, ErrorKind::Invalid), "a key that is none: {answer:?}");
    Ok(())
}

pub(super) async fn ordering_cannot_be_changed(fixture: Fixture) -> Verdict {
    let subject = fixture.subject_with(settings()).await?;
    let declaration =
        crate::Declaration { owner: Subject::owner(), settings: QueueSettings::default(), adopt: false };
    let answer = subject.driver.declare(&subject.queue, declaration).await;
    check!(is_kind(&answer, ErrorKind::Conflict), "another ordering: {answer:?}");
    subject.declare(QueueSettings { max_depth: 5, ..settings() }).await?;
    let id = JobId::new("still-there")?;
    subject.enqueue(keyed("a", 1).with_id(id)).await?;
    Ok(())
}
