//! What the parts of a running sidecar share.

use crate::{
    bounces::Bounces,
    drain::Stage,
    health::{Health, lock},
    in_flight::InFlight,
    metrics::Metrics,
    outcome::{Moment, Signal},
    plan::{Lane, Plan},
    push::Pusher,
    readiness::App,
    settle::Settler,
    stop::Stop,
    throttle::Throttle,
};
use longshore_drivers::{Claimed, DynDriver};
use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

/// Bytes of jobs in memory from which on nothing is claimed.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long running jobs get when no policy says it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The shared state. Tasks come and go; this is what they agree on.
pub(crate) struct Core {
    pub(crate) pod: String,
    pub(crate) plan: watch::Sender<Arc<Plan>>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) settler: Settler,
    pub(crate) stop: Stop,
    pub(crate) app: App,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pusher: Pusher,
    pub(crate) throttle: Mutex<Throttle>,
    pub(crate) bounces: Mutex<Bounces>,
    /// The jobs' own tasks.
    pub(crate) jobs: TaskTracker,
    /// Wakes the claimer: a slot is free, or whether it may claim has changed.
    pub(crate) wake: Arc<Notify>,
}

/// Why nothing is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Hold {
    /// No policy was read.
    NoPolicy,
    /// The sidecar stops.
    Draining,
    /// The operator retires this pod.
    Victim,
    /// A hook of the app waits to learn whether the pod ends.
    AppStops,
    /// The app asks for jobs itself.
    Pull,
    /// The app takes no connections.
    AppNotReady,
    /// The app asked for a pause, or refuses whatever it gets.
    Paused,
}

impl Core {
    pub(crate) fn new(pod: String) -> Self {
        let wake = Arc::new(Notify::new());
        let health = Arc::new(Health::default());
        let metrics = Arc::new(Metrics::new());
        Self {
            pod,
            plan: watch::Sender::new(Arc::default()),
            in_flight: Arc::new(InFlight::new(wake.clone())),
            settler: Settler::new(health.clone(), metrics.clone()),
            stop: Stop::new(wake.clone()),
            app: App::default(),
            health,
            metrics,
            pusher: Pusher::new(),
            throttle: Mutex::default(),
            bounces: Mutex::default(),
            jobs: TaskTracker::new(),
            wake,
        }
    }

    /// Works by another plan from now on.
    pub(crate) fn install(&self, plan: Plan) {
        self.metrics.concurrency.set(i64::from(plan.concurrency()));
        let victim = plan.is_victim(&self.pod);
        let before = self.plan.send_replace(Arc::new(plan));
        if victim != before.is_victim(&self.pod) {
            tracing::info!(victim, "this pod's place among those to be retired changed");
        }
        self.settler.refresh();
        self.wake.notify_one();
    }

    /// The plan as it is now.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        self.plan.borrow().clone()
    }

    /// The same queue over its newest connection.
    pub(crate) fn current(&self, lane: &Arc<Lane>) -> Arc<Lane> {
        let plan = self.plan.borrow();
        let newer = plan.lanes.iter().find(|other| other.key == lane.key);
        newer.unwrap_or(lane).clone()
    }

    /// Why no job may be started now, if so.
    pub(crate) fn hold(&self) -> Option<Hold> {
        if self.stop.stage() != Stage::Running {
            return Some(Hold::Draining);
        }
        let plan = self.plan.borrow();
        if plan.policy.is_none() {
            return Some(Hold::NoPolicy);
        }
        if plan.is_victim(&self.pod) {
            return Some(Hold::Victim);
        }
        if self.stop.claims_held_until(Instant::now()).is_some() {
            return Some(Hold::AppStops);
        }
        match &plan.target {
            None => Some(Hold::Pull),
            Some(target) if !self.app.is_ready(target.port) => Some(Hold::AppNotReady),
            Some(_) => self.paused_until().map(|_| Hold::Paused),
        }
    }

    fn paused_until(&self) -> Option<Instant> {
        lock(&self.throttle).paused_until(Instant::now())
    }

    /// When a hold ends by itself, if it does.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.stop.claims_held_until(Instant::now()).or_else(|| self.paused_until())
    }

    /// How many more jobs the app can take.
    pub(crate) fn free(&self) -> u32 {
        let concurrency = self.plan.borrow().concurrency();
        let limit = lock(&self.throttle).limit(concurrency) as usize;
        let counts = self.in_flight.counts();
        // Settles that pile up while a broker is slow are bounded like the jobs themselves.
        let unsettled = (limit * 2 + 64).saturating_sub(counts.total);
        let free = limit.saturating_sub(counts.running).min(unsettled);
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// Slots, or fewer when that many payloads might not fit into memory.
    pub(crate) fn room(&self) -> u32 {
        let plan = self.plan.borrow();
        let largest = plan.lanes.iter().map(|lane| lane.driver.capabilities().limits.max_payload).max();
        drop(plan);
        let room = MAX_BYTES.saturating_sub(self.in_flight.counts().bytes);
        let fitting = room / largest.unwrap_or(MAX_BYTES).max(1);
        self.free().min(u32::try_from(fitting).unwrap_or(u32::MAX))
    }

    /// Whether jobs of `lane` may be started by the newest policy, which may be younger than the claim.
    pub(crate) fn wants(&self, lane: &Lane) -> bool {
        let plan = self.plan.borrow();
        plan.lane(&lane.queue.name).is_some_and(|now| now.key == lane.key && !now.queue.suspended)
    }

    /// What stands around a decision about `job` now.
    pub(crate) fn moment(&self, job: &Claimed) -> Moment {
        Moment { dice: dice(), app_stops: false, bounces: lock(&self.bounces).of(&job.id) }
    }

    /// Learns from the answer of the app to a job of `job_type`.
    pub(crate) fn learn(&self, signal: Signal, job_type: &str) {
        let now = Instant::now();
        match signal {
            Signal::Unreachable => self.app.refused(),
            Signal::Silent => {}
            Signal::Works | Signal::Throttled(_) | Signal::Unroutable(_) | Signal::Unauthorized(_) => {
                self.app.answered();
            }
        }
        self.health.learn(signal, job_type, now);
        let concurrency = self.plan.borrow().concurrency();
        lock(&self.throttle).learn(signal, concurrency, now);
        self.wake.notify_one();
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        let plan = self.plan.borrow();
        plan.policy.as_ref().map_or(DRAIN_TIMEOUT, |policy| policy.drain_timeout)
    }

    /// The connections that are open.
    pub(crate) fn drivers(&self) -> Vec<DynDriver> {
        let plan = self.plan.borrow();
        let mut drivers: Vec<DynDriver> = Vec::new();
        for lane in &plan.lanes {
            if !drivers.iter().any(|driver| Arc::ptr_eq(driver, &lane.driver)) {
                drivers.push(lane.driver.clone());
            }
        }
        drivers
    }
}

/// Some number for jitter. Each state is seeded by the system.
fn dice() -> u64 {
    RandomState::new().hash_one(0_u8)
}
