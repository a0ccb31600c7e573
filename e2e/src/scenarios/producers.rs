//! Getting jobs in and looking after them, as apps and people do.

use super::{scenarios, workflow::stage};
use crate::{World, cluster::root, manifests, wait::eventually};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use longshore_crds::{Broker, Worker, WorkflowPhase};
use longshore_drivers::Driver;
use serde_json::{Value, json};
use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};
use tokio::process::Command;

scenarios![
    app_enqueues_through_its_sidecar,
    guide_for_producers_says_what_works[needs_host],
    dead_jobs_are_listed_and_redriven_through_the_sidecar,
    rotated_token_locks_nobody_out[needs_host],
    two_managers_share_a_pod_template,
];

const END: Duration = Duration::from_secs(180);

/// An app adds jobs with any HTTP client: each runs once, and a name that was given before adds nothing.
async fn app_enqueues_through_its_sidecar(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    let child = |number: usize| json!({ "call": ["/v1/queues/work/jobs/child", { "note": number }] });
    world.enqueue("work", (0..5).map(|number| ("parent", child(number))).collect()).await?;
    let ledger =
        world.ledger_shows("the children to run", END, |ledger| ledger.ran_exactly_once("child", 5)).await?;
    let mut notes: Vec<_> = ledger
        .of("start")
        .filter(|entry| entry.job_type == "child")
        .filter_map(|entry| entry.payload.as_ref()?.as_u64())
        .collect();
    notes.sort_unstable();
    ensure!(notes == [0, 1, 2, 3, 4], "the children got {notes:?}");
    Ok(())
}

/// What `docs/producing.md` tells people to type adds a job, and typed again adds none.
async fn guide_for_producers_says_what_works(world: World) -> Result<()> {
    let guide = std::fs::read_to_string(root().join("docs/producing.md"))?;
    let marked =
        guide.split_once("<!-- run: outside -->\n```sh\n").and_then(|(_, rest)| rest.split_once("```"));
    let (commands, _) = marked.context("the guide has no commands to run")?;
    let mut items = manifests::ledger();
    let worker = manifests::worker("emails", &json!({}));
    items.extend([manifests::broker("default"), manifests::queue("emails", &json!({})), worker]);
    world.apply(&manifests::list(&items)).await?;
    world.physical("emails").await?;
    world.driver().await?;
    // People have a kubectl; here the cluster brings its own.
    let bin = tempfile::tempdir()?;
    let kubectl = bin.path().join("kubectl");
    let cluster = root().join("e2e/cluster/cluster");
    std::fs::write(&kubectl, format!("#!/bin/sh\nexec {} kubectl \"$@\"\n", cluster.display()))?;
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH")?);
    for expected in ["created", "duplicate"] {
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", commands])
            .env("PATH", &path)
            .env("NAMESPACE", &world.namespace);
        let output = shell.kill_on_drop(true).output().await?;
        let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success() && told.contains(expected), "it told {told:?} and said {said:?}");
    }
    world.ledger_shows("the job to run", END, |ledger| ledger.ran_exactly_once("send", 1)).await?;
    Ok(())
}

/// A step of a Workflow asks the sidecar which jobs are dead and has them run again.
async fn dead_jobs_are_listed_and_redriven_through_the_sidecar(world: World) -> Result<()> {
    stage(&world, &json!({ "retry": { "maxAttempts": 1 } }), &[]).await?;
    let ids = world.enqueue("work", vec![("frail", json!({ "answer": { "1": 500 } })); 3]).await?;
    eventually("the jobs to be dead", END, || async {
        let stats = world.driver().await?.stats(&world.physical("work").await?).await?;
        ensure!(stats.dead == Some(3), "{stats:?}");
        Ok(())
    })
    .await?;
    let call = |path: &str, body: Value| json!({ "payload": { "call": [path, body] } });
    let step = |name: &str, more: Value| {
        let mut job = json!({ "type": name });
        manifests::merge(&mut job, &more);
        json!({ "name": name, "job": job })
    };
    let workflow = json!({ "steps": [
        step("list", call("/v1/queues/work/jobs?state=dead", Value::Null)),
        step("redrive", call("/v1/queues/work/redrive", json!({ "ids": "$(steps.list.result.jobs.map(j, j.id))" }))),
        step("told", json!({ "payload": { "note": "$(steps.list.result.jobs.map(j, j.lastFailure.reason))" } })),
    ] });
    world.apply(&manifests::list(&[manifests::workflow("nurse", "work", &workflow)])).await?;
    world.workflow_ends("nurse", WorkflowPhase::Succeeded, END).await?;
    let ledger = world
        .ledger_shows("the dead jobs to be started again", END, |ledger| {
            ensure!(ledger.starts("frail") == 6, "{} starts", ledger.starts("frail"));
            Ok(())
        })
        .await?;
    ensure!(ledger.started("frail").len() == ids.len(), "other jobs ran");
    ensure!(ledger.highest_attempt("frail") == 1, "a redriven job begins with its first attempt");
    Ok(())
}

