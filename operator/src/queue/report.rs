//! The status of a Queue, from what was seen of it. Pure.

use crate::reporting::{self, Writing};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use longshore_crds::{
    Depth, EffectivePolicy, EffectiveValue, Queue, QueueSpec, QueueStatus, Reason, ValueSource, condition,
    set_condition,
};
use longshore_drivers::{QueueName, QueueStats};
use std::time::Duration;

/// What was seen of a queue.
#[derive(Debug, Clone)]
pub(super) enum Observation {
    /// There is no such Broker.
    NoBroker,
    /// The Broker is there, but not connected yet.
    NotConnected,
    /// The broker doesn't answer.
    Unreachable(String),
    /// The data belongs to another Queue or installation.
    OwnedByAnother(String),
    /// The broker holds other data than before.
    BackendChanged { known: String, found: String },
    /// The data was written under another ordering.
    OrderingDiffers(String),
    /// The spec asks for something that the broker can't do.
    Unsupported(String),
    /// Declared and counted.
    Seen { name: QueueName, stats: QueueStats, backend_id: String, max_payload: u64 },
}

/// The status that `observation` amounts to.
pub(super) fn status(queue: &Queue, observation: &Observation, now: Timestamp) -> QueueStatus {
    let mut status = queue.status.clone().unwrap_or_default();
    status.observed_generation = queue.metadata.generation;
    let broker = &queue.spec.broker_ref.name;
    let ready = match observation {
        Observation::NoBroker => {
            Reason::unknown("WaitingForBroker", format!("there is no Broker {broker:?} in this namespace"))
        }
        Observation::NotConnected => {
            Reason::unknown("WaitingForBroker", format!("Broker {broker:?} is not connected yet"))
        }
        Observation::Unreachable(why) => Reason::no("BrokerUnreachable", why.clone()),
        Observation::OwnedByAnother(why) => {
            Reason::no("OwnedByAnother", format!("{why}; set spec.adopt to take it over"))
        }
        Observation::BackendChanged { known, found } => Reason::no(
            "BackendChanged",
            format!(
                "the broker holds data {found}, the queue was declared on {known}; set spec.adopt to go on with it"
            ),
        ),
        Observation::OrderingDiffers(why) => Reason::no(
            "OrderingDiffers",
            format!("{why}; make the Queue again with the ordering of its data"),
        ),
        Observation::Unsupported(what) => Reason::no("Unsupported", what.clone()),
        Observation::Seen { .. } if queue.spec.suspend => {
            Reason::yes("Suspended", "accepts jobs, starts none")
        }
        Observation::Seen { .. } => Reason::yes("Declared", "accepts and starts jobs"),
    };
    // Unknown is not zero: numbers that nobody could read are taken away.
    status.depth = None;
    status.oldest_ready_at = None;
    status.next_due_at = None;
    if let Observation::Seen { name, stats, backend_id, max_payload } = observation {
        status.backend_id = Some(backend_id.clone());
        status.depth = Some(depth(stats));
        status.oldest_ready_at = stats.oldest_ready_at.and_then(time);
        status.next_due_at = stats.next_due_at.and_then(time);
        status.effective = Some(effective(&queue.spec, name, *max_payload));
    }
    set_condition(&mut status.conditions, condition::READY, ready, queue.metadata.generation, now);
    status
}

fn depth(stats: &QueueStats) -> Depth {
    Depth {
        ready: stats.ready,
        scheduled: stats.scheduled,
        active: stats.active,
        retrying: stats.retrying,
        blocked: stats.blocked,
        dead: stats.dead,
    }
}

fn time(at: longshore_drivers::Timestamp) -> Option<Time> {
    // Whole seconds: finer ones would only make writes.
    Timestamp::from_second(at.as_millis().div_euclid(1000)).ok().map(Time)
}

fn effective(spec: &QueueSpec, name: &QueueName, max_payload: u64) -> EffectivePolicy {
    let usual = written(&QueueSpec::on(spec.broker_ref.name.as_str()));
    let mut values: Vec<_> = written(spec)
        .into_iter()
        .zip(usual)
        .map(|((name, value), (_, usual))| {
            let source = if value == usual { ValueSource::Default } else { ValueSource::Spec };
            EffectiveValue { name: name.to_owned(), value, source }
        })
        .collect();
    values.push(EffectiveValue {
        name: "maxPayloadBytes".to_owned(),
        value: max_payload.to_string(),
        source: ValueSource::Broker,
    });
    EffectivePolicy { physical_name: name.to_string(), max_payload_bytes: max_payload, values }
}

/// The policy of a spec by the names of its fields.
fn written(spec: &QueueSpec) -> Vec<(&'static str, String)> {
    let (retry, backoff) = (&spec.retry, &spec.retry.backoff);
    vec![
        ("ordering", format!("{:?}", spec.ordering)),
        ("lease", spec.lease.to_string()),
        ("timeout", spec.timeout.to_string()),
        ("retry.maxAttempts", retry.max_attempts.to_string()),
        ("retry.backoff.initial", backoff.initial.to_string()),
        ("retry.backoff.multiplier", backoff.multiplier.to_string()),
        ("retry.backoff.max", backoff.max.to_string()),
        ("retry.backoff.jitterPercent", backoff.jitter_percent.to_string()),
        ("maxDeliveries", spec.max_deliveries.to_string()),
        ("maxDepth", spec.max_depth.to_string()),
        ("retention.completed", spec.retention.completed.to_string()),
        ("retention.dead", spec.retention.dead.to_string()),
        ("deletionPolicy", format!("{:?}", spec.deletion_policy)),
    ]
}

/// Whether the change deserves a write now. `since` tells how long ago the last one was.
pub(super) fn writing(old: Option<&QueueStatus>, new: &QueueStatus, since: Option<Duration>) -> Writing {
    let Some(old) = old else { return Writing::Now };
    reporting::writing(old != new, essence(old) != essence(new), since)
}

/// The status without numbers, words and times: of a number only whether it is zero.
fn essence(status: &QueueStatus) -> QueueStatus {
    let sign = |number: Option<u64>| number.map(|number| number.min(1));
    let depth = status.depth.as_ref().map(|depth| Depth {
        ready: sign(depth.ready),
        scheduled: sign(depth.scheduled),
        active: sign(depth.active),
        retrying: sign(depth.retrying),
        blocked: sign(depth.blocked),
        dead: sign(depth.dead),
    });
    QueueStatus {
        conditions: status.conditions.iter().map(reporting::quiet).collect(),
        depth,
        oldest_ready_at: None,
        next_due_at: None,
        ..status.clone()
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
