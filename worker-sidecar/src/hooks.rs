//! The two hooks of a pod's end.
//!
//! The sidecar's own preStop runs the `drain` sub-command, which starts the drain and returns. The preStop of the app's
//! containers asks the admin port and only waits. The kubelet also runs it when a liveness probe fails; then nobody
//! started a drain, the hook returns after a short grace, and the sidecar goes on once the app is back.

use crate::{core::Core, stop::HOOK_GRACE, token};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Containers of a pod that wait at once, with room for repeats. The port is open to the cluster.
const WAITERS: usize = 32;
/// How often `drain` tries to reach a sidecar, and how long it waits in between.
const TRIES: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(200);
const REQUEST: Duration = Duration::from_secs(2);

pub(crate) fn router() -> Router<Arc<Core>> {
    Router::new().route("/hooks/app-stop", get(app_stop))
}

async fn app_stop(State(core): State<Arc<Core>>) -> (StatusCode, &'static str) {
    static WAITING: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(WAITERS));
    let Ok(_place) = WAITING.try_acquire() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many hooks wait\n");
    };
    tracing::info!("a hook of the app waits");
    if core.stop.app_hook(HOOK_GRACE).await {
        (StatusCode::OK, "the pod ends, the app may stop\n")
    } else {
        tracing::info!("a hook of the app returns: the pod does not end");
        (StatusCode::OK, "the pod does not end\n")
    }
}

/// Why a drain could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token can't be read.
    #[error("failed to read the pod token {path:?}")]
    ReadToken {
        /// Where it should be.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The sidecar does not answer.
    #[error("failed to reach the sidecar at {api}: {reason}")]
    Reach {
        /// Its address.
        api: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Starts the drain of the sidecar that listens on `api`.
pub async fn fire(api: SocketAddr, token_file: &Path) -> Result<(), Error> {
    let read = token::read(token_file);
    let token = read.map_err(|source| Error::ReadToken { path: token_file.to_owned(), source })?;
    let mut last = String::new();
    for _ in 0..TRIES {
        match timeout(REQUEST, post(api, &token)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => last = reason,
            Err(_) => "no answer".clone_into(&mut last),
        }
        sleep(BETWEEN).await;
    }
    Err(Error::Reach { api, reason: last })
}

async fn post(api: SocketAddr, token: &str) -> Result<(), String> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let request = http::Request::post(format!("http://{api}/v1/drain"))
        .header("authorization", format!("Bearer {token}"))
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| crate::policy::chain(&error))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
}
