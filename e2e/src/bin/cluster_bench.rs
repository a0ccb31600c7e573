//! Figures on the cluster: latency through broker, sidecar and app; a chain's pace; the wake-up; memory at rest.
//!
//! Benchmarks, not tests: it prints a table and one line of JSON, and fails only when something can't be measured.
#![expect(clippy::print_stdout, reason = "it talks to a person")]

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use longshore_crds::WorkflowPhase;
use longshore_drivers::{Driver, NewJob, Payload};
use longshore_e2e::{World, cluster::Cluster, host, manifests};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const NAMESPACE: &str = "longshore-bench";

#[tokio::main]
async fn main() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let metadata = ObjectMeta { name: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() };
    namespaces.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
    let world = World { cluster, namespace: NAMESPACE.to_owned() };
    let outcome = measure(&world).await;
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await?;
    let rows = outcome?;
    println!("{:<58} {:>10} {:>10}", "figure", "p50", "p99");
    for (name, p50, p99) in &rows {
        println!("{name:<58} {p50:>10.2} {p99:>10.2}");
    }
    let json: Vec<_> =
        rows.iter().map(|(name, p50, p99)| json!({ "figure": name, "p50": p50, "p99": p99 })).collect();
    println!("{}", Value::Array(json));
    Ok(())
}

type Row = (&'static str, f64, f64);

async fn measure(world: &World) -> Result<Vec<Row>> {
    let mut items = manifests::ledger();
    let warm = json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } });
    items.extend([
        manifests::broker("default"),
        manifests::queue("work", &json!({})),
        manifests::worker("work", &warm),
        manifests::queue("cold", &json!({})),
        manifests::worker("cold", &json!({ "scaling": { "maxReplicas": 1, "idleTimeout": "1s" } })),
    ]);
    world.apply(&manifests::list(&items)).await?;
    world.worker_has("work", 1, Duration::from_secs(120)).await?;
    let mut rows = vec![latency(world).await?, chain(world).await?, wake_up(world).await?];
    rows.extend(memory(world).await?);
    Ok(rows)
}

/// At 50 jobs a second: from before the enqueue to the first line of the handler.
async fn latency(world: &World) -> Result<Row> {
    let (name, driver) = (world.physical("work").await?, world.driver().await?);
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..500 {
        ticks.tick().await;
        let payload = json!({ "note": seconds_since_epoch() }).to_string();
        driver.enqueue(&name, vec![NewJob::new("latency", Payload::json(payload))]).await?;
    }
    let ledger = world
        .ledger_shows("the jobs to run", Duration::from_secs(60), |ledger| {
            ledger.ran_exactly_once("latency", 500)
        })
        .await?;
    let starts = ledger.of("start").filter(|entry| entry.job_type == "latency");
    let waits = starts.filter_map(|entry| Some((entry.at - entry.payload.as_ref()?.as_f64()?) * 1000.0));
    Ok(row("idle enqueue → handler start, ms (Python handler)", waits.collect()))
}

/// A chain of 20 steps that do nothing: from the start of one step to the start of the next.
async fn chain(world: &World) -> Result<Row> {
    let steps: Vec<_> =
        (0..20).map(|step| json!({ "name": format!("s{step}"), "job": { "type": "chain" } })).collect();
    for round in 0..3 {
        let workflow = manifests::workflow(&format!("chain-{round}"), "work", &json!({ "steps": steps }));
        world.apply(&manifests::list(&[workflow])).await?;
        world
            .workflow_ends(&format!("chain-{round}"), WorkflowPhase::Succeeded, Duration::from_secs(60))
            .await?;
    }
    let ledger = world.ledger().await?;
    let starts: Vec<_> = ledger.of("start").filter(|entry| entry.job_type == "chain").collect();
    let same = |pair: &&[&longshore_e2e::ledger::Entry]| {
        pair[0].id.split('.').next() == pair[1].id.split('.').next()
    };
    let gaps = starts.windows(2).filter(same).map(|pair| (pair[1].at - pair[0].at) * 1000.0).collect();
    Ok(row("20-step chain, a step, ms", gaps))
}

/// A Worker at zero: from before the enqueue until its Deployment asks for a pod.
async fn wake_up(world: &World) -> Result<Row> {
    let api: Api<Deployment> = world.api();
    let (name, driver) = (world.physical("cold").await?, world.driver().await?);
    let mut waits = Vec::new();
    for _ in 0..10 {
        // A pod on its way out may still take the job: nobody has to be woken then.
        world.worker_has("cold", 0, Duration::from_secs(90)).await?;
        let began = Instant::now();
        driver.enqueue(&name, vec![NewJob::new("cold", Payload::json("{}"))]).await?;
        while api.get("cold").await?.spec.and_then(|spec| spec.replicas) == Some(0) {
            ensure!(began.elapsed() < Duration::from_secs(30), "nobody woke the Worker");
        }
        waits.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(row("enqueue → Deployment patched, ms", waits))
}

/// Resident memory of processes that have nothing to do.
async fn memory(world: &World) -> Result<Vec<Row>> {
    let sidecar = world.worker_pods("work").await?.into_iter().next().context("no pod of the Worker")?;
    let broker: Pod = world.get("default-broker-0").await?;
    let pods: Api<Pod> = Api::namespaced(world.cluster.client.clone(), "longshore-system");
    let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
    let operator = pods.list(&selector).await?.items.into_iter().next().context("no operator")?;
    let mut rows = Vec::new();
    for (name, pod, container) in [
        ("sidecar resident, MiB", &sidecar, "longshore-sidecar"),
        ("operator resident, MiB", &operator, "operator"),
        ("broker resident, MiB", &broker, "broker"),
    ] {
        let resident = host::resident_mib(pod, container)?;
        rows.push((name, resident, resident));
    }
    Ok(rows)
}

fn row(name: &'static str, mut values: Vec<f64>) -> Row {
    values.sort_by(f64::total_cmp);
    (name, percentile(&values, 50), percentile(&values, 99))
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::disallowed_methods, reason = "handlers in pods compare it with their own wall clock")]
fn seconds_since_epoch() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
