//! Requests and responses, and what it means when there is no response.

use super::{
    super::{Effect, Problem, kind_of},
    HttpConfig,
};
use crate::{Error, ListJobs, Owner, QueueName, Result};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    error::Error as StdError,
    sync::{PoisonError, RwLock},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Bytes of a response. A server keeps its own far below it.
const RESPONSE: usize = 96 * 1024 * 1024;
/// Bytes of a response that says what went wrong.
const PROBLEM: usize = 64 * 1024;

type Pool = Client<HttpConnector, Full<Bytes>>;

/// One request.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    path: String,
    body: Option<Bytes>,
    effect: Effect,
    wait: Option<Duration>,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, effect: Effect::Reads, wait: None }
    }

    pub(super) fn delete(path: String) -> Self {
        Self { method: Method::DELETE, effect: Effect::Changes, ..Self::get(path) }
    }

    pub(super) fn put<B: Serialize>(path: String, body: &B) -> Result<Self> {
        Ok(Self { method: Method::PUT, ..Self::post(Effect::Changes, path, body)? })
    }

    pub(super) fn post<B: Serialize>(effect: Effect, path: String, body: &B) -> Result<Self> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::invalid(format!("the request can't be written: {error}")))?;
        Ok(Self { method: Method::POST, body: Some(body.into()), effect, ..Self::get(path) })
    }

    /// The same, answered up to `wait` later than usual.
    pub(super) fn waiting(self, wait: Duration) -> Self {
        let wait = Some(wait);
        Self { wait, ..self }
    }
}

#[derive(Debug)]
pub(super) struct Transport {
    pub(super) config: HttpConfig,
    pub(super) closed: CancellationToken,
    pool: RwLock<Option<Pool>>,
}

impl Transport {
    pub(super) fn new(config: HttpConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_keepalive(Some(Duration::from_secs(30)));
        // A request whose idle connection turns out to be closed before anything was written goes out on another one.
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.idle_timeout)
            .retry_canceled_requests(true)
            .build(connector);
        Self { config, closed: CancellationToken::new(), pool: RwLock::new(Some(pool)) }
    }

    /// Ends what waits and refuses what comes; the idle connections go.
    pub(super) fn close(&self) {
        drop(self.pool.write().unwrap_or_else(PoisonError::into_inner).take());
        self.closed.cancel();
    }

    /// Makes `call` and reads its answer.
    pub(super) async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        let body = self.exchange(&call).await?;
        serde_json::from_slice(&body).map_err(|_| {
            let what = "the broker's answer can't be understood; is it a Longshore broker of this version?";
            Error::new(call.effect.lost(), what)
        })
    }

    /// Makes `call`; that it was done is all there is to know.
    pub(super) async fn call_for_nothing(&self, call: Call) -> Result<()> {
        self.exchange(&call).await.map(drop)
    }

    /// Makes `call` and hands out its answer as it comes.
    pub(super) async fn open(&self, call: &Call) -> Result<Incoming> {
        let response = self.in_time(call, self.authorized(call)).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let refused = async { Ok(refusal(call, response).await) };
        Err(self.in_time(call, refused).await?)
    }

    async fn exchange(&self, call: &Call) -> Result<Bytes> {
        self.in_time(call, self.once(call)).await
    }

    async fn once(&self, call: &Call) -> Result<Bytes> {
        let response = self.authorized(call).await?;
        if !response.status().is_success() {
            return Err(refusal(call, response).await);
        }
        read(call, response.into_body(), RESPONSE).await
    }

    /// The response to `call`; a token that was refused is read again, once.
    async fn authorized(&self, call: &Call) -> Result<Response<Incoming>> {
        let token = self.config.token.header().await?;
        let response = self.send(call, token.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(token) = self.config.token.after(&token).await
        {
            return self.send(call, token).await;
        }
        Ok(response)
    }

    async fn send(&self, call: &Call, token: HeaderValue) -> Result<Response<Incoming>> {
        let pool = self.pool.read().unwrap_or_else(PoisonError::into_inner).clone();
        let pool = pool.ok_or_else(closed)?;
        let first = pool.request(self.request(call, token.clone())?).await;
        let answered = match first {
            // Looking twice is harmless, and the connection may have been an old one that was just being closed.
            Err(error) if call.effect == Effect::Reads && !error.is_connect() => {
                pool.request(self.request(call, token)?).await
            }
            first => first,
        };
        answered.map_err(|error| unanswered(call.effect, &error))
    }

    fn request(&self, call: &Call, token: HeaderValue) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(call.body.clone().unwrap_or_default()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = self.config.base.join(&call.path)?;
        request.headers_mut().insert(AUTHORIZATION, token);
        if call.body.is_some() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(CONTENT_TYPE, json);
        }
        Ok(request)
    }

    /// Bounds `work` by the time of `call`; a call that waits also ends when the driver is closed.
    async fn in_time<T>(&self, call: &Call, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit =
            call.wait.map_or(self.config.call_timeout, |wait| wait.saturating_add(self.config.wait_margin));
        let waits = call.wait.is_some();
        tokio::select! {
            biased;
            done = tokio::time::timeout(limit, work) => done.unwrap_or_else(|_| {
                Err(Error::new(call.effect.late(), format!("the broker did not answer within {limit:?}")))
            }),
            () = self.closed.cancelled(), if waits => Err(closed()),
        }
    }
}

