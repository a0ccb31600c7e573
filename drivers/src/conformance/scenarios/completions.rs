//! Completions and the retention that waits for them.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    fixture::{SOON, job, numbered},
    machine::{Window, windowed},
};
use crate::{
    Address, DeadReason, Enqueued, Failure, JobId, JobState, Limits, Notify, Outcome, Payload, QueueSettings,
    ReadCompletions, Settle, StoredResult,
};
use std::time::Duration;

pub(super) async fn completion_is_written_with_the_settle(fixture: Fixture) -> Verdict {
    let settings = QueueSettings { max_deliveries: 1, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    settled(&fixture, &subject).await?;
    lost(&fixture, &subject).await?;
    if subject.driver.capabilities().cancel {
        cancelled(&fixture, &subject).await?;
    }
    removed(&fixture, &subject).await
}

/// Enqueues a job and answers how the completion of its end must look.
async fn expected(fixture: &Fixture, subject: &Subject, name: &str) -> Result<JobId, Failed> {
    subject.enqueue(job().with_notify(fixture.notify(name)?)).await
}

async fn told(fixture: &Fixture, subject: &Subject, name: &str, id: &JobId, outcome: Outcome) -> Verdict {
    let address = fixture.address(name)?;
    let completion = subject.next_completion(&address).await?;
    check_eq!(completion.job, *id, "the job of completion {name}");
    check_eq!(completion.queue, subject.queue, "the queue of completion {name}");
    check_eq!(completion.outcome, outcome, "the outcome of completion {name}");
    check_eq!(completion.context, fixture.notify(name)?.context, "the context of completion {name}");
    check_eq!(completion.delivery, 1, "the delivery of completion {name}");
    check!(completion.settled_at.as_millis() > 0, "completion {name} has no time");
    subject.driver.acknowledge(&address, vec![completion.receipt]).await?;
    let page = subject.read(&address, 10).await?;
    check!(page.completions.is_empty() && page.caught_up, "more than one completion {name}");
    Ok(())
}

async fn settled(fixture: &Fixture, subject: &Subject) -> Verdict {
    let small = Payload::json("{\"small\":true}");
    let inline = StoredResult::Inline { payload: small.clone() };
    let mut cases = vec![("succeeded", None, None), ("small", Some(small), Some(inline))];
    if subject.driver.capabilities().result_store {
        let size = Limits::INLINE_RESULT + 1;
        let large = Payload::json(vec![b'1'; size]);
        cases.push(("large", Some(large), Some(StoredResult::Stored { bytes: size as u64 })));
    }
    for (name, result, stored) in cases {
        let id = expected(fixture, subject, name).await?;
        let claimed = subject.next().await?;
        subject.settle(&claimed, Settle::Succeed { result }).await?;
        told(fixture, subject, name, &id, Outcome::Succeeded { result: stored }).await?;
    }
    let id = expected(fixture, subject, "buried").await?;
    let claimed = subject.next().await?;
    let (reason, failure) = (DeadReason::Rejected, Failure::new("Rejected", "no"));
    let bury = Settle::Bury { reason, failure: failure.clone() };
    subject.settle(&claimed, bury).await?;
    told(fixture, subject, "buried", &id, Outcome::Dead { reason, failure }).await
}

async fn lost(fixture: &Fixture, subject: &Subject) -> Verdict {
    let id = expected(fixture, subject, "lost").await?;
    subject.next_for(Duration::from_millis(100)).await?;
    let completion = subject.next_completion(&fixture.address("lost")?).await?;
    check_eq!(completion.job, id, "the job that was lost");
    check!(
        matches!(completion.outcome, Outcome::Dead { reason: DeadReason::Quarantined, .. }),
        "the outcome of a job that was lost: {:?}",
        completion.outcome
    );
    Ok(())
}

async fn cancelled(fixture: &Fixture, subject: &Subject) -> Verdict {
    let id = expected(fixture, subject, "cancelled").await?;
    subject.driver.cancel(&subject.queue, vec![id.clone()]).await?;
    told(fixture, subject, "cancelled", &id, Outcome::Cancelled).await?;
    let id = expected(fixture, subject, "stopped").await?;
    let claimed = subject.next().await?;
    subject.driver.cancel(&subject.queue, vec![id.clone()]).await?;
    subject.settle(&claimed, Settle::Release { delay: Duration::ZERO }).await?;
    told(fixture, subject, "stopped", &id, Outcome::Cancelled).await
}

async fn removed(fixture: &Fixture, subject: &Subject) -> Verdict {
    if subject.driver.capabilities().inspect {
        let id = expected(fixture, subject, "purged").await?;
        let count = subject.driver.purge(&subject.queue, JobState::Ready, 10).await?;
        check_eq!(count, 1, "purged jobs");
        told(fixture, subject, "purged", &id, Outcome::Purged).await?;
    }
    let id = expected(fixture, subject, "deleted").await?;
    subject.driver.delete_queue(&subject.queue, &Subject::owner()).await?;
    told(fixture, subject, "deleted", &id, Outcome::Purged).await
}

pub(super) async fn completions_are_addressed(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let one = fixture.address("one")?;
    // As long as an address may be, and nothing but its last letter tells it from the next one.
    let stem = format!("{:.<1$}", one.as_str(), Address::MAX - 1);
    let (longest, other) = (Address::new(format!("{stem}1"))?, Address::new(format!("{stem}2"))?);
    for address in [&one, &other, &longest, &one] {
        let notify = Notify { address: address.clone(), context: format!("context of {}", address.as_str()) };
        subject.enqueue(job().with_notify(notify)).await?;
        let claimed = subject.next().await?;
        subject.succeed(&claimed).await?;
    }
    let ones = subject.read(&one, 10).await?;
    check_eq!(ones.completions.len(), 2, "completions of the first address");
    check!(
        ones.completions
            .iter()
            .all(|completion| completion.context == format!("context of {}", one.as_str())),
        "a completion went astray: {ones:?}"
    );
    // What belongs to another address can't be acknowledged away.
    let theirs = ones.completions.iter().map(|completion| completion.receipt.clone());
    subject.driver.acknowledge(&other, theirs.collect()).await?;
    let others = subject.read(&other, 10).await?;
    check_eq!(others.completions.len(), 1, "completions of the other address");
    check_eq!(subject.read(&longest, 10).await?.completions.len(), 1, "completions of the longest address");
    check!(others.caught_up, "the other address is not read to its end");
    check!(!subject.read(&one, 10).await?.caught_up, "leased completions don't count as left");
    Ok(())
}

pub(super) async fn completions_stay_until_acknowledged(fixture: Fixture) -> Verdict {
    windowed(&fixture, Duration::from_secs(1), stay_until_acknowledged).await
}

async fn stay_until_acknowledged(fixture: Fixture, window: Window) -> Verdict {
    let settings = QueueSettings { retain_completed: Duration::ZERO, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    let address = fixture.address("kept")?;
    let kept = subject.enqueue(job().with_notify(fixture.notify("kept")?)).await?;
    let plain = subject.enqueue(job()).await?;
    for _ in 0..2 {
        let claimed = subject.next().await?;
        subject.succeed(&claimed).await?;
    }
    subject.driver.unpin(&subject.queue, vec![kept.clone()]).await?;
    gone(&subject, &plain).await?;
    check_eq!(subject.state(&kept).await?, JobState::Succeeded, "the job whose completion waits");
    let window = window.at_most(ReadCompletions::MAX_LEASE);
    let read = ReadCompletions { max: 10, wait: Duration::ZERO, lease: window.length() };
    let open = window.open();
    let first = subject.driver.completions(&address, read.clone()).await?;
    check_eq!(first.completions.len(), 1, "completions");
    let hidden = subject.driver.completions(&address, read).await?;
    let nobody_else = hidden.completions.is_empty();
    open.judge(nobody_else, || format!("a leased completion was handed out: {hidden:?}"))?;
    let again = subject.next_completion(&address).await?;
    check_eq!((&again.job, again.delivery), (&kept, 2), "the completion after its lease");
    // The id still answers, so that an operator that lost the completion can ask.
    let answer =
        crate::DriverExt::enqueue_one(&*subject.driver, &subject.queue, job().with_id(kept.clone())).await?;
    check!(
        matches!(answer, Enqueued::Duplicate { state: JobState::Succeeded, .. }),
        "the id of a job whose completion waits: {answer:?}"
    );
    subject.driver.acknowledge(&address, vec![again.receipt.clone()]).await?;
    subject.driver.acknowledge(&address, vec![again.receipt]).await?;
    gone(&subject, &kept).await
}

pub(super) async fn finished_jobs_stay_until_unpinned(fixture: Fixture) -> Verdict {
    let settings = QueueSettings { retain_completed: Duration::ZERO, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    let kept = subject.enqueue(job().with_notify(fixture.notify("pinned")?)).await?;
    let early = subject.enqueue(job().with_notify(fixture.notify("pinned")?)).await?;
    let unpin = |ids| subject.driver.unpin(&subject.queue, ids);
    let size = Limits::INLINE_RESULT + 1;
    let with_result = Payload::json(vec![b'1'; size]);
    let result = subject.driver.capabilities().result_store.then_some(with_result);
    for _ in 0..2 {
        let claimed = subject.next().await?;
        // That one is given up before it is over; the broker remembers.
        if claimed.id == early {
            unpin(vec![early.clone()]).await?;
        }
        subject.settle(&claimed, Settle::Succeed { result: result.clone() }).await?;
        let completion = subject.next_completion(&fixture.address("pinned")?).await?;
        subject.driver.acknowledge(&fixture.address("pinned")?, vec![completion.receipt]).await?;
    }
    gone(&subject, &early).await?;
    let witness = subject.enqueue(job()).await?;
    let claimed = subject.next().await?;
    subject.succeed(&claimed).await?;
    gone(&subject, &witness).await?;
    check_eq!(subject.state(&kept).await?, JobState::Succeeded, "a job that nobody unpinned");
    if result.is_some() {
        let results = subject.driver.results(&subject.queue, vec![kept.clone()]).await?;
        check_eq!(results, [result], "the result of a job that nobody unpinned");
    }
    unpin(vec![JobId::new("unknown")?, kept.clone()]).await?;
    gone(&subject, &kept).await?;
    unpin(vec![kept]).await?;
    let undeclared = fixture.undeclared("nowhere").await?;
    Ok(undeclared.driver.unpin(&undeclared.queue, vec![early]).await?)
}

pub(super) async fn removed_ids_are_known_until_acknowledged(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let address = fixture.address("removed")?;
    let notify = fixture.notify("removed")?;
    for deleted in [false, true] {
        let id = JobId::new(format!("removed-{deleted}"))?;
        let again = || job().with_id(id.clone()).with_notify(notify.clone());
        subject.enqueue(again()).await?;
        if deleted {
            subject.driver.delete_queue(&subject.queue, &Subject::owner()).await?;
            subject.declare(QueueSettings::default()).await?;
        } else {
            subject.driver.purge(&subject.queue, JobState::Ready, 10).await?;
        }
        let answer = crate::DriverExt::enqueue_one(&*subject.driver, &subject.queue, again()).await?;
        let purged = Enqueued::Duplicate {
            id: id.clone(),
            state: JobState::Cancelled,
            outcome: Some(Outcome::Purged),
        };
        check_eq!(answer, purged, "the id of a job that was removed");
        check!(subject.claim(10).await?.is_empty(), "a removed job was handed out");
        let completion = subject.next_completion(&address).await?;
        check_eq!(completion.outcome, Outcome::Purged, "the outcome");
        subject.driver.acknowledge(&address, vec![completion.receipt]).await?;
        subject.enqueue(again()).await?;
        let claimed = subject.next().await?;
        subject.succeed(&claimed).await?;
        let completion = subject.next_completion(&address).await?;
        subject.driver.acknowledge(&address, vec![completion.receipt]).await?;
    }
    Ok(())
}

async fn gone(subject: &Subject, id: &JobId) -> Verdict {
    eventually("a job whose retention is over is gone", || async { Ok(subject.record(id).await?.is_none()) })
        .await
}

pub(super) async fn completions_in_settle_order(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let address = fixture.address("order")?;
    let notify = fixture.notify("order")?;
    let jobs = (0..fixture.over("completions", 12)).map(|index| numbered(index).with_notify(notify.clone()));
    subject.enqueue_all(jobs.collect()).await?;
    let mut claimed = subject.claim(12).await?;
    claimed.reverse();
    for job in &claimed {
        subject.succeed(job).await?;
    }
    let mut order = Vec::new();
    let mut times = Vec::new();
    for expected in [5, 5, 2] {
        let page = subject.read(&address, 5).await?;
        check_eq!(page.completions.len(), expected, "completions on a page");
        order.extend(page.completions.iter().map(|completion| completion.job.clone()));
        times.extend(page.completions.iter().map(|completion| completion.settled_at));
        check!(!page.caught_up, "a page is the last one while others are leased");
        if expected == 2 {
            let receipts = page.completions.into_iter().map(|completion| completion.receipt);
            subject.driver.acknowledge(&address, receipts.collect()).await?;
        }
    }
    let settled: Vec<_> = claimed.into_iter().map(|job| job.id).collect();
    check_eq!(order, settled, "the order of completions");
    check!(times.is_sorted(), "settle times go backwards: {times:?}");
    Ok(())
}

pub(super) async fn retention_removes_finished_jobs(fixture: Fixture) -> Verdict {
    let settings = QueueSettings {
        retain_completed: Duration::from_millis(100),
        retain_dead: Duration::from_secs(3600),
        ..QueueSettings::default()
    };
    let subject = fixture.subject_with(settings.clone()).await?;
    subject.enqueue_all(vec![job(); 20]).await?;
    let claimed = subject.claim(20).await?;
    let (dead, done) = claimed.split_at(5);
    for job in dead {
        let bury = Settle::Bury { reason: DeadReason::Exhausted, failure: Failure::default() };
        subject.settle(job, bury).await?;
    }
    for job in done {
        subject.succeed(job).await?;
    }
    // `gone` waits for no longer than that.
    fixture.at_most("after its retention", SOON);
    for job in done {
        gone(&subject, &job.id).await?;
    }
    check_eq!(subject.stats().await?.dead, Some(5), "dead jobs, which are kept longer");
    let shorter = QueueSettings { retain_dead: Duration::ZERO, ..settings };
    subject.declare(shorter).await?;
    for job in dead {
        gone(&subject, &job.id).await?;
    }
    check_eq!(subject.stats().await?.dead, Some(0), "dead jobs");
    // What is forgotten can come again.
    subject.enqueue(job().with_id(dead[0].id.clone())).await?;
    Ok(())
}
