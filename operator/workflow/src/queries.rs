//! What the controller asks of a state beside what is owed.

use crate::{Callback, Plan, State, StepPhase, Target, state::StepState};

impl State {
    /// Whether a completion of `target` has nothing to add any more: the state holds one, or is past caring.
    ///
    /// A completion that changes nothing and was not heard either comes from a state that this one doesn't know: who folds
    /// it must not acknowledge it.
    pub fn has_heard(&self, target: &Target, round: u32) -> bool {
        if round != self.round || self.is_terminal() {
            return round < self.round || self.is_terminal();
        }
        match target {
            Target::Member { step, member } => self.step(*step).is_some_and(|step| {
                let settled =
                    || step.members.as_ref().and_then(|all| all.get(*member)?.is_settled().then_some(()));
                step.is_over() || settled().is_some()
            }),
            Target::StepCallback { step, .. } => {
                self.slot(target).is_over() || self.step(*step).is_some_and(StepState::is_over)
            }
            Target::Callback(_) => self.slot(target).is_over(),
        }
    }

    /// Bytes of a step's results that stand in the broker's result store.
    pub fn stored_bytes(&self, step: u16) -> u64 {
        self.step(step).map_or(0, |step| step.stored_bytes)
    }

    /// All places that may ever have had a job, whose records the broker keeps until nobody needs them any more.
    pub fn places(&self, plan: &Plan) -> impl Iterator<Item = Target> {
        let mut places: Vec<Target> = Vec::new();
        for ((step, state), planned) in self.numbered().zip(&plan.steps) {
            if state.phase == StepPhase::Pending || state.phase == StepPhase::Skipped {
                continue;
            }
            let members = self.members(plan, step).unwrap_or(0);
            places.extend((0..members).map(|member| Target::Member { step, member }));
            let callbacks = Callback::ALL.into_iter().filter(|callback| planned.callbacks().has(*callback));
            places.extend(callbacks.map(|callback| Target::StepCallback { step, callback }));
        }
        let callbacks = Callback::ALL.into_iter().filter(|callback| plan.callbacks.has(*callback));
        places.extend(callbacks.map(Target::Callback));
        places.into_iter()
    }
}

impl StepState {
    fn is_over(&self) -> bool {
        match self.phase {
            StepPhase::Pending | StepPhase::Running => false,
            StepPhase::Succeeded | StepPhase::Failed | StepPhase::Cancelled | StepPhase::Skipped => true,
        }
    }
}
