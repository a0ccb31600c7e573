//! Many at once.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    fixture::{LEASE, SOON, number, numbered},
    history::{Client, History},
};
use crate::{Claimed, DeadReason, ErrorKind, Failure, JobId, Limits, QueueSettings, Settle, Settlement};
use futures::future::try_join_all;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub(super) async fn dispatch_burst(fixture: Fixture) -> Verdict {
    const TASKS: usize = 16;
    const JOBS: usize = 1000;
    fixture.over("jobs", JOBS);
    fixture.over("producers", TASKS);
    let subject = fixture.subject().await?;
    let since = Instant::now();
    let producers = (0..TASKS).map(|task| {
        let subject = &subject;
        async move {
            for index in (task..JOBS).step_by(TASKS) {
                subject.enqueue(numbered(index)).await?;
            }
            Ok::<_, Failed>(())
        }
    });
    try_join_all(producers).await?;
    let took = since.elapsed();
    let mut seen = BTreeSet::new();
    loop {
        let jobs = subject.claim(250).await?;
        if jobs.is_empty() {
            break;
        }
        for job in &jobs {
            check!(seen.insert(job.id.clone()), "job {} was handed out twice", job.id);
        }
        settle_all(&subject, jobs).await?;
    }
    check_eq!(seen.len(), JOBS, "jobs that came out");
    fixture.measure(format!("{JOBS} enqueues from {TASKS} tasks in {took:.1?}"));
    Ok(())
}

async fn settle_all(subject: &Subject, jobs: Vec<Claimed>) -> Verdict {
    let settlements = jobs
        .into_iter()
        .map(|job| Settlement { receipt: job.receipt, settle: Settle::Succeed { result: None } });
    for answer in subject.driver.settle(&subject.queue, settlements.collect()).await? {
        answer?;
    }
    Ok(())
}

pub(super) async fn multi_worker_contention(fixture: Fixture) -> Verdict {
    const JOBS: usize = 2000;
    fixture.over("jobs", JOBS);
    let claimers = fixture.over("claimers", 8_u32);
    let subject = fixture.subject().await?;
    for first in (0..JOBS).step_by(500) {
        subject.enqueue_all((first..first + 500).map(numbered).collect()).await?;
    }
    let since = Instant::now();
    let workers = (0..claimers).map(|_| {
        let (subject, fixture) = (&subject, &fixture);
        async move {
            let subject = subject.beside(fixture).await?;
            let mut settled = Vec::new();
            loop {
                let jobs = subject.claim_for(16, LEASE, Duration::from_millis(100)).await?;
                if jobs.is_empty() {
                    return Ok::<_, Failed>(settled);
                }
                settled.extend(jobs.iter().map(|job| job.id.clone()));
                settle_all(&subject, jobs).await?;
            }
        }
    });
    let settled: Vec<_> = try_join_all(workers).await?.into_iter().flatten().collect();
    let distinct: BTreeSet<_> = settled.iter().collect();
    check_eq!(settled.len(), distinct.len(), "settles and settled jobs");
    check_eq!(settled.len(), JOBS, "settled jobs");
    fixture.measure(format!("{JOBS} jobs by {claimers} workers in {:.1?}", since.elapsed()));
    Ok(())
}

/// A cheap sequence of numbers that look random and are the same in every run.
pub(super) fn dice(seed: u64) -> u64 {
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33
}

pub(super) async fn soak_mixed_load(fixture: Fixture) -> Verdict {
    const JOBS: usize = 600;
    fixture.over("jobs", JOBS);
    let claimers = fixture.over("claimers", 6_usize);
    // Leases are lost on purpose, and on a slow machine without one; none of that is the job's fault.
    let settings = QueueSettings { max_deliveries: 1000, ..QueueSettings::default() };
    let subject = fixture.subject_with(settings).await?;
    let address = fixture.address("soak")?;
    let notify = fixture.notify("soak")?;
    let (history, settled) = (Arc::new(History::default()), AtomicUsize::new(0));
    let client = |number| Client::new(&history, number, subject.driver.clone(), subject.queue.clone());
    let produce = async {
        let client = client(100);
        for first in (0..JOBS).step_by(20) {
            let jobs = (first..first + 20).map(|index| {
                let delay = if index % 5 == 0 { index % 40 } else { 0 };
                let id = JobId::new(format!("job-{index}"))?;
                let job = numbered(index).with_id(id).with_delay(Duration::from_millis(delay as u64));
                Ok::<_, Failed>(job.with_notify(notify.clone()))
            });
            for answer in client.enqueue(jobs.collect::<Result<_, _>>()?).await? {
                answer?;
            }
        }
        Ok::<_, Failed>(())
    };
    let workers = (0..claimers).map(|worker| work(client(worker), worker as u64, &settled, JOBS));
    let (produced, worked, heard) =
        tokio::join!(produce, try_join_all(workers), listen(&fixture, &subject, &address, JOBS));
    produced?;
    worked?;
    check_eq!(heard?, JOBS, "completions");
    if subject.driver.capabilities().inspect {
        super::faults::judge(&subject, &history).await?;
    }
    eventually("the counts of an empty queue are zero", || async {
        let stats = subject.stats().await?;
        let left = [stats.ready, stats.scheduled, stats.active, stats.retrying];
        Ok(left.into_iter().flatten().sum::<u64>() == 0)
    })
    .await
}

