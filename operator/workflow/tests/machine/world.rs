//! Plans, and a world to run them in: a broker that remembers ids, and an operator that may die at any point.

use longshore_workflow::{
    BatchPlan, CallbackSet, Effect, Event, Failure, FailurePolicy, Members, Millis, Outcome, Plan,
    PlannedStep, ResultRef, State, Summary, Target, Work, checkpoint,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

pub(crate) const NO_CALLBACKS: CallbackSet = CallbackSet { then: false, catch: false, finally: false };
pub(crate) const ALL_CALLBACKS: CallbackSet = CallbackSet { then: true, catch: true, finally: true };
pub(crate) const RESYNC: Millis = 600_000;

pub(crate) fn plan(steps: Vec<PlannedStep>) -> Plan {
    Plan { steps, callbacks: NO_CALLBACKS, deadline: None, resync_after: RESYNC }
}

pub(crate) fn job(name: &str) -> PlannedStep {
    PlannedStep { name: name.to_owned(), timeout: None, work: Work::Job }
}

pub(crate) fn batch_with(
    name: &str,
    members: Members,
    failure_policy: FailurePolicy,
    max_parallel: u32,
    callbacks: CallbackSet,
) -> PlannedStep {
    let max_parallel = NonZeroU32::new(max_parallel);
    let work = BatchPlan { members, failure_policy, max_parallel, callbacks };
    PlannedStep { name: name.to_owned(), timeout: None, work: Work::Batch(work) }
}

pub(crate) fn member(step: u16, member: u32) -> Target {
    Target::Member { step, member }
}

pub(crate) fn failure(reason: &str) -> Failure {
    Failure { reason: reason.to_owned(), message: "no luck".to_owned() }
}

pub(crate) fn succeeded() -> Outcome {
    Outcome::Succeeded { result: ResultRef::None }
}

pub(crate) fn failed() -> Outcome {
    Outcome::Failed(failure("Exhausted"))
}

pub(crate) fn settled(target: Target, outcome: Outcome, settled_at: Millis) -> Event {
    Event::Settled { target, round: 0, outcome, settled_at }
}

pub(crate) fn dispatched(targets: impl IntoIterator<Item = Target>) -> Event {
    Event::Dispatched { targets: targets.into_iter().collect() }
}

/// Applies an event that must be understood.
pub(crate) fn then(state: State, plan: &Plan, event: Event, now: Millis) -> State {
    state.apply(plan, event, now).expect("the event is understood").0
}

/// Applies events in order.
pub(crate) fn fold(plan: &Plan, events: impl IntoIterator<Item = (Millis, Event)>) -> State {
    events.into_iter().fold(State::new(), |state, (now, event)| then(state, plan, event, now))
}

/// All places that are to be dispatched.
pub(crate) fn dispatches(effects: &[Effect]) -> Vec<Target> {
    let places = effects.iter().map(|effect| match effect {
        Effect::Dispatch { targets } => targets.as_slice(),
        Effect::Resolve { .. } | Effect::Ask { .. } | Effect::CancelJobs { .. } => &[],
    });
    places.flatten().copied().collect()
}

/// All places that are asked for.
pub(crate) fn questions(effects: &[Effect]) -> Vec<Target> {
    let places = effects.iter().map(|effect| match effect {
        Effect::Ask { targets } => targets.as_slice(),
        Effect::Resolve { .. } | Effect::Dispatch { .. } | Effect::CancelJobs { .. } => &[],
    });
    places.flatten().copied().collect()
}

/// All places that are to be cancelled.
pub(crate) fn cancels(effects: &[Effect]) -> Vec<Target> {
    let places = effects.iter().map(|effect| match effect {
        Effect::CancelJobs { targets } => targets.as_slice(),
        Effect::Resolve { .. } | Effect::Dispatch { .. } | Effect::Ask { .. } => &[],
    });
    places.flatten().copied().collect()
}

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeds,
    Fails,
    /// Succeeds, whoever asks it to stop.
    Stubborn,
    /// Never ends by itself.
    Hangs,
    /// The broker takes it and forgets it, once.
    Forgotten,
    /// The broker refuses it.
    Refused,
}

