//! Connections. `axum::serve` can be told neither how long a head may take nor how many connections there may be, so
//! this serves them with hyper itself.

use super::health;
use crate::Error;
use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header::CONNECTION};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Bounds of a server's connections.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Connections at once.
    pub connections: usize,
    /// Connections beyond these that are still heard: their health checks are answered, anything else is refused, so
    /// that a crowd doesn't look like a death.
    pub overflow: usize,
    /// How long the head of a request may take to arrive, and how long a connection may be idle.
    pub head: Duration,
    /// Bytes of a head, its URI included.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// How long requests may run on once the server was asked to stop.
    pub drain: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            overflow: 64,
            head: Duration::from_secs(30),
            head_bytes: 64 * 1024,
            headers: 64,
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves `app` until `stop` is cancelled: then it accepts nothing more, lets requests end within `limits.drain`, and
/// returns once every connection is closed.
pub async fn serve(listener: TcpListener, app: Router, limits: ServeLimits, stop: CancellationToken) {
    let connections = Connections {
        usual: Arc::new(Semaphore::new(limits.connections)),
        overflow: Arc::new(Semaphore::new(limits.overflow)),
        refusing: app.clone().layer(from_fn(health_only)),
        app,
        http: builder(&limits),
        stop,
        abort: CancellationToken::new(),
    };
    let tasks = TaskTracker::new();
    while let Some(stream) = accept(&listener, &connections.stop).await {
        if let Some(connection) = connections.admit(stream) {
            tasks.spawn(connection);
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(limits.drain, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "requests did not end in time");
        connections.abort.cancel();
        tasks.wait().await;
    }
}

struct Connections {
    usual: Arc<Semaphore>,
    overflow: Arc<Semaphore>,
    app: Router,
    refusing: Router,
    http: http1::Builder,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Connections {
    /// Serves `stream` if there is room for it in some way; drops it otherwise.
    fn admit(&self, stream: TcpStream) -> Option<impl Future<Output = ()> + Send + 'static> {
        let (place, app) = match self.usual.clone().try_acquire_owned() {
            Ok(place) => (place, &self.app),
            Err(_) => (self.overflow.clone().try_acquire_owned().ok()?, &self.refusing),
        };
        let (http, app) = (self.http.clone(), app.clone());
        let (stop, abort) = (self.stop.clone(), self.abort.clone());
        Some(async move {
            tokio::select! {
                () = connection(stream, &http, app, stop, place) => {}
                () = abort.cancelled() => {}
            }
        })
    }
}

async fn accept(listener: &TcpListener, stop: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) => {
                // Out of file descriptors, most likely: they come back as connections end.
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    http: &http1::Builder,
    app: Router,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    // Answers are small and awaited; without it they would only be slower.
    drop(stream.set_nodelay(true));
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

fn builder(limits: &ServeLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .max_headers(limits.headers);
    builder
}

async fn health_only(request: Request, next: Next) -> Response {
    let mut response = if health::PATHS.contains(&request.uri().path()) {
        next.run(request).await
    } else {
        Error::unavailable("too many connections; try again").into_response()
    };
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
