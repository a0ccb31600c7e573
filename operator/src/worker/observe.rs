//! What there is to know about a Worker before deciding anything.

use super::{Desk, access::BrokerSecrets, build, policy, scale::Demand};
use crate::{
    connections::Connection,
    context::Context,
    error::{Error, Result},
    seat::{self, Claim},
};
use futures::future::join_all;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{Api, Resource, ResourceExt, runtime::reflector::ObjectRef, runtime::reflector::Store};
use longshore_crds::{Ordering, Queue, Reason, Worker, WorkerQueue, label};
use longshore_drivers::{ErrorKind, QueueName, QueueStats, Timestamp, policy::Via};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, sync::Arc, time::Duration};

/// How long a broker may take to count.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);

/// A queue of a Worker, with all that belongs to it.
#[derive(Debug, Clone)]
pub(super) struct BoundQueue {
    pub(super) name: String,
    pub(super) weight: u32,
    pub(super) queue: Arc<Queue>,
    pub(super) broker: String,
    /// How sidecars reach the broker.
    pub(super) via: Via,
    /// The Secrets that they reach it with.
    pub(super) secrets: BrokerSecrets,
    pub(super) physical: QueueName,
}

/// What was seen of a Worker and all around it.
pub(super) struct World {
    pub(super) queues: Vec<BoundQueue>,
    /// What keeps the other queues away.
    pub(super) missing: Option<Reason>,
    /// The Brokers of the queues, each once, in order.
    pub(super) brokers: Vec<BrokerSecrets>,
    /// What each queue demands of this Worker.
    pub(super) demands: Vec<Demand>,
    pub(super) deployment: Option<Arc<Deployment>>,
    pub(super) config_map: Option<Arc<ConfigMap>>,
}

impl World {
    /// Pods that are asked for now.
    pub(super) fn current(&self) -> u32 {
        let spec = self.deployment.as_ref().and_then(|live| live.spec.as_ref());
        // The API server puts a 1 where nothing is said.
        let replicas = spec.map_or(0, |spec| spec.replicas.unwrap_or(1));
        u32::try_from(replicas).unwrap_or(0)
    }
}

/// Looks around. What keeps the Worker from doing anything comes back as the reason for not being ready.
pub(super) async fn observe(
    desk: &Desk,
    worker: &Worker,
    namespace: &str,
) -> Result<std::result::Result<World, Reason>> {
    let context = &desk.context;
    let (queues, missing) = queues(context, worker, namespace)?;
    let missing = combined(&missing);
    if let (true, Some(missing)) = (queues.is_empty(), &missing) {
        return Ok(Err(missing.clone()));
    }
    let name = worker.name_any();
    let deployment = live(context, &desk.deployments, namespace, &name).await?;
    let deployment = newest(deployment, desk.applied(worker));
    let mounted =
        deployment.as_deref().filter(|_| missing.is_some()).map(build::brokers_of).unwrap_or_default();
    let is_there = |broker: &str| context.lookup.broker(namespace, broker).is_some();
    let brokers = brokers(&queues, mounted, is_there);
    let config_map = live(context, &desk.config_maps, namespace, &build::policy_name(&name)).await?;
    let claims = [
        seat::claim(worker, label::WORKER, deployment.as_deref()),
        seat::claim(worker, label::WORKER, config_map.as_deref()),
    ];
    if let Some(reason) = claims.into_iter().find_map(Claim::into_reason) {
        return Ok(Err(reason));
    }
    let demands = demands(context, worker, &queues, &desk.workers).await;
    Ok(Ok(World { queues, missing, brokers, demands, deployment, config_map }))
}

/// The Brokers of `queues`, each once, in order. Those in `mounted`, which the pods have, stay while they are there: that a
/// Queue is missing for a while rolls no pods.
fn brokers(
    queues: &[BoundQueue],
    mounted: Vec<BrokerSecrets>,
    is_there: impl Fn(&str) -> bool,
) -> Vec<BrokerSecrets> {
    let mut brokers: Vec<_> = queues.iter().map(|queue| queue.secrets.clone()).collect();
    for kept in mounted {
        if is_there(&kept.broker) && !brokers.iter().any(|bound| bound.broker == kept.broker) {
            brokers.push(kept);
        }
    }
    brokers.sort_by(|one, other| one.broker.cmp(&other.broker));
    brokers.dedup();
    brokers
}

