//! Workers: a Deployment with the sidecar in it, scaled to the work.

mod build;
mod inject;
mod observe;
mod pods;
mod policy;
mod report;
mod scale;
mod validate;

use crate::{
    apply::{apply, replace_status},
    context::{Context, Scope},
    error::{Error, Result},
    reporting::{self, event, guarded},
};
use futures::StreamExt;
use inject::Injection;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{
    ResourceExt,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use longshore_crds::{Broker, Queue, Reason, Worker, WorkerStatus, label};
use observe::BoundQueue;
use scale::{Decision, Inputs};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

/// How often a Worker with something to do is looked at.
const LOOK_BUSY: Duration = Duration::from_secs(1);
/// How often one without is; new work wakes it at once.
const LOOK_IDLE: Duration = Duration::from_secs(15);
/// How often sidecars are asked for faults.
const ASK_PODS_EVERY: Duration = Duration::from_secs(10);

/// What a controller of Workers works with.
struct Desk {
    context: Arc<Context>,
    workers: Store<Worker>,
    memory: Mutex<HashMap<String, Memory>>,
}

/// What is remembered between looks. Losing it makes scaling down a little later, nothing else.
#[derive(Debug, Clone, Copy)]
struct Memory {
    busy_at: Instant,
    lower_since: Option<Instant>,
    asked_at: Option<Instant>,
    written_at: Option<Timestamp>,
}

/// Runs the controller of Workers until it is stopped.
pub(crate) async fn run(scope: Scope, context: Arc<Context>, stop: CancellationToken) {
    let client = &context.client;
    let owned =
        watcher::Config::default().labels(&format!("{}={}", label::MANAGED_BY, label::MANAGED_BY_VALUE));
    let controller = Controller::new(scope.api::<Worker>(client), watcher::Config::default());
    let workers = controller.store();
    let desk =
        Arc::new(Desk { context: context.clone(), workers: workers.clone(), memory: Mutex::default() });
    let by_queue = workers.clone();
    let by_broker = workers.clone();
    controller
        .with_config(Config::default().concurrency(8))
        .owns(scope.api::<Deployment>(client), owned)
        .watches(scope.api::<Queue>(client), watcher::Config::default(), move |queue: Queue| {
            on_queue(&by_queue, &queue.namespace().unwrap_or_default(), &queue.name_any())
        })
        .watches(scope.api::<Broker>(client), watcher::Config::default(), move |broker: Broker| {
            let namespace = broker.namespace();
            let all = by_broker.state();
            let near = all.iter().filter(|worker| worker.namespace() == namespace);
            near.map(|worker| ObjectRef::from_obj(&**worker)).collect::<Vec<_>>()
        })
        .reconcile_on(woken(workers, &context))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            reconcile,
            |object, error, desk: Arc<Desk>| reporting::failed(object, error, desk.context.clone()),
            desk,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

/// The Workers of a queue.
fn on_queue(workers: &Store<Worker>, namespace: &str, queue: &str) -> Vec<ObjectRef<Worker>> {
    let hit = |worker: &&Arc<Worker>| {
        worker.namespace().as_deref() == Some(namespace)
            && worker.spec.queues.iter().any(|item| item.name == queue)
    };
    workers.state().iter().filter(hit).map(|worker| ObjectRef::from_obj(&**worker)).collect()
}

/// Workers whose queues have new work.
fn woken(
    workers: Store<Worker>,
    context: &Context,
) -> impl futures::Stream<Item = ObjectRef<Worker>> + Send + 'static + use<> {
    let hints = futures::stream::unfold(context.woken.subscribe(), |mut hints| async move {
        loop {
            match hints.recv().await {
                Ok(hint) => return Some((hint, hints)),
                // What was missed is found by looking again after a while.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    hints.flat_map(move |(namespace, queue)| {
        // A Worker that has pods looks by itself every second.
        let asleep = |worker: &ObjectRef<Worker>| {
            workers
                .get(worker)
                .is_none_or(|worker| worker.status.as_ref().is_none_or(|status| status.desired_replicas == 0))
        };
        let hit: Vec<_> = on_queue(&workers, &namespace, &queue).into_iter().filter(asleep).collect();
        futures::stream::iter(hit)
    })
}

async fn reconcile(worker: Arc<Worker>, desk: Arc<Desk>) -> Result<Action> {
    guarded(&desk.context, "Worker", Box::pin(reconcile_inner(&worker, &desk))).await
}

async fn reconcile_inner(worker: &Worker, desk: &Desk) -> Result<Action> {
    let context = &desk.context;
    let namespace = worker.namespace().ok_or(Error::Incomplete("namespace"))?;
    let uid = worker.uid().ok_or(Error::Incomplete("uid"))?;
    if worker.metadata.deletion_timestamp.is_some() {
        desk.forget(&uid);
        return Ok(Action::await_change());
    }
    if !context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    if let Err(refusal) = validate::validate(&worker.spec) {
        return block(worker, context, Reason::no(refusal.reason, refusal.message), Action::await_change())
            .await;
    }
    let queues = match observe::queues(context, worker, &namespace)? {
        Ok(queues) => queues,
        Err(missing) => {
            let reason = Reason::unknown(missing.reason, missing.message);
            return block(worker, context, reason, Action::requeue(Duration::from_secs(5))).await;
        }
    };
    let action = advance(worker, desk, &namespace, &uid, &queues).await;
    if let Err(error) = &action
        && error.category() == "Refused"
    {
        let reason = Reason::no("TemplateRefused", error.chain());
        return block(worker, context, reason, Action::requeue(Duration::from_secs(60))).await;
    }
    context.backoff.succeeded(&reporting::key(worker));
    action
}

/// What was seen and decided in one look.
struct Look<'a> {
    worker: &'a Worker,
    namespace: &'a str,
    queues: &'a [BoundQueue],
    live: Option<Deployment>,
    demands: Vec<scale::Demand>,
    /// The names of the Brokers of its queues, each once, in order.
    brokers: Vec<String>,
    hash: String,
    proven: Option<String>,
    current: u32,
    decision: Decision,
}

/// Decides, acts and reports.
async fn advance(
    worker: &Worker,
    desk: &Desk,
    namespace: &str,
    uid: &str,
    queues: &[BoundQueue],
) -> Result<Action> {
    let context = &desk.context;
    let mut memory = desk.recall(uid);
    let look = look(worker, desk, namespace, queues, &mut memory).await?;
    let decision = &look.decision;
    let pods = ask_pods(context, &look, &mut memory).await?;
    let (deployment, image) = act(context, &look, pods.as_deref()).await?;
    announce(context, worker, look.current, look.live.is_some(), decision).await;
    let seeing = report::Seeing {
        deployment: &deployment,
        decision,
        demands: &look.demands,
        pods: pods.as_deref(),
        image: &image,
        proven: look.proven.clone(),
    };
    let now = context.now();
    let next = report::status(worker, &seeing, now);
    if report::worth_writing(worker.status.as_ref(), &next, memory.written_at, now)
        && write(context, worker, next).await?
    {
        memory.written_at = Some(now);
    }
    desk.remember(uid, memory);
    let at_rest = decision.desired == worker.spec.scaling.min_replicas && decision.desired == look.current;
    let quiet = !decision.busy && at_rest;
    Ok(Action::requeue(if quiet { LOOK_IDLE } else { LOOK_BUSY }))
}

async fn look<'a>(
    worker: &'a Worker,
    desk: &Desk,
    namespace: &'a str,
    queues: &'a [BoundQueue],
    memory: &mut Memory,
) -> Result<Look<'a>> {
    let live = observe::deployment(&desk.context, namespace, &worker.name_any()).await?;
    let demands = observe::demands(&desk.context, worker, queues, &desk.workers).await;
    let mut brokers: Vec<_> = queues.iter().map(|queue| queue.broker.clone()).collect();
    brokers.sort();
    brokers.dedup();
    let hash = build::template_hash(&worker.spec, &brokers);
    let proven = proven(worker, live.as_ref(), &hash);
    let current = live.as_ref().and_then(|live| live.spec.as_ref()?.replicas).unwrap_or(0);
    let current = u32::try_from(current).unwrap_or(0);
    let is_proven = proven.as_deref() == Some(&hash);
    let decision = scale::decide(&inputs(worker, &demands, current, is_proven, memory));
    memory.learn(&decision, current);
    Ok(Look { worker, namespace, queues, live, demands, brokers, hash, proven, current, decision })
}

