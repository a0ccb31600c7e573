//! The example that everybody starts with, on each kind of Broker.

use super::scenarios;
use crate::{World, cluster::root, manifests, servers, wait::eventually};
use anyhow::{Context, Result, ensure};
use longshore_crds::{Broker, Worker, WorkflowPhase};
use serde_json::{Value, json};
use std::{fs, time::Duration};

scenarios![hello_chain, hello_on_redis, hello_on_postgres];

/// What the example says of its Broker, beside its name.
const EMBEDDED: &str = "spec:\n  embedded: {}\n";

/// `kubectl apply` of the example: the Worker goes 0 → N, the chain with its batch succeeds, the Worker goes back to 0.
async fn hello_chain(world: World) -> Result<()> {
    let folder = root().join("docs/examples/hello");
    world.cluster.kubectl(&["apply", "-n", &world.namespace, "-f", &folder.to_string_lossy()]).await?;
    succeeds_and_rests(&world).await
}

/// The same, with nothing but the Broker's manifest changed.
async fn hello_on_redis(world: World) -> Result<()> {
    let spec =
        json!({ "redis": { "urlFrom": { "name": "server", "key": "url" }, "prefix": world.namespace } });
    hello_on(&world, "redis", &spec).await
}

/// The same, with nothing but the Broker's manifest changed.
async fn hello_on_postgres(world: World) -> Result<()> {
    let schema = world.namespace.replace('-', "_");
    let spec = json!({ "postgres": { "urlFrom": { "name": "server", "key": "url" }, "schema": schema } });
    hello_on(&world, "postgres", &spec).await
}

async fn hello_on(world: &World, server: &str, spec: &Value) -> Result<()> {
    let url = servers::url(&world.cluster, server).await?;
    let folder = root().join("docs/examples/hello");
    let example = fs::read_to_string(folder.join("hello.yaml"))?;
    ensure!(
        example.matches(EMBEDDED).count() == 1,
        "the example has another Broker than this scenario thinks"
    );
    // JSON is YAML too.
    let example = example.replace(EMBEDDED, &format!("spec: {spec}\n"));
    // The Broker waits for its Secret and names it, then takes it up by itself.
    world.apply(&example).await?;
    world.says("broker", "default", &["WaitingForSecret", "urlFrom", "server"]).await?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "server" }, "stringData": { "url": url },
    });
    world.apply(&manifests::list(&[secret])).await?;
    world.apply(&fs::read_to_string(folder.join("handler.yaml"))?).await?;
    succeeds_and_rests(world).await?;
    let broker: Broker = world.get("default").await?;
    let status = broker.status.context("the Broker has no status")?;
    ensure!(status.backend.as_deref() == Some(server), "its backend is {:?}", status.backend);
    ensure!(status.version.is_some() && status.backend_id.is_some(), "it doesn't say what it is: {status:?}");
    ensure!(status.capabilities.is_some(), "it doesn't say what it can do");
    let secret = password(&url).context("the URL of the server has no password")?;
    let text = serde_json::to_string(&status)?;
    ensure!(!text.contains(secret), "its password stands in the status");
    Ok(())
}

/// The password in a URL.
fn password(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    Some(password).filter(|password| !password.is_empty())
}

async fn succeeds_and_rests(world: &World) -> Result<()> {
    let workflow = world.workflow_ends("hello", WorkflowPhase::Succeeded, Duration::from_secs(180)).await?;
    let status = workflow.status.unwrap_or_default();
    ensure!(status.progress == format!("{0}/{0}", status.steps.len()), "progress is {}", status.progress);
    eventually("the Worker to go back to zero", Duration::from_secs(120), || async {
        let worker: Worker = world.get("hello").await?;
        let status = worker.status.unwrap_or_default();
        ensure!(status.desired_replicas == 0 && status.replicas == 0, "{} pods", status.replicas);
        Ok(())
    })
    .await
}
