//! Performs what the state owes: jobs into brokers, cancellations, expressions that decide.

use super::{
    expressions,
    ingredients::{Ingredients, elements_of},
    jobs::{self, Author},
    reconcile::{Run, machine_outcome, millis},
    variables::Place,
};
use crate::{
    connections::{BrokerKey, Connection},
    error::{Error, Result},
};
use k8s_openapi::jiff::Timestamp;
use longshore_drivers::{Enqueued, ErrorKind, JobId, JobState, NewJob, QueueName};
use longshore_workflow::{Effect, Event, Failure, Target};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a broker may take to answer a call. Less than a reconciliation may take in all.
pub(super) const CALL: Duration = Duration::from_secs(5);
/// After this long what was done is recorded before more is done: whatever happens then, it is not begun anew.
const ENOUGH: Duration = Duration::from_secs(10);

/// What performing gave.
#[derive(Debug, Default)]
pub(super) struct Performed {
    /// What the state has to hear.
    pub(super) events: Vec<Event>,
    /// Why something couldn't be done now; it is still owed.
    pub(super) blocked: Option<String>,
    /// There is more to do, right after this was recorded.
    pub(super) unfinished: bool,
}

impl Performed {
    fn block(&mut self, why: impl Into<String>) {
        self.blocked.get_or_insert_with(|| why.into());
    }
}

/// A broker's queue and the way there.
pub(super) struct Reach {
    pub(super) broker: BrokerKey,
    pub(super) connection: Connection,
    pub(super) queue: QueueName,
}

/// Whether `events` only record what was done, so that losing them repeats harmless work. From a cancellation that was
/// asked for an end may follow.
pub(super) fn only_bookkeeping(events: &[Event]) -> bool {
    events.iter().all(|event| matches!(event, Event::Dispatched { .. }))
}

/// Performs what the committed state owes now.
pub(super) async fn perform(run: &Run<'_>, now: Timestamp) -> Result<Performed> {
    let mut performed = Performed::default();
    let owed = run.state.effects_owed(&run.plan, millis(now));
    if owed.is_empty() {
        return Ok(performed);
    }
    check_leader(run)?;
    // Nothing is performed before every broker's completions were read to their end: what looks owed may be done.
    if let Some(behind) = run.behind() {
        performed.block(format!("the completions of Broker {behind:?} were not read to their end yet"));
        return Ok(performed);
    }
    let since = Instant::now();
    for effect in owed {
        if since.elapsed() > ENOUGH {
            performed.unfinished = true;
            break;
        }
        match effect {
            Effect::Resolve { step } => match resolve(run, step).await {
                Ok(event) => performed.events.push(event),
                Err(error) => performed.block(later(error)?),
            },
            Effect::Dispatch { targets } => dispatch(run, &targets, false, &mut performed).await?,
            Effect::Ask { targets } => dispatch(run, &targets, true, &mut performed).await?,
            Effect::CancelJobs { targets } => cancel(run, &targets, &mut performed).await?,
        }
    }
    Ok(performed)
}

/// Asked right before each call that has an effect: only the machine's ids and the committed status fence what lies
/// between this and the call itself.
pub(super) fn check_leader(run: &Run<'_>) -> Result<()> {
    if run.context.leadership.is_leader() { Ok(()) } else { Err(Error::LeadershipLost) }
}

/// The way to a Queue, or why there is none now.
pub(super) fn reach(run: &Run<'_>, name: &str) -> std::result::Result<Reach, String> {
    let queue = run.context.lookup.queue(&run.namespace, name);
    let queue = queue.ok_or_else(|| format!("there is no Queue {name:?} in this namespace"))?;
    let broker = (run.namespace.clone(), queue.spec.broker_ref.name.clone());
    let connection = run.context.connections.get(&broker.0, &broker.1);
    let connection = connection.ok_or_else(|| format!("Broker {:?} is not connected", broker.1))?;
    if run.context.inbox.is_silent(&broker) {
        return Err(format!("Broker {:?} does not answer", broker.1));
    }
    let physical = crate::queue::physical_name(&run.context.settings.installation, &run.namespace, name);
    let queue = physical.map_err(|error| error.chain())?;
    Ok(Reach { broker, connection, queue })
}

/// Bounds a call, and has a broker that didn't answer left alone for a moment: it would hold up everything else.
pub(super) async fn call<T>(
    run: &Run<'_>,
    broker: &BrokerKey,
    call: impl Future<Output = longshore_drivers::Result<T>>,
) -> longshore_drivers::Result<T> {
    let outcome = tokio::time::timeout(CALL, call).await.unwrap_or_else(|_elapsed| {
        let message = format!("the broker did not answer within {CALL:?}");
        Err(longshore_drivers::Error::new(ErrorKind::Ambiguous, message))
    });
    if let Err(error) = &outcome
        && matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Ambiguous)
    {
        run.context.inbox.silent(broker);
    }
    outcome
}

