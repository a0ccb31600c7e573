//! What the policy means once its brokers are connected.

use http::Uri;
use longshore_drivers::{
    DynDriver, QueueName,
    policy::{Handler, QueuePolicy, WorkerPolicy},
};
use std::{fmt, sync::Arc};

/// The policy and the queues that can be worked on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// The policy; none before the first was read.
    pub(crate) policy: Option<Arc<WorkerPolicy>>,
    /// The queues whose broker is connected.
    pub(crate) lanes: Vec<Arc<Lane>>,
    /// Where jobs are pushed to; none when the app pulls.
    pub(crate) target: Option<Target>,
}

impl Plan {
    /// Jobs at once.
    pub(crate) fn concurrency(&self) -> u32 {
        self.policy.as_ref().map_or(0, |policy| policy.concurrency)
    }

    /// Whether `pod` shall not claim any more.
    pub(crate) fn is_victim(&self, pod: &str) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.draining.iter().any(|victim| victim == pod))
    }

    /// The queue that the app calls `name`.
    pub(crate) fn lane(&self, name: &str) -> Option<&Arc<Lane>> {
        self.lanes.iter().find(|lane| lane.queue.name == name)
    }
}

/// One queue and its broker.
pub(crate) struct Lane {
    /// What stays the same about it.
    pub(crate) key: LaneKey,
    /// Its policy.
    pub(crate) queue: QueuePolicy,
    /// The namespace of the worker.
    pub(crate) namespace: String,
    /// The connection to its broker.
    pub(crate) driver: DynDriver,
}

impl fmt::Debug for Lane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Lane").field("queue", &self.queue.name).finish_non_exhaustive()
    }
}

/// What stays the same about a queue while its policy changes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneKey {
    pub(crate) broker: String,
    pub(crate) physical: QueueName,
}

impl Lane {
    /// The lane of `queue` on `driver`.
    pub(crate) fn new(queue: QueuePolicy, namespace: String, driver: DynDriver) -> Self {
        let key = LaneKey { broker: queue.broker.clone(), physical: queue.physical.clone() };
        Self { key, queue, namespace, driver }
    }
}

/// Where jobs are pushed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The port on localhost.
    pub(crate) port: u16,
    /// The whole address.
    pub(crate) uri: Uri,
}

impl Target {
    /// The target of `handler`; none when the app pulls.
    pub(crate) fn of(handler: &Handler) -> Result<Option<Self>, http::uri::InvalidUri> {
        match handler {
            Handler::Pull {} => Ok(None),
            Handler::Http { port, path } => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                let uri = format!("http://127.0.0.1:{port}{slash}{path}").parse()?;
                Ok(Some(Self { port: *port, uri }))
            }
        }
    }
}
