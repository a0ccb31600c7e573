//! Sizes and depths.

use crate::conformance::{
    Bytes, Fixture, Verdict, check, check_eq,
    fixture::{job, numbered},
    is_kind,
};
use crate::{DriverExt, Enqueued, ErrorKind, Failure, NewJob, Payload, QueueSettings, Settle};
use std::time::Duration;

fn depth(max_depth: u64) -> QueueSettings {
    QueueSettings { max_depth, ..QueueSettings::default() }
}

pub(super) async fn full_queue_refuses_producers_only(fixture: Fixture) -> Verdict {
    let subject = fixture.subject_with(depth(fixture.at_most("jobs that wait", 2_u64))).await?;
    let (driver, queue) = (&subject.driver, &subject.queue);
    let ids = subject.enqueue_all(vec![job(), job()]).await?;
    let full = driver.enqueue_one(queue, job()).await;
    check!(is_kind(&full, ErrorKind::Full), "a third job: {full:?}");
    if driver.capabilities().id_memory != crate::IdMemory::None {
        let known = driver.enqueue_one(queue, job().with_id(ids[0].clone())).await?;
        check!(matches!(known, Enqueued::Duplicate { .. }), "a known job: {known:?}");
    }
    driver.enqueue_one(queue, job().with_notify(fixture.notify("workflow")?)).await?;
    let claimed = subject.claim(1).await?;
    let retry = Settle::Retry { delay: Duration::ZERO, failure: Failure::default() };
    subject.settle(&claimed[0], retry).await?;
    let claimed = subject.claim(1).await?;
    subject.settle(&claimed[0], Settle::Release { delay: Duration::ZERO }).await?;
    if driver.capabilities().inspect {
        let bury = Settle::Bury { reason: crate::DeadReason::Rejected, failure: Failure::default() };
        for claimed in subject.claim(3).await? {
            let release = Settle::Release { delay: Duration::ZERO };
            subject.settle(&claimed, if claimed.id == ids[0] { bury.clone() } else { release }).await?;
        }
        driver.enqueue_one(queue, job().with_notify(fixture.notify("workflow")?)).await?;
        let redriven = driver.redrive(queue, vec![ids[0].clone()]).await?;
        check!(redriven[0].is_ok(), "a redrive into a full queue: {redriven:?}");
    }
    let still = driver.enqueue_one(queue, job()).await;
    check!(is_kind(&still, ErrorKind::Full), "a job into a queue that is over its depth: {still:?}");
    Ok(())
}

pub(super) async fn payload_large(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let Bytes(limit) = fixture.at_most("of payload", Bytes(subject.driver.capabilities().limits.max_payload));
    let sized = |size: usize| {
        let bytes: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
        let payload = Payload { content_type: "application/octet-stream".into(), bytes: bytes.into() };
        NewJob::new("large", payload)
    };
    let jobs = vec![sized(limit - 1), sized(limit + 1), sized(limit), sized(0)];
    let answers = subject.driver.enqueue(&subject.queue, jobs.clone()).await?;
    check!(is_kind(&answers[1], ErrorKind::TooLarge), "over the limit: {:?}", answers[1]);
    for index in [0, 2, 3] {
        check!(answers[index].is_ok(), "within the limit: {:?}", answers[index]);
        let claimed = subject.next().await?;
        check!(claimed.payload == jobs[index].payload, "payload {index} did not arrive unchanged");
        subject.succeed(&claimed).await?;
    }
    Ok(())
}

pub(super) async fn backpressure_saturation(fixture: Fixture) -> Verdict {
    let most = fixture.at_most("jobs that wait", 20_usize);
    let sent = fixture.over("jobs at once", 50_usize);
    let subject = fixture.subject_with(depth(most as u64)).await?;
    let answers = subject.driver.enqueue(&subject.queue, (0..sent).map(numbered).collect()).await?;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.is_ok());
    check_eq!((taken.len(), refused.len()), (most, sent - most), "jobs taken and refused");
    check!(refused.iter().all(|answer| is_kind(answer, ErrorKind::Full)), "refused jobs: {refused:?}");
    for claimed in subject.claim(5).await? {
        subject.succeed(&claimed).await?;
    }
    let answers = subject.driver.enqueue(&subject.queue, (sent..sent + 10).map(numbered).collect()).await?;
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    check_eq!(taken, 5, "jobs taken after five were done");
    check_eq!(subject.claim(100).await?.len(), most, "jobs in the queue");
    Ok(())
}
