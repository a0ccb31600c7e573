//! The status of a Workflow, from the machine's state. Pure, but for one report of a state that can't be read.

use super::plan::spec_hash;
use crate::{apply::replace_status, context::Context, error::Result};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::{ResourceExt, runtime::controller::Action};
use longshore_crds::{
    Checkpoint, Reason, StepPhase, StepStatus, Workflow, WorkflowPhase, WorkflowStatus, condition,
    set_condition,
};
use longshore_workflow::{Plan, State, StepPhase as MachineStep, WorkflowPhase as MachinePhase, checkpoint};

/// The state in a status; a new one where there is none.
pub(super) fn decode(status: &WorkflowStatus) -> std::result::Result<State, String> {
    match &status.checkpoint {
        None => Ok(State::new()),
        Some(it) => checkpoint::decode(it.version, &it.data).map_err(|error| error.to_string()),
    }
}

/// Says that the state can't be read, and touches nothing else.
pub(super) async fn unsupported(context: &Context, workflow: &Workflow, problem: String) -> Result<Action> {
    let status = stalled(workflow, "UnsupportedStatus", &problem, context.now());
    if workflow.status.as_ref() != Some(&status) {
        let mut object = workflow.clone();
        object.status = Some(status);
        replace_status(&context.client, &object).await?;
    }
    Ok(Action::await_change())
}

/// The status that `state` amounts to.
pub(super) fn status(workflow: &Workflow, plan: &Plan, state: &State, now: Timestamp) -> WorkflowStatus {
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
        checkpoint: Some(Checkpoint { version, data }),
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
    let stalled = match phase {
        WorkflowPhase::Failed => Reason::yes("Failed", message),
        _ => Reason::no("Advancing", ""),
    };
    set_condition(&mut status.conditions, condition::STALLED, stalled, generation, now);
    status
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
    for step in &after.steps {
        let was =
            before.steps.iter().find(|old| old.name == step.name).map(|old| old.phase).unwrap_or_default();
        if was == step.phase {
            continue;
        }
        let told = match step.phase {
            StepPhase::Running => Some((false, "StepStarted", String::new())),
            StepPhase::Succeeded => Some((false, "StepSucceeded", String::new())),
            StepPhase::Failed => {
                Some((true, "StepFailed", format!(": {}", step.message.clone().unwrap_or_default())))
            }
            StepPhase::Pending | StepPhase::Cancelled | StepPhase::Skipped => None,
        };
        if let Some((warning, reason, more)) = told {
            news.push((warning, reason.to_owned(), format!("step {}{more}", step.name)));
        }
    }
    let over = [WorkflowPhase::Succeeded, WorkflowPhase::Failed, WorkflowPhase::Cancelled];
    if before.phase != after.phase && over.contains(&after.phase) {
        let note = after
            .message
            .clone()
            .filter(|message| !message.is_empty())
            .unwrap_or_else(|| format!("steps {}", after.progress));
        news.push((after.phase == WorkflowPhase::Failed, format!("{:?}", after.phase), note));
    }
    news
}

/// When a finished workflow is deleted, if ever. Objects that Argo CD or Flux track would be made again and run again.
pub(super) fn expiry(workflow: &Workflow) -> Option<Timestamp> {
    const TRACKED: [&str; 4] = [
        "argocd.argoproj.io/instance",
        "argocd.argoproj.io/tracking-id",
        "kustomize.toolkit.fluxcd.io/name",
        "helm.toolkit.fluxcd.io/name",
    ];
    let tracked = TRACKED
        .iter()
        .any(|name| workflow.labels().contains_key(*name) || workflow.annotations().contains_key(*name));
    let ttl = workflow.spec.ttl_after_finished.as_ref().filter(|_| !tracked)?;
    let finished = workflow.status.as_ref()?.finished_at.as_ref()?.0;
    finished.checked_add(SignedDuration::try_from(ttl.get()).ok()?).ok()
}
