//! What this process knows of workflows beyond what the watch has shown it.
//!
//! Losing it costs a little repeated work and nothing else: it holds the newest committed object, so that a slow watch
//! doesn't make the next commit fail, and events that aren't worth a write of their own.

use kube::ResourceExt;
use longshore_crds::Workflow;
use longshore_workflow::Event;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Default)]
struct Known {
    committed: Option<Arc<Workflow>>,
    unwritten: Vec<Event>,
}

/// By uid.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    known: Mutex<HashMap<String, Known>>,
}

impl Memory {
    /// The newer of `seen` and what was committed last.
    pub(super) fn newest(&self, uid: &str, seen: Arc<Workflow>) -> Arc<Workflow> {
        let known = self.lock();
        match known.get(uid).and_then(|known| known.committed.clone()) {
            Some(committed) if version(&committed) > version(&seen) => committed,
            _ => seen,
        }
    }

    /// Remembers what was committed.
    pub(super) fn committed(&self, uid: &str, object: Arc<Workflow>) {
        self.lock().entry(uid.to_owned()).or_default().committed = Some(object);
    }

    /// Somebody else changed the object: only the watch knows what it is now.
    pub(super) fn outdated(&self, uid: &str) {
        self.lock().entry(uid.to_owned()).or_default().committed = None;
    }

    /// Events that were folded into no written status yet.
    pub(super) fn unwritten(&self, uid: &str) -> Vec<Event> {
        self.lock().get(uid).map(|known| known.unwritten.clone()).unwrap_or_default()
    }

    /// Replaces the events that were folded into no written status yet.
    pub(super) fn set_unwritten(&self, uid: &str, events: Vec<Event>) {
        self.lock().entry(uid.to_owned()).or_default().unwritten = events;
    }

    /// Forgets a workflow.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Versions of one object rise; Kubernetes guarantees that they compare as numbers.
fn version(workflow: &Workflow) -> u128 {
    workflow.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0)
}
