//! Jobs go in and come out.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq,
    fixture::{LEASE, SOON, job, number, numbered},
    is_kind,
    machine::Watch,
};
use crate::{
    Claim, DriverExt, Enqueued, ErrorKind, JobId, JobState, ListJobs, NewJob, Outcome, Overrides, Payload,
    ReadCompletions, Receipt, Settle, StoredResult,
};
use std::time::{Duration, Instant};

pub(super) async fn enqueue_is_claimed_once(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let other = subject.beside(&fixture).await?;
    let mut sent = NewJob {
        overrides: Overrides { max_attempts: Some(7), timeout: Some(Duration::from_millis(1500)) },
        notify: Some(fixture.notify("sent")?),
        ..NewJob::new("mail.send", Payload::json(" {\"a\": 1.50}"))
    };
    sent.headers.insert("traceparent".into(), "00-ab-cd-01".into());
    let id = subject.enqueue(sent.clone()).await?;
    let claimed = subject.next().await?;
    check_eq!(claimed.id, id, "the id");
    check_eq!(claimed.job_type, sent.job_type, "the type");
    check_eq!(claimed.payload, sent.payload, "the payload");
    check_eq!(claimed.overrides, sent.overrides, "the overrides");
    check_eq!(claimed.headers, sent.headers, "the headers");
    check_eq!(claimed.notify, sent.notify, "the notification");
    check_eq!((claimed.attempt, claimed.delivery), (1, 1), "attempt and delivery");
    check!(claimed.lease_until > claimed.enqueued_at, "the lease ends before it begins");
    check!(other.claim(10).await?.is_empty(), "a claimed job was claimed again");
    subject.succeed(&claimed).await?;
    check!(other.claim(10).await?.is_empty(), "a finished job was claimed again");
    Ok(())
}

pub(super) async fn duplicate_id_adds_nothing(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = JobId::new("the-same")?;
    let batch = vec![job().with_id(id.clone()), job(), job().with_id(id.clone())];
    let answers = subject.driver.enqueue(&subject.queue, batch).await?;
    let created = answers.iter().filter(|answer| matches!(answer, Ok(Enqueued::Created { .. })));
    check_eq!(created.count(), 2, "jobs created by a batch with a duplicate");
    let again = subject.driver.enqueue_one(&subject.queue, job().with_id(id.clone())).await?;
    let expected = Enqueued::Duplicate { id: id.clone(), state: JobState::Ready, outcome: None };
    check_eq!(again, expected, "the answer to a duplicate");
    check_eq!(subject.claim(10).await?.len(), 2, "jobs in the queue");
    let running = subject.driver.enqueue_one(&subject.queue, job().with_id(id)).await?;
    check!(
        matches!(running, Enqueued::Duplicate { state: JobState::Active, .. }),
        "a running job's duplicate was answered with {running:?}"
    );
    Ok(())
}

pub(super) async fn same_id_other_payload_conflicts(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = JobId::new("the-same")?;
    subject.enqueue(job().with_id(id.clone())).await?;
    for other in [
        NewJob::new("mail", Payload::json("{}")),
        NewJob::new("other", job().payload),
        NewJob::new("mail", Payload { content_type: "text/plain".into(), ..job().payload }),
    ] {
        let answer = subject.driver.enqueue_one(&subject.queue, other.with_id(id.clone())).await;
        check!(is_kind(&answer, ErrorKind::Conflict), "another job with the same id: {answer:?}");
    }
    check_eq!(subject.claim(10).await?.len(), 1, "jobs in the queue");
    Ok(())
}

pub(super) async fn finished_id_answers_its_outcome(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let claimed = subject.next().await?;
    let result = Payload::json("{\"n\":1}");
    let settle = Settle::Succeed { result: Some(result.clone()) };
    subject.settle(&claimed, settle).await?;
    let answer = subject.driver.enqueue_one(&subject.queue, job().with_id(id.clone())).await?;
    let expected = Enqueued::Duplicate {
        id,
        state: JobState::Succeeded,
        outcome: Some(Outcome::Succeeded { result: Some(StoredResult::Inline { payload: result }) }),
    };
    check_eq!(answer, expected, "the answer to the id of a finished job");
    Ok(())
}

pub(super) async fn ordering_single_worker_fifo(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let jobs = fixture.over("jobs", 30_usize);
    for first in (0..jobs).step_by(10) {
        subject.enqueue_all((first..first + 10).map(numbered).collect()).await?;
    }
    for expected in 0..jobs {
        let claimed = subject.next().await?;
        check_eq!(number(&claimed)?, expected, "the next job");
        subject.succeed(&claimed).await?;
    }
    Ok(())
}

