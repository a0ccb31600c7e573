//! Pods of a Worker, and what their sidecars say.

use super::inject::{ADMIN_PORT, SIDECAR};
use crate::{
    context::Context,
    error::{Error, Result},
    trouble::trouble,
};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use longshore_crds::label;
use serde::Deserialize;
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// How long one sidecar may take to answer, and all of them together.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_TIMEOUT: Duration = Duration::from_secs(4);
/// Sidecars that are asked, and pods that are written, at once.
const ASKED_AT_ONCE: usize = 64;
const WRITTEN_AT_ONCE: usize = 16;
/// A look for faults asks no more sidecars than this: a fault of the template is in all of them.
pub(super) const SAMPLE: usize = 20;
/// Bytes of one answer.
const MAX_ANSWER: usize = 64 * 1024;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What a sidecar says of itself. An answer that doesn't say what runs is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    pub(super) in_flight: u32,
    #[serde(default)]
    pub(super) unsettled: u32,
    /// Whether it knows that it shall claim nothing more, if it speaks of that.
    #[serde(default)]
    pub(super) victim: Option<bool>,
    #[serde(default)]
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

/// A pod and what its sidecar says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) deletion_cost: i32,
    /// Why a container doesn't run.
    pub(super) trouble: Option<String>,
    /// Nothing when the sidecar can't be reached.
    pub(super) status: Option<Status>,
}

/// Asks sidecars.
#[derive(Debug, Clone)]
pub(super) struct Asker(Client<HttpConnector, Empty<bytes::Bytes>>);

impl Default for Asker {
    fn default() -> Self {
        // Pods come and go: a connection is not kept for the next time.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self(client)
    }
}

/// The Worker's pods that are not on their way out: all of them, or as many as tell of faults.
pub(super) async fn look(
    context: &Context,
    asker: &Asker,
    namespace: &str,
    worker: &str,
    all: bool,
) -> Result<Vec<Seen>> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{}={worker}", label::WORKER));
    // For faults what the API server has in memory will do.
    let selector = if all { selector } else { selector.match_any() };
    let pods = api.list(&selector).await;
    let pods = pods.map_err(Error::api("list the pods of the Worker"))?;
    let staying = pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let staying: Vec<_> = staying.take(if all { usize::MAX } else { SAMPLE }).collect();
    let addresses: Vec<_> = staying.iter().filter_map(address).collect();
    let mut told: BTreeMap<String, Status> = BTreeMap::new();
    let answers = stream::iter(addresses)
        .map(|(name, url)| async move { Some((name, ask(asker, &url).await?)) })
        .buffer_unordered(ASKED_AT_ONCE)
        .take_until(tokio::time::sleep(LOOK_TIMEOUT));
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        told.extend(answer);
    }
    Ok(staying.iter().map(|pod| seen(pod, told.remove(&pod.name_any()))).collect())
}

fn seen(pod: &Pod, status: Option<Status>) -> Seen {
    let cost = pod.annotations().get(DELETION_COST).and_then(|text| text.parse().ok());
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    Seen {
        name: pod.name_any(),
        ready: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        deletion_cost: cost.unwrap_or(0),
        trouble: trouble(pod, SIDECAR),
        status,
    }
}

fn address(pod: &Pod) -> Option<(String, String)> {
    let address = pod.status.as_ref()?.pod_ip.as_ref()?;
    let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
    Some((pod.name_any(), format!("http://{host}:{ADMIN_PORT}/status")))
}

async fn ask(asker: &Asker, url: &str) -> Option<Status> {
    let answer = async {
        let answer = asker.0.get(url.parse().ok()?).await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    };
    tokio::time::timeout(STATUS_TIMEOUT, answer).await.ok().flatten()
}

/// Tells the controller of the pods whom to take first. A pod that can't be told keeps what it cost.
pub(super) async fn mark(context: &Context, namespace: &str, costs: &[(String, i32)]) {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let api = &api;
    stream::iter(costs)
        .for_each_concurrent(WRITTEN_AT_ONCE, |(name, cost)| async move {
            let patch = json!({ "metadata": { "annotations": { DELETION_COST: cost.to_string() } } });
            let done = api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            if let Err(error) = done {
                tracing::debug!(pod = name, %error, "deletion cost was not set");
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "mailer-1", "annotations": { DELETION_COST: "7" } },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_answer_of_a_sidecar_is_understood() {
        let text = r#"{"podName":"mailer-1","version":"0.1.0","concurrency":10,"inFlight":3,"unsettled":1,"claiming":false,
            "hold":"paused","draining":"running","victim":false,"brokers":[],"policy":{"loaded":true},
            "faults":{"routable":false,"authorized":true,"message":"the app has no route"}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!((status.in_flight, status.unsettled, status.victim), (3, 1, Some(false)));
        assert_eq!((status.faults.routable, status.faults.authorized), (Some(false), Some(true)));
        // A sidecar of another version may know less, but not whether it is busy.
        assert!(serde_json::from_str::<Status>(r#"{"inFlight":0}"#).is_ok());
        assert!(serde_json::from_str::<Status>("{}").is_err());
    }

    #[test]
    fn addresses_of_both_families_are_asked() {
        let url = |ip: &str| address(&pod(&json!({ "podIP": ip }))).unwrap().1;
        assert_eq!(url("10.0.0.7"), "http://10.0.0.7:7421/status");
        assert_eq!(url("fd00::7"), "http://[fd00::7]:7421/status");
        assert_eq!(address(&pod(&json!({}))), None);
    }

    #[test]
    fn readiness_and_cost_are_read() {
        let ready = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
        let seen = seen(&pod(&ready), None);
        assert!(seen.ready);
        assert_eq!(seen.deletion_cost, 7);
    }

    #[tokio::test]
    async fn a_sidecar_that_answers_nonsense_is_not_known() {
        use axum::{Router, http::StatusCode, routing::get};
        let busy = r#"{"inFlight":2}"#;
        let router = Router::new()
            .route("/status", get(move || async move { busy }))
            .route("/nonsense", get(|| async { "nonsense" }))
            .route("/sick", get(move || async move { (StatusCode::INTERNAL_SERVER_ERROR, busy) }))
            .route("/endless", get(|| async { " ".repeat(MAX_ANSWER + 1) }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let asker = Asker::default();
        let asked = async |path: &str| ask(&asker, &format!("http://{address}/{path}")).await;
        assert_eq!(asked("status").await.unwrap().in_flight, 2);
        for path in ["nonsense", "sick", "endless", "missing"] {
            assert_eq!(asked(path).await, None, "{path}");
        }
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert_eq!(asked("status").await, None);
    }
}
