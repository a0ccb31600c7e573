//! Brokers that die or stand still, and ways there that break, while jobs go in and come out.
//!
//! Nothing is left to luck: a fault begins when calls are known to be going well, lasts until they were seen to fail,
//! and the scenario ends when they go well again through the same handles.

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    fixture::{LEASE, SOON, job, numbered},
    history::{Client, Fate, History},
    is_kind,
    proxy::{Proxy, Side, Weather},
};
use crate::{Claim, CompletionReceipt, DriverExt, ErrorKind, JobId, ReadCompletions, Settle};
use futures::future::try_join_all;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// The broker's process is killed, and started again in the end.
    Killed,
    /// It stands still, and goes on in the end.
    Frozen,
    /// Connections are reset as soon as they are made.
    Refused,
    /// Connections stand, and nothing passes.
    Silent,
    /// The broker hears everything, and each connection breaks with its first answer.
    AnswersLost,
    /// Each connection breaks in the middle of the first request.
    RequestsCut,
}

impl Fault {
    pub(super) const ALL: [Self; 6] =
        [Self::Killed, Self::Frozen, Self::Refused, Self::Silent, Self::AnswersLost, Self::RequestsCut];

    pub(super) async fn begin(self, fixture: &Fixture, proxy: &Proxy) -> Verdict {
        match self {
            Self::Killed => fixture.broker().kill().await?,
            Self::Frozen => fixture.broker().freeze().await?,
            Self::Refused => proxy.set(Weather::Reset),
            Self::Silent => proxy.set(Weather::Silent),
            Self::AnswersLost => proxy.set(Weather::Cut(Side::Server, 0)),
            Self::RequestsCut => proxy.set(Weather::Cut(Side::Client, 1)),
        }
        Ok(())
    }

    pub(super) async fn end(self, fixture: &Fixture, proxy: &Proxy) -> Verdict {
        match self {
            Self::Killed => fixture.broker().restart().await?,
            Self::Frozen => fixture.broker().thaw().await?,
            Self::Refused | Self::Silent | Self::AnswersLost | Self::RequestsCut => proxy.heal(),
        }
        Ok(())
    }
}

/// The handle that was there all along does everything again, by itself.
pub(super) async fn healthy(fixture: &Fixture, subject: &Subject, fault: Fault) -> Verdict {
    // A queue of its own: what was asked for during the fault may still be done, late.
    let healthy =
        Subject { queue: fixture.queue_name(&format!("{fault:?}").to_lowercase())?, ..subject.clone() };
    eventually("the handle works again", || async {
        let settings = crate::QueueSettings::default();
        let declaration = crate::Declaration { owner: Subject::owner(), settings, adopt: false };
        Ok(healthy.driver.declare(&healthy.queue, declaration).await.is_ok())
    })
    .await?;
    // An answer that is late on a machine that stood still is lost, and a claimed job with it: another one tells.
    eventually("jobs go in and come out again", || through_once(&healthy)).await
}

/// Whether a job went all the way through, each call having been answered.
async fn through_once(healthy: &Subject) -> Result<bool, Failed> {
    let (driver, id) = (&healthy.driver, JobId::generate());
    if driver.enqueue_one(&healthy.queue, job().with_id(id.clone())).await.is_err() {
        return Ok(false);
    }
    loop {
        let claim = Claim { max: 1, wait: SOON, lease: LEASE, worker: "conformance".into() };
        let claimed = match driver.claim(&healthy.queue, claim).await {
            Ok(mut jobs) => jobs.pop(),
            Err(error) => return unheard(error),
        };
        let claimed = claimed.ok_or_else(|| Failed(format!("no job could be claimed within {SOON:?}")))?;
        let succeed = Settle::Succeed { result: None };
        match driver.settle_one(&healthy.queue, &claimed.receipt, succeed).await {
            Ok(()) if claimed.id == id => return Ok(true),
            Ok(()) => {}
            Err(error) => return unheard(error),
        }
    }
}

/// An answer that didn't come in time may come the next time; any other error is one.
fn unheard(error: crate::Error) -> Result<bool, Failed> {
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::Ambiguous | ErrorKind::Timeout => Ok(false),
        _ => Err(error.into()),
    }
}

/// What several tasks have got through, and what they were refused.
#[derive(Debug, Default)]
struct Tally {
    done: Vec<AtomicUsize>,
    failed: Vec<AtomicUsize>,
    stop: AtomicBool,
}

