//! What a controller of Workers remembers between looks. Losing it makes scaling down a little later, nothing else.

use super::{
    pods::{Asker, Seen},
    scale::{Decision, Demand, SETTLE_BEFORE_DOWN},
    victims::{self, Told},
};
use crate::context::Context;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use longshore_crds::Worker;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A template that was refused is tried again this often: what refused it may have changed its mind.
const RETRY_REFUSED: Duration = Duration::from_secs(60);
/// What the pods said is worth something for this long.
const SAID_LATELY: Duration = Duration::from_secs(15);
/// After a hint a Worker is looked at often for this long.
const AWAKE: Duration = Duration::from_secs(3);

/// What a controller of Workers works with.
pub(super) struct Desk {
    pub(super) context: Arc<Context>,
    pub(super) workers: Store<Worker>,
    pub(super) deployments: Store<Deployment>,
    pub(super) config_maps: Store<ConfigMap>,
    pub(super) asker: Asker,
    memories: Mutex<HashMap<String, Memory>>,
    hints: Mutex<HashMap<String, Hint>>,
}

/// What is remembered of one Worker.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// When there last was something to do.
    pub(super) busy_at: Instant,
    /// What was wanted, in the order of time, each higher than all after it.
    highs: VecDeque<(Instant, u32)>,
    /// The service times that were seen last: they change only when jobs end.
    pace: Vec<Option<Duration>>,
    pub(super) applied: Option<Applied>,
    pub(super) refused: Option<Refused>,
    /// What the pods said when they were last asked.
    pub(super) pods: Vec<Seen>,
    /// Those were all of them.
    pub(super) asked_all: bool,
    pub(super) asked_at: Option<Instant>,
    /// Pods that shall claim nothing more.
    pub(super) told: Told,
    pub(super) scaled_at: Option<Timestamp>,
    pub(super) written_at: Option<Instant>,
}

/// The Deployment as it was applied last.
#[derive(Debug, Clone)]
pub(super) struct Applied {
    pub(super) wanted: String,
    pub(super) stored: Arc<Deployment>,
}

/// A Deployment that the API server didn't take.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) revision: String,
    pub(super) message: String,
    pub(super) at: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hint {
    /// Work came.
    work_at: Option<Instant>,
    /// Something came up.
    stirred_at: Option<Instant>,
    /// The next look is far away, so a hint has to cause one.
    asleep: bool,
}

impl Memory {
    /// A Worker that is new to this process may have been busy until now, with all its pods.
    fn new(now: Instant, current: u32) -> Self {
        Self {
            busy_at: now,
            highs: VecDeque::from([(now, current)]),
            pace: Vec::new(),
            applied: None,
            refused: None,
            pods: Vec::new(),
            asked_all: false,
            asked_at: None,
            told: Told::default(),
            scaled_at: None,
            written_at: None,
        }
    }

    /// Notices jobs that came and went between two looks.
    pub(super) fn notice(&mut self, demands: &[Demand], worked_at: Option<Instant>, now: Instant) {
        let pace: Vec<_> = demands.iter().map(|demand| demand.service_time).collect();
        if self.pace.len() == pace.len() && self.pace != pace {
            self.busy_at = now;
        }
        self.pace = pace;
        self.busy_at = self.busy_at.max(worked_at.unwrap_or(self.busy_at));
    }

    /// Whether the API server just refused this revision.
    pub(super) fn refuses(&self, revision: &str, now: Instant) -> bool {
        let refused = self.refused.as_ref().filter(|refused| refused.revision == revision);
        refused.is_some_and(|refused| now.saturating_duration_since(refused.at) < RETRY_REFUSED)
    }

    /// The jobs in the pods, if all of them told lately.
    pub(super) fn running(&self, now: Instant) -> Option<u64> {
        let lately = self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < SAID_LATELY);
        if lately && self.asked_all { victims::running(&self.pods) } else { None }
    }

    /// The deletion of these pods costs this now.
    pub(super) fn marked(&mut self, costs: Vec<(String, i32)>) {
        for (name, cost) in costs {
            if let Some(pod) = self.pods.iter_mut().find(|pod| pod.name == name) {
                pod.deletion_cost = cost;
            }
        }
    }

    /// The most that was wanted lately.
    pub(super) fn recent_high(&self, now: Instant) -> u32 {
        let recent = |(at, _): &&(Instant, u32)| now.duration_since(*at) < SETTLE_BEFORE_DOWN;
        let highs = self.highs.iter().filter(recent);
        highs.map(|(_, wanted)| *wanted).max().unwrap_or(0)
    }

    pub(super) fn learn(&mut self, decision: &Decision, now: Instant) {
        if decision.busy {
            self.busy_at = now;
        }
        while self.highs.back().is_some_and(|(_, wanted)| *wanted <= decision.wanted) {
            self.highs.pop_back();
        }
        let old = |(at, _): &(Instant, u32)| now.duration_since(*at) >= SETTLE_BEFORE_DOWN;
        while self.highs.front().is_some_and(old) {
            self.highs.pop_front();
        }
        self.highs.push_back((now, decision.wanted));
    }
}

impl Desk {
    pub(super) fn new(
        context: Arc<Context>,
        workers: Store<Worker>,
        deployments: Store<Deployment>,
        config_maps: Store<ConfigMap>,
    ) -> Self {
        Self {
            context,
            workers,
            deployments,
            config_maps,
            asker: Asker::default(),
            memories: Mutex::default(),
            hints: Mutex::default(),
        }
    }

    /// What is known of the Worker, of which `current` pods are asked for.
    pub(super) fn recall(&self, uid: &str, now: Instant, current: u32) -> Memory {
        let known = lock(&self.memories).get(uid).cloned();
        known.unwrap_or_else(|| Memory::new(now, current))
    }

