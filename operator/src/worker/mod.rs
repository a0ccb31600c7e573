//! Workers: a Deployment with the sidecar in it, scaled to the work.

mod access;
mod act;
mod build;
#[cfg(test)]
pub(crate) mod fixture;
mod inject;
mod memory;
mod observe;
mod pods;
mod policy;
mod report;
mod rollout;
mod scale;
mod validate;
mod victims;

use crate::{
    apply::replace_status,
    context::{Context, Scope},
    error::{Error, Result},
    reporting::{self, Writing, event, guarded},
};
use act::{Asking, Need, Plan, act, ask_pods};
use build::Pods;
use futures::{Stream, StreamExt};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        Controller, PredicateConfig, WatchStreamExt,
        controller::{self, Action, Config},
        predicates,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use longshore_crds::{Broker, Queue, Reason, Worker, WorkerStatus, label};
use memory::{Desk, Memory};
use observe::{World, observe};
use report::Seeing;
use scale::{Basis, DUE_SOON, Decision, Inputs};
use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use victims::{Retirement, Shrink, retire};

/// How many Workers are reconciled at once. A broker that doesn't answer holds one up for two seconds.
const AT_ONCE: u16 = 16;
/// How often a Worker with something to do is looked at.
const LOOK_BUSY: Duration = Duration::from_secs(1);
/// How often one is whose size is fixed.
const LOOK_FIXED: Duration = Duration::from_secs(5);
/// How often one without work is; new work wakes it at once.
const LOOK_IDLE: Duration = Duration::from_secs(15);
/// How often one is for which something is missing; its arrival wakes it.
const LOOK_BLOCKED: Duration = Duration::from_secs(5);
/// Hints that are taken together.
const HINTS: usize = 256;

/// Runs the controller of Workers until it is stopped.
pub(crate) async fn run(scope: Scope, context: Arc<Context>, stop: CancellationToken) {
    let client = &context.client;
    let owned =
        watcher::Config::default().labels(&format!("{}={}", label::MANAGED_BY, label::MANAGED_BY_VALUE));
    let (workers, writer) = reflector::store();
    // Its own status is no news to a controller.
    let changed = watcher(scope.api::<Worker>(client), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(predicates::generation, PredicateConfig::default());
    let (deployments, deployment_events) = mirrored(scope.api::<Deployment>(client), owned.clone());
    let (config_maps, config_map_events) = mirrored(scope.api::<ConfigMap>(client), owned);
    let queues = watcher(scope.api::<Queue>(client), watcher::Config::default())
        .default_backoff()
        .touched_objects()
        .predicate_filter(|queue: &Queue| Some(policy_of(queue)), PredicateConfig::default());
    let desk = Arc::new(Desk::new(context.clone(), workers.clone(), deployments, config_maps));
    let (on_queue, on_broker) = (desk.clone(), desk.clone());
    Controller::for_stream(changed, workers)
        .with_config(Config::default().concurrency(AT_ONCE))
        .owns_stream(deployment_events)
        .owns_stream(config_map_events)
        .watches_stream(queues, move |queue: Queue| {
            let key = (queue.namespace().unwrap_or_default(), queue.name_any());
            on_queue.stir(&on_queue.on_queues(&HashSet::from([key])), Instant::now())
        })
        .watches(scope.api::<Broker>(client), watcher::Config::default(), move |broker: Broker| {
            on_broker.stir(&of_broker(&on_broker, &broker), Instant::now())
        })
        .reconcile_on(woken(desk.clone()))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            reconcile,
            |object, error, desk: Arc<Desk>| reporting::failed(object, error, desk.context.clone()),
            desk,
        )
        .for_each(|outcome| {
            if let Err(controller::Error::QueueError(error)) = outcome {
                tracing::warn!(%error, "a watch for Workers failed");
            }
            std::future::ready(())
        })
        .await;
}

/// A store of children, and their events, which come after the store has taken them in.
fn mirrored<K>(
    api: Api<K>,
    config: watcher::Config,
) -> (Store<K>, impl Stream<Item = std::result::Result<K, watcher::Error>> + Send + 'static)
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, config)
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects();
    (store, events)
}