/// The error in a response that is no success.
async fn refusal(call: &Call, response: Response<Incoming>) -> Error {
    let status = response.status();
    let body = read(call, response.into_body(), PROBLEM).await.unwrap_or_default();
    if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
        return problem.into_error();
    }
    // A kind that this version doesn't know still has a status, which says the most important.
    let said = serde_json::from_slice(&body).ok().filter(|Said { detail }| !detail.is_empty());
    let text = said.map_or_else(|| format!("the broker answered {status}"), |Said { detail }| detail);
    Error::new(kind_of(status, call.effect), text)
}

/// What a problem of an unknown kind says.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    detail: String,
}

async fn read(call: &Call, body: Incoming, limit: usize) -> Result<Bytes> {
    let read = Limited::new(body, limit).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|error| Error::new(call.effect.lost(), format!("the broker's answer broke off: {error}")))
}

/// What a request without a response means.
fn unanswered(effect: Effect, error: &hyper_util::client::legacy::Error) -> Error {
    if error.is_connect() {
        return Error::unavailable(format!("the broker can't be reached: {}", chain(error)));
    }
    if never_sent(error) {
        return Error::unavailable("the broker closed the connection before the request was sent");
    }
    Error::new(effect.lost(), format!("the connection to the broker was lost: {}", chain(error)))
}

/// Whether hyper gave the request up before it wrote any of it.
fn never_sent(error: &hyper_util::client::legacy::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        source = error.source();
    }
    false
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn closed() -> Error {
    Error::unavailable("the driver is closed")
}

/// A broker that answers more or fewer items than it was asked about.
pub(super) fn wrong_count(effect: Effect) -> Error {
    Error::new(effect.lost(), "the broker answered another number of items")
}

/// The path of a page of jobs.
pub(super) fn list_path(queue: &QueueName, list: &ListJobs) -> Result<String> {
    let state = serde_json::to_value(list.state).ok();
    let state = state.as_ref().and_then(serde_json::Value::as_str);
    let state = state.ok_or_else(|| Error::invalid("the state has no name"))?;
    let path = format!("/v1/queues/{queue}/jobs?state={state}&limit={}", list.limit);
    Ok(match &list.after {
        Some(after) => format!("{path}&after={}", after.bytes().map(escaped).collect::<String>()),
        None => path,
    })
}

/// The path of a queue that `owner` takes away.
pub(super) fn delete_path(queue: &QueueName, owner: &Owner) -> String {
    let escape = |text: &str| text.bytes().map(escaped).collect::<String>();
    let Owner { installation, uid } = owner;
    format!("/v1/queues/{queue}?installation={}&uid={}", escape(installation), escape(uid))
}

/// A byte of a query's value.
fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::JobState;

    #[test]
    fn a_cursor_may_hold_anything() {
        let list = ListJobs { state: JobState::Dead, limit: 7, after: Some("a b&ü/1".to_owned()) };
        assert_eq!(
            list_path(&"a.b.c".parse().unwrap(), &list).unwrap(),
            "/v1/queues/a.b.c/jobs?state=dead&limit=7&after=a%20b%26%C3%BC%2F1"
        );
    }
}
