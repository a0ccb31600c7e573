//! The workflow state machine: events in, state and effects out. Pure, synchronous, deterministic.
//!
//! The controller folds events with [`State::apply`], commits the state, and only then performs what
//! [`State::effects_owed`] says. Losing effects is harmless (they are owed until they are recorded), and performing one
//! twice is harmless (a job's id is a function of round and [`Target`]).
#![warn(clippy::wildcard_enum_match_arm)]

mod batch;
mod bits;
pub mod checkpoint;
mod effect;
mod event;
mod finish;
mod machine;
mod owed;
mod plan;
mod state;
mod summary;
mod target;

pub use effect::Effect;
pub use event::{Event, Failure, Outcome, ResultRef};
pub use machine::TransitionError;
pub use plan::{BatchPlan, CallbackSet, FailurePolicy, Members, Plan, PlannedStep, Work};
pub use state::{State, StepPhase, WorkflowOutcome, WorkflowPhase};
pub use summary::{StepSummary, Summary};
pub use target::{Callback, Target};
