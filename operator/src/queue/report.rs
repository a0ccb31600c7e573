//! The status of a Queue, from what was seen of it. Pure.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use longshore_crds::{Depth, EffectivePolicy, Queue, QueueStatus, Reason, condition, set_condition};
use longshore_drivers::{QueueName, QueueStats};

/// What was seen of a queue.
#[derive(Debug)]
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
        status.effective =
            Some(EffectivePolicy { physical_name: name.to_string(), max_payload_bytes: *max_payload });
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
        dead: stats.dead,
    }
}

fn time(at: longshore_drivers::Timestamp) -> Option<Time> {
    // Whole seconds: finer ones would only make writes.
    Timestamp::from_second(at.as_millis().div_euclid(1000)).ok().map(Time)
}

/// Whether the change deserves a write.
pub(super) fn worth_writing(old: Option<&QueueStatus>, new: &QueueStatus) -> bool {
    old != Some(new)
}
