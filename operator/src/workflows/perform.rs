//! Performs what the state owes: jobs into brokers, cancellations, expressions that decide.

use super::{
    expressions::{self, Variables},
    jobs::{self, Author},
    reconcile::{Run, machine_outcome, millis},
    variables::{Gatherer, Place, mentioned},
};
use crate::{
    connections::Connection,
    error::{Error, Result},
};
use k8s_openapi::jiff::Timestamp;
use longshore_drivers::{Enqueued, ErrorKind, JobId, NewJob, QueueName};
use longshore_workflow::{Effect, Event, Failure, Target};
use serde_json::Value;
use std::collections::BTreeMap;

/// Jobs in one enqueue. Their payloads together stay far below what a broker takes in one call.
const CHUNK: usize = 250;
/// Bytes of payloads in one enqueue.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// What performing gave.
#[derive(Debug, Default)]
pub(super) struct Performed {
    /// What the state has to hear.
    pub(super) events: Vec<Event>,
    /// Something couldn't be done now; it is still owed.
    pub(super) blocked: bool,
}

/// Whether `events` only record what was done, so that losing them repeats harmless work.
pub(super) fn only_bookkeeping(events: &[Event]) -> bool {
    events.iter().all(|event| matches!(event, Event::Dispatched { .. } | Event::CancelAsked { .. }))
}

/// Performs what the committed state owes now.
pub(super) async fn perform(run: &Run<'_>, now: Timestamp) -> Result<Performed> {
    let mut performed = Performed::default();
    let owed = run.state.effects_owed(&run.plan, millis(now));
    if owed.is_empty() {
        return Ok(performed);
    }
    check_leader(run)?;
    if !caught_up(run) {
        performed.blocked = true;
        return Ok(performed);
    }
    for effect in owed {
        match effect {
            Effect::Resolve { step } => performed.events.push(resolve(run, step).await?),
            Effect::Dispatch { targets } => dispatch(run, &targets, false, &mut performed).await?,
            Effect::Ask { targets } => dispatch(run, &targets, true, &mut performed).await?,
            Effect::CancelJobs { targets } => cancel(run, &targets, &mut performed).await,
        }
    }
    Ok(performed)
}

/// Asked right before each call that has an effect: only the machine's ids and the committed status fence what lies
/// between this and the call itself.
fn check_leader(run: &Run<'_>) -> Result<()> {
    if run.context.leadership.is_leader() { Ok(()) } else { Err(Error::LeadershipLost) }
}

/// Nothing is performed before every broker's completions were read to their end: what looks owed may be done.
fn caught_up(run: &Run<'_>) -> bool {
    let queues = jobs::queues(&run.object.spec);
    let brokers = queues.iter().filter_map(|name| run.context.lookup.queue(&run.namespace, name));
    brokers.into_iter().all(|queue| {
        let key = (run.namespace.clone(), queue.spec.broker_ref.name.clone());
        run.context.inbox.is_caught_up(&key)
    })
}

/// The connection and the physical name behind a Queue.
fn queue(run: &Run<'_>, name: &str) -> Option<(Connection, QueueName)> {
    let queue = run.context.lookup.queue(&run.namespace, name)?;
    let connection = run.context.connections.get(&run.namespace, &queue.spec.broker_ref.name)?;
    let physical =
        crate::queue::physical_name(&run.context.settings.installation, &run.namespace, name).ok()?;
    Some((connection, physical))
}

fn author<'a>(run: &'a Run<'_>) -> Author<'a> {
    Author {
        workflow: &run.object,
        namespace: &run.namespace,
        name: &run.name,
        uid: &run.uid,
        round: run.state.round(),
        address: &run.context.address,
    }
}

async fn variables(run: &Run<'_>, text: &str) -> Result<Variables> {
    let author = author(run);
    let locate = |target: &Target| {
        let name = jobs::queue_of(&run.object.spec, target);
        let (connection, physical) =
            queue(run, name).ok_or(Error::Incomplete("connection to the broker of its results"))?;
        let id = author.job_id(target).map_err(|_| Error::Incomplete("readable job id"))?;
        Ok(Place { connection, queue: physical, id })
    };
    let gatherer = Gatherer {
        spec: &run.object.spec,
        plan: &run.plan,
        state: &run.state,
        namespace: &run.namespace,
        name: &run.name,
        locate,
    };
    gatherer.gather(text).await
}

/// Decides how many members a `forEach` has.
async fn resolve(run: &Run<'_>, step: u16) -> Result<Event> {
    let failed = |message: String| Event::ResolveFailed {
        step,
        failure: Failure { reason: "Expression".to_owned(), message },
    };
    match elements(run, step).await? {
        Ok(items) => match u32::try_from(items.len()) {
            Ok(count) if count <= 100_000 => Ok(Event::MembersResolved { step, count }),
            _ => Ok(failed(format!("forEach gives {} elements, the limit is 100000", items.len()))),
        },
        Err(message) => Ok(failed(message)),
    }
}

/// The elements of a step's `forEach`.
async fn elements(run: &Run<'_>, step: u16) -> Result<std::result::Result<Vec<Value>, String>> {
    let batch = run.object.spec.steps.get(usize::from(step)).and_then(|step| step.batch.as_ref());
    let Some(text) = batch.and_then(|batch| batch.for_each.as_deref()) else {
        return Ok(Ok(Vec::new()));
    };
    let variables = variables(run, text).await?;
    Ok(match expressions::evaluate(text, &variables) {
        Ok(Value::Array(items)) => Ok(items),
        Ok(_) => Err(format!("forEach {text} gives no list")),
        Err(error) => Err(error.to_string()),
    })
}

