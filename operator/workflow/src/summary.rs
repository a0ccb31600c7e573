//! The state as people see it.

use crate::{Plan, State, StepPhase, WorkflowPhase, state::StepState};

/// The state as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Where the workflow stands.
    pub phase: WorkflowPhase,
    /// Steps that ended well, of all.
    pub progress: String,
    /// Why it stands there.
    pub message: Option<String>,
    /// When it started, in milliseconds since the epoch.
    pub started_at: Option<u64>,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// The steps.
    pub steps: Vec<StepSummary>,
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
    pub started_at: Option<u64>,
    /// When it ended.
    pub finished_at: Option<u64>,
    /// Why it failed.
    pub message: Option<String>,
}

impl State {
    /// The state as people see it.
    pub fn summary(&self, plan: &Plan) -> Summary {
        let empty = StepState::default();
        let states = self.steps.iter().chain(std::iter::repeat(&empty));
        let steps: Vec<_> =
            plan.steps.iter().zip(states).map(|(planned, state)| step(&planned.name, state)).collect();
        let done = steps.iter().filter(|step| step.phase == StepPhase::Succeeded).count();
        Summary {
            phase: self.phase,
            progress: format!("{done}/{}", steps.len()),
            message: self.message.clone(),
            started_at: self.started_at,
            finished_at: self.finished_at,
            steps,
        }
    }
}

fn step(name: &str, state: &StepState) -> StepSummary {
    let (succeeded, failed) = state.counts();
    StepSummary {
        name: name.to_owned(),
        phase: state.phase,
        total: state.total,
        succeeded,
        failed,
        started_at: state.started_at,
        finished_at: state.finished_at,
        message: state.message.clone(),
    }
}
