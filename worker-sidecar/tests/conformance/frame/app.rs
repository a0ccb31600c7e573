//! An ordinary HTTP server that does what the payload of a job orders.

use super::{
    eventually,
    ledger::{Ended, Ledger},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use longshore_drivers::conformance::servers::process::free_port;
use serde::{Deserialize, Serialize};
use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// What a payload orders.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct Order {
    /// How long the work takes.
    pub(crate) work_ms: u64,
    /// Work until the ledger lets the job go.
    pub(crate) hold: bool,
    /// The status of each run in turn, the last one from then on; 0 closes the connection. 200 when there is none.
    pub(crate) answers: Vec<u16>,
    /// `Retry-After`, in seconds.
    pub(crate) retry_after: Option<u64>,
    /// Do a side effect, once per idempotency key.
    pub(crate) effect: bool,
    /// Bytes of the result instead of the run's number.
    pub(crate) result_bytes: usize,
    /// Makes the payload longer.
    pub(crate) padding: String,
}

/// What a run of an order without `result_bytes` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) run: u64,
}

/// One app.
pub(crate) struct App {
    port: u16,
    pod: usize,
    ledger: Arc<Ledger>,
    life: Mutex<CancellationToken>,
}

impl App {
    pub(crate) async fn start(pod: usize, ledger: Arc<Ledger>) -> Self {
        let app = Self { port: free_port().unwrap(), pod, ledger, life: Mutex::default() };
        app.up().await;
        app
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts to listen.
    pub(crate) async fn up(&self) {
        let life = CancellationToken::new();
        *self.life.lock().unwrap() = life.clone();
        let listener = Mutex::new(None);
        eventually("the app's port is free", || async {
            let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await.ok();
            let free = bound.is_some();
            *listener.lock().unwrap() = bound;
            free
        })
        .await;
        let listener = listener.into_inner().unwrap().unwrap();
        tokio::spawn(accept(listener, self.pod, self.ledger.clone(), life));
    }

    /// Exits: every connection is closed and nobody listens.
    pub(crate) async fn down(&self) {
        self.life.lock().unwrap().cancel();
        eventually("the app is gone", || async {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err()
        })
        .await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.life.get_mut().unwrap().cancel();
    }
}

async fn accept(listener: TcpListener, pod: usize, ledger: Arc<Ledger>, life: CancellationToken) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = life.cancelled() => return,
        };
        let Ok((stream, _)) = stream else { continue };
        let (ledger, life) = (ledger.clone(), life.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(pod, ledger.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // A closed connection is what some orders want.
                _ = connection => {}
                () = life.cancelled() => {}
            }
        });
    }
}

/// Closes the connection.
#[derive(Debug, thiserror::Error)]
#[error("the app closes the connection")]
struct Close;

async fn answer(
    pod: usize,
    ledger: Arc<Ledger>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Close> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Close)?.to_bytes();
    let line = format!("{} {}", head.method, head.uri.path());
    let (before, entry) = ledger.begin(pod, line, &head.headers, body.clone());
    let header = |name: &str| head.headers[name].to_str().unwrap_or_default();
    let Ok(order) = serde_json::from_slice::<Order>(&body) else {
        entry.end(Ended::Answered(400));
        return Ok(respond(400, "text/plain", Bytes::from_static(b"no order"), None));
    };
    if order.effect {
        ledger.effect(header("idempotency-key"));
    }
    if order.work_ms > 0 {
        sleep(Duration::from_millis(order.work_ms)).await;
    }
    if order.hold {
        ledger.held(header("job-id")).await;
    }
    let status = order.answers.get(before).or_else(|| order.answers.last()).copied().unwrap_or(200);
    if status == 0 {
        entry.end(Ended::Closed);
        return Err(Close);
    }
    let body = match (status, order.result_bytes) {
        (200, 0) => serde_json::to_vec(&Answer { run: entry.number() as u64 }).unwrap().into(),
        (200, bytes) => Bytes::from(vec![b'7'; bytes]),
        _ => Bytes::new(),
    };
    entry.end(Ended::Answered(status));
    Ok(respond(status, "application/json", body, order.retry_after))
}

fn respond(status: u16, media_type: &str, body: Bytes, retry_after: Option<u64>) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    if !body.is_empty() {
        response = response.header("content-type", media_type);
    }
    if let Some(seconds) = retry_after {
        response = response.header("retry-after", seconds);
    }
    response.body(Full::new(body)).unwrap()
}
