//! Transcripts that people can read. `UPDATE_GOLDEN=1` writes them anew.

use crate::world::{
    ALL_CALLBACKS, RESYNC, batch_with, dispatched, failed, failure, fold, job, member, plan, settled,
    succeeded, then,
};
use longshore_workflow::{
    CANCEL_GRACE, Callback, Event, FailurePolicy, Members, Millis, Outcome, Plan, State, Target,
    WorkflowPhase,
};
use std::fmt::Write;

fn one_line(state: &State, plan: &Plan, now: Millis) -> String {
    let summary = state.summary(plan);
    let steps: Vec<_> = summary
        .steps
        .iter()
        .map(|it| format!("{} {:?} {}+{}", it.name, it.phase, it.succeeded, it.failed))
        .collect();
    let called: Vec<_> =
        summary.callbacks.iter().map(|it| format!("{} {:?}", it.callback.text(), it.phase)).collect();
    let suspended = if summary.suspended { " suspended" } else { "" };
    let mut line = format!("{:?}{suspended} [{}] [{}]", summary.phase, steps.join(", "), called.join(", "));
    for effect in state.effects_owed(plan, now) {
        write!(line, "\n      owes {effect:?}").unwrap();
    }
    line
}

fn check(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, known, "{name} differs: UPDATE_GOLDEN=1 writes it anew");
}

fn transcript(name: &str, plan: &Plan, events: impl IntoIterator<Item = (Millis, Event)>) {
    let (mut state, mut text) = (State::new(), String::new());
    for (now, event) in events {
        writeln!(text, "{now} {event:?}").unwrap();
        state = state.apply(plan, event, now).unwrap().0;
        writeln!(text, "   -> {}", one_line(&state, plan, now)).unwrap();
    }
    assert!(state.is_terminal(), "{name} is told to its end");
    check(name, &text);
}

fn batch(policy: FailurePolicy) -> Plan {
    let thumbs = batch_with("thumbs", Members::Resolved, policy, 2, ALL_CALLBACKS);
    Plan { callbacks: ALL_CALLBACKS, ..plan(vec![thumbs]) }
}

fn of_step(callback: Callback) -> Target {
    Target::StepCallback { step: 0, callback }
}

fn asked(target: Target) -> Event {
    Event::CancelAsked { targets: vec![target] }
}

/// A batch of three whose first two members are out, and what comes then.
fn begun(more: impl IntoIterator<Item = (Millis, Event)>) -> Vec<(Millis, Event)> {
    let begun = [
        (1, Event::Started),
        (2, Event::MembersResolved { step: 0, count: 3 }),
        (3, dispatched([member(0, 0), member(0, 1)])),
    ];
    begun.into_iter().chain(more).collect()
}

/// The callbacks of the batch and then of the workflow go in and end, one each millisecond from then on.
fn called_back(from: Millis, first: Callback) -> impl Iterator<Item = (Millis, Event)> {
    let calls = [first, Callback::Finally];
    let calls = calls.map(of_step).into_iter().chain(calls.map(Target::Callback));
    calls
        .zip(from..)
        .flat_map(|(target, at)| [(at, dispatched([target])), (at, settled(target, succeeded(), at))])
}

/// The cancellation of all that are out, and their ends. Each makes room for one that may have gone in unrecorded.
fn stopped(at: Millis) -> impl Iterator<Item = (Millis, Event)> {
    let ask = (at, Event::CancelAsked { targets: vec![member(0, 0), member(0, 1)] });
    let end = |number| (at + 1, settled(member(0, number), Outcome::Cancelled, at + 1));
    [ask, end(0), (at + 1, asked(member(0, 2))), end(1)].into_iter()
}

#[test]
fn steps_follow_each_other() {
    let chain = plan(vec![job("hello"), job("world")]);
    let events =
        [Event::Started, settled(member(0, 0), succeeded(), 1), settled(member(1, 0), succeeded(), 1)];
    transcript("hello-chain", &chain, events.map(|event| (1, event)));
}

