//! Objects that can't work, objects in any order: each says what it waits for, and none holds up another.

use super::{
    scenarios,
    workflow::{job, stage},
};
use crate::{World, manifests, wait::eventually};
use anyhow::{Result, ensure};
use longshore_crds::WorkflowPhase;
use serde_json::{Value, json};
use std::time::Duration;

scenarios![bad_objects_say_why_and_hold_nobody_up, objects_in_shuffled_order_converge];

const END: Duration = Duration::from_secs(180);

impl World {
    /// Waits until a condition of the object is not `True` and its reason or message says `words`.
    pub(super) async fn says(&self, kind: &str, name: &str, words: &[&str]) -> Result<()> {
        eventually(&format!("{kind} {name} to say {words:?}"), Duration::from_secs(60), || async {
            let object =
                self.cluster.kubectl(&["get", kind, name, "-n", &self.namespace, "-o", "json"]).await?;
            let object: Value = serde_json::from_str(&object)?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let says = |condition: &&Value| {
                let text = format!("{}: {}", condition["reason"], condition["message"]);
                words.iter().all(|word| text.contains(word))
            };
            ensure!(conditions.iter().any(|condition| says(&condition)), "its conditions are {conditions:?}");
            Ok(())
        })
        .await
    }
}

/// What only the cluster can tell is wrong: a condition names the field or the object and why.
async fn bad_objects_say_why_and_hold_nobody_up(world: World) -> Result<()> {
    let chain = |expression: &str| {
        let payload = json!({ "note": expression });
        json!({ "steps": [{ "name": "one", "job": { "type": "bad" } }, { "name": "two", "job": { "type": "bad", "payload": payload } }] })
    };
    let unmountable = json!({ "template": { "spec": {
        "containers": [{ "name": "app", "image": "busybox", "volumeMounts": [{ "name": "nowhere", "mountPath": "/x" }] }],
    } } });
    let fine =
        json!({ "steps": [{ "name": "one", "job": { "type": "good" } }], "then": job("then", json!({})) });
    let elsewhere = json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "elsewhere" },
        "spec": { "http": { "url": "http://nowhere:7400", "tokenFrom": { "name": "no-secret", "key": "token" } } },
    });
    let bad = [
        elsewhere,
        manifests::queue("lost", &json!({ "brokerRef": { "name": "nobody" } })),
        manifests::worker("lost", &json!({})),
        manifests::queue("unmountable", &json!({})),
        manifests::worker("unmountable", &unmountable),
        manifests::workflow("no-queue", "nowhere", &chain("text")),
        manifests::workflow("no-step", "work", &chain("$(steps.three.result)")),
        manifests::workflow("no-syntax", "work", &chain("$(steps.one.result +)")),
        manifests::workflow("no-field", "work", &chain("$(steps.one.result.missing)")),
    ];
    stage(&world, &json!({}), &bad).await?;
    world.apply(&manifests::list(&[manifests::workflow("good", "work", &fine)])).await?;
    world.workflow_ends("good", WorkflowPhase::Succeeded, END).await?;
    world.says("broker", "elsewhere", &["WaitingForSecret", "spec.http.tokenFrom", "no-secret"]).await?;
    world.says("queue", "lost", &["WaitingForBroker", "nobody"]).await?;
    world.says("worker", "lost", &["WaitingForBroker", "nobody"]).await?;
    world.says("worker", "unmountable", &["TemplateRefused", "nowhere"]).await?;
    world.says("workflow", "no-queue", &["WaitingForQueue", "nowhere"]).await?;
    world.says("workflow", "no-step", &["spec.steps[1].job.payload", "three"]).await?;
    world.says("workflow", "no-syntax", &["spec.steps[1].job.payload"]).await?;
    let failed = world.workflow_ends("no-field", WorkflowPhase::Failed, END).await?;
    let message = failed.status.unwrap_or_default().message.unwrap_or_default();
    ensure!(message.contains("two") && message.contains("missing"), "the message is {message:?}");
    let ledger = world.ledger().await?;
    ensure!(ledger.starts("bad") == 1, "{} jobs of workflows that can't work were run", ledger.starts("bad"));
    // One comes right when what it waits for comes.
    let late = [manifests::broker("nobody")];
    world.apply(&manifests::list(&late)).await?;
    world.says("queue", "lost", &["Declared"]).await
}

/// Each object comes before what it needs, one at a time: the workflow succeeds all the same.
async fn objects_in_shuffled_order_converge(world: World) -> Result<()> {
    let workflow =
        json!({ "steps": [{ "name": "one", "job": { "type": "one" } }], "then": job("then", json!({})) });
    let mut items = vec![
        manifests::workflow("early", "work", &workflow),
        manifests::worker("work", &json!({})),
        manifests::queue("work", &json!({})),
        manifests::broker("default"),
    ];
    let mut handlers = manifests::ledger();
    handlers.reverse();
    items.extend(handlers);
    for item in items {
        world.apply(&manifests::list(&[item])).await?;
    }
    world.workflow_ends("early", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    ledger.ran_exactly_once("one", 1)?;
    ledger.ran_exactly_once("then", 1)
}
