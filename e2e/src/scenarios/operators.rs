//! Operators that die, stand still, or are away: the work goes on, and nothing happens twice.

use super::{
    scenarios,
    workflow::{job, stage},
};
use crate::{
    World, host,
    ledger::Ledger,
    manifests,
    wait::{always, eventually},
};
use anyhow::{Context, Result, ensure};
use kube::{ResourceExt, api::DeleteParams};
use longshore_crds::{Workflow, WorkflowPhase, WorkflowStatus};
use longshore_drivers::Driver;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

scenarios![
    leader_killed_the_other_goes_on_within_20s[needs_host, alone],
    leader_stopped_the_other_goes_on_within_20s[needs_host, alone],
    operator_killed_after_each_kind_of_effect[needs_host, alone],
    operator_down_longer_than_retention_nothing_runs_again[needs_host, alone],
    operator_and_api_server_down_workers_go_on[needs_host, alone],
    work_done_in_time_is_no_missed_deadline_after_an_outage[alone],
    workflow_deleted_without_an_operator_starts_nothing_more[alone],
];

const END: Duration = Duration::from_secs(180);
/// How long a workflow may stand still while leadership changes hands, in seconds.
const HANDOVER: f64 = 20.0;

/// A chain of `count` steps of 0.2 s.
fn chain(count: usize) -> Value {
    let step =
        |n: usize| json!({ "name": format!("s{n}"), "job": { "type": "link", "payload": { "sleep": 0.2 } } });
    let steps: Vec<_> = (0..count).map(step).collect();
    json!({ "steps": steps, "then": job("then", json!({})), "finally": job("finally", json!({})) })
}

async fn started(world: &World, kind: &str, count: usize) -> Result<Ledger> {
    world
        .ledger_shows(&format!("{count} of {kind} to be started"), END, |ledger| {
            ensure!(ledger.starts(kind) >= count, "{} started", ledger.starts(kind));
            Ok(())
        })
        .await
}

