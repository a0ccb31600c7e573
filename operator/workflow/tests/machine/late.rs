//! News that comes after what it is about was decided.

use crate::world::{
    ALL_CALLBACKS, RESYNC, batch_with, dispatched, failure, fold, member, plan, settled, succeeded, then,
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
        Event::CancelAsked { targets: vec![member(0, 1)] },
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

/// Who performed keeps what it recorded in memory, and folds it again at each look until something is worth a commit.
#[test]
fn what_was_recorded_late_counts_from_its_own_time() {
    let plan = plan(vec![batch_with("b", Members::Fixed(2), FailurePolicy::Continue, 0, CATCH)]);
    let committed = fold(&plan, [(1, Event::Started), (1, dispatched([member(0, 0), member(0, 1)]))]);
    let answered_at = 1 + RESYNC;
    let answer = dispatched([member(0, 0), member(0, 1)]);
    let at_once = then(committed.clone(), &plan, answer.clone(), answered_at);
    // Meanwhile the clock was heard of.
    let ahead = then(committed, &plan, Event::TimerFired, answered_at + 500);
    let refolded = then(ahead, &plan, answer, answered_at);
    assert_eq!(refolded, at_once);
    assert_eq!(refolded.next_timer(&plan), Some(answered_at + RESYNC));
    let older = dispatched([member(0, 0), member(0, 1)]);
    assert_eq!(then(refolded.clone(), &plan, older, 2), refolded, "time that goes back changes nothing");
}
