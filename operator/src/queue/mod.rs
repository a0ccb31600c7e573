//! Queues: declared on their broker, counted, deleted with or without their jobs.

mod desk;
mod patience;
mod policy;
mod report;

use crate::{
    apply::replace_status,
    connections::{BrokerKey, Connection, within},
    context::{Context, Scope},
    error::{Error, Result},
    reporting::{self, Writing, event, guarded},
};
use desk::Desk;
use futures::StreamExt;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{Action, Config},
        reflector::{self, ObjectRef},
        watcher,
    },
};
use longshore_crds::{Broker, DeletionPolicy, Queue, condition, finalizer, is_true};
use longshore_drivers::{Declaration, ErrorKind, Owner, QueueName, QueueStats};
use report::Observation;
use serde_json::json;
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

pub(crate) use policy::{physical_name, settings};

/// How many Queues are looked at at once. A broker that says nothing holds up so many for the time of one call, once.
const AT_ONCE: u16 = 64;
/// How long a broker may take for one call; several of them fit into the deadline of a reconciliation.
const CALL: Duration = Duration::from_secs(5);
/// Depths in the status are this old at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How soon a queue looks again for a broker that isn't connected yet.
const LOOK_SOON: Duration = Duration::from_millis(500);
/// How soon one looks again whose broker refuses or says nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How soon a failed deletion is tried again.
const DELETE_AGAIN: Duration = Duration::from_secs(1);
/// Deleting a queue's data is tried for this long; then the object goes and the data stays.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the controller of Queues until it is stopped.
pub(crate) async fn run(scope: Scope, context: Arc<Context>, stop: CancellationToken) {
    let client = &context.client;
    let (queues, writer) = reflector::store();
    // Its own status is no news to a controller.
    let changed = watcher(scope.api::<Queue>(client), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(|queue: &Queue| Some(news_of(queue)), PredicateConfig::default());
    let brokers = scope.api::<Broker>(client);
    let desk = Arc::new(Desk::new(context.clone(), queues.clone()));
    let seen = queues.clone();
    let on_broker = move |broker: Broker| {
        let (namespace, name) = (broker.namespace(), broker.name_any());
        let hit =
            move |queue: &Arc<Queue>| queue.namespace() == namespace && queue.spec.broker_ref.name == name;
        seen.state().into_iter().filter(hit).map(|queue| ObjectRef::from_obj(&*queue)).collect::<Vec<_>>()
    };
    Controller::for_stream(changed, queues)
        .with_config(Config::default().concurrency(AT_ONCE))
        .watches(brokers, watcher::Config::default(), on_broker)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            reconcile,
            |object, error, desk: Arc<Desk>| reporting::failed(object, error, desk.context.clone()),
            desk,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Changes with everything of a Queue but its status.
fn news_of(queue: &Queue) -> u64 {
    let metadata = &queue.metadata;
    let mut hasher = DefaultHasher::new();
    let leaving = metadata.deletion_timestamp.is_some();
    (&metadata.uid, metadata.generation, &metadata.finalizers, leaving).hash(&mut hasher);
    hasher.finish()
}

async fn reconcile(queue: Arc<Queue>, desk: Arc<Desk>) -> Result<Action> {
    guarded(&desk.context, "Queue", reconcile_inner(&queue, &desk)).await
}

async fn reconcile_inner(queue: &Queue, desk: &Desk) -> Result<Action> {
    let context = &desk.context;
    if !context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let namespace = queue.namespace().ok_or(Error::Incomplete("namespace"))?;
    if queue.metadata.deletion_timestamp.is_some() {
        return delete(queue, desk, &namespace).await;
    }
    keep_finalizer(queue, context, &namespace).await?;
    let observation = observe(queue, desk, &namespace).await?;
    let owed = report_on(queue, desk, &observation).await?;
    context.backoff.succeeded(&reporting::key(queue));
    let wait = match observation {
        Observation::Seen { .. } => LOOK_EVERY,
        Observation::NoBroker | Observation::NotConnected => LOOK_SOON,
        Observation::Unreachable(_)
        | Observation::OwnedByAnother(_)
        | Observation::BackendChanged { .. }
        | Observation::OrderingDiffers(_)
        | Observation::Unsupported(_) => LOOK_AGAIN,
    };
    Ok(Action::requeue(owed.map_or(wait, |owed| wait.min(owed))))
}

/// Declares the queue and counts it.
async fn observe(queue: &Queue, desk: &Desk, namespace: &str) -> Result<Observation> {
    let context = &desk.context;
    let broker = &queue.spec.broker_ref.name;
    if context.lookup.broker(namespace, broker).is_none() {
        return Ok(Observation::NoBroker);
    }
    let Some(connection) = context.connections.get(namespace, broker) else {
        return Ok(Observation::NotConnected);
    };
    let name = physical_name(&context.settings.installation, namespace, &queue.name_any())?;
    if let Some(changed) = changed_backend(queue, &connection.backend_id) {
        return Ok(changed);
    }
    if let Some(what) = policy::lacking(&queue.spec, connection.driver.capabilities()) {
        return Ok(Observation::Unsupported(what));
    }
    let declaration = Declaration {
        owner: owner(queue, context)?,
        settings: settings(&queue.spec),
        adopt: queue.spec.adopt,
    };
    let key = (namespace.to_owned(), broker.clone());
    Ok(declare(queue, desk, &key, &connection, name, declaration).await)
}

async fn declare(
    queue: &Queue,
    desk: &Desk,
    key: &BrokerKey,
    connection: &Connection,
    name: QueueName,
    declaration: Declaration,
) -> Observation {
    let driver = &connection.driver;
    let declared = match desk.ask(key, CALL, driver.declare(&name, declaration)).await {
        Ok(declared) => declared,
        Err(error) => return refused(queue, error),
    };
    // The data may be other data than when the connection was made.
    if let Some(changed) = changed_backend(queue, &declared.backend_id) {
        return changed;
    }
    let stats = desk.ask(key, CALL, driver.stats(&name)).await.unwrap_or_else(|_| QueueStats::default());
    let max_payload = driver.capabilities().limits.max_payload as u64;
    Observation::Seen { name, stats, backend_id: declared.backend_id, max_payload }
}

/// What it means that the broker didn't take the declaration.
fn refused(queue: &Queue, error: longshore_drivers::Error) -> Observation {
    match error.kind {
        // Whoever adopts is no stranger: then it is the ordering that can't be changed.
        ErrorKind::Conflict if queue.spec.adopt => Observation::OrderingDiffers(error.message),
        ErrorKind::Conflict => Observation::OwnedByAnother(error.message),
        ErrorKind::Unsupported => Observation::Unsupported(error.message),
        _ => Observation::Unreachable(error.message),
    }
}

/// Whose data it is on the broker.
fn owner(queue: &Queue, context: &Context) -> Result<Owner> {
    Ok(Owner {
        installation: context.settings.installation.clone(),
        uid: queue.uid().ok_or(Error::Incomplete("uid"))?,
    })
}

/// Data that is not what the queue was declared on is not touched, unless the spec says to adopt it.
fn changed_backend(queue: &Queue, found: &str) -> Option<Observation> {
    let known = queue.status.as_ref()?.backend_id.as_deref()?;
    let other = known != found && !queue.spec.adopt;
    other.then(|| Observation::BackendChanged { known: known.to_owned(), found: found.to_owned() })
}

/// Writes the status if it deserves it. Answers when it has to be written otherwise.
async fn report_on(queue: &Queue, desk: &Desk, observation: &Observation) -> Result<Option<Duration>> {
    let context = &desk.context;
    let next = report::status(queue, observation, context.now());
    let now = Instant::now();
    match report::writing(queue.status.as_ref(), &next, desk.since_written(queue, now)) {
        Writing::Nothing => return Ok(None),
        Writing::In(wait) => return Ok(Some(wait)),
        Writing::Now => {}
    }
    let was = queue.status.as_ref().is_some_and(|status| is_true(&status.conditions, condition::READY));
    let is = is_true(&next.conditions, condition::READY);
    let message = next.conditions.iter().find(|item| item.type_ == condition::READY).cloned();
    let mut object = queue.clone();
    object.status = Some(next);
    if replace_status(&context.client, &object).await?.is_none() {
        // Somebody else wrote, or the watch lags behind our own write.
        return Ok(Some(LOOK_SOON));
    }
    desk.written(queue, now);
    if was != is {
        let (reason, note) = message.map_or_else(Default::default, |item| (item.reason, item.message));
        event(context, queue, !is, &reason, "Declare", note).await;
    }
    Ok(None)
}

/// The finalizer stands only while the jobs are to be deleted with the object.
async fn keep_finalizer(queue: &Queue, context: &Context, namespace: &str) -> Result<()> {
    let wanted = queue.spec.deletion_policy == DeletionPolicy::Delete;
    let there = queue.finalizers().iter().any(|name| name == finalizer::QUEUE_DATA);
    if wanted == there {
        return Ok(());
    }
    let mut finalizers = queue.finalizers().to_vec();
    finalizers.retain(|name| name != finalizer::QUEUE_DATA);
    if wanted {
        finalizers.push(finalizer::QUEUE_DATA.to_owned());
    }
    write_finalizers(queue, context, namespace, finalizers).await
}

async fn write_finalizers(
    queue: &Queue,
    context: &Context,
    namespace: &str,
    finalizers: Vec<String>,
) -> Result<()> {
    let api: Api<Queue> = Api::namespaced(context.client.clone(), namespace);
    let patch =
        json!({ "metadata": { "finalizers": finalizers, "resourceVersion": queue.resource_version() } });
    match api.patch(&queue.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Error::api("write the finalizers of the Queue")(error)),
    }
}

async fn delete(queue: &Queue, desk: &Desk, namespace: &str) -> Result<Action> {
    if !queue.finalizers().iter().any(|name| name == finalizer::QUEUE_DATA) {
        return Ok(Action::await_change());
    }
    let context = &desk.context;
    let kept = match (delete_data(queue, context, namespace).await, is_late(queue, context.now())) {
        (Deletion::Done, _) => None,
        (Deletion::Kept(why), _) | (Deletion::Failed(why), true) => Some(why),
        // Bounded, so that a namespace is never held.
        (Deletion::Failed(_), false) => return Ok(Action::requeue(DELETE_AGAIN)),
    };
    if let Some(why) = kept {
        let note = format!("not all jobs are known to be deleted: {why}");
        event(context, queue, true, "DataKept", "Delete", note).await;
    }
    let mut finalizers = queue.finalizers().to_vec();
    finalizers.retain(|name| name != finalizer::QUEUE_DATA);
    write_finalizers(queue, context, namespace, finalizers).await?;
    Ok(Action::await_change())
}

/// Whether the time for deleting the data is over.
fn is_late(queue: &Queue, now: Timestamp) -> bool {
    let asked = queue.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    now.duration_since(asked) > SignedDuration::try_from(DELETE_DEADLINE).unwrap_or_default()
}

/// What became of a queue's data.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Deletion {
    Done,
    /// It stays, and why.
    Kept(String),
    /// It was not deleted this time.
    Failed(String),
}