/// Changes when the policy of a Queue does; its depth, which changes all the time, is of no interest here.
fn policy_of(queue: &Queue) -> u64 {
    let mut hasher = DefaultHasher::new();
    (queue.metadata.generation, policy::is_held(queue), policy::rests(queue)).hash(&mut hasher);
    hasher.finish()
}

/// The Workers with a queue on `broker`.
fn of_broker(desk: &Desk, broker: &Broker) -> Vec<Arc<Worker>> {
    let (namespace, name) = (broker.namespace().unwrap_or_default(), broker.name_any());
    let is_on = |queue: &str| {
        let queue = desk.context.lookup.queue(&namespace, queue);
        queue.is_some_and(|queue| queue.spec.broker_ref.name == name)
    };
    let mut all = desk.workers.state();
    all.retain(|worker| {
        worker.metadata.namespace.as_deref() == Some(&namespace)
            && worker.spec.queues.iter().any(|queue| is_on(&queue.name))
    });
    all
}

/// Workers whose queues have new work, of those that don't look by themselves soon.
fn woken(desk: Arc<Desk>) -> impl Stream<Item = ObjectRef<Worker>> + Send + 'static {
    let hints = futures::stream::unfold(desk.context.woken.subscribe(), |mut hints| async move {
        loop {
            match hints.recv().await {
                Ok(hint) => return Some((hint, hints)),
                // What was missed is found by looking again after a while.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    hints.ready_chunks(HINTS).flat_map(move |hints| {
        let lookup = &desk.context.lookup;
        let mut queues: HashSet<_> = hints.into_iter().collect();
        // Work that nothing may start is none.
        queues.retain(|(namespace, name)| {
            lookup.queue(namespace, name).is_none_or(|queue| !policy::rests(&queue))
        });
        futures::stream::iter(desk.work_came(&desk.on_queues(&queues), Instant::now()))
    })
}

async fn reconcile(worker: Arc<Worker>, desk: Arc<Desk>) -> Result<Action> {
    guarded(&desk.context, "Worker", reconcile_inner(&worker, &desk)).await
}

async fn reconcile_inner(worker: &Worker, desk: &Desk) -> Result<Action> {
    if worker.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if !desk.context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let namespace = worker.namespace().ok_or(Error::Incomplete("namespace"))?;
    let refusal = validate::validate(&worker.spec).err();
    let seen = observe(desk, worker, &namespace).await?;
    let action = match (seen, refusal) {
        (Ok(world), None) => advance(worker, desk, &namespace, &world, None).await?,
        // The pods of a template that was better go on being scaled.
        (Ok(world), refusal) if world.deployment.is_some() => {
            advance(worker, desk, &namespace, &world, refusal).await?
        }
        (_, Some(refusal)) => block(desk, worker, refusal, Action::await_change()).await?,
        (Err(missing), None) => block(desk, worker, missing, Action::requeue(LOOK_BLOCKED)).await?,
    };
    desk.context.backoff.succeeded(&reporting::key(worker));
    Ok(action)
}

/// Decides, acts and reports. `refusal` tells that the template can't be used.
async fn advance(
    worker: &Worker,
    desk: &Desk,
    namespace: &str,
    world: &World,
    refusal: Option<Reason>,
) -> Result<Action> {
    let context = &desk.context;
    let uid = worker.uid().ok_or(Error::Incomplete("uid"))?;
    let now = Instant::now();
    let live = world.deployment.as_deref();
    let mut memory = desk.recall(&uid, now, world.current());
    memory.notice(&world.demands, desk.worked_at(&uid), now);
    let mut pods = Pods::of(worker, &context.settings, &world.brokers, live)?;
    memory.refused.take_if(|refused| refused.revision != pods.revision());
    let kept = live.filter(|_| refusal.is_some() || memory.refuses(&pods.revision(), now));
    if let Some(live) = kept {
        pods = Pods::as_they_are(live)?;
    }
    let proven = rollout::proven(worker, live, &pods.revision());
    let inputs = inputs(worker, world, proven.as_deref() == Some(&pods.revision()), &memory, now);
    let (inputs, decision, retirement) = decide(desk, worker, world, inputs, &mut memory, now).await?;

    let (decision, retirement, pods, clock) = (&decision, &retirement, &pods, context.now());
    let plan =
        Plan { worker, namespace, world, decision, retirement, pods, kept: kept.is_some(), now, clock };
    let deployment = act(desk, &plan, &mut memory).await;
    // What was done before a failure is remembered too.
    desk.remember(&uid, memory.clone());
    let deployment = deployment?;

    let refused = memory.refused.as_ref();
    let refused = refused.map(|refused| Reason::no("TemplateRefused", refused.message.clone()));
    let seeing = Seeing {
        deployment: &deployment,
        decision,
        demands: &world.demands,
        pods: &memory.pods,
        image: &pods.image,
        revision: &pods.revision(),
        proven,
        refusal: refusal.or(refused),
        missing: world.missing.clone(),
        scaled_at: memory.scaled_at,
    };
    let next = report::status(worker, &seeing, plan.clock);
    let owed = write(desk, worker, next, &mut memory, now).await?;
    desk.remember(&uid, memory);
    let wait = next_look(&inputs, decision, desk.is_stirred(&uid, Instant::now()));
    desk.sleeps(&uid, wait > LOOK_FIXED);
    Ok(Action::requeue(owed.map_or(wait, |owed| wait.min(owed))))
}

/// How many pods, and who goes: asks them before any does.
async fn decide(
    desk: &Desk,
    worker: &Worker,
    world: &World,
    mut inputs: Inputs,
    memory: &mut Memory,
    now: Instant,
) -> Result<(Inputs, Decision, Retirement)> {
    let mut decision = scale::decide(&inputs);
    let shrink = shrink(worker, &inputs, &decision);
    let need = Need {
        leaving: shrink.desired < shrink.current,
        at_once: shrink.allowed < shrink.current,
        shared: inputs.demands.iter().any(|demand| demand.share < 1000),
    };
    let asked = ask_pods(desk, worker, world, need, memory, now).await?;
    if asked != Asking::Nobody {
        inputs.running = memory.running(now);
        decision = scale::decide(&inputs);
    }
    memory.learn(&decision, now);
    let shrink = self::shrink(worker, &inputs, &decision);
    let retirement = match asked {
        Asking::All => retire(&memory.pods, shrink, &memory.told, now),
        Asking::Some | Asking::Nobody => Retirement::unchanged(shrink, &memory.told),
    };
    memory.told.keep(&retirement.told, now);
    let decision = decision.held(retirement.replicas);
    Ok((inputs, decision, retirement))
}

fn shrink(worker: &Worker, inputs: &Inputs, decision: &Decision) -> Shrink {
    Shrink {
        current: inputs.current,
        desired: decision.desired,
        allowed: inputs.pinned.unwrap_or_else(|| inputs.most()),
        idle: !decision.busy && decision.basis != Basis::Unknown,
        drain_timeout: worker.spec.drain_timeout.get(),
    }
}

fn inputs(worker: &Worker, world: &World, proven: bool, memory: &Memory, now: Instant) -> Inputs {
    let scaling = &worker.spec.scaling;
    Inputs {
        demands: world.demands.clone(),
        concurrency: worker.spec.concurrency,
        current: world.current(),
        min: scaling.min_replicas,
        max: scaling.max_replicas,
        pinned: worker.spec.replicas,
        target: scaling.target_drain_time.get(),
        idle_timeout: scaling.idle_timeout.get(),
        idle_for: now.saturating_duration_since(memory.busy_at),
        recent_high: memory.recent_high(now),
        proven,
        running: if world.current() == 0 { Some(0) } else { memory.running(now) },
        incomplete: world.missing.is_some(),
    }
}

/// How long until the Worker is looked at again, if nothing happens.
fn next_look(inputs: &Inputs, decision: &Decision, stirred: bool) -> Duration {
    if decision.desired != inputs.current || decision.basis == Basis::Unknown {
        return LOOK_BUSY;
    }
    if inputs.pinned.is_some() || inputs.min >= inputs.max {
        return LOOK_FIXED;
    }
    if decision.busy || stirred || decision.desired > inputs.min || decision.basis == Basis::Unproven {
        return LOOK_BUSY;
    }
    let due = inputs.demands.iter().filter_map(|demand| demand.due_in).min();
    due.map_or(LOOK_IDLE, |due| due.saturating_sub(DUE_SOON).clamp(LOOK_BUSY, LOOK_IDLE))
}

/// Writes the status if it deserves it. Answers when it has to be written otherwise.
async fn write(
    desk: &Desk,
    worker: &Worker,
    next: WorkerStatus,
    memory: &mut Memory,
    now: Instant,
) -> Result<Option<Duration>> {
    let since = memory.written_at.map(|at| now.saturating_duration_since(at));
    match report::writing(worker.status.as_ref(), &next, since) {
        Writing::Nothing => Ok(None),
        Writing::In(wait) => Ok(Some(wait)),
        Writing::Now => {
            let was = worker.status.as_ref().and_then(report::complaint);
            let is = report::complaint(&next);
            if !store(desk, worker, next).await? {
                // Somebody else wrote, or the watch lags behind our own write.
                return Ok(Some(LOOK_BUSY));
            }
            memory.written_at = Some(now);
            complain(desk, worker, was, is).await;
            Ok(None)
        }
    }
}

/// Tells of a fault that is new.
async fn complain(desk: &Desk, worker: &Worker, was: Option<(String, String)>, is: Option<(String, String)>) {
    if let Some((reason, message)) = is
        && was.is_none_or(|(known, _)| known != reason)
    {
        event(&desk.context, worker, true, &reason, "Apply", message).await;
    }
}

async fn store(desk: &Desk, worker: &Worker, next: WorkerStatus) -> Result<bool> {
    if !desk.context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let mut object = worker.clone();
    object.status = Some(next);
    Ok(replace_status(&desk.context.client, &object).await?.is_some())
}

/// Nothing can be done: says why.
async fn block(desk: &Desk, worker: &Worker, reason: Reason, action: Action) -> Result<Action> {
    let next = report::blocked(worker, reason, desk.context.now());
    if worker.status.as_ref() == Some(&next) {
        return Ok(action);
    }
    let was = worker.status.as_ref().and_then(report::complaint);
    let is = report::complaint(&next);
    if !store(desk, worker, next).await? {
        // Somebody else wrote; the watch brings what.
        return Ok(Action::requeue(LOOK_BUSY));
    }
    complain(desk, worker, was, is).await;
    Ok(action)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scale::Demand;

    fn looked(change: impl FnOnce(&mut Inputs), stirred: bool) -> Duration {
        let mut inputs = Inputs {
            demands: vec![Demand {
                ready: Some(0),
                active: Some(0),
                blocked: Some(0),
                service_time: None,
                due_in: None,
                suspended: false,
                share: 1000,
            }],
            concurrency: 10,
            current: 0,
            min: 0,
            max: 5,
            pinned: None,
            target: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            idle_for: Duration::ZERO,
            recent_high: 0,
            proven: true,
            running: None,
            incomplete: false,
        };
        change(&mut inputs);
        let decision = scale::decide(&inputs);
        next_look(&inputs, &decision, stirred)
    }

    #[test]
    fn a_worker_is_looked_at_as_often_as_something_can_change() {
        assert_eq!(looked(|_| {}, false), LOOK_IDLE);
        assert_eq!(looked(|_| {}, true), LOOK_BUSY);
        assert_eq!(looked(|it| it.demands[0].ready = Some(1), false), LOOK_BUSY);
        assert_eq!(looked(|it| it.demands[0].ready = None, false), LOOK_BUSY);
        assert_eq!(looked(|it| it.current = 1, false), LOOK_BUSY);
        let minimum = |it: &mut Inputs| (it.current, it.min) = (2, 2);
        assert_eq!(looked(minimum, false), LOOK_IDLE);
        let fixed = |it: &mut Inputs| (it.current, it.min, it.max) = (2, 2, 2);
        assert_eq!(looked(fixed, true), LOOK_FIXED);
        let pinned = |it: &mut Inputs| (it.current, it.pinned) = (2, Some(2));
        assert_eq!(looked(pinned, false), LOOK_FIXED);
        assert_eq!(looked(|it| it.pinned = Some(2), false), LOOK_BUSY);
    }

    #[test]
    fn a_worker_is_looked_at_before_a_job_is_due() {
        let due =
            |seconds: u64| looked(|it| it.demands[0].due_in = Some(Duration::from_secs(seconds)), false);
        assert_eq!(due(3600), LOOK_IDLE);
        assert_eq!(due(12), Duration::from_secs(7));
        assert_eq!(due(1), LOOK_BUSY);
    }
}
