//! A broker in memory whose faults can be switched on and off.

use async_trait::async_trait;
use bytes::Bytes;
use longshore_drivers::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Delay,
    Driver, Durability, Enqueued, Error, ErrorKind, Extension, IdMemory, JobId, JobPage, JobRecord, JobState,
    Lease, Limits, ListJobs, NewJob, Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt,
    Result, Settle, Settlement, Timestamp, WakeStream,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

struct Job {
    queue: String,
    new: NewJob,
    attempt: u32,
    delivery: u32,
    due: Instant,
    receipt: Option<Receipt>,
    lease_until: Instant,
    over: bool,
}

impl Job {
    fn is_waiting(&self, queue: &QueueName) -> bool {
        self.queue == queue.as_str() && !self.over && self.receipt.is_none()
    }
}

/// A payload that tells whether somebody still keeps it.
struct Counted(Bytes, #[expect(dead_code, reason = "its count is what matters")] Arc<()>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<String, Job>,
    settles: Vec<(String, Settle)>,
    batches: Vec<usize>,
    cancelled: BTreeSet<String>,
    away: bool,
    panics: Option<&'static str>,
    poison: Option<String>,
    faults: VecDeque<(ErrorKind, bool)>,
    payloads: Arc<()>,
    claims: u64,
    waits: u64,
    extends: u64,
    receipts: u64,
}

impl State {
    /// A lease that ended is over, whether or not somebody else wants the job: brokers go by the clock alone.
    fn expire(&mut self) {
        let now = Instant::now();
        for job in self.jobs.values_mut().filter(|job| job.receipt.is_some() && job.lease_until <= now) {
            job.receipt = None;
            job.due = now;
        }
    }
}

/// The broker.
#[derive(Default)]
pub(crate) struct Broker {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    held: watch::Sender<bool>,
    settles_held: watch::Sender<bool>,
    delay: Mutex<Duration>,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Broker")
    }
}