/// Who makes the jobs of `run`.
pub(super) fn author(run: &Run<'_>) -> Author {
    Author {
        workflow: run.object.clone(),
        namespace: run.namespace.clone(),
        name: run.name.clone(),
        uid: run.uid.clone(),
        round: run.state.round(),
        installation: run.context.settings.installation.clone(),
    }
}

/// Where the result of the job at `target` is.
pub(super) fn locate(run: &Run<'_>, target: &Target) -> Result<Place> {
    let name = jobs::queue_of(&run.object.spec, target);
    let Reach { broker, connection, queue } = reach(run, name).map_err(Error::NotNow)?;
    let id = author(run).job_id(target).map_err(|_| Error::Incomplete("readable job id"))?;
    Ok(Place { broker, connection, queue, id })
}

/// What was done so far must not be forgotten because a broker doesn't answer.
fn later(error: Error) -> Result<String> {
    match error {
        Error::NotNow(why) => Ok(why),
        Error::Broker { .. } => Ok(error.chain()),
        other => Err(other),
    }
}

/// Decides how many members a `forEach` has.
async fn resolve(run: &Run<'_>, step: u16) -> Result<Event> {
    let failed = |reason: &str, message: String| Event::ResolveFailed {
        step,
        failure: Failure { reason: reason.to_owned(), message },
    };
    Ok(match elements_of(run, step).await? {
        None => Event::MembersResolved { step, count: 0 },
        Some(Ok(items)) => match u32::try_from(items.len()) {
            Ok(count) if count <= longshore_workflow::MAX_MEMBERS => Event::MembersResolved { step, count },
            _ => failed(
                "TooManyMembers",
                format!(
                    "forEach gives {} elements, the limit is {}",
                    items.len(),
                    longshore_workflow::MAX_MEMBERS
                ),
            ),
        },
        Some(Err(refusal)) => failed(refusal.reason, refusal.message),
    })
}

/// Enqueues jobs, queue by queue, in chunks. When a job is only `asked` for and the broker takes it as new, it was lost.
async fn dispatch(run: &Run<'_>, targets: &[Target], asked: bool, performed: &mut Performed) -> Result<()> {
    let mut by_queue: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
    for target in targets {
        by_queue.entry(jobs::queue_of(&run.object.spec, target)).or_default().push(*target);
    }
    for (name, targets) in by_queue {
        match reach(run, name) {
            Ok(reach) => enqueue_all(run, &reach, &targets, asked, performed).await?,
            Err(why) => performed.block(why),
        }
    }
    Ok(())
}

async fn enqueue_all(
    run: &Run<'_>,
    reach: &Reach,
    targets: &[Target],
    asked: bool,
    performed: &mut Performed,
) -> Result<()> {
    let ingredients = match Ingredients::gather(run, targets).await {
        Ok(ingredients) => Arc::new(ingredients),
        Err(error) => {
            performed.block(later(error)?);
            return Ok(());
        }
    };
    let (mut rest, since) = (targets, Instant::now());
    while !rest.is_empty() && performed.blocked.is_none() {
        if since.elapsed() > ENOUGH {
            performed.unfinished = true;
            break;
        }
        let (ingredients, places) = (ingredients.clone(), rest.to_vec());
        let made = expressions::on_large_stack(move || ingredients.make(&places)).await;
        let made = made.map_err(Error::NoThread)?;
        rest = rest.get(made.len().max(1)..).unwrap_or_default();
        let mut jobs = Vec::with_capacity(made.len());
        for (target, job) in made {
            match job {
                Ok(job) => jobs.push((target, job)),
                Err(refusal) => performed.events.push(refused(target, refusal.reason, refusal.message)),
            }
        }
        check_leader(run)?;
        enqueue(run, reach, jobs, asked, performed).await;
    }
    Ok(())
}

fn refused(target: Target, reason: &str, message: String) -> Event {
    Event::DispatchRefused { target, failure: Failure { reason: reason.to_owned(), message } }
}