#[test]
fn a_failed_member_stops_the_others() {
    let ends = [
        (4, settled(member(0, 0), failed(), 4)),
        (5, asked(member(0, 1))),
        (5, asked(member(0, 2))),
        (6, settled(member(0, 1), succeeded(), 6)),
        (7, settled(of_step(Callback::Catch), succeeded(), 7)),
        (8, settled(of_step(Callback::Finally), failed(), 8)),
        (9, settled(Target::Callback(Callback::Catch), succeeded(), 9)),
        (10, settled(Target::Callback(Callback::Finally), succeeded(), 10)),
    ];
    transcript("batch-fails-fast", &batch(FailurePolicy::FailFast), begun(ends));
}

/// One member ends when it is asked to, the other one runs on beyond the grace.
#[test]
fn a_cancellation_waits_for_members_and_calls_back() {
    let grace = 4 + CANCEL_GRACE;
    let cancel = [
        (4, Event::CancelRequested),
        (5, asked(member(0, 0))),
        (5, asked(member(0, 1))),
        (6, settled(member(0, 0), Outcome::Cancelled, 6)),
        (6, asked(member(0, 2))),
        (grace - 1, Event::TimerFired),
        (grace, Event::TimerFired),
    ];
    let mut calls: Vec<_> = called_back(grace + 1, Callback::Catch).collect();
    // It ends long after nobody waits for it.
    calls.insert(2, (grace + 1, settled(member(0, 1), succeeded(), grace + 1)));
    let events = begun(cancel.into_iter().chain(calls));
    transcript("cancel-in-a-batch", &batch(FailurePolicy::FailFast), events);
}

#[test]
fn a_deadline_ends_a_workflow_at_its_moment() {
    let timed = Plan { deadline: Some(1000), ..batch(FailurePolicy::FailFast) };
    let due = fold(&timed, begun([])).next_timer(&timed);
    assert_eq!(due, Some(1001), "counted from the start");
    let timer = [(1000, Event::TimerFired), (1001, Event::TimerFired)];
    let rest = stopped(1002).chain(called_back(1004, Callback::Catch));
    transcript("deadline", &timed, begun(timer.into_iter().chain(rest)));
}

#[test]
fn what_was_suspended_goes_on() {
    let pause = [
        (4, Event::SuspendRequested),
        (5, settled(member(0, 0), succeeded(), 5)),
        (6, Event::ResumeRequested),
        (7, dispatched([member(0, 2)])),
        (8, settled(member(0, 1), succeeded(), 8)),
        (9, settled(member(0, 2), succeeded(), 9)),
        // Callbacks wait too.
        (10, Event::SuspendRequested),
        (11, Event::ResumeRequested),
    ];
    let events = begun(pause.into_iter().chain(called_back(12, Callback::Then)));
    transcript("suspend-and-resume", &batch(FailurePolicy::FailFast), events);
}

/// All that are out are still there: a silence begins anew. The first one began when the members were known.
#[test]
fn members_that_are_asked_for_after_a_silence_run_on() {
    let silent = 2 + RESYNC;
    let (first, second) = (dispatched([member(0, 0)]), dispatched([member(0, 1)]));
    let answers = [
        (silent - 1, Event::TimerFired),
        (silent, Event::TimerFired),
        (silent, second),
        (silent + 1, first),
        (silent + RESYNC, Event::TimerFired),
        (silent + RESYNC, settled(member(0, 0), succeeded(), silent + RESYNC)),
        (silent + RESYNC, dispatched([member(0, 2)])),
        (silent + RESYNC, settled(member(0, 1), succeeded(), silent + RESYNC)),
        (silent + RESYNC, settled(member(0, 2), succeeded(), silent + RESYNC)),
    ];
    let rest = called_back(silent + RESYNC + 1, Callback::Then);
    transcript(
        "resync-after-silence",
        &batch(FailurePolicy::FailFast),
        begun(answers.into_iter().chain(rest)),
    );
}

#[test]
fn a_member_that_was_lost_goes_in_again() {
    let silent = 2 + RESYNC;
    let answers = [
        (silent, Event::TimerFired),
        (silent, dispatched([member(0, 1)])),
        (silent, Event::Lost { target: member(0, 0) }),
        (silent + 1, dispatched([member(0, 0)])),
        (silent + 2, settled(member(0, 0), succeeded(), silent + 2)),
        (silent + 3, dispatched([member(0, 2)])),
        (silent + 4, settled(member(0, 1), succeeded(), silent + 4)),
        (silent + 5, settled(member(0, 2), succeeded(), silent + 5)),
    ];
    let rest = called_back(silent + 6, Callback::Then);
    transcript("lost-job", &batch(FailurePolicy::FailFast), begun(answers.into_iter().chain(rest)));
}

