//! The contract in plain maps: what each call means, without waiting, threads or disks. Time is an argument.

use super::{lines::Lines, streams::Streams};
use crate::{
    Claim, Claimed, DeadReason, Declaration, Enqueued, Error, ErrorKind, Extension, Failure, JobId,
    JobRecord, JobState, Limits, NewJob, Outcome, Owner, Payload, QueueName, QueueStats, Receipt, Result,
    Settle, StoredResult, Timestamp, Wake, checks, time::Steady,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// Added to the end of a job whose completion was not acknowledged or that was not unpinned.
const PINNED: i64 = 1 << 62;

/// All that the broker knows.
#[derive(Debug, Default)]
pub(super) struct Model {
    queues: BTreeMap<QueueName, Queue>,
    pub(super) streams: Streams,
    last_number: u64,
    clock: Option<Steady>,
    now: Timestamp,
    hints: BTreeSet<Hint>,
}

/// Something to tell subscribers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    Queue(QueueName),
    Completions(crate::Address),
}

#[derive(Debug)]
pub(super) struct Queue {
    declaration: Declaration,
    jobs: BTreeMap<u64, Job>,
    ids: HashMap<JobId, u64>,
    lines: Lines,
    /// State, time (due, end of lease, begin of retention), number.
    order: BTreeSet<(JobState, i64, u64)>,
    counts: HashMap<JobState, u64>,
    service_time_ms: Option<f64>,
}

#[derive(Debug, Clone)]
struct Job {
    id: JobId,
    new: NewJob,
    state: JobState,
    at: i64,
    enqueued_at: Timestamp,
    due_at: Timestamp,
    attempts: u32,
    lost: u32,
    deliveries: u32,
    cancel_requested: bool,
    /// Whoever is told of its end needs nothing more of it.
    unpinned: bool,
    token: u64,
    claimed_at: Timestamp,
    worker: String,
    finished_at: Option<Timestamp>,
    failure: Option<Failure>,
    outcome: Option<Outcome>,
    result: Option<Payload>,
}

impl Queue {
    fn count(&self, state: JobState) -> u64 {
        self.counts.get(&state).copied().unwrap_or(0)
    }

    /// Puts a job in its place, or takes it out of the order.
    fn place(&mut self, number: u64, from: Option<(JobState, i64)>, to: Option<(JobState, i64)>) {
        if let Some((state, at)) = from
            && self.order.remove(&(state, at, number))
        {
            *self.counts.entry(state).or_default() -= 1;
        }
        if let Some((state, at)) = to
            && self.order.insert((state, at, number))
        {
            *self.counts.entry(state).or_default() += 1;
        }
    }

    /// The numbers of the jobs in `state` whose time is `until` or earlier.
    fn earliest(&self, state: JobState, until: i64, limit: usize) -> Vec<u64> {
        let range = (state, i64::MIN, 0)..=(state, until, u64::MAX);
        self.order.range(range).take(limit).map(|(_, _, number)| *number).collect()
    }

    fn nearest(&self, state: JobState) -> Option<i64> {
        let range = (state, i64::MIN, 0)..=(state, i64::MAX, u64::MAX);
        self.order.range(range).next().map(|(_, at, _)| *at)
    }

    fn retention(&self, state: JobState) -> Duration {
        match state {
            JobState::Dead => self.declaration.settings.retain_dead,
            _ => self.declaration.settings.retain_completed,
        }
    }

    /// Retention of a job that was pinned begins at `now`.
    fn age(&mut self, number: u64, now: i64) {
        if let Some(job) = self.jobs.get_mut(&number)
            && job.at >= PINNED
        {
            let from = (job.state, job.at);
            job.at = now;
            self.place(number, Some(from), Some((from.0, now)));
        }
    }

    fn remove(&mut self, number: u64) -> Option<Job> {
        let job = self.jobs.remove(&number)?;
        self.ids.remove(&job.id);
        self.place(number, Some((job.state, job.at)), None);
        Some(job)
    }
}

/// Where a job goes next.
enum Next {
    Wait(i64, JobState),
    End(Outcome),
}

