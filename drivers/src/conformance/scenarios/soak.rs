//! Many jobs while the broker is killed and the way to it breaks, at moments that nobody chose.

use super::{faults::Fault, faults::judge, load::dice};
use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq,
    history::{Client, History},
    is_kind,
    proxy::Proxy,
};
use crate::{Claimed, DeadReason, ErrorKind, Failure, JobId, NewJob, Payload, QueueSettings, Settle};
use futures::future::try_join_all;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Jobs of one round: each has a queue and a history of its own, so that a long run takes no more memory than a short one.
const ROUND: usize = 20_000;
const BATCH: usize = 100;
const LEASE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than this no round takes on any machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Jobs of the whole run: one round, or a million with `LONGSHORE_SOAK=1`.
fn rounds() -> usize {
    if std::env::var("LONGSHORE_SOAK").is_ok_and(|set| set == "1") { 1_000_000 / ROUND } else { 1 }
}

pub(super) async fn soak_broker_faults(fixture: Fixture) -> Verdict {
    let proxy = fixture.proxy().await?;
    let since = Instant::now();
    let mut faults = 0;
    fixture.over("jobs", rounds() * ROUND);
    fixture.at_least("faults", Fault::ALL.len());
    for number in 0..rounds() {
        faults += round(&fixture, &proxy, number).await?;
    }
    let jobs = rounds() * ROUND;
    fixture.measure(format!("{jobs} jobs over {faults} faults in {:.1?}", since.elapsed()));
    Ok(())
}

/// What the tasks of a round share.
struct Round {
    history: Arc<History>,
    through: Subject,
    /// Jobs that nobody has ended yet, as far as those who end them know.
    open: Mutex<BTreeSet<JobId>>,
    produced: AtomicBool,
    over: AtomicBool,
    /// How many faults there were.
    faults: AtomicUsize,
    began: Instant,
}

impl Round {
    fn client(&self, number: usize) -> Client {
        Client::new(&self.history, number, self.through.driver.clone(), self.through.queue.clone())
    }

    fn open(&self) -> std::sync::MutexGuard<'_, BTreeSet<JobId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> Result<bool, Failed> {
        let left = self.open().len();
        check!(self.began.elapsed() < PATIENCE, "after {PATIENCE:?} {left} jobs are not over");
        Ok(self.over.load(Ordering::Relaxed) || self.produced.load(Ordering::Relaxed) && left == 0)
    }
}

async fn round(fixture: &Fixture, proxy: &Proxy, number: usize) -> Result<usize, Failed> {
    const PRODUCERS: usize = 2;
    const WORKERS: usize = 4;
    let direct = fixture.undeclared(&format!("round-{number}")).await?;
    // Deliveries are lost by the hundred here; none of that is the job's fault.
    direct.declare(QueueSettings { max_deliveries: 1000, ..QueueSettings::default() }).await?;
    let round = Round {
        history: Arc::default(),
        through: fixture.through(proxy, &direct).await?,
        open: Mutex::default(),
        produced: AtomicBool::new(false),
        over: AtomicBool::new(false),
        faults: AtomicUsize::new(0),
        began: Instant::now(),
    };
    let producing = async {
        try_join_all((0..PRODUCERS).map(|task| produce(&round, task, PRODUCERS))).await?;
        round.produced.store(true, Ordering::Relaxed);
        Ok::<_, Failed>(())
    };
    let working = async {
        let worked = try_join_all((0..WORKERS).map(|task| work(&round, 10 + task))).await.map(drop);
        round.over.store(true, Ordering::Relaxed);
        worked
    };
    let breaking = break_things(fixture, proxy, &round, number as u64);
    let ((), (), faults) = tokio::try_join!(producing, working, breaking)?;
    let jobs = round.history.jobs().len();
    check_eq!(jobs, ROUND, "jobs of a round");
    judge(&direct, &round.history).await?;
    direct.driver.delete_queue(&direct.queue, &Subject::owner()).await?;
    Ok(faults)
}