/// All that is missing in one reason: that of the first, and what each of them says.
fn combined(missing: &[Reason]) -> Option<Reason> {
    let first = missing.first()?;
    let messages: Vec<_> = missing.iter().map(|reason| reason.message.as_str()).collect();
    Some(Reason { message: messages.join("; "), ..first.clone() })
}

/// The Worker's queues that it can work on, and what is missing for the others.
fn queues(context: &Context, worker: &Worker, namespace: &str) -> Result<(Vec<BoundQueue>, Vec<Reason>)> {
    let (mut queues, mut missing) = (Vec::new(), Vec::new());
    for reference in &worker.spec.queues {
        match bound(context, reference, namespace)? {
            Ok(queue) => queues.push(queue),
            Err(reason) => missing.push(reason),
        }
    }
    Ok((queues, missing))
}

fn bound(
    context: &Context,
    reference: &WorkerQueue,
    namespace: &str,
) -> Result<std::result::Result<BoundQueue, Reason>> {
    let name = &reference.name;
    let Some(queue) = context.lookup.queue(namespace, name) else {
        let message = format!("there is no Queue {name:?} in this namespace");
        return Ok(Err(Reason::unknown("WaitingForQueue", message)));
    };
    let broker = queue.spec.broker_ref.name.clone();
    let Some(found) = context.lookup.broker(namespace, &broker) else {
        let message = format!("there is no Broker {broker:?}, which Queue {name:?} is on, in this namespace");
        return Ok(Err(Reason::unknown("WaitingForBroker", message)));
    };
    let secrets = BrokerSecrets::of(&found);
    let Some(via) = secrets.via(&found) else {
        let message = format!("Broker {broker:?}, which Queue {name:?} is on, has no address yet");
        return Ok(Err(Reason::unknown("WaitingForBroker", message)));
    };
    Ok(Ok(BoundQueue {
        physical: crate::queue::physical_name(&context.settings.installation, namespace, name)?,
        name: name.clone(),
        weight: reference.weight,
        queue,
        broker,
        via,
        secrets,
    }))
}

/// An object as the watch saw it last. That the watch hasn't seen it means nothing: it may be younger than that.
async fn live<K>(context: &Context, store: &Store<K>, namespace: &str, name: &str) -> Result<Option<Arc<K>>>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + 'static,
{
    if let Some(seen) = store.get(&ObjectRef::new(name).within(namespace)) {
        return Ok(Some(seen));
    }
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(name).await;
    let found = found.map_err(Error::api(format!("get {} {name:?}", K::kind(&()))))?;
    Ok(found.map(Arc::new))
}

/// What was applied last, if the watch lags behind it.
fn newest(seen: Option<Arc<Deployment>>, applied: Option<Arc<Deployment>>) -> Option<Arc<Deployment>> {
    match (seen, applied) {
        (Some(seen), Some(applied))
            if seen.metadata.uid == applied.metadata.uid
                && seen.metadata.generation < applied.metadata.generation =>
        {
            Some(applied)
        }
        (seen, _) => seen,
    }
}

async fn demands(
    context: &Context,
    worker: &Worker,
    queues: &[BoundQueue],
    workers: &Store<Worker>,
) -> Vec<Demand> {
    let namespace = worker.namespace().unwrap_or_default();
    let all = workers.state();
    let counted = queues.iter().map(|bound| {
        let connection = context.connections.get(&namespace, &bound.broker);
        let share = share(worker, &bound.name, &all);
        async move {
            let stats = stats(connection, &bound.physical, policy::rests(&bound.queue)).await;
            demand(&bound.queue, &stats, share, Timestamp::now())
        }
    });
    join_all(counted).await
}