/// The Broker's token is made anew under jobs that run longer than their lease and new ones that come in: nobody is locked
/// out, whoever sees the new token first, and no lease is lost.
async fn rotated_token_locks_nobody_out(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    world.enqueue("work", vec![("first", json!({}))]).await?;
    world.ledger_shows("a job to run", END, |ledger| ledger.ran_exactly_once("first", 1)).await?;
    let token =
        |secret: &Secret| secret.data.as_ref().and_then(|data| data.get("current")).map(|it| it.0.clone());
    let old = token(&world.get("default-broker-token").await?);
    let patch = json!({ "spec": { "embedded": { "tokenRevision": 2 } } });
    world.api::<Broker>().patch("default", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    // The kubelet brings a changed Secret to the pods within about a minute, to each at another moment: first the token
    // that is to come to the broker, then the new one to everybody.
    let (mut count, mut new_since) = (0, None::<Instant>);
    let limit = Instant::now() + Duration::from_secs(240);
    while new_since.is_none_or(|since| since.elapsed() < Duration::from_secs(75)) {
        ensure!(Instant::now() < limit, "there is no new token");
        world.enqueue("work", vec![("during", json!({ "sleep": 14 })); 2]).await?;
        count += 2;
        if new_since.is_none() && token(&world.get("default-broker-token").await?) != old {
            new_since = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let ledger =
        world.ledger_shows("the jobs to run", END, |ledger| ledger.ran_exactly_once("during", count)).await?;
    ledger.no_two_runs_at_once()?;
    ensure!(
        ledger.starts("during") == count,
        "{} starts of {count} jobs: a lease was lost",
        ledger.starts("during")
    );
    Ok(())
}

/// Two tools each own a part of a Worker's pod template by server-side apply: neither undoes the other's, and the pods
/// have both.
async fn two_managers_share_a_pod_template(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    let fields = |name: &str, container: Value| {
        json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "Worker", "metadata": { "name": name },
            "spec": { "template": { "spec": { "containers": [container] } } },
        })
    };
    let apply = async |manager: &str, object: &Value| {
        let manager = format!("--field-manager={manager}");
        let arguments = ["apply", "--server-side", &manager, "-n", &world.namespace, "-f", "-"];
        world.cluster.kubectl_with(&arguments, &object.to_string()).await
    };
    let mut worker = manifests::worker("shared", &json!({ "queues": [{ "name": "work" }], "replicas": 1 }));
    worker["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{ "name": "OWNER", "value": "one" }]);
    apply("one", &worker).await?;
    let env = json!({ "name": "app", "env": [{ "name": "TRACING", "value": "on" }] });
    apply("two", &fields("shared", env)).await?;
    apply("one", &worker).await?;
    let stored: Worker = world.get("shared").await?;
    let variables = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|variable| variable["name"].as_str().map(str::to_owned)).collect()
    };
    let written = variables(&stored.spec.template.0["spec"]["containers"][0]["env"]);
    ensure!(written == ["OWNER", "TRACING"], "the template has {written:?}");
    let pod = eventually("a pod with what both wrote", END, || async {
        let pods = world.worker_has("shared", 1, Duration::from_secs(1)).await?;
        let pod = pods.first().context("no pod")?;
        let containers = serde_json::to_value(&pod.spec)?["containers"].clone();
        let found = variables(&containers[0]["env"]);
        ensure!(["OWNER", "TRACING"].iter().all(|name| found.iter().any(|it| it == name)), "{found:?}");
        Ok(found)
    })
    .await?;
    ensure!(pod.iter().any(|name| name == "LONGSHORE_URL"), "what the sidecar brings is missing: {pod:?}");
    Ok(())
}