impl Model {
    /// Makes everything happen that is due when the wall clock shows `wall`. Time neither goes back nor stops.
    pub(super) fn advance(&mut self, wall: Timestamp) {
        self.now = self.clock.get_or_insert_with(|| Steady::new(wall)).now(wall);
        let names: Vec<_> = self.queues.keys().cloned().collect();
        for name in names {
            self.advance_queue(&name);
        }
    }

    fn advance_queue(&mut self, name: &QueueName) {
        let now = self.now.as_millis();
        for state in [JobState::Scheduled, JobState::Retrying] {
            for number in self.known(name).earliest(state, now, usize::MAX) {
                let due = self.known(name).jobs[&number].at;
                self.go(name, number, Next::Wait(due, state));
            }
        }
        for number in self.known(name).earliest(JobState::Active, now, usize::MAX) {
            self.lose(name, number);
        }
        for state in [JobState::Succeeded, JobState::Dead, JobState::Cancelled] {
            let retention = i64::try_from(self.known(name).retention(state).as_millis()).unwrap_or(i64::MAX);
            let over = self.known(name).earliest(state, now.saturating_sub(retention), usize::MAX);
            for number in over {
                self.known(name).remove(number);
            }
            let pin = i64::try_from(Limits::PIN.as_millis()).unwrap_or(i64::MAX);
            let forgotten = PINNED.saturating_add(now.saturating_sub(pin));
            for number in self.known(name).earliest(state, forgotten, usize::MAX) {
                self.known(name).age(number, now);
            }
        }
    }

