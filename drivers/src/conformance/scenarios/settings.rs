//! Values at their edges: each is taken with its meaning, or refused as invalid. Nothing in between.

use super::load::dice;
use crate::conformance::{
    Bytes, Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    fixture::{LEASE, job},
    is_kind,
};
use crate::{
    Claim, Declaration, DriverExt, DynDriver, Enqueued, ErrorKind, Failure, JobId, JobState, Limits,
    ListJobs, NewJob, Notify, Overrides, QueueSettings, ReadCompletions, Settle,
};
use std::time::Duration;

const MILLI: Duration = Duration::from_millis(1);

pub(super) async fn config_option_fuzz(fixture: Fixture) -> Verdict {
    let subject = fixture.undeclared("calls").await?;
    let many = Many { fixture: &fixture, driver: subject.driver.clone() };
    depths(&many).await?;
    deliveries(&many).await?;
    retentions(&many).await?;
    subject.declare(QueueSettings::default()).await?;
    leases(&fixture, &subject).await?;
    delays(&fixture, &subject).await?;
    counts(&fixture, &subject).await?;
    words(&fixture, &subject).await?;
    overrides(&subject).await?;
    any_settings(&many).await
}

/// Many queues through one handle: each handle may take several of the server's connections.
struct Many<'a> {
    fixture: &'a Fixture,
    driver: DynDriver,
}

/// Declares a queue with `settings`; `None` if they are refused as invalid.
async fn declared(many: &Many<'_>, name: &str, settings: QueueSettings) -> Result<Option<Subject>, Failed> {
    let subject = Subject { driver: many.driver.clone(), queue: many.fixture.queue_name(name)? };
    let declaration = Declaration { owner: Subject::owner(), settings: settings.clone(), adopt: false };
    match subject.driver.declare(&subject.queue, declaration).await {
        Ok(_) => Ok(Some(subject)),
        Err(error) if error.kind == ErrorKind::Invalid => Ok(None),
        Err(error) => Err(Failed(format!("{settings:?} were answered {error:?}"))),
    }
}

async fn depths(many: &Many<'_>) -> Verdict {
    let settings = |max_depth| QueueSettings { max_depth, ..QueueSettings::default() };
    if let Some(subject) = declared(many, "depth-none", settings(0)).await? {
        let answer = subject.driver.enqueue_one(&subject.queue, job()).await;
        check!(is_kind(&answer, ErrorKind::Full), "a queue that holds nothing: {answer:?}");
        subject.enqueue(job().with_notify(many.fixture.notify("depth")?)).await?;
    }
    for (name, depth) in [("depth-signed", i64::MAX.unsigned_abs()), ("depth-most", u64::MAX)] {
        if let Some(subject) = declared(many, name, settings(depth)).await? {
            subject.enqueue(job()).await?;
        }
    }
    Ok(())
}

async fn deliveries(many: &Many<'_>) -> Verdict {
    let settings = |max_deliveries| QueueSettings { max_deliveries, ..QueueSettings::default() };
    for (name, most, dies) in [("lost-none", 0, true), ("lost-one", 1, true), ("lost-most", u32::MAX, false)]
    {
        let Some(subject) = declared(many, name, settings(most)).await? else { continue };
        let id = subject.enqueue(job()).await?;
        subject.next_for(MILLI * 20).await?;
        if dies {
            let driver = &subject.driver;
            eventually("a job that was lost too often is dead", || async {
                if driver.capabilities().inspect {
                    return Ok(subject.state(&id).await? == JobState::Dead);
                }
                Ok(subject.stats().await?.dead == Some(1))
            })
            .await?;
        } else {
            check_eq!(subject.next().await?.delivery, 2, "the delivery after one was lost, of {most}");
        }
    }
    Ok(())
}

async fn retentions(many: &Many<'_>) -> Verdict {
    let longest = Duration::from_millis(u64::MAX);
    let years = Duration::from_secs(100 * 366 * 24 * 3600);
    for (name, kept) in [("kept-short", Duration::ZERO), ("kept-years", years), ("kept-most", longest)] {
        let settings =
            QueueSettings { retain_completed: kept, retain_dead: kept, ..QueueSettings::default() };
        let Some(subject) = declared(many, name, settings).await? else { continue };
        if !subject.driver.capabilities().inspect {
            continue;
        }
        let id = subject.enqueue(job()).await?;
        let claimed = subject.next().await?;
        subject.succeed(&claimed).await?;
        if kept.is_zero() {
            eventually("a job that is not kept is gone", || async {
                Ok(subject.record(&id).await?.is_none())
            })
            .await?;
        } else {
            // A second job ends after it, so that whatever forgets has had its chance.
            subject.enqueue(job()).await?;
            let claimed = subject.next().await?;
            subject.succeed(&claimed).await?;
            check_eq!(subject.state(&id).await?, JobState::Succeeded, "a job that is kept for {kept:?}");
        }
    }
    Ok(())
}