/// Enqueues one chunk.
async fn enqueue(
    run: &Run<'_>,
    reach: &Reach,
    chunk: Vec<(Target, NewJob)>,
    asked: bool,
    performed: &mut Performed,
) {
    if chunk.is_empty() {
        return;
    }
    let (targets, jobs): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
    let answers = match call(run, &reach.broker, reach.connection.driver.enqueue(&reach.queue, jobs)).await {
        Ok(answers) => answers,
        Err(error) => return performed.block(format!("Broker {:?}: {error}", reach.broker.1)),
    };
    let (mut dispatched, mut known) = (Vec::new(), Vec::new());
    for (target, answer) in targets.into_iter().zip(answers) {
        match answer {
            Ok(Enqueued::Created { .. }) => {
                if asked {
                    known.push(Event::Lost { target });
                }
                dispatched.push(target);
            }
            Ok(Enqueued::Duplicate { outcome, .. }) => {
                dispatched.push(target);
                known.extend(outcome.map(|outcome| ended(run, target, &outcome)));
            }
            Err(error) if error.kind == ErrorKind::Conflict => {
                conflict(run, reach, target, &mut dispatched, &mut known, performed).await;
            }
            Err(error) if is_final(error.kind) => {
                performed.events.push(refused(target, &error.kind.to_string(), error.message));
            }
            Err(error) => performed.block(format!("Broker {:?}: {error}", reach.broker.1)),
        }
    }
    let lost = known.iter().filter(|event| matches!(event, Event::Lost { .. })).count();
    run.context.metrics.jobs_lost(lost as u64);
    run.context.metrics.effects_performed("dispatch", dispatched.len() as u64);
    // That it was lost comes before that it is there again, that it ended after that.
    let (losses, ends): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|event| matches!(event, Event::Lost { .. }));
    performed.events.extend(losses);
    if !dispatched.is_empty() {
        performed.events.push(Event::Dispatched { targets: dispatched });
    }
    performed.events.extend(ends);
}

/// A job of ours is there with another payload: it was made of values that have changed since. It is the one that counts.
async fn conflict(
    run: &Run<'_>,
    reach: &Reach,
    target: Target,
    dispatched: &mut Vec<Target>,
    known: &mut Vec<Event>,
    performed: &mut Performed,
) {
    let Ok(id) = author(run).job_id(&target) else { return };
    match call(run, &reach.broker, reach.connection.driver.inspect(&reach.queue, &id)).await {
        Ok(Some(record)) => {
            dispatched.push(target);
            known.extend(record.outcome.map(|outcome| ended(run, target, &outcome)));
        }
        Ok(None) => performed.block(format!("job {id} is there and is not")),
        Err(error) => performed.block(format!("Broker {:?}: {error}", reach.broker.1)),
    }
}

/// A job that ran and ended before answers with its outcome: that is its completion, whoever has the other copy.
fn ended(run: &Run<'_>, target: Target, outcome: &longshore_drivers::Outcome) -> Event {
    let settled_at = millis(run.context.now());
    Event::Settled { target, round: run.state.round(), outcome: machine_outcome(outcome), settled_at }
}

/// Whether trying again can't help.
fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Unsupported)
}

/// Asks for jobs to be cancelled. Best effort: what runs on settles and is heard of like any other.
async fn cancel(run: &Run<'_>, targets: &[Target], performed: &mut Performed) -> Result<()> {
    let author = author(run);
    let mut by_queue: BTreeMap<&str, Vec<(Target, JobId)>> = BTreeMap::new();
    for target in targets {
        if let Ok(id) = author.job_id(target) {
            by_queue.entry(jobs::queue_of(&run.object.spec, target)).or_default().push((*target, id));
        }
    }
    for (name, jobs) in by_queue {
        let reach = match reach(run, name) {
            Ok(reach) => reach,
            Err(why) => {
                performed.block(why);
                continue;
            }
        };
        for chunk in jobs.chunks(longshore_drivers::Limits::BATCH) {
            check_leader(run)?;
            let (targets, ids): (Vec<_>, Vec<_>) = chunk.iter().cloned().unzip();
            match call(run, &reach.broker, reach.connection.driver.cancel(&reach.queue, ids)).await {
                Ok(answers) => {
                    // Whoever dispatched it may not have lived to record it: what runs is waited for.
                    let runs = |(target, answer): (&Target, _)| {
                        matches!(answer, Ok(JobState::Active)).then_some(*target)
                    };
                    let running: Vec<_> = targets.iter().zip(answers).filter_map(runs).collect();
                    if !running.is_empty() {
                        performed.events.push(Event::Dispatched { targets: running });
                    }
                    performed.events.push(Event::CancelAsked { targets });
                }
                Err(error) => performed.block(format!("Broker {:?}: {error}", reach.broker.1)),
            }
        }
    }
    Ok(())
}
