//! What a workflow is made of, as far as the machine needs to know.

use crate::Callback;
use std::num::NonZeroU32;

/// Milliseconds: since the epoch for a point in time, else a length of time.
pub type Millis = u64;

/// Members of one batch. The state of a batch of this size stays far below what a status may hold.
pub const MAX_MEMBERS: u32 = 100_000;

/// The steps in order, and what runs at the end. Must be the same for all events of a workflow, but for the deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<PlannedStep>,
    /// The workflow's callbacks.
    pub callbacks: CallbackSet,
    /// Milliseconds from the start to the outcome.
    pub deadline: Option<Millis>,
    /// Milliseconds after which a job that was not heard of is asked for; 0 asks never.
    pub resync_after: Millis,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    /// Its name.
    pub name: String,
    /// Milliseconds from its start to the outcome of its jobs.
    pub timeout: Option<Millis>,
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
    /// The batch has failed at once.
    ///
    /// Nothing further is dispatched, and the members that are out are asked to be cancelled. The batch's callbacks
    /// wait until those have settled, or for [`crate::CANCEL_GRACE`].
    FailFast,
    /// The others run, then the batch has failed.
    Continue,
}

/// Which callbacks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallbackSet {
    /// After success.
    pub then: bool,
    /// After failure or cancellation.
    pub catch: bool,
    /// At the end, after the other one settled.
    pub finally: bool,
}

impl CallbackSet {
    /// Whether there is such a callback.
    pub const fn has(&self, callback: Callback) -> bool {
        match callback {
            Callback::Then => self.then,
            Callback::Catch => self.catch,
            Callback::Finally => self.finally,
        }
    }
}

impl std::ops::BitOr for CallbackSet {
    type Output = Self;

    /// The callbacks of either.
    fn bitor(self, other: Self) -> Self {
        Self {
            then: self.then || other.then,
            catch: self.catch || other.catch,
            finally: self.finally || other.finally,
        }
    }
}

impl Plan {
    /// A step by its number.
    pub(crate) fn step(&self, step: u16) -> Option<&PlannedStep> {
        self.steps.get(usize::from(step))
    }
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

    /// The members that are known before the step's turn has come.
    pub(crate) fn known_members(&self) -> Option<u32> {
        match self.batch().map(|batch| batch.members) {
            None => Some(1),
            Some(Members::Fixed(count)) => Some(count),
            Some(Members::Resolved) => None,
        }
    }

    /// Members in the broker at once.
    pub(crate) fn max_parallel(&self) -> u32 {
        self.batch().and_then(|batch| batch.max_parallel).map_or(u32::MAX, NonZeroU32::get)
    }

    /// Whether the first failed member decides.
    pub(crate) fn fails_fast(&self) -> bool {
        match self.batch().map(|batch| batch.failure_policy) {
            None | Some(FailurePolicy::FailFast) => true,
            Some(FailurePolicy::Continue) => false,
        }
    }
}