impl Broker {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let answer = {
            let mut state = self.state.lock().unwrap();
            state.expire();
            act(&mut state)
        };
        self.changed.send_modify(|version| *version += 1);
        answer
    }

    pub(crate) fn add(&self, queue: &str, new: NewJob) {
        let id = new.id.clone().unwrap().to_string();
        let job = Job {
            queue: queue.to_owned(),
            new,
            attempt: 1,
            delivery: 0,
            due: Instant::now(),
            receipt: None,
            lease_until: Instant::now(),
            over: false,
        };
        self.with(|state| state.jobs.insert(id, job));
    }

    /// All settles of a job.
    pub(crate) fn settles(&self, id: &str) -> Vec<Settle> {
        let state = self.state.lock().unwrap();
        state.settles.iter().filter(|(job, _)| job == id).map(|(_, settle)| settle.clone()).collect()
    }

    pub(crate) fn settles_that(&self, fit: impl Fn(&Settle) -> bool) -> usize {
        self.state.lock().unwrap().settles.iter().filter(|(_, settle)| fit(settle)).count()
    }

    pub(crate) fn settled(&self) -> usize {
        self.state.lock().unwrap().settles.len()
    }

    pub(crate) fn batches(&self) -> Vec<usize> {
        self.state.lock().unwrap().batches.clone()
    }

    pub(crate) fn claims(&self) -> u64 {
        self.state.lock().unwrap().claims
    }

    /// Claims that found nothing and waited.
    pub(crate) fn waits(&self) -> u64 {
        self.state.lock().unwrap().waits
    }

    pub(crate) fn extends(&self) -> u64 {
        self.state.lock().unwrap().extends
    }

    pub(crate) fn is_leased(&self, id: &str) -> bool {
        self.state.lock().unwrap().jobs[id].receipt.is_some()
    }

    /// From now on every call fails, or none.
    pub(crate) fn away(&self, away: bool) {
        self.with(|state| state.away = away);
    }

    /// The next call of this name panics.
    pub(crate) fn panic_at(&self, call: &'static str) {
        self.with(|state| state.panics = Some(call));
    }

    fn panic_maybe(&self, call: &str) {
        let due = self.state.lock().unwrap().panics.take_if(|due| *due == call);
        assert!(due.is_none(), "{call} was told to panic");
    }

    /// A batch with the settle of this job is refused as a whole.
    pub(crate) fn poison(&self, id: &str) {
        self.with(|state| state.poison = state.jobs[id].receipt.clone().map(|receipt| receipt.0));
    }

    /// The next settle fails like this, after it was carried out or without it.
    pub(crate) fn fail_settle(&self, kind: ErrorKind, carried_out: bool) {
        self.with(|state| state.faults.push_back((kind, carried_out)));
    }

    /// How many payloads that were handed out are still kept by somebody.
    pub(crate) fn payloads_kept(&self) -> usize {
        Arc::strong_count(&self.state.lock().unwrap().payloads) - 1
    }

    /// Jobs that were waited for are told of this late.
    pub(crate) fn answer_late(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    /// How often a job was handed out.
    pub(crate) fn deliveries(&self, id: &str) -> u32 {
        self.state.lock().unwrap().jobs[id].delivery
    }

    /// Leases jobs, but keeps the answers to claims that don't wait.
    pub(crate) fn hold_answers(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// Lets settles wait on their way.
    pub(crate) fn hold_settles(&self, hold: bool) {
        self.settles_held.send_replace(hold);
    }

    /// Takes the lease of a job away.
    pub(crate) fn lose(&self, id: &str) {
        self.with(|state| {
            let job = state.jobs.get_mut(id).unwrap();
            job.receipt = None;
            job.due = Instant::now() + Duration::from_secs(3600);
        });
    }

    pub(crate) fn cancel_job(&self, id: &str) {
        self.with(|state| state.cancelled.insert(id.to_owned()));
    }

    fn check(&self) -> Result<()> {
        if self.state.lock().unwrap().away {
            return Err(Error::unavailable("the broker is away"));
        }
        Ok(())
    }

    fn take(&self, queue: &QueueName, claim: &Claim) -> Vec<Claimed> {
        self.with(|state| {
            let State { jobs, receipts, payloads, .. } = state;
            let now = Instant::now();
            let ready = jobs.values_mut().filter(|job| job.is_waiting(queue) && job.due <= now);
            let leased = ready.take(claim.max as usize).map(|job| {
                *receipts += 1;
                job.lease_until = now + claim.lease;
                lease(job, *receipts, claim.lease, payloads)
            });
            leased.collect()
        })
    }

    fn next_due(&self, queue: &QueueName) -> Option<Instant> {
        let (state, now) = (self.state.lock().unwrap(), Instant::now());
        let of_queue = state.jobs.values().filter(|job| job.queue == queue.as_str() && !job.over);
        let due = of_queue.map(|job| if job.receipt.is_some() { job.lease_until } else { job.due });
        due.filter(|due| *due > now).min()
    }
}

fn lease(job: &mut Job, number: u64, lease: Duration, payloads: &Arc<()>) -> Claimed {
    let now = Timestamp::now();
    let payload = &job.new.payload;
    let counted = Counted(payload.bytes.clone(), payloads.clone());
    let receipt = Receipt(format!("receipt-{number}"));
    job.receipt = Some(receipt.clone());
    job.delivery += 1;
    Claimed {
        id: job.new.id.clone().unwrap(),
        receipt,
        job_type: job.new.job_type.clone(),
        payload: Payload { content_type: payload.content_type.clone(), bytes: Bytes::from_owner(counted) },
        overrides: job.new.overrides.clone(),
        headers: job.new.headers.clone(),
        attempt: job.attempt,
        delivery: job.delivery,
        enqueued_at: now,
        ready_at: now,
        lease_until: now.after(lease),
        last_failure: None,
        ordering_key: job.new.ordering_key.clone(),
        notify: None,
    }
}

fn end(state: &mut State, settlement: Settlement) -> Result<()> {
    let Settlement { receipt, settle } = settlement;
    let held = state.jobs.iter_mut().find(|(_, job)| job.receipt.as_ref() == Some(&receipt));
    let Some((id, job)) = held else {
        return Err(Error::stale(&receipt));
    };
    job.receipt = None;
    match &settle {
        Settle::Succeed { .. } | Settle::Bury { .. } => job.over = true,
        Settle::Retry { delay, .. } => {
            job.attempt += 1;
            job.due = Instant::now() + *delay;
        }
        Settle::Release { delay } => job.due = Instant::now() + *delay,
    }
    let id = id.clone();
    state.settles.push((id, settle));
    Ok(())
}

static CAPABILITIES: LazyLock<Capabilities> = LazyLock::new(|| Capabilities {
    id_memory: IdMemory::UntilAcked,
    fencing: true,
    atomic_settle: true,
    lease: Lease::Extendable,
    delay: Some(Delay { max: Limits::MAX_DELAY }),
    pause: true,
    inspect: true,
    cancel: true,
    result_store: true,
    wake: true,
    exact_depth: true,
    fifo: false,
    durability: Durability::None,
    limits: Limits::default(),
});

fn unused<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not part of this broker"))
}

