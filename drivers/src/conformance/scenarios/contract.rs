//! Which error an operation answers to what, and what administration does to jobs in each state.

use super::{
    calls::{Unanswered, calls},
    ground::{Ground, did_nothing, kept_to_the_table},
};
use crate::conformance::{
    Bytes, Failed, Fixture, Subject, Verdict, check, check_eq,
    fixture::{LEASE, SOON, job},
    machine::Watch,
};
use crate::{
    Claim, DeadReason, DriverExt, Durability, DynDriver, ErrorKind, Failure, JobId, JobState, Limits,
    ListJobs, NewJob, Ordering, Payload, QueueSettings, ReadCompletions, Receipt, Settle, Settlement,
};
use futures::future::join_all;
use std::time::Duration;

fn kind<T>(answer: crate::Result<T>) -> Option<ErrorKind> {
    answer.err().map(|error| error.kind)
}

pub(super) async fn error_contract_refusals(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    unknown_queue(&fixture.undeclared("never-declared").await?).await?;
    unknown_items(&subject).await?;
    oversized(&fixture, &subject).await?;
    closed(&fixture, &subject).await
}

/// Nothing is found in a queue that was never declared.
async fn unknown_queue(subject: &Subject) -> Verdict {
    let (driver, queue, can) = (&subject.driver, &subject.queue, subject.driver.capabilities());
    let id = || JobId::generate();
    let claim = Claim { max: 1, wait: SOON, lease: LEASE, worker: String::new() };
    let receipt = || Receipt("1-0".into());
    let succeed = Settlement { receipt: receipt(), settle: Settle::Succeed { result: None } };
    let mut kinds = vec![
        ("enqueue", kind(driver.enqueue(queue, vec![job()]).await)),
        ("claim", kind(driver.claim(queue, claim).await)),
        ("extend", kind(driver.extend(queue, vec![receipt()], LEASE).await)),
        ("settle", kind(driver.settle(queue, vec![succeed]).await)),
        ("stats", kind(driver.stats(queue).await)),
    ];
    if can.inspect {
        let list = ListJobs { state: JobState::Ready, limit: 1, after: None };
        kinds.push(("inspect", kind(driver.inspect(queue, &id()).await)));
        kinds.push(("list", kind(driver.list(queue, list).await)));
        kinds.push(("redrive", kind(driver.redrive(queue, vec![id()]).await)));
        kinds.push(("purge", kind(driver.purge(queue, JobState::Ready, 1).await)));
    }
    if can.cancel {
        kinds.push(("cancel", kind(driver.cancel(queue, vec![id()]).await)));
    }
    if can.result_store {
        kinds.push(("results", kind(driver.results(queue, vec![id()]).await)));
    }
    for (name, kind) in kinds {
        check_eq!(kind, Some(ErrorKind::NotFound), "{name} of an unknown queue");
    }
    // What is to be gone is gone.
    driver.unpin(queue, vec![id()]).await?;
    Ok(driver.delete_queue(queue, &Subject::owner()).await?)
}

async fn unknown_items(subject: &Subject) -> Verdict {
    let (driver, queue, can) = (&subject.driver, &subject.queue, subject.driver.capabilities());
    let id = JobId::new("unknown")?;
    if can.cancel {
        let answer = driver.cancel(queue, vec![id.clone()]).await?.remove(0);
        check_eq!(kind(answer), Some(ErrorKind::NotFound), "cancel of an unknown job");
    }
    if can.inspect {
        let answer = driver.redrive(queue, vec![id.clone()]).await?.remove(0);
        check_eq!(kind(answer), Some(ErrorKind::NotFound), "redrive of an unknown job");
        check_eq!(driver.inspect(queue, &id).await?, None, "an unknown job");
    }
    if can.result_store {
        check_eq!(driver.results(queue, vec![id.clone()]).await?, [None], "the result of an unknown job");
    }
    if can.fencing {
        // Receipts of every shape that nobody was given, none of which may be looked at as more than text.
        let large = "9".repeat(5000);
        for text in ["", "-", "1-0", "0-0", "18446744073709551616-1", "ü'\"\\\0;--", large.as_str()] {
            let receipt = Receipt(text.into());
            let settle = driver.settle_one(queue, &receipt, Settle::Succeed { result: None }).await;
            check_eq!(kind(settle), Some(ErrorKind::StaleReceipt), "settle with receipt {text:.20?}");
            let extend = driver.extend_one(queue, &receipt, LEASE).await;
            check_eq!(kind(extend), Some(ErrorKind::StaleReceipt), "extend with receipt {text:.20?}");
        }
    }
    Ok(())
}

