//! Objects and installations that go away, are upgraded, and come back.

use super::{
    scenarios,
    workflow::{job, stage},
};
use crate::{
    World,
    installation::NAMESPACE,
    manifests,
    wait::{always, eventually},
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::DeleteParams};
use longshore_crds::{Queue, Worker, Workflow, WorkflowPhase};
use longshore_drivers::Driver;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

scenarios![
    running_workflow_deleted_starts_nothing_more,
    namespace_with_running_work_goes_away,
    namespace_with_running_work_goes_away_after_uninstall[alone],
    pruned_queue_keeps_its_data[needs_host],
    deleted_queue_with_policy_delete_takes_its_jobs_along[needs_host],
    upgrade_with_another_sidecar_image_restarts_no_worker[needs_host, alone],
    uninstall_and_reinstall_keep_resources_and_work[alone],
    default_installation_is_verified_as_its_notes_say[alone],
];

const END: Duration = Duration::from_secs(180);

async fn started(world: &World, kind: &str, count: usize) -> Result<()> {
    let what = format!("{count} of {kind} to be started");
    world
        .ledger_shows(&what, END, |ledger| {
            ensure!(ledger.starts(kind) >= count, "{} started", ledger.starts(kind));
            Ok(())
        })
        .await?;
    Ok(())
}

/// A batch of `count` jobs of 3 s each, with all callbacks.
fn slow_batch(count: usize) -> Value {
    let members = vec![json!({ "type": "member", "payload": { "sleep": 3 } }); count];
    let callback = || job("callback", json!({}));
    json!({
        "steps": [
            { "name": "many", "batch": { "jobs": members, "then": callback(), "catch": callback(), "finally": callback() } },
            { "name": "last", "job": { "type": "last" } },
        ],
        "then": callback(), "catch": callback(), "finally": callback(),
    })
}