/// Enqueues jobs, queue by queue, in chunks. When a job is only `asked` for and the broker takes it as new, it was lost.
async fn dispatch(run: &Run<'_>, targets: &[Target], asked: bool, performed: &mut Performed) -> Result<()> {
    let variables = variables(run, &mentioned(&run.object.spec, targets)).await?;
    let mut items: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for target in targets {
        if let Target::Member { step, .. } = target
            && !items.contains_key(step)
        {
            items.insert(*step, elements(run, *step).await?.unwrap_or_default());
        }
    }
    let author = author(run);
    let mut by_queue: BTreeMap<&str, Vec<(Target, NewJob)>> = BTreeMap::new();
    for target in targets {
        let own = match target {
            Target::Member { step, .. } => items.get(step).map(Vec::as_slice),
            Target::StepCallback { .. } | Target::Callback(_) => None,
        };
        match author.job(target, &variables, own) {
            Ok(job) => {
                by_queue.entry(jobs::queue_of(&run.object.spec, target)).or_default().push((*target, job))
            }
            Err(error) => performed.events.push(refused(*target, "Expression", error.to_string())),
        }
    }
    for (name, jobs) in by_queue {
        let Some((connection, physical)) = queue(run, name) else {
            performed.blocked = true;
            continue;
        };
        for chunk in chunks(jobs) {
            check_leader(run)?;
            let lost = enqueue(run, &connection, &physical, chunk, performed).await;
            run.context.metrics.jobs_lost(if asked { lost } else { 0 });
        }
    }
    Ok(())
}

fn refused(target: Target, reason: &str, message: String) -> Event {
    Event::DispatchRefused { target, failure: Failure { reason: reason.to_owned(), message } }
}

/// Cuts jobs into pieces that fit one call.
fn chunks(jobs: Vec<(Target, NewJob)>) -> Vec<Vec<(Target, NewJob)>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for (target, job) in jobs {
        let size = job.payload.len();
        if chunk.len() >= CHUNK || (bytes + size > CHUNK_BYTES && !chunk.is_empty()) {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += size;
        chunk.push((target, job));
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// Enqueues one chunk and tells how many jobs were new to the broker.
async fn enqueue(
    run: &Run<'_>,
    connection: &Connection,
    queue: &QueueName,
    chunk: Vec<(Target, NewJob)>,
    performed: &mut Performed,
) -> u64 {
    let (targets, jobs): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
    let answers = match connection.driver.enqueue(queue, jobs).await {
        Ok(answers) => answers,
        Err(error) => {
            tracing::debug!(%queue, %error, "jobs are still owed");
            performed.blocked = true;
            return 0;
        }
    };
    let created =
        answers.iter().filter(|answer| matches!(answer, Ok(Enqueued::Created { .. }))).count() as u64;
    let mut dispatched = Vec::new();
    for (target, answer) in targets.into_iter().zip(answers) {
        match answer {
            Ok(answer) => {
                dispatched.push(target);
                performed.events.extend(known_outcome(run, target, answer));
            }
            Err(error) if is_final(error.kind) => {
                performed.events.push(refused(target, &error.kind.to_string(), error.message));
            }
            Err(error) => {
                tracing::debug!(%queue, %error, "a job is still owed");
                performed.blocked = true;
            }
        }
    }
    run.context.metrics.effects_performed("dispatch", dispatched.len() as u64);
    if !dispatched.is_empty() {
        performed.events.insert(0, Event::Dispatched { targets: dispatched });
    }
    created
}

/// A job that ran and ended before answers with its outcome: that is its completion, whoever has the other copy.
fn known_outcome(run: &Run<'_>, target: Target, answer: Enqueued) -> Option<Event> {
    let Enqueued::Duplicate { outcome: Some(outcome), .. } = answer else { return None };
    let settled_at = millis(run.context.now());
    Some(Event::Settled { target, round: run.state.round(), outcome: machine_outcome(&outcome), settled_at })
}

/// Whether trying again can't help.
fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::Unsupported)
}

/// Asks for jobs to be cancelled. Best effort: what runs on settles and is heard of like any other.
async fn cancel(run: &Run<'_>, targets: &[Target], performed: &mut Performed) {
    let author = author(run);
    let mut by_queue: BTreeMap<&str, Vec<(Target, JobId)>> = BTreeMap::new();
    for target in targets {
        if let Ok(id) = author.job_id(target) {
            by_queue.entry(jobs::queue_of(&run.object.spec, target)).or_default().push((*target, id));
        }
    }
    for (name, jobs) in by_queue {
        let Some((connection, physical)) = queue(run, name) else {
            performed.blocked = true;
            continue;
        };
        for chunk in jobs.chunks(longshore_drivers::Limits::BATCH) {
            let (targets, ids): (Vec<_>, Vec<_>) = chunk.iter().cloned().unzip();
            match connection.driver.cancel(&physical, ids).await {
                Ok(_) => performed.events.push(Event::CancelAsked { targets }),
                Err(error) => {
                    tracing::debug!(queue = %physical, %error, "jobs are still to be cancelled");
                    performed.blocked = true;
                }
            }
        }
    }
}
