//! Handlers that misbehave: it costs that attempt and nothing else.

use super::{
    scenarios,
    workflow::{job, stage},
};
use crate::{World, manifests, wait::eventually};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use longshore_crds::{Worker, WorkflowPhase};
use longshore_drivers::Driver;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

scenarios![
    bad_answers_cost_their_attempt_and_nothing_else[needs_host],
    app_that_dies_costs_its_attempts_and_nothing_else[needs_host],
    misrouted_jobs_lose_no_attempt_and_a_condition_says_why[needs_host],
    throttled_jobs_lose_no_attempt[needs_host],
    oversized_result_fails_the_step_with_the_limit,
    oversized_payload_fails_the_step_with_the_limit,
];

const END: Duration = Duration::from_secs(180);

fn restarts(pod: &Pod, container: &str) -> i32 {
    let status = pod.status.clone().unwrap_or_default();
    let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
    all.filter(|status| status.name == container).map(|status| status.restart_count).sum()
}

async fn nothing_restarted(world: &World) -> Result<()> {
    for pod in world.worker_pods("work").await? {
        for container in ["app", "longshore-sidecar"] {
            ensure!(restarts(&pod, container) == 0, "{container} was restarted");
        }
    }
    Ok(())
}

/// Answers that are no HTTP, hanging, closing the connection: one attempt each, then success. An answer of 100 MB is not
/// read to its end and the job is dead, as doing it again would give the same. A redirect is not followed and costs no
/// attempt. The jobs beside run once, and no container is restarted.
async fn bad_answers_cost_their_attempt_and_nothing_else(world: World) -> Result<()> {
    stage(&world, &json!({ "timeout": "4s" }), &[]).await?;
    let bad = |kind: &'static str| (kind, json!({ "misbehave": { "1": kind } }));
    let mut jobs: Vec<(&str, Value)> = ["garbage", "hang", "close", "huge", "redirect"].map(bad).to_vec();
    jobs.extend(vec![("good", json!({ "sleep": 0.1 })); 50]);
    world.enqueue("work", jobs).await?;
    let ledger = world
        .ledger_shows("the jobs to run", END, |ledger| {
            ledger.ran_exactly_once("good", 50)?;
            for kind in ["garbage", "hang", "close", "redirect"] {
                ensure!(ledger.successes(kind) == 1, "{kind} has not succeeded");
            }
            Ok(())
        })
        .await?;
    let attempts = |kind: &str| -> Vec<u32> {
        ledger.of("start").filter(|entry| entry.job_type == kind).map(|entry| entry.attempt).collect()
    };
    for kind in ["garbage", "hang", "close"] {
        ensure!(attempts(kind) == [1, 2], "attempts of {kind}: {:?}", attempts(kind));
    }
    ensure!(attempts("redirect") == [1, 1], "attempts of redirect: {:?}", attempts("redirect"));
    ensure!(attempts("huge") == [1], "attempts of huge: {:?}", attempts("huge"));
    ensure!(ledger.highest_attempt("good") == 1, "a job beside lost an attempt");
    let stats = world.driver().await?.stats(&world.physical("work").await?).await?;
    ensure!(stats.dead == Some(1), "not one dead job: {stats:?}");
    nothing_restarted(&world).await
}

/// The app exits in the middle of a job: its container is restarted, the job runs again with its next attempt.
async fn app_that_dies_costs_its_attempts_and_nothing_else(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    world.enqueue("work", vec![("dies", json!({ "misbehave": { "1": "die" } }))]).await?;
    let ledger = world
        .ledger_shows("the job to succeed after all", END, |ledger| {
            ensure!(ledger.successes("dies") == 1);
            Ok(())
        })
        .await?;
    let attempts: Vec<_> = ledger.of("start").map(|entry| entry.attempt).collect();
    ensure!(attempts == [1, 2], "attempts: {attempts:?}");
    world.enqueue("work", vec![("after", json!({})); 20]).await?;
    world.ledger_shows("jobs to run after it", END, |ledger| ledger.ran_exactly_once("after", 20)).await?;
    let pods = world.worker_pods("work").await?;
    ensure!(pods.iter().all(|pod| restarts(pod, "longshore-sidecar") == 0), "the sidecar was restarted");
    Ok(())
}

async fn condition_says(world: &World, kind: &str, status: &str, needle: &str) -> Result<()> {
    eventually(&format!("condition {kind}={status}"), END, || async {
        let worker: Worker = world.get("work").await?;
        let conditions = worker.status.unwrap_or_default().conditions;
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        let found = found.with_context(|| format!("there is none: {conditions:?}"))?;
        ensure!(found.status == status && found.message.contains(needle), "{found:?}");
        Ok(())
    })
    .await
}