#[async_trait]
impl Driver for Broker {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        self.check()?;
        let add = |mut new: NewJob| {
            new.validate(&CAPABILITIES.limits)?;
            let id = new.id.take().unwrap_or_else(JobId::generate);
            new.id = Some(id.clone());
            if self.state.lock().unwrap().jobs.contains_key(id.as_str()) {
                let state = JobState::Ready;
                return Ok(Enqueued::Duplicate { id, state, outcome: None });
            }
            self.add(queue.as_str(), new);
            Ok(Enqueued::Created { id })
        };
        Ok(jobs.into_iter().map(add).collect())
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        self.panic_maybe("claim");
        self.state.lock().unwrap().claims += 1;
        let mut changed = self.changed.subscribe();
        let deadline = Instant::now() + claim.wait;
        let mut waited = false;
        loop {
            changed.mark_unchanged();
            self.check()?;
            let taken = self.take(queue, &claim);
            if claim.wait.is_zero() {
                let _ = self.held.subscribe().wait_for(|held| !held).await;
            }
            if !taken.is_empty() || Instant::now() >= deadline {
                let delay = *self.delay.lock().unwrap();
                if !claim.wait.is_zero() && !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                return Ok(taken);
            }
            if !std::mem::replace(&mut waited, true) {
                self.state.lock().unwrap().waits += 1;
            }
            changed.mark_unchanged();
            let due = self.next_due(queue).map_or(deadline, |due| due.min(deadline));
            tokio::select! {
                _ = timeout(claim.wait, changed.changed()) => {}
                () = sleep_until(due) => {}
            }
        }
    }

    async fn extend(
        &self,
        _: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        self.check()?;
        self.panic_maybe("extend");
        Ok(self.with(|state| {
            state.extends += 1;
            let extend = |receipt: Receipt| {
                let held = state.jobs.iter_mut().find(|(_, job)| job.receipt.as_ref() == Some(&receipt));
                let (id, job) = held.ok_or_else(|| Error::stale(&receipt))?;
                job.lease_until = Instant::now() + lease;
                Ok(Extension {
                    lease_until: Timestamp::now().after(lease),
                    cancel_requested: state.cancelled.contains(id),
                })
            };
            receipts.into_iter().map(extend).collect()
        }))
    }

    async fn settle(&self, _: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        self.check()?;
        self.panic_maybe("settle");
        let poison = self.state.lock().unwrap().poison.clone();
        if settlements.iter().any(|settlement| Some(&settlement.receipt.0) == poison.as_ref()) {
            return Err(Error::invalid("one of them is poisoned"));
        }
        let fault = self.state.lock().unwrap().faults.pop_front();
        if let Some((kind, false)) = fault {
            return Err(Error::new(kind, "this settle was told to fail"));
        }
        let _ = self.settles_held.subscribe().wait_for(|held| !held).await;
        // A round trip, so that others pile up behind it.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let answers = self.with(|state| {
            state.batches.push(settlements.len());
            settlements.into_iter().map(|settlement| end(state, settlement)).collect()
        });
        match fault {
            Some((kind, _)) => Err(Error::new(kind, "this settle was told to fail after it was done")),
            None => Ok(answers),
        }
    }

    async fn probe(&self) -> Result<Probe> {
        unused()
    }
    async fn declare(&self, _: &QueueName, _: Declaration) -> Result<Declared> {
        unused()
    }
    async fn delete_queue(&self, _: &QueueName, _: &Owner) -> Result<()> {
        unused()
    }
    async fn stats(&self, _: &QueueName) -> Result<QueueStats> {
        Ok(QueueStats::default())
    }
    async fn wake(&self) -> Result<WakeStream> {
        unused()
    }
    async fn completions(&self, _: &Address, _: ReadCompletions) -> Result<CompletionPage> {
        unused()
    }
    async fn acknowledge(&self, _: &Address, _: Vec<CompletionReceipt>) -> Result<()> {
        unused()
    }
    async fn unpin(&self, _: &QueueName, _: Vec<JobId>) -> Result<()> {
        unused()
    }
    async fn results(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        unused()
    }
    async fn inspect(&self, _: &QueueName, _: &JobId) -> Result<Option<JobRecord>> {
        unused()
    }
    async fn list(&self, _: &QueueName, _: ListJobs) -> Result<JobPage> {
        unused()
    }
    async fn cancel(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        unused()
    }
    async fn redrive(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<()>>> {
        unused()
    }
    async fn purge(&self, _: &QueueName, _: JobState, _: u32) -> Result<u64> {
        unused()
    }
    async fn close(&self) {}
}
