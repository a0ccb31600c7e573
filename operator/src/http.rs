//! Health, readiness and metrics.

use crate::metrics::Metrics;
use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_util::sync::CancellationToken;

/// Far more than probes and scrapers need.
const CONNECTIONS: usize = 256;
/// How long a connection may take for its next request. Longer than scrapers usually pause, so that they keep theirs.
const NEXT_REQUEST: Duration = Duration::from_secs(90);
/// How long answers may take once the server was asked to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// What has to be there before the replica is ready. Leading is no part of it: a standby does all that it has to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<Mutex<BTreeMap<String, Check>>>);

#[derive(Debug)]
struct Check {
    ready: bool,
    detail: String,
}

impl Readiness {
    /// Says how `name` stands; `detail` tells people what is waited for.
    pub(crate) fn set(&self, name: impl Into<String>, ready: bool, detail: impl Into<String>) {
        let detail = detail.into();
        self.checks().insert(name.into(), Check { ready, detail });
    }

    /// Whether all checks passed, and a line for each. Before the first one stands, nothing is known to be there.
    pub(crate) fn report(&self) -> (bool, String) {
        let checks = self.checks();
        if checks.is_empty() {
            return (false, "waiting for the start\n".to_owned());
        }
        let mut text = String::new();
        for (name, Check { ready, detail }) in checks.iter() {
            let state = if *ready { "ready" } else { "waiting" };
            // Writing to a string doesn't fail.
            let _ = writeln!(text, "{name}: {state}: {}", detail.replace(['\n', '\r'], " "));
        }
        (checks.values().all(|check| check.ready), text)
    }

    fn checks(&self) -> MutexGuard<'_, BTreeMap<String, Check>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until `stop`.
///
/// # Errors
/// The address can't be listened on.
pub(crate) async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("failed to listen on {address}"))?;
    let listener =
        Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS)), next_request: NEXT_REQUEST };
    serve_on(listener, routes(metrics, readiness), stop).await
}

async fn serve_on(listener: Bounded, app: Router, stop: CancellationToken) -> anyhow::Result<()> {
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        ended = serving => ended.context("failed to serve"),
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        } => Ok(()),
    }
}

fn routes(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    Router::new()
        // That it is answered is the answer: the event loop turns.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready_now).with_state(readiness))
        .route("/metrics", get(measured).with_state(metrics))
}

async fn ready_now(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let (ready, text) = readiness.report();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, text)
}

async fn measured(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, kind)], metrics.encode())
}

/// Few connections, and none that takes its time: who opens many and sends nothing must not make probes fail for long.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    next_request: Duration,
}

impl Listener for Bounded {
    type Io = Timed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // Without a place it is closed at once; waiting for one would leave it hanging.
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                return (Timed::new(stream, self.next_request, place), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends unless its next request is there in time. The time starts anew with what is answered, not with
/// what is received: a request that comes byte by byte ends too.
struct Timed {
    stream: TcpStream,
    next_request: Duration,
    timer: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Timed {
    fn new(stream: TcpStream, next_request: Duration, place: OwnedSemaphorePermit) -> Self {
        Self { stream, next_request, timer: Box::pin(tokio::time::sleep(next_request)), _place: place }
    }

    fn answered(&mut self) {
        let next = tokio::time::Instant::now() + self.next_request;
        self.timer.as_mut().reset(next);
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.timer.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(context, bytes) {
            self.answered();
            return Poll::Ready(written);
        }
        // Who doesn't read the answer has the same time as who doesn't ask.
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::Interest;

    async fn served(next_request: Duration, places: usize) -> (SocketAddr, Readiness, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let app = routes(Arc::default(), readiness.clone());
        let listener = Bounded { listener, places: Arc::new(Semaphore::new(places)), next_request };
        tokio::spawn(serve_on(listener, app, stop.clone()));
        (address, readiness, stop)
    }

    /// All that comes until the server closes the connection.
    async fn rest(stream: &TcpStream) -> String {
        let mut all = Vec::new();
        loop {
            stream.ready(Interest::READABLE).await.unwrap();
            let mut buffer = [0; 4096];
            match stream.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        stream.writable().await.unwrap();
        stream.try_write(request.as_bytes()).unwrap();
        rest(&stream).await
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_served() {
        let (address, readiness, _stop) = served(NEXT_REQUEST, 8).await;
        assert!(fetch(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        let waiting = fetch(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503"), "{waiting}");
        readiness.set("definitions", true, "established");
        let ready = fetch(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        let metrics = fetch(address, "/metrics").await;
        assert!(metrics.contains("content-type: application/openmetrics-text"));
        assert!(metrics.contains("longshore_leader 0"), "{metrics}");
    }

    #[tokio::test]
    async fn a_connection_that_sends_nothing_or_too_slowly_is_closed() {
        let (address, _readiness, _stop) = served(Duration::from_millis(100), 8).await;
        let silent = TcpStream::connect(address).await.unwrap();
        let slow = TcpStream::connect(address).await.unwrap();
        slow.writable().await.unwrap();
        slow.try_write(b"GET /healthz HTT").unwrap();
        let closed =
            tokio::time::timeout(Duration::from_secs(5), async { (rest(&silent).await, rest(&slow).await) });
        assert!(closed.await.is_ok());
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_are_closed_and_places_come_back() {
        let (address, _readiness, _stop) = served(NEXT_REQUEST, 1).await;
        let first = TcpStream::connect(address).await.unwrap();
        let second = TcpStream::connect(address).await.unwrap();
        assert_eq!(rest(&second).await, "");
        drop(first);
        while !fetch(address, "/healthz").await.starts_with("HTTP/1.1 200") {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        let (address, readiness, stop) = served(NEXT_REQUEST, 1).await;
        let error = serve(address, Arc::default(), readiness, stop).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()));
    }

    #[test]
    fn readiness_says_what_it_waits_for() {
        let readiness = Readiness::default();
        assert_eq!(readiness.report(), (false, "waiting for the start\n".to_owned()));
        readiness.set("definitions", false, "no\nQueue");
        readiness.set("caches", true, "synced");
        let (ready, text) = readiness.report();
        assert!(!ready);
        assert_eq!(text, "caches: ready: synced\ndefinitions: waiting: no Queue\n");
        readiness.set("definitions", true, "established");
        assert!(readiness.report().0);
    }
}
