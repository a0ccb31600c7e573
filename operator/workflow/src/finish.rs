//! What follows from the state by itself: the next step, callbacks, the end.

use crate::{
    Callback, CallbackSet, Members, Plan, PlannedStep, State, Target, Work, WorkflowOutcome, WorkflowPhase,
    state::{CANCEL_GRACE, Slot, StepPhase, cut},
};

impl State {
    /// Does what follows until nothing more follows.
    pub(crate) fn advance(&mut self, plan: &Plan, now: u64) {
        // Every pass ends a step or a stage, so this many are enough; the bound only guards against a mistake here.
        for _ in 0..=plan.steps.len() * 2 + 4 {
            if !self.advance_once(plan, now) {
                return;
            }
        }
    }

    /// Whether something changed that may make more follow.
    fn advance_once(&mut self, plan: &Plan, now: u64) -> bool {
        if self.phase == WorkflowPhase::Pending || self.is_terminal() {
            return false;
        }
        if let Some(since) = self.deleting_since {
            return self.end_deletion(since, now);
        }
        let current = self.steps.iter().position(|step| step.phase == StepPhase::Running);
        if let Some(index) = current {
            return self.advance_step(plan, index, now);
        }
        match self.phase {
            WorkflowPhase::Running => self.next_step(plan, now),
            WorkflowPhase::Finishing => self.finish(plan, now),
            WorkflowPhase::Pending
            | WorkflowPhase::Succeeded
            | WorkflowPhase::Failed
            | WorkflowPhase::Cancelled
            | WorkflowPhase::Deleted => false,
        }
    }

    /// Nothing further is started; the end comes when nothing is out, or when it was waited for long enough.
    fn end_deletion(&mut self, since: u64, now: u64) -> bool {
        let out = self.steps.iter().any(|step| step.out().next().is_some()) || self.callback_out().is_some();
        if out && now < since.saturating_add(CANCEL_GRACE) {
            return false;
        }
        self.phase = WorkflowPhase::Deleted;
        self.finished_at = Some(now);
        false
    }

    /// A callback whose job is in the broker.
    pub(crate) fn callback_out(&self) -> Option<Target> {
        self.callback_targets().find(|target| *self.slot(target) == Slot::Out)
    }

