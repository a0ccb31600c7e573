//! Many events at once come to the same as one after the other, and completions of a batch in any order.

use crate::{
    properties::any_plan,
    world::{RESYNC, batch_with, dispatched, failed, failure, fold, job, member, plan, settled, succeeded},
};
use longshore_workflow::{
    Callback, CallbackSet, Event, FailurePolicy, Members, Millis, Plan, State, Target, TransitionError,
};
use proptest::prelude::*;

fn target() -> impl Strategy<Value = Target> {
    let callback = (0..3_usize).prop_map(|at| Callback::ALL[at]);
    prop_oneof![
        8 => (0..3_u16, 0..5_u32).prop_map(|(step, at)| member(step, at)),
        2 => (0..3_u16, callback.clone()).prop_map(|(step, callback)| Target::StepCallback { step, callback }),
        1 => callback.prop_map(Target::Callback),
    ]
}

/// Also such that the workflow can't understand.
fn event() -> impl Strategy<Value = Event> {
    let targets = || prop::collection::vec(target(), 0..4);
    let ending = (target(), 0..5_u32, any::<bool>(), 0..2_000_000_u64);
    prop_oneof![
        2 => (0..3_u16, 0..5_u32).prop_map(|(step, count)| Event::MembersResolved { step, count }),
        1 => (0..3_u16).prop_map(|step| Event::ResolveFailed { step, failure: failure("Expression") }),
        4 => targets().prop_map(dispatched),
        1 => target().prop_map(|target| Event::DispatchRefused { target, failure: failure("TooLarge") }),
        12 => ending.prop_map(|(target, round, well, at)| Event::Settled {
            target,
            round: round / 4,
            outcome: if well { succeeded() } else { failed() },
            settled_at: at,
        }),
        2 => target().prop_map(|target| Event::Lost { target }),
        2 => targets().prop_map(|targets| Event::CancelAsked { targets }),
        1 => Just(Event::SuspendRequested),
        1 => Just(Event::ResumeRequested),
        1 => prop_oneof![Just(Event::CancelRequested), Just(Event::DeletionRequested)],
        2 => Just(Event::TimerFired),
    ]
}

/// Its times may go back, as those of what was recorded late do.
fn events() -> impl Strategy<Value = Vec<(Millis, Event)>> {
    let rest = prop::collection::vec((0..2_000_000_u64, event()), 0..60);
    rest.prop_map(|rest| std::iter::once((1, Event::Started)).chain(rest).collect())
}

fn one_by_one(
    plan: &Plan,
    state: State,
    events: impl IntoIterator<Item = (Millis, Event)>,
) -> (State, Vec<TransitionError>) {
    let mut refused = Vec::new();
    let end =
        events.into_iter().fold(state, |state, (now, event)| match state.clone().apply(plan, event, now) {
            Ok((next, _)) => next,
            Err(error) => {
                refused.push(error);
                state
            }
        });
    (end, refused)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn many_at_once_come_to_the_same_as_one_by_one(plan in any_plan(), events in events()) {
        let expected = one_by_one(&plan, State::new(), events.clone());
        prop_assert_eq!(State::new().fold(&plan, events), expected);
    }

    #[test]
    fn the_order_of_completions_does_not_matter_to_a_batch(
        (fails, order) in (1..40_usize).prop_flat_map(|count| (
            prop::collection::vec(prop::bool::weighted(0.1), count),
            Just((0..count).collect::<Vec<_>>()).prop_shuffle(),
        )),
    ) {
        let count = u32::try_from(fails.len()).unwrap();
        let callbacks = CallbackSet::default();
        let plan = plan(vec![batch_with("b", Members::Fixed(count), FailurePolicy::Continue, 0, callbacks)]);
        let end = |order: &[usize]| {
            let events = order.iter().map(|at| {
                let outcome = if fails[*at] { failed() } else { succeeded() };
                (1, settled(member(0, u32::try_from(*at).unwrap()), outcome, 1))
            });
            fold(&plan, std::iter::once((1, Event::Started)).chain(events))
        };
        let (one, other) = (end(&order).summary(&plan), end(&(0..fails.len()).collect::<Vec<_>>()).summary(&plan));
        prop_assert_eq!((one.phase, one.steps[0].succeeded), (other.phase, other.steps[0].succeeded));
    }
}

/// Questions and cancellations close gaps between members as they go: that must not depend on how many come at once.
#[test]
fn a_broken_pattern_of_answers_comes_to_the_same() {
    let wide = batch_with("b", Members::Fixed(600), FailurePolicy::Continue, 500, CallbackSet::default());
    let plan = plan(vec![wide]);
    let begun = [(1, Event::Started), (1, dispatched((0..450).map(|at| member(0, at))))];
    let scattered = |from: u32| (0..450).step_by(2).map(move |at| (at * 7 + from) % 450);
    let silent = 1 + RESYNC;
    let answers = scattered(0).map(|at| (silent, dispatched([member(0, at)])));
    let lost = scattered(1).map(|at| (silent, Event::Lost { target: member(0, at) }));
    let stop = std::iter::once((silent, Event::CancelRequested));
    let asked = scattered(0).map(|at| (silent, Event::CancelAsked { targets: vec![member(0, at)] }));
    let events: Vec<_> = begun.into_iter().chain(answers).chain(lost).chain(stop).chain(asked).collect();
    let (state, refused) = State::new().fold(&plan, events.clone());
    assert_eq!((state, refused), one_by_one(&plan, State::new(), events));
}

#[test]
fn what_is_not_understood_is_passed_over() {
    let plan = plan(vec![job("one")]);
    let unknown = member(3, 0);
    let events = [
        Event::Started,
        Event::Lost { target: unknown },
        dispatched([member(0, 0), unknown]),
        settled(member(0, 0), succeeded(), 1),
    ];
    let (state, refused) = State::new().fold(&plan, events.map(|event| (1, event)));
    assert_eq!(refused, vec![TransitionError::UnknownStep(3); 2]);
    assert!(state.is_terminal(), "the others count");
}
