//! Completions between their broker and their workflow.
//!
//! A completion waits here until the status that contains it was committed; only then is it acknowledged.

use crate::connections::BrokerKey;
use longshore_drivers::Completion;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::sync::broadcast;

/// The job's place, as the completion's context tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Origin {
    /// The namespace of the workflow.
    #[serde(rename = "ns")]
    pub(crate) namespace: String,
    /// The name of the workflow.
    pub(crate) name: String,
    /// The uid of the workflow.
    pub(crate) uid: String,
    /// Round and place, in the machine's own form.
    pub(crate) place: String,
}

/// A completion and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) broker: BrokerKey,
    pub(crate) origin: Origin,
    pub(crate) completion: Completion,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    arrived: Vec<Arrived>,
}

/// Completions by the uid of their workflow.
#[derive(Debug)]
pub(crate) struct Inbox {
    waiting: Mutex<HashMap<String, Waiting>>,
    caught_up: Mutex<BTreeSet<BrokerKey>>,
    /// Namespace and name of a workflow that has something to look at.
    arrivals: broadcast::Sender<(String, String)>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            caught_up: Mutex::default(),
            arrivals: broadcast::channel(16 * 1024).0,
        }
    }
}

impl Inbox {
    /// Puts completions in and tells who listens.
    pub(super) fn put(&self, arrivals: Vec<Arrived>) {
        let mut woken = BTreeSet::new();
        {
            let mut waiting = lock(&self.waiting);
            for arrived in arrivals {
                woken.insert((arrived.origin.namespace.clone(), arrived.origin.name.clone()));
                let entry = waiting
                    .entry(arrived.origin.uid.clone())
                    .or_insert_with(|| Waiting { since: Instant::now(), arrived: Vec::new() });
                // Handed out again after its lease: the newer receipt is the one that acknowledges.
                entry.arrived.retain(|old| old.completion.job != arrived.completion.job);
                entry.arrived.push(arrived);
            }
        }
        for key in woken {
            self.wake(key);
        }
    }

    /// Puts back what was taken and not committed, unless a newer copy came meanwhile. Wakes nobody: who takes it back
    /// looks again by itself.
    pub(super) fn put_back(&self, arrivals: &[Arrived]) {
        let mut waiting = lock(&self.waiting);
        for arrived in arrivals {
            let entry = waiting
                .entry(arrived.origin.uid.clone())
                .or_insert_with(|| Waiting { since: Instant::now(), arrived: Vec::new() });
            if !entry.arrived.iter().any(|newer| newer.completion.job == arrived.completion.job) {
                entry.arrived.push(arrived.clone());
            }
        }
    }

    /// Has a workflow looked at.
    pub(super) fn wake(&self, key: (String, String)) {
        drop(self.arrivals.send(key));
    }

    /// Workflows that have something to look at.
    pub(super) fn arrivals(&self) -> broadcast::Receiver<(String, String)> {
        self.arrivals.subscribe()
    }

    /// Takes what waits for `uid`, in the order in which it was settled.
    pub(super) fn take(&self, uid: &str) -> Vec<Arrived> {
        let mut arrived = lock(&self.waiting).remove(uid).map(|waiting| waiting.arrived).unwrap_or_default();
        arrived.sort_by(|one, other| {
            let key = |it: &Arrived| (it.completion.settled_at, it.completion.job.clone());
            key(one).cmp(&key(other))
        });
        arrived
    }

    /// How many completions wait.
    pub(super) fn len(&self) -> usize {
        lock(&self.waiting).values().map(|waiting| waiting.arrived.len()).sum()
    }

    /// Workflows whose completions have waited since before `since`: nobody may be there to take them.
    pub(super) fn untaken(&self, since: Instant) -> Vec<Origin> {
        let waiting = lock(&self.waiting);
        let old = waiting.values().filter(|waiting| waiting.since < since);
        old.filter_map(|waiting| waiting.arrived.first().map(|arrived| arrived.origin.clone())).collect()
    }

    /// Remembers that the completions of `broker` were read to their end once.
    pub(super) fn set_caught_up(&self, broker: &BrokerKey) -> bool {
        lock(&self.caught_up).insert(broker.clone())
    }

    /// Whether the completions of `broker` were read to their end once since this process leads.
    pub(super) fn is_caught_up(&self, broker: &BrokerKey) -> bool {
        lock(&self.caught_up).contains(broker)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
