//! The status of a Workflow, from the machine's state. Pure.

use super::plan::spec_hash;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use longshore_crds::{
    Checkpoint, Reason, StepPhase, StepStatus, Workflow, WorkflowPhase, WorkflowStatus, condition,
    set_condition,
};
use longshore_workflow::{Plan, State, StepPhase as MachineStep, WorkflowPhase as MachinePhase, checkpoint};

/// The state in a status; a new one where there is none.
pub(super) fn decode(status: &WorkflowStatus) -> std::result::Result<State, String> {
    match &status.checkpoint {
        None => Ok(State::new()),
        Some(it) if it.data.is_too_deep() => Err("the checkpoint is nested too deeply".to_owned()),
        Some(it) => checkpoint::decode(it.version, &it.data).map_err(|error| error.to_string()),
    }
}

/// The status that `state` amounts to. `held_up` says what keeps it from going on, if anything has for long.
pub(super) fn status(
    workflow: &Workflow,
    plan: &Plan,
    state: &State,
    held_up: Option<String>,
    now: Timestamp,
) -> WorkflowStatus {
    let old = workflow.status.clone().unwrap_or_default();
    let summary = state.summary(plan);
    let (version, data) = checkpoint::encode(state);
    let phase = phase(summary.phase, state.is_suspended());
    let mut status = WorkflowStatus {
        phase,
        conditions: old.conditions,
        observed_generation: workflow.metadata.generation,
        progress: summary.progress,
        message: summary.message.clone(),
        started_at: summary.started_at.and_then(time),
        finished_at: summary.finished_at.and_then(time),
        steps: summary.steps.into_iter().map(step).collect(),
        spec_hash: Some(old.spec_hash.unwrap_or_else(|| spec_hash(&workflow.spec))),
        checkpoint: Some(Checkpoint { version, data: data.into() }),
    };
    let message = summary.message.unwrap_or_default();
    let generation = workflow.metadata.generation;
    let succeeded = match phase {
        WorkflowPhase::Succeeded => Reason::yes("Succeeded", "every step succeeded"),
        WorkflowPhase::Failed => Reason::no("Failed", message.clone()),
        WorkflowPhase::Cancelled => Reason::no("Cancelled", "it was cancelled"),
        other => Reason::unknown(&format!("{other:?}"), message.clone()),
    };
    set_condition(&mut status.conditions, condition::SUCCEEDED, succeeded, generation, now);
    set_condition(&mut status.conditions, condition::RECONCILING, Reason::no("Started", ""), generation, now);
    let stalled = match (phase, held_up) {
        (WorkflowPhase::Failed, _) => Reason::yes("Failed", message),
        (_, Some(why)) if !state.is_terminal() => Reason::unknown(HELD_UP, why),
        _ => Reason::no("Advancing", ""),
    };
    set_condition(&mut status.conditions, condition::STALLED, stalled, generation, now);
    status
}

/// The reason of Stalled while something keeps a workflow from going on that may come back by itself.
const HELD_UP: &str = "HeldUp";

/// Whether people were told that it is held up.
pub(super) fn tells_of_a_hold_up(status: &WorkflowStatus) -> bool {
    status
        .conditions
        .iter()
        .any(|condition| condition.type_ == condition::STALLED && condition.reason == HELD_UP)
}

/// Whether `next` tells people something that doesn't come from the machine's state: that is written although nothing
/// happened.
pub(super) fn tells_more(stored: Option<&WorkflowStatus>, next: &WorkflowStatus) -> bool {
    stored.is_none_or(|stored| {
        stored.checkpoint.is_none()
            || stored.conditions != next.conditions
            || stored.observed_generation != next.observed_generation
    })
}

/// Whether more has changed than counters: what people wait for, and of which there is little.
pub(super) fn is_transition(before: &WorkflowStatus, after: &WorkflowStatus) -> bool {
    let rare = |status: &WorkflowStatus| {
        let mut rare = WorkflowStatus { checkpoint: None, ..status.clone() };
        for step in &mut rare.steps {
            (step.succeeded, step.failed) = (0, 0);
        }
        rare
    };
    before.checkpoint.is_none() || rare(before) != rare(after)
}

fn phase(phase: MachinePhase, suspended: bool) -> WorkflowPhase {
    match phase {
        MachinePhase::Pending => WorkflowPhase::Pending,
        MachinePhase::Running if suspended => WorkflowPhase::Suspended,
        MachinePhase::Running => WorkflowPhase::Running,
        MachinePhase::Finishing => WorkflowPhase::Finishing,
        MachinePhase::Succeeded => WorkflowPhase::Succeeded,
        MachinePhase::Failed => WorkflowPhase::Failed,
        MachinePhase::Cancelled | MachinePhase::Deleted => WorkflowPhase::Cancelled,
    }
}

fn step(step: longshore_workflow::StepSummary) -> StepStatus {
    StepStatus {
        name: step.name,
        phase: match step.phase {
            MachineStep::Pending => StepPhase::Pending,
            MachineStep::Running => StepPhase::Running,
            MachineStep::Succeeded => StepPhase::Succeeded,
            MachineStep::Failed => StepPhase::Failed,
            MachineStep::Cancelled => StepPhase::Cancelled,
            MachineStep::Skipped => StepPhase::Skipped,
        },
        total: step.total,
        succeeded: step.succeeded,
        failed: step.failed,
        started_at: step.started_at.and_then(time),
        finished_at: step.finished_at.and_then(time),
        message: step.message,
    }
}