    /// When [`Model::advance`] has something to do next for those who wait.
    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let states = [JobState::Scheduled, JobState::Retrying, JobState::Active];
        let jobs = self
            .queues
            .values()
            .flat_map(|queue| states.into_iter().filter_map(|state| queue.nearest(state)));
        jobs.chain(self.streams.next_lease_end(self.now)).min().map(Timestamp::from_millis)
    }

    /// What subscribers should hear since the last call.
    pub(super) fn hints(&mut self) -> Vec<Wake> {
        let hints = std::mem::take(&mut self.hints);
        hints
            .into_iter()
            .map(|hint| match hint {
                Hint::Queue(queue) => Wake::Queue { queue },
                Hint::Completions(address) => Wake::Completions { address },
            })
            .collect()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A queue that was found before.
    fn known(&mut self, name: &QueueName) -> &mut Queue {
        self.queues.get_mut(name).expect("queues are found before they are used")
    }

    /// Fails unless the queue was declared.
    pub(super) fn find(&self, name: &QueueName) -> Result<&Queue> {
        self.queues.get(name).ok_or_else(|| Error::no_queue(name))
    }

    /// Rounded up: instants are cut to milliseconds, and nothing may be early.
    fn due(&self, delay: Duration) -> i64 {
        let rounding = i64::from(!delay.is_zero());
        self.now.after(delay).as_millis().saturating_add(rounding)
    }

    /// Whether the queue is new.
    pub(super) fn declare(&mut self, name: &QueueName, declaration: Declaration) -> Result<bool> {
        if let Some(queue) = self.queues.get_mut(name) {
            if queue.declaration.owner != declaration.owner && !declaration.adopt {
                return Err(Error::owned_by_another(name));
            }
            checks::same_ordering(name, queue.declaration.settings.ordering, declaration.settings.ordering)?;
            queue.declaration = declaration;
            return Ok(false);
        }
        let queue = Queue {
            lines: Lines::new(declaration.settings.ordering),
            declaration,
            jobs: BTreeMap::new(),
            ids: HashMap::new(),
            order: BTreeSet::new(),
            counts: HashMap::new(),
            service_time_ms: None,
        };
        self.queues.insert(name.clone(), queue);
        Ok(true)
    }

    pub(super) fn delete_queue(&mut self, name: &QueueName, owner: &Owner) -> Result<()> {
        let Some(queue) = self.queues.get(name) else {
            return Ok(());
        };
        if queue.declaration.owner != *owner {
            return Err(Error::owned_by_another(name));
        }
        let numbers: Vec<_> = queue.jobs.keys().copied().collect();
        for number in numbers {
            self.purge_one(name, number);
        }
        self.queues.remove(name);
        Ok(())
    }

    fn purge_one(&mut self, name: &QueueName, number: u64) {
        let Some(job) = self.known(name).remove(number) else {
            return;
        };
        if !job.state.is_terminal() {
            self.announce(name, number, &job, Outcome::Purged);
            self.leave_line(name, number, &job);
        }
    }

    fn announce(&mut self, name: &QueueName, number: u64, job: &Job, outcome: Outcome) {
        if let Some(notify) = &job.new.notify {
            self.streams.add(notify, (name.clone(), number), &job.id, outcome, self.now);
            self.hints.insert(Hint::Completions(notify.address.clone()));
        }
    }

    pub(super) fn enqueue(&mut self, name: &QueueName, mut new: NewJob, limits: &Limits) -> Result<Enqueued> {
        new.validate(limits)?;
        let id = new.id.take().unwrap_or_else(JobId::generate);
        let queue = self.known(name);
        checks::ordering_key(&new, queue.declaration.settings.ordering)?;
        if let Some(number) = queue.ids.get(&id) {
            let known = &queue.jobs[number];
            if known.new.job_type != new.job_type || known.new.payload != new.payload {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("job {id} is known with another type or payload"),
                ));
            }
            return Ok(Enqueued::Duplicate { id, state: known.state, outcome: known.outcome.clone() });
        }
        if new.notify.is_some()
            && let Some(outcome) = self.streams.left(name, &id)
        {
            return Ok(Enqueued::Duplicate { id, state: outcome.state(), outcome: Some(outcome.clone()) });
        }
        let queue = self.known(name);
        let waiting = [JobState::Ready, JobState::Scheduled, JobState::Retrying, JobState::Blocked];
        let depth: u64 = waiting.into_iter().map(|state| queue.count(state)).sum();
        let max_depth = queue.declaration.settings.max_depth;
        if new.notify.is_none() && depth >= max_depth {
            return Err(Error::new(
                ErrorKind::Full,
                format!("the queue has its maximum of {max_depth} waiting jobs"),
            ));
        }
        self.insert(name, id.clone(), new);
        Ok(Enqueued::Created { id })
    }

    fn insert(&mut self, name: &QueueName, id: JobId, new: NewJob) {
        let (number, now, due) = (self.number(), self.now, self.due(new.delay));
        let job = Job {
            id: id.clone(),
            new,
            state: JobState::Scheduled,
            at: due,
            enqueued_at: now,
            due_at: now,
            attempts: 0,
            lost: 0,
            deliveries: 0,
            cancel_requested: false,
            unpinned: false,
            token: 0,
            claimed_at: now,
            worker: String::new(),
            finished_at: None,
            failure: None,
            outcome: None,
            result: None,
        };
        let queue = self.known(name);
        queue.lines.enter(job.new.ordering_key.as_deref(), number);
        queue.ids.insert(id, number);
        queue.place(number, None, Some((job.state, job.at)));
        queue.jobs.insert(number, job);
        self.go(name, number, Next::Wait(due, JobState::Scheduled));
    }

    /// Moves a job: to wait until a time, or to its end.
    fn go(&mut self, name: &QueueName, number: u64, next: Next) {
        let now = self.now;
        let queue = self.known(name);
        let Some(job) = queue.jobs.get_mut(&number) else {
            return;
        };
        let from = (job.state, job.at);
        let blocked = queue.lines.blocks(job.new.ordering_key.as_deref(), number);
        job.token = 0;
        match next {
            Next::Wait(due, later) => {
                job.state = match due <= now.as_millis() {
                    _ if blocked => JobState::Blocked,
                    true => JobState::Ready,
                    false => later,
                };
                (job.at, job.due_at) = (due, Timestamp::from_millis(due));
            }
            Next::End(outcome) => {
                job.state = outcome.state();
                let pin = if job.new.notify.is_some() { PINNED } else { 0 };
                job.at = now.as_millis().saturating_add(pin);
                (job.finished_at, job.outcome, job.cancel_requested) = (Some(now), Some(outcome), false);
            }
        }
        let job = job.clone();
        queue.place(number, Some(from), Some((job.state, job.at)));
        if job.state == JobState::Ready {
            self.hints.insert(Hint::Queue(name.clone()));
        }
        if let Some(outcome) = job.outcome.clone() {
            self.announce(name, number, &job, outcome);
            self.leave_line(name, number, &job);
        }
    }

    /// Of jobs with one ordering key the next one's turn has come.
    fn leave_line(&mut self, name: &QueueName, number: u64, job: &Job) {
        let next = self.known(name).lines.leave(job.new.ordering_key.as_deref(), number);
        let Some(next) = next else { return };
        // It could not be handed out before: those of other keys that were ready earlier come first.
        let due = self.known(name).jobs[&next].at.max(self.now.as_millis());
        let later =
            if self.known(name).jobs[&next].attempts == 0 { JobState::Scheduled } else { JobState::Retrying };
        self.go(name, next, Next::Wait(due, later));
    }

    pub(super) fn claim(&mut self, name: &QueueName, claim: &Claim) -> Vec<Claimed> {
        let (now, lease_until) = (self.now, self.now.after(claim.lease));
        if self.known(name).declaration.settings.paused {
            return Vec::new();
        }
        let max = (claim.max as usize).min(Limits::BATCH);
        let ready = self.known(name).earliest(JobState::Ready, i64::MAX, max);
        ready
            .into_iter()
            .map(|number| {
                let token = self.number();
                let queue = self.known(name);
                let job = queue.jobs.get_mut(&number).expect("the order holds jobs that are there");
                let from = (job.state, job.at);
                let ready_at = job.due_at;
                (job.state, job.at, job.token) = (JobState::Active, lease_until.as_millis(), token);
                (job.claimed_at, job.worker) = (now, claim.worker.clone());
                job.deliveries += 1;
                let claimed = Claimed {
                    id: job.id.clone(),
                    receipt: Receipt(format!("{number}-{token}")),
                    job_type: job.new.job_type.clone(),
                    payload: job.new.payload.clone(),
                    overrides: job.new.overrides.clone(),
                    headers: job.new.headers.clone(),
                    attempt: job.attempts + 1,
                    delivery: job.deliveries,
                    enqueued_at: job.enqueued_at,
                    ready_at,
                    lease_until,
                    last_failure: job.failure.clone(),
                    notify: job.new.notify.clone(),
                    ordering_key: job.new.ordering_key.clone(),
                };
                queue.place(number, Some(from), Some((JobState::Active, lease_until.as_millis())));
                claimed
            })
            .collect()
    }

    /// The number of the job that `receipt` holds.
    fn held(&mut self, name: &QueueName, receipt: &Receipt) -> Result<u64> {
        let parts = receipt.0.split_once('-');
        let parsed =
            parts.and_then(|(number, token)| Some((number.parse().ok()?, token.parse::<u64>().ok()?)));
        let queue = self.known(name);
        parsed
            .filter(|(number, token)| {
                let job = queue.jobs.get(number);
                job.is_some_and(|job| job.state == JobState::Active && job.token == *token)
            })
            .map(|(number, _)| number)
            .ok_or_else(|| Error::stale(receipt))
    }

    pub(super) fn extend(
        &mut self,
        name: &QueueName,
        receipt: &Receipt,
        lease: Duration,
    ) -> Result<Extension> {
        let number = self.held(name, receipt)?;
        let lease_until = self.now.after(lease);
        let queue = self.known(name);
        let job = queue.jobs.get_mut(&number).ok_or_else(|| Error::stale(receipt))?;
        let from = (job.state, job.at);
        job.at = lease_until.as_millis();
        let cancel_requested = job.cancel_requested;
        queue.place(number, Some(from), Some((from.0, lease_until.as_millis())));
        Ok(Extension { lease_until, cancel_requested })
    }

    pub(super) fn settle(
        &mut self,
        name: &QueueName,
        receipt: &Receipt,
        settle: &Settle,
        limits: &Limits,
    ) -> Result<()> {
        if let Settle::Succeed { result: Some(result) } = settle {
            crate::job::check_payload("result", result, limits.max_result)?;
        }
        if let Settle::Retry { delay, .. } | Settle::Release { delay } = settle
            && *delay > Limits::MAX_DELAY
        {
            return Err(Error::invalid("a job can be delayed by 366 days at most"));
        }
        let number = self.held(name, receipt)?;
        let next = self.decide(name, number, settle);
        self.go(name, number, next);
        Ok(())
    }

    /// What a settle makes of a job.
    fn decide(&mut self, name: &QueueName, number: u64, settle: &Settle) -> Next {
        let now = self.now;
        let due = match settle {
            Settle::Retry { delay, .. } | Settle::Release { delay } => self.due(*delay),
            Settle::Succeed { .. } | Settle::Bury { .. } => 0,
        };
        let queue = self.known(name);
        let job = queue.jobs.get_mut(&number).expect("the job is held");
        let took = now.since(job.claimed_at).as_secs_f64() * 1000.0;
        let average = queue.service_time_ms.unwrap_or(took);
        if !matches!(settle, Settle::Release { .. }) {
            job.attempts += 1;
            queue.service_time_ms = Some(average + 0.02 * (took - average));
        }
        match settle {
            Settle::Succeed { result } => {
                job.result.clone_from(result);
                Next::End(Outcome::Succeeded { result: result.as_ref().map(stored) })
            }
            Settle::Bury { reason, failure } => {
                let failure = Failure::new(failure.reason.as_str(), failure.message.as_str());
                job.failure = Some(failure.clone());
                Next::End(Outcome::Dead { reason: *reason, failure })
            }
            Settle::Retry { failure, .. } => {
                job.failure = Some(Failure::new(failure.reason.as_str(), failure.message.as_str()));
                again(job, due, JobState::Retrying)
            }
            Settle::Release { .. } if job.attempts == 0 => again(job, due, JobState::Scheduled),
            Settle::Release { .. } => again(job, due, JobState::Retrying),
        }
    }

    /// A delivery ended without a settle.
    fn lose(&mut self, name: &QueueName, number: u64) {
        let now = self.now.as_millis();
        let queue = self.known(name);
        let max = queue.declaration.settings.max_deliveries.max(1);
        let Some(job) = queue.jobs.get_mut(&number) else {
            return;
        };
        job.lost += 1;
        let next = if job.lost >= max && !job.cancel_requested {
            let message = format!(
                "{} deliveries ended without a settle, the last one at worker {:?}",
                job.lost, job.worker
            );
            let failure = Failure::new("DeliveriesLost", message);
            job.failure = Some(failure.clone());
            Next::End(Outcome::Dead { reason: DeadReason::Quarantined, failure })
        } else {
            again(job, now, JobState::Retrying)
        };
        self.go(name, number, next);
    }

    pub(super) fn unpin(&mut self, name: &QueueName, id: &JobId) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        let Some(number) = queue.ids.get(id).copied() else {
            return;
        };
        if let Some(job) = queue.jobs.get_mut(&number) {
            job.unpinned = true;
        }
        self.release(name, number);
    }

    /// Retention of a job begins when its last completion was acknowledged and it was unpinned.
    pub(super) fn release(&mut self, name: &QueueName, number: u64) {
        let now = self.now.as_millis();
        if self.streams.waits(&(name.clone(), number)) {
            return;
        }
        if let Some(queue) = self.queues.get_mut(name)
            && queue.jobs.get(&number).is_some_and(|job| job.unpinned && job.state.is_terminal())
        {
            queue.age(number, now);
        }
    }

    pub(super) fn cancel(&mut self, name: &QueueName, id: &JobId) -> Result<JobState> {
        let queue = self.known(name);
        let number = *queue.ids.get(id).ok_or_else(|| no_job(id))?;
        let job = queue.jobs.get_mut(&number).ok_or_else(|| no_job(id))?;
        match job.state {
            JobState::Ready | JobState::Scheduled | JobState::Retrying | JobState::Blocked => {
                self.go(name, number, Next::End(Outcome::Cancelled));
                Ok(JobState::Cancelled)
            }
            JobState::Active => {
                job.cancel_requested = true;
                Ok(JobState::Active)
            }
            over @ (JobState::Succeeded | JobState::Dead | JobState::Cancelled) => Ok(over),
        }
    }

    pub(super) fn redrive(&mut self, name: &QueueName, id: &JobId) -> Result<()> {
        let now = self.now.as_millis();
        let queue = self.known(name);
        let number = *queue.ids.get(id).ok_or_else(|| no_job(id))?;
        let job = queue.jobs.get_mut(&number).ok_or_else(|| no_job(id))?;
        if job.state != JobState::Dead {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("job {id} isn't dead, so it can't be redriven"),
            ));
        }
        if job.new.notify.is_some() {
            return Err(Error::of_workflow(id));
        }
        (job.attempts, job.lost, job.deliveries) = (0, 0, 0);
        (job.outcome, job.finished_at) = (None, None);
        let key = job.new.ordering_key.clone();
        queue.lines.enter(key.as_deref(), number);
        self.go(name, number, Next::Wait(now, JobState::Scheduled));
        Ok(())
    }

    pub(super) fn purge(&mut self, name: &QueueName, state: JobState, limit: u32) -> u64 {
        let limit = (limit as usize).min(Limits::BATCH);
        let numbers = self.known(name).earliest(state, PINNED - 1, limit);
        for number in &numbers {
            self.purge_one(name, *number);
        }
        numbers.len() as u64
    }

    pub(super) fn result(&self, name: &QueueName, id: &JobId) -> Option<Payload> {
        let queue = self.queues.get(name)?;
        queue.jobs.get(queue.ids.get(id)?)?.result.clone()
    }
}

