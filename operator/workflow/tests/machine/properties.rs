//! Histories that nobody would write by hand: duplicates, loss, late and contradicting completions, old rounds, users
//! who change their minds. What must hold holds after every event, and a fair world always comes to an end.

use crate::{
    broker::{Answer, Broker, Fate, outcome},
    world::{batch_with, cancels, dispatched, dispatches, failed, failure, job, plan, questions, succeeded},
};
use longshore_workflow::{
    Callback, CallbackPhase, CallbackSet, Effect, Event, FailurePolicy, Members, Millis, Plan, PlannedStep,
    State, StepPhase, Summary, Target, TransitionError, Work, WorkflowOutcome, WorkflowPhase, checkpoint,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What happens next in a history.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// The operator performs this many owed places, and records that or not.
    Perform {
        places: usize,
        recorded: bool,
    },
    /// A job in the broker ends.
    End(usize),
    /// A completion of the past arrives, perhaps again.
    Arrive(usize),
    /// A completion of any place that says this arrives out of nowhere.
    Invent {
        place: usize,
        well: bool,
        round: u32,
    },
    /// The broker says that it doesn't know a job.
    Lose(usize),
    /// The broker forgets what it may.
    Forget,
    /// Time passes and is told.
    Wait(Millis),
    Suspend,
    Resume,
    Cancel,
    Delete,
    /// The operator starts again from what was written.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1..6_usize, prop::bool::weighted(0.8))
            .prop_map(|(places, recorded)| Act::Perform { places, recorded }),
        8 => any::<usize>().prop_map(Act::End),
        8 => any::<usize>().prop_map(Act::Arrive),
        1 => (any::<usize>(), any::<bool>(), 0..2_u32)
            .prop_map(|(place, well, round)| Act::Invent { place, well, round }),
        1 => any::<usize>().prop_map(Act::Lose),
        2 => Just(Act::Forget),
        2 => prop_oneof![0..1_000_u64, 10_000..40_000_u64, 500_000..700_000_u64].prop_map(Act::Wait),
        1 => Just(Act::Suspend),
        2 => Just(Act::Resume),
        1 => prop::bool::weighted(0.15).prop_map(|yes| if yes { Act::Cancel } else { Act::Resume }),
        1 => prop::bool::weighted(0.1).prop_map(|yes| if yes { Act::Delete } else { Act::Resume }),
        2 => Just(Act::Restart),
    ]
}

fn callbacks() -> impl Strategy<Value = CallbackSet> {
    any::<(bool, bool, bool)>().prop_map(|(then, catch, finally)| CallbackSet { then, catch, finally })
}

fn step() -> impl Strategy<Value = PlannedStep> {
    let members = prop_oneof![(0..6_u32).prop_map(Members::Fixed), Just(Members::Resolved)];
    let policy = prop_oneof![Just(FailurePolicy::FailFast), Just(FailurePolicy::Continue)];
    let batch =
        (members, policy, 0..4_u32, callbacks()).prop_map(|(members, policy, parallel, callbacks)| {
            batch_with("b", members, policy, parallel, callbacks)
        });
    (prop_oneof![Just(job("j")), batch], prop::option::weighted(0.1, 1..100_000_u64))
        .prop_map(|(step, timeout)| PlannedStep { timeout, ..step })
}

pub(crate) fn any_plan() -> impl Strategy<Value = Plan> {
    (prop::collection::vec(step(), 0..4), callbacks(), prop::option::weighted(0.2, 1..2_000_000_u64))
        .prop_map(|(steps, callbacks, deadline)| Plan { callbacks, deadline, ..plan(steps) })
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        20 => Just(Fate::Succeeds),
        2 => Just(Fate::Fails),
        1 => Just(Fate::Stubborn),
        1 => Just(Fate::Forgotten),
        1 => Just(Fate::Refused),
    ]
}

/// A workflow in its world, with everything that was seen of it.
struct History {
    plan: Plan,
    fates: Vec<Fate>,
    resolves: u32,
    state: State,
    broker: Broker,
    now: Millis,
    past: Vec<Event>,
    /// Members that the state knows to be in the broker.
    out: BTreeSet<Target>,
    called: BTreeSet<Target>,
    deleting: bool,
}

