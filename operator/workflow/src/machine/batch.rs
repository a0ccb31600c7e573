//! How the members of a step come out. A single job is a batch of one.

use crate::{
    Failure, MAX_MEMBERS, Millis, PlannedStep, State, StepPhase, WorkflowOutcome,
    members::Roster,
    results::{bounded, cut},
    state::StepState,
};

impl State {
    /// Only the first count counts: an expression is never evaluated again.
    pub(super) fn members_resolved(&mut self, step: u16, count: u32, now: Millis) {
        let Some(state) = self.steps.get_mut(usize::from(step)) else { return };
        if state.is_open() && state.members.is_none() {
            state.begin(count, now);
        }
    }

    pub(super) fn resolve_failed(&mut self, step: u16, failure: &Failure, now: Millis) {
        let Some(state) = self.steps.get_mut(usize::from(step)) else { return };
        if state.is_open() && state.members.is_none() {
            let Failure { reason, message } = bounded(failure);
            state.decide(WorkflowOutcome::Failed, Some(&format!("{reason}: {message}")), now);
        }
    }
}

impl StepState {
    /// The step's turn has come.
    pub(super) fn run(&mut self, planned: &PlannedStep, now: Millis) {
        self.phase = StepPhase::Running;
        self.started_at = Some(now);
        self.heard_at = Some(now);
        if let Some(count) = planned.known_members() {
            self.begin(count, now);
        }
    }

    fn begin(&mut self, count: u32, now: Millis) {
        if count > MAX_MEMBERS {
            let message = format!("TooManyMembers: {count} members, the limit is {MAX_MEMBERS}");
            self.decide(WorkflowOutcome::Failed, Some(&message), now);
        } else {
            self.members = Some(Roster::new(count));
            self.heard(now);
        }
    }

    /// Decides how the step comes out, once.
    pub(super) fn decide(&mut self, outcome: WorkflowOutcome, message: Option<&str>, now: Millis) {
        if self.is_open() {
            self.outcome = Some(outcome);
            self.decided_at = Some(now);
            self.message = message.map(cut);
        }
    }

    /// Decides as soon as the members allow it.
    pub(super) fn decide_by_members(&mut self, planned: &PlannedStep, now: Millis) {
        let Some(members) = self.members.as_ref().filter(|_| self.is_open()) else { return };
        let (_, failed) = self.counts();
        let all = members.settled() == members.total();
        if failed > 0 && (all || planned.fails_fast()) {
            let message = self.explain(failed, members.total());
            self.decide(WorkflowOutcome::Failed, Some(&message), now);
        } else if all {
            self.decide(WorkflowOutcome::Succeeded, None, now);
        }
    }

    fn explain(&self, failed: u32, total: u32) -> String {
        let Some((member, Failure { reason, message })) = self.failures.first() else {
            return format!("{failed} of {total} failed");
        };
        match total {
            1 => format!("{reason}: {message}"),
            _ => format!("{failed} of {total} failed, member {member}: {reason}: {message}"),
        }
    }
}