async fn delete_data(queue: &Queue, context: &Context, namespace: &str) -> Deletion {
    let broker = &queue.spec.broker_ref.name;
    // The connection outlives its Broker for a while, for Queues that go in the same sweep.
    let Some(connection) = context.connections.get(namespace, broker) else {
        return match context.lookup.broker(namespace, broker) {
            Some(_) => Deletion::Failed(format!("Broker {broker:?} is not connected")),
            // An embedded broker leaves its volume claim behind.
            None => Deletion::Kept(format!("Broker {broker:?} is gone; what it kept stays where it was")),
        };
    };
    if let Some(why) = not_ours(queue, &connection.backend_id) {
        return Deletion::Kept(why);
    }
    let name = match physical_name(&context.settings.installation, namespace, &queue.name_any()) {
        Ok(name) => name,
        Err(error) => return Deletion::Kept(error.chain()),
    };
    let owner = match owner(queue, context) {
        Ok(owner) => owner,
        Err(error) => return Deletion::Kept(error.chain()),
    };
    // Taking long for many jobs is no silence: other Queues go on with this broker.
    match within(CALL, connection.driver.delete_queue(&name, &owner)).await {
        Ok(()) => Deletion::Done,
        // Somebody took it over meanwhile.
        Err(error) if error.kind == ErrorKind::Conflict => Deletion::Kept(error.message),
        Err(error) => Deletion::Failed(error.message),
    }
}

/// Why the data that the broker holds is not to be deleted with `queue`, if so.
fn not_ours(queue: &Queue, found: &str) -> Option<String> {
    let status = queue.status.as_ref();
    let Some(known) = status.and_then(|status| status.backend_id.as_deref()) else {
        return Some("the queue was never declared".to_owned());
    };
    if known != found {
        return Some(format!("the broker holds data {found}, the queue was declared on {known}"));
    }
    let mut conditions = status.into_iter().flat_map(|status| &status.conditions);
    let ready = conditions.find(|it| it.type_ == condition::READY && it.status == "False")?;
    let frozen = matches!(ready.reason.as_str(), "OwnedByAnother" | "BackendChanged" | "OrderingDiffers");
    frozen.then(|| ready.message.clone())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