impl History {
    fn new(plan: Plan, fates: Vec<Fate>, resolves: u32) -> Self {
        let mut history = Self {
            plan,
            fates,
            resolves,
            state: State::new(),
            broker: Broker::default(),
            now: 1_000_000,
            past: Vec::new(),
            out: BTreeSet::new(),
            called: BTreeSet::new(),
            deleting: false,
        };
        history.hear(&Event::Started);
        history
    }

    fn fate(&self, target: &Target) -> Fate {
        let number = match target {
            Target::Member { step, member } => usize::from(*step) * 7 + *member as usize,
            Target::StepCallback { step, callback } => usize::from(*step) * 7 + 3 + *callback as usize,
            Target::Callback(callback) => 5 + *callback as usize,
        };
        self.fates.get(number % self.fates.len()).copied().unwrap_or(Fate::Succeeds)
    }

    /// Applies an event and checks what must hold.
    fn hear(&mut self, event: &Event) {
        let before = self.state.clone();
        let (after, effects) = match before.clone().apply(&self.plan, event.clone(), self.now) {
            Ok(done) => done,
            Err(TransitionError::UnknownTarget(_) | TransitionError::UnknownStep(_)) => {
                assert!(self.is_invented(event), "the machine forgot what it owed: {event:?}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let (again, nothing) = after.clone().apply(&self.plan, event.clone(), self.now).unwrap();
        assert_eq!(again, after, "twice is once: {event:?}");
        assert_eq!(nothing, vec![], "what is known owes nothing: {event:?}");
        assert!(!before.is_terminal() || after == before, "the end is the end: {event:?}");
        if after == before {
            assert_eq!(effects, vec![], "nothing changed: {event:?}");
        } else {
            assert_eq!(effects, after.effects_owed(&self.plan, self.now));
        }
        let (version, data) = checkpoint::encode(&after);
        assert_eq!(checkpoint::decode(version, &data).unwrap(), after);
        assert!(data.to_string().len() <= State::worst_case_bytes(&self.plan), "{data}");
        self.follow(event, &before);
        check_summary(&self.plan, &before.summary(&self.plan), &after.summary(&self.plan));
        self.state = after;
        self.check_effects();
    }

    /// Whether the broker never had what the event speaks of.
    fn is_invented(&self, event: &Event) -> bool {
        match event {
            Event::Settled { target, .. } | Event::Lost { target } => {
                !self.broker.started.contains_key(target)
            }
            _ => false,
        }
    }

    fn follow(&mut self, event: &Event, before: &State) {
        match event {
            Event::Dispatched { targets } if !before.is_terminal() => self.out.extend(targets),
            Event::Settled { target, round: 0, .. } | Event::Lost { target } => {
                self.out.remove(target);
            }
            Event::DeletionRequested => self.deleting = true,
            Event::Dispatched { .. }
            | Event::Settled { .. }
            | Event::Started
            | Event::MembersResolved { .. }
            | Event::ResolveFailed { .. }
            | Event::DispatchRefused { .. }
            | Event::CancelAsked { .. }
            | Event::SuspendRequested
            | Event::ResumeRequested
            | Event::CancelRequested
            | Event::TimerFired => {}
        }
    }

    fn check_effects(&self) {
        let effects = self.state.effects_owed(&self.plan, self.now);
        let owed = dispatches(&effects);
        let summary = self.state.summary(&self.plan);
        let silent = self.state.is_suspended() || self.deleting || self.state.is_terminal();
        if silent {
            assert_eq!((owed.as_slice(), questions(&effects).as_slice()), (&[][..], &[][..]));
        }
        assert!(cancels(&effects).is_empty() || self.deleting || ends_early(&summary));
        let mut by_step: BTreeMap<u16, usize> = BTreeMap::new();
        for target in owed {
            assert!(!self.out.contains(&target), "{target:?} is in the broker already");
            if let Target::Member { step, .. } = target {
                *by_step.entry(step).or_default() += 1;
                let ended = &summary.steps[..usize::from(step)];
                assert!(ended.iter().all(|step| step.phase == StepPhase::Succeeded), "{target:?} is early");
                assert_eq!(summary.outcome, None, "{target:?} is late");
            }
        }
        for (step, owed) in by_step {
            let Work::Batch(batch) = &self.plan.steps[usize::from(step)].work else { continue };
            let most = batch.max_parallel.map_or(usize::MAX, |most| most.get() as usize);
            let out = self
                .out
                .iter()
                .filter(|target| matches!(target, Target::Member { step: of, .. } if *of == step));
            assert!(owed + out.count() <= most, "more than {most} members at once");
        }
        assert!(effects.iter().all(|effect| crate::world::targets(effect).len() <= Effect::MAX_TARGETS));
    }

    /// The operator performs up to so many places of what is owed. Whether there was anything.
    fn perform(&mut self, places: usize, recorded: bool) -> bool {
        let effects = self.state.effects_owed(&self.plan, self.now);
        let mut left = places;
        for effect in &effects {
            if let Effect::Resolve { step } = effect {
                self.hear(&Event::MembersResolved { step: *step, count: self.resolves });
            }
            for target in crate::world::targets(effect) {
                if left == 0 {
                    return true;
                }
                left -= 1;
                let event = self.touch(effect, target);
                if recorded {
                    event.into_iter().for_each(|event| self.hear(&event));
                }
            }
        }
        !effects.is_empty()
    }

    fn touch(&mut self, effect: &Effect, target: Target) -> Vec<Event> {
        let fate = self.fate(&target);
        if matches!(effect, Effect::CancelJobs { .. }) {
            self.broker.cancel(target, fate, self.now);
            return vec![Event::CancelAsked { targets: vec![target] }];
        }
        if !matches!(target, Target::Member { .. }) {
            self.called.insert(target);
        }
        let asked = matches!(effect, Effect::Ask { .. });
        match self.broker.enqueue(target, fate) {
            Answer::Refused => vec![Event::DispatchRefused { target, failure: failure("TooLarge") }],
            Answer::Created if asked => vec![Event::Lost { target }, dispatched([target])],
            Answer::Created => vec![dispatched([target])],
            Answer::Duplicate(outcome) => {
                let known = dispatched([target]);
                let outcome = outcome.map(|outcome| crate::world::settled(target, outcome, self.now));
                std::iter::once(known).chain(outcome).collect()
            }
        }
    }

    fn end_a_job(&mut self, which: usize) -> bool {
        let runnable = self.broker.runnable(|_| Fate::Succeeds);
        let Some(target) = runnable.get(which % runnable.len().max(1)).copied() else { return false };
        self.broker.settle(target, outcome(self.fate(&target)), self.now);
        true
    }

    /// To be heard is as good as to be written, so the completion is acknowledged.
    fn arrive(&mut self, event: &Event) {
        self.hear(event);
        if let Event::Settled { target, .. } = event {
            self.broker.acknowledge(*target);
        }
    }

    fn forget(&mut self) {
        self.broker.unpin(self.broker.jobs.clone().into_keys());
        self.broker.forget();
    }

    fn act(&mut self, act: Act) {
        self.past.append(&mut self.broker.completions);
        match act {
            Act::Perform { places, recorded } => {
                self.perform(places, recorded);
            }
            Act::End(which) => {
                self.end_a_job(which);
            }
            Act::Arrive(which) => {
                if let Some(event) = self.past.get(which % self.past.len().max(1)).cloned() {
                    self.arrive(&event);
                }
            }
            Act::Invent { place, well, round } => {
                let target = Self::place(place);
                let outcome = if well { succeeded() } else { failed() };
                self.hear(&Event::Settled { target, round, outcome, settled_at: self.now });
            }
            Act::Lose(which) => self.hear(&Event::Lost { target: Self::place(which) }),
            Act::Forget => self.forget(),
            Act::Wait(time) => {
                self.now += time;
                self.hear(&Event::TimerFired);
            }
            Act::Suspend => self.hear(&Event::SuspendRequested),
            Act::Resume => self.hear(&Event::ResumeRequested),
            Act::Cancel => self.hear(&Event::CancelRequested),
            Act::Delete => self.hear(&Event::DeletionRequested),
            Act::Restart => {
                let (version, data) = checkpoint::encode(&self.state);
                self.state = checkpoint::decode(version, &data).unwrap();
            }
        }
    }

    fn place(which: usize) -> Target {
        let step = u16::try_from(which % 5).unwrap();
        match which / 5 % 4 {
            0 => Target::Callback(Callback::ALL[which % 3]),
            1 => Target::StepCallback { step, callback: Callback::ALL[which % 3] },
            _ => Target::Member { step, member: u32::try_from(which / 20 % 6).unwrap() },
        }
    }

    /// From here on everything is done, heard and waited for.
    fn be_fair(&mut self) {
        self.hear(&Event::ResumeRequested);
        for _ in 0..2_000 {
            if self.state.is_terminal() {
                return;
            }
            self.past.append(&mut self.broker.completions);
            for event in std::mem::take(&mut self.past) {
                self.arrive(&event);
            }
            self.forget();
            if self.perform(usize::MAX, true) || self.end_a_job(0) {
                continue;
            }
            if let Some(timer) =
                self.state.next_timer(&self.plan).filter(|_| self.broker.completions.is_empty())
            {
                self.now = self.now.max(timer);
                self.hear(&Event::TimerFired);
            }
        }
        panic!("it is stuck: {:#?}", self.state);
    }
}

fn ends_early(summary: &Summary) -> bool {
    // A batch that fails fast stops its members before the workflow's outcome is decided.
    summary.outcome.is_some_and(|outcome| outcome != WorkflowOutcome::Succeeded)
        || summary.steps.iter().any(|step| step.phase == StepPhase::Running && step.message.is_some())
}

fn check_summary(plan: &Plan, before: &Summary, after: &Summary) {
    let ended = |summary: &Summary| summary.phase.is_terminal();
    assert!(before.outcome.is_none() || before.outcome == after.outcome, "an outcome stands");
    assert_eq!(ended(after), after.finished_at.is_some());
    let all = after.steps.iter().all(|step| step.phase == StepPhase::Succeeded);
    if after.outcome == Some(WorkflowOutcome::Succeeded) {
        assert!(all, "success without all steps");
    }
    let calls = [(&after.callbacks, plan.callbacks)].into_iter().chain(
        after.steps.iter().zip(&plan.steps).map(|(step, planned)| match &planned.work {
            Work::Job => (&step.callbacks, CallbackSet::default()),
            Work::Batch(batch) => (&step.callbacks, batch.callbacks),
        }),
    );
    for (called, planned) in calls {
        let at = |callback| called.iter().find(|called| called.callback == callback);
        assert!(at(Callback::Then).is_none() || at(Callback::Catch).is_none(), "then and catch");
        for first in [at(Callback::Then), at(Callback::Catch)].into_iter().flatten() {
            let over = matches!(first.phase, CallbackPhase::Succeeded | CallbackPhase::Failed);
            assert!(over || at(Callback::Finally).is_none(), "finally before {first:?} settled");
        }
        assert!(called.iter().all(|called| planned.has(called.callback)));
    }
    if ended(after) && after.phase != WorkflowPhase::Deleted {
        let well = after.outcome == Some(WorkflowOutcome::Succeeded);
        let called: Vec<_> = after.callbacks.iter().map(|called| called.callback).collect();
        let first = if well { Callback::Then } else { Callback::Catch };
        let expected: Vec<_> =
            [first, Callback::Finally].into_iter().filter(|callback| plan.callbacks.has(*callback)).collect();
        assert_eq!(called, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_sound_and_ends(
        plan in any_plan(),
        fates in prop::collection::vec(any_fate(), 1..20),
        resolves in 0..6_u32,
        acts in prop::collection::vec(act(), 0..60),
    ) {
        let mut history = History::new(plan, fates, resolves);
        acts.into_iter().for_each(|act| history.act(act));
        history.be_fair();
        let called = &history.called;
        prop_assert!(!(called.contains(&Target::Callback(Callback::Then)) && called.contains(&Target::Callback(Callback::Catch))));
        prop_assert!(history.broker.started.values().all(|times| *times == 1));
    }

    #[test]
    fn without_trouble_every_workflow_succeeds(
        steps in prop::collection::vec(step(), 0..4),
        callbacks in callbacks(),
        resolves in 0..6_u32,
    ) {
        let steps = steps.into_iter().map(|step| PlannedStep { timeout: None, ..step }).collect();
        let mut history = History::new(Plan { callbacks, ..plan(steps) }, vec![Fate::Succeeds], resolves);
        history.be_fair();
        let summary = history.state.summary(&history.plan);
        prop_assert_eq!(summary.phase, WorkflowPhase::Succeeded);
        let members: u32 = summary.steps.iter().map(|step| step.total.unwrap_or(0)).sum();
        let called: usize = summary.callbacks.len() + summary.steps.iter().map(|step| step.callbacks.len()).sum::<usize>();
        prop_assert_eq!(history.broker.started.len(), members as usize + called);
    }
}
