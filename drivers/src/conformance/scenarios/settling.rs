//! What settles do.

use crate::conformance::{Bytes, Fixture, Verdict, check, check_eq, fixture::job, is_kind};
use crate::{Claimed, DeadReason, DriverExt, ErrorKind, Failure, JobState, Limits, Outcome, Payload, Settle};
use std::time::Duration;

fn retry(message: &str) -> Settle {
    Settle::Retry { delay: Duration::ZERO, failure: Failure::new("HandlerError", message) }
}

pub(super) async fn retry_counts_attempts(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let first = subject.next().await?;
    check_eq!(first.last_failure, None, "the failure before the first attempt");
    subject.settle(&first, retry("first")).await?;
    let second = subject.next().await?;
    check_eq!(second.id, id, "the job that is retried");
    check_eq!((second.attempt, second.delivery), (2, 2), "attempt and delivery");
    let expected = Failure::new("HandlerError", "first");
    check_eq!(second.last_failure, Some(expected), "the failure of the attempt before");
    check!(second.receipt != first.receipt, "two claims have one receipt");
    subject.succeed(&second).await
}

pub(super) async fn release_keeps_attempt(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let release = Settle::Release { delay: Duration::ZERO };
    let first = subject.next().await?;
    subject.settle(&first, release.clone()).await?;
    let second = subject.next().await?;
    check_eq!(second.attempt, 1, "the attempt after a release");
    subject.settle(&second, retry("counts")).await?;
    let third = subject.next().await?;
    subject.settle(&third, release).await?;
    let fourth = subject.next().await?;
    check_eq!(fourth.attempt, 2, "the attempt after a retry and a release");
    check_eq!(
        fourth.last_failure.map(|failure| failure.message),
        Some("counts".to_owned()),
        "the last failure"
    );
    Ok(())
}

pub(super) async fn poison_message_max_retry(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let most = fixture.at_most("attempts", 3_u32);
    for attempt in 1..=most {
        let claimed = subject.next().await?;
        check_eq!(claimed.attempt, attempt, "the attempt");
        let failure = Failure::new("HandlerError", format!("failed {attempt}"));
        let settle = if attempt < most {
            Settle::Retry { delay: Duration::ZERO, failure }
        } else {
            Settle::Bury { reason: DeadReason::Exhausted, failure }
        };
        subject.settle(&claimed, settle).await?;
    }
    check!(subject.claim(1).await?.is_empty(), "a dead job was handed out");
    let Some(record) = subject.record(&id).await? else {
        return Err(crate::conformance::Failed("a dead job is not known".into()));
    };
    check_eq!((record.state, record.attempts), (JobState::Dead, most), "state and attempts");
    let expected =
        Outcome::Dead { reason: DeadReason::Exhausted, failure: Failure::new("HandlerError", "failed 3") };
    check_eq!(record.outcome, Some(expected), "the outcome");
    check!(record.finished_at.is_some(), "a dead job has no end");
    Ok(())
}

pub(super) async fn redrive_gives_all_attempts_back(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let first = subject.next().await?;
    subject.settle(&first, retry("one")).await?;
    let second = subject.next().await?;
    let bury = Settle::Bury { reason: DeadReason::Rejected, failure: Failure::new("Rejected", "two") };
    subject.settle(&second, bury).await?;
    let unknown = crate::JobId::new("unknown")?;
    let answers = subject.driver.redrive(&subject.queue, vec![id.clone(), unknown]).await?;
    check!(answers[0].is_ok(), "a dead job was not redriven: {answers:?}");
    check!(is_kind(&answers[1], ErrorKind::NotFound), "an unknown job was redriven: {answers:?}");
    let again = subject.next().await?;
    check_eq!((&again.id, again.attempt), (&id, 1), "the redriven job and its attempt");
    let active = subject.driver.redrive(&subject.queue, vec![id]).await?;
    check!(is_kind(&active[0], ErrorKind::Conflict), "a running job was redriven: {active:?}");
    subject.succeed(&again).await
}

pub(super) async fn redrive_of_a_workflow_job_is_refused(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job().with_notify(fixture.notify("dead")?)).await?;
    let claimed = subject.next().await?;
    let bury = Settle::Bury { reason: DeadReason::Rejected, failure: Failure::new("Rejected", "no") };
    subject.settle(&claimed, bury).await?;
    let answers = subject.driver.redrive(&subject.queue, vec![id.clone()]).await?;
    check!(
        answers[0].as_ref().is_err_and(|error| {
            error.kind == ErrorKind::Conflict && error.message.contains("retry the workflow")
        }),
        "a workflow's job was redriven: {answers:?}"
    );
    check_eq!(subject.state(&id).await?, JobState::Dead, "its state");
    Ok(())
}

pub(super) async fn result_large(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let Bytes(limit) = fixture.at_most("of result", Bytes(subject.driver.capabilities().limits.max_result));
    let sizes = [0, 1, Limits::INLINE_RESULT, Limits::INLINE_RESULT + 1, limit - 1, limit];
    let mut ids = Vec::new();
    for size in sizes {
        ids.push(subject.enqueue(job()).await?);
        let claimed = subject.next().await?;
        subject.settle(&claimed, with_result(size)).await?;
    }
    ids.push(subject.enqueue(job()).await?);
    let claimed = subject.next().await?;
    refuses_large(&subject, &claimed, limit).await?;
    subject.succeed(&claimed).await?;
    ids.push(crate::JobId::new("unknown")?);
    for (index, size) in sizes.into_iter().map(Some).chain([None, None]).enumerate() {
        let results = subject.driver.results(&subject.queue, vec![ids[index].clone()]).await?;
        let got = results.into_iter().next().flatten().map(|result| result.len());
        check_eq!(got, size, "the bytes of result {index}");
    }
    Ok(())
}

fn with_result(size: usize) -> Settle {
    Settle::Succeed {
        result: Some(Payload {
            content_type: "application/octet-stream".into(),
            bytes: vec![b'x'; size].into(),
        }),
    }
}

async fn refuses_large(subject: &crate::conformance::Subject, claimed: &Claimed, limit: usize) -> Verdict {
    let settle = with_result(limit + 1);
    let answer = subject.driver.settle_one(&subject.queue, &claimed.receipt, settle).await;
    check!(is_kind(&answer, ErrorKind::TooLarge), "a result over the limit: {answer:?}");
    Ok(())
}

pub(super) async fn duplicate_delivery_idempotency(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let other = subject.beside(&fixture).await?;
    let notify = fixture.notify("once")?;
    let address = notify.address.clone();
    subject.enqueue(job().with_notify(notify)).await?;
    let slow = subject.next_for(Duration::from_millis(200)).await?;
    let fast = other.next().await?;
    check_eq!(fast.id, slow.id, "the job of the second claimer");
    other.succeed(&fast).await?;
    let bury = Settle::Bury { reason: DeadReason::Rejected, failure: Failure::default() };
    for settle in [Settle::Succeed { result: None }, retry("late"), bury] {
        let answer = subject.driver.settle_one(&subject.queue, &slow.receipt, settle).await;
        check!(is_kind(&answer, ErrorKind::StaleReceipt), "a late settle: {answer:?}");
    }
    let page = subject.read(&address, 10).await?;
    check_eq!(page.completions.len(), 1, "completions of a job that was delivered twice");
    check_eq!(page.completions[0].outcome, Outcome::Succeeded { result: None }, "the outcome");
    Ok(())
}
