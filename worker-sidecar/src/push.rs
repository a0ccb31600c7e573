//! Hands one job to the app and reads the answer.

use crate::{
    connect::AppConnector,
    headers::{self, Refinement},
    outcome::{Answer, Body, Response},
};
use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use longshore_drivers::{Limits, Payload, Timestamp};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// An idle connection is given up after this long.
///
/// A server that closes an idle connection in the moment when a request is written to it looks like one that died on
/// the job, and that costs an attempt. Common servers keep idle connections for two seconds or more, so a connection
/// that is never idle for longer than this is not one they are about to close; opening another costs microseconds.
const IDLE: Duration = Duration::from_secs(1);
/// Bytes of the head of an answer.
const HEAD: usize = 64 * 1024;
/// A body that is no result is read this far, so that its connection can be used again, and then dropped.
const DISCARD: usize = 16 * 1024;
/// And for at most this long: what it means is already decided.
const DISCARD_FOR: Duration = Duration::from_secs(1);

/// The connections to the app.
#[derive(Debug, Clone)]
pub(crate) struct Pusher {
    client: Client<AppConnector, Full<Bytes>>,
}

impl Pusher {
    pub(crate) fn new() -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(HEAD)
            // Only requests of which nothing was written are sent again: the client still owns those.
            .retry_canceled_requests(true)
            .build(AppConnector::new());
        Self { client }
    }

    /// Sends `request` and reads an answer whose result takes up to `max_result` bytes. Dropping this closes the
    /// connection, which is how the app hears that nobody waits any more.
    pub(crate) async fn push(
        &self,
        request: Request<Full<Bytes>>,
        max_result: usize,
        deadline: Instant,
    ) -> Answer {
        let exchange = async {
            match self.client.request(request).await {
                Ok(answer) => read(answer, max_result).await,
                Err(error) => failed(&error),
            }
        };
        timeout_at(deadline, exchange).await.unwrap_or(Answer::TimedOut)
    }
}

/// What it means that there is no answer.
fn failed(error: &hyper_util::client::legacy::Error) -> Answer {
    if error.is_connect() {
        return Answer::Refused;
    }
    match cause(error) {
        Some(cause) if cause.is_canceled() => Answer::Refused,
        Some(cause) if cause.is_parse() => Answer::Garbled(cause.to_string()),
        Some(cause) => Answer::Reset(cause.to_string()),
        None => Answer::Reset(error.to_string()),
    }
}

fn cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a hyper::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref() {
            return Some(error);
        }
        next = error.source();
    }
    None
}

async fn read(answer: http::Response<Incoming>, max_result: usize) -> Answer {
    let (head, body) = answer.into_parts();
    let Refinement { wanted, retry_after, error } = headers::refinement(&head.headers, Timestamp::now());
    let status = head.status.as_u16();
    let media_type = headers::media_type(&head.headers);
    let mut response = Response { status, wanted, retry_after, error, body: Body::Empty };
    let has_result = head.status.is_success() && status != 202 && wanted.is_none();
    if has_result {
        response.body = match result(body, max_result).await {
            Ok(Some(bytes)) => Body::Result(Payload { content_type: media_type, bytes }),
            Ok(None) => Body::TooLarge(max_result),
            Err(error) => return Answer::Reset(error.to_string()),
        };
    } else {
        let text = beginning(body).await;
        if response.error.is_none() && headers::is_text(&media_type) {
            let text = String::from_utf8_lossy(&text).trim().to_owned();
            response.error = (!text.is_empty()).then_some(text);
        }
    }
    Answer::Response(response)
}

/// The whole body, or none when it is larger than `limit`; then the rest is never read.
async fn result(mut body: Incoming, limit: usize) -> Result<Option<Bytes>, hyper::Error> {
    let hint = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if hint > limit {
        return Ok(None);
    }
    let mut bytes = BytesMut::with_capacity(hint);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            if bytes.len() + data.len() > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Some(bytes.freeze()))
}

/// The beginning of a body that is no result.
async fn beginning(mut body: Incoming) -> Bytes {
    let mut text = BytesMut::new();
    let mut read = 0;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            let room = Limits::MESSAGE - text.len();
            text.extend_from_slice(&data[..data.len().min(room)]);
            read += data.len();
            if read > DISCARD {
                return;
            }
        }
    };
    // Whatever came until then will do.
    let _ = timeout(DISCARD_FOR, reading).await;
    text.freeze()
}
