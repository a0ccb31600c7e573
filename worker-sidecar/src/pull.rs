//! The worker's queues as the app sees them through the local API, under the policy that also rules pushed jobs.
//!
//! What the app claims holds a slot until it is settled, extended no more, out of time, or the sidecar stops.

use crate::{
    core::{Core, Hold},
    drain::Stage,
    events::{self, JobEvent, Lost},
    headers,
    in_flight::{Abort, Completion, Phase, Said, Settled, Ticket},
    job::{self, End, conclude, finish, interrupted, without_payload},
    lease::Term,
    outcome::Answer,
    plan::Lane,
};
use async_trait::async_trait;
use longshore_drivers::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Driver,
    DynDriver, Enqueued, Error, ErrorKind, Extension, JobId, JobPage, JobRecord, JobState, Limits, ListJobs,
    NewJob, Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt, Result, Settlement,
    Timestamp, WakeStream, http::server::Directory,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};

/// An app that may not claim now waits this long for the answer, so that its loop does not spin.
const QUIET: Duration = Duration::from_secs(1);

/// The queues by the names of the policy.
pub(crate) struct Local {
    core: Arc<Core>,
}

impl Local {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Directory for Local {
    fn find(&self, name: &str) -> Result<(DynDriver, QueueName)> {
        let plan = self.core.plan();
        let lane = plan.lane(name).ok_or_else(|| no_queue(name))?.clone();
        let physical = lane.queue.physical.clone();
        let ruled = Ruled { core: self.core.clone(), lane };
        Ok((Arc::new(ruled), physical))
    }
}

/// The error for a queue that the policy doesn't name.
pub(crate) fn no_queue(name: &str) -> Error {
    let name: String = name.chars().take(63).collect();
    let message = format!("this worker has no queue {name:?}, or its broker was not reached yet");
    Error::new(ErrorKind::NotFound, message)
}

/// A queue's driver under the worker's policy.
struct Ruled {
    core: Arc<Core>,
    lane: Arc<Lane>,
}

impl fmt::Debug for Ruled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Ruled").field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl Ruled {
    fn driver(&self) -> &DynDriver {
        &self.lane.driver
    }

    /// Waits until there is a slot; tells how many there are in the end.
    async fn slots(&self, wait: Duration) -> u32 {
        let mut counts = self.core.in_flight.watch();
        let waiting = async { while self.core.room() == 0 && counts.changed().await.is_ok() {} };
        // Without a slot the claim brings nothing.
        let _ = timeout(wait, waiting).await;
        self.core.room()
    }

    /// Claims in a task of its own: what comes when the app has hung up goes back at once.
    async fn claim_detached(&self, claim: Claim) -> Result<Vec<Claimed>> {
        let (reply, answer) = oneshot::channel();
        let (core, lane) = (self.core.clone(), self.lane.clone());
        self.core.jobs.spawn(async move {
            let waits = !claim.wait.is_zero();
            let answer = tokio::select! {
                biased;
                answer = lane.driver.claim(&lane.queue.physical, claim) => answer,
                // As with pushed jobs: it must not catch what this pod is about to release.
                () = core.stop.reached(Stage::Draining), if waits => Err(pod_ends()),
            };
            if core.stop.stage() == Stage::Running {
                core.health.broker_answered(&lane.queue.broker, &answer);
            }
            let answer = answer.map(|jobs| allowed(&core, &lane, jobs));
            if let Err(Ok(jobs)) = reply.send(answer) {
                for job in jobs {
                    job::give_back(&core, &lane, job);
                }
            }
        });
        answer.await.unwrap_or_else(|_| Err(Error::unavailable("the claim broke off")))
    }

    /// Follows `job` from here on; gives what the app is told of it.
    fn hold(&self, job: Claimed) -> Claimed {
        // The app extends the lease itself; here it only says for how long the slot is taken at most.
        let term = Term::since(Instant::now(), self.lane.queue.lease);
        let ticket = self.core.in_flight.admit(&self.lane, &job, Phase::Pulled, term);
        events::tell(&self.core, &self.lane, &job, JobEvent::Claimed);
        events::tell(&self.core, &self.lane, &job, JobEvent::Started);
        let headers = headers::told(&job, &self.lane.queue, Timestamp::now());
        let kept = without_payload(job.clone());
        self.core.jobs.spawn(hold(self.core.clone(), self.lane.clone(), kept, ticket));
        Claimed { headers, ..job }
    }

