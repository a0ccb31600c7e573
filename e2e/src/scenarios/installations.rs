//! Several installations on one cluster, and a broker that they share.

use super::{
    scenarios,
    workflow::{job, stage},
};
use crate::{
    World,
    installation::NAMESPACE,
    ledger::Ledger,
    manifests,
    wait::{always, eventually},
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use longshore_crds::WorkflowPhase;
use serde_json::{Value, json};
use std::time::Duration;

scenarios![two_installations_share_one_broker[alone], two_namespaces_share_one_broker];

const END: Duration = Duration::from_secs(180);
const MEMBERS: usize = 40;

/// A queue whose jobs may wait at a gate for as long as an operator takes to go away.
fn patient() -> Value {
    json!({ "timeout": "170s" })
}

/// The workflow `same`: a batch with callbacks. It is called so in both installations.
fn same() -> Value {
    let members: Vec<_> = (0..MEMBERS)
        .map(|n| json!({ "type": "member", "payload": { "gate": "members", "result": n } }))
        .collect();
    let workflow = json!({
        "steps": [
            { "name": "first", "job": { "type": "first" } },
            { "name": "many", "batch": { "jobs": members, "then": job("sum", json!({ "note": "$(steps.many.results)" })) } },
        ],
        "then": job("then", json!({})),
        "finally": job("finally", json!({})),
    });
    manifests::workflow("same", "work", &workflow)
}

/// The Broker `default` as the other installation has it: that of `owner`, with a copy of its token.
async fn borrowed(owner: &World) -> Result<Vec<Value>> {
    let secret: Secret = eventually("the broker's token", END, || owner.get("default-broker-token")).await?;
    let token = secret.data.as_ref().and_then(|data| data.get("current")).context("no token")?;
    let token = String::from_utf8(token.0.clone())?;
    let url = format!("http://default-broker.{}.svc:7400", owner.namespace);
    Ok(vec![
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "borrowed" }, "stringData": { "token": token },
        }),
        json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "default" },
            "spec": { "http": { "url": url, "tokenFrom": { "name": "borrowed", "key": "token" } } },
        }),
    ])
}

async fn ended_once(world: &World) -> Result<()> {
    world.workflow_ends("same", WorkflowPhase::Succeeded, END).await?;
    let ledger = world.ledger().await?;
    for (kind, times) in [("first", 1), ("member", MEMBERS), ("sum", 1), ("then", 1), ("finally", 1)] {
        ledger.ran_exactly_once(kind, times)?;
    }
    let sum =
        ledger.of("start").find(|entry| entry.job_type == "sum").and_then(|entry| entry.payload.clone());
    let all: Vec<_> = (0..MEMBERS).collect();
    ensure!(sum == Some(json!(all)), "the batch's then got other results: {sum:?}");
    Ok(())
}

/// Two installations, each with its own namespace, have a Queue and a Workflow of the same name on the same broker. While
/// the one's operator is away its completions pile up beside those of the other: nobody takes them but itself.
async fn two_installations_share_one_broker(world: World) -> Result<()> {
    let (other, home) = (world.sibling("other").await?, world.sibling("home").await?);
    let shared = async {
        let outcome = side_by_side(&world, &other, &home.namespace).await;
        if outcome.is_err() {
            eprintln!("{}", crate::dump::dump(&world.cluster, &other.namespace).await);
        }
        // Before the first one looks after all namespaces again.
        let arguments = ["uninstall", "two", "--namespace", &home.namespace, "--wait", "--timeout", "2m"];
        outcome.and(world.cluster.helm(&arguments).await.map(drop))
    };
    let outcome = world.disturbing(shared).await;
    other.delete().await?;
    home.delete().await?;
    outcome
}

/// Two namespaces of one installation have a Queue and a Workflow of the same name on one broker. Whoever read the other's
/// completions would keep them until their lease of ten seconds ends.
async fn two_namespaces_share_one_broker(world: World) -> Result<()> {
    let other = world.sibling("other").await?;
    stage(&world, &patient(), &[same()]).await?;
    let mut items = manifests::ledger();
    items.extend(borrowed(&world).await?);
    items.extend([manifests::queue("work", &patient()), manifests::worker("work", &json!({})), same()]);
    other.apply(&manifests::list(&items)).await?;
    let outcome = together(&world, &other).await;
    if outcome.is_err() {
        eprintln!("{}", crate::dump::dump(&world.cluster, &other.namespace).await);
    }
    other.delete().await?;
    outcome
}

async fn together(world: &World, other: &World) -> Result<()> {
    for both in [world, other] {
        let some = |ledger: &Ledger| {
            ensure!(ledger.starts("member") > 0, "no member has started");
            Ok(())
        };
        both.ledger_shows("members to run", END, some).await?;
    }
    for both in [world, other] {
        eventually("the gate to open", END, || both.open_gate("members")).await?;
    }
    for both in [world, other] {
        ended_once(both).await?;
        let ledger = both.ledger().await?;
        let ends = ledger.of("end").filter(|entry| entry.job_type == "member").map(|entry| entry.at);
        let last = ends.fold(0.0, f64::max);
        let sum = ledger.of("start").find(|entry| entry.job_type == "sum").context("no sum")?.at;
        ensure!(sum - last < 8.0, "the batch's completions took {:.1} s", sum - last);
    }
    Ok(())
}

async fn side_by_side(world: &World, other: &World, home: &str) -> Result<()> {
    world.helm_install(&[&format!("watchNamespaces={{{}}}", world.namespace)]).await?;
    let watched = format!("watchNamespaces={{{}}}", other.namespace);
    let settings = ["installation=two", "crds.install=false", "rbac.aggregate=false", &watched];
    other.helm_release("two", home, &settings).await?;
    stage(world, &patient(), &[same()]).await?;
    let mut items = manifests::ledger();
    items.extend(borrowed(world).await?);
    items.extend([manifests::queue("work", &patient()), manifests::worker("work", &json!({})), same()]);
    other.apply(&manifests::list(&items)).await?;

    let some = |ledger: &Ledger| {
        ensure!(ledger.starts("member") > 0, "no member has started");
        Ok(())
    };
    world.ledger_shows("members to run", END, some).await?;
    // No member ends before the operator is away, so that it can't be the one that goes on.
    world.scale_operator(0).await?;
    for both in [world, other] {
        eventually("the gate to open", END, || both.open_gate("members")).await?;
    }
    ended_once(other).await?;
    let all = |ledger: &Ledger| ledger.ran_exactly_once("member", MEMBERS);
    world.ledger_shows("the members to end", END, all).await?;
    always("the other operator to leave them alone", Duration::from_secs(3), || async {
        ensure!(world.ledger().await?.starts("sum") == 0, "the callback ran");
        Ok(())
    })
    .await?;
    world.scale_operator(1).await?;
    ended_once(world).await?;
    for namespace in [NAMESPACE, home] {
        for counter in ["orphaned", "parked"] {
            let name = format!("longshore_workflow_completions_{counter}_total");
            let count = world.operator_counter(namespace, &name).await?;
            ensure!(count == 0.0, "{count} completions {counter} in {namespace}");
        }
    }
    Ok(())
}
