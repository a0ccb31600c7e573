//! Chains, batches and callbacks.

use super::scenarios;
use crate::{World, manifests};
use anyhow::{Result, ensure};
use kube::api::{DeleteParams, Patch, PatchParams};
use longshore_crds::{Queue, Workflow, WorkflowPhase};
use serde_json::{Value, json};
use std::time::Duration;

scenarios![
    batch_of_500_with_results_used_by_then,
    catch_and_finally_after_a_permanent_failure_each_once,
    retry_with_backoff_never_early,
    suspended_queue_starts_nothing_and_resumes,
    cancelled_workflow_runs_catch_and_finally,
    applied_twice_nothing_runs_twice,
    large_results_outlive_their_retention,
    changed_workflow_stands_still_and_can_be_deleted,
];

const END: Duration = Duration::from_secs(180);

/// The ledger, a Broker, the Queue `work` with `policy`, its Worker.
pub(super) async fn stage(world: &World, policy: &Value, more: &[Value]) -> Result<()> {
    let mut items = manifests::ledger();
    items.extend([
        manifests::broker("default"),
        manifests::queue("work", policy),
        manifests::worker("work", &json!({})),
    ]);
    items.extend(more.iter().cloned());
    world.apply(&manifests::list(&items)).await?;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "payloads are written in place")]
pub(super) fn job(kind: &str, payload: Value) -> Value {
    json!({ "job": { "type": kind, "payload": payload } })
}