/// An app without the route, or that doesn't let the sidecar in: jobs wait with all their attempts, a condition names the
/// status, and when the app is mended they run.
async fn misrouted_jobs_lose_no_attempt_and_a_condition_says_why(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    for (kind, status, condition) in [("lost", 404, "HandlerRoutable"), ("shut", 401, "HandlerAuthorized")] {
        // The first two deliveries are refused; both are of attempt 1, so the answer goes by delivery.
        let refused = json!({ "refuse": { "1": status, "2": status } });
        world.enqueue("work", vec![(kind, refused)]).await?;
        condition_says(&world, condition, "False", &status.to_string()).await?;
        let ledger = world
            .ledger_shows("the job to run", END, |ledger| {
                ensure!(ledger.successes(kind) == 1);
                Ok(())
            })
            .await?;
        ensure!(ledger.highest_attempt(kind) == 1, "{kind} lost an attempt");
        ensure!(ledger.starts(kind) == 3, "{kind} was delivered {} times", ledger.starts(kind));
        condition_says(&world, condition, "True", "").await?;
    }
    Ok(())
}

/// 429 and 503 give jobs back: they wait and lose no attempt, however often.
async fn throttled_jobs_lose_no_attempt(world: World) -> Result<()> {
    stage(&world, &json!({ "retry": { "maxAttempts": 1 } }), &[]).await?;
    let busy = json!({ "refuse": { "1": 429, "2": 503, "3": 429 } });
    world.enqueue("work", vec![("busy", busy); 5]).await?;
    let ledger = world
        .ledger_shows("the jobs to run", END, |ledger| {
            ensure!(ledger.successes("busy") == 5, "{} did", ledger.successes("busy"));
            Ok(())
        })
        .await?;
    ensure!(ledger.highest_attempt("busy") == 1, "an attempt was consumed");
    let mut runs: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for entry in ledger.of("start").filter(|entry| entry.job_type == "busy") {
        runs.entry(&entry.id).or_default().push(entry.delivery);
    }
    ensure!(runs.len() == 5, "{} jobs ran", runs.len());
    // A throttled sidecar gives a job back that its slots are gone for, so the app may miss a delivery, but the app
    // refuses those that it sees up to the third, and the first one after that is the last.
    for (id, deliveries) in runs {
        ensure!(deliveries.is_sorted_by(|a, b| a < b), "{id} was handed out twice: {deliveries:?}");
        let refused = deliveries.iter().filter(|delivery| **delivery <= 3).count();
        ensure!(deliveries.len() == refused + 1, "{id} ran again after it succeeded: {deliveries:?}");
    }
    Ok(())
}

async fn fails_with(world: &World, name: &str, payload: Value, needles: &[&str]) -> Result<()> {
    let workflow = json!({ "steps": [
        { "name": "big", "job": { "type": "big", "payload": payload } },
        { "name": "never", "job": { "type": "never" } },
    ], "catch": job("catch", json!({})) });
    stage(world, &json!({}), &[manifests::workflow(name, "work", &workflow)]).await?;
    let ended = world.workflow_ends(name, WorkflowPhase::Failed, END).await?;
    let message = ended.status.and_then(|status| status.message).unwrap_or_default();
    for needle in needles {
        ensure!(message.contains(needle), "{needle:?} is not in the message {message:?}");
    }
    let ledger = world.ledger().await?;
    ensure!(ledger.starts("never") == 0 && ledger.starts("catch") == 1, "callbacks or steps went wrong");
    Ok(())
}

/// A result over the broker's limit fails the step, names the limit, and the work is not done again.
async fn oversized_result_fails_the_step_with_the_limit(world: World) -> Result<()> {
    fails_with(&world, "result", json!({ "big": 2 << 20 }), &["ResultTooLarge", "1048576"]).await?;
    let runs = world.ledger().await?.starts("big");
    ensure!(runs == 1, "the job ran {runs} times");
    Ok(())
}

/// A payload that an expression blows up over the limit fails the step and names the limit; nothing runs.
async fn oversized_payload_fails_the_step_with_the_limit(world: World) -> Result<()> {
    let list: Vec<u32> = (0..2000).collect();
    let workflow = json!({ "steps": [
        { "name": "list", "job": { "type": "list", "payload": { "result": list } } },
        { "name": "big", "job": { "type": "big", "payload": {
            "all": vec!["$(steps.list.result)"; 200],
        } } },
    ] });
    stage(&world, &json!({}), &[manifests::workflow("payload", "work", &workflow)]).await?;
    let ended = world.workflow_ends("payload", WorkflowPhase::Failed, END).await?;
    let message = ended.status.and_then(|status| status.message).unwrap_or_default();
    ensure!(message.contains("1048576"), "the limit is not in the message {message:?}");
    let runs = world.ledger().await?.starts("big");
    ensure!(runs == 0, "the job ran {runs} times");
    Ok(())
}