/// A broker that remembers ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Broker {
    /// All jobs it ever took, with their outcome.
    pub(crate) jobs: BTreeMap<Target, Option<Outcome>>,
    /// How often a job was started.
    pub(crate) started: BTreeMap<Target, u32>,
    /// Completions that nobody acknowledged.
    pub(crate) completions: Vec<Event>,
    forgotten: BTreeSet<Target>,
}

/// What the broker says to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Created,
    Duplicate(Option<Outcome>),
    Refused,
}

impl Broker {
    pub(crate) fn enqueue(&mut self, target: Target, fate: Fate) -> Answer {
        if let Some(known) = self.jobs.get(&target) {
            return Answer::Duplicate(known.clone());
        }
        match fate {
            Fate::Refused => return Answer::Refused,
            Fate::Forgotten if self.forgotten.insert(target) => return Answer::Created,
            Fate::Succeeds | Fate::Fails | Fate::Stubborn | Fate::Hangs | Fate::Forgotten => {}
        }
        self.jobs.insert(target, None);
        *self.started.entry(target).or_default() += 1;
        Answer::Created
    }

    pub(crate) fn cancel(&mut self, target: Target, fate: Fate, now: Millis) {
        if self.jobs.get(&target) == Some(&None) && fate != Fate::Stubborn {
            self.settle(target, Outcome::Cancelled, now);
        }
    }

    pub(crate) fn settle(&mut self, target: Target, outcome: Outcome, now: Millis) {
        self.jobs.insert(target, Some(outcome.clone()));
        self.completions.push(settled(target, outcome, now));
    }

    /// The jobs that can end by themselves.
    pub(crate) fn runnable(&self, fate: impl Fn(&Target) -> Fate) -> Vec<Target> {
        let open = self.jobs.iter().filter(|(_, outcome)| outcome.is_none()).map(|(target, _)| *target);
        open.filter(|target| fate(target) != Fate::Hangs).collect()
    }
}

/// How a job ends that has this fate.
pub(crate) fn outcome(fate: Fate) -> Outcome {
    match fate {
        Fate::Fails => failed(),
        Fate::Succeeds | Fate::Stubborn | Fate::Hangs | Fate::Forgotten | Fate::Refused => succeeded(),
    }
}

/// What a workflow and its jobs are like.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) plan: Plan,
    /// Members that expressions give.
    pub(crate) resolves: u32,
    pub(crate) fate: fn(&Target) -> Fate,
    /// What the user asks for once that many jobs have ended.
    pub(crate) asks: Vec<(usize, Event)>,
}

impl Scenario {
    pub(crate) fn new(name: &'static str, plan: Plan, fate: fn(&Target) -> Fate) -> Self {
        Self { name, plan, resolves: 3, fate, asks: Vec::new() }
    }

    #[must_use]
    pub(crate) fn asking(mut self, after: usize, event: Event) -> Self {
        self.asks.push((after, event));
        self
    }
}

/// A world: the broker, what is committed, and the clock.
pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) broker: Broker,
    pub(crate) committed: State,
    /// Every state that was ever committed.
    pub(crate) history: Vec<State>,
    pub(crate) now: Millis,
    ended: usize,
    asked: usize,
    /// Commits and single effects so far: the points at which an operator can die.
    pub(crate) points: usize,
    dies_at: BTreeSet<usize>,
    /// Instead of dying, an operator that holds an old state performs all its effects.
    pub(crate) stale: Option<(usize, usize)>,
}