/// Asks the sidecars now and then, and whenever pods have to be chosen.
async fn ask_pods(
    context: &Context,
    look: &Look<'_>,
    memory: &mut Memory,
) -> Result<Option<Vec<pods::Seen>>> {
    let lowering = look.decision.desired < look.current;
    let due = memory.asked_at.is_none_or(|at| at.elapsed() >= ASK_PODS_EVERY);
    if look.current == 0 || !(lowering || due) {
        return Ok(None);
    }
    memory.asked_at = Some(Instant::now());
    pods::look(context, look.namespace, &look.worker.name_any()).await.map(Some)
}

/// Applies the policy and the Deployment. Those to be retired hear of it first.
async fn act(
    context: &Context,
    look: &Look<'_>,
    pods: Option<&[pods::Seen]>,
) -> Result<(Deployment, String)> {
    let Look { worker, namespace, decision, .. } = look;
    let pods = pods.unwrap_or_default();
    let retired = look.current.saturating_sub(decision.desired) as usize;
    let victims = pods::victims(pods, retired);
    let name = worker.name_any();
    let policy = policy::policy(namespace, &name, &worker.spec, look.queues, victims.clone());
    apply::<ConfigMap>(&context.client, namespace, &build::config_map(worker, &policy)?).await?;
    if retired > 0 && decision.desired > 0 {
        pods::mark(context, namespace, pods, &victims).await;
    }
    let injection = Injection {
        worker: &name,
        spec: &worker.spec,
        settings: &context.settings,
        image: &context.settings.sidecar_image,
        policy: &build::policy_name(&name),
        brokers: &look.brokers,
    };
    let (template, image) = build::pod_template(&injection, &look.hash, look.live.as_ref());
    let wanted = build::deployment(worker, &template, &look.hash, &image, decision.desired)?;
    Ok((apply(&context.client, namespace, &wanted).await?, image))
}

