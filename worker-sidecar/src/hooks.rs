//! The two hooks of a pod's end.
//!
//! The sidecar's own preStop runs the `drain` sub-command, which starts the drain and returns. The preStop of the app's
//! containers asks the admin port and only waits. The kubelet also runs it when a liveness probe fails; then nobody
//! started a drain, the hook returns after a short grace, and the sidecar goes on once the app is back.

use crate::{
    core::Core,
    drain::Event,
    stop::{self, HOOK_GRACE},
    token,
};
use axum::{Router, extract::State, http::StatusCode, routing::get};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

/// How often `drain` tries to reach a sidecar, and how long it waits in between.
const TRIES: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(200);
const REQUEST: Duration = Duration::from_secs(2);
/// What the sidecar answers to a knock.
const STARTED: &[u8] = b"drain started\n";

pub(crate) fn router() -> Router<Arc<Core>> {
    Router::new().route("/hooks/app-stop", get(app_stop))
}

/// Nobody is refused: a hook that fails counts as one that returned, and the app would be stopped under its jobs. What
/// waits is bounded by the port's connections.
async fn app_stop(State(core): State<Arc<Core>>) -> (StatusCode, &'static str) {
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
        if matches!(timeout(REQUEST, knock(&socket(token_file))).await, Ok(Ok(()))) {
            return Ok(());
        }
        match timeout(REQUEST, post(api, &token)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => last = reason,
            Err(_) => "no answer".clone_into(&mut last),
        }
        sleep(BETWEEN).await;
    }
    Err(Error::Reach { api, reason: last })
}

/// The sidecar's own door for its own hook. Apps come through the local API, and a crowd of them there must not keep the
/// hook out.
fn socket(token_file: &Path) -> PathBuf {
    token_file.with_file_name("drain.sock")
}

/// Opens the door beside the token. Only who runs as the sidecar does may use it, so it asks for no token.
pub(crate) fn door(token_file: &Path) -> io::Result<UnixListener> {
    let path = socket(token_file);
    // One that a killed sidecar left behind leads nowhere.
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Starts the drain when somebody knocks at the door.
pub(crate) async fn attend(core: Arc<Core>, door: UnixListener) {
    loop {
        match door.accept().await {
            Ok((mut stream, _)) => {
                stop::apply(&core, Event::Requested);
                // Whoever does not wait for the answer does without.
                let _ = timeout(REQUEST, stream.write_all(STARTED)).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the door of the drain hook can't be attended");
                sleep(BETWEEN).await;
            }
        }
    }
}

async fn knock(door: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(door).await?;
    let mut answer = [0; STARTED.len()];
    stream.read_exact(&mut answer).await.map(drop)
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
