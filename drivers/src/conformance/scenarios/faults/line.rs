//! Jobs on their way through a queue, with a station for each operation. All are under way at any moment: each keeps a
//! few jobs at hand, so that it has something to try when the one before it stands still.

use super::{
    hands::{Heard, Held, LEASE, Stock, decide},
    tally::{Lane, Tally, torment},
};
use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    history::{Client, Fate, History},
    is_kind,
    machine::Watch,
    proxy::Proxy,
};
use crate::{Address, Completion, ErrorKind, JobId, NewJob, Notify, QueueSettings, ReadCompletions, Settle};
use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// Whoever is refused tries again after this.
const BACK_OFF: Duration = Duration::from_millis(30);
/// What stays at hand in good weather.
const KEEP: usize = 4;
/// Settles and acknowledgements in one call.
const BATCH: usize = 10;
/// Jobs in the broker, at which nobody adds more while it is well.
const BACKLOG: usize = 300;
/// Completions that were read are another reader's after this.
const READ_LEASE: Duration = Duration::from_secs(2);
/// How long everything may take to end once all faults are over. A broker that was killed may let leases hold for 10 s.
const ENDS: Duration = Duration::from_secs(30);

/// The operations, each a lane of the tally. A read of completions is one that can be made again.
const OPERATIONS: &[Lane] = &[
    Lane { name: "enqueue", changes: true },
    Lane { name: "claim", changes: true },
    Lane { name: "extend", changes: true },
    Lane { name: "settle", changes: true },
    Lane { name: "read", changes: false },
    Lane { name: "acknowledge", changes: true },
];
const ENQUEUE: usize = 0;
const CLAIM: usize = 1;
const EXTEND: usize = 2;
const SETTLE: usize = 3;
const READ: usize = 4;
const ACKNOWLEDGE: usize = 5;

/// How jobs are made.
pub(super) type Make = fn(usize) -> NewJob;

/// A queue, and the stations of its jobs.
pub(super) struct Line {
    make: Make,
    notify: Notify,
    direct: Subject,
    through: Subject,
    pub(super) history: Arc<History>,
    pub(super) tally: Tally,
    claimed: Stock<Held>,
    extended: Stock<Held>,
    told: Stock<Completion>,
    heard: Mutex<Heard>,
    /// Jobs that were sent, and those that are known to be over.
    sent: AtomicUsize,
    over: Mutex<BTreeSet<JobId>>,
    feeds: AtomicBool,
}

/// What came of it.
pub(super) struct Came {
    pub(super) jobs: usize,
    pub(super) figures: String,
}

impl Line {
    /// A line through a queue that is made here. Its jobs are those of `make`, each with an id and somebody to be told.
    pub(super) async fn new(
        fixture: &Fixture,
        proxy: &Proxy,
        settings: QueueSettings,
        make: Make,
    ) -> Result<Self, Failed> {
        let lanes = OPERATIONS;
        fixture.over("operations", lanes.len());
        fixture.over("faults", super::Fault::ALL.len());
        let least = fixture.at_least("failed calls of each operation in each fault", 1_usize);
        let slow = fixture.at_least("calls of each over a slow network", 3_usize);
        // Deliveries are lost by the hundred here; none of that is the job's fault.
        let direct = fixture.subject_with(QueueSettings { max_deliveries: 1000, ..settings }).await?;
        let through = fixture.through(proxy, &direct).await?;
        Ok(Self {
            make,
            notify: fixture.notify("done")?,
            direct,
            through,
            history: Arc::default(),
            tally: Tally::of(lanes, least, slow),
            claimed: Stock::default(),
            extended: Stock::default(),
            told: Stock::default(),
            heard: Mutex::default(),
            sent: AtomicUsize::new(0),
            over: Mutex::default(),
            feeds: AtomicBool::new(true),
        })
    }