pub(super) async fn claim_waits_for_work(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let since = Instant::now();
    let wait = fixture.over("wait for nothing", Duration::from_millis(300));
    let none = subject.claim_for(1, LEASE, wait).await?;
    check!(none.is_empty(), "a claim of an empty queue got {none:?}");
    check!(since.elapsed() >= wait, "a claim gave up after {:?} of {wait:?}", since.elapsed());
    let producer = subject.beside(&fixture).await?;
    let waiting = async { subject.next().await.map(|claimed| (claimed, Instant::now())) };
    let watch = Watch::start();
    let (claimed, enqueued) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let since = Instant::now();
        producer.enqueue(job()).await.map(|id| (id, since))
    });
    let ((claimed, at), (id, since)) = (claimed?, enqueued?);
    check_eq!(claimed.id, id, "the job that was waited for");
    let took = at.saturating_duration_since(since);
    let late = fixture.at_most("after the enqueue", Duration::from_secs(2));
    check!(took < late + watch.pauses(), "a waiting claim got its job {took:?} after the enqueue");
    fixture.measure(format!("answered {took:.1?} after the enqueue began"));
    Ok(())
}

pub(super) async fn unknown_queue_is_not_found(fixture: Fixture) -> Verdict {
    let subject = fixture.undeclared("never-declared").await?;
    let (driver, queue) = (&subject.driver, &subject.queue);
    let claim = Claim { max: 1, wait: SOON, lease: LEASE, worker: String::new() };
    let answers = [
        ("enqueue", driver.enqueue(queue, vec![job()]).await.err()),
        ("claim", driver.claim(queue, claim).await.err()),
        ("stats", driver.stats(queue).await.err()),
        ("extend", driver.extend(queue, vec![Receipt("1-0".into())], LEASE).await.err()),
    ];
    for (operation, error) in answers {
        let kind = error.map(|error| error.kind);
        check_eq!(kind, Some(ErrorKind::NotFound), "{operation} of an unknown queue");
    }
    // What is to be gone is gone.
    driver.delete_queue(queue, &Subject::owner()).await?;
    Ok(())
}

pub(super) async fn bad_requests_are_invalid(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let (driver, queue) = (&subject.driver, &subject.queue);
    let bad = NewJob::new("has blanks", Payload::default());
    let answers = driver.enqueue(queue, vec![job(), bad, job()]).await?;
    check_eq!(answers.len(), 3, "answers");
    check!(answers[0].is_ok() && answers[2].is_ok(), "a bad job spoiled its neighbours: {answers:?}");
    check!(is_kind(&answers[1], ErrorKind::Invalid), "a bad job: {:?}", answers[1]);
    let claim = |max, lease| Claim { max, wait: Duration::ZERO, lease, worker: String::new() };
    let none = driver.claim(queue, claim(0, LEASE)).await;
    check!(is_kind(&none, ErrorKind::Invalid), "a claim of nothing: {none:?}");
    let no_time = driver.claim(queue, claim(1, Duration::ZERO)).await;
    check!(is_kind(&no_time, ErrorKind::Invalid), "a claim for no time: {no_time:?}");
    let longest = fixture.at_most("lease of completions", ReadCompletions::MAX_LEASE);
    let read = ReadCompletions { max: 1, wait: Duration::ZERO, lease: longest + Duration::from_secs(1) };
    let long = driver.completions(&fixture.address("a")?, read).await;
    check!(is_kind(&long, ErrorKind::Invalid), "completions leased for too long: {long:?}");
    if driver.capabilities().inspect {
        let active = driver.purge(queue, JobState::Active, 1).await;
        check!(is_kind(&active, ErrorKind::Invalid), "a purge of active jobs: {active:?}");
        let list = ListJobs { state: JobState::Ready, limit: 1, after: Some("nonsense".into()) };
        let cursor = driver.list(queue, list).await;
        check!(is_kind(&cursor, ErrorKind::Invalid), "a cursor nobody gave: {cursor:?}");
    }
    let most = fixture.at_most("jobs in a batch", crate::Limits::BATCH);
    let many = driver.enqueue(queue, vec![job(); most + 1]).await;
    check!(is_kind(&many, ErrorKind::Invalid), "a batch over the limit");
    Ok(())
}

pub(super) async fn empty_batches_are_fine(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let (driver, queue) = (&subject.driver, &subject.queue);
    check!(driver.enqueue(queue, vec![]).await?.is_empty(), "enqueue");
    check!(driver.settle(queue, vec![]).await?.is_empty(), "settle");
    check!(driver.extend(queue, vec![], LEASE).await?.is_empty(), "extend");
    driver.acknowledge(&fixture.address("a")?, vec![]).await?;
    if driver.capabilities().cancel {
        check!(driver.cancel(queue, vec![]).await?.is_empty(), "cancel");
    }
    if driver.capabilities().inspect {
        check!(driver.redrive(queue, vec![]).await?.is_empty(), "redrive");
    }
    if driver.capabilities().result_store {
        check!(driver.results(queue, vec![]).await?.is_empty(), "results");
    }
    let page = subject.read(&fixture.address("nobody")?, 10).await?;
    if !page.caught_up {
        return Err(Failed("an address that nobody ever used has something left".into()));
    }
    Ok(())
}
