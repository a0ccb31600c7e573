//! Pods that go away: nothing that runs is lost, nothing is charged for it.

use super::scenarios;
use crate::{World, ledger::Ledger, manifests, wait::eventually};
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use longshore_crds::Worker;
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};

scenarios![
    drain_order_at_rollout,
    drain_order_at_deletion,
    liveness_failure_keeps_claiming,
    rollout_under_load_loses_nothing,
    worker_deleted_with_jobs_in_flight,
];

const START: Duration = Duration::from_secs(120);

/// A Worker `work` with one warm pod, or what `overrides` say.
async fn warm(world: &World, overrides: &serde_json::Value) -> Result<()> {
    let mut items = manifests::ledger();
    let mut spec = json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } });
    manifests::merge(&mut spec, overrides);
    items.extend([
        manifests::broker("default"),
        // Jobs may wait at a gate for as long as a rollout takes to reach their pod.
        manifests::queue("work", &json!({ "timeout": "170s" })),
        manifests::worker("work", &spec),
    ]);
    world.apply(&manifests::list(&items)).await?;
    Ok(())
}

/// The one warm pod.
async fn warm_pod(world: &World) -> Result<Pod> {
    warm(world, &json!({})).await?;
    Ok(world.worker_has("work", 1, START).await?.remove(0))
}

/// Every run of `pod` ended well before its app was told to stop.
fn ended_before_the_app_was_stopped(ledger: &Ledger, pod: &str) -> Result<()> {
    let of_pod: Vec<_> = ledger.entries.iter().filter(|entry| entry.pod == pod).collect();
    let stopped = of_pod.iter().position(|entry| entry.event == "sigterm");
    let last_end = of_pod.iter().rposition(|entry| entry.event == "end");
    ensure!(stopped.is_some(), "the app of {pod} was never told to stop");
    ensure!(last_end < stopped, "the app of {pod} was told to stop before its jobs ended: {of_pod:?}");
    Ok(())
}

async fn jobs_in_flight(world: &World, count: usize) -> Result<()> {
    world.enqueue("work", vec![("slow", json!({ "gate": "slow", "sleep": 2 })); count]).await?;
    world
        .ledger_shows("jobs to run", Duration::from_secs(30), |ledger| {
            ensure!(ledger.starts("slow") >= count, "{} started", ledger.starts("slow"));
            Ok(())
        })
        .await?;
    Ok(())
}

/// Lets the jobs go on once `pod` is on its way out, so that they end during its drain.
async fn drained(world: &World, pod: &str, count: usize) -> Result<()> {
    eventually("the pod to be asked to go", Duration::from_secs(120), || async {
        let leaving: Pod = world.get(pod).await?;
        ensure!(leaving.metadata.deletion_timestamp.is_some(), "nobody has asked it");
        Ok(())
    })
    .await?;
    ensure!(world.ledger().await?.of("end").count() == 0, "a job ended before");
    eventually("the gate to open", START, || world.open_gate("slow")).await?;
    let ledger = world
        .ledger_shows("the app to be stopped", Duration::from_secs(60), |ledger| {
            ended_before_the_app_was_stopped(ledger, pod)
        })
        .await?;
    ledger.ran_exactly_once("slow", count)?;
    ensure!(ledger.highest_attempt("slow") == 1, "an attempt was consumed");
    Ok(())
}

