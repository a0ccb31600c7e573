//! The transitions.

use crate::{
    Event, Failure, Outcome, Plan, ResultRef, State, Target, WorkflowOutcome, WorkflowPhase,
    effect::Effect,
    state::{MAX_FAILURES, MAX_INLINE, MAX_INLINE_TOTAL, Slot, StepPhase, StepState, cut},
};

/// An event that speaks of something the workflow doesn't have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransitionError {
    /// There is no such place.
    #[error("the workflow has no place {0:?}")]
    UnknownTarget(Target),
    /// There is no such step.
    #[error("the workflow has no step number {0}")]
    UnknownStep(u16),
}

impl State {
    /// The only way in which the state changes: total, synchronous, deterministic; the clock is an argument.
    ///
    /// Duplicates, late and stale events change nothing and are no errors: delivery is at least once.
    ///
    /// # Errors
    /// When the event speaks of something the workflow doesn't have.
    pub fn apply(
        mut self,
        plan: &Plan,
        event: Event,
        now: u64,
    ) -> Result<(Self, Vec<Effect>), TransitionError> {
        if !self.is_terminal() {
            self.hear(plan, event, now)?;
            self.advance(plan, now);
        } else if let Event::Settled { target, round, outcome, .. } = event {
            self.check(&target)?;
            self.count_conflict(&target, round, &outcome);
        }
        let effects = self.effects_owed(plan, now);
        Ok((self, effects))
    }

    fn hear(&mut self, plan: &Plan, event: Event, now: u64) -> Result<(), TransitionError> {
        match event {
            Event::Started => self.start(plan, now),
            Event::MembersResolved { step, count } => {
                let state = self.step_mut(step)?;
                if state.phase == StepPhase::Running && state.total.is_none() {
                    state.total = Some(count);
                }
            }
            Event::ResolveFailed { step, failure } => self.resolve_failed(step, &failure, now)?,
            Event::Dispatched { targets } => {
                targets.iter().try_for_each(|target| self.dispatched(target, now))?
            }
            Event::DispatchRefused { target, failure } => {
                let outcome = Outcome::Failed(failure);
                self.settle(plan, &target, outcome, now)?;
            }
            Event::Settled { target, round, outcome, settled_at } => {
                self.check(&target)?;
                if round == self.round {
                    self.expire(plan, settled_at);
                    if self.settle(plan, &target, outcome, settled_at)? {
                        self.heard_at = Some(now);
                    }
                }
            }
            Event::SuspendRequested => self.suspended = true,
            Event::ResumeRequested => self.suspended = false,
            Event::CancelRequested => self.decide(WorkflowOutcome::Cancelled, Some("it was cancelled"), now),
            Event::DeletionRequested => {
                self.deleting_since.get_or_insert(now);
            }
            Event::TimerFired => self.expire(plan, now),
        }
        Ok(())
    }

    fn start(&mut self, plan: &Plan, now: u64) {
        if self.phase == WorkflowPhase::Pending {
            self.phase = WorkflowPhase::Running;
            self.started_at = Some(now);
            self.heard_at = Some(now);
            self.steps = plan.steps.iter().map(|_| StepState::default()).collect();
        }
    }

    fn resolve_failed(&mut self, step: u16, failure: &Failure, now: u64) -> Result<(), TransitionError> {
        let state = self.step_mut(step)?;
        if state.phase == StepPhase::Running && state.total.is_none() {
            state.total = Some(0);
            state.outcome = Some(WorkflowOutcome::Failed);
            state.decided_at = Some(now);
            state.message = Some(cut(&failure.message));
        }
        Ok(())
    }

    fn dispatched(&mut self, target: &Target, now: u64) -> Result<(), TransitionError> {
        self.check(target)?;
        match target {
            Target::Member { step, member } => {
                self.step_mut(*step)?.dispatched.insert(*member);
            }
            Target::StepCallback { .. } | Target::Callback(_) => {
                if *self.slot(target) == Slot::Owed {
                    self.set_slot(target, Slot::Out);
                }
            }
        }
        self.heard_at = Some(now);
        Ok(())
    }

