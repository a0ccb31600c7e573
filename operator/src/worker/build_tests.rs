use super::*;
use crate::worker::{
    fixture::{self, UID, bound, secrets, settings, worker},
    policy::policy,
};
use serde_json::{Value, json};

const V1: &str = "registry.example:5000/longshore/sidecar:1.0.0";
const V2: &str = "registry.example:5000/longshore/sidecar:2.0.0";

fn brokers() -> Vec<BrokerSecrets> {
    vec![secrets("default")]
}

fn fresh(worker: &Worker, image: &str) -> Pods {
    Pods::of(worker, &settings(image), &brokers(), None).unwrap()
}

/// The Deployment of `worker` as an operator with the sidecar `image` made it.
fn live(worker: &Worker, image: &str) -> Deployment {
    let wanted = deployment(worker, &fresh(worker, image), 2).unwrap();
    fixture::deployment(&wanted, &json!({}))
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "namespace": "shop",
        "labels": { "app.kubernetes.io/managed-by": "longshore", "longshore.dev/worker": "mailer" },
        "ownerReferences": [{
            "apiVersion": "longshore.dev/v1alpha1", "kind": "Worker", "name": "mailer", "uid": UID, "controller": true,
        }],
    })
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": path, "port": 7421, "scheme": "HTTP" },
        "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures,
    })
}

fn sidecar() -> Value {
    json!({
        "name": "longshore-sidecar",
        "image": V1,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "env": [
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } },
            { "name": "LONGSHORE_HANDLER", "value": r#"{"http":{"port":8080,"path":"/"}}"# },
            { "name": "LONGSHORE_DRAIN_TIMEOUT_MS", "value": "600000" },
            { "name": "MIMALLOC_ALLOW_THP", "value": "0" },
        ],
        "ports": [{ "name": "lsh-admin", "containerPort": 7421, "protocol": "TCP" }],
        "startupProbe": probe("/livez", 1, 60),
        "readinessProbe": probe("/readyz", 2, 3),
        "livenessProbe": probe("/livez", 10, 6),
        "lifecycle": { "preStop": { "exec": { "command": ["/longshore-worker-sidecar", "drain"] } } },
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "192Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
            "runAsUser": 65532, "runAsGroup": 65532,
            "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": "longshore-policy", "mountPath": "/etc/longshore/policy", "readOnly": true },
            { "name": "longshore-token", "mountPath": "/var/run/longshore/token" },
            { "name": "longshore-broker-default", "mountPath": "/etc/longshore/brokers/default", "readOnly": true },
        ],
    })
}

fn volumes() -> Value {
    json!([
        { "name": "longshore-policy", "configMap": { "name": "mailer-policy" } },
        { "name": "longshore-token", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
        {
            "name": "longshore-broker-default",
            "secret": {
                "secretName": "default-broker-token",
                "items": [{ "key": "current", "path": "current" }, { "key": "previous", "path": "previous" }],
                "defaultMode": 0o444,
            },
        },
    ])
}

#[test]
fn a_plain_worker_becomes_this_deployment() {
    let worker = worker(&json!({}));
    let wanted = deployment(&worker, &fresh(&worker, V1), 2).unwrap();
    let mut expected = metadata("mailer");
    expected["annotations"] = json!({
        // Another hash here means that every Worker is rolled when the operator is upgraded.
        "longshore.dev/template-hash": "64d1a1abbd4dd1e4",
        "longshore.dev/sidecar-image": V1,
        "longshore.dev/injection": wanted["metadata"]["annotations"]["longshore.dev/injection"],
    });
    let app = json!({
        "name": "app",
        "image": "shop/mailer:7",
        "env": [
            { "name": "LONGSHORE_URL", "value": "http://127.0.0.1:7420" },
            { "name": "LONGSHORE_TOKEN_FILE", "value": "/var/run/longshore/token/token" },
            { "name": "LONGSHORE_WORKER", "value": "mailer" },
        ],
        "volumeMounts": [{ "name": "longshore-token", "mountPath": "/var/run/longshore/token", "readOnly": true }],
        "lifecycle": { "preStop": { "httpGet": { "path": "/hooks/app-stop", "port": 7421, "scheme": "HTTP" } } },
    });
    let pod = json!({
        "metadata": { "labels": { "longshore.dev/worker": "mailer" } },
        "spec": {
            "terminationGracePeriodSeconds": 645,
            "containers": [app],
            "initContainers": [sidecar()],
            "volumes": volumes(),
        },
    });
    let expected = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": expected,
        "spec": {
            "replicas": 2,
            "revisionHistoryLimit": 3,
            "selector": { "matchLabels": { "longshore.dev/worker": "mailer" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 0, "maxSurge": "25%" } },
            "template": pod,
        },
    });
    assert_eq!(wanted, expected);
}

