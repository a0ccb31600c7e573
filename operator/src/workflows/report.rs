//! The status of a Workflow, from the machine's state. Pure.

use super::plan::spec_hash;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use longshore_crds::{
    CallbackStatus, Checkpoint, Reason, StepPhase, StepStatus, Workflow, WorkflowPhase, WorkflowStatus,
    condition, set_condition,
};
use longshore_workflow::{
    CallbackPhase, CallbackSummary, Plan, State, StepPhase as MachineStep, WorkflowPhase as MachinePhase,
    checkpoint,
};

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
        callbacks: summary.callbacks.into_iter().map(callback).collect(),
        lost_jobs: summary.lost,
        conflicting_completions: summary.conflicting_completions,
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
        callbacks: step.callbacks.into_iter().map(callback).collect(),
    }
}

fn callback(callback: CallbackSummary) -> CallbackStatus {
    CallbackStatus {
        name: callback.callback.text().to_owned(),
        phase: match callback.phase {
            CallbackPhase::Owed => StepPhase::Pending,
            CallbackPhase::Running => StepPhase::Running,
            CallbackPhase::Succeeded => StepPhase::Succeeded,
            CallbackPhase::Failed => StepPhase::Failed,
        },
        message: callback.message,
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
        let was = before.steps.iter().find(|old| old.name == step.name);
        let was = was.map(|old| old.callbacks.as_slice()).unwrap_or_default();
        news.extend(failed_callbacks(&format!("step {}, ", step.name), was, &step.callbacks));
    }
    news.extend(failed_callbacks("", &before.callbacks, &after.callbacks));
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

/// Callbacks that have failed since; nothing else in the workflow tells.
fn failed_callbacks(
    place: &str,
    before: &[CallbackStatus],
    after: &[CallbackStatus],
) -> Vec<(bool, String, String)> {
    let is_new = |it: &&CallbackStatus| it.phase == StepPhase::Failed && !before.contains(it);
    let failed = after.iter().filter(is_new);
    let note =
        |it: &CallbackStatus| format!("{place}{}: {}", it.name, it.message.clone().unwrap_or_default());
    failed.map(|it| (true, "CallbackFailed".to_owned(), note(it))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_crds::WorkflowSpec;
    use longshore_workflow::{Event, Failure, Outcome, ResultRef, Target};
    use serde_json::json;

    fn workflow() -> Workflow {
        let spec: WorkflowSpec = serde_json::from_value(json!({
            "queueRef": { "name": "q" },
            "steps": [{ "name": "one", "job": { "type": "t" } }, { "name": "two", "job": { "type": "t" } }],
            "finally": { "job": { "type": "t" } },
        }))
        .unwrap();
        let mut workflow = Workflow::new("w", spec);
        workflow.metadata.generation = Some(3);
        workflow
    }

    fn target(step: u16) -> Target {
        Target::Member { step, member: 0 }
    }

    /// The statuses that follow each other while `events` are heard.
    fn statuses(events: Vec<Event>) -> Vec<WorkflowStatus> {
        let (mut object, mut state) = (workflow(), State::new());
        let plan = super::super::plan::plan(&object.spec);
        let mut all = Vec::new();
        for (event, at) in events.into_iter().zip(1000..) {
            state = state.apply(&plan, event, at).unwrap().0;
            let status = status(&object, &plan, &state, None, Timestamp::from_millisecond(1000).unwrap());
            object.status = Some(status.clone());
            all.push(status);
        }
        all
    }

    fn settled(target: Target, outcome: Outcome) -> Event {
        Event::Settled { target, round: 0, outcome, settled_at: 1000 }
    }

    fn done() -> Outcome {
        Outcome::Succeeded { result: ResultRef::None }
    }

    fn history() -> Vec<WorkflowStatus> {
        let finally = Target::Callback(longshore_workflow::Callback::Finally);
        let broken =
            Outcome::Failed(Failure { reason: "Exhausted".into(), message: "it answered 500".into() });
        statuses(vec![
            Event::Started,
            Event::Dispatched { targets: vec![target(0)] },
            settled(target(0), done()),
            settled(target(1), done()),
            settled(finally, broken),
        ])
    }

    #[test]
    fn people_hear_of_each_transition_once() {
        let history = history();
        let mut before = WorkflowStatus::default();
        let mut heard = Vec::new();
        for after in history {
            heard.extend(news(&before, &after).into_iter().map(|(warning, reason, _)| (warning, reason)));
            before = after;
        }
        let expected = [
            (false, "Started"),
            (false, "StepStarted"),
            (false, "StepSucceeded"),
            (false, "StepStarted"),
            (false, "StepSucceeded"),
            (false, "Finishing"),
            (true, "CallbackFailed"),
            (false, "Succeeded"),
        ];
        assert_eq!(heard, expected.map(|(warning, reason)| (warning, reason.to_owned())));
    }

    #[test]
    fn a_failed_callback_is_told_and_changes_nothing() {
        let last = history().pop().unwrap();
        assert_eq!(last.phase, WorkflowPhase::Succeeded);
        let told: Vec<_> = last.callbacks.iter().map(|it| (it.name.as_str(), it.phase)).collect();
        assert_eq!(told, [("finally", StepPhase::Failed)]);
        assert_eq!(last.callbacks[0].message.as_deref(), Some("Exhausted: it answered 500"));
    }

    #[test]
    fn bookkeeping_is_no_transition_and_a_step_is() {
        let history = history();
        assert!(is_transition(&WorkflowStatus::default(), &history[0]), "the start");
        assert!(!is_transition(&history[0], &history[1]), "a job went in");
        assert!(is_transition(&history[1], &history[2]), "a step ended");
        assert!(!tells_more(Some(&history[1]), &history[1]));
    }

    #[test]
    fn a_hold_up_is_told_until_it_is_over() {
        let (object, state) = (workflow(), State::new());
        let plan = super::super::plan::plan(&object.spec);
        let (state, _) = state.apply(&plan, Event::Started, 1000).unwrap();
        let at = |why: Option<&str>| {
            status(&object, &plan, &state, why.map(str::to_owned), Timestamp::from_millisecond(1000).unwrap())
        };
        let (fine, held) = (at(None), at(Some("Broker \"b\" does not answer")));
        assert!(tells_of_a_hold_up(&held) && !tells_of_a_hold_up(&fine));
        assert!(tells_more(Some(&fine), &held) && tells_more(Some(&held), &fine));
        assert_eq!(news(&fine, &held).len(), 1);
        assert!(news(&held, &fine).is_empty());
    }

    #[test]
    fn tracked_objects_are_never_deleted_by_age() {
        let mut object = workflow();
        object.spec.ttl_after_finished = Some("1s".parse().unwrap());
        let finished = WorkflowStatus { finished_at: time(5000), ..WorkflowStatus::default() };
        object.status = Some(finished);
        let of = |labels: &[(&str, &str)]| {
            let mut object = object.clone();
            object.metadata.labels =
                Some(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
            expiry(&object).is_some()
        };
        assert!(of(&[]));
        assert!(of(&[("app.kubernetes.io/instance", "x"), ("app.kubernetes.io/managed-by", "Helm")]));
        for tracked in
            ["app.kubernetes.io/instance", "argocd.argoproj.io/instance", "kustomize.toolkit.fluxcd.io/name"]
        {
            assert!(!of(&[(tracked, "x")]), "{tracked}");
        }
    }
}
