//! Claims jobs: never more than the app can take, from all queues by weight, with few requests while there is nothing.
//!
//! A queue is *hot* when its last claim brought all that was asked for. While a queue is hot, rounds of claims that don't
//! wait share the free slots by weight; queues that were empty take part in a round now and then. When none is hot, one
//! long poll waits on each queue at once, however empty it was a moment ago. A long poll asks for a single job (all free slots if there is only one queue) and holds no
//! slot, so an empty queue keeps nothing from a full one. What a poll brings when no slot is left goes back at once.
//!
//! A claim that is cut off in the very moment when the broker hands out a job leaves it leased to nobody until the lease
//! ends. So a drain cuts off long polls, which had nothing until then and must not catch what this pod is about to
//! release, and waits for the others; what those bring goes back at once. Nothing else cuts off anything.

use crate::{
    core::{Core, Hold},
    drain::Stage,
    job,
    lease::Term,
    metrics,
    plan::{Lane, Plan},
    schedule::{Ask, Look, Rest, Round, round},
    weights::Weights,
};
use futures::FutureExt;
use longshore_drivers::{Claim, Claimed, Error, ErrorKind, Timestamp};
use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

/// How long a long poll waits.
const POLL: Duration = Duration::from_secs(20);
/// What a request may take beyond its wait. Drivers give up earlier; a claim that is cut off may lease jobs to nobody.
const REQUEST: Duration = Duration::from_secs(35);
/// An empty queue takes part in rounds this often while others are hot.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// However soon empty long polls return, all queues together cause no more requests than one in this time.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// The first pause after a failed claim; doubled up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is known about a queue.
#[derive(Debug, Default)]
struct Memory {
    hot: bool,
    outstanding: Option<Ask>,
    pause: Duration,
    not_before: Option<Instant>,
    /// Until when it takes no part in rounds because the last one found it empty.
    empty_until: Option<Instant>,
}

impl Memory {
    fn rest(&self, now: Instant) -> Rest {
        let lasts = |until: Option<Instant>| until.is_some_and(|until| until > now);
        match (lasts(self.not_before), lasts(self.empty_until)) {
            (true, _) => Rest::Whole,
            (false, true) => Rest::FromRounds,
            (false, false) => Rest::None,
        }
    }
}

/// A claim that came back.
struct Reply {
    lane: Arc<Lane>,
    ask: Ask,
    sent: Instant,
    arrived: Instant,
    answer: longshore_drivers::Result<Vec<Claimed>>,
}

/// The one task that claims.
pub(crate) struct Claimer {
    core: Arc<Core>,
    memory: BTreeMap<String, Memory>,
    weights: Weights,
    requests: JoinSet<Reply>,
    hold: Option<Hold>,
}

