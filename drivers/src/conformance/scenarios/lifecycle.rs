//! Brokers and handles that stop.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq,
    fixture::{LEASE, SOON, job, numbered},
    is_kind,
    machine::{Watch, Window, windowed},
};
use crate::{
    Claim, DriverExt, Enqueued, ErrorKind, Failure, JobState, Payload, QueueSettings, ReadCompletions, Settle,
};
use futures::future::join_all;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

pub(super) async fn worker_restart_recovery(fixture: Fixture) -> Verdict {
    let before = fixture.subject().await?;
    let address = fixture.address("kept")?;
    let done = before.enqueue(job().with_notify(fixture.notify("kept")?)).await?;
    let result = Payload::json("{\"kept\":true}");
    let claimed = before.next().await?;
    let settle = Settle::Succeed { result: Some(result.clone()) };
    before.settle(&claimed, settle).await?;
    let backend_id = before.driver.probe().await?.backend_id;
    let held = before.enqueue(numbered(1)).await?;
    let holding = before.next().await?;
    let interrupted = before.enqueue(numbered(2)).await?;
    let waiting = before.enqueue(numbered(3)).await?;
    // The short lease comes last: where it ends before the restart, nobody else takes the job.
    let lost = before.next_for(Duration::from_secs(1)).await?;
    check_eq!(lost.id, interrupted, "the job whose claimer will be lost");

    fixture.restart().await?;
    let after = before.beside(&fixture).await?;
    check_eq!(after.driver.probe().await?.backend_id, backend_id, "the id of the data");
    let answer = after.driver.enqueue_one(&after.queue, job().with_id(done.clone())).await?;
    check!(
        matches!(answer, Enqueued::Duplicate { state: JobState::Succeeded, .. }),
        "a job that was done before the restart: {answer:?}"
    );
    check_eq!(after.next_completion(&address).await?.job, done, "the completion from before");
    if after.driver.capabilities().result_store {
        let results = after.driver.results(&after.queue, vec![done]).await?;
        check_eq!(results, [Some(result)], "the result from before");
    }
    // One waited, the other one comes when its lease is over, which may be before the restart, or be put off by it:
    // nobody could extend it meanwhile.
    let bound = fixture.at_most("until a lost job comes again", SOON * 2);
    let mut came = BTreeSet::new();
    for _ in 0..2 {
        let claimed = after.claim_for(1, LEASE, bound).await?.pop();
        let claimed = claimed.ok_or_else(|| Failed(format!("after the restart only {came:?} came")))?;
        came.insert((claimed.id, claimed.delivery));
    }
    check_eq!(came, BTreeSet::from([(waiting, 1), (interrupted, 2)]), "the jobs, and their deliveries");
    let stale = after.driver.settle_one(&after.queue, &lost.receipt, Settle::Succeed { result: None }).await;
    check!(is_kind(&stale, ErrorKind::StaleReceipt), "a receipt from before: {stale:?}");
    // A claimer that lives on keeps what it holds.
    check_eq!(holding.id, held, "the job that is held");
    after.succeed(&holding).await
}

pub(super) async fn worker_restart_delay_recovery(fixture: Fixture) -> Verdict {
    windowed(&fixture, Duration::from_millis(1500), restart_delay_recovery).await
}

async fn restart_delay_recovery(fixture: Fixture, window: Window) -> Verdict {
    let before = fixture.subject().await?;
    let delay = window.length();
    let (open, since) = (window.open(), Instant::now());
    let short = before.enqueue(job().with_delay(Duration::from_millis(10))).await?;
    let id = before.enqueue(job().with_delay(delay)).await?;
    fixture.restart().await?;
    let after = before.beside(&fixture).await?;
    let first = after.next().await?;
    check_eq!(first.id, short, "the job that became due");
    // A restart that takes longer than the delay shows nothing.
    let early = after.claim(1).await?;
    open.judge(early.is_empty(), || format!("a job delayed by {delay:?} came early: {early:?}"))?;
    let claimed = after.next_after(delay).await?;
    let took = since.elapsed();
    check_eq!(claimed.id, id, "the delayed job");
    fixture.not_early("the delayed job", took, delay)?;
    fixture.measure(format!("{:.1?} late", took.saturating_sub(delay)));
    Ok(())
}