/// The jobs that wait are cancelled, the object goes, no callback is run, and nothing is left on the broker.
async fn running_workflow_deleted_starts_nothing_more(world: World) -> Result<()> {
    let one = json!({ "scaling": { "maxReplicas": 1 } });
    let more = [manifests::worker("work", &one), manifests::workflow("doomed", "work", &slow_batch(150))];
    stage(&world, &json!({}), &more).await?;
    started(&world, "member", 10).await?;
    world.api::<Workflow>().delete("doomed", &DeleteParams::default()).await?;
    eventually("the Workflow to be gone", Duration::from_secs(60), || async {
        ensure!(world.api::<Workflow>().get_opt("doomed").await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    let starts = world.ledger().await?.starts("member");
    ensure!(starts < 150, "all members were run");
    always("nothing to be started", Duration::from_secs(6), || async {
        let ledger = world.ledger().await?;
        ensure!(ledger.starts("member") == starts, "{} members, not {starts}", ledger.starts("member"));
        ensure!(ledger.starts("callback") + ledger.starts("last") == 0, "something else ran");
        Ok(())
    })
    .await?;
    world.api::<Queue>().get("work").await?.status.context("the Queue has no status")?;
    Ok(())
}

async fn goes_away(world: &World) -> Result<()> {
    world.delete().await?;
    eventually("the namespace to be gone", Duration::from_secs(120), || async {
        let there = world.namespaces().get_opt(&world.namespace).await?;
        let conditions = there.as_ref().and_then(|it| it.status.clone()).and_then(|status| status.conditions);
        ensure!(there.is_none(), "it is there: {conditions:?}");
        Ok(())
    })
    .await
}

/// A namespace is deleted while a Workflow, its Worker, Queue and Broker are at work: nothing holds it.
async fn namespace_with_running_work_goes_away(world: World) -> Result<()> {
    let doomed = world.sibling("x").await?;
    stage(&doomed, &json!({}), &[manifests::workflow("doomed", "work", &slow_batch(40))]).await?;
    started(&doomed, "member", 5).await?;
    goes_away(&doomed).await
}

/// The same without an operator: uninstalling left nothing that only it could take away.
async fn namespace_with_running_work_goes_away_after_uninstall(world: World) -> Result<()> {
    let gone = async {
        let doomed = world.sibling("x").await?;
        stage(&doomed, &json!({}), &[manifests::workflow("doomed", "work", &slow_batch(40))]).await?;
        started(&doomed, "member", 5).await?;
        world.helm_uninstall().await?;
        goes_away(&doomed).await
    };
    world.disturbing(gone).await
}

/// Ten jobs on the suspended Queue `kept`, which is then deleted.
async fn prune(world: &World, policy: &str) -> Result<()> {
    stage(world, &json!({}), &[]).await?;
    let queue = kept(&json!({ "suspend": true, "deletionPolicy": policy }));
    world.apply(&manifests::list(&[queue, manifests::worker("kept", &json!({}))])).await?;
    world.enqueue("kept", vec![("kept", json!({})); 10]).await?;
    world.api::<Queue>().delete("kept", &DeleteParams::default()).await?;
    eventually("the Queue to be gone", Duration::from_secs(60), || async {
        ensure!(world.api::<Queue>().get_opt("kept").await?.is_none(), "it is there");
        Ok(())
    })
    .await
}

fn kept(policy: &Value) -> Value {
    manifests::queue("kept", policy)
}

/// A tool prunes a Queue and puts it back: its data is there and belongs to the object that is gone, so nothing runs until
/// somebody says that it shall be taken over.
async fn pruned_queue_keeps_its_data(world: World) -> Result<()> {
    prune(&world, "Retain").await?;
    world.apply(&manifests::list(&[kept(&json!({}))])).await?;
    world.says("queue", "kept", &["OwnedByAnother", "adopt"]).await?;
    world.ledger_shows("a ledger", END, |_| Ok(())).await?;
    always("nothing to run that nobody took over", Duration::from_secs(5), || async {
        ensure!(world.ledger().await?.starts("kept") == 0, "a job ran");
        Ok(())
    })
    .await?;
    world.apply(&manifests::list(&[kept(&json!({ "adopt": true }))])).await?;
    world.ledger_shows("the kept jobs to run", END, |ledger| ledger.ran_exactly_once("kept", 10)).await?;
    Ok(())
}

/// Who asks for it gets an empty queue.
async fn deleted_queue_with_policy_delete_takes_its_jobs_along(world: World) -> Result<()> {
    prune(&world, "Delete").await?;
    world.apply(&manifests::list(&[kept(&json!({}))])).await?;
    let stats = world.driver().await?.stats(&world.physical("kept").await?).await?;
    ensure!(stats.ready == Some(0), "{stats:?}");
    world.enqueue("kept", vec![("new", json!({})); 5]).await?;
    world.ledger_shows("new jobs to run", END, |ledger| ledger.ran_exactly_once("new", 5)).await?;
    ensure!(world.ledger().await?.starts("kept") == 0, "a deleted job ran");
    Ok(())
}

fn uids(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().filter_map(ResourceExt::uid).collect()
}

fn sidecar_image(pod: &Pod) -> Option<String> {
    let containers = pod.spec.as_ref()?.init_containers.as_ref()?;
    containers.iter().find(|container| container.name == "longshore-sidecar")?.image.clone()
}

/// An upgrade touches no pod of a Worker by itself; its next roll-out takes the new sidecar along.
async fn upgrade_with_another_sidecar_image_restarts_no_worker(world: World) -> Result<()> {
    let warm = |label: &str| {
        let template = json!({ "metadata": { "labels": { "release": label } } });
        manifests::worker(
            "work",
            &json!({ "scaling": { "minReplicas": 2, "maxReplicas": 2 }, "template": template }),
        )
    };
    stage(&world, &json!({}), &[warm("one")]).await?;
    let pods = world.worker_has("work", 2, END).await?;
    let image = pods.first().and_then(sidecar_image).context("no sidecar")?;
    let other = format!("{}:other", image.rsplit_once(':').context("the image has no tag")?.0);
    world.cluster.control(&["ctr", "images", "tag", "--force", &image, &other]).await?;
    let upgraded = async {
        world.helm_install(&[&format!("sidecar.image={other}")]).await?;
        always("no pod to be replaced", Duration::from_secs(15), || async {
            let now = world.worker_pods("work").await?;
            ensure!(uids(&now) == uids(&pods), "the pods are others");
            Ok(())
        })
        .await?;
        world.enqueue("work", vec![("job", json!({})); 20]).await?;
        world.ledger_shows("jobs to run", END, |ledger| ledger.ran_exactly_once("job", 20)).await?;
        world.apply(&manifests::list(&[warm("two")])).await?;
        eventually("the next roll-out to bring the new sidecar", END, || async {
            let now = world.worker_has("work", 2, Duration::from_secs(1)).await?;
            let images: BTreeSet<_> = now.iter().filter_map(sidecar_image).collect();
            ensure!(images == BTreeSet::from([other.clone()]), "{images:?}");
            Ok(())
        })
        .await
    };
    world.disturbing(upgraded).await
}

/// `helm uninstall` in the middle of a chain leaves objects, pods and data; after `helm install` the chain ends, each
/// job having run once.
async fn uninstall_and_reinstall_keep_resources_and_work(world: World) -> Result<()> {
    let step =
        |n: usize| json!({ "name": format!("s{n}"), "job": { "type": "link", "payload": { "sleep": 1 } } });
    let chain = json!({ "steps": (0..10).map(step).collect::<Vec<_>>(), "then": job("then", json!({})) });
    stage(&world, &json!({}), &[manifests::workflow("chain", "work", &chain)]).await?;
    started(&world, "link", 3).await?;
    let uninstalled = async {
        world.helm_uninstall().await?;
        eventually("the operator to be gone", Duration::from_secs(60), || async {
            ensure!(world.operator_pods().await?.is_empty(), "one is left in {NAMESPACE}");
            Ok(())
        })
        .await?;
        let workflow: Workflow = world.get("chain").await?;
        ensure!(workflow.metadata.deletion_timestamp.is_none(), "the Workflow is being deleted");
        let (_, _): (Worker, Queue) = (world.get("work").await?, world.get("work").await?);
        always("the Worker's pods to stay", Duration::from_secs(10), || async {
            ensure!(!world.worker_pods("work").await?.is_empty(), "they are gone");
            Ok(())
        })
        .await?;
        world.helm_install(&[]).await?;
        world.workflow_ends("chain", WorkflowPhase::Succeeded, END).await?;
        let ledger = world.ledger().await?;
        ledger.ran_exactly_once("link", 10)?;
        ledger.ran_exactly_once("then", 1)
    };
    world.disturbing(uninstalled).await
}

/// What the chart installs when nothing is set: two operators and a Broker; the commands of its notes verify it.
async fn default_installation_is_verified_as_its_notes_say(world: World) -> Result<()> {
    let installed = async {
        world.helm_install(&["operator.replicas=2", "defaultBroker.enabled=true"]).await?;
        eventually("two operators", END, || async {
            let ready =
                world.operator_pods().await?.iter().filter(|pod| crate::scenario::is_ready(pod)).count();
            ensure!(ready == 2, "{ready} are ready");
            Ok(())
        })
        .await?;
        let notes = world.cluster.helm(&["get", "notes", "longshore", "--namespace", NAMESPACE]).await?;
        let mut commands = 0;
        for line in notes.lines().filter_map(|line| line.trim().strip_prefix("kubectl ")) {
            // The Broker is made by the operator, a moment after its start.
            let words: Vec<_> = line.split_whitespace().collect();
            eventually(&format!("kubectl {line}"), END, || async { world.cluster.kubectl(&words).await })
                .await?;
            commands += 1;
        }
        ensure!(commands == 3, "{commands} commands in the notes: {notes}");
        Ok(())
    };
    let outcome = world.disturbing(installed).await;
    for object in ["brokers.longshore.dev/default", "pvc/data-default-broker-0"] {
        let arguments = ["delete", object, "-n", NAMESPACE, "--ignore-not-found", "--timeout=90s"];
        world.cluster.kubectl(&arguments).await?;
    }
    outcome
}
