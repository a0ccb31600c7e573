//! What has to be stopped includes what may be in the broker though nobody recorded it.

use crate::world::{
    ALL_CALLBACKS, RESYNC, batch_with, cancels, dispatched, dispatches, failed, fold, job, member, plan,
    questions, settled, then,
};
use longshore_workflow::{
    Callback, CallbackSet, Event, FailurePolicy, Members, Plan, PlannedStep, State, StepPhase, Target,
    WorkflowPhase,
};

const CATCH: CallbackSet = CallbackSet { then: false, finally: false, ..ALL_CALLBACKS };

fn of(members: u32, parallel: u32) -> PlannedStep {
    batch_with("b", Members::Fixed(members), FailurePolicy::FailFast, parallel, CATCH)
}

fn asked(members: impl IntoIterator<Item = u32>) -> Event {
    Event::CancelAsked { targets: members.into_iter().map(|at| member(0, at)).collect() }
}

fn members(numbers: impl IntoIterator<Item = u32>) -> Vec<Target> {
    numbers.into_iter().map(|at| member(0, at)).collect()
}

fn owed_cancels(state: &State, plan: &Plan, now: u64) -> Vec<Target> {
    cancels(&state.effects_owed(plan, now))
}

/// The operator dispatched, died before that was recorded, and the next one's first news is the user's wish.
#[test]
fn a_deletion_heard_first_after_a_restart_cancels_what_may_be_out() {
    for step in [job("one"), of(3, 0)] {
        let plan = plan(vec![step]);
        let state = fold(&plan, [(1, Event::Started), (2, Event::DeletionRequested)]);
        let total = state.members(&plan, 0).unwrap();
        assert_eq!(state.summary(&plan).phase, WorkflowPhase::Running, "jobs may be out");
        assert_eq!(owed_cancels(&state, &plan, 2), members(0..total));
        assert!(state.may_have_jobs_out());
        let gone = then(state, &plan, asked(0..total), 3);
        assert_eq!(gone.summary(&plan).phase, WorkflowPhase::Deleted);
    }
}

#[test]
fn a_cancel_or_an_end_in_time_heard_first_after_a_restart_stops_members_before_catch() {
    let timed = PlannedStep { timeout: Some(10), ..of(3, 0) };
    let late = Plan { deadline: Some(10), ..plan(vec![of(3, 0)]) };
    for (plan, event) in [
        (plan(vec![of(3, 0)]), Event::CancelRequested),
        (plan(vec![timed]), Event::TimerFired),
        (late, Event::TimerFired),
    ] {
        let state = fold(&plan, [(1, Event::Started), (100, event.clone())]);
        let effects = state.effects_owed(&plan, 100);
        assert_eq!(cancels(&effects), members(0..3), "{event:?}");
        assert_eq!(dispatches(&effects), [], "catch waits until they were asked to stop");
        let stopped = then(state, &plan, asked(0..3), 101);
        let catch = Target::StepCallback { step: 0, callback: Callback::Catch };
        assert_eq!(dispatches(&stopped.effects_owed(&plan, 101)), [catch]);
    }
}

#[test]
fn a_broker_that_is_away_holds_the_end_for_the_grace_only() {
    let plan = plan(vec![of(3, 0)]);
    for event in [Event::CancelRequested, Event::DeletionRequested] {
        let state = fold(&plan, [(1, Event::Started), (100, event)]);
        let due = state.next_timer(&plan).unwrap();
        assert_eq!(due, 100 + longshore_workflow::CANCEL_GRACE);
        let later = then(state, &plan, Event::TimerFired, due);
        let catch = dispatches(&later.effects_owed(&plan, due));
        assert!(later.is_terminal() || !catch.is_empty(), "it goes on");
    }
}

#[test]
fn a_callback_that_may_be_out_is_cancelled_with_its_object() {
    let workflow = Plan { callbacks: ALL_CALLBACKS, ..plan(vec![job("one")]) };
    let events = [Event::Started, settled(member(0, 0), failed(), 1), Event::DeletionRequested];
    let state = fold(&workflow, events.map(|event| (1, event)));
    let catch = Target::Callback(Callback::Catch);
    assert_eq!(owed_cancels(&state, &workflow, 1), [catch]);
    assert!(!state.is_terminal());
    let gone = then(state, &workflow, Event::CancelAsked { targets: vec![catch] }, 1);
    assert_eq!(gone.summary(&workflow).phase, WorkflowPhase::Deleted);
}

/// Dispatching goes on from unrecorded dispatches, far beyond one go.
#[test]
fn all_that_may_be_out_is_cancelled_however_much_that_is() {
    let wide = plan(vec![of(20_000, 0)]);
    let state = fold(&wide, [(1, Event::Started), (2, Event::DeletionRequested)]);
    assert_eq!(owed_cancels(&state, &wide, 2).len(), 20_000);
    let narrow = plan(vec![of(20_000, 10)]);
    let events = [Event::Started, dispatched(members([2, 5])), Event::DeletionRequested];
    let state = fold(&narrow, events.map(|event| (1, event)));
    assert_eq!(owed_cancels(&state, &narrow, 2), members(0..10), "no more than may be in at once");
}

/// Members lie in two brokers, and one of them is away.
#[test]
fn whatever_part_of_the_cancels_was_done_the_rest_stays_owed() {
    let plan = plan(vec![of(6, 0)]);
    let events = [Event::Started, dispatched(members(0..6)), Event::CancelRequested, asked([1, 3, 5])];
    let state = fold(&plan, events.map(|event| (1, event)));
    assert_eq!(owed_cancels(&state, &plan, 1), members([0, 2, 4]));
    let state = then(state, &plan, asked([2]), 2);
    assert_eq!(owed_cancels(&state, &plan, 2), members([0, 4]));
    let state = then(state, &plan, asked([0, 4]), 3);
    assert_eq!(owed_cancels(&state, &plan, 3), []);
    assert_eq!(state.summary(&plan).steps[0].phase, StepPhase::Running, "they may still run");
}

#[test]
fn whatever_part_of_the_questions_was_answered_the_rest_stays_owed() {
    let plan = plan(vec![of(6, 0)]);
    let state = fold(&plan, [(1, Event::Started), (1, dispatched(members(0..6)))]);
    let silent = 1 + RESYNC;
    let asks = |state: &State| questions(&state.effects_owed(&plan, silent));
    assert_eq!(asks(&state), members(0..6));
    let state = then(state, &plan, dispatched(members([1, 3, 5])), silent);
    assert_eq!(asks(&state), members([0, 2, 4]));
    let state = then(state, &plan, Event::Lost { target: member(0, 2) }, silent);
    assert_eq!(asks(&state), members([0, 4]));
    let state = then(state, &plan, dispatched(members([0, 2, 4])), silent);
    assert_eq!((asks(&state), state.summary(&plan).lost), (vec![], 1));
    assert_eq!(state.next_timer(&plan), Some(silent + RESYNC));
}

/// Heard of a step that nobody ends it says nothing: later it may have to be asked for in earnest.
#[test]
fn a_cancellation_that_nobody_wanted_is_not_remembered() {
    let plan = plan(vec![of(2, 0)]);
    let events = [Event::Started, asked([0, 1]), Event::CancelRequested];
    let state = fold(&plan, events.map(|event| (1, event)));
    assert_eq!(owed_cancels(&state, &plan, 1), members([0, 1]));
}
