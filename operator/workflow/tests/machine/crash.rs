//! An operator may die before and after every commit, every acknowledgement and every single effect, with what it did and
//! had not written; one with an old state may act beside the new one. The broker forgets what it may as soon as it may.
//! Every job runs once all the same, and the end is the same.

use crate::{
    broker::Fate,
    world::{ALL_CALLBACKS, NO_CALLBACKS, Scenario, World, batch_with, job, plan},
};
use longshore_workflow::{
    Callback, Event, FailurePolicy, Members, Plan, PlannedStep, StepPhase, StepSummary, Summary, Target,
    WorkflowPhase,
};
use std::collections::BTreeMap;

fn with_callbacks(steps: Vec<PlannedStep>) -> Plan {
    Plan { callbacks: ALL_CALLBACKS, ..plan(steps) }
}

fn scenarios() -> Vec<Scenario> {
    use FailurePolicy::{Continue, FailFast};
    let chain = || with_callbacks(vec![job("one"), job("two"), job("three")]);
    let whole = |policy, parallel| {
        let thumbs = batch_with("thumbs", Members::Resolved, policy, parallel, ALL_CALLBACKS);
        with_callbacks(vec![job("fetch"), thumbs, job("pack")])
    };
    vec![
        Scenario::new("chain", chain(), |_| Fate::Succeeds),
        Scenario::new("chain that fails", chain(), fails_at_step_1),
        Scenario::new("batch", whole(FailFast, 0), |_| Fate::Succeeds),
        Scenario::new("batch two by two", whole(FailFast, 2), |_| Fate::Succeeds),
        Scenario::new("batch that fails fast", whole(FailFast, 2), fails_at_step_1),
        Scenario::new("batch that fails to its end", whole(Continue, 2), fails_at_step_1),
        Scenario::new("stubborn member", whole(FailFast, 0), stubborn),
        Scenario::new("failing callbacks", whole(FailFast, 0), callbacks_fail),
        Scenario::new("forgotten jobs", whole(FailFast, 0), |_| Fate::Forgotten),
        Scenario::new("refused", whole(FailFast, 0), refused),
        Scenario { resolves: 0, ..Scenario::new("empty batch", whole(FailFast, 0), |_| Fate::Succeeds) },
        Scenario::new("cancelled", whole(FailFast, 2), hangs_at_step_1).asking(1, Event::CancelRequested),
        Scenario::new("deleted", whole(FailFast, 2), hangs_at_step_1).asking(1, Event::DeletionRequested),
        Scenario::new("suspended", whole(FailFast, 2), |_| Fate::Succeeds)
            .asking(2, Event::SuspendRequested)
            .asking(3, Event::ResumeRequested),
        Scenario::new("deadline", Plan { deadline: Some(60_000), ..whole(FailFast, 2) }, hangs_at_step_1),
        Scenario::new("timeout", with_timeout(), hangs_at_step_1),
    ]
}

fn with_timeout() -> Plan {
    let slow = PlannedStep { timeout: Some(60_000), ..job("slow") };
    Plan { callbacks: NO_CALLBACKS, ..plan(vec![job("quick"), slow]) }
}

fn fails_at_step_1(target: &Target) -> Fate {
    match target {
        Target::Member { step: 1, member } if *member != 1 => Fate::Fails,
        Target::Member { .. } | Target::StepCallback { .. } | Target::Callback(_) => Fate::Succeeds,
    }
}

fn hangs_at_step_1(target: &Target) -> Fate {
    match target {
        Target::Member { step: 1, .. } => Fate::Hangs,
        Target::Member { .. } | Target::StepCallback { .. } | Target::Callback(_) => Fate::Succeeds,
    }
}

fn stubborn(target: &Target) -> Fate {
    match target {
        Target::Member { step: 1, member: 0 } => Fate::Fails,
        Target::Member { step: 1, .. } => Fate::Stubborn,
        Target::Member { .. } | Target::StepCallback { .. } | Target::Callback(_) => Fate::Succeeds,
    }
}

fn callbacks_fail(target: &Target) -> Fate {
    match target {
        Target::Member { .. } => Fate::Succeeds,
        Target::StepCallback { .. } | Target::Callback(_) => Fate::Fails,
    }
}

fn refused(target: &Target) -> Fate {
    match target {
        Target::Member { step: 1, member: 2 } => Fate::Refused,
        Target::Member { .. } | Target::StepCallback { .. } | Target::Callback(_) => Fate::Succeeds,
    }
}

