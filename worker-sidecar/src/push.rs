//! Hands one job to the app and reads the answer.
//!
//! Each job has a connection of its own. On one that is used again a second answer to the job before (of a handler that
//! answers twice, or only gets around to it late) would be taken for the answer to the next, which would then be settled
//! while it runs; no look at the connection beforehand can tell. And a server that closes an idle connection in the
//! moment when a request is written to it looks like one that died on the job. Another connection on localhost costs
//! about a tenth of a millisecond.

use crate::{
    budget::{self, Budget, Share},
    connect::{self, AppConnection},
    events::Start,
    headers::{self, Refinement},
    outcome::{Answer, Body, Response},
    plan::Target,
};
use bytes::{Bytes, BytesMut};
use http::{
    HeaderValue, Request,
    header::{CONNECTION, HOST},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::{self, Connection, SendRequest},
};
use longshore_drivers::{Limits, Payload, Timestamp};
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// Bytes of the head of an answer.
const HEAD: usize = 64 * 1024;
/// A body that is no result is read this far, which is more than is kept of it.
const DISCARD: usize = 16 * 1024;
/// And for at most this long: what it means is already decided.
const DISCARD_FOR: Duration = Duration::from_secs(1);

/// Bytes of all results in memory, from when they are read until they are settled.
const RESULTS: u32 = 32 * 1024 * 1024;
/// The beginning of a result is read without a share of these, so that small ones never wait.
const FREE: usize = 16 * 1024;
/// An app whose result had to wait for memory gets this long to send the rest, even after the deadline.
const READ_ON: Duration = Duration::from_secs(10);

/// Hands jobs to the app.
#[derive(Debug, Clone)]
pub(crate) struct Pusher {
    results: Budget,
}

/// An answer, and the share of memory that its result takes.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) answer: Answer,
    pub(crate) share: Option<Share>,
}

impl From<Answer> for Pushed {
    fn from(answer: Answer) -> Self {
        Self { answer, share: None }
    }
}

impl Pusher {
    pub(crate) fn new() -> Self {
        Self::with(RESULTS)
    }

    fn with(results: u32) -> Self {
        Self { results: Budget::new(results) }
    }

    /// Bytes of results that are in memory.
    pub(crate) fn result_bytes(&self) -> usize {
        self.results.spent()
    }

    /// Sends `request` to `target` and reads an answer whose result takes up to `max_result` bytes. Dropping this closes
    /// the connection, which is how the app hears that nobody waits any more. `start` is told when there is one.
    pub(crate) async fn push(
        &self,
        target: &Target,
        mut request: Request<Full<Bytes>>,
        max_result: usize,
        deadline: Instant,
        start: Option<Box<Start>>,
    ) -> Pushed {
        address(&mut request, target);
        let (mut sender, connection) = match timeout_at(deadline, open(target.port)).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(answer)) => return answer.into(),
            Err(_) => return Answer::TimedOut.into(),
        };
        if let Some(start) = start {
            start.tell();
        }
        let exchange = async {
            match timeout_at(deadline, sender.send_request(request)).await {
                Ok(Ok(answer)) => self.read(answer, max_result, deadline).await,
                Ok(Err(error)) => failed(&error).into(),
                Err(_) => Answer::TimedOut.into(),
            }
        };
        beside(connection, exchange).await
    }

    async fn read(&self, answer: http::Response<Incoming>, max_result: usize, deadline: Instant) -> Pushed {
        let (head, body) = answer.into_parts();
        let Refinement { wanted, retry_after, error } = headers::refinement(&head.headers, Timestamp::now());
        let status = head.status.as_u16();
        let media_type = headers::media_type(&head.headers);
        let mut response = Response { status, wanted, retry_after, error, body: Body::Empty };
        let mut share = None;
        let has_result = head.status.is_success() && status != 202 && wanted.is_none();
        if has_result {
            response.body = match self.result(body, max_result, deadline).await {
                Ok((bytes, held)) => {
                    share = held;
                    Body::Result(Payload { content_type: media_type, bytes })
                }
                Err(Unread::TooLarge) => Body::TooLarge(max_result),
                Err(Unread::Late) => return Answer::TimedOut.into(),
                Err(Unread::Broken(error)) => return Answer::Reset(error.to_string()).into(),
            };
        } else {
            let text = beginning(body).await;
            if response.error.is_none() && headers::is_text(&media_type) {
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                response.error = (!text.is_empty()).then_some(text);
            }
        }
        Pushed { answer: Answer::Response(response), share }
    }

    /// The whole body, if it takes no more than `limit`; else the rest is never read.
    ///
    /// A large one waits for its share once, for all that it may take; the app waits with it. That is no fault of the
    /// app, so the deadline does not count meanwhile.
    async fn result(
        &self,
        mut body: Incoming,
        limit: usize,
        mut deadline: Instant,
    ) -> Result<(Bytes, Option<Share>), Unread> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(Unread::TooLarge);
        }
        let exact = body.size_hint().exact().map_or(limit, |_| announced);
        let mut share = None;
        let mut bytes = BytesMut::new();
        let mut needed = announced;
        loop {
            if needed > FREE && share.is_none() {
                share = self.results.wait(exact).await;
                deadline = deadline.max(Instant::now() + READ_ON);
            }
            let frame = timeout_at(deadline, body.frame()).await.map_err(|_| Unread::Late)?;
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
            needed = bytes.len() + data.len();
            if needed > limit {
                return Err(Unread::TooLarge);
            }
            bytes.extend_from_slice(&data);
        }
        if let Some(share) = &mut share {
            budget::shrink(share, bytes.len());
        }
        Ok((bytes.freeze(), share))
    }
}