#[test]
fn the_config_map_holds_the_policy() {
    let worker = worker(&json!({}));
    let queues = [bound("emails", 1, &json!({}))];
    let policy = policy("shop", "mailer", &worker.spec, &queues, Vec::new(), None);
    let wanted = config_map(&worker, &policy).unwrap();
    assert_eq!(wanted["metadata"], metadata("mailer-policy"));
    let text = wanted["data"]["policy.json"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<WorkerPolicy>(text).unwrap(), policy);
    assert_eq!(policy_in(&serde_json::from_value(wanted.clone()).unwrap()), Some(policy.clone()));
    assert_eq!(config_map(&worker, &policy).unwrap().to_string(), wanted.to_string());
}

#[test]
fn what_the_user_wrote_stays() {
    let worker = worker(&json!({ "template": {
        "metadata": { "labels": { "app": "mailer", "longshore.dev/worker": "other" }, "annotations": { "a": "b" } },
        "spec": {
            "serviceAccountName": "mailer",
            "terminationGracePeriodSeconds": 9000,
            "initContainers": [{ "name": "migrate", "image": "m" }, { "name": "mesh", "image": "p", "restartPolicy": "Always" }],
            "volumes": [{ "name": "cache", "emptyDir": {} }],
            "containers": [
                {
                    "name": "app",
                    "env": [{ "name": "LONGSHORE_URL", "value": "mine" }, { "name": "A", "value": "1" }],
                    "volumeMounts": [{ "name": "cache", "mountPath": "/cache" }],
                    "resources": { "limits": { "cpu": 1 } },
                    "lifecycle": { "preStop": { "exec": { "command": ["bye"] } }, "postStart": { "exec": { "command": ["hi"] } } },
                },
                { "name": "second", "lifecycle": { "postStart": { "exec": { "command": ["hi"] } } } },
            ],
        },
    } }));
    let template = fresh(&worker, V1).template;
    assert_eq!(template["metadata"]["annotations"], json!({ "a": "b" }));
    assert_eq!(template["metadata"]["labels"]["app"], "mailer");
    assert_eq!(template["metadata"]["labels"]["longshore.dev/worker"], "mailer");
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "mailer");
    assert_eq!(pod["terminationGracePeriodSeconds"], 9000);
    let names = |list: &str| -> Vec<String> {
        let items = pod[list].as_array().unwrap().iter();
        items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("initContainers"), ["migrate", "mesh", "longshore-sidecar"]);
    assert_eq!(
        names("volumes"),
        ["cache", "longshore-policy", "longshore-token", "longshore-broker-default"]
    );
    let app = &pod["containers"][0];
    let own = json!({ "name": "LONGSHORE_URL", "value": "mine" });
    assert_eq!((&app["env"][0], app["env"].as_array().unwrap().len()), (&own, 4));
    assert_eq!(app["volumeMounts"].as_array().unwrap().len(), 2);
    assert_eq!(app["resources"]["limits"]["cpu"], 1);
    assert_eq!(app["lifecycle"]["preStop"], json!({ "exec": { "command": ["bye"] } }));
    let second = &pod["containers"][1]["lifecycle"];
    assert_eq!(second["postStart"], json!({ "exec": { "command": ["hi"] } }));
    assert_eq!(second["preStop"]["httpGet"]["path"], "/hooks/app-stop");
}

