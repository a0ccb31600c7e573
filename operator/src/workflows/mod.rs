//! Workflows: events are folded into the machine's state, the state is committed, and only then effects are performed.

mod budget;
mod check;
mod completions;
mod ends;
mod expressions;
mod inbox;
mod ingredients;
mod jobs;
mod memory;
mod perform;
mod plan;
mod reconcile;
mod report;
mod variables;

use crate::{
    context::{Context, Scope},
    error::Result,
    reporting::{self, guarded},
};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Resource, ResourceExt,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{Action, Config},
        reflector::ObjectRef,
        watcher,
    },
};
use longshore_crds::{Queue, Workflow, condition, is_true};
use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

pub(crate) use budget::Bucket;
pub(crate) use completions::run as read_completions;
pub(crate) use expressions::NoThread;
pub(crate) use inbox::Inbox;
pub(crate) use memory::Memory;

/// Runs the controller of Workflows until it is stopped.
pub(crate) async fn run(scope: Scope, context: Arc<Context>, stop: CancellationToken) {
    let controller = Controller::new(scope.api::<Workflow>(&context.client), watcher::Config::default());
    let workflows = controller.store();
    let waiting_on = move |queue: Queue| {
        let (namespace, name) = (queue.namespace(), queue.name_any());
        let hit = |workflow: &Arc<Workflow>| {
            workflow.namespace() == namespace
                && reconcile::is_waiting(workflow)
                && jobs::queues(&workflow.spec).contains(&name.as_str())
        };
        let all = workflows.state();
        all.iter()
            .filter(|workflow| hit(workflow))
            .map(|workflow| ObjectRef::from_obj(&**workflow))
            .collect::<Vec<_>>()
    };
    let arrivals = arrivals(&scope, &context);
    let queues = watcher(scope.api::<Queue>(&context.client), watcher::Config::default())
        .default_backoff()
        .touched_objects()
        .predicate_filter(|queue: &Queue| Some(usable(queue)), PredicateConfig::default());
    controller
        .with_config(Config::default().concurrency(32))
        .watches_stream(queues, waiting_on)
        .reconcile_on(arrivals)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile_one, reporting::failed, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Changes when a Queue becomes another one for workflows; its depth, which changes all the time, is of no interest here.
fn usable(queue: &Queue) -> u64 {
    let mut hasher = DefaultHasher::new();
    let status = queue.status.as_ref();
    let ready = status.is_some_and(|status| is_true(&status.conditions, condition::READY));
    (queue.metadata.generation, ready, status.and_then(|status| status.backend_id.as_ref()))
        .hash(&mut hasher);
    hasher.finish()
}

/// Workflows of this scope for which completions arrived.
fn arrivals(
    scope: &Scope,
    context: &Context,
) -> impl futures::Stream<Item = ObjectRef<Workflow>> + Send + 'static + use<> {
    let scope = scope.clone();
    let receiver = context.inbox.arrivals();
    futures::stream::unfold(receiver, |mut receiver| async move {
        use tokio::sync::broadcast::error::RecvError;
        loop {
            match receiver.recv().await {
                Ok(key) => return Some((key, receiver)),
                // What was skipped is found by the janitor, which wakes what nobody took.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
    .filter_map(move |(namespace, name)| {
        let ours = match &scope {
            Scope::Cluster => true,
            Scope::Namespace(own) => *own == namespace,
        };
        std::future::ready(ours.then(|| reference(&namespace, &name)))
    })
}

fn reference<K>(namespace: &str, name: &str) -> ObjectRef<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    ObjectRef::new(name).within(namespace)
}

async fn reconcile_one(workflow: Arc<Workflow>, context: Arc<Context>) -> Result<Action> {
    guarded(&context, "Workflow", Box::pin(reconcile::reconcile(workflow, &context))).await
}

/// Something that was asked for isn't there yet, and nothing tells when it comes.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