async fn stats(connection: Option<Connection>, queue: &QueueName, rests: bool) -> QueueStats {
    let Some(connection) = connection else {
        return QueueStats::default();
    };
    match tokio::time::timeout(STATS_TIMEOUT, connection.driver.stats(queue)).await {
        Ok(Ok(stats)) => stats,
        // Of a queue that stands still the broker may have nothing, and then there is nothing to do in it.
        Ok(Err(error)) if error.kind == ErrorKind::NotFound && rests => nothing(),
        // Unknown is not zero: nothing is filled in.
        Ok(Err(error)) => {
            tracing::debug!(%queue, %error, "a queue could not be counted");
            QueueStats::default()
        }
        Err(_elapsed) => QueueStats::default(),
    }
}

/// The counts of a queue that isn't there.
fn nothing() -> QueueStats {
    QueueStats { ready: Some(0), active: Some(0), blocked: Some(0), ..QueueStats::default() }
}

fn demand(queue: &Queue, stats: &QueueStats, share: u64, now: Timestamp) -> Demand {
    let seconds = stats.service_time_ms.map(|millis| millis / 1000.0);
    Demand {
        ready: stats.ready,
        active: stats.active,
        blocked: match queue.spec.ordering {
            // Where there are no lines nothing is behind; not every broker says so.
            Ordering::BestEffort => Some(0),
            Ordering::Fifo => stats.blocked,
        },
        service_time: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        due_in: stats.next_due_at.map(|due| due.since(now)),
        suspended: policy::rests(queue),
        share,
    }
}

