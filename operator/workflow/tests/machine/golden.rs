//! Transcripts that people can read. `UPDATE_GOLDEN=1` writes them anew.

use crate::world::{
    ALL_CALLBACKS, RESYNC, batch_with, dispatched, failed, failure, fold, job, member, plan, settled,
    succeeded,
};
use longshore_workflow::{
    CANCEL_GRACE, Callback, Event, FailurePolicy, Members, Millis, Plan, State, Target,
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

#[test]
fn transcripts_stay_as_they_are() {
    let fast = batch(FailurePolicy::FailFast);
    let begun = || {
        vec![
            (1, Event::Started),
            (2, Event::MembersResolved { step: 0, count: 3 }),
            (3, dispatched([member(0, 0), member(0, 1)])),
        ]
    };
    let with = |more: Vec<(Millis, Event)>| begun().into_iter().chain(more);
    let chain = plan(vec![job("hello"), job("world")]);
    let hello =
        [Event::Started, settled(member(0, 0), succeeded(), 1), settled(member(1, 0), succeeded(), 1)];
    transcript("hello-chain", &chain, hello.map(|event| (1, event)));
    let stop = || vec![(5, asked(member(0, 0))), (5, asked(member(0, 1))), (5, asked(member(0, 2)))];
    let ends = vec![
        (4, settled(member(0, 0), failed(), 4)),
        (5, asked(member(0, 1))),
        (5, asked(member(0, 2))),
        (6, settled(member(0, 1), succeeded(), 6)),
        (7, settled(of_step(Callback::Catch), succeeded(), 7)),
        (8, settled(of_step(Callback::Finally), failed(), 8)),
        (9, settled(Target::Callback(Callback::Catch), succeeded(), 9)),
        (10, settled(Target::Callback(Callback::Finally), succeeded(), 10)),
    ];
    transcript("batch-fails-fast", &fast, with(ends));
    let mut cancel = vec![(4, Event::CancelRequested)];
    cancel.extend(stop());
    cancel.push((4 + CANCEL_GRACE, Event::TimerFired));
    transcript("cancel-in-a-batch", &fast, with(cancel));
    let timed = Plan { deadline: Some(1000), ..batch(FailurePolicy::FailFast) };
    transcript("deadline", &timed, with(vec![(1000, Event::TimerFired), (1001, Event::TimerFired)]));
    let pause = vec![
        (4, Event::SuspendRequested),
        (5, settled(member(0, 0), succeeded(), 5)),
        (6, Event::ResumeRequested),
    ];
    transcript("suspend-and-resume", &fast, with(pause));
    let late = 3 + RESYNC;
    let silence = vec![
        (late, Event::TimerFired),
        (late, dispatched([member(0, 1)])),
        (late, Event::Lost { target: member(0, 0) }),
    ];
    transcript("lost-after-silence", &fast, with(silence));
    let mut deletion = vec![(4, Event::DeletionRequested)];
    deletion.extend(stop());
    deletion.extend([0, 1].map(|at| (6, settled(member(0, at), failed(), 6))));
    transcript("deletion", &fast, with(deletion));
}

/// Every phase hears every event.
#[test]
fn every_phase_answers_every_event_as_it_did() {
    let plan = batch(FailurePolicy::FailFast);
    let end = |how: Event| {
        let rest = [Callback::Then, Callback::Catch, Callback::Finally];
        let calls = rest.map(of_step).into_iter().chain(rest.map(Target::Callback));
        let calls: Vec<_> = calls.map(|target| (3, settled(target, succeeded(), 3))).collect();
        vec![(1, Event::Started), (2, how)].into_iter().chain(calls.clone()).chain(calls)
    };
    let none = || Event::MembersResolved { step: 0, count: 0 };
    let broken = || Event::ResolveFailed { step: 0, failure: failure("Expression") };
    let running = [Event::Started, Event::MembersResolved { step: 0, count: 2 }, dispatched([member(0, 0)])];
    let finishing = [Event::Started, none(), settled(of_step(Callback::Then), succeeded(), 1)];
    let finishing = finishing.into_iter().chain([settled(of_step(Callback::Finally), succeeded(), 1)]);
    let suspended = running.clone().into_iter().chain([Event::SuspendRequested]);
    let phases = [
        State::new(),
        fold(&plan, running.map(|event| (1, event))),
        fold(&plan, suspended.map(|event| (1, event))),
        fold(&plan, finishing.map(|event| (1, event))),
        fold(&plan, end(none())),
        fold(&plan, end(broken())),
        fold(&plan, end(Event::CancelRequested)),
        fold(&plan, [(1, Event::Started), (2, Event::DeletionRequested)]),
    ];
    let events = [
        Event::Started,
        Event::MembersResolved { step: 0, count: 1 },
        broken(),
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
    let mut text = String::new();
    for state in phases {
        writeln!(text, "{}", one_line(&state, &plan, 3)).unwrap();
        for event in &events {
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
