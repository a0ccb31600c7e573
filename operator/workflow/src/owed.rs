//! What the state owes the world, and when to look again.

use crate::{
    Effect, Plan, State, Target, WorkflowOutcome,
    state::{CANCEL_GRACE, Slot, StepPhase, StepState},
};

/// Dispatches in one go; the rest follows when these were recorded.
const MAX_DISPATCHES: usize = 5 * Effect::MAX_TARGETS;

impl State {
    /// What is owed now. Computed anew each time, so that losing effects is harmless.
    pub fn effects_owed(&self, plan: &Plan, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !self.is_started() || self.is_terminal() {
            return effects;
        }
        self.owe_cancels(&mut effects);
        if self.deleting_since.is_some() {
            return effects;
        }
        if !self.suspended {
            self.owe_members(plan, &mut effects);
            let owed: Vec<_> =
                self.callback_targets().filter(|target| *self.slot(target) == Slot::Owed).collect();
            push(&mut effects, &owed, |targets| Effect::Dispatch { targets });
        }
        if self.heard_at.is_some_and(|heard| now >= heard.saturating_add(plan.resync_after)) {
            let silent: Vec<_> = self.all_out().take(Effect::MAX_TARGETS).collect();
            push(&mut effects, &silent, |targets| Effect::Ask { targets });
        }
        effects
    }

    fn owe_cancels(&self, effects: &mut Vec<Effect>) {
        let ends_early = |step: &StepState| {
            self.deleting_since.is_some()
                || step.outcome.is_some_and(|outcome| outcome != WorkflowOutcome::Succeeded)
        };
        for (step, state) in (0_u16..)
            .zip(&self.steps)
            .filter(|(_, state)| state.phase == StepPhase::Running && ends_early(state))
        {
            let out: Vec<_> = state.out().map(|member| Target::Member { step, member }).collect();
            push(effects, &out, |targets| Effect::CancelJobs { targets });
        }
    }

    fn owe_members(&self, plan: &Plan, effects: &mut Vec<Effect>) {
        for (step, (state, planned)) in (0_u16..).zip(self.steps.iter().zip(&plan.steps)) {
            if state.phase != StepPhase::Running || state.outcome.is_some() {
                continue;
            }
            let Some(total) = state.total else {
                effects.push(Effect::Resolve { step });
                continue;
            };
            let out = state.dispatched.len() - state.settled.len().min(state.dispatched.len());
            let parallel = planned.batch().and_then(|batch| batch.max_parallel);
            let room = parallel.map_or(u32::MAX, |most| most.get().saturating_sub(out)) as usize;
            let missing = (0..total).filter(|member| !state.dispatched.contains(*member));
            let targets: Vec<_> = missing
                .take(room.min(MAX_DISPATCHES))
                .map(|member| Target::Member { step, member })
                .collect();
            push(effects, &targets, |targets| Effect::Dispatch { targets });
        }
    }

    /// Everything that is in the broker.
    fn all_out(&self) -> impl Iterator<Item = Target> + '_ {
        let running = (0_u16..).zip(&self.steps).filter(|(_, state)| state.phase == StepPhase::Running);
        let members =
            running.flat_map(|(step, state)| state.out().map(move |member| Target::Member { step, member }));
        members.chain(self.callback_targets().filter(|target| *self.slot(target) == Slot::Out))
    }

    /// When something may follow from time alone.
    pub fn next_timer(&self, plan: &Plan) -> Option<u64> {
        if !self.is_started() || self.is_terminal() {
            return None;
        }
        let after = |since: Option<u64>, wait: Option<u64>| {
            since.zip(wait).map(|(since, wait)| since.saturating_add(wait))
        };
        let mut timers = vec![after(self.deleting_since, Some(CANCEL_GRACE))];
        if self.outcome.is_none() {
            timers.push(after(self.started_at, plan.deadline));
        }
        for (state, planned) in
            self.steps.iter().zip(&plan.steps).filter(|(state, _)| state.phase == StepPhase::Running)
        {
            timers.push(match state.outcome {
                None => after(state.started_at, planned.timeout),
                Some(_) if state.out().next().is_some() => after(state.decided_at, Some(CANCEL_GRACE)),
                Some(_) => None,
            });
        }
        if self.all_out().next().is_some() {
            timers.push(after(self.heard_at, Some(plan.resync_after)));
        }
        timers.into_iter().flatten().min()
    }
}

fn push(effects: &mut Vec<Effect>, targets: &[Target], make: impl Fn(Vec<Target>) -> Effect) {
    effects.extend(targets.chunks(Effect::MAX_TARGETS).map(|chunk| make(chunk.to_vec())));
}
