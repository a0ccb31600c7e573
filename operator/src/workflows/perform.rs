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
use longshore_drivers::{Enqueued, ErrorKind, NewJob, QueueName};
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
    events
        .iter()
        .all(|event| matches!(event, Event::Dispatched { .. }))
}

/// Performs what the committed state owes now.
pub(super) async fn perform(run: &Run<'_>, now: Timestamp) -> Result<Performed> {
    let mut performed = Performed::default();
    let owed = run.state.effects_owed(&run.plan, millis(now));
    if owed.is_empty() {
        return Ok(performed);
    }
    if !run.context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    if !caught_up(run) {
        performed.blocked = true;
        return Ok(performed);
    }
    for effect in owed {
        match effect {
            Effect::Resolve { step } => performed.events.push(resolve(run, step).await?),
            Effect::Dispatch { targets } | Effect::Ask { targets } => {
                dispatch(run, &targets, &mut performed).await?
            }
            Effect::CancelJobs { targets } => cancel(run, &targets).await,
        }
    }
    Ok(performed)
}

/// Nothing is performed before every broker's completions were read to their end: what looks owed may be done.
fn caught_up(run: &Run<'_>) -> bool {
    let queues = jobs::queues(&run.object.spec);
    let brokers = queues
        .iter()
        .filter_map(|name| run.context.lookup.queue(&run.namespace, name));
    brokers.into_iter().all(|queue| {
        let key = (run.namespace.clone(), queue.spec.broker_ref.name.clone());
        run.context.inbox.is_caught_up(&key)
    })
}

/// The connection and the physical name behind a Queue.
fn queue(run: &Run<'_>, name: &str) -> Option<(Connection, QueueName)> {
    let queue = run.context.lookup.queue(&run.namespace, name)?;
    let connection = run
        .context
        .connections
        .get(&run.namespace, &queue.spec.broker_ref.name)?;
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
        let id = author
            .job_id(target)
            .map_err(|_| Error::Incomplete("readable job id"))?;
        Ok(Place {
            connection,
            queue: physical,
            id,
        })
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
        failure: Failure {
            reason: "Expression".to_owned(),
            message,
        },
    };
    match elements(run, step).await? {
        Ok(items) => match u32::try_from(items.len()) {
            Ok(count) if count <= 100_000 => Ok(Event::MembersResolved { step, count }),
            _ => Ok(failed(format!(
                "forEach gives {} elements, the limit is 100000",
                items.len()
            ))),
        },
        Err(message) => Ok(failed(message)),
    }
}

/// The elements of a step's `forEach`.
async fn elements(run: &Run<'_>, step: u16) -> Result<std::result::Result<Vec<Value>, String>> {
    let batch = run
        .object
        .spec
        .steps
        .get(usize::from(step))
        .and_then(|step| step.batch.as_ref());
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

/// Enqueues jobs, queue by queue, in chunks.
async fn dispatch(run: &Run<'_>, targets: &[Target], performed: &mut Performed) -> Result<()> {
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
            Ok(job) => by_queue
                .entry(jobs::queue_of(&run.object.spec, target))
                .or_default()
                .push((*target, job)),
            Err(error) => performed
                .events
                .push(refused(*target, "Expression", error.to_string())),
        }
    }
    for (name, jobs) in by_queue {
        let Some((connection, physical)) = queue(run, name) else {
            performed.blocked = true;
            continue;
        };
        for chunk in chunks(jobs) {
            enqueue(run, &connection, &physical, chunk, performed).await;
        }
    }
    Ok(())
}

fn refused(target: Target, reason: &str, message: String) -> Event {
    Event::DispatchRefused {
        target,
        failure: Failure {
            reason: reason.to_owned(),
            message,
        },
    }
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

async fn enqueue(
    run: &Run<'_>,
    connection: &Connection,
    queue: &QueueName,
    chunk: Vec<(Target, NewJob)>,
    performed: &mut Performed,
) {
    let (targets, jobs): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
    let answers = match connection.driver.enqueue(queue, jobs).await {
        Ok(answers) => answers,
        Err(error) => {
            tracing::debug!(%queue, %error, "jobs are still owed");
            performed.blocked = true;
            return;
        }
    };
    let mut dispatched = Vec::new();
    for (target, answer) in targets.into_iter().zip(answers) {
        match answer {
            Ok(Enqueued::Created { .. } | Enqueued::Duplicate { outcome: None, .. }) => {
                dispatched.push(target)
            }
            Ok(Enqueued::Duplicate {
                outcome: Some(outcome),
                ..
            }) => {
                // It ran and ended before: this is its completion, whoever has the other copy.
                dispatched.push(target);
                let settled_at = millis(run.context.now());
                let outcome = machine_outcome(&outcome);
                performed.events.push(Event::Settled {
                    target,
                    round: run.state.round(),
                    outcome,
                    settled_at,
                });
            }
            Err(error)
                if matches!(
                    error.kind,
                    ErrorKind::TooLarge | ErrorKind::Invalid | ErrorKind::Conflict | ErrorKind::Unsupported
                ) =>
            {
                performed
                    .events
                    .push(refused(target, &error.kind.to_string(), error.message));
            }
            Err(error) => {
                tracing::debug!(%queue, %error, "a job is still owed");
                performed.blocked = true;
            }
        }
    }
    run.context
        .metrics
        .effects_performed("dispatch", dispatched.len() as u64);
    if !dispatched.is_empty() {
        performed
            .events
            .insert(0, Event::Dispatched { targets: dispatched });
    }
}

/// Asks for jobs to be cancelled. Best effort: what runs on settles and is heard of like any other.
async fn cancel(run: &Run<'_>, targets: &[Target]) {
    let author = author(run);
    let mut by_queue: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for target in targets {
        if let Ok(id) = author.job_id(target) {
            by_queue
                .entry(jobs::queue_of(&run.object.spec, target))
                .or_default()
                .push(id);
        }
    }
    for (name, ids) in by_queue {
        let Some((connection, physical)) = queue(run, name) else {
            continue;
        };
        for chunk in ids.chunks(longshore_drivers::Limits::BATCH) {
            if let Err(error) = connection.driver.cancel(&physical, chunk.to_vec()).await {
                tracing::debug!(queue = %physical, %error, "jobs were not cancelled");
            }
        }
    }
}
