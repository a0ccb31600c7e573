//! One job from its claim to its settle.

use crate::{
    core::Core,
    drain::Stage,
    events::{self, JobEvent, Lost, Released, Start, Wish},
    headers,
    health::lock,
    in_flight::{Abort, Completion, Phase, Said, Settled, Ticket},
    lease::{self, Term},
    metrics,
    outcome::{self, Answer, Moment, Signal, Verdict, decide},
    plan::{Lane, Target},
    push::Pushed,
};
use futures::FutureExt;
use longshore_drivers::{Claimed, Limits, Payload, Settle, Timestamp};
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};

/// An app that completes a job before it answered the request gets this long to answer.
const LATE_ANSWER: Duration = Duration::from_secs(5);

/// How a run ended.
pub(crate) enum End {
    /// The sidecar decided.
    Decided(Ending),
    /// The app said it through the local API.
    Completed(Completion),
    /// There is nothing to settle any more: somebody else may have the job.
    Gone(Lost),
}

/// The settle that ends a claim.
pub(crate) struct Ending {
    settle: Settle,
    /// Why, if it is a release; none if it is one to cancel the job.
    released: Option<Released>,
}

impl Ending {
    fn release(released: Released) -> Self {
        Self { settle: outcome::release(Duration::ZERO), released: Some(released) }
    }
}

/// Starts `job` in a task of its own.
pub(crate) fn start(
    core: &Arc<Core>,
    lane: &Arc<Lane>,
    job: Claimed,
    target: &Target,
    term: Term,
    arrived: Instant,
) {
    let ticket = core.in_flight.admit(lane, &job, Phase::Running, term);
    events::tell(core, lane, &job, JobEvent::Claimed);
    let queue = metrics::Queue { queue: lane.queue.name.clone() };
    core.metrics.start.get_or_create(&queue).observe(waited(&job, lane.queue.lease, arrived).as_secs_f64());
    let running = run(core.clone(), lane.clone(), job, target.clone(), ticket, term.doubtful);
    core.jobs.spawn(running);
}

/// How long `job` was ready before it starts: on the broker by its clock, and here since it arrived by ours.
fn waited(job: &Claimed, lease: Duration, arrived: Instant) -> Duration {
    let claimed =
        i64::try_from(lease.as_millis()).map_or(i64::MAX, |lease| job.lease_until.as_millis() - lease);
    Timestamp::from_millis(claimed).since(job.ready_at) + arrived.elapsed()
}

/// Gives `job` back at once: it came when nothing may be started.
pub(crate) fn give_back(core: &Arc<Core>, lane: &Arc<Lane>, job: Claimed) {
    let term = Term::since(Instant::now(), lane.queue.lease);
    let ticket = core.in_flight.admit(lane, &job, Phase::Settling, term);
    let (core, lane) = (core.clone(), lane.clone());
    let tasks = core.jobs.clone();
    let job = without_payload(job);
    lock(&core.bounces).note(&job.id);
    events::tell(&core, &lane, &job, JobEvent::Claimed);
    let stays = core.stop.stage() == Stage::Running;
    let ending = Ending::release(if stays { Released::NotStarted } else { Released::Draining });
    tasks.spawn(async move {
        settle(&core, &lane, &job, ending, &ticket).await;
    });
}

/// The job as it is kept once its payload is on its way: whoever waits for an answer or a settle needs no payload.
pub(crate) fn without_payload(job: Claimed) -> Claimed {
    Claimed { payload: Payload::default(), ..job }
}

async fn run(
    core: Arc<Core>,
    lane: Arc<Lane>,
    mut job: Claimed,
    target: Target,
    mut ticket: Ticket,
    doubtful: bool,
) {
    let began = Instant::now();
    let working = async {
        match doubt(&core, &lane, &job, &mut ticket, doubtful).await {
            Some(end) => end,
            None => work(&core, &lane, &mut job, &target, &mut ticket).await,
        }
    };
    // A panic costs this job an attempt and nobody else anything.
    let end = match AssertUnwindSafe(working).catch_unwind().await {
        Ok(end) => end,
        Err(_) => End::Decided(conclude(&core, &lane, &job, Answer::Panicked).await),
    };
    let queue = metrics::Queue { queue: lane.queue.name.clone() };
    core.metrics.duration.get_or_create(&queue).observe(began.elapsed().as_secs_f64());
    finish(&core, &lane, &job, end, &ticket).await;
}

