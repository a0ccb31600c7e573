//! What this process knows of workflows beyond what the watch has shown it.
//!
//! Losing it costs a little repeated work and nothing else: it holds the newest committed object, so that a slow watch
//! doesn't make the next commit fail, and events that aren't worth a write of their own.

use kube::ResourceExt;
use longshore_crds::Workflow;
use longshore_workflow::{Event, Millis};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What holds a workflow up for this long is worth telling.
const TELL_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Known {
    committed: Option<Arc<Workflow>>,
    /// Objects of this version and older ones are not what is stored any more.
    outdated: u128,
    /// With the times at which they happened.
    unwritten: Vec<(Millis, Event)>,
    held_up: Option<(Instant, String)>,
    /// When the status was written last, and its bytes.
    written: Option<(Instant, usize)>,
}

/// By uid.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    known: Mutex<HashMap<String, Known>>,
}

impl Memory {
    /// The newer of `seen` and what was committed last; nothing when both are known to be old.
    pub(super) fn newest(&self, uid: &str, seen: Arc<Workflow>) -> Option<Arc<Workflow>> {
        let known = self.lock();
        let Some(known) = known.get(uid) else { return Some(seen) };
        let newest = match &known.committed {
            Some(committed) if version(committed) > version(&seen) => committed.clone(),
            _ => seen,
        };
        (version(&newest) > known.outdated).then_some(newest)
    }

    /// Whether the watch has shown the newest object that is known.
    pub(super) fn is_seen(&self, uid: &str, seen: &Workflow) -> bool {
        let known = self.lock();
        let committed = known.get(uid).and_then(|known| known.committed.clone());
        committed.is_none_or(|committed| version(seen) >= version(&committed))
    }

    /// Remembers what was committed.
    pub(super) fn committed(&self, uid: &str, object: Arc<Workflow>) {
        self.lock().entry(uid.to_owned()).or_default().committed = Some(object);
    }

    /// Somebody else changed the object since it was as `used`.
    pub(super) fn outdated(&self, uid: &str, used: &Workflow) {
        let mut known = self.lock();
        let known = known.entry(uid.to_owned()).or_default();
        known.committed = None;
        known.outdated = known.outdated.max(version(used));
    }

    /// Events that were folded into no written status yet.
    pub(super) fn unwritten(&self, uid: &str) -> Vec<(Millis, Event)> {
        self.lock().get(uid).map(|known| known.unwritten.clone()).unwrap_or_default()
    }

    /// Replaces the events that were folded into no written status yet.
    pub(super) fn set_unwritten(&self, uid: &str, events: Vec<(Millis, Event)>) {
        self.lock().entry(uid.to_owned()).or_default().unwritten = events;
    }

    /// Notes what holds a workflow up, or that nothing does.
    pub(super) fn hold_up(&self, uid: &str, why: Option<&str>, now: Instant) {
        let mut known = self.lock();
        let known = known.entry(uid.to_owned()).or_default();
        known.held_up = why.map(|why| {
            let since = known.held_up.take().map_or(now, |(since, _)| since);
            (since, why.to_owned())
        });
    }

    /// What has held a workflow up for so long that people should know, and for how long.
    pub(super) fn held_up(&self, uid: &str, now: Instant) -> Option<(Duration, String)> {
        let known = self.lock();
        let (since, why) = known.get(uid)?.held_up.as_ref()?;
        let so_far = now.saturating_duration_since(*since);
        (so_far >= TELL_AFTER).then(|| (so_far, why.clone()))
    }

    /// When the status was written last, and how many bytes.
    pub(super) fn written(&self, uid: &str) -> Option<(Instant, usize)> {
        self.lock().get(uid)?.written
    }

    /// The status was written.
    pub(super) fn set_written(&self, uid: &str, at: Instant, bytes: usize) {
        self.lock().entry(uid.to_owned()).or_default().written = Some((at, bytes));
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

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_crds::WorkflowSpec;
    use serde_json::json;

    fn at(version: u64) -> Arc<Workflow> {
        let spec: WorkflowSpec = serde_json::from_value(
            json!({ "queueRef": { "name": "q" }, "steps": [{ "name": "s", "job": { "type": "t" } }] }),
        )
        .unwrap();
        let mut workflow = Workflow::new("w", spec);
        workflow.metadata.resource_version = Some(version.to_string());
        Arc::new(workflow)
    }

    fn newest(memory: &Memory, seen: u64) -> Option<String> {
        memory.newest("u", at(seen)).and_then(|object| object.resource_version())
    }

    #[test]
    fn the_newer_of_what_was_seen_and_committed_counts() {
        let memory = Memory::default();
        assert_eq!(newest(&memory, 9).as_deref(), Some("9"));
        memory.committed("u", at(10));
        assert_eq!(newest(&memory, 9).as_deref(), Some("10"), "versions are numbers");
        assert_eq!(newest(&memory, 11).as_deref(), Some("11"));
        assert!(!memory.is_seen("u", &at(9)) && memory.is_seen("u", &at(10)));
    }

    /// A state that is older than the stored one must not be acted upon: it doesn't know what was heard since.
    #[test]
    fn an_object_older_than_a_conflict_is_none() {
        let memory = Memory::default();
        memory.committed("u", at(10));
        memory.outdated("u", &at(10));
        assert_eq!(newest(&memory, 9), None);
        assert_eq!(newest(&memory, 10), None, "somebody changed it since");
        assert_eq!(newest(&memory, 11).as_deref(), Some("11"));
    }

    #[test]
    fn what_holds_up_is_told_after_a_while_and_forgotten_at_once() {
        let memory = Memory::default();
        let now = Instant::now();
        memory.hold_up("u", Some("no broker"), now);
        assert_eq!(memory.held_up("u", now), None);
        memory.hold_up("u", Some("still none"), now + TELL_AFTER);
        assert_eq!(memory.held_up("u", now + TELL_AFTER), Some((TELL_AFTER, "still none".to_owned())));
        memory.hold_up("u", None, now + TELL_AFTER);
        assert_eq!(memory.held_up("u", now + 2 * TELL_AFTER), None);
    }
}
