//! Where a workflow stands. Small: counters and sets, never payloads.

use crate::{
    Callback, Failure, Millis, Plan, ResultRef, Target,
    members::{Member, Roster},
    ranges::Ranges,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How long jobs are waited for after the broker was asked to cancel them.
pub const CANCEL_GRACE: Millis = 30_000;

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

impl WorkflowPhase {
    /// Whether nothing happens any more.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Running | Self::Finishing => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Deleted => true,
        }
    }
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

/// Why a workflow does not come out well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// A step failed.
    StepFailed,
    /// It did not end before its deadline.
    DeadlineExceeded,
    /// The user asked for it.
    CancelRequested,
}

/// The state of one workflow.
///
/// Fields that this code doesn't know are refused: a newer operator wrote them, and dropping them would undo its work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct State {
    pub(crate) phase: WorkflowPhase,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) round: u32,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) suspended: bool,
    /// When the object began to be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deleting_since: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finished_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<WorkflowOutcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) steps: Vec<StepState>,
    #[serde(skip_serializing_if = "Slots::is_empty")]
    pub(crate) callbacks: Slots,
    /// Since when nothing was heard of the callback that is out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heard_at: Option<Millis>,
    /// The broker was asked to cancel the callback that is out: only for deletion.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) callback_cancelled: bool,
    /// Bytes that all results take that stand here.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) inline_bytes: u32,
    /// Places of which a later completion said otherwise than the first one. A set, because each may come twice.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) conflicting: BTreeSet<String>,
    /// Jobs that the broker had lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) lost: u32,
}

/// The state of one step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct StepState {
    pub(crate) phase: StepPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finished_at: Option<Millis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
    /// The members, once it is known how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) members: Option<Roster>,
    /// Results that stand here, by member.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) inline: BTreeMap<u32, String>,
    /// Bytes of all results that stand elsewhere.
    #[serde(skip_serializing_if = "is_zero_long")]
    pub(crate) stored_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<(u32, Failure)>,
    /// How the members came out, once decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<WorkflowOutcome>,
    /// When this was found out. Not when it came about: after an outage the grace for cancelled jobs begins now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decided_at: Option<Millis>,
    /// The members that the broker was asked to cancel.
    #[serde(rename = "cancelledTo", skip_serializing_if = "Ranges::is_empty")]
    pub(crate) cancelled: Ranges,
    /// Since when nothing was heard of any job of this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) heard_at: Option<Millis>,
    /// The members that were asked for in the present silence.
    #[serde(rename = "askedTo", skip_serializing_if = "Ranges::is_empty")]
    pub(crate) asked: Ranges,
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
    /// Its turn has not come.
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
        match self {
            Self::Idle | Self::Owed | Self::Out => false,
            Self::Done | Self::Failed(_) => true,
        }
    }

    /// Whether a job of it may be in the broker.
    pub(crate) const fn is_open(&self) -> bool {
        match self {
            Self::Owed | Self::Out => true,
            Self::Idle | Self::Done | Self::Failed(_) => false,
        }
    }
}

impl Slots {
    pub(crate) fn get(&self, callback: Callback) -> &Slot {
        &self.0[callback.index()]
    }

    pub(crate) fn set(&mut self, callback: Callback, slot: Slot) {
        self.0[callback.index()] = slot;
    }

    /// The callback whose turn it is: there is one at a time.
    pub(crate) fn open(&self) -> Option<Callback> {
        Callback::ALL.into_iter().find(|callback| self.get(*callback).is_open())
    }

    pub(crate) fn is_out(&self) -> bool {
        self.0.contains(&Slot::Out)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|slot| *slot == Slot::Idle)
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_zero_long(number: &u64) -> bool {
    *number == 0
}

fn is_false(truth: &bool) -> bool {
    !*truth
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
        self.phase.is_terminal()
    }

    /// Whether nothing further is to be started.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Whether the object has to stay, because jobs may be in the broker that nobody would cancel. A finalizer may go
    /// when this says no.
    pub fn may_have_jobs_out(&self) -> bool {
        self.is_started() && !self.is_terminal()
    }

    /// How it comes out, once decided.
    pub fn outcome(&self) -> Option<WorkflowOutcome> {
        self.outcome
    }

    /// Why it does not come out well, as a word.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// Why it does not come out well, for people.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// How many members a step has, once its turn has come and they are known.
    pub fn members(&self, _plan: &Plan, step: u16) -> Option<u32> {
        Some(self.step(step)?.members.as_ref()?.total())
    }

    /// How many members of a step ended well, and how many otherwise.
    pub fn counts(&self, step: u16) -> (u32, u32) {
        self.step(step).map_or((0, 0), StepState::counts)
    }

    /// Where the result of a job is; `None` unless it succeeded.
    ///
    /// Of a large batch that ended it may be said to be stored though the job answered nothing: where so many patterns
    /// don't fit, only the store knows. Finding nothing there means that there was nothing.
    pub fn result(&self, target: &Target) -> Option<ResultRef> {
        let Target::Member { step, member } = target else {
            return None;
        };
        let step = self.step(*step)?;
        let members = step.members.as_ref()?;
        match members.get(*member)? {
            Member::Waiting | Member::Out | Member::Failed => None,
            // Once its step ended, one with a result that stands here may be taken for silent.
            Member::Silent | Member::Answered if step.inline.contains_key(member) => {
                step.inline.get(member).cloned().map(ResultRef::Inline)
            }
            Member::Silent => Some(ResultRef::None),
            Member::Answered => {
                Some(ResultRef::Stored { bytes: if members.total() == 1 { step.stored_bytes } else { 0 } })
            }
        }
    }

    pub(crate) fn step(&self, step: u16) -> Option<&StepState> {
        self.steps.get(usize::from(step))
    }

    /// The steps with their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u16, &StepState)> {
        (0..=u16::MAX).zip(&self.steps)
    }
}

impl StepState {
    /// How many members ended well, and how many otherwise.
    pub(crate) fn counts(&self) -> (u32, u32) {
        self.members.as_ref().map_or((0, 0), |all| (all.succeeded(), all.count(Member::Failed)))
    }

    /// How many members are in the broker.
    pub(crate) fn out(&self) -> u32 {
        self.members.as_ref().map_or(0, |all| all.count(Member::Out))
    }

    /// Whether its members run: its turn has come, and its outcome is open.
    pub(crate) fn is_open(&self) -> bool {
        self.phase == StepPhase::Running && self.outcome.is_none()
    }

    /// Whether its members are to be stopped.
    pub(crate) fn ends_early(&self) -> bool {
        match self.outcome {
            None | Some(WorkflowOutcome::Succeeded) => false,
            Some(WorkflowOutcome::Failed | WorkflowOutcome::Cancelled) => self.phase == StepPhase::Running,
        }
    }

    /// Something was heard of its jobs.
    pub(crate) fn heard(&mut self, now: Millis) {
        self.heard_at = Some(now);
        self.asked.clear();
    }
}