    /// The places of all callbacks.
    pub(crate) fn callback_targets(&self) -> impl Iterator<Item = Target> + use<'_> {
        let of_steps = (0_u16..).zip(&self.steps).filter(|(_, step)| step.phase == StepPhase::Running);
        let of_steps = of_steps
            .flat_map(|(step, _)| Callback::ALL.map(|callback| Target::StepCallback { step, callback }));
        of_steps.chain(Callback::ALL.map(Target::Callback))
    }

    fn next_step(&mut self, plan: &Plan, now: u64) -> bool {
        let Some(index) = self.steps.iter().position(|step| step.phase == StepPhase::Pending) else {
            self.decide(WorkflowOutcome::Succeeded, None, now);
            return true;
        };
        let state = &mut self.steps[index];
        state.phase = StepPhase::Running;
        state.started_at = Some(now);
        state.total = plan.steps.get(index).and_then(known_members);
        true
    }

    /// From the outcome of a step's members over its callbacks to its end.
    fn advance_step(&mut self, plan: &Plan, index: usize, now: u64) -> bool {
        let Some(planned) = plan.steps.get(index) else {
            return false;
        };
        let state = &mut self.steps[index];
        if state.total == Some(0) && state.outcome.is_none() {
            state.outcome = Some(WorkflowOutcome::Succeeded);
            state.decided_at = Some(now);
        }
        let Some(outcome) = state.outcome else {
            return false;
        };
        let decided = state.decided_at.unwrap_or(now);
        if state.out().next().is_some() && now < decided.saturating_add(CANCEL_GRACE) {
            return false;
        }
        if !call_back(&mut state.callbacks, planned.callbacks(), outcome) {
            return false;
        }
        self.end_step(planned, index, outcome, now);
        true
    }

    fn end_step(&mut self, planned: &PlannedStep, index: usize, outcome: WorkflowOutcome, now: u64) {
        let state = &mut self.steps[index];
        state.finished_at = Some(now);
        state.phase = match outcome {
            WorkflowOutcome::Succeeded => StepPhase::Succeeded,
            WorkflowOutcome::Failed => StepPhase::Failed,
            WorkflowOutcome::Cancelled => StepPhase::Cancelled,
        };
        if outcome == WorkflowOutcome::Failed {
            let why = state.message.clone().unwrap_or_default();
            let message = format!("step {} failed: {why}", planned.name);
            self.decide(WorkflowOutcome::Failed, Some(&message), now);
        }
    }

    /// Decides how the workflow comes out, once. A step that runs comes out with it.
    pub(crate) fn decide(&mut self, outcome: WorkflowOutcome, message: Option<&str>, at: u64) {
        if self.outcome.is_some() || self.phase != WorkflowPhase::Running {
            return;
        }
        self.outcome = Some(outcome);
        self.message = message.map(cut);
        self.phase = WorkflowPhase::Finishing;
        for step in
            self.steps.iter_mut().filter(|step| step.phase == StepPhase::Running && step.outcome.is_none())
        {
            step.outcome = Some(outcome);
            step.decided_at = Some(at);
            step.message = message.map(cut);
        }
    }

    /// The workflow's callbacks, then the end.
    fn finish(&mut self, plan: &Plan, now: u64) -> bool {
        let Some(outcome) = self.outcome else { return false };
        for step in self.steps.iter_mut().filter(|step| step.phase == StepPhase::Pending) {
            step.phase = StepPhase::Skipped;
        }
        if !call_back(&mut self.callbacks, plan.callbacks, outcome) {
            return false;
        }
        self.finished_at = Some(now);
        self.phase = match outcome {
            WorkflowOutcome::Succeeded => WorkflowPhase::Succeeded,
            WorkflowOutcome::Failed => WorkflowPhase::Failed,
            WorkflowOutcome::Cancelled => WorkflowPhase::Cancelled,
        };
        false
    }

    /// Lets what had its time come out: the workflow by its deadline, the running step by its timeout.
    pub(crate) fn expire(&mut self, plan: &Plan, at: u64) {
        let end =
            plan.deadline.zip(self.started_at).map(|(deadline, started)| started.saturating_add(deadline));
        if let Some(end) = end.filter(|end| *end <= at) {
            self.decide(
                WorkflowOutcome::Failed,
                Some("DeadlineExceeded: it did not end before its deadline"),
                end,
            );
        }
        for (planned, state) in plan.steps.iter().zip(&mut self.steps) {
            let end = planned
                .timeout
                .zip(state.started_at)
                .map(|(timeout, started)| started.saturating_add(timeout));
            if let Some(end) =
                end.filter(|end| *end <= at && state.phase == StepPhase::Running && state.outcome.is_none())
            {
                state.outcome = Some(WorkflowOutcome::Failed);
                state.decided_at = Some(end);
                state.message = Some("StepTimeout: it did not end in time".to_owned());
            }
        }
    }
}

/// The members that are known before the step's turn has come.
fn known_members(planned: &PlannedStep) -> Option<u32> {
    match &planned.work {
        Work::Job => Some(1),
        Work::Batch(batch) => match batch.members {
            Members::Fixed(count) => Some(count),
            Members::Resolved => None,
        },
    }
}

/// Walks through `then` or `catch`, then `finally`. Whether they are over; how they end changes nothing.
fn call_back(slots: &mut crate::state::Slots, planned: CallbackSet, outcome: WorkflowOutcome) -> bool {
    let first = match outcome {
        WorkflowOutcome::Succeeded => (planned.then, Callback::Then),
        WorkflowOutcome::Failed | WorkflowOutcome::Cancelled => (planned.catch, Callback::Catch),
    };
    for (exists, callback) in [first, (planned.finally, Callback::Finally)] {
        if !exists || slots.get(callback).is_over() {
            continue;
        }
        if *slots.get(callback) == Slot::Idle {
            slots.set(callback, Slot::Owed);
        }
        return false;
    }
    true
}
