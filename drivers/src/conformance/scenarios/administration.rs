//! What operators and people do to queues and jobs.

use super::contract::{standing, states};
use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq,
    fixture::{LEASE, SOON, job, number, numbered},
    is_kind,
    machine::{Watch, late},
};
use crate::{
    DeadReason, Declaration, DriverExt, ErrorKind, Failure, JobId, JobState, ListJobs, Outcome, Owner,
    Payload, QueueSettings, QueueStats, Settle, Wake,
};
use futures::StreamExt;
use std::{collections::BTreeSet, time::Duration};

pub(super) async fn pause_hands_out_nothing(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let running = subject.next().await?;
    let paused = QueueSettings { paused: true, ..QueueSettings::default() };
    subject.declare(paused).await?;
    let id = subject.enqueue(job()).await?;
    let wait = fixture.over("wait for nothing", Duration::from_millis(200));
    let none = subject.claim_for(1, LEASE, wait).await?;
    check!(none.is_empty(), "a paused queue handed out {none:?}");
    subject.succeed(&running).await?;
    let other = subject.beside(&fixture).await?;
    let (claimed, resumed) = tokio::join!(subject.next(), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        other.declare(QueueSettings::default()).await
    });
    resumed?;
    check_eq!(claimed?.id, id, "the job after the pause");
    Ok(())
}

pub(super) async fn cancel_waiting_job(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let ready = subject.enqueue(job()).await?;
    let mut ids = vec![ready.clone()];
    if subject.driver.capabilities().delay.is_some() {
        ids.push(subject.enqueue(job().with_delay(Duration::from_secs(60))).await?);
    }
    ids.push(JobId::new("unknown")?);
    let mut answers = subject.driver.cancel(&subject.queue, ids.clone()).await?;
    let unknown = answers.pop();
    check!(
        unknown.is_some_and(|answer| is_kind(&answer, ErrorKind::NotFound)),
        "an unknown job was cancelled"
    );
    for answer in answers {
        check_eq!(answer?, JobState::Cancelled, "the state of a cancelled job");
    }
    check!(subject.claim(10).await?.is_empty(), "a cancelled job was handed out");
    let again = subject.driver.cancel(&subject.queue, vec![ready]).await?.pop();
    check!(matches!(again, Some(Ok(JobState::Cancelled))), "cancelling twice answered {again:?}");
    Ok(())
}

pub(super) async fn cancel_running_job_is_told(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let retry = Settle::Retry { delay: Duration::ZERO, failure: Failure::default() };
    let cases = [
        (Settle::Succeed { result: None }, JobState::Succeeded),
        (retry, JobState::Cancelled),
        (Settle::Release { delay: Duration::ZERO }, JobState::Cancelled),
    ];
    for (settle, expected) in cases {
        let id = subject.enqueue(job()).await?;
        let claimed = subject.next().await?;
        let extend = || subject.driver.extend_one(&subject.queue, &claimed.receipt, LEASE);
        check!(!extend().await?.cancel_requested, "nobody has asked yet");
        let answer = subject.driver.cancel(&subject.queue, vec![id.clone()]).await?.pop();
        check!(matches!(answer, Some(Ok(JobState::Active))), "cancelling answered {answer:?}");
        check!(extend().await?.cancel_requested, "the claimer is not told");
        subject.settle(&claimed, settle).await?;
        let states = subject.driver.cancel(&subject.queue, vec![id]).await?;
        check!(
            matches!(states.first(), Some(Ok(state)) if *state == expected),
            "the end is {states:?}, not {expected:?}"
        );
    }
    check!(subject.claim(10).await?.is_empty(), "a cancelled job was handed out again");
    Ok(())
}

pub(super) async fn purge_removes(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue_all((0..7).map(numbered).collect()).await?;
    let dead = subject.next().await?;
    bury(&subject, &dead).await?;
    let active = subject.next().await?;
    let purge = |state, limit| subject.driver.purge(&subject.queue, state, limit);
    check_eq!(purge(JobState::Ready, 3).await?, 3, "ready jobs purged");
    check_eq!(purge(JobState::Dead, 10).await?, 1, "dead jobs purged");
    check_eq!(purge(JobState::Dead, 10).await?, 0, "dead jobs purged again");
    check_eq!(purge(JobState::Ready, 10).await?, 2, "the rest of the ready jobs");
    check_eq!(subject.record(&dead.id).await?, None, "a purged job");
    check!(subject.claim(10).await?.is_empty(), "a purged job was handed out");
    subject.succeed(&active).await
}

