//! The policy file of a Worker's sidecars. Pure.

use super::{inject::token_dir, observe::BoundQueue};
use longshore_crds::{QueueSpec, WorkerSpec};
use longshore_drivers::policy::{BrokerAccess, Handler, QueuePolicy, RetryPolicy, WorkerPolicy};

/// The policy that the sidecars of this Worker keep to.
pub(super) fn policy(
    namespace: &str,
    worker: &str,
    spec: &WorkerSpec,
    queues: &[BoundQueue],
    draining: Vec<String>,
) -> WorkerPolicy {
    let mut brokers: Vec<BrokerAccess> = queues
        .iter()
        .map(|queue| BrokerAccess {
            name: queue.broker.clone(),
            url: queue.url.clone(),
            token_file: format!("{}/current", token_dir(&queue.broker)),
        })
        .collect();
    brokers.sort_by(|one, other| one.name.cmp(&other.name));
    brokers.dedup();
    WorkerPolicy {
        version: WorkerPolicy::VERSION,
        namespace: namespace.to_owned(),
        worker: worker.to_owned(),
        concurrency: spec.concurrency,
        drain_timeout: spec.drain_timeout.get(),
        handler: match &spec.handler.http {
            Some(http) => Handler::Http { port: http.port, path: http.path.clone() },
            None => Handler::Pull {},
        },
        brokers,
        queues: queues.iter().map(queue).collect(),
        draining,
    }
}

fn queue(bound: &BoundQueue) -> QueuePolicy {
    let spec: &QueueSpec = &bound.queue.spec;
    QueuePolicy {
        name: bound.name.clone(),
        physical: bound.physical.clone(),
        broker: bound.broker.clone(),
        weight: bound.weight,
        suspended: spec.suspend,
        lease: spec.lease.get(),
        timeout: spec.timeout.get(),
        retry: RetryPolicy {
            max_attempts: spec.retry.max_attempts,
            initial: spec.retry.backoff.initial.get(),
            multiplier: spec.retry.backoff.multiplier,
            max: spec.retry.backoff.max.get(),
            jitter_percent: spec.retry.backoff.jitter_percent,
        },
    }
}
