//! What clients did and what they were told, to be judged afterwards.
//!
//! A counter can be right by accident; a history can't. Each client writes down when a call began, when it ended and
//! what it was answered. [`History::check`] then tells whether a broker that keeps its promises can have answered that.

mod check;

use crate::{
    Claim, Claimed, DriverExt, DynDriver, Enqueued, ErrorKind, Extension, JobId, NewJob, QueueName, Receipt,
    Result, Settle, Settlement, Timestamp,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Where a job stands when everything is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is not over.
    Waits,
    /// It is over.
    Ended,
    /// The broker doesn't know it.
    Unknown,
}

/// Whether a change was made, as far as its caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It was.
    Done,
    /// It was not.
    Refused,
    /// Nobody knows.
    Nothing,
}

impl Heard {
    fn of<T>(answer: &Result<T>) -> Self {
        match answer {
            Ok(_) => Self::Done,
            Err(error) if matches!(error.kind, ErrorKind::Ambiguous | ErrorKind::Timeout) => Self::Nothing,
            Err(_) => Self::Refused,
        }
    }
}

/// One item of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Did {
    /// Enqueued a job.
    Enqueue {
        /// Whether the broker took it, or knew it.
        heard: Heard,
        /// The broker said that it is new.
        created: bool,
    },
    /// Got a job. Claims that got nothing are not written down: they promise nothing.
    Claim {
        /// The proof.
        receipt: Receipt,
        /// When the lease began, by the broker's clock.
        from: Timestamp,
        /// When it ends unless it is extended, by the same clock.
        until: Timestamp,
    },
    /// Extended a lease.
    Extend {
        /// The proof.
        receipt: Receipt,
        /// Whether it was extended.
        heard: Heard,
        /// When it ends now, by the broker's clock, if it was.
        until: Option<Timestamp>,
    },
    /// Settled a job.
    Settle {
        /// The proof.
        receipt: Receipt,
        /// Whether it was settled.
        heard: Heard,
        /// The job is over with it.
        ends: bool,
    },
}

/// Something that a client did to a job, and when, by the clock of all clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The job.
    pub job: JobId,
    /// Who did it.
    pub client: usize,
    /// When the call began.
    pub start: Duration,
    /// When its answer was there.
    pub end: Duration,
    /// What it was.
    pub did: Did,
}

/// All that the clients of one queue did.
#[derive(Debug)]
pub struct History {
    since: Instant,
    events: Mutex<Vec<Event>>,
}

impl Default for History {
    fn default() -> Self {
        Self { since: Instant::now(), events: Mutex::default() }
    }
}

impl History {
    /// The ids of all jobs that somebody tried to enqueue or was handed.
    pub fn jobs(&self) -> Vec<JobId> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs: std::collections::BTreeSet<_> = events.iter().map(|event| event.job.clone()).collect();
        jobs.into_iter().collect()
    }

    /// All that was written down, for those who look for more than [`History::check`] does.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many items of calls were written down.
    pub fn len(&self) -> usize {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What can't have happened at a broker that keeps its promises, given where each job stands now; at most 20 of it.
    pub fn check(&self, fates: &BTreeMap<JobId, Fate>) -> Vec<String> {
        check::check(&self.events.lock().unwrap_or_else(PoisonError::into_inner), fates)
    }

    fn add(&self, events: impl IntoIterator<Item = Event>) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
    }
}

/// One of several clients, each with a handle, that write one history.
#[derive(Debug, Clone)]
pub struct Client {
    history: Arc<History>,
    number: usize,
    driver: DynDriver,
    queue: QueueName,
}

impl Client {
    /// The client `number` of `queue` behind `driver`.
    pub fn new(history: &Arc<History>, number: usize, driver: DynDriver, queue: QueueName) -> Self {
        Self { history: history.clone(), number, driver, queue }
    }

    /// The handle.
    pub fn driver(&self) -> &DynDriver {
        &self.driver
    }

    fn write(&self, start: Duration, items: impl IntoIterator<Item = (JobId, Did)>) {
        let (client, end) = (self.number, self.history.since.elapsed());
        self.history.add(items.into_iter().map(|(job, did)| Event { job, client, start, end, did }));
    }

    /// Enqueues jobs, which need ids.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn enqueue(&self, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        let ids: Vec<_> = jobs.iter().filter_map(|job| job.id.clone()).collect();
        let start = self.history.since.elapsed();
        let answer = self.driver.enqueue(&self.queue, jobs).await;
        let items = ids.into_iter().enumerate().map(|(index, id)| {
            let (heard, created) = match &answer {
                Ok(answers) => answers.get(index).map_or((Heard::Nothing, false), |answer| {
                    (Heard::of(answer), matches!(answer, Ok(Enqueued::Created { .. })))
                }),
                failed => (Heard::of(failed), false),
            };
            (id, Did::Enqueue { heard, created })
        });
        self.write(start, items);
        answer
    }

    /// Claims jobs.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn claim(&self, max: u32, lease: Duration, wait: Duration) -> Result<Vec<Claimed>> {
        let start = self.history.since.elapsed();
        let claim = Claim { max, wait, lease, worker: format!("client-{}", self.number) };
        let jobs = self.driver.claim(&self.queue, claim).await?;
        let length = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let items = jobs.iter().map(|job| {
            let from = Timestamp::from_millis(job.lease_until.as_millis().saturating_sub(length));
            (job.id.clone(), Did::Claim { receipt: job.receipt.clone(), from, until: job.lease_until })
        });
        self.write(start, items);
        Ok(jobs)
    }

    /// Extends the lease of a job.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn extend(&self, job: &Claimed, lease: Duration) -> Result<Extension> {
        let start = self.history.since.elapsed();
        let answer = self.driver.extend_one(&self.queue, &job.receipt, lease).await;
        let until = answer.as_ref().ok().map(|extension| extension.lease_until);
        let did = Did::Extend { receipt: job.receipt.clone(), heard: Heard::of(&answer), until };
        self.write(start, [(job.id.clone(), did)]);
        answer
    }

    /// Settles jobs, each in its way.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn settle(&self, jobs: Vec<(&Claimed, Settle)>) -> Result<Vec<Result<()>>> {
        let start = self.history.since.elapsed();
        let settlements = jobs
            .iter()
            .map(|(job, settle)| Settlement { receipt: job.receipt.clone(), settle: settle.clone() });
        let answer = self.driver.settle(&self.queue, settlements.collect()).await;
        let items = jobs.iter().enumerate().map(|(index, (job, settle))| {
            let heard = match &answer {
                Ok(answers) => answers.get(index).map_or(Heard::Nothing, Heard::of),
                failed => Heard::of(failed),
            };
            let ends = matches!(settle, Settle::Succeed { .. } | Settle::Bury { .. });
            (job.id.clone(), Did::Settle { receipt: job.receipt.clone(), heard, ends })
        });
        self.write(start, items);
        answer
    }

    /// Where each of `jobs` stands.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn fates(&self, jobs: Vec<JobId>) -> Result<BTreeMap<JobId, Fate>> {
        let mut fates = BTreeMap::new();
        for part in jobs.chunks(64) {
            let asked = part.iter().map(|id| self.driver.inspect(&self.queue, id));
            let records = futures::future::try_join_all(asked).await?;
            fates.extend(part.iter().cloned().zip(records.into_iter().map(|record| match record {
                None => Fate::Unknown,
                Some(record) if record.state.is_terminal() => Fate::Ended,
                Some(_) => Fate::Waits,
            })));
        }
        Ok(fates)
    }
}
