//! Completions. The first one of a place wins.

use crate::{
    Failure, Millis, Outcome, Plan, ResultRef, State, Target,
    members::Member,
    results::{MAX_CONFLICTS, MAX_FAILURES, bounded, room_for},
    state::{Slot, StepState},
};

impl State {
    /// Whether a completion of this place would be the first one.
    pub(super) fn is_unsettled(&self, target: &Target) -> bool {
        match target {
            Target::Member { step, member } => self
                .step(*step)
                .and_then(|step| step.members.as_ref()?.get(*member))
                .is_some_and(|member| !member.is_settled()),
            Target::StepCallback { .. } | Target::Callback(_) => self.slot(target).is_open(),
        }
    }

    /// The first completion of a place wins; one that says otherwise later is only counted. What ends after its step is
    /// recorded and decides nothing.
    pub(super) fn settle(&mut self, plan: &Plan, target: &Target, outcome: Outcome, now: Millis) {
        if !self.is_unsettled(target) {
            self.note_conflict(target, &outcome);
            return;
        }
        match target {
            Target::Member { step, member } => {
                let taken = self.inline_bytes;
                if let Some(state) = self.steps.get_mut(usize::from(*step)) {
                    self.inline_bytes += state.settle_member(*member, outcome, taken);
                    state.heard(now);
                    if let Some(planned) = plan.step(*step) {
                        state.decide_by_members(planned, now);
                    }
                }
            }
            Target::StepCallback { .. } | Target::Callback(_) => {
                let slot = match failure_of(outcome) {
                    None => Slot::Done,
                    Some(failure) => Slot::Failed(failure),
                };
                self.set_slot(target, slot);
            }
        }
    }

    fn note_conflict(&mut self, target: &Target, outcome: &Outcome) {
        let known = match target {
            Target::Member { step, member } => self
                .step(*step)
                .and_then(|step| step.members.as_ref()?.get(*member))
                .filter(|member| member.is_settled())
                .map(Member::has_succeeded),
            Target::StepCallback { .. } | Target::Callback(_) => {
                let slot = self.slot(target);
                slot.is_over().then(|| *slot == Slot::Done)
            }
        };
        let said = match outcome {
            Outcome::Succeeded { .. } => true,
            Outcome::Failed(_) | Outcome::Cancelled => false,
        };
        if known.is_some_and(|known| known != said) && self.conflicting.len() < MAX_CONFLICTS {
            self.conflicting.insert(target.encode(self.round));
        }
    }
}

impl StepState {
    /// Bytes that its result takes.
    fn settle_member(&mut self, member: u32, outcome: Outcome, taken: u32) -> u32 {
        let Some(members) = self.members.as_mut() else { return 0 };
        let result = match outcome {
            Outcome::Succeeded { result } => result,
            Outcome::Failed(_) | Outcome::Cancelled => {
                members.set(member, Member::Failed);
                let failure = failure_of(outcome).filter(|_| self.failures.len() < MAX_FAILURES);
                self.failures.extend(failure.map(|failure| (member, failure)));
                return 0;
            }
        };
        members.set(member, if result == ResultRef::None { Member::Silent } else { Member::Answered });
        match result {
            ResultRef::None => 0,
            ResultRef::Stored { bytes } => self.stored(bytes),
            ResultRef::Inline(text) => match room_for(&text, taken) {
                None => self.stored(text.len() as u64),
                Some(bytes) => {
                    self.inline.insert(member, text);
                    bytes
                }
            },
        }
    }

    fn stored(&mut self, bytes: u64) -> u32 {
        self.stored_bytes = self.stored_bytes.saturating_add(bytes);
        0
    }
}

fn failure_of(outcome: Outcome) -> Option<Failure> {
    match outcome {
        Outcome::Succeeded { .. } => None,
        Outcome::Failed(failure) => Some(bounded(&failure)),
        Outcome::Cancelled => {
            Some(Failure { reason: "Cancelled".to_owned(), message: "the job was cancelled".to_owned() })
        }
    }
}