pub(super) async fn shutdown_during_delay_retry(fixture: Fixture) -> Verdict {
    windowed(&fixture, Duration::from_millis(1200), close_during_delay_retry).await
}

async fn close_during_delay_retry(fixture: Fixture, window: Window) -> Verdict {
    let before = fixture.subject().await?;
    let delay = window.length();
    let retried = before.enqueue(numbered(0)).await?;
    let claimed = before.next().await?;
    let (open, since) = (window.open(), Instant::now());
    let delayed = before.enqueue(numbered(1).with_delay(delay)).await?;
    before.settle(&claimed, Settle::Retry { delay, failure: Failure::new("HandlerError", "later") }).await?;
    let claim = Claim { max: 1, wait: SOON * 3, lease: LEASE, worker: "conformance".into() };
    let (waited, closing) = tokio::join!(before.driver.claim(&before.queue, claim), async {
        // Long enough that the claim waits, as far as anybody can tell from outside.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let watch = Watch::start();
        before.driver.close().await;
        (watch.elapsed(), watch.pauses())
    });
    let bound = fixture.at_most("for the close", SOON);
    let (closing, pauses) = closing;
    check!(closing < bound + pauses, "closing took {closing:?}, pauses {pauses:?}");
    let ended = waited.as_ref().map_or_else(|error| error.kind == ErrorKind::Unavailable, Vec::is_empty);
    let closed = open.judge(ended, || format!("a claim that waited was answered {waited:?} by the close"));

    fixture.restart().await?;
    closed?;
    let after = before.beside(&fixture).await?;
    let early = after.claim(2).await?;
    open.judge(early.is_empty(), || format!("jobs that were put off by {delay:?} came early: {early:?}"))?;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let claimed = after.next_after(delay).await?;
        let took = since.elapsed();
        fixture.not_early("a job that was put off", took, delay)?;
        after.succeed(&claimed).await?;
        seen.push((claimed.id, claimed.attempt));
    }
    seen.sort();
    let mut expected = vec![(retried, 2), (delayed, 1)];
    expected.sort();
    check_eq!(seen, expected, "the jobs and their attempts");
    Ok(())
}

pub(super) async fn shutdown_idempotent(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    subject.enqueue(job()).await?;
    let driver = &subject.driver;
    tokio::time::timeout(fixture.at_most("for all closes", SOON), async {
        tokio::join!(driver.close(), driver.close());
        driver.close().await;
    })
    .await?;
    let enqueue = driver.enqueue_one(&subject.queue, job()).await;
    check!(is_kind(&enqueue, ErrorKind::Unavailable), "an enqueue after the close: {enqueue:?}");
    let stats = driver.stats(&subject.queue).await;
    check!(is_kind(&stats, ErrorKind::Unavailable), "stats after the close: {stats:?}");
    let probe = driver.probe().await;
    check!(is_kind(&probe, ErrorKind::Unavailable), "a probe after the close");
    Ok(())
}

/// What is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    /// File descriptors of this process.
    descriptors: usize,
    /// Connections of the broker's server, if it has one.
    connections: usize,
}

impl Open {
    async fn now(fixture: &Fixture) -> Result<Self, Failed> {
        // First: the question opens one more.
        let descriptors = std::fs::read_dir("/proc/self/fd")?.count();
        let connections = fixture.broker().connections().await?.unwrap_or_default();
        Ok(Self { descriptors, connections })
    }

