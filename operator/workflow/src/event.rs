//! What the machine hears.
//!
//! Only completions carry a round: they may come from an earlier one. Everything else comes from the operator that holds
//! the state, so it speaks of the round of the state.

use crate::{Millis, Target};
use serde::{Deserialize, Serialize};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The workflow starts.
    Started,
    /// An expression said how many members a batch has. It is not evaluated again: the first count stands.
    MembersResolved {
        /// The step.
        step: u16,
        /// Its members.
        count: u32,
    },
    /// The expression can't be evaluated. The step has failed.
    ResolveFailed {
        /// The step.
        step: u16,
        /// Why.
        failure: Failure,
    },
    /// Jobs are in the broker, whoever put them there, just now or before: this also answers a question after a silence.
    ///
    /// Who keeps it to fold it later has to keep its time with it: a silence is over at the time of the answer, and with
    /// a later time a job would not be asked for that was silent in between.
    Dispatched {
        /// Their places.
        targets: Vec<Target>,
    },
    /// A job can never be put into the broker. It counts as failed.
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
        settled_at: Millis,
    },
    /// The broker doesn't know a job that was put there. It is owed again.
    Lost {
        /// Its place.
        target: Target,
    },
    /// The broker was asked to cancel jobs: any part of those that were owed.
    ///
    /// A job that was asked for is not waited for any more when nobody knows that it is in the broker. Where the answer
    /// says that it is there and runs on, [`Event::Dispatched`] comes first: then it is waited for.
    CancelAsked {
        /// Their places.
        targets: Vec<Target>,
    },
    /// The user wants nothing further started: no members, no callbacks. What runs settles; the deadline keeps running.
    SuspendRequested,
    /// The user wants it to go on.
    ResumeRequested,
    /// The user wants it to end, with `catch` and `finally`.
    CancelRequested,
    /// The object is being deleted: no callbacks.
    DeletionRequested,
    /// Time passed.
    TimerFired,
}

impl Event {
    /// The names of all events.
    pub const NAMES: [&'static str; 13] = [
        "Started",
        "MembersResolved",
        "ResolveFailed",
        "Dispatched",
        "DispatchRefused",
        "Settled",
        "Lost",
        "CancelAsked",
        "SuspendRequested",
        "ResumeRequested",
        "CancelRequested",
        "DeletionRequested",
        "TimerFired",
    ];

    /// Its name, one of [`Event::NAMES`]: for logs and metrics.
    pub const fn name(&self) -> &'static str {
        let index = match self {
            Self::Started => 0,
            Self::MembersResolved { .. } => 1,
            Self::ResolveFailed { .. } => 2,
            Self::Dispatched { .. } => 3,
            Self::DispatchRefused { .. } => 4,
            Self::Settled { .. } => 5,
            Self::Lost { .. } => 6,
            Self::CancelAsked { .. } => 7,
            Self::SuspendRequested => 8,
            Self::ResumeRequested => 9,
            Self::CancelRequested => 10,
            Self::DeletionRequested => 11,
            Self::TimerFired => 12,
        };
        Self::NAMES[index]
    }
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
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// A CamelCase word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Where a result is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultRef {
    /// The job answered nothing.
    None,
    /// Here.
    Inline(String),
    /// In the broker's result store, under the job's id.
    Stored {
        /// Its bytes; 0 where the state doesn't keep them, as for the members of a batch.
        bytes: u64,
    },
}