/// At a rollout running jobs end before their app gets SIGTERM; none is lost, none runs twice, no attempt is consumed.
async fn drain_order_at_rollout(world: World) -> Result<()> {
    let pod = warm_pod(&world).await?;
    jobs_in_flight(&world, 6).await?;
    let patch = json!({ "spec": { "template": { "metadata": { "annotations": { "rollout": "now" } } } } });
    world.api::<Worker>().patch("work", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    drained(&world, &pod.name_any(), 6).await
}

/// The same when the pod is deleted.
async fn drain_order_at_deletion(world: World) -> Result<()> {
    let pod = warm_pod(&world).await?;
    jobs_in_flight(&world, 6).await?;
    world.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
    drained(&world, &pod.name_any(), 6).await
}

/// When only the app's liveness probe fails, its container is restarted and the sidecar goes on claiming.
async fn liveness_failure_keeps_claiming(world: World) -> Result<()> {
    let probe =
        json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1, "failureThreshold": 2 });
    let mut worker = manifests::worker("work", &json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } }));
    worker["spec"]["template"]["spec"]["containers"][0]["livenessProbe"] = probe;
    let mut items = manifests::ledger();
    items.extend([manifests::broker("default"), manifests::queue("work", &json!({})), worker]);
    world.apply(&manifests::list(&items)).await?;
    let pod = world.worker_has("work", 1, START).await?.remove(0);

    world.enqueue("work", vec![("sick", json!({ "unhealthy": true }))]).await?;
    eventually("the app to be restarted", Duration::from_secs(60), || async {
        let pod: Pod = world.get(&pod.name_any()).await?;
        ensure!(restarts(&pod, "app") >= 1, "it was not restarted");
        Ok(())
    })
    .await?;
    world.enqueue("work", vec![("after", json!({})); 20]).await?;
    let ledger = world
        .ledger_shows("jobs to run after the restart", Duration::from_secs(60), |ledger| {
            ledger.ran_exactly_once("after", 20)
        })
        .await?;
    ensure!(ledger.of("end").all(|entry| entry.pod == pod.name_any()), "another pod ran jobs");
    let pod: Pod = world.get(&pod.name_any()).await?;
    ensure!(restarts(&pod, "longshore-sidecar") == 0, "the sidecar was restarted");
    Ok(())
}

fn restarts(pod: &Pod, container: &str) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| {
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten())
    });
    statuses.filter(|status| status.name == container).map(|status| status.restart_count).sum()
}

/// A rollout under 200 jobs of 1 s: none lost, no two leased runs at once, no attempt consumed.
async fn rollout_under_load_loses_nothing(world: World) -> Result<()> {
    warm(&world, &json!({ "scaling": { "minReplicas": 2, "maxReplicas": 2 } })).await?;
    let first = world.worker_has("work", 2, START).await?;
    world.enqueue("work", vec![("slow", json!({ "sleep": 1 })); 200]).await?;
    for round in 0..2 {
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": { "rollout": round.to_string() } } } } });
        world.api::<Worker>().patch("work", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        world
            .ledger_shows("the rollout to go on under load", Duration::from_secs(60), |ledger| {
                let done = ledger.successes("slow");
                ensure!(done >= 60 * (round + 1), "{done} done");
                Ok(())
            })
            .await?;
    }
    let ledger = world
        .ledger_shows("all jobs to be done", Duration::from_secs(90), |ledger| {
            ledger.ran_exactly_once("slow", 200)
        })
        .await?;
    ledger.no_two_runs_at_once()?;
    ensure!(ledger.highest_attempt("slow") == 1, "an attempt was consumed");
    let worked: BTreeSet<_> = ledger.of("start").map(|entry| entry.pod.as_str()).collect();
    let replaced = first.iter().all(|pod| worked.contains(pod.name_any().as_str())) && worked.len() >= 4;
    ensure!(replaced, "no pods were replaced under load: {worked:?}");
    Ok(())
}

/// Deleting a Worker lets its running jobs end; what waits stays in the queue for the next Worker.
async fn worker_deleted_with_jobs_in_flight(world: World) -> Result<()> {
    let pod = warm_pod(&world).await?;
    jobs_in_flight(&world, 5).await?;
    world.api::<Worker>().delete("work", &DeleteParams::default()).await?;
    drained(&world, &pod.name_any(), 5).await?;
    eventually("the pods to be gone", Duration::from_secs(60), || async {
        let pods = world.worker_pods("work").await?;
        ensure!(pods.is_empty(), "{} are left", pods.len());
        Ok(())
    })
    .await
}
