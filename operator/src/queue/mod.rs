//! Queues: declared on their broker, counted, deleted with or without their jobs.

mod policy;
mod report;

use crate::{
    apply::replace_status,
    connections::Connection,
    context::{Context, Scope},
    error::{Error, Result},
    reporting::{self, event, guarded},
};
use futures::StreamExt;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::ObjectRef,
        watcher,
    },
};
use longshore_crds::{Broker, DeletionPolicy, Queue, condition, finalizer, is_true};
use longshore_drivers::{Declaration, ErrorKind, Owner, QueueName, QueueStats};
use report::Observation;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

pub(crate) use policy::{physical_name, settings};

/// Depths in the status are this old at most.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How soon a queue looks again for a broker that isn't connected yet.
const LOOK_SOON: Duration = Duration::from_millis(500);
/// Deleting a queue's data is tried for this long; then the object goes and the data stays.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the controller of Queues until it is stopped.
pub(crate) async fn run(scope: Scope, context: Arc<Context>, stop: CancellationToken) {
    let controller = Controller::new(scope.api::<Queue>(&context.client), watcher::Config::default());
    let queues = controller.store();
    let on_broker = move |broker: Broker| {
        let (namespace, name) = (broker.namespace(), broker.name_any());
        let hit =
            move |queue: &Arc<Queue>| queue.namespace() == namespace && queue.spec.broker_ref.name == name;
        queues.state().into_iter().filter(hit).map(|queue| ObjectRef::from_obj(&*queue)).collect::<Vec<_>>()
    };
    controller
        .with_config(Config::default().concurrency(8))
        .watches(scope.api::<Broker>(&context.client), watcher::Config::default(), on_broker)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, reporting::failed, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn reconcile(queue: Arc<Queue>, context: Arc<Context>) -> Result<Action> {
    guarded(&context, "Queue", reconcile_inner(&queue, &context)).await
}

async fn reconcile_inner(queue: &Queue, context: &Context) -> Result<Action> {
    if !context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let namespace = queue.namespace().ok_or(Error::Incomplete("namespace"))?;
    if queue.metadata.deletion_timestamp.is_some() {
        return delete(queue, context, &namespace).await;
    }
    keep_finalizer(queue, context, &namespace).await?;
    let observation = observe(queue, context, &namespace).await?;
    report_on(queue, context, &observation).await?;
    context.backoff.succeeded(&reporting::key(queue));
    Ok(Action::requeue(if matches!(observation, Observation::Seen { .. }) { LOOK_EVERY } else { LOOK_SOON }))
}

/// Declares the queue and counts it.
async fn observe(queue: &Queue, context: &Context, namespace: &str) -> Result<Observation> {
    let broker = &queue.spec.broker_ref.name;
    if context.lookup.broker(namespace, broker).is_none() {
        return Ok(Observation::NoBroker);
    }
    let Some(connection) = context.connections.get(namespace, broker) else {
        return Ok(Observation::NotConnected);
    };
    let name = physical_name(&context.settings.installation, namespace, &queue.name_any())?;
    if let Some(changed) = changed_backend(queue, &connection) {
        return Ok(changed);
    }
    let declaration = Declaration {
        owner: owner(queue, context)?,
        settings: settings(&queue.spec),
        adopt: queue.spec.adopt,
    };
    match connection.driver.declare(&name, declaration).await {
        Ok(_) => {}
        Err(error) if error.kind == ErrorKind::Conflict => {
            return Ok(Observation::OwnedByAnother(error.message));
        }
        Err(error) => return Ok(Observation::Unreachable(error.message)),
    }
    let stats = connection.driver.stats(&name).await.unwrap_or_else(|_| QueueStats::default());
    let max_payload = connection.driver.capabilities().limits.max_payload as u64;
    Ok(Observation::Seen { name, stats, backend_id: connection.backend_id, max_payload })
}

/// Whose data it is on the broker.
fn owner(queue: &Queue, context: &Context) -> Result<Owner> {
    Ok(Owner {
        installation: context.settings.installation.clone(),
        uid: queue.uid().ok_or(Error::Incomplete("uid"))?,
    })
}

/// Data that is not what the queue was declared on is not touched, unless the spec says to adopt it.
fn changed_backend(queue: &Queue, connection: &Connection) -> Option<Observation> {
    let known = queue.status.as_ref()?.backend_id.as_ref()?;
    let other = known != &connection.backend_id && !queue.spec.adopt;
    other.then(|| Observation::BackendChanged { known: known.clone(), found: connection.backend_id.clone() })
}

async fn report_on(queue: &Queue, context: &Context, observation: &Observation) -> Result<()> {
    let now = context.now();
    let next = report::status(queue, observation, now);
    if !report::worth_writing(queue.status.as_ref(), &next) {
        return Ok(());
    }
    let was = queue.status.as_ref().is_some_and(|status| is_true(&status.conditions, condition::READY));
    let is = is_true(&next.conditions, condition::READY);
    let message = next.conditions.iter().find(|item| item.type_ == condition::READY).cloned();
    let mut object = queue.clone();
    object.status = Some(next);
    if replace_status(&context.client, &object).await?.is_some() && was != is {
        let (reason, note) = message.map_or_else(Default::default, |item| (item.reason, item.message));
        event(context, queue, !is, &reason, "Declare", note).await;
    }
    Ok(())
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

async fn delete(queue: &Queue, context: &Context, namespace: &str) -> Result<Action> {
    if !queue.finalizers().iter().any(|name| name == finalizer::QUEUE_DATA) {
        return Ok(Action::await_change());
    }
    let name = physical_name(&context.settings.installation, namespace, &queue.name_any())?;
    let outcome = delete_data(queue, context, namespace, &name, &owner(queue, context)?).await;
    let asked = queue.metadata.deletion_timestamp.as_ref().map_or_else(|| context.now(), |time| time.0);
    let late = context.now().duration_since(asked)
        > k8s_openapi::jiff::SignedDuration::try_from(DELETE_DEADLINE).unwrap_or_default();
    if let Err(kept) = outcome {
        let why = match kept {
            Kept::ForNow(_) if !late => return Ok(Action::requeue(Duration::from_secs(1))),
            Kept::ForNow(why) | Kept::ForGood(why) => why,
        };
        event(
            context,
            queue,
            true,
            "DataKept",
            "Delete",
            format!("the jobs of {name} were not deleted: {why}"),
        )
        .await;
    }
    let mut finalizers = queue.finalizers().to_vec();
    finalizers.retain(|name| name != finalizer::QUEUE_DATA);
    write_finalizers(queue, context, namespace, finalizers).await?;
    Ok(Action::await_change())
}

/// Why a queue's data is still there.
enum Kept {
    /// The next try may succeed.
    ForNow(String),
    /// It is somebody else's.
    ForGood(String),
}

async fn delete_data(
    queue: &Queue,
    context: &Context,
    namespace: &str,
    name: &QueueName,
    owner: &Owner,
) -> std::result::Result<(), Kept> {
    let broker = &queue.spec.broker_ref.name;
    // A broker that is gone took the data with it.
    if context.lookup.broker(namespace, broker).is_none() {
        return Ok(());
    }
    let connection = context.connections.get(namespace, broker);
    let connection = connection.ok_or_else(|| Kept::ForNow("its broker is not connected".to_owned()))?;
    connection.driver.delete_queue(name, owner).await.map_err(|error| match error.kind {
        ErrorKind::Conflict => Kept::ForGood(error.message),
        _ => Kept::ForNow(error.message),
    })
}
