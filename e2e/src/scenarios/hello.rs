//! The example that everybody starts with.

use super::scenarios;
use crate::{World, cluster::root, wait::eventually};
use anyhow::{Result, ensure};
use longshore_crds::{Worker, WorkflowPhase};
use std::time::Duration;

scenarios![hello_chain];

/// `kubectl apply` of the example: the Worker goes 0 → N, the chain with its batch succeeds, the Worker goes back to 0.
async fn hello_chain(world: World) -> Result<()> {
    let folder = root().join("docs/examples/hello");
    world.cluster.kubectl(&["apply", "-n", &world.namespace, "-f", &folder.to_string_lossy()]).await?;
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
