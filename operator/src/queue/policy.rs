//! What a Queue's spec means to its broker.

use crate::error::{Error, Result};
use longshore_crds::{Ordering, QueueSpec};
use longshore_drivers::{Capabilities, ErrorKind, QueueName, QueueSettings};

/// The name of a Queue on its broker.
pub(crate) fn physical_name(installation: &str, namespace: &str, name: &str) -> Result<QueueName> {
    QueueName::physical(installation, namespace, name)
        .map_err(|error| longshore_drivers::Error::new(ErrorKind::Invalid, error.to_string()))
        .map_err(Error::broker("name the queue"))
}

/// The part of the policy that the broker enforces.
pub(crate) fn settings(spec: &QueueSpec) -> QueueSettings {
    QueueSettings {
        max_depth: spec.max_depth,
        max_deliveries: spec.max_deliveries,
        retain_completed: spec.retention.completed.get(),
        retain_dead: spec.retention.dead.get(),
        paused: spec.suspend,
        ordering: match spec.ordering {
            Ordering::BestEffort => longshore_drivers::Ordering::BestEffort,
            Ordering::Fifo => longshore_drivers::Ordering::Fifo,
        },
    }
}

/// What `spec` asks for and its broker can't do, with the name of the capability. Nothing weaker is put in its place.
pub(super) fn lacking(spec: &QueueSpec, able: &Capabilities) -> Option<String> {
    match spec.ordering {
        Ordering::Fifo if !able.fifo => {
            Some("fifo: the broker can't keep jobs in order; ordering: Fifo needs another one".to_owned())
        }
        Ordering::BestEffort | Ordering::Fifo => None,
    }
}
