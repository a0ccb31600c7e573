//! Pods of a Worker: what their sidecars say, and who goes first.

use crate::{
    context::Context,
    error::{Error, Result},
};
use futures::future::join_all;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use longshore_crds::label;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// More pods than this are not asked in one go.
const MAX_ASKED: usize = 50;
/// Bytes of one answer.
const MAX_ANSWER: usize = 64 * 1024;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What a sidecar says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    pub(super) in_flight: u32,
    pub(super) unsettled: u32,
    pub(super) faults: Faults,
}

/// Faults of the deployment that the sidecar met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Faults {
    pub(super) routable: Option<bool>,
    pub(super) authorized: Option<bool>,
    pub(super) message: Option<String>,
}

/// A pod and what its sidecar says; nothing when it can't be reached.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) status: Option<Status>,
}

/// The Worker's pods that are not on their way out.
pub(super) async fn look(context: &Context, namespace: &str, worker: &str) -> Result<Vec<Seen>> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{}={worker}", label::WORKER));
    let pods = api.list(&selector).await.map_err(Error::api("list the pods of the Worker"))?;
    let staying =
        pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).take(MAX_ASKED);
    Ok(join_all(staying.map(ask)).await)
}

async fn ask(pod: Pod) -> Seen {
    let name = pod.name_any();
    let address = pod.status.and_then(|status| status.pod_ip);
    let Some(address) = address else {
        return Seen { name, status: None };
    };
    let host = if address.contains(':') { format!("[{address}]") } else { address };
    let url = format!("http://{host}:{}/status", super::inject::ADMIN_PORT);
    let status = tokio::time::timeout(STATUS_TIMEOUT, fetch(&url)).await.ok().flatten();
    Seen { name, status }
}

/// The answer of one sidecar, if it makes sense.
async fn fetch(url: &str) -> Option<Status> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = client.get(url.parse().ok()?).await.ok()?;
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok()?.to_bytes();
    serde_json::from_slice(&body).ok()
}

/// The pods to retire when `count` have to go: those with the least to do.
pub(super) fn victims(pods: &[Seen], count: usize) -> Vec<String> {
    let mut ranked: Vec<_> = pods.iter().map(|pod| (cost(pod), pod.name.clone())).collect();
    ranked.sort();
    ranked.into_iter().take(count).map(|(_, name)| name).collect()
}

/// Pods that can't be asked count as a little busy: worse victims than idle ones, better than those known to work.
fn cost(pod: &Seen) -> i32 {
    pod.status.as_ref().map_or(1, |status| match status.in_flight + status.unsettled {
        0 => 0,
        busy => i32::try_from(busy).unwrap_or(i32::MAX - 1000).saturating_add(100),
    })
}

/// Tells the controller of pods whom to take first.
pub(super) async fn mark(context: &Context, namespace: &str, pods: &[Seen], victims: &[String]) {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    for pod in pods {
        let cost = if victims.contains(&pod.name) { -1 } else { cost(pod) };
        let patch = json!({ "metadata": { "annotations": { DELETION_COST: cost.to_string() } } });
        if let Err(error) = api.patch(&pod.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            tracing::debug!(pod = pod.name, %error, "deletion cost was not set");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, busy: Option<u32>) -> Seen {
        Seen {
            name: name.to_owned(),
            status: busy.map(|in_flight| Status { in_flight, ..Status::default() }),
        }
    }

    #[test]
    fn idle_pods_go_first_then_unknown_ones_then_the_least_busy() {
        let pods = [pod("busy", Some(9)), pod("unknown", None), pod("idle", Some(0)), pod("light", Some(1))];
        assert_eq!(victims(&pods, 3), ["idle", "unknown", "light"]);
    }
}
