//! What there is to know about a Worker before deciding anything.

use super::scale::Demand;
use crate::{
    connections::Connection,
    context::Context,
    error::{Error, Result},
};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt, runtime::reflector::Store};
use longshore_crds::{Queue, Worker};
use longshore_drivers::{QueueName, QueueStats, Timestamp};
use std::{sync::Arc, time::Duration};

/// How long a broker may take to count.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);

/// A queue of a Worker, with all that belongs to it.
#[derive(Debug, Clone)]
pub(super) struct BoundQueue {
    pub(super) name: String,
    pub(super) weight: u32,
    pub(super) queue: Arc<Queue>,
    pub(super) broker: String,
    pub(super) url: String,
    pub(super) physical: QueueName,
}

/// Something that isn't there yet: reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The Worker's queues, or what is missing.
pub(super) fn queues(
    context: &Context,
    worker: &Worker,
    namespace: &str,
) -> Result<std::result::Result<Vec<BoundQueue>, Missing>> {
    let mut bound = Vec::new();
    for reference in &worker.spec.queues {
        let Some(queue) = context.lookup.queue(namespace, &reference.name) else {
            let message = format!("there is no Queue {:?} in this namespace", reference.name);
            return Ok(Err(Missing { reason: "WaitingForQueue", message }));
        };
        let broker = queue.spec.broker_ref.name.clone();
        let found = context.lookup.broker(namespace, &broker);
        let Some(url) = found.and_then(|broker| broker.status.as_ref()?.url.clone()) else {
            let message = format!("Broker {broker:?} of Queue {:?} is not there yet", reference.name);
            return Ok(Err(Missing { reason: "WaitingForBroker", message }));
        };
        let physical =
            crate::queue::physical_name(&context.settings.installation, namespace, &reference.name)?;
        bound.push(BoundQueue {
            name: reference.name.clone(),
            weight: reference.weight,
            queue,
            broker,
            url,
            physical,
        });
    }
    Ok(Ok(bound))
}

/// What the queues demand of this Worker, and what they hold in all: waiting and running.
pub(super) async fn demands(
    context: &Context,
    worker: &Worker,
    queues: &[BoundQueue],
    workers: &Store<Worker>,
) -> Vec<Demand> {
    let namespace = worker.namespace().unwrap_or_default();
    let all = workers.state();
    let counted = queues.iter().map(|bound| {
        let connection = context.connections.get(&namespace, &bound.broker);
        let share = share(worker, &namespace, &bound.name, &all);
        async move { demand(&stats(connection, &bound.physical).await, share, bound.queue.spec.suspend) }
    });
    join_all(counted).await
}

async fn stats(connection: Option<Connection>, queue: &QueueName) -> QueueStats {
    let Some(connection) = connection else {
        return QueueStats::default();
    };
    match tokio::time::timeout(STATS_TIMEOUT, connection.driver.stats(queue)).await {
        Ok(Ok(stats)) => stats,
        // Unknown is not zero: nothing is filled in.
        Ok(Err(_)) | Err(_) => QueueStats::default(),
    }
}

fn demand(stats: &QueueStats, share: u64, suspended: bool) -> Demand {
    let service = stats.service_time_ms.filter(|time| time.is_finite() && *time >= 0.0);
    Demand {
        ready: stats.ready,
        active: stats.active,
        service_time: service.map(|time| Duration::from_secs_f64(time / 1000.0)),
        due_in: stats.next_due_at.map(|due| due.since(Timestamp::now())),
        suspended,
        share,
    }
}

/// The part of a queue that falls to `worker`, in thousandths, by capacity.
fn share(worker: &Worker, namespace: &str, queue: &str, all: &[Arc<Worker>]) -> u64 {
    let capacity = |worker: &Worker| {
        let most = worker.spec.replicas.unwrap_or(worker.spec.scaling.max_replicas);
        u64::from(most) * u64::from(worker.spec.concurrency)
    };
    let on_queue = |other: &&Arc<Worker>| {
        other.namespace().as_deref() == Some(namespace)
            && other.metadata.deletion_timestamp.is_none()
            && other.spec.queues.iter().any(|reference| reference.name == queue)
    };
    let total: u64 = all.iter().filter(on_queue).map(|other| capacity(other)).sum();
    if total == 0 { 1000 } else { (capacity(worker) * 1000).div_ceil(total).min(1000) }
}

/// The Deployment as it is.
pub(super) async fn deployment(context: &Context, namespace: &str, name: &str) -> Result<Option<Deployment>> {
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), namespace);
    api.get_opt(name).await.map_err(Error::api(format!("get Deployment {name:?}")))
}
