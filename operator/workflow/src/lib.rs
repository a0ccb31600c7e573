//! The workflow state machine: events in, state and effects out. Pure, synchronous, deterministic.
//!
//! The controller folds events with [`State::fold`], commits the state, and only then performs what
//! [`State::effects_owed`] says. Losing effects is harmless (they are owed until they are recorded), and performing one
//! twice is harmless (a job's id is a function of round and [`Target`]).
//!
//! What the controller has to keep to:
//! - Completions are folded in the order in which they were settled, and [`Event::TimerFired`] after them: a job that
//!   was settled before the deadline then wins even when its completion arrived later.
//! - [`Event::Dispatched`] only records what was performed and may wait for the next commit, with the time at which it was
//!   performed. It is folded first and in its order, on whatever was committed meanwhile; times may go back from one
//!   event to the next. Losing it repeats harmless work. No other event may wait: something may follow from each.
//! - It looks again at [`State::next_timer`] and folds [`Event::TimerFired`].
//! - A workflow whose [`State::worst_case_bytes`] do not fit into its status must not start.
//! - The object must not go away while [`State::may_have_jobs_out`].
#![warn(clippy::wildcard_enum_match_arm)]

pub mod checkpoint;
mod effect;
mod event;
mod machine;
mod members;
mod owed;
mod plan;
mod queries;
mod ranges;
mod results;
mod size;
mod state;
mod summary;
mod target;

pub use effect::Effect;
pub use event::{Event, Failure, Outcome, ResultRef};
pub use machine::TransitionError;
pub use plan::{
    BatchPlan, CallbackSet, FailurePolicy, MAX_MEMBERS, Members, Millis, Plan, PlannedStep, Work,
};
pub use state::{CANCEL_GRACE, Reason, State, StepPhase, WorkflowOutcome, WorkflowPhase};
pub use summary::{CallbackPhase, CallbackSummary, StepSummary, Summary};
pub use target::{Callback, Target};