    /// The same for half a second: what was closed a moment ago has gone.
    async fn at_rest(fixture: &Fixture) -> Result<Self, Failed> {
        let (since, mut last, mut times) = (Watch::start(), Self::now(fixture).await?, 0);
        while times < 5 {
            check!(since.elapsed() < SOON + since.pauses(), "what is open changes all the time: {last:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = Self::now(fixture).await?;
            times = if now == last { times + 1 } else { 0 };
            last = now;
        }
        Ok(last)
    }

    /// What is left as soon as it is no more than `allowed`.
    async fn down_to(fixture: &Fixture, allowed: Self) -> Result<Self, Failed> {
        let since = Watch::start();
        loop {
            let left = Self::now(fixture).await?;
            if left.is_within(allowed) {
                return Ok(left);
            }
            check!(since.elapsed() < SOON + since.pauses(), "{allowed:?} is what may stay, {left:?} stayed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn is_within(self, other: Self) -> bool {
        self.descriptors <= other.descriptors && self.connections <= other.connections
    }
}

pub(super) async fn closed_handles_leave_nothing(fixture: Fixture) -> Verdict {
    let handles = fixture.over("handles", 20_usize);
    // Where all handles are one, the broker is opened again for each.
    let at_once = if fixture.broker().address().is_some() { handles } else { 1 };
    // What is made once and stays.
    come_and_go(&fixture, 1).await?;
    let before = Open::at_rest(&fixture).await?;
    let (mut most, mut closed) = (before, Vec::new());
    for _ in 0..handles / at_once {
        let (open, gone) = come_and_go(&fixture, at_once).await?;
        // Kept: it is the close that leaves nothing, not the end of its owner.
        closed.extend(gone);
        most = open;
    }
    if at_once > 1 {
        let least =
            Open { descriptors: before.descriptors + handles, connections: before.connections + handles };
        check!(least.is_within(most), "{handles} open handles don't show: {before:?} before, {most:?} then");
    }
    let bound = fixture.at_most("left open", 0_usize);
    let allowed = Open { descriptors: before.descriptors + bound, connections: before.connections + bound };
    let left = Open::down_to(&fixture, allowed).await?;
    fixture.measure(format!(
        "{} descriptors and {} connections, {} and {} with {at_once} handles open, {} and {} afterwards",
        before.descriptors,
        before.connections,
        most.descriptors,
        most.connections,
        left.descriptors,
        left.connections,
    ));
    Ok(())
}

/// Opens `count` handles, uses each, and closes it while calls wait on it. What was open meanwhile, and the handles.
async fn come_and_go(fixture: &Fixture, count: usize) -> Result<(Open, Vec<Subject>), Failed> {
    let mut handles = Vec::new();
    for _ in 0..count {
        let subject = fixture.subject().await?;
        use_it(fixture, &subject).await?;
        let idle = Subject { driver: subject.driver, queue: fixture.queue_name("idle")? };
        idle.declare(QueueSettings::default()).await?;
        handles.push(idle);
    }
    let waiting = join_all(handles.iter().map(|idle| wait_on(fixture, idle)));
    let (waited, open) = tokio::join!(waiting, async {
        // Long enough that the calls wait, as far as anybody can tell from outside.
        tokio::time::sleep(Duration::from_millis(200)).await;
        // A connection of which nobody waits for anything.
        let asked = join_all(handles.iter().map(Subject::stats)).await;
        let open = Open::now(fixture).await;
        join_all(handles.iter().map(|idle| idle.driver.close())).await;
        asked.into_iter().collect::<Result<Vec<_>, _>>().and(open)
    });
    waited.into_iter().collect::<Verdict>()?;
    if fixture.broker().address().is_none() {
        fixture.restart().await?;
    }
    Ok((open?, handles))
}

/// A job from its enqueueing to its completion.
async fn use_it(fixture: &Fixture, subject: &Subject) -> Verdict {
    let notify = fixture.notify("used")?;
    let id = subject.enqueue(job().with_notify(notify.clone())).await?;
    let claimed = subject.next().await?;
    check_eq!(claimed.id, id, "the job");
    subject.succeed(&claimed).await?;
    let completion = subject.next_completion(&notify.address).await?;
    check_eq!(completion.job, id, "the job of the completion");
    Ok(subject.driver.acknowledge(&notify.address, vec![completion.receipt]).await?)
}

/// Waits for a job and for a completion that never come, until the handle is closed.
async fn wait_on(fixture: &Fixture, idle: &Subject) -> Verdict {
    let wait = SOON * 3;
    let address = fixture.address("idle")?;
    let read = ReadCompletions { max: 1, wait, lease: ReadCompletions::MAX_LEASE };
    let watch = Watch::start();
    let (claimed, completions) =
        tokio::join!(idle.claim_for(1, LEASE, wait), idle.driver.completions(&address, read));
    let (took, pauses) = (watch.elapsed(), watch.pauses());
    check!(took < SOON + pauses, "calls that waited ended {took:?} after they began, not by the close");
    check!(!claimed.is_ok_and(|jobs| !jobs.is_empty()), "a job came out of nothing");
    check!(!completions.is_ok_and(|page| !page.completions.is_empty()), "a completion came out of nothing");
    Ok(())
}
