//! Two operators at once, each with what it last read and with records that it has not written: they look, commit,
//! perform, acknowledge and die in any order, and users change their minds in between.

use crate::{
    broker::{Answer, Broker, Fate, outcome},
    world::{
        ALL_CALLBACKS, NO_CALLBACKS, batch_with, dispatched, failure, fold, job, member, plan, settled,
        succeeded, targets,
    },
};
use longshore_workflow::{
    Callback, Effect, Event, FailurePolicy, Members, Millis, Plan, State, Target, WorkflowPhase, checkpoint,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// How long an operator has a completion for itself.
const LEASE: Millis = 10_000;

#[derive(Debug, Clone, Copy)]
enum Act {
    /// Reads the object.
    Look(usize),
    /// Folds what it knows, and commits if nobody did since it looked.
    Commit(usize),
    /// Performs so many places of what its state owes.
    Perform(usize, usize),
    /// Acknowledges what it committed.
    Acknowledge(usize),
    /// Dies, and another one takes its place.
    Die(usize),
    /// A job ends.
    End(usize),
    /// The broker forgets what it need not remember.
    Forget,
    Wait(Millis),
    Ask(Wish),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Cancel,
    Delete,
    Suspend(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let wish = prop_oneof![
        1 => Just(Wish::Cancel),
        1 => Just(Wish::Delete),
        4 => any::<bool>().prop_map(Wish::Suspend),
    ];
    prop_oneof![
        6 => (0..2_usize).prop_map(Act::Look),
        8 => (0..2_usize).prop_map(Act::Commit),
        10 => (0..2_usize, 1..6_usize).prop_map(|(who, places)| Act::Perform(who, places)),
        3 => (0..2_usize).prop_map(Act::Acknowledge),
        2 => (0..2_usize).prop_map(Act::Die),
        8 => any::<usize>().prop_map(Act::End),
        2 => Just(Act::Forget),
        2 => (0..100_u64).prop_map(Act::Wait),
        1 => wish.prop_map(Act::Ask),
    ]
}

/// The object as the API server has it.
#[derive(Debug, Clone, Default)]
struct Object {
    version: u64,
    state: State,
    cancel: bool,
    delete: bool,
    suspend: bool,
}

#[derive(Debug, Clone, Default)]
struct Operator {
    /// What it last read or wrote; its state is ahead of that by what it has not written.
    object: Object,
    unwritten: Vec<(Millis, Event)>,
    /// To be folded at the next commit.
    fresh: Vec<Event>,
    /// Committed, not acknowledged.
    committed: Vec<Target>,
}

struct Place {
    plan: Plan,
    fates: Vec<Fate>,
    object: Object,
    operators: [Operator; 2],
    broker: Broker,
    /// What each job's payload was made of.
    inputs: BTreeMap<Target, String>,
    leases: BTreeMap<Target, (usize, Millis)>,
    /// Places whose completion was acknowledged, with the version of the object by then.
    acknowledged: BTreeMap<Target, u64>,
    asked: BTreeSet<Target>,
    /// Dispatched by an operator that was overtaken: only its lost leadership keeps a real one from that.
    overtaken: BTreeSet<Target>,
    now: Millis,
}

impl Place {
    fn new(plan: Plan, fates: Vec<Fate>) -> Self {
        Self {
            plan,
            fates,
            object: Object::default(),
            operators: Default::default(),
            broker: Broker::default(),
            inputs: BTreeMap::new(),
            leases: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            asked: BTreeSet::new(),
            overtaken: BTreeSet::new(),
            now: 1_000_000,
        }
    }

    fn fate(&self, target: &Target) -> Fate {
        match target {
            Target::Member { step, member } => {
                self.fates[(usize::from(*step) * 5 + *member as usize) % self.fates.len()]
            }
            Target::StepCallback { .. } | Target::Callback(_) => Fate::Succeeds,
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Look(who) => self.look(who),
            Act::Commit(who) => self.commit(who),
            Act::Perform(who, places) => {
                self.perform(who, places);
            }
            Act::Acknowledge(who) => self.acknowledge(who),
            Act::Die(who) => self.operators[who] = Operator::default(),
            Act::End(which) => {
                self.end_a_job(which);
            }
            Act::Forget => self.forget(),
            Act::Wait(time) => self.now += time,
            Act::Ask(wish) => self.ask(wish),
        }
    }

    fn ask(&mut self, wish: Wish) {
        self.object.version += 1;
        match wish {
            Wish::Cancel => self.object.cancel = true,
            Wish::Delete => self.object.delete = true,
            Wish::Suspend(wish) => self.object.suspend = wish,
        }
    }

    fn fold(&self, state: State, events: impl IntoIterator<Item = (Millis, Event)>) -> State {
        let apply = |state: State, (at, event): (Millis, Event)| {
            state.apply(&self.plan, event, at).expect("operators speak of what there is").0
        };
        events.into_iter().fold(state, apply)
    }

    fn look(&mut self, who: usize) {
        let operator = &self.operators[who];
        if operator.object.version != self.object.version {
            let state = self.fold(self.object.state.clone(), operator.unwritten.clone());
            self.operators[who].object = Object { state, ..self.object.clone() };
        }
    }

    /// Completions that it may have now.
    fn take(&mut self, who: usize) -> Vec<Event> {
        let mut taken = Vec::new();
        for event in &self.broker.completions {
            let Event::Settled { target, .. } = event else { continue };
            let held = self.leases.get(target).is_some_and(|(by, until)| *by != who && self.now < *until);
            if !held {
                self.leases.insert(*target, (who, self.now + LEASE));
                taken.push(event.clone());
            }
        }
        taken
    }

    fn wishes(object: &Object) -> Vec<Event> {
        let mut events = Vec::new();
        if !object.state.is_started() {
            events.push(Event::Started);
        }
        if object.delete {
            events.push(Event::DeletionRequested);
        }
        if object.cancel {
            events.push(Event::CancelRequested);
        }
        events.push(if object.suspend { Event::SuspendRequested } else { Event::ResumeRequested });
        events
    }

    fn commit(&mut self, who: usize) {
        let taken = self.take(who);
        let seen = self.operators[who].object.clone();
        let mut events = taken.clone();
        events.append(&mut self.operators[who].fresh);
        events.extend(Self::wishes(&seen));
        events.push(Event::TimerFired);
        let next = self.fold(seen.state.clone(), events.into_iter().map(|event| (self.now, event)));
        if seen.version != self.object.version {
            // A conflict: everything is dropped.
            return self.look(who);
        }
        if next != seen.state {
            self.write(&next);
            self.operators[who].unwritten.clear();
        }
        self.operators[who].object = Object { state: next, ..self.object.clone() };
        let places = taken.iter().filter_map(|event| match event {
            Event::Settled { target, .. } => Some(*target),
            _ => None,
        });
        self.operators[who].committed.extend(places);
    }

    fn write(&mut self, next: &State) {
        assert!(!self.object.state.is_terminal(), "the end is the end");
        let (version, data) = checkpoint::encode(next);
        self.object.state = checkpoint::decode(version, &data).unwrap();
        assert_eq!(self.object.state, *next);
        self.object.version += 1;
    }

    fn perform(&mut self, who: usize, places: usize) -> bool {
        let effects = self.operators[who].object.state.effects_owed(&self.plan, self.now);
        let mut left = places;
        for effect in &effects {
            if let Effect::Resolve { step } = effect {
                self.operators[who].fresh.push(Event::MembersResolved { step: *step, count: 3 });
            }
            for target in targets(effect).into_iter().take(left) {
                left -= 1;
                self.touch(who, effect, target);
            }
        }
        !effects.is_empty()
    }

    fn touch(&mut self, who: usize, effect: &Effect, target: Target) {
        if matches!(effect, Effect::CancelJobs { .. }) {
            self.broker.cancel(target, self.fate(&target), self.now);
            self.asked.insert(target);
            self.operators[who].fresh.push(Event::CancelAsked { targets: vec![target] });
            return;
        }
        let input = self.input(&self.operators[who].object.state, &target);
        match self.broker.enqueue(target, self.fate(&target)) {
            Answer::Refused => {
                let event = Event::DispatchRefused { target, failure: failure("TooLarge") };
                self.operators[who].fresh.push(event);
            }
            Answer::Created => {
                if self.operators[who].object.version < self.object.version {
                    self.overtaken.insert(target);
                }
                self.asked.remove(&target);
                self.inputs.insert(target, input);
                self.record(who, dispatched([target]));
            }
            Answer::Duplicate(known) => {
                assert_eq!(self.inputs.get(&target), Some(&input), "the same id has the same payload");
                self.record(who, dispatched([target]));
                let known = known.map(|outcome| settled(target, outcome, self.now));
                self.operators[who].fresh.extend(known);
            }
        }
    }

    /// Records what was done without writing it.
    fn record(&mut self, who: usize, event: Event) {
        let state = self.operators[who].object.state.clone();
        self.operators[who].object.state = self.fold(state, [(self.now, event.clone())]);
        self.operators[who].unwritten.push((self.now, event));
    }

    /// What expressions in a payload can see and what must not change between two dispatches.
    fn input(&self, state: &State, target: &Target) -> String {
        let before = match target {
            Target::Member { step, .. } | Target::StepCallback { step, .. } => *step,
            Target::Callback(_) => 0,
        };
        let seen: Vec<_> = (0..before)
            .map(|step| {
                let count = state.members(&self.plan, step).unwrap_or(0);
                let results = (0..count).map(|at| state.result(&member(step, at)));
                (state.counts(step), results.collect::<Vec<_>>())
            })
            .collect();
        let outcome = match target {
            Target::Callback(_) => (state.outcome(), state.message()),
            Target::Member { .. } | Target::StepCallback { .. } => (None, None),
        };
        format!("{seen:?} {outcome:?}")
    }

    fn acknowledge(&mut self, who: usize) {
        for target in std::mem::take(&mut self.operators[who].committed) {
            let of = |event: &&Event| matches!(event, Event::Settled { target: of, .. } if *of == target);
            let gone: Vec<_> = self.broker.completions.iter().filter(of).cloned().collect();
            self.broker.acknowledge(target);
            for event in gone {
                let known = self.fold(self.object.state.clone(), [(self.now, event)]);
                assert_eq!(known, self.object.state, "acknowledged though nobody wrote it");
                self.acknowledged.insert(target, self.object.version);
            }
        }
    }

    /// Retention is longer than any overtaken operator lives.
    fn forget(&mut self) {
        let oldest = self.operators.iter().map(|operator| operator.object.version).min().unwrap_or(0);
        let past = self.acknowledged.iter().filter(|(_, version)| **version <= oldest);
        self.broker.unpin(past.map(|(target, _)| *target));
        self.broker.forget();
    }

    fn end_a_job(&mut self, which: usize) -> bool {
        let runnable = self.broker.runnable(|target| self.fate(target));
        let Some(target) = runnable.get(which % runnable.len().max(1)).copied() else { return false };
        self.broker.settle(target, outcome(self.fate(&target)), self.now);
        true
    }

    /// One operator is left, and everything is done, heard and waited for.
    fn be_fair(&mut self) {
        self.operators[1] = Operator::default();
        self.ask(Wish::Suspend(false));
        self.now += LEASE;
        for _ in 0..500 {
            self.look(0);
            self.commit(0);
            self.acknowledge(0);
            self.operators[1].object.version = self.operators[0].object.version;
            self.forget();
            if self.object.state.is_terminal() {
                return;
            }
            let busy = self.perform(0, usize::MAX) || !self.operators[0].fresh.is_empty();
            if busy || self.end_a_job(0) || !self.broker.completions.is_empty() {
                continue;
            }
            let state = &self.operators[0].object.state;
            self.now = self.now.max(state.next_timer(&self.plan).unwrap_or(self.now));
        }
        panic!("it is stuck: {:#?}", self.object);
    }

    fn check_end(&self) {
        assert!(self.broker.started.values().all(|times| *times == 1), "{:?}", self.broker.started);
        let called = |callback| self.broker.started.contains_key(&Target::Callback(callback));
        assert!(!(called(Callback::Then) && called(Callback::Catch)));
        let phase = self.object.state.summary(&self.plan).phase;
        if matches!(phase, WorkflowPhase::Deleted | WorkflowPhase::Cancelled) {
            let left = self.broker.jobs.iter().filter(|(_, outcome)| outcome.is_none());
            let left: Vec<_> = left.map(|(target, _)| target).filter(|at| !self.asked.contains(at)).collect();
            assert!(left.iter().all(|at| self.overtaken.contains(at)), "{phase:?}: nobody stopped {left:?}");
        }
    }
}

fn plans() -> impl Strategy<Value = Plan> {
    let batch = (0..4_u32, any::<bool>(), any::<bool>()).prop_map(|(parallel, fast, called)| {
        let policy = if fast { FailurePolicy::FailFast } else { FailurePolicy::Continue };
        let callbacks = if called { ALL_CALLBACKS } else { NO_CALLBACKS };
        batch_with("b", Members::Resolved, policy, parallel, callbacks)
    });
    let deadline = prop::option::weighted(0.3, 1..5_000_u64);
    (batch, any::<bool>(), deadline).prop_map(|(batch, first, deadline)| {
        let steps = if first { vec![batch, job("last")] } else { vec![job("first"), batch] };
        // What hangs ends with the deadline.
        Plan { callbacks: ALL_CALLBACKS, deadline: deadline.or(Some(90_000_000)), ..plan(steps) }
    })
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        10 => Just(Fate::Succeeds),
        2 => Just(Fate::Fails),
        2 => Just(Fate::Stubborn),
        2 => Just(Fate::Hangs),
        1 => Just(Fate::Refused),
    ];
    prop::collection::vec(fate, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn two_operators_bring_a_workflow_to_one_end(
        plan in plans(),
        fates in fates(),
        acts in prop::collection::vec(act(), 0..120),
    ) {
        let mut place = Place::new(plan, fates);
        acts.into_iter().for_each(|act| place.act(act));
        place.be_fair();
        place.check_end();
    }

    #[test]
    fn a_completion_of_another_round_changes_nothing(
        round in 0..4_u32,
        other in 0..4_u32,
        events in prop::collection::vec((0..2_u16, 0..4_u32, any::<bool>()), 0..20),
    ) {
        let plan = Plan { callbacks: ALL_CALLBACKS, ..plan(vec![job("one"), job("two")]) };
        let started = fold(&plan, [(1, Event::Started)]);
        let (version, mut data) = checkpoint::encode(&started);
        data["round"] = round.into();
        let mut state = checkpoint::decode(version, &data).unwrap();
        prop_assert_eq!(state.round(), round);
        for (step, number, mine) in events {
            // What another round had may be unknown here.
            let target = if mine { member(step, 0) } else { member(step * 7, number) };
            let round = if mine { round } else { other };
            let event = Event::Settled { target, round, outcome: succeeded(), settled_at: 1 };
            if round == state.round() && target != member(step, 0) {
                continue;
            }
            let next = state.clone().apply(&plan, event, 1);
            if round != state.round() {
                prop_assert_eq!(next.clone(), Ok((state.clone(), vec![])));
            }
            state = next.unwrap().0;
        }
    }
}
