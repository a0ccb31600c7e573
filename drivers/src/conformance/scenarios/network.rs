//! Networks that break in the middle of something, are split, or slow, while the broker is well.

use crate::conformance::{
    Bytes, Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    fixture::{LEASE, SOON, job, numbered},
    is_kind,
    proxy::{Proxy, Side, Weather},
};
use crate::{Claimed, DriverExt, Enqueued, ErrorKind, JobId, NewJob, Payload, Settle};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn ambiguous_publish(fixture: Fixture) -> Verdict {
    let direct = fixture.subject().await?;
    let proxy = fixture.proxy().await?;
    let subject = fixture.patiently_through(&proxy, &direct).await?;
    answer_lost(&proxy, &subject, &direct, fixture.over("jobs in the batch", 50_usize)).await?;
    let bytes = fixture.over("of payload where it is cut", Bytes(200_000));
    cut_in_the_middle(&proxy, &subject, &direct, bytes).await
}

/// The answer is lost after the request went through; the same id again adds nothing.
async fn answer_lost(proxy: &Proxy, subject: &Subject, direct: &Subject, batch: usize) -> Verdict {
    for round in 0..20 {
        // A connection that is there already, so that the first thing to be lost is an answer.
        eventually("the handle works", || async { Ok(subject.stats().await.is_ok()) }).await?;
        let jobs: Vec<_> = (0..batch)
            .map(|index| Ok(numbered(index).with_id(JobId::new(format!("lost-{round}-{index}"))?)))
            .collect::<Result<_, Failed>>()?;
        proxy.set(Weather::Cut(Side::Server, 0));
        let answer = subject.driver.enqueue(&subject.queue, jobs.clone()).await;
        proxy.heal();
        let error = match answer {
            Err(error) => error,
            Ok(answers) => return Err(Failed(format!("an answer came although it was lost: {answers:?}"))),
        };
        let mut there = 0;
        for job in &jobs {
            let id = job.id.as_ref().ok_or_else(|| Failed("a job without an id".into()))?;
            there += usize::from(direct.record(id).await?.is_some());
        }
        let (unavailable, ambiguous) =
            (error.kind == ErrorKind::Unavailable, error.kind == ErrorKind::Ambiguous);
        check!(unavailable || ambiguous, "a lost answer: {error:?}");
        check!(ambiguous || there == 0, "nothing was done, it said, and {there} jobs are there");
        if there == 0 {
            continue;
        }
        check_eq!(there, jobs.len(), "jobs of a batch whose answer was lost");
        eventually("the handle works again", || async { Ok(subject.stats().await.is_ok()) }).await?;
        let (mut again, since) = (subject.driver.enqueue(&subject.queue, jobs.clone()).await, Instant::now());
        while again.is_err() && since.elapsed() < SOON {
            again = subject.driver.enqueue(&subject.queue, jobs.clone()).await;
        }
        for answer in again? {
            check!(matches!(answer, Ok(Enqueued::Duplicate { .. })), "the same again: {answer:?}");
        }
        let claimed = direct.claim(100).await?;
        check_eq!(claimed.len(), jobs.len(), "jobs in the queue");
        for job in &claimed {
            direct.succeed(job).await?;
        }
        return Ok(());
    }
    Err(Failed("in 20 rounds no request went through whose answer was lost".into()))
}

/// The connection breaks in the middle of a job: half a job is none.
async fn cut_in_the_middle(
    proxy: &Proxy,
    subject: &Subject,
    direct: &Subject,
    Bytes(size): Bytes,
) -> Verdict {
    let id = JobId::new("half")?;
    let large = NewJob::new("large", Payload::json(vec![b'1'; size])).with_id(id.clone());
    proxy.set(Weather::Cut(Side::Client, size / 4));
    let answer = subject.driver.enqueue_one(&subject.queue, large.clone()).await;
    let kind = answer.as_ref().err().map(|error| error.kind);
    check!(
        matches!(kind, Some(ErrorKind::Unavailable | ErrorKind::Ambiguous)),
        "a job that was cut in the middle: {answer:?}"
    );
    check_eq!(direct.record(&id).await?, None, "half a job");
    proxy.heal();
    eventually("the handle works again", || async { Ok(subject.stats().await.is_ok()) }).await?;
    let again = subject.driver.enqueue_one(&subject.queue, large.clone()).await?;
    check!(matches!(again, Enqueued::Created { .. }), "the whole job: {again:?}");
    let claimed = direct.next().await?;
    check!(claimed.payload == large.payload, "the payload did not arrive unchanged");
    direct.succeed(&claimed).await
}

pub(super) async fn partitioned_claimer_is_fenced(fixture: Fixture) -> Verdict {
    let direct = fixture.subject().await?;
    let proxy = fixture.proxy().await?;
    let cut_off = fixture.patiently_through(&proxy, &direct).await?;
    let id = direct.enqueue(job()).await?;
    let lease = fixture.over("lease", Duration::from_millis(1500));
    let held = cut_off.next_for(lease).await?;
    proxy.set(Weather::Reset);
    let extend = cut_off.driver.extend_one(&cut_off.queue, &held.receipt, lease).await;
    check!(extend.is_err(), "an extension through a broken network: {extend:?}");
    let again: Claimed = direct.next().await?;
    check_eq!((&again.id, again.attempt, again.delivery), (&id, 1, 2), "the job after its lease");
    let began = again.lease_until.as_millis() - i64::try_from(LEASE.as_millis())?;
    check!(began >= held.lease_until.as_millis(), "the second lease began before the first ended");
    proxy.heal();
    let settle = || {
        let succeed = Settle::Succeed { result: None };
        cut_off.driver.settle_one(&cut_off.queue, &held.receipt, succeed)
    };
    let (mut late, since) = (settle().await, Instant::now());
    // Whoever didn't hear the answer, on a machine that stood still, asks again.
    while since.elapsed() < SOON
        && (is_kind(&late, ErrorKind::Unavailable) || is_kind(&late, ErrorKind::Ambiguous))
    {
        tokio::time::sleep(PAUSE).await;
        late = settle().await;
    }
    check!(is_kind(&late, ErrorKind::StaleReceipt), "the settle of whoever was cut off: {late:?}");
    direct.succeed(&again).await
}

pub(super) async fn slow_network_changes_nothing(fixture: Fixture) -> Verdict {
    let direct = fixture.subject().await?;
    let proxy = fixture.proxy().await?;
    let far = fixture.patiently_through(&proxy, &direct).await?;
    let by = fixture.over("slower each way", Duration::from_millis(100));
    proxy.set(Weather::Slow(by));
    let since = Instant::now();
    let address = fixture.address("far")?;
    let id = far.enqueue(job().with_notify(fixture.notify("far")?)).await?;
    let claimed = far.next().await?;
    check_eq!(claimed.id, id, "the job");
    far.driver.extend_one(&far.queue, &claimed.receipt, LEASE).await?;
    far.succeed(&claimed).await?;
    let completion = far.next_completion(&address).await?;
    check_eq!(completion.job, id, "the job of the completion");
    far.driver.acknowledge(&address, vec![completion.receipt]).await?;
    let took = since.elapsed();
    check!(took >= by * 2 * 6, "six calls over a slow network took {took:?}");
    check!(direct.read(&address, 10).await?.caught_up, "the completion is still there");
    Ok(())
}
