//! Health, for anybody who asks.

use super::answer::Json;
use crate::{DynDriver, Error, Result};
use axum::{Router, routing::get};
use serde::Serialize;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long the driver gets to say who it is; less than a probe waits, so that the answer says what is missing.
const PATIENCE: Duration = Duration::from_secs(1);

/// The paths of health routes: a broker's two, and what a sidecar's probes ask.
pub(super) const PATHS: [&str; 3] = ["/healthz", "/readyz", "/livez"];

#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
}

/// `/healthz`: this process answers. `/readyz`: the driver does too, and nobody asked the server to stop.
pub fn health_routes(driver: DynDriver, stop: CancellationToken) -> Router {
    let ready = move || {
        let (driver, stop) = (driver.clone(), stop.clone());
        async move { ready(&driver, &stop).await }
    };
    Router::new().route(PATHS[0], get(async || Json(Health { status: "ok" }))).route(PATHS[1], get(ready))
}

async fn ready(driver: &DynDriver, stop: &CancellationToken) -> Result<Json<Health>> {
    if stop.is_cancelled() {
        return Err(Error::unavailable("waiting for running requests to end"));
    }
    match tokio::time::timeout(PATIENCE, driver.probe()).await {
        Ok(Ok(_)) => Ok(Json(Health { status: "ready" })),
        Ok(Err(error)) => Err(Error::unavailable(format!("waiting for the backend: {error}"))),
        Err(_) => Err(Error::unavailable("waiting for the backend: it does not answer")),
    }
}