async fn bury(subject: &Subject, claimed: &crate::Claimed) -> Verdict {
    let settle = Settle::Bury { reason: DeadReason::Exhausted, failure: Failure::new("HandlerError", "no") };
    subject.settle(claimed, settle).await
}

pub(super) async fn list_pages_through_all(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let jobs = (0..fixture.over("jobs", 25)).map(numbered).collect();
    let page_size = fixture.at_most("on a page", 10_u32);
    let ids: Vec<_> = subject.enqueue_all(jobs).await?;
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let list = ListJobs { state: JobState::Ready, limit: page_size, after };
        let page = subject.driver.list(&subject.queue, list).await?;
        check!(page.jobs.len() <= page_size as usize, "a page of {} jobs", page.jobs.len());
        seen.extend(page.jobs.into_iter().map(|job| job.id));
        check!(seen.len() <= 25, "pages hold more than there is");
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    check_eq!(seen, ids, "the jobs of all pages, oldest first");
    let claimed = subject.claim(3).await?;
    for job in &claimed {
        bury(&subject, job).await?;
    }
    let list = |state| ListJobs { state, limit: 100, after: None };
    for (state, count) in [(JobState::Ready, 22), (JobState::Dead, 3), (JobState::Succeeded, 0)] {
        let page = subject.driver.list(&subject.queue, list(state)).await?;
        check_eq!((page.jobs.len(), page.next), (count, None), "the jobs in {state:?}");
        check!(page.jobs.iter().all(|job| job.state == state), "a job of another state is listed");
    }
    Ok(())
}

/// The outcome of a job that was made to stand in `state`, and its attempts.
fn expected(state: JobState) -> (Option<Outcome>, u32) {
    let failure = Failure::new("HandlerError", "no");
    match state {
        JobState::Succeeded => (Some(Outcome::Succeeded { result: None }), 1),
        JobState::Dead => (Some(Outcome::Dead { reason: DeadReason::Rejected, failure }), 1),
        JobState::Cancelled => (Some(Outcome::Cancelled), 0),
        JobState::Retrying => (None, 1),
        JobState::Ready | JobState::Scheduled | JobState::Blocked | JobState::Active => (None, 0),
    }
}

pub(super) async fn list_tells_each_state(fixture: Fixture) -> Verdict {
    let states = states(&fixture).await?;
    for state in states.iter().copied() {
        let (subject, id) = standing(&fixture, "list", state).await?;
        let known = look(&subject, &id).await?;
        check_eq!((&known.outcome, known.attempts), (&expected(state).0, expected(state).1), "{state:?}");
        check_eq!(known.finished_at.is_some(), state.is_terminal(), "whether it has ended, {state:?}");
        for listed in states.iter().copied() {
            let list = ListJobs { state: listed, limit: 10, after: None };
            let page = subject.driver.list(&subject.queue, list).await?;
            check_eq!(page.next, None, "what follows one job");
            if listed == state {
                let looked = std::slice::from_ref(&known);
                check_eq!(page.jobs.as_slice(), looked, "the list of {state:?}, and a look at its job");
            } else {
                // Who blocks another one is held.
                let others = usize::from((state, listed) == (JobState::Blocked, JobState::Active));
                check_eq!(page.jobs.len(), others, "jobs in {listed:?} where one is in {state:?}");
            }
        }
    }
    history(&fixture).await
}