    fn lost(&self, receipt: &Receipt) {
        if let Some((id, _)) = self.core.in_flight.find(receipt) {
            self.core.in_flight.abort(id, Abort::Lost);
        }
    }

    /// Hands a settle to the task that holds the job, so that the policy rules it like an answer to a push. One whose
    /// claim this process knows nothing of (it was restarted since) comes back.
    fn tell(&self, settlement: Settlement) -> std::result::Result<Told, Settlement> {
        let Settlement { receipt, settle } = settlement;
        if !self.core.in_flight.knows(&receipt) {
            return Err(Settlement { receipt, settle });
        }
        let (reply, settled) = oneshot::channel();
        let completion = Completion { said: Box::new(Said::Settle(settle)), reply, share: None };
        // A job that is being settled already is not there any more: its end of the channel is gone.
        let _ = self.core.in_flight.complete(&receipt, completion);
        Ok(Told { receipt, settled })
    }
}

/// A settle on its way.
struct Told {
    receipt: Receipt,
    settled: oneshot::Receiver<Settled>,
}

impl Told {
    async fn answer(self) -> Result<()> {
        self.settled
            .await
            .map_or_else(|_| Err(Error::stale(&self.receipt)), |settled| settled.answer(&self.receipt))
    }
}

/// What may still be handed out; the rest goes back.
fn allowed(core: &Arc<Core>, lane: &Arc<Lane>, jobs: Vec<Claimed>) -> Vec<Claimed> {
    if core.hold() == Some(Hold::Pull) && core.wants(lane) {
        return jobs;
    }
    for job in jobs {
        job::give_back(core, lane, job);
    }
    Vec::new()
}

/// Follows a job that the app pulled until it is settled one way or the other, or its time is up: an app that extends a
/// lease for ever still has no more time for an attempt than the policy gives.
async fn hold(core: Arc<Core>, lane: Arc<Lane>, job: Claimed, mut ticket: Ticket) {
    let deadline = Instant::now() + lane.queue.timeout_of(&job.overrides).min(Limits::MAX_DELAY);
    let end = loop {
        let lease_until = ticket.lease_until();
        tokio::select! {
            biased;
            Ok(completion) = &mut ticket.completed => break End::Completed(completion),
            Ok(why) = &mut ticket.aborted => break match interrupted(why) {
                Ok(answer) => End::Decided(conclude(&core, &lane, &job, answer).await),
                Err(end) => end,
            },
            () = sleep_until(deadline) => {
                break End::Decided(conclude(&core, &lane, &job, Answer::TimedOut).await);
            }
            () = sleep_until(lease_until) => {}
        }
        if ticket.lease_until() <= Instant::now() {
            break End::Gone(Lost::NotExtended);
        }
    };
    finish(&core, &lane, &job, end, &ticket).await;
}

fn pod_ends() -> Error {
    Error::unavailable("the pod ends: finish what runs, claim nothing more")
}

fn too_few() -> Error {
    Error::new(ErrorKind::Fatal, "the broker answered too few settles")
}

fn not_here() -> Error {
    Error::new(ErrorKind::Unsupported, "only the operator does this")
}

#[async_trait]
impl Driver for Ruled {
    fn capabilities(&self) -> &Capabilities {
        self.driver().capabilities()
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        // Completions are how workflows learn of their jobs; an app could tell them anything.
        if jobs.iter().any(|job| job.notify.is_some()) {
            return Err(Error::invalid("notify belongs to workflows"));
        }
        let foreign = jobs.iter().flat_map(|job| job.headers.keys()).find(|name| !headers::travels(name));
        if let Some(name) = foreign {
            return Err(Error::invalid(format!(
                "header {name:?} does not travel with a job: only traceparent, tracestate, baggage and job-meta-… do"
            )));
        }
        self.driver().enqueue(queue, jobs).await
    }

