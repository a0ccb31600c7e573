//! What follows from time alone.

use crate::{
    CANCEL_GRACE, Millis, Plan, PlannedStep, Reason, State, StepPhase, WorkflowOutcome, WorkflowPhase,
    state::StepState,
};

impl State {
    /// Lets what had its time by `at` come out: the workflow by its deadline, the running step by its timeout.
    ///
    /// The deadline ends the workflow, so a batch's callbacks that still run by then don't save it.
    pub(super) fn expire(&mut self, plan: &Plan, at: Millis, now: Millis) {
        if self.deleting_since.is_some() {
            return;
        }
        let deadline = self.deadline(plan).filter(|end| *end <= at);
        for (planned, state) in plan.steps.iter().zip(&mut self.steps) {
            // What came first says why.
            let end = state
                .timeout(planned)
                .filter(|end| *end <= at && deadline.is_none_or(|deadline| *end <= deadline));
            if end.is_some() {
                state.decide(WorkflowOutcome::Failed, Some("StepTimeout: it did not end in time"), now);
            }
        }
        if deadline.is_some() {
            let message = "DeadlineExceeded: it did not end before its deadline";
            self.decide(WorkflowOutcome::Failed, Some(Reason::DeadlineExceeded), Some(message), now);
        }
    }

    /// When the workflow has to be decided.
    pub(crate) fn deadline(&self, plan: &Plan) -> Option<Millis> {
        let open = self.phase == WorkflowPhase::Running;
        after(self.started_at.filter(|_| open), plan.deadline)
    }

    /// When something may follow from time alone.
    pub fn next_timer(&self, plan: &Plan) -> Option<Millis> {
        if !self.may_have_jobs_out() {
            return None;
        }
        if self.deleting_since.is_some() {
            return after(self.deleting_since, Some(CANCEL_GRACE));
        }
        let running =
            self.steps.iter().zip(&plan.steps).filter(|(state, _)| state.phase == StepPhase::Running);
        let of_steps = running.flat_map(|(state, planned)| {
            let asks = state.is_silent_after(plan).filter(|_| !self.suspended);
            [state.timeout(planned), state.grace(planned), asks]
        });
        let heard = self.heard_at.filter(|_| self.callbacks.is_out() && !self.suspended);
        of_steps.chain([self.deadline(plan), plan.silence_from(heard)]).flatten().min()
    }
}

impl StepState {
    /// When its members have to be decided.
    fn timeout(&self, planned: &PlannedStep) -> Option<Millis> {
        after(self.started_at.filter(|_| self.is_open()), planned.timeout)
    }

    /// When cancelled members aren't waited for any more. Nothing follows from it while a callback runs; news of a
    /// member that went in may come after one began.
    fn grace(&self, planned: &PlannedStep) -> Option<Millis> {
        let decided = self.decided_at.filter(|_| self.callbacks.open().is_none());
        after(decided.filter(|_| self.members_may_be_out(planned)), Some(CANCEL_GRACE))
    }

    /// When its jobs are asked for.
    fn is_silent_after(&self, plan: &Plan) -> Option<Millis> {
        let asks = (self.is_open() && self.out() > 0) || self.callbacks.is_out();
        plan.silence_from(self.heard_at.filter(|_| asks))
    }
}

impl Plan {
    /// When it has been silent for too long.
    pub(crate) fn silence_from(&self, heard: Option<Millis>) -> Option<Millis> {
        after(heard, Some(self.resync_after).filter(|wait| *wait > 0))
    }

    pub(crate) fn is_silence(&self, heard: Option<Millis>, now: Millis) -> bool {
        self.silence_from(heard).is_some_and(|from| from <= now)
    }
}

fn after(since: Option<Millis>, wait: Option<Millis>) -> Option<Millis> {
    Some(since?.saturating_add(wait?))
}