impl Tally {
    fn of(tasks: usize) -> Self {
        let zeros = || (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        Self { done: zeros(), failed: zeros(), stop: AtomicBool::new(false) }
    }

    fn count<T>(&self, task: usize, answer: &crate::Result<T>) -> Verdict {
        match answer {
            Ok(_) => self.done[task].fetch_add(1, Ordering::Relaxed),
            Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Ambiguous) => {
                self.failed[task].fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => return Err(Failed(format!("a call during a fault was answered {error:?}"))),
        };
        Ok(())
    }

    /// Waits until each task counted `more` of what `which` counts.
    async fn all(&self, what: &str, which: impl Fn(&Self) -> &Vec<AtomicUsize>, more: usize) -> Verdict {
        let counts = || which(self).iter().map(|count| count.load(Ordering::Relaxed));
        let before: Vec<_> = counts().collect();
        eventually(what, || async {
            Ok(self.is_over() || counts().zip(&before).all(|(now, before)| now >= before + more))
        })
        .await
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One fault after the other, each once everybody was well, until everybody felt it.
async fn torment(fixture: &Fixture, proxy: &Proxy, tally: &Tally) -> Verdict {
    let tormented = async {
        for fault in Fault::ALL {
            tally.all(&format!("calls go well before {fault:?}"), |tally| &tally.done, 20).await?;
            fault.begin(fixture, proxy).await?;
            let felt = tally.all(&format!("calls fail during {fault:?}"), |tally| &tally.failed, 1).await;
            fault.end(fixture, proxy).await?;
            felt?;
        }
        tally.all("calls go well in the end", |tally| &tally.done, 20).await
    };
    let ended: Verdict = tormented.await;
    tally.stop();
    ended
}

const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn dispatch_during_broker_fault(fixture: Fixture) -> Verdict {
    const PRODUCERS: usize = 4;
    fixture.over("producers", PRODUCERS);
    fixture.over("faults", Fault::ALL.len());
    let direct = fixture.subject().await?;
    let proxy = fixture.proxy().await?;
    let through = fixture.through(&proxy, &direct).await?;
    let (history, tally) = (Arc::new(History::default()), Tally::of(PRODUCERS));
    let produce = |number: usize| {
        let client = Client::new(&history, number, through.driver.clone(), through.queue.clone());
        let tally = &tally;
        async move {
            let mut sent = Vec::new();
            while !tally.is_over() {
                let id = JobId::new(format!("job-{number}-{}", sent.len()))?;
                let answer = client.enqueue(vec![job().with_id(id.clone())]).await;
                tally.count(number, &answer.and_then(|mut answers| answers.remove(0)))?;
                sent.push(id);
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, Failed>(sent)
        }
    };
    let (tormented, sent) =
        tokio::join!(torment(&fixture, &proxy, &tally), try_join_all((0..PRODUCERS).map(produce)));
    tormented?;
    let sent: Vec<JobId> = sent?.into_iter().flatten().collect();
    // Whoever doesn't know whether a job got in sends it again.
    let again = Client::new(&history, PRODUCERS, through.driver.clone(), through.queue.clone());
    for ids in sent.chunks(100) {
        eventually("what was sent is sent again", || async {
            let answers = match again.enqueue(ids.iter().map(|id| job().with_id(id.clone())).collect()).await
            {
                Ok(answers) => answers.into_iter().collect::<crate::Result<Vec<_>>>(),
                Err(error) => Err(error),
            };
            answers.map_or_else(unheard, |_| Ok(true))
        })
        .await?;
    }
    let runs = drain(&direct, &history).await?;
    check_eq!(runs.len(), sent.len(), "jobs that ran, of those that were sent");
    judge(&direct, &history).await?;
    fixture.measure(format!("{} jobs over {} faults", sent.len(), Fault::ALL.len()));
    Ok(())
}

/// Claims and ends everything that can be claimed.
async fn drain(subject: &Subject, history: &Arc<History>) -> Result<BTreeSet<JobId>, Failed> {
    let client = Client::new(history, 1000, subject.driver.clone(), subject.queue.clone());
    let mut runs = BTreeSet::new();
    loop {
        let jobs = client.claim(100, LEASE, Duration::from_millis(100)).await?;
        if jobs.is_empty() {
            return Ok(runs);
        }
        let settles = jobs.iter().map(|job| (job, Settle::Succeed { result: None }));
        for answer in client.settle(settles.collect()).await? {
            answer?;
        }
        for job in jobs {
            check!(runs.insert(job.id.clone()), "job {} ran twice", job.id);
        }
    }
}

/// Asks where each job stands and judges the history.
pub(super) async fn judge(subject: &Subject, history: &Arc<History>) -> Verdict {
    let client = Client::new(history, 1001, subject.driver.clone(), subject.queue.clone());
    let fates = client.fates(history.jobs()).await?;
    let findings = history.check(&fates);
    check!(findings.is_empty(), "{} findings: {}", findings.len(), findings.join("; "));
    Ok(())
}

pub(super) async fn consume_after_broker_recovery(fixture: Fixture) -> Verdict {
    const CONSUMERS: usize = 4;
    const JOBS: usize = 3000;
    fixture.over("consumers", CONSUMERS);
    fixture.over("jobs", JOBS);
    fixture.over("faults", Fault::ALL.len());
    let direct = fixture.subject().await?;
    let proxy = fixture.proxy().await?;
    let through = fixture.through(&proxy, &direct).await?;
    let (history, tally) = (Arc::new(History::default()), Tally::of(CONSUMERS + 1));
    let producer = Client::new(&history, 100, direct.driver.clone(), direct.queue.clone());
    for first in (0..JOBS).step_by(500) {
        let notify = fixture.notify("done")?;
        let jobs = (first..first + 500).map(|index| {
            let id = JobId::new(format!("job-{index}"))?;
            Ok::<_, Failed>(numbered(index).with_id(id).with_notify(notify.clone()))
        });
        for answer in producer.enqueue(jobs.collect::<Result<_, _>>()?).await? {
            answer?;
        }
    }
    let consume = |number| {
        let client = Client::new(&history, number, through.driver.clone(), through.queue.clone());
        let tally = &tally;
        async move {
            while !tally.is_over() {
                consume_one(&client, number, tally).await?;
            }
            Ok::<_, Failed>(())
        }
    };
    let listening = listen(&fixture, &through, CONSUMERS, &tally);
    let (tormented, consumed, heard) =
        tokio::join!(torment(&fixture, &proxy, &tally), try_join_all((0..CONSUMERS).map(consume)), listening);
    tormented?;
    consumed?;
    judge(&direct, &history).await?;
    let fates = producer.fates(history.jobs()).await?;
    let ended: BTreeSet<_> =
        fates.into_iter().filter(|(_, fate)| *fate == Fate::Ended).map(|(id, _)| id).collect();
    let heard = the_rest(&fixture, &direct, heard?, ended.len()).await?;
    check!(heard == ended, "{} jobs ended, {} were heard of", ended.len(), heard.len());
    fixture.measure(format!("{} jobs done over {} faults", ended.len(), Fault::ALL.len()));
    Ok(())
}

/// Claims a job, extends its lease and ends it, insisting while the broker can't be heard.
async fn consume_one(client: &Client, number: usize, tally: &Tally) -> Verdict {
    let claimed = client.claim(1, LEASE, Duration::from_millis(50)).await;
    tally.count(number, &claimed)?;
    let Some(held) = claimed.ok().and_then(|mut jobs| jobs.pop()) else {
        tokio::time::sleep(PAUSE).await;
        return Ok(());
    };
    tally.count(number, &client.extend(&held, LEASE).await)?;
    let since = Instant::now();
    while since.elapsed() < SOON * 2 {
        let settle = (&held, Settle::Succeed { result: None });
        let answer = client.settle(vec![settle]).await.and_then(|mut answers| answers.remove(0));
        // A settle that nobody heard of had been made.
        if is_kind(&answer, ErrorKind::StaleReceipt) {
            return Ok(());
        }
        tally.count(number, &answer)?;
        if answer.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(Failed(format!("job {} could not be settled within {:?}", held.id, SOON * 2)))
}

/// Reads and acknowledges completions through the faults. What was acknowledged must not come again.
async fn listen(
    fixture: &Fixture,
    subject: &Subject,
    number: usize,
    tally: &Tally,
) -> Result<BTreeSet<JobId>, Failed> {
    let address = fixture.address("done")?;
    let (mut heard, mut acknowledged) = (BTreeSet::new(), BTreeSet::new());
    while !tally.is_over() {
        let read =
            ReadCompletions { max: 20, wait: Duration::from_millis(50), lease: Duration::from_millis(500) };
        let page = subject.driver.completions(&address, read).await;
        tally.count(number, &page)?;
        let completions = page.map(|page| page.completions).unwrap_or_default();
        for completion in &completions {
            check!(!acknowledged.contains(&completion.job), "{} came after its end", completion.job);
            heard.insert(completion.job.clone());
        }
        let receipts: Vec<CompletionReceipt> =
            completions.iter().map(|completion| completion.receipt.clone()).collect();
        let answer = subject.driver.acknowledge(&address, receipts).await;
        tally.count(number, &answer)?;
        if answer.is_ok() {
            acknowledged.extend(completions.into_iter().map(|completion| completion.job));
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(heard)
}

/// What had not been heard of when the faults were over.
async fn the_rest(
    fixture: &Fixture,
    subject: &Subject,
    mut heard: BTreeSet<JobId>,
    expected: usize,
) -> Result<BTreeSet<JobId>, Failed> {
    let address = fixture.address("done")?;
    let since = Instant::now();
    while since.elapsed() < SOON {
        let page = subject.read(&address, 500).await?;
        if page.completions.is_empty() && page.caught_up {
            break;
        }
        let receipts = page.completions.iter().map(|completion| completion.receipt.clone());
        subject.driver.acknowledge(&address, receipts.collect()).await?;
        heard.extend(page.completions.into_iter().map(|completion| completion.job));
        if page.caught_up && heard.len() >= expected {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(heard)
}
