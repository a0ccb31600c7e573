//! The port that the cluster sees: probes, metrics, status and the hook that waits. It tells nothing about jobs and
//! changes nothing.

use crate::{core::Core, hooks};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;
use std::sync::Arc;
use tokio::time::Instant;

use crate::{
    core::Hold,
    drain::Stage,
    health::{Broker, Faults, PolicyState, lock},
};

/// What `/status` tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    pod_name: String,
    version: &'static str,
    concurrency: u32,
    in_flight: usize,
    unsettled: usize,
    claiming: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hold: Option<Hold>,
    draining: Stage,
    victim: bool,
    faults: Faults,
    brokers: Vec<Broker>,
    policy: PolicyState,
}

pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .merge(hooks::router())
        .with_state(core)
}

/// Ready means that the app can be started: there is a policy, and the local API listens (it does before this port).
/// A broker that is away must not restart pods.
async fn ready(State(core): State<Arc<Core>>) -> (StatusCode, String) {
    let policy = core.health.policy();
    if policy.loaded {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let error = policy.error.unwrap_or_else(|| "it was not read yet".to_owned());
    (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for the policy: {error}\n"))
}

async fn metrics(State(core): State<Arc<Core>>) -> impl IntoResponse {
    let counts = core.in_flight.counts();
    let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    core.metrics.running.set(gauge(counts.running));
    core.metrics.unsettled.set(gauge(counts.total - counts.running));
    core.metrics.payload_bytes.set(gauge(counts.bytes));
    core.metrics.result_bytes.set(gauge(core.pusher.result_bytes()));
    let concurrency = core.plan().concurrency();
    let throttled = lock(&core.throttle).is_active(concurrency, Instant::now());
    core.metrics.throttled.set(i64::from(throttled));
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, media_type)], core.metrics.text())
}

async fn status(State(core): State<Arc<Core>>) -> Json<Status> {
    let plan = core.plan();
    let counts = core.in_flight.counts();
    let hold = core.hold();
    Json(Status {
        pod_name: core.pod.clone(),
        version: env!("CARGO_PKG_VERSION"),
        concurrency: plan.concurrency(),
        in_flight: counts.running,
        unsettled: counts.total - counts.running,
        // An app that pulls claims as long as nothing else forbids it.
        claiming: matches!(hold, None | Some(Hold::Pull)),
        hold,
        draining: core.stop.stage(),
        victim: plan.is_victim(&core.pod),
        faults: core.health.faults(Instant::now()),
        brokers: core.health.brokers(),
        policy: core.health.policy(),
    })
}
