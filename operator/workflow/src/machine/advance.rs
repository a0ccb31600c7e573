//! What follows from the state by itself: the next step, callbacks, the end.

use crate::{
    CANCEL_GRACE, Callback, CallbackSet, Millis, Plan, PlannedStep, Reason, State, StepPhase,
    WorkflowOutcome, WorkflowPhase,
    state::{Slot, Slots},
};

impl State {
    /// Does what follows until nothing more follows.
    pub(super) fn advance(&mut self, plan: &Plan, now: Millis) {
        // A step takes two turns, the end one: this many are enough. The bound only guards against a mistake here.
        for _ in 0..plan.steps.len() * 2 + 4 {
            if !self.advance_once(plan, now) {
                return;
            }
        }
    }

    /// Whether more may follow.
    fn advance_once(&mut self, plan: &Plan, now: Millis) -> bool {
        if !self.may_have_jobs_out() {
            return false;
        }
        if let Some(since) = self.deleting_since {
            self.end_deletion(plan, since, now);
            return false;
        }
        if let Some(index) = self.steps.iter().position(|step| step.phase == StepPhase::Running) {
            return self.advance_step(plan, index, now);
        }
        match self.outcome {
            Some(outcome) => self.finish(plan, outcome, now),
            None => self.next_step(plan, now),
        }
    }

    /// Nothing further is started; the end comes when nothing is out, or when it was waited for long enough.
    fn end_deletion(&mut self, plan: &Plan, since: Millis, now: Millis) {
        let mut steps = self.steps.iter().zip(&plan.steps);
        let out =
            self.callback_may_be_out() || steps.any(|(state, planned)| state.members_may_be_out(planned));
        if !out || now >= since.saturating_add(CANCEL_GRACE) {
            self.phase = WorkflowPhase::Deleted;
            self.finished_at = Some(now);
        }
    }

    /// The one place that knows the order of steps.
    fn next_step(&mut self, plan: &Plan, now: Millis) -> bool {
        let waiting = self.steps.iter_mut().zip(&plan.steps);
        match waiting.into_iter().find(|(step, _)| step.phase == StepPhase::Pending) {
            Some((step, planned)) => step.run(planned, now),
            None => self.decide(WorkflowOutcome::Succeeded, None, None, now),
        }
        true
    }

    /// From the outcome of a step's members over its callbacks to its end.
    fn advance_step(&mut self, plan: &Plan, index: usize, now: Millis) -> bool {
        let (Some(planned), Some(state)) = (plan.steps.get(index), self.steps.get_mut(index)) else {
            return false;
        };
        state.decide_by_members(planned, now);
        let (Some(outcome), Some(decided)) = (state.outcome, state.decided_at) else {
            return false;
        };
        if state.members_may_be_out(planned) && now < decided.saturating_add(CANCEL_GRACE) {
            return false;
        }
        match call_back(&mut state.callbacks, planned.callbacks(), outcome) {
            Calls::Begin => {
                state.heard(now);
                false
            }
            Calls::Wait => false,
            Calls::Over => {
                self.end_step(planned, index, outcome, now);
                true
            }
        }
    }

    fn end_step(&mut self, planned: &PlannedStep, index: usize, outcome: WorkflowOutcome, now: Millis) {
        let Some(state) = self.steps.get_mut(index) else { return };
        state.finished_at = Some(now);
        state.heard_at = None;
        state.asked.clear();
        state.phase = match outcome {
            WorkflowOutcome::Succeeded => StepPhase::Succeeded,
            WorkflowOutcome::Failed => StepPhase::Failed,
            WorkflowOutcome::Cancelled => StepPhase::Cancelled,
        };
        if outcome == WorkflowOutcome::Failed {
            let why = state.message.as_deref().unwrap_or_default();
            let message = format!("step {} failed: {why}", planned.name);
            self.decide(WorkflowOutcome::Failed, Some(Reason::StepFailed), Some(&message), now);
        }
        self.compact(index);
    }

    /// The workflow's callbacks, then the end.
    fn finish(&mut self, plan: &Plan, outcome: WorkflowOutcome, now: Millis) -> bool {
        match call_back(&mut self.callbacks, plan.callbacks, outcome) {
            Calls::Begin => self.heard_at = Some(now),
            Calls::Wait => {}
            Calls::Over => {
                self.heard_at = None;
                self.finished_at = Some(now);
                self.phase = match outcome {
                    WorkflowOutcome::Succeeded => WorkflowPhase::Succeeded,
                    WorkflowOutcome::Failed => WorkflowPhase::Failed,
                    WorkflowOutcome::Cancelled => WorkflowPhase::Cancelled,
                };
            }
        }
        false
    }
}

/// How far callbacks are.
enum Calls {
    /// The next one is owed from now on.
    Begin,
    /// One has not settled.
    Wait,
    /// There are no more.
    Over,
}

/// Walks through `then` or `catch`, then `finally`. How they end changes nothing.
fn call_back(slots: &mut Slots, planned: CallbackSet, outcome: WorkflowOutcome) -> Calls {
    let first = match outcome {
        WorkflowOutcome::Succeeded => Callback::Then,
        WorkflowOutcome::Failed | WorkflowOutcome::Cancelled => Callback::Catch,
    };
    for callback in [first, Callback::Finally].into_iter().filter(|callback| planned.has(*callback)) {
        match slots.get(callback) {
            Slot::Idle => {
                slots.set(callback, Slot::Owed);
                return Calls::Begin;
            }
            Slot::Owed | Slot::Out => return Calls::Wait,
            Slot::Done | Slot::Failed(_) => {}
        }
    }
    Calls::Over
}