    /// Lets jobs go through all faults, and all of them end. Each was told of once then.
    pub(super) async fn run(&self, fixture: &Fixture, proxy: &Proxy) -> Result<Came, Failed> {
        let conducted = async {
            let figures = torment(fixture, proxy, &self.tally, || self.is_ready()).await?;
            self.feeds.store(false, Ordering::Relaxed);
            self.ends().await?;
            self.tally.stop();
            Ok::<_, Failed>(figures)
        };
        let stations: Vec<BoxFuture<'_, Verdict>> = vec![
            self.feed().boxed(),
            self.claim(1).boxed(),
            self.claim(2).boxed(),
            self.extend(3).boxed(),
            self.settle(4).boxed(),
            self.settle(5).boxed(),
            self.read().boxed(),
            self.acknowledge().boxed(),
        ];
        let (figures, _) = tokio::try_join!(conducted, try_join_all(stations))?;
        let jobs = self.sent.load(Ordering::Relaxed);
        self.all_told(jobs).await?;
        super::judge(&self.direct, &self.history).await?;
        let names: Vec<_> = OPERATIONS.iter().map(|lane| lane.name).collect();
        let figures = format!("failed calls of {}, or slow ones: {figures}", names.join("/"));
        Ok(Came { jobs, figures })
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> MutexGuard<'_, BTreeSet<JobId>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self) -> &Address {
        &self.notify.address
    }

    fn client(&self, number: usize) -> Client {
        Client::new(&self.history, number, self.through.driver.clone(), self.through.queue.clone())
    }

    /// Whether each station has something to try.
    fn is_ready(&self) -> bool {
        [self.claimed.len(), self.extended.len(), self.told.len()].iter().all(|&there| there >= KEEP)
    }

    /// What a station leaves where it is: everything is tried in a fault, and everything has to end in the end.
    fn keep(&self) -> usize {
        if self.tally.bites() || !self.feeds.load(Ordering::Relaxed) { 0 } else { KEEP }
    }

    /// Sends jobs, each batch until it is known to be in the broker.
    async fn feed(&self) -> Verdict {
        let client = self.client(0);
        while self.feeds.load(Ordering::Relaxed) {
            let sent = self.sent.load(Ordering::Relaxed);
            if self.tally.bites() || sent - self.over().len() < BACKLOG {
                let jobs = [sent, sent + 1].map(|index| self.job(index)).into_iter();
                self.sent.store(sent + 2, Ordering::Relaxed);
                self.insist(&client, jobs.collect::<Result<_, _>>()?).await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn job(&self, index: usize) -> Result<NewJob, Failed> {
        let id = JobId::new(format!("job-{index}"))?;
        Ok((self.make)(index).with_id(id).with_notify(self.notify.clone()))
    }

    async fn insist(&self, client: &Client, jobs: Vec<NewJob>) -> Verdict {
        loop {
            let begun = self.tally.begin();
            let answer = client.enqueue(jobs.clone()).await;
            let answer = answer.and_then(|answers| answers.into_iter().collect::<crate::Result<Vec<_>>>());
            self.tally.count(ENQUEUE, begun, &answer)?;
            if answer.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(BACK_OFF).await;
        }
    }

    async fn claim(&self, number: usize) -> Verdict {
        let client = self.client(number);
        while !self.tally.is_over() {
            let begun = self.tally.begin();
            let answer = client.claim(3, LEASE, Duration::from_millis(50)).await;
            self.tally.count(CLAIM, begun, &answer)?;
            match answer {
                Ok(jobs) => {
                    let held = jobs.into_iter().map(|job| {
                        Ok::<_, Failed>(Held {
                            settle: decide(&job)?,
                            job,
                            leased: begun.since,
                            unheard: false,
                        })
                    });
                    self.claimed.add(held.collect::<Result<Vec<_>, _>>()?);
                }
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            }
        }
        Ok(())
    }

    /// Extends the lease of one job at a time; the others that are more than needed go on without.
    async fn extend(&self, number: usize) -> Verdict {
        let client = self.client(number);
        while !self.tally.is_over() {
            let Some(mut held) = self.claimed.take(1, self.keep()).pop() else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let begun = self.tally.begin();
            let answer = client.extend(&held.job, LEASE).await;
            if is_kind(&answer, ErrorKind::StaleReceipt) {
                held.lapsed()?;
                continue;
            }
            self.tally.count(EXTEND, begun, &answer)?;
            if answer.is_ok() {
                held.leased = begun.since;
                let keep = if self.feeds.load(Ordering::Relaxed) { KEEP } else { 0 };
                self.extended.add([held]);
                self.extended.add(self.claimed.take(BATCH, keep));
            } else {
                self.claimed.put_back(vec![held]);
                tokio::time::sleep(BACK_OFF).await;
            }
        }
        Ok(())
    }

    /// Settles what is at hand until each answer is known.
    async fn settle(&self, number: usize) -> Verdict {
        let client = self.client(number);
        while !self.tally.is_over() {
            let mut held = self.extended.take(BATCH, self.keep());
            if held.is_empty() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let begun = self.tally.begin();
            let answer =
                client.settle(held.iter().map(|held| (&held.job, held.settle.clone())).collect()).await;
            self.tally.count(SETTLE, begun, &answer)?;
            match answer {
                Ok(answers) => {
                    for (held, answer) in held.into_iter().zip(answers) {
                        self.settled(held, answer)?;
                    }
                }
                Err(error) => {
                    let unheard = error.kind == ErrorKind::Ambiguous;
                    held.iter_mut().for_each(|held| held.unheard |= unheard);
                    self.extended.put_back(held);
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
        Ok(())
    }

    fn settled(&self, mut held: Held, answer: crate::Result<()>) -> Verdict {
        match answer {
            Ok(()) => {
                if matches!(held.settle, Settle::Succeed { .. } | Settle::Bury { .. }) {
                    self.over().insert(held.job.id);
                }
            }
            Err(error) if error.kind == ErrorKind::StaleReceipt => held.lapsed()?,
            Err(error) => {
                let explained = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Ambiguous);
                check!(explained, "a settle was answered {error:?}");
                held.unheard |= error.kind == ErrorKind::Ambiguous;
                self.extended.put_back(vec![held]);
            }
        }
        Ok(())
    }

    async fn read(&self) -> Verdict {
        while !self.tally.is_over() {
            let read = ReadCompletions { max: 20, wait: Duration::from_millis(50), lease: READ_LEASE };
            let begun = self.tally.begin();
            let answer = self.through.driver.completions(self.address(), read).await;
            self.tally.count(READ, begun, &answer)?;
            match answer {
                Ok(page) => {
                    for completion in &page.completions {
                        self.heard().read(completion, begun.since)?;
                    }
                    self.told.add(page.completions);
                }
                Err(_) => tokio::time::sleep(BACK_OFF).await,
            }
        }
        Ok(())
    }

    async fn acknowledge(&self) -> Verdict {
        while !self.tally.is_over() {
            let told = self.told.take(BATCH, self.keep());
            if told.is_empty() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let begun = self.tally.begin();
            let receipts = told.iter().map(|completion| completion.receipt.clone()).collect();
            let answer = self.through.driver.acknowledge(self.address(), receipts).await;
            self.tally.count(ACKNOWLEDGE, begun, &answer)?;
            if answer.is_ok() {
                self.heard().acknowledged(told, Instant::now());
            } else {
                self.told.put_back(told);
                tokio::time::sleep(BACK_OFF).await;
            }
        }
        Ok(())
    }

    /// Waits until every job is over and its completion acknowledged.
    async fn ends(&self) -> Verdict {
        let (watch, looks) = (Watch::start(), self.client(6));
        loop {
            let sent = self.sent.load(Ordering::Relaxed);
            let acknowledged = self.heard().gone.len();
            if self.over().len() == sent && acknowledged == sent {
                return Ok(());
            }
            let late = watch.elapsed() > ENDS + watch.pauses();
            check!(!late, "of {sent} jobs {} ended, {acknowledged} were told of", self.over().len());
            tokio::time::sleep(PAUSE * 10).await;
            // The answer of a settle that was made may have been lost: the broker knows.
            let known = self.over().clone();
            let open = self.history.jobs().into_iter().filter(|id| !known.contains(id)).collect();
            let Ok(fates) = looks.fates(open).await else { continue };
            let over = fates.into_iter().filter(|(_, fate)| *fate == Fate::Ended).map(|(id, _)| id);
            self.over().extend(over);
        }
    }

    /// Each job that is over was told of, no other was, and nothing is left.
    async fn all_told(&self, jobs: usize) -> Verdict {
        check_eq!(self.history.jobs().len(), jobs, "jobs that were sent");
        let (over, told) = (self.over().clone(), self.heard().jobs.clone());
        check_eq!(over.len(), jobs, "jobs that are over");
        check!(over == told, "{} jobs are over, {} were told of", over.len(), told.len());
        eventually("no completion is left", || async {
            let page = self.direct.read(self.address(), 10).await?;
            for completion in &page.completions {
                self.heard().read(completion, Instant::now())?;
            }
            Ok(page.caught_up && page.completions.is_empty())
        })
        .await
    }
}