/// Why there is no result.
enum Unread {
    TooLarge,
    Late,
    Broken(hyper::Error),
}

/// Makes `request` one for this server alone, and for this once.
fn address(request: &mut Request<Full<Bytes>>, target: &Target) {
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    if let Ok(host) = HeaderValue::try_from(format!("127.0.0.1:{}", target.port)) {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(path) = target.uri.path_and_query() {
        *request.uri_mut() = path.as_str().parse().unwrap_or_default();
    }
}

type Opened = (SendRequest<Full<Bytes>>, Connection<AppConnection, Full<Bytes>>);

async fn open(port: u16) -> Result<Opened, Answer> {
    let stream = connect::open(port).await.map_err(|_| Answer::Refused)?;
    let handshake = http1::Builder::new().max_buf_size(HEAD).handshake(stream);
    handshake.await.map_err(|_| Answer::Refused)
}

/// Runs `exchange` while `connection` moves its bytes.
async fn beside<T>(
    connection: Connection<AppConnection, Full<Bytes>>,
    exchange: impl Future<Output = T>,
) -> T {
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        // What ended it is told to the exchange.
        _ = connection => exchange.await,
    }
}

/// What it means that there is no answer.
fn failed(error: &hyper::Error) -> Answer {
    if error.is_canceled() {
        // Nothing was written.
        Answer::Refused
    } else if error.is_parse() {
        Answer::Garbled(error.to_string())
    } else {
        Answer::Reset(crate::policy::chain(error))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{claimed, queue};
    use longshore_drivers::policy::Handler;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// An app that answers every connection with a result of `size` bytes.
    async fn app(size: usize) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&vec![b'x'; size]).await;
                });
            }
        });
        Target::of(&Handler::Http { port, path: "/jobs".to_owned() }).unwrap().unwrap()
    }

    async fn push(pusher: &Pusher, target: &Target, patience: Duration) -> Pushed {
        let (job, queue) = (claimed("job-1", 1), queue("emails"));
        let request = headers::request(&target.uri, "shop", &queue, &job, Timestamp::now());
        pusher.push(target, request, 1024 * 1024, Instant::now() + patience, None).await
    }

    fn length(pushed: &Pushed) -> usize {
        match &pushed.answer {
            Answer::Response(Response { body: Body::Result(result), .. }) => result.len(),
            other => panic!("no result: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_large_result_waits_for_memory_and_its_deadline_with_it() {
        let (pusher, target) = (Pusher::with(100_000), app(60_000).await);
        let patience = Duration::from_millis(300);
        let first = push(&pusher, &target, patience).await;
        assert_eq!((length(&first), pusher.result_bytes()), (60_000, 60_000));
        let mut second = pin!(push(&pusher, &target, patience));
        assert!(timeout(patience * 2, &mut second).await.is_err(), "there is no memory for it");
        drop(first);
        assert_eq!(length(&second.await), 60_000);
        assert_eq!(pusher.result_bytes(), 0);
    }

    #[tokio::test]
    async fn small_results_never_wait() {
        let (pusher, target) = (Pusher::with(0), app(FREE).await);
        assert_eq!(length(&push(&pusher, &target, Duration::from_secs(5)).await), FREE);
    }
}
