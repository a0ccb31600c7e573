//! News that comes after what it is about was decided.

use crate::world::{
    ALL_CALLBACKS, batch_with, dispatched, failure, fold, member, plan, settled, succeeded, then,
};
use longshore_workflow::{
    Callback, CallbackSet, Event, FailurePolicy, Members, StepPhase, Target, WorkflowPhase,
};

const CATCH: CallbackSet = CallbackSet { then: false, finally: false, ..ALL_CALLBACKS };

/// Found by `every_history_is_sound_and_ends`: nothing was ever due again.
#[test]
fn a_member_that_went_in_after_catch_began_holds_its_step_for_the_grace_only() {
    let plan = plan(vec![batch_with("b", Members::Resolved, FailurePolicy::FailFast, 0, CATCH)]);
    let catch = Target::StepCallback { step: 0, callback: Callback::Catch };
    let events = [
        Event::Started,
        Event::MembersResolved { step: 0, count: 2 },
        Event::DispatchRefused { target: member(0, 0), failure: failure("TooLarge") },
        dispatched([catch]),
        dispatched([member(0, 1)]),
        settled(catch, succeeded(), 1),
    ];
    let waits = fold(&plan, events.map(|event| (1, event)));
    assert_eq!(waits.summary(&plan).steps[0].phase, StepPhase::Running, "a member may still run");
    let timer = waits.next_timer(&plan).expect("the end of the grace is due");
    let ended = then(waits, &plan, Event::TimerFired, timer);
    assert_eq!(ended.summary(&plan).phase, WorkflowPhase::Failed);
}