    /// The first terminal completion of a place wins; a later, different one is counted. Whether this one counted.
    fn settle(
        &mut self,
        plan: &Plan,
        target: &Target,
        outcome: Outcome,
        at: u64,
    ) -> Result<bool, TransitionError> {
        self.check(target)?;
        match target {
            Target::Member { step, member } => {
                if self.steps[usize::from(*step)].settled.contains(*member) {
                    self.count_conflict(target, self.round, &outcome);
                    return Ok(false);
                }
                self.settle_member(*step, *member, outcome);
                self.decide_step(plan, *step, at);
            }
            Target::StepCallback { .. } | Target::Callback(_) => {
                if !self.slot(target).is_over() && *self.slot(target) != Slot::Idle {
                    let slot = match outcome {
                        Outcome::Succeeded { .. } => Slot::Done,
                        Outcome::Failed(failure) => {
                            Slot::Failed(Failure { reason: failure.reason, message: cut(&failure.message) })
                        }
                        Outcome::Cancelled => {
                            Slot::Failed(Failure { reason: "Cancelled".to_owned(), message: String::new() })
                        }
                    };
                    self.set_slot(target, slot);
                } else {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn settle_member(&mut self, step: u16, member: u32, outcome: Outcome) {
        let room = MAX_INLINE_TOTAL.saturating_sub(self.inline_bytes as usize);
        let state = &mut self.steps[usize::from(step)];
        state.dispatched.insert(member);
        state.settled.insert(member);
        let failure = match outcome {
            Outcome::Succeeded { result } => {
                state.succeeded.insert(member);
                match result {
                    ResultRef::None => {
                        state.silent.insert(member);
                    }
                    ResultRef::Inline(text) if text.len() <= MAX_INLINE.min(room) => {
                        self.inline_bytes += u32::try_from(text.len()).unwrap_or(0);
                        state.inline.insert(member, text);
                    }
                    ResultRef::Inline(_) | ResultRef::Stored { .. } => {}
                }
                return;
            }
            Outcome::Failed(failure) => failure,
            Outcome::Cancelled => {
                Failure { reason: "Cancelled".to_owned(), message: "the job was cancelled".to_owned() }
            }
        };
        if state.failures.len() < MAX_FAILURES {
            state
                .failures
                .push((member, Failure { reason: cut(&failure.reason), message: cut(&failure.message) }));
        }
    }

    fn count_conflict(&mut self, target: &Target, round: u32, outcome: &Outcome) {
        let Target::Member { step, member } = target else {
            return;
        };
        let Some(state) = self.steps.get(usize::from(*step)) else {
            return;
        };
        let said = matches!(outcome, Outcome::Succeeded { .. });
        if round == self.round && state.settled.contains(*member) && state.succeeded.contains(*member) != said
        {
            self.conflicting = self.conflicting.saturating_add(1);
        }
    }

    /// Whether the workflow has this place.
    fn check(&self, target: &Target) -> Result<(), TransitionError> {
        let known = match target {
            Target::Member { step, member } => self
                .steps
                .get(usize::from(*step))
                .and_then(|step| step.total)
                .is_some_and(|total| *member < total),
            Target::StepCallback { step, .. } => usize::from(*step) < self.steps.len(),
            Target::Callback(_) => true,
        };
        if known { Ok(()) } else { Err(TransitionError::UnknownTarget(*target)) }
    }

    pub(crate) fn slot(&self, target: &Target) -> &Slot {
        match target {
            Target::StepCallback { step, callback } => {
                self.steps.get(usize::from(*step)).map_or(&Slot::Idle, |step| step.callbacks.get(*callback))
            }
            Target::Callback(callback) => self.callbacks.get(*callback),
            Target::Member { .. } => &Slot::Idle,
        }
    }

    pub(crate) fn set_slot(&mut self, target: &Target, slot: Slot) {
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

    fn step_mut(&mut self, step: u16) -> Result<&mut StepState, TransitionError> {
        self.steps.get_mut(usize::from(step)).ok_or(TransitionError::UnknownStep(step))
    }
}
