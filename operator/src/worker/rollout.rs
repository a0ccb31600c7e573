//! What a Deployment's status says about its pods. Pure.

use super::build;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use longshore_crds::Worker;

/// How far the newest template has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rollout {
    Done,
    /// Older pods are still there, or newer ones are not.
    Going,
    /// It doesn't get on.
    Stuck(String),
    /// Pods can't be created.
    Refused(String),
}

/// The stage of the rollout of a Deployment that is to have pods of `revision`, of which `proven` was ready once.
pub(super) fn stage(deployment: &Deployment, revision: &str, proven: Option<&str>) -> Rollout {
    let status = deployment.status.clone().unwrap_or_default();
    let find = |kind: &str, value: &str| {
        let mut conditions = status.conditions.iter().flatten();
        conditions.find(|it| it.type_ == kind && it.status == value)
    };
    let message = |condition: &DeploymentCondition| condition.message.clone().unwrap_or_default();
    if let Some(failure) = find("ReplicaFailure", "True") {
        return Rollout::Refused(message(failure));
    }
    let stuck =
        find("Progressing", "False").filter(|it| it.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    if let Some(stuck) = stuck {
        return Rollout::Stuck(message(stuck));
    }
    let replicas = status.replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    // Too few pods that are all new are being scaled up, not rolled out. Counts from before the last change tell
    // nothing about a new template; after a mere change of the number they do.
    if updated < replicas || proven != Some(revision) && !is_observed(deployment, &status) {
        return Rollout::Going;
    }
    Rollout::Done
}

fn is_observed(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    status.observed_generation >= deployment.metadata.generation
}

/// The newest revision of which a pod was ready once, as far as the Worker's status or its Deployment tells.
pub(super) fn proven(worker: &Worker, live: Option<&Deployment>, revision: &str) -> Option<String> {
    let known = worker.status.as_ref().and_then(|status| status.ready_template_hash.clone());
    if known.as_deref() == Some(revision) {
        return known;
    }
    match live {
        Some(live) if build::revision_of(live) == revision && has_ready_pod(live) => {
            Some(revision.to_owned())
        }
        _ => known,
    }
}

/// Whether a pod of the newest template is ready: there are more ready pods than older ones.
fn has_ready_pod(live: &Deployment) -> bool {
    let Some(status) = live.status.as_ref() else {
        return false;
    };
    let older = status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    is_observed(live, status) && status.ready_replicas.unwrap_or(0) > older
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::Settings,
        worker::{
            build::{Pods, deployment},
            fixture,
        },
    };
    use serde_json::{Value, json};

    fn settings() -> Settings {
        fixture::settings("longshore/sidecar:1.2.3")
    }

    fn with(status: &Value) -> (Worker, Deployment, String) {
        let worker = fixture::worker(&json!({}));
        let pods = Pods::of(&worker, &settings(), &[fixture::secrets("default")], None).unwrap();
        let live = fixture::deployment(&deployment(&worker, &pods, 3).unwrap(), status);
        (worker, live, pods.revision())
    }

    #[test]
    fn a_revision_is_proven_by_more_ready_pods_than_older_ones() {
        for (status, expected) in [
            (json!({}), false),
            (json!({ "observedGeneration": 3, "replicas": 1, "updatedReplicas": 1 }), false),
            (
                json!({ "observedGeneration": 3, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1 }),
                true,
            ),
            (
                json!({ "observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1 }),
                false,
            ),
            (
                json!({ "observedGeneration": 3, "replicas": 5, "updatedReplicas": 2, "readyReplicas": 3 }),
                false,
            ),
            (
                json!({ "observedGeneration": 3, "replicas": 5, "updatedReplicas": 2, "readyReplicas": 4 }),
                true,
            ),
        ] {
            let (worker, live, revision) = with(&status);
            let told = proven(&worker, Some(&live), &revision);
            assert_eq!(told.is_some(), expected, "{status}");
            assert_eq!(proven(&worker, Some(&live), "another"), None);
        }
    }

    #[test]
    fn what_was_proven_once_stays_so() {
        let (mut worker, live, revision) = with(&json!({}));
        let status = longshore_crds::WorkerStatus {
            ready_template_hash: Some(revision.clone()),
            ..Default::default()
        };
        worker.status = Some(status);
        assert_eq!(proven(&worker, Some(&live), &revision), Some(revision.clone()));
        assert_eq!(proven(&worker, None, &revision), Some(revision.clone()));
        // Of another revision it says nothing, and is kept until that one is proven: going back needs no proof.
        assert_eq!(proven(&worker, Some(&live), "another"), Some(revision));
    }

    #[test]
    fn stages_are_told_apart() {
        let condition = |kind: &str, status: &str, reason: &str| json!([{ "type": kind, "status": status, "reason": reason, "message": "why" }]);
        for (status, known, expected) in [
            (json!({ "observedGeneration": 3, "replicas": 3, "updatedReplicas": 3 }), false, Rollout::Done),
            (json!({ "observedGeneration": 3, "replicas": 1, "updatedReplicas": 1 }), true, Rollout::Done),
            (json!({ "observedGeneration": 3, "replicas": 4, "updatedReplicas": 1 }), true, Rollout::Going),
            (json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3 }), false, Rollout::Going),
            (json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3 }), true, Rollout::Done),
            (json!({}), false, Rollout::Going),
            (
                json!({ "conditions": condition("Progressing", "False", "ProgressDeadlineExceeded") }),
                true,
                Rollout::Stuck("why".to_owned()),
            ),
            (
                json!({ "conditions": condition("ReplicaFailure", "True", "FailedCreate") }),
                true,
                Rollout::Refused("why".to_owned()),
            ),
        ] {
            let (_, live, revision) = with(&status);
            let proven = if known { revision.as_str() } else { "another" };
            assert_eq!(stage(&live, &revision, Some(proven)), expected, "{status}");
        }
    }
}
