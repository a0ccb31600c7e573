//! A status has little room: whatever happens, a state stays below its estimate, and the estimate below the limit.

use crate::world::{ALL_CALLBACKS, NO_CALLBACKS, batch_with, fold, job, member, plan, settled, then};
use longshore_workflow::{
    Callback, CallbackSet, Event, Failure, FailurePolicy, MAX_MEMBERS, Members, Outcome, Plan, ResultRef,
    State, StepPhase, Target, checkpoint,
};
use proptest::prelude::*;

const SOFT: usize = 64 * 1024;
const HARD: usize = 256 * 1024;

fn bytes(state: &State) -> usize {
    checkpoint::encode(state).1.to_string().len()
}

fn batches(count: usize, members: Members, callbacks: CallbackSet) -> Plan {
    let step = || batch_with("b", members, FailurePolicy::Continue, 1, callbacks);
    let steps = (0..count).map(|_| step()).collect();
    Plan { callbacks, ..plan(steps) }
}

fn nasty() -> Failure {
    Failure { reason: "\"\u{1}é".repeat(100), message: "\u{1}\\\"\u{1f600}".repeat(1000) }
}

#[test]
fn every_workflow_of_a_hundred_steps_fits() {
    let largest = State::worst_case_bytes(&batches(100, Members::Resolved, ALL_CALLBACKS));
    assert!(largest <= HARD, "{largest}");
    let jobs = State::worst_case_bytes(&plan((0..100).map(|_| job("j")).collect()));
    assert!(jobs <= SOFT, "{jobs}");
    let wider = State::worst_case_bytes(&batches(1000, Members::Resolved, ALL_CALLBACKS));
    assert!(wider > HARD, "one that does not fit is seen: {wider}");
}

/// Texts with the worst pattern, as a batch in progress has them.
#[test]
fn the_largest_batch_takes_its_pattern_and_little_more() {
    let plan = batches(1, Members::Fixed(MAX_MEMBERS), NO_CALLBACKS);
    let events = (0..600).map(|at| {
        let outcome = match at % 3 {
            0 => Outcome::Failed(nasty()),
            1 => Outcome::Succeeded { result: ResultRef::Inline("\"".repeat(1024)) },
            _ => Outcome::Succeeded { result: ResultRef::None },
        };
        (1, settled(member(0, MAX_MEMBERS - 1 - at * 2), outcome, 1))
    });
    let state = fold(&plan, std::iter::once((1, Event::Started)).chain(events));
    assert!(bytes(&state) <= State::worst_case_bytes(&plan));
    assert!(State::worst_case_bytes(&plan) <= SOFT + 16 * 1024, "{}", State::worst_case_bytes(&plan));
}

/// Every third answers what stands elsewhere, the first of each batch what stands here.
fn answer(at: u32) -> ResultRef {
    match at {
        0 => ResultRef::Inline("\"here\"".to_owned()),
        _ if at % 3 == 1 => ResultRef::Stored { bytes: 5000 },
        _ => ResultRef::None,
    }
}

fn run(plan: &Plan, members: u32, answer: impl Fn(u32) -> ResultRef) -> State {
    let mut state = fold(plan, [(1, Event::Started)]);
    for step in 0..u16::try_from(plan.steps.len()).unwrap() {
        for at in 0..members {
            let outcome = Outcome::Succeeded { result: answer(at) };
            state = then(state, plan, settled(member(step, at), outcome, 1), 1);
        }
        for callback in [Callback::Then, Callback::Finally] {
            let target = Target::StepCallback { step, callback };
            state = then(state, plan, settled(target, Outcome::Failed(nasty()), 1), 1);
        }
        assert!(bytes(&state) <= State::worst_case_bytes(plan));
    }
    state
}

#[test]
fn patterns_of_ended_steps_are_kept_while_there_is_room() {
    let plan = batches(20, Members::Fixed(2000), ALL_CALLBACKS);
    let state = run(&plan, 2000, answer);
    let said = |step, at| state.result(&member(step, at)).unwrap();
    for step in 0..20 {
        assert_eq!(said(step, 0), ResultRef::Inline("\"here\"".to_owned()));
        assert_eq!(said(step, 1), ResultRef::Stored { bytes: 0 });
        assert_eq!(state.counts(step), (2000, 0));
    }
    assert_eq!(said(0, 2), ResultRef::None, "the first step's pattern has room");
    assert_eq!(said(19, 2), ResultRef::Stored { bytes: 0 }, "of the last only the store knows");
    let callbacks = |step: usize| state.summary(&plan).steps[step].callbacks[0].message.clone().unwrap();
    assert!(callbacks(0).len() > 100 && callbacks(19).len() < 60, "so with messages");
    assert!(bytes(&state) <= SOFT, "{}", bytes(&state));
}

/// Without a store nothing must be looked for there.
#[test]
fn where_no_result_stands_elsewhere_none_is_said_to() {
    let plan = batches(3, Members::Fixed(60), ALL_CALLBACKS);
    let here = |at: u32| match at % 2 {
        0 => ResultRef::Inline(at.to_string()),
        _ => ResultRef::None,
    };
    let state = run(&plan, 60, here);
    for (step, at) in (0..3).flat_map(|step| (0..60).map(move |at| (step, at))) {
        assert_eq!(state.result(&member(step, at)), Some(here(at)), "{step} {at}");
    }
    assert!(state.summary(&plan).steps.iter().all(|step| step.phase == StepPhase::Succeeded));
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        6 => Just(ResultRef::None),
        6 => (0..5000_u64).prop_map(|bytes| ResultRef::Stored { bytes }),
        1 => "[\"\\\\a-zé\u{1}]{0,1100}".prop_map(ResultRef::Inline),
    ]
    .prop_map(|result| Outcome::Succeeded { result })
    .boxed()
    .prop_union(prop_oneof![Just(Outcome::Failed(nasty())), Just(Outcome::Cancelled)].boxed())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_state_passes_its_estimate(
        members in 1..300_u32,
        steps in 1..5_usize,
        outcomes in prop::collection::vec(any_outcome(), 1..7),
        events in prop::collection::vec((0..5_u16, any::<u32>(), 0..9_u8), 0..400),
    ) {
        let plan = batches(steps, Members::Fixed(members), ALL_CALLBACKS);
        let mut state = fold(&plan, [(1, Event::Started)]);
        for (at, (step, number, kind)) in events.into_iter().enumerate() {
            let target = member(step % u16::try_from(steps).unwrap(), number % members);
            let outcome = outcomes[at % outcomes.len()].clone();
            let event = match kind {
                0 => Event::Dispatched { targets: vec![target] },
                1 => Event::CancelAsked { targets: vec![target] },
                2 if at % 50 == 0 => Event::CancelRequested,
                2 => Event::Lost { target },
                3 => settled(Target::StepCallback { step: 0, callback: Callback::ALL[at % 3] }, outcome, 1),
                _ => settled(target, outcome, 1),
            };
            state = then(state, &plan, event, u64::MAX / 2);
            prop_assert!(bytes(&state) <= State::worst_case_bytes(&plan));
        }
    }
}
