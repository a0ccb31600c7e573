//! The transitions.

mod advance;
mod batch;
mod delivery;
mod settle;
mod timers;

use crate::{
    Effect, Event, Millis, Outcome, Plan, Reason, State, StepPhase, Target, WorkflowOutcome, WorkflowPhase,
    members::Roster, results::cut, state::StepState,
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
    /// The plan is not the one that the workflow was started with.
    #[error("the workflow was started with {started} steps, the plan has {planned}")]
    PlanChanged {
        /// Steps at the start.
        started: usize,
        /// Steps now.
        planned: usize,
    },
}

impl State {
    /// The only way in which the state changes: total, synchronous, deterministic; the clock is an argument.
    ///
    /// Returns everything that is owed then. Duplicates, late and stale events change nothing, owe nothing new and are
    /// no errors: delivery is at least once.
    ///
    /// # Errors
    /// When the event speaks of something the workflow doesn't have.
    pub fn apply(
        self,
        plan: &Plan,
        event: Event,
        now: Millis,
    ) -> Result<(Self, Vec<Effect>), TransitionError> {
        let mut next = self.clone();
        next.take_in(plan, event, now)?;
        if next == self {
            return Ok((self, Vec::new()));
        }
        let effects = next.effects_owed(plan, now);
        Ok((next, effects))
    }

    /// The state after many events, each with its time, in their order: the same as applying one after the other, without
    /// deriving what is owed in between. [`State::effects_owed`] says that of the result.
    ///
    /// Also returned is why events were passed over: those that speak of something the workflow doesn't have.
    pub fn fold(
        mut self,
        plan: &Plan,
        events: impl IntoIterator<Item = (Millis, Event)>,
    ) -> (Self, Vec<TransitionError>) {
        let taken = events.into_iter().map(|(now, event)| self.take_in(plan, event, now));
        let refused = taken.filter_map(Result::err).collect();
        (self, refused)
    }

    /// Nothing changes when the event speaks of something the workflow doesn't have.
    fn take_in(&mut self, plan: &Plan, event: Event, now: Millis) -> Result<(), TransitionError> {
        self.check(plan, &event)?;
        if !self.is_terminal() {
            self.hear(plan, event, now);
            self.advance(plan, now);
        }
        Ok(())
    }

    fn hear(&mut self, plan: &Plan, event: Event, now: Millis) {
        match event {
            Event::Started => self.start(plan, now),
            Event::MembersResolved { step, count } => self.members_resolved(step, count, now),
            Event::ResolveFailed { step, failure } => self.resolve_failed(step, &failure, now),
            Event::Dispatched { targets } => {
                targets.iter().for_each(|target| self.dispatched(plan, target, now));
                self.end_silences(now);
            }
            Event::DispatchRefused { target, failure } => {
                self.settle(plan, &target, Outcome::Failed(failure), now);
            }
            Event::Settled { target, round, outcome, settled_at } if round == self.round => {
                // A broker's clock that runs ahead must not bring a deadline forward.
                let settled_at = settled_at.min(now);
                if self.is_unsettled(&target) {
                    self.expire(plan, settled_at, now);
                }
                self.settle(plan, &target, outcome, now);
            }
            // Another round's: the job is not one of those that this state waits for.
            Event::Settled { .. } => {}
            Event::Lost { target } => self.lost(plan, &target, now),
            Event::CancelAsked { targets } => self.cancel_asked(plan, &targets),
            Event::SuspendRequested => self.suspended = true,
            Event::ResumeRequested => self.suspended = false,
            Event::CancelRequested => self.cancel(plan, now),
            Event::DeletionRequested => self.delete(now),
            Event::TimerFired => self.expire(plan, now, now),
        }
    }

    fn start(&mut self, plan: &Plan, now: Millis) {
        if self.phase == WorkflowPhase::Pending {
            self.phase = WorkflowPhase::Running;
            self.started_at = Some(now);
            self.steps = plan.steps.iter().map(|_| StepState::default()).collect();
        }
    }

    /// One that has not started starts only to end: its `catch` and `finally` are called like any other's.
    fn cancel(&mut self, plan: &Plan, now: Millis) {
        self.start(plan, now);
        self.decide(WorkflowOutcome::Cancelled, Some(Reason::CancelRequested), Some("it was cancelled"), now);
    }

    /// One that has not started has nothing out.
    fn delete(&mut self, now: Millis) {
        self.deleting_since.get_or_insert(now);
        if self.phase == WorkflowPhase::Pending {
            self.phase = WorkflowPhase::Deleted;
            self.finished_at = Some(now);
        }
    }

    /// Decides how the workflow comes out, once. A step that runs comes out with it, the others are skipped.
    fn decide(
        &mut self,
        outcome: WorkflowOutcome,
        reason: Option<Reason>,
        message: Option<&str>,
        now: Millis,
    ) {
        if self.phase != WorkflowPhase::Running {
            return;
        }
        self.phase = WorkflowPhase::Finishing;
        self.outcome = Some(outcome);
        self.reason = reason;
        self.message = message.map(cut);
        for step in &mut self.steps {
            if step.phase == StepPhase::Pending {
                step.phase = StepPhase::Skipped;
            } else if step.is_open() {
                step.decide(outcome, message, now);
            }
        }
    }

    /// Whether everything that the event speaks of exists, whatever phase it is in.
    fn check(&self, plan: &Plan, event: &Event) -> Result<(), TransitionError> {
        let (started, planned) = (self.steps.len(), plan.steps.len());
        if started != planned && !self.steps.is_empty() {
            return Err(TransitionError::PlanChanged { started, planned });
        }
        match event {
            Event::MembersResolved { step, .. } | Event::ResolveFailed { step, .. } => {
                plan.step(*step).map(|_| ()).ok_or(TransitionError::UnknownStep(*step))
            }
            Event::Dispatched { targets } | Event::CancelAsked { targets } => {
                targets.iter().try_for_each(|target| self.check_target(plan, target))
            }
            // What another round had is not known here.
            Event::Settled { round, .. } if *round != self.round => Ok(()),
            Event::Settled { target, .. }
            | Event::DispatchRefused { target, .. }
            | Event::Lost { target } => self.check_target(plan, target),
            Event::Started
            | Event::SuspendRequested
            | Event::ResumeRequested
            | Event::CancelRequested
            | Event::DeletionRequested
            | Event::TimerFired => Ok(()),
        }
    }

    fn check_target(&self, plan: &Plan, target: &Target) -> Result<(), TransitionError> {
        let known = match target {
            Target::Member { step, member } => {
                let planned = plan.step(*step).ok_or(TransitionError::UnknownStep(*step))?;
                let resolved = self.step(*step).and_then(|step| step.members.as_ref());
                // As long as nobody knows how many there are, none can be said to be too many.
                resolved
                    .map(Roster::total)
                    .or_else(|| planned.known_members())
                    .is_none_or(|count| *member < count)
            }
            Target::StepCallback { step, callback } => {
                let planned = plan.step(*step).ok_or(TransitionError::UnknownStep(*step))?;
                planned.callbacks().has(*callback)
            }
            Target::Callback(callback) => plan.callbacks.has(*callback),
        };
        if known { Ok(()) } else { Err(TransitionError::UnknownTarget(*target)) }
    }
}