/// The longest time between two starts, in seconds.
fn longest_gap(ledger: &Ledger, kind: &str) -> f64 {
    let starts: Vec<f64> =
        ledger.of("start").filter(|entry| entry.job_type == kind).map(|entry| entry.at).collect();
    starts.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

async fn chain_ended(world: &World, count: usize) -> Result<()> {
    world.workflow_ends("chain", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    for (kind, times) in [("link", count), ("then", 1), ("finally", 1)] {
        ledger.ran_exactly_once(kind, times)?;
    }
    let gap = longest_gap(&ledger, "link");
    ensure!(gap <= HANDOVER, "the chain stood still for {gap:.1} s");
    eprintln!("the longest pause was {gap:.1} s");
    Ok(())
}

/// With two operators, the one that leads is killed and its pod lost: the other goes on within 20 s, nothing runs twice.
async fn leader_killed_the_other_goes_on_within_20s(world: World) -> Result<()> {
    let killed = async {
        world.scale_operator(2).await?;
        stage(&world, &json!({}), &[manifests::workflow("chain", "work", &chain(30))]).await?;
        started(&world, "link", 5).await?;
        let first = world.kill_leader().await?;
        started(&world, "link", 15).await?;
        ensure!(world.leader().await? != first, "{first} still leads");
        chain_ended(&world, 30).await
    };
    world.disturbing(killed).await
}

/// With two operators, the one that leads is stopped in the middle of whatever it does and wakes up after the other took
/// over: nothing that it still believes happens twice.
async fn leader_stopped_the_other_goes_on_within_20s(world: World) -> Result<()> {
    let stopped = async {
        world.scale_operator(2).await?;
        stage(&world, &json!({}), &[manifests::workflow("chain", "work", &chain(40))]).await?;
        started(&world, "link", 5).await?;
        let name = world.leader().await?;
        let pod = world.operators().get(&name).await?;
        host::signal(&pod, "operator", "STOP")?;
        let ledger = started(&world, "link", 5).await?;
        let went_on = started(&world, "link", ledger.starts("link") + 6).await;
        host::signal(&pod, "operator", "CONT")?;
        went_on?;
        ensure!(world.leader().await? != name, "{name} still leads");
        chain_ended(&world, 40).await
    };
    world.disturbing(stopped).await
}

async fn status_shows(world: &World, what: &str, check: impl Fn(&WorkflowStatus) -> bool) -> Result<()> {
    eventually(what, END, || async {
        let workflow: Workflow = world.get("effects").await?;
        let status = workflow.status.unwrap_or_default();
        ensure!(check(&status), "it is {:?} at {}", status.phase, status.progress);
        Ok(())
    })
    .await
}

/// After each kind of effect (start, dispatch, members resolved, batch dispatched, members cancelled, callbacks of batch
/// and workflow) the operator is killed and its pod lost: the workflow ends as it should, each job under one id.
async fn operator_killed_after_each_kind_of_effect(world: World) -> Result<()> {
    let member = json!({ "type": "member", "payload": {
        "sleep": "$(item == 0 ? 3 : 25)", "answer": { "*": "$(item == 0 ? 422 : 200)" },
    } });
    let workflow = json!({
        "steps": [
            { "name": "list", "job": { "type": "list", "payload": { "sleep": 1, "result": [0, 1, 2, 3, 4] } } },
            { "name": "fan", "batch": {
                "forEach": "$(steps.list.result)", "job": member, "failurePolicy": "FailFast",
                "catch": job("batch-catch", json!({ "sleep": 1 })),
                "finally": job("batch-finally", json!({ "sleep": 1 })),
            } },
            { "name": "never", "job": { "type": "never" } },
        ],
        "catch": job("catch", json!({ "sleep": 1 })),
        "finally": job("finally", json!({ "sleep": 1 })),
    });
    let killed = async {
        stage(&world, &json!({}), &[manifests::workflow("effects", "work", &workflow)]).await?;
        status_shows(&world, "the start", |status| status.phase == WorkflowPhase::Running).await?;
        world.kill_leader().await?;
        started(&world, "list", 1).await?;
        world.kill_leader().await?;
        status_shows(&world, "the members", |status| {
            status.steps.get(1).is_some_and(|step| step.total.is_some())
        })
        .await?;
        world.kill_leader().await?;
        started(&world, "member", 5).await?;
        world.kill_leader().await?;
        status_shows(&world, "the failure", |status| status.steps.get(1).is_some_and(|step| step.failed > 0))
            .await?;
        world.kill_leader().await?;
        for kind in ["batch-catch", "batch-finally", "catch", "finally"] {
            started(&world, kind, 1).await?;
            world.kill_leader().await?;
        }
        world.workflow_ends("effects", WorkflowPhase::Failed, END).await?;
        let ledger = world.ledger().await?;
        for (kind, times) in
            [("list", 1), ("never", 0), ("member", 5), ("batch-catch", 1), ("batch-finally", 1)]
        {
            ensure!(ledger.starts(kind) == times, "{kind} ran {} times, not {times}", ledger.starts(kind));
        }
        ledger.ran_exactly_once("catch", 1)?;
        ledger.ran_exactly_once("finally", 1)
    };
    world.disturbing(killed).await
}

/// Jobs finish and their records age while no operator is there: it finds the completions and runs nothing again.
async fn operator_down_longer_than_retention_nothing_runs_again(world: World) -> Result<()> {
    let members: Vec<_> =
        (0..30).map(|n| json!({ "type": "member", "payload": { "gate": "members", "result": n } })).collect();
    let workflow = json!({
        "steps": [
            { "name": "many", "batch": { "jobs": members, "then": job("sum", json!({ "note": "$(steps.many.results)" })) } },
            { "name": "last", "job": { "type": "last" } },
        ],
    });
    let policy = json!({ "retention": { "completed": "1s" }, "timeout": "170s" });
    let away = async {
        stage(&world, &policy, &[manifests::workflow("aged", "work", &workflow)]).await?;
        started(&world, "member", 1).await?;
        // No member ends before the operator is away.
        world.scale_operator(0).await?;
        eventually("the gate to open", END, || world.open_gate("members")).await?;
        world.ledger_shows("the members to end", END, |ledger| ledger.ran_exactly_once("member", 30)).await?;
        always("nothing to run without an operator", Duration::from_secs(15), || async {
            ensure!(world.ledger().await?.starts("sum") == 0, "the callback ran");
            Ok(())
        })
        .await?;
        world.scale_operator(1).await?;
        world.workflow_ends("aged", WorkflowPhase::Succeeded, END).await?;
        let ledger = world.ledger().await?;
        for (kind, times) in [("member", 30), ("sum", 1), ("last", 1)] {
            ledger.ran_exactly_once(kind, times)?;
        }
        let sum =
            ledger.of("start").find(|entry| entry.job_type == "sum").and_then(|entry| entry.payload.clone());
        let all: Vec<_> = (0..30).collect();
        ensure!(sum == Some(json!(all)), "the batch's then got other results: {sum:?}");
        Ok(())
    };
    world.disturbing(away).await
}

fn seconds() -> Result<f64> {
    #[expect(clippy::disallowed_methods, reason = "compared with the clocks of pods on this machine")]
    let now = SystemTime::now();
    Ok(now.duration_since(UNIX_EPOCH)?.as_secs_f64())
}

async fn component(world: &World, action: &str) -> Result<()> {
    world.cluster.control(&[action, "kube-apiserver"]).await
}

/// For a minute there is neither operator nor API server: the workers go on with what comes in, and the workflow that
/// waited ends afterwards.
async fn operator_and_api_server_down_workers_go_on(world: World) -> Result<()> {
    let warm = json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } });
    let mut items = manifests::ledger();
    items.extend([
        manifests::broker("default"),
        manifests::queue("work", &json!({})),
        manifests::worker("work", &warm),
        manifests::workflow(
            "waits",
            "work",
            &json!({ "steps": [
            { "name": "long", "job": { "type": "long", "payload": { "sleep": 20 } } },
            { "name": "last", "job": { "type": "last" } },
        ] }),
        ),
    ]);
    world.apply(&manifests::list(&items)).await?;
    world.worker_has("work", 1, END).await?;
    started(&world, "long", 1).await?;
    let (queue, driver) = (world.physical("work").await?, world.driver().await?);
    let operators = world.operator_pods().await?;

    let down = seconds()?;
    component(&world, "stop").await?;
    let begun = Instant::now();
    let worked = async {
        for operator in &operators {
            host::signal(operator, "operator", "KILL")
                .with_context(|| format!("failed to kill {}", operator.name_any()))?;
        }
        for _ in 0..12 {
            let jobs = (0..10).map(|_| crate::broker::new_job("outage", &json!({ "sleep": 0.5 }))).collect();
            for answer in driver.enqueue(&queue, jobs).await? {
                answer?;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        eventually(
            "the workers to empty the queue without an API server",
            Duration::from_secs(30),
            || async {
                let stats = driver.stats(&queue).await?;
                ensure!(stats.ready == Some(0) && stats.active == Some(0), "{stats:?}");
                Ok(())
            },
        )
        .await?;
        ensure!(begun.elapsed() >= Duration::from_secs(60), "that was no minute");
        anyhow::Ok(())
    }
    .await;
    let up = seconds()?;
    component(&world, "start").await?;
    worked?;
    let ledger = eventually("the API server", END, || world.ledger()).await?;
    ledger.ran_exactly_once("outage", 120)?;
    let during =
        ledger.of("end").filter(|entry| entry.job_type == "outage" && entry.at > down && entry.at < up);
    ensure!(during.count() == 120, "some jobs ended only after the outage");
    ensure!(ledger.highest_attempt("outage") == 1, "an attempt was consumed");
    eventually("an operator", END, || world.scale_operator(1)).await?;
    world.workflow_ends("waits", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    ledger.ran_exactly_once("long", 1)?;
    ledger.ran_exactly_once("last", 1)
}

/// The deadline passes while no operator is there; the job was done before it. What counts is when it was done.
async fn work_done_in_time_is_no_missed_deadline_after_an_outage(world: World) -> Result<()> {
    let workflow = json!({
        "deadline": "45s",
        "steps": [{ "name": "long", "job": { "type": "long", "payload": { "gate": "long" } } }],
    });
    let warm = manifests::worker("work", &json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } }));
    let away = async {
        stage(&world, &json!({ "timeout": "170s" }), &[warm]).await?;
        world.worker_has("work", 1, END).await?;
        let applied = Instant::now();
        world.apply(&manifests::list(&[manifests::workflow("timely", "work", &workflow)])).await?;
        started(&world, "long", 1).await?;
        world.scale_operator(0).await?;
        eventually("the gate to open", END, || world.open_gate("long")).await?;
        world.ledger_shows("the job to end", END, |ledger| ledger.ran_exactly_once("long", 1)).await?;
        ensure!(applied.elapsed() < Duration::from_secs(44), "the job was not done in time");
        always("nobody to decide", Duration::from_secs(46).saturating_sub(applied.elapsed()), || async {
            let workflow: Workflow = world.get("timely").await?;
            let phase = workflow.status.unwrap_or_default().phase;
            ensure!(phase == WorkflowPhase::Running, "it is {phase:?}");
            Ok(())
        })
        .await?;
        world.scale_operator(1).await?;
        world.workflow_ends("timely", WorkflowPhase::Succeeded, END).await?;
        Ok(())
    };
    world.disturbing(away).await
}