async fn leases(fixture: &Fixture, subject: &Subject) -> Verdict {
    let (driver, queue) = (&subject.driver, &subject.queue);
    let longest = fixture.at_most("lease", Limits::MAX_DELAY);
    let too_long = [longest + MILLI, Duration::from_millis(u64::MAX)];
    subject.enqueue(job()).await?;
    for lease in [Duration::ZERO, too_long[0], too_long[1]] {
        let claim = Claim { max: 1, wait: Duration::ZERO, lease, worker: String::new() };
        let answer = driver.claim(queue, claim).await;
        check!(is_kind(&answer, ErrorKind::Invalid), "a lease of {lease:?}: {answer:?}");
    }
    let claimed = subject.next_for(longest).await?;
    let length = claimed.lease_until.since(claimed.enqueued_at);
    check!(length >= longest, "the longest lease lasts {length:?}");
    for lease in [Duration::ZERO, too_long[0], too_long[1]] {
        let answer = driver.extend_one(queue, &claimed.receipt, lease).await;
        check!(is_kind(&answer, ErrorKind::Invalid), "an extension by {lease:?}: {answer:?}");
    }
    // The shortest one is over before anybody can use it, and the job is not lost.
    driver.extend_one(queue, &claimed.receipt, MILLI).await?;
    let again = subject.next().await?;
    check_eq!((&again.id, again.delivery), (&claimed.id, 2), "the job after the shortest lease");
    subject.succeed(&again).await
}

async fn delays(fixture: &Fixture, subject: &Subject) -> Verdict {
    let Some(delay) = subject.driver.capabilities().delay else { return Ok(()) };
    let (driver, queue) = (&subject.driver, &subject.queue);
    let too_long = [fixture.at_most("delay", Limits::MAX_DELAY) + MILLI, Duration::from_millis(u64::MAX)];
    for delay in too_long {
        let answer = driver.enqueue_one(queue, job().with_delay(delay)).await;
        check!(is_kind(&answer, ErrorKind::Invalid), "a job delayed by {delay:?}: {answer:?}");
    }
    subject.enqueue(job()).await?;
    let claimed = subject.next().await?;
    for delay in too_long {
        for settle in [Settle::Release { delay }, Settle::Retry { delay, failure: Failure::default() }] {
            let answer = driver.settle_one(queue, &claimed.receipt, settle).await;
            check!(is_kind(&answer, ErrorKind::Invalid), "a settle with a delay of {delay:?}: {answer:?}");
        }
    }
    subject.settle(&claimed, Settle::Release { delay: delay.max }).await?;
    subject.enqueue(job().with_delay(delay.max)).await?;
    check!(subject.claim(10).await?.is_empty(), "a job that is delayed by {:?} is early", delay.max);
    Ok(())
}

async fn counts(fixture: &Fixture, subject: &Subject) -> Verdict {
    let (driver, queue) = (&subject.driver, &subject.queue);
    subject.enqueue(job()).await?;
    let claimed = subject.claim(u32::MAX).await?;
    check_eq!(claimed.len(), 1, "jobs of a claim of as many as can be");
    subject.succeed(&claimed[0]).await?;
    let address = fixture.address("counts")?;
    let read = |max| ReadCompletions { max, wait: Duration::ZERO, lease: Duration::from_secs(1) };
    let none = driver.completions(&address, read(0)).await;
    check!(is_kind(&none, ErrorKind::Invalid), "a read of no completions: {none:?}");
    driver.completions(&address, read(u32::MAX)).await?;
    if driver.capabilities().inspect {
        let list = |limit| ListJobs { state: JobState::Ready, limit, after: None };
        let none = driver.list(queue, list(0)).await;
        check!(is_kind(&none, ErrorKind::Invalid), "a list of no jobs: {none:?}");
        driver.list(queue, list(u32::MAX)).await?;
        check_eq!(driver.purge(queue, JobState::Dead, 0).await?, 0, "a purge of no jobs");
        driver.purge(queue, JobState::Dead, u32::MAX).await?;
    }
    Ok(())
}