    pub(super) fn remember(&self, uid: &str, memory: Memory) {
        let new = lock(&self.memories).insert(uid.to_owned(), memory).is_none();
        if new {
            self.forget_the_gone(uid);
        }
    }

    /// The Deployment of `worker` as it was applied last.
    pub(super) fn applied(&self, worker: &Worker) -> Option<Arc<Deployment>> {
        let memories = lock(&self.memories);
        let memory = memories.get(worker.metadata.uid.as_ref()?)?;
        memory.applied.as_ref().map(|applied| applied.stored.clone())
    }

    /// When work last came to a queue of the Worker, as far as its broker told.
    pub(super) fn worked_at(&self, uid: &str) -> Option<Instant> {
        lock(&self.hints).get(uid).and_then(|hint| hint.work_at)
    }

    /// Whether something came up for the Worker a moment ago.
    pub(super) fn is_stirred(&self, uid: &str, now: Instant) -> bool {
        let stirred = lock(&self.hints).get(uid).and_then(|hint| hint.stirred_at);
        stirred.is_some_and(|at| now.duration_since(at) < AWAKE)
    }

    /// The next look at the Worker is far away, or it isn't.
    pub(super) fn sleeps(&self, uid: &str, asleep: bool) {
        lock(&self.hints).entry(uid.to_owned()).or_default().asleep = asleep;
    }

    /// Work came to these Workers. Those that have to be looked at because of it come back: the others look by
    /// themselves within a second.
    pub(super) fn work_came(&self, workers: &[Arc<Worker>], now: Instant) -> Vec<ObjectRef<Worker>> {
        let mut hints = lock(&self.hints);
        let asleep = workers.iter().filter(|worker| {
            let hint = hints.entry(worker.uid().unwrap_or_default()).or_default();
            (hint.work_at, hint.stirred_at) = (Some(now), Some(now));
            std::mem::take(&mut hint.asleep)
        });
        asleep.map(|worker| ObjectRef::from_obj(&**worker)).collect()
    }

    /// Something changed around these Workers, which are looked at because of it, and again soon: what was looked up
    /// the first time may come from a watch that lags behind the one that told.
    pub(super) fn stir(&self, workers: &[Arc<Worker>], now: Instant) -> Vec<ObjectRef<Worker>> {
        let mut hints = lock(&self.hints);
        for worker in workers {
            let hint = hints.entry(worker.uid().unwrap_or_default()).or_default();
            hint.stirred_at = Some(now);
        }
        workers.iter().map(|worker| ObjectRef::from_obj(&**worker)).collect()
    }

    /// The Workers on these queues, given as namespace and name.
    pub(super) fn on_queues(&self, queues: &HashSet<(String, String)>) -> Vec<Arc<Worker>> {
        let mut names: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        for (namespace, name) in queues {
            names.entry(namespace).or_default().insert(name);
        }
        let hit = |worker: &Arc<Worker>| {
            let namespace = worker.metadata.namespace.as_deref().unwrap_or_default();
            names.get(namespace).is_some_and(|names| {
                worker.spec.queues.iter().any(|queue| names.contains(queue.name.as_str()))
            })
        };
        self.workers.state().into_iter().filter(hit).collect()
    }

    /// Workers that were deleted leave without a word.
    fn forget_the_gone(&self, newest: &str) {
        let there: HashSet<_> = self.workers.state().iter().filter_map(|worker| worker.uid()).collect();
        let stays = |uid: &String| uid == newest || there.contains(uid);
        lock(&self.memories).retain(|uid, _| stays(uid));
        lock(&self.hints).retain(|uid, _| stays(uid));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::scale::Basis;

    fn wanted(wanted: u32, busy: bool) -> Decision {
        Decision { desired: wanted, basis: Basis::Work, why: String::new(), busy, wanted }
    }

    #[test]
    fn highs_are_forgotten_after_a_while() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut memory = Memory::new(start, 4);
        let mut highs = Vec::new();
        for (second, now_wanted) in
            [(1, 9), (2, 3), (5, 6), (6, 1), (10, 1), (11, 1), (14, 1), (15, 1), (40, 2)]
        {
            highs.push(memory.recent_high(at(second)));
            memory.learn(&wanted(now_wanted, true), at(second));
        }
        assert_eq!(highs, [4, 9, 9, 9, 9, 6, 6, 1, 0]);
        assert!(memory.highs.len() <= 4, "{:?}", memory.highs);
    }

    #[test]
    fn a_restart_counts_as_work() {
        let start = Instant::now();
        let mut memory = Memory::new(start, 7);
        assert_eq!(memory.recent_high(start), 7);
        memory.learn(&wanted(0, false), start + Duration::from_secs(9));
        assert_eq!(memory.busy_at, start);
    }

    #[test]
    fn jobs_between_two_looks_are_noticed() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let demand = |millis: u64| Demand {
            ready: Some(0),
            active: Some(0),
            blocked: Some(0),
            service_time: Some(Duration::from_millis(millis)),
            due_in: None,
            suspended: false,
            share: 1000,
        };
        let mut memory = Memory::new(start, 1);
        memory.notice(&[demand(5)], None, at(1));
        assert_eq!(memory.busy_at, start);
        memory.notice(&[demand(6)], None, at(2));
        assert_eq!(memory.busy_at, at(2));
        memory.notice(&[demand(6)], Some(at(3)), at(4));
        assert_eq!(memory.busy_at, at(3));
        // An old hint takes nothing back, and another queue is no work.
        memory.notice(&[demand(6), demand(1)], Some(at(1)), at(5));
        assert_eq!(memory.busy_at, at(3));
    }
}
