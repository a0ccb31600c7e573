//! What the state owes the world.

use crate::{
    Effect, Millis, Plan, PlannedStep, State, Target,
    members::{Member, Roster},
    state::{Slot, StepState},
};

/// Places that are dispatched or asked for in one go; the rest follows when these were recorded.
const MAX_IN_ONE_GO: usize = 5 * Effect::MAX_TARGETS;

impl State {
    /// What is owed now. Computed anew each time, so that losing effects is harmless; what was recorded as done is left
    /// out.
    ///
    /// Past a deadline nothing is dispatched, even before the timer was heard.
    pub fn effects_owed(&self, plan: &Plan, now: Millis) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !self.may_have_jobs_out() {
            return effects;
        }
        self.owe_cancels(plan, &mut effects);
        if self.deleting_since.is_some() || self.suspended {
            return effects;
        }
        if self.deadline(plan).is_none_or(|end| now < end) {
            self.owe_members(plan, &mut effects);
        }
        self.owe_callbacks(&mut effects);
        self.owe_questions(plan, now, &mut effects);
        effects
    }

    fn owe_cancels(&self, plan: &Plan, effects: &mut Vec<Effect>) {
        let deleting = self.deleting_since.is_some();
        for ((step, state), planned) in self.numbered().zip(&plan.steps) {
            if deleting || state.ends_early() {
                let targets: Vec<_> = state
                    .to_cancel(planned)
                    .into_iter()
                    .map(|member| Target::Member { step, member })
                    .collect();
                push(effects, &targets, |targets| Effect::CancelJobs { targets });
            }
        }
        if deleting && !self.callback_cancelled {
            let open: Vec<_> = self.open_callbacks().collect();
            push(effects, &open, |targets| Effect::CancelJobs { targets });
        }
    }

    fn owe_members(&self, plan: &Plan, effects: &mut Vec<Effect>) {
        for ((step, state), planned) in
            self.numbered().zip(&plan.steps).filter(|((_, state), _)| state.is_open())
        {
            let Some(members) = &state.members else {
                effects.push(Effect::Resolve { step });
                continue;
            };
            let targets: Vec<_> = window(members, planned, MAX_IN_ONE_GO)
                .map(|member| Target::Member { step, member })
                .collect();
            push(effects, &targets, |targets| Effect::Dispatch { targets });
        }
    }

    fn owe_callbacks(&self, effects: &mut Vec<Effect>) {
        let owed: Vec<_> = self.open_callbacks().filter(|target| *self.slot(target) == Slot::Owed).collect();
        push(effects, &owed, |targets| Effect::Dispatch { targets });
    }

    fn owe_questions(&self, plan: &Plan, now: Millis, effects: &mut Vec<Effect>) {
        let mut targets = Vec::new();
        for (step, state) in self.numbered().filter(|(_, state)| plan.is_silence(state.heard_at, now)) {
            // The lost members of a decided step are not wanted back.
            if let Some(members) = state.members.as_ref().filter(|_| state.is_open()) {
                let unasked = members.all(Member::Out).filter(|member| !state.asked.contains(*member));
                targets.extend(unasked.take(MAX_IN_ONE_GO).map(|member| Target::Member { step, member }));
            }
            let callback = state.callbacks.open().map(|callback| Target::StepCallback { step, callback });
            targets.extend(callback.filter(|target| *self.slot(target) == Slot::Out));
        }
        if plan.is_silence(self.heard_at, now) {
            let callback = self.callbacks.open().map(Target::Callback);
            targets.extend(callback.filter(|target| *self.slot(target) == Slot::Out));
        }
        push(effects, &targets, |targets| Effect::Ask { targets });
    }

    /// Whether a callback is in the broker, or may be there with nobody having asked for its cancellation.
    pub(crate) fn callback_may_be_out(&self) -> bool {
        self.open_callbacks().any(|target| *self.slot(&target) == Slot::Out || !self.callback_cancelled)
    }

    /// Callbacks whose jobs may be in the broker.
    fn open_callbacks(&self) -> impl Iterator<Item = Target> + '_ {
        let of_steps = self.numbered().filter_map(|(step, state)| {
            state.callbacks.open().map(|callback| Target::StepCallback { step, callback })
        });
        of_steps.chain(self.callbacks.open().map(Target::Callback))
    }
}

impl StepState {
    /// Members that may be in the broker and that nobody asked to be cancelled, in order.
    pub(crate) fn to_cancel(&self, planned: &PlannedStep) -> Vec<u32> {
        let mut open: Vec<u32> = self.not_cancelled(planned).collect();
        open.sort_unstable();
        open
    }

    /// Notes that nothing is left to cancel between those that were, where nothing is.
    pub(crate) fn close_cancelled(&mut self, planned: &PlannedStep) {
        let members = self.members.as_ref();
        let end =
            members.and_then(|all| all.all(Member::Waiting).nth(room(all, planned))).unwrap_or(u32::MAX);
        let has_open = |all: &Roster, from, to: u32| {
            all.any_in(Member::Out, from, to) || all.any_in(Member::Waiting, from, to.min(end))
        };
        self.cancelled.close_gaps(|from, to| members.is_some_and(|all| has_open(all, from, to)));
    }

    /// Whether members are in the broker, or may be there with nobody having asked for their cancellation.
    pub(crate) fn members_may_be_out(&self, planned: &PlannedStep) -> bool {
        self.out() > 0 || self.not_cancelled(planned).next().is_some()
    }

    /// Whoever dispatched may have died before any of it was recorded. What was owed since the last record is out then
    /// too: never more than fits beside what is known to be out, but that may be many times what is owed in one go.
    fn not_cancelled(&self, planned: &PlannedStep) -> impl Iterator<Item = u32> {
        let members = self.members.as_ref().into_iter();
        let open =
            members.flat_map(|members| members.all(Member::Out).chain(window(members, planned, usize::MAX)));
        open.filter(|member| !self.cancelled.contains(*member))
    }
}

/// Members that are to be dispatched next.
fn window<'a>(
    members: &'a Roster,
    planned: &PlannedStep,
    most: usize,
) -> impl Iterator<Item = u32> + use<'a> {
    members.all(Member::Waiting).take(room(members, planned).min(most))
}

/// How many go in beside those that are known to be out.
fn room(members: &Roster, planned: &PlannedStep) -> usize {
    planned.max_parallel().saturating_sub(members.count(Member::Out)) as usize
}

fn push(effects: &mut Vec<Effect>, targets: &[Target], make: impl Fn(Vec<Target>) -> Effect) {
    effects.extend(targets.chunks(Effect::MAX_TARGETS).map(|chunk| make(chunk.to_vec())));
}