/// Sends each batch until it is known to be in the broker.
async fn produce(round: &Round, task: usize, tasks: usize) -> Verdict {
    let client = round.client(task);
    for batch in (task..ROUND / BATCH).step_by(tasks) {
        // However fast the machine is, there is work left until each kind of fault had its turn.
        while batch + tasks >= ROUND / BATCH && round.faults.load(Ordering::Relaxed) < Fault::ALL.len() {
            check!(!round.is_over()?, "the round is over before its jobs were sent");
            tokio::time::sleep(PAUSE).await;
        }
        let ids = (0..BATCH).map(|index| JobId::new(format!("job-{batch}-{index}")));
        let ids: Vec<JobId> = ids.collect::<Result<_, _>>()?;
        round.open().extend(ids.iter().cloned());
        let payload = Payload::json("{\"n\":1}");
        let jobs: Vec<_> =
            ids.into_iter().map(|id| NewJob::new("soak", payload.clone()).with_id(id)).collect();
        loop {
            match client.enqueue(jobs.clone()).await {
                Ok(answers) => match answers.into_iter().collect::<crate::Result<Vec<_>>>() {
                    Ok(_) => break,
                    Err(error) => expected(&error)?,
                },
                Err(error) => expected(&error)?,
            }
            check!(!round.is_over()?, "the round is over before its jobs were sent");
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Only what a fault explains.
fn expected(error: &crate::Error) -> Verdict {
    let explained = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Ambiguous);
    check!(explained, "a call was answered {error:?}");
    Ok(())
}

async fn work(round: &Round, number: usize) -> Verdict {
    let client = round.client(number);
    let mut roll = number as u64;
    while !round.is_over()? {
        let jobs = match client.claim(100, LEASE, Duration::from_millis(100)).await {
            Ok(jobs) => jobs,
            Err(error) => {
                expected(&error)?;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let mut settles = Vec::with_capacity(jobs.len());
        for job in jobs {
            roll += 1;
            let settle = decide(roll, &job);
            settles.push((job, settle));
        }
        settle_all(round, &client, settles).await?;
    }
    Ok(())
}

fn decide(roll: u64, job: &Claimed) -> Settle {
    let failure = || Failure::new("HandlerError", "no");
    match dice(roll) % 40 {
        0 if job.attempt < 3 => Settle::Retry { delay: Duration::from_millis(20), failure: failure() },
        1 if job.delivery < 5 => Settle::Release { delay: Duration::ZERO },
        2 => Settle::Bury { reason: DeadReason::Rejected, failure: failure() },
        _ => Settle::Succeed { result: None },
    }
}

/// Settles until each answer is known: made, or another one's by now.
async fn settle_all(round: &Round, client: &Client, mut settles: Vec<(Claimed, Settle)>) -> Verdict {
    let mut unheard = BTreeSet::new();
    while !settles.is_empty() {
        let batch = settles.iter().map(|(job, settle)| (job, settle.clone())).collect();
        let answers = match client.settle(batch).await {
            Ok(answers) => answers,
            Err(error) => {
                expected(&error)?;
                if error.kind == ErrorKind::Ambiguous {
                    unheard.extend(settles.iter().map(|(job, _)| job.id.clone()));
                }
                tokio::time::sleep(PAUSE).await;
                round.is_over()?;
                continue;
            }
        };
        let mut left = Vec::new();
        for ((job, settle), answer) in settles.into_iter().zip(answers) {
            let ends = matches!(settle, Settle::Succeed { .. } | Settle::Bury { .. });
            match answer {
                Ok(()) if ends => {
                    round.open().remove(&job.id);
                }
                Ok(()) => {}
                stale if is_kind(&stale, ErrorKind::StaleReceipt) => {
                    // Either an earlier try was made, or the lease was over: the job itself knows.
                    if unheard.contains(&job.id) {
                        look(round, client, &job.id).await?;
                    }
                }
                Err(error) => {
                    expected(&error)?;
                    left.push((job, settle));
                }
            }
        }
        settles = left;
    }
    Ok(())
}

/// Takes a job that is over off the list.
async fn look(round: &Round, client: &Client, id: &JobId) -> Verdict {
    loop {
        match client.driver().inspect(&round.through.queue, id).await {
            Ok(record) => {
                if record.is_some_and(|record| record.state.is_terminal()) {
                    round.open().remove(id);
                }
                return Ok(());
            }
            Err(error) => check!(error.kind.is_transient(), "a look at a job was answered {error:?}"),
        }
        round.is_over()?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Faults of each kind in turn, at moments that look random, at least until all jobs were sent; what is left then comes
/// back by itself.
async fn break_things(fixture: &Fixture, proxy: &Proxy, round: &Round, seed: u64) -> Result<usize, Failed> {
    let kinds = Fault::ALL.len();
    let mut faults = 0;
    while !round.over.load(Ordering::Relaxed)
        && (faults < kinds || !round.produced.load(Ordering::Relaxed))
        && !round.is_over()?
    {
        let roll = (seed * 1000 + faults as u64) * 3;
        tokio::time::sleep(Duration::from_millis(50 + dice(roll) % 400)).await;
        let fault = Fault::ALL[faults % kinds];
        fault.begin(fixture, proxy).await?;
        tokio::time::sleep(Duration::from_millis(dice(roll + 1) % 300)).await;
        fault.end(fixture, proxy).await?;
        faults += 1;
        round.faults.store(faults, Ordering::Relaxed);
    }
    check!(faults >= kinds, "the jobs were done before each of {kinds} faults had its turn: {faults}");
    Ok(faults)
}