#[test]
fn each_broker_brings_its_token_and_long_names_fit() {
    let long = "b".repeat(52);
    let worker = worker(&json!({}));
    let pods = Pods::of(&worker, &settings(V1), &[secrets("a"), secrets(&long)], None).unwrap();
    let pod = &pods.template["spec"];
    let volumes = pod["volumes"].as_array().unwrap();
    let mounts = pod["initContainers"][0]["volumeMounts"].as_array().unwrap();
    assert_eq!((volumes.len(), mounts.len()), (4, 4));
    for (volume, mount) in volumes[2..].iter().zip(&mounts[2..]) {
        assert_eq!(volume["name"], mount["name"]);
        assert!(volume["name"].as_str().unwrap().len() <= 63);
    }
    assert_eq!(mounts[3]["mountPath"], format!("/etc/longshore/brokers/{long}"));
}

#[test]
fn what_is_in_the_policy_is_no_rollout() {
    let hash = |spec: Value| template_hash(&worker(&spec).spec, &brokers());
    let plain = hash(json!({}));
    for policy_only in [
        json!({ "queues": [{ "name": "emails", "weight": 7 }, { "name": "images" }] }),
        json!({ "concurrency": 20 }),
        json!({ "replicas": 3 }),
        json!({ "scaling": { "maxReplicas": 77 } }),
        json!({ "sidecarUpgradePolicy": "Rolling" }),
        json!({ "drainTimeout": "600s" }),
    ] {
        assert_eq!(hash(policy_only.clone()), plain, "{policy_only}");
    }
    for template in [
        json!({ "drainTimeout": "11m" }),
        // Pods of both templates run for a while, each with its own app.
        json!({ "handler": { "http": { "port": 9090, "path": "/" } } }),
        json!({ "handler": { "pull": {} } }),
        json!({ "concurrency": 1000 }),
        json!({ "template": { "spec": { "containers": [{ "name": "app", "image": "shop/mailer:8" }] } } }),
    ] {
        assert_ne!(hash(template.clone()), plain, "{template}");
    }
    assert_ne!(template_hash(&worker(&json!({})).spec, &[secrets("other")]), plain);
    let mut elsewhere = secrets("default");
    elsewhere.credentials.keys = vec!["password".to_owned()];
    assert_ne!(template_hash(&worker(&json!({})).spec, &[elsewhere]), plain, "another volume is a rollout");
}

#[test]
fn the_order_of_fields_is_no_change() {
    let mut texts = [String::new(), String::new()];
    let values =
        [r#"{"b":[1,"x",null],"a":{"d":true,"c":1.5}}"#, r#"{"a":{"c":1.5,"d":true},"b":[1,"x",null]}"#];
    for (text, value) in texts.iter_mut().zip(values) {
        canonical(&serde_json::from_str(value).unwrap(), text);
    }
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], r#"{"a":{"c":1.5,"d":true,},"b":[1,"x",null,],}"#);
}

#[test]
fn a_newer_operator_leaves_pods_as_they_are() {
    let worker = worker(&json!({}));
    let before = fresh(&worker, V1);
    let mut live = live(&worker, V1);
    // An older operator put something in that this one doesn't know.
    let old = |text: &str| {
        text.replace("LONGSHORE_WORKER", "LONGSHORE_NAME")
            .replace("\"periodSeconds\":2", "\"periodSeconds\":3")
    };
    let annotations = live.metadata.annotations.as_mut().unwrap();
    let injection = old(&annotations[INJECTION]);
    annotations.insert(INJECTION.to_owned(), injection.clone());
    let after = Pods::of(&worker, &settings(V2), &brokers(), Some(&live)).unwrap();
    assert_eq!(after.template.to_string(), old(&before.template.to_string()));
    assert_eq!((after.image.as_str(), after.injection), (V1, injection));
    assert_eq!(after.hash, before.hash);
}

