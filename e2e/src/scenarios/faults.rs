//! Things that die.

use super::{scenarios, workflow::stage};
use crate::{World, host, manifests};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use longshore_crds::WorkflowPhase;
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};

scenarios![
    broker_killed_nothing_acknowledged_is_lost[needs_host],
    sidecar_killed_its_jobs_return_within_a_lease[needs_host],
    operator_killed_in_a_chain_and_a_batch[needs_host, alone],
];

const END: Duration = Duration::from_secs(240);

/// The broker is killed three times while jobs come in and run: every acknowledged job is done in the end, also one that
/// ran at that moment.
async fn broker_killed_nothing_acknowledged_is_lost(world: World) -> Result<()> {
    stage(&world, &json!({ "maxDeliveries": 50 }), &[]).await?;
    let mut acknowledged = Vec::new();
    for _ in 0..3 {
        acknowledged.extend(world.enqueue("work", vec![("job", json!({ "sleep": 0.05 })); 100]).await?);
        host::kill(&world.api(), "default-broker-0", "broker").await?;
    }
    let all = |ledger: &crate::ledger::Ledger| {
        let good = ledger.of("end").filter(|entry| entry.status.is_some_and(|status| status < 300));
        let done: BTreeSet<_> = good.map(|entry| entry.id.as_str()).collect();
        let missing = acknowledged.iter().filter(|id| !done.contains(id.as_str())).count();
        ensure!(missing == 0, "{missing} acknowledged jobs were never done");
        Ok(())
    };
    world.ledger_shows("every acknowledged job to be done", END, all).await?;
    Ok(())
}

/// A killed sidecar costs its jobs a delivery, no attempt; they run again within about one lease.
async fn sidecar_killed_its_jobs_return_within_a_lease(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    world.enqueue("work", vec![("slow", json!({ "sleep": 20 })); 5]).await?;
    world
        .ledger_shows("the jobs to run", END, |ledger| {
            ensure!(ledger.starts("slow") == 5);
            Ok(())
        })
        .await?;
    let pod = world.worker_pods("work").await?.into_iter().next().context("no pod")?;
    host::kill(&world.api(), &pod.name_any(), "longshore-sidecar").await?;
    let ledger = world
        .ledger_shows("the jobs to be started again", Duration::from_secs(40), |ledger| {
            ensure!(ledger.starts("slow") >= 10, "{} starts", ledger.starts("slow"));
            Ok(())
        })
        .await?;
    ensure!(ledger.highest_attempt("slow") == 1, "an attempt was consumed");
    Ok(())
}

/// The operator is killed again and again: the workflow ends, every job under one id, callbacks once.
async fn operator_killed_in_a_chain_and_a_batch(world: World) -> Result<()> {
    let item = |n: usize| json!({ "type": "member", "payload": { "sleep": 0.2, "result": n } });
    let workflow = json!({
        "steps": [
            { "name": "one", "job": { "type": "one", "payload": { "sleep": 0.5 } } },
            { "name": "two", "job": { "type": "two", "payload": { "sleep": 0.5 } } },
            { "name": "many", "batch": { "jobs": (0..100).map(item).collect::<Vec<_>>(), "then": { "job": { "type": "batch-then" } } } },
            { "name": "last", "job": { "type": "last" } },
        ],
        "then": { "job": { "type": "then" } },
        "finally": { "job": { "type": "finally" } },
    });
    stage(&world, &json!({}), &[manifests::workflow("survives", "work", &workflow)]).await?;
    for kind in ["one", "two", "member", "batch-then"] {
        let limit = Duration::from_secs(120);
        world
            .ledger_shows(&format!("{kind} to be started"), limit, |ledger| {
                ensure!(ledger.starts(kind) > 0);
                Ok(())
            })
            .await?;
        kill_operator(&world).await?;
    }
    world.workflow_ends("survives", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    for (kind, count) in
        [("one", 1), ("two", 1), ("member", 100), ("batch-then", 1), ("last", 1), ("then", 1), ("finally", 1)]
    {
        ledger.ran_exactly_once(kind, count)?;
    }
    Ok(())
}

async fn kill_operator(world: &World) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(world.cluster.client.clone(), "longshore-system");
    let pods = api.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await?;
    for pod in pods.items {
        host::kill(&api, &pod.name_any(), "operator").await?;
    }
    Ok(())
}