/// Texts at their limits arrive as they are; longer ones are refused.
async fn words(fixture: &Fixture, subject: &Subject) -> Verdict {
    let notify = |context: usize| {
        let Notify { address, .. } = fixture.notify("words")?;
        Ok::<_, Failed>(Some(Notify { address, context: "ü".repeat(context / 2) }))
    };
    let job_type = |length: usize| "t".repeat(length);
    let most = |name, bytes| {
        let Bytes(bytes) = fixture.at_most(name, Bytes(bytes));
        bytes
    };
    let longest = NewJob {
        id: Some(JobId::new("i".repeat(most("of id", Limits::JOB_ID)))?),
        job_type: job_type(most("of type", Limits::JOB_TYPE)),
        headers: [("h".to_owned(), "v".repeat(most("of headers", Limits::HEADERS) - 1))].into(),
        notify: notify(most("of context", Limits::CONTEXT))?,
        ..job()
    };
    let content_type = |length: usize| format!("text/{}", "p".repeat(length - 5));
    let mut longest = longest;
    longest.payload.content_type = content_type(most("of content type", Limits::CONTENT_TYPE));
    subject.enqueue(longest.clone()).await?;
    let claimed = subject.next().await?;
    check_eq!(Some(&claimed.id), longest.id.as_ref(), "the longest id");
    check_eq!(claimed.job_type, longest.job_type, "the longest type");
    check_eq!(claimed.headers, longest.headers, "the largest headers");
    check_eq!(claimed.notify, longest.notify, "the longest context");
    check_eq!(claimed.payload, longest.payload, "the payload with the longest content type");
    subject.succeed(&claimed).await?;
    let mut odd = job();
    odd.payload.content_type = content_type(Limits::CONTENT_TYPE + 1);
    let over = [
        NewJob { job_type: job_type(Limits::JOB_TYPE + 1), ..job() },
        NewJob { job_type: String::new(), ..job() },
        NewJob { job_type: "a\nb".into(), ..job() },
        NewJob { notify: notify(Limits::CONTEXT + 2)?, ..job() },
        NewJob { headers: [("a b".to_owned(), String::new())].into(), ..job() },
        NewJob { headers: [("a".to_owned(), "x\r\ny: z".to_owned())].into(), ..job() },
        odd,
    ];
    for (index, job) in over.into_iter().enumerate() {
        let answer = subject.driver.enqueue_one(&subject.queue, job).await;
        check!(is_kind(&answer, ErrorKind::Invalid), "the job {index} that is over a limit: {answer:?}");
    }
    Ok(())
}

async fn overrides(subject: &Subject) -> Verdict {
    let with = |max_attempts, timeout| NewJob { overrides: Overrides { max_attempts, timeout }, ..job() };
    for nonsense in [with(Some(0), None), with(None, Some(Duration::ZERO)), with(None, Some(MILLI / 2))] {
        let answer = subject.driver.enqueue_one(&subject.queue, nonsense).await;
        check!(is_kind(&answer, ErrorKind::Invalid), "overrides of nothing: {answer:?}");
    }
    // What no signed number can hold may be cut to the largest that can: nobody lives to see the difference.
    let endless = Duration::from_millis(i64::MAX.unsigned_abs());
    for (attempts, timeout) in [(u32::MAX, endless), (1, Duration::from_millis(u64::MAX))] {
        let most = with(Some(attempts), Some(timeout));
        match subject.driver.enqueue_one(&subject.queue, most).await {
            Ok(Enqueued::Created { .. }) => {
                let claimed = subject.next().await?;
                check_eq!(claimed.overrides.max_attempts, Some(attempts), "the most attempts");
                let told = claimed.overrides.timeout.unwrap_or_default();
                check!(told >= endless, "the longest time-out of {timeout:?} became {told:?}");
                subject.succeed(&claimed).await?;
            }
            answer => check!(is_kind(&answer, ErrorKind::Invalid), "large overrides: {answer:?}"),
        }
    }
    Ok(())
}

/// Any mixture of settings: after those that are taken the queue works by them, and by sane ones after those.
async fn any_settings(many: &Many<'_>) -> Verdict {
    const NUMBERS: [u64; 6] = [0, 1, 2, 1000, i64::MAX.unsigned_abs(), u64::MAX];
    let pick = |roll: u64| NUMBERS[usize::try_from(dice(roll) % 6).unwrap_or(0)];
    let subject = Subject { driver: many.driver.clone(), queue: many.fixture.queue_name("any")? };
    subject.declare(QueueSettings::default()).await?;
    for round in 0..many.fixture.over("mixtures of settings", 60_u64) {
        let settings = QueueSettings {
            max_depth: pick(round * 7 + 1),
            max_deliveries: u32::try_from(pick(round * 7 + 2)).unwrap_or(u32::MAX),
            retain_completed: Duration::from_millis(pick(round * 7 + 3)),
            retain_dead: Duration::from_millis(pick(round * 7 + 4)),
            paused: subject.driver.capabilities().pause && dice(round * 7 + 5).is_multiple_of(2),
            ..QueueSettings::default()
        };
        let Some(subject) = declared(many, "any", settings.clone()).await? else { continue };
        let sent = subject.driver.enqueue_one(&subject.queue, job()).await;
        if settings.max_depth == 0 {
            check!(is_kind(&sent, ErrorKind::Full), "{settings:?}: an enqueue was answered {sent:?}");
            continue;
        }
        // Jobs of paused rounds are still there.
        check!(sent.is_ok() || is_kind(&sent, ErrorKind::Full), "{settings:?}: an enqueue: {sent:?}");
        let claimed = subject.claim_for(100, LEASE, Duration::ZERO).await?;
        check_eq!(claimed.is_empty(), settings.paused, "{settings:?}: whether nothing is handed out");
        for job in &claimed {
            subject.succeed(job).await?;
        }
    }
    subject.declare(QueueSettings::default()).await?;
    subject.enqueue(job()).await?;
    check!(!subject.claim(100).await?.is_empty(), "a queue with sane settings hands out nothing");
    Ok(())
}