/// Over a limit is over a limit.
async fn oversized(fixture: &Fixture, subject: &Subject) -> Verdict {
    let (driver, queue, can) = (&subject.driver, &subject.queue, subject.driver.capabilities());
    let many = fixture.at_most("items in a call", Limits::BATCH) + 1;
    let ids = || vec![JobId::generate(); many];
    let receipts = || vec![Receipt("1-0".into()); many];
    let succeed = Settlement { receipt: Receipt("1-0".into()), settle: Settle::Succeed { result: None } };
    let gone = vec![crate::CompletionReceipt("1-0".into()); many];
    let mut kinds = vec![
        ("enqueue", kind(driver.enqueue(queue, vec![job(); many]).await)),
        ("extend", kind(driver.extend(queue, receipts(), LEASE).await)),
        ("settle", kind(driver.settle(queue, vec![succeed; many]).await)),
        ("acknowledge", kind(driver.acknowledge(&fixture.address("a")?, gone).await)),
        ("unpin", kind(driver.unpin(queue, ids()).await)),
    ];
    if can.cancel {
        kinds.push(("cancel", kind(driver.cancel(queue, ids()).await)));
    }
    if can.inspect {
        kinds.push(("redrive", kind(driver.redrive(queue, ids()).await)));
    }
    if can.result_store {
        kinds.push(("results", kind(driver.results(queue, ids()).await)));
    }
    for (name, kind) in kinds {
        check_eq!(kind, Some(ErrorKind::Invalid), "{name} of {many} items");
    }
    let Bytes(headers) = fixture.at_most("of headers", Bytes(Limits::HEADERS));
    let headers = [("big".to_owned(), "x".repeat(headers))].into();
    let Bytes(payload) = fixture.at_most("of payload", Bytes(can.limits.max_payload));
    let too_large =
        [NewJob::new("mail", Payload::json(vec![b'1'; payload + 1])), NewJob { headers, ..job() }];
    for job in too_large {
        let answer = driver.enqueue_one(queue, job).await;
        check_eq!(kind(answer), Some(ErrorKind::TooLarge), "a job that is too large");
    }
    Ok(())
}

/// Whatever is asked of a handle that was closed, nothing was done.
async fn closed(fixture: &Fixture, subject: &Subject) -> Verdict {
    let ground = Ground::lay(fixture, &subject.driver, "closed").await?;
    subject.driver.close().await;
    let bound = fixture.at_most("for a call after the close", SOON);
    let watch = Watch::start();
    let told = join_all(calls(&subject.driver, &ground)).await;
    fixture.over("operations", told.len());
    kept_to_the_table("after the close", Unanswered::NotSent, &told, bound, watch.pauses())?;
    if let Some(driver) = reopened(fixture).await? {
        did_nothing("after the close", &ground, &driver, &told).await?;
    }
    Ok(())
}

/// Another handle after one was closed. `None` where the broker ends with it and keeps nothing.
async fn reopened(fixture: &Fixture) -> Result<Option<DynDriver>, Failed> {
    let driver = fixture.driver().await?;
    if driver.probe().await.is_ok() {
        return Ok(Some(driver));
    }
    if driver.capabilities().durability == Durability::None {
        return Ok(None);
    }
    fixture.restart().await?;
    Ok(Some(fixture.driver().await?))
}

/// The states that a job can stand in on this broker.
pub(super) async fn states(fixture: &Fixture) -> Result<Vec<JobState>, Failed> {
    let can = fixture.driver().await?.capabilities().clone();
    let mut states = vec![
        JobState::Ready,
        JobState::Retrying,
        JobState::Active,
        JobState::Succeeded,
        JobState::Dead,
        JobState::Cancelled,
    ];
    states.extend(can.delay.map(|_| JobState::Scheduled));
    states.extend(can.fifo.then_some(JobState::Blocked));
    fixture.over("states", states.len());
    Ok(states)
}

/// A job that stands in `state`, in a queue of its own. If it is blocked, one stands before it there, and is held.
pub(super) async fn standing(
    fixture: &Fixture,
    verb: &str,
    state: JobState,
) -> Result<(Subject, JobId), Failed> {
    let subject = fixture.undeclared(&format!("{verb}-{state:?}").to_lowercase()).await?;
    let ordering = if state == JobState::Blocked { Ordering::Fifo } else { Ordering::BestEffort };
    subject.declare(QueueSettings { ordering, ..QueueSettings::default() }).await?;
    if state == JobState::Blocked {
        subject.enqueue(job()).await?;
        subject.next().await?;
    }
    let minute = Duration::from_secs(60);
    let delay = if state == JobState::Scheduled { minute } else { Duration::ZERO };
    let id = subject.enqueue(job().with_delay(delay)).await?;
    let failure = Failure::new("HandlerError", "no");
    let settle = match state {
        JobState::Ready | JobState::Scheduled | JobState::Blocked => None,
        JobState::Cancelled => {
            subject.driver.cancel(&subject.queue, vec![id.clone()]).await?.remove(0)?;
            None
        }
        JobState::Active => {
            subject.next().await?;
            None
        }
        JobState::Retrying => Some(Settle::Retry { delay: minute, failure }),
        JobState::Succeeded => Some(Settle::Succeed { result: None }),
        JobState::Dead => Some(Settle::Bury { reason: DeadReason::Rejected, failure }),
    };
    if let Some(settle) = settle {
        let claimed = subject.next().await?;
        subject.settle(&claimed, settle).await?;
    }
    check_eq!(subject.state(&id).await?, state, "the state of a job that was made to stand in it");
    Ok((subject, id))
}

