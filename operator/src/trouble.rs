//! Why a pod doesn't run. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

/// What `pod` waits for other than its turn. That container `ours` was restarted is no fault of anybody's template.
pub(crate) fn trouble(pod: &Pod, ours: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let containers = inits.chain(status.container_statuses.iter().flatten());
    let waits = |container: &ContainerStatus| {
        let reason = container.state.as_ref()?.waiting.as_ref()?.reason.clone()?;
        let normal = matches!(reason.as_str(), "PodInitializing" | "ContainerCreating");
        (!normal).then(|| format!("container {} of pod {}: {reason}", container.name, pod.name_any()))
    };
    containers.clone().find_map(waits).or_else(|| unscheduled(pod)).or_else(|| {
        // Between two restarts a container that keeps dying looks like one that starts.
        let mut dying = containers.filter(|container| container.restart_count > 2 && !container.ready);
        let container = dying.find(|container| container.name != ours)?;
        let times = container.restart_count;
        Some(format!("container {} of pod {} was restarted {times} times", container.name, pod.name_any()))
    })
}

/// Why there is no node for it: none has room, or a claimed volume isn't bound.
fn unscheduled(pod: &Pod) -> Option<String> {
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let found = conditions.find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    let why = found.message.as_deref().or(found.reason.as_deref()).unwrap_or("no node takes it");
    Some(format!("pod {} is not scheduled: {why}", pod.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "mailer-1" }, "status": status,
        }))
        .unwrap()
    }

    fn container(name: &str, restarts: i32, state: &Value) -> Value {
        json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state })
    }

    #[test]
    fn a_pod_tells_why_it_does_not_run() {
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason } });
        for (name, state, restarts, told) in [
            ("app", waiting("PodInitializing"), 0, None),
            ("app", waiting("ImagePullBackOff"), 0, Some("container app of pod mailer-1: ImagePullBackOff")),
            ("app", waiting("CrashLoopBackOff"), 5, Some("container app of pod mailer-1: CrashLoopBackOff")),
            ("app", json!({ "running": {} }), 3, Some("container app of pod mailer-1 was restarted 3 times")),
            ("app", json!({ "running": {} }), 1, None),
            ("ours", json!({ "running": {} }), 3, None),
        ] {
            let pod = pod(&json!({ "containerStatuses": [container(name, restarts, &state)] }));
            assert_eq!(trouble(&pod, "ours").as_deref(), told, "{name} {state}");
        }
    }

    #[test]
    fn a_pod_without_a_node_tells_why() {
        let message = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims";
        let condition =
            |status: &str| json!([{ "type": "PodScheduled", "status": status, "message": message }]);
        let told = trouble(&pod(&json!({ "conditions": condition("False") })), "").unwrap();
        assert!(told.contains("pod mailer-1 is not scheduled: 0/3 nodes"), "{told}");
        assert_eq!(trouble(&pod(&json!({ "conditions": condition("True") })), ""), None);
    }
}
