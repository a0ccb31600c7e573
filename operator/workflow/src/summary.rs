//! The state as people see it.

use crate::{
    Callback, CallbackSet, Millis, Plan, Reason, State, StepPhase, WorkflowOutcome, WorkflowPhase,
    members::Roster,
    state::{Slot, Slots, StepState},
};

/// The state as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Where the workflow stands.
    pub phase: WorkflowPhase,
    /// Whether nothing further is to be started.
    pub suspended: bool,
    /// How it comes out, once decided.
    pub outcome: Option<WorkflowOutcome>,
    /// Why it does not come out well, as a word.
    pub reason: Option<Reason>,
    /// Steps that ended well, of all.
    pub progress: String,
    /// Why it stands there.
    pub message: Option<String>,
    /// When it started, in milliseconds since the epoch.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub finished_at: Option<Millis>,
    /// The steps.
    pub steps: Vec<StepSummary>,
    /// The workflow's callbacks whose turn has come.
    pub callbacks: Vec<CallbackSummary>,
    /// Jobs whose completion was contradicted by a later one. Not counted beyond 64.
    pub conflicting_completions: u32,
    /// Jobs that the broker had lost.
    pub lost: u32,
}

/// A step as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSummary {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub phase: StepPhase,
    /// Its jobs, once known.
    pub total: Option<u32>,
    /// Jobs that ended well.
    pub succeeded: u32,
    /// Jobs that ended otherwise.
    pub failed: u32,
    /// When it started.
    pub started_at: Option<Millis>,
    /// When it ended.
    pub finished_at: Option<Millis>,
    /// Why it failed.
    pub message: Option<String>,
    /// Its callbacks whose turn has come.
    pub callbacks: Vec<CallbackSummary>,
}

/// A callback as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackSummary {
    /// Which.
    pub callback: Callback,
    /// Where it stands.
    pub phase: CallbackPhase,
    /// Why it failed.
    pub message: Option<String>,
}

/// Where a callback stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallbackPhase {
    /// It is about to go into the broker.
    Owed,
    /// Its job is in the broker.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly, which changes nothing.
    Failed,
}

impl State {
    /// The state as people see it.
    pub fn summary(&self, plan: &Plan) -> Summary {
        let empty = StepState::default();
        let states = self.steps.iter().chain(std::iter::repeat(&empty));
        let steps: Vec<_> = plan
            .steps
            .iter()
            .zip(states)
            .map(|(planned, state)| step(&planned.name, planned.callbacks(), state))
            .collect();
        let done = steps.iter().filter(|step| step.phase == StepPhase::Succeeded).count();
        Summary {
            phase: self.phase,
            suspended: self.suspended,
            outcome: self.outcome,
            reason: self.reason,
            progress: format!("{done}/{}", steps.len()),
            message: self.message.clone(),
            started_at: self.started_at,
            finished_at: self.finished_at,
            steps,
            callbacks: callbacks(plan.callbacks, &self.callbacks),
            conflicting_completions: u32::try_from(self.conflicting.len()).unwrap_or(u32::MAX),
            lost: self.lost,
        }
    }
}

fn step(name: &str, planned: CallbackSet, state: &StepState) -> StepSummary {
    let (succeeded, failed) = state.counts();
    StepSummary {
        name: name.to_owned(),
        phase: state.phase,
        total: state.members.as_ref().map(Roster::total),
        succeeded,
        failed,
        started_at: state.started_at,
        finished_at: state.finished_at,
        message: state.message.clone(),
        callbacks: callbacks(planned, &state.callbacks),
    }
}

fn callbacks(planned: CallbackSet, slots: &Slots) -> Vec<CallbackSummary> {
    let called = Callback::ALL.into_iter().filter(|callback| planned.has(*callback));
    called
        .filter_map(|callback| {
            let (phase, message) = match slots.get(callback) {
                Slot::Idle => return None,
                Slot::Owed => (CallbackPhase::Owed, None),
                Slot::Out => (CallbackPhase::Running, None),
                Slot::Done => (CallbackPhase::Succeeded, None),
                // The message of one of many may have been dropped.
                Slot::Failed(failure) if failure.message.is_empty() => {
                    (CallbackPhase::Failed, Some(failure.reason.clone()))
                }
                Slot::Failed(failure) => {
                    (CallbackPhase::Failed, Some(format!("{}: {}", failure.reason, failure.message)))
                }
            };
            Some(CallbackSummary { callback, phase, message })
        })
        .collect()
}
