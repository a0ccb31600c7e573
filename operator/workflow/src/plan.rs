//! What a workflow is made of, as far as the machine needs to know.

use std::num::NonZeroU32;

/// The steps in order, and what runs at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<PlannedStep>,
    /// The workflow's callbacks.
    pub callbacks: CallbackSet,
    /// Milliseconds from the start to the outcome.
    pub deadline: Option<u64>,
    /// Milliseconds after which a job that was not heard of is asked for.
    pub resync_after: u64,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    /// Its name.
    pub name: String,
    /// Milliseconds from its start to its outcome.
    pub timeout: Option<u64>,
    /// What it does.
    pub work: Work,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// One job.
    Job,
    /// Many jobs.
    Batch(BatchPlan),
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    /// How many members it has.
    pub members: Members,
    /// What a failed member means.
    pub failure_policy: FailurePolicy,
    /// Members in the broker at once.
    pub max_parallel: Option<NonZeroU32>,
    /// The batch's callbacks.
    pub callbacks: CallbackSet,
}

/// How many members a batch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    /// So many.
    Fixed(u32),
    /// As many as an expression says when the step's turn has come.
    Resolved,
}

/// What a failed member means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailurePolicy {
    /// The batch has failed.
    FailFast,
    /// The others run, then the batch has failed.
    Continue,
}

/// Which callbacks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallbackSet {
    /// After success.
    pub then: bool,
    /// After failure.
    pub catch: bool,
    /// At the end.
    pub finally: bool,
}

impl PlannedStep {
    /// The batch, if it is one.
    pub(crate) fn batch(&self) -> Option<&BatchPlan> {
        match &self.work {
            Work::Job => None,
            Work::Batch(batch) => Some(batch),
        }
    }

    pub(crate) fn callbacks(&self) -> CallbackSet {
        self.batch().map(|batch| batch.callbacks).unwrap_or_default()
    }
}
