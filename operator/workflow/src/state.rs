//! Where a workflow stands. Small: counters and sets, never payloads.

use crate::{Callback, Failure, Plan, ResultRef, Target, bits::Bits};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a workflow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkflowPhase {
    /// Not started.
    #[default]
    Pending,
    /// Steps run.
    Running,
    /// The outcome is decided, callbacks run.
    Finishing,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by request.
    Cancelled,
    /// Ended with its object.
    Deleted,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StepPhase {
    /// Its turn has not come.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by request.
    Cancelled,
    /// Its turn never came.
    Skipped,
}

/// How a workflow or a batch comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkflowOutcome {
    /// Well.
    Succeeded,
    /// Badly.
    Failed,
    /// By request.
    Cancelled,
}

impl std::fmt::Display for WorkflowOutcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        })
    }
}

/// Bytes of one result in the state.
pub(crate) const MAX_INLINE: usize = 1024;
/// Bytes of all results in the state.
pub(crate) const MAX_INLINE_TOTAL: usize = 16 * 1024;
/// Failures that are kept with their message.
pub(crate) const MAX_FAILURES: usize = 10;
/// Bytes of a kept message.
pub(crate) const MAX_MESSAGE: usize = 256;
/// How long cancelled jobs are waited for.
pub(crate) const CANCEL_GRACE: u64 = 30_000;

/// The state of one workflow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    pub(crate) phase: WorkflowPhase,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) round: u32,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) suspended: bool,
    /// When the object began to be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deleting_since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finished_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<WorkflowOutcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    pub(crate) steps: Vec<StepState>,
    #[serde(skip_serializing_if = "Slots::is_empty")]
    pub(crate) callbacks: Slots,
    /// Bytes of all results that stand here.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) inline_bytes: u32,
    /// Terminal completions that said otherwise than the first one.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) conflicting: u32,
    /// When something was heard last; silence is counted from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heard_at: Option<u64>,
}

/// The state of one step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct StepState {
    pub(crate) phase: StepPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finished_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// How many members there are, once known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<u32>,
    #[serde(skip_serializing_if = "none")]
    pub(crate) dispatched: Bits,
    #[serde(skip_serializing_if = "none")]
    pub(crate) settled: Bits,
    #[serde(skip_serializing_if = "none")]
    pub(crate) succeeded: Bits,
    /// Results that stand here, by member.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inline: BTreeMap<u32, String>,
    /// Members that answered nothing.
    #[serde(skip_serializing_if = "none")]
    pub(crate) silent: Bits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<(u32, Failure)>,
    /// How the members came out, once decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<WorkflowOutcome>,
    /// When the outcome was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decided_at: Option<u64>,
    #[serde(skip_serializing_if = "Slots::is_empty")]
    pub(crate) callbacks: Slots,
}

/// The jobs of callbacks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Slots([Slot; 3]);

/// Where the job of a callback stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Slot {
    /// Not owed.
    #[default]
    Idle,
    /// To be put into the broker.
    Owed,
    /// In the broker.
    Out,
    /// Over.
    Done,
    /// Over, badly.
    Failed(Failure),
}

impl Slot {
    pub(crate) const fn is_over(&self) -> bool {
        matches!(self, Self::Done | Self::Failed(_))
    }
}

impl Slots {
    pub(crate) fn get(&self, callback: Callback) -> &Slot {
        &self.0[callback.index()]
    }

    pub(crate) fn set(&mut self, callback: Callback, slot: Slot) {
        self.0[callback.index()] = slot;
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|slot| *slot == Slot::Idle)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_false(truth: &bool) -> bool {
    !*truth
}

fn none(bits: &Bits) -> bool {
    bits.len() == 0
}

impl State {
    /// A workflow that has not started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its round.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// Whether it has started.
    pub fn is_started(&self) -> bool {
        self.phase != WorkflowPhase::Pending
    }

    /// Whether nothing happens any more.
    pub fn is_terminal(&self) -> bool {
        match self.phase {
            WorkflowPhase::Pending | WorkflowPhase::Running | WorkflowPhase::Finishing => false,
            WorkflowPhase::Succeeded
            | WorkflowPhase::Failed
            | WorkflowPhase::Cancelled
            | WorkflowPhase::Deleted => true,
        }
    }

    /// Whether nothing further is to be started.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// How it comes out, once decided.
    pub fn outcome(&self) -> Option<WorkflowOutcome> {
        self.outcome
    }

    /// Why it comes out so.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// How many members a step has, once its turn has come and they are known.
    pub fn members(&self, _plan: &Plan, step: u16) -> Option<u32> {
        self.steps.get(usize::from(step))?.total
    }

    /// How many members of a step ended well, and how many otherwise.
    pub fn counts(&self, step: u16) -> (u32, u32) {
        self.steps.get(usize::from(step)).map_or((0, 0), StepState::counts)
    }

    /// Where the result of a job is; `None` unless it succeeded.
    pub fn result(&self, target: &Target) -> Option<ResultRef> {
        let Target::Member { step, member } = target else {
            return None;
        };
        let step = self.steps.get(usize::from(*step))?;
        if !step.succeeded.contains(*member) {
            return None;
        }
        if step.silent.contains(*member) {
            return Some(ResultRef::None);
        }
        let inline = step.inline.get(member).map(|text| ResultRef::Inline(text.clone()));
        Some(inline.unwrap_or(ResultRef::Stored { bytes: 0 }))
    }
}

impl StepState {
    pub(crate) fn counts(&self) -> (u32, u32) {
        (self.succeeded.len(), self.settled.len() - self.succeeded.len())
    }

    /// Members that are in the broker.
    pub(crate) fn out(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.total.unwrap_or(0))
            .filter(|member| self.dispatched.contains(*member) && !self.settled.contains(*member))
    }
}

/// A message cut to its limit.
pub(crate) fn cut(message: &str) -> String {
    let end =
        (0..=MAX_MESSAGE.min(message.len())).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    message[..end].to_owned()
}
