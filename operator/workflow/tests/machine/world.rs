//! Plans, and a world to run them in: a broker, and an operator that may die at any point.

use crate::broker::{Answer, Broker, Fate, outcome};
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
    /// What the operator did and has not written: one that dies takes it along.
    unwritten: Vec<(Millis, Event)>,
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
            unwritten: Vec::new(),
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
                self.outlive();
                return (self.committed.summary(&self.scenario.plan), self.broker.started.clone());
            }
            match self.operate() {
                Ok(true) => self.turn(),
                Ok(false) => {}
                // Whoever died is replaced by one that knows only what was committed.
                Err(Died) => self.unwritten.clear(),
            }
        }
        panic!("{} is stuck: {:#?}", self.scenario.name, self.committed.summary(&self.scenario.plan));
    }

    /// The end was committed, so all records are unpinned. What still runs ends, the broker forgets everything, and
    /// nobody dispatches any of it again.
    fn outlive(&mut self) {
        self.dies_at.clear();
        self.stale = None;
        for target in self.broker.running() {
            self.broker.settle(target, succeeded(), self.now);
        }
        let late = self.broker.completions.clone();
        let places: Vec<_> = self.committed.places(&self.scenario.plan).collect();
        self.broker.unpin(places);
        let started = self.broker.started.clone();
        let idle = self.operate();
        assert_eq!(self.broker.jobs, BTreeMap::new(), "{}: records that stay", self.scenario.name);
        // An acknowledgement got lost.
        self.broker.completions = late;
        let still = self.operate();
        assert!(matches!((idle, still), (Ok(true), Ok(true))), "{}: the end is the end", self.scenario.name);
        assert_eq!(self.broker.started, started, "{}", self.scenario.name);
    }

    /// A point at which the operator may die, or a stale one comes in between.
    fn point(&mut self) -> Result<(), Died> {
        let point = self.points;
        self.points += 1;
        if let Some((_, old)) = self.stale.take_if(|(at, _)| *at == point)
            && let Some(old) = self.history.get(old).cloned()
        {
            for effect in old.effects_owed(&self.scenario.plan, self.now) {
                for target in targets(&effect) {
                    drop(self.touch(&effect, target));
                }
            }
        }
        self.forget();
        if self.dies_at.remove(&point) { Err(Died) } else { Ok(()) }
    }

    /// As soon as a completion was acknowledged nobody needs the record any more: the commit holds it. Only an operator that
    /// doesn't know of that commit does, and those are over long before records age.
    fn forget(&mut self) {
        if self.stale.is_none() {
            self.broker.unpin(self.broker.jobs.clone().into_keys());
            self.broker.forget();
        }
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

    /// What the operator knows: nothing more than was committed, and what it did since.
    fn known(&self) -> State {
        let plan = &self.scenario.plan;
        self.unwritten
            .iter()
            .fold(self.committed.clone(), |state, (at, event)| then(state, plan, event.clone(), *at))
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
        self.point()?;
        // Acknowledged only now.
        for event in arrived {
            if let Event::Settled { target, .. } = event {
                self.broker.acknowledge(target);
            }
        }
        self.point()?;
        let mut done = Vec::new();
        for effect in self.known().effects_owed(&self.scenario.plan, self.now) {
            idle = false;
            self.perform(&effect, &mut done)?;
        }
        if done.iter().all(|event| matches!(event, Event::Dispatched { .. })) {
            // It is not worth a write of its own.
            self.unwritten.extend(done.into_iter().map(|event| (self.now, event)));
        } else {
            self.commit(done)?;
        }
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
                None => {
                    // The answer says of what runs on that it does.
                    done.extend(self.broker.running().contains(&target).then(|| dispatched([target])));
                    done.push(Event::CancelAsked { targets: vec![target] });
                }
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
        let known = self.known();
        let next = events.into_iter().fold(known.clone(), |state, event| then(state, plan, event, self.now));
        if next == known {
            return Ok(false);
        }
        self.point()?;
        let (version, data) = checkpoint::encode(&next);
        self.committed = checkpoint::decode(version, &data).expect("what was written can be read");
        assert_eq!(self.committed, next);
        self.unwritten.clear();
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
        } else if let Some(timer) = self.known().next_timer(&self.scenario.plan) {
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