/// Settles what has to be settled and tells who waits for it.
pub(crate) async fn finish(core: &Core, lane: &Arc<Lane>, job: &Claimed, end: End, ticket: &Ticket) {
    // Results count for as long as they are kept, and settles can take long while a broker is away.
    let (action, reply, _share) = match end {
        End::Decided(action) => (action, None, None),
        End::Completed(Completion { said, reply, share }) => {
            (heard(core, lane, job, *said).await, Some(reply), share)
        }
        End::Gone(reason) => {
            let why = "lost";
            tracing::info!(queue = lane.queue.name, job = %job.id, why, "the run ended without a settle");
            events::tell(core, lane, job, JobEvent::LeaseLost { reason });
            return core.metrics.ended(&lane.queue.name, why);
        }
    };
    let settled = settle(core, lane, job, action, ticket).await;
    if let Some(reply) = reply {
        let _ = reply.send(settled);
    }
}

/// What is done after the app said something through the local API.
async fn heard(core: &Core, lane: &Arc<Lane>, job: &Claimed, said: Said) -> Ending {
    match said {
        Said::Answer(answer) => conclude(core, lane, job, answer).await,
        Said::Settle(wish) => {
            let limit = lane.driver.capabilities().limits.max_result;
            let settle = outcome::ruled(wish, job, &lane.queue, limit, core.moment(job));
            tell(lane, job, &settle);
            Ending { settle, released: Some(Released::AppAsked) }
        }
    }
}

/// The end of a job whose lease was over before it came here, or before its turn, because this process stood still:
/// somebody else may have done it meanwhile, so the broker has to say that it is still ours.
async fn doubt(core: &Core, lane: &Lane, job: &Claimed, ticket: &mut Ticket, doubtful: bool) -> Option<End> {
    if !doubtful && Instant::now() < ticket.lease_until() {
        return None;
    }
    tokio::select! {
        biased;
        Ok(why) = &mut ticket.aborted => match interrupted(why) {
            Ok(answer) => Some(End::Decided(conclude(core, lane, job, answer).await)),
            Err(_) => Some(End::Gone(Lost::BeforeStart)),
        },
        ours = lease::proven(lane, &job.receipt) => (!ours).then_some(End::Gone(Lost::BeforeStart)),
    }
}

/// Pushes the job and waits until something ends it.
async fn work(
    core: &Arc<Core>,
    lane: &Arc<Lane>,
    job: &mut Claimed,
    target: &Target,
    ticket: &mut Ticket,
) -> End {
    let deadline = Instant::now() + lane.queue.timeout_of(&job.overrides).min(Limits::MAX_DELAY);
    let request = headers::request(&target.uri, &lane.namespace, &lane.queue, job, Timestamp::now());
    // It travels with the request and ends with it.
    job.payload = Payload::default();
    let max_result = lane.driver.capabilities().limits.max_result;
    let (pusher, target, start) = (core.pusher.clone(), target.clone(), Start::of(core, lane, job));
    let mut pushing =
        Box::pin(async move { pusher.push(&target, request, max_result, deadline, start).await });
    let answer = tokio::select! {
        biased;
        Pushed { answer, share } = &mut pushing => {
            ticket.keep(share);
            answer
        }
        Ok(completion) = &mut ticket.completed => {
            // Hanging up on an app that is about to answer would look like a fault of its own.
            core.jobs.spawn(timeout(LATE_ANSWER, pushing));
            return End::Completed(completion);
        }
        Ok(why) = &mut ticket.aborted => match interrupted(why) {
            Ok(answer) => answer,
            Err(end) => return end,
        },
    };
    if let Some(ending) = judge(core, lane, job, answer).await {
        return End::Decided(ending);
    }
    ticket.detached();
    events::tell(core, lane, job, JobEvent::Detached);
    let answer = tokio::select! {
        biased;
        Ok(completion) = &mut ticket.completed => return End::Completed(completion),
        Ok(why) = &mut ticket.aborted => match interrupted(why) {
            Ok(answer) => answer,
            Err(end) => return end,
        },
        () = sleep_until(deadline) => Answer::TimedOut,
    };
    End::Decided(conclude(core, lane, job, answer).await)
}