#[test]
fn the_sidecar_is_renewed_with_the_template_or_when_asked_for() {
    let worker = worker(&json!({}));
    let live = live(&worker, V1);
    let image = |spec: Value| {
        Pods::of(&fixture::worker(&spec), &settings(V2), &brokers(), Some(&live)).unwrap().image
    };
    assert_eq!(image(json!({})), V1);
    assert_eq!(image(json!({ "scaling": { "maxReplicas": 3 } })), V1);
    assert_eq!(image(json!({ "drainTimeout": "1m" })), V2);
    assert_eq!(image(json!({ "sidecarUpgradePolicy": "Rolling" })), V2);
}

#[test]
fn an_injection_that_cannot_be_read_is_made_anew() {
    let worker = worker(&json!({}));
    let mut live = live(&worker, V1);
    let annotations = live.metadata.annotations.as_mut().unwrap();
    annotations.insert(INJECTION.to_owned(), "{".to_owned());
    assert_eq!(Pods::of(&worker, &settings(V2), &brokers(), Some(&live)).unwrap(), fresh(&worker, V2));
    annotations_removed(&mut live);
    assert_eq!(Pods::of(&worker, &settings(V2), &brokers(), Some(&live)).unwrap(), fresh(&worker, V2));
}

fn annotations_removed(live: &mut Deployment) {
    live.metadata.annotations = None;
}

#[test]
fn changes_by_hand_do_not_last() {
    let worker = worker(&json!({}));
    let mut live = live(&worker, V1);
    let containers = &mut live.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers;
    containers[0].image = Some("somebody/else:1".to_owned());
    assert_eq!(Pods::of(&worker, &settings(V1), &brokers(), Some(&live)).unwrap(), fresh(&worker, V1));
}

#[test]
fn revisions_differ_by_template_and_sidecar() {
    let worker = worker(&json!({}));
    let (one, other) = (fresh(&worker, V1), fresh(&worker, V2));
    assert_ne!(one.revision(), other.revision());
    assert_eq!(one.revision(), revision_of(&live(&worker, V1)));
}

#[test]
fn pods_can_stay_as_they_are() {
    let worker = worker(&json!({}));
    let live = live(&worker, V1);
    let kept = Pods::as_they_are(&live).unwrap();
    assert_eq!(kept.revision(), revision_of(&live));
    let again = deployment(&worker, &kept, 5).unwrap();
    assert_eq!(again["spec"]["replicas"], 5);
    assert_eq!(again["metadata"]["annotations"][INJECTION], live.annotations()[INJECTION]);
    let template = &again["spec"]["template"]["spec"];
    assert_eq!(template["initContainers"][0]["name"], "longshore-sidecar");
    // Nothing is put in twice.
    assert_eq!(template["initContainers"].as_array().unwrap().len(), 1);
}

#[test]
fn what_pods_mount_can_be_told_from_their_deployment() {
    let worker = worker(&json!({}));
    let mut elsewhere = secrets("other");
    elsewhere.credentials.keys = vec!["password".to_owned()];
    let all = [secrets(&"b".repeat(52)), elsewhere];
    let pods = Pods::of(&worker, &settings(V1), &all, None).unwrap();
    let live = fixture::deployment(&deployment(&worker, &pods, 1).unwrap(), &json!({}));
    assert_eq!(brokers_of(&live), all);
    assert_eq!(brokers_of(&Deployment::default()), []);
}

#[test]
fn many_jobs_at_once_ask_for_more_memory() {
    for (concurrency, request, limit) in
        [(1, "16Mi", "192Mi"), (128, "16Mi", "192Mi"), (1000, "128Mi", "416Mi")]
    {
        let pods = fresh(&worker(&json!({ "concurrency": concurrency })), V1);
        let resources = &pods.template["spec"]["initContainers"][0]["resources"];
        assert_eq!(
            (&resources["requests"]["memory"], &resources["limits"]["memory"]),
            (&json!(request), &json!(limit))
        );
    }
}
