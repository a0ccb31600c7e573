//! Workers follow the work.

use super::{scenarios, workflow::stage};
use crate::{World, wait::eventually};
use anyhow::{Result, ensure};
use longshore_crds::Worker;
use serde_json::json;
use std::time::Duration;

scenarios![zero_to_three_to_zero, kubectl_scale_and_back];

/// From nothing to three pods in one jump, and back to nothing when the work is done.
async fn zero_to_three_to_zero(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    world.enqueue("work", vec![("slow", json!({ "sleep": 1 })); 150]).await?;
    eventually("three pods", Duration::from_secs(90), || async {
        let worker: Worker = world.get("work").await?;
        let status = worker.status.unwrap_or_default();
        ensure!(status.ready_replicas == 3, "{} ready of {}", status.ready_replicas, status.desired_replicas);
        Ok(())
    })
    .await?;
    world
        .ledger_shows("the jobs to run", Duration::from_secs(90), |ledger| {
            ledger.ran_exactly_once("slow", 150)
        })
        .await?;
    world.worker_has("work", 0, Duration::from_secs(90)).await?;
    Ok(())
}

/// `kubectl scale` pins the number of pods; without the field scaling takes over again.
async fn kubectl_scale_and_back(world: World) -> Result<()> {
    stage(&world, &json!({}), &[]).await?;
    world.physical("work").await?;
    world
        .cluster
        .kubectl(&["scale", "-n", &world.namespace, "workers.longshore.dev/work", "--replicas=2"])
        .await?;
    world.worker_has("work", 2, Duration::from_secs(90)).await?;
    let worker: Worker = world.get("work").await?;
    let conditions = worker.status.unwrap_or_default().conditions;
    let pinned =
        conditions.iter().any(|condition| condition.type_ == "ScalingActive" && condition.reason == "Pinned");
    ensure!(pinned, "ScalingActive doesn't say Pinned: {conditions:?}");
    let patch = r#"[{"op":"remove","path":"/spec/replicas"}]"#;
    world
        .cluster
        .kubectl(&["patch", "-n", &world.namespace, "workers.longshore.dev/work", "--type=json", "-p", patch])
        .await?;
    world.worker_has("work", 0, Duration::from_secs(90)).await?;
    Ok(())
}
