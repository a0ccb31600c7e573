//! One id is one job: within its queue, across handles and restarts, and no further.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq,
    fixture::{LEASE, job},
};
use crate::{DriverExt, Enqueued, JobId, JobState};
use futures::future::try_join_all;
use std::time::Duration;

async fn send(subject: &Subject, id: &JobId) -> Result<Enqueued, Failed> {
    Ok(subject.driver.enqueue_one(&subject.queue, job().with_id(id.clone())).await?)
}

pub(super) async fn unique_queue_scope(fixture: Fixture) -> Verdict {
    let one = fixture.subject().await?;
    let other = fixture.undeclared("others").await?;
    other.declare(crate::QueueSettings::default()).await?;
    let id = JobId::new("the-same")?;
    for subject in [&one, &other] {
        let answer = send(subject, &id).await?;
        check_eq!(answer, Enqueued::Created { id: id.clone() }, "an id that is new in its queue");
    }
    let held = one.next().await?;
    one.succeed(&held).await?;
    // The end in one queue is none in the other.
    let answer = send(&other, &id).await?;
    let expected = Enqueued::Duplicate { id: id.clone(), state: JobState::Ready, outcome: None };
    check_eq!(answer, expected, "the job of the other queue");
    check_eq!(other.claim(10).await?.len(), 1, "jobs in the other queue");
    check!(one.claim(10).await?.is_empty(), "the job came again");
    Ok(())
}

pub(super) async fn unique_across_handles(fixture: Fixture) -> Verdict {
    let (handles_at_once, ids) = (fixture.over("handles at once", 8_usize), fixture.over("ids", 20_usize));
    let subject = fixture.subject().await?;
    let mut handles = Vec::new();
    for _ in 0..handles_at_once {
        handles.push(subject.beside(&fixture).await?);
    }
    for round in 0..ids {
        let id = JobId::new(format!("round-{round}"))?;
        let answers = try_join_all(handles.iter().map(|handle| send(handle, &id))).await?;
        let created = answers.iter().filter(|answer| matches!(answer, Enqueued::Created { .. })).count();
        check_eq!(created, 1, "handles of {handles_at_once} that were told the job was new");
    }
    check_eq!(subject.claim_for(100, LEASE, Duration::ZERO).await?.len(), ids, "jobs in the queue");
    Ok(())
}

pub(super) async fn unique_across_restarts(fixture: Fixture) -> Verdict {
    let before = fixture.subject().await?;
    let [waiting, done] = ["waiting", "done"].map(JobId::new);
    let (waiting, done) = (waiting?, done?);
    send(&before, &done).await?;
    let held = before.next().await?;
    before.succeed(&held).await?;
    send(&before, &waiting).await?;
    fixture.restart().await?;
    let after = before.beside(&fixture).await?;
    for (id, expected) in [(&waiting, JobState::Ready), (&done, JobState::Succeeded)] {
        let answer = send(&after, id).await?;
        check!(
            matches!(&answer, Enqueued::Duplicate { state, .. } if *state == expected),
            "an id from before the restart: {answer:?}"
        );
    }
    check_eq!(after.claim(10).await?.len(), 1, "jobs in the queue");
    Ok(())
}