fn time(millis: u64) -> Option<Time> {
    // Kubernetes times have whole seconds.
    i64::try_from(millis / 1000).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).map(Time)
}

/// The status of a workflow that waits for something before it starts.
pub(super) fn waiting(workflow: &Workflow, reason: &str, message: &str, now: Timestamp) -> WorkflowStatus {
    let mut status = workflow.status.clone().unwrap_or_default();
    let generation = workflow.metadata.generation;
    status.observed_generation = generation;
    status.message = Some(message.to_owned());
    set_condition(
        &mut status.conditions,
        condition::SUCCEEDED,
        Reason::unknown(reason, message),
        generation,
        now,
    );
    set_condition(
        &mut status.conditions,
        condition::RECONCILING,
        Reason::yes(reason, message),
        generation,
        now,
    );
    status
}

/// The status of a workflow that won't start as it is.
pub(super) fn invalid(workflow: &Workflow, reason: &str, message: &str, now: Timestamp) -> WorkflowStatus {
    let mut status = stalled(workflow, reason, message, now);
    let generation = workflow.metadata.generation;
    status.observed_generation = generation;
    status.message = Some(message.to_owned());
    let verdicts = [
        (condition::SUCCEEDED, Reason::unknown(reason, message)),
        (condition::RECONCILING, Reason::no(reason, message)),
    ];
    for (kind, verdict) in verdicts {
        set_condition(&mut status.conditions, kind, verdict, generation, now);
    }
    status
}

/// The status of a workflow that can't go on by itself.
pub(super) fn stalled(workflow: &Workflow, reason: &str, message: &str, now: Timestamp) -> WorkflowStatus {
    let mut status = workflow.status.clone().unwrap_or_default();
    let generation = workflow.metadata.generation;
    set_condition(&mut status.conditions, condition::STALLED, Reason::yes(reason, message), generation, now);
    status
}

/// What changed that people want to hear of: warning, reason, note.
pub(super) fn news(before: &WorkflowStatus, after: &WorkflowStatus) -> Vec<(bool, String, String)> {
    let mut news = Vec::new();
    let started = before.started_at.is_none() && after.started_at.is_some();
    if started {
        news.push((false, "Started".to_owned(), format!("{} steps", after.steps.len())));
    }
    for step in &after.steps {
        let was =
            before.steps.iter().find(|old| old.name == step.name).map(|old| old.phase).unwrap_or_default();
        if let Some((warning, reason, more)) = Some(step).filter(|step| was != step.phase).and_then(step_news)
        {
            news.push((warning, reason.to_owned(), format!("step {}{more}", step.name)));
        }
    }
    if before.phase != after.phase
        && let Some((warning, reason)) = phase_news(before.phase, after.phase)
    {
        let note = after.message.clone().filter(|message| !message.is_empty());
        let note = note.unwrap_or_else(|| format!("steps {}", after.progress));
        news.push((warning, reason.to_owned(), note));
    }
    if !tells_of_a_hold_up(before) && tells_of_a_hold_up(after) {
        let why = after.conditions.iter().find(|condition| condition.type_ == condition::STALLED);
        news.push((true, HELD_UP.to_owned(), why.map(|why| why.message.clone()).unwrap_or_default()));
    }
    news
}

fn step_news(step: &StepStatus) -> Option<(bool, &'static str, String)> {
    match step.phase {
        StepPhase::Running => Some((false, "StepStarted", String::new())),
        StepPhase::Succeeded => Some((false, "StepSucceeded", String::new())),
        StepPhase::Failed => {
            Some((true, "StepFailed", format!(": {}", step.message.clone().unwrap_or_default())))
        }
        StepPhase::Cancelled => Some((false, "StepCancelled", String::new())),
        StepPhase::Pending | StepPhase::Skipped | StepPhase::Unknown => None,
    }
}

fn phase_news(before: WorkflowPhase, after: WorkflowPhase) -> Option<(bool, &'static str)> {
    match after {
        WorkflowPhase::Suspended => Some((false, "Suspended")),
        WorkflowPhase::Running if before == WorkflowPhase::Suspended => Some((false, "Resumed")),
        WorkflowPhase::Finishing => Some((false, "Finishing")),
        WorkflowPhase::Succeeded => Some((false, "Succeeded")),
        WorkflowPhase::Failed => Some((true, "Failed")),
        WorkflowPhase::Cancelled => Some((false, "Cancelled")),
        WorkflowPhase::Pending | WorkflowPhase::Running | WorkflowPhase::Unknown => None,
    }
}

/// When a finished workflow is deleted, if ever. Objects that Argo CD or Flux track would be made again and run again.
pub(super) fn expiry(workflow: &Workflow) -> Option<Timestamp> {
    const TRACKED: [&str; 4] = [
        "argocd.argoproj.io/instance",
        "argocd.argoproj.io/tracking-id",
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/name",
    ];
    let labels = workflow.labels();
    let mut tracked =
        TRACKED.iter().any(|name| labels.contains_key(*name) || workflow.annotations().contains_key(*name));
    // Argo CD's default before version 3; Helm sets it too, and makes nothing anew that is gone.
    tracked |= labels.contains_key("app.kubernetes.io/instance")
        && labels.get("app.kubernetes.io/managed-by").is_none_or(|manager| manager != "Helm");
    let ttl = workflow.spec.ttl_after_finished.as_ref().filter(|_| !tracked)?;
    let finished = workflow.status.as_ref()?.finished_at.as_ref()?.0;
    finished.checked_add(SignedDuration::try_from(ttl.get()).ok()?).ok()
}