/// A running Workflow is deleted while no operator is there: the next one cancels what still waits before it lets go.
async fn workflow_deleted_without_an_operator_starts_nothing_more(world: World) -> Result<()> {
    const MEMBERS: usize = 400;
    let members = vec![json!({ "type": "member", "payload": { "sleep": 3 } }); MEMBERS];
    let callback = || job("callback", json!({}));
    let workflow = json!({
        "steps": [{ "name": "many", "batch": { "jobs": members, "catch": callback(), "finally": callback() } }],
        "catch": callback(), "finally": callback(),
    });
    let one = manifests::worker("work", &json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } }));
    let away = async {
        stage(&world, &json!({}), &[one, manifests::workflow("doomed", "work", &workflow)]).await?;
        started(&world, "member", 10).await?;
        world.scale_operator(0).await?;
        world.api::<Workflow>().delete("doomed", &DeleteParams::default()).await?;
        world.scale_operator(1).await?;
        eventually("the Workflow to be gone", Duration::from_secs(90), || async {
            ensure!(world.api::<Workflow>().get_opt("doomed").await?.is_none(), "it is there");
            Ok(())
        })
        .await?;
        let starts = world.ledger().await?.starts("member");
        ensure!(starts < MEMBERS, "all members were run");
        always("nothing to be started", Duration::from_secs(8), || async {
            let ledger = world.ledger().await?;
            let (members, callbacks) = (ledger.starts("member"), ledger.starts("callback"));
            ensure!(
                members == starts && callbacks == 0,
                "{members} members, not {starts}; {callbacks} callbacks"
            );
            Ok(())
        })
        .await
    };
    world.disturbing(away).await
}