pub(super) async fn administration_of_each_state(fixture: Fixture) -> Verdict {
    let states = states(&fixture).await?;
    for state in &states {
        cancels(&fixture, *state).await?;
        redrives(&fixture, *state).await?;
        purges(&fixture, *state, &states).await?;
    }
    Ok(())
}

async fn cancels(fixture: &Fixture, state: JobState) -> Verdict {
    let (subject, id) = standing(fixture, "cancel", state).await?;
    let expected = match state {
        JobState::Active | JobState::Succeeded | JobState::Dead => state,
        _ => JobState::Cancelled,
    };
    for time in ["once", "twice"] {
        let answer = subject.driver.cancel(&subject.queue, vec![id.clone()]).await?.remove(0);
        check_eq!(answer.as_ref().ok(), Some(&expected), "cancelled {time}, {state:?}: {answer:?}");
        check_eq!(subject.state(&id).await?, expected, "the state after a cancellation, {state:?}");
    }
    check!(subject.claim(10).await?.is_empty(), "a job was handed out, {state:?}");
    Ok(())
}

async fn redrives(fixture: &Fixture, state: JobState) -> Verdict {
    let (subject, id) = standing(fixture, "redrive", state).await?;
    let answer = subject.driver.redrive(&subject.queue, vec![id.clone()]).await?.remove(0);
    if state == JobState::Dead {
        check!(answer.is_ok(), "a redrive of a dead job: {answer:?}");
        let claimed = subject.next().await?;
        check_eq!((claimed.id, claimed.attempt, claimed.delivery), (id, 1, 1), "the job after a redrive");
        return Ok(());
    }
    check_eq!(kind(answer), Some(ErrorKind::Conflict), "a redrive, {state:?}");
    check_eq!(subject.state(&id).await?, state, "the state after a redrive");
    Ok(())
}

async fn purges(fixture: &Fixture, state: JobState, states: &[JobState]) -> Verdict {
    let (subject, id) = standing(fixture, "purge", state).await?;
    for other in states.iter().filter(|other| **other != state && **other != JobState::Active) {
        let purged = subject.driver.purge(&subject.queue, *other, 10).await?;
        check_eq!(purged, 0, "jobs purged that stand in {other:?}, where one stands in {state:?}");
    }
    let purged = subject.driver.purge(&subject.queue, state, 10).await;
    if state == JobState::Active {
        check_eq!(kind(purged), Some(ErrorKind::Invalid), "a purge of active jobs");
        check_eq!(subject.state(&id).await?, state, "the state after a purge");
        return Ok(());
    }
    check_eq!(purged?, 1, "jobs purged that stand in {state:?}");
    check_eq!(subject.record(&id).await?, None, "a job that was purged, {state:?}");
    // Its id is free again.
    subject.enqueue(job().with_id(id)).await?;
    Ok(())
}

pub(super) async fn completions_of_two_installations(fixture: Fixture) -> Verdict {
    const JOBS: usize = 30;
    fixture.over("jobs of each", JOBS);
    let names = ["one", "two"];
    let mut queues = Vec::new();
    for name in names {
        let subject = fixture.undeclared(name).await?;
        subject.declare(QueueSettings::default()).await?;
        queues.push(subject);
    }
    // The same ids in both, ended in turn.
    for index in 0..JOBS {
        for (subject, name) in queues.iter().zip(names) {
            let id = JobId::new(format!("job-{index}"))?;
            subject.enqueue(job().with_id(id).with_notify(fixture.notify(name)?)).await?;
            let claimed = subject.next().await?;
            subject.succeed(&claimed).await?;
        }
    }
    // One of them reads all it has; the other one, which doesn't, is neither in its way nor loses anything.
    for (subject, name) in queues.iter().zip(names) {
        let address = fixture.address(name)?;
        let mut read = 0;
        loop {
            let list = ReadCompletions { max: 7, wait: Duration::ZERO, lease: ReadCompletions::MAX_LEASE };
            let page = subject.driver.completions(&address, list).await?;
            for completion in &page.completions {
                check_eq!(completion.queue, subject.queue, "the queue of a completion of {name}");
                check_eq!(completion.context, format!("context of {name}"), "the context of a completion");
                check_eq!(completion.job, JobId::new(format!("job-{read}"))?, "the next job of {name}");
                read += 1;
            }
            let receipts = page.completions.into_iter().map(|completion| completion.receipt);
            subject.driver.acknowledge(&address, receipts.collect()).await?;
            if page.caught_up {
                break;
            }
        }
        check_eq!(read, JOBS, "completions of {name}");
    }
    Ok(())
}