fn inputs(worker: &Worker, demands: &[scale::Demand], current: u32, proven: bool, memory: &Memory) -> Inputs {
    let scaling = &worker.spec.scaling;
    Inputs {
        demands: demands.to_vec(),
        concurrency: worker.spec.concurrency,
        current,
        min: scaling.min_replicas,
        max: scaling.max_replicas,
        pinned: worker.spec.replicas,
        target: scaling.target_drain_time.get(),
        idle_timeout: scaling.idle_timeout.get(),
        idle_for: memory.busy_at.elapsed(),
        lower_for: memory.lower_since.map_or(Duration::ZERO, |since| since.elapsed()),
        proven,
    }
}

/// The hash of the newest template of which a pod was ready once.
fn proven(worker: &Worker, live: Option<&Deployment>, hash: &str) -> Option<String> {
    let known = worker.status.as_ref().and_then(|status| status.ready_template_hash.clone());
    if known.as_deref() == Some(hash) {
        return known;
    }
    let live = live?;
    let status = live.status.as_ref()?;
    let current =
        live.annotations().get(longshore_crds::annotation::TEMPLATE_HASH).is_some_and(|old| old == hash)
            && status.observed_generation == live.metadata.generation;
    let ready = status.updated_replicas.unwrap_or(0) > 0
        && status.ready_replicas.unwrap_or(0) >= 1
        && status.updated_replicas == status.replicas;
    if current && ready { Some(hash.to_owned()) } else { known }
}

async fn announce(context: &Context, worker: &Worker, current: u32, existed: bool, decision: &Decision) {
    if current == decision.desired || !existed {
        return;
    }
    let reason = if decision.desired > current { "ScaledUp" } else { "ScaledDown" };
    let note = format!("from {current} to {}", decision.message);
    event(context, worker, false, reason, "Scale", note).await;
}

async fn write(context: &Context, worker: &Worker, next: WorkerStatus) -> Result<bool> {
    let mut object = worker.clone();
    object.status = Some(next);
    Ok(replace_status(&context.client, &object).await?.is_some())
}

async fn block(worker: &Worker, context: &Context, reason: Reason, action: Action) -> Result<Action> {
    let next = report::blocked(worker, reason.clone(), context.now());
    if worker.status.as_ref() != Some(&next) {
        write(context, worker, next).await?;
        if reason.status == "False" {
            event(context, worker, true, &reason.reason, "Validate", reason.message).await;
        }
    }
    Ok(action)
}

impl Desk {
    fn recall(&self, uid: &str) -> Memory {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Memory { busy_at: Instant::now(), lower_since: None, asked_at: None, written_at: None };
        memory.get(uid).copied().unwrap_or(fresh)
    }

    fn remember(&self, uid: &str, memory: Memory) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), memory);
    }

    fn forget(&self, uid: &str) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

impl Memory {
    fn learn(&mut self, decision: &Decision, current: u32) {
        if decision.busy {
            self.busy_at = Instant::now();
        }
        if decision.wanted >= current {
            self.lower_since = None;
        } else {
            self.lower_since.get_or_insert_with(Instant::now);
        }
    }
}
