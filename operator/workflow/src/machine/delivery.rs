//! What the machine hears of the broker that is no completion: jobs went in, are still there, or are unknown.

use crate::{Millis, Plan, State, StepPhase, Target, members::Member, state::Slot};

impl State {
    /// Also of what is known already: it answers a question.
    pub(super) fn dispatched(&mut self, plan: &Plan, target: &Target, now: Millis) {
        let new = self.move_job(target, &(Member::Waiting, Slot::Owed), &(Member::Out, Slot::Out));
        // It may have gone in after the others were asked to be cancelled.
        match target {
            Target::Member { step, member } => {
                if let Some(state) = self.steps.get_mut(usize::from(*step)).filter(|_| new) {
                    state.cancelled.remove(*member);
                }
            }
            Target::StepCallback { .. } | Target::Callback(_) => self.callback_cancelled &= !new,
        }
        self.answered(plan, target, now);
    }

    /// Notes an answer that breaks a silence. Not silent: nothing to note.
    fn answered(&mut self, plan: &Plan, target: &Target, now: Millis) {
        if !self.is_out(target) {
            return;
        }
        match target {
            Target::Member { step, member } => {
                if let Some(state) = self.steps.get_mut(usize::from(*step))
                    && plan.is_silence(state.heard_at, now)
                {
                    state.asked.insert(*member);
                }
            }
            Target::StepCallback { step, .. } => {
                if let Some(state) = self.steps.get_mut(usize::from(*step))
                    && plan.is_silence(state.heard_at, now)
                {
                    state.heard(now);
                }
            }
            Target::Callback(_) => {
                if plan.is_silence(self.heard_at, now) {
                    self.heard_at = Some(now);
                }
            }
        }
    }

    /// It is owed again, unless it is not wanted any more.
    pub(super) fn lost(&mut self, plan: &Plan, target: &Target, now: Millis) {
        // To hear that it is unknown is an answer too.
        self.answered(plan, target, now);
        if self.move_job(target, &(Member::Out, Slot::Out), &(Member::Waiting, Slot::Owed)) {
            self.lost = self.lost.saturating_add(1);
        }
        self.end_silences(now);
    }

    /// The silence of a step is over once all that are out were asked for, whatever part of them answers at a time.
    pub(super) fn end_silences(&mut self, now: Millis) {
        for state in self.steps.iter_mut().filter(|state| !state.asked.is_empty()) {
            let Some(members) = &state.members else { continue };
            state.asked.close_gaps(|from, to| members.any_in(Member::Out, from, to));
            let asked = state.asked.first_part();
            if asked.is_some_and(|asked| !members.any_in(Member::Out, asked, u32::MAX)) {
                state.heard(now);
            }
        }
    }

    /// Any part of what was owed may be heard of: its jobs may be in several brokers. Callbacks are only cancelled for
    /// deletion.
    pub(super) fn cancel_asked(&mut self, plan: &Plan, targets: &[Target]) {
        let deleting = self.deleting_since.is_some();
        for target in targets {
            match target {
                Target::Member { step, member } => {
                    let state = self.steps.get_mut(usize::from(*step));
                    if let Some(state) = state.filter(|state| deleting || state.ends_early()) {
                        state.cancelled.insert(*member);
                    }
                }
                Target::StepCallback { .. } | Target::Callback(_) => {
                    self.callback_cancelled |= deleting && self.slot(target).is_open();
                }
            }
        }
        for (state, planned) in self.steps.iter_mut().zip(&plan.steps) {
            if !state.cancelled.is_empty() {
                state.close_cancelled(planned);
            }
        }
    }

    /// Moves a job of what runs from one place to the other. Whether it was there.
    fn move_job(&mut self, target: &Target, from: &(Member, Slot), to: &(Member, Slot)) -> bool {
        if let Target::Member { step, member } = target {
            let state = self.steps.get_mut(usize::from(*step));
            let Some(members) =
                state.filter(|step| step.phase == StepPhase::Running).and_then(|step| step.members.as_mut())
            else {
                return false;
            };
            let moves = members.get(*member) == Some(from.0);
            if moves {
                members.set(*member, to.0);
            }
            return moves;
        }
        let moves = *self.slot(target) == from.1;
        if moves {
            self.set_slot(target, to.1.clone());
        }
        moves
    }

    fn is_out(&self, target: &Target) -> bool {
        match target {
            Target::Member { step, member } => {
                let members =
                    self.step(*step).filter(|step| step.is_open()).and_then(|step| step.members.as_ref());
                members.and_then(|members| members.get(*member)) == Some(Member::Out)
            }
            Target::StepCallback { .. } | Target::Callback(_) => *self.slot(target) == Slot::Out,
        }
    }

    /// Where a callback stands; a member is none.
    pub(crate) fn slot(&self, target: &Target) -> &Slot {
        match target {
            Target::StepCallback { step, callback } => {
                self.step(*step).map_or(&Slot::Idle, |step| step.callbacks.get(*callback))
            }
            Target::Callback(callback) => self.callbacks.get(*callback),
            Target::Member { .. } => &Slot::Idle,
        }
    }

    pub(super) fn set_slot(&mut self, target: &Target, slot: Slot) {
        match target {
            Target::StepCallback { step, callback } => {
                if let Some(step) = self.steps.get_mut(usize::from(*step)) {
                    step.callbacks.set(*callback, slot);
                }
            }
            Target::Callback(callback) => self.callbacks.set(*callback, slot),
            Target::Member { .. } => {}
        }
    }
}