/// The part of a queue that falls to `worker`, in thousandths, by capacity.
fn share(worker: &Worker, queue: &str, all: &[Arc<Worker>]) -> u64 {
    let capacity = |worker: &Worker| {
        let most = worker.spec.replicas.unwrap_or(worker.spec.scaling.max_replicas);
        u64::from(most) * u64::from(worker.spec.concurrency)
    };
    let others = all.iter().filter(|other| {
        other.namespace() == worker.namespace()
            && other.metadata.uid != worker.metadata.uid
            && other.metadata.deletion_timestamp.is_none()
            && other.spec.queues.iter().any(|reference| reference.name == queue)
    });
    let mine = capacity(worker);
    let total = mine + others.map(|other| capacity(other)).sum::<u64>();
    (mine * 1000).checked_div(total).map_or(1000, |part| match part {
        // However small its part, it is one.
        0 if mine > 0 => 1,
        part => part,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fixture;
    use serde_json::json;

    fn named(name: &str, spec: &serde_json::Value) -> Arc<Worker> {
        let mut worker = fixture::worker(spec);
        worker.metadata.name = Some(name.to_owned());
        worker.metadata.uid = Some(name.to_owned());
        Arc::new(worker)
    }

    #[test]
    fn a_queue_is_shared_by_capacity() {
        let big = named("big", &json!({ "concurrency": 30, "scaling": { "maxReplicas": 10 } }));
        let small = named("small", &json!({ "concurrency": 10, "scaling": { "maxReplicas": 10 } }));
        let pinned = named("pinned", &json!({ "concurrency": 10, "replicas": 0 }));
        let other = named("other", &json!({ "queues": [{ "name": "images" }] }));
        let mut leaving = (*named("leaving", &json!({}))).clone();
        leaving.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let mut elsewhere = (*named("elsewhere", &json!({}))).clone();
        elsewhere.metadata.namespace = Some("prod".to_owned());
        let all = [
            big.clone(),
            small.clone(),
            pinned.clone(),
            other.clone(),
            Arc::new(leaving),
            Arc::new(elsewhere),
        ];
        assert_eq!(share(&big, "emails", &all), 750);
        assert_eq!(share(&small, "emails", &all), 250);
        assert_eq!(share(&pinned, "emails", &all), 0);
        assert_eq!(share(&other, "images", &all), 1000);
        assert_eq!(share(&pinned, "emails", std::slice::from_ref(&pinned)), 1000);
        // The watch of Workers may be behind.
        assert_eq!(share(&small, "emails", &[]), 1000);
    }

    #[test]
    fn a_queue_that_is_missing_rolls_no_pods() {
        let queues = [fixture::bound("emails", 1, &json!({}))];
        let mounted =
            || vec![fixture::secrets("default"), fixture::secrets("gone"), fixture::secrets("other")];
        let names = |brokers: Vec<BrokerSecrets>| -> Vec<String> {
            brokers.into_iter().map(|broker| broker.broker).collect()
        };
        assert_eq!(names(brokers(&queues, mounted(), |broker| broker != "gone")), ["default", "other"]);
        // The Secret of a Broker that is gone can't be mounted any more.
        assert_eq!(names(brokers(&queues, mounted(), |_| false)), ["default"]);
        assert_eq!(names(brokers(&queues, Vec::new(), |_| true)), ["default"]);
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let missing = [
            Reason::unknown("WaitingForQueue", "there is no Queue \"a\""),
            Reason::unknown("WaitingForBroker", "there is no Broker \"b\""),
        ];
        let all = combined(&missing).unwrap();
        assert_eq!(all.reason, "WaitingForQueue");
        assert_eq!(all.message, "there is no Queue \"a\"; there is no Broker \"b\"");
        assert_eq!(combined(&[]), None);
    }

    #[test]
    fn numbers_that_nobody_told_stay_unknown() {
        let now = Timestamp::from_millis(1000);
        let queue = |spec| fixture::bound("emails", 1, &spec).queue;
        let (loose, strict) = (queue(json!({})), queue(json!({ "ordering": "Fifo" })));
        let unknown = demand(&strict, &QueueStats::default(), 1000, now);
        assert_eq!((unknown.ready, unknown.active, unknown.service_time), (None, None, None));
        assert_eq!(unknown.blocked, None);
        assert_eq!(demand(&loose, &QueueStats::default(), 1000, now).blocked, Some(0));
        let line = QueueStats { blocked: Some(7), ..QueueStats::default() };
        assert_eq!(demand(&strict, &line, 1000, now).blocked, Some(7));
        let stats = |service: f64| QueueStats {
            service_time_ms: Some(service),
            next_due_at: Some(Timestamp::from_millis(3500)),
            ..QueueStats::default()
        };
        let told = demand(&loose, &stats(250.0), 1000, now);
        assert_eq!(told.service_time, Some(Duration::from_millis(250)));
        assert_eq!(told.due_in, Some(Duration::from_millis(2500)));
        for nonsense in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            assert_eq!(demand(&loose, &stats(nonsense), 1000, now).service_time, None, "{nonsense}");
        }
    }

    #[tokio::test]
    async fn a_queue_that_rests_and_is_not_there_holds_up_no_worker() {
        let name: QueueName = "here.shop.reports".parse().unwrap();
        let connection = || Connection {
            driver: Arc::new(longshore_drivers::memory::Memory::new()),
            backend_id: "data".to_owned(),
            broker_uid: "uid".to_owned(),
            fingerprint: String::new(),
        };
        let nothing = stats(Some(connection()), &name, true).await;
        assert_eq!((nothing.ready, nothing.active, nothing.blocked), (Some(0), Some(0), Some(0)));
        // It may be declared in a moment.
        assert_eq!(stats(Some(connection()), &name, false).await.ready, None);
        // Nobody knows.
        assert_eq!(stats(None, &name, true).await.ready, None);
    }

    #[test]
    fn what_was_applied_counts_until_the_watch_has_seen_it() {
        let of = |uid: &str, generation: i64| {
            let mut live = Deployment::default();
            live.metadata.uid = Some(uid.to_owned());
            live.metadata.generation = Some(generation);
            Some(Arc::new(live))
        };
        let generation = |live: Option<Arc<Deployment>>| live.and_then(|live| live.metadata.generation);
        assert_eq!(generation(newest(of("a", 2), of("a", 3))), Some(3));
        assert_eq!(generation(newest(of("a", 4), of("a", 3))), Some(4));
        assert_eq!(generation(newest(of("b", 1), of("a", 3))), Some(1));
        assert_eq!(generation(newest(None, of("a", 3))), None);
    }
}
