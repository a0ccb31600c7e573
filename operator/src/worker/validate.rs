//! What a Worker's template must not hold. Pure.

use super::inject::{ADMIN_PORT, API_PORT, SIDECAR, TOKEN_DIR, VOLUME_PREFIX, grace_seconds};
use longshore_crds::{Reason, WorkerSpec};
use serde_json::Value;

const POD: &str = "spec.template.spec";

fn invalid(message: impl Into<String>) -> Reason {
    Reason::no("InvalidTemplate", message)
}

/// Checks what the schema can't; what is wrong comes back as the reason for not being ready.
pub(super) fn validate(spec: &WorkerSpec) -> Result<(), Reason> {
    let pod = &spec.template.0["spec"];
    let (apps, inits) = (items(pod, "containers"), items(pod, "initContainers"));
    if apps.is_empty() {
        return Err(invalid(format!("{POD}.containers is empty: there is nothing to hand jobs to")));
    }
    for (list, containers) in [("containers", apps), ("initContainers", inits)] {
        for (at, one) in containers.iter().enumerate() {
            container(one, &format!("{POD}.{list}[{at}]"))?;
        }
    }
    for (at, volume) in items(pod, "volumes").iter().enumerate() {
        let name = volume["name"].as_str().unwrap_or_default();
        if name.starts_with(VOLUME_PREFIX) {
            return Err(invalid(format!(
                "{POD}.volumes[{at}].name: names that begin with {VOLUME_PREFIX:?} belong to the sidecar"
            )));
        }
    }
    if let Some(policy) = pod["restartPolicy"].as_str().filter(|policy| *policy != "Always") {
        return Err(invalid(format!("{POD}.restartPolicy is {policy:?}, but must be Always")));
    }
    if pod["hostNetwork"].as_bool() == Some(true) {
        return Err(invalid(format!(
            "{POD}.hostNetwork can't be used: the sidecar's ports would clash between pods"
        )));
    }
    grace(spec, pod)
}

fn container(container: &Value, field: &str) -> Result<(), Reason> {
    if container["name"] == SIDECAR {
        return Err(invalid(format!("{field}.name: {SIDECAR:?} belongs to the sidecar")));
    }
    for (at, port) in items(container, "ports").iter().enumerate() {
        for number in [ADMIN_PORT, API_PORT] {
            if port["containerPort"] == number {
                return Err(invalid(format!(
                    "{field}.ports[{at}].containerPort: {number} belongs to the sidecar"
                )));
            }
        }
    }
    for (at, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = mount["mountPath"].as_str().unwrap_or_default();
        if path.trim_end_matches('/') == TOKEN_DIR {
            return Err(invalid(format!(
                "{field}.volumeMounts[{at}].mountPath: {TOKEN_DIR} belongs to the sidecar"
            )));
        }
    }
    Ok(())
}

fn grace(spec: &WorkerSpec, pod: &Value) -> Result<(), Reason> {
    let needed = grace_seconds(spec);
    match pod["terminationGracePeriodSeconds"].as_i64() {
        Some(given) if given < needed => Err(Reason::no(
            "GracePeriodTooShort",
            format!(
                "{POD}.terminationGracePeriodSeconds is {given}, but a drainTimeout of {} needs {needed}: leave it out or raise it",
                spec.drain_timeout
            ),
        )),
        _ => Ok(()),
    }
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(pod: &Value) -> Result<(), Reason> {
        let spec: WorkerSpec = serde_json::from_value(json!({
            "queues": [{ "name": "q" }],
            "handler": { "http": { "port": 8080 } },
            "drainTimeout": "30s",
            "template": { "spec": pod },
        }))
        .unwrap();
        validate(&spec)
    }

    #[test]
    fn plain_templates_are_fine() {
        let port = json!([{ "containerPort": 8080 }, { "containerPort": 74210 }]);
        let mounts = json!([{ "name": "v", "mountPath": "/var/run/longshore" }]);
        for pod in [
            json!({ "containers": [{ "name": "app" }] }),
            json!({ "containers": [{ "name": "app", "ports": port, "volumeMounts": mounts }] }),
            json!({ "containers": [{ "name": "app" }], "terminationGracePeriodSeconds": 75 }),
            json!({ "containers": [{ "name": "app" }], "restartPolicy": "Always", "hostNetwork": false }),
            json!({ "containers": [{ "name": "app" }], "volumes": [{ "name": "my-longshore-volume" }] }),
        ] {
            assert_eq!(check(&pod), Ok(()), "{pod}");
        }
    }

    #[test]
    fn what_clashes_is_refused_with_its_field() {
        let app = json!([{ "name": "app" }]);
        let admin = json!([{ "containerPort": 1 }, { "containerPort": 7421 }]);
        let api = json!([{ "containerPort": 7420 }]);
        let token = json!([{ "name": "v", "mountPath": "/var/run/longshore/token/" }]);
        for (pod, reason, word) in [
            (json!({}), "InvalidTemplate", "spec.containers is empty"),
            (json!({ "containers": [] }), "InvalidTemplate", "spec.containers is empty"),
            (
                json!({ "containers": [{ "name": "longshore-sidecar" }] }),
                "InvalidTemplate",
                "spec.template.spec.containers[0].name",
            ),
            (
                json!({ "containers": app, "initContainers": [{ "name": "a" }, { "name": "longshore-sidecar" }] }),
                "InvalidTemplate",
                "initContainers[1].name",
            ),
            (
                json!({ "containers": [{ "name": "a", "ports": admin }] }),
                "InvalidTemplate",
                "containers[0].ports[1].containerPort: 7421",
            ),
            (
                json!({ "containers": [{ "name": "a", "ports": api }] }),
                "InvalidTemplate",
                "containers[0].ports[0].containerPort: 7420",
            ),
            (
                json!({ "containers": [{ "name": "a", "volumeMounts": token }] }),
                "InvalidTemplate",
                "volumeMounts[0].mountPath",
            ),
            (
                json!({ "containers": app, "volumes": [{ "name": "longshore-token" }] }),
                "InvalidTemplate",
                "volumes[0].name",
            ),
            (json!({ "containers": app, "restartPolicy": "Never" }), "InvalidTemplate", "restartPolicy"),
            (json!({ "containers": app, "hostNetwork": true }), "InvalidTemplate", "hostNetwork"),
            (
                json!({ "containers": app, "terminationGracePeriodSeconds": 74 }),
                "GracePeriodTooShort",
                "a drainTimeout of 30s needs 75",
            ),
        ] {
            let refusal = check(&pod).unwrap_err();
            assert_eq!((refusal.status, refusal.reason.as_str()), ("False", reason), "{pod}");
            assert!(refusal.message.contains(word), "{refusal:?}");
        }
    }
}
