//! How much room a state takes.
//!
//! The step that runs may take the room of its whole pattern: there is one at a time, and one that did not succeed is the
//! last. Of those that succeeded only the results are wanted.

use crate::{
    Callback, CallbackSet, Failure, Millis, Plan, PlannedStep, Reason, State, StepPhase, Target,
    WorkflowOutcome, WorkflowPhase,
    members::Roster,
    ranges::Ranges,
    results::{MAX_CONFLICTS, MAX_FAILURES, MAX_INLINE_TOTAL, MAX_MESSAGE, longest_failure, width_of},
    state::{Slot, Slots, StepState},
};
use std::collections::BTreeMap;

/// Bytes that the patterns of all steps that succeeded take.
const MAX_PATTERNS: usize = 4 * 1024;
/// Bytes that the messages of all callbacks of ended steps take.
const MAX_MESSAGES: usize = 4 * 1024;

impl State {
    /// Bytes that the state of such a workflow takes at most as JSON, whatever happens to it. The rest of a status, and
    /// the spec, come on top.
    pub fn worst_case_bytes(plan: &Plan) -> usize {
        let rosters = plan.steps.iter().map(|step| Roster::worst_case_bytes(most_members(step)));
        let running = rosters.max().unwrap_or(0);
        json_bytes(&worst_state(plan)) + running + MAX_PATTERNS + MAX_MESSAGES + MAX_INLINE_TOTAL
    }

    /// Reduces what a step that has just ended keeps.
    pub(crate) fn compact(&mut self, index: usize) {
        let (mut patterns, mut messages) = (0, 0);
        for step in self.steps.iter().take(index) {
            patterns += step.members.as_ref().map_or(0, Roster::text_bytes);
            messages += step.callbacks.message_bytes();
        }
        let Some(step) = self.steps.get_mut(index) else { return };
        step.callbacks.cut_messages(MAX_MESSAGES.saturating_sub(messages));
        if step.phase == StepPhase::Succeeded {
            step.decided_at = None;
            step.forget_pattern(MAX_PATTERNS.saturating_sub(patterns));
        }
    }
}

impl StepState {
    /// Which members answered is kept as far as there is room. Without it nothing gets lost: results that stand here have
    /// the numbers of their members, and where others stand elsewhere, all that are not here are looked for there; one
    /// that never was is found to be nothing.
    fn forget_pattern(&mut self, room: usize) {
        let Some(members) = &mut self.members else { return };
        let here = u32::try_from(self.inline.len()).unwrap_or(u32::MAX);
        let elsewhere = members.answered() > here;
        if !elsewhere {
            members.all_silent();
        } else if members.text_bytes() > room.max(Roster::SHORT) {
            members.all_answered();
        }
    }
}

impl Slots {
    fn failures(&self) -> impl Iterator<Item = &Failure> {
        Callback::ALL.into_iter().filter_map(|callback| match self.get(callback) {
            Slot::Failed(failure) => Some(failure),
            Slot::Idle | Slot::Owed | Slot::Out | Slot::Done => None,
        })
    }

    fn message_bytes(&self) -> usize {
        self.failures().map(|failure| width_of(&failure.message)).sum()
    }

    fn cut_messages(&mut self, room: usize) {
        let mut left = room;
        for callback in Callback::ALL {
            let Slot::Failed(failure) = self.get(callback) else { continue };
            let width = width_of(&failure.message);
            if width <= left {
                left -= width;
            } else {
                let failure = Failure { reason: failure.reason.clone(), message: String::new() };
                self.set(callback, Slot::Failed(failure));
            }
        }
    }
}

fn json_bytes(value: &impl serde::Serialize) -> usize {
    serde_json::to_string(value).map_or(usize::MAX / 2, |text| text.len())
}

fn most_members(step: &PlannedStep) -> u32 {
    step.known_members().unwrap_or(crate::MAX_MEMBERS).min(crate::MAX_MEMBERS)
}

/// A state whose every field is as long as it gets, but for patterns, results and messages, which have limits for all
/// steps together.
fn worst_state(plan: &Plan) -> State {
    let mut steps: Vec<_> = plan.steps.iter().map(worst_ended).collect();
    if let Some(last) = steps.last_mut() {
        run_worst(last, plan);
    }
    let longest = Target::Member { step: u16::MAX, member: u32::MAX };
    State {
        phase: WorkflowPhase::Succeeded,
        round: u32::MAX,
        suspended: true,
        deleting_since: Some(Millis::MAX),
        started_at: Some(Millis::MAX),
        finished_at: Some(Millis::MAX),
        outcome: Some(WorkflowOutcome::Succeeded),
        reason: Some(Reason::DeadlineExceeded),
        message: Some("x".repeat(MAX_MESSAGE)),
        steps,
        callbacks: worst_slots(plan.callbacks, &longest_failure()),
        heard_at: Some(Millis::MAX),
        callback_cancelled: true,
        inline_bytes: u32::MAX,
        conflicting: (0..MAX_CONFLICTS)
            .map(|number| format!("{number:02}{}", longest.encode(u32::MAX)))
            .collect(),
        lost: u32::MAX,
    }
}

fn worst_ended(planned: &PlannedStep) -> StepState {
    let short = Failure { message: String::new(), ..longest_failure() };
    StepState {
        phase: StepPhase::Succeeded,
        started_at: Some(Millis::MAX),
        finished_at: Some(Millis::MAX),
        message: None,
        members: Some(Roster::new(most_members(planned))),
        inline: BTreeMap::from([(0, String::new())]),
        stored_bytes: u64::MAX,
        failures: Vec::new(),
        outcome: Some(WorkflowOutcome::Succeeded),
        decided_at: None,
        cancelled: Ranges::default(),
        heard_at: None,
        asked: Ranges::default(),
        callbacks: worst_slots(planned.callbacks(), &short),
    }
}

/// What the one that runs, or did not succeed, has beyond the others.
fn run_worst(step: &mut StepState, plan: &Plan) {
    let any = plan.steps.iter().fold(CallbackSet::default(), |any, step| any | step.callbacks());
    step.message = Some("x".repeat(MAX_MESSAGE));
    step.failures = vec![(crate::MAX_MEMBERS, longest_failure()); MAX_FAILURES];
    step.decided_at = Some(Millis::MAX);
    step.heard_at = Some(Millis::MAX);
    step.cancelled = Ranges::longest();
    step.asked = Ranges::longest();
    step.callbacks = worst_slots(any, &longest_failure());
}

fn worst_slots(planned: CallbackSet, failure: &Failure) -> Slots {
    let mut slots = Slots::default();
    for callback in Callback::ALL.into_iter().filter(|callback| planned.has(*callback)) {
        slots.set(callback, Slot::Failed(failure.clone()));
    }
    slots
}
