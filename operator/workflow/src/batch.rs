//! How the members of a step come out.

use crate::{
    FailurePolicy, Plan, State, Work, WorkflowOutcome,
    state::{StepState, cut},
};

impl State {
    /// Decides a step's outcome as soon as its members allow it.
    pub(crate) fn decide_step(&mut self, plan: &Plan, step: u16, at: u64) {
        let Some(planned) = plan.steps.get(usize::from(step)) else {
            return;
        };
        let Some(state) = self.steps.get_mut(usize::from(step)) else {
            return;
        };
        let (Some(total), None) = (state.total, state.outcome) else {
            return;
        };
        let (_, failed) = state.counts();
        let fail_fast = match &planned.work {
            Work::Job => true,
            Work::Batch(batch) => match batch.failure_policy {
                FailurePolicy::FailFast => true,
                FailurePolicy::Continue => false,
            },
        };
        let all = state.settled.len() >= total;
        let outcome = match (failed > 0, all) {
            (true, _) if fail_fast || all => WorkflowOutcome::Failed,
            (false, true) => WorkflowOutcome::Succeeded,
            (true | false, _) => return,
        };
        state.outcome = Some(outcome);
        state.decided_at = Some(at);
        if outcome == WorkflowOutcome::Failed {
            state.message = Some(explain(state, failed, total));
        }
    }
}

fn explain(state: &StepState, failed: u32, total: u32) -> String {
    let sample = state.failures.first().map(|(member, failure)| match total {
        1 => format!("{}: {}", failure.reason, failure.message),
        _ => format!("{failed} of {total} failed, member {member}: {}: {}", failure.reason, failure.message),
    });
    cut(&sample.unwrap_or_else(|| format!("{failed} of {total} failed")))
}