/// Every member runs once, and `then` gets what they answered.
async fn batch_of_500_with_results_used_by_then(world: World) -> Result<()> {
    let list: Vec<u32> = (0..500).collect();
    let workflow = json!({
        "steps": [
            { "name": "list", "job": { "type": "list", "payload": { "result": list } } },
            { "name": "square", "batch": {
                "forEach": "$(steps.list.result)",
                "job": { "type": "square", "payload": { "result": "$(item * item)" } },
                "then": { "job": { "type": "sum", "payload": { "note": "$(steps.square.results)" } } },
            } },
        ],
        "then": job("after", json!({ "note": "$(size(steps.square.results))" })),
    });
    stage(&world, &json!({}), &[manifests::workflow("squares", "work", &workflow)]).await?;
    world.workflow_ends("squares", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    ledger.ran_exactly_once("square", 500)?;
    ledger.ran_exactly_once("sum", 1)?;
    ledger.ran_exactly_once("after", 1)?;
    let note = |kind: &str| {
        ledger.of("start").find(|entry| entry.job_type == kind).and_then(|entry| entry.payload.clone())
    };
    let squares: Vec<u64> = (0..500).map(|n| n * n).collect();
    ensure!(note("sum") == Some(json!(squares)), "the batch's then got other results: {:?}", note("sum"));
    ensure!(note("after") == Some(json!(500)), "the workflow's then got {:?}", note("after"));
    Ok(())
}

/// A permanent failure ends the chain; `catch` and `finally` run once each, `then` and later steps never.
async fn catch_and_finally_after_a_permanent_failure_each_once(world: World) -> Result<()> {
    let workflow = json!({
        "steps": [
            { "name": "good", "job": { "type": "good" } },
            { "name": "bad", "job": { "type": "bad", "payload": { "answer": { "*": 422 } } } },
            { "name": "never", "job": { "type": "never" } },
        ],
        "then": job("then", json!({})),
        "catch": job("catch", json!({ "note": "$(workflow.outcome)" })),
        "finally": job("finally", json!({})),
    });
    stage(&world, &json!({}), &[manifests::workflow("fails", "work", &workflow)]).await?;
    world.workflow_ends("fails", WorkflowPhase::Failed, END).await?;
    let ledger = world.ledger().await?;
    for (kind, times) in [("good", 1), ("bad", 1), ("never", 0), ("then", 0), ("catch", 1), ("finally", 1)] {
        ensure!(ledger.starts(kind) == times, "{kind} ran {} times, not {times}", ledger.starts(kind));
    }
    Ok(())
}

/// Retries wait as long as the policy says, never less, and count attempts.
async fn retry_with_backoff_never_early(world: World) -> Result<()> {
    let workflow = json!({ "steps": [
        { "name": "flaky", "job": { "type": "flaky", "payload": { "answer": { "1": 500, "2": 500 } } } },
    ] });
    stage(&world, &json!({}), &[manifests::workflow("flaky", "work", &workflow)]).await?;
    world.workflow_ends("flaky", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    let starts: Vec<_> = ledger.of("start").filter(|entry| entry.job_type == "flaky").collect();
    let ends: Vec<_> = ledger.of("end").filter(|entry| entry.job_type == "flaky").collect();
    ensure!(starts.iter().map(|entry| entry.attempt).eq(1..=3), "attempts: {starts:?}");
    for (attempt, least) in [(1, 1.0), (2, 2.0)] {
        let waited = starts[attempt].at - ends[attempt - 1].at;
        ensure!(
            waited >= least,
            "attempt {} came {waited:.3} s after the failure, not {least} s",
            attempt + 1
        );
        ensure!(waited < least + 5.0, "attempt {} came {waited:.3} s after the failure", attempt + 1);
    }
    Ok(())
}

/// A suspended Queue accepts jobs and starts none; resumed, it goes on.
async fn suspended_queue_starts_nothing_and_resumes(world: World) -> Result<()> {
    stage(&world, &json!({ "suspend": true }), &[]).await?;
    world.enqueue("work", vec![("job", json!({})); 10]).await?;
    crate::wait::always("nothing to run", Duration::from_secs(8), || async {
        let pods = world.worker_pods("work").await?;
        ensure!(pods.is_empty(), "a suspended queue made {} pods", pods.len());
        Ok(())
    })
    .await?;
    let patch = json!({ "spec": { "suspend": false } });
    world.api::<Queue>().patch("work", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    world.ledger_shows("the jobs to run", END, |ledger| ledger.ran_exactly_once("job", 10)).await?;
    Ok(())
}

/// `cancel: true` starts nothing further and runs `catch` and `finally`.
async fn cancelled_workflow_runs_catch_and_finally(world: World) -> Result<()> {
    let workflow = json!({
        "steps": [
            { "name": "long", "job": { "type": "long", "payload": { "sleep": 5 } } },
            { "name": "never", "job": { "type": "never" } },
        ],
        "catch": job("catch", json!({})),
        "finally": job("finally", json!({})),
    });
    stage(&world, &json!({}), &[manifests::workflow("stops", "work", &workflow)]).await?;
    world
        .ledger_shows("the first step to run", END, |ledger| {
            ensure!(ledger.starts("long") == 1);
            Ok(())
        })
        .await?;
    let patch = json!({ "spec": { "cancel": true } });
    world.api::<Workflow>().patch("stops", &PatchParams::default(), &Patch::Merge(&patch)).await?;
    world.workflow_ends("stops", WorkflowPhase::Cancelled, END).await?;
    let ledger = world.ledger().await?;
    for (kind, times) in [("never", 0), ("catch", 1), ("finally", 1)] {
        ensure!(ledger.starts(kind) == times, "{kind} ran {} times, not {times}", ledger.starts(kind));
    }
    Ok(())
}

/// Applying the same manifests again gives no diff, no new generation and no second run.
async fn applied_twice_nothing_runs_twice(world: World) -> Result<()> {
    let workflow = json!({ "steps": [{ "name": "once", "job": { "type": "once" } }] });
    let objects = [manifests::workflow("once", "work", &workflow)];
    stage(&world, &json!({}), &objects).await?;
    let before = world.workflow_ends("once", WorkflowPhase::Succeeded, END).await?;
    stage(&world, &json!({}), &objects).await?;
    let items: Vec<Value> = [
        manifests::broker("default"),
        manifests::queue("work", &json!({})),
        manifests::worker("work", &json!({})),
    ]
    .into_iter()
    .chain(objects)
    .collect();
    let diff = world
        .cluster
        .kubectl_with(&["diff", "-n", &world.namespace, "-f", "-"], &manifests::list(&items))
        .await?;
    ensure!(diff.trim().is_empty(), "there is a diff: {diff}");
    let after: Workflow = world.get("once").await?;
    ensure!(before.metadata.generation == after.metadata.generation, "the generation changed");
    crate::wait::always("nothing to run again", Duration::from_secs(3), || async {
        world.ledger().await?.ran_exactly_once("once", 1)
    })
    .await
}

/// A result too large for a status is still there when a later step asks for it, long after retention would have ended.
async fn large_results_outlive_their_retention(world: World) -> Result<()> {
    let big = |count: u32| json!({ "type": "big", "payload": { "big": count } });
    let workflow = json!({ "steps": [
        { "name": "big", "job": big(100_000) },
        { "name": "many", "batch": { "jobs": [big(5000), big(6000)] } },
        { "name": "rest", "job": { "type": "rest", "payload": { "sleep": 8 } } },
        { "name": "sum", "job": { "type": "sum", "payload": {
            "note": "$([size(steps.big.result)] + steps.many.results.map(r, size(r)))",
        } } },
    ] });
    let policy = json!({ "retention": { "completed": "1s" } });
    stage(&world, &policy, &[manifests::workflow("large", "work", &workflow)]).await?;
    world.workflow_ends("large", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    let sum =
        ledger.of("start").find(|entry| entry.job_type == "sum").and_then(|entry| entry.payload.clone());
    ensure!(sum == Some(json!([100_000, 5000, 6000])), "the last step got {sum:?}");
    Ok(())
}

/// The spec of a running Workflow is not the one that it was started with, which the API server prevents where its
/// definition is in force: nothing more is performed, and a condition says so. Put back, it goes on; deleted, it goes.
async fn changed_workflow_stands_still_and_can_be_deleted(world: World) -> Result<()> {
    let chain = json!({ "steps": [
        { "name": "one", "job": { "type": "one", "payload": { "gate": "one" } } },
        { "name": "two", "job": { "type": "two" } },
    ] });
    let named = ["mended", "doomed"].map(|name| manifests::workflow(name, "work", &chain));
    stage(&world, &json!({ "timeout": "170s" }), &named).await?;
    let both = |ledger: &crate::ledger::Ledger| {
        ensure!(ledger.starts("one") == 2, "{} started", ledger.starts("one"));
        Ok(())
    };
    world.ledger_shows("both to run", END, both).await?;
    let hash = world.get::<Workflow>("mended").await?.status.and_then(|status| status.spec_hash);
    let started_with = async |name: &str, hash: Option<&str>| {
        let patch = json!({ "status": { "specHash": hash } });
        world.api::<Workflow>().patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await
    };
    for name in ["mended", "doomed"] {
        started_with(name, Some("another")).await?;
        world.says("workflow", name, &["SpecChanged", "put it back"]).await?;
    }
    crate::wait::eventually("the gate to open", END, || world.open_gate("one")).await?;
    world.ledger_shows("the jobs to end", END, |ledger| ledger.ran_exactly_once("one", 2)).await?;
    crate::wait::always("nothing to be started", Duration::from_secs(4), || async {
        ensure!(world.ledger().await?.starts("two") == 0, "the next step ran");
        Ok(())
    })
    .await?;
    started_with("mended", hash.as_deref()).await?;
    world.workflow_ends("mended", WorkflowPhase::Succeeded, END).await?;
    world.api::<Workflow>().delete("doomed", &DeleteParams::default()).await?;
    crate::wait::eventually("the Workflow to be gone", Duration::from_secs(60), || async {
        ensure!(world.api::<Workflow>().get_opt("doomed").await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    world.ledger().await?.ran_exactly_once("two", 1)
}