/// Claims until all jobs are over; succeeds, retries, releases, buries and loses some.
async fn work(client: Client, worker: u64, settled: &AtomicUsize, jobs: usize) -> Verdict {
    let mut roll = worker;
    while settled.load(Ordering::Relaxed) < jobs {
        for job in client.claim(5, Duration::from_millis(1500), Duration::from_millis(50)).await? {
            roll += 7;
            let last = job.attempt >= 3;
            let (settle, ends) = match dice(roll) % 10 {
                0 if job.delivery < 3 => continue,
                1 | 2 if !last => (retry(), false),
                3 if job.delivery < 5 => (Settle::Release { delay: Duration::from_millis(3) }, false),
                4 => (bury(), true),
                _ => (Settle::Succeed { result: None }, true),
            };
            match client.settle(vec![(&job, settle)]).await?.remove(0) {
                Ok(()) if ends => {
                    settled.fetch_add(1, Ordering::Relaxed);
                }
                Ok(()) => {}
                // A slow machine may outlast the lease; the job comes again.
                Err(error) if error.kind == ErrorKind::StaleReceipt => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn retry() -> Settle {
    Settle::Retry { delay: Duration::from_millis(10), failure: Failure::new("HandlerError", "again") }
}

fn bury() -> Settle {
    Settle::Bury { reason: DeadReason::Rejected, failure: Failure::new("Rejected", "no") }
}

/// Reads and acknowledges until each job was heard of once.
async fn listen(
    fixture: &Fixture,
    subject: &Subject,
    address: &crate::Address,
    jobs: usize,
) -> Result<usize, Failed> {
    let mut heard = BTreeSet::new();
    let since = Instant::now();
    let bound = fixture.at_most("until all completions are read", SOON * 3);
    while heard.len() < jobs && since.elapsed() < bound {
        let read = crate::ReadCompletions {
            max: 50,
            wait: Duration::from_millis(200),
            lease: crate::ReadCompletions::MAX_LEASE,
        };
        let page = subject.driver.completions(address, read).await?;
        let mut receipts = Vec::new();
        for completion in page.completions {
            receipts.push(completion.receipt);
            check!(heard.insert(completion.job.clone()), "job {} ended twice", completion.job);
        }
        subject.driver.acknowledge(address, receipts).await?;
    }
    Ok(heard.len())
}

/// How far ahead jobs are put of which the machine has shown how fast it takes them.
fn ahead(took: Duration, done: u32, all: u32) -> Duration {
    took * all / done.max(1) * 5 / 4
}

/// By the broker's clock: a job that was claimed under `lease` had waited for the delay, in milliseconds, that is its
/// number.
fn not_early(job: &Claimed, lease: Duration) -> Verdict {
    let claimed = job.lease_until.as_millis() - i64::try_from(lease.as_millis())?;
    let delay = i64::try_from(number(job)?)?;
    let (enqueued, ready) = (job.enqueued_at.as_millis(), job.ready_at.as_millis());
    check!(
        ready - enqueued >= delay,
        "a job was ready {} ms after its enqueue, not {delay}",
        ready - enqueued
    );
    check!(claimed >= ready, "a job was claimed {} ms before it was ready", ready - claimed);
    Ok(())
}

pub(super) async fn scheduled_100k_due_at_once(fixture: Fixture) -> Verdict {
    const BATCH: usize = Limits::BATCH;
    const BATCHES: u32 = 100;
    const JOBS: usize = BATCH * BATCHES as usize;
    const LONG: Duration = Duration::from_secs(600);
    fixture.over("jobs", JOBS);
    let subject = fixture.subject().await?;
    let since = Instant::now();
    // The first ones tell how long all of them will take; those are due when all of them are there.
    subject.enqueue_all(vec![numbered(0).with_delay(LONG); BATCH]).await?;
    let all = ahead(since.elapsed(), 1, BATCHES).min(SOON * 2);
    let moment = since.elapsed() + all + Duration::from_millis(500);
    for _ in 0..BATCHES {
        let delay = moment.saturating_sub(since.elapsed());
        // Each job knows its delay, so that it can be judged by the broker's clock, however long the enqueues took.
        let millis = usize::try_from(delay.as_millis())?;
        subject.enqueue_all(vec![numbered(millis).with_delay(delay); BATCH]).await?;
    }
    let enqueued = since.elapsed();
    let mut seen = BTreeSet::new();
    let mut first = None;
    while seen.len() < JOBS {
        let jobs = subject.claim_for(1000, LONG, SOON).await?;
        // Where the first batch took longer than the others, all of them are there before their time.
        if jobs.is_empty() && since.elapsed() < moment + SOON {
            continue;
        }
        check!(!jobs.is_empty(), "{} of {JOBS} jobs came, then none for {SOON:?}", seen.len());
        // Those that were enqueued after the moment were due at once.
        fixture.not_early("a job that was due with many others", since.elapsed().max(enqueued), moment)?;
        first.get_or_insert_with(|| since.elapsed());
        for job in jobs {
            not_early(&job, LONG)?;
            check_eq!(job.delivery, 1, "the delivery of a job that was due with many others");
            check!(seen.insert(job.id), "a job was handed out twice");
        }
    }
    let begin = first.unwrap_or_default();
    let lasted = since.elapsed().saturating_sub(begin);
    let bound = fixture.at_most("from the first to the last", SOON * 3);
    check!(lasted < bound, "the jobs took {lasted:?} to come");
    check_eq!(subject.claim(10).await?.len(), 0, "jobs that are not due");
    fixture.measure(format!(
        "enqueued in {enqueued:.1?}; the first came {:.1?} after they were due, all within {lasted:.1?}",
        begin.saturating_sub(moment),
    ));
    Ok(())
}