/// Each scenario that nobody disturbs ends as it should: the tests below compare with this.
#[test]
fn undisturbed_workflows_end_as_they_should() {
    use StepPhase::{Cancelled, Failed, Pending, Running, Skipped, Succeeded};
    let fine = (WorkflowPhase::Succeeded, vec![Succeeded; 3], vec!["then", "finally"]);
    let bad = (WorkflowPhase::Failed, vec![Succeeded, Failed, Skipped], vec!["catch", "finally"]);
    for scenario in scenarios() {
        let (phase, steps, callbacks) = match scenario.name {
            "chain" | "batch" | "batch two by two" | "failing callbacks" | "forgotten jobs"
            | "empty batch" | "suspended" => fine.clone(),
            "cancelled" => {
                (WorkflowPhase::Cancelled, vec![Succeeded, Cancelled, Skipped], vec!["catch", "finally"])
            }
            "deleted" => (WorkflowPhase::Deleted, vec![Succeeded, Running, Pending], vec![]),
            "timeout" => (WorkflowPhase::Failed, vec![Succeeded, Failed], vec![]),
            _ => bad.clone(),
        };
        let (summary, started) = World::new(&scenario, []).run();
        let name = scenario.name;
        assert_eq!(summary.phase, phase, "{name}");
        assert_eq!(summary.steps.iter().map(|step| step.phase).collect::<Vec<_>>(), steps, "{name}");
        let called: Vec<_> = summary.callbacks.iter().map(|called| called.callback.text()).collect();
        assert_eq!(called, callbacks, "{name}");
        assert!(started.values().all(|times| *times == 1), "{name}: {started:?}");
        let lost = if name == "forgotten jobs" { 9 } else { 0 };
        assert_eq!((summary.lost, summary.conflicting_completions), (lost, 0), "{name}");
    }
}

/// What must be the same whoever died. Jobs that are cancelled are not waited for where no record says that they are out,
/// and what comes after may be the end: then nobody hears how they ended.
fn end_of(mut world: World<'_>) -> (Summary, BTreeMap<Target, u32>) {
    let (mut summary, started) = world.run();
    if matches!(world.scenario.name, "deleted" | "timeout") {
        for step in summary.steps.iter_mut().filter(|step| step.phase != StepPhase::Succeeded) {
            let message = step.message.take().filter(|_| summary.phase != WorkflowPhase::Deleted);
            *step = StepSummary { succeeded: 0, failed: 0, message, ..step.clone() };
        }
    }
    assert!(started.values().all(|times| *times == 1), "{started:?}");
    (summary, started)
}

/// How often an operator that nobody disturbs could have died, and its end.
fn calm(scenario: &Scenario) -> (usize, (Summary, BTreeMap<Target, u32>)) {
    let mut world = World::new(scenario, []);
    world.run();
    (world.points, end_of(World::new(scenario, [])))
}

#[test]
fn the_end_is_the_same_wherever_the_operator_dies() {
    for scenario in scenarios().iter().filter(|scenario| scenario.name != "forgotten jobs") {
        let (points, expected) = calm(scenario);
        for point in 0..points {
            assert_eq!(end_of(World::new(scenario, [point])), expected, "{} at {point}", scenario.name);
        }
    }
}

#[test]
fn the_end_is_the_same_when_it_dies_again_and_again() {
    for scenario in scenarios().iter().filter(|scenario| scenario.name != "forgotten jobs") {
        let (points, expected) = calm(scenario);
        for first in 0..points {
            for apart in [1, 2, 3, 5, 8] {
                let dies_at = [first, first + apart, first + 2 * apart];
                assert_eq!(
                    end_of(World::new(scenario, dies_at)),
                    expected,
                    "{} at {dies_at:?}",
                    scenario.name
                );
            }
        }
    }
}

/// A broker that forgets a job after it was told to the operator that died forgets it only once: then the next operator's
/// own dispatch is the one that holds, and fewer are found lost.
#[test]
fn forgotten_jobs_run_once_wherever_the_operator_dies() {
    for scenario in scenarios().iter().filter(|scenario| scenario.name == "forgotten jobs") {
        let mut calm = World::new(scenario, []);
        let (_, expected) = calm.run();
        for point in 0..calm.points {
            let (summary, started) = World::new(scenario, [point]).run();
            assert_eq!((summary.phase, &started), (WorkflowPhase::Succeeded, &expected), "at {point}");
        }
    }
}

#[test]
fn an_operator_with_an_old_state_does_no_harm() {
    for scenario in scenarios().iter().filter(|scenario| scenario.name != "forgotten jobs") {
        let mut calm = World::new(scenario, []);
        calm.run();
        let expected = end_of(World::new(scenario, []));
        for point in 0..calm.points {
            // A third of all pairs, another third at each point.
            for old in (point % 3..calm.history.len()).step_by(3) {
                let mut world = World::new(scenario, []);
                world.stale = Some((point, old));
                assert_eq!(end_of(world), expected, "{}: state {old} at {point}", scenario.name);
            }
        }
    }
}

#[test]
fn callbacks_have_places_of_their_own() {
    let scenario = Scenario::new("chain", with_callbacks(vec![job("one")]), |_| Fate::Succeeds);
    let (_, started) = World::new(&scenario, []).run();
    let expected = [
        Target::Member { step: 0, member: 0 },
        Target::Callback(Callback::Then),
        Target::Callback(Callback::Finally),
    ];
    assert_eq!(started.into_keys().collect::<Vec<_>>(), expected);
}