impl Queue {
    pub(super) fn stats(&self) -> QueueStats {
        let due = [JobState::Scheduled, JobState::Retrying].map(|state| self.nearest(state));
        QueueStats {
            ready: Some(self.count(JobState::Ready)),
            scheduled: Some(self.count(JobState::Scheduled)),
            active: Some(self.count(JobState::Active)),
            retrying: Some(self.count(JobState::Retrying)),
            blocked: Some(self.count(JobState::Blocked)),
            dead: Some(self.count(JobState::Dead)),
            oldest_ready_at: self.nearest(JobState::Ready).map(Timestamp::from_millis),
            next_due_at: due.into_iter().flatten().min().map(Timestamp::from_millis),
            service_time_ms: self.service_time_ms,
            parked: Some(0),
        }
    }

    pub(super) fn record(&self, id: &JobId) -> Option<JobRecord> {
        self.jobs.get(self.ids.get(id)?).map(record)
    }

    /// Up to `limit` jobs in `state` behind a place in the order, each with its own place.
    pub(super) fn page(
        &self,
        state: JobState,
        after: (i64, u64),
        limit: usize,
    ) -> Vec<((i64, u64), JobRecord)> {
        let (at, number) = after;
        let range = (state, at, number.saturating_add(1))..=(state, i64::MAX, u64::MAX);
        let places = self.order.range(range).take(limit);
        places.map(|(_, at, number)| ((*at, *number), record(&self.jobs[number]))).collect()
    }
}

fn record(job: &Job) -> JobRecord {
    let active = job.state == JobState::Active;
    JobRecord {
        id: job.id.clone(),
        job_type: job.new.job_type.clone(),
        state: job.state,
        attempts: job.attempts,
        lost_deliveries: job.lost,
        enqueued_at: job.enqueued_at,
        due_at: job.due_at,
        lease_until: active.then(|| Timestamp::from_millis(job.at)),
        worker: active.then(|| job.worker.clone()),
        finished_at: job.finished_at,
        last_failure: job.failure.clone(),
        outcome: job.outcome.clone(),
        payload_bytes: job.new.payload.len() as u64,
    }
}

/// A job that would wait again ends instead if somebody asked for that.
fn again(job: &Job, due: i64, later: JobState) -> Next {
    if job.cancel_requested { Next::End(Outcome::Cancelled) } else { Next::Wait(due, later) }
}

fn stored(result: &Payload) -> StoredResult {
    if result.len() <= Limits::INLINE_RESULT {
        StoredResult::Inline { payload: result.clone() }
    } else {
        StoredResult::Stored { bytes: result.len() as u64 }
    }
}

fn no_job(id: &JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("the queue has no job {id}"))
}