    async fn claim(&self, _: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        let began = Instant::now();
        match self.core.hold() {
            Some(Hold::Pull) => {}
            Some(Hold::Draining) => return Err(pod_ends()),
            Some(Hold::Victim | Hold::NoPolicy | Hold::AppStops) => {
                sleep(claim.wait.min(QUIET)).await;
                return Ok(Vec::new());
            }
            None | Some(Hold::AppNotReady | Hold::Paused) => {
                return Err(Error::new(ErrorKind::Unsupported, "this worker's jobs are pushed to the app"));
            }
        }
        let slots = self.slots(claim.wait).await;
        if slots == 0 || self.lane.queue.suspended {
            sleep(claim.wait.saturating_sub(began.elapsed()).min(QUIET)).await;
            return Ok(Vec::new());
        }
        let claim = Claim {
            max: claim.max.min(slots),
            wait: claim.wait.saturating_sub(began.elapsed()),
            lease: self.lane.queue.lease,
            worker: self.core.pod.clone(),
        };
        let mut jobs = self.claim_detached(claim).await?;
        // Claims of several threads of the app may have waited for the same slots.
        let slots = self.core.room() as usize;
        for surplus in jobs.split_off(slots.min(jobs.len())) {
            job::give_back(&self.core, &self.lane, surplus);
        }
        Ok(jobs.into_iter().map(|job| self.hold(job)).collect())
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        _: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        let (lease, sent) = (self.lane.queue.lease, Instant::now());
        let answers = self.driver().extend(queue, receipts.clone(), lease).await?;
        for (receipt, answer) in receipts.iter().zip(&answers) {
            match answer {
                Ok(_) => {
                    if let Some((id, _)) = self.core.in_flight.find(receipt) {
                        let Term { extend_at, until, .. } = Term::since(sent, lease);
                        self.core.in_flight.extended(id, extend_at, Some(until));
                    }
                }
                Err(error) if error.kind == ErrorKind::StaleReceipt => self.lost(receipt),
                Err(_) => {}
            }
        }
        Ok(answers)
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        let (mut told, mut strangers) = (Vec::with_capacity(settlements.len()), Vec::new());
        for settlement in settlements {
            match self.tell(settlement) {
                Ok(one) => told.push(Some(one)),
                Err(stranger) => {
                    strangers.push(stranger);
                    told.push(None);
                }
            }
        }
        let of_strangers = match strangers.len() {
            0 => Vec::new(),
            _ => self.driver().settle(queue, strangers).await?,
        };
        let mut of_strangers = of_strangers.into_iter();
        let mut answers = Vec::with_capacity(told.len());
        for one in told {
            answers.push(match one {
                Some(told) => told.answer().await,
                None => of_strangers.next().unwrap_or_else(|| Err(too_few())),
            });
        }
        Ok(answers)
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        self.driver().stats(queue).await
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        self.driver().results(queue, ids).await
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        self.driver().inspect(queue, id).await
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        self.driver().list(queue, list).await
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        self.driver().cancel(queue, ids).await
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        self.driver().redrive(queue, ids).await
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        self.driver().purge(queue, state, limit).await
    }

    async fn probe(&self) -> Result<Probe> {
        Err(not_here())
    }

    async fn declare(&self, _: &QueueName, _: Declaration) -> Result<Declared> {
        Err(not_here())
    }

    async fn delete_queue(&self, _: &QueueName, _: &Owner) -> Result<()> {
        Err(not_here())
    }

    async fn wake(&self) -> Result<WakeStream> {
        Err(not_here())
    }

    async fn completions(&self, _: &Address, _: ReadCompletions) -> Result<CompletionPage> {
        Err(not_here())
    }

    async fn acknowledge(&self, _: &Address, _: Vec<CompletionReceipt>) -> Result<()> {
        Err(not_here())
    }

    async fn unpin(&self, _: &QueueName, _: Vec<JobId>) -> Result<()> {
        Err(not_here())
    }

    async fn close(&self) {}
}