impl Claimer {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            memory: BTreeMap::new(),
            weights: Weights::default(),
            requests: JoinSet::new(),
            hold: None,
        }
    }

    /// Claims for as long as the sidecar lives.
    pub(crate) async fn run(mut self) {
        loop {
            let again = self.ask();
            let core = self.core.clone();
            tokio::select! {
                Some(reply) = self.requests.join_next(), if !self.requests.is_empty() => {
                    if let Ok(reply) = reply {
                        self.take(reply);
                    }
                }
                () = core.wake.notified() => {}
                () = at(again) => {}
            }
        }
    }

    /// Sends the claims that are due; tells when to look again if nothing happens.
    fn ask(&mut self) -> Option<Instant> {
        let plan = self.core.plan();
        self.forget_gone(&plan);
        if self.look_at_hold().is_some() {
            return self.core.held_until();
        }
        let now = Instant::now();
        let Round { asks, again } = round(self.core.room(), &self.looks(&plan, now), &mut self.weights);
        for (index, ask) in asks {
            self.send(&plan.lanes[index], ask, now);
        }
        if again { self.next_look(now) } else { None }
    }

    fn look_at_hold(&mut self) -> Option<Hold> {
        let hold = self.core.hold();
        if hold != self.hold {
            match (hold, self.hold) {
                // These come and go by themselves.
                (Some(Hold::Paused), _) | (None, Some(Hold::Paused)) => {}
                (Some(hold), _) => tracing::info!(?hold, "claiming stopped"),
                (None, _) => tracing::info!("claiming resumed"),
            }
            self.hold = hold;
        }
        self.core.metrics.claiming.set(i64::from(matches!(hold, None | Some(Hold::Pull))));
        hold
    }

    fn looks<'a>(&self, plan: &'a Plan, now: Instant) -> Vec<Look<'a>> {
        let idle = Memory::default();
        let look = |lane: &'a Arc<Lane>| {
            let memory = self.memory.get(&lane.queue.name).unwrap_or(&idle);
            Look {
                name: &lane.queue.name,
                broker: &lane.queue.broker,
                weight: lane.queue.weight,
                suspended: lane.queue.suspended,
                hot: memory.hot,
                outstanding: memory.outstanding,
                rest: memory.rest(now),
            }
        };
        plan.lanes.iter().map(look).collect()
    }

    fn next_look(&self, now: Instant) -> Option<Instant> {
        let resting = self.memory.values().flat_map(|memory| [memory.not_before, memory.empty_until]);
        resting.flatten().filter(|at| *at > now).min()
    }

    fn send(&mut self, lane: &Arc<Lane>, ask: Ask, now: Instant) {
        let memory = self.memory.entry(lane.queue.name.clone()).or_default();
        memory.outstanding = Some(ask);
        let queue = metrics::Queue { queue: lane.queue.name.clone() };
        self.core.metrics.claims.get_or_create(&queue).inc();
        let (core, lane) = (self.core.clone(), lane.clone());
        self.requests.spawn(async move {
            let claiming = AssertUnwindSafe(claim(&core, &lane, ask)).catch_unwind().await;
            let answer =
                claiming.unwrap_or_else(|_| Err(Error::new(ErrorKind::Fatal, "the driver panicked")));
            Reply { lane, ask, sent: now, arrived: Instant::now(), answer }
        });
    }

    fn take(&mut self, reply: Reply) {
        let Reply { lane, ask, sent, arrived, answer } = reply;
        self.core.health.broker_answered(&lane.queue.broker, &answer);
        let queues = u32::try_from(self.memory.len()).unwrap_or(u32::MAX);
        let memory = self.memory.entry(lane.queue.name.clone()).or_default();
        memory.outstanding = None;
        match answer {
            Ok(jobs) => {
                memory.pause = Duration::ZERO;
                memory.hot = jobs.len() >= ask.max() as usize;
                (memory.not_before, memory.empty_until) = match ask {
                    Ask::Now(_) | Ask::Wait(_) if !jobs.is_empty() => (None, None),
                    Ask::Now(_) => (None, Some(Instant::now() + PROBE_EVERY)),
                    Ask::Wait(_) => (Some(sent + POLL_EVERY * queues), None),
                };
                for job in jobs {
                    let term = match ask {
                        Ask::Now(_) => Term::claimed(sent, arrived, lane.queue.lease),
                        Ask::Wait(_) => Term::waited(&job, lane.queue.lease, sent, arrived, Timestamp::now()),
                    };
                    self.place(&lane, job, term, arrived);
                }
            }
            Err(error) => {
                memory.hot = false;
                memory.pause = (memory.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
                memory.not_before = Some(Instant::now() + memory.pause);
                self.core.metrics.broker_error("claim", &error);
                tracing::debug!(queue = lane.queue.name, kind = %error.kind, error = error.message, "claim failed");
            }
        }
    }

    /// Starts `job` if that is still allowed, else gives it back.
    fn place(&mut self, lane: &Arc<Lane>, job: Claimed, term: Term, arrived: Instant) {
        let queue = metrics::Queue { queue: lane.queue.name.clone() };
        self.core.metrics.claimed.get_or_create(&queue).inc();
        let plan = self.core.plan();
        let wanted = self.core.wants(lane);
        match &plan.target {
            // The newest policy counts from the moment of the claim's answer.
            Some(target) if wanted && self.core.hold().is_none() && self.core.free() > 0 => {
                job::start(&self.core, &self.core.current(lane), job, target, term, arrived);
            }
            Some(_) | None => {
                // There may be more where it came from.
                if let Some(memory) = self.memory.get_mut(&lane.queue.name) {
                    memory.hot = true;
                }
                job::give_back(&self.core, lane, job);
            }
        }
    }

    fn forget_gone(&mut self, plan: &Plan) {
        let gone = |name: &str| plan.lane(name).is_none();
        self.memory.retain(|name, memory| memory.outstanding.is_some() || !gone(name));
        self.weights.retain(|name| !gone(name));
    }
}

async fn claim(core: &Core, lane: &Lane, ask: Ask) -> longshore_drivers::Result<Vec<Claimed>> {
    let wait = match ask {
        Ask::Now(_) => Duration::ZERO,
        Ask::Wait(_) => POLL,
    };
    let claim = Claim { max: ask.max(), wait, lease: lane.queue.lease, worker: core.pod.clone() };
    let claiming = timeout(wait + REQUEST, lane.driver.claim(&lane.queue.physical, claim));
    tokio::select! {
        biased;
        answer = claiming => {
            answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer to a claim")))
        }
        () = core.stop.reached(Stage::Draining), if !wait.is_zero() => Ok(Vec::new()),
    }
}

async fn at(again: Option<Instant>) {
    match again {
        Some(again) => sleep_until(again).await,
        None => std::future::pending().await,
    }
}