/// The operator died.
pub(crate) struct Died;

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, dies_at: impl IntoIterator<Item = usize>) -> Self {
        Self {
            scenario,
            broker: Broker::default(),
            committed: State::new(),
            history: vec![State::new()],
            now: 1_000_000,
            ended: 0,
            asked: 0,
            points: 0,
            dies_at: dies_at.into_iter().collect(),
            stale: None,
        }
    }

    /// Runs to the end and gives what people and jobs saw of it.
    pub(crate) fn run(&mut self) -> (Summary, BTreeMap<Target, u32>) {
        for _ in 0..10_000 {
            if self.committed.is_terminal() {
                return (self.committed.summary(&self.scenario.plan), self.broker.started.clone());
            }
            // Whoever died is replaced by one that knows only what was committed.
            if matches!(self.operate(), Ok(true)) {
                self.turn();
            }
        }
        panic!("{} is stuck: {:#?}", self.scenario.name, self.committed.summary(&self.scenario.plan));
    }

    /// A point at which the operator may die, or a stale one comes in between.
    fn point(&mut self) -> Result<(), Died> {
        let point = self.points;
        self.points += 1;
        if let Some((at, old)) = self.stale
            && at == point
            && let Some(old) = self.history.get(old).cloned()
        {
            for effect in old.effects_owed(&self.scenario.plan, self.now) {
                for target in targets(&effect) {
                    drop(self.touch(&effect, target));
                }
            }
        }
        if self.dies_at.remove(&point) { Err(Died) } else { Ok(()) }
    }

    fn touch(&mut self, effect: &Effect, target: Target) -> Option<Answer> {
        let fate = (self.scenario.fate)(&target);
        match effect {
            Effect::Dispatch { .. } | Effect::Ask { .. } => Some(self.broker.enqueue(target, fate)),
            Effect::CancelJobs { .. } => {
                self.broker.cancel(target, fate, self.now);
                None
            }
            Effect::Resolve { .. } => None,
        }
    }

    /// One look of the operator. Whether it found nothing to do.
    fn operate(&mut self) -> Result<bool, Died> {
        let arrived = self.broker.completions.clone();
        let mut events = Vec::new();
        if !self.committed.is_started() {
            events.push(Event::Started);
        }
        events.extend(arrived.iter().cloned());
        events.push(Event::TimerFired);
        events
            .extend(self.scenario.asks.get(..self.asked).unwrap_or_default().iter().map(|ask| ask.1.clone()));
        let mut idle = !self.commit(events)?;
        // Acknowledged only now.
        self.broker.completions.drain(..arrived.len());
        self.point()?;
        let mut done = Vec::new();
        for effect in self.committed.effects_owed(&self.scenario.plan, self.now) {
            idle = false;
            self.perform(&effect, &mut done)?;
        }
        self.commit(done)?;
        Ok(idle)
    }

    fn perform(&mut self, effect: &Effect, done: &mut Vec<Event>) -> Result<(), Died> {
        if let Effect::Resolve { step } = effect {
            done.push(Event::MembersResolved { step: *step, count: self.scenario.resolves });
            return self.point();
        }
        for target in targets(effect) {
            let answer = self.touch(effect, target);
            let asked = matches!(effect, Effect::Ask { .. });
            match answer {
                None => done.push(Event::CancelAsked { targets: vec![target] }),
                Some(Answer::Refused) => {
                    done.push(Event::DispatchRefused { target, failure: failure("TooLarge") });
                }
                Some(Answer::Created) if asked => {
                    done.extend([Event::Lost { target }, dispatched([target])]);
                }
                Some(Answer::Created) => done.push(dispatched([target])),
                Some(Answer::Duplicate(outcome)) => {
                    done.push(dispatched([target]));
                    done.extend(outcome.map(|outcome| settled(target, outcome, self.now)));
                }
            }
            self.point()?;
        }
        Ok(())
    }

    /// Whether something changed. What is committed has been written and read back.
    fn commit(&mut self, events: Vec<Event>) -> Result<bool, Died> {
        let plan = &self.scenario.plan;
        let next = events
            .into_iter()
            .fold(self.committed.clone(), |state, event| then(state, plan, event, self.now));
        if next == self.committed {
            return Ok(false);
        }
        self.point()?;
        let (version, data) = checkpoint::encode(&next);
        self.committed = checkpoint::decode(version, &data).expect("what was written can be read");
        assert_eq!(self.committed, next);
        self.history.push(next);
        Ok(true)
    }

    /// The world goes on: the user asks, a job ends, or time passes.
    fn turn(&mut self) {
        let due = self.scenario.asks.get(self.asked).is_some_and(|(after, _)| *after <= self.ended);
        if due {
            self.asked += 1;
        } else if let Some(target) = self.broker.runnable(self.scenario.fate).first() {
            self.broker.settle(*target, outcome((self.scenario.fate)(target)), self.now);
            self.ended += 1;
        } else if let Some(timer) = self.committed.next_timer(&self.scenario.plan) {
            self.now = self.now.max(timer);
        }
    }
}

/// The places an effect is about.
pub(crate) fn targets(effect: &Effect) -> Vec<Target> {
    match effect {
        Effect::Dispatch { targets } | Effect::Ask { targets } | Effect::CancelJobs { targets } => {
            targets.clone()
        }
        Effect::Resolve { .. } => Vec::new(),
    }
}