/// What `answer` means when the app has nothing more to say.
pub(crate) async fn conclude(core: &Core, lane: &Lane, job: &Claimed, answer: Answer) -> Ending {
    let ending = judge(core, lane, job, answer).await;
    ending.unwrap_or_else(|| Ending::release(Released::AppAsked))
}

/// The answer that stands for an interruption, or the end when there is nothing to settle.
pub(crate) fn interrupted(why: Abort) -> Result<Answer, End> {
    match why {
        Abort::Lost => Err(End::Gone(Lost::Running)),
        Abort::Cancelled => Ok(Answer::Cancelled),
        Abort::Stopping => Ok(Answer::Stopped),
    }
}

/// What `answer` means; nothing when the app goes on with the job.
async fn judge(core: &Core, lane: &Lane, job: &Claimed, answer: Answer) -> Option<Ending> {
    let app_stops = matches!(answer, Answer::Reset(_)) && core.stop.app_stops().await;
    let moment = Moment { app_stops, ..core.moment(job) };
    let (was_answered, released) = (matches!(answer, Answer::Response(_)), Released::after(&answer));
    let decision = decide(answer, job, &lane.queue, moment);
    if !was_answered && matches!(decision.verdict, Verdict::Settle(Settle::Release { .. })) {
        lock(&core.bounces).note(&job.id);
    }
    if decision.signal != Signal::Silent {
        core.learn(decision.signal, &job.job_type);
    }
    match decision.verdict {
        Verdict::Settle(settle) => {
            tell(lane, job, &settle);
            Some(Ending { settle, released: released.map(|why| why.learned(decision.signal)) })
        }
        Verdict::Detach => None,
    }
}

/// Writes what became of a job to the log. Reasons are words of this code; what apps say stays in the broker.
fn tell(lane: &Lane, job: &Claimed, settle: &Settle) {
    let (queue, id, kind, attempt) = (&lane.queue.name, &job.id, &job.job_type, job.attempt);
    match settle {
        Settle::Succeed { .. } => tracing::debug!(queue, job = %id, kind, attempt, "succeeded"),
        Settle::Retry { delay, failure } => {
            tracing::info!(queue, job = %id, kind, attempt, reason = failure.reason, ?delay, "failed; again later");
        }
        Settle::Release { delay } => tracing::info!(queue, job = %id, kind, attempt, ?delay, "released"),
        Settle::Bury { failure, .. } => {
            tracing::warn!(queue, job = %id, kind, attempt, reason = failure.reason, "dead");
        }
    }
}

/// Ends the claim and counts how.
pub(crate) async fn settle(
    core: &Core,
    lane: &Arc<Lane>,
    job: &Claimed,
    ending: Ending,
    ticket: &Ticket,
) -> Settled {
    let Ending { settle, released } = ending;
    let wish = Wish::of(&settle, released);
    let (word, bytes) = match &settle {
        Settle::Succeed { result } => {
            ("succeeded", result.as_ref().map_or(0, longshore_drivers::Payload::len))
        }
        Settle::Retry { .. } => ("retried", 0),
        Settle::Release { .. } => ("released", 0),
        Settle::Bury { .. } => ("dead", 0),
    };
    let (lease_until, began) = (ticket.lease_until(), Instant::now());
    ticket.settling(bytes);
    let receipt = job.receipt.clone();
    let settled = core.settler.settle(&core.current(lane), receipt, settle, lease_until).await;
    let queue = metrics::Queue { queue: lane.queue.name.clone() };
    core.metrics.settle.get_or_create(&queue).observe(began.elapsed().as_secs_f64());
    core.metrics.ended(&lane.queue.name, settled.word(word));
    if let Some(wish) = wish {
        events::tell(core, lane, job, wish.event(settled, word));
    }
    settled
}
