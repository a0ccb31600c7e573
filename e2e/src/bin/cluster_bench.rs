//! Figures on the cluster: latency through broker, sidecar and app; a chain's pace; the wake-up; memory at rest.
//!
//! Benchmarks, not tests: it prints a table, writes JSON to the file that it is given, and fails only when something can't be measured.
#![expect(clippy::print_stdout, reason = "it talks to a person")]

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use longshore_crds::WorkflowPhase;
use longshore_drivers::{Driver, NewJob, Payload};
use longshore_e2e::{World, cluster::Cluster, host, manifests};
use serde_json::json;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const NAMESPACE: &str = "longshore-bench";

#[tokio::main]
async fn main() -> Result<()> {
    let file = std::env::args().nth(1);
    let world = World { cluster: Cluster::connect().await?, namespace: NAMESPACE.to_owned() };
    world.create().await?;
    let outcome = measure(&world).await;
    world.delete().await?;
    let rows = outcome?;
    println!("{:<62} {:>9} {:>9} {:>9}", "figure", "p50", "p99", "goal p50");
    for Row { name, p50, p99, goal } in &rows {
        let goal = goal.map_or_else(String::new, |goal| format!("{goal:.1}"));
        println!("{name:<62} {p50:>9.2} {p99:>9.2} {goal:>9}");
    }
    if let Some(file) = file {
        let json: Vec<_> = rows
            .iter()
            .map(|Row { name, p50, p99, goal }| json!({ "figure": name, "p50": p50, "p99": p99, "goalP50": goal }))
            .collect();
        std::fs::write(&file, serde_json::to_string_pretty(&json)?)
            .with_context(|| format!("failed to write {file}"))?;
    }
    Ok(())
}

/// One figure, in milliseconds or MiB.
struct Row {
    name: String,
    p50: f64,
    p99: f64,
    /// What the project wants of its median.
    goal: Option<f64>,
}

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
    let mut rows = raw(world).await?;
    rows.extend([latency(world).await?, chain(world).await?, wake_up(world).await?]);
    rows.extend(memory(world).await?);
    rows.extend(images()?);
    Ok(rows)
}

/// What the parts cost alone: a durable enqueue, a POST to the handler, a write to the API server.
async fn raw(world: &World) -> Result<Vec<Row>> {
    let (queue, driver) = (world.physical("cold").await?, world.driver().await?);
    let pod = world.worker_pods("work").await?.into_iter().next().context("no pod of the Worker")?;
    let address = pod.status.and_then(|status| status.pod_ip).context("the pod has no address")?;
    let handler: SocketAddr = format!("{address}:8080").parse()?;
    let configs: Api<ConfigMap> = world.api();
    let mut rows = Vec::new();
    let mut waits = [Vec::new(), Vec::new(), Vec::new()];
    for number in 0..200 {
        let began = Instant::now();
        driver.stats(&queue).await?;
        waits[0].push(millis(began));
        let began = Instant::now();
        post(handler).await?;
        waits[1].push(millis(began));
        let began = Instant::now();
        let patch = json!({ "metadata": { "annotations": { "bench": number.to_string() } } });
        configs.patch("handlers", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        waits[2].push(millis(began));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let names = [
        "raw: a request to the broker that changes nothing, ms",
        "raw: a POST to the Python handler, new connection, ms",
        "raw: a patch at the API server, etcd with fsync, ms",
    ];
    for (name, values) in names.into_iter().zip(waits) {
        rows.push(row(name, None, values));
    }
    Ok(rows)
}

/// A job as a sidecar would push it; its ledger line is part of the cost.
async fn post(handler: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(handler).await?;
    stream.set_nodelay(true)?;
    let request = "POST /jobs HTTP/1.1\r\nHost: h\r\nJob-Id: raw\r\nJob-Type: raw\r\nJob-Attempt: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "the handler answered {:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
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
    Ok(row("idle enqueue → handler start, ms", Some(2.5), waits.collect()))
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
    Ok(row("20-step chain, a step, ms", Some(25.0), gaps))
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
    Ok(row("enqueue → Deployment patched (goal is p99 ≤ 250), ms", Some(250.0), waits))
}

/// Resident memory of processes that have nothing to do.
async fn memory(world: &World) -> Result<Vec<Row>> {
    let sidecar = world.worker_pods("work").await?.into_iter().next().context("no pod of the Worker")?;
    let broker: Pod = world.get("default-broker-0").await?;
    let pods: Api<Pod> = Api::namespaced(world.cluster.client.clone(), "longshore-system");
    let selector = ListParams::default().labels("app.kubernetes.io/component=operator");
    let operator = pods.list(&selector).await?.items.into_iter().next().context("no operator")?;
    let mut rows = Vec::new();
    for (name, pod, container, goal) in [
        ("sidecar resident, MiB", &sidecar, "longshore-sidecar", Some(10.0)),
        ("operator resident, MiB", &operator, "operator", Some(40.0)),
        ("broker resident, MiB", &broker, "broker", None),
    ] {
        rows.push(row(name, goal, vec![host::resident_mib(pod, container)?]));
    }
    Ok(rows)
}

/// The images as they are loaded.
fn images() -> Result<Vec<Row>> {
    let cache = std::env::var("LONGSHORE_CACHE")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cache/longshore")))?;
    let size = |name: &str| -> Result<Row> {
        let file = format!("{cache}/images/longshore-{name}_dev.tar");
        let bytes = std::fs::metadata(&file).with_context(|| format!("no image {file}"))?.len();
        #[expect(clippy::cast_precision_loss, reason = "a size for people")]
        let mib = bytes as f64 / f64::from(1 << 20);
        Ok(row(&format!("image {name}, MiB"), Some(20.0), vec![mib]))
    };
    ["operator", "worker-sidecar", "broker"].into_iter().map(size).collect()
}

fn row(name: &str, goal: Option<f64>, mut values: Vec<f64>) -> Row {
    values.sort_by(f64::total_cmp);
    Row { name: name.to_owned(), p50: percentile(&values, 50), p99: percentile(&values, 99), goal }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::disallowed_methods, reason = "handlers in pods compare it with their own wall clock")]
fn seconds_since_epoch() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
