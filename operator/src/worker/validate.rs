//! What a Worker's template must not hold. Pure.

use super::inject::{ADMIN_PORT, GRACE_BEYOND_DRAIN, SIDECAR, is_reserved_volume};
use longshore_crds::WorkerSpec;
use serde_json::Value;

/// Why a template is refused: reason and message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal { reason: "InvalidTemplate", message: message.into() }
}

/// Checks what the schema can't.
pub(super) fn validate(spec: &WorkerSpec) -> Result<(), Refusal> {
    let pod = &spec.template.0["spec"];
    let containers = items(pod, "containers");
    if containers.is_empty() {
        return Err(invalid("spec.template.spec.containers is empty: there is nothing to hand jobs to"));
    }
    for container in containers.iter().chain(&items(pod, "initContainers")) {
        let name = container["name"].as_str().unwrap_or_default();
        if name == SIDECAR {
            return Err(invalid(format!("spec.template: the container name {SIDECAR} belongs to Longshore")));
        }
        let ports = items(container, "ports");
        if let Some(port) =
            ports.iter().find_map(|port| port["containerPort"].as_u64().filter(|port| is_ours(*port)))
        {
            return Err(invalid(format!(
                "spec.template: container {name} uses port {port}, which belongs to the sidecar"
            )));
        }
    }
    if let Some(volume) = items(pod, "volumes")
        .iter()
        .find_map(|volume| volume["name"].as_str().filter(|name| is_reserved_volume(name)))
    {
        return Err(invalid(format!("spec.template: the volume name {volume} belongs to Longshore")));
    }
    if pod["restartPolicy"].as_str().is_some_and(|policy| policy != "Always") {
        return Err(invalid("spec.template.spec.restartPolicy must be Always"));
    }
    if pod["hostNetwork"].as_bool() == Some(true) {
        return Err(invalid(
            "spec.template.spec.hostNetwork can't be used: the sidecar's ports would clash between pods",
        ));
    }
    grace(spec, pod)
}

fn grace(spec: &WorkerSpec, pod: &Value) -> Result<(), Refusal> {
    let needed = i64::try_from(spec.drain_timeout.get().as_secs())
        .unwrap_or(i64::MAX)
        .saturating_add(GRACE_BEYOND_DRAIN);
    match pod["terminationGracePeriodSeconds"].as_i64() {
        Some(given) if given < needed => Err(Refusal {
            reason: "GracePeriodTooShort",
            message: format!(
                "spec.template.spec.terminationGracePeriodSeconds is {given}, but drainTimeout needs {needed}: leave it out or raise it"
            ),
        }),
        _ => Ok(()),
    }
}

fn is_ours(port: u64) -> bool {
    port == u64::from(ADMIN_PORT) || port == u64::from(ADMIN_PORT - 1)
}

fn items(value: &Value, field: &str) -> Vec<Value> {
    value[field].as_array().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(pod: &Value) -> WorkerSpec {
        serde_json::from_value(json!({
            "queues": [{ "name": "q" }],
            "handler": { "http": { "port": 8080 } },
            "drainTimeout": "30s",
            "template": { "spec": pod },
        }))
        .unwrap()
    }

    #[test]
    fn plain_templates_are_fine() {
        let pod = json!({ "containers": [{ "name": "app", "ports": [{ "containerPort": 8080 }] }], "terminationGracePeriodSeconds": 75 });
        assert_eq!(validate(&spec(&pod)), Ok(()));
    }

    #[test]
    fn what_clashes_is_refused_with_the_field() {
        let app = json!([{ "name": "app" }]);
        for (pod, reason, word) in [
            (json!({ "containers": [] }), "InvalidTemplate", "containers"),
            (
                json!({ "containers": [{ "name": "longshore-sidecar" }] }),
                "InvalidTemplate",
                "longshore-sidecar",
            ),
            (
                json!({ "containers": [{ "name": "a", "ports": [{ "containerPort": 7421 }] }] }),
                "InvalidTemplate",
                "7421",
            ),
            (
                json!({ "containers": app, "volumes": [{ "name": "longshore-token" }] }),
                "InvalidTemplate",
                "longshore-token",
            ),
            (json!({ "containers": app, "restartPolicy": "Never" }), "InvalidTemplate", "restartPolicy"),
            (json!({ "containers": app, "hostNetwork": true }), "InvalidTemplate", "hostNetwork"),
            (json!({ "containers": app, "terminationGracePeriodSeconds": 74 }), "GracePeriodTooShort", "75"),
        ] {
            let refusal = validate(&spec(&pod)).unwrap_err();
            assert_eq!(refusal.reason, reason, "{pod}");
            assert!(refusal.message.contains(word), "{refusal:?}");
        }
    }
}