#[test]
fn a_deletion_stops_members_and_calls_nobody() {
    let deletion = std::iter::once((4, Event::DeletionRequested)).chain(stopped(5));
    transcript("deletion", &batch(FailurePolicy::FailFast), begun(deletion));
}

/// The phase after it in the table. A new one must get its place here.
const fn after(phase: WorkflowPhase) -> Option<WorkflowPhase> {
    match phase {
        WorkflowPhase::Pending => Some(WorkflowPhase::Running),
        WorkflowPhase::Running => Some(WorkflowPhase::Finishing),
        WorkflowPhase::Finishing => Some(WorkflowPhase::Succeeded),
        WorkflowPhase::Succeeded => Some(WorkflowPhase::Failed),
        WorkflowPhase::Failed => Some(WorkflowPhase::Cancelled),
        WorkflowPhase::Cancelled => Some(WorkflowPhase::Deleted),
        WorkflowPhase::Deleted => None,
    }
}

/// How a workflow gets into a phase.
fn way_to(phase: WorkflowPhase) -> Vec<Event> {
    let running = [Event::MembersResolved { step: 0, count: 2 }, dispatched([member(0, 0)])];
    let none = Event::MembersResolved { step: 0, count: 0 };
    let broken = Event::ResolveFailed { step: 0, failure: failure("Expression") };
    let over = |target| settled(target, succeeded(), 2);
    let ended = |how: Event| {
        let calls = Callback::ALL.map(of_step).into_iter().chain(Callback::ALL.map(Target::Callback));
        std::iter::once(how).chain(calls.map(over)).collect()
    };
    let rest = match phase {
        WorkflowPhase::Pending => return Vec::new(),
        WorkflowPhase::Running => running.to_vec(),
        WorkflowPhase::Finishing => {
            vec![none, over(of_step(Callback::Then)), over(of_step(Callback::Finally))]
        }
        WorkflowPhase::Succeeded => ended(none),
        WorkflowPhase::Failed => ended(broken),
        WorkflowPhase::Cancelled => ended(Event::CancelRequested),
        WorkflowPhase::Deleted => vec![Event::DeletionRequested],
    };
    std::iter::once(Event::Started).chain(rest).collect()
}

/// Every phase hears every event.
#[test]
fn every_phase_answers_every_event_as_it_did() {
    let plan = batch(FailurePolicy::FailFast);
    let mut states = Vec::new();
    for phase in std::iter::successors(Some(WorkflowPhase::Pending), |phase| after(*phase)) {
        let state = fold(&plan, way_to(phase).into_iter().map(|event| (2, event)));
        assert_eq!(state.summary(&plan).phase, phase);
        states.push(state.clone());
        if phase == WorkflowPhase::Running {
            states.push(then(state, &plan, Event::SuspendRequested, 2));
        }
    }
    let mut text = String::new();
    for state in states {
        writeln!(text, "{}", one_line(&state, &plan, 3)).unwrap();
        for event in one_of_each() {
            let heard = match state.clone().apply(&plan, event.clone(), 3) {
                Ok((next, _)) if next == state => "nothing".to_owned(),
                Ok((next, _)) => one_line(&next, &plan, 3),
                Err(error) => error.to_string(),
            };
            writeln!(text, "   {} -> {heard}", event.name()).unwrap();
        }
    }
    check("every-phase-and-event", &text);
}

fn one_of_each() -> Vec<Event> {
    let events = [
        Event::Started,
        Event::MembersResolved { step: 0, count: 1 },
        Event::ResolveFailed { step: 0, failure: failure("Expression") },
        dispatched([member(0, 1)]),
        Event::DispatchRefused { target: member(0, 1), failure: failure("TooLarge") },
        settled(member(0, 0), succeeded(), 3),
        Event::Lost { target: member(0, 0) },
        asked(member(0, 0)),
        Event::SuspendRequested,
        Event::ResumeRequested,
        Event::CancelRequested,
        Event::DeletionRequested,
        Event::TimerFired,
    ];
    assert_eq!(events.clone().map(|event| event.name()), Event::NAMES, "one of each");
    events.to_vec()
}
