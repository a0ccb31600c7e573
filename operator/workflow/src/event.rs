//! What the machine hears.

use crate::Target;
use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The workflow starts.
    Started,
    /// An expression said how many members a batch has.
    MembersResolved {
        /// The step.
        step: u16,
        /// Its members.
        count: u32,
    },
    /// The expression can't be evaluated.
    ResolveFailed {
        /// The step.
        step: u16,
        /// Why.
        failure: Failure,
    },
    /// Jobs are in the broker.
    Dispatched {
        /// Their places.
        targets: Vec<Target>,
    },
    /// A job can never be put into the broker.
    DispatchRefused {
        /// Its place.
        target: Target,
        /// Why.
        failure: Failure,
    },
    /// A job left the broker.
    Settled {
        /// Its place.
        target: Target,
        /// Its round.
        round: u32,
        /// How it ended.
        outcome: Outcome,
        /// When, in milliseconds by the broker's clock.
        settled_at: u64,
    },
    /// The user wants nothing further started.
    SuspendRequested,
    /// The user wants it to go on.
    ResumeRequested,
    /// The user wants it to end.
    CancelRequested,
    /// The object is being deleted.
    DeletionRequested,
    /// Time passed.
    TimerFired,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Succeeded {
        /// What it answered.
        result: ResultRef,
    },
    /// Badly.
    Failed(Failure),
    /// By request.
    Cancelled,
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A CamelCase word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Where a result is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResultRef {
    /// The job answered nothing.
    None,
    /// Here.
    Inline(String),
    /// In the broker's result store, under the job's id.
    Stored {
        /// Its bytes.
        bytes: u64,
    },
}