/// What has ended stays in pages, in the order of the ends, each with what came of it.
async fn history(fixture: &Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let count = fixture.over("finished jobs", 25_usize);
    let ids = subject.enqueue_all((0..count).map(numbered).collect()).await?;
    // The last one ends first.
    let mut claimed = subject.claim(25).await?;
    while let Some(job) = claimed.pop() {
        let result = Some(Payload::json(number(&job)?.to_string()));
        subject.settle(&job, Settle::Succeed { result }).await?;
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let list = ListJobs { state: JobState::Succeeded, limit: 10, after };
        let page = subject.driver.list(&subject.queue, list).await?;
        check!(page.jobs.len() <= 10, "a page of {} jobs", page.jobs.len());
        seen.extend(page.jobs);
        check!(seen.len() <= count, "pages hold more than there is");
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let ends: Vec<_> = seen.iter().map(|job| job.finished_at).collect();
    check!(ends.is_sorted() && !ends.contains(&None), "not in the order of their ends: {ends:?}");
    for job in &seen {
        let kept = matches!(&job.outcome, Some(Outcome::Succeeded { result: Some(_) }));
        check!(kept && job.attempts == 1, "a finished job is listed as {job:?}");
    }
    let seen: BTreeSet<_> = seen.into_iter().map(|job| job.id).collect();
    check_eq!(seen, BTreeSet::from_iter(ids), "the jobs of all pages");
    Ok(())
}

pub(super) async fn inspect_tells_state(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let ready = look(&subject, &id).await?;
    check_eq!((ready.state, ready.attempts), (JobState::Ready, 0), "a new job");
    check_eq!(ready.payload_bytes, job().payload.len() as u64, "its payload");
    check_eq!((ready.lease_until, ready.outcome.clone()), (None, None), "lease and outcome of a new job");
    let claimed = subject.next().await?;
    let active = look(&subject, &id).await?;
    check_eq!(active.state, JobState::Active, "a claimed job");
    check_eq!(active.lease_until, Some(claimed.lease_until), "the lease of a claimed job");
    check_eq!(active.worker.as_deref(), Some("conformance"), "the worker of a claimed job");
    let later = Settle::Retry { delay: Duration::from_secs(60), failure: Failure::new("Timeout", "slow") };
    subject.settle(&claimed, later).await?;
    let retrying = look(&subject, &id).await?;
    check_eq!((retrying.state, retrying.attempts), (JobState::Retrying, 1), "a retried job");
    check_eq!(retrying.last_failure, Some(Failure::new("Timeout", "slow")), "its failure");
    check!(retrying.due_at.since(retrying.enqueued_at) >= Duration::from_secs(60), "its due time");
    let other = subject.enqueue(job().with_delay(Duration::from_secs(60))).await?;
    check_eq!(subject.state(&other).await?, JobState::Scheduled, "a delayed job");
    let done = subject.enqueue(job()).await?;
    let claimed = subject.next().await?;
    subject.succeed(&claimed).await?;
    let record = look(&subject, &done).await?;
    check_eq!(record.outcome, Some(Outcome::Succeeded { result: None }), "the outcome of a done job");
    check!(record.finished_at.is_some() && record.lease_until.is_none(), "the end of a done job");
    check_eq!(subject.record(&JobId::new("unknown")?).await?, None, "an unknown job");
    Ok(())
}

async fn look(subject: &Subject, id: &JobId) -> Result<crate::JobRecord, Failed> {
    let record = subject.record(id).await?;
    record.ok_or_else(|| Failed(format!("job {id} is not known")))
}

pub(super) async fn owner_mismatch_conflicts(fixture: Fixture) -> Verdict {
    let subject = fixture.undeclared("owned").await?;
    let declaration = |uid: &str, adopt| Declaration {
        owner: Owner { installation: "conformance".into(), uid: uid.into() },
        settings: QueueSettings::default(),
        adopt,
    };
    let declare = |uid, adopt| subject.driver.declare(&subject.queue, declaration(uid, adopt));
    let first = declare("one", false).await?;
    check!(first.created, "a new queue was not created");
    let again = declare("one", false).await?;
    check!(!again.created, "a known queue was created again");
    check_eq!(again.backend_id, first.backend_id, "the id of the broker's data");
    check_eq!(subject.driver.probe().await?.backend_id, first.backend_id, "the id that the probe tells");
    let id = subject.enqueue(job()).await?;
    let theft = declare("two", false).await;
    check!(is_kind(&theft, ErrorKind::Conflict), "another owner: {theft:?}");
    check!(!declare("two", true).await?.created, "an adopted queue was created again");
    check_eq!(subject.next().await?.id, id, "the job in an adopted queue");
    let back = declare("one", false).await;
    check!(is_kind(&back, ErrorKind::Conflict), "the owner before: {back:?}");
    Ok(())
}

pub(super) async fn deletion_by_another_owner_conflicts(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let others = [
        Owner { uid: "two".into(), ..Subject::owner() },
        Owner { installation: "another".into(), ..Subject::owner() },
    ];
    for other in others {
        let deleted = subject.driver.delete_queue(&subject.queue, &other).await;
        check!(is_kind(&deleted, ErrorKind::Conflict), "a deletion by {other:?}: {deleted:?}");
    }
    let claimed = subject.next().await?;
    check_eq!(claimed.id, id, "the job of a queue that somebody else wanted to delete");
    subject.driver.delete_queue(&subject.queue, &Subject::owner()).await?;
    let stats = subject.driver.stats(&subject.queue).await;
    check!(is_kind(&stats, ErrorKind::NotFound), "a deleted queue: {stats:?}");
    Ok(())
}

pub(super) async fn stats_are_exact(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let minute = Duration::from_secs(60);
    depths(&subject, [0, 0, 0, 0, 0]).await?;
    subject.enqueue_all((0..6).map(numbered).collect()).await?;
    subject.enqueue(job().with_delay(minute)).await?;
    let stats = depths(&subject, [6, 1, 0, 0, 0]).await?;
    check!(stats.oldest_ready_at.is_some(), "the oldest ready job is not told");
    check!(stats.next_due_at > stats.oldest_ready_at, "the next due time is not told");
    let claimed = subject.claim(4).await?;
    depths(&subject, [2, 1, 4, 0, 0]).await?;
    let retry = |delay| Settle::Retry { delay, failure: Failure::default() };
    subject.settle(&claimed[0], retry(minute)).await?;
    subject.settle(&claimed[1], retry(Duration::ZERO)).await?;
    bury(&subject, &claimed[2]).await?;
    subject.succeed(&claimed[3]).await?;
    let stats = depths(&subject, [3, 1, 0, 1, 1]).await?;
    check!(stats.service_time_ms.is_some(), "the service time is not told");
    for job in subject.claim(10).await? {
        subject.succeed(&job).await?;
    }
    let stats = depths(&subject, [0, 1, 0, 1, 1]).await?;
    check_eq!(stats.oldest_ready_at, None, "the oldest ready job of none");
    Ok(())
}

async fn depths(subject: &Subject, expected: [u64; 5]) -> Result<QueueStats, Failed> {
    let stats = subject.stats().await?;
    let found = [stats.ready, stats.scheduled, stats.active, stats.retrying, stats.dead];
    check_eq!(found, expected.map(Some), "ready, scheduled, active, retrying, dead");
    Ok(stats)
}

pub(super) async fn wake_hints_new_work(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let mut hints = fixture.driver().await?.wake().await?;
    let bound = fixture.at_most("until a hint", late());
    let mut worst = Duration::ZERO;
    let mut hear = async |expected: Wake, due: Duration| -> Verdict {
        let watch = Watch::start();
        let heard = async {
            while let Some(hint) = hints.next().await {
                if hint? == expected {
                    return Ok::<_, Failed>(());
                }
            }
            Err(Failed("the hints ended".into()))
        };
        tokio::time::timeout(due + SOON, heard).await??;
        let (took, pauses) = (watch.elapsed(), watch.pauses());
        check!(took < due + bound + pauses, "a hint came after {took:.1?}, of which pauses {pauses:.1?}");
        worst = worst.max(took.saturating_sub(due));
        Ok(())
    };
    let of_queue = || Wake::Queue { queue: subject.queue.clone() };
    subject.enqueue(job().with_notify(fixture.notify("woken")?)).await?;
    hear(of_queue(), Duration::ZERO).await?;
    let claimed = subject.next().await?;
    subject.succeed(&claimed).await?;
    let address = fixture.address("woken")?;
    hear(Wake::Completions { address }, Duration::ZERO).await?;
    if subject.driver.capabilities().delay.is_some() {
        let delay = Duration::from_millis(100);
        subject.enqueue(job().with_delay(delay)).await?;
        hear(of_queue(), delay).await?;
        check_eq!(subject.next().await?.attempt, 1, "the attempt of the job that was hinted at");
    }
    fixture.measure(format!("hints came within {worst:.1?}"));
    Ok(())
}

/// Operators declare again and again; a hint for each would keep workers from going to zero.
pub(super) async fn declaring_again_wakes_nobody(fixture: Fixture) -> Verdict {
    let quiet = fixture.subject().await?;
    let busy = Subject { driver: quiet.driver.clone(), queue: fixture.queue_name("busy")? };
    busy.declare(QueueSettings::default()).await?;
    let mut hints = fixture.driver().await?.wake().await?;
    let mut hinted = BTreeSet::new();
    // What was on its way before the subscription is over once a job is heard of; declarations follow, and one more job.
    for round in 0..2 {
        if round == 1 {
            hinted.clear();
            for _ in 0..3 {
                quiet.declare(QueueSettings::default()).await?;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let claimed = async {
            busy.enqueue(job()).await?;
            while !hinted.contains(&busy.queue) {
                let hint = hints.next().await.ok_or_else(|| Failed("the hints ended".into()))??;
                if let Wake::Queue { queue } = hint {
                    hinted.insert(queue);
                }
            }
            busy.next().await
        };
        let claimed = tokio::time::timeout(SOON, claimed).await??;
        busy.succeed(&claimed).await?;
    }
    check!(!hinted.contains(&quiet.queue), "a declaration that changed nothing woke somebody");
    Ok(())
}
