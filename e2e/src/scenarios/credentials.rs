//! Passwords of servers change while work goes on.

use super::{scenarios, workflow::job};
use crate::{World, manifests, servers, wait::eventually};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use longshore_crds::WorkflowPhase;
use serde_json::{Value, json};
use std::time::Duration;

scenarios![
    changed_password_is_taken_up_on_redis[needs_host],
    changed_password_is_taken_up_on_postgres[needs_host],
];

/// A pod sees a changed Secret up to a minute and a half late.
const END: Duration = Duration::from_secs(240);
const OLD: &str = "the-old-password";
const NEW: &str = "the-new-password";

/// The server refuses the old password and cuts everybody off; the Broker says so and names the Secret. With the new one in
/// the Secret, operator and pods go on as they are.
async fn changed_password_is_taken_up_on_redis(world: World) -> Result<()> {
    let user = world.namespace.clone();
    let (old, new) = (format!(">{OLD}"), format!(">{NEW}"));
    let set = |more: &[&'static str], password: &str| {
        let start = ["ACL", "SETUSER", user.as_str(), "on"].into_iter();
        let words = start.chain(more.iter().copied()).chain([password]);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    servers::start("redis").await?;
    servers::client("redis", &set(&["~*", "&*", "+@all"], &old)).await?;
    let cut_off = ["CLIENT", "KILL", "USER", &user].map(str::to_owned);
    let spec = json!({ "redis": { "urlFrom": { "name": "server", "key": "url" }, "prefix": user } });
    let change = async {
        servers::client("redis", &set(&["resetpass"], &new)).await?;
        servers::client("redis", &cut_off).await
    };
    let outcome = goes_on(&world, "redis", &user, &spec, change).await;
    servers::client("redis", &["ACL", "DELUSER", &user].map(str::to_owned)).await?;
    outcome
}

/// The same on PostgreSQL.
async fn changed_password_is_taken_up_on_postgres(world: World) -> Result<()> {
    // The namespace's own part: a schema's name is shorter than a namespace may be.
    let user = format!("rotated_{}", world.namespace.rsplit('-').next().unwrap_or_default());
    let run = |sql: String| async move { servers::client("postgres", &["-c".to_owned(), sql]).await };
    servers::start("postgres").await?;
    run(format!("create role {user} login password '{OLD}'")).await?;
    run(format!("grant create, connect on database longshore to {user}")).await?;
    let spec = json!({ "postgres": { "urlFrom": { "name": "server", "key": "url" }, "schema": user } });
    let change = async {
        run(format!("alter role {user} password '{NEW}'")).await?;
        run(format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'")).await
    };
    goes_on(&world, "postgres", &user, &spec, change).await
}

async fn goes_on(
    world: &World,
    server: &str,
    user: &str,
    spec: &Value,
    change: impl Future<Output = Result<String>>,
) -> Result<()> {
    let url = servers::local_url(server).await?;
    let (_, place) = url.rsplit_once('@').context("the server's URL has no password")?;
    let scheme = if server == "redis" { "redis" } else { "postgres" };
    let secret = |password: &str| {
        let url = format!("{scheme}://{user}:{password}@{place}");
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "server" }, "stringData": { "url": url } })
    };
    let mut items = manifests::ledger();
    let mut broker = manifests::broker("default");
    broker["spec"] = spec.clone();
    let always_one = json!({ "scaling": { "minReplicas": 1, "maxReplicas": 1 } });
    items.extend([
        secret(OLD),
        broker,
        manifests::queue("work", &json!({})),
        manifests::worker("work", &always_one),
        chain("before"),
    ]);
    world.apply(&manifests::list(&items)).await?;
    world.workflow_ends("before", WorkflowPhase::Succeeded, END).await?;
    let pods = world.worker_has("work", 1, END).await?;
    let operators = restarts(&world.operator_pods().await?);

    change.await?;
    world.says("broker", "default", &["Unauthorized", "server", "url"]).await?;
    world.apply(&manifests::list(&[secret(NEW), chain("after")])).await?;
    world.says("broker", "default", &["Connected"]).await?;
    world.workflow_ends("after", WorkflowPhase::Succeeded, END).await?;
    eventually("the pods to be those of before", Duration::from_secs(10), || async {
        let now = world.worker_pods("work").await?;
        ensure!(restarts(&now) == restarts(&pods), "they were restarted");
        ensure!(restarts(&world.operator_pods().await?) == operators, "the operator was restarted");
        Ok(())
    })
    .await?;
    let objects =
        ["get", "longshore,events,configmaps,deployments,pods", "-o", "json", "-n", &world.namespace];
    let text = world.cluster.kubectl(&objects).await?;
    ensure!(!text.contains(OLD) && !text.contains(NEW), "a password stands outside of its Secret");
    for pod in &pods {
        let log = ["logs", &pod.name_any(), "-c", "longshore-sidecar", "-n", &world.namespace];
        let log = world.cluster.kubectl(&log).await?;
        ensure!(!log.contains(OLD) && !log.contains(NEW), "a password stands in a sidecar's log");
    }
    Ok(())
}

fn chain(name: &str) -> Value {
    let steps =
        json!([{ "name": "one", "job": { "type": name } }, { "name": "two", "job": { "type": name } }]);
    manifests::workflow(name, "work", &json!({ "steps": steps, "then": job("then", json!({})) }))
}

/// Which pods these are, and how often each of their containers was started anew.
fn restarts(pods: &[Pod]) -> Vec<(String, i32)> {
    let count = |pod: &Pod| {
        let status = pod.status.as_ref();
        let containers = status.and_then(|status| status.container_statuses.clone()).unwrap_or_default();
        let sidecars = status.and_then(|status| status.init_container_statuses.clone()).unwrap_or_default();
        containers.iter().chain(&sidecars).map(|status| status.restart_count).sum()
    };
    let mut all: Vec<_> = pods.iter().map(|pod| (pod.name_any(), count(pod))).collect();
    all.sort();
    all
}
